"""Measured power of accelerators, and what the model predicts for it.

Four kinds of file are told apart by their columns: power of serving at a batch size, training under power caps, phases
of one model, and idle and busy power under traffic. Every measured value is a line of its own, with its ``metric``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import UnknownName, find
from hardware.faults import InputError
from hardware.schema import Accelerator
from perfmodel.architecture import load_architecture
from perfmodel.power import Activity, board_power_w, capped_speed, context_power_w, interval, serving_activity
from perfmodel.power.constants import PowerConstants, power_calibration, shares_of, throttle_of
from perfmodel.power.work import Sizes, sizes_of, stacked
from perfmodel.validation import Defaults, grouped, kept, report, statistics

SCHEMAS: dict[str, tuple[str, ...]] = {
    "serving": ("task", "model", "weights", "gpu", "num_gpus", "avg_batch", "output_tok_s", "power_per_gpu_w"),
    "caps": ("gpu", "dataset", "network", "batch", "power_limit_w", "epoch_time_s", "avg_power_w"),
    "phases": ("model", "gpu", "tp", "prompt_tokens", "batch", "prompt_time_ms", "token_time_ms", "avg_power_frac"),
    "traffic": ("model", "gpu", "tp", "idle_w", "busy_w", "max_prefill_tok_s", "max_decode_tok_s"),
}
"""Columns that tell the kinds of file."""

NEEDED = (
    "num_gpus",
    "avg_batch",
    "avg_output_tokens",
    "output_tok_s",
    "power_limit_w",
    "epoch_time_s",
    "avg_power_w",
    "tp",
    "prompt_tokens",
    "output_tokens",
    "prompt_time_ms",
    "token_time_ms",
    "max_prefill_tok_s",
    "max_decode_tok_s",
)
NUMBERS = (*NEEDED, "batch", "power_per_gpu_w", "avg_power_frac", "peak_power_frac", "busy_w", "idle_w")
"""Columns that predictions need, and all that hold numbers."""

METRICS = ("power_per_gpu_w", "relative_throughput", "avg_power_frac", "peak_power_frac", "busy_w", "idle_w")
"""Measured values; the figures at the top of a report are those of the first that occurs."""

REFERENCE = "the group's highest limit, to which its other rows are compared"

TRAFFIC_CONTEXT = 500.0
"""Cached tokens of a sequence of chat traffic, where a file does not say."""

EACH_AT_FULL_LOAD = 0.5
"""Rates of prompts and of tokens at full load over the highest of each alone, where both take half of the time."""

TRAFFIC_BATCHES = 2.0 ** np.arange(0, 10.01, 0.25)
"""Batches that may reach the stated rate of tokens."""


def read_files(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of all files with ``file``, ``schema`` and ``skipped``, a reason or an empty text."""
    frames = []
    for path in paths:
        frame = pd.read_csv(path)
        frame["file"], frame["skipped"], frame["schema"] = path.name, "", ""
        for name, columns in SCHEMAS.items():
            if set(columns) <= set(frame.columns):
                frame["schema"] = name
                break
        else:
            frame["skipped"] = "the file has the columns of no kind of power measurement"
        for name in frame.columns.intersection(list(NUMBERS)):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
        unusable = frame[frame.columns.intersection(list(NEEDED))].isna().any(axis=1) & (frame["schema"] != "")
        frame.loc[unusable, "skipped"] = "a column that the prediction needs is blank or no number"
        if "model" in frame:
            frame["family"] = [model_family(str(model)) for model in frame["model"]]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def model_family(model: str) -> str:
    """Return the family of a model by its name; of Qwen3 mixtures and dense models apart."""
    bare = model.rpartition("/")[2].lower().replace("_", "-")
    if bare.startswith("qwen3"):
        return "qwen3 moe" if "-a3b" in bare or "-a22b" in bare else "qwen3 dense"
    known = {"llama-4": "llama 4", "llama-3": "llama 3", "gemma-3": "gemma 3", "nemotron": "nemotron"}
    known |= {"deepseek": "deepseek", "gpt-oss": "gpt-oss", "llama2": "llama 2", "llama-2": "llama 2"}
    return next((family for part, family in known.items() if part in bare), bare)


