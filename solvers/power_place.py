"""Whole servers in racks: from the relaxation down, then up again as far as every node allows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from perfmodel.terms import Array
from solvers.power_case import Booleans, Case, Integers
from solvers.power_relaxed import Relaxed
from solvers.power_rules import Rule

_HALVINGS = 24
_CHUNK = 64
"""Racks that are looked at together for room."""


def allowed(case: Case, rules: Sequence[Rule], placed: Integers) -> Booleans:
    """Tell for every node whether the servers below it meet all rules.

    Parameters
    ----------
    case : Case
        The question.
    rules : sequence of Rule
        What every node has to meet.
    placed : array of int, shape (racks, workloads)
        Servers in each rack.
    """
    totals, nodes = case.site.totals(placed), np.arange(len(case.site.name))
    return np.asarray(np.logical_and.reduce([rule.allows(totals, nodes) for rule in rules]))


def place(
    case: Case, rules: Sequence[Rule], relaxed: Relaxed, until: float = math.inf, most: int | None = None
) -> Integers:
    """Return whole servers in racks, near the relaxation's.

    Parameters
    ----------
    case : Case
        The question.
    rules : sequence of Rule
        What every node has to meet.
    relaxed : Relaxed
        The optimum of the relaxation.
    until : float
        When to stop adding servers, on `time.perf_counter` [s].
    most : int
        Servers to stop at, with shares; those of the relaxation if left out.

    Returns
    -------
    array of int, shape (racks, workloads)
        Servers in each rack; with shares, as many of each workload as their sum is divided into.
    """
    racks = relaxed.pool[case.site.racks]
    room = case.site.limit_w[case.site.racks]
    average = relaxed.by_pool[racks] * (room / np.bincount(racks, room)[racks])[:, None]
    placed = _rounded_down(case, rules, average)
    if case.share is None:
        order = np.argsort(-case.value / np.maximum(case.quantile_w, 1e-9), kind="stable")
        goals = [case.least, np.floor(relaxed.counts + 1e-6).astype(np.int64), case.most]
        for goal in goals if case.sense == "max" else goals[:1]:
            for kind in order.tolist():
                placed, _ = filled(case, rules, placed, kind, int(goal[kind] - placed[:, kind].sum()))
        return placed
    most = int(relaxed.counts.sum() + 1e-6) if most is None else most
    servers = _whole_shares(case, placed)
    step = max(1, (most - servers + 3) // 4)
    while step and servers < most and time.perf_counter() < until:
        step = min(step, most - servers)
        tried = towards(case, rules, placed, case.apportioned(servers + step))
        if tried is None:
            step //= 2
            continue
        placed, servers = tried, servers + step
    return trimmed(placed, case.apportioned(servers))


def towards(case: Case, rules: Sequence[Rule], placed: Integers, goal: Integers) -> Integers | None:
    """Return a placement with so many servers of each workload at least, grown from another; None if it does not."""
    if (goal > case.most).any():
        return None
    for kind in np.argsort(-case.max_w, kind="stable").tolist():
        missing = int(goal[kind] - placed[:, kind].sum())
        placed, added = filled(case, rules, placed, kind, missing)
        if added < missing:
            return None
    return placed


def _whole_shares(case: Case, placed: Integers) -> int:
    """Return the most servers whose shares do not exceed those placed."""
    counts = placed.sum(axis=0)
    low, high = 0, int(counts.sum())
    while low < high:
        middle = (low + high + 1) // 2
        if (case.apportioned(middle) <= counts).all():
            low = middle
        else:
            high = middle - 1
    return low


def trimmed(placed: Integers, goal: Integers) -> Integers:
    """Return a placement without the servers beyond a goal, taken from the last racks."""
    placed = placed.copy()
    for kind, surplus in enumerate((placed.sum(axis=0) - goal).tolist()):
        for rack in range(len(placed) - 1, -1, -1):
            if surplus <= 0:
                break
            taken = min(surplus, int(placed[rack, kind]))
            placed[rack, kind] -= taken
            surplus -= taken
    return placed


def _rounded_down(case: Case, rules: Sequence[Rule], average: Array) -> Integers:
    """Return the largest parts of the relaxation that are allowed once they are rounded down.

    A part is first found for each rack on its own, then one of these for all together.
    """
    racks, slots = case.site.racks, case.site.slots[case.site.racks]

    def alone(whole: Integers) -> Booleans:
        fits = np.logical_and.reduce([rule.allows(whole, racks) for rule in rules])
        return np.asarray(fits & (whole.sum(axis=1) <= slots))

    def together(whole: Integers) -> Booleans:
        return np.full(len(racks), allowed(case, rules, whole).all())

    for fits in (alone, together):
        low, high = np.zeros(len(racks)), np.ones(len(racks))
        good = fits(_floored(average, high))
        low[good] = 1.0
        for _ in range(0 if good.all() else _HALVINGS):
            middle = (low + high) / 2
            good = fits(_floored(average, middle))
            low, high = np.where(good, middle, low), np.where(good, high, middle)
        average = average * low[:, None]
    return _floored(average, np.ones(len(racks)))


def _floored(average: Array, part: Array) -> Integers:
    return np.asarray(np.floor(average * part[:, None] + 1e-6).astype(np.int64))


def filled(case: Case, rules: Sequence[Rule], placed: Integers, kind: int, wanted: int) -> tuple[Integers, int]:
    """Add servers of one workload wherever every node allows it.

    Parameters
    ----------
    case, rules
        As of `place`.
    placed : array of int, shape (racks, workloads)
        Servers in each rack.
    kind : int
        The workload.
    wanted : int
        Servers to add at most.

    Returns
    -------
    tuple of array and int
        The new placement and how many were added: as many as fit beside those that stand, since what fits below a
        node is the lesser of its own room and the sum of its children's.
    """
    if wanted <= 0:
        return placed, 0
    site = case.site
    totals = site.totals(placed)
    free = np.where(site.fits[site.racks, kind], site.slots[site.racks] - placed.sum(axis=1), 0)
    most = np.zeros(len(site.name), np.int64)
    most[site.racks] = free
    for node in range(len(most) - 1, 0, -1):
        most[site.parent[node]] += most[node]
    most = np.minimum(most, wanted)
    above = np.flatnonzero((most > 0) & (site.slots == 0))
    most[above] = _headroom(case, rules, totals, kind, above, most[above])
    racks = site.racks[most[site.racks] > 0]
    chunk = max(_CHUNK, 4 * wanted)
    given, tried = np.zeros_like(most), np.zeros(0, np.int64)
    for at in range(0, len(racks), chunk):
        some = racks[at : at + chunk]
        most[some] = _headroom(case, rules, totals, kind, some, most[some])
        tried = np.concatenate([tried, some])
        given = _shared_out(case, most, tried, wanted)
        if given[0] == wanted:
            break
    placed = placed.copy()
    placed[:, kind] += given[site.racks]
    return placed, int(given[0])


def _shared_out(case: Case, most: Integers, racks: Integers, wanted: int) -> Integers:
    """Return the servers to add below every node, as many as may be, in proportion to the room of its parts.

    Parameters
    ----------
    case : Case
        The question.
    most : array of int, shape (nodes,)
        Servers that each node takes on its own.
    racks : array of int
        Racks that may take some.
    wanted : int
        Servers to add at most.
    """
    site = case.site
    room = np.zeros_like(most)
    room[racks] = most[racks]
    for node in range(len(room) - 1, -1, -1):
        if site.slots[node] == 0:
            room[node] = min(room[node], most[node])
        if node:
            room[site.parent[node]] += room[node]
    given = np.zeros_like(room)
    given[0] = min(room[0], wanted)
    for node in np.flatnonzero(site.slots == 0).tolist():
        if given[node]:
            below = site.children[node]
            part = room[below] * given[node] // max(int(room[below].sum()), 1)
            left = int(given[node] - part.sum())
            part[np.flatnonzero(room[below] > part)[:left]] += 1
            given[below] = part
    return given


def _headroom(
    case: Case, rules: Sequence[Rule], totals: Integers, kind: int, nodes: Integers, most: Integers
) -> Integers:
    """Return how many servers of a workload each node takes beside those below it, on its own."""
    low, high = np.zeros(len(nodes), np.int64), most.copy()
    while True:
        unsure = np.flatnonzero(low < high)
        if not len(unsure):
            return low
        middle = (low[unsure] + high[unsure] + 1) // 2
        counts = totals[nodes[unsure]].copy()
        counts[:, kind] += middle
        fits = np.logical_and.reduce([rule.allows(counts, nodes[unsure]) for rule in rules])
        low[unsure] = np.where(fits, middle, low[unsure])
        high[unsure] = np.where(fits, high[unsure], middle - 1)
