"""Time of the expert network of one rank: two products grouped by expert, an activation between, a sum after.

Symbols: T tokens that choose k of E experts each; h hidden and n inner width on the rank, which holds E/ep experts.
R token-expert pairs fall on the rank, on D distinct experts of it; every expert's rows are filled up to tiles of M
(Gale et al., MegaBlocks, arXiv 2211.15841, section 3). A token chooses each expert with probability k/E, so
D = (E/ep) (1 - (1 - k/E)^T) for random choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import MoeParameters
from perfmodel.kernels.expert_load import TILES, Load, even_load, power_law_load, random_load
from perfmodel.kernels.gemm import ARITHMETIC, UNPACKED_PER_CLOCK, form_of, peaks
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import COMPUTE, LATENCY, MEMORY, Array, Number

MULTIPLIED = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625}
"""Bytes of an element of the activations as they are multiplied, by type of the arithmetic; of ``fp4`` with its scales,
one byte for 16 elements."""

ACTIVATION_BYTES = 2.0
"""Bytes of an element of what is written between the products."""

POWER_LAW = "power_law_"
"""A distribution of this name and an exponent draws the experts' loads from a power law."""

SMALL_TILE, TILE, NARROW_TILE = (16, 32, 64), (64, 64, 32), (64, 128, 128)
"""Rows, columns and depth of a tile: up to one token an expert, beyond, and of 8-bit weights. What the Triton kernel of
vLLM and SGLang takes where nobody tuned it for a shape, on any board (``get_default_config``)."""

STEP_CLOCKS = 500.0
"""One step of a tile along the inner dimension [clocks]: the latency of loads that the next step waits for. Fits gave
470-540 for four pairs of device and variant, and nothing where other parts hide it."""

RESIDENT = 6.0
"""Tiles that a unit works on at a time, each waiting for its own loads: three stages of `TILE` in 16 bits take 24 KiB
of shared memory, of which an A100 has 164 KiB a unit (NVIDIA Ampere tuning guide)."""

SOFTNESS = 1.25
"""Exponent of the soft maximum of arithmetic, streaming and steps: they hardly overlap, since a tile does one after
another. Fits gave 1.20 and 1.25 for bf16; no other variant's mean error falls by more than 0.01 with its own."""


