"""A deployment as an answer: what requests see, what it costs, where the time goes and what binds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel import provenance
from perfmodel.kernels import gemm
from perfmodel.operators import peak_flops
from perfmodel.power import clock_share
from perfmodel.serving.host import received_s
from perfmodel.serving.latency import STATISTICS, Latency, Pool, handoff_s
from perfmodel.serving.law import mixed_load
from perfmodel.serving.server import PRECISIONS, Server
from perfmodel.serving.split import PHASES, phase_server
from perfmodel.serving.spread import factors, step_spread
from perfmodel.serving.step import PARTS, step
from perfmodel.terms import COMPUTE, HOST, IDLE, LINK, Term, at, scaled, to_dict, total
from solvers import power_limit
from solvers.result import Objective
from solvers.serve_case import Case, Instances
from solvers.serve_power import Powered, power_dict
from solvers.serve_scenario import ServeScenario

OBJECTIVES: dict[str, tuple[str, Any]] = {
    "goodput_requests_per_s_per_gpu": ("1/s", "max"),
    "output_tokens_per_s_per_gpu": ("1/s", "max"),
    "cost_usd_per_million_tokens": ("USD", "min"),
    "energy_per_token_j": ("J", "min"),
    "ttft_mean_s": ("s", "min"),
    "ttft_p99_s": ("s", "min"),
    "tpot_mean_s": ("s", "min"),
    "tpot_p99_s": ("s", "min"),
    "e2e_mean_s": ("s", "min"),
}
"""Objective -> its unit and sense."""

BUSIEST = 0.98
"""Share of the capacity at which clients who wait for answers are taken to send."""

SLOWER = "slower than kernels alone"


@dataclass(frozen=True)
class Seen:
    """What requests see of a plan, however it was found.

    Parameters
    ----------
    times_s : dict of str to float
        Such as ``ttft_p99``, where known [s].
    low_s, high_s : dict of str to float
        The same with steps as fast, and as slow, as one in ten is [s].
    requests_per_s, goodput_per_s : tuple of float
        Requests answered, and those within the objectives: value, P10, P90 [1/s].
    load : float or None
        Share of the capacity that is asked, where requests arrive by themselves.
    running : float
        Sequences that an instance decodes at a time.
    origin : str
        What the figures come from.
    """

    times_s: dict[str, float]
    low_s: dict[str, float]
    high_s: dict[str, float]
    requests_per_s: tuple[float, float, float]
    goodput_per_s: tuple[float, float, float]
    load: float | None
    running: float
    origin: str


def objective(name: str, value: float | None) -> Objective:
    """Return what is optimised, with its value."""
    unit, sense = OBJECTIVES[name]
    return Objective(name, value, unit, sense)


def serve_provenance(scenario: ServeScenario, server: Server | None = None) -> dict[str, Any]:
    """Return what an answer rests on."""
    machine = scenario.machine
    used = server or scenario.server(scenario.question.search.precision_weights[0], None)
    return {
        "version": provenance.release(),
        "hardware": [machine.accelerator.name, machine.node.name, machine.cluster.name],
        "from_memory": provenance.recalled(machine),
        "calibration": [
            *sorted({f"kernels/{name.split('.')[0]}/{kernel.origin}" for name, kernel in used.kernels.items()}),
            "collectives",
            f"engine/{scenario.engine.name}",
        ],
    }


def plan_dict(case: Case) -> dict[str, Any]:
    """Return a deployment as a plan JSON holds it."""
    server = case.server
    shared = {
        "precision_weights": server.precision_weights,
        "precision_kv": server.precision_kv,
        "draft_tokens": int(case.speculation.drafted),
        "disaggregated": case.disaggregated,
        "layered_prefill": server.layered,
        "overlap": server.overlap,
        "prefill_share": case.prefill_share or 0,
        "power_cap_w": power_limit.written(server.machine),
    }
    if case.disaggregated:
        return shared | {"prefill": _pool(case.prompts), "decode": _pool(case.tokens)}
    return _pool(case.tokens) | shared


def _pool(part: Instances) -> dict[str, Any]:
    spread = part.deployment
    return {
        **{name: int(getattr(spread, name)) for name in ("tp", "pp", "dp", "ep")},
        "replicas": part.replicas,
        "max_num_seqs": part.max_num_seqs,
        "max_num_batched_tokens": part.max_num_batched_tokens,
    }


def request_limits(scenario: ServeScenario) -> dict[str, float]:
    """Return what counts as in time for a single request: the limits of the highest percentiles [s]."""
    found: dict[str, tuple[str, float]] = {}
    for name, limit in scenario.question.slo.limits.items():
        metric, _, statistic = name.partition("_")
        if metric in ("ttft", "tpot") and statistic != "mean" and statistic >= found.get(metric, ("", 0.0))[0]:
            found[metric] = (statistic, limit)
    return {metric: limit for metric, (_, limit) in found.items()}


def goodput_per_s(scenario: ServeScenario, latency: Latency, rate: Any) -> Any:
    """Return the requests answered within the objectives, at least [1/s].

    Notes
    -----
    Of objectives that are percentiles the share of requests within their limits; of means all requests if they hold,
    and none if not.
    """
    means = {name: limit for name, limit in scenario.question.slo.limits.items() if name.endswith("_mean")}
    holds = latency.stable
    for name, limit in means.items():
        holds = holds & (latency.of(name) <= limit)
    return np.where(holds, rate * latency.share_within(request_limits(scenario)), 0.0)


def steady(case: Case) -> Seen:
    """Return what requests see, from the equations of the steady state."""
    scenario, pools = case.scenario, case.pools()
    rate, latency = case.answered(pools)
    spreads = phase_spreads(case, _decoding(latency, rate, case))
    names = [f"{metric}_{statistic}" for metric in ("ttft", "tpot", "e2e") for statistic in STATISTICS]
    if scenario.offline:
        names = [name for name in names if name.startswith("tpot")]
    times = {name: _one(latency.of(name)) for name in names} | _between(case, pools, latency, rate)
    ends: list[dict[str, float]] = []
    rates: list[tuple[float, float]] = []
    for end in (0, 1):
        times_of = {phase: factors(spread)[end] for phase, spread in spreads.items()}
        by_phase = {
            phase: case.answered(pools, factor)[1] if latency.closed else case.latency(pools, rate, factor)
            for phase, factor in times_of.items()
        }
        found = {name: _one(by_phase["prompts" if name.startswith("ttft") else "tokens"].of(name)) for name in names}
        found |= {
            name: value * factors(spreads["tokens"])[end] for name, value in times.items() if name.startswith("itl")
        }
        ends.append(found)
        reached, there = case.answered(pools, (min, max)[end](times_of.values()))
        rates.append((reached / max(_one(there.load), 1.0), _one(goodput_per_s(scenario, there, reached))))
    (fast, fast_good), (slow, slow_good) = rates
    good = _one(goodput_per_s(scenario, latency, rate))
    given = scenario.by_themselves
    return Seen(
        times,
        ends[0],
        ends[1],
        (rate / max(_one(latency.load), 1.0), slow, fast),
        (good, min(slow_good, good), max(fast_good, good)),
        _one(latency.load) if given else None,
        _decoding(latency, rate, case),
        "equations of the steady state" if given else "equations of a closed loop",
    )


def _one(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def _decoding(latency: Latency, rate: float, case: Case) -> float:
    """Return the sequences that decode in an instance at a time (Little)."""
    share = rate / case.tokens.replicas
    return float(
        min(share * latency.gaps * _one(latency.tokens.tpot_s) / _one(latency.tokens_per_step), case.tokens.slots)
    )


def _between(case: Case, pools: tuple[Pool, Pool], latency: Latency, rate: float) -> dict[str, float]:
    """Return the times between tokens [s]."""
    from perfmodel.batching_gaps import gap_quantiles_s
    from perfmodel.serving.latency import PERCENTILES, requests

    law, limits = pools[1].law, pools[1].limits
    share = min(rate / case.tokens.replicas, BUSIEST * _one(latency.tokens.capacity_requests_per_s))
    demand = requests(case.scenario.demand, case.speculation)
    found = gap_quantiles_s(law, demand, limits, _decoding(latency, rate, case), share, list(PERCENTILES.values()))
    emitted = _one(latency.tokens_per_step)
    times = {"itl_mean": _one(latency.tpot_s("mean"))}
    return times | {f"itl_{name}": float(value) / emitted for name, value in zip(PERCENTILES, found, strict=True)}


def phase_spreads(case: Case, running: float = 1.0) -> dict[str, float]:
    """Return the spread of steps with a prompt, and of those that decode so many sequences."""
    prompt, tokens = _steps(case, max(running, 1.0))
    apart = case.disaggregated
    return {
        "prompts": step_spread(case.server, prompt, "ttft", apart=apart),
        "tokens": step_spread(case.server, tokens, "tpot", apart=apart),
    }


def _steps(case: Case, running: float) -> tuple[Term, Term]:
    """Return a step with a prompt, and one in which sequences decode."""
    demand, drafts = case.scenario.demand, case.speculation
    alone = case.server.engine.batching == "prefill_first" or case.disaggregated or case.prefill_share
    beside = 0.0 if alone else running
    piece = min(demand.computed_tokens, max(case.prompts.token_budget - beside, 1.0))
    servers = [phase_server(case.server, case.prefill_share, phase) for phase in PHASES]
    prompt = step(servers[0], case.prompts.deployment, mixed_load(demand, drafts, beside, piece))
    tokens = step(servers[1], case.tokens.deployment, mixed_load(demand, drafts, running, 0.0))
    return at(prompt, 0), at(tokens, 0)


def breakdown(case: Case, seen: Seen, first: Case | None = None) -> dict[str, Any]:
    """Return where the mean request's time goes; prompts are computed by `first`, where that is another."""
    prompt, tokens = _steps(case, max(seen.running, 1.0))
    if first is not None:
        prompt, _ = _steps(first, 0.0)
    before_s = received_s(case.server.engine)
    first_s = max(seen.times_s.get("ttft_mean", before_s) - before_s, 0.0)
    demand = case.scenario.demand
    pieces = max(demand.computed_tokens / case.prompts.token_budget, 1.0) * float(case.prompts.deployment.pp)
    own_s = min(float(prompt.seconds) * pieces, first_s)
    gaps = max(demand.output_tokens - 1.0, 0.0)
    later_s = seen.times_s["tpot_mean"] * gaps
    emitted = float(np.asarray(case.speculation.tokens_per_step))
    handed = case.disaggregated or first is not None
    handover_s = float(tokens.seconds) + handoff_s(case.server) if handed else 0.0
    sent_s = min(case.transfer_s if case.disaggregated else 0.0, first_s - own_s)
    handover_s = min(handover_s, first_s - own_s - sent_s)
    alone_s = min(float(tokens.seconds) * gaps / emitted, later_s)
    parts = [
        Term("receiving", before_s, HOST),
        Term("waiting for a step, for room, for other prompts", first_s - own_s - sent_s - handover_s, IDLE),
        _renamed(scaled(prompt, own_s / float(prompt.seconds)), "prompt"),
    ]
    if handed:
        parts += [
            Term("keys and values on the way", sent_s, LINK),
            Term("handing over, and the first step", handover_s, HOST),
        ]
    parts += [
        _renamed(scaled(tokens, alone_s / float(tokens.seconds)), "tokens after the first"),
        Term("prompts of other requests, drafts", later_s - alone_s, COMPUTE),
    ]
    return to_dict(total("request", parts))


