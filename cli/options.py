"""Options that commands share, and what they do with them: read, refuse, write."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.program import debug

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hardware.faults import Fault

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
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the answer, as .svg, .png or .pdf.")]
By = Annotated[
    list[str] | None,
    typer.Option("--by", metavar="COLUMN", help="Figures for each value of it; several are crossed."),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="EXPR", help='Keep rows, such as "gpus>=64" or "engine=vllm"; repeatable.'),
]
LeaveOut = Annotated[
    str | None,
    typer.Option("--leave-out", metavar="COLUMN", help="Refit without each value of it in turn; minutes for each."),
]
Machines = Annotated[
    list[Path] | None,
    typer.Option("--hardware", metavar="FILE", help="A node or cluster that the rows name; repeatable."),
]
Rows = Annotated[
    Path | None, typer.Option("--rows", metavar="FILE", help="Write every measured value with its prediction.")
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=debug, is_eager=True, help="Show where in the program a fault arose.")
]

PLAIN: dict[str, Any] = {"rich_markup_mode": None, "no_args_is_help": True}


def form_of(given: Format | None, output: Path | None) -> Format:
    """Settle how to write: as asked, else as the file's ending says."""
    endings = {".json": Format.json, ".yaml": Format.yaml, ".yml": Format.yaml, ".csv": Format.csv}
    return given or endings.get(output.suffix.lower() if output else "", Format.table)


def write_answer(
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

    form = form_of(form, output)
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
        save(text, output, "--output")


def save(text: str, path: Path, option: str) -> None:
    """Write a text to the file that an option names; one that cannot be written is a fault of the input."""
    from cli.export import write
    from hardware.faults import Fault, InputError

    try:
        write(text, path)
    except OSError as error:
        raise InputError([Fault(f"{option} {path}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None


def warn(warnings: "Iterable[Fault]") -> None:
    """Tell what may be meant otherwise."""
    for fault in warnings:
        typer.echo(f"warning: {fault}", err=True)


def readable(paths: list[Path]) -> None:
    """Refuse files that do not exist, all at once."""
    from hardware.faults import Fault, InputError

    faults = [Fault(str(path), 0, 0, "", "there is no such file") for path in paths if not path.is_file()]
    if faults:
        raise InputError(faults)


def one_of(what: str, name: str, known: tuple[str, ...]) -> str:
    """Return a name if it is known; else refuse it with what is allowed and the nearest."""
    from hardware.faults import Fault, InputError
    from hardware.yaml_source import did_you_mean

    if name not in known:
        raise InputError([Fault(what, 0, 0, "", f'unknown; {did_you_mean(name, known)} [got "{name}"]')])
    return name
