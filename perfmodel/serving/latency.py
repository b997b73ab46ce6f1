"""What requests see of instances at a given rate: step law, memory and continuous batching in one.

An instance that does everything is a steady state of `perfmodel.batching`; a pair of pools is one of prompts alone and
one of the tokens that follow, with the keys and values sent from the first to the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from perfmodel.batching import Limits, Requests, SteadyState, open_loop
from perfmodel.batching_runs import closed_loop, ends
from perfmodel.serving.host import intake_s, received_s
from perfmodel.serving.law import NO_SPECULATION, Demand, Speculation, scaled, tabulated
from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment
from perfmodel.step_law import StepTable
from perfmodel.terms import Array, Number

PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
STATISTICS = ("mean", *PERCENTILES)

OVERFLOW = 2.326
"""Standard deviations of the tokens held that the cache has room for: they overflow 1 % of the time."""

UNLIMITED_TOKENS = 1e12
QUADRATURE = 24
"""Points of each of the two axes over which times of requests are added up."""


@dataclass(frozen=True)
class Pool:
    """Instances of one layout, as the equations take them.

    Parameters
    ----------
    law : StepTable
        Time of a step.
    limits : Limits
        What a step may hold; arrays of candidates.
    pipeline_s : array
        Time of a prompt in the stages of a pipeline beyond a step: as many steps are under way as there are stages [s].
    """

    law: StepTable
    limits: Limits
    pipeline_s: Number = 0.0


@dataclass(frozen=True)
class Latency:
    """Times of requests in steady state.

    Parameters
    ----------
    demand : Demand
        What requests are like.
    tokens_per_step : array
        Tokens that a sequence gets in a step.
    received_s : array
        Time of a request before its prompt is computed, and in the further stages of a pipeline [s].
    prompts, tokens : SteadyState
        Of the instances that compute prompts, and of those that compute the tokens that follow; the same where
        instances do both.
    handover_s : array
        Mean time from the end of a prompt until the instance that makes the other tokens sends the first [s].
    links_load : array
        Share of the links between the pools that is used.
    requests_per_s : array
        Requests answered by all replicas [1/s].
    closed : bool
        Whether requests wait for answers to others, so that they never come too fast.
    """

    demand: Demand
    tokens_per_step: Array
    received_s: Number
    prompts: SteadyState
    tokens: SteadyState
    handover_s: Number = 0.0
    links_load: Number = 0.0
    requests_per_s: Number = 0.0
    closed: bool = False

    @property
    def stable(self) -> Array:
        """Whether requests are answered as fast as they come."""
        return np.asarray((self.load < 1) | self.closed)

    @property
    def load(self) -> Array:
        """Share of the capacity that is asked, of the busiest of pools and links."""
        return np.asarray(np.maximum(np.maximum(self.prompts.load, self.tokens.load), self.links_load))

    @property
    def _before_s(self) -> Number:
        """Time to the first token that neither waiting nor the prompt take [s]."""
        return self.received_s + self.handover_s

    @property
    def gaps(self) -> float:
        """Output tokens after the first."""
        return max(self.demand.output_tokens - 1.0, 0.0)

    def ttft_s(self, statistic: str) -> Array:
        """Return mean or percentile of the time to the first token [s]."""
        if statistic == "mean":
            return np.asarray(self._before_s + self.prompts.ttft_s)
        return np.asarray(self._before_s + self.prompts.ttft_quantile_s(PERCENTILES[statistic]))

    def tpot_s(self, statistic: str) -> Array:
        """Return mean or percentile of the time per output token after the first [s]; 0 where there is none."""
        steady = self.tokens
        if not self.gaps:
            return np.zeros(np.shape(self.load))
        step = steady.tpot_s if statistic == "mean" else steady.tpot_quantile_s(PERCENTILES[statistic])
        return np.asarray(step / self.tokens_per_step)

    def e2e_s(self, statistic: str) -> Array:
        """Return mean or percentile of the time from arrival to the last token [s].

        Notes
        -----
        TTFT + (G - 1) TPOT; of a request that waits long for its first token the others are slow too: both at one
        level of probability, the lengths of answers (log-normal) independent of them.
        """
        if statistic == "mean":
            return np.asarray(self.ttft_s("mean") + self.gaps * self.tpot_s("mean"))
        every = self._whole_s
        at = PERCENTILES[statistic] * len(every) - 0.5
        below = int(np.clip(np.floor(at), 0, len(every) - 2))
        between = every[below] + (at - below) * (every[below + 1] - every[below])
        return np.where(np.isfinite(every[-1]), between, np.inf)

    @cached_property
    def _whole_s(self) -> Array:
        """Times of whole requests at equal steps of probability, ascending, in the first axis [s]."""
        levels = (np.arange(QUADRATURE) + 0.5) / QUADRATURE
        later = np.maximum(self.outputs(levels) - 1.0, 0.0)
        shape = np.shape(self.load)
        at = levels.reshape(-1, *(1,) * len(shape))
        first, each = (np.broadcast_to(self.quantile_s(name, at), (QUADRATURE, *shape)) for name in ("ttft", "tpot"))
        every = first[None] + later.reshape(-1, *(1,) * (len(shape) + 1)) * each[None]
        return np.sort(every.reshape(-1, *shape), axis=0)

    def outputs(self, levels: Array) -> Array:
        """Return quantiles of the output tokens at some levels."""
        from scipy.special import ndtri

        mean, scv = self.demand.output_tokens, self.demand.output_scv
        sigma = np.sqrt(np.log1p(scv))
        return np.asarray(mean * np.exp(sigma * ndtri(levels) - sigma**2 / 2))

    def of(self, name: str) -> Array:
        """Return what `ttft_mean`, `tpot_p99` and the like name [s]."""
        metric, _, statistic = name.partition("_")
        return {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[metric](statistic)

    def share_within(self, limits: Mapping[str, float]) -> Array:
        """Return the least share of requests that is within limits of TTFT and TPOT, whatever ties the two.

        Parameters
        ----------
        limits : mapping of str to float
            Limit of each request's ``ttft`` and ``tpot`` [s].

        Notes
        -----
        P(both) >= 1 - P(one is not) - P(the other is not) (Bonferroni).
        """
        missed: Array = np.zeros(np.shape(self.load))
        for metric, limit in limits.items():
            low, high = np.zeros(np.shape(self.load)), np.ones(np.shape(self.load))
            for _ in range(24):
                middle = (low + high) / 2
                inside = self.quantile_s(metric, middle) <= limit
                low, high = np.where(inside, middle, low), np.where(inside, high, middle)
            missed = missed + 1 - low
        return np.where(self.stable, np.maximum(1 - missed, 0.0), 0.0)

    def quantile_s(self, metric: str, level: Array) -> Array:
        """Return quantiles of ``ttft`` or ``tpot`` at levels of any shape that broadcasts [s]."""
        level = np.clip(level, 1e-6, 1 - 1e-6)
        if metric == "ttft":
            return np.asarray(self._before_s + self.prompts.ttft_quantile_s(level))  # type: ignore[arg-type]
        if not self.gaps:
            return np.zeros(np.shape(self.load))
        step = self.tokens.tpot_quantile_s(level)  # type: ignore[arg-type]
        return np.asarray(step / self.tokens_per_step)


def picked(latency: Latency, where: Array) -> Latency:
    """Return some of the candidates, in one axis.

    Parameters
    ----------
    latency : Latency
        Of candidates of any shape.
    where : array of bool
        Of that shape.
    """

    def one(value: Any) -> Any:
        return np.broadcast_to(value, where.shape)[where]

    def state(steady: SteadyState) -> SteadyState:
        return SteadyState(*(one(getattr(steady, part.name)) for part in fields(steady)))

    prompts = state(latency.prompts)
    tokens = prompts if latency.tokens is latency.prompts else state(latency.tokens)
    rest = (one(latency.tokens_per_step), one(latency.received_s), prompts, tokens)
    ends = (one(latency.handover_s), one(latency.links_load), one(latency.requests_per_s), latency.closed)
    return Latency(latency.demand, *rest, *ends)


def slots(cache_tokens: Number, demand: Demand, speculation: Speculation, most: Number) -> Array:
    """Return how many sequences an instance runs at once.

    Parameters
    ----------
    cache_tokens : array
        Tokens that the cache of keys and values holds.
    demand, speculation : Demand, Speculation
        What a sequence holds, on average over its time in the engine, and its spread.
    most : array
        Most sequences that the engine runs.

    Notes
    -----
    The largest n with n h + z sqrt(n) s <= cache, h the mean context (with room for drafts), s its standard deviation
    over sequences that are anywhere in their answers, z = `OVERFLOW`; none where the longest request does not fit.
    """
    drafts = np.where(np.asarray(speculation.drafted) > 0, np.asarray(speculation.drafted) + 1.0, 0.0)
    held = demand.context_tokens + drafts
    answers = demand.output_tokens**2 * (1 + demand.output_scv) / 12 * (1 + 3 * demand.output_scv)
    spread = OVERFLOW * np.sqrt(demand.prompt_scv * demand.prompt_tokens**2 + answers)
    root = (np.sqrt(spread**2 + 4 * held * np.asarray(cache_tokens)) - spread) / (2 * held)
    whole = demand.prompt_tokens + demand.output_tokens + drafts
    fits = np.where(np.asarray(cache_tokens) >= whole, np.maximum(np.floor(root**2), 1.0), 0.0)
    return np.minimum(fits, most)


def requests(demand: Demand, speculation: Speculation) -> Requests:
    """Return requests as continuous batching sees them: computed prompts, and steps instead of tokens.

    Notes
    -----
    1 + (G - 1)/E steps of an answer; its variance shrinks with it.
    """
    more = (demand.output_tokens - 1.0) / speculation.tokens_per_step
    scv = demand.output_scv * (demand.output_tokens / speculation.tokens_per_step) ** 2 / (1.0 + more) ** 2
    return Requests(demand.computed_tokens, 1.0 + more, demand.prompt_scv, scv)


def pool(
    server: Server,
    deployment: Deployment,
    demand: Demand,
    *,
    max_batch: Number,
    token_budget: Number,
    speculation: Speculation = NO_SPECULATION,
    phase: str = "both",
) -> Pool:
    """Return instances of one layout, or of many.

    Parameters
    ----------
    deployment, speculation : Deployment, Speculation
        Candidates of any one shape that broadcasts with the limits.
    max_batch, token_budget : array
        Sequences that an instance runs at once; tokens of one of its steps.
    phase : str
        ``both``, or ``prompts`` or ``tokens`` of an instance of one phase.
    """
    both = requests(demand, speculation)
    prompt = demand.computed_tokens
    sequences, tokens = float(np.max(max_batch)), float(np.max(token_budget))
    mode = server.engine.batching
    if phase == "tokens":
        tokens, mode, token_budget = 0.0, "mixed", UNLIMITED_TOKENS
    elif phase == "prompts":
        sequences = 0.0
    law = tabulated(
        server,
        deployment,
        demand,
        sequences=sequences,
        tokens=tokens,
        counted_context=both.context_tokens,
        speculation=speculation,
    )
    prompt_s = law.seconds(0.0, prompt, 0.0, prompt * both.pairs_per_token)
    pipeline_s = 0.0 if phase == "tokens" else (np.asarray(deployment.pp) - 1) * prompt_s
    return Pool(law, Limits(mode, max_batch, token_budget), pipeline_s)


def together(
    server: Server, one: Pool, demand: Demand, speculation: Speculation, rate: Number, replicas: Number
) -> Latency:
    """Return what requests see that are dealt out at random to replicas that do everything.

    Parameters
    ----------
    rate, replicas : array
        Requests of all replicas [1/s], and how many there are.

    Notes
    -----
    Each arrival goes to a replica with probability 1/r: times between its arrivals have 1 + (scv - 1)/r.
    """
    shared = np.asarray(rate, float) / replicas
    scv = 1 + (demand.arrival_scv - 1) / np.asarray(replicas, float)
    state = open_loop(one.law, requests(demand, speculation), one.limits, shared, scv)
    before_s = received_s(server.engine) + one.pipeline_s + looked_s(server, state)
    answered = np.minimum(rate, state.capacity_requests_per_s * replicas)
    return Latency(demand, speculation.tokens_per_step, before_s, state, state, requests_per_s=answered)


def looped(
    server: Server, one: Pool, demand: Demand, speculation: Speculation, clients: Number, replicas: Number
) -> Latency:
    """Return what clients see that send the next request when the last is answered, of replicas that do everything.

    Parameters
    ----------
    clients, replicas : array
        Clients of all replicas, who stay with theirs, and how many replicas there are.
    """
    each = np.maximum(np.asarray(clients, float) / replicas, 1.0)
    asked = (one.law, requests(demand, speculation), one.limits, each)
    state = closed_loop(*asked)
    intake = intake_s(server.engine, state.tpot_s, ends(*asked)[1])
    before_s = received_s(server.engine) + one.pipeline_s + intake
    round_s = each / state.requests_per_s + before_s
    answered = each / round_s * np.minimum(replicas, clients)
    return Latency(demand, speculation.tokens_per_step, before_s, state, state, requests_per_s=answered, closed=True)


def apart(
    server: Server,
    prompts: Pool,
    tokens: Pool,
    demand: Demand,
    speculation: Speculation,
    rate: Number,
    replicas: tuple[Number, Number],
    sending_s: tuple[Number, Number],
) -> Latency:
    """Return what requests see of a pool that computes prompts and one that computes the tokens that follow.

    Parameters
    ----------
    rate : array
        Requests of all replicas [1/s].
    replicas : pair of array
        Instances of the two pools.
    sending_s : pair of array
        Time that the keys and values of a prompt are on the way [s], and what of it is left when it is computed [s].

    Notes
    -----
    The first token reaches the client from the second pool: after the prompt, what is left of the transfer, the
    engine's hand-over, the wait for room and a step.
    """
    shares = [np.asarray(rate, float) / count for count in replicas]
    scvs = [1 + (demand.arrival_scv - 1) / np.asarray(count, float) for count in replicas]
    whole = requests(demand, speculation)
    first = open_loop(
        prompts.law, replace(whole, output_tokens=1.0, output_scv=0.0), prompts.limits, shares[0], scvs[0]
    )
    after = open_loop(tokens.law, whole, tokens.limits, shares[1], scvs[1])
    step_s = tokens.law.seconds(after.running, 0.0, after.running * whole.context_tokens)
    busy = np.asarray(rate, float) / np.minimum(*np.broadcast_arrays(*replicas)) * sending_s[0]
    wait_s = np.maximum(after.ttft_s - step_s, 0.0)
    handover_s = sending_s[1] + handoff_s(server) + wait_s + step_s
    received = received_s(server.engine) + prompts.pipeline_s + looked_s(server, after)
    most = np.minimum(first.capacity_requests_per_s * replicas[0], after.capacity_requests_per_s * replicas[1])
    answered = np.minimum(rate, most)
    return Latency(demand, speculation.tokens_per_step, received, first, after, handover_s, busy, answered)


def slower(one: Pool, factor: float) -> Pool:
    """Return instances whose steps take so many times as long."""
    return replace(one, law=scaled(one.law, factor), pipeline_s=one.pipeline_s * factor)


def looked_s(server: Server, state: SteadyState) -> Array:
    """Return the time until an engine looks at requests that come by themselves, beyond the rest of a step [s]."""
    step_s = np.where(np.isfinite(state.ttft_s), state.tpot_s, 0.0)
    whole_s = intake_s(server.engine, step_s, -np.expm1(-state.running))
    return np.asarray(np.maximum(whole_s - step_s / 2, 0.0))


def handoff_s(server: Server) -> float:
    """Return the time of a request between the pools, beside the bytes that cross [s]."""
    return float(server.engine.handoff_overhead)