def shapes_of(
    tokens: Number,
    *,
    hidden: int,
    inner: int,
    top_k: int,
    experts: int,
    gated: bool = True,
    tp: Number = 1,
    ep: Number = 1,
    weight_bytes: float = 2.0,
    arithmetic: str | None = None,
    exponent: float | None = None,
) -> dict[str, Array]:
    """Return the inputs of `time` for a layer's routed experts on the rank that works longest.

    Parameters
    ----------
    tokens : int or array
        Tokens of all ranks that share the experts, before each is sent to `top_k` of them. They are sent only to the
        ranks that hold these.
    hidden, inner : int
        Widths of the model and of one expert, before it is split over `tp`.
    top_k, experts : int
        Experts a token is sent to, and how many there are on all ranks.
    gated : bool
        Three matrices an expert, or two.
    tp, ep : int or array
        Ranks that share every expert, and ranks that the experts are spread over.
    weight_bytes : float
        Bytes of an element of the weights, scales included.
    arithmetic : str
        Type of the arithmetic, a key of ``MULTIPLIED``; left out, ``fp8`` where weights take one byte, else ``bf16``.
        Weights narrower than what they are multiplied with are unpacked on the way.
    exponent : float
        Loads of the experts from a power law of this exponent; left out, choices are random and alike for all experts.
    """
    T, ep_, tp_ = np.broadcast_arrays(*(np.asarray(value, float) for value in (tokens, ep, tp)))
    k, E = np.full_like(T, top_k), np.full_like(T, experts)
    if arithmetic is None:
        arithmetic = "fp8" if weight_bytes == 1.0 else "bf16"
    multiplied = MULTIPLIED[arithmetic]
    load = random_load(T, k, E, ep_) if exponent is None else power_law_load(T, k, E, ep_, exponent)
    return _arrays(
        load,
        hidden=float(hidden),
        inner=inner / tp_,
        local=experts / ep_,
        gated=gated,
        weight_bytes=weight_bytes,
        arithmetic=ARITHMETIC.index(arithmetic),
        activation_bytes=multiplied,
        unpacked=weight_bytes < multiplied,
        elsewhere=0.0,
        mixed=0.0,
    )


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows, which keep the tokens of the whole group on the timed rank.

    Raises
    ------
    ValueError
        Where a distribution is neither ``balanced`` nor ``power_law_`` with an exponent.
    """
    columns = ("num_tokens", "topk", "num_experts", "moe_ep_size")
    T, k, E, ep = (frame[name].to_numpy(float) for name in columns)
    load = _load_of(frame["distribution"].astype(str).to_numpy(), T, k, E, ep)
    forms = [form_of(str(name)) for name in frame["moe_dtype"]]
    arithmetic = ["bf16" if form.arithmetic == "fp16" else form.arithmetic for form in forms]
    multiplied = np.array([MULTIPLIED[name] for name in arithmetic])
    width = np.array([form.weight_bytes for form in forms])
    alone = ep <= 1  # no other rank, whatever a load of less than one pair was rounded to
    return _arrays(
        load,
        hidden=frame["hidden_size"].to_numpy(float),
        inner=frame["inter_size"].to_numpy(float) / frame["moe_tp_size"].to_numpy(float),
        local=E / ep,
        gated=frame["gated"].to_numpy() == 1,
        weight_bytes=width,
        arithmetic=np.array([ARITHMETIC.index(name) for name in arithmetic]),
        activation_bytes=multiplied,
        unpacked=width < multiplied,
        elsewhere=np.where(alone, 0.0, np.maximum(T * k - load.pairs, 0.0)),
        mixed=np.where(alone, 0.0, np.maximum(load.tokens * k - load.pairs, 0.0)),
    )


def variants(frame: pd.DataFrame) -> Array:
    """Return the variant of every row: its type; libraries run 16-bit experts without a gate in other kernels."""
    short = frame["moe_dtype"].map(lambda name: form_of(str(name)).variant)
    plain = (short == "bf16") & (frame["gated"] != 1)
    return np.where(plain, short + "_ungated", short).astype(object)


def _load_of(distribution: Array, T: Array, k: Array, E: Array, ep: Array) -> Load:
    values = np.zeros((3 + len(TILES), len(T)))
    for name in np.unique(distribution):
        at = np.flatnonzero(distribution == name)
        if name == "balanced":
            found = even_load(T[at], k[at], E[at], ep[at])
        elif name.startswith(POWER_LAW):
            found = power_law_load(T[at], k[at], E[at], ep[at], float(name.removeprefix(POWER_LAW)))
        else:
            raise ValueError(f"unknown distribution {name!r}; known: balanced, {POWER_LAW}EXPONENT")
        values[:, at] = np.stack([found.pairs, found.active, found.tokens, *found.tiles])
    pairs, active, tokens, *tiles = values
    return Load(pairs, active, tuple(tiles), tokens)


def _arrays(load: Load, **values: Any) -> dict[str, Array]:
    every = {
        "pairs": load.pairs,
        "active": load.active,
        **{f"tiles_{rows}": tiles for rows, tiles in zip(TILES, load.tiles, strict=True)},
        "tokens": load.tokens,
        **values,
    }
    return dict(zip(every, np.broadcast_arrays(*every.values()), strict=True))


def tiling(shapes: Mapping[str, Array]) -> tuple[Array, Array, Array, Array]:
    """Return rows, columns and depth of a tile, and how many rows of tiles the pairs of the rank's experts fill."""
    narrow = shapes["activation_bytes"] <= 1.0
    few = ~narrow & (shapes["tokens"] <= shapes["local"])
    sizes = (
        np.where(narrow, wide, np.where(few, small, usual)).astype(float)
        for small, usual, wide in zip(SMALL_TILE, TILE, NARROW_TILE, strict=True)
    )
    rows, columns, depth = sizes
    return rows, columns, depth, np.where(few, shapes["tiles_16"], shapes["tiles_64"])


def weights(shapes: Mapping[str, Array]) -> Array:
    """Return elements of one expert's matrices on the rank."""
    elements: Array = np.where(shapes["gated"], 3.0, 2.0) * shapes["hidden"] * shapes["inner"]
    return elements


