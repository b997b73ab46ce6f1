"""Kernels that a step runs: model, variant of its parameters and shapes; and their times, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hardware.efficiency import KernelParameters
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import LATENCY, Array, Number


@dataclass(frozen=True)
class Kernel:
    """A kernel model with the parameters of one variant on one device.

    Parameters
    ----------
    model : KernelModel
        The model.
    parameters : KernelParameters
        Its parameters.
    origin : str
        Where they come from, such as ``hopper.bf16``.
    widening : float
        Part of their spread that is there because they are not the device's or its family's own.
    """

    model: KernelModel
    parameters: KernelParameters
    origin: str = ""
    widening: float = 0.0


@dataclass(frozen=True)
class Work:
    """A kernel of some shapes.

    Parameters
    ----------
    kernel : str
        Model and variant, such as ``gemm.bf16``.
    shapes : mapping of str to array
        What the model's `time` takes.
    times : array
        How often its busy time counts: 2.5 for a kernel that does two and a half times the work.
    launches : array
        How often its launch counts.
    """

    kernel: str
    shapes: Mapping[str, Array]
    times: Number = 1.0
    launches: Number = 1.0


def timed(works: Sequence[Work], device: Device, kernels: Mapping[str, Kernel]) -> list[tuple[Array, Array]]:
    """Return seconds and bound (index into ``terms.BOUNDS``) of every kernel.

    Parameters
    ----------
    works : sequence of Work
        The kernels; shapes of each broadcast among themselves.
    device : Device
        Where they run.
    kernels : mapping of str to Kernel
        By the names that the works use.

    Notes
    -----
    launches t_0 + times (t - t_0), t the model's time and t_0 its launch. Every model is called once, with the shapes
    of all its kernels one after another.
    """
    found: list[Any] = [None] * len(works)
    for name in dict.fromkeys(work.kernel for work in works):
        chosen = [number for number, work in enumerate(works) if work.kernel == name]
        kernel = kernels[name]
        launch_s = kernel.parameters.launch_s(device.streaming_clock)
        forms = [np.broadcast_shapes(*map(np.shape, works[number].shapes.values())) for number in chosen]
        ends = np.cumsum([int(np.prod(form, dtype=int)) for form in forms])
        joined: dict[str, Array] = {}
        for column in works[chosen[0]].shapes:
            values = [works[number].shapes[column] for number in chosen]
            joined[column] = np.empty(ends[-1], np.result_type(*values))
            start = 0
            for value, form, end in zip(values, forms, ends, strict=True):
                joined[column][start:end] = value if np.ndim(value) == 0 else np.broadcast_to(value, form).ravel()
                start = end
        seconds, bounds = kernel.model.time(joined, device, kernel.parameters)
        start = 0
        for number, form, end in zip(chosen, forms, ends, strict=True):
            work = works[number]
            busy = work.times * (seconds[start:end].reshape(form) - launch_s)
            waiting = work.launches * launch_s
            bound = np.where(waiting > busy, LATENCY, bounds[start:end].reshape(form)).astype(np.int8)
            found[number] = (np.asarray(waiting + busy), bound)
            start = end
    return found
