"""Closed loops, full queues and pools: conservation laws and limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hardware.catalogue import resolve_cluster
from perfmodel.architecture import bundled_architecture
from perfmodel.serving.engine import engines
from perfmodel.serving.regimes import closed_loop, offline, pools, prompt_cost, seconds
from perfmodel.serving.server import Server, server
from perfmodel.serving.step import Deployment, Load


def _server(engine: str) -> Server:
    machine = resolve_cluster("dgx-h100", Path(), 1)
    return server(bundled_architecture("llama-3.1-8b"), machine, engines()[engine])


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_clients_are_conserved(engine: str) -> None:
    """Little's law: clients = rate x (time to the first token + time of the rest), host time apart."""
    asked = _server(engine)
    clients = np.array([1.0, 8.0, 64.0, 256.0])
    found = closed_loop(asked, Deployment(), clients, 1000, 500, budget=8192, slots=512, waves=10, spread=0.2)
    inside = found.ttft_s - asked.engine.prompt_overhead + 499 * found.tpot_s
    assert np.allclose(found.requests_per_s * inside, clients, rtol=0.02)


def test_one_client_waits_for_nobody() -> None:
    asked = _server("vllm")
    found = closed_loop(asked, Deployment(), 1.0, 1000, 500, budget=8192, slots=512, waves=10, spread=0.0)
    token = seconds(asked, Deployment(), Load(1.0, 1250.0))
    prompt = seconds(asked, Deployment(), Load(prompts=1.0, prompt_tokens=1000.0))
    assert float(found.tpot_s) == pytest.approx(float(token), rel=0.01)
    assert float(found.ttft_s) - asked.engine.prompt_overhead == pytest.approx(float(prompt), rel=0.2)


def test_clients_beyond_the_slots_queue() -> None:
    """With N slots and 2 N clients half of them wait: a whole stay in the engine is added to the first token."""
    asked = _server("vllm")
    kept, over = (
        closed_loop(asked, Deployment(), clients, 500, 200, budget=8192, slots=32, waves=10, spread=0.2)
        for clients in (32.0, 64.0)
    )
    stay = 32 / float(kept.requests_per_s)
    assert float(over.ttft_s - kept.ttft_s) == pytest.approx(stay, rel=1e-6)
    assert float(over.tpot_s) == pytest.approx(float(kept.tpot_s))


def test_prompts_first_wait_for_the_whole_wave() -> None:
    """Answers of one length end together where prompts go first: every wave waits as the first one does."""
    asked = _server("sglang")
    few, many = (
        closed_loop(asked, Deployment(), 64.0, 1000, 500, budget=8192, slots=512, waves=waves, spread=0.0)
        for waves in (1.0, 100.0)
    )
    assert float(few.ttft_s) == pytest.approx(float(many.ttft_s), rel=1e-6)


def test_a_full_queue_is_no_slower_than_a_loop_as_wide() -> None:
    asked = _server("trtllm")
    loop = closed_loop(asked, Deployment(), 128.0, 1000, 500, budget=8192, slots=128, waves=10, spread=0.2)
    queue = offline(asked, Deployment(), 1000, 500, budget=8192, slots=128)
    assert float(queue.requests_per_s) > 0.98 * float(loop.requests_per_s)


def test_tokens_of_pools_do_not_wait_for_prompts() -> None:
    asked = _server("trtllm")
    apart = pools(asked, (Deployment(), 2.0), (Deployment(), 2.0), 64.0, 4000, 200, budget=8192, slots=1024, waves=10.0)
    mixed = closed_loop(asked, Deployment(), 32.0, 4000, 200, budget=8192, slots=512, waves=10, spread=0.2)
    assert float(apart.tpot_s) < 0.8 * float(mixed.tpot_s)
    least = seconds(asked, Deployment(), Load(prompts=1.0, prompt_tokens=4000.0))
    assert float(apart.ttft_s) > float(least)


def test_a_step_with_more_room_shares_its_weights() -> None:
    asked = _server("vllm")
    cost = prompt_cost(asked, Deployment(), 32.0, 1000.0, 200.0, 8192.0)
    assert float(cost.queued_s) < float(cost.added_s)
    assert float(cost.together) == np.floor((8192 - 32) / 200)
