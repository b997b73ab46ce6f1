"""One deployment of a serving scenario, from its plan to the times of requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hardware.topology import levels
from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.kv_transfer import exposed_transfer, way_out
from perfmodel.serving.capacity import Capacity, capacity
from perfmodel.serving.latency import Latency, Pool, apart, looped, pool, slots, slower
from perfmodel.serving.law import NO_SPECULATION, Demand, Speculation, prompt_load, seconds
from perfmodel.serving.server import Server
from perfmodel.serving.split import unified, unified_pools
from perfmodel.serving.step import Deployment
from perfmodel.terms import Array, Number
from solvers.serve_question import ServePlan, ServePool
from solvers.serve_scenario import ServeScenario

RATE_ROUNDS = 22
"""Halvings of the interval in which the largest rate lies."""
AT_ONCE = (8, 7, 7)
"""The same, in groups that are done at once."""

NEARLY = 0.999
"""Share of the capacity of pools at which all requests at once are answered."""


@dataclass(frozen=True)
class Instances:
    """Instances of one layout with their memory.

    Parameters
    ----------
    deployment : Deployment
        How each is spread.
    replicas : int
        How many.
    max_num_seqs, max_num_batched_tokens : int
        Limits of a rank of attention data parallelism.
    memory : Capacity
        Of an accelerator.
    slots : float
        Sequences that an instance runs at once.
    """

    deployment: Deployment
    replicas: int
    max_num_seqs: int
    max_num_batched_tokens: int
    memory: Capacity
    slots: float

    @property
    def accelerators(self) -> int:
        """Accelerators of all of them."""
        return int(self.deployment.accelerators) * self.replicas

    @property
    def token_budget(self) -> float:
        """Tokens of a step of an instance."""
        return float(self.max_num_batched_tokens * self.deployment.dp)


@dataclass(frozen=True)
class Case:
    """A plan with what it needs to be costed.

    Parameters
    ----------
    scenario : ServeScenario
        The question.
    server : Server
        Model, machine and engine with the plan's types.
    speculation : Speculation
        Of the plan.
    prompts, tokens : Instances
        Those that compute prompts and those that compute the tokens that follow; the same where they do both.
    sending_s, transfer_s : float
        Time that the keys and values of a prompt are on the way to the other pool [s], and what of it is left when the
        prompt is computed [s].
    prefill_share : float
        Share of the units that compute prompts beside the others; 0 where phases take turns.
    """

    scenario: ServeScenario
    server: Server
    speculation: Speculation
    prompts: Instances
    tokens: Instances
    sending_s: float = 0.0
    transfer_s: float = 0.0
    prefill_share: float = 0.0

    @property
    def disaggregated(self) -> bool:
        """Whether prompts have instances of their own."""
        return self.prompts is not self.tokens

    @property
    def accelerators(self) -> int:
        """Accelerators of the plan."""
        return self.prompts.accelerators + (self.tokens.accelerators if self.disaggregated else 0)

    @property
    def fits(self) -> bool:
        """Whether every instance holds its weights and a request."""
        return min(self.prompts.slots, self.tokens.slots) >= 1

    def pool(self, part: Instances, phase: str) -> Pool:
        """Return instances as the equations take them."""
        return pool(
            self.server,
            part.deployment,
            self.scenario.demand,
            max_batch=part.slots,
            token_budget=part.token_budget,
            speculation=self.speculation,
            phase=phase,
        )

    def pools(self) -> tuple[Pool, Pool]:
        """Return the instances that compute prompts, and those that compute the tokens that follow."""
        if not self.disaggregated:
            part = self.tokens
            limits = (part.slots, part.token_budget)
            demand, share = self.scenario.demand, self.prefill_share
            return unified_pools(self.server, part.deployment, demand, limits, self.speculation, share)
        return self.pool(self.prompts, "prompts"), self.pool(self.tokens, "tokens")

    def latency(self, pools: tuple[Pool, Pool], rate: Number, factor: float = 1.0) -> Latency:
        """Return what requests see at a rate of all replicas [1/s], with steps so many times as long."""
        demand = self.scenario.demand
        first, after = pools
        if factor != 1.0:
            first = slower(first, factor)
            after = first if pools[0] is pools[1] else slower(after, factor)
        if not self.disaggregated:
            return unified(self.server, (first, after), demand, self.speculation, rate, self.tokens.replicas)
        replicas = (self.prompts.replicas, self.tokens.replicas)
        sent = (self.sending_s, self.transfer_s)
        return apart(self.server, first, after, demand, self.speculation, rate, replicas, sent)

    def answered(self, pools: tuple[Pool, Pool], factor: float = 1.0) -> tuple[float, Latency]:
        """Return the requests answered [1/s], and what they see, with steps so many times as long."""
        after = slower(pools[1], factor)

        def loop(clients: Any) -> Latency:
            return looped(self.server, after, self.scenario.demand, self.speculation, clients, self.tokens.replicas)

        rate, latency = answered(
            self.scenario,
            lambda rate: self.latency(pools, rate, factor),
            None if self.disaggregated or self.prefill_share else loop,
            self.tokens.slots * self.tokens.replicas,
        )
        return float(rate), latency


def case_of(scenario: ServeScenario, plan: ServePlan) -> Case:
    """Return a plan with what it needs to be costed."""
    server = scenario.server(
        plan.precision_weights, plan.precision_kv, plan.layered_prefill, plan.overlap, plan.power_cap_w
    )
    speculation = scenario.speculation(plan.draft_tokens)
    if not plan.disaggregated:
        both = instances(scenario, server, speculation, plan)
        return Case(scenario, server, speculation, both, both, prefill_share=plan.prefill_share)
    assert plan.prefill is not None and plan.decode is not None
    prompts = instances(scenario, server, speculation, plan.prefill, prompts_only=True)
    tokens = instances(scenario, server, speculation, plan.decode)
    found = Case(scenario, server, speculation, prompts, tokens)
    alone_s = prompt_alone_s(server, prompts.deployment, scenario.demand, prompts.token_budget)
    whole, left = sending(scenario, server, prompts.deployment, tokens.deployment, alone_s)
    return replace(found, sending_s=float(whole), transfer_s=float(left))


def instances(
    scenario: ServeScenario,
    server: Server,
    speculation: Speculation,
    asked: ServePlan | ServePool,
    *,
    prompts_only: bool = False,
) -> Instances:
    """Return instances of a layout, with the engine's defaults filled in and their memory."""
    deployment = Deployment(asked.tp, asked.pp, asked.dp, asked.ep, scenario.question.workload.expert_imbalance)
    replicas = asked.replicas or max(scenario.machine.accelerators // (asked.tp * asked.pp * asked.dp), 1)
    defaults = server.engine.defaults
    sequences = asked.max_num_seqs or defaults.max_num_seqs
    budget = asked.max_num_batched_tokens or defaults.max_num_batched_tokens
    memory, running = held(scenario, server, speculation, deployment, sequences, budget, prompts_only=prompts_only)
    return Instances(deployment, replicas, sequences, budget, memory, float(running))


def held(
    scenario: ServeScenario,
    server: Server,
    speculation: Speculation,
    deployment: Deployment,
    sequences: Number,
    budget: Number,
    *,
    prompts_only: bool = False,
    more_memory: float = 0.0,
) -> tuple[Capacity, Array]:
    """Return the memory of instances and how many sequences each runs at once; arrays broadcast.

    Parameters
    ----------
    sequences, budget : array
        Most sequences, and tokens of a step, of a rank of attention data parallelism.
    prompts_only : bool
        Whether they compute prompts alone.
    more_memory : float
        Bytes that an accelerator has beyond what it has.
    """
    demand = replace(scenario.demand, output_tokens=1.0, output_scv=0.0) if prompts_only else scenario.demand
    # whole prompts lie in a layer where they advance by layers
    memory = capacity(server, deployment, np.maximum(budget, demand.computed_tokens) if server.layered else budget)
    tokens = memory.cache_tokens
    if more_memory:
        tokens = tokens * (1 + more_memory / np.maximum(memory.cache, 1.0))
    most = np.asarray(sequences, float) * deployment.dp
    return memory, slots(tokens, demand, speculation, most)


def prompt_alone_s(server: Server, deployment: Deployment, demand: Demand, budget: Number) -> Array:
    """Return the time of a prompt alone in an instance, in pieces of at most `budget` tokens [s]."""
    piece = np.minimum(np.asarray(budget, float), demand.computed_tokens)
    step_s = seconds(server, deployment, demand, NO_SPECULATION, prompt_load(demand, piece))
    return np.asarray(step_s * demand.computed_tokens / piece * deployment.pp)


def sending(
    scenario: ServeScenario, server: Server, prompts: Deployment, tokens: Deployment, prompt_s: Number
) -> tuple[Array, Array]:
    """Return how keys and values of a prompt get from one instance to another.

    Parameters
    ----------
    prompts, tokens : Deployment
        The instances; arrays broadcast.
    prompt_s : array
        Time to compute a prompt [s].

    Returns
    -------
    tuple of array
        Time of all of them on the way [s], and the time left after the prompt is computed [s].

    Notes
    -----
    Each accelerator of the smaller instance has its own way, over the innermost level that holds both. What of it is
    left when the prompt is computed, layer by layer, is `exposed_transfer`, and the latency.
    """
    size = kv_bytes_per_token(server.architecture, server.cache_bytes) * scenario.demand.prompt_tokens
    ways = np.minimum(prompts.accelerators, tokens.accelerators)
    span = np.asarray(prompts.accelerators) + tokens.accelerators
    bandwidth: Array = np.full(np.shape(span), np.inf)
    latency: Array = np.zeros(np.shape(span))
    for level in reversed(levels(scenario.machine)):
        inside = (span <= level.ranks) | ~np.isfinite(bandwidth)
        rate, start_s = way_out(level, scenario.machine.node, server.engine)
        bandwidth, latency = np.where(inside, rate, bandwidth), np.where(inside, start_s, latency)
    whole = size / (ways * bandwidth)
    depth = server.architecture.depth
    left = exposed_transfer(whole / depth, np.asarray(prompt_s) / depth, depth)
    return np.asarray(whole), np.asarray(left + latency)


def answered(
    scenario: ServeScenario,
    at: Callable[[Any], Latency],
    loop: Callable[[Any], Latency] | None,
    slots: Any,
    shape: tuple[int, ...] = (),
    kind: str = "",
) -> tuple[Array, Latency]:
    """Return how many requests of all replicas are answered [1/s], and what they see.

    Parameters
    ----------
    at : callable
        Requests of all replicas that arrive by themselves [1/s] -> what they see.
    loop : callable or None
        Clients of all replicas -> what they see; None where that is found from `at`.
    slots : array
        Sequences that all replicas run at once: as many clients are as good as all requests at once.
    shape : tuple of int
        Shape of the candidates.
    kind : str
        With what the names of objectives begin that count, where the largest rate is wanted.

    Notes
    -----
    Of pools, clients N are a rate R with R x E2E(R) = N (Little's law), as if they arrived by themselves.
    """
    if scenario.rate is not None:
        return np.full(shape, scenario.rate), at(scenario.rate)
    clients = slots if scenario.offline else scenario.concurrency
    if clients is not None and loop is not None:
        found = loop(clients)
        return np.broadcast_to(found.requests_per_s, shape), found
    tiny = 1e-9
    most = np.array(np.broadcast_to(tiny / np.maximum(at(tiny).load, 1e-300), shape))
    if scenario.offline:
        rate = NEARLY * most
    elif clients is not None:

        def lasts(rate: Array) -> Array:
            seen = at(rate)
            return seen.stable & (rate * seen.of("e2e_mean") <= clients)

        rate = largest_rate(lasts, most)
    else:
        rate = largest_rate(lambda rate: within(scenario, at(rate), kind), most)
    return rate, at(rate)


def within(scenario: ServeScenario, latency: Latency, kind: str = "") -> Array:
    """Return whether all objectives hold whose names begin with `kind`."""
    holds = latency.stable
    for name, limit in scenario.question.slo.limits.items():
        if name.startswith(kind):
            holds = holds & (latency.of(name) <= limit)
    return holds


def largest_rate(inside: Callable[[Array], Array], most: Array) -> Array:
    """Return the largest rate at which something holds that holds at low rates and not at high ones [1/s].

    Parameters
    ----------
    inside : callable
        Rates -> whether it holds.
    most : array
        A rate that is too high [1/s].

    Notes
    -----
    Halvings. Of one candidate several are done at once, on all rates that they can lead to, which takes no longer than
    one of them.
    """
    low, high = np.zeros_like(most), np.array(most, dtype=float)
    for halvings in () if np.ndim(most) else AT_ONCE:
        rates = low + (high - low) * (np.arange(2**halvings + 1) / 2**halvings)
        holds = np.concatenate([[True], inside(rates[1:-1]), [False]])
        last = int(holds.argmin()) - 1
        low, high = rates[last], rates[last + 1]
    for _ in range(RATE_ROUNDS if np.ndim(most) else 0):
        middle = (low + high) / 2
        holds = inside(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return np.asarray(low)
