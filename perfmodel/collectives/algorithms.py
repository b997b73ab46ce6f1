"""Algorithms of collective operations beside those that a library would take, and the choice among all of them.

Every function takes a group, bytes and the model, and returns the time [s], as in `perfmodel.collectives.times`.
Notation as in `perfmodel.collectives.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.collectives.model import CollectiveModel, Crossing, Group, crossings, joined
from perfmodel.collectives.times import (
    IN_NETWORK_MEMBERS,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    hierarchical_all_reduce,
    ring_all_reduce,
    send,
    slowest_hop,
    tree_all_reduce,
)
from perfmodel.network_bounds import tower_bound
from perfmodel.terms import Array, Number

ENGINE_BYTES = 8 * 2**20
"""Size up to which inference engines reduce with kernels of their own [bytes]; vLLM's limit, of others 1 to 16 MiB."""

Seconds = Callable[[Group, Number, CollectiveModel], Array]
Allowed = Callable[[Group, CollectiveModel], str]


def _degree(crossing: Crossing) -> Array:
    return np.asarray(crossing.members / crossing.below)


def halving_doubling_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce by recursive halving and doubling [s].

    Notes
    -----
    2 log2(n) steps; near neighbours exchange halves first, so that level l carries 2 (1/m_(l-1) - 1/m_l) S a rank.
    Where n is no power of two, two more steps of S fold the others in (Thakur, Rabenseifner, Gropp 2005, 4.5).
    """
    latency: Number = model.launch_s
    transfer: Number = 0.0
    for crossing in crossings(ranks, model):
        latency = latency + 2 * np.ceil(np.log2(_degree(crossing))) * crossing.step_s
        share = 1 / crossing.below - 1 / crossing.members
        transfer = transfer + 2 * share * buffer_bytes / crossing.rate
    step_s, per_byte = slowest_hop(ranks, model)
    folded = 2.0 * (np.log2(np.maximum(ranks.size, 1)) % 1 > 0)
    return joined(ranks, latency + folded * step_s, transfer + folded * buffer_bytes * per_byte, model)


def recursive_doubling_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce in which partners exchange whole buffers: log2(n) steps of S [s].

    Thakur, Rabenseifner, Gropp (2005), 4.5; ranks that exceed a power of two are folded in by two more steps.
    """
    latency: Number = model.launch_s
    transfer: Number = 0.0
    for crossing in crossings(ranks, model):
        rounds = np.ceil(np.log2(_degree(crossing)))
        latency = latency + rounds * crossing.step_s
        transfer = transfer + rounds * buffer_bytes / crossing.rate
    step_s, per_byte = slowest_hop(ranks, model)
    folded = 2.0 * (np.log2(np.maximum(ranks.size, 1)) % 1 > 0)
    return joined(ranks, latency + folded * step_s, transfer + folded * buffer_bytes * per_byte, model)


def single_tree_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce up and down one binary tree, cut into the best number of chunks [s].

    Notes
    -----
    2 (d + c - 1)(a + S/(c B)) with depth d = log2 n; the best c = sqrt((d - 1) S / (a B)), at least 1. An inner node
    sends S to its parent and twice S to its children, so its link carries twice what a chain's does (Sanders, Speck,
    Traeff 2009, section 1): S counts double from three ranks on.
    """
    step_s, per_byte = slowest_hop(ranks, model)
    depth = np.ceil(np.log2(np.maximum(ranks.size, 2)))
    sent = buffer_bytes * np.where(ranks.size > 2, 2.0, 1.0)
    chunks = np.maximum(np.sqrt((depth - 1) * sent * per_byte / np.maximum(step_s, 1e-12)), 1.0)
    seconds = model.launch_s + 2 * (depth + chunks - 1) * (step_s + sent * per_byte / chunks)
    return np.where(ranks.size > 1, seconds, 0.0)


def star_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce at one rank: all send to it, it sends to all: 2 (n-1) S/B + 2 steps [s].

    Li et al., "TPI-LLM" (arXiv 2410.00531), section 3.
    """
    step_s, per_byte = slowest_hop(ranks, model)
    return joined(ranks, model.launch_s + 2 * step_s, 2 * (ranks.size - 1) * buffer_bytes * per_byte, model)


