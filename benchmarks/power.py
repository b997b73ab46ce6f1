"""How long it takes to plan a hall of 1,000 racks over a week of traces, and how far the plan may be from the best.

Run: python benchmarks/power.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hardware.yaml_source import Source
from solvers.power import plan
from solvers.power_scenario import PowerScenario, load_power

STEP_S, STEPS, CLASSES = 300, 2016, 10


def hall() -> dict[str, Any]:
    """Return four feeds with five PDUs each, of rows of racks of three ratings: 1,000 racks, 20,000 places and more."""
    racks = [
        {"name": f"rack-{kind}", "level": "rack", "count": count, "rating": rating, "slots": slots}
        for kind, (count, rating, slots) in enumerate([(20, 104e3, 20), (20, 118e3, 22), (10, 160e3, 28)])
    ]
    pdus = [{"name": "pdu", "level": "pdu", "count": 5, "rating": 5.2e6, "children": racks}]
    feeds = [
        {"name": f"feed-{number}", "level": "feed", "rating": rating, "children": pdus}
        for number, rating in enumerate([25e6, 25e6, 26e6, 27e6])
    ]
    return {"kind": "facility", "root": {"name": "utility", "level": "utility", "rating": 100e6, "children": feeds}}


def uneven_hall() -> dict[str, Any]:
    """Return four feeds with five PDUs each, of 50 racks whose ratings and slots all differ."""
    random = np.random.default_rng(1)
    nodes = [{"name": "utility", "level": "utility", "rating": 100e6}]
    nodes += [{"name": f"feed-{n}", "level": "feed", "rating": 26e6, "parent": "utility"} for n in range(4)]
    nodes += [{"name": f"pdu-{n}", "level": "pdu", "rating": 5.2e6, "parent": f"feed-{n // 5}"} for n in range(20)]
    for n in range(1000):
        rating, slots = float(random.uniform(90e3, 160e3)), int(random.integers(18, 28))
        parent = f"pdu-{n // 50}"
        nodes.append({"name": f"rack-{n}", "level": "rack", "rating": rating, "slots": slots, "parent": parent})
    return {"kind": "facility", "nodes": nodes}


def trace(number: int, folder: Path) -> str:
    """Write a week of a class: a day's swing with its own hour, weekends, and noise that forgets within an hour."""
    random = np.random.default_rng(number)
    time_s = np.arange(STEPS) * STEP_S
    peak_hour, swing = random.uniform(8, 22), random.uniform(0.05, 0.35)
    shape = 1 + swing * np.cos(2 * np.pi * (time_s / 86400 - peak_hour / 24))
    noise = np.zeros(STEPS)
    for step in range(1, STEPS):
        noise[step] = 0.92 * noise[step - 1] + 0.02 * random.standard_normal()
    shape *= np.where(time_s // 86400 >= 5, 0.85, 1.0)
    watts = np.clip(random.uniform(3200, 4800) * (shape + noise), 1500, 6500)
    name = f"class-{number}.csv"
    rows = "\n".join(f"{at},{power:.1f}" for at, power in zip(time_s, watts, strict=True))
    (folder / name).write_text(f"time_s,power_w\n{rows}\n")
    return name


def scenario(folder: Path, method: str, shares: bool, risk: float, place: dict[str, Any]) -> PowerScenario:
    """Return the question."""
    workloads = [
        {"name": f"class-{number}", "server": "dgx-a100", "trace": trace(number, folder)}
        | ({"share": 1 / CLASSES} if shares else {"min_servers": 500})
        for number in range(CLASSES)
    ]
    policy = {"method": method, "risk": risk}
    data = {"kind": "power", "facility": place, "workloads": workloads, "policy": policy}
    return load_power(Source("benchmark", data), folder)


def main() -> None:
    """Print one line for each question."""
    print(
        f"{'racks':<7} {'method':<10} {'shares':<7} {'risk':>6} {'servers':>8} {'bound':>8} {'gap':>7} {'seconds':>8}"
    )
    questions = (
        ("nameplate", True, 1e-3),
        ("gaussian", True, 1e-3),
        ("packing", True, 0.0),
        ("packing", True, 1e-3),
        ("packing", False, 1e-3),
    )
    for name, place in (("alike", hall()), ("unlike", uneven_hall())):
        for method, shares, risk in questions:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                answer = plan(scenario(Path(folder), method, shares, risk, place), gap=0.02)
                took_s = time.perf_counter() - began
            print(
                f"{name:<7} {method:<10} {'given' if shares else 'free':<7} {risk:>6g} {answer.objective.value:>8} "
                f"{answer.best_bound:>8.0f} {answer.gap:>7.2%} {took_s:>8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
