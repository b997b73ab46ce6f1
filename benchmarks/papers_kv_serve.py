"""What papers claim for smaller, stored and shared keys and values, beside the models: a table of docs/papers.md.

    python benchmarks/papers_kv_serve.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). System and baseline of a claim are predicted
on the same machine; what a paper does not state is swept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from claims import Answer, line, read, show, swept

from hardware.yaml_source import read_yaml
from perfmodel.kv_arrivals import first_token_time, token_time
from perfmodel.kv_prefixes import Prefixes
from perfmodel.offload import Form, Kernels, Offload, SharedPrefix, held_bytes, model_weight_bytes
from perfmodel.offload_kernels import kernels_of, spared_times
from perfmodel.serving.step import Deployment, Load, step
from solvers.kv_preempt import preemption
from solvers.kv_reuse import load_time, whole_prompt
from solvers.kv_scenario import load_kv

GIB = 2.0**30
PCIE4, PCIE5 = 25e9, 55e9
"""What 16 lanes carry of what they are sold for [bytes/s]."""


def case(
    model: str,
    accelerator: str,
    isl: int,
    osl: int,
    batch: int,
    *,
    gpus: int = 1,
    link: float = PCIE4,
    store: float = 200e9,
    engine: str = "vllm",
    precision_kv: str = "bf16",
) -> Offload:
    """Return a block of one batch on a node whose host memory, or a store, is read at some rate."""
    links: list[dict[str, Any]] = [{"name": "pcie", "type": "pcie", "bandwidth": link}]
    if gpus > 1:
        links.append({"name": "nvlink", "type": "nvswitch", "bandwidth": 300e9, "latency": 1e-6})
    tier = {"name": "store", "capacity": 4e12, "read": store, "write": store, "latency": 0.0, "link": "pcie"}
    cluster = {"kind": "node", "name": "assumed", "accelerators": {"type": accelerator, "count": gpus}}
    question = {
        "kind": "kv",
        "cluster": cluster | {"links": links, "tiers": [tier]},
        "model": model,
        "engine": engine,
        "workload": {"lengths": {"isl": isl, "osl": osl}},
        "search": {"precision_weights": ["bf16"]},
    }
    return load_kv(read_yaml(json.dumps(question), "claims"), Path()).offload(batch, 1, "bf16", precision_kv)


def kernels(asked: Offload) -> Kernels:
    """Return the times of a batch's kernels, with what prompts are spared where their parts are found."""
    found = kernels_of(asked, (asked.gpu_batch,))[asked.gpu_batch]
    spared = spared_times(asked, np.array([float(asked.gpu_batch)]))[:, 0]
    return found._replace(spared_s=tuple(spared.tolist()))


def block_s(asked: Offload, times: Kernels, prompts_s: float | None = None) -> float:
    """Return the time of a block all of whose keys and values are with the accelerators [s]."""
    first = times.prompts_s if prompts_s is None else prompts_s
    return first + (asked.generated - 1) * (times.token_s + times.attention_s)


def with_found(asked: Offload, times: Kernels, found: float, recomputed: float) -> float:
    """Return the time of prompts of which a share is found and loaded layer by layer behind the rest [s]."""
    computed = times.prompts_s - found * (1 - recomputed) * sum(times.spared_s)
    path = asked.paths[0]
    rate = min(domain.node_up for domain in path.domains)
    loaded = found * asked.gpu_batch * asked.prompt * held_bytes(asked, 1.0) / rate
    return max(computed, loaded)


