"""Time of a matrix product C[m, n] = A[m, k] W[k, n] from the data sheet and four constants of a kernel library.

A kernel cuts C into tiles, one after another on a unit, and may split k over more units (split-K). A library tunes: the
fastest of a few tiles and splits counts. Tiles, their traffic and waves: NVIDIA, "Matrix Multiplication Background
User's Guide"; schedules that need no whole waves: Osama et al., "Stream-K", arXiv 2301.03598.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import GemmParameters
from perfmodel.kernels.model import Device, KernelModel
from perfmodel.terms import COMPUTE, LATENCY, MEMORY, Array, Number

TILES = ((16, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128))
"""Rows and columns of C that a block of threads computes."""

SPLITS = (1, 2, 4, 8, 16, 32)
"""Parts of k that different blocks sum."""

STEP = 64
"""k is cut into multiples of this."""

FILL_BYTES = 384.0
"""Bytes of a row of activations whose time filling and draining the pipeline of a tile takes: three stages of 128.
Where it was fitted, four pairs of device and type gave 360-418, and no smaller error on a device left out."""

PERSISTENT = frozenset({"hopper", "blackwell", "tpu-v5", "tpu-v6", "gaudi3"})
"""Families whose libraries keep blocks resident and hand them tiles, so that the last wave need not be whole. Elsewhere
every tile is a block and waves are whole (arXiv 2301.03598, section 2). A fact of libraries, not a fitted constant."""

MULTICAST = {"hopper": 2.0, "blackwell": 2.0}
"""Blocks that share what one of them reads from L2, where clusters of blocks can (NVIDIA Hopper tuning guide: thread
block clusters, multicast of the tensor memory accelerator); 2 is the smallest cluster."""

PAIRED = {"blackwell": 2.0}
"""Units whose tensor cores multiply together two blocks of rows by the same columns, of which each loads its part
(NVIDIA PTX ISA, tcgen05.mma with cta_group::2)."""

PORT_BYTES_PER_CLOCK = 64.0
"""What a unit can take from L2 in a clock [bytes]: 64 a multiprocessor (NVIDIA A100 whitepaper)."""

L2_SHARE = 0.5
"""Share of all ports that L2 can serve at once: 5120 bytes a clock for 108 ports is 0.74 at best (A100 whitepaper)."""

FEW_UNITS = 32
"""Accelerators of fewer, large units (matrix engines with managed memory) have no such ports."""

COPIES, WARM_SHARE = 5.0, 0.5
"""Timed back to back over so many copies, weights are read from L2 where the copies fit in this share of it: halves of
L2 keep copies of each other's lines (NVIDIA A100 whitepaper: two partitions)."""

UNPACKED_PER_CLOCK = 64.0
"""Weights that a unit unpacks in a clock: 128 lanes, two instructions a weight (mask or shift, and scale, on pairs)."""

SPARSE_SPEEDUP = 1.6
"""Of 2:4 sparse arithmetic over dense: of a factor 2 of peak about 1.5-1.8 is seen on large products (Mishra et al.,
"Accelerating Sparse Deep Neural Networks", arXiv 2104.08378, and the cuSPARSELt notes)."""

OUTPUT_BYTES = 2.0
"""Bytes of an element of C as products of 16 bits and less write it."""

CHUNK = 1 << 14
"""Shapes evaluated at once, so that intermediate arrays stay in the processor's cache."""

ARITHMETIC = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4")


@dataclass(frozen=True)
class Form:
    """How a product's factors are kept and multiplied.

    Parameters
    ----------
    variant : str
        Whose parameters it takes.
    arithmetic : str
        Type of the arithmetic, a key of an accelerator's peaks.
    activation_bytes, weight_bytes : float
        Bytes of an element of A and of W as kept, scales and indices included.
    quantisation_bytes : float
        Traffic of making an element of A out of 16 bits just before [bytes]; 0 where another kernel does it in passing.
    unpacked : bool
        Units unpack every weight before they multiply it (narrow or irregularly sparse weights).
    work : float
        Time of the arithmetic over that of the dense product.
    """

    variant: str
    arithmetic: str
    activation_bytes: float
    weight_bytes: float
    quantisation_bytes: float = 0.0
    unpacked: bool = False
    work: float = 1.0


