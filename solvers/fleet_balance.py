"""Requests divided over a fleet that is rented: evenly, and how many more it would take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.backend import solve
from solvers.fleet_case import Case
from solvers.fleet_model import NOISE, NONE, Fleet, whole_shares


def usable(case: Case, fleet: Fleet, failure: int = NONE) -> Array:
    """Return the instances of each pool whose throughput may be used, of shape (P, H), of one after a failure.

    The share of throughput that is kept free is taken off.
    """
    counted = fleet.capacity(case)
    if failure != NONE:
        counted[failure] = np.maximum(counted[failure] - case.lost, 0.0)
    return np.asarray(counted * case.utilisation_max[case.pool_accelerator][:, None])


def failures(case: Case, fleet: Fleet) -> list[int]:
    """Return the pools of which instances may fail."""
    there = fleet.capacity(case).any(axis=1) & case.possible.any(axis=0)
    return [int(pool) for pool in np.flatnonzero(there)] if case.lost else []


def balanced(case: Case, fleet: Fleet) -> Fleet:
    """Divide the requests so that the busiest pool is as little busy as may be, at the same cost.

    Parameters
    ----------
    case : Case
        The fleet to choose.
    fleet : Fleet
        What is rented, with a routing that it carries. Calls of graphs go only where they went, so that paths stay
        within their time. Where streams are cut into slices, the routing stays.

    Returns
    -------
    Fleet
        The same, with another routing.
    """
    if case.slices:
        return fleet
    share = fleet.share.copy()
    for h in range(case.periods):
        share[:, :, h] = _evenly(case, usable(case, fleet), fleet.share, h)
    return replace(fleet, share=share)


def rerouted(case: Case, fleet: Fleet, failure: int) -> Array:
    """Return the shares after a failure, of shape (I, P, H), with the busiest pool as little busy as may be."""
    share: Array = fleet.failover[failure].copy()
    if not case.slices:
        for h in range(case.periods):
            share[:, :, h] = _evenly(case, usable(case, fleet, failure), share, h)
    return share


def _evenly(case: Case, room: Array, share: Array, h: int) -> Array:
    divided = _divided(case, room[:, h], _pairs(case, share, room, h), h)
    return np.asarray(share[:, :, h] if divided is None else divided)


def _pairs(case: Case, share: Array, room: Array, h: int) -> NDArray[np.bool_]:
    pairs = case.possible & (room[:, h] > 0) & (case.rate[:, h] > 0)[:, None]
    for graph in case.graphs:
        for call in graph.calls:
            pairs[call] &= share[call, :, h] > 0
    return pairs


def _divided(case: Case, room: Array, pairs: NDArray[np.bool_], h: int) -> Array | None:
    import pulp

    problem = pulp.LpProblem("balance", pulp.LpMinimize)
    busiest = problem.add_variable("busiest", 0)
    share = {(int(i), int(p)): problem.add_variable(f"x_{i}_{p}", 0, 1) for i, p in np.argwhere(pairs)}
    for stream in np.flatnonzero(case.rate[:, h] > 0):
        problem += pulp.lpSum(x for (i, _), x in share.items() if i == stream) == 1, f"demand_{stream}"
    for pool in np.flatnonzero(room > 0):
        load = [
            max(float(case.rate[i, h] / case.throughput[i, p] / room[p]), NOISE) * x
            for (i, p), x in share.items()
            if p == pool
        ]
        problem += pulp.lpSum(load) <= busiest, f"load_{pool}"
    problem.setObjective(busiest)
    found = solve(problem)
    if found.status != "optimal":
        return None
    divided = np.zeros(case.throughput.shape)
    for key, variable in share.items():
        divided[key] = found.values.get(variable.name, 0.0)
    return whole_shares(divided)


def spare_requests(case: Case, fleet: Fleet) -> Array:
    """Return how many more requests of each kind alone a fleet would take at every time [requests/s].

    Kinds are those of `Case.requests`. The others may go elsewhere on the same accelerators; calls of graphs go only
    where they went, and where streams are cut into slices what is there stays where it is. Where instances may fail
    it is the least over the failures, after which slices may be divided.
    """
    spare = np.full(len(case.requests), np.inf)
    for failure in (NONE, *failures(case, fleet)):
        room = usable(case, fleet, failure)
        share = fleet.share if failure == NONE else fleet.failover[failure]
        fixed = share if case.slices and failure == NONE else None
        for h in range(case.periods):
            pairs = _pairs(case, share, room, h)
            for number in range(len(spare)):
                spare[number] = min(spare[number], _more(case, fixed, room[:, h], pairs, number, h))
    return spare


def _more(case: Case, fixed: Array | None, room: Array, pairs: NDArray[np.bool_], number: int, h: int) -> float:
    """Return the most that can be added of one kind in a period [requests/s]."""
    import pulp

    calls = case.calls[number]
    goes = (case.possible & (room > 0)) & (calls > 0)[:, None]
    for graph in case.graphs:
        for call in graph.calls:
            goes[call] &= pairs[call]
    problem = pulp.LpProblem("spare", pulp.LpMaximize)
    more = problem.add_variable("more", 0)
    # in instances kept busy, which are around one where rates may be anything
    added = {(int(i), int(p)): problem.add_variable(f"m_{i}_{p}", 0) for i, p in np.argwhere(goes)}
    busy = _busy(case, fixed, problem, pairs, h)
    for stream in np.flatnonzero(calls):
        there = [float(case.throughput[key]) * variable for key, variable in added.items() if key[0] == stream]
        problem += pulp.lpSum(there) == float(calls[stream]) * more, f"more_{stream}"
    for pool in map(int, np.flatnonzero(room > 0)):
        there = [variable for (_, p), variable in added.items() if p == pool]
        # the routing that there is was found to a tolerance of the solver
        problem += pulp.lpSum(there) + busy[pool] <= float(room[pool]) * (1 + 1e-6), f"room_{pool}"
    problem.setObjective(more)
    found = solve(problem)
    return 0.0 if found.objective is None else max(found.objective, 0.0)


def _busy(case: Case, fixed: Array | None, problem: Any, pairs: NDArray[np.bool_], h: int) -> list[Any]:
    """Return what the requests that there are keep busy of each pool; where shares are not fixed they may move."""
    import pulp

    if fixed is not None:
        return list(map(float, case.load(fixed)[:, h]))
    share = {(int(i), int(p)): problem.add_variable(f"x_{i}_{p}", 0, 1) for i, p in np.argwhere(pairs)}
    for stream in np.flatnonzero(case.rate[:, h] > 0):
        problem += pulp.lpSum(x for (i, _), x in share.items() if i == stream) == 1, f"demand_{stream}"
    return [
        pulp.lpSum(
            max(float(case.rate[i, h] / case.throughput[i, p]), NOISE) * x for (i, p), x in share.items() if p == pool
        )
        for pool in range(len(case.pool_size))
    ]
