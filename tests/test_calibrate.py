"""Calibration: planted parameters come back, few rows stay near the family, and the file written is used."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import find, load_file, resolve_cluster
from hardware.schema import Accelerator
from perfmodel.calibrate_kernels import calibrate, fitted, predicted, start_of
from perfmodel.calibrated_accelerator import description, written_description
from perfmodel.kernels.copy import MODEL as COPY
from perfmodel.kernels.library import own_parameters, parameters_of
from perfmodel.kernels.model import bounds_of, device_of
from perfmodel.measured_kernels import MODULES, model_of
from perfmodel.validate_kernels import validate
from perfmodel.validation import statistics

DATA = Path(os.environ.get("PERFMODEL_DATA", Path(__file__).parent.parent / "../shared/data")) / "kernels"
A100: Accelerator = find("accelerator", "a100-80gb-sxm")

SHAPES: dict[str, list[dict[str, Any]]] = {
    "gemm": [{"dtype": "bfloat16", "m": m, "n": n, "k": k} for m in (1, 64, 1000, 8192) for n in (512, 4096, 28672)
             for k in (256, 4096, 16384)],
    "attention-decode": [
        {"attn_dtype": "bfloat16", "kv_dtype": "bfloat16", "batch": b, "kv_len": length, "heads": 32, "kv_heads": kv,
         "head_dim": 128} for b in (1, 8, 64) for length in (128, 2048, 32768) for kv in (4, 8, 32)
    ],
    "copy": [{"bytes": 2.0**power} for power in range(10, 33)],
}  # fmt: skip

VARIANTS = {"gemm": "bf16", "attention-decode": "bf16", "copy": "stream"}


def measured(kind: str, parameters: Any, noise: float = 0.0, rows: int | None = None) -> pd.DataFrame:
    """Times that the model gives for the shapes, with noise."""
    frame = pd.DataFrame(SHAPES[kind])
    generator = np.random.default_rng(1)
    if rows is not None:
        frame = frame.iloc[generator.permutation(len(frame))[:rows]]
    model = model_of(kind)
    seconds = np.asarray(model.time(model.shapes(frame), device_of(A100), parameters)[0], float)
    times = seconds * 1e6 * np.exp(noise * generator.standard_normal(len(frame)))
    return frame.assign(device="a100_sxm", us_ref=times, measured=times).reset_index(drop=True)


def planted(kind: str) -> Any:
    """The family's parameters, two of them moved by a tenth of their range."""
    model = model_of(kind)
    family = start_of(model, A100, VARIANTS[kind]).parameters
    moved = {}
    for name, (low, high, log) in bounds_of(model.parameters).items():
        if name.startswith("launch") or name == "memory":
            value = getattr(family, name)
            share = np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
            share = share + 0.1 if share < 0.85 else share - 0.1
            moved[name] = float(low * (high / low) ** share if log else low + (high - low) * share)
    return family.model_copy(update=moved)


@pytest.mark.parametrize("kind", [pytest.param("gemm", marks=pytest.mark.slow), "attention-decode", "copy"])
def test_planted_parameters_come_back(kind: str) -> None:
    model, truth = model_of(kind), planted(kind)
    family = start_of(model, A100, VARIANTS[kind]).parameters
    frame = measured(kind, truth)
    found = fitted(model, frame, device_of(A100), family.model_copy(update={"spread": 0.05}))
    figures = statistics(predicted(model, frame, device_of(A100), found))
    assert figures["mape"] < 0.02
    before = statistics(predicted(model, frame, device_of(A100), family))
    assert before["mape"] > 3 * figures["mape"]


