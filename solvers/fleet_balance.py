"""Requests divided over a fleet that is rented: evenly, and how many more it would take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.backend import solve
from solvers.fleet_case import Case
from solvers.fleet_model import NOISE, Fleet


def usable(case: Case, fleet: Fleet) -> Array:
    """Return the instances of each pool whose throughput may be used, of shape (P, H).

    Those that may be lost and the share of throughput that is kept free are taken off.
    """
    counted = np.maximum(fleet.capacity(case) - case.lost, 0.0)
    return np.asarray(counted * case.utilisation_max[case.pool_accelerator][:, None])


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
    room = usable(case, fleet)
    share = fleet.share.copy()
    for h in range(case.periods):
        pairs = _pairs(case, fleet, room, h)
        divided = _divided(case, room[:, h], pairs, h)
        if divided is not None:
            share[:, :, h] = divided
    return replace(fleet, share=share)


def _pairs(case: Case, fleet: Fleet, room: Array, h: int) -> NDArray[np.bool_]:
    pairs = case.possible & (room[:, h] > 0) & (case.rate[:, h] > 0)[:, None]
    for graph in case.graphs:
        for call in graph.calls:
            pairs[call] &= fleet.share[call, :, h] > 0
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
    divided[divided < NOISE] = 0.0
    total = divided.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(divided, total, out=np.zeros_like(divided), where=total > 0))
