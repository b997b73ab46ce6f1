"""The set of kernels, the figures of their times and the file, without a GPU: a clock and a machine that are played."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.export import to_csv
from hardware.catalogue import find
from perfmodel import bench_cuda
from perfmodel.bench import COLUMNS, LEAST_REPLAYS, Case, Kernel, cases, measure, replays, table, typical
from perfmodel.bench_cuda import LAUNCHES, WEIGHT_COPIES, CudaMachine
from perfmodel.calibrate_kernels import calibrate
from perfmodel.kernels.model import device_of
from perfmodel.measured_kernels import columns_of, model_of
from perfmodel.validate_kernels import shipped, validate


def test_the_set_is_small_and_of_every_kind() -> None:
    chosen = cases(80 * 2**30)
    counts = pd.Series([case.kind for case in chosen]).value_counts()
    assert set(counts.index) == {"gemm", "attention-prefill", "attention-decode", "copy"}
    assert counts.min() >= 10  # what a calibration needs
    assert len(chosen) < 100
    for case in chosen:
        assert set(columns_of(model_of(case.kind))) - {"us_ref"} <= set(case.shape), case
    assert len({(case.kind, *case.shape.values()) for case in chosen}) == len(chosen)


def test_what_does_not_fit_is_left_out() -> None:
    small = cases(8 * 2**30)
    assert 0 < len(small) < len(cases(80 * 2**30))
    assert max(case.footprint for case in small) <= 4 * 2**30
    # 64 sequences of 16,384 tokens, 32 heads of 128 keys and values of 2 bytes
    assert not any(case.shape.get("kv_len") == 16384 and case.shape["batch"] == 64 for case in small)


def test_times_by_hand() -> None:
    figures = typical([3e-6, 1e-6, 2e-6, 5e-6, 4e-6])
    assert figures == {"us_ref": 3.0, "us_p10": 1.4, "us_p90": 4.6, "repeats": 5}
    for wrong in ([], [1e-6, 0.0], [-1e-6], [float("nan")]):
        with pytest.raises(ValueError, match="positive"):
            typical(wrong)


def test_short_kernels_are_replayed_more_often() -> None:
    assert replays(1.0) == LEAST_REPLAYS
    assert replays(1e-3) == 20
    assert replays(0.0) == 1000


class Clock:
    """A clock that every kernel moves on."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


def test_no_kernel_is_started_when_the_time_is_up() -> None:
    clock = Clock()

    def timed(kernel: Kernel) -> list[float]:
        clock.time_s += 10.0
        return [1e-5] * 6

    rows, left_out = measure("x", cases(80e9), lambda case: lambda: None, timed, budget_s=45, now=clock.now)
    assert len(rows) == 5  # started at 0, 10, 20, 30 and 40 s
    assert left_out == [f"{len(cases(80e9)) - 5} kernels: the time of 45 s is up"]


def test_a_kernel_that_fails_spoils_no_other() -> None:
    def prepare(case: Case) -> Kernel:
        if case.shape.get("m") == 1:
            raise RuntimeError("CUDA out\nof memory")
        return lambda: None

    rows, left_out = measure("x", cases(80e9), prepare, lambda kernel: [1e-5])
    assert len(left_out) == 5
    assert left_out[0].startswith("gemm dtype bfloat16, m 1,")
    assert left_out[0].endswith("CUDA out of memory")
    assert len(rows) == len(cases(80e9)) - 5


@pytest.mark.slow
def test_the_file_calibrates(tmp_path: Path) -> None:
    accelerator = find("accelerator", "a100-80gb-sxm")
    noise = np.random.default_rng(0)

    def prepare(case: Case) -> Kernel:
        kernel: Any = lambda: None  # noqa: E731
        kernel.case = case
        return kernel

    def timed(kernel: Any) -> list[float]:
        case = kernel.case
        model = model_of(case.kind)
        if case.kind == "copy":  # 20 us and half of the bandwidth
            seconds = 20e-6 + case.shape["bytes"] / (0.5 * 2.039e12)
        else:
            frame = pd.DataFrame([case.shape | {"device": "a100"}])
            parameters = shipped(model)(accelerator, "bf16")
            seconds = float(model.time(model.shapes(frame), device_of(accelerator), parameters)[0][0])
        return list(seconds * np.exp(0.02 * noise.standard_normal(9)))

    rows, left_out = measure("A100-SXM4-80GB", cases(80 * 2**30), prepare, timed)
    assert left_out == []
    path = tmp_path / "bench.csv"
    path.write_text(to_csv(COLUMNS, table(rows)))
    found = {part.kind: part for part in calibrate([path]).parts}
    assert set(found) == {"gemm", "attention-prefill", "attention-decode", "copy"}
    assert found["copy"].parameters.launch_us == pytest.approx(20, rel=0.05)  # type: ignore[attr-defined]
    assert found["copy"].parameters.memory == pytest.approx(0.5, rel=0.05)  # type: ignore[attr-defined]
    assert all(part.after["mape"] < 0.06 for part in found.values())
    report, _, faults = validate("gemm", [path])
    assert report["scored"] == 30
    assert report["mape"] < 0.05
    assert faults == []


