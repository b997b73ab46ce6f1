"""Files of measured collectives, one a row: schemas told apart by their columns, brought to one set of names.

Five kinds of file are read: nccl-tests of one box (``nccl``), all-reduces of inference engines (``custom_allreduce``),
the network profiles of Vidur (``vidur_network``), collectives across systems (``collectives``) and the exchange of
tokens between experts (``deepep_alltoall``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.faults import Fault
from perfmodel.measured_kernels import Rows, listed, read_csv

SCHEMAS: dict[str, tuple[str, ...]] = {
    "nccl-tests": ("device", "op", "dtype", "num_gpus", "size_bytes", "us"),
    "engine": ("device", "framework", "num_gpus", "size_bytes", "us"),
    "vidur": ("machine", "op", "num_workers", "devices_per_node", "size_bytes", "us"),
    "systems": ("gpu", "ranks", "nodes", "collective", "size_bytes", "time_us"),
    "experts": ("gpu", "mode", "op", "ep_size", "tokens_per_rank", "hidden", "top_k"),
}
"""Kind of file -> columns that tell it."""

NUMBERS = (
    "num_gpus",
    "size_bytes",
    "us",
    "num_workers",
    "devices_per_node",
    "ranks",
    "nodes",
    "gpus_per_node",
    "time_us",
    "nic_GBps_per_gpu",
    "ep_size",
    "tokens_per_rank",
    "hidden",
    "top_k",
    "latency_us",
    "bandwidth_GBps",
)
COUNTS = (
    "num_gpus",
    "num_workers",
    "devices_per_node",
    "ranks",
    "nodes",
    "gpus_per_node",
    "ep_size",
    "tokens_per_rank",
    "hidden",
    "top_k",
)
MAY_BE_BLANK = ("nic_GBps_per_gpu", "gpus_per_node", "latency_us", "bandwidth_GBps", "us", "time_us")

OPERATIONS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "sendrecv": "send_recv",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
"""Name of an operation without ``-``, ``_`` and spaces -> ours."""

FLOATS = ("half", "float16", "bfloat16", "float", "float32", "double", "fp16", "bf16", "fp32", "fp8")
"""Types that a switch can add."""

PROTOCOLS = {
    "efa": "efa",
    "roce": "roce",
    "slingshot": "slingshot",
    "infiniband": "infiniband",
    "ib": "infiniband",
    "hdr": "infiniband",
    "ndr": "infiniband",
    "ethernet": "ethernet",
    "tcp": "ethernet",
}
"""Word in the description of a fabric -> protocol."""

CAPABILITIES = {"sm80": "a100-80gb-sxm", "sm90": "h100-80gb-sxm", "sm100": "b200"}
"""Compute capability -> the most common board of it."""

FP8_SCALES = 4 / 128
"""Bytes of scales beside a byte of an activation in 8 bits: one 32-bit scale for 128 (DeepEP)."""


NORMALISED = ("operation", "case", "hosts", "metric", "bytes", "measured", "rate")
"""Columns that rows get; ``metric`` is the name of the measured column."""


@dataclass(frozen=True)
class Case:
    """What rows share that one evaluation predicts.

    Parameters
    ----------
    names : tuple of str
        What the machine may be called, nodes before accelerators.
    operation : str
        ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all``, ``send_recv``, ``broadcast``, ``reduce``,
        ``dispatch`` or ``combine``.
    ranks, per_node : int
        Ranks, and how many of them are on a node (0: as many as it holds).
    nic_bytes_per_s : float
        Network rate of one accelerator [bytes/s]; 0 where the row does not say it.
    fabric : str
        Description of the network.
    adds : bool
        Whether a switch can add the elements.
    library : str
        ``nccl``, or ``engine`` for the kernels of inference engines.
    copies, most_nodes : int
        Experts of a token, and nodes they may lie on (0: any).
    once_per_node : bool
        Whether a token crosses the network once for every node.
    """

    names: tuple[str, ...]
    operation: str
    ranks: int
    per_node: int
    nic_bytes_per_s: float = 0.0
    fabric: str = ""
    adds: bool = True
    library: str = "nccl"
    copies: int = 0
    most_nodes: int = 0
    once_per_node: bool = False


def read_files(paths: Iterable[Path]) -> Rows:
    """Return the rows of all files with what a prediction needs.

    Returns
    -------
    Rows
        With ``operation``, ``case``, ``hosts`` (names by which a latency may be given), ``bytes`` (of
        `perfmodel.collectives`; of one copy of all tokens of a rank for an exchange between experts), ``measured``
        [us] or, where only that is given, ``rate`` [bytes/s].
    """
    frames, faults = [], []
    for path in paths:
        frame = read_csv(path)
        schema = next((name for name, needed in SCHEMAS.items() if set(needed) <= set(frame.columns)), "")
        frame["schema"] = schema
        frame["skipped"] = "" if schema else "the file has no columns of measured collectives"
        if not schema:
            known = "; ".join(", ".join(needed) for needed in SCHEMAS.values())
            message = f"no columns of measured collectives, one of: {known}; there are: {listed(frame)}"
            faults.append(Fault(str(path), 1, 1, "", message))
        frames.append(frame)
    rows = Rows(pd.concat(frames, ignore_index=True), faults)
    _check_cells(rows)
    frame = rows.frame
    blank: dict[str, Any] = {"operation": "", "case": None, "hosts": (), "metric": ""} | dict.fromkeys(
        NORMALISED[4:], np.nan
    )
    found = []
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    for row in records:
        value = blank | (_READERS[row["schema"]](row) if not row["skipped"] else {"skipped": row["skipped"]})
        if not value.setdefault("skipped", "") and not (value["measured"] > 0 or value["rate"] > 0):
            value["skipped"] = "no measured value"
        found.append(value)
    for name in (*NORMALISED, "skipped"):
        frame[name] = pd.Series([value[name] for value in found], index=frame.index)
    return rows


def _check_cells(rows: Rows) -> None:
    """Turn texts that hold numbers into numbers, and refuse cells that are none, blank or not positive."""
    frame = rows.frame
    for name in NUMBERS:
        if name not in frame.columns:
            continue
        given = frame[name]
        numbers = pd.to_numeric(given, errors="coerce").astype(float)
        unread = (numbers.isna() | np.isinf(numbers)) & given.notna()
        rows.refuse(unread, f"{name} is not a number", name)
        frame[name] = numbers.where(~unread)
        needed = frame["schema"].map(lambda schema, name=name: name in SCHEMAS.get(schema, ()))
        if name not in MAY_BE_BLANK:
            rows.refuse(needed & frame[name].isna(), f"{name} is blank", name)
        rows.refuse(frame[name] <= 0, f"{name} is not positive", name)
        if name in COUNTS:
            rows.refuse(frame[name].notna() & (frame[name] % 1 != 0), f"{name} is not a whole number", name)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value).strip()


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    return 0.0 if value is None or np.isnan(value) else float(value)


def _found(case: Case, hosts: tuple[str, ...], size: float, row: dict[str, Any], metric: str) -> dict[str, Any]:
    return {
        "operation": case.operation,
        "case": case,
        "hosts": hosts,
        "metric": metric,
        "bytes": size,
        "measured": _number(row, metric),
    }


def _operation(row: dict[str, Any], column: str) -> str:
    text = re.sub(r"[-_ ]", "", _text(row, column).lower())
    return OPERATIONS.get(text, "")


def _unknown(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {"skipped": f'unknown operation "{_text(row, column)}"'}


def _nccl_tests(row: dict[str, Any]) -> dict[str, Any]:
    operation, ranks = _operation(row, "op"), int(row["num_gpus"])
    if not operation:
        return _unknown(row, "op")
    adds = _text(row, "dtype").lower() in FLOATS
    case = Case((_text(row, "device"),), operation, ranks, ranks, adds=adds)
    return _found(case, case.names, row["size_bytes"], row, "us")


def _engine(row: dict[str, Any]) -> dict[str, Any]:
    ranks = int(row["num_gpus"])
    case = Case((_text(row, "device"),), "all_reduce", ranks, ranks, library="engine")
    return _found(case, case.names, row["size_bytes"], row, "us")


def _vidur(row: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(row, "op")
    if not operation:
        return _unknown(row, "op")
    ranks = int(row["num_workers"])
    fabric = "unstated" if row["devices_per_node"] < ranks else ""
    case = Case((_text(row, "machine"),), operation, ranks, int(row["devices_per_node"]), fabric=fabric)
    return _found(case, case.names, row["size_bytes"], row, "us")


def _systems(row: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(row, "collective")
    if not operation:
        return _unknown(row, "collective")
    ranks, nodes = int(row["ranks"]), int(row["nodes"])
    if ranks % nodes:
        return {"skipped": "ranks are not spread evenly over the nodes"}
    fabric, rate = _text(row, "fabric").lower(), _number(row, "nic_GBps_per_gpu") * 1e9
    # trays of one NVLink domain are one node of the catalogue, whose ranks need no adapters
    one_domain = nodes > 1 and not rate and "nvl" in fabric
    case = Case(
        tuple(name for name in (_text(row, "system"), _text(row, "gpu")) if name),
        operation,
        ranks,
        0 if one_domain else ranks // nodes,
        rate if nodes > 1 else 0.0,
        fabric if nodes > 1 and not one_domain else "",
    )
    hosts = tuple(name for name in (_text(row, "source_id"), *case.names) if name)
    return _found(case, hosts, row["size_bytes"], row, "time_us")


def _experts(row: dict[str, Any]) -> dict[str, Any]:
    """Read the exchange of tokens between experts; a bandwidth becomes the time of the bytes that it counts.

    DeepEP counts a token once for every node that it visits, its own included, where several nodes take part, and
    once for every rank inside one node; its low-latency kernels send it once to every expert.
    """
    name = _text(row, "op").lower()
    operation = name.split("_")[0]
    if operation not in ("dispatch", "combine"):
        return _unknown(row, "op")
    width = 1 + FP8_SCALES if "fp8" in name else 2.0
    token_bytes = float(row["tokens_per_rank"] * row["hidden"] * width)
    ranks, copies, mode = int(row["ep_size"]), int(row["top_k"]), _text(row, "mode")
    gpu, most = _text(row, "gpu"), re.search(r"top-(\d+) groups", _text(row, "note"))
    case = Case(
        (gpu,),
        operation,
        ranks,
        int(_number(row, "gpus_per_node")),
        fabric="rdma",
        copies=copies,
        most_nodes=int(most.group(1)) if most else 0,
        once_per_node=mode != "low_latency",
    )
    hosts = tuple(text for text in (_text(row, "source_id"), gpu) if text)
    if _number(row, "latency_us"):
        return _found(case, hosts, token_bytes, row, "latency_us")
    rate = _number(row, "bandwidth_GBps") * 1e9
    return _found(case, hosts, token_bytes, row, "bandwidth_GBps") | {"measured": np.nan, "rate": rate}


_READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "nccl-tests": _nccl_tests,
    "engine": _engine,
    "vidur": _vidur,
    "systems": _systems,
    "experts": _experts,
}
