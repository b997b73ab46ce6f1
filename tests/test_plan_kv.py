"""Where weights, keys and values, and activations go: published runs, an independent checker, brute force, faults."""

import csv
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from perfmodel.offload import memory_rows
from perfmodel.offload_kernels import kernels_of
from solvers.kv import plan, predict
from solvers.kv_place import Block, place
from solvers.kv_scenario import load_kv
from solvers.kv_serve import given_block

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kv_power"
EXAMPLE = Path(__file__).parent.parent / "examples" / "kv-opt-175b-t4.yaml"
SMALL = """
kind: kv
cluster: t4-workstation
model: opt-30b
workload: {lengths: {isl: 512, osl: 32}}
search: {gpu_batch: [16, 48], num_batches: [1, 3]}
"""


def asked(text):
    return load_kv(read_yaml(text, "x.yaml"), Path())


def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_published_runs_on_t4():
    """FlexGen, arXiv 2303.06865, tables 2, 14, 16: nine fp16 runs with their policies, each within 25 %, mean 15 %."""
    if not DATA.is_dir():
        pytest.skip(f"measured data not found at {DATA}")
    errors = []
    with (DATA / "flexgen_published.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["system"], row["metric"], row["num_gpus"]) != ("flexgen", "generation_throughput", "1"):
                continue
            placement = {}
            for short, thing in (("w", "weights"), ("kv", "kv"), ("act", "activations")):
                gpu, cpu = (float(row[f"{short}_{where}"]) / 100 for where in ("gpu", "cpu"))
                placement[thing] = {"hbm": gpu, "ddr": cpu, "nvme": 1 - gpu - cpu}
            given = {"gpu_batch": int(row["gpu_batch"]), "num_batches": int(row["num_batches"]), "placement": placement}
            question = asked(
                f"kind: kv\ncluster: t4-workstation\nmodel: {row['model']}\n"
                f"workload: {{lengths: {{isl: {row['prompt_len']}, osl: {row['gen_len']}}}}}\n"
                f"plan: {json.dumps(given)}\n"
            )
            answer = predict(question)
            assert answer.status == "feasible", row
            errors.append(answer.prediction["tokens_per_s"] / float(row["tokens_per_s"]) - 1)
    assert len(errors) == 9
    assert max(map(abs, errors)) <= 0.25
    assert np.mean(np.abs(errors)) <= 0.15


def check(answer, hidden=12288, layers=96, kv=4_718_592, vocab=50_272, positions=2_050):
    """Count a plan's bytes afresh, for OPT in 16 bits on the T4 machine, and hold them against sizes and rates."""
    found, said = answer["plan"], answer["prediction"]
    at = {
        thing: {tier: shares.get(tier, 0.0) for tier in ("hbm", "ddr", "nvme")}
        for thing, shares in found["placement"].items()
    }
    for shares in at.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    weights = 2 * (12 * hidden**2 * layers + (vocab + positions) * hidden)
    n = found["gpu_batch"] * found["num_batches"]
    isl, osl = 512, 32
    for tier, size in (("hbm", 16e9), ("ddr", 208e9), ("nvme", 1.5e12)):
        held = at["weights"][tier] * weights + at["kv"][tier] * kv * n * (isl + osl)
        held += at["activations"][tier] * 2 * hidden * n * isl
        assert held <= size * (1 + 1e-4), tier
    token_s = said["tpot_mean_s"]
    from_disk = at["weights"]["nvme"] * weights + at["kv"]["nvme"] * kv * n * (isl + osl / 2)
    from_disk += at["activations"]["nvme"] * 2 * hidden * n * layers
    assert from_disk / 2e9 <= token_s * (1 + 1e-3)
    over_link = (at["weights"]["ddr"] + at["weights"]["nvme"]) * weights
    assert over_link / 15.754e9 <= token_s * (1 + 1e-3)
    there = sum(at["kv"][tier] * found["attention_there"].get(tier, 0.0) for tier in ("ddr", "nvme"))
    assert there * kv * n * (isl + osl / 2) / 12.3e9 <= token_s * (1 + 1e-3)  # as many FLOP as bytes
    assert said["ttft_mean_s"] >= 2 * n * isl * 12 * hidden**2 * layers / 65e12
    block_s = said["ttft_mean_s"] + (osl - 1) * token_s
    assert said["tokens_per_s"] == pytest.approx(n * osl / block_s, rel=1e-9)


def test_example(tmp_path):
    saved = tmp_path / "plan.json"
    run("plan", "kv", str(EXAMPLE), "--format", "json", "-o", str(saved))
    answer = json.loads(saved.read_text())
    assert answer["status"] == "optimal"
    check(answer)
    for other in answer["alternatives"]:
        check(other)
    assert answer["baseline"]["gain"] > 1
    assert {entry["constraint"] for entry in answer["binding"]} >= {"capacity[hbm]", "capacity[ddr]", "rate[nvme read]"}
    bought = answer["prediction"]["purchases"]
    assert [one["tier"] for one in bought] == ["ddr", "nvme"]
    assert bought[0]["gain"] >= bought[1]["gain"] > 0
    again = json.loads(run("predict", "kv", str(saved), "--format", "json"))
    assert again["prediction"]["tokens_per_s"] == pytest.approx(answer["prediction"]["tokens_per_s"], rel=1e-6)
    assert "Shares by tier" in run("predict", "kv", str(saved))
    assert "tokens_per_s" in run("predict", "kv", str(saved), "--format", "csv").splitlines()[0]


def test_what_a_purchase_is_said_to_bring_it_brings():
    few = ("--set", "search.gpu_batch=[32, 64]", "--set", "search.num_batches=[8]", "--format", "json")
    answer = json.loads(run("plan", "kv", str(EXAMPLE), *few))
    for one in answer["prediction"]["purchases"]:
        more = json.loads(run("plan", "kv", str(EXAMPLE), *few, "--set", f"cluster.node.tiers.{one['tier']}.count=2"))
        assert more["prediction"]["tokens_per_s"] == pytest.approx(one["tokens_per_s"], rel=1e-6)


def test_no_placement_of_a_grid_is_better():
    """All placements in quarters of a block, with attention in either place."""
    question = asked(SMALL)
    offload = question.offload(16, 3, "fp16", "fp16")
    kernels = kernels_of(offload, (16,))[16]
    best = place(offload, kernels)
    assert best is not None
    quarters = [(a / 4, b / 4, 1 - (a + b) / 4) for a, b in itertools.product(range(5), repeat=2) if a + b <= 4]
    tried = 0
    for weights, kv, activations, way in itertools.product(quarters, quarters, quarters, ("stream", "there")):
        shares = {}
        for tier, *parts in zip(("hbm", "ddr", "nvme"), weights, kv, activations, strict=True):
            shares["weights", tier, ""], shares["activations", tier, ""] = parts[0], parts[2]
            shares["kv", tier, "" if tier == "hbm" else way] = parts[1]
        block = Block(offload, shares, kernels)
        if all(used <= room for room, used in block.memory_bytes.values()):
            tried += 1
            assert block.time_s >= best.time_s * (1 - 1e-6)
    assert tried > 100


def test_shadow_prices_are_differences():
    """One GiB more of host memory for a fixed block, twice."""
    text = EXAMPLE.read_text() + "\n"
    question = load_kv(read_yaml(text, "x.yaml"), EXAMPLE.parent)
    offload = question.offload(32, 8, "fp16", "fp16")
    kernels = kernels_of(offload, (32,))[32]
    found = place(offload, kernels)
    tier = next(tier for tier in question.machine.node.tiers if tier.name == "ddr")
    assert found is not None
    paths = tuple(
        replace(path, capacity_bytes=path.capacity_bytes + 2**30) if path.name == tier.name else path
        for path in offload.paths
    )
    more = place(replace(offload, paths=paths), kernels)
    assert more is not None
    assert (found.time_s - more.time_s) / 2**30 == pytest.approx(found.memory_prices["ddr"], rel=1e-3)


def test_too_small_tiers_are_an_answer():
    answer = json.loads(
        run("plan", "kv", str(EXAMPLE), "--set", "cluster.node.tiers.nvme.capacity=100 GB", "--format", "json")
    )
    assert (answer["status"], answer["plan"]) == ("infeasible", None)
    (lack,) = answer["relaxation"]
    # 349 GB of weights, keys and values of 544 tokens, on 16 GB less what runs, 208 GB and this
    assert 130e9 < lack["needed"] - lack["now"] + 100e9 < 145e9
    words = ("--set", f"cluster.node.tiers.{lack['constraint'][9:-1]}.capacity={lack['needed'] * 1.001}")
    more = json.loads(
        run(
            "plan", "kv", str(EXAMPLE), "--set", "cluster.node.tiers.nvme.capacity=100 GB", *words,
            "--set", "search.gpu_batch=[1]", "--set", "search.num_batches=[1]", "--format", "json",
        )
    )  # fmt: skip
    assert more["status"] == "optimal"


def test_a_given_plan_that_does_not_fit_is_told():
    question = asked(
        SMALL
        + "plan: {placement: {weights: {hbm: 1}, kv: {ddr: 1}, activations: {ddr: 1}}, gpu_batch: 1, num_batches: 1}"
    )
    answer = predict(question)
    assert answer.status == "infeasible"
    assert answer.relaxation[0]["constraint"] == "capacity[hbm]"
    assert answer.relaxation[0]["needed"] > 60e9


def test_attention_streams_where_no_processor_attends():
    node = "{kind: node, name: n, accelerators: {type: t4, count: 1}, "
    node += "links: [{name: pcie, type: pcie, generation: 3, lanes: 16}],"
    node += " tiers: [{name: ddr, capacity: 200 GB, read: 60 GB/s, write: 60 GB/s, latency: 90 ns, link: pcie}]}"
    question = asked(SMALL.replace("t4-workstation", node))
    answer = plan(question)
    assert answer.status == "optimal"
    assert not any(answer.plan["attention_there"].values())


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("search: {", "search: {tiers: [hbm, dram], ", "search.tiers[1]: no such tier"),
        ("search: {", "search: {tiers: [ddr], ", "search.tiers: hbm is missing"),
        ("search: {", "search: {tiers: [hbm, nvme], ", "search.tiers: nvme is reached via ddr"),
        ("search: {", "search: {precision_weights: [fp16, fp8], ", "search.precision_weights[1]: t4"),
        ("osl: 32", "osl: 3200", "workload.lengths: opt-30b has"),
        ("osl: 32", "osl: 1", "workload.lengths.osl"),
        ("model: opt-30b", "model: opt-30", "model:"),
        ("search: {", "engine: flexgem\nsearch: {", "engine: unknown engine"),
        (
            "search: {",
            "plan: {placement: {weights: {hbm: 0.5}, kv: {hbm: 1}}, gpu_batch: 1, num_batches: 1}\nsearch: {",
            "plan.placement: activations is missing",
        ),
        (
            "search: {",
            "plan: {placement: {weights: {hbm: 0.5}, kv: {hbm: 1}, activations: {hbm: 1}}, gpu_batch: 1, "
            "num_batches: 1}\nsearch: {",
            "plan.placement.weights: shares should add up to 1 [got 0.5]",
        ),
    ],
)
def test_faults_are_placed(old, new, where):
    with pytest.raises(InputError) as caught:
        asked(SMALL.replace(old, new))
    assert where in str(caught.value)


