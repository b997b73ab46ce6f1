"""Files for scripts and spreadsheets say exactly what the answer says, and run nothing."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plan_answers import infeasible_answer, plan, prediction, train_answer

from cli.export import result_csv, to_csv, to_json, to_yaml, write
from hardware.yaml_source import read_yaml

printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], include_characters="\n\t\r"))
scalars = (
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15) | st.sampled_from([True, None])
)
plain_data = st.recursive(
    scalars | printable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


# --- JSON and YAML --------------------------------------------------------------------------------------------


@given(plain_data)
def test_json_and_yaml_are_read_back_equal(data: Any) -> None:
    assert json.loads(to_json(data)) == data
    assert yaml.safe_load(to_yaml(data)) == data


@pytest.mark.parametrize("result", [train_answer(), infeasible_answer()])
def test_answers_are_read_back_equal(result: Any) -> None:
    written = result.to_dict()
    assert json.loads(to_json(written)) == written
    assert list(json.loads(to_json(written))) == list(written)
    assert yaml.safe_load(to_yaml(written)) == written  # YAML 1.1
    assert read_yaml(to_yaml(written), "plan.yaml").data == written  # YAML 1.2
    assert read_yaml(to_json(written), "plan.json").data == written


@pytest.mark.parametrize(
    "text", ["NO", "1e12", "1:30", "0x1f", "~", "null", "y", "", " x", "-", "2026-11", ".nan", "1_000"]
)
def test_texts_stay_texts(text: str) -> None:
    data = {"value": text}
    assert yaml.safe_load(to_yaml(data)) == data
    assert read_yaml(to_yaml(data), "x").data == data


def test_floats_keep_their_last_digit_and_stay_floats() -> None:
    values = [0.1 + 0.2, 1e20, 1e-7, 5e-324, 1.7976931348623157e308, 3.0]
    for again in (json.loads(to_json(values)), yaml.safe_load(to_yaml(values)), read_yaml(to_yaml(values), "x").data):
        assert again == values
        assert all(isinstance(value, float) for value in again)


def test_no_file_holds_numbers_that_are_not_finite() -> None:
    data = {"a": math.nan, "b": [math.inf, -math.inf], "c": 1.0}
    assert json.loads(to_json(data)) == yaml.safe_load(to_yaml(data)) == {"a": None, "b": [None, None], "c": 1.0}
    assert to_csv(["a", "b"], [[math.nan, -math.inf]]) == "a,b\n,\n"


# --- CSV ------------------------------------------------------------------------------------------------------


def test_csv_columns_and_rows() -> None:
    rows = read_csv(result_csv(train_answer(), {"kind": "train", "nodes": 64, "workload": {"seq_len": 8192}}))
    assert list(rows[0]) == [
        "rank", "status", "objective", "best_bound", "gap",
        "plan_tp", "plan_pp", "plan_dp", "plan_cp", "plan_ep", "plan_vpp", "plan_micro_batch", "plan_zero_stage",
        "plan_seq_parallel", "plan_recompute", "plan_offload",
        "step_time_s", "step_time_s_p10", "step_time_s_p90", "tokens_per_s_per_gpu", "tokens_per_s_per_gpu_p10",
        "tokens_per_s_per_gpu_p90", "mfu", "hfu",
        "memory_bytes_weights", "memory_bytes_gradients", "memory_bytes_optimizer", "memory_bytes_activations",
        "memory_bytes_logits", "memory_bytes_communication", "memory_bytes_workspace", "memory_bytes_allocated_peak",
        "memory_bytes_reserved_peak", "power_w", "energy_j", "cost_usd_per_hour", "training_days",
        "scenario_kind", "scenario_nodes", "scenario_workload_seq_len",
    ]  # fmt: skip
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert [row["status"] for row in rows] == ["optimal", "feasible", "feasible"]
    assert [row["plan_tp"] for row in rows] == ["8", "4", "8"]
    assert [float(row["objective"]) for row in rows] == [12.5, 12.75, 13.125]
    # |12.75 - 12.5| / 12.75 and |13.125 - 12.5| / 13.125
    assert [float(row["gap"]) for row in rows] == [0.0, pytest.approx(1 / 51), pytest.approx(1 / 21)]
    assert {row["plan_seq_parallel"] for row in rows} == {"true"}
    assert {row["training_days"] for row in rows} == {""}
    assert {row["scenario_workload_seq_len"] for row in rows} == {"8192"}


def test_csv_numbers_survive_both_readers() -> None:
    result = train_answer()
    text = result_csv(result)
    assert result.prediction is not None
    assert float(read_csv(text)[0]["mfu"]) == result.prediction["mfu"]
    frame = pd.read_csv(io.StringIO(text))
    reserved = result.prediction["memory_bytes"]["reserved_peak"]
    assert frame["mfu"][0] == pytest.approx(result.prediction["mfu"], rel=1e-15)  # pandas may miss the last bit
    assert frame["memory_bytes_reserved_peak"][0] == pytest.approx(reserved, rel=1e-15)
    assert frame["plan_seq_parallel"].tolist() == [True] * 3
    assert frame["plan_dp"].tolist() == [16, 32, 8]


def test_csv_of_an_infeasible_answer_is_one_row() -> None:
    (row,) = read_csv(result_csv(infeasible_answer(), {"nodes": 4}))
    assert row == {
        "rank": "1", "status": "infeasible", "objective": "", "best_bound": "", "gap": "", "scenario_nodes": "4",
    }  # fmt: skip


def test_csv_of_plans_with_different_fields() -> None:
    result = train_answer(
        alternatives=[{"plan": {"tp": 1, "spare": [1, {"a": "b,c"}]}, "prediction": prediction(13.0)}]
    )
    first, second = read_csv(result_csv(result, {}))
    assert first["plan_spare"] == "" and second["plan_pp"] == ""
    assert json.loads(second["plan_spare"]) == [1, {"a": "b,c"}]


def test_csv_gives_quantities_of_the_scenario_their_unit() -> None:
    text = result_csv(
        train_answer(),
        {
            "cluster": {"fabric": {"link": "400 Gbit/s", "oversubscription": 4}, "node": "dgx-h100"},
            "accelerator": {"memory": {"bandwidth": 4e12, "capacity": "80GiB"}, "peak": {"fp8": "1.979 PFLOP/s"}},
            "slo": {"ttft_p99": "300 ms", "tpot_s": "50 ms"},
            "model": "70B",
            "search": {"limit": 3},
            "label": "12 monkeys",
            "cluster.node.links[0].latency": "2 us",
        },
    )
    row = read_csv(text)[0]
    assert {key: value for key, value in row.items() if key.startswith("scenario_")} == {
        "scenario_cluster_fabric_link_bytes_per_s": "50000000000.0",
        "scenario_cluster_fabric_oversubscription": "4",
        "scenario_cluster_node": "dgx-h100",
        "scenario_accelerator_memory_bandwidth_bytes_per_s": "4000000000000.0",
        "scenario_accelerator_memory_capacity_bytes": "85899345920.0",
        "scenario_accelerator_peak_fp8_flop_per_s": "1979000000000000.0",
        "scenario_slo_ttft_p99_s": "0.3",
        "scenario_slo_tpot_s": "0.05",
        "scenario_model": "70B",
        "scenario_search_limit": "3",
        "scenario_label": "12 monkeys",
        "scenario_cluster_node_links_0_latency_s": "2e-06",
    }


@pytest.mark.parametrize("text", ["=1+1", "+1", "-3.5", "@SUM(A1)", "\tx", "\rx", "\x00x", "\nx", "\x7fx"])
def test_texts_that_a_spreadsheet_would_run_are_escaped(text: str) -> None:
    (row,) = read_csv(to_csv(["value"], [[text]]))
    assert row["value"] == "'" + text
    result = train_answer(plan={**plan(), "note": text}, scenario={"label": text})
    assert read_csv(result_csv(result))[0]["plan_note"] == "'" + text
    assert read_csv(result_csv(result))[0]["scenario_label"] == "'" + text


def test_numbers_are_never_touched() -> None:
    assert to_csv(["a", "b", "c"], [[-3.5, -2, 1e-300]]) == "a,b,c\n-3.5,-2,1e-300\n"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00")), min_size=1, max_size=4))
def test_every_text_is_one_cell(texts: list[str]) -> None:
    (row,) = list(csv.reader(io.StringIO(to_csv(texts, []), newline=""), strict=True))
    assert [cell.removeprefix("'") for cell in row] == [text.removeprefix("'") for text in texts] or row == []


def test_files_have_line_feeds_and_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    write(to_csv(["größe"], [["a,b"]]), path)
    assert path.read_bytes() == 'größe\n"a,b"\n'.encode()
