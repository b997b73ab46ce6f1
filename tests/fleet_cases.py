"""Fleets made up for tests, and what a fleet costs and carries, worked out from its plan alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardware.yaml_source import Source
from solvers.fleet_scenario import FleetScenario, load_fleet
from solvers.result import Result

TOLERANCE = 1e-6


def offer(name: str, price: float, throughput: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "price_usd_per_hour": price, "throughput_requests_per_s": list(throughput), **more}


def classes(*rates: float) -> list[dict[str, Any]]:
    return [{"name": f"c{n}", "isl": 100 * (n + 1), "osl": 10, "rate_rps": rate} for n, rate in enumerate(rates)]


def scenario(**parts: Any) -> FleetScenario:
    return load_fleet(Source("asked.yaml", {"kind": "fleet", **parts}), Path())


def check(asked: FleetScenario, result: Result) -> None:
    """Hold an answer against the scenario, by its plan alone: cost, demand, capacity, limits, failures, latency."""
    assert result.plan is not None and result.prediction is not None
    written = asked.resolved
    names = [one["name"] for one in written["workload"]["classes"]]
    said = result.prediction.get("throughput_requests_per_s", {})
    offers = {
        one["name"]: {"throughput_requests_per_s": [said[one["name"]][name] for name in names]} | one
        if one["name"] in said
        else one
        for one in written["accelerators"]
    }
    length = period_count(written["workload"])
    parts = result.plan.get("periods") or [{"periods": list(range(length)), **result.plan}]
    assert sorted(h for part in parts for h in part["periods"]) == list(range(length))
    total = 0.0
    for part in parts:
        total += len(part["periods"]) / length * cost_of(part, offers)
        for h in part["periods"]:
            check_period(written, offers, part, h)
    assert result.prediction["cost_usd_per_hour"] == total or math.isclose(
        result.prediction["cost_usd_per_hour"], total, rel_tol=1e-9
    )
    for name in offers:
        assert result.plan["counts"][name] == max(part["counts"][name] for part in parts)


def period_count(workload: Mapping[str, Any]) -> int:
    rated = [workload, *workload["classes"], *workload.get("graphs", [])]
    return max(len(one.get("profile", [1.0])) for one in rated)


def way_to_rent(part: Mapping[str, Any], offer: Mapping[str, Any]) -> dict[str, int]:
    count = part["counts"][offer["name"]]
    return part.get("purchases", {}).get(offer["name"], {"on_demand": count} if count else {})


def cost_of(part: Mapping[str, Any], offers: Mapping[str, Any]) -> float:
    total = 0.0
    keys = {
        "reserved": "reserved_price_usd_per_hour",
        "on_demand": "price_usd_per_hour",
        "spot": "spot_price_usd_per_hour",
    }
    for one in offers.values():
        bought = way_to_rent(part, one)
        assert sum(bought.values()) == part["counts"][one["name"]]
        total += sum(count * one[keys[way]] for way, count in bought.items() if count)
    return total


def factor(one: Mapping[str, Any], workload: Mapping[str, Any], h: int) -> float:
    profile = one.get("profile") or workload["profile"]
    return float(profile[h % len(profile)])


def demands(written: Mapping[str, Any], h: int) -> list[tuple[str, int, float, float]]:
    """Return name, class, rate and calls in a row of each stream."""
    workload = written["workload"]
    names = [one["name"] for one in workload["classes"]]
    found = [
        (one["name"], n, one["rate_rps"] * factor(one, workload, h), 1.0) for n, one in enumerate(workload["classes"])
    ]
    for graph in workload.get("graphs", []):
        for call in graph["calls"]:
            rate = graph["rate_rps"] * call["count"] * factor(graph, workload, h)
            found.append((f"{graph['name']}.{call['name']}", names.index(call["class"]), rate, call["count"]))
    return found


def per_instance(offer: Mapping[str, Any], model: str) -> int:
    size = offer.get("accelerators_per_instance", 1)
    return int(size.get(model, 1)) if isinstance(size, Mapping) else int(size)


def check_period(written: Mapping[str, Any], offers: Mapping[str, Any], part: Mapping[str, Any], h: int) -> None:
    workload, lost = written["workload"], written["headroom"]["lost_instances"]
    loads = {"": load_of(written, offers, part["routing"], h)}
    # whatever instances of one kind are lost, the others carry the requests, rerouted
    loads |= {name: load_of(written, offers, routing, h) for name, routing in part.get("failover", {}).items()}
    models = list(dict.fromkeys(one.get("model", written.get("model")) for one in workload["classes"]))
    for where, one in offers.items():
        bought, count = way_to_rent(part, one), part["counts"][where]
        assert count <= one.get("max", math.inf)
        instances = {
            model: part["instances"][model].get(where, 0) if "instances" in part else count // per_instance(one, model)
            for model in models
        }
        needed = sum(n * per_instance(one, model) for model, n in instances.items())
        assert needed <= count
        counted = sum(bought.values()) - (1 - one.get("spot_availability", 1.0)) * bought.get("spot", 0)
        for model, n in instances.items():
            # with one model the spot market's share is known
            there = counted / per_instance(one, model) if len(models) == 1 and needed == count else n
            pool = where if len(models) == 1 else f"{where} {model}"
            assert not lost or pool in loads or not loads[""].get((where, model))
            for failure, load in loads.items():
                left = max(there - lost, 0) if failure == pool else there
                assert load.get((where, model), 0) <= one["utilisation_max"] * left * (1 + TOLERANCE) + TOLERANCE
    for site in written["sites"]:
        here = [one for one in offers.values() if one.get("site", written["sites"][0]["name"]) == site["name"]]
        if "power" in site:
            assert sum(one["power"] * part["counts"][one["name"]] for one in here) <= site["power"] * (1 + TOLERANCE)
    for graph in workload.get("graphs", []):
        if graph["rate_rps"] * factor(graph, workload, h):
            for routing in (part["routing"], *part.get("failover", {}).values()):
                check_latency(written, offers, routing, graph)


def load_of(
    written: Mapping[str, Any], offers: Mapping[str, Any], routing: Mapping[str, Any], h: int
) -> dict[tuple[str, str], float]:
    """Return the instances of each kind and model that a routing keeps busy; every request goes somewhere."""
    workload = written["workload"]
    model_of = [one.get("model", written.get("model")) for one in workload["classes"]]
    load: dict[tuple[str, str], float] = {}
    for name, number, rate, _ in demands(written, h):
        if rate == 0:
            continue
        shares = routing[name]
        assert math.isclose(sum(shares.values()), 1.0, rel_tol=1e-9)
        for where, share in shares.items():
            throughput = offers[where]["throughput_requests_per_s"][number]
            assert throughput > 0
            slices = workload.get("slice_factor")
            assert not slices or math.isclose(share * slices, round(share * slices), abs_tol=1e-6)
            key = (where, model_of[number])
            load[key] = load.get(key, 0.0) + rate * share / throughput
    return load


def check_latency(
    written: Mapping[str, Any], offers: Mapping[str, Any], routing: Mapping[str, Any], graph: Mapping[str, Any]
) -> None:
    """Walk every path from a first to a last call, on the slowest accelerator each call may meet."""
    names = [one["name"] for one in written["workload"]["classes"]]
    calls = {call["name"]: call for call in graph["calls"]}

    def takes(name: str) -> float:
        number = names.index(calls[name]["class"])
        met = routing[f"{graph['name']}.{name}"]
        return max(offers[where]["latency_s"][number] for where in met) * calls[name]["count"]

    def paths(name: str) -> list[list[str]]:
        before = calls[name].get("after", [])
        return [[*path, name] for one in before for path in paths(one)] or [[name]]

    for name in calls:
        for path in paths(name):
            assert sum(map(takes, path)) <= graph["latency"] * (1 + TOLERANCE)
    for own in graph.get("paths", []):
        assert sum(map(takes, own["calls"])) <= own["latency"] * (1 + TOLERANCE)


def made_up(seed: int) -> dict[str, Any]:
    """Draw a scenario that may hold any of what a scenario can hold."""
    random = np.random.default_rng(seed)
    kinds, sizes = random.integers(1, 4, 2)
    models = ["small"] * sizes
    if random.random() < 0.3:
        models[sizes // 2 :] = ["big"] * (sizes - sizes // 2)
    asked = classes(*map(float, random.choice([0, 0.3, 1.7, 5.2], sizes)))
    for one, model in zip(asked, models, strict=True):
        one["model"] = model
    offers = []
    for kind in range(kinds):
        price = round(random.uniform(0.5, 5), 2)
        throughput = random.choice([0, 0.4, 1.3, 3.0, 7.7], sizes, p=[0.15, 0.2, 0.25, 0.2, 0.2]).tolist()
        one = offer(f"g{kind}", price, throughput, power=float(random.choice([100, 300])))
        one["latency_s"] = random.uniform(0.2, 3, sizes).round(2).tolist()
        if random.random() < 0.4:
            one["max"] = int(random.integers(0, 14))
        if random.random() < 0.4:
            one["reserved_price_usd_per_hour"] = price * float(random.uniform(0.4, 1.1))
        if random.random() < 0.4:
            one |= {"spot_price_usd_per_hour": price * float(random.uniform(0.2, 1.1)), "spot_availability": 0.8}
        if "big" in models and random.random() < 0.7:
            one["accelerators_per_instance"] = {"big": int(random.choice([2, 4]))}
        offers.append(one)
    workload: dict[str, Any] = {"classes": asked}
    if random.random() < 0.4:
        workload["profile"] = [1.0, *random.choice([0, 0.5, 1, 2], int(random.integers(1, 4))).tolist()]
    if random.random() < 0.4:
        workload["slice_factor"] = int(random.integers(1, 5))
    graph = random.random() < 0.35
    if graph:
        last = {"name": "b", "class": f"c{sizes - 1}", "after": ["a"], "count": 2.5}
        calls = [{"name": "a", "class": "c0"}, last, {"name": "d", "class": "c0", "after": ["a"]}]
        own = [{"calls": ["a", "d"], "latency": float(random.uniform(0.5, 6))}]
        limit = float(random.uniform(1, 12))
        workload["graphs"] = [{"name": "agent", "rate_rps": 0.7, "latency": limit, "calls": calls, "paths": own}]
    elif not any(one["rate_rps"] for one in asked):
        asked[0]["rate_rps"] = 1.0
    parts: dict[str, Any] = {"accelerators": offers, "workload": workload}
    parts["headroom"] = {"lost_instances": int(random.integers(0, 2)), "utilisation_max": 0.8}
    if random.random() < 0.3:
        parts["sites"] = [{"name": "hall", "power": float(random.choice([500, 2000, 9000]))}]
    return parts


def relaxed_parts(parts: dict[str, Any], changes: Any) -> dict[str, Any] | None:
    """Return a scenario with limits changed as a relaxation says; None where it gives requests up."""
    for change in changes:
        kind, _, name = change["constraint"].removesuffix("]").partition("[")
        if kind == "max":
            next(one for one in parts["accelerators"] if one["name"] == name)["max"] = round(change["needed"])
        elif kind == "power":
            parts["sites"][0]["power"] = change["needed"]
        elif kind == "latency":
            (graph,) = parts["workload"]["graphs"]
            (graph["paths"][0] if ":" in name else graph)["latency"] = change["needed"] * (1 + 1e-9)
        else:
            return None
    return parts


def cheapest(
    prices: Any, throughput: Any, rates: Any, slices: int, most: Any, lost: int = 0, together: Any = ()
) -> float:
    """Find the least cost by trying all counts, with every division of the slices, before and after every failure."""
    throughput, rates = np.asarray(throughput, dtype=float), np.asarray(rates, dtype=float)
    kinds = len(prices)
    loads = {(0.0,) * kinds}
    for number, rate in enumerate(rates):
        if rate:
            parts = [
                tuple(
                    (n * rate / slices / throughput[kind, number] if throughput[kind, number] else math.inf)
                    if n
                    else 0.0
                    for kind, n in enumerate(split)
                )
                for split in compositions(slices, kinds)
            ]
            loads = {tuple(a + b for a, b in zip(old, new, strict=True)) for old in loads for new in parts}
    reached = np.array([load for load in loads if not math.isinf(sum(load))]).reshape(-1, kinds)
    counts = np.indices([most[kind] + 1 for kind in range(kinds)]).reshape(kinds, -1).T
    for weights, limit in together:
        counts = counts[counts @ np.asarray(weights) <= limit]
    held = np.array([carried(reached, count) for count in counts], bool)
    for kind in range(kinds if lost else 0):
        left = counts.copy()
        left[:, kind] = np.maximum(left[:, kind] - lost, 0)
        held &= np.array([carried(reached, count) for count in left], bool)
    return float(min(counts[held] @ np.asarray(prices), default=math.inf))


def carried(loads: Any, counts: Any) -> bool:
    """Tell whether counts carry some division of the requests."""
    return bool((loads <= counts + 1e-9).all(axis=1).any())


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in compositions(total - first, parts - 1)]
