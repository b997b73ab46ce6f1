"""Fit of what inference engines add to their kernels, on measured operating points.

Residuals are ln(predicted/measured) of tokens' times, throughputs and, with a smaller weight, times to the first token
below 20 s (an overload shows there as a queue of any length); beyond `LINEAR_FROM` they count linearly. A weak prior
holds a constant that few rows show near where it starts. What only moves the first token is then fitted alone, for the
least mean error of times to it: some of them are ten times what others of the same deployment are, which an error as a
share of what was measured does not follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from perfmodel.serving.engine import Engine, engine_of, engines
from perfmodel.serving.validate_serving import Laws, predict_rows, with_intervals
from perfmodel.terms import Array
from perfmodel.validation import Defaults, statistics


@dataclass(frozen=True)
class Constant:
    """A fitted constant of an engine: where it starts, and how far its logarithm goes for a residual of 100 %."""

    name: str
    start: float
    prior: float


CONSTANTS = (
    Constant("step_overhead", 1.5e-3, 1.0),
    Constant("sequence_overhead", 8e-6, 1.0),
    Constant("layer_overhead", 8e-6, 1.0),
    Constant("eager_overhead", 8e-4, 1.5),
    Constant("prompt_overhead", 3e-2, 2.0),
    Constant("request_overhead", 1e-2, 2.0),
    Constant("intake_steps", 4.0, 2.0),
    Constant("handoff_overhead", 1e-1, 1.0),
    Constant("launch", 0.4, 0.6),
    Constant("speed", 1.0, 0.12),
    Constant("expert_speed", 1.0, 0.3),
)

OVERHEADS = (
    "step_overhead",
    "sequence_overhead",
    "layer_overhead",
    "eager_overhead",
    "prompt_overhead",
    "request_overhead",
    "handoff_overhead",
)
"""What belongs to the host, and is scaled together by three rows of one's own."""

HOST = ("prompt_overhead", "request_overhead", "intake_steps")
"""What only moves the first token."""

LINEAR_FROM = 0.15
WEIGHTS = {"ttft_ms_mean": 0.6}
LONGEST_TTFT_MS = 20e3
ROUNDS, STEP, FURTHEST = 5, 0.08, 1.0
"""Gauss-Newton steps, difference of a logarithm for slopes, and the largest change of a logarithm in a step."""

HOST_STARTS = ((0.04, 0.015, 4.0), (0.02, 0.003, 20.0), (0.08, 0.03, 1.0))
EVALUATIONS = 150
"""Where the host's constants start, in the order of `HOST`, and tries from each: the error has several least values."""

ROWS = 170
"""Rows of an engine that are fitted on."""


def fitting_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that count: no unmarked speculation, without times to the first token that show an overload."""
    known = rows[(rows["skipped"] == "") & (rows.get("spec_decode", "none") == "none")].copy()
    known["name"] = [getattr(engine_of(str(text)), "name", "") for text in known["engine"]]
    if "ttft_ms_mean" in known:
        known.loc[known["ttft_ms_mean"] > LONGEST_TTFT_MS, "ttft_ms_mean"] = np.nan
    return known


def sampled(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return about `count` rows; a model on a device in a precision and regime has a share as the root of its rows."""
    groups = rows.groupby(["model", "gpu", "precision_weights", "regime", "disaggregated"], dropna=False)
    share = count / np.sqrt(groups.size()).sum()
    return pd.concat(
        [part.sample(min(len(part), max(2, round(share * len(part) ** 0.5))), random_state=0) for _, part in groups]
    )


def changed(engine: Engine, logs: Array) -> Engine:
    """Return an engine with other constants, given by their logarithms."""
    values = {constant.name: float(np.exp(log)) for constant, log in zip(CONSTANTS, logs, strict=True)}
    return engine.model_copy(update=values)


def residuals(rows: pd.DataFrame, engine: Engine) -> Array:
    """Return ln(predicted/measured) of every line, weighted."""
    lines = predict_rows(rows, Defaults(), engines() | {engine.name: engine})
    lines = lines[lines["skipped"] == ""]
    weights = np.array([WEIGHTS.get(metric, 1.0) for metric in lines["metric"]])
    ratio = np.asarray(lines["predicted"], float) / np.asarray(lines["measured"], float)
    return np.asarray(np.log(ratio) * weights)


