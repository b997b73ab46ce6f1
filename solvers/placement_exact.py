"""The best order of a few nodes, by branch and bound."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from perfmodel.terms import Array
from solvers.placement_search import Search

Integers = NDArray[np.int64]

LARGEST = 12
"""Nodes up to which it is tried."""
_ROUNDING = 1 - 1e-12


@dataclass
class Exact:
    """Depth first over logical nodes, heaviest traffic first; nodes in order of what they cost so far.

    Parameters
    ----------
    search : Search
        Holds the best order, which it improves.
    floor_s : array
        What no order beats, of each phase [s]; zeros for the sum of all messages.
    deadline : float
        On `time.perf_counter`, when to stop [s].

    Notes
    -----
    Phases: what a logical node that is not laid out would add to each phase on each free node is at least what its
    messages to those laid out take there. The sum over phases of the slowest so far, the largest over logical nodes of
    the least over nodes, is a bound. Sum of all messages: laid-out messages count as they are, those between a logical
    node and others that are not laid out at least as Gilmore and Lawler pair them; the least assignment is a bound.
    """

    search: Search
    floor_s: Array
    deadline: float
    visited: int = 0
    stopped: bool = False
    _flow: Array = field(init=False)
    _inverse: Array = field(init=False)

    def run(self) -> bool:
        """Search; return whether every order was covered."""
        wanted, net = self.search.wanted, self.search.net
        units, nodes = wanted.units, len(net.names)
        with np.errstate(divide="ignore"):
            self._inverse = 1 / net.bandwidth
        self._flow = np.zeros((len(wanted.phases), units, units))
        self._flow[wanted.phase, wanted.sources, wanted.destinations] = wanted.sent_bytes
        if self.search.by_sum:
            self._flow = self._flow.sum(axis=0, keepdims=True)
        alone = np.zeros((len(self._flow), units, nodes))
        if not self.search.by_sum:
            with np.errstate(divide="ignore", invalid="ignore"):
                out = wanted.leaving[:, :, None] / net.sending
                into = wanted.arriving[:, :, None] / net.receiving
            alone = np.fmax(np.fmax(out, into), 0.0)
        traffic = self._flow.sum(axis=0) + self._flow.sum(axis=0).T
        sequence = [int(np.argmax(traffic.sum(axis=1)))]
        while len(sequence) < units:
            tied = traffic[:, sequence].sum(axis=1) + 1e-9 * traffic.sum(axis=1)
            tied[sequence] = -1.0
            sequence.append(int(np.argmax(tied)))
        self._descend(np.array(sequence), 0, np.full(units, -1), np.ones(nodes, dtype=bool), self.floor_s, alone)
        return not self.stopped

    def _descend(
        self, sequence: Integers, depth: int, order: Integers, free: NDArray[np.bool_], reached: Array, cost: Array
    ) -> None:
        """Lay out one more logical node; `cost` is what each would add on each node, by phase."""
        self.visited += 1
        if self.stopped or (self.visited % 64 == 0 and time.perf_counter() > self.deadline):
            self.stopped = True
            return
        if depth == len(sequence):
            rest = np.flatnonzero(free)
            self.search.offer(np.concatenate([order, rest]))
            return
        unit = int(sequence[depth])
        nodes = np.flatnonzero(free)
        after = self._after(reached, cost[:, unit, nodes])
        for position in np.argsort(after.sum(axis=0), kind="stable"):
            if after[:, position].sum() >= self.search.value * _ROUNDING:
                break
            node = int(nodes[position])
            rest = sequence[depth + 1 :]
            left = free.copy()
            left[node] = False
            with np.errstate(invalid="ignore"):  # no messages over no path: nothing
                to = self._flow[:, unit, :, None] * self._inverse[node]
                fro = self._flow[:, :, unit, None] * self._inverse[:, node]
            to, fro = np.nan_to_num(to, nan=0.0, posinf=np.inf), np.nan_to_num(fro, nan=0.0, posinf=np.inf)
            deeper = cost + to + fro if self.search.by_sum else np.maximum(cost, np.maximum(to, fro))
            if len(rest) and self._bound(after[:, position], deeper, rest, left) >= self.search.value * _ROUNDING:
                continue
            order[unit] = node
            self._descend(sequence, depth + 1, order, left, after[:, position], deeper)
            order[unit] = -1
            if self.stopped:
                return

    def _after(self, reached: Array, added: Array) -> Array:
        return reached[:, None] + added if self.search.by_sum else np.maximum(reached[:, None], added)

    def _bound(self, reached: Array, cost: Array, rest: Integers, left: NDArray[np.bool_]) -> float:
        open_cost = cost[:, rest][:, :, left]
        if not self.search.by_sum:
            least = np.maximum(reached, open_cost.min(axis=2).max(axis=1)).sum()
            together = np.maximum(reached[:, None, None], open_cost).sum(axis=0).min(axis=1).max()
            return float(max(least, together))
        flow = self._flow[0][np.ix_(rest, rest)]
        inverse = self._inverse[np.ix_(left, left)]
        count = len(inverse)
        dear = np.where(np.isfinite(inverse), inverse, self.search.value)
        others = np.sort(dear[~np.eye(count, dtype=bool)].reshape(count, count - 1), axis=1)
        most = -np.sort(-flow, axis=1)[:, : count - 1]
        paired = most @ others[:, : most.shape[1]].T
        table = np.minimum(open_cost[0] + paired, 2 * self.search.value)
        return float(reached[0] + table[linear_sum_assignment(table)].sum())
