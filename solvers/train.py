"""The best training plan by exhaustion of the stated space, through the equations that explain one plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel import terms
from perfmodel.context_parallel import exchange_size
from perfmodel.intervals import gain_interval, step_interval
from perfmodel.job import Job
from perfmodel.memory import PARTS, Memory, available_bytes, host_bytes
from perfmodel.plan import Plan, plan_to_dict
from perfmodel.power import clock_share
from perfmodel.power.training import energy_dict, least_energy_j, training_power
from perfmodel.provenance import provenance
from perfmodel.training import predict_step
from perfmodel.utilisation import ideal_step_s, utilisation
from solvers.backend import relative_gap
from solvers.power_limit import binding, not_met, raised, written
from solvers.result import Objective, Result
from solvers.scenario import TrainScenario, usd_per_hour
from solvers.train_relaxation import host_relaxation, memory_relaxation, relaxations
from solvers.train_search import Evaluated, evaluate
from solvers.train_space import Space, space

DAY_S = 86_400.0

PRICED_S = 5.0
"""Searches that take longer are not done again to find what the limit of a node is worth [s]."""


def plan(
    scenario: TrainScenario,
    *,
    top: int = 5,
    time_limit_s: float | None = None,
    gap: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Find the best plan of a training scenario, prove it by exhaustion, and predict it.

    Parameters
    ----------
    scenario : TrainScenario
        The question.
    top : int
        How many further plans to list, the best of each other layout (tp, pp, dp, cp, ep).
    time_limit_s : float
        Wall time after which the best plan so far is returned, with a bound that holds for every plan [s].
    gap : float
        Relative distance from the bound at which the search may stop; None to exhaust the space.
    progress : callable
        Called with the share of the space that is done.

    Returns
    -------
    Result
        ``optimal`` when the space was exhausted, ``feasible`` when it stopped at `gap`, ``time_limit`` when time ran
        out, ``infeasible`` with the smallest relaxation.
    """
    began = time.perf_counter()
    unlimited, candidates = scenario, space(scenario.job, scenario.question.search)
    deadline = None if time_limit_s is None else began + time_limit_s
    by_energy = scenario.question.objective == "energy_j"
    if not scenario.caps_w:
        return _no_cap(scenario, began)
    scenario, found, count, complete = _searched(scenario, candidates, progress, deadline, gap)
    searched_s = time.perf_counter() - began
    job = scenario.job
    capacity = available_bytes(job)
    fits = found.fits(job)
    common: dict[str, Any] = {
        "kind": "train",
        "candidates": count,
        "why_not": _why_not(job, candidates, found),
        "scenario": scenario.resolved,
        "provenance": provenance(job),
    }
    if not fits.any():
        return _nothing_fits(unlimited, found, common, began)
    order = np.flatnonzero(fits)[np.argsort(found.score[fits], kind="stable")]
    chosen = order[0]
    described, breakdown = explained(scenario, found.plan.taken(np.array([chosen])))
    objective = _objective(scenario, described)
    value = objective.value
    assert value is not None
    bound = value if complete else _least(unlimited)
    others = _distinct_layouts(found.plan, order)[1 : top + 1]
    return Result(
        status="optimal" if complete else "feasible" if found.on_target else "time_limit",
        objective=objective,
        best_bound=bound,
        gap=relative_gap(value, bound),
        solve_time_s=time.perf_counter() - began,
        plan=_plan_dict(scenario, found.plan, int(chosen)),
        prediction=described,
        breakdown=breakdown,
        binding=[
            *_binding(found, int(chosen), fits, capacity, "J" if by_energy else "s"),
            *_power_binding(unlimited, scenario, candidates, value, again=complete and searched_s < PRICED_S),
        ],
        alternatives=[_entry(scenario, found.plan, int(index)) for index in others],
        pareto={
            "objectives": ["energy_j" if by_energy else "step_time_s", "memory_bytes.reserved_peak"],
            "points": [_entry(scenario, found.plan, int(index)) for index in _pareto(found, order)],
        },
        baseline=_baseline(unlimited, described),
        **common,
    )


