"""Context-parallel attention: what the ranks of a group send each other, how long it takes, and what they hold.

Four styles. Ring attention passes keys and values around the group, a block at a time (Liu et al., arXiv 2310.01889).
Ulysses deals heads out: all-to-alls before and after the core (arXiv 2309.14509). All-gather brings the keys and values
of the whole group to every rank, which attends its two chunks of queries, one from each end, to all before them (Llama
3, arXiv 2407.21783, section 3.3.2). Hybrid deals heads out among neighbours and passes keys and values around the rest
(USP, arXiv 2405.07719).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.architecture import Attention
from perfmodel.collectives import all_gather, all_to_all, group, send
from perfmodel.job import Job
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.plan import ALL_GATHER, HYBRID, ULYSSES, Plan
from perfmodel.terms import LINK, Number, Term, hidden_behind

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ContextBytes:
    """What a rank's share of a micro-batch makes in one layer.

    Parameters
    ----------
    queries, keys, outputs : array
        Queries, keys and values together, and results of the attention core [bytes].
    """

    queries: Number
    keys: Number
    outputs: Number


def context_bytes(attention: Attention, tokens: Number, tp: Number) -> ContextBytes:
    """Return what a rank's tokens make, the heads split over tensor-parallel ranks.

    Notes
    -----
    A rank holds at least one head of keys. Those of multi-head latent attention are expanded.
    """
    token = ACTIVATION_BYTES * tokens
    kv_heads = attention.heads if attention.kind == "mla" else attention.kv_heads
    keys = token * np.maximum(kv_heads / tp, 1.0) * (attention.qk_head_dim + attention.v_head_dim)
    return ContextBytes(
        token * attention.heads / tp * attention.qk_head_dim, keys, token * attention.heads / tp * attention.v_head_dim
    )


def exchange_size(job: Job, plan: Plan) -> Integers:
    """Return how many neighbours of a context-parallel group deal heads out among themselves.

    Notes
    -----
    Hybrid: the largest number that divides the group, the heads of keys of a rank, so that no head is copied, and,
    where the group is larger than a unit of the innermost level, the neighbours that such a unit holds.
    """
    common: Integers = np.asarray(plan.cp)
    for layer in job.architecture.layers:
        attention = layer.attention
        heads = attention.heads if attention.kind == "mla" else attention.kv_heads
        common = np.gcd(common, np.where(heads % plan.tp == 0, heads // plan.tp, 1))
    inside = np.maximum(job.levels[0].ranks // plan.cp_stride, 1) if job.levels else np.ones_like(plan.cp)
    inside = np.where(inside < plan.cp, inside, plan.cp)
    return np.select([plan.cp_style == ULYSSES, plan.cp_style == HYBRID], [plan.cp, np.gcd(common, inside)], 1)


def ring_size(job: Job, plan: Plan) -> Integers:
    """Return around how many ranks keys and values are passed."""
    return np.where(plan.cp_style == ALL_GATHER, 1, plan.cp // exchange_size(job, plan))


def core_pieces(job: Job, plan: Plan) -> Integers:
    """Return in how many pieces the attention core of a rank runs: a block of the ring each, or two chunks."""
    return np.where(plan.cp_style == ALL_GATHER, np.minimum(plan.cp, 2), ring_size(job, plan))


def gathered_bytes(attention: Attention, tokens: Number, plan: Plan) -> Number:
    """Return the keys and values of a whole group with their gradients, in one layer at a time [bytes]."""
    gathered = (plan.cp_style == ALL_GATHER) & (plan.cp > 1)
    return np.where(gathered, 2 * plan.cp * context_bytes(attention, tokens, plan.tp).keys, 0.0)


def context_parallel(
    job: Job, attention: Attention, plan: Plan, tokens: Number, core_s: Number, core_backward_s: Number, repeats: Number
) -> tuple[Term, Number]:
    """Return the time of a layer's context-parallel communication, and of its forward pass once [s].

    Parameters
    ----------
    tokens : array
        Tokens of the rank's share of the micro-batch.
    core_s, core_backward_s : array
        Time of the attention core, behind which keys and values are passed [s].
    repeats : array
        How often the forward pass runs.

    Notes
    -----
    With u ranks that exchange heads (`exchange_size`) and r that pass keys and values on (`ring_size`): all-to-alls of
    queries, keys and values, and of outputs, over u neighbours; r - 1 sends over every u-th rank, twice the bytes
    backward, each behind the arithmetic of a block. All-gather: keys and values once forward; backward once more, and a
    reduce-scatter of their gradients; nothing runs behind it.
    """
    made = context_bytes(attention, tokens, plan.tp)
    exchanging, passing = exchange_size(job, plan), ring_size(job, plan)
    neighbours = group(job.levels, exchanging, plan.cp_stride)
    ring = group(job.levels, passing, plan.cp_stride * exchanging)
    exchanged = all_to_all(neighbours, made.queries + made.keys, job.collectives) + all_to_all(
        neighbours, made.outputs, job.collectives
    )
    steps = passing - 1
    # the last block's arithmetic has no transfer left to hide
    forward_exposed, forward_hidden = hidden_behind(
        steps * send(ring, made.keys, job.collectives), core_s * steps / passing, 1.0
    )
    backward_exposed, backward_hidden = hidden_behind(
        steps * send(ring, 2 * made.keys, job.collectives), core_backward_s * steps / passing, 1.0
    )
    whole = group(job.levels, plan.cp, plan.cp_stride)
    gathered = np.where(plan.cp_style == ALL_GATHER, all_gather(whole, plan.cp * made.keys, job.collectives), 0.0)
    term = Term(
        "context-parallel communication",
        exchanged * (1 + repeats) + (forward_exposed * repeats + backward_exposed) + gathered * (repeats + 2),
        LINK,
        hidden_seconds=forward_hidden * repeats + backward_hidden,
    )
    return term, exchanged + forward_exposed + gathered
