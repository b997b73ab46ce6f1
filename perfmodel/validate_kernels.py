"""Measured kernels, one a row, and what the models predict for them; refits with a part left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import KernelParameters
from hardware.faults import Fault, InputError
from hardware.schema import Accelerator
from perfmodel.kernels.library import parameters_of, widenings
from perfmodel.kernels.model import Z90, Device, KernelModel, Sample, device_of, fit
from perfmodel.measured_kernels import (
    DERIVED,
    DEVICE_COLUMNS,
    MEASURED,
    add_roofline,
    count_boards,
    listed,
    model_of,
    parts_of,
    read_files,
    resolve_devices,
)
from perfmodel.validation import Defaults, grouped, kept, report, statistics

FIT_EVALUATIONS = 2000

Lookup = Callable[[Accelerator, str], KernelParameters]
"""(accelerator, variant) -> parameters; raises KeyError where there are none."""


def predict_rows(
    frame: pd.DataFrame, model: KernelModel, accelerators: Mapping[str, Accelerator], lookup: Lookup
) -> pd.DataFrame:
    """Return the frame with ``predicted``, ``p10``, ``p90`` [us] and ``error``.

    Notes
    -----
    The interval is a log-normal around the prediction with the spread of the parameters that were found.
    """
    result = frame.copy()
    for name in ("predicted", "p10", "p90"):
        result[name] = np.nan
    for device_name, variant, part in parts_of(frame):
        accelerator = accelerators[device_name]
        try:
            parameters = lookup(accelerator, variant)
        except KeyError as error:
            result.loc[part.index, "skipped"] = str(error.args[0])
            continue
        seconds = np.asarray(model.time(model.shapes(part), device_of(accelerator), parameters)[0], dtype=float)
        width = np.exp(Z90 * parameters.spread)
        result.loc[part.index, "predicted"] = seconds * 1e6
        result.loc[part.index, "p10"] = seconds * 1e6 / width
        result.loc[part.index, "p90"] = seconds * 1e6 * width
    result["error"] = result["predicted"] / result["measured"] - 1
    return result


def shipped(model: KernelModel) -> Lookup:
    """Return the lookup of the parameters that come with the package or stand in the accelerator's description."""
    return lambda accelerator, variant: parameters_of(model, accelerator, variant).parameters


def sample_of(model: KernelModel, part: pd.DataFrame, device: Device) -> Sample:
    """Return rows of one device and variant as the fit takes them."""
    return Sample(device, model.shapes(part), part["measured"].to_numpy(dtype=float) * 1e-6)


def refit(
    model: KernelModel,
    frame: pd.DataFrame,
    accelerators: Mapping[str, Accelerator],
    by_family: bool,
    evaluations: int = FIT_EVALUATIONS,
) -> dict[tuple[str, str], KernelParameters]:
    """Fit every variant on the plausible rows of a frame.

    Parameters
    ----------
    model : KernelModel
        The model.
    frame : DataFrame
        Rows with ``variant``, ``measured`` and ``implausible``.
    accelerators : mapping
        Accelerator of every device name.
    by_family : bool
        One set of parameters for each architecture family; else one for all devices.
    evaluations : int
        Evaluations of the model at most, for each fit.

    Returns
    -------
    dict
        (family or "", variant) -> parameters. The fit starts from what is shipped for the first of its devices.
    """
    samples: dict[tuple[str, str], list[Sample]] = {}
    starts: dict[tuple[str, str], KernelParameters] = {}
    for device_name, variant, part in parts_of(frame[~frame["implausible"]]):
        accelerator = accelerators[device_name]
        key = (accelerator.architecture if by_family else "", variant)
        samples.setdefault(key, []).append(sample_of(model, part, device_of(accelerator)))
        if key not in starts:
            bare = accelerator.model_copy(update={"efficiency": None})
            starts[key] = parameters_of(model, bare, variant).parameters
    return {key: fit(model, samples[key], starts[key], evaluations=evaluations) for key in samples}


