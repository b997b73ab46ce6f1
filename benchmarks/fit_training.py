"""Fit the constants of a training step on measured runs, and the residuals of each source with that source left out.

    python benchmarks/fit_training.py                  # fit on all sources, then each left out: the residual quantiles
    python benchmarks/fit_training.py --no-leave-out   # the fit alone

Reads PERFMODEL_DATA (default ../shared/data) and prints the constants that ``perfmodel/calibrated/training.yaml``,
``perfmodel/frameworks/*.yaml`` and ``hardware/catalog/efficiency/*.yaml`` hold. Sources weigh alike, whatever their
rows.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from perfmodel.job import Job, Kind
from perfmodel.plan import FIELDS, Plan
from perfmodel.training import predict_step
from perfmodel.validate_training import RowError, measured_seconds, read_files, row_job
from perfmodel.validation import Defaults

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "training"

# name: (start, lower, upper); shares and factors multiply what the kernels' fit gave
PARAMETERS: dict[str, tuple[float, float, float]] = {
    "sustained products": (0.97, 0.6, 1.1),  # long products in training over short ones in a benchmark
    "attention backward": (0.85, 0.4, 1.1),  # its share of peak over the forward pass's
    "elementwise memory": (1.3, 0.5, 2.0),
    "collective bandwidth": (0.85, 0.3, 1.1),  # inside training over alone
    "host per kernel us, compiled": (10.0, 1.0, 60.0),
    "host per kernel us, megatron-deepspeed": (35.0, 1.0, 80.0),
    "host softness": (3.0, 1.0, 8.0),
    "step overhead ms": (20.0, 0.0, 300.0),
    "expert products": (1.0, 0.4, 1.8),
    "attention share, torchtitan": (0.5, 0.2, 1.2),
    "sharded bandwidth, megatron-deepspeed": (0.1, 0.02, 1.0),
    "straggler jitter": (0.01, 0.0, 0.1),
}


@dataclass(frozen=True)
class Batch:
    """Measured runs of one job."""

    source: str
    job: Job
    plan: Plan
    measured_s: np.ndarray


def batches(skip: frozenset[str] = frozenset()) -> list[Batch]:
    """Return the measured runs, those of one job together; rows that cannot be predicted are left out."""
    found: dict[tuple[object, ...], list[tuple[Job, Plan, float]]] = defaultdict(list)
    for row in read_files(sorted(DATA.glob("*.csv"))).itertuples(index=False):
        measured = None if row.skipped else measured_seconds(row)
        if measured is None:
            continue
        try:
            job, plan = row_job(row, Defaults())
        except RowError:
            continue
        key = (
            row.source_key,
            job.architecture,
            id(job.machine),
            job.ranks,
            job.seq_len,
            job.global_batch,
            job.precision,
            job.framework.name,
        )
        found[key].append((job, plan, measured))
    result = []
    for key, runs in found.items():
        plan = Plan(**{name: np.concatenate([getattr(p, name) for _, p, _ in runs]) for name in FIELDS})
        result.append(Batch(str(key[0]), runs[0][0], plan, np.array([seconds for _, _, seconds in runs])))
    return result


def tuned(job: Job, x: dict[str, float]) -> Job:
    """Return the job with the parameters in force."""
    sustained = x["sustained products"]
    torchtitan = job.framework.name == "torchtitan"
    deepspeed = job.framework.name == "megatron-deepspeed"

    def kind(name: str, compute: float = 1.0, memory: float = 1.0) -> Kind:
        old = job.kinds[name]
        share = {"compute": old.efficiency.compute * compute, "memory": min(old.efficiency.memory * memory, 1.0)}
        return Kind(old.peak, old.efficiency.model_copy(update=share))

    attention = x["attention share, torchtitan"] if torchtitan else 1.0
    kinds = {
        "gemm": kind("gemm", sustained),
        "gemm16": kind("gemm16", sustained),
        "moe": kind("moe", x["expert products"]),
        "attention": kind("attention", attention),
        "attention_backward": kind("attention_backward", attention * x["attention backward"]),
        "elementwise": kind("elementwise", 1.0, x["elementwise memory"]),
    }
    links = {
        name: replace(link, bandwidth=link.bandwidth * x["collective bandwidth"])
        for name, link in job.collectives.links.items()
    }
    host = x["host per kernel us, megatron-deepspeed" if deepspeed else "host per kernel us, compiled"]
    framework = job.framework.model_copy(
        update={
            "host_per_kernel": host * 1e-6,
            "step_overhead": x["step overhead ms"] * 1e-3,
            "sharded_bandwidth_share": x["sharded bandwidth, megatron-deepspeed"] if deepspeed else 1.0,
        }
    )
    constants = replace(job.constants, host_softness=x["host softness"], straggler_jitter=x["straggler jitter"])
    return replace(
        job, kinds=kinds, collectives=replace(job.collectives, links=links), framework=framework, constants=constants
    )


def log_errors(data: list[Batch], x: dict[str, float]) -> dict[str, np.ndarray]:
    """Return ln(predicted / measured) of every run, by source."""
    errors: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in data:
        predicted = np.asarray(predict_step(tuned(batch.job, x), batch.plan, explain=False).step.seconds)
        errors[batch.source].append(np.log(predicted / batch.measured_s))
    return {source: np.concatenate(parts) for source, parts in errors.items()}


def fit(data: list[Batch], evaluations: int) -> dict[str, float]:
    """Return the parameters of least mean absolute log error, every source weighing alike."""
    names = list(PARAMETERS)
    start, low, high = (np.array([PARAMETERS[name][i] for name in names]) for i in range(3))

    def loss(u: np.ndarray) -> float:
        value = low + (high - low) * u
        errors = log_errors(data, dict(zip(names, value, strict=True)))
        # a robust loss: an implausible row counts at most 0.7
        return float(np.mean([np.minimum(np.abs(error), 0.7).mean() for error in errors.values()]))

    result = minimize(
        loss,
        (start - low) / (high - low),
        method="Powell",
        bounds=[(0.0, 1.0)] * len(names),
        options={"maxfev": evaluations, "ftol": 1e-4, "xtol": 1e-2},
    )
    return dict(zip(names, low + (high - low) * result.x, strict=True))


def summary(name: str, error: np.ndarray) -> str:
    """Return one line of figures."""
    return (
        f"{name:16} rows {len(error):5}  median APE {np.median(np.abs(np.expm1(error))):.3f}"
        f"  mean |ln| {np.abs(error).mean():.3f}"
        f"  bias {np.exp(error.mean()):.3f}"
    )


def main() -> None:
    """Fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--no-leave-out", action="store_true")
    arguments = parser.parse_args()
    data = batches()
    began = time.perf_counter()
    best = fit(data, arguments.evaluations)
    print(f"fit on all sources in {time.perf_counter() - began:.0f} s")
    for name, value in best.items():
        print(f"  {name:42} {value:.4g}")
    for source, error in log_errors(data, best).items():
        print(" ", summary(source, error))
    if arguments.no_leave_out:
        return
    left_out = []
    for source in sorted({batch.source for batch in data}):
        rest = fit([batch for batch in data if batch.source != source], arguments.evaluations)
        error = log_errors([batch for batch in data if batch.source == source], rest)[source]
        print("  left out", summary(source, error), flush=True)
        left_out.append(error)
    quantiles = [np.quantile(-error, [0.1, 0.9]) for error in left_out]
    print("P10, P90 of measured/predicted, by source:", [np.round(np.exp(q), 3).tolist() for q in quantiles])


if __name__ == "__main__":
    main()
