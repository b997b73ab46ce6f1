"""What requests see of instances in benchmarks: closed loops at fixed concurrency, and pools of their own for prompts.

Every request has about the same prompt and answer; times are means over a run. All clients send their first request at
once, and the next as soon as they are answered. `perfmodel.batching` answers the same for requests that arrive whatever
the engine does, `perfmodel.batching_runs` for a queue that is full from the start and for one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.batching import Limits, Requests
from perfmodel.step_law import StepLaw
from perfmodel.terms import Array, Number

ROUNDS = 12
"""Rounds of the fixed point, each halfway to the next value: the last change is below 0.1 %."""

SMALLEST_PIECE = 64.0
"""Tokens of a prompt that a step takes at least, however many sequences run."""


@dataclass(frozen=True)
class Served:
    """What requests see.

    Parameters
    ----------
    ttft_s, tpot_s : array
        Mean time to the first token, without receiving the request, and of every further one [s].
    requests_per_s : array
        Throughput of the instances of the law.
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


def prompt_cost(law: StepLaw, requests: Requests, limits: Limits, sequences: Number) -> PromptCost:
    """Return what a prompt costs beside so many running sequences.

    Notes
    -----
    A prompt longer than what a step has room for is cut.
    """
    running, tokens = np.asarray(sequences, float), np.asarray(requests.prompt_tokens, float)
    context = requests.context_tokens
    alone_s = law.seconds(running, 0.0, running * context)
    apart = limits.mode == "prefill_first"
    beside: Array = np.zeros_like(running) if apart else running
    base_s: Array = np.zeros_like(alone_s) if apart else alone_s
    room = np.maximum(np.asarray(limits.token_budget, float) - beside, SMALLEST_PIECE)
    piece = np.minimum(tokens, room)
    pieces = tokens / piece
    together = np.maximum(np.floor(room / tokens), 1.0)
    alone, many = (
        (law.seconds(beside, count * piece, beside * context, count * piece * requests.pairs_per_token) - base_s)
        * pieces
        / count
        for count in (np.ones_like(room), together)
    )
    return PromptCost(alone, np.minimum(many, alone), alone + base_s * pieces, alone_s, together)


def closed_loop(
    law: StepLaw,
    requests: Requests,
    limits: Limits,
    concurrency: Number,
    *,
    waves: Number,
    spread: Number,
) -> Served:
    """Return what `concurrency` clients of an instance see that send again as soon as they are answered.

    Parameters
    ----------
    law, requests, limits
        The instances, as `perfmodel.batching` takes them.
    concurrency : array
        Clients of the instance.
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
    T = step + ((N - 1) P - wait)/(O - 1). The busier the window, the more prompts share a step. Where all prompts go
    first and answers go together, none is away while the others decode.
    """
    clients, tokens = np.asarray(concurrency, float), np.asarray(requests.output_tokens, float)
    limit = np.minimum(clients, limits.max_batch)
    running: Array = limit * 1.0
    gaps = np.maximum(tokens - 1.0, 1e-9)
    others = np.maximum(limit - 1.0, 0.0)
    together = limits.mode == "prefill_first"
    busy: Array = np.zeros_like(limit)
    for _ in range(ROUNDS):
        cost = prompt_cost(law, requests, limits, running)
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
        away_s = (inside_s - gaps * token_s) * (1 - busy if together else 1.0)
        running = (running + limit * gaps * token_s / (away_s + gaps * token_s)) / 2
    rate = limit / inside_s
    queued_s = np.maximum(clients - limit, 0.0) / rate
    return Served(cost.step_s / 2 + wait_s + cost.own_s + queued_s, token_s, rate, running)


def pools(
    prefill: tuple[StepLaw, Limits, Number],
    decode: tuple[StepLaw, Limits, Number],
    requests: Requests,
    concurrency: Number,
    *,
    waves: Number,
) -> Served:
    """Return what clients of a closed loop see where prompts and answers have instances of their own.

    Parameters
    ----------
    prefill, decode : tuple of StepLaw, Limits and array
        An instance of each kind, and how many there are.
    concurrency : array
        Clients of all instances together.

    Notes
    -----
    The cache of a prompt crosses the network behind the layers that follow; what is left of it is one layer's, which
    does not show. Prompts wait for each other at w instances: half of (N/w + g - 2) P in the first wave, M/D/1 later;
    no more than w/P prompts a second pass, whatever clients ask.
    """
    (prompt_law, prompt_limits, workers), (law, limits, instances) = prefill, decode
    clients, tokens = np.asarray(concurrency, float), np.asarray(requests.output_tokens, float)
    limit = np.minimum(clients, np.asarray(limits.max_batch, float) * instances)
    running: Array = limit * 1.0
    cost = prompt_cost(prompt_law, requests, prompt_limits, np.zeros_like(limit))
    gaps = np.maximum(tokens - 1.0, 1e-9)
    each = limit / np.asarray(workers, float)
    first_s = np.maximum(each + np.minimum(cost.together, each) - 2.0, 0.0) / 2 * cost.queued_s
    fastest = workers / cost.queued_s
    for _ in range(ROUNDS):
        own = running / instances
        token_s = law.seconds(own, 0.0, own * requests.context_tokens)
        alone_s = cost.own_s + gaps * token_s
        busy = np.minimum(limit / alone_s / fastest, 1.0 - 1e-9)
        later_s = np.minimum(busy / (2 * (1 - busy)) * cost.queued_s, first_s)
        wait_s = first_s / waves + later_s * (1 - 1 / np.asarray(waves))
        wait_s = np.maximum(wait_s, limit / fastest - alone_s)
        inside_s = wait_s + alone_s
        running = (running + limit * gaps * token_s / inside_s) / 2
    rate = limit / inside_s
    queued_s = np.maximum(clients - limit, 0.0) / rate
    return Served(wait_s + cost.own_s + token_s + queued_s, token_s, rate, running)