def test_a_latent_cache_counted_as_heads_is_flagged():
    """DeepSeek-V3: 1.67 MB a token, as a storage benchmark prints, against 61 layers x 576 x 2 B = 70,272."""
    text = "kind: kv\ncluster: dgx-h100\nmodel: deepseek-v3\nworkload: {lengths: {isl: 512, osl: 32}"
    with pytest.raises(InputError) as caught:
        asked(text + ", kv_bytes_per_token: 1670000}\n")
    assert "workload.kv_bytes_per_token" in str(caught.value)
    assert "70,272" in str(caught.value)
    assert not asked(text + ", kv_bytes_per_token: 70272}\n").warnings
    assert asked(text + ", kv_bytes_per_token: 80000}\n").warnings


def test_predict_needs_a_plan():
    with pytest.raises(ValueError, match="no plan"):
        given_block(asked(SMALL))


CXL = EXAMPLE.parent / "kv-llama-70b-cxl.yaml"


@pytest.mark.slow
def test_prefixes_in_cxl_cards():
    """The cards add hits to host memory; what is found is what a cache simulated block by block finds."""
    said = [
        json.loads(run("plan", "kv", str(CXL), *words, "--format", "json"))
        for words in ((), ("--set", "search.tiers=[hbm, ddr]"), ("--set", "search.loading=[recompute]"))
    ]
    ttft = [one["prediction"]["ttft_mean_s"] for one in said]
    assert ttft == sorted(ttft)
    assert ttft[0] < ttft[1] < ttft[2]
    both, alone = (one["prediction"]["prefix_cache"] for one in said[:2])
    assert both["hit_ratio"] > alone["hit_ratio"] > 0
    assert [one["tier"] for one in both["tiers"]] == ["hbm", "ddr", "cxl"]
    with (EXAMPLE.parent / "kv-sessions.csv").open() as file:
        rows = [(int(row["input_tokens"]), row["block_ids"].split()) for row in csv.DictReader(file)]
    total = sum(tokens for tokens, _ in rows)
    for one in both["tiers"]:
        cache: list[str] = []
        hits = 0
        for tokens, blocks in rows:
            number = next((place for place, block in enumerate(blocks) if block not in cache), len(blocks))
            hits += min(tokens, 4096 * number)
            for block in blocks:
                cache = [*(other for other in cache if other != block), block][-max(one["blocks"], 1) :]
        assert one["hit_ratio_cumulated"] == pytest.approx(hits / total)
    # 327,680 bytes a token from both cards at 50 GB/s each
    assert both["tiers"][2]["load_s_per_token"] == pytest.approx(327_680 / 100e9 + 250e-9 / 4096)
    assert "Prefixes in the memory left free" in run("plan", "kv", str(CXL))