def fitted(rows: pd.DataFrame, engine: Engine) -> Engine:
    """Return an engine with its constants fitted: reweighted Gauss-Newton steps from where they start."""
    start = np.log([constant.start for constant in CONSTANTS])
    prior = np.array([constant.prior for constant in CONSTANTS]) ** -2
    logs = start.copy()
    for _ in range(ROUNDS):
        here = residuals(rows, changed(engine, logs))
        slopes = []
        for number in range(len(CONSTANTS)):
            moved = logs.copy()
            moved[number] += STEP
            slopes.append((residuals(rows, changed(engine, moved)) - here) / STEP)
        jacobian = np.stack(slopes, axis=1)
        weight = 1.0 / np.maximum(np.abs(here) / LINEAR_FROM, 1.0)
        normal = jacobian.T @ (weight[:, None] * jacobian) + np.diag(prior)
        step = np.linalg.solve(normal, -(jacobian.T @ (weight * here)) - (logs - start) * prior)
        logs = logs + np.clip(step, -FURTHEST, FURTHEST)
    return changed(engine, logs)


def with_host(rows: pd.DataFrame, engine: Engine) -> Engine:
    """Return an engine with the host's constants fitted to rows' times to the first token alone."""
    from scipy.optimize import minimize

    laws: Laws = {}

    def other(logs: Array) -> Engine:
        return engine.model_copy(update=dict(zip(HOST, np.exp(logs).tolist(), strict=True)))

    def error(logs: Array) -> float:
        lines = predict_rows(rows, Defaults(), engines() | {engine.name: other(logs)}, laws=laws)
        lines = lines[(lines["skipped"] == "") & (lines["metric"] == "ttft_ms_mean")]
        size = np.abs(lines["predicted"] / lines["measured"] - 1)
        return float(np.where(size < LINEAR_FROM, size**2 / (2 * LINEAR_FROM), size - LINEAR_FROM / 2).mean())

    tried = [
        minimize(
            error,
            np.log(start),
            method="Nelder-Mead",
            options={"xatol": 0.02, "fatol": 1e-4, "maxfev": EVALUATIONS},
        )
        for start in HOST_STARTS
    ]
    return other(min(tried, key=lambda one: float(one.fun)).x)


def whole_fit(rows: pd.DataFrame, engine: Engine, count: int) -> Engine:
    """Return an engine with all constants fitted, on about `count` rows of each kind."""
    found = fitted(sampled(rows, count), engine)
    first = rows[rows["ttft_ms_mean"].notna()]
    return with_host(sampled(first, count), found) if len(first) else found


def overhead_factor(rows: pd.DataFrame, engine: Engine) -> float:
    """Return by how much all overheads of an engine are scaled to meet a few rows of one's own, three or more.

    Notes
    -----
    The factor of least mean |ln(predicted/measured)| among 25 from a fifth to five.
    """
    best = (float("inf"), 1.0)
    for factor in np.geomspace(0.2, 5.0, 25):
        error = float(np.abs(residuals(rows, scaled_engine(engine, float(factor)))).mean())
        best = min(best, (error, float(factor)))
    return best[1]


def scaled_engine(engine: Engine, factor: float) -> Engine:
    """Return an engine with every overhead so many times as large."""
    return engine.model_copy(update={name: factor * getattr(engine, name) for name in OVERHEADS})


def quality(rows: pd.DataFrame, engine: Engine) -> dict[str, dict[str, float | int]]:
    """Return the error statistics of rows under an engine's constants, by metric."""
    lines = with_intervals(predict_rows(rows, Defaults(), engines() | {engine.name: engine}))
    lines = lines[lines["skipped"] == ""]
    return {str(metric): statistics(part) for metric, part in lines.groupby("metric")}


def left_out(rows: pd.DataFrame, column: str, progress: Callable[[float], None] | None = None) -> dict[str, Any]:
    """Return the figures of rows that were left out of the fit, by value of a column and metric.

    Parameters
    ----------
    rows : DataFrame
        Rows as of `read_files`.
    column : str
        Whose values are left out in turn; every engine is fitted on its own rows without them.
    progress : callable
        Called with the share that is done.
    """
    known = fitting_rows(rows)
    values: Sequence[Any] = list(known[column].dropna().unique())
    found: dict[str, Any] = {}
    for number, value in enumerate(values):
        out = known[known[column] == value]
        lines = []
        for name in [name for name in out["name"].unique() if name]:
            rest = known[(known["name"] == name) & (known[column] != value)]
            engine = whole_fit(rest, engines()[name], ROWS) if len(rest) else engines()[name]
            lines.append(predict_rows(out[out["name"] == name], Defaults(), engines() | {name: engine}))
        together = with_intervals(pd.concat(lines, ignore_index=True))
        together = together[together["skipped"] == ""]
        for metric, part in together.groupby("metric"):
            found[f"{column}={value},{metric}"] = statistics(part)
        if progress is not None:
            progress((number + 1) / len(values))
    return found
