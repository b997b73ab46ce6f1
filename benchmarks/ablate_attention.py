"""Say what every number of the attention models is worth, on the device it was fitted on and on the other one.

Each form fixes a number at a constant, drops a mechanism or brings one back, and is fitted on one device's rows of keys
128 wide in bf16. The figures are those of that device and of the other one, its own data sheet put in. Markdown.

    python benchmarks/ablate_attention.py
    python benchmarks/ablate_attention.py --shipped     # what hardware/catalog/kernels/{prefill,decode}.yaml hold
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
from fit_kernels import measured

from hardware.efficiency import DecodeParameters, KernelParameters, PrefillParameters, fitted
from perfmodel.kernels import decode, prefill
from perfmodel.kernels.model import Device, KernelModel, Sample, bounds_of, device_of, fit, log_errors, spread_of
from perfmodel.measured_kernels import parts_of
from perfmodel.terms import Array
from perfmodel.validate_kernels import sample_of

DEVICES = {"h100_sxm": "H100", "a100_sxm": "A100"}


class Prefill(PrefillParameters):
    """What was tried and is not shipped."""

    last_row: Annotated[float, fitted(0.01, 2.0)]
    l2_bytes_per_clock: Annotated[float, fitted(1, 128)]
    exponentials_per_clock: float = prefill.EXPONENTIALS_PER_CLOCK


class Decode(DecodeParameters):
    """What was tried and is not shipped."""

    memory: Annotated[float, fitted(0.5, 1.0)]
    warm_share: Annotated[float, fitted(0.1, 2.0)]
    query_rows: float = decode.QUERY_ROWS


PREFILL = Prefill(
    launch_us=10.0,
    compute=0.65,
    memory=0.8,
    key_value_passes=2.0,
    last_row=prefill.LAST_ROW,
    l2_bytes_per_clock=0.0,
)
DECODE = Decode(
    launch_clocks=17000.0,
    compute=0.5,
    piece_kib=256.0,
    item_clocks=5000.0,
    head_clocks=40.0,
    softness=2.0,
    memory=decode.MEMORY_SHARE,
    warm_share=decode.WARM_SHARE,
)


def prefill_time(shapes: Mapping[str, Array], device: Device, parameters: Prefill) -> tuple[Array, Array]:
    """As `prefill.time`, its constants from the parameters, and tensors that fit L2 at L2's rate where it has one."""
    constants: dict[str, Any] = {
        "LAST_ROW": parameters.last_row,
        "EXPONENTIALS_PER_CLOCK": parameters.exponentials_per_clock,
    }
    with patch.multiple(prefill, **constants):
        seconds, bound = prefill.time(shapes, device, parameters)
    if parameters.l2_bytes_per_clock > 0:
        moved = prefill.traffic(shapes, parameters.key_value_passes)
        bandwidth = parameters.memory * device.bandwidth
        rate = max(parameters.l2_bytes_per_clock * device.units * device.clock, bandwidth)
        seconds = seconds - np.where(moved < device.l2, moved / bandwidth - moved / rate, 0.0)
    return seconds, bound


def decode_time(shapes: Mapping[str, Array], device: Device, parameters: Decode) -> tuple[Array, Array]:
    """As `decode.time`, its constants from the parameters."""
    constants: dict[str, Any] = {
        "MEMORY_SHARE": parameters.memory,
        "WARM_SHARE": parameters.warm_share,
        "QUERY_ROWS": parameters.query_rows,
    }
    with patch.multiple(decode, **constants):
        return decode.time(shapes, device, parameters)


Form = tuple[str, tuple[str, ...], dict[str, float]]
"""What is changed; numbers fitted beside those of `FITTED`, or without them (``-name``); where the others stand."""

FITTED = {
    "prefill": ("launch_us", "compute"),
    "decode": ("launch_clocks", "item_clocks", "head_clocks"),
}
"""What is fitted for bf16 with keys 128 wide; `PREFILL` and `DECODE` hold the others."""

