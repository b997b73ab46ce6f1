"""The linear relaxation of how many servers fit: what no placement beats, and what limits are worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.terms import Array
from solvers.backend import solve
from solvers.power_case import Booleans, Case, Integers
from solvers.power_rules import Rule

_ROUNDS = 40
"""Rounds of cuts; any number leaves a valid bound."""
_TOLERANCE = 1e-7
MOST_INTEGERS = 400
"""Numbers of servers, by rack and workload, up to which all are decided at once, and nodes that differ stay apart."""
_LIKENESS = (0.02, 0.05, 0.1, 0.2, 0.5, 10.0)
"""Relative differences of limits over slots below which nodes count as alike; the first that leaves few enough."""
_MOST_POOLS = 250
_GRAINS = 2**15
"""Parts of a rack's limit to which the sums of whole servers are told apart."""


@dataclass(frozen=True)
class Cut:
    """A limit that all allowed numbers of servers meet.

    Parameters
    ----------
    rule, pool : int
        Which rule, and which nodes.
    each_w : array, shape (workloads,)
        Watts of one server [W].
    limit_w : float
        What they may add up to at each node of the pool [W].
    """

    rule: int
    pool: int
    each_w: Array
    limit_w: float


@dataclass(frozen=True)
class Relaxed:
    """The optimum of the relaxation.

    Parameters
    ----------
    value : float
        Objective that no placement beats.
    counts : array, shape (workloads,)
        Servers of each workload, not whole.
    pool : array of int, shape (nodes,)
        Pool of each node: nodes that are alike, or nearly where there are many.
    by_pool : array, shape (pools, workloads)
        Servers below all nodes of each pool.
    shadow : dict of (int, int) to float
        Rule and pool -> objective for one more watt at each node of the pool [1/W].
    missing_w : dict of (int, int) to float
        Rule and pool -> watts by which each node's limit is exceeded [W]; all zero unless servers that are needed do
        not fit.
    cuts : tuple of Cut
        Limits that it was found with.
    """

    value: float
    counts: Array
    pool: Integers
    by_pool: Array
    shadow: dict[tuple[int, int], float]
    missing_w: dict[tuple[int, int], float]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class _Pools:
    """Nodes that are alike, or nearly, as one.

    Parameters
    ----------
    of : array of int, shape (nodes,)
        Pool of each node.
    first, size, parent : array of int, shape (pools,)
        One of its nodes, how many they are, and the pool that supplies it.
    slots : array of int, shape (pools,)
        Servers that all its racks have room for; 0 but for racks.
    limit_w, most_w : array, shape (rules, pools)
        Mean and largest limit of its nodes [W].
    alike : array of bool, shape (pools,)
        Whether its nodes are exactly so.
    """

    of: Integers
    first: Integers
    size: Integers
    parent: Integers
    slots: Integers
    limit_w: Array
    most_w: Array
    alike: Booleans


def _pooled(case: Case, rules: Sequence[Rule]) -> _Pools:
    """Return as few pools as differ little enough: racks by their limits over their slots."""
    site = case.site
    of = site.pool
    if site.fits[site.racks].sum() > MOST_INTEGERS:
        for grain in _LIKENESS:
            if of.max() < _MOST_POOLS:
                break
            of = site.pool_of(grain)
    _, first, size = np.unique(of, return_index=True, return_counts=True)
    above = site.parent[first]
    parent = np.where(above >= 0, of[above], -1)
    slots = np.bincount(of, site.slots).astype(np.int64)
    limit_w = np.array([np.bincount(of, rule.limit_w) / size for rule in rules])
    most_w, alike = np.zeros_like(limit_w), np.full(len(first), True)
    for number, rule in enumerate(rules):
        np.maximum.at(most_w[number], of, rule.limit_w)
        np.logical_and.at(alike, of, rule.limit_w == rule.limit_w[first][of])
    np.logical_and.at(alike, of, site.slots == site.slots[first][of])
    return _Pools(of, first, size, parent, slots, limit_w, most_w, alike)


def relax(
    case: Case, rules: Sequence[Rule], until: float, *, exact: Integers | None = None, elastic: bool = False
) -> Relaxed | None:
    """Solve the relaxation.

    Parameters
    ----------
    case : Case
        The question.
    rules : sequence of Rule
        What every node has to meet.
    until : float
        When to stop adding cuts, on `time.perf_counter` [s].
    exact : array of int, shape (workloads,)
        Servers of each workload, if they are given.
    elastic : bool
        Whether limits may be exceeded: then the watts that are missing in all are least.

    Returns
    -------
    Relaxed or None
        None if servers that are needed do not fit.

    Notes
    -----
    Nodes that are alike are one with the mean of their servers: cuts are linear, so that the mean of allowed numbers
    meets them. They are added where they are not met until none is; those of racks stop at the most that whole servers
    add up to. Where there are many nodes, those that are nearly alike are one too, with the mean of their limits: a cut
    at the largest of these limits holds for all of them.
    """
    pools = _pooled(case, rules)
    cuts: list[Cut] = []
    found = None
    for _ in range(_ROUNDS):
        answer = _solve(case, rules, pools, cuts, exact, elastic)
        if answer is None:
            return None
        found = answer
        added = False
        average = found.by_pool / pools.size[:, None]
        busy = np.flatnonzero(average.sum(axis=1) > 0)
        for number, rule in enumerate(rules):
            limits = pools.limit_w[number, busy] + np.array(
                [found.missing_w.get((number, pool), 0.0) for pool in busy.tolist()]
            )
            largest = np.maximum(limits, pools.most_w[number, busy])
            coefficients = rule.safe_cuts(average[busy], largest)
            for place, pool in enumerate(busy.tolist()):
                cut = Cut(number, pool, coefficients[place], float(pools.limit_w[number, pool]))
                extra = float(limits[place]) - cut.limit_w
                slots = int(case.site.slots[pools.first[pool]])
                if slots and not extra and pools.alike[pool]:
                    cut = _whole(cut, slots)
                if cut.each_w @ average[pool] > (cut.limit_w + extra) * (1 + _TOLERANCE):
                    cuts.append(cut)
                    added = True
        if not added or time.perf_counter() > until:
            break
    return found


