"""The solver wrapper: every trap of PuLP and HiGHS, and answers checked by exhaustion."""

import ctypes
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence

import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.backend import OPTIMAL_GAP, Solution, apart_from_stdout, relative_gap, solve

MIN, MAX = pulp.LpMinimize, pulp.LpMaximize


def knapsack(values: Sequence[float], weights: Sequence[float], room: float, cat: str = "Binary") -> pulp.LpProblem:
    problem = pulp.LpProblem("knapsack", MAX)
    taken = [problem.add_variable(f"x{i}", 0, 1, cat=cat) for i in range(len(values))]
    problem += pulp.lpSum(v * x for v, x in zip(values, taken, strict=True))
    problem += pulp.lpSum(w * x for w, x in zip(weights, taken, strict=True)) <= room, "room"
    return problem


def best_knapsack(values: Sequence[float], weights: Sequence[float], room: float) -> float:
    choices = itertools.product((0, 1), repeat=len(values))
    return max(
        sum(v * x for v, x in zip(values, choice, strict=True))
        for choice in choices
        if sum(w * x for w, x in zip(weights, choice, strict=True)) <= room
    )


def market_split(rows: int, columns: int, sense: int, offset: float = 0.0) -> tuple[pulp.LpProblem, list[list[int]]]:
    """Cornuejols and Dawande 1998: split every product between two markets; hard for branch and bound by design."""
    rng = random.Random(7)
    shares = [[rng.randrange(100) for _ in range(columns)] for _ in range(rows)]
    problem = pulp.LpProblem("market_split", sense)
    x = [problem.add_variable(f"x{j}", cat="Binary") for j in range(columns)]
    over = [problem.add_variable(f"over{i}", 0) for i in range(rows)]
    under = [problem.add_variable(f"under{i}", 0) for i in range(rows)]
    problem += (1 if sense == MIN else -1) * pulp.lpSum(over + under) + offset
    for i, share in enumerate(shares):
        split = pulp.lpSum(a * v for a, v in zip(share, x, strict=True))
        problem += split + under[i] - over[i] == sum(share) // 2, f"market{i}"
    return problem, shares


def no_answer(solution: Solution) -> bool:
    return (
        solution.objective is None
        and solution.gap is None
        and solution.best_bound is None
        and not solution.values
        and solution.duals is None
        and not solution.slacks
    )


# --- statuses -------------------------------------------------------------------------------------------------


def infeasible_at_presolve() -> pulp.LpProblem:
    problem = pulp.LpProblem("p", MIN)
    x = problem.add_variable("x", 0, 1)
    problem += x
    problem += x >= 2, "too_much"
    return problem


def infeasible_for_simplex() -> pulp.LpProblem:
    problem = pulp.LpProblem("p", MAX)
    x = [problem.add_variable(f"x{i}", 0) for i in range(3)]
    problem += pulp.lpSum(x)
    for i in range(3):
        problem += x[i] + x[(i + 1) % 3] <= 1
    problem += pulp.lpSum(x) >= 1.6  # the three sums give at most 1.5
    return problem


def infeasible_for_integers() -> pulp.LpProblem:
    problem = pulp.LpProblem("p", MIN)
    x, y = (problem.add_variable(name, 0, 10, cat="Integer") for name in "xy")
    problem += x
    problem += 2 * x + 4 * y == 7  # an even number cannot be odd; the relaxation can
    return problem


def infeasible_between_bounds() -> pulp.LpProblem:
    problem = pulp.LpProblem("p", MIN)
    problem += problem.add_variable("x", 0.2, 0.8, cat="Integer")
    return problem


def infeasible_without_variables() -> pulp.LpProblem:
    problem = pulp.LpProblem("p", MIN)
    problem += pulp.LpConstraint(pulp.LpAffineExpression(), pulp.LpConstraintGE, "never", 5)
    return problem


def infeasible_though_unbounded_relaxed() -> pulp.LpProblem:
    problem = pulp.LpProblem("p", MAX)
    x, y = problem.add_variable("x", 0, cat="Integer"), problem.add_variable("y", 0)
    problem += y
    problem += 2 * x == 1
    return problem


@pytest.mark.parametrize(
    "problem",
    [
        infeasible_at_presolve,
        infeasible_for_simplex,
        infeasible_for_integers,
        infeasible_between_bounds,
        infeasible_without_variables,
        infeasible_though_unbounded_relaxed,
    ],
)
def test_infeasible_has_no_values(problem: Callable[[], pulp.LpProblem]) -> None:
    solution = solve(problem())
    assert solution.status == "infeasible"
    assert no_answer(solution)


