"""Prefixes in the tiers: loading beside computing, forms of keys and values, and an independent count of every plan."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from perfmodel.hit_curves import replay
from perfmodel.kv_equations import meeting_point
from perfmodel.kv_prefixes import Prefixes
from perfmodel.offload import PHASES, Form, memory_rows
from perfmodel.offload_kernels import kernels_of
from perfmodel.request_traces import block_pieces
from solvers.kv import plan, predict
from solvers.kv_place import Block, place
from solvers.kv_scenario import load_kv
from solvers.kv_serve import given_block
from tests.kv_checker import check

CXL = Path(__file__).parent.parent / "examples" / "kv-llama-70b-cxl.yaml"
LLAMA_70B = {"weights_bytes": 2 * 70.55e9, "kv_bytes_per_token": 327_680, "hidden": 8192, "layers": 80}
NODE = """
kind: kv
cluster:
  kind: node
  name: n
  accelerators: {{type: h100-80gb-sxm, count: 1}}
  links: [{{name: pcie, type: pcie, generation: 5, lanes: 16}}]
  tiers: [{{name: store, capacity: 2 TiB, read: {read}, write: 20 GB/s, latency: 0 s, link: pcie}}]
engine: vllm
model: {model}
workload: {{lengths: {{isl: {isl}, osl: 2}}, reuse: {{trace: trace.csv, block_tokens: {block}}}}}
search: {{gpu_batch: [1], num_batches: [1], precision_weights: [bf16], precision_kv: [bf16], loading: {loading}}}
"""


def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def asked(text, folder=CXL.parent):
    return load_kv(read_yaml(text, "x.yaml"), folder)


def repeated(folder, isl, block, prompts=1, times=100):
    """Write a trace in which prompts come again and again, in turn."""
    count = -(-isl // block)
    rows = [
        f"{number},{isl},2,{' '.join(str(1000 * (number % prompts) + place) for place in range(count))}"
        for number in range(prompts * times)
    ]
    (folder / "trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens,block_ids", *rows]) + "\n")


def test_lines_are_above_the_curve_and_meet_its_ends():
    curve = replay(block_pieces(CXL.parent / "kv-sessions.csv"), 4096)
    prefixes = Prefixes(curve, 4096)
    for low, high in ((0, curve.distinct), (300, 700), (50, 51)):
        sizes = np.arange(low, high + 1)
        true = curve.hit_token_ratios(sizes)
        for depth in range(len(true)):
            lines = prefixes.lines(depth, low, high)
            above = np.min([slope * sizes + value for slope, value in lines], axis=0)
            assert np.all(above >= true[depth] - 1e-12)
            assert above[[0, -1]] == pytest.approx(true[depth][[0, -1]], abs=1e-12)
    np.testing.assert_allclose(curve.hit_token_ratios(500).sum(), curve.prefix_hit_token_ratio(500))


@pytest.mark.slow
def test_both_at_once_is_cake(tmp_path):
    """A prompt found whole in a slow store: chunks computed from the front and loaded from the back meet in the middle.

    Times to compute and load alone are ours, where the two meet is the paper's equation.
    """
    isl, block = 16384, 256
    repeated(tmp_path, isl, block, prompts=60)  # 129 GB: more than the accelerator has left
    for rate in ("2 GB/s", "4 GB/s"):
        text = NODE.format(read=rate, model="llama-3.1-8b", isl=isl, block=block, loading="[both]")
        question = asked(text, tmp_path)
        answer = plan(question)
        asks = given_block(load_kv(read_yaml(text + f"plan: {json.dumps(answer.plan)}\n", "x"), tmp_path))
        parts = np.array(asks.kernels.spared_s)
        chunks = isl // block
        growth = (parts[-1] - parts[0]) / ((chunks / 4) ** 2 * 3)
        first = parts.sum() / chunks - growth * (chunks - 1) / 2
        load_s = block * 131_072 / float(rate.split()[0]) / 1e9
        _, meeting_s = meeting_point(chunks, first, growth, load_s)
        last_s = asks.kernels.prompts_s - parts.sum()
        # the last token follows both: counted beside them here
        assert 0.97 * meeting_s < answer.prediction["ttft_mean_s"] < 1.03 * (meeting_s + last_s)
        alone = [plan(asked(text.replace("[both]", f"[{way}]"), tmp_path)) for way in ("load", "recompute")]
        assert answer.prediction["ttft_mean_s"] < min(one.prediction["ttft_mean_s"] for one in alone)


def test_no_cache_of_a_sample_is_better():
    """Random sizes and loads of a block, whatever fits: none beats the bound, and the plan reaches it."""
    question = asked(CXL.read_text())
    offload = replace(question.offload(4, 2, "bf16", "bf16"), prefixes=Prefixes(question.curve, 4096, 0.5))
    kernels = kernels_of(offload, (4,))[4]
    best = place(offload, kernels)
    assert best is not None
    assert best.bound_s is not None
    assert best.time_s == pytest.approx(best.bound_s, rel=1e-4)
    random = np.random.default_rng(0)
    tried = 0
    for _ in range(900):
        sizes = {tier: random.choice([0, random.random(), 1]) for tier in ("hbm", "ddr", "cxl")}
        shares = {}
        for thing, way in (("weights", ""), ("activations", ""), ("kv", "stream")):
            parts = random.dirichlet([4, 0.3, 0.3]) if random.random() < 0.5 else np.array([1.0, 0, 0])
            for tier, part in zip(sizes, parts, strict=True):
                shares[thing, tier, "" if tier == "hbm" else way] = part
        reach, before = 0.0, np.zeros(4)
        for tier, size in sizes.items():
            room = memory_rows(offload)[tier][0]
            token = 327_680 * (1.0 if tier == "hbm" else 0.5)
            shares["cache", tier, ""] = size
            reach = max(reach, size * room / token / 4096)
            found = question.curve.hit_token_ratios(reach) - before
            part = found * random.random() if size else 0 * found
            before = before + part
            shares |= {("found", tier, str(depth)): value for depth, value in enumerate(part)}
        for tier in ("ddr", "cxl"):
            shares["new", tier, ""] = 1 - before.sum() if sizes[tier] else 0.0
        block = Block(offload, shares, kernels)
        if all(used <= room for room, used in block.memory_bytes.values()):
            tried += 1
            assert block.time_s >= best.bound_s * (1 - 1e-6)
    assert tried > 50


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("search.loading=[load]", "search.tiers=[hbm, cxl]"),
        pytest.param(("workload.reuse.levels={small: 0.3}", "search.keep=[0.5]"), marks=pytest.mark.slow),
        pytest.param(("search.gpu_batch=[8]", "search.num_batches=[4]"), marks=pytest.mark.slow),
        pytest.param(("objective=ttft_mean_s",), marks=pytest.mark.slow),
        pytest.param(("cluster.tiers.cxl.read=2 GB/s", "cluster.tiers.ddr.capacity=64 GiB"), marks=pytest.mark.slow),
    ],
)
def test_every_plan_is_within_sizes_and_rates(words, tmp_path):
    given = [part for word in words for part in ("--set", word)]
    saved = tmp_path / "plan.json"
    run("plan", "kv", str(CXL), *given, "--format", "json", "-o", str(saved), "--top", "2")
    answer = json.loads(saved.read_text())
    assert answer["status"] == "optimal"
    check(answer, **LLAMA_70B)
    for other in answer["alternatives"]:
        check({**answer, **other}, **LLAMA_70B)
    again = json.loads(run("predict", "kv", str(saved), "--format", "json"))
    assert again["prediction"]["tokens_per_s"] == pytest.approx(answer["prediction"]["tokens_per_s"], rel=1e-6)


def test_a_disk_that_loses_is_told(tmp_path):
    """A user's report: a hit on disk took 40 s for 20,000 tokens of 2.4 GB where computing them takes 0.9 s on H100."""
    repeated(tmp_path, 20_000, 500, prompts=60)
    for rate, loses in (("0.06 GB/s", True), ("6 GB/s", False)):
        text = NODE.format(read=rate, model="llama-3.1-8b", isl=20_000, block=500, loading="[both]")
        said = plan(asked(text, tmp_path)).prediction
        store = said["prefix_cache"]["tiers"][1]
        assert store["pays"] is not loses
        assert bool(said["warnings"]) is loses
        if loses:
            assert store["request"]["load_s"] == pytest.approx(20_000 * 131_072 / 0.06e9, rel=0.03)
            assert 0.3 < store["request"]["compute_s"] < 1.8


