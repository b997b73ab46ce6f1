"""Fitting the constants of a training step, and the spreads of its errors, on measured runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from perfmodel.intervals import SPREADS, combined, shares, step_interval
from perfmodel.job import Job
from perfmodel.kernels.model import Z90
from perfmodel.plan import FIELDS, Plan
from perfmodel.terms import Array
from perfmodel.training import predict_step
from perfmodel.validate_training import RowError, measured_seconds, row_job
from perfmodel.validation import Defaults, statistics

PRIOR_WEIGHT = 0.02
"""Keeps a parameter at its start where no row speaks for another value."""

LINEAR_FROM = 0.1
"""Logarithmic error from which a row counts linearly in the fit, not squared."""

COVERED = 0.77
"""Share of left-out rows, sources alike, that P10-P90 holds. Runs of a source that took part in the fit are held more
often, over nine in ten, so that 80 % of left-out ones would make the interval too wide for machines and frameworks
that are known."""

MOST_JOBS = 40
"""Jobs of a source that a fit uses at most, evenly spread: vTrain's 270 differ little from one to the next."""

LARGEST_COUNTED_ERROR = 0.7
"""An implausible row counts as if its logarithmic error were this."""


@dataclass(frozen=True)
class Parameter:
    """A constant that is fitted.

    Parameters
    ----------
    owner : str
        ``constants``, the name of a framework, or ``*`` for every framework without a parameter of its own.
    field : str
        Its field.
    start, low, high : float
        Where the fit begins, and between what it searches.
    """

    owner: str
    field: str
    start: float
    low: float
    high: float


PARAMETERS = (
    Parameter("constants", "attention_backward", 0.8, 0.2, 1.1),
    Parameter("constants", "sustained", 0.9, 0.6, 1.1),
    Parameter("constants", "expert_products", 0.8, 0.2, 1.5),
    Parameter("constants", "host_softness", 3.0, 1.0, 8.0),
    Parameter("*", "host_per_kernel", 10e-6, 1e-6, 25e-6),
    Parameter("*", "step_overhead", 0.02, 0.0, 0.3),
    Parameter("megatron-deepspeed", "host_per_kernel", 35e-6, 1e-6, 100e-6),
    Parameter("megatron-deepspeed", "sharded_bandwidth_share", 0.2, 0.02, 1.0),
    Parameter("torchtitan", "attention_share", 0.8, 0.2, 1.2),
)


@dataclass(frozen=True)
class Batch:
    """Measured runs of one job.

    Parameters
    ----------
    source : str
        Where the runs come from.
    index : array of int
        Their rows.
    job : Job
        The job.
    plan : Plan
        Their plans.
    measured_s : array
        Their step times [s].
    """

    source: str
    index: Array
    job: Job
    plan: Plan
    measured_s: Array


def batches(rows: pd.DataFrame) -> list[Batch]:
    """Return the measured runs of a frame of rows, those of one job together; what cannot be predicted is left out."""
    found: dict[tuple[Any, ...], list[tuple[int, Job, Plan, float]]] = defaultdict(list)
    for position, row in enumerate(rows.itertuples(index=False)):
        measured = None if row.skipped else measured_seconds(row)
        if measured is None:
            continue
        try:
            job, plan = row_job(row, Defaults())
        except RowError:
            continue
        source = str(getattr(row, "source_key", row.file))
        key = (source, job.architecture, id(job.machine), job.ranks, job.seq_len, job.global_batch, job.precision)
        found[*key, job.framework.name].append((position, job, plan, measured))
    return [
        Batch(
            str(key[0]),
            np.array([run[0] for run in runs]),
            runs[0][1],
            Plan(**{name: np.concatenate([getattr(run[2], name) for run in runs]) for name in FIELDS}),
            np.array([run[3] for run in runs]),
        )
        for key, runs in found.items()
    ]


def tuned(job: Job, values: Sequence[float]) -> Job:
    """Return the job with the parameters in force."""
    constants, framework = {}, {}
    for parameter, value in zip(PARAMETERS, values, strict=True):
        if parameter.owner == "constants":
            constants[parameter.field] = value
        elif parameter.owner == job.framework.name or (parameter.owner == "*" and parameter.field not in framework):
            framework[parameter.field] = value
    ours = replace(job.constants, **constants)
    # a spread that rests on the framework's own runs does not hold where those may be left out
    theirs = job.framework.model_copy(update=framework | {"host_spread": None})
    return replace(job, constants=ours, framework=theirs)


def log_errors(data: Sequence[Batch], values: Sequence[float]) -> dict[str, Array]:
    """Return ln(predicted / measured) of every run, by source."""
    errors: dict[str, list[Array]] = defaultdict(list)
    for batch in data:
        step = predict_step(tuned(batch.job, values), batch.plan, explain=False).step
        errors[batch.source].append(np.log(np.asarray(step.seconds) / batch.measured_s))
    return {source: np.concatenate(parts) for source, parts in errors.items()}


def _robust(error: Array) -> Array:
    """Return residuals whose squares are the soft L1 loss: squares up to `LINEAR_FROM`, linear beyond."""
    squared = 2 * LINEAR_FROM**2 * (np.sqrt(1 + (error / LINEAR_FROM) ** 2) - 1)
    return np.asarray(np.sign(error) * np.sqrt(squared))


