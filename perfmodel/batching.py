"""Continuous batching as equations: mean step, TPOT, TTFT, their percentiles, and capacity.

Requests of P prompt and G output tokens arrive at rate R at an engine whose steps follow a `StepLaw`; who is in a step
depends on the mode, as in `perfmodel.simulation`. All arguments are arrays that broadcast: an entry is a candidate.

1. Mean field. In a step n sequences decode on average, and G - 1 steps later they are through: n / (G - 1) prompts come
   with each step, and the rate is R = n / ((G - 1) s(n)). In an open loop this is solved for n, in a closed loop n is
   given. Steps with and without prompts are told apart, as the law need not be linear.
2. Steps excite themselves: during a longer step more requests arrive, which make later steps longer. Arrivals per step
   are a Hawkes process, with p = R dt/d(prompt) from the prompt in the next step and q = R dt/dn in each of the G - 1
   steps after it. The covariance of such a process is constant over the G - 1 steps, and

       Var n = n / ((1 - p) (1 - p - q (G - 1))).

3. TPOT is the mean step as a decoding sequence meets it, E[n t] / E[n] = s + Cov(n, t) / n.
4. TTFT is what is left of the step in which a request arrives, its prompt with those that arrived beside it, and the
   wait for room: in the token budget as M/D/c, and in the batch where n, gamma distributed, reaches its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.queueing import approximate_wait_s
from perfmodel.step_law import Array, StepLaw

_LEAST_FREE = 0.02
"""Share of an engine's time beside what grows with the load, at least, where variances are computed."""
_BISECTIONS = 20
_SECANTS = 10
"""After these some thousandths of random candidates, beside a kink of their law or budget, are 1e-3 off."""


@dataclass(frozen=True)
class Requests:
    """What requests look like; all fields broadcast.

    Parameters
    ----------
    prompt_tokens, output_tokens : array_like
        Mean lengths.
    prompt_scv, output_scv : array_like
        Their variances over the squared means.
    """

    prompt_tokens: ArrayLike
    output_tokens: ArrayLike
    prompt_scv: ArrayLike = 0.0
    output_scv: ArrayLike = 0.0

    @property
    def decode_steps(self) -> Array:
        """Steps in which a request decodes, G - 1."""
        return np.asarray(np.maximum(np.asarray(self.output_tokens, dtype=float) - 1, 0.0))

    @property
    def context_tokens(self) -> Array:
        """Mean context of a sequence while it decodes, P + G (1 + scv) / 2."""
        spread = 1 + np.asarray(self.output_scv, dtype=float)
        return np.asarray(self.prompt_tokens + np.multiply(self.output_tokens, spread) / 2)

    @property
    def pairs_per_token(self) -> Array:
        """Mean context that a prompt token attends to, P (1 + scv) / 2."""
        return np.asarray(np.multiply(self.prompt_tokens, 1 + np.asarray(self.prompt_scv, dtype=float)) / 2)


@dataclass(frozen=True)
class Limits:
    """What an engine lets into a step; arrays broadcast.

    Parameters
    ----------
    mode : str
        ``mixed``, ``chunked`` or ``prefill_first``; one for all candidates.
    max_batch, token_budget : array_like
        Most requests that run at once; most prompt tokens of a step (with ``chunked`` most tokens).
    """

    mode: str
    max_batch: ArrayLike
    token_budget: ArrayLike


@dataclass(frozen=True)
class Steps:
    """The steps around a mean number of decoding sequences.

    Parameters
    ----------
    plain_s, loaded_s : array
        Time of a step without and with prompts [s].
    prompts : array
        Prompts of a step that carries some; below 1 where they are cut.
    loaded_per_decode : array
        Steps with prompts for each step that decodes.
    decode_s : array
        Time from one decoding step to the next [s].
    step_s : array
        Mean over all steps [s].
    """

    plain_s: Array
    loaded_s: Array
    prompts: Array
    loaded_per_decode: Array
    decode_s: Array
    step_s: Array


