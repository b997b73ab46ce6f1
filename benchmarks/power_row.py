"""A row like POLCA's: load and bursts with which 40 servers reach its peak and its largest rise, then what fits.

python benchmarks/power_row.py [--calibrate] [--weeks 6]

Prints what the synthesised row of ``examples/power-polca-row.yaml`` reaches, and the plans with and without caps beside
the published figures (ASPLOS 2024). `--calibrate` looks for the peak load and the scale of the bursts first.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from hardware.catalogue import read_file
from perfmodel.power.capping import largest_rise
from perfmodel.power.load import WEEK_S, PoolLoad, demands
from solvers.power import plan
from solvers.power_capped import Simulated
from solvers.power_held import loads_of
from solvers.power_scenario import PowerScenario, load_power

EXAMPLE = Path(__file__).parents[1] / "examples" / "power-polca-row.yaml"
BUDGET_W = 260e3
LATENCY_S = 40
PEAK, RISE = 0.79, 0.118
ROUNDS = 5


def reached(loads: list[PoolLoad], weeks: float, seed: int = 1) -> tuple[float, float, float]:
    """Return the highest second of 40 servers over the budget, the largest rise, and the mean over the budget."""
    pieces = demands(loads, np.arange(2), np.array([20, 20]), round(weeks * WEEK_S), seed)
    power = np.concatenate([piece.sum(axis=1, dtype=np.float32) for piece in pieces])
    return float(power.max()) / BUDGET_W, float(largest_rise(power, LATENCY_S)), float(power.mean()) / BUDGET_W


def calibrated(load: PoolLoad, weeks: float) -> None:
    """Look for the peak load and the bursts, in turn, and print every step."""
    low, high, scale = 0.3, 0.7, 1.0
    for _ in range(ROUNDS):
        low, high = low - 0.05, high + 0.05
        for _ in range(5):
            middle = (low + high) / 2
            peak, rise, _ = reached([replace(load, peak_load=middle, bursts=load.bursts.scaled(scale))] * 2, weeks)
            low, high = (middle, high) if peak < PEAK else (low, middle)
            print(f"peak_load {middle:.4f}  bursts x {scale:.3f}  peak {peak:.4f}  rise {rise:.4f}", flush=True)
        if abs(rise - RISE) < 0.002:
            break
        scale *= float(np.clip(RISE / rise, 0.6, 1.6))


def row(scenario: PowerScenario, weeks: float) -> None:
    """Print what the row reaches and the plan with caps."""
    peak, rise, mean = reached([one for one in loads_of(scenario) if isinstance(one, PoolLoad)], weeks)
    print(f"40 servers: peak {peak:.3f} of the budget (published 0.79), rise in 40 s {rise:.3f} (at most 0.118), ")
    print(f"            mean {mean:.3f}")
    start = time.process_time()
    result = plan(scenario, simulate=Simulated(weeks=weeks))
    plans = [(result.plan, result.prediction), *((one["plan"], one["prediction"]) for one in result.alternatives)]
    for found, prediction in plans:
        if found is None or prediction is None:
            continue
        print(f"{found['servers']} servers  method {found['method']}  thresholds {found['thresholds']}")
        for key in ("loss", "capped_s_per_day", "brake_probability_per_year", "simulated"):
            if prediction.get(key) is not None:
                print(f"    {key}: {prediction[key]}")
    for entry in result.binding:
        print("   ", entry)
    print(f"{time.process_time() - start:.1f} s of the processor")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--weeks", type=float, default=6.0)
    given = parser.parse_args()
    scenario = load_power(read_file(EXAMPLE), EXAMPLE.parent)
    if given.calibrate:
        load = loads_of(scenario)[0]
        assert isinstance(load, PoolLoad)
        calibrated(load, given.weeks)
    row(scenario, given.weeks)


if __name__ == "__main__":
    main()
