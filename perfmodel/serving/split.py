"""Prompts and tokens side by side in the same accelerators, each with a share of the compute units of its own.

Nexus (arXiv 2507.06608) and semi-PD (arXiv 2504.19867): weights and cache are there once, nothing is sent. Both phases
have all of the memory's bandwidth but while both wait for it; then each has the share of its units.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perfmodel.batching import open_loop
from perfmodel.serving.host import received_s
from perfmodel.serving.latency import Latency, Pool, looked_s, pool, requests, together
from perfmodel.serving.law import MANY_SEQUENCES, NO_SPECULATION, Demand, Speculation, decode_load, prompt_load, seconds
from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment, Load
from perfmodel.terms import Array, Number

PHASES = ("prompts", "tokens")


def phase_server(server: Server, prefill_share: float, phase: str) -> Server:
    """Return a server whose accelerators have the units of one phase.

    Parameters
    ----------
    prefill_share : float
        Share of the units that compute prompts; 0 where both phases take turns on all.
    phase : str
        ``prompts`` or ``tokens``.
    """
    if not prefill_share:
        return server
    return replace(server, units_share=prefill_share if phase == "prompts" else 1.0 - prefill_share)


def memory_share(server: Server, deployment: Deployment, demand: Demand, speculation: Speculation, load: Load) -> Array:
    """Return the share of a step that waits for memory: by how much half the bandwidth lengthens it, up to 1."""
    slow = replace(server, bandwidth_share=server.bandwidth_share / 2)
    whole, longer = (seconds(one, deployment, demand, speculation, load) for one in (server, slow))
    return np.asarray(np.clip(longer / whole - 1.0, 0.0, 1.0))


def contention(memory_p: Number, memory_t: Number, prefill_share: float) -> tuple[Array, Array]:
    """Return by how much steps of prompts and of tokens take longer side by side.

    Parameters
    ----------
    memory_p, memory_t : array
        Shares of the time that steps of prompts and of tokens wait for memory, m_p and m_t.
    prefill_share : float
        Share x of the units that compute prompts.

    Notes
    -----
    Both wait for memory in a share m_p m_t of the time; a phase has x, or 1 - x, of the bandwidth then:
    1 + m_p m_t (1 - x)/x and 1 + m_p m_t x/(1 - x), as if prompts were computed all the time.
    """
    both, x = np.asarray(np.multiply(memory_p, memory_t)), prefill_share
    return 1.0 + both * (1 - x) / x, 1.0 + both * x / (1 - x)


def lengthening(
    server: Server, deployment: Deployment, demand: Demand, speculation: Speculation, prefill_share: float
) -> dict[str, Array]:
    """Return `contention` of a deployment by phase, of whole prompts beside many sequences."""
    loads = (prompt_load(demand, demand.computed_tokens), decode_load(demand, speculation, MANY_SEQUENCES))
    shares = [
        memory_share(phase_server(server, prefill_share, phase), deployment, demand, drafts, load)
        for phase, load, drafts in zip(PHASES, loads, (NO_SPECULATION, speculation), strict=True)
    ]
    return dict(zip(PHASES, contention(shares[0], shares[1], prefill_share), strict=True))


def lengthened(one: Pool, factor: Array) -> Pool:
    """Return instances whose steps take so many times as long, candidate by candidate."""
    law, led = one.law, np.asarray(factor)[..., None, None]
    slow = replace(
        law,
        seconds_at=law.seconds_at * led,
        per_context_token_s=law.per_context_token_s * factor,
        per_attended_pair_s=law.per_attended_pair_s * factor,
    )
    return replace(one, law=slow, pipeline_s=one.pipeline_s * factor)


def step_budget(server: Server, demand: Demand, budget: Number) -> Number:
    """Return the tokens of a step of an instance: by layers the mean prompt passes one whole layer at least."""
    return np.maximum(budget, demand.computed_tokens / server.architecture.depth) if server.layered else budget


def unified_pools(
    server: Server,
    deployment: Deployment,
    demand: Demand,
    limits: tuple[Number, Number],
    speculation: Speculation,
    prefill_share: float,
) -> tuple[Pool, Pool]:
    """Return instances that compute prompts and tokens, by phase; where phases take turns both are the same.

    Parameters
    ----------
    deployment, speculation : Deployment, Speculation
        Candidates of any one shape that broadcasts with the limits.
    limits : tuple of array
        Sequences that an instance runs at once, and tokens of one of its steps.
    prefill_share : float
        Share of the units that compute prompts; 0 where both phases take turns on all.
    """
    most, budget = limits[0], step_budget(server, demand, limits[1])
    if not prefill_share:
        both = pool(server, deployment, demand, max_batch=most, token_budget=budget, speculation=speculation)
        return both, both
    slow = lengthening(server, deployment, demand, speculation, prefill_share)
    found = [
        lengthened(
            pool(
                phase_server(server, prefill_share, phase),
                deployment,
                demand,
                max_batch=most,
                token_budget=budget,
                speculation=speculation,
                phase=phase,
            ),
            slow[phase],
        )
        for phase in PHASES
    ]
    return found[0], found[1]


def unified(
    server: Server,
    pools: tuple[Pool, Pool],
    demand: Demand,
    speculation: Speculation,
    rate: Number,
    replicas: Number,
) -> Latency:
    """Return what requests see of replicas of `unified_pools`, dealt out at random [1/s]."""
    if pools[0] is pools[1]:
        return together(server, pools[1], demand, speculation, rate, replicas)
    return beside(server, *pools, demand, speculation, rate, replicas)


def beside(
    server: Server,
    prompts: Pool,
    tokens: Pool,
    demand: Demand,
    speculation: Speculation,
    rate: Number,
    replicas: Number,
) -> Latency:
    """Return what requests see of replicas whose phases run side by side.

    Parameters
    ----------
    prompts, tokens : Pool
        The phases of an instance.
    rate, replicas : array
        Requests of all replicas [1/s], and how many there are.

    Notes
    -----
    The first token comes at the end of the prompt, once there is room among the sequences.
    """
    shared = np.asarray(rate, float) / replicas
    scv = 1 + (demand.arrival_scv - 1) / np.asarray(replicas, float)
    whole = requests(demand, speculation)
    first = open_loop(prompts.law, replace(whole, output_tokens=1.0, output_scv=0.0), prompts.limits, shared, scv)
    after = open_loop(tokens.law, whole, tokens.limits, shared, scv)
    step_s = tokens.law.seconds(after.running, 0.0, after.running * whole.context_tokens)
    waits_s = np.maximum(after.ttft_s - step_s, 0.0)
    most = np.minimum(first.capacity_requests_per_s, after.capacity_requests_per_s) * replicas
    received = received_s(server.engine) + prompts.pipeline_s + looked_s(server, after)
    emitted = speculation.tokens_per_step
    return Latency(demand, emitted, received, first, after, waits_s, requests_per_s=np.minimum(rate, most))