@dataclass(frozen=True)
class SteadyState:
    """What requests experience. Where an open loop's load reaches the capacity, times to the first token are infinite.

    Parameters
    ----------
    step_s, tpot_s, ttft_s : array
        Mean step, time per output token after the first, and time to the first token [s].
    running : array
        Mean number of requests that run.
    requests_per_s : array
        Requests answered [1/s].
    capacity_requests_per_s, load : array
        Highest rate that the engine sustains [1/s]; the rate's share of it.
    """

    step_s: Array
    tpot_s: Array
    ttft_s: Array
    running: Array
    requests_per_s: Array
    capacity_requests_per_s: Array
    load: Array
    _tpot_least_s: Array
    _tpot_most_s: Array
    _tpot_variance: Array
    _tpot_noise: Array
    _ttft_least_s: Array
    _ttft_excess_s: Array
    _ttft_variance: Array
    _wait_probability: Array
    _wait_least_s: Array
    _wait_s: Array

    def tpot_quantile_s(self, probability: float) -> Array:
        """Return a quantile over requests of the time per output token [s].

        The time above an undisturbed step is taken as log-normal, up to that of a full batch and, where lengths are
        unequal, the luck of a request beside it.
        """
        from scipy.special import ndtri

        quantile = _lognormal_quantile(probability, self.tpot_s - self._tpot_least_s, self._tpot_variance)
        most = self._tpot_most_s + np.maximum(ndtri(probability), 0.0) * np.sqrt(self._tpot_noise)
        return np.where(np.isfinite(self.ttft_s), np.minimum(self._tpot_least_s + quantile, most), np.inf)

    def ttft_quantile_s(self, probability: float) -> Array:
        """Return a quantile over requests of the time to the first token [s].

        The time above an undisturbed prompt is taken as Weibull distributed, with its mean and variance; the wait for
        room in the batch as a least time and an exponential one.
        """
        from scipy.special import gamma

        stable = np.isfinite(self.ttft_s)
        mean = np.maximum(np.where(stable, self._ttft_excess_s, 1.0), 1e-12)
        shape = np.clip((np.maximum(self._ttft_variance, 1e-24) / mean**2) ** -0.543, 0.3, 10.0)
        scale = mean / gamma(1 + 1 / shape)
        low = scale * (-np.log(1 - probability)) ** (1 / shape)
        wait = np.maximum(self._wait_s, 1e-12)
        begin = mean + self._wait_least_s
        tail = begin + wait * np.log(np.maximum(2 * self._wait_probability / (1 - probability), 1.0))
        high = np.maximum(scale * (-np.log((1 - probability) / 2)) ** (1 / shape), tail)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            above = np.exp(-((middle / scale) ** shape))
            above += (1 - above) * self._wait_probability * np.exp(-np.maximum(middle - begin, 0.0) / wait)
            low, high = np.where(above > 1 - probability, middle, low), np.where(above > 1 - probability, high, middle)
        return np.where(stable, self._ttft_least_s + high, np.inf)


def _lognormal_quantile(probability: float, mean: Array, variance: Array) -> Array:
    from scipy.special import ndtri

    mean = np.maximum(mean, 1e-12)
    spread = np.sqrt(np.log1p(np.maximum(variance, 0.0) / mean**2))
    return np.asarray(mean * np.exp(spread * ndtri(probability) - spread**2 / 2))


