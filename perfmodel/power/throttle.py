"""Speed of an accelerator under a power cap."""

from __future__ import annotations

import numpy as np

from hardware.schema import Accelerator
from perfmodel.power.constants import Throttle, shares_of, throttle_of
from perfmodel.terms import Array, Number

LOWEST_CLOCK = 0.05
"""Clock over the highest below which no board goes, whatever the cap."""

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
"""Points over which power fluctuates within a step, and their weights."""


def relative_clock(dynamic_share: Number, voltage_floor: float) -> Array:
    """Return the clock at which the dynamic power is a share of that at the highest clock.

    Notes
    -----
    Dynamic power is C f V^2; voltage follows the clock down to a floor v: share = f max(f, v)^2, so f = share^(1/3)
    above the floor and share/v^2 below.
    """
    share = np.clip(np.asarray(dynamic_share, float), 0.0, 1.0)
    return np.asarray(
        np.maximum(np.where(share >= voltage_floor**3, np.cbrt(share), share / voltage_floor**2), LOWEST_CLOCK)
    )


def dynamic_share(clock: Number, voltage_floor: Number) -> Array:
    """Return the dynamic power at a clock over that at the highest, f max(f, v)^2: the inverse of `relative_clock`."""
    relative = np.asarray(clock, float)
    return np.asarray(relative * np.maximum(relative, voltage_floor) ** 2)


def clock_share(accelerator: Accelerator, drawn: float = 1.0) -> float:
    """Return the clock over the highest of work on a board, under the limit that it is held to.

    Parameters
    ----------
    accelerator : Accelerator
        The board.
    drawn : float
        What the work draws at the highest clock over the highest limit; arithmetic at its peak draws all [1].

    Notes
    -----
    Static power stays, and the clock falls until the rest of the cap is met.
    """
    cap = accelerator.power.limit / accelerator.power.most
    if cap >= drawn:
        return 1.0
    throttle = throttle_of(accelerator)
    return float(relative_clock((cap - throttle.static) / (drawn - throttle.static), throttle.voltage_floor))


def streaming_clock_share(accelerator: Accelerator) -> float:
    """Return the same of work that memory or launches hold back, which draws what the full rate of memory does."""
    if accelerator.power.limit >= accelerator.power.most:
        return 1.0
    shares = shares_of(accelerator)
    return clock_share(accelerator, min(shares.context + shares.memory, 1.0))


def capped_speed(
    power_w: Number, limit_w: Number, highest_w: Number, throttle: Throttle, compute_share: Number = 1.0
) -> Array:
    """Return the speed under a cap over that at the highest limit.

    Parameters
    ----------
    power_w : array
        Mean power of the work at the highest limit [W].
    limit_w, highest_w : array
        The cap, and the board's highest limit [W].
    throttle : Throttle
        How the board meets a cap.
    compute_share : array
        Part of the time that follows the clock; the rest waits for memory or links and hardly slows [1].

    Notes
    -----
    Power fluctuates log-normally around its mean within a step, up to the highest limit; wherever it exceeds the cap
    the clock falls until static + dynamic power meets it. Time is the mean of c/f + 1 - c over the step.
    """
    mean, cap, highest = (np.asarray(value, float) for value in (power_w, limit_w, highest_w))
    static = throttle.static * highest
    time: Array = np.zeros(np.broadcast_shapes(mean.shape, cap.shape, highest.shape))
    for node, weight in zip(NODES, WEIGHTS / WEIGHTS.sum(), strict=True):
        now = np.minimum(mean * np.exp(throttle.fluctuation * node - throttle.fluctuation**2 / 2), highest)
        dynamic = np.maximum(now - static, 1e-9 * highest)
        clock = np.where(now <= cap, 1.0, relative_clock((cap - static) / dynamic, throttle.voltage_floor))
        time = time + weight * (compute_share / clock + 1 - np.asarray(compute_share))
    return np.asarray(1.0 / time)
