"""Measured power: kinds of file, reasons, and the errors on the shared files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli.export import to_yaml
from hardware.faults import InputError
from perfmodel.calibrate_power import calibrate
from perfmodel.calibrated_accelerator import written_description
from perfmodel.measured_kernels import accelerator_file
from perfmodel.power import Shares, Throttle, capped_speed, power_constants, shares_of
from perfmodel.power.power_fit import fit_throttles
from perfmodel.validate_power import REFERENCE, board_of, lines_of, model_family, read_files, validate
from perfmodel.validation import Defaults

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


def test_a_board_s_own_shares_are_found_in_rows_that_they_made(tmp_path: Path) -> None:
    # rows of a board that draws otherwise than the catalogue's, by the model's own equation
    board = board_of("H100")
    assert board is not None
    true = Shares(0.174, 0.55, 0.9, 0.02)
    batches = [4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 160.0, 192.0, 256.0]
    rows: list[dict[str, object]] = [{"avg_batch": n, "output_tok_s": 150.0 * n**0.75} for n in batches]
    path = _file(tmp_path, SERVE, *rows)
    known = power_constants()
    frame = read_files([path])
    (lines,) = lines_of("serving", frame, board, Defaults(), replace(known, boards={**known.boards, board.name: true}))
    _file(tmp_path, SERVE, *(row | {"power_per_gpu_w": w} for row, w in zip(rows, lines["predicted"], strict=True)))
    found = calibrate([path])
    (part,) = found.parts
    assert isinstance(part.parameters, Shares)
    assert part.parameters.memory == pytest.approx(0.55, rel=0.02)
    assert part.parameters.compute == pytest.approx(0.9, rel=0.02)
    assert part.after["mape"] < 0.005 < part.before["mape"]
    # the description is read back, and is what predictions of that board take from then on
    text = to_yaml(found.description(written_description(board)))
    (tmp_path / "mine.yaml").write_text(text)
    mine = accelerator_file(tmp_path / "mine.yaml")
    assert shares_of(mine).memory == pytest.approx(part.parameters.memory, rel=1e-3)
    report, _ = validate([path], hardware=[mine])
    assert report["mape"] < 0.01
    (again,) = lines_of("serving", frame, mine, Defaults())
    assert np.allclose(again["predicted"], lines["predicted"], rtol=0.01)


def test_how_a_board_meets_caps_is_found_in_rows_that_it_made(tmp_path: Path) -> None:
    true = Throttle(0.2, 0.15, 0.6, 0.02)
    rows: list[dict[str, object]] = []
    for batch, watts in enumerate((150.0, 190.0, 220.0, 245.0), start=1):
        for limit in (250.0, 200.0, 150.0, 125.0, 100.0):
            speed = float(capped_speed(watts, limit, 250.0, true))
            rows.append({"batch": batch, "power_limit_w": limit, "epoch_time_s": 10 / speed, "avg_power_w": watts})
    found = calibrate([_file(tmp_path, CAP, *rows)])
    (part,) = found.parts
    assert isinstance(part.parameters, Throttle)
    assert part.after["mape"] < 0.01 < part.before["mape"]
    values = part.parameters
    for limit in (240.0, 180.0, 110.0):
        assert float(capped_speed(230, limit, 250, values)) == pytest.approx(
            float(capped_speed(230, limit, 250, true)), rel=0.02
        )


def test_too_few_rows_or_several_boards_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="10 of a kind do"):
        calibrate([_file(tmp_path, SERVE, {})])
    with pytest.raises(InputError, match="--device chooses among several"):
        calibrate([_file(tmp_path, SERVE, {}, {"gpu": "B200"})])
    with pytest.raises(InputError, match="rows of one known board are needed"):
        calibrate([_file(tmp_path, SERVE, {"gpu": "h900"})])
