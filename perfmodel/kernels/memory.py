"""Time of kernels that only move memory: norm, activation, rotation, addition, look-up, sampling, optimizer, copy.

A kernel takes R rows of b bytes (read and written together). Those that reduce over a row or share factors along it
give each row to one block of threads, whose time is the latency of walking along it; rows beyond those that the units
hold at a time wait in waves. What is moved again and again, and fits, comes from the L2 cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import MemoryParameters
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import LATENCY, MEMORY, Array, Number

MOVED = {
    "norm": 2.0,  # row in, row out
    "add_norm": 4.0,  # row and residual in, both out
    "activation": 2.0,
    "gated_activation": 3.0,  # gate and up in
    "rotation": 2.0,
    "add": 3.0,  # two in, one out
    "embedding": 2.0,  # one row of the table in, out
    "sampling": 3.0,  # softmax over the vocabulary: logits in twice (largest, sum), probabilities out
    "copy": 2.0,
}
"""Elements that a kernel moves for each of a row of its result."""

VARIANTS = {
    "norm": "norm",
    "add_norm": "norm",
    "activation": "activation",
    "gated_activation": "activation",
    "rotation": "rotation",
    "add": "stream",
    "embedding": "stream",
    "sampling": "stream",
    "copy": "stream",
    "optimizer": "stream",
}
"""Variant of parameters of a kernel."""

LAYER_COLUMNS = {
    "us_input_layernorm": "norm",
    "us_post_attention_layernorm": "norm",
    "us_attn_rope": "rotation",
    "us_mlp_act": "gated_activation",
    "us_add": "add",
}
"""Columns of times of the pieces of a layer, and the kernel each is."""


def shapes_of(kernel: str, rows: Number, width: Number, element_bytes: float = 2.0) -> dict[str, Array]:
    """Return the inputs of `time` for a kernel of a model, nothing of it warm.

    Parameters
    ----------
    kernel : str
        One of ``MOVED``.
    rows, width : int or array
        Rows of the result (tokens) and elements of one: of a rotation those of all heads that are turned, of sampling
        the vocabulary.
    element_bytes : float
        Bytes of an element.
    """
    return _arrays(rows=rows, row_bytes=MOVED[kernel] * element_bytes * np.asarray(width, float), warm=False)


def optimizer_shapes(parameters: Number, bytes_per_parameter: float) -> dict[str, Array]:
    """Return the inputs of `time` for an optimizer's update on one rank.

    Parameters
    ----------
    parameters : int or array
        Parameters that the rank updates.
    bytes_per_parameter : float
        Read and written: Adam in mixed precision reads a gradient (2 or 4 bytes), reads and writes a master weight and
        two moments (24), and writes the weight (2): 28 or 30 (Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3.1).
    """
    return stream_shapes(np.asarray(parameters, float) * bytes_per_parameter)


def stream_shapes(size: Number, *, warm: bool = False) -> dict[str, Array]:
    """Return the inputs of `time` for `size` bytes, read and written together, that no row divides: blocks of 4 KiB."""
    return _arrays(rows=np.ceil(np.asarray(size, float) / 4096.0), row_bytes=4096.0, warm=warm)


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows, which were timed back to back: what fits in L2 is warm."""
    moved = frame["kernel"].map(MOVED).to_numpy(float)
    return _arrays(
        rows=frame["num_tokens"].to_numpy(float),
        row_bytes=2.0 * moved * frame["width"].to_numpy(float),
        warm=True,
    )


def variants(frame: pd.DataFrame) -> Array:
    """Return the variant of every row."""
    return frame["kernel"].map(VARIANTS).to_numpy(object)


def kernels_of_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row a kernel, as `shapes` takes them, of a table that has the pieces of a layer side by side."""
    head = frame["n_embd"] / frame["n_head"]
    turned = (frame["n_head"] + frame["n_kv_head"]) * head / frame["tp"]
    widths = {
        "norm": frame["n_embd"].astype(float),
        "add": frame["n_embd"].astype(float),
        "rotation": turned,
        "gated_activation": frame["n_expanded_embd"] / frame["tp"],
    }
    parts = [
        frame[["device", "num_tokens"]].assign(kernel=kernel, width=widths[kernel], us_ref=frame[column])
        for column, kernel in LAYER_COLUMNS.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _arrays(**values: Any) -> dict[str, Array]:
    return dict(zip(values, np.broadcast_arrays(*values.values()), strict=True))


def time(shapes: Mapping[str, Array], device: Device, parameters: MemoryParameters) -> tuple[Array, Array]:
    """Return seconds of the kernel and what bounds it.

    Notes
    -----
    With R rows of b bytes::

        t   = t0 + t_m + t_w
        t_m = R b / (e_m bandwidth) (1 - hit + hit/gain),   hit = clip(3/2 - R b/L2, 0, 1), 0 where cold
        t_w = max(1, R/(resident units)) c b/clock
    """
    rows, row_bytes = shapes["rows"], shapes["row_bytes"]
    size = rows * row_bytes
    hit = np.where(shapes["warm"], np.clip(1.5 - size / device.l2, 0.0, 1.0), 0.0)
    stream = size / (parameters.memory * device.bandwidth) * (1.0 - hit + hit / parameters.warm_gain)
    waves = np.maximum(rows / (parameters.resident * device.units), 1.0)
    walk = waves * parameters.row_clocks * row_bytes / device.streaming_clock
    launch = parameters.launch_us * 1e-6
    bound = np.where(np.maximum(launch, walk) > stream, LATENCY, MEMORY)
    return launch + stream + walk, bound.astype(np.int8)


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return bytes/bandwidth [s]."""
    seconds: Array = shapes["rows"] * shapes["row_bytes"] / device.bandwidth
    return seconds


COLUMNS = ("device", "kernel", "num_tokens", "width")

MODEL = KernelModel("memory", COLUMNS, MemoryParameters, shapes, time, roofline)
