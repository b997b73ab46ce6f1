"""Measured kernels held against predictions: figures, groups, derived names, refits, and rows that cannot be true."""

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import find
from hardware.efficiency import KernelParameters, fitted
from hardware.faults import InputError
from hardware.schema import Accelerator
from perfmodel.kernels.library import widenings
from perfmodel.kernels.model import Z90, Device, KernelModel, device_of
from perfmodel.measured_kernels import accelerator_file, boards_of
from perfmodel.validate_kernels import Lookup, validate

DATA = Path(os.environ.get("PERFMODEL_DATA", Path(__file__).parent.parent / "../shared/data")) / "kernels"


class Constants(KernelParameters):
    """Of a roofline with three constants."""

    launch_us: Annotated[float, fitted(0.1, 30)]
    compute: Annotated[float, fitted(0.1, 1.0)]
    memory: Annotated[float, fitted(0.1, 1.0)]


def shapes(frame: pd.DataFrame) -> dict[str, Any]:
    columns = {name: frame[name].to_numpy(float) for name in ("m", "n", "k")}
    dtype = np.where(frame["dtype"] == "bfloat16", "bf16", frame["dtype"])
    return {**columns, "dtype": dtype, "width": np.where(dtype == "bf16", 2.0, 1.0)}


def parts(shapes: Mapping[str, Any], device: Device) -> tuple[Any, Any]:
    m, n, k, width = (shapes[name] for name in ("m", "n", "k", "width"))
    peak = np.array([device.peak[name] for name in shapes["dtype"]])
    return 2 * m * n * k / peak, (width * (m * k + n * k) + 2 * m * n) / device.bandwidth


def time(shapes: Mapping[str, Any], device: Device, parameters: Constants) -> tuple[Any, Any]:
    compute, memory = parts(shapes, device)
    compute, memory = compute / parameters.compute, memory / parameters.memory
    return parameters.launch_us * 1e-6 + np.maximum(compute, memory), np.where(compute > memory, 0, 1)


def roofline(shapes: Mapping[str, Any], device: Device) -> Any:
    return np.maximum(*parts(shapes, device))


MODEL = KernelModel("gemm", ("device", "dtype", "m", "n", "k"), Constants, shapes, time, roofline)
PLANTED = Constants(launch_us=4.0, compute=0.7, memory=0.8, spread=0.1)


def planted(accelerator: Accelerator, variant: str) -> Constants:
    return PLANTED


