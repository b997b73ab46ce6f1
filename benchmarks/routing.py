"""How long it takes to route 100,000 flows on 64 leaves and 32 spines, and a whole answer about them.

python benchmarks/routing.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hardware.yaml_source import Source
from perfmodel.edge_colouring import equitable_colouring
from perfmodel.routing import Switching, max_load_distribution, mean_of, side_bytes
from solvers.routing import plan
from solvers.routing_scenario import load_routing
from solvers.routing_whole import equal_whole, fewest_splits

LEAVES, SPINES, FLOWS, HOSTS = 64, 32, 100_000, 32


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Print how long something takes."""
    began = time.perf_counter()
    found = work()
    print(f"{what:58} {time.perf_counter() - began:7.3f} s")
    return found


def main() -> None:
    """Print the times."""
    random = np.random.default_rng(0)
    source = random.integers(0, LEAVES, FLOWS)
    target = (source + random.integers(1, LEAVES, FLOWS)) % LEAVES
    most = int(max(np.bincount(source).max(), np.bincount(target).max()))
    print(f"{FLOWS:,} flows, {LEAVES} leaves, at most {most} at one")
    equitable_colouring(source[:100], target[:100], 3)  # scipy's import is not counted
    for colours in (SPINES, SPINES - 1):
        lane = timed(f"colour, {colours} spines", lambda colours=colours: equitable_colouring(source, target, colours))
        load = max(side_bytes(ends, lane, np.ones(FLOWS), LEAVES, colours).max() for ends in (source, target))
        assert load == -(-most // colours)
    network = Switching(np.ones((LEAVES, SPINES)), np.ones((SPINES, LEAVES)), 1)
    few = timed("fewest splits", lambda: fewest_splits(source, target, most / SPINES, network))
    print(f"  {few.fewest} flows split")
    rates = np.ones((LEAVES, SPINES))
    rates[0, 3] = 0.0
    broken = Switching(rates, rates.T.copy(), 1)
    timed("single paths with a broken link", lambda: equal_whole(source, target, 1.0, broken, most / SPINES))
    below = timed(f"hashing exactly, {most} flows on {SPINES}", lambda: max_load_distribution(most, SPINES))
    print(f"  mean of the fullest link {mean_of(below):.2f} flows, {mean_of(below) / most * SPINES:.3f} of even")
    ends = random.integers(0, HOSTS, (2, FLOWS)) + np.stack([source, target]) * HOSTS
    scenario = {
        "kind": "routing",
        "fabric": {"type": "leaf-spine", "leaves": LEAVES, "spines": SPINES, "hosts_per_leaf": HOSTS,
                   "link": "400 Gbit/s"},
        "nodes": LEAVES * HOSTS,
        "flows": [{"src": f"host{a}", "dst": f"host{b}", "bytes": 1e6} for a, b in ends.T.tolist()],
    }  # fmt: skip
    question = timed("read the question", lambda: load_routing(Source("benchmark", scenario), Path()))
    answer = timed("answer it: three ways, hashing drawn 1,000 times", lambda: plan(question))
    assert answer.prediction is not None
    print(f"  {answer.status}; {answer.prediction['gain_over_ecmp']:.3f} x hashing")


if __name__ == "__main__":
    main()
