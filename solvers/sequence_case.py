"""Unequal sequences to scatter over groups of accelerators, and plans for it.

Kept apart from the planners: what a case and a plan are, and how long a plan takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perfmodel.sequence_remap import Moves, Remap, moves
from perfmodel.terms import Array

Integers = NDArray[np.int64]

Schedule = Literal["one-shot", "barrier", "fixed", "splits"]
"""One makespan for all; micro-batches one after another; groups that accumulate on their own; the same, where a block
of accelerators may split into halves in the course of the batch."""


@dataclass(frozen=True)
class Case:
    """Sequences, and what they cost on a group of every size.

    Parameters
    ----------
    lengths : array of int, shape (K,)
        Tokens of each sequence.
    degrees : array of int, shape (D,)
        Sizes a group may have, ascending [units of as many accelerators as hold one rank of a group].
    work_s : array, shape (K, D)
        Time of a sequence on a group of each size [s]; infinite where it may not run there.
    fixed_s : array, shape (D,)
        Time of a micro-step of a group beside its sequences [s]; an empty group has none.
    capacity_tokens : float
        Tokens that one unit holds at a time; a group of d holds d times as many.
    gpus : int
        Units.
    node_units : int or None
        Units of a node, where groups are laid out by nodes; None where sizes divide one another and a node, so that
        groups in a row, largest first, keep within nodes.
    held_tokens : array, shape (K,), or None
        What each sequence takes of the memory [tokens]; its length where None. Less where activations are offloaded;
        a longer sequence may then take less than a shorter one.
    stages : int
        Pipeline stages, each on a part of every unit. Micro-steps of t_1 to t_n follow one another through them in
        ``sum t_i + (stages - 1) max t_i``.
    attention_s : array, shape (K, D), or None
        Part of `work_s` that stays with the group where tokens move for the linear layers [s].
    remap : Remap or None
        What moving them costs; None where they do not move.
    """

    lengths: Integers
    degrees: Integers
    work_s: Array
    fixed_s: Array
    capacity_tokens: float
    gpus: int
    node_units: int | None = None
    held_tokens: Array | None = None
    stages: int = 1
    attention_s: Array | None = None
    remap: Remap | None = None

    @property
    def held(self) -> Array:
        """What each sequence takes of the memory, shape (K,) [tokens]."""
        return self.lengths.astype(float) if self.held_tokens is None else self.held_tokens

    def of(self, members: Integers) -> Case:
        """Return the case of some of the sequences."""
        held = None if self.held_tokens is None else self.held_tokens[members]
        attention = None if self.attention_s is None else self.attention_s[members]
        work = self.work_s[members]
        return replace(self, lengths=self.lengths[members], work_s=work, held_tokens=held, attention_s=attention)


@dataclass(frozen=True)
class Scatter:
    """A plan: which group computes which sequence, when.

    Parameters
    ----------
    schedule : str
        One of `Schedule`.
    degree, first_gpu : array of int, shape (G,)
        Size and first unit of every group; its units are neighbours. A later group begins when all its units have
        finished the groups before it, so that blocks may split.
    group, step : array of int, shape (K,)
        Group of every sequence, and micro-step within it; with ``barrier`` the micro-batch.
    remapped : bool
        Whether tokens move to equal numbers for the linear layers, and back for attention, in every layer. Only where
        all groups work on a micro-batch at a time.
    """

    schedule: Schedule
    degree: Integers
    first_gpu: Integers
    group: Integers
    step: Integers
    remapped: bool = False


def step_times(case: Case, plan: Scatter) -> tuple[Integers, Integers, Array, Array]:
    """Return group, step, seconds on a stage, and tokens held, of every micro-step that has a sequence.

    Where tokens are remapped every micro-step of a micro-batch has, beside its own attention, an equal share of all
    linear work and the time of the moves.
    """
    column = np.searchsorted(case.degrees, plan.degree)
    steps = int(plan.step.max(initial=0)) + 1
    key = plan.group * steps + plan.step
    used, inverse = np.unique(key, return_inverse=True)
    table = case.attention_s if plan.remapped else case.work_s
    assert table is not None
    work = table[np.arange(len(case.lengths)), column[plan.group]]
    seconds = np.bincount(inverse, work, len(used)) + case.fixed_s[column[used // steps]]
    seconds += shared_s(case, plan)[used % steps]
    tokens = np.bincount(inverse, case.held, len(used))
    return used // steps, used % steps, seconds, tokens


def drain_s(case: Case, plan: Scatter, group: Integers, seconds: Array) -> Array:
    """Return how long the pipeline of every group fills and drains, from groups and seconds of micro-steps [s]."""
    longest = np.zeros(len(plan.degree))
    np.maximum.at(longest, group, seconds)
    return (case.stages - 1) * longest


def shared_s(case: Case, plan: Scatter) -> Array:
    """Return the time that every accelerator spends in each micro-batch on linear work dealt out and on moves [s]."""
    steps = int(plan.step.max(initial=0)) + 1
    if not plan.remapped:
        return np.zeros(steps)
    assert case.attention_s is not None
    degree = plan.degree[plan.group]
    rows = np.arange(len(degree)), np.searchsorted(case.degrees, degree)
    linear = np.bincount(plan.step, (case.work_s - case.attention_s)[rows] * degree, steps)
    return np.asarray(linear / case.gpus + remapping(case, plan).seconds)


def remapping(case: Case, plan: Scatter) -> Moves:
    """Return what moving tokens takes in every micro-batch of a plan."""
    assert case.remap is not None
    held = np.zeros((int(plan.step.max(initial=0)) + 1, case.gpus))
    used, inverse = np.unique(plan.group * len(held) + plan.step, return_inverse=True)
    tokens = np.bincount(inverse, case.lengths.astype(float), len(used))
    for slot, count in zip(used.tolist(), tokens.tolist(), strict=True):
        number, step = divmod(slot, len(held))
        degree, first = int(plan.degree[number]), int(plan.first_gpu[number])
        held[step, first : first + degree] += count / degree
    return moves(held, case.remap)


def group_ends(case: Case, plan: Scatter) -> Array:
    """Return when every group has finished [s]; with barriers a micro-batch ends with its slowest group.

    Notes
    -----
    A pipeline of s equal stages is a proportionate flow shop: jobs of t_1 to t_n take sum t_i + (s - 1) max t_i in any
    order (Pinedo, Scheduling, section 6.1); forward and backward passes one after the other each take their share.
    """
    group, step, seconds, _ = step_times(case, plan)
    if plan.schedule == "barrier":
        slowest = np.zeros(int(step.max(initial=0)) + 1)
        np.maximum.at(slowest, step, seconds)
        return np.full(len(plan.degree), slowest.sum() + (case.stages - 1) * slowest.max(initial=0.0))
    busy = np.bincount(group, seconds, len(plan.degree)) + drain_s(case, plan, group, seconds)
    free = np.zeros(case.gpus)
    ends = np.zeros(len(plan.degree))
    for number in range(len(plan.degree)):
        block = slice(int(plan.first_gpu[number]), int(plan.first_gpu[number] + plan.degree[number]))
        ends[number] = free[block].max() + busy[number]
        free[block] = ends[number]
    return ends


def makespan(case: Case, plan: Scatter) -> float:
    """Return the time from the start to the end of the last group [s]."""
    return float(group_ends(case, plan).max(initial=0.0))
