"""The best deployment for a model and its requests, and what a given one does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hardware.faults import InputError
from solvers import serve_groups as groups
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.power_limit import allowed_w, not_met
from solvers.result import Result
from solvers.serve_answer import (
    OBJECTIVES,
    Seen,
    binding,
    breakdown,
    described,
    objective,
    plan_dict,
    serve_provenance,
    steady,
    unbeatable,
)
from solvers.serve_case import Case, case_of
from solvers.serve_found import Searched
from solvers.serve_infeasible import nearest, no_layout
from solvers.serve_mix import Mix, mixed
from solvers.serve_pairs import Known, score
from solvers.serve_question import ServeArrivals, ServePlan
from solvers.serve_rank import Place, baseline, case_at, entry, front, other_layouts, priced, ranking, reasons
from solvers.serve_scenario import ServeScenario
from solvers.serve_search import search
from solvers.serve_space import caps

TIME_LIMIT_S = 60.0
"""How long to search, where nothing else is said [s]."""

MIX_LEAST_S, MIX_MOST_S = 0.5, 10.0
"""How long the choice of several layouts may take of what is left [s]."""

MIX_ROUNDS = 4
"""How often units of several layouts are chosen anew where together they miss an objective."""

LESS_LOAD = 0.8
"""Share of what instances that make tokens sustain that is counted on where requests wait for them too long [1]."""

PRICED_S = 5.0
"""Searches that take longer are not done again to find what limits are worth [s]."""


def plan(
    scenario: ServeScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float = OPTIMAL_GAP
) -> Result:
    """Find the best deployment by exhaustion of the stated space, and say what the limits cost.

    Parameters
    ----------
    scenario : ServeScenario
        The question.
    top : int
        How many alternatives to list, the best of each other layout.
    time_limit_s : float
        Wall time of the search; `TIME_LIMIT_S` if left out [s].
    gap : float
        Relative gap at which the search of pairs of pools, and the choice of several layouts, may stop [1].

    Returns
    -------
    Result
        ``optimal``; ``feasible`` where time ran out or a pair of pools was not ruled out; ``infeasible`` with the
        nearest objectives, rate and number of nodes that would do.

    Raises
    ------
    InputError
        The weights fit in no layout that is allowed.
    """
    with np.errstate(all="ignore"):  # what cannot run has times that are infinite
        return _planned(scenario, top, time_limit_s, gap)


def _planned(scenario: ServeScenario, top: int, time_limit_s: float | None, gap: float) -> Result:
    began = time.perf_counter()
    if not caps(scenario):
        return _no_cap(scenario, began)
    deadline = began + (TIME_LIMIT_S if time_limit_s is None else time_limit_s)
    known: Known = {}
    searched = search(scenario, deadline=deadline, gap=gap if gap > OPTIMAL_GAP else 0.0, known=known)
    name = scenario.question.objective
    common: dict[str, Any] = {
        "kind": "serve",
        "candidates": searched.candidates,
        "scenario": scenario.resolved,
        "provenance": serve_provenance(scenario),
    }
    searched_s = time.perf_counter() - began
    if not searched.found and not searched.overloaded and not scenario.also and searched.complete:
        raise InputError([no_layout(scenario)])
    ranked = ranking(scenario, searched.found)
    mixed_ = _mixed(scenario, ranked, began, deadline, gap, known)
    if mixed_ is not None:
        others = [*ranked[:1], *other_layouts(ranked)][:top]
        return replace(mixed_, candidates=searched.candidates, alternatives=[entry(scenario, one) for one in others])
    if not ranked and searched.stopped:
        return Result(
            status="time_limit",
            objective=objective(name, None),
            best_bound=unbeatable(scenario),
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    if not ranked:
        why, relaxation = nearest(scenario, searched)
        return Result(
            status="infeasible",
            objective=objective(name, None),
            why_not=why,
            relaxation=relaxation,
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    case = case_at(scenario, ranked[0])
    seen = steady(case)
    told = described(case, seen)
    value = told[name]
    bound = unbeatable(scenario) if searched.stopped else _open(scenario, ranked[0], searched, value)
    proved = relative_gap(value, bound) <= OPTIMAL_GAP
    room = binding(case, seen)
    beside = {place: entry(scenario, place) for place in other_layouts(ranked)[:top]}
    return Result(
        status="time_limit" if searched.stopped else "optimal" if proved else "feasible",
        objective=objective(name, value),
        best_bound=bound,
        gap=relative_gap(value, bound),
        plan=plan_dict(case),
        prediction=told,
        breakdown=None if scenario.offline else breakdown(case, seen),
        binding=priced(scenario, ranked[0], room, value, known) if searched_s < PRICED_S else room,
        alternatives=list(beside.values()),
        why_not=reasons(scenario, searched),
        pareto=front(scenario, searched.found, beside),
        baseline=baseline(scenario, value),
        solve_time_s=time.perf_counter() - began,
        **common,
    )


def _open(scenario: ServeScenario, best: Place, searched: Searched, value: float) -> float:
    """Return what the pairs of pools that were not computed cannot beat, or the best where they are no better."""
    scored = float(score(scenario, best.found)[best.row])
    more = max(searched.open_score / scored, 1.0) if scored > 0 else min(searched.open_score / scored, 1.0)
    # what is as small as may be is either the negative score or goes with its inverse
    _, sense = OBJECTIVES[scenario.question.objective]
    return value / more if sense == "min" and scored > 0 else value * more


def predict(scenario: ServeScenario, *, simulate: bool = False, seed: int = 1) -> Result:
    """Cost the deployment that a scenario gives.

    Parameters
    ----------
    scenario : ServeScenario
        The question with its plan.
    simulate : bool
        Whether times of requests come from a simulation, with those of the equations beside them.
    seed : int
        Of the simulation.

    Returns
    -------
    Result
        ``feasible``, or ``infeasible`` where the weights do not fit or requests come faster than they are answered.

    Raises
    ------
    ValueError
        The scenario gives no plan.
    """
    if scenario.question.plan is None:
        raise ValueError("the scenario has no plan to predict")
    with np.errstate(all="ignore"):  # with slower steps the load may be too much, and times infinite
        return _predicted(scenario, scenario.question.plan, seed if simulate else None)


def _no_cap(scenario: ServeScenario, began: float) -> Result:
    """Answer a question in which a node draws more than its limit at any cap."""
    return Result(
        kind="serve",
        status="infeasible",
        objective=objective(scenario.question.objective, None),
        solve_time_s=time.perf_counter() - began,
        candidates=0,
        scenario=scenario.resolved,
        provenance=serve_provenance(scenario),
        **not_met(scenario.machine, scenario.question.power, scenario.question.search.power_cap_w),
    )


def _predicted(scenario: ServeScenario, given: ServePlan, seed: int | None) -> Result:
    if allowed_w(scenario.machine, scenario.question.power) < scenario.machine.accelerator.power.least:
        return _no_cap(scenario, time.perf_counter())
    if given.groups:
        return _of_groups(scenario, given, None, time.perf_counter())
    began = time.perf_counter()
    case = case_of(scenario, given)
    name = scenario.question.objective
    common: dict[str, Any] = {
        "kind": "serve",
        "candidates": 1,
        "scenario": scenario.resolved,
        "provenance": serve_provenance(scenario, case.server),
    }
    if not case.fits:
        why, relaxation = too_large(case)
        return Result(
            status="infeasible",
            objective=objective(name, None),
            why_not=why,
            relaxation=relaxation,
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    seen = steady(case)
    told = described(case, seen)
    if scenario.by_themselves and not seen.requests_per_s[0]:
        idle = case.latency(case.pools(), 1e-9)
        reached = {name: float(idle.of(name)) for name in scenario.question.slo.limits}
        limits = scenario.question.slo.limits
        return Result(
            status="infeasible",
            objective=objective(name, None),
            why_not=[{"reason": "a request alone misses the objectives", "candidates": 1, "nearest": reached}],
            relaxation=[
                {"constraint": f"slo.{one}", "now": limits[one], "needed": value, "unit": "s"}
                for one, value in reached.items()
                if value > limits[one]
            ],
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    if seen.load is not None and seen.load >= 1:
        return Result(
            status="infeasible",
            objective=objective(name, None),
            why_not=[
                {
                    "reason": "requests come faster than they are answered",
                    "candidates": 1,
                    "nearest": {"plan": plan_dict(case), "requests_per_s": seen.requests_per_s[0]},
                }
            ],
            relaxation=[
                {
                    "constraint": "workload.arrivals.rate_rps",
                    "now": scenario.rate,
                    "needed": seen.requests_per_s[0],
                    "unit": "1/s",
                }
            ],
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    if seed is not None:
        seen, told = _simulated(case, seen, told, seed)
    return Result(
        status="feasible",
        objective=objective(name, told[name]),
        plan=plan_dict(case),
        prediction=told,
        breakdown=None if scenario.offline else breakdown(case, seen),
        binding=binding(case, seen),
        solve_time_s=time.perf_counter() - began,
        **common,
    )


def _mixed(
    scenario: ServeScenario, ranked: list[Place], began: float, deadline: float, gap: float, known: Known
) -> Result | None:
    """Return the answer of several layouts or kinds of accelerators, where it is better than that of one."""
    question = scenario.question
    wanted = (question.search.mixed or bool(scenario.also)) and not question.search.replicas
    rated = scenario.rate is not None and question.objective.startswith(("goodput", "output", "cost"))
    if not (wanted and rated) or "e2e_mean" in question.slo.limits:
        return None
    if not isinstance(question.workload.arrivals, ServeArrivals):
        return None
    unit = scenario.usd_per_hour(1) if question.objective.startswith("cost") else 1.0
    best = min((float(one.found.gpus[one.row]) for one in ranked[:1]), default=np.inf) * (unit or 1.0)
    tables = [known, *({} for _ in scenario.kinds[1:])]

    def chosen(tightened: Mapping[str, float]) -> Mix | None:
        left_s = min(max(deadline - time.perf_counter(), MIX_LEAST_S), MIX_MOST_S)
        return mixed(scenario, tables, tightened, time_limit_s=left_s, gap=gap)

    mix = chosen({})
    if mix is None or mix.cost >= best * (1 - 1e-9):
        return None
    kept = [found for way in ("limits", "load") if (found := _within(scenario, mix, chosen, way)) is not None]
    if not kept:
        return None
    cheapest = min(kept, key=lambda one: one.cost)
    if cheapest.cost >= best * (1 - 1e-9):
        return None
    # the bound is that of units which need not go together
    return _of_groups(scenario, groups.plan_of(scenario, cheapest), replace(cheapest, bound=mix.bound), began)


def _within(
    scenario: ServeScenario, mix: Mix, chosen: Callable[[Mapping[str, float]], Mix | None], way: str
) -> Mix | None:
    """Return a mix whose requests meet the objectives together; None where a few choices do not find one.

    Where they do not, as units wait for one another, either their limits are tightened or instances that make tokens
    are loaded less.
    """
    tightened: dict[str, float] = {}
    for _ in range(MIX_ROUNDS):
        missed = groups.missed(scenario, groups.plan_of(scenario, mix))
        if not missed:
            return mix
        shares = missed if way == "limits" else {"decode": LESS_LOAD}
        tightened |= {name: tightened.get(name, 1.0) * share for name, share in shares.items()}
        another = chosen(tightened)
        if another is None:
            return None
        mix = another
    return None


def _of_groups(scenario: ServeScenario, given: ServePlan, mix: Mix | None, began: float) -> Result:
    """Return the answer of a plan of several groups."""
    parts = groups.groups_of(scenario, given)
    name = scenario.question.objective
    rate = scenario.rate
    fit = all(one.case.fits for one in parts)
    seen = groups.seen_of(scenario, parts, rate) if fit and rate is not None else None
    common: dict[str, Any] = {
        "kind": "serve",
        "candidates": 1,
        "scenario": scenario.resolved,
        "provenance": serve_provenance(scenario, parts[0].case.server),
    }
    if seen is None or seen.load is None or seen.load >= 1:
        reason = "a group has no room for a request" if not fit else "requests come faster than they are answered"
        if rate is None:
            reason = "a plan of several groups is predicted at a rate"
        return Result(
            status="infeasible",
            objective=objective(name, None),
            why_not=[{"reason": reason, "candidates": 1, "nearest": {"plan": groups.plan_dict(given)}}],
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    told = groups.described_groups(scenario, given, parts, seen)
    value = told[name]
    bound = None
    if mix is not None and rate is not None:
        made = scenario.demand.output_tokens * rate
        bound = {
            "goodput_requests_per_s_per_gpu": rate / mix.bound,
            "output_tokens_per_s_per_gpu": made / mix.bound,
            "cost_usd_per_million_tokens": mix.bound / made / 3600 * 1e6,
        }[name]
    gap = None if bound is None else relative_gap(value, bound)
    main = groups.heaviest(parts).case
    first = next((one.case for one in parts if one.asked.phase == "prefill"), None)
    return Result(
        status="optimal" if gap is not None and gap <= OPTIMAL_GAP else "feasible",
        objective=objective(name, value),
        best_bound=bound,
        gap=gap,
        plan=groups.plan_dict(given),
        prediction=told,
        breakdown=breakdown(main, seen, first),
        binding=binding(main, seen),
        solve_time_s=time.perf_counter() - began,
        **common,
    )


def _simulated(case: Case, seen: Seen, told: dict[str, Any], seed: int) -> tuple[Seen, dict[str, Any]]:
    """Return what a simulation says, with the equations' times beside it."""
    from solvers.serve_simulate import simulated

    found, preemptions = simulated(case, seen.requests_per_s[0], seed=seed)
    shown = described(case, replace(found, load=seen.load))
    beside = {f"{name}_s": value for name, value in seen.times_s.items()}
    return found, shown | {"preemptions": preemptions, "equations": beside}


