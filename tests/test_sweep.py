"""Sweeps: every combination a row, the same as alone; stopped and changed sweeps go on; faults are placed."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import sweep as command
from cli.app import app
from solvers import sweep as solver

ROOT = Path(__file__).parent.parent
SCENARIO = """\
kind: train
cluster: dgx-h100
nodes: 1
model: llama-3.1-8b
workload: {seq_len: 4096, global_batch: 16}
search: {tp: [1, 2], cp: [1], micro_batch: [1]}
"""
SWEEP = """\
kind: sweep
scenario: base.yaml
vary:
  power.node_limit: [4 kW, 6 kW]
  workload.global_batch: [16, 32]
show: [step_time_s]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(SCENARIO)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def run(folder: Path, *options: str, text: str | None = None) -> Result:
    if text is not None:
        (folder / "sweep.yaml").write_text(text)
    return CliRunner().invoke(app, ["sweep", str(folder / "sweep.yaml"), "-o", str(folder / "out.csv"), *options])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_combination_is_a_row_and_says_what_it_does_alone(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    found = rows(folder)
    varied = [(float(row["scenario_power_node_limit_w"]), int(row["scenario_workload_global_batch"])) for row in found]
    assert varied == [(4000, 16), (4000, 32), (6000, 16), (6000, 32)]
    assert [row["status"] for row in found] == ["infeasible"] * 2 + ["optimal"] * 2
    for row, batch in zip(found[2:], ("16", "32"), strict=True):
        options = ["--set", "power.node_limit=6 kW", "--set", f"workload.global_batch={batch}", "--format", "json"]
        alone = json.loads(CliRunner().invoke(app, ["plan", "train", str(folder / "base.yaml"), *options]).stdout)
        assert float(row["objective"]) == alone["objective"]["value"] == float(row["step_time_s"])
        assert int(row["plan_tp"]) == alone["plan"]["tp"]
        assert float(row["memory_bytes_weights"]) == alone["prediction"]["memory_bytes"]["weights"]
    assert "step_time" in result.stdout and "infeasible" in result.stdout


def test_rows_that_are_there_are_not_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder)
    before = (folder / "out.csv").read_text()
    asked: list[Any] = []
    real = solver.answer

    def counted(*given: Any, **options: Any) -> Any:
        asked.append(given)
        return real(*given, **options)

    monkeypatch.setattr(solver, "answer", counted)
    assert run(folder).exit_code == 0 and not asked
    assert (folder / "out.csv").read_text() == before
    # one value more: two rows more
    assert run(folder, text=SWEEP.replace("6 kW", "6 kW, 8 kW")).exit_code == 0
    assert len(asked) == 2 and len(rows(folder)) == 6
    # another scenario: all of them
    assert run(folder, "--set", "model=llama-2-7b").exit_code == 0
    assert len(asked) == 8 and len(rows(folder)) == 12


def test_ctrl_c_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = solver.answer, [2]

    def interrupted(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(solver, "answer", interrupted)
    result = run(folder)
    assert result.exit_code == command.INTERRUPTED and "2 of 4 answered" in result.stderr
    assert len(rows(folder)) == 2
    monkeypatch.undo()
    assert run(folder).exit_code == 0
    whole = (folder / "out.csv").read_text()
    assert len(rows(folder)) == 4
    # a line that was cut off while it was written is computed again
    (folder / "out.csv").write_text(whole[:-40])
    assert run(folder).exit_code == 0

    def told(text: str) -> list[dict[str, str]]:
        return [{**row, "solve_time_s": ""} for row in csv.DictReader(text.splitlines())]

    assert told((folder / "out.csv").read_text()) == told(whole)


def test_cases_are_combined_with_what_varies_and_may_set_mappings(folder: Path) -> None:
    text = """\
kind: sweep
command: predict
scenario:
  kind: train
  cluster: dgx-h100
  nodes: 1
  model: llama-3.1-8b
  workload: {seq_len: 4096, global_batch: 16}
  plan: {tp: 8, seq_parallel: true}
cases:
  - {name: short, set: {workload: {seq_len: 2048, global_batch: 32}}}
  - {name: "=long"}
vary: {accelerator.power.limit: [500 W, 700 W]}
"""
    assert run(folder, text=text).exit_code == 0
    found = rows(folder)
    assert [(row["case"], row["scenario_accelerator_power_limit_w"]) for row in found] == [
        (name, watts) for name in ("short", "'=long") for watts in ("500.0", "700.0")
    ]
    assert [row["plan_power_cap_w"] for row in found] == ["500.0", "", "500.0", ""]
    assert float(found[0]["step_time_s"]) > float(found[1]["step_time_s"])


def test_faults_of_single_scenarios_leave_the_others(folder: Path) -> None:
    text = SWEEP.replace("4 kW", "6 kg")
    result = run(folder, text=text)
    assert result.exit_code == 2
    assert len(rows(folder)) == 2
    assert 'sweep.yaml:4:22: vary.power.node_limit[0]: power.node_limit: unknown unit "kg"' in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[16, 32]", "[]", "5:3: vary.workload.global_batch: should list a value at least"),
        ("base.yaml", "none.yaml", "none.yaml"),
        ("show:", "cases: [{name: a, set: {power.node_limit: 1 kW}}, {name: a}]\nshow:", "varies already"),
        ("show:", "cases: [{name: a}, {name: a}]\nshow:", '"a" is the name of an earlier case'),
        ("[16, 32]", f"{list(range(60_000))}", "120,000 scenarios; at most 100,000"),
        ("power.node_limit:", "power..node_limit:", "should be a dotted path"),
        ("kind: sweep", "kind: swep", "kind: "),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told(folder: Path, old: str, new: str, message: str) -> None:
    result = run(folder, text=SWEEP.replace(old, new))
    assert result.exit_code == 2 and message in result.stderr
    assert not (folder / "out.csv").exists()


def test_a_file_of_something_else_is_not_overwritten(folder: Path) -> None:
    (folder / "out.csv").write_text("a,b\n1,2\n")
    result = run(folder)
    assert result.exit_code == 2 and "no table of a sweep" in result.stderr
    assert (folder / "out.csv").read_text() == "a,b\n1,2\n"


def test_tokens_for_a_joule_under_caps(tmp_path: Path) -> None:
    example = ROOT / "examples" / "sweep-power-caps.yaml"
    result = CliRunner().invoke(app, ["sweep", str(example), "-o", str(tmp_path / "out.csv")])
    assert result.exit_code == 0, result.output
    found = rows(tmp_path)
    for name, slowest in (("prompts", 0.8), ("tokens", 0.95)):
        same = [row for row in found if row["case"] == name]
        rate, worth = ([float(row[key]) for row in same] for key in ("tokens_per_s_per_gpu", "all_tokens_per_j"))
        assert rate == sorted(rate, reverse=True) and worth == sorted(worth)
        half = [row["plan_power_cap_w"] for row in same].index("350.0")
        assert rate[half] > slowest * rate[0]
        # clocks follow the cap, 1 without one
        clocks = [float(row["clock_share"]) for row in same]
        assert clocks[0] == 1 and clocks == sorted(clocks, reverse=True)
