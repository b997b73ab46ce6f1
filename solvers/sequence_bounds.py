"""What no plan for unequal sequences can beat: bounds of the makespan that hold for every grouping.

All of them ask of a trial makespan C how many accelerators the sequences need at least, and return the least C at
which there are enough. A bound is infinite where no plan exists.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from perfmodel.terms import Array
from solvers.sequence_case import Case, Schedule

_RESOLUTION = 1e-12
"""Relative width at which a bisection stops [1]."""


def alone_s(case: Case) -> Array:
    """Return how long each sequence takes with a group of each size to itself [s], shape (K, D).

    Infinite where it may not run or does not fit.
    """
    fits = case.lengths[:, None] <= case.degrees * case.capacity_tokens
    fits &= case.degrees <= case.gpus
    return np.where(fits, case.work_s + case.fixed_s, np.inf)


def area_gpu_s(case: Case, schedule: Schedule) -> Array:
    """Return the accelerator time a sequence takes at least in a group of each size [s], shape (K, D).

    Where memory holds for a micro-step, a step of a group of d holds at most ``d cap`` tokens, so that a sequence of s
    tokens brings at least ``s / (d cap)`` of a step's fixed time. In one shot that time is charged by group instead.
    """
    area: Array = case.degrees * case.work_s
    if schedule != "one-shot":
        area = area + case.fixed_s * case.lengths[:, None] / case.capacity_tokens
    return area


def usable_s(case: Case, schedule: Schedule, makespan_s: float) -> Array:
    """Return the time groups of each size have for sequences within a makespan [s], shape (D,)."""
    if schedule != "one-shot":
        return np.full(len(case.degrees), makespan_s)
    return np.maximum(makespan_s - case.fixed_s, 0.0)


def work_bound(case: Case, schedule: Schedule) -> float:
    """Return the least makespan at which the work of all sequences fits the accelerators.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    schedule : str
        One of `Schedule`; what holds for ``splits`` holds for ``fixed`` and ``barrier`` as well.

    Returns
    -------
    float
        Lower bound of the makespan of every plan [s].

    Notes
    -----
    Least C with ``sum_k min_d A_kd / (C - c_d) <= N`` over the sizes d that hold sequence k and finish it alone by C;
    ``A_kd`` is the accelerator time and ``c_d`` the fixed time of a group. Where memory holds for a micro-step,
    ``A_kd`` has its share of the steps' fixed time and the divisor is C.
    """
    return named_work_bound(case, schedule)[0]


def named_work_bound(case: Case, schedule: Schedule) -> tuple[float, str]:
    """Return `work_bound` and what sets it: ``work``, ``longest sequence`` or ``memory``."""
    alone, area = alone_s(case), area_gpu_s(case, schedule)
    if len(alone) == 0:
        return 0.0, "work"
    longest = float(alone.min(axis=1).max())
    if not np.isfinite(longest) or _overfull(case, schedule):
        return float("inf"), "memory"

    def enough(makespan_s: float) -> bool:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = area / usable_s(case, schedule, makespan_s)
        return float(np.where(alone <= makespan_s, share, np.inf).min(axis=1).sum()) <= case.gpus

    floor = float(np.where(np.isfinite(alone), area, np.inf).min(axis=1).sum()) / case.gpus
    bound = _least(enough, max(longest, floor))
    return bound, "longest sequence" if bound == longest else "work"


def _overfull(case: Case, schedule: Schedule) -> bool:
    """Return whether the sequences exceed all memory where everything is held at once."""
    return schedule == "one-shot" and float(case.lengths.sum()) > case.gpus * case.capacity_tokens


def _least(enough: Callable[[float], bool], floor_s: float) -> float:
    """Return the least makespan at which `enough` holds, which it does from there on, from below [s]."""
    if enough(floor_s):
        return floor_s
    low, high = floor_s, 2.0 * floor_s
    while not enough(high):
        low, high = high, 2.0 * high
    while high - low > _RESOLUTION * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low
