"""Commands about power: predictions against measured watts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import By, Debug, Form, LeaveOut, Machines, Output, Rows, Where, readable


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
