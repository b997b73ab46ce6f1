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
from solvers.kv_place import Block, missing_bytes, most_tokens_per_s, place
from solvers.kv_reuse import prefix_cache
from solvers.kv_scenario import KvScenario
from solvers.result import Objective, Result
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
    found, bound = _search(candidates, until, gap, most=max(top, 0) + 1)
    spent = time.perf_counter() - began
    if not found:
        if bound is not None:
            return Result(
                status="time_limit",
                objective=_objective(None),
                best_bound=bound,
                solve_time_s=spent,
                **_common(scenario),
            )
        return _infeasible(scenario, min(candidates, key=lambda one: one[1].sequences)[1], began)
    best = found[0]
    value = best.tokens_per_s
    bound = max(value, bound or 0.0)
    reached = relative_gap(value, bound)
    return Result(
        status="optimal" if reached <= OPTIMAL_GAP else "feasible" if gap and reached <= gap else "time_limit",
        objective=_objective(value),
        best_bound=bound,
        gap=reached,
        solve_time_s=spent,
        candidates=len(candidates),
        plan=_plan(best),
        prediction=_prediction(scenario, best) | {"purchases": _purchases(scenario, best)},
        breakdown=_breakdown(best),
        binding=_binding(best),
        alternatives=[
            {"plan": _plan(other), "prediction": _prediction(scenario, other)} for other in found[1 : top + 1]
        ],
        baseline=_baseline(scenario, value),
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
    small = {name: sizes for name, sizes in block.memory_bytes.items() if sizes[1] > sizes[0] * (1 + _ROUND)}
    if small:
        return Result(
            status="infeasible",
            objective=_objective(None),
            solve_time_s=time.perf_counter() - began,
            why_not=[{"reason": "out of memory", "candidates": 1, "nearest": _plan(block)}],
            relaxation=_lacking(small),
            **_common(scenario),
        )
    return Result(
        status="feasible",
        objective=_objective(block.tokens_per_s),
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


_Candidate = tuple[float, Offload, tuple[float, float, float]]


def _candidates(scenario: KvScenario, paths: tuple[TierPath, ...]) -> Iterator[_Candidate]:
    """Yield blocks with what none of their placements beats [1/s]."""
    search = scenario.question.search
    for weights in search.precision_weights:
        for cache in search.precision_kv:
            whole = replace(scenario.offload(1, 1, weights, cache), paths=paths)
            kernels = _kernels(whole, search.gpu_batch)
            for batch in search.gpu_batch:
                for count in search.num_batches:
                    asked = replace(whole, gpu_batch=batch, num_batches=count)
                    yield most_tokens_per_s(asked, kernels[batch]), asked, kernels[batch]


def _search(
    candidates: list[_Candidate], until: float | None, gap: float | None, most: int
) -> tuple[list[Block], float | None]:
    """Return the best blocks, the best first, and what no other beats [1/s]: None where all were looked at."""
    found: list[Block] = []
    for bound, asked, kernels in sorted(candidates, key=lambda one: -one[0]):
        if found and bound <= found[0].tokens_per_s * (1 + (gap or 0.0)):
            return found, None if bound <= found[0].tokens_per_s else bound
        if until is not None and time.perf_counter() > until:
            return found, bound
        block = place(asked, kernels)
        if block is not None:
            found = sorted([*found, block], key=lambda one: -one.tokens_per_s)[:most]
    return found, None


def _objective(value: float | None) -> Objective:
    return Objective("tokens_per_s", value, "1/s", "max")


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


def _binding(block: Block) -> list[dict[str, Any]]:
    """Return what holds the block back, with what a GiB or a tenth more of a rate would bring."""
    per_second = block.tokens_per_s / block.time_s
    found = []
    for name, (room, used) in block.memory_bytes.items():
        price = block.memory_prices.get(name, 0.0)
        if used >= room * (1 - _BINDS) or price > 0:
            found.append(
                {
                    "constraint": f"capacity[{name}]",
                    "slack": max(room - used, 0.0),
                    "shadow_price": price * GIB * per_second,
                    "unit": "tokens/s per GiB",
                }
            )
    for name, seconds in sorted(block.rate_prices.items(), key=lambda item: -item[1]):
        if seconds > _BINDS * block.time_s:
            found.append(
                {
                    "constraint": f"rate[{name}]",
                    "slack": 0.0,
                    "shadow_price": 0.01 * seconds * per_second,
                    "unit": "tokens/s per 1 % more",
                }
            )
    return found


def _purchases(scenario: KvScenario, best: Block) -> list[dict[str, Any]]:
    """Return what one more device of each tier brings, the most first; the whole search is made again."""
    node = scenario.machine.node
    found = []
    for number, tier in enumerate(node.tiers):
        if tier.name not in {path.name for path in scenario.paths}:
            continue
        tiers = (*node.tiers[:number], tier.model_copy(update={"count": tier.count + 1}), *node.tiers[number + 1 :])
        names = {path.name for path in scenario.paths}
        paths = tuple(path for path in tier_paths(node.model_copy(update={"tiers": tiers})) if path.name in names)
        same = place(replace(best.asked, paths=paths), best.kernels)
        others, _ = _search(list(_candidates(scenario, paths)), None, None, most=1)
        reached = max(block.tokens_per_s for block in (*others, *([same] if same else []), best))
        price = tier.price.on_demand if tier.price else None
        gain = reached - best.tokens_per_s
        found.append(
            {
                "purchase": f"one more {tier.name} of {tier.capacity / GIB:,.0f} GiB",
                "tier": tier.name,
                "capacity_bytes": tier.capacity,
                "tokens_per_s": reached,
                "gain_tokens_per_s": gain,
                "gain_tokens_per_s_per_gib": gain / (tier.capacity / GIB),
                "price_usd_per_hour": price,
            }
        )
    return sorted(found, key=lambda one: -float(one["gain_tokens_per_s"]))


def _baseline(scenario: KvScenario, best: float) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    block = given_block(scenario)
    return {
        "plan": _plan(block),
        "prediction": _prediction(scenario, block),
        "gain": best / block.tokens_per_s,
    }


def _lacking(small: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"constraint": f"capacity[{name}]", "now": room, "needed": used, "unit": "bytes"}
        for name, (room, used) in small.items()
    ]


def _infeasible(scenario: KvScenario, smallest: Offload, began: float) -> Result:
    missing = missing_bytes(smallest)
    names = " and ".join(missing)
    return Result(
        status="infeasible",
        objective=_objective(None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": f"the smallest block does not fit: {names} too small", "candidates": 1, "nearest": None}],
        relaxation=_lacking(missing),
        **_common(scenario),
    )
