"""Fit what inference engines add to their kernels on measured operating points, one set of constants an engine.

    python benchmarks/fit_serving.py [ENGINE ...] [--rows 170] [--leave-out gpu]

Prints the constants and the errors with them; `perfmodel/engines/*.yaml` hold what it printed. The rest of the rows,
and with `--leave-out` all rows of one value of a column, take no part in the fit.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import warnings
from pathlib import Path

import pandas as pd

from perfmodel.serving.engine import Engine, engines
from perfmodel.serving.serving_fit import CONSTANTS, ROWS, fitting_rows, whole_fit
from perfmodel.serving.validate_serving import predict_rows, read_files
from perfmodel.validation import Defaults


def shown(rows: pd.DataFrame, engine: Engine, by: list[str]) -> None:
    """Print errors by metric and group."""
    lines = predict_rows(rows, Defaults(), engines() | {engine.name: engine})
    lines = lines[lines["skipped"] == ""].assign(ratio=lambda found: found["predicted"] / found["measured"])
    for key, part in lines.groupby(["metric", *by], dropna=False):
        error = 100 * (part["ratio"] - 1).abs().mean()
        print(f"    {key}: {len(part)} rows, MAPE {error:.1f} %, median ratio {part['ratio'].median():.2f}", flush=True)


def main() -> None:
    """Fit, and print constants and errors."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    measured = [name for name, engine in engines().items() if engine.measured_families]
    parser.add_argument("engines", nargs="*", default=measured)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--leave-out")
    asked = parser.parse_args()
    folder = Path(os.environ.get("PERFMODEL_DATA", "../shared/data"))
    rows = fitting_rows(read_files([folder / "serving" / "serving_points.csv.gz"]))
    for name in asked.engines:
        mine, engine = rows[rows["name"] == name], engines()[name]
        for value in mine[asked.leave_out].unique() if asked.leave_out else [None]:
            out = mine if value is None else mine[mine[asked.leave_out] == value]
            rest = mine if value is None else mine[mine[asked.leave_out] != value]
            if rest.empty:
                continue
            found = whole_fit(rest, engine, asked.rows)
            print(name, value or "", {c.name: float(f"{getattr(found, c.name):.3g}") for c in CONSTANTS}, flush=True)
            shown(out, found, ["source", "disaggregated"])
            shown(out, found, ["model", "gpu", "precision_weights", "disaggregated"])


if __name__ == "__main__":
    main()
