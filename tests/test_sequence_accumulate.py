"""Plans without a barrier: what they claim holds when it is worked out again, and they keep to their bounds."""

import numpy as np
import pytest
from sequence_checker import faults
from sequence_reference import brute_force_fixed, small
from test_sequence_bounds import drawn, least

from solvers.sequence_accumulate import plan_fixed, plan_splits
from solvers.sequence_bounds import work_bound
from solvers.sequence_case import Case, makespan


def case_of(seed, gpus=16, sequences=60, longest=40_000, capacity=3_000.0, scale=1.0, degrees=None):
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(7.5, 1.2, sequences)).clip(1, longest).astype(np.int64)
    lengths[0] = longest
    degrees = np.array(degrees) if degrees else 2 ** np.arange(gpus.bit_length())
    s = lengths[:, None].astype(float)
    exchange = np.where(degrees == 1, 0.0, np.where(degrees <= 4, 1e-5, 2e-4))
    work = scale * (5e-9 * s**2 + 2.6e-4 * s + exchange * s) / degrees
    return Case(lengths, degrees, work, scale * (0.02 + 0.01 * (degrees > 1)), capacity, gpus)


def checked(case, plan):
    """Check a plan with arithmetic that shares nothing with the planners, and return its makespan."""
    end = makespan(case, plan)
    assert not faults(case, plan, end)
    return end


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gpus", [16, 24, 17])
def test_splitting_plans_hold(seed, gpus):
    case = case_of(seed, gpus)
    plan, bound, name = plan_splits(case, 1.0)
    end = checked(case, plan)
    assert bound == work_bound(case, "splits") <= end
    assert name in ("work", "longest sequence")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gpus", [16, 24, 17])
def test_fixed_plans_hold_and_are_no_better_than_splits_can_be(seed, gpus):
    case = case_of(seed, gpus)
    plan, bound, name = plan_fixed(case, 0.2)
    end = checked(case, plan)
    assert plan.schedule == "fixed"
    assert work_bound(case, "splits") <= bound <= end
    assert name in ("work", "longest sequence", "whole numbers of groups")


@pytest.mark.parametrize("seed", range(12))
def test_plans_of_small_cases_stand_above_the_optimum_and_bounds_below(seed):
    """The optimum of fixed groups from a search through all layouts, assignments and cuts into micro-steps."""
    case = drawn(seed, capacity=7)
    optimum = least(case, "fixed")
    plan, bound, _ = plan_fixed(case, 0.3)
    end = checked(case, plan)
    assert bound <= optimum * (1 + 1e-9)
    assert optimum <= end * (1 + 1e-9)
    assert work_bound(case, "splits") <= checked(case, plan_splits(case, 0.1)[0])


@pytest.mark.slow
def test_two_hundred_small_cases_without_a_barrier():
    """Plans and bounds on either side of the optimum of fixed groups, by trying every plan; splits are no worse."""
    met = 0
    for seed in range(200):
        case = small(seed)
        optimum = brute_force_fixed(case)
        plan, bound, _ = plan_fixed(case, 0.02)
        end = checked(case, plan)
        assert bound <= optimum * (1 + 1e-9) and optimum <= end * (1 + 1e-9), seed
        met += end <= optimum * (1 + 1e-9)
        plan, bound, _ = plan_splits(case, 0.02)
        assert bound <= min(optimum, checked(case, plan)) * (1 + 1e-9), seed
    assert met > 100


def test_fixed_plans_beat_one_size_for_all():
    case = case_of(2, gpus=32, sequences=200, longest=20_000)
    plan, _, _ = plan_fixed(case, 0.5)
    holding = np.flatnonzero((case.lengths.max() <= case.degrees * case.capacity_tokens) & (case.degrees <= case.gpus))
    work = (case.degrees * case.work_s).sum(axis=0)[holding] / case.gpus  # what one size takes at least
    assert checked(case, plan) < work.min()


@pytest.mark.parametrize("planner", [plan_splits, plan_fixed])
def test_no_sequences_take_no_time(planner):
    case = case_of(0)
    none = Case(case.lengths[:0], case.degrees, case.work_s[:0], case.fixed_s, case.capacity_tokens, case.gpus)
    plan, bound, _ = planner(none, 0.1)
    assert bound == makespan(none, plan) == 0.0


def test_fixed_groups_that_exclude_each_other_are_refused():
    """One sequence runs on one accelerator alone, the other on two: three in all, and there are two."""
    work = np.array([[1.0, np.inf], [np.inf, 1.0]])
    case = Case(np.array([1, 1]), np.array([1, 2]), work, np.zeros(2), 4.0, 2)
    with pytest.raises(ValueError, match="no fixed groups"):
        plan_fixed(case, 0.1)
    assert makespan(case, plan_splits(case, 0.1)[0]) == pytest.approx(2.0)


@pytest.mark.parametrize("planner", [plan_splits, plan_fixed])
def test_a_sequence_alone_reaches_its_bound(planner):
    case = case_of(0, sequences=1)
    plan, bound, name = planner(case, 1.0)
    assert makespan(case, plan) == pytest.approx(bound, rel=1e-9)
    assert name == "longest sequence"


def test_sizes_that_are_no_powers_of_two():
    case = case_of(1, gpus=18, degrees=[1, 3, 6, 18])
    plan, bound, _ = plan_splits(case, 1.0)
    assert bound <= checked(case, plan)
    assert 3 in plan.degree or 6 in plan.degree or 18 in plan.degree


def test_a_size_outside_the_nest_is_used_where_only_it_holds_a_sequence():
    case = case_of(1, gpus=18, degrees=[1, 2, 15])
    plan, bound, _ = plan_splits(case, 1.0)
    assert bound <= checked(case, plan)
    assert 15 in plan.degree


def test_sizes_of_which_none_divides_another_are_not_split():
    """One sequence runs on two accelerators alone, the other on three."""
    work = np.array([[1.0, np.inf], [np.inf, 1.0]])
    case = Case(np.array([1, 1]), np.array([2, 3]), work, np.zeros(2), 4.0, 5)
    plan, bound, _ = plan_splits(case, 0.1)
    assert bound <= checked(case, plan) == pytest.approx(1.0)


@pytest.mark.parametrize("planner", [plan_splits, plan_fixed])
def test_a_sequence_that_fits_nowhere_is_refused(planner):
    with pytest.raises(ValueError, match="fits no group"):
        planner(case_of(0, capacity=100.0), 1.0)


def test_costs_in_other_units_change_nothing_but_the_units():
    once, twice = case_of(3), case_of(3, scale=8.0)
    (plan, bound, _), (scaled, scaled_bound, _) = plan_splits(once, 1.0), plan_splits(twice, 1.0)
    assert scaled_bound == pytest.approx(8 * bound, rel=1e-9)
    assert makespan(twice, scaled) == pytest.approx(8 * makespan(once, plan), rel=1e-9)
