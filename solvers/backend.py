"""The one place that talks to PuLP and HiGHS.

A model is written in PuLP, beside its maths, and solved by HiGHS in this process. What comes back says what was
proved and nothing else: an answer that stopped early is never called optimal, a problem without an answer has no
values, and marginal values are given only where they exist.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pulp

Status = Literal["optimal", "feasible", "infeasible", "unbounded", "time_limit"]

OPTIMAL_GAP = 1e-4
"""Largest relative gap of an answer that is called optimal [1]."""

_RESOLUTION = 1e-6
"""HiGHS discards improvements smaller than this, in units of the objective it is given [1]."""
_SMALLEST, _LARGEST, _INFINITE = 1e-9, 1e15, 1e20
"""HiGHS drops coefficients outside the first two without a word, and reads the third as infinite."""


class SolverError(RuntimeError):
    """HiGHS failed without an answer: neither a solution nor a proof that there is none."""


@dataclass(frozen=True)
class Solution:
    """What HiGHS found and what it proved.

    Parameters
    ----------
    status : str
        ``optimal``: proved, gap at most `OPTIMAL_GAP`; ``feasible``: stopped at a looser requested gap;
        ``time_limit``: stopped by the limit of time or nodes, with a plan or without; ``infeasible``; ``unbounded``.
    objective : float or None
        Objective of `values` [unit of the objective]; None without values.
    best_bound : float or None
        What no solution can beat [unit of the objective]: a lower bound of a minimum, an upper bound of a maximum.
        None where nothing was proved.
    gap : float or None
        ``|objective - best_bound| / max(|objective|, 1e-12)`` [1].
    solve_time_s : float
        Wall time in the solver [s].
    values : mapping
        Value of each variable by name; empty unless a feasible point was found. A variable that stands neither in
        the objective nor in a constraint is not part of the problem.
    duals : mapping or None
        By constraint, the change of the objective per unit of the right-hand side, in the problem's own sense: a
        constraint that holds a maximum down has a positive one if it reads ``<=``. None where there are none: a
        problem with integers, an answer that is not optimal. At a degenerate optimum it is a one-sided derivative.
    duals_of : str or None
        What the duals belong to: ``problem``, or ``integers fixed``.
    slacks : mapping
        By constraint, the room left before it binds [unit of the constraint]; of an equation its error.
    solver : str
        Name and version.
    """

    status: Status
    objective: float | None
    best_bound: float | None
    gap: float | None
    solve_time_s: float
    values: Mapping[str, float] = field(default_factory=dict)
    duals: Mapping[str, float] | None = None
    duals_of: str | None = None
    slacks: Mapping[str, float] = field(default_factory=dict)
    solver: str = ""


@dataclass
class _Matrix:
    """A problem as HiGHS takes it: minimise ``cost @ x + offset`` with bounds on ``x`` and on ``A @ x``."""

    variables: list[Any]
    rows: list[Any]
    sign: float
    cost: list[float]
    offset: float
    lower: list[float]
    upper: list[float]
    row_lower: list[float]
    row_upper: list[float]
    starts: list[int]
    columns: list[int]
    coefficients: list[float]

    @property
    def integers(self) -> list[int]:
        return [index for index, variable in enumerate(self.variables) if variable.isInteger()]


@contextmanager
def apart_from_stdout() -> Iterator[None]:
    """Send to stderr what HiGHS prints although told to print nothing, as it does at some limits of time.

    Its lines come from C, so that Python's own stdout does not see them: what the C library holds back is written out
    before the descriptor is given back.
    """
    try:
        kept = os.dup(1)
    except OSError:  # the process has no stdout
        yield
        return
    flushed = getattr(ctypes.CDLL(None), "fflush", None) if os.name == "posix" else None
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if flushed is not None:
        flushed(None)
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        if flushed is not None:
            flushed(None)
        os.dup2(kept, 1)
        os.close(kept)


def relative_gap(value: float, bound: float) -> float:
    """Measure how far an answer may be from the best.

    Parameters
    ----------
    value : float
        Objective of the answer.
    bound : float
        Proved bound of the objective.

    Returns
    -------
    float
        ``|value - bound| / max(|value|, 1e-12)`` [1].
    """
    return abs(value - bound) / max(abs(value), 1e-12)


def solve(
    problem: pulp.LpProblem,
    *,
    time_limit_s: float | None = None,
    gap: float = OPTIMAL_GAP,
    constraints: Mapping[str, pulp.LpConstraint] | None = None,
    duals: Literal["exact", "fixed"] = "exact",
    node_limit: int | None = None,
) -> Solution:
    """Solve a linear or mixed-integer problem with HiGHS.

    Parameters
    ----------
    problem : pulp.LpProblem
        The model; it is read, not changed. Variables are best in units in which their values are around one, since
        HiGHS meets constraints to 1e-7 and takes 0.999999 for a whole number.
    time_limit_s : float, optional
        Wall time after which to stop with what there is [s].
    gap : float
        Relative gap at which to stop [1].
    constraints : mapping, optional
        The constraints whose duals and slacks are wanted, under the caller's names; default: all, under their own.
    duals : str
        ``exact``: only those of a problem without integers; ``fixed``: also those of a mixed-integer problem with
        its integers held at the answer, which price the continuous part alone.
    node_limit : int, optional
        Number of branch-and-bound nodes after which to stop; unlike a time limit it stops at the same point on
        every machine.

    Returns
    -------
    Solution
        What was found and what was proved.

    Raises
    ------
    ValueError
        The problem holds a number that HiGHS would drop or alter, two variables of one name, or ordered sets.
    SolverError
        HiGHS failed.

    Notes
    -----
    The gap is relative to the objective with its constant. HiGHS also stops at an absolute gap of 1e-6 and discards
    improvements below 1e-6, whatever the objective's unit; the objective is therefore scaled (by a power of two, so
    exactly) until 1e-6 is small beside its value.
    """
    import highspy

    if gap < 0 or not math.isfinite(gap):
        raise ValueError(f"gap should be a number of at least 0, got {gap}")
    matrix = _matrix(problem)
    wanted = dict(constraints) if constraints is not None else _named(matrix.rows)
    integers = matrix.integers
    started = time.perf_counter()

    def left() -> float | None:
        return None if time_limit_s is None else max(0.0, time_limit_s - (time.perf_counter() - started))

    largest = max((abs(cost) for cost in matrix.cost), default=0.0)
    scale = 1.0 if largest == 0 or 1.0 <= largest <= 1e6 else 2.0 ** -math.floor(math.log2(largest))
    highs = _run(matrix, scale, integers, left(), gap, node_limit)
    if integers and _is_coarse(highs, matrix, scale):
        finer = scale * 2.0 ** -math.floor(math.log2(_magnitude(highs, matrix, scale)))
        again = _run(matrix, finer, integers, left(), gap, node_limit)
        if _has_point(again):
            highs, scale = again, finer

    solver = f"HiGHS {highs.version()}"
    model_status = highs.getModelStatus()
    kinds = highspy.HighsModelStatus
    if model_status in (kinds.kUnbounded, kinds.kUnboundedOrInfeasible):
        model_status = _unbounded_or_infeasible(matrix, integers, model_status, left())
    if model_status == kinds.kModelEmpty and any(
        lower > 0 or upper < 0 for lower, upper in zip(matrix.row_lower, matrix.row_upper, strict=True)
    ):
        model_status = kinds.kInfeasible  # HiGHS does not look at the rows of a problem without variables
    if model_status in (kinds.kInfeasible, kinds.kUnbounded):
        status: Status = "infeasible" if model_status == kinds.kInfeasible else "unbounded"
        return Solution(status, None, None, None, time.perf_counter() - started, solver=solver)
    stopped = model_status in (kinds.kTimeLimit, kinds.kSolutionLimit, kinds.kIterationLimit)
    if not stopped and model_status not in (kinds.kOptimal, kinds.kModelEmpty):
        raise SolverError(f"{solver} stopped with the status {highs.modelStatusToString(model_status)!r}")

    bound = _bound(highs, matrix, scale) if integers else None
    if not _has_point(highs) and model_status != kinds.kModelEmpty:
        return Solution("time_limit", None, bound, None, time.perf_counter() - started, solver=solver)
    point = list(highs.getSolution().col_value)
    for index in integers:
        point[index] = float(round(point[index]))
    costs = (cost * value for cost, value in zip(matrix.cost, point, strict=True))
    objective = matrix.sign * math.fsum([matrix.offset, *costs]) + 0.0
    if not integers and not stopped:
        bound = objective
    if bound is not None:  # a bound on the wrong side of the answer is rounding
        bound = matrix.sign * min(matrix.sign * bound, matrix.sign * objective)
    reached = None if bound is None else relative_gap(objective, bound)
    proved = reached is not None and reached <= OPTIMAL_GAP
    values = {variable.name: value for variable, value in zip(matrix.variables, point, strict=True)}
    marginal: dict[int, float] | None = None
    if proved and (not integers or duals == "fixed"):
        if integers:
            highs = _run(matrix, scale, integers, left(), gap, node_limit, fixed=point)
        marginal = _marginals(highs, matrix, scale)
    return Solution(
        status="optimal" if proved else "time_limit" if stopped else "feasible",
        objective=objective,
        best_bound=bound,
        gap=reached,
        solve_time_s=time.perf_counter() - started,
        values=values,
        duals=None if marginal is None else {name: marginal[id(row)] for name, row in wanted.items()},
        duals_of=None if marginal is None else "integers fixed" if integers else "problem",
        slacks={name: _slack(row, values) for name, row in wanted.items()},
        solver=solver,
    )


def _named(rows: list[Any]) -> dict[str, Any]:
    return {row.name or f"_C{number}": row for number, row in enumerate(rows, start=1)}


def _matrix(problem: pulp.LpProblem) -> _Matrix:
    if problem.sos1 or problem.sos2:
        raise ValueError("HiGHS has no special ordered sets; write them with binary variables")
    import pulp

    variables, rows = list(problem.variables()), list(problem.constraints())
    index = {variable.name: number for number, variable in enumerate(variables)}
    if len(index) < len(variables):
        names = [variable.name for variable in variables]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several variables have the name {', '.join(repeated)}")
    sign = -1.0 if problem.sense == pulp.LpMaximize else 1.0
    objective: Any = problem.objective if problem.objective is not None else pulp.LpAffineExpression()
    matrix = _Matrix(
        variables=variables,
        rows=rows,
        sign=sign,
        cost=[sign * _finite(objective.get(variable, 0.0), "objective", variable.name) for variable in variables],
        offset=sign * _finite(objective.constant, "objective", "constant"),
        lower=[_limit(variable.lowBound, -math.inf, variable.name) for variable in variables],
        upper=[_limit(variable.upBound, math.inf, variable.name) for variable in variables],
        row_lower=[],
        row_upper=[],
        starts=[0],
        columns=[],
        coefficients=[],
    )
    for name, row in _named(rows).items():
        for variable, coefficient in row.items():
            size = abs(_finite(coefficient, name, variable.name))
            if size == 0:
                continue
            if not _SMALLEST < size < _LARGEST:
                raise ValueError(
                    f"constraint {name}: the coefficient {coefficient} of {variable.name} is outside "
                    f"{_SMALLEST} to {_LARGEST}, which HiGHS keeps; choose other units"
                )
            matrix.columns.append(index[variable.name])
            matrix.coefficients.append(float(coefficient))
        matrix.starts.append(len(matrix.columns))
        _finite(row.constant, name, "right-hand side")
        matrix.row_lower.append(_limit(row.getLb(), -math.inf, name))
        matrix.row_upper.append(_limit(row.getUb(), math.inf, name))
    return matrix


def _finite(value: float, where: str, what: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{where}: {what} is {value}")
    return float(value)


def _limit(value: float | None, absent: float, name: str) -> float:
    if value is None:
        return absent
    if math.isnan(value) or abs(value) >= _INFINITE:
        raise ValueError(f"{name}: HiGHS reads the limit {value} as none at all")
    return float(value)


def _run(
    matrix: _Matrix,
    scale: float,
    integers: list[int],
    time_limit_s: float | None,
    gap: float,
    node_limit: int | None,
    fixed: list[float] | None = None,
) -> Any:
    """Run HiGHS on the minimisation whose objective is multiplied by `scale`, with the integers held at `fixed`."""
    import highspy

    model: Any = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(matrix.variables), len(matrix.rows)
    model.col_cost_ = [scale * cost for cost in matrix.cost]
    model.offset_ = scale * matrix.offset
    lower, upper = list(matrix.lower), list(matrix.upper)
    if fixed is not None:
        for index in integers:
            lower[index] = upper[index] = fixed[index]
    elif integers:
        kinds = [highspy.HighsVarType.kContinuous] * len(matrix.variables)
        for index in integers:
            kinds[index] = highspy.HighsVarType.kInteger
        model.integrality_ = kinds
    model.col_lower_, model.col_upper_ = lower, upper
    model.row_lower_, model.row_upper_ = matrix.row_lower, matrix.row_upper
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.num_col_, model.a_matrix_.num_row_ = model.num_col_, model.num_row_
    model.a_matrix_.start_ = matrix.starts
    model.a_matrix_.index_ = matrix.columns
    model.a_matrix_.value_ = matrix.coefficients

    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"output_flag": False, "mip_rel_gap": gap, "mip_abs_gap": 0.0}
    if time_limit_s is not None:
        options["time_limit"] = float(time_limit_s)
    if node_limit is not None:
        options["mip_max_nodes"] = node_limit
    for name, value in options.items():
        if highs.setOptionValue(name, value) != highspy.HighsStatus.kOk:
            raise ValueError(f"HiGHS refuses {name} = {value}")
    if highs.passModel(model) == highspy.HighsStatus.kError:
        raise SolverError("HiGHS refuses the model")
    with apart_from_stdout():
        highs.run()
    return highs


def _has_point(highs: Any) -> bool:
    import highspy

    return bool(highs.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible)


def _magnitude(highs: Any, matrix: _Matrix, scale: float) -> float:
    """Return the size of the objective that HiGHS found, or of its smallest coefficient where it found zero."""
    value = abs(highs.getInfo().objective_function_value)
    costs = [abs(scale * cost) for cost in matrix.cost if cost]
    return value if value > 1e-12 * max(costs, default=1.0) else min(costs, default=1.0)


def _is_coarse(highs: Any, matrix: _Matrix, scale: float) -> bool:
    """Tell whether improvements that HiGHS discards would show in the gap."""
    return _has_point(highs) and _magnitude(highs, matrix, scale) < 10 * _RESOLUTION / OPTIMAL_GAP


def _bound(highs: Any, matrix: _Matrix, scale: float) -> float | None:
    """Return the bound HiGHS proved for a problem with integers, in the problem's own sense."""
    bound = highs.getInfo().mip_dual_bound
    if not math.isfinite(bound) or abs(bound) >= _INFINITE:
        return None
    if _is_coarse(highs, matrix, scale):
        bound -= _RESOLUTION
    return float(matrix.sign * bound / scale)


def _unbounded_or_infeasible(matrix: _Matrix, integers: list[int], found: Any, time_limit_s: float | None) -> Any:
    """Tell apart what HiGHS leaves open: with no objective the problem is either feasible or not."""
    import highspy

    if found == highspy.HighsModelStatus.kUnbounded and not integers:
        return found
    flat = replace(matrix, cost=[0.0] * len(matrix.cost), offset=0.0)
    status = _run(flat, 1.0, integers, time_limit_s, OPTIMAL_GAP, None).getModelStatus()
    return highspy.HighsModelStatus.kUnbounded if status == highspy.HighsModelStatus.kOptimal else status


def _marginals(highs: Any, matrix: _Matrix, scale: float) -> dict[int, float] | None:
    solution = highs.getSolution()
    if matrix.rows and not solution.dual_valid:
        return None
    duals = list(solution.row_dual)
    return {id(row): matrix.sign * dual / scale + 0.0 for row, dual in zip(matrix.rows, duals, strict=True)}


def _slack(row: Any, value: Mapping[str, float]) -> float:
    room = math.fsum([row.constant, *(coefficient * value[variable.name] for variable, coefficient in row.items())])
    return -room + 0.0 if row.getLb() is None else room