def steps(
    law: StepLaw,
    requests: Requests,
    limits: Limits,
    sequences: ArrayLike,
    rate: ArrayLike | None,
    together: ArrayLike = 1.0,
) -> Steps:
    """Return the steps of an engine in which so many sequences decode on average.

    Parameters
    ----------
    law, requests, limits
        The candidates.
    sequences : array_like
        Sequences n that decode in a step that decodes.
    rate : array_like or None
        Arrivals [1/s], on which ``prefill_first`` and engines that only prefill depend; None if requests wait and are
        let in when others end.
    together : array_like
        Prompts that come at once, if as many come in a step by chance.

    Notes
    -----
    Prompts per decode step are Poisson distributed with mean n / (G - 1), so that a share exp(-n / (G - 1)) of the
    steps carries none, until the budget binds. With ``prefill_first`` a decode step is followed by one that prefills
    if requests have arrived in it, and that one by another if more have.
    """
    n = np.asarray(sequences, dtype=float)
    prompt = np.asarray(requests.prompt_tokens, dtype=float)
    context = n * requests.context_tokens
    later = requests.decode_steps
    per_step = np.maximum(n, 1e-9) / np.maximum(later, 1.0)
    if rate is not None and not np.all(later):
        alone = law.seconds(0.0, prompt, 0.0, prompt * requests.pairs_per_token)
        per_step = np.where(later > 0, per_step, np.multiply(rate, alone))
    plain = law.seconds(n, 0.0, context)
    bunch = np.maximum(per_step / -np.expm1(-per_step), together)
    whole = np.maximum(np.asarray(limits.token_budget) // prompt, 1.0)
    if limits.mode == "prefill_first":
        loaded_per_decode = -np.expm1(-per_step)
        if rate is not None:
            arrived = np.multiply(rate, plain)
            some = -np.expm1(-arrived)
            held = np.minimum(arrived / np.maximum(some, 1e-300), whole)
            once = law.seconds(0.0, held * prompt, 0.0, held * prompt * requests.pairs_per_token)
            loaded_per_decode = some / np.maximum(np.exp(-np.multiply(rate, once)), 1e-9)
        loaded_per_decode = np.clip(loaded_per_decode, per_step / whole, per_step)
        held = per_step / loaded_per_decode
        loaded = law.seconds(0.0, held * prompt, 0.0, held * prompt * requests.pairs_per_token)
        decode = plain + loaded_per_decode * loaded
        return Steps(plain, loaded, held, loaded_per_decode, decode, decode / (1 + loaded_per_decode))
    if limits.mode == "chunked":
        tokens = np.minimum(prompt * bunch, np.maximum(np.asarray(limits.token_budget) - n, 1.0))
    else:
        tokens = prompt * np.minimum(bunch, whole)
    loaded = law.seconds(n, tokens, context, tokens * requests.pairs_per_token)
    share = np.minimum(per_step * prompt / tokens, 1.0)
    mean = plain + share * (loaded - plain)
    return Steps(plain, loaded, tokens / prompt, share, mean, mean)


def most_decoding(requests: Requests, limits: Limits) -> Array:
    """Return the mean number of sequences that decode when the engine is full.

    The batch holds them beside the requests that prefill; the token budget has to carry n / (G - 1) prompts a step.
    """
    later, prompt = requests.decode_steps, np.asarray(requests.prompt_tokens, dtype=float)
    batch, budget = np.asarray(limits.max_batch, dtype=float), np.asarray(limits.token_budget, dtype=float)
    if limits.mode == "prefill_first":
        return np.broadcast_arrays(batch, later, prompt)[0] * 1.0
    if limits.mode == "mixed":
        return np.asarray(np.minimum(batch * later / (later + 1), later * np.maximum(budget // prompt, 1.0)))
    most = np.minimum(batch, budget / (1 + prompt / np.maximum(later, 1e-9)))
    return np.asarray(
        np.minimum(most, batch * later / (later + np.maximum(1.0, prompt / np.maximum(budget - most, 1))))
    )


def open_loop(
    law: StepLaw, requests: Requests, limits: Limits, arrival_rate: ArrayLike, arrival_scv: ArrayLike = 1.0
) -> SteadyState:
    """Return the steady state of engines whose requests arrive at a given rate, whatever the engine does.

    Parameters
    ----------
    law, requests, limits
        The candidates.
    arrival_rate : array_like
        Arrivals R at one engine [1/s].
    arrival_scv : array_like
        Squared coefficient of variation of the times between arrivals: 1 for Poisson.
    """
    from scipy.special import ndtr

    rate, ca2, batch = (np.asarray(v, dtype=float) for v in (arrival_rate, arrival_scv, limits.max_batch))
    prompt, later = np.asarray(requests.prompt_tokens, dtype=float), requests.decode_steps
    budget = np.asarray(limits.token_budget, dtype=float)
    decodes = later > 0
    w = np.maximum(later, 1.0)
    most = np.where(decodes, most_decoding(requests, limits), 0.0)
    full = steps(law, requests, limits, most, None)
    alone = law.seconds(0.0, prompt, 0.0, prompt * requests.pairs_per_token)
    whole = np.maximum(budget // prompt, 1.0)
    held = budget / prompt if limits.mode == "chunked" else whole  # prompts are cut where the step is full
    together = law.seconds(0.0, held * prompt, 0.0, held * prompt * requests.pairs_per_token)
    capacity = np.where(decodes, most / (w * full.decode_s), held / together)
    load = rate / capacity
    mean_decoding, n = _solve(law, requests, limits, rate, most, full.decode_s)
    mean_decoding, n = np.where(decodes, mean_decoding, 0.0), np.where(decodes, n, 0.0)
    at = steps(law, requests, limits, n, rate)
    # Slopes: seconds of one more decoding sequence, and of one more prompt.
    context = requests.context_tokens
    side = np.sqrt(np.maximum(n, 1.0))
    above, below = n + side, np.maximum(n - side, 0.0)
    per_sequence = (law.seconds(above, 0.0, above * context) - law.seconds(below, 0.0, below * context)) / (
        above - below
    )
    mixed_steps = limits.mode != "prefill_first"
    per_prompt = prompt_seconds(limits, at)
    p = np.clip(rate * per_prompt, 0.0, 1 - _LEAST_FREE)
    q = np.where(decodes, rate * np.maximum(per_sequence, 0.0), 0.0)
    free = np.maximum(1 - p - q * later, _LEAST_FREE * (1 - p))
    # Variance of n over its mean, and the covariance with the prompts of the same step.
    fano = ca2 / ((1 - p) * free)
    slow = ca2 * q / ((1 - p) ** 2 * free) + p / ((1 - p) * (1 - p * p) * w)
    met = per_sequence * (mean_decoding + fano - n) / (1 if mixed_steps else 1 - p)
    met = met + per_prompt * ((slow if mixed_steps else 0.0) + (mean_decoding - n) / w)
    tpot_most = full.decode_s * 1.0
    tpot = np.clip(at.decode_s + met, law.seconds(1.0, 0.0, context), np.maximum(tpot_most, at.decode_s))
    # Variance of the sum of G - 1 steps: counts less their own noise.
    growth = np.maximum(q / (1 - p), 1e-12) * w
    counts = rate * at.decode_s * w * ca2
    variance = counts * (1 / ((1 - p) * free) + 1 - 2 * np.expm1(growth) / (growth * (1 - p)))
    tpot_variance = np.maximum(variance, 0.0) / np.maximum(rate * w, 1e-300) ** 2
    # Prompts and answers of unequal length: short answers meet few prompts, of which each is another length.
    prompt_scv, output_scv = np.asarray(requests.prompt_scv, dtype=float), np.asarray(requests.output_scv, dtype=float)
    tpot_noise = per_prompt**2 * rate * tpot / w * (prompt_scv * (1 + output_scv) + output_scv)
    # Steps as an arriving request meets them: long ones more often.
    share = at.loaded_per_decode / (1 + (0 if mixed_steps else at.loaded_per_decode))
    share = np.where(decodes, share, 1.0)
    step = np.where(decodes, at.step_s, at.loaded_s)
    square = (1 - share) * at.plain_s**2 + share * (at.loaded_s**2 + per_prompt**2 * at.prompts * prompt_scv)
    if limits.mode == "mixed":
        noise = per_prompt**2 * (1 + prompt_scv) * n / w * ca2 / (1 - p * p) + fano * n * per_sequence**2
        square = np.maximum(square, at.step_s**2 + noise + 2 * per_sequence * per_prompt * slow * n)
    loaded_variance = (square - (1 - share) * at.plain_s**2) / np.maximum(share, 1e-12) - at.loaded_s**2
    loaded_variance = np.maximum(loaded_variance, 0.0)
    loaded_third = at.loaded_s**3 + 3 * at.loaded_s * loaded_variance + 2 * loaded_variance**1.5
    third = (1 - share) * at.plain_s**3 + share * loaded_third
    busy = np.where(decodes, -np.expm1(-(mean_decoding + rate * alone)), np.minimum(rate * step / at.prompts, 1.0))
    single = (whole == 1) & (limits.mode != "chunked")  # the queue of a budget of one prompt counts its rests itself
    rest = busy * np.where(single, (1 - share) * at.plain_s**2, square) / (2 * step)
    rest_square = busy * np.where(single, (1 - share) * at.plain_s**3, third) / (3 * step)
    beside = np.minimum(_beside(rate * busy * square / step, ca2), whole - 1)
    met_by = mean_decoding * mixed_steps
    own = law.seconds(met_by, prompt, met_by * context, prompt * requests.pairs_per_token)
    queue = approximate_wait_s(rate, at.loaded_s, whole, prompt_scv, ca2)
    least, itself = own, per_prompt
    excess = rest + per_prompt * beside + queue
    met_variance = np.maximum(3 * rest_square - 4 * rest**2, 0.0)
    spread = rest_square - rest**2 + p * (1 + p) * met_variance + per_prompt**2 * beside * (1 + prompt_scv)
    spread = spread + queue**2 + queue * at.loaded_s * 2 / 3
    if limits.mode == "chunked":
        room = np.maximum(budget - met_by, 1.0)
        # Where the prompts that come together fit a step, it holds whole ones.
        cut = room < (1 + ca2) * prompt * (1 + prompt_scv)
        chunk = law.seconds(met_by, room, met_by * context, room * requests.pairs_per_token)
        service = prompt / room * chunk
        used = np.minimum(rate * service, 1.0)
        count = np.floor(prompt / room)
        tokens = prompt - count * room
        left = law.seconds(met_by, tokens, met_by * context, tokens * requests.pairs_per_token)
        own = np.where(cut, count * chunk + np.where(tokens > 0, left, 0.0), own)
        # A prompt that finds nobody leaves its last step half empty; behind others it fills the steps.
        taken = used * service + (1 - used) * own
        queue = approximate_wait_s(rate, service, 1.0, prompt_scv, ca2) * (taken / service) ** 2
        after = queue + (1 - used) * busy * at.plain_s / 2 + used * np.maximum(service + chunk / 2 - own, 0.0)
        around = queue**2 + used * service**2 * (1 + prompt_scv) ** 3 / (3 * np.maximum(1 - used, _LEAST_FREE))
        around = around + rest_square - rest**2
        least, itself = np.where(cut, np.minimum(own, service + chunk), least), np.where(cut, service, itself)
        excess, spread = np.where(cut, after, excess), np.where(cut, around, spread)
    # Of unequal prompts the least time is not that of the mean one.
    shorter = itself * np.minimum(prompt_scv, 1.0)
    least, excess, spread = least - shorter, excess + shorter, spread + itself**2 * prompt_scv
    # Room in the batch: gamma distributed requests in the system, and the wait of a full engine.
    unlimited = np.where(np.isfinite(excess), least + excess, least)
    in_system = rate * (later * tpot + unlimited)
    shape = np.maximum(in_system / fano, 1e-9)
    cube = np.cbrt(np.maximum(batch - 0.5, 0.5) / np.maximum(in_system, 1e-12))
    reach = ndtr(-(cube - 1 + 1 / (9 * shape)) * 3 * np.sqrt(shape))
    rho = np.minimum(load, 1.0)
    chance = np.where(decodes, reach ** (1 - rho ** (2 * np.sqrt(batch))), 0.0)
    variability = (ca2 + output_scv) / 2
    spare = np.maximum(capacity - rate, 1e-12 * capacity)
    wait, wait_least = variability / spare, 1 / (capacity * (1 - p))
    stable = load < 1
    ttft = np.where(stable, least + excess + chance * (wait + wait_least), np.inf)
    return SteadyState(
        np.where(stable, step, full.step_s),
        np.where(stable, tpot, np.where(decodes, tpot_most, 0.0)),
        ttft,
        np.where(stable, rate * (later * tpot + own), batch),
        np.minimum(rate, capacity),
        capacity,
        load,
        law.seconds(1.0, 0.0, context),
        tpot_most,
        tpot_variance + tpot_noise,
        tpot_noise,
        least,
        excess,
        np.maximum(spread, 0.0),
        chance,
        wait_least,
        wait,
    )


def _beside(count: Array, arrival_scv: Array) -> Array:
    """Return how many others come in the step of a request, of which `count` would with Poisson arrivals.

    Times between arrivals are gamma distributed with shape 1 / scv. Of such a process m(x) = (x / scv)^(1/scv) /
    Gamma(1 + 1/scv) follow within a short x, in mean times, and x + (scv - 1) / 2 within a long one (renewal theorem).
    """
    from scipy.special import gamma

    shape = 1 / np.maximum(arrival_scv, 1e-3)
    count = np.maximum(count, 1e-12)
    short = 2 / (1 + shape) * (shape * count) ** shape / gamma(1 + shape)
    return np.where(arrival_scv > 1, np.minimum(short, count + arrival_scv - 1), count * np.minimum(arrival_scv, 1.0))


def _solve(
    law: StepLaw, requests: Requests, limits: Limits, rate: Array, most: Array, full_s: Array
) -> tuple[Array, Array]:
    """Return the mean decoding sequences over all time, and over steps, at which the rate is met.

    An engine is idle a share exp(-x) of the time when x decode on average. With y = 1 / x the time of a request in the
    batch is (G - 1) t(x) y, nearly a line in y: secants, kept within a bracket.
    """
    w = np.maximum(requests.decode_steps, 1.0)
    target = 1 / np.maximum(rate, 1e-300)

    def miss(y: Array) -> tuple[Array, Array]:
        x = 1 / y
        n = x / -np.expm1(-x)
        return w * steps(law, requests, limits, n, rate).decode_s * y - target, n

    low = 1 / np.maximum(most, 1e-9) * np.ones(np.broadcast_shapes(np.shape(rate), np.shape(full_s)))
    high = np.maximum(2.0 * target / (w * law.seconds(1.0, 0.0, requests.context_tokens)), low)
    at_low = w * full_s * low - target
    start = np.clip(target * low / np.maximum(target + at_low, 1e-300), low, high)
    y, n = secants(miss, low, high, at_low, start, target)
    return 1 / y, n


def secants(
    miss: Callable[[Array], tuple[Array, Any]], low: Array, high: Array, at_low: Array, start: Array, scale: Array
) -> tuple[Array, Any]:
    """Return where rising functions are zero, and what they give beside; else the nearer end of their ranges.

    Parameters
    ----------
    miss : callable
        The functions: arrays of places to values, and whatever else is known there.
    low, high : array
        Ends of the ranges.
    at_low, start : array
        Values at `low`; the first places to look at.
    scale : array
        Values within 1e-5 of it count as zero.
    """
    done, last, at_last, x = at_low >= 0, low, at_low, start
    for _ in range(_SECANTS):
        found, beside = miss(x)
        done = done | (np.abs(found) < 1e-5 * scale) | (high - low < 1e-9 * high) | ((x >= high) & (found < 0))
        if done.all():
            break
        low, high = np.where(found > 0, low, x), np.where(found > 0, x, high)
        slope = found - at_last
        ahead = x - found * (x - last) / np.where(slope == 0, 1.0, slope)
        last, at_last = x, found
        x = np.where(done, x, np.where((ahead > low) & (ahead < high), ahead, 0.5 * (low + high)))
    return x, beside


def prompt_seconds(limits: Limits, at: Steps) -> Array:
    """Return the time by which a prompt lengthens its step, or with ``prefill_first`` the time between others [s]."""
    base = at.plain_s if limits.mode != "prefill_first" else 0.0
    return np.maximum((at.loaded_s - base) / at.prompts, 0.0)