def _direct_transfer(ranks: Group, total_bytes: Number, model: CollectiveModel) -> Number:
    """Time in which every rank exchanges n-1 of n parts with all others at once [s]."""
    slowest: Number = 0.0
    for crossing in crossings(ranks, model):
        leaving = (ranks.size - crossing.below) / ranks.size
        rate = crossing.rate * crossing.link.all_to_all
        slowest = np.maximum(slowest, crossing.crossed * leaving * total_bytes / rate)
    return slowest


def direct_all_gather(ranks: Group, total_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-gather, or reduce-scatter, in which all exchange with all at once: a step, (n-1)/n S [s]."""
    step_s, _ = slowest_hop(ranks, model)
    return np.where(ranks.size > 1, model.launch_s + step_s + _direct_transfer(ranks, total_bytes, model), 0.0)


def one_shot_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce in which every rank reads all others' buffers: a step, (n-1) S [s]."""
    return direct_all_gather(ranks, ranks.size * buffer_bytes, model)


def two_shot_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce in which every rank reduces its part and reads the others': 2 (n-1)/n S [s].

    Before each shot all ranks wait for each other: a barrier of log2(n) steps.
    """
    step_s, _ = slowest_hop(ranks, model)
    latency = (1 + 2 * np.log2(np.maximum(ranks.size, 1))) * step_s
    seconds = model.launch_s + latency + 2 * _direct_transfer(ranks, buffer_bytes, model)
    return np.where(ranks.size > 1, seconds, 0.0)


def engine_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an inference engine's all-reduce: its own kernels up to `ENGINE_BYTES`, the library's above [s]."""
    own = replace(model, launch_s=model.launch_s * model.engine_launch)
    direct = np.minimum(one_shot_all_reduce(ranks, buffer_bytes, own), two_shot_all_reduce(ranks, buffer_bytes, own))
    return np.where(np.asarray(buffer_bytes) <= ENGINE_BYTES, direct, all_reduce(ranks, buffer_bytes, model))


def sharp_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce in which the switches of the network add: a step and S over all adapters of a node [s].

    Notes
    -----
    Inside a node a reduce-scatter before and an all-gather after; every level outside carries S/m_0 a rank, in and out
    at once: 2 (k-1)/k times less than a ring (Graham et al., "Scalable Hierarchical Aggregation Protocol", 2016).
    """
    latency: Number = model.launch_s
    slowest: Number = 0.0
    for depth, crossing in enumerate(crossings(ranks, model)):
        inside = depth == 0
        degree = _degree(crossing)
        latency = latency + crossing.crossed * (2 * (degree - 1) if inside else 1.0) * crossing.step_s
        share = 2 * (degree - 1) / degree if inside else 1.0
        first = 1.0 if inside else ranks.members[0]
        slowest = np.maximum(slowest, crossing.crossed * share / (first * crossing.rate))
    return joined(ranks, latency, slowest * buffer_bytes, model)


def hierarchical_all_gather(ranks: Group, total_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-gather level by level, outermost first, or of a reduce-scatter inside out [s].

    Level l takes (k_l - 1) steps and (k_l - 1)/k_l S/m_(l-1) bytes over a rank's own link; the levels add up.
    """
    latency: Number = model.launch_s
    transfer: Number = 0.0
    for crossing in crossings(ranks, model):
        degree = _degree(crossing)
        latency = latency + (degree - 1) * crossing.step_s
        transfer = transfer + (degree - 1) / degree * total_bytes / (crossing.lanes * crossing.rate)
    return joined(ranks, latency, transfer, model)


def ring_all_to_all(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-to-all passed one way around a ring, level by level [s].

    A part goes 1 to k-1 places far: k (k-1)/2 messages of S/k, one after the other, at every level of k units.
    """
    latency: Number = model.launch_s
    transfer: Number = 0.0
    for crossing in crossings(ranks, model):
        degree = _degree(crossing)
        latency = latency + degree * (degree - 1) / 2 * crossing.step_s
        transfer = transfer + (degree - 1) / 2 * buffer_bytes / crossing.rate
    return joined(ranks, latency, transfer, model)


def hierarchical_all_to_all(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-to-all level by level: first to the rank of the same place, then across [s].

    Notes
    -----
    Level l takes (k_l - 1)/k_l S over a rank's own link in k_l - 1 messages of S/k_l, where a flat all-to-all sends
    n - 1 of S/n: fewer messages, but everything passes every level.
    """
    seconds: Number = model.launch_s
    for crossing in crossings(ranks, model):
        degree = _degree(crossing)
        rate = crossing.rate * crossing.link.all_to_all
        seconds = seconds + crossing.crossed * crossing.link.exchange_steps * crossing.step_s
        seconds = seconds + (degree - 1) / degree * buffer_bytes / rate
    return np.where(ranks.size > 1, seconds, 0.0)


def tree_broadcast(ranks: Group, message_bytes: Number, model: CollectiveModel) -> Array:
    """Time of a broadcast, or reduce, down a binomial tree: log2(n) steps of S [s]. Thakur et al. 2005, 4.3."""
    latency: Number = model.launch_s
    transfer: Number = 0.0
    for crossing in crossings(ranks, model):
        rounds = np.ceil(np.log2(_degree(crossing)))
        latency = latency + rounds * crossing.step_s
        transfer = transfer + rounds * message_bytes / crossing.rate
    return np.where(ranks.size > 1, latency + transfer, 0.0)


NOT_OFFERED = "not offered by NCCL"


@dataclass(frozen=True)
class Algorithm:
    """One way to run an operation.

    Parameters
    ----------
    name : str
        What it is called.
    seconds : callable
        (group, bytes, model) -> time [s].
    only : str
        Why a prediction does not choose it, or "" where NCCL runs it.
    refused : callable
        (group, model) -> why it cannot run there, or "".
    """

    name: str
    seconds: Seconds
    only: str = ""
    refused: Allowed = lambda ranks, model: ""


def _one_level(ranks: Group, model: CollectiveModel) -> str:
    crossed = sum(bool(np.any(crossing.crossed)) for crossing in crossings(ranks, model))
    return "" if crossed > 1 else "the group lies inside one unit"


def _in_network(ranks: Group, model: CollectiveModel) -> bool:
    return any(
        crossing.link.in_network_all_reduce > 1 and np.all(crossing.members >= IN_NETWORK_MEMBERS)
        for crossing in crossings(ranks, model)
    )


def _without_switch(ranks: Group, model: CollectiveModel) -> str:
    return "the node's switch adds" if _in_network(ranks, model) else ""


def _with_switch(ranks: Group, model: CollectiveModel) -> str:
    return "" if _in_network(ranks, model) else f"no switch adds for {IN_NETWORK_MEMBERS} ranks or more"


ALGORITHMS: dict[str, tuple[Algorithm, ...]] = {
    "all_reduce": (
        Algorithm("ring", ring_all_reduce),
        Algorithm("double tree", tree_all_reduce, refused=_without_switch),
        Algorithm("NVLS, trees outside", tree_all_reduce, refused=_with_switch),
        Algorithm("hierarchical", hierarchical_all_reduce, NOT_OFFERED, _one_level),
        Algorithm("halving and doubling", halving_doubling_all_reduce, NOT_OFFERED),
        Algorithm("recursive doubling", recursive_doubling_all_reduce, NOT_OFFERED),
        Algorithm("single tree", single_tree_all_reduce, NOT_OFFERED),
        Algorithm("star", star_all_reduce, NOT_OFFERED),
        Algorithm("one-shot", one_shot_all_reduce, NOT_OFFERED),
        Algorithm("two-shot", two_shot_all_reduce, NOT_OFFERED),
        Algorithm("SHARP", sharp_all_reduce, "needs switches that add", _one_level),
    ),
    "all_gather": (
        Algorithm("ring", all_gather),
        Algorithm("hierarchical", hierarchical_all_gather, NOT_OFFERED, _one_level),
        Algorithm("direct", direct_all_gather, NOT_OFFERED),
    ),
    "all_to_all": (
        Algorithm("flat", all_to_all),
        Algorithm("two levels", hierarchical_all_to_all, NOT_OFFERED, _one_level),
        Algorithm("ring", ring_all_to_all, NOT_OFFERED),
    ),
    "broadcast": (Algorithm("ring", broadcast), Algorithm("binomial tree", tree_broadcast)),
    "send_recv": (Algorithm("message", send),),
}
ALGORITHMS["reduce_scatter"] = ALGORITHMS["all_gather"]
ALGORITHMS["reduce"] = ALGORITHMS["broadcast"]


def chosen(operation: str, ranks: Group, total_bytes: Number, model: CollectiveModel) -> NDArray[np.str_]:
    """Return the name of the algorithm that a library takes for each size.

    Parameters
    ----------
    operation : str
        A key of ``ALGORITHMS``.
    ranks : Group
        One group.
    total_bytes : array
        Sizes as nccl-tests count them [bytes].
    model : CollectiveModel
        Constants.
    """
    offered = [one for one in ALGORITHMS[operation] if not one.only and not one.refused(ranks, model)]
    shape = np.shape(total_bytes)
    times = np.stack([np.broadcast_to(one.seconds(ranks, total_bytes, model), shape) for one in offered])
    names = np.array([one.name for one in offered], dtype=np.str_)
    return np.asarray(names[np.argmin(times, axis=0)], dtype=np.str_)


@dataclass(frozen=True)
class Candidate:
    """An algorithm that was considered.

    Parameters
    ----------
    name : str
        The algorithm.
    seconds : float or None
        Its time [s]; None where it cannot run.
    reason : str
        Why it was not taken, or "" for the one that was.
    """

    name: str
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """How an operation is run, and what else there is.

    Parameters
    ----------
    operation : str
        The operation.
    seconds, bound_s : float
        Time of the algorithm that is taken, and the least that any could take on these links at their nominal rates and
        without latency (`perfmodel.network_bounds.tower_bound`) [s].
    candidates : tuple of Candidate
        The one that is taken, the others by time, those that cannot run last.
    """

    operation: str
    seconds: float
    bound_s: float
    candidates: tuple[Candidate, ...]


def choose(operation: str, ranks: Group, total_bytes: float, model: CollectiveModel) -> Choice:
    """Return how a library runs an operation on one group, with the time of every algorithm and the bound.

    Parameters
    ----------
    operation : str
        A key of ``ALGORITHMS``.
    ranks : Group
        One group.
    total_bytes : float
        Size as nccl-tests count it [bytes].
    model : CollectiveModel
        Constants.

    Raises
    ------
    KeyError
        An operation that is not known.
    """
    if operation not in ALGORITHMS:
        raise KeyError(f"unknown operation {operation!r}; known: {', '.join(ALGORITHMS)}")
    ran: list[tuple[Algorithm, float]] = []
    refused: list[Candidate] = []
    for algorithm in ALGORITHMS[operation]:
        if reason := algorithm.refused(ranks, model):
            refused.append(Candidate(algorithm.name, None, reason))
        else:
            ran.append((algorithm, float(algorithm.seconds(ranks, total_bytes, model))))
    taken, best = min((entry for entry in ran if not entry[0].only), key=lambda entry: entry[1])
    listed = [Candidate(taken.name, best, "")]
    for algorithm, seconds in sorted(ran, key=lambda entry: entry[1]):
        if algorithm is not taken:
            slower = f"{seconds / best:.3g} times as long" if seconds > best else "as long"
            listed.append(Candidate(algorithm.name, seconds, algorithm.only or slower))
    bound_s = float(tower_bound(operation, ranks, total_bytes))
    return Choice(operation, best, bound_s, (*listed, *refused))
