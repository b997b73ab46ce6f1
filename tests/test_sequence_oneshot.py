from math import inf

import numpy as np
import pytest

from solvers.sequence_case import makespan
from solvers.sequence_oneshot import plan_oneshot
from tests.sequence_checker import faults
from tests.sequence_reference import brute_force, costs, small, whole_numbers

# Small cases worked out by exhaustive search and, apart from that, by FlexSP's MILP in HiGHS at zero gap.
ONE = costs(4, [1, 2, 4], [8, 5, 4, 3, 2], 1, 2, 4, [inf, 4, 2], (1, 1), 8)
TWO = costs(8, [1, 2, 4, 8], [18, 10, 9, 5, 4, 4, 2, 1], 1, 6, 12, [inf, 12, 6, 2], (2, 1), 9)


def planned(case):
    """Return the makespan of a plan, checked; infinite where there is none."""
    try:
        plan, bound, _ = plan_oneshot(case, 5.0)
    except ValueError:
        return inf
    found = makespan(case, plan)
    assert not faults(case, plan, found)
    assert bound <= found * (1 + 1e-9)
    return found


@pytest.mark.parametrize(("case", "optimum"), [(ONE, 46.0), (TWO, 125.0)])
def test_worked_cases(case, optimum):
    plan, bound, _ = plan_oneshot(case, 5.0)
    assert makespan(case, plan) == pytest.approx(optimum, rel=1e-12)
    assert bound == pytest.approx(optimum, rel=1e-12)
    assert not faults(case, plan, optimum)


def test_brute_force_agrees():
    """On 200 small random cases the plan is what trying every plan gives."""
    for seed in range(200):
        case = small(seed)
        assert planned(case) == pytest.approx(brute_force(case), rel=1e-9), seed


@pytest.mark.slow
def test_whole_numbers_agree():
    """And what FlexSP's MILP gives."""
    for seed in range(200):
        case = small(seed)
        assert planned(case) == pytest.approx(whole_numbers(case), rel=1e-6), seed


@pytest.mark.parametrize("fill", [0.4, 0.7, 0.85])
def test_many_sequences(fill):
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.normal(3, 1.2, 80)).clip(1, 400).astype(int)
    capacity = lengths.sum() / (fill * 16)
    case = costs(16, [1, 2, 4, 8, 16], lengths, 0.01, 1, 5, [inf, 10, 8, 6, 1], (1, 1), capacity)
    plan, bound, _ = plan_oneshot(case, 0.5)
    found = makespan(case, plan)
    assert not faults(case, plan, found)
    assert bound <= found


def test_more_tokens_than_memory():
    with pytest.raises(ValueError, match="memory"):
        plan_oneshot(costs(2, [1, 2], [5, 4, 1], 1, 1, 1, [inf, 1], (1, 1), 4), 1.0)