def left_out(
    model: KernelModel,
    frame: pd.DataFrame,
    scored: pd.DataFrame,
    accelerators: Mapping[str, Accelerator],
    column: str,
    by: Sequence[str] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Return the figures of the rows of each value of a column, predicted by parameters fitted without them.

    Parameters
    ----------
    model : KernelModel
        The model.
    frame, scored : DataFrame
        Rows that may be fitted on, and those of them whose figures are wanted.
    accelerators : mapping
        Accelerator of every device name.
    column : str
        A device is predicted with the parameters of all others, its own data sheet put in, and an interval widened as
        for a family without measurements where no device of its family is among them.
    by : sequence of str
        Columns to group the left-out rows by.
    progress : callable
        Takes the share that is done.

    Raises
    ------
    InputError
        Where the column is missing or nothing is left to fit on.
    """
    if column not in frame.columns:
        message = f"no such column; there are: {listed(frame)}"
        raise InputError([Fault("--leave-out", 0, 0, column, message)])
    is_device = column in (*DEVICE_COLUMNS, "device_name")

    def labels(rows: pd.DataFrame) -> pd.Series[str]:
        if is_device:  # two spellings are one device
            return rows["device_name"].map({name: found.name for name, found in accelerators.items()})
        return rows[column].astype(str)

    usable = frame[frame["skipped"] == ""]
    wanted = scored[scored["skipped"] == ""]
    values = sorted(labels(wanted).unique())
    if len(values) and usable.index[labels(usable) != values[0]].empty:
        message = f"all rows have one value, {values[0]}; without them nothing is left to fit on"
        raise InputError([Fault("--leave-out", 0, 0, column, message)])
    parts = []
    for number, value in enumerate(values):
        progress(number / len(values))
        found = refit(model, usable[labels(usable) != value], accelerators, by_family=not is_device)
        families = {accelerators[name].architecture for name in usable["device_name"][labels(usable) != value]}
        rows = wanted[labels(wanted) == value]

        def lookup(accelerator: Accelerator, variant: str) -> KernelParameters:
            parameters = found.get(("" if is_device else accelerator.architecture, variant))  # noqa: B023
            if parameters is None:
                raise KeyError(f"nothing left to fit {variant} on")
            if not is_device or accelerator.architecture in families:  # noqa: B023
                return parameters
            spread = float(np.hypot(parameters.spread, widenings(model)[0]))
            return parameters.model_copy(update={"spread": spread})

        parts.append(predict_rows(rows, model, accelerators, lookup))
    rows = pd.concat(parts) if parts else wanted
    result: dict[str, Any] = {}
    if parts:
        predicted = rows[rows["skipped"] == ""]
        result |= grouped(predicted, [column])
        if by:
            result |= grouped(predicted, [column, *(name for name in by if name != column)])
        for (name, reason), part in rows[rows["skipped"] != ""].groupby([column, "skipped"]):
            entry = {"reason": str(reason), "rows": len(part)}
            result.setdefault(f"{column}={name}", {"rows": 0}).setdefault("skipped", []).append(entry)
    return result


def validate(
    kind: str,
    paths: Sequence[Path],
    *,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
    hardware: Sequence[Accelerator] = (),
    leave_out: str | None = None,
    model: KernelModel | None = None,
    lookup: Lookup | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, Any], pd.DataFrame, list[Fault]]:
    """Compare predictions with the measured kernels of `paths`.

    Parameters
    ----------
    kind : str
        One of ``MODULES``.
    paths : sequence of Path
        CSV files, plain or compressed.
    by, where : sequence of str
        Columns to group by, and conditions that rows must meet. Those on columns of the files hold for the rows of a
        refit as well, those on derived names only for the figures.
    hardware : sequence of Accelerator
        Accelerators that rows may name beside the catalogue's, and before them.
    leave_out : str
        Column whose values are left out of a refit in turn.
    model : KernelModel
        The model, where it is not that of the kind.
    lookup : callable
        Parameters of a device and variant, where they are not the shipped ones.
    progress : callable
        Takes the share that is done.

    Returns
    -------
    report, rows, faults : dict, DataFrame, list of Fault
        The figures, every row with its prediction [us], and what is wrong in the files.
    """
    model = model or model_of(kind)
    defaults = Defaults()
    rows = read_files(paths, kind, model)
    accelerators = resolve_devices(rows, hardware)
    add_roofline(rows, model, accelerators)
    internal = ["path", "device_name", "memory_us"]
    frame = rows.frame.loc[kept(rows.frame.drop(columns=internal), where).index]
    predicted = predict_rows(frame, model, accelerators, lookup or shipped(model))
    count_boards(predicted, accelerators, hardware, defaults)
    result = report(kind, predicted, defaults, by)
    result["measured"] = int(predicted["measured"].notna().sum())
    scored = predicted[predicted["skipped"] == ""]
    implausible = int(scored["implausible"].sum())
    result["implausible"] = [{"reason": "faster than memory allows; scored, not fitted", "rows": implausible}]
    result["metrics"] = {MEASURED: {key: value for key, value in statistics(scored).items() if key != "rows"}}
    if leave_out is not None:
        population = kept(rows.frame, [text for text in where if not _is_derived(text)])
        result["left_out"] = left_out(model, population, frame, accelerators, leave_out, by, progress)
    return result, predicted.drop(columns=internal), rows.faults


def _is_derived(condition: str) -> bool:
    return bool(re.match(rf"\s*({'|'.join(DERIVED)})\b", condition))
