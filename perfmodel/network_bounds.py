"""How fast a collective can be at best on a network: bounds from cuts, whatever the algorithm.

A network is a `networkx.DiGraph` whose edges have a ``capacity`` [bytes/s]; some of its nodes are ranks, the others
switches. `directed` makes one of an undirected graph, such as `hardware.topology.graph(machine, detail="devices")`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf, lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from perfmodel.collectives import Group
from perfmodel.terms import Array, Number

if TYPE_CHECKING:
    from networkx import DiGraph, Graph

NETWORKS = ("infiniband", "roce", "efa", "slingshot", "ethernet")
"""Protocols behind a rank's adapter, which all levels of a network share."""


@dataclass(frozen=True)
class CutBound:
    """The least time of a collective that a cut allows.

    Parameters
    ----------
    seconds : float
        No algorithm is faster [s].
    cut : frozenset
        Nodes on the side of the cut that the data has to leave; of an all-to-all, one side.
    exit_bytes_per_s : float
        Rate out of that side [bytes/s].
    algorithm_bytes_per_s : float
        Bytes over the bound, as nccl-tests print it [bytes/s].
    """

    seconds: float
    cut: frozenset[Hashable]
    exit_bytes_per_s: float
    algorithm_bytes_per_s: float


def directed(graph: Graph[Hashable]) -> DiGraph[Hashable]:
    """Return a graph with an edge each way for every edge, of the same capacity."""
    return graph.to_directed()


class _Flows:
    """Maximum flows in a graph of whole capacities, along shortest paths (Dinitz 1970)."""

    def __init__(self, nodes: int, edges: Iterable[tuple[int, int, int]]) -> None:
        self.heads: list[int] = []
        self.room: list[int] = []
        self.leaving: list[list[int]] = [[] for _ in range(nodes)]
        for tail, head, capacity in edges:
            for end, start, size in ((head, tail, capacity), (tail, head, 0)):
                self.leaving[start].append(len(self.heads))
                self.heads.append(end)
                self.room.append(size)

    def cut(self, source: int, sink: int) -> tuple[int, list[int]]:
        """Return the maximum flow, and the distance from the source of every node, -1 beyond the minimum cut."""
        flow = 0
        while True:
            depth = self._depths(source)
            if depth[sink] < 0:
                return flow, depth
            unused = [0] * len(self.leaving)
            while (pushed := self._push(source, sink, depth, unused)) > 0:
                flow += pushed

    def _depths(self, source: int) -> list[int]:
        depth = [-1] * len(self.leaving)
        depth[source] = 0
        queue = deque([source])
        while queue:
            here = queue.popleft()
            for edge in self.leaving[here]:
                end = self.heads[edge]
                if self.room[edge] and depth[end] < 0:
                    depth[end] = depth[here] + 1
                    queue.append(end)
        return depth

    def _push(self, source: int, sink: int, depth: list[int], unused: list[int]) -> int:
        """Push along one shortest path; `unused` holds, for every node, the first edge that may still lead on."""
        path: list[int] = []
        here = source
        while here != sink:
            while unused[here] < len(self.leaving[here]):
                edge = self.leaving[here][unused[here]]
                if self.room[edge] and depth[self.heads[edge]] == depth[here] + 1:
                    path.append(edge)
                    here = self.heads[edge]
                    break
                unused[here] += 1
            else:
                if not path:
                    return 0
                here = self.heads[path.pop() ^ 1]
                unused[here] += 1
        amount = min(self.room[edge] for edge in path)
        for edge in path:
            self.room[edge] -= amount
            self.room[edge ^ 1] += amount
        return amount


@dataclass(frozen=True)
class _Whole:
    """A network in whole numbers: capacities times `scale`."""

    names: list[Hashable]
    places: dict[Hashable, int]
    edges: list[tuple[int, int, int]]
    scale: int

    def exit(self, cut: frozenset[Hashable]) -> Fraction:
        """Return the rate out of a set of nodes [bytes/s]."""
        inside = {self.places[name] for name in cut}
        leaving = sum(size for tail, head, size in self.edges if tail in inside and head not in inside)
        return Fraction(leaving, self.scale)


