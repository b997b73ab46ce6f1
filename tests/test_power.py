"""Power of boards and nodes from what they do, and speed under caps: closed forms and limits, not our own numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hardware.catalogue import find
from hardware.schema import Accelerator, Node
from perfmodel.architecture import load_architecture
from perfmodel.power import (
    Activity,
    Sizes,
    Throttle,
    board_power_w,
    capped_speed,
    context_power_w,
    node_power_w,
    power_constants,
    relative_clock,
    serving_activity,
    shares_of,
    sizes_of,
    throttle_of,
)


def board(name: str) -> Accelerator:
    found = find("accelerator", name)
    assert isinstance(found, Accelerator)
    return found


H100 = board("h100-80gb-sxm")


def test_nothing_to_do_draws_what_a_context_does() -> None:
    # 121.7 W: Model Parking Tax, arXiv 2605.23918, H100 with a CUDA context
    assert float(board_power_w(H100, Activity(0.0, 0.0))) == pytest.approx(121.7, rel=0.02)
    assert context_power_w(H100) == pytest.approx(121.7, rel=0.02)


def test_power_grows_with_work_and_stays_below_the_limit() -> None:
    load = np.linspace(0, 1, 21)
    for activity in (Activity(load, 0.2), Activity(0.1, load)):
        watts = board_power_w(H100, activity)
        assert np.all(np.diff(watts) >= 0)
        assert np.all(watts <= 700)
    assert np.all(board_power_w(H100, Activity(load, 0.2), limit_w=350.0) <= 350)


def test_arithmetic_at_its_peak_meets_the_limit() -> None:
    # NLR data set 312: high-performance LINPACK draws 696 W of 700
    assert float(board_power_w(H100, Activity(0.9, 0.3))) == pytest.approx(696, rel=0.03)


def test_boards_nobody_measured_take_shares_with_a_wider_interval() -> None:
    own, family, other = (shares_of(board(name)) for name in ("h100-80gb-sxm", "h200-sxm", "mi300x"))
    assert own.spread < family.spread
    assert own.spread < other.spread
    assert family == replace(own, spread=family.spread)


def test_a_clock_has_the_dynamic_power_that_was_asked() -> None:
    floor = 0.6
    share = np.linspace(0.06, 1, 40)
    clock = relative_clock(share, floor)
    assert clock * np.maximum(clock, floor) ** 2 == pytest.approx(share)


def test_speed_under_a_cap_by_hand() -> None:
    still = Throttle(static=0.2, fluctuation=0.0, voltage_floor=0.1, spread=0.1)
    # 250 W of a 250 W board with 50 W static: 200 W dynamic, of which a cap of 150 W leaves 100: f^3 = 1/2
    assert float(capped_speed(250.0, 150.0, 250.0, still)) == pytest.approx(0.5 ** (1 / 3))
    # half of the time does not follow the clock
    assert float(capped_speed(250.0, 150.0, 250.0, still, 0.5)) == pytest.approx(1 / (0.5 * 2 ** (1 / 3) + 0.5))
    assert float(capped_speed(120.0, 150.0, 250.0, still)) == 1.0
    # below the floor the voltage stays: f = share/v^2
    floored = replace(still, voltage_floor=0.9)
    assert float(capped_speed(250.0, 150.0, 250.0, floored)) == pytest.approx(0.5 / 0.81)


def test_work_that_waits_for_memory_hardly_slows() -> None:
    # Splitwise (ISCA 2024): decode unaffected from 700 to 350 W
    throttle = throttle_of(H100)
    assert float(capped_speed(380.0, 350.0, 700.0, throttle, 0.1)) > 0.97


def test_less_power_never_runs_faster() -> None:
    for name in ("v100-32gb-sxm", "p100-16gb-pcie", "quadro-rtx-6000", "b200-sxm"):
        limits = np.linspace(100, 250, 31)
        speed = capped_speed(230.0, limits, 250.0, throttle_of(board(name)))
        assert np.all(np.diff(speed) >= -1e-12)
        assert np.all((speed > 0) & (speed <= 1 + 1e-12))


def test_activity_of_a_dense_model_by_hand() -> None:
    sizes = Sizes(8e9, 8e9, cache=65536)
    found = serving_activity(
        sizes, H100, accelerators=2, steps_per_s=50.0, sequences=16, context_tokens=1000, prompt_tokens_per_s=200.0
    )
    assert float(found.compute) == pytest.approx(2 * 8e9 * (16 * 50 + 200) / 2 / 989e12)
    cache = power_constants().cache
    assert float(found.memory) == pytest.approx(50 * (16e9 + cache * 16 * 1000 * 65536 * 2) / 2 / 3.35e12)


def test_experts_that_no_token_visits_are_not_read() -> None:
    known = replace(power_constants(), padded_rows=0.0)
    sizes = Sizes(100e9, 10e9 + 90e9 / 64, 90e9, 128, 2)
    # brute force: tokens that choose 2 of 128 experts
    random = np.random.default_rng(0)
    chosen = np.argsort(random.random((4000, 12, 128)), axis=-1)[:, :, :2].reshape(4000, -1)
    visited = np.mean([len(np.unique(one)) for one in chosen]) / 128
    found = serving_activity(
        sizes, H100, accelerators=1, steps_per_s=10.0, sequences=12, context_tokens=0, constants=known
    )
    assert float(found.memory) == pytest.approx(10 * 2 * (10e9 + 90e9 * visited) / 3.35e12, rel=0.01)
    assert float(found.compute) == pytest.approx(2 * 10 * 12 * (10e9 + 90e9 / 64) / 989e12)


def test_sizes_of_a_mixture() -> None:
    # Qwen3 technical report, arXiv 2505.09388, table 2: 235 and 22 billion parameters, 128 experts, 8 for a token
    sizes = sizes_of(load_architecture("qwen3-235b-a22b", Path()))
    assert (sizes.experts, sizes.experts_per_token) == (128, 8)
    assert float(sizes.parameters) == pytest.approx(235e9, rel=0.01)
    assert float(sizes.active) == pytest.approx(22e9, rel=0.03)
    assert float(sizes.cache) == 94 * 2 * 4 * 128


def test_a_node_in_training_draws_what_was_measured() -> None:
    # Latif et al. (IEEE Access 2025): a node of eight H100 draws 8.4 kW in training, 18 % below its rating
    node = find("node", "dgx-h100")
    assert isinstance(node, Node)
    boards = 8 * float(board_power_w(H100, Activity(0.4, 0.2)))
    assert float(node_power_w(node, boards)) == pytest.approx(8400, rel=0.1)
    assert node.power is not None
    assert float(node_power_w(node, 1e6)) == pytest.approx(1e6)
    assert float(node_power_w(node, 8 * 700.0)) <= (node.power.limit or np.inf)
