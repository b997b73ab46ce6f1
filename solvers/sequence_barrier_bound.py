"""What no plan in micro-batches with a barrier can beat, and what each sequence adds to it.

Micro-batches are told apart by how long they last. A long one is forced by a long sequence and holds no more than the
memory; what it cannot hold has to run in others. Neither work nor memory alone sees that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from perfmodel.terms import Array
from solvers.sequence_bounds import alone_s
from solvers.sequence_case import Case, Integers

_EDGES, _CLASSES = 8, 60
"""Classes to begin with beside those at the times of the longest sequences; classes at most."""
_LONGEST, _APART = 6, 0.02
"""Sequences whose times on every size are limits of classes, and how far apart limits are at least [1]."""
_WHOLE = 16
"""Sequences of which the program knows that a micro-batch has each but once."""
_DETAILS = (12, 48)
"""Sequences that stand for themselves where prices are sought, and buckets of the others: at first, and at last."""
_FLAT, _PATIENCE, _ROUNDS = 1e-5, 2, 12
"""Rise of the program's value that counts [1]; splits without one, and splits in all, after which to stop."""
_USED = 1e-3
"""Micro-batches of a class that count as some."""


@dataclass(frozen=True)
class Priced:
    """A bound of micro-batches with a barrier, as a sum over sequences.

    Parameters
    ----------
    bound_s : float
        What the micro-batches of every plan take together at least [s].
    worth_s : array, shape (K,)
        No micro-batch lasts less than its sequences are worth together, on one stage of a pipeline [s].
    """

    bound_s: float
    worth_s: Array


@dataclass(frozen=True)
class _Prices:
    """What a class of micro-batches pays for: accelerator time [1], memory [s/token], each sequence's place [s]."""

    time: Array
    memory: Array
    place: Array
    batch: float


@dataclass(frozen=True)
class _Program:
    """A case as the bound sees it, longest alone first.

    Parameters
    ----------
    alone_s, area_gpu_s : array, shape (K, D)
        Time of a sequence with a group to itself; accelerator time of it without the least fixed time of a group [s].
    work_s : array, shape (K, D)
        Time of a sequence [s].
    tokens : array, shape (K,)
        Memory of it.
    room : array, shape (D,)
        Memory of a group [tokens].
    thin_s : array, shape (D,)
        Least time for a token in a group of each size [s].
    fixed_s : array, shape (D,)
        Fixed time of a group [s].
    least_s : float
        The least of them [s].
    gpus, capacity, batches : float
        Accelerators, tokens that one holds, and micro-batches that the memory asks for at least.
    """

    alone_s: Array
    area_gpu_s: Array
    work_s: Array
    tokens: Array
    room: Array
    thin_s: Array
    fixed_s: Array
    least_s: float
    gpus: int
    capacity: float
    batches: float

    def held(self, until_s: float) -> Array:
        """Return the memory that a sequence uses or leaves useless in a micro-batch that ends by then, shape (K, D).

        A sequence that takes most of a group's time leaves little to others: ``until - alone`` seconds, in which no
        more tokens run than at the least time for a token. Of such sequences a group has one.
        """
        tokens = np.broadcast_to(self.tokens[:, None], self.work_s.shape)
        if not np.isfinite(until_s):
            return tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            useless = self.room - (until_s - self.alone_s) / self.thin_s
            most = (self.work_s > (until_s - self.fixed_s) / 2) & (self.alone_s < until_s)
        most[_LONGEST:] = False  # the program knows only of these on which sizes they may run
        return np.where(most & (useless > tokens), useless, tokens)