@lru_cache(maxsize=256)
def model_sizes(model: str) -> Sizes | None:
    """Return the sizes of a model, of one that sees images those of its language model; None if nobody knows it."""
    bare = model.rpartition("/")[2].lower()
    for part in ("-instruct", "-2507", "-fp8", "-bf16", "-it", "-vl", "-omni", "nvidia-"):
        bare = bare.replace(part, "")
    for name, values in power_calibration()["models"].items():
        if bare.startswith(name):
            return Sizes(**values)
    for name in (model.rpartition("/")[2], bare, bare.replace("llama-3-", "llama-3.1-")):
        try:
            return sizes_of(load_architecture(name, Path()))
        except InputError:
            continue
    return None


def board_of(name: str, described: Sequence[Accelerator] = ()) -> Accelerator | None:
    """Return an accelerator by its name in a file; those of files that a person gives go first."""
    for accelerator in described:
        if name.lower() in (known.lower() for known in (accelerator.name, *accelerator.aliases)):
            return accelerator
    try:
        found = find("accelerator", name)
    except UnknownName:
        return None
    assert isinstance(found, Accelerator)
    return found


def predict_rows(
    frame: pd.DataFrame,
    defaults: Defaults,
    described: Sequence[Accelerator] = (),
    constants: PowerConstants | None = None,
) -> pd.DataFrame:
    """Return a line for every measured value: ``metric``, ``measured``, ``predicted``, ``p10``, ``p90``, ``skipped``.

    Parameters
    ----------
    frame : DataFrame
        Rows as of `read_files`.
    defaults : Defaults
        Counts what is assumed.
    described : sequence of Accelerator
        Boards that rows may name, before the catalogue's.
    constants : PowerConstants
        Those to take, whatever descriptions say; the shipped ones if left out.
    """
    lines = [frame[frame["skipped"] != ""].assign(metric="", measured=np.nan, predicted=np.nan, p10=np.nan, p90=np.nan)]
    for schema, rows in frame[frame["skipped"] == ""].groupby("schema", sort=False):
        for gpu, same in rows.groupby("gpu", sort=False):
            board = board_of(str(gpu), described)
            if board is None:
                lines.append(_line(same, "", np.nan, np.nan, 0.0, f"unknown accelerator {gpu!r}"))
                continue
            if board.name.lower() != str(gpu).lower():
                defaults.counts[f"gpu {gpu}", board.name] += len(same)
            lines += lines_of(str(schema), same, board, defaults, constants)
    found = pd.concat([line for line in lines if len(line)], ignore_index=True)
    return found.assign(error=found["predicted"] / found["measured"] - 1)


def _line(
    rows: pd.DataFrame, metric: str, measured: Any, predicted: Any, spread: float, skipped: Any = ""
) -> pd.DataFrame:
    low, high = interval(spread)
    predicted = np.asarray(predicted, float)
    line = rows.assign(metric=metric, measured=measured, predicted=predicted, p10=predicted * low, p90=predicted * high)
    line["skipped"] = skipped
    return line[line["measured"].notna() | (line["skipped"] != "")]


def serving_rows(rows: pd.DataFrame, defaults: Defaults) -> tuple[pd.DataFrame, list[Sizes]]:
    """Return the rows whose model is known, with ``prompt_tokens``, and its sizes; count what is assumed."""
    prompts = power_calibration()["workloads"]
    tokens = rows["task"].map(prompts)
    for task, count in rows["task"][tokens.notna()].value_counts().items():
        defaults.counts[f"prompt tokens of {task}", str(prompts[task])] += int(count)
    sizes = [model_sizes(str(model)) for model in rows["model"]]
    for index, (one, row) in enumerate(zip(sizes, rows.itertuples(index=False), strict=True)):
        if one is None:
            defaults.counts["sizes of an unknown model", "parameters of the row, no cache"] += 1
            sizes[index] = Sizes(float(row.total_params_b) * 1e9, float(row.active_params_b) * 1e9)  # type: ignore[arg-type]
    return rows.assign(prompt_tokens=tokens.fillna(0.0)), [one for one in sizes if one is not None]


def measured_activity(
    rows: pd.DataFrame, sizes: Sequence[Sizes], board: Accelerator, constants: PowerConstants | None
) -> Activity:
    """Return what boards did in rows of measured serving, from the rates that were measured."""
    column = {name: rows[name].to_numpy(float) for name in ("avg_batch", "output_tok_s", "num_gpus", "prompt_tokens")}
    answers = rows["avg_output_tokens"].to_numpy(float)
    blocks = power_calibration()["block_scaled"]
    scaled = [any(part in str(model).lower() for part in blocks) for model in rows["model"]]
    return serving_activity(
        stacked(sizes),
        board,
        accelerators=column["num_gpus"],
        steps_per_s=column["output_tok_s"] / column["avg_batch"],
        sequences=column["avg_batch"],
        context_tokens=column["prompt_tokens"] + answers / 2,
        prompt_tokens_per_s=column["output_tok_s"] / answers * column["prompt_tokens"],
        weight_bytes=np.where(rows["weights"] == "fp8", 1.0, 2.0),
        block_scaled=np.asarray(scaled, float),
        constants=constants,
    )


