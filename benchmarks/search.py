"""How many training plans a second one core costs, each with full time and memory.

GPT-3 175B on 4,096 A100-80, global batch 4,096: tp, pp and cp in powers of two to 32, every micro-batch and
interleave that divides, three kinds of recomputation, ZeRO 0-3, sequence parallelism, overlap of gradient and of
tensor-parallel traffic, optimizer offload, tensor- or data-parallel ranks innermost. Combinations that cannot be are
not counted.

    python benchmarks/search.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from pathlib import Path

import numpy as np

from hardware.yaml_source import Source
from solvers import train_space
from solvers.scenario import load_train
from solvers.train_search import evaluate

QUESTION = {
    "kind": "train",
    "cluster": "dgx-a100",
    "nodes": 512,
    "model": "gpt-3-175b",
    "workload": {"seq_len": 2048, "global_batch": 4096, "precision": "bf16"},
    "search": {
        "tp": [1, 2, 4, 8, 16, 32],
        "pp": [1, 2, 4, 8, 16, 32],
        "cp": [1, 2, 4, 8, 16, 32],
        "seq_parallel": [False, True],
        "recompute": ["none", "selective", "full"],
        "zero_stage": [0, 1, 2, 3],
        "offload": ["none", "optimizer"],
        "overlap_dp": [False, True],
        "overlap_tp": [False, True],
        "rank_order": ["tp-cp-dp-pp", "dp-tp-cp-pp"],
        "cp_style": ["ring"],
    },
}


def main() -> None:
    """Run the search once and print its rate."""
    train_space.LARGEST_MICRO_BATCH = 4096  # every micro-batch that divides
    scenario = load_train(Source("benchmark", QUESTION), Path())
    began = time.perf_counter()
    found = evaluate(scenario.job, train_space.space(scenario.job, scenario.question.search))
    elapsed = time.perf_counter() - began
    count = len(found.step_time_s)
    print(f"{count:,} configurations in {elapsed:.2f} s: {count / elapsed:,.0f} configurations/s")
    fits = found.fits(scenario.job)
    best = np.flatnonzero(fits)[np.argmin(found.step_time_s[fits])]
    row = {name: int(getattr(found.plan, name)[best]) for name in (*train_space.LAYOUT, *train_space.SWITCHES)}
    print(f"{fits.sum():,} fit; best {found.step_time_s[best]:.3f} s: {row}")


if __name__ == "__main__":
    main()