def barrier_bound(case: Case, time_limit_s: float) -> Priced:
    """Return what micro-batches with a barrier take together at least.

    Parameters
    ----------
    case : Case
        Sequences and their costs.
    time_limit_s : float
        Time after which classes are refined no further [s].

    Returns
    -------
    Priced
        Bound, and what each sequence adds to it.

    Notes
    -----
    Let a micro-batch that lasts T have sequences S. Those in a group of d end by T and fit its memory, so that with c
    the least fixed time, ``A_kd = d w_kd + (c_d - c) s_k / cap`` and N accelerators

        sum over S of A_kd <= N (T - c),    sum over S of s_k <= N cap,    each sequence is in S once,

    and only sizes count on which k alone ends by T. Cut all T into classes [T_i, T_i+1), and take any prices
    ``p_i, q_i, r_ik, m >= 0``. With ``y_k`` the least over classes and sizes with ``alone_kd < T_i+1`` of
    ``p_i A_kd + q_i s_k + r_ik``, the sequences of a micro-batch of class i obey

        sum over S of y_k + m <= N (p_i (T - c) + q_i cap) + sum over k of r_ik + m = v_i(T).

    v_i is linear in T, so that v_i(T) <= T holds within a class where it does at the ends; prices are scaled, class by
    class, until it just does. The sum over micro-batches then gives ``sum T >= sum over k of y_k + m M`` where memory
    asks for at least M micro-batches. Any prices prove; good ones are the marginal values of the linear program in
    which micro-batches of a class are counted in fractions ``n_i`` and take ``n_i T_i <= t_i <= n_i T_i+1`` together,
    at most ``n_i`` of every sequence. ``r_ik`` makes the micro-batch of a long sequence whole: without it the program
    may run a third of it.

    Instead of ``s_k`` the memory is charged what a sequence also leaves useless: in the group of one that takes more
    than half of T there is time for ``T - alone_kd`` beside it, so for tokens ``(T_i+1 - alone_kd) / min_j (w_jd/s_j)``
    at most. Classes that are used are split until the bound rises no more.

    With pipeline stages the longest micro-batch, no less than the longest sequence, passes every further one once more.
    """
    deadline = perf_counter() + time_limit_s
    drains, case = case.stages - 1, replace(case, stages=1)
    alone = alone_s(case)
    number = len(case.lengths)
    if not number or not np.isfinite(alone.min(axis=1)).all():
        return Priced(float("inf") if number else 0.0, np.zeros(number))
    order = np.argsort(-alone.min(axis=1), kind="stable")
    program = _program(case, alone, order)
    edges = _edges(program)
    best = Priced(0.0, np.zeros(number))
    detail, last, flat = _DETAILS[0], 0.0, 0
    for _ in range(_ROUNDS):
        began = perf_counter()
        found = _prices(program, edges, detail)
        if found is None:
            break
        prices, count, total, value = found
        bound, worth = _proved(program, edges, prices)
        bound += drains * float(program.alone_s.min(axis=1)[0])
        if bound > best.bound_s:
            best = Priced(bound, np.empty(number))
            best.worth_s[order] = worth
        spent = perf_counter() - began
        flat = flat + 1 if value < last * (1 + _FLAT) else 0
        finer = _split(edges, count, total) if flat < _PATIENCE else edges
        if len(finer) == len(edges) or len(finer) > _CLASSES:
            if detail == _DETAILS[-1]:
                break
            detail, last, flat, spent = _DETAILS[-1], 0.0, 0, 4 * spent
        else:
            edges, last = finer, value
        if perf_counter() + 1.5 * spent > deadline:
            break
    return best


def _program(case: Case, alone: Array, order: Integers) -> _Program:
    tokens, work = case.held[order], case.work_s[order]
    least = float(case.fixed_s[case.degrees <= case.gpus].min())
    area = case.degrees * work + (case.fixed_s - least) * tokens[:, None] / case.capacity_tokens
    thin = np.where(np.isfinite(work), work, np.inf) / tokens[:, None]
    room = case.gpus * case.capacity_tokens
    return _Program(
        alone_s=alone[order],
        area_gpu_s=area,
        work_s=work,
        tokens=tokens,
        room=case.degrees * case.capacity_tokens,
        thin_s=thin.min(axis=0),
        fixed_s=case.fixed_s,
        least_s=least,
        gpus=case.gpus,
        capacity=case.capacity_tokens,
        batches=float(np.ceil(tokens.sum() / room * (1 - 1e-12))),
    )


