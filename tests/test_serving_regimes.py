"""Closed loops from their start and pools, with their host: conservation laws, limits, and lines of two stations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perfmodel.batching import Limits, Requests
from perfmodel.batching_runs import closed_loop, closed_loop_burst
from perfmodel.serving.engine import Engine, engines
from perfmodel.serving.host import intake_s, passed_on_s, received_s
from perfmodel.serving.regimes import Served, from_start, pools
from perfmodel.simulation import MODES, Mode, simulate_closed
from perfmodel.simulation import Engine as Simulated
from perfmodel.step_law import LinearStep

LAW = LinearStep(8e-3, 2e-5, 2e-5, 1e-8)
"""8 ms a step, 20 us a sequence and a prompt token, 10 ns a token of context."""

REQUESTS = Requests(1000.0, 500.0, 0.004, 0.004)
ALIKE = Requests(1000.0, 500.0)


def _limits(mode: str, slots: float = 512.0) -> Limits:
    return Limits(mode, slots, 8192.0)


def _engine(**host: float) -> Engine:
    """Return an engine whose host takes no time but what is given."""
    none = {"prompt_overhead": 0.0, "request_overhead": 0.0, "handoff_overhead": 0.0, "intake_steps": 0.0}
    return engines()["vllm"].model_copy(update=none | host)


def _served(requests: Requests, limits: Limits, clients: Any, rounds: float = 10.0, **host: float) -> Served:
    return from_start(LAW, requests, limits, _engine(**host), np.asarray(clients, float), rounds=rounds)


@pytest.mark.parametrize("mode", MODES)
def test_clients_are_conserved(mode: str) -> None:
    """Little's law, after many rounds: clients = rate x (time to the first token + time of the rest)."""
    clients = np.array([1.0, 8.0, 64.0, 256.0])
    found = _served(REQUESTS, _limits(mode), clients, rounds=1000.0)
    inside = found.ttft_s + 499 * found.tpot_s
    assert np.allclose(found.requests_per_s * inside, clients, rtol=0.02)


def test_one_client_waits_for_nobody() -> None:
    """8 ms, a sequence and 1,250 tokens of context: 8.0325 ms; a prompt of 1,000 tokens takes 28 ms."""
    found = _served(ALIKE, _limits("chunked"), 1.0, prompt_overhead=0.05, request_overhead=0.01, intake_steps=9.0)
    assert float(found.tpot_s) == pytest.approx(8e-3 + 2e-5 + 1250 * 1e-8, rel=1e-3)
    assert float(found.ttft_s) == pytest.approx(0.05 + 0.01 + 8e-3 + 1000 * 2e-5, rel=1e-3)


def test_clients_beyond_the_slots_queue() -> None:
    """With N slots and 2 N clients half of them wait: a whole stay in the engine is added to the first token."""
    limits = _limits("chunked", 32.0)
    kept, over = (closed_loop(LAW, REQUESTS, limits, clients) for clients in (32.0, 64.0))
    stay = 32 / float(kept.requests_per_s)
    assert float(over.ttft_s - kept.ttft_s) == pytest.approx(stay, rel=1e-6)
    assert float(over.tpot_s) == pytest.approx(float(kept.tpot_s))


@pytest.mark.parametrize("clients", [1, 4, 32, 128])
@pytest.mark.parametrize(("prompt", "output"), [(1000, 1000), (8000, 500), (200, 300)])
def test_prompts_first_stay_in_step(prompt: int, output: int, clients: int) -> None:
    """Equal answers of engines that compute prompts first end and begin together: as simulated, within 2 %."""
    lengths = [np.full(10 * clients, tokens) for tokens in (prompt, output)]
    result = simulate_closed(Simulated(LAW, "prefill_first", 1024, 8192), clients, *lengths)
    run = closed_loop_burst(LAW, Requests(prompt, output), Limits("prefill_first", 1024, 8192), clients)
    assert float(run.ttft_s) == pytest.approx(result.ttft_s.mean(), rel=0.02)
    assert float(run.tpot_s) == pytest.approx(result.tpot_s.mean(), rel=0.02)
    assert float(run.requests_per_s) == pytest.approx(10 * clients / result.finish_s.max(), rel=0.02)


@pytest.mark.parametrize("mode", ["mixed", "chunked"])
@pytest.mark.parametrize("clients", [1, 4, 32, 128])
def test_equal_prompts_that_fill_a_step_follow_each_other(mode: Mode, clients: int) -> None:
    """Of prompts that fill a step one ends with each: nobody waits for another after the start."""
    lengths = [np.full(10 * clients, tokens) for tokens in (8000, 500)]
    result = simulate_closed(Simulated(LAW, mode, 1024, 8192), clients, *lengths)
    run = closed_loop_burst(LAW, Requests(8000, 500), Limits(mode, 1024, 8192), clients)
    assert float(run.ttft_s) == pytest.approx(result.ttft_s.mean(), rel=0.05)
    assert float(run.tpot_s) == pytest.approx(result.tpot_s.mean(), rel=0.02)


