"""Commands of the `perfmodel` program."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.program import Program, debug

if TYPE_CHECKING:
    from rich.console import RenderableType

    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.


class Format(StrEnum):
    """How an answer is written."""

    table = "table"
    json = "json"
    yaml = "yaml"
    csv = "csv"


Scenario = Annotated[
    Path, typer.Argument(metavar="SCENARIO", help="A scenario, or a plan JSON: its scenario and plan.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value by its dotted path, hardware included; repeatable."),
]
Form = Annotated[
    Format | None,
    typer.Option("--format", help="Default: as the ending of --output says, else table.", show_default=False),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here, not to the terminal.")]
Top = Annotated[int, typer.Option("--top", min=0, metavar="N", help="Alternatives to list.")]
TimeLimit = Annotated[
    float | None, typer.Option("--time-limit", min=0, metavar="SECONDS", help="Stop the search after so long.")
]
Gap = Annotated[
    float,
    typer.Option("--gap", min=0, metavar="FRACTION", help="Gap at which a solver may stop; exhaustion needs none."),
]
Explain = Annotated[
    str | None,
    typer.Option("--explain", metavar="TERM", help="Show the equation and the source of a term of the breakdown."),
]
Emit = Annotated[
    str | None,
    typer.Option("--emit", metavar="SYSTEM", help="Write a launch script: megatron-lm, torchtitan or deepspeed."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw time and memory, as .svg, .png or .pdf.")
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=debug, is_eager=True, help="Show where in the program a fault arose.")
]

_PLAIN: dict[str, Any] = {"rich_markup_mode": None, "no_args_is_help": True}

app = typer.Typer(
    cls=Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_PLAIN,
)
plans = typer.Typer(**_PLAIN)
predictions = typer.Typer(**_PLAIN)
checks = typer.Typer(**_PLAIN)
machines = typer.Typer(**_PLAIN)
architectures = typer.Typer(**_PLAIN)
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


def _form(given: Format | None, output: Path | None) -> Format:
    """Settle how to write: as asked, else as the file's ending says."""
    endings = {".json": Format.json, ".yaml": Format.yaml, ".yml": Format.yaml, ".csv": Format.csv}
    return given or endings.get(output.suffix.lower() if output else "", Format.table)


def _write(
    form: Format | None,
    output: Path | None,
    *,
    table: "Callable[[], RenderableType]",
    data: Callable[[], Any],
    csv: Callable[[], str],
) -> None:
    """Write an answer in the form that was asked for."""
    import io
    import sys

    from cli.export import to_json, to_yaml

    form = _form(form, output)
    if form is Format.table:
        from cli.tables import console

        if output is None:
            console().print(table())
            return
        file = io.StringIO()
        console(file).print(table())
        text = file.getvalue()
    else:
        text = {Format.json: lambda: to_json(data()), Format.yaml: lambda: to_yaml(data()), Format.csv: csv}[form]()
    if output is None:
        sys.stdout.write(text)
    else:
        _save(text, output, "--output")


