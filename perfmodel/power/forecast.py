"""What capping will do, without simulation: percentiles, rises, time at each level, loss and risk of a held node.

Power of a node is taken as normal at every time of the week, with the mean, variance and autocovariance of its pools.
The policy's level is a chain of states whose rates are one over the mean times in which such power passes thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.power.breaker import TripCurve, carried_load
from perfmodel.power.capping import Policy, Pools, time_ratio
from perfmodel.power.throttle import dynamic_share
from perfmodel.terms import Array, Number

YEAR_S = 365.25 * 86400.0
PERCENTILES = (0.5, 0.9, 0.99)
LAGS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 5120.0, 10240.0)
"""Times between which autocovariance is taken as linear."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_REACH = 9.0
_PASSAGE, _PASSAGE_WEIGHTS = np.polynomial.legendre.leggauss(10)


@dataclass(frozen=True)
class Moments:
    """Power of one server of a pool over a week, and what its servers have in common.

    Parameters
    ----------
    bin_s : float
        Length of a part of the week [s].
    mean_w : array, shape (bins,)
        Mean power [W].
    fast_w2, slow_w2 : array, shape (bins,)
        Variance of a server's own, of what is gone after a second and of what stays [W^2].
    slow_s : float
        Time over which the latter forgets [s].
    common_w2 : array, shape (parts, bins)
        Variance of what servers of the pool share, by parts [W^2].
    common_s : array, shape (parts,)
        Time over which each forgets [s].
    """

    bin_s: float
    mean_w: Array
    fast_w2: Array
    slow_w2: Array
    slow_s: float
    common_w2: Array
    common_s: Array

    def covariance_w2(self, servers: Number, lag_s: Number) -> Array:
        """Return the autocovariance of so many servers together, shape (lags, bins) [W^2]."""
        lag = np.atleast_1d(np.asarray(lag_s, float))[:, None]
        own = servers * (self.fast_w2 * (lag == 0) + self.slow_w2 * np.exp(-lag / self.slow_s))
        decay = np.exp(-lag[:, :, None] / self.common_s[:, None]) if len(self.common_s) else np.zeros((len(lag), 0, 1))
        return np.asarray(own + servers**2 * (decay * self.common_w2).sum(axis=1))


@dataclass(frozen=True)
class Forecast:
    """What is expected of a node that a policy holds.

    Parameters
    ----------
    share : array, shape (levels + 1,)
        Part of the time at each level [1].
    loss : array, shape (pools,)
        Time of requests over that without caps, less 1, weighted with power above idle [1].
    percentiles : array, shape of `PERCENTILES`
        Power over the limit, of single seconds [1].
    mean : float
        Mean power over the limit [1].
    brake_s_per_year : float
        Expected time above the limit in a year, at most; a bound of the probability of a brake [s].
    trip_probability_per_year : float
        Bound of the probability that the breaker opens within a year [1].
    """

    share: Array
    loss: Array
    percentiles: Array
    mean: float
    brake_s_per_year: float
    trip_probability_per_year: float


def percentile_w(moments: Sequence[Moments], servers: Sequence[int], shares: Sequence[float]) -> Array:
    """Return the power that a node exceeds for 1 - share of the time, without caps [W].

    Parameters
    ----------
    moments : sequence of Moments
        Of each pool.
    servers : sequence of int
        Servers of each.
    shares : sequence of float
        Such as 0.99.
    """
    mean, variance = _node(moments, servers)
    return quantiles(mean, np.sqrt(np.maximum(variance, 1e-12)), np.ones(mean.shape), shares)


def quantiles(mean: Array, deviation: Array, chance: Array, shares: Sequence[float]) -> Array:
    """Return what a mixture of normal distributions exceeds for 1 - share of the time, by bisection.

    Parameters
    ----------
    mean, deviation, chance : array, of one shape
        Of each part, and how often it is the one.
    shares : sequence of float
        Such as 0.99.
    """
    from scipy.special import ndtr

    weight = chance / chance.sum()
    low, high = (
        np.full(len(shares), float(end)) for end in ((mean - 9 * deviation).min(), (mean + 9 * deviation).max())
    )
    for _ in range(60):
        middle = (low + high) / 2
        below = np.array([float((weight * ndtr((at - mean) / deviation)).sum()) for at in middle])
        low, high = np.where(below < shares, middle, low), np.where(below < shares, high, middle)
    return np.asarray((low + high) / 2)


