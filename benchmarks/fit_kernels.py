"""Fit the kernel models, per device and variant, on measured kernels, and on the other device alone.

Prints what ``hardware/catalog/kernels/<model>.yaml`` holds, and the figures over all rows: of the fit, and of the
device when the other device's parameters are used with its own data sheet. Two figures say how much wider an interval
must be where parameters are not a device's own, so that P10 and P90 hold 80 % of the rows that they were not fitted on:
``transfer`` from the two fits with a device left out, ``borrowed`` from variants under the parameters of others.

    python benchmarks/fit_kernels.py [gemm|attention-prefill|attention-decode|moe|memory]...     # all by default
    python benchmarks/fit_kernels.py --shipped moe ...                 # no fit: the figures of what is shipped
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hardware.efficiency import KernelParameters
from hardware.schema import Accelerator
from perfmodel.kernels import memory
from perfmodel.kernels.library import STANDS_IN, parameters_of, widenings
from perfmodel.kernels.model import Z90, KernelModel, Sample, device_of, fit, log_errors
from perfmodel.measured_kernels import (
    accelerator_of,
    add_roofline,
    columns_of,
    model_of,
    parts_of,
    read_files,
    resolve_devices,
)
from perfmodel.terms import Array
from perfmodel.validate_kernels import sample_of
from perfmodel.validation import statistics

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels"
KINDS = ("gemm", "attention-prefill", "attention-decode", "moe", "memory")

COVERED, EACH_COVERED = 0.8, 0.7
"""Share of rows that a widened interval must hold: of all groups, and of each."""

LEAST_WIDENING = 0.05
"""Two devices say little about a third: no interval is trusted to be the same on hardware nobody measured."""


def measured(kind: str) -> tuple[KernelModel, pd.DataFrame, dict[str, Accelerator]]:
    """The model, plausible rows and accelerators of a kind."""
    if kind == "memory":  # the pieces of a layer stand side by side in one row
        rows = memory.kernels_of_layers(pd.read_csv(DATA / "vidur_layers.csv.gz")).dropna(subset=["us_ref"])
        frame = rows[rows["us_ref"] > 0].assign(device_name=rows["device"], skipped="", measured=rows["us_ref"])
        frame["variant"] = memory.variants(frame)
        names = frame["device_name"].unique()
        return memory.MODEL, frame, {name: accelerator_of(f"{name}_sxm") for name in names}
    model = model_of(kind)
    found = read_files([DATA / f"{kind.replace('-', '_')}.csv.gz"], kind, model)
    accelerators = resolve_devices(found)
    add_roofline(found, model, accelerators)
    return model, found.frame[~found.frame["implausible"]], accelerators


def figures(model: KernelModel, sample: Sample, parameters: KernelParameters, widening: float = 0.0) -> str:
    """The figures of a device's rows under some parameters."""
    seconds = np.asarray(sample.seconds)
    predicted = np.asarray(model.time(sample.shapes, sample.device, parameters)[0], float)
    width = np.exp(Z90 * np.hypot(parameters.spread, widening))
    frame = pd.DataFrame(
        {"measured": seconds, "predicted": predicted, "p10": predicted / width, "p90": predicted * width}
    )
    found = statistics(frame)
    return (
        f"rows {found['rows']:6,}  MAPE {found['mape']:6.1%}  median {found['median_ape']:6.1%}"
        f"  P90 {found['p90_ape']:6.1%}  |ln| {found['mean_abs_log_error']:.3f}  bias {found['bias']:.3f}"
        f"  in P10-P90 {found['coverage_p10_p90']:.1%}"
    )


def widening(groups: Sequence[tuple[Array, Array]]) -> float:
    """Standard deviation to add in quadrature, given logarithmic errors of groups and the spreads they come with.

    The least, to a thousandth, for which P10 and P90 hold 80 % of the rows, groups weighing alike, and 70 % of each.
    """
    for added in np.arange(LEAST_WIDENING, 3.0, 0.001):
        shares = [float(np.mean(np.abs(errors) <= Z90 * np.hypot(spreads, added))) for errors, spreads in groups]
        if np.mean(shares) >= COVERED and min(shares) >= EACH_COVERED:
            return float(added)
    raise ValueError("errors beyond a factor of forty")


def main(kind: str, refit: bool) -> None:
    """Fit one kind."""
    model, frame, accelerators = measured(kind)
    samples: dict[tuple[str, str], Sample] = {}
    fits: dict[tuple[str, str], KernelParameters] = {}
    shipped: dict[tuple[str, str], KernelParameters] = {}
    print(f"{model.name}: columns {', '.join(columns_of(model))}\n\nfamilies:")
    for name, variant, part in parts_of(frame):
        accelerator = accelerators[name].model_copy(update={"efficiency": None})
        try:
            start = parameters_of(model, accelerator, variant)
        except KeyError as error:
            print(f"  # {name} {variant}: {error.args[0]}")
            continue
        since = time.perf_counter()
        samples[name, variant] = sample_of(model, part, device_of(accelerator))
        shipped[name, variant] = start.parameters
        if refit:
            fits[name, variant] = fit(model, [samples[name, variant]], start.parameters)
        elif not start.widening:
            fits[name, variant] = start.parameters
        else:
            continue
        values = ", ".join(f"{key}: {value:.4g}" for key, value in fits[name, variant].model_dump().items())
        print(f"  {accelerator.architecture}: {{{variant}: {{{values}}}}}   # {time.perf_counter() - since:.0f} s")
    if refit:
        print("\nfigures of the fit:")
    for (name, variant), sample in samples.items():
        if refit:
            print(f"  {name} {variant:12} {figures(model, sample, fits[name, variant])}")
        print(f"  {name} {variant:12} {figures(model, sample, shipped[name, variant])}  shipped")

    def judged(title: str, key: str, given: float, pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]) -> None:
        if not pairs:
            return
        found = [log_errors(model, [samples[to]], fits[of]) for to, of in pairs]
        spreads = [np.full(len(errors), fits[of].spread) for errors, (_, of) in zip(found, pairs, strict=True)]
        # all variants of a device are one group
        groups = []
        for device in dict.fromkeys(to[0] for to, _ in pairs):
            chosen = [number for number, (to, _) in enumerate(pairs) if to[0] == device]
            groups.append((np.concatenate([found[i] for i in chosen]), np.concatenate([spreads[i] for i in chosen])))
        added = widening(groups)
        print(f"\n{title}\n{key}: {added:.3f}   # {given:g} is shipped")
        for (to, of), errors, spread in zip(pairs, found, spreads, strict=True):
            print(f"  {' '.join(to):24} of {' '.join(of):24} alone needs {widening([(errors, spread)]):.3f}")
            print(f"    {figures(model, samples[to], fits[of], added)}")

    transfer, borrowed = widenings(model)
    across = [(to, of) for to in fits for of in fits if to[0] != of[0] and to[1] == of[1]]
    judged("figures under the other device's parameters:", "transfer", transfer, across)
    # a type that nobody timed takes a wider one's parameters, as fp8 would have taken those of bf16
    takes = {variant: (*others, "bf16") for variant, others in STANDS_IN.items()}
    inside = [(to, of) for to in fits for of in fits if to[0] == of[0] and of[1] in takes.get(to[1], ())]
    judged("figures under another variant's parameters:", "borrowed", borrowed, inside)
    print(flush=True)


if __name__ == "__main__":
    asked = [argument for argument in sys.argv[1:] if argument != "--shipped"]
    for chosen in asked or KINDS:
        main(chosen, "--shipped" not in sys.argv)
