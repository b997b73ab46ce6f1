"""Groups of any size on nodes: places, plans of every schedule, and optima against exhaustive search."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from solvers.sequence_accumulate import plan_fixed, plan_splits
from solvers.sequence_barrier import plan_barrier
from solvers.sequence_bounds import integer_bound, work_bound
from solvers.sequence_case import makespan
from solvers.sequence_layout import Free, chained, laid_out, nested, one_size
from solvers.sequence_oneshot import plan_oneshot
from solvers.sequence_static import plan_static
from tests.sequence_checker import faults
from tests.sequence_reference import brute_force, brute_force_barrier, costs, lie_together, small_by_nodes

PLANNERS = {"one-shot": plan_oneshot, "barrier": plan_barrier, "fixed": plan_fixed, "splits": plan_splits}


def planned(case, schedule, time_limit_s=2.0):
    """Return makespan and bound of a plan, checked; infinite where there is none."""
    try:
        plan, bound, _ = PLANNERS[schedule](case, time_limit_s)
    except ValueError:
        return inf, inf
    found = makespan(case, plan)
    assert not faults(case, plan, found)
    assert bound <= found * (1 + 1e-9)
    return found, bound


def test_places_are_found_where_there_are_any() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        node, nodes = (int(n) for n in rng.choice([(4, 2), (6, 2), (5, 3), (8, 2), (3, 4)]))
        gpus = node * nodes
        sizes = rng.integers(1, gpus // 2 + 2, int(rng.integers(1, 6))).tolist()
        first = laid_out(sizes, gpus, node)
        assert (first is not None) == (sum(sizes) <= gpus and lie_together(sizes, gpus, node)), (sizes, node, nodes)
        seen.add(first is None)
        if first is None:
            continue
        taken = [gpu for start, size in zip(first, sizes, strict=True) for gpu in range(start, start + size)]
        assert len(taken) == len(set(taken)) and max(taken) < gpus
        for start, size in zip(first, sizes, strict=True):
            assert start // node == (start + size - 1) // node if size <= node else start % node == 0
    assert seen == {True, False}


def test_places_that_only_a_search_finds() -> None:
    # largest first puts 6 with 4 and 5 with 5; only {6, 2, 2}, {5, 5} and {4, 3, 3} fill three nodes of ten
    sizes = [6, 5, 5, 4, 3, 3, 2, 2]
    first = laid_out(sizes, 30, 10)
    assert first is not None
    by_node = [sorted(size for size, at in zip(sizes, first, strict=True) if at // 10 == node) for node in range(3)]
    assert [sum(held) for held in by_node] == [10, 10, 10]
    assert laid_out([6, 6, 6, 3, 3, 3, 3], 30, 10) is None  # one of them stays over
    assert laid_out([6, 6, 6, 5, 5], 30, 10) is None


def test_room_is_told_as_groups_are_placed() -> None:
    free = Free(24, 8)
    assert free.fits(24) and not free.fits(25)
    free.take(12)  # a node and a half
    assert free.fits(8) and not free.fits(12) and free.fits(4)
    free.take(3)  # beside the half
    free.take(8)
    assert free.fits(1) and not free.fits(2)


def test_sizes_that_divide_one_another_need_no_search() -> None:
    assert nested([1, 2, 4, 8, 16, 64], 8) and nested([3, 6, 12], 6) and nested([8, 24], 8)
    assert not nested([1, 6], 8) and not nested([2, 3], 6) and not nested([8, 12], 8) and not nested([64], 72)


def test_sizes_that_divide_one_another_are_taken_out() -> None:
    case = replace(costs(48, [1, 2, 3, 4, 6, 8, 12, 16, 20], [1], 1, 1, 1, [1] * 9, (1, 1), 9), node_units=8)
    few = chained(case)
    assert few is not None and few.degrees.tolist() == [1, 2, 4, 8, 16] and few.node_units is None
    assert few.work_s.tolist() == case.work_s[:, [0, 1, 3, 5, 7]].tolist()
    assert chained(replace(case, degrees=case.degrees[[4, 6]], node_units=8)) is None


def test_groups_of_one_size() -> None:
    case = replace(costs(24, [3, 12, 20], [1], 1, 1, 1, [1, 1, 1], (1, 1), 9), node_units=8)
    assert one_size(case, 3).tolist() == [0, 3, 8, 11, 16, 19]
    assert one_size(case, 12).tolist() == [0]
    assert one_size(replace(case, gpus=32), 12).tolist() == [0, 16]


def test_brute_force_agrees() -> None:
    for seed in range(120):
        case = small_by_nodes(seed)
        assert planned(case, "one-shot")[0] == pytest.approx(brute_force(case), rel=1e-9), seed


def test_brute_force_agrees_with_barriers() -> None:
    for seed in range(3000, 3060):
        case = small_by_nodes(seed)
        assert planned(case, "barrier")[0] == pytest.approx(brute_force_barrier(case), rel=1e-9), seed


@pytest.mark.parametrize("schedule", ["fixed", "splits"])
def test_plans_without_a_barrier_stand(schedule: str) -> None:
    found = 0
    for seed in range(4000, 4060):
        case = small_by_nodes(seed)
        time, _ = planned(case, schedule, 0.05)
        found += time < inf
        assert work_bound(case, schedule) <= time * (1 + 1e-9)
    assert found >= 55


def test_bounds_hold_though_they_see_no_nodes() -> None:
    for seed in range(5000, 5040):
        case = small_by_nodes(seed)
        optimum = brute_force(case)
        assert work_bound(case, "one-shot") <= optimum * (1 + 1e-9)
        assert optimum == inf or integer_bound(case, "one-shot", 2 * optimum, 1.0) <= optimum * (1 + 1e-6)


def many(count: int = 120):
    """Return long-tailed lengths on five nodes of eight, groups of any size to a node and some larger."""
    rng = np.random.default_rng(2)
    lengths = np.exp(rng.normal(3, 1.2, count)).clip(1, 400).astype(int)
    degrees = [1, 2, 3, 4, 5, 6, 7, 8, 12, 20, 40]
    rates = [inf] + [10.0] * 7 + [2.0, 1.5, 1.0]
    case = costs(40, degrees, lengths, 0.01, 1, 5, rates, (1, 1), max(lengths.sum() / (0.7 * 40), 15.0))
    return replace(case, node_units=8)


@pytest.mark.parametrize("schedule", PLANNERS)
def test_many_sequences(schedule: str) -> None:
    case = many()
    if schedule != "one-shot":
        case = replace(case, capacity_tokens=case.capacity_tokens / 3)
    time, bound = planned(case, schedule, 0.6)
    assert time < 1.25 * bound
    static, _, _ = plan_static(case, schedule)
    assert not faults(case, static, makespan(case, static))
