"""How far the equations of continuous batching are from a simulation of the same steps, and how long both take.

For each mode and share of capacity: equation over simulation, less 1, for the mean and 99th percentile of TPOT, TTFT.
Requests of `chat` have 1,000 prompt and 200 output tokens, of `documents` 8,000 and 400, all alike; `mixed lengths` are
log-normal, of the means of `chat` and squared coefficients of variation of 1.7 and 1; `bursts` are those of `chat` with
times between arrivals of cv 2. `clients` compares runs of clients that all start at once.

    python benchmarks/serving_simulation.py             # 2 minutes on one core
    python benchmarks/serving_simulation.py --speed     # 20 s: 100,000 requests, a million candidates
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time

import numpy as np

from perfmodel.batching import Limits, Requests, open_loop
from perfmodel.batching_runs import closed_loop, closed_loop_burst
from perfmodel.requests import gamma_arrivals, lognormal_lengths, uniform_lengths
from perfmodel.simulation import MODES, Engine, simulate, simulate_closed
from perfmodel.step_law import LinearStep

LAW = LinearStep(0.012, 6e-5, 3e-5, 1e-8)
LOADS = (0.3, 0.5, 0.7, 0.8, 0.9)
BATCH, BUDGET = 96, {"mixed": 8192, "chunked": 1024, "prefill_first": 8192}
SETTINGS = {
    "chat": (1000, 200, False, 1.0),
    "documents": (8000, 400, False, 1.0),
    "mixed lengths": (1000, 200, True, 1.0),
    "bursts": (1000, 200, False, 2.0),
}
COUNT, SEEDS = 30_000, 3


def spread(lengths: np.ndarray) -> float:
    return float(lengths.var() / lengths.mean() ** 2)


def compare(setting: str, mode: str) -> None:
    prompt, output, varied, cv = SETTINGS[setting]
    random = np.random.default_rng(7)
    if varied:
        prompts = lognormal_lengths(prompt * np.exp(-0.5), 1.0, 1, 10**5, COUNT, random)
        outputs = lognormal_lengths(output * np.exp(-0.35), np.sqrt(0.7), 2, 10**4, COUNT, random)
    else:
        prompts, outputs = np.full(COUNT, prompt), np.full(COUNT, output)
    requests = Requests(prompts.mean(), outputs.mean(), spread(prompts), spread(outputs))
    limits = Limits(mode, BATCH, BUDGET[mode])
    capacity = float(open_loop(LAW, requests, limits, 1e-3).capacity_requests_per_s)
    for load in LOADS:
        state = open_loop(LAW, requests, limits, load * capacity, cv**2)
        figures = []
        for seed in range(SEEDS):
            arrivals = gamma_arrivals(load * capacity, cv, COUNT, np.random.default_rng([seed, 1]))
            result = simulate(Engine(LAW, mode, BATCH, BUDGET[mode]), arrivals, prompts, outputs)
            later = slice(COUNT // 6, None)
            tpot, ttft = result.tpot_s[later], result.ttft_s[later]
            figures.append([tpot.mean(), np.quantile(tpot, 0.99), ttft.mean(), np.quantile(ttft, 0.99)])
        simulated = np.mean(figures, axis=0)
        found = [state.tpot_s, state.tpot_quantile_s(0.99), state.ttft_s, state.ttft_quantile_s(0.99)]
        cells = " | ".join(f"{float(value) / other - 1:+.1%}" for value, other in zip(found, simulated, strict=True))
        print(f"| {setting} | {mode} | {load} | {cells} |", flush=True)


def clients() -> None:
    """Ten rounds of clients that start at once; lengths uniform in 0.8 to 1 of the nominal ones."""
    print("| prompt, output | mode | clients | TPOT | TTFT | TTFT of the first | requests/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    varied = (0.2 / 0.9) ** 2 / 12
    for prompt, output in ((1000, 1000), (8000, 1000), (4000, 200)):
        requests = Requests(0.9 * prompt, 0.9 * output, varied, varied)
        for mode in MODES:
            for count in (4, 32, 256):
                random = np.random.default_rng(count)
                lengths = [uniform_lengths(tokens, 0.8, 1.0, 10 * count, random) for tokens in (prompt, output)]
                result = simulate_closed(Engine(LAW, mode, 1024, BUDGET[mode]), count, *lengths)
                run = closed_loop_burst(LAW, requests, Limits(mode, 1024, BUDGET[mode]), count)
                pairs = [
                    (run.tpot_s, result.tpot_s.mean()),
                    (run.ttft_s, result.ttft_s.mean()),
                    (run.burst_ttft_s, result.ttft_s[:count].mean()),
                    (run.requests_per_s, 10 * count / result.finish_s.max()),
                ]
                cells = " | ".join(f"{float(value) / other - 1:+.1%}" for value, other in pairs)
                print(f"| {prompt:,}, {output:,} | {mode} | {count} | {cells} |", flush=True)


def speed() -> None:
    random = np.random.default_rng(0)
    count = 100_000
    for mode in MODES:
        arrivals = gamma_arrivals(13.6, 1.0, count, random)
        engine = Engine(LinearStep(0.006, 5e-5, 3e-5), mode, 64, 8192)
        began = time.perf_counter()
        simulate(engine, arrivals, np.full(count, 1000), np.full(count, 200))
        print(f"simulated {mode:<14} {count:>9,} requests   {time.perf_counter() - began:5.1f} s")
    began = time.perf_counter()
    simulate_closed(Engine(LAW, "chunked", 256, 8192), 128, np.full(20_000, 1000), np.full(20_000, 500))
    print(f"simulated closed loop       20,000 requests   {time.perf_counter() - began:5.1f} s")
    size = 10**6
    law = LinearStep(
        random.uniform(0.005, 0.03, size),
        random.uniform(2e-5, 1e-4, size),
        random.uniform(1e-5, 5e-5, size),
        random.uniform(0, 1e-7, size),
    )
    requests = Requests(random.integers(100, 4000, size), random.integers(50, 1000, size))
    rate, clients = random.uniform(0.1, 10, size), random.integers(1, 512, size)
    for mode in MODES:
        limits = Limits(mode, random.integers(8, 512, size), 8192)
        for name, task in (
            ("open loop", lambda limits=limits: open_loop(law, requests, limits, rate)),
            ("P99 of TTFT", lambda limits=limits: open_loop(law, requests, limits, rate).ttft_quantile_s(0.99)),
            ("closed loop", lambda limits=limits: closed_loop(law, requests, limits, clients)),
            ("with its start", lambda limits=limits: closed_loop_burst(law, requests, limits, clients)),
        ):
            began = time.perf_counter()
            task()
            print(f"{name:<15} {mode:<14} {size:>9,} candidates {time.perf_counter() - began:5.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true", help="time both instead of comparing them")
    if parser.parse_args().speed:
        speed()
        return
    print("| requests | mode | load | TPOT | P99 TPOT | TTFT | P99 TTFT |\n| --- | --- | --- | --- | --- | --- | --- |")
    for setting in SETTINGS:
        for mode in MODES:
            compare(setting, mode)
    print()
    clients()


if __name__ == "__main__":
    main()
