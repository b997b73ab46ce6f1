"""How close plans for unequal sequences come to their bounds, and how long they take, on one core.

Made-up lengths and the costs of a 7B model on A100-40GB at half of 312 TFLOP/s in nodes of 8 accelerators: causal
attention and linear layers forward and backward, all-to-all within a node and over the fabric, two fixed times.

    python benchmarks/sequence.py [SCHEDULE ...] [--sizes 64 1024 12288] [--seeds 0 1] [--stream BATCHES] [--processor]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from solvers import (
    sequence_accumulate,
    sequence_barrier,
    sequence_barrier_bound,
    sequence_bounds,
    sequence_oneshot,
    sequence_repair,
)
from solvers.sequence_accumulate import plan_fixed, plan_splits
from solvers.sequence_case import Case, Scatter, makespan, step_times

HIDDEN, LAYERS, WEIGHTS, RATE = 4096, 32, 6.7e9, 156e12
SQUARE, LINEAR, EXCHANGE = 6 * HIDDEN * LAYERS / RATE, 6 * WEIGHTS / RATE, 8 * 2 * HIDDEN * LAYERS
"""Seconds for a squared token, seconds for a token, bytes for a token."""
STEP_S, EXCHANGE_S = 0.02, 0.01
"""Fixed time of a micro-step, and what a group of more than one adds."""
CAPACITY = 6144.0
SIZES = {64: (512, 1.2, 196_608, 64), 1024: (8_192, 1.2, 196_608, 64), 12_288: (65_536, 1.4, 2_097_152, 1024)}
"""By accelerators: sequences, spread of lengths, longest, largest group."""


def count_processor_time() -> None:
    """Let the planners count the time of the processor in place of the clock's: for a machine that others use."""
    modules: list[Any] = [sequence_barrier, sequence_barrier_bound, sequence_oneshot, sequence_repair]
    for module in modules:
        module.perf_counter = time.process_time
    for module in (sequence_accumulate, sequence_bounds):
        module.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    time.perf_counter = time.process_time


def bytes_per_s(degree: int) -> float:
    """Return the rate at which a group exchanges: within a node of 8, or over the fabric."""
    if degree == 1:
        return float("inf")
    return 300e9 * degree / (degree - 1) if degree <= 8 else 6.25e9 * degree / (degree - 8)


def instance(gpus: int, seed: int, fill: float | None = None, sequences: int | None = None) -> Case:
    """Return lengths and costs; with `fill`, memory such that all sequences at once take that share of it."""
    count, sigma, longest, largest = SIZES[gpus]
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(4096), sigma, sequences or count)).clip(64, longest).astype(np.int64)
    lengths[0] = longest
    degrees = 2 ** np.arange(largest.bit_length())
    s = lengths[:, None].astype(float)
    rate = np.array([bytes_per_s(degree) for degree in degrees.tolist()])
    work = (SQUARE * s**2 + LINEAR * s + EXCHANGE * s / rate) / degrees
    fixed = STEP_S + EXCHANGE_S * (degrees > 1)
    capacity = CAPACITY if fill is None else float(lengths.sum()) / (fill * gpus)
    return Case(lengths, degrees, work, fixed, capacity, gpus)


LIMITS_S = {"splits": {64: 0.1, 1024: 0.5, 12_288: 5.0}, "fixed": {64: 1.0, 1024: 10.0, 12_288: 60.0}}
"""Time a plan may take [s]."""
STREAM_LIMITS_S = {"splits": 0.02, "fixed": 0.45}
PLANNERS = {"splits": plan_splits, "fixed": plan_fixed}


def held(case: Case, plan: Scatter) -> float:
    """Return how full the memory of micro-steps is, over accelerators."""
    group, _, _, tokens = step_times(case, plan)
    return float(tokens.sum() / (plan.degree[group].sum() * case.capacity_tokens))


def timed(schedule: str, case: Case, limit_s: float) -> tuple[float, float, float, Scatter, str]:
    """Plan one batch; return wall time [s], makespan [s], gap [%], plan and the bound that binds."""
    started = time.perf_counter()
    plan, bound, name = PLANNERS[schedule](case, limit_s)
    wall = time.perf_counter() - started
    found = makespan(case, plan)
    return wall, found, 100 * (found - bound) / bound, plan, name


def stream(schedule: str, batches: int, limit_s: float) -> None:
    """Plan one batch after another on 64 accelerators."""
    walls, gaps = np.array([timed(schedule, instance(64, seed), limit_s)[::2][:2] for seed in range(batches)]).T
    print(
        f"{schedule:9} stream of {batches}: median {1e3 * np.median(walls):.1f} ms (worst {1e3 * walls.max():.1f}), "
        f"gap median {np.median(gaps):.2f} % (worst {gaps.max():.2f})"
    )


def main() -> None:
    """Plan every instance and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("schedules", nargs="*", default=list(PLANNERS))
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(10)))
    parser.add_argument("--stream", type=int)
    parser.add_argument("--processor", action="store_true", help="count the time of the processor, not the clock's")
    asked = parser.parse_args()
    if asked.processor:
        count_processor_time()
    if asked.stream:
        for schedule in asked.schedules:
            stream(schedule, asked.stream, STREAM_LIMITS_S[schedule])
        return
    print("schedule    gpus sequences seed  wall s   found s   bound s  gap %  memory %  bound")
    for schedule in asked.schedules:
        for gpus in asked.sizes:
            limit = LIMITS_S[schedule][gpus]
            walls, gaps = [], []
            for seed in asked.seeds:
                case = instance(gpus, seed)
                wall, found, gap, plan, name = timed(schedule, case, 0.75 * limit)
                walls.append(wall)
                gaps.append(gap)
                print(
                    f"{schedule:9} {gpus:6} {len(case.lengths):9} {seed:4} {wall:7.3f} {found:9.4f} "
                    f"{found / (1 + gap / 100):9.4f} {gap:6.2f} {100 * held(case, plan):9.1f}  {name}",
                    flush=True,
                )
            print(f"{schedule:9} {gpus:6} worst: {max(gaps):.2f} % in {max(walls):.3f} s (bar {limit:g} s)")


if __name__ == "__main__":
    main()
