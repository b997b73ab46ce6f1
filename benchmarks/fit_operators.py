"""Fit the launch time and the two efficiencies of each operator class, per device, on measured kernels.

    t = t0 + max(FLOPs / (e_c peak), bytes / (e_m bandwidth))

minimising the mean |ln(predicted / measured)| over all rows with a reference value, and fit the collective form of
``perfmodel.collectives`` on measured collectives. Prints what ``hardware/catalog/efficiency/*.yaml`` and
``perfmodel/calibrated/collectives.yaml`` hold.

    python benchmarks/fit_operators.py            # reads PERFMODEL_DATA, default ../shared/data
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kernels"
PEAK = {"a100_sxm": {"bfloat16": 312e12}, "h100_sxm": {"bfloat16": 989e12, "fp8": 1979e12, "fp8_block": 1979e12}}
BANDWIDTH = {"a100_sxm": 2.039e12, "h100_sxm": 3.35e12}
L2 = {"a100_sxm": 40 * 2**20, "h100_sxm": 50 * 2**20}
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def fit(compute_s: np.ndarray, memory_s: np.ndarray, measured_s: np.ndarray) -> str:
    """Fit (t0, e_c, e_m) to the two roofline times [s] and the measured time [s]; return the line to print."""

    def loss(x: np.ndarray) -> float:
        t0, compute, memory = np.exp(x)
        predicted = t0 + np.maximum(compute_s / compute, memory_s / memory)
        return float(
            np.mean(np.abs(np.log(predicted / measured_s))) + 10 * max(0.0, compute - 1) + 10 * max(0.0, memory - 1)
        )

    best = min(
        (
            minimize(loss, np.log([t0, 0.6, 0.7]), method="Nelder-Mead", options={"maxiter": 2000, "fatol": 1e-6})
            for t0 in (3e-6, 1e-5)
        ),
        key=lambda result: result.fun,
    )
    t0, compute, memory = np.exp(best.x)
    residual = np.log(measured_s / (t0 + np.maximum(compute_s / compute, memory_s / memory)))
    error = np.expm1(-residual)
    return (
        f"launch {t0 * 1e6:6.2f} us  compute {compute:.3f}  memory {memory:.3f}  spread {residual.std():.3f}"
        f"  | rows {len(residual)}  MAPE {np.abs(error).mean():.3f}  bias {np.exp(-residual.mean()):.3f}"
    )


def gemm(device: str, dtype: str) -> Arrays:
    """Roofline times of measured matrix products."""
    rows = pd.read_csv(DATA / "gemm.csv.gz").query("device == @device and dtype == @dtype").dropna(subset=["us_ref"])
    width = 2 if dtype == "bfloat16" else 1
    flops = 2.0 * rows.m * rows.n * rows.k
    traffic = width * (rows.m * rows.k + rows.n * rows.k) + 2.0 * rows.m * rows.n
    return (
        (flops / PEAK[device][dtype]).to_numpy(),
        (traffic / BANDWIDTH[device]).to_numpy(),
        rows.us_ref.to_numpy() * 1e-6,
    )


def attention(device: str) -> Arrays:
    """Roofline times of causal self-attention at the lengths and head sizes of training (512 tokens and more)."""
    rows = pd.read_csv(DATA / "attention_prefill.csv.gz").dropna(subset=["us_ref"])
    rows = rows.query(
        "device == @device and attn_dtype == 'bfloat16' and kv_dtype == 'bfloat16' and seq >= 512 and head_dim >= 64"
    )
    flops = 2.0 * rows.batch * rows.heads * rows.seq * (rows.seq + 1) * rows.head_dim
    traffic = 2.0 * rows.batch * rows.seq * rows.head_dim * (2 * rows.heads + 2 * rows.kv_heads)
    return (
        (flops / PEAK[device]["bfloat16"]).to_numpy(),
        (traffic / BANDWIDTH[device]).to_numpy(),
        rows.us_ref.to_numpy() * 1e-6,
    )


def moe(device: str) -> Arrays:
    """Roofline times of the fused expert network, balanced, with the expected number of distinct experts touched."""
    rows = pd.read_csv(DATA / "moe.csv.gz").dropna(subset=["us_ref"])
    rows = rows.query(
        "device == @device and moe_dtype == 'bfloat16' and distribution == 'balanced' and moe_ep_size == 1"
    )
    rows = rows.query("num_tokens * topk >= 64 * num_experts")  # the token counts of training
    matrices = np.where(rows.gated == 1, 3, 2)
    local = rows.num_experts / rows.moe_ep_size
    width = rows.inter_size / rows.moe_tp_size
    tokens = rows.num_tokens * rows.topk / rows.moe_ep_size
    touched = local * (1 - (1 - rows.topk / rows.num_experts) ** rows.num_tokens)
    flops = 2.0 * tokens * matrices * rows.hidden_size * width
    traffic = 2.0 * touched * matrices * rows.hidden_size * width + 4.0 * tokens * rows.hidden_size
    return (
        (flops / PEAK[device]["bfloat16"]).to_numpy(),
        (traffic / BANDWIDTH[device]).to_numpy(),
        rows.us_ref.to_numpy() * 1e-6,
    )


def elementwise(device: str) -> Arrays:
    """Roofline times of norms, activations and additions of 512 tokens and more."""
    family = device.split("_")[0]  # noqa: F841 - named in the query
    rows = pd.read_csv(DATA / "vidur_layers.csv.gz").query("device == @family and num_tokens >= 512")
    traffic = {  # bytes read and written, two each
        "us_input_layernorm": 4.0 * rows.num_tokens * rows.n_embd,
        "us_post_attention_layernorm": 4.0 * rows.num_tokens * rows.n_embd,
        "us_add": 6.0 * rows.num_tokens * rows.n_embd,
        "us_mlp_act": 6.0 * rows.num_tokens * rows.n_expanded_embd / rows.tp,
    }
    memory_s, measured_s = [], []
    for column, size in traffic.items():
        known = rows[column] > 0
        memory_s.append((size / BANDWIDTH[device])[known].to_numpy())
        measured_s.append(rows[column][known].to_numpy() * 1e-6)
    memory = np.concatenate(memory_s)
    return np.zeros_like(memory), memory, np.concatenate(measured_s)


def power_exponents() -> None:
    """Print, for training runs that reach 85 % of the limit, the exponent of throughput in the power limit."""
    rows = pd.read_csv(DATA.parent / "kv_power" / "gpu_power_cap_training.csv")
    for gpu, runs in rows.groupby("gpu"):
        ratios: dict[float, list[float]] = {}
        for _, run in runs.groupby(["dataset", "network", "batch"]):
            ordered = run.sort_values("power_limit_w")
            largest = ordered.power_limit_w.max()
            if ordered.avg_power_w.iloc[-1] < 0.85 * largest:
                continue
            for limit, seconds in zip(ordered.power_limit_w, ordered.epoch_time_s, strict=True):
                if limit < largest:
                    ratios.setdefault(limit / largest, []).append(ordered.epoch_time_s.iloc[-1] / seconds)
        for share, speeds in sorted(ratios.items()):
            exponent = np.log(np.median(speeds)) / np.log(share)
            print(f"{gpu:8} power {share:.2f}  throughput {np.median(speeds):.3f}  exponent {exponent:.2f}")


def main() -> None:
    """Print the fits."""
    for device in ("a100_sxm", "h100_sxm"):
        for dtype in PEAK[device]:
            print(f"{device:9} gemm {dtype:10}", fit(*gemm(device, dtype)))
            c, m, t = gemm(device, dtype)
            large = np.maximum(c, m) > 20e-6
            print(f"{device:9}   roofline > 20 us ", fit(c[large], m[large], t[large]))
        print(f"{device:9} attention      ", fit(*attention(device)))
        print(f"{device:9} moe            ", fit(*moe(device)))
        print(f"{device:9} elementwise    ", fit(*elementwise(device)))
    power_exponents()


if __name__ == "__main__":
    main()
