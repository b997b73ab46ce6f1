"""Time of collective operations on a hierarchy of links.

A group of ranks is described by how many of its members one unit of each level of the machine holds (node, leaf,
spine, ...). All sizes are bytes, all times seconds, all arguments broadcast.

Notation: n ranks, S bytes (nccl-tests convention: all-reduce buffer, all-gather and reduce-scatter total, all-to-all
per-rank buffer), m_l members of the group inside one unit of level l (m_0 = 1), B_l bandwidth per rank at level l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hardware.topology import Level
from perfmodel.terms import Array, Number

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LinkEfficiency:
    """How one type of link serves collectives.

    Parameters
    ----------
    step : float
        Latency of one step of an algorithm across this link [s].
    bandwidth : float
        Share of the nominal rate reached by large messages in large groups.
    small_group_loss : float
        Share lost at few ranks: efficiency = bandwidth (1 - small_group_loss / n).
    all_to_all : float
        Further factor on the bandwidth of an all-to-all.
    in_network_all_reduce : float
        Factor on the all-reduce bandwidth where the switch adds (NVLS), 1 where it does not.
    """

    step: float
    bandwidth: float
    small_group_loss: float = 0.0
    all_to_all: float = 1.0
    in_network_all_reduce: float = 1.0


@dataclass(frozen=True)
class CollectiveModel:
    """Constants of the collective model, read from ``calibrated/collectives.yaml``."""

    launch_s: float
    softness: float
    links: dict[str, LinkEfficiency]
    in_network_families: tuple[str, ...]

    def link(self, kind: str) -> LinkEfficiency:
        """Return the constants of a link type; a type without any is an error, never a guess."""
        if kind not in self.links:
            raise KeyError(f"no collective constants for link type {kind!r}; known: {', '.join(sorted(self.links))}")
        return self.links[kind]


@dataclass(frozen=True)
class Group:
    """A communicator on the levels of a machine.

    Parameters
    ----------
    size : array of int
        Ranks in the group, n.
    members : tuple of array of int
        Members inside one unit of each level, innermost first; the last is n.
    levels : tuple of Level
        The levels, innermost first; none where the job is a single rank.
    """

    size: Integers
    members: tuple[Integers, ...]
    levels: tuple[Level, ...]


@lru_cache(maxsize=1)
def collective_model() -> CollectiveModel:
    """Return the shipped constants of the collective model."""
    import yaml

    text = files("perfmodel").joinpath("calibrated/collectives.yaml").read_text(encoding="utf-8")
    data = yaml.load(text, Loader=yaml.CSafeLoader)
    links = {name: LinkEfficiency(**values["constants"]) for name, values in data["links"].items()}
    return CollectiveModel(
        launch_s=data["launch_s"],
        softness=data["softness"],
        links=links,
        in_network_families=tuple(data["in_network_families"]),
    )


def group(
    levels: Sequence[Level],
    size: Integers | int,
    stride: Integers | int,
    outer_size: Integers | int = 1,
    outer_stride: Integers | int = 1,
) -> Group:
    """Return the group of `size` ranks that are `stride` apart, and of `outer_size` such rows.

    Parameters
    ----------
    levels : sequence of Level
        Levels of the machine, innermost first; ``Level.ranks`` consecutive ranks make one unit.
    size, stride : array of int
        Ranks of a row and the distance between neighbours, in ranks.
    outer_size, outer_stride : array of int
        Rows and the distance between them, in ranks.
    """
    row, distance = np.asarray(size, dtype=np.int64), np.asarray(stride, dtype=np.int64)
    rows, apart = np.asarray(outer_size, dtype=np.int64), np.asarray(outer_stride, dtype=np.int64)
    n = row * rows
    members = []
    for level in levels[:-1]:
        # a unit of U ranks holds U / stride neighbours of a group, at least the rank itself
        in_row = np.minimum(np.maximum(level.ranks // distance, 1), row)
        members.append(in_row * np.minimum(np.maximum(level.ranks // apart, 1), rows))
    if levels:
        members.append(np.broadcast_to(n, np.broadcast_shapes(n.shape, distance.shape)))
    return Group(n, tuple(members), tuple(levels))


def _step(level: Level, model: CollectiveModel) -> float:
    """Latency of one step across a level [s]: the calibrated one, or the path's own where that is longer."""
    return max(model.link(level.type).step, level.latency)


