"""How far measured steps are from predicted ones: the spread of a step from that of its parts.

As for a training step (`perfmodel.intervals`): parts of a class err alike and add up within it, classes are
independent, and one error is common to all.
"""

from __future__ import annotations

import numpy as np

from perfmodel.kernels.model import Z90
from perfmodel.serving.server import Server
from perfmodel.terms import Term

KERNELS: dict[str, tuple[str, ...]] = {
    "projections": ("gemm.",),
    "attention of prompts": ("prefill.", "gemm."),
    "attention over the cache": ("decode.", "memory.stream"),
    "experts": ("moe.",),
    "norms and activations": ("memory.",),
    "logits and sampling": ("gemm.",),
}
"""Leaves of a step that are kernels, and the models whose spread they have."""

LINKS = ("tensor-parallel communication", "expert communication", "pipeline sends")

SPREADS = {"links": 0.25, "host": 0.4, "common": 0.12}
"""Standard deviations of ln(measured/predicted) of communication, of everything the host does, and of all."""


def step_spread(server: Server, term: Term) -> float:
    """Return the standard deviation of ln(measured/predicted) of a step.

    Parameters
    ----------
    server : Server
        Whose step.
    term : Term
        Its tree, of one candidate.
    """
    whole = float(np.max(term.seconds))
    variance = SPREADS["common"] ** 2
    parts = {"links": 0.0, "host": 0.0}
    for child in term.children:
        share = float(np.max(child.seconds)) / whole
        models = KERNELS.get(child.name)
        if models is not None:
            known = [kernel for name, kernel in server.kernels.items() if name.startswith(models)]
            variance += (share * max((kernel.parameters.spread for kernel in known), default=0.0)) ** 2
        elif child.name in LINKS:
            parts["links"] += share
        else:
            parts["host"] += share
    variance += sum((share * SPREADS[part]) ** 2 for part, share in parts.items())
    return float(np.sqrt(variance))


def factors(spread: float) -> tuple[float, float]:
    """Return by how much the fastest and slowest tenth of steps differ from the prediction."""
    return float(np.exp(-Z90 * spread)), float(np.exp(Z90 * spread))
