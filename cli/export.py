"""Answers as JSON, YAML and CSV: stable forms for scripts and spreadsheets.

CSV follows RFC 4180 with line feeds: one row per plan, the best first. Cells of text that a spreadsheet would run as
a formula get a leading apostrophe; numbers are never touched.
"""

import contextlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardware.units import parse_quantity
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.result import Result, plain

Cell = str | int | float | bool | None

SUFFIXES = {
    "bytes": "bytes",
    "bytes/s": "bytes_per_s",
    "flop/s": "flop_per_s",
    "s": "s",
    "W": "w",
    "Hz": "hz",
    "J": "j",
    "USD/h": "usd_per_hour",
    "USD/kWh": "usd_per_kwh",
}
"""Dimension -> ending of the header of a column in its SI unit."""

_DIMENSIONS = {
    "capacity": "bytes",
    "l2": "bytes",
    "bandwidth": "bytes/s",
    "read": "bytes/s",
    "write": "bytes/s",
    "link": "bytes/s",
    "overrides": "bytes/s",
    "pairs": "bytes/s",
    "window": "bytes",
    "peak": "flop/s",
    "latency": "s",
    "launch": "s",
    "switch_latency": "s",
    "clock": "Hz",
    "limit": "W",
    "idle": "W",
    "host": "W",
    "price": "USD/h",
    "power": "W",
    "attention": "flop/s",
    "energy_price": "USD/kWh",
    "rating": "W",
    "cooling": "W",
    "ride_through": "s",
    "inverse_time": "s",
}
"""Keys of hardware descriptions whose numbers have a dimension, or those of whose parts."""

_HARDWARE = ("cluster", "node", "accelerator", "accelerators", "facility")
"""Parts of a scenario that describe hardware."""


def to_json(data: Any) -> str:
    """Write JSON.

    Parameters
    ----------
    data
        Plain values; a number that is not finite becomes null.

    Returns
    -------
    str
        Keys in their own order, floats to the last digit, two spaces of indentation.
    """
    return json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_yaml(data: Any) -> str:
    """Write YAML.

    Parameters
    ----------
    data
        Plain values; a number that is not finite becomes null.

    Returns
    -------
    str
        Keys in their own order; readers of YAML 1.1 and 1.2 see the same values.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes every text that one of the two versions takes for something else."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        word = re.fullmatch(r"[A-Za-z][\w ./()%-]*", value) and len(value) > 1
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, None if word else '"')

    Dumper.add_representer(str, text)
    Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign]
    return yaml.dump(plain(data), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Write CSV.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : iterable of sequence
        Cells of each row.

    Returns
    -------
    str
        RFC 4180 with line feeds; nothing and numbers that are not finite are empty cells.
    """
    lines = [",".join(quoted(text_of(value)) for value in row) for row in (header, *rows)]
    return "\n".join(lines) + "\n"


def text_of(value: Cell) -> str:
    """Return the text of a cell; nothing and numbers that are not finite are empty."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    return "'" + value if value and (value[0] in "=+-@" or unicodedata.category(value[0]) == "Cc") else value


def quoted(text: str) -> str:
    """Return the text of a cell in quotation marks, where it needs them."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]|^\s|\s$', text) else text


