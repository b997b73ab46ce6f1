"""Commands about which flow takes which path."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.answer import ask, stop_at, write_result
from cli.options import Debug, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, save

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.result import Result
    from solvers.routing_scenario import RoutingScenario

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
    _check(plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[RoutingScenario, Result]":
        from solvers.routing import plan
        from solvers.routing_scenario import load_routing

        question = load_routing(source, scenario.parent)
        return question, plan(question, top=top, time_limit_s=time_limit, gap=stop_at(gap), progress=progress)

    question, result, given = ask(scenario, overrides, "searching", solve)
    _draw(question, result, plot)
    _answer(result, given, form, output, paths, top)


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
    _check(plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[RoutingScenario, Result]":
        from solvers.routing import predict
        from solvers.routing_scenario import load_routing

        question = load_routing(source, scenario.parent)
        return question, predict(question)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    _draw(question, result, plot)
    _answer(result, given, form, output, paths, top)


def _check(plot: Path | None) -> None:
    from hardware.faults import Fault, InputError

    if plot is not None and plot.suffix.lower() != ".svg":
        raise InputError([Fault(f"--plot {plot}", 0, 0, "", "a routing is drawn as .svg")])


def _draw(question: "RoutingScenario", result: "Result", plot: Path | None) -> None:
    """Draw how full the links are, if that was asked for."""
    if plot is None:
        return
    if result.plan is None:
        typer.echo(f"--plot {plot}: nothing to draw, the answer is {result.status}", err=True)
        return
    from cli.routing_svg import svg
    from cli.tables import seconds
    from solvers.routing_case import link_times

    split = result.plan["split_flows"]
    title = f"{seconds(result.objective.value or 0.0)}, {split} flow{'' if split == 1 else 's'} split"
    save(svg(link_times(question, result.plan), title), plot, "--plot")


def _answer(
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: Path | None,
    paths: Path | None,
    top: int,
) -> None:
    import os
    from dataclasses import replace

    from cli.export import to_csv

    without = result
    if result.plan is not None:
        kept = {key: value for key, value in result.plan.items() if key not in ("paths", "adapters")}
        without = replace(result, plan=kept)  # a cell of a spreadsheet does not hold a hundred thousand paths
        if paths is not None:
            save(to_csv(("flow", "path", "share"), _rows(result.plan["paths"])), paths, "--paths")
            # a path in a plan is relative to the plan's file
            place = paths if output is None else Path(os.path.relpath(paths, output.parent))
            result = replace(result, plan=result.plan | {"paths": place.as_posix()})
    write_result(result, given, form, output, lambda: _table(result, without, top), without)


def _rows(paths: "Iterable[Any]") -> "Iterable[tuple[int, str, float]]":
    for flow, entry in enumerate(paths):
        for path, share in entry.items() if isinstance(entry, dict) else [(entry, 1.0)]:
            yield flow, path, share


def _table(result: "Result", without: "Result", top: int) -> "RenderableType":
    import re

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
        shown.sort(key=lambda entry: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", entry[0])])
        rows = [(path, f"{flows:g}") for path, flows in shown[:_MOST_SHOWN]]
        parts.append(table("Paths", ("", "flows"), rows))
        more = f"; {len(shown) - _MOST_SHOWN} more paths" if len(shown) > _MOST_SHOWN else ""
        parts.append(text(f"  every flow's path: --format json, or --paths FILE{more}\n"))
    return Group(*parts)
