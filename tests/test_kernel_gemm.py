"""Times of matrix products: closed forms by hand, properties, forms of kept weights, bars on measured rows."""

import os
import time as clock
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.catalogue import find, names
from hardware.efficiency import GemmParameters
from perfmodel.kernels.gemm import FORMS, MODEL, Form, form_of, product, semi_structured, unstructured, variants
from perfmodel.kernels.library import families, parameters_of
from perfmodel.kernels.model import Device, Sample, device_of, fit
from perfmodel.terms import BOUNDS

BF16 = FORMS["bf16"]
DATA = Path(os.environ.get("PERFMODEL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "kernels"

# 100 units of 1 GHz; 1 PFLOP/s and 10 TFLOP/s a unit; ports of 64 GB/s; L2 3.2 TB/s; static schedule.
STATIC = Device("static", "ampere", {"bf16": 1e15, "int8": 2e15}, 1e12, 100e6, 100, 1e9, 1e9)
PERSISTENT = replace(STATIC, architecture="hopper")
PLAIN = GemmParameters(launch_clocks=2000, compute=0.5, memory=0.5, split_clocks=100_000)


def seconds(m: Any, n: Any, k: Any, form: Form = BF16, device: Device = STATIC, **changes: Any) -> float:
    parameters = PLAIN.model_copy(update=changes)
    return float(MODEL.time(product(m, n, k, form), device, parameters)[0])


def bound(m: Any, n: Any, k: Any, form: Form = BF16, device: Device = STATIC) -> str:
    return BOUNDS[int(MODEL.time(product(m, n, k, form), device, PLAIN)[1])]


# --- closed forms


def test_a_tiny_product_takes_a_launch() -> None:
    # 2000 clocks at 1 GHz. One block of one step: its port takes 64 x (16 + 64) x 2 / 64e9 = 0.160 us, arithmetic and
    # the pipeline 2 x 16 x 64 x (64 + 192) / 0.5e13 = 0.105 us; together 0.167.
    assert seconds(1, 1, 1) == pytest.approx(2.167e-6, rel=1e-3)
    assert bound(1, 1, 1) == "latency"
    # twice the clock: half the launch and 0.080 us; arithmetic as before, its peak being the same
    assert seconds(1, 1, 1, device=replace(STATIC, clock=2e9, streaming_clock=2e9)) == pytest.approx(1.113e-6, rel=1e-3)


def test_one_token_streams_the_weights() -> None:
    # 32768^2 weights of 2 bytes at half of 1 TB/s: 4.295 ms; the token's vectors are 3e-5 of that. Tiles of 16 x 64 are
    # 512 blocks in 6 waves, each 32768 x 80 x 2 bytes at 64 GB/s = 82 us, 0.49 ms, and arithmetic less.
    assert seconds(1, 32768, 32768) == pytest.approx(2 * 32768**2 / 0.5e12, rel=1e-3)
    assert bound(1, 32768, 32768) == "memory"


def test_a_large_product_reaches_its_share_of_the_peak() -> None:
    # 5000 blocks of 128 x 256 are 50 whole waves of 100 units. Arithmetic at half of 1e14: 83.9 ms, and 192/12800 more
    # for filling. Ports: 50 x 12800 x 384 x 2 / 64e9 = 7.7 ms; L2: 12800^2 x 2 x 150 / 3.2e12 = 15.4 ms: fourth powers
    # add 3e-4.
    slow = replace(STATIC, peak={"bf16": 1e14})
    expected = 2 * 12800**3 / 0.5e14 * (1 + 192 / 12800)
    assert seconds(12800, 12800, 12800, device=slow) == pytest.approx(expected, rel=1e-3)
    assert bound(12800, 12800, 12800, device=slow) == "compute"


def test_a_static_schedule_pays_whole_waves() -> None:
    # Slow arithmetic and no splitting. 160 x 640 is 100 tiles of 16 x 64, one for each unit; 160 x 704 is 110, two
    # waves; where blocks are persistent, 1.1. Tiles of 64 x 64 would be fewer than units and four times the work.
    for architecture, expected in (("ampere", 2.0), ("hopper", 1.1)):
        device = replace(STATIC, architecture=architecture, peak={"bf16": 1e12})
        full = seconds(160, 640, 8192, device=device, split_clocks=1e9)
        assert seconds(160, 704, 8192, device=device, split_clocks=1e9) / full == pytest.approx(expected, rel=2e-3)


def test_a_batch_fills_the_units_together() -> None:
    # 8 tokens by 64 features, 65536 deep: one block of 16 x 64 on one of 100 units, whose port takes 65536 x 80 x 2
    # bytes at 64 GB/s, 163.84 us. A hundred such products are one wave: as long as one, while memory moves 100 x 9.44
    # MB at 500 GB/s, 1.9 ms if nothing else were slower.
    shapes = product(8, 64, 65536, BF16, batch=np.array([1.0, 100.0]))
    quick = replace(STATIC, bandwidth=1e15)
    one, hundred = MODEL.time(shapes, quick, PLAIN.model_copy(update={"split_clocks": 1e9}))[0]
    assert one == pytest.approx(2e-6 + 163.84e-6, rel=0.01)
    # L2 serves half of what all ports together can take: 100 x 65536 x 72 x 2 bytes at 3.2 TB/s
    both = (163.84**4 + (100 * 65536 * 72 * 2 / 3.2e6) ** 4) ** 0.25
    assert hundred == pytest.approx(2e-6 + both * 1e-6, rel=0.01)
    alone, batched = MODEL.roofline(shapes, quick)
    assert batched == pytest.approx(100 * alone, rel=1e-12)
    _, memory = MODEL.time(shapes, STATIC, PLAIN)[0]
    assert memory == pytest.approx(100 * 2 * 65536 * (8 + 64) / 0.5e12, rel=0.01)


def test_units_that_multiply_in_pairs_load_half_of_the_columns() -> None:
    # Tiles of 128 x 256 and arithmetic that takes no time: ports take 50 waves x 12800 x (128 + 256) x 2 bytes at 64
    # GB/s and L2 12800^2 x 2 x (100 + 50) at 6.4 TB/s (two blocks share what one reads). In pairs 128 + 128, and 50 +
    # 50. One block of rows has nobody to share with.
    quick = replace(STATIC, architecture="hopper", peak={"bf16": 1e18}, bandwidth=1e15)
    pairs = replace(quick, architecture="blackwell")

    def expected(port_rows: float, reads: float) -> float:
        port, l2 = 50 * 12800 * port_rows * 2 / 64e9, 12800**2 * 2 * reads / 6.4e12
        return float((port**4 + l2**4) ** 0.25)

    assert seconds(12800, 12800, 12800, device=quick) == pytest.approx(expected(384, 150), rel=2e-3)
    assert seconds(12800, 12800, 12800, device=pairs) == pytest.approx(expected(256, 100), rel=2e-3)
    assert seconds(16, 12800, 12800, device=pairs) == seconds(16, 12800, 12800, device=quick)


def test_adding_to_sums_in_32_bits_moves_more() -> None:
    # one step deep, so that the result is nearly all that moves: 32768^2 elements of 8 bytes for 2
    wide = product(32768, 32768, 64, BF16, output_bytes=8.0)
    device = replace(STATIC, peak={"bf16": 1e18}, clock=1e12)
    seconds = MODEL.time(wide, device, PLAIN)[0]
    assert seconds == pytest.approx((8 * 32768**2 + 4 * 32768 * 64) / 0.5e12, rel=1e-3)


def test_splitting_the_inner_product() -> None:
    # One block of 16 x 64 reads 65536 x 80 x 2 bytes by its port of 64 GB/s: 163.84 us. Split by 32, that is 5.12 us
    # and 1 us to synchronise; streaming takes 65536 x 65 x 2 bytes at 0.5e12, 17.04 us. Fourth powers add 0.2 %.
    assert seconds(1, 64, 65536, split_clocks=1e9) == pytest.approx(2e-6 + 163.84e-6, rel=3e-3)
    assert seconds(1, 64, 65536, split_clocks=1000) == pytest.approx(2e-6 + 1e-6 + 17.04e-6, rel=3e-3)


def test_quantising_activations_moves_bytes_before() -> None:
    without = replace(FORMS["int8"], quantisation_bytes=0.0)
    # 8192 x 8192 elements, 3 bytes each at half of 1 TB/s
    more = seconds(8192, 1024, 8192, FORMS["int8"]) - seconds(8192, 1024, 8192, without)
    assert more == pytest.approx(3 * 8192**2 / 0.5e12, rel=1e-4)


def test_warm_weights() -> None:
    # 1024^2 weights of 2 bytes, five copies of 2.1 MB: 10.5 MB, in half of 100 MB; of 40 MB they are not.
    small = replace(STATIC, l2=20e6)
    times = {
        (warm, device.l2): float(MODEL.time(product(1, 1024, 1024, BF16, warm=warm), device, PLAIN)[0])
        for warm in (False, True)
        for device in (STATIC, small)
    }
    assert times[True, 100e6] < times[False, 100e6]
    assert times[True, 20e6] == times[False, 20e6] == times[False, 100e6]


# --- forms


def test_narrow_weights_stream_faster_and_compute_no_faster() -> None:
    wide = seconds(1, 32768, 32768)
    # 1 + 2/128 and 0.5 + 2/128 bytes of 2
    assert seconds(1, 32768, 32768, FORMS["int8_weight"]) / wide == pytest.approx(0.508, rel=0.01)
    assert seconds(1, 32768, 32768, FORMS["int4_weight"]) / wide == pytest.approx(0.258, rel=0.02)
    for form in ("int8_weight", "int4_weight"):
        packed = replace(FORMS[form], unpacked=False)
        assert seconds(8192, 8192, 8192, FORMS[form]) > seconds(8192, 8192, 8192, packed)


def test_sparse_weights() -> None:
    # 2:4: half of the values and an index of 2 bits for each: 1.125 bytes of 2.
    sparse = semi_structured(BF16)
    assert sparse.weight_bytes == 1.125
    assert seconds(1, 32768, 32768, sparse) / seconds(1, 32768, 32768) == pytest.approx(1.125 / 2, rel=0.01)
    slow = replace(STATIC, peak={"bf16": 1e13})
    gain = seconds(8192, 8192, 8192, device=slow) / seconds(8192, 8192, 8192, sparse, device=slow)
    assert gain == pytest.approx(1.6, rel=0.01)
    # A fifth of the values anywhere and a map of one bit a weight: 0.525 bytes of 2; no less arithmetic.
    loose = unstructured(BF16, 0.2)
    assert loose.weight_bytes == pytest.approx(0.525)
    assert seconds(1, 32768, 32768, loose) / seconds(1, 32768, 32768) == pytest.approx(0.525 / 2, rel=0.02)
    assert seconds(8192, 8192, 8192, loose, device=slow) == pytest.approx(
        seconds(8192, 8192, 8192, device=slow), rel=1e-3
    )


def test_forms_by_name() -> None:
    assert form_of("bfloat16") is form_of("BF16") is BF16
    assert form_of("w4a16") is FORMS["int4_weight"]
    with pytest.raises(ValueError, match="no form of matrix product is named 'bf61'; there are bf16"):
        form_of("bf61")
    frame = pd.DataFrame({"dtype": ["bfloat16", "w8a16", "fp8_block"]})
    assert variants(frame).tolist() == ["bf16", "bf16", "fp8_block"]


def test_arithmetic_that_a_device_lacks() -> None:
    with pytest.raises(ValueError, match="static has no fp8 peak; it has bf16, int8"):
        seconds(1, 1, 1, FORMS["fp8"])
    # 16-bit formats share their arithmetic
    assert seconds(64, 64, 64, FORMS["fp16"]) == seconds(64, 64, 64)


def test_measured_rows_are_warm() -> None:
    frame = pd.DataFrame({"dtype": ["bfloat16", "fp8", "bfloat16"], "m": [1, 2, 3], "n": [4, 5, 6], "k": [7, 8, 9]})
    frame.index = pd.Index([5, 3, 1])
    found = MODEL.shapes(frame)
    assert found["warm"].all()
    assert found["m"].tolist() == [1, 2, 3]
    assert found["weight_bytes"].tolist() == [2, 1, 2]
    assert found["quantisation_bytes"].tolist() == [0, 5, 0]


# --- properties

size = st.integers(1, 40_000)
DEVICES = st.sampled_from(
    [device_of(find("accelerator", name)) for name in ("h100_sxm", "a100_sxm", "l40s", "b200-sxm")]
)
ROUNDING = 1 + 1e-5  # arithmetic in 32 bits


@settings(max_examples=60, deadline=None)
@given(size, size, size, DEVICES, st.sampled_from(["m", "n", "k"]), st.floats(1.0, 4.0))
def test_more_work_is_never_faster(m: int, n: int, k: int, device: Device, which: str, factor: float) -> None:
    sizes = {"m": m, "n": n, "k": k}
    more = {**sizes, which: int(np.ceil(sizes[which] * factor))}
    assert seconds(**more, device=device) * ROUNDING >= seconds(**sizes, device=device)


@settings(max_examples=60, deadline=None)
@given(size, size, size, DEVICES, st.floats(1.0, 4.0))
def test_a_better_device_is_never_slower(m: int, n: int, k: int, device: Device, factor: float) -> None:
    as_is = seconds(m, n, k, device=device) * ROUNDING
    peak = {name: value * factor for name, value in device.peak.items()}
    units = round(device.units * factor)
    wider = {name: value * units / device.units for name, value in device.peak.items()}
    assert seconds(m, n, k, device=replace(device, peak=peak)) <= as_is
    assert seconds(m, n, k, device=replace(device, bandwidth=device.bandwidth * factor)) <= as_is
    assert seconds(m, n, k, device=replace(device, clock=device.clock * factor)) <= as_is
    assert seconds(m, n, k, device=replace(device, units=units, peak=wider)) <= as_is
    assert seconds(m, n, k, device=device, compute=0.9, memory=0.9, launch_clocks=1000) <= as_is


@settings(max_examples=60, deadline=None)
@given(size, size, size, DEVICES, st.sampled_from(["bf16", "int4_weight"]), st.booleans())
def test_no_faster_than_the_roofline(m: int, n: int, k: int, device: Device, form: str, warm: bool) -> None:
    shapes = product(m, n, k, FORMS[form], warm=warm)
    found, code = MODEL.time(shapes, device, PLAIN)
    assert BOUNDS[int(code)] in ("compute", "memory", "latency")
    assert warm or found * ROUNDING >= MODEL.roofline(shapes, device)


def test_arrays_are_the_elements_one_by_one() -> None:
    rng = np.random.default_rng(0)
    m, n, k = (rng.integers(1, 20_000, 40_000) for _ in range(3))
    found, codes = MODEL.time(product(m, n, k, BF16), STATIC, PLAIN)
    assert found.shape == codes.shape == (40_000,)
    for i in (0, 1, 16_383, 16_384, 39_999):
        one, code = MODEL.time(product(m[i], n[i], k[i], BF16), STATIC, PLAIN)
        assert (float(one), int(code)) == (found[i], codes[i])
    grid, _ = MODEL.time(product(m[:6].reshape(2, 3), n[0], k[0], BF16), STATIC, PLAIN)
    assert grid.shape == (2, 3)


def test_extremes_stay_finite() -> None:
    # 2e19 FLOPs take 40,000 s. Blocks of 128 x 256: 3.05e6 waves of 1e6 x 768 bytes by ports of 64e9, 36,600 s; L2
    # gives 2e12 x 78,125 + 2e13 x 3,907 bytes at 3.2e12, 73,200 s. The fourth root of their fourth powers: 75,800 s.
    found, _ = MODEL.time(product(*(np.array([1, 10**e]) for e in (7, 6, 6)), form=BF16), STATIC, PLAIN)
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx(75_800, rel=2e-3)


def test_every_accelerator_has_a_time() -> None:
    for name in names("accelerator"):
        accelerator = find("accelerator", name)
        if not {"bf16", "fp16"} & set(accelerator.peak):
            continue
        parameters = parameters_of(MODEL, accelerator, "bf16").parameters
        shapes = product(np.array([1, 4096]), 8192, 8192, BF16)
        found, _ = MODEL.time(shapes, device_of(accelerator), parameters)
        ideal = MODEL.roofline(shapes, device_of(accelerator))
        assert (found > ideal).all(), name
        # T4 sustains a third of its peak within its 70 W (FlexGen's measured constants)
        assert (found < 4 * ideal + 20e-6).all(), name


def test_a_million_shapes() -> None:
    rng = np.random.default_rng(1)
    shapes = product(*(rng.integers(1, 16_384, 10**6) for _ in range(3)), form=BF16)
    parameters = families(MODEL)["hopper"]["bf16"]
    start = clock.process_time()
    MODEL.time(shapes, device_of(find("accelerator", "h100_sxm")), parameters)
    assert clock.process_time() - start < 2.0


# --- measured rows


def measured(device: str, dtype: str) -> tuple[Sample, Any]:
    path = DATA / "gemm.csv.gz"
    if not path.exists():
        pytest.skip(f"no measurements at {path}")
    frame = pd.read_csv(path)
    rows = frame[(frame.device == device) & (frame.dtype == dtype) & frame.us_ref.notna()]
    sample = Sample(device_of(find("accelerator", device)), MODEL.shapes(rows), rows.us_ref.to_numpy() * 1e-6)
    return sample, MODEL.roofline(sample.shapes, sample.device) > 20e-6


def mape(sample: Sample, parameters: Any, chosen: Any = slice(None)) -> float:
    errors = MODEL.time(sample.shapes, sample.device, parameters)[0] / sample.seconds - 1
    return float(np.mean(np.abs(errors[chosen])))


@pytest.mark.parametrize(
    ("device", "dtype", "every_row", "long_rows"),
    [("h100_sxm", "bfloat16", 0.07, 0.055), ("a100_sxm", "bfloat16", 0.10, 0.08), ("h100_sxm", "fp8", 0.18, 0.18)],
)
def test_bars(device: str, dtype: str, every_row: float, long_rows: float) -> None:
    sample, long = measured(device, dtype)
    found = parameters_of(MODEL, find("accelerator", device), form_of(dtype).variant).parameters
    assert mape(sample, found) <= every_row
    assert mape(sample, found, long) <= long_rows


@pytest.mark.parametrize(("known", "left_out"), [("h100_sxm", "a100_sxm"), ("a100_sxm", "h100_sxm")])
def test_a_device_left_out(known: str, left_out: str) -> None:
    start = GemmParameters(launch_clocks=5000, compute=0.8, memory=0.8, split_clocks=4000)
    found = fit(MODEL, [measured(known, "bfloat16")[0]], start, most_rows=1000, evaluations=600)
    sample, long = measured(left_out, "bfloat16")
    assert mape(sample, found, long) <= 0.12
