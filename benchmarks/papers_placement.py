"""Claims of papers about configurators that know uneven links, beside what the planners say of system and baseline.

Reads the claims from ``papers/claims.csv`` in the folder that ``PERFMODEL_DATA`` names (default ``../shared/data``) and
prints a table. Neither matrices nor models nor batches are stated: they are swept. A pair's rate is the nominal one
times exp(-s |z|), z normal, and a node's that with s/2; s is swept.

System: of the plans that the training planner lists, the one whose step is shortest in its best order of nodes.
Baselines: the plan that is best on links of the nominal rate, in the default order; for Varuna of those without tensor
parallelism.

    python benchmarks/papers_placement.py
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from hardware.yaml_source import Source
from perfmodel.placement_step import network_rate
from solvers.placement import plan as plan_order
from solvers.placement_scenario import load_placement
from solvers.scenario import load_train
from solvers.train import plan as plan_training

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data"))
CLUSTERS = {"dgx-1v": "fp16", "dgx-a100-40gb": "bf16"}
"""Nodes of eight V100 and of eight A100, sixteen of each, and the precision they train in."""
MODELS, BATCHES, NODES = ("megatron-3.6b", "megatron-7.5b"), (128, 512), 16
PLAIN: dict[str, Any] = {"cp": [1], "vpp": [1], "zero_stage": [0], "offload": ["none"], "seq_parallel": [False]}
"""Search: tensor, pipeline and data parallel ranks on plain 1F1B, as these papers do."""
UNEVEN = (0.1, 0.3, 0.6)
TOP, SECONDS = 12, 0.5


def matrix(rate: float, uneven: float, seed: int) -> str:
    """Write rates between nodes, at most the nominal one [GB/s]."""
    random = np.random.default_rng(seed)
    node = np.exp(-uneven * np.abs(random.standard_normal(NODES)) / 2)
    rates = rate / 1e9 * np.exp(-uneven * np.abs(random.standard_normal((NODES, NODES))))
    rates = rates * np.minimum(node[:, None], node[None, :])
    names = [f"n{place}" for place in range(NODES)]
    rows = [",".join([name, *(f"{value:.4f}" for value in row)]) for name, row in zip(names, rates, strict=True)]
    return "\n".join([",".join(["GB/s", *names]), *rows]) + "\n"


def plans(question: dict[str, Any], **search: Any) -> list[tuple[dict[str, Any], float]]:
    """List the best plan of each layout, and its step on links of the nominal rate [s]."""
    answer = plan_training(load_train(Source("claim", {**question, "search": search}), Path()), top=TOP)
    if answer.plan is None or answer.prediction is None:
        return []
    listed = [{"plan": answer.plan, "prediction": answer.prediction}, *answer.alternatives]
    return [(one["plan"], one["prediction"]["step_time_s"]) for one in listed]


def steps(question: dict[str, Any], one: dict[str, Any], table: str) -> tuple[float, float]:
    """Return the step in the best order and in the default one [s]."""
    asked = {"kind": "placement", "bandwidth": table, "traffic": {"plan": {**question, "plan": one}}}
    said = plan_order(load_placement(Source("claim", asked), Path()), time_limit_s=SECONDS).prediction
    assert said is not None
    return said["step_time_s"], said["default_step_time_s"]


def gains() -> tuple[list[float], list[float], list[float]]:
    """Sweep what is not stated: speed over both baselines, and of the order alone."""
    amp, varuna, alone = [], [], []
    for cluster, precision in CLUSTERS.items():
        for model in MODELS:
            for batch in BATCHES:
                workload = {"seq_len": 2048, "global_batch": batch, "precision": precision}
                question = {"kind": "train", "cluster": cluster, "nodes": NODES, "model": model, "workload": workload}
                listed, without = plans(question, **PLAIN), plans(question, **PLAIN, tp=[1])
                rate = network_rate(load_train(Source("claim", question), Path()).job)
                for seed, uneven in enumerate(UNEVEN):
                    table = matrix(rate, uneven, seed)
                    ordered, default = steps(question, listed[0][0], table)
                    best = ordered
                    for one, nominal in listed[1:]:
                        if nominal >= best:  # no matrix makes it faster
                            break
                        best = min(best, steps(question, one, table)[0])
                    amp.append(default / best)
                    alone.append(default / ordered)
                    if without:
                        varuna.append(steps(question, without[0][0], table)[1] / best)
    return amp, varuna, alone


def row(name: str, claim: dict[str, str], found: list[float], inputs: str) -> str:
    """Write a line: a claim of "up to" is inside if the sweep reaches it, and touches if its end is within 10 %."""
    median, low, high = float(np.median(found)), min(found), max(found)
    stated = float(claim["value_high"]) if claim["value_high"] else None
    verdict = "no number to reach"
    if stated is not None:
        inside, near = low <= stated <= high, abs(min((low, high), key=lambda end: abs(end - stated)) / stated - 1)
        verdict = "inside" if inside else "touches within 10 %" if near <= 0.1 else "miss"
        verdict += f" (highest {100 * (high / stated - 1):+.0f} %)"
    said = f"{stated:g} x ({claim['stated_as']})" if stated is not None else "significant, no number"
    return f"| {name} | {said} | {median:.3g} [{low:.3g}, {high:.3g}] x | {verdict} | {inputs} |"


def main() -> None:
    """Print the table as Markdown."""
    path = DATA / "papers" / "claims.csv"
    if not path.is_file():
        print(f"skipped: no {path}; set PERFMODEL_DATA")
        return
    with path.open(encoding="utf-8", newline="") as file:
        claims = {line["claim_id"]: line for line in csv.DictReader(file) if line["system"] == "Pipette"}
    amp, varuna, alone = gains()
    swept = (
        f"16 nodes of 8 V100-32 or A100-40, {' and '.join(MODELS)}, batch {' or '.join(map(str, BATCHES))} "
        f"of 2,048 tokens, rates of pairs and nodes below nominal by exp(-s z), s = {', '.join(map(str, UNEVEN))}"
    )
    order = f"the order alone, same plan: {np.median(alone):.3g} [{min(alone):.3g}, {max(alone):.3g}] x"
    print("| claim_id | claim | prediction | verdict | inputs assumed |\n| --- | --- | --- | --- | --- |")
    print(row("pipette-01", claims["pipette-01"], amp, f"{swept}; {order}"))
    print(row("pipette-02", claims["pipette-02"], varuna, "as pipette-01; baseline without tensor parallelism"))
    print(row("pipette-03", claims["pipette-03"], amp, "as pipette-01"))
    print("\n| s | over AMP | over Varuna | the order alone |\n| --- | --- | --- | --- |")
    for place, uneven in enumerate(UNEVEN):
        told = [found[place :: len(UNEVEN)] for found in (amp, varuna, alone)]
        cells = [f"{np.median(found):.3g} [{min(found):.3g}, {max(found):.3g}] x" for found in told]
        print(f"| {uneven} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