PREFILL_FORMS: tuple[Form, ...] = (
    ("**shipped**", (), {}),
    (
        "all that was tried",
        ("memory", "key_value_passes", "last_row", "l2_bytes_per_clock"),
        {"l2_bytes_per_clock": 10.0},
    ),
    ("`memory`, `key_value_passes` fitted", ("memory", "key_value_passes"), {}),
    ("`memory` fitted", ("memory",), {}),
    ("`key_value_passes` fitted", ("key_value_passes",), {}),
    ("`key_value_passes` = 1", (), {"key_value_passes": 1.0}),
    ("`key_value_passes` = 3", (), {"key_value_passes": 3.0}),
    ("part of the longest row fitted", ("last_row",), {}),
    ("the longest row hidden", (), {"last_row": 0.0}),
    ("the longest row not hidden at all", (), {"last_row": 1.0}),
    ("a rate of L2 for warm tensors", ("l2_bytes_per_clock",), {"l2_bytes_per_clock": 10.0}),
    ("no exponentials", (), {"exponentials_per_clock": np.inf}),
    ("`launch_us` = 9", ("-launch_us",), {"launch_us": 9.0}),
    ("`compute` = 0.7", ("-compute",), {"compute": 0.7}),
)

DECODE_FORMS: tuple[Form, ...] = (
    ("**shipped**", (), {}),
    ("all that was tried", ("compute", "piece_kib", "softness", "memory", "warm_share"), {}),
    ("share of memory bandwidth fitted", ("memory",), {}),
    ("share of memory bandwidth 0.9", (), {"memory": 0.9}),
    ("part of L2 that stays warm fitted", ("warm_share",), {}),
    ("nothing warm", (), {"warm_share": 1e-9}),
    ("`piece_kib` fitted", ("piece_kib",), {}),
    ("no pieces: an item on one unit", (), {"piece_kib": 1e9}),
    ("no padding of query rows", (), {"query_rows": 1.0}),
    ("no arithmetic", (), {"compute": 1e9}),
    ("`compute` fitted", ("compute",), {}),
    ("no `item_clocks`", ("-item_clocks",), {"item_clocks": 0.0}),
    ("`item_clocks` = 5000", ("-item_clocks",), {"item_clocks": 5000.0}),
    ("no `head_clocks`", ("-head_clocks",), {"head_clocks": 0.0}),
    ("`softness` fitted", ("softness",), {}),
    ("`softness` = 1", (), {"softness": 1.0}),
    ("`softness` = 5", (), {"softness": 5.0}),
    ("`launch_clocks` = 17000", ("-launch_clocks",), {"launch_clocks": 17000.0}),
)