def streamed() -> dict[str, Answer]:
    """Predict the claims of CacheGen (arXiv 2310.07240): contexts in a store behind a narrow link."""
    ratios: dict[str, list[float]] = {"cachegen-02": [], "cachegen-04": []}
    systems = (("mistral-7b", 1), ("llama-3.1-70b", 4))
    sizes = {"cachegen-02": (3.7, 4.3), "cachegen-04": (3.5, 4.3)}
    for (model, gpus), isl, gbit in product(systems, (4000, 9000, 15000), (1, 3, 10)):
        asked = case(model, "a40", isl, 2, 1, gpus=gpus, store=gbit * 1e9 / 8)
        times = kernels(asked)
        for name, smaller in sizes.items():
            for codec in smaller:
                told = []
                for level in (0.5, 0.5 / codec):  # of 16 bits: eight, and what the codec leaves of these
                    used = replace(asked, prefixes=Prefixes(None, 256, level))  # type: ignore[arg-type]
                    told.append(whole_prompt(used, times, load_time(used, used.paths[0])))
                baseline = min(told[0]["load_s"], told[0]["compute_s"])
                ratios[name].append(baseline / min(told[1]["load_s"], told[1]["compute_s"]))
    inputs = "Mistral-7B on one A40, Llama-3.1-70B on four, contexts of 4,000-15,000 tokens, 1-10 Gbit/s to the store; "
    inputs += "the codec's stated size; baseline: the faster of 8-bit tensors and text"
    return {name: swept(found, inputs) for name, found in ratios.items()}


def found_anywhere() -> dict[str, Answer]:
    """Predict the claims of KVShare and Cache-Craft: blocks found anywhere, of which a share is computed again."""
    ttft, rates = [], []
    for model, (isl, osl), found, again in product(
        ("qwen2.5-7b", "llama-3.1-8b"), ((1000, 100), (4000, 200)), (0.5, 0.7, 0.9, 1.0), (0.05, 0.1, 0.2)
    ):
        asked = case(model, "a100-80gb-sxm", isl, osl, 16)
        times, alone = kernels(asked), kernels(replace(asked, gpu_batch=1))
        one = replace(asked, gpu_batch=1)
        ttft.append(alone.prompts_s / with_found(one, alone, found, again))
        rates.append(block_s(asked, times) / block_s(asked, times, with_found(asked, times, found, again)))
    shares = "found 0.5-1 of the tokens, 0.05-0.2 of these computed again"
    inputs = f"one A100, 1,000 or 4,000 tokens in and 100 or 200 out, {shares}"
    less, full, rate, latency = [], [], [], []
    for (model, gpus), (isl, osl), prefix, found, again in product(
        (("llama-3-8b", 1), ("llama-3.1-70b", 4)), ((4000, 100), (8000, 300)), (0.1, 0.3, 0.5), (0.8, 1.0), (0.1, 0.3)
    ):
        asked = case(model, "a100-80gb-sxm", isl, osl, 8, gpus=gpus)
        times = kernels(asked)
        before, after = with_found(asked, times, prefix, 0.0), with_found(asked, times, found, again)
        full.append(100 * (1 - after / times.prompts_s))
        less.append(100 * (1 - after / before))
        rate.append(block_s(asked, times, before) / block_s(asked, times, after))
        one = kernels(replace(asked, gpu_batch=1))
        alone = replace(asked, gpu_batch=1)
        spent = [with_found(alone, one, prefix, 0.0), with_found(alone, one, found, again)]
        token_s = times.token_s + times.attention_s
        load = 0.7 / (spent[0] + (osl - 1) * token_s / 8)  # of what the baseline answers
        whole = [
            float(first_token_time(prompt, token_s, load) + (osl - 1) * token_time(prompt, token_s, load, osl))
            for prompt in spent
        ]
        latency.append(whole[0] / whole[1])
    chunks = (
        "Llama-3-8B on one A100, Llama-3.1-70B on four, 4,000 or 8,000 tokens in and 100 or 300 out, chunks of 0.8 "
    )
    chunks += "or all of the tokens found, 0.1 or 0.3 of these computed again; as prefixes 0.1, 0.3 or 0.5 found"
    return {
        "kvshare-01": swept(ttft, inputs),
        "kvshare-02": swept(rates, f"{inputs}, batch 16"),
        "cachecraft-01": swept(less, chunks),
        "cachecraft-02": swept(full, chunks),
        "cachecraft-03": swept(rate, f"{chunks}; batch 8"),
        "cachecraft-04": swept(latency, f"{chunks}; at 0.7 of what the baseline answers, a place for eight"),
    }