def test_host_memory_that_is_slower_than_computing(tmp_path):
    """Llama-2-7B, 3,000 tokens on H100: 524,288 bytes a token need more than 10 GB/s to beat computing.

    2 x 7e9 FLOP a token at all of 989 TFLOP/s takes 14 us, at a third of it 42 us: 12 to 37 GB/s.
    """
    repeated(tmp_path, 3000, 250)
    pays = {}
    for rate in (6, 60):
        text = NODE.format(read=f"{rate} GB/s", model="llama-2-7b", isl=3000, block=250, loading="[load]")
        said = plan(asked(text, tmp_path)).prediction["prefix_cache"]
        pays[rate] = said["tiers"][1]["pays"]
        said_above = said["pays_above_bytes_per_s"]
        assert 10e9 < said_above < 40e9
    assert pays == {6: False, 60: True}


def test_the_stored_format_is_not_the_resident_one(tmp_path):
    """A fourfold smaller copy in the store: a fourth of the bytes there, the same where kernels read them."""
    repeated(tmp_path, 8192, 256, prompts=120)
    text = NODE.format(read="2 GB/s", model="llama-3.1-8b", isl=8192, block=256, loading="[load]")
    text = text.replace("block_tokens: 256", "block_tokens: 256, levels: {as_kept: 1, sent: 0.25}")
    answer = plan(asked(text, tmp_path))
    assert answer.plan["level"] == "sent"
    tiers = answer.prediction["prefix_cache"]["tiers"]
    assert tiers[1]["load_s_per_token"] == pytest.approx(131_072 / 4 / 2e9)
    one, other = (plan(asked(text.replace("search: {", f"search: {{levels: [{name}], "), tmp_path)) for name in
                  ("as_kept", "sent"))  # fmt: skip
    assert one.prediction["memory_bytes"]["hbm"] == pytest.approx(other.prediction["memory_bytes"]["hbm"], rel=1e-6)