def test_two_constants_by_hand() -> None:
    start = start_of(COPY, A100, "stream")
    assert start.origin == "ampere.stream"
    # 5 us, and 90 % of 2.039 TB/s
    frame = pd.DataFrame({"bytes": 2.0 ** np.arange(10, 33)})
    frame["measured"] = 5 + frame["bytes"] / (0.9 * 2.039e12) * 1e6
    found = fitted(COPY, frame, device_of(A100), start.parameters.model_copy(update={"spread": 0.01}))
    assert found.launch_us == pytest.approx(5, rel=0.01)  # type: ignore[attr-defined]
    # the whole of a long stream, some of which the family gives to walking along rows
    assert predicted(COPY, frame, device_of(A100), found)["predicted"].iloc[-1] == pytest.approx(2345.5, rel=0.01)


def test_few_noisy_rows_stay_with_the_family() -> None:
    family = start_of(COPY, A100, "stream").parameters.model_copy(update={"spread": 0.3})
    # ten rows that the family predicts, but for noise, leave its parameters; the interval shrinks, but not to them
    noisy = measured("copy", family, noise=0.05, rows=10)
    found = fitted(COPY, noisy, device_of(A100), family)
    assert found.launch_us == pytest.approx(family.launch_us, rel=0.1)  # type: ignore[attr-defined]
    assert 0.05 < found.spread < 0.3


@pytest.fixture
def timings(tmp_path: Path) -> Path:
    path = tmp_path / "timings.csv"
    measured("attention-decode", planted("attention-decode"), 0.03, 20).drop(columns="measured").to_csv(
        path, index=False
    )
    return path


