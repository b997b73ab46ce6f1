"""Kernels that only move memory: traffic and times by hand, what more of anything does, measured rows."""

import time as clock
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalogue import find
from hardware.efficiency import MemoryParameters
from perfmodel.kernels import memory
from perfmodel.kernels.library import families
from perfmodel.kernels.model import device_of
from perfmodel.terms import LATENCY, MEMORY

H100 = device_of(find("accelerator", "h100-80gb-sxm"))
PLAIN = MemoryParameters(launch_us=2.0, memory=0.8, row_clocks=0.2, resident=2.0, warm_gain=2.0)


def seconds(shapes, device=H100, parameters=PLAIN):
    return float(memory.time(shapes, device, parameters)[0])


def test_time_by_hand():
    # a norm of 4096 tokens of 8192: 4 bytes an element; 4096 rows over 2 x 132 places
    moved = 4 * 4096 * 8192
    walk = 4096 / 264 * 0.2 * 4 * 8192 / 1.83e9
    expected = 2e-6 + moved / (0.8 * 3.35e12) + walk
    assert seconds(memory.shapes_of("norm", 4096, 8192)) == pytest.approx(expected)


def test_one_row_waits_for_its_walk():
    expected = 2e-6 + 6 * 28672 / (0.8 * 3.35e12) + 0.2 * 6 * 28672 / 1.83e9
    assert seconds(memory.shapes_of("gated_activation", 1, 28672)) == pytest.approx(expected)


def test_what_fits_in_l2_is_warm_only_where_timed_back_to_back():
    cold = memory.shapes_of("add", 512, 4096)
    warm = cold | {"warm": np.True_}
    moved = 6 * 512 * 4096
    assert seconds(cold) - seconds(warm) == pytest.approx(moved / (0.8 * 3.35e12) / 2)
    large = memory.shapes_of("add", 65536, 8192)
    assert seconds(large) == seconds(large | {"warm": np.True_})


def test_optimizer_traffic():
    # 1e9 parameters of 28 bytes at 2.68 TB/s: 10.4 ms
    shapes = memory.optimizer_shapes(1_000_000_000, 28.0)
    assert float(memory.roofline(shapes, H100)) == pytest.approx(28e9 / 3.35e12, rel=1e-5)
    assert int(memory.time(shapes, H100, PLAIN.model_copy(update={"row_clocks": 0.001}))[1]) == MEMORY


def test_bounds():
    assert int(memory.time(memory.shapes_of("copy", 1, 16), H100, PLAIN)[1]) == LATENCY
    streaming = PLAIN.model_copy(update={"row_clocks": 0.001})
    assert int(memory.time(memory.shapes_of("copy", 100000, 8192), H100, streaming)[1]) == MEMORY


@given(
    kernel=st.sampled_from(sorted(memory.MOVED)),
    rows=st.integers(1, 100000),
    width=st.integers(1, 200000),
    factor=st.floats(1.0, 4.0),
)
def test_more_work_is_never_faster_and_a_better_device_never_slower(kernel, rows, width, factor):
    shapes = memory.shapes_of(kernel, rows, width)
    base = seconds(shapes)
    assert base >= float(memory.roofline(shapes, H100))
    assert seconds(memory.shapes_of(kernel, rows + 7, width)) >= base
    assert seconds(memory.shapes_of(kernel, rows, width + 7)) >= base
    assert seconds(shapes, replace(H100, bandwidth=H100.bandwidth * factor)) <= base
    assert seconds(shapes, replace(H100, units=int(H100.units * factor))) <= base
    assert seconds(shapes, replace(H100, clock=H100.clock * factor)) <= base


def test_every_kernel_has_a_variant_of_every_family():
    assert set(memory.MOVED) | {"optimizer"} == set(memory.VARIANTS)
    for variants in families(memory.MODEL).values():
        assert set(memory.VARIANTS.values()) == set(variants)


def test_pieces_of_a_layer():
    # Llama-2-70B, 8 ranks: a rank turns 8 query heads and one key head of 128
    layer = {"device": "h100", "n_head": 64, "n_kv_head": 8, "n_embd": 8192, "n_expanded_embd": 28672, "num_tokens": 5}
    times = dict.fromkeys(memory.LAYER_COLUMNS, 3.0)
    rows = memory.kernels_of_layers(pd.DataFrame([layer | {"tp": 8} | times])).set_index("kernel")
    assert rows.loc["rotation", "width"] == 9 * 128
    assert rows.loc["gated_activation", "width"] == 3584
    assert list(rows.loc["norm", "width"]) == [8192, 8192]
    found = memory.shapes(rows.reset_index())
    assert found["warm"].all()
    assert sorted(set(found["row_bytes"])) == sorted({4 * 8192.0, 4 * 1152.0, 6 * 3584.0, 6 * 8192.0})


def test_arrays_equal_scalars():
    rows = np.array([1, 100, 5000])
    together = memory.time(memory.shapes_of("norm", rows, 8192), H100, PLAIN)
    for index, count in enumerate(rows):
        one = memory.time(memory.shapes_of("norm", int(count), 8192), H100, PLAIN)
        assert float(one[0]) == pytest.approx(together[0][index])
        assert int(one[1]) == together[1][index]


def test_a_million_shapes_take_two_seconds():
    shapes = memory.shapes_of("norm", np.arange(1, 1_000_001), 8192)
    start = clock.process_time()
    memory.time(shapes, H100, PLAIN)
    assert clock.process_time() - start < 2.0