def smaller() -> dict[str, Answer]:
    """Predict the claims of XQuant, Keyformer and EpiCache: fewer bits, layers' inputs, fewer tokens."""
    plain = held_bytes(case("llama-2-7b", "a100-80gb-sxm", 1000, 2, 1), 1.0)
    narrow = {
        kv: held_bytes(
            replace(case("llama-2-7b", "a100-80gb-sxm", 1000, 2, 1, precision_kv=kv), form=Form(remade=True)), 1.0
        )
        for kv in ("bf16", "int4", "int3", "int2")
    }
    group = "Llama-2-7B; a scale and a zero point of 16 bits for each 128"
    answers = {
        "xquant-01": swept([plain / narrow["bf16"]], "Llama-2-7B"),
        "xquant-02": swept([plain / narrow["int4"]], f"{group}; 4 bits"),
        "xquant-03": swept([plain / narrow["int3"]], f"{group}; 3 bits"),
        "xquant-04": swept([plain / narrow[kv] for kv in ("int3", "int2")], f"{group}; 2 or 3 bits"),
    }
    latency, rate, share = [], [], []
    for engine, batch in product(("vllm", "flexgen"), (1, 2, 4, 8)):
        asked = case("llama-2-7b", "a100-80gb-sxm", 2048, 2048, batch, engine=engine)
        asked = replace(asked, prompt=4096, generated=4096)
        half = replace(asked, form=Form(keep=0.5))
        times, kept = kernels(asked), kernels(half)
        latency.append(block_s(asked, times) / block_s(half, kept))
        share.append(100 * times.attention_s / (times.attention_s + times.token_s))
        room = 80 * GIB - 2 * GIB - model_weight_bytes(asked.server)
        most = [max(int(room / held_bytes(one, one.end_tokens)), 1) for one in (asked, half)]
        told = [
            count / block_s(one, kernels(replace(one, gpu_batch=count)))
            for one, count in zip((asked, half), most, strict=True)
        ]
        rate.append(told[1] / told[0])
    tokens = "Llama-2-7B for MPT-7B, 4,096 tokens in and out, half of the prompt kept; overheads of vLLM or of FlexGen"
    answers["keyformer-01"] = swept(latency, f"{tokens}; batch with beams 1-8")
    answers["keyformer-02"] = swept(rate, f"{tokens}; the largest batch that fits on both sides")
    answers["keyformer-03"] = swept(share, "as keyformer-01; attention of a step over the step")
    latency, memory = [], []
    for model, batch, tokens_in, keep in product(
        ("llama-3.2-3b", "llama-3.1-8b", "qwen2.5-7b"), (1, 4), (32_000, 100_000), (1 / 4, 1 / 6)
    ):
        asked = replace(case(model, "a100-80gb-sxm", 8000, 256, batch), prompt=tokens_in)
        less = replace(asked, form=Form(keep=keep))
        each = [one.token_s + one.attention_s for one in (kernels(asked), kernels(less))]
        latency.append(each[0] / each[1])
        held = [model_weight_bytes(asked.server) + batch * held_bytes(one, one.end_tokens) for one in (asked, less)]
        memory.append(held[0] / held[1])
    inputs = "Llama-3.2-3B, Llama-3.1-8B, Qwen2.5-7B, 32,000 or 100,000 tokens of which a fourth or a sixth stays"
    answers["epicache-01"] = swept(latency, f"one A100, batch 1 or 4; {inputs}; time of a token")
    answers["epicache-02"] = swept(memory, f"batch 1 or 4; {inputs}; weights, keys and values")
    return answers


def apart_contexts() -> dict[str, Answer]:
    """Predict the claims of APE (arXiv 2502.05431): contexts encoded apart and kept, only the question computed."""
    prefills, whole = [], []
    for model, query, osl, away in product(("llama-3.1-8b",), (128, 512, 2048), (64, 256, 1024), (False, True)):
        asked = replace(case(model, "h100-80gb-sxm", 8000, osl, 1, link=PCIE5), prompt=128_000)
        times = kernels(asked)
        rest = Load(prompts=1.0, prompt_tokens=float(query), prompt_cached=128_000.0 - query)
        suffix = float(np.asarray(step(asked.server, Deployment(), rest).seconds))
        if away:
            suffix = max(suffix, 128_000 * held_bytes(asked, 1.0) / PCIE5)
        prefills.append(times.prompts_s / suffix)
        whole.append(block_s(asked, times) / block_s(asked, times, suffix))
    inputs = "Llama-3.1-8B on one H100, question of 128-2,048 tokens, contexts with the accelerator or in host memory "
    inputs += "behind 55 GB/s"
    return {
        "ape-01": swept(whole, f"{inputs}; 64-1,024 tokens out"),
        "ape-02": swept(prefills, inputs),
    }


