"""What no plan for unequal sequences can beat: bounds of the makespan that hold for every grouping.

All of them ask of a trial makespan C how many accelerators the sequences need at least, and return the least C at
which there are enough. A bound is infinite where no plan exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from perfmodel.terms import Array
from solvers.backend import apart_from_stdout
from solvers.sequence_case import Case, Schedule

_RESOLUTION = 1e-12
"""Relative width at which a bisection stops [1]."""
_WIDTH = 3e-4
"""The same where every step solves programs [1]."""
_STEP = 4e-3
"""First step down from a known plan, about how far good plans are from the best bound [1]."""
_TOLERANCE = 1e-5
"""What HiGHS may be off in whole numbers and rows [1]."""
_ALONE, _BUCKETS = 48, 48
"""The longest sequences stand for themselves where prices are sought, the others in so many buckets."""
_INFEASIBLE = 2
"""What SciPy says of a program that has no solution."""
_LAYOUTS = 100_000
"""The most numbers of groups by size that are listed one by one; beyond, an integer program looks for them."""
_LOOSE = 0.05
"""Gap at which to stop looking for whole numbers with more room [1]."""
_BRIEF_S = 0.03
"""Time to look for them with more room than enough [s]."""
_ROOM = 10.0
"""The most room of whole numbers of groups that is told apart, against what is needed [1]."""
_CUTS = 40
"""Prices tried at one makespan."""


def alone_s(case: Case) -> Array:
    """Return how long each sequence takes with a group of each size to itself [s], shape (K, D).

    Infinite where it may not run or does not fit. Through a pipeline it takes every stage in turn.
    """
    fits = case.held[:, None] <= case.degrees * case.capacity_tokens
    fits &= case.degrees <= case.gpus
    return np.where(fits, case.stages * (case.work_s + case.fixed_s), np.inf)


def area_gpu_s(case: Case, schedule: Schedule) -> Array:
    """Return the accelerator time a sequence takes at least in a group of each size [s], shape (K, D).

    Where memory holds for a micro-step, a step of a group of d holds at most ``d cap`` tokens, so that a sequence of s
    tokens brings at least ``s / (d cap)`` of a step's fixed time. In one shot, and where a pipeline makes more steps
    worth their time, that time is charged by group instead (`usable_s`).
    """
    area: Array = case.degrees * case.work_s
    if schedule != "one-shot" and case.stages == 1:
        area = area + case.fixed_s * case.held[:, None] / case.capacity_tokens
    return area


def usable_s(case: Case, schedule: Schedule, makespan_s: float) -> Array:
    """Return the time groups of each size have for sequences within a makespan [s], shape (D,).

    Notes
    -----
    Work W in n micro-steps of fixed time c takes s stages at least ``W + n c + (s - 1) (W / n + c)``, whatever n no
    less than ``(sqrt(W) + sqrt((s - 1) c))^2``, so that within C it is ``W <= (sqrt(C) - sqrt((s - 1) c))^2``. Behind
    barriers the same holds of every accelerator and the least c of the sizes it may be in.
    """
    if schedule == "one-shot":
        return np.maximum(makespan_s / case.stages - case.fixed_s, 0.0)
    fixed_s = np.full(len(case.degrees), case.fixed_s.min()) if schedule == "barrier" else case.fixed_s
    if case.stages == 1:
        return np.full(len(case.degrees), makespan_s)
    usable: Array = np.maximum(np.sqrt(makespan_s) - np.sqrt((case.stages - 1) * fixed_s), 0.0) ** 2
    return usable


def crowded_gpu_s(case: Case, schedule: Schedule, area: Array, makespan_s: float) -> Array:
    """Return accelerator time with what a sequence keeps from its group where it alone is a long micro-step [s].

    Notes
    -----
    A sequence of time w makes its group's longest micro-step no less than ``w + c``. Where w is above the best average,
    ``sqrt(U c / (s - 1))`` with U of `usable_s`, at least ``W / w`` such steps leave the group
    ``W <= (C - (s - 1) (w + c)) / (1 + c / w)`` instead of U. All of a group keep to the least of these, so that each
    may be charged by its own.
    """
    if case.stages == 1 or schedule == "one-shot":
        return area
    drains, fixed_s = case.stages - 1, case.fixed_s.min() if schedule == "barrier" else case.fixed_s
    usable, work = usable_s(case, schedule, makespan_s), case.work_s
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.maximum(makespan_s - drains * (work + fixed_s), 0.0) / (1 + fixed_s / work)
        crowded = area * (usable / own)
    return np.where(work > np.sqrt(usable * fixed_s / drains), crowded, area)


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
    ``A_kd`` has its share of the steps' fixed time and the divisor is C. With s pipeline stages that holds as well, of
    the divisor ``C - (s - 1) c_d``, beside what `usable_s` says of steps of any number.
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
        return all(
            _needed(alone, each, usable, makespan_s) <= case.gpus
            for each, usable in _shares(case, schedule, makespan_s)
        )

    floor = float(np.where(np.isfinite(alone), area, np.inf).min(axis=1).sum()) / case.gpus
    bound = _least(enough, max(longest, floor))
    return bound, "longest sequence" if bound == longest else "work"


def _shares(case: Case, schedule: Schedule, makespan_s: float) -> list[tuple[Array, Array]]:
    """Return pairs of accelerator time of sequences and time that groups have for it, each of which has to suffice."""
    area = crowded_gpu_s(case, schedule, area_gpu_s(case, schedule), makespan_s)
    found = [(area, usable_s(case, schedule, makespan_s))]
    if case.stages > 1 and schedule != "one-shot":
        flat = replace(case, stages=1)
        drain = (case.stages - 1) * (case.fixed_s.min() if schedule == "barrier" else case.fixed_s)
        found.append((area_gpu_s(flat, schedule), np.maximum(usable_s(flat, schedule, makespan_s) - drain, 0.0)))
    return found


def _needed(alone: Array, area: Array, usable: Array, makespan_s: float) -> float:
    """Return the accelerators that sequences need at least within a makespan."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = area / usable
    return float(np.where(alone <= makespan_s, share, np.inf).min(axis=1).sum())


