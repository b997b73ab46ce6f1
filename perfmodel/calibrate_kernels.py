"""An accelerator's own kernel parameters, from its measured kernels: few rows stay near the family's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import UnknownName, find
from hardware.efficiency import KernelParameters
from hardware.faults import Fault, InputError
from hardware.schema import Accelerator
from perfmodel.kernels.library import parameters_of
from perfmodel.kernels.model import Z90, Device, KernelModel, bounds_of, device_of, fit, log_errors
from perfmodel.measured_kernels import (
    KIND_COLUMN,
    MODULES,
    OTHER_KIND,
    Rows,
    accelerator_of,
    add_roofline,
    columns_of,
    model_of,
    read_csv,
    read_files,
    resolve_devices,
)
from perfmodel.validate_kernels import sample_of
from perfmodel.validation import statistics

KINDS = tuple(MODULES)
"""Kinds of kernel that can be calibrated."""

LEAST_ROWS = 10
HELD_OUT_FROM = 40
"""Rows from which on a fifth of them is held out to tell the quality."""

PRIOR_SHARE = 0.15
"""How far a device's parameters lie from its family's: standard deviation as a share of the range of each."""

PRIOR_ROWS = 10
"""Rows that the family's spread counts as beside the residuals."""

FOLDED_UP_TO = 400
"""Rows up to which cross-validation decides how strongly the fit is drawn to the family."""

FOLDS = 5
STRENGTHS = (1.0, 10.0, 100.0)
FIT_EVALUATIONS = 1000


@dataclass(frozen=True)
class Calibrated:
    """Parameters of one variant of a kernel on a device.

    Parameters
    ----------
    kind, model, variant : str
        Kind of measurement, name of its model, variant.
    rows : int
        Rows the parameters are fitted on.
    files : tuple of str
        Names of their files.
    family, parameters : KernelParameters
        Before and after.
    origin : str
        Where the parameters before come from, such as ``ampere.bf16``.
    held_out : int
        Rows that the figures are of and that their fit had not seen; 0 where they are of the fitted rows.
    before, after : dict
        Figures of the family's parameters and of the fitted ones, on the same rows.
    """

    kind: str
    model: str
    variant: str
    rows: int
    files: tuple[str, ...]
    family: KernelParameters
    parameters: KernelParameters
    origin: str
    held_out: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return what a report writes."""
        return {
            "kind": self.kind,
            "variant": self.variant,
            "rows": self.rows,
            "held_out": self.held_out,
            "origin": self.origin,
            "before": dict(self.before),
            "after": dict(self.after),
            "family": self.family.model_dump(mode="json"),
            "parameters": self.parameters.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Calibration:
    """All that was calibrated of a device.

    Parameters
    ----------
    accelerator : Accelerator
        The device, as described before.
    parts : tuple of Calibrated
        One for each kind and variant.
    skipped : list of dict
        Reasons and rows that were not used.
    faults : list of Fault
        What is wrong in the files.
    rows : DataFrame
        The usable rows, with ``kind``, ``predicted``, ``p10`` and ``p90`` [us] of the fitted parameters.
    """

    accelerator: Accelerator
    parts: tuple[Calibrated, ...]
    skipped: list[dict[str, Any]]
    faults: list[Fault]
    rows: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return what a report writes."""
        return {
            "device": self.accelerator.name,
            "calibrated": [part.to_dict() for part in self.parts],
            "skipped": self.skipped,
        }


def fitted(
    model: KernelModel,
    frame: pd.DataFrame,
    device: Device,
    family: KernelParameters,
    evaluations: int = FIT_EVALUATIONS,
) -> KernelParameters:
    """Fit parameters to rows of one device and variant, drawn to the family's.

    Notes
    -----
    The rows' logarithmic errors are taken as Laplace of standard deviation s, the family's spread, and each of P
    parameters as normal around the family's with `PRIOR_SHARE` of its range. The most likely parameters minimise

        mean |ln(predicted/measured)| + w mean(distance^2),  w = s / sqrt(2) P / (2 PRIOR_SHARE^2 rows)

    Up to `FOLDED_UP_TO` rows, five-fold cross-validation chooses among w, 10 w and 100 w: the largest whose error is
    within one standard error of the least. The spread counts the family's as `PRIOR_ROWS` rows and takes a degree of
    freedom for every parameter that w leaves free.
    """
    rows = len(frame)
    free = len(bounds_of(model.parameters))
    weight = family.spread / 2**0.5 * free / (2 * PRIOR_SHARE**2)

    def drawn(part: pd.DataFrame, strength: float) -> KernelParameters:
        sample = sample_of(model, part, device)
        return fit(model, [sample], family, shrink=strength * weight / len(part), evaluations=evaluations)

    strength = 1.0
    if rows <= FOLDED_UP_TO:
        fold = np.random.default_rng(0).permutation(rows) % FOLDS
        errors = []
        for candidate in STRENGTHS:
            error = np.empty(rows)
            for number in range(FOLDS):
                sample = sample_of(model, frame[fold == number], device)
                error[fold == number] = log_errors(model, [sample], drawn(frame[fold != number], candidate))
            errors.append(np.abs(error))
        least = min(errors, key=np.mean)
        close = [float(np.mean(error - least)) <= float(np.std(error - least)) / rows**0.5 for error in errors]
        strength = max(candidate for candidate, near in zip(STRENGTHS, close, strict=True) if near)
    found = drawn(frame, strength)
    squares = float(np.sum(log_errors(model, [sample_of(model, frame, device)], found) ** 2))
    freedom = max(rows - free * rows / (rows + PRIOR_ROWS * strength), 1.0)
    spread = ((PRIOR_ROWS * family.spread**2 + squares * rows / freedom) / (PRIOR_ROWS + rows)) ** 0.5
    return found.model_copy(update={"spread": float(spread)})