def fit(data: Sequence[Batch], iterations: int = 12) -> list[float]:
    """Return the parameters of least robust squared log error, every source weighing alike."""
    from scipy.optimize import least_squares

    start, low, high = (np.array([getattr(p, name) for p in PARAMETERS]) for name in ("start", "low", "high"))
    anchor = (start - low) / (high - low)
    used = _thinned(data)

    def residuals(u: Array) -> Array:
        errors = log_errors(used, list(low + (high - low) * u))
        weighted = [_robust(error) / np.sqrt(len(error)) for error in errors.values()]
        return np.concatenate([*weighted, PRIOR_WEIGHT * (u - anchor)])

    step = np.full(len(anchor), 0.02)
    result = least_squares(residuals, anchor, bounds=(0.0, 1.0), diff_step=step, max_nfev=iterations)
    return [float(value) for value in low + (high - low) * result.x]


def _thinned(data: Sequence[Batch]) -> list[Batch]:
    sources: dict[str, list[Batch]] = defaultdict(list)
    for batch in data:
        sources[batch.source].append(batch)
    return [
        found[number]
        for found in sources.values()
        for number in np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_JOBS)).round().astype(int))
    ]


def left_out(
    rows: pd.DataFrame, column: str, progress: Callable[[float], None] | None = None
) -> dict[str, dict[str, float | int]]:
    """Return the statistics of the rows of every value of `column`, predicted by a fit on the rows without it.

    Parameters
    ----------
    rows : DataFrame
        Rows as `validate_training.read_files` gives them.
    column : str
        One of their columns.
    progress : callable
        Called with the share done.
    """
    data = batches(rows)
    values = rows[column].astype(str).to_numpy()
    result: dict[str, dict[str, float | int]] = {}
    known = sorted({value for batch in data for value in values[batch.index]})
    for number, value in enumerate(known):
        rest = [kept for batch in data if (kept := _where(batch, values[batch.index] != value)) is not None]
        own = [kept for batch in data if (kept := _where(batch, values[batch.index] == value)) is not None]
        if rest:
            result[f"{column}={value}"] = statistics(_scored(own, fit(rest)))
        if progress is not None:
            progress((number + 1) / len(known))
    return result


def _where(batch: Batch, keep: Array) -> Batch | None:
    if not keep.any():
        return None
    chosen = np.flatnonzero(keep)
    return replace(batch, index=batch.index[chosen], plan=batch.plan.taken(chosen), measured_s=batch.measured_s[chosen])


def _scored(data: Sequence[Batch], values: Sequence[float]) -> pd.DataFrame:
    frames = []
    for batch in data:
        job = tuned(batch.job, values)
        step = predict_step(job, batch.plan).step
        low, high = step_interval(job, step)
        predicted = np.asarray(step.seconds)
        frames.append(
            pd.DataFrame(
                {
                    "measured": batch.measured_s,
                    "predicted": predicted,
                    "p10": predicted * low,
                    "p90": predicted * high,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def part_shares(data: Sequence[Batch], values: Sequence[float]) -> dict[str, Array]:
    """Return the shares of the step's parts of every run, in the order of `log_errors`."""
    found: dict[str, list[Array]] = defaultdict(list)
    for batch in data:
        job = tuned(batch.job, values)
        for name, share in shares(job, predict_step(job, batch.plan).step).items():
            found[name].append(np.broadcast_to(share, batch.measured_s.shape))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def fit_spreads(errors: dict[str, Array], parts: dict[str, dict[str, Array]]) -> dict[str, float]:
    """Return the spreads under which left-out errors are likeliest, scaled so that P10-P90 covers `COVERED`.

    Notes
    -----
    Laplace likelihood, sources alike; a spread that hardly any row speaks for stays near 0.2.
    """
    from scipy.optimize import minimize

    def loss(logs: Array) -> float:
        spreads = dict(zip(SPREADS, np.exp(logs), strict=True))
        terms = []
        for source, error in errors.items():
            deviation = combined(parts[source], spreads)
            size = np.minimum(np.abs(error), LARGEST_COUNTED_ERROR)
            terms.append(np.mean(np.log(deviation) + np.sqrt(2) * size / deviation))
        return float(np.mean(terms) + 0.01 * np.mean((logs - np.log(0.2)) ** 2))

    start = np.full(len(SPREADS), np.log(0.2))
    logs = minimize(loss, start, method="L-BFGS-B", bounds=[(np.log(0.02), 0.0)] * len(SPREADS)).x
    spreads = {name: float(value) for name, value in zip(SPREADS, np.exp(logs), strict=True)}

    def uncovered(factor: float) -> float:
        shares = [
            float(np.mean(np.abs(error) > Z90 * combined(parts[source], _times(spreads, factor))))
            for source, error in errors.items()
        ]
        return float(np.mean(shares))

    low, high = 0.1, 10.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if uncovered(middle) > 1 - COVERED else (low, middle)
    return _times(spreads, high)


def _times(spreads: dict[str, float], factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in spreads.items()}


def gain_spread(data: Sequence[Batch], values: Sequence[float]) -> float:
    """Return the standard deviation of ln of ratios of two runs of one job, over its prediction; sources alike."""
    found: dict[str, list[float]] = defaultdict(list)
    for batch in data:
        if len(batch.measured_s) > 1:
            error = log_errors([batch], values)[batch.source]
            found[batch.source].append(float(np.std(error, ddof=1) * np.sqrt(2)))
    return float(np.mean([np.mean(deviation) for deviation in found.values()]))
