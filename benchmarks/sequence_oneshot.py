"""How close plans of one makespan, and of micro-batches with a barrier, come to their bounds, on one core.

python benchmarks/sequence_oneshot.py [PART ...] [--seeds 0 1 ...] [--processor]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sequence import count_processor_time, instance

from solvers.sequence_barrier import plan_barrier
from solvers.sequence_case import makespan
from solvers.sequence_oneshot import plan_oneshot
from solvers.sequence_static import plan_static

PARTS = {
    "one-shot-64-40-1s": ("one-shot", 64, 0.4, 1.0, 2.0),
    "one-shot-64-40": ("one-shot", 64, 0.4, 10.0, 1.0),
    "one-shot-64-70": ("one-shot", 64, 0.7, 10.0, 3.0),
    "one-shot-64-85": ("one-shot", 64, 0.85, 10.0, 5.0),
    "one-shot-1024-40": ("one-shot", 1024, 0.4, 10.0, 3.0),
    "one-shot-1024-70": ("one-shot", 1024, 0.7, 10.0, 4.0),
    "barrier-64": ("barrier", 64, None, 10.0, 5.0),
    "barrier-1024": ("barrier", 1024, None, 10.0, 8.0),
}
"""Schedule, accelerators, share of memory, time [s], bar [%]."""
PLANNERS = {"one-shot": plan_oneshot, "barrier": plan_barrier}
BATCHES = 20


def main_oneshot_barrier(parts: list[str], seeds: list[int]) -> None:
    """Plan every instance and print what came of it."""
    print("schedule    gpus memory  seed  wall s   cpu s  found s  bound s  gap %  static x  bound")
    for part in parts:
        schedule, gpus, fill, limit, bar = PARTS[part]
        gaps = []
        for seed in seeds:
            case = instance(gpus, seed, fill)
            started, worked = time.perf_counter(), time.process_time()
            plan, bound, name = PLANNERS[schedule](case, limit)
            wall, cpu = time.perf_counter() - started, time.process_time() - worked
            found = makespan(case, plan)
            gaps.append(100 * (found / bound - 1))
            try:
                static = f"{makespan(case, plan_static(case, schedule)[0]) / found:8.2f}"
            except ValueError:
                static = "    none"
            print(
                f"{schedule:9} {gpus:6} {fill or '-':>6} {seed:5} {wall:7.2f} {cpu:7.2f} {found:8.3f} {bound:8.3f} "
                f"{gaps[-1]:6.2f}  {static}  {name}",
                flush=True,
            )
        print(f"{part}: worst {max(gaps):.2f} %, bar {bar} %, {limit} s", flush=True)


def stream(seeds: list[int], limit_s: float = 0.19) -> None:
    """Plan a stream of batches with a barrier, each within a time."""
    gaps, walls, busy = [], [], []
    for seed in range(BATCHES * len(seeds)):
        case = instance(64, 100 + seed)
        started, worked = time.perf_counter(), time.process_time()
        plan, bound, _ = plan_barrier(case, limit_s)
        walls.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
        gaps.append(100 * (makespan(case, plan) / bound - 1))
    middle = len(gaps) // 2
    print(
        f"stream of {len(gaps)} batches, barrier, 64: median {1e3 * sorted(walls)[middle]:.0f} ms (worst "
        f"{1e3 * max(walls):.0f}; of the processor {1e3 * sorted(busy)[middle]:.0f}), "
        f"gap median {sorted(gaps)[middle]:.2f} % (worst {max(gaps):.2f})"
    )


def main() -> None:
    """Read which parts to run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[*PARTS, "stream"])
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(10)))
    parser.add_argument("--processor", action="store_true", help="count the time of the processor, not the clock's")
    asked = parser.parse_args()
    if asked.processor:
        count_processor_time()
    main_oneshot_barrier([part for part in asked.parts if part in PARTS], asked.seeds)
    if "stream" in asked.parts:
        stream(asked.seeds)


if __name__ == "__main__":
    main()