def predicted(model: KernelModel, frame: pd.DataFrame, device: Device, parameters: KernelParameters) -> pd.DataFrame:
    """Return the frame with ``predicted``, ``p10`` and ``p90`` [us]."""
    seconds = np.asarray(model.time(model.shapes(frame), device, parameters)[0], dtype=float)
    width = np.exp(Z90 * parameters.spread)
    return frame.assign(predicted=seconds * 1e6, p10=seconds * 1e6 / width, p90=seconds * 1e6 * width)


def calibrated(
    kind: str, model: KernelModel, variant: str, frame: pd.DataFrame, accelerator: Accelerator, most_rows: int | None
) -> Calibrated:
    """Fit a variant and tell the quality before and after.

    Parameters
    ----------
    kind, model, variant : str, KernelModel, str
        What was measured.
    frame : DataFrame
        Its plausible rows on one device.
    accelerator : Accelerator
        The device.
    most_rows : int
        Rows to use, drawn at random; the quality is that of the others.
    """
    device = device_of(accelerator)
    family, origin = family_of(model, accelerator, variant)
    order = np.random.default_rng(0).permutation(len(frame))
    used, checked = frame, frame
    held_out = 0
    if most_rows is not None and most_rows < len(frame):
        used, checked = frame.iloc[order[:most_rows]], frame.iloc[order[most_rows:]]
        held_out = len(checked)
    found = fitted(model, used, device, family)
    judged = found
    if not held_out and len(frame) >= HELD_OUT_FROM:
        fifth = len(frame) // 5
        checked = frame.iloc[order[:fifth]]
        judged = fitted(model, frame.iloc[order[fifth:]], device, family)
        held_out = fifth
    return Calibrated(
        kind,
        model.name,
        variant,
        len(used),
        tuple(sorted(used["file"].unique())),
        family,
        found,
        origin,
        held_out,
        statistics(predicted(model, checked, device, family)),
        statistics(predicted(model, checked, device, judged)),
    )


def family_of(model: KernelModel, accelerator: Accelerator, variant: str) -> tuple[KernelParameters, str]:
    """Return what a calibration starts from: the family's parameters, not those the accelerator has of its own.

    Raises
    ------
    KeyError
        Where no family has parameters for the variant.
    """
    found = parameters_of(model, accelerator, variant, own={})
    return found.parameters, found.origin


def _kinds_of(frame: pd.DataFrame) -> list[str]:
    """Tell what a file holds: as its ``kind`` says, else by its columns."""
    if KIND_COLUMN in frame.columns:
        return [kind for kind in KINDS if (frame[KIND_COLUMN] == kind).any()]
    return [kind for kind in KINDS if set(columns_of(model_of(kind))) <= set(frame.columns)]


def _sorted_by_kind(paths: Sequence[Path], kind: str | None) -> dict[str, list[Path]]:
    """Return the files of every kind.

    Raises
    ------
    InputError
        For every file that is of none.
    """
    found: dict[str, list[Path]] = {}
    faults = []
    for path in paths:
        frame = read_csv(path)
        kinds = _kinds_of(frame)
        if kind is not None:
            kinds = [kind] if kind in kinds else []
        if not kinds:
            lacking = {
                name: [column for column in columns_of(model_of(name)) if column not in frame.columns]
                for name in ((kind,) if kind else KINDS)
            }
            nearest = min(lacking, key=lambda name: len(lacking[name]) / len(columns_of(model_of(name))))
            missing = ", ".join(lacking[nearest]) or "rows of it"
            faults.append(Fault(str(path), 1, 1, "", f"no columns of measured kernels; {nearest} needs: {missing}"))
        for name in kinds:
            found.setdefault(name, []).append(path)
    if faults:
        raise InputError(faults)
    return found


def _one_device(found: Sequence[tuple[Rows, Mapping[str, Accelerator]]]) -> Accelerator:
    devices = {accelerator.name: accelerator for _, known in found for accelerator in known.values()}
    if len(devices) == 1:
        return next(iter(devices.values()))
    faults = [fault for rows, _ in found for fault in rows.faults]
    if not devices:
        raise InputError([*faults, Fault("calibrate", 0, 0, "", "no usable row of a known device; see --device")])
    message = f"the rows are of several devices; choose one of: {', '.join(sorted(devices))}"
    raise InputError([Fault("--device", 0, 0, "", message)])


