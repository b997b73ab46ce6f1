"""What papers claim for state that lives elsewhere, beside what the models predict: tables of docs/papers.md.

    python benchmarks/papers_kv.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). System and baseline of a claim are predicted
from the same hardware description; what a paper does not state is swept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from claims import Answer, line, read, show, swept
from papers_train import HOSTED, gpt2

from hardware.catalogue import resolve_cluster
from hardware.tiers import tier_paths
from hardware.yaml_source import read_yaml
from perfmodel.architecture import Architecture, load_architecture
from perfmodel.finetune import Finetune, finetunes
from perfmodel.framework import frameworks
from perfmodel.job import job
from perfmodel.kv_equations import attention_apart, window_memory_bytes
from perfmodel.plan import plan_from_rows
from solvers.kv import load, plan, predict
from solvers.kv_finetune import spread
from solvers.kv_finetune_place import Placed, place
from solvers.scenario import TrainPlan, plan_row

GIB = 2.0**30


# --- states of training ----------------------------------------------------------------------------------------------


def tier(name: str, gib: float, read_rate: float, latency: float, count: int = 1) -> dict[str, Any]:
    """Return a tier whose writes are a tenth slower where it is a card."""
    write_rate = read_rate if name == "ddr" else 0.9 * read_rate
    sizes = {"capacity": gib * GIB, "read": read_rate, "write": write_rate, "latency": latency, "count": count}
    return {"name": name, "link": "pcie"} | sizes


def node(accelerator: str, gpus: int, link: float, tiers: list[dict[str, Any]], cores: int | None) -> dict[str, Any]:
    """Return a node with tiers behind PCIe links of some rate."""
    links: list[dict[str, Any]] = [{"name": "pcie", "type": "pcie", "bandwidth": link}]
    if gpus > 1:
        links.append({"name": "nvlink", "type": "nvswitch", "bandwidth": 450e9, "latency": 1e-6})
    found: dict[str, Any] = {"kind": "node", "name": "assumed", "links": links, "tiers": tiers}
    found["accelerators"] = {"type": accelerator, "count": gpus}
    return found if cores is None else found | {"processors": {"cores": cores, "lines_in_flight": 12}}


def layout(where: dict[str, Any], model: Architecture, micro: int, seq_len: int) -> Finetune:
    """Return ZeRO with one micro-batch a step and everything recomputed."""
    machine = resolve_cluster(where, Path(), 1)
    gpus = machine.node.accelerators.count
    work = job(
        model,
        machine,
        ranks=gpus,
        seq_len=seq_len,
        global_batch=gpus * micro,
        precision="bf16",
        framework=frameworks()["deepspeed"],
    )
    asked = TrainPlan(micro_batch=micro, recompute="full", zero_stage=3 if gpus > 1 else 0, overlap_dp=gpus > 1)
    (found,) = finetunes(work, plan_from_rows([plan_row(asked, gpus)]), tier_paths(machine.node))
    return found


def by_host(asked: Finetune) -> Placed:
    """Return the best placement where the host updates everything."""
    found = place(asked, interleaved=0.0, kept=HOSTED)
    assert found is not None
    return found


def cards() -> dict[str, Answer]:
    """Predict the claims of CXL-aware allocation (arXiv 2507.03305): one GPU, the host updates."""
    shares: dict[int, list[float]] = {1: [], 2: []}
    gains, slower = [], []
    models = [load_architecture("mistral-7b", Path()), gpt2(36, 5120)]
    for model, (seq_len, micro), ddr, card, cores in product(
        models, ((4096, 8), (8192, 4), (32768, 1)), (150e9, 200e9, 300e9), (25e9, 50e9), (16, 32, 64)
    ):

        def over(*tiers: dict[str, Any]) -> Finetune:
            return layout(node("h100-80gb-sxm", 1, 55e9, list(tiers), cores), model, micro, seq_len)  # noqa: B023

        base = by_host(over(tier("ddr", 1024, ddr, 90e-9)))
        far = by_host(over(tier("cxl", 1024, card, 250e-9)))
        slower.append(far.phase_s["update"] / base.phase_s["update"])
        for count in (1, 2):
            asked = over(tier("ddr", 100, ddr, 90e-9), tier("cxl", 256 / count, card, 250e-9, count))
            found = by_host(asked)
            shares[count].append(100 * base.step_time_s / found.step_time_s)
            dealt = spread(found, {"ddr": 1.0, "cxl": float(count)})
            naive = None if dealt is None else place(asked, interleaved=0.0, totals=dealt)
            if naive is not None:
                gains.append(100 * (naive.step_time_s / found.step_time_s - 1))
    inputs = (
        "one H100, 7e9 and 12e9 parameters, 32,768 tokens a step in sequences of 4-32K; 100 GiB of DRAM at 150-300 "
        "GB/s, 256 GiB on cards of 25 or 50 GB/s, 16-64 cores"
    )
    return {
        "cxl-01": swept(shares[1], inputs),
        "cxl-02": swept(shares[2], "as cxl-01, two cards of 128 GiB"),
        "cxl-03": swept(
            gains, "as cxl-01, one and two cards; pages dealt out one by one over all devices until DRAM is full"
        ),
        "cxl-04": swept(slower, "as cxl-01, all host data on one card or all in DRAM"),
    }


def interleaved_updates() -> dict[str, Answer]:
    """Predict the claim of Deep Optimizer States (arXiv 2410.21316): four H100, ZeRO-3, states with the host."""
    gains = []
    for (layers, hidden), micro, cores, ddr in product(
        ((32, 4096), (63, 5120)), (1, 4), (8, 16, 32, 64, 96), (300e9, 600e9)
    ):
        where = node("h100-80gb-sxm", 4, 55e9, [tier("ddr", 1024, ddr, 90e-9)], cores)
        asked = layout(where, gpt2(layers, hidden, 2048), micro, 2048)
        found = place(asked, kept=HOSTED)
        assert found is not None
        gains.append(by_host(asked).step_time_s / found.step_time_s)
    inputs = (
        "four H100 on 55 GB/s each, 7e9 and 20e9 parameters, ZeRO-3, sequences of 2,048, micro-batch 1 or 4, host "
        "memory at 300 or 600 GB/s, of which 8-96 cores with 12 lines under way reach 68-819 GB/s"
    )
    return {"dos-01": swept(gains, inputs)}


# --- compute elsewhere -----------------------------------------------------------------------------------------------

TRACES = ((1155, 211), (2048, 28), (12035, 343), (8560, 182))
"""Mean tokens in and out of Lamina's traces."""
LLAMA: dict[str, str | dict[str, Any]] = {
    "33B": {"name": "33B", "hidden": 6656, "layers": 60, "heads": 52, "ffn": 17920, "vocab": 32000},
    "65B": {"name": "65B", "hidden": 8192, "layers": 80, "heads": 64, "ffn": 22016, "vocab": 32000},
    "70B": "llama-3.1-70b",
}
BATCHES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)


