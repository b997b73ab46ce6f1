"""Time of a copy in the accelerator's memory, and of a kernel that does nothing: launch and stream."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hardware.efficiency import CopyParameters
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import LATENCY, MEMORY, Array


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows: bytes read and written together."""
    return {"bytes": frame["bytes"].to_numpy(float)}


def time(shapes: Mapping[str, Array], device: Device, parameters: CopyParameters) -> tuple[Array, Array]:
    """Return seconds of the kernel and what bounds it.

    Notes
    -----
    t = t0 + bytes / (e_m bandwidth), the postal form of Hockney, Parallel Computing 20 (1994).
    """
    launch = parameters.launch_us * 1e-6
    stream = shapes["bytes"] / (parameters.memory * device.bandwidth)
    return launch + stream, np.where(stream > launch, MEMORY, LATENCY).astype(np.int8)


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return bytes/bandwidth [s]."""
    seconds: Array = shapes["bytes"] / device.bandwidth
    return seconds


MODEL = KernelModel("copy", ("device", "bytes"), CopyParameters, shapes, time, roofline)
