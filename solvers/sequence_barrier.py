"""Plans for unequal sequences in micro-batches one after another: the next begins when the slowest group has ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from perfmodel.terms import Array
from solvers.sequence_barrier_bound import barrier_bound
from solvers.sequence_bounds import alone_s, named_work_bound
from solvers.sequence_case import Case, Integers, Scatter, makespan
from solvers.sequence_fill import Filled, fill
from solvers.sequence_layout import places
from solvers.sequence_oneshot import ENOUGH, searched
from solvers.sequence_static import plan_static

_SMALL = 8
"""Sequences up to which all plans are searched."""
_BOUND_SHARE = 0.1
"""Part of the time that the bound may take [1]."""
_SIZES, _SIZES_OFFLOADED = 2, 4
"""Smallest sizes for the longest sequence that are tried; where activations leave, the smallest are slow."""
_FACTORS = np.array([1.0, 1.15, 1.6])
"""Trial ends of a micro-batch, over the time of its longest sequence alone [1]."""


@dataclass(frozen=True)
class _Batch:
    """A micro-batch: its groups, the sequences it has, when it ends [s]."""

    groups: Filled
    members: Integers
    end_s: float


def plan_barrier(case: Case, time_limit_s: float) -> tuple[Scatter, float, str]:
    """Plan micro-batches with a barrier after each.

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
        A sequence fits no group.

    Notes
    -----
    Few sequences: all plans. Otherwise micro-batches one by one. The longest sequence that is left, on the smallest
    group that holds it or the next, gives trial ends; groups are filled for each, and the micro-batch stays that uses
    the accelerators best. Then a few micro-batches at a time are dissolved and filled anew with other trial ends.
    Pipelines wait for the longest micro-batch once more for each further stage, so that several limits on it are tried.
    """
    deadline = perf_counter() + 0.95 * time_limit_s
    bound, name = named_work_bound(case, "barrier")
    if not np.isfinite(bound):
        raise ValueError("a sequence fits no group")
    if len(case.lengths) <= _SMALL:
        found = _searched(case, deadline)
        if found is not None:
            return found, makespan(case, found), "all plans"
    priced = barrier_bound(case, _BOUND_SHARE * time_limit_s)
    if priced.bound_s > bound:
        bound, name = priced.bound_s, "micro-batches"
    order = np.argsort(-case.lengths, kind="stable")
    level = _Levels(case, priced.worth_s)
    starts = [level.batches(order, np.inf, None, np.inf, most_s) for most_s in level.ceilings()]
    batches = min((*(start for start in starts if start), _static(case)), key=level.total)
    batches = level.improved(batches, bound, deadline)
    return _scatter(case, batches), bound, name


def _scatter(case: Case, batches: list[_Batch]) -> Scatter:
    """Place the groups of every micro-batch on accelerators, largest first."""
    degree, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    group, step = np.zeros(len(case.lengths), np.int64), np.zeros(len(case.lengths), np.int64)
    offset = 0
    for number, batch in enumerate(batches):
        owner = batch.groups.group[batch.members]
        used = np.unique(owner)
        used = used[np.argsort(-case.degrees[batch.groups.column[used]], kind="stable")]
        place = np.zeros(len(batch.groups.column), np.int64)
        place[used] = offset + np.arange(len(used))
        begin = places(case, batch.groups.column, used)
        assert begin is not None  # whoever opens groups sees to it
        degree.append(case.degrees[batch.groups.column[used]])
        first.append(begin)
        group[batch.members], step[batch.members] = place[owner], number
        offset += len(used)
    return Scatter("barrier", np.concatenate(degree), np.concatenate(first), group, step)


def _static(case: Case) -> list[_Batch]:
    """Return the micro-batches of the best plan with groups of one size; none where there is no such plan."""
    try:
        plan, _, _ = plan_static(case, "barrier")
    except ValueError:
        return []
    column = np.searchsorted(case.degrees, plan.degree)
    batches = []
    for number in np.unique(plan.step).tolist():
        members = np.flatnonzero(plan.step == number)
        group = np.full(len(plan.group), -1, dtype=np.int64)
        group[members] = plan.group[members]
        batches.append(_Batch(Filled(column, group), members, _end_s(case, column, plan.group, members)))
    return batches


def _end_s(case: Case, column: Integers, group: Integers, members: Integers) -> float:
    """Return when the slowest group of a micro-batch ends [s]."""
    owner = group[members]
    time = np.bincount(owner, case.work_s[members, column[owner]], len(column)) + case.fixed_s[column]
    return float(time[np.unique(owner)].max())


class _Levels:
    """Micro-batches filled one by one.

    Parameters
    ----------
    case : Case
        Sequences and costs.
    worth_s : array, shape (K,)
        What each sequence adds to the bound [s].
    """

    def __init__(self, case: Case, worth_s: Array) -> None:
        self.stages = case.stages
        self.case = case = replace(case, stages=1)  # a micro-batch is filled as on one stage
        self.alone = alone_s(case)
        self.worth = worth_s
        self.rng = np.random.default_rng(0)

    def total(self, batches: list[_Batch]) -> float:
        """Return the time of all micro-batches [s]; infinite where there is none."""
        ends = [batch.end_s for batch in batches]
        return sum(ends) + (self.stages - 1) * max(ends) if ends else np.inf

    def ceilings(self) -> list[float]:
        """Return limits on the longest micro-batch that are worth a try [s]."""
        if self.stages == 1:
            return [np.inf]
        least = float(self.alone.min(axis=1, initial=np.inf).max(initial=0.0))
        return [*(least * np.array([1.0, 1.2, 1.6, 2.5, 4.0])).tolist(), np.inf]

    def batches(
        self, order: Integers, limit_s: float, chance: np.random.Generator | None, deadline: float, most_s: float
    ) -> list[_Batch] | None:
        """Fill micro-batches until no sequence is left; None once they take longer than a limit, or the search does.

        None is to take longer than `most_s`, unless its longest sequence does.
        """
        done: list[_Batch] = []
        total = 0.0
        while len(order):
            batch = self._next(order, chance, most_s)
            done.append(batch)
            order = order[batch.groups.group[order] < 0]
            total += batch.end_s
            if total + self.worth[order].sum() >= limit_s or perf_counter() > deadline:
                return None
        return done

    def _next(self, order: Integers, chance: np.random.Generator | None, most_s: float) -> _Batch:
        """Return the micro-batch that uses the accelerators best among several trial ends."""
        case = self.case
        open_s = self.alone[order[0]]
        kinds = np.flatnonzero(np.isfinite(open_s))[: _SIZES if case.held_tokens is None else _SIZES_OFFLOADED]
        factors = _FACTORS if chance is None else _FACTORS * np.append(1.0, chance.uniform(0.9, 1.25, 2))
        limits = np.unique(np.outer(open_s[kinds], factors))
        if limits[-1] > most_s:
            least = float(open_s.min())
            limits = np.unique(np.append(limits[(limits >= least) & (limits <= most_s)], max(most_s, least)))
        balance = np.full(len(limits), 0.3) if chance is None else chance.uniform(0.03, 1.0, len(limits))
        best, most = None, -np.inf
        for groups in fill(case, limits, balance, order, leave=True):
            assert groups is not None
            members = order[groups.group[order] >= 0]
            end = _end_s(case, groups.column, groups.group, members)
            score = float(self.worth[members].sum()) / end
            if len(members) == len(order):
                score = 1.0 / end + 1e3
            elif chance is not None:
                score *= 1 + 0.01 * chance.standard_normal()
            if score > most:
                best, most = _Batch(groups, members, end), score
        assert best is not None
        return best

    def improved(self, batches: list[_Batch], bound_s: float, deadline: float) -> list[_Batch]:
        """Dissolve a few micro-batches at a time and fill them anew, as long as the time lasts."""
        rng, lengths = self.rng, self.case.lengths
        while perf_counter() < deadline and len(batches):
            ends = np.array([batch.end_s for batch in batches])
            if self.total(batches) <= bound_s * (1 + ENOUGH):
                break
            work = np.array([self.worth[batch.members].sum() for batch in batches])
            loss = np.maximum(ends - work, 0.0) + 1e-3 * ends
            number = min(int(rng.integers(2, 5)), len(batches))
            chosen = rng.choice(len(batches), number, replace=False, p=loss / loss.sum())
            order = np.concatenate([batches[index].members for index in chosen])
            order = order[np.argsort(-lengths[order], kind="stable")]
            rest = [batch for index, batch in enumerate(batches) if index not in chosen]
            limit, most = float(ends[chosen].sum()), np.inf
            if self.stages > 1:  # any longest micro-batch is worth it that makes up for itself
                longest = max((batch.end_s for batch in rest), default=0.0)
                limit += (self.stages - 1) * (float(ends.max()) - longest)
                most = float(ends.max()) * (1.0 if rng.random() < 0.5 else rng.uniform(0.7, 1.1))
            new = self.batches(order, limit, rng, deadline, most)
            if new is not None and (self.stages == 1 or self.total(rest + new) < self.total(batches)):
                batches = rest + new
        return batches


def _cover(number: int, single: dict[int, float]) -> list[tuple[float, int]]:
    """Return for every set of so many sequences the least sum of micro-batches that hold it, and one of them."""
    least: list[tuple[float, int]] = [(0.0, 0)]
    for left in range(1, 2**number):
        first, best = left & -left, (np.inf, 0)
        chosen = left
        while chosen:
            if chosen & first and chosen in single:
                best = min(best, (single[chosen] + least[left ^ chosen][0], chosen))
            chosen = (chosen - 1) & left
        least.append(best)
    return least


def _searched(case: Case, deadline: float) -> Scatter | None:
    """Search all plans: every set of sequences as a micro-batch, and every way to take the sets apart."""
    number = len(case.lengths)
    drains, case = case.stages - 1, replace(case, stages=1)
    order = np.argsort(-case.lengths, kind="stable")
    single: dict[int, tuple[float, Scatter]] = {}
    for chosen in range(1, 2**number):
        members = order[[place for place in range(number) if chosen >> place & 1]]
        part = case.of(members)
        if part.held.sum() > case.gpus * case.capacity_tokens * (1 + 1e-12):
            continue
        plan, complete = searched(part, np.inf, deadline)
        if not complete:
            return None
        if plan is not None:
            single[chosen] = makespan(part, plan), plan
    if not drains:
        least = _cover(number, {chosen: end for chosen, (end, _) in single.items()})
    else:
        # for every longest micro-batch the least sum of those that are no longer
        least, reached, sums = [(np.inf, 0)] * 2**number, np.inf, 0.0
        for longest in sorted({end for end, _ in single.values()}, reverse=True):
            if drains * longest + sums >= reached:
                continue
            found = _cover(number, {chosen: end for chosen, (end, _) in single.items() if end <= longest})
            sums = sums or found[-1][0]  # without a limit: no choice has less
            if not np.isfinite(found[-1][0]) or perf_counter() > deadline:
                break
            if found[-1][0] + drains * longest < reached:
                least, reached = found, found[-1][0] + drains * longest
        if perf_counter() > deadline:
            return None
    left = 2**number - 1
    batches = []
    while left:
        chosen = least[left][1]
        if not chosen:
            return None
        end, plan = single[chosen]
        members = order[[place for place in range(number) if chosen >> place & 1]]
        group = np.full(number, -1, dtype=np.int64)
        group[members] = plan.group
        batches.append(_Batch(Filled(np.searchsorted(case.degrees, plan.degree), group), members, end))
        left ^= chosen
    return _scatter(case, batches)