def _renamed(term: Term, name: str) -> Term:
    """Return a step under another name; kernels that are faster than alone take what they take."""
    slower = next(child for child in term.children if child.name == SLOWER)
    if slower.seconds >= 0:
        return replace(term, name=name)
    kernels_s = sum(child.seconds for child in term.children if child.name in PARTS)
    factor = 1 + slower.seconds / kernels_s
    children = (scaled(child, factor) if child.name in PARTS else child for child in term.children)
    return replace(term, name=name, children=tuple(child for child in children if child.name != SLOWER))


def optimal_tokens_per_s(server: Server) -> float:
    """Return the most tokens that an accelerator can compute, F/(2 P) [1/s].

    Notes
    -----
    NanoFlow (arXiv 2408.12757), section 3; of a mixture P are the parameters that a token visits.
    """
    form = gemm.FORMS[PRECISIONS[server.precision_weights]]
    return peak_flops(server.machine.accelerator, form.arithmetic) / (2.0 * server.architecture.active_parameters)


def unbeatable(scenario: ServeScenario) -> float:
    """Return what no deployment can beat: the objective with every accelerator at its optimal throughput."""
    name, demand = scenario.question.objective, scenario.demand
    servers = [scenario.server(one, None) for one in scenario.question.search.precision_weights]
    tokens = max(optimal_tokens_per_s(server) for server in servers)
    rate = tokens / (demand.computed_tokens + demand.output_tokens)
    if name == "cost_usd_per_million_tokens":
        return (scenario.usd_per_hour(1) or 0.0) / (rate * demand.output_tokens * 3600) * 1e6
    per_gpu = {"goodput_requests_per_s_per_gpu": rate, "output_tokens_per_s_per_gpu": rate * demand.output_tokens}
    return per_gpu.get(name, 0.0)


