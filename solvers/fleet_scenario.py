"""The question which accelerators to rent for which requests: prices, limits and demand, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.fleet.plan(solvers.fleet_scenario.load_fleet(source, Path(".")))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from hardware.catalogue import UnknownName, find
from hardware.faults import Fault, InputError
from hardware.schema import Accelerator
from hardware.yaml_source import Source, validated
from perfmodel.terms import Array
from solvers.fleet_case import Case, Graph, Objective
from solvers.fleet_faults import pool_faults, power_of, prices_of, question_faults, too_small
from solvers.fleet_question import (
    FleetAccelerator,
    FleetQuestion,
    FleetWorkload,
    class_names,
    ordered,
    period_count,
    stream_names,
)
from solvers.fleet_tails import LEVELS
from solvers.fleet_throughput import Offer, models_of, node_of, offers_of
from solvers.fleet_trace import with_classes
from solvers.serve_faults import slow_objectives

_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class FleetScenario:
    """A checked question about a fleet.

    Parameters
    ----------
    question : FleetQuestion
        As asked.
    case : Case
        The same as numbers.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with defaults written out; reading it again asks the same.
    warnings : tuple of Fault
        What may be meant otherwise.
    """

    question: FleetQuestion
    case: Case
    source: Source
    resolved: dict[str, Any]
    warnings: tuple[Fault, ...]


def load_fleet(source: Source, base_dir: FilePath) -> FleetScenario:
    """Check a fleet scenario.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    FleetScenario
        The question with every file it names read.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    question = with_classes(validated(FleetQuestion, source), source, base_dir)
    workload = question.workload
    faults: list[Fault] = []
    entries = [_catalogued(one) for one in question.accelerators]
    for path, message in question_faults(question, entries):
        faults.append(source.fault(path, message))
    offers = [offers_of(question, number, one, source, base_dir, faults) for number, one in enumerate(entries)]
    small = too_small(question, offers)
    nowhere = [model for model in dict.fromkeys(models_of(question)) if len(small.get(model, ())) == len(entries)]
    for model in () if faults else nowhere:
        faults += [source.fault(path, message) for path, message in small[model]]
    if faults:
        raise InputError(sorted(faults, key=lambda fault: (fault.line, fault.column)))
    case = _case(question, entries, offers)
    faults = [source.fault(path, message) for path, message in pool_faults(question, case)]
    if faults:
        raise InputError(faults)
    resolved = _resolved(question, entries, class_names(workload), case, base_dir)
    doubts = [*slow_objectives(question.slo), *(entry for some in small.values() for entry in some)]
    return FleetScenario(question, case, source, resolved, tuple(source.fault(*entry) for entry in doubts))


def _catalogued(one: FleetAccelerator) -> Accelerator | UnknownName:
    try:
        found = find("accelerator", one.type or one.name)
    except UnknownName as error:
        return error
    assert isinstance(found, Accelerator)
    return found


