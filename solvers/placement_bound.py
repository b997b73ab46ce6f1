"""What no order of nodes can beat.

A threshold on the time of every phase asks a least rate of every message. Whether the messages can be laid onto pairs
of nodes that fast is hard to say, but three counts can say that they cannot: a node's rates against a logical node's
messages, pairs that share no node, and nodes that reach one another.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching

from perfmodel.placement import Demand, Network
from perfmodel.terms import Array

Mask = NDArray[np.bool_]

_ROUNDING = 1 + 1e-9
_MOST_LEVELS = 6
"""Rates at which pairs and components are counted: as many of the different rates asked for, evenly chosen."""
_CACHED = 4096


@dataclass
class Thresholds:
    """Tells of thresholds on the times of the phases whether they cannot be met.

    Parameters
    ----------
    wanted : Demand
        Traffic between logical nodes.
    net : Network
        The nodes; at least as many.
    """

    wanted: Demand
    net: Network
    _rates: Array = field(init=False)
    _sorted: tuple[Array, Array] = field(init=False)
    _slots: tuple[NDArray[np.int64], NDArray[np.int64]] = field(init=False)
    _pair: NDArray[np.int64] = field(init=False)
    _ends: NDArray[np.int64] = field(init=False)
    _full: float = field(init=False, default=0.0)
    _counts: dict[float, tuple[int, NDArray[np.int64], NDArray[np.int64]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        wanted, nodes = self.wanted, len(self.net.names)
        self._rates = np.where(np.isinf(self.net.bandwidth), 0.0, self.net.bandwidth)
        code = wanted.sources * wanted.units + wanted.destinations
        pairs, self._pair = np.unique(code, return_inverse=True)
        self._ends = np.stack([pairs // wanted.units, pairs % wanted.units])
        # where each pair stands in a table of a row for every logical node, by sender and by receiver
        self._slots = (_slots(self._ends[0], wanted.units), _slots(self._ends[1], wanted.units))
        widest = [int(slots.max(initial=-1)) + 1 for slots in self._slots]
        both = (self._rates, self._rates.T)
        self._sorted = tuple(  # type: ignore[assignment]
            -np.sort(-rates, axis=1)[:, : min(width, nodes)] for rates, width in zip(both, widest, strict=True)
        )

    def needed(self, thresholds_s: Array) -> Array:
        """Return the least rate of each pair of logical nodes that talk [bytes/s]."""
        rate = np.zeros(self._ends.shape[1])
        np.maximum.at(rate, self._pair, self.wanted.sent_bytes / thresholds_s[self.wanted.phase])
        return rate

    def hosts(self, thresholds_s: Array, rate: Array) -> Mask:
        """Tell which node could host which logical node (rows) by its own rates alone."""
        possible = np.ones((self.wanted.units, len(self.net.names)), dtype=bool)
        totals = (self.wanted.leaving, self.wanted.arriving)
        limits = (self.net.sending, self.net.receiving)
        profiles = []
        for end, slots, rates in zip(self._ends, self._slots, self._sorted, strict=True):
            table = np.zeros((self.wanted.units, rates.shape[1]))
            table[end, slots] = rate
            profiles.append(-np.sort(-table, axis=1))
        for total in totals:
            profiles.append((total / thresholds_s[:, None]).max(axis=0)[:, None])
        unique, member = np.unique(np.concatenate(profiles, axis=1), axis=0, return_inverse=True)
        out = self._sorted[0].shape[1]
        into = out + self._sorted[1].shape[1]
        for index, profile in enumerate(unique / _ROUNDING):
            fine = (profile[:out] <= self._sorted[0]).all(axis=1) & (profile[out:into] <= self._sorted[1]).all(axis=1)
            fine &= (profile[into] <= limits[0]) & (profile[into + 1] <= limits[1])
            possible[member.reshape(-1) == index] = fine
        return possible

    def impossible(self, thresholds_s: Array) -> str | None:
        """Return why no order meets the thresholds, None where that is not known.

        Parameters
        ----------
        thresholds_s : array
            Of each phase [s]; infinite where it does not matter.
        """
        rate = self.needed(thresholds_s)
        possible = self.hosts(thresholds_s, rate)
        if not possible.any(axis=1).all():
            return "rates of a node"
        if (maximum_bipartite_matching(csr_array(possible), perm_type="column") < 0).any():
            return "rates of the nodes"
        levels = np.unique(rate[rate > 0])
        chosen = levels[np.unique(np.linspace(0, len(levels) - 1, _MOST_LEVELS).round().astype(int))]
        for level in chosen if len(levels) else ():
            if (why := self._too_many(rate >= level, float(level))) is not None:
                return why
        return None

    def _too_many(self, asked: Mask, level: float) -> str | None:
        """Compare pairs without a common end, and nodes that reach one another, at one rate."""
        units = self.wanted.units
        graph = csr_array((np.ones(asked.sum()), self._ends[:, asked]), shape=(units, units))
        disjoint, strong, weak = self._available(level)
        if _matched(graph) > disjoint:
            return "pairs of nodes"
        for parts, sizes in zip(_parts(graph), (strong, weak), strict=True):
            for size in np.unique(parts[parts > 1]):
                if (parts // size).sum() > (sizes // size).sum():
                    return "nodes that reach one another"
        return None

    def _available(self, level: float) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        """Count disjoint pairs, and the sizes of parts that reach one another, at a rate."""
        nodes = len(self.net.names)
        if level <= self._full:
            return nodes, np.array([nodes]), np.array([nodes])
        if level not in self._counts:
            graph = csr_array((self._rates * _ROUNDING >= level).astype(np.int8))
            if len(self._counts) >= _CACHED:
                self._counts.clear()
            found = (_matched(graph), *_parts(graph))
            if found[0] == nodes and len(found[1]) == 1:
                self._full = level  # and so it is at every lower rate
            self._counts[level] = found
        return self._counts[level]


def _slots(ends: NDArray[np.int64], units: int) -> NDArray[np.int64]:
    """Number the pairs of each logical node."""
    order = np.argsort(ends, kind="stable")
    first = np.searchsorted(ends[order], np.arange(units))
    slots = np.empty(len(ends), dtype=np.int64)
    slots[order] = np.arange(len(ends)) - first[ends[order]]
    return slots


def _parts(graph: csr_array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the nodes of parts that reach one another both ways, and of parts that are joined at all."""
    return (
        np.bincount(connected_components(graph, directed=True, connection="strong")[1]),
        np.bincount(connected_components(graph, directed=True, connection="weak")[1]),
    )


