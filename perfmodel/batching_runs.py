"""Benchmark runs of continuous batching as equations: a closed loop from its start, a full queue, a static batch.

A run of Q requests with N in flight at once is k = Q / N rounds. It begins with all N prompts at once: under the token
budget they take S steps, in which n rises from 0 to N. From then on requests end as spread out as their prompts were
and their lengths make them, S + 4 sd(G) sqrt(rounds) steps but at most G - 1, and the next prompts come in that window.
At the end nobody takes the place of who ends, and n falls over the window of the last round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.batching import Limits, Requests, SteadyState, closed_loop, prompt_seconds, steps
from perfmodel.step_law import Array, StepLaw


@dataclass(frozen=True)
class Run:
    """A run from its first request to its last token.

    Parameters
    ----------
    ttft_s, tpot_s : array
        Means over all requests: time to the first token, and per output token after it [s].
    requests_per_s, seconds : array
        Requests over the time of the run [1/s]; the time [s].
    burst_ttft_s : array
        Mean time to the first token of the requests that are there at the start, as far as the batch holds them [s].
    steady : SteadyState
        The middle of the run.
    """

    ttft_s: Array
    tpot_s: Array
    requests_per_s: Array
    seconds: Array
    burst_ttft_s: Array
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
    burst_steps, first = _burst(law, requests, limits, inside)
    spread = 4 * w * np.sqrt(np.asarray(requests.output_scv, dtype=float))
    window = np.minimum(w, burst_steps + spread * np.sqrt(np.maximum(k / 2, 1.0)))
    last = np.minimum(w, burst_steps + spread * np.sqrt(k))
    steady = closed_loop(law, requests, limits, clients, window)
    n = steady.requests_per_s * w * steady.tpot_s
    at = steps(law, requests, limits, n, None)
    per_prompt = prompt_seconds(limits, at)
    # Sequences of the last round meet half the prompts; those of the first and last window fewer sequences.
    fewer = n * (1 - (burst_steps + last) / (6 * w * k))
    plain = law.seconds(fewer, 0.0, fewer * requests.context_tokens)
    tpot = plain + steady.tpot_s - at.plain_s - per_prompt * n / w / (2 * k)
    seconds = total / steady.requests_per_s + (burst_steps + last) / 2 * law.seconds(1.0, 0.0, requests.context_tokens)
    ttft = (first * inside + steady.ttft_s * (total - inside)) / total
    return Run(ttft, np.maximum(tpot, plain), total / seconds, seconds, first, steady)


def offline(law: StepLaw, requests: Requests, limits: Limits, count: ArrayLike) -> Run:
    """Return a run of requests that are all queued at the start.

    The batch takes the place of the clients. A request of round r waits r rounds for its first token.
    """
    count, batch = np.asarray(count, dtype=float), np.asarray(limits.max_batch, dtype=float)
    inside = np.minimum(count, batch)
    run = closed_loop_burst(law, requests, limits, inside, count / inside)
    waited = (count / inside - 1) / 2 * inside / run.steady.requests_per_s
    return Run(run.burst_ttft_s + waited, run.tpot_s, run.requests_per_s, run.seconds, run.burst_ttft_s, run.steady)


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


def _burst(law: StepLaw, requests: Requests, limits: Limits, count: Array) -> tuple[Array, Array]:
    """Return the steps until prompts that come at once are computed, and their mean time to the first token [s]."""
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
