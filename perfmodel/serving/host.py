"""What requests wait for on the host of an engine, beside its steps."""

from __future__ import annotations

import numpy as np

from perfmodel.serving.engine import Engine
from perfmodel.terms import Array, Number


def received_s(engine: Engine) -> float:
    """Return the time of a request before an engine knows it [s]."""
    return float(engine.prompt_overhead + engine.request_overhead)


def intake_s(engine: Engine, step_s: Number, shared: Number) -> Array:
    """Return the time until an engine looks at new requests [s].

    Parameters
    ----------
    step_s : array
        Time of a step [s].
    shared : array
        Chance that the engine is in a step of others.

    Notes
    -----
    An engine that looks every k steps does so k/2 steps after a request has come.
    """
    return np.asarray(engine.intake_steps / 2 * np.asarray(step_s) * shared)


def passed_on_s(engine: Engine, others: Number, queued_s: Number) -> Array:
    """Return by how much the host delays requests that come at once, beyond what they wait for each other's prompts.

    Notes
    -----
    Host and accelerator are a line of two stations: the slower one of them sets how fast requests come out, and one of
    them waits for half of the others, `others`/2 times the host's time of a request or `queued_s`.
    """
    return np.asarray(np.maximum(engine.request_overhead * np.asarray(others) / 2 - queued_s, 0.0))
