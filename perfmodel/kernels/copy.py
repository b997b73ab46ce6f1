"""Time of a copy in the accelerator's memory, down to a kernel that does nothing: a memory kernel told by its bytes."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from hardware.efficiency import MemoryParameters
from perfmodel.kernels import memory
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import Array


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows, timed back to back: bytes read and written together."""
    return memory.stream_shapes(frame["bytes"].to_numpy(float), warm=True)


def variants(frame: pd.DataFrame) -> pd.Series[str]:
    """Return the variant of every row: that of copies."""
    return pd.Series(memory.VARIANTS["copy"], index=frame.index)


def time(shapes: Mapping[str, Array], device: Device, parameters: MemoryParameters) -> tuple[Array, Array]:
    """Return seconds of the kernel and what bounds it, as ``perfmodel.kernels.memory.time``."""
    return memory.time(shapes, device, parameters)


MODEL = KernelModel("memory", ("device", "bytes"), MemoryParameters, shapes, time, memory.roofline)