def _edges(program: _Program) -> Array:
    """Return where classes begin: the times of the longest sequences on every size, and some between [s]."""
    least = program.alone_s.min(axis=1)
    longest, shortest = float(least[0]), float(least[-1])
    between = np.geomspace(max(shortest, float(np.quantile(least, 0.3))), longest, _EDGES)
    several = program.alone_s[:_LONGEST]
    several = np.sort(several[np.isfinite(several) & (several <= 2 * longest)])[::-1]
    kept = [longest]
    for edge in [*several.tolist(), *between.tolist()]:
        if edge > shortest * (1 + _APART) and all(abs(edge / other - 1) > _APART for other in kept):
            kept.append(edge)
    return np.unique([shortest, *kept])


def _split(edges: Array, count: Array, total: Array) -> Array:
    """Return finer classes: those used are cut where their micro-batches end, or a little above where that is low."""
    until = np.append(edges[1:], 4 * edges[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(count > _USED, total / count, 0.0)
    low = mean < edges * (1 + _APART / 4)
    cut = np.where(low, np.minimum(np.sqrt(edges * until), edges * (1 + _APART)), mean)
    useful = (mean > 0) & (cut > edges * (1 + _APART / 8)) & (cut < until / (1 + _APART / 8))
    return np.sort(np.append(edges, cut[useful]))


def _until(edges: Array) -> list[float]:
    """Return where every class ends [s]."""
    return [*edges[1:].tolist(), float("inf")]


def _cheapest(program: _Program, until_s: float) -> tuple[Array, Array]:
    """Return the least accelerator time of each sequence in a class, and the memory it then takes, shape (K,)."""
    area = np.where(program.alone_s < until_s, program.area_gpu_s, np.inf)
    size = area.argmin(axis=1)[:, None]
    return np.take_along_axis(area, size, 1)[:, 0], np.take_along_axis(program.held(until_s), size, 1)[:, 0]


def _starts(program: _Program, edges: Array, detail: int) -> Integers:
    """Return where buckets of the list begin: the first stand alone, the others share their work evenly.

    All of a bucket belong to the same classes.
    """
    area = _cheapest(program, np.inf)[0]
    starts = np.arange(min(detail, len(area)))
    if len(area) > detail:
        rest = area[detail:].cumsum()
        cuts = detail + np.searchsorted(rest, np.linspace(0, rest[-1], detail + 1)[:-1])
        between = np.searchsorted(-program.alone_s.min(axis=1), -edges, side="right")
        starts = np.unique(np.concatenate([starts, cuts, between[(between > detail) & (between < len(area))]]))
    return starts


def _prices(program: _Program, edges: Array, detail: int) -> tuple[_Prices, Array, Array, float] | None:
    """Return prices from the program over buckets, its counts and times by class, and its value; None if unsolved."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    classes, gpus = len(edges), program.gpus
    starts = _starts(program, edges, detail)
    members = np.diff(np.append(starts, len(program.tokens)))
    columns: list[tuple[Integers, Integers, Array, Array]] = []
    for number, until in enumerate(_until(edges)):
        cheapest, held = _cheapest(program, until)
        area, tokens = np.add.reduceat(cheapest, starts), np.add.reduceat(held, starts)
        bucket = np.flatnonzero(np.isfinite(area))
        columns.append((bucket, np.full(len(bucket), number), area[bucket], tokens[bucket]))
        single = slice(0, min(_LONGEST, len(program.tokens)))  # other sizes of long sequences that leave less useless
        other = program.held(until)[single] < held[single, None] * (1 - 1e-9)
        row, size = np.nonzero(other & (program.alone_s[single] < until))
        columns.append((row, np.full(len(row), number), program.area_gpu_s[row, size], program.held(until)[row, size]))
    bucket, kind = (np.concatenate([column[place] for column in columns]) for place in (0, 1))
    area, tokens = (np.concatenate([column[place] for column in columns]) for place in (2, 3))
    pairs, every = len(bucket), np.arange(classes)
    count, total = pairs + every, pairs + classes + every
    whole_one = np.flatnonzero(bucket < _WHOLE)
    place, row = np.unique((bucket * classes + kind)[whole_one], return_inverse=True)
    ends = every[:-1]
    base = 3 * classes + np.array([0, len(ends), len(ends) + len(place)])
    entries: list[tuple[Array, Array, Array]] = [
        (kind, np.arange(pairs), area / gpus),  # work within time
        (every, total, -np.ones(classes)),
        (every, count, np.full(classes, program.least_s)),
        (classes + kind, np.arange(pairs), tokens / (gpus * program.capacity)),  # tokens within memory
        (classes + every, count, -np.ones(classes)),
        (2 * classes + every, count, edges),  # time within the class
        (2 * classes + every, total, -np.ones(classes)),
        (base[0] + ends, total[:-1], np.ones(len(ends))),
        (base[0] + ends, count[:-1], -edges[1:]),
        (base[1] + row, whole_one, np.ones(len(whole_one))),  # a sequence at most once in a micro-batch
        (base[1] + np.arange(len(place)), count[place % classes], -np.ones(len(place))),
        (np.full(classes, base[2]), count, -np.ones(classes)),  # as many as the memory asks for
    ]
    values, where, across = (np.concatenate([entry[part] for entry in entries]) for part in (2, 0, 1))
    width = pairs + 2 * classes
    rows: Any = csr_array((values, (where, across)), shape=(int(base[2]) + 1, width))
    limits = np.zeros(int(base[2]) + 1)
    limits[-1] = -program.batches
    whole: Any = csr_array((np.ones(pairs), (bucket, np.arange(pairs))), shape=(len(starts), width))
    cost = np.append(np.zeros(pairs + classes), np.ones(classes))
    answer: Any = linprog(cost, rows, limits, whole, np.ones(len(starts)), method="highs-ipm")
    if answer.x is None:
        return None
    dual = np.maximum(-np.asarray(answer.ineqlin.marginals), 0.0)
    of_bucket = np.zeros((len(starts), classes))
    of_bucket[place // classes, place % classes] = dual[base[1] : base[2]]
    prices = _Prices(
        time=dual[:classes] / gpus,
        memory=dual[classes : 2 * classes] / (gpus * program.capacity),
        place=np.repeat(of_bucket / members[:, None], members, axis=0),
        batch=float(dual[-1]),
    )
    return prices, answer.x[count], answer.x[total], float(answer.fun)


def _proved(program: _Program, edges: Array, prices: _Prices) -> tuple[float, Array]:
    """Return the bound that prices prove on the full list, and what each sequence adds to it [s].

    Where a class asks for less than its micro-batches last, its time becomes dearer; where for more, all is cheaper.
    """
    gpus, most = program.gpus, program.gpus * program.capacity
    batch = min(prices.batch, (1 - 1e-6) * float(edges[0]))
    worth = np.full(len(program.tokens), np.inf)
    for number, until in enumerate(_until(edges)):
        ends = np.array([edge for edge in (edges[number], until) if np.isfinite(edge)])
        left, busy = ends - batch, gpus * np.maximum(ends - program.least_s, 0.0)
        time, memory, place = float(prices.time[number]), float(prices.memory[number]), prices.place[:, number]
        asked = memory * most + float(place.sum())
        scale = min(1.0, float((left / (time * busy + asked)).min())) if time + asked > 0 else 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            dearer = np.where(busy > 0, (left - scale * asked) / busy, np.inf).min()
            time = max(scale * time, float(dearer))
            time = time if np.isfinite(until) else min(time, 1 / gpus)
            price = time * program.area_gpu_s + scale * (memory * program.held(until) + place[:, None])
        worth = np.minimum(worth, np.where(program.alone_s < until, price, np.inf).min(axis=1))
    return float(worth.sum()) + batch * program.batches, worth
