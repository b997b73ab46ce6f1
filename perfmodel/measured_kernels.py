"""Files of measured kernels, one a row: read, checked, put beside the roofline.

The columns are those of the kernel measurements: ``device``, shapes, ``us_ref``. Rows that say something impossible are
told by file and line; every row that is not used keeps its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import UnknownName, find, load_file, names, resolve_cluster
from hardware.faults import Fault, InputError
from hardware.schema import Accelerator, EfficiencyFamily
from perfmodel.kernels.model import KernelModel, device_of
from perfmodel.validation import Defaults

MODULES = {"gemm": "gemm", "attention-prefill": "prefill", "attention-decode": "decode", "moe": "moe", "copy": "copy"}
"""Kind of measurement -> module of ``perfmodel.kernels``."""

MEASURED = "us_ref"
"""The measured time [us]."""

DEVICE_COLUMNS = ("device", "gpu", "hardware", "machine")
"""Columns that may name the device, the first that is there."""

DERIVED = ("roofline_us", "cold", "implausible")
"""Names beside the columns of the files. A condition on one chooses the rows of the figures, but not of a refit."""

KIND_COLUMN = "kind"
"""A file of several kinds of kernel tells them apart by this column."""

VARIANTS = {"gemm": "dtype", "prefill": "attn_dtype", "decode": "attn_dtype", "moe": "moe_dtype"}
"""Column whose value is the variant of a model that does not tell variants apart itself."""

TEXT_COLUMNS = ("dtype", "attn_dtype", "kv_dtype", "moe_dtype", "distribution")
"""Columns that hold names; all other columns of a model hold numbers."""

MAY_BE_ZERO = ("gated",)

OTHER_KIND = "a row of another kind of kernel"

SHORT_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float": "fp32", "float32": "fp32"}

UNIT_MISTAKE_SLOW, UNIT_MISTAKE_FAST, LAUNCH_US = 1000.0, 30.0, 2.0
"""A time is no time in microseconds where it is over `UNIT_MISTAKE_SLOW` times, or under 1/`UNIT_MISTAKE_FAST` of, the
roofline or the shortest launch, whichever is longer. Nanoseconds come out over 1000 times too long, since no kernel
beats its roofline by more than a warm cache allows; milliseconds come out 1000 times too short for a kernel that takes
up to 33 times its roofline."""

MESSAGES = 10
"""Rows that are told by their line, for every reason; the others are counted."""


def model_of(kind: str) -> KernelModel:
    """Return the model of a kind of measurement, such as ``attention-decode``."""
    model: KernelModel = import_module(f"perfmodel.kernels.{MODULES[kind]}").MODEL
    return model


def variants_of(model: KernelModel, frame: pd.DataFrame) -> pd.Series[str]:
    """Return the variant of every row, such as ``bf16``: as the model's module tells, else the type of its products."""
    own = getattr(import_module(model.time.__module__), "variants", None)
    if own is not None:
        return pd.Series(own(frame), index=frame.index).astype(str)
    if model.name not in VARIANTS:
        return pd.Series("all", index=frame.index)
    column = frame[VARIANTS[model.name]].astype(str).str.strip().str.lower()
    return column.replace(SHORT_DTYPES)


def columns_of(model: KernelModel) -> tuple[str, ...]:
    """Return the columns that rows of a model must have beside the device."""
    return (*(name for name in model.columns if name not in (*DEVICE_COLUMNS, MEASURED)), MEASURED)


