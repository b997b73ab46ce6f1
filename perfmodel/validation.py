"""Predictions against measurements: statistics, groups, filters. Kind by kind, rows are predicted elsewhere.

A frame of scored rows carries the columns of its files and ``measured``, ``predicted``, ``p10``, ``p90`` [one unit],
with ``skipped`` the reason why a row was not predicted, or an empty text.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hardware.faults import Fault, InputError

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass
class Defaults:
    """Counts of the values that blank fields were given."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, name: str, value: Any) -> None:
        """Count one row that was given `value` for the blank field `name`."""
        self.counts[name, str(value)] += 1

    def to_list(self) -> list[dict[str, Any]]:
        """Return the counts as the report writes them."""
        return [{"field": name, "value": value, "rows": rows} for (name, value), rows in sorted(self.counts.items())]


def statistics(frame: pd.DataFrame) -> dict[str, float | int]:
    """Return the error statistics of scored rows.

    Parameters
    ----------
    frame : DataFrame
        Rows with ``measured``, ``predicted``, ``p10`` and ``p90``, all positive.

    Returns
    -------
    dict
        ``rows``; ``mape``, ``median_ape``, ``p90_ape`` of |predicted/measured - 1|; ``mean_abs_log_error``; ``bias``,
        the geometric mean of predicted/measured; ``coverage_p10_p90``, the share inside the interval;
        ``interval_width``, the mean of p90/p10.
    """
    if frame.empty:
        return {"rows": 0}
    ratio = (frame["predicted"] / frame["measured"]).to_numpy(dtype=float)
    error = np.abs(ratio - 1)
    log = np.log(ratio)
    inside = (frame["measured"] >= frame["p10"]) & (frame["measured"] <= frame["p90"])
    return {
        "rows": len(frame),
        "mape": float(error.mean()),
        "median_ape": float(np.median(error)),
        "p90_ape": float(np.percentile(error, 90)),
        "mean_abs_log_error": float(np.abs(log).mean()),
        "bias": float(np.exp(log.mean())),
        "coverage_p10_p90": float(inside.mean()),
        "interval_width": float((frame["p90"] / frame["p10"]).mean()),
    }


def kept(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Return the rows that satisfy every condition of the form ``column OP value``.

    Raises
    ------
    InputError
        For a condition that cannot be read or names no column.
    """
    faults = []
    for condition in conditions:
        match = re.fullmatch(r"\s*(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
        if match is None:
            faults.append(Fault("--where", 0, 0, condition, "expected `column OP value` with OP one of = != < <= > >="))
            continue
        name, sign, text = match.groups()
        if name not in frame.columns:
            faults.append(
                Fault("--where", 0, 0, name, f"no such column; there are: {', '.join(map(str, frame.columns))}")
            )
            continue
        frame = frame[_matches(frame[name], sign, text)]
    if faults:
        raise InputError(faults)
    return frame


def column(option: str, frame: pd.DataFrame, name: str) -> str:
    """Return the name of a column that an option names.

    Raises
    ------
    InputError
        Where there is none of that name.
    """
    if name not in frame.columns:
        message = f"no such column; there are: {', '.join(map(str, frame.columns))}"
        raise InputError([Fault(option, 0, 0, name, message)])
    return name


def _matches(column: Any, sign: str, text: str) -> Any:
    if column.dtype == bool:
        truth = {"true": 1, "yes": 1, "1": 1, "false": 0, "no": 0, "0": 0}.get(text.lower())
        return _COMPARISONS[sign](column.astype(int), truth if truth is not None else -1)
    numbers = pd.to_numeric(column, errors="coerce")
    try:
        result = _COMPARISONS[sign](numbers, float(text)) & numbers.notna()
    except ValueError:
        result = _COMPARISONS[sign](column.astype(str), text)
    return result.astype(bool)


def grouped(frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Return the statistics of every combination of values of `columns`, keyed ``a=1,b=2``."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(
            [
                Fault("--by", 0, 0, name, f"no such column; there are: {', '.join(map(str, frame.columns))}")
                for name in missing
            ]
        )
    result = {}
    for values, rows in frame.groupby(list(columns), dropna=False, sort=True):
        names = [f"{column}={'' if value != value else value}" for column, value in zip(columns, values, strict=True)]
        result[",".join(names)] = statistics(rows)
    return result


def report(kind: str, frame: pd.DataFrame, defaults: Defaults, by: Sequence[str] = ()) -> dict[str, Any]:
    """Return the report: counts, reasons, statistics of all scored rows and of the groups."""
    reasons = Counter(reason for reason in frame["skipped"] if reason)
    scored = frame[frame["skipped"] == ""]
    figures = statistics(scored)
    figures.pop("rows")
    groups: dict[str, Any] = {}
    if scored["file"].nunique() > 1:
        groups |= grouped(scored, ["file"])
    if by and len(scored):
        groups |= grouped(scored, by)
    return {
        "kind": kind,
        "rows": len(frame),
        "scored": len(scored),
        "skipped": [{"reason": reason, "rows": rows} for reason, rows in reasons.most_common()],
        "defaults": defaults.to_list(),
        **figures,
        "groups": groups,
    }
