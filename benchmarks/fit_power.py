"""Fit the power model, and the exponent with which the throughput of training follows the power limit.

Prints the constants of ``perfmodel/calibrated/power.yaml``, and what ``hardware/catalog/kernels/power.yaml`` holds: of
training runs under power caps that reach 85 % of the limit, the exponent by GPU and cap.

    python benchmarks/fit_power.py            # reads PERFMODEL_DATA, default ../shared/data
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from perfmodel.power.power_fit import fit, written
from perfmodel.validate_power import read_files

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


def constants() -> None:
    """Print the constants of the power model, fitted from the shipped ones."""
    files = ("llm_serving_power", "a100_phase_power", "gpu_power_cap_training")
    frame = read_files([DATA / "kv_power" / f"{name}.csv" for name in files])
    print(yaml.safe_dump(written(fit(frame)), sort_keys=False, default_flow_style=None, width=120))


if __name__ == "__main__":
    constants()
    power_exponents()