@dataclass
class Rows:
    """Rows of measurements and what is wrong with some of them.

    Parameters
    ----------
    frame : DataFrame
        Columns of the files, with ``file`` and ``line``, and ``skipped``: the reason why a row cannot be used, or "".
    paths : list of str
        Path of the file of every row.
    faults : list of Fault
        What is wrong, by file and line.
    """

    frame: pd.DataFrame
    faults: list[Fault] = field(default_factory=list)

    def refuse(
        self, wrong: Any, reason: str, key: str = "", say: Callable[[Any], str] | None = None, *, told: bool = True
    ) -> None:
        """Give rows a reason not to use them, and tell the first of them by line.

        Parameters
        ----------
        wrong : array of bool
            The rows, in the order of the frame.
        reason, key : str
            The reason, and the column it is about.
        say : callable
            Row -> message, where it is more than the reason.
        told : bool
            Whether it is a fault of the file, to be told by line.
        """
        frame = self.frame
        chosen = np.asarray(wrong, dtype=bool) & (frame["skipped"] == "").to_numpy()
        if not chosen.any():
            return
        frame.loc[chosen, "skipped"] = reason
        if told:

            def short(row: Any) -> str:
                got = "" if pd.isna(row.get(key)) else f" [got {row[key]!r}]"
                return reason.removeprefix(f"{key} is ") + got

            self.tell(chosen, key, say or short)

    def tell(self, chosen: Any, key: str, say: Callable[[Any], str]) -> None:
        """Tell the first of the chosen rows by line, and how many more there are."""
        rows = self.frame[np.asarray(chosen, dtype=bool)]
        more = len(rows) - MESSAGES
        for number, row in enumerate(rows.head(MESSAGES).to_dict("records"), start=1):
            rest = f" (and {more:,} more rows)" if more > 0 and number == MESSAGES else ""
            column = 1 + list(self.frame.columns).index(key) if key in self.frame.columns else 1
            self.faults.append(Fault(str(row["path"]), int(row["line"]), column, key, say(row) + rest))


def read_files(paths: Iterable[Path], kind: str, model: KernelModel, device: str | None = None) -> Rows:
    """Return the rows of all files, checked for what can be checked without the hardware.

    Parameters
    ----------
    paths : iterable of Path
        CSV files, plain or compressed.
    kind : str
        Kind of the kernels, for the messages.
    model : KernelModel
        Its model, which names the columns.
    device : str
        Device of the rows of files that name none.

    Returns
    -------
    Rows
        With ``device_name``, ``variant`` and ``measured`` [us].
    """
    frames = []
    faults = []
    for path in paths:
        frame = read_csv(path)
        missing = [name for name in columns_of(model) if name not in frame.columns]
        named = next((name for name in DEVICE_COLUMNS if name in frame.columns), None)
        if named is None and device is None:
            missing.insert(0, "device")
        frame["device_name"] = frame[named].fillna("").astype(str).str.strip() if named else device or ""
        frame["skipped"] = f"the file has no {kind} columns: {', '.join(missing)} missing" if missing else ""
        if missing:
            message = f"no {kind} columns: {', '.join(missing)} missing; there are: {listed(frame)}"
            faults.append(Fault(str(path), 1, 1, "", message))
        frames.append(frame)
    rows = Rows(pd.concat(frames, ignore_index=True), faults)
    _check_cells(rows, kind, model)
    return rows


_OWN = ("file", "path", "line", "device_name", "skipped")


def read_csv(path: Path) -> pd.DataFrame:
    """Return the rows of a file with its name and their lines.

    Raises
    ------
    InputError
        Where it cannot be read as CSV.
    """
    try:
        frame = pd.read_csv(path, skip_blank_lines=False, low_memory=False, skipinitialspace=True)
    except (OSError, ValueError, EOFError) as error:
        said = " ".join(str(error).split())
        raise InputError([Fault(str(path), 1, 1, "", f"cannot be read as CSV: {said}")]) from None
    frame.columns = [str(name).strip().removeprefix("\ufeff") for name in frame.columns]
    frame["file"], frame["path"], frame["line"] = path.name, str(path), np.arange(len(frame)) + 2
    shapes = frame.columns.difference(["file", "path", "line"])
    return frame[frame[shapes].notna().any(axis=1)].reset_index(drop=True)


def listed(frame: pd.DataFrame) -> str:
    """Name the columns that the files have."""
    return ", ".join(name for name in frame.columns if name not in _OWN)


