"""Measured collectives, one a row, and what the model predicts for them; refits with a part left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import Machine
from hardware.faults import Fault, InputError
from perfmodel.calibrate_collectives import LEAST_ROWS, Calibrated, Measured, calibrate_links, errors
from perfmodel.collectives import CollectiveModel, all_reduce, collective_model, host_factor
from perfmodel.collectives.algorithms import chosen
from perfmodel.kernels.model import Z90
from perfmodel.measured_collectives import NORMALISED, Case, read_files
from perfmodel.measured_kernels import listed
from perfmodel.network_bounds import tower_bound
from perfmodel.placed_collectives import Placed, case_seconds, counted_bytes, placed, spread_of
from perfmodel.validate_training import RowError
from perfmodel.validation import Defaults, grouped, kept, report, statistics

HOST_LATENCY = "host_latency_us"
"""Column in which a file may give its hosts' latency [us]."""


def _bare(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ ."))


def place_rows(frame: pd.DataFrame, described: Sequence[Machine], defaults: Defaults) -> dict[Case, Placed]:
    """Return where every case runs; rows of one that cannot be placed get their reason, bandwidths become times."""
    places: dict[Case, Placed] = {}
    usable = frame[frame["skipped"] == ""]
    for case, part in _cases(usable):
        try:
            places[case] = placed(case, described, defaults, len(part))
        except RowError as error:
            frame.loc[part.index, "skipped"] = str(error)
            continue
        rated = part[~(part["measured"] > 0)]
        counted = counted_bytes(case, places[case].ranks, rated["bytes"].to_numpy(dtype=float))
        frame.loc[rated.index, "measured"] = counted / rated["rate"].to_numpy(dtype=float) * 1e6
    return places


def _cases(frame: pd.DataFrame) -> list[tuple[Case, pd.DataFrame]]:
    """Split rows by what they share."""
    codes, cases = pd.factorize(frame["case"])
    return [(case, frame[codes == number]) for number, case in enumerate(cases)]


def latencies_of(
    frame: pd.DataFrame, places: Mapping[Case, Placed], given: Mapping[str, float], *, from_first: bool
) -> pd.Series[float]:
    """Return the latency of every row's host [s], NaN where none is known.

    Parameters
    ----------
    frame : DataFrame
        Placed rows.
    places : mapping
        Where their cases run.
    given : mapping
        Name of a host -> latency [s]; a row takes that of the first of its names.
    from_first : bool
        Other hosts take the time of their own smallest collective: an all-reduce over the most ranks, if there is one.

    Raises
    ------
    InputError
        Where a name is that of no row.
    """
    known = {_bare(name): value for name, value in given.items()}
    names = {_bare(name) for hosts in frame["hosts"] for name in hosts}
    if unknown := [name for name in given if _bare(name) not in names]:
        all_names = ", ".join(sorted({name for hosts in frame["hosts"] for name in hosts}))
        raise InputError(
            [Fault("--latency", 0, 0, name, f"no row has this host; there are: {all_names}") for name in unknown]
        )
    found = frame["hosts"].map(
        lambda hosts: next((known[_bare(name)] for name in hosts if _bare(name) in known), np.nan)
    )
    found = found.astype(float)
    if HOST_LATENCY in frame.columns:
        found = pd.to_numeric(frame[HOST_LATENCY], errors="coerce").mul(1e-6).fillna(found)
    if from_first:
        model = collective_model()
        usable = frame[(frame["skipped"] == "") & found.isna()]
        for _, part in usable.groupby(usable["hosts"].map(lambda hosts: hosts[0])):
            first = _smallest(part)
            if first is None:
                continue
            place = places[first["case"]]
            expected = case_seconds(first["case"], place.ranks, np.array([first["bytes"]]), model)
            slower = float(first["measured"]) * 1e-6 / float(expected[0])
            found[part.index] = slower * float(all_reduce(place.reference, 0.0, model))
    return found


def _smallest(part: pd.DataFrame) -> Any:
    """Return the row that tells a host's latency: all-reduce, most ranks, fewest bytes; none of experts' exchanges."""
    rows = part[part["case"].map(lambda case: case.copies == 0)]
    if rows.empty:
        return None
    keys = pd.DataFrame(
        {
            "other": rows["operation"] != "all_reduce",
            "engine": rows["case"].map(lambda case: case.library != "nccl"),
            "ranks": -rows["case"].map(lambda case: case.ranks),
            "bytes": rows["bytes"],
        }
    )
    return rows.loc[keys.sort_values(list(keys.columns), kind="stable").index[0]]


def predict_rows(
    frame: pd.DataFrame,
    places: Mapping[Case, Placed],
    latencies: pd.Series[float],
    model: CollectiveModel,
    defaults: Defaults | None = None,
) -> pd.DataFrame:
    """Return the frame with ``predicted``, ``p10``, ``p90``, ``best_possible`` [us], ``algorithm`` and ``error``.

    Notes
    -----
    The interval is a log-normal around the prediction (`perfmodel.placed_collectives.spread_of`). ``best_possible`` is
    the least time that the nominal rates of the links allow any algorithm (`perfmodel.network_bounds.tower_bound`);
    blank for exchanges between experts, whose bytes depend on who sends what where.
    """
    result = frame.copy()
    for name in ("predicted", "p10", "p90", "best_possible"):
        result[name] = np.nan
    result["algorithm"] = ""
    usable = result[result["skipped"] == ""]
    for case, part in _cases(usable):
        place = places[case]
        for latency, rows in part.groupby(latencies[part.index], dropna=False):
            host_given = bool(latency == latency)
            own = model.slower(host_factor(float(latency), place.reference, model)) if host_given else model
            sizes = rows["bytes"].to_numpy(dtype=float)
            seconds = np.broadcast_to(case_seconds(case, place.ranks, sizes, own), sizes.shape)
            slower = np.broadcast_to(case_seconds(case, place.ranks, sizes, own.slower(1.1)), sizes.shape)
            width = np.exp(Z90 * spread_of(case, seconds, slower, place.ranks, model, host_given=host_given))
            for name, value in (("predicted", seconds), ("p10", seconds / width), ("p90", seconds * width)):
                result.loc[rows.index, name] = value * 1e6
            if not case.copies:
                bound = tower_bound(case.operation, place.ranks, sizes)
                result.loc[rows.index, "best_possible"] = np.broadcast_to(bound, sizes.shape) * 1e6
            if not case.copies and case.library == "nccl":
                result.loc[rows.index, "algorithm"] = chosen(case.operation, place.ranks, sizes, own)
            if not host_given and defaults is not None:
                empty = float(all_reduce(place.reference, 0.0, model))
                defaults.counts["host latency", f"{empty * 1e6:.1f} us"] += len(rows)
    result["error"] = result["predicted"] / result["measured"] - 1
    return result


def measured_rows(frame: pd.DataFrame, places: Mapping[Case, Placed], latencies: pd.Series[float]) -> list[Measured]:
    """Return NCCL's rows of hosts whose latency is known, by case, as a fit takes them."""
    rows = []
    usable = frame[(frame["skipped"] == "") & latencies[frame.index].notna()]
    for case, part in _cases(usable):
        if case.library != "nccl" or case.copies:
            continue
        for latency, same in part.groupby(latencies[part.index]):
            sizes, seconds = (same[name].to_numpy(dtype=float) for name in ("bytes", "measured"))
            place = places[case]
            rows.append(Measured(case, place.ranks, place.reference, float(latency), sizes, seconds * 1e-6))
    return rows


def left_out(
    frame: pd.DataFrame,
    places: Mapping[Case, Placed],
    latencies: pd.Series[float],
    column: str,
    by: Sequence[str] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Return the figures of the rows of each value of a column, predicted by constants fitted without them.

    A host keeps its latency, which is an input; in the fit, hosts without one take that of their smallest collective.
    ``refitted`` names the types of link that other rows told about; the rest keep the shipped constants.

    Raises
    ------
    InputError
        Where the column is missing.
    """
    if column not in frame.columns:
        raise InputError([Fault("--leave-out", 0, 0, column, f"no such column; there are: {listed(frame)}")])
    usable = frame[frame["skipped"] == ""]
    labels = usable[column].astype(str)
    fit_latencies = latencies.fillna(latencies_of(frame, places, {}, from_first=True))
    values, parts = sorted(labels.unique()), []
    refitted: dict[str, list[str]] = {}
    for number, value in enumerate(values):
        progress(number / len(values))
        rest = usable[labels != value]
        found = calibrate_links(measured_rows(rest, places, fit_latencies), collective_model())
        refitted[f"{column}={value}"] = sorted(found.fitted)
        parts.append(predict_rows(usable[labels == value], places, latencies, found.model))
    rows = pd.concat(parts) if parts else usable
    result: dict[str, Any] = grouped(rows.assign(**{column: rows[column].astype(str)}), [column]) if parts else {}
    for name, links in refitted.items():
        result[name]["refitted"] = links
    if by and parts:
        result |= grouped(rows, [column, *(name for name in by if name != column)])
    return result


def calibrate(
    paths: Sequence[Path], hardware: Sequence[Machine] = ()
) -> tuple[Calibrated, list[dict[str, Any]], list[Fault]]:
    """Fit the constants of links on measured collectives, each host with the latency of its own smallest one.

    Parameters
    ----------
    paths : sequence of Path
        CSV files, plain or compressed.
    hardware : sequence of Machine
        Machines that rows may name beside the catalogue's.

    Returns
    -------
    found, quality, faults : Calibrated, list of dict, list of Fault
        The constants; for every type of link that was fitted the figures of its rows before and after; what is wrong in
        the files.

    Raises
    ------
    InputError
        Where no type of link has enough rows.
    """
    read = read_files(paths)
    frame = read.frame
    places = place_rows(frame, hardware, Defaults())
    latencies = latencies_of(frame, places, {}, from_first=True)
    rows = measured_rows(frame, places, latencies)
    found = calibrate_links(rows, collective_model())
    if not found.fitted:
        message = f"no type of link is crossed by {LEAST_ROWS} usable rows"
        raise InputError([*read.faults, Fault(str(paths[0]), 1, 1, "", message)])
    quality = []
    for link in found.fitted:
        own = [row for row in rows if row.link == link]
        figures = [np.concatenate(errors(own, model, np.asarray)) for model in (collective_model(), found.model)]
        before, after = (
            {"mape": float(np.abs(ratio - 1).mean()), "bias": float(np.exp(np.log(ratio).mean()))} for ratio in figures
        )
        quality.append({"link": link, "rows": found.rows[link], "before": before, "after": after})
    return found, quality, read.faults


def validate(
    paths: Sequence[Path],
    *,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
    hardware: Sequence[Machine] = (),
    latency: Mapping[str, float] | None = None,
    latency_from_first: bool = False,
    leave_out: str | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, Any], pd.DataFrame, list[Fault]]:
    """Compare predictions with the measured collectives of `paths`.

    Parameters
    ----------
    paths : sequence of Path
        CSV files, plain or compressed.
    by, where : sequence of str
        Columns to group by, and conditions that rows must meet.
    hardware : sequence of Machine
        Machines that rows may name beside the catalogue's.
    latency : mapping
        Name of a host (source, system, machine, device or gpu) -> time of its empty all-reduce over all accelerators of
        a node, or over all ranks where they lie on several nodes [s].
    latency_from_first : bool
        Other hosts take it from their own smallest collective.
    leave_out : str
        Column whose values are left out of a refit in turn.
    progress : callable
        Takes the share that is done.

    Returns
    -------
    report, rows, faults : dict, DataFrame, list of Fault
        The figures, every row with its prediction [us], and what is wrong in the files.
    """
    defaults = Defaults()
    rows = read_files(paths)
    internal = [name for name in (*NORMALISED, "schema", "path") if name not in ("operation", "measured")]
    frame = rows.frame.loc[kept(rows.frame.drop(columns=internal), where).index].copy()
    places = place_rows(frame, hardware, defaults)
    latencies = latencies_of(frame, places, latency or {}, from_first=latency_from_first)
    predicted = predict_rows(frame, places, latencies, collective_model(), defaults)
    result = report("collective", predicted, defaults, by)
    result["measured"] = int((predicted["measured"] > 0).sum())
    scored = predicted[predicted["skipped"] == ""]
    result["metrics"] = {str(name): statistics(part) for name, part in scored.groupby("metric")}
    if leave_out is not None:
        result["left_out"] = left_out(frame, places, latencies, leave_out, by, progress)
    return result, predicted.drop(columns=internal), rows.faults
