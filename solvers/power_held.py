"""Servers below nodes that caps hold: how many a policy of two thresholds allows, and what it does to them.

A node that is held is planned by what its policy does, not by the rules for uncapped power: at most as many servers
stand below it as leave a policy that keeps all limits. All other nodes meet the rules without caps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hardware.facility import Actuator
from perfmodel.power import throttle_of
from perfmodel.power.breaker import TripCurve
from perfmodel.power.capping import Policy, Pools, ladder, largest_rise
from perfmodel.power.forecast import expected_rise
from perfmodel.power.load import WEEK_S, Load, NormalLoad, demands
from perfmodel.power.node import node_power_w
from perfmodel.terms import Array
from solvers.power_capping import Choice, Question, assess, choose
from solvers.power_case import Case, Integers
from solvers.power_draw import HOURS
from solvers.power_rules import rules_of
from solvers.power_scenario import PowerScenario

SEED = 1
"""Of the synthesised week from which the largest rise is taken."""
BIN_S = 900.0
"""Parts of a week for which policies are compared [s]."""
HOUR_STEP_S = 1800.0


@dataclass(frozen=True)
class Held:
    """Nodes that caps hold, and what they allow.

    Parameters
    ----------
    nodes : array of int
        Nodes that are held.
    most : array of int, shape (nodes, workloads)
        Servers that may stand below each: so many in all, or others that draw no more by the rule.
    rise : float
        Largest rise of power within the actuator's latency over the power it starts from [1].
    refused : Choice or None
        What one server more below the first of them breaks; None where racks have no room for it.
    """

    nodes: Integers
    most: Integers
    rise: float
    refused: Choice | None


def hold(scenario: PowerScenario, placed: Integers | None) -> Held:
    """Return how many servers caps allow below each row that they let take more than the rules alone, or as many.

    Parameters
    ----------
    scenario : PowerScenario
        The question.
    placed : array of int, shape (racks, workloads), or None
        Servers in each rack by the rules alone. Without shares a row keeps its mix of them.

    Notes
    -----
    By bisection: a server more leaves no policy that keeps all limits. Nodes that are alike are looked at once.
    """
    case, site = scenario.case, scenario.case.site
    rows = held_nodes(site.level)
    rise = rise_of(scenario)
    asked = Asking(scenario, rise)
    rooms = site.totals(site.slots[site.racks][:, None])[:, 0]
    alone = site.totals(np.zeros((len(site.racks), len(case.workloads)), np.int64) if placed is None else placed)
    found: list[tuple[int, Integers, Choice | None]] = []
    for pool in dict.fromkeys(site.pool[rows].tolist()):
        alike = rows[site.pool[rows] == pool]
        mixed = _with_mix(case, alone[alike].sum(axis=0))
        if mixed is None:
            continue
        node, why = int(alike[0]), None
        low = min(int(rooms[node]), _by_nameplate(mixed, float(site.limit_w[node])))
        high = int(rooms[node])
        while low < high:
            middle = (low + high + 1) // 2
            choice = choose(asked.of(node, apportioned(mixed, middle)))
            low, high, why = (low, middle - 1, choice) if choice.policy is None else (middle, high, why)
        found += [(one, apportioned(mixed, low), why) for one in alike.tolist() if low >= alone[one].sum()]
    more = [one for one in found if one[1].sum() > alone[one[0]].sum()] or found
    most = np.zeros((len(more), len(case.workloads)), np.int64)
    for place, (_, servers, _) in enumerate(more):
        most[place] = servers
    refused = next((why for _, _, why in more if why is not None), None)
    return Held(np.array([node for node, _, _ in more], np.int64), most, rise, refused)


def fewer(held: Held, places: Sequence[int]) -> Held:
    """Return the same with a fiftieth of the servers less below some of the nodes, one at least."""
    most = held.most.copy()
    for place in places:
        largest = int(most[place].argmax())
        most[place, largest] = max(most[place, largest] - max(int(most[place].sum()) // 50, 1), 0)
    return replace(held, most=most)


def _with_mix(case: Case, servers: Integers) -> Case | None:
    """Return the case with the shares of a mix of servers, where it has none; None without a mix."""
    if case.share is not None or len(case.workloads) == 1:
        return case
    return replace(case, share=servers / servers.sum()) if servers.any() else None


def apportioned(case: Case, servers: int) -> Integers:
    """Return the servers of each workload of so many."""
    return np.array([servers]) if case.share is None else case.apportioned(servers)


def _by_nameplate(case: Case, limit_w: float) -> int:
    """Return servers that meet a limit whatever they do."""
    servers = 0
    while apportioned(case, servers + 1) @ case.max_w <= limit_w * (1 + 1e-9):
        servers += 1
    return servers


def rise_of(scenario: PowerScenario) -> float:
    """Return the largest rise within the latency: as given, or of a week of as many servers as nameplates allow.

    Notes
    -----
    The larger of that in a synthesised week, and of that which is expected once in a week of normal power.
    """
    if scenario.question.policy.rise is not None:
        return scenario.question.policy.rise
    case = scenario.case
    even = _with_mix(case, np.ones(len(case.workloads), np.int64))
    assert even is not None
    servers = apportioned(even, max(_by_nameplate(even, float(case.site.limit_w[held_nodes(case.site.level)[0]])), 1))
    loads, latency_s = loads_of(scenario), lock_of(scenario).latency
    pieces = demands(loads, np.arange(len(servers)), servers, round(WEEK_S), SEED)
    power = np.concatenate([piece.sum(axis=1) for piece in pieces])
    seen = float(largest_rise(power, int(np.ceil(latency_s))))
    return max(seen, expected_rise([one.moments(BIN_S) for one in loads], servers.tolist(), latency_s, WEEK_S))


def held_case(case: Case, held: Held, method: str) -> Case:
    """Return the case with the limits of held nodes set to what the rule says of as many servers as caps allow [W]."""
    rule = rules_of(replace(case, failover=False), method)[0]
    return _with_limits(case, held.nodes, rule.safe_load_w(held.most))


def lifted(case: Case, nodes: Integers) -> Case:
    """Return the case without the limits of nodes that caps hold."""
    return _with_limits(case, nodes, np.full(len(nodes), float(case.site.slots.sum() * case.max_w.max())))


def _with_limits(case: Case, nodes: Integers, limit_w: Array) -> Case:
    """Return the case with other limits of nodes, also after a failure but where that is of their own feeds."""
    normal, after = case.site.limit_w.copy(), case.site.failover_w.copy()
    own = after[nodes] < normal[nodes]
    normal[nodes], after[nodes] = limit_w, np.where(own, after[nodes], limit_w)
    return replace(case, site=replace(case.site, limit_w=normal, failover_w=after))


def loads_of(scenario: PowerScenario) -> tuple[Load, ...]:
    """Return the power of one server of each workload over time."""
    return tuple(_load(scenario, number) for number in range(len(scenario.draws)))


def _load(scenario: PowerScenario, number: int) -> Load:
    draw, case = scenario.draws[number], scenario.case
    if draw.served is not None:
        return draw.served.load
    range_w = (draw.idle_w, draw.max_w)
    if draw.series is not None:
        return NormalLoad(draw.series.step_s, draw.series.watts[0], 0.0, 0.0, range_w)
    common = max(float(case.correlation[number, number]), 0.0)
    return NormalLoad(HOUR_STEP_S, draw.mean_at(HOURS), draw.sigma_w, common, range_w)


def pools_of(scenario: PowerScenario) -> Pools:
    """Return what a clock does to the servers of each workload.

    Notes
    -----
    Of work that is not known by its requests, and says nothing, all time follows the clock: no cap costs more.
    """
    columns = []
    for workload, draw, machine in zip(scenario.question.workloads, scenario.draws, scenario.machines, strict=True):
        throttle, boards = throttle_of(machine.accelerator), machine.node.accelerators.count
        static_w = float(node_power_w(machine.node, boards * throttle.static * machine.accelerator.power.limit))
        idle_w, share = draw.idle_w, 1.0
        if draw.served is not None:
            load = draw.served.load
            idle_w = draw.served.law.waiting_w
            share = float(np.interp(load.peak_load, load.statistics.load, load.statistics.compute_share))
        if workload.compute_share is not None:
            share = workload.compute_share
        columns.append((idle_w, min(static_w, idle_w), draw.max_w, throttle.voltage_floor, share))
    return Pools(*np.array(columns).T)


def held_nodes(levels: Sequence[str]) -> Integers:
    """Return the nodes that are held: all rows, or the root where there are none."""
    rows = np.flatnonzero(np.array(levels) == "row")
    return rows if len(rows) else np.zeros(1, np.int64)


def given_nodes(scenario: PowerScenario) -> Integers:
    """Return the nodes that the scenario's plan says caps hold; all rows where it does not."""
    site, plan = scenario.case.site, scenario.question.plan
    rows = held_nodes(site.level)
    if plan is None or plan.held is None:
        return rows
    return np.array([node for node in rows.tolist() if site.name[node] in plan.held], np.int64)