def _crossings(ranks: Group) -> list[Array]:
    """Return, for each level, how many of the hops of a ring over the group cross a link of that level."""
    units = [ranks.size.astype(float), *(ranks.size / members for members in ranks.members)]
    return [np.maximum(below - np.maximum(above, 1.0), 0.0) for below, above in pairwise(units)]


def _ring_latency(ranks: Group, model: CollectiveModel) -> Number:
    """Latency of n - 1 steps around a ring, each at the latency of the link it crosses [s]."""
    latency: Number = 0.0
    for level, hops in zip(ranks.levels, _crossings(ranks), strict=True):
        latency = latency + hops * _step(level, model)
    return latency


def _tree_latency(ranks: Group, model: CollectiveModel) -> Number:
    """Latency of one way through a tree: a chain inside a node, log2 of the units outside it [s]."""
    latency: Number = 0.0
    below: Number = 1.0
    for depth, (level, members) in enumerate(zip(ranks.levels, ranks.members, strict=True)):
        degree = members / below
        steps = degree - 1 if depth == 0 else np.ceil(np.log2(np.maximum(degree, 1)))
        latency = latency + steps * _step(level, model)
        below = members
    return latency


def _seconds_per_byte(ranks: Group, model: CollectiveModel, *, reduces_in_network: bool = False) -> Array:
    """Inverse bus bandwidth of rings that use every link of the group [s/byte].

    A ring enters a unit of level l through the links of all m_(l-1) members inside the unit below, so the bus
    bandwidth is the least over the levels of m_(l-1) B_l.
    """
    slowest: Array = np.zeros(ranks.size.shape)
    below: Number = 1.0
    for depth, (level, members) in enumerate(zip(ranks.levels, ranks.members, strict=True)):
        link = model.link(level.type)
        efficiency = link.bandwidth * (1 - link.small_group_loss / np.maximum(members, 2))
        if reduces_in_network and depth == 0:
            efficiency = efficiency * np.where(members >= 8, link.in_network_all_reduce, 1.0)
        crossed = members > below
        slowest = np.maximum(slowest, np.where(crossed, 1 / (below * level.bandwidth * efficiency), 0.0))
        below = members
    return slowest


def _soft_sum(latency_s: Number, transfer_s: Number, softness: float) -> Array:
    """Return (latency^p + transfer^p)^(1/p); p = 1/2 is a perfectly pipelined chain, p = 1 a plain alpha-beta sum."""
    return np.asarray((latency_s**softness + transfer_s**softness) ** (1 / softness))


def _where_alone(ranks: Group, seconds: Array) -> Array:
    return np.where(ranks.size > 1, seconds, 0.0)


def all_gather(ranks: Group, total_bytes: Number, model: CollectiveModel) -> Array:
    """Time of a ring all-gather, or reduce-scatter, of `total_bytes` in all [s].

    Notes
    -----
    latency = launch + sum over hops of the link's step; transfer = (n-1)/n S / busbw; joined softly.
    Ring: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH" (2005), 4.1.
    """
    n = ranks.size
    latency = model.launch_s + _ring_latency(ranks, model)
    transfer = (n - 1) / n * total_bytes * _seconds_per_byte(ranks, model)
    return _where_alone(ranks, _soft_sum(latency, transfer, model.softness))


def ring_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce around a ring: reduce-scatter and all-gather, 2 (n-1) steps, 2 (n-1)/n S / busbw [s].

    Where the node's switch adds on the way (NVLS), the innermost level is faster.
    """
    n = ranks.size
    transfer = 2 * (n - 1) / n * buffer_bytes * _seconds_per_byte(ranks, model, reduces_in_network=True)
    latency = model.launch_s + 2 * _ring_latency(ranks, model)
    return _where_alone(ranks, _soft_sum(latency, transfer, model.softness))


def tree_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce over two complementary trees: up and down again, 2 S / busbw [s].

    Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009), section 4.
    """
    transfer = 2 * buffer_bytes * _seconds_per_byte(ranks, model, reduces_in_network=True)
    latency = model.launch_s + 2 * _tree_latency(ranks, model)
    return _where_alone(ranks, _soft_sum(latency, transfer, model.softness))


