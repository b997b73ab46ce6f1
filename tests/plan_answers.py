"""Made-up answers for the tests of results, exports and tables. Their numbers mean nothing."""

from typing import Any

from solvers.result import Objective, Result


def breakdown() -> dict[str, Any]:
    """Seconds in binary fractions, so that sums are exact."""
    return {
        "name": "step",
        "seconds": 12.5,
        "bound": "compute",
        "children": [
            {
                "name": "pipeline",
                "seconds": 11.0,
                "bound": "compute",
                "children": [
                    {"name": "forward, one micro-batch", "seconds": 3.5, "bound": "compute"},
                    {"name": "backward, one micro-batch", "seconds": 7.0, "bound": "compute"},
                    {"name": "bubble", "seconds": 0.5, "bound": "idle"},
                ],
            },
            {
                "name": "gradient reduction",
                "seconds": 1.0,
                "bound": "link",
                "children": [
                    {"name": "reduce-scatter over the leaf switches", "seconds": 1.0, "bound": "link"},
                    {"name": "all-gather, hidden", "seconds": 0.0, "bound": "link", "hidden_seconds": 0.75},
                ],
            },
            {"name": "optimizer", "seconds": 0.4921875, "bound": "memory"},
            {"name": "launch", "seconds": 0.0078125, "bound": "latency"},
        ],
    }


def prediction(step_time_s: float = 12.5) -> dict[str, Any]:
    return {
        "step_time_s": step_time_s,
        "step_time_s_p10": step_time_s * 0.95,
        "step_time_s_p90": step_time_s * 1.0625,
        "tokens_per_s_per_gpu": 1310.72,
        "tokens_per_s_per_gpu_p10": 1233.618823529412,
        "tokens_per_s_per_gpu_p90": 1379.7052631578947,
        "mfu": 0.4512345678901234,
        "hfu": 0.4612345678901234,
        "memory_bytes": {
            "weights": 17_642_000_000.0,
            "gradients": 35_284_000_000.0,
            "optimizer": 6_615_750_000.0,
            "activations": 12_884_901_888.0,
            "logits": 1_050_673_152.0,
            "communication": 268_435_456.0,
            "workspace": 536_870_912.0,
            "allocated_peak": 74_282_631_408.0,
            "reserved_peak": 76_511_110_350.24,
        },
        "power_w": 412_345.6,
        "energy_j": 5_154_320.0,
        "cost_usd_per_hour": 1536.0,
        "training_days": None,
    }


def plan(tp: int = 8, pp: int = 4, micro_batch: int = 2) -> dict[str, Any]:
    return {
        "tp": tp,
        "pp": pp,
        "dp": 512 // (tp * pp),
        "cp": 1,
        "ep": 1,
        "vpp": 2,
        "micro_batch": micro_batch,
        "zero_stage": 1,
        "seq_parallel": True,
        "recompute": "selective",
        "offload": None,
    }


def train_answer(**changes: Any) -> Result:
    parts: dict[str, Any] = {
        "kind": "train",
        "status": "optimal",
        "objective": Objective("step_time_s", 12.5, "s", "min"),
        "best_bound": 12.5,
        "gap": 0.0,
        "solve_time_s": 0.8123456789,
        "candidates": 184_320,
        "plan": plan(),
        "prediction": prediction(),
        "breakdown": breakdown(),
        "binding": [
            {
                "constraint": "memory[stage 0]",
                "slack": 9_388_235_569.76,
                "shadow_price": None,
                "unit": "bytes",
            },
            {"constraint": "nodes", "slack": 0, "shadow_price": -0.125, "unit": "nodes", "shadow_price_unit": "s/node"},
        ],
        "alternatives": [
            {"plan": plan(tp=4, micro_batch=1), "prediction": prediction(12.75)},
            {"plan": plan(pp=8, micro_batch=1), "prediction": prediction(13.125)},
        ],
        "why_not": [
            {
                "reason": "out of memory",
                "candidates": 90_211,
                "nearest": {"plan": plan(tp=2), "constraint": "memory[stage 0]", "excess_bytes": 1.5e9},
            },
            {"reason": "tp does not divide the attention heads", "candidates": 1200, "nearest": None},
        ],
        "scenario": {
            "kind": "train",
            "cluster": "dgx-h100",
            "nodes": 64,
            "model": "llama-3.1-70b",
            "workload": {"seq_len": 8192, "global_batch": 1024, "precision": "bf16"},
            "objective": "step_time_s",
        },
        "provenance": {
            "version": "0.1.0",
            "hardware": ["dgx-h100", {"name": "h100-80gb-sxm", "source": "data sheet", "date": "2024-05"}],
            "calibration": [{"name": "hopper", "fitted": "2026-11", "rows": 15456}],
        },
    }
    return Result(**{**parts, **changes})


def infeasible_answer() -> Result:
    return train_answer(
        status="infeasible",
        objective=Objective("step_time_s", None, "s", "min"),
        best_bound=None,
        gap=None,
        plan=None,
        prediction=None,
        breakdown=None,
        binding=[],
        alternatives=[],
        relaxation=[
            {"constraint": "memory[stage 0]", "now": 85_899_345_920.0, "needed": 103_079_215_104.0, "unit": "bytes"},
            {"constraint": "nodes", "now": 4, "needed": 6, "unit": ""},
        ],
    )
