"""Closed loops, their start, full queues and static batches: equations against simulation, and by hand."""

import numpy as np
import pytest

from perfmodel.batching import Limits, Requests
from perfmodel.batching_runs import closed_loop, closed_loop_burst, offline, static_batch
from perfmodel.simulation import MODES, Engine, simulate, simulate_closed
from perfmodel.step_law import LinearStep

LAW = LinearStep(0.02, 1e-4, 5e-5, 1e-8)
SPREAD = (0.2 / 0.9) ** 2 / 12
"""Squared coefficient of variation of lengths uniform in 0.8 to 1 of the nominal one."""


def lengths(nominal, count, seed):
    random = np.random.default_rng(seed)
    return tuple(random.integers(int(0.8 * tokens), tokens + 1, count) for tokens in nominal)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clients", [4, 32, 128])
@pytest.mark.parametrize(("nominal", "budget"), [((1000, 1000), 8192), ((8000, 500), 8192), ((4000, 200), 2048)])
def test_closed_loop_from_its_start(mode, clients, nominal, budget):
    """Ten rounds: TPOT within 2 %, mean TTFT with its burst within 15 %, rate within 3 %."""
    result = simulate_closed(Engine(LAW, mode, 1024, budget), clients, *lengths(nominal, 10 * clients, 0))
    run = closed_loop_burst(
        LAW, Requests(0.9 * nominal[0], 0.9 * nominal[1], SPREAD, SPREAD), Limits(mode, 1024, budget), clients
    )
    assert float(run.tpot_s) == pytest.approx(result.tpot_s.mean(), rel=0.02)
    assert float(run.ttft_s) == pytest.approx(result.ttft_s.mean(), rel=0.15)
    assert float(run.burst_ttft_s) == pytest.approx(result.ttft_s[:clients].mean(), rel=0.05)
    assert float(run.requests_per_s) == pytest.approx(10 * clients / result.finish_s.max(), rel=0.03)


@pytest.mark.parametrize("mode", MODES)
def test_more_clients_than_the_batch_holds(mode):
    result = simulate_closed(Engine(LAW, mode, 64, 8192), 256, *lengths((1000, 500), 2560, 1))
    run = closed_loop_burst(LAW, Requests(900, 450, SPREAD, SPREAD), Limits(mode, 64, 8192), 256)
    assert float(run.tpot_s) == pytest.approx(result.tpot_s.mean(), rel=0.02)
    assert float(run.ttft_s) == pytest.approx(result.ttft_s.mean(), rel=0.05)
    assert float(run.requests_per_s) == pytest.approx(2560 / result.finish_s.max(), rel=0.02)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("nominal", "count", "batch"), [((1000, 1000), 1000, 256), ((2048, 128), 1000, 256), ((500, 2000), 300, 2048)]
)
def test_a_full_queue(mode, nominal, count, batch):
    """The whole run within 3 % (prefill first 6 %), ramp and drain included."""
    result = simulate(Engine(LAW, mode, batch, 8192), np.zeros(count), *lengths(nominal, count, 2))
    run = offline(LAW, Requests(0.9 * nominal[0], 0.9 * nominal[1], SPREAD, SPREAD), Limits(mode, batch, 8192), count)
    assert float(run.seconds) == pytest.approx(result.finish_s.max(), rel=0.06 if mode == "prefill_first" else 0.03)
    assert float(run.ttft_s) == pytest.approx(result.ttft_s.mean(), rel=0.05)
    assert float(run.tpot_s) == pytest.approx(result.tpot_s.mean(), rel=0.05)


def test_a_static_batch_by_hand():
    """Four prompts of 10 tokens, two a pass, then two steps of four sequences with contexts of 11 and 12."""
    batch = static_batch(LinearStep(1.0, 0.25, 0.125, 0.5), Requests(10, 3), 4, 20)
    assert batch.ttft_s == 2 * (1 + 20 / 8)
    assert batch.seconds == 2 * (1 + 20 / 8) + 2 * (1 + 4 / 4) + 0.5 * 4 * (11 + 12)
    assert batch.requests_per_s == 4 / batch.seconds


def test_saturated_closed_loop_is_the_capacity():
    """B clients that always have a request: B / (G a + B ((G - 1) c + d P))."""
    law = LinearStep(0.006, 5e-5, 3e-5)
    state = closed_loop(law, Requests(1000, 200), Limits("mixed", 64, 10**6), [64, 200])
    exact = 64 / (200 * 0.006 + 64 * (199 * 5e-5 + 1000 * 3e-5))
    np.testing.assert_allclose(state.requests_per_s, exact, rtol=1e-3)
    np.testing.assert_allclose(state.capacity_requests_per_s, exact, rtol=1e-6)
    inside = state.requests_per_s * (state.ttft_s + 199 * state.tpot_s)
    np.testing.assert_allclose(inside, [64, 200], rtol=1e-2)


def test_quantiles_of_a_closed_loop():
    result = simulate_closed(Engine(LAW, "mixed", 256, 8192), 64, *lengths((1000, 300), 6400, 3))
    state = closed_loop(LAW, Requests(900, 270, SPREAD, SPREAD), Limits("mixed", 256, 8192), 64)
    later = result.ttft_s[2000:]
    for probability in (0.5, 0.9, 0.99):
        assert float(state.ttft_quantile_s(probability)) == pytest.approx(np.quantile(later, probability), rel=0.25)
    assert float(state.tpot_quantile_s(0.99)) == pytest.approx(np.quantile(result.tpot_s[2000:], 0.99), rel=0.1)


@pytest.mark.parametrize("mode", ["mixed", "chunked", "prefill_first"])
@pytest.mark.parametrize(("clients", "rate", "ttft"), [(8, 80.0, 0.1), (2, 2 / 0.03, 0.03), (4, 80.0, 0.05)])
def test_clients_that_want_one_token(mode: str, clients: int, rate: float, ttft: float) -> None:
    """Steps of 10 ms and 10 ms a prompt of 1,000 tokens, four at most: of 8 clients each waits for a step of others."""
    law, asked = LinearStep(0.01, 0.0, 1e-5), Requests(1000.0, 1.0)
    found = closed_loop(law, asked, Limits(mode, 64, 4000), clients)
    assert float(found.requests_per_s) == pytest.approx(rate)
    assert float(found.ttft_s) == pytest.approx(ttft) and float(found.ttft_quantile_s(0.99)) == pytest.approx(ttft)
    assert float(found.tpot_s) == 0 and float(found.load) == pytest.approx(rate / 80)
