"""Routing on a network of leaves and spines: what flows load, which cables they take, how long hashing takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.clos import clos
from hardware.graph import leaf_spine
from perfmodel.routing import (
    Integers,
    Switching,
    hashed_times,
    independent_sides,
    max_load_distribution,
    most_of,
    quantile_of,
    round_robin,
    side_bytes,
    slowest,
    spray_time,
)
from perfmodel.terms import Array
from solvers.routing_flows import ports_of
from solvers.routing_lp import Candidates, Division, divided, load_of
from solvers.routing_paths import Routing, few_parts, single_paths, split_all, whole
from solvers.routing_scenario import RoutingScenario, Split
from solvers.routing_whole import equal_whole, fewest_by_class, fewest_splits, spine_classes, splits_needed

_FEW_S = 10.0
"""Wall time of the search for few splits [s]."""
DRAWS, SEED = 1000, 0
"""Hash functions that are tried where hashing has no closed form."""


@dataclass(frozen=True)
class Hashed:
    """Time of hashed paths (ECMP) in the network.

    Parameters
    ----------
    mean_s, p10_s, p90_s, p99_s : float
        Mean and percentiles over hash functions [s].
    method : str
        ``exact``, or how many were drawn.
    """

    mean_s: float
    p10_s: float
    p90_s: float
    p99_s: float
    method: str

    @classmethod
    def drawn(cls, times: Array, floor_s: float) -> Hashed:
        """Describe a sample of times in the network [s], where something else takes at least `floor_s` [s]."""
        times = np.maximum(times, floor_s)
        low, high, most = (float(np.quantile(times, share)) for share in (0.1, 0.9, 0.99))
        return cls(float(times.mean()), low, high, most, f"{len(times)} hash functions drawn, seed {SEED}")


@dataclass(frozen=True)
class Option:
    """A way to route.

    Parameters
    ----------
    split : str
        What may be split.
    routing : Routing
        The paths of the flows.
    bound_s : float
        Time in the network that no routing of this kind can beat [s].
    splits_needed : int or None
        Flows that any routing as fast has to split, at least [1].
    """

    split: Split
    routing: Routing
    bound_s: float
    splits_needed: int | None = None


class LeafSpineNetwork:
    """Flows on a network of leaves and spines.

    Paths are numbered: a cable above a leaf by its own number, all cables of spine s evenly by ``lanes + s``, all
    cables that lead there evenly by ``lanes + spines``, and none, below one leaf, by ``lanes + spines + 1``.
    """

    def __init__(self, scenario: RoutingScenario) -> None:
        machine, flows = scenario.machine, scenario.flows
        assert machine.node.nics is not None
        view = leaf_spine(machine)
        cables = clos(machine.cluster.fabric, machine.node.nics, machine.cluster.nodes).cables_per_pair
        self.network = Switching(view.up, view.down, cables)
        self.size = flows.size
        host = np.array([end.host for end in flows.ends])
        ports = ports_of(machine, flows)
        leaf = [
            view.leaf[host[side], np.maximum(port, 0)]
            for side, port in zip((flows.source, flows.target), ports, strict=True)
        ]
        self.source, self.target = leaf
        self.is_far = self.source != self.target
        self.far = np.flatnonzero(self.is_far)
        self.pairs, self.demand = np.unique(
            self.source[self.far] * self.network.leaves + self.target[self.far], return_inverse=True
        )
        self.pair_bytes = np.bincount(self.demand, self.size[self.far], len(self.pairs))
        self.equal_bytes = float(self.size[self.far[0]]) if len(self.far) and np.ptp(self.size[self.far]) == 0 else None
        lanes, spines, leaves = self.network.lanes, self.network.spines, self.network.leaves
        self.every, self.local = lanes + spines, lanes + spines + 1
        self.rate = np.concatenate([self.network.up_lane.reshape(-1), self.network.down_lane.reshape(-1)])
        self._shape = (2, leaves, lanes)

    # --- names ---------------------------------------------------------------------------------------------------

    def link_name(self, link: int) -> str:
        """Name a cable."""
        side, leaf, lane = (int(place) for place in np.unravel_index(link, self._shape))
        spine, cable = divmod(lane, self.network.cables)
        ends = (f"leaf{leaf}", f"spine{spine}")
        last = f" cable {cable}" if self.network.cables > 1 else ""
        return f"{'-'.join(ends if side == 0 else ends[::-1])}{last}"

    def path_name(self, flow: int, path: int) -> str:
        """Name a path of a flow."""
        lanes = self.network.lanes
        if path == self.local:
            return f"leaf{self.source[flow]}"
        if path == self.every:
            return "spray"
        if path >= lanes or self.network.cables == 1:
            return f"spine{path - lanes if path >= lanes else path}"
        return "spine{}.{}".format(*divmod(path, self.network.cables))

    def path_of(self, flow: int, name: str) -> int:
        """Find the path of a name.

        Raises
        ------
        ValueError
            The flow has no such path.
        """
        network, leaf = self.network, self.source[flow]
        if not self.is_far[flow]:
            if name in (f"leaf{leaf}", "spray"):
                return self.local
            raise ValueError(f'the flow stays below leaf{leaf}; allowed: leaf{leaf} [got "{name}"]')
        if name == "spray":
            return self.every
        spine, dot, cable = name.removeprefix("spine").partition(".")
        if name.startswith("spine") and spine.isdecimal() and int(spine) < network.spines:
            if not (network.up[leaf, int(spine)] > 0 and network.down[int(spine), self.target[flow]] > 0):
                raise ValueError(f"spine{int(spine)} does not join leaf{leaf} and leaf{self.target[flow]}")
            if dot and cable.isdecimal() and int(cable) < network.cables:
                return int(spine) * network.cables + int(cable)
            if not dot:
                return int(spine) + (network.lanes if network.cables > 1 else 0)
        more = f', a cable of one such as "spine0.{network.cables - 1}"' if network.cables > 1 else ""
        raise ValueError(f'no such path; allowed: spine0 to spine{network.spines - 1}{more}, spray [got "{name}"]')

    # --- loads ---------------------------------------------------------------------------------------------------

    def loads(self, routing: Routing) -> Array:
        """Return the load of every cable, up and then down [bytes]."""
        network = self.network
        size = self.size[routing.flow] * routing.share
        found = []
        single = routing.path < network.lanes
        spine = (routing.path >= network.lanes) & (routing.path < self.every)
        every = routing.path == self.every
        demand = np.zeros((network.leaves, network.leaves))
        np.add.at(demand, (self.source[routing.flow[every]], self.target[routing.flow[every]]), size[every])
        joint = network.joint
        each = np.where(joint, (demand / np.maximum(joint.sum(axis=2), 1))[:, :, None], 0.0)
        for leaf, sprayed in ((self.source, each.sum(axis=1)), (self.target, each.sum(axis=0))):
            at = leaf[routing.flow]
            load = side_bytes(at[single], routing.path[single], size[single], network.leaves, network.lanes)
            bundle = side_bytes(
                at[spine], routing.path[spine] - network.lanes, size[spine], network.leaves, network.spines
            )
            found.append(load + np.repeat((bundle + sprayed) / network.cables, network.cables, axis=1))
        return np.stack(found).reshape(-1)

    def split_flows(self, routing: Routing) -> NDArray[np.bool_]:
        """Tell which flows take more than one cable."""
        parts = np.bincount(routing.flow, minlength=len(self.size))
        spread = np.zeros(len(self.size), dtype=bool)
        spread[routing.flow[(routing.path >= self.network.lanes) & (routing.path < self.local)]] = True
        return (parts > 1) | (spread & (self.network.lanes > 1))

    def cut(self) -> tuple[int, int] | None:
        """Find a flow's leaves between which nothing is left."""
        joint: NDArray[np.bool_] = np.any(self.network.joint, axis=2)
        for pair in self.pairs.tolist():
            one, other = divmod(pair, self.network.leaves)
            if not joint[one, other]:
                return one, other
        return None

    # --- bounds --------------------------------------------------------------------------------------------------

    def division(self, time_limit_s: float | None = None) -> Division:
        """Divide the traffic at will: the least time of all, and what cables are worth."""
        network, leaves = self.network, self.network.leaves
        left, right = self.pairs // leaves, self.pairs % leaves
        if not len(self.pairs):
            return Division(np.zeros(0), np.zeros(len(self.rate)), 0.0, 0.0, np.zeros(len(self.rate)))
        if network.is_even:
            sides = np.stack([np.bincount(end, self.pair_bytes, leaves) for end in (left, right)])
            tight = sides >= sides.max() * (1 - 1e-9)
            time_s = float(sides.max() / network.up[0].sum())
            weight = np.repeat(tight.reshape(-1) / tight.sum() / network.up[0].sum(), network.lanes)
            load = np.repeat(sides.reshape(-1) / network.lanes, network.lanes)
            return Division(np.full(network.lanes, 1 / network.lanes), load, time_s, time_s, weight)
        # Spines that are alike share alike, so a class of them is one spine with the rates added up.
        classes = spine_classes(network)
        count = len(classes)
        up = np.stack([one.up * len(one.lanes) for one in classes], axis=1)
        down = np.stack([one.down * len(one.lanes) for one in classes], axis=1)
        demand, kind = np.nonzero((up[left] > 0) & (down[right] > 0))
        links = np.stack([left[demand] * count + kind, leaves * count + right[demand] * count + kind], axis=1)
        rate = np.concatenate([up.reshape(-1), down.reshape(-1)])
        candidates = Candidates(demand, links, np.where(rate > 0, rate, 1.0))
        found = divided(self.pair_bytes, candidates, time_limit_s)
        if found is None:
            even = (1 / np.bincount(demand))[demand]
            bound = max(
                slowest(np.bincount(end, self.pair_bytes, leaves), total.sum(axis=1))
                for end, total in ((left, up), (right, down))
            )
            found = Division(even, np.zeros(len(rate)), np.inf, bound, np.zeros(len(rate)))
        share, weight = np.zeros((len(self.pairs), network.lanes)), np.zeros(self._shape)
        for number, one in enumerate(classes):
            mine = kind == number
            share[demand[mine][:, None], one.lanes] = (found.share[mine] / len(one.lanes))[:, None]
            weight[:, :, one.lanes] = found.weight.reshape(2, leaves, count)[:, :, number][:, :, None]
        lanes = self.lane_candidates()
        part = share[lanes.demand, lanes.links[:, 0] % network.lanes]
        load = load_of(lanes, part * self.pair_bytes[lanes.demand])
        return Division(part, load, slowest(load, self.rate), found.bound_s, weight.reshape(-1))

    def lane_candidates(self) -> Candidates:
        """List every cable that each pair of leaves can use."""
        network, leaves = self.network, self.network.leaves
        left, right = self.pairs // leaves, self.pairs % leaves
        usable = (network.up_lane[left] > 0) & (network.down_lane[right] > 0)
        demand, lane = np.nonzero(usable)
        links = np.stack([left[demand] * network.lanes + lane, (leaves + right[demand]) * network.lanes + lane], axis=1)
        return Candidates(demand, links, np.where(self.rate > 0, self.rate, 1.0))

    # --- ways to route -------------------------------------------------------------------------------------------

    def _numbered(self, routing: Routing, candidates: Candidates | None) -> Routing:
        """Translate flows between leaves and their candidates into all flows and numbers of paths."""
        path = routing.path if candidates is None else candidates.links[routing.path, 0] % self.network.lanes
        near = np.flatnonzero(~self.is_far)
        flow = np.concatenate([self.far[routing.flow], near])
        order = np.argsort(flow, kind="stable")
        path = np.concatenate([path, np.full(len(near), self.local)])
        return Routing(flow[order], path[order], np.concatenate([routing.share, np.ones(len(near))])[order])

    def _candidate(self, candidates: Candidates, lane: Integers) -> Integers:
        """Find the candidates that stand for cables of the flows between leaves."""
        place = np.full((len(self.pairs), self.network.lanes), -1)
        place[candidates.demand, candidates.links[:, 0] % self.network.lanes] = np.arange(len(candidates.demand))
        return np.asarray(place[self.demand, lane])

    def sprayed(self, division: Division) -> Option:
        """Split every flow: evenly where cables are alike, else as the best division says."""
        if self.network.is_even or not len(self.far):
            routing = whole(np.full(len(self.far), self.every))
            return Option("spray", self._numbered(routing, None), division.bound_s)
        candidates, cables = self.lane_candidates(), self.network.cables
        lane = candidates.links[:, 0] % self.network.lanes
        # the cables of a spine share alike, so its first one stands for all
        first = np.where(lane % cables == 0, division.share * cables, 0.0)
        routing = split_all(self.demand, candidates, first)
        path = lane[routing.path] if cables == 1 else self.network.lanes + lane[routing.path] // cables
        return Option("spray", self._numbered(Routing(routing.flow, path, routing.share), None), division.bound_s)

    def unsplit(self, division: Division, floor_s: float, deadline: float | None, gap: float) -> Option:
        """Keep every flow on one cable."""
        source, target, size = self.source[self.far], self.target[self.far], self.size[self.far]
        if not len(self.far):
            return Option("none", self._numbered(whole(np.zeros(0, dtype=np.int64)), None), 0.0, 0)
        bound = division.bound_s
        candidates = choice = None
        if self.equal_bytes is not None:
            found = equal_whole(source, target, self.equal_bytes, self.network, bound)
            if found is not None:
                bound = max(bound, found.bound_s)
                if found.time_s <= max(bound, floor_s) * (1 + 1e-9):
                    return Option("none", self._numbered(whole(found.lane), None), bound)
                candidates = self.lane_candidates()
                choice = self._candidate(candidates, found.lane)
        candidates = self.lane_candidates() if candidates is None else candidates
        choice, bound = single_paths(self.demand, size, candidates, bound, floor_s, choice, deadline, gap)
        return Option("none", self._numbered(whole(choice), candidates), bound)

    def few_splits(self, division: Division, unsplit: Option, floor_s: float, deadline: float | None = None) -> Option:
        """Split as few flows as it takes to be as fast as a division at will."""
        source, target, size = self.source[self.far], self.target[self.far], self.size[self.far]
        time_s = max(division.time_s, floor_s)
        if slowest(self.loads(unsplit.routing), self.rate) <= time_s * (1 + 1e-9):
            return Option("fewest", unsplit.routing, division.bound_s, 0)
        if self.equal_bytes is not None and self.network.is_even:
            rate = self.network.up_lane[0, 0]
            found = fewest_splits(source, target, time_s * rate / self.equal_bytes, self.network)
            path = np.where(found.lane < 0, self.every, found.lane)
            return Option("fewest", self._numbered(whole(path), None), division.bound_s, found.fewest)
        if self.equal_bytes is not None:
            needed = splits_needed(source, target, self.equal_bytes, self.network, time_s)
            patience = _FEW_S if deadline is None else max(0.1, min(_FEW_S, deadline - time.perf_counter()))
            parts = fewest_by_class(source, target, time_s, self.equal_bytes, self.network, patience)
            if parts is not None:
                return Option("fewest", self._numbered(Routing(*parts), None), division.bound_s, needed)
        candidates = self.lane_candidates()
        if self.network.is_even:  # its division has one row for all pairs
            division = Division(
                np.full(len(candidates.demand), 1 / self.network.lanes),
                division.load,
                division.time_s,
                division.bound_s,
                division.weight,
            )
        choice = self._candidate(candidates, unsplit.routing.path[self.is_far[unsplit.routing.flow]])
        routing = few_parts(self.demand, size, candidates, choice, division, time_s, deadline)
        needed = 0 if unsplit.bound_s <= time_s * (1 + 1e-9) else 1
        if self.equal_bytes is not None:
            needed = max(needed, splits_needed(source, target, self.equal_bytes, self.network, time_s))
        return Option("fewest", self._numbered(routing, candidates), division.bound_s, needed)

    # --- what is done without a plan -----------------------------------------------------------------------------

    def hashed(self, floor_s: float) -> Hashed:
        """Return the time of hashed paths, at least `floor_s` [s]; exactly where there is a closed form."""
        source, target, network = self.source[self.far], self.target[self.far], self.network
        if not len(self.far):
            return Hashed(floor_s, floor_s, floor_s, floor_s, "exact")
        if self.equal_bytes is not None and network.is_even and network.cables == 1:
            sides = independent_sides(source, target, network.leaves)
            if sides is not None:
                counts = {count: max_load_distribution(count, network.lanes) for count in set(sides)}
                below = most_of([counts[count] for count in sides])
                times = np.maximum(np.arange(len(below)) * self.equal_bytes / network.up_lane[0, 0], floor_s)
                low, high, most = (float(times[quantile_of(below, share)]) for share in (0.1, 0.9, 0.99))
                return Hashed(float(np.sum(np.diff(below, prepend=0.0) * times)), low, high, most, "exact")
        draws = int(np.clip(1e8 / len(self.far), 100, DRAWS))
        return Hashed.drawn(hashed_times(source, target, self.size[self.far], network, draws, SEED), floor_s)

    def spray_s(self) -> float:
        """Return the time of packets sprayed evenly, whatever the rates of the cables [s]."""
        return spray_time(self.source, self.target, self.size, self.network)

    def dealt_s(self) -> float:
        """Return the time if every leaf deals its flows to its cables in turn [s]."""
        if not len(self.far):
            return 0.0
        lane = round_robin(self.source[self.far], self.target[self.far], self.network)
        return slowest(self.loads(self._numbered(whole(lane), None)), self.rate)
