"""What papers on power claim, beside what the models predict: a table of docs/papers.md.

    python benchmarks/papers_power.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). What a paper does not state is swept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from claims import Answer, line, listed, read, show, swept

from hardware.catalogue import read_file, resolve_cluster
from hardware.yaml_source import Source
from perfmodel.architecture import load_architecture
from perfmodel.kernels.gemm import FORMS
from perfmodel.power import node_power_w, throttle_of
from perfmodel.power.capping import time_ratio
from perfmodel.power.load import demands
from perfmodel.power.served import ServerLaw, server_law
from perfmodel.power.throttle import dynamic_share, relative_clock
from perfmodel.serving.engine import engines
from perfmodel.serving.law import Demand
from perfmodel.serving.server import server
from perfmodel.serving.step import Deployment
from solvers.power import plan
from solvers.power_capped import Simulated
from solvers.power_scenario import PowerScenario, load_power
from solvers.serve import predict
from solvers.serve_scenario import load_serve

EXAMPLES = Path(__file__).parent.parent / "examples"
BUDGET_W, SERVERS, LATENCY_S = 260e3, 40, 40
"""Of the row that POLCA describes, and of its cap."""
LOADS, BURSTS = (0.35, 0.5, 0.65, 0.8), (0.25, 1.0)
"""Peak loads of the servers, and variances of the bursts over those of the hour of Azure's conversations."""
NEAR, LOW = (0.42, 0.47, 0.52), (0.3, 0.5, 0.7)
"""Peak loads at which 40 servers come near the published peak, and shares of low priority."""
WEEKS = 6.0
PROMPTS, ANSWERS = (512, 1155, 2048, 4096), (64, 211, 512)
LOWEST = 1110 / 1410
"""Lowest clock that POLCA sets over the highest [1]."""
WEEK_S = 7 * 86400


# --- POLCA (arXiv 2308.12908) ----------------------------------------------------------------------------------------


def row(peak_load: float, bursts: float, low: float = 0.5) -> PowerScenario:
    """Return the example of a row like POLCA's with another load, other bursts and another share of low priority."""
    source = read_file(EXAMPLES / "power-polca-row.yaml")
    data = {**source.data, "workloads": []}
    for workload in source.data["workloads"]:
        asked: dict[str, Any] = dict(workload["requests"])
        # the example has a quarter of the hour's variance
        variances = [4 * bursts * variance for variance in asked["bursts"]["variances"]]
        asked |= {"peak_load": peak_load, "bursts": {**asked["bursts"], "variances": variances}}
        share = low if workload["priority"] == "low" else 1 - low
        data["workloads"].append({**workload, "share": share, "requests": asked})
    return load_power(replace(source, data=data), EXAMPLES)


