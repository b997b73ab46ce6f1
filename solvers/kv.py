"""Where weights, keys and values, and activations live: the best placement and block, what binds, what to buy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hardware.tiers import HBM, TierPath, tier_paths
from perfmodel import provenance
from perfmodel.kernels.model import Z90
from perfmodel.offload import OBJECTS, PHASES, Offload, Share, kernel_times
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.kv_aim import SAME, Aim, shortest
from solvers.kv_place import Block, missing_bytes, place
from solvers.kv_reuse import prefix_cache
from solvers.kv_scenario import KvScenario
from solvers.result import Result
from solvers.scenario import usd_per_hour

GIB = 2.0**30
_BINDS = 1e-6
_ROUND = 1e-9


def plan(scenario: KvScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float | None = None) -> Result:
    """Find the placement and block of the most tokens per second.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    top : int
        How many alternatives to list: the best of other blocks.
    time_limit_s : float
        Wall time of the search; none if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.

    Returns
    -------
    Result
        ``optimal`` over the blocks and types of the search; ``time_limit`` with a bound; or ``infeasible`` with the
        fewest bytes that are missing.
    """
    began = time.perf_counter()
    until = None if time_limit_s is None else began + time_limit_s
    candidates = list(_candidates(scenario, scenario.paths))
    aim = Aim.of(scenario)
    found, bound = _search(candidates, aim, until, gap, most=max(top, 0) + 1)
    spent = time.perf_counter() - began
    if not found:
        if bound is not None:
            return Result(
                status="time_limit",
                objective=aim.objective(None),
                best_bound=aim.value_of(bound),
                solve_time_s=spent,
                **_common(scenario),
            )
        return _infeasible(scenario, candidates, aim, began)
    best = found[0]
    value = aim.value_of(aim.score(best))
    best_bound = value if bound is None else aim.value_of(max(bound, aim.score(best)))
    if aim.phase is not None:  # so much was given up for the other phase
        best_bound = min(best_bound, value / (1 + SAME))
    reached = relative_gap(value, best_bound)
    return Result(
        status="optimal" if reached <= OPTIMAL_GAP else "feasible" if gap and reached <= gap else "time_limit",
        objective=aim.objective(value),
        best_bound=best_bound,
        gap=reached,
        solve_time_s=spent,
        candidates=len(candidates),
        plan=_plan(best),
        prediction=_prediction(scenario, best) | {"purchases": _purchases(scenario, best, aim)},
        breakdown=_breakdown(best),
        binding=_binding(best, aim),
        alternatives=[
            {"plan": _plan(other), "prediction": _prediction(scenario, other)} for other in found[1 : top + 1]
        ],
        baseline=_baseline(scenario, value, aim),
        **_common(scenario),
    )


def predict(scenario: KvScenario) -> Result:
    """Cost the placement that a scenario gives.

    Parameters
    ----------
    scenario : KvScenario
        The question with its plan.

    Returns
    -------
    Result
        ``feasible``, or ``infeasible`` with the tiers that are too small.
    """
    began = time.perf_counter()
    block = given_block(scenario)
    aim = Aim.of(scenario)
    small = {name: sizes for name, sizes in block.memory_bytes.items() if sizes[1] > sizes[0] * (1 + _ROUND)}
    if small:
        return Result(
            status="infeasible",
            objective=Aim.of(scenario).objective(None),
            solve_time_s=time.perf_counter() - began,
            why_not=[{"reason": "out of memory", "candidates": 1, "nearest": _plan(block)}],
            relaxation=_lacking(small),
            **_common(scenario),
        )
    return Result(
        status="feasible",
        objective=aim.objective(aim.value_of(aim.score(block))),
        solve_time_s=time.perf_counter() - began,
        plan=_plan(block),
        prediction=_prediction(scenario, block),
        breakdown=_breakdown(block),
        **_common(scenario),
    )


def given_block(scenario: KvScenario) -> Block:
    """Return the block and placement that a scenario gives."""
    given = scenario.question.plan
    if given is None:
        raise ValueError("the scenario gives no plan")
    asked = scenario.offload(given.gpu_batch, given.num_batches, given.precision_weights, given.precision_kv)
    shares: dict[Share, float] = {}
    sites = {path.name for path in scenario.paths if path.site is not None}
    for thing, tiers in given.placement.items():
        for tier, part in tiers.items():
            if thing == "kv" and tier != HBM:
                there = (given.attention_there or {}).get(tier, 1.0 if tier in sites else 0.0)
                shares["kv", tier, "stream"] = part * (1 - there)
                if tier in sites:
                    shares["kv", tier, "there"] = part * there
            else:
                shares[thing, tier, ""] = part
    return Block(asked, shares, _kernels(asked, (given.gpu_batch,))[given.gpu_batch])


def _kernels(asked: Offload, batches: tuple[int, ...]) -> dict[int, tuple[float, float, float]]:
    """Return times of kernels by size of batch."""
    times = [np.broadcast_to(value, len(batches)) for value in kernel_times(asked, np.array(batches, float))]
    return {batch: tuple(float(part[number]) for part in times) for number, batch in enumerate(batches)}  # type: ignore[misc]


_Candidate = tuple[Offload, tuple[float, float, float]]


def _candidates(scenario: KvScenario, paths: tuple[TierPath, ...]) -> Iterator[_Candidate]:
    """Yield blocks with their times of kernels."""
    search = scenario.question.search
    for weights in search.precision_weights:
        for cache in search.precision_kv:
            whole = replace(scenario.offload(1, 1, weights, cache), paths=paths)
            kernels = _kernels(whole, search.gpu_batch)
            for batch in search.gpu_batch:
                for count in search.num_batches:
                    asked = replace(whole, gpu_batch=batch, num_batches=count)
                    yield asked, kernels[batch]


def _search(
    candidates: list[_Candidate], aim: Aim, until: float | None, gap: float | None, most: int
) -> tuple[list[Block], float | None]:
    """Return the best blocks, the best first, and the score that no other beats: None where none can be better."""
    found: list[Block] = []
    bounds = sorted(((aim.most(*one), one) for one in candidates), key=lambda pair: -pair[0])
    for bound, one in bounds:
        if found:
            best = aim.score(found[0])
            if bound <= best:
                return found, None
            if gap is not None and bound - best <= gap * abs(best):
                return found, bound
        if until is not None and time.perf_counter() > until:
            return found, bound
        block = aim.place(*one)
        if block is not None:
            found = sorted([*found, block], key=lambda other: -aim.score(other))[:most]
    return found, None


def _common(scenario: KvScenario) -> dict[str, Any]:
    machine = scenario.machine
    used = scenario.offload(
        1, 1, scenario.question.search.precision_weights[0], scenario.question.search.precision_kv[0]
    )
    return {
        "kind": "kv",
        "scenario": scenario.resolved,
        "provenance": {
            "version": provenance.release(),
            "hardware": [machine.accelerator.name, machine.node.name],
            "from_memory": provenance.recalled(machine),
            "calibration": [
                *sorted({f"kernels/{name.split('.')[0]}/{one.origin}" for name, one in used.server.kernels.items()}),
                f"engine/{scenario.engine.name}",
            ],
        },
    }


def _plan(block: Block) -> dict[str, Any]:
    asked = block.asked
    tiers = [HBM, *(path.name for path in asked.paths)]
    placement: dict[str, dict[str, float]] = {thing: {} for thing in OBJECTS}
    there: dict[str, float] = {}
    for thing in OBJECTS:
        for tier in tiers:
            parts = {way: block.shares.get((thing, tier, way), 0.0) for way in ("", "stream", "there")}
            total = sum(parts.values())
            if total > _ROUND:
                placement[thing][tier] = total
            if parts["stream"] + parts["there"] > _ROUND:
                there[tier] = parts["there"] / total
    return {
        "placement": placement,
        "attention_there": there,
        "gpu_batch": asked.gpu_batch,
        "num_batches": asked.num_batches,
        "precision_weights": asked.server.precision_weights,
        "precision_kv": asked.server.precision_kv,
    }


def _prediction(scenario: KvScenario, block: Block) -> dict[str, Any]:
    spreads = scenario.engine.spreads
    phases = block.phase_s
    said: dict[str, Any] = {}
    for name, value, spread in (
        ("tokens_per_s", block.tokens_per_s, "throughput"),
        ("block_time_s", block.time_s, "throughput"),
        ("ttft_mean_s", phases["prefill"], "ttft"),
        ("tpot_mean_s", phases["decode"], "tpot"),
    ):
        factor = float(np.exp(Z90 * spreads[spread]))  # type: ignore[index]
        said |= {name: value, f"{name}_p10": value / factor, f"{name}_p90": value * factor}
    cost = usd_per_hour(scenario.machine)
    reuse = scenario.question.workload.reuse
    cached = None
    if scenario.curve is not None and reuse is not None:
        cached = prefix_cache(block, scenario.curve, reuse.block_tokens)
    return said | {
        "hit_ratio": None if cached is None else cached["hit_ratio"],
        "memory_bytes": {name: used for name, (_, used) in block.memory_bytes.items()},
        "utilisation": {
            phase: {name: spent / phases[phase] for name, spent in times.items() if spent}
            for phase, times in block.resource_s.items()
        },
        "bytes_per_s": _traffic(block),
        "cost_usd_per_hour": cost,
        "power_w": None,
        **({} if cached is None else {"prefix_cache": cached}),
    }


def _traffic(block: Block) -> dict[str, float]:
    """Return the mean rate of each link and tier over a block [bytes/s]."""
    rates = {}
    for path in block.asked.paths:
        for domain in path.domains:
            words = (("in", domain.node_up), ("out", domain.node_down))
            if domain is not path.link:
                words = (("read", domain.node_up), ("write", domain.node_down))
            for word, rate in words:
                name = f"{domain.name} {word}"
                busy = [block.resource_s[phase].get(name, 0.0) for phase in PHASES]
                rates[name] = (busy[0] + (block.asked.generated - 1) * busy[1]) / block.time_s * rate
    return rates


def _breakdown(block: Block) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for phase, steps in (("prefill", 1), ("decode", block.asked.generated - 1)):
        times = block.resource_s[phase]
        first = max(times, key=lambda name: times[name])
        children: list[dict[str, Any]] = [
            {"name": first, "seconds": steps * times[first], "bound": _bound(first)},
            *(
                {"name": f"{name}, hidden", "seconds": 0.0, "bound": _bound(name), "hidden_seconds": steps * spent}
                for name, spent in times.items()
                if name != first and spent > 0
            ),
        ]
        parts.append({"name": phase, "seconds": steps * times[first], "bound": _bound(first), "children": children})
    longest = max(parts, key=lambda part: float(part["seconds"]))
    return {"name": "block", "seconds": block.time_s, "bound": longest["bound"], "children": parts}


def _bound(resource: str) -> str:
    return "compute" if resource == "accelerators" else "host" if resource.endswith("processor") else "link"


def _binding(block: Block, aim: Aim) -> list[dict[str, Any]]:
    """Return what holds the block back, with what a GiB or a hundredth more of a rate would bring."""
    # a second less of the block is so many more tokens per second; of a phase it is a second less
    per_second = 1.0 if aim.phase else block.tokens_per_s / block.time_s
    unit = "s" if aim.phase else "tokens/s"
    found = []
    for name, (room, used) in block.memory_bytes.items():
        price = block.memory_prices.get(name, 0.0)
        if used >= room * (1 - _BINDS) or price > 0:
            found.append(
                {
                    "constraint": f"capacity[{name}]",
                    "slack": max(room - used, 0.0),
                    "shadow_price": price * GIB * per_second,
                    "unit": f"{unit} per GiB",
                }
            )
    for name, seconds in sorted(block.rate_prices.items(), key=lambda item: -item[1]):
        if seconds > _BINDS * block.time_s:
            found.append(
                {
                    "constraint": f"rate[{name}]",
                    "slack": 0.0,
                    "shadow_price": 0.01 * seconds * per_second,
                    "unit": f"{unit} per 1 % more",
                }
            )
    for phase, name in (("prefill", "ttft_mean"), ("decode", "tpot_mean")):
        limit = aim.limits.get(phase)
        if limit is not None and block.phase_s[phase] >= limit * (1 - _BINDS):
            price = block.limit_prices.get(phase, 0.0) * per_second
            found.append({"constraint": f"slo.{name}", "slack": 0.0, "shadow_price": price, "unit": f"{unit} per s"})
    return found


def _purchases(scenario: KvScenario, best: Block, aim: Aim) -> list[dict[str, Any]]:
    """Return what one more device of each tier brings, the most first; the whole search is made again."""
    node = scenario.machine.node
    found = []
    for number, tier in enumerate(node.tiers):
        if tier.name not in {path.name for path in scenario.paths}:
            continue
        tiers = (*node.tiers[:number], tier.model_copy(update={"count": tier.count + 1}), *node.tiers[number + 1 :])
        names = {path.name for path in scenario.paths}
        paths = tuple(path for path in tier_paths(node.model_copy(update={"tiers": tiers})) if path.name in names)
        others, _ = _search(list(_candidates(scenario, paths)), aim, None, None, most=1)
        reached = aim.value_of(max(aim.score(block) for block in (*others, best)))
        price = tier.price.on_demand if tier.price else None
        gain = abs(reached - aim.value_of(aim.score(best)))
        found.append(
            {
                "purchase": f"one more {tier.name} of {tier.capacity / GIB:,.0f} GiB",
                "tier": tier.name,
                "capacity_bytes": tier.capacity,
                aim.name: reached,
                "gain": gain,
                "gain_per_gib": gain / (tier.capacity / GIB),
                "price_usd_per_hour": price,
            }
        )
    return sorted(found, key=lambda one: -float(one["gain"]))


def _baseline(scenario: KvScenario, best: float, aim: Aim) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    block = given_block(scenario)
    return {
        "plan": _plan(block),
        "prediction": _prediction(scenario, block),
        "gain": aim.value_of(aim.score(block)) / best if aim.phase else best / block.tokens_per_s,
    }


def _lacking(small: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"constraint": f"capacity[{name}]", "now": room, "needed": used, "unit": "bytes"}
        for name, (room, used) in small.items()
    ]


def _infeasible(scenario: KvScenario, candidates: list[_Candidate], aim: Aim, began: float) -> Result:
    """Return why there is no plan: the fewest bytes that are missing, or the shortest limit that can be met."""
    fitting = [one for one in candidates if place(*one) is not None] if aim.limits else []
    if fitting:
        relaxation = list(_longer_limits(fitting, aim))
        reason = "no block that fits is within the limits of latency"
        seen = len(fitting)
    else:
        missing = missing_bytes(min((one[0] for one in candidates), key=lambda asked: asked.sequences))
        relaxation = _lacking(missing)
        reason, seen = f"the smallest block does not fit: {' and '.join(missing)} too small", 1
    return Result(
        status="infeasible",
        objective=aim.objective(None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": reason, "candidates": seen, "nearest": None}],
        relaxation=relaxation,
        **_common(scenario),
    )


def _longer_limits(fitting: list[_Candidate], aim: Aim) -> Iterator[dict[str, Any]]:
    """Yield for each limit the shortest that can be met within the other; where none can, both of the nearest block."""
    names = {"prefill": "slo.ttft_mean", "decode": "slo.tpot_mean"}
    alone = []
    for phase, limit in aim.limits.items():
        others = {other: most for other, most in aim.limits.items() if other != phase}
        found = [shortest(*one, phase, others) for one in fitting]
        times = [block.phase_s[phase] for block in found if block is not None]
        if times:
            alone.append({"constraint": names[phase], "now": limit, "needed": min(times), "unit": "s"})
    if alone:
        yield from alone
        return
    weights = {phase: 1.0 / limit for phase, limit in aim.limits.items()}
    blocks = [block for block in (place(*one, weights=weights) for one in fitting) if block is not None]
    nearest = min(blocks, key=lambda block: sum(weights[phase] * block.phase_s[phase] for phase in weights))
    for phase, limit in aim.limits.items():
        yield {"constraint": names[phase], "now": limit, "needed": nearest.phase_s[phase], "unit": "s"}
