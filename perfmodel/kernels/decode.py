"""Time of attention of one new token a sequence against its cache.

Symbols: b sequences, n cached tokens of each, h query heads, k key-value heads, d and v widths of a key and a value.
A work item is one sequence and key-value head; long ones are split over units along the cache (Dao et al.,
"Flash-Decoding for long-context inference", 2023; Hong et al., "FlashDecoding++", arXiv 2311.01282).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import DecodeParameters
from perfmodel.architecture import Attention
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.kernels.prefill import WIDEST, tensor_peak, widths
from perfmodel.kernels.prefill import variant_of as prefill_variant_of
from perfmodel.terms import COMPUTE, LATENCY, MEMORY, Array, Number

QUERY_ROWS = 64
"""Query rows of a tile of the tensor cores: heads that share keys fill them, the rest is padding."""

L2_BYTES_PER_CLOCK = 5120 / 108
"""Rate of the L2 cache for a unit [bytes/clock]: NVIDIA A100 white paper (2020), 5,120 bytes a clock for 108 units."""

WARM_SHARE = 0.5
"""Part of L2 up to which half of a cache read again and again is still there: its two halves keep copies of each
other's lines (NVIDIA A100 white paper: two partitions)."""

MOST_PIECES, BLOCKS_TO_FILL = 8, 2
"""Pieces of a work item at most, and blocks that fill a unit, where keys are wider than `WIDEST` and stored in one byte
an element: only portable kernels of inference engines serve those, with a fixed number of splits (SGLang,
``--triton-attention-num-kv-splits``, 8 by default) and no loads ahead. Measured times of 1 and of 16 items are the same
on 132 units; 32 items take a quarter longer, not twice as long."""

MEMORY_SHARE = 0.95
"""Share of memory bandwidth that nothing else delays: the longest reads of 3.35 TB/s reach 0.95."""


def shapes_of(
    attention: Attention,
    sequences: Number,
    kv_len: Number,
    *,
    tp: Number = 1,
    query_bytes: float = 2.0,
    cache_bytes: float = 2.0,
    block_size: int = 1,
) -> dict[str, Array]:
    """Return the inputs of `time` for a layer's attention on one rank; nothing is warm.

    Parameters
    ----------
    attention : Attention
        The layer's attention. Latent attention (``mla``) reads one latent key-value head, of which values are a part
        (absorbed form: DeepSeek-V2, arXiv 2405.04434, section 2.1), on every rank.
    sequences, kv_len : int or array
        Sequences, and cached tokens of each.
    tp : int or array
        Ranks that share the heads; a key-value head is copied where there are fewer than ranks.
    query_bytes, cache_bytes : float
        Bytes of an element of queries and of the cache; arithmetic in 8 bits where queries take one.
    block_size : int
        Tokens of a block of a paged cache (Kwon et al., PagedAttention, arXiv 2309.06180).

    Raises
    ------
    ValueError
        Of linear attention, which keeps no keys and values: ``perfmodel.linear_attention``.
    """
    if attention.kind == "linear":
        raise ValueError("linear attention keeps no keys and values")
    latent = attention.kind == "mla"
    return _arrays(
        sequences=sequences,
        kv_len=kv_len,
        heads=attention.heads / np.asarray(tp),
        kv_heads=1.0 if latent else np.maximum(attention.kv_heads / np.asarray(tp), 1.0),
        key_dim=attention.kv_lora_rank + attention.rope_head_dim if latent else attention.qk_head_dim,
        value_dim=attention.kv_lora_rank if latent else attention.v_head_dim,
        latent=latent,
        window=attention.window,
        block_size=block_size,
        query_bytes=query_bytes,
        cache_bytes=cache_bytes,
        warm=False,
    )


def variant_of(head_dim: int, cache_bytes: float = 2.0, *, latent: bool = False) -> str:
    """Return the kernel library's form for a type of cache and a width of keys, as of `prefill.variant_of`.

    Latent attention has libraries of its own without rows here; the form of keys 128 wide stands in for them.
    """
    return prefill_variant_of(128 if latent else head_dim, 2.0, cache_bytes)