def shared_by_batches() -> dict[str, Answer]:
    """Predict the claim of BatchLLM (arXiv 2412.03594): a prefix computed and read once for a group."""
    ratios = []
    for (prefix, suffix), requests, osl in product(((1000, 1000), (2000, 500)), (2, 4, 16), (50, 200)):
        asked = case("llama-3.1-8b", "a100-80gb-sxm", prefix + suffix, osl, 64)
        together = replace(asked, shared=SharedPrefix(prefix, requests))
        ratios.append(block_s(asked, kernels(asked)) / block_s(together, kernels(together)))
    inputs = (
        "Llama-3.1-8B on one A100, batch 64, prefixes of 1,000 or 2,000 tokens, 1,000 or 500 more, groups of 2-16, "
    )
    inputs += "50 or 200 out; baseline finds no prefix again"
    return {"batchllm-01": swept(ratios, inputs)}


def merged_swaps() -> dict[str, Answer]:
    """Predict the claim of FastSwitch (arXiv 2411.18424): pages of a sequence merged into one copy a layer."""
    ratios = []
    for (model, accelerator), tokens in product(
        (("llama-3.1-8b", "a10"), ("qwen2.5-32b", "a100-80gb-sxm")), (500, 2000, 8000)
    ):
        asked = case(model, accelerator, tokens, 2, 1)
        moved = preemption(asked)["tiers"][0]
        ratios.append(moved["pages_s"] / moved["merged_s"])
    inputs = "Llama-3.1-8B on A10, Qwen2.5-32B on A100, 500-8,000 tokens out and back over 25 GB/s: of the swap alone"
    return {"fastswitch-01": swept(ratios, inputs)}


def stored_at_full_rate() -> dict[str, Answer]:
    """Predict the claim of NanoFlow: what storing all keys and values at full throughput takes."""
    rates = []
    for isl, osl in ((512, 512), (1024, 512), (512, 1024), (246, 322), (1155, 211), (102, 222)):
        asked = case("llama-2-70b", "a100-80gb-sxm", isl, osl, 1, gpus=8)
        room = 8 * (80 - 2) * 0.9 * GIB - model_weight_bytes(asked.server)
        count = int(room / held_bytes(asked, isl + osl / 2, ranks=8))
        asked = replace(asked, gpu_batch=count)
        seconds = block_s(asked, kernels(asked))
        rates.append(count * (isl + osl) * held_bytes(asked, 1.0) / seconds / 1e9)
    return {
        "nanoflow-05": swept(rates, "six pairs of lengths of the paper's figures, all memory filled; vLLM's overheads")
    }


NOT_PREDICTED = {
    "cachegen-01": "a codec's result, taken as an input of cachegen-02",
    "cachegen-03": "a codec's result, taken as an input of cachegen-04",
    "epicache-03": "an input of epicache-01: how many tokens quality allows to drop",
    "m2r2-02": "which experts a predictor finds ahead of time",
    "elasticcache-01": "diffusion of answers: many tokens at once, refreshed in part",
    "elasticcache-02": "diffusion of answers: many tokens at once, refreshed in part",
    "elasticcache-03": "diffusion of answers: many tokens at once, refreshed in part",
    "elasticcache-04": "diffusion of answers: many tokens at once, refreshed in part",
    "gcn-01": "graph training over tables of features",
    "mos-01": "adapters that share shards",
    "spann-01": "vector search",
    "spann-02": "vector search",
}


def lines(claims: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every claim about keys and values of serving, with its ``answer`` (None if not predicted)."""
    answers = streamed() | found_anywhere() | smaller() | apart_contexts()
    answers |= shared_by_batches() | merged_swaps() | stored_at_full_rate()
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
