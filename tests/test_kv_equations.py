"""Closed forms against the worked numbers of their papers, brute force and measured transfers."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from hardware.catalogue import find
from perfmodel import kv_equations as equations
from perfmodel.kv_transfer import exposed_transfer, transfer_time
from perfmodel.serving.engine import engines

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kv_power"


def test_mooncake_equation_2():
    """FAST 2025, section 3: 8,192 tokens of Llama-3-70B need 6 GB/s on 8 A800 and 19 GB/s on 8 H800."""
    found = equations.reuse_bandwidth(8 * np.array([312e12, 989e12]), 8192, 8192, 8)
    np.testing.assert_allclose(found / 1e9, [5.859, 18.573], atol=5e-4)


@pytest.mark.parametrize(
    ("a", "b", "load", "k", "time", "whole_k", "whole_time"),
    [
        (10, 0, 20, 21.3333, 213.333, 21, 220),
        (10, 0.5, 20, 18.6041, 267.918, 19, 275.5),
        (10, 0.5, 50, 24.3063, 384.685, 24, 400),
    ],
)
def test_cake_meets_in_the_middle(a, b, load, k, time, whole_k, whole_time):
    found = equations.meeting_point(32, a, b, load)
    assert found == (pytest.approx(k, abs=5e-5), pytest.approx(time, abs=5e-4))
    assert equations.whole_meeting_point(32, a, b, load) == (whole_k, whole_time)
    computed = sum(a + b * i for i in range(32))
    share = found[1] / (32 * load) + found[1] / computed  # 1 / S_io + 1 / S_comp
    assert share == pytest.approx(1) if b == 0 else share < 1


def test_lamina():
    """arXiv 2405.01814: Llama-3-70B on one H100 with attention on one H20, a fifth of the iteration for crossing."""
    found = equations.attention_apart(
        np.array([100, 300, 300]), np.array([4096, 4096, 8192]), parameters=70e9, hidden=8192, layers=80, group=8,
        kv_bytes_per_token=327_680, flops_per_s=989e12, bandwidth=3.35e12, memory_bandwidth=4.0e12, memory_share=0.7,
        network_share=0.2,
    )  # fmt: skip
    np.testing.assert_allclose(found.moved_bytes, [294_912_000, 884_736_000, 884_736_000])
    np.testing.assert_allclose(found.model_s * 1e3, [41.792, 42.467, 42.467], atol=5e-4)
    np.testing.assert_allclose(found.attention_s * 1e3, [47.935, 143.805, 287.609], atol=5e-4)
    np.testing.assert_allclose(found.bandwidth / 1e9, [16.43, 23.75, 13.40], atol=5e-3)


def test_zero_infinity():
    """arXiv 2104.07857, section 4.2: V100 at 70 TFLOP/s, sequences of 1,024."""
    peak = 70e12
    assert equations.overlapped_efficiency(equations.parameter_intensity(1024, 1), 70e9, peak) == pytest.approx(
        0.5059, abs=5e-5
    )
    states = equations.efficiency_bandwidth(0.9, equations.optimizer_intensity(1024, 2), peak)
    assert states / 1e12 == pytest.approx(1.230, abs=5e-4)
    halves = equations.efficiency_bandwidth(0.5, equations.activation_intensity(np.array([2048, 8192])), peak)
    np.testing.assert_allclose(halves / 1e9, [1.424, 0.356], atol=5e-4)
    assert equations.overlapped_efficiency(equations.activation_intensity(2048), 2e9, peak) == pytest.approx(
        0.584, abs=5e-4
    )


def test_interleaved_updates():
    assert equations.interleaved_update(1, 10, 1, 8, 7) == (2.5, pytest.approx(6))


def test_tpi_llm_windows():
    """arXiv 2410.00531: the tight condition fails (25 < 30), the loose one holds (56 >= 48)."""
    times = {"attention_s": 11, "feed_s": 17, "reduce_s": 14, "load_attention_s": 18, "load_feed_s": 30}
    assert not equations.window_is_tight(**times)
    assert equations.window_is_loose(**times)
    compute, load = np.tile([11 + 14, 17 + 14], 32), np.tile([18, 30], 32)
    assert [equations.window_stall(compute, load, window) for window in (1, 2, 3, 4)] == [1518, 155, 0, 0]


def test_streamed_prefix():
    """Three layers: load 2, then compute 5 over load 2 twice, then compute 5."""
    assert equations.streamed_first_token([2, 2, 2], [5, 5, 5], 1) == 2 + 15 + 1
    assert equations.streamed_first_token([5, 5, 5], [2, 2, 2]) == 5 + 5 + 5 + 2


def simulated_exposed(transfer, compute, layers):
    """Send layers one after another, each when it is computed."""
    sent = 0.0
    for layer in range(1, layers + 1):
        sent = max(sent, layer * compute) + transfer
    return sent - layers * compute


@pytest.mark.parametrize(("transfer", "compute"), [(1.0, 3.0), (3.0, 3.0), (4.0, 3.0)])
def test_only_the_last_layer_is_exposed_where_compute_is_slower(transfer, compute):
    assert exposed_transfer(transfer, compute, 10) == pytest.approx(simulated_exposed(transfer, compute, 10))


def test_measured_transfers():
    """Nine sizes over eight adapters of 200 Gbit/s: 20 % on average, 25 % at worst."""
    if not DATA.is_dir():
        pytest.skip(f"measured data not found at {DATA}")
    node = find("node", "hgx-h800")
    node = node.model_copy(update={"nics": node.nics.model_copy(update={"count": 8, "bandwidth": 25e9})})
    with (DATA / "kv_transfer_pd_mooncake.csv").open() as file:
        rows = list(csv.DictReader(file))
    size = np.array([float(row["kv_mb"]) * 2**20 for row in rows])
    measured = np.array([float(row["transfer_ms"]) / 1e3 for row in rows])
    assert len(rows) == 9
    for name in ("vllm", "sglang"):
        errors = np.abs(transfer_time(size, engines()[name], node) / measured - 1)
        assert errors.mean() <= 0.20
        assert errors.max() <= 0.25
    with pytest.raises(ValueError, match="states no transfer"):
        transfer_time(1e9, engines()["flexgen"], node)


def test_access_rate_is_littles_law():
    """32 cores with 10 lines each: 64 B x 320 / 90 ns = 228 GB/s of 300; 82 GB/s at 250 ns are more than a card has."""
    found = equations.access_rate(np.array([300e9, 50e9]), np.array([90e-9, 250e-9]), 32, 10)
    np.testing.assert_allclose(found, [64 * 320 / 90e-9, 50e9])


def test_ranked_placement_is_the_best_of_a_linear_problem():
    from scipy.optimize import linprog

    random = np.random.default_rng(5)
    for _ in range(30):
        sizes, passes = random.uniform(1, 10, 6), random.uniform(0.1, 6, 6)
        room, rates = random.uniform(8, 30, 3) + sizes.sum() / 3, random.uniform(1, 100, 3)
        shares = equations.ranked_placement(sizes, passes, room, rates)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        assert (sizes @ shares <= room * (1 + 1e-12)).all()
        cost = (sizes * passes)[:, None] / rates
        best = linprog(
            cost.ravel(),
            A_ub=np.kron(sizes, np.eye(3)),
            b_ub=room,
            A_eq=np.kron(np.eye(6), np.ones(3)),
            b_eq=np.ones(6),
        )
        assert (shares * cost).sum() == pytest.approx(best.fun, rel=1e-9)
    with pytest.raises(ValueError, match="the memories hold"):
        equations.ranked_placement([10.0], [1.0], [4.0, 5.0], [1.0, 2.0])
