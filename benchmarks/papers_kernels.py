"""What papers on kernels and small architectures claim, beside what the models predict: a table of docs/papers.md.

    python benchmarks/papers_kernels.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). Both sides run the same kernel models on the
same accelerator; what a paper does not state is swept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from claims import Answer, line, listed, read, show, swept
from papers_train import gpt2, machine, training

from hardware.catalogue import resolve_cluster
from perfmodel.architecture import Architecture, Attention, load_architecture
from perfmodel.kernels import decode, gemm, prefill
from perfmodel.kernels.library import parameters_of
from perfmodel.kernels.model import Device, KernelModel, device_of
from perfmodel.kernels.work import Kernel, Work, timed
from perfmodel.memory import available_bytes
from perfmodel.serving.engine import engines
from perfmodel.serving.server import server
from perfmodel.serving.step import Deployment, Load, step
from solvers.scenario import TrainSearch
from solvers.train import evaluate
from solvers.train_space import space


@lru_cache
def kernels(where: str) -> tuple[Device, dict[str, Kernel]]:
    """Return an accelerator as kernel models know it, and the kernels of layers in 16 bits."""
    accelerator = resolve_cluster(where, Path(), 1).accelerator

    def known(model: KernelModel, variant: str) -> Kernel:
        return Kernel(model, parameters_of(model, accelerator, variant).parameters)

    named = {"gemm.bf16": known(gemm.MODEL, "bf16")}
    for width in (64, 128):
        named |= {f"prefill.{(v := prefill.variant_of(width))}": known(prefill.MODEL, v)}
        named |= {f"decode.{(v := decode.variant_of(width))}": known(decode.MODEL, v)}
    return device_of(accelerator), named


def seconds(where: str, works: Iterable[Work]) -> float:
    """Return the time of kernels one after another [s]."""
    device, named = kernels(where)
    return float(sum(float(np.sum(time)) for time, _ in timed(tuple(works), device, named)))


def of_product(tokens: float, inner: float, columns: float, form: gemm.Form = gemm.FORMS["fp16"]) -> Work:
    """Return a product by weights."""
    return Work(f"gemm.{form.variant}", gemm.product(tokens, columns, inner, form))


# --- FlashAttention (arXiv 2205.14135) -------------------------------------------------------------------------------


def flash_gain(model: Architecture, seq_len: int, batch: int) -> float | None:
    """Return how much faster a step is whose attention keeps no score matrix [1]; None where one does not fit."""
    work = training(model, "dgx-a100-40gb", 1, batch, seq_len, "megatron-lm")
    times = []
    for kind in ("unfused", "flash"):
        kept = replace(work, framework=work.framework.model_copy(update={"attention": kind}))
        search = TrainSearch(recompute=("none",), micro_batch=(batch,), offload=("none",))
        found = evaluate(kept, space(kept, search))
        times.append(float(np.where(found.required_bytes <= available_bytes(kept), found.step_time_s, np.inf).min()))
    return times[0] / times[1] if np.isfinite(times).all() else None


def flash() -> dict[str, Answer]:
    """Predict the claims of FlashAttention."""
    published = [load_architecture(name, Path()) for name in ("gpt-2", "gpt-2-xl")]
    gpt = [gain for model, batch in product(published, (1, 4, 16)) if (gain := flash_gain(model, 1024, batch))]
    lengths = product((1024, 2048, 4096), (1, 4, 16))
    arena = [gain for length, batch in lengths if (gain := flash_gain(gpt2(4, 512, length), length, batch))]
    return {
        "flash-02": swept(gpt, "GPT-2 and its XL, batch 1, 4, 16; the rest of the software the same, and of today"),
        "flash-03": swept(arena, "4 layers of 512, 1,024-4,096 tokens, batch 1, 4, 16; the rest the same"),
    }


# --- fewer heads: SQA (arXiv 2510.01817), CCA (arXiv 2510.04476) -----------------------------------------------------


def layer_s(where: str, hidden: int, heads: int, kv_heads: int, width: int, seq_len: int, ffn: int) -> float:
    """Return the forward pass of a layer over one sequence, norms left out [s]."""
    attention = Attention("full", heads, kv_heads, width, width)
    shapes = prefill.shapes_of(attention, 1, seq_len)
    works = [
        of_product(seq_len, hidden, (heads + 2 * kv_heads) * width),
        Work(f"prefill.{prefill.variant_of(width)}", shapes),
        of_product(seq_len, heads * width, hidden),
    ]
    if ffn:
        works += [of_product(seq_len, hidden, ffn), of_product(seq_len, ffn, hidden)]
    return seconds(where, works)


def fewer_heads() -> dict[str, Answer]:
    """Predict the claims about attention with fewer query heads."""
    sqa = [
        layer_s(where, 1024, 16, few_kv, 64, seq_len, ffn) / layer_s(where, 1024, 8, 4, 64, seq_len, ffn)
        for where, few_kv, seq_len, ffn in product(
            ("dgx-a100", "dgx-h100"), (4, 16), (32_768, 131_072, 200_000), (0, 4096)
        )
    ]
    cca = [
        layer_s("dgx-h100", hidden, hidden // 128, hidden // 128, 128, 16_384, ffn * hidden)
        / layer_s("dgx-h100", hidden, hidden // 128 // factor, hidden // 128 // factor, 128, 16_384, ffn * hidden)
        for hidden, factor, ffn in product((1024, 2048, 4096), (2, 4, 8), (0, 4))
    ]
    return {
        "sqa-01": swept(sqa, "A100, H100; 16 heads of 64, 16 or 4 of keys, to 8 and 4; with and without feed-forward"),
        "cca-01": swept(
            cca, "width 1,024-4,096, heads of 128, a half to an eighth of them; with and without feed-forward"
        ),
    }


# --- smaller weights: FineQuant (arXiv 2308.09723), Flash-LLM (arXiv 2309.10285) -------------------------------------


def quantised() -> Answer:
    """Sweep the step of OPT-175B with 4-bit weights on the same accelerators."""
    gains, batches = [], (1, 4, 16, 32)
    architecture, engine = load_architecture("opt-175b", Path()), engines()["vllm"]
    load = Load(sequences=np.asarray(batches, float), context=512.0)
    for where, tp in product(("dgx-a100", "dgx-a100-40gb"), (8,)):
        times = [
            step(server(architecture, machine(where, tp), engine, precision_weights=form), Deployment(tp=tp), load)
            for form in ("fp16", "int4_wo")
        ]
        gains += list(np.ravel(times[0].seconds / times[1].seconds))
    return swept(gains, f"8 A100, batch {listed(batches)} after 512 tokens, a step; 8 of 40 GB cannot hold 16 bits")


def token_s(model: str, batch: float, context: float, form: gemm.Form) -> float:
    """Return the products and the attention of a step of one accelerator that holds the whole model [s]."""
    architecture = load_architecture(model, Path())
    works = []
    for group in architecture.layers:
        attention, hidden, inner = group.attention, architecture.hidden, 4 * architecture.hidden
        width = attention.head_dim
        shapes = decode.shapes_of(attention, batch, context)
        layer = [
            of_product(batch, hidden, 3 * hidden, form),
            Work(f"decode.{decode.variant_of(width)}", shapes),
            of_product(batch, hidden, hidden, form),
            of_product(batch, hidden, inner, form),
            of_product(batch, inner, hidden, form),
        ]
        works += [replace(work, times=float(group.count), launches=float(group.count)) for work in layer]
    return seconds("dgx-a100", works)


def sparse() -> Answer:
    """Sweep a step without four fifths of the weights: tokens/s of an accelerator, whose share of a step both have."""
    thin = gemm.unstructured(gemm.FORMS["fp16"], 0.2)
    gains = [
        token_s(model, batch, 256.0, gemm.FORMS["fp16"]) / token_s(model, batch, 256.0, thin)
        for model, batch in product(("opt-30b", "opt-66b", "opt-175b"), (8, 16, 32, 64))
    ]
    return swept(gains, "OPT-30B, 66B, 175B, batch 8-64 after 256 tokens, products and attention; all-reduces left out")


# --- attention on H20: Lamina (arXiv 2405.01814) ---------------------------------------------------------------------


def lamina() -> Answer:
    """Sweep the share of the memory's rate that attention over a cache reaches [%]."""
    device, named = kernels("hgx-h20")
    shares = []
    for kv_heads, heads, batch, context in product((8, 52, 64), (64, 52), (20, 64, 256), (2048, 8192)):
        if heads % kv_heads:
            continue
        shapes = decode.shapes_of(Attention("full", heads, kv_heads, 128, 128), batch, context)
        work = Work(f"decode.{decode.variant_of(128)}", shapes)
        found, _ = timed((work,), device, named)[0]
        shares.append(100 * float(decode.traffic(shapes) / found / device.bandwidth))
    return swept(shares, "64 heads, 8 or 64 of keys, or 52; batch 20-256 of 2,048 or 8,192 tokens")


NOT_PREDICTED = {
    "flash-01": "the software of the record it is set against",
    "flash-04": "no number; our traffic of tiles is in perfmodel/kernels/prefill.py",
    "cca-02": "a kernel's backward pass of its own",
    "cca-03": "what a compression costs in quality",
    "cca-04": "what a compression costs in quality",
    "flashllm-01": "the kernel it is set against",
    "flashllm-02": "the kernel it is set against",
    "flightllm-03": "FPGAs",
    "blocktrf-01": "sizes of both models",
    "zoff-08": "the software of the update it is set against",
    **{f"help-{number:02d}": "the paper's networks and devices" for number in range(1, 10)},
}


def lines(claims: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every claim about kernels, with its ``answer`` (None where nothing is predicted)."""
    light = sparse()
    answers = flash() | fewer_heads() | {"finequant-01": quantised(), "lamina-08": lamina()}
    answers |= {"flashllm-03": light, "flashllm-04": light}
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
