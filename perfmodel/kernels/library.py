"""The parameters of a kernel model on a device: its own, its family's, or another family's with a wider interval.

They live in ``hardware/catalog/kernels/<model>.yaml``:

    kind: kernel
    name: gemm
    transfer: 0.1                   # added in quadrature to the spread of a family's parameters on another family
    borrowed: 0.2                   # the same of a variant that stands in for another
    families:                       # architecture family -> variant (a type, or a kernel library's form of it)
      hopper: {bf16: {...}, fp8: {...}}
      ampere: {bf16: {...}}
    provenance: {hopper.bf16: {source, date, evidence}}

``hardware/catalog/kernels/power.yaml`` says how a board of less power sustains less of its peak.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hardware.catalogue import find
from hardware.efficiency import KernelParameters
from hardware.schema import Accelerator, Provenance
from hardware.yaml_source import Source, read_yaml, validated
from perfmodel.kernels.model import KernelModel
from perfmodel.power.constants import throttle_of

STANDS_IN = {
    "int8": ("fp8",),
    "fp8": ("fp8_block",),
    "fp8_block": ("fp8",),
    "fp4": ("fp8", "fp8_block"),
}
"""Variants whose parameters another takes where it has none."""

TRANSFER, BORROWED = 0.25, 0.35
"""Widening of a model whose file states none: more than any that ``benchmarks/fit_kernels.py`` finds."""


@dataclass(frozen=True)
class Found:
    """Parameters of a kernel model on a device.

    Parameters
    ----------
    parameters : KernelParameters
        The parameters; their spread is widened where they are not the device's or its family's own.
    origin : str
        Where they come from, such as ``hopper.bf16``.
    widening : float
        The part of the spread, in quadrature, that is there because they are another family's or another variant's.
    """

    parameters: KernelParameters
    origin: str
    widening: float = 0.0


def _read(name: str) -> Source:
    path = files("hardware").joinpath("catalog").joinpath("kernels").joinpath(name)
    return read_yaml(path.read_text(encoding="utf-8"), name)


@lru_cache(maxsize=16)
def families(model: KernelModel) -> dict[str, dict[str, KernelParameters]]:
    """Return the shipped parameters of a model, by family and variant."""
    source = _read(f"{model.name}.yaml")
    found: dict[str, dict[str, KernelParameters]] = {}
    for family, variants in source.data["families"].items():
        found[family] = {
            variant: validated(model.parameters, source, ("families", family, variant)) for variant in variants
        }
    for key in source.data.get("provenance", {}):
        validated(Provenance, source, ("provenance", key))
    return found


@lru_cache(maxsize=16)
def widenings(model: KernelModel) -> tuple[float, float]:
    """Return what is added in quadrature to the spread of parameters of another family, and of another variant."""
    data = _read(f"{model.name}.yaml").data
    return float(data.get("transfer", TRANSFER)), float(data.get("borrowed", BORROWED))


@lru_cache(maxsize=1)
def power_exponent() -> float:
    """Return the exponent with which the sustained share of peak follows the power limit."""
    return float(_read("power.yaml").data["exponent"])


def sustained_share(accelerator: Accelerator, reference: str | None) -> float:
    """Return what an accelerator keeps of the share of peak that was measured on the reference of a family.

    Notes
    -----
    min(1, (watts per peak FLOP/s over the reference's)^exponent): long matrix products run against the power limit, and
    dynamic power grows with about the cube of the clock. The exponent is fitted on training runs under power caps
    (``python benchmarks/fit_power.py``).
    """
    if reference is None:
        return 1.0
    measured = find("accelerator", reference)
    ratio = _watts_per_flops(accelerator) / _watts_per_flops(measured)
    return float(min(1.0, ratio ** power_exponent()))


def _watts_per_flops(accelerator: Accelerator) -> float:
    peak = accelerator.peak
    known = [peak[dtype] for dtype in ("bf16", "fp16") if dtype in peak]
    return accelerator.power.most / (known[0] if known else max(peak.values()))


def own_parameters(model: KernelModel, accelerator: Accelerator) -> Mapping[str, KernelParameters]:
    """Return the parameters that an accelerator's own description holds, by variant."""
    found: Mapping[str, KernelParameters] = getattr(accelerator.efficiency, model.name, None) or {}
    return found


def parameters_of(
    model: KernelModel,
    accelerator: Accelerator,
    variant: str,
    own: Mapping[str, Any] | None = None,
    among: Collection[str] | None = None,
) -> Found:
    """Return the parameters of a variant on an accelerator.

    Parameters
    ----------
    model : KernelModel
        The model.
    accelerator : Accelerator
        Its architecture family is looked up, then the family that one inherits, and so on.
    variant : str
        Such as ``bf16`` or ``fp8_block``.
    own : mapping
        Parameters of the device itself, by variant, from ``calibrate``; they go first, and as they are. Those of its
        description if left out.
    among : collection of str
        Families to look in, as if no other had been measured; all if left out.

    Raises
    ------
    KeyError
        Where no family has the variant or one that stands in for it.

    Notes
    -----
    The share of peak of its own family is lowered on a board that has less power for it (`sustained_share`). Not so
    that of any other family, since watts per FLOP/s of two generations compare their processes first: H100 under A100's
    parameters would err by 15.1 % instead of 9.5 on long products, and dense training on GB200 by 15 % instead of 5.
    The spread of another family's parameters is widened by the model's ``transfer`` and by ``widen`` of every family on
    the way to it, that of a variant standing in for another by ``borrowed``, that of arithmetic under a power cap by
    the spread of speeds under caps, all in quadrature.
    """
    if own is None:
        own = own_parameters(model, accelerator)
    if variant in own:
        return Found(model.parameters.model_validate(own[variant]), f"{accelerator.name}.{variant}")
    known = {name: variants for name, variants in families(model).items() if among is None or name in among}
    family, widen = find("efficiency", accelerator.architecture), 0.0
    at_home, chain = family.name, {family.name: 0.0}
    while family.inherits is not None:
        widen = (widen**2 + family.widen**2) ** 0.5
        family = find("efficiency", family.inherits)
        chain[family.name] = widen
    others = {name: widen for name in known if name not in chain}
    transfer, borrowed = widenings(model)
    throttled = throttle_of(accelerator).spread if accelerator.power.limit < accelerator.power.most else 0.0
    for candidate in (variant, *STANDS_IN.get(variant, ())):
        for name, on_the_way in (chain | others).items():
            parameters = known.get(name, {}).get(candidate)
            if parameters is None:
                continue
            parts = (
                on_the_way,
                0.0 if name == at_home else transfer,
                0.0 if candidate == variant else borrowed,
                throttled if hasattr(parameters, "compute") else 0.0,
            )
            widening = sum(part**2 for part in parts) ** 0.5
            update = {"spread": (parameters.spread**2 + widening**2) ** 0.5}
            if name == at_home and hasattr(parameters, "compute"):
                update["compute"] = parameters.compute * sustained_share(
                    accelerator, find("efficiency", name).reference
                )
            return Found(parameters.model_copy(update=update), f"{name}.{candidate}", widening)
    raise KeyError(f"no family has {model.name} parameters for {variant}")
