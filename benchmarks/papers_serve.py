"""What published papers claim for serving, beside what the model predicts: a table of docs/papers.md.

    python benchmarks/papers_serve.py

System and baseline of a claim are predicted from one description of the hardware and one of an engine, so that a ratio
is one of what the paper changes. What a paper does not state is swept. Claims are read by `claims.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from claims import Answer, line, listed, read, show, swept
from serving_cases import ARXIV, CHAT, most_rps, offline, on, question, seconds, told

from perfmodel.architecture import bundled_architecture
from perfmodel.serving.engine import engines
from perfmodel.serving.overlap import Overlap
from perfmodel.serving.step import Deployment, Load, step
from solvers.serve import plan
from solvers.serve_answer import optimal_tokens_per_s, steady
from solvers.serve_case import case_of
from solvers.serve_found import POOL
from solvers.serve_search import search

# --- TokenWeave (arXiv 2505.11329) -----------------------------------------------------------------------------------

WEAVED = {
    "Llama-3.3-70B": "llama-3.1-70b",
    "Qwen2.5-72B": "qwen2.5-72b",
    "Mixtral-8x22B": "mixtral-8x22b",
    "Qwen3-235B": "qwen3-235b-a22b",
}


def weaved(claims: Iterable[dict[str, str]]) -> dict[str, Answer]:
    """Predict latencies of one prompt, and throughputs, with and without overlap."""
    found: dict[str, Answer] = {}
    points = [claim for claim in claims if claim["system"] == "TokenWeave" and claim["stated_as"] == "point"]
    for claim in points:
        model = next((ours for name, ours in WEAVED.items() if claim["model"].startswith(name)), None)
        tp = int(claim["gpus"])
        if model is None:
            continue
        if "prefill of" in claim["workload"]:
            tokens = float(re.search(r"prefill of (\d+)", claim["workload"])[1])  # type: ignore[index]
            asked, load = on(model, "dgx-h100"), Load(prompts=1.0, prompt_tokens=tokens)
            if claim["quantity"] == "communication_share":
                whole = step(asked, Deployment(tp=tp), load)
                sent = next(part for part in whole.children if part.name == "tensor-parallel communication")
                value = 100 * float(sent.seconds / whole.seconds)
                inputs = f"tp {tp}: {float(sent.seconds) * 1e3:.1f} of {float(whole.seconds) * 1e3:.0f} ms"
                found[claim["claim_id"]] = Answer(value, value, value, inputs)
                continue
            plain, split = (seconds(one, tp, load) for one in (asked, replace(asked, overlap="communication")))
            value = plain / split
            inputs = f"tp {tp}: {plain * 1e3:.0f} ms, in halves {split * 1e3:.0f} ms"
        else:
            sizes = re.search(r"of (\d+) in / (\d+) out", claim["workload"])
            chunk = re.search(r"prefill chunk (\d+)", claim["conditions"])
            lengths = {"isl": int(sizes[1]), "osl": int(sizes[2])}  # type: ignore[index]
            given = {"tp": tp, "replicas": 1, "max_num_batched_tokens": int(chunk[1]) if chunk else 8192}
            rates = [offline(model, "dgx-h100", lengths, given, way) for way in ("none", "communication")]
            value = rates[1] / rates[0]
            inputs = f"tp {tp}: {rates[0]:,.0f} and {rates[1]:,.0f} tokens/s, all requests at once"
        found[claim["claim_id"]] = Answer(value, value, value, inputs)
    by_kind = {
        kind: [found[one["claim_id"]].value for one in points if one["quantity"] == kind and one["claim_id"] in found]
        for kind in ("latency_speedup", "throughput_speedup")
    }
    for name, kind, gain in (
        ("tokenweave-01", "latency_speedup", True),
        ("tokenweave-02", "throughput_speedup", True),
        ("tokenweave-03", "latency_speedup", False),
        ("tokenweave-04", "throughput_speedup", False),
    ):
        values = [100 * (value - 1) if gain else value for value in by_kind[kind]]
        if values:
            found[name] = swept(values, f"the {len(values)} tabulated cases below")
    return found


# --- NanoFlow (arXiv 2408.12757) -------------------------------------------------------------------------------------

NANO = {"llama-2-70b": 8, "qwen2.5-72b": 8, "mixtral-8x7b": 8, "llama-3.1-8b": 1}  # DeepSeek-67B is not bundled
MEASURED_PEAK = 312 / 260


def nano() -> dict[str, Answer]:
    """Predict throughput without and with operators side by side, and its share of the optimum."""
    constant = {"isl": 1024, "osl": 512}
    given = {"replicas": 1, "max_num_batched_tokens": 2048, "max_num_seqs": 1024}

    def share(model: str, lengths: Mapping[str, float], overlap: Overlap) -> float:
        rate = offline(model, "dgx-a100", lengths, {**given, "tp": NANO[model]}, overlap)
        return 100 * rate / NANO[model] / optimal_tokens_per_s(on(model, "dgx-a100"))

    shares = {model: share(model, constant, "operators") for model in NANO}
    plain = {model: share(model, constant, "none") for model in NANO}
    both = [value * peak for value in shares.values() for peak in (1.0, MEASURED_PEAK)]
    peaks = "optimum of 312 or of the measured 260 TFLOP/s"
    cases = "; ".join(f"{model} {plain[model]:.0f} to {shares[model]:.0f} %" for model in NANO)
    inputs = f"1,024 in, 512 out, steps of 2,048 tokens, {peaks}; without and with overlap by the data sheet: {cases}"
    lengths = (constant, {"isl": 512, "osl": 512}, {"isl": 512, "osl": 1024}, CHAT[0], CHAT[1])
    ratios = [share("llama-2-70b", one, "operators") / share("llama-2-70b", one, "none") for one in lengths]
    same = "the same engine without overlap; scheduling as of today's vLLM on both sides"
    one = [shares["llama-2-70b"] * peak for peak in (1.0, MEASURED_PEAK)]
    return {
        "nanoflow-01": swept(ratios, f"Llama-2-70B, constant and chat lengths; baseline: {same}"),
        "nanoflow-02": swept(both, inputs),
        "nanoflow-03": swept(one, f"as nanoflow-02; {peaks}"),
        "nanoflow-04": swept(both, "as nanoflow-02"),
    }


# --- Sarathi-Serve (arXiv 2403.02310) --------------------------------------------------------------------------------


def sarathi(claims: Iterable[dict[str, str]]) -> dict[str, Answer]:
    """Predict prompts in pieces over whole ones, a mixed step, and rates within a limit of the time between tokens."""
    found: dict[str, Answer] = {}
    asked = on("yi-34b", "a100-pairwise-nvlink", release="0.2")
    for claim in claims:
        sizes = re.search(r"prompt of (\d+) tokens, chunk (\d+)", claim["workload"])
        if claim["system"] == "Sarathi-Serve" and sizes:
            tokens, chunk = (int(size) for size in sizes.groups())
            parts = [(start, min(chunk, tokens - start)) for start in range(0, tokens, chunk)]
            pieces = [Load(prompts=1.0, prompt_tokens=size, prompt_cached=start) for start, size in parts]
            whole = seconds(asked, 2, Load(prompts=1.0, prompt_tokens=tokens))
            ratio = sum(seconds(asked, 2, piece) for piece in pieces) / whole
            found[claim["claim_id"]] = Answer(ratio, ratio, ratio, f"tp 2, whole prompt {whole * 1e3:.0f} ms")
    alone = seconds(asked, 2, Load(prompts=1.0, prompt_tokens=1024.0))
    contexts = (128.0, 1024.0, 4096.0)
    ratios = [seconds(asked, 2, Load(3.0, k, 1.0, 1021.0)) / alone for k in contexts]
    inputs = (
        f"contexts of the three of {listed(f'{k:.0f}' for k in contexts)} tokens; prompt alone {alone * 1e3:.0f} ms"
    )
    found["sarathi-15"] = swept(ratios, inputs)
    ratios = []
    for lengths, (limit, chunk) in product((*CHAT, *ARXIV), ((0.1, 512), (0.5, 2048))):
        rates = []
        for mode, budget in (("chunked", chunk), ("prefill_first", 16384)):
            given = {"tp": 1, "replicas": 1, "max_num_seqs": 128, "max_num_batched_tokens": budget}
            rates.append(within_gap("mistral-7b", lengths, given, {"batching": mode}, limit))
        if min(rates) > 0:
            ratios.append(rates[0] / rates[1])
    inputs = "chat and arXiv lengths, P99 of the time between tokens of 0.1 s (pieces of 512) and 0.5 s (2,048); "
    inputs += "baseline: prompts alone and first, up to 16,384 tokens a step"
    found["sarathi-01"] = swept(ratios, inputs)
    return found


def within_gap(
    model: str, lengths: Mapping[str, float], given: Mapping[str, Any], changed: Mapping[str, Any], limit_s: float
) -> float:
    """Return the highest rate with the P99 of times between tokens, and the queue, within limits [1/s]."""
    low, high = 0.0, 64.0
    for _ in range(12):
        rate = (low + high) / 2
        arrivals = {"process": "poisson", "rate_rps": rate}
        scenario = question(model, "a100-pairwise-nvlink", arrivals, lengths, given, changed)
        assert scenario.question.plan is not None
        with np.errstate(all="ignore"):
            seen = steady(case_of(scenario, scenario.question.plan))
        holds = seen.load is not None and seen.load < 1 and seen.times_s["itl_p99"] <= limit_s
        holds = holds and seen.times_s["ttft_p50"] < 2.0  # the paper's rule for a queue that does not grow
        low, high = (rate, high) if holds else (low, rate)
    return low


# --- Layered prefill (arXiv 2510.08055) ------------------------------------------------------------------------------

LAYERED_MODELS = ("qwen3-30b-a3b", "gpt-oss-20b")
PIECE = 512


def layered() -> dict[str, Answer]:
    """Predict traffic of experts and times of requests, prompts by layers over prompts in pieces of 512 tokens."""
    stated: list[dict[str, float]] = []
    every: list[dict[str, float]] = []
    for model, lengths, rate, launched in product(LAYERED_MODELS, (*ARXIV, *CHAT), (0.5, 1.5, 2.5), (True, False)):
        pieces, layers = (layered_run(model, lengths, rate, way, launched) for way in (False, True))
        if pieces and layers:
            gains = {name: 100 * (1 - layers[name] / pieces[name]) for name in TIMES}
            gains["energy"] = 100 * (1 - layers["energy"] / pieces["energy"])
            gains["traffic"] = 100 * less_traffic(model, lengths, pieces["running"])
            every.append(gains)
            stated += [gains] if model == LAYERED_MODELS[0] and lengths in ARXIV and rate == 1.5 else []
    cases = "arXiv and chat lengths, 0.5-2.5 req/s, both models; host launches of prompts as vLLM's, or hidden"
    point = "Qwen3-30B-A3B, arXiv lengths, 1.5 req/s; host launches of prompts as vLLM's, or hidden"
    answers = {
        "layered-01": swept(
            (100 / (100 - one["traffic"]) * 100 - 100 for one in every), "as layered-05, over the less"
        ),
        "layered-02": swept((one["ttft_mean"] for one in every), cases),
        "layered-03": swept((one["e2e_mean"] for one in every), cases),
        "layered-04": swept((one["energy"] for one in every), cases),
        "layered-05": swept((one["traffic"] for one in every), cases + "; of prompts and tokens together"),
        "layered-06": swept((one["energy"] for one in every), cases),
    }
    for number, name in enumerate(TIMES, start=7):
        answers[f"layered-{number:02}"] = swept((one[name] for one in stated), point)
    return answers


TIMES = ("ttft_mean", "ttft_p50", "tpot_mean", "e2e_mean", "ttft_p99", "e2e_p99")
"""Times of the claims layered-07 to layered-12, in their order."""


def layered_run(
    model: str, lengths: Mapping[str, float], rate: float, by_layers: bool, launched: bool
) -> dict[str, float]:
    """Return times of requests [s], sequences that decode at a time and energy of a token [J].

    Nothing where requests pile up.
    """
    given = {"tp": 2, "replicas": 1, "max_num_batched_tokens": PIECE, "max_num_seqs": 256, "layered_prefill": by_layers}
    changed = {} if launched else {"eager_overhead": 0.0}
    scenario = question(model, "dgx-h100", {"process": "poisson", "rate_rps": rate}, lengths, given, changed)
    assert scenario.question.plan is not None
    with np.errstate(all="ignore"):
        seen = steady(case_of(scenario, scenario.question.plan))
    crowded = seen.load is None or seen.load >= 0.95
    if crowded:
        return {}
    found = told(scenario)
    assert found is not None
    others = {"running": seen.running, "energy": found["energy_per_token_j"]}
    return {name: seen.times_s[name] for name in TIMES} | others


def less_traffic(model: str, lengths: Mapping[str, float], n: float) -> float:
    """Return the share of readings of experts' weights that layers save of those of pieces.

    A request shares (G - 1)/n steps with n others. In pieces P/(C - n) of them hit the experts of C tokens; by layers
    one pass hits those of n + P.
    """
    feed = bundled_architecture(model).layers[-1].feed_forward

    def hit(tokens: float) -> float:
        return float(feed.experts * (1 - (1 - feed.experts_per_token / feed.experts) ** tokens))

    pieces = max(lengths["isl"] / (PIECE - n), 1.0)
    every = max((lengths["osl"] - 1) / max(n, 1.0), pieces)
    cut = (every - pieces) * hit(n) + pieces * hit(min(PIECE, n + lengths["isl"]))
    return round(1 - (every * hit(n) + hit(n + lengths["isl"]) - hit(n)) / cut, 9)


# --- Nexus (arXiv 2507.06608) and semi-PD (arXiv 2504.19867) ---------------------------------------------------------

SPLITS = (0.2, 0.35, 0.5, 0.65, 0.8)
BUDGET = 2048
LOADED = 0.9
LIMITS = ({"ttft_p90": "1 s", "tpot_p90": "50 ms"}, {"ttft_p90": "5 s", "tpot_p90": "200 ms"})


def side_by_side() -> dict[str, Answer]:
    """Predict phases on shares of the units over phases that take turns, and over pools."""
    one = {"replicas": 1, "max_num_batched_tokens": BUDGET, "max_num_seqs": 256}
    over: dict[str, list[float]] = {"vllm": [], "sglang": [], "pools": [], "llama": []}
    times: dict[str, list[tuple[float, float, float]]] = {"vllm": [], "sglang": []}
    cases = [("qwen2.5-14b", "l20-8", 2), ("llama-3.1-8b", "l20-8", 1), ("llama-3.1-8b", "dgx-a100", 1)]
    for (model, node, tp), lengths, slo in product(cases, (CHAT[1], ARXIV[0]), LIMITS):
        best = max(most_rps(model, node, lengths, {**one, "tp": tp, "prefill_share": x}, slo=slo) for x in SPLITS)
        for engine in ("vllm", "sglang"):
            rate = most_rps(model, node, lengths, {**one, "tp": tp}, slo=slo, engine=engine)
            if not (rate and best):
                continue
            over[engine].append(best / rate)
            over["llama"] += [best / rate] if model.startswith("llama") else []
            if shorter := faster(model, node, lengths, {**one, "tp": tp}, engine, LOADED * rate):
                times[engine].append(shorter)
        pool = {"tp": tp, "max_num_batched_tokens": BUDGET}
        apart = {"disaggregated": True, "prefill": pool, "decode": {"tp": tp, "max_num_seqs": 256}}
        rate = most_rps(model, node, lengths, apart, slo=slo, changed={"handoff_overhead": 0.0})
        over["pools"] += [best / rate] if rate else []
    where = "14B on two L20, 8B on L20 and A100, chat and arXiv lengths, P90 TTFT 1 or 5 s and TPOT 50 or 200 ms; "
    where += f"the best fixed share of {listed(SPLITS)}; steps of {BUDGET} tokens"
    loads = f"at {LOADED:g} of the baseline's rate"
    answers = {
        "nexus-01": swept(over["vllm"], where),
        "nexus-04": swept(over["sglang"], f"as nexus-01; baseline {engines()['sglang'].name}: prompts first and alone"),
        "nexus-07": swept(over["pools"], "as nexus-01; baseline: as many accelerators for each phase, free hand-over"),
        "semipd-02": swept(over["llama"], "nexus-01 and nexus-04 of Llama-3.1-8B"),
    }
    for engine, names in (("vllm", ("nexus-02", "nexus-03")), ("sglang", ("nexus-05", "nexus-06"))):
        for number, name in enumerate(names):
            answers[name] = swept((one[number] for one in times[engine]), f"as nexus-01, {loads}")
    deep = []
    for lengths in (CHAT[1], ARXIV[0]):
        given = {**one, "tp": 1}
        rate = most_rps("deepseek-v2-lite", "dgx-a100", lengths, given, slo=LIMITS[1])
        shorter = faster("deepseek-v2-lite", "dgx-a100", lengths, given, "vllm", LOADED * rate)
        deep += [shorter[2]] if shorter else []
    answers["semipd-01"] = swept(deep, "DeepSeek-V2-Lite on A100, chat and arXiv lengths, baseline vLLM, " + loads)
    return answers


def faster(
    model: str, node: str, lengths: Mapping[str, float], given: Mapping[str, Any], engine: str, rate: float
) -> tuple[float, float, float] | None:
    """Return TTFT, TPOT and whole time of phases in turns over those side by side, of the share with the shortest."""
    arrivals = {"process": "poisson", "rate_rps": rate}
    turns = told(question(model, node, arrivals, lengths, given, engine=engine))
    runs = [told(question(model, node, arrivals, lengths, {**given, "prefill_share": x})) for x in SPLITS]
    able = [run for run in runs if run]
    if turns is None or not able:
        return None
    best = min(able, key=lambda run: float(run["e2e_mean_s"]))
    return tuple(turns[name] / best[name] for name in ("ttft_mean_s", "tpot_mean_s", "e2e_mean_s"))  # type: ignore


# --- DistServe (arXiv 2401.09670) ------------------------------------------------------------------------------------


def distserve() -> dict[str, Answer]:
    """Predict goodput of pools of their own, and of instances that do both, for OPT-13B under the stated objectives."""
    slo = {"ttft_p90": "0.2 s", "tpot_p90": "0.1 s"}
    prefill, decode = {"tp": 2, "replicas": 1}, {"tp": 1, "replicas": 1}
    pools = {"disaggregated": True, "prefill": prefill, "decode": decode}
    pools_of_6 = {"disaggregated": True, "prefill": {**prefill, "replicas": 2}, "decode": {**decode, "replicas": 2}}
    free = {"handoff_overhead": 0.0, "prompt_overhead": 0.0, "request_overhead": 0.0, "intake_steps": 0.0}
    stated, ratios = [], []
    for lengths in CHAT:
        stated.append(most_rps("opt-13b", "dgx-a100", lengths, pools, slo=slo, changed=free) / 3)
        search = {"precision_weights": ["bf16"], "disaggregated": [True]}
        asked = question("opt-13b", "dgx-a100", {"process": "poisson"}, lengths, slo=slo, changed=free, search=search)
        best = plan(asked).prediction
        alone = most_rps(
            "opt-13b", "dgx-a100", lengths, {"tp": 1}, slo=slo, changed={**free, "batching": "prefill_first"}
        )
        if best and alone:
            ratios.append(best["requests_per_s"] / best["gpus"] / (alone / 8))
    where = "OPT-13B, chat lengths, no time to receive a request or to hand it over"
    baseline = "baseline: tp 1, prompts first and alone; the other models' objectives are not stated"
    ratio = swept(ratios, f"{where}; {baseline}")
    tighter = []
    for lengths, rate in product(CHAT, (0.25, 0.5, 1.0)):  # requests per second and accelerator
        alone, apart = (
            tightest(lengths, {"changed": {**free, "batching": mode}}, given, rate * gpus)
            for mode, given, gpus in (("prefill_first", {"tp": 1, "replicas": 6}, 6), ("chunked", pools_of_6, 6))
        )
        tighter += [alone / apart] if alone and apart else []
    scaled = swept(tighter, f"{where}; 0.25, 0.5 and 1 req/s per GPU; both objectives scaled alike; {baseline}")
    return {
        "distserve-01": ratio,
        "distserve-02": scaled,
        "distserve-03": ratio,
        "distserve-04": scaled,
        "distserve-05": swept(stated, f"{where}; prefill tp 2, decode tp 1"),
    }


def tightest(lengths: Mapping[str, float], others: Mapping[str, Any], given: Mapping[str, Any], rate: float) -> float:
    """Return the smallest factor of the objectives of OPT-13B that hold at a rate; 0 where requests pile up."""
    arrivals = {"process": "poisson", "rate_rps": rate}
    found = told(question("opt-13b", "dgx-a100", arrivals, lengths, given, **others))
    return max(found["ttft_p90_s"] / 0.2, found["tpot_p90_s"] / 0.1) if found else 0.0


# --- settings kept when the accelerator changes (arXiv 2408.01050) ---------------------------------------------------

TUNED_MODELS = ("mistral-7b", "llama-3.1-8b", "llama-2-13b", "qwen2.5-32b")
GENERATIONS = ("l40s-8", "dgx-a100", "dgx-h100", "dgx-h200")


def retuned() -> dict[str, Answer]:
    """Predict what the best settings of an accelerator gain over those that were best on another."""
    gains: dict[str, list[float]] = {"vllmhp-01": [], "vllmhp-02": []}
    for model, lengths in product(TUNED_MODELS, ({"isl": 500, "osl": 250}, {"isl": 2000, "osl": 500})):
        rates = [tuned(model, node, lengths) for node in GENERATIONS]
        for old, new in product(range(len(rates)), repeat=2):
            kept = max(rates[old], key=lambda setting: rates[old][setting])
            if old != new and kept in rates[new]:
                name = "vllmhp-01" if old < new else "vllmhp-02"
                gains[name].append(100 * (max(rates[new].values()) / rates[new][kept] - 1))
    where = (
        f"vLLM, all requests at once, {listed(TUNED_MODELS)} on {listed(GENERATIONS)}; tp 1, 2, 4, sequences, tokens"
    )
    return {name: replace(swept(values, where), value=float(np.mean(values))) for name, values in gains.items()}


def tuned(model: str, node: str, lengths: Mapping[str, float]) -> dict[tuple[int, ...], float]:
    """Return the throughput of an accelerator at every tensor-parallel size, number of sequences and of tokens."""
    limits = {"tp": [1, 2, 4], "disaggregated": [False], "replicas": [1], "max_num_seqs": [16, 32, 64, 128, 256, 512]}
    asked = question(model, node, "offline", lengths, objective="output_tokens_per_s_per_gpu", search=limits)
    with np.errstate(all="ignore"):
        tables = search(asked).found
    columns = [POOL.index(name) for name in ("tp", "max_num_seqs", "max_num_batched_tokens")]
    found = {}
    for table in tables:
        for row, rate in enumerate(table.rate / table.gpus):
            found[tuple(int(table.pools[0][column, row]) for column in columns)] = float(rate)
    return found


# --- speculation and fused generation --------------------------------------------------------------------------------


def clients(model: str, node: str, lengths: Mapping[str, float], count: int, **others: Any) -> float:
    """Return requests answered per second, with so many clients at one accelerator."""
    given = {"tp": 1, "replicas": 1} | others.pop("given", {})
    found = told(question(model, node, {"concurrency": count}, lengths, given, **others))
    return float(found["requests_per_s"]) if found else float("nan")


def together() -> dict[str, Answer]:
    """Predict batches over single sequences: with drafts, and of small models."""
    drafted = []
    for model, node, accepted in product(("qwen3-8b", "llama-7b"), ("dgx-a100", "dgx-h100"), (0.6, 0.8)):
        speculative = {"acceptance": accepted, "draft_cost": 0.1}
        rates = [
            clients(model, node, {"isl": 300, "osl": 128}, n, given={"draft_tokens": 5}, speculative=speculative)
            for n in (1, 8)
        ]
        drafted.append(rates[1] / rates[0])
    fused: dict[str, list[float]] = {}
    for model, count in product(("gptj-6b", "llama-7b"), (16, 32)):
        rates = [
            clients(
                model, "dgx-a100", {"isl": 8, "osl": 504}, n, changed={"prompt_overhead": 0.0, "request_overhead": 0.0}
            )
            for n in (1, count)
        ]
        fused.setdefault(model, []).append(rates[1] / rates[0])
    inputs = "A100 and H100, acceptance 0.6 and 0.8, a draft 0.1 of a step; 300 in"
    requests_ = "16 and 32 requests at once on A100; baseline: one after the other"
    return {
        "batchspec-01": swept(drafted, inputs),
        "flover-01": swept(fused["gptj-6b"], requests_),
        "flover-02": swept(fused["llama-7b"], requests_),
    }


# --- the table -------------------------------------------------------------------------------------------------------

NOT_PREDICTED = {
    "tokenweave-05": "a fused kernel of all-reduce and norm",
    "tokenweave-06": "how many units a collective needs",
    "nanoflow-06": "the host software of the runs",
    "sarathi-02": "lengths, and the pipeline's bubbles of unequal steps",
    "batchspec-02": "software cost of aligning ragged batches",
    "m2r2-01": "acceptance and cost of the drafts",
    "drllm-01": "routing around layers",
    "wan-01": "models of images and video",
}

LACKING = {
    "Llumnix": "requests dealt out by load and moved between instances",
    "APEX": "the traces, and plans of other tools",
    "Speculative MoE": "locality of predicted routing",
    "PCPP": "models of images",
    "Video-Infinity": "models of video",
    "SwiftDiffusion": "models of images",
    "ASGDiffusion": "models of images; no number",
    "DNN server overheads": "decoding of images by the host",
}


def lines(claims: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return a line for every claim about serving."""
    # the last two are in papers_kv_serve.py
    systems = {"TokenWeave": True, "Layered prefill": True, "BatchLLM": False, "FastSwitch": False}
    mine = [claim for claim in claims if systems.get(claim["system"], claim["planner"] == "serve")]
    answers = weaved(mine) | nano() | sarathi(mine) | layered() | side_by_side() | distserve() | retuned() | together()
    found = []
    for claim in mine:
        name = claim["claim_id"]
        missing = NOT_PREDICTED.get(name) or LACKING.get(claim["system"], "")
        found.append(line(claim, answers.get(name), missing))
    return found


if __name__ == "__main__":
    show(lines(read()))
