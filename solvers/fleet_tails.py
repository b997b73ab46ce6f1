"""Percentiles of the time of a path of calls, and which accelerators its calls may meet together.

The times of the calls of a path are taken to be independent and their sum to be gamma distributed, with the sum of
their means and of their variances: exact for exponential times of one scale, and normal for many calls. Such
percentiles grow with both, as long as times spread by no more than their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array, Number

if TYPE_CHECKING:
    from solvers.fleet_case import Case, Graph

LEVELS: Mapping[str, float | None] = {"mean": None, "p90": 0.9, "p99": 0.99}
"""Share of the requests by name of the statistic."""

Met = dict[int, list[int]]
"""Pools that each call may meet."""
Together = tuple[tuple[int, int], ...]
"""Calls of a path, each with the pool that it meets."""
_EXACT = 1 + 1e-9
_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Standard deviations on top of the mean by which pools are compared [1]."""


def quantile_s(mean_s: Number, variance_s2: Number, level: float) -> Array:
    """Return a quantile of gamma distributed times [s].

    Parameters
    ----------
    mean_s, variance_s2 : array
        Mean [s] and variance [s^2].
    level : float
        Share of the times that are shorter [1].
    """
    from scipy.special import gammaincinv

    mean, variance = np.broadcast_arrays(np.asarray(mean_s, float), np.asarray(variance_s2, float))
    spread = np.isfinite(mean) & (variance > 1e-12 * mean**2)
    shape = np.divide(mean**2, variance, out=np.ones_like(mean), where=spread)
    scale = np.divide(variance, mean, out=np.zeros_like(mean), where=spread)
    return np.where(spread, gammaincinv(shape, level) * scale, mean)


def paths_of(graph: Graph) -> list[tuple[tuple[int, ...], float]]:
    """Return every path of a graph from a first to a last call, and those with limits of their own; with the limits."""
    before = dict(zip(graph.calls, graph.before, strict=True))
    waited_for = {one for some in graph.before for one in some}

    def to(call: int) -> list[tuple[int, ...]]:
        return [(*path, call) for one in before[call] for path in to(one)] or [(call,)]

    whole = [path for call in graph.calls if call not in waited_for for path in to(call)]
    return [(path, graph.latency_s) for path in whole] + list(graph.paths)


def late(case: Case, graph: Graph, met: Met) -> list[tuple[Together, float, float]]:
    """Return the paths that take too long on some pools that their calls may meet.

    Parameters
    ----------
    case, graph : Case, Graph
        Whose calls they are, with a `level`.
    met : dict of int to list of int
        Pools that each call may meet.

    Returns
    -------
    list
        For each path that may be late: the slowest pools of its calls, the percentile of its time there and the limit
        [s].

    Notes
    -----
    Of the choices of pools along a path those are followed that no other exceeds in both mean and variance.
    """
    slowest = [(*_slowest(case, graph, path, met), limit_s) for path, limit_s in paths_of(graph)]
    return [entry for entry in slowest if entry[1] > entry[2] * _EXACT]


def longest_s(case: Case, graph: Graph, share: Array) -> float:
    """Return the time of the longest path of a graph, as its limit is meant, at shares of shape (I, P, H) [s]."""
    if graph.level is None:
        slowest = np.where((share > 0).any(axis=2), case.latency_s, 0.0).max(axis=1)
        return float(graph.longest_s(slowest).max())
    met = {call: [int(pool) for pool in np.flatnonzero((share[call] > 0).any(axis=1))] for call in graph.calls}
    whole = paths_of(graph)[: -len(graph.paths) or None]
    return max(_slowest(case, graph, path, met)[1] for path, _ in whole)


def _slowest(case: Case, graph: Graph, path: tuple[int, ...], met: Met) -> tuple[Together, float]:
    """Return the slowest pools that the calls of a path may meet, and the percentile of its time there [s]."""
    assert graph.level is not None
    labels: list[tuple[float, float, Together]] = [(0.0, 0.0, ())]
    for call in path:
        more = [
            (
                mean + float(case.latency_s[call, pool]),
                variance + float(case.latency_std_s[call, pool]) ** 2,
                (*chosen, (call, pool)),
            )
            for mean, variance, chosen in labels
            for pool in met[call]
        ]
        labels = _largest(more)
    if not labels:  # a call that is not made
        return (), 0.0
    means, variances, _ = zip(*labels, strict=True)
    times = quantile_s(np.array(means), np.array(variances), graph.level)
    worst = int(times.argmax())
    return labels[worst][2], float(times[worst])


