"""Constants of the collective model, and the groups of ranks that it is asked about.

Notation of this package: n ranks, S bytes (nccl-tests convention: all-reduce buffer, all-gather and reduce-scatter
total, all-to-all buffer of one rank), m_l members of the group inside one unit of level l (m_(-1) = 1, the last is n),
k_l = m_l / m_(l-1) units that level l joins, B_l bandwidth per rank at level l. Sizes are bytes, times seconds;
everything broadcasts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.topology import MESHES, Level
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
        Share of the nominal rate reached by large messages.
    path : float
        Latency of the hardware path that `step` contains [s]; a longer path adds what it has more.
    pipelining : float
        c of latency + transfer + c sqrt(latency x transfer): 0 is a plain sum, 2 a chain that cuts the message into the
        best number of pieces.
    own_copy : float
        Time in which a rank copies a byte of its own part, over the time a byte takes on the link.
    all_to_all : float
        Further factor on the bandwidth of an all-to-all.
    exchange_steps : float
        Latency of an all-to-all at full rate, in steps.
    peer_bandwidth : float
        Share of a rank's rate that a small message to one peer gets; 0 where there is no protocol for small messages.
    in_network_all_reduce : float
        Factor on the all-reduce bandwidth where the switch adds (NVLS), 1 where it does not.
    one_path : bool
        Whether the ranks of a unit below leave it over one path, such as the host's bridge, so that the rates of their
        links do not add up.
    """

    step: float
    bandwidth: float
    path: float = 0.0
    pipelining: float = 0.0
    own_copy: float = 0.0
    all_to_all: float = 1.0
    exchange_steps: float = 1.0
    peer_bandwidth: float = 0.0
    in_network_all_reduce: float = 1.0
    one_path: bool = False


