"""A training job: an architecture, a workload, a machine and a framework, with the constants that cost it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from hardware.catalogue import Machine, find
from hardware.schema import Accelerator, Efficiency, EfficiencyFamily, OperatorEfficiency
from hardware.topology import Level, levels
from perfmodel.architecture import Architecture
from perfmodel.calibration import Constants, training_constants
from perfmodel.collectives import CollectiveModel, collective_model
from perfmodel.framework import Framework
from perfmodel.operators import peak_flops

PRECISIONS: dict[str, tuple[str, float]] = {
    "bf16": ("bf16", 2),
    "fp16": ("fp16", 2),
    "fp32": ("fp32", 4),
    "fp8": ("fp8", 1),
    "mxfp8": ("fp8", 1),
    "nvfp4": ("fp4", 0.5625),
}
"""Precision of a run -> type of its matrix products and bytes of an element of their factors (NVFP4: 4 bits and a
byte of scale for 16 elements)."""


@dataclass(frozen=True)
class Kind:
    """A class of operators on one accelerator: the peak [FLOP/s] it runs against and its efficiencies."""

    peak: float
    efficiency: OperatorEfficiency


@dataclass(frozen=True)
class Job:
    """Everything about a training step but the plan.

    Parameters
    ----------
    architecture : Architecture
        The model.
    machine : Machine
        Accelerator, node, cluster and number of nodes.
    ranks : int
        Accelerators the job runs on.
    seq_len, global_batch : int
        Tokens of a sequence and sequences of an optimizer step.
    precision : str
        A key of ``PRECISIONS``.
    framework : Framework
        The training framework.
    """

    architecture: Architecture
    machine: Machine
    ranks: int
    seq_len: int
    global_batch: int
    precision: str
    framework: Framework
    levels: tuple[Level, ...] = ()
    kinds: dict[str, Kind] = field(default_factory=dict)
    collectives: CollectiveModel = field(default_factory=collective_model)
    constants: Constants = field(default_factory=training_constants)
    families: tuple[str, ...] = ()

    @property
    def element_bytes(self) -> float:
        """Bytes of an element of a matrix product's factors."""
        return PRECISIONS[self.precision][1]

    @property
    def peak(self) -> float:
        """Dense peak of the type of the matrix products [FLOP/s]."""
        return self.kinds["gemm"].peak

    @property
    def bandwidth(self) -> float:
        """Memory bandwidth [bytes/s]."""
        return self.machine.accelerator.memory.bandwidth


@lru_cache(maxsize=64)
def family_efficiency(name: str) -> tuple[Efficiency, tuple[str, ...]]:
    """Return a family's efficiencies, what it lacks taken from the family it inherits, and the families used."""
    family = find("efficiency", name)
    assert isinstance(family, EfficiencyFamily)
    own = family.operators
    if family.inherits is None:
        return own, (name,)
    inherited, chain = family_efficiency(family.inherits)
    merged = {}
    for key in OPERATOR_CLASSES:
        value = getattr(own, key)
        if value is None and (parent := getattr(inherited, key)) is not None:
            value = parent.model_copy(update={"spread": (parent.spread**2 + family.widen**2) ** 0.5})
        merged[key] = value
    return own.model_copy(update=merged), (name, *chain)


OPERATOR_CLASSES = ("gemm", "gemm_fp8", "gemm_fp4", "attention", "attention_backward", "moe", "elementwise")


def sustained_share(accelerator: Accelerator, reference: str | None, exponent: float) -> float:
    """Return what an accelerator keeps of the share of peak measured on the reference of its family.

    Notes
    -----
    min(1, (watts per peak FLOP/s over the reference's)^exponent): long matrix products run against the power limit, and
    dynamic power grows with about the cube of the clock. The exponent is fitted on training runs under power caps
    (``python benchmarks/fit_operators.py``).
    """
    if reference is None:
        return 1.0
    measured = find("accelerator", reference)
    ours = accelerator.power.limit / peak_flops(accelerator, "bf16")
    theirs = measured.power.limit / peak_flops(measured, "bf16")
    return float(min(1.0, (ours / theirs) ** exponent))