@pytest.mark.slow
def test_the_least_lossy_format_within_limits(tmp_path):
    """Copies of 131,072 bytes a token over 2 GB/s take 0.54 s, computing them 0.3 s: smaller ones meet sooner."""
    repeated(tmp_path, 8192, 256, prompts=120)
    text = NODE.format(read="2 GB/s", model="llama-3.1-8b", isl=8192, block=256, loading="[both]")
    text = text.replace("block_tokens: 256", "block_tokens: 256, levels: {as_kept: 1, half: 0.5, fourth: 0.25}")
    text = text.replace("search: {", "search: {tiers: [hbm, store], ")
    free = plan(asked(text, tmp_path))
    assert free.plan["level"] == "fourth"
    slow = plan(asked(text.replace("search: {", "search: {levels: [half], "), tmp_path)).prediction["ttft_mean_s"]
    fast = free.prediction["ttft_mean_s"]
    assert fast < 0.9 * slow
    for limit, level in ((1.02 * slow, "half"), ((fast + slow) / 2, "fourth")):
        limited = plan(asked(text + f"slo: {{ttft_mean: {limit}}}\n", tmp_path))
        assert (limited.status, limited.plan["level"]) == ("optimal", level)


OPT = """
kind: kv
cluster: dgx-a100
model: opt-30b
engine: vllm
workload: {lengths: {isl: 1024, osl: 1024}}
search: {gpu_batch: [8], num_batches: [1]}
"""


def bytes_of_kv(question, **form):
    offload = replace(question.offload(8, 1, "fp16", "fp16"), paths=(), form=Form(**form))
    return memory_rows(offload)["hbm"][1][1]["kv", "hbm", ""]


