"""The fleet as a mixed-integer problem, after Melange (arXiv 2404.14527), with prices, periods, limits and failures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.backend import Solution, solve
from solvers.fleet_case import ON_DEMAND, PURCHASES, RESERVED, Case, Integers
from solvers.fleet_tails import conflict, late

NOISE = 2e-9
"""A class that keeps less than this part of an instance busy counts as this much, which HiGHS still sees; a smaller
share of a stream is rounding [1]."""
NONE = -1
"""The failure that is none."""


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
    failover : array, (P, I, P, H)
        The same after the loss of instances of each pool; empty in the first axis where none may fail.
    """

    instances: Integers
    reserved: Integers
    share: Array
    failover: Array

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


def whole_shares(share: Array, axis: int = 1) -> Array:
    """Make the shares of each stream add up to one; those that do so but for rounding stay as they are.

    Parameters
    ----------
    share : array, (I, P, ...)
        Of each stream [1].
    axis : int
        That of the pools.
    """
    share = np.where(share < NOISE, 0.0, share)
    total = share.sum(axis=axis, keepdims=True)
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
    relaxed : bool
        Whether whole numbers may be broken.
    own_spares : bool
        Whether every kind carries its own failures, so that nothing is rerouted: a quicker problem, and a dearer fleet.
    failures : tuple of int
        `NONE`, and each pool of which instances may fail.
    share, instances, reserved, held : dict
        Variables by failure, stream, pool and period; pool, purchase and period; kind; kind and period.
    unit : dict
        Share of a stream that one of its variable stands for, by stream, pool and period [1].
    goes : dict
        Whether a call of a graph meets a pool, as `share`.
    capacity : dict
        Rows by failure, pool and period [instances].
    limit : dict
        Rows by limit and period.
    excess : dict
        By how much limits are exceeded.
    forbidden : int
        Choices of pools along paths that are forbidden so far.
    """

    case: Case
    problem: Any
    relaxed: bool = False
    own_spares: bool = False
    failures: tuple[int, ...] = (NONE,)
    share: dict[tuple[int, int, int, int], Any] = field(default_factory=dict)
    unit: dict[tuple[int, int, int], float] = field(default_factory=dict)
    goes: dict[tuple[int, int, int, int], Any] = field(default_factory=dict)
    instances: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    reserved: dict[int, Any] = field(default_factory=dict)
    held: dict[tuple[int, int], Any] = field(default_factory=dict)
    capacity: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    limit: dict[tuple[Limit, int], Any] = field(default_factory=dict)
    excess: dict[Limit, Any] = field(default_factory=dict)
    forbidden: int = 0

    def solve(self, *, gap: float = 0.0, time_limit_s: float | None = None) -> Solution:
        """Solve it.

        Notes
        -----
        Percentiles of paths are no linear function of where calls go. Where a path of the answer is late, the choice of
        pools that makes it so is forbidden, with all that are at least as slow, and it is solved again: every answer on
        the way is a bound.
        """
        rows = {f"capacity {f} {p} {h}": row for (f, p, h), row in self.capacity.items()}
        rows |= {f"{one.kind} {one.index} {h}": row for (one, h), row in self.limit.items()}
        until = None if time_limit_s is None else time.perf_counter() + time_limit_s
        while True:
            left_s = None if until is None else max(until - time.perf_counter(), 0.0)
            found = solve(self.problem, gap=gap, time_limit_s=left_s, constraints=rows)
            if self.relaxed or found.objective is None or not self._forbid_late(found):
                return found
            if until is not None and time.perf_counter() > until:
                return replace(found, status="time_limit", objective=None, gap=None, values={})

    def _forbid_late(self, found: Solution) -> bool:
        """Forbid the choices of pools that make paths late; tell whether there were any."""
        import pulp

        case, conflicts = self.case, []
        for graph in case.graphs:
            if graph.level is None:
                continue
            for failure in self.failures:
                for h in range(case.periods):
                    met = {
                        call: [
                            pool
                            for pool in range(len(case.pool_size))
                            if (failure, call, pool, h) in self.share
                            and found.values.get(self.share[failure, call, pool, h].name, 0.0)
                            * self.unit[call, pool, h]
                            >= NOISE
                        ]
                        for call in graph.calls
                    }
                    for chosen, _, limit_s in late(case, graph, met):
                        one = conflict(case, graph, chosen, limit_s, case.possible)
                        if one not in conflicts:
                            conflicts.append(one)
        places = dict.fromkeys((failure, h) for failure, _, _, h in self.goes)
        for one in conflicts:
            self.forbidden += 1
            for failure, h in places:
                at = f"{self.forbidden}_{failure}_{h}"
                slow = {call: self.problem.add_variable(f"s_{at}_{call}", 0, 1) for call in one}
                for call, pools in one.items():
                    for pool in pools:
                        if (failure, call, pool, h) in self.goes:
                            meets = self.goes[failure, call, pool, h] <= slow[call]
                            self.problem += meets, f"meets_{at}_{call}_{pool}"
                self.problem += pulp.lpSum(slow.values()) <= len(slow) - 1, f"late_{at}"
        return bool(conflicts)

    def fleet(self, solution: Solution) -> Fleet:
        """Read the fleet out of the values of the variables."""
        case, values = self.case, solution.values
        pools = len(case.pool_size)
        instances = np.zeros((pools, len(PURCHASES), case.periods))
        for key, variable in self.instances.items():
            instances[key] = values.get(variable.name, 0.0)
        share = np.zeros((pools + 1, *case.throughput.shape, case.periods))
        for (failure, *rest), variable in self.share.items():
            share[failure, *rest] = values.get(variable.name, 0.0) * self.unit[rest[0], rest[1], rest[2]]
        share = whole_shares(share, axis=2)
        reserved = np.zeros(len(case.accelerators))
        for one, variable in self.reserved.items():
            reserved[one] = values.get(variable.name, 0.0)
        whole = np.rint(instances).astype(np.int64), np.rint(reserved).astype(np.int64)
        after = np.repeat(share[NONE:], pools, axis=0) if self.own_spares else share[:pools]
        return Fleet(*whole, share[NONE], after[: pools if case.lost else 0])


def build(
    case: Case,
    *,
    relaxed: bool = False,
    raised: tuple[Limit, ...] = (),
    routed: Array | None = None,
    own_spares: bool = False,
) -> Model:
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
    own_spares : bool
        Whether every kind has to carry its own failures.

    Returns
    -------
    Model
        The problem.

    Notes
    -----
    Slices of a stream are alike, so that their number on each pool is one variable (``n_ig``) in place of one binary
    for each slice: the same problem as Melange's, without its symmetry.

    Where instances may fail, every failure has a routing of its own, of all requests, over what is left; which is what
    the counts have to allow, whatever the routing without a failure is.
    """
    import pulp

    model = Model(case, pulp.LpProblem("fleet", pulp.LpMinimize), relaxed, own_spares)
    whole = pulp.LpContinuous if relaxed else pulp.LpInteger
    problem, able = model.problem, case.possible
    if case.lost and not own_spares:
        model.failures += tuple(int(pool) for pool in np.flatnonzero(able.any(axis=0)))
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
    for failure in model.failures:
        _routes(model, failure, able, whole, routed if failure == NONE else None)
    for one in range(len(case.accelerators)):
        for h in range(case.periods):
            _holdings(model, one, h)
    _limits(model, raised)
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