def time(shapes: Mapping[str, Array], device: Device, parameters: MoeParameters) -> tuple[Array, Array]:
    """Return seconds of the kernels and what bounds them.

    Notes
    -----
    With u = 2 matrices before the activation (1 without gate), products of N = u n columns, K = h deep and of N = h
    columns, K = n deep, tiles of M x C x d (rows, columns, depth), C' = ceil(N/C), K' = K in whole steps of d::

        t   = t_0/clock + (t_c^p + t_m^p + t_s^p + t_x^p)^(1/p) + t_r
        B   = C' (sum_e ceil(R_e/M) + f F/M)                  tiles of a product
        t_c = sum over products of 2 B M C K' / (e_c peak)    arithmetic
        t_m = D (u + 1) h n b / (e_m bandwidth)               weights of the experts that are chosen
        t_s = sum over products of K'/d max(1, B/(6 units)) 500/clock     steps of tiles, one after another
        t_x = sum over products of K' C max(1, B/units)/(64 clock)    unpacking of narrow weights, as in products
        t_r = (4 h (R + f F + g G) + (4 u + 2 a) n (R + f F)) / (e_r bandwidth)       rows between the products

    f and g are the shares of choices of other ranks' experts that are computed (of F) and carried (of G), where a
    timing gathers the group's tokens. Rows between the products take two bytes an element, each written and read once;
    the inner ones are quantised to a bytes before the second. Weights are read from memory: a rank's experts exceed the
    cache wherever streaming them matters.
    """
    h, n, b, a = shapes["hidden"], shapes["inner"], shapes["weight_bytes"], shapes["activation_bytes"]
    rows, columns, depth, tiles = tiling(shapes)
    computed = parameters.foreign_computed * shapes["mixed"]
    row_tiles = tiles + computed / rows
    up = np.where(shapes["gated"], 2.0, 1.0)
    filled, steps, waves = (np.zeros(np.shape(row_tiles)) for _ in range(3))
    for width, inner in ((up * n, h), (h, n)):
        tiles_of_product = row_tiles * np.ceil(width / columns)
        deep = np.ceil(inner / depth)
        filled = filled + tiles_of_product * deep
        steps = steps + deep * np.maximum(tiles_of_product / (RESIDENT * device.units), 1.0)
        waves = waves + deep * np.maximum(tiles_of_product / device.units, 1.0)
    flops = 2.0 * rows * columns * depth * filled
    arithmetic = flops / (parameters.compute * peaks(shapes, device))
    streaming = shapes["active"] * (up + 1.0) * h * n * b / (parameters.memory * device.bandwidth)
    chain = steps * (STEP_CLOCKS / device.streaming_clock)
    unpacking = shapes["unpacked"] * waves * columns * depth / (UNPACKED_PER_CLOCK * device.clock)
    held = shapes["pairs"] + computed
    moved = 2.0 * ACTIVATION_BYTES * h * (held + parameters.foreign_carried * shapes["elsewhere"])
    moved = moved + (2.0 * up * ACTIVATION_BYTES + 2.0 * a) * n * held
    between = moved / (parameters.traffic * device.bandwidth)
    parts = np.stack([arithmetic, streaming, chain, unpacking])
    busy = (parts[0] ** SOFTNESS + parts[1] ** SOFTNESS + parts[2] ** SOFTNESS + parts[3] ** SOFTNESS) ** (1 / SOFTNESS)
    launch = parameters.launch_clocks / device.streaming_clock
    bound = np.array([COMPUTE, MEMORY, LATENCY, COMPUTE])[parts.argmax(axis=0)]
    bound = np.where(between > busy, MEMORY, bound)
    bound = np.where(launch > busy + between, LATENCY, bound)
    return launch + between + busy, bound.astype(np.int8)


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return max(FLOPs/peak, bytes/bandwidth) [s]: FLOPs without padding, weights of the experts that are chosen."""
    elements = weights(shapes)
    flops = 2.0 * shapes["pairs"] * elements
    read = shapes["active"] * elements * shapes["weight_bytes"]
    seconds: Array = np.maximum(flops / peaks(shapes, device), read / device.bandwidth)
    return seconds


COLUMNS = (
    "device",
    "moe_dtype",
    "num_tokens",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "moe_tp_size",
    "moe_ep_size",
    "distribution",
    "gated",
)

MODEL = KernelModel("moe", COLUMNS, MoeParameters, shapes, time, roofline)
