"""Commands of the `perfmodel` program."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.answer import ask, need_plan, stop_at, write_result
from cli.catalogue_commands import architectures, machines, schema
from cli.collective import validate_collective
from cli.fleet import plan_fleet, predict_fleet
from cli.kernels import bench, calibrate, kernel_validations
from cli.kv import plan_kv, predict_kv
from cli.options import (
    PLAIN,
    By,
    Debug,
    Emit,
    Explain,
    Form,
    Format,
    Gap,
    LeaveOut,
    Machines,
    Output,
    Overrides,
    Plot,
    Rows,
    Scenario,
    TimeLimit,
    Top,
    Where,
    readable,
)
from cli.placement import plan_placement, predict_placement
from cli.power import plan_power, predict_power, validate_power
from cli.program import Program
from cli.routing import plan_routing, predict_routing
from cli.sequence import plan_sequence, predict_sequence
from cli.serve import plan_serve, predict_serve
from cli.serving import validate_serving
from cli.sweep import sweep

if TYPE_CHECKING:
    from cli.answer import Progress
    from hardware.yaml_source import Source
    from solvers.result import Result
    from solvers.scenario import TrainScenario

# Everything slow to import is imported by the command that needs it.

app = typer.Typer(
    cls=Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **PLAIN,
)
plans = typer.Typer(**PLAIN)
predictions = typer.Typer(**PLAIN)
checks = typer.Typer(**PLAIN)
app.add_typer(plans, name="plan", help="Find the best plan, predict it, prove it.")
app.add_typer(predictions, name="predict", help="Cost the plan a scenario gives, and explain it.")
app.add_typer(checks, name="validate", help="Hold predictions against measurements.")
app.add_typer(machines, name="hardware", help="The catalogue of machines; check a file.")
app.add_typer(architectures, name="model", help="Bundled models; any config.json works too.")


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("perfmodel"))
        raise typer.Exit


@app.callback()
def perfmodel(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Predict what LLM work costs on a cluster, and plan it."""


def _answer(
    result: "Result",
    given: Mapping[str, Any],
    form: Format | None,
    output: Path | None,
    top: int,
    explain: str | None,
    emit: str | None,
    plot: Path | None,
) -> None:
    from cli import extras

    extras.draw(result, plot)
    if explain is not None:
        from cli import explain as terms
        from perfmodel.equations import EXPLANATIONS

        terms.write(result, explain, EXPLANATIONS, form, output)
    elif not extras.emit(result, emit, output):
        from cli import render

        write_result(result, given, form, output, lambda: render.result(result, top))


@plans.callback()
def _plan() -> None:
    """Find the best plan, predict it, prove it."""


@predictions.callback()
def _predict() -> None:
    """Cost the plan a scenario gives, and explain it."""


@plans.command("train")
def plan_train(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    emit: Emit = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """How to train a model on a cluster."""
    from cli import extras

    extras.check(emit, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[TrainScenario, Result]":
        from solvers.scenario import load_train
        from solvers.train import plan

        question = load_train(source, scenario.parent)
        return question, plan(question, top=top, time_limit_s=time_limit, gap=stop_at(gap), progress=progress)

    _, result, given = ask(scenario, overrides, "searching", solve)
    _answer(result, given, form, output, top, explain, emit, plot)


@predictions.command("train")
def predict_train(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    emit: Emit = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """What a training plan costs."""
    from cli import extras

    extras.check(emit, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[TrainScenario, Result]":
        from solvers.scenario import load_train
        from solvers.train import predict

        question = load_train(source, scenario.parent)
        need_plan(source, question.plan, "plan")
        return question, predict(question)

    _, result, given = ask(scenario, overrides, "predicting", solve)
    _answer(result, given, form, output, top, explain, emit, plot)


@checks.callback()
def _validate() -> None:
    """Hold predictions against measurements."""


@checks.command("training")
def validate_training(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of measured runs, plain or .gz.")],
    by: By = None,
    where: Where = None,
    leave_out: LeaveOut = None,
    hardware: Machines = None,
    rows: Rows = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Measured training runs: step time and memory."""
    from cli import accuracy
    from cli.progress import working
    from hardware.catalogue import resolve_cluster

    readable(data)
    with working("predicting") as progress:
        from perfmodel.validate_training import validate

        report, frame = validate(
            data,
            by=by or (),
            where=where or (),
            hardware=[resolve_cluster(str(path.resolve()), Path()) for path in hardware or ()],
        )
        if leave_out is not None:
            from perfmodel.training_fit import left_out
            from perfmodel.validation import column

            report["left_out"] = left_out(frame, column("--leave-out", frame, leave_out), progress)
    accuracy.write(report, frame, rows, form, output)


plans.command("fleet")(plan_fleet)
predictions.command("fleet")(predict_fleet)
plans.command("kv")(plan_kv)
predictions.command("kv")(predict_kv)
plans.command("placement")(plan_placement)
predictions.command("placement")(predict_placement)
plans.command("power")(plan_power)
predictions.command("power")(predict_power)
plans.command("routing")(plan_routing)
predictions.command("routing")(predict_routing)
plans.command("sequence")(plan_sequence)
predictions.command("sequence")(predict_sequence)
plans.command("serve")(plan_serve)
predictions.command("serve")(predict_serve)
checks.command("collective")(validate_collective)
checks.command("power")(validate_power)
checks.command("serving")(validate_serving)
app.command("schema")(schema)
app.command("sweep")(sweep)
app.command("calibrate")(calibrate)
app.command("bench")(bench)
for _name, _validate_kernels, _help in kernel_validations():
    checks.command(_name, help=_help)(_validate_kernels)


def main() -> None:
    """Run the command line."""
    app()
