"""Fit the constants of a training step on measured runs, and the spreads of its errors with each source left out.

    python benchmarks/fit_training.py                  # fit on all sources, then each left out: spreads and coverage
    python benchmarks/fit_training.py --no-leave-out   # the fit alone

Reads PERFMODEL_DATA (default ../shared/data) and prints what ``perfmodel/calibrated/training.yaml`` and
``perfmodel/frameworks/*.yaml`` hold. Every source weighs alike, whatever its rows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from perfmodel.intervals import combined
from perfmodel.kernels.model import Z90
from perfmodel.training_fit import (
    PARAMETERS,
    batches,
    fit,
    fit_spreads,
    gain_spread,
    log_errors,
    part_shares,
)
from perfmodel.validate_training import read_files

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "training"


def summary(name: str, error: np.ndarray) -> str:
    """Return one line of figures."""
    return (
        f"{name:16} rows {len(error):5}  median APE {np.median(np.abs(np.expm1(error))):.3f}"
        f"  mean |ln| {np.abs(error).mean():.3f}  bias {np.exp(error.mean()):.3f}"
    )


def main() -> None:
    """Fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-leave-out", action="store_true")
    arguments = parser.parse_args()
    data = batches(read_files(sorted(DATA.glob("*.csv"))))
    began = time.perf_counter()
    best = fit(data)
    print(f"fit on all sources in {time.perf_counter() - began:.0f} s")
    for parameter, value in zip(PARAMETERS, best, strict=True):
        print(f"  {parameter.owner:20} {parameter.field:26} {value:.4g}")
    for source, error in log_errors(data, best).items():
        print(" ", summary(source, error))
    print(f"gain_spread: {gain_spread(data, best):.3f}", flush=True)
    if arguments.no_leave_out:
        return
    errors, parts = {}, {}
    for source in sorted({batch.source for batch in data}):
        rest = fit([batch for batch in data if batch.source != source])
        own = [batch for batch in data if batch.source == source]
        errors[source] = log_errors(own, rest)[source]
        parts[source] = part_shares(own, rest)
        print("  left out", summary(source, errors[source]), flush=True)
    spreads = fit_spreads(errors, parts)
    print("spreads:", {name: round(value, 3) for name, value in spreads.items()})
    for source, error in errors.items():
        deviation = combined(parts[source], spreads)
        inside = np.mean(np.abs(error) <= Z90 * deviation)
        print(f"  {source:16} coverage {inside:.2f}  mean P90/P10 {np.exp(2 * Z90 * deviation).mean():.2f}")


if __name__ == "__main__":
    main()
