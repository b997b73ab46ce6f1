"""Moving tokens between the layout of attention and that of the linear layers, layer by layer.

Groups hold unequal numbers of tokens while they compute attention. Before the linear layers tokens move so that all
accelerators hold as many, and back before the next attention (Zeppelin). Who sends how much to whom is a transport
problem: minimise sum c_ij T_ij with sum_j T_ij = surplus_i, sum_i T_ij = deficit_j, T >= 0, c_ij the time of a byte
over the level that joins i and j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.collectives import group
from perfmodel.collectives.model import crossings
from perfmodel.job import Job
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.terms import Array


@dataclass(frozen=True)
class Remap:
    """What moving tokens costs on a machine.

    Parameters
    ----------
    units : tuple of int
        Accelerators of a unit of each level, innermost first; the last holds all.
    node : int
        Which of the levels is the node.
    seconds_per_byte : array, shape (levels,)
        Time of a byte that an accelerator sends, or receives, across each level [s/byte].
    latency_s : array, shape (levels,)
        Time of an empty exchange that reaches so far [s].
    token_bytes : float
        Bytes of a token in all exchanges of a micro-batch together [bytes].
    exchanges : float
        Exchanges of a micro-batch.
    """

    units: tuple[int, ...]
    node: int
    seconds_per_byte: Array
    latency_s: Array
    token_bytes: float
    exchanges: float


@dataclass(frozen=True)
class Moves:
    """What is moved in each micro-batch, all arrays of shape (M,).

    Parameters
    ----------
    seconds : array
        Time of all exchanges [s].
    largest_row_s : array
        Of it the largest that an accelerator sends, or receives, by itself: the transport problem's largest row or
        column [s].
    link_s : array
        Least value of the transport problem, sum c_ij T_ij: time on all links together [s].
    within_bytes, across_bytes : array
        Moved within nodes, and between them [bytes].
    routed : array of bool
        Whether what leaves a node is dealt out over all its accelerators first.
    """

    seconds: Array
    largest_row_s: Array
    link_s: Array
    within_bytes: Array
    across_bytes: Array
    routed: Array


def remap_costs(job: Job, recompute: str) -> Remap:
    """Return what moving tokens between the two layouts costs on a job's machine.

    Parameters
    ----------
    job : Job
        Model and machine.
    recompute : str
        Recomputation: ``full`` repeats the exchanges of the forward pass.

    Notes
    -----
    In each layer and direction the results of attention (heads x value width) go to the layout of the linear layers,
    and queries, keys and values come back from it; the residual stays there. Gradients go the same ways. A level
    carries what it carries in an all-to-all, and no more than those inside it.
    """
    passes = 3.0 if recompute == "full" else 2.0
    token_bytes = exchanges = 0.0
    for layer in job.architecture.layers:
        attention = layer.attention
        pairs = attention.heads if attention.kind == "mla" else attention.kv_heads
        width = attention.heads * (attention.v_head_dim + attention.qk_head_dim)
        width += pairs * (attention.qk_head_dim + attention.v_head_dim)
        token_bytes += passes * layer.count * ACTIVATION_BYTES * width
        exchanges += passes * layer.count * 2
    units, rates, latency = [], [], []
    for one in crossings(group(job.levels, job.ranks, 1), job.collectives):
        sharing = float(one.below) if one.link.one_path else 1.0
        units.append(one.level.ranks)
        rates.append(sharing / (float(one.rate) * one.link.all_to_all))
        latency.append(job.collectives.launch_s + one.link.exchange_steps * one.step_s)
    count = job.machine.node.accelerators.count
    node = max((level for level, unit in enumerate(units) if unit <= count), default=-1)
    slowest = np.maximum.accumulate(np.array(rates)) if rates else np.zeros(0)
    return Remap(tuple(units), node, slowest, np.array(latency), token_bytes, exchanges)


def exchanged(tokens: Array, units: tuple[int, ...]) -> tuple[Array, Array]:
    """Return what each accelerator sends and receives across each level so that all hold as many tokens.

    Parameters
    ----------
    tokens : array, shape (M, N)
        Tokens that each accelerator holds in each micro-batch.
    units : tuple of int
        Accelerators of a unit of each level, innermost first; each divides the next, the last holds all N.

    Returns
    -------
    sent, received : array, shape (levels, M, N)
        Tokens.

    Notes
    -----
    Surplus fills deficits within a unit before any leaves it, from the innermost level out, each accelerator in
    proportion to what it has. Costs do not fall with the level, so this is an optimum: whatever the plan, a unit passes
    at least its net surplus to the outside, and here it passes no more.
    """
    mean = tokens.mean(axis=-1, keepdims=True)
    surplus, deficit = np.maximum(tokens - mean, 0.0), np.maximum(mean - tokens, 0.0)
    sent: list[Array] = []
    received: list[Array] = []
    for unit in units:
        shape = (*tokens.shape[:-1], -1, unit)
        has, lacks = (side.reshape(shape).sum(axis=-1, keepdims=True) for side in (surplus, deficit))
        met = np.minimum(has, lacks)
        for side, amount, out in ((surplus, has, sent), (deficit, lacks, received)):
            share = np.divide(met, amount, out=np.zeros_like(met), where=amount > 0)
            out.append((side.reshape(shape) * share).reshape(tokens.shape))
        surplus, deficit = surplus - sent[-1], deficit - received[-1]
    return np.array(sent), np.array(received)


def routed_s(leaving_bytes: Array, proxies: int, intra: float, inter: float) -> Array:
    """Return the time in which a unit's accelerators together send so many bytes to another's, as proxies [s].

    Notes
    -----
    (n/x)(b_intra + b_inter + b_intra): n bytes dealt out over x accelerators, sent by each over its own adapter, and
    gathered at the other side, instead of n b_inter (Zeppelin).
    """
    return np.asarray(leaving_bytes / proxies * (intra + inter + intra))


def moves(tokens: Array, remap: Remap) -> Moves:
    """Return what moving tokens costs in each micro-batch.

    Parameters
    ----------
    tokens : array, shape (M, N)
        Tokens that each accelerator holds in each micro-batch, 0 where it is idle.
    remap : Remap
        Costs.

    Notes
    -----
    An exchange takes as long as the accelerator that sends, or receives, longest. Where few accelerators of a node hold
    all that leaves it, dealing it out over the node first (`routed_s`) may be faster; the faster way counts.
    """
    number, gpus = tokens.shape
    if not remap.units:
        nothing = np.zeros(number)
        return Moves(nothing, nothing, nothing, nothing, nothing, nothing > 0)
    sides = exchanged(tokens, remap.units)
    cost = remap.seconds_per_byte[:, None, None] * remap.token_bytes
    far = remap.node + 1
    unit = remap.units[remap.node] if remap.node >= 0 else 1
    intra = float(remap.seconds_per_byte[remap.node]) if remap.node >= 0 else 0.0
    direct, routed = np.zeros(number), np.zeros(number)
    for side in sides:
        direct = np.maximum(direct, (side * cost).sum(axis=0).max(axis=-1))
        near = (side * cost)[:far].sum(axis=0).reshape(number, gpus // unit, unit).max(axis=-1)
        leaving = side[far:].reshape(-1, number, gpus // unit, unit).sum(axis=-1) * remap.token_bytes
        for level, amount in enumerate(leaving, start=far):
            near = near + routed_s(amount, unit, intra, float(remap.seconds_per_byte[level]))
        routed = np.maximum(routed, near.max(axis=-1))
    amounts = sides[0].sum(axis=-1) * remap.token_bytes  # levels, micro-batches
    reached = np.where(amounts > 1e-9 * tokens.sum(axis=-1) * remap.token_bytes, remap.latency_s[:, None], 0.0)
    return Moves(
        remap.exchanges * reached.max(axis=0) + np.minimum(direct, routed),
        direct,
        (amounts * remap.seconds_per_byte[:, None]).sum(axis=0),
        amounts[:far].sum(axis=0),
        amounts[far:].sum(axis=0),
        routed < direct * (1 - 1e-9),
    )