def calibrate(
    paths: Sequence[Path],
    *,
    kind: str | None = None,
    device: str | None = None,
    hardware: Sequence[Accelerator] = (),
    most_rows: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Calibration:
    """Fit an accelerator's own kernel parameters.

    Parameters
    ----------
    paths : sequence of Path
        CSV files of measured kernels; their kinds are told apart by their columns.
    kind : str
        One of `KINDS`, where only that is wanted.
    device : str
        Accelerator whose rows are used, and that of rows that name none.
    hardware : sequence of Accelerator
        Accelerators that go before the catalogue's.
    most_rows : int
        Rows of each variant to use.
    progress : callable
        Takes the share that is done.

    Raises
    ------
    InputError
        Where a file is of no kind, the device is not known or not told, or no variant has enough rows.
    """
    target = None
    if device is not None:
        try:
            target = accelerator_of(device, hardware)
        except UnknownName as error:
            message = f"{error}; --hardware FILE describes another"
            raise InputError([Fault("--device", 0, 0, "", message)]) from None
    read: list[tuple[str, KernelModel, Rows, dict[str, Accelerator]]] = []
    for name, files in _sorted_by_kind(paths, kind).items():
        model = model_of(name)
        rows = read_files(files, name, model, device)
        known = resolve_devices(rows, hardware)
        add_roofline(rows, model, known)
        read.append((name, model, rows, known))
    target = target or _one_device([(rows, known) for _, _, rows, known in read])
    parts: list[Calibrated] = []
    frames: list[pd.DataFrame] = []
    reasons: dict[str, int] = {}

    def skip(reason: str, rows: int) -> None:
        if rows:
            reasons[reason] = reasons.get(reason, 0) + rows

    for number, (name, model, rows, known) in enumerate(read):
        progress(number / len(read))
        frame = rows.frame
        for reason, part in frame[frame["skipped"] != ""].groupby("skipped"):
            if reason != OTHER_KIND:
                skip(str(reason), len(part))
        frame = frame[frame["skipped"] == ""]
        skip("implausible: faster than memory allows", int(frame["implausible"].sum()))
        frame = frame[~frame["implausible"]]
        here = frame["device_name"].map({text: found.name for text, found in known.items()}) == target.name
        skip(f"not of {target.name}", int((~here).sum()))
        for variant, part in frame[here].groupby("variant", sort=True):
            if len(part) < LEAST_ROWS:
                skip(f"{name} {variant}: fewer than {LEAST_ROWS} rows", len(part))
                continue
            try:
                found = calibrated(name, model, str(variant), part, target, most_rows)
            except KeyError as error:
                skip(str(error.args[0]), len(part))
                continue
            parts.append(found)
            frames.append(predicted(model, part, device_of(target), found.parameters).assign(kind=name))
    skipped = [{"reason": reason, "rows": rows} for reason, rows in reasons.items()]
    faults = [fault for _, _, rows, _ in read for fault in rows.faults]
    if not parts:
        said = "; ".join(f"{entry['reason']} ({entry['rows']} rows)" for entry in skipped)
        raise InputError(
            [*faults, Fault("calibrate", 0, 0, "", f"nothing to fit {target.name} on: {said or 'no rows'}")]
        )
    return Calibration(target, tuple(parts), skipped, faults, pd.concat(frames, ignore_index=True))


def description(calibration: Calibration, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accelerator's description with its own efficiency.

    Parameters
    ----------
    calibration : Calibration
        What was fitted.
    written : mapping
        The description as its file has it, quantities with their units.

    """
    data = dict(written)
    efficiency = dict(data.get("efficiency") or {})
    provenance = dict(efficiency.pop("provenance", None) or {})
    for part in calibration.parts:
        key = f"{part.model}.{part.variant}"
        values = {name: float(f"{value:.4g}") for name, value in part.parameters.model_dump(mode="json").items()}
        efficiency[part.model] = {**(efficiency.get(part.model) or {}), part.variant: values}
        quality = f"{part.before['mape']:.1%} before, {part.after['mape']:.1%} after"
        of = f"{part.held_out} rows held out" if part.held_out else "the fitted rows"
        provenance[key] = {
            "source": f"{part.rows} rows of {', '.join(part.files)}; perfmodel calibrate",
            "date": date.today().isoformat(),
            "evidence": "measured",
            "note": f"MAPE {quality}, of {of}; drawn to {part.origin}",
        }
    return {**data, "efficiency": {**efficiency, "provenance": provenance}}


def written_description(accelerator: Accelerator) -> dict[str, Any]:
    """Return an accelerator as plain data: as the catalogue's file has it, else from the parsed description."""
    from importlib.resources import files

    from hardware.yaml_source import read_yaml

    try:
        same = find("accelerator", accelerator.name) == accelerator
    except UnknownName:
        same = False
    if same:
        path = files("hardware") / "catalog" / "accelerators" / f"{accelerator.name}.yaml"
        return dict(read_yaml(path.read_text(encoding="utf-8"), path.name).data)
    data: dict[str, Any] = accelerator.model_dump(mode="json", exclude_unset=True)
    return data
