"""Closed loops and pools: conservation laws, limits, and the simulation of the same steps."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel.batching import Limits, Requests
from perfmodel.serving.regimes import closed_loop, pools, prompt_cost
from perfmodel.step_law import LinearStep

LAW = LinearStep(8e-3, 2e-5, 2e-5, 1e-8)
"""8 ms a step, 20 us a sequence and a prompt token, 10 ns a token of context."""

REQUESTS = Requests(1000.0, 500.0)


def _limits(mode: str, slots: float = 512.0) -> Limits:
    return Limits(mode, slots, 8192.0)


@pytest.mark.parametrize("mode", ["mixed", "chunked", "prefill_first"])
def test_clients_are_conserved(mode: str) -> None:
    """Little's law: clients = rate x (time to the first token + time of the rest)."""
    clients = np.array([1.0, 8.0, 64.0, 256.0])
    found = closed_loop(LAW, REQUESTS, _limits(mode), clients, waves=10, spread=0.2)
    inside = found.ttft_s + 499 * found.tpot_s
    assert np.allclose(found.requests_per_s * inside, clients, rtol=0.01)


def test_one_client_waits_for_nobody() -> None:
    """8 ms, a sequence and 1,250 tokens of context: 8.0325 ms; a prompt of 1,000 tokens takes 20 ms more."""
    found = closed_loop(LAW, REQUESTS, _limits("chunked"), np.array(1.0), waves=10, spread=0.0)
    token = 8e-3 + 2e-5 + 1250 * 1e-8
    assert float(found.tpot_s) == pytest.approx(token, rel=1e-3)
    assert float(found.ttft_s) == pytest.approx(1.5 * token + 1000 * 2e-5, rel=0.02)


def test_clients_beyond_the_slots_queue() -> None:
    """With N slots and 2 N clients half of them wait: a whole stay in the engine is added to the first token."""
    kept, over = (
        closed_loop(LAW, REQUESTS, _limits("chunked", 32.0), np.array(clients), waves=10, spread=0.2)
        for clients in (32.0, 64.0)
    )
    stay = 32 / float(kept.requests_per_s)
    assert float(over.ttft_s - kept.ttft_s) == pytest.approx(stay, rel=1e-6)
    assert float(over.tpot_s) == pytest.approx(float(kept.tpot_s))


def test_prompts_first_wait_for_the_whole_wave() -> None:
    """Answers of one length end together where prompts go first: every wave waits as the first one does.

    64 prompts of 20 ms, 8 to a step of 8 ms more: the mean first token comes after (64 + 8)/2 of them.
    """
    few, many = (
        closed_loop(LAW, REQUESTS, _limits("prefill_first"), np.array(64.0), waves=waves, spread=0.0)
        for waves in (1.0, 100.0)
    )
    assert float(few.ttft_s) == pytest.approx(float(many.ttft_s), rel=1e-6)
    prompt = 2e-2 + 8e-3 / 8
    assert float(few.ttft_s) == pytest.approx((64 + 8) / 2 * prompt, rel=0.05)


def test_tokens_of_prompts_first_wait_for_half_of_them() -> None:
    """In lockstep the j-th of N waits for N - j prompts before its second token: (N - 1)/2 on average."""
    found = closed_loop(LAW, REQUESTS, _limits("prefill_first"), np.array(64.0), waves=10.0, spread=0.0)
    step = 8e-3 + 64 * (2e-5 + 1250e-8)
    waited = 63 / 2 * (2e-2 + 8e-3 / 8)
    assert float(found.tpot_s) == pytest.approx(step + waited / 499, rel=0.03)


def test_tokens_of_pools_do_not_wait_for_prompts() -> None:
    clients = np.array(64.0)
    apart = pools((LAW, _limits("prefill_first"), 2.0), (LAW, _limits("mixed"), 2.0), REQUESTS, clients, waves=10.0)
    mixed = closed_loop(LAW, REQUESTS, _limits("mixed"), clients / 2, waves=10, spread=0.2)
    assert float(apart.tpot_s) < float(mixed.tpot_s)
    assert float(apart.running) <= 64


def test_pools_pass_no_more_than_prompts_allow() -> None:
    """One instance of 29 ms a prompt, however many clients: 1/29 ms at most."""
    clients = np.array([64.0, 512.0, 4096.0])
    found = pools(
        (LAW, Limits("prefill_first", 1.0, 1000.0), 1.0),
        (LAW, _limits("mixed", 4096.0), 8.0),
        REQUESTS,
        clients,
        waves=10.0,
    )
    assert (found.requests_per_s <= 1 / 28e-3 * (1 + 1e-6)).all()
    assert float(found.requests_per_s[-1]) == pytest.approx(1 / 28e-3, rel=0.02)


def test_a_step_with_more_room_shares_its_fixed_time() -> None:
    cost = prompt_cost(LAW, Requests(200.0, 100.0), Limits("prefill_first", 64.0, 8192.0), np.array(32.0))
    assert float(cost.together) == 40
    assert float(cost.added_s) == pytest.approx(8e-3 + 200 * 2e-5)
    assert float(cost.queued_s) == pytest.approx(8e-3 / 40 + 200 * 2e-5)
