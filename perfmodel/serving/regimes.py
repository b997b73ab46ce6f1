"""What requests see of an instance: closed loops at fixed concurrency, everything queued at once, one static batch.

Every request has the same prompt and about the same output; times are means. Of a loop all clients send their first
request at once, and the next as soon as they are answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.terms import Array, Number

ROUNDS = 9
"""Rounds of the fixed point, each halfway to the next value: the last change is below 0.5 %."""

SMALLEST_PIECE = 64.0
"""Tokens of a prompt that a step takes at least, however many sequences run."""


@dataclass(frozen=True)
class Served:
    """What requests see.

    Parameters
    ----------
    ttft_s, tpot_s : array
        Mean time to the first token, and of every further one [s].
    requests_per_s : array
        Throughput of the instance.
    running : array
        Sequences that decode at a time.
    """

    ttft_s: Array
    tpot_s: Array
    requests_per_s: Array
    running: Array


@dataclass(frozen=True)
class PromptCost:
    """Cost of prompts beside running sequences [s].

    Parameters
    ----------
    added_s : array
        What a prompt alone in its steps adds to them.
    queued_s : array
        The same of one of many that wait and share steps.
    own_s : array
        The steps of a prompt, from the first to its first token.
    step_s : array
        A step without prompts.
    together : array
        Prompts that a step has room for.
    """

    added_s: Array
    queued_s: Array
    own_s: Array
    step_s: Array
    together: Array


def prompt_cost(
    server: Server, deployment: Deployment, sequences: Number, context: Number, prompt: Number, budget: Number
) -> PromptCost:
    """Return what a prompt costs.

    Parameters
    ----------
    sequences, context : array
        Sequences that decode, and their cached tokens.
    prompt, budget : array
        Tokens of a prompt, and of a step of a rank of attention data parallelism.

    Notes
    -----
    A prompt longer than what a step has room for is cut; its pieces have half of it cached before them on average.
    """
    running, tokens = np.asarray(sequences, float), np.asarray(prompt, float)
    alone_s = seconds(server, deployment, Load(running, context))
    apart = server.engine.batching == "prefill_first"
    beside: Array = np.zeros_like(running) if apart else running
    base_s: Array = np.zeros_like(alone_s) if apart else alone_s
    ranks = np.asarray(deployment.dp, float)
    room = np.maximum(np.asarray(budget, float) - beside / ranks, SMALLEST_PIECE)
    piece = np.minimum(tokens, room)
    pieces = tokens / piece
    together = np.maximum(np.floor(room / tokens), 1.0) * ranks
    alone, many = (
        (seconds(server, deployment, Load(beside, context, count, piece, (tokens - piece) / 2, 1 / pieces)) - base_s)
        * pieces
        / count
        for count in (1.0, together)
    )
    return PromptCost(alone, np.minimum(many, alone), alone + base_s * pieces, alone_s, together)


def seconds(server: Server, deployment: Deployment, load: Load) -> Array:
    """Return the time of a step [s]."""
    return np.asarray(step(server, deployment, load).seconds)


def closed_loop(
    server: Server,
    deployment: Deployment,
    concurrency: Number,
    prompt: Number,
    output: Number,
    *,
    budget: Number,
    slots: Number,
    waves: Number,
    spread: Number,
) -> Served:
    """Return what `concurrency` clients see that send again as soon as they are answered.

    Parameters
    ----------
    concurrency, prompt, output : array
        Clients of the instance; tokens of a prompt and of an answer.
    budget, slots : array
        Tokens of a step of a rank; sequences that run at once.
    waves : array
        Requests of a client; all send their first at once.
    spread : array
        Width of the distribution of lengths over the mean.

    Notes
    -----
    With N = min(clients, slots), P a prompt's cost among others, T the time of a token, O tokens of an answer, g
    prompts that share a step. In the first wave a prompt waits for half of the others and of those beside it,
    (N + g - 2) P/2. Later ones come over a window of spread x O T, to which a scheduler that computes prompts beside
    others adds (N - 1) P, since answers end as they began; one that computes all prompts first lets all answers begin,
    and end, together. Of a load rho = (N - 1) P / window the wait is that of M/D/1, rho P/(2 (1 - rho)), and never more
    than the first wave's; beside others answers end one step apart, and a prompt waits for the one that is under way, P
    at most. A token waits for the prompts of others but those that came while its own request waited:
    T = step + ((N - 1) P - wait)/(O - 1). The busier the window, the more prompts share a step.
    """
    clients, tokens = np.asarray(concurrency, float), np.asarray(output, float)
    limit = np.minimum(clients, slots)
    context = np.asarray(prompt, float) + tokens / 2
    running: Array = limit * 1.0
    gaps = np.maximum(tokens - 1.0, 1e-9)
    others = np.maximum(limit - 1.0, 0.0)
    together = server.engine.batching == "prefill_first"
    busy: Array = np.zeros_like(limit)
    for _ in range(ROUNDS):
        cost = prompt_cost(server, deployment, running, context, prompt, budget)
        every_s = others * cost.queued_s
        met_s = others * (busy * cost.queued_s + (1 - busy) * cost.added_s)
        first_s = (others + np.minimum(cost.together, limit) - 1) / 2 * cost.queued_s
        token_s = cost.step_s + np.maximum(met_s - first_s / waves, 0.0) / gaps
        window_s = spread * tokens * token_s + (0.0 if together else every_s)
        busy = np.minimum(every_s / np.maximum(window_s, 1e-12), 1.0 - 1e-9)
        later_s = np.minimum(busy / (2 * (1 - busy)) * cost.queued_s, first_s if together else cost.queued_s)
        wait_s = first_s / waves + later_s * (1 - 1 / np.asarray(waves))
        token_s = cost.step_s + np.maximum(met_s - wait_s, 0.0) / gaps
        inside_s = cost.step_s / 2 + wait_s + cost.own_s + gaps * token_s
        running = (running + limit * gaps * token_s / inside_s) / 2
    rate = limit / inside_s
    queued_s = np.maximum(clients - limit, 0.0) / rate
    received_s = server.engine.prompt_overhead
    first_token_s = received_s + cost.step_s / 2 + wait_s + cost.own_s + queued_s
    return Served(first_token_s, token_s, rate, running)


def offline(
    server: Server, deployment: Deployment, prompt: Number, output: Number, *, budget: Number, slots: Number
) -> Served:
    """Return the throughput of a queue that never empties; its requests' time to the first token means nothing.

    Notes
    -----
    T = step + P N/O, rate = N/(O T): every token of N running sequences waits for the prompts that replace those done.
    """
    tokens, running = np.asarray(output, float), np.asarray(slots, float)
    cost = prompt_cost(server, deployment, running, np.asarray(prompt, float) + tokens / 2, prompt, budget)
    token_s = cost.step_s + cost.queued_s * running / tokens
    rate = running / (tokens * token_s)
    return Served(np.full(np.shape(rate), np.nan), token_s, rate, running)


def pools(
    server: Server,
    prefill: tuple[Deployment, Number],
    decode: tuple[Deployment, Number],
    concurrency: Number,
    prompt: Number,
    output: Number,
    *,
    budget: Number,
    slots: Number,
    waves: Number,
) -> Served:
    """Return what clients of a closed loop see where prompts and answers have instances of their own.

    Parameters
    ----------
    prefill, decode : tuple of Deployment and array
        How an instance of each kind is spread, and how many there are.
    concurrency, slots : array
        Clients of all instances together, and sequences that all that decode run at once.

    Notes
    -----
    The cache of a prompt crosses the network behind the layers that follow; what is left of it is one layer's, which
    does not show. Prompts wait for each other at w instances: half of (N/w + g - 2) P in the first wave, M/D/1 later;
    no more than w/P prompts a second pass, whatever clients ask.
    """
    spread, workers = prefill
    clients, tokens = np.asarray(concurrency, float), np.asarray(output, float)
    limit = np.minimum(clients, slots)
    running: Array = limit * 1.0
    context = np.asarray(prompt, float) + tokens / 2
    cost = prompt_cost(server, spread, 0.0, 0.0, prompt, budget)
    gaps = np.maximum(tokens - 1.0, 1e-9)
    each = limit / np.asarray(workers, float)
    first_s = np.maximum(each + np.minimum(cost.together, each) - 2.0, 0.0) / 2 * cost.queued_s
    fastest = workers / cost.queued_s
    for _ in range(ROUNDS):
        token_s = seconds(server, decode[0], Load(running / decode[1], context))
        alone_s = cost.own_s + gaps * token_s
        busy = np.minimum(limit / alone_s / fastest, 1.0 - 1e-9)
        later_s = np.minimum(busy / (2 * (1 - busy)) * cost.queued_s, first_s)
        wait_s = first_s / waves + later_s * (1 - 1 / np.asarray(waves))
        wait_s = np.maximum(wait_s, limit / fastest - alone_s)
        inside_s = wait_s + alone_s
        running = (running + limit * gaps * token_s / inside_s) / 2
    rate = limit / inside_s
    queued_s = np.maximum(clients - limit, 0.0) / rate
    engine = server.engine
    received_s = engine.prompt_overhead + engine.handoff_overhead
    return Served(received_s + wait_s + cost.own_s + token_s + queued_s, token_s, rate, running)
