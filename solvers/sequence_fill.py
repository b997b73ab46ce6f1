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
    room = case.lengths[:, None] <= case.degrees * case.capacity_tokens
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
    trials = len(limit_s)
    gpus, capacity = case.gpus, case.capacity_tokens
    limit = limit_s * (1 + 1e-12)
    may = np.asarray(eligible(case, limit_s))[:, order]
    area = case.work_s * case.degrees
    cheapest = np.where(may, area[order], np.inf).argmin(axis=2)
    possible = np.asarray(may.any(axis=2))
    column = np.zeros((trials, gpus), dtype=np.int64)
    degree = np.zeros((trials, gpus))
    time_left = np.full((trials, gpus), -1e300)
    room_left = np.zeros((trials, gpus))
    per_room = np.zeros((trials, gpus))
    group = np.full((trials, len(case.lengths)), -1, dtype=np.int64)
    opened = np.zeros(trials, dtype=np.int64)
    spare = np.full(trials, gpus)
    alive = np.arange(trials)
    per_limit = (1 / limit)[:, None]
    weight = balance[:, None]
    sizes = case.degrees
    for position, sequence in enumerate(order):
        if not len(alive):
            break
        first = cheapest[alive, position]
        wanted = sizes[first]
        fits_in = possible[alive, position]
        width = max(int(opened.max()), 1)
        here = slice(0, width)
        kinds, large = column[alive, here], degree[alive, here]
        tokens = case.lengths[sequence]
        time_after = time_left[alive, here] - case.work_s[sequence][kinds]
        room_after = room_left[alive, here] - tokens
        extra = area[sequence][kinds] - area[sequence][first][:, None]
        cost = extra * per_limit[alive]
        cost += weight[alive] * large * np.abs(time_after * per_limit[alive] - room_after * per_room[alive, here])
        reach = np.where(spare[alive] >= wanted, 2 * wanted, gpus)[:, None]
        cost[(time_after < 0) | (room_after < 0) | (large > reach)] = np.inf
        best = cost.argmin(axis=1)
        found = cost[np.arange(len(alive)), best] < np.inf
        opening = ~found & fits_in & (spare[alive] >= wanted)
        if opening.any():
            rows, kind = alive[opening], first[opening]
            new = opened[rows]
            column[rows, new] = kind
            degree[rows, new] = sizes[kind]
            time_left[rows, new] = limit[rows] - case.fixed_s[kind]
            room_left[rows, new] = sizes[kind] * capacity * (1 + 1e-12)
            per_room[rows, new] = 1 / (sizes[kind] * capacity)
            opened[rows] += 1
            spare[rows] -= sizes[kind]
            best[opening] = new
            found |= opening
        rows, to = alive[found], best[found]
        time_left[rows, to] -= case.work_s[sequence][column[rows, to]]
        room_left[rows, to] -= tokens
        group[rows, sequence] = to
        if not leave and not found.all():
            alive = alive[found]
    done = set(alive.tolist())
    return [Filled(column[s, : opened[s]], group[s]) if s in done else None for s in range(trials)]
