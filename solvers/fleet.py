"""The cheapest accelerators that serve given requests, and how far from the cheapest they may be."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.fleet_answer import binding, common, objective, plan_dict, prediction
from solvers.fleet_balance import balanced, spare_requests
from solvers.fleet_case import Case
from solvers.fleet_infeasible import beyond_limits, unserved
from solvers.fleet_model import Fleet, build
from solvers.fleet_others import alternatives
from solvers.fleet_scenario import FleetScenario
from solvers.fleet_search import cheapest, undominated
from solvers.fleet_today import given_fleet
from solvers.result import Result

TIME_LIMIT_S = 20.0
"""How long to search, where nothing else is said [s]."""
_FEW = 12
"""Kinds of requests and periods up to which the price of one more request is found with whole accelerators, too."""


def plan(
    scenario: FleetScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float | None = None
) -> Result:
    """Find the cheapest fleet, bound it, and say what requests and limits cost.

    Parameters
    ----------
    scenario : FleetScenario
        The question.
    top : int
        How many alternatives to list.
    time_limit_s : float
        Wall time of the search; `TIME_LIMIT_S` if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.

    Returns
    -------
    Result
        ``optimal``, ``feasible`` (it meets `gap`), ``time_limit`` with the bound and gap reached, or ``infeasible``
        with the class that no accelerator serves or the limits that bind.
    """
    began = time.perf_counter()
    case = scenario.case
    limit_s = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    reason = unserved(case)
    if reason is not None:
        return _infeasible(scenario, reason, began)
    found = cheapest(case, gap, began + limit_s)
    if found.infeasible:
        return _infeasible(scenario, beyond_limits(case, time_limit_s=limit_s), began)
    relaxed_model = build(undominated(case), relaxed=True)
    relaxed = relaxed_model.solve(time_limit_s=limit_s)
    bounds = [bound for bound in (found.bound, relaxed.objective) if bound is not None]
    if found.fleet is None:
        return Result(
            status="time_limit",
            objective=objective(None),
            best_bound=max(bounds, default=None),
            solve_time_s=time.perf_counter() - began,
            **common(scenario),
        )
    fleet = balanced(case, found.fleet)
    searched_s = time.perf_counter() - began
    cost = float(fleet.cost(case).sum())
    bound = min(cost, max(bounds, default=0.0))
    described = prediction(case, fleet, scenario.question, relaxed_model, relaxed)
    if top and len(case.requests) * case.periods <= _FEW:
        described |= _one_more(case, fleet, cost, began + limit_s)
    others = alternatives(case, fleet, top, began + limit_s) if top else []
    return Result(
        status=_status(cost, bound, gap),
        objective=objective(cost),
        best_bound=bound,
        gap=relative_gap(cost, bound),
        solve_time_s=searched_s,
        plan=plan_dict(case, fleet),
        prediction=described,
        binding=binding(case, fleet, relaxed_model, relaxed),
        alternatives=[
            {"plan": plan_dict(case, other), "prediction": prediction(case, other, scenario.question)}
            for other in others
        ],
        baseline=_baseline(scenario, cost),
        **common(scenario),
    )


def _one_more(case: Case, fleet: Fleet, cost: float, until: float) -> dict[str, Any]:
    """Return how many more requests of each kind the fleet takes, and what one more costs in whole accelerators."""
    spare = spare_requests(case, fleet)
    worth: dict[str, float | None] = {}
    for number, name in enumerate(case.requests):
        worth[name] = 0.0
        if case.slices or spare[number] < 1:
            more = replace(case, rate=case.rate + case.calls[number][:, None])
            if unserved(more) is not None:
                worth[name] = None
                continue
            found = cheapest(more, None, until)
            if found.fleet is not None and found.bound is not None:
                whole = float(found.fleet.cost(case).sum())
                worth[name] = max(whole - cost, 0.0) if relative_gap(whole, found.bound) <= OPTIMAL_GAP else None
            else:
                worth[name] = None
    return {
        "marginal_cost_whole_usd_per_hour": worth,
        "spare_requests_per_s": {name: float(left) for name, left in zip(case.requests, spare, strict=True)},
    }


def _status(cost: float, bound: float, gap: float | None) -> Any:
    if relative_gap(cost, bound) <= OPTIMAL_GAP:
        return "optimal"
    return "feasible" if gap and relative_gap(cost, bound) <= gap else "time_limit"


def predict(scenario: FleetScenario) -> Result:
    """Cost the fleet that a scenario gives.

    Parameters
    ----------
    scenario : FleetScenario
        The question with its plan.

    Returns
    -------
    Result
        ``feasible``, or ``infeasible`` with what the fleet lacks.

    Raises
    ------
    ValueError
        The scenario gives no plan.
    """
    began = time.perf_counter()
    case, fleet, reason = given_fleet(scenario)
    if fleet is None:
        return _infeasible(scenario, reason, began)
    return Result(
        status="feasible",
        objective=objective(float(fleet.cost(case).sum())),
        solve_time_s=time.perf_counter() - began,
        plan=plan_dict(case, fleet),
        prediction=prediction(case, fleet, scenario.question),
        binding=binding(case, fleet),
        **common(scenario),
    )


def _baseline(scenario: FleetScenario, best: float) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    case, fleet, _ = given_fleet(scenario)
    if fleet is None:
        return None
    cost = float(fleet.cost(case).sum())
    return {
        "plan": plan_dict(case, fleet),
        "prediction": prediction(case, fleet, scenario.question),
        "gain": cost / best if best else 1.0,
    }


def _infeasible(scenario: FleetScenario, reason: Any, began: float) -> Result:
    why, relaxation = reason
    return Result(
        status="infeasible",
        objective=objective(None),
        solve_time_s=time.perf_counter() - began,
        why_not=why,
        relaxation=relaxation,
        **common(scenario),
    )
