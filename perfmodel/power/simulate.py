"""Servers below a tree of limits, second by second: capping with the actuator's delay, the brake, breakers.

It shares nothing with the analytic predictions but the policy and what a clock does to power: those are checked on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.power.breaker import TripCurve, trips
from perfmodel.power.capping import Policy, Pools, largest_rise, slowed_power_w, time_ratio
from perfmodel.power.throttle import dynamic_share
from perfmodel.terms import Array

Integers = NDArray[np.int64]

BIN = 0.0005
"""Width of the classes of power that percentiles are read from, in limits: their error is half of it at most."""
HIGHEST_BIN = 2.0
WITHOUT_POLICY_S = 40.0
"""Time within which the largest rise is taken where no policy says it [s]."""


@dataclass(frozen=True)
class Plant:
    """Servers in groups that are alike, and the nodes that supply them.

    Parameters
    ----------
    servers : array of int, shape (groups,)
        Servers of each group.
    pool, node : array of int, shape (groups,)
        The group's pool, and the node it hangs on.
    parent : array of int, shape (nodes,)
        Node above each, before it in the order; -1 for a root.
    limit_w : array, shape (nodes,)
        What each may draw [W].
    rating_w : array, shape (nodes,)
        Ratings of their breakers [W].
    trip : TripCurve
        When those open.
    controlled : array of int, shape (controllers,)
        Nodes whose power is measured and held below their limit; none above another.
    """

    servers: Integers
    pool: Integers
    node: Integers
    parent: Integers
    limit_w: Array
    rating_w: Array
    trip: TripCurve
    controlled: Integers


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Parameters
    ----------
    seconds : float
        Simulated time [s].
    peak_w, energy_j, over_s : array, shape (nodes,)
        Highest power [W], energy [J] and time above the limit [s].
    trips : array of int, shape (nodes,)
        How often the breaker opened.
    level_s : array, shape (controllers, levels + 1)
        Time at each level of the policy, as it acts on the servers [s].
    brakes : array of int, shape (controllers,)
        How often power exceeded the limit and the brake was pulled.
    rise : array, shape (controllers,)
        Largest rise within the policy's latency of what the servers would draw without caps, over the power it starts
        from [1].
    loss : array, shape (pools,)
        Time of requests over that without caps, less 1; weighted with what a server does, its power above idle [1].
    classes : array of int, shape (controllers, classes)
        Seconds with power in each class of width `BIN` of the limit.
    """

    seconds: float
    peak_w: Array
    energy_j: Array
    over_s: Array
    trips: Integers
    level_s: Array
    brakes: Integers
    rise: Array
    loss: Array
    classes: Integers

    def percentile(self, share: float) -> Array:
        """Return the power of each controlled node over its limit that is exceeded for 1 - share of the time [1]."""
        reached = np.cumsum(self.classes, axis=1) >= share * self.classes.sum(axis=1, keepdims=True)
        return np.asarray((reached.argmax(axis=1) + 0.5) * BIN)


def above(plant: Plant) -> Any:
    """Return which groups each node supplies: a sparse matrix of ones, shape (nodes, groups)."""
    from scipy.sparse import csr_matrix

    rows, columns = [], []
    at, groups = plant.node.copy(), np.arange(len(plant.node))
    while len(groups):
        rows.append(at)
        columns.append(groups)
        at = plant.parent[at]
        groups, at = groups[at >= 0], at[at >= 0]
    found, held = np.concatenate(rows), np.concatenate(columns)
    shape = (len(plant.parent), len(plant.node))
    return csr_matrix((np.ones(len(found), np.float32), (found, held)), shape=shape)


def next_level(share: Array, level: Integers, settled: NDArray[np.bool_], policy: Policy) -> Integers:
    """Return the level that each controller asks for.

    Parameters
    ----------
    share : array, shape (controllers,)
        Power over the limit.
    level : array of int, shape (controllers,)
        What it asked for so far.
    settled : array of bool, shape (controllers,)
        Whether that has had its effect.
    policy : Policy
        The ladder.
    """
    thresholds = np.array([-np.inf, *policy.thresholds, np.inf])
    now, waited = level, settled
    for _ in range(policy.levels):
        up = (share > thresholds[now + 1]) & (waited | (thresholds[now + 1] != thresholds[now]))
        now, waited = now + up, waited & ~up
    return np.asarray(now - (share < thresholds[now] - policy.hysteresis))


