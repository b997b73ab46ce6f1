"""Measured training runs, one a row, and what the model predicts for them.

The columns are those of the ``training`` measurements. A blank field takes the default of the row's framework, or of
``FIELD_DEFAULTS``; every default is counted. A row that cannot be predicted keeps its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import Machine, UnknownName, find, names
from hardware.schema import Accelerator, Cluster, Fabric, Node
from perfmodel.architecture import Architecture, ModelNotCovered, from_columns
from perfmodel.framework import Framework, framework_of, frameworks
from perfmodel.intervals import step_interval
from perfmodel.job import PRECISIONS, Job, job
from perfmodel.pipeline import splits
from perfmodel.plan import CHOICES, DEFAULTS, Plan, plan_from_rows
from perfmodel.training import StepPrediction, predict_step
from perfmodel.validation import Defaults, kept, report, statistics

REQUIRED = ("gpu", "gpus", "model", "seq_len", "global_batch", "precision")
"""Columns without which a file is no training file; a measured time or throughput comes beside them."""

MEASURED = ("iter_time_s", "tokens_per_s_per_gpu")

FIELD_DEFAULTS: dict[str, Any] = {"tp": 1, "pp": 1, "cp": 1, "ep": 1, "vpp": 1}
"""What a blank layout field gets, whatever the framework."""

DEFAULT_FRAMEWORK = "megatron-lm"


class RowError(Exception):
    """A row cannot be predicted; the message is the reason."""


def read_files(paths: Iterable[Path]) -> pd.DataFrame:
    """Return the rows of all files, with their ``file``; a file with other columns keeps the reason in ``skipped``."""
    frames = []
    for path in paths:
        frame = pd.read_csv(path, dtype={"row_id": str, "model": str, "notes": str, "overlap": str}, low_memory=False)
        frame["file"] = path.name
        missing = [column for column in REQUIRED if column not in frame.columns]
        if not any(column in frame.columns for column in MEASURED):
            missing.append(" or ".join(MEASURED))
        frame["skipped"] = f"the file has no training columns: {', '.join(missing)} missing" if missing else ""
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _text(row: Any, name: str) -> str:
    value = getattr(row, name, None)
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value).strip()


def _integer(row: Any, name: str) -> int | None:
    text = _text(row, name)
    return int(float(text)) if text else None


def measured_seconds(row: Any) -> float | None:
    """Return the measured step time [s], from the throughput where only that is given."""
    time = _text(row, "iter_time_s")
    if time:
        return float(time)
    throughput = _text(row, "tokens_per_s_per_gpu")
    if not throughput:
        return None
    return float(row.global_batch) * float(row.seq_len) / (float(throughput) * float(row.gpus))


def machine_of(
    device: str,
    gpus: int,
    gpus_per_node: int | None,
    inter_node_gbps: float | None,
    described: Sequence[Machine] = (),
) -> Machine:
    """Return the machine of a measured row: its accelerator in a node, with the row's network rate.

    Parameters
    ----------
    device : str
        Name or alias of the accelerator.
    gpus, gpus_per_node : int
        Accelerators of the job; of a node, where the row says.
    inter_node_gbps : float
        Rate of all NICs of a node together [Gbit/s].
    described : sequence of Machine
        Machines that go before the catalogue where they, or their accelerators, have the device's name.

    Raises
    ------
    RowError
        Where the catalogue knows no such accelerator, or no node that holds it.
    """
    for machine in described:
        known = [machine.node.name, *machine.node.aliases, machine.accelerator.name, *machine.accelerator.aliases]
        if _bare(device) in map(_bare, known):
            return _on_nodes(machine.node, machine.accelerator, gpus, gpus_per_node, inter_node_gbps)
    return _catalogue_machine(device, gpus, gpus_per_node, inter_node_gbps)


@lru_cache(maxsize=256)
def _catalogue_machine(device: str, gpus: int, gpus_per_node: int | None, inter_node_gbps: float | None) -> Machine:
    """Return the catalogue's node with the accelerator that is nearest in size and network."""
    try:
        accelerator = find("accelerator", device)
    except UnknownName:
        raise RowError(f"unknown accelerator {device!r}") from None
    assert isinstance(accelerator, Accelerator)
    candidates: list[Node] = []
    for name in names("node"):
        node = find("node", name)
        assert isinstance(node, Node)
        if isinstance(node.accelerators.type, str) and find("accelerator", node.accelerators.type) == accelerator:
            candidates.append(node)
    if not candidates:
        raise RowError(f"the catalogue holds no node with {accelerator.name}")

    def distance(node: Node) -> tuple[float, float, str]:
        rate = node.nics.count * node.nics.bandwidth * 8e-9 if node.nics else 0.0
        wanted = rate if inter_node_gbps is None else inter_node_gbps
        size = 0 if gpus_per_node is None else max(gpus_per_node - node.accelerators.count, 0)
        return size, abs(np.log((rate + 1) / (wanted + 1))), node.name

    return _on_nodes(min(candidates, key=distance), accelerator, gpus, gpus_per_node, inter_node_gbps)


