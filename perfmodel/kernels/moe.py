"""Time of the expert network of one rank: two products grouped by expert, an activation between, a sum after.

Symbols: T tokens that choose k of E experts each; h hidden and n inner width on the rank, which holds E/ep experts.
R token-expert pairs fall on the rank, on D distinct experts of it; every expert's rows are filled up to tiles of M
(Gale et al., MegaBlocks, arXiv 2211.15841, section 3). A token chooses each expert with probability k/E, so
D = (E/ep) (1 - (1 - k/E)^T) for random choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import UnknownName, find
from hardware.efficiency import MoeParameters
from hardware.yaml_source import read_yaml
from perfmodel.kernels.expert_load import Load, even_load, power_law_load, random_load
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.kernels.prefill import tensor_peak
from perfmodel.terms import COMPUTE, LATENCY, MEMORY, Array, Number

WIDTH = {"bfloat16": 2.0, "bf16": 2.0, "float16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0}
"""Bytes of an element of the weights."""

ACTIVATION_BYTES = 2.0
"""Bytes of an element of what is written between the products."""

POWER_LAW = "power_law_"
"""A distribution of this name and an exponent draws the experts' loads from a power law."""

FOREIGN = ("skipped", "carried", "computed")
"""What a library does with the choices of experts that other ranks hold, where the tokens of the group are gathered:
leave them out; write and sum up rows of zeros for them; or compute them too (all on one expert, as one timing did)."""


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
    exponent: float | None = None,
    tuned: bool = False,
    foreign: str = "skipped",
) -> dict[str, Array]:
    """Return the inputs of `time` for a layer's routed experts on the rank that works longest.

    Parameters
    ----------
    tokens : int or array
        Tokens of all ranks that share the experts, before each is sent to `top_k` of them.
    hidden, inner : int
        Widths of the model and of one expert, before it is split over `tp`.
    top_k, experts : int
        Experts a token is sent to, and how many there are on all ranks.
    gated : bool
        Three matrices an expert, or two.
    tp, ep : int or array
        Ranks that share every expert, and ranks that the experts are spread over.
    weight_bytes : float
        Bytes of an element of the weights; arithmetic in 8 bits where they take one.
    exponent : float
        Loads of the experts from a power law of this exponent; left out, choices are random and alike for all experts.
    tuned : bool
        Whether the library has tiles tuned for experts of this number and width.
    foreign : str
        One of ``FOREIGN``. With tokens sent only to the ranks that need them (all-to-all), ``skipped``.
    """
    T, ep_, tp_ = np.broadcast_arrays(*(np.asarray(value, float) for value in (tokens, ep, tp)))
    k, E = np.full_like(T, top_k), np.full_like(T, experts)
    load = random_load(T, k, E, ep_) if exponent is None else power_law_load(T, k, E, ep_, exponent)
    return _arrays(
        T,
        load,
        hidden=float(hidden),
        inner=inner / tp_,
        top_k=float(top_k),
        local=experts / ep_,
        gated=gated,
        weight_bytes=weight_bytes,
        tuned=tuned,
        foreign=np.where(ep_ > 1, FOREIGN.index(foreign), 0),
    )


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows, with what the timed library did (``moe_library.yaml``).

    Notes
    -----
    The measurements keep the tokens of the whole group on the timed rank, so choices of other ranks' experts matter.

    Raises
    ------
    ValueError
        Where a distribution is neither ``balanced`` nor ``power_law_`` with an exponent.
    """
    columns = ("num_tokens", "topk", "num_experts", "moe_ep_size")
    T, k, E, ep = (frame[name].to_numpy(float) for name in columns)
    load = _load_of(frame["distribution"].astype(str).to_numpy(), T, k, E, ep)
    local = E / ep
    inner = frame["inter_size"].to_numpy(float) / frame["moe_tp_size"].to_numpy(float)
    devices = _devices(frame)
    tuned = np.zeros(len(frame), bool)
    foreign = np.zeros(len(frame), int)
    gated = frame["gated"].to_numpy() == 1
    if devices is not None and len(frame):
        names, kinds = devices.to_numpy(str), variants(frame).astype(str)
        for device, variant in sorted(set(zip(names, kinds, strict=True))):
            at = np.flatnonzero((names == device) & (kinds == variant))
            library = library_of(str(device), str(variant))
            pairs = library.get("tuned", frozenset())
            tuned[at] = [(E_, n) in pairs for E_, n in zip(local[at], inner[at], strict=True)]
            foreign[at] = FOREIGN.index(library.get("foreign", "skipped"))
            gated[at] |= library.get("gate_timed", False)
    return _arrays(
        T,
        load,
        hidden=frame["hidden_size"].to_numpy(float),
        inner=inner,
        top_k=k,
        local=local,
        gated=gated,
        weight_bytes=frame["moe_dtype"].map(WIDTH).to_numpy(float),
        tuned=tuned,
        foreign=np.where(ep > 1, foreign, 0),
    )


def variants(frame: pd.DataFrame) -> Array:
    """Return the variant of every row: its type; wide experts without a gate run another kernel than those with one.

    Where the timing ran the kernel with a gate for both (``gate_timed``), both are one variant.
    """
    short = frame["moe_dtype"].astype(str).str.strip().str.lower().replace({"bfloat16": "bf16", "float16": "fp16"})
    devices = _devices(frame)
    plain = short.isin(["bf16", "fp16"]) & (frame["gated"] != 1)
    if devices is not None:
        gate_timed = {device: library_of(device, "bf16").get("gate_timed", False) for device in devices.unique()}
        plain &= ~devices.map(gate_timed).astype(bool)
    return np.where(plain, short + "_ungated", short).astype(object)


def _devices(frame: pd.DataFrame) -> pd.Series[str] | None:
    for name in ("device_name", "device"):
        if name in frame.columns:
            return frame[name].astype(str)
    return None


@lru_cache(maxsize=256)
def library_of(device: str, variant: str) -> Mapping[str, Any]:
    """Return what is known of the library that was timed on a device.

    Parameters
    ----------
    device : str
        Name or alias of an accelerator; one that was not timed goes by another board of its architecture, but tuned
        tiles are a board's own.
    variant : str
        As of ``variants``.

    Returns
    -------
    mapping
        ``foreign``: one of ``FOREIGN``; ``tuned``: set of (experts, inner width); ``gate_timed``: whether experts
        without a gate were timed with one. Empty where nothing is known.
    """
    try:
        accelerator = find("accelerator", device)
    except UnknownName:
        return {}
    known = [entry for entry in _libraries() if variant in entry["variants"]]
    for entry in known:
        if entry["accelerator"] == accelerator.name:
            tuned = {(float(E), float(n)) for E, widths in entry.get("tuned", {}).items() for n in widths}
            return {**entry, "tuned": frozenset(tuned)}
    for entry in known:
        if find("accelerator", entry["accelerator"]).architecture == accelerator.architecture:
            return {**entry, "tuned": frozenset()}
    return {}


@lru_cache(maxsize=1)
def _libraries() -> tuple[Mapping[str, Any], ...]:
    path = files("hardware").joinpath("catalog").joinpath("kernels").joinpath("moe_library.yaml")
    return tuple(read_yaml(path.read_text(encoding="utf-8"), "moe_library.yaml").data["timed"])


def _load_of(distribution: Array, T: Array, k: Array, E: Array, ep: Array) -> Load:
    parts = []
    for name in np.unique(distribution):
        at = np.flatnonzero(distribution == name)
        if name == "balanced":
            found = even_load(T[at], k[at], E[at], ep[at])
        elif name.startswith(POWER_LAW):
            found = power_law_load(T[at], k[at], E[at], ep[at], float(name.removeprefix(POWER_LAW)))
        else:
            raise ValueError(f"unknown distribution {name!r}; known: balanced, {POWER_LAW}EXPONENT")
        parts.append((at, found))
    values = [np.zeros((5, len(T))), np.zeros(len(T))]
    for at, found in parts:
        values[0][:, at] = np.stack([found.pairs, found.active, *found.tiles])
        values[1][at] = found.tokens
    pairs, active, *tiles = values[0]
    return Load(pairs, active, tuple(tiles), values[1])


def _arrays(T: Array, load: Load, **values: Any) -> dict[str, Array]:
    every = {
        "tokens": T,
        "pairs": load.pairs,
        "active": load.active,
        "tiles_16": load.tiles[0],
        "tiles_64": load.tiles[1],
        "tiles_128": load.tiles[2],
        "local_tokens": load.tokens,
        **values,
    }
    return dict(zip(every, np.broadcast_arrays(*every.values()), strict=True))


def tiling(shapes: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Return rows that products are filled up to, elements loaded for each multiplication, and steps along the depth.

    Notes
    -----
    Rules of the Triton kernel of vLLM and SGLang. Without a tuned file tiles are 16 x 32, 64 deep, up to one token an
    expert, else 64 x 64, 32 deep; in 8 bits 64 x 128, 128 deep. Tuned tiles follow the load, from 16 to 128 rows of
    128, 64 deep. A tile of r x c loads 1/r + 1/c elements for each multiplication.
    """
    load = shapes["pairs"] / shapes["active"]
    tuned = shapes["tuned"]
    eight = shapes["weight_bytes"] == 1.0
    few = ~eight & ~tuned & (shapes["local_tokens"] <= shapes["local"])
    small = few | (tuned & (load <= 16))
    large = ~eight & tuned & (load > 64)
    rows = np.where(small, 16.0, np.where(large, 128.0, 64.0))
    tiles = np.where(small, shapes["tiles_16"], np.where(large, shapes["tiles_128"], shapes["tiles_64"]))
    columns = np.where(few, 32.0, np.where(eight | tuned, 128.0, 64.0))
    depth = np.where(eight, 128.0, np.where(few | tuned, 64.0, 32.0))
    return rows * tiles, 1.0 / rows + 1.0 / columns, (shapes["hidden"] + shapes["inner"]) / depth


