"""Repair groups of sequences that exceed a time limit or their memory: moves, swaps, new splits of a few groups."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from perfmodel.terms import Array
from solvers.sequence_case import Case, Integers
from solvers.sequence_fill import Filled
from solvers.sequence_layout import Free, laid_out

_SWAPS = 1024
"""Sequences tried at most as partners of a swap, drawn anew every time."""

_NEVER = 1e4
"""Stands for the time of a sequence where it may not run, over the limit [1]: finite, so that it may be subtracted."""

_NONE = 1e-9
"""Excess that counts as none [GPUs]."""


class Repair:
    """Groups under a time limit, and by how much they break it.

    The excess of a group is its size times what its time and its memory exceed the limits by, relative to them.

    Parameters
    ----------
    case : Case
        Sequences and costs.
    start : Filled
        Groups to begin with; sequences left over go where they break least.
    limit_s : float
        When every group has to end [s].
    rng : numpy.random.Generator
        Source of chance.
    """

    def __init__(self, case: Case, start: Filled, limit_s: float, rng: np.random.Generator) -> None:
        self.case, self.limit, self.rng = case, limit_s, rng
        self.tokens = case.held
        self.work = np.where(np.isfinite(case.work_s), case.work_s, _NEVER * limit_s)
        self.column = np.concatenate([start.column, self._split(self._free(start.column))])
        self.group = start.group.copy()
        self._sum()
        left = np.flatnonzero(self.group < 0)
        self._place(left[np.argsort(-case.lengths[left])], np.arange(len(self.column)))

    def _free(self, column: Integers) -> Free:
        """Return what groups leave free, largest first in the node with least room; nothing if one does not fit."""
        free = Free(self.case.gpus, self.case.node_units)
        for size in sorted(self.case.degrees[column].tolist(), reverse=True):
            if not free.fits(size):
                return Free(0, self.case.node_units)
            free.take(size)
        return free

    def _split(self, free: Free) -> Integers:
        """Split accelerators at random into sizes a group may have; what no size fits stays idle."""
        sizes = self.case.degrees.tolist()
        parts: list[int] = []
        while fitting := [part for part, size in enumerate(sizes) if free.fits(size)]:
            part = fitting[int(self.rng.integers(len(fitting)))]
            parts.append(part)
            free.take(sizes[part])
        return np.array(parts, dtype=np.int64)

    def _sum(self) -> None:
        """Add up time, tokens and excess of every group."""
        case, number = self.case, len(self.column)
        inside = np.flatnonzero(self.group >= 0)
        owner = self.group[inside]
        self.size = case.degrees[self.column].astype(float)
        self.time = np.bincount(owner, self.work[inside, self.column[owner]], number) + case.fixed_s[self.column]
        self.held = np.bincount(owner, self.tokens[inside], number)
        self.excess = self._excess(self.time, self.held, self.size)

    def _excess(self, time_s: Array, tokens: Array, size: Array) -> Array:
        over: Array = np.maximum(time_s * (size / self.limit) - size, 0.0)
        over += np.maximum(tokens / self.case.capacity_tokens - size, 0.0)
        return over

    def _place(self, sequences: Integers, groups: Integers) -> None:
        """Put sequences where they break least, then where time and memory run out together."""
        case = self.case
        column, size = self.column[groups], self.size[groups]
        time, held = self.time[groups], self.held[groups]
        before = self.excess[groups]
        for sequence in sequences:
            time_after = time + self.work[sequence, column]
            held_after = held + self.tokens[sequence]
            after = self._excess(time_after, held_after, size)
            lean = size * (time_after / self.limit) - held_after / case.capacity_tokens
            best = int((after - before + 1e-3 * np.abs(lean)).argmin())
            time[best], held[best], before[best] = time_after[best], held_after[best], after[best]
            self.group[sequence] = groups[best]
        self._sum()

    def _improve(self, broken: int) -> bool:
        """Make the best move or swap out of a group that breaks a limit; say whether there was one."""
        group, column = self.group, self.column
        mine = np.flatnonzero(group == broken)
        own = self.work[mine, column[broken]]
        size = self.size[broken]
        time_left, held_left = self.time[broken] - own, self.held[broken] - self.tokens[mine]
        work = self.work[mine][:, column]
        moved = self._excess(self.time + work, self.held + self.tokens[mine][:, None], self.size) - self.excess
        moved += self._excess(time_left, held_left, size)[:, None]
        moved[:, broken] = np.inf
        best = int(moved.argmin())
        gain, here, there = moved.flat[best], best // len(column), best % len(column)

        others = np.flatnonzero(group != broken)
        if len(others) > _SWAPS:
            others = self.rng.choice(others, _SWAPS, replace=False)
        owner = group[others]
        time_there = self.time[owner] - self.work[others, column[owner]] + work[:, owner]
        held_there = self.held[owner] - self.tokens[others] + self.tokens[mine][:, None]
        swapped = self._excess(time_there, held_there, self.size[owner]) - self.excess[owner]
        time_here = time_left[:, None] + self.work[others, column[broken]]
        swapped += self._excess(time_here, held_left[:, None] + self.tokens[others], size)
        if swapped.size and swapped.min() < gain:
            best = int(swapped.argmin())
            gain, here, partner = swapped.flat[best], best // len(others), int(others[best % len(others)])
            there = int(group[partner])
        else:
            partner = -1
        if not gain < self.excess[broken] - 1e-12:
            return False
        sequence = int(mine[here])
        self._shift(sequence, broken, there)
        if partner >= 0:
            self._shift(partner, there, broken)
        for changed in (broken, there):
            self.excess[changed] = self._excess(self.time[changed], self.held[changed], self.size[changed])
        return True

    def _shift(self, sequence: int, source: int, target: int) -> None:
        work = self.work[sequence]
        self.time[source] -= work[self.column[source]]
        self.held[source] -= self.tokens[sequence]
        self.time[target] += work[self.column[target]]
        self.held[target] += self.tokens[sequence]
        self.group[sequence] = target

    def _descend(self, deadline: float) -> None:
        stuck: set[int] = set()
        while perf_counter() < deadline:
            broken = [int(g) for g in np.argsort(-self.excess) if self.excess[g] > _NONE and int(g) not in stuck]
            if not broken:
                return
            if self._improve(broken[0]):
                stuck.clear()
            else:
                stuck.add(broken[0])

    def _restructure(self) -> None:
        """Dissolve a group that breaks a limit with a few others, split their accelerators anew, fill them."""
        rng, case = self.rng, self.case
        number = len(self.column)
        broken = int(rng.choice(number, p=self.excess / self.excess.sum()))
        others = rng.permutation(number)[: int(rng.integers(1, 4))]
        chosen = np.unique(np.append(others, broken))
        inside = np.flatnonzero(np.isin(self.group, chosen))
        inside = inside[np.argsort(-case.lengths[inside], kind="stable")]
        keep = np.setdiff1d(np.arange(number), chosen)
        free = self._free(self.column[keep])
        parts: list[int] = []
        if len(inside):
            longest = inside[0]
            fits = case.work_s[longest] + case.fixed_s <= self.limit * (1 + 1e-12)
            fits &= np.array([free.fits(size) for size in case.degrees.tolist()])
            fits &= self.tokens[longest] <= case.degrees * case.capacity_tokens
            if fits.any():
                least = int(np.flatnonzero(fits)[0])
                parts = [least]
                free.take(int(case.degrees[least]))
        new = np.concatenate([np.array(parts, dtype=np.int64), self._split(free)])
        if not len(new):  # by nodes, the groups that stay leave no room as they are packed
            return
        number_of = np.full(number, -1)
        number_of[keep] = np.arange(len(keep))
        self.group = number_of[self.group]
        self.column = np.concatenate([self.column[keep], new])
        self._sum()
        self._place(inside, np.arange(len(keep), len(self.column)))

    def _kick(self) -> None:
        """Exchange a few sequences at random between a group that exceeds a limit and another."""
        rng, number = self.rng, len(self.column)
        broken = int(rng.choice(number, p=self.excess / self.excess.sum()))
        other = int((broken + rng.integers(1, number)) % number)
        for source, target in ((broken, other), (other, broken)):
            inside = np.flatnonzero(self.group == source)
            for sequence in rng.permutation(inside)[: int(rng.integers(0, 4))].tolist():
                if np.isfinite(self.case.work_s[sequence, self.column[target]]):
                    self._shift(sequence, source, target)
        self._sum()

    def run(self, deadline: float) -> None:
        """Search until nothing exceeds a limit or the time is over."""
        self._descend(deadline)
        while self.excess.sum() > _NONE and perf_counter() < deadline:
            before = self.column, self.group.copy(), float(self.excess.sum())
            if self.rng.random() < 0.7 and len(self.column) > 1:
                self._kick()
            else:
                self._restructure()
            self._descend(deadline)
            if self.excess.sum() > before[2] + 1e-3 * self.rng.exponential():
                self.column, self.group = before[0], before[1]
                self._sum()

    def holds(self) -> bool:
        """Return whether the memory and place of all groups do, and no sequence is where it may not run."""
        case = self.case
        if case.node_units and laid_out(case.degrees[self.column], case.gpus, case.node_units) is None:
            return False
        room = self.size * self.case.capacity_tokens * (1 + 1e-12)
        where = self.case.work_s[np.arange(len(self.group)), self.column[self.group]]
        return bool((self.held <= room).all() and np.isfinite(where).all())
