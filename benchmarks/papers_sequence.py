"""What papers on unequal sequences claim, beside what the planner says of system and baseline: a table for papers.md.

    python benchmarks/papers_sequence.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). System and baseline share hardware
description, model and batch. No paper publishes its lengths as numbers: log-normal stand-ins are drawn for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from claims import Answer, line, number, read, show, swept

from hardware.catalogue import description, resolve_cluster
from hardware.yaml_source import Source
from perfmodel.sequence import STYLES
from solvers.sequence import planned
from solvers.sequence_answer import described
from solvers.sequence_case import Case, Integers, Scatter, Schedule, makespan
from solvers.sequence_scenario import SequenceScenario, load_sequence
from solvers.sequence_static import plan_static

LENGTHS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "Wikipedia": ((1.0, 500, 1.2),),
    "CommonCrawl": ((1.0, 1200, 1.3),),
    "GitHub": ((0.9, 2500, 0.8), (0.1, 20_000, 1.2)),
    "ArXiv": ((1.0, 12_000, 0.8),),
}
"""Stand-ins for lengths of kinds of text: share, median [tokens] and spread of log-normal parts."""


def drawn(kind: str, longest: int, count: int, seed: int) -> Integers:
    """Draw lengths of a kind of text; longer ones than `longest` are dropped, as trainers do, and others drawn."""
    random = np.random.default_rng(seed)
    shares, medians, spreads = zip(*LENGTHS[kind], strict=True)
    part = random.choice(len(shares), 2 * count, p=shares)
    found = np.exp(random.normal(np.log(medians)[part], np.array(spreads)[part]))
    return np.maximum(found[found <= longest][:count], 32).astype(np.int64)


def filling(kind: str, longest: int, tokens: float, seed: int) -> Integers:
    """Draw lengths until a batch has so many tokens."""
    found = drawn(kind, longest, int(tokens / 500), seed)
    return found[: np.searchsorted(found.cumsum(), tokens)]


def asked(
    machine: str | dict[str, Any],
    nodes: int,
    model: Any,
    layout: dict[str, Any],
    search: dict[str, Any],
    framework: str = "deepspeed",
) -> SequenceScenario:
    """Return the question with its costs; lengths come later."""
    question = {"kind": "sequence", "cluster": machine, "nodes": nodes, "model": model, "framework": framework}
    question |= {"workload": {"lengths": [1]}, "layout": layout, "search": search}
    return load_sequence(Source("claim", question), Path())


def gpt(name: str, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """Describe a GPT with rotary positions."""
    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "ffn": 4 * hidden, "vocab": 50_257}
    return {"name": name, **sizes, "gated": False, "bias": True, "norm": "layernorm"}


def one_size(case: Case, degree: int) -> Case:
    """Return the case with groups of one size alone."""
    kind = int(np.searchsorted(case.degrees, degree))
    return replace(
        case,
        degrees=case.degrees[kind : kind + 1],
        work_s=case.work_s[:, kind : kind + 1],
        fixed_s=case.fixed_s[kind : kind + 1],
    )


def holding(scenario: SequenceScenario, longest: int) -> list[int]:
    """Return the sizes of a group that hold a sequence of the longest length and run it."""
    costs = scenario.costs
    runs = np.isfinite(costs.of(np.array([float(longest)]))[0])
    return costs.degrees[runs & (costs.degrees * costs.capacity_tokens >= longest)].tolist()


def best(scenario: SequenceScenario, case: Case, seconds: float) -> tuple[Scatter, float, float]:
    """Return the best plan of the schedules allowed, its makespan and the bound [s]."""
    found = planned(scenario, case, seconds)
    one = min(found, key=lambda plan: plan.makespan_s)
    return one.plan, one.makespan_s, min(plan.bound_s for plan in found)


def context_share(scenario: SequenceScenario, case: Case, plan: Scatter) -> float:
    """Return the share of context-parallel communication in a step [%]."""
    _, tree = described(scenario, case, plan)

    def seconds(node: dict[str, Any]) -> float:
        own = node["seconds"] if node["name"] == "context-parallel communication" else 0.0
        return float(own) + sum(seconds(child) for child in node.get("children", ()))

    return 100 * seconds(tree) / float(tree["seconds"])


# --- FlexSP (arXiv 2412.01523) ---------------------------------------------------------------------------------------

FLEXSP = {
    "7B": gpt("GPT-7B", 4096, 32, 64),
    "13B": gpt("GPT-13B", 5120, 40, 64),
    "30B": gpt("GPT-30B", 6656, 60, 64),
}
FLEXSP_TEXTS = ("Wikipedia", "CommonCrawl", "GitHub")
BATCHES, SEQUENCES = 3, 512


@dataclass(frozen=True)
class Static:
    """Batches planned with groups of one size.

    Parameters
    ----------
    seconds : float
        Time of all steps [s].
    plans : list of Scatter
        Of each batch.
    """

    seconds: float
    plans: list[Scatter]


@lru_cache
def flexsp_cluster() -> dict[str, Any]:
    """Describe nodes of eight A100-40GB with 400 Gbit/s of InfiniBand a node."""
    found = description(resolve_cluster("dgx-a100-40gb", Path(), 8))
    found["node"]["nics"]["bandwidth"] = 400e9 / 8 / found["node"]["nics"]["count"]
    return found


def flexsp_costs(
    model: str, longest: int, layout: dict[str, Any], search: dict[str, Any], framework: str
) -> SequenceScenario | None:
    """Return the costs of a model, recomputed where the longest sequence needs it; None where that does not help."""
    for recompute in ("none", "full"):
        known = layout | {"recompute": recompute}
        found = asked(flexsp_cluster(), 8, FLEXSP[model], known, search, framework)
        if holding(found, longest):
            return found
    return None


def system(model: str, longest: int) -> SequenceScenario:
    """Return the costs of FlexSP: Ulysses, ZeRO-3, groups of powers of two, micro-batches with a barrier."""
    search = {"styles": ["ulysses"], "schedule": ["one-shot", "barrier"]}
    found = flexsp_costs(model, longest, {"zero_stage": 3}, search, "deepspeed")
    assert found is not None
    return found


def static(scenario: SequenceScenario, longest: int, batches: list[Integers], schedule: Schedule) -> list[Static]:
    """Plan batches with each size that holds the longest sequence, filled longest first."""
    found = []
    outside = sum(scenario.costs.outside_s.values())
    for degree in holding(scenario, longest):
        cases = [scenario.batch(lengths).case for lengths in batches]
        plans = [plan_static(one_size(case, degree), schedule)[0] for case in cases]
        seconds = sum(makespan(case, plan) + outside for case, plan in zip(cases, plans, strict=True))
        found.append(Static(seconds, plans))
    return found


@lru_cache
def megatron_costs(model: str, longest: int, tp: int, styles: tuple[str, ...]) -> SequenceScenario | None:
    """Return the costs of Megatron-LM: tensor parallel, ZeRO-1, groups that accumulate on their own."""
    search = {"styles": list(styles), "schedule": ["fixed"]}
    return flexsp_costs(model, longest, {"zero_stage": 1, "tp": tp}, search, "megatron-lm")


def megatron(model: str, longest: int, batches: list[Integers], styles: tuple[str, ...]) -> float:
    """Return the time of the best static tensor and context parallel sizes of Megatron-LM, ZeRO-1 [s]."""
    totals = []
    for tp in (1, 2, 4, 8):
        scenario = megatron_costs(model, longest, tp, styles)
        if scenario is not None:
            totals += [one.seconds for one in static(scenario, longest, batches, "fixed")]
    return min(totals, default=np.inf)


def flexsp() -> tuple[dict[str, Answer], dict[str, str]]:
    """Predict the claims of FlexSP: gain over static sizes, shares of the all-to-all, planning."""
    over_ulysses: dict[str, list[float]] = {text: [] for text in FLEXSP_TEXTS}
    over_megatron: dict[str, list[float]] = {text: [] for text in FLEXSP_TEXTS}
    over_newest: dict[str, list[float]] = {text: [] for text in FLEXSP_TEXTS}
    static_shares, own_shares, spent, gaps, recomputed, unheld = [], [], [], [], [], []
    for model in FLEXSP:
        for longest in (196_608, 393_216):
            scenario = system(model, longest)
            if scenario.question.layout.recompute != "none":
                recomputed.append(f"{model} at {longest // 1024}k")
            outside = sum(scenario.costs.outside_s.values())
            for text in FLEXSP_TEXTS:
                batches = [drawn(text, longest, SEQUENCES, seed) for seed in range(BATCHES)]
                best_static = min(static(scenario, longest, batches, "barrier"), key=lambda one: one.seconds)
                own = 0.0
                for lengths, plan in zip(batches, best_static.plans, strict=True):
                    one, began = scenario.batch(lengths), time.perf_counter()
                    found, seconds, bound = best(one, one.case, 1.0)
                    spent.append(time.perf_counter() - began)
                    gaps.append(100 * (1 - bound / seconds))
                    own += seconds + outside
                    static_shares.append(context_share(one, one.case, plan))
                    own_shares.append(context_share(one, one.case, found))
                over_ulysses[text].append(best_static.seconds / own)
                other = megatron(model, longest, batches, ("ring",))
                if np.isfinite(other):
                    over_megatron[text].append(other / own)
                    over_newest[text].append(megatron(model, longest, batches, STYLES) / own)
                elif f"{model} at {longest // 1024}k" not in unheld:
                    unheld.append(f"{model} at {longest // 1024}k")
    setting = (
        "7B, 13B, 30B with 64 heads, to 192k or 384k tokens, three batches of 512 stand-in lengths; ZeRO-3, Ulysses, "
        "micro-batches with a barrier; " + (f"full recomputation of {', '.join(recomputed)}" if recomputed else "")
    )
    ulysses = "baseline: the best one size that holds the longest length allowed, filled longest first"
    tensor = (
        "as flexsp-02; baseline: the best tp and ring size that hold the longest length, ZeRO-1, no barrier, filled "
        "longest first" + (f"; held by none: {', '.join(unheld)}" if unheld else "")
    )
    by_text = "; ".join(f"{text} {min(g):.2f}-{max(g):.2f}" for text, g in over_ulysses.items())
    every = [gain for gains in (*over_ulysses.values(), *over_megatron.values()) for gain in gains]
    answers = {
        "flexsp-01": swept(every, "flexsp-02 to flexsp-05 together"),
        "flexsp-02": swept(chain(*over_ulysses.values()), f"{setting}; {ulysses}; {by_text}"),
        **{
            name: swept(over_megatron[text], f"{said}; with any style {median_span(over_newest[text])}")
            for name, text, said in (
                ("flexsp-03", "Wikipedia", tensor),
                ("flexsp-04", "CommonCrawl", "as flexsp-03"),
                ("flexsp-05", "GitHub", "as flexsp-03"),
            )
        },
        "flexsp-06": swept(static_shares, "batches of flexsp-02, the baseline's plans"),
        "flexsp-07": swept(own_shares, "batches of flexsp-02, our plans"),
        "flexsp-10": bucketing(),
    }
    planning = (
        f"ours: {number(float(np.median(spent)))} s a batch on one core for a proven gap of "
        f"{np.median(gaps):.1f} [{min(gaps):.1f}, {max(gaps):.1f}] %"
    )
    return answers, {"flexsp-09": planning}


def median_span(values: Sequence[float]) -> str:
    """Write the median of a sweep and its ends."""
    return f"{number(float(np.median(values)))} [{number(min(values))}, {number(max(values))}]"


def bucketing() -> Answer:
    """Round lengths up to 16 buckets a micro-batch, by the paper's dynamic program and of equal width."""
    errors, equal = [], []
    room = 64 * system("7B", 196_608).costs.capacity_tokens
    for text in FLEXSP_TEXTS:
        for seed in range(BATCHES):
            lengths = np.sort(drawn(text, 196_608, SEQUENCES, seed)).astype(float)
            total = lengths.sum()
            cuts = np.searchsorted(
                lengths.cumsum(), total * np.arange(1, np.ceil(total / room)) / np.ceil(total / room)
            )
            lost = wide = 0.0
            for part in np.split(lengths, cuts):
                lost += least_rounding(part, 16)
                tops = np.linspace(part[0], part[-1], 17)[1:]
                wide += (tops[np.minimum(np.searchsorted(tops, part), 15)] - part).sum()
            errors.append(100 * lost / total)
            equal.append(100 * wide / total)
    inputs = "batches of flexsp-02 to 192k, sorted and cut into as few micro-batches as memory allows"
    return swept(errors, f"{inputs}; buckets of equal width: {min(equal):.1f}-{max(equal):.1f} %")