def _whole(cut: Cut, slots: int) -> Cut:
    """Return the cut of a rack with the most that whole servers add up to in place of its limit.

    Notes
    -----
    Watts are rounded down to grains of the limit, which only loosens the cut. The sums that so many servers reach are
    the bits of a number; one more server of a workload shifts it.
    """
    grain = cut.limit_w / _GRAINS
    each = np.floor(cut.each_w / grain * (1 + 1e-12)).clip(0).astype(int)
    shifts = {int(shift) for shift in each.tolist() if 0 < shift <= _GRAINS}
    mask = (1 << (_GRAINS + 1)) - 1
    sums = 1
    for _ in range(min(slots, _GRAINS // min(shifts, default=_GRAINS))):
        more = sums
        for shift in shifts:
            more |= sums << shift
        if more & mask == sums:
            break
        sums = more & mask
    return Cut(cut.rule, cut.pool, each * grain, (sums.bit_length() - 1) * grain)


def _solve(
    case: Case,
    rules: Sequence[Rule],
    pools: _Pools,
    cuts: Sequence[Cut],
    exact: Integers | None,
    elastic: bool,
) -> Relaxed | None:
    import pulp

    kinds = range(len(case.workloads))
    site = case.site
    problem = pulp.LpProblem("power", pulp.LpMaximize if case.sense == "max" and not elastic else pulp.LpMinimize)
    held: list[list[pulp.LpAffineExpression]] = [[pulp.LpAffineExpression() for _ in kinds] for _ in pools.first]
    racks: dict[tuple[int, int], pulp.LpVariable] = {}
    for pool, first in enumerate(pools.first.tolist()):
        if pools.slots[pool] == 0:
            continue
        for kind in kinds:
            if site.fits[first, kind]:
                racks[pool, kind] = problem.add_variable(f"n_{pool}_{kind}", 0)
        own = [racks[pool, kind] for kind in kinds if (pool, kind) in racks]
        if own:
            problem += pulp.lpSum(own) <= int(pools.slots[pool]), f"slots_{pool}"
    for (pool, kind), variable in racks.items():
        at = pool
        while at >= 0:
            held[at][kind] += variable
            at = int(pools.parent[at])
    total = held[0]
    if exact is not None:
        for kind in kinds:
            problem += total[kind] == int(exact[kind]), f"exact_{kind}"
    else:
        for kind in kinds:
            if case.least[kind] > 0:
                problem += total[kind] >= int(case.least[kind]), f"least_{kind}"
            if case.most[kind] < site.slots.sum():
                problem += total[kind] <= int(case.most[kind]), f"most_{kind}"
        if case.share is not None:
            every = pulp.lpSum(total)
            for kind in kinds[1:]:
                problem += total[kind] == float(case.share[kind]) * every, f"share_{kind}"
    over: dict[tuple[int, int], pulp.LpVariable] = {}
    for number, cut in enumerate(cuts):
        size, key = float(pools.size[cut.pool]), (cut.rule, cut.pool)
        load = pulp.lpSum(
            float(watts) / 1e3 * have for watts, have in zip(cut.each_w, held[cut.pool], strict=True) if have
        )
        if elastic and key not in over:
            over[key] = problem.add_variable(f"over_{cut.rule}_{cut.pool}", 0)
        problem += load <= size * cut.limit_w / 1e3 + (size * over[key] if elastic else 0), f"cut_{number}"
    if elastic:
        problem += pulp.lpSum(float(pools.size[pool]) * slack for (_, pool), slack in over.items())
    else:
        problem += pulp.lpSum(float(case.value[kind]) * total[kind] for kind in kinds)
    answer = solve(problem)
    if answer.status == "infeasible":
        return None
    values = answer.values
    by_pool = np.zeros((len(pools.first), len(case.workloads)))
    for (pool, kind), variable in racks.items():
        at = pool
        while at >= 0:
            by_pool[at, kind] += values.get(variable.name, 0.0)
            at = int(pools.parent[at])
    shadow: dict[tuple[int, int], float] = {}
    for number, cut in enumerate(cuts):
        dual = (answer.duals or {}).get(f"cut_{number}", 0.0)
        if dual:
            key = (cut.rule, cut.pool)
            shadow[key] = shadow.get(key, 0.0) + dual * float(pools.size[cut.pool]) / 1e3
    missing = {key: 1e3 * values.get(slack.name, 0.0) for key, slack in over.items()}
    return Relaxed(answer.objective or 0.0, by_pool[0], pools.of, by_pool, shadow, missing, tuple(cuts))
