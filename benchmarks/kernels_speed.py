"""Time a million kernels of each model, or as many as are asked for, on one core.

OMP_NUM_THREADS=1 python benchmarks/kernels_speed.py [ROWS]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd

from hardware.catalogue import find
from perfmodel.kernels.model import device_of
from perfmodel.measured_kernels import model_of
from perfmodel.validate_kernels import shipped

ROWS = 1_000_000


def powers(generator: np.random.Generator, low: int, high: int, rows: int) -> np.ndarray:
    """Sizes spread evenly over their logarithm."""
    return np.round(2.0 ** generator.uniform(low, high, rows)).astype(int)


def columns(kind: str, rows: int) -> pd.DataFrame:
    """Random shapes of a kind."""
    generator = np.random.default_rng(0)
    attention = {
        "attn_dtype": "bfloat16", "kv_dtype": "bfloat16", "batch": powers(generator, 0, 8, rows),
        "heads": 32, "kv_heads": generator.choice([4, 8, 32], rows), "head_dim": 128,
    }  # fmt: skip
    if kind == "gemm":
        sizes = {name: powers(generator, 0 if name == "m" else 5, 16, rows) for name in "mnk"}
        return pd.DataFrame({"device": "h100", "dtype": "bfloat16", **sizes})
    if kind == "moe":
        shape = {
            "moe_dtype": "bfloat16", "num_tokens": powers(generator, 0, 15, rows), "hidden_size": 4096,
            "inter_size": 1536, "topk": 8, "num_experts": 128, "moe_tp_size": 1,
            "moe_ep_size": generator.choice([1, 2, 4, 8], rows), "gated": 1, "distribution": "balanced",
        }  # fmt: skip
        return pd.DataFrame({"device": "h100", **shape})
    length = "seq" if kind == "attention-prefill" else "kv_len"
    return pd.DataFrame({"device": "h100", **attention, length: powers(generator, 4, 16, rows)})


def main(rows: int) -> None:
    """Time each kind."""
    accelerator = find("accelerator", "h100-80gb-sxm")
    for kind in ("gemm", "attention-prefill", "attention-decode", "moe"):
        model = model_of(kind)
        shapes = model.shapes(columns(kind, rows))
        parameters = shipped(model)(accelerator, "bf16")
        start = time.perf_counter()
        model.time(shapes, device_of(accelerator), parameters)
        print(f"{kind:18} {rows:,} shapes in {time.perf_counter() - start:.2f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