def too_large(case: Case) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return why a deployment has no room for a request, and the memory that would do."""
    why, relaxation = [], []
    parts = [("prefill", case.prompts), ("decode", case.tokens)] if case.disaggregated else [("", case.tokens)]
    for name, part in parts:
        if part.slots >= 1:
            continue
        memory, rule = part.memory, case.server.engine.memory
        demand = case.scenario.demand
        longest = demand.prompt_tokens + (1 if name == "prefill" else demand.output_tokens)
        per_token = float(memory.cache) / float(memory.cache_tokens) if float(memory.cache_tokens) else 0.0
        used = float(memory.weights + memory.workspace + memory.context)
        needed = (used + longest * per_token) / rule.fraction
        which = f" of the {name} pool" if name else ""
        heaviest = max(("weights", "workspace", "context"), key=lambda one: float(getattr(memory, one)))
        reason = f"out of memory{which}: {heaviest} leave no room for the cache of one request"
        nearest = {"plan": plan_dict(case), "weights_bytes": float(memory.weights), "cache_bytes": float(memory.cache)}
        why.append({"reason": reason, "candidates": 1, "nearest": nearest})
        now = float(case.server.machine.accelerator.memory.capacity)
        relaxation.append({"constraint": "accelerator.memory.capacity", "now": now, "needed": needed, "unit": "bytes"})
    return why, relaxation
