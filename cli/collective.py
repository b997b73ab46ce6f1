"""Measured collectives: validation, and calibration of links."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Debug, Form, Format, Output, readable, save, write_answer

if TYPE_CHECKING:
    from rich.console import RenderableType

# Everything slow to import is imported by the command that needs it.


def latencies(given: list[str]) -> dict[str, float]:
    """Read options of the form HOST=TIME; every fault at once."""
    from hardware.faults import Fault, InputError
    from hardware.units import parse_quantity

    found: dict[str, float] = {}
    faults = []
    for text in given:
        host, sign, value = text.rpartition("=")
        if not sign or not host.strip():
            faults.append(Fault("--latency", 0, 0, text, "expected HOST=TIME, such as dgx-h100=15.6us"))
            continue
        try:
            seconds = parse_quantity(value.strip(), "s")
        except ValueError as error:
            faults.append(Fault("--latency", 0, 0, host, str(error)))
            continue
        if not 0 < seconds < 1:
            message = f"should be between 0 and 1 s, with a unit such as 15.6us [got {value.strip()!r}]"
            faults.append(Fault("--latency", 0, 0, host, message))
        found[host.strip()] = seconds
    if faults:
        raise InputError(faults)
    return found


def validate_collective(
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA...", help="CSV files of measured collectives, plain or .gz.")
    ],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Figures for each value of it; several are crossed."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="EXPR", help='Keep rows, such as "size_bytes>=1048576"; repeatable.'),
    ] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option(
            "--latency",
            metavar="HOST=TIME",
            help="An empty all-reduce over all of a host's accelerators, or all ranks on several nodes; HOST is a"
            " source_id, system, machine, device or gpu; repeatable.",
        ),
    ] = None,
    latency_from_first: Annotated[
        bool,
        typer.Option("--latency-from-first", help="Take the latency of other hosts from their smallest collective."),
    ] = False,
    leave_out: Annotated[
        str | None,
        typer.Option("--leave-out", metavar="COLUMN", help="Refit without each value of it in turn."),
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
    """Measured collectives, also of experts' tokens: times."""
    from cli import accuracy
    from cli.progress import working
    from hardware.catalogue import resolve_cluster

    readable([*data, *(hardware or ())])
    given = latencies(latency or [])
    with working("predicting") as progress:
        from perfmodel.validate_collective import validate

        report, frame, faults = validate(
            data,
            by=by or (),
            where=where or (),
            hardware=[resolve_cluster(str(path.resolve()), Path()) for path in hardware or ()],
            latency=given,
            latency_from_first=latency_from_first,
            leave_out=leave_out,
            progress=progress,
        )
    for fault in faults:
        typer.echo(str(fault), err=True)
    accuracy.write(report, frame, rows, form, output)


def calibrate_links(data: list[Path], hardware: list[Path], output: Path | None, form: Format | None) -> None:
    """Fit the constants of links to measured collectives, and write them as YAML to `output`."""
    from cli.export import to_csv, to_yaml
    from cli.progress import working
    from cli.tables import number, table
    from hardware.catalogue import resolve_cluster

    with working("fitting"):
        from perfmodel.validate_collective import calibrate

        machines = [resolve_cluster(str(path.resolve()), Path()) for path in hardware]
        found, quality, faults = calibrate(data, machines)
    for fault in faults:
        typer.echo(str(fault), err=True)
    constants = found.to_dict()
    if output is not None:
        save(to_yaml(constants), output, "--output")
    rows = [
        (part["link"], part["rows"], name, value, part["before"]["mape"], part["after"]["mape"])
        for part in quality
        for name, value in found.fitted[part["link"]].items()
    ]

    def shown() -> "RenderableType":
        from rich.console import Group

        heads = ("", "rows", "MAPE before", "after", "bias before", "after")
        lines = [
            (
                part["link"],
                f"{part['rows']:,}",
                *(f"{100 * part[time]['mape']:.1f} %" for time in ("before", "after")),
                *(f"{part[time]['bias']:.3f}" for time in ("before", "after")),
            )
            for part in quality
        ]
        values = [(link, name, number(value)) for link, _, name, value, *_ in rows]
        values.append(("", "launch_s", number(found.model.launch_s)))
        return Group(table("Quality", heads, lines), table("Constants", ("", "", "value"), values))

    columns = ("link", "rows", "constant", "value", "mape_before", "mape_after")
    write_answer(
        form,
        None,
        table=shown,
        data=lambda: {"kind": "collective", "quality": quality, **constants},
        csv=lambda: to_csv(columns, rows),
    )
