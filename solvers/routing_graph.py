"""Routing on a network of any shape: paths are found where links are cheap, until none is missing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hardware.cables import SWITCHED
from hardware.fabric import kind_of
from hardware.graph import graph
from perfmodel.routing import Integers, slowest
from perfmodel.terms import Array
from solvers.routing_flows import ports_of
from solvers.routing_leaf_spine import DRAWS, SEED, Hashed, Option
from solvers.routing_lp import Candidates, Division, divided, load_of
from solvers.routing_paths import Routing, few_parts, single_paths, split_all, whole
from solvers.routing_scenario import RoutingScenario

_MOST_SHORTEST = 64
"""Shortest paths between two ends that are listed [1]."""
_ROUNDS = 200
_STEEPNESS = 40.0
_CLOSE = 1e-6
"""Relative distance from the bound at which no more paths are looked for [1]."""

Node = tuple[str, str]
"""Part of the network, and ``out`` or ``in`` for a device of a node that only sends or only receives."""


class GraphNetwork:
    """Flows on a network of any shape.

    Paths are numbered in the order in which they are found; number 0 is that of flows inside a node. Nodes forward
    traffic of others only where the network is made of their own links (a torus, a list of edges).
    """

    def __init__(self, scenario: RoutingScenario, *, any_adapter: bool = False) -> None:
        machine, flows = scenario.machine, scenario.flows
        fabric = machine.cluster.fabric
        devices = fabric.type in SWITCHED and any(end.accelerator >= 0 or end.port >= 0 for end in flows.ends)
        self.size = flows.size
        self.any_adapter = any_adapter
        self._relays = fabric.type in ("edges", "torus")
        self._node_of: dict[Node, int] = {}
        self._nodes: list[Node] = []
        self._arcs: list[tuple[int, int, int]] = []
        self._link_names: list[str] = []
        rates: list[float] = []
        drawn = graph(machine, "devices" if devices else "nodes")
        used = {end.host for end in flows.ends}
        link_of: dict[tuple[str, str], int] = {}

        def arc(a: Node, b: Node, rate: float) -> None:
            link = -1
            if np.isfinite(rate):
                link = link_of.setdefault((a[0], b[0]), len(rates))
                if link == len(rates):
                    rates.append(rate)
                    self._link_names.append(f"{a[0]}-{b[0]}")
            self._arcs.append((self._number(a), self._number(b), link))

        for one, other, data in drawn.edges(data=True):
            for a, b in ((one, other), (other, one)):
                hosts = [_host(name) for name in (a, b)]
                if not self._relays and any(host is not None and host not in used for host in hosts):
                    continue
                if self._relays or (hosts[0] is None and hosts[1] is None):
                    arc((a, ""), (b, ""), data["capacity"])
                elif hosts[0] is not None and hosts[1] is not None:
                    arc((a, "out"), (b, "out"), data["capacity"])
                    arc((a, "in"), (b, "in"), data["capacity"])
                elif hosts[0] is not None:
                    arc((a, "out"), (b, ""), data["capacity"])
                else:
                    arc((a, ""), (b, "in"), data["capacity"])
        ports = ports_of(machine, flows)
        names = []
        for side, port, way in zip((flows.source, flows.target), ports, ("out", "in"), strict=True):
            found = []
            for number, nic in zip(side.tolist(), port.tolist(), strict=True):
                end = flows.ends[number]
                name = end.name
                if devices:
                    name = f"host{end.host}"
                    if end.accelerator >= 0 and any_adapter:
                        name = f"host{end.host}/gpu{end.accelerator}"
                    elif nic >= 0:
                        name = f"host{end.host}/nic{nic}"
                elif "/" in name:
                    name = name.partition("/")[0]
                found.append((name, "" if self._relays else way))
            names.append(found)
        if devices:  # a whole node sends through all its adapters
            for host in sorted({node[0] for side in names for node in side if "/" not in node[0]}):
                for nic in range(machine.node.nics.count if machine.node.nics else 0):
                    arc((host, "out"), (f"{host}/nic{nic}", "out"), np.inf)
                    arc((f"{host}/nic{nic}", "in"), (host, "in"), np.inf)
        self.rate = np.array(rates)
        inside = np.array(
            [flows.ends[s].host == flows.ends[t].host for s, t in zip(flows.source, flows.target, strict=True)]
        )
        self.far = np.flatnonzero(~inside)
        keys = [(self._number(names[0][flow]), self._number(names[1][flow])) for flow in self.far.tolist()]
        self.pairs = sorted(set(keys))
        places = {pair: place for place, pair in enumerate(self.pairs)}
        self.demand = np.array([places[key] for key in keys], dtype=np.int64)
        self.pair_bytes = np.bincount(self.demand, self.size[self.far], len(self.pairs))
        self._found: list[tuple[int, tuple[int, ...]]] = []
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}

    def _number(self, node: Node) -> int:
        if node not in self._node_of:
            self._node_of[node] = len(self._nodes)
            self._nodes.append(node)
        return self._node_of[node]

    # --- names ---------------------------------------------------------------------------------------------------

    def link_name(self, link: int) -> str:
        """Name a link."""
        return self._link_names[link]

    def path_name(self, flow: int, path: int) -> str:
        """Name a path of a flow: the parts it passes."""
        if path == 0:
            return "inside"
        return ">".join(self._nodes[node][0] for node in self._walk(path - 1))

    def _walk(self, path: int) -> list[int]:
        arcs = self._found[path][1]
        return [self._arcs[arcs[0]][0], *(self._arcs[arc][1] for arc in arcs)]

    def path_of(self, flow: int, name: str) -> int:
        """Find the path of a name.

        Raises
        ------
        ValueError
            The flow has no such path.
        """
        place = np.searchsorted(self.far, flow)
        if place == len(self.far) or self.far[place] != flow:
            if name == "inside":
                return 0
            raise ValueError(f'the flow stays inside its node; allowed: inside [got "{name}"]')
        start, end = self.pairs[self.demand[place]]
        arcs, here = [], start
        for step in name.split(">")[1:]:
            arc = next((arc for arc in self._from[here] if self._nodes[self._arcs[arc][1]][0] == step), None)
            if arc is None:
                raise ValueError(f'nothing leads from {self._nodes[here][0]} to {step} [got "{name}"]')
            arcs.append(arc)
            here = self._arcs[arc][1]
        if here != end or name.partition(">")[0] != self._nodes[start][0]:
            message = f"should lead from {self._nodes[start][0]} to {self._nodes[end][0]}, with > between the parts"
            raise ValueError(f'{message} [got "{name}"]')
        return 1 + self._add(int(self.demand[place]), tuple(arcs))

    @cached_property
    def _from(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self._nodes]
        for number, (tail, _, _) in enumerate(self._arcs):
            found[tail].append(number)
        return found

    def _add(self, demand: int, arcs: tuple[int, ...]) -> int:
        key = (demand, arcs)
        if key not in self._known:
            self._known[key] = len(self._found)
            self._found.append(key)
        return self._known[key]

    # --- loads ---------------------------------------------------------------------------------------------------

    def _links_of(self, paths: Sequence[tuple[int, ...]]) -> Integers:
        links = [[link for arc in arcs if (link := self._arcs[arc][2]) >= 0] for arcs in paths]
        most = max(map(len, links), default=0)
        return np.array([row + [len(self.rate)] * (most - len(row)) for row in links], dtype=np.int64).reshape(-1, most)

    def candidates(self) -> tuple[Candidates, Integers]:
        """Return the paths found so far, ordered by demand, and their numbers."""
        order = sorted(range(len(self._found)), key=lambda path: (self._found[path][0], path))
        demand = np.array([self._found[path][0] for path in order], dtype=np.int64)
        links = self._links_of([self._found[path][1] for path in order])
        return Candidates(demand, links, self.rate), np.array(order, dtype=np.int64)

    def loads(self, routing: Routing) -> Array:
        """Return the load of every link [bytes]."""
        far = routing.path > 0
        used, which = np.unique(routing.path[far] - 1, return_inverse=True)
        on_path = np.bincount(which, self.size[routing.flow[far]] * routing.share[far], len(used))
        links = self._links_of([self._found[path][1] for path in used.tolist()])
        return load_of(Candidates(np.zeros(len(links), dtype=np.int64), links, self.rate), on_path)

    def split_flows(self, routing: Routing) -> NDArray[np.bool_]:
        """Tell which flows take more than one path."""
        return np.bincount(routing.flow, minlength=len(self.size)) > 1

    def cut(self) -> tuple[str, str] | None:
        """Find two ends of a flow between which nothing is left."""
        for (source, target), ways in zip(self.pairs, self._shortest, strict=True):
            if not ways:
                return self._nodes[source][0], self._nodes[target][0]
        return None

    # --- bounds --------------------------------------------------------------------------------------------------

    def _reach(self, weight: Array) -> tuple[Array, dict[int, Array], dict[int, Integers]]:
        """Find the cheapest way from every sender; every step costs a little, so that detours are not free."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import dijkstra

        tail, head, link = np.array(self._arcs).T
        priced = np.append(weight + 1e-9 * weight.mean(), 0.0)
        step = 1e-12 * weight.mean()
        cost = priced[link] + step
        shape = (len(self._nodes), len(self._nodes))
        matrix = coo_array((cost, (tail, head)), shape=shape).tocsr()
        starts = sorted({source for source, _ in self.pairs})
        far, before = dijkstra(matrix, indices=starts, return_predecessors=True)
        return priced[:-1], dict(zip(starts, far, strict=True)), dict(zip(starts, before, strict=True))

    @cached_property
    def _shortest(self) -> list[list[tuple[tuple[int, ...], float]]]:
        """List paths with the fewest links for every demand, with the chance of each under hashing at every hop."""
        backward: list[list[int]] = [[] for _ in self._nodes]
        for number, (_, head, _) in enumerate(self._arcs):
            backward[head].append(number)
        hops: dict[int, dict[int, int]] = {}
        found = []
        for source, target in self.pairs:
            if target not in hops:
                hops[target] = _breadth(target, backward, self._arcs)
            found.append(self._ways(source, target, hops[target]) if source in hops[target] else [])
        return found

    def _ways(self, source: int, target: int, hops: dict[int, int]) -> list[tuple[tuple[int, ...], float]]:
        ways: list[tuple[tuple[int, ...], float]] = []
        stack: list[tuple[int, tuple[int, ...], float]] = [(source, (), 1.0)]
        while stack and len(ways) < _MOST_SHORTEST:
            here, arcs, chance = stack.pop()
            if here == target:
                ways.append((arcs, chance))
                continue
            onward = [arc for arc in self._from[here] if hops.get(self._arcs[arc][1], -1) == hops[here] - 1]
            stack += [(self._arcs[arc][1], (*arcs, arc), chance / len(onward)) for arc in reversed(onward)]
        total = sum(chance for _, chance in ways)
        return [(arcs, chance / total) for arcs, chance in ways]

    def division(self, time_limit_s: float | None = None) -> Division:
        """Divide the traffic at will over all paths there are.

        Notes
        -----
        Column generation: the linear program over the paths found so far prices the links, and a path that is cheaper
        than those of its demand joins them, until none is. The cheapest paths at the prices of any round bound the time
        of every routing from below, whatever paths it takes.
        """
        began = time.perf_counter()
        for demand, ways in enumerate(self._shortest):
            for arcs, _ in ways:
                self._add(demand, arcs)
        best: Division | None = None
        past: Array | None = None
        bound = 0.0
        for _ in range(_ROUNDS):
            candidates, _ = self.candidates()
            left = None if time_limit_s is None else max(0.1, time_limit_s - (time.perf_counter() - began))
            found = divided(self.pair_bytes, candidates, left)
            if found is None:
                break
            best, count = found, len(self._found)
            past = found.weight if past is None else 0.7 * past + 0.3 * found.weight
            # The duals of a corner price few of many links that are equally full. The mean of past ones and prices
            # that grow steeply with the load see the others too.
            steep = np.exp(_STEEPNESS * (found.load / self.rate / found.time_s - 1)) / self.rate
            for prices in (found.weight, past, steep / np.sum(steep * self.rate)):
                weight, reach, before = self._reach(prices)
                total = float(np.sum(weight * self.rate))
                cost = np.array([reach[source][target] for source, target in self.pairs])
                bound = max(bound, float(np.sum(self.pair_bytes * cost)) / total * (1 - 1e-9))
                for demand, (source, target) in enumerate(self.pairs):
                    self._add(demand, self._back(before[source], source, target))
            late = time_limit_s is not None and time.perf_counter() - began > time_limit_s
            if bound >= found.time_s * (1 - _CLOSE) or late:
                break
            if len(self._found) == count:
                break
        if best is None:
            candidates, _ = self.candidates()
            even = (1 / np.bincount(candidates.demand))[candidates.demand]
            load = load_of(candidates, even * self.pair_bytes[candidates.demand])
            return Division(even, load, slowest(load, self.rate), 0.0, np.zeros(len(self.rate)))
        candidates, _ = self.candidates()
        share = np.zeros(len(candidates.demand))
        # paths that joined after the last round carry nothing
        share[: len(best.share)] = best.share if len(best.share) == len(share) else 0.0
        if len(best.share) != len(share):
            again = divided(self.pair_bytes, candidates)
            assert again is not None
            best, share = again, again.share
        return Division(share, best.load, best.time_s, min(bound, best.time_s), best.weight)

    def _back(self, before: Integers, source: int, target: int) -> tuple[int, ...]:
        arcs: list[int] = []
        here = target
        while here != source:
            tail = int(before[here])
            arcs.append(next(arc for arc in self._from[tail] if self._arcs[arc][1] == here))
            here = tail
        return tuple(reversed(arcs))

    # --- ways to route -------------------------------------------------------------------------------------------

    def _numbered(self, routing: Routing, numbers: Integers) -> Routing:
        near = np.setdiff1d(np.arange(len(self.size)), self.far)
        flow = np.concatenate([self.far[routing.flow], near])
        order = np.argsort(flow, kind="stable")
        path = np.concatenate([numbers[routing.path] + 1, np.zeros(len(near), dtype=np.int64)])
        return Routing(flow[order], path[order], np.concatenate([routing.share, np.ones(len(near))])[order])

    def sprayed(self, division: Division) -> Option:
        """Split every flow as the best division says."""
        candidates, numbers = self.candidates()
        routing = split_all(self.demand, candidates, division.share)
        return Option("spray", self._numbered(routing, numbers), division.bound_s)

    def unsplit(self, division: Division, floor_s: float, deadline: float | None, gap: float) -> Option:
        """Keep every flow on one path.

        The bound is that of divided traffic: a path that was not found may do better than those that were.
        """
        candidates, numbers = self.candidates()
        choice, _ = single_paths(
            self.demand, self.size[self.far], candidates, division.bound_s, floor_s, None, deadline, gap
        )
        return Option("none", self._numbered(whole(choice), numbers), division.bound_s)

    def few_splits(self, division: Division, unsplit: Option, floor_s: float, deadline: float | None = None) -> Option:
        """Split few flows, as many as it takes to be as fast as a division at will."""
        time_s = max(division.time_s, floor_s)
        if slowest(self.loads(unsplit.routing), self.rate) <= time_s * (1 + 1e-9):
            return Option("fewest", unsplit.routing, division.bound_s, 0)
        candidates, numbers = self.candidates()
        place = np.empty(len(numbers), dtype=np.int64)
        place[numbers] = np.arange(len(numbers))
        choice = place[unsplit.routing.path[unsplit.routing.path > 0] - 1]
        routing = few_parts(self.demand, self.size[self.far], candidates, choice, division, time_s, deadline)
        return Option("fewest", self._numbered(routing, numbers), division.bound_s, None)

    # --- what is done without a plan -----------------------------------------------------------------------------

    def hashed(self, floor_s: float) -> Hashed:
        """Draw the time of hashed paths, at least `floor_s` [s].

        At every hop, any next one on a shortest path has the same chance.
        """
        ways = self._shortest
        links = [self._links_of([arcs for arcs, _ in way]) for way in ways]
        most = max((part.shape[1] for part in links), default=0)
        start = np.cumsum([0, *map(len, links)])[:-1]
        table = np.concatenate(
            [np.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=len(self.rate)) for part in links]
        )
        reach = np.concatenate([np.cumsum([chance for _, chance in way]) + place for place, way in enumerate(ways)])
        random = np.random.default_rng(SEED)
        draws = int(np.clip(5e7 / (len(self.far) * max(most, 1)), 100, DRAWS))
        times = np.empty(draws)
        size = np.repeat(self.size[self.far], most)
        for draw in range(draws):
            taken = np.searchsorted(reach, self.demand + random.random(len(self.far)) * (1 - 1e-9))
            load = np.bincount(table[np.maximum(taken, start[self.demand])].reshape(-1), size, len(self.rate) + 1)
            times[draw] = slowest(load[:-1], self.rate)
        return Hashed.drawn(times, floor_s)

    def spray_s(self) -> float:
        """Return the time of packets sprayed at every hop over all shortest paths [s]."""
        load = np.zeros(len(self.rate) + 1)
        for total, way in zip(self.pair_bytes, self._shortest, strict=True):
            links = self._links_of([arcs for arcs, _ in way])
            np.add.at(load, links, total * np.array([chance for _, chance in way])[:, None])
        return slowest(load[:-1], self.rate)

    def dealt_s(self) -> float:
        """Return the time if every first switch deals flows to their shortest paths in turn [s]."""
        load, turns = np.zeros(len(self.rate) + 1), [0] * len(self._nodes)
        ways = self._shortest
        links = [self._links_of([arcs for arcs, _ in way]) for way in ways]
        for flow, demand in zip(self.far.tolist(), self.demand.tolist(), strict=True):
            first = self._arcs[ways[demand][0][0][0]][1]
            np.add.at(load, links[demand][turns[first] % len(ways[demand])], self.size[flow])
            turns[first] += 1
        return slowest(load[:-1], self.rate)


def _host(name: str) -> int | None:
    """Return the number of the node that a part belongs to, None for a switch."""
    first = name.partition("/")[0]
    return int(first[4:]) if kind_of(first) in ("host", "chip") and first[4:].isdecimal() else None


def _breadth(target: int, backward: list[list[int]], arcs: list[tuple[int, int, int]]) -> dict[int, int]:
    hops, front = {target: 0}, [target]
    while front:
        following = []
        for here in front:
            for arc in backward[here]:
                tail = arcs[arc][0]
                if tail not in hops:
                    hops[tail] = hops[here] + 1
                    following.append(tail)
        front = following
    return hops
