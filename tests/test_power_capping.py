"""Capping, breakers and the simulation: cases by hand, conservation, and what must be monotone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.power.breaker import TripCurve, carried_load, heated, trips
from perfmodel.power.capping import Policy, Pools, clocked_power_w, highest_threshold, ladder, largest_rise, time_ratio
from perfmodel.power.simulate import Outcome, Plant, simulate
from perfmodel.power.throttle import dynamic_share, relative_clock

NEVER = TripCurve(np.inf)


def pools(count: int = 1, **changed: float) -> Pools:
    values = {"idle_w": 100.0, "static_w": 100.0, "highest_w": 1e6, "voltage_floor": 0.0, "compute_share": 0.0}
    return Pools(**{name: np.full(count, value) for name, value in (values | changed).items()})


def row(limit_w: float, groups: int = 1, curve: TripCurve = NEVER, held: bool = True) -> Plant:
    """One node with groups of one server, each of a pool of its own."""
    of = np.arange(groups)
    controlled = np.arange(1 if held else 0)
    limit = np.array([limit_w])
    return Plant(np.ones(groups, int), of, np.zeros(groups, int), np.array([-1]), limit, limit, curve, controlled)


def one_level(threshold: float, clock: float, latency_s: float = 40.0, hysteresis: float = 0.05) -> Policy:
    return ladder(
        [threshold], [[clock]], hysteresis=hysteresis, latency_s=latency_s, brake_clock=0.1, brake_latency_s=5.0
    )


def run(power: object, policy: Policy | None, limit_w: float = 1000.0, own: Pools | None = None) -> Outcome:
    series = np.asarray(power, float)[:, None]
    return simulate([series], 1.0, row(limit_w), own or pools(), policy)


def test_a_steady_overload_trips_when_its_integral_says() -> None:
    curve = TripCurve(60.0, 8.0)
    # 1.5 times the rating: 60 / (2.25 - 1) = 48 s; twice: 20 s; 8 times: at once; at the rating: never
    steady = np.broadcast_to([1.5, 2.0, 8.0, 1.0, 0.3], (21, 5))
    assert trips(steady, 1.0, np.zeros(5), curve)[0].tolist() == [0, 1, 21, 0, 0]
    assert carried_load(20.0, curve) == pytest.approx(2.0)
    load = np.full((100, 2), 1.5)
    load[47:, 1] = 0.5
    assert [int(one) for one in trips(load, 1.0, np.zeros(2), curve)[0]] == [2, 0]  # after 49 s, closed, again after 98


def test_a_breaker_cools_below_its_rating() -> None:
    # 10 s at twice the rating is 30; at half of it -0.75 a second, cold after 40 s
    load = np.concatenate([np.full(10, 2.0), np.full(60, 0.5)])[:, None]
    heat = heated(load, 1.0, np.zeros(1))[:, 0]
    assert heat[9] == pytest.approx(30.0)
    assert heat[29] == pytest.approx(30.0 - 20 * 0.75)
    assert heat[60] == 0.0


@given(st.lists(st.floats(0.2, 3.0), min_size=1, max_size=60), st.integers(1, 59))
def test_the_trip_integral_does_not_depend_on_where_time_is_cut(loads: list[float], cut: int) -> None:
    load = np.array(loads)[:, None]
    whole, step = [], 0.0
    for value in loads:
        step = max(0.0, step + value**2 - 1)
        whole.append(step)
    first = heated(load[:cut], 1.0, np.zeros(1)) if cut < len(load) else load[:0]
    rest = heated(load[cut:], 1.0, first[-1]) if len(first) else heated(load, 1.0, np.zeros(1))
    assert np.concatenate([first, rest])[:, 0] == pytest.approx(whole, abs=1e-9)


def test_watts_at_a_clock_by_hand() -> None:
    own = pools(idle_w=200.0, static_w=100.0, highest_w=1000.0, voltage_floor=0.5, compute_share=0.5)
    # at half the clock: time 0.5 / 0.5 + 0.5 = 1.5, so 600 W is busy as 200 + 400 x 1.5 = 800; of 700 above static 1/8
    assert float(time_ratio(0.5, 0.5)) == 1.5
    assert clocked_power_w(600.0, 0.5, own)[0] == pytest.approx(100 + 700 / 8)
    assert clocked_power_w(600.0, 1.0, own)[0] == pytest.approx(600.0)
    assert clocked_power_w(950.0, 0.5, own)[0] == pytest.approx(100 + 900 / 8)  # no busier than always
    assert relative_clock(dynamic_share(0.7, 0.5), 0.5) == pytest.approx(0.7)


@given(st.floats(0.2, 1.0), st.floats(100.0, 1000.0), st.floats(0.0, 1.0))
def test_a_lower_clock_never_draws_more(clock: float, power: float, share: float) -> None:
    own = pools(idle_w=250.0, static_w=100.0, highest_w=1000.0, voltage_floor=0.4, compute_share=share)
    assert float(clocked_power_w(power, clock, own)[0]) <= power * (1 + 1e-12)


def test_the_largest_rise_by_brute_force() -> None:
    power = np.random.default_rng(3).uniform(50, 100, 300)
    for window in (1, 2, 7, 40, 400):
        brute = max(power[t : t + window + 1].max() / power[t] for t in range(300)) - 1
        assert float(largest_rise(power, window)) == pytest.approx(brute)
    # POLCA: a rise of 11.8 % fits above a threshold of 0.89 of the budget
    assert 0.89 < float(highest_threshold(0.118)) < 0.90


def test_a_ramp_is_capped_after_the_delay() -> None:
    # 1 W a second from 500 W: above 800 W from t = 301 on, so the clock falls at 341, when it draws 841 W
    ramp = 500.0 + np.arange(400.0)
    policy = one_level(0.8, 0.5, hysteresis=0.7)
    outcome = run(ramp, policy)
    assert outcome.level_s[0].tolist() == [341.0, 59.0]
    assert outcome.peak_w[0] == 840.0
    after = 100 + (ramp[341:] - 100) / 8
    assert outcome.energy_j[0] == pytest.approx(ramp[:341].sum() + after.sum())
    assert outcome.rise[0] == pytest.approx(40 / 500)


def test_caps_are_released_below_the_hysteresis() -> None:
    # the cap changes nothing here, so when it acts is a matter of the demand: 810 W for 50 s, 770 for 50, 740 for 50
    power = np.repeat([700.0, 810.0, 770.0, 740.0], 50)
    outcome = run(power, one_level(0.8, 1.0, latency_s=10.0))
    assert outcome.level_s[0].tolist() == [100.0, 100.0]  # from 60 to 160 s


def test_equal_thresholds_wait_for_the_effect_of_the_one_before() -> None:
    steps = ladder([0.5, 0.5], [[0.9], [0.8]], hysteresis=0.4, latency_s=20.0, brake_clock=0.1, brake_latency_s=5.0)
    outcome = run(np.full(100, 900.0), steps)
    assert outcome.level_s[0].tolist() == [20.0, 20.0, 60.0]
    at_once = ladder([0.5, 0.6], [[0.9], [0.8]], hysteresis=0.4, latency_s=20.0, brake_clock=0.1, brake_latency_s=5.0)
    assert run(np.full(100, 900.0), at_once).level_s[0].tolist() == [20.0, 0.0, 80.0]


def test_the_brake_acts_in_its_own_time() -> None:
    policy = ladder([0.99], [[1.0]], hysteresis=0.05, latency_s=40.0, brake_clock=0.5, brake_latency_s=5.0)
    power = np.concatenate([np.full(20, 900.0), np.full(80, 1100.0)])
    outcome = run(power, policy)
    # five seconds at 1100 W; then 100 + 1000/8 W, below 950, so it lets go: five seconds each way
    assert outcome.brakes[0] == 8
    assert outcome.over_s[0] == 40.0
    assert outcome.energy_j[0] == pytest.approx(20 * 900 + 40 * 1100 + 40 * 225)


def test_a_row_without_a_policy_trips_and_one_with_does_not() -> None:
    curve = TripCurve(60.0)
    power = np.concatenate([np.full(100, 900.0), np.full(400, 1200.0)])[:, None]
    alone = simulate([power], 1.0, row(1000.0, curve=curve), pools())
    # 1.44 - 1 = 0.44 a second: past 60 at the 137th second, twice in 400 s
    assert alone.trips[0] == 2
    held = simulate([power], 1.0, row(1000.0, curve=curve), pools(), one_level(0.85, 0.7))
    assert held.trips[0] == 0


def tree_of_racks() -> Plant:
    """Two rows of two racks each under one feed; two pools in every rack."""
    parent = np.array([-1, 0, 0, 1, 1, 2, 2])
    node = np.repeat([3, 4, 5, 6], 2)
    limit = np.array([9e4, 4e4, 4e4, 2.5e4, 2.5e4, 2.5e4, 2.5e4])
    return Plant(np.full(8, 4), np.tile([0, 1], 4), node, parent, limit, limit, NEVER, np.array([1, 2]))


def test_what_nodes_supply_adds_up() -> None:
    plant = tree_of_racks()
    power = np.random.default_rng(5).uniform(2000, 5500, (500, 8))
    policy = ladder(
        [0.7, 0.8], [[0.8, 1.0], [0.7, 0.8]], hysteresis=0.05, latency_s=7, brake_clock=0.2, brake_latency_s=3
    )
    for rule in (None, policy):
        outcome = simulate([power[:200], power[200:]], 1.0, plant, pools(2, idle_w=300.0, static_w=300.0), rule)
        energy = outcome.energy_j
        assert energy[0] == pytest.approx(energy[1] + energy[2], rel=1e-6)
        assert energy[1] == pytest.approx(energy[3] + energy[4], rel=1e-6)
        assert outcome.level_s.sum(axis=1).tolist() == [500.0, 500.0]
        assert outcome.classes.sum(axis=1).tolist() == [500, 500]
        if rule is None:
            assert energy[0] == pytest.approx(power.sum(), rel=1e-6)
            assert outcome.loss.tolist() == [0.0, 0.0]


def test_loss_is_the_time_that_the_clock_adds_weighted_by_work() -> None:
    own = pools(idle_w=100.0, static_w=100.0, compute_share=0.6)
    # 30 s at 500 W idle-corrected 400; then 70 s at 850 W, 750; capped for the last 60: 0.6/0.75 + 0.4 = 1.2
    power = np.concatenate([np.full(30, 500.0), np.full(70, 850.0)])
    outcome = run(power, one_level(0.8, 0.75, latency_s=10.0, hysteresis=0.7), own=own)
    assert outcome.loss[0] == pytest.approx(0.2 * 60 * 750 / (30 * 400 + 70 * 750), rel=1e-6)


def test_percentiles_of_a_known_series() -> None:
    outcome = run(np.arange(1.0, 1001.0), None)
    assert outcome.percentile(0.5)[0] == pytest.approx(0.5, abs=0.001)
    assert outcome.percentile(0.99)[0] == pytest.approx(0.99, abs=0.001)


series = st.lists(st.floats(400.0, 990.0), min_size=20, max_size=80)


@settings(max_examples=40, deadline=None)
@given(series, st.floats(0.5, 0.9), st.floats(0.0, 0.09), st.integers(1, 10))
def test_a_higher_threshold_never_caps_longer(power: list[float], low: float, more: float, latency: int) -> None:
    # with caps that change nothing, so that both see the same power: with hysteresis the states are nested
    first, second = (run(power, one_level(threshold, 1.0, latency)) for threshold in (low, low + more))
    assert second.level_s[0, 1] <= first.level_s[0, 1]


@settings(max_examples=40, deadline=None)
@given(series, st.floats(0.5, 0.8), st.integers(1, 10), st.integers(0, 10))
def test_a_longer_latency_never_leaves_fewer_violations(
    power: list[float], limit: float, latency: int, more: int
) -> None:
    # a cap that is never released: all that differs is from when on power is lower
    def over(latency_s: int) -> float:
        policy = ladder([0.5], [[0.6]], hysteresis=2.0, latency_s=latency_s, brake_clock=1.0, brake_latency_s=1.0)
        plant = row(1000.0)
        held = Plant(
            plant.servers, plant.pool, np.array([1]), np.array([-1, 0]), np.array([1000 * limit, 1000.0]),
            plant.rating_w[[0, 0]], NEVER, np.array([1]),
        )  # fmt: skip
        return float(simulate([np.array(power)[:, None]], 1.0, held, pools(), policy).over_s[0])

    assert over(latency + more) >= over(latency)
