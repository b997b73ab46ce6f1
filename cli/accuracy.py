"""Reports of predictions against measurements, for people and spreadsheets."""

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from rich.console import Group, RenderableType

from cli.export import to_csv
from cli.options import Format, save, write_answer
from cli.tables import number, table, text

_FIGURES = {
    "rows": "rows",
    "mape": "MAPE",
    "median_ape": "median",
    "p90_ape": "P90",
    "bias": "bias",
    "coverage_p10_p90": "in P10-P90",
    "interval_width": "width",
}
_FRACTIONS = ("mape", "median_ape", "p90_ape", "coverage_p10_p90")


def report(found: Mapping[str, Any]) -> RenderableType:
    """Show a report.

    Parameters
    ----------
    found : mapping
        The report, as JSON holds it.

    Returns
    -------
    RenderableType
        Tables that fit eighty columns.
    """
    measured, scored = found.get("measured", found["rows"]), found["scored"]
    part = f" ({scored / measured:.1%})" if measured else ""
    parts: list[RenderableType] = [text(f"{found['kind']}: {scored:,} of {measured:,} rows scored{part}\n", "bold")]
    rows = [(name, *(_shown(key, figures.get(key)) for key in _FIGURES)) for name, figures in _all(found)]
    parts.append(table("Predicted against measured", ("", *_FIGURES.values()), rows))
    if found.get("memory_mape") is not None:
        parts.append(text(f"Memory: MAPE {found['memory_mape']:.1%}\n"))
    skipped = [(entry["reason"], number(entry["rows"])) for entry in found["skipped"]]
    if skipped:
        parts.append(table("Skipped", ("", "rows"), skipped))
    implausible = [(entry["reason"], number(entry["rows"])) for entry in found.get("implausible", ()) if entry["rows"]]
    if implausible:
        parts.append(table("Implausible", ("", "rows"), implausible))
    defaults = [(entry["field"], entry["value"], number(entry["rows"])) for entry in found["defaults"]]
    if defaults:
        parts.append(table("Blank fields that took a default", ("", "value", "rows"), defaults, numbers=(2,)))
    return Group(*parts)


def _shown(key: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if key in _FRACTIONS else number(value) if key == "rows" else f"{value:.3f}"


def _all(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Walk through everything that has figures, the whole first."""
    yield "all", {**found, "rows": found["scored"]}
    metrics = found.get("metrics") or {}
    if len(metrics) > 1:
        yield from metrics.items()
    for part, prefix in (("groups", ""), ("left_out", "left out, ")):
        for name, figures in (found.get(part) or {}).items():
            yield prefix + name, figures


def report_csv(found: Mapping[str, Any]) -> str:
    """Write a report as CSV.

    Parameters
    ----------
    found : mapping
        The report, as JSON holds it.

    Returns
    -------
    str
        One row for the whole and one for each group, measured column and value left out.
    """
    columns = (*list(_FIGURES)[:4], "mean_abs_log_error", *list(_FIGURES)[4:])
    return to_csv(
        ("group", *columns), [(name, *(figures.get(key) for key in columns)) for name, figures in _all(found)]
    )


def rows_csv(rows: Any) -> str:
    """Write rows with their predictions.

    Parameters
    ----------
    rows : pandas.DataFrame
        The rows.

    Returns
    -------
    str
        CSV in which no text is run by a spreadsheet.
    """
    values = rows.astype(object).where(rows.notna(), None)
    return to_csv([str(column) for column in rows.columns], values.itertuples(index=False, name=None))


def calibration(found: Mapping[str, Any]) -> RenderableType:
    """Show parameters that were fitted, and how well they do.

    Parameters
    ----------
    found : mapping
        The report, as JSON holds it.

    Returns
    -------
    RenderableType
        Tables that fit eighty columns.
    """
    parts: list[RenderableType] = [text(f"{found['device']}\n", "bold")]
    keys = ("mape", "mean_abs_log_error", "bias", "coverage_p10_p90")
    quality: list[tuple[str, ...]] = []
    for part in found["calibrated"]:
        of = f"{part['held_out']:,} held out" if part["held_out"] else "those fitted"
        quality.append((f"{part['kind']} {part['variant']}", f"{part['rows']:,}", "", "", "", "", ""))
        shown_of = {"unmeasured": "if unmeasured", "before": part["origin"], "after": "fitted"}
        for name, shown in ((name, shown) for name, shown in shown_of.items() if part[name]):
            quality.append((f"  {shown}", "", of, *(_shown(key, part[name].get(key)) for key in keys)))
    heads = ("", "rows", "figures of", "MAPE", "mean |ln|", "bias", "in P10-P90")
    parts.append(table("Quality before and after", heads, quality))
    for part in found["calibrated"]:
        rows = [(name, number(part["family"][name]), number(value)) for name, value in part["parameters"].items()]
        parts.append(table(f"Parameters of {part['kind']} {part['variant']}", ("", "before", "after"), rows))
    skipped = [(entry["reason"], number(entry["rows"])) for entry in found["skipped"]]
    if skipped:
        parts.append(table("Not used", ("", "rows"), skipped))
    return Group(*parts)


def calibration_csv(found: Mapping[str, Any]) -> str:
    """Write fitted parameters as CSV.

    Parameters
    ----------
    found : mapping
        The report, as JSON holds it.

    Returns
    -------
    str
        One row for each parameter, with the figures of its variant.
    """
    head = ("kind", "variant", "rows", "held_out", "mape_before", "mape_after", "parameter", "before", "after")
    rows = [
        (
            *(part[key] for key in ("kind", "variant", "rows", "held_out")),
            part["before"]["mape"],
            part["after"]["mape"],
            name,
            part["family"][name],
            value,
        )
        for part in found["calibrated"]
        for name, value in part["parameters"].items()
    ]
    return to_csv(head, rows)


def write(
    found: Mapping[str, Any], frame: Any, rows: FilePath | None, form: Format | None, output: FilePath | None
) -> None:
    """Write a report as it was asked for, and every row with its prediction to `rows`, where that is given."""
    if rows is not None:
        save(rows_csv(frame), rows, "--rows")
    write_answer(form, output, table=lambda: report(found), data=lambda: found, csv=lambda: report_csv(found))
