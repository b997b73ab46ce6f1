"""How a step is arranged: prompts by layers, halves side by side, phases side by side; and the hardware's best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.catalogue import resolve_cluster
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from perfmodel.architecture import bundled_architecture
from perfmodel.batching import open_loop
from perfmodel.serving.engine import engines
from perfmodel.serving.latency import pool, requests
from perfmodel.serving.law import NO_SPECULATION, Demand, mixed_load, prompt_load
from perfmodel.serving.overlap import Spent, overlapped
from perfmodel.serving.server import Server, server
from perfmodel.serving.split import beside, contention, lengthened, memory_share, phase_server, step_budget
from perfmodel.serving.step import PARTS, Deployment, Load, by_layers, step
from solvers.result import Result
from solvers.serve import plan, predict
from solvers.serve_answer import optimal_tokens_per_s
from solvers.serve_scenario import load_serve

ROOT = Path(__file__).parent.parent


def _server(model: str = "llama-3.1-70b", node: str = "dgx-h100", **precisions: str) -> Server:
    return server(bundled_architecture(model), resolve_cluster(node, Path(), 1), engines()["vllm"], **precisions)


def _seconds(asked: Server, spread: Deployment, load: Load) -> float:
    return float(step(asked, spread, load).seconds)


def _kernels(asked: Server, spread: Deployment, load: Load) -> dict[str, float]:
    return {child.name: float(child.seconds) for child in step(asked, spread, load).children if child.name in PARTS}


# --- prompts by layers ---------------------------------------------------------------------------------------------


def test_a_piece_of_a_prompt_is_a_whole_one_in_some_layers() -> None:
    """A quarter of 4,096 computed tokens after 1,024 cached ones: all of them, in a quarter of the layers."""
    demand = Demand(5120.0, 100.0, prefix_hit=0.2)
    load, share = by_layers(prompt_load(demand, 1024.0))
    assert float(share) == 0.25
    assert (float(load.prompts), float(load.prompt_tokens)) == (1.0, 4096.0)
    assert float(load.prompt_cached) == pytest.approx(1024.0)


def test_layers_without_prompts_hold_the_running_sequences() -> None:
    """Of alike layers a quarter takes the prompt beside the sequences, three quarters the sequences alone."""
    asked, spread = _server("qwen3-30b-a3b"), Deployment(tp=2)
    demand = Demand(4096.0, 200.0)
    quarter = mixed_load(demand, NO_SPECULATION, 32.0, 1024.0)
    found = _kernels(replace(asked, layered=True), spread, quarter)
    whole = _kernels(asked, spread, mixed_load(demand, NO_SPECULATION, 32.0, 4096.0))
    alone = _kernels(asked, spread, mixed_load(demand, NO_SPECULATION, 32.0, 0.0))
    for part in PARTS[:-1]:
        assert found[part] == pytest.approx(0.25 * whole[part] + 0.75 * alone[part]), part


def test_experts_are_read_once_a_prompt() -> None:
    """8,192 tokens of Qwen3-30B-A3B in pieces of 512: each piece hits all 128 experts (8 a token) of 48 layers.

    Their weights, 3 x 2048 x 768 x 2 bytes each, are read 16 times, or once by layers: 15 readings of 58.0 GB over
    3.35 TB/s are 259.7 ms on one accelerator. Kernels reach less than the bandwidth, and hide some of it.
    """
    asked, demand = _server("qwen3-30b-a3b"), Demand(8192.0, 100.0)
    spread = Deployment(tp=1)
    weights = 48 * 128 * 3 * 2048 * 768 * 2
    assert weights == pytest.approx(58.0e9, rel=1e-3)
    saved = 15 * weights / 3.35e12
    piece = prompt_load(demand, 512.0)
    pieces = 16 * _kernels(asked, spread, piece)["experts"]
    layers = 16 * _kernels(replace(asked, layered=True), spread, piece)["experts"]
    assert layers == pytest.approx(_kernels(asked, spread, prompt_load(demand, 8192.0))["experts"])
    assert 0.5 * saved < pieces - layers < 1.5 * saved


def test_groups_of_layers_do_not_change_dense_work() -> None:
    """A prompt alone takes the same kernels, however many groups; attention of pieces does not re-read the others."""
    asked, demand = replace(_server(), layered=True), Demand(8192.0, 100.0)
    spread = Deployment(tp=4)
    times = [n * _kernels(asked, spread, prompt_load(demand, 8192.0 / n))["projections"] for n in (1, 4, 16)]
    assert times == pytest.approx([times[0]] * 3)


def test_a_step_takes_a_layer_at_least() -> None:
    """Of 48 layers a step cannot take 512/48,000 of one: the budget is one layer's, 1,000 tokens."""
    asked, demand = _server("qwen3-30b-a3b"), Demand(48_000.0, 100.0)
    assert step_budget(replace(asked, layered=True), demand, 512) == 1000.0
    assert step_budget(replace(asked, layered=True), demand, 2048) == 2048
    assert step_budget(asked, demand, 512) == 512


