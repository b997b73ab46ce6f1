"""What requests see of a deployment, event by event: the check of the equations, for the same step law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.requests import gamma_arrivals, histogram_lengths, lognormal_lengths
from perfmodel.serving.host import intake_s, received_s
from perfmodel.serving.latency import PERCENTILES, handoff_s
from perfmodel.serving.law import NO_SPECULATION, scaled, tabulated
from perfmodel.serving.split import lengthening, phase_server, step_budget
from perfmodel.serving.spread import factors
from perfmodel.simulated_engine import Engine
from perfmodel.simulation import Simulated, simulate, simulate_closed, simulate_disaggregated
from perfmodel.terms import Array
from solvers.serve_answer import Seen, phase_spreads, request_limits
from solvers.serve_case import Case, Instances
from solvers.serve_question import ServeLengths

REQUESTS = 10_000
"""Requests of a simulation, where nothing is said."""

SETTLED = 0.1
"""Share of the first requests that are left out, while the engine fills."""

LONGEST = 32
"""Longest prompt or answer that is drawn, over the mean."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Requests of a simulation."""

    arrival_s: Array
    prompt: Integers
    output: Integers


def simulated(case: Case, rate: float, *, seed: int = 1, requests: int = REQUESTS) -> tuple[Seen, int]:
    """Return what requests see, and how often one was preempted.

    Parameters
    ----------
    case : Case
        The deployment.
    rate : float
        Requests of all replicas, where they arrive by themselves [1/s].
    seed : int
        Of the requests.
    requests : int
        How many.

    Notes
    -----
    The ends of the interval are simulations of the same requests with faster and slower steps.
    """
    spreads = phase_spreads(case)
    spread = max(spreads.values())
    runs = [_run(case, rate, factor, seed, requests) for factor in (1.0, *factors(spread))]
    times, answered, good, running, preempted = zip(*runs, strict=True)
    closed = not case.scenario.by_themselves
    seen = Seen(
        times[0],
        times[1],
        times[2],
        (answered[0], min(answered[0], answered[2]), max(answered[0], answered[1])),
        (good[0], min(good[0], good[2]), max(good[0], good[1])),
        None if closed else rate / max(rate, answered[0]),
        running[0],
        _origin(case, requests, seed),
    )
    return seen, preempted[0]


def _origin(case: Case, requests: int, seed: int) -> str:
    if case.scenario.recorded is not None:
        return f"a simulation of the {len(case.scenario.recorded.arrival_s):,} requests of the busiest window"
    return f"a simulation of {requests:,} requests, seed {seed}"


def drawn(case: Case, rate: float, seed: int, count: int) -> Drawn:
    """Return requests with the times and lengths that the scenario describes."""
    scenario, random = case.scenario, np.random.default_rng(seed)
    workload, demand = scenario.question.workload, scenario.demand
    lengths = workload.lengths
    if scenario.recorded is not None:
        known = scenario.recorded
        computed = np.maximum(np.rint(known.prompt_tokens * (1 - demand.prefix_hit)), 1).astype(np.int64)
        return Drawn(known.arrival_s, computed, known.output_tokens)
    assert lengths is not None
    if isinstance(lengths, ServeLengths):
        prompt, output = (
            _lengths(mean, scv, count, random)
            for mean, scv in (
                (demand.prompt_tokens, demand.prompt_scv),
                (demand.output_tokens, demand.output_scv),
            )
        )
    else:
        pairs = [(one.isl, one.osl) for one in lengths.histogram]
        prompt, output = histogram_lengths(pairs, [one.weight for one in lengths.histogram], count, random)
    prompt = np.maximum(np.rint(prompt * (1 - demand.prefix_hit)), 1).astype(np.int64)
    if scenario.by_themselves:
        arrival = gamma_arrivals(rate, float(np.sqrt(demand.arrival_scv)), count, random)
    else:
        arrival = np.zeros(count)
    return Drawn(arrival, prompt, output)


def _lengths(mean: float, scv: float, count: int, random: np.random.Generator) -> Integers:
    median, sigma = mean / np.sqrt(1 + scv), float(np.sqrt(np.log1p(scv)))
    return lognormal_lengths(median, sigma, 1, int(LONGEST * mean), count, random)


def engine_of(case: Case, part: Instances, phase: str, factor: float) -> Engine:
    """Return one instance as the simulation takes it: the step law, and a cache that can overflow."""
    demand = case.scenario.demand
    speculation = case.speculation if phase != "prompts" else NO_SPECULATION
    counted = demand.context_tokens - demand.cached_tokens
    server = phase_server(case.server, case.prefill_share, phase)
    if case.prefill_share:
        slow = lengthening(case.server, part.deployment, demand, case.speculation, case.prefill_share)
        factor = factor * float(slow[phase])
    law = tabulated(
        server,
        part.deployment,
        demand,
        sequences=0.0 if phase == "prompts" else float(part.max_num_seqs * part.deployment.dp),
        tokens=0.0 if phase == "tokens" else part.token_budget,
        counted_context=counted,
        speculation=speculation,
    )
    return Engine(
        scaled(law, factor),
        "mixed" if phase == "tokens" else case.server.engine.batching,
        int(part.max_num_seqs * part.deployment.dp),
        int(step_budget(server, demand, part.token_budget)),
        float(part.memory.cache_tokens) * counted / demand.context_tokens,
        tokens_per_step=float(speculation.tokens_per_step),
    )


