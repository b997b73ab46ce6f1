"""Which adapter of its node a flow leaves and enters through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.cables import link_bandwidth
from hardware.catalogue import Machine
from hardware.graph import LeafSpine, leaf_spine
from perfmodel.routing import Integers, slowest
from perfmodel.terms import Array
from solvers.backend import solve
from solvers.routing_flows import Flows, ports_of

WAYS = ("out of", "into")


@dataclass(frozen=True)
class AdapterLoads:
    """What the adapters of nodes carry.

    Parameters
    ----------
    own : array
        What each accelerator sends and receives through its own adapters, of shape (2, nodes, accelerators) [bytes].
    fixed : array
        What goes through named adapters, or through all of a node evenly, of shape (2, nodes, ports) [bytes].
    port : array
        Load of every port, of shape (2, nodes, ports) [bytes].
    rate : array
        Rate of every port, of shape (nodes, ports) [B/s].
    """

    own: Array
    fixed: Array
    port: Array
    rate: Array

    @property
    def time_s(self) -> float:
        """Time of the most loaded port [s]; infinite where one is broken that is needed."""
        return slowest(self.port, np.broadcast_to(self.rate, self.port.shape))


def adapter_loads(machine: Machine, flows: Flows) -> AdapterLoads:
    """Add up what flows between nodes put on adapters when each uses its accelerator's own.

    Parameters
    ----------
    machine : Machine
        What they run on: a network of leaves and spines.
    flows : Flows
        The flows.

    Returns
    -------
    AdapterLoads
        The loads.
    """
    view = leaf_spine(machine)
    host = np.array([end.host for end in flows.ends])
    accelerator = np.array([end.accelerator for end in flows.ends])
    leaves = host[flows.source] != host[flows.target]
    own = np.zeros((2, view.hosts, machine.node.accelerators.count))
    port, fixed = np.zeros((2, *view.port.shape)), np.zeros((2, *view.port.shape))
    for way, (side, ports) in enumerate(zip((flows.source, flows.target), ports_of(machine, flows), strict=True)):
        named = leaves & (ports >= 0)
        np.add.at(port[way], (host[side[named]], ports[named]), flows.size[named])
        mine = named & (accelerator[side] >= 0)
        np.add.at(own[way], (host[side[mine]], accelerator[side[mine]]), flows.size[mine])
        plain = named & (accelerator[side] < 0)
        np.add.at(fixed[way], (host[side[plain]], ports[plain]), flows.size[plain])
        # what a node sends as a whole goes evenly over its adapters
        together = np.bincount(host[side[leaves & (ports < 0)]], flows.size[leaves & (ports < 0)], view.hosts)
        total = view.port.sum(axis=1)
        spread = together[:, None] * np.where(total > 0, 1 / np.maximum(total, 1e-300), 0.0)[:, None] * view.port
        spread[(total == 0) & (together > 0)] = np.inf
        port[way] += spread
        fixed[way] += spread
    return AdapterLoads(own, fixed, port, view.port)


def one_leaf_each(view: LeafSpine) -> bool:
    """Tell whether all adapters of a node are on one leaf, so that the network does not notice the choice."""
    return bool(np.all(view.leaf == view.leaf[:, :1]))


def inner_rate(machine: Machine) -> float:
    """Return the rate of an accelerator to the others of its node [B/s]; 0 without a link between them."""
    links = [link for link in machine.node.links if link.group in (None, machine.node.accelerators.count)]
    return max((link_bandwidth(link) for link in links if link.type != "nvlink-c2c"), default=0.0)


@dataclass(frozen=True)
class Relaxed:
    """Adapters chosen freely where that helps.

    Parameters
    ----------
    time_s : float
        Time of the slowest adapter or link inside a node [s].
    shares : dict
        (way, node, accelerator) -> share of its traffic through each port [1]; only where not all goes through its own.
    """

    time_s: float
    shares: dict[tuple[int, int, int], Array]


def relaxed(loads: AdapterLoads, near: NDArray[np.bool_], inner: float, enough_s: float) -> Relaxed:
    """Let accelerators whose own adapters take too long use those of their neighbours.

    Parameters
    ----------
    loads : AdapterLoads
        Traffic of every node.
    near : array of bool
        Whether a port is an accelerator's own, of shape (accelerators, ports).
    inner : float
        Rate of an accelerator to the others of its node [B/s].
    enough_s : float
        Time that the network takes anyway [s]: nodes that are done by then change nothing.

    Returns
    -------
    Relaxed
        The choice.

    Notes
    -----
    For each node and way: min t with sum_j x[i,j] = bytes_i, sum_i x[i,j] <= t B_j, sum of x[i,j] over ports j that are
    not i's own <= t B_link, and the same for what a neighbour passes on (NIC choice of Zeppelin, arXiv 2509.21841).
    """
    reached, shares = enough_s, {}
    alone = np.max(np.where(loads.port > 0, loads.port / np.maximum(loads.rate, 1e-300), 0.0), axis=2)
    for way, host in np.argwhere(alone > enough_s * (1 + 1e-9)).tolist():
        own = loads.own[way, host]
        time_s, found = _node(own, loads.fixed[way, host], loads.rate[host], near, inner)
        reached = max(reached, time_s)
        for index in np.flatnonzero(own > 0).tolist():
            share = found[index] / found[index].sum()
            if np.any(share[~near[index]] > 0):
                shares[way, host, index] = share
    return Relaxed(reached, shares)


def _node(own: Array, fixed: Array, rate: Array, near: NDArray[np.bool_], inner: float) -> tuple[float, Array]:
    """Spread one node's traffic over its ports: time [s] and bytes by accelerator and port."""
    import pulp

    count, ports = near.shape
    unit = float((own.sum() + fixed.sum()) / rate.sum())
    size = unit * float(rate.max())
    problem = pulp.LpProblem("adapters", pulp.LpMinimize)
    slow = problem.add_variable("t", 0)
    problem += slow
    part = {
        (i, j): problem.add_variable(f"x{i}_{j}", 0)
        for i in range(count)
        for j in range(ports)
        if own[i] > 0 and rate[j] > 0 and (near[i, j] or inner > 0)
    }
    for i in np.flatnonzero(own > 0).tolist():
        problem += pulp.lpSum(part[i, j] for j in range(ports) if (i, j) in part) == own[i] / size
    for j in np.flatnonzero(rate > 0).tolist():
        through = pulp.lpSum(part[i, j] for i in range(count) if (i, j) in part)
        problem += through + fixed[j] / size <= slow * float(rate[j] / rate.max())
    if inner > 0:
        share = inner / float(rate.max())
        for i in range(count):
            leaving = [part[i, j] for j in range(ports) if (i, j) in part and not near[i, j]]
            passing = [variable for (k, j), variable in part.items() if near[i, j] and not near[k, j]]
            for terms in (leaving, passing):
                if terms:
                    problem += pulp.lpSum(terms) <= slow * share
    solution = solve(problem)
    value = np.zeros((count, ports))
    if solution.objective is None:  # nothing leads out of the node
        return np.inf, np.where(near, 1.0, 0.0)
    for (i, j), variable in part.items():
        value[i, j] = max(0.0, solution.values.get(variable.name, 0.0))
    value[value < 1e-9] = 0.0
    return solution.objective * unit, value * size


def port_names(loads: AdapterLoads) -> tuple[list[str], Integers]:
    """Name the ports that carry something, with their places in the loads."""
    used = np.argwhere(loads.port > 0)
    return [f"{WAYS[way]} host{host}/nic{port}" for way, host, port in used.tolist()], used
