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
from scipy.optimize import least_squares, minimize

from perfmodel.intervals import SPREADS, Z90, shares
from perfmodel.job import Job, operator_kinds
from perfmodel.plan import FIELDS, Plan
from perfmodel.training import predict_step
from perfmodel.validate_training import RowError, measured_seconds, read_files, row_job
from perfmodel.validation import Defaults

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "training"

# name: (start, lower, upper); shares and factors multiply what the kernels' fit gave
PARAMETERS: dict[str, tuple[float, float, float]] = {
    "attention backward": (0.8, 0.2, 1.1),  # its share of peak over the forward pass's
    "elementwise memory": (1.0, 0.5, 1.6),  # share of bandwidth over that of the short kernels measured alone
    "host per kernel us": (10.0, 1.0, 60.0),
    "host per kernel us, megatron-deepspeed": (35.0, 1.0, 100.0),
    "host softness": (3.0, 1.0, 8.0),
    "step overhead ms": (20.0, 0.0, 300.0),
    "attention share, torchtitan": (0.8, 0.2, 1.2),
    "sharded bandwidth, megatron-deepspeed": (0.2, 0.02, 1.0),
}
PRIOR = 0.02
"""Weight that keeps a parameter at its start where no row speaks for another value."""


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
    deepspeed = job.framework.name == "megatron-deepspeed"
    host = x["host per kernel us, megatron-deepspeed" if deepspeed else "host per kernel us"]
    framework = job.framework.model_copy(
        update={
            "host_per_kernel": host * 1e-6,
            "step_overhead": x["step overhead ms"] * 1e-3,
            "sharded_bandwidth_share": x["sharded bandwidth, megatron-deepspeed"] if deepspeed else 1.0,
        }
    )
    if job.framework.name == "torchtitan":
        framework = framework.model_copy(update={"attention_share": x["attention share, torchtitan"]})
    constants = replace(
        job.constants,
        host_softness=x["host softness"],
        attention_backward=x["attention backward"],
        elementwise_memory=x["elementwise memory"],
    )
    kinds, _ = operator_kinds(job.machine, job.precision, framework.attention_share, constants)
    return replace(job, kinds=kinds, framework=framework, constants=constants)


def log_errors(data: list[Batch], x: dict[str, float]) -> dict[str, np.ndarray]:
    """Return ln(predicted / measured) of every run, by source."""
    errors: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in data:
        predicted = np.asarray(predict_step(tuned(batch.job, x), batch.plan, explain=False).step.seconds)
        errors[batch.source].append(np.log(predicted / batch.measured_s))
    return {source: np.concatenate(parts) for source, parts in errors.items()}


def fit(data: list[Batch], evaluations: int) -> dict[str, float]:
    """Return the parameters of least robust squared log error, every source weighing alike."""
    names = list(PARAMETERS)
    start, low, high = (np.array([PARAMETERS[name][i] for name in names]) for i in range(3))

    def residuals(u: np.ndarray) -> np.ndarray:
        errors = log_errors(data, dict(zip(names, low + (high - low) * u, strict=True)))
        # every source weighs alike; what the data do not settle stays near its start
        weighted = [error / np.sqrt(len(error)) for error in errors.values()]
        return np.concatenate([*weighted, PRIOR * (u - (start - low) / (high - low))])

    result = least_squares(
        residuals,
        (start - low) / (high - low),
        bounds=(0.0, 1.0),
        loss="soft_l1",
        f_scale=0.03,
        diff_step=0.02,
        max_nfev=evaluations,
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
    parser.add_argument("--evaluations", type=int, default=15)
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
    left_out: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for source in sorted({batch.source for batch in data}):
        rest = fit([batch for batch in data if batch.source != source], arguments.evaluations)
        own = [batch for batch in data if batch.source == source]
        left_out[source] = log_errors(own, rest)[source]
        parts[source] = part_shares(own, rest)
        print("  left out", summary(source, left_out[source]), flush=True)
    spreads = fit_spreads(left_out, parts)
    print("spreads:", {name: round(value, 3) for name, value in spreads.items()})
    for source, error in left_out.items():
        deviation = deviations(parts[source], spreads)
        inside = np.mean(np.abs(error) <= Z90 * deviation)
        print(f"  {source:16} coverage {inside:.2f}  mean P90/P10 {np.exp(2 * Z90 * deviation).mean():.2f}")
    print(f"gain_spread: {gain_spread(data, best):.3f}")


def part_shares(data: list[Batch], x: dict[str, float]) -> dict[str, np.ndarray]:
    """Return the shares of the step's parts of every run, in the order of `log_errors`."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in data:
        job = tuned(batch.job, x)
        values = shares(job, predict_step(job, batch.plan).step)
        for name, value in values.items():
            found[name].append(np.broadcast_to(value, batch.measured_s.shape))
    return {name: np.concatenate(values) for name, values in found.items()}


def deviations(parts: dict[str, np.ndarray], spreads: dict[str, float]) -> np.ndarray:
    """Return the standard deviation of the logarithm of every run."""
    return np.sqrt(sum((parts[name] * spreads[name]) ** 2 for name in SPREADS))


def fit_spreads(errors: dict[str, np.ndarray], parts: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """Return the spreads under which the left-out errors are likeliest (Laplace, sources alike), scaled to cover 80 %."""

    def loss(logs: np.ndarray) -> float:
        spreads = dict(zip(SPREADS, np.exp(logs), strict=True))
        terms = []
        for source, error in errors.items():
            deviation = deviations(parts[source], spreads)
            terms.append(np.mean(np.log(deviation) + np.sqrt(2) * np.minimum(np.abs(error), 0.7) / deviation))
        # shares that hardly occur leave their spread near 0.2
        return float(np.mean(terms) + 0.01 * np.mean((logs - np.log(0.2)) ** 2))

    start = np.full(len(SPREADS), np.log(0.2))
    logs = minimize(loss, start, method="L-BFGS-B", bounds=[(np.log(0.02), np.log(1.0))] * len(SPREADS)).x
    spreads = dict(zip(SPREADS, np.exp(logs), strict=True))
    scaled = np.concatenate([np.abs(error) / deviations(parts[source], spreads) for source, error in errors.items()])
    weight = np.concatenate([np.full(len(error), 1 / len(error)) for error in errors.values()])
    order = np.argsort(scaled)
    reached = np.cumsum(weight[order]) / weight.sum()
    factor = scaled[order][np.searchsorted(reached, 0.8)] / Z90
    return {name: float(value * factor) for name, value in spreads.items()}


def gain_spread(data: list[Batch], x: dict[str, float]) -> float:
    """Return the standard deviation of ln(ratio) errors of pairs of runs of one source, model and size, sources alike."""
    found: dict[str, list[float]] = defaultdict(list)
    for batch in data:
        errors = log_errors([batch], x)[batch.source]
        if len(errors) > 1:
            found[batch.source].append(float(np.std(errors, ddof=1) * np.sqrt(2)))
    return float(np.mean([np.mean(values) for values in found.values()]))


if __name__ == "__main__":
    main()