def _matched(graph: csr_array) -> int:
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def reachable_s(wanted: Demand, net: Network) -> Array:
    """Return thresholds that any order meets whose messages all have a path [s]."""
    least = net.bandwidth[net.bandwidth > 0].min()
    return np.full(len(wanted.phases), 4 * max(wanted.sent_bytes.sum(), 1.0) / least)


def phase_bounds(check: Thresholds, best_s: Array, deadline: float, tolerance: float = 1e-7) -> tuple[Array, bool]:
    """Return, for each phase alone, a time that no order beats, and whether the search for it was complete.

    Parameters
    ----------
    check : Thresholds
        Of the problem.
    best_s : array
        A time that is reached, of each phase [s].
    deadline : float
        On `time.perf_counter`, when to stop; every bound holds whenever that is [s].
    tolerance : float
        Relative precision of the bisection [1].

    Notes
    -----
    Bisection of the threshold between the time of the best rate there is and one that is reached. What a phase can take
    at all is bytes over a rate of the matrix, so a bound moves up to the next of these values.
    """
    wanted, net = check.wanted, check.net
    rates = np.unique(net.bandwidth[np.isfinite(net.bandwidth) & (net.bandwidth > 0)])
    found = []
    complete = True
    for index in range(len(wanted.phases)):
        own = wanted.phase == index
        sizes = np.unique(wanted.sent_bytes[own])
        shared = [
            (np.unique(total[index][total[index] > 0]), np.unique(limit[limit > 0]))
            for total, limit in ((wanted.leaving, net.sending), (wanted.arriving, net.receiving))
        ]
        values = [(sizes, rates), *shared]
        low, high = max(size.max() / rate.max() for size, rate in values), float(best_s[index])
        low *= 1 - 1e-12  # the value itself may be reached
        thresholds = np.full(len(wanted.phases), np.inf)
        while high > low * (1 + tolerance):
            if time.perf_counter() > deadline:
                complete = False
                break
            thresholds[index] = middle = (low * high) ** 0.5
            low, high = (middle, high) if check.impossible(thresholds) else (low, middle)
        found.append(min(_next_value(values, low), float(best_s[index])))
    return np.array(found), complete