def hierarchical_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce level by level: reduce-scatter inwards to outwards, all-gather back [s].

    Notes
    -----
    Level l joins k_l = m_l/m_(l-1) units; each rank has 1/m_(l-1) of the buffer left: 2 (k_l - 1) steps and
    2 (k_l - 1)/k_l S/m_(l-1) bytes over its own link. The levels follow one another, so their times add up.
    """
    latency: Number = model.launch_s
    transfer: Number = 0.0
    below: Number = 1.0
    for level, members in zip(ranks.levels, ranks.members, strict=True):
        link = model.link(level.type)
        degree = members / below
        efficiency = link.bandwidth * (1 - link.small_group_loss / np.maximum(members, 2))
        latency = latency + 2 * (degree - 1) * _step(level, model)
        transfer = transfer + 2 * (degree - 1) / degree * buffer_bytes / below / (level.bandwidth * efficiency)
        below = members
    return _where_alone(ranks, _soft_sum(latency, transfer, model.softness))


def all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce of `buffer_bytes` by the fastest of ring, double tree and hierarchy [s]."""
    return np.minimum(
        np.minimum(ring_all_reduce(ranks, buffer_bytes, model), tree_all_reduce(ranks, buffer_bytes, model)),
        hierarchical_all_reduce(ranks, buffer_bytes, model),
    )


def all_to_all(ranks: Group, buffer_bytes: Number, model: CollectiveModel, outer_share: Number = 1.0) -> Array:
    """Time of an all-to-all in which every rank holds `buffer_bytes` for the others together [s].

    `outer_share` is the part of what leaves the innermost unit that has to cross the levels outside it.

    Notes
    -----
    Every level carries, per rank, the part of the buffer that leaves the unit below, (n - m_(l-1))/n S / B_l: what goes
    further out passes through it. The levels work at the same time, so the slowest counts.
    """
    n = ranks.size
    slowest: Number = 0.0
    below: Number = 1.0
    latency: Number = 0.0
    for depth, (level, members) in enumerate(zip(ranks.levels, ranks.members, strict=True)):
        link = model.link(level.type)
        efficiency = link.bandwidth * link.all_to_all * (1 - link.small_group_loss / np.maximum(members, 2))
        leaving = (n - below) / n * buffer_bytes * (outer_share if depth else 1.0)
        slowest = np.maximum(slowest, leaving / (level.bandwidth * efficiency) * (members > below))
        latency = np.maximum(latency, _step(level, model) * (members > below))
        below = members
    return _where_alone(ranks, _soft_sum(model.launch_s + latency, slowest, model.softness))


def dispatch(ranks: Group, token_bytes: Number, copies: int, model: CollectiveModel, *, once_per_node: bool) -> Array:
    """Time to send every token of a rank to `copies` experts spread evenly over the group, or to bring it back [s].

    Parameters
    ----------
    ranks : Group
        The expert-parallel group.
    token_bytes : array
        All tokens of a rank, one copy each [bytes].
    copies : int
        Experts a token visits.
    once_per_node : bool
        A token crosses the network once for every node it visits and is copied there, as DeepEP does; otherwise once
        for every expert.

    Notes
    -----
    A token visits U (1 - (1 - 1/U)^k) of U nodes on average (k draws with equal chances).
    """
    full = token_bytes * copies
    if not once_per_node or len(ranks.levels) < 2:
        return all_to_all(ranks, full, model)
    units = ranks.size / np.maximum(ranks.members[0], 1)
    visited = units * (1 - (1 - 1 / units) ** copies)
    return all_to_all(ranks, full, model, outer_share=visited / copies)


def send(ranks: Group, message_bytes: Number, model: CollectiveModel) -> Array:
    """Time to send `message_bytes` to the neighbour in the group, over the outermost level crossed [s]."""
    seconds: Number = 0.0
    below: Number = 1.0
    for level, members in zip(ranks.levels, ranks.members, strict=True):
        link = model.link(level.type)
        time = _soft_sum(
            model.launch_s + _step(level, model), message_bytes / (level.bandwidth * link.bandwidth), model.softness
        )
        seconds = np.where(members > below, np.maximum(seconds, time), seconds)
        below = members
    return _where_alone(ranks, np.asarray(seconds))