def _overfull(case: Case, schedule: Schedule) -> bool:
    """Return whether the sequences exceed all memory where everything is held at once."""
    return schedule == "one-shot" and float(case.held.sum()) > case.gpus * case.capacity_tokens


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


@dataclass(frozen=True)
class _Prices:
    """What a second and a token of room on one accelerator of each group size are worth [1/s, 1/token], shape (D,)."""

    time: Array
    memory: Array


@dataclass(frozen=True)
class _Trial:
    """What sequences need and groups have at one makespan: accelerator time by size, infinite where not allowed."""

    area: Array
    tokens: Array
    usable_s: Array
    room_tokens: Array
    degrees: Array
    gpus: int

    def needed(self, prices: _Prices) -> float:
        """Return the least price of all sequences, each in the group size where it is cheapest."""
        with np.errstate(invalid="ignore"):
            price = prices.time * self.area + prices.memory * self.tokens[:, None]
        return float(np.where(np.isfinite(self.area), price, np.inf).min(axis=1).sum())

    def offered(self, prices: _Prices) -> Array:
        """Return the price of the room of one group of each size."""
        offered: Array = self.degrees * (prices.time * self.usable_s + prices.memory * self.room_tokens)
        return offered

    def row(self, prices: _Prices) -> Array | None:
        """Return what one group of each size offers of all that is needed; None where the prices ask for nothing."""
        needed = self.needed(prices)
        return self.offered(prices) / needed if needed > 0 else None


def _trial(case: Case, schedule: Schedule, alone: Array, area: Array, makespan_s: float) -> _Trial:
    """Return what is needed at a makespan; where memory holds for a micro-step its rows are part of the time."""
    usable = usable_s(case, schedule, makespan_s)
    held = case.held if schedule == "one-shot" else np.zeros(len(case.lengths))
    room = np.full(len(case.degrees), case.capacity_tokens if schedule == "one-shot" else 0.0)
    area = crowded_gpu_s(case, schedule, area, makespan_s)
    return _Trial(np.where(alone <= makespan_s, area, np.inf), held, usable, room, case.degrees, case.gpus)


def _bucketed(trial: _Trial, longest_first: Array) -> _Trial:
    """Add up neighbours in length; only prices are taken from the sums, so that nothing proved depends on them."""
    starts = np.arange(min(_ALONE, len(longest_first)))
    rest = len(longest_first) - len(starts)
    if rest:
        work = trial.area[longest_first[len(starts) :]].min(axis=1).cumsum()
        edges = np.searchsorted(work, np.linspace(0, work[-1], _BUCKETS + 1)[:-1])
        starts = np.concatenate([starts, len(starts) + np.unique(edges)])
    area = np.add.reduceat(trial.area[longest_first], starts)
    return _Trial(
        area,
        np.add.reduceat(trial.tokens[longest_first], starts),
        trial.usable_s,
        trial.room_tokens,
        trial.degrees,
        trial.gpus,
    )


