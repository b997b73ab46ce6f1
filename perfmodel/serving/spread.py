"""How far measured operating points are from predicted ones.

An engine's points leave a spread of each kind of figure; on a family of accelerators of which it has none, parameters
of kernels that were measured elsewhere add theirs, each by the share of the step that it takes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from perfmodel.kernels.model import Z90
from perfmodel.serving.engine import Engine
from perfmodel.serving.server import Server
from perfmodel.terms import Term

Figure = Literal["tpot", "ttft", "throughput"]

KERNELS: dict[str, tuple[str, ...]] = {
    "projections": ("gemm.",),
    "attention of prompts": ("prefill.", "gemm."),
    "attention over the cache": ("decode.", "memory.stream"),
    "experts": ("moe.",),
    "norms and activations": ("memory.",),
    "logits and sampling": ("gemm.",),
}
"""Leaves of a step that are kernels, and the models whose parameters they have."""


def engine_spread(engine: Engine, figure: Figure, *, apart: bool) -> float:
    """Return the standard deviation of ln(measured/predicted) that an engine's points leave.

    Parameters
    ----------
    apart : bool
        Whether prompts and answers have instances of their own.
    """
    own = engine.spreads[figure]
    return own if not apart or figure == "throughput" else engine.pool_spreads.get(figure, own)


def step_spread(server: Server, term: Term, figure: Figure, *, apart: bool = False) -> float:
    """Return the standard deviation of ln(measured/predicted) of a kind of figure.

    Parameters
    ----------
    server : Server
        What runs.
    term : Term
        The tree of the step that the figure is mostly made of, of one candidate.
    figure : str
        Time of a token, time to the first one, or a rate.
    apart : bool
        Whether prompts and answers have instances of their own.
    """
    variance = engine_spread(server.engine, figure, apart=apart) ** 2
    if server.machine.accelerator.architecture not in server.engine.measured_families:
        whole = float(np.max(term.seconds))
        for child in term.children:
            models = KERNELS.get(child.name)
            if models is not None:
                known = [kernel.widening for name, kernel in server.kernels.items() if name.startswith(models)]
                variance += (float(np.max(child.seconds)) / whole * max(known, default=0.0)) ** 2
    return float(np.sqrt(variance))


def factors(spread: float) -> tuple[float, float]:
    """Return by how much the fastest and slowest tenth differ from the prediction."""
    return float(np.exp(-Z90 * spread)), float(np.exp(Z90 * spread))
