"""Fit of the power model's constants on measured rows, and figures of rows that took no part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hardware.schema import Accelerator
from perfmodel.power.constants import PowerConstants, Shares, Throttle, power_constants
from perfmodel.power.device import Activity, board_power_w
from perfmodel.power.throttle import capped_speed
from perfmodel.terms import Array
from perfmodel.validate_power import board_of, lines_of, measured_activity, predict_rows, serving_rows
from perfmodel.validation import Defaults, column, grouped

COMMON: dict[str, tuple[float, float]] = {
    "padded_rows": (1.0, 256.0),
    "block_scaled": (0.5, 4.0),
    "cache": (1.0, 5.0),
    "compute_exponent": (0.3, 1.0),
}
"""Constants of all boards that are fitted, and where they may lie."""

BOARD: dict[str, tuple[float, float]] = {"memory": (0.0, 2.0), "compute": (0.0, 3.0)}
CONTEXT: dict[str, tuple[float, float]] = {"context": (0.05, 0.5)}
THROTTLE: dict[str, tuple[float, float]] = {
    "static": (0.02, 0.36),
    "fluctuation": (0.02, 0.6),
    "voltage_floor": (0.2, 1.0),
}

WIDTH = 80.0
"""Percent of residuals that lie between P10 and P90."""

Part = tuple[str, Accelerator, pd.DataFrame, Any]


def fit_serving(frame: pd.DataFrame, start: PowerConstants | None = None, rounds: int = 2000) -> PowerConstants:
    """Return the constants with those of serving fitted: the least mean absolute relative error.

    Parameters
    ----------
    frame : DataFrame
        Rows of `read_files`; those of other kinds are left alone.
    start : PowerConstants
        Where the search begins, and what boards without rows keep; the shipped ones if left out.
    rounds : int
        Most steps of the search.
    """
    known = start or power_constants()
    parts: list[Part] = []
    for gpu, rows in _usable(frame, "serving").groupby("gpu"):
        board = board_of(str(gpu))
        if board is None or board.name not in known.boards:
            continue
        with_prompts, sizes = serving_rows(rows, Defaults())
        parts.append((board.name, board, with_prompts, sizes))
    if not parts:
        return known
    bounds = [*COMMON.values(), *(bound for _ in parts for bound in BOARD.values())]
    begin = [getattr(known, name) for name in COMMON]
    begin += [getattr(known.boards[name], part) for name, *_ in parts for part in BOARD]

    def constants(values: Array) -> PowerConstants:
        boards = dict(known.boards)
        for number, (name, *_) in enumerate(parts):
            own = values[len(COMMON) + number * len(BOARD) :][: len(BOARD)]
            boards[name] = replace(boards[name], **dict(zip(BOARD, map(float, own), strict=True)))
        common: dict[str, Any] = dict(zip(COMMON, map(float, values), strict=False))
        return replace(known, boards=boards, **common)

    def errors(tried: PowerConstants) -> list[Array]:
        found = []
        for name, board, rows, sizes in parts:
            activity: Activity = measured_activity(rows, sizes, board, tried)
            watts = board_power_w(board, activity, shares=tried.boards[name], constants=tried)
            found.append(np.log(watts / rows["power_per_gpu_w"].to_numpy(float)))
        return found

    def loss(values: Array) -> float:
        return float(np.abs(np.expm1(np.concatenate(errors(constants(values))))).mean())

    fitted = constants(_least(loss, begin, bounds, rounds))
    boards = dict(fitted.boards)
    for (name, *_), error in zip(parts, errors(fitted), strict=True):
        boards[name] = replace(boards[name], spread=spread_of(error))
    return replace(fitted, boards=boards)


def fit_phases(frame: pd.DataFrame, start: PowerConstants | None = None, rounds: int = 300) -> PowerConstants:
    """Return the constants with those of boards fitted that only phases of one model were measured on."""
    known = start or power_constants()
    boards = dict(known.boards)
    for gpu, rows in _usable(frame, "phases").groupby("gpu"):
        board = board_of(str(gpu))
        if board is not None and board.name in boards:
            boards[board.name] = fit_shares(rows, board, boards[board.name], known, rounds=rounds)
    return replace(known, boards=boards)


def share_errors(rows: pd.DataFrame, board: Accelerator, shares: Shares, known: PowerConstants) -> Array:
    """Return ln(predicted/measured) of every value that was measured on a board, with some shares of it."""
    constants = replace(known, boards={**known.boards, board.name: shares})
    lines = [
        line
        for schema, same in rows.groupby("schema", sort=False)
        for line in lines_of(str(schema), same, board, Defaults(), constants)
    ]
    found = pd.concat(lines, ignore_index=True)
    scored = found[found["skipped"] == ""]
    return np.asarray(np.log(scored["predicted"].to_numpy(float) / scored["measured"].to_numpy(float)))


def fit_shares(
    rows: pd.DataFrame, board: Accelerator, start: Shares, known: PowerConstants, *, rounds: int = 300
) -> Shares:
    """Return the shares of a board with the least mean absolute relative error of what was measured on it.

    Parameters
    ----------
    rows : DataFrame
        Usable rows of `read_files` on the board; of idle boards its context is fitted too.
    start : Shares
        Where the search begins.
    known : PowerConstants
        What all boards share.
    rounds : int
        Most steps of the search.
    """
    asked = BOARD | (CONTEXT if "idle_w" in rows and rows["idle_w"].notna().any() else {})

    def tried(values: Array) -> Shares:
        return replace(start, **dict(zip(asked, map(float, values), strict=True)))

    def loss(values: Array) -> float:
        return float(np.abs(np.expm1(share_errors(rows, board, tried(values), known))).mean())

    found = tried(_least(loss, [getattr(start, name) for name in asked], list(asked.values()), rounds))
    return replace(found, spread=spread_of(share_errors(rows, board, found, known)))


def fit_throttles(frame: pd.DataFrame, start: PowerConstants | None = None, rounds: int = 400) -> PowerConstants:
    """Return the constants with those of capped speed fitted, family by family."""
    known = start or power_constants()
    throttles = dict(known.throttles)
    for gpu, rows in _usable(frame, "caps").groupby("gpu"):
        board = board_of(str(gpu))
        if board is not None and board.architecture in throttles:
            throttles[board.architecture] = fit_throttle(rows, throttles[board.architecture], rounds=rounds)
    return replace(known, throttles=throttles)


def throttle_errors(rows: pd.DataFrame, throttle: Throttle) -> Array:
    """Return ln(predicted/measured) of the speed of training runs under caps, beside those of each at its highest."""
    keys = ["gpu", "dataset", "network", "batch"]
    top = rows.loc[rows.groupby(keys)["power_limit_w"].idxmax()].set_index(keys)
    same = top.loc[pd.MultiIndex.from_frame(rows[keys])]
    below = rows["power_limit_w"].to_numpy(float) < same["power_limit_w"].to_numpy(float)
    watts, highest, seconds = (
        same[name].to_numpy(float)[below] for name in ("avg_power_w", "power_limit_w", "epoch_time_s")
    )
    limit, taken_s = (rows[name].to_numpy(float)[below] for name in ("power_limit_w", "epoch_time_s"))
    return np.asarray(np.log(capped_speed(watts, limit, highest, throttle) * taken_s / seconds))


def fit_throttle(rows: pd.DataFrame, start: Throttle, *, rounds: int = 400) -> Throttle:
    """Return how a board meets caps, with the least mean absolute error of training runs under them."""

    def tried(values: Array) -> Throttle:
        return replace(start, **dict(zip(THROTTLE, map(float, values), strict=True)))

    def loss(values: Array) -> float:
        return float(np.abs(throttle_errors(rows, tried(values))).mean())

    found = tried(_least(loss, [getattr(start, name) for name in THROTTLE], list(THROTTLE.values()), rounds))
    return replace(found, spread=spread_of(throttle_errors(rows, found)))


def fit(frame: pd.DataFrame, start: PowerConstants | None = None) -> PowerConstants:
    """Return the constants fitted on all rows that tell about them."""
    return fit_throttles(frame, fit_phases(frame, fit_serving(frame, start)))


def left_out(frame: pd.DataFrame, name: str, progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """Return the figures of the rows of each value of a column, predicted by constants fitted without them."""
    labels = frame[column("--leave-out", frame, name)].astype(str)
    values, parts = sorted(labels.unique()), []
    for number, value in enumerate(values):
        progress(number / len(values))
        found = fit(frame[labels != value])
        parts.append(predict_rows(frame[labels == value], Defaults(), constants=found))
    rows = pd.concat(parts, ignore_index=True)
    scored = rows[rows["skipped"] == ""]
    result: dict[str, Any] = {}
    for metric, lines in scored.groupby("metric", sort=False):
        prefix = "" if scored["metric"].nunique() == 1 else f"metric={metric},"
        lines = lines.assign(**{name: lines[name].astype(str)})
        result |= {prefix + key: figures for key, figures in grouped(lines, [name]).items()}
    return result


def written(constants: PowerConstants) -> Mapping[str, Any]:
    """Return the constants as ``calibrated/power.yaml`` holds them."""

    def rounded(one: Shares | Throttle) -> dict[str, float]:
        return {key: float(f"{value:.3g}") for key, value in vars(one).items()}

    return {
        "boards": {name: rounded(one) for name, one in constants.boards.items()},
        "throttles": {name: rounded(one) for name, one in constants.throttles.items()},
        "common": {name: float(f"{getattr(constants, name):.3g}") for name in COMMON},
    }


def _usable(frame: pd.DataFrame, schema: str) -> pd.DataFrame:
    return frame[(frame["schema"] == schema) & (frame["skipped"] == "")]


def spread_of(log_errors: Array) -> float:
    """Return the standard deviation whose P10 and P90 hold `WIDTH` percent of logarithmic errors."""
    return float(np.percentile(np.abs(log_errors), WIDTH) / 1.2816)


def _least(
    loss: Callable[[Array], float], begin: Sequence[float], bounds: Sequence[tuple[float, float]], rounds: int
) -> Array:
    """Return where a loss is least, searched in units of each bound's width."""
    from scipy.optimize import minimize

    low, high = (np.array([bound[side] for bound in bounds]) for side in (0, 1))
    scaled = np.clip((np.asarray(begin) - low) / (high - low), 0.02, 0.98)
    options = {"maxiter": rounds, "xatol": 1e-4, "fatol": 1e-6, "adaptive": True}
    for _ in range(2):  # a second simplex from the first's end leaves flat corners
        start: Any = scaled
        found: Any = minimize(  # type: ignore[call-overload]
            lambda x: loss(low + x * (high - low)),
            start,
            method="Nelder-Mead",
            bounds=[(0, 1)] * len(low),
            options=options,
        )
        scaled = found.x
    return np.asarray(low + scaled * (high - low))