def _case(question: FleetQuestion, entries: list[Accelerator | UnknownName], offers: list[list[Offer]]) -> Case:
    workload, kinds = question.workload, question.accelerators
    models = list(dict.fromkeys(models_of(question)))
    of_class = np.array([models.index(name) for name in models_of(question)])
    pools = [
        (one, offer)
        for model in models
        for one, offered in enumerate(offers)
        for offer in offered
        if offer.model == model
    ]
    kind = np.array([one for one, _ in pools])
    held = np.array([models.index(offer.model) for _, offer in pools])
    throughput, latency, deviation, spread = (
        np.array([getattr(offer, name) for _, offer in pools]).T
        for name in ("throughput", "latency_s", "latency_std_s", "spread")
    )
    streams = list(range(len(workload.classes)))
    asked_rates = [one.rate_rps * _profile(one.profile, workload) for one in workload.classes]
    counts, graphs = [1.0] * len(streams), []
    for graph in workload.graphs:
        order = ordered(graph)
        assert order is not None
        first, names = len(streams), [call.name for call in graph.calls]
        for call in graph.calls:
            streams.append(class_names(workload).index(call.class_))
            counts.append(call.count)
            asked_rates.append(graph.rate_rps * call.count * _profile(graph.profile, workload))
        graphs.append(
            Graph(
                graph.name,
                tuple(first + number for number in order),
                tuple(tuple(first + names.index(name) for name in graph.calls[number].after) for number in order),
                graph.latency,
                tuple((tuple(first + names.index(name) for name in path.calls), path.latency) for path in graph.paths),
                LEVELS[graph.statistic],
            )
        )
    of_stream = np.array(streams)
    calls = np.zeros((len(workload.classes) + len(graphs), len(streams)))
    calls[np.arange(len(workload.classes)), np.arange(len(workload.classes))] = 1.0
    for number, asked in enumerate(graphs, start=len(workload.classes)):
        calls[number, list(asked.calls)] = np.array(counts)[list(asked.calls)]
    matches = of_class[of_stream][:, None] == held
    rate, alike = np.unique(np.array(asked_rates), axis=1, return_inverse=True)
    alike = alike.reshape(-1)
    sites = [site.name for site in question.sites]
    shared = question.headroom.utilisation_max
    return Case(
        accelerators=tuple(one.name for one in kinds),
        price=np.array(
            [
                [np.inf if price is None else price for price in prices_of(*one)]
                for one in zip(kinds, entries, strict=True)
            ]
        ),
        availability=np.array([one.spot_availability or 1.0 for one in kinds]),
        most=np.array([np.inf if one.max is None else float(one.max) for one in kinds]),
        power_w=np.array([np.nan if (p := power_of(*one)) is None else p for one in zip(kinds, entries, strict=True)]),
        utilisation_max=np.array([one.utilisation_max or shared for one in kinds]),
        site=np.array([0 if one.site is None else sites.index(one.site) for one in kinds]),
        sites=tuple(sites),
        site_power_w=np.array([np.inf if site.power is None else site.power for site in question.sites]),
        models=tuple(models),
        pool_accelerator=kind,
        pool_model=held,
        pool_size=np.array([offer.accelerators for _, offer in pools]),
        pool_precision=tuple(offer.precision_weights for _, offer in pools),
        streams=tuple(stream_names(workload)),
        stream_class=of_stream,
        classes=tuple(class_names(workload)),
        class_model=of_class,
        rate=rate,
        weight=np.bincount(alike) / len(alike),
        hours=tuple(tuple(np.flatnonzero(alike == one).tolist()) for one in range(rate.shape[1])),
        throughput=np.where(matches, throughput[of_stream], 0.0),
        spread=np.where(matches, spread[of_stream], 0.0),
        latency_s=latency[of_stream] * np.array(counts)[:, None],
        latency_std_s=deviation[of_stream] * np.sqrt(counts)[:, None],
        graphs=tuple(graphs),
        slices=workload.slice_factor,
        lost=question.headroom.lost_instances,
        requests=tuple(class_names(workload) + [graph.name for graph in workload.graphs]),
        calls=calls,
        objectives=tuple(
            Objective(f"slo.{name}", limit, np.array([offer.reached_s[name] for _, offer in pools]).T)
            for name, limit in question.slo.limits.items()
        ),
    )


def _profile(own: tuple[float, ...] | None, workload: FleetWorkload) -> Array:
    return np.resize(np.array(own or workload.profile), period_count(workload))


def _resolved(
    question: FleetQuestion, entries: list[Accelerator | UnknownName], names: list[str], case: Case, base_dir: FilePath
) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"plan"})
    for number, (one, entry) in enumerate(zip(question.accelerators, entries, strict=True)):
        offer = written["accelerators"][number]
        _, on_demand, _ = prices_of(one, entry)
        if on_demand is not None:
            offer["price_usd_per_hour"] = on_demand
        power = power_of(one, entry)
        if power is not None:
            offer["power"] = power
        offer["utilisation_max"] = float(case.utilisation_max[number])
        if not isinstance(one.throughput_requests_per_s, Mapping):
            offer["accelerators_per_instance"] = _written_sizes(case, number)
        if one.throughput_requests_per_s is None and one.node is None and not isinstance(entry, UnknownName):
            offer["node"] = node_of(entry.name)
    for name, asked in zip(names, written["workload"]["classes"], strict=True):
        asked["name"] = name
    for part, key in [
        (written, "model"),
        *((asked, "model") for asked in written["workload"]["classes"]),
        *((offer, "node") for offer in written["accelerators"]),
    ]:
        # a plan may be saved elsewhere
        if key in part and (base_dir / part[key]).exists():
            part[key] = str((base_dir / part[key]).resolve())
    return written


def _written_sizes(case: Case, kind: int) -> Any:
    """Return the accelerators of an instance: one number where there is one, by model where there are several."""
    sizes: dict[str, list[int]] = {}
    for pool in np.flatnonzero(case.pool_accelerator == kind):
        several = sizes.setdefault(case.models[case.pool_model[pool]], [])
        if case.pool_size[pool] not in several:
            several.append(int(case.pool_size[pool]))
    written = {model: several if len(several) > 1 else several[0] for model, several in sizes.items()}
    return written if len(written) > 1 else next(iter(written.values()))


def fleet_schema() -> dict[str, Any]:
    """Return the JSON Schema of a fleet scenario."""
    return FleetQuestion.model_json_schema()
