"""An accelerator's own kernel parameters, from its measured kernels: few rows stay near the family's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import UnknownName, find
from hardware.efficiency import KernelParameters
from hardware.faults import Fault, InputError
from hardware.schema import Accelerator
from hardware.yaml_source import did_you_mean
from perfmodel.kernels.library import Found, families, parameters_of
from perfmodel.kernels.model import (
    Z90,
    Device,
    KernelModel,
    Sample,
    bounds_of,
    device_of,
    fit,
    log_errors,
    spread_of,
)
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
from perfmodel.terms import Array
from perfmodel.validate_kernels import sample_of
from perfmodel.validation import statistics

KINDS = tuple(MODULES)
"""Kinds of kernel that can be calibrated."""

LEAST_ROWS = 10
HELD_OUT_FROM = 40
"""Rows from which on a fifth of them is held out to tell the quality."""

PRIOR_LOG = 0.15
"""How far a device's parameters lie from those a fit starts from: standard deviation of the logarithm of each. The
median over the parameters of the two measured families is 0.13 for products and copies (``fit_kernels.py``)."""

ROWS_PER_FINDING = 4.0
"""Rows that count as one: like kernels miss alike, since a model's error is not noise."""

PRIOR_ROWS = 10
"""Rows that the spread a fit starts from counts as beside the residuals."""

FOLDED_UP_TO = 400
"""Rows up to which cross-validation decides how many parameters leave their start."""

