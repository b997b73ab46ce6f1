"""How many servers fit below the limits of a facility, by each rule, and how far from the most that is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.power_answer import (
    binding,
    common,
    missing,
    objective,
    plan_dict,
    prediction,
)
from solvers.power_capped import Simulated, binding_part, plan_part, refusal, simulation_part, with_caps
from solvers.power_case import Case, Integers
from solvers.power_exact import MOST_INTEGERS, closer
from solvers.power_given import given_placement
from solvers.power_held import Capped, Held, fewer, given_nodes, held_case, hold, lifted, policy_of, rise_of
from solvers.power_place import place, towards, trimmed
from solvers.power_relaxed import Relaxed, relax
from solvers.power_rules import Rule, rules_of
from solvers.power_scenario import PowerScenario
from solvers.result import Result

TIME_LIMIT_S = 20.0
"""How long to search, where nothing else is said [s]."""
_RETRIES = 6
"""Times that held nodes take fewer servers where the policy of the fullest does not keep the limits of another."""
_TRIED = 3
"""Numbers of servers, from the bound down, that are placed from their own relaxation."""


@dataclass(frozen=True)
class Found:
    """What one rule allows.

    Parameters
    ----------
    method : str
        The rule.
    rules : tuple of Rule
        The same as watts.
    relaxed : Relaxed or None
        The linear relaxation; None if servers that are needed do not fit.
    placed : array of int, shape (racks, workloads), or None
        Servers in each rack.
    value : float or None
        Objective of these.
    bound : float or None
        What no placement beats.
    """

    method: str
    rules: tuple[Rule, ...]
    relaxed: Relaxed | None
    placed: Integers | None
    value: float | None
    bound: float | None


def plan(
    scenario: PowerScenario,
    *,
    top: int = 5,
    time_limit_s: float | None = None,
    gap: float | None = None,
    simulate: Simulated | None = None,
) -> Result:
    """Find the most servers, the most goodput or the least cost below all limits, by each rule asked for.

    Parameters
    ----------
    scenario : PowerScenario
        The question.
    top : int
        How many alternatives to list: the other rules' plans, and with caps the best without.
    time_limit_s : float
        Wall time of the search of all rules; `TIME_LIMIT_S` if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.
    simulate : Simulated
        Simulation of the plan at 1 s; none if left out.

    Returns
    -------
    Result
        ``optimal`` within the rule that does best, ``feasible`` (it meets `gap`, nothing better was found, or it rests
        on caps, whose policy is the best of those compared), ``time_limit`` with the bound and gap reached, or
        ``infeasible`` with the node that lacks watts.
    """
    result, best = _by_rules(scenario, top, time_limit_s, gap)
    placed, capped = None if best is None else best.placed, None
    if scenario.question.policy.capping == "two-threshold":
        result, placed, capped = _with_caps(scenario, result, best, top)
    return _simulated(scenario, result, placed, capped, simulate)


def _by_rules(
    scenario: PowerScenario, top: int, time_limit_s: float | None, gap: float | None
) -> tuple[Result, Found | None]:
    """Return the answer without caps, and the best placement."""
    began = time.perf_counter()
    case = scenario.case
    limit_s = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    methods = scenario.methods
    found = []
    for number, method in enumerate(methods):
        left = began + limit_s - time.perf_counter()
        found.append(best_by(case, method, time.perf_counter() + left / (len(methods) - number)))
    reached = [one for one in found if one.placed is not None]
    unsure = [one.relaxed for one in found if one.relaxed is not None]
    if not reached and unsure:  # the relaxation has room for servers that are needed, but no placement was found
        values = [one.value for one in unsure]
        return Result(
            status="time_limit",
            objective=objective(scenario, None),
            best_bound=max(values) if case.sense == "max" else min(values),
            solve_time_s=time.perf_counter() - began,
            **common(scenario),
        ), None
    if not reached:
        until = time.perf_counter() + max(limit_s / 2, began + limit_s - time.perf_counter())
        lacks = [missing(case, one.rules, until) for one in found]
        why, relaxation = min(lacks, key=lambda one: sum(change["needed"] - change["now"] for change in one[1]))
        return Result(
            status="infeasible",
            objective=objective(scenario, None),
            solve_time_s=time.perf_counter() - began,
            why_not=why,
            relaxation=relaxation,
            **common(scenario),
        ), None
    sign = 1.0 if case.sense == "max" else -1.0
    reached.sort(key=lambda one: -sign * (one.value or 0.0))
    best = reached[0]
    assert best.placed is not None and best.value is not None and best.bound is not None
    solved_s = time.perf_counter() - began
    distance = relative_gap(best.value, best.bound)
    stopped = solved_s >= limit_s and not (gap is not None and distance <= gap)
    return Result(
        status="optimal" if distance <= OPTIMAL_GAP else "time_limit" if stopped else "feasible",
        objective=objective(scenario, best.value),
        best_bound=best.bound,
        gap=distance,
        solve_time_s=solved_s,
        plan=plan_dict(case, best.placed, best.method, best.rules),
        prediction=prediction(scenario, best.placed, best.method, best.rules),
        binding=binding(case, best.placed, best.rules, best.relaxed),
        alternatives=[
            {
                "plan": plan_dict(case, one.placed, one.method, one.rules),
                "prediction": prediction(scenario, one.placed, one.method, one.rules),
            }
            for one in reached[1 : top + 1]
            if one.placed is not None
        ],
        baseline=_baseline(scenario, best.value),
        **common(scenario),
    ), best


def _with_caps(
    scenario: PowerScenario, result: Result, best: Found | None, top: int
) -> tuple[Result, Integers | None, Capped | None]:
    """Return the answer with caps and the one without as an alternative; without, where the rules alone allow more."""
    began, case = time.perf_counter(), scenario.case
    method = scenario.methods[0] if best is None else best.method
    sign = 1.0 if case.sense == "max" else -1.0
    held, capped, own, found = hold(scenario, None if best is None else best.placed), None, case, best
    for _ in range(_RETRIES if len(held.nodes) else 0):
        own = held_case(case, held, method)
        found = best_by(own, method, time.perf_counter() + TIME_LIMIT_S / 4)
        if found.placed is None or found.value is None:
            break
        if best is not None and best.value is not None and sign * found.value < sign * best.value:
            break
        tried = policy_of(scenario, held, found.placed)
        broken = [place for place, choice in enumerate(tried.choices) if not choice.kept]
        if not broken:
            capped = tried
            break
        held = fewer(held, broken)
    if capped is None or found is None or found.placed is None:
        if result.prediction is not None:  # the rules alone allow more: no caps are set
            none = {"capped_s_per_day": 0.0, "loss": dict.fromkeys(case.workloads, 0.0)}
            result = replace(result, prediction=result.prediction | none)
        return result, None if best is None else best.placed, None
    rules, names = rules_of(case, method), {f"limit[{case.site.name[node]}]" for node in held.nodes.tolist()}
    others = [] if result.plan is None else [{"plan": result.plan, "prediction": result.prediction}]
    capping = binding_part(scenario, held, capped)
    return (
        replace(
            result,
            status="feasible",
            objective=objective(scenario, found.value),
            best_bound=None,
            gap=None,
            solve_time_s=(result.solve_time_s or 0.0) + time.perf_counter() - began,
            plan=plan_dict(case, found.placed, method, rules) | plan_part(scenario, capped),
            prediction=with_caps(scenario, held, capped, prediction(scenario, found.placed, method, rules)),
            binding=capping
            + [one for one in binding(own, found.placed, found.rules) if one["constraint"] not in names],
            alternatives=[*others, *result.alternatives][:top],
            why_not=[],
            relaxation=[],
        ),
        found.placed,
        capped,
    )


def _simulated(
    scenario: PowerScenario, result: Result, placed: Integers | None, capped: Capped | None, asked: Simulated | None
) -> Result:
    """Return an answer with a simulation of its placement beside the prediction."""
    if asked is None or placed is None or result.prediction is None:
        return result
    seen = simulation_part(scenario, placed, capped, asked.weeks, asked.seed)
    return replace(result, prediction=result.prediction | {"simulated": seen})


def best_by(case: Case, method: str, until: float) -> Found:
    """Find the best placement by one rule.

    Parameters
    ----------
    case : Case
        The question.
    method : str
        The rule.
    until : float
        When to stop, on `time.perf_counter` [s].
    """
    rules = rules_of(case, method)
    relaxed = relax(case, rules, until)
    if relaxed is None:
        return Found(method, rules, None, None, None, None)
    if case.share is not None:
        return _by_shares(case, method, rules, relaxed, until)
    found = _found(case, method, rules, relaxed, place(case, rules, relaxed, until), relaxed.value)
    if (found.value is not None and found.value == found.bound) or not _few(case):
        return found
    placed, bound = closer(case, rules, relaxed.cuts, until)
    if bound is None:
        return Found(method, rules, None, None, None, None)
    tighter = min(bound, relaxed.value) if case.sense == "max" else max(bound, relaxed.value)
    better = found.placed if placed is None else placed
    return found if better is None else _found(case, method, rules, relaxed, better, tighter)


def _few(case: Case) -> bool:
    return int(case.site.fits[case.site.racks].sum()) <= MOST_INTEGERS


def _found(case: Case, method: str, rules: tuple[Rule, ...], relaxed: Relaxed, placed: Integers, bound: float) -> Found:
    """Return a placement with its value and bound; none where servers that are needed are missing."""
    if (placed.sum(axis=0) < case.least).any():
        return Found(method, rules, relaxed, None, None, None)
    value = float(case.value @ placed.sum(axis=0))
    if case.sense == "max":
        bound = max(value, np.floor(bound + 1e-6) if (case.value == 1).all() else bound)
    else:
        bound = min(value, max(bound, float(case.value @ case.least)))
    return Found(method, rules, relaxed, placed, value, float(bound))


def _by_shares(case: Case, method: str, rules: tuple[Rule, ...], relaxed: Relaxed, until: float) -> Found:
    """Return the placement of the most servers divided by shares, and the bound.

    Notes
    -----
    The root takes so many by the rule itself. The relaxation divides parts of servers; whole ones may do better by a
    few, so that the first number of whole servers whose own relaxation has no answer is what proves more impossible.
    """
    room = most_servers(case, rules)
    known = int(np.floor(relaxed.counts.sum() + 1e-6))
    placed = place(case, rules, relaxed, until, min(known, room))
    servers = int(placed.sum())
    most = min(max(known, servers), room)
    while most < room:
        if time.perf_counter() > until:
            most = room  # what is proved without the relaxation
        elif relax(case, rules, until, exact=case.apportioned(most + 1)) is None:
            break
        else:
            most += 1
    for more in range(most, servers, -1)[:_TRIED]:
        if time.perf_counter() > until:
            break
        own = relax(case, rules, until, exact=case.apportioned(more))
        tried = (
            None if own is None else towards(case, rules, place(case, rules, own, until, more), case.apportioned(more))
        )
        if tried is not None:
            placed, servers = trimmed(tried, case.apportioned(more)), more
            break
    while servers < most and _few(case) and time.perf_counter() < until:
        found, bound = closer(case, rules, relaxed.cuts, until, case.apportioned(most))
        if found is not None:
            placed, servers = found, most
        elif bound is None:
            most -= 1
        else:
            break
    return _found(case, method, rules, relaxed, placed, float(case.value @ case.apportioned(most)))


def most_servers(case: Case, rules: Sequence[Rule]) -> int:
    """Return the most servers, divided by shares, that the root and their own numbers allow."""
    low, high = 0, int(case.site.slots.sum())
    while low < high:
        middle = (low + high + 1) // 2
        counts = case.apportioned(middle)
        root = all(bool(rule.allows(counts[None], np.zeros(1, int))[0]) for rule in rules)
        low, high = (middle, high) if root and (counts <= case.most).all() else (low, middle - 1)
    return low


def predict(scenario: PowerScenario, *, simulate: Simulated | None = None) -> Result:
    """Cost the placement that a scenario gives.

    Parameters
    ----------
    scenario : PowerScenario
        The question with its plan.
    simulate : Simulated
        Simulation of it at 1 s; none if left out.

    Returns
    -------
    Result
        ``feasible``, or ``infeasible`` with the nodes whose limits it exceeds.

    Raises
    ------
    InputError
        The plan names racks or workloads that there are not, or more servers than fit a rack.
    ValueError
        The scenario gives no plan.
    """
    began, case = time.perf_counter(), scenario.case
    capping = scenario.question.policy.capping == "two-threshold"
    held = None
    if capping:
        nodes = given_nodes(scenario)
        held = Held(nodes, np.zeros((len(nodes), len(case.workloads)), np.int64), rise_of(scenario), None)
    asked = scenario if held is None else replace(scenario, case=lifted(case, held.nodes))
    given = given_placement(asked)
    why, relaxation, capped = given.why, given.relaxation, None
    if given.placed is not None and held is not None:
        capped = policy_of(scenario, held, given.placed)
        why, relaxation = refusal(scenario, capped)
    if given.placed is None or why:
        return Result(
            status="infeasible",
            objective=objective(scenario, None),
            solve_time_s=time.perf_counter() - began,
            why_not=why,
            relaxation=relaxation,
            **common(scenario),
        )
    value = float(case.value @ given.placed.sum(axis=0))
    rules = rules_of(case, given.method)
    told, said = (
        plan_dict(case, given.placed, given.method, rules),
        prediction(scenario, given.placed, given.method, rules),
    )
    bound = binding(asked.case, given.placed, given.rules)
    if held is not None and capped is not None:
        told, said = told | plan_part(scenario, capped), with_caps(scenario, held, capped, said)
        bound = binding_part(scenario, held, capped) + bound
    result = Result(
        status="feasible",
        objective=objective(scenario, value),
        solve_time_s=time.perf_counter() - began,
        plan=told,
        prediction=said,
        binding=bound,
        **common(scenario),
    )
    return _simulated(scenario, result, given.placed, capped, simulate)


def _baseline(scenario: PowerScenario, best: float) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    given = given_placement(scenario)
    if given.placed is None:
        return None
    value = float(scenario.case.value @ given.placed.sum(axis=0))
    better = best / value if scenario.case.sense == "max" else value / best
    return {
        "plan": plan_dict(scenario.case, given.placed, given.method, given.rules),
        "prediction": prediction(scenario, given.placed, given.method, given.rules),
        "gain": better if value and best else None,
    }