def test_prompts_first_wait_for_the_whole_wave() -> None:
    """64 prompts of 20 ms, 8 to a step of 8 ms more: the mean first token comes after (64 + 8)/2, each round."""
    few, many = (_served(ALIKE, _limits("prefill_first"), 64.0, rounds) for rounds in (1.0, 100.0))
    assert float(few.ttft_s) == pytest.approx(float(many.ttft_s), rel=1e-6)
    assert float(few.ttft_s) == pytest.approx((64 + 8) / 2 * (2e-2 + 8e-3 / 8), rel=0.01)


def test_tokens_of_prompts_first_wait_for_half_of_them() -> None:
    """In lockstep the j-th group of 8 of N waits for N - 8 j prompts before its second token: (N - 8)/2 on average."""
    found = _served(ALIKE, _limits("prefill_first"), 64.0)
    step = 8e-3 + 64 * (2e-5 + 1250e-8)
    assert float(found.tpot_s) == pytest.approx(step + (64 - 8) / 2 * (2e-2 + 8e-3 / 8) / 499, rel=1e-3)


@pytest.mark.parametrize("host_s", [1e-3, 0.05])
def test_the_host_passes_requests_on_one_by_one(host_s: float) -> None:
    """A line of two stations, stepped through by hand: 20 requests at once, prompts of 27 ms one to a step."""
    limits = Limits("prefill_first", 512.0, 1000.0)
    passed = computed = total = 0.0
    for _ in range(20):
        passed += host_s
        computed = max(computed, passed) + 28e-3
        total += computed
    found = _served(ALIKE, limits, 20.0, 1.0, request_overhead=host_s)
    assert float(found.ttft_s) == pytest.approx(total / 20, rel=0.01)


def test_requests_wait_for_the_engine_to_look() -> None:
    """Every ten steps: five of them, where others decode; nobody looks later because of itself."""
    engine = _engine(intake_steps=10.0, prompt_overhead=0.1, request_overhead=0.02)
    assert float(intake_s(engine, 8e-3, 1.0)) == pytest.approx(0.04)
    assert received_s(engine) == pytest.approx(0.12)
    assert float(passed_on_s(engine, 10, 0.03)) == pytest.approx(10 / 2 * 0.02 - 0.03)
    plain, late = (_served(REQUESTS, _limits("chunked"), 64.0, 1e6, intake_steps=count) for count in (0.0, 10.0))
    assert float(late.ttft_s - plain.ttft_s) == pytest.approx(5 * float(plain.tpot_s), rel=0.02)


def test_tokens_of_pools_do_not_wait_for_prompts() -> None:
    clients, prompts = np.array(64.0), (LAW, _limits("prefill_first"), 2.0)
    apart = pools(prompts, (LAW, _limits("mixed"), 2.0), REQUESTS, _engine(), clients, rounds=10.0)
    mixed = _served(REQUESTS, _limits("mixed"), clients / 2)
    assert float(apart.tpot_s) < float(mixed.tpot_s)
    assert float(apart.running) <= 64


def test_clients_of_pools_are_conserved() -> None:
    clients = np.array([1.0, 8.0, 64.0, 256.0])
    prompts = (LAW, _limits("prefill_first"), 2.0)
    found = pools(prompts, (LAW, _limits("mixed"), 2.0), REQUESTS, _engine(), clients, rounds=1e6)
    # The step that gives the first token counts as the decoding instance's.
    inside = found.ttft_s + 498 * found.tpot_s
    assert np.allclose(found.requests_per_s * inside, clients, rtol=0.01)


def test_pools_pass_no_more_than_prompts_allow() -> None:
    """One instance of 28 ms a prompt, however many clients: 1/28 ms at most, and the others queue."""
    clients = np.array([64.0, 512.0, 4096.0])
    prompts, tokens = (LAW, Limits("prefill_first", 1.0, 1000.0), 1.0), (LAW, _limits("mixed", 4096.0), 8.0)
    found = pools(prompts, tokens, REQUESTS, _engine(), clients, rounds=10.0)
    assert (found.requests_per_s <= 1 / 28e-3 * (1 + 1e-6)).all()
    assert float(found.requests_per_s[-1]) == pytest.approx(1 / 28e-3, rel=0.03)
