"""Time of causal attention over new tokens, after tokens that may be cached already.

Symbols: b sequences, s new tokens and c tokens cached before them of each, h query heads, k key-value heads, d and v
widths of a key and a value. Work comes in square tiles of queries by keys (Dao, "FlashAttention-2", arXiv 2307.08691,
section 3; Shah et al., "FlashAttention-3", arXiv 2407.08608): a row of tiles, one sequence, head and block of queries,
belongs to one unit. Query heads that share keys fill a row of tiles together where their sequences are short.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import PrefillParameters
from perfmodel.architecture import Attention
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import COMPUTE, LATENCY, MEMORY, Array, Number

TILE, WIDE_TILE, WIDEST = 128, 32, 256
"""Queries and keys of a tile, up to `WIDEST` and beyond. A tile's results stay in registers, 4 bytes each: 128 rows of
256 take half of a multiprocessor's 256 KiB (NVIDIA CUDA programming guide, compute capabilities), 128 of 512 all of it.
SGLang's portable kernel therefore takes 128 rows up to a width of 256 and 32 beyond (``extend_attention.py``, compute
capability 9.0), and measured times of longer sequences go in steps of as many rows."""

EXPONENTIALS_PER_CLOCK = 16.0
"""Exponentials of a unit in a clock: NVIDIA CUDA programming guide, throughput of native arithmetic instructions,
special functions, compute capability 7.0 to 10.0."""

FEW_UNITS = 32
"""Accelerators of fewer, large units have vector units of another kind; their exponentials are not counted."""

LAST_ROW = 0.5
"""Part of the longest row of tiles that no other work hides: a unit that is done waits for half a row on average."""

HEAD_WIDTHS = (64, 128, 192, 256, 512)
"""Widths of a key for which the measured libraries have a kernel of their own; the next wider one serves the others."""

WIDTH = {"bfloat16": 2.0, "float16": 2.0, "half": 2.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0}
"""Bytes of an element."""


def shapes_of(
    attention: Attention,
    sequences: Number,
    new_tokens: Number,
    *,
    cached_tokens: Number = 0,
    tp: Number = 1,
    query_bytes: float = 2.0,
    cache_bytes: float = 2.0,
) -> dict[str, Array]:
    """Return the inputs of `time` for a layer's attention on one rank.

    Parameters
    ----------
    attention : Attention
        The layer's attention. Latent attention (``mla``) decompresses keys and values first, so that every head has
        its own, keys wider than values by the rotary part (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    sequences, new_tokens, cached_tokens : int or array
        Sequences, and of each new tokens and tokens cached before them.
    tp : int or array
        Ranks that share the heads; a key-value head is copied where there are fewer than ranks.
    query_bytes, cache_bytes : float
        Bytes of an element of queries and of keys and values; arithmetic in 8 bits where queries take one.

    Raises
    ------
    ValueError
        Of linear attention, which keeps no keys and values: ``perfmodel.linear_attention``.
    """
    if attention.kind == "linear":
        raise ValueError("linear attention keeps no keys and values")
    heads = attention.heads / np.asarray(tp)
    kv_heads = heads if attention.kind == "mla" else np.maximum(attention.kv_heads / np.asarray(tp), 1.0)
    return _arrays(
        sequences=sequences,
        new_tokens=new_tokens,
        cached_tokens=cached_tokens,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=attention.qk_head_dim,
        value_dim=attention.v_head_dim,
        window=attention.window,
        query_bytes=query_bytes,
        cache_bytes=cache_bytes,
    )


def variant_of(head_dim: int, query_bytes: float = 2.0, cache_bytes: float = 2.0) -> str:
    """Return the kernel library's form for a type and a width of keys: ``bf16``, ``bf16_kv8_d64``, ``fp8_d256``.

    Notes
    -----
    Libraries compile one kernel a width, each with its own tiles (FlashAttention-3, section 4.1); ``kv8`` reads a cache
    of one byte an element or less. Keys 128 wide carry no suffix.
    """
    form = "fp8" if query_bytes == 1.0 else "bf16_kv8" if cache_bytes <= 1.0 else "bf16"
    width = next((width for width in HEAD_WIDTHS if width >= head_dim), HEAD_WIDTHS[-1])
    return form if width == 128 else f"{form}_d{width}"


def widths(column: pd.Series[str]) -> Array:
    """Return bytes of an element of the types in a column.

    Raises
    ------
    ValueError
        Where a type is not among ``WIDTH``.
    """
    names = column.astype(str).str.strip().str.lower()
    unknown = sorted(set(names) - set(WIDTH))
    if unknown:
        raise ValueError(f"{column.name}: no width is known of {', '.join(unknown)}; of {', '.join(WIDTH)} it is")
    return names.map(WIDTH).to_numpy(float)


def variants(frame: pd.DataFrame) -> Array:
    """Return the kernel library's form of every measured row."""
    rows = zip(frame["head_dim"], widths(frame["attn_dtype"]), widths(frame["kv_dtype"]), strict=True)
    return np.array([variant_of(*row) for row in rows], dtype=object)


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows."""
    return _arrays(
        sequences=frame["batch"].to_numpy(float),
        new_tokens=frame["seq"].to_numpy(float),
        cached_tokens=0,
        heads=frame["heads"].to_numpy(float),
        kv_heads=frame["kv_heads"].to_numpy(float),
        key_dim=frame["head_dim"].to_numpy(float),
        value_dim=frame["head_dim"].to_numpy(float),
        window=0,
        query_bytes=widths(frame["attn_dtype"]),
        cache_bytes=widths(frame["kv_dtype"]),
    )


def _arrays(**values: Any) -> dict[str, Array]:
    return dict(zip(values, np.broadcast_arrays(*values.values()), strict=True))


def tile_side(shapes: Mapping[str, Array]) -> Array:
    """Return queries and keys of a tile."""
    return np.where(np.maximum(shapes["key_dim"], shapes["value_dim"]) > WIDEST, WIDE_TILE, TILE)


def tile_counts(shapes: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return (tiles of a sequence and head, tiles of its longest row).

    Notes
    -----
    With tiles of T by T, n = ceil(s/T) rows, c' = ceil(c/T) tiles of earlier keys and at most w' = ceil(w/T) + 1 tiles
    inside a window, row i has min(c' + i, w') tiles, i = 1..n. With a = min(max(w' - c', 0), n) rows below the limit
    they are a c' + a (a+1)/2 + (n-a) w' together. Without window and cached tokens: n (n+1)/2, the longest n.
    """
    side = tile_side(shapes)
    n = np.ceil(shapes["new_tokens"] / side)
    before = np.ceil(shapes["cached_tokens"] / side)
    window = np.asarray(shapes["window"])
    limit = np.where(window > 0, np.ceil(window / side) + 1.0, n + before)
    below = np.clip(limit - before, 0.0, n)
    return below * before + below * (below + 1) / 2 + (n - below) * limit, np.minimum(n + before, limit)


def tensor_peak(device: Device, bytes_per_element: Array) -> Array:
    """Return the dense peak of arithmetic on elements of one or two bytes [FLOP/s].

    Raises
    ------
    ValueError
        Where the device has no such arithmetic.
    """
    eight_bits = np.asarray(bytes_per_element) == 1.0
    wide = device.peak.get("bf16", device.peak.get("fp16"))
    narrow = device.peak.get("fp8")
    if (narrow is None and eight_bits.any()) or (wide is None and not eight_bits.all()):
        raise ValueError(f"{device.name} has no {'fp8' if eight_bits.any() else 'bf16'} peak")
    return np.where(eight_bits, narrow or 0.0, wide or 0.0)


def traffic(shapes: Mapping[str, Array], key_value_passes: float = 1.0) -> Array:
    """Return bytes of queries, keys, values and result; results take two bytes an element.

    Parameters
    ----------
    shapes : mapping
        Inputs as of `time`.
    key_value_passes : float
        How often keys and values of new tokens are moved; those of tokens cached before are read once.
    """
    b, s, c = shapes["sequences"], shapes["new_tokens"], shapes["cached_tokens"]
    h, k, d, v = shapes["heads"], shapes["kv_heads"], shapes["key_dim"], shapes["value_dim"]
    window = np.asarray(shapes["window"])
    before = np.where(window > 0, np.minimum(c, window), c)
    queries = s * h * (shapes["query_bytes"] * d + 2.0 * v)
    keys = (key_value_passes * s + before) * k * (d + v) * shapes["cache_bytes"]
    moved: Array = b * (queries + keys)
    return moved


def exponential_peak(device: Device) -> float:
    """Return exponentials a second of a device."""
    return EXPONENTIALS_PER_CLOCK * device.units * device.clock if device.units >= FEW_UNITS else np.inf


def tile_seconds(shapes: Mapping[str, Array], device: Device, compute: float) -> Array:
    """Return time of a tile on the whole device, products at a share of peak [s]; see `time`."""
    pairs = tile_side(shapes) ** 2
    products = 2.0 * pairs * (shapes["key_dim"] + shapes["value_dim"])
    seconds: Array = np.hypot(
        products / (compute * tensor_peak(device, shapes["query_bytes"])), pairs / exponential_peak(device)
    )
    return seconds


def time(shapes: Mapping[str, Array], device: Device, parameters: PrefillParameters) -> tuple[Array, Array]:
    """Return seconds of the kernel and what bounds it.

    Notes
    -----
    With u units and tiles of T by T, n = ceil(s/T) rows of N tiles of a sequence and head, the longest of L::

        R      = min(h n, k ceil(s h/(T k)))              rows of a sequence: heads that share keys fill one together
        t_tile = sqrt((2 T^2 (d + v) / (e_c peak))^2 + (T^2 / (16 u clock))^2)
        t      = t0 + b R N/n t_tile + 1/2 L u t_tile + bytes / (e_m bandwidth)

    Products and exponentials of a tile overlap in part (FlashAttention-3, section 3.2), so they add in quadrature:
    neither needs a share of its own for it. u t_tile is one unit's time of a tile, and half of the longest row is not
    hidden by other work. Arithmetic and memory add up: the cache is written before attention reads it, and a row of few
    tiles has little arithmetic to hide its loads behind.
    """
    s, h, k = shapes["new_tokens"], shapes["heads"], shapes["kv_heads"]
    side = tile_side(shapes)
    tiles, longest = tile_counts(shapes)
    n = np.ceil(s / side)
    rows = np.minimum(h * n, k * np.ceil(s * h / (side * k)))
    tile = tile_seconds(shapes, device, parameters.compute)
    compute = (shapes["sequences"] * rows * tiles / n + LAST_ROW * longest * device.units) * tile
    memory = traffic(shapes, parameters.key_value_passes) / (parameters.memory * device.bandwidth)
    launch = parameters.launch_us * 1e-6
    busy = compute + memory
    bound = np.where(busy < launch, LATENCY, np.where(compute >= memory, COMPUTE, MEMORY)).astype(np.int8)
    return launch + busy, bound


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return max(FLOPs/peak, bytes/bandwidth) [s], FLOPs those of the pairs of query and key that are seen."""
    s, c = shapes["new_tokens"], shapes["cached_tokens"]
    window = np.asarray(shapes["window"])
    limit = np.where(window > 0, window, s + c)
    below = np.clip(limit - c, 0.0, s)
    pairs = below * c + below * (below + 1) / 2 + (s - below) * limit
    flops = 2.0 * shapes["sequences"] * shapes["heads"] * pairs * (shapes["key_dim"] + shapes["value_dim"])
    peak = tensor_peak(device, shapes["query_bytes"])
    seconds: Array = np.maximum(flops / peak, traffic(shapes) / device.bandwidth)
    return seconds


COLUMNS = ("device", "attn_dtype", "kv_dtype", "batch", "seq", "heads", "kv_heads", "head_dim")

MODEL = KernelModel("prefill", COLUMNS, PrefillParameters, shapes, time, roofline)
