"""Plans for unequal sequences without a barrier: every group accumulates its own micro-steps.

Two schedules: groups that split into halves in the course of the batch, and groups fixed for the batch.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.sequence_bounds import alone_s, area_gpu_s, named_work_bound
from solvers.sequence_case import Case, Integers, Scatter, makespan

ENOUGH = 2e-3
"""Gap at which a plan is good enough to stop the search [1]."""
_SHARES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2)
"""How much of the makespan a sequence may take by itself, tried in turn [1]."""


def plan_splits(case: Case, time_limit_s: float) -> tuple[Scatter, float, str]:
    """Plan with blocks of accelerators that split into halves in the course of the batch.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    time_limit_s : float
        Time after which no other plan is tried [s]; the first takes what it takes.

    Returns
    -------
    plan : Scatter
        The best plan found.
    bound_s : float
        What no plan can beat [s].
    bound_name : str
        Which bound that is.

    Raises
    ------
    ValueError
        A sequence fits no group.

    Notes
    -----
    Every sequence takes the size that costs the least accelerator time among those that finish it by the bound. Sizes
    are filled from the largest down, longest sequence first, each on the block that is free first; then blocks split.
    The short sequences come last, on the smallest groups, and level everything. Where the long ones do not pack, a
    shorter time for each is asked for.
    """
    started = time.perf_counter()
    bound, name = named_work_bound(case, "splits")
    if not np.isfinite(bound):
        raise ValueError("a sequence fits no group")
    alone, area = alone_s(case), area_gpu_s(case, "splits")
    nested = _nested(case.degrees)
    if np.isfinite(alone[:, nested]).any(axis=1).all():
        alone[:, ~nested] = np.inf
    shortest = alone.min(axis=1, initial=np.inf)
    best, reached = None, np.inf
    tried: set[bytes] = set()
    for share in _SHARES:
        allowed = np.maximum(share * bound, shortest) * (1 + 1e-9)
        column = np.where(alone <= allowed[:, None], area, np.inf).argmin(axis=1)
        if column.tobytes() in tried:
            continue
        tried.add(column.tobytes())
        found = _split(case, area, column)
        end = makespan(case, found)
        if best is None or end < reached:
            best, reached = found, end
        if reached <= bound * (1 + ENOUGH) or time.perf_counter() - started > time_limit_s:
            break
    assert best is not None
    return best, bound, name


def _nested(degrees: Integers) -> NDArray[np.bool_]:
    """Return which sizes to use such that every one is a multiple of the one before."""
    chosen, last = np.zeros(len(degrees), bool), 1
    for number, degree in enumerate(degrees.tolist()):
        if degree % last == 0:
            chosen[number], last = True, degree
    return chosen


def _split(case: Case, area: Array, column: Integers) -> Scatter:
    """Place every sequence on a group of the size at its column, largest sizes first, as blocks become free."""
    free = np.zeros(case.gpus)
    group, step = np.zeros(len(column), np.int64), np.zeros(len(column), np.int64)
    degrees: list[int] = []
    firsts: list[int] = []
    every = np.arange(len(column))
    work = case.work_s[every, column]
    seconds = area[every, column] / case.degrees[column]
    for number in np.unique(column)[::-1].tolist():
        degree = int(case.degrees[number])
        members = np.flatnonzero(column == number)
        members = members[np.argsort(-seconds[members], kind="stable")]
        ends = free[: case.gpus // degree * degree].reshape(-1, degree).max(axis=1)
        block = _levelled(ends, seconds[members])
        step[members], steps = _packed(block, case.lengths[members], degree * case.capacity_tokens, len(ends))
        ends += np.bincount(block, work[members], len(ends)) + case.fixed_s[number] * steps
        free[: len(ends) * degree] = np.repeat(ends, degree)
        used, place = np.unique(block, return_inverse=True)
        group[members] = len(degrees) + place
        degrees += [degree] * len(used)
        firsts += (used * degree).tolist()
    return Scatter("splits", np.array(degrees, np.int64), np.array(firsts, np.int64), group, step)


def _levelled(ends: Array, seconds: Array) -> Integers:
    """Return the block of each job in turn, the one that is free first; `ends` is when blocks are free at the start."""
    waiting = [(end, number) for number, end in enumerate(ends.tolist())]
    heapq.heapify(waiting)
    block = []
    for second in seconds.tolist():
        end, number = waiting[0]
        heapq.heapreplace(waiting, (end + second, number))
        block.append(number)
    return np.array(block, np.int64)


def _packed(block: Integers, lengths: Integers, room: float, blocks: int) -> tuple[Integers, Integers]:
    """Pack the sequences of every block into micro-steps of so many tokens, longest first, each where it fits best.

    Returns
    -------
    step : array of int
        Micro-step of each sequence in its block.
    steps : array of int, shape (blocks,)
        Micro-steps of each block.
    """
    order = np.lexsort((-lengths, block))
    step, steps = np.zeros(len(order), np.int64), np.zeros(blocks, np.int64)
    rooms: list[tuple[float, int]] = []
    last, count = -1, 0
    packed = []
    for number, length in zip(block[order].tolist(), lengths[order].tolist(), strict=True):
        if number != last:
            if last >= 0:
                steps[last] = count
            rooms, last, count = [], number, 0
        place = bisect_left(rooms, (length, -1))
        if place < len(rooms):
            left, chosen = rooms.pop(place)
        else:
            left, chosen, count = room, count, count + 1
        packed.append(chosen)
        insort(rooms, (left - length, chosen))
    if last >= 0:
        steps[last] = count
    step[order] = packed
    return step, steps
