"""Servers below nodes that caps hold: how many a policy of two thresholds allows, and what it does to them.

A node that is held is planned by what its policy does, not by the rules for uncapped power: at most as many servers
stand below it as leave a policy that keeps all limits. All other nodes meet the rules without caps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hardware.facility import Actuator, PowerTree
from perfmodel.power import throttle_of
from perfmodel.power.breaker import TripCurve
from perfmodel.power.capping import Pools, ladder, largest_rise
from perfmodel.power.forecast import Moments
from perfmodel.power.load import DAY_S, WEEK_S, Load, NormalLoad, demands
from perfmodel.power.node import node_power_w
from perfmodel.power.simulate import Outcome, Plant, simulate
from perfmodel.terms import Array
from solvers.power_capping import Choice, Question, assess, choose
from solvers.power_case import Case, Integers
from solvers.power_rules import rules_of
from solvers.power_scenario import PowerScenario

SEED = 1
"""Of the synthesised week from which the largest rise is taken, and of a simulation where nothing is said."""


@dataclass(frozen=True)
class Held:
    """Nodes that caps hold, and what they allow.

    Parameters
    ----------
    nodes : array of int
        Nodes that are held.
    most : array of int
        Servers that may stand below each.
    rise : float
        Largest rise of power within the actuator's latency over the power it starts from [1].
    refused : Choice or None
        What one server more breaks; None where racks have no room for it.
    """

    nodes: Integers
    most: Integers
    rise: float
    refused: Choice | None


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
    hours = np.arange(0.0, 24.0, 0.5)
    common = max(float(case.correlation[number, number]), 0.0)
    return NormalLoad(1800.0, draw.mean_at(hours), draw.sigma_w, common, range_w)


def pools_of(scenario: PowerScenario) -> Pools:
    """Return what a clock does to the servers of each workload.

    Notes
    -----
    Of work that is not known by its requests all time follows the clock: no cap costs more.
    """
    columns = []
    for draw, machine in zip(scenario.draws, scenario.machines, strict=True):
        throttle, boards = throttle_of(machine.accelerator), machine.node.accelerators.count
        static_w = float(node_power_w(machine.node, boards * throttle.static * machine.accelerator.power.limit))
        share = 1.0
        idle_w = draw.idle_w
        if draw.served is not None:
            load = draw.served.load
            share = float(np.interp(load.peak_load, load.statistics.load, load.statistics.compute_share))
            idle_w = draw.served.law.waiting_w
        columns.append((idle_w, min(static_w, idle_w), draw.max_w, throttle.voltage_floor, share))
    return Pools(*np.array(columns).T)


def held_nodes(tree_level: tuple[str, ...]) -> Integers:
    """Return the nodes that are held: all rows, or the root where there are none."""
    rows = np.flatnonzero(np.array(tree_level) == "row")
    return rows if len(rows) else np.zeros(1, np.int64)


def questions(scenario: PowerScenario, rise: float) -> Any:
    """Return what makes the question of a held node from its number and the servers of each workload below it."""
    moments, pools = tuple(one.moments() for one in loads_of(scenario)), pools_of(scenario)
    policy = scenario.question.policy
    low = np.array([one.priority == "low" for one in scenario.question.workloads])
    lock, brake = actuators(scenario)
    highest = lock.clock.highest if lock.clock else 1.0
    lowest = lock.clock.lowest / highest if lock.clock else 1.0
    brake_clock = brake.clock.lowest / highest if brake is not None and brake.clock else 1.0
    brake_latency_s = lock.latency if brake is None else brake.latency
    curves = trip_curves(scenario)

    def asked(node: int, servers: Integers) -> Question:
        curve = TripCurve(float(curves.inverse_time_s[node]), float(curves.instantaneous[node]))
        there = np.flatnonzero(servers > 0)
        return Question(
            tuple(moments[number] for number in there.tolist()),
            servers[there],
            Pools(**{name: value[there] for name, value in vars(pools).items()}),
            low[there],
            float(scenario.case.site.limit_w[node]),
            curve,
            lowest,
            lock.latency,
            lock.hysteresis,
            brake_clock,
            brake_latency_s,
            rise,
            np.where(low, policy.most_loss.low, policy.most_loss.high)[there],
            policy.brake_risk,
        )

    return asked