@pytest.mark.parametrize("cat", ["Continuous", "Integer"])
@pytest.mark.parametrize("sense", [MIN, MAX])
def test_unbounded_has_no_values(sense: int, cat: str) -> None:
    problem = pulp.LpProblem("p", sense)
    x = problem.add_variable("x", cat=cat)
    y = problem.add_variable("y", 0)
    problem += x + y if sense == MAX else x - y
    problem += x - y <= 3, "c"
    solution = solve(problem)
    assert solution.status == "unbounded"
    assert no_answer(solution)


def test_problem_without_variables_or_objective() -> None:
    empty = solve(pulp.LpProblem("p", MIN))
    assert (empty.status, empty.objective, empty.best_bound, empty.gap, empty.values) == ("optimal", 0, 0, 0, {})
    constant = pulp.LpProblem("p", MAX)
    constant += 7
    assert (solve(constant).objective, solve(constant).best_bound) == (7, 7)


@pytest.mark.parametrize("cat", ["Continuous", "Integer"])
def test_feasibility_problem_without_objective(cat: str) -> None:
    problem = pulp.LpProblem("p", MIN)
    x = problem.add_variable("x", 0, 5, cat=cat)
    problem += x >= 2, "c"
    solution = solve(problem)
    assert (solution.status, solution.objective, solution.gap) == ("optimal", 0, 0)
    assert solution.values["x"] >= 2
    assert solution.slacks == {"c": pytest.approx(solution.values["x"] - 2)}


def test_the_model_is_not_changed() -> None:
    problem = knapsack([3, 4], [2, 3], 4)
    text = str(problem)
    solve(problem)
    assert str(problem) == text
    assert all(variable.varValue is None for variable in problem.variables())


# --- limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sense", [MIN, MAX])
def test_time_limit_is_not_called_optimal(sense: int) -> None:
    problem, _ = market_split(5, 40, sense)
    solution = solve(problem, time_limit_s=0.5)
    assert solution.status == "time_limit"
    assert solution.solve_time_s < 4
    assert solution.objective is not None and solution.best_bound is not None and solution.gap is not None
    sign = 1 if sense == MIN else -1
    assert 0 <= sign * solution.best_bound <= sign * solution.objective
    assert solution.gap == relative_gap(solution.objective, solution.best_bound)
    assert solution.gap > OPTIMAL_GAP
    assert solution.values
    assert solution.duals is None
    assert max(map(abs, solution.slacks.values())) < 1e-5


@pytest.mark.parametrize("sense", [MIN, MAX])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_bound_at_a_node_limit_is_true(sense: int, offset: float) -> None:
    problem, shares = market_split(3, 15, sense, offset)
    halves = [sum(share) // 2 for share in shares]
    best = min(
        sum(
            abs(sum(a for a, taken in zip(share, choice, strict=True) if taken) - half)
            for share, half in zip(shares, halves, strict=True)
        )
        for choice in itertools.product((False, True), repeat=15)
    )
    best = best + offset if sense == MIN else -best + offset
    sign = 1 if sense == MIN else -1
    stopped = solve(problem, node_limit=1)
    assert stopped.status == "time_limit"
    assert stopped.objective is not None and stopped.best_bound is not None
    assert sign * stopped.best_bound <= sign * best + 1e-6
    assert sign * best <= sign * stopped.objective + 1e-6
    finished = solve(problem)
    assert finished.status == "optimal"
    assert finished.objective == pytest.approx(best)
    assert stopped.gap is not None and stopped.gap == relative_gap(stopped.objective, stopped.best_bound)


def test_time_limit_without_an_answer() -> None:
    problem, _ = market_split(6, 60, MIN)
    for variable in problem.variables():
        if variable.name.startswith(("over", "under")):
            variable.upBound = 0  # an exact split, which is not found by chance
    solution = solve(problem, time_limit_s=0.3)
    assert solution.status == "time_limit"
    assert solution.objective is None and solution.gap is None and not solution.values and not solution.slacks
    assert solution.best_bound is None or solution.best_bound == 0


def test_looser_gap_is_feasible_not_optimal() -> None:
    problem, _ = market_split(3, 15, MIN, offset=100.0)
    solution = solve(problem, gap=0.5)
    assert solution.status == "feasible"
    assert solution.gap is not None and OPTIMAL_GAP < solution.gap <= 0.5
    easy = knapsack([3, 4], [2, 3], 4)
    assert solve(easy, gap=0.5).status == "optimal"  # proved all the same: the status tells what was proved


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e9])
def test_the_unit_of_the_objective_does_not_matter(scale: float) -> None:
    # HiGHS discards improvements below 1e-6: in nanoseconds expressed in seconds everything would be optimal.
    rng = random.Random(3)
    values, weights = ([rng.random() for _ in range(14)] for _ in range(2))
    best = scale * best_knapsack(values, weights, 3)
    solution = solve(knapsack([scale * v for v in values], weights, 3), gap=0)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(best, rel=1e-12)
    assert solution.best_bound == pytest.approx(best, rel=1e-6)


