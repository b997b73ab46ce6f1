"""Commands about inference engines: predictions against measured operating points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import By, Debug, Form, LeaveOut, Machines, Output, Rows, Where, readable, save, write_answer

if TYPE_CHECKING:
    from rich.console import RenderableType

FEWEST_ROWS = 3
"""Rows that a host's own factor takes."""


def validate_serving(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of operating points, plain or .gz.")],
    by: By = None,
    where: Where = None,
    leave_out: LeaveOut = None,
    hardware: Machines = None,
    rows: Rows = None,
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


def calibrate_engine(data: list[Path], output: Path | None, form: Form) -> None:
    """Scale the overheads of the engine that rows name to meet them; print errors before and after.

    Parameters
    ----------
    data : list of Path
        Files of operating points of one engine, three rows or more.
    output : Path
        Write the engine's description with the result.
    """
    from cli.export import to_csv, to_yaml
    from cli.tables import number, table
    from hardware.faults import Fault, InputError
    from perfmodel.serving.engine import engines
    from perfmodel.serving.serving_fit import OVERHEADS, fitting_rows, overhead_factor, quality, scaled_engine
    from perfmodel.serving.validate_serving import read_files

    rows = fitting_rows(read_files(data))
    named = sorted({name for name in rows["name"] if name})
    if len(named) != 1 or len(rows) < FEWEST_ROWS:
        message = (
            f"takes {FEWEST_ROWS} rows or more of one engine; those known are {', '.join(engines())} "
            f"[got {len(rows)} of {', '.join(named) or 'no engine known'}]"
        )
        raise InputError([Fault(str(data[0]), 0, 0, "engine", message)])
    engine = engines()[named[0]]
    factor = overhead_factor(rows, engine)
    scaled = scaled_engine(engine, factor)
    before, after = quality(rows, engine), quality(rows, scaled)
    if output is not None:
        save(to_yaml(scaled.model_dump(mode="json", exclude_none=True)), output, "--output")
    lines = [(metric, before[metric]["rows"], before[metric]["mape"], after[metric]["mape"]) for metric in before]

    def shown() -> RenderableType:
        from rich.console import Group

        errors = [(name, f"{count:,}", f"{100 * old:.1f} %", f"{100 * new:.1f} %") for name, count, old, new in lines]
        values = [(name, number(getattr(scaled, name))) for name in OVERHEADS]
        heads = ("", "rows", "MAPE before", "after")
        title = f"{engine.name}: overheads times {factor:.2f}"
        return Group(table(title, heads, errors), table("Overheads [s]", ("", "value"), values))

    write_answer(
        form,
        None,
        table=shown,
        data=lambda: {
            "kind": "serving",
            "engine": engine.name,
            "overhead_factor": factor,
            "before": before,
            "after": after,
            "constants": {name: getattr(scaled, name) for name in OVERHEADS},
        },
        csv=lambda: to_csv(("metric", "rows", "mape_before", "mape_after"), lines),
    )