def _check_cells(rows: Rows, kind: str, model: KernelModel) -> None:
    """Check every cell that a prediction needs, and turn texts that hold numbers into numbers."""
    frame = rows.frame
    if KIND_COLUMN in frame.columns:
        other = frame[KIND_COLUMN].notna() & (frame[KIND_COLUMN].astype(str) != kind)
        rows.refuse(other, OTHER_KIND, told=False)
    frame["measured"] = np.nan
    for name in columns_of(model):
        if name not in frame.columns or name in TEXT_COLUMNS:
            continue
        given = frame[name]
        numbers = pd.to_numeric(given, errors="coerce").astype(float)
        unread = (numbers.isna() | np.isinf(numbers)) & given.notna()
        rows.refuse(unread, f"{name} is not a number", name)
        if unread.any() or given.dtype == object:
            frame[name] = numbers.where(~unread)
    if MEASURED in frame.columns:
        frame["measured"] = frame[MEASURED].astype(float)
        rows.refuse(frame["measured"].isna(), "no measured value", told=False)
        rows.refuse(frame["measured"] <= 0, f"{MEASURED} is not positive", MEASURED)
    for name in columns_of(model):
        if name not in frame.columns or name == MEASURED:
            continue
        rows.refuse(frame[name].isna(), f"{name} is blank", name)
        if name not in TEXT_COLUMNS:
            low = frame[name] < 0 if name in MAY_BE_ZERO else frame[name] <= 0
            rows.refuse(low, f"{name} is not positive", name)
    frame["variant"] = ""
    for part in _of_one_type(frame, []):
        try:
            frame.loc[part.index, "variant"] = variants_of(model, part)
        except (KeyError, ValueError) as error:
            rows.refuse(frame.index.isin(part.index), str(error.args[0]))


def _of_one_type(frame: pd.DataFrame, keys: list[str]) -> list[pd.DataFrame]:
    """Split the usable rows by names such as types, so that one that a model does not know spoils no other."""
    columns = keys + [name for name in TEXT_COLUMNS if name in frame.columns]
    usable = frame[frame["skipped"] == ""]
    return [part for _, part in usable.groupby(columns, dropna=False, sort=False)] if columns else [usable]


