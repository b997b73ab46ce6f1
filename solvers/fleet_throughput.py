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
from perfmodel.batching import Limits
from perfmodel.serving.capacity import capacity
from perfmodel.serving.engine import engines
from perfmodel.serving.latency import Latency, Pool, requests, slots, together
from perfmodel.serving.law import NO_SPECULATION, Demand, decode_load, tabulated
from perfmodel.serving.server import PRECISIONS, Server, server
from perfmodel.serving.spread import step_spread
from perfmodel.serving.step import Deployment, step
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
    reached_s : mapping of str to array
        What requests see of each objective at a twentieth of the capacity; infinite where the model does not fit, not a
        number where the throughput is given [s].
    spread : array
        Standard deviation of the logarithm of the throughput, 0 where it is given [1].
    """

    throughput: Array
    latency_s: Array
    sizes: Mapping[str, int]
    reached_s: Mapping[str, Array]
    spread: Array


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
        return Rates(
            np.array(given), np.array(latency), sizes, dict.fromkeys(question.slo.limits, unknown), np.zeros(len(given))
        )
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
    order = [(model, models[:number].count(model)) for number, model in enumerate(models)]

    def by_class(values: Mapping[str, Array]) -> Array:
        return np.array([values[model][place] for model, place in order])

    return Rates(
        by_class({model: part.throughput for model, part in rates.items()}),
        by_class({model: part.latency_s for model, part in rates.items()}),
        {model: part.sizes[model] for model, part in rates.items()},
        {
            name: by_class({model: part.reached_s[name] for model, part in rates.items()})
            for name in question.slo.limits
        },
        by_class({model: part.spread for model, part in rates.items()}),
    )


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
    """Return what an instance sustains of the classes of one model, at the size that takes the fewest accelerators."""
    asked = [question.workload.classes[number] for number in classes]
    limits = question.slo.limits
    room = capacity(served, Deployment(tp=sizes), served.engine.defaults.max_num_batched_tokens).cache_tokens
    found = [_sustained(served, sizes, room, Demand(one.isl, one.osl), limits) for one in asked]
    throughput = np.array([one[0] for one in found])
    chosen = _fewest(throughput, sizes, np.array([one.rate_rps for one in asked]))
    return Rates(
        throughput[:, chosen],
        np.array([one[1][chosen] for one in found]),
        {model: int(sizes[chosen])},
        {name: np.array([one[2][name] for one in found]) for name in limits},
        np.array([_spread(served, int(sizes[chosen]), Demand(one.isl, one.osl), room[chosen]) for one in asked]),
    )


def _spread(served: Server, size: int, demand: Demand, room: float) -> float:
    """Return how far measured throughputs are from predicted ones, by a step of as many sequences as fit."""
    running = max(float(slots(room, demand, NO_SPECULATION, served.engine.defaults.max_num_seqs)), 1.0)
    term = step(served, Deployment(tp=size), decode_load(demand, NO_SPECULATION, running))
    return step_spread(served, term, "throughput")


def _sustained(
    served: Server, sizes: Array, room: Array, demand: Demand, limits: Mapping[str, float]
) -> tuple[Array, Array, dict[str, float]]:
    """Return throughput and mean latency of one class by size, and what the quickest size reaches of each objective.

    Notes
    -----
    A throughput is the highest rate of Poisson arrivals of the class alone at which one instance keeps the objectives,
    the wait for a place in the batch included (`perfmodel.batching.open_loop`).
    """
    engine = served.engine.defaults
    batch = slots(room, demand, NO_SPECULATION, engine.max_num_seqs)
    fits = batch >= 1
    # tabulated for the engine's own limits, so that a size is answered alike whichever others are asked about
    law = tabulated(
        served,
        Deployment(tp=sizes[:, None]),
        demand,
        sequences=engine.max_num_seqs,
        tokens=engine.max_num_batched_tokens,
        counted_context=requests(demand, NO_SPECULATION).context_tokens,
    )
    limited = Limits(served.engine.batching, np.maximum(batch, 1.0)[:, None], engine.max_num_batched_tokens)
    one = Pool(law, limited)

    def seen(rate: Array) -> Latency:
        return together(served, one, demand, NO_SPECULATION, rate, 1)

    def kept(latency: Latency) -> NDArray[np.bool_]:
        within = [latency.of(name) <= limit for name, limit in limits.items()]
        return np.asarray(np.logical_and.reduce(np.broadcast_arrays(fits[:, None], latency.load < 1, *within)))

    most = seen(np.full((len(sizes), 1), 1e-9)).prompts.capacity_requests_per_s
    low = np.zeros_like(most)
    for part in (1.0 / _POINTS, 1.0 / _POINTS**2):
        rates = np.maximum(low + most * part * np.arange(_POINTS), most * _IDLE)
        # rates above the first that misses an objective miss it too
        last = np.maximum(np.logical_and.accumulate(kept(seen(rates)), axis=1).sum(axis=1, keepdims=True) - 1, 0)
        low = np.take_along_axis(rates, last, 1)
    there, light = seen(low), seen(most * _LIGHT)
    throughput = np.where(kept(there), low, 0.0)[:, 0]
    quickest = int(np.where(fits, light.of("e2e_mean")[:, 0], np.inf).argmin())
    reached = {name: float(light.of(name)[quickest, 0]) if fits.any() else np.inf for name in limits}
    return throughput, np.asarray(there.of("e2e_mean"))[:, 0], reached


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
