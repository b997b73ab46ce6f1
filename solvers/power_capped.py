"""Caps in the answer: thresholds and clocks, what they cost, and the same by simulation second by second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from perfmodel.power.breaker import TripCurve
from perfmodel.power.forecast import PERCENTILES, YEAR_S, percentile_w
from perfmodel.power.load import WEEK_S, demands
from perfmodel.power.simulate import Plant, simulate
from perfmodel.requests import DAY_S
from perfmodel.terms import Array
from solvers.power_case import Integers
from solvers.power_held import Asking, Capped, Held, held_nodes
from solvers.power_scenario import PowerScenario


@dataclass(frozen=True)
class Simulated:
    """A simulation that is asked for.

    Parameters
    ----------
    weeks : float
        How long.
    seed : int
        Fixes what is drawn.
    """

    weeks: float = 1.0
    seed: int = 1


def plan_part(scenario: PowerScenario, capped: Capped) -> dict[str, Any]:
    """Return the thresholds, and the clocks of each workload above each [Hz], as a plan JSON holds them."""
    policy = capped.policy
    if policy is None:
        return {}
    clocks = policy.clocks[1:] * capped.asking.highest_clock
    caps = {name: {"clock_hz": clocks[:, number].tolist()} for number, name in enumerate(scenario.case.workloads)}
    names = [scenario.case.site.name[node] for node in capped.nodes.tolist()]
    return {"thresholds": list(policy.thresholds), "caps": caps, "held": names}


def with_caps(scenario: PowerScenario, held: Held, capped: Capped, said: dict[str, Any]) -> dict[str, Any]:
    """Return a prediction with what caps do: power of the nodes they hold, time, loss, and bounds of brakes and trips.

    Parameters
    ----------
    scenario, held, capped : PowerScenario, Held, Capped
        The question, nodes that are held, and the policy.
    said : dict
        The prediction without caps. Nodes above those that are held keep its power, which is more.
    """
    by_node = dict(said["by_node"])
    found = {key: said[key] for key in said if key.startswith(("peak_", "mean_w", "facility_", "energy_"))}
    for node, choice in zip(capped.nodes.tolist(), capped.choices, strict=True):
        name = scenario.case.site.name[node]
        if name not in by_node or choice.forecast is None:
            continue
        limit_w = by_node[name]["limit_w"]
        told, mean_w = _named("", choice.forecast.percentiles * limit_w), choice.forecast.mean * limit_w
        above = choice.forecast.brake_s_per_year / YEAR_S
        by_node[name] = by_node[name] | told | {"share_above_limit": min(above, 1.0)}
        if node == 0:
            power = {f"peak_{key}": value for key, value in told.items()} | {"mean_w": mean_w}
            for key, value in power.items():
                scale = value / said[key]
                found |= {key + end: said[key + end] * scale for end in ("", "_p10", "_p90")}
            for key in ("facility_mean_w", "energy_cost_usd_per_year"):
                found[key] = None if said[key] is None else said[key] * mean_w / said["mean_w"]
    above = max(one["share_above_limit"] for one in by_node.values())
    return said | found | {"share_above_limit": above, "by_node": by_node} | _costs(scenario, held, capped)


def _costs(scenario: PowerScenario, held: Held, capped: Capped) -> dict[str, Any]:
    """Return what caps are predicted to cost: time, loss, and bounds of brakes and trips."""
    found = [(choice.forecast, below) for choice, below in zip(capped.choices, capped.servers, strict=True)]
    capped_s, brakes, trips = 0.0, 0.0, 0.0
    late, servers = np.zeros(len(scenario.case.workloads)), np.zeros(len(scenario.case.workloads))
    for forecast, below in found:
        if forecast is None:
            continue
        there = np.flatnonzero(below > 0)
        late[there] += forecast.loss * below[there]
        servers += below
        capped_s = max(capped_s, (1.0 - float(forecast.share[0])) * DAY_S)
        brakes += forecast.brake_s_per_year
        trips += forecast.trip_probability_per_year
    loss = late / np.where(servers > 0, servers, 1.0)
    return {
        "capped_s_per_day": capped_s,
        "loss": dict(zip(scenario.case.workloads, loss.tolist(), strict=True)),
        "brake_probability_per_year": min(brakes, 1.0),
        "trip_probability_per_year": min(trips, 1.0),
        "largest_rise": held.rise,
    }


def binding_part(scenario: PowerScenario, held: Held, capped: Capped) -> list[dict[str, Any]]:
    """Return how far the policy of the fullest node is from each limit, and which of them one server more breaks."""
    node = scenario.case.site.name[int(capped.nodes[capped.fullest])]
    broken = {} if held.refused is None else {name: (now, most) for name, now, most in held.refused.binding}
    found = []
    for name, reached, allowed in capped.choices[capped.fullest].binding:
        entry: dict[str, Any] = {
            "constraint": f"{name}[{node}]",
            "slack": allowed - reached,
            "unit": "s" if name.startswith("time above") else "",
            "shadow_price": None,
        }
        more = broken.get(name)
        if more is not None and more[0] > more[1]:
            entry["one_server_more"] = more[0]
        found.append(entry)
    return sorted(found, key=lambda entry: "one_server_more" not in entry)


def refusal(scenario: PowerScenario, capped: Capped) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return which limits of a policy are broken, and what they would have to be; nothing where all are kept."""
    why, relaxation = [], []
    for place, choice in enumerate(capped.choices):
        node = scenario.case.site.name[int(capped.nodes[place])]
        for name, reached, allowed in choice.binding:
            if reached > allowed:
                nearest = {"node": node, "reached": reached, "allowed": allowed}
                why.append({"reason": f"{node}: {name}", "candidates": choice.candidates, "nearest": nearest})
                relaxation.append({"constraint": f"{name}[{node}]", "now": allowed, "needed": reached, "unit": ""})
    return why, relaxation


