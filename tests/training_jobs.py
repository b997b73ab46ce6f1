"""Jobs whose constants are all written here, so that no expected value depends on a calibration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hardware.catalogue import Machine, find, resolve_cluster
from hardware.efficiency import KernelParameters
from hardware.topology import Level, levels
from perfmodel.architecture import Architecture, load_architecture
from perfmodel.calibration import Constants
from perfmodel.collectives import CollectiveModel, LinkEfficiency
from perfmodel.framework import Framework
from perfmodel.job import MODELS, Job, kernel_names, kernels_of
from perfmodel.kernels.gemm import FORMS
from perfmodel.kernels.work import Kernel
from perfmodel.plan import DEFAULTS, Plan, plan_from_rows

PEAK = 1e15
BANDWIDTH = 3e12


class RooflineKernels(dict[str, Kernel]):
    """Every kernel as fast as arithmetic and memory allow: the models' own rooflines, and no launch."""

    def __missing__(self, name: str) -> Kernel:
        (model,) = (model for model in MODELS if model.name == name.split(".")[0])

        def time(shapes: Any, device: Any, parameters: Any) -> tuple[Any, Any]:
            seconds = np.asarray(model.roofline(shapes, device))
            return seconds, np.zeros(seconds.shape, np.int8)

        self[name] = Kernel(replace(model, time=time), KernelParameters(spread=0.0))
        return self[name]


def measured_kernels(model: Architecture, precision: str = "bf16") -> dict[str, Kernel]:
    """Kernels with parameters away from every neutral value, so that nothing drops out."""
    return kernels_of(find("accelerator", "h100-80gb-sxm"), kernel_names(model, FORMS[precision]))


def collectives(launch_s: float = 0.0, **link: float) -> CollectiveModel:
    """One link efficiency for all types; without arguments every collective is latency + bytes / rate."""
    known = LinkEfficiency(**{"step": 0.0, "bandwidth": 1.0, **link})
    types = ("nvswitch", "xgmi", "infiniband", "slingshot")
    return CollectiveModel(launch_s, dict.fromkeys(types, known))


def tower(*rows: tuple[int, float, float]) -> tuple[Level, ...]:
    """Levels of (ranks, bandwidth [B/s], latency [s]), from the inside out."""
    types = ("nvswitch", "infiniband", "infiniband")
    return tuple(Level(f"level {i}", *row, types[i]) for i, row in enumerate(rows))


def machine(nodes: int = 8, *, memory: float = 80e9, host: bool = True, **fabric: Any) -> Machine:
    """Nodes of eight accelerators with 450 GB/s inside and 50 GB/s outside a node, and host memory behind 25 GB/s."""
    chip = {
        "name": "chip", "vendor": "v", "architecture": "a", "peak": {"bf16": PEAK}, "units": 100, "clock": 1e9,
        "memory": {"capacity": memory, "bandwidth": BANDWIDTH}, "power": {"limit": 1.0},
    }  # fmt: skip
    tier = {"name": "ddr", "capacity": 1e12, "read": 2e11, "write": 2e11, "latency": 1e-7, "link": "pcie"}
    node = {
        "name": "box",
        "accelerators": {"type": chip, "count": 8},
        "links": [
            {"name": "nvlink", "type": "nvswitch", "bandwidth": 450e9, "latency": 1e-6},
            {"name": "pcie", "type": "pcie", "bandwidth": 25e9},
        ],
        "nics": {"count": 8, "bandwidth": 50e9, "protocol": "infiniband"},
        "tiers": [tier] if host else [],
    }
    described = {"name": "c", "node": node, "nodes": nodes, "fabric": {"type": "rail-optimised", **fabric}}
    return resolve_cluster(described, Path())


def framework(**changes: Any) -> Framework:
    """Flash attention without dropout, 2 + 4 + 12 bytes per parameter, nothing on the host."""
    fields: dict[str, Any] = {
        "kind": "framework",
        "name": "written here",
        "attention": "flash",
        "states": {"weight": 2, "gradient": 4, "optimizer": 12, "gradient_traffic": 4},
        "host_per_kernel": 0.0,
        "reserve": {"context": 0, "fragmentation": 0.0},
    }
    return Framework.model_validate(fields | changes)


SC21 = framework(attention="unfused", dropout=True)
"""What Megatron-LM computed and kept in 2021 and 2022."""


def architecture(name: str) -> Architecture:
    return load_architecture(name, Path())


def job(
    model: Architecture | str,
    *,
    ranks: int = 64,
    seq_len: int = 2048,
    global_batch: int = 256,
    runs: Framework | None = None,
    links: CollectiveModel | None = None,
    on: Machine | None = None,
    **changes: Any,
) -> Job:
    """A 16-bit job; without further words every kernel runs at the roofline and communication costs bytes / rate."""
    on = on or machine(max(ranks // 8, 1))
    found = Job(
        architecture(model) if isinstance(model, str) else model,
        on,
        ranks,
        seq_len,
        global_batch,
        "bf16",
        runs or framework(),
        levels(on, ranks),
        RooflineKernels(),
        links or collectives(),
        Constants(
            attention_backward=1.0,
            sustained=1.0,
            expert_products=1.0,
            overlap_slowdown=1.0,
            host_softness=3.0,
        ),
    )
    return replace(found, **changes)


def plans(*rows: dict[str, Any]) -> Plan:
    """Plans by what differs from the defaults; a single rank unless sizes are given."""
    return plan_from_rows([{**DEFAULTS, "dp": 1, **row} for row in rows])
