"""Measured points of inference engines, and what the model predicts for them.

Two kinds of file are told apart by their columns: operating points of deployments (``serving_points``), and prefill and
decode times of whole models (``splitwise_e2e``). Every measured value is a line of its own, with its ``metric``. Rows
of one model, device, engine, precision and regime are predicted together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hardware.catalogue import Machine, UnknownName
from hardware.faults import InputError
from perfmodel.architecture import Architecture, ModelNotCovered, load_architecture
from perfmodel.batching import Limits, Requests
from perfmodel.batching_runs import offline, static_batch
from perfmodel.kernels import gemm
from perfmodel.serving.capacity import capacity
from perfmodel.serving.engine import Engine, engine_of, engines
from perfmodel.serving.law import Demand, tabulated
from perfmodel.serving.regimes import Served, from_start, pools
from perfmodel.serving.server import PRECISIONS, Server, server
from perfmodel.serving.spread import Figure, engine_spread, factors
from perfmodel.serving.step import Deployment
from perfmodel.step_law import StepTable
from perfmodel.terms import Array
from perfmodel.validate_training import RowError, machine_of
from perfmodel.validation import Defaults, grouped, kept, report, statistics

METRICS = (
    "tpot_ms_mean",
    "ttft_ms_mean",
    "output_tokens_per_s_total",
    "total_tokens_per_s",
    "requests_per_s",
    "prompt_time",
    "token_time",
)
"""Measured columns that are predicted; those at the top of a report are of the first that occurs. Tokens a second and
GPU, and end-to-end times, follow from these."""

POINTS = ("engine", "model", "gpu", "gpus", "isl", "osl", "regime")
WHOLE_MODELS = ("model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size")
"""Columns that tell the two kinds of file."""

LOOPS = ("closed_loop", "closed_loop_burst")

ROUNDS = 10.0
"""Requests of a client in a closed loop, where the file does not say: ten for each that is in flight."""

OFFLINE_REQUESTS = 3000.0
"""Requests of a run that are all queued at once, where the file does not say: published runs had 1,000 to 30,000."""

SPREAD_OF_BURST = 0.2 / 0.9
"""Width over mean of lengths drawn evenly between 0.8 and 1 of the nominal ones."""

DEFAULT_PRECISION = "bf16"

ENGINE_OF_WHOLE_MODELS = ("vllm", "0.2")
"""Engine and release that timed whole models: before it captured steps as graphs."""


Laws = dict[Hashable, StepTable]


@dataclass(frozen=True)
class Case:
    """What rows predicted together share."""

    model: str
    gpu: str
    engine: str
    release: str
    precision_weights: str
    precision_kv: str
    regime: str
    disaggregated: bool


def read_files(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of all files, with their ``file``; a file with other columns keeps the reason in ``skipped``."""
    frames = []
    for path in paths:
        frame = pd.read_csv(path, dtype={"row_id": str, "engine_version": str, "notes": str}, low_memory=False)
        frame["file"] = path.name
        frame["skipped"] = ""
        if set(WHOLE_MODELS) <= set(frame.columns):
            frame = _as_points(frame)
        elif not set(POINTS) <= set(frame.columns):
            missing = ", ".join(column for column in POINTS if column not in frame.columns)
            frame["skipped"] = f"the file has no serving columns: {missing} missing"
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _as_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return prefill and decode times of whole models with the columns of operating points."""
    engine, release = ENGINE_OF_WHOLE_MODELS
    names = {
        "hardware": "gpu",
        "tensor_parallel": "tp",
        "prompt_size": "isl",
        "token_size": "osl",
        "batch_size": "batch",
    }
    renamed = frame.rename(columns=names)
    renamed["gpus"] = renamed["tp"]
    return renamed.assign(engine=engine, engine_version=release, regime="whole_model", disaggregated=0)


def predict_rows(
    frame: pd.DataFrame,
    defaults: Defaults,
    known: Mapping[str, Engine] | None = None,
    described: Sequence[Machine] = (),
    laws: Laws | None = None,
) -> pd.DataFrame:
    """Return a line for every measured value: ``metric``, ``measured``, ``predicted``, ``skipped`` beside the columns.

    Parameters
    ----------
    frame : DataFrame
        Rows as of `read_files`.
    defaults : Defaults
        Counts what is assumed.
    known : mapping of str to Engine
        Engines by name; the bundled ones if left out.
    described : sequence of Machine
        Machines that rows may name beside the catalogue's.
    laws : dict
        Steps of instances, which are kept there for further calls with engines that differ in their host alone.
    """
    known = engines() if known is None else known
    laws = {} if laws is None else laws
    rows = frame.reset_index(drop=True)
    predicted = pd.DataFrame(np.nan, index=rows.index, columns=list(METRICS))
    reasons = rows["skipped"].copy()
    loops = rows.get("regime", pd.Series("", rows.index)).isin(LOOPS)
    stated = pd.concat([rows.get(name, pd.Series(np.nan, rows.index)) for name in ("concurrency", "batch")], axis=1)
    reasons[loops & stated.isna().all(axis=1) & (reasons == "")] = "neither concurrency nor batch is stated"
    usable = rows[reasons == ""]
    cases = [_case(row, defaults) for row in usable.itertuples(index=False)]
    for case, numbers in _together(cases, usable.index):
        part = rows.loc[numbers]
        try:
            found = _predicted(case, part, defaults, known, described, laws)
        except RowError as error:
            reasons.loc[numbers] = str(error)
            continue
        for metric, values in found.items():
            predicted.loc[numbers, metric] = values
    lines = []
    for metric in METRICS:
        if metric not in rows:
            continue
        there = rows[metric].notna()
        line = rows[there].assign(
            metric=metric, measured=rows.loc[there, metric], predicted=predicted.loc[there, metric]
        )
        line["skipped"] = reasons[there]
        unknown = (line["skipped"] == "") & line["predicted"].isna()
        line.loc[unknown, "skipped"] = "the regime has no such figure"
        lines.append(line)
    if not lines:
        return rows.assign(metric="", measured=np.nan, predicted=np.nan)
    return pd.concat(lines, ignore_index=True)


def _together(cases: Sequence[Case], index: pd.Index[int]) -> list[tuple[Case, list[int]]]:
    found: dict[Case, list[int]] = {}
    for case, number in zip(cases, index, strict=True):
        found.setdefault(case, []).append(int(number))
    return list(found.items())


def _text(row: Any, name: str) -> str:
    value = getattr(row, name, "")
    return "" if value is None or value != value else str(value).strip()


def _case(row: Any, defaults: Defaults) -> Case:
    weights = _text(row, "precision_weights").lower()
    if not weights:
        defaults.note("precision_weights", DEFAULT_PRECISION)
        weights = DEFAULT_PRECISION
    cache = _text(row, "precision_kv").lower()
    if not cache:
        defaults.note("precision_kv", "the engine's for the weights")
    return Case(
        _text(row, "model"),
        _text(row, "gpu"),
        _text(row, "engine").lower(),
        _text(row, "engine_version"),
        weights,
        cache,
        _text(row, "regime"),
        bool(float(_text(row, "disaggregated") or 0)),
    )


def _predicted(
    case: Case,
    rows: pd.DataFrame,
    defaults: Defaults,
    known: Mapping[str, Engine],
    described: Sequence[Machine],
    laws: Laws,
) -> dict[str, Array]:
    """Return what is predicted for rows of one case, by metric, in the units of the columns."""
    asked = _server(case, int(rows["gpus"].max()), known, described)
    factor = _column(rows, "len_factor_mean", 1.0)
    prompt, output = rows["isl"].to_numpy(float) * factor, rows["osl"].to_numpy(float) * factor
    if case.regime in LOOPS:
        defaults.counts["requests of a client", str(ROUNDS)] += len(rows)
    found = {metric: np.full(len(rows), np.nan) for metric in METRICS}
    for lengths in sorted(set(zip(prompt.tolist(), output.tolist(), strict=True))):
        same = (prompt == lengths[0]) & (output == lengths[1])
        for metric, values in _same_lengths(case, asked, rows[same], lengths, defaults, laws).items():
            found[metric][same] = values
    return found


def _same_lengths(
    case: Case, asked: Server, rows: pd.DataFrame, lengths: tuple[float, float], defaults: Defaults, laws: Laws
) -> dict[str, Array]:
    """Return what is predicted for rows of one case whose requests are alike."""
    variation = SPREAD_OF_BURST**2 / 12 if case.regime == "closed_loop_burst" else 0.0
    requests = Requests(*lengths, variation, variation)

    def law_of(deployment: Deployment, sequences: float, tokens: float) -> StepTable:
        ways = tuple(np.asarray(value, float).tobytes() for value in vars(deployment).values())
        key = (case, lengths, ways, sequences, tokens)
        if key not in laws:
            laws[key] = _law(asked, deployment, requests, sequences, tokens)
        return laws[key]

    if case.disaggregated:
        return _written(_pools(asked, rows, requests, defaults, law_of), requests, np.ones(len(rows)))
    deployment = _deployment(asked, rows, defaults)
    instances = np.maximum(rows["gpus"].to_numpy(float) / deployment.accelerators, 1.0)
    if case.regime in ("whole_model", "static_batch"):
        batch = rows["batch"].to_numpy(float)
        law = law_of(deployment, float(batch.max()), float(batch.max()) * lengths[0])
        run = static_batch(law, requests, batch, batch * lengths[0])
        if case.regime == "whole_model":
            return {"prompt_time": 1e3 * run.ttft_s, "token_time": 1e3 * run.tpot_s}
        return _written(Served(run.ttft_s, run.tpot_s, run.requests_per_s, batch), requests, instances)
    slots, budget = _slots(asked, deployment, requests), asked.engine.defaults.max_num_batched_tokens
    limits = Limits(asked.engine.batching, slots, budget * np.asarray(deployment.dp, float))
    concurrency = _concurrency(rows, instances)
    most = slots if case.regime == "offline" else np.fmin(concurrency, slots)
    law = law_of(deployment, float(np.max(most)), float(np.max(np.asarray(limits.token_budget))))
    if case.regime == "offline":
        defaults.counts["requests of an offline run", str(OFFLINE_REQUESTS)] += len(rows)
        whole = replace(limits, token_budget=np.maximum(limits.token_budget, lengths[0]))
        queue = offline(law, requests, whole, np.maximum(OFFLINE_REQUESTS / instances, slots))
        served = Served(queue.ttft_s, queue.tpot_s, queue.requests_per_s, slots)
        return _written(served, requests, instances, loaded=False)
    if case.regime not in LOOPS:
        raise RowError(f"unknown regime {case.regime!r}")
    served = from_start(law, requests, limits, asked.engine, concurrency, rounds=ROUNDS)
    return _written(served, requests, instances)


def _law(asked: Server, deployment: Deployment, requests: Requests, sequences: float, tokens: float) -> StepTable:
    """Return the step law of the instances of some rows."""
    demand = Demand(*(float(np.asarray(value)) for value in vars(requests).values()))
    return tabulated(
        asked,
        deployment,
        demand,
        sequences=max(sequences, 2.0) if sequences else 0.0,
        tokens=tokens,
        counted_context=requests.context_tokens,
    )


def _concurrency(rows: pd.DataFrame, instances: Array) -> Array:
    """Return clients of an instance; where only a batch is stated it is an engine's."""
    clients = _column(rows, "concurrency", np.nan) / instances
    return np.where(np.isnan(clients), _column(rows, "batch", np.nan), clients)


