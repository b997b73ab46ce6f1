"""What one instance sustains of each class of requests within the objectives: as given, or by the model of serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray

from hardware.catalogue import UnknownName, find, names, resolve_cluster
from hardware.faults import Fault, InputError, Path
from hardware.schema import Accelerator
from hardware.yaml_source import Source, did_you_mean
from perfmodel.architecture import Architecture, ModelNotCovered, load_architecture
from perfmodel.batching import Limits, Requests, open_loop
from perfmodel.serving.capacity import capacity
from perfmodel.serving.engine import engines
from perfmodel.serving.server import PRECISIONS, Server, server
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.step_law import StepTable
from perfmodel.terms import Array
from solvers.fleet_question import FleetAccelerator, FleetQuestion

_POINTS = 32
"""Rates that are tried between none and the capacity, and again between the best of these and the next."""
_IDLE = 1e-6
"""Share of the capacity at which a request is alone."""
_LIGHT = 0.05
"""Share of the capacity that an objective should leave to be worth renting for."""


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
        What requests see at a twentieth of the capacity; infinite where the model does not fit, not a number where the
        throughput is given [s].
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
        allowed = _sizes(served, per_instance(one, model))
        if isinstance(allowed, str):
            faults.append(source.fault((*at, "accelerators_per_instance"), allowed))
            return None
        rates[model] = _modelled(served, question, classes, model, np.array(allowed))
    merged = [np.empty(len(models)) for _ in range(4)]
    for model, part in rates.items():
        chosen = np.array([name == model for name in models])
        for whole, values in zip(merged, (part.throughput, part.latency_s, part.ttft_s, part.tpot_s), strict=True):
            whole[chosen] = values
    throughput, latency_s, ttft_s, tpot_s = merged
    chosen_sizes = {model: part.sizes[model] for model, part in rates.items()}
    return Rates(throughput, latency_s, chosen_sizes, ttft_s, tpot_s)


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


def _modelled(served: Server, question: FleetQuestion, classes: list[int], model: str, sizes: Array) -> Rates:
    """Return what an instance sustains of the classes of one model, at the size that takes the fewest accelerators.

    Notes
    -----
    A throughput is the highest rate of Poisson arrivals of one class alone at which one instance keeps the objectives,
    the wait for a place in the batch included (`perfmodel.batching.open_loop`).
    """
    asked = [question.workload.classes[number] for number in classes]
    prompt, output = (np.array([getattr(one, key) for one in asked], float)[:, None, None] for key in ("isl", "osl"))
    engine, requests = served.engine, Requests(prompt, output)
    room = capacity(served, Deployment(tp=sizes), engine.defaults.max_num_batched_tokens).cache_tokens
    slots = np.floor(np.minimum(engine.defaults.max_num_seqs, room[:, None] / (prompt + output)))
    limits = Limits(engine.batching, np.maximum(slots, 1.0), np.maximum(engine.defaults.max_num_batched_tokens, prompt))
    law = step_table(served, sizes, prompt, output)
    received_s = served.overhead_factor * engine.prompt_overhead

    def seen(rate: Array) -> tuple[NDArray[np.bool_], Array, Array]:
        state = open_loop(law, requests, limits, rate)
        first_s = received_s + state.ttft_s
        values = {"ttft_mean": first_s, "tpot_mean": state.tpot_s}
        if question.slo.ttft_p99 is not None:
            values["ttft_p99"] = received_s + state.ttft_quantile_s(0.99)
        if question.slo.tpot_p99 is not None:
            values["tpot_p99"] = state.tpot_quantile_s(0.99)
        limits_s = {name: getattr(question.slo, name) for name in values}
        kept = [values[name] <= limit for name, limit in limits_s.items() if limit is not None]
        good = np.logical_and.reduce(np.broadcast_arrays(slots >= 1, state.load < 1, *kept))
        return good, first_s, state.tpot_s

    most = open_loop(law, requests, limits, np.array(1e-9)).capacity_requests_per_s
    step, low = 1.0 / _POINTS, np.zeros_like(most)
    for _ in range(2):
        rates = low + most * step * np.arange(_POINTS)
        good, _, _ = seen(np.maximum(rates, most * _IDLE))
        # rates above the first that misses an objective miss it too
        last = np.maximum(np.logical_and.accumulate(good, axis=2).sum(axis=2, keepdims=True) - 1, 0)
        low, step = np.take_along_axis(rates, last, 2), step / _POINTS
    low = np.maximum(low, most * _IDLE)
    good, first_s, token_s = (values[:, :, 0] for values in seen(low))
    _, alone_first_s, alone_token_s = (values[:, :, 0] for values in seen(most * _LIGHT))
    throughput = np.where(good, low[:, :, 0], 0.0)
    chosen = _fewest(throughput, sizes, np.array([one.rate_rps for one in asked]))
    fits = slots[:, :, 0] >= 1
    quickest = np.where(fits, alone_token_s, np.inf).argmin(axis=1)[:, None]
    alone = [
        np.take_along_axis(np.where(fits, values, np.inf), quickest, 1)[:, 0]
        for values in (alone_first_s, alone_token_s)
    ]
    latency_s = first_s + (output[:, :, 0] - 1) * token_s
    return Rates(throughput[:, chosen], latency_s[:, chosen], {model: int(sizes[chosen])}, alone[0], alone[1])


def step_table(served: Server, sizes: Array, prompt: Array, output: Array) -> StepTable:
    """Return the steps of each class on each size, at the context that its sequences have on average."""
    engine = served.engine
    running = np.unique(np.append(0.0, np.geomspace(1, max(engine.defaults.max_num_seqs, 2), 12).round()))
    budget = max(engine.defaults.max_num_batched_tokens, float(prompt.max()))
    tokens = np.append(0.0, np.geomspace(16, budget, 12))
    whole = prompt[..., None]
    piece = np.clip(tokens, 1.0, whole)
    load = Load(
        running[:, None], whole + output[..., None] / 2, tokens / piece, piece, (whole - piece) / 2, piece / whole
    )
    found = step(served, Deployment(tp=sizes[:, None, None]), load).seconds
    shape = (len(prompt), len(sizes), 1, len(running), len(tokens))
    return StepTable(running, tokens, np.broadcast_to(found, shape[:2] + shape[3:]).reshape(shape))


def _sizes(served: Server, size: int | None) -> list[int] | str:
    """Return the tensor-parallel degrees that divide the heads and stay inside a node, or what is wrong with one."""
    heads = min(group.attention.heads for group in served.architecture.layers)
    most = served.machine.node.accelerators.count
    if size is not None:
        if heads % size:
            return f"does not divide the {heads} attention heads of {served.architecture.name} [got {size}]"
        if size > most:
            return f"{served.machine.node.name} has {most} accelerators [got {size}]"
        return [size]
    return [degree for degree in (2**power for power in range(most.bit_length())) if heads % degree == 0]


def _fewest(throughput: Array, sizes: Array, rate: Array) -> int:
    """Return which size serves the most classes, and of those the one that takes the fewest accelerators."""
    weight = rate if rate.any() else np.ones_like(rate)
    work = np.divide(1.0, throughput, out=np.zeros_like(throughput), where=throughput > 0)
    served = (throughput > 0).sum(axis=0)
    order = np.lexsort((sizes, (weight[:, None] * work).sum(axis=0) * sizes, -served))
    return int(order[0])