def _bare(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ ."))


@lru_cache(maxsize=256)
def _from_catalogue(name: str) -> Accelerator:
    found: Accelerator = find("accelerator", name)
    return found


def accelerator_of(name: str, described: Sequence[Accelerator] = ()) -> Accelerator:
    """Return the accelerator of a name or an alias: of those described, else of the catalogue.

    Raises
    ------
    UnknownName
        Where there is none.
    """
    for accelerator in described:
        if _bare(name) in map(_bare, (accelerator.name, *accelerator.aliases)):
            return accelerator
    return _from_catalogue(name)


@lru_cache(maxsize=256)
def boards_of(name: str) -> tuple[str, ...]:
    """Return the accelerators of the catalogue whose names hold every part of `name`, such as both boards of a100."""
    parts = set(name.lower().replace("_", "-").replace(" ", "-").split("-"))
    return tuple(known for known in names("accelerator") if parts <= set(known.split("-")))


def accelerator_file(path: Path) -> Accelerator:
    """Return the accelerator that a hardware file describes, or the one of the node or cluster it describes.

    Raises
    ------
    InputError
        With every fault of the file.
    """
    found = load_file(path)
    if isinstance(found, Accelerator):
        return found
    if isinstance(found, EfficiencyFamily):
        raise InputError([Fault(str(path), 1, 1, "kind", "this describes a family, but an accelerator is needed")])
    return resolve_cluster(str(path.resolve()), Path()).accelerator


def resolve_devices(rows: Rows, described: Sequence[Accelerator] = ()) -> dict[str, Accelerator]:
    """Return the accelerator of every device that rows name; rows of an unknown one are refused."""
    frame = rows.frame
    known: dict[str, Accelerator] = {}
    usable = frame[frame["skipped"] == ""]
    column = next((name for name in DEVICE_COLUMNS if name in frame.columns), "device")
    for text, part in usable.groupby("device_name", sort=False):
        name = str(text)
        if not name:
            rows.refuse(frame["device_name"] == "", f"{column} is blank", column)
            continue
        try:
            known[name] = accelerator_of(name, described)
        except UnknownName as error:
            # one message a device: every row of it says the same
            first = part.iloc[0]
            more = f" ({len(part):,} rows)" if len(part) > 1 else ""
            place = 1 + list(frame.columns).index(column)
            message = f"{error}; --hardware FILE describes another{more}"
            rows.faults.append(Fault(str(first["path"]), int(first["line"]), place, column, message))
            rows.refuse(frame["device_name"] == name, f'unknown device "{name}"', column, told=False)
    return known


def count_boards(
    frame: pd.DataFrame, accelerators: Mapping[str, Accelerator], described: Sequence[Accelerator], defaults: Defaults
) -> None:
    """Count the rows whose device is a name that several boards share."""
    for name, rows in frame.loc[frame["skipped"] == "", "device_name"].value_counts().items():
        found = accelerators[str(name)]
        if found not in described and len(boards_of(str(name))) > 1:
            defaults.counts["device", f"{name} is {found.name}"] += int(rows)


def _types_of(model: KernelModel) -> str:
    return " or ".join(name for name in columns_of(model) if name in TEXT_COLUMNS) or "a type"


def parts_of(frame: pd.DataFrame) -> Iterable[tuple[str, str, pd.DataFrame]]:
    """Walk through the usable rows by device and variant."""
    for (device, variant), part in frame[frame["skipped"] == ""].groupby(["device_name", "variant"], sort=True):
        yield str(device), str(variant), part


def add_roofline(rows: Rows, model: KernelModel, accelerators: Mapping[str, Accelerator]) -> None:
    """Add ``roofline_us``, ``cold`` and ``implausible``, and refuse rows whose time cannot be in microseconds.

    Notes
    -----
    The bytes that must come from memory are those of the model's roofline without arithmetic. A cold row, whose bytes
    exceed twice the last-level cache, is implausible where it is faster than memory can deliver them.
    """
    frame = rows.frame
    frame["roofline_us"] = np.nan
    frame["memory_us"] = np.nan
    frame["cold"] = False
    for part in _of_one_type(frame, ["device_name", "variant"]):
        device = device_of(accelerators[str(part["device_name"].iloc[0])])
        try:
            shapes = model.shapes(part)
            roofline = np.asarray(model.roofline(shapes, device), dtype=float)
            no_arithmetic = replace(device, peak=dict.fromkeys(device.peak, np.inf))
            memory = np.asarray(model.roofline(shapes, no_arithmetic), dtype=float)
        except (KeyError, ValueError) as error:
            said = str(error.args[0]) if isinstance(error, ValueError) else f"{device.name} has no {error.args[0]} peak"
            rows.refuse(frame.index.isin(part.index), said)
            continue
        frame.loc[part.index, "roofline_us"] = roofline * 1e6
        frame.loc[part.index, "memory_us"] = memory * 1e6
        frame.loc[part.index, "cold"] = memory * device.bandwidth > 2 * device.l2
    unknown = ~np.isfinite(frame["roofline_us"])
    rows.refuse(unknown, f"no roofline: {_types_of(model)} or a size is none that the model knows")
    shortest = frame["roofline_us"].clip(lower=LAUNCH_US)
    times = frame["measured"] / shortest
    wrong = (times > UNIT_MISTAKE_SLOW) | (times < 1 / UNIT_MISTAKE_FAST)

    def say(row: Any) -> str:
        roofline = max(row["roofline_us"], LAUNCH_US)
        ratio = row["measured"] / roofline
        unit = "nanoseconds" if ratio > 1 else "milliseconds or seconds"
        times = f"{ratio:,.0f} times" if ratio > 1 else f"1/{1 / ratio:,.0f} of"
        return f"{row['measured']:g} us is {times} the roofline, {roofline:.4g} us; is it in {unit}?"

    rows.refuse(wrong, "a unit mistake: the time is about 1000 times off the roofline", MEASURED, say)
    usable = frame["skipped"] == ""
    frame["implausible"] = usable & frame["cold"] & (frame["measured"] < frame["memory_us"])
    rows.tell(
        frame["implausible"],
        MEASURED,
        lambda row: (
            f"implausible: {row['measured']:g} us, but memory needs {row['memory_us']:.4g} us; scored, not fitted"
        ),
    )
