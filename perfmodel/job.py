"""A training job: an architecture, a workload, a machine and a framework, with the kernels that cost it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from hardware.catalogue import Machine, families_of
from hardware.schema import Accelerator
from hardware.topology import Level, levels
from perfmodel.architecture import Architecture
from perfmodel.calibration import Constants, training_constants
from perfmodel.collectives import CollectiveModel, collective_model, machine_model
from perfmodel.framework import Framework
from perfmodel.kernels import gemm, memory, prefill
from perfmodel.kernels.library import parameters_of
from perfmodel.kernels.model import Device, KernelModel, device_of
from perfmodel.kernels.work import Kernel
from perfmodel.operators import peak_flops, wide

PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "fp8": "fp8", "mxfp8": "mxfp8", "nvfp4": "fp4"}
"""Precision of a run -> form of its matrix products (``perfmodel.kernels.gemm.FORMS``)."""

MODELS: tuple[KernelModel, ...] = (gemm.MODEL, prefill.MODEL, memory.MODEL)
"""Models of the kernels of a step."""


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
    levels : tuple of Level
        What its ranks talk over.
    kernels : mapping of str to Kernel
        Models and parameters of the kernels, such as ``gemm.bf16``.
    collectives : CollectiveModel
        Constants of collectives.
    constants : Constants
        Constants of a step.
    """

    architecture: Architecture
    machine: Machine
    ranks: int
    seq_len: int
    global_batch: int
    precision: str
    framework: Framework
    levels: tuple[Level, ...] = ()
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    collectives: CollectiveModel = field(default_factory=collective_model)
    constants: Constants = field(default_factory=training_constants)

    @cached_property
    def form(self) -> gemm.Form:
        """Form of the matrix products; casting their factors to it is an operator of its own."""
        return replace(gemm.FORMS[PRECISIONS[self.precision]], quantisation_bytes=0.0)

    @cached_property
    def device(self) -> Device:
        """The accelerator as kernel models know it."""
        return device_of(self.machine.accelerator)

    @property
    def peak(self) -> float:
        """Dense peak of the type of the matrix products [FLOP/s]."""
        return peak_flops(self.machine.accelerator, self.form.arithmetic)

    @property
    def wide_peak(self) -> float:
        """Dense peak of the type of the products that stay in 16 bits [FLOP/s]."""
        return peak_flops(self.machine.accelerator, wide(self.form).arithmetic)

    @property
    def speeds(self) -> dict[str, float]:
        """Speed of a class of operators in the forward pass over that of the kernels measured alone."""
        sustained = self.constants.sustained
        return {
            "gemm": sustained,
            "gemm16": sustained,
            "attention": sustained * self.framework.attention_share,
            "moe": sustained * self.constants.expert_products,
        }

    @property
    def backward_speeds(self) -> dict[str, float]:
        """The same in the backward pass."""
        forward = self.speeds
        return forward | {"attention": forward["attention"] * self.constants.attention_backward}


def kernel_names(architecture: Architecture, form: gemm.Form) -> tuple[str, ...]:
    """Return model and variant of every kernel that a step may run."""
    found = [f"gemm.{form.variant}", f"gemm.{wide(form).variant}"]
    for group in architecture.layers:
        found.append(f"prefill.{prefill.variant_of(group.attention.qk_head_dim)}")
    found += [f"memory.{variant}" for variant in dict.fromkeys(memory.VARIANTS.values())]
    return tuple(dict.fromkeys(found))


def kernels_of(accelerator: Accelerator, names: tuple[str, ...]) -> dict[str, Kernel]:
    """Return the kernels of these names with their parameters on an accelerator."""
    models = {model.name: model for model in MODELS}
    found = {}
    for name in names:
        model_name, variant = name.split(".")
        model = models[model_name]
        known = parameters_of(model, accelerator, variant)
        parameters = known.parameters
        if model is prefill.MODEL:  # a library of serving writes keys and values to a cache and reads them back
            parameters = parameters.model_copy(update={"key_value_passes": 1.0})
        found[name] = Kernel(model, parameters, known.origin, known.widening)
    return found


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
    model = machine_model(machine)
    form = gemm.FORMS[PRECISIONS[precision]]
    peak_flops(machine.accelerator, form.arithmetic)
    in_network = bool(set(families_of(machine.accelerator.architecture)) & set(model.in_network_families))
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
        kernels_of(machine.accelerator, kernel_names(architecture, form)),
        model,
    )
