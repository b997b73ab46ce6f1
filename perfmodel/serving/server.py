"""A model on a machine under an engine: everything about a step but how it is spread and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from hardware.catalogue import Machine, families_of
from hardware.topology import Level, levels
from perfmodel.architecture import Architecture, Attention
from perfmodel.collectives import CollectiveModel, machine_model
from perfmodel.kernels import decode, gemm, memory, moe, prefill
from perfmodel.kernels.library import parameters_of
from perfmodel.kernels.model import Device, KernelModel, device_of
from perfmodel.kernels.work import Kernel
from perfmodel.operators import peak_flops, wide
from perfmodel.serving.engine import Engine
from perfmodel.serving.overlap import Overlap
from perfmodel.terms import Number

PRECISIONS = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "int8": "int8",
    "fp4": "fp4",
    "nvfp4": "fp4",
    "mxfp4": "mxfp4",
    "mxfp4_wo": "mxfp4_weight",
    "int4": "int4_weight",
    "int8_wo": "int8_weight",
    "int4_wo": "int4_weight",
}
"""Precision of weights -> form of the matrix products (``perfmodel.kernels.gemm.FORMS``)."""

_SCALES = 2 * 2 / 128
CACHE_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 4 / 8 + _SCALES,
    "int3": 3 / 8 + _SCALES,
    "int2": 2 / 8 + _SCALES,
}
"""Bytes of an element of the cache of keys and values; those below 8 bits with a scale and a zero point of 16 bits for
each group of 128."""

MODELS: tuple[KernelModel, ...] = (gemm.MODEL, prefill.MODEL, decode.MODEL, moe.MODEL, memory.MODEL)

Elsewhere = Callable[..., tuple[Number, Number]]
"""Time of a part of a step that does not run, or not only, on the accelerators: see `perfmodel.serving.elsewhere`."""


@dataclass(frozen=True)
class Server:
    """A model on a machine under an engine.

    Parameters
    ----------
    architecture : Architecture
        The model.
    machine : Machine
        Where it runs.
    engine : Engine
        What runs it.
    precision_weights, precision_kv : str
        Keys of ``PRECISIONS`` and ``CACHE_BYTES``.
    levels : tuple of Level
        What its ranks talk over.
    kernels : mapping of str to Kernel
        Models and parameters of its kernels.
    collectives : CollectiveModel
        Constants of collectives.
    captured : bool
        Whether the engine's release captures steps without prompts as graphs.
    overhead_factor : float
        Its overheads of steps over the engine's.
    layered : bool
        Whether prompts advance by groups of layers, whole, instead of by pieces through all layers (layered prefill,
        arXiv 2510.08055).
    overlap : str
        What runs beside what in a step (`perfmodel.serving.overlap`).
    units_share, bandwidth_share : float
        Shares of every accelerator's compute units, with their arithmetic, and of its memory's bandwidth that it has.
    elsewhere : mapping of str to callable
        Parts of a step that run, or whose weights live, outside the accelerators (`perfmodel.serving.elsewhere`).
    """

    architecture: Architecture
    machine: Machine
    engine: Engine
    precision_weights: str
    precision_kv: str
    levels: tuple[Level, ...]
    kernels: Mapping[str, Kernel]
    collectives: CollectiveModel
    captured: bool = True
    overhead_factor: float = 1.0
    layered: bool = False
    overlap: Overlap = "none"
    units_share: float = 1.0
    bandwidth_share: float = 1.0
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)

    @cached_property
    def form(self) -> gemm.Form:
        """Form of the matrix products; norms and activations quantise in passing."""
        return replace(gemm.FORMS[PRECISIONS[self.precision_weights]], quantisation_bytes=0.0)

    @cached_property
    def device(self) -> Device:
        """The accelerator, or its part, as kernel models know it."""
        whole = device_of(self.machine.accelerator)
        if self.units_share == self.bandwidth_share == 1.0:
            return whole
        return replace(
            whole,
            peak={name: peak * self.units_share for name, peak in whole.peak.items()},
            units=max(round(whole.units * self.units_share), 1),
            bandwidth=whole.bandwidth * self.bandwidth_share,
        )

    @property
    def cache_bytes(self) -> float:
        """Bytes of an element of the cache."""
        return CACHE_BYTES[self.precision_kv]


def kernel_names(architecture: Architecture, form: gemm.Form, cache_bytes: float) -> tuple[str, ...]:
    """Return model and variant of every kernel that a step may run."""
    found = [f"gemm.{form.variant}", f"gemm.{wide(form).variant}", f"moe.{form.variant}"]
    for group in architecture.layers:
        if group.attention.kind != "linear":
            found.append(f"prefill.{prefill.variant_of(group.attention.qk_head_dim)}")
            found.append(f"decode.{decode_variant(group.attention, cache_bytes)}")
    found += [f"memory.{variant}" for variant in dict.fromkeys(memory.VARIANTS.values())]
    return tuple(dict.fromkeys(found))


def decode_variant(attention: Attention, cache_bytes: float) -> str:
    """Return the variant of the decode kernels of a layer."""
    return decode.variant_of(attention.qk_head_dim, cache_bytes, latent=attention.kind == "mla")


def without_windows(architecture: Architecture) -> Architecture:
    """Return a model whose layers all see every token before."""
    layers = tuple(replace(layer, attention=replace(layer.attention, window=0)) for layer in architecture.layers)
    return replace(architecture, layers=layers)


def server(
    architecture: Architecture,
    machine: Machine,
    engine: Engine,
    *,
    precision_weights: str = "bf16",
    precision_kv: str | None = None,
    release: str | None = None,
) -> Server:
    """Return a server with the constants of its machine looked up.

    Parameters
    ----------
    precision_kv : str
        Type of the cache; the engine's default for the weights if left out.
    release : str
        Release of the engine; any if left out.

    Raises
    ------
    ValueError
        Where the accelerator has no arithmetic of the precision asked for.
    """
    form = gemm.FORMS[PRECISIONS[precision_weights]]
    peak_flops(machine.accelerator, form.arithmetic)
    if precision_kv is None:
        narrow = form.weight_bytes <= 1.1 and not form.unpacked
        precision_kv = "fp8" if engine.defaults.cache_as_weights and narrow else "bf16"
    if not engine.windows:
        architecture = without_windows(architecture)
    model = machine_model(machine)
    in_network = bool(set(families_of(machine.accelerator.architecture)) & set(model.in_network_families))
    found = tuple(
        replace(level, type="nvswitch-ring") if level.type == "nvswitch" and not in_network else level
        for level in levels(machine)
    )
    models = {one.name: one for one in MODELS}
    kernels = {}
    for name in kernel_names(architecture, form, CACHE_BYTES[precision_kv]):
        kind, variant = name.split(".")
        known = parameters_of(models[kind], machine.accelerator, variant)
        kernels[name] = Kernel(models[kind], known.parameters, known.origin, known.widening)
    named = release or ""
    factor = engine.release_overhead.get(named, 1.0)
    return Server(
        architecture,
        machine,
        engine,
        precision_weights,
        precision_kv,
        found,
        kernels,
        model,
        named not in engine.uncaptured,
        factor,
    )
