"""Commands about which flow takes which path."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Debug, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, save, write_answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from cli.options import Format
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.

Paths = Annotated[
    Path | None,
    typer.Option("--paths", metavar="FILE", help="Write the paths here, as a CSV with a row for each flow and path."),
]

_MOST_SHOWN = 12


def plan_routing(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    paths: Paths = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """Which path each flow takes through a network."""
    from cli import extras
    from cli.load import load, written
    from cli.progress import working

    extras.check(None, plot)
    source = load(scenario, overrides or ())
    with working("searching") as progress:
        from solvers.backend import OPTIMAL_GAP
        from solvers.routing import plan
        from solvers.routing_scenario import load_routing

        question = load_routing(source, scenario.parent)
        result = plan(
            question, top=top, time_limit_s=time_limit, gap=gap if gap > OPTIMAL_GAP else None, progress=progress
        )
    extras.draw(result, plot)
    _answer(result, written(scenario, overrides or ()), form, output, paths, top)


def predict_routing(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    paths: Paths = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """How long flows take on given paths."""
    from cli import extras
    from cli.load import load, written
    from cli.progress import working

    extras.check(None, plot)
    source = load(scenario, overrides or ())
    with working("predicting"):
        from solvers.routing import predict
        from solvers.routing_scenario import load_routing

        result = predict(load_routing(source, scenario.parent))
    extras.draw(result, plot)
    _answer(result, written(scenario, overrides or ()), form, output, paths, top)


def _answer(
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: Path | None,
    paths: Path | None,
    top: int,
) -> None:
    from dataclasses import replace

    from cli.export import result_csv, to_csv

    without = result
    if result.plan is not None:
        kept = {key: value for key, value in result.plan.items() if key not in ("paths", "adapters")}
        without = replace(result, plan=kept)  # a cell of a spreadsheet does not hold a hundred thousand paths
        if paths is not None:
            save(to_csv(("flow", "path", "share"), _rows(result.plan["paths"])), paths, "--paths")
            result = replace(result, plan=result.plan | {"paths": str(paths)})
    write_answer(
        form,
        output,
        table=lambda: _table(result, without, top),
        data=result.to_dict,
        csv=lambda: result_csv(without, given),
    )


def _rows(paths: "Iterable[Any]") -> "Iterable[tuple[int, str, float]]":
    for flow, entry in enumerate(paths):
        for path, share in entry.items() if isinstance(entry, dict) else [(entry, 1.0)]:
            yield flow, path, share


def _table(result: "Result", without: "Result", top: int) -> "RenderableType":
    from rich.console import Group

    from cli import render
    from cli.tables import table, text

    parts: list[RenderableType] = [render.result(without, top)]
    paths = (result.plan or {}).get("paths")
    if isinstance(paths, list):
        counts: dict[str, float] = {}
        for _, path, share in _rows(paths):
            counts[path] = counts.get(path, 0.0) + share
        shown = list(counts.items())
        rows = [(path, f"{flows:g}") for path, flows in shown[:_MOST_SHOWN]]
        parts.append(table("Paths", ("", "flows"), rows))
        more = f"; {len(shown) - _MOST_SHOWN} more paths" if len(shown) > _MOST_SHOWN else ""
        parts.append(text(f"  every flow's path: --format json, or --paths FILE{more}\n"))
    return Group(*parts)
