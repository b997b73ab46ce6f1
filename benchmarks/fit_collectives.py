"""Fit the collective form of ``perfmodel.collectives`` on measured collectives of one A100 and one H100 box.

    python benchmarks/fit_collectives.py          # reads PERFMODEL_DATA, default ../shared/data

Prints the latency floor of each host, the step, bandwidth, loss in small groups, softness and the factors of
``perfmodel/calibrated/collectives.yaml``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels"
LINK = {"a100_sxm": 300e9, "h100_sxm": 450e9}
NAMES = (
    "launch A100 us",
    "launch H100 us",
    "step us",
    "bandwidth",
    "small_group_loss",
    "softness",
    "NVLS",
    "all_to_all",
)
START = np.array([8.0, 5.0, 0.5, 0.8, 0.4, 0.7, 1.3, 0.9])


def main() -> None:
    """Fit and print."""
    rows = pd.read_csv(DATA / "nccl.csv.gz").query("dtype == 'half'")
    n, size, measured = rows.num_gpus.to_numpy(float), rows.size_bytes.to_numpy(float), rows.us.to_numpy() * 1e-6
    reduce, exchange = (rows.op == "all_reduce").to_numpy(), (rows.op == "alltoall").to_numpy()
    hopper = (rows.device == "h100_sxm").to_numpy()
    link = rows.device.map(LINK).to_numpy()
    share = np.where(reduce, 2.0, 1.0) * (n - 1) / n
    hops = np.select([reduce, exchange], [2 * (n - 1), 1.0], n - 1)

    def predicted(x: np.ndarray) -> np.ndarray:
        latency = np.where(hopper, x[1], x[0]) * 1e-6 + x[2] * 1e-6 * hops
        factor = np.where(reduce & hopper & (n >= 8), x[6], 1.0) * np.where(exchange, x[7], 1.0)
        transfer = share * size / (link * x[3] * (1 - x[4] / n) * factor)
        return (latency ** x[5] + transfer ** x[5]) ** (1 / x[5])

    def loss(x: np.ndarray) -> float:
        if (x <= 0).any() or not 0.2 < x[5] <= 3:
            return 9.0
        return float(np.mean(np.abs(np.log(predicted(x) / measured))))

    best = START
    for _ in range(2):
        best = minimize(loss, best, method="Nelder-Mead", options={"maxiter": 8000, "maxfev": 8000, "fatol": 1e-7}).x
    error = np.log(predicted(best) / measured)
    for name, value in zip(NAMES, best, strict=True):
        print(f"{name:18} {value:.3f}")
    print(f"rows {len(rows)}  mean |ln| {np.abs(error).mean():.3f}  spread {error.std():.3f}")


if __name__ == "__main__":
    main()