def variants(frame: pd.DataFrame) -> Array:
    """Return the kernel library's form of every measured row."""
    rows = zip(frame["head_dim"], widths(frame["kv_dtype"]), strict=True)
    return np.array([variant_of(*row) for row in rows], dtype=object)


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows, which were timed back to back: what fits in L2 is warm."""
    return _arrays(
        sequences=frame["batch"].to_numpy(float),
        kv_len=frame["kv_len"].to_numpy(float),
        heads=frame["heads"].to_numpy(float),
        kv_heads=frame["kv_heads"].to_numpy(float),
        key_dim=frame["head_dim"].to_numpy(float),
        value_dim=frame["head_dim"].to_numpy(float),
        latent=False,
        window=0,
        block_size=1,
        query_bytes=widths(frame["attn_dtype"]),
        cache_bytes=widths(frame["kv_dtype"]),
        warm=True,
    )


def _arrays(**values: Any) -> dict[str, Array]:
    return dict(zip(values, np.broadcast_arrays(*values.values()), strict=True))


def read_tokens(shapes: Mapping[str, Array]) -> Array:
    """Return cached tokens that a sequence reads: inside the window, and whole blocks of a paged cache."""
    window = np.asarray(shapes["window"])
    seen = np.where(window > 0, np.minimum(shapes["kv_len"], window), shapes["kv_len"])
    blocks: Array = np.ceil(seen / shapes["block_size"])
    return blocks * shapes["block_size"]


def cache_traffic(shapes: Mapping[str, Array]) -> Array:
    """Return bytes read from the cache; latent values are part of the keys."""
    stored = shapes["key_dim"] + np.where(shapes["latent"], 0.0, shapes["value_dim"])
    read: Array = shapes["sequences"] * read_tokens(shapes) * shapes["kv_heads"] * stored * shapes["cache_bytes"]
    return read


def traffic(shapes: Mapping[str, Array]) -> Array:
    """Return bytes of cache, queries and results; results take two bytes an element."""
    rows = shapes["sequences"] * shapes["heads"]
    moved: Array = cache_traffic(shapes) + rows * (
        shapes["query_bytes"] * shapes["key_dim"] + 2.0 * shapes["value_dim"]
    )
    return moved


def arithmetic_bytes(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return bytes of an element in the tensor cores: a cache of 8 bits is multiplied as such where the device can."""
    if "fp8" not in device.peak:
        return np.full(np.shape(shapes["cache_bytes"]), 2.0)
    return np.minimum(shapes["query_bytes"], shapes["cache_bytes"])


def time(shapes: Mapping[str, Array], device: Device, parameters: DecodeParameters) -> tuple[Array, Array]:
    """Return seconds of the kernel and what bounds it.

    Notes
    -----
    With u units and m = 64 ceil(h/(64 k)) query rows a work item::

        t   = t0/clock + (t_m^p + t_c^p + t_i^p)^(1/p)
        t_m = hit bytes/(r u clock) + (1 - hit) bytes/(0.95 bandwidth)
        hit = clip(3/2 - bytes/(L2/2), 0, 1), 0 where cold
        t_c = 2 m b k n (d + v) / (e_c peak a/u),   a = min(u, b k max(1, bytes of an item's cache/piece)) active
        t_i = (item b k + head b h) / (u clock)

    Active units are those that have a piece of a work item; `MOST_PIECES` limits them for some libraries.
    """
    b, k = shapes["sequences"], shapes["kv_heads"]
    n = read_tokens(shapes)
    items = b * k
    cached = cache_traffic(shapes)
    portable = (shapes["key_dim"] > WIDEST) & (shapes["cache_bytes"] == 1.0) & ~shapes["latent"]
    pieces = np.minimum(cached / items / (parameters.piece_kib * 1024.0), np.where(portable, MOST_PIECES, np.inf))
    blocks = items * np.maximum(pieces, 1.0) / np.where(portable, BLOCKS_TO_FILL, 1)
    active = np.minimum(blocks, device.units)
    moved = traffic(shapes)
    hit = np.where(shapes["warm"], np.clip(1.5 - moved / (WARM_SHARE * device.l2), 0.0, 1.0), 0.0)
    dram = MEMORY_SHARE * device.bandwidth
    l2_rate = max(L2_BYTES_PER_CLOCK * device.units * device.streaming_clock, dram)
    memory = moved * (hit / l2_rate + (1.0 - hit) / dram)
    rows = QUERY_ROWS * np.ceil(shapes["heads"] / (QUERY_ROWS * k))
    flops = 2.0 * items * rows * n * (shapes["key_dim"] + shapes["value_dim"])
    peak = tensor_peak(device, arithmetic_bytes(shapes, device))
    compute = flops / (parameters.compute * peak * active / device.units)
    clocks = parameters.item_clocks * items + parameters.head_clocks * b * shapes["heads"]
    item = clocks / (device.units * device.streaming_clock)
    largest = np.maximum(np.maximum(memory, compute), item)
    p = parameters.softness
    busy = largest * ((memory / largest) ** p + (compute / largest) ** p + (item / largest) ** p) ** (1.0 / p)
    launch = parameters.launch_clocks / device.streaming_clock
    bound = np.where(memory >= largest, MEMORY, np.where(compute >= largest, COMPUTE, LATENCY))
    return launch + busy, np.where(busy < launch, LATENCY, bound).astype(np.int8)


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return max(FLOPs/peak, bytes/bandwidth) [s], FLOPs without padding."""
    flops = 2.0 * shapes["sequences"] * shapes["heads"] * read_tokens(shapes)
    flops = flops * (shapes["key_dim"] + shapes["value_dim"])
    peak = tensor_peak(device, arithmetic_bytes(shapes, device))
    seconds: Array = np.maximum(flops / peak, traffic(shapes) / device.bandwidth)
    return seconds


COLUMNS = ("device", "attn_dtype", "kv_dtype", "batch", "kv_len", "heads", "kv_heads", "head_dim")

MODEL = KernelModel("decode", COLUMNS, DecodeParameters, shapes, time, roofline)
