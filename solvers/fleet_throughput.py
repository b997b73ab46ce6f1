"""What one instance sustains of each class of requests within the objectives: as given, or by the model of serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray

from hardware.catalogue import Machine, UnknownName, find, names, resolve_cluster
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
from solvers.fleet_question import ByClass, FleetAccelerator, FleetQuestion
from solvers.serve_faults import not_served

_POINTS = 32
"""Rates that are tried between none and the capacity, and again between the best of these and the next."""
_IDLE = 1e-6
"""Share of the capacity at which a request is alone."""
_MOST = 1024
"""Accelerators up to which an instance is looked for that would hold a model."""
_LEVELS = 64
"""Requests, at equal steps of probability, by which the spread of their times is found."""
_LIGHT = 0.05
"""Share of the capacity that an objective should leave to be worth renting for."""


@dataclass(frozen=True)
class Offer:
    """What one instance of a model, of one size and type of weights, sustains of each class; zero of other models'.

    Parameters
    ----------
    model : str
        The model.
    accelerators : int
        Of an instance.
    precision_weights : str or None
        Type of the weights; None where the throughput is given.
    throughput : array
        Requests within the objectives; 0 where there are none [requests/s].
    latency_s, latency_std_s : array
        From the arrival of a request to its last token, at that throughput: mean and standard deviation [s].
    reached_s : mapping of str to array
        What requests see of each objective at a twentieth of the capacity; infinite where the model does not fit, not a
        number where the throughput is given [s].
    spread : array
        Standard deviation of the logarithm of the throughput, 0 where it is given [1].
    holds : array of bool
        Whether the weights and a request fit.
    needed : int or None
        Accelerators of an instance that would hold weights and a request of all classes of the model; None where not
        known.
    """

    model: str
    accelerators: int
    precision_weights: str | None
    throughput: Array
    latency_s: Array
    latency_std_s: Array
    reached_s: Mapping[str, Array]
    spread: Array
    holds: NDArray[np.bool_]
    needed: int | None = None


def models_of(question: FleetQuestion) -> list[str]:
    """Return the model of each class."""
    return [one.model or question.model or "model" for one in question.workload.classes]


def sizes_of(one: FleetAccelerator, model: str) -> tuple[int, ...] | None:
    """Return the accelerators that an instance may have as they are given, or None."""
    size = one.accelerators_per_instance
    if isinstance(size, Mapping):
        size = size.get(model)
    return (size,) if isinstance(size, int) else size


def precisions_of(one: FleetAccelerator) -> tuple[str, ...]:
    """Return the types of weights to choose from."""
    return (one.precision_weights,) if isinstance(one.precision_weights, str) else one.precision_weights


@cache
def node_of(accelerator: str) -> str | None:
    """Return the first node of the catalogue with a kind of accelerator, which joins those of an instance."""
    for name in names("node"):
        kind = find("node", name).accelerators.type
        if (kind if isinstance(kind, str) else kind.name) == accelerator:
            return name
    return None


def offers_of(
    question: FleetQuestion,
    number: int,
    entry: Accelerator | UnknownName,
    source: Source,
    base_dir: FilePath,
    faults: list[Fault],
) -> list[Offer]:
    """Return the instances that one kind of accelerator offers of each model.

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
    """
    one, at = question.accelerators[number], ("accelerators", number)
    models = models_of(question)
    if one.throughput_requests_per_s is not None:
        return _given(question, one, models)
    if question.model is None and any(asked.model is None for asked in question.workload.classes):
        message = f"missing; {one.name} needs throughput_requests_per_s, one for each class, or the scenario a model"
        faults.append(source.fault((*at, "throughput_requests_per_s"), message))
        return []
    node = one.node or (None if isinstance(entry, UnknownName) else node_of(entry.name))
    if node is None:
        message = f"missing; {entry}" if isinstance(entry, UnknownName) else f"missing; no node has {entry.name}"
        faults.append(source.fault((*at, "throughput_requests_per_s"), message))
        return []
    engine = engines().get(question.engine)
    if engine is None:
        message = f"unknown engine; {did_you_mean(question.engine, engines())} [got {question.engine!r}]"
        _once(faults, source.fault(("engine",), message))
    known = [precision for precision in precisions_of(one) if precision in PRECISIONS]
    for precision in precisions_of(one):
        if precision not in known:
            message = f"unknown; {did_you_mean(precision, PRECISIONS)} [got {precision!r}]"
            faults.append(source.fault((*at, "precision_weights"), message))
    found = {model: _architecture(question, model, source, base_dir, faults) for model in models}
    try:
        machine = resolve_cluster(node, base_dir, 1, source=source, at=(*at, "node"))
    except InputError as error:
        faults += error.faults
        return []
    if engine is None or None in found.values():
        return []
    offers: list[Offer] = []
    for model, architecture in found.items():
        assert architecture is not None
        allowed = _sizes(architecture, machine, sizes_of(one, model))
        if isinstance(allowed, str):
            faults.append(source.fault((*at, "accelerators_per_instance"), allowed))
            allowed = []
        for precision in known:
            wrong = not_served(architecture, machine.accelerator, precision)
            if wrong is not None:
                _once(faults, source.fault((*at, "precision_weights"), wrong))
            elif allowed:
                served = server(architecture, machine, engine, precision_weights=precision)
                offers += _modelled(served, question, model, np.array(allowed))
    return offers


def _given(question: FleetQuestion, one: FleetAccelerator, models: list[str]) -> list[Offer]:
    """Return instances of given throughputs: of the sizes by which they are given, or of the only one."""
    given = one.throughput_requests_per_s
    assert given is not None
    offers = []
    for model in dict.fromkeys(models):
        own = np.array([name == model for name in models])
        sizes = tuple(given) if isinstance(given, Mapping) else sizes_of(one, model) or (1,)
        for size in sizes:

            def of_size(values: ByClass | None, size: int = size, own: NDArray[np.bool_] = own) -> Array:
                numbers = values.get(size) if isinstance(values, Mapping) else values
                return np.where(own, numbers or np.zeros(len(own)), 0.0)

            rate, mean, spread = map(of_size, (given, one.latency_s, one.latency_std_s))
            unknown = np.full(len(own), np.nan)
            reached = dict.fromkeys(question.slo.limits, unknown)
            offers.append(Offer(model, size, None, rate, mean, spread, reached, np.zeros(len(own)), own))
    return offers


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


def _modelled(served: Server, question: FleetQuestion, model: str, sizes: Array) -> list[Offer]:
    """Return what instances of every size sustain of the classes of one model; those that hold none of it left out."""
    names, limits = models_of(question), question.slo.limits
    shape = (len(sizes), len(names))
    throughput, mean, std, spread = (np.zeros(shape) for _ in range(4))
    reached = {name: np.full(shape, np.nan) for name in limits}
    holds = np.zeros(shape, bool)
    tokens = served.engine.defaults.max_num_batched_tokens
    room = capacity(served, Deployment(tp=sizes), tokens).cache_tokens
    for place, (asked, own) in enumerate(zip(question.workload.classes, names, strict=True)):
        if own != model:
            continue
        demand = Demand(asked.isl, asked.osl)
        rate, there, light = _sustained(served, sizes, room, demand, limits)
        throughput[:, place], spread[:, place] = rate, _spread(served, sizes, demand, room)
        mean[:, place], std[:, place] = there.of("e2e_mean")[:, 0], deviation_s(there)[:, 0]
        holds[:, place] = room >= asked.isl + asked.osl
        for name in limits:
            reached[name][:, place] = np.where(holds[:, place], light.of(name)[:, 0], np.inf)
    longest = max(one.isl + one.osl for one, own in zip(question.workload.classes, names, strict=True) if own == model)
    more = np.array(_degrees(served.architecture, _MOST))
    enough = more[capacity(served, Deployment(tp=more), tokens).cache_tokens >= longest]
    return [
        Offer(
            model,
            int(size),
            served.precision_weights,
            throughput[row],
            mean[row],
            std[row],
            {name: values[row] for name, values in reached.items()},
            spread[row],
            holds[row],
            int(enough[0]) if len(enough) else None,
        )
        for row, size in enumerate(sizes)
    ]


def deviation_s(seen: Latency) -> Array:
    """Return the standard deviation of the time of a whole request [s].

    Answers of a class are equally long; of a request that waits long for its first token the others are slow too.
    """
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    at = levels.reshape(-1, *(1,) * np.ndim(seen.load))
    whole = seen.quantile_s("ttft", at) + seen.gaps * seen.quantile_s("tpot", at)
    every = np.broadcast_to(whole, (_LEVELS, *np.shape(seen.load)))
    # beyond the capacity times are infinite, and have no spread
    return np.asarray(np.where(np.isfinite(every), every, 0.0).std(axis=0))


def _spread(served: Server, sizes: Array, demand: Demand, room: Array) -> list[float]:
    """Return how far measured throughputs are from predicted ones, by a step of as many sequences as fit."""
    running = np.maximum(slots(room, demand, NO_SPECULATION, served.engine.defaults.max_num_seqs), 1.0)
    return [
        step_spread(
            served, step(served, Deployment(tp=int(size)), decode_load(demand, NO_SPECULATION, many)), "throughput"
        )
        for size, many in zip(sizes, running.tolist(), strict=True)
    ]


def _sustained(
    served: Server, sizes: Array, room: Array, demand: Demand, limits: Mapping[str, float]
) -> tuple[Array, Latency, Latency]:
    """Return the throughput of one class by size, what requests see there, and what they see at a light load.

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
    return np.where(kept(there), low, 0.0)[:, 0], there, light


def _sizes(architecture: Architecture, machine: Machine, given: tuple[int, ...] | None) -> list[int] | str:
    """Return the tensor-parallel degrees that divide the heads and stay inside a node, or what is wrong with one."""
    heads = min(group.attention.heads for group in architecture.layers)
    most = machine.node.accelerators.count
    for size in given or ():
        if heads % size:
            return f"does not divide the {heads} attention heads of {architecture.name} [got {size}]"
        if size > most:
            return f"{machine.node.name} has {most} accelerators [got {size}]"
    return list(given or _degrees(architecture, most))


def _degrees(architecture: Architecture, most: int) -> list[int]:
    heads = min(group.attention.heads for group in architecture.layers)
    return [2**power for power in range(most.bit_length()) if heads % 2**power == 0]