# --- halves side by side -------------------------------------------------------------------------------------------

HALVES = Spent({"a": 50.0, "b": 30.0}, {"a": 0.0, "b": 20.0}, {"x": 30.0})


@pytest.mark.parametrize(
    ("kind", "link", "whole", "shown", "hidden"),
    [
        # kernels 100, collectives 30 of which the last of 4 x 10 is waited for: 100.75
        ("communication", 30.0, 130.0, {"a": 50.0, "b": 50.0, "x": 0.75}, {"a": 0.0, "b": 0.0, "x": 29.25}),
        # collectives 150: 50 are left, and the last
        ("communication", 150.0, 230.0, {"a": 50.0, "b": 50.0, "x": 53.75}, {"a": 0.0, "b": 0.0, "x": 96.25}),
        # arithmetic 80 is the longest of 80, 20, 30
        ("operators", 30.0, 130.0, {"a": 50.0, "b": 30.0, "x": 0.0}, {"a": 0.0, "b": 20.0, "x": 30.0}),
        # links are
        ("operators", 90.0, 130.0, {"a": 0.0, "b": 0.0, "x": 90.0}, {"a": 50.0, "b": 50.0, "x": 0.0}),
        # in one it takes 75: not split
        ("operators", 30.0, 75.0, {"a": 40.0, "b": 20.0, "x": 15.0}, {"a": 0.0, "b": 0.0, "x": 0.0}),
    ],
)
def test_halves_by_hand(
    kind: Any, link: float, whole: float, shown: dict[str, float], hidden: dict[str, float]
) -> None:
    alone = Spent({"a": 40.0, "b": 20.0}, {"a": 0.0, "b": 0.0}, {"x": whole - 60.0})
    found, behind = overlapped(kind, alone, replace(HALVES, link={"x": link}), depth=10)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(shown)
    assert {name: float(value) for name, value in behind.items()} == pytest.approx(hidden)


def test_faster_kernels_hide_less() -> None:
    """At twice the speed kernels of 100 take 50, which hide 50 of 60: 10 are left, and the last of 40 collectives."""
    alone = Spent({"a": 100.0}, {"a": 0.0}, {"x": 60.0})
    found, _ = overlapped("communication", alone, replace(alone), depth=10, speed=2.0)
    assert float(found["x"]) == pytest.approx(10.0 + 60.0 / 40)


def test_halves_of_a_prompt_attend_to_as_much() -> None:
    """Pairs of tokens: a first half sees s/2 (s/2)/2, a second s/2 (s/2 + (s/2)/2): together s s/2."""
    asked, spread = replace(_server(), overlap="communication"), Deployment(tp=8)
    load = Load(prompts=1.0, prompt_tokens=65536.0)
    halves = _kernels(asked, spread, load)["attention of prompts"]
    assert halves == pytest.approx(_kernels(_server(), spread, load)["attention of prompts"], rel=0.1)


def test_few_tokens_are_not_split() -> None:
    """A step that reads weights for a few sequences would read them twice."""
    spread, load = Deployment(tp=8), Load(8.0, 1000.0)
    assert _seconds(replace(_server(), overlap="operators"), spread, load) == _seconds(_server(), spread, load)


@pytest.mark.parametrize("overlap", ["communication", "operators"])
def test_a_split_never_beats_its_longest_part(overlap: Any) -> None:
    """Twice the kernels of half of the tokens bound a step from below where arithmetic is all that is left."""
    asked, spread = _server(), Deployment(tp=8)
    load = Load(256.0, 1000.0, 1.0, 4096.0)
    split = step(replace(asked, overlap=overlap), spread, load)
    half = _kernels(asked, spread, Load(128.0, 1000.0, 1.0, 2048.0, 1024.0))
    assert float(split.seconds) >= 2 * half["projections"]
    assert float(split.seconds) < _seconds(asked, spread, load)
    assert sum(float(child.seconds) for child in split.children) == pytest.approx(float(split.seconds))


