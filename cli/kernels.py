"""Commands about measured kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Debug, Form, Output, one_of, readable, save, write_answer

# Everything slow to import is imported by the command that needs it.

_KINDS = {
    "gemm": "Measured matrix products.",
    "attention-prefill": "Measured causal attention over new tokens.",
    "attention-decode": "Measured attention of one new token against its cache.",
    "moe": "Measured fused expert networks.",
}

Data = Annotated[list[Path], typer.Argument(metavar="DATA...", help="CSV files of measured kernels, plain or .gz.")]
Hardware = Annotated[
    list[Path] | None,
    typer.Option("--hardware", metavar="FILE", help="An accelerator, node or cluster that the rows name; repeatable."),
]


def _told(faults: Any) -> None:
    """Tell what is wrong with rows that are left out, beside the answer."""
    for fault in faults:
        typer.echo(str(fault), err=True)


def _validation(kind: str) -> Callable[..., None]:
    def validate_kernels(
        data: Data,
        by: Annotated[
            list[str] | None,
            typer.Option("--by", metavar="COLUMN", help="Figures for each value of it; several are crossed."),
        ] = None,
        where: Annotated[
            list[str] | None,
            typer.Option("--where", metavar="EXPR", help='Keep rows, such as "roofline_us>20", cold=1; repeatable.'),
        ] = None,
        leave_out: Annotated[
            str | None,
            typer.Option("--leave-out", metavar="COLUMN", help="Refit without each value of it in turn."),
        ] = None,
        hardware: Hardware = None,
        rows: Annotated[
            Path | None, typer.Option("--rows", metavar="FILE", help="Write every row with its prediction.")
        ] = None,
        form: Form = None,
        output: Output = None,
        debug: Debug = False,
    ) -> None:
        from cli import accuracy
        from cli.progress import working

        readable([*data, *(hardware or ())])
        with working("predicting") as progress:
            from perfmodel.measured_kernels import accelerator_file
            from perfmodel.validate_kernels import validate

            report, frame, faults = validate(
                kind,
                data,
                by=by or (),
                where=where or (),
                hardware=[accelerator_file(path) for path in hardware or ()],
                leave_out=leave_out,
                progress=progress,
            )
        _told(faults)
        accuracy.write(report, frame, rows, form, output)

    return validate_kernels


def kernel_validations() -> list[tuple[str, Callable[..., None], str]]:
    """Return name, command and help of the validation of every class of kernels."""
    return [(kind, _validation(kind), f"{what.removesuffix('.')}: times.") for kind, what in _KINDS.items()]


def calibrate(
    data: Data,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Whose rows to use; that of rows that name none.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="Default: as the columns tell; or collective, serving, power."),
    ] = None,
    accelerator: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the accelerator's description with the result."),
    ] = None,
    hardware: Hardware = None,
    most_rows: Annotated[
        int | None,
        typer.Option(
            "--rows", min=10, metavar="N", help="Rows of each variant to fit on; the others tell the quality."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FAMILY", help="Start from another family's parameters, as an unmeasured device would."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw predicted against measured: .svg, .png, .pdf.")
    ] = None,
    form: Form = None,
    debug: Debug = False,
) -> None:
    """Fit an accelerator's own kernel parameters to measured times, or its power; ten rows of a kind do."""
    from cli import accuracy
    from cli.progress import working

    readable([*data, *(hardware or ())])
    if kind == "collective":
        from cli.collective import calibrate_links

        calibrate_links(data, hardware or [], accelerator, form)
        return
    if kind == "serving":
        from cli.serving import calibrate_engine

        calibrate_engine(data, accelerator, form)
        return
    if kind == "power":
        from cli.power import calibrate_board

        calibrate_board(data, device, hardware or [], accelerator, form)
        return
    if plot is not None:
        from cli.kernel_plot import check

        check(plot)
    with working("fitting") as progress:
        from perfmodel.calibrate_kernels import KINDS
        from perfmodel.calibrate_kernels import calibrate as fitted
        from perfmodel.calibrated_accelerator import description, written_description
        from perfmodel.measured_kernels import accelerator_file

        found = fitted(
            data,
            kind=None if kind is None else one_of("--kind", kind, KINDS),
            device=device,
            hardware=[accelerator_file(path) for path in hardware or ()],
            most_rows=most_rows,
            family=family,
            progress=progress,
        )
    _told(found.faults)
    if accelerator is not None:
        from cli.export import to_yaml

        written = description(found, written_description(found.accelerator))
        save(_SCHEMA_COMMENT + to_yaml(written), accelerator, "--output")
    if plot is not None:
        from cli.kernel_plot import draw

        draw(found.rows, found.accelerator.name, plot)
    report = found.to_dict()
    write_answer(
        form,
        None,
        table=lambda: accuracy.calibration(report),
        data=lambda: report,
        csv=lambda: accuracy.calibration_csv(report),
    )


_SCHEMA_COMMENT = "# an accelerator with parameters of its own: perfmodel calibrate\n"


def bench(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="CSV for calibrate; default: the terminal.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Time a few kernels on this machine, for calibrate; needs PyTorch and a CUDA device, under three minutes."""
    from cli.export import to_csv
    from cli.progress import working
    from perfmodel.bench import COLUMNS, cases, measure, table
    from perfmodel.bench_cuda import CudaMachine, torch_with_cuda

    machine = CudaMachine(torch_with_cuda())
    with working("timing") as progress:
        chosen = cases(machine.memory_bytes)
        rows, left_out = measure(machine.name, chosen, machine.prepare, machine.timed, progress=progress)
    for reason in left_out:
        typer.echo(f"not timed: {reason}", err=True)
    text = to_csv(COLUMNS, table(rows))
    if output is None:
        typer.echo(text, nl=False)
    else:
        save(text, output, "--output")