def least_rounding(lengths: np.ndarray, buckets: int) -> float:
    """Return the least sum of what ascending lengths lack to the largest of their bucket [tokens]."""
    before = np.concatenate([[0.0], lengths.cumsum()])
    count = len(lengths)
    lost = np.full(count + 1, np.inf)
    lost[0] = 0.0
    for _ in range(buckets):
        lost = np.array(
            [0.0]
            + [
                np.min(lost[:k] + (k - np.arange(k)) * lengths[k - 1] - (before[k] - before[:k]))
                for k in range(1, count + 1)
            ]
        )
    return float(lost[count])


# --- ByteScale (arXiv 2502.21231) ------------------------------------------------------------------------------------

CONTEXTS = tuple(2**power * 1024 for power in (8, 9, 10, 11))


def in_order(case: Case, degree: int, context: int) -> float:
    """Return the time of a static mesh that packs sequences as they come and deals the packs out in turn [s]."""
    single = one_size(case, degree)
    groups = case.gpus // degree
    pack = np.zeros(len(case.lengths), dtype=np.int64)
    held = number_of = 0
    for place, length in enumerate(case.lengths.tolist()):
        if held + length > context:
            held, number_of = 0, number_of + 1
        pack[place], held = number_of, held + length
    packs = np.bincount(pack, single.work_s[:, 0]) + single.fixed_s[0]
    return float(np.bincount(np.arange(len(packs)) % groups, packs).max())


