"""Groups of pipelines: flow shops worked out job by job; small cases searched whole; plans and bounds around them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from sequence_checker import faults
from sequence_reference import brute_force, partitions
from test_sequence_accumulate import case_of
from test_sequence_bounds import drawn, layouts

from solvers.sequence_accumulate import plan_fixed
from solvers.sequence_barrier import plan_barrier
from solvers.sequence_bounds import certificate, integer_bound, work_bound
from solvers.sequence_case import Scatter, makespan
from solvers.sequence_oneshot import plan_oneshot
from solvers.sequence_pipeline import balanced
from solvers.sequence_static import plan_static

PLANNERS = {"one-shot": plan_oneshot, "barrier": plan_barrier, "fixed": plan_fixed}


def flow_shop_s(times, stages):
    """Return when the last stage ends the last job: each begins when the stage and the job are free."""
    ready = [0.0] * stages
    for time in times:
        done = 0.0
        for stage in range(stages):
            done = ready[stage] = max(done, ready[stage]) + time
    return ready[-1]


def several(seed, stages, **others):
    return replace(drawn(seed, **others), stages=stages)


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_a_chain_takes_what_a_flow_shop_takes_in_any_order(stages):
    """Forward and backward through the stages, each in its share: a third and two thirds."""
    case = replace(case_of(3, gpus=1, sequences=6, longest=2_000), stages=stages)
    plan = Scatter("fixed", np.array([1]), np.array([0]), np.zeros(6, int), np.arange(6))
    times = (case.work_s[:, 0] + case.fixed_s[0]).tolist()
    for order in itertools.islice(itertools.permutations(times), 0, 720, 77):
        there = flow_shop_s([time / 3 for time in order], stages)
        back = flow_shop_s([2 * time / 3 for time in reversed(order)], stages)
        assert makespan(case, plan) == pytest.approx(there + back, rel=1e-12)


def least_fixed(case):
    """Search all layouts, all assignments, and all cuts of a group's sequences into micro-steps."""
    known = {}
    held = case.held.tolist()

    def spent(members, column):
        if not members:
            return 0.0
        if (members, column) not in known:
            room, fixed = case.degrees[column] * case.capacity_tokens, case.fixed_s[column]
            best = np.inf
            for cut in partitions(list(members)):
                if all(sum(held[k] for k in step) <= room for step in cut):
                    times = [case.work_s[step, column].sum() + fixed for step in cut]
                    best = min(best, flow_shop_s(times, case.stages))
            known[members, column] = best
        return known[members, column]

    best = np.inf
    for layout in layouts(case.gpus, case.degrees.tolist()):
        columns = [case.degrees.tolist().index(degree) for degree in layout]
        for chosen in itertools.product(range(len(layout)), repeat=len(case.lengths)):
            members = [tuple(k for k, group in enumerate(chosen) if group == n) for n in range(len(layout))]
            best = min(best, max(spent(*pair) for pair in zip(members, columns, strict=True)))
    return best


def least_barrier(case):
    """Search all cuts into micro-batches, each with its least makespan: all pipelines move on together."""
    known, best = {}, np.inf
    for sets in partitions(list(range(len(case.lengths)))):
        ends = []
        for members in map(tuple, map(sorted, sets)):
            if members not in known:
                known[members] = brute_force(case.of(np.array(members)))
            ends.append(known[members])
        best = min(best, flow_shop_s(ends, case.stages) if np.isfinite(ends).all() else np.inf)
    return best


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_fixed_groups_stand_below_the_optimum_and_plans_above(seed, stages):
    case = several(seed, stages, capacity=7)
    optimum = least_fixed(case)
    plan, bound, _ = plan_fixed(case, 0.2)
    end = makespan(case, plan)
    assert not faults(case, plan, end)
    assert work_bound(case, "fixed") <= bound * (1 + 1e-12)
    assert max(bound, certificate(case, "fixed"), integer_bound(case, "fixed", 1.2 * optimum, 2.0)) <= optimum * (
        1 + 1e-9
    )
    assert optimum <= end * (1 + 1e-9)
    assert end <= 1.25 * optimum


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_barriers_of_small_cases_are_searched_whole(seed, stages):
    case = several(seed, stages, capacity=7)
    optimum = least_barrier(case)
    plan, bound, _ = plan_barrier(case, 20.0)
    assert not faults(case, plan, makespan(case, plan))
    assert work_bound(case, "barrier") <= optimum * (1 + 1e-9)
    assert makespan(case, plan) == pytest.approx(optimum, rel=1e-9) == bound


@pytest.mark.parametrize("seed", range(6))
def test_one_micro_step_passes_every_stage_in_turn(seed):
    case = several(seed, 3, capacity=16)
    plan, bound, _ = plan_oneshot(case, 1.0)
    optimum = 3 * brute_force(replace(case, stages=1))
    assert not faults(case, plan, makespan(case, plan))
    assert makespan(case, plan) == pytest.approx(optimum, rel=1e-9) == pytest.approx(bound, rel=1e-9)
    assert work_bound(case, "one-shot") <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("schedule", ["barrier", "fixed"])
@pytest.mark.parametrize("stages", [2, 8])
@pytest.mark.parametrize("seed", range(3))
def test_larger_plans_hold_and_stand_above_their_bounds(seed, stages, schedule):
    case = replace(case_of(seed, gpus=16, sequences=150, longest=12_000), stages=stages)
    plan, bound, _ = PLANNERS[schedule](case, 0.5)
    end = makespan(case, plan)
    assert not faults(case, plan, end)
    assert work_bound(case, schedule) <= bound <= end
    assert bound >= work_bound(replace(case, stages=1), schedule)
    static, floor, _ = plan_static(case, schedule)
    assert not faults(case, static, makespan(case, static))
    assert floor <= makespan(case, static)
    assert end <= makespan(case, static) * (1 + 1e-9)


@pytest.mark.parametrize("schedule", ["one-shot", "fixed", "barrier"])
def test_more_stages_take_longer_and_bound_higher(schedule):
    case = drawn(4, sequences=12, gpus=8, capacity=40)
    bounds = [work_bound(replace(case, stages=stages), schedule) for stages in (1, 2, 3, 6)]
    assert bounds == sorted(bounds)
    assert bounds[1] > bounds[0]


def test_equal_micro_steps_beat_full_ones():
    """Sixteen equal sequences and no fixed time: one a step is best, and two stages add one of them."""
    case = case_of(0, gpus=1, sequences=16, longest=100, capacity=1e4)
    case = replace(case, work_s=np.ones((16, 1)), fixed_s=np.zeros(1), stages=2)
    full = Scatter("fixed", np.array([1]), np.array([0]), np.zeros(16, int), np.zeros(16, int))
    assert makespan(case, full) == 32.0
    assert makespan(case, balanced(case, full)) == 17.0
    assert work_bound(case, "fixed") <= 17.0