def result_csv(result: Result, given: Mapping[str, Any] | None = None) -> str:
    """Write an answer as CSV, one row per plan.

    Parameters
    ----------
    result : Result
        The answer; its plan is the first row, the alternatives follow. A row's status, bound and gap are those of
        its own plan: an alternative is optimal only if the bound proves it to be as good as the best.
    given : mapping, optional
        The scenario as it was set, in its file and with options; by default all of the resolved one.

    Returns
    -------
    str
        Columns ``rank, status, objective, best_bound, gap``, then ``plan_*``, the prediction's fields, and
        ``scenario_*``; names of nested fields joined by ``_``, quantities of the scenario in SI units. An answer
        without a plan is one row too.
    """
    set_values = dict(scenario_cells(plain(given if given is not None else result.scenario)))
    name, bound = result.objective.name, result.best_bound
    rows: list[dict[str, Cell]] = [
        {
            "rank": 1,
            "status": result.status,
            "objective": result.objective.value,
            "best_bound": bound,
            "gap": result.gap,
        }
    ]
    plans: list[dict[str, Cell]] = [dict(flattened(result.plan or {}, "plan_"))]
    predictions: list[dict[str, Cell]] = [dict(flattened(result.prediction or {}))]
    for rank, other in enumerate(result.alternatives, start=2):
        value = other["prediction"].get(name)
        gap = None if value is None or bound is None else relative_gap(value, bound)
        status = "optimal" if gap is not None and gap <= OPTIMAL_GAP else "feasible"
        rows.append({"rank": rank, "status": status, "objective": value, "best_bound": bound, "gap": gap})
        plans.append(dict(flattened(other["plan"], "plan_")))
        predictions.append(dict(flattened(other["prediction"])))
    parts = (rows, plans, predictions, [set_values] * len(rows))
    columns = [list(dict.fromkeys(key for row in part for key in row)) for part in parts]
    table = [
        [row[index].get(key) for row, keys in zip(parts, columns, strict=True) for key in keys]
        for index in range(len(rows))
    ]
    return to_csv([key for keys in columns for key in keys], table)


def flattened(data: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Cell]]:
    """Lay nested fields out in columns.

    Parameters
    ----------
    data : mapping
        Plain values.
    prefix : str
        What the names begin with.

    Yields
    ------
    tuple of str and cell
        Name and value of each column: names joined by ``_``; a list is one cell of JSON.
    """
    for path, value in _leaves(data):
        yield prefix + "_".join(path), value


def _leaves(data: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Cell]]:
    for key, value in data.items():
        path = (*above, str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        elif isinstance(value, list):
            yield path, json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        else:
            yield path, value


def dimension_of(path: Sequence[str], value: Any) -> str | None:
    """Tell the dimension of a number in a hardware description by its keys.

    Parameters
    ----------
    path : sequence of str
        Keys that lead to it.
    value : object
        The number, or a text that may be one.

    Returns
    -------
    str or None
        A dimension of `hardware.units`; None for counts, ratios and names.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return next((_DIMENSIONS[key] for key in reversed(path) if key in _DIMENSIONS), None)


def scenario_cells(given: Mapping[str, Any]) -> Iterable[tuple[str, Cell]]:
    """Lay a scenario out, its quantities as numbers in SI units under names that end in the unit.

    Parameters
    ----------
    given : mapping
        Plain values by keys, which may be dotted paths.

    Yields
    ------
    tuple of str and cell
        Name and value of each column.
    """
    for keys, value in _leaves(given):
        path = tuple(part for key in keys for part in re.split(r"[.\[\]]+", key) if part)
        name = "_".join(("scenario", *path))
        dimension = dimension_of(path, value) if path[0] in _HARDWARE else None
        spaced = isinstance(value, str) and re.match(r"\s*[0-9.]+(?:[eE][-+]?[0-9]+)?\s+\S", value)
        if spaced or (dimension and isinstance(value, str)):
            for candidate in [dimension] if dimension else SUFFIXES:
                with contextlib.suppress(ValueError):
                    value, dimension = parse_quantity(value, candidate), candidate
                    break
        if dimension and isinstance(value, int | float) and not isinstance(value, bool):
            name = name.removesuffix(f"_{SUFFIXES[dimension]}") + f"_{SUFFIXES[dimension]}"
        yield name, value


def write(text: str, path: Path) -> None:
    """Write a file, with line feeds on every system.

    Parameters
    ----------
    text : str
        Its content.
    path : Path
        Its place.
    """
    path.write_text(text, encoding="utf-8", newline="\n")
