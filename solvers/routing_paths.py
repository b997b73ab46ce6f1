"""Whole flows on given paths of any network: packed one by one, improved by moves, or proved by integers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from perfmodel.terms import Array
from solvers.routing_lp import Candidates, Division, Integers, divided, load_of

_TOLERANCE = 1e-9
"""Relative difference of times that is taken for rounding [1]."""
_MOST_MOVES = 5_000
_MOST_COLUMNS = 20_000
"""Size of a linear program whose corner is worth a try [1]."""
_PROOF_S = 10.0
"""Wall time of an integer program where no limit is set [s]."""
_MOST_VARIABLES = 3_000
"""Size of an integer program that is worth a try [1]."""


class _Loads:
    """Time of every link under a choice of paths, kept up to date."""

    def __init__(self, demand: Integers, flow_bytes: Array, candidates: Candidates) -> None:
        self.size = flow_bytes
        self.links = candidates.links
        self.per_byte = np.append(1 / candidates.rate, 0.0)  # the last one fills short paths
        first = np.searchsorted(candidates.demand, np.arange(candidates.demand.max(initial=-1) + 2))
        self.begin, self.end = first[demand], first[demand + 1]
        self.seconds = np.zeros(len(self.per_byte))

    def put(self, flow: int, path: int, sign: float = 1.0) -> None:
        links = self.links[path]
        np.add.at(self.seconds, links, sign * self.size[flow] * self.per_byte[links])

    def best(self, flow: int) -> tuple[int, float]:
        """Find the path on which a flow makes the slowest link least slow; of equals, the emptiest."""
        links = self.links[self.begin[flow] : self.end[flow]]
        after = self.seconds[links] + self.size[flow] * self.per_byte[links]
        worst = after.max(axis=1)
        path = int(np.argmin(worst + 1e-6 * after.mean(axis=1)))
        return int(self.begin[flow]) + path, float(worst[path])


def packed(demand: Integers, flow_bytes: Array, candidates: Candidates) -> Integers:
    """Put flows on paths one by one, the largest first, each where the slowest link on its way stays fastest.

    Parameters
    ----------
    demand : array of int
        Demand that each flow belongs to [1].
    flow_bytes : array
        Size of each flow [bytes].
    candidates : Candidates
        The paths, ordered by demand.

    Returns
    -------
    array of int
        Path of each flow [1].
    """
    loads = _Loads(demand, flow_bytes, candidates)
    choice = np.empty(len(demand), dtype=np.int64)
    for flow in np.argsort(-flow_bytes, kind="stable").tolist():
        choice[flow], _ = loads.best(flow)
        loads.put(flow, int(choice[flow]))
    return choice


def improved(
    demand: Integers,
    flow_bytes: Array,
    candidates: Candidates,
    choice: Integers,
    enough_s: float,
    deadline: float | None = None,
) -> Integers:
    """Move flows off the slowest link as long as that helps.

    Parameters
    ----------
    demand, flow_bytes, candidates
        As for `packed`.
    choice : array of int
        Path of each flow [1].
    enough_s : float
        Time that nothing can beat [s].
    deadline : float, optional
        Value of the clock at which to stop [s].

    Returns
    -------
    array of int
        Path of each flow [1]; never slower than before.
    """
    loads = _Loads(demand, flow_bytes, candidates)
    choice = choice.copy()
    on_link: list[set[int]] = [set() for _ in loads.per_byte]
    for flow, path in enumerate(choice.tolist()):
        loads.put(flow, path)
        for link in loads.links[path].tolist():
            on_link[link].add(flow)
    for _ in range(_MOST_MOVES):
        slow = int(np.argmax(loads.seconds))
        now = loads.seconds[slow]
        if now <= enough_s * (1 + _TOLERANCE) or (deadline is not None and time.perf_counter() > deadline):
            break
        for flow in sorted(on_link[slow], key=lambda flow: (-flow_bytes[flow], flow)):
            old = int(choice[flow])
            loads.put(flow, old, -1.0)
            new, after = loads.best(flow)
            if after < now * (1 - _TOLERANCE):
                loads.put(flow, new)
                for link in loads.links[old].tolist():
                    on_link[link].discard(flow)
                for link in loads.links[new].tolist():
                    on_link[link].add(flow)
                choice[flow] = new
                break
            loads.put(flow, old)
        else:
            break
    return choice


def proved(
    demand: Integers,
    flow_bytes: Array,
    candidates: Candidates,
    start_s: float,
    bound_s: float,
    time_limit_s: float,
    gap: float,
) -> tuple[Integers | None, float]:
    """Look for better single paths with an integer program, if it is small.

    Parameters
    ----------
    demand, flow_bytes, candidates
        As for `packed`.
    start_s : float
        Time of the routing known so far [s].
    bound_s : float
        Time that nothing can beat [s].
    time_limit_s : float
        Wall time after which to stop [s].
    gap : float
        Relative gap at which to stop [1].

    Returns
    -------
    tuple of array of int or None, and float
        Path of each flow, None if nothing better was found; time that nothing over these paths beats [s].

    Notes
    -----
    min t: sum_p n[k,p] = flows of kind k, sum b_k n[k,p] <= t u_l over the paths through link l, n integer. Equal flows
    of a demand are one kind: the program grows with kinds, not with flows.
    """
    import pulp

    from solvers.backend import solve

    kind, which, many = np.unique(
        np.stack([demand.astype(float), flow_bytes], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    which = which.reshape(-1)
    first = np.searchsorted(candidates.demand, np.arange(candidates.demand.max(initial=-1) + 2))
    owner = kind[:, 0].astype(np.int64)
    paths = [range(int(first[k]), int(first[k + 1])) for k in owner]
    if sum(map(len, paths)) > _MOST_VARIABLES:
        return None, bound_s
    problem = pulp.LpProblem("whole_flows", pulp.LpMinimize)
    slowest = problem.add_variable("t", bound_s / start_s, 1.0)
    problem += slowest
    uses: dict[int, list[tuple[pulp.LpVariable, float]]] = {}
    count: list[dict[int, pulp.LpVariable]] = []
    for number, (choices, total) in enumerate(zip(paths, many.tolist(), strict=True)):
        one = {path: problem.add_variable(f"n{number}_{path}", 0, total, pulp.LpInteger) for path in choices}
        count.append(one)
        problem += pulp.lpSum(one.values()) == total
        for path, variable in one.items():
            for link in candidates.links[path].tolist():
                if link < len(candidates.rate):
                    seconds = kind[number, 1] / candidates.rate[link]
                    uses.setdefault(link, []).append((variable, seconds / start_s))
    for link, terms in uses.items():
        row = pulp.LpAffineExpression([*((v, c) for v, c in terms if c > 1e-8), (slowest, -1.0)])
        problem += pulp.LpConstraint(row, pulp.LpConstraintLE, f"link_{link}", 0)
    solution = solve(problem, time_limit_s=time_limit_s, gap=gap)
    if solution.status == "infeasible":  # within rounding, the routing known is the best
        return None, start_s
    bound = bound_s if solution.best_bound is None else max(bound_s, solution.best_bound * start_s * (1 - 1e-7))
    if not solution.values:
        return None, bound
    choice = np.empty(len(demand), dtype=np.int64)
    for number, one in enumerate(count):
        members = np.flatnonzero(which == number)
        taken = [path for path, variable in one.items() for _ in range(round(solution.values[variable.name]))]
        choice[members] = taken
    return choice, bound


@dataclass(frozen=True)
class Routing:
    """Flows on paths, whole or in parts.

    Parameters
    ----------
    flow, path : array of int
        A flow and a path that carries it, or a part of it [1]; ordered by flow.
    share : array
        The part [1]; those of a flow add up to one.
    """

    flow: Integers
    path: Integers
    share: Array

    @property
    def split_flows(self) -> int:
        """Flows that are in parts."""
        return int(np.sum(np.bincount(self.flow) > 1))


def whole(choice: Integers) -> Routing:
    """Return the routing that keeps every flow on the path chosen for it."""
    return Routing(np.arange(len(choice)), choice, np.ones(len(choice)))


def split_all(demand: Integers, candidates: Candidates, share: Array) -> Routing:
    """Return the routing that divides every flow as its demand is divided.

    Parameters
    ----------
    demand : array of int
        Demand that each flow belongs to [1].
    candidates : Candidates
        The paths, ordered by demand.
    share : array
        Share of its demand that each path carries [1].
    """
    used = np.flatnonzero(share > 0)
    first = np.searchsorted(candidates.demand[used], np.arange(int(demand.max(initial=-1)) + 2))
    many = (first[1:] - first[:-1])[demand]
    flow = np.repeat(np.arange(len(demand)), many)
    within = np.arange(len(flow)) - np.repeat(np.cumsum(many) - many, many)
    path = used[first[demand[flow]] + within]
    return Routing(flow, path, share[path])


def single_paths(
    demand: Integers,
    flow_bytes: Array,
    candidates: Candidates,
    bound_s: float,
    floor_s: float,
    start: Integers | None,
    deadline: float | None,
    gap: float,
) -> tuple[Integers, float]:
    """Put every flow on one path: pack, improve, and prove where the question is small.

    Parameters
    ----------
    demand, flow_bytes, candidates
        As for `packed`.
    bound_s : float
        Time that nothing can beat [s].
    floor_s : float
        Time that is spent anyway, so that none below it counts [s].
    start : array of int, optional
        Paths known so far [1].
    deadline : float, optional
        Value of the clock at which to stop [s].
    gap : float
        Relative gap at which to stop [1].

    Returns
    -------
    tuple of array of int and float
        Path of each flow; time that no single paths among the candidates beat [s].
    """
    fastest = np.zeros(int(candidates.demand.max()) + 1)
    rate = np.append(candidates.rate, np.inf)[np.minimum(candidates.links, len(candidates.rate))]
    np.maximum.at(fastest, candidates.demand, rate.min(axis=1))
    bound = max(bound_s, float(np.max(flow_bytes / fastest[demand])))
    choice = packed(demand, flow_bytes, candidates) if start is None else start
    choice = improved(demand, flow_bytes, candidates, choice, max(bound, floor_s), deadline)
    reached = _slowest(flow_bytes, candidates, choice)
    if reached > max(bound, floor_s) * (1 + _TOLERANCE):
        left = _PROOF_S if deadline is None else max(0.1, deadline - time.perf_counter())
        better, bound = proved(demand, flow_bytes, candidates, reached, bound, left, gap)
        if better is not None and _slowest(flow_bytes, candidates, better) < reached:
            choice = better
    return choice, min(bound, _slowest(flow_bytes, candidates, choice))


def _slowest(flow_bytes: Array, candidates: Candidates, choice: Integers) -> float:
    on_path = np.bincount(choice, flow_bytes, len(candidates.demand))
    return float(np.max(load_of(candidates, on_path) / candidates.rate))


def few_parts(
    demand: Integers,
    flow_bytes: Array,
    candidates: Candidates,
    choice: Integers,
    division: Division,
    time_s: float,
    deadline: float | None,
) -> Routing:
    """Split few flows so that a time is reached: the better of single paths loosened and a division filled.

    Parameters
    ----------
    demand, flow_bytes, candidates, choice, division, time_s, deadline
        As for `loosened`.

    Returns
    -------
    Routing
        Whole flows and split ones.
    """
    routing = loosened(demand, flow_bytes, candidates, choice, division, time_s, deadline)
    late = deadline is not None and time.perf_counter() > deadline
    if len(candidates.demand) <= _MOST_COLUMNS and not late:
        corner = divided(np.bincount(demand, flow_bytes), candidates)
        if corner is not None and corner.time_s <= time_s * (1 + _TOLERANCE):
            routing = min(
                routing, filled(demand, flow_bytes, candidates, corner.share), key=lambda one: one.split_flows
            )
    return routing


def loosened(
    demand: Integers,
    flow_bytes: Array,
    candidates: Candidates,
    choice: Integers,
    division: Division,
    time_s: float,
    deadline: float | None = None,
) -> Routing:
    """Split flows of a routing on single paths, few, until it is as fast as one that may split all.

    Parameters
    ----------
    demand, flow_bytes, candidates
        As for `packed`.
    choice : array of int
        Path of each flow [1].
    division : Division
        How the traffic is divided at best; a flow that is split is divided as its demand is.
    time_s : float
        Time to reach, at least that of the division [s].
    deadline : float, optional
        Value of the clock at which to give up and split all [s].

    Returns
    -------
    Routing
        Whole flows and split ones.
    """
    loads = _Loads(demand, flow_bytes, candidates)
    choice = choice.copy()
    on_link: list[set[int]] = [set() for _ in loads.per_byte]
    for flow, path in enumerate(choice.tolist()):
        loads.put(flow, path)
        for link in loads.links[path].tolist():
            on_link[link].add(flow)

    def change(flow: int) -> tuple[Array, Array]:
        """Links a flow would change if it were split, and by how many seconds."""
        paths = slice(int(loads.begin[flow]), int(loads.end[flow]))
        share = division.share[paths]
        links = loads.links[paths][share > 0]
        added = np.repeat(share[share > 0] * flow_bytes[flow], links.shape[1]) * loads.per_byte[links.reshape(-1)]
        own = loads.links[choice[flow]]
        return (
            np.concatenate([links.reshape(-1), own]),
            np.concatenate([added, -flow_bytes[flow] * loads.per_byte[own]]),
        )

    target = time_s * (1 + _TOLERANCE)
    while True:
        slow = int(np.argmax(loads.seconds))
        excess = loads.seconds[slow] - target
        still = [flow for flow in on_link[slow] if choice[flow] >= 0]
        if excess <= 0 or not still:
            break
        if deadline is not None and time.perf_counter() > deadline:
            choice[:] = -1
            break
        gains = []
        for flow in sorted(still)[:64]:
            links, seconds = change(flow)
            gain = -float(seconds[links == slow].sum())
            others = float(np.sum(np.clip(loads.seconds[loads.links[choice[flow]]] - target, 0, None)))
            # enough if possible, and then the one that helps most other links
            gains.append((min(gain, excess), others, -flow, flow))
        gain, _, _, flow = max(gains)
        if gain <= 0:
            break
        links, seconds = change(flow)
        np.add.at(loads.seconds, links, seconds)
        choice[flow] = -1
    kept = choice >= 0
    parts = split_all(demand, candidates, division.share)
    split = ~kept[parts.flow]
    flows = np.concatenate([np.flatnonzero(kept), parts.flow[split]])
    order = np.argsort(flows, kind="stable")
    return Routing(
        flows[order],
        np.concatenate([choice[kept], parts.path[split]])[order],
        np.concatenate([np.ones(int(kept.sum())), parts.share[split]])[order],
    )


def filled(demand: Integers, flow_bytes: Array, candidates: Candidates, share: Array) -> Routing:
    """Fill the paths of a division one after the other with flows; those on a border are split.

    Parameters
    ----------
    demand, flow_bytes, candidates
        As for `packed`.
    share : array
        Share of its demand that each path carries [1].

    Returns
    -------
    Routing
        Whole flows and split ones; the load is exactly that of the division.

    Notes
    -----
    A demand on q paths splits at most q - 1 flows. In a basic solution of the LP the demands have together no more
    paths than there are demands and links in full use.
    """
    first = np.searchsorted(candidates.demand, np.arange(int(candidates.demand.max(initial=-1)) + 2))
    flows: list[Integers] = []
    paths: list[Integers] = []
    shares: list[Array] = []
    for number in np.unique(demand).tolist():
        mine = np.flatnonzero(demand == number)
        mine = mine[np.argsort(-flow_bytes[mine], kind="stable")]
        used = np.arange(first[number], first[number + 1])
        used = used[share[used] > 0]
        ends = np.cumsum(flow_bytes[mine]) / flow_bytes[mine].sum()
        borders = np.cumsum(share[used]) / share[used].sum()
        begins, starts = np.append(0.0, ends[:-1]), np.append(0.0, borders[:-1])
        overlap = np.minimum(ends[:, None], borders) - np.maximum(begins[:, None], starts)
        overlap /= (ends - begins)[:, None]
        overlap[overlap < _TOLERANCE] = 0.0
        overlap /= overlap.sum(axis=1, keepdims=True)
        row, column = np.nonzero(overlap)
        flows.append(mine[row])
        paths.append(used[column])
        shares.append(overlap[row, column])
    flow = np.concatenate(flows)
    order = np.argsort(flow, kind="stable")
    return Routing(flow[order], np.concatenate(paths)[order], np.concatenate(shares)[order])