def lock_of(scenario: PowerScenario) -> Actuator:
    """Return the actuator whose clocks a policy sets."""
    return next(one for one in scenario.facility.actuators if one.trigger is None and one.clock is not None)


class Asking:
    """What a policy of a held node has to keep, for any servers below it.

    Parameters
    ----------
    scenario : PowerScenario
        The question.
    rise : float
        Largest rise within the latency [1].
    """

    def __init__(self, scenario: PowerScenario, rise: float) -> None:
        self._scenario, self._rise = scenario, rise
        self.loads = loads_of(scenario)
        self.moments = tuple(one.moments(BIN_S) for one in self.loads)
        self.low = np.array([one.priority == "low" for one in scenario.question.workloads])
        self.pools = pools_of(scenario)
        self.trip = trip_curves(scenario)
        self._lock = lock_of(scenario)
        assert self._lock.clock is not None
        self._clock = self._lock.clock
        self.highest_clock = self._clock.highest
        self._brake = (1.0, self._lock.latency)
        for actuator in scenario.facility.actuators:
            if actuator.trigger is not None and actuator.clock is not None:
                self._brake = (actuator.clock.lowest / self.highest_clock, actuator.latency)

    def of(self, node: int, servers: Integers) -> Question:
        """Return the question for a node with servers of each workload below it."""
        asked, there = self._scenario.question.policy, np.flatnonzero(servers > 0)
        return Question(
            tuple(self.moments[number] for number in there.tolist()),
            servers[there],
            Pools(**{name: value[there] for name, value in vars(self.pools).items()}),
            self.low[there],
            float(self._scenario.case.site.limit_w[node]),
            TripCurve(float(self.trip.inverse_time_s[node]), float(self.trip.instantaneous[node])),
            self._clock.lowest / self.highest_clock,
            self._lock.latency,
            self._lock.hysteresis,
            *self._brake,
            self._rise,
            np.where(self.low, asked.most_loss.low, asked.most_loss.high)[there],
            asked.brake_risk,
        )

    def policy(self, thresholds: Sequence[float], clocks: Array) -> Policy:
        """Return a ladder with this facility's actuators; clocks over the highest, shape (levels, workloads)."""
        return ladder(
            thresholds,
            clocks.tolist(),
            hysteresis=self._lock.hysteresis,
            latency_s=self._lock.latency,
            brake_clock=self._brake[0],
            brake_latency_s=self._brake[1],
        )


