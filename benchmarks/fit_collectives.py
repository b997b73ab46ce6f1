"""Fit the constants of links to measured collectives, and leave each box out in turn.

    python benchmarks/fit_collectives.py          # reads PERFMODEL_DATA, default ../shared/data

Prints what ``perfmodel/calibrated/collectives.yaml`` holds of NVSwitch, with the errors of the fit and of each GPU by
the other's constants. A host's latency is the time of its smallest all-reduce.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from perfmodel.calibrate_collectives import calibrate_links, errors
from perfmodel.collectives import collective_model
from perfmodel.measured_collectives import read_files
from perfmodel.validate_collective import latencies_of, measured_rows, place_rows
from perfmodel.validation import Defaults

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels" / "nccl.csv.gz"


def main() -> None:
    """Fit and print."""
    frame = read_files([DATA]).frame
    places = place_rows(frame, (), Defaults())
    latencies = latencies_of(frame, places, {}, from_first=True)
    rows = measured_rows(frame, places, latencies)
    devices = sorted({row.case.names[0] for row in rows})
    for left_out in ("", *devices):
        found = calibrate_links([row for row in rows if row.case.names[0] != left_out], collective_model())
        print(f"without {left_out}" if left_out else "all", f"  launch_s {found.model.launch_s * 1e6:.2f} us")
        for link, values in found.fitted.items():
            said = "  ".join(
                f"{name} {value * 1e6:.3f} us" if name == "step" else f"{name} {value:.4f}"
                for name, value in values.items()
            )
            print(f"  {link}, {found.rows[link]} rows: {said}")
        for device in devices:
            own = [row for row in rows if row.case.names[0] == device]
            ratio = np.concatenate(errors(own, found.model, lambda value: value))
            print(f"  {device}: MAPE {np.abs(ratio - 1).mean():.3f}  bias {np.exp(np.log(ratio).mean()):.3f}")


if __name__ == "__main__":
    main()
