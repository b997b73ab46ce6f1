"""Closed loops of continuous batching as equations, and benchmark runs: from their start, a full queue, a static batch.

A run of Q requests with N in flight at once is k = Q / N rounds. It begins with all N prompts at once: under the token
budget they take S steps, in which n rises from 0 to N. From then on requests end as spread out as their prompts were
and their lengths make them, S + 4 sd(G) sqrt(rounds) steps but at most G - 1, and the next prompts come in that window.
At the end nobody takes the place of who ends, and n falls over the window of the last round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.batching import Limits, Requests, SteadyState, Steps, most_decoding, prompt_seconds, secants, steps
from perfmodel.queueing import approximate_wait_s
from perfmodel.step_law import Array, StepLaw

LONG = 1e12
"""Rounds after which answers of unequal length end at any time."""


def closed_loop(
    law: StepLaw, requests: Requests, limits: Limits, concurrency: ArrayLike, rounds: ArrayLike = LONG
) -> SteadyState:
    """Return the steady state of engines whose clients send the next request when one is answered.

    Parameters
    ----------
    law, requests, limits
        The candidates.
    concurrency : array_like
        Clients N of one engine.
    rounds : array_like
        Requests of a client since all sent their first at once; the middle of them is meant.

    Notes
    -----
    A request ends with a step, so that the next one goes into the next step: nothing is left of a step to wait for, and
    prompts come by the step, not by the second. Of min(N, batch) requests n decode and the others prefill;
    TTFT = N / R - (G - 1) TPOT (Little). As n falls when prompts come, Cov(n, m) = -Var(m): a sequence meets the
    prompts of all clients but its own. With ``prefill_first`` nobody decodes while prompts are computed: n = min(N,
    batch), and those that end in one step, all of them where answers are equal, have their prompts computed together.
    """
    clients, batch = np.asarray(concurrency, dtype=float), np.asarray(limits.max_batch, dtype=float)
    if not np.any(requests.decode_steps):
        return _prompts_alone(law, requests, limits, clients)
    w = np.maximum(requests.decode_steps, 1.0)
    inside = np.minimum(clients, batch)
    window, by_chance = _window(requests, limits, inside, rounds, prompts_at_once(law, requests, limits, inside)[0])
    if limits.mode == "prefill_first":
        return _prompts_first(law, requests, limits, clients, inside, window)
    most = most_decoding(requests, limits)
    top = np.minimum(most, inside)
    others = 1.0 - 1.0 / np.maximum(inside, 1.0)
    together = _together(inside, by_chance)

    def miss(n: Array) -> tuple[Array, Steps]:
        at = steps(law, requests, limits, n, None, together)
        away = _first_token(law, requests, limits, n, others * n / w, at, by_chance) - prompt_seconds(limits, at)
        return n + n / (w * at.decode_s) * away - inside, at

    zero = np.zeros(np.broadcast_shapes(np.shape(top), np.shape(w), np.shape(law.seconds(1.0, 0.0, 1.0))))
    n, at = secants(miss, zero + 1e-9, zero + top, zero - inside, zero + top, inside)
    rate = n / (w * at.decode_s)
    per_prompt = prompt_seconds(limits, at)
    first = _first_token(law, requests, limits, n, others * n / window, at, by_chance)
    alone = _first_token(law, requests, limits, n, 0.0 * n, at, by_chance)
    tpot = np.maximum(at.decode_s - per_prompt / w, at.plain_s)  # of very short answers nearly all steps have prompts
    evenly = _first_token(law, requests, limits, n, others * n / w, at, by_chance)
    ttft = np.maximum(clients / rate - w * tpot, alone) + first - evenly
    full = steps(law, requests, limits, most, None)
    capacity = most / (w * full.decode_s)
    none = np.zeros(np.shape(ttft))
    return SteadyState(
        at.step_s,
        tpot,
        ttft,
        inside + none,
        rate,
        capacity,
        np.minimum(rate / capacity, 1.0),
        law.seconds(1.0, 0.0, requests.context_tokens),
        full.decode_s,
        per_prompt**2 * n / w**2,
        per_prompt**2 * n / w**2,
        alone + ttft - first,
        first - alone,
        per_prompt**2 * n / window + np.maximum(first - alone - per_prompt * n / window, 0.0) ** 2,
        none,
        none,
        none,
    )


def _prompts_alone(law: StepLaw, requests: Requests, limits: Limits, clients: Array) -> SteadyState:
    """Return the steady state of clients whose requests end with their first token: steps full of prompts.

    Of N clients min(N, batch) are inside, of which a step takes whole prompts, or where they are cut its budget of
    tokens; TTFT = N / R (Little).
    """
    prompt, budget = np.asarray(requests.prompt_tokens, dtype=float), np.asarray(limits.token_budget, dtype=float)
    whole = budget / prompt if limits.mode == "chunked" else np.maximum(budget // prompt, 1.0)
    held = np.minimum(whole, np.minimum(clients, limits.max_batch))
    step_s = law.seconds(0.0, held * prompt, 0.0, held * prompt * requests.pairs_per_token)
    full_s = law.seconds(0.0, whole * prompt, 0.0, whole * prompt * requests.pairs_per_token)
    rate, capacity = held / step_s, np.maximum(held / step_s, whole / full_s)
    ttft, none = clients / rate, np.zeros(np.shape(clients / rate))
    running = np.minimum(clients, limits.max_batch) + none
    nothing = (none,) * 4
    return SteadyState(
        step_s, none, ttft, running, rate, capacity, rate / capacity, *nothing, ttft, *nothing[:2], *nothing[:3]
    )


def ends(
    law: StepLaw, requests: Requests, limits: Limits, concurrency: ArrayLike, rounds: ArrayLike = LONG
) -> tuple[Array, Array]:
    """Return how many others end in the last step of a request of a closed loop, and the chance that some decode on.

    Parameters
    ----------
    law, requests, limits, concurrency, rounds
        As `closed_loop` takes them.
    """
    inside = np.minimum(np.asarray(concurrency, dtype=float), limits.max_batch)
    window = _window(requests, limits, inside, rounds, prompts_at_once(law, requests, limits, inside)[0])[0]
    return np.maximum(inside - 1.0, 0.0) / window, np.where(inside > 1, 1.0 - 1.0 / window, 0.0)


def _window(
    requests: Requests, limits: Limits, inside: Array, rounds: ArrayLike, burst_steps: Array
) -> tuple[Array, Array]:
    """Return the decode steps over which requests of a round end, and the squared variation of the times between them.

    Notes
    -----
    Requests end as they began: one after another where prompts are computed beside those that decode, since clients and
    host pass them on one by one; in one step where prompts are computed alone and answers are equal. Lengths that move
    an end past the next one make the order one of chance, as of Poisson arrivals.
    """
    w = np.maximum(requests.decode_steps, 1.0)
    spread = 4 * w * np.sqrt(np.asarray(requests.output_scv, dtype=float) * np.maximum(rounds, 1.0))
    begun = 1.0 if limits.mode == "prefill_first" else burst_steps
    least = 1.0 if limits.mode == "prefill_first" else inside
    window = np.minimum(w, np.maximum(begun + spread, least))
    return window, np.minimum(spread * inside / window, 1.0)


def _together(inside: Array, by_chance: Array) -> Array:
    """Return how many prompts come at once at least: all, where answers are equal."""
    return 1.0 + (1.0 - by_chance) * (inside - 1.0)


def _prompts_first(
    law: StepLaw, requests: Requests, limits: Limits, clients: Array, inside: Array, window: Array
) -> SteadyState:
    """Return the steady state of a closed loop whose steps compute prompts alone.

    Notes
    -----
    The g = (n - 1)/window others that end in the same step fill steps of c prompts with it: the mean request is in step
    1 + (g - c + 1)/(2 c) of those.
    """
    prompt, later = np.asarray(requests.prompt_tokens, dtype=float), requests.decode_steps
    w = np.maximum(later, 1.0)
    whole = np.maximum(np.asarray(limits.token_budget, dtype=float) // prompt, 1.0)

    def prompts_s(count: Array) -> Array:
        return law.seconds(0.0, count * prompt, 0.0, count * prompt * requests.pairs_per_token)

    def decode_s(n: Array, count: Array) -> Array:
        return law.seconds(n, 0.0, n * requests.context_tokens) + n / w * prompts_s(count) / count

    others = np.maximum(inside - 1.0, 0.0) / window
    count = np.minimum(1.0 + others, whole)
    per_prompt = prompts_s(count) / count
    before = np.maximum(others - (whole - 1.0), 0.0) / (2 * whole)
    alone = prompts_s(np.ones_like(count))
    first = count * per_prompt + before * whole * per_prompt
    step = decode_s(inside, count)
    rate = inside / (w * step)
    batch = np.asarray(limits.max_batch, dtype=float)
    full = decode_s(batch, whole)
    capacity = batch / (w * full)
    loaded = inside / w / count
    excess = np.maximum(first - alone, 0.0)
    none = np.zeros(np.shape(first + step))
    return SteadyState(
        step / (1 + loaded),
        step - first / w,
        clients / rate - w * step + first,
        inside + none,
        rate,
        capacity,
        np.minimum(rate / capacity, 1.0),
        law.seconds(1.0, 0.0, requests.context_tokens),
        full,
        per_prompt**2 * inside / w**2,
        per_prompt**2 * inside / w**2,
        alone + clients / rate - w * step,
        excess,
        per_prompt**2 * others + excess**2 / 3,
        none,
        none,
        none,
    )


def _first_token(
    law: StepLaw,
    requests: Requests,
    limits: Limits,
    n: Array,
    per_step: Array,
    at: Steps,
    by_chance: Array,
) -> Array:
    """Return the time from the begin of a step, at which a request is there, to its first token [s].

    Other prompts come `per_step` to a step and wait for the token budget as M/D/c, in steps; `by_chance` is the squared
    coefficient of variation of the times between them, 0 where one follows the other as the clock ticks.
    """
    prompt, budget = np.asarray(requests.prompt_tokens, dtype=float), np.asarray(limits.token_budget, dtype=float)
    context = n * requests.context_tokens

    def step_s(tokens: Array) -> Array:
        return law.seconds(n, tokens, context, tokens * requests.pairs_per_token)

    if limits.mode != "chunked":
        whole = np.maximum(budget // prompt, 1.0)
        per_step = np.minimum(per_step, 0.98 * whole)
        queue = approximate_wait_s(per_step, 1.0, whole, 0.0, by_chance)
        return step_s(prompt * (1 + np.minimum(per_step, whole - 1))) + queue * at.loaded_s
    room = np.maximum(budget - n, 1.0)
    per_step = np.minimum(per_step, 0.98 * room / prompt)
    chunk = step_s(room)
    count = np.floor(prompt / room)
    alone = count * chunk + np.where(prompt > count * room, step_s(prompt - count * room), 0.0)
    return alone + approximate_wait_s(per_step, prompt / room, 1.0, requests.prompt_scv, by_chance) * chunk


@dataclass(frozen=True)
class Run:
    """A run from its first request to its last token.

    Parameters
    ----------
    ttft_s, tpot_s : array
        Means over all requests: time to the first token, and per output token after it [s].
    requests_per_s, seconds : array
        Requests over the time of the run [1/s]; the time [s].
    burst_ttft_s, alone_ttft_s : array
        Mean time to the first token of the requests that are there at the start, as far as the batch holds them, and of
        one that is there alone [s].
    steady : SteadyState
        The middle of the run.
    """

    ttft_s: Array
    tpot_s: Array
    requests_per_s: Array
    seconds: Array
    burst_ttft_s: Array
    alone_ttft_s: Array
    steady: SteadyState


def closed_loop_burst(
    law: StepLaw, requests: Requests, limits: Limits, concurrency: ArrayLike, rounds: ArrayLike = 10.0
) -> Run:
    """Return a run of clients that all start at once and send the next request when one is answered.

    Parameters
    ----------
    law, requests, limits
        The candidates.
    concurrency : array_like
        Clients of one engine.
    rounds : array_like
        Requests in all over clients, 1 or more.
    """
    clients, batch = np.asarray(concurrency, dtype=float), np.asarray(limits.max_batch, dtype=float)
    total = clients * np.asarray(rounds, dtype=float)
    inside = np.minimum(clients, batch)
    k = total / inside
    w = np.maximum(requests.decode_steps, 1.0)
    burst_steps, first = prompts_at_once(law, requests, limits, inside)
    window, by_chance = _window(requests, limits, inside, k / 2, burst_steps)
    last = _window(requests, limits, inside, k, burst_steps)[0]
    steady = closed_loop(law, requests, limits, clients, k / 2)
    n = inside if limits.mode == "prefill_first" else steady.requests_per_s * w * steady.tpot_s
    at = steps(law, requests, limits, n, None, _together(inside, by_chance))
    per_prompt = prompt_seconds(limits, at)
    # Sequences of the last round meet no prompts of those that end before; those at both ends fewer sequences.
    fewer = n * (1 - (burst_steps + last) / (6 * w * k))
    plain = law.seconds(fewer, 0.0, fewer * requests.context_tokens)
    tpot = plain + steady.tpot_s - at.plain_s - per_prompt * n / w / (2 * k) * (1 - 1 / window)
    seconds = total / steady.requests_per_s + (burst_steps + last) / 2 * law.seconds(1.0, 0.0, requests.context_tokens)
    ttft = (first * inside + steady.ttft_s * (total - inside)) / total
    alone = prompts_at_once(law, requests, limits, np.ones_like(inside))[1]
    return Run(ttft, np.maximum(tpot, plain), total / seconds, seconds, first, alone, steady)


def offline(law: StepLaw, requests: Requests, limits: Limits, count: ArrayLike) -> Run:
    """Return a run of requests that are all queued at the start.

    The batch takes the place of the clients. A request of round r waits r rounds for its first token.
    """
    count, batch = np.asarray(count, dtype=float), np.asarray(limits.max_batch, dtype=float)
    inside = np.minimum(count, batch)
    run = closed_loop_burst(law, requests, limits, inside, count / inside)
    waited = (count / inside - 1) / 2 * inside / run.steady.requests_per_s
    return replace(run, ttft_s=run.burst_ttft_s + waited)


@dataclass(frozen=True)
class StaticBatch:
    """A batch that begins and ends together.

    Parameters
    ----------
    ttft_s, tpot_s, seconds : array
        Time until all prompts are computed, time of a decode step, and time of the batch [s].
    requests_per_s : array
        Requests over that time [1/s].
    """

    ttft_s: Array
    tpot_s: Array
    seconds: Array
    requests_per_s: Array


def static_batch(law: StepLaw, requests: Requests, batch: ArrayLike, token_budget: ArrayLike) -> StaticBatch:
    """Return a batch whose prompts are computed first, under a token budget, and then decodes to the end."""
    batch, prompt = np.asarray(batch, dtype=float), np.asarray(requests.prompt_tokens, dtype=float)
    tokens = batch * prompt
    passes = np.ceil(np.maximum(tokens / np.maximum(token_budget, prompt), 1.0))
    share = tokens / passes
    first = passes * law.seconds(0.0, share, 0.0, share * requests.pairs_per_token)
    step = law.seconds(batch, 0.0, batch * requests.context_tokens)
    seconds = first + requests.decode_steps * step
    return StaticBatch(first, step, seconds, batch / seconds)


def prompts_at_once(law: StepLaw, requests: Requests, limits: Limits, count: Array) -> tuple[Array, Array]:
    """Return the steps until so many prompts that come at once are computed, and their mean time to the first token."""
    prompt, budget = np.asarray(requests.prompt_tokens, dtype=float), np.asarray(limits.token_budget, dtype=float)
    w = np.maximum(requests.decode_steps, 1.0)
    if limits.mode == "chunked":
        per_step = np.minimum(np.maximum(budget - count / 2, 1.0) / prompt, count)
    else:
        per_step = np.minimum(np.maximum(budget // prompt, 1.0), count)
    needed = np.maximum(count / per_step, 1.0)
    tokens = per_step * prompt
    decoding = np.minimum(count, per_step * w) * (limits.mode != "prefill_first")
    begin = law.seconds(0.0, tokens, 0.0, tokens * requests.pairs_per_token)
    end = law.seconds(decoding, tokens, decoding * prompt, tokens * requests.pairs_per_token)
    # The x-th part is through after the integral of a step that grows from begin to end, at the end of its own step.
    parts = np.where(needed > 1, np.where(per_step < 1, 0.5, 0.25) / per_step, 0.0) if limits.mode == "chunked" else 0.0
    return needed, needed * (begin / 3 + end / 6) + (0.5 + parts) * begin