@dataclass(frozen=True)
class NodeCurves:
    """Breakers of all nodes.

    Parameters
    ----------
    rating_w : array, shape (nodes,)
        Ratings [W].
    inverse_time_s, instantaneous : array, shape (nodes,)
        As of a `TripCurve`.
    """

    rating_w: Array
    inverse_time_s: Array
    instantaneous: Array


def trip_curves(scenario: PowerScenario) -> NodeCurves:
    """Return the breakers of all nodes; one without a curve never opens."""
    tree, entry = scenario.tree, scenario.case.site.entry
    inverse = np.array([np.inf if one is None else one.inverse_time for one in tree.trip])
    at_once = np.array([np.inf if one is None or one.instantaneous is None else one.instantaneous for one in tree.trip])
    return NodeCurves(np.array(tree.rating_w)[entry], inverse[entry], at_once[entry])


@dataclass(frozen=True)
class Capped:
    """One policy for all held nodes with servers below them.

    Parameters
    ----------
    nodes : array of int
        Nodes that are held.
    servers : array of int, shape (nodes, workloads)
        Servers below each.
    policy : Policy or None
        Its clocks are those of all workloads; None where none keeps all limits.
    choices : tuple of Choice
        What it does below each.
    fullest : int
        Place of the node that it was chosen for: mean power over the limit is highest there.
    asking : Asking
        What it has to keep.
    """

    nodes: Integers
    servers: Integers
    policy: Policy | None
    choices: tuple[Choice, ...]
    fullest: int
    asking: Asking


def policy_of(scenario: PowerScenario, held: Held, placed: Integers) -> Capped:
    """Return the policy for servers in racks: the plan's, or the one of least loss at the fullest node."""
    case, asking = scenario.case, Asking(scenario, held.rise)
    servers = case.site.totals(placed)[held.nodes]
    mean_w = np.array([one.mean_w.mean() for one in asking.moments])
    order = np.argsort(-(servers @ mean_w) / case.site.limit_w[held.nodes], kind="stable")
    fullest = int(order[0])
    first = asking.of(int(held.nodes[fullest]), servers[fullest])
    given = scenario.question.plan
    if given is not None and given.thresholds is not None and given.caps is not None:
        clocks = np.array([given.caps[name].clock_hz for name in case.workloads], float).T / asking.highest_clock
        policy = asking.policy(given.thresholds, clocks)
    else:
        best = choose(first)
        if best.policy is None:
            return Capped(held.nodes, servers, None, (best,) * len(held.nodes), fullest, asking)
        policy = asking.policy(best.policy.thresholds, _for_all(best.policy.clocks[1:], servers[fullest], asking.low))
    known: dict[Any, Choice] = {}
    for node, below in zip(held.nodes.tolist(), servers, strict=True):
        key = (int(case.site.pool[node]), *below.tolist())
        if key not in known:
            there = np.flatnonzero(below > 0)
            own = replace(policy, clocks=policy.clocks[:, there])
            known[key] = assess(asking.of(node, below), own)
    keys = [(int(case.site.pool[node]), *below.tolist()) for node, below in zip(held.nodes, servers, strict=True)]
    return Capped(held.nodes, servers, policy, tuple(known[key] for key in keys), fullest, asking)


def _for_all(clocks: Array, servers: Integers, low: Array) -> Array:
    """Return the clocks of all workloads from those that a node has: of one it lacks those of its priority."""
    there = np.flatnonzero(servers > 0).tolist()
    found = np.ones((len(clocks), len(servers)))
    for number in range(len(servers)):
        alike = [place for place, other in enumerate(there) if other == number or low[other] == low[number]]
        own = [place for place, other in enumerate(there) if other == number]
        for place in (own or alike)[:1]:
            found[:, number] = clocks[:, place]
    return found