FORMS = {
    "bf16": Form("bf16", "bf16", 2.0, 2.0),
    "fp16": Form("bf16", "fp16", 2.0, 2.0),  # the same units at the same rate
    "fp32": Form("bf16", "fp32", 4.0, 4.0),  # the same library; peaks differ
    # per tensor: one pass finds the largest (2 bytes), another reads and writes (3)
    "fp8": Form("fp8", "fp8", 1.0, 1.0, 5.0),
    # groups of 128 are scaled in one pass; a scale of 4 bytes a group, or 128 x 128 weights
    "fp8_block": Form("fp8_block", "fp8", 1 + 4 / 128, 1 + 4 / 128**2, 3 + 4 / 128),
    # groups of 32, a scale of one byte each (Open Compute Project, "Microscaling Formats", 2023)
    "mxfp8": Form("fp8", "fp8", 1 + 1 / 32, 1 + 1 / 32, 3 + 1 / 32),
    "int8": Form("int8", "int8", 1.0, 1.0, 3.0),
    # 4 bits and a scale of one byte for 16; of the open format for 32
    "fp4": Form("fp4", "fp4", 0.5625, 0.5625, 2.5625),
    "mxfp4": Form("fp4", "fp4", 0.5 + 1 / 32, 0.5 + 1 / 32, 2.5 + 1 / 32),
    # weights only: activations and arithmetic stay 16 bits; a 16-bit scale for 128 weights, or 8 bits for 32
    "int8_weight": Form("bf16", "bf16", 2.0, 1 + 2 / 128, unpacked=True),
    "int4_weight": Form("bf16", "bf16", 2.0, 0.5 + 2 / 128, unpacked=True),
    "mxfp4_weight": Form("bf16", "bf16", 2.0, 0.5 + 1 / 32, unpacked=True),
}
"""Forms by name."""

NAMES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float8": "fp8",
    "nvfp4": "fp4",
    "int8_wo": "int8_weight",
    "int4_wo": "int4_weight",
    "w8a16": "int8_weight",
    "w4a16": "int4_weight",
    "w4a16_mxfp4": "mxfp4_weight",
}
"""Other names of forms."""


def form_of(name: str) -> Form:
    """Return a form by name.

    Raises
    ------
    ValueError
        Where there is none of that name.
    """
    key = name.strip().lower()
    found = FORMS.get(NAMES.get(key, key))
    if found is None:
        raise ValueError(f"no form of matrix product is named {name!r}; there are {', '.join((*FORMS, *NAMES))}")
    return found


def semi_structured(form: Form) -> Form:
    """Return a form with 2:4 sparse weights, which needs an accelerator that multiplies them so.

    Notes
    -----
    Half of the weights stay, each with an index of 2 bits (arXiv 2104.08378, section 3); `SPARSE_SPEEDUP` holds the
    overhead of the arithmetic.
    """
    return replace(form, weight_bytes=form.weight_bytes / 2 + 1 / 8, work=form.work / SPARSE_SPEEDUP)


def unstructured(form: Form, density: float) -> Form:
    """Return a form of whose weights a share `density` stays, anywhere.

    Notes
    -----
    Kept as values and a map of one bit a weight, unpacked to dense tiles on the way: the traffic shrinks, the
    arithmetic does not (Xia et al., "Flash-LLM", arXiv 2309.10285: load as sparse, compute as dense).
    """
    return replace(form, weight_bytes=form.weight_bytes * density + 1 / 8, unpacked=True)


def product(
    m: Number,
    n: Number,
    k: Number,
    form: Form,
    *,
    batch: Number = 1.0,
    output_bytes: float = OUTPUT_BYTES,
    warm: bool = False,
) -> dict[str, Array]:
    """Return the inputs of `time`.

    Parameters
    ----------
    m, n, k : int or array
        Tokens, output features and input features.
    form : Form
        How factors are kept and multiplied.
    batch : int or array
        Independent products of these sizes in one launch.
    output_bytes : float
        Traffic of an element of C: 8 where it is added to sums in 32 bits.
    warm : bool
        Timed back to back, so that small weights stay in L2. Not so in a model's step.
    """
    columns = {
        "m": m,
        "n": n,
        "k": k,
        "batch": batch,
        "output_bytes": output_bytes,
        "arithmetic": ARITHMETIC.index(form.arithmetic),
        "activation_bytes": form.activation_bytes,
        "weight_bytes": form.weight_bytes,
        "quantisation_bytes": form.quantisation_bytes,
        "unpacked": form.unpacked,
        "work": form.work,
        "warm": warm,
    }
    return {name: np.asarray(values) for name, values in columns.items()}


