"""How much a few measured kernels buy: error over all rows of a device before and after calibrating on a sample.

For both devices, from another family's parameters (what an unmeasured device would get) and from those of its own, over
random samples of 10, 20, 50 and 200 rows. Prints a table in Markdown.

    python benchmarks/calibrate_kernels.py [--samples 20] [--rows 10 20 --] [gemm|attention-prefill|attention-decode]...
    python benchmarks/calibrate_kernels.py moe
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hardware.catalogue import find
from perfmodel.calibrate_kernels import fitted, predicted, start_of
from perfmodel.kernels.model import device_of
from perfmodel.measured_kernels import model_of, parts_of, read_files
from perfmodel.validation import statistics

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels"
KINDS = ("gemm", "attention-prefill", "attention-decode", "moe")
BOTH = (("A100", "a100_sxm"), ("H100", "h100_sxm"))
FAMILIES = ("ampere", "hopper")
ROWS = (10, 20, 50, 200)
JUDGED = 3000
"""Rows of a device that the error is of, drawn at random."""


def main(kind: str, samples: int, sizes: Sequence[int]) -> None:
    """Print the lines of a kind."""
    model = model_of(kind)
    found = read_files([DATA / f"{kind.replace('-', '_')}.csv.gz"], kind, model)
    frames = {name: part for name, variant, part in parts_of(found.frame) if variant == "bf16"}
    for label, name in BOTH:
        accelerator, frame = find("accelerator", name), frames[name]
        device = device_of(accelerator)
        judged = frame.sample(min(JUDGED, len(frame)), random_state=0)
        for family in sorted(FAMILIES, key=lambda known: known == accelerator.architecture):
            start = start_of(model, accelerator, "bf16", family)
            before = statistics(predicted(model, judged, device, start.parameters))
            for rows in sizes:
                after = []
                for seed in range(samples):
                    sample = frame.sample(rows, random_state=1000 + seed)
                    parameters = fitted(model, sample, device, start.parameters, foreign=start.widening > 0)
                    after.append(statistics(predicted(model, judged, device, parameters)))
                errors = [figures["mape"] for figures in after]
                covered = np.mean([figures["coverage_p10_p90"] for figures in after])
                cells = [
                    f"{kind}, {label}", start.origin.split(".")[0], str(rows), f"{before['mape']:.1%}",
                    f"{np.mean(errors):.1%}", f"{np.median(errors):.1%}", f"{max(errors):.1%}",
                    f"{before['coverage_p10_p90']:.0%}", f"{covered:.0%}",
                ]  # fmt: skip
                print(f"| {' | '.join(cells).replace('%', ' %')} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("kinds", nargs="*", default=KINDS)
    asked = parser.parse_args()
    print("| rows of | from family | rows | MAPE before | after, mean | median | worst | in P10-P90 before | after |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for chosen in asked.kinds:
        main(chosen, asked.samples, asked.rows)
