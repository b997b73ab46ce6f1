"""Tables for people: plain, left-aligned names, right-aligned numbers, eighty columns."""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hardware.units import format_quantity

WIDTH = 80
"""Columns that every table fits."""

_FRACTIONS = ("mfu", "hfu", "share", "gap")
"""Fields shown in per cent."""


def console(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Open the output for tables.

    Parameters
    ----------
    file : file, optional
        Where to write; standard output by default.
    width : int, optional
        Columns; by default those of the terminal, `WIDTH` at least.

    Returns
    -------
    Console
        Takes every text as it stands: nothing in it is markup.
    """
    columns = width or max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    return Console(file=file or sys.stdout, width=columns, markup=False, highlight=False, emoji=False)


def text(value: object, style: str = "") -> Text:
    """Show a text from a file: what would steer the terminal is replaced.

    Parameters
    ----------
    value : object
        The text.
    style : str
        How to show it.

    Returns
    -------
    Text
        For a cell.
    """
    return Text(
        "".join(mark if mark.isprintable() or mark == "\n" else "\N{REPLACEMENT CHARACTER}" for mark in str(value)),
        style,
    )


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] | None = None,
) -> RenderableType:
    """Lay rows out.

    Parameters
    ----------
    title : str
        Heading, empty for none.
    columns : sequence of str
        Heads of the columns.
    rows : iterable of sequence
        Cells.
    numbers : sequence of int, optional
        Positions of the columns that are aligned right and never broken or cut; by default all but the first.

    Returns
    -------
    RenderableType
        Texts are folded where the width demands it.
    """
    right = range(1, len(columns)) if numbers is None else numbers
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(columns))
    for position, name in enumerate(columns):
        if position in right:
            grid.add_column(text(name), justify="right", no_wrap=True)
        else:
            grid.add_column(text(name), overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text | Padding) else text(cell) for cell in row))
    body = Padding(grid, (0, 0, 1, 2), expand=False)
    return Group(text(title, "bold underline"), body) if title else body


def number(value: object) -> str:
    """Write a number without a unit, with the digits a person reads.

    Parameters
    ----------
    value : object
        A number; anything else is written as `quantity` does.

    Returns
    -------
    str
        Five significant digits, thousands separated.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.5g}"
    return quantity("", value)


def quantity(name: str, value: object) -> str:
    """Write a value whose unit is in its name.

    Parameters
    ----------
    name : str
        Such as ``step_time_s`` or ``memory_bytes.weights``.
    value : object
        In that unit.

    Returns
    -------
    str
        Such as ``12.5 s``; ``-`` for nothing.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return compact(value)
    if isinstance(value, list | tuple):
        return ", ".join(quantity(name, item) for item in value) or "none"
    if not isinstance(value, int | float):
        return str(value)
    base = name.removesuffix("_p10").removesuffix("_p90").lower()
    if "bytes" in base and not base.endswith("_per_s"):
        return f"{value / 2**30:,.2f} GiB" if abs(value) >= 2**20 else f"{value:,.0f} B"
    if base.split("_")[-1].split(".")[-1] in _FRACTIONS:
        return f"{100 * value:.4g} %"
    for suffix, dimension in (("bytes_per_s", "bytes/s"), ("_w", "W"), ("_j", "J")):
        if base.endswith(suffix) and not base.endswith(f"_per{suffix}"):
            return format_quantity(value, dimension)
    if base.endswith("_s") and not base.endswith("_per_s"):
        return seconds(value)
    for suffix, unit in (("_usd_per_hour", "USD/h"), ("_usd", "USD"), ("_days", "days"), ("_gib", "GiB")):
        if base.endswith(suffix):
            return f"{number(value)} {unit}"
    return number(value)


def seconds(value: float) -> str:
    """Write a time.

    Parameters
    ----------
    value : float
        The time [s].

    Returns
    -------
    str
        With five significant digits, in seconds, ms, us or ns.
    """
    return f"{number(float(value))} s" if value >= 1e4 else format_quantity(value, "s", digits=5)


def with_unit(value: object, unit: str) -> str:
    """Write a number in a unit that stands beside it.

    Parameters
    ----------
    value : object
        A number, or nothing.
    unit : str
        Such as ``s``, ``bytes``, ``W``; empty for none.

    Returns
    -------
    str
        With a prefix where the unit takes one.
    """
    if unit in ("bytes", "s", "W", "J") and isinstance(value, int | float):
        return quantity(f"x_{unit.lower()}", value)
    return f"{number(value)} {unit}".rstrip() if value is not None else "-"


def compact(data: Mapping[str, Any], than: Mapping[str, Any] | None = None) -> str:
    """Write fields in one line.

    Parameters
    ----------
    data : mapping
        The fields.
    than : mapping, optional
        Leave out the fields that are the same here.

    Returns
    -------
    str
        Such as ``tp 8, pp 4``.
    """
    shown = {key: value for key, value in data.items() if than is None or than.get(key, ...) != value}
    return ", ".join(f"{key} {quantity(key, value)}" for key, value in shown.items()) or (
        "the same" if than else "none"
    )
