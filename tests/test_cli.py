"""The commands: what goes to which stream, with which exit status, and what it says."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from rich.cells import cell_len
from typer.testing import CliRunner

import solvers.train
from cli.app import app
from cli.progress import working
from hardware.catalogue import names
from perfmodel.architecture import architecture_names

SCENARIO = """\
kind: train
cluster: dgx-h100
nodes: 1
model: llama-3.1-8b
workload: {seq_len: 4096, global_batch: 64}
search: {micro_batch: [1], recompute: [selective], offload: [none]}
"""
HEAVY = ("numpy", "scipy", "pandas", "networkx", "pulp", "highspy", "rich", "yaml")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


def run(*words: object, status: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == status, (done.stdout, done.stderr)
    if status == 0:
        assert done.stderr == ""
    return done


def said(*words: object, status: int = 2) -> str:
    """What a failing command says: on standard error alone."""
    done = run(*words, status=status)
    assert done.stdout == ""
    return str(done.stderr)


def fits(text: str) -> bool:
    return all(cell_len(line) <= 80 and "…" not in line for line in text.splitlines())


# --- the program ----------------------------------------------------------------------------------------------


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["plan", "train", "--help"], ["--version"], ["hardware", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['perfmodel', *{words!r}]\n"
        "from cli.app import main\n"
        "try: main()\n"
        "finally: print(*sorted(sys.modules), file=sys.stderr)\n"
    )
    done = in_a_process(code)
    assert done.returncode == 0 and done.stdout
    loaded = set(done.stderr.split())
    assert not loaded & set(HEAVY)
    assert words[0] != "--help" or "pydantic" not in loaded  # typer itself needs it for the options of a command


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version").stdout)


def test_a_real_process(scenario: Path) -> None:
    code = "import sys; from cli.app import main; main()"
    command = [sys.executable, "-c", code, "predict", "train", str(scenario), "--set", "plan.tp=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert "\n--set plan.tp: plan.tp: does not divide the 32" in done.stderr and "Traceback" not in done.stderr
    command = [sys.executable, "-c", code, "hardware", "show", "l4", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["name"] == "l4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "trian", "x"], "No such command 'trian'"),
        (["plan", "train"], "Missing argument 'SCENARIO'"),
        (["plan", "train", "x.yaml", "--tpo", "3"], "No such option"),
        (["plan", "train", "x.yaml", "--format", "xml"], "'xml' is not one of"),
        (["plan", "train", "x.yaml", "--top", "-1"], "--top"),
        (["plan", "train", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
        (["plan", "train", "."], "cannot be read: Is a directory"),
        (["hardware", "show", "h1000"], 'did you mean "dgx-h100"'),
        (["hardware", "show", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (
            ["hardware", "list", "nodes"],
            'allowed: accelerator, node, cluster, efficiency, facility (did you mean "node"?)',
        ),
        (["hardware", "check", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["model", "show", "llama-3.1-71b"], 'did you mean "llama-3.1-70b"'),
        (["schema", "nod"], 'did you mean "node"'),
    ],
)
def test_wrong_words_are_told_without_a_traceback(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_fault_of_ours_is_one_line(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(solvers.train, "plan", broken)
    text = said("plan", "train", scenario, status=1)
    assert text == "perfmodel: ZeroDivisionError: division by zero (a fault of the program; --debug shows where)\n"
    assert "Traceback" in said("plan", "train", scenario, "--debug", status=1)
    assert "Traceback" in said("--debug", "plan", "train", scenario, status=1)


def test_a_fault_of_the_input_has_no_traceback_even_with_debug(scenario: Path) -> None:
    assert "Traceback" not in said("plan", "train", scenario, "--set", "nodez=1", "--debug")


# --- plan and predict -----------------------------------------------------------------------------------------


def test_plan_train_in_every_form(scenario: Path, tmp_path: Path) -> None:
    answer = json.loads(run("plan", "train", scenario, "--format", "json").stdout)
    assert answer["schema"] == "perfmodel.plan/1" and answer["status"] == "optimal" and answer["gap"] == 0
    assert answer["objective"]["value"] == answer["prediction"]["step_time_s"] == answer["best_bound"]
    table = run("plan", "train", scenario).stdout
    assert table.startswith("train: optimal") and fits(table)
    again = yaml.safe_load(run("plan", "train", scenario, "--format", "yaml").stdout)
    assert again["plan"] == answer["plan"] and again["prediction"] == answer["prediction"]
    rows = list(csv.DictReader(io.StringIO(run("plan", "train", scenario, "--format", "csv", "--top", "2").stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["step_time_s"]) == answer["prediction"]["step_time_s"]
    assert rows[0]["scenario_workload_seq_len"] == "4096" and "scenario_framework" not in rows[0]


@pytest.mark.parametrize("ending", [".json", ".yaml", ".csv", ".txt"])
def test_the_ending_of_the_output_sets_its_form(scenario: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plan{ending}"
    assert run("plan", "train", scenario, "-o", path).stdout == ""
    text = path.read_text()
    if ending == ".json":
        assert json.loads(text)["kind"] == "train"
    elif ending == ".yaml":
        assert yaml.safe_load(text)["kind"] == "train"
    else:
        assert text.startswith("rank,status" if ending == ".csv" else "train: optimal")
    assert "\x1b" not in text
    run("plan", "train", scenario, "-o", path, "--format", "json")
    assert json.loads(path.read_text())["kind"] == "train"


def test_an_output_that_cannot_be_written(scenario: Path, tmp_path: Path) -> None:
    text = said("plan", "train", scenario, "-o", tmp_path / "no" / "plan.json")
    assert text.startswith("--output ") and "cannot be written: No such file or directory" in text


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_a_saved_plan_is_predicted_to_the_same_number(scenario: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plan{ending}"
    run("plan", "train", scenario, "-o", path)
    planned = yaml.safe_load(path.read_text())
    predicted = json.loads(run("predict", "train", path, "--format", "json").stdout)
    assert predicted["prediction"] == planned["prediction"]
    assert predicted["breakdown"] == planned["breakdown"]
    assert predicted["plan"] == planned["plan"]
    assert fits(run("predict", "train", path).stdout)


def test_values_can_be_set(scenario: Path) -> None:
    def step(*options: str) -> float:
        words = [
            "predict",
            "train",
            str(scenario),
            "--format",
            "json",
            "--set",
            "plan={tp: 8, seq_parallel: true}",
            *options,
        ]
        return float(json.loads(run(*words).stdout)["prediction"]["step_time_s"])

    assert step("--set", "workload.global_batch=128") > 1.5 * step()
    assert step("--set", "accelerator.peak.bf16=100 TFLOP/s") > 2 * step()
    assert step("--set", "node.links.nvlink.bandwidth=20 GB/s") > step()
    rows = run("plan", "train", scenario, "--format", "csv", "--set", "accelerator.memory.bandwidth=4 TB/s").stdout
    (row, *_) = csv.DictReader(io.StringIO(rows))
    assert row["scenario_accelerator_memory_bandwidth_bytes_per_s"] == "4000000000000.0"
    assert row["scenario_cluster"] == "dgx-h100"


def test_an_infeasible_question_is_answered(scenario: Path) -> None:
    words = ["plan", "train", scenario, "--set", "model=llama-3.1-405b"]
    answer = json.loads(run(*words, "--format", "json").stdout)
    assert answer["status"] == "infeasible" and answer["plan"] is None and answer["relaxation"]
    table = run(*words).stdout
    assert table.startswith("train: infeasible") and "What would do" in table and fits(table)
    (row,) = csv.DictReader(io.StringIO(run(*words, "--format", "csv").stdout))
    assert row["status"] == "infeasible" and row["objective"] == ""


def test_what_runs_today_is_compared(scenario: Path) -> None:
    table = run("plan", "train", scenario, "--set", "plan={tp: 8, seq_parallel: true}").stdout
    assert "Gain over today" in table and re.search(r"best +today", table) and fits(table)


def test_all_faults_of_a_file_at_once(scenario: Path) -> None:
    scenario.write_text(
        SCENARIO.replace("seq_len", "seqlen").replace("llama-3.1-8b", "lama").replace("kind: train", "kind: trane")
    )
    text = said("plan", "train", scenario)
    assert f"{scenario}:1:1: kind: " in text
    assert f"{scenario}:4:1: model: " in text
    assert f"{scenario}:5:12: workload.seqlen: " in text and 'did you mean "seq_len"' in text
    assert len(text.splitlines()) == 3


def test_predict_needs_a_plan(scenario: Path) -> None:
    assert f"{scenario}:1:1: plan: missing; predict costs the plan" in said("predict", "train", scenario)


# --- the catalogue --------------------------------------------------------------------------------------------


def test_hardware_list() -> None:
    table = run("hardware", "list").stdout
    assert fits(table)
    for kind in ("accelerator", "node", "cluster", "efficiency", "facility"):
        for name in names(kind):
            assert re.search(rf"^  {re.escape(name)}  ", table, re.MULTILINE), name
    assert re.search(r"h100-80gb-sxm +989 TFLOP/s +80 GiB +3\.35 TB/s +700 W", table)
    one = json.loads(run("hardware", "list", "node", "--format", "json").stdout)
    assert one == {"node": list(names("node"))}
    rows = list(csv.DictReader(io.StringIO(run("hardware", "list", "--format", "csv").stdout)))
    assert {"kind": "cluster", "name": "superpod-16x8"} in rows


@pytest.mark.parametrize(
    "name", [*names("accelerator"), *names("node"), *names("cluster"), *names("efficiency"), *names("facility")]
)
def test_everything_in_the_catalogue_can_be_shown(name: str) -> None:
    table = run("hardware", "show", name).stdout
    assert fits(table) and re.search(rf"^  name +{re.escape(name)}\b", table, re.MULTILINE)


def test_a_name_goes_before_an_alias_of_another_kind() -> None:
    assert json.loads(run("hardware", "show", "GB200_NVL72", "--format", "json").stdout)["kind"] == "node"


def test_hardware_show() -> None:
    table = run("hardware", "show", "H100_SXM").stdout
    assert re.search(r"memory\.bandwidth +3\.35 TB/s +\[1\]", table)
    assert re.search(r"peak\.int8 +1\.979 POP/s", table)
    assert re.search(r"^  price +-", table, re.MULTILINE)
    assert re.search(r"^  \[1\]  \S.*\d{4}-\d\d", " ".join(table.split("Sources")[1].split("\n")[1:3]), re.MULTILINE)
    assert re.search(r"nics\.bandwidth +400 Gbit/s", run("hardware", "show", "dgx-h100").stdout)
    assert json.loads(run("hardware", "show", "l4", "--format", "json").stdout)["memory"]["bandwidth"] == 3e11
    rows = {
        row["key"]: row for row in csv.DictReader(io.StringIO(run("hardware", "show", "l4", "--format", "csv").stdout))
    }
    assert rows["memory.bandwidth_bytes_per_s"]["value"] == "300000000000.0"
    assert rows["memory.bandwidth_bytes_per_s"]["date"] and rows["price"]["value"] == ""


CHIP = """\
kind: accelerator
name: mine
vendor: me
architecture: hopper
peak: {bf16: 1 TFLOP/s}
memory: {capacity: 8 GiB, bandwidth: 1 TB/s}
units: 8
clock: 1 GHz
power: {limit: 100 W}
provenance:
  memory: {source: a friend, date: 2026-11, evidence: from memory, note: roughly}
