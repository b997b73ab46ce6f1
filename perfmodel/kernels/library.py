"""The parameters of a kernel model on a device: its own, its family's, or another family's with a wider interval.

They live in ``hardware/catalog/kernels/<model>.yaml``:

    kind: kernel
    name: gemm
    families:                       # architecture family -> variant (a type, or a kernel library's form of it)
      hopper: {bf16: {...}, fp8: {...}}
      ampere: {bf16: {...}}
    provenance: {hopper.bf16: {source, date, evidence}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hardware.catalogue import find
from hardware.efficiency import KernelParameters
from hardware.schema import Accelerator, Provenance
from hardware.yaml_source import read_yaml, validated
from perfmodel.kernels.model import KernelModel

STANDS_IN = {
    "fp16": ("bf16",),
    "int8": ("fp8",),
    "fp8": ("fp8_block",),
    "fp8_block": ("fp8",),
    "fp4": ("fp8", "fp8_block"),
}
"""Variants whose parameters another takes where it has none."""

BORROWED_WIDEN = 0.2
"""Added in quadrature to the spread of a variant that stands in for another."""

FOREIGN_WIDEN = 0.25
"""The same for parameters of a family that the device's own does not inherit from."""


@dataclass(frozen=True)
class Found:
    """Parameters of a kernel model on a device.

    Parameters
    ----------
    parameters : KernelParameters
        The parameters; their spread is widened where they are not the device's or its family's own.
    origin : str
        Where they come from, such as ``hopper.bf16``.
    """

    parameters: KernelParameters
    origin: str


@lru_cache(maxsize=16)
def families(model: KernelModel) -> dict[str, dict[str, KernelParameters]]:
    """Return the shipped parameters of a model, by family and variant."""
    name = f"{model.name}.yaml"
    path = files("hardware").joinpath("catalog").joinpath("kernels").joinpath(name)
    source = read_yaml(path.read_text(encoding="utf-8"), name)
    found: dict[str, dict[str, KernelParameters]] = {}
    for family, variants in source.data["families"].items():
        found[family] = {
            variant: validated(model.parameters, source, ("families", family, variant)) for variant in variants
        }
    for key in source.data.get("provenance", {}):
        validated(Provenance, source, ("provenance", key))
    return found


def own_parameters(model: KernelModel, accelerator: Accelerator) -> Mapping[str, KernelParameters]:
    """Return the parameters that an accelerator's own description holds, by variant."""
    efficiency = accelerator.efficiency
    kernels = efficiency.kernels if efficiency is not None else None
    found: Mapping[str, KernelParameters] = getattr(kernels, model.name, None) or {}
    return found


def parameters_of(
    model: KernelModel, accelerator: Accelerator, variant: str, own: Mapping[str, Any] | None = None
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
        Parameters of the device itself, by variant, from ``calibrate``; they go first.
        Those of its description if left out.

    Raises
    ------
    KeyError
        Where no family has the variant or one that stands in for it.
    """
    if own is None:
        own = own_parameters(model, accelerator)
    if variant in own:
        return Found(model.parameters.model_validate(own[variant]), f"{accelerator.name}.{variant}")
    known = families(model)
    chain, widen = [], 0.0
    family = find("efficiency", accelerator.architecture)
    while True:
        chain.append((family.name, widen))
        if family.inherits is None:
            break
        widen = (widen**2 + family.widen**2) ** 0.5
        family = find("efficiency", family.inherits)
    others = [(name, max(widen, FOREIGN_WIDEN)) for name in known if name not in dict(chain)]
    for candidate, extra in ((variant, 0.0), *((other, BORROWED_WIDEN) for other in STANDS_IN.get(variant, ()))):
        for name, wider in (*chain, *others):
            parameters = known.get(name, {}).get(candidate)
            if parameters is not None:
                spread = (parameters.spread**2 + wider**2 + extra**2) ** 0.5
                return Found(parameters.model_copy(update={"spread": spread}), f"{name}.{candidate}")
    raise KeyError(f"no family has {model.name} parameters for {variant}")
