"""Which flow takes which path, so that the slowest link is done soonest, and what that gains over hashing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from perfmodel.provenance import recalled, release
from perfmodel.routing import slowest
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.result import Objective, Result
from solvers.routing_answer import binding_of, breakdown_of, compared_with, plan_of, predicted
from solvers.routing_case import Case, case_of, free_case, given_paths, split_flows_of
from solvers.routing_leaf_spine import Option
from solvers.routing_repair import cut_apart
from solvers.routing_scenario import RoutingScenario

_ROUNDING = 1e-9


def plan(
    scenario: RoutingScenario,
    *,
    top: int = 5,
    time_limit_s: float | None = None,
    gap: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Find paths for all flows, prove how good they are, and compare them with hashing and spraying.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    top : int
        How many of the other kinds of routing to list.
    time_limit_s : float
        Wall time after which the best routing so far is returned, with a bound that holds for every one [s].
    gap : float
        Relative gap at which integer programs may stop; None for `OPTIMAL_GAP`.
    progress : callable
        Called with the share of the work that is done.

    Returns
    -------
    Result
        ``optimal`` when the bound is reached, ``feasible`` with a bound when it is not, ``time_limit`` when time ran
        out before, ``infeasible`` with the cut and the fewest repairs where two ends have no path.
    """
    began = time.perf_counter()
    deadline = None if time_limit_s is None else began + time_limit_s
    search = scenario.question.search
    common = _common(scenario)
    kinds = [split for split in search.split if split != "none"]
    case = case_of(scenario, time_limit_s, given="any" in search.nics and bool(kinds))
    if isinstance(case, str):
        return cut_apart(scenario, case, common, began)
    cases = [case] if "own" in search.nics and math.isfinite(case.floor_s) else []
    free = free_case(scenario, case, left(deadline)) if "any" in search.nics and kinds else None
    if isinstance(free, Case):
        cases.append(free)
    elif free is not None:
        common["why_not"] = [{"reason": free, "candidates": None, "nearest": None}]
    if not cases and not math.isfinite(case.floor_s):
        return cut_apart(scenario, case.broken_adapter, common, began)
    found: list[tuple[float, int, Case, Option]] = []
    for number, one in enumerate(cases or [case]):
        for option in _options(one, search.split if one.nics == "own" else kinds, deadline, gap or OPTIMAL_GAP):
            time_s = max(slowest(one.network.loads(option.routing), one.network.rate), one.floor_s)
            found.append((time_s, int(split_flows_of(scenario, one, option.routing).sum()), one, option))
        if progress is not None:
            progress((number + 1) / max(len(cases), 1))
    best = min(time_s for time_s, *_ in found)

    def rank(entry: tuple[float, int, Case, Option]) -> tuple[bool, float]:
        """Of routings as fast as the best, the one that splits the fewest flows; then by time."""
        slower = entry[0] > best * (1 + _ROUNDING)
        return slower, entry[0] if slower else entry[1]

    ranked = sorted(found, key=rank)
    time_s, _, chosen, option = ranked[0]
    if kinds:
        bound = min(one.bound_s for one in cases or [case])
    else:
        bound = max(min(entry[3].bound_s for entry in found), chosen.floor_s)
    bound = min(bound, time_s)
    bound = time_s if time_s <= bound * (1 + _ROUNDING) else bound
    compared, common["provenance"]["ecmp"] = compared_with(case)
    described = predicted(scenario, chosen, option.routing, compared)
    reached = relative_gap(time_s, bound)
    proved = reached <= OPTIMAL_GAP
    late = deadline is not None and time.perf_counter() > deadline
    return Result(
        status="optimal" if proved else "time_limit" if late else "feasible",
        objective=Objective("completion_time_s", time_s, "s", "min"),
        best_bound=bound,
        gap=reached,
        solve_time_s=time.perf_counter() - began,
        candidates=None,
        plan=plan_of(scenario, chosen, option),
        prediction=described,
        breakdown=breakdown_of(scenario, chosen, option.routing),
        binding=binding_of(chosen, option.routing, time_s),
        alternatives=[
            {
                "plan": plan_of(scenario, one, other, paths=False),
                "prediction": predicted(scenario, one, other.routing, compared),
            }
            for _, _, one, other in ranked[1 : top + 1]
        ],
        baseline=_baseline(scenario, case, described, compared),
        **common,
    )


def predict(scenario: RoutingScenario) -> Result:
    """Cost the paths that a scenario gives.

    Parameters
    ----------
    scenario : RoutingScenario
        The question, with a plan.

    Returns
    -------
    Result
        The time, with a bound that holds for every routing.

    Raises
    ------
    InputError
        The plan has no paths, or not those of these flows.
    """
    began = time.perf_counter()
    common = _common(scenario)
    case = case_of(scenario, None, given=True)
    if isinstance(case, str):
        return cut_apart(scenario, case, common, began)
    case, routing = given_paths(scenario, case)
    compared, common["provenance"]["ecmp"] = compared_with(case)
    described = predicted(scenario, case, routing, compared)
    time_s = described["completion_time_s"]
    bound = min(case.bound_s, time_s)
    bound = time_s if time_s <= bound * (1 + _ROUNDING) else bound
    kept = scenario.question.plan
    assert kept is not None
    return Result(
        status="optimal" if relative_gap(time_s, bound) <= OPTIMAL_GAP else "feasible",
        objective=Objective("completion_time_s", time_s, "s", "min"),
        best_bound=bound,
        gap=relative_gap(time_s, bound),
        solve_time_s=time.perf_counter() - began,
        plan=kept.model_dump(mode="json", exclude_none=True) | {"split_flows": described["split_flows"]},
        prediction=described,
        breakdown=breakdown_of(scenario, case, routing),
        binding=binding_of(case, routing, time_s),
        **common,
    )


def left(deadline: float | None) -> float | None:
    """Return the wall time that is left [s]."""
    return None if deadline is None else max(0.1, deadline - time.perf_counter())


def _common(scenario: RoutingScenario) -> dict[str, Any]:
    machine = scenario.machine
    known = scenario.question.cluster is not None
    return {
        "kind": "routing",
        "scenario": scenario.resolved,
        "provenance": {
            "version": release(),
            "hardware": [machine.node.name, machine.cluster.name] if known else [],
            "from_memory": recalled(machine) if known else [],
            "calibration": [],
        },
    }


def _options(case: Case, kinds: Any, deadline: float | None, gap: float) -> list[Option]:
    network, found = case.network, []
    unsplit = None
    if "none" in kinds or "fewest" in kinds:
        unsplit = network.unsplit(case.division, case.floor_s, deadline, gap)
    if "none" in kinds and unsplit is not None:
        found.append(unsplit)
    if "fewest" in kinds and unsplit is not None:
        few = network.few_splits(case.division, unsplit, case.floor_s, deadline)
        if few.routing is not unsplit.routing or not found:
            found.append(few)
    if "spray" in kinds:
        found.append(network.sprayed(case.division))
    return found


def _baseline(
    scenario: RoutingScenario, case: Case, best: dict[str, Any], compared: dict[str, Any]
) -> dict[str, Any] | None:
    """Return what runs today beside the best, with the gain."""
    if scenario.question.plan is None or scenario.question.plan.paths is None:
        return None
    case, routing = given_paths(scenario, case)
    described = predicted(scenario, case, routing, compared)
    kept = scenario.question.plan.model_dump(mode="json", exclude_none=True, exclude={"paths"})
    return {
        "plan": kept | {"split_flows": described["split_flows"]},
        "prediction": described,
        "gain": described["completion_time_s"] / best["completion_time_s"],
    }
