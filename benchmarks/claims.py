"""Claims of papers and the lines that set predictions beside them; the ``papers_*.py`` scripts print their tables.

Claims are read from ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLAIMS = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "papers" / "claims.csv"
COLUMNS = ("claim_id", "claim", "prediction", "verdict", "inputs assumed")


@dataclass(frozen=True)
class Answer:
    """A prediction in the claim's unit, its interval, and what was assumed."""

    value: float
    low: float
    high: float
    inputs: str


def swept(values: Iterable[float], inputs: str) -> Answer:
    """Return the median and the ends of a sweep."""
    found = list(values)
    return Answer(float(np.median(found)), min(found), max(found), inputs)


def read() -> list[dict[str, str]]:
    """Return all claims; none, and a line that says so, where the file is absent."""
    if not CLAIMS.is_file():
        print(f"skipped: no {CLAIMS}; set PERFMODEL_DATA")
        return []
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(value: float) -> str:
    return f"{value:.2e}" if value >= 1e6 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def listed(values: Iterable[object]) -> str:
    """Join values by commas."""
    return ", ".join(map(str, values))


def verdict(claim: dict[str, str], found: Answer) -> str:
    """Judge: intervals overlap, or nearly: by 25 % for an "about", else by 10 %; "at least" has no upper end.

    The percentage is that of the median; of an "up to" that of the highest. A mean of unknown cases shows no more than
    which comes first.
    """
    ends = [float(claim[name]) for name in ("value_low", "value_high") if claim[name]]
    low, high = ends[0], np.inf if claim["stated_as"] == "at least" else ends[-1]
    nearest_found, nearest_claimed = min(max(low, found.low), found.high), min(max(found.low, low), high)
    if nearest_claimed == 0:  # no percentage of nothing
        return "inside" if nearest_found == 0 else "miss"
    off = abs(nearest_found / nearest_claimed - 1)
    error = f"{round(100 * (found.value / (low if found.value < low else ends[-1]) - 1)):+d} %"
    if claim["stated_as"] == "mean":
        return f"order only ({error})"
    if claim["stated_as"] == "up to":
        error = f"highest {100 * (found.high / high - 1):+.0f} %"
    tolerance = 25 if claim["stated_as"] == "about" else 10
    if off == 0:
        return f"inside ({error})"
    return f"touches within {tolerance} % ({error})" if off <= tolerance / 100 else f"miss ({error})"


def line(claim: dict[str, str], found: Answer | None, missing: str = "", beside: str = "") -> dict[str, Any]:
    """Return the line of a claim, with its ``answer``; without one it names what is missing."""
    span = "-".join(dict.fromkeys(filter(None, (claim["value_low"], claim["value_high"]))))
    if found is None:
        cells = ("", f"not predicted; missing: {missing or 'a method for this claim'}", beside)
    else:
        ends = f" [{number(found.low)}, {number(found.high)}]" if found.low < found.high else ""
        cells = (number(found.value) + ends, verdict(claim, found), found.inputs)
    stated = f"{span} {claim['unit']} ({claim['stated_as']})".replace(" 1e9", "e9")
    return dict(zip(COLUMNS, (claim["claim_id"], stated, *cells), strict=True)) | {"answer": found}


def show(lines: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Print lines as a Markdown table."""
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for one in lines:
        print("| " + " | ".join(one[column] for column in columns) + " |", flush=True)