def expected_rise(
    moments: Sequence[Moments], servers: Sequence[int], latency_s: float, seconds: float, expected: float = 1.0
) -> float:
    """Return the rise within the latency, over the power it starts from, that is expected so often in some time [1].

    Notes
    -----
    p(t + l) - (1 + r) p(t) is normal; it is counted at every second.
    """
    from scipy.special import ndtr

    mean, variance = _node(moments, servers)
    later = _covariance(moments, servers, latency_s)
    counted = seconds / len(mean)
    low, high = 0.0, 10.0
    for _ in range(50):
        rise = (low + high) / 2
        spread = np.sqrt(np.maximum(variance * (1 + (1 + rise) ** 2) - 2 * (1 + rise) * later, 1e-12))
        often = counted * float(ndtr(-rise * mean / spread).sum())
        low, high = (rise, high) if often > expected else (low, rise)
    return high


def forecast(
    moments: Sequence[Moments],
    servers: Sequence[int],
    pools: Pools,
    policy: Policy,
    limit_w: float,
    trip: TripCurve,
) -> Forecast:
    """Return what a policy does to the power of a node and to its servers.

    Parameters
    ----------
    moments : sequence of Moments
        Power of a server of each pool, without caps.
    servers : sequence of int
        Servers of each pool below the node.
    pools : Pools
        What a clock does to them.
    policy : Policy
        The ladder.
    limit_w : float
        The node's limit [W].
    trip : TripCurve
        Its breaker, rated at the limit.
    """
    states = node_states(moments, servers, pools, policy.clocks, limit_w, policy.latency_s)
    thresholds = np.array(policy.thresholds)
    up, down = rates(states, thresholds, policy.hysteresis, policy.latency_s)
    chance = _chain(up, down, moments[0].bin_s)
    loss = late(moments, pools, policy.clocks, chance)
    most_w = float(np.dot(servers, pools.highest_w))
    opens = float(carried_load(policy.brake_latency_s, trip))
    above_s, opening_s = (
        float(over(states, thresholds, policy.hysteresis, load)) * YEAR_S if most_w > load * limit_w else 0.0
        for load in (1.0, opens)
    )
    percentiles = quantiles(states.mean, states.deviation, chance, PERCENTILES)
    mean = float((chance * states.mean).sum(axis=0).mean())
    return Forecast(chance.mean(axis=1), loss, percentiles, mean, above_s, min(opening_s, 1.0))


def late(moments: Sequence[Moments], pools: Pools, clocks: Array, chance: Array) -> Array:
    """Return the time of requests of each pool over that without caps, less 1, weighted with power above idle [1].

    Parameters
    ----------
    moments, pools : sequence of Moments, Pools
        Of each pool.
    clocks : array, shape (..., levels + 1, pools)
        Clocks over the highest.
    chance : array, shape (..., levels + 1, bins)
        Of each level in each part of the week.
    """
    slower = time_ratio(clocks, pools.compute_share) - 1.0
    work = np.maximum(np.stack([one.mean_w for one in moments]) - np.asarray(pools.idle_w)[:, None], 0.0)
    weight = work / np.maximum(work.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.einsum("...lp,...lb,pb->...p", slower, chance, weight))


@dataclass(frozen=True)
class States:
    """Power of a node over its limit at levels of a policy, in each part of a week; arrays of shape (..., bins).

    Parameters
    ----------
    mean, deviation : array
        Of its normal distribution [1].
    forget_s : array
        Time over which it forgets, the integral of its autocorrelation [s].
    alike : array
        Correlation with its power a latency later [1].
    """

    mean: Array
    deviation: Array
    forget_s: Array
    alike: Array