def _deployment(asked: Server, rows: pd.DataFrame, defaults: Defaults, prefix: str = "") -> Deployment:
    """Return how instances are spread.

    Where an engine spreads attention over ranks by default, a mixture of experts whose ways are blank is spread so. One
    that keeps experts whole on ranks of attention data parallelism does so where a row states no expert parallelism.
    """
    tp, pp, dp, ep = (_column(rows, prefix + name, 1.0) for name in ("tp", "pp", "dp", "ep"))
    own = asked.engine.defaults
    if any(layer.feed_forward.experts for layer in asked.architecture.layers):
        blank = np.isnan(_column(rows, f"{prefix}dp", np.nan)) & (tp > 1)
        if own.attention_data_parallel and blank.any():
            defaults.counts["dp", "every rank of the instance"] += int(blank.sum())
            dp, tp = np.where(blank, tp, dp), np.where(blank, 1.0, tp)
        whole = (dp > 1) & (ep == 1)
        if own.whole_experts and whole.any():
            defaults.counts["ep", "every rank of the instance"] += int(whole.sum())
            ep = np.where(whole, tp * dp, ep)
    return Deployment(tp, pp, dp, ep)


def _server(case: Case, gpus: int, known: Mapping[str, Engine], described: Sequence[Machine]) -> Server:
    engine = engine_of(case.engine)
    if engine is None:
        raise RowError(f"unknown engine {case.engine!r}")
    if case.precision_weights not in PRECISIONS:
        raise RowError(f"unknown precision {case.precision_weights!r}")
    architecture = _architecture(case.model)
    machine = machine_of(case.gpu, gpus, None, None, described)
    precision = case.precision_weights
    if gemm.FORMS[PRECISIONS[precision]].arithmetic == "fp4" and "fp4" not in machine.accelerator.peak:
        precision = "mxfp4_wo"  # engines unpack 4-bit weights where nothing multiplies them as they are
    try:
        return server(
            architecture,
            machine,
            known[engine.name],
            precision_weights=precision,
            precision_kv=case.precision_kv or None,
            release=case.release,
        )
    except (ValueError, UnknownName) as error:
        raise RowError(str(error)) from None


