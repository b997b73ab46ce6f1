"""The fleet as a mixed-integer problem, after Melange (arXiv 2404.14527), with prices, periods, limits and failures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perfmodel.terms import Array
from solvers.backend import Solution, solve
from solvers.fleet_case import ON_DEMAND, PURCHASES, RESERVED, Case, Integers

NOISE = 2e-9
"""A class that keeps less than this part of an instance busy counts as this much, which HiGHS still sees; a smaller
share of a stream is rounding [1]."""


@dataclass(frozen=True)
class Fleet:
    """What is rented and which requests go where.

    Parameters
    ----------
    instances : array of int, (P, 3, H)
        Of each pool by way to rent and period, as in `solvers.fleet_case.Case`.
    reserved : array of int, (A,)
        Accelerators rented for the whole day.
    share : array, (I, P, H)
        Of each stream [1].
    """

    instances: Integers
    reserved: Integers
    share: Array

    def held(self, case: Case) -> Integers:
        """Return the accelerators of each kind that are rented in each period, of shape (A, H)."""
        found = np.repeat(self.reserved[:, None], case.periods, axis=1)
        by_period = self.instances[:, ON_DEMAND:].sum(axis=1) * case.pool_size[:, None]
        np.add.at(found, case.pool_accelerator, by_period)
        return found

    def bought(self, case: Case) -> Integers:
        """Return the accelerators of each kind by way to rent and period, of shape (A, 3, H)."""
        found = np.zeros((len(case.accelerators), len(PURCHASES), case.periods), dtype=np.int64)
        np.add.at(found, case.pool_accelerator, self.instances * case.pool_size[:, None, None])
        found[:, RESERVED] = self.reserved[:, None]
        return found

    def cost(self, case: Case) -> Array:
        """Return what each kind costs by way to rent, of shape (A, 3), as the mean of the day [USD/h]."""
        bought = self.bought(case) @ case.weight
        return np.where(bought > 0, np.where(bought > 0, case.price, 0.0) * bought, 0.0)

    def capacity(self, case: Case) -> Array:
        """Return the instances of each pool that are counted on, of shape (P, H), before any of them is lost."""
        return np.asarray(np.einsum("pkh,pk->ph", self.instances, case.counted))


@dataclass(frozen=True)
class Limit:
    """A limit that may be raised.

    Parameters
    ----------
    kind : str
        ``max``: accelerators of a kind; ``power``: of a site [W].
    index : int
        Kind or site.
    value : float
        The limit.
    """

    kind: str
    index: int
    value: float

    def name(self, case: Case) -> str:
        """Call the limit by what it is of."""
        return f"{self.kind}[{(case.accelerators if self.kind == 'max' else case.sites)[self.index]}]"

    @property
    def unit(self) -> str:
        """Unit of the limit."""
        return "accelerators" if self.kind == "max" else "W"


def whole_shares(share: Array) -> Array:
    """Make the shares of each stream add up to one; those that do so but for rounding stay as they are.

    Parameters
    ----------
    share : array, (I, P, ...)
        Of each stream [1].
    """
    share = np.where(share < NOISE, 0.0, share)
    total = share.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(share, total, out=share.copy(), where=(total > 0) & (abs(total - 1) > 1e-12)))


def limits(case: Case) -> list[Limit]:
    """List the limits of a case that may be raised."""
    found = [Limit("max", one, float(most)) for one, most in enumerate(case.most) if math.isfinite(most)]
    return found + [
        Limit("power", one, float(most)) for one, most in enumerate(case.site_power_w) if math.isfinite(most)
    ]


@dataclass
class Model:
    """A problem of PuLP with the variables and rows that are asked for afterwards.

    Parameters
    ----------
    case : Case
        The fleet to choose.
    problem : pulp.LpProblem
        Minimises the cost [USD/h].
    share, instances, reserved, held : dict
        Variables by stream, pool and period; pool, purchase and period; kind; kind and period.
    unit : dict
        Share of a stream that one of its variable stands for [1].
    capacity : dict
        Rows by pool and period [instances].
    limit : dict
        Rows by limit and period.
    """

    case: Case
    problem: Any
    share: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    unit: dict[tuple[int, int, int], float] = field(default_factory=dict)
    instances: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    reserved: dict[int, Any] = field(default_factory=dict)
    held: dict[tuple[int, int], Any] = field(default_factory=dict)
    capacity: dict[tuple[int, int], Any] = field(default_factory=dict)
    limit: dict[tuple[Limit, int], Any] = field(default_factory=dict)
    excess: dict[Limit, Any] = field(default_factory=dict)

    def solve(self, *, gap: float = 0.0, time_limit_s: float | None = None) -> Solution:
        """Solve it."""
        rows = {f"capacity {p} {h}": row for (p, h), row in self.capacity.items()}
        rows |= {f"{one.kind} {one.index} {h}": row for (one, h), row in self.limit.items()}
        return solve(self.problem, gap=gap, time_limit_s=time_limit_s, constraints=rows)

    def fleet(self, solution: Solution) -> Fleet:
        """Read the fleet out of the values of the variables."""
        case, values = self.case, solution.values
        instances = np.zeros((len(case.pool_size), len(PURCHASES), case.periods))
        share = np.zeros((*case.throughput.shape, case.periods))
        for key, variable in self.instances.items():
            instances[key] = values.get(variable.name, 0.0)
        for key, variable in self.share.items():
            share[key] = values.get(variable.name, 0.0) * self.unit[key]
        share = whole_shares(share)
        reserved = np.zeros(len(case.accelerators))
        for one, variable in self.reserved.items():
            reserved[one] = values.get(variable.name, 0.0)
        return Fleet(np.rint(instances).astype(np.int64), np.rint(reserved).astype(np.int64), share)


def build(case: Case, *, relaxed: bool = False, raised: tuple[Limit, ...] = (), routed: Array | None = None) -> Model:
    """Write a case as a problem.

    Parameters
    ----------
    case : Case
        The fleet to choose; every stream with a rate has a possible pool.
    relaxed : bool
        Whether whole numbers may be broken: the linear relaxation.
    raised : tuple of Limit
        Limits that may be exceeded. The problem then minimises the excess, as a share of each limit, not the cost.
    routed : array, (I, P, H)
        Shares that are given, not a number where they are free.

    Returns
    -------
    Model
        The problem.

    Notes
    -----
    Slices of a stream are alike, so that their number on each pool is one variable (``n_ig``) in place of one binary
    for each slice: the same problem as Melange's, without its symmetry.
    """
    import pulp

    model = Model(case, pulp.LpProblem("fleet", pulp.LpMinimize))
    whole = pulp.LpContinuous if relaxed else pulp.LpInteger
    problem, parts = model.problem, case.slices or 1
    offered = np.isfinite(case.price)
    for one in range(len(case.accelerators)):
        if offered[one, RESERVED]:
            model.reserved[one] = problem.add_variable(f"r_{one}", 0, None, whole)
        for h in range(case.periods):
            model.held[one, h] = problem.add_variable(f"t_{one}_{h}", 0, None, whole)
    for pool, one in enumerate(case.pool_accelerator):
        for way in range(len(PURCHASES)):
            if offered[one, way]:
                for h in range(case.periods):
                    model.instances[pool, way, h] = problem.add_variable(f"y_{pool}_{way}_{h}", 0, None, whole)
    kind = whole if case.slices else pulp.LpContinuous
    for stream, pool in np.argwhere(case.possible):
        for h in range(case.periods):
            if case.rate[stream, h] > 0:
                key = (int(stream), int(pool), h)
                unit = model.unit[key] = _unit(case, *key)
                given = None if routed is None or np.isnan(routed[key]) else float(routed[key]) / unit
                low, high, form = (0, 1 / unit, kind) if given is None else (given, given, pulp.LpContinuous)
                model.share[key] = problem.add_variable(f"x_{key[0]}_{key[1]}_{h}", low, high, form)

    for stream in range(len(case.streams)):
        for h in range(case.periods):
            if case.rate[stream, h] > 0:
                keys = [(stream, p, h) for p in range(len(case.pool_size)) if (stream, p, h) in model.share]
                there = [parts * model.unit[key] * model.share[key] for key in keys]
                problem += pulp.lpSum(there) == parts, f"demand_{stream}_{h}"
    used = _used(model, whole)
    for pool in range(len(case.pool_size)):
        for h in range(case.periods):
            _capacity(model, pool, h, used.get((pool, h)))
    for one in range(len(case.accelerators)):
        for h in range(case.periods):
            _holdings(model, one, h)
    _limits(model, raised)
    _latencies(model, whole)
    problem.setObjective(
        pulp.lpSum(variable / max(limit.value, 1.0) for limit, variable in model.excess.items())
        if raised
        else _cost(model)
    )
    return model


def _unit(case: Case, stream: int, pool: int, h: int) -> float:
    """Return the share of a stream that one of its variable stands for.

    A slice; without slices what one instance sustains, so that rows hold numbers around one however unequal throughputs
    are, but no more than a hundred times the stream.
    """
    if case.slices:
        return 1.0 / case.slices
    return min(1.0 / _busy(case, stream, pool, h), 100.0)


def _busy(case: Case, stream: int, pool: int, h: int) -> float:
    """Return the instances of a pool that a whole stream takes, what has to stay free included."""
    share = case.utilisation_max[case.pool_accelerator[pool]]
    return float(case.rate[stream, h] / case.throughput[stream, pool] / share)


def _used(model: Model, whole: str) -> dict[tuple[int, int], Any]:
    """Return whether a pool is used at all, which costs the instances that it may lose."""
    case, found = model.case, {}
    if case.lost:
        for (stream, pool, h), variable in model.share.items():
            share = variable * model.unit[stream, pool, h]
            if (pool, h) not in found:
                found[pool, h] = model.problem.add_variable(f"z_{pool}_{h}", 0, 1, whole)
            model.problem += share <= found[pool, h], f"used_{stream}_{pool}_{h}"
    return found


def _capacity(model: Model, pool: int, h: int, used: Any) -> None:
    import pulp

    case = model.case
    room = [case.counted[pool, way] * model.instances[pool, way, h] for way in _ways(model, pool, h)]
    load = []
    for stream in range(len(case.streams)):
        key = (stream, pool, h)
        if key in model.share:
            load.append(max(_busy(case, *key) * model.unit[key], NOISE) * model.share[key])
    if load:
        lost = case.lost * used if used is not None else 0
        model.capacity[pool, h] = pulp.lpSum(load) - pulp.lpSum(room) + lost <= 0
        model.problem += model.capacity[pool, h], f"capacity_{pool}_{h}"


def _ways(model: Model, pool: int, h: int) -> list[int]:
    return [way for way in range(len(PURCHASES)) if (pool, way, h) in model.instances]


def _holdings(model: Model, one: int, h: int) -> None:
    """Count the accelerators that are rented, and those of them that are reserved and in use."""
    import pulp

    case = model.case
    pools = [int(pool) for pool in np.flatnonzero(case.pool_accelerator == one)]

    def count(ways: tuple[int, ...]) -> Any:
        keys = [(pool, way, h) for pool in pools for way in ways if (pool, way, h) in model.instances]
        return pulp.lpSum(int(case.pool_size[key[0]]) * model.instances[key] for key in keys)

    rented = count(tuple(range(ON_DEMAND, len(PURCHASES))))
    if one in model.reserved:
        rented += model.reserved[one]
        model.problem += count((RESERVED,)) <= model.reserved[one], f"reserved_{one}_{h}"
    model.problem += model.held[one, h] == rented, f"held_{one}_{h}"


def _limits(model: Model, raised: tuple[Limit, ...]) -> None:
    import pulp

    case = model.case
    for limit in limits(case):
        weight = np.where(case.site == limit.index, case.power_w, 0.0) if limit.kind == "power" else None
        over = model.problem.add_variable(f"e_{limit.kind}_{limit.index}", 0) if limit in raised else None
        if over is not None:
            model.excess[limit] = over
        for h in range(case.periods):
            if weight is None:
                taken = model.held[limit.index, h] * 1.0
            else:
                taken = pulp.lpSum(weight[one] * model.held[one, h] for one in map(int, np.flatnonzero(weight)))
            row = taken - (over if over is not None else 0) <= limit.value
            model.limit[limit, h] = row
            model.problem += row, f"{limit.kind}_{limit.index}_{h}"


def _latencies(model: Model, whole: str) -> None:
    """Keep every path of a graph within its time, whichever of the pools in use its calls meet."""
    import pulp

    case, problem, able = model.case, model.problem, model.case.possible
    slowest = np.where(able, case.latency_s, 0.0).max(axis=1, initial=0.0)
    for number, graph in enumerate(case.graphs):
        always = graph.longest_s(slowest).max() <= graph.latency_s
        if always and all(sum(slowest[one] for one in path) <= limit_s for path, limit_s in graph.paths):
            continue
        for h in range(case.periods):
            if not all(case.rate[call, h] > 0 for call in graph.calls):
                continue
            takes, ends = {}, {}
            for call, before in zip(graph.calls, graph.before, strict=True):
                takes[call] = problem.add_variable(f"l_{call}_{h}", 0)
                ends[call] = problem.add_variable(f"f_{call}_{h}", 0, graph.latency_s)
                for pool in map(int, np.flatnonzero(able[call])):
                    goes = problem.add_variable(f"u_{call}_{pool}_{h}", 0, 1, whole)
                    share = model.share[call, pool, h] * model.unit[call, pool, h]
                    problem += share <= goes, f"goes_{call}_{pool}_{h}"
                    problem += takes[call] >= float(case.latency_s[call, pool]) * goes, f"takes_{call}_{pool}_{h}"
                problem += ends[call] >= takes[call], f"ends_{call}_{h}"
                for one in before:
                    problem += ends[call] >= ends[one] + takes[call], f"after_{one}_{call}_{h}"
            for place, (path, limit_s) in enumerate(graph.paths):
                problem += pulp.lpSum(takes[one] for one in path) <= limit_s, f"path_{number}_{place}_{h}"


def _cost(model: Model) -> Any:
    import pulp

    case = model.case
    terms = [float(case.price[one, RESERVED]) * variable for one, variable in model.reserved.items()]
    for (pool, way, h), variable in model.instances.items():
        if way != RESERVED:
            one = case.pool_accelerator[pool]
            terms.append(float(case.weight[h] * case.pool_size[pool] * case.price[one, way]) * variable)
    return pulp.lpSum(terms)
