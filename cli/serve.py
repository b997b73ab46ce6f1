"""Commands about how to serve a model."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import Debug, Form, Gap, Output, Overrides, Scenario, TimeLimit, Top, write_answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cli.options import Format
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.


def predict_serve(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    debug: Debug = False,
) -> None:
    """What requests see of a deployment: latencies, throughput, memory, cost."""
    from cli.load import load, written
    from cli.progress import working
    from hardware.faults import InputError

    source = load(scenario, overrides or ())
    with working("predicting"):
        from solvers.serve import predict
        from solvers.serve_scenario import load_serve

        question = load_serve(source, scenario.parent)
        if question.question.plan is None:
            raise InputError([source.fault(("plan",), "missing; predict costs the deployment that a scenario gives")])
        result = predict(question)
    _warn(question.warnings)
    _answer(result, written(scenario, overrides or ()), form, output, top)


def _warn(warnings: "Any") -> None:
    import typer

    for fault in warnings:
        typer.echo(f"warning: {fault}", err=True)


def _answer(result: "Result", given: "Mapping[str, Any]", form: "Format | None", output: Path | None, top: int) -> None:
    from cli import render
    from cli.export import result_csv

    write_answer(
        form,
        output,
        table=lambda: render.result(result, top),
        data=result.to_dict,
        csv=lambda: result_csv(result, given),
    )