def _serving(
    rows: pd.DataFrame, board: Accelerator, defaults: Defaults, constants: PowerConstants | None
) -> list[pd.DataFrame]:
    known, sizes = serving_rows(rows, defaults)
    shares = shares_of(board, constants)
    activity = measured_activity(known, sizes, board, constants)
    watts = board_power_w(board, activity, shares=shares, constants=constants)
    return [_line(rows, "power_per_gpu_w", rows["power_per_gpu_w"], watts, shares.spread)]


def _caps(
    rows: pd.DataFrame, board: Accelerator, defaults: Defaults, constants: PowerConstants | None
) -> list[pd.DataFrame]:
    groups = rows.groupby(["gpu", "dataset", "network", "batch"])["power_limit_w"]
    top = rows.loc[groups.idxmax()].set_index(["gpu", "dataset", "network", "batch"])
    same = top.loc[pd.MultiIndex.from_frame(rows[["gpu", "dataset", "network", "batch"]])]
    seconds, watts, highest = (same[name].to_numpy(float) for name in ("epoch_time_s", "avg_power_w", "power_limit_w"))
    limit = rows["power_limit_w"].to_numpy(float)
    throttle = throttle_of(board, constants)
    speed = capped_speed(watts, limit, highest, throttle)
    reason = np.where(limit == highest, REFERENCE, "")
    spread = throttle.spread
    return [_line(rows, "relative_throughput", seconds / rows["epoch_time_s"], speed, spread, reason)]


def _phases(
    rows: pd.DataFrame, board: Accelerator, defaults: Defaults, constants: PowerConstants | None
) -> list[pd.DataFrame]:
    sizes = [model_sizes(str(model)) or Sizes(0.0, 0.0) for model in rows["model"]]
    unknown = np.where([one.parameters == 0.0 for one in sizes], "unknown model", "")
    column = {
        name: rows[name].to_numpy(float)
        for name in ("tp", "batch", "prompt_tokens", "output_tokens", "prompt_time_ms", "token_time_ms")
    }
    shares = shares_of(board, constants)
    prompt_s, token_s = column["prompt_time_ms"] / 1e3, column["token_time_ms"] / 1e3
    serving = partial(serving_activity, stacked(sizes), board, accelerators=column["tp"], constants=constants)
    tokens = serving(
        steps_per_s=1 / token_s,
        sequences=column["batch"],
        context_tokens=column["prompt_tokens"] + column["output_tokens"] / 2,
    )
    prompts = serving(
        steps_per_s=1 / prompt_s,
        sequences=0.0 * column["batch"],
        context_tokens=0.0,
        prompt_tokens_per_s=column["batch"] * column["prompt_tokens"] / prompt_s,
    )
    during = [board_power_w(board, one, shares=shares, constants=constants) for one in (prompts, tokens)]
    later_s = token_s * np.maximum(column["output_tokens"] - 1, 0)
    mean = (during[0] * prompt_s + during[1] * later_s) / (prompt_s + later_s)
    most = board.power.limit
    return [
        _line(rows, "avg_power_frac", rows["avg_power_frac"], mean / most, shares.spread, unknown),
        _line(rows, "peak_power_frac", rows["peak_power_frac"], np.maximum(*during) / most, shares.spread, unknown),
    ]