def _bare(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))


def _on_nodes(
    node: Node, accelerator: Accelerator, gpus: int, gpus_per_node: int | None, inter_node_gbps: float | None
) -> Machine:
    """Return enough nodes for the job, with the row's network rate where it states one."""
    if inter_node_gbps is not None and node.nics is not None:
        # the row's rate is of the part of a node that it counts, such as a tray of four
        share = node.accelerators.count / (gpus_per_node or node.accelerators.count)
        rate = inter_node_gbps * 1e9 / 8 * max(share, 1.0) / node.nics.count
        node = node.model_copy(update={"nics": node.nics.model_copy(update={"bandwidth": rate})})
    nodes = -(-gpus // node.accelerators.count)
    cluster = Cluster(name=node.name, node=node, nodes=nodes, fabric=Fabric(type="rail-optimised"))
    return Machine(cluster=cluster, node=node, accelerator=accelerator, nodes=nodes)


@lru_cache(maxsize=512)
def _architecture(model: str, sizes: tuple[int | None, ...], seq_len: int) -> Architecture:
    columns = dict(
        zip(("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "experts", "topk", "moe_ffn"), sizes, strict=True)
    )
    try:
        return from_columns(model, seq_len=seq_len, **columns)
    except ModelNotCovered as error:
        raise RowError(f"model {error.reason}") from None


def _framework(row: Any, defaults: Defaults) -> Framework:
    text = _text(row, "framework")
    found = framework_of(text) if text else None
    if found is None:
        defaults.note("framework", DEFAULT_FRAMEWORK)
        return frameworks()[DEFAULT_FRAMEWORK]
    return found


def _precision(row: Any) -> str:
    text = _text(row, "precision").lower()
    for name in sorted(PRECISIONS, key=len, reverse=True):
        if name in text:
            return name
    raise RowError(f"unknown precision {text!r}")


def _plan_row(row: Any, framework: Framework, ranks: int, defaults: Defaults) -> dict[str, Any]:
    """Return the plan of a row by public names."""
    plan = dict(DEFAULTS)
    own = framework.defaults

    def field(name: str, default: Any) -> Any:
        value = _integer(row, name)
        if value is None:
            defaults.note(name, default)
            return default
        return value

    for name, default in FIELD_DEFAULTS.items():
        plan[name] = field(name, default)
    plan["zero_stage"] = field("zero_stage", own.zero_stage)
    plan["seq_parallel"] = bool(field("seq_parallel", int(plan["tp"] > 1)))
    recompute = _text(row, "recompute")
    if recompute not in CHOICES["recompute"]:
        defaults.note("recompute", own.recompute)
        recompute = own.recompute
    plan["recompute"] = recompute
    overlap = _text(row, "overlap").lower()
    plan["overlap_dp"] = own.overlap_dp and "bucketing off" not in overlap
    plan["overlap_tp"] = (own.overlap_tp or "async tp" in overlap) and plan["seq_parallel"]
    if not overlap:
        defaults.note("overlap", f"dp={own.overlap_dp} tp={own.overlap_tp} ({framework.name})")
    model_ranks = plan["tp"] * plan["pp"] * plan["cp"]
    plan["dp"] = _integer(row, "dp") or max(ranks // model_ranks, 1)
    plan["micro_batch"] = field("micro_batch", _micro_batch(row, plan, own.micro_batches_per_stage))
    return plan


def _micro_batch(row: Any, plan: dict[str, Any], per_stage: int | None) -> int:
    """Return the micro-batch of a run that does not state it: one, or as the framework cuts a replica's batch."""
    if per_stage is None or plan["pp"] == 1:
        return 1
    return max((_integer(row, "global_batch") or 1) // int(plan["dp"] * plan["pp"] * per_stage), 1)


def _check(plan: dict[str, Any], architecture: Architecture, ranks: int, global_batch: int) -> None:
    product = plan["tp"] * plan["pp"] * plan["cp"] * plan["dp"]
    if product != ranks:
        raise RowError(f"tp pp cp dp = {product} does not fill {ranks} GPUs")
    if global_batch % (plan["dp"] * plan["micro_batch"]):
        raise RowError("dp times micro-batch does not divide the global batch")
    if not np.all(splits(architecture.depth, np.asarray(plan["pp"]), np.asarray(plan["vpp"]))):
        raise RowError(f"{architecture.depth} layers do not spread over {plan['pp']} stages of {plan['vpp']} chunks")


def row_job(row: Any, defaults: Defaults, described: tuple[Machine, ...] = ()) -> tuple[Job, Plan]:
    """Return job and plan of a measured row, on one of the machines described or of the catalogue.

    Raises
    ------
    RowError
        With the reason, where the row cannot be predicted.
    """
    gpus, seq_len, global_batch = (_integer(row, name) for name in ("gpus", "seq_len", "global_batch"))
    if gpus is None or seq_len is None or global_batch is None:
        raise RowError("gpus, seq_len or global_batch is blank")
    rate = _text(row, "inter_node_gbps")
    machine = machine_of(
        _text(row, "gpu"), gpus, _integer(row, "gpus_per_node"), float(rate) if rate else None, described
    )
    sizes = tuple(
        _integer(row, name)
        for name in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "experts", "topk", "moe_ffn")
    )
    architecture = _architecture(_text(row, "model"), sizes, seq_len)
    framework = _framework(row, defaults)
    plan = _plan_row(row, framework, gpus, defaults)
    _check(plan, architecture, gpus, global_batch)
    try:
        found = job(
            architecture,
            machine,
            ranks=gpus,
            seq_len=seq_len,
            global_batch=global_batch,
            precision=_precision(row),
            framework=framework,
        )
    except ValueError as error:
        raise RowError(str(error)) from None
    return found, plan_from_rows([plan])


def predict_rows(frame: pd.DataFrame, defaults: Defaults, described: tuple[Machine, ...] = ()) -> pd.DataFrame:
    """Return the frame with ``measured``, ``predicted``, ``p10``, ``p90`` [s] and ``predicted_mem_gib``."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("measured", "predicted", "p10", "p90", "predicted_mem_gib", "skipped")
    }
    for row in frame.itertuples(index=False):
        values: dict[str, Any] = dict.fromkeys(columns, np.nan)
        values["skipped"] = row.skipped
        if not row.skipped:
            try:
                values |= _predicted(row, defaults, described)
            except RowError as error:
                values["skipped"] = str(error)
        for name in columns:
            columns[name].append(values[name])
    result = frame.copy()
    for name, column in columns.items():
        result[name] = column
    result["error"] = result["predicted"] / result["measured"] - 1
    return result


def _predicted(row: Any, defaults: Defaults, described: tuple[Machine, ...]) -> dict[str, Any]:
    measured = measured_seconds(row)
    if measured is None:
        raise RowError("no measured value")
    row_defaults = Defaults()
    found, plan = row_job(row, row_defaults, described)
    prediction = predict_step(found, plan)
    defaults.counts.update(row_defaults.counts)
    seconds = float(np.asarray(prediction.step.seconds).reshape(-1)[0])
    low, high = (float(bound.reshape(-1)[0]) for bound in step_interval(found, prediction.step))
    return {
        "measured": measured,
        "predicted": seconds,
        "p10": seconds * low,
        "p90": seconds * high,
        "predicted_mem_gib": _memory_gib(prediction, _text(row, "mem_kind")),
        "skipped": "",
    }


def _memory_gib(prediction: StepPrediction, meter: str) -> float:
    memory = prediction.memory.allocated_peak if "allocated" in meter else prediction.memory.reserved_peak
    return float(np.asarray(memory).reshape(-1)[0]) / 2**30


def validate(
    paths: Sequence[Path], *, by: Sequence[str] = (), where: Sequence[str] = (), hardware: Sequence[Machine] = ()
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare predictions with the measured runs of `paths`.

    Parameters
    ----------
    paths : sequence of Path
        CSV files, plain or compressed.
    by, where : sequence of str
        Columns to group by, and conditions that rows must meet.
    hardware : sequence of Machine
        Machines that rows may name beside the catalogue's.

    Returns
    -------
    report, rows : dict, DataFrame
        The figures, and every row with its prediction.
    """
    defaults = Defaults()
    rows = predict_rows(kept(read_files(paths), where), defaults, tuple(hardware))
    result = report("training", rows, defaults, by)
    scored = rows[rows["skipped"] == ""]
    result["metrics"] = {"iter_time_s": {key: value for key, value in statistics(scored).items() if key != "rows"}}
    if "peak_mem_gib" in scored and scored["peak_mem_gib"].notna().any():
        known = scored[scored["peak_mem_gib"].notna()]
        result["memory_mape"] = float((known["predicted_mem_gib"] / known["peak_mem_gib"] - 1).abs().mean())
    return result, rows