def _prices(trial: _Trial, groups: Array | None) -> tuple[_Prices, float] | None:
    """Return prices that make the sequences dear against the room, and by how much, from a linear program.

    With `groups` of every size given, the least factor by which their room has to grow until the sequences fit in
    fractions; without, the least accelerators over those there are. None where there is no solution.
    """
    sizes = len(trial.degrees)
    bucket, size = np.nonzero(np.isfinite(trial.area))
    pairs = len(bucket)
    time_unit, memory_unit = trial.usable_s.max(), max(trial.room_tokens.max(), 1.0)
    offered = np.stack([trial.degrees * trial.usable_s / time_unit, trial.degrees * trial.room_tokens / memory_unit])
    rows = np.concatenate([size, sizes + size])
    values = np.concatenate([trial.area[bucket, size] / time_unit, trial.tokens[bucket] / memory_unit])
    columns = np.tile(np.arange(pairs), 2)
    wide = np.tile(np.arange(sizes), 2)
    if groups is None:
        room_columns, room, cost = pairs + wide, -offered.ravel(), trial.degrees / trial.gpus
    else:
        room_columns, room, cost = np.full(2 * sizes, pairs), -(offered * groups).ravel(), np.ones(1)
    places = np.concatenate([rows, np.arange(2 * sizes)]), np.concatenate([columns, room_columns])
    held: Any = csr_array((np.concatenate([values, room]), places), shape=(2 * sizes, pairs + len(cost)))
    placed: Any = csr_array((np.ones(pairs), (bucket, np.arange(pairs))), shape=(len(trial.area), pairs + len(cost)))
    cost = np.concatenate([np.zeros(pairs), cost])
    answer: Any = linprog(cost, held, np.zeros(2 * sizes), placed, np.ones(len(trial.area)), method="highs")
    if answer.x is None:
        return None
    dual = np.maximum(-np.asarray(answer.ineqlin.marginals), 0.0)
    return _Prices(dual[:sizes] / time_unit, dual[sizes:] / memory_unit), float(answer.fun)


def certificate(case: Case, schedule: Schedule) -> float:
    """Return a makespan that no plan beats, from prices of time and memory by group size.

    Notes
    -----
    For prices ``p_d`` of an accelerator's time and ``q_d`` of its memory, no more than ``p_d (C - c_d) + q_d cap <= 1``
    together, a plan within C needs at least ``sum_k min_d [p_d A_kd + q_d s_k]`` accelerators over the sizes d that
    sequence k may use. Any prices prove, and the sum runs over the full list; good ones are the marginal values of a
    linear program over buckets of lengths.
    """
    floor = work_bound(case, schedule)
    if schedule != "one-shot" or not np.isfinite(floor) or len(case.lengths) == 0:
        return floor
    alone, area = alone_s(case), area_gpu_s(case, schedule)
    order = np.argsort(-case.lengths, kind="stable")

    def refuted(makespan_s: float) -> bool:
        trial = _trial(case, schedule, alone, area, makespan_s)
        found = _prices(_bucketed(trial, order), None)
        if found is None:
            return False
        worth = trial.offered(found[0]) / trial.degrees
        return trial.needed(found[0]) / float(worth.max()) > case.gpus * (1 + _RESOLUTION)

    return _raised(refuted, floor, 1.5 * floor, np.inf)


