"""How many groups of every size unequal sequences want, and which sequences in which size.

Groups of one size are pooled (`FlexSP <https://arxiv.org/abs/2412.01523>`_'s formulation, aggregated): whole numbers
of groups, shares of sequences, time and memory of all groups of a size together. A starting point for plans, no proof.
"""

from __future__ import annotations

import numpy as np

from perfmodel.terms import Array
from solvers.backend import apart_from_stdout
from solvers.sequence_case import Case, Integers
from solvers.sequence_fill import Filled, eligible
from solvers.sequence_layout import Free

_ALONE, _BUCKETS = 40, 60
"""Longest sequences kept apart, and buckets of equal work for all others."""

_NODES = 200
"""Nodes after which the solver gives what it has."""

_FEW, _SEATED = 4, 60
"""Groups of a size up to which each stands for itself, and the longest sequences that go to one of them whole."""

_WORTH = 0.25
"""Part of the accelerators that such groups have at least, for it to matter how they are filled [1]."""

_LEAST = -0.05
"""Where groups end before their limit by so much, no better is looked for [1]."""


def pooled_groups(case: Case, limit_s: float, time_share: float, room_share: float, group_cost: float) -> Filled | None:
    """Return groups that hold all sequences within a limit if those of one size were one.

    Parameters
    ----------
    case : Case
        Sequences and costs.
    limit_s : float
        When every group has to end [s].
    time_share, room_share : float
        Share of the groups' time and memory to use [1].
    group_cost : float
        What a group costs beside its accelerators: few large groups leave less to chance [GPUs].

    Returns
    -------
    Filled or None
        Groups, in which the sequences are spread evenly; None where they do not suffice.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    order = np.argsort(-case.lengths, kind="stable")
    degrees, columns = case.degrees, len(case.degrees)
    bucket = _buckets(case.lengths[order].astype(float))
    number = int(bucket[-1]) + 1
    allowed = np.ones((number, columns), dtype=bool)
    np.logical_and.at(allowed, bucket, eligible(case, limit_s)[order])
    if not allowed.any(axis=1).all():
        return None
    work = np.zeros((number, columns))
    np.add.at(work, bucket, np.where(np.isfinite(case.work_s), case.work_s, 0.0)[order])
    tokens = np.bincount(bucket, case.held[order])
    row, kind = np.nonzero(allowed)
    shares, every = len(row), np.arange(columns)
    where = np.concatenate([np.arange(shares), shares + every])
    whole = coo_matrix((np.ones(shares), (row, np.arange(shares))), shape=(number, shares + columns))
    usable = time_share * np.maximum(limit_s - case.fixed_s, 0.0) / limit_s
    busy = np.concatenate([work[row, kind] / limit_s, -usable])
    held = np.concatenate([tokens[row] / case.capacity_tokens, -room_share * degrees])
    place = (np.concatenate([kind, every]), where)
    shape = (columns, shares + columns)
    with apart_from_stdout():
        answer = milp(
            np.concatenate([np.zeros(shares), degrees + group_cost]),
            constraints=[
                LinearConstraint(whole, 1, 1),
                LinearConstraint(coo_matrix((busy, place), shape=shape), -np.inf, 0),
                LinearConstraint(coo_matrix((held, place), shape=shape), -np.inf, 0),
                LinearConstraint(np.concatenate([np.zeros(shares), degrees])[None, :], -np.inf, case.gpus),
            ],
            integrality=np.concatenate([np.zeros(shares), np.ones(columns)]),
            bounds=Bounds(0, np.concatenate([np.ones(shares), case.gpus // degrees])),
            options={"node_limit": _NODES, "mip_rel_gap": 1e-3},
        )
    if answer.x is None:
        return None
    share = np.zeros((number, columns))
    share[row, kind] = answer.x[:shares]
    count = np.round(answer.x[shares:]).astype(np.int64)
    column = _fitting(case, np.repeat(every, count))
    of_size = [np.flatnonzero(column == kind) for kind in range(columns)]
    return _spread(case, limit_s, column, of_size, order, _apportioned(share, bucket))


def _apportioned(share: Array, bucket: Integers) -> Integers:
    """Return where each sequence goes, such that those of a bucket go where its shares are."""
    rank = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
    size = np.bincount(bucket)[bucket]
    reached = np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True)
    return np.asarray((reached[bucket] < ((rank + 0.5) / size)[:, None]).sum(axis=1))


def seated_groups(case: Case, start: Filled, limit_s: float, time_limit_s: float) -> tuple[Filled, float] | None:
    """Spread sequences anew over groups: long ones, of which a large group holds few, leave no freedom there.

    Parameters
    ----------
    case : Case
        Sequences and costs.
    start : Filled
        The groups; who is in them does not matter.
    limit_s : float
        Sizes count on which a sequence ends by then [s].
    time_limit_s : float
        When the search ends with what there is [s].

    Returns
    -------
    Filled and float, or None
        Groups with their sequences, and by how much the fullest exceed the limit if those of a size with many groups
        were one [1]. None where nothing was found, or such groups are too small a part to matter.

    Notes
    -----
    Integer program: the longest sequences go whole to one of the groups of a size that has few, or to all groups of
    another size together; shares of all others. Least factor on the time of all groups.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    order = np.argsort(-case.lengths, kind="stable")
    bucket = _buckets(case.lengths[order].astype(float), _SEATED)
    number = int(bucket[-1]) + 1
    sizes, counts = np.unique(start.column, return_counts=True)
    if (case.degrees[sizes] * counts)[counts <= _FEW].sum() < _WORTH * case.gpus:
        return None
    kinds = np.concatenate(
        [np.full(count if count <= _FEW else 1, kind) for kind, count in zip(sizes, counts, strict=True)]
    )
    many = np.concatenate([np.full(count, 1) if count <= _FEW else [count] for count in counts]).astype(float)
    allowed = np.ones((number, len(kinds)), dtype=bool)
    np.logical_and.at(allowed, bucket, eligible(case, limit_s)[order][:, kinds])
    if not allowed.any(axis=1).all():
        return None
    work = np.zeros((number, len(kinds)))
    np.add.at(work, bucket, np.where(np.isfinite(case.work_s), case.work_s, 0.0)[order][:, kinds])
    tokens = np.bincount(bucket, case.held[order])
    row, seat = np.nonzero(allowed)
    shares, seats = len(row), np.arange(len(kinds))
    usable = many * (1 - case.fixed_s[kinds] / limit_s)
    where = np.concatenate([np.arange(shares), np.full(len(kinds), shares)])
    place = (np.concatenate([seat, seats]), where)
    busy = coo_matrix((np.concatenate([work[row, seat] / limit_s, -many]), place), shape=(len(kinds), shares + 1))
    width = (len(kinds), shares + 1)
    held = coo_matrix((tokens[row] / case.capacity_tokens, (seat, np.arange(shares))), shape=width)
    whole = coo_matrix((np.ones(shares), (row, np.arange(shares))), shape=(number, shares + 1))
    with apart_from_stdout():
        answer = milp(
            np.append(np.zeros(shares), 1.0),
            constraints=[
                LinearConstraint(whole, 1, 1),
                LinearConstraint(busy, -np.inf, usable),
                LinearConstraint(held, -np.inf, many * case.degrees[kinds]),
            ],
            integrality=np.append(row < min(_SEATED, number), False).astype(int),
            bounds=Bounds(np.append(np.zeros(shares), _LEAST), np.append(np.ones(shares), np.inf)),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.02},
        )
    if answer.x is None:
        return None
    share = np.zeros(allowed.shape)
    share[row, seat] = answer.x[:shares]
    wanted = _apportioned(share, bucket)
    column = np.repeat(kinds, many.astype(int))
    of_seat = np.split(np.arange(len(column)), np.cumsum(many.astype(int))[:-1])
    return _spread(case, limit_s, column, of_seat, order, wanted), float(answer.x[-1])