def node_states(
    moments: Sequence[Moments], servers: Sequence[int], pools: Pools, clocks: Array, limit_w: float, latency_s: float
) -> States:
    """Return the power of a node with its pools at clocks.

    Parameters
    ----------
    clocks : array, shape (..., pools)
        Clocks over the highest.
    latency_s : float
        Of the actuator [s].

    Notes
    -----
    `capping.clocked_power_w` is linear below the highest power: a P + b of each server.
    """
    count = np.asarray(servers, float)
    slope, offset = _slopes(pools, clocks)
    lags = np.array([0.0, *LAGS_S, latency_s])
    around = np.stack([one.covariance_w2(number, lags) for one, number in zip(moments, servers, strict=True)])
    areas = ((around[:, 1:-1] + around[:, :-2]) / 2 * np.diff(lags[:-1])[:, None]).sum(axis=1)
    means = np.stack([one.mean_w for one in moments])
    mean = (slope * count) @ means + (offset @ count)[..., None]
    variance = np.maximum(slope**2 @ around[:, 0], 1e-12 * limit_w**2)
    forget = np.maximum(slope**2 @ areas / variance, 0.5)
    alike = np.clip(slope**2 @ around[:, -1] / variance, 0.0, 1.0 - 1e-9)
    return States(mean / limit_w, np.sqrt(variance) / limit_w, forget, alike)


def rates(states: States, thresholds: Array, hysteresis: float, latency_s: float) -> tuple[Array, Array]:
    """Return how often the next level is entered, and a level is left [1/s].

    Parameters
    ----------
    states : States
        Of levels 0 and up, shape (..., levels + 1, bins).
    thresholds : array, shape (..., levels)
        Ascending; of equal ones the next waits for the effect of the one before.
    hysteresis, latency_s : float
        As of a `Policy`.

    Returns
    -------
    tuple of array, each of shape (..., levels, bins)

    Notes
    -----
    One over the mean time of an Ornstein-Uhlenbeck process with this mean, variance and forgetting T: up from where a
    level was entered (level 0 from its release) to the next threshold, down from a threshold to its release,
    T sqrt(2 pi) integral of e^(u^2/2) N(u) du between them in standard deviations (Siegert 1951).
    """
    enter = np.asarray(thresholds, float)[..., None]
    leave = enter - hysteresis
    again = np.concatenate([np.zeros_like(enter[..., :1, :], bool), enter[..., 1:, :] == enter[..., :-1, :]], axis=-2)
    begin = np.where(again, leave, np.concatenate([leave[..., :1, :], enter[..., :-1, :]], axis=-2))
    mean, deviation = states.mean, states.deviation
    low, high = mean[..., :-1, :], mean[..., 1:, :]
    rise = _passage((begin - low) / deviation[..., :-1, :], (enter - low) / deviation[..., :-1, :])
    fall = _passage((high - enter) / deviation[..., 1:, :], (high - leave) / deviation[..., 1:, :])
    up = 1.0 / np.maximum(states.forget_s[..., :-1, :] * rise + latency_s * again, 1e-3)
    return np.asarray(up), np.asarray(1.0 / np.maximum(states.forget_s[..., 1:, :] * fall, 1e-3))


def over(states: States, thresholds: Array, hysteresis: float, load: float = 1.0) -> Array:
    """Return a bound of the part of the time with more than so much of the limit, shape (...).

    Parameters
    ----------
    states : States
        Of levels 0 and up, shape (..., levels + 1, bins).
    thresholds : array, shape (..., levels)
        Ascending.
    hysteresis : float
        As of a `Policy`.
    load : float
        Power over the limit [1].

    Notes
    -----
    A level below the top acts only if power, a latency before, was not above the next threshold; or, where a level was
    just left, not above its release. At the top nothing holds power. The chances of all of these are added up.
    """
    from scipy.special import ndtr

    mean, deviation = states.mean, states.deviation
    enter = np.asarray(thresholds, float)[..., None]
    low = (mean[..., :-1, :], deviation[..., :-1, :], states.alike[..., :-1, :])
    released = enter - hysteresis + mean[..., :-1, :] - mean[..., 1:, :]
    total = ndtr((mean[..., -1, :] - load) / deviation[..., -1, :])
    for before in (enter, released):
        total = total + _risen(*low, before, load).sum(axis=-2)
    return np.asarray(total.mean(axis=-1))


