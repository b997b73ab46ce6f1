"""Which group of accelerators computes which sequence, when; what it costs, and how far from the best it may be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.result import Result
from solvers.sequence_accumulate import plan_fixed, plan_splits
from solvers.sequence_answer import described, infeasible_answer, objective, plan_dict, sequence_provenance
from solvers.sequence_barrier import plan_barrier
from solvers.sequence_bounds import named_work_bound, work_bound
from solvers.sequence_case import Case, Integers, Scatter, Schedule, makespan, remapping
from solvers.sequence_layout import chained
from solvers.sequence_oneshot import plan_oneshot
from solvers.sequence_remapped import REMAPPED, plan_remapped
from solvers.sequence_scenario import SequenceScenario
from solvers.sequence_static import plan_static, static_barrier_bound

TIME_LIMIT_S = 10.0
"""How long to search, where nothing else is said [s]."""

_CUT = 0.9
"""Part of its time that a search cut by the clock has used at least; planners keep a little for their return [1]."""

Planner = Callable[[Case, float], tuple[Scatter, float, str]]

PLANNERS: dict[Schedule, Planner] = {
    "one-shot": plan_oneshot,
    "barrier": plan_barrier,
    "fixed": plan_fixed,
    "splits": plan_splits,
}
"""Schedule -> its planner: plan, bound [s] and the name of the bound."""


@dataclass(frozen=True)
class Planned:
    """The plan of one schedule.

    Parameters
    ----------
    plan : Scatter
        The plan.
    makespan_s, bound_s : float
        Its time, and what no plan of the schedule can beat [s].
    bound_name : str
        Which bound that is.
    cut : bool
        Whether the search used all its time; one that finds nothing better ends before.
    """

    plan: Scatter
    makespan_s: float
    bound_s: float
    bound_name: str
    cut: bool = False


@dataclass(frozen=True)
class BatchAnswer:
    """The plan of one batch of a stream.

    Parameters
    ----------
    name : str
        The batch.
    case : Case
        Its sequences and their costs.
    best : Planned
        The best plan among the schedules allowed.
    bound_s : float
        What no plan of any schedule allowed can beat [s].
    static : Planned or None
        The best plan with groups of one size, and what no such plan can beat; None where no size holds the batch.
    solve_time_s : float
        Wall time for costs, plan and bound, without the static plan [s].
    cut : bool
        Whether a search used all its time; one that finds nothing better ends before.
    """

    name: str
    case: Case
    best: Planned
    bound_s: float
    static: Planned | None
    solve_time_s: float
    cut: bool


def plan(
    scenario: SequenceScenario,
    *,
    time_limit_s: float | None = None,
    gap: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Find the scatter of least time among the schedules allowed, bound it, and predict it.

    Parameters
    ----------
    scenario : SequenceScenario
        The question.
    time_limit_s : float
        Wall time of the search; `TIME_LIMIT_S` if left out [s].
    gap : float
        Relative distance from the bound that is good enough; None for a proof.
    progress : callable
        Called with the share of the work that is done.

    Returns
    -------
    Result
        ``optimal``: the plan meets the bound; ``feasible``: it meets `gap`, or the search ended before its time;
        ``time_limit``: with the bound and gap reached; ``infeasible``: a sequence fits no group, or the batch not at
        once.
    """
    began = time.perf_counter()
    case = scenario.case
    refused = infeasible_answer(scenario, case, began)
    if refused is not None:
        return refused
    found = planned(scenario, case, TIME_LIMIT_S if time_limit_s is None else time_limit_s, progress)
    if not found:
        return Result(
            kind="sequence",
            status="time_limit",
            objective=objective(None),
            solve_time_s=time.perf_counter() - began,
            why_not=_left_out(scenario, case, found),
            scenario=scenario.resolved,
            provenance=sequence_provenance(scenario),
        )
    ordered = sorted(found, key=lambda one: one.makespan_s)
    best = ordered[0]
    bound = min(best.makespan_s, *(one.bound_s for one in found))
    spent = time.perf_counter() - began
    static = best_static(case, dict.fromkeys(one.plan.schedule for one in found))
    answers = [_described(scenario, case, one, static, found) for one in ordered]
    (prediction, tree), outside = answers[0], sum(scenario.costs.outside_s.values())
    value = prediction["step_time_s"]
    limit = min(bound + outside, value)
    reached = relative_gap(value, limit)
    ended = not any(one.cut for one in found) or (gap is not None and reached <= gap)
    status: Any = "optimal" if reached <= OPTIMAL_GAP else "feasible" if ended else "time_limit"
    return Result(
        kind="sequence",
        status=status,
        objective=objective(value),
        best_bound=limit,
        gap=reached,
        solve_time_s=spent,
        plan=plan_dict(scenario, best.plan),
        prediction=prediction,
        breakdown=tree,
        binding=_binding(case, scenario.machine.accelerators, best, bound),
        alternatives=[
            {"plan": plan_dict(scenario, one.plan), "prediction": said}
            for one, (said, _) in zip(ordered[1:], answers[1:], strict=True)
        ],
        why_not=_left_out(scenario, case, found),
        scenario=scenario.resolved,
        provenance=sequence_provenance(scenario),
        baseline=_baseline(scenario, case, value),
    )