def weights(shapes: Mapping[str, Array]) -> Array:
    """Return elements of one expert's matrices on the rank."""
    elements: Array = np.where(shapes["gated"], 3.0, 2.0) * shapes["hidden"] * shapes["inner"]
    return elements


def time(shapes: Mapping[str, Array], device: Device, parameters: MoeParameters) -> tuple[Array, Array]:
    """Return seconds of the kernels and what bounds them.

    Notes
    -----
    With m = 3 matrices of h n elements of b bytes (2 without gate), u = m - 1 of them before the activation::

        t   = t0 + t_r + (t_c^p + t_l^p + t_m^p + t_s^p)^(1/p)
        t_c = 2 F m h n / (e_c peak),   F = M sum_e ceil(R_e/M) filled rows
        t_l = F m h n b (1/M + 1/N) / (r units clock),   tiles of M x N
        t_m = D m h n b / (e_m bandwidth)
        t_s = s (h + n)/depth / clock
        t_r = (4 h (R + foreign) + (4 u + 2 b) n R) / (e_r bandwidth)

    Rows between the products take two bytes an element, each written and read once. Weights are read from memory: a
    rank's experts exceed the cache wherever streaming them matters.
    """
    R = shapes["pairs"]
    h, n, b = shapes["hidden"], shapes["inner"], shapes["weight_bytes"]
    foreign = shapes["foreign"]
    elsewhere = np.maximum(shapes["tokens"] * shapes["top_k"] - R, 0.0)
    carried = np.where(foreign == FOREIGN.index("carried"), elsewhere, 0.0)
    mixed = np.maximum(shapes["local_tokens"] * shapes["top_k"] - R, 0.0)
    computed = np.where(foreign == FOREIGN.index("computed"), mixed, 0.0)
    filled, loaded, steps = tiling(shapes)
    elements = weights(shapes)
    products = (filled + computed) * elements
    arithmetic = 2.0 * products / (parameters.compute * tensor_peak(device, b))
    loading = products * loaded * b / (parameters.unit_bytes_per_clock * device.units * device.clock)
    streaming = shapes["active"] * elements * b / (parameters.memory * device.bandwidth)
    chain = steps * parameters.step_clocks / device.clock
    up = np.where(shapes["gated"], 2.0, 1.0)
    rows = R + computed
    moved = 2.0 * ACTIVATION_BYTES * h * (rows + carried) + (2.0 * up * ACTIVATION_BYTES + 2.0 * b) * n * rows
    between = moved / (parameters.traffic * device.bandwidth)
    p = parameters.softness
    parts = np.stack(np.broadcast_arrays(arithmetic, loading, streaming, chain))
    largest = parts.max(axis=0)
    busy = largest * ((parts / largest) ** p).sum(axis=0) ** (1.0 / p)
    launch = parameters.launch_us * 1e-6
    bound = np.array([COMPUTE, MEMORY, MEMORY, LATENCY])[parts.argmax(axis=0)]
    bound = np.where(between > busy, MEMORY, bound)
    bound = np.where(launch > busy + between, LATENCY, bound)
    return launch + between + busy, bound.astype(np.int8)


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return max(FLOPs/peak, bytes/bandwidth) [s]: FLOPs without padding, weights of the experts that are chosen."""
    elements = weights(shapes)
    flops = 2.0 * shapes["pairs"] * elements
    read = shapes["active"] * elements * shapes["weight_bytes"]
    seconds: Array = np.maximum(flops / tensor_peak(device, shapes["weight_bytes"]), read / device.bandwidth)
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
