"""Bounds of plans for unequal sequences: hand-worked cases, and what every bound has to do when a case changes."""

import numpy as np
import pytest

from solvers.sequence_bounds import work_bound
from solvers.sequence_case import Case


def flexsp(lengths, degrees, gpus, a1, a2, a3, speeds, b1, b2, cap):
    """Costs of the form (a1 s^2 + a2 s) / d + a3 s / (d v_d), with a fixed time b1, from two up b1 + b2."""
    s, d = np.array(lengths)[:, None], np.array(degrees)
    exchange = np.array([0.0, *(a3 / speed for speed in speeds)])
    work = (a1 * s**2 + a2 * s + exchange * s) / d
    return Case(s[:, 0], d, work, b1 + b2 * (d > 1), cap, gpus)


FOUR = flexsp([8, 5, 4, 3, 2], [1, 2, 4], 4, 1, 2, 4, [4, 2], 1, 1, 8)
EIGHT = flexsp([18, 10, 9, 5, 4, 4, 2, 1], [1, 2, 4, 8], 8, 1, 6, 12, [12, 6, 2], 2, 1, 9)


def test_work_bound_of_hand_worked_cases():
    """At 46 the longest just ends on two: 88/44 + (35 + 24 + 15 + 8)/45 = 3.8 accelerators of 4; below it takes four.

    Of eight, the longest needs four and the next two need two each: 782/(C - 3) + 158/(C - 2) = 8 at the bound.
    """
    assert work_bound(FOUR, "one-shot") == pytest.approx(46, rel=1e-9)
    bound = work_bound(EIGHT, "one-shot")
    assert bound == pytest.approx(120.333, abs=5e-4)
    assert 782 / (bound - 3) + 158 / (bound - 2) == pytest.approx(8, rel=1e-9)