def planned(
    scenario: SequenceScenario,
    case: Case,
    time_limit_s: float,
    progress: Callable[[float], None] | None = None,
) -> list[Planned]:
    """Plan every schedule allowed that can hold the batch.

    Parameters
    ----------
    scenario : SequenceScenario
        The question.
    case : Case
        Its sequences and their costs.
    time_limit_s : float
        Wall time of all together [s].
    progress : callable
        Called with the share of the schedules that is done.

    Returns
    -------
    list of Planned
        One for every schedule for which a plan was found.
    """
    wanted = [name for name in scenario.schedules if name in PLANNERS]
    wanted = [name for name in wanted if math.isfinite(work_bound(case, name))]
    ways = dict.fromkeys((name, remapped) for name in wanted for remapped in sorted(scenario.question.search.remap))
    ways = {(name, remapped): None for name, remapped in ways if not remapped or name in REMAPPED}
    found: list[Planned] = []
    for number, (name, remapped) in enumerate(ways):
        plain = next((one.plan for one in found if one.plan.schedule == name), None)
        began, share_s = time.perf_counter(), time_limit_s / len(ways)
        try:
            planner = partial(_by_nodes, PLANNERS[name]) if case.node_units else PLANNERS[name]
            if remapped:
                scatter, bound, bound_name = plan_remapped(case, planner, plain, share_s)
            else:
                scatter, bound, bound_name = planner(case, share_s)
        except ValueError:  # the planner found none; where that is proved the work bound says so before
            continue
        value = makespan(case, scatter)
        cut = time.perf_counter() - began >= _CUT * share_s
        found.append(Planned(scatter, value, min(bound, value), bound_name, cut))
        if progress is not None:
            progress((number + 1) / len(ways))
    return found


def _by_nodes(planner: Planner, case: Case, time_limit_s: float) -> tuple[Scatter, float, str]:
    """Plan with all sizes, and with those alone that divide one another and a node: more sizes are harder to search."""
    began, few, start = time.perf_counter(), chained(case), None
    if few is not None:
        with suppress(ValueError):  # they do not hold every sequence, or not as packed
            start = planner(few, 0.5 * time_limit_s)[0]
    left = time_limit_s - (time.perf_counter() - began)
    if start is not None and left <= 0:  # a first plan takes what it takes, and there is one
        return start, *named_work_bound(case, start.schedule)
    try:
        scatter, bound, name = planner(case, left)
    except ValueError:
        if start is None:
            raise
        return start, *named_work_bound(case, start.schedule)
    return (start if start is not None and makespan(case, start) < makespan(case, scatter) else scatter), bound, name


