from math import inf

import numpy as np
import pytest

from solvers.sequence_barrier import plan_barrier
from solvers.sequence_case import makespan
from tests.sequence_checker import faults
from tests.sequence_reference import brute_force_barrier, costs, small

# Worked out by exhaustive search and, apart from that, by FlexSP's MILP with 2, 3 and 4 micro-batches in HiGHS.
THREE = costs(4, [1, 2, 4], [12, 6, 5, 4, 2, 1], 1, 4, 12, [inf, 6, 2], (2, 2), 4)


def test_worked_case():
    plan, bound, _ = plan_barrier(THREE, 5.0)
    assert makespan(THREE, plan) == pytest.approx(127.0, rel=1e-12)
    assert bound == pytest.approx(127.0, rel=1e-12)
    assert not faults(THREE, plan, 127.0)


def test_brute_force_agrees():
    for seed in range(2000, 2100):
        case = small(seed)
        plan, bound, _ = plan_barrier(case, 5.0)
        found = makespan(case, plan)
        assert not faults(case, plan, found)
        assert bound <= found * (1 + 1e-9)
        assert found == pytest.approx(brute_force_barrier(case), rel=1e-9), seed


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