def operator_kinds(
    machine: Machine, precision: str, attention_share: float, constants: Constants
) -> tuple[dict[str, Kind], tuple[str, ...]]:
    """Return the classes of operators on a machine, and the families whose efficiencies they rest on.

    Parameters
    ----------
    machine : Machine
        Its accelerator is looked up by architecture family; efficiencies of its own go first.
    precision : str
        A key of ``PRECISIONS``.
    attention_share : float
        Speed of the framework's attention kernels over that of the measured ones.
    constants : Constants
        Constants of a training step.

    Raises
    ------
    ValueError
        Where the accelerator has no arithmetic of the precision.
    """
    accelerator = machine.accelerator
    family, chain = family_efficiency(accelerator.architecture)
    reference = find("efficiency", accelerator.architecture).reference
    sustained = sustained_share(accelerator, reference, constants.power_exponent)
    if accelerator.efficiency is not None:
        own = {key: value for key in OPERATOR_CLASSES if (value := getattr(accelerator.efficiency, key)) is not None}
        if "gemm" in own:  # measured on the accelerator itself: at its own power limit, and no family's spread
            sustained, chain = 1.0, chain[-1:]
        family = family.model_copy(update=own)
    gemm, attention, elementwise = family.gemm, family.attention, family.elementwise
    assert gemm is not None
    assert attention is not None
    assert elementwise is not None
    dtype, _ = PRECISIONS[precision]
    wide = "fp16" if precision == "fp16" else "bf16"
    peak, wide_peak = peak_flops(accelerator, dtype), peak_flops(accelerator, wide if precision != "fp32" else "fp32")
    linear = gemm
    if dtype in ("fp8", "fp4"):
        # an unmeasured type takes the shares of the nearest measured one; fp8 is measured on Hopper
        low = (family.gemm_fp4 if dtype == "fp4" else None) or family.gemm_fp8 or _hopper_fp8()
        linear = low
    backward = family.attention_backward or _slowed(attention, constants.attention_backward)
    streaming = elementwise.memory * constants.elementwise_memory
    kinds = {
        "gemm": Kind(peak, _slowed(linear, sustained)),
        "gemm16": Kind(wide_peak, _slowed(gemm, sustained)),
        "moe": Kind(peak, _slowed(family.moe or _slowed(linear, constants.expert_products), sustained)),
        "attention": Kind(wide_peak, _slowed(attention, sustained * attention_share)),
        "attention_backward": Kind(wide_peak, _slowed(backward, sustained * attention_share)),
        "elementwise": Kind(wide_peak, elementwise.model_copy(update={"memory": min(streaming, 1.0)})),
    }
    return kinds, chain


def _slowed(efficiency: OperatorEfficiency, share: float) -> OperatorEfficiency:
    return efficiency.model_copy(update={"compute": efficiency.compute * share})


def _hopper_fp8() -> OperatorEfficiency:
    fp8 = family_efficiency("hopper")[0].gemm_fp8
    assert fp8 is not None
    return fp8


def job(
    architecture: Architecture,
    machine: Machine,
    *,
    ranks: int,
    seq_len: int,
    global_batch: int,
    precision: str,
    framework: Framework,
) -> Job:
    """Return the job with the constants of its machine looked up.

    Raises
    ------
    ValueError
        Where the accelerator has no arithmetic of the precision asked for.
    """
    model = collective_model()
    constants = training_constants()
    kinds, families = operator_kinds(machine, precision, framework.attention_share, constants)
    in_network = bool(set(families) & set(model.in_network_families))
    found = tuple(
        replace(level, type="nvswitch-ring") if level.type == "nvswitch" and not in_network else level
        for level in levels(machine, ranks)
    )
    return Job(
        architecture,
        machine,
        ranks,
        seq_len,
        global_batch,
        precision,
        framework,
        found,
        kinds,
        model,
        constants,
        families,
    )
