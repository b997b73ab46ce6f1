"""Plans for unequal sequences without a barrier: every group accumulates its own micro-steps.

Two schedules: groups that split into halves in the course of the batch, and groups fixed for the batch.
"""

from __future__ import annotations

import heapq
import itertools
import time
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.sequence_bounds import alone_s, area_gpu_s, crowded_gpu_s, integer_bound, named_work_bound, usable_s
from solvers.sequence_case import Case, Integers, Scatter, makespan
from solvers.sequence_layout import Free, laid_out, one_size
from solvers.sequence_pipeline import balanced
from solvers.sequence_static import plan_static

ENOUGH = 2e-3
"""Gap at which a plan is good enough to stop the search [1]."""
GOOD = 1e-2
"""Gap above which plans that split are searched beyond a few passes [1]."""
_MOVES, _MOVES_SHARE = 300, 0.7
"""Moves in a row without a better plan after which to stop; part of the time left that they may take [1]."""
_BETWEEN = (0.0, 0.5, 0.25, 0.75, 0.9)
"""Makespans to fill groups to, between the bound and the best plan [1]."""
_REACHES = (4.0, 2.0, float("inf"))
"""How much larger a group may be than its sequence needs while accelerators remain [1]."""
_SOON, _PATIENCE = 5, 15
"""Fillings in a row without a better plan after which to look for a better bound, and after which to stop."""
_BOUND_SHARE = 0.6
"""Part of the time left that a better bound may take [1]."""
_TIGHTNESS = 0.3
"""Price of accelerator time that stays free in a group against time that is used [1]."""
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
        A sequence fits no group, or none of the sizes that divide one another and no fixed groups hold every one.

    Notes
    -----
    Every sequence takes the size that costs the least accelerator time among those that finish it by the bound. Sizes
    are filled from the largest down, longest sequence first, each on the block that is free first; then blocks split.
    The short sequences come last, on the smallest groups, and level everything. Where the long ones do not pack, a
    shorter time for each is asked for, then single sequences are moved to other sizes, then groups are left fixed.
    """
    started = time.perf_counter()
    bound, name = named_work_bound(case, "splits")
    if not np.isfinite(bound):
        raise ValueError("a sequence fits no group")
    alone, area = alone_s(case), area_gpu_s(case, "splits")
    nested = next((nest for nest in _nests(case) if np.isfinite(alone[:, nest]).any(axis=1).all()), None)
    if nested is None:
        return replace(plan_fixed(case, time_limit_s)[0], schedule="splits"), bound, name
    alone[:, ~nested] = np.inf
    shortest = alone.min(axis=1, initial=np.inf)
    best, reached, taken = None, np.inf, alone.argmin(axis=1)
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
            best, reached, taken = found, end, column
        if reached <= bound * (1 + GOOD) or time.perf_counter() - started > time_limit_s:
            break
    assert best is not None
    left = time_limit_s - (time.perf_counter() - started)
    if reached > bound * (1 + GOOD) and left > 0:
        best, reached = _moved(case, area, alone, taken, best, bound * (1 + GOOD), _MOVES_SHARE * left)
    left = time_limit_s - (time.perf_counter() - started)
    if reached > bound * (1 + GOOD) and left > 0:
        fixed = _best_filling(case, bound, reached, GOOD, _PATIENCE, left)
        best = best if fixed is None else replace(fixed, schedule="splits")
    return best, bound, name


def plan_fixed(case: Case, time_limit_s: float) -> tuple[Scatter, float, str]:
    """Plan with groups that stay as they are for the batch, each with its own micro-steps.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    time_limit_s : float
        Time after which no other plan is tried and no better bound sought [s]; the first plan takes what it takes.

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
        A sequence fits no group, or no groups at a time hold every sequence.

    Notes
    -----
    Groups are filled to a trial makespan, which is not monotone: several are tried between the bound and the best plan,
    each with several limits on how much larger a group may be than its sequence needs. Then whole numbers of groups
    raise the bound, and the makespans above it are tried again. For a pipeline every filling is cut anew into
    micro-steps of equal time.
    """
    started = time.perf_counter()
    bound, name = named_work_bound(case, "fixed")
    if not np.isfinite(bound):
        raise ValueError("a sequence fits no group")
    best = _uniform(case) if case.stages == 1 else _one_size(case)
    reached = np.inf if best is None else makespan(case, best)
    found = _best_filling(case, bound, reached, ENOUGH, _SOON, time_limit_s)
    if found is not None:
        best, reached = found, makespan(case, found)
    left = time_limit_s - (time.perf_counter() - started)
    if reached > bound * (1 + ENOUGH) and left > 0:
        whole = integer_bound(case, "fixed", reached, _BOUND_SHARE * left)
        if whole > bound:
            bound, name = whole, "whole numbers of groups"
        left = time_limit_s - (time.perf_counter() - started)
        best = _best_filling(case, bound, reached, ENOUGH, _PATIENCE, left) or best
    if best is None:
        raise ValueError("no fixed groups hold every sequence")
    return best, bound, name


def _best_filling(
    case: Case, bound: float, known: float, enough: float, patience: int, time_limit_s: float
) -> Scatter | None:
    """Return the best plan with fixed groups that several fillings find; None where none is better than is known."""
    started = time.perf_counter()
    listed = _listed(case)
    best, reached, useless = None, known, 0
    for share, reach in itertools.cycle(itertools.product(_BETWEEN, _REACHES)):
        if reached <= bound * (1 + enough) or useless >= patience:
            break
        limit = bound + share * (min(reached, 2 * bound) - bound)
        found = _filled(listed, limit * (1 + 1e-9), reach, _room_s(case, listed, limit * (1 + 1e-9)))
        if found is not None and case.stages > 1:
            found = balanced(case, found)
        end = np.inf if found is None else makespan(case, found)
        useless = 0 if end < reached * (1 - 1e-4) else useless + 1
        if found is not None and end < reached:
            best, reached = found, end
        if time.perf_counter() - started > time_limit_s:
            break
    return best


def _moved(
    case: Case, area: Array, alone: Array, column: Integers, plan: Scatter, goal: float, time_limit_s: float
) -> tuple[Scatter, float]:
    """Move single sequences to other sizes while the plan gets no worse, at random but the same every time."""
    started = time.perf_counter()
    random = np.random.default_rng(0)
    reached = makespan(case, plan)
    every = np.arange(len(column))
    heavy = area[every, column] / area[every, column].sum()
    useless = 0
    while reached > goal and useless < _MOVES and time.perf_counter() - started < time_limit_s:
        item = int(random.choice(len(column), p=heavy))
        sizes = np.flatnonzero(alone[item] < reached)
        if not len(sizes):  # alone on its best size it sets the time
            useless += 1
            continue
        size = int(random.choice(sizes))
        tried = column.copy()
        tried[item] = size
        found = _split(case, area, tried)
        end = makespan(case, found)
        useless = 0 if end < reached * (1 - 1e-4) else useless + 1
        if end <= reached:
            column, plan, reached = tried, found, end
    return plan, reached


def _nests(case: Case) -> Iterator[NDArray[np.bool_]]:
    """Yield which sizes to use such that each divides the next: from the smallest up, then from every one down.

    Where groups are laid out by nodes only sizes that divide a node, or are several, have aligned blocks.
    """
    sizes, node = case.degrees.tolist(), case.node_units
    aligned = [number for number, size in enumerate(sizes) if node is None or max(node, size) % min(node, size) == 0]
    for start, turn in [(aligned[0], 1), *((top, -1) for top in aligned[::-1])] if aligned else []:
        chosen, last = np.zeros(len(sizes), bool), sizes[start]
        for number in range(start, len(sizes) if turn > 0 else -1, turn):
            if number in aligned and max(last, sizes[number]) % min(last, sizes[number]) == 0:
                chosen[number], last = True, sizes[number]
        yield chosen


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
        begin = one_size(case, degree)
        inside = begin[:, None] + np.arange(degree)
        ends = free[inside].max(axis=1)
        block = _levelled(ends, seconds[members])
        step[members], steps = _packed(block, case.held[members], degree * case.capacity_tokens, len(ends))
        ends += np.bincount(block, work[members], len(ends)) + case.fixed_s[number] * steps
        free[inside] = ends[:, None]
        used, place = np.unique(block, return_inverse=True)
        group[members] = len(degrees) + place
        degrees += [degree] * len(used)
        firsts += begin[used].tolist()
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


def _packed(block: Integers, lengths: Array, room: float, blocks: int) -> tuple[Integers, Integers]:
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


def _uniform(case: Case) -> Scatter | None:
    """Return groups of the least size that holds every sequence, longest first; None where there is no such size."""
    holding = np.flatnonzero(np.isfinite(alone_s(case)).all(axis=0))
    if len(holding) == 0:
        return None
    column = np.full(len(case.lengths), holding[0], np.int64)
    return replace(_split(case, area_gpu_s(case, "fixed"), column), schedule="fixed")


def _one_size(case: Case) -> Scatter | None:
    """Return the best plan with groups of one size, cut for pipelines; None where there is none."""
    try:
        return plan_static(case, "fixed")[0]
    except ValueError:
        return None


@dataclass(frozen=True)
class _Listed:
    """A case as plain lists, longest sequence first, lengths as memory holds them: what the loop below reads."""

    order: list[int]
    lengths: list[float]
    alone: list[list[float]]
    work: list[list[float]]
    area: list[list[float]]
    degrees: list[int]
    fixed: list[float]
    rooms: list[float]
    gpus: int
    node_units: int | None


def _listed(case: Case) -> _Listed:
    alone, area = alone_s(case), area_gpu_s(case, "fixed")
    order = np.argsort(-alone.min(axis=1), kind="stable")
    return _Listed(
        order.tolist(),
        case.held[order].tolist(),
        alone[order].tolist(),
        case.work_s[order].tolist(),
        area[order].tolist(),
        case.degrees.tolist(),
        (case.fixed_s if case.stages == 1 else 0.0 * case.fixed_s).tolist(),
        (case.degrees * case.capacity_tokens).tolist(),
        case.gpus,
        case.node_units,
    )


def _room_s(case: Case, listed: _Listed, limit_s: float) -> list[list[float]] | None:
    """Return the time for sequences that a group has which each of them opens; None where that is the limit [s]."""
    if case.stages == 1:
        return None
    area = area_gpu_s(case, "fixed")
    with np.errstate(divide="ignore", invalid="ignore"):
        room: Array = usable_s(case, "fixed", limit_s) * (area / crowded_gpu_s(case, "fixed", area, limit_s))
    rows: list[list[float]] = np.nan_to_num(room)[listed.order].tolist()
    return rows


def _filled(listed: _Listed, limit_s: float, reach: float, room_s: list[list[float]] | None = None) -> Scatter | None:
    """Fill groups that are to end by a limit, longest sequence first; what does not fit goes where it ends first.

    A sequence goes to an open group where it fits, at the least cost in accelerator time: what a larger group takes
    more, the fixed time of another micro-step, and part of what stays free. While accelerators remain, only
    groups of at most `reach` times the size it needs may take it; where none does, a group opens.
    """
    degrees, fixed, rooms, lengths = listed.degrees, listed.fixed, listed.rooms, listed.lengths
    sizes = range(len(degrees))
    open_groups: list[list[tuple[float, int]]] = [[] for _ in sizes]
    column: list[int] = []
    steps: list[list[tuple[float, int]]] = []
    counts: list[int] = []
    group, step = [0] * len(lengths), [0] * len(lengths)
    late: list[int] = []
    spare = Free(listed.gpus, listed.node_units)

    def put(item: int, size: int, place: int) -> None:
        free, number = open_groups[size].pop(place)
        length, free = lengths[item], free - listed.work[item][size]
        held = steps[number]
        at = bisect_left(held, (length, -1))
        if at < len(held):
            room, chosen = held.pop(at)
        else:
            room, chosen = rooms[size], counts[number]
            counts[number] += 1
            free -= fixed[size]
        insort(held, (room - length, chosen))
        insort(open_groups[size], (free, number))
        group[item], step[item] = number, chosen

    def opened(size: int, item: int) -> int:
        column.append(size)
        steps.append([])
        counts.append(0)
        new = (limit_s if room_s is None else room_s[item][size], len(column) - 1)
        insort(open_groups[size], new)
        return open_groups[size].index(new)

    for item, alone in enumerate(listed.alone):
        area, work, length = listed.area[item], listed.work[item], lengths[item]
        needed = -1
        for size in sizes:
            if alone[size] <= limit_s and (needed < 0 or area[size] < area[needed]):
                needed = size
        if needed < 0:
            late.append(item)
            continue
        most = reach * degrees[needed] if spare.fits(degrees[needed]) else listed.gpus
        least, best, where = float("inf"), -1, -1
        for size in sizes:
            if alone[size] > limit_s or degrees[size] > most:
                continue
            ready = open_groups[size]
            place = bisect_left(ready, (work[size], -1))
            for at in range(place, min(place + 3, len(ready))):
                free, number = ready[at]
                left, cost = free - work[size], area[size]
                held = steps[number]
                if not held or held[-1][0] < length:
                    left -= fixed[size]
                    cost += degrees[size] * fixed[size]
                    if left < 0:
                        continue
                cost += _TIGHTNESS * degrees[size] * left
                if cost < least:
                    least, best, where = cost, size, at
        if best >= 0:
            put(item, best, where)
        elif spare.fits(degrees[needed]):
            spare.take(degrees[needed])
            put(item, needed, opened(needed, item))
        else:
            late.append(item)
    for item in late:
        work, length = listed.work[item], lengths[item]
        most_left, best = -float("inf"), -1
        for size in sizes:
            if listed.alone[item][size] == float("inf"):
                continue
            if spare.fits(degrees[size]) and limit_s - listed.alone[item][size] > most_left:
                most_left, best = limit_s - listed.alone[item][size], -2 - size
            if open_groups[size] and open_groups[size][-1][0] - work[size] - fixed[size] > most_left:
                most_left, best = open_groups[size][-1][0] - work[size] - fixed[size], size
        if best == -1:
            return None
        if best <= -2:
            best = -2 - best
            spare.take(degrees[best])
            place = opened(best, item)
        else:
            place = len(open_groups[best]) - 1
        put(item, best, place)
    return _placed(listed, column, group, step)


def _placed(listed: _Listed, column: list[int], group: list[int], step: list[int]) -> Scatter:
    """Lay fixed groups out, the largest first."""
    degree = np.array(listed.degrees, np.int64)[column]
    order = np.argsort(-degree, kind="stable")
    begin = laid_out(degree if listed.node_units else degree[order], listed.gpus, listed.node_units)
    assert begin is not None  # they were opened as they fit
    first = begin[order] if listed.node_units else begin
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    degree = degree[order]
    groups, steps = np.empty(len(group), np.int64), np.empty(len(group), np.int64)
    groups[listed.order], steps[listed.order] = rank[group], step
    return Scatter("fixed", degree, first, groups, steps)