@lru_cache
def attention_apart_answer(name: str, trace: int, accelerators: int, devices: int, share: float | None) -> Any:
    """Return the plan of most tokens with attention on so many H20, or on none."""
    lengths = TRACES[trace]
    apart: dict[str, Any] = {"cluster": "hgx-h20", "devices": [devices], "latency": 16.5e-6, "price": 4.63}
    question: dict[str, Any] = {
        "kind": "kv",
        "cluster": "dgx-h100",
        "model": LLAMA[name],
        "workload": {"lengths": {"isl": lengths[0], "osl": lengths[1]}},
        "elsewhere": {"attention": apart if share is None else apart | {"memory_share": share}},
        "search": {"accelerators": [accelerators], "batch": list(BATCHES)},
        "price": 11.06,
    }
    return plan(load(read_yaml(json.dumps(question), "claims"), Path()))


def attention_elsewhere() -> dict[str, Answer]:
    """Predict the claims of Lamina (arXiv 2405.01814): H100 for the model, H20 for attention, at about equal cost."""
    gains: dict[float | None, list[float]] = {0.7: [], None: []}
    batches = []
    for (name, here, there), trace, share in product(
        (("33B", 1, 2), ("65B", 2, 4), ("70B", 2, 4)), range(len(TRACES)), (0.7, None)
    ):
        system = attention_apart_answer(name, trace, here, there, share)
        # 20.32 $/h against 22.12, 40.64 against 44.24
        baseline = attention_apart_answer(name, trace, 2 * here, 0, None)
        if baseline.plan is None or system.plan is None:
            continue
        gains[share].append(100 * (system.prediction["tokens_per_s"] / baseline.prediction["tokens_per_s"] - 1))
        if share is not None:
            batches.append(system.prediction["sequences"] / baseline.prediction["sequences"])
    kernels = swept(gains[None], "")
    apart = [
        attention_apart(
            batch, context, parameters=70e9, hidden=8192, layers=80, group=8, kv_bytes_per_token=327_680,
            flops_per_s=989e12, bandwidth=3.35e12, memory_bandwidth=4e12, memory_share=0.7, network_share=0.2,
        )
        for batch, context in product((20, 100, 200, 300), (4096, 8192))
    ]  # fmt: skip
    inputs = (
        "33B (1 H100, 2 H20), 65B and 70B (2, 4) against twice the H100 with all of it, four traces by their means, "
        "the best batch; attention at 70 % of an H20's memory rate, as stated"
    )
    return {
        "lamina-02": swept(
            gains[0.7], f"{inputs}; at the rate of our kernels {kernels.low:.0f} to {kernels.high:.0f} %"
        ),
        "lamina-03": swept(batches, "as lamina-02"),
        **overlaps(),
        "lamina-06": swept([float(one.bandwidth) / 1e9 for one in apart], "batch 20-300 of 4,096 or 8,192 tokens"),
        "lamina-07": swept([80e9 / (8192 * 327_680), 80 * GIB / (8192 * 327_680)], "80e9 bytes or 80 GiB"),
    }


