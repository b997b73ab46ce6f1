"""Whole servers in every rack at once, where there are few: what the relaxation and its rounding leave open."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from perfmodel.terms import Array
from solvers.backend import OPTIMAL_GAP, solve
from solvers.power_case import Case, Integers
from solvers.power_place import allowed
from solvers.power_relaxed import MOST_INTEGERS as MOST_INTEGERS
from solvers.power_relaxed import Cut
from solvers.power_rules import Rule

_TOLERANCE = 1e-9


def closer(
    case: Case, rules: Sequence[Rule], cuts: Sequence[Cut], until: float, exact: Integers | None = None
) -> tuple[Integers | None, float | None]:
    """Find the best whole servers in every rack by an integer programme.

    Parameters
    ----------
    case : Case
        The question.
    rules : sequence of Rule
        What every node has to meet.
    cuts : sequence of Cut
        Limits that all allowed numbers meet, to begin with.
    until : float
        When to stop, on `time.perf_counter` [s].
    exact : array of int, shape (workloads,)
        Servers of each workload, if they are given: any placement does then.

    Returns
    -------
    tuple of array or None, and float or None
        Servers in each rack, None if none was found; what no placement beats, None if there is none at all.

    Notes
    -----
    Every answer is held against the rules themselves. Where it breaks one, the rule's cut there is added, or, where
    that is met, the disjunction that some workload has fewer servers there: rules rise with every server as long as no
    correlation is negative.
    """
    model = _Model(case, exact)
    for cut in cuts:
        model.add(cut.pool, cut.each_w, cut.limit_w)
    bound = np.inf if case.sense == "max" else -np.inf
    while (left := until - time.perf_counter()) > 0:
        found = solve(model.problem, time_limit_s=left)
        if found.status == "infeasible":
            return None, None
        if found.best_bound is not None:
            bound = found.best_bound
        if not found.values:
            break
        placed = model.placed(found.values)
        broken = np.flatnonzero(~allowed(case, rules, placed))
        if not len(broken):
            return placed, bound
        if not model.forbid(rules, case.site.totals(placed), broken):
            break
        if (found.gap or 0.0) > OPTIMAL_GAP:
            break
    return None, float(bound)


class _Model:
    """The integer programme, and limits that are added to it."""

    def __init__(self, case: Case, exact: Integers | None) -> None:
        import pulp

        self.case, self.pulp = case, pulp
        site = case.site
        self.problem: Any = pulp.LpProblem("racks", pulp.LpMaximize if case.sense == "max" else pulp.LpMinimize)
        self.servers: dict[tuple[int, int], Any] = {}
        self.below: list[list[int]] = [site.above[node].indices.tolist() for node in range(len(site.name))]
        self.rows = 0
        for rack, node in enumerate(site.racks.tolist()):
            for kind in range(len(case.workloads)):
                if site.fits[node, kind]:
                    most = int(site.slots[node])
                    self.servers[rack, kind] = self.problem.add_variable(
                        f"n_{rack}_{kind}", 0, most, cat=pulp.LpInteger
                    )
            self.problem += self._sum(node, np.ones(len(case.workloads))) <= int(site.slots[node]), f"slots_{rack}"
        for kind in range(len(case.workloads)):
            total = self._total(0, kind)
            if exact is not None:
                self.problem += total == int(exact[kind]), f"exact_{kind}"
                continue
            self.problem += total >= int(case.least[kind]), f"least_{kind}"
            self.problem += total <= int(case.most[kind]), f"most_{kind}"
        self.problem += self._sum(0, case.value if exact is None else np.zeros(len(case.workloads)))
        weight = case.quantile_w / case.quantile_w.max()
        racks = site.racks.tolist()
        for one, other in itertools.pairwise(racks):  # neighbours that are alike, in one order only
            if site.pool[one] == site.pool[other] and site.parent[one] == site.parent[other]:
                self._row(self._sum(one, weight) - self._sum(other, weight) >= 0)

    def _row(self, row: Any) -> None:
        self.rows += 1
        self.problem += row, f"row_{self.rows}"

    def _sum(self, node: int, each: Array) -> Any:
        """Return the sum over servers below a node of what each counts."""
        racks, kinds = self.below[node], range(len(each))
        terms = [
            float(each[k]) * self.servers[r, k] for r in racks for k in kinds if (r, k) in self.servers and each[k]
        ]
        return self.pulp.lpSum(terms)

    def _total(self, node: int, kind: int) -> Any:
        each = np.zeros(len(self.case.workloads))
        each[kind] = 1.0
        return self._sum(node, each)

    def add(self, pool: int, each_w: Array, limit_w: float) -> None:
        """Add a limit at every node of a pool."""
        for node in np.flatnonzero(self.case.site.pool == pool).tolist():
            self._row(self._sum(node, each_w / 1e3) <= limit_w / 1e3)

    def placed(self, values: Any) -> Integers:
        """Return the servers in each rack of a solution."""
        found = np.zeros((len(self.case.site.racks), len(self.case.workloads)), np.int64)
        for (rack, kind), variable in self.servers.items():
            found[rack, kind] = round(values.get(variable.name, 0.0))
        return found

    def forbid(self, rules: Sequence[Rule], totals: Integers, broken: Integers) -> bool:
        """Forbid numbers of servers that break a rule; False if that cannot be said."""
        site = self.case.site
        for node in broken.tolist():
            pool, counts = int(site.pool[node]), totals[node].astype(float)
            cut = False
            for rule in rules:
                each = rule.safe_cuts(counts[None], rule.limit_w[[node]])[0]
                if each @ counts > rule.limit_w[node] * (1 + _TOLERANCE):
                    self.add(pool, each, float(rule.limit_w[node]))
                    cut = True
            if cut:
                continue
            if (self.case.correlation < 0).any():
                return False
            for alike in np.flatnonzero(site.pool == pool).tolist():
                self._fewer(alike, totals[node])
        return True

    def _fewer(self, node: int, counts: Integers) -> None:
        """Ask for fewer servers of some workload below a node than these, of which there is one at least."""
        room = int(self.case.site.slots[self.case.site.racks][self.below[node]].sum())
        choices = []
        for kind in np.flatnonzero(counts).tolist():
            self.rows += 1
            choice = self.problem.add_variable(f"fewer_{self.rows}", cat=self.pulp.LpBinary)
            below = int(counts[kind]) - 1
            self._row(self._total(node, kind) + (room - below) * choice <= room)
            choices.append(choice)
        self._row(self.pulp.lpSum(choices) >= 1)
