"""What servers that share a limit draw together, by rules of rising knowledge: nameplates, percentiles, moments.

A rule turns numbers of servers into watts that are not exceeded but with a given risk; how many servers fit is where
these watts meet the limit. All functions take arrays of counts whose last axis is the kind of server.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from perfmodel.terms import Array, Number


def nameplate_load_w(counts: Array, max_w: Array) -> Array:
    """Return the sum of the highest powers [W]: never exceeded.

    Parameters
    ----------
    counts : array, shape (..., kinds)
        Servers of each kind.
    max_w : array, shape (kinds,)
        The most that one draws [W].
    """
    return np.asarray(np.asarray(counts, float) @ max_w)


def normal_quantile(risk: float) -> float:
    """Return z of a standard normal distribution that is exceeded with a probability of `risk`."""
    from scipy.special import ndtri

    return float(-ndtri(risk))


def hoeffding_quantile(risk: float) -> float:
    """Return the factor of the root of summed squared ranges that is exceeded with at most `risk`, sqrt(ln(1/e)/2)."""
    return float(np.sqrt(np.log(1.0 / risk) / 2.0))


def chance_load_w(counts: Array, mean_w: Array, spread_w: Array, correlation: Array, quantile: float) -> Array:
    """Return the power that is exceeded with a small probability [W].

    Parameters
    ----------
    counts : array, shape (..., kinds)
        Servers of each kind, n.
    mean_w : array, shape (kinds,)
        Mean power of one, m [W].
    spread_w : array, shape (kinds,)
        Standard deviation of one (Gaussian), or the range from the least to the most it draws (Hoeffding), s [W].
    correlation : array, shape (kinds, kinds)
        Between two servers of these kinds; on the diagonal between two of one kind.
    quantile : float
        `normal_quantile` or `hoeffding_quantile` of the risk.

    Notes
    -----
    n.m + q sqrt(sum_k n_k (1 - rho_kk) s_k^2 + sum_kl n_k n_l rho_kl s_k s_l). With a normal q this is the quantile of
    jointly normal powers. With Hoeffding's (1963, theorem 2) it holds for any distribution, where servers are
    independent, and where what they have in common is a sum of bounded factors with these correlations.
    """
    n = np.asarray(counts, float)
    own, shared = variance_parts(spread_w, correlation)
    variance = n @ own + np.einsum("...k,kl,...l->...", n, shared, n)
    return np.asarray(n @ mean_w + quantile * np.sqrt(np.maximum(variance, 0.0)))


def variance_parts(spread_w: Array, correlation: Array) -> tuple[Array, Array]:
    """Return the part of the variance that goes with a count and the matrix of what goes with two [W^2]."""
    spread = np.asarray(spread_w, float)
    own = (1.0 - np.diag(correlation)) * spread**2
    return np.asarray(own), np.asarray(correlation * np.outer(spread, spread))


def exceeded_steps(steps: int, risk: float) -> int:
    """Return how many of so many steps may lie above a limit."""
    return int(np.floor(steps * risk * (1 + 1e-12)))


def series_load_w(counts: Array, profile_w: Array, risk: float) -> Array:
    """Return the power of summed series that at most a share `risk` of the steps exceeds [W].

    Parameters
    ----------
    counts : array, shape (..., kinds)
        Servers of each kind.
    profile_w : array, shape (kinds, steps)
        Power of one over time [W].
    risk : float
        Share of the steps that may lie above.
    """
    total = np.asarray(counts, profile_w.dtype) @ profile_w
    beyond = exceeded_steps(profile_w.shape[1], risk)
    if beyond == 0:
        return np.asarray(total.max(axis=-1))
    place = total.shape[-1] - 1 - beyond
    return np.asarray(np.partition(total, place, axis=-1)[..., place])


def most_servers(load_w: Callable[[Array], Array], limit_w: Number, most: int) -> Array:
    """Return the largest count whose load meets a limit, by bisection.

    Parameters
    ----------
    load_w : callable
        Counts -> load [W], rising with the count.
    limit_w : array
        The limits [W].
    most : int
        No count is larger.
    """
    limit = np.asarray(limit_w, float)
    low, high = np.zeros(limit.shape, int), np.full(limit.shape, most)
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = fits_below(load_w(middle), limit)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def fits_below(load_w: Number, limit_w: Number) -> Array:
    """Tell whether loads meet limits, but for rounding: 40 x 6.5 kW meet 260 kW."""
    return np.asarray(np.asarray(load_w) <= np.asarray(limit_w) * (1 + 1e-9))
