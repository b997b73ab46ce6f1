"""Where the states of training live: the best layout and placement, what binds, what to buy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hardware.tiers import HBM
from perfmodel import terms
from perfmodel.finetune import OBJECTS, STATES, Finetune, finetunes, of_depth, step_interval_of, step_tree
from perfmodel.plan import plan_to_dict
from perfmodel.power.training import energy_dict, training_power
from perfmodel.provenance import provenance
from perfmodel.training import predict_step
from perfmodel.utilisation import utilisation
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.kv_finetune_place import Placed, Totals, missing_bytes, place
from solvers.kv_finetune_question import SENSES, FinetuneScenario
from solvers.kv_finetune_search import (
    best,
    cost_usd_per_hour,
    next_larger,
    shortest,
    unlimited,
    value,
    with_count,
    with_one_more,
)
from solvers.result import Objective, Result

GIB = 2.0**30
_GB = 1e9
_BINDS = 1e-5
_ROUND = 1e-9


def plan(
    scenario: FinetuneScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float | None = None
) -> Result:
    """Find the training layout and placement of the shortest step.

    Parameters
    ----------
    scenario : FinetuneScenario
        The question.
    top : int
        How many alternatives to list: the best of other layouts.
    time_limit_s : float
        Wall time of the search; none if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.

    Returns
    -------
    Result
        ``optimal`` over the layouts of the search; ``time_limit`` with a bound; or ``infeasible`` with the fewest
        bytes that are missing.
    """
    began = time.perf_counter()
    until = None if time_limit_s is None else began + time_limit_s
    answer = best(scenario, until=until, gap=gap, most=max(top, 0) + 1)
    common = _common(scenario) | {"candidates": answer.seen}
    if not answer.found:
        if answer.bound is None:
            return _infeasible(scenario, answer.missing, common, began)
        return Result(
            status="time_limit",
            objective=_objective(scenario, None),
            best_bound=answer.bound,
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    placed = answer.found[0]
    reached = value(scenario, placed)
    bound = reached if answer.bound is None else answer.bound
    distance = relative_gap(reached, bound)
    return Result(
        status="optimal" if distance <= OPTIMAL_GAP else "feasible" if gap and distance <= gap else "time_limit",
        objective=_objective(scenario, reached),
        best_bound=bound,
        gap=distance,
        solve_time_s=time.perf_counter() - began,
        plan=_plan(placed),
        prediction=_prediction(placed) | {"others": _others(placed), "purchases": _purchases(scenario, placed)},
        breakdown=terms.to_dict(step_tree(placed.asked, placed.resource_s)),
        binding=list(_binding(scenario, placed)),
        alternatives=[{"plan": _plan(other), "prediction": _prediction(other)} for other in answer.found[1 : top + 1]],
        baseline=_baseline(scenario, placed),
        **common,
    )


def predict(scenario: FinetuneScenario) -> Result:
    """Cost the layout and placement that a scenario gives.

    Parameters
    ----------
    scenario : FinetuneScenario
        The question with its plan.

    Returns
    -------
    Result
        ``feasible``, or ``infeasible`` with the tiers that are too small.
    """
    began = time.perf_counter()
    common = _common(scenario) | {"candidates": 1}
    asked, totals, placed = given(scenario)
    if placed is None:
        return _infeasible(scenario, [asked], common, began, totals)
    return Result(
        status="feasible",
        objective=_objective(scenario, value(scenario, placed)),
        solve_time_s=time.perf_counter() - began,
        plan=_plan(placed),
        prediction=_prediction(placed),
        breakdown=terms.to_dict(step_tree(placed.asked, placed.resource_s)),
        binding=list(_binding(scenario, placed)),
        **common,
    )


def given(scenario: FinetuneScenario) -> tuple[Finetune, Totals, Placed | None]:
    """Return the layout that a scenario gives, its shares by tier, and the placement if it fits."""
    if scenario.question.plan is None or scenario.plan is None:
        raise ValueError("the scenario gives no plan")
    wanted = scenario.question.plan
    work = scenario.job
    architecture = work.architecture if wanted.layers is None else of_depth(work.architecture, wanted.layers)
    assert architecture is not None  # the question was refused with a number of layers that cannot be
    work = replace(work, architecture=architecture, seq_len=wanted.seq_len or work.seq_len)
    counts = wanted.devices or {}
    paths = tuple(with_count(path, counts.get(path.name, path.tier.count)) for path in scenario.paths)
    (asked,) = finetunes(work, scenario.plan, paths, delayed=scenario.question.workload.delayed_update)
    resident = wanted.placement["momentum"].get(HBM, 0.0)
    totals: dict[str, dict[str, float]] = {}
    for thing, shares in wanted.placement.items():  # what is written adds up to one but for rounding
        kept = resident if thing in (*STATES, "gradients") else shares.get(HBM, 0.0)
        whole = sum(share for tier, share in shares.items() if tier != HBM)
        kept = kept if whole else 1.0
        totals[thing] = {HBM: kept} | {
            tier: share * (1 - kept) / whole for tier, share in shares.items() if tier != HBM and whole
        }
    return asked, totals, place(asked, interleaved=wanted.interleaved, totals=totals)


def _objective(scenario: FinetuneScenario, value: float | None) -> Objective:
    name = scenario.question.objective
    sense, unit = SENSES[name]
    return Objective(name, value, unit, sense)


def _common(scenario: FinetuneScenario) -> dict[str, Any]:
    return {"kind": "kv", "scenario": scenario.resolved, "provenance": provenance(scenario.job)}


def _plan(placed: Placed) -> dict[str, Any]:
    updates = placed.updates
    written = {
        thing: {tier: share for tier, share in tiers.items() if share > _ROUND}
        for thing, tiers in placed.totals.items()
    }
    return {
        "training": plan_to_dict(placed.asked.plan),
        "placement": written,
        "interleaved": updates["interleaved"],
        "devices": {path.name: path.tier.count for path in placed.asked.paths},
        "seq_len": placed.asked.job.seq_len,
        "layers": placed.asked.job.architecture.depth,
    }


def _prediction(placed: Placed) -> dict[str, Any]:
    asked, seconds = placed.asked, placed.step_time_s
    low, high = step_interval_of(asked, placed.resource_s)
    updates = placed.updates
    tokens, hourly = asked.tokens, cost_usd_per_hour(asked.job, asked.paths)
    elsewhere = updates["interleaved"] + updates["host"]
    whole = predict_step(asked.job, asked.plan)
    power = training_power(asked.job, asked.plan, replace(whole, step=replace(whole.step, seconds=np.array([seconds]))))
    mfu, hfu = utilisation(asked.job, asked.plan, np.array([seconds]))
    return {
        "step_time_s": seconds,
        "step_time_s_p10": seconds * low,
        "step_time_s_p90": seconds * high,
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_p10": tokens / (seconds * high),
        "tokens_per_s_p90": tokens / (seconds * low),
        "mfu": float(mfu[0]),
        "hfu": float(hfu[0]),
        **energy_dict(power, seconds, high),
        "parameters": asked.job.architecture.parameters,
        "micro_batches": asked.micro_batches,
        "updated_by": updates,
        "interleave_every": elsewhere / updates["interleaved"] if updates["interleaved"] > _ROUND else None,
        "memory_bytes": {name: used for name, (_, used) in placed.memory_bytes.items()},
        "memory_available_bytes": {name: room for name, (room, _) in placed.memory_bytes.items()},
        "utilisation": {
            phase: {name: spent / placed.phase_s[phase] for name, spent in times.items() if spent > 0}
            for phase, times in placed.resource_s.items()
        },
        "bytes_per_s": _traffic(placed),
        "cost_usd_per_hour": hourly,
        **_token_price(hourly, seconds / tokens, low, high),
    }


def _token_price(hourly: float | None, seconds_per_token: float, low: float, high: float) -> dict[str, float | None]:
    """Return the price of a million tokens with its interval."""
    price = None if hourly is None else hourly / 3600 * seconds_per_token * 1e6
    ends = {"": 1.0, "_p10": low, "_p90": high}
    return {f"cost_usd_per_million_tokens{end}": None if price is None else price * by for end, by in ends.items()}


def _traffic(placed: Placed) -> dict[str, float]:
    """Return the mean rate of each link, to and from the accelerators, over a step [bytes/s]."""
    rates: dict[str, float] = {}
    for link in {path.link.name: path.link for path in placed.asked.paths}.values():
        for name, rate in ((f"{link.name} in", link.node_up), (f"{link.name} out", link.node_down)):
            busy = sum(times.get(name, 0.0) for times in placed.resource_s.values())
            rates[name] = busy * rate / placed.step_time_s
    return rates


def _binding(scenario: FinetuneScenario, placed: Placed) -> Iterator[dict[str, Any]]:
    """Yield what holds the plan back, with what a GiB, or a GB/s of a tier or link, more would bring."""
    yield from _limit(scenario, placed.step_time_s)
    if scenario.question.objective in ("max_params", "max_context_tokens"):
        yield from _full(scenario, placed)
        return
    seconds, tokens = placed.step_time_s, placed.asked.tokens
    per_second, unit = 1.0, "s"
    if scenario.question.objective == "tokens_per_s":
        per_second, unit = tokens / seconds**2, "tokens/s"
    elif scenario.question.objective == "cost_usd_per_million_tokens":
        per_second, unit = value(scenario, placed) / seconds, "USD"
    for name, (room, used) in placed.memory_bytes.items():
        price = placed.memory_prices.get(name, 0.0)
        price = price if price * room > _BINDS * seconds else 0.0
        if used >= room * (1 - _BINDS) or price:
            yield {
                "constraint": f"capacity[{name}]",
                "slack": max(room - used, 0.0),
                "unit": "bytes",
                "shadow_price": price * GIB * per_second,
                "shadow_price_unit": f"{unit}/GiB",
            }
    rates = {domain.name: domain for path in placed.asked.paths for domain in path.domains}
    for name, saved in sorted(placed.rate_prices.items(), key=lambda item: -item[1]):
        if saved <= _BINDS * seconds:
            continue
        domain = rates.get(name.removesuffix(" in").removesuffix(" out"))
        share, more = 0.01, "1 %"
        if domain is not None:
            share, more = _GB / (domain.node_down if name.endswith(" out") else domain.node_up), "GB/s"
        yield {
            "constraint": f"rate[{name}]",
            "slack": 0.0,
            "unit": "",
            "shadow_price": share * saved * per_second,
            "shadow_price_unit": f"{unit}/{more}",
        }


def _limit(scenario: FinetuneScenario, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the limit of time, where there is one."""
    limit = scenario.question.slo.step_time
    if limit is not None:
        yield {"constraint": "slo.step_time", "slack": limit - seconds, "unit": "s", "shadow_price": None}