def integer_bound(case: Case, schedule: Schedule, ceiling_s: float, time_limit_s: float) -> float:
    """Return a makespan that no plan with fixed groups beats, from whole numbers of groups.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    schedule : str
        ``one-shot`` or ``fixed``; with the others groups change, and the bound does not hold.
    ceiling_s : float
        Makespan of a plan that is known [s].
    time_limit_s : float
        Time after which what is proved so far is returned [s].

    Returns
    -------
    float
        Lower bound of the makespan [s].

    Notes
    -----
    For any prices as in `certificate`, without a limit on their sum, ``g_d`` groups of each size have to obey
    ``sum_d g_d d [p_d (C - c_d) + q_d cap] >= sum_k min_d [p_d A_kd + q_d s_k]`` and ``sum_d d g_d <= N``. Prices are
    added where the whole numbers found so far do not hold the sequences in fractions (Benders); a makespan is refuted
    when no whole numbers are left. Every row is worked out on the full list.
    """
    if schedule not in ("one-shot", "fixed"):
        raise ValueError(f"groups change with the schedule {schedule}")
    until = time.perf_counter() + time_limit_s
    layouts = _layouts(case)
    floor = work_bound(case, schedule) if layouts is not None else certificate(case, schedule)
    if not np.isfinite(floor) or len(case.lengths) == 0:
        return floor
    alone, area = alone_s(case), area_gpu_s(case, schedule)
    order = np.argsort(-case.lengths, kind="stable")
    known = [_Prices(np.ones(len(case.degrees)), np.zeros(len(case.degrees)))]
    if schedule == "one-shot":
        known.append(_Prices(np.zeros(len(case.degrees)), np.ones(len(case.degrees))))

    def refuted(makespan_s: float) -> bool:
        trial = _trial(case, schedule, alone, area, makespan_s)
        bucketed = _bucketed(trial, order)
        rows = [row for prices in known if (row := trial.row(prices)) is not None]
        for _ in range(_CUTS):
            groups = _counts(rows, trial, layouts, until - time.perf_counter())
            if groups is None:
                return True
            if len(groups) == 0 or time.perf_counter() > until:
                return False
            found = _prices(bucketed, groups + 0.02) or _prices(bucketed, groups)
            if found is None or found[1] <= 1:
                found = _prices(bucketed, groups)
            if found is None or found[1] <= 1:
                return False
            row = trial.row(found[0])
            if row is None or float(row @ groups) >= 1 - _TOLERANCE:
                return False
            known.append(found[0])
            rows.append(row)
        return False

    return _raised(refuted, floor, ceiling_s, until)


def _layouts(case: Case) -> Array | None:
    """List all numbers of groups by size that leave no room for another, shape (layouts, D); None where too many."""
    counts, left = np.zeros((1, 0)), np.array([case.gpus])
    for degree in case.degrees[::-1].tolist():
        most = left // degree
        least = most if degree == case.degrees[0] else np.zeros_like(most)
        choices = most - least + 1
        if choices.sum() > _LAYOUTS:
            return None
        number = np.arange(choices.sum()) - np.repeat(choices.cumsum() - choices, choices) + np.repeat(least, choices)
        counts = np.column_stack([number, np.repeat(counts, choices, axis=0)])
        left = np.repeat(left, choices) - number * degree
    return counts


def _counts(rows: list[Array], trial: _Trial, layouts: Array | None, time_limit_s: float) -> Array | None:
    """Return whole numbers of groups that have room enough under all prices; None if proved that there are none.

    Empty where the time did not suffice to tell. Numbers with much room are wanted, but not at any price.
    """
    if layouts is not None:
        room = (layouts @ np.array(rows).T).min(axis=1)
        most = int(room.argmax())
        return layouts[most] if room[most] >= 1 - _TOLERANCE else None
    sizes = len(trial.degrees)
    for limit in (_BRIEF_S, max(time_limit_s, _BRIEF_S)):
        limits = np.append(trial.gpus // trial.degrees, _ROOM)
        with apart_from_stdout():
            answer = milp(
                np.append(np.zeros(sizes), -1.0),
                integrality=np.append(np.ones(sizes), 0.0),
                bounds=Bounds(np.append(np.zeros(sizes), 1 - _TOLERANCE), limits),
                constraints=[
                    LinearConstraint(np.column_stack([np.array(rows), -np.ones(len(rows))]), 0, np.inf),
                    LinearConstraint(np.append(trial.degrees, 0.0)[None, :], 0, trial.gpus),
                ],
                options={"mip_rel_gap": _LOOSE, "time_limit": limit},
            )
        if answer.status == _INFEASIBLE:
            return None
        if answer.x is not None:
            return np.round(answer.x[:sizes])
    return np.zeros(0)


def _raised(refuted: Callable[[float], bool], floor_s: float, ceiling_s: float, until: float) -> float:
    """Return the largest makespan that a search refutes, from a ceiling down, above a floor that holds [s]."""
    low, high, step = floor_s, ceiling_s, _STEP * ceiling_s
    while high - low > _WIDTH * low and time.perf_counter() < until:
        middle = max(high - step, 0.5 * (low + high))
        if refuted(middle):
            low = middle
        else:
            high, step = middle, 2 * step
    return low