def shapes(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the inputs of `time` for measured rows, which were timed back to back."""
    found: dict[str, Array] = {}
    for name, rows in frame.reset_index(drop=True).groupby("dtype", sort=False):
        part = product(
            rows["m"].to_numpy(float),
            rows["n"].to_numpy(float),
            rows["k"].to_numpy(float),
            form_of(str(name)),
            warm=True,
        )
        for column, values in part.items():
            found.setdefault(column, np.empty(len(frame), values.dtype))[rows.index] = values
    return found


def variants(frame: pd.DataFrame) -> pd.Series[str]:
    """Return the variant of every measured row."""
    return frame["dtype"].astype(str).map(lambda name: form_of(name).variant)


def peaks(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return the dense peak of every product's arithmetic [FLOP/s]; fp16 and bf16 stand in for each other.

    Raises
    ------
    ValueError
        Where the device has no such arithmetic.
    """
    known = dict(device.peak)
    for one, other in (("bf16", "fp16"), ("fp16", "bf16")):
        if one not in known and other in known:
            known[one] = known[other]
    table = np.array([known.get(name, np.nan) for name in ARITHMETIC])
    found: Array = table[shapes["arithmetic"]]
    if np.isnan(found).any():
        missing = ARITHMETIC[int(np.asarray(shapes["arithmetic"])[np.isnan(found)].flat[0])]
        raise ValueError(f"{device.name} has no {missing} peak; it has {', '.join(device.peak)}")
    return found


def roofline(shapes: Mapping[str, Array], device: Device) -> Array:
    """Return seconds of max(FLOPs/peak, cold bytes/bandwidth); making narrow activations does not count."""
    m, n, k = shapes["m"], shapes["n"], shapes["k"]
    moved = shapes["activation_bytes"] * m * k + shapes["weight_bytes"] * n * k + shapes["output_bytes"] * m * n
    flops = 2.0 * m * n * k * shapes["work"]
    found: Array = shapes["batch"] * np.maximum(flops / peaks(shapes, device), moved / device.bandwidth)
    return found


@dataclass(frozen=True)
class _Rates:
    """What a device does in a millisecond under one set of parameters, and the times that no shape changes [ms]."""

    units: float
    whole_waves: bool
    paired: float
    compute: float
    memory: float
    port: float
    l2: float
    unpack: float
    launch: float
    splitting: float


def _rates(device: Device, parameters: GemmParameters) -> _Rates:
    port = np.inf if device.units < FEW_UNITS else PORT_BYTES_PER_CLOCK * device.clock / 1e3
    return _Rates(
        units=float(device.units),
        whole_waves=device.architecture not in PERSISTENT,
        paired=PAIRED.get(device.architecture, 1.0),
        compute=parameters.compute / 1e3,
        memory=parameters.memory * device.bandwidth / 1e3,
        port=port,
        l2=L2_SHARE * port * device.units * MULTICAST.get(device.architecture, 1.0),
        unpack=UNPACKED_PER_CLOCK * device.clock / 1e3,
        launch=parameters.launch_clocks / device.streaming_clock * 1e3,
        splitting=parameters.split_clocks / device.streaming_clock * 1e3,
    )


def time(shapes: Mapping[str, Array], device: Device, parameters: GemmParameters) -> tuple[Array, Array]:
    """Return seconds of the kernel and what bounds it.

    Notes
    -----
    With u units, tile M x N, split s, k' = k/s in whole steps, blocks B = ceil(m/M) ceil(n/N) s of every product of a
    batch, waves w = max(B/u, 1), whole where the schedule is static, b_A, b_W and b_C bytes an element, e_c and e_m the
    shares of peak and bandwidth::

        t    = t_0/clock + q m k / (e_m bandwidth)
               + min over tiles and splits [(t_c^4 + t_x^4 + t_p^4 + t_2^4 + t_m^4)^(1/4) + [s > 1] t_s/clock]
        t_c  = w (k' + 384/b_A) 2 M N u / (e_c peak)  arithmetic, and filling and draining the pipeline of a tile
        t_x  = w k' N / (64 clock)                    unpacking of narrow weights
        t_p  = w k' (M b_A + N b_W/g) / (64 clock)    a unit's port to L2; g units load columns together
        t_2  = (n k b_W ceil(m/M)/g + m k b_A ceil(n/N)) / (32 c u clock)   L2; c blocks share what one reads
        t_m  = (m k b_A + m n b_C + [cold] n k b_W) / (e_m bandwidth)

    Traffic and blocks are those of all products of a batch. q is the traffic of making narrow activations. The exponent
    makes a soft maximum: parts overlap but for their ends. Partial sums of split-K stay in L2, not counted apart.
    """
    arrays = np.broadcast_arrays(*(np.asarray(values) for values in shapes.values()))
    flat = {name: values.reshape(-1) for name, values in zip(shapes, arrays, strict=True)}
    seconds, bounds = np.empty(arrays[0].size), np.empty(arrays[0].size, np.int8)
    rates = _rates(device, parameters)
    for start in range(0, seconds.size, CHUNK):
        rows = slice(start, start + CHUNK)
        milliseconds, bounds[rows] = _chunk({name: values[rows] for name, values in flat.items()}, device, rates)
        seconds[rows] = milliseconds * 1e-3
    return seconds.reshape(arrays[0].shape), bounds.reshape(arrays[0].shape)


def _chunk(shapes: Mapping[str, Array], device: Device, rates: _Rates) -> tuple[Array, Array]:
    """Return milliseconds and bound, in 32 bits: fourth powers of milliseconds stay in range from 1 ns to a month."""
    shape = {name: values.astype(np.float32) for name, values in shapes.items()}
    m, n, k = shape["m"], shape["n"], shape["k"]
    batch = shape["batch"]
    activations, weights = batch * m * k * shape["activation_bytes"], batch * n * k * shape["weight_bytes"]
    warm = shapes["warm"].astype(bool) & (COPIES * weights < WARM_SHARE * device.l2)
    output = batch * m * n * shape["output_bytes"]
    memory = (activations + output + np.where(warm, np.float32(0), weights)) / rates.memory
    quantisation = batch * m * k * shape["quantisation_bytes"] / rates.memory
    multiplication = (2.0 * rates.units / rates.compute * shapes["work"] / peaks(shapes, device)).astype(np.float32)
    fill = FILL_BYTES / shape["activation_bytes"]
    unpacking = shape["unpacked"] / rates.unpack
    unpacked = bool(unpacking.any())

    def parts(tile_m: Any, tile_n: Any, split: Any) -> tuple[Array, Array, Array]:
        """Return arithmetic, unpacking, and port and L2 to the fourth power, of a tile and split, or one for each."""
        inner = np.ceil(k / (STEP * split)) * STEP
        rows, columns = np.ceil(m / tile_m), np.ceil(n / tile_n)
        waves = np.maximum(batch * rows * columns * (split / rates.units), np.float32(1))
        if rates.whole_waves:
            waves = np.ceil(waves)
        arithmetic = waves * (inner + fill) * (multiplication * (tile_m * tile_n))
        waves *= inner
        together = np.where(rows >= rates.paired, np.float32(rates.paired), np.float32(1)) if rates.paired > 1 else 1.0
        loaded = shape["activation_bytes"] * tile_m + shape["weight_bytes"] * tile_n / together
        port = waves * loaded / rates.port
        l2 = (weights * rows / together + activations * columns) / rates.l2
        computed = _fourth(arithmetic)
        if unpacked:
            computed += _fourth(waves * tile_n * unpacking)
        return computed, _fourth(port), _fourth(l2)

    streamed = _fourth(memory)
    best = np.full(m.shape, np.inf, np.float32)
    chosen = np.zeros(m.shape, np.intp)
    for j, split in enumerate(SPLITS):
        for i, (tile_m, tile_n) in enumerate(TILES):
            computed, port, l2 = parts(tile_m, tile_n, split)
            found = np.sqrt(np.sqrt(computed + port + l2 + streamed))
            if split > 1:
                found += rates.splitting
            better = found < best
            np.copyto(best, found, where=better)
            np.copyto(chosen, j * len(TILES) + i, where=better)
    tiles = np.array(TILES, np.float32)[chosen % len(TILES)]
    splits = np.array(SPLITS, np.float32)[chosen // len(TILES)]
    computed, port, l2 = parts(tiles[:, 0], tiles[:, 1], splits)
    fixed = rates.launch + rates.splitting * (splits > 1)
    held = np.where(computed >= np.maximum(np.maximum(port, l2), _fourth(memory + quantisation)), COMPUTE, MEMORY)
    total = best + quantisation + rates.launch
    return total, np.where(fixed > total - fixed, LATENCY, held)


def _fourth(values: Array) -> Array:
    square: Array = values * values
    return square * square


MODEL = KernelModel("gemm", ("dtype", "m", "n", "k", "us_ref"), GemmParameters, shapes, time, roofline)