def week_w(scenario: PowerScenario) -> np.ndarray[Any, Any]:
    """Return a synthesised week of the whole row, in seconds [W]."""
    served = [draw.served for draw in scenario.draws]
    loads = [one.load for one in served if one is not None]
    pools, each = np.arange(len(loads)), np.full(len(loads), SERVERS // len(loads))
    return np.concatenate([piece.sum(axis=1) for piece in demands(loads, pools, each, WEEK_S, 1)])


def rise_w(watts: np.ndarray[Any, Any], latency_s: int) -> float:
    """Return the largest rise within so many seconds [W]."""
    windows = np.lib.stride_tricks.sliding_window_view(watts, latency_s + 1)
    return max(float((part.max(axis=1) - part[:, 0]).max()) for part in np.array_split(windows, 64))


def load_of_a_row() -> dict[str, Answer]:
    """Sweep a row's load and bursts: its peak and its rise."""
    peaks, rises = [], []
    for peak_load, bursts in product(LOADS, BURSTS):
        watts = week_w(row(peak_load, bursts))
        peaks.append(100 * float(watts.max()) / BUDGET_W)
        rises.append(100 * rise_w(watts, LATENCY_S) / BUDGET_W)
    inputs = (
        f"40 DGX A100 with Llama-2-70B at a peak load of {listed(LOADS)}; lengths of Azure's hour of conversations, "
        f"its variance of bursts x {listed(BURSTS)}; one synthesised week"
    )
    return {"polca-05": swept(peaks, inputs), "polca-07": swept(rises, inputs)}


def capped_row() -> dict[str, Answer]:
    """Plan the row with two thresholds: servers, loss by priority, and brakes of the example in simulated weeks."""
    added, high, low = [], [], []
    for peak_load, share in product(NEAR, LOW):
        scenario = row(peak_load, 0.25, share)
        prediction = plan(scenario).prediction
        assert prediction is not None
        added.append(100 * (prediction["servers"] / prediction["nameplate_servers"] - 1))
        loss = prediction["loss"]
        high.append(100 * (loss["chat"] or 0.0))
        low.append(100 * (loss["batch"] or 0.0))
    example = plan(row(0.47, 0.25), simulate=Simulated(weeks=WEEKS)).prediction
    assert example is not None
    seen = example["simulated"]
    inputs = (
        f"the row of polca-07 at a peak load of {listed(NEAR)}, {listed(LOW)} of low priority, a quarter of the hour's "
        "variance; rise of 11.8 % and losses of 1 and 2 % given as limits; thresholds and clocks our own"
    )
    brakes = f"{example['servers']} servers, the example simulated for {WEEKS:g} weeks at 1 s; highest second "
    brakes += f"{100 * seen['highest_w'] / seen['limit_w']:.1f} % of the budget"
    return {
        "polca-01": swept(added, inputs + "; baseline: nameplates, 40"),
        "polca-02": swept(high, inputs),
        "polca-03": swept(low, inputs),
        "polca-04": swept([float(seen["brakes"])], brakes),
    }


def training_peak() -> Answer:
    """Return what a node draws with all accelerators at their limits, of its rating."""
    machine = resolve_cluster("dgx-a100", Path(), 1)
    boards_w = machine.accelerator.power.limit * machine.node.accelerators.count
    assert machine.node.power is not None and machine.node.power.limit is not None
    share = 100 * float(node_power_w(machine.node, boards_w)) / machine.node.power.limit
    return swept([share], "a DGX A100 with all accelerators at 400 W, over its rating of 6.5 kW")


@lru_cache
def law(model: str, tp: int, prompt: int, answer: int) -> ServerLaw:
    """Return a DGX A100 that serves a model."""
    machine = resolve_cluster("dgx-a100", Path(), 1)
    found = server(
        load_architecture(model, Path()), machine, engines()["vllm"], precision_weights="fp16", precision_kv=None
    )
    return server_law(found, Deployment(tp=tp), Demand(float(prompt), float(answer)))


def clock_for(saving: float) -> float:
    """Return the clock at which an A100 at its limit draws so much less [1]."""
    throttle = throttle_of(resolve_cluster("dgx-a100", Path(), 1).accelerator)
    return float(relative_clock(1.0 - saving / (1.0 - throttle.static), throttle.voltage_floor))


def slowdown(model: str, tp: int, prompt: int, answer: int, clock: float) -> float:
    """Return the time of a request alone at a clock over that at the highest, less 1."""
    served = law(model, tp, prompt, answer)
    prompt_s = float(served.prompt_time_s(prompt))
    decode_s = (answer - 1) * float(served.step_s[1])
    slower = prompt_s * time_ratio(clock, served.prompt_share) + decode_s * time_ratio(clock, served.decode_share)
    return float(slower) / (prompt_s + decode_s) - 1.0


def saving_within(model: str, tp: int, prompt: int, answer: int, loss: float) -> float:
    """Return what the lowest clock down to 1110 MHz that makes a request no more than so much longer saves [%]."""
    clocks = [float(clock) for clock in np.linspace(1.0, LOWEST, 41)]
    lowest = min(clock for clock in clocks if slowdown(model, tp, prompt, answer, clock) <= loss)
    throttle = throttle_of(resolve_cluster("dgx-a100", Path(), 1).accelerator)
    return 100 * (1.0 - throttle.static) * (1.0 - float(dynamic_share(lowest, throttle.voltage_floor)))


def frequency_lock() -> dict[str, Answer]:
    """Predict what a lower clock takes off the peak of power, and what it costs."""
    sizes = f"prompts of {listed(PROMPTS)}, answers of {listed(ANSWERS)} tokens, one request at a time"
    models = (("gpt-neox-20b", 2), ("llama-2-70b", 8), ("bloom-176b", 8))
    savings = [saving_within(*model, *size, 0.07) for model in models for size in product(PROMPTS, ANSWERS)]
    free = [saving_within("gpt-neox-20b", 2, *size, 0.01) for size in product(PROMPTS, ANSWERS)]
    bloom = [100 * slowdown("bloom-176b", 8, *size, clock_for(0.13)) for size in product(PROMPTS, ANSWERS)]
    training = 100 * (1.0 / clock_for(0.2) - 1.0)
    return {
        "polca-09": swept(
            savings, f"GPT-NeoX-20B, Llama-2-70B, BLOOM-176B on A100, 1410 to 1110 MHz, within 7 % longer; {sizes}"
        ),
        "polca-10": swept(free, f"1410 to 1110 MHz, within 1 % longer; {sizes}"),
        "polca-11": swept(bloom, f"the clock that takes 13 % off an A100 at its limit; {sizes}"),
        "polca-12": swept([training], "the clock that takes 20 % off an A100 at its limit; all time follows the clock"),
    }


def smaller_weights() -> dict[str, Answer]:
    """Predict what 4-bit weights save of memory, and of the energy of a token."""
    four = FORMS["int4_weight"].weight_bytes
    saved = []
    for (model, tp), clients in product((("llama-3.1-8b", 1), ("qwen3-14b", 1), ("llama-3.1-70b", 4)), (1, 16, 64)):
        energies = []
        for precision in ("bf16", "int4_wo"):
            workload = {"arrivals": {"concurrency": clients}, "lengths": {"isl": 512, "osl": 512}}
            asked = {"kind": "serve", "cluster": "dgx-h200", "nodes": 1, "model": model, "workload": workload}
            asked["plan"] = {"tp": tp, "replicas": 1, "precision_weights": precision}
            found = predict(load_serve(Source("claim", asked), Path())).prediction
            assert found is not None
            energies.append(found["energy_per_token_j"])
        saved.append(energies[0] / energies[1])
    return {
        "efficientllm-01": swept([2 / four], "weights in groups of 128, a 16-bit scale each"),
        "efficientllm-02": swept(saved, "H200; Llama-3.1-8B, Qwen3-14B, Llama-3.1-70B; 1-64 clients, 512 in and out"),
    }


MISSING = {
    "polca-08": "power within a training step",
    "efficientllm-03": "which models are of equal quality",
    "melt-01": "phones and boards; no number",
    "flightllm-01": "FPGAs",
    "dolphin-01": "device and lengths",
    "dolphin-02": "device and lengths",
}


def lines(claims: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of the claims about power; those of layered prefill are beside its others."""
    known = capped_row() | load_of_a_row() | frequency_lock() | {"polca-06": training_peak()} | smaller_weights()
    for claim in claims:
        name = claim["claim_id"]
        if claim["planner"] == "power" and claim["system"] != "Layered prefill":
            yield line(claim, known.get(name), MISSING.get(name, ""))


def main() -> None:
    """Print the table."""
    show(lines(read()))


if __name__ == "__main__":
    main()
