from dataclasses import replace
from math import inf

import numpy as np
import pytest

from solvers.sequence_case import makespan
from solvers.sequence_static import plan_static, static_barrier_bound
from tests.sequence_checker import faults
from tests.sequence_reference import brute_force_barrier, costs, small

# The homogeneous optima of two small cases, by exhaustive search: 50 with groups of 2, 127.25 with groups of 4.
ONE = costs(4, [1, 2, 4], [8, 5, 4, 3, 2], 1, 2, 4, [inf, 4, 2], (1, 1), 8)
TWO = costs(8, [1, 2, 4, 8], [18, 10, 9, 5, 4, 4, 2, 1], 1, 6, 12, [inf, 12, 6, 2], (2, 1), 9)


@pytest.mark.parametrize(("case", "optimum", "size"), [(ONE, 50.0, 2), (TWO, 127.25, 4)])
def test_worked_cases(case, optimum, size):
    plan, bound, _ = plan_static(case, "one-shot")
    found = makespan(case, plan)
    assert not faults(case, plan, found)
    assert found == pytest.approx(optimum)
    assert set(plan.degree) == {size}
    assert bound <= found


@pytest.mark.parametrize("schedule", ["one-shot", "barrier", "fixed", "splits"])
def test_plans_stand(schedule):
    rng = np.random.default_rng(2)
    lengths = np.exp(rng.normal(3, 1.2, 80)).clip(1, 400).astype(int)
    capacity = lengths.sum() / (0.6 * 16) if schedule == "one-shot" else 30.0
    case = costs(16, [1, 2, 4, 8, 16], lengths, 0.01, 1, 5, [inf, 10, 8, 6, 1], (1, 1), capacity)
    plan, bound, _ = plan_static(case, schedule)
    found = makespan(case, plan)
    assert not faults(case, plan, found)
    assert bound <= found * (1 + 1e-9)
    assert len(set(plan.degree)) == 1


def test_longest_fits_nowhere():
    with pytest.raises(ValueError, match="one size"):
        plan_static(costs(2, [1, 2], [9, 1], 1, 1, 1, [inf, 1], (1, 1), 4), "fixed")


def test_micro_batches_of_one_size_keep_to_their_bounds():
    """Least over the sizes of the least sum of makespans, from a search through all plans with groups of that size."""
    higher = 0
    for seed in range(2000, 2040):
        case = small(seed)
        singles = [
            replace(case, degrees=case.degrees[[kind]], work_s=case.work_s[:, [kind]], fixed_s=case.fixed_s[[kind]])
            for kind in range(len(case.degrees))
        ]
        optimum, bound = min(brute_force_barrier(single) for single in singles), static_barrier_bound(case)
        assert bound <= optimum * (1 + 1e-9), seed
        higher += np.isfinite(optimum) and bound > plan_static(case, "barrier")[1] * (1 + 1e-6)
    assert higher > 10
