"""Plans for unequal sequences in one shot: every group holds all its sequences at once, the slowest sets the time."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import numpy as np

from solvers.sequence_bounds import alone_s, integer_bound, named_work_bound
from solvers.sequence_case import Case, Scatter, makespan
from solvers.sequence_fill import Filled, fill
from solvers.sequence_layout import laid_out, places
from solvers.sequence_pool import pooled_groups, seated_groups
from solvers.sequence_repair import Repair
from solvers.sequence_static import plan_static

ENOUGH = 1e-4
"""Gap at which the search ends [1]."""
_SMALL = 14
"""Sequences up to which all plans are searched."""
_GROUP_COSTS = (None, 0.0, 1.0, 0.3)
"""What a group costs beside its accelerators in the pooled problem, in turn [GPUs]; None for groups filled in order."""
_OVER, _MARGINS = (1e-3, 3e-3, 1e-2, 2e-2), (2e-4, 1e-3, 3e-3)
"""Makespans over the bound that choose groups, and over what long sequences allow in them, that repair aims at [1]."""
_SEAT_SHARE, _REPAIR_SHARE = 0.25, 0.04
"""Part of the time left for seating long sequences once, and for a repair [1]."""
_CLOSE = 0.02
"""Excess over time and memory that is worth a longer search [GPUs]."""
_CELLS = 2**25
"""Sequences times accelerators that the trials of a filling may have together."""


def plan_oneshot(case: Case, time_limit_s: float) -> tuple[Scatter, float, str]:
    """Plan a single makespan for all sequences.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    time_limit_s : float
        When the search ends [s]; a first plan takes what it takes.

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
        A sequence fits no group, all together exceed the memory, or no plan was found that they fit.

    Notes
    -----
    Few sequences: all plans, by branch and bound. Otherwise groups filled longest first at several trial makespans;
    long sequences seated by an integer program; then a search below the best: numbers of groups from the pooled problem
    at a trial makespan, sequences spread over them, and repair of what exceeds time or memory. Trials prefer makespans
    at which one more size becomes open to a long sequence, where optima tend to sit.
    """
    if case.stages > 1:  # a single micro-step passes all stages
        work_s, fixed_s = case.stages * case.work_s, case.stages * case.fixed_s
        return plan_oneshot(replace(case, work_s=work_s, fixed_s=fixed_s, stages=1), time_limit_s)
    deadline = perf_counter() + 0.97 * time_limit_s
    bound, name = named_work_bound(case, "one-shot")
    if not np.isfinite(bound):
        raise ValueError("the sequences exceed the memory, or one of them fits no group")
    if not len(case.lengths):
        return placed(case, Filled(np.zeros(0, np.int64), np.zeros(0, np.int64))), bound, name
    best = _first(case, bound, perf_counter() + 0.1 * time_limit_s)
    if len(case.lengths) <= _SMALL:
        start = makespan(case, best) if best else np.inf
        found, complete = searched(case, start, perf_counter() + 0.5 * time_limit_s)
        best = found or best
        if complete and best is None:
            raise ValueError("no grouping of the sequences fits the memory")
        if complete and best is not None:
            return best, makespan(case, best), "all plans"
    ceiling = makespan(case, best) if best is not None else 1.5 * bound
    if ceiling > bound * (1 + ENOUGH):
        counted = integer_bound(case, "one-shot", ceiling, 0.25 * time_limit_s)
        bound, name = max((bound, name), (counted, "whole numbers of groups"))
    best = _seated(case, bound, best, deadline)
    best = _improved(case, bound, best, deadline)
    if best is None:
        raise ValueError("no plan was found that fits the memory")
    return best, bound, name


def placed(case: Case, groups: Filled) -> Scatter:
    """Place groups on accelerators, largest first."""
    used = np.unique(groups.group)
    used = used[np.argsort(-case.degrees[groups.column[used]], kind="stable")]
    number = np.zeros(len(groups.column), dtype=np.int64)
    number[used] = np.arange(len(used))
    first = places(case, groups.column, used)
    assert first is not None  # whoever opens groups sees to it
    step = np.zeros(len(groups.group), dtype=np.int64)
    return Scatter("one-shot", case.degrees[groups.column[used]], first, number[groups.group], step)


def _first(case: Case, bound_s: float, deadline: float) -> Scatter | None:
    """Return the better of groups filled and groups of one size; None where neither holds the sequences."""
    filled = _filled(case, bound_s, deadline)
    try:
        single, _, _ = plan_static(case, "one-shot")
    except ValueError:
        return filled
    return single if filled is None or makespan(case, single) < makespan(case, filled) else filled


def _filled(case: Case, bound_s: float, deadline: float) -> Scatter | None:
    """Return the best plan that filling groups at several makespans gives."""
    order = np.argsort(-case.lengths, kind="stable")
    trials = int(np.clip(_CELLS // (len(order) * case.gpus), 1, 16))
    best, reached = None, np.inf
    over = np.geomspace(1e-3, 0.4, trials) if trials > 1 else np.array([0.1])  # [1]
    for attempt in range(5):
        limits = bound_s * (1 + over)
        for groups in fill(case, limits, np.full(trials, 0.3), order, leave=False):
            if groups is not None:
                plan = placed(case, groups)
                end = makespan(case, plan)
                if end < reached:
                    best, reached = plan, end
        if best is None:
            over = 3 * over
        elif reached <= bound_s * (1 + ENOUGH) or attempt > 2 or perf_counter() > deadline:
            break
        else:
            over = (reached / bound_s - 1) * np.arange(1, trials + 1) / (trials + 1)
    return best


def _seated(case: Case, bound_s: float, best: Scatter | None, deadline: float) -> Scatter | None:
    """Return the best of a plan and some in which an integer program seats the long sequences."""
    rng = np.random.default_rng(0)
    reached = makespan(case, best) if best is not None else np.inf
    for over in _OVER:
        limit, left = bound_s * (1 + over), deadline - perf_counter()
        if reached <= bound_s * (1 + ENOUGH) or limit >= reached or left <= 0:
            break
        start = pooled_groups(case, limit, 1.0, 1.0, 0.0)
        if start is None:
            continue
        seated = seated_groups(case, start, limit, _SEAT_SHARE * left)
        if seated is None:
            break
        start, full = seated
        for margin in _MARGINS:
            until = max(bound_s, limit * (1 + full)) * (1 + margin)
            if until >= reached or perf_counter() > deadline:
                break
            repair = Repair(case, start, until, rng)
            repair.run(min(deadline, perf_counter() + _REPAIR_SHARE * left))
            plan = placed(case, Filled(repair.column, repair.group)) if repair.holds() else None
            end = makespan(case, plan) if plan is not None else np.inf
            if end < reached:
                best, reached = plan, end
            if end <= until * (1 + 1e-9):
                break
        else:  # memory or short sequences stand in the way: no use to seat the long ones again
            break
    return best


def _improved(case: Case, bound_s: float, best: Scatter | None, deadline: float) -> Scatter | None:
    """Search for plans below the best until the time is over."""
    rng = np.random.default_rng(0)
    alone = np.unique(alone_s(case))
    alone = alone[np.isfinite(alone)]
    order = np.argsort(-case.lengths, kind="stable")
    floor, tried, missing = bound_s, set(), np.zeros(len(_GROUP_COSTS))
    reached = makespan(case, best) if best is not None else np.inf
    trials = int(np.clip(_CELLS // 16 // (len(order) * case.gpus), 1, 8))
    patience = max(0.02 * (deadline - perf_counter()), 0.04) * max(1.0, len(order) / 2048)
    while perf_counter() < deadline and reached > bound_s * (1 + ENOUGH):
        ceiling = min(reached, 1.5 * floor)
        if ceiling < floor * (1 + ENOUGH):
            floor = bound_s
        limit = floor + rng.uniform(0.4, 0.95) * (ceiling - floor)
        at = int(np.searchsorted(alone, limit, side="right")) - 1
        if rng.random() < 0.5 and at >= 0 and alone[at] > floor and at not in tried:
            tried.add(at)
            limit = float(alone[at]) * (1 + 1e-9)
        way = int(missing.argmin()) if rng.random() < 0.75 else int(rng.integers(len(missing)))
        group_cost = _GROUP_COSTS[way]
        if group_cost is None:
            share = rng.uniform(0.96, 1.0, trials) if trials > 1 else np.ones(1)
            balance = rng.uniform(0.1, 0.6, trials)
            filled = fill(case, limit * share, balance, order, leave=True)
            start = min(filled, key=lambda one: case.held[one.group < 0].sum() if one else np.inf)
        else:
            time_share, room_share = rng.uniform(0.98, 1.0, 2)
            start = pooled_groups(case, limit, time_share, room_share, group_cost)
            start = start or pooled_groups(case, limit, 1.0, 1.0, group_cost)
            floor = floor if start else limit
        if start is None:
            continue
        repair = Repair(case, start, limit, rng)
        repair.run(min(deadline, perf_counter() + patience * (1 + rng.exponential(2.0))))
        if 0 < repair.excess.sum() < _CLOSE:
            repair.run(min(deadline, perf_counter() + 10 * patience))
        missing[way] = 0.5 * (missing[way] + repair.excess.sum())
        if repair.holds():
            plan = placed(case, Filled(repair.column, repair.group))
            end = makespan(case, plan)
            if end < reached:
                best, reached = plan, end
    return best


def searched(case: Case, limit_s: float, deadline: float) -> tuple[Scatter | None, bool]:
    """Search all plans that take less than a limit.

    Returns
    -------
    plan : Scatter or None
        The fastest; None where there is none.
    complete : bool
        Whether the search came to its end.
    """
    order = np.argsort(-case.lengths, kind="stable").tolist()
    degrees, fixed, work = case.degrees.tolist(), case.fixed_s.tolist(), case.work_s.tolist()
    tokens = case.held.tolist()
    room = [degree * case.capacity_tokens * (1 + 1e-12) for degree in degrees]
    area = np.where(np.isfinite(alone_s(case)), case.work_s * case.degrees, np.inf).min(axis=1)[order]
    rest = np.append(np.cumsum(area[::-1])[::-1], 0.0).tolist()
    best = [limit_s]
    found: list[tuple[list[int], list[int]]] = []
    column: list[int] = []
    time: list[float] = []
    held: list[float] = []
    owner: list[int] = []
    laid = case.node_units is not None

    def descend(depth: int, spare: int, area_s: float) -> bool:
        if perf_counter() > deadline:
            return False
        if (area_s + rest[depth]) / case.gpus >= best[0] * (1 - 1e-12):
            return True
        if depth == len(order):
            best[0] = max(time, default=0.0)
            found[:] = [(column.copy(), owner.copy())]
            return True
        sequence = order[depth]
        tried = set()
        for group, kind in enumerate(column):
            state = (kind, time[group], held[group])
            after = time[group] + work[sequence][kind]
            if state in tried or after >= best[0] or held[group] + tokens[sequence] > room[kind]:
                continue
            tried.add(state)
            time[group] = after
            held[group] += tokens[sequence]
            owner.append(group)
            done = descend(depth + 1, spare, area_s + degrees[kind] * work[sequence][kind])
            owner.pop()
            time[group], held[group] = state[1], state[2]
            if not done:
                return False
        for kind, degree in enumerate(degrees):
            alone = work[sequence][kind] + fixed[kind]
            if degree > spare or alone >= best[0] or tokens[sequence] > room[kind]:
                continue
            if laid and laid_out([degrees[one] for one in (*column, kind)], case.gpus, case.node_units) is None:
                continue
            column.append(kind)
            time.append(alone)
            held.append(tokens[sequence])
            owner.append(len(column) - 1)
            done = descend(depth + 1, spare - degree, area_s + degree * alone)
            for stack in (column, time, held, owner):
                stack.pop()
            if not done:
                return False
        return True

    complete = descend(0, case.gpus, 0.0)
    if not found:
        return None, complete
    group = np.zeros(len(order), dtype=np.int64)
    group[order] = found[0][1]
    return placed(case, Filled(np.array(found[0][0]), group)), complete
