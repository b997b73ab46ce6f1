"""Requests: when they come, and how long they are; and what a model of steady state needs to know of them.

Times come from `numpy.random.Generator`, so that a seed gives them again. A fixed number of clients has no times of
its own: see `perfmodel.simulation.simulate_closed`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

DAY_S = 86400.0


@dataclass(frozen=True)
class RequestList:
    """Requests in order of arrival.

    Parameters
    ----------
    arrival_s : array, shape (requests,)
        Times, ascending [s].
    prompt_tokens, output_tokens : array of int, shape (requests,)
        Lengths.
    """

    arrival_s: Array
    prompt_tokens: Integers
    output_tokens: Integers


def gamma_arrivals(rate: float, cv: float, count: int, random: np.random.Generator) -> Array:
    """Return arrivals with gamma distributed times between them [s].

    Parameters
    ----------
    rate : float
        Arrivals [1/s].
    cv : float
        Coefficient of variation of the times between them: 1 is Poisson, 0 a fixed beat, above 1 bursts.
    count : int
        How many.
    random : numpy.random.Generator
        Where the randomness comes from.

    Notes
    -----
    Shape 1 / cv^2, as measured services are described (BurstGPT, arXiv 2401.17644, section 3).
    """
    if cv == 0:
        return np.arange(1, count + 1) / rate
    return np.cumsum(random.gamma(1 / cv**2, cv**2 / rate, count))


def profile_arrivals(
    rates: ArrayLike, count: int, random: np.random.Generator, cv: float = 1.0, period_s: float = DAY_S
) -> Array:
    """Return arrivals whose rate goes through a profile again and again [s].

    Parameters
    ----------
    rates : array_like, shape (K,)
        Rates of K equal parts of a period [1/s], such as 24 hours of a day.
    count, random, cv
        As in `gamma_arrivals`.
    period_s : float
        Length of the period [s].

    Notes
    -----
    Arrivals of rate 1 are moved to where the integral of the rate reaches them: a Poisson process with that rate for
    cv 1 (Cinlar, Introduction to Stochastic Processes, section 4.7), and bursts that keep their shape for others.
    """
    parts = np.asarray(rates, dtype=float)
    edges = np.linspace(0.0, period_s, len(parts) + 1)
    reached = np.concatenate([[0.0], np.cumsum(parts * np.diff(edges))])
    if reached[-1] <= 0:
        raise ValueError("a rate of the profile has to be above 0")
    done = gamma_arrivals(1.0, cv, count, random)
    periods = np.floor(done / reached[-1])
    rest = done - periods * reached[-1]
    part = np.minimum(np.searchsorted(reached, rest, side="right") - 1, len(parts) - 1)
    return np.asarray(periods * period_s + edges[part] + (rest - reached[part]) / parts[part])


def lognormal_lengths(
    median: float, sigma: float, least: int, most: int, count: int, random: np.random.Generator
) -> Integers:
    """Draw whole lengths of a log-normal distribution, cut to a range [tokens]."""
    return np.clip(np.rint(np.exp(random.normal(np.log(median), sigma, count))), least, most).astype(np.int64)


def uniform_lengths(
    nominal: int, least_ratio: float, most_ratio: float, count: int, random: np.random.Generator
) -> Integers:
    """Draw whole lengths uniform between two ratios of a nominal one, both ends included; 1 at least [tokens]."""
    low, high = max(int(np.floor(least_ratio * nominal)), 1), max(int(np.floor(most_ratio * nominal)), 1)
    return random.integers(low, high + 1, count)


def histogram_lengths(
    pairs: Iterable[tuple[int, int]], weights: ArrayLike, count: int, random: np.random.Generator
) -> tuple[Integers, Integers]:
    """Draw prompt and output lengths together from a histogram.

    Parameters
    ----------
    pairs : iterable of (int, int)
        Prompt and output tokens of each bin.
    weights : array_like
        Its weight; any scale.
    """
    bins = np.array(list(pairs), dtype=np.int64)
    share = np.asarray(weights, dtype=float)
    drawn = bins[random.choice(len(bins), count, p=share / share.sum())]
    return drawn[:, 0], drawn[:, 1]


@dataclass(frozen=True)
class Moments:
    """Means and spreads of requests.

    Parameters
    ----------
    count : int
        Requests.
    seconds : float
        Time between the first and the last [s].
    rate : float
        Requests over that time [1/s].
    peak_rate : float
        Rate of the busiest window [1/s].
    window_s : float
        Length of a window [s].
    arrival_scv : float
        Squared coefficient of variation of the times between arrivals.
    prompt_tokens, output_tokens : float
        Mean lengths.
    prompt_scv, output_scv : float
        Their squared coefficients of variation.
    """

    count: int
    seconds: float
    rate: float
    peak_rate: float
    window_s: float
    arrival_scv: float
    prompt_tokens: float
    output_tokens: float
    prompt_scv: float
    output_scv: float


def moments(pieces: Iterable[RequestList], window_s: float = 300.0) -> Moments:
    """Return means and spreads of requests in one pass, whatever their number.

    Parameters
    ----------
    pieces : iterable of RequestList
        Requests some at a time, in order.
    window_s : float
        Length of the windows of which the busiest is told [s].
    """
    count, first, last = 0, 0.0, 0.0
    sums = np.zeros(6)
    windows: dict[int, int] = {}
    for piece in pieces:
        times = piece.arrival_s
        if not len(times):
            continue
        if not count:
            first = last = float(times[0])
        gaps = np.diff(times, prepend=last)
        count, last = count + len(times), float(times[-1])
        for place, values in enumerate((gaps, piece.prompt_tokens, piece.output_tokens)):
            sums[2 * place] += values.sum(dtype=float)
            sums[2 * place + 1] += (values.astype(float) ** 2).sum()
        numbers, held = np.unique(((times - first) // window_s).astype(np.int64), return_counts=True)
        for number, more in zip(numbers.tolist(), held.tolist(), strict=True):
            windows[number] = windows.get(number, 0) + more
    if not count:
        raise ValueError("there is no request")
    seconds = last - first
    amounts = np.repeat([max(count - 1, 1), count, count], 2)
    mean_gap, gap_square, prompt, prompt_square, output, output_square = sums / amounts
    return Moments(
        count,
        seconds,
        (count - 1) / seconds if seconds > 0 else float("inf"),
        max(windows.values()) / min(window_s, seconds) if seconds > 0 else float("inf"),
        window_s,
        max(gap_square / mean_gap**2 - 1, 0.0) if mean_gap > 0 else 0.0,
        prompt,
        output,
        max(prompt_square / prompt**2 - 1, 0.0),
        max(output_square / output**2 - 1, 0.0),
    )