def table(
    kind: str,
    time: Callable[..., tuple[Array, Array]],
    start: KernelParameters,
    forms: Sequence[Form],
    condition: str = "",
) -> None:
    """Print a model's table."""
    model, frame, accelerators = measured(kind)
    frame = frame[frame["variant"] == "bf16"]
    samples, counted = {}, {}
    for name, _, part in parts_of(frame):
        samples[name] = sample_of(model, part, device_of(accelerators[name]))
        counted[name] = part[condition].to_numpy(bool) if condition else np.ones(len(part), bool)
    full = KernelModel(model.name, model.columns, type(start), model.shapes, time, model.roofline)
    print(f"| {model.name} | numbers | H100 | A100 | H100 left out | A100 left out | mean |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for text, changes, values in forms:
        free = [name for name in FITTED[model.name] if f"-{name}" not in changes]
        free += [name for name in changes if not name.startswith("-")]
        fixed = [name for name in bounds_of(type(start)) if name not in free]
        begun = start.model_copy(update=values)
        found = {
            name: fit(full, [sample], begun, fixed=fixed, evaluations=2000, most_rows=2500)
            for name, sample in samples.items()
        }
        cells, left_out = [], []
        for of in ((0, 1), (1, 0)):
            for name, source in zip(DEVICES, (list(DEVICES)[i] for i in of), strict=True):
                errors = log_errors(full, [samples[name]], found[source])[counted[name]]
                cells.append(f"{np.mean(np.abs(np.expm1(errors))):.1%} / {np.mean(np.abs(errors)):.3f}")
                if source != name:
                    left_out.append(float(np.mean(np.abs(errors))))
        cells = [cell.replace("%", " %") for cell in cells]
        print(f"| {text} | {len(free)} | {' | '.join(cells)} | {np.mean(left_out):.3f} |", flush=True)
    print()


def constants_of_bf16(kind: str, start: KernelParameters, condition: str = "") -> None:
    """Print how far each other variant comes with the constants of bf16 and a head_dim of 128, fitting the rest."""
    model, frame, accelerators = measured(kind)
    names = set(model.parameters.model_fields)
    begun = model.parameters(**{name: value for name, value in start.model_dump().items() if name in names})
    constant = KEPT[model.name]["bf16"]
    print(f"| MAPE of {model.name}, H100 | all its own | {', '.join(f'`{name}`' for name in constant)} as for bf16 |")
    print("| --- " * 3 + "|")
    for name, variant, part in parts_of(frame):
        if variant == "bf16":
            continue
        sample = sample_of(model, part, device_of(accelerators[name]))
        counted = part[condition].to_numpy(bool) if condition else np.ones(len(part), bool)
        cells = []
        for fixed in ((), constant):
            found = fit(model, [sample], begun, fixed=fixed, evaluations=2000, most_rows=2500)
            cells.append(f"{np.mean(np.abs(np.expm1(log_errors(model, [sample], found))[counted])):.1%}")
        print(f"| {variant} | {' | '.join(cells)} |".replace("%", " %"), flush=True)
    print()


def widths() -> None:
    """Print what head widths say of exponentials, tiles and pieces: fits of H100 rows under other constants."""
    model, frame, accelerators = measured("attention-prefill")
    device = device_of(accelerators["h100_sxm"])
    frame = frame[frame["device_name"] == "h100_sxm"]
    start = model.parameters(launch_us=10.0, compute=0.65, memory=0.7, key_value_passes=2.0)  # type: ignore[call-arg]

    def fitted_on(variant: str, module: Any, constants: Mapping[str, Any]) -> tuple[KernelParameters, Array]:
        sample = sample_of(model, frame[frame["variant"] == variant], device)
        with patch.multiple(module, **constants):
            found = fit(model, [sample], start, evaluations=2000, most_rows=2500)
            return found, np.expm1(log_errors(model, [sample], found))

    print("| `compute` of prefill in bf16, H100 | head_dim 64 | 128 | 192 | 256 |\n" + "| --- " * 5 + "|")
    for text, rate in (("with exponentials", prefill.EXPONENTIALS_PER_CLOCK), ("without", np.inf)):
        constants = {"EXPONENTIALS_PER_CLOCK": rate}
        found = [fitted_on(name, prefill, constants)[0] for name in ("bf16_d64", "bf16", "bf16_d192", "bf16_d256")]
        cells = " | ".join(f"{value.compute:.3f}" for value in found)  # type: ignore[attr-defined]
        print(f"| {text} | {cells} |", flush=True)
    print("\n| MAPE of prefill, head_dim 512, H100 | bf16 | bf16, fp8 cache | fp8 |\n" + "| --- " * 4 + "|")
    for side in (128, 64, 32, 16):
        errors = [
            fitted_on(name, prefill, {"WIDE_TILE": side})[1] for name in ("bf16_d512", "bf16_kv8_d512", "fp8_d512")
        ]
        cells = " | ".join(f"{np.mean(np.abs(each)):.1%}".replace("%", " %") for each in errors)
        print(f"| tiles of {side} | {cells} |", flush=True)
    model, frame, _ = measured("attention-decode")
    frame = frame[frame["device_name"] == "h100_sxm"]
    cold = frame[frame["variant"] == "bf16_kv8_d512"]["cold"].to_numpy(bool)
    names = set(model.parameters.model_fields)
    start = model.parameters(**{name: value for name, value in DECODE.model_dump().items() if name in names})
    print(
        "\n| MAPE of decode, head_dim 512, fp8 cache, H100 | all rows | larger than twice L2 |\n" + "| --- " * 3 + "|"
    )
    for text, pieces, blocks in (
        ("any number of pieces", np.inf, 1),
        ("8 pieces", 8, 1),
        ("8 pieces, two to fill a unit", 8, 2),
    ):
        error = fitted_on("bf16_kv8_d512", decode, {"MOST_PIECES": pieces, "BLOCKS_TO_FILL": blocks})[1]
        cells = f"{np.mean(np.abs(error)):.1%} | {np.mean(np.abs(error[cold])):.1%}".replace("%", " %")
        print(f"| {text} | {cells} |", flush=True)


SHARED = ("head_clocks",)
"""Decode parameters that all widths of bf16 up to `prefill.WIDEST` share. An 8-bit cache misses its bar with them."""

KEPT: dict[str, dict[str, tuple[str, ...]]] = {
    "prefill": {"bf16": ("memory", "key_value_passes")},
    "decode": dict.fromkeys(("bf16", "bf16_d64", "bf16_d192", "bf16_d256"), ("compute", "piece_kib", "softness")),
}
"""What stays at `PREFILL` and `DECODE` in a variant; others miss their bar without a fit of it."""


def shared_fit(
    model: KernelModel, samples: Mapping[str, Sample], start: KernelParameters, rounds: int = 4
) -> dict[str, KernelParameters]:
    """Fit widths of a form together, in turn the parameters of each and those they share, widths weighing alike."""
    from scipy.optimize import minimize

    found = dict.fromkeys(samples, start)
    held = (*SHARED, *KEPT["decode"]["bf16"])
    bounds = bounds_of(model.parameters)
    low, high = (np.log([bounds[name][i] for name in SHARED]) for i in (0, 1))

    def shared(values: Array) -> dict[str, float]:
        return dict(zip(SHARED, np.exp(np.clip(values, low, high)).tolist(), strict=True))

    def loss(values: Array) -> float:
        errors = [
            np.mean(np.abs(log_errors(model, [samples[name]], found[name].model_copy(update=shared(values)))))
            for name in samples
        ]
        return float(np.mean(errors) + np.sum(np.maximum(values - high, 0) + np.maximum(low - values, 0)))

    for _ in range(rounds):
        found = {
            name: fit(model, [sample], found[name], fixed=held, evaluations=300, most_rows=2500)
            for name, sample in samples.items()
        }
        first = found[next(iter(found))]
        begin = np.log([getattr(first, name) for name in SHARED])
        best = minimize(loss, begin, method="Nelder-Mead", options={"maxfev": 150}).x
        found = {name: value.model_copy(update=shared(best)) for name, value in found.items()}
    return {
        name: value.model_copy(update={"spread": spread_of([log_errors(model, [samples[name]], value)])})
        for name, value in found.items()
    }


def shipped_values(kind: str, start: KernelParameters) -> None:
    """Print the parameters of every variant, with MAPE over all rows and over cold ones."""
    model, frame, accelerators = measured(kind)
    names = set(model.parameters.model_fields)
    start = model.parameters(**{name: value for name, value in start.model_dump().items() if name in names})
    samples: dict[str, dict[str, Sample]] = {}
    cold: dict[tuple[str, str], Any] = {}
    for name, variant, part in parts_of(frame):
        family = accelerators[name].architecture
        samples.setdefault(family, {})[variant] = sample_of(model, part, device_of(accelerators[name]))
        cold[family, variant] = part["cold"].to_numpy(bool)
    for family, variants in samples.items():
        print(f"  {family}:")
        found: dict[str, KernelParameters] = {}
        if len(widths := {name: sample for name, sample in variants.items() if name in KEPT["decode"]}) > 1:
            found = shared_fit(model, widths, start) if model.name == "decode" else {}
        for variant, sample in variants.items():
            kept = KEPT[model.name].get(variant, ())
            values = found.get(variant) or fit(model, [sample], start, fixed=kept)
            errors = np.expm1(log_errors(model, [sample], values))
            few = np.mean(np.abs(errors[cold[family, variant]]))
            print(f"    {variant}:  # MAPE {np.mean(np.abs(errors)):.1%}, cold {few:.1%}")
            for key, value in sorted(values.model_dump().items(), key=lambda item: item[0] == "spread"):
                print(f"      {key}: {value:.4g}", flush=True)


if __name__ == "__main__":
    if "--shipped" in sys.argv[1:]:
        print("prefill\nfamilies:")
        shipped_values("attention-prefill", PREFILL)
        print("decode\nfamilies:")
        shipped_values("attention-decode", DECODE)
    else:
        print("Cells: MAPE / mean |ln(predicted/measured)|; mean: of the two left-out |ln|.\n")
        table("attention-prefill", prefill_time, PREFILL, PREFILL_FORMS)
        print("All rows:\n")
        table("attention-decode", decode_time, DECODE, DECODE_FORMS)
        print("Rows larger than twice L2:\n")
        table("attention-decode", decode_time, DECODE, DECODE_FORMS, "cold")
        constants_of_bf16("attention-prefill", PREFILL)
        constants_of_bf16("attention-decode", DECODE, "cold")
        widths()