class FakeGraph:
    """Counts the launches that a graph takes in."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class FakeTensor:
    """A tensor that knows its shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    def T(self) -> "FakeTensor":
        return FakeTensor(self.shape[::-1])


class FakeTorch:
    """As much of PyTorch as the kernels touch; notes what is launched."""

    bfloat16, uint8 = "bfloat16", "uint8"

    def __init__(self) -> None:
        self.launched: list[Any] = []
        null = types.SimpleNamespace(wait_stream=lambda stream: None)
        self.cuda = types.SimpleNamespace(
            get_device_name=lambda: "NVIDIA A100-SXM4-80GB",
            get_device_properties=lambda index: types.SimpleNamespace(total_memory=80 * 2**30),
            empty_cache=lambda: None,
            Stream=lambda: null,
            current_stream=lambda: null,
            stream=lambda stream: self.no_grad(),
            CUDAGraph=FakeGraph,
            graph=lambda graph: self.no_grad(),
            Event=lambda enable_timing: types.SimpleNamespace(
                record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 0.05
            ),
            is_available=lambda: True,
        )
        self.nn = types.SimpleNamespace(functional=types.SimpleNamespace(scaled_dot_product_attention=self.attend))

    def no_grad(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def randn(self, size: tuple[int, ...], **options: Any) -> FakeTensor:
        return FakeTensor(size)

    def empty(self, size: tuple[int, ...], **options: Any) -> FakeTensor:
        return FakeTensor(size)

    def zeros(self, size: int, **options: Any) -> Any:
        tensor = FakeTensor((size,))
        tensor.copy_ = lambda other: self.launched.append(("copy", other.shape))  # type: ignore[attr-defined]
        return tensor

    def empty_like(self, other: Any) -> Any:
        return self.zeros(other.shape[0])

    def mm(self, a: FakeTensor, b: FakeTensor, out: FakeTensor) -> None:
        assert a.shape[1] == b.shape[0]
        assert out.shape == (a.shape[0], b.shape[1])
        self.launched.append(("mm", a.shape, b.shape))

    def attend(self, q: FakeTensor, k: FakeTensor, v: FakeTensor, is_causal: bool, **options: Any) -> None:
        assert k.shape == v.shape
        assert options.get("enable_gqa", False) == (q.shape[1] != k.shape[1])
        self.launched.append(("attention", q.shape, k.shape, is_causal))


@pytest.mark.parametrize("kind", ["gemm", "attention-prefill", "attention-decode", "copy"])
def test_what_is_launched(kind: str) -> None:
    torch = FakeTorch()
    machine = CudaMachine(torch)
    case = next(case for case in cases(machine.memory_bytes) if case.kind == kind)
    kernel = machine.prepare(case)
    assert len(torch.launched) == 2 * LAUNCHES  # once to warm up, once into the graph
    shape = case.shape
    first = torch.launched[0]
    if kind == "copy":
        assert first == ("copy", (shape["bytes"] // 2,))  # read and written: twice
    elif kind == "gemm":
        assert first == ("mm", (shape["m"], shape["k"]), (shape["k"], shape["n"]))
        assert LAUNCHES % WEIGHT_COPIES == 0
    else:
        causal = kind == "attention-prefill"
        length = shape["seq" if causal else "kv_len"]
        query = (shape["batch"], shape["heads"], length if causal else 1, 128)
        assert first == ("attention", query, (shape["batch"], shape["kv_heads"], length, 128), causal)
    # a replay of 50 us holds ten launches
    assert machine.timed(kernel) == pytest.approx([5e-6] * replays(50e-6))


def test_the_command_with_a_played_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch())
    out = tmp_path / "bench.csv"
    result = CliRunner().invoke(app, ["bench", "-o", str(out)])
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(out)
    assert tuple(frame.columns) == COLUMNS
    assert set(frame["device"]) == {"A100-SXM4-80GB"}
    assert set(frame["us_ref"]) == {5.0}


def test_without_torch_or_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 2
    assert "there is no PyTorch here" in result.stderr
    torch = FakeTorch()
    torch.cuda.is_available = lambda: False
    monkeypatch.setitem(sys.modules, "torch", torch)
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 2
    assert "this PyTorch sees none" in result.stderr
    assert bench_cuda.torch_with_cuda.__doc__


@pytest.mark.slow
def test_on_a_real_machine(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = CliRunner().invoke(app, ["bench", "-o", str(tmp_path / "bench.csv")])
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(tmp_path / "bench.csv")) > 30
