"""Claims of papers about which accelerators to rent, beside what the planner says of system and baseline.

    python benchmarks/papers_fleet.py

Claims are read from ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). Throughputs are predicted;
what a paper does not state is swept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from claims import Answer, line, read, show, swept

from hardware.catalogue import resolve_cluster
from hardware.yaml_source import Source
from solvers.fleet_case import Case
from solvers.fleet_others import single_kind
from solvers.fleet_scenario import load_fleet
from solvers.fleet_search import cheapest

PRICES = {"l4": 0.7, "a10g": 1.01, "a100-80gb-sxm": 3.67, "h100-80gb-sxm": 7.516}
"""Of one accelerator, Melange's (arXiv 2404.14527) [USD/h]."""
CHAT = ((25, 100, 0.3), (100, 250, 0.3), (250, 400, 0.2), (500, 300, 0.15), (1000, 400, 0.05))
DOCUMENTS = ((2000, 200, 0.4), (4000, 250, 0.4), (8000, 300, 0.2))
"""Tokens in, tokens out and share of the requests."""
MIXED = tuple((isl, osl, 0.8 * share) for isl, osl, share in CHAT) + tuple(
    (isl, osl, 0.2 * share) for isl, osl, share in DOCUMENTS
)
RATES = (1.0, 4.0, 16.0, 32.0)
PATIENCE_S = 20.0


def case_of(accelerators: Sequence[dict[str, Any]], classes: Sequence[dict[str, Any]], **others: Any) -> Case:
    """Return a question about a fleet as numbers, with every throughput predicted."""
    parts = {"kind": "fleet", "accelerators": list(accelerators), "workload": {"classes": list(classes)}} | others
    return load_fleet(Source("claims", parts), Path()).case


def least(case: Case) -> float | None:
    """Return the least cost of a fleet [USD/h]; None where there is none."""
    found = cheapest(case, None, time.perf_counter() + PATIENCE_S).fleet
    return None if found is None else float(found.cost(case).sum())


# --- Melange (arXiv 2404.14527) --------------------------------------------------------------------------------------


def melange() -> dict[str, Answer]:
    """Sweep lengths, rates and objectives: what a mix saves against each kind alone that serves everything."""
    savings = []
    sizes = list(dict.fromkeys((isl, osl) for isl, osl, _ in CHAT + DOCUMENTS))
    offers = [
        {"name": name, "price_usd_per_hour": price, "accelerators_per_instance": 1} for name, price in PRICES.items()
    ]
    for tpot_s in (0.04, 0.12):
        classes = [{"isl": isl, "osl": osl, "rate_rps": 1.0} for isl, osl in sizes]
        case = case_of(offers, classes, model="llama-2-7b", slo={"tpot_mean": tpot_s})
        for lengths, rate in product((CHAT, DOCUMENTS, MIXED), RATES):
            shares = {(isl, osl): share for isl, osl, share in lengths}
            asked = replace(case, rate=case.rate * [[rate * shares.get(size, 0.0)] for size in sizes])
            best = least(asked)
            for alone in single_kind(asked, time.perf_counter() + PATIENCE_S) if best else ():
                savings.append(100 * (1 - best / float(alone.cost(asked).sum())))
    inputs = "Llama-2-7B, chat, documents or 4 : 1 of both, 1-32 requests/s, 40 or 120 ms a token; against each alone"
    return {"melange-01": swept(savings, inputs)}


# --- Agentic AI heterogeneous systems (arXiv 2507.19635) -------------------------------------------------------------


def agentic() -> dict[str, Answer]:
    """Sweep prices, graphs and limits: older and other accelerators for an agent's calls over the newest alone."""
    ratios = []
    steps = [
        {"name": "plan", "isl": 1500, "osl": 100, "model": "llama-3.1-70b"},
        {"name": "look-up", "isl": 3000, "osl": 150, "model": "llama-3.1-8b"},
        {"name": "write", "isl": 6000, "osl": 500, "model": "llama-3.1-70b"},
    ]
    calls = [
        {"name": "plan", "class": "plan"},
        {"name": "search", "class": "look-up", "count": 3, "after": ["plan"]},
        {"name": "write", "class": "write", "after": ["search"]},
    ]
    h100 = PRICES["h100-80gb-sxm"]
    for latency_s in (40.0, 90.0):
        graph = {"name": "agent", "rate_rps": 20.0, "latency": latency_s, "calls": calls}
        for newest, other in product((1.4, 2.0), (0.4, 0.6)):
            prices = {"b200-sxm": newest * h100, "h100-80gb-sxm": h100, "gaudi3": other * h100}
            offers = [
                {"name": name, "price_usd_per_hour": price, "utilisation_max": 0.9} for name, price in prices.items()
            ]
            parts = {"slo": {"tpot_mean": 0.05}, "engine": "vllm"}
            workload = {"classes": steps, "graphs": [graph]}
            new = least(case_of(offers[:1], steps, **parts, workload=workload))
            mixed = least(case_of(offers[1:], steps, **parts, workload=workload))
            if new and mixed:
                ratios.append(mixed / new)
    inputs = (
        "agent of 5 calls to 70B and 8B models in 40 or 90 s, 20 a second; H100 and Gaudi 3 over B200 alone, Gaudi 3 "
        "at 0.4 or 0.6, B200 at 1.4 or 2 times the price of an H100"
    )
    return {"agentic-01": swept(ratios, inputs)}


