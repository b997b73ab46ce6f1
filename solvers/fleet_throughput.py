"""What one instance sustains of each class of requests within the objectives: as given, or by the model of serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath

import numpy as np

from hardware.catalogue import UnknownName, find, names, resolve_cluster
from hardware.faults import Fault, InputError, Path
from hardware.schema import Accelerator
from hardware.yaml_source import Source, did_you_mean
from perfmodel.architecture import Architecture, ModelNotCovered, load_architecture
from perfmodel.serving.capacity import capacity
from perfmodel.serving.engine import Engine, engines
from perfmodel.serving.regimes import closed_loop
from perfmodel.serving.server import PRECISIONS, Server, server
from perfmodel.serving.step import Deployment
from perfmodel.terms import Array
from solvers.fleet_question import FleetAccelerator, FleetQuestion, FleetSlo

_POINTS = 24
"""Numbers of running sequences that are tried, from one to as many as fit."""
_LASTING = 1e9
"""Requests of a client of a loop that has always been running."""
_EVEN = 1.0
"""Requests come evenly over the time of an answer."""


@dataclass(frozen=True)
class Rates:
    """What one instance sustains, by class.

    Parameters
    ----------
    throughput : array
        Requests within the objectives; 0 where there are none [requests/s].
    latency_s : array
        From the arrival of a request to its last token, at that throughput [s].
    sizes : mapping of str to int
        Accelerators of an instance by model.
    ttft_s, tpot_s : array
        The least that a request alone sees; infinite where the model does not fit, not a number where the throughput is
        given [s].
    """

    throughput: Array
    latency_s: Array
    sizes: Mapping[str, int]
    ttft_s: Array
    tpot_s: Array


def models_of(question: FleetQuestion) -> list[str]:
    """Return the model of each class."""
    return [one.model or question.model or "model" for one in question.workload.classes]


def per_instance(one: FleetAccelerator, model: str) -> int | None:
    """Return the accelerators of an instance as they are given, or None."""
    size = one.accelerators_per_instance
    return size.get(model) if isinstance(size, Mapping) else size


@cache
def node_of(accelerator: str) -> str | None:
    """Return the first node of the catalogue with a kind of accelerator, which joins those of an instance."""
    for name in names("node"):
        kind = find("node", name).accelerators.type
        if (kind if isinstance(kind, str) else kind.name) == accelerator:
            return name
    return None


def class_throughputs(
    question: FleetQuestion,
    number: int,
    entry: Accelerator | UnknownName,
    source: Source,
    base_dir: FilePath,
    faults: list[Fault],
) -> Rates | None:
    """Return what one instance of a kind sustains of each class.

    Parameters
    ----------
    question : FleetQuestion
        Whose classes are meant.
    number : int
        Which of its accelerators.
    entry : Accelerator or UnknownName
        The accelerator in the catalogue.
    source, base_dir
        The document and its folder.
    faults : list of Fault
        Takes what is wrong.

    Returns
    -------
    Rates or None
        None where something is wrong.
    """
    one, at = question.accelerators[number], ("accelerators", number)
    models = models_of(question)
    given = one.throughput_requests_per_s
    if given is not None:
        latency = one.latency_s or (0.0,) * len(given)
        unknown = np.full(len(given), np.nan)
        sizes = {model: per_instance(one, model) or 1 for model in models}
        return Rates(np.array(given), np.array(latency), sizes, unknown, unknown)
    if question.model is None and any(asked.model is None for asked in question.workload.classes):
        message = f"missing; {one.name} needs throughput_requests_per_s, one for each class, or the scenario a model"
        faults.append(source.fault((*at, "throughput_requests_per_s"), message))
        return None
    node = one.node or (None if isinstance(entry, UnknownName) else node_of(entry.name))
    if node is None:
        message = f"missing; {entry}" if isinstance(entry, UnknownName) else f"missing; no node has {entry.name}"
        faults.append(source.fault((*at, "throughput_requests_per_s"), message))
        return None
    engine = engines().get(question.engine)
    precision = one.precision_weights
    if engine is None:
        message = f"unknown engine; {did_you_mean(question.engine, engines())} [got {question.engine!r}]"
        _once(faults, source.fault(("engine",), message))
    if precision not in PRECISIONS:
        message = f"unknown; {did_you_mean(precision, PRECISIONS)} [got {precision!r}]"
        faults.append(source.fault((*at, "precision_weights"), message))
    found = {model: _architecture(question, model, source, base_dir, faults) for model in models}
    try:
        machine = resolve_cluster(node, base_dir, 1, source=source, at=(*at, "node"))
    except InputError as error:
        faults += error.faults
        return None
    if engine is None or precision not in PRECISIONS or None in found.values():
        return None
    rates: dict[str, Rates] = {}
    for model, architecture in found.items():
        assert architecture is not None
        classes = [place for place, name in enumerate(models) if name == model]
        try:
            served = server(architecture, machine, engine, precision_weights=precision)
        except ValueError as error:
            faults.append(source.fault((*at, "precision_weights"), f"{error} [got {precision!r}]"))
            return None
        try:
            rates[model] = _modelled(served, question, classes, model, per_instance(one, model))
        except ValueError as error:
            faults.append(source.fault((*at, "accelerators_per_instance"), str(error)))
            return None
    merged = [np.empty(len(models)) for _ in range(4)]
    for model, part in rates.items():
        chosen = np.array([name == model for name in models])
        for whole, values in zip(merged, (part.throughput, part.latency_s, part.ttft_s, part.tpot_s), strict=True):
            whole[chosen] = values
    throughput, latency_s, ttft_s, tpot_s = merged
    sizes = {model: part.sizes[model] for model, part in rates.items()}
    return Rates(throughput, latency_s, sizes, ttft_s, tpot_s)


def _once(faults: list[Fault], fault: Fault) -> None:
    if fault not in faults:
        faults.append(fault)


def _architecture(
    question: FleetQuestion, model: str, source: Source, base_dir: FilePath, faults: list[Fault]
) -> Architecture | None:
    own = [number for number, one in enumerate(question.workload.classes) if one.model == model]
    at: Path = ("workload", "classes", own[0], "model") if own else ("model",)
    try:
        return load_architecture(model, base_dir, source, at)
    except InputError as error:
        for fault in error.faults:
            _once(faults, fault)
    except ModelNotCovered as error:
        _once(faults, source.fault(at, str(error)))
    return None


def _modelled(served: Server, question: FleetQuestion, classes: list[int], model: str, size: int | None) -> Rates:
    """Return what an instance sustains of the classes of one model, at the size that takes the fewest accelerators.

    Notes
    -----
    A throughput is that of a loop of as many sequences as keep the objectives and fit the cache, in its steady state
    (`perfmodel.serving.regimes.closed_loop`).
    """
    sizes = np.array(_sizes(served, size))
    asked = [question.workload.classes[number] for number in classes]
    prompt, output = (np.array([getattr(one, key) for one in asked], float) for key in ("isl", "osl"))
    deployment = Deployment(tp=sizes[:, None])
    room = capacity(served, Deployment(tp=sizes), _budget(served.engine)).cache_tokens
    slots = np.floor(np.minimum(served.engine.defaults.max_num_seqs, room / (prompt + output)[:, None]))
    running = np.maximum(slots, 1.0)[:, :, None] ** np.linspace(0.0, 1.0, _POINTS)
    running = running.round()
    seen = closed_loop(
        served,
        deployment,
        running,
        prompt[:, None, None],
        output[:, None, None],
        budget=_budget(served.engine),
        slots=np.maximum(slots, 1.0)[:, :, None],
        waves=_LASTING,
        spread=_EVEN,
    )
    within = (running <= slots[:, :, None]) & _kept(question.slo, seen.ttft_s, seen.tpot_s)
    rate = np.where(within, seen.requests_per_s, 0.0)
    best = rate.argmax(axis=2)[:, :, None]
    throughput = np.take_along_axis(rate, best, 2)[:, :, 0]
    total_s = seen.ttft_s + (output - 1)[:, None, None] * seen.tpot_s
    latency_s = np.take_along_axis(np.broadcast_to(total_s, rate.shape), best, 2)[:, :, 0]
    chosen = _fewest(throughput, sizes, np.array([one.rate_rps for one in asked]))
    first_s, token_s = (np.where(slots >= 1, values[:, :, 0], np.inf) for values in (seen.ttft_s, seen.tpot_s))
    quickest = token_s.argmin(axis=1)[:, None]
    alone = [np.take_along_axis(values, quickest, 1)[:, 0] for values in (first_s, token_s)]
    return Rates(throughput[:, chosen], latency_s[:, chosen], {model: int(sizes[chosen])}, alone[0], alone[1])


def _budget(engine: Engine) -> int:
    return engine.defaults.max_num_batched_tokens


def _sizes(served: Server, size: int | None) -> list[int]:
    """Return the tensor-parallel degrees that divide the heads and stay inside a node."""
    heads = min(group.attention.heads for group in served.architecture.layers)
    most = served.machine.node.accelerators.count
    if size is not None:
        if heads % size:
            raise ValueError(f"does not divide the {heads} attention heads of {served.architecture.name} [got {size}]")
        if size > most:
            raise ValueError(f"{served.machine.node.name} has {most} accelerators [got {size}]")
        return [size]
    return [degree for degree in (2**power for power in range(most.bit_length())) if heads % degree == 0]


def _kept(slo: FleetSlo, ttft_s: Array, tpot_s: Array) -> Array:
    kept = np.ones(np.broadcast_shapes(ttft_s.shape, tpot_s.shape), dtype=bool)
    if slo.ttft_mean is not None:
        kept &= ttft_s <= slo.ttft_mean
    if slo.tpot_mean is not None:
        kept &= tpot_s <= slo.tpot_mean
    return kept


def _fewest(throughput: Array, sizes: Array, rate: Array) -> int:
    """Return which size serves the most classes, and of those the one that takes the fewest accelerators."""
    weight = rate if rate.any() else np.ones_like(rate)
    work = np.divide(1.0, throughput, out=np.zeros_like(throughput), where=throughput > 0)
    served = (throughput > 0).sum(axis=0)
    order = np.lexsort((sizes, (weight[:, None] * work).sum(axis=0) * sizes, -served))
    return int(order[0])