def predict(scenario: TrainScenario) -> Result:
    """Cost the plan that a scenario gives.

    Raises
    ------
    ValueError
        Where it gives none.
    """
    if scenario.plan is None:
        raise ValueError("the scenario has no plan to predict")
    began = time.perf_counter()
    limits, unlimited = scenario.question.power, scenario.job.machine
    if not scenario.given_cap_w >= unlimited.accelerator.power.least:
        return _no_cap(scenario, began)
    scenario = scenario.held_to(scenario.given_cap_w)
    assert scenario.plan is not None
    job = scenario.job
    described, breakdown = explained(scenario, scenario.plan)
    needed, capacity = described["memory_bytes"]["reserved_peak"], available_bytes(job)
    offloaded, hosted = described["memory_bytes"]["offloaded"], host_bytes(job)
    common: dict[str, Any] = {
        "kind": "train",
        "candidates": 1,
        "scenario": scenario.resolved,
        "provenance": provenance(job),
    }
    if needed > capacity or offloaded > hosted:
        relaxation = [memory_relaxation(job, needed)] if needed > capacity else []
        if offloaded > hosted:
            relaxation.append(host_relaxation(job, offloaded))
        return Result(
            status="infeasible",
            objective=Objective(scenario.question.objective, None, _unit(scenario), "min"),
            why_not=[
                {
                    "reason": "out of memory" if needed > capacity else "out of host memory",
                    "candidates": 1,
                    "nearest": {"plan": _plan_dict(scenario, scenario.plan), "prediction": described},
                }
            ],
            relaxation=relaxation,
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    return Result(
        status="feasible",
        objective=_objective(scenario, described),
        plan=_plan_dict(scenario, scenario.plan),
        prediction=described,
        breakdown=breakdown,
        binding=[
            {"constraint": "memory", "slack": capacity - needed, "shadow_price": None, "unit": "bytes"},
            *binding(job.machine, limits, None, _unit(scenario)),
        ],
        solve_time_s=time.perf_counter() - began,
        **common,
    )


def _searched(
    scenario: TrainScenario,
    candidates: Space,
    progress: Callable[[float], None] | None,
    deadline: float | None,
    gap: float | None,
) -> tuple[TrainScenario, Evaluated, int, bool]:
    """Return the question at the best cap, its plans, the number of plans of all caps, and whether all were costed."""
    by_energy = scenario.question.objective == "energy_j"
    least = _least(scenario) if by_energy else ideal_step_s(scenario.job)
    target = None if gap is None or gap >= 1 else least / (1 - gap)
    best: tuple[float, TrainScenario, Evaluated] | None = None
    count, complete = 0, True
    for cap in scenario.caps_w:
        held = scenario.held_to(cap)
        found = evaluate(held.job, candidates, progress, deadline, target, by_energy=by_energy)
        count += len(found.step_time_s)
        complete = complete and found.complete
        score = float(np.min(found.score[found.fits(held.job)], initial=np.inf))
        if best is None or score < best[0]:
            best = score, held, found
        if found.on_target:
            break
    assert best is not None
    return best[1], best[2], count, complete


def _power_binding(
    unlimited: TrainScenario, scenario: TrainScenario, candidates: Space, value: float, *, again: bool
) -> list[dict[str, Any]]:
    """Return the limit of a node, with what 1 kW more brings where the search may be done again."""
    limits, machine = unlimited.question.power, scenario.job.machine
    if limits.node_limit is None:
        return []
    gained = None
    if again:
        more = unlimited.question.model_copy(update={"power": raised(limits)})
        wider, found, _, _ = _searched(replace(unlimited, question=more), candidates, None, None, None)
        fastest = int(np.flatnonzero(found.fits(wider.job))[np.argmin(found.score[found.fits(wider.job)])])
        reached = _objective(wider, explained(wider, found.plan.taken(np.array([fastest])))[0]).value
        gained = None if reached is None else min(reached - value, 0.0)
    return binding(machine, limits, gained, _unit(scenario))


def _no_cap(scenario: TrainScenario, began: float) -> Result:
    """Answer a question in which a node draws more than its limit at any cap."""
    return Result(
        kind="train",
        status="infeasible",
        objective=Objective(scenario.question.objective, None, _unit(scenario), "min"),
        solve_time_s=time.perf_counter() - began,
        candidates=0,
        scenario=scenario.resolved,
        provenance=provenance(scenario.job),
        **not_met(scenario.job.machine, scenario.question.power, scenario.question.search.power_cap_w),
    )


def _plan_dict(scenario: TrainScenario, plans: Plan, index: int = 0) -> dict[str, Any]:
    return plan_to_dict(plans, index) | {"power_cap_w": written(scenario.job.machine)}


def explained(scenario: TrainScenario, one: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prediction and breakdown of one plan, as the plan JSON holds them."""
    job = scenario.job
    predicted = predict_step(job, one)
    tree = terms.at(predicted.step, 0)
    breakdown = terms.to_dict(tree)
    seconds = breakdown["seconds"]
    low, high = (float(factor) for factor in step_interval(job, tree))
    tokens = job.global_batch * job.seq_len
    mfu, hfu = (float(share[0]) for share in utilisation(job, one, np.array([seconds])))
    power = training_power(job, one, predicted)
    hourly = usd_per_hour(job.machine)
    total = scenario.question.workload.tokens
    days = None if total is None else total / tokens * seconds / DAY_S
    described: dict[str, Any] = {
        "step_time_s": seconds,
        "step_time_s_p10": seconds * low,
        "step_time_s_p90": seconds * high,
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_per_gpu": tokens / seconds / job.ranks,
        "tokens_per_s_per_gpu_p10": tokens / (seconds * high) / job.ranks,
        "tokens_per_s_per_gpu_p90": tokens / (seconds * low) / job.ranks,
        "mfu": mfu,
        "hfu": hfu,
        "memory_bytes": _memory(predicted.memory),
        "memory_available_bytes": available_bytes(job),
        "micro_batches": int(one.micro_batches(job.global_batch).reshape(-1)[0]),
        "cp_exchange_size": int(exchange_size(job, one).reshape(-1)[0]),
        "gpus": job.ranks,
        "clock_share": clock_share(job.machine.accelerator),
        **energy_dict(power, seconds, high),
        "facility_power_w": scenario.question.power.facility_w(float(power.all_w[0])),
        "cost_usd_per_hour": hourly,
        "training_days": days,
        "cost_usd": None if days is None or hourly is None else days * 24 * hourly,
    }
    return described, breakdown


def _memory(memory: Memory) -> dict[str, float]:
    names = (*PARTS, "allocated_peak", "reserved_peak", "offloaded")
    return {name: float(np.asarray(getattr(memory, name)).reshape(-1)[0]) for name in names}


def _unit(scenario: TrainScenario) -> str:
    return {"step_time_s": "s", "energy_j": "J", "training_days": "d", "cost_usd": "USD"}[scenario.question.objective]


def _objective(scenario: TrainScenario, described: dict[str, Any]) -> Objective:
    name = scenario.question.objective
    return Objective(name, described[name], _unit(scenario), "min")


def _least(scenario: TrainScenario) -> float:
    """Return what no plan can beat, in the objective's unit."""
    name, job = scenario.question.objective, scenario.job
    if name == "energy_j":
        return min(least_energy_j(scenario.held_to(cap).job) for cap in scenario.caps_w)
    seconds = ideal_step_s(job)
    if name == "step_time_s":
        return seconds
    total = scenario.question.workload.tokens
    assert total is not None
    days = total / (job.global_batch * job.seq_len) * seconds / DAY_S
    return days if name == "training_days" else days * 24 * (usd_per_hour(job.machine) or 0.0)


def _entry(scenario: TrainScenario, plans: Plan, index: int) -> dict[str, Any]:
    described, _ = explained(scenario, plans.taken(np.array([index])))
    return {"plan": _plan_dict(scenario, plans, index), "prediction": described}


def _distinct_layouts(plans: Plan, order: NDArray[np.intp]) -> list[int]:
    """Return the first plan, in the given order, of every layout (tp, pp, dp, cp, ep)."""
    layout = np.stack([getattr(plans, name)[order] for name in ("tp", "pp", "dp", "cp", "ep")], axis=1)
    _, first = np.unique(layout, axis=0, return_index=True)
    return [int(order[position]) for position in np.sort(first)]


def _pareto(found: Evaluated, order: NDArray[np.intp], most: int = 12) -> list[int]:
    """Return plans that no other beats in both time and memory, fastest first, thinned evenly to `most`."""
    needed = found.required_bytes[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(needed)[:-1]])
    front = order[needed < best_before * (1 - 1e-9)]
    if len(front) > most:
        front = front[np.unique(np.linspace(0, len(front) - 1, most).round().astype(int))]
    return [int(index) for index in front]


def _binding(
    found: Evaluated, chosen: int, fits: NDArray[np.bool_], capacity: float, unit: str
) -> list[dict[str, Any]]:
    """Return the memory constraint: its slack, and what the cheapest faster plan would pay for more of it.

    The shadow price is that of a step: what is saved per GiB more, at the plan that saves most per GiB.
    """
    faster = ~fits & (found.score < found.score[chosen])
    price = 0.0
    if faster.any():
        saved = found.score[chosen] - found.score[faster]
        price = -float(np.max(saved / (found.required_bytes[faster] - capacity)))
    slack = float(capacity - found.required_bytes[chosen])
    return [
        {
            "constraint": "memory",
            "slack": slack,
            "shadow_price": price * 2**30,
            "unit": "bytes",
            "shadow_price_unit": f"{unit}/GiB",
        }
    ]


def _why_not(job: Job, candidates: Space, found: Evaluated) -> list[dict[str, Any]]:
    reasons: list[dict[str, Any]] = []
    for reason, needed, capacity in (
        ("out of memory", found.required_bytes, available_bytes(job)),
        ("out of host memory", found.offloaded_bytes, host_bytes(job)),
    ):
        over = np.flatnonzero(needed > capacity)
        if len(over):
            nearest = int(over[np.argmin(needed[over])])
            reasons.append(
                {
                    "reason": reason,
                    "candidates": len(over),
                    "nearest": {
                        "plan": plan_to_dict(found.plan, nearest),
                        "needed_bytes": float(needed[nearest]),
                        "available_bytes": capacity,
                    },
                }
            )
    reasons += [
        {"reason": f"layout: {reason}", "candidates": count, "nearest": None}
        for reason, count in candidates.dropped.most_common()
    ]
    return reasons


def _baseline(scenario: TrainScenario, best: dict[str, Any]) -> dict[str, Any] | None:
    """Return what runs today beside the best, with the gain; errors that both share cancel in it."""
    if scenario.plan is None:
        return None
    scenario = scenario.held_to(scenario.given_cap_w)
    assert scenario.plan is not None
    described, _ = explained(scenario, scenario.plan)
    gain = described["step_time_s"] / best["step_time_s"]
    low, high = gain_interval()
    return {
        "plan": _plan_dict(scenario, scenario.plan),
        "prediction": described,
        "gain": gain,
        "gain_p10": gain * low,
        "gain_p90": gain * high,
        "fits": described["memory_bytes"]["reserved_peak"] <= available_bytes(scenario.job)
        and described["memory_bytes"]["offloaded"] <= host_bytes(scenario.job),
    }


def _nothing_fits(scenario: TrainScenario, found: Evaluated, common: dict[str, Any], began: float) -> Result:
    """Answer a question that has no plan: name what conflicts and the smallest changes that would do."""
    relaxation = relaxations(scenario, found) if found.complete else []
    return Result(
        status="infeasible" if found.complete else "time_limit",
        objective=Objective(scenario.question.objective, None, _unit(scenario), "min"),
        best_bound=None if found.complete else _least(scenario),
        solve_time_s=time.perf_counter() - began,
        relaxation=relaxation,
        **common,
    )