def bytescale() -> tuple[dict[str, Answer], dict[str, str]]:
    """Predict the claims of ByteScale: 1,024 GPUs, 32M tokens a batch, contexts of 256k to 2M."""
    gains, static_losses, own_losses, ranks, notes = [], [], [], [], []
    for machine in ("dgx-h100", "hgx-h800"):
        search = {"styles": ["ring"], "schedule": ["fixed", "splits"]}
        scenario, offloading = (
            asked(machine, 128, "llama-2-7b", {"zero_stage": 1, "recompute": "none", "offload": leaving}, search)
            for leaving in ("none", "activations")
        )
        capacity = scenario.costs.capacity_tokens
        ranks.append(np.ceil(768 * 1024 / capacity))
        rates: dict[str, list[float]] = {"balanced": [], "in order": [], "own": []}
        for context in CONTEXTS:
            lengths = filling("GitHub", context, 32e6, 0)
            one = scenario.batch(lengths)
            degree = min(holding(scenario, context))
            balanced = makespan(one.case, plan_static(one_size(one.case, degree), "fixed")[0])
            naive = in_order(one.case, degree, context)
            other = offloading.batch(lengths)
            _, own, _ = best(other, other.case, 8.0)
            outside = sum(scenario.costs.outside_s.values())
            gains.append((context, (balanced + outside) / (own + outside), (naive + outside) / (own + outside)))
            for name, seconds in (("balanced", balanced), ("in order", naive), ("own", own)):
                rates[name].append(float(lengths.sum()) / (seconds + outside))
        static_losses += [a / b for name in ("balanced", "in order") for a, b in pairwise(rates[name])]
        own_losses += [a / b for a, b in pairwise(rates["own"])]
        notes.append(f"{machine}: {capacity:,.0f} tokens a rank")
    longest = [gain for context, *both in gains if context == CONTEXTS[-1] for gain in both]
    setting = (
        "7B on 1,024 H100 or H800 (GPU not named), 32M tokens of stand-in GitHub lengths, ZeRO-1, activations "
        f"offloaded, {'; '.join(notes)}; baseline: ring over the least size that holds the context, no offload, "
        "packed in order or balanced"
    )
    every = [gain for _, *both in gains for gain in both]
    by_context = "; ".join(
        f"{context // 1024}k {min(found):.2f}-{max(found):.2f}"
        for context in CONTEXTS
        for found in [[gain for other, *both in gains if other == context for gain in both]]
    )
    answers = {
        "bytescale-01": swept(every, f"{setting}; {by_context}"),
        "bytescale-02": swept(longest, "bytescale-01 at 2,048k"),
        "bytescale-04": swept(static_losses, "bytescale-01, both baselines, each doubling"),
        "bytescale-05": swept(own_losses, "bytescale-01, our plans, each doubling"),
        "bytescale-11": swept(ranks, f"one sequence of 768k tokens without offload; {'; '.join(notes)}"),
    }
    return answers, {}