def simulate(
    demand_w: Iterable[Array], step_s: float, plant: Plant, pools: Pools, policy: Policy | None = None
) -> Outcome:
    """Run servers below a tree of limits.

    Parameters
    ----------
    demand_w : iterable of array, shape (steps, groups)
        What each group draws at the highest clock, some time at a time [W].
    step_s : float
        Length of a step [s].
    plant : Plant
        Groups and nodes.
    pools : Pools
        What a clock does to the servers of each pool.
    policy : Policy
        What holds power below the limits; nothing if left out.

    Notes
    -----
    A decision at a step acts on the servers its latency later, one step at least. Time is cut into blocks no longer
    than the latency, within which all clocks are known from decisions before: a block of many racks is one array
    operation.
    """
    idle = Policy((), np.ones((1, len(pools.idle_w))), 0.0, WITHOUT_POLICY_S, 1.0, WITHOUT_POLICY_S)
    state = _State(step_s, plant, pools, policy or idle, braked=policy is not None)
    for chunk in demand_w:
        state.run(np.asarray(chunk, np.float32))
    return state.outcome()


class _State:
    """What a simulation carries from one piece of time to the next."""

    def __init__(self, step_s: float, plant: Plant, pools: Pools, policy: Policy, *, braked: bool) -> None:
        self.step_s, self.plant, self.pools, self.policy, self.braked = step_s, plant, pools, policy, braked
        self.supplied = above(plant)
        self.limit_w = plant.limit_w[plant.controlled]
        self.controller = _controllers(plant, self.supplied)
        scale = {"voltage_floor": 1.0, "compute_share": 1.0}
        of_group = {
            name: (np.asarray(value)[plant.pool] * scale.get(name, plant.servers)).astype(np.float32)
            for name, value in vars(pools).items()
        }
        self.group = Pools(**of_group)
        self.slower, self.halted = (
            tuple(
                part.astype(np.float32)
                for part in (time_ratio(clocks, pools.compute_share), dynamic_share(clocks, pools.voltage_floor))
            )
            for clocks in (policy.clocks, np.full(len(pools.idle_w), policy.brake_clock))
        )
        nodes, controllers = len(plant.parent), len(plant.controlled)
        self.delay = max(int(np.ceil(policy.latency_s / step_s)), 1)
        self.brake_delay = max(int(np.ceil(policy.brake_latency_s / step_s)), 1)
        self.asked = np.zeros((self.delay, controllers), np.int64)
        self.pulled = np.zeros((self.brake_delay, controllers), bool)
        self.level = np.zeros(controllers, np.int64)
        self.changed = np.full(controllers, -self.delay)
        self.brake = np.zeros(controllers, bool)
        self.step = 0
        self.peak_w, self.energy_j, self.over_s = (np.zeros(nodes) for _ in range(3))
        self.heat, self.trips = np.zeros(nodes), np.zeros(nodes, np.int64)
        self.level_s = np.zeros((controllers, policy.levels + 1))
        self.brakes, self.rise = np.zeros(controllers, np.int64), np.zeros(controllers)
        self.lost, self.done = np.zeros(len(pools.idle_w)), np.zeros(len(pools.idle_w))
        self.classes = np.zeros((controllers, int(HIGHEST_BIN / BIN)), np.int64)
        self.before = np.zeros((0, controllers), np.float32)

    def run(self, demand: Array) -> None:
        """Run a piece of time, shape (steps, groups)."""
        steps = len(demand)
        power = np.asarray(self.supplied @ demand.T).T.copy()
        self._note_rise(power[:, self.plant.controlled])
        busy = np.maximum(demand - self.group.idle_w, 0.0)
        self.done += np.bincount(self.plant.pool, busy.sum(axis=0, dtype=float), len(self.done))
        for begin in range(0, steps, self.delay):
            end = min(begin + self.delay, steps)
            if not self._block(demand[begin:end], power[begin:end]):
                for first in range(begin, end, self.brake_delay):
                    last = min(first + self.brake_delay, end)
                    self._block(demand[first:last], power[first:last])
        self._note(power)

    def _block(self, demand: Array, power: Array) -> bool:
        """Set the power of all nodes in a block, and decide what to ask for.

        A block is no longer than the policy's latency. One that is longer than the brake's, in which a brake is or
        comes to be pulled, is left as it was: False.
        """
        long = len(demand) > self.brake_delay
        if long and (self.brake.any() or self.pulled.any()):
            return False
        steps = self.step + np.arange(len(demand))
        acting, braking = self.asked[steps % self.delay], self.pulled[steps[: self.brake_delay] % self.brake_delay]
        now, capped = power, bool(acting.any() or braking.any())
        if capped:
            less, work = self._capped(demand, acting, np.zeros(acting.shape, bool) if long else braking)
            now = power + np.asarray(self.supplied @ less.T).T
        share = now[:, self.plant.controlled] / self.limit_w
        if long and self.braked and (share > 1.0).any():
            return False
        if capped:
            power[:] = now
            self.lost += work
        for number in range(self.policy.levels + 1):
            self.level_s[:, number] += (acting == number).sum(axis=0) * self.step_s
        self.step += len(demand)
        if self.braked:
            self._decide(share, steps)
        return True

    def _decide(self, share: Array, steps: Integers) -> None:
        """Note what controllers ask for at every step of a block, going from change to change."""
        thresholds = np.array([-np.inf, *self.policy.thresholds, np.inf])
        asked = np.broadcast_to(self.level, share.shape).copy()
        pulled = np.broadcast_to(self.brake, share.shape).copy()
        at, start = steps[:, None], np.full(len(self.level), steps[0])
        while True:
            enters, leaves = thresholds[self.level + 1], thresholds[self.level] - self.policy.hysteresis
            waits = np.where(enters == thresholds[self.level], self.changed + self.delay, 0)
            change = ((share > enters) & (at >= waits)) | (share < leaves)
            change |= np.where(self.brake, share < 1.0 - self.policy.hysteresis, share > 1.0)
            change &= at >= start
            own = np.flatnonzero(change.any(axis=0))
            if not len(own):
                break
            first = change[:, own].argmax(axis=0)
            now, step, before = share[first, own], steps[first], self.level[own]
            self.level[own] = next_level(now, before, step - self.changed[own] >= self.delay, self.policy)
            self.changed[own] = np.where(self.level[own] != before, step, self.changed[own])
            braked = (now > 1.0) | (self.brake[own] & (now >= 1.0 - self.policy.hysteresis))
            self.brakes[own] += braked & ~self.brake[own]
            self.brake[own], start[own] = braked, step + 1
            later = at >= step
            asked[:, own] = np.where(later, self.level[own], asked[:, own])
            pulled[:, own] = np.where(later, braked, pulled[:, own])
        self.asked[steps % self.delay] = asked
        last = slice(-self.brake_delay, None)
        self.pulled[steps[last] % self.brake_delay] = pulled[last]

    def _capped(self, demand: Array, acting: Integers, braking: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return what lower clocks change of the power of groups [W], and work that is late, by pools [J]."""
        touched = np.asarray(acting.any(axis=0) | braking.any(axis=0))
        groups = np.flatnonzero((self.controller >= 0) & touched[self.controller])
        of = self.controller[groups]
        own = Pools(**{name: value[groups] for name, value in vars(self.group).items()})
        ratio, left = (table[acting[:, of], self.plant.pool[groups]] for table in self.slower)
        if braking.any():
            halted = braking[:, of]
            ratio, left = (
                np.where(halted, np.maximum(ratio, self.halted[0][self.plant.pool[groups]]), ratio),
                np.where(halted, np.minimum(left, self.halted[1][self.plant.pool[groups]]), left),
            )
        asked = demand[:, groups]
        less = np.zeros_like(demand)
        less[:, groups] = slowed_power_w(asked, ratio, left, own.idle_w, own.static_w, own.highest_w) - asked
        work = np.maximum(asked - own.idle_w, 0.0) * (ratio - 1.0)
        return less, np.bincount(self.plant.pool[groups], work.sum(axis=0, dtype=float), len(self.lost))

    def _note_rise(self, power: Array) -> None:
        """Note the largest rise within the latency, over the end of the piece before and this one."""
        series = np.concatenate([self.before, power])
        self.rise = np.maximum(self.rise, largest_rise(np.maximum(series, 1e-3), self.delay))
        self.before = series[-self.delay :]

    def _note(self, power: Array) -> None:
        """Note what breakers and meters saw."""
        self.peak_w = np.maximum(self.peak_w, power.max(axis=0))
        self.energy_j += power.sum(axis=0, dtype=float) * self.step_s
        over = power > self.plant.limit_w
        self.over_s += over.sum(axis=0) * self.step_s
        load = power / self.plant.rating_w
        warm = np.flatnonzero((self.heat > 0) | (load > 1.0).any(axis=0))
        if len(warm):
            curve = TripCurve(
                *(np.broadcast_to(part, self.heat.shape)[warm] for part in vars(self.plant.trip).values())
            )
            counted, self.heat[warm] = trips(load[:, warm], self.step_s, self.heat[warm], curve)
            self.trips[warm] += counted
        share = power[:, self.plant.controlled] / self.limit_w
        classes = self.classes.shape[1]
        number = np.minimum((share / BIN).astype(np.int64), classes - 1) + np.arange(share.shape[1]) * classes
        self.classes += np.bincount(number.ravel(), minlength=self.classes.size).reshape(self.classes.shape)

    def outcome(self) -> Outcome:
        """Return what was noted."""
        return Outcome(
            self.step * self.step_s,
            self.peak_w,
            self.energy_j,
            self.over_s,
            self.trips,
            self.level_s,
            self.brakes,
            self.rise,
            self.lost / np.where(self.done > 0, self.done, 1.0),
            self.classes,
        )


def _controllers(plant: Plant, supplied: Any) -> Integers:
    """Return which controller each group is under; -1 for none."""
    found = np.full(len(plant.node), -1)
    for number, node in enumerate(plant.controlled.tolist()):
        found[supplied[node].indices] = number
    return found
