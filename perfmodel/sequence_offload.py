"""Activations that leave for host memory while later layers run, and return in the backward pass.

Attention is quadratic in the length of a sequence and activations are linear: a long sequence computes long enough to
hide all of its transfer, a short one only a part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.job import Job
from perfmodel.layer import layer_cost
from perfmodel.memory import host_bytes
from perfmodel.parameters import stage_weights
from perfmodel.plan import Plan
from perfmodel.terms import Array
from perfmodel.training import host_rates

STAYING_LAYERS = 2
"""Layers whose activations stay: the one at work and the one that leaves or returns."""


@dataclass(frozen=True)
class Offload:
    """What share of the activations of a sequence leaves for host memory.

    Parameters
    ----------
    lengths, share : array, shape (L,)
        Lengths, ascending [tokens], and the share of the layers' activations that leaves [1].
    layer_bytes : float
        Activations of a token in all layers of an accelerator, which could leave [bytes].
    freed_bytes, token_bytes : float
        Memory that those take, and memory of a token in all [bytes].
    rate : float
        Rate of an accelerator to host memory, and from it [bytes/s].
    host_bytes : float
        Host memory that an accelerator can have [bytes].
    """

    lengths: Array
    share: Array
    layer_bytes: float
    freed_bytes: float
    token_bytes: float
    rate: float
    host_bytes: float

    def held_tokens(self, lengths: Array) -> Array:
        """Return what sequences of some lengths take of the memory [tokens]."""
        share = np.interp(lengths, self.lengths, self.share)
        return np.asarray(lengths * (1 - share * self.freed_bytes / self.token_bytes))

    def moved_bytes(self, lengths: Array) -> Array:
        """Return what leaves of sequences of some lengths, from all accelerators of a group together [bytes]."""
        return np.asarray(lengths * np.interp(lengths, self.lengths, self.share) * self.layer_bytes)


def most_share(job: Job) -> float:
    """Return the share of the activations that may leave at most [1]."""
    return max(1 - STAYING_LAYERS / job.architecture.depth, 0.0)


def offload_of(
    job: Job,
    steps: Iterable[tuple[Job, Plan, NDArray[np.bool_]]],
    lengths: Array,
    tokens: float,
    token_bytes: float,
) -> Offload:
    """Return what share of sequences of each length can leave for host memory at no cost of time.

    Parameters
    ----------
    job : Job
        Model, machine and framework.
    steps : iterable of (Job, Plan, array of bool)
        Micro-steps of sequences of each length on groups of every size, shape (L D,), in each style; on which sizes,
        shape (D,), the style runs.
    lengths : array, shape (L,)
        Lengths [tokens].
    tokens : float
        Tokens of an accelerator in those micro-steps, as many as it holds.
    token_bytes : float
        Memory of a token [bytes].

    Notes
    -----
    ByteScale (arXiv 2502.21231), its equation for the degree of a sequence: activations of share o leave behind the
    forward pass and return behind the backward one, ``o Act(s) <= min(B_d2h, B_h2d) T(s)``, and two layers stay. T is
    the shorter of the two passes on the size and style where it is shortest, so that a sequence may leave on any. Of a
    full accelerator no more leaves than its share of host memory: with h bytes of that for each token held, A and F
    bytes of a token that leave and that this frees, of M in all, ``o A <= h (1 - o F / M)``.
    """
    rate, room = min(host_rates(job)), host_bytes(job)
    architecture = job.architecture
    weights = stage_weights(architecture, float(architecture.depth), float(architecture.leading), 1.0, 1.0)[:-2]
    share, layer_bytes = np.full(len(lengths), most_share(job)), np.inf
    for asked, plan, runs in steps:
        costs = [layer_cost(asked, layer, plan) for layer in architecture.layers]
        saved, forward, backward = (
            np.broadcast_to(
                np.asarray(sum(weight * getattr(cost, name) for weight, cost in zip(weights, costs, strict=True))),
                (len(lengths) * len(runs),),
            ).reshape(len(lengths), len(runs))[:, runs]
            for name in ("saved_bytes", "forward_s", "backward_s")
        )
        shorter = np.minimum(forward, backward)
        share = np.minimum(share, (rate * shorter / saved).min(axis=1, initial=1.0))
        layer_bytes = min(layer_bytes, float(saved.min(initial=np.inf)) / tokens)
    freed = layer_bytes * (1 + job.framework.reserve.fragmentation)
    each = room / tokens
    share = np.minimum(share, each / (layer_bytes + each * freed / token_bytes))
    return Offload(lengths, share, layer_bytes, freed, token_bytes, rate, room)