def _traffic(
    rows: pd.DataFrame, board: Accelerator, defaults: Defaults, constants: PowerConstants | None
) -> list[pd.DataFrame]:
    """Predict a group of boards with a model on them: without traffic, and at the plateau.

    Rows state the highest rates of prompts and of tokens, each by itself; full load is where the rates over theirs add
    up to 1 (powertrace-sim). At the plateau both are half of what they are alone, in batches as large as the serving
    model needs for that.
    """
    from perfmodel.serving.engine import engines
    from perfmodel.serving.server import server
    from perfmodel.serving.step import Deployment, Load, step
    from perfmodel.validate_training import RowError, machine_of

    shares, four_bits = shares_of(board, constants), power_calibration()["four_bits"]
    defaults.counts["context of a sequence", f"{TRAFFIC_CONTEXT:g}"] += len(rows)
    busy, reasons = np.full(len(rows), np.nan), [""] * len(rows)
    for number, row in enumerate(rows.itertuples(index=False)):
        boards, wanted = int(row.tp), EACH_AT_FULL_LOAD * float(row.max_decode_tok_s)  # type: ignore[arg-type]
        try:
            architecture = load_architecture(str(row.model).replace("llama-3-", "llama-3.1-"), Path())
            asked = server(architecture, machine_of(str(row.gpu), boards, None, None), engines()["vllm"])
        except (InputError, RowError, ValueError, UnknownName):
            reasons[number] = f"no prediction for {row.model} on {row.gpu}"
            continue
        load = Load(sequences=TRAFFIC_BATCHES, context=TRAFFIC_CONTEXT)
        seconds = np.asarray(step(asked, Deployment(tp=boards), load).seconds)
        at = int(np.argmax(TRAFFIC_BATCHES / seconds >= wanted)) if np.any(TRAFFIC_BATCHES / seconds >= wanted) else -1
        activity = serving_activity(
            sizes_of(architecture),
            board,
            accelerators=boards,
            steps_per_s=wanted / TRAFFIC_BATCHES[at],
            sequences=TRAFFIC_BATCHES[at],
            context_tokens=TRAFFIC_CONTEXT,
            prompt_tokens_per_s=EACH_AT_FULL_LOAD * float(row.max_prefill_tok_s),  # type: ignore[arg-type]
            weight_bytes=four_bits.get(model_family(str(row.model)), 2.0),
            constants=constants,
        )
        busy[number] = boards * float(board_power_w(board, activity, shares=shares, constants=constants))
    idle = context_power_w(board, shares) * rows["tp"].to_numpy(float)
    return [
        _line(rows, "busy_w", rows["busy_w"], busy, shares.spread, reasons),
        _line(rows, "idle_w", rows["idle_w"], idle, shares.spread),
    ]


_PREDICT: dict[str, Callable[[pd.DataFrame, Accelerator, Defaults, PowerConstants | None], list[pd.DataFrame]]] = {
    "serving": _serving,
    "caps": _caps,
    "phases": _phases,
    "traffic": _traffic,
}


def lines_of(
    schema: str, rows: pd.DataFrame, board: Accelerator, defaults: Defaults, constants: PowerConstants | None = None
) -> list[pd.DataFrame]:
    """Return the lines of `predict_rows` of rows of one kind that were measured on one board."""
    return _PREDICT[schema](rows, board, defaults, constants)


def validate(
    paths: Sequence[Path],
    *,
    by: Sequence[str] = (),
    where: Sequence[str] = (),
    hardware: Sequence[Accelerator] = (),
    leave_out: str | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare predictions with the measured power of `paths`.

    Parameters
    ----------
    paths : sequence of Path
        CSV files, plain or compressed.
    by, where : sequence of str
        Columns to group by, and conditions that rows must meet.
    hardware : sequence of Accelerator
        Boards that rows may name, before the catalogue's.
    leave_out : str
        Column whose values are left out of a refit in turn.
    progress : callable
        Takes the share that is done.

    Returns
    -------
    report, rows : dict, DataFrame
        The figures, and a line for every measured value with its prediction.
    """
    defaults = Defaults()
    asked = kept(read_files(paths), where)
    rows = predict_rows(asked, defaults, hardware)
    present = [metric for metric in METRICS if (rows["metric"] == metric).any()]
    first = rows[rows["metric"].isin([*present[:1], ""])]
    result = report("power", first, defaults, by)
    result["measured"] = int((first["skipped"] != REFERENCE).sum())
    scored = rows[rows["skipped"] == ""]
    result["metrics"] = {metric: statistics(scored[scored["metric"] == metric]) for metric in present}
    for metric in present:
        lines = scored[scored["metric"] == metric]
        for name in lines["file"].unique() if rows["file"].nunique() > 1 else ():
            result["groups"].setdefault(f"file={name}", statistics(lines[lines["file"] == name]))
        if by and metric != present[0] and len(lines):
            result["groups"] |= {f"metric={metric},{name}": part for name, part in grouped(lines, by).items()}
    if leave_out is not None:
        from perfmodel.power.power_fit import left_out

        result["left_out"] = left_out(asked, leave_out, progress)
    return result, rows
