"""Two-threshold capping: what a policy does at which level of power, and what it costs.

POLCA (ASPLOS 2024, arXiv 2308.12908) locks the clocks of low priority above a first threshold, lowers them above a
second, then locks those of high priority if that was not enough. A policy here is any ladder of such levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.power.throttle import dynamic_share
from perfmodel.terms import Array, Number


@dataclass(frozen=True)
class Pools:
    """Servers of each pool, as a cap finds them; every field an array over pools, watts of one server.

    Parameters
    ----------
    idle_w : array
        With its processes waiting [W].
    static_w : array
        What does not change with the clock [W].
    highest_w : array
        The most it can draw [W].
    voltage_floor : array
        Clock over the highest at which the voltage is lowest [1].
    compute_share : array
        Part of its busy time that follows the clock [1].
    """

    idle_w: Array
    static_w: Array
    highest_w: Array
    voltage_floor: Array
    compute_share: Array


@dataclass(frozen=True)
class Policy:
    """A ladder of caps, in shares of the budget.

    Parameters
    ----------
    thresholds : tuple of float, length levels
        Share of the budget above which each level is entered, ascending. Of equal ones the next is entered where
        power is still above when the one before has had its effect.
    clocks : array, shape (levels + 1, pools)
        Clock over the highest at each level; of ones at level 0.
    hysteresis : float
        A level is left where power is so far below its threshold [1].
    latency_s : float
        From the decision to the clock [s].
    brake_clock : float
        Clock over the highest of all servers once power exceeds the budget itself [1].
    brake_latency_s : float
        From that to the clock [s].
    """

    thresholds: tuple[float, ...]
    clocks: Array
    hysteresis: float
    latency_s: float
    brake_clock: float
    brake_latency_s: float

    @property
    def levels(self) -> int:
        """Levels above 0."""
        return len(self.thresholds)


def time_ratio(clock: Number, compute_share: Number) -> Array:
    """Return the time of work at a clock over that at the highest: what follows the clock, and what does not."""
    share = np.asarray(compute_share, float)
    return np.asarray(share / np.asarray(clock, float) + 1.0 - share)


def clocked_power_w(power_w: Number, clock: Number, pools: Pools, servers: Number = 1.0) -> Array:
    """Return what servers draw at a lower clock that draw so much at the highest [W].

    Parameters
    ----------
    power_w : array
        Power at the highest clock, of `servers` together [W].
    clock : array
        Clock over the highest [1].
    pools : Pools
        Fields that broadcast against the power.
    servers : array
        How many the power is of.

    Notes
    -----
    Work that a slower clock leaves undone is done later: the busy share, and with it the power above idle, grows by
    the time ratio, up to the highest. Of that, what follows the clock f takes f max(f, v)^2 (see `throttle`).
    """
    power = np.asarray(power_w, float)
    idle, static, highest = (np.asarray(part) * servers for part in (pools.idle_w, pools.static_w, pools.highest_w))
    ratio, left = time_ratio(clock, pools.compute_share), dynamic_share(clock, pools.voltage_floor)
    return slowed_power_w(power, ratio, left, idle, static, highest)


def slowed_power_w(power: Array, ratio: Array, left: Array, idle: Array, static: Array, highest: Array) -> Array:
    """Return `clocked_power_w` from the time ratio and the part that is left of what follows the clock."""
    busy = np.minimum(idle + (power - idle) * ratio, np.maximum(highest, power))
    stretched = np.maximum(busy, power)  # at idle or below nothing is stretched
    return np.asarray(stretched - np.maximum(stretched - static, 0.0) * (1.0 - left))


def largest_rise(power_w: Array, window: int) -> Array:
    """Return the largest rise within so many steps over the power it starts from [1].

    Parameters
    ----------
    power_w : array, shape (steps, ...)
        Power, above 0 [W].
    window : int
        Steps of the actuator's latency.

    Notes
    -----
    The highest of the steps up to `window` later, over each step: what a cap in flight does not prevent. Windows are
    doubled until they are as long (van Herk, 1992).
    """
    power = np.asarray(power_w)
    highest, reach = power.copy(), 1
    while reach < min(window + 1, len(power)):
        further = min(reach, window + 1 - reach)
        highest[:-further] = np.maximum(highest[:-further], highest[further:])
        reach += further
    return np.asarray((highest / power).max(axis=0) - 1.0)


def highest_threshold(rise: Number) -> Array:
    """Return the threshold at which the largest rise over the latency still meets the budget, 1/(1 + rise)."""
    return np.asarray(1.0 / (1.0 + np.asarray(rise, float)))


def ladder(
    thresholds: Sequence[float],
    clocks: Sequence[Sequence[float]],
    *,
    hysteresis: float,
    latency_s: float,
    brake_clock: float,
    brake_latency_s: float,
) -> Policy:
    """Return a policy with its clocks at level 0 added.

    Parameters
    ----------
    thresholds : sequence of float, length levels
        Where each level begins.
    clocks : sequence, shape (levels, pools)
        Clocks over the highest at each.
    hysteresis, latency_s, brake_clock, brake_latency_s
        As of `Policy`.
    """
    given = np.asarray(clocks, float)
    if list(thresholds) != sorted(thresholds) or len(thresholds) != len(given):
        raise ValueError("a policy takes ascending thresholds and the clocks of each")
    every = np.vstack([np.ones(given.shape[1]), given])
    return Policy(tuple(thresholds), every, hysteresis, latency_s, brake_clock, brake_latency_s)