"""


def test_hardware_show_and_check_take_files(tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(CHIP)
    assert re.search(r"memory\.capacity +8 GiB +\[1\]", run("hardware", "show", path).stdout)
    text = run("hardware", "check", path).stdout
    assert f"{path}: memory: from memory (a friend, 2026-11): roughly" in text
    assert text.endswith("1 file, 0 faults, 1 from memory\n")


def test_hardware_check_tells_every_fault_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(CHIP.replace("bandwidth:", "bandwith:").replace("clock: 1 GHz", "clock: fast"))
    done = run("hardware", "check", path, status=2)
    assert re.search(
        rf"^{path}:6:27: memory\.bandwith: unknown key; .*did you mean \"bandwidth\"", done.stderr, re.MULTILINE
    )
    assert re.search(rf"^{path}:8:1: clock: ", done.stderr, re.MULTILINE)
    assert done.stdout == "1 file, 2 faults, 0 from memory\n"


def test_the_catalogue_is_good() -> None:
    text = run("hardware", "check").stdout
    assert re.search(r"\d+ files, 0 faults, \d+ from memory\n$", text)
    assert re.search(r"^\w+/[\w.-]+\.yaml: \S+: from memory \(", text)


def test_model_list_and_show() -> None:
    table = run("model", "list").stdout
    assert fits(table)
    for name in architecture_names():
        assert re.search(rf"^  {re.escape(name)}  ", table, re.MULTILINE), name
    rows = json.loads(run("model", "list", "--format", "json").stdout)
    # Llama 3.1 70B has 70.55 billion parameters (its model card says 70.6B).
    assert {row["name"]: row["parameters"] for row in rows}["llama-3.1-70b"] == pytest.approx(70.6e9, rel=2e-3)
    assert len(list(csv.DictReader(io.StringIO(run("model", "list", "--format", "csv").stdout)))) == len(rows)


@pytest.mark.parametrize("name", architecture_names())
def test_every_model_can_be_shown(name: str) -> None:
    table = run("model", "show", name).stdout
    assert fits(table) and "group 1" in table


def test_model_show_takes_files(tmp_path: Path) -> None:
    shown = json.loads(run("model", "show", "DeepSeekV3", "--format", "json").stdout)
    assert shown["layers"][1]["feed_forward"]["experts"] == 256
    cells = run("model", "show", "deepseek-v3", "--format", "csv").stdout.splitlines()
    assert len(cells) == 2 and "layers_2_feed_forward_experts" in cells[0]
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert str(path) in said("model", "show", path)


@pytest.mark.parametrize("name", ["accelerator", "node", "cluster", "efficiency", "facility", "model", "train"])
def test_schemas(name: str, scenario: Path, tmp_path: Path) -> None:
    schema = json.loads(run("schema", name).stdout)
    jsonschema.validators.validator_for(schema).check_schema(schema)
    path = tmp_path / "schema.json"
    run("schema", name, "-o", path)
    assert json.loads(path.read_text()) == schema
    if name == "train":
        jsonschema.validate(yaml.safe_load(scenario.read_text()), schema)


# --- against measurements -------------------------------------------------------------------------------------


def test_validate_training(tmp_path: Path) -> None:
    path, rows = tmp_path / "runs.csv", tmp_path / "rows.csv"
    # Two made-up runs, one of them of a model nobody knows, with a note that a spreadsheet would run.
    path.write_text(
        "gpu,gpus,gpus_per_node,model,seq_len,global_batch,micro_batch,tp,pp,dp,precision,framework,iter_time_s,notes\n"
        "H100 SXM,8,8,llama-3.1-8b,4096,64,1,2,1,4,bf16,Megatron-LM,3.5,=1+1\n"
        "H100 SXM,8,8,nobody-7b,4096,64,1,1,1,8,bf16,Megatron-LM,3.5,\n"
    )
    words = ["validate", "training", path, "--by", "gpu", "--rows", rows]
    report = json.loads(run(*words, "--format", "json").stdout)
    assert (report["kind"], report["rows"], report["scored"]) == ("training", 2, 1)
    assert report["skipped"][0]["rows"] == 1
    assert report["groups"]["gpu=H100 SXM"]["mape"] == report["mape"]
    written = list(csv.DictReader(io.StringIO(rows.read_text())))
    assert len(written) == 2 and written[0]["notes"] == "'=1+1" and written[1]["predicted"] == ""
    ratio = float(written[0]["predicted"]) / 3.5
    assert report["mape"] == pytest.approx(abs(ratio - 1)) and float(written[0]["error"]) == pytest.approx(ratio - 1)
    table = run(*words).stdout
    assert fits(table) and "training: 1 of 2 rows scored (50.0%)" in table and "gpu=H100 SXM" in table
    lines = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv").stdout)))
    assert [line["group"] for line in lines] == ["all", "gpu=H100 SXM"]
    assert float(lines[0]["mape"]) == report["mape"]


def test_validate_training_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    text = said("validate", "training", tmp_path / "a.csv", tmp_path / "b.csv")
    assert text == f"{tmp_path}/a.csv: there is no such file\n{tmp_path}/b.csv: there is no such file\n"


# --- a sign of life -------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with working("searching") as progress:
        progress(0.5)
    assert file.getvalue() == ""


def test_progress_shows_only_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with working("searching") as progress:
        progress(0.5)
    assert terminal.getvalue() == ""
    monkeypatch.setattr("cli.progress.DELAY_S", 0.0)
    with working("searching [tp]") as progress:
        progress(0.25)
        for _ in range(200):
            if "searching [tp]" in terminal.getvalue():
                break
            time.sleep(0.02)
    assert "searching [tp]" in terminal.getvalue()