def described(
    case: Case, seen: Seen, accelerators: int | None = None, usd_per_hour: float | None = None
) -> dict[str, Any]:
    """Return the prediction of a plan JSON; accelerators and cost are those of the case if left out.

    Power is there where they are left out.
    """
    found: dict[str, Any] = {}
    for metric in ("ttft", "tpot", "itl", "e2e"):
        for statistic in STATISTICS:
            name = f"{metric}_{statistic}"
            found[f"{name}_s"] = seen.times_s.get(name)
            if name in seen.times_s:
                found[f"{name}_s_p10"] = seen.low_s.get(name)
                found[f"{name}_s_p90"] = seen.high_s.get(name)
    demand, gpus = case.scenario.demand, accelerators or case.accelerators
    computed = demand.computed_tokens + demand.output_tokens
    optimal = optimal_tokens_per_s(case.server)
    for name, values, each in (
        ("requests_per_s", seen.requests_per_s, 1.0),
        ("goodput_requests_per_s", seen.goodput_per_s, 1.0),
        ("goodput_requests_per_s_per_gpu", seen.goodput_per_s, 1.0 / gpus),
        ("output_tokens_per_s_per_gpu", seen.requests_per_s, demand.output_tokens / gpus),
        ("tokens_per_s_per_gpu", seen.requests_per_s, (demand.prompt_tokens + demand.output_tokens) / gpus),
    ):
        for end, value in zip(("", "_p10", "_p90"), values, strict=True):
            found[name + end] = value * each
    hourly = usd_per_hour if accelerators else case.scenario.usd_per_hour(gpus)
    made = seen.requests_per_s[0] * demand.output_tokens * 3600
    found |= {
        "optimal_tokens_per_s_per_gpu": optimal,
        "optimal_share": seen.requests_per_s[0] * computed / gpus / optimal,
        "load": seen.load,
        "running_sequences": seen.running,
        "sequences_limit": case.tokens.slots,
        "gpus": gpus,
        "expert_imbalance": case.scenario.question.workload.expert_imbalance,
        "clock_share": clock_share(case.server.machine.accelerator),
        "latencies_from": seen.origin,
        "cache_tokens": _one(case.tokens.memory.cache_tokens),
        "memory_bytes": memory_dict(case, case.tokens),
    }
    if case.disaggregated:
        found["cache_prefill_tokens"] = _one(case.prompts.memory.cache_tokens)
        found["memory_prefill_bytes"] = memory_dict(case, case.prompts)
        found["kv_transfer_s"] = case.sending_s
        found["kv_transfer_exposed_s"] = case.transfer_s
    found |= {
        "cost_usd_per_hour": hourly,
        "cost_usd_per_million_tokens": None if hourly is None or not made else hourly / made * 1e6,
    }
    if accelerators:
        return found
    parts = [Powered(case, case.tokens, "tokens" if case.disaggregated else "both", 1.0)]
    parts += [Powered(case, case.prompts, "prompts", 1.0)] if case.disaggregated else []
    return found | power_dict(parts, seen.requests_per_s[0], seen.times_s.get("tpot_mean"))


def memory_dict(case: Case, part: Instances) -> dict[str, float]:
    """Return the memory of an accelerator by part [bytes]."""
    kept = part.memory
    parts = {name: _one(getattr(kept, name)) for name in ("weights", "workspace", "context", "cache")}
    whole = float(case.server.machine.accelerator.memory.capacity)
    return parts | {"unused": whole - sum(parts.values()), "device": whole}


def binding(case: Case, seen: Seen) -> list[dict[str, Any]]:
    """Return how much room each limit leaves."""
    found: list[dict[str, Any]] = []
    for name, limit in case.scenario.question.slo.limits.items():
        value = seen.times_s.get(name)
        if value is not None:
            found.append({"constraint": f"slo.{name}", "slack": limit - value, "shadow_price": None, "unit": "s"})
    if seen.load is not None:
        found.append({"constraint": "capacity", "slack": 1 - seen.load, "shadow_price": None, "unit": ""})
    room = case.tokens.slots - seen.running
    found.append({"constraint": "sequences that fit", "slack": room, "shadow_price": None, "unit": ""})
    question = case.scenario.question
    return found + power_limit.binding(case.server.machine, question.power, None, OBJECTIVES[question.objective][0])