def _run(
    case: Case, rate: float, factor: float, seed: int, count: int
) -> tuple[dict[str, float], float, float, float, int]:
    """Return times of requests [s], requests answered and in time [1/s], sequences running, and preemptions."""
    asked = drawn(case, rate, seed, count)
    count = len(asked.arrival_s)
    after_s = 0.0
    if case.disaggregated or case.prefill_share:
        after_s = case.transfer_s + handoff_s(case.server) if case.disaggregated else 0.0
        first = engine_of(case, case.prompts, "prompts", factor)
        after = engine_of(case, case.tokens, "tokens", factor)
        pools = (case.prompts.replicas, case.tokens.replicas)
        found = [
            simulate_disaggregated(
                first, after, asked.arrival_s, asked.prompt, asked.output, *pools, transfer_s=after_s
            )
        ]
    else:
        found = _instances(case, asked, factor, seed)
    engine = case.server.engine
    each_s = np.concatenate([one.tpot_s[one.output_tokens > 1] for one in found])
    step_s = float(each_s.sum() / max(len(each_s), 1)) * float(case.speculation.tokens_per_step)
    looked_s = intake_s(engine, step_s, 1.0) - (step_s / 2 if case.scenario.by_themselves else 0.0)
    before_s = received_s(engine) + np.maximum(looked_s, 0.0)
    ttft = np.concatenate([one.ttft_s + before_s + after_s for one in found])
    gaps = np.concatenate([np.maximum(one.output_tokens - 1, 0) for one in found])
    e2e = np.concatenate([one.e2e_s + before_s for one in found])
    tpot = np.where(gaps > 0, (e2e - ttft) / np.maximum(gaps, 1), np.nan)
    finish = np.concatenate([one.finish_s for one in found])
    arrival = np.concatenate([one.arrival_s for one in found])
    order = np.argsort(arrival, kind="stable")
    kept = order[int(SETTLED * count) :]
    times: dict[str, float] = {}
    for metric, values in (("ttft", ttft), ("tpot", tpot), ("e2e", e2e)):
        own = values[kept][np.isfinite(values[kept])]
        times[f"{metric}_mean"] = float(own.mean()) if len(own) else 0.0
        for name, level in PERCENTILES.items():
            times[f"{metric}_{name}"] = float(np.quantile(own, level)) if len(own) else 0.0
    gap_s, gap_count = (np.concatenate([getattr(one, name) for one in found]) for name in ("gap_s", "gap_count"))
    times |= _quantiles(gap_s, gap_count)
    span = float(finish.max() - np.sort(finish)[int(SETTLED * count)])
    reached = (count - int(SETTLED * count)) / span
    answered = min(rate, reached) if case.scenario.by_themselves else reached
    inside = np.ones(len(kept), dtype=bool)
    for metric, limit in request_limits(case.scenario).items():
        values = (ttft if metric == "ttft" else tpot)[kept]
        inside &= ~(values > limit)
    for name, limit in case.scenario.question.slo.limits.items():
        if name.endswith("_mean"):
            inside &= times[name] <= limit
    running = float(np.mean([one.mean_running() for one in found]))
    return times, answered, answered * float(inside.mean()), running, sum(one.preemptions for one in found)


def _instances(case: Case, asked: Drawn, factor: float, seed: int) -> list[Simulated]:
    """Run instances that do everything, each with the requests that chance gives it."""
    engine, replicas = engine_of(case, case.tokens, "both", factor), case.tokens.replicas
    clients = case.scenario.concurrency
    if clients is not None:
        return [simulate_closed(engine, clients, asked.prompt, asked.output, replicas)]
    place = np.random.default_rng(seed + 1).integers(replicas, size=len(asked.prompt))
    parts = [place == number for number in range(replicas) if (place == number).any()]
    return [simulate(engine, asked.arrival_s[one], asked.prompt[one], asked.output[one]) for one in parts]


def _quantiles(gap_s: Array, count: Array) -> dict[str, float]:
    """Return mean and quantiles of the times between tokens [s]."""
    if not count.sum():
        return {}
    order = np.argsort(gap_s)
    reached = np.cumsum(count[order])
    found = {"itl_mean": float((gap_s * count).sum() / count.sum())}
    for name, level in PERCENTILES.items():
        found[f"itl_{name}"] = float(gap_s[order][np.searchsorted(reached, level * reached[-1])])
    return found
