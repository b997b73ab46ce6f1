"""What each parameter and mechanism of the experts' kernel model pays, on the device it was fitted on and on the other.

Every line refits all variants with one thing changed and prints mean |ln(predicted/measured)|: in-sample, and of each
device under the other's parameters with its own data sheet put in. Rows without a gate run other kernels on the two
devices, and so does what a timing does with choices of other ranks' experts: the left-out figures are also given for
experts with a gate on one rank, where neither matters. The output is a table in Markdown.

    python benchmarks/ablate_moe.py                      # two minutes
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import KernelParameters
from perfmodel.kernels import moe
from perfmodel.kernels.expert_load import even_load
from perfmodel.kernels.library import parameters_of
from perfmodel.kernels.model import Device, KernelModel, Sample, device_of, fit, log_errors
from perfmodel.measured_kernels import add_roofline, parts_of, read_files, resolve_devices
from perfmodel.terms import Array

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels" / "moe.csv.gz"
MOST_ROWS, EVALUATIONS = 3000, 3000
WIDE = ("bf16", "bf16_ungated")
NARROW = ("fp8", "fp8_block")

Transfer = Callable[[Any, Device, Device], Any]
"""(parameters, device they were fitted on, device they are used on) -> parameters."""


@dataclass(frozen=True)
class Case:
    """One change of the model.

    Parameters
    ----------
    name : str
        What is changed.
    fixed : mapping
        Parameters that are not fitted, with their values.
    constants : mapping
        Names in ``perfmodel.kernels.moe`` and what takes their place; of several values each device takes its best, as
        if the constant were a parameter.
    transfer : callable
        What becomes of parameters on another device.
    """

    name: str
    fixed: Mapping[str, float] = field(default_factory=dict)
    constants: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    transfer: Transfer = lambda parameters, fitted, used: parameters


def _launch_in_seconds(parameters: Any, fitted: Device, used: Device) -> Any:
    return parameters.model_copy(update={"launch_clocks": parameters.launch_clocks * used.clock / fitted.clock})


def _rate_by_clock(parameters: Any, fitted: Device, used: Device) -> Any:
    rates = [device.peak["bf16"] / (device.units * device.clock) for device in (fitted, used)]
    return parameters.model_copy(update={"compute": parameters.compute * rates[0] / rates[1]})


SHAPES, TIME, TILING, LOADS = moe.shapes, moe.time, moe.tiling, moe._load_of


def _one_tile(shapes: Mapping[str, Array]) -> tuple[Array, ...]:
    return TILING({**shapes, "local": np.zeros_like(shapes["local"])})


def _unpadded(shapes: Mapping[str, Array]) -> tuple[Array, ...]:
    rows, columns, depth, _ = TILING(shapes)
    return rows, columns, depth, shapes["pairs"] / rows


def _fastest(shapes: Mapping[str, Array], device: Device, parameters: Any) -> tuple[Array, Array]:
    times = [
        TIME({**shapes, "local": np.full_like(shapes["local"], limit)}, device, parameters) for limit in (0.0, np.inf)
    ]
    first = times[0][0] <= times[1][0]
    return np.where(first, times[0][0], times[1][0]), np.where(first, times[0][1], times[1][1])


def _all_even(distribution: Array, T: Array, k: Array, E: Array, ep: Array) -> Any:
    return even_load(T, k, E, ep)


def _all_active(frame: pd.DataFrame) -> dict[str, Array]:
    shapes = SHAPES(frame)
    return shapes | {"active": shapes["local"]}


CASES = (
    Case("the model"),
    Case("without `launch_clocks`", {"launch_clocks": 0.0}),
    Case("without `compute` (1)", {"compute": 1.0}),
    Case("without `memory` (1)", {"memory": 1.0}),
    Case("without `traffic` (1)", {"traffic": 1.0}),
    Case("without `foreign_computed`", {"foreign_computed": 0.0}),
    Case("without `foreign_carried`", {"foreign_carried": 0.0}),
    Case("without both", {"foreign_computed": 0.0, "foreign_carried": 0.0}),
    Case("launches in seconds, not clocks", transfer=_launch_in_seconds),
    Case("arithmetic by units and clock, not peak", transfer=_rate_by_clock),
    Case("no steps", constants={"STEP_CLOCKS": [0.0]}),
    Case("steps of one tile only", constants={"RESIDENT": [np.inf]}),
    Case("`STEP_CLOCKS` fitted as well", constants={"STEP_CLOCKS": [100.0, 300.0, 400.0, 500.0, 600.0, 800.0]}),
    Case("`RESIDENT` fitted as well", constants={"RESIDENT": [2.0, 3.0, 4.0, 6.0, 9.0, 14.0]}),
    Case("`SOFTNESS` fitted as well", constants={"SOFTNESS": [1.0, 1.12, 1.25, 1.5, 2.0, 3.0]}),
    Case("`SOFTNESS` 1: a sum", constants={"SOFTNESS": [1.0]}),
    Case("`SOFTNESS` 4, as of products", constants={"SOFTNESS": [4.0]}),
    Case("`TILE` for all loads", constants={"tiling": [_one_tile]}),
    Case("the faster of both tiles", constants={"time": [_fastest]}),
    Case("rows not filled up to tiles", constants={"tiling": [_unpadded]}),
    Case("all experts of the rank read", constants={"shapes": [_all_active]}),
    Case("power-law loads taken as even", constants={"_load_of": [_all_even]}),
)


@contextmanager
def replaced(names: Mapping[str, Any]) -> Iterator[None]:
    """Put other things under names of the model's module."""
    before = {name: getattr(moe, name) for name in names}
    for name, value in names.items():
        setattr(moe, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(moe, name, value)


def model_now() -> KernelModel:
    """The model, of the module's functions as they are now."""
    return replace(moe.MODEL, shapes=moe.shapes, time=moe.time)


@dataclass
class Fitted:
    """The best fit of a device and variant: constants, parameters, mean error."""

    constants: Mapping[str, Any]
    parameters: KernelParameters
    error: float


def fitted(case: Case, part: pd.DataFrame, device: Device, start: KernelParameters) -> Fitted:
    """Fit a variant of a device under a change of the model."""
    best = None
    ((name, values),) = case.constants.items() or ((None, [None]),)
    for value in values:
        with replaced({name: value} if name else {}):
            model = model_now()
            sample = Sample(device, model.shapes(part), part["measured"].to_numpy(float) * 1e-6)
            found = fit(
                model,
                [sample],
                start.model_copy(update=dict(case.fixed)),
                fixed=tuple(case.fixed),
                most_rows=MOST_ROWS,
                evaluations=EVALUATIONS,
            )
            error = float(np.mean(np.abs(log_errors(model, [sample], found))))
        if best is None or error < best.error:
            best = Fitted({name: value} if name else {}, found, error)
    assert best is not None
    return best


def left_out(case: Case, part: pd.DataFrame, device: Device, other: Device, found: Fitted) -> Array:
    """|ln(predicted/measured)| of a device's rows under the other's fit."""
    with replaced(found.constants):
        model = model_now()
        sample = Sample(device, model.shapes(part), part["measured"].to_numpy(float) * 1e-6)
        return np.abs(log_errors(model, [sample], case.transfer(found.parameters, other, device)))


def main() -> None:
    """Print the table."""
    rows = read_files([DATA], "moe", moe.MODEL)
    accelerators = resolve_devices(rows)
    add_roofline(rows, moe.MODEL, accelerators)
    frame = rows.frame[~rows.frame["implausible"]]
    parts = {(name, variant): part for name, variant, part in parts_of(frame)}
    devices = {name: device_of(accelerator) for name, accelerator in accelerators.items()}
    starts = {key: parameters_of(moe.MODEL, accelerators[key[0]], key[1]).parameters for key in parts}
    one, two = sorted(devices)
    print("Mean |ln(predicted/measured)|; one rank: experts with a gate, `moe_ep_size` 1.\n")
    heads = ("A100 bf16", "H100 bf16", "H100 fp8", "H100 fp8_block", "A100 left out", "H100 left out", "mean")
    print("| | " + " | ".join((*heads, "A100, one rank", "H100, one rank", "mean")) + " |")
    print("| --- " * 11 + "|")
    for case in CASES:
        found = {key: fitted(case, parts[key], devices[key[0]], starts[key]) for key in parts}
        cells = []
        for name in (one, two):
            sizes = [len(parts[name, variant]) for variant in WIDE]
            cells.append(np.average([found[name, variant].error for variant in WIDE], weights=sizes))
        cells += [found[two, variant].error for variant in NARROW]
        every, alone = [], []
        for name, other in ((one, two), (two, one)):
            errors = {
                variant: left_out(case, parts[name, variant], devices[name], devices[other], found[other, variant])
                for variant in WIDE
            }
            every.append(np.concatenate(list(errors.values())).mean())
            alone.append(errors["bf16"][parts[name, "bf16"]["moe_ep_size"].to_numpy() == 1].mean())
        cells += [*every, np.mean(every), *alone, np.mean(alone)]
        print(f"| {case.name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
