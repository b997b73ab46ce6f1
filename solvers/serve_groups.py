"""Plans of several groups of instances: what their requests see together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.kv_transfer import exposed_transfer
from perfmodel.serving.latency import PERCENTILES, Latency, Pool, apart, slower, together
from perfmodel.serving.spread import factors
from perfmodel.terms import Array
from solvers.serve_answer import Seen, described, goodput_per_s, memory_dict, optimal_tokens_per_s, phase_spreads
from solvers.serve_case import Case, instances, prompt_alone_s
from solvers.serve_mix import Mix, link_rate
from solvers.serve_power import Powered, power_dict
from solvers.serve_question import ServeGroup, ServePlan
from solvers.serve_scenario import ServeScenario

LEVELS = 200
"""Requests of each group by which a percentile of all is found."""

ROOM = 0.99
"""Share of an objective that is aimed at where units together miss it [1]."""

LENGTHS = 16
"""Lengths of answers by which the time of a whole request is."""


@dataclass(frozen=True)
class Group:
    """One group with what it needs to be costed."""

    asked: ServeGroup
    case: Case
    pool: Pool


@dataclass(frozen=True)
class Part:
    """Requests that go one way: their share, and what they see at each factor of the steps."""

    share: float
    latency: Latency


def plan_of(scenario: ServeScenario, mix: Mix) -> ServePlan:
    """Return a choice of units as a plan; requests are dealt out in proportion to what units sustain."""
    able: dict[str, float] = {}
    for unit, count in mix.counts:
        able[unit.phase] = able.get(unit.phase, 0.0) + unit.rate * count
    if "both" not in able:
        mix = replace(mix, apart=1.0)
    groups = []
    for unit, count in mix.counts:
        whole = 1 - mix.apart if unit.phase == "both" else mix.apart
        share = whole * unit.rate * count / able[unit.phase]
        if share <= 0:
            continue
        kind = scenario.kinds[unit.kind].machine.accelerator.name
        types = {"precision_weights": unit.precision_weights, "precision_kv": unit.precision_kv}
        groups.append(
            ServeGroup(**unit.pool, replicas=count, accelerator=kind, phase=unit.phase, share=min(share, 1.0), **types)
        )
    return ServePlan(groups=tuple(groups), disaggregated=any(group.phase != "both" for group in groups))


def plan_dict(plan: ServePlan) -> dict[str, Any]:
    """Return it as a plan JSON holds it."""
    return plan.model_dump(mode="json", include={"groups", "disaggregated"})


def groups_of(scenario: ServeScenario, plan: ServePlan) -> list[Group]:
    """Return the groups of a plan, ready to be costed."""
    assert plan.groups is not None
    found = []
    for asked in plan.groups:
        kind = next(one for one in scenario.kinds if asked.accelerator in (None, one.machine.accelerator.name))
        server = kind.server(asked.precision_weights, asked.precision_kv)
        speculation = scenario.speculation(0)
        part = instances(kind, server, speculation, asked, prompts_only=asked.phase == "prefill")
        case = Case(kind, server, speculation, part, part)
        phase = {"both": "both", "prefill": "prompts", "decode": "tokens"}[asked.phase]
        found.append(Group(asked, case, case.pool(part, phase)))
    return found


def ways(groups: list[Group], rate: float, factor: float = 1.0) -> list[Part]:
    """Return the ways that requests go, with steps so many times as long."""
    found = []
    prompts = [one for one in groups if one.asked.phase == "prefill"]
    tokens = [one for one in groups if one.asked.phase == "decode"]
    for one in groups:
        if one.asked.phase == "both":
            case, asked = one.case, one.asked
            demand = case.scenario.demand
            pool = slower(one.pool, factor)
            seen = together(case.server, pool, demand, case.speculation, rate * asked.share, asked.replicas)
            found.append(Part(asked.share, seen))
    apart_share = sum(one.asked.share for one in prompts)
    for first in prompts:
        for after in tokens:
            share = first.asked.share * after.asked.share / apart_share
            demand = first.case.scenario.demand
            # as many replicas as make each pool's own rate of the rate of one way
            counts = tuple(one.asked.replicas / one.asked.share * apart_share for one in (first, after))
            pools = (slower(first.pool, factor), slower(after.pool, factor))
            sent = _sent(first.case, after.case)
            latency = apart(
                first.case.server,
                *pools,
                demand,
                after.case.speculation,
                rate * apart_share,
                (counts[0], counts[1]),
                sent,
            )
            found.append(Part(share, latency))
    return found


def _sent(first: Case, after: Case) -> tuple[float, float]:
    """Return how long keys and values are on the way [s], and what of it is left when the prompt is computed [s]."""
    size = float(kv_bytes_per_token(first.server.architecture, first.server.cache_bytes))
    size *= first.scenario.demand.prompt_tokens
    sizes = [int(one.tokens.deployment.accelerators) for one in (first, after)]
    rates = [count * link_rate(one.scenario) for count, one in zip(sizes, (first, after), strict=True)]
    whole = size / min(rates)
    depth = first.server.architecture.depth
    alone_s = float(
        prompt_alone_s(first.server, first.tokens.deployment, first.scenario.demand, first.tokens.token_budget)
    )
    return whole, float(exposed_transfer(whole / depth, alone_s / depth, depth))


def seen_of(scenario: ServeScenario, groups: list[Group], rate: float) -> Seen:
    """Return what all requests see together."""
    main = heaviest(groups)
    spread = max(phase_spreads(main.case).values())
    runs = []
    for factor in (1.0, *factors(spread)):
        parts = ways(groups, rate, factor)
        good = sum(float(goodput_per_s(scenario, one.latency, rate * one.share)) for one in parts)
        load = max(float(one.latency.load) for one in parts)
        runs.append((_times(parts), good, load, rate / max(load, 1.0)))
    (times, good, load, answered), fast, slow = runs
    running = rate * main.asked.share / main.asked.replicas * times["tpot_mean"]
    running *= max(scenario.demand.output_tokens - 1, 0.0)
    return Seen(
        times,
        fast[0],
        slow[0],
        (answered, slow[3], fast[3]),
        (good, min(good, slow[1]), max(good, fast[1])),
        load,
        min(running, main.case.tokens.slots),
        "equations of the steady state",
    )


def _times(parts: list[Part]) -> dict[str, float]:
    """Return means and percentiles of requests that go several ways, from requests of each at equal steps of chance."""
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    lengths = parts[0].latency.outputs((np.arange(LENGTHS) + 0.5) / LENGTHS)
    found: dict[str, float] = {}
    columns: dict[str, list[Array]] = {"ttft": [], "tpot": [], "e2e": []}
    weights: dict[str, list[Array]] = {"ttft": [], "tpot": [], "e2e": []}
    for one in parts:
        ttft, tpot = (one.latency.quantile_s(metric, levels) for metric in ("ttft", "tpot"))
        e2e = (ttft[:, None] + np.maximum(lengths - 1, 0.0) * tpot[:, None]).ravel()
        for name, values in (("ttft", ttft), ("tpot", tpot), ("e2e", e2e)):
            columns[name].append(values)
            weights[name].append(np.full(len(values), one.share / len(values)))
    for name in columns:
        values, weight = np.concatenate(columns[name]), np.concatenate(weights[name])
        found[f"{name}_mean"] = sum(one.share * float(one.latency.of(f"{name}_mean")) for one in parts)
        order = np.argsort(values)
        middle = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
        for statistic, level in PERCENTILES.items():
            found[f"{name}_{statistic}"] = float(np.interp(level, middle, values[order]))
    return found


def missed(scenario: ServeScenario, plan: ServePlan) -> dict[str, float]:
    """Return the objectives that requests of a plan miss, with a share of each that would leave room for it [1]."""
    parts = groups_of(scenario, plan)
    assert scenario.rate is not None
    seen = seen_of(scenario, parts, scenario.rate)
    limits = scenario.question.slo.limits
    over = {name: seen.times_s[name] / limit for name, limit in limits.items()}
    return {name: ROOM / excess for name, excess in over.items() if excess > 1 + 1e-6}


def described_groups(scenario: ServeScenario, plan: ServePlan, groups: list[Group], seen: Seen) -> dict[str, Any]:
    """Return the prediction of a plan of several groups; memory is that of the one with most requests."""
    names = [kind.machine.accelerator.name for kind in scenario.kinds]
    by_kind: dict[int, int] = {}
    for one in groups:
        kind = names.index(one.case.server.machine.accelerator.name)
        by_kind[kind] = by_kind.get(kind, 0) + one.case.tokens.accelerators
    prices = [scenario.kinds[kind].usd_per_hour(count) for kind, count in by_kind.items()]
    hourly = None if None in prices else float(sum(price for price in prices if price is not None))
    told = described(heaviest(groups).case, seen, sum(by_kind.values()), hourly)
    computed = scenario.demand.computed_tokens + scenario.demand.output_tokens
    most = sum(optimal_tokens_per_s(one.case.server) * one.case.tokens.accelerators for one in groups)
    told |= {
        "optimal_tokens_per_s_per_gpu": most / sum(by_kind.values()),
        "optimal_share": seen.requests_per_s[0] * computed / most,
    }
    phases = {"both": "both", "prefill": "prompts", "decode": "tokens"}
    parts = [Powered(one.case, one.case.tokens, phases[one.asked.phase], one.asked.share) for one in groups]
    told |= power_dict(parts, seen.requests_per_s[0], seen.times_s.get("tpot_mean"))
    memory = [
        {"cache_tokens": float(part.memory.cache_tokens), "memory_bytes": memory_dict(case, part)}
        for case, part in ((one.case, one.case.tokens) for one in groups)
    ]
    counts = {names[kind]: count for kind, count in by_kind.items()}
    return told | {"gpus_by_accelerator": counts, "groups": memory}


def heaviest(groups: list[Group]) -> Group:
    """Return the group that makes the tokens of most requests."""
    return max(groups, key=lambda one: (one.asked.phase != "prefill", one.asked.share))
