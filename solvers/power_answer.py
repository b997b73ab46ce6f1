"""Servers below limits as an answer: where they stand, what they draw, what binds, and what would do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hardware.provenance import from_memory
from perfmodel.power.device import interval
from perfmodel.power.risk import most_servers, variance_parts
from perfmodel.provenance import release
from perfmodel.terms import Array
from solvers.power_case import Case, Integers
from solvers.power_names import folded
from solvers.power_place import allowed, place, towards, trimmed
from solvers.power_relaxed import Relaxed, relax
from solvers.power_rules import Rule, rule_by_nameplate
from solvers.power_sampled import sampled_servers
from solvers.power_scenario import SENSE, YEAR_H, PowerScenario
from solvers.result import Objective

_UNITS = {"servers": "", "goodput_requests_per_s": "requests/s", "cost_usd": "USD"}
_STATES = ("limit", "limit after failure")
_PERCENTILES = (0.5, 0.9, 0.99)
_SHOWN = 200
"""Nodes that a prediction tells of one by one; of more only the heaviest of those that are alike."""
_HALVINGS = 40
_POINTS = 500
"""Parts of a series that stand for its steps, where these are more and power is normal around each."""
_RAISES = 12


def objective(scenario: PowerScenario, value: float | None) -> Objective:
    """Return what is maximised or minimised, with its value."""
    name = scenario.question.objective
    whole = value if value is None or name != "servers" else round(value)
    return Objective(name, whole, _UNITS[name], "max" if SENSE[name] == "max" else "min")


def common(scenario: PowerScenario) -> dict[str, Any]:
    """Return the question and what the answer rests on."""
    said = [f"{name}: {draw.source}" for name, draw in zip(scenario.case.workloads, scenario.draws, strict=True)]
    assumed = [key for key, entry in scenario.facility.provenance.items() if entry.evidence == "assumption"]
    recalled = {f"{machine.node.name}.{key}" for machine in scenario.machines for key, _ in from_memory(machine.node)}
    provenance = {
        "version": release(),
        "servers": said,
        "correlation": _correlation(scenario),
        "assumed": [f"{scenario.facility.name}.{key}" for key in assumed],
        "from_memory": sorted(key for key in recalled if ".power" in key),
    }
    return {"kind": "power", "scenario": scenario.resolved, "provenance": provenance}


def _correlation(scenario: PowerScenario) -> str:
    if scenario.question.policy.correlation is not None:
        return "as given"
    if all(draw.series is not None for draw in scenario.draws):
        return "that of the traces; servers of one workload alike"
    return "1 between all servers, which is safe; nothing else is known"


def plan_dict(case: Case, placed: Integers, method: str, rules: Sequence[Rule]) -> dict[str, Any]:
    """Return a placement as a plan JSON holds it.

    Parameters
    ----------
    case : Case
        The question.
    placed : array of int, shape (racks, workloads)
        Servers in each rack.
    method : str
        Rule it was found by.
    rules : sequence of Rule
        The same as watts.

    Returns
    -------
    dict
        ``servers`` in all, of ``workloads``, ``by_node``; ``rule``: the method, or nameplate where that alone allows
        as much; ``caps`` and ``thresholds``, null without capping.
    """
    safe = allowed(case, [rule_by_nameplate(rule) for rule in rules], placed).all()
    counts = placed.sum(axis=0)
    return {
        "method": method,
        "rule": "nameplate" if safe else method,
        "servers": int(counts.sum()),
        "workloads": {name: int(count) for name, count in zip(case.workloads, counts, strict=True)},
        "by_node": folded(case, placed),
        "caps": None,
        "thresholds": None,
    }


def prediction(scenario: PowerScenario, placed: Integers, method: str, rules: Sequence[Rule]) -> dict[str, Any]:
    """Return what servers draw, node by node, and what that costs.

    Parameters
    ----------
    scenario : PowerScenario
        The question.
    placed : array of int, shape (racks, workloads)
        Servers in each rack.
    method : str
        Rule it was found by.
    rules : sequence of Rule
        The same as watts.
    """
    case, facility = scenario.case, scenario.facility
    counts = placed.sum(axis=0)
    totals = case.site.totals(placed)
    nodes = _told(case, totals)
    quantiles, mean_w, above = power_quantiles(case, totals[nodes], case.site.limit_w[nodes])
    all_w = float(mean_w[0])
    goodput = [workload.goodput_requests_per_s for workload in scenario.question.workloads]
    prices = scenario.prices_usd_per_hour
    served = all(rate is not None for rate, count in zip(goodput, counts, strict=True) if count)
    priced = all(price is not None for price, count in zip(prices, counts, strict=True) if count)
    drawn_w = None if facility.pue is None else all_w * facility.pue
    energy_usd = None
    if drawn_w is not None and facility.energy_price is not None:
        energy_usd = drawn_w / 1e3 * YEAR_H * facility.energy_price
    rent = YEAR_H * sum((price or 0.0) * int(count) for price, count in zip(prices, counts, strict=True))
    rule_w = [rule.safe_load_w(totals[nodes]) for rule in rules]
    return {
        "servers": int(counts.sum()),
        "goodput_requests_per_s": float(sum((r or 0.0) * n for r, n in zip(goodput, counts, strict=True)))
        if served
        else None,
        "cost_usd": rent + (energy_usd or 0.0) if priced else None,
        **_with_intervals(
            scenario,
            counts,
            {
                "peak_p50_w": float(quantiles[0, 0]),
                "peak_p90_w": float(quantiles[0, 1]),
                "peak_p99_w": float(quantiles[0, 2]),
                "mean_w": all_w,
            },
        ),
        "nameplate_w": float(counts @ case.max_w),
        "limit_w": float(case.site.limit_w[0]),
        "share_above_limit": float(above.max()),
        "trip_probability_per_year": None,
        "capped_s_per_day": None,
        "loss": dict.fromkeys(case.workloads),
        "nameplate_servers": _alone(case, [rule_by_nameplate(rule) for rule in rules]),
        "rule_servers": _alone(case, rules),
        **(_sampled(case) if method == "packing" else {}),
        "pue": facility.pue,
        "facility_mean_w": drawn_w,
        "energy_cost_usd_per_year": energy_usd,
        "by_node": {
            case.site.name[node]: {
                "servers": int(totals[node].sum()),
                "limit_w": float(case.site.limit_w[node]),
                "rule_w": float(rule_w[0][place]),
                "p50_w": float(quantiles[place, 0]),
                "p90_w": float(quantiles[place, 1]),
                "p99_w": float(quantiles[place, 2]),
                "share_above_limit": float(above[place]),
            }
            | ({"failover_limit_w": float(case.site.failover_w[node]), "failover_w": float(rule_w[1][place])}
               if len(rules) > 1 else {})
            for place, node in enumerate(nodes.tolist())
        },
    }  # fmt: skip


def _sampled(case: Case) -> dict[str, int | None]:
    low, high = sampled_servers(case) or (None, None)
    return {"rule_servers_p10": low, "rule_servers_p90": high}


def _with_intervals(scenario: PowerScenario, counts: Integers, watts: dict[str, float]) -> dict[str, float]:
    """Return watts with their P10 and P90: errors of predicted powers add up, given ones have none."""
    case = scenario.case
    mean_w = counts * case.typical_w.mean(axis=1)
    spread = np.array([draw.spread for draw in scenario.draws])
    low, high = interval(float(mean_w @ spread) / max(float(mean_w.sum()), 1e-12))
    most = float(counts @ case.max_w)
    found: dict[str, float] = {}
    for name, value in watts.items():
        found |= {name: value, f"{name}_p10": value * float(low), f"{name}_p90": min(value * float(high), most)}
    return found


def _alone(case: Case, rules: Sequence[Rule]) -> int | None:
    """Return the servers that the root takes by the rule alone, whatever stands below it; None without shares."""
    if case.share is None and len(case.workloads) > 1:
        return None
    most = int(case.site.slots.sum()) * 10

    def counts(servers: Array) -> Array:
        many = [case.apportioned(int(n)) if case.share is not None else np.array([int(n)]) for n in servers.ravel()]
        return np.array(many)

    return min(
        int(most_servers(lambda n, rule=rule: rule.load_w(counts(n)), rule.limit_w[:1], most)[0])  # type: ignore[misc]
        for rule in rules
    )


def _told(case: Case, totals: Integers) -> Integers:
    """Return the nodes a prediction tells of: all, or of those that are alike the one with most servers."""
    site = case.site
    if len(site.name) <= _SHOWN:
        return np.arange(len(site.name))
    weight = totals @ case.quantile_w
    order = np.lexsort((-weight, site.pool))
    _, first = np.unique(site.pool[order], return_index=True)
    return np.sort(order[first])


def power_quantiles(case: Case, counts: Integers, limit_w: Array) -> tuple[Array, Array, Array]:
    """Return percentiles of power over time, its mean, and the share of time above a limit.

    Parameters
    ----------
    case : Case
        The question.
    counts : array of int, shape (nodes, workloads)
        Servers below each node.
    limit_w : array, shape (nodes,)
        Limits [W].

    Returns
    -------
    tuple of arrays, shapes (nodes, 3), (nodes,), (nodes,)
        P50, P90 and P99 [W]; mean [W]; share [1].

    Notes
    -----
    At every step power is normal around the sum of series and means, with the deviation of servers without series;
    never above the sum of nameplates.
    """
    from scipy.special import ndtr

    own, shared = variance_parts(case.noise_w, case.correlation)
    n = counts.astype(float)
    deviation = np.sqrt(np.maximum(n @ own + np.einsum("nk,kl,nl->n", n, shared, n), 0.0))
    most = n @ case.max_w
    found, means, above = np.zeros((len(n), len(_PERCENTILES))), np.zeros(len(n)), np.zeros(len(n))
    for node in range(len(n)):
        series = np.sort(n[node] @ case.typical_w)
        means[node] = series.mean()
        if deviation[node] > 0 and len(series) > _POINTS:
            series = np.quantile(series, (np.arange(_POINTS) + 0.5) / _POINTS)
        if deviation[node] == 0:
            at = np.ceil(np.array(_PERCENTILES) * len(series)).astype(int) - 1
            found[node] = series[at]
            above[node] = np.mean(series > limit_w[node] * (1 + 1e-9))
            continue
        low = np.full(len(_PERCENTILES), series[0] - 8 * deviation[node])
        high = np.full(len(_PERCENTILES), series[-1] + 8 * deviation[node])
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = ndtr((middle[:, None] - series) / deviation[node]).mean(axis=1)
            low, high = np.where(below < _PERCENTILES, middle, low), np.where(below < _PERCENTILES, high, middle)
        found[node] = np.minimum(high, most[node])
        beyond = float(ndtr((series - limit_w[node]) / deviation[node]).mean())
        above[node] = beyond if most[node] > limit_w[node] * (1 + 1e-9) else 0.0
    return found, means, above


def binding(
    case: Case, placed: Integers, rules: Sequence[Rule], relaxed: Relaxed | None = None
) -> list[dict[str, Any]]:
    """Return the limits that hold servers back, and what a kilowatt more of each would bring in the relaxation.

    Parameters
    ----------
    case : Case
        The question.
    placed : array of int, shape (racks, workloads)
        Servers in each rack.
    rules : sequence of Rule
        What every node has to meet.
    relaxed : Relaxed or None
        From which the prices come.
    """
    site = case.site
    totals = site.totals(placed)
    of = site.pool if relaxed is None else relaxed.pool
    least = float(case.quantile_w.min())
    price_unit = f"{_PRICE_UNITS[case.sense]}/kW"
    found = []
    for number, rule in enumerate(rules):
        slack = rule.limit_w - rule.safe_load_w(totals)
        for pool in np.unique(of).tolist():
            alike = np.flatnonzero(of == pool)
            tightest = int(alike[np.argmin(slack[alike])])
            price = 1e3 * (relaxed.shadow.get((number, pool), 0.0) if relaxed is not None else 0.0)
            told = number == 0 or rule.limit_w[tightest] < rules[0].limit_w[tightest]
            if price > 1e-9 or (told and slack[tightest] < least):
                entry = {
                    "constraint": f"{_STATES[number]}[{site.name[tightest]}]",
                    "slack": float(slack[tightest]),
                    "unit": "W",
                    "shadow_price": price if relaxed is not None else None,
                    "shadow_price_unit": price_unit,
                }
                found.append(entry | ({"alike": len(alike)} if len(alike) > 1 else {}))
    full = int(site.slots.sum() - placed.sum())
    if full == 0:
        found.append({"constraint": "slots", "slack": 0, "unit": "servers", "shadow_price": None})
    for kind, name in enumerate(case.workloads):
        if placed[:, kind].sum() == case.most[kind] and case.most[kind] < site.slots.sum():
            found.append({"constraint": f"max_servers[{name}]", "slack": 0, "unit": "servers", "shadow_price": None})
    return sorted(found, key=lambda entry: -(entry["shadow_price"] or 0.0))


_PRICE_UNITS = {"max": "servers", "min": "USD"}


def exceeded(case: Case, placed: Integers, rules: Sequence[Rule]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return which limits a placement exceeds and by how much, and what they would have to be.

    Of nodes that are alike the one that exceeds its limit most is told.
    """
    site, totals = case.site, case.site.totals(placed)
    why, relaxation = [], []
    for number, rule in enumerate(rules):
        short = rule.safe_load_w(totals) - rule.limit_w
        over = short > rule.limit_w * 1e-9
        if number:
            over &= rule.limit_w < rules[0].limit_w  # others are told of already
        for pool in np.unique(site.pool[over]).tolist():
            alike = np.flatnonzero(over & (site.pool == pool))
            node = int(alike[np.argmax(short[alike])])
            told = _short(case, number, node, float(short[node]), float(rule.limit_w[node]), len(alike))
            why.append(told[0])
            relaxation.append(told[1])
    return why, relaxation