# --- the hardware's best -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "node", "tokens"),
    [
        ("llama-3.1-8b", "dgx-a100", 312e12 / (2 * 8.03e9)),
        ("qwen3-32b", "dgx-h100", 989e12 / (2 * 32.8e9)),
        ("llama-3.1-70b", "dgx-h100", 989e12 / (2 * 70.6e9)),
        ("deepseek-v3-without-mtp", "dgx-h100", 989e12 / (2 * 37e9)),
    ],
)
def test_optimal_throughput_of_nanoflow(model: str, node: str, tokens: float) -> None:
    """F/(2 P): 19,427, 15,076 and 7,004 tokens per second and accelerator; of a mixture its 37e9 active parameters."""
    assert optimal_tokens_per_s(_server(model, node)) == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize("overlap", ["none", "operators"])
def test_no_step_beats_the_optimum(overlap: Any) -> None:
    asked = replace(_server("llama-2-70b", "dgx-a100"), overlap=overlap)
    n = np.geomspace(1.0, 8192.0, 30)
    seconds = step(asked, Deployment(tp=8), Load(n / 3, 1280.0, 1.0, 2 * n / 3)).seconds
    assert np.all(n / seconds / 8 < optimal_tokens_per_s(asked))


# --- phases side by side -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "share", "prompts", "tokens"),
    [
        ((0.25, 0.8), 0.5, 1.2, 1.2),
        ((0.25, 0.8), 0.2, 1.8, 1.05),
        ((0.0, 1.0), 0.5, 1.0, 1.0),
        ((1, 1), 0.25, 4, 4 / 3),
    ],
)
def test_contention_by_hand(memory: tuple[float, float], share: float, prompts: float, tokens: float) -> None:
    """Two phases that only wait for memory have it by their shares: 1/x and 1/(1 - x)."""
    assert contention(*memory, share) == pytest.approx((prompts, tokens))


def test_what_waits_for_memory() -> None:
    asked, spread, demand = _server("llama-3.1-8b"), Deployment(tp=1), Demand(4000.0, 200.0)
    tokens = memory_share(asked, spread, demand, NO_SPECULATION, Load(32.0, 4000.0))
    prompts = memory_share(asked, spread, demand, NO_SPECULATION, Load(prompts=1.0, prompt_tokens=8192.0))
    assert 0.6 < float(tokens) <= 1.0
    assert 0.0 <= float(prompts) < 0.35


def test_units_set_prompts_and_hardly_tokens() -> None:
    """A quarter of 132 units computes a quarter as fast; three quarters read the cache nearly as fast as all."""
    asked, spread = _server("llama-3.1-8b"), Deployment(tp=1)
    first, after = (phase_server(asked, 0.25, phase) for phase in ("prompts", "tokens"))
    assert (first.device.units, after.device.units) == (33, 99)
    assert first.device.peak["bf16"] == pytest.approx(asked.device.peak["bf16"] / 4)
    long, few = Load(prompts=1.0, prompt_tokens=16384.0), Load(32.0, 4000.0)
    work = [_kernels(one, spread, long)["projections"] for one in (first, asked)]
    assert work[0] / work[1] == pytest.approx(4.0, rel=0.05)
    assert 1.0 <= _seconds(after, spread, few) / _seconds(asked, spread, few) < 1.1


def test_phases_side_by_side_meet_only_in_memory() -> None:
    """Each phase is a queue of its own, of steps that are longer by a factor; the first token ends the prompt."""
    asked, demand, spread = _server("llama-3.1-8b"), Demand(1000.0, 200.0), Deployment(tp=1)
    first = lengthened(pool(asked, spread, demand, max_batch=64, token_budget=8192, phase="prompts"), np.asarray(1.25))
    after = lengthened(pool(asked, spread, demand, max_batch=64, token_budget=8192, phase="tokens"), np.asarray(1.5))
    seen = beside(asked, first, after, demand, NO_SPECULATION, 4.0, 2)
    prompt_s = 1.25 * _seconds(asked, spread, prompt_load(demand, 1000.0))
    token_s = 1.5 * _seconds(asked, spread, mixed_load(demand, NO_SPECULATION, 1.0, 0.0))
    rho = 2.0 * prompt_s
    waits_s = prompt_s * rho / (2 * (1 - rho))  # M/D/1 of one instance's 2 requests a second
    engine = asked.engine
    received_s = engine.prompt_overhead + engine.request_overhead + engine.intake_steps / 2 * token_s
    assert float(seen.of("ttft_mean")) == pytest.approx(received_s + prompt_s + waits_s, rel=0.2)
    alone = open_loop(after.law, requests(demand, NO_SPECULATION), after.limits, 2.0)
    assert float(seen.of("tpot_mean")) == pytest.approx(float(alone.tpot_s))
    assert float(seen.of("tpot_mean")) > token_s