def _architecture(model: str) -> Architecture:
    try:
        return load_architecture(model, Path())
    except ModelNotCovered as error:
        raise RowError(f"model {error.reason}") from error
    except InputError as error:
        raise RowError(f"unknown model {model!r}") from error


def _column(rows: pd.DataFrame, name: str, default: float) -> Array:
    """Return a column of numbers; blanks, and a column that is not there, take the default."""
    if name not in rows:
        return np.full(len(rows), default)
    return np.asarray(rows[name].fillna(default), float)


def _slots(asked: Server, deployment: Deployment, requests: Requests) -> Array:
    """Return sequences that run at once: the engine's limit, and what the cache holds."""
    limits = asked.engine.defaults
    room = capacity(asked, deployment, limits.max_num_batched_tokens)
    held = room.sequences(np.asarray(requests.prompt_tokens), np.asarray(requests.output_tokens))
    return np.asarray(np.maximum(np.minimum(limits.max_num_seqs * np.asarray(deployment.dp, float), held), 1.0))


def _pools(
    asked: Server,
    rows: pd.DataFrame,
    requests: Requests,
    defaults: Defaults,
    law_of: Callable[[Deployment, float, float], StepTable],
) -> Served:
    """Return what is predicted where prompts and answers have instances of their own."""
    budget = asked.engine.defaults.max_num_batched_tokens
    prefill, decode = (_deployment(asked, rows, defaults, f"{side}_") for side in ("prefill", "decode"))
    prefill_workers, decode_workers = (_column(rows, f"{side}_workers", 1.0) for side in ("prefill", "decode"))
    slots = _slots(asked, decode, requests)
    clients = _column(rows, "concurrency", np.nan)
    clients = np.where(np.isnan(clients), _column(rows, "batch", np.nan) * decode_workers, clients)
    most = float(np.max(np.fmin(clients / decode_workers, slots)))
    prompt_limits = Limits("prefill_first", 1.0, budget * np.asarray(prefill.dp, float))
    prompt_law = law_of(prefill, 0.0, float(np.max(np.asarray(prompt_limits.token_budget))))
    return pools(
        (prompt_law, prompt_limits, prefill_workers),
        (law_of(decode, most, 0.0), Limits(asked.engine.batching, slots, budget), decode_workers),
        requests,
        asked.engine,
        clients,
        rounds=ROUNDS,
    )