def _full(scenario: FinetuneScenario, placed: Placed) -> Iterator[dict[str, Any]]:
    """Yield the memories that keep the same layout from the next larger size, with what a GiB more would allow."""
    asked = placed.asked
    larger = next_larger(scenario, asked)
    if larger is None or larger.fits:
        return
    unit = SENSES[scenario.question.objective][1]
    step = abs(value(scenario, replace(placed, asked=larger)) - value(scenario, placed))
    rooms = placed.memory_bytes
    if larger.kept_bytes > larger.room_bytes:
        names, slack, more = [HBM], asked.room_bytes - asked.kept_bytes, larger.kept_bytes - asked.kept_bytes
    else:
        names, more = list(rooms), larger.held_bytes - asked.held_bytes
        slack = sum(room for room, _ in rooms.values()) - asked.held_bytes
    for name in names:
        yield {
            "constraint": f"capacity[{name}]",
            "slack": slack,
            "unit": "bytes",
            "shadow_price": step / more * GIB,
            "shadow_price_unit": f"{unit}/GiB",
        }


def _others(placed: Placed) -> list[dict[str, Any]]:
    """Return what simpler placements of the same layout take."""
    asked = placed.asked
    entries: list[tuple[str, Placed | None]] = []
    devices = {path.name: float(path.tier.count) for path in asked.paths if path.tier.via is None}
    ways = (("interleaved page by page over all devices", False), ("the fastest tier first", True))
    for name, ordered in ways if len(devices) > 1 else ():
        totals = spread(placed, devices, ordered=ordered)
        fits = totals is not None
        brought = placed.updates["interleaved"]
        entries.append((name, place(asked, totals=totals, interleaved=brought) if fits else None))
    if placed.updates["interleaved"] > _ROUND:
        entries.append(("the host alone updates what lives elsewhere", place(asked, interleaved=0.0)))
    return [
        {
            "placement": name,
            "step_time_s": None if one is None else one.step_time_s,
            "gain": None if one is None else one.step_time_s / placed.step_time_s,
            "update_s": None if one is None else one.phase_s.get("update"),
        }
        for name, one in entries
    ]