def test_a_pool_of_prompts_in_pieces_sustains_what_its_pieces_take() -> None:
    """Pieces of 512 of 4,096 tokens: the capacity is one prompt in the time of eight pieces."""
    asked, demand = _server("llama-3.1-8b"), Demand(4096.0, 1.0)
    one = pool(asked, Deployment(tp=1), demand, max_batch=8, token_budget=512, phase="prompts")
    whole = replace(requests(demand, NO_SPECULATION), output_tokens=1.0)
    found = open_loop(one.law, whole, one.limits, 0.1)
    pieces = [one.law.seconds(0.0, 512.0, 0.0, 512.0 * (512.0 * number + 256.0)) for number in range(8)]
    assert float(found.capacity_requests_per_s) == pytest.approx(1 / float(sum(pieces)))


# --- scenarios -----------------------------------------------------------------------------------------------------

ASKED = """
kind: serve
cluster: dgx-h100
model: qwen3-30b-a3b
workload:
  arrivals: {process: poisson, rate_rps: 6}
  lengths: {isl: 4000, osl: 200}
slo: {ttft_p99: 3 s, tpot_p99: 60 ms}
search: {tp: [2], max_num_seqs: [128], max_num_batched_tokens: [1024], replicas: [1, 2, 3]}
plan: {tp: 2, replicas: 2, max_num_seqs: 128, max_num_batched_tokens: 1024}
"""


def _asked(plan_: dict[str, Any] | None = None, **search: Any) -> Any:
    source = read_yaml(ASKED, "asked.yaml")
    source.data["plan"].update(plan_ or {})
    source.data["search"].update(search)
    return load_serve(source, ROOT)


def _value(result: Result, name: str) -> float:
    assert result.prediction is not None
    return float(result.prediction[name])


CHANGES: list[dict[str, Any]] = [{"layered_prefill": True}, {"overlap": "communication"}, {"prefill_share": 0.5}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_what_is_planned_is_predicted(change: dict[str, Any]) -> None:
    """Search and prediction are the same equations, and a plan says how its steps are arranged."""
    found = plan(_asked(disaggregated=[False], **{name: [value] for name, value in change.items()}))
    assert found.plan is not None and found.plan | change == found.plan
    again = predict(_asked(found.plan))
    for name in ("ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "e2e_mean_s", "requests_per_s"):
        assert _value(again, name) == pytest.approx(_value(found, name), rel=1e-9)


def test_a_search_takes_what_is_better() -> None:
    """Layered prefill of a mixture of experts is never slower than pieces; the default stays what engines do."""
    plain, free = plan(_asked()), plan(_asked(layered_prefill=[False, True], overlap=["none", "communication"]))
    assert plain.plan is not None and free.plan is not None
    assert plain.plan["layered_prefill"] is False and plain.plan["overlap"] == "none"
    assert free.candidates > plain.candidates
    key = "goodput_requests_per_s_per_gpu"
    assert _value(free, key) >= _value(plain, key)


@pytest.mark.parametrize("change", [{"layered_prefill": True}, {"prefill_share": 0.5}], ids=["layers", "side by side"])
def test_the_simulation_says_the_same(change: dict[str, Any]) -> None:
    """Of one instance: a simulation of pools gives requests to the least loaded, the equations to any."""
    source = read_yaml(ASKED, "asked.yaml")
    source.data["plan"] |= change | {"replicas": 1}
    source.data["workload"]["arrivals"]["rate_rps"] = 3
    result = predict(load_serve(source, ROOT), simulate=True)
    assert result.prediction is not None
    beside_ = result.prediction["equations"]
    for name, tolerance in (("tpot_mean_s", 0.06), ("ttft_mean_s", 0.15), ("e2e_mean_s", 0.08)):
        assert beside_[name] == pytest.approx(_value(result, name), rel=tolerance), name


@pytest.mark.parametrize(
    ("plan_", "search", "said"),
    [
        ({"layered_prefill": True, "prefill_share": 0.5}, {}, "only one of"),
        ({"prefill_share": 1.0}, {}, "plan.prefill_share"),
        ({"overlap": "comunication"}, {}, "plan.overlap"),
        ({}, {"disaggregated": [True], "layered_prefill": [True]}, "no plan is left"),
        ({}, {"mixed": True, "overlap": ["communication"]}, "leave it out"),
    ],
)
def test_what_cannot_go_together_is_said(plan_: dict[str, Any], search: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        _asked(plan_, **search)
    assert said in str(error.value) and "asked.yaml:" in str(error.value)