# --- Zeppelin (arXiv 2509.21841) -------------------------------------------------------------------------------------


def zeppelin() -> dict[str, Answer]:
    """Predict groups by length over a ring around all GPUs: all sequences at once, 4,096 tokens a GPU."""
    every, arxiv, remapped = [], [], []
    for machine, nodes, model in (
        (machine, nodes, model)
        for machine in ("hgx-a800", "hgx-h800")
        for nodes in (2, 4, 8)
        for model in ("llama-2-7b", "llama-2-13b")
    ):
        recompute = "none" if model == "llama-2-7b" else "full"
        scenario = asked(
            machine,
            nodes,
            model,
            {"zero_stage": 3, "recompute": recompute},
            {"styles": ["ring"], "schedule": ["one-shot"], "remap": [False, True]},
        )
        gpus = 8 * nodes
        for text in ("ArXiv", "GitHub", "CommonCrawl"):
            own = ring = moved = 0.0
            for seed in range(BATCHES):
                one = scenario.batch(filling(text, 4096 * gpus // 2, 4096 * gpus, seed))
                both = planned(one, one.case, 1.0)
                own += min(plan.makespan_s for plan in both if not plan.plan.remapped)
                moved += min(plan.makespan_s for plan in both)
                ring += makespan(one.case, plan_static(one_size(one.case, gpus), "one-shot")[0])
            every.append(ring / own)
            if text == "ArXiv":
                arxiv.append(ring / own)
                remapped.append(ring / moved)
    setting = (
        "16-64 A800 or H800 (not stated), 7B or 13B, 4,096 tokens a GPU at once of stand-in lengths; baseline: ring "
        "around all of them"
    )
    return {
        "zeppelin-01": swept(every, f"{setting}; ArXiv, GitHub, CommonCrawl"),
        "zeppelin-02": swept(every, "as zeppelin-01"),
        "zeppelin-04": swept(
            arxiv, "zeppelin-01 of ArXiv; groups by length alone, without routing over other adapters"
        ),
        "zeppelin-05": swept(remapped, "as zeppelin-04; tokens moved for linear layers where that is faster"),
    }


# --- claims that are not predicted -----------------------------------------------------------------------------------

NOT_PREDICTED = {
    "flexsp-08": "the measured steps",
    "flexsp-09": "the solver's time",
    "bytescale-03": "the in-house lengths",
    "bytescale-06": "tp, pp and how micro-batches were dealt out before",
    "bytescale-07": "how sequences were dealt out before",
    "bytescale-08": "the lengths of the case",
    "bytescale-09": "the lengths of the case",
    "bytescale-10": "the lengths of the case",
    "zeppelin-06": "size of the message, adapters",
    "zeppelin-07": "size of the message, adapters",
    "rsa-01": "an encoder's memory (no causal mask), its heads and length",
    "rsa-02": "an encoder's memory (no causal mask), its heads and batch",
    "rsa-03": "sparse attention",
    "rsa-04": "sparse attention",
}


def lines(claims: Sequence[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Return a line for every claim of the sequence planner, with its ``answer`` (None where nothing is predicted)."""
    answers: dict[str, Answer] = {}
    beside: dict[str, str] = {}
    parts: tuple[Callable[[], tuple[dict[str, Answer], dict[str, str]]], ...] = (flexsp, bytescale)
    for part in parts:
        found, notes = part()
        answers |= found
        beside |= notes
    answers |= zeppelin()
    for claim in claims:
        if claim["planner"] == "sequence":
            name = claim["claim_id"]
            yield line(claim, answers.get(name), NOT_PREDICTED.get(name, ""), beside.get(name, ""))


def main() -> None:
    """Print the table as Markdown."""
    if claims := read():
        show(lines(claims))


if __name__ == "__main__":
    main()
