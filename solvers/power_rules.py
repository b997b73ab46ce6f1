"""Rules for what servers below a node draw, and linear limits that every allowed number of servers meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.power.risk import (
    chance_load_w,
    exceeded_steps,
    fits_below,
    hoeffding_quantile,
    nameplate_load_w,
    normal_quantile,
    series_load_w,
    variance_parts,
)
from perfmodel.terms import Array
from solvers.power_case import Booleans, Case, Integers

_ROUNDS = 60
"""Steps of the fixed point of the largest variance of servers on their own; it converges linearly."""
_ROWS = 256
"""Nodes whose series are summed at once."""


@dataclass(frozen=True)
class Rule:
    """What servers below a node are taken to draw, in normal operation or after the loss of a feed.

    Parameters
    ----------
    load_w : callable
        Counts, shape (nodes, workloads) -> watts by the rule alone, shape (nodes,).
    cuts : callable
        Counts and limits, shapes (nodes, workloads) and (nodes,) -> coefficients c, shape (nodes, workloads): counts n
        that the rule allows meet c.n <= limit, and c is as large as can be where these counts are.
    max_w : array, shape (workloads,)
        Nameplates [W].
    limit_w : array, shape (nodes,)
        Limits of all nodes of the site [W].
    meets : callable
        Counts and limits -> whether the rule's watts meet them, where that is quicker than the watts.
    """

    load_w: Callable[[Array], Array]
    cuts: Callable[[Array, Array], Array]
    max_w: Array
    limit_w: Array
    meets: Callable[[Array, Array], Booleans] | None = None

    def safe_load_w(self, counts: Array) -> Array:
        """Return the lesser of the rule's watts and the nameplates', which are never exceeded [W]."""
        counts = np.asarray(counts)
        parts = [self.load_w(counts[at : at + _ROWS]) for at in range(0, len(counts), _ROWS)]
        by_rule = np.concatenate(parts) if parts else np.zeros(0)
        return np.asarray(np.minimum(by_rule, nameplate_load_w(counts, self.max_w)))

    def allows(self, counts: Array, nodes: Integers) -> Booleans:
        """Tell for each of the nodes whether servers below it meet its limit."""
        limits = self.limit_w[nodes]
        found = np.asarray(fits_below(nameplate_load_w(counts, self.max_w), limits), bool)
        open_ = np.flatnonzero(~found)
        for at in range(0, len(open_), _ROWS):
            rows = open_[at : at + _ROWS]
            if self.meets is not None:
                found[rows] = self.meets(counts[rows], limits[rows])
            else:
                found[rows] = fits_below(self.load_w(counts[rows]), limits[rows])
        return found

    def safe_cuts(self, counts: Array, limit_w: Array) -> Array:
        """Return coefficients that allow all that the rule or the nameplates allow."""
        return np.asarray(np.minimum(self.cuts(counts, limit_w), self.max_w))


def rules_of(case: Case, method: str) -> tuple[Rule, ...]:
    """Return the rules that every node has to meet: in normal operation, and after a failure if that is asked for."""
    found = [_rule(case, method, case.site.limit_w)]
    if case.failover:
        found.append(_rule(_after_failure(case), method, case.site.failover_w))
    return tuple(found)


def rule_by_nameplate(rule: Rule) -> Rule:
    """Return the rule of nameplates for the same limits."""
    return _linear(rule.max_w, rule.max_w, rule.limit_w)


def _after_failure(case: Case) -> Case:
    """Return the case with servers capped or stopped: one whose cap is below its mean draws the cap."""
    most = case.failover_w
    return replace(
        case,
        max_w=np.minimum(case.max_w, most),
        idle_w=np.minimum(case.idle_w, most),
        mean_w=np.minimum(case.mean_w, most),
        sigma_w=np.where(most < case.mean_w, 0.0, case.sigma_w),
        profile_w=np.minimum(case.profile_w, most[:, None]),
        quantile_w=np.minimum(case.quantile_w, most),
    )


def _rule(case: Case, method: str, limit_w: Array) -> Rule:
    if method == "nameplate":
        return _linear(case.max_w, case.max_w, limit_w)
    if method == "percentile":
        return _linear(case.quantile_w, case.max_w, limit_w)
    if method == "packing":
        return _packing(case, limit_w)
    if method == "gaussian":
        return _chance(case, limit_w, case.sigma_w, normal_quantile(case.risk))
    ranges = np.broadcast_to(case.max_w - case.idle_w, case.mean_w.shape)
    return _chance(case, limit_w, ranges, hoeffding_quantile(case.risk))


def _alike(counts: Array, row: Array) -> Array:
    return np.broadcast_to(row, np.shape(counts))


def _linear(each_w: Array, max_w: Array, limit_w: Array) -> Rule:
    return Rule(lambda n: nameplate_load_w(n, each_w), lambda n, _: _alike(n, each_w), max_w, limit_w)


def _packing(case: Case, limit_w: Array) -> Rule:
    """Return the rule of summed series.

    Notes
    -----
    Of the steps that servers draw most in, one more than may lie above the limit, one at least meets it: the least
    power of each workload over these steps makes a limit that all allowed counts meet.
    """
    profile = case.profile_w
    beyond = exceeded_steps(profile.shape[1], case.risk)

    def cuts(counts: Array, _: Array) -> Array:
        total = np.asarray(counts, float) @ profile
        top = np.argpartition(total, -1 - beyond, axis=1)[:, -1 - beyond :]
        return np.asarray(profile[:, top].min(axis=2).T)

    def meets(counts: Array, limits: Array) -> Booleans:
        above = np.asarray(counts, float) @ profile > (limits * (1 + 1e-9))[:, None]
        return np.asarray(np.count_nonzero(above, axis=1) <= beyond, bool)

    return Rule(lambda n: series_load_w(n, profile, case.risk), cuts, case.max_w, limit_w, meets)


def _chance(case: Case, limit_w: Array, spread_w: Array, quantile: float) -> Rule:
    """Return a rule of means and deviations, at the worst hour of the day.

    Notes
    -----
    With w = sum of n_k (1 - rho_kk) s_k^2, the variance of servers on their own, at most W below a limit, the root of
    w + n'Qn is at least that of w^2/W + n'Qn, which is convex: its tangents through 0 are the cuts. W is the fixed
    point of W = max over kinds of a_k L / (m_k + q a_k / sqrt(W)), since m.n + q w / sqrt(W) <= L.
    """
    hours = range(len(case.mean_w))
    parts = [variance_parts(spread_w[hour], case.correlation) for hour in hours]

    def loads(counts: Array) -> Array:
        return np.stack(
            [chance_load_w(counts, case.mean_w[h], spread_w[h], case.correlation, quantile) for h in hours], axis=-1
        )

    def cuts(counts: Array, limits: Array) -> Array:
        n = np.asarray(counts, float)
        worst = loads(n).argmax(axis=1)
        found = np.empty(n.shape)
        for row, hour in enumerate(worst):
            own, shared = parts[hour]
            found[row] = _tangent(n[row], case.mean_w[hour], own, shared, quantile, float(limits[row]))
        return found

    return Rule(lambda n: np.asarray(loads(n).max(axis=-1)), cuts, case.max_w, limit_w)


def _tangent(n: Array, mean: Array, own: Array, shared: Array, quantile: float, limit: float) -> Array:
    alone = own > 0
    largest = limit * float(np.max(own[alone] / mean[alone], initial=0.0))
    for _ in range(_ROUNDS if largest > 0 else 0):
        largest = limit * float(np.max(own[alone] / (mean + quantile * own / np.sqrt(largest))[alone]))
    matrix: Any = shared + (np.outer(own, own) / largest if largest > 0 else 0.0)
    deviation = float(np.sqrt(max(n @ matrix @ n, 0.0)))
    if deviation == 0.0:
        return mean
    return np.asarray(mean + quantile * (matrix @ n) / deviation)
