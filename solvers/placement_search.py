"""Good orders of nodes: construction by the slowest link, then exchanges of two and of more.

The time of a phase is that of its slowest message, which says nothing about any exchange that leaves that message
alone. So exchanges are judged by a sum of powers, sum_p t_p sum_e (bytes_e / (W_e t_p))^q, which tends to the sum of
the phases' slowest times as q grows and is a quadratic assignment for every q: the change by an exchange is a few
products with sparse rows. The best order is kept by its true cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from perfmodel.placement import Demand, Network, message_times, node_times, phase_times
from perfmodel.terms import Array

Integers = NDArray[np.int64]

POWERS = (4.0, 12.0, 40.0)
"""Exponents q, one after the other; a changed order is improved with the last alone."""
_SMOOTH = 12.0
"""Exponent by which orders are compared on the way."""
_WORSE = 0.1
"""How much worse, at most, an order may be that is gone on from [1]."""
_SEED = 1
_WHOLE = 160
"""Nodes up to which all exchanges are weighed at once: two dense products."""
_HELPS = 1e-9
"""Least relative change that counts as one, above rounding."""
_LARGEST_EXPONENT = 140.0
"""Decimal digits that the powers of the rates may span; floating-point numbers have room for twice as many."""
_NO_PATH = 16.0
"""Where there is no path, a rate this many times below the least there is stands in for it."""


@dataclass
class Search:
    """The best order found so far, and how to find better ones.

    Parameters
    ----------
    wanted : Demand
        Traffic between logical nodes.
    net : Network
        The nodes.
    cost : callable
        Cost of orders, along the last axis [s].
    by_sum : bool
        Whether the cost is the sum of all messages' times, not of the phases' slowest.
    order : array of int
        The best order: node of each logical node, then the nodes that are left over.
    value : float
        Its cost [s].
    """

    wanted: Demand
    net: Network
    cost: Callable[[Integers], Array]
    by_sum: bool
    order: Integers
    value: float = field(init=False)
    _random: np.random.Generator = field(init=False)
    _begun: bool = field(init=False, default=False)
    _finite: Network = field(init=False)
    _distances: dict[float, _Distances] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(_SEED)
        finite = self.net.bandwidth[(self.net.bandwidth > 0) & np.isfinite(self.net.bandwidth)]
        least = float(finite.min()) / _NO_PATH
        limits = np.maximum([self.net.sending, self.net.receiving], least)
        self._finite = Network(self.net.names, np.maximum(self.net.bandwidth, least), *limits)
        self.value = float(self.cost(self.order[: self.wanted.units]))

    def offer(self, order: Integers) -> float:
        """Keep an order if it is the best one yet; return its cost [s]."""
        value = float(self.cost(order[: self.wanted.units]))
        if value < self.value:
            self.value, self.order = value, order.copy()
        return value

    def run(self, deadline: float, bound: Callable[[], float], gap: float, rounds: int | None = None) -> bool:
        """Search until the best order meets the bound.

        Parameters
        ----------
        deadline : float
            On `time.perf_counter`, when to stop [s].
        bound : callable
            Returns what no order can beat [s].
        gap : float
            Relative gap at which to stop [1].
        rounds : int, optional
            Most changes of an order to go on from.

        Returns
        -------
        bool
            Whether the bound was met.
        """

        def met() -> bool:
            return self.value <= bound() / (1 - gap) * (1 + 1e-12)

        def over() -> bool:
            return met() or time.perf_counter() > deadline

        if over():
            return met()
        powers = (1.0,) if self.by_sum else POWERS
        if not self._begun:
            starts = [self.constructed()]
            if len(self.order) <= _WHOLE:  # where there are more, a start far from good takes too long
                starts.append(self.order.copy())
            for start in starts:
                self.improve(start, powers, over)
            self._begun = True
        current = self.order.copy()
        scale, best = self.value, self._smooth(current)
        done = 0
        while not over() and (rounds is None or done < rounds):
            done += 1
            changed = current.copy()
            self.improve(changed, powers[-1:], over, self.kick(changed))
            if self.value < scale:  # the smooth cost is measured against the best order
                scale, best = self.value, self._smooth(current)
            value = self._smooth(changed)
            # a little worse is taken now and then, so that the search leaves where it stands
            if value <= best * (1 + _WORSE * self._random.random() ** 4):
                current, best = changed, value
        return met()

    def _smooth(self, order: Integers) -> float:
        """Return the sum of powers of an order: unlike the true cost it counts all that is nearly slowest."""
        wanted, net, placed = self.wanted, self._finite, order[: self.wanted.units]
        times = message_times(wanted, net, placed)
        if self.by_sum:
            return float(times.sum())
        reached = phase_times(wanted, net, self.order[: wanted.units])
        nodes = node_times(wanted, net, placed) / reached[:, None]
        messages = (reached[wanted.phase] * (times / reached[wanted.phase]) ** _SMOOTH).sum()
        return float(messages + (reached[:, None] * nodes**_SMOOTH).sum())

    def constructed(self) -> Integers:
        """Lay logical nodes out one by one, each where its slowest message to those laid out before is fastest."""
        wanted, units, nodes = self.wanted, self.wanted.units, len(self.net.names)
        weight = np.zeros((units, units))
        np.add.at(weight, (wanted.sources, wanted.destinations), wanted.sent_bytes)
        inverse = 1 / self._finite.bandwidth
        totals = wanted.leaving.sum(axis=0) + wanted.arriving.sum(axis=0)
        attached = np.zeros(units)
        slowest = np.zeros((units, nodes))
        # by its own rates: a node whose typical link is slow is left for whoever needs it least
        typical = np.median(inverse + inverse.T, axis=1)
        order = np.full(units, -1)
        free = np.ones(nodes, dtype=bool)
        for _ in range(units):
            unit = int(np.argmax(np.where(order < 0, attached * 1e3 + totals / totals.max(), -1.0)))
            rank = slowest[unit] + (totals[unit] / units) * typical * 1e-3
            node = int(np.argmin(np.where(free, rank, np.inf)))
            order[unit], free[node] = node, False
            attached += (weight[unit] + weight[:, unit]) / weight.max()
            for other in np.flatnonzero((weight[unit] > 0) & (order < 0)):
                np.maximum(slowest[other], weight[unit, other] * inverse[node], out=slowest[other])
            for other in np.flatnonzero((weight[:, unit] > 0) & (order < 0)):
                np.maximum(slowest[other], weight[other, unit] * inverse[:, node], out=slowest[other])
        return np.concatenate([order, np.flatnonzero(free)])

    def kick(self, order: Integers) -> Integers:
        """Move a few logical nodes round among themselves, one end of a slowest message among them."""
        wanted = self.wanted
        times = message_times(wanted, self.net, order[: wanted.units])
        if self.by_sum:
            index = int(self._random.integers(len(times)))
        else:
            slowest = phase_times(wanted, self.net, order[: wanted.units])
            near = np.flatnonzero(times >= 0.999 * slowest[wanted.phase])
            index = int(self._random.choice(near)) if len(near) else int(np.argmax(times))
        first = int(self._random.choice([wanted.sources[index], wanted.destinations[index]]))
        count = min(len(order), int(self._random.integers(3, 7 if len(order) <= _WHOLE else 4)))
        others = self._random.choice(np.delete(np.arange(len(order)), first), size=count - 1, replace=False)
        moved = np.concatenate([[first], others])
        order[moved] = order[np.roll(moved, 1)]
        return moved

    def improve(
        self,
        order: Integers,
        powers: tuple[float, ...],
        over: Callable[[], bool],
        touched: Integers | None = None,
    ) -> float:
        """Exchange pairs of logical nodes, in place, while that lowers the cost.

        Parameters
        ----------
        order : array of int
            Node of each logical node, then the nodes left over.
        powers : tuple of float
            Exponents, one after the other.
        over : callable
            Whether to stop.
        touched : array of int, optional
            Logical nodes to begin with; all if left out.

        Returns
        -------
        float
            True cost of the order [s].
        """
        value = self.offer(order)
        for power in powers:
            if power not in self._distances:
                self._distances[power] = _Distances.of(self._finite, power)
            # after a change, times of the phases are those to be beaten, not what the change made of them
            scale = order if touched is None else self.order
            surrogate = _Powers.of(self.wanted, self._distances[power], order, scale, self.by_sum)
            if len(order) <= _WHOLE:
                while not over() and (pair := surrogate.best()) is not None:
                    surrogate.exchange(*pair)
            else:
                self._one_by_one(surrogate, over, touched)
            value = self.offer(order)
        return value

    def _one_by_one(self, surrogate: _Powers, over: Callable[[], bool], touched: Integers | None) -> None:
        """Try the best exchange of each logical node, the dearest first, until none helps."""
        waiting = np.zeros(len(surrogate.order), dtype=bool)
        waiting[touched if touched is not None else slice(0, self.wanted.units)] = True
        while waiting.any() and not over():
            unit = int(np.argmax(np.where(waiting, surrogate.own, -np.inf)))
            waiting[unit] = False
            change = surrogate.changes(unit)
            other = int(np.argmin(change))
            if change[other] < -_HELPS * (surrogate.own[unit] + surrogate.own[other]):
                surrogate.exchange(unit, other)
                waiting[surrogate.around(unit)] = True
                waiting[surrogate.around(other)] = True


@dataclass(frozen=True)
class _Distances:
    """Powers of the inverse rates, over a reference rate: from node to node, and of a node alone."""

    power: float
    net: Network
    reference: float
    distance: Array
    reverse: Array
    slowness: Array

    @classmethod
    def of(cls, net: Network, power: float) -> _Distances:
        """Return them for rates of which none is zero."""
        finite = net.bandwidth[np.isfinite(net.bandwidth)]
        reference = float(finite.max())
        power = min(power, _LARGEST_EXPONENT / np.log10(10 * reference / float(finite.min())))
        distance = (reference / net.bandwidth) ** power
        slowness = (reference / np.array([net.sending, net.receiving])) ** power
        return cls(power, net, reference, distance, distance.T.copy(), slowness)


@dataclass
class _Powers:
    """The sum of powers as a quadratic assignment: flow (logical) times distance (nodes), and cost of a node alone.

    What a logical node costs on a node for all its messages together is of rank two: `loads` times `slowness`, of
    sending and of receiving.
    """

    wanted: Demand
    order: Integers
    weights: Array
    flow: csr_array
    back: csr_array
    distance: Array
    reverse: Array
    loads: Array
    slowness: Array
    own: Array = field(init=False)
    dense: Array | None = None

    @classmethod
    def of(cls, wanted: Demand, far: _Distances, order: Integers, scale: Integers, by_sum: bool) -> _Powers:
        units, nodes = wanted.units, len(order)
        power, net = far.power, far.net
        reached = np.ones(len(wanted.phases)) if by_sum else phase_times(wanted, net, scale[:units])
        weights = reached[wanted.phase] * (wanted.sent_bytes / (reached[wanted.phase] * far.reference)) ** power
        flow = csr_array((weights, (wanted.sources, wanted.destinations)), shape=(nodes, nodes))
        loads = np.zeros((2, nodes))
        if not by_sum:
            totals = np.array([wanted.leaving, wanted.arriving]) / reached[:, None]
            loads[:, :units] = (reached[:, None] * (totals / far.reference) ** power).sum(axis=1)
        back = csr_array(flow.T)
        found = cls(wanted, order, weights, flow, back, far.distance, far.reverse, loads, far.slowness)
        if nodes > _WHOLE:
            found.refresh()
        return found

    def refresh(self) -> None:
        """Work out what every logical node's messages, sent and received, cost where it stands."""
        sources, destinations = self.wanted.sources, self.wanted.destinations
        terms = self.weights * self.distance[self.order[sources], self.order[destinations]]
        sent, received = (np.bincount(ends, terms, len(self.order)) for ends in (sources, destinations))
        self.own = sent + received + (self.loads * self.slowness[:, self.order]).sum(axis=0)

    def around(self, unit: int) -> Integers:
        """Return a logical node and those that it talks to."""
        ends = [one.indices[one.indptr[unit] : one.indptr[unit + 1]] for one in (self.flow, self.back)]
        return np.concatenate([[unit], *ends])

    def exchange(self, unit: int, other: int) -> None:
        """Let two logical nodes change places."""
        self.order[unit], self.order[other] = self.order[other], self.order[unit]
        if len(self.order) > _WHOLE:
            self.refresh()

    def best(self) -> tuple[int, int] | None:
        """Return the exchange that helps most, None where none does (`changes` for all logical nodes at once)."""
        if self.dense is None:
            self.dense = self.flow.toarray()
        flow, order = self.dense, self.order
        far = self.distance[np.ix_(order, order)]
        moved = flow @ far.T + flow.T @ far + self.loads.T @ self.slowness[:, order]
        own = moved.diagonal()
        change = moved + moved.T - own[:, None] - own[None, :]
        change += (flow + flow.T) * (far + far.T)
        np.fill_diagonal(change, np.inf)
        unit, other = divmod(int(change.argmin()), len(order))
        return (unit, other) if change[unit, other] < -_HELPS * (own[unit] + own[other]) else None

    def changes(self, unit: int) -> Array:
        """Return what exchanging a logical node with every other one changes.

        Notes
        -----
        With M(r, s) the cost of r's messages from where s stands, an exchange of r and s changes
        M(r, s) + M(s, r) - M(r, r) - M(s, s), and the messages between the two, which M counts to where the other was,
        (f(r, s) + f(s, r)) (d(r, s) + d(s, r)) (Burkard, Dell'Amico, Martello, "Assignment Problems", 2009, 8.2).
        """
        order = self.order
        node = order[unit]
        out = slice(self.flow.indptr[unit], self.flow.indptr[unit + 1])
        into = slice(self.back.indptr[unit], self.back.indptr[unit + 1])
        to, fro = self.flow.indices[out], self.back.indices[into]
        sent, received = self.flow.data[out], self.back.data[into]
        row, column = self.distance[node][order], self.reverse[node][order]
        there = (sent @ self.reverse[order[to]] + received @ self.distance[order[fro]])[order]
        here = self.flow @ row + self.back @ column
        change = there + here - self.own[unit] - self.own
        change[to] += sent * (row[to] + column[to])
        change[fro] += received * (row[fro] + column[fro])
        change += self.loads[:, unit] @ self.slowness[:, order] + self.slowness[:, node] @ self.loads
        change[unit] = np.inf
        return np.asarray(change)
