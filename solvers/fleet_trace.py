"""A recorded trace of requests cut into classes by the length of prompt and answer."""

from __future__ import annotations

import itertools
from pathlib import Path as FilePath

import numpy as np

from hardware.faults import InputError
from hardware.yaml_source import Source
from perfmodel.request_traces import trace_pieces
from perfmodel.terms import Array
from solvers.fleet_question import FleetClass, FleetQuestion, FleetTrace


def with_classes(question: FleetQuestion, source: Source, base_dir: FilePath) -> FleetQuestion:
    """Return a question with its trace cut into classes.

    Parameters
    ----------
    question : FleetQuestion
        As asked; one without a trace stays as it is.
    source, base_dir
        The document and its folder.

    Raises
    ------
    InputError
        The file is missing or has faults, edges do not ascend, or there are classes beside the trace.
    """
    workload, at = question.workload, ("workload", "trace")
    trace = workload.trace
    if trace is None:
        if workload.classes:
            return question
        raise InputError([source.fault(("workload", "classes"), "missing; classes of requests, or a trace")])
    faults = []
    if workload.classes:
        faults.append(source.fault(at, "stands beside classes; one of them says what is asked"))
    for key in ("input_edges", "output_edges"):
        edges = getattr(trace, key)
        if any(high <= low for low, high in itertools.pairwise(edges)):
            faults.append(source.fault((*at, key), f"should ascend [got {list(edges)}]"))
    path = base_dir / trace.file
    if not path.is_file():
        faults.append(source.fault((*at, "file"), f"there is no file {path}"))
    if faults:
        raise InputError(faults)
    return question.model_copy(
        update={"workload": workload.model_copy(update={"classes": classes_of(path, trace), "trace": None})}
    )


def classes_of(path: FilePath, trace: FleetTrace) -> tuple[FleetClass, ...]:
    """Cut a trace into classes, in two passes of bounded memory.

    Parameters
    ----------
    path : Path
        The file.
    trace : FleetTrace
        Where to cut lengths and time.

    Returns
    -------
    tuple of FleetClass
        One for each pair of ranges of prompt and answer that has requests: mean lengths, mean rate, and the factors of
        the rate over equal parts of the trace's time.
    """
    last_s, count = 0.0, 0
    for piece in trace_pieces(path):
        if len(piece.arrival_s):
            last_s, count = float(piece.arrival_s[-1]), count + len(piece.arrival_s)
    ways = len(trace.input_edges) + 1, len(trace.output_edges) + 1
    found: Array = np.zeros((3, ways[0] * ways[1], trace.periods))
    for piece in trace_pieces(path):
        prompt = np.searchsorted(trace.input_edges, piece.prompt_tokens)
        answer = np.searchsorted(trace.output_edges, piece.output_tokens)
        part = np.minimum(piece.arrival_s / max(last_s, 1e-9) * trace.periods, trace.periods - 1).astype(np.int64)
        cell = (prompt * ways[1] + answer) * trace.periods + part
        for place, weight in enumerate((None, piece.prompt_tokens, piece.output_tokens)):
            found[place] += np.bincount(cell, weight, found[0].size).reshape(found[0].shape)
    # n requests are n - 1 times between arrivals
    mean_rate = trace.rate_rps or (count - 1) / last_s if last_s > 0 else trace.rate_rps or 0.0
    classes = []
    for number in map(int, np.flatnonzero(found[0].sum(axis=1))):
        requests, prompts, answers = found[:, number].sum(axis=1)
        profile = found[0, number] / found[0, number].mean()
        classes.append(
            FleetClass(
                name=f"in {_range(trace.input_edges, number // ways[1])}, out "
                f"{_range(trace.output_edges, number % ways[1])}",
                isl=max(round(prompts / requests), 1),
                osl=max(round(answers / requests), 1),
                rate_rps=float(requests / count * mean_rate),
                profile=tuple(profile.tolist()) if trace.periods > 1 else None,
            )
        )
    return tuple(classes)


def _range(edges: tuple[int, ...], number: int) -> str:
    low = 1 if number == 0 else edges[number - 1] + 1
    return f"{low} to {edges[number]}" if number < len(edges) else f"from {low}"