def _save(text: str, path: Path, option: str) -> None:
    from cli.export import write
    from hardware.faults import Fault, InputError

    try:
        write(text, path)
    except OSError as error:
        raise InputError([Fault(f"{option} {path}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None


def _answer(result: "Result", given: Mapping[str, Any], form: Format | None, output: Path | None, top: int) -> None:
    from cli import render
    from cli.export import result_csv

    _write(
        form,
        output,
        table=lambda: render.result(result, top),
        data=result.to_dict,
        csv=lambda: result_csv(result, given),
    )


def _explained(result: "Result", name: str, form: Format | None, output: Path | None) -> None:
    """Write what a term of an answer's breakdown is."""
    from cli import explain
    from perfmodel.equations import EXPLANATIONS

    term = _one_of("term", name, tuple(EXPLANATIONS))
    found = explain.occurrences(result, term)
    _write(
        form,
        output,
        table=lambda: explain.shown(term, found),
        data=lambda: explain.data(term, found),
        csv=lambda: explain.csv(term, found),
    )


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
    from cli.load import load, written
    from cli.progress import working

    extras.check(emit, plot)
    source = load(scenario, overrides or ())
    with working("searching") as progress:
        from solvers.backend import OPTIMAL_GAP
        from solvers.scenario import load_train
        from solvers.train import plan

        question = load_train(source, scenario.parent)
        result = plan(
            question, top=top, time_limit_s=time_limit, gap=gap if gap > OPTIMAL_GAP else None, progress=progress
        )
    extras.draw(result, plot)
    if explain is not None:
        _explained(result, explain, form, output)
    elif not extras.emit(result, emit, output):
        _answer(result, written(scenario, overrides or ()), form, output, top)


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
    from cli.load import load, written
    from cli.progress import working
    from hardware.faults import InputError

    extras.check(emit, plot)
    source = load(scenario, overrides or ())
    with working("predicting"):
        from solvers.scenario import load_train
        from solvers.train import predict

        question = load_train(source, scenario.parent)
        if question.plan is None:
            raise InputError([source.fault(("plan",), "missing; predict costs the plan that a scenario gives")])
        result = predict(question)
    extras.draw(result, plot)
    if explain is not None:
        _explained(result, explain, form, output)
    elif not extras.emit(result, emit, output):
        _answer(result, written(scenario, overrides or ()), form, output, top)


@checks.callback()
def _validate() -> None:
    """Hold predictions against measurements."""


@checks.command("training")
def validate_training(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of measured runs, plain or .gz.")],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Figures for each value of it; several are crossed."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="EXPR", help='Keep rows, such as "gpus>=64"; repeatable.')
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            "--leave-out", metavar="COLUMN", help="Refit without each value of it in turn; minutes for each value."
        ),
    ] = None,
    hardware: Annotated[
        list[Path] | None,
        typer.Option("--hardware", metavar="FILE", help="A node or cluster that the rows name; repeatable."),
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Write every row with its prediction.")
    ] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Measured training runs: step time and memory."""
    from cli import accuracy
    from cli.progress import working
    from hardware.catalogue import resolve_cluster

    _readable(data)
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

            report["left_out"] = left_out(frame, _column(frame, leave_out), progress)
    if rows is not None:
        _save(accuracy.rows_csv(frame), rows, "--rows")
    _write(
        form,
        output,
        table=lambda: accuracy.report(report),
        data=lambda: report,
        csv=lambda: accuracy.report_csv(report),
    )


def _column(frame: Any, name: str) -> str:
    from hardware.faults import Fault, InputError

    if name not in frame.columns:
        message = f"no such column; there are: {', '.join(map(str, frame.columns))}"
        raise InputError([Fault("--leave-out", 0, 0, name, message)])
    return name


def _readable(paths: list[Path]) -> None:
    from hardware.faults import Fault, InputError

    faults = [Fault(str(path), 0, 0, "", "there is no such file") for path in paths if not path.is_file()]
    if faults:
        raise InputError(faults)


@machines.command("list")
def hardware_list(
    kind: Annotated[str | None, typer.Argument(help="accelerator, node, cluster or efficiency; default: all.")] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """List what the catalogue holds."""
    from cli import catalogue
    from cli.export import to_csv
    from hardware.catalogue import names

    kinds = catalogue.KINDS if kind is None else (_one_of("kind of hardware", kind, catalogue.KINDS),)
    _write(
        form,
        output,
        table=lambda: catalogue.listed(kinds),
        data=lambda: {each: list(names(each)) for each in kinds},
        csv=lambda: to_csv(("kind", "name"), [(each, name) for each in kinds for name in names(each)]),
    )


@machines.command("show")
def hardware_show(
    name: Annotated[str, typer.Argument(help="A name in the catalogue, or the path of a hardware file.")],
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Show a description: numbers with their units, and where each comes from."""
    from cli import catalogue
    from cli.export import to_csv

    entry = _entry(name)
    head = ("key", "value", "source", "date", "evidence", "note")
    _write(
        form,
        output,
        table=lambda: catalogue.description(entry),
        data=lambda: entry.model_dump(mode="json"),
        csv=lambda: to_csv(head, catalogue.cells(entry)),
    )


def _entry(name: str) -> Any:
    """Find a hardware description of any kind by name or path."""
    from cli.catalogue import KINDS
    from hardware.catalogue import UnknownName, find, load_file, names
    from hardware.faults import Fault, InputError
    from hardware.yaml_source import nearest

    if name.endswith((".yaml", ".yml", ".json")) or "/" in name:
        return load_file(Path(name))
    near: list[str] = []
    found = []
    for kind in KINDS:
        try:
            found.append(find(kind, name))
        except UnknownName as error:
            near += [error.nearest] if error.nearest else []
    if found:  # a name goes before another kind's alias: gb200-nvl72 is the rack, not one of its accelerators
        return next((entry for entry in found if _bare(entry.name) == _bare(name)), found[0])
    best = nearest(name, near) or next(iter(near), None)
    hint = f' (did you mean "{best}"?)' if best else ""
    count = sum(len(names(kind)) for kind in KINDS)
    message = f'no "{name}" among the {count} entries of the catalogue{hint}; a path ends in .yaml'
    raise InputError([Fault("hardware show", 0, 0, "", message)])


def _bare(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ ."))


@machines.command("check")
def hardware_check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Default: the whole catalogue.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Check hardware files: every fault with its place, and every figure that rests on memory alone."""
    from importlib import resources

    from hardware.catalogue import check_file, load_file
    from hardware.provenance import from_memory

    with resources.as_file(resources.files("hardware") / "catalog") as folder:
        # the parameters of kernels are no machines; their models check them
        paths = files or sorted(path for path in folder.glob("*/*.yaml") if path.parent.name != "kernels")
        faults = 0
        recalled = 0
        for path in paths:
            shown = path.relative_to(folder) if path.is_relative_to(folder) else path
            found = check_file(path)
            for fault in found:
                typer.echo(fault, err=True)
            faults += len(found)
            if not found:
                for key, source in from_memory(load_file(path)):
                    recalled += 1
                    note = f": {source.note}" if source.note else ""
                    typer.echo(f"{shown}: {key}: from memory ({source.source}, {source.date}){note}")
    counted = f"{len(paths)} {'file' if len(paths) == 1 else 'files'}"
    typer.echo(f"{counted}, {faults} {'fault' if faults == 1 else 'faults'}, {recalled} from memory")
    if faults:
        raise typer.Exit(2)


@architectures.command("list")
def model_list(form: Form = None, output: Output = None, debug: Debug = False) -> None:
    """List the bundled models."""
    from cli import catalogue
    from cli.export import to_csv
    from perfmodel.architecture import architecture_names, load_architecture

    found = [load_architecture(name, Path()) for name in architecture_names()]
    columns = ("name", "parameters", "active_parameters", "depth", "hidden", "vocab", "max_positions")
    rows = [{column: getattr(model, column) for column in columns} for model in found]
    _write(
        form,
        output,
        table=lambda: catalogue.models(found),
        data=lambda: rows,
        csv=lambda: to_csv(columns, [tuple(row.values()) for row in rows]),
    )


@architectures.command("show")
def model_show(
    name: Annotated[str, typer.Argument(help="A bundled model, the path of a config.json or of a short description.")],
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Show a model: its size and its layers."""
    from cli import catalogue
    from cli.export import flattened, to_csv
    from hardware.yaml_source import Source
    from perfmodel.architecture import load_architecture

    found = load_architecture(name, Path(), Source("model show", name), ())

    def csv() -> str:
        data = catalogue.model_dict(found)
        cells = dict(flattened({**data, "layers": dict(enumerate(data["layers"], start=1))}))
        return to_csv(list(cells), [list(cells.values())])

    _write(form, output, table=lambda: catalogue.model(found), data=lambda: catalogue.model_dict(found), csv=csv)


@app.command("schema")
def schema(
    name: Annotated[str, typer.Argument(help="accelerator, node, cluster, efficiency, model or train.")],
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Write the JSON Schema of a hardware file, a model or a scenario, for editors."""
    known = ("accelerator", "node", "cluster", "efficiency", "model", "train")
    chosen = _one_of("schema", name, known)

    def content() -> Any:
        if chosen == "train":
            from solvers.scenario import train_schema

            return train_schema()
        if chosen == "model":
            from perfmodel.architecture import json_schema as model_schema

            return model_schema()
        from hardware.schema import json_schema

        return json_schema(chosen)

    _write(Format.json, output, table=content, data=content, csv=content)


def _one_of(what: str, name: str, known: tuple[str, ...]) -> str:
    from hardware.faults import Fault, InputError
    from hardware.yaml_source import did_you_mean

    if name not in known:
        raise InputError([Fault(what, 0, 0, "", f'unknown; {did_you_mean(name, known)} [got "{name}"]')])
    return name


from cli import kernels  # noqa: E402, F401  commands in a file of their own join `checks`


def main() -> None:
    """Run the command line."""
    app()
