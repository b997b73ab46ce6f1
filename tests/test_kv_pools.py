"""Pools of nodes for prompts and answers, and sequences that make room."""

from pathlib import Path

import numpy as np
import pytest

from hardware.yaml_source import read_yaml
from solvers.kv import plan
from solvers.kv_scenario import load_kv

TEXT = """
kind: kv
cluster: dgx-h100
nodes: 4
model: llama-3.1-70b
engine: vllm
workload: {arrivals: {rate_rps: 5}, lengths: {isl: 8000, osl: 200}}
search: {tiers: [hbm, ddr], gpu_batch: [32, 64], num_batches: [1], precision_weights: [bf16], precision_kv: [bf16]}
objective: tpot_mean_s
"""


@pytest.fixture(scope="module")
def said():
    return plan(load_kv(read_yaml(TEXT, "x.yaml"), Path())).prediction


def test_tokens_without_prompts_between_come_faster(said):
    pools = said["pools"]
    assert pools["choice"] == "apart"
    assert [one["prefill_nodes"] + one["decode_nodes"] for one in pools["splits"]] == [4] * len(pools["splits"])
    for one in pools["splits"]:
        assert one["tpot_mean_s"] < said["tpot_mean_s"]
    # one node for prompts cannot compute 5 of 0.38 s each second
    assert min(one["prefill_nodes"] for one in pools["splits"]) == 2


def test_transfer_is_that_of_the_adapters(said):
    """8,000 tokens of 327,680 bytes over eight adapters of 400 Gbit/s; of 80 layers the last is not hidden."""
    one = said["pools"]["splits"][0]
    sent_s = 0.381e-3 + 8000 * 327_680 / (0.729 * 8 * 50e9)
    assert one["transfer_s"] == pytest.approx(sent_s)
    assert one["exposed_transfer_s"] == pytest.approx(sent_s / 80)


def test_queues_of_a_pool(said):
    """Prompts of a pool of two at 2.5 a second: Pollaczek and Khinchine with its own time of a prompt."""
    two, three = said["pools"]["splits"][:2]
    ttft = [one["ttft_mean_s"] for one in (two, three)]
    prompts = np.linspace(0.3, 0.399, 10_000)
    for rate, given in ((2.5, ttft[0]), (5 / 3, ttft[1])):
        times = prompts + rate * prompts**2 / (2 * (1 - rate * prompts))
        found = float(np.interp(given, times, prompts))
        assert found == pytest.approx(0.38, rel=0.05)


def test_a_sequence_that_makes_room(said):
    """Its 2.65 GB cross a link of 252 GB/s twice; pages of 16 tokens start 507 copies a layer."""
    room = said["preemption"]
    assert room["tokens"] == 8100
    (ddr,) = room["tiers"]
    assert ddr["merged_s"] == pytest.approx(2 * 8100 * 327_680 / 252.06e9, rel=0.05)
    start_s = (ddr["pages_s"] - ddr["merged_s"]) / (2 * 80 * 506)
    assert 0.5e-6 < start_s < 10e-6
    assert room["choice"] == "swap to ddr"
    assert room["recompute_s"] > ddr["pages_s"]