def _written(served: Served, requests: Requests, instances: Array, *, loaded: bool = True) -> dict[str, Array]:
    rate = served.requests_per_s * instances
    rates = {
        "output_tokens_per_s_total": rate * requests.output_tokens,
        "total_tokens_per_s": rate * (np.asarray(requests.prompt_tokens) + requests.output_tokens),
        "requests_per_s": rate,
    }
    if not loaded:
        return rates
    return rates | {"tpot_ms_mean": 1e3 * served.tpot_s, "ttft_ms_mean": 1e3 * served.ttft_s}


FIGURES: dict[str, Figure] = {
    "tpot_ms_mean": "tpot",
    "ttft_ms_mean": "ttft",
    "output_tokens_per_s_total": "throughput",
    "total_tokens_per_s": "throughput",
    "requests_per_s": "throughput",
    "prompt_time": "ttft",
    "token_time": "tpot",
}
"""The kind of figure that a metric is."""


def with_intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the lines with ``p10``, ``p90`` and ``error``."""
    bounds = [factors(_spread(row)) if not row.skipped else (np.nan, np.nan) for row in rows.itertuples(index=False)]
    low, high = (np.array([pair[side] for pair in bounds]) for side in (0, 1))
    found = rows.assign(p10=rows["predicted"] * low, p90=rows["predicted"] * high)
    return found.assign(error=found["predicted"] / found["measured"] - 1)


def _spread(row: Any) -> float:
    found = engine_of(str(row.engine))
    assert found is not None
    return engine_spread(found, FIGURES[str(row.metric)], apart=bool(float(row.disaggregated or 0)))


def validate(
    paths: Sequence[Path], *, by: Sequence[str] = (), where: Sequence[str] = (), hardware: Sequence[Machine] = ()
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare predictions with the measured operating points of `paths`.

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
        The figures, and a line for every measured value with its prediction.
    """
    defaults = Defaults()
    asked = kept(read_files(paths), where)
    rows = with_intervals(predict_rows(asked, defaults, described=hardware))
    present = [metric for metric in METRICS if (rows["metric"] == metric).any()]
    first = rows[rows["metric"] == present[0]] if present else rows
    result = report("serving", first, defaults, by)
    result["rows"] = len(asked)
    figures: dict[str, dict[str, Any]] = {}
    for metric in present:
        part = rows[(rows["metric"] == metric) & (rows["skipped"] == "")]
        figures[metric] = dict(statistics(part))
        if by and len(part):
            figures[metric]["groups"] = grouped(part, by)
    result["metrics"] = figures
    return result, rows
