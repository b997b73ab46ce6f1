"""Fill groups of accelerators with sequences, longest first, under a time and a memory: several trials side by side.

A trial opens a group when no group that is open suits the sequence. Groups waste memory when they hold few long
sequences and time when they hold many short ones, so a sequence goes where the two run out together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.sequence_case import Case, Integers
from solvers.sequence_layout import Free

_AHEAD = 64
"""Sequences looked at together once one was left over in all trials."""

_NEVER = 1e200
"""Stands for the time of a sequence where it may not run [s]: finite, so that it may be subtracted."""


@dataclass(frozen=True)
class Filled:
    """Groups of one trial.

    Parameters
    ----------
    column : array of int, shape (G,)
        Which of the case's degrees each group has.
    group : array of int, shape (K,)
        Group of every sequence; -1 for one left over.
    """

    column: Integers
    group: Integers


def eligible(case: Case, limit_s: float | Array) -> NDArray[np.bool_]:
    """Return on which degrees each sequence ends within the limit and finds room; limits of shape (S,) lead."""
    limit = np.asarray(limit_s, dtype=float)[..., None, None]
    room = (case.held[:, None] <= case.degrees * case.capacity_tokens) & (case.degrees <= case.gpus)
    return np.asarray(room & (case.work_s + case.fixed_s <= limit * (1 + 1e-12)))


def fill(case: Case, limit_s: Array, balance: Array, order: Integers, leave: bool) -> list[Filled | None]:
    """Fill groups that all end within a limit, for several limits at once.

    Parameters
    ----------
    case : Case
        Sequences and costs.
    limit_s : array, shape (S,)
        When every group of a trial has to end [s].
    balance : array, shape (S,)
        Weight of unequal free time and free memory against GPU-time that a larger group costs.
    order : array of int
        Sequences to place, longest first.
    leave : bool
        Whether a sequence may be left over. Otherwise a trial that cannot place one has failed.

    Returns
    -------
    list
        What became of every trial; None where it failed.
    """
    number, gpus = np.arange(len(limit_s)), case.gpus
    limit = limit_s * (1 + 1e-12)
    may = np.asarray(eligible(case, limit_s))[:, order]
    possible = np.asarray(may.any(axis=2))
    cheapest = np.where(may, (case.work_s * case.degrees)[order], np.inf).argmin(axis=2)
    works, lengths = np.where(np.isfinite(case.work_s), case.work_s, _NEVER), case.held[order]
    wanted = case.degrees[cheapest]
    state = _State(len(limit_s), gpus, case.node_units)
    group = np.full((len(limit_s), len(order)), -1, dtype=np.int64)
    row, per_limit = number, (1 / limit)[:, None]
    width, position = 1, -1
    while len(number) and (position := position + 1) < len(order):
        sequence, tokens = order[position], lengths[position]
        column, degree = state.column[:, :width], state.degree[:, :width]
        work = works[sequence][column]
        time_after = state.time_left[:, :width] - work
        room_after = state.room_left[:, :width] - tokens
        cost = time_after * per_limit
        cost -= room_after * state.per_room[:, :width]
        np.abs(cost, out=cost)
        cost *= balance[:, None]
        cost += work * per_limit
        cost *= degree
        opens = state.spare >= wanted[:, position]
        reach = np.where(opens, 2 * wanted[:, position], gpus)[:, None]
        cost[(time_after < 0) | (room_after < 0) | (degree > reach)] = np.inf
        best = cost.argmin(axis=1)
        found = cost[row, best] < np.inf
        opening = opens & ~found & possible[:, position]
        if opening.any():
            rows = np.flatnonzero(opening)
            best[rows] = state.open(rows, cheapest[rows, position], case, limit[rows])
            width = max(width, int(state.opened.max()))
            found |= opening
        rows = np.flatnonzero(found)
        to = best[rows]
        state.time_left[rows, to] -= works[sequence][state.column[rows, to]]
        state.room_left[rows, to] -= tokens
        group[number[rows], position] = to
        if len(rows) == len(number):
            continue
        if not leave:
            number, limit, balance, per_limit = number[rows], limit[rows], balance[rows], per_limit[rows]
            possible, cheapest, wanted = possible[rows], cheapest[rows], wanted[rows]
            state.keep(rows)
            row = np.arange(len(number))
        elif not len(rows):
            ahead = slice(position + 1, position + 1 + _AHEAD)
            works_there = works[order[ahead]][:, state.column[:, :width].ravel()]
            fits = works_there <= state.time_left[:, :width].ravel()
            fits &= lengths[ahead, None] <= state.room_left[:, :width].ravel()
            useful = fits.any(axis=1) | (possible[:, ahead] & (wanted[:, ahead] <= state.spare[:, None])).any(axis=0)
            position += int(useful.argmax()) if useful.any() else len(useful)
    done: list[Filled | None] = [None] * len(limit_s)
    for place, trial in enumerate(number.tolist()):
        owner = np.full(len(case.lengths), -1, dtype=np.int64)
        owner[order] = group[trial]
        done[trial] = Filled(state.column[place, : state.opened[place]].copy(), owner)
    return done


class _State:
    """Groups of every trial: rows are trials, columns groups in the order they were opened."""

    def __init__(self, trials: int, gpus: int, node: int | None) -> None:
        self.column = np.zeros((trials, gpus), dtype=np.int64)
        self.degree = np.zeros((trials, gpus))
        self.time_left = np.full((trials, gpus), -_NEVER)
        self.room_left = np.zeros((trials, gpus))
        self.per_room = np.zeros((trials, gpus))
        self.opened = np.zeros(trials, dtype=np.int64)
        self.spare = np.full(trials, gpus)  # the largest group that there is room for
        self.free = None if node is None else np.array([Free(gpus, node) for _ in range(trials)])

    def open(self, rows: Integers, kind: Integers, case: Case, limit_s: Array) -> Integers:
        """Open a group in each of some trials; return which."""
        new: Integers = self.opened[rows]
        size = case.degrees[kind]
        self.column[rows, new] = kind
        self.degree[rows, new] = size
        self.time_left[rows, new] = limit_s - case.fixed_s[kind]
        self.room_left[rows, new] = size * case.capacity_tokens * (1 + 1e-12)
        self.per_room[rows, new] = 1 / (size * case.capacity_tokens)
        self.opened[rows] += 1
        self.spare[rows] -= size
        if self.free is not None:
            for row, one in zip(rows.tolist(), size.tolist(), strict=True):
                self.free[row].take(one)
                self.spare[row] = self.free[row].largest
        return new

    def keep(self, rows: Integers) -> None:
        """Drop all other trials."""
        for name, value in vars(self).items():
            setattr(self, name, None if value is None else value[rows])