def _whole(network: DiGraph[Hashable], ranks: Sequence[Hashable]) -> _Whole:
    """Return a network in whole numbers.

    Raises
    ------
    ValueError
        Fewer than two ranks, one that is no node, or an edge without a capacity.
    """
    names = list(network)
    places = {name: place for place, name in enumerate(names)}
    if len(set(ranks)) < 2:
        raise ValueError("a collective needs at least two ranks")
    if unknown := [str(rank) for rank in ranks if rank not in places]:
        raise ValueError(f"no node of the network: {', '.join(unknown)}")
    edges: list[tuple[Any, Any, Any]] = list(network.edges(data="capacity"))
    for tail, head, capacity in edges:
        if capacity is None or not capacity >= 0:
            raise ValueError(f"the edge from {tail} to {head} has no capacity")
    # an edge without limit carries as much as all others together
    most = sum((Fraction(capacity) for *_, capacity in edges if capacity < inf), Fraction(0))
    sizes = [
        (places[tail], places[head], Fraction(capacity) if capacity < inf else most) for tail, head, capacity in edges
    ]
    scale = lcm(*(size.denominator for _, _, size in sizes))
    return _Whole(names, places, [(tail, head, int(size * scale)) for tail, head, size in sizes], scale)


def all_gather_bound(network: DiGraph[Hashable], ranks: Sequence[Hashable], total_bytes: float) -> CutBound:
    """Return the least time of an all-gather, or reduce-scatter, on a network.

    Parameters
    ----------
    network : DiGraph
        Capacities [bytes/s].
    ranks : sequence
        Nodes that hold a shard each.
    total_bytes : float
        What every rank has in the end [bytes].

    Raises
    ------
    ValueError
        A rank that some other cannot reach, fewer than two ranks, or an edge without a capacity.

    Notes
    -----
    T = (S/N) max over cuts X that miss a rank of |X & ranks| / B+(X), with B+(X) the rate out of X. Trees that reach it
    exist on every network with as much bandwidth in as out of each node (Zhao et al., "ForestColl", arXiv 2402.06787,
    theorem 1); an all-reduce without switches that add takes at most twice as long.

    A ratio x holds for all cuts that miss rank v if a source with an edge of x to every rank sends N x to v. Where it
    does not, the minimum cut has a lower ratio, which is tried next (Dinkelbach 1967). Fractions keep all of it exact.
    """
    whole = _whole(network, ranks)
    count = len(whole.names)
    held = [whole.places[rank] for rank in ranks]
    best = frozenset(name for name in whole.names if name != ranks[0])
    ratio = whole.exit(best) / (len(ranks) - 1)
    for sink in held:
        while ratio > 0:
            # capacities times the denominator of the ratio, so that all stay whole
            scaled = ratio * whole.scale
            edges = [(tail, head, size * scaled.denominator) for tail, head, size in whole.edges]
            flows = _Flows(count + 1, [*edges, *((count, place, scaled.numerator) for place in held)])
            flow, depth = flows.cut(count, sink)
            if flow == len(held) * scaled.numerator:
                break
            best = frozenset(whole.names[place] for place in range(count) if depth[place] >= 0)
            ratio = whole.exit(best) / sum(rank in best for rank in ranks)
    if not ratio:
        raise ValueError(f"no path out of {', '.join(sorted(map(str, best)))}")
    rate = float(ratio * len(ranks))
    return CutBound(total_bytes / rate, best, float(whole.exit(best)), rate)


def all_to_all_cut_bound(network: DiGraph[Hashable], ranks: Sequence[Hashable], buffer_bytes: float) -> CutBound:
    """Return a least time of an all-to-all on a network, from the cuts most likely to bind.

    Parameters
    ----------
    network : DiGraph
        Capacities [bytes/s].
    ranks : sequence
        Nodes that send every other its part.
    buffer_bytes : float
        What a rank holds for all together [bytes].

    Notes
    -----
    T >= |X| (N - |X|) S / (N B+(X)) for every cut X, |X| its ranks. All cuts cannot be tried (the problem is a sparsest
    cut); taken are those around every rank, around the ranks beside every switch, and the minimum ones between a rank
    and every other, each with the switches that make it cheapest. `all_to_all_bound` is exact.
    """
    whole = _whole(network, ranks)
    count, everyone = len(whole.names), frozenset(ranks)
    sides: set[frozenset[Hashable]] = {frozenset([rank]) for rank in ranks}
    for name in network:
        if name not in everyone:
            near = {*network.predecessors(name), *network.successors(name)}
            far = {one for switch in near - everyone for one in network.predecessors(switch)}
            sides |= {frozenset(near & everyone), frozenset((near | far) & everyone)}
    for rank in ranks[1:]:
        _, depth = _Flows(count, whole.edges).cut(whole.places[ranks[0]], whole.places[rank])
        sides.add(frozenset(one for one in ranks if depth[whole.places[one]] >= 0))
    total = sum(size for _, _, size in whole.edges) + 1
    best: tuple[Fraction, frozenset[Hashable]] | None = None
    for side in sorted(sides, key=lambda names: sorted(map(str, names))):
        if not 0 < len(side) < len(everyone):
            continue
        ends = [(count, whole.places[rank], total) for rank in side]
        ends += [(whole.places[rank], count + 1, total) for rank in everyone - side]
        flow, depth = _Flows(count + 2, [*whole.edges, *ends]).cut(count, count + 1)
        if not flow:
            raise ValueError(f"no path out of {', '.join(sorted(map(str, side)))}")
        load = Fraction(len(side) * (len(everyone) - len(side)) * whole.scale, flow)
        if best is None or load > best[0]:
            best = load, frozenset(whole.names[place] for place in range(count) if depth[place] >= 0)
    assert best is not None
    seconds = float(best[0]) * buffer_bytes / len(everyone)
    return CutBound(seconds, best[1], float(whole.exit(best[1])), buffer_bytes / seconds)