def best_static(case: Case, schedules: Iterable[Schedule]) -> Planned | None:
    """Return the best plan with groups of one size among some schedules, and the least bound of them."""
    found = []
    for name in schedules:
        try:
            scatter, bound, bound_name = plan_static(case, name)
        except ValueError:  # no size holds the batch
            continue
        if name == "barrier":
            bound = max(bound, static_barrier_bound(case))
        found.append(Planned(scatter, makespan(case, scatter), bound, bound_name))
    if not found:
        return None
    best = min(found, key=lambda one: one.makespan_s)
    return replace(best, bound_s=min(one.bound_s for one in found))


def predict(scenario: SequenceScenario) -> Result:
    """Cost the plan that a scenario gives.

    Raises
    ------
    ValueError
        Where it gives none.
    """
    if scenario.given is None:
        raise ValueError("the scenario has no plan to predict")
    began = time.perf_counter()
    case = styled_case(scenario)
    refused = infeasible_answer(scenario, case, began)
    if refused is not None:
        return refused
    prediction, tree = described(scenario, case, scenario.given)
    return Result(
        kind="sequence",
        status="feasible",
        objective=objective(prediction["step_time_s"]),
        solve_time_s=time.perf_counter() - began,
        plan=plan_dict(scenario, scenario.given),
        prediction=prediction,
        breakdown=tree,
        scenario=scenario.resolved,
        provenance=sequence_provenance(scenario),
    )


def styled_case(scenario: SequenceScenario) -> Case:
    """Return the case with the styles of the plan given, where it states them."""
    case, given, asked = scenario.case, scenario.given, scenario.question.plan
    assert given is not None and asked is not None
    column = np.searchsorted(case.degrees, given.degree)[given.group]
    work = case.work_s.copy()
    attention = None if case.attention_s is None else case.attention_s.copy()
    rows = np.arange(len(case.lengths))
    styles = np.array([group.style for group in asked.groups])[given.group]
    for style in scenario.costs.styles:
        chosen = (styles == style) & np.isfinite(work[rows, column]) & (case.degrees[column] > 1)
        table = scenario.costs.of(case.lengths.astype(float), style)
        work[rows[chosen], column[chosen]] = table[rows[chosen], column[chosen]]
        if attention is not None:
            table = scenario.costs.attention_of(case.lengths.astype(float), style)
            attention[rows[chosen], column[chosen]] = table[rows[chosen], column[chosen]]
    return replace(case, work_s=work, attention_s=attention)


def plan_batches(
    scenario: SequenceScenario, batches: Iterable[tuple[str, Integers]], *, time_limit_s: float, static: bool = True
) -> Iterator[BatchAnswer | str]:
    """Plan a stream of batches with the costs of one scenario.

    Parameters
    ----------
    scenario : SequenceScenario
        Where they run; its own lengths do not matter.
    batches : iterable of (str, array of int)
        Name of each batch and tokens of its sequences.
    time_limit_s : float
        Wall time for each batch [s].
    static : bool
        Plan groups of one size beside, for the gain.

    Yields
    ------
    BatchAnswer or str
        Plan of each batch; or why there is none.
    """
    for name, lengths in batches:
        began = time.perf_counter()
        asked = scenario.batch(lengths)
        case = asked.case
        if infeasible_answer(asked, case, began) is not None:
            yield name
            continue
        found = planned(asked, case, time_limit_s)
        spent = time.perf_counter() - began
        if not found:
            yield name
            continue
        best = min(found, key=lambda one: one.makespan_s)
        bound = min(one.bound_s for one in found)
        beside = best_static(case, dict.fromkeys(one.plan.schedule for one in found)) if static else None
        yield BatchAnswer(name, case, best, bound, beside, spent, any(one.cut for one in found))


