"""Traffic that may be divided at will: the least time in which a network carries it, and what its links are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.backend import solve

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Paths that traffic may take.

    Parameters
    ----------
    demand : array of int
        Demand that each path serves [1]; every demand has a path.
    links : array of int
        Links of each path, of shape (paths, most links of a path); a number past the last link fills short rows [1].
    rate : array
        Rate of each link [B/s].
    """

    demand: Integers
    links: Integers
    rate: Array

    @property
    def entries(self) -> tuple[Integers, Integers]:
        """Path and link of every use of a link."""
        path, place = np.nonzero(self.links < len(self.rate))
        return path, self.links[path, place]


@dataclass(frozen=True)
class Division:
    """Traffic divided over paths.

    Parameters
    ----------
    share : array
        Share of its demand that each path carries [1].
    load : array
        Load of each link [bytes].
    time_s : float
        Time of the most loaded link [s].
    bound_s : float
        Time that no division over these paths can beat [s].
    weight : array
        Price of each link's rate [s/B]: ``sum(weight * rate) == 1``; a little more rate shortens the time by
        ``weight * time_s`` for each byte per second.
    """

    share: Array
    load: Array
    time_s: float
    bound_s: float
    weight: Array


def load_of(candidates: Candidates, path_bytes: Array) -> Array:
    """Return the load of each link when paths carry so many bytes [bytes]."""
    path, link = candidates.entries
    return np.bincount(link, path_bytes[path], len(candidates.rate))


def divided(demand_bytes: Array, candidates: Candidates, time_limit_s: float | None = None) -> Division | None:
    """Divide traffic over paths so that the most loaded link is done as soon as possible.

    Parameters
    ----------
    demand_bytes : array
        Size of each demand [bytes].
    candidates : Candidates
        The paths.
    time_limit_s : float, optional
        Wall time after which to stop [s].

    Returns
    -------
    Division or None
        The division; None if none was found in time.

    Notes
    -----
    Maximum concurrent flow over given paths: min t with sum_p x[k,p] = 1 (all of demand k) and sum_k D_k x[k,p] <= t
    u_l over the paths through link l. The prices w_l of the links are the duals of the latter, scaled to sum_l w_l u_l
    = 1. Whatever prices are, t >= sum_k D_k min_p sum_(l in p) w_l: the bound is computed from that and owes nothing to
    the solver's tolerances.
    """
    import pulp

    path, link = candidates.entries
    demands = len(demand_bytes)
    even = 1.0 / np.bincount(candidates.demand, minlength=demands)
    unit = float(np.max(load_of(candidates, (demand_bytes * even)[candidates.demand]) / candidates.rate))
    problem = pulp.LpProblem("least_time", pulp.LpMinimize)
    time = problem.add_variable("t", 0)
    share = [problem.add_variable(f"x{index}", 0) for index in range(len(candidates.demand))]
    problem += time
    of_demand: list[list[int]] = [[] for _ in range(demands)]
    for index, demand in enumerate(candidates.demand.tolist()):
        of_demand[demand].append(index)
    for demand, members in enumerate(of_demand):
        problem += pulp.LpConstraint(
            pulp.LpAffineExpression([(share[index], 1.0) for index in members]), pulp.LpConstraintEQ, f"all_{demand}", 1
        )
    size = demand_bytes[candidates.demand[path]] / (candidates.rate[link] * unit)
    terms: dict[int, list[tuple[pulp.LpVariable, float]]] = {}
    for index, number, coefficient in zip(path.tolist(), link.tolist(), size.tolist(), strict=True):
        if coefficient > 1e-8:  # below, a link does not notice the traffic
            terms.setdefault(number, []).append((share[index], coefficient))
    rows = {}
    for number, found in terms.items():
        row = pulp.LpConstraint(
            pulp.LpAffineExpression([*found, (time, -1.0)]), pulp.LpConstraintLE, f"link_{number}", 0
        )
        rows[str(number)] = row
        problem += row
    solution = solve(problem, time_limit_s=time_limit_s, constraints=rows)
    if not solution.values:
        return None
    value = np.array([solution.values.get(variable.name, 0.0) for variable in share])
    value = np.clip(value, 0.0, 1.0)
    value[value < 1e-9] = 0.0
    value /= np.bincount(candidates.demand, value, demands)[candidates.demand]
    load = load_of(candidates, value * demand_bytes[candidates.demand])
    weight = np.zeros(len(candidates.rate))
    for name, dual in (solution.duals or {}).items():
        weight[int(name)] = max(0.0, -dual) / candidates.rate[int(name)]
    if solution.duals is None:
        busiest = int(np.argmax(load / candidates.rate))
        weight[busiest] = 1 / candidates.rate[busiest]
    weight /= float(np.sum(weight * candidates.rate))
    bound = priced(demand_bytes, candidates, weight)
    reached = float(np.max(load / candidates.rate))
    return Division(value, load, reached, min(bound, reached), weight)


def priced(demand_bytes: Array, candidates: Candidates, weight: Array) -> float:
    """Return a time that no division over the paths beats, from prices of links that cost 1 in all [s]."""
    cost = np.append(weight, 0.0)[np.minimum(candidates.links, len(weight))].sum(axis=1)
    cheapest = np.full(len(demand_bytes), np.inf)
    np.minimum.at(cheapest, candidates.demand, cost)
    return float(np.sum(demand_bytes * cheapest))
