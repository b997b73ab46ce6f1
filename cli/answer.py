"""What commands that answer a question have in common: read a scenario, solve it, write the answer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cli.options import Format, write_answer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hardware.yaml_source import Source
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.

Question = TypeVar("Question")

Progress = Callable[[float], None]
"""Takes the share of the work that is done."""


def ask(
    scenario: Path,
    overrides: list[str] | None,
    doing: str,
    solve: "Callable[[Source, Progress], tuple[Question, Result]]",
) -> "tuple[Question, Result, Mapping[str, Any]]":
    """Read a scenario and solve it, with a sign of life.

    Parameters
    ----------
    scenario : Path
        The file.
    overrides : list of str or None
        Values to set in it.
    doing : str
        What takes so long.
    solve : callable
        The document, and what takes the share that is done -> the question and its answer.

    Returns
    -------
    tuple
        The question, its answer, and the values that were set, for a row of a CSV.
    """
    from cli.load import load, written
    from cli.progress import working

    source = load(scenario, overrides or ())
    with working(doing) as progress:
        question, result = solve(source, progress)
    return question, result, written(scenario, overrides or ())


def stop_at(gap: float) -> float | None:
    """Return the gap at which a solver may stop; None where the answer would count as proven anyway."""
    from solvers.backend import OPTIMAL_GAP

    return gap if gap > OPTIMAL_GAP else None


def need_plan(source: "Source", given: object, what: str) -> None:
    """Refuse a scenario without the plan that `predict` costs."""
    from hardware.faults import InputError

    if given is None:
        raise InputError([source.fault(("plan",), f"missing; predict costs the {what} that a scenario gives")])


def write_result(
    result: "Result",
    given: "Mapping[str, Any]",
    form: Format | None,
    output: Path | None,
    shown: "Callable[[], RenderableType]",
    row: "Result | None" = None,
) -> None:
    """Write an answer in the form that was asked for.

    Parameters
    ----------
    result : Result
        The answer.
    given : mapping
        Values that the scenario sets, for the CSV.
    form, output
        How and where to write.
    shown : callable
        Returns the table.
    row : Result or None
        What the CSV holds, where that is less than the answer.
    """
    from cli.export import result_csv

    write_answer(form, output, table=shown, data=result.to_dict, csv=lambda: result_csv(row or result, given))
