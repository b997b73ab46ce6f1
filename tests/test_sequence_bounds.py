"""Bounds of plans for unequal sequences: hand-worked cases, and what every bound has to do when a case changes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from solvers.sequence_bounds import certificate, integer_bound, work_bound
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


def test_bounds_of_the_second_case_rise_to_published_figures():
    """Pooled 122.5, whole numbers of groups 122.571, optimum 125: by programs over the full list."""
    assert certificate(EIGHT, "one-shot") == pytest.approx(122.5, rel=4e-4)
    assert integer_bound(EIGHT, "one-shot", 125, 5.0) == pytest.approx(122.571, rel=4e-4)
    assert certificate(EIGHT, "one-shot") <= 122.5 + 1e-9
    assert integer_bound(EIGHT, "one-shot", 125, 5.0) <= 122.572


def drawn(seed, sequences=5, gpus=4, capacity=16):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 12, sequences)
    return flexsp(lengths, [1, 2, 4], gpus, *random.uniform(0.5, 3, 3), random.uniform(1, 9, 2), 1, 1, capacity)


def layouts(gpus, degrees):
    """List every multiset of group sizes that fills the accelerators."""
    if not degrees:
        return [[]] if gpus == 0 else []
    return [
        [degrees[-1]] * count + rest
        for count in range(gpus // degrees[-1] + 1)
        for rest in layouts(gpus - count * degrees[-1], degrees[:-1])
    ]


def fewest_steps(lengths, room):
    """Count the micro-steps that hold some sequences, by trying every cut."""
    if not lengths:
        return 0
    for steps in range(1, len(lengths) + 1):
        for chosen in itertools.product(range(steps), repeat=len(lengths)):
            if all(sum(s for s, step in zip(lengths, chosen, strict=True) if step == n) <= room for n in range(steps)):
                return steps
    return np.inf


def least(case, schedule):
    """Search all layouts and all assignments; with accumulation, all cuts of a group into micro-steps as well."""
    known = {}

    def spent(members, column):
        if (members, column) not in known:
            held = case.lengths[list(members)].tolist()
            steps = fewest_steps(held, case.degrees[column] * case.capacity_tokens)
            fits = steps <= 1 or schedule == "fixed"
            work = case.work_s[list(members), column].sum()
            known[members, column] = work + steps * case.fixed_s[column] if fits and np.isfinite(steps) else np.inf
        return known[members, column]

    best = np.inf
    for layout in layouts(case.gpus, case.degrees.tolist()):
        columns = [case.degrees.tolist().index(degree) for degree in layout]
        for chosen in itertools.product(range(len(layout)), repeat=len(case.lengths)):
            members = [tuple(k for k, group in enumerate(chosen) if group == n) for n in range(len(layout))]
            best = min(best, max(spent(*pair) for pair in zip(members, columns, strict=True)))
    return best


def test_the_search_below_finds_known_optima():
    assert least(FOUR, "one-shot") == pytest.approx(46)


@pytest.mark.parametrize("schedule", ["one-shot", "fixed"])
@pytest.mark.parametrize("seed", range(12))
def test_bounds_stand_in_order_below_the_optimum(seed, schedule):
    case = drawn(seed, capacity=16 if schedule == "one-shot" else 7)
    optimum = least(case, schedule)
    work, pooled = work_bound(case, schedule), certificate(case, schedule)
    if not np.isfinite(optimum):
        return
    whole = integer_bound(case, schedule, 1.2 * optimum, 5.0)
    assert work <= pooled * (1 + 1e-9)
    assert work <= whole <= optimum * (1 + 1e-9)
    assert pooled <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("schedule", ["one-shot", "fixed", "splits", "barrier"])
@pytest.mark.parametrize("bound", [work_bound, certificate])
def test_bounds_move_with_the_case(bound, schedule):
    case = drawn(3, sequences=12, gpus=8, capacity=40)
    base = bound(case, schedule)
    fewer = replace(case, lengths=case.lengths[1:], work_s=case.work_s[1:])
    slack = 1 + 1e-3  # of the bisection over linear programs
    assert bound(fewer, schedule) <= base * slack
    assert bound(replace(case, gpus=16), schedule) <= base * slack
    assert bound(replace(case, capacity_tokens=50.0), schedule) <= base * slack
    assert bound(replace(case, work_s=0.9 * case.work_s), schedule) <= base * slack
    scaled = replace(case, work_s=8 * case.work_s, fixed_s=8 * case.fixed_s)
    assert bound(scaled, schedule) == pytest.approx(8 * base, rel=1e-3)


def test_the_bound_of_splits_holds_for_barriers_and_fixed_groups():
    case = drawn(5, sequences=12, gpus=8, capacity=20)
    assert work_bound(case, "splits") == work_bound(case, "fixed") == work_bound(case, "barrier")


def test_without_a_plan_the_bound_is_infinite():
    assert work_bound(replace(FOUR, capacity_tokens=5.0), "one-shot") == np.inf  # 22 tokens in all, room for 20
    assert work_bound(replace(FOUR, capacity_tokens=1.9), "fixed") == np.inf  # 8 tokens, room for 7.6


def test_groups_that_change_have_no_whole_numbers():
    with pytest.raises(ValueError, match="splits"):
        integer_bound(FOUR, "splits", 100.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_listed_numbers_of_groups_and_an_integer_program_prove_the_same(seed, monkeypatch):
    case = drawn(seed, sequences=14, gpus=16, capacity=7)
    ceiling = 1.5 * work_bound(case, "fixed")
    listed = integer_bound(case, "fixed", ceiling, 5.0)
    monkeypatch.setattr("solvers.sequence_bounds._LAYOUTS", 0)
    assert integer_bound(case, "fixed", ceiling, 5.0) == pytest.approx(listed, rel=1e-3)
