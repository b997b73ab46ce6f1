"""What an order of nodes costs, what none can beat, and the search for the best: against all orders there are."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placements import all_orders, cost_by_hand, problem, ring

from perfmodel.placement import (
    Demand,
    Network,
    comm_time_s,
    demand,
    network,
    phase_times,
    slowest,
    transfer_time_sum_s,
)
from perfmodel.traffic import Traffic, phase
from solvers.placement_bound import Thresholds, joint_bound, phase_bounds, reachable_s, sum_bound
from solvers.placement_exact import Exact
from solvers.placement_search import Search

FORMS: list[tuple[bool, Callable[..., Any]]] = [(False, comm_time_s), (True, transfer_time_sum_s)]


def soon(seconds: float = 30.0) -> float:
    return time.perf_counter() + seconds


def searching(wanted: Demand, net: Network, by_sum: bool) -> Search:
    cost = transfer_time_sum_s if by_sum else comm_time_s
    return Search(wanted, net, lambda order: cost(wanted, net, order), by_sum, np.arange(len(net.names)))


# --- cost ----------------------------------------------------------------------------------------------------------


def test_a_ring_waits_for_its_slowest_link() -> None:
    rates = np.full((4, 4), 10e9)
    rates[2, 3] = 2e9
    wanted, net = demand(Traffic(4, (ring("ring", 4, 1e9),))), network("abcd", rates)
    assert comm_time_s(wanted, net, np.arange(4)) == pytest.approx(1e9 / 2e9)
    assert comm_time_s(wanted, net, np.array([0, 2, 1, 3])) == pytest.approx(1e9 / 10e9)  # nobody sends from c to d


def test_messages_of_a_phase_share_the_adapters_of_a_node() -> None:
    to_all = phase("all", np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([1e9, 2e9, 3e9]))
    wanted, net = demand(Traffic(4, (to_all,))), network("abcd", np.full((4, 4), 10e9))
    assert comm_time_s(wanted, net, np.arange(4)) == pytest.approx(6e9 / 10e9)
    found = slowest(wanted, net, np.arange(4))[0]
    assert (found.sender, found.receiver, found.rate) == (0, None, 10e9)


def test_phases_follow_one_another() -> None:
    phases = (ring("one", 4, 1e9), ring("two", 4, 3e9))
    wanted, net = demand(Traffic(4, phases)), network("abcd", np.full((4, 4), 10e9))
    assert phase_times(wanted, net, np.arange(4)) == pytest.approx([0.1, 0.3])
    assert comm_time_s(wanted, net, np.arange(4)) == pytest.approx(0.4)
    assert transfer_time_sum_s(wanted, net, np.arange(4)) == pytest.approx(1.6)


@pytest.mark.parametrize("seed", range(20))
def test_cost_is_the_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    wanted, net = problem(random, 6, int(random.integers(2, 7)), int(random.integers(1, 4)))
    orders = np.array([random.permutation(6)[: wanted.units] for _ in range(5)])
    for order, together, alone in zip(
        orders, comm_time_s(wanted, net, orders), transfer_time_sum_s(wanted, net, orders), strict=True
    ):
        assert (together, alone) == pytest.approx(cost_by_hand(wanted, net, order), rel=1e-12)


# --- against all orders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_exact_search_and_bounds_against_every_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    nodes = int(random.integers(3, 8))
    wanted, net = problem(
        random, nodes, int(random.integers(2, nodes + 1)), int(random.integers(1, 4)), random.uniform(0.2, 0.9)
    )
    orders = all_orders(nodes, wanted.units)
    best_of_phase = phase_times(wanted, net, orders).min(axis=0)
    for by_sum, cost in FORMS:
        best = float(cost(wanted, net, orders).min())
        search = searching(wanted, net, by_sum)
        floor = np.zeros(1)
        if by_sum:
            assert sum_bound(wanted, net) <= best * (1 + 1e-9)
        else:
            check = Thresholds(wanted, net)
            floor, complete = phase_bounds(check, phase_times(wanted, net, np.arange(wanted.units)), soon())
            assert complete
            assert (floor <= best_of_phase * (1 + 1e-9)).all()
            together = joint_bound(check, floor, lambda at=search: at.value, soon(0.05), 1e-9)
            assert floor.sum() * (1 - 1e-9) <= together <= best * (1 + 1e-9)
            # nothing that is reached is called impossible
            chosen = orders[int(random.integers(len(orders)))]
            assert check.impossible(phase_times(wanted, net, chosen)) is None
        assert Exact(search, floor, soon()).run()
        assert search.value == pytest.approx(best, rel=1e-9)
        assert cost_by_hand(wanted, net, search.order)[by_sum] == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("by_sum", [False, True])
def test_exchanges_are_costed_as_what_they_change(by_sum: bool) -> None:
    # all exchanges from one order, by the change of the sum of powers worked out from its definition
    from solvers import placement_search

    random = np.random.default_rng(5)
    wanted, net = problem(random, 9, 7, 3)
    order = random.permutation(9)
    power = 1.0 if by_sum else 6.0
    far = placement_search._Distances.of(net, power)
    rows = placement_search._Powers.of(wanted, far, order.copy(), order, by_sum)
    rows.refresh()
    reached = np.ones(len(wanted.phases)) if by_sum else phase_times(wanted, net, order[:7])

    def smooth(placed: np.ndarray) -> float:
        total = 0.0
        for p, a, b, size in zip(wanted.phase, wanted.sources, wanted.destinations, wanted.sent_bytes, strict=True):
            total += reached[p] * (size / reached[p] / net.bandwidth[placed[a], placed[b]]) ** power
        if not by_sum:
            for p, unit in np.ndindex(wanted.leaving.shape):
                for size, limit in (
                    (wanted.leaving[p, unit], net.sending), (wanted.arriving[p, unit], net.receiving),
                ):  # fmt: skip
                    total += reached[p] * (size / reached[p] / limit[placed[unit]]) ** power
        return total

    before = smooth(order)
    changes = {}
    for a in range(9):
        found = rows.changes(a)
        for b in range(9):
            if a != b:
                other = order.copy()
                other[a], other[b] = other[b], other[a]
                changes[a, b] = smooth(other) - before
                assert found[b] == pytest.approx(changes[a, b], abs=1e-9 * before)
    best = min(changes, key=lambda pair: changes[pair])
    pair = rows.best()
    assert pair is not None and changes[pair] == pytest.approx(changes[best], abs=1e-9 * before)


# --- properties ----------------------------------------------------------------------------------------------------


def optimum(wanted: Demand, net: Network) -> float:
    search = searching(wanted, net, False)
    assert Exact(search, np.zeros(len(wanted.phases)), soon()).run()
    return search.value


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 5), st.floats(1.0, 8.0))
def test_a_faster_link_never_costs(seed: int, sender: int, receiver: int, factor: float) -> None:
    wanted, net = problem(np.random.default_rng(seed), 6)
    rates = net.bandwidth.copy()
    rates[sender, receiver] *= factor
    assert optimum(wanted, network(net.names, rates)) <= optimum(wanted, net) * (1 + 1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(6)))
def test_names_of_nodes_do_not_matter(seed: int, shuffled: list[int]) -> None:
    wanted, net = problem(np.random.default_rng(seed), 6, 5)
    again = network([net.names[node] for node in shuffled], net.bandwidth[np.ix_(shuffled, shuffled)])
    assert optimum(wanted, again) == pytest.approx(optimum(wanted, net), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_twice_the_bytes_take_twice_as_long(seed: int, factor: float) -> None:
    wanted, net = problem(np.random.default_rng(seed), 5)
    slower = network(net.names, net.bandwidth / factor)
    assert optimum(wanted, slower) == pytest.approx(factor * optimum(wanted, net), rel=1e-9)


def test_equal_nodes_leave_nothing_to_choose() -> None:
    wanted, _ = problem(np.random.default_rng(3), 8, 8, 3)
    net = network([f"n{node}" for node in range(8)], np.full((8, 8), 5e9))
    orders = np.array([np.random.default_rng(seed).permutation(8) for seed in range(50)])
    assert np.ptp(comm_time_s(wanted, net, orders)) < 1e-12
    search = searching(wanted, net, False)
    start = search.value
    search.run(soon(), lambda: 0.0, 0.0, rounds=5)
    assert search.value == pytest.approx(start, rel=1e-12)


def test_the_bound_of_a_hidden_fast_ring_is_its_time() -> None:
    # 40 nodes with 1 GB/s but for one ring of 10 GB/s through them in random order: the only good order there is
    random = np.random.default_rng(11)
    hidden = random.permutation(40)
    rates = np.full((40, 40), 1e9) * random.uniform(0.9, 1.1, (40, 40))
    rates[hidden, np.roll(hidden, -1)] = 10e9
    wanted, net = demand(Traffic(40, (ring("ring", 40, 1e9),))), network([str(node) for node in range(40)], rates)
    floor, complete = phase_bounds(Thresholds(wanted, net), phase_times(wanted, net, np.arange(40)), soon())
    assert complete and floor[0] == pytest.approx(0.1)
    assert comm_time_s(wanted, net, hidden) == pytest.approx(0.1)


def test_two_halves_hold_two_rings_but_not_one() -> None:
    rates = np.full((8, 8), 1e9)
    for half in (slice(0, 4), slice(4, 8)):
        rates[half, half] = 10e9
    net = network("abcdefgh", rates)
    one = ring("one", 8, 1e9)
    two = phase("two", np.arange(8), np.array([1, 2, 3, 0, 5, 6, 7, 4]), np.full(8, 1e9))
    for traffic, seconds in ((one, 1.0), (two, 0.1)):
        wanted = demand(Traffic(8, (traffic,)))
        floor, _ = phase_bounds(Thresholds(wanted, net), np.array([10.0]), soon())
        assert floor[0] == pytest.approx(seconds)


def test_no_path_is_seen() -> None:
    rates = np.full((6, 6), 1e9)
    rates[:3, 3:] = 0.0
    net = network("abcdef", rates)
    whole, halves = (demand(Traffic(size, (ring("ring", size),))) for size in (6, 3))
    assert Thresholds(whole, net).impossible(reachable_s(whole, net)) is not None
    assert Thresholds(halves, net).impossible(reachable_s(halves, net)) is None
