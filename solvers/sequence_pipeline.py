"""Micro-steps of equal time: what a group's pipeline wants, as its longest micro-step fills and drains it.

Micro-steps of t_1 to t_n take sum t_i + (stages - 1) max t_i through a pipeline: few of them waste time filling and
draining, many cost the fixed time of each, and unequal ones wait for the longest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perfmodel.terms import Array
from solvers.sequence_case import Case, Integers, Scatter

_TRIES = 8
"""Numbers of micro-steps tried, those that could be fastest first."""


def balanced(case: Case, plan: Scatter) -> Scatter:
    """Return a plan with every group's sequences dealt anew over micro-steps of equal time, as many as take least."""
    step = np.zeros(len(plan.group), np.int64)
    column = np.searchsorted(case.degrees, plan.degree)
    for group in np.unique(plan.group).tolist():
        members, kind = np.flatnonzero(plan.group == group), column[group]
        room = float(case.degrees[kind]) * case.capacity_tokens
        step[members] = _cut(case, members, int(kind), 1, room)
    return replace(plan, step=step)


def balanced_batches(case: Case, groups: int) -> tuple[Integers, Integers]:
    """Return group and micro-batch of each sequence where groups of one size compute micro-batches with barriers.

    Sequences are dealt over all groups of all micro-batches alike; those of similar time share a micro-batch.
    """
    everyone = np.arange(len(case.lengths))
    room = float(case.degrees[0]) * case.capacity_tokens
    place = _cut(case, everyone, 0, groups, room)
    busy = np.bincount(place, case.work_s[:, 0])
    rank = np.empty(len(busy), np.int64)
    rank[np.argsort(-busy, kind="stable")] = np.arange(len(busy))
    return rank[place] % groups, rank[place] // groups


def _cut(case: Case, members: Integers, kind: int, groups: int, room: float) -> Integers:
    """Deal sequences over the micro-steps of some groups of one size, in the number of steps that takes least."""
    work, held = case.work_s[members, kind], case.held[members]
    fixed, drains, total = float(case.fixed_s[kind]), case.stages - 1, float(work.sum()) / groups
    least = max(int(np.ceil(held.sum() / (groups * room) * (1 - 1e-12))), 1)
    number = np.arange(least, max(len(members), least) + 1)
    longest = np.maximum(work.max(), total / number)
    least_s = np.maximum(total, longest) + number * fixed + drains * (longest + fixed)
    order = np.argsort(-work, kind="stable")
    best, reached, tries = np.arange(len(members)), np.inf, 0
    for at in np.argsort(least_s, kind="stable").tolist():
        if least_s[at] >= reached or (tries >= _TRIES and np.isfinite(reached)):
            break
        tries += 1
        steps = int(number[at])
        found = _levelled(work, held, order, steps * groups, room)
        if found is None:
            continue
        busy = np.sort(np.bincount(found, work, steps * groups))[::-1][::groups] + fixed
        taken = float(busy.sum() + drains * busy[0])
        if taken < reached:
            best, reached = found, taken
    return best


def _levelled(work: Array, held: Array, order: Integers, steps: int, room: float) -> Integers | None:
    """Put each sequence, longest first, into the step of least time that has room; None where there is none."""
    busy, space = np.zeros(steps), np.full(steps, room * (1 + 1e-12))
    place = np.zeros(len(order), np.int64)
    for sequence in order.tolist():
        best = int(np.where(space >= held[sequence], busy, np.inf).argmin())
        if space[best] < held[sequence]:
            return None
        busy[best] += work[sequence]
        space[best] -= held[sequence]
        place[sequence] = best
    return place