def _largest(labels: list[tuple[float, float, Together]]) -> list[tuple[float, float, Together]]:
    """Return those that no other exceeds in both mean and variance."""
    kept: list[tuple[float, float, Together]] = []
    for one in sorted(labels, key=lambda label: (-label[0], -label[1])):
        if not kept or one[1] > kept[-1][1]:
            kept.append(one)
    return kept


def conflict(case: Case, graph: Graph, chosen: Together, limit_s: float, able: NDArray[np.bool_]) -> Met:
    """Return which pools the calls of a late path must not meet all at once.

    Parameters
    ----------
    chosen : tuple of (int, int)
        Calls of the path with pools on which it is late.
    limit_s : float
        Its limit [s].
    able : array of bool, (I, P)
        Pools that can take a stream.

    Returns
    -------
    dict of int to list of int
        As few calls and as fast pools as are late still; each with all pools at least as slow.
    """
    assert graph.level is not None
    mean, variance = case.latency_s, case.latency_std_s**2
    part = {call: (float(mean[call, pool]), float(variance[call, pool])) for call, pool in chosen}

    def is_late() -> bool:
        sums = np.array(list(part.values())).sum(axis=0)
        return bool(quantile_s(sums[0], sums[1], graph.level or 0.0) > limit_s * _EXACT)

    for call, _ in chosen:
        kept = part[call]
        pools = np.flatnonzero(able[call])
        options = sorted((float(mean[call, pool]), float(variance[call, pool])) for pool in pools)
        least = (float(mean[call, pools].min()), float(variance[call, pools].min()))
        for option in (least, *options):
            if option[0] <= kept[0] and option[1] <= kept[1]:
                part[call] = option
                if is_late():
                    break
                part[call] = kept
    return {
        call: slow
        for call, (one, other) in part.items()
        if len(slow := _at_least(case, able, call, one, other)) < able[call].sum()
    }


def _at_least(case: Case, able: NDArray[np.bool_], call: int, mean_s: float, variance_s2: float) -> list[int]:
    slow = able[call] & (case.latency_s[call] >= mean_s) & (case.latency_std_s[call] ** 2 >= variance_s2)
    return [int(pool) for pool in np.flatnonzero(slow)]


def soon_enough(case: Case, graph: Graph, able: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which pools can take the calls of a graph where all others meet the fastest.

    Parameters
    ----------
    case, graph : Case, Graph
        Whose calls they are, with a `level`.
    able : array of bool, (I, P)
        Pools that can take a stream at all.
    """
    assert graph.level is not None
    found = able.copy()
    mean = np.where(able, case.latency_s, np.inf).min(axis=1, initial=np.inf)
    variance = np.where(able, case.latency_std_s**2, np.inf).min(axis=1, initial=np.inf)
    for path, limit_s in paths_of(graph):
        for call in path:
            others = [one for one in path if one != call]
            times = quantile_s(
                sum(mean[one] for one in others) + case.latency_s[call],
                sum(variance[one] for one in others) + case.latency_std_s[call] ** 2,
                graph.level,
            )
            found[call] &= times <= limit_s * _EXACT
    return found


def shortest_s(case: Case, graph: Graph, able: NDArray[np.bool_]) -> list[float]:
    """Return the percentile of the time of each of `paths_of`, with every call on one pool, as soon as may be [s].

    Notes
    -----
    Where some pools have the lesser mean and others the lesser spread, the sooner of a few weights of the two: times
    that are reached, not always the least.
    """
    assert graph.level is not None
    best: list[float] = []
    lateness = np.inf
    paths = paths_of(graph)
    for weight in _WEIGHTS:
        worth = np.where(able, case.latency_s + weight * case.latency_std_s, np.inf)
        pool = worth.argmin(axis=1)
        rows = np.arange(len(pool))
        mean = np.where(np.isfinite(worth[rows, pool]), case.latency_s[rows, pool], np.inf)
        variance = case.latency_std_s[rows, pool] ** 2
        times = [
            float(quantile_s(mean[list(path)].sum(), variance[list(path)].sum(), graph.level)) for path, _ in paths
        ]
        latest = max(time_s / limit_s for time_s, (_, limit_s) in zip(times, paths, strict=True))
        if not best or latest < lateness:
            best, lateness = times, latest
    return best
