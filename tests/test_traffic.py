"""Bytes between the ranks of a training plan: worked by hand, and against the seconds of the step's prediction."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from training_jobs import collectives, framework, job, plans

from hardware.topology import Level
from perfmodel.job import Job
from perfmodel.plan import Plan
from perfmodel.terms import Term, at
from perfmodel.traffic import (
    BACKWARD,
    CONTEXT,
    DATA,
    EXPERT,
    EXPERT_DATA,
    FORWARD,
    HEADS,
    TENSOR,
    Phase,
    Traffic,
    between_units,
    phase,
    training_traffic,
)
from perfmodel.training import predict_step


def named(traffic: Traffic) -> dict[str, Phase]:
    return {p.name: p for p in traffic.phases}


def pairs(one: Phase) -> dict[tuple[int, int], float]:
    return {
        (int(a), int(b)): float(size) for a, b, size in zip(one.sources, one.destinations, one.sent_bytes, strict=True)
    }


def leaving(one: Phase | None, ranks: int) -> np.ndarray:
    return np.zeros(ranks) if one is None else np.bincount(one.sources, weights=one.sent_bytes, minlength=ranks)


# --- by hand -------------------------------------------------------------------------------------------------------


def test_a_phase_adds_up_messages_and_drops_those_that_go_nowhere() -> None:
    found = phase("x", np.array([1, 0, 1, 2, 0]), np.array([0, 1, 0, 2, 2]), np.array([1.0, 2.0, 4.0, 8.0, 0.0]))
    assert pairs(found) == {(0, 1): 2.0, (1, 0): 5.0}
    assert found.dense(3).tolist() == [[0, 2, 0], [5, 0, 0], [0, 0, 0]]


def test_blocks_carry_what_their_ranks_send_outside() -> None:
    ring = phase("x", np.arange(6), np.roll(np.arange(6), -1), np.arange(1.0, 7.0))
    inside = phase("y", np.array([0, 4]), np.array([1, 5]), np.array([1.0, 1.0]))
    found = between_units(Traffic(6, (ring, inside)), 2)
    assert found.ranks == 3
    assert [p.name for p in found.phases] == ["x"]
    assert pairs(found.phases[0]) == {(0, 1): 2.0, (1, 2): 4.0, (2, 0): 6.0}


def test_data_parallel_rings_of_eight_ranks() -> None:
    # 64 ranks, tp 8: eight rings of eight ranks, eight apart. Every rank holds 1/8 of the matrices and all norms;
    # gradients are 4 bytes: an edge carries 2 x 7/8 x 4 bytes x parameters of a rank.
    found_job = job("llama-3.1-8b")
    traffic = training_traffic(found_job, plans({"tp": 8, "dp": 8}))
    one = named(traffic)[DATA]
    assert set(pairs(one)) == {(r, (r + 8) % 64) for r in range(64)}
    # Llama 3.1 8B by its config.json: hidden 4096, 32 layers of width 14336, 32 heads, 8 of keys, 128256 words
    matrices = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336) + 2 * 128256 * 4096
    held = matrices / 8 + 32 * 2 * 4096 + 4096
    assert one.sent_bytes == pytest.approx(np.full(64, 2 * 7 / 8 * 4 * held), rel=1e-12)
    # between nodes of eight, the eight rings add up on eight edges
    nodes = between_units(traffic, 8)
    assert nodes.ranks == 8
    assert [p.name for p in nodes.phases] == [DATA]
    assert nodes.phases[0].sent_bytes == pytest.approx(np.full(8, 2 * 7 * 4 * held), rel=1e-12)


def test_stages_send_activations_on_and_gradients_back() -> None:
    # pp 4 on 8 ranks, dp 2, 256 sequences of 2048: 128 micro-batches a pipeline of one sequence, 2 bytes x 4096 a token
    one = named(training_traffic(job("llama-3.1-8b", ranks=8), plans({"pp": 4, "dp": 2})))
    message = 128 * 2 * 2048 * 4096
    there = {(s * 2 + d, s * 2 + d + 2): pytest.approx(message) for s in range(3) for d in range(2)}
    assert pairs(one[FORWARD]) == there
    assert pairs(one[BACKWARD]) == {(b, a): size for (a, b), size in there.items()}


def test_interleaved_stages_come_round() -> None:
    one = named(training_traffic(job("llama-3.1-8b", ranks=8), plans({"pp": 4, "dp": 2, "vpp": 2})))
    message = 128 * 2 * 2048 * 4096
    assert pairs(one[FORWARD])[0, 2] == pytest.approx(2 * message)
    assert pairs(one[FORWARD])[6, 0] == pytest.approx(message)  # one chunk fewer: the last one ends in the loss


def test_data_parallel_ranks_can_be_neighbours() -> None:
    one = named(training_traffic(job("llama-3.1-8b"), plans({"tp": 8, "dp": 8, "rank_order": "dp-tp-cp-pp"})))
    assert (0, 1) in pairs(one[DATA]) and (7, 0) in pairs(one[DATA])
    assert (0, 8) in pairs(one[TENSOR]) and (56, 0) in pairs(one[TENSOR])


def test_experts_visit_a_node_once() -> None:
    # Mixtral: 2 of 8 experts, ep 8 over two nodes of four ranks: of two draws, 2 (1 - 1/2^2) = 3/2 nodes are visited,
    # so that 3/4 of the copies cross where each crossed once for every expert before; and 8 (1 - 7^2/8^2) = 15/8 ranks,
    # so that 15/16 of the copies go between ranks of a node.
    whole = job("mixtral-8x7b", ranks=8, runs=framework(expert_dispatch="per-expert"))
    levels = (Level("node", 4, 1.0, 0.0, "nvswitch"), Level("leaf", 8, 1.0, 0.0, "infiniband"))
    once = replace(whole, levels=levels, framework=framework())
    plan = plans({"dp": 8, "ep": 8})
    every, reduced = (pairs(named(training_traffic(found, plan))[EXPERT]) for found in (whole, once))
    assert len(every) == 56
    for pair, size in every.items():
        crosses = pair[0] // 4 != pair[1] // 4
        assert reduced[pair] == pytest.approx(size * (0.75 if crosses else 0.9375))


# --- against the prediction of the step ----------------------------------------------------------------------------


def counting(found: Job) -> Job:
    """The job on one switch of a byte per second without latency, where seconds of communication are bytes."""
    return replace(found, levels=(Level("all", found.ranks, 1.0, 0.0, "infiniband"),), collectives=collectives())


def seconds(term: Term, name: str) -> float:
    """Time of all terms of a name, hidden or not."""
    own = float(np.asarray(term.seconds + term.hidden_seconds).reshape(-1)[0]) if term.name == name else 0.0
    return own + sum(seconds(child, name) for child in term.children)


MODELS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {},
    "mixtral-8x7b": {"seq_parallel": True},
    "deepseek-v3": {"seq_parallel": True},
}

SHAPES = [
    {"tp": 2, "pp": 4, "dp": 4, "cp": 2},
    {"tp": 4, "pp": 2, "dp": 8, "vpp": 2},
    {"tp": 8, "dp": 8, "ep": 8, "micro_batch": 2},
    {"tp": 2, "dp": 16, "cp": 2, "cp_style": "ulysses", "ep": 4},
    {"tp": 2, "dp": 4, "cp": 8, "cp_style": "hybrid"},
    {"tp": 2, "dp": 8, "cp": 4, "cp_style": "all-gather"},
    {"tp": 2, "pp": 8, "dp": 4, "rank_order": "dp-tp-cp-pp", "ep": 2},
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bytes_are_the_seconds_of_a_step_at_a_byte_per_second(model: str, zero_stage: int) -> None:
    found = counting(job(model))
    experts = max(layer.feed_forward.experts for layer in found.architecture.layers)
    for shape, recompute in itertools.product(SHAPES, ("none", "full")):
        row = {**shape, **MODELS[model], "zero_stage": zero_stage, "recompute": recompute}
        if not experts:
            row.pop("ep", None)
        plan = plans(row)
        _same_bytes(found, plan, row)


def _same_bytes(found: Job, plan: Plan, row: dict[str, Any]) -> None:
    traffic = named(training_traffic(found, plan))
    step = at(predict_step(found, plan).step, 0)
    sent = {name: leaving(traffic.get(name), found.ranks) for name in (TENSOR, CONTEXT, EXPERT)}
    sent[CONTEXT] += leaving(traffic.get(HEADS), found.ranks)
    # the prediction follows the stage that takes longest, here the one that sends most
    busiest = int(np.argmax(sum(sent.values())))
    for name, term in (
        (TENSOR, "tensor-parallel communication"),
        (CONTEXT, "context-parallel communication"),
        (EXPERT, "expert all-to-all"),
    ):
        assert sent[name][busiest] == pytest.approx(seconds(step, term), rel=1e-9), (name, row)
    pp, vpp = row.get("pp", 1), row.get("vpp", 1)
    if pp > 1:
        both = traffic[FORWARD].sent_bytes.max() + traffic[BACKWARD].sent_bytes.max()
        # a step also waits while the first micro-batch comes through and the last one returns
        count = float(plan.micro_batches(found.global_batch)[0])
        filled = 1 + (pp - 1) / (vpp * count)
        assert both * filled == pytest.approx(seconds(step, "pipeline sends"), rel=1e-9), row
    synchronised = sum(leaving(traffic.get(name), found.ranks).max() for name in (DATA, EXPERT_DATA))
    said = seconds(step, "gradient traffic") + seconds(step, "weight traffic")
    assert synchronised == pytest.approx(said, rel=1e-9), row
