"""Commands about power: servers below limits, and predictions against measured watts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.answer import ask, need_plan, stop_at, write_result
from cli.options import (
    By,
    Debug,
    Form,
    Gap,
    LeaveOut,
    Machines,
    Output,
    Overrides,
    Rows,
    Scenario,
    TimeLimit,
    Top,
    Where,
    readable,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.power_scenario import PowerScenario
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.

Simulate = Annotated[
    bool, typer.Option("--simulate", help="Also run the servers second by second, with caps, brake and breakers.")
]
Weeks = Annotated[float, typer.Option("--weeks", min=0.01, help="Of the simulation.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the simulation.")]


def plan_power(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    simulate: Simulate = False,
    weeks: Weeks = 1.0,
    seed: Seed = 1,
    debug: Debug = False,
) -> None:
    """How many servers fit below the limits of a facility, and where."""

    def solve(source: "Source", progress: "Progress") -> "tuple[PowerScenario, Result]":
        from solvers.power import plan
        from solvers.power_capped import Simulated
        from solvers.power_scenario import load_power

        question = load_power(source, scenario.parent)
        asked = Simulated(weeks, seed) if simulate else None
        return question, plan(question, top=top, time_limit_s=time_limit, gap=stop_at(gap), simulate=asked)

    question, result, given = ask(scenario, overrides, "searching", solve)
    warn(question.warnings)
    _answer(result, given, form, output, top)


def predict_power(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    simulate: Simulate = False,
    weeks: Weeks = 1.0,
    seed: Seed = 1,
    debug: Debug = False,
) -> None:
    """What given servers draw, node by node, and whether that meets the limits."""

    def solve(source: "Source", progress: "Progress") -> "tuple[PowerScenario, Result]":
        from solvers.power import predict
        from solvers.power_capped import Simulated
        from solvers.power_scenario import load_power

        question = load_power(source, scenario.parent)
        need_plan(source, question.question.plan, "servers")
        return question, predict(question, simulate=Simulated(weeks, seed) if simulate else None)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    warn(question.warnings)
    _answer(result, given, form, output, top)


def _answer(result: "Result", given: "Mapping[str, Any]", form: "Format | None", output: Path | None, top: int) -> None:
    """Write the answer; a row of a CSV holds no single nodes."""
    from dataclasses import replace

    def brief(part: "Mapping[str, Any] | None") -> "dict[str, Any] | None":
        return None if part is None else {key: value for key, value in part.items() if key != "by_node"}

    others = [{key: brief(part) for key, part in other.items()} for other in result.alternatives]
    row = replace(result, plan=brief(result.plan), prediction=brief(result.prediction), alternatives=others)
    write_result(result, given, form, output, lambda: _shown(result, top), row)


def _shown(result: "Result", top: int) -> "RenderableType":
    from dataclasses import replace

    from cli import render

    if result.plan is None:
        return render.result(result, top)
    others = [{**other, "plan": _brief(other["plan"])} for other in result.alternatives]
    said = {key: value for key, value in (result.prediction or {}).items() if key != "by_node"}
    shown = replace(result, plan=_brief(result.plan), prediction=said, alternatives=others)
    return render.result(shown, top, _nodes(result.plan, (result.prediction or {})["by_node"]))


def _brief(plan: "Mapping[str, Any]") -> "dict[str, Any]":
    brief = {key: value for key, value in plan.items() if key != "by_node" and value is not None}
    if "caps" in brief:
        clocks = {name: [f"{clock / 1e6:.0f}" for clock in cap["clock_hz"]] for name, cap in brief["caps"].items()}
        brief["caps"] = {name: ", ".join(each) + " MHz" for name, each in clocks.items()}
    return brief


_NODES = 12
"""Nodes that the table shows."""


def _nodes(plan: "Mapping[str, Any]", by_node: "Mapping[str, Any]") -> "RenderableType":
    """Show the plan, where servers stand, and what the nodes draw."""
    from rich.console import Group

    from cli.tables import quantity, table, text

    brief = [(key, quantity(key, value)) for key, value in _brief(plan).items()]
    racks = [(text(name), quantity("", servers)) for name, servers in list(plan["by_node"].items())[:_NODES]]
    left = len(plan["by_node"]) - len(racks)
    ordered = sorted(by_node.items(), key=lambda item: -(item[1]["rule_w"] / item[1]["limit_w"]))[:_NODES]
    rows = [
        (
            text(name),
            str(node["servers"]),
            *(quantity("w_w", node[key]) for key in ("p50_w", "p99_w", "rule_w", "limit_w")),
        )
        for name, node in ordered
    ]
    more = f" ({left} more with --format json)" if left else ""
    fullest = f"Power, the fullest {len(rows)} of {len(by_node)}" if len(by_node) > len(rows) else "Power"
    return Group(
        table("Plan", ("", ""), brief, numbers=()),
        table(f"Servers in each rack{more}", ("", ""), racks, numbers=()),
        table(fullest, ("", "servers", "P50", "P99", "by the rule", "limit"), rows),
    )


def validate_power(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of measured power, plain or .gz.")],
    by: By = None,
    where: Where = None,
    leave_out: LeaveOut = None,
    hardware: Machines = None,
    rows: Rows = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Measured power: serving, phases, idle and busy, training under power caps."""
    from cli import accuracy
    from cli.progress import working

    readable([*data, *(hardware or ())])
    with working("predicting") as progress:
        from perfmodel.measured_kernels import accelerator_file
        from perfmodel.validate_power import validate

        report, frame = validate(
            data,
            by=by or (),
            where=where or (),
            hardware=[accelerator_file(path) for path in hardware or ()],
            leave_out=leave_out,
            progress=progress,
        )
    accuracy.write(report, frame, rows, form, output)


def calibrate_board(
    data: list[Path], device: str | None, hardware: list[Path], output: Path | None, form: Form
) -> None:
    """Fit what a board draws, and how it meets power caps, to measured rows.

    Parameters
    ----------
    data : list of Path
        Files of measured power.
    device : str
        Whose rows to use.
    hardware : list of Path
        Boards that the rows name.
    output : Path
        Write the accelerator's description with the result.
    """
    from cli import accuracy
    from cli.export import to_yaml
    from cli.options import save, write_answer
    from cli.progress import working

    with working("fitting") as progress:
        from perfmodel.calibrate_power import calibrate
        from perfmodel.calibrated_accelerator import written_description
        from perfmodel.measured_kernels import accelerator_file

        described = [accelerator_file(path) for path in hardware]
        found = calibrate(data, device=device, hardware=described, progress=progress)
    if output is not None:
        save(to_yaml(found.description(written_description(found.accelerator))), output, "--output")
    report = found.to_dict()
    write_answer(
        form,
        None,
        table=lambda: accuracy.calibration(report),
        data=lambda: report,
        csv=lambda: accuracy.calibration_csv(report),
    )
