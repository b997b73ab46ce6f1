"""What every parameter and every term of the matrix-product model pays, on the device fitted and on one left out.

Each line refits bf16 products on H100 and on A100 with one thing held or switched, and predicts each device with its
own fit and with the other's (its own data sheet put in). Prints tables in Markdown.

    python benchmarks/ablate_gemm.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import find
from hardware.efficiency import GemmParameters
from perfmodel.kernels import gemm
from perfmodel.kernels.library import sustained_share
from perfmodel.kernels.model import Sample, device_of, fit, log_errors
from perfmodel.terms import Array

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels"
START = GemmParameters(launch_clocks=5000, compute=0.8, memory=0.8, split_clocks=4000)
NEUTRAL = {"launch_clocks": 500.0, "compute": 1.0, "memory": 1.0, "split_clocks": 300.0}
"""Values as if there were no such parameter; clocks at the least that a fit may choose."""

LONG_S = 20e-6


def samples() -> dict[str, Sample]:
    """The measured bf16 products of both devices."""
    frame = pd.read_csv(DATA / "gemm.csv.gz").query("dtype == 'bfloat16'").dropna(subset=["us_ref"])
    return {
        device: Sample(device_of(find("accelerator", device)), gemm.shapes(rows), rows["us_ref"].to_numpy(float) * 1e-6)
        for device, rows in frame.groupby("device")
    }


@contextmanager
def switched(**constants: Any) -> Iterator[None]:
    """Run with other constants of the model's module."""
    before = {name: getattr(gemm, name) for name in constants}
    for name, value in constants.items():
        setattr(gemm, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(gemm, name, value)


class _Roots:
    """numpy with another square root, so that the root of a root is the root of an exponent."""

    def __init__(self, exponent: float) -> None:
        self.power = exponent**-0.5

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def sqrt(self, values: Array) -> Array:
        """Return a root of which two make that of the exponent."""
        found: Array = values**self.power
        return found


def softness(exponent: float) -> dict[str, Any]:
    """Constants of a soft maximum of another exponent than 4."""
    return {"np": _Roots(exponent), "_fourth": lambda values: np.power(values, exponent, dtype=values.dtype)}


def line(
    name: str,
    rows: Mapping[str, Sample],
    held: Callable[[str], Mapping[str, float]] = lambda device: {},
    scaled: Callable[[str, str], float] = lambda of, to: 1.0,
) -> dict[str, GemmParameters]:
    """Print one line: the fits with some parameters held; `scaled` changes the share of peak on the way to a device."""
    fits = {
        device: fit(gemm.MODEL, [sample], START.model_copy(update=dict(held(device))), fixed=tuple(held(device)))
        for device, sample in rows.items()
    }
    cells = []
    for of, to in (
        ("h100_sxm", "h100_sxm"),
        ("a100_sxm", "a100_sxm"),
        ("h100_sxm", "a100_sxm"),
        ("a100_sxm", "h100_sxm"),
    ):
        parameters = fits[of].model_copy(update={"compute": min(1.0, fits[of].compute * scaled(of, to))})
        errors = log_errors(gemm.MODEL, [rows[to]], parameters)
        long = gemm.roofline(rows[to].shapes, rows[to].device) > LONG_S
        figures = (np.abs(errors).mean(), np.abs(np.expm1(errors)).mean(), np.abs(np.expm1(errors[long])).mean())
        cells.append(f"{figures[0]:.3f} / {figures[1]:.1%} / {figures[2]:.1%}".replace("%", " %"))
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return fits


def head(title: str) -> None:
    """Print the head of a table."""
    print(f"\n{title}\n\n| | H100, own fit | A100, own fit | A100 left out | H100 left out |")
    print("| --- | --- | --- | --- | --- |")


def main() -> None:
    """Print all tables."""
    rows = samples()
    print("Cells: mean |ln(predicted/measured)| / MAPE / MAPE above 20 us of roofline; bf16 products.")
    head("Parameters")
    whole = line("all four fitted", rows)
    other = {"h100_sxm": whole["a100_sxm"], "a100_sxm": whole["h100_sxm"]}
    for name, value in NEUTRAL.items():
        line(f"`{name}` held at {value:g} (none)", rows, lambda device, n=name, v=value: {n: v})  # type: ignore[misc]
        line(
            f"`{name}` held at the other device's",
            rows,
            lambda device, n=name: {n: getattr(other[device], n)},  # type: ignore[misc]
        )

    line("`memory` held at 0.8, one value for both", rows, lambda device: {"memory": 0.8})

    head("Terms, all four parameters fitted again")
    line("as shipped", rows)
    everyone = frozenset({"ampere", "hopper"})
    for name, constants in (
        ("no whole waves on A100 either", {"PERSISTENT": everyone}),
        ("whole waves on H100 too", {"PERSISTENT": frozenset()}),
        ("no multicast", {"MULTICAST": {}}),
        ("no fill of a tile's pipeline", {"FILL_BYTES": 0.0}),
        ("no split-K", {"SPLITS": (1,)}),
        ("split-K up to 8", {"SPLITS": (1, 2, 4, 8)}),
        ("one tile, 128 x 128", {"TILES": ((128, 128),)}),
        ("no limit of L2 and its ports", {"PORT_BYTES_PER_CLOCK": 1e9}),
        ("nothing warm", {"COPIES": float("inf")}),
        ("soft maximum of exponent 2", softness(2.0)),
        ("soft maximum of exponent 3", softness(3.0)),
        ("soft maximum of exponent 6", softness(6.0)),
        ("nearly hard maximum, exponent 8", softness(8.0)),
    ):  # fmt: skip
        with switched(**constants):  # type: ignore[arg-type]
            line(name, rows)

    head("Share of peak of the other device, lowered where there is less power for it")
    line("not lowered (shipped)", rows)
    accelerators = {device: find("accelerator", device) for device in rows}
    line(
        "lowered by watts per peak FLOP/s",
        rows,
        scaled=lambda of, to: sustained_share(accelerators[to], accelerators[of].name),
    )


if __name__ == "__main__":
    main()