def test_inputs_of_layers_take_half_of_keys_and_values():
    """XQuant: d against 2 d a token and layer where every head has its own; with grouped heads nothing is won."""
    one = OPT.replace("dgx-a100", "t4-workstation")
    many = asked(one)
    assert bytes_of_kv(many, remade=True) == pytest.approx(bytes_of_kv(many) / 2)
    grouped = asked(one.replace("opt-30b", "llama-3.1-8b"))
    assert bytes_of_kv(grouped, remade=True) == bytes_of_kv(grouped)
    offload = many.offload(8, 1, "fp16", "fp16")
    plain, made = (kernels_of(replace(offload, form=Form(remade=way)), (8,))[8] for way in (False, True))
    # 4 d d_kv FLOP a token and layer: 48 layers of 7,168 for 8 sequences of 1,536 tokens
    extra = 8 * 1536 * 48 * 4 * 7168 * 7168
    assert extra / 65e12 < made.attention_s - plain.attention_s < 10 * extra / 65e12


def test_dropped_tokens_shrink_the_cache_and_stop_its_growth():
    """Keyformer: half of the prompt's tokens stay, whatever is generated."""
    question = asked(OPT)
    assert bytes_of_kv(question, keep=0.5) == pytest.approx(8 * 512 * 1_376_256)
    assert bytes_of_kv(question) == pytest.approx(8 * 2048 * 1_376_256)
    text = OPT.replace("search: {", "search: {keep: [1.0, 0.5], ")
    assert plan(asked(text)).plan["keep"] == 0.5


def test_a_shared_prefix_is_held_and_computed_once():
    """BatchLLM: 16 sequences of which 900 of 1,024 prompt tokens are the same."""
    text = OPT.replace("osl: 1024}", "osl: 16}, shared_prefix: {tokens: 900, requests: 16}").replace("[8]", "[16]")
    question = asked(text)
    offload = question.offload(16, 1, "fp16", "fp16")
    own = memory_rows(offload)["hbm"][1][1]["kv", "hbm", ""]
    assert own == pytest.approx((16 * 140 + 900) * 1_376_256)
    together, apart = plan(question), plan(asked(text.replace("search: {", "search: {share_prefix: [false], ")))
    # tokens computed: 16 x 124 + 900 of 16 x 1,024
    ratio = apart.prediction["ttft_mean_s"] / together.prediction["ttft_mean_s"]
    assert 0.7 * (16 * 1024) / (16 * 124 + 900) < ratio < 1.05 * (16 * 1024) / (16 * 124 + 900)
    assert together.plan["share_prefix"]


def test_narrow_keys_and_values():
    """Four bits with a scale and a zero point of 16 bits for each 128: 4.25 of 16."""
    question = asked(OPT.replace("search: {", "search: {precision_kv: [int4], "))
    narrow = memory_rows(question.offload(8, 1, "fp16", "int4"))["hbm"][1][1]["kv", "hbm", ""]
    assert bytes_of_kv(question) / narrow == pytest.approx(16 / 4.25)
    assert plan(question).plan["precision_kv"] == "int4"


def test_a_block_counts_anywhere_with_a_share_computed_again(tmp_path):
    """Cache-Craft, KVShare: two documents in either order; as prefixes only the first is found again."""
    rows = [f"{n},4096,2,{'1 2 3 4 5 6 7 8' if n % 2 else f'{100 + n} 2 3 4 5 6 7 8'}" for n in range(400)]
    (tmp_path / "trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens,block_ids", *rows]) + "\n")
    text = NODE.format(read="40 GB/s", model="llama-3.1-8b", isl=4096, block=512, loading="[load]")
    text = text.replace("block_tokens: 512", "block_tokens: 512, recomputed: 0.2")
    ttft = {}
    for ways in ("[prefix]", "[anywhere]", "[prefix, anywhere]"):
        answer = plan(asked(text.replace("search: {", f"search: {{reuse: {ways}, "), tmp_path))
        ttft[ways] = answer.prediction["ttft_mean_s"]
    assert ttft["[anywhere]"] < ttft["[prefix]"]
    assert ttft["[prefix, anywhere]"] == pytest.approx(ttft["[anywhere]"])
    assert answer.plan["reuse"] == "anywhere"
    # half of the prompts are found whole, the others but for one block of eight; of what is found 0.2 is computed
    found = answer.prediction["prefix_cache"]["hit_ratio"]
    assert found == pytest.approx((1 + 7 / 8) / 2, abs=0.01)


