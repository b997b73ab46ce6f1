"""Measured operating points: columns, reasons, and the errors on the shared files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perfmodel.serving.engine import engines
from perfmodel.serving.serving_fit import OVERHEADS, fitting_rows, overhead_factor, with_host
from perfmodel.serving.validate_serving import predict_rows, read_files, validate
from perfmodel.validation import Defaults

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data"))
POINTS = DATA / "serving" / "serving_points.csv.gz"
needs_data = pytest.mark.skipif(not POINTS.exists(), reason=f"no measured operating points at {DATA}")

ROW = {
    "engine": "vllm", "engine_version": "0.12", "model": "llama3.1-8b", "gpu": "h100_sxm", "gpus": 1, "tp": 1,
    "isl": 1000, "osl": 200, "concurrency": 16, "regime": "closed_loop", "disaggregated": 0,
    "ttft_ms_mean": 100.0, "tpot_ms_mean": 10.0,
}  # fmt: skip


def _file(folder: Path, *changes: dict[str, object]) -> Path:
    path = folder / "points.csv"
    pd.DataFrame([ROW | change for change in changes]).to_csv(path, index=False)
    return path


def test_every_measured_value_is_a_line(tmp_path: Path) -> None:
    report, lines = validate([_file(tmp_path, {}, {"tpot_ms_mean": np.nan})])
    assert sorted(lines["metric"]) == ["tpot_ms_mean", "ttft_ms_mean", "ttft_ms_mean"]
    assert report["rows"] == 2
    assert set(report["metrics"]) == {"tpot_ms_mean", "ttft_ms_mean"}
    assert (lines["p10"] < lines["predicted"]).all()
    assert (lines["predicted"] < lines["p90"]).all()


def test_rows_that_cannot_be_predicted_keep_their_reason(tmp_path: Path) -> None:
    path = _file(tmp_path, {"gpu": "h900"}, {"model": "llama-9"}, {"engine": "nothing"}, {"precision_weights": "fp3"})
    _, lines = validate([path])
    said = " ".join(lines["skipped"])
    for part in ("h900", "llama-9", "nothing", "fp3"):
        assert part in said


def test_a_precision_that_the_device_lacks_is_said(tmp_path: Path) -> None:
    _, lines = validate([_file(tmp_path, {"gpu": "a100_sxm", "precision_weights": "fp8"})])
    assert "no fp8 peak" in lines["skipped"].iloc[0]


def test_four_bits_are_unpacked_where_nothing_multiplies_them(tmp_path: Path) -> None:
    changes = [{"precision_weights": name, "model": "llama3.1-70b", "gpus": 4, "tp": 4} for name in ("fp4", "bf16")]
    _, lines = validate([_file(tmp_path, *changes)])
    tokens = lines[lines["metric"] == "tpot_ms_mean"]["predicted"].to_numpy()
    # weights alone: 141 GB or 37 GB over 4 x 3.35 TB/s are 10.5 or 2.8 ms
    assert tokens[0] < tokens[1] - 4
    assert tokens[0] > 2.8


def test_other_files_are_skipped_with_the_columns_they_lack(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    report, lines = validate([path])
    assert report["scored"] == 0
    assert "engine" in lines["skipped"].iloc[0]


def test_an_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    changes = [{"concurrency": count, "tp": ways, "gpus": ways} for count in (1, 32) for ways in (1, 2)]
    forth = predict_rows(read_files([_file(tmp_path, *changes)]), Defaults())
    back = predict_rows(read_files([_file(tmp_path, *changes[::-1])]), Defaults())
    keys = ["metric", "concurrency", "tp"]
    assert np.allclose(forth.sort_values(keys)["predicted"], back.sort_values(keys)["predicted"], rtol=1e-12)


def test_three_rows_find_a_slower_host(tmp_path: Path) -> None:
    """Rows made with host times three times as long ask for a factor near three."""
    rows = read_files([_file(tmp_path, *({"concurrency": count} for count in (1, 4, 16)))])
    engine = engines()["vllm"]
    slow = engine.model_copy(update={name: 3 * getattr(engine, name) for name in OVERHEADS})
    made = predict_rows(rows, Defaults(), {"vllm": slow})
    for metric in ("ttft_ms_mean", "tpot_ms_mean"):
        rows[metric] = made.loc[made["metric"] == metric, "predicted"].to_numpy()
    assert overhead_factor(rows, engine) == pytest.approx(3.0, rel=0.1)


def test_pools_have_intervals_of_their_own(tmp_path: Path) -> None:
    apart = {"disaggregated": 1, "gpus": 2, "prefill_workers": 1, "decode_workers": 1, "prefill_tp": 1, "decode_tp": 1}
    _, lines = validate([_file(tmp_path, {"engine": "trtllm"}, {"engine": "trtllm"} | apart)])
    first = lines[lines["metric"] == "ttft_ms_mean"].set_index("disaggregated")
    engine = engines()["trtllm"]
    wide = first["p90"] / first["predicted"]
    ratio = engine.pool_spreads["ttft"] / engine.spreads["ttft"]
    assert np.log(wide[1]) / np.log(wide[0]) == pytest.approx(ratio)


@pytest.mark.slow
def test_the_host_is_found_from_first_tokens(tmp_path: Path) -> None:
    """Times made with a host of 10 ms, 30 ms one after another and 20 steps are met again within 2 %."""
    changes = [{"concurrency": count, "tp": ways, "gpus": ways} for count in (1, 4, 16, 64, 256) for ways in (1, 4)]
    rows = fitting_rows(read_files([_file(tmp_path, *changes)]))
    engine = engines()["vllm"]
    host = {"prompt_overhead": 0.01, "request_overhead": 0.03, "intake_steps": 20.0}
    made = predict_rows(rows, Defaults(), {"vllm": engine.model_copy(update=host)})
    rows["ttft_ms_mean"] = made.loc[made["metric"] == "ttft_ms_mean", "predicted"].to_numpy()
    start = engine.model_copy(update={"prompt_overhead": 0.05, "request_overhead": 0.01, "intake_steps": 3.0})
    found = with_host(rows, start)
    again = predict_rows(rows, Defaults(), {"vllm": found})
    again = again[again["metric"] == "ttft_ms_mean"]
    assert (again["predicted"] / again["measured"] - 1).abs().mean() < 0.02


@needs_data
@pytest.mark.slow
def test_shared_points_within_the_bars() -> None:
    report, _ = validate([POINTS], where=["spec_decode=none"], by=["disaggregated"])
    groups = report["metrics"]["tpot_ms_mean"]["groups"]
    assert groups["disaggregated=0"]["mape"] < 0.13
    assert groups["disaggregated=1"]["mape"] < 0.15
    report, _ = validate([POINTS], where=["spec_decode=none", "ttft_ms_mean<=20000"])
    assert report["metrics"]["ttft_ms_mean"]["mape"] < 0.30