@pytest.fixture(autouse=True)
def own_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped parameters are of another model, so the stand-in finds its own."""
    from perfmodel import validate_kernels
    from perfmodel.kernels.library import Found

    def found(model: KernelModel, accelerator: Accelerator, variant: str, own: Any = None) -> Found:
        if variant == "fp4":
            raise KeyError("no family has gemm parameters for fp4")
        return Found(Constants(launch_us=2.0, compute=0.5, memory=0.5), "test")

    monkeypatch.setattr(validate_kernels, "parameters_of", found)


ROW = {"device": "a100_sxm", "dtype": "bfloat16", "m": 4096, "n": 4096, "k": 4096}


def seconds(row: Mapping[str, Any], parameters: Constants = PLANTED) -> float:
    device = device_of(find("accelerator", row["device"]))
    return float(time(shapes(pd.DataFrame([row])), device, parameters)[0][0])


def table(path: Path, *rows: Mapping[str, Any]) -> Path:
    """Write rows, measured as planted where they do not say otherwise."""
    full = [ROW | dict(row) for row in rows]
    for row in full:
        if "us_ref" not in row:
            row["us_ref"] = seconds(row) * 1e6 * row.pop("factor", 1.0)
    pd.DataFrame(full).to_csv(path, index=False)
    return path


def check(*paths: Path, lookup: Lookup = planted, **options: Any) -> tuple[dict[str, Any], pd.DataFrame, list[str]]:
    report, rows, faults = validate("gemm", paths, model=MODEL, lookup=lookup, **options)
    return report, rows, [str(fault) for fault in faults]


def test_figures_and_interval_by_hand(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv.gz", {}, {"factor": 2.0}, {"us_ref": ""})
    with gzip.open(path) as file:  # compressed as its name says
        assert file.readline().startswith(b"device")
    report, rows, faults = check(path)
    assert faults == []
    assert (report["rows"], report["measured"], report["scored"]) == (3, 2, 2)
    assert report["skipped"] == [{"reason": "no measured value", "rows": 1}]
    assert report["mape"] == pytest.approx(0.25)  # exact, and half of the measured
    assert report["bias"] == pytest.approx(0.5**0.5)
    assert report["interval_width"] == pytest.approx(np.exp(2 * Z90 * 0.1))
    assert report["coverage_p10_p90"] == 0.5
    assert report["metrics"]["us_ref"]["mape"] == report["mape"]
    # 2 x 4096^3 FLOPs at 312 TFLOP/s
    assert rows["roofline_us"].iloc[0] == pytest.approx(2 * 4096**3 / 312e12 * 1e6)
    assert rows["predicted"].iloc[0] == pytest.approx(4 + 2 * 4096**3 / 312e12 * 1e6 / 0.7)
    assert rows["error"].iloc[1] == pytest.approx(-0.5)


def test_cold_is_more_than_twice_the_cache(tmp_path: Path) -> None:
    # A100: 40 MiB of cache; three operands of 2 bytes an element make 6 n^2 bytes: n = 4096 exceeds 80 MiB, 3712 not
    path = table(tmp_path / "a.csv", {}, {"m": 3712, "n": 3712, "k": 3712})
    _, rows, _ = check(path)
    assert list(rows["cold"]) == [6 * 4096**2 > 80 * 2**20, 6 * 3712**2 > 80 * 2**20] == [True, False]
    for condition in ("cold=1", "cold = true", "cold!=0", "cold=True"):
        assert check(path, where=[condition])[0]["rows"] == 1, condition
    assert set(check(path, by=["cold"])[0]["groups"]) == {"cold=False", "cold=True"}
    bound = 2 * 4096**3 / 312e12 * 1e6 - 1
    assert check(path, where=[f"roofline_us>{bound}"])[0]["rows"] == 1


def test_groups_are_files_and_crossed_columns(tmp_path: Path) -> None:
    one = table(tmp_path / "one.csv", {}, {"device": "h100_sxm", "dtype": "fp8"})
    two = table(tmp_path / "two.csv", {"device": "NVIDIA A100-SXM4-80GB"})
    report, _, _ = check(one, two, by=["device", "dtype"])
    assert set(report["groups"]) == {
        "file=one.csv", "file=two.csv", "device=a100_sxm,dtype=bfloat16", "device=h100_sxm,dtype=fp8",
        "device=NVIDIA A100-SXM4-80GB,dtype=bfloat16",
    }  # fmt: skip
    assert report["groups"]["file=one.csv"]["rows"] == 2
    # the full product name leaves nothing open; the others do
    assert {entry["value"] for entry in report["defaults"]} == {
        "a100_sxm is a100-80gb-sxm", "h100_sxm is h100-80gb-sxm",
    }  # fmt: skip
    with pytest.raises(InputError, match="no such column"):
        check(one, by=["colour"])


def test_a_name_that_several_boards_share() -> None:
    assert set(boards_of("A100")) >= {"a100-40gb-sxm", "a100-80gb-pcie", "a100-80gb-sxm"}
    assert boards_of("a100_80gb_sxm") == ("a100-80gb-sxm",)


def test_a_described_accelerator_goes_first(tmp_path: Path) -> None:
    (tmp_path / "chip.yaml").write_text(
        "kind: accelerator\nname: my-chip\nvendor: me\narchitecture: ampere\npeak: {bf16: 100 TFLOP/s}\n"
        "memory: {capacity: 1 GiB, bandwidth: 1 TB/s}\nl2: 1 MiB\nunits: 10\nclock: 1 GHz\npower: {limit: 100 W}\n"
    )
    path = table(tmp_path / "a.csv", {"device": "My_Chip", "us_ref": 4 + 2 * 4096**3 / 100e12 * 1e6 / 0.7})
    assert check(path)[0]["skipped"] == [{"reason": 'unknown device "My_Chip"', "rows": 1}]
    report, _, _ = check(path, hardware=[accelerator_file(tmp_path / "chip.yaml")])
    assert report["mape"] == pytest.approx(0, abs=1e-12)


def test_what_is_wrong_is_told_by_line_and_counted(tmp_path: Path) -> None:
    path = table(
        tmp_path / "bad.csv",
        {},
        {"us_ref": -3.0},
        {"us_ref": 0.0},
        {"us_ref": "fast"},
        {"m": 0, "us_ref": 5.0},
        {"k": "", "us_ref": 5.0},
        {"device": "a9000", "us_ref": 5.0},
        {"device": "a9000", "us_ref": 6.0},
        {"dtype": "fp8", "us_ref": 400.0},
        {"device": "h100_sxm", "factor": 1e3},
        {"device": "h100_sxm", "factor": 1e-3},
    )
    report, rows, faults = check(path)
    assert report["scored"] == 1
    reasons = {entry["reason"]: entry["rows"] for entry in report["skipped"]}
    assert reasons == {
        "us_ref is not positive": 2,
        "us_ref is not a number": 1,
        "m is not positive": 1,
        "k is blank": 1,
        'unknown device "a9000"': 2,
        "a100-80gb-sxm has no fp8 peak": 1,
        "a unit mistake: the time is about 1000 times off the roofline": 2,
    }
    assert sum(reasons.values()) + report["scored"] == report["rows"] == len(rows)
    for line, said in (
        (3, "us_ref: not positive [got -3.0]"), (4, "not positive [got 0.0]"), (5, "not a number [got 'fast']"),
        (6, "m: not positive"), (7, "k: blank"), (8, 'no accelerator "a9000" in the catalogue'),
        (11, "nanoseconds"), (12, "milliseconds"),
    ):  # fmt: skip
        assert any(fault.startswith(f"{path}:{line}:") and said in fault for fault in faults), (line, said, faults)
    assert sum("a9000" in fault for fault in faults) == 1


def test_blank_lines_do_not_move_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("device,dtype,m,n,k,us_ref\n\na100,bfloat16,8,8,8,3\n\n\na100,bfloat16,8,8,8,-3\n")
    report, _, faults = check(path)
    assert report["rows"] == 2
    assert [fault.split(":")[1] for fault in faults] == ["6"]


def test_many_wrong_rows_are_told_in_few_lines(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", *({"us_ref": -1.0} for _ in range(500)))
    report, _, faults = check(path)
    assert report["skipped"] == [{"reason": "us_ref is not positive", "rows": 500}]
    assert len(faults) == 10
    assert "490 more rows" in faults[-1]


def test_small_kernels_are_no_unit_mistake(tmp_path: Path) -> None:
    # 3 us for 6 KiB: four thousand times the roofline, but what a launch takes
    report, _, faults = check(table(tmp_path / "a.csv", {"m": 1, "n": 32, "k": 32, "us_ref": 3.0}))
    assert report["scored"] == 1
    assert faults == []


def test_another_file_is_skipped_with_its_reason(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("device,dtype,m,us_ref\na100,bfloat16,8,3\n")
    report, _, faults = check(other, table(tmp_path / "a.csv", {}))
    assert report["skipped"] == [{"reason": "the file has no gemm columns: n, k missing", "rows": 1}]
    assert report["scored"] == 1
    assert faults == [f"{other}:1:1: no gemm columns: n, k missing; there are: device, dtype, m, us_ref"]
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match=r"empty\.csv:1:1"):
        check(tmp_path / "empty.csv")


def grid(device: str, **more: Any) -> list[dict[str, Any]]:
    sizes = (64, 512, 2048, 8192)
    return [{"device": device, "m": m, "n": n, "k": 4096, **more} for m in (1, 16, *sizes) for n in sizes]


def test_rows_faster_than_memory_are_scored_but_not_fitted(tmp_path: Path) -> None:
    rows = grid("a100_sxm") + grid("h100_sxm")
    # 32 of the rows are long streams at a fifth of the time their bytes need
    stream = {"m": 1, "n": 65536, "k": 8192}
    impossible = [ROW | stream | {"us_ref": 2 * 65536 * 8192 / 2.039e12 * 1e6 / 5} for _ in range(32)]
    path = table(tmp_path / "a.csv", *rows, *impossible)
    report, frame, faults = check(path, leave_out="device")
    assert report["scored"] == len(rows) + 32
    assert report["implausible"][0]["rows"] == int(frame["implausible"].sum()) == 32
    assert sum("implausible" in fault for fault in faults) == 10
    # fitted on A100 without the impossible rows, H100 is predicted as planted
    assert report["left_out"]["device=h100_sxm"]["mape"] < 0.01


def test_a_left_out_device_is_predicted_from_the_others(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", *grid("a100_sxm"), *grid("h100_sxm"), {"device": "h100_sxm", "dtype": "fp8"})
    report, _, _ = check(path, leave_out="device", by=["dtype"], where=["roofline_us>1"])
    left = report["left_out"]
    # both devices were planted alike, so the data sheet is all that tells them apart
    assert left["device=a100_sxm"]["mape"] < 0.01
    assert left["device=h100_sxm"]["mape"] < 0.01
    assert "device=h100_sxm,dtype=bfloat16" in left
    assert left["device=h100_sxm"]["skipped"] == [{"reason": "nothing left to fit fp8 on", "rows": 1}]
    # a family without rows of its own: the interval is wider by what parameters of one family lack on another
    assert left["device=a100_sxm"]["interval_width"] >= np.exp(2 * Z90 * widenings(MODEL)[0])


def test_other_columns_are_left_out_within_their_family(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", *grid("a100_sxm"))
    left = check(path, leave_out="n")[0]["left_out"]
    assert set(left) == {"n=64", "n=512", "n=2048", "n=8192"}
    assert all(figures["mape"] < 0.02 and figures["rows"] == 6 for figures in left.values())
    with pytest.raises(InputError, match="nothing is left"):
        check(path, leave_out="dtype")
    with pytest.raises(InputError, match="no such column"):
        check(path, leave_out="colour")


ATTENTION = "bfloat16,bfloat16,4,4096,32,8,128"
KINDS = {
    "gemm": ("gemm", "dtype,m,n,k", "bfloat16,4096,4096,8192"),
    "attention-prefill": ("attention_prefill", "attn_dtype,kv_dtype,batch,seq,heads,kv_heads,head_dim", ATTENTION),
    "attention-decode": ("attention_decode", "attn_dtype,kv_dtype,batch,kv_len,heads,kv_heads,head_dim", ATTENTION),
    "moe": (
        "moe",
        "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,gated,distribution",
        "bfloat16,1024,4096,1536,8,128,1,1,1,balanced",
    ),
}
"""Kind -> name of its measurements, columns, a row of some hundred microseconds."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_command(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the shipped model and its parameters
    path = tmp_path / "a.csv"
    _, columns, shape = KINDS[kind]
    path.write_text(f"device,{columns},us_ref\nh100_sxm,{shape},900\na100,{shape},1200\nh100,{shape},-1\n")
    result = CliRunner().invoke(
        app,
        ["validate", kind, str(path), "--by", "device", "--where", "roofline_us>0", "--format", "json",
         "--rows", str(tmp_path / "rows.csv")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["kind"] == kind
    assert report["scored"] == 2
    assert set(report["groups"]) == {"device=a100", "device=h100_sxm"}
    assert f"{path}:4:" in result.stderr
    written = pd.read_csv(tmp_path / "rows.csv")
    assert {"predicted", "p10", "p90", "error"} <= set(written.columns)
    assert CliRunner().invoke(app, ["validate", kind, str(path)]).exit_code == 0


def test_the_command_points_at_a_file_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["validate", "gemm", "nowhere.csv"])
    assert result.exit_code == 2
    assert "nowhere.csv" in result.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason="no measurements")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_measured_is_a_unit_mistake_or_wrong(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    report, rows, faults = validate(kind, [DATA / f"{KINDS[kind][0]}.csv.gz"])
    assert report["measured"] == rows["us_ref"].notna().sum()
    assert [entry["reason"] for entry in report["skipped"]] == ["no measured value"]
    assert all("implausible" in str(fault) for fault in faults)