def _described(
    scenario: SequenceScenario, case: Case, one: Planned, static: Planned | None, found: list[Planned]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prediction and breakdown of a plan, beside the best static one of all schedules allowed.

    Where tokens are remapped the gain is over the best plan of the schedule without, or over the same plan without.
    """
    beside = None if static is None else (static.plan, static.makespan_s, static.bound_s)
    prediction, tree = described(scenario, case, one.plan, beside)
    prediction["makespan_bound_s"] = one.bound_s
    prediction["makespan_gap"] = relative_gap(one.makespan_s, one.bound_s)
    if one.plan.remapped:
        times = [other.makespan_s for other in _unmoved(one, found)] or [
            makespan(case, replace(one.plan, remapped=False))
        ]
        without = min(times) + sum(scenario.costs.outside_s.values())
        prediction["step_time_without_remap_s"] = without
        prediction["remap_gain"] = without / prediction["step_time_s"]
    return prediction, tree


def _unmoved(one: Planned, found: list[Planned]) -> list[Planned]:
    """Return the plans of the same schedule without remapping."""
    return [other for other in found if other.plan.schedule == one.plan.schedule and not other.plan.remapped]


def _binding(case: Case, gpus: int, best: Planned, bound_s: float) -> list[dict[str, Any]]:
    """Return what sets the bound, and what one more accelerator would change."""
    price = -bound_s / gpus if best.bound_name == "work" else None
    return [
        {
            "constraint": f"bound: {best.bound_name}",
            "slack": best.makespan_s - bound_s,
            "shadow_price": price,
            "unit": "s",
            "shadow_price_unit": "s per accelerator",
        }
    ]


def _left_out(scenario: SequenceScenario, case: Case, found: list[Planned]) -> list[dict[str, Any]]:
    there = {one.plan.schedule for one in found}
    rows: list[dict[str, Any]] = []
    if case.stages > 1:
        reason = "splits: groups that split would drain the pipeline"
        rows.append({"reason": reason, "candidates": None, "nearest": None})
    if "splits" in there and (case.node_units or any(b % a for a, b in pairwise(case.degrees.tolist()))):
        reason = "splits: only sizes that divide one another and a node split; other sizes serve fixed groups alone"
        rows.append({"reason": reason, "candidates": None, "nearest": None})
    for one in found:
        without = min((other.makespan_s for other in _unmoved(one, found)), default=0.0)
        if one.plan.remapped and one.makespan_s > without > 0:
            moving_s = float(remapping(case, one.plan).seconds.sum())
            times = f"{one.makespan_s:.4g} s, of it {moving_s:.3g} s of moves, against {without:.4g} s without"
            reason = f"{one.plan.schedule} with remapping takes {times}: it does not pay"
            rows.append({"reason": reason, "candidates": None, "nearest": None})
    for name in scenario.schedules:
        if name in there or name not in PLANNERS:
            continue
        if False not in scenario.question.search.remap and name not in REMAPPED:
            reason = f"{name}: its groups do not meet in every layer, so that tokens cannot be remapped"
            rows.append({"reason": reason, "candidates": None, "nearest": None})
            continue
        tokens, room = int(case.held.sum()), case.gpus * case.capacity_tokens
        full = name == "one-shot" and tokens > room
        reason = f"{name}: {tokens:,} tokens at once, room for {int(room):,}" if full else f"{name}: no plan was found"
        rows.append({"reason": reason, "candidates": None, "nearest": None})
    return rows


def _baseline(scenario: SequenceScenario, case: Case, value: float) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.given is None:
        return None
    today = styled_case(scenario)
    if infeasible_answer(scenario, today, time.perf_counter()) is not None:
        return None
    prediction, _ = described(scenario, today, scenario.given)
    return {
        "plan": plan_dict(scenario, scenario.given),
        "prediction": prediction,
        "gain": prediction["step_time_s"] / value,
    }