def _next_value(values: list[tuple[Array, Array]], above_s: float) -> float:
    """Return the least time above a threshold that some bytes take at some rate [s]."""
    least = np.inf
    for sizes, rates in values:
        position = np.searchsorted(rates, sizes / above_s, side="left") - 1
        possible = position >= 0
        if possible.any():
            least = min(least, float((sizes[possible] / rates[position[possible]]).min()))
    return max(least, above_s)


def joint_bound(
    check: Thresholds,
    bounds_s: Array,
    best: Callable[[], float],
    deadline: float,
    gap: float,
) -> float:
    """Return a bound of the sum of all phases [s].

    Parameters
    ----------
    check : Thresholds
        Of the problem.
    bounds_s : array
        A bound of each phase alone [s].
    best : callable
        Returns the best sum known [s].
    deadline : float
        On `time.perf_counter`, when to stop [s].
    gap : float
        Relative gap at which to stop [1].

    Notes
    -----
    Best first over boxes of thresholds. A box whose upper corner, cut off where the sum reaches the best one known,
    cannot be met holds no better order; any other is halved along its relatively longest side. The least sum of the
    lower corners left is a bound.
    """
    start = tuple(float(value) for value in bounds_s)
    queue: list[tuple[float, tuple[float, ...], tuple[float, ...]]] = [(sum(start), start, (np.inf,) * len(start))]
    while queue and time.perf_counter() < deadline:
        total, low, high = queue[0]
        known = best()
        if total >= known * (1 - gap):
            break
        corner = np.minimum(high, known - total + np.array(low))
        heapq.heappop(queue)
        if check.impossible(corner) is not None:
            continue
        side = int(np.argmax(corner - np.array(low)))
        middle = (low[side] + corner[side]) / 2
        if corner[side] - low[side] <= 1e-9 * known:
            heapq.heappush(queue, (total, low, high))
            break
        upper = list(low)
        upper[side] = middle
        lower_high = [float(value) for value in corner]
        heapq.heappush(queue, (sum(upper), tuple(upper), tuple(lower_high)))
        lower_high[side] = middle
        heapq.heappush(queue, (total, low, tuple(lower_high)))
    return min(queue[0][0], best()) if queue else best()


def sum_bound(wanted: Demand, net: Network) -> float:
    """Return the Gilmore-Lawler bound of the sum of all messages' times [s].

    Notes
    -----
    A logical node's messages, most bytes first, meet a node's rates, fastest first: no order costs it less there. The
    least assignment of these costs is a bound, for messages sent, for those received, and for the mean of both
    (Gilmore 1962; Lawler 1963).
    """
    with np.errstate(divide="ignore"):
        inverse = 1 / net.bandwidth  # 0 on the diagonal
    nodes, units = len(net.names), wanted.units
    flow = np.zeros((units, units))
    np.add.at(flow, (wanted.sources, wanted.destinations), wanted.sent_bytes)
    finite = np.where(np.isfinite(inverse), inverse, 0.0)
    largest = finite.max() * 1e6
    costs = []
    for sent, taken in ((flow, inverse), (flow.T, inverse.T)):
        taken = np.minimum(taken, largest)  # no path: dear, but a number
        others = np.sort(taken[~np.eye(nodes, dtype=bool)].reshape(nodes, nodes - 1), axis=1)
        most = -np.sort(-sent, axis=1)[:, : min(units, nodes - 1)]
        costs.append(most @ others[:, : most.shape[1]].T)
    both = (*costs, (costs[0] + costs[1]) / 2)
    return max(float(cost[linear_sum_assignment(cost)].sum()) for cost in both)