def test_a_tier_that_is_slower_than_computing_does_not_pay():
    slow = "cluster.tiers.cxl.read=1 GB/s"
    words = ("plan", "kv", str(CXL), "--set", slow, "--format", "json", "--set", "search.gpu_batch=[4]")
    words += ("--set", "search.num_batches=[1]")
    found = json.loads(run(*words))["prediction"]
    cards = found["prefix_cache"]["tiers"][2]
    assert cards["load_s_per_token"] > cards["compute_s_per_token"]
    assert not cards["pays"]
    assert "cxl: loading a prompt takes" in found["warnings"][0]
    waits = json.loads(run(*words, "--set", "search.loading=[load]"))["prediction"]["prefix_cache"]
    assert waits["tiers"][2]["loaded_ratio"] == 0
    # with both at once, part of what is in the cards is loaded while the rest is computed
    assert 0 < cards["loaded_ratio"] < cards["hit_ratio_cumulated"] - found["prefix_cache"]["tiers"][1]["loaded_ratio"]


def test_faults_of_a_trace_are_placed(tmp_path):
    (tmp_path / "trace.csv").write_text("arrival_s,input_tokens,output_tokens,block_ids\n5,10,1,1\n0,-10,1,1\n")
    text = SMALL.replace("osl: 32}", "osl: 32}, reuse: {trace: trace.csv}")
    with pytest.raises(InputError) as caught:
        load_kv(read_yaml(text, "x.yaml"), tmp_path)
    assert "trace.csv:3:1: arrival_s: time runs backwards" in str(caught.value)
    assert "trace.csv:3:3: input_tokens" in str(caught.value)