def _fitting(case: Case, column: Integers) -> Integers:
    """Return the groups with those that find no node split into what finds one."""
    if case.node_units is None:
        return column
    free, sizes = Free(case.gpus, case.node_units), case.degrees.tolist()
    fitting = []
    for kind in sorted(column.tolist(), reverse=True):
        left = sizes[kind]
        while (part := max((k for k, size in enumerate(sizes) if size <= left and free.fits(size)), default=-1)) >= 0:
            free.take(sizes[part])
            fitting.append(part)
            left -= sizes[part]
    return np.array(fitting, dtype=np.int64)


def _buckets(lengths: Array, alone: int = _ALONE) -> Integers:
    """Return the bucket of each sequence, longest first, so many of which are alone."""
    alone = min(alone, len(lengths))
    rest = np.cumsum(lengths[alone:])
    bucket = np.minimum((rest / rest[-1] * _BUCKETS).astype(np.int64), _BUCKETS - 1) if len(rest) else rest.astype(int)
    return np.unique(np.concatenate([np.arange(alone), alone + bucket]), return_inverse=True)[1]


def _spread(
    case: Case, limit_s: float, column: Integers, choices: list[Integers], order: Integers, wanted: Integers
) -> Filled:
    """Put each sequence on that group among its choices which has most left of what the sequence needs most."""
    group = np.full(len(order), -1, dtype=np.int64)
    time = case.fixed_s[column] / limit_s
    held = np.zeros(len(column))
    tokens, room = case.held, case.degrees[column] * case.capacity_tokens
    for sequence, choice in zip(order.tolist(), wanted.tolist(), strict=True):
        here = choices[choice]
        if not len(here):
            continue
        kind = column[here[0]]
        work = case.work_s[sequence, kind] / limit_s
        share = tokens[sequence] / room[here[0]]
        best = here[int((time[here] * work + held[here] * share).argmin())]
        time[best] += work
        held[best] += share
        group[sequence] = best
    return Filled(column, group)