def overlaps() -> dict[str, Answer]:
    """Predict what sending queries ahead of keys and values hides of a token, in one batch alone.

    Attention over what is there already runs while keys and values are still computed and sent: hidden is the time of
    their products, of all products the share that their weights have, and of their bytes.
    """
    found = {}
    for claim, name, kv_heads in (("lamina-04", "65B", 64), ("lamina-05", "70B", 8)):
        cuts = []
        for trace, batch in product(range(len(TRACES)), (8, 16, 32, 64)):
            lengths = TRACES[trace]
            apart = {"cluster": "hgx-h20", "devices": [4], "latency": 16.5e-6, "memory_share": 0.7}
            question = {
                "kind": "kv",
                "cluster": "dgx-h100",
                "model": LLAMA[name],
                "workload": {"lengths": {"isl": lengths[0], "osl": lengths[1]}},
                "elsewhere": {"attention": apart},
                "plan": {"accelerators": 2, "batch": batch, "devices": 4, "turns": 1},
            }
            answer = predict(load(read_yaml(json.dumps(question), "claims"), Path()))
            if answer.plan is None:
                continue
            parts = {part["name"]: part["seconds"] for part in answer.breakdown["children"]}
            inner = 22016 if name == "65B" else 28672
            layer = 8192 * 8192 * (2 + 2 * kv_heads / 64) + 3 * 8192 * inner
            products_s = parts["projections"] * 8192 * 8192 * 2 * kv_heads / 64 / layer
            sent_s = batch * 80 * 2 * 2 * 128 * kv_heads / (0.729 * 2 * 50e9)
            cuts.append(100 * (products_s + sent_s) / answer.prediction["tpot_mean_s"])
        found[claim] = swept(cuts, f"{name}, 2 H100 and 4 H20, batch 8-64 of the four traces, one batch alone")
    return found


def computational_storage() -> dict[str, Answer]:
    """Predict the claim of InstInfer (arXiv 2409.04992): keys and values on drives that attend to them."""
    ratios = []
    for batch, (isl, osl), drives, kept in product((16, 64), ((512, 512), (1024, 1024)), (1, 2), (1, 2, 4, 8)):
        values = []
        for inside in (False, True):
            drive: dict[str, Any] = {
                "name": "nvme", "link": "pcie", "capacity": 4e12, "count": drives, "read": 7e9, "write": 4e9,
                "latency": 80e-6,
            }  # fmt: skip
            # of 16-bit keys and values one product a byte: the flash's eight channels, of which a kept-th is read
            drive |= {"attention": kept * 8 * 1.4e9} if inside else {}
            where = node("a40", 1, 25e9, [drive], None)
            placement = {"weights": {"hbm": 1}, "kv": {"nvme": 1}, "activations": {"hbm": 1}}
            question = {
                "kind": "kv",
                "cluster": where,
                "model": "opt-13b",
                "workload": {"lengths": {"isl": isl, "osl": osl}},
                "plan": {"placement": placement, "gpu_batch": batch, "num_batches": 1},
            }
            answer = predict(load(read_yaml(json.dumps(question), "claims"), Path()))
            if answer.prediction is not None:
                values.append(answer.prediction["tokens_per_s"])
        if len(values) == 2:
            ratios.append(values[1] / values[0])
    inputs = (
        "A40 for A6000, OPT-13B, all keys and values on 1 or 2 drives of 7 GB/s, attention in them at 11.2 GB/s, of 1 "
        "to an eighth of the tokens; batch 16 or 64, 512 or 1,024 in and out; baseline streams to the GPU"
    )
    return {"instinfer-01": swept(ratios, inputs)}