@dataclass(frozen=True)
class CollectiveModel:
    """Constants of the collective model, read from ``calibrated/collectives.yaml``.

    Parameters
    ----------
    launch_s : float
        Time before the first step of a collective [s]; it belongs to the host and the software.
    links : dict
        Constants by type of link.
    in_network_families : tuple of str
        Accelerator families whose node switch adds on the way.
    spreads : dict
        Standard deviation of ln(measured / predicted) by type of link [1].
    engine_launch : float
        Launch of an inference engine's own kernel inside a CUDA graph, over `launch_s` [1].
    """

    launch_s: float
    links: dict[str, LinkEfficiency]
    in_network_families: tuple[str, ...] = ()
    spreads: dict[str, float] | None = None
    engine_launch: float = 1.0

    def link(self, kind: str) -> LinkEfficiency:
        """Return the constants of a link type; a type without any is an error, never a guess."""
        if kind not in self.links:
            raise KeyError(f"no collective constants for link type {kind!r}; known: {', '.join(sorted(self.links))}")
        return self.links[kind]

    def slower(self, factor: float) -> CollectiveModel:
        """Return the model of a host on which every launch and every step takes `factor` times as long."""
        links = {name: replace(link, step=link.step * factor) for name, link in self.links.items()}
        return replace(self, launch_s=self.launch_s * factor, links=links)


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
    fewest : tuple of array of int or None
        Members inside the unit of each level that holds fewest of them; None where all hold as many.
    """

    size: Integers
    members: tuple[Integers, ...]
    levels: tuple[Level, ...]
    fewest: tuple[Integers, ...] | None = None


@lru_cache(maxsize=1)
def collective_model() -> CollectiveModel:
    """Return the shipped constants of the collective model."""
    import yaml

    text = files("perfmodel").joinpath("calibrated/collectives.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return CollectiveModel(
        launch_s=data["launch_s"],
        links={name: LinkEfficiency(**values["constants"]) for name, values in data["links"].items()},
        in_network_families=tuple(data["in_network_families"]),
        spreads={name: values["spread"] for name, values in data["links"].items()},
        engine_launch=data["engine_launch"],
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

    Notes
    -----
    A single row begins where a unit does, and its last unit may hold fewer of it than the others.
    """
    row, distance = np.asarray(size, dtype=np.int64), np.asarray(stride, dtype=np.int64)
    rows, apart = np.asarray(outer_size, dtype=np.int64), np.asarray(outer_stride, dtype=np.int64)
    n = row * rows
    members, fewest = [], []
    for level in levels[:-1]:
        # a unit of U ranks holds U / stride neighbours of a group, at least the rank itself
        in_row = np.minimum(np.maximum(level.ranks // distance, 1), row)
        members.append(in_row * np.minimum(np.maximum(level.ranks // apart, 1), rows))
        rest = row % in_row
        fewest.append(np.where((rows == 1) & (rest > 0), rest, members[-1]))
    if levels:
        members.append(np.broadcast_to(n, np.broadcast_shapes(n.shape, distance.shape)))
        fewest.append(members[-1])
    return Group(n, tuple(members), tuple(levels), tuple(fewest))


def group_of(levels: Sequence[Level], ranks: Sequence[int]) -> Group:
    """Return the group of the ranks that are named, wherever they are.

    Parameters
    ----------
    levels : sequence of Level
        Levels of the machine, innermost first.
    ranks : sequence of int
        Its members [1].

    Notes
    -----
    The members inside a unit are the most that one holds. Where units hold different numbers, those with fewer have
    fewer links to the outside, which is not seen.
    """
    places = np.unique(np.asarray(ranks, dtype=np.int64))
    members = tuple(np.asarray(np.bincount(places // level.ranks).max()) for level in levels)
    return Group(np.asarray(len(places)), members, tuple(levels))


@dataclass(frozen=True)
class Crossing:
    """One level as a group uses it.

    Parameters
    ----------
    level : Level
        The level.
    link : LinkEfficiency
        Constants of its type of link.
    below, members : array
        Members inside a unit of the level below, and of this level.
    fewest : array
        Members inside that unit of the level below which holds fewest.
    crossed : array of bool
        Whether the group has members in more than one unit of the level below.
    step_s : float
        Latency of one step across the level [s].
    rate : array
        What one rank's links to the group carry of large messages [bytes/s].
    lanes : array
        Links that the members inside that unit leave it over, at that rate each.
    """

    level: Level
    link: LinkEfficiency
    below: Number
    fewest: Number
    members: Number
    crossed: Any
    step_s: float
    rate: Number
    lanes: Number


def crossings(ranks: Group, model: CollectiveModel) -> Iterator[Crossing]:
    """Walk up the levels of a group.

    Notes
    -----
    A step takes what the calibration says and, where the path is longer than the one it was measured on, the rest. Of
    direct links to every other unit (`MESHES`) a group of k of M units uses k - 1 of M - 1.
    """
    below: Number = 1.0
    least: Number = 1.0
    inside = 1
    for level, members, fewest in zip(ranks.levels, ranks.members, ranks.fewest or ranks.members, strict=True):
        link = model.link(level.type)
        step_s = link.step + max(level.latency - link.path, 0.0)
        lanes = 1.0 if link.one_path else least
        rate: Number = level.bandwidth * link.bandwidth
        units = level.ranks // inside
        if level.type in MESHES and units > 1:
            rate = rate * np.clip(members / below - 1, 1, units - 1) / (units - 1)
        yield Crossing(level, link, below, least, members, members > below, step_s, rate, lanes)
        below, least, inside = members, fewest, level.ranks


def joined(ranks: Group, latency_s: Number, transfer_s: Number, model: CollectiveModel) -> Array:
    """Return latency + transfer + c sqrt(latency x transfer) [s], and nothing for a rank alone.

    Notes
    -----
    A chain of steps that cuts a message into pieces pays a latency for each piece and keeps links waiting for whole
    ones; the best number of pieces makes c = 2: (sqrt(latency) + sqrt(transfer))^2. The largest c of the links counts.
    """
    pipelining: Number = 0.0
    for crossing in crossings(ranks, model):
        pipelining = np.maximum(pipelining, crossing.crossed * crossing.link.pipelining)
    seconds = latency_s + transfer_s + pipelining * np.sqrt(latency_s * transfer_s)
    return np.where(ranks.size > 1, seconds, 0.0)
