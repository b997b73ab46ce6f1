"""Command that answers many scenarios, one row each, and goes on where it was stopped."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Debug, Overrides, TimeLimit

if TYPE_CHECKING:
    from solvers.result import Result
    from solvers.sweep import Case, Sweep

# Everything slow to import is imported by the command that needs it.

FIRST = ("key", "case")
"""Columns that a file of rows begins with."""

SHOWN = 40
"""Rows of the table that is printed."""

HEAD = 10
"""Letters of a line of a column's name."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

Row = dict[str, str]


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep: a scenario and what varies in it.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="CSV of one row each; rows that it holds stay.")
    ],
    overrides: Overrides = None,
    time_limit: TimeLimit = None,
    gap: Annotated[
        float | None, typer.Option("--gap", min=0, metavar="FRACTION", help="Gap at which each search may stop.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Answer many scenarios, one row each; the same command again goes on where it was stopped."""
    from cli.load import with_overrides, with_values
    from cli.progress import working
    from hardware.catalogue import read_file
    from hardware.faults import Fault, InputError, collected
    from solvers.sweep import answer, key_of, load_sweep

    asked = load_sweep(read_file(file), file.parent)
    base = with_overrides(asked.base, overrides or (), asked.base_dir)
    known = {row["key"]: row for row in _read(output)}
    before = len(known)
    faults: list[Fault] = []
    rows: list[Row] = []
    command, count = asked.question.command, len(asked.cases)
    try:
        with working(f"{count} scenarios") as progress:
            for number, case in enumerate(asked.cases):
                with collected(faults):
                    scenario = with_values(base, case.values, case.origins, asked.base_dir)
                    key = key_of(command, scenario)
                    if key not in known:
                        found = answer(command, scenario, asked.base_dir, time_limit_s=time_limit, gap=gap)
                        known[key] = _row(key, case, found)
                        _add(output, known)
                    rows.append(known[key])
                progress((number + 1) / count)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {len(rows)} of {count} answered; the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show(asked, rows, output, len(known) - before)
    if faults:
        raise InputError(dict.fromkeys(faults))


def _row(key: str, case: "Case", result: "Result") -> Row:
    """Return an answer as texts by column."""
    from cli.export import flattened, scenario_cells, text_of

    cells: dict[str, Any] = {"key": key, "case": case.name, **dict(scenario_cells(case.values))}
    cells |= {
        "status": result.status,
        "objective": result.objective.value,
        "best_bound": result.best_bound,
        "gap": result.gap,
        "solve_time_s": result.solve_time_s,
        **dict(flattened(result.plan or {}, "plan_")),
        **dict(flattened(result.prediction or {})),
    }
    return {name: text_of(value) for name, value in cells.items()}


def _read(path: Path) -> Iterator[Row]:
    """Yield the rows that a file holds; a last line that was cut off is none."""
    from hardware.faults import Fault, InputError

    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    header = next(lines, None)
    if header is None:
        return
    if tuple(header[: len(FIRST)]) != FIRST:
        message = f"is there already, and no table of a sweep, which begins with the columns {', '.join(FIRST)}"
        raise InputError([Fault(f"--output {path}", 0, 0, "", message)])
    for line in lines:
        if len(line) == len(header):
            yield {name: cell for name, cell in zip(header, line, strict=True) if cell}


def _add(path: Path, rows: dict[str, Row]) -> None:
    """Write the last row to a file: at its end, or all afresh where it has columns that the file lacks."""
    from cli.export import quoted
    from hardware.faults import Fault, InputError

    def line(cells: Sequence[str]) -> str:
        return ",".join(map(quoted, cells)) + "\n"

    last = rows[next(reversed(rows))]
    header = _header(path)
    try:
        if header and set(last) <= set(header):
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line([last.get(name, "") for name in header]))
            return
        columns = list(dict.fromkeys([*header, *(name for row in rows.values() for name in row)]))
        columns.sort(key=_place)
        beside = path.with_name(f".{path.name}.part")
        whole = [line(columns), *(line([row.get(name, "") for name in columns]) for row in rows.values())]
        beside.write_text("".join(whole), encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        raise InputError([Fault(f"--output {path}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None


def _header(path: Path) -> list[str]:
    """Return the columns of a file that rows can be added to; none of one that is cut off."""
    if not path.exists() or not path.read_bytes().endswith(b"\n"):
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _place(column: str) -> int:
    """Return where a column stands: what varies, the answer, the plan, the prediction."""
    if column in FIRST:
        return FIRST.index(column)
    if column.startswith("scenario_"):
        return 2
    if column in ("status", "objective", "best_bound", "gap", "solve_time_s"):
        return 3
    return 4 if column.startswith("plan_") else 5


def _show(asked: "Sweep", rows: Sequence[Row], output: Path, added: int) -> None:
    """Print what varies, and what is asked to be shown."""
    from cli.export import scenario_cells
    from cli.tables import console, quantity, table, text

    def cell(name: str, value: str) -> object:
        try:
            return quantity(name, float(value))
        except ValueError:
            return text(value)

    heads: dict[str, str] = {"case": "case"} if asked.question.cases else {}
    for path, values in asked.question.vary.items():
        for value in values:
            heads |= {name: path.rpartition(".")[2] for name, _ in scenario_cells({path: value})}
    says = len({row["status"] for row in rows}) > 1 or not asked.question.show
    names = [*heads, *(["status"] if says else []), *(asked.question.show or ["objective"])]
    cells = [[cell(name, row.get(name, "")) for name in names] for row in rows[:SHOWN]]
    more = f", the first {SHOWN}" if len(rows) > SHOWN else ""
    title = f"{len(rows)} scenarios{more}; {added} new in {output}"
    console().print(table(title, [_folded(heads.get(name, name)) for name in names], cells))


def _folded(name: str) -> str:
    """Return the name of a column in lines of about ten letters."""
    lines = [""]
    for part in name.split("_"):
        if lines[-1] and len(lines[-1]) + len(part) > HEAD:
            lines.append("")
        lines[-1] += f"{part}_"
    return "\n".join(lines).removesuffix("_")
