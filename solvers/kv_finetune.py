"""Where the states of training live: the best layout and placement, what binds, what to buy."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hardware.tiers import HBM, TierPath, tier_paths
from perfmodel import terms
from perfmodel.finetune import OBJECTS, STATES, Finetune, finetunes, step_interval_of, step_tree
from perfmodel.plan import plan_to_dict
from perfmodel.provenance import provenance
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.kv_finetune_place import Placed, Totals, missing_bytes, place
from solvers.kv_finetune_question import SENSES, FinetuneScenario
from solvers.result import Objective, Result
from solvers.scenario import usd_per_hour

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
    layouts = scenario.layouts()
    found, bound = search(layouts, scenario, until, gap, most=max(top, 0) + 1)
    common = _common(scenario) | {"candidates": len(layouts)}
    if not found:
        spent = time.perf_counter() - began
        if bound is not None:
            return Result(
                status="time_limit",
                objective=_objective(scenario, None),
                best_bound=_value(scenario, layouts[0], bound),
                solve_time_s=spent,
                **common,
            )
        return _infeasible(scenario, [missing_bytes(asked) for asked in layouts], common, began)
    best = found[0]
    value = _value(scenario, best.asked, best.step_time_s)
    reached = 0.0 if bound is None else relative_gap(value, _value(scenario, best.asked, bound))
    return Result(
        status="optimal" if reached <= OPTIMAL_GAP else "feasible" if gap and reached <= gap else "time_limit",
        objective=_objective(scenario, value),
        best_bound=value if bound is None else _value(scenario, best.asked, bound),
        gap=reached,
        solve_time_s=time.perf_counter() - began,
        plan=_plan(best),
        prediction=_prediction(scenario, best)
        | {"others": _others(scenario, best), "purchases": _purchases(scenario, best)},
        breakdown=terms.to_dict(step_tree(best.asked, best.resource_s)),
        binding=list(_binding(scenario, best)),
        alternatives=[
            {"plan": _plan(other), "prediction": _prediction(scenario, other)} for other in found[1 : top + 1]
        ],
        baseline=_baseline(scenario, best),
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
        return _infeasible(scenario, [missing_bytes(asked, totals)], common, began)
    return Result(
        status="feasible",
        objective=_objective(scenario, _value(scenario, asked, placed.step_time_s)),
        solve_time_s=time.perf_counter() - began,
        plan=_plan(placed),
        prediction=_prediction(scenario, placed),
        breakdown=terms.to_dict(step_tree(placed.asked, placed.resource_s)),
        binding=list(_binding(scenario, placed)),
        **common,
    )


def given(scenario: FinetuneScenario) -> tuple[Finetune, Totals, Placed | None]:
    """Return the layout that a scenario gives, its shares by tier, and the placement if it fits."""
    if scenario.question.plan is None or scenario.plan is None:
        raise ValueError("the scenario gives no plan")
    (asked,) = finetunes(scenario.job, scenario.plan, scenario.paths)
    wanted = scenario.question.plan
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


def search(
    layouts: Iterable[Finetune],
    scenario: FinetuneScenario,
    until: float | None = None,
    gap: float | None = None,
    *,
    most: int = 1,
) -> tuple[list[Placed], float | None]:
    """Return the best placements of different layouts, and what nothing left out can beat; None where all were seen.

    Notes
    -----
    Layouts come in the order of their passes alone, which no placement shortens, until none can be better.
    """
    found: list[Placed] = []
    interleaved = None if scenario.question.search.interleaved else 0.0
    for asked in sorted(layouts, key=lambda one: one.compute_s):
        best = found[0].step_time_s if found else np.inf
        if len(found) >= most and asked.compute_s >= found[-1].step_time_s:
            break
        if asked.compute_s >= best and until is not None and time.perf_counter() > until:
            break
        if until is not None and time.perf_counter() > until:
            return found, asked.compute_s
        if gap and found and relative_gap(best, asked.compute_s) <= gap:
            return found, min(asked.compute_s, best)
        placed = place(asked, interleaved=interleaved) if may_fit(asked) else None
        if placed is not None:
            found = sorted([*found, placed], key=lambda one: one.step_time_s)[:most]
    return found, None


def may_fit(asked: Finetune) -> bool:
    """Tell whether what must stay with the accelerators fits there."""
    kept = asked.fixed_bytes + (1 - asked.most_activations) * asked.activations_bytes
    if not (asked.streams_weights and asked.paths):
        kept += asked.weights_bytes
    return kept <= asked.room_bytes


def _objective(scenario: FinetuneScenario, value: float | None) -> Objective:
    name = scenario.question.objective
    sense, unit = SENSES[name]
    return Objective(name, value, unit, sense)


def _value(scenario: FinetuneScenario, asked: Finetune, step_time_s: float) -> float:
    return step_time_s if scenario.question.objective == "step_time_s" else asked.tokens / step_time_s


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
    }


def _prediction(scenario: FinetuneScenario, placed: Placed) -> dict[str, Any]:
    asked, seconds = placed.asked, placed.step_time_s
    low, high = step_interval_of(asked, placed.resource_s)
    updates = placed.updates
    tokens = asked.tokens
    elsewhere = updates["interleaved"] + updates["host"]
    return {
        "step_time_s": seconds,
        "step_time_s_p10": seconds * low,
        "step_time_s_p90": seconds * high,
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_p10": tokens / (seconds * high),
        "tokens_per_s_p90": tokens / (seconds * low),
        "parameters": asked.parameters,
        "micro_batches": asked.micro_batches,
        "updated_by": updates,
        "interleave_every": elsewhere / updates["interleaved"] if updates["interleaved"] > _ROUND else None,
        "memory_bytes": {name: used for name, (_, used) in placed.memory_bytes.items()},
        "memory_available_bytes": {name: room for name, (room, _) in placed.memory_bytes.items()},
        "utilisation": {
            phase: {name: spent / placed.phase_s[phase] for name, spent in times.items() if spent > 0}
            for phase, times in placed.resource_s.items()
        },
        "cost_usd_per_hour": usd_per_hour(asked.job.machine),
    }


def _binding(scenario: FinetuneScenario, placed: Placed) -> Iterator[dict[str, Any]]:
    """Yield what holds the step back, with what a GiB, or a GB/s of a tier or link, more would bring."""
    seconds = placed.step_time_s
    step = scenario.question.objective == "step_time_s"
    per_second = 1.0 if step else placed.asked.tokens / seconds**2
    unit = "s" if step else "tokens/s"
    for name, (room, used) in placed.memory_bytes.items():
        price = placed.memory_prices.get(name, 0.0)
        if used >= room * (1 - _BINDS) or price * room > _BINDS * seconds:
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


def _others(scenario: FinetuneScenario, best: Placed) -> list[dict[str, Any]]:
    """Return what simpler placements of the same layout take."""
    asked = best.asked
    entries: list[tuple[str, Placed | None]] = []
    devices = {path.name: float(path.tier.count) for path in asked.paths if path.tier.via is None}
    ways = (("interleaved page by page over all devices", False), ("the fastest tier first", True))
    for name, ordered in ways if len(devices) > 1 else ():
        totals = spread(best, devices, ordered=ordered)
        fits = totals is not None
        brought = best.updates["interleaved"]
        entries.append((name, place(asked, totals=totals, interleaved=brought) if fits else None))
    if best.updates["interleaved"] > _ROUND:
        entries.append(("the host alone updates what lives elsewhere", place(asked, interleaved=0.0)))
    return [
        {
            "placement": name,
            "step_time_s": None if one is None else one.step_time_s,
            "gain": None if one is None else one.step_time_s / best.step_time_s,
            "update_s": None if one is None else one.phase_s["update"],
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


def _purchases(scenario: FinetuneScenario, best: Placed) -> list[dict[str, Any]]:
    """Return what one more device of each tier brings, the most first; the whole search is made again."""
    node = scenario.job.machine.node
    found = []
    for number, tier in enumerate(node.tiers):
        paths = with_one_more(scenario, number)
        if paths is None:
            continue
        others, _ = search(scenario.layouts(paths=paths), scenario)
        seconds = min(one.step_time_s for one in (*others, best))
        value = _value(scenario, best.asked, seconds)
        gain = abs(value - _value(scenario, best.asked, best.step_time_s))
        found.append(
            {
                "purchase": f"one more {tier.name} of {tier.capacity / GIB:,.0f} GiB",
                "tier": tier.name,
                "capacity_bytes": tier.capacity,
                "then": value,
                "gain": gain,
                "gain_per_gib": gain / (tier.capacity / GIB),
                "price_usd_per_hour": tier.price.on_demand if tier.price else None,
            }
        )
    return sorted(found, key=lambda one: -float(one["gain"]))


def with_one_more(scenario: FinetuneScenario, number: int) -> tuple[TierPath, ...] | None:
    """Return the tiers with one more device of one; the first of one that may not be used so far."""
    node = scenario.job.machine.node
    tier = node.tiers[number]
    names = {path.name for path in scenario.paths}
    count = tier.count + 1 if tier.name in names else 1
    if tier.via is not None and tier.via not in names:
        return None
    tiers = (*node.tiers[:number], tier.model_copy(update={"count": count}), *node.tiers[number + 1 :])
    changed = node.model_copy(update={"tiers": tiers})
    return tuple(path for path in tier_paths(changed) if path.name in names | {tier.name})


def _baseline(scenario: FinetuneScenario, best: Placed) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    *_, placed = given(scenario)
    if placed is None:
        return None
    return {
        "plan": _plan(placed),
        "prediction": _prediction(scenario, placed),
        "gain": placed.step_time_s / best.step_time_s,
    }


def _infeasible(
    scenario: FinetuneScenario,
    missing: Sequence[dict[str, tuple[float, float]]],
    common: dict[str, Any],
    began: float,
) -> Result:
    """Return why there is no plan: the fewest bytes that are missing for a layout."""
    fewest = min(
        missing,
        key=lambda small: sum((10 if name == HBM else 1) * (now[1] - now[0]) for name, now in small.items()),
        default={},
    )
    relaxation = [
        {"constraint": f"capacity[{name}]", "now": room, "needed": used, "unit": "bytes"}
        for name, (room, used) in fewest.items()
    ]
    reason = f"{' and '.join(fewest)} too small" if fewest else "no layout fits the accelerators and the batch"
    return Result(
        status="infeasible",
        objective=_objective(scenario, None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": reason, "candidates": len(missing), "nearest": None}],
        relaxation=relaxation,
        **common,
    )
