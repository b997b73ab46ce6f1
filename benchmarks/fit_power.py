"""Fit the exponent with which the throughput of training follows the power limit.

Prints what ``hardware/catalog/kernels/power.yaml`` holds: of training runs under power caps that reach 85 % of the
limit, the exponent by GPU and cap.

    python benchmarks/fit_power.py            # reads PERFMODEL_DATA, default ../shared/data
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data"))


def power_exponents() -> None:
    """Print, for training runs that reach 85 % of the limit, the exponent of throughput in the power limit."""
    rows = pd.read_csv(DATA / "kv_power" / "gpu_power_cap_training.csv")
    for gpu, runs in rows.groupby("gpu"):
        ratios: dict[float, list[float]] = {}
        for _, run in runs.groupby(["dataset", "network", "batch"]):
            ordered = run.sort_values("power_limit_w")
            largest = ordered.power_limit_w.max()
            if ordered.avg_power_w.iloc[-1] < 0.85 * largest:
                continue
            for limit, seconds in zip(ordered.power_limit_w, ordered.epoch_time_s, strict=True):
                if limit < largest:
                    ratios.setdefault(limit / largest, []).append(ordered.epoch_time_s.iloc[-1] / seconds)
        for share, speeds in sorted(ratios.items()):
            exponent = np.log(np.median(speeds)) / np.log(share)
            print(f"{gpu:8} power {share:.2f}  throughput {np.median(speeds):.3f}  exponent {exponent:.2f}")


if __name__ == "__main__":
    power_exponents()
