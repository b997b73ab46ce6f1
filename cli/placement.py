"""Commands about which node takes which part of a job."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.options import Debug, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, write_answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import RenderableType

    from cli.options import Format
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
    from cli.load import load, written
    from cli.progress import working

    extras.check(None, plot)
    source = load(scenario, overrides or ())
    with working("searching") as progress:
        from solvers.backend import OPTIMAL_GAP
        from solvers.placement import plan
        from solvers.placement_scenario import load_placement

        question = load_placement(source, scenario.parent)
        result = plan(question, time_limit_s=time_limit, gap=gap if gap > OPTIMAL_GAP else None, progress=progress)
    _draw(question, result, plot)
    _answer(result, written(scenario, overrides or ()), form, output, top)


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
    from cli.load import load, written
    from cli.progress import working
    from hardware.faults import InputError

    extras.check(None, plot)
    source = load(scenario, overrides or ())
    with working("predicting"):
        from solvers.placement import predict
        from solvers.placement_scenario import load_placement

        question = load_placement(source, scenario.parent)
        if question.given is None:
            raise InputError([source.fault(("plan",), "missing; predict costs the order that a scenario gives")])
        result = predict(question)
    _draw(question, result, plot)
    _answer(result, written(scenario, overrides or ()), form, output, top)


def _draw(question: "PlacementScenario", result: "Result", plot: Path | None) -> None:
    """Draw the answer, if that was asked for."""
    if plot is None:
        return
    if result.plan is None:
        typer.echo(f"--plot {plot}: nothing to draw, the answer is {result.status}", err=True)
        return
    from cli import placement_plot
    from hardware.faults import Fault, InputError

    try:
        placement_plot.draw(question, result, plot)
    except OSError as error:
        raise InputError([Fault(f"--plot {plot}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None


def _answer(result: "Result", given: "Mapping[str, Any]", form: "Format | None", output: Path | None, top: int) -> None:
    from cli.export import result_csv

    write_answer(
        form,
        output,
        table=lambda: _shown(result, top),
        data=result.to_dict,
        csv=lambda: result_csv(result, given),
    )


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