def missing(
    case: Case, rules: Sequence[Rule], until: float, goal: Integers | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return where servers that are needed do not fit, and the least change of limits that would do.

    Parameters
    ----------
    case : Case
        The question.
    rules : sequence of Rule
        What every node has to meet.
    until : float
        When to stop, on `time.perf_counter` [s].
    goal : array of int, shape (workloads,)
        Servers of each workload; those that are needed if left out.

    Notes
    -----
    The watts that are missing in all are least in the relaxation. Limits are raised by them, and further until whole
    servers fit; what these draw is what the limits would have to be.
    """
    wanted = case.least if goal is None else goal
    relaxed = relax(case, rules, until, exact=wanted, elastic=True)
    if relaxed is None:
        return _no_room(case, wanted)
    over = {key: watts for key, watts in relaxed.missing_w.items() if watts > 1e-6}
    step = float(case.max_w.max())
    for attempt in range(_RAISES):
        raised = tuple(_raised(rule, number, relaxed.pool, over) for number, rule in enumerate(rules))
        own = relax(case, raised, until, exact=wanted)
        placed = None if own is None else towards(case, raised, place(case, raised, own), wanted)
        if placed is not None:
            return exceeded(case, trimmed(placed, wanted), rules)
        if time.perf_counter() > until:
            break
        over = {key: watts + step * (attempt + 1) / 2 for key, watts in over.items()} or {(0, 0): step}
    told = []
    for (number, pool), watts in over.items():
        node = int(np.flatnonzero(relaxed.pool == pool)[0])
        told.append(_short(case, number, node, watts, float(rules[number].limit_w[node])))
    return [why for why, _ in told], [change for _, change in told]


def _raised(rule: Rule, number: int, pool: Integers, over: dict[tuple[int, int], float]) -> Rule:
    more = np.array([over.get((number, one), 0.0) for one in pool.tolist()])
    return replace(rule, limit_w=rule.limit_w + more)


def _short(
    case: Case, number: int, node: int, short: float, limit: float, alike: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    name = case.site.name[node]
    state = " once a feed is lost" if number else ""
    others = f", the most of {alike} alike" if alike > 1 else ""
    why = {
        "reason": f"{name} lacks {short:,.0f} W{state}{others}",
        "candidates": None,
        "nearest": {"node": name, "missing_w": short, "limit_w": limit},
    }
    change = {"constraint": f"{_STATES[number]}[{name}]", "now": limit, "needed": limit + short, "unit": "W"}
    return why, change | ({"alike": alike} if alike > 1 else {})


def _no_room(case: Case, wanted: Integers) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what is missing where racks have no room for the servers, whatever they draw."""
    site = case.site
    room = np.array([int(site.slots[site.fits[:, kind]].sum()) for kind in range(len(case.workloads))])
    why, relaxation = [], []
    for kind in np.flatnonzero(wanted > np.minimum(room, case.most)).tolist():
        name = case.workloads[kind]
        limit, now = ("slots", room[kind]) if wanted[kind] > room[kind] else ("max_servers", case.most[kind])
        why.append({"reason": f"{limit} for {int(now)} servers of {name}, not {int(wanted[kind])}", "candidates": None})
        change = {"constraint": f"{limit}[{name}]", "now": int(now), "needed": int(wanted[kind]), "unit": "servers"}
        relaxation.append(change)
    if not why:
        total, now = int(wanted.sum()), int(site.slots.sum())
        why.append({"reason": f"slots for {now} servers, not {total}", "candidates": None})
        relaxation.append({"constraint": "slots", "now": now, "needed": total, "unit": "servers"})
    return why, relaxation