def test_the_file_written_is_used(timings: Path, tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    before, _, _ = validate("attention-decode", [timings])
    result = CliRunner().invoke(app, ["calibrate", str(timings), "-o", str(out), "--format", "json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["device"] == "a100-80gb-sxm"
    (part,) = report["calibrated"]
    assert (part["kind"], part["variant"], part["rows"], part["held_out"]) == ("attention-decode", "bf16", 20, 0)
    assert part["after"]["mape"] < part["before"]["mape"]

    accelerator = load_file(out)
    model = model_of("attention-decode")
    found = parameters_of(model, accelerator, "bf16")
    assert found.origin == "a100-80gb-sxm.bf16"
    assert found.parameters == own_parameters(model, accelerator)["bf16"]
    assert accelerator.model_copy(update={"efficiency": None}) == A100.model_copy(update={"efficiency": None})
    note = accelerator.efficiency.provenance["decode.bf16"]
    assert note.source == "20 rows of timings.csv; perfmodel calibrate"
    assert CliRunner().invoke(app, ["hardware", "check", str(out)]).exit_code == 0
    assert CliRunner().invoke(app, ["hardware", "show", str(out)]).exit_code == 0

    json_form = ["--hardware", str(out), "--format", "json"]
    result = CliRunner().invoke(app, ["validate", "attention-decode", str(timings), *json_form])
    after = json.loads(result.stdout)
    assert after["mape"] == pytest.approx(part["after"]["mape"], rel=0.02)  # four digits are written
    assert after["mape"] < before["mape"]

    # a machine described around it takes it along
    node = tmp_path / "node.yaml"
    node.write_text("kind: node\nname: box\naccelerators: {type: ./my.yaml, count: 1}\n")
    assert resolve_cluster(str(node), Path()).accelerator == accelerator


def test_another_kind_joins_what_is_there(timings: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.yaml"
    CliRunner().invoke(app, ["calibrate", str(timings), "-o", str(first)])
    copies = tmp_path / "copies.csv"
    measured("copy", planted("copy")).drop(columns="measured").to_csv(copies, index=False)
    second = tmp_path / "second.yaml"
    command = ["calibrate", str(copies), "--hardware", str(first), "-o", str(second)]
    assert CliRunner().invoke(app, command).exit_code == 0
    efficiency = load_file(second).efficiency
    assert efficiency.decode == load_file(first).efficiency.decode
    assert set(efficiency.provenance) == {"decode.bf16", "memory.stream"}
    truth, found = planted("copy"), efficiency.memory["stream"]
    assert found.memory == pytest.approx(truth.memory, rel=0.05)
    assert found.launch_us == pytest.approx(truth.launch_us, rel=0.05)


def test_several_files_are_told_apart_by_their_columns(timings: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies.csv"
    measured("copy", planted("copy")).drop(columns=["measured", "device"]).to_csv(copies, index=False)
    found = calibrate([timings, copies], device="A100 SXM4 80GB")  # the copies name no device
    assert [(part.kind, part.rows) for part in found.parts] == [("attention-decode", 20), ("copy", 23)]


def test_one_file_of_several_kinds(timings: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    decode = pd.read_csv(timings).assign(kind="attention-decode")
    copies = measured("copy", planted("copy")).drop(columns="measured").assign(kind="copy")
    pd.concat([decode, copies]).to_csv(path, index=False)
    found = calibrate([path])
    assert [(part.kind, part.rows) for part in found.parts] == [("attention-decode", 20), ("copy", 23)]
    assert found.skipped == []
    assert found.faults == []


def test_many_rows_are_judged_by_those_held_out(tmp_path: Path) -> None:
    frame = pd.concat([measured("copy", planted("copy"), 0.05)] * 3)
    path = tmp_path / "a.csv"
    frame.drop(columns="measured").to_csv(path, index=False)
    assert calibrate([path]).parts[0].held_out == len(frame) // 5
    (part,) = calibrate([path], most_rows=12).parts
    assert (part.rows, part.held_out) == (12, len(frame) - 12)
    assert part.after["rows"] == len(frame) - 12


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("device,m\na100,3\n", [], "no columns of measured kernels"),
        ("device,bytes,us_ref\na100,1024,5\n", [], "fewer than 10 rows"),
        ("device,bytes,us_ref\n" + "a100,1024,5\nh100,1024,5\n" * 10, [], "several devices"),
        ("device,bytes,us_ref\n" + "a100,1024,5\n" * 10, ["--device", "h100"], "not of h100-80gb-sxm"),
        ("device,bytes,us_ref\n" + "a100,1024,5\n" * 10, ["--device", "a9000"], 'no accelerator "a9000"'),
        ("device,bytes,us_ref\n" + "a9000,1024,5\n" * 10, [], "a.csv:2:1: device: no accelerator"),
        ("device,bytes,us_ref\n" + "a100,1024,-5\n" * 10, [], "a.csv:2:3: us_ref: not positive"),
        ("device,bytes,us_ref\n" + "a100,1024,5\n" * 10, ["--kind", "gem"], 'did you mean "gemm"'),
        ("device,bytes,us_ref\n" + "a100,1024,5\n" * 10, ["--kind", "gemm"], "gemm needs: dtype, m, n, k"),
        ("device,bytes,us_ref\n" + "a100,1024,5\n" * 10, ["--plot", "x.doc"], "the ending should be one of"),
    ],
)
def test_bad_input(text: str, options: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    result = CliRunner().invoke(app, ["calibrate", str(path), *options])
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_impossible_rows_are_not_fitted(tmp_path: Path) -> None:
    frame = measured("copy", planted("copy"))
    fast = pd.DataFrame({"bytes": 2.0**32, "device": "a100", "us_ref": 2.0**32 / 2.039e12 * 1e6 / 3}, index=range(30))
    path = tmp_path / "a.csv"
    pd.concat([frame.drop(columns="measured"), fast]).to_csv(path, index=False)
    found = calibrate([path])
    assert {"reason": "implausible: faster than memory allows", "rows": 30} in found.skipped
    assert found.parts[0].parameters.memory == pytest.approx(planted("copy").memory, rel=0.05)  # type: ignore[attr-defined]


def test_the_drawing(timings: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "fit.svg"
    result = CliRunner().invoke(app, ["calibrate", str(timings), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert "<svg" in picture.read_text()
    assert "Quality before and after" in result.stdout


def test_every_kind_has_its_model() -> None:
    for kind in MODULES:
        assert model_of(kind).name == ("memory" if kind == "copy" else MODULES[kind])


def test_a_description_that_is_no_file_is_written_whole() -> None:
    described = A100.model_copy(update={"name": "mine", "aliases": ()})
    assert written_description(described)["memory"]["capacity"] == 80 * 2**30
    assert written_description(A100)["memory"]["capacity"] == "80 GiB"


def a100_rows(kind: str) -> pd.DataFrame:
    rows = pd.read_csv(DATA / f"{kind.replace('-', '_')}.csv.gz").query("device == 'a100_sxm'")
    rows = rows.dropna(subset=["us_ref"])
    return rows.assign(measured=rows["us_ref"])


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no measurements")
@pytest.mark.parametrize("kind", ["gemm", "attention-decode"])
def test_twenty_rows_of_a100(kind: str) -> None:
    frame, model, device = a100_rows(kind), model_of(kind), device_of(A100)
    judged = frame.sample(2000, random_state=9)
    for family, most in (("hopper", 0.97), ("ampere", 1.02)):
        start = start_of(model, A100, "bf16", family)
        before = statistics(predicted(model, judged, device, start.parameters))
        after = [
            statistics(
                predicted(
                    model, judged, device, fitted(model, part, device, start.parameters, foreign=start.widening > 0)
                )
            )
            for part in (frame.sample(20, random_state=seed) for seed in range(6))
        ]
        # what an unmeasured device gets becomes clearly better; a family that is right already does not become worse
        assert np.mean([figures["mape"] for figures in after]) < most * before["mape"]
        assert 0.65 < np.mean([figures["coverage_p10_p90"] for figures in after]) < 0.92


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no measurements")
def test_a_sample_of_measured_products_improves_what_an_unmeasured_device_gets(tmp_path: Path) -> None:
    from perfmodel.job import kernels_of

    frame = a100_rows("gemm").drop(columns="measured")
    rest = tmp_path / "rest.csv"
    frame.sample(2000, random_state=1).to_csv(rest, index=False)
    sample, out = tmp_path / "sample.csv", tmp_path / "mine.yaml"
    frame.sample(20, random_state=3).to_csv(sample, index=False)
    options = [str(sample), "-o", str(out), "--format", "json"]
    result = CliRunner().invoke(app, ["calibrate", *options, "--from", "hopper"])
    assert result.exit_code == 0, result.output
    (part,) = json.loads(result.stdout)["calibrated"]
    assert part["origin"] == "hopper.bf16"
    assert part["unmeasured"] is None  # that is where it started

    start = start_of(model_of("gemm"), A100, "bf16", "hopper").parameters
    before, _, _ = validate("gemm", [rest], lookup=lambda accelerator, variant: start)
    mine = load_file(out)
    after, _, _ = validate("gemm", [rest], hardware=[mine])
    assert after["mape"] < before["mape"]
    # predictions and plans take it
    assert kernels_of(mine, ("gemm.bf16",))["gemm.bf16"].origin == "a100-80gb-sxm.bf16"

    # from its own family, which was fitted on this device, the report says what another's would have given
    (part,) = json.loads(CliRunner().invoke(app, ["calibrate", *options]).stdout)["calibrated"]
    assert part["origin"] == "ampere.bf16"
    assert part["unmeasured"]["mape"] != part["before"]["mape"]


def test_a_family_that_was_not_measured(timings: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(timings), "--from", "hoper"])
    assert result.exit_code == 2
    assert 'did you mean "hopper"' in result.stderr


def test_the_yaml_is_what_the_schema_takes(timings: Path, tmp_path: Path) -> None:
    import jsonschema

    from cli.export import to_yaml
    from hardware.schema import json_schema

    found = calibrate([timings])
    text = to_yaml(description(found, written_description(found.accelerator)))
    jsonschema.validate(yaml.safe_load(text), json_schema("accelerator"))
