"""How many rows the experts of a rank get: evenly spread, chosen at random, or from a power law.

T tokens choose k of E experts each, ep ranks hold E/ep experts each. All arrays have one shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from perfmodel.terms import Array

TILES = (16, 64)
"""Rows of a tile that counts are kept for."""

NODES = 32
"""Quantiles that stand for the loads of a rank's experts."""

CHUNK = 1 << 16
"""Rows taken at a time."""

SPREAD = tuple(NormalDist().inv_cdf((i + 0.5) / 8) for i in range(8))
"""Quantiles of the normal distribution that stand for the load of an expert that is chosen at random."""


@dataclass(frozen=True)
class Load:
    """Expected load of the rank that is looked at.

    Parameters
    ----------
    pairs : array
        Token-expert pairs on it.
    active : array
        Its experts that get any.
    tiles : tuple of array
        Tiles of 16 and 64 rows that they fill, each expert's last one perhaps in part.
    tokens : array
        Tokens that chose at least one of its experts.
    """

    pairs: Array
    active: Array
    tiles: tuple[Array, ...]
    tokens: Array


def even_load(T: Array, k: Array, E: Array, ep: Array) -> Load:
    """Return the load where pairs are dealt out in turn: as many experts as there are pairs, each with the same rows.

    Tokens that chose any of the rank's experts are as many as its pairs, or all.
    """
    pairs = np.maximum(T * k / ep, 1.0)
    active = np.minimum(np.maximum(E / ep, 1.0), np.ceil(pairs - 1e-9))
    tiles = tuple(active * np.ceil(pairs / active / M) for M in TILES)
    return Load(pairs, active, tiles, np.minimum(T, np.ceil(pairs - 1e-9)))


def random_load(T: Array, k: Array, E: Array, ep: Array) -> Load:
    """Return the expected load of a rank where every token chooses k of E experts at random.

    Notes
    -----
    A token chooses an expert with probability k/E, so loads are binomial and D = (E/ep) (1 - (1 - k/E)^T) experts get
    any. Tiles are counted over quantiles of the normal distribution of that mean and variance, at least one row each.
    """
    from scipy.special import gammaln

    pairs = T * k / ep
    share = np.minimum(k / E, 1.0)
    missed = np.exp(T * np.log1p(-np.minimum(share, 1.0 - 1e-12)))
    active = E / ep * (1.0 - missed)
    mean, deviation = pairs / active, np.sqrt(T * share * (1.0 - share))
    loads = [np.maximum(mean + z * deviation, 1.0) for z in SPREAD]
    tiles = tuple(active * sum(np.ceil(load / M) for load in loads) / len(SPREAD) for M in TILES)
    # k different ones of E - E/ep elsewhere
    elsewhere = E - E / ep
    enough = elsewhere >= k
    free = np.where(enough, elsewhere, k)
    untouched = gammaln(free + 1) - gammaln(free - k + 1) - gammaln(E + 1) + gammaln(E - k + 1)
    return Load(pairs, active, tiles, T * (1.0 - np.where(enough, np.exp(untouched), 0.0)))


def power_law_load(T: Array, k: Array, E: Array, ep: Array, exponent: float) -> Load:
    """Return the expected load of the fullest rank where the experts' loads follow a truncated power law.

    Notes
    -----
    Loads x with density x^-exponent between 1 and 0.8 T (between 0.01 and 2 where there are fewer pairs than experts)
    are scaled to T k pairs, and what exceeds T goes to the others: as the measurements were drawn. With the quantile
    function Q of that law, the largest of E is about Q(1 - 1/(2 E)), and the others are the law's below it. The sum of
    the fullest of ep ranks, with m = E/ep experts of mean mu and variance s^2, is m mu and the root of the squares of
    two excesses: that of the rank that holds the largest load, and that of the largest of ep normal sums of variance
    m s^2 (1 - 1/ep) (for the largest of ep: Blom, Statistical Estimates and Transformed Beta-Variables, 1958). The
    rank's other experts are the law's, scaled to the rest. Loads are whole: those under a half vanish, and the pairs
    left over go to one expert each.
    """
    T, k, E, ep = (np.ascontiguousarray(array, dtype=float) for array in np.broadcast_arrays(T, k, E, ep))
    shape = T.shape
    flat = np.stack([array.ravel() for array in (T, k, E, ep)])
    # measured and planned shapes repeat few of these combinations
    code = np.zeros(flat.shape[1], np.int64)
    for row in flat:
        values, place = np.unique(row, return_inverse=True)
        code = code * len(values) + place
    _, first, where = np.unique(code, return_index=True, return_inverse=True)
    cases = flat[:, first]
    parts = [_fullest(cases[:, at : at + CHUNK], exponent) for at in range(0, max(cases.shape[1], 1), CHUNK)]
    found = np.concatenate(parts, axis=1)[:, where].reshape((-1, *shape))
    return Load(found[0], found[1], tuple(found[2:-1]), found[-1])