def simulation_part(
    scenario: PowerScenario, placed: Integers, capped: Capped | None, weeks: float, seed: int
) -> dict[str, Any]:
    """Return what a simulation of servers in racks at 1 s shows.

    Parameters
    ----------
    scenario : PowerScenario
        The question.
    placed : array of int, shape (racks, workloads)
        Servers in each rack.
    capped : Capped or None
        With the policy; nothing holds power below the limits without.
    weeks : float
        How long.
    seed : int
        Fixes what is drawn.
    """
    case, site = scenario.case, scenario.case.site
    nodes = held_nodes(site.level) if capped is None else capped.nodes
    asking = Asking(scenario, 1.0) if capped is None else capped.asking
    racks, pool = np.nonzero(placed)
    trip = asking.trip
    plant = Plant(
        placed[racks, pool],
        pool,
        site.racks[racks],
        site.parent,
        site.limit_w,
        trip.rating_w,
        TripCurve(trip.inverse_time_s, trip.instantaneous),
        nodes,
    )
    seconds = round(weeks * WEEK_S)
    policy = None if capped is None else capped.policy
    pieces = demands(asking.loads, plant.pool, plant.servers, seconds, seed)
    seen = simulate(pieces, 1.0, plant, asking.pools, policy)
    limit_w = site.limit_w[nodes]
    worst = int(np.argmax(seen.peak_w[nodes] / limit_w))
    forecast = None if capped is None else capped.choices[worst].forecast
    below = site.totals(placed)[nodes[worst]].tolist()
    if forecast is None:
        predicted_w = percentile_w(asking.moments, below, PERCENTILES)
    else:
        predicted_w = forecast.percentiles * limit_w[worst]
    seen_w = np.array([seen.percentile(share)[worst] for share in PERCENTILES]) * limit_w[worst]
    return {
        "seconds": seen.seconds,
        "seed": seed,
        "synthesised": all(draw.series is None or draw.series.synthesised for draw in scenario.draws),
        "node": site.name[int(nodes[worst])],
        "limit_w": float(limit_w[worst]),
        **_named("", seen_w),
        **_named("predicted_", predicted_w),
        "highest_w": float(seen.peak_w[nodes[worst]]),
        "largest_rise": float(seen.rise.max()),
        "s_above_limit": float(seen.over_s.max()),
        "brakes": int(seen.brakes.sum()),
        "trips": int(seen.trips.sum()),
        "capped_s_per_day": float((seen.seconds - seen.level_s[:, 0]).max() / seen.seconds * DAY_S),
        "loss": dict(zip(case.workloads, seen.loss.tolist(), strict=True)),
    }


def _named(before: str, watts: Array) -> dict[str, float]:
    return {f"{before}p{100 * share:g}_w": float(value) for share, value in zip(PERCENTILES, watts, strict=True)}
