"""Commands about power: predictions against measured watts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Debug, Form, Output, readable


def validate_power(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of measured power, plain or .gz.")],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Figures for each value of it; several are crossed."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="EXPR", help='Keep rows, such as "gpu=H100".')
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            "--leave-out",
            metavar="COLUMN",
            help="Refit without each value of it in turn, such as family; half a minute for each.",
        ),
    ] = None,
    hardware: Annotated[
        list[Path] | None,
        typer.Option("--hardware", metavar="FILE", help="A node or cluster whose accelerator the rows name."),
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Write every measured value with its prediction.")
    ] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Measured power: serving, phases, idle and busy, training under power caps."""
    from cli import accuracy
    from cli.progress import working
    from hardware.catalogue import resolve_cluster

    readable(data)
    with working("predicting") as progress:
        from perfmodel.validate_power import validate

        report, frame = validate(
            data,
            by=by or (),
            where=where or (),
            hardware=[resolve_cluster(str(path.resolve()), Path()) for path in hardware or ()],
            leave_out=leave_out,
            progress=progress,
        )
    accuracy.write(report, frame, rows, form, output)
