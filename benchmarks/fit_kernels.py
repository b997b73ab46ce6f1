"""Fit the kernel models, per device and variant, on measured kernels, and on the other device alone.

Prints what ``hardware/catalog/kernels/<model>.yaml`` holds, and the figures over all rows: of the fit, and of the
device when the other device's parameters are used with its own data sheet.

    python benchmarks/fit_kernels.py [gemm|attention-prefill|attention-decode|moe]...     # all by default
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from perfmodel.intervals import Z90
from perfmodel.kernels.model import KernelModel, Sample, device_of, fit
from perfmodel.measured_kernels import add_roofline, columns_of, model_of, parts_of, read_files, resolve_devices
from perfmodel.validate_kernels import sample_of, shipped
from perfmodel.validation import statistics

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels"
KINDS = ("gemm", "attention-prefill", "attention-decode", "moe")


def figures(model: KernelModel, sample: Sample, parameters: object) -> str:
    """The figures of a device's rows under some parameters."""
    measured = np.asarray(sample.seconds)
    predicted = np.asarray(model.time(sample.shapes, sample.device, parameters)[0], float)
    width = np.exp(Z90 * parameters.spread)  # type: ignore[attr-defined]
    frame = pd.DataFrame(
        {"measured": measured, "predicted": predicted, "p10": predicted / width, "p90": predicted * width}
    )
    found = statistics(frame)
    return (
        f"rows {found['rows']:6,}  MAPE {found['mape']:6.1%}  median {found['median_ape']:6.1%}"
        f"  P90 {found['p90_ape']:6.1%}  |ln| {found['mean_abs_log_error']:.3f}  bias {found['bias']:.3f}"
        f"  in P10-P90 {found['coverage_p10_p90']:.1%}"
    )


def main(kind: str) -> None:
    """Fit one kind."""
    model = model_of(kind)
    rows = read_files([DATA / f"{kind.replace('-', '_')}.csv.gz"], kind, model)
    accelerators = resolve_devices(rows)
    add_roofline(rows, model, accelerators)
    frame = rows.frame[~rows.frame["implausible"]]
    samples: dict[tuple[str, str], Sample] = {}
    fits = {}
    print(f"{model.name}: columns {', '.join(columns_of(model))}\n\nfamilies:")
    for name, variant, part in parts_of(frame):
        accelerator = accelerators[name]
        try:
            start = shipped(model)(accelerator.model_copy(update={"efficiency": None}), variant)
        except KeyError as error:
            print(f"  # {name} {variant}: {error.args[0]}")
            continue
        since = time.perf_counter()
        sample = samples[name, variant] = sample_of(model, part, device_of(accelerator))
        found = fits[name, variant] = fit(model, [sample], start)
        values = ", ".join(f"{key}: {value:.4g}" for key, value in found.model_dump().items())
        print(f"  {accelerator.architecture}: {{{variant}: {{{values}}}}}   # {time.perf_counter() - since:.0f} s")
    print("\nfigures of the fit:")
    for (name, variant), sample in samples.items():
        print(f"  {name} {variant:12} {figures(model, sample, fits[name, variant])}")
        print(f"  {name} {variant:12} {figures(model, sample, shipped(model)(accelerators[name], variant))}  shipped")
    print("\nfigures under the other device's parameters:")
    for (name, variant), sample in samples.items():
        for other in {device for device, of in fits if of == variant and device != name}:
            print(f"  {name} {variant:12} {figures(model, sample, fits[other, variant])}  of {other}")
    print(flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or KINDS:
        main(chosen)
