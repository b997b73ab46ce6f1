"""The fleet that a scenario gives: what it leaves open is chosen as cheaply as may be, what it lacks is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perfmodel.terms import Array
from solvers.fleet_case import ON_DEMAND, PURCHASES, RESERVED, SPOT, Case
from solvers.fleet_infeasible import Reason, beyond_limits, only_period, unserved
from solvers.fleet_model import NONE, Fleet, Model, build, whole_shares
from solvers.fleet_question import FleetPeriod, FleetPlan, FleetPool
from solvers.fleet_scenario import FleetScenario


def by_period(case: Case) -> Case:
    """Return the case with every period of the day on its own."""
    number = {one: h for h, hours in enumerate(case.hours) for one in hours}
    order = [number[one] for one in range(len(number))]
    return replace(
        case,
        rate=case.rate[:, order],
        weight=np.full(len(order), 1 / len(order)),
        hours=tuple((one,) for one in range(len(order))),
    )


def given_fleet(scenario: FleetScenario) -> tuple[Case, Fleet | None, Reason | None]:
    """Complete the plan of a scenario.

    Returns
    -------
    tuple
        The case it is of, the fleet, and why there is none.

    Raises
    ------
    ValueError
        The scenario gives no plan.
    """
    given = scenario.question.plan
    if given is None:
        raise ValueError("the scenario has no plan to predict")
    case = scenario.case if given.periods is None else by_period(scenario.case)
    reason = unserved(case)
    if reason is not None:
        return case, None, reason
    parts: list[FleetPlan | FleetPeriod] = [given] * case.periods
    for period in given.periods or ():
        for one in period.periods:
            parts[one] = period
    routed = _routing(case, parts)
    wrong = _misrouted(case, routed)
    if wrong:
        return case, None, wrong
    model = build(case, routed=routed)
    for h, part in enumerate(parts):
        _fix(model, part, h)
    found = model.solve()
    if found.objective is not None:
        fleet = model.fleet(found)
        return case, replace(fleet, share=np.where(np.isnan(routed), fleet.share, routed)), None
    return case, None, _lacking(case, parts, routed)


def _routing(case: Case, parts: list[FleetPlan | FleetPeriod]) -> Array:
    """Return the shares that a plan gives, of shape (I, P, H), not a number where it gives none."""
    routed = np.full((*case.throughput.shape, case.periods), np.nan)
    for h, part in enumerate(parts):
        for name, shares in (part.routing or {}).items():
            stream = case.streams.index(name)
            for pool, one in enumerate(case.pool_accelerator):
                share = shares.get(case.accelerators[one], 0.0) if pool in _pools_of(case, stream, one) else 0.0
                if not share or len(_pools_of(case, stream, one)) == 1:  # else the pools of the kind may divide it
                    routed[stream, pool, h] = share
        if part.pools is not None:
            routed[:, :, h] = np.where(case.rate[:, h] > 0, 0.0, np.nan)[:, None]
            for given in part.pools:
                for name, share in given.share.items():
                    routed[case.streams.index(name), _number(case, given), h] = share
    return whole_shares(routed)


def _number(case: Case, given: FleetPool) -> int:
    number = case.pool(given.accelerator, given.model, given.accelerators_per_instance, given.precision_weights)
    assert number is not None  # checked with the scenario
    return number


def _pools_of(case: Case, stream: int, one: int) -> list[int]:
    """Return the pools of a kind that hold the model of a stream."""
    own = (case.pool_accelerator == one) & (case.pool_model == case.stream_model[stream])
    return [int(pool) for pool in np.flatnonzero(own)]


def _misrouted(case: Case, routed: Array) -> Reason | None:
    wrong = (routed > 0) & (case.rate > 0)[:, None, :] & ~case.possible[:, :, None]
    said = [
        f"routing[{case.streams[stream]}]: {case.accelerators[case.pool_accelerator[pool]]} cannot serve it within "
        "the objectives"
        for stream, pool in np.argwhere(wrong.any(axis=2))
    ]
    return ([{"reason": one, "candidates": None, "nearest": None} for one in said], []) if said else None


def _fix(model: Model, part: FleetPlan | FleetPeriod, h: int) -> None:
    import pulp

    case, problem = model.case, model.problem
    for one, name in enumerate(case.accelerators):
        problem += model.held[one, h] == part.counts.get(name, 0), f"given_{one}_{h}"
    if part.pools is not None:
        instances = {_number(case, given): given.instances for given in part.pools}
        for pool in range(len(case.pool_size)):
            there = [variable for (p, _, at), variable in model.instances.items() if (p, at) == (pool, h)]
            problem += pulp.lpSum(there) == instances.get(pool, 0), f"given_pool_{pool}_{h}"
    for stream, (asked, shares) in enumerate((part.routing or {}).items() if part.pools is None else ()):
        number = case.streams.index(asked)
        for one, name in enumerate(case.accelerators):
            divided = [(number, pool, h) for pool in _pools_of(case, number, one)]
            there = [model.unit[key] * model.share[NONE, *key] for key in divided if (NONE, *key) in model.share]
            if len(divided) > 1 and there:
                problem += pulp.lpSum(there) == shares.get(name, 0.0), f"given_share_{stream}_{one}_{h}"
    for one, name in enumerate(case.accelerators):
        bought = None if part.purchases is None else part.purchases.get(name)
        if bought is None:
            continue
        pools = [int(pool) for pool in np.flatnonzero(case.pool_accelerator == one)]
        for way, count in ((RESERVED, bought.reserved), (ON_DEMAND, bought.on_demand), (SPOT, bought.spot)):
            keys = [(pool, way, h) for pool in pools if (pool, way, h) in model.instances]
            rented = [int(case.pool_size[key[0]]) * model.instances[key] for key in keys]
            if way == RESERVED:
                rented = [model.reserved[one]] if one in model.reserved else []
            problem += pulp.lpSum(rented) == count, f"given_{PURCHASES[way]}_{one}_{h}"


def _lacking(case: Case, parts: list[FleetPlan | FleetPeriod], routed: Array) -> Reason:
    """Name the counts that are too small, in the first period in which they are."""
    for h, part in enumerate(parts):
        counts = np.array([float(part.counts.get(name, 0)) for name in case.accelerators])
        over = [
            {"constraint": f"max[{name}]", "now": float(most), "needed": float(count), "unit": "accelerators"}
            for name, most, count in zip(case.accelerators, case.most, counts, strict=True)
            if count > most
        ]
        if over:
            return [{"reason": "counts above max", "candidates": None, "nearest": None}], over
        alone, shares = replace(only_period(case, h), most=counts), routed[:, :, h : h + 1]
        if build(alone, routed=shares).solve().objective is None:
            why, changes = beyond_limits(alone, shares)
            return _renamed(why), _renamed(changes)
    reason = "the purchases do not hold the counts, or an instance is not whole"
    return [{"reason": reason, "candidates": None, "nearest": None}], []


def _renamed(entries: list[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {key: value.replace("max[", "counts[") if isinstance(value, str) else value for key, value in entry.items()}
        for entry in entries
    ]
