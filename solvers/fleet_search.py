"""The cheapest fleet of a case and a bound of its cost: all periods at once, or one by one where nothing joins them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solvers.fleet_case import RESERVED, Case
from solvers.fleet_infeasible import only_period
from solvers.fleet_model import Fleet, build

PROOF = 1e-7
"""Gap that counts as none [1]."""
SEARCHED = 0.8
"""Share of the time for a fleet whose failures any kind carries; unproved, the rest is for own spares."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Parameters
    ----------
    fleet : Fleet or None
        The cheapest, None without any.
    bound : float or None
        What no fleet costs less than [USD/h].
    infeasible : bool
        Whether it is proved that there is none.
    """

    fleet: Fleet | None
    bound: float | None
    infeasible: bool = False


def undominated(case: Case) -> Case:
    """Return a case without pools that no fleet needs.

    A pool is not needed where as many accelerators of the same kind in instances of another of the same model, smaller
    or as large, sustain as much of every stream and answer it no later.
    """
    needed: NDArray[np.bool_] = np.ones(len(case.pool_size), bool)
    for one, size in enumerate(case.pool_size):
        for other, less in enumerate(case.pool_size):
            same = (case.pool_accelerator[one], case.pool_model[one]) == (
                case.pool_accelerator[other],
                case.pool_model[other],
            )
            if one == other or not (same and needed[other]) or size % less:
                continue
            served = case.throughput[:, one] > 0
            enough = (case.throughput[:, other] * (size // less) >= case.throughput[:, one]).all()
            sooner = all(
                (times[served, other] <= times[served, one]).all() for times in (case.latency_s, case.latency_std_s)
            )
            if enough and (sooner or not case.graphs):
                needed[one] = False
                break
    return replace(case, throughput=np.where(needed, case.throughput, 0.0))


def cheapest(case: Case, gap: float | None, until: float) -> Found:
    """Find the cheapest fleet.

    Parameters
    ----------
    case : Case
        The fleet to choose; every stream has somewhere to go.
    gap : float or None
        Relative distance from the bound at which to stop; None for a proof.
    until : float
        When to stop, as of `time.perf_counter` [s].

    Notes
    -----
    Only accelerators reserved for the day join its periods. Where none are offered each period is a problem of its own.
    """
    case = undominated(case)
    if case.periods == 1 or np.isfinite(case.price[:, RESERVED]).any():
        return _together(case, gap, until)
    parts = []
    for h in range(case.periods):
        left_s = max(until - time.perf_counter(), 0.0)
        # what a period leaves of its share is the next ones'
        parts.append(_together(only_period(case, h), gap, time.perf_counter() + left_s / (case.periods - h)))
        if parts[-1].infeasible:
            return parts[-1]
    bounds = [part.bound for part in parts if part.bound is not None]
    bound = float(np.dot(case.weight, bounds)) if len(bounds) == len(parts) else None
    fleets = [part.fleet for part in parts if part.fleet is not None]
    if len(fleets) < len(parts):
        return Found(None, bound)
    instances, share, failover = (
        np.concatenate([getattr(one, name) for one in fleets], axis=-1) for name in ("instances", "share", "failover")
    )
    return Found(Fleet(instances, fleets[0].reserved, share, failover), bound)


def _together(case: Case, gap: float | None, until: float) -> Found:
    model = build(case)
    left_s = max(until - time.perf_counter(), 0.0)
    solution = model.solve(gap=gap or PROOF, time_limit_s=left_s * (SEARCHED if case.lost else 1.0))
    if solution.status == "infeasible":
        return Found(None, None, infeasible=True)
    fleet = None if solution.objective is None else model.fleet(solution)
    if case.lost and solution.status == "time_limit":
        plain = build(case, own_spares=True)
        spared = plain.solve(gap=gap or PROOF, time_limit_s=max(until - time.perf_counter(), 0.0))
        if spared.objective is not None and (solution.objective is None or spared.objective < solution.objective):
            fleet = plain.fleet(spared)
    return Found(fleet, solution.best_bound)
