"""When a breaker opens: inverse time, and at once far above its rating."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.terms import Array, Number


@dataclass(frozen=True)
class TripCurve:
    """Trip curves of breakers.

    Parameters
    ----------
    inverse_time_s : array
        Constant K: a breaker opens once the integral of x^2 - 1 over time exceeds it, x the load over the rating;
        infinite for one that never does [s].
    instantaneous : array
        Multiple of the rating at which it opens at once; infinite for never [1].
    """

    inverse_time_s: Number
    instantaneous: Number = np.inf


def carried_load(time_s: Number, curve: TripCurve) -> Array:
    """Return the load over the rating that a cold breaker carries for so long [1]."""
    inverse = np.sqrt(1.0 + np.asarray(curve.inverse_time_s) / np.asarray(time_s, float))
    return np.asarray(np.minimum(inverse, curve.instantaneous))


def heated(load: Array, step_s: float, before_s: Array) -> Array:
    """Return the trip integral after every step [s].

    Parameters
    ----------
    load : array, shape (steps, breakers)
        Load over the rating.
    step_s : float
        Length of a step [s].
    before_s : array, shape (breakers,)
        Integral before the first of them; 0 for a cold breaker [s].

    Notes
    -----
    h <- max(0, h + (x^2 - 1) dt), so below its rating a breaker cools at the rate of the same law. With
    S the running sum of the increments that is S - min(-h_0, least S so far) (Lindley, 1952).
    """
    sums = np.cumsum((np.asarray(load, float) ** 2 - 1.0) * step_s, axis=0)
    least = np.minimum.accumulate(sums, axis=0)
    return np.asarray(sums - np.minimum(-np.asarray(before_s, float), least))


def trips(load: Array, step_s: float, before_s: Array, curve: TripCurve) -> tuple[Array, Array]:
    """Return how often each breaker opens, and its trip integral after the last step [s].

    Notes
    -----
    A breaker that opened is closed again, cold, at the next step.
    """
    count = np.zeros(load.shape[1], int)
    limit = np.broadcast_to(np.asarray(curve.inverse_time_s, float), load.shape[1:])
    at_once = np.broadcast_to(np.asarray(curve.instantaneous, float), load.shape[1:])
    after = np.asarray(before_s, float).copy()
    heat = heated(load, step_s, after)
    opens = (heat > limit) | (load >= at_once)
    after[:] = heat[-1]
    for breaker in np.flatnonzero(opens.any(axis=0)).tolist():
        begin, left = 0, opens[:, breaker]
        rest = float(heat[-1, breaker])
        while left.any():
            count[breaker] += 1
            begin += int(left.argmax()) + 1
            rest = 0.0
            if begin == len(load):
                break
            part = load[begin:, breaker : breaker + 1]
            again = heated(part, step_s, np.zeros(1))[:, 0]
            left = (again > limit[breaker]) | (part[:, 0] >= at_once[breaker])
            rest = float(again[-1])
        after[breaker] = rest
    return count, after