FOLDS = 5
EVALUATIONS_PER_PARAMETER = 30
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
    unmeasured : dict or None
        Those of what the device would get had nothing of it been measured, where the family was fitted on this very
        device: another family's parameters.
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
    unmeasured: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what a report writes."""
        return {
            "kind": self.kind,
            "variant": self.variant,
            "rows": self.rows,
            "held_out": self.held_out,
            "origin": self.origin,
            "unmeasured": None if self.unmeasured is None else dict(self.unmeasured),
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


def nested(model: KernelModel) -> tuple[tuple[str, ...], ...]:
    """Return sets of parameters that may leave their start, each more than the one before.

    First the launch, which belongs to host and library as much as to the device, then the sustained shares of bandwidth
    and of peak, last what is left: how a library cuts and schedules its work.
    """
    everything = tuple(bounds_of(model.parameters))
    launch = tuple(name for name in everything if name.startswith("launch"))
    shares = tuple(name for name in ("memory", "compute") if name in everything)
    return tuple(dict.fromkeys((launch, *(launch + shares[: 1 + i] for i in range(len(shares))), everything)))


def fitted(
    model: KernelModel,
    frame: pd.DataFrame,
    device: Device,
    start: KernelParameters,
    *,
    foreign: bool = False,
    evaluations: int = FIT_EVALUATIONS,
) -> KernelParameters:
    """Fit parameters to rows of one device and variant, as far from where they start as the rows can tell.

    Parameters
    ----------
    model : KernelModel
        The model.
    frame : DataFrame
        The rows.
    device : Device
        Where they ran.
    start : KernelParameters
        The family's parameters, their spread widened where they are another's.
    foreign : bool
        Whether they are another family's or variant's.
    evaluations : int
        Evaluations of the model at most, of a fit on more than `FOLDED_UP_TO` rows.

    Notes
    -----
    Logarithmic errors are taken as Laplace of standard deviation s, the start's spread, `ROWS_PER_FINDING` rows as one,
    and the logarithm of each parameter as nearly normal around the start's with `PRIOR_LOG`. The most likely parameters
    minimise

        mean |ln(predicted/measured)| + s / sqrt(2) ROWS_PER_FINDING / rows  sum (ln(parameter/start) / PRIOR_LOG)^2 / 2

    with squares that turn linear far off (``FAR`` of ``perfmodel.kernels.model``). Up to `FOLDED_UP_TO` rows,
    parameters of the device's own family stay as they are; of another's, launch and share of bandwidth follow the rows,
    which are what differs between the measured families (``benchmarks/ablate_gemm.py``). Five-fold cross-validation
    takes another of the sets of `nested` only for an error of rows held out that is less by more than twice its
    standard error. The spread is that of errors held out, the start's counted as `PRIOR_ROWS` rows beside them.
    """
    rows = len(frame)
    weight = start.spread / 2**0.5 * ROWS_PER_FINDING / (2 * PRIOR_LOG**2)
    whole = sample_of(model, frame, device)
    everything = tuple(bounds_of(model.parameters))

    def drawn(sample: Sample, free: tuple[str, ...], most: int) -> KernelParameters:
        if not free:
            return start
        fixed = [name for name in everything if name not in free]
        shrink = weight / len(sample.seconds)
        return fit(model, [sample], start, fixed=fixed, shrink=shrink, evaluations=most)

    if rows > FOLDED_UP_TO:
        found = drawn(whole, everything, evaluations)
        errors = log_errors(model, [whole], found)
    else:
        fold = np.random.default_rng(0).permutation(rows) % FOLDS
        folds = [(fold == number, _rows(whole, fold != number)) for number in range(FOLDS)]
        held_out: dict[tuple[str, ...], Array] = {(): log_errors(model, [whole], start)}
        for free in nested(model):
            held_out[free] = np.empty(rows)
            for chosen, rest in folds:
                near = drawn(rest, free, EVALUATIONS_PER_PARAMETER * (1 + len(free)))
                held_out[free][chosen] = log_errors(model, [_rows(whole, chosen)], near)
        usual = nested(model)[1] if foreign else ()
        best = min(held_out, key=lambda free: float(np.mean(np.abs(held_out[free]))))
        gain = np.abs(held_out[usual]) - np.abs(held_out[best])
        if np.mean(gain) <= 2 * np.std(gain) / rows**0.5:
            best = usual
        found = drawn(whole, best, 3 * EVALUATIONS_PER_PARAMETER * (1 + len(best)))
        errors = held_out[best]
    variance = (PRIOR_ROWS * start.spread**2 + rows * spread_of([errors]) ** 2) / (PRIOR_ROWS + rows)
    return found.model_copy(update={"spread": float(variance**0.5)})


def _rows(sample: Sample, chosen: Array) -> Sample:
    shapes = {name: values[chosen] for name, values in sample.shapes.items()}
    return Sample(sample.device, shapes, sample.seconds[chosen])


def predicted(model: KernelModel, frame: pd.DataFrame, device: Device, parameters: KernelParameters) -> pd.DataFrame:
    """Return the frame with ``predicted``, ``p10`` and ``p90`` [us]."""
    seconds = np.asarray(model.time(model.shapes(frame), device, parameters)[0], dtype=float)
    width = np.exp(Z90 * parameters.spread)
    return frame.assign(predicted=seconds * 1e6, p10=seconds * 1e6 / width, p90=seconds * 1e6 * width)


def calibrated(
    kind: str,
    model: KernelModel,
    variant: str,
    frame: pd.DataFrame,
    accelerator: Accelerator,
    most_rows: int | None,
    family: str | None = None,
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
    family : str
        Family whose parameters the fit starts from; the device's own if left out.
    """
    device = device_of(accelerator)
    start = start_of(model, accelerator, variant, family)
    order = np.random.default_rng(0).permutation(len(frame))
    used, checked = frame, frame
    held_out = 0
    if most_rows is not None and most_rows < len(frame):
        used, checked = frame.iloc[order[:most_rows]], frame.iloc[order[most_rows:]]
        held_out = len(checked)

    def fit_on(rows: pd.DataFrame) -> KernelParameters:
        return fitted(model, rows, device, start.parameters, foreign=start.widening > 0)

    def figures(parameters: KernelParameters) -> dict[str, Any]:
        return statistics(predicted(model, checked, device, parameters))

    found = judged = fit_on(used)
    if not held_out and len(frame) >= HELD_OUT_FROM:
        fifth = len(frame) // 5
        checked = frame.iloc[order[:fifth]]
        judged = fit_on(frame.iloc[order[fifth:]])
        held_out = fifth
    unmeasured = unmeasured_start(model, accelerator, variant, start)
    return Calibrated(
        kind,
        model.name,
        variant,
        len(used),
        tuple(sorted(used["file"].unique())),
        start.parameters,
        found,
        start.origin,
        held_out,
        figures(start.parameters),
        figures(judged),
        None if unmeasured is None else figures(unmeasured.parameters),
    )


def start_of(model: KernelModel, accelerator: Accelerator, variant: str, family: str | None = None) -> Found:
    """Return what a calibration starts from: a family's parameters, not those the accelerator has of its own.

    Raises
    ------
    KeyError
        Where no family has parameters for the variant.
    """
    return parameters_of(model, accelerator, variant, own={}, among=None if family is None else {family})


def unmeasured_start(model: KernelModel, accelerator: Accelerator, variant: str, start: Found) -> Found | None:
    """Return what an accelerator would get without its own measurements, where `start` was fitted on them."""
    family = start.origin.split(".")[0]
    others = set(families(model)) - {family}
    if find("efficiency", family).reference != accelerator.name:
        return None
    try:
        return parameters_of(model, accelerator, variant, own={}, among=others)
    except KeyError:
        return None


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
    family: str | None = None,
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
    family : str
        Architecture family whose parameters the fits start from; the device's own if left out.
    progress : callable
        Takes the share that is done.

    Raises
    ------
    InputError
        Where a file is of no kind, the device is not known or not told, or no variant has enough rows.
    """
    if family is not None and family not in families(model_of("gemm")):
        message = f"no family of measured kernels; {did_you_mean(family, families(model_of('gemm')))} [got {family!r}]"
        raise InputError([Fault("--from", 0, 0, "", message)])
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
                found = calibrated(name, model, str(variant), part, target, most_rows, family)
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