def test_small_value_beside_a_large_coefficient_is_searched_again() -> None:
    # The penalty sets the scale of the objective, the answer is around 1e-7: all of it below HiGHS's resolution.
    rng = random.Random(5)
    values, weights = ([rng.random() for _ in range(10)] for _ in range(2))
    problem = pulp.LpProblem("p", MAX)
    taken = [problem.add_variable(f"x{i}", cat="Binary") for i in range(10)]
    fine = problem.add_variable("fine", cat="Binary")
    problem += pulp.lpSum(1e-7 * v * x for v, x in zip(values, taken, strict=True)) - 1000 * fine
    problem += pulp.lpSum(w * x for w, x in zip(weights, taken, strict=True)) <= 2 + fine, "room"
    solution = solve(problem)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(1e-7 * best_knapsack(values, weights, 2), rel=OPTIMAL_GAP)
    assert solution.gap is not None and solution.gap <= OPTIMAL_GAP


def test_gap_counts_the_constant_of_the_objective() -> None:
    # With -99 the value is near zero: a gap of 1e-4 of the part with variables would be several per cent of it.
    problem, _ = market_split(3, 15, MIN)
    exact = solve(problem).objective
    assert exact is not None
    shifted, _ = market_split(3, 15, MIN, offset=-exact + 0.01)
    solution = solve(shifted)
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(0.01, rel=1e-3)


# --- duals ----------------------------------------------------------------------------------------------------


def blending(sense: int, rhs: Sequence[float]) -> tuple[pulp.LpProblem, dict[str, pulp.LpConstraint]]:
    """Three variables, rows of each direction; not degenerate at these right-hand sides."""
    problem = pulp.LpProblem("p", sense)
    x, y, z = (problem.add_variable(name, 0, 40) for name in "xyz")
    rows: dict[str, pulp.LpConstraint]
    if sense == MAX:
        problem += 3 * x + 2 * y + 4 * z + 5
        rows = {"labour": x + y + 2 * z <= rhs[0], "mix": x - y == rhs[1], "least": z >= rhs[2], "loose": y <= rhs[3]}
    else:
        problem += 2 * x + 3 * y + 4 * z + 5
        rows = {"need": x + y + z >= rhs[0], "mix": x - y == rhs[1], "most": x <= rhs[2], "loose": z >= rhs[3] - 39}
    for name, row in rows.items():
        problem += row, f"{name}_row"
    return problem, rows


@pytest.mark.parametrize(("sense", "rhs"), [(MAX, [20.0, 3.0, 1.5, 30.0]), (MIN, [20.0, 3.0, 8.0, 30.0])])
def test_duals_are_finite_differences(sense: int, rhs: list[float]) -> None:
    problem, rows = blending(sense, rhs)
    solution = solve(problem, constraints=rows)
    assert solution.status == "optimal" and solution.duals is not None and solution.duals_of == "problem"
    assert solution.gap == 0
    step = 1e-3
    for position, name in enumerate(rows):
        moved = []
        for change in (step, -step):
            shifted = [value + change * (number == position) for number, value in enumerate(rhs)]
            moved.append(solve(blending(sense, shifted)[0]).objective)
        assert moved[0] is not None and moved[1] is not None
        assert solution.duals[name] == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-6), name
    assert solution.duals["loose"] == 0
    assert solution.slacks["loose"] > 0
    assert solution.slacks["mix"] == pytest.approx(0, abs=1e-9)


def test_dual_of_a_maximum_has_the_problems_own_sign() -> None:
    # max 3x + 2y, x + y <= 4: one more unit of room is worth 3. PuLP reports -3.
    problem = pulp.LpProblem("p", MAX)
    x, y = problem.add_variable("x", 0), problem.add_variable("y", 0)
    problem += 3 * x + 2 * y
    problem += x + y <= 4, "room"
    solution = solve(problem)
    assert solution.duals == {"room": pytest.approx(3)}
    assert solution.objective == pytest.approx(12)