def all_to_all_bound(network: DiGraph[Hashable], ranks: Sequence[Hashable], buffer_bytes: float) -> float:
    """Return the least time of an all-to-all on a network, by linear programming [s].

    Parameters
    ----------
    network : DiGraph
        Capacities [bytes/s].
    ranks : sequence
        Nodes that send every other its part.
    buffer_bytes : float
        What a rank holds for all together [bytes].

    Notes
    -----
    min t subject to, for every source s, a flow f_s of one unit to each other rank, and sum over s of f_s(e) <= t c(e):
    maximum concurrent flow (Shahrokhi and Matula 1990), flows of one source together. |ranks| x |edges| variables.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, eye_array, hstack, kron

    whole = _whole(network, ranks)
    held = [whole.places[rank] for rank in ranks]
    tails, heads, sizes = (np.array(column, dtype=float) for column in zip(*whole.edges, strict=True))
    edges, count, sources = len(sizes), len(whole.names), len(held)
    signs, numbers = np.r_[np.ones(edges), -np.ones(edges)], np.tile(np.arange(edges), 2)
    leaving = coo_array((signs, (np.r_[tails, heads].astype(int), numbers)), shape=(count, edges))
    balance: Any = hstack([kron(eye_array(sources), leaving), coo_array((sources * count, 1))], format="csr")
    supply = np.zeros((sources, count))
    supply[:, held] = -1.0
    supply[np.arange(sources), held] = sources - 1.0
    shares = coo_array(-(sizes / sizes.max())[:, None])
    load: Any = hstack([kron(np.ones((1, sources)), eye_array(edges)), shares], format="csr")
    cost = np.zeros(sources * edges + 1)
    cost[-1] = 1.0
    found = linprog(cost, A_ub=load, b_ub=np.zeros(edges), A_eq=balance, b_eq=supply.ravel(), method="highs")
    if not found.success or found.x is None:
        raise ValueError("some rank cannot reach another")
    return float(found.x[-1]) * whole.scale / float(sizes.max()) * buffer_bytes / sources


def tower_bound(operation: str, ranks: Group, total_bytes: Number) -> Array:
    """Return the least time of a collective on the levels of a machine, at their nominal rates [s].

    Parameters
    ----------
    operation : str
        ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all``, ``broadcast``, ``reduce`` or ``send_recv``.
    ranks : Group
        The group.
    total_bytes : array
        Size as nccl-tests count it [bytes].

    Notes
    -----
    The cuts around a unit of every level. What a unit of m ranks lacks of an all-gather, (n - m)/n S, comes in over its
    own links, m B; those of several levels work at once, but levels of a network share a rank's adapter. An all-reduce
    takes in what a gather does at least, even where switches add. An all-to-all moves m (n - m)/n S out of a unit; all
    of a message comes into one without its sender.
    """
    n = ranks.size
    worst: Number = np.zeros(n.shape)
    below: Number = 1.0
    for depth, members in enumerate(ranks.members):
        rate: Number = 0.0
        network: Number = 0.0
        under = below
        for level, held in zip(ranks.levels[depth:], ranks.members[depth:], strict=True):
            used = level.bandwidth * (held > under)
            if level.type in NETWORKS:
                network = np.maximum(network, used)
            else:
                rate = rate + used
            under = held
        rate = np.where(members > below, rate + network, np.inf)
        share = (n - below) / n * (below if operation == "all_to_all" else 1.0)
        if operation in ("broadcast", "reduce", "send_recv"):
            share = np.ones(n.shape)
        worst = np.maximum(worst, share / (below * rate))
        below = members
    return np.asarray(worst * total_bytes)