def _fullest(cases: Array, exponent: float) -> Array:
    """Return pairs, active experts, tiles of every size and tokens, one a row, of cases with T, k, E and ep as rows."""
    from scipy.special import ndtri

    T, k, E, ep = cases
    pairs, m = T * k, E / ep
    mean = pairs / E
    many = pairs > E
    low = np.where(many, 1.0, 0.01)
    high = np.where(many, np.maximum(0.8 * T, 1.0 + 1e-9), 2.0)

    g = 1.0 - exponent
    g = g + 1e-6 if min(abs(g), abs(g + 1.0)) < 1e-7 else g  # powers instead of the logarithms of exponents 1 and 2
    below, span = low**g, high**g - low**g
    one = 1.0 / E
    most = (below + span * (1.0 - 0.5 * one)) ** (1.0 / g)
    nodes = (np.arange(NODES) + 0.5) / NODES * (1.0 - one[:, None])
    x = (below[:, None] + span[:, None] * nodes) ** (1.0 / g)
    share = most / (most + (E - 1.0) * _mean_below(most, low, g))
    top = np.clip(pairs * share, np.minimum(mean, 1.0), T)
    limit = T[:, None]
    others = (pairs - top) / np.maximum(E - 1.0, 1.0)
    x *= (others / x.mean(axis=1))[:, None]
    for _ in range(2):
        over = np.maximum(x - limit, 0.0).mean(axis=1)
        room = x < limit
        x = np.minimum(x, limit) + room * (over / np.maximum(room.mean(axis=1), 1.0 / NODES))[:, None]
    x = np.minimum(x, limit)
    top = np.maximum(top, 1.0)

    squares = ((E - 1.0) * (x * x).mean(axis=1) + top * top) / E
    variance = np.maximum(squares - mean * mean, 0.0) + np.where(mean < 1.0, mean * (1.0 - mean), 0.0)
    holds_top = np.maximum(top + (m - 1.0) * others - m * mean, 0.0)
    by_chance = ndtri((ep - 0.375) / (ep + 0.25)) * np.sqrt(m * variance * (1.0 - 1.0 / ep))
    R = np.where(ep > 1, m * mean + np.hypot(holds_top, by_chance), pairs)
    R = np.maximum(np.minimum(R, np.minimum(pairs, m * T)), 1.0)

    rest = np.maximum(R - top, 0.0)
    scale = rest / np.maximum((m - 1.0) * x.mean(axis=1), 1e-9)
    y = np.minimum(x * scale[:, None], limit)
    weight = (m - 1.0) / NODES
    whole = np.rint(y)
    held = weight * (whole >= 1.0).sum(axis=1)
    left_over = np.maximum(rest - weight * whole.sum(axis=1), 0.0)
    active = np.minimum(1.0 + np.minimum(held + left_over, m - 1.0), R)
    rows = [R, active]
    for M in TILES:
        more = weight * np.maximum(np.ceil(y / M) - 1.0, 0.0).sum(axis=1) + np.ceil(top / M) - 1.0
        rows.append(active + more)
    rows.append(np.minimum(T, np.ceil(R)))
    return np.stack(rows)


def _mean_below(x: Array, low: Array, g: float) -> Array:
    """Return the mean of a load, drawn from a density of exponent 1 - g from `low` on, that is not above x."""
    mean: Array = (x ** (g + 1.0) - low ** (g + 1.0)) / (g + 1.0) * g / (x**g - low**g)
    return np.where(x > low * (1.0 + 1e-9), mean, low)
