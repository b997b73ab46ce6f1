"""Energy of training steps and of served tokens: brute force over spaces, and limits that physics sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.catalogue import read_file
from hardware.yaml_source import Source, read_yaml
from perfmodel.power import node_power_w
from perfmodel.power.serving import instances_power_w
from perfmodel.power.training import least_energy_j, training_power
from perfmodel.serving.law import NO_SPECULATION
from perfmodel.training import predict_step
from solvers import kv, sequence
from solvers.scenario import load_train
from solvers.sequence_scenario import load_sequence
from solvers.serve import plan as plan_serve
from solvers.serve import predict as predict_serve
from solvers.serve_scenario import load_serve
from solvers.train import plan, predict
from solvers.train_search import evaluate
from solvers.train_space import space

TRAIN: dict[str, Any] = {
    "kind": "train",
    "cluster": "dgx-h100",
    "nodes": 2,
    "model": "llama-3.1-8b",
    "workload": {"seq_len": 8192, "global_batch": 64, "precision": "bf16"},
}
SERVE = """
kind: serve
cluster: dgx-h100
model: llama-3.1-8b
engine: vllm
workload: {arrivals: {process: poisson, rate_rps: 12}, lengths: {isl: 1000, osl: 200}}
slo: {ttft_p99: 2 s, tpot_p99: 60 ms}
search: {tp: [1, 2], max_num_seqs: [32, 64, 128], max_num_batched_tokens: [2048, 8192]}
"""


def train(**changes: Any) -> Any:
    return load_train(Source("asked.yaml", TRAIN | changes), Path())


def serve(**changes: str) -> Any:
    text = SERVE + "".join(f"{name}: {value}\n" for name, value in changes.items())
    return load_serve(read_yaml(text, "asked.yaml"), Path())


def test_a_step_has_power_and_energy() -> None:
    found = predict(train(plan={"tp": 2, "seq_parallel": True, "recompute": "full"})).prediction
    assert found is not None
    assert found["energy_j"] == pytest.approx(found["power_w"] * found["step_time_s"])
    assert found["power_w_p10"] < found["power_w"] <= found["power_w_p90"]
    assert found["energy_j_p10"] < found["energy_j"] < found["energy_j_p90"]
    # two nodes: no less than idle accelerators with a context, no more than their rating of 10.2 kW
    assert 2 * 8 * 122 < found["power_w"] <= 2 * 10_200
    assert 122 < found["accelerator_power_w"] <= 700


def test_steps_that_wait_draw_less() -> None:
    # a pipeline with a bubble of (8 - 1)/8 of the work against none: the same arithmetic in more time
    plans = [{"tp": 1, "pp": 1, "dp": 16}, {"tp": 1, "pp": 8, "dp": 2, "micro_batch": 4}]
    alone, waiting = (predict(train(plan=one)) for one in plans)
    told = [result.prediction or result.why_not[0]["nearest"]["prediction"] for result in (alone, waiting)]
    assert told[1]["hfu"] < told[0]["hfu"]
    assert told[1]["power_w"] < told[0]["power_w"]
    assert told[1]["energy_j"] > told[0]["energy_j"]


def test_the_least_energy_is_the_least_of_all_plans() -> None:
    asked = train(search={"tp": [1, 2, 8], "pp": [1, 2], "micro_batch": [1, 2]}, objective="energy_j")
    result = plan(asked)
    assert result.status == "optimal"
    energies = []
    assert asked.caps_w == pytest.approx([700, 595, 490, 385, 280])  # five from the limit to 0.4 of it
    for cap in asked.caps_w:
        job = asked.held_to(cap).job
        found = evaluate(job, space(job, asked.question.search))
        fits = np.flatnonzero(found.fits(job))
        for first in range(0, len(fits), 4096):
            some = found.plan.taken(fits[first : first + 4096])
            predicted = predict_step(job, some)
            energies.append(training_power(job, some, predicted).all_w * np.asarray(predicted.step.seconds))
        assert least_energy_j(job) < min(each.min() for each in energies)
    least = float(np.concatenate(energies).min())
    assert result.objective.value == pytest.approx(least, rel=1e-12)
    assert result.objective.unit == "J"


def test_energy_has_a_bound_where_the_search_stops() -> None:
    asked = train(objective="energy_j")
    result = plan(asked, time_limit_s=1e-9)
    assert result.status == "time_limit"
    assert result.best_bound is not None
    assert result.best_bound == pytest.approx(min(least_energy_j(asked.held_to(cap).job) for cap in asked.caps_w))


def test_a_deployment_has_power_and_energy() -> None:
    found = plan_serve(serve()).prediction
    assert found is not None
    made = found["requests_per_s"] * 200
    assert found["energy_per_token_j"] == pytest.approx(found["power_w"] / made)
    assert found["tokens_per_j"] * found["energy_per_token_j"] == pytest.approx(1)
    rating = 10_200 * found["gpus"] / 8
    assert 122 * found["gpus"] < found["power_w"] <= found["power_w_p90"] <= rating


@pytest.mark.slow
def test_the_least_energy_of_deployments_is_that_of_the_answer() -> None:
    result = plan_serve(serve(objective="energy_per_token_j"))
    assert result.plan is not None and result.prediction is not None
    assert result.objective.value == result.prediction["energy_per_token_j"]
    others = [one["prediction"]["energy_per_token_j"] for one in result.alternatives]
    assert others and all(one >= result.objective.value * (1 - 1e-9) for one in others)
    # brute force over what may be chosen, instance by instance
    for tp in (1, 2):
        for replicas in range(1, 8 // tp + 1):
            given = f"{{tp: {tp}, replicas: {replicas}, max_num_seqs: 64, max_num_batched_tokens: 8192}}"
            told = predict_serve(serve(plan=given))
            limits = {"ttft_p99_s": 2.0, "tpot_p99_s": 0.06}
            if told.prediction is None or any(told.prediction[name] > most for name, most in limits.items()):
                continue
            if told.prediction["load"] < 1:
                assert told.prediction["energy_per_token_j"] >= result.objective.value * (1 - 1e-9)


@pytest.mark.slow
def test_pairs_of_pools_are_not_ruled_out_that_take_less_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    from solvers import serve_pairs

    limits = "{tp: [1, 2], max_num_seqs: [16, 64], max_num_batched_tokens: [2048], disaggregated: [true]}"
    text = SERVE[: SERVE.index("search:")] + f"search: {limits}\nobjective: energy_per_token_j\n"
    asked = load_serve(read_yaml(text, "asked.yaml"), Path())
    monkeypatch.setattr(serve_pairs, "EXACT", 3)
    monkeypatch.setattr(serve_pairs, "ROUNDS", 10_000)
    few = plan_serve(asked)
    monkeypatch.setattr(serve_pairs, "EXACT", 100_000)  # all pairs in full
    every = plan_serve(asked)
    assert few.status == every.status == "optimal"
    assert few.objective.value == pytest.approx(every.objective.value, rel=1e-9)


def test_power_of_an_instance_by_little_s_law() -> None:
    asked = serve()
    server = asked.server("bf16", None)
    board_w, all_w = instances_power_w(
        server, asked.demand, NO_SPECULATION, accelerators=1, replicas=8, rate=1e-9, tpot_s=0.01
    )
    # nothing asked: a context on every accelerator, 121.7 W (Model Parking Tax, arXiv 2605.23918)
    assert float(board_w) == pytest.approx(121.7, rel=0.02)
    assert float(all_w) == pytest.approx(float(node_power_w(server.machine.node, 8 * board_w)))
    rates = np.linspace(1, 40, 20)
    watts, _ = instances_power_w(
        server, asked.demand, NO_SPECULATION, accelerators=1, replicas=8, rate=rates, tpot_s=0.01
    )
    assert np.all(np.diff(watts) > 0)


LENGTHS = {"distribution": "lognormal", "median": 4096, "sigma": 1.0, "max": 32768, "count": 64, "seed": 1}
SEQUENCE: dict[str, Any] = {
    "kind": "sequence",
    "cluster": "dgx-h100",
    "nodes": 1,
    "model": "llama-3.1-8b",
    "workload": {"lengths": LENGTHS},
}


def test_steps_of_unequal_sequences_have_power_and_energy() -> None:
    told = sequence.plan(load_sequence(Source("asked.yaml", SEQUENCE), Path()), time_limit_s=2).prediction
    assert told is not None
    assert told["energy_j"] == pytest.approx(told["power_w"] * told["step_time_s"])
    assert told["energy_j_p10"] < told["energy_j"] < told["energy_j_p90"]
    assert 122 < told["accelerator_power_w"] <= 700 and told["node_power_w"] == told["power_w"] <= 10_200


def test_equal_sequences_draw_what_training_on_them_does() -> None:
    # 64 sequences of 8,192 tokens on eight accelerators, one by one: the same arithmetic as data parallelism
    workload = {"lengths": LENGTHS | {"median": 8192, "sigma": 1e-9, "max": 8192}}
    layout = {"recompute": "full", "zero_stage": 1}
    equal = SEQUENCE | {"workload": workload, "layout": layout, "search": {"degrees": [1]}}
    told = sequence.plan(load_sequence(Source("asked.yaml", equal), Path()), time_limit_s=5).prediction
    given = {"dp": 8, "micro_batch": 1, "recompute": "full", "zero_stage": 1}
    same = predict(train(nodes=1, plan=given)).prediction
    assert told is not None and same is not None
    assert told["power_w"] == pytest.approx(same["power_w"], rel=0.05)
    assert told["energy_j"] == pytest.approx(same["energy_j"], rel=0.1)


def test_costs_of_one_s_own_have_no_power() -> None:
    costs = {"a1": 1e-12, "a2": 1e-6, "b1": 1e-3, "a3": 1e-9, "b2": 1e-4, "memory_per_token_bytes": 1e5,
             "memory_state_bytes": 1e9}  # fmt: skip
    told = sequence.plan(load_sequence(Source("asked.yaml", SEQUENCE | {"costs": costs}), Path()), time_limit_s=2)
    assert told.prediction is not None
    assert told.prediction["power_w"] is None and told.prediction["energy_j"] is None


def test_placements_over_tiers_have_power_and_energy() -> None:
    folder = Path(__file__).parent.parent / "examples"
    told = kv.plan(kv.load(read_file(folder / "kv-opt-175b-t4.yaml"), folder), time_limit_s=10).prediction
    assert told is not None
    assert told["energy_per_token_j"] == pytest.approx(told["power_w"] / told["tokens_per_s"])
    assert told["power_w_p10"] < told["power_w"] < told["power_w_p90"]
    # a T4 of 70 W that waits for drives most of the time, with the host, fans and conversion of its node
    assert 0.1 * 70 < told["power_w"] < 350
