"""The best plan for unequal sequences when all groups have one size, as a static strategy has them.

The sequences go longest first on the group that is free first; the size is the best for the batch.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import replace
from heapq import heapify, heapreplace

import numpy as np

from perfmodel.terms import Array
from solvers.sequence_barrier_bound import barrier_bound
from solvers.sequence_bounds import named_work_bound
from solvers.sequence_case import Case, Integers, Scatter, Schedule, makespan
from solvers.sequence_layout import one_size
from solvers.sequence_pipeline import balanced, balanced_batches


def plan_static(case: Case, schedule: Schedule) -> tuple[Scatter, float, str]:
    """Plan with groups of one size, the best for these sequences.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    schedule : str
        One of `Schedule`; groups of one size do not split, so that ``splits`` gives what ``fixed`` does.

    Returns
    -------
    plan : Scatter
        The best plan found.
    bound_s : float
        What no plan with groups of one size can beat, whichever size [s].
    bound_name : str
        Which bound that is.

    Raises
    ------
    ValueError
        No plan with groups of one size was found.
    """
    sizes: list[tuple[float, int, str, Case, Integers]] = []
    for kind, (begin, single) in enumerate(_singles(case)):
        bound, name = named_work_bound(single, schedule)
        sizes.append((bound, kind, name, single, begin))
    best, reached, chosen = None, np.inf, -1
    for bound, kind, _, single, begin in sorted(sizes, key=lambda size: size[:2]):
        degree = int(single.degrees[0])
        if bound > reached:  # nor can the sizes that follow do better
            break
        if not np.isfinite(single.work_s).all() or case.held.max(initial=0) > degree * case.capacity_tokens:
            continue
        plan = _planned(single, schedule, len(begin))
        if plan is not None and (makespan(single, plan), kind) < (reached, chosen):
            reached, chosen = makespan(single, plan), kind
            best = replace(plan, first_gpu=begin[plan.first_gpu // degree])
    if best is None:
        raise ValueError("no groups of one size were found that hold the sequences")
    least = min(sizes, key=lambda size: (size[0], size[2]))
    return best, least[0], least[2]


def static_barrier_bound(case: Case) -> float:
    """Return what no micro-batches with a barrier, and groups of one size, can beat, whichever size [s].

    Tighter than what comes with the plan, for which it would take too long.
    """
    bounds = [
        max(named_work_bound(single, "barrier")[0], barrier_bound(single, 0.0).bound_s) for _, single in _singles(case)
    ]
    return min(bounds, default=float("inf"))


def _singles(case: Case) -> Iterator[tuple[Integers, Case]]:
    """Yield where groups of each size begin, and the case with that size alone."""
    for kind, degree in enumerate(case.degrees.tolist()):
        begin = one_size(case, degree)
        if len(begin):
            yield (
                begin,
                replace(
                    case,
                    degrees=case.degrees[kind : kind + 1],
                    work_s=case.work_s[:, kind : kind + 1],
                    fixed_s=case.fixed_s[kind : kind + 1],
                    gpus=len(begin) * degree,
                ),
            )


def _planned(case: Case, schedule: Schedule, groups: int) -> Scatter | None:
    """Return a plan with groups of the case's only size; None where the memory did not do."""
    work, room = case.work_s[:, 0], float(case.degrees[0]) * case.capacity_tokens * (1 + 1e-12)
    order, held = np.argsort(-case.lengths, kind="stable"), case.held
    degree = np.full(groups, case.degrees[0])
    first = np.arange(groups) * case.degrees[0]
    group, step = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    if case.stages > 1 and schedule == "barrier":
        group, step = balanced_batches(case, groups)
        group, degree, first = _own_groups(group, step, degree, first)
    elif schedule == "one-shot":
        owner, left = _levelled(case, order, work, groups, room)
        if len(left):
            return None
        group[order] = owner
    elif schedule == "barrier":
        number = 0
        while len(order):
            owner, left = _levelled(case, order, work, groups, room)
            kept = owner >= 0
            group[order[kept]], step[order[kept]] = owner[kept], number
            order, number = order[left], number + 1
        group, degree, first = _own_groups(group, step, degree, first)
    else:
        ends = [(0.0, number) for number in range(groups)]
        heapify(ends)
        rooms: list[list[tuple[float, int]]] = [[] for _ in range(groups)]
        for sequence in order.tolist():
            end, number = ends[0]
            tokens = float(held[sequence])
            fitting = next((place for place, (space, _) in enumerate(rooms[number]) if space >= tokens), None)
            if fitting is None:
                space, chosen = room, len(rooms[number])
                end += float(case.fixed_s[0])
            else:
                space, chosen = rooms[number].pop(fitting)
            insort(rooms[number], (space - tokens, chosen))
            group[sequence], step[sequence] = number, chosen
            heapreplace(ends, (end + float(work[sequence]), number))
    plan = Scatter(schedule, degree, first, group, step)
    return balanced(case, plan) if case.stages > 1 and schedule == "fixed" else plan


def _levelled(case: Case, order: Integers, work: Array, groups: int, room: float) -> tuple[Integers, Integers]:
    """Put each sequence on the group with the least work that has room; return groups, and places left over."""
    busy, space, held = np.zeros(groups), np.full(groups, room), case.held
    owner = np.full(len(order), -1, dtype=np.int64)
    wanted, after = held[order], 0
    for place, sequence in enumerate(order.tolist()):
        if place < after:
            continue
        tokens = held[sequence]
        best = int(np.where(space >= tokens, busy, np.inf).argmin())
        if space[best] < tokens:
            fitting = wanted[place:] <= space.max()  # the next sequence that finds room
            after = place + int(fitting.argmax()) if fitting.any() else len(order)
            continue
        busy[best] += work[sequence]
        space[best] -= tokens
        owner[place] = best
    return owner, np.flatnonzero(owner < 0)


def _own_groups(
    group: Integers, step: Integers, degree: Integers, first: Integers
) -> tuple[Integers, Integers, Integers]:
    """Give every micro-batch groups of its own."""
    used, owner = np.unique(step * len(degree) + group, return_inverse=True)
    return owner, degree[used % len(degree)], first[used % len(degree)]
