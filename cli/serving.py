"""Commands about inference engines: predictions against measured operating points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Debug, Form, Output, readable


def validate_serving(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of operating points, plain or .gz.")],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Figures for each value of it; several are crossed."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="EXPR", help='Keep rows, such as "spec_decode=none".')
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            "--leave-out", metavar="COLUMN", help="Refit engines without each value of it in turn; minutes for each."
        ),
    ] = None,
    hardware: Annotated[
        list[Path] | None,
        typer.Option("--hardware", metavar="FILE", help="A node or cluster that the rows name; repeatable."),
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Write every measured value with its prediction.")
    ] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Measured serving: time to the first token and of every further one, throughput."""
    from cli import accuracy
    from cli.progress import working
    from hardware.catalogue import resolve_cluster

    readable(data)
    with working("predicting") as progress:
        from perfmodel.serving.validate_serving import read_files, validate

        report, frame = validate(
            data,
            by=by or (),
            where=where or (),
            hardware=[resolve_cluster(str(path.resolve()), Path()) for path in hardware or ()],
        )
        if leave_out is not None:
            from perfmodel.serving.serving_fit import left_out
            from perfmodel.validation import column, kept

            asked = kept(read_files(data), where or ())
            report["left_out"] = left_out(asked, column("--leave-out", asked, leave_out), progress)
    accuracy.write(report, frame, rows, form, output)
