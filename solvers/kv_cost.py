"""What tiers cost, and how many devices of which do for the least."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from perfmodel.tier_costs import copies, device_usd_per_hour, tiers_usd_per_hour
from solvers.kv_scenario import KvScenario, paths_of
from solvers.scenario import usd_per_hour


def with_devices(scenario: KvScenario, devices: Mapping[str, int]) -> KvScenario:
    """Return a scenario whose nodes have so many devices of some tiers; those of none are left out."""
    node = scenario.machine.node
    kept = [tier for tier in node.tiers if devices.get(tier.name, tier.count) > 0]
    tiers = tuple(tier.model_copy(update={"count": devices.get(tier.name, tier.count)}) for tier in kept)
    there = {tier.name for tier in tiers}
    tiers = tuple(tier for tier in tiers if tier.via is None or tier.via in there)
    node = node.model_copy(update={"tiers": tiers})
    names = {path.name for path in scenario.paths}
    paths = tuple(path for path in paths_of(node, scenario.question.nodes) if path.name in names)
    return replace(scenario, machine=replace(scenario.machine, node=node), paths=paths)


def cost_usd_per_hour(scenario: KvScenario) -> float | None:
    """Return what the nodes cost with their tiers [USD/h]; None where no price is known nor asked for."""
    node, question = scenario.machine.node, scenario.question
    machines = usd_per_hour(scenario.machine)
    tiers = tiers_usd_per_hour(node, question.nodes, question.usd_per_kwh)
    if machines is None and not tiers and question.objective != "cost_usd_per_hour":
        return None
    return (machines or 0.0) + tiers


def amounts(scenario: KvScenario) -> list[dict[str, int]]:
    """Return the devices that may be bought, the cheapest together first."""
    given = scenario.question.search.devices or {}
    node = scenario.machine.node
    used = [tier for tier in node.tiers if tier.name in {path.name for path in scenario.paths}]
    allowed = [sorted(set(given.get(tier.name, range(tier.count + 1)))) for tier in used]
    found = []
    for counts in product(*allowed):
        devices = {tier.name: count for tier, count in zip(used, counts, strict=True)}
        if any(tier.via and devices[tier.name] and not devices.get(tier.via, 1) for tier in used):
            continue
        found.append(devices)

    each = tier_costs(scenario)
    return sorted(found, key=lambda devices: (cost_of(each, devices), sum(devices.values())))


def tier_costs(scenario: KvScenario) -> dict[str, float]:
    """Return what one device of each tier costs in all nodes together [USD/h]."""
    question = scenario.question
    return {
        tier.name: device_usd_per_hour(tier, question.usd_per_kwh) * copies(tier, question.nodes) / tier.count
        for tier in scenario.machine.node.tiers
    }


def cost_of(each: Mapping[str, float], devices: Mapping[str, int]) -> float:
    """Return what devices cost at so much each [USD/h]."""
    return sum(each[name] * count for name, count in devices.items())


def within(least: Mapping[str, int], most: Mapping[str, int]) -> bool:
    """Tell whether one purchase has no more of anything than another."""
    return all(count <= most[name] for name, count in least.items())


def untried(found: list[dict[str, int]], until: float | None) -> Iterator[dict[str, int]]:
    """Yield purchases in turn while there is time."""
    for devices in found:
        if until is not None and time.perf_counter() > until:
            return
        yield devices