def _routes(model: Model, failure: int, able: NDArray[np.bool_], whole: str, routed: Array | None) -> None:
    """Send every stream somewhere, to pools that carry it: all of them, or with instances of one lost."""
    import pulp

    case, problem, parts = model.case, model.problem, model.case.slices or 1
    kind = whole if case.slices else pulp.LpContinuous
    for stream, pool in np.argwhere(able):
        for h in range(case.periods):
            if case.rate[stream, h] > 0:
                key = (int(stream), int(pool), h)
                unit = model.unit[key] = _unit(case, *key)
                given = None if routed is None or np.isnan(routed[key]) else float(routed[key]) / unit
                low, high, form = (0, 1 / unit, kind) if given is None else (given, given, pulp.LpContinuous)
                name = f"x_{failure}_{key[0]}_{key[1]}_{h}"
                model.share[failure, *key] = problem.add_variable(name, low, high, form)
    for stream in range(len(case.streams)):
        for h in range(case.periods):
            if case.rate[stream, h] > 0:
                pools = [p for p in range(len(case.pool_size)) if (failure, stream, p, h) in model.share]
                there = [parts * _share(model, failure, stream, p, h) for p in pools]
                problem += pulp.lpSum(there) == parts, f"demand_{failure}_{stream}_{h}"
    for pool in range(len(case.pool_size)):
        for h in range(case.periods):
            _capacity(model, failure, pool, h, whole)
    _latencies(model, failure, able, whole)


