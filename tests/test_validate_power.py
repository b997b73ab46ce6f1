"""Measured power: kinds of file, reasons, and the errors on the shared files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perfmodel.power.power_fit import fit_throttles
from perfmodel.validate_power import REFERENCE, model_family, read_files, validate

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kv_power"
SERVING, CAPS = DATA / "llm_serving_power.csv", DATA / "gpu_power_cap_training.csv"
PHASES, TRAFFIC = DATA / "a100_phase_power.csv", DATA / "node_idle_busy_power.csv"
needs_data = pytest.mark.skipif(not SERVING.exists(), reason=f"no measured power at {DATA}")

CAP = {"gpu": "V100", "dataset": "a", "network": "b", "batch": 8, "power_limit_w": 250.0, "epoch_time_s": 10.0,
       "avg_power_w": 240.0}  # fmt: skip
SERVE = {"task": "lm-arena-chat", "model": "Qwen/Qwen3-8B", "total_params_b": 8.0, "active_params_b": 8.0,
         "weights": "bfloat16", "gpu": "H100", "num_gpus": 1, "avg_batch": 64.0, "avg_output_tokens": 600.0,
         "output_tok_s": 4300.0, "power_per_gpu_w": 500.0}  # fmt: skip


def _file(folder: Path, base: dict[str, object], *changes: dict[str, object]) -> Path:
    path = folder / "power.csv"
    pd.DataFrame([base | change for change in changes]).to_csv(path, index=False)
    return path


def test_a_group_is_compared_to_its_highest_limit(tmp_path: Path) -> None:
    path = _file(tmp_path, CAP, {}, {"power_limit_w": 150.0, "epoch_time_s": 12.5}, {"batch": 16})
    report, rows = validate([path])
    assert (report["rows"], report["scored"], report["measured"]) == (3, 1, 1)
    assert report["skipped"] == [{"reason": REFERENCE, "rows": 2}]
    scored = rows[rows["skipped"] == ""].iloc[0]
    assert scored["measured"] == pytest.approx(0.8)
    assert scored["p10"] < scored["predicted"] < scored["p90"]


def test_rows_that_cannot_be_predicted_keep_their_reason(tmp_path: Path) -> None:
    _, rows = validate([_file(tmp_path, SERVE, {}, {"gpu": "h900"})])
    assert "h900" in rows["skipped"].iloc[-1]
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    report, rows = validate([other])
    assert report["scored"] == 0
    assert "no kind of power" in rows["skipped"].iloc[0]


def test_blank_and_broken_numbers_are_said(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{}, {"avg_batch": None}, {"output_tok_s": "many"}, {"power_per_gpu_w": None}]
    report, _ = validate([_file(tmp_path, SERVE, *rows)])
    assert report["scored"] == 1
    assert [(entry["rows"], "no number" in entry["reason"]) for entry in report["skipped"]] == [(2, True)]


def test_unknown_models_take_the_parameters_of_the_row(tmp_path: Path) -> None:
    report, _ = validate([_file(tmp_path, SERVE, {"model": "someone/unheard-of"})])
    assert report["scored"] == 1
    assert any("unknown model" in entry["field"] for entry in report["defaults"])


def test_families() -> None:
    known = {
        "Qwen/Qwen3-32B": "qwen3 dense", "Qwen/Qwen3-VL-30B-A3B-Instruct": "qwen3 moe",
        "meta-llama/Llama-3.3-70B-Instruct": "llama 3", "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama 4",
        "google/gemma-3-12b-it": "gemma 3", "nvidia/NVIDIA-Nemotron-Nano-9B-v2": "nemotron",
        "deepseek-ai/DeepSeek-V3.1": "deepseek",
    }  # fmt: skip
    assert {name: model_family(name) for name in known} == known


def test_a_throttle_that_made_the_rows_is_found_again(tmp_path: Path) -> None:
    # f^3 law without fluctuation or floor, 25 W static of 250
    limits = np.array([100.0, 125, 150, 175, 200, 225, 250])
    rows = []
    for batch, watts in enumerate((150.0, 200.0, 250.0)):
        clock = np.cbrt(np.minimum((limits - 25) / (watts - 25), 1))
        rows += [{"batch": batch, "power_limit_w": cap, "epoch_time_s": 100 / f, "avg_power_w": min(watts, cap)}
                 for cap, f in zip(limits, clock, strict=True)]  # fmt: skip
    frame = read_files([_file(tmp_path, CAP, *rows)])
    found = fit_throttles(frame).throttles["volta"]
    assert found.static == pytest.approx(0.1, abs=0.02)
    assert found.fluctuation == pytest.approx(0.02, abs=0.02)
    assert found.spread < 0.01


@needs_data
def test_serving_power_within_the_bars() -> None:
    report, _ = validate([SERVING], by=["gpu", "task"])
    assert report["scored"] == report["rows"] == 501
    for gpu in ("H100", "B200"):
        for task, most in (("lm-arena-chat", 0.10), ("image-chat", 0.15)):
            figures = report["groups"][f"gpu={gpu},task={task}"]
            assert figures["mape"] <= most
            assert 0.6 <= figures["coverage_p10_p90"] <= 0.95
    assert 0.75 <= report["coverage_p10_p90"] <= 0.85


@needs_data
def test_capped_training_within_the_bars() -> None:
    report, _ = validate([CAPS], by=["gpu"])
    assert report["scored"] == report["measured"] == 931
    assert report["median_ape"] <= 0.05
    assert report["mape"] <= 0.07
    assert 0.75 <= report["coverage_p10_p90"] <= 0.85


@needs_data
def test_other_measurements_are_scored() -> None:
    report, _ = validate([PHASES, TRAFFIC])
    assert set(report["metrics"]) == {"avg_power_frac", "peak_power_frac", "busy_w", "idle_w"}
    assert report["scored"] == 33
    assert report["metrics"]["idle_w"]["mape"] < 0.15
    assert report["groups"][f"file={TRAFFIC.name}"] == report["metrics"]["busy_w"]


@needs_data
@pytest.mark.slow
def test_families_left_out() -> None:
    report, _ = validate([SERVING], where=["task=lm-arena-chat"], leave_out="family")
    figures = report["left_out"]
    errors = [part["mape"] * part["rows"] for part in figures.values()]
    assert sum(errors) / sum(part["rows"] for part in figures.values()) <= 0.12