def test_a_stated_hit_ratio(tmp_path):
    """Half of the tokens found by 400 GB, as stated: a tier of 200 GB finds a quarter."""
    text = NODE.format(read="60 GB/s", model="llama-3.1-8b", isl=8192, block=256, loading="[load]")
    given = "reuse: {hit_ratio: 0.5, working_set: 400 GB, block_tokens: 256}"
    text = text.replace("reuse: {trace: trace.csv, block_tokens: 256}", given)
    found = {}
    for size in ("200 GB", "2 TiB"):
        said = plan(asked(text.replace("2 TiB", size), tmp_path)).prediction["prefix_cache"]
        found[size] = said["tiers"][1]["hit_ratio_cumulated"]
        assert said["tiers"][1]["hit_ratio_che"] is None
    assert found["200 GB"] == pytest.approx(0.25, rel=2e-3)
    assert found["2 TiB"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("trace: trace.csv", "hit_ratio: 1.2, working_set: 1 TiB", "workload.reuse.hit_ratio"),
        ("trace: trace.csv", "hit_ratio: 0.2", "workload.reuse: needs either"),
        ("trace: trace.csv", "trace: trace.csv, hit_ratio: 0.2, working_set: 1 TiB", "workload.reuse: needs either"),
        ("link: pcie}]", "link: wire}]", "link"),
        ("search: {", "search: {levels: [tiny], ", "search.levels[0]: no such level"),
        ("search: {", "search: {reuse: [anywhere], ", "workload.reuse.recomputed: missing"),
        ("block_tokens: 250", "block_tokens: 250, levels: {more: 1.5}", "workload.reuse.levels.more"),
        ("osl: 2}", "osl: 2}, shared_prefix: {tokens: 4000, requests: 4}", "workload.shared_prefix.tokens"),
        ("osl: 2}", "osl: 2}, shared_prefix: {tokens: 400, requests: 4}", "workload.shared_prefix: either"),
        ("search: {", "search: {keep: [1.5], ", "search.keep[0]"),
        (
            "search: {",
            "plan: {placement: {weights: {hbm: 1}, kv: {hbm: 1}, activations: {hbm: 1}}, gpu_batch: 1, num_batches: 1, "
            "loading: load, cache: {store: 1.2, disk: 0.1}, loaded: {store: [0.5, 0.5]}}\nsearch: {",
            "plan.cache.store",
        ),
    ],
)
def test_faults_are_placed(old, new, where, tmp_path):
    repeated(tmp_path, 3000, 250, times=3)
    text = NODE.format(read="6 GB/s", model="llama-2-7b", isl=3000, block=250, loading="[load]")
    with pytest.raises(InputError) as caught:
        asked(text.replace(old, new), tmp_path)
    assert where in str(caught.value)


def test_a_given_cache_is_costed():
    """A cache that a person gives loads all that it finds; a tier too small for it is told."""
    given = {
        "placement": {"weights": {"hbm": 1}, "kv": {"hbm": 1}, "activations": {"hbm": 1}},
        "gpu_batch": 4, "num_batches": 1, "precision_weights": "bf16", "precision_kv": "bf16",
        "loading": "load", "cache": {"cxl": 1.0},
    }  # fmt: skip
    answer = predict(asked(CXL.read_text() + f"plan: {json.dumps(given)}\n"))
    cards = answer.prediction["prefix_cache"]["tiers"][2]
    assert cards["loaded_ratio"] == pytest.approx(cards["hit_ratio_cumulated"])
    assert set(PHASES) == set(answer.prediction["utilisation"])
    given["placement"]["kv"] = {"cxl": 1}
    assert (
        predict(asked(CXL.read_text() + f"plan: {json.dumps(given)}\n")).relaxation[0]["constraint"] == "capacity[cxl]"
    )