# --- IC-Cache (arXiv 2501.12689) -------------------------------------------------------------------------------------


@lru_cache
def served(model: str, prompt: int) -> tuple[float, float]:
    """Return requests per second of an H100, and the time of one at half of that [s]."""
    offers = [{"name": "h100-80gb-sxm", "price_usd_per_hour": 1.0, "utilisation_max": 0.5}]
    classes = [{"isl": prompt, "osl": 250, "rate_rps": 1.0}]
    case = case_of(offers, classes, model=model, slo={"tpot_mean": 0.1, "ttft_mean": 2.0})
    each = case.throughput[0] / case.pool_size
    best = int(each.argmax())
    return float(each[best]), float(case.latency_s[0, best])


def cached_examples() -> dict[str, Answer]:
    """Sweep pairs of models, shares and lengths of examples: requests that a small model answers with examples."""
    rates, times = [], []
    pairs = (("gemma-2-27b", "gemma-2-2b"), ("llama-3.1-70b", "llama-3.1-8b"), ("qwen2.5-32b", "qwen2.5-7b"))
    for (large, small), examples, share in product(pairs, (500, 2000), (0.3, 0.5, 0.7, 0.9)):
        (one, one_s), (other, other_s) = served(large, 300), served(small, 300 + examples)
        rates.append(1 / ((1 - share) + share * one / other))
        times.append(100 * share * (1 - other_s / one_s))
    inputs = (
        "Gemma-2 27B and 2B, Llama-3.1 70B and 8B, Qwen2.5 32B and 7B on H100, 300 tokens in and 250 out, 500 or 2,000 "
        "of examples, 30-90 % of the requests to the small one"
    )
    return {
        "iccache-01": swept(rates, inputs),
        "iccache-02": swept(times, f"{inputs}, each as busy as its objectives allow"),
    }


def loading() -> str:
    """Return how much sooner weights are there from another node than from disk, which bounds what scaling gains."""
    node = resolve_cluster("dgx-h100", Path(), 1).node
    disk = next(tier.read * tier.count for tier in node.tiers if tier.name == "nvme")
    gain = node.nics.count * node.nics.bandwidth / disk
    return f"weights alone come {gain:.0f} x sooner from another node of H100 than from disk"


NOT_PREDICTED = {
    "burstgpt-01": "nothing; a property of the trace",
    "burstgpt-02": "nothing; a property of the trace",
    "c4-01": "rates of failures, of which none is given",
    "elasticmoe-01": "start-up times of engines, of which none is measured",
    "elasticmoe-02": "start-up times of engines, of which none is measured",
    "elliesql-01": "shares of questions by pipeline, and tokens of each",
    "flightllm-02": "a processor of programmable logic, which is not described",
    "iccache-03": "nothing; a property of the requests",
    "llumnix-03": "requests that move between instances while they are answered",
    "mobile-01": "telephones, of which none is described",
    "mobile-02": "services behind a network, of which none is described",
}
LACKING = {
    "CloudFormer": "a model learned from 206 metrics of virtual machines",
    "Serverless cold starts": "nothing; a property of the trace",
}
ELSEWHERE = ("lamina-01",)
"""Claims that another table has."""


def lines(claims: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every claim about fleets, with its ``answer`` (None where nothing is predicted)."""
    answers = melange() | agentic() | cached_examples()
    for claim in claims:
        name = claim["claim_id"]
        if claim["planner"] == "fleet" and name not in ELSEWHERE:
            missing = NOT_PREDICTED.get(name) or LACKING.get(claim["system"], "")
            yield line(claim, answers.get(name), missing, loading() if name == "elasticmoe-01" else "")


def main() -> None:
    """Print the table as Markdown."""
    if claims := read():
        show(lines(claims))


if __name__ == "__main__":
    main()
