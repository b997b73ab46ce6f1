"""Predictions held against measurements: figures, filters, defaults, and every row accounted for."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hardware.catalogue import resolve_cluster
from hardware.faults import InputError
from perfmodel.validate_training import validate
from perfmodel.validation import grouped, kept, statistics

DATA = Path(os.environ.get("PERFMODEL_DATA", Path(__file__).parent.parent / "../shared/data")) / "training"

ROW = {
    "row_id": "a", "source_key": "s", "model": "llama-3.1-8b", "gpu": "H100-SXM5-80GB", "gpus": 16, "gpus_per_node": 8,
    "inter_node_gbps": 3200, "seq_len": 8192, "global_batch": 32, "tp": 2, "pp": 1, "dp": 8, "cp": 1, "ep": 1,
    "vpp": 1, "micro_batch": 1, "zero_stage": 1, "seq_parallel": 1, "recompute": "none", "precision": "bf16",
    "framework": "Megatron-LM", "overlap": "all", "iter_time_s": 2.0,
}  # fmt: skip


def table(path: Path, *rows: dict[str, object]) -> Path:
    pd.DataFrame([ROW | row for row in rows]).to_csv(path, index=False)
    return path


def test_statistics_by_hand() -> None:
    frame = pd.DataFrame(
        {
            "measured": [1.0, 1.0, 2.0, 4.0],
            "predicted": [1.1, 0.8, 2.0, 8.0],
            "p10": [1.0, 0.7, 1.5, 7.0],
            "p90": [1.2, 0.9, 2.5, 9.0],
        }
    )
    figures = statistics(frame)
    assert figures["rows"] == 4
    assert figures["mape"] == pytest.approx((0.1 + 0.2 + 0 + 1) / 4)
    assert figures["median_ape"] == pytest.approx(0.15)
    assert figures["bias"] == pytest.approx((1.1 * 0.8 * 1 * 2) ** 0.25)
    assert figures["coverage_p10_p90"] == 0.5  # the first lies on its P10, the third inside
    assert figures["interval_width"] == pytest.approx((1.2 + 0.9 / 0.7 + 2.5 / 1.5 + 9 / 7) / 4)
    assert statistics(frame.iloc[:0]) == {"rows": 0}


def test_conditions_keep_rows_by_number_and_by_text() -> None:
    frame = pd.DataFrame({"gpus": [8, 16, 32], "precision": ["bf16", "fp8", "bf16"]})
    assert list(kept(frame, ["gpus >= 16", "precision=bf16"])["gpus"]) == [32]
    assert list(kept(frame, ["gpus!=16"])["gpus"]) == [8, 32]
    with pytest.raises(InputError) as caught:
        kept(frame, ["cards>3", "gpus ~ 3"])
    assert len(caught.value.faults) == 2


def test_groups_are_crossed() -> None:
    frame = pd.DataFrame(
        {"a": [1, 1, 2], "b": ["x", "y", "x"], "measured": 1.0, "predicted": 1.0, "p10": 1.0, "p90": 1.0}
    )
    assert set(grouped(frame, ["a", "b"])) == {"a=1,b=x", "a=1,b=y", "a=2,b=x"}
    with pytest.raises(InputError):
        grouped(frame, ["c"])


def test_a_measurement_equal_to_its_prediction_has_no_error(tmp_path: Path) -> None:
    _, rows = validate([table(tmp_path / "a.csv", {})])
    seconds = float(rows["predicted"].iloc[0])
    report, _ = validate([table(tmp_path / "b.csv", {"iter_time_s": seconds}, {"iter_time_s": 2 * seconds})])
    assert report["scored"] == 2
    assert report["mape"] == pytest.approx(0.25)  # 0 and 1/2
    assert report["bias"] == pytest.approx(0.5**0.5)


def test_throughput_stands_in_for_time(tmp_path: Path) -> None:
    throughput = 32 * 8192 / (2.0 * 16)
    with_time, _ = validate([table(tmp_path / "a.csv", {})])
    without, _ = validate([table(tmp_path / "b.csv", {"iter_time_s": None, "tokens_per_s_per_gpu": throughput})])
    assert without["mape"] == pytest.approx(with_time["mape"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": "H1000"}, "unknown accelerator 'H1000'"),
        ({"iter_time_s": None}, "no measured value"),
        ({"dp": 4}, "tp pp cp dp = 8 does not fill 16 GPUs"),
        ({"micro_batch": 3}, "dp times micro-batch does not divide the global batch"),
        ({"precision": "int5"}, "unknown precision 'int5'"),
        ({"pp": 64, "tp": 1, "dp": 1, "gpus": 64}, "32 layers do not spread over 64 stages of 1 chunks"),
        ({"model": "Nemotron_3_Nano"}, "state-space layers are not modelled"),
        ({"gpu": "A100-SXM4-80GB", "precision": "fp8"}, "has no fp8 peak"),
        ({"seq_len": None}, "gpus, seq_len or global_batch is blank"),
    ],
)
def test_a_row_that_cannot_be_predicted_keeps_its_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    report, rows = validate([table(tmp_path / "a.csv", {}, change)])
    assert (report["rows"], report["scored"]) == (2, 1)
    [skipped] = report["skipped"]
    assert reason in skipped["reason"]
    assert skipped["rows"] == 1
    assert np.isnan(rows["predicted"].iloc[1])


def test_blank_fields_take_counted_defaults(tmp_path: Path) -> None:
    blank = {"vpp": None, "recompute": None, "framework": None, "overlap": None, "zero_stage": None}
    report, _ = validate([table(tmp_path / "a.csv", {}, blank)])
    assert report["scored"] == 2
    counted = {entry["field"]: (entry["value"], entry["rows"]) for entry in report["defaults"]}
    assert counted["vpp"] == ("1", 1)
    assert counted["framework"] == ("megatron-lm", 1)
    assert counted["recompute"] == ("selective", 1)
    assert set(counted) == {"vpp", "framework", "recompute", "overlap", "zero_stage"}


def test_a_file_with_other_columns_is_reported(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("kind,value\na,1\nb,2\n", encoding="utf-8")
    report, _ = validate([table(tmp_path / "a.csv", {}), other])
    assert (report["rows"], report["scored"]) == (3, 1)
    assert "no training columns" in report["skipped"][0]["reason"]
    assert report["skipped"][0]["rows"] == 2


def test_device_names_ignore_case_and_separators(tmp_path: Path) -> None:
    names = ["h100_sxm5 80gb", "H100-SXM5-80GB", "h100"]
    report, rows = validate([table(tmp_path / "a.csv", *({"gpu": name} for name in names))])
    assert report["scored"] == 3
    assert rows["predicted"].nunique() == 1


def test_slower_network_and_hardware_of_ones_own(tmp_path: Path) -> None:
    rows = [{"inter_node_gbps": rate, "zero_stage": 3, "overlap": "dp grad bucketing off"} for rate in (3200, 400)]
    _, found = validate([table(tmp_path / "a.csv", *rows)])
    assert found["predicted"].iloc[0] < found["predicted"].iloc[1]
    node = tmp_path / "own.yaml"
    node.write_text(
        "kind: node\nname: own-box\naccelerators:\n  count: 8\n  type:\n    kind: accelerator\n    name: own-chip\n"
        "    vendor: v\n    architecture: hopper\n    peak: {bf16: 500 TFLOP/s}\n"
        "    memory: {capacity: 80 GiB, bandwidth: 2 TB/s}\n    units: 100\n    clock: 1 GHz\n"
        "    power: {limit: 350 W}\n"
        "links:\n  - {name: nvlink, type: nvswitch, bandwidth: 450 GB/s}\n"
        "nics: {count: 8, bandwidth: 400 Gbit/s}\n",
        encoding="utf-8",
    )
    described = [resolve_cluster(str(node), Path())]
    report, own = validate([table(tmp_path / "b.csv", {}, {"gpu": "Own Chip"})], hardware=described)
    assert report["scored"] == 2
    assert own["predicted"].iloc[1] > own["predicted"].iloc[0]


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no measured training runs at PERFMODEL_DATA")


@pytest.fixture(scope="module")
def development() -> dict[str, object]:
    return validate(sorted(DATA.glob("*.csv")))[0]


@needs_data
@pytest.mark.slow
def test_every_measured_row_is_accounted_for(development: dict) -> None:
    skipped = sum(entry["rows"] for entry in development["skipped"])
    assert development["scored"] + skipped == development["rows"]
    # all rows of the files with training columns carry a measured time
    other = sum(entry["rows"] for entry in development["skipped"] if "no training columns" in entry["reason"])
    assert development["scored"] >= 0.95 * (development["rows"] - other)
    assert development["median_ape"] <= 0.25


@needs_data
@pytest.mark.slow
def test_intervals_cover_in_every_large_group(development: dict) -> None:
    large = {name: group for name, group in development["groups"].items() if group["rows"] >= 50}
    assert len(large) >= 3
    for name, group in large.items():
        assert 0.6 <= group["coverage_p10_p90"] <= 0.95, name


@needs_data
@pytest.mark.slow
def test_memory_of_measured_runs(development: dict) -> None:
    assert development["memory_mape"] < 0.35