def steady(up: Array, down: Array) -> Array:
    """Return the chance of each level where power is steady for long, shape (..., levels + 1, bins)."""
    odds = np.cumsum(np.log(up) - np.log(down), axis=-2)
    every = np.concatenate([np.zeros_like(odds[..., :1, :]), odds], axis=-2)
    found = np.exp(every - every.max(axis=-2, keepdims=True))
    return np.asarray(found / found.sum(axis=-2, keepdims=True))


def _slopes(pools: Pools, clocks: Array) -> tuple[Array, Array]:
    """Return a and b of the power a P + b of a server at clocks, shape (..., pools)."""
    left, ratio = dynamic_share(clocks, pools.voltage_floor), time_ratio(clocks, pools.compute_share)
    return ratio * left, pools.static_w + (pools.idle_w * (1.0 - ratio) - pools.static_w) * left


def _node(moments: Sequence[Moments], servers: Sequence[int]) -> tuple[Array, Array]:
    """Return mean [W] and variance [W^2] of all servers together in each part of the week."""
    mean = np.sum([count * one.mean_w for one, count in zip(moments, servers, strict=True)], axis=0)
    return np.asarray(mean), _covariance(moments, servers, 0.0)


def _covariance(moments: Sequence[Moments], servers: Sequence[int], lag_s: float) -> Array:
    """Return the autocovariance of all servers together, shape (bins,) [W^2]."""
    every = [one.covariance_w2(count, lag_s)[0] for one, count in zip(moments, servers, strict=True)]
    return np.asarray(np.sum(every, axis=0))


def _passage(start: Array, end: Array) -> Array:
    """Return the mean time from one standard deviation up to another over the time of forgetting; large but finite."""
    from scipy.special import log_ndtr

    low, high = np.clip(start, -30, 30), np.clip(end, -30, 30)
    at = low[..., None] + (high - low)[..., None] * (_PASSAGE + 1) / 2
    inside = np.exp(at**2 / 2 + log_ndtr(at))
    return np.asarray(np.sqrt(2 * np.pi) * (high - low) / 2 * (inside @ _PASSAGE_WEIGHTS) + 1e-9)


def _chain(up: Array, down: Array, bin_s: float) -> Array:
    """Return the chance of each level in each part of a week that goes round, shape (levels + 1, bins)."""
    levels, bins = up.shape
    steps = np.zeros((bins, levels + 1, levels + 1))
    for level in range(levels):
        steps[:, level, level] -= up[level]
        steps[:, level + 1, level] += up[level]
        steps[:, level + 1, level + 1] -= down[level]
        steps[:, level, level + 1] += down[level]
    implicit = np.linalg.inv(np.eye(levels + 1) - bin_s * steps)
    chance = np.zeros((levels + 1, bins))
    now = np.zeros(levels + 1)
    now[0] = 1.0
    for part in [*range(bins)] * 2:
        now = implicit[part] @ now
        chance[:, part] = now
    return chance


def _risen(mean: Array, deviation: Array, alike: Array, before: Array, after: float) -> Array:
    """Return the chance that a normal process is at most `before`, and above `after` a latency later."""
    from scipy.special import ndtr

    end = np.clip((before - mean) / deviation, -_REACH, _REACH)[..., None]
    at = -_REACH + (end + _REACH) * (_POINTS + 1) / 2
    rest = np.sqrt(1.0 - alike**2)[..., None]
    reached = ndtr((alike[..., None] * at - ((after - mean) / deviation)[..., None]) / rest)
    density = np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray((end[..., 0] + _REACH) / 2 * ((density * reached) @ _WEIGHTS))
