from dataclasses import replace
from math import inf

import numpy as np
import pytest

from solvers.sequence_barrier import plan_barrier
from solvers.sequence_barrier_bound import barrier_bound
from solvers.sequence_bounds import work_bound
from solvers.sequence_case import Case, makespan
from tests.sequence_checker import faults
from tests.sequence_reference import brute_force_barrier, costs, small, whole_numbers_barrier

# Worked out by exhaustive search and, apart from that, by FlexSP's MILP with 2, 3 and 4 micro-batches in HiGHS.
THREE = costs(4, [1, 2, 4], [12, 6, 5, 4, 2, 1], 1, 4, 12, [inf, 6, 2], (2, 2), 4)


def test_worked_case():
    plan, bound, _ = plan_barrier(THREE, 5.0)
    assert makespan(THREE, plan) == pytest.approx(127.0, rel=1e-12)
    assert bound == pytest.approx(127.0, rel=1e-12)
    assert not faults(THREE, plan, 127.0)


def test_brute_force_agrees():
    """On 200 small random cases the plan is what trying every plan gives."""
    for seed in range(2000, 2200):
        case = small(seed)
        plan, bound, _ = plan_barrier(case, 5.0)
        found = makespan(case, plan)
        assert not faults(case, plan, found)
        assert bound <= found * (1 + 1e-9)
        assert found == pytest.approx(brute_force_barrier(case), rel=1e-9), seed


@pytest.mark.slow
def test_whole_numbers_agree():
    """The same cases with FlexSP's MILP for every set of sequences as a micro-batch."""
    for seed in range(2000, 2200):
        case = small(seed)
        plan, _, _ = plan_barrier(case, 5.0)
        assert makespan(case, plan) == pytest.approx(whole_numbers_barrier(case), rel=1e-6), seed


def test_more_sequences_than_memory():
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(1, 60, 40))[::-1]
    case = costs(8, [1, 2, 4, 8], lengths, 0.1, 2, 5, [inf, 10, 8, 3], (1, 1), 12)
    plan, bound, _ = plan_barrier(case, 0.3)
    found = makespan(case, plan)
    assert not faults(case, plan, found)
    assert bound <= found


def test_longest_fits_nowhere():
    with pytest.raises(ValueError, match="fits no group"):
        plan_barrier(costs(2, [1, 2], [9, 1], 1, 1, 1, [inf, 1], (1, 1), 4), 1.0)


def test_what_a_long_micro_batch_cannot_hold_runs_after_it():
    """The longest takes two of three accelerators for 10 s, beside it there is memory for one of four others.

    The other three take 1 s more. Work alone asks for 8 s, and the longest for 10 s.
    """
    work = np.array([[inf, 10.0], [1.0, inf], [1.0, inf], [1.0, inf], [1.0, inf]])
    case = Case(np.array([8, 4, 4, 4, 4]), np.array([1, 2]), work, np.zeros(2), 4.0, 3)
    assert work_bound(case, "barrier") == pytest.approx(10.0)
    assert barrier_bound(case, 1.0).bound_s == pytest.approx(11.0, rel=1e-6)
    assert brute_force_barrier(case) == pytest.approx(11.0)


def test_no_plan_beats_the_bound_and_no_micro_batch_what_its_sequences_are_worth():
    higher = 0
    for seed in range(2100, 2160):
        case = small(seed)
        optimum, priced = brute_force_barrier(case), barrier_bound(case, 0.1)
        assert priced.bound_s <= optimum * (1 + 1e-9), seed
        higher += priced.bound_s > work_bound(case, "barrier") * (1 + 1e-6)
        plan, _, _ = plan_barrier(case, 5.0)
        for batch in np.unique(plan.step):
            inside = plan.step == batch
            column = np.searchsorted(case.degrees, plan.degree)[plan.group[inside]]
            busy = np.bincount(plan.group[inside], case.work_s[inside, column], len(plan.degree))
            busy[plan.group[inside]] += case.fixed_s[column]
            assert priced.worth_s[inside].sum() <= busy.max() * (1 + 1e-9), seed
    assert higher > 20


def test_a_bound_of_micro_batches_moves_with_its_units():
    case = small(2003)
    scaled = replace(case, work_s=8 * case.work_s, fixed_s=8 * case.fixed_s)
    assert barrier_bound(scaled, 1.0).bound_s == pytest.approx(8 * barrier_bound(case, 1.0).bound_s, rel=1e-3)


def test_bound_of_no_sequences_and_of_one_that_fits_nowhere():
    none = Case(np.zeros(0, np.int64), np.array([1, 2]), np.zeros((0, 2)), np.zeros(2), 4.0, 3)
    assert barrier_bound(none, 1.0).bound_s == 0.0
    assert barrier_bound(costs(2, [1, 2], [9, 1], 1, 1, 1, [inf, 1], (1, 1), 4), 1.0).bound_s == inf