def test_duals_of_integers_are_absent_or_those_of_the_rest() -> None:
    problem = pulp.LpProblem("p", MAX)
    machines = problem.add_variable("machines", 0, cat="Integer")
    work = problem.add_variable("work", 0)
    problem += 10 * work - 4 * machines
    capacity, budget = work <= 3 * machines, machines <= 2.5
    problem += capacity, "capacity"
    problem += budget, "budget"
    rows = {"capacity": capacity, "budget": budget}
    plain = solve(problem)
    assert plain.duals is None and plain.duals_of is None
    fixed = solve(problem, duals="fixed", constraints=rows)
    assert fixed.duals_of == "integers fixed"
    # Two machines, full: another unit of capacity is worth 10; the budget's half machine buys none.
    assert fixed.duals == {"capacity": pytest.approx(10), "budget": 0}
    assert fixed.objective == plain.objective == pytest.approx(52)
    assert fixed.slacks["budget"] == pytest.approx(0.5)


# --- numbers HiGHS would alter --------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [1e-10, 1e16, math.inf, math.nan])
def test_coefficients_that_would_be_dropped_are_refused(coefficient: float) -> None:
    problem = pulp.LpProblem("p", MIN)
    x = problem.add_variable("x", 0)
    problem += x
    row = pulp.LpConstraint(pulp.LpAffineExpression({x: coefficient}), pulp.LpConstraintGE, rhs=1)
    problem += row, "c"
    with pytest.raises(ValueError, match="c"):
        solve(problem)


def test_other_numbers_and_forms_are_refused() -> None:
    far = pulp.LpProblem("p", MIN)
    x = far.add_variable("x", 0, 1e25)
    far += x
    with pytest.raises(ValueError, match=r"x: HiGHS reads the limit 1e\+25 as none"):
        solve(far)
    twins = pulp.LpProblem("p", MIN)
    twins += twins.add_variable("x", 0) + twins.add_variable("x", 1)
    with pytest.raises(ValueError, match="name x"):
        solve(twins)
    ordered = knapsack([1, 2], [1, 1], 1)
    ordered.sos1["s"] = {x: 1}
    with pytest.raises(ValueError, match="ordered sets"):
        solve(ordered)
    with pytest.raises(ValueError, match="gap"):
        solve(knapsack([1], [1], 1), gap=-1)


# --- against exhaustion ---------------------------------------------------------------------------------------


def test_integers_are_whole() -> None:
    solution = solve(knapsack([5, 4, 3], [2, 3, 1], 5))
    assert set(solution.values.values()) <= {0.0, 1.0}


@pytest.mark.parametrize("cat", ["Binary", "Continuous"])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_assignment_against_all_permutations(scale: float, cat: str) -> None:
    # Its relaxation has whole corners. In units of 1e9 simplex, left alone, calls the first corner optimal: it
    # stops at reduced costs of 1e-7.
    rng = random.Random(11)
    n = 6
    cost = [[scale * rng.uniform(1, 9) for _ in range(n)] for _ in range(n)]
    problem = pulp.LpProblem("p", MIN)
    x = [[problem.add_variable(f"x_{i}_{j}", 0, cat=cat) for j in range(n)] for i in range(n)]
    problem += pulp.lpSum(cost[i][j] * x[i][j] for i in range(n) for j in range(n))
    for i in range(n):
        problem += pulp.lpSum(x[i]) >= 1, f"row{i}"
        problem += pulp.lpSum(x[k][i] for k in range(n)) <= 1, f"column{i}"
    best = min(sum(cost[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(n)))
    assert solve(problem).objective == pytest.approx(best, rel=1e-9)


amounts = st.integers(1, 50)


@settings(max_examples=25, deadline=None)
@given(items=st.lists(st.tuples(amounts, amounts), min_size=1, max_size=7), room=st.integers(0, 120))
def test_relaxation_bounds_the_integers(items: list[tuple[int, int]], room: int) -> None:
    values, weights = zip(*items, strict=True)
    whole = solve(knapsack(values, weights, room))
    relaxed = solve(knapsack(values, weights, room, cat="Continuous"))
    assert whole.objective is not None and relaxed.objective is not None and whole.best_bound is not None
    assert whole.objective == pytest.approx(best_knapsack(values, weights, room))
    assert whole.objective <= whole.best_bound <= relaxed.objective + 1e-6
    assert whole.status == relaxed.status == "optimal"


def test_solver_is_imported_only_when_used() -> None:
    code = "import sys, solvers.backend; print([m for m in ('pulp', 'highspy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_c_library_prints_does_not_reach_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    library = ctypes.CDLL(None)
    sys.stdout.write("before\n")
    with apart_from_stdout():
        library.puts(b"noise")
    sys.stdout.write("after\n")
    library.fflush(None)
    printed = capfd.readouterr()
    assert printed.out.split() == ["before", "after"]
    assert printed.err.split() == ["noise"]
