"""What a placement over tiers is, costs, and is held back by, as an answer says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hardware.tiers import HBM
from perfmodel import provenance
from perfmodel.hit_curves import DEPTHS
from perfmodel.kernels.model import Z90
from perfmodel.offload import OBJECTS
from perfmodel.power import board_power_w, interval, nodes_power_w, serving_activity, shares_of, sizes_of
from perfmodel.tier_costs import tiers_power_w
from solvers.kv_aim import Aim
from solvers.kv_cost import cost_usd_per_hour
from solvers.kv_place import Block, steps_of
from solvers.kv_reuse import losing, prefix_cache
from solvers.kv_scenario import KvScenario

GIB, GB = 2.0**30, 1e9
_BINDS = 1e-6
_MORE = 1 / 16
_ROUND = 1e-9


def common(scenario: KvScenario) -> dict[str, Any]:
    """Return the parts that every answer has: the question and what the answer rests on."""
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


def plan_of(scenario: KvScenario, block: Block) -> dict[str, Any]:
    """Return a block as the plan that `predict` reads back."""
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
        "keep": asked.form.keep,
        "remade": asked.form.remade,
        "share_prefix": asked.shared is not None,
        **_cache_of(scenario, block),
    }


def _cache_of(scenario: KvScenario, block: Block) -> dict[str, Any]:
    """Return how a plan uses a cache of prefixes; nothing where the question has none."""
    prefixes, reuse = block.asked.prefixes, scenario.question.workload.reuse
    if reuse is None:
        return {}
    if prefixes is None:
        return {"loading": "recompute"}
    tiers = [HBM, *(path.name for path in block.asked.paths)]
    sizes = {tier: block.shares.get(("cache", tier, ""), 0.0) for tier in tiers}
    return {
        "loading": "both" if prefixes.overlapped else "load",
        "reuse": "anywhere" if prefixes.anywhere else "prefix",
        "level": next(name for name, level in reuse.levels.items() if level == prefixes.level),
        "cache": {tier: size for tier, size in sizes.items() if size > _ROUND},
        "loaded": {
            tier: [block.shares.get(("found", tier, str(depth)), 0.0) for depth in range(DEPTHS)]
            for tier, size in sizes.items()
            if size > _ROUND
        },
    }


def prediction(scenario: KvScenario, block: Block) -> dict[str, Any]:
    """Return what a block costs, with intervals."""
    spreads = scenario.engine.spreads
    phases, latency = block.phase_s, block.latency_s
    said: dict[str, Any] = {}
    for name, value, spread in (
        ("tokens_per_s", block.tokens_per_s, "throughput"),
        ("block_time_s", block.time_s, "throughput"),
        ("ttft_mean_s", latency["prefill"], "ttft"),
        ("tpot_mean_s", latency["decode"], "tpot"),
    ):
        factor = float(np.exp(Z90 * spreads[spread]))  # type: ignore[index]
        said |= {name: value, f"{name}_p10": value / factor, f"{name}_p90": value * factor}
    cached = None if block.asked.prefixes is None else prefix_cache(block)
    return said | {
        "hit_ratio": None if cached is None else cached["hit_ratio"],
        "memory_bytes": {name: used for name, (_, used) in block.memory_bytes.items()},
        "utilisation": {
            phase: {name: spent / phases[phase] for name, spent in times.items() if abs(spent) > _ROUND * phases[phase]}
            for phase, times in block.resource_s.items()
        },
        "bytes_per_s": _traffic(block),
        "cost_usd_per_hour": cost_usd_per_hour(scenario),
        **_power(scenario, block, 0.0 if cached is None else float(cached["hit_ratio"])),
        "tiers_power_w": tiers_power_w(scenario.machine.node, scenario.question.nodes),
        **({} if cached is None else {"prefix_cache": cached, "warnings": losing(cached)}),
    }


def _power(scenario: KvScenario, block: Block, found: float) -> dict[str, float]:
    """Return power of all nodes [W] and energy of a generated token [J] with intervals, on average over a block.

    Parameters
    ----------
    found : float
        Share of prompts that is found in the cache of prefixes.

    Notes
    -----
    As if accelerators read all weights and all of the cache in every step; attention elsewhere draws less.
    """
    asked, machine = block.asked, scenario.machine
    server, seconds = asked.server, block.time_s
    activity = serving_activity(
        sizes_of(server.architecture),
        machine.accelerator,
        accelerators=asked.accelerators,
        steps_per_s=asked.num_batches * (asked.generated - 1) / seconds,
        sequences=asked.gpu_batch,
        context_tokens=asked.prompt + asked.generated / 2,
        prompt_tokens_per_s=asked.sequences * asked.prompt * (1 - found) / seconds,
        weight_bytes=server.form.weight_bytes,
        cache_bytes=server.cache_bytes,
        block_scaled=float(server.form.variant == "fp8_block"),
    )
    count = asked.accelerators * asked.nodes
    board_w, limit = float(board_power_w(machine.accelerator, activity)), machine.accelerator.power.limit
    watts, most = (float(nodes_power_w(machine.node, count, each)) for each in (board_w, limit))
    low, high = (float(end) for end in interval(shares_of(machine.accelerator).spread))
    said: dict[str, float] = {}
    for name, value in (("power_w", watts), ("energy_per_token_j", watts / block.tokens_per_s)):
        said |= {name: value, f"{name}_p10": value * low, f"{name}_p90": value * min(high, most / watts)}
    return said


def _traffic(block: Block) -> dict[str, float]:
    """Return the mean rate of each link and tier over a block [bytes/s]."""
    moved, times, whole = {}, block.resource_s, block.time_s
    for name, rate in domain_rates(block).items():
        busy = sum(steps * times[phase].get(name, 0.0) for phase, steps in steps_of(block.asked).items())
        moved[name] = busy / whole * rate
    return moved


def domain_rates(block: Block) -> dict[str, float]:
    """Return what links and tiers carry at most, by direction [bytes/s]."""
    rates = {}
    for path in block.asked.paths:
        for domain in path.domains:
            words = ("in", "out") if domain is path.link else ("read", "write")
            rates[f"{domain.name} {words[0]}"] = domain.node_up
            rates[f"{domain.name} {words[1]}"] = domain.node_down
    return rates


def breakdown(block: Block) -> dict[str, Any]:
    """Return where the time of a block goes."""
    parts: list[dict[str, Any]] = []
    for phase, steps in steps_of(block.asked).items():
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


def _cache_prices(block: Block, aim: Aim) -> dict[str, float]:
    """Return what a GiB more of each tier that holds prefixes brings: a sixteenth more of it, placed anew.

    A curve's slope at one size says little, since prefixes come whole.
    """
    asked, prices = block.asked, {}
    for path in asked.paths:
        if block.shares.get(("cache", path.name, ""), 0.0) <= _ROUND:
            continue
        more = _MORE * path.capacity_bytes
        paths = tuple(
            replace(one, capacity_bytes=one.capacity_bytes + more) if one is path else one for one in asked.paths
        )
        other = aim.place(replace(asked, paths=paths), block.kernels)
        if other is not None:
            prices[path.name] = max(aim.score(other) - aim.score(block), 0.0) / (more / GIB)
    return prices


def binding(block: Block, aim: Aim) -> list[dict[str, Any]]:
    """Return what holds the block back, with what a GiB or a hundredth more of a rate would bring."""
    # a second less of the block is so many more tokens per second; of a phase it is a second less
    per_second = 1.0 if aim.phase and block.asked.rate is None else block.tokens_per_s / block.time_s
    unit = "s" if aim.phase and block.asked.rate is None else "tokens/s"
    found = []
    prices = {name: price * GIB * per_second for name, price in block.memory_prices.items()}
    prices |= _cache_prices(block, aim)
    for name, (room, used) in block.memory_bytes.items():
        price = prices.get(name, 0.0)
        if used >= room * (1 - _BINDS) or price > 0:
            found.append(
                {
                    "constraint": f"capacity[{name}]",
                    "slack": max(room - used, 0.0) / GIB,
                    "shadow_price": price + 0.0,
                    "unit": f"{unit} per GiB",
                }
            )
    rates = domain_rates(block)
    for name, seconds in sorted(block.rate_prices.items(), key=lambda item: -item[1]):
        if seconds > _BINDS * block.time_s:
            more, of = (GB / rates[name], "GB/s") if name in rates else (0.01, "1 % more")
            found.append(
                {
                    "constraint": f"rate[{name}]",
                    "slack": 0.0,
                    "shadow_price": more * seconds * per_second,
                    "unit": f"{unit} per {of}",
                }
            )
    for phase, name in (("prefill", "ttft_mean"), ("decode", "tpot_mean")):
        limit = aim.limits.get(phase)
        if limit is not None and block.latency_s[phase] >= limit * (1 - _BINDS):
            price = block.limit_prices.get(phase, 0.0) * per_second
            found.append({"constraint": f"slo.{name}", "slack": 0.0, "shadow_price": price, "unit": f"{unit} per s"})
    return found
