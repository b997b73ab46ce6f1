"""The next best fleets: other counts than the cheapest, and the best of a single kind."""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import replace

import numpy as np

from perfmodel.terms import Array
from solvers.backend import Solution
from solvers.fleet_balance import balanced
from solvers.fleet_case import Case
from solvers.fleet_model import Fleet, Model, build
from solvers.fleet_search import undominated

_NEAR = 1e-3
"""Gap to which other fleets are found [1]."""


def single_kind(case: Case, until: float) -> list[Fleet]:
    """Return the cheapest fleet of each kind alone, of those kinds that can serve everything, the cheapest first.

    Parameters
    ----------
    case : Case
        The fleet to choose.
    until : float
        When to stop looking, as of `time.perf_counter` [s].
    """
    found = []
    asked = case.rate.max(axis=1) > 0
    for one in range(len(case.accelerators)):
        able = case.possible & (case.pool_accelerator == one)
        if not able[asked].any(axis=1).all() or time.perf_counter() > until:
            continue
        alone = replace(case, throughput=np.where(able, case.throughput, 0.0))
        model = build(alone)
        solution = model.solve(gap=_NEAR, time_limit_s=max(until - time.perf_counter(), 0.0))
        if solution.objective is not None:
            fleet = balanced(alone, model.fleet(solution))
            found.append((float(fleet.cost(case).sum()), one, fleet))
    return [fleet for _, _, fleet in sorted(found, key=lambda entry: entry[:2])]


def next_counts(case: Case, best: Fleet, count: int, until: float) -> list[Fleet]:
    """Return the next cheapest counts, none of which holds another one and more besides.

    Parameters
    ----------
    case : Case
        The fleet to choose; of one period.
    best : Fleet
        The cheapest.
    count : int
        How many to find.
    until : float
        When to stop looking, as of `time.perf_counter` [s].

    Notes
    -----
    The counts that are left after one is taken out, and with it all that hold it and more, are boxes: fewer of the
    first kind; as many of the first and fewer of the second; and so on (Lawler, Management Science 18, 1972). A box
    is solved when its relaxation is the cheapest of all that is left.
    """
    model, relaxed = build(case), build(case, relaxed=True)
    kinds, number = len(case.accelerators), itertools.count()
    heap: list[tuple[float, int, Array, Array, Fleet | None]] = []
    found: list[Fleet] = []

    def push(low: Array, high: Array) -> None:
        if (low > high).any():
            return
        bound = _solved(relaxed, low, high, until)
        if bound is not None:
            heapq.heappush(heap, (bound[0], next(number), low, high, None))

    def split(low: Array, high: Array, fleet: Fleet) -> None:
        counts = fleet.held(case)[:, 0].astype(float)
        for one in range(kinds):
            left, right = low.copy(), high.copy()
            left[:one] = np.maximum(left[:one], counts[:one])
            right[one] = min(right[one], counts[one] - 1)
            push(left, right)

    split(np.zeros(kinds), np.full(kinds, np.inf), best)
    while heap and len(found) < count and time.perf_counter() < until:
        _, _, low, high, fleet = heapq.heappop(heap)
        if fleet is None:
            solved = _solved(model, low, high, until)
            if solved is not None:
                heapq.heappush(heap, (solved[0], next(number), low, high, model.fleet(solved[1])))
            continue
        found.append(balanced(case, fleet))
        split(low, high, fleet)
    return found


def _solved(model: Model, low: Array, high: Array, until: float) -> tuple[float, Solution] | None:
    """Solve with the accelerators of each kind held in a box."""
    for (one, _), held in model.held.items():
        held.lowBound = float(low[one])
        held.upBound = float(high[one]) if np.isfinite(high[one]) else None
    solution = model.solve(gap=_NEAR, time_limit_s=max(until - time.perf_counter(), 0.0))
    return None if solution.objective is None else (solution.objective, solution)


def single_purchase(case: Case, until: float) -> list[Fleet]:
    """Return the cheapest fleet of each way to rent alone, where there are several."""
    found = []
    offered = np.isfinite(case.price).any(axis=0)
    for way in np.flatnonzero(offered):
        if offered.sum() == 1 or time.perf_counter() > until:
            continue
        only = np.arange(case.price.shape[1]) == way
        model = build(replace(case, price=np.where(only, case.price, np.inf)))
        solution = model.solve(gap=_NEAR, time_limit_s=max(until - time.perf_counter(), 0.0))
        if solution.objective is not None:
            found.append(balanced(case, model.fleet(solution)))
    return found


def alternatives(case: Case, best: Fleet, top: int, until: float) -> list[Fleet]:
    """Return other fleets than the cheapest, the cheapest first: next counts, single kinds, single ways to rent.

    Parameters
    ----------
    case : Case
        The fleet to choose.
    best : Fleet
        The cheapest.
    top : int
        How many to list, besides the best single kind and the ways to rent alone.
    until : float
        When to stop looking, as of `time.perf_counter` [s].
    """
    case = undominated(case)
    others = single_kind(case, until)[:1] + single_purchase(case, until)
    if case.periods == 1:
        others += next_counts(case, best, top, until)
    seen = [_rented(case, best)]
    listed = []
    for fleet in sorted(others, key=lambda one: float(one.cost(case).sum())):
        if _rented(case, fleet) not in seen:
            seen.append(_rented(case, fleet))
            listed.append(fleet)
    return listed


def _rented(case: Case, fleet: Fleet) -> bytes:
    return fleet.bought(case).tobytes()
