"""A board's own parameters of the power model, from measured watts and training under power caps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.faults import Fault, InputError
from hardware.schema import Accelerator
from perfmodel.power.constants import Shares, Throttle, power_constants, shares_of, throttle_of
from perfmodel.power.device import Z90
from perfmodel.power.power_fit import fit_shares, fit_throttle, share_errors, spread_of, throttle_errors
from perfmodel.terms import Array
from perfmodel.validate_power import board_of, read_files

FEWEST_ROWS = 10
"""Rows that parameters are fitted on at least."""

FOLDS = 5
"""Parts of the rows, each predicted by a fit on the others, from which figures and the interval come."""

ROUNDS, FOLD_ROUNDS = 120, 40
"""Most steps of a search, and of one that starts at the result of another."""


@dataclass(frozen=True)
class Part:
    """What was fitted of one kind.

    Parameters
    ----------
    name : str
        ``power`` or ``throttle``.
    rows : int
        How many rows it was fitted on.
    origin : str
        Whose parameters it had before.
    before, after : dict
        Figures of the rows by the parameters before, and by fits that each left a fifth of the rows out.
    start, parameters : Shares or Throttle
        Before, and fitted.
    """

    name: str
    rows: int
    origin: str
    before: dict[str, float]
    after: dict[str, float]
    start: Shares | Throttle
    parameters: Shares | Throttle


@dataclass(frozen=True)
class PowerCalibration:
    """What was fitted of a board, of which files, and which rows took no part."""

    accelerator: Accelerator
    files: tuple[str, ...]
    parts: tuple[Part, ...]
    skipped: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report, in the form of that of kernels."""
        return {
            "kind": "power",
            "device": self.accelerator.name,
            "calibrated": [
                {
                    "kind": part.name,
                    "variant": "",
                    "rows": part.rows,
                    "held_out": part.rows,
                    "origin": part.origin,
                    "unmeasured": None,
                    "before": part.before,
                    "after": part.after,
                    "family": vars(part.start),
                    "parameters": vars(part.parameters),
                }
                for part in self.parts
            ],
            "skipped": list(self.skipped),
        }

    def description(self, written: dict[str, Any]) -> dict[str, Any]:
        """Return the accelerator's description with its own parameters.

        Parameters
        ----------
        written : dict
            The description as its file has it.
        """
        efficiency = dict(written.get("efficiency") or {})
        provenance = dict(efficiency.pop("provenance", None) or {})
        for part in self.parts:
            efficiency[part.name] = {name: float(f"{value:.4g}") for name, value in vars(part.parameters).items()}
            provenance[part.name] = {
                "source": f"{part.rows} rows of {', '.join(self.files)}; perfmodel calibrate",
                "date": date.today().isoformat(),
                "evidence": "measured",
                "note": f"MAPE {part.before['mape']:.1%} before, {part.after['mape']:.1%} after, rows left out in turn",
            }
        return {**written, "efficiency": {**efficiency, "provenance": provenance}}


def calibrate(
    paths: Sequence[Path],
    *,
    device: str | None = None,
    hardware: Sequence[Accelerator] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> PowerCalibration:
    """Fit a board's own shares of power, and how it meets caps, to measured rows.

    Parameters
    ----------
    paths : sequence of Path
        CSV files of any kinds that `perfmodel.validate_power` reads.
    device : str
        Whose rows to use; that of rows that name one alone.
    hardware : sequence of Accelerator
        Boards that rows may name beside the catalogue's.
    progress : callable
        Takes the share that is done.

    Raises
    ------
    InputError
        Rows of several boards, of none that is known, or too few.
    """
    frame = read_files(paths)
    boards = {gpu: board_of(gpu, hardware) for gpu in map(str, frame["gpu"].dropna().unique())}
    wanted = None if device is None else board_of(device, hardware)
    chosen = {one.name: one for one in boards.values() if one is not None and (device is None or one == wanted)}
    if len(chosen) != 1:
        names = ", ".join(boards) or "none"
        message = f"rows of one known board are needed; --device chooses among several [got {names}]"
        raise InputError([Fault(str(paths[0]), 0, 0, "gpu", message)])
    (board,) = chosen.values()
    usable = frame[(frame["skipped"] == "") & frame["gpu"].map(lambda gpu: boards.get(str(gpu)) == board)]
    drawn, capped = usable[usable["schema"] != "caps"], usable[usable["schema"] == "caps"]
    parts = []
    if len(drawn) >= FEWEST_ROWS:
        parts.append(_shares_part(drawn, board, progress))
    progress(0.8)
    if len(capped) >= FEWEST_ROWS:
        parts.append(_throttle_part(capped, board))
    if not parts:
        message = f"{len(drawn)} rows of watts and {len(capped)} under caps of {board.name}; {FEWEST_ROWS} of a kind do"
        raise InputError([Fault(str(paths[0]), 0, 0, "gpu", message)])
    left = frame[frame["skipped"] != ""]["skipped"].value_counts()
    others = len(frame) - len(usable) - int(left.sum())
    skipped = [{"reason": str(reason), "rows": int(count)} for reason, count in left.items()]
    skipped += [{"reason": "another board", "rows": others}] if others else []
    return PowerCalibration(board, tuple(path.name for path in paths), tuple(parts), tuple(skipped))


def _folds(rows: pd.DataFrame) -> list[Array]:
    """Return which rows each part holds; rows are dealt out in turn, so that parts are alike."""
    return [np.arange(len(rows)) % FOLDS == number for number in range(FOLDS)]


def _shares_part(rows: pd.DataFrame, board: Accelerator, progress: Callable[[float], None]) -> Part:
    known, start = power_constants(), shares_of(board)
    found = fit_shares(rows, board, start, known, rounds=ROUNDS)
    errors = []
    for number, out in enumerate(_folds(rows)):
        progress(0.2 + 0.6 * number / FOLDS)
        apart = fit_shares(rows[~out], board, found, known, rounds=FOLD_ROUNDS)
        errors.append(share_errors(rows[out], board, apart, known))
    left_out = np.concatenate(errors)
    fitted = Shares(found.context, found.memory, found.compute, spread_of(left_out))
    before = _figures(share_errors(rows, board, start, known), start.spread)
    return Part("power", len(rows), "before", before, _figures(left_out, fitted.spread), start, fitted)


def _throttle_part(rows: pd.DataFrame, board: Accelerator) -> Part:
    start = throttle_of(board)
    found = fit_throttle(rows, start, rounds=ROUNDS)
    groups = rows.groupby(["dataset", "network", "batch"]).ngroup().to_numpy() % FOLDS  # references stay with theirs
    errors = []
    for number in range(FOLDS):
        out = groups == number
        if out.any() and not out.all():
            errors.append(throttle_errors(rows[out], fit_throttle(rows[~out], found, rounds=FOLD_ROUNDS)))
    left_out = np.concatenate(errors) if errors else throttle_errors(rows, found)
    fitted = Throttle(found.static, found.fluctuation, found.voltage_floor, spread_of(left_out))
    before = _figures(throttle_errors(rows, start), start.spread)
    return Part("throttle", len(rows), "before", before, _figures(left_out, fitted.spread), start, fitted)


def _figures(log_errors: Array, spread: float) -> dict[str, float]:
    return {
        "mape": float(np.abs(np.expm1(log_errors)).mean()),
        "mean_abs_log_error": float(np.abs(log_errors).mean()),
        "bias": float(np.exp(log_errors.mean())),
        "coverage_p10_p90": float((np.abs(log_errors) <= Z90 * spread).mean()),
    }