def spread(placed: Placed, weights: dict[str, float], *, ordered: bool = False) -> dict[str, dict[str, float]] | None:
    """Return the placement with what lives elsewhere dealt out without regard to how often it is touched.

    Parameters
    ----------
    placed : Placed
        What stays with the accelerators.
    weights : dict of float
        Tiers, and how much of every page goes to each while there is room.
    ordered : bool
        Fill the tiers one after the other in the order of their rate instead.

    Returns
    -------
    dict or None
        Shares of each object by tier; None where it does not fit.
    """
    asked, totals = placed.asked, placed.totals
    rooms = {path.name: path.capacity_bytes for path in asked.paths if path.name in weights}
    rates = {path.name: path.domains[0].node_up for path in asked.paths}
    left = {thing: 1 - totals[thing].get(HBM, 0.0) for thing in OBJECTS}
    size = sum(left[thing] * asked.size_bytes(thing, "") for thing in OBJECTS)
    taken = dict.fromkeys(rooms, 0.0)
    order: Sequence[list[str]] = (
        [[name] for name in sorted(rooms, key=lambda name: -rates[name])] if ordered else [list(rooms)]
    )
    for names in order:
        while size > 1 and (open_ := [name for name in names if taken[name] < rooms[name] - 1]):
            whole = sum(weights[name] for name in open_)
            each = min(size / whole, *((rooms[name] - taken[name]) / weights[name] for name in open_))
            for name in open_:
                taken[name] += each * weights[name]
            size -= each * whole
    if size > 1:
        return None
    whole = sum(taken.values()) or 1.0
    return {
        thing: {HBM: 1 - left[thing]} | {name: left[thing] * held / whole for name, held in taken.items()}
        for thing in OBJECTS
    }