def test_limits_of_latency():
    """A limit between tokens costs throughput; without room for it the answer names the shortest that can be met."""
    free = plan(asked(SMALL))
    assert free.prediction["tpot_mean_s"] > 5
    limited = plan(asked(SMALL + "slo: {tpot_mean: 5 s}\n"))
    assert limited.status == "optimal"
    assert limited.prediction["tpot_mean_s"] <= 5 * (1 + 1e-6)
    assert limited.prediction["tokens_per_s"] < free.prediction["tokens_per_s"]
    quick = plan(asked(SMALL + "objective: tpot_mean_s\n"))
    assert quick.objective.value == quick.prediction["tpot_mean_s"] <= limited.prediction["tpot_mean_s"] * (1 + 1e-6)
    none = plan(asked(SMALL + "slo: {tpot_mean: 100 ms}\n"))
    assert none.status == "infeasible"
    (longer,) = none.relaxation
    assert longer["constraint"] == "slo.tpot_mean"
    assert longer["needed"] == pytest.approx(quick.prediction["tpot_mean_s"], rel=1e-4)
    enough = plan(asked(SMALL + f"slo: {{tpot_mean: {longer['needed'] * 1.0001}}}\n"))
    assert enough.status == "optimal"
    both = plan(asked(SMALL + "slo: {tpot_mean: 100 ms, ttft_mean: 100 ms}\n")).relaxation
    assert [entry["constraint"] for entry in both] == ["slo.ttft_mean", "slo.tpot_mean"]
    ttft, tpot = (entry["needed"] * 1.0001 for entry in both)
    assert plan(asked(SMALL + f"slo: {{tpot_mean: {tpot}, ttft_mean: {ttft}}}\n")).status == "optimal"


def test_a_latent_cache_is_whole_on_every_rank():
    """DeepSeek-V3 on eight ranks: 70,272 bytes a token on each, and once in host memory."""
    text = "kind: kv\ncluster: dgx-h100\nmodel: deepseek-v3\nengine: vllm\nworkload: {lengths: {isl: 900, osl: 100}}\n"
    offload = asked(text).offload(2, 1, "fp8", "fp16")
    rows = memory_rows(offload)
    assert rows["hbm"][1][1]["kv", "hbm", ""] == pytest.approx(2 * 1000 * 8 * 70_272)
    assert rows["ddr"][1][1]["kv", "ddr", "stream"] == pytest.approx(2 * 1000 * 70_272)
