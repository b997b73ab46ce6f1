"""Errors of serving predictions by metric, engine and regime, and how deployments are ordered.

    python benchmarks/serving_accuracy.py

Reads the measured operating points below `PERFMODEL_DATA` (default `../shared/data`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perfmodel.serving.serving_fit import LONGEST_TTFT_MS
from perfmodel.serving.validate_serving import predict_rows, read_files, with_intervals
from perfmodel.validation import Defaults, statistics


def shown(lines: pd.DataFrame, by: Sequence[str]) -> None:
    """Print errors of every group."""
    for key, part in lines.groupby(list(by), dropna=False):
        found = statistics(part)
        inside, error = 100 * found["coverage_p10_p90"], 100 * found["mape"]
        print(f"{key}: {found['rows']} rows, MAPE {error:.1f} %, bias {found['bias']:.2f}, inside {inside:.0f} %")


def main() -> None:
    """Predict every row and print errors."""
    from scipy.stats import kendalltau

    warnings.simplefilter("ignore")
    folder = Path(os.environ.get("PERFMODEL_DATA", "../shared/data"))
    rows = read_files([folder / "serving" / "serving_points.csv.gz"])
    lines = with_intervals(predict_rows(rows[rows["spec_decode"] == "none"], Defaults()))
    lines = lines[lines["skipped"] == ""]
    late = (lines["metric"] == "ttft_ms_mean") & (lines["measured"] > LONGEST_TTFT_MS)
    lines = lines[~late]
    shown(lines, ["metric", "disaggregated"])
    shown(lines, ["metric", "engine", "disaggregated"])
    shown(lines[lines["metric"] == "output_tokens_per_s_total"], ["source", "regime"])
    whole = with_intervals(predict_rows(read_files([folder / "kernels" / "splitwise_e2e.csv.gz"]), Defaults()))
    shown(whole, ["metric"])
    old = lines[lines["source"] == "trtllm_docs_v0.14"]
    per_gpu = old.assign(ours=old["predicted"] / old["gpus"], theirs=old["measured"] / old["gpus"])
    groups = [part for _, part in per_gpu.groupby(["model", "isl", "osl"]) if len(part) > 2]
    within = np.average(
        [kendalltau(part["ours"], part["theirs"])[0] for part in groups], weights=[len(part) for part in groups]
    )
    print(
        f"Kendall's tau: {within:.3f} within a model and lengths, "
        f"{kendalltau(per_gpu['ours'], per_gpu['theirs'])[0]:.3f} over all"
    )


if __name__ == "__main__":
    main()