def _purchases(scenario: FinetuneScenario, placed: Placed) -> list[dict[str, Any]]:
    """Return what one more device of each tier brings, the most first; the whole search is made again."""
    node = scenario.job.machine.node
    found = []
    for number, tier in enumerate(node.tiers):
        paths = with_one_more(scenario, number)
        if paths is None:
            continue
        others = best(scenario, paths=paths).found
        now = value(scenario, placed)
        reached = max([value(scenario, one) for one in others], key=lambda found: abs(found - now), default=now)
        gain = abs(reached - now)
        found.append(
            {
                "purchase": f"one more {tier.name} of {tier.capacity / GIB:,.0f} GiB",
                "tier": tier.name,
                "capacity_bytes": tier.capacity,
                "then": reached,
                "gain": gain,
                "gain_per_gib": gain / (tier.capacity / GIB),
                "price_usd_per_hour": tier.price.on_demand if tier.price else None,
            }
        )
    return sorted(found, key=lambda one: -float(one["gain"]))


def _baseline(scenario: FinetuneScenario, found: Placed) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    *_, placed = given(scenario)
    if placed is None:
        return None
    return {
        "plan": _plan(placed),
        "prediction": _prediction(placed),
        "gain": _gain(scenario, placed, found),
    }


def _gain(scenario: FinetuneScenario, today: Placed, best_one: Placed) -> float:
    """Return the gain in size where the largest is asked for, else in tokens for a second or a dollar."""
    name = scenario.question.objective
    if name in ("max_params", "max_context_tokens"):
        return value(scenario, best_one) / value(scenario, today)
    if name.startswith("cost_usd"):
        return value(scenario, today) / value(scenario, best_one)
    each = [one.asked.tokens / one.step_time_s for one in (best_one, today)]
    return each[0] / each[1]


def _infeasible(
    scenario: FinetuneScenario,
    layouts: Sequence[Finetune],
    common: dict[str, Any],
    began: float,
    totals: Totals | None = None,
) -> Result:
    """Return why there is no plan: the fewest bytes that are missing, or the shortest step that can be met."""
    limit = scenario.question.slo.step_time
    fitting = [] if totals else [asked for asked in layouts if asked.fits]
    if fitting and limit is not None:
        reached = shortest(fitting, unlimited(scenario))[0][0].step_time_s
        reason = "no layout that fits is within the limit"
        relaxation = [{"constraint": "slo.step_time", "now": limit, "needed": reached, "unit": "s"}]
    else:
        nearest = min(layouts, key=_lacking, default=None)
        fewest = {} if nearest is None else missing_bytes(nearest, totals)
        reason = f"{' and '.join(fewest)} too small" if fewest else "no layout fits the accelerators and the batch"
        relaxation = [
            {"constraint": f"capacity[{name}]", "now": room, "needed": used, "unit": "bytes"}
            for name, (room, used) in fewest.items()
        ]
        relaxation += [] if totals else list(_devices_that_do(scenario, layouts))
    return Result(
        status="infeasible",
        objective=_objective(scenario, None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": reason, "candidates": len(layouts), "nearest": None}],
        relaxation=relaxation,
        **common,
    )


def _lacking(asked: Finetune) -> float:
    """Return the bytes that a layout lacks, those of accelerators, which cannot be bought alone, ten times."""
    there = max(asked.kept_bytes - asked.room_bytes, 0.0)
    room = asked.room_bytes + sum(path.capacity_bytes for path in asked.paths)
    return 10 * there + max(asked.held_bytes - room - there, 0.0)


def _devices_that_do(scenario: FinetuneScenario, layouts: Sequence[Finetune]) -> Iterator[dict[str, Any]]:
    """Yield how many devices of one tier alone would do."""
    lacking = [_lacking(asked) for asked in layouts if asked.paths and asked.kept_bytes <= asked.room_bytes]
    if not lacking or not min(lacking):
        return
    used = {path.name: path.tier.count for path in scenario.paths}
    for tier in scenario.job.machine.node.tiers:
        now = used.get(tier.name, 0)
        needed = now + math.ceil(min(lacking) / tier.capacity)
        if tier.via is None or tier.via in used:
            yield {"constraint": f"devices[{tier.name}]", "now": now, "needed": needed, "unit": "devices"}