def windows() -> dict[str, Answer]:
    """Predict the memory of TPI-LLM (arXiv 2410.00531): Llama-2-70B in 32 bits on 8 devices."""
    sizes = {"hidden": 8192, "inner": 28672, "vocab": 32000, "heads": 64, "kv_heads": 8}
    (few, _), (all_, _) = (window_memory_bytes(blocks, **sizes, share=1 / 8) for blocks in (2, 160))
    return {
        "tpi-01": swept([few / 1e9], "weights of the first device alone: token table, output, two blocks"),
        "tpi-02": swept([100 * (1 - few / all_)], f"{all_ / 1e9:.1f} GB without the window (stated: 34.9)"),
    }


def experts() -> dict[str, Answer]:
    """Predict the claims of ExpertFlow: experts in host memory, some kept."""
    savings, speed_ups, never = [], [], []
    for name, gpus in (("mixtral-8x7b", 1), ("deepseek-v2", 8), ("qwen3-30b-a3b", 1)):
        model = load_architecture(name, Path())
        feed = max((layer.feed_forward for layer in model.layers), key=lambda one: one.experts)
        routed = sum(
            layer.count * layer.feed_forward.experts * 3 * model.hidden * layer.feed_forward.expert_width
            for layer in model.layers
        )
        for kept in (feed.experts_per_token / feed.experts, 0.25, 0.5):
            savings.append(100 * (1 - kept) * routed / model.parameters)
        for held, batch, skew in product((0.25, 0.5), (1, 4, 16), (0.0, 0.5, 1.0)):
            seconds = []
            for foreseen in (0.0, 0.5, 1.0):
                question = {
                    "kind": "kv",
                    "cluster": "dgx-h100",
                    "model": name,
                    "workload": {"lengths": {"isl": 512, "osl": 128}},
                    "elsewhere": {"experts": {"tier": "ddr", "skew": skew, "foreseen": foreseen}},
                    "plan": {"accelerators": gpus, "batch": batch, "held": held},
                }
                answer = predict(load(read_yaml(json.dumps(question), "claims"), Path()))
                if answer.prediction is not None and answer.breakdown is not None:
                    seconds.append(answer.prediction["tpot_mean_s"])
                    if not foreseen:
                        parts = {part["name"]: part["seconds"] for part in answer.breakdown["children"]}
                        never.append(seconds[0] / (seconds[0] - parts.get("experts, elsewhere", 0.0)))
            speed_ups += [seconds[0] / other for other in seconds[1:]]
    return {
        "expertflow-01": swept(
            savings, "Mixtral 8x7B, DeepSeek-V2, Qwen3-30B-A3B; the experts of a token, 1/4 or 1/2 kept"
        ),
        "expertflow-02": swept(
            speed_ups,
            "the same, 1/4 or 1/2 kept, batch 1-16, Zipf exponents 0-1, half or all of the missing known ahead, "
            f"against fetching on demand; never fetching would gain up to {max(never):.0f} x",
        ),
    }


NOT_PREDICTED = {
    "tpi-03": "processors of laptops, of which none is described or measured",
    "tpi-04": "processors of laptops, of which none is described or measured",
    "tpi-05": "processors of laptops, of which none is described or measured",
    "lamina-01": "devices and prices of the first version of the paper",
}


def lines(claims: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every claim about state elsewhere, with its ``answer`` (None where nothing is predicted)."""
    answers = cards() | interleaved_updates() | attention_elsewhere() | computational_storage() | windows() | experts()
    for claim in claims:
        name = claim["claim_id"]
        if name in answers or name in NOT_PREDICTED:
            yield line(claim, answers.get(name), NOT_PREDICTED.get(name, ""))


def main() -> None:
    """Print the table as Markdown."""
    if claims := read():
        show(lines(claims))


if __name__ == "__main__":
    main()
