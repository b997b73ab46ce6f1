"""Requests that come over time to a node that interrupts its running sequences for each new prompt.

Prompts are computed one at a time, before the next token of the sequences that run. With p the time of a prompt, t that
of a token of all places, requests at random at the rate r, g generated tokens each, v the variance of p (prompts that
are found differ from those that are not), and on average L prompts waiting or under way,
L = r p + r^2 (p^2 + v) / (2 (1 - r p)) (Pollaczek and Khinchine):

    time to the first token    p + r (p^2 + v) / (2 (1 - r p)) + t / 2, the rest of a step that runs
    time between tokens        (t + L p / (g - 1)) / (1 - r p): prompts that are there when a sequence begins go first
    sequences that run         r (g - 1) times that (Little)

Both times are convex in p and t, so that tangents bound them from below.
"""

from __future__ import annotations

import numpy as np

from perfmodel.terms import Array, Number


def first_token_time(prompt_s: Number, token_s: Number, rate: float, variance_s2: float = 0.0) -> Array:
    """Return the mean time to the first token [s]; infinite where prompts alone take all the time.

    Parameters
    ----------
    prompt_s, token_s : float or array
        Time of a prompt, and of a token of all places [s].
    rate : float
        Requests a second [1/s].
    variance_s2 : float
        Of the time of a prompt [s^2].
    """
    busy = rate * np.asarray(prompt_s, float)
    free = np.where(busy < 1, 1.0 - busy, 1.0)
    waiting = np.where(busy < 1, (busy * prompt_s + rate * variance_s2) / (2 * free), np.inf)
    return np.asarray(prompt_s + waiting + np.asarray(token_s) / 2)


def token_time(prompt_s: Number, token_s: Number, rate: float, generated: int, variance_s2: float = 0.0) -> Array:
    """Return the mean time between tokens of a sequence of so many [s], as of `first_token_time`."""
    busy = rate * np.asarray(prompt_s, float)
    free = np.where(busy < 1, 1.0 - busy, 1.0)
    ahead_s = prompt_s * (busy + (busy**2 + rate**2 * variance_s2) / (2 * free))
    return np.asarray(np.where(busy < 1, (token_s + ahead_s / (generated - 1)) / free, np.inf))


def running(places: Number) -> Array:
    """Return how many sequences may run on average so that a new one seldom waits for a place.

    m + 2 sqrt(m) places for m: two standard deviations of a Poisson number.

    Parameters
    ----------
    places : float or array
        Sequences that run at most.
    """
    return np.asarray((np.sqrt(1.0 + np.asarray(places, float)) - 1.0) ** 2)


def first_token_tangents(rate: float, variance_s2: float = 0.0, count: int = 160) -> list[tuple[float, float]]:
    """Return lines below p + r (p^2 + v) / (2 (1 - r p)), each a slope over p and a value at none [1], [s].

    They touch it where prompts take from none to all but a thousandth of the time, and are within 0.25 % of it there.
    """
    busy, spread = _touched(count), rate**2 * variance_s2
    free = 1.0 - busy
    slope = 1.0 + busy / free + (busy**2 + spread) / (2 * free**2)
    value = (busy + (busy**2 + spread) / (2 * free)) / rate
    return _lines(busy / rate, value, slope)


def ahead_tangents(rate: float, variance_s2: float = 0.0, count: int = 80) -> list[tuple[float, float]]:
    """Return lines below L p, the prompts that go before a sequence that begins, as `first_token_tangents`."""
    busy, spread = _touched(count), rate**2 * variance_s2
    free = 1.0 - busy
    slope = 2 * busy + ((3 * busy**2 + spread) * free + busy * (busy**2 + spread)) / (2 * free**2)
    value = busy * (busy + (busy**2 + spread) / (2 * free)) / rate
    return _lines(busy / rate, value, slope)


def _touched(count: int) -> Array:
    """Return shares of the time that prompts take, close together near none and near all."""
    ends = np.geomspace(1e-3, 0.5, count // 2)
    return np.concatenate([[0.0], ends, 1.0 - ends[-2::-1]])


def _lines(at: Array, value: Array, slope: Array) -> list[tuple[float, float]]:
    return list(zip(slope.tolist(), (value - slope * at).tolist(), strict=True))
