"""Commands about which node takes which part of a job."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.answer import ask, need_plan, stop_at, write_result
from cli.options import Debug, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.placement_scenario import PlacementScenario
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.

_IN_A_ROW = 8
_MOST_ROWS = 16


def plan_placement(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """Which node takes which ranks of a job, given measured rates between nodes."""
    from cli import extras

    extras.check(None, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[PlacementScenario, Result]":
        from solvers.placement import plan
        from solvers.placement_scenario import load_placement

        question = load_placement(source, scenario.parent)
        return question, plan(question, time_limit_s=time_limit, gap=stop_at(gap), progress=progress)

    question, result, given = ask(scenario, overrides, "searching", solve)
    _answer(question, result, given, form, output, top, plot)


def predict_placement(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """What an order of nodes costs."""
    from cli import extras

    extras.check(None, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[PlacementScenario, Result]":
        from solvers.placement import predict
        from solvers.placement_scenario import load_placement

        question = load_placement(source, scenario.parent)
        need_plan(source, question.given, "order")
        return question, predict(question)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    _answer(question, result, given, form, output, top, plot)


def _answer(
    question: "PlacementScenario",
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: Path | None,
    top: int,
    plot: Path | None,
) -> None:
    if plot is not None:
        from cli import extras
        from cli.placement_plot import draw

        extras.draw(result, plot, lambda drawn, file: draw(question, drawn, file))
    write_result(result, given, form, output, lambda: _shown(result, top))


def _shown(result: "Result", top: int) -> "RenderableType":
    """Show the answer, its plan as the nodes in the order of the ranks they take."""
    from cli import render

    return render.result(result, top, None if result.plan is None else _order(result.plan))


def _order(plan: "Mapping[str, Any]") -> "RenderableType":
    from cli.tables import table, text

    names, ranks = plan["nodes"], len(plan["order"])
    each = ranks // len(names)
    rows = [
        (
            f"{first * each:,} to {min(first + _IN_A_ROW, len(names)) * each - 1:,}",
            " ".join(names[first : first + _IN_A_ROW]),
        )
        for first in range(0, len(names), _IN_A_ROW)
    ]
    more = len(rows) - _MOST_ROWS
    title = f"Nodes by rank ({each} {'rank' if each == 1 else 'ranks'} each"
    title += f"; {more} more rows with --format json)" if more > 0 else ")"
    return table(title, ("ranks", "nodes"), [(text(a), text(b)) for a, b in rows[:_MOST_ROWS]], numbers=())
