"""A small fixed set of kernels to time on a machine, and what is written of it; ``bench_cuda`` runs them.

The rows have the columns of the kernel measurements, so that ``perfmodel calibrate`` and ``perfmodel validate`` read
them, with ``kind`` beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLUMNS = (
    "device", "kind", "dtype", "m", "n", "k", "attn_dtype", "kv_dtype", "batch", "seq", "kv_len", "heads", "kv_heads",
    "head_dim", "bytes", "us_ref", "us_p10", "us_p90", "repeats",
)  # fmt: skip
"""Columns of the file, in order; a kind leaves blank those of the others."""

BUDGET_S = 150.0
"""Time after which no further kernel is started [s]: all of it stays under three minutes."""

MEMORY_SHARE = 0.5
"""Share of the accelerator's memory that one kernel's operands may take."""

WEIGHT_COPIES = 5
"""Weights take turns, so that large ones come from memory as in a model; five copies below L2 stay there."""

LEAST_REPLAYS = 6
SAMPLE_S = 0.02
"""Time that the replays of one kernel should take together [s]."""

Kernel = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A kernel to time.

    Parameters
    ----------
    kind : str
        ``gemm``, ``attention-prefill``, ``attention-decode`` or ``copy``.
    shape : dict
        Its columns.
    footprint : float
        Bytes of its operands.
    """

    kind: str
    shape: dict[str, Any] = field(hash=False)
    footprint: float


def cases(memory_bytes: float) -> list[Case]:
    """Return the kernels to time, those that matter most first; what does not fit the memory is left out.

    Parameters
    ----------
    memory_bytes : float
        Memory of the accelerator [bytes].

    Notes
    -----
    A copy of 8 bytes is a launch; copies of a size that a last-level cache holds would not come from memory. Products
    are those of layers of 4,096 to 8,192 features at 1 to 8,192 tokens, and a small one; attention has grouped heads
    and heads of their own.
    """
    found = [_copy(2.0**power) for power in (3, 6, 9, 12, 14, 28, 29, 30, 31, 32)]
    sizes = ((4096, 4096), (28672, 4096), (4096, 14336), (1024, 8192), (512, 512))
    found += [_gemm(m, n, k) for m in (1, 16, 128, 257, 1024, 8192) for n, k in sizes]
    heads = ((32, 8), (32, 32))
    found += [_prefill(b, s, h, kv) for b in (1, 4) for s in (128, 1024, 4096, 8192) for h, kv in heads]
    found += [_decode(b, n, h, kv) for b in (1, 16, 64) for n in (512, 4096, 16384) for h, kv in heads]
    return [case for case in found if case.footprint <= MEMORY_SHARE * memory_bytes]


def _copy(moved: float) -> Case:
    return Case("copy", {"bytes": int(moved)}, moved)


def _gemm(m: int, n: int, k: int) -> Case:
    shape = {"dtype": "bfloat16", "m": m, "n": n, "k": k}
    return Case("gemm", shape, 2.0 * (m * k + m * n + WEIGHT_COPIES * n * k))


def _attention(**shape: int) -> dict[str, Any]:
    return {"attn_dtype": "bfloat16", "kv_dtype": "bfloat16", **shape, "head_dim": 128}


def _prefill(batch: int, seq: int, heads: int, kv_heads: int) -> Case:
    shape = _attention(batch=batch, seq=seq, heads=heads, kv_heads=kv_heads)
    return Case("attention-prefill", shape, 2.0 * batch * seq * 2 * (heads + kv_heads) * 128)


def _decode(batch: int, kv_len: int, heads: int, kv_heads: int) -> Case:
    shape = _attention(batch=batch, kv_len=kv_len, heads=heads, kv_heads=kv_heads)
    return Case("attention-decode", shape, 2.0 * batch * 2 * (kv_len * kv_heads + heads) * 128)


def replays(first_s: float) -> int:
    """Return how often to replay a kernel whose first replay took `first_s` [s]."""
    return int(np.clip(np.ceil(SAMPLE_S / max(first_s, 1e-9)), LEAST_REPLAYS, 1000))


def typical(seconds: Sequence[float]) -> dict[str, float | int]:
    """Return the columns of the times of all replays: their median, P10 and P90 [us], and their number.

    Raises
    ------
    ValueError
        Where a time is not positive: the clock does not tell so short a time.
    """
    times = np.asarray(seconds, dtype=float) * 1e6
    if not len(times) or not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError("a time is not positive")
    low, middle, high = np.percentile(times, (10, 50, 90))
    values = {"us_ref": middle, "us_p10": low, "us_p90": high}
    return {**{name: float(f"{value:.5g}") for name, value in values.items()}, "repeats": len(times)}


def measure(
    device: str,
    chosen: Iterable[Case],
    prepare: Callable[[Case], Kernel],
    timed: Callable[[Kernel], Sequence[float]],
    *,
    budget_s: float = BUDGET_S,
    now: Callable[[], float] = time.monotonic,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time kernels until the time is up.

    Parameters
    ----------
    device : str
        Name of the accelerator.
    chosen : iterable of Case
        What to time.
    prepare : callable
        Case -> kernel; raises RuntimeError where the machine cannot run it.
    timed : callable
        Kernel -> seconds of every replay.
    budget_s : float
        Time after which no further kernel is started [s].
    now : callable
        Clock [s].
    progress : callable
        Takes the share that is done.

    Returns
    -------
    rows, left_out : list of dict, list of str
        A row for every kernel, and why others have none.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    all_cases = list(chosen)
    start = now()
    for number, case in enumerate(all_cases):
        if now() - start > budget_s:
            left_out.append(f"{len(all_cases) - number} kernels: the time of {budget_s:g} s is up")
            break
        progress(number / len(all_cases))
        try:
            figures = typical(timed(prepare(case)))
        except (RuntimeError, ValueError, TypeError) as error:
            said = " ".join(str(error).split())[:120]
            left_out.append(f"{case.kind} {', '.join(f'{key} {value}' for key, value in case.shape.items())}: {said}")
            continue
        rows.append({"device": device, "kind": case.kind, **case.shape, **figures})
    return rows, left_out


def table(rows: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return rows in the order of `COLUMNS`, blank where a kind has no such column."""
    return [tuple(row.get(name) for name in COLUMNS) for row in rows]
