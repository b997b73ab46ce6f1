"""Pictures: what they hold, and what is said without the library that draws them."""

import builtins
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from plan_answers import breakdown
from typer.testing import CliRunner

from cli.app import app
from cli.plots import check, draw, rows, title
from hardware.faults import InputError
from solvers.result import Result

SCENARIO = """\
kind: train
cluster: dgx-h100
nodes: 2
model: llama-3.1-8b
workload: {seq_len: 4096, global_batch: 64}
search: {micro_batch: [1], recompute: [selective], offload: [none], cp: [1]}
plan: {tp: 8, seq_parallel: true}
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plots") / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture(scope="module")
def answer(scenario: Path) -> Result:
    import json

    done = CliRunner().invoke(app, ["plan", "train", str(scenario), "--format", "json"])
    return Result.from_dict(json.loads(done.stdout))


def texts(path: Path) -> list[str]:
    """Every text of an SVG file, which must be well-formed."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_rows_add_up_to_the_whole() -> None:
    tree = breakdown()
    found = rows(tree)
    assert sum(row.seconds for row in found) == tree["seconds"]
    assert sum(row.hidden_seconds for row in found) == 0.75
    assert [row.name for row in found][:3] == [
        "backward, one micro-batch",
        "forward, one micro-batch",
        "reduce-scatter over the leaf switches",
    ]
    lengths = [row.length for row in found[:-1]]
    assert lengths == sorted(lengths, reverse=True)
    assert found[-1].name == "1 smaller" and found[-1].parts == {"latency": 0.0078125}


def test_terms_of_one_name_are_one_row_by_what_bounds_them() -> None:
    leaf = {"name": "experts", "seconds": 2.0, "bound": "compute"}
    tree = {
        "name": "step",
        "seconds": 6.0,
        "children": [
            {"name": "forward", "seconds": 2.0, "children": [leaf]},
            {"name": "backward", "seconds": 4.0, "children": [{**leaf, "seconds": 4.0, "bound": "memory"}]},
            {"name": "experts, hidden", "seconds": 0.0, "hidden_seconds": 1.0, "bound": "link"},
        ],
    }
    (row,) = rows(tree)
    assert row.name == "experts" and row.parts == {"compute": 2.0, "memory": 4.0, "link": 0.0}
    assert row.hidden_seconds == 1.0


def test_a_long_breakdown_keeps_its_longest_terms() -> None:
    children = [{"name": f"term {i}", "seconds": float(i), "bound": "compute"} for i in range(1, 41)]
    found = rows({"name": "step", "seconds": float(sum(range(41))), "children": children})
    assert found[0].name == "term 40" and found[-1].name == "26 smaller"
    assert sum(row.seconds for row in found) == sum(range(41))


def test_svg_says_every_term_with_its_unit(answer: Result, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    draw(answer, path)
    said = texts(path)
    assert answer.breakdown is not None and answer.plan is not None
    for row in rows(answer.breakdown):
        assert row.name in said
    for text in ("time of a step [s]", "memory [GiB]", "P10-P90", "hidden", "this plan", "not beaten", "today"):
        assert text in said
    assert answer.prediction is not None
    assert f"capacity, {answer.prediction['memory_available_bytes'] / 2**30:.0f} GiB" in said
    head = " ".join(said)
    assert "llama-3.1-8b" in head and "2 x dgx-h100" in head and f"dp {answer.plan['dp']}" in head


@pytest.mark.parametrize(
    ("ending", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml"), (".SVG", b"<?xml")]
)
def test_forms_by_ending(answer: Result, tmp_path: Path, ending: str, start: bytes) -> None:
    first, again = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    draw(answer, first)
    draw(answer, again)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == again.read_bytes()


def test_a_prediction_alone_is_drawn(scenario: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.svg"
    done = CliRunner().invoke(app, ["predict", "train", str(scenario), "--plot", str(path)])
    assert done.exit_code == 0 and done.stderr == "" and done.stdout.startswith("train: feasible")
    said = texts(path)
    assert "tensor-parallel communication" in said and "memory [GiB]" not in said


def test_plan_draws_beside_the_answer(scenario: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    done = CliRunner().invoke(app, ["plan", "train", str(scenario), "--plot", str(path), "--format", "csv"])
    assert done.exit_code == 0 and done.stderr == "" and done.stdout.startswith("rank,")
    assert path.stat().st_size > 10_000


def test_an_infeasible_answer_is_not_drawn(scenario: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    words = ["predict", "train", str(scenario), "--set", "model=llama-3.1-405b", "--plot", str(path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and not path.exists()
    assert done.stderr == f"--plot {path}: nothing to draw, the answer is infeasible\n"


def test_without_a_plan_there_is_nothing_to_draw(answer: Result, tmp_path: Path) -> None:
    nothing = Result("train", "infeasible", answer.objective.__class__("step_time_s", None, "s", "min"))
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(nothing, tmp_path / "a.svg")


def test_title_leaves_out_what_is_least(answer: Result) -> None:
    first, second = title(answer)
    assert first == "llama-3.1-8b on 2 x dgx-h100 (16 accelerators), bf16, 4096 tokens, batch 64"
    assert "recompute selective" in second and "tp 1" not in second and "none" not in second


def test_a_form_that_is_none_is_told_before_the_search(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "train", str(tmp_path / "nowhere.yaml"), "--plot", "plan.jpg"])
    assert done.exit_code == 2 and done.stdout == ""
    assert "--plot plan.jpg: " in done.stderr and "allowed: .svg, .png, .pdf" in done.stderr


def test_a_place_that_is_none(scenario: Path, tmp_path: Path) -> None:
    path = tmp_path / "no" / "plan.svg"
    done = CliRunner().invoke(app, ["predict", "train", str(scenario), "--plot", str(path)])
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr == f"--plot {path}: cannot be written: No such file or directory\n"


def test_a_missing_library_is_named(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=re.escape("pip install 'perfmodel[plot]'")):
        check(Path("plan.svg"))
    done = CliRunner().invoke(app, ["plan", "train", str(scenario), "--plot", "plan.svg"])
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "pip install 'perfmodel[plot]'" in done.stderr


def test_drawing_is_imported_only_to_draw(scenario: Path) -> None:
    code = (
        f"import sys; sys.argv = ['perfmodel', 'predict', 'train', {str(scenario)!r}]\n"
        "from cli.app import main\n"
        "try: main()\n"
        "finally: print('matplotlib' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "False\n"


@pytest.mark.parametrize("name", ["kv-llama-70b-cxl", "kv-finetune-128k", "kv-attention-h20"])
def test_placements_over_tiers_are_drawn(name: str, tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    example = Path(__file__).parent.parent / "examples" / f"{name}.yaml"
    done = CliRunner().invoke(app, ["plan", "kv", str(example), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    found = texts(picture)
    if name == "kv-llama-70b-cxl":
        assert {"hbm", "ddr", "cxl", "prompts loaded", "knee", "tokens/s", "size of the tier [GiB]"} <= set(found)
    elif name == "kv-finetune-128k":
        assert {"momentum", "busy [%]", "share [%]"} <= set(found)
    else:
        assert {"projections", "time [s]"} <= set(found)