def _share(model: Model, failure: int, stream: int, pool: int, h: int) -> Any:
    return model.unit[stream, pool, h] * model.share[failure, stream, pool, h]


def _capacity(model: Model, failure: int, pool: int, h: int, whole: str) -> None:
    """Let a pool carry no more than what it has; after a failure of its own what is left, or nothing."""
    import pulp

    case, problem = model.case, model.problem
    streams = [stream for stream in range(len(case.streams)) if (failure, stream, pool, h) in model.share]
    if not streams:
        return
    load = [
        max(_busy(case, stream, pool, h) * model.unit[stream, pool, h], NOISE) * model.share[failure, stream, pool, h]
        for stream in streams
    ]
    room = [case.counted[pool, way] * model.instances[pool, way, h] for way in _ways(model, pool, h)]
    lost: Any = 0
    if failure == pool or (case.lost and model.own_spares):
        left = problem.add_variable(f"z_{pool}_{h}", 0, 1, whole)
        for stream in streams:
            problem += _share(model, failure, stream, pool, h) <= left, f"left_{stream}_{pool}_{h}"
        lost = case.lost * left
    model.capacity[failure, pool, h] = pulp.lpSum(load) - pulp.lpSum(room) + lost <= 0
    problem += model.capacity[failure, pool, h], f"capacity_{failure}_{pool}_{h}"


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


def _latencies(model: Model, failure: int, able: NDArray[np.bool_], whole: str) -> None:
    """Keep every path of a graph within its time, whichever of the pools in use its calls meet.

    Of a percentile the mean is kept within, which it is at least; `Model.solve` forbids what is late nevertheless.
    """
    import pulp

    case, problem = model.case, model.problem
    slowest = np.where(able, case.latency_s, 0.0).max(axis=1, initial=0.0)
    for number, graph in enumerate(case.graphs):
        always = graph.longest_s(slowest).max() <= graph.latency_s
        always &= all(sum(slowest[one] for one in path) <= limit_s for path, limit_s in graph.paths)
        if always and graph.level is None:
            continue
        for h in range(case.periods):
            if not all(case.rate[call, h] > 0 for call in graph.calls):
                continue
            at = f"{failure}_{h}"
            takes, ends = {}, {}
            for call, before in zip(graph.calls, graph.before, strict=True):
                takes[call] = problem.add_variable(f"l_{call}_{at}", 0)
                ends[call] = problem.add_variable(f"f_{call}_{at}", 0, graph.latency_s)
                for pool in map(int, np.flatnonzero(able[call])):
                    goes = model.goes[failure, call, pool, h] = problem.add_variable(
                        f"u_{call}_{pool}_{at}", 0, 1, whole
                    )
                    problem += _share(model, failure, call, pool, h) <= goes, f"goes_{call}_{pool}_{at}"
                    problem += takes[call] >= float(case.latency_s[call, pool]) * goes, f"takes_{call}_{pool}_{at}"
                problem += ends[call] >= takes[call], f"ends_{call}_{at}"
                for one in before:
                    problem += ends[call] >= ends[one] + takes[call], f"after_{one}_{call}_{at}"
            for place, (path, limit_s) in enumerate(graph.paths):
                problem += pulp.lpSum(takes[one] for one in path) <= limit_s, f"path_{number}_{place}_{at}"


def _cost(model: Model) -> Any:
    import pulp

    case = model.case
    terms = [float(case.price[one, RESERVED]) * variable for one, variable in model.reserved.items()]
    for (pool, way, h), variable in model.instances.items():
        if way != RESERVED:
            one = case.pool_accelerator[pool]
            terms.append(float(case.weight[h] * case.pool_size[pool] * case.price[one, way]) * variable)
    return pulp.lpSum(terms)
