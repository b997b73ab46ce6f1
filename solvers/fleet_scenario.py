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
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.terms import Array
from solvers.fleet_case import Case, Graph, Objective
from solvers.fleet_question import (
    FleetAccelerator,
    FleetClass,
    FleetGraph,
    FleetPeriod,
    FleetPlan,
    FleetQuestion,
    FleetWorkload,
)
from solvers.fleet_tails import LEVELS
from solvers.fleet_throughput import Offer, models_of, node_of, offers_of, precisions_of
from solvers.fleet_trace import with_classes
from solvers.serve_faults import slow_objectives

_Path = tuple[str | int, ...]

MOST_PATHS = 1000
"""Paths of a graph up to which percentiles are held on each."""


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
    for path, message in _faults(question, entries):
        faults.append(source.fault(path, message))
    offers = [offers_of(question, number, one, source, base_dir, faults) for number, one in enumerate(entries)]
    if faults:
        raise InputError(sorted(faults, key=lambda fault: (fault.line, fault.column)))
    case = _case(question, entries, offers)
    faults = [source.fault(path, message) for path, message in _pool_faults(question, case)]
    if faults:
        raise InputError(faults)
    resolved = _resolved(question, entries, class_names(workload), case, base_dir)
    warnings = tuple(source.fault(path, message) for path, message in slow_objectives(question.slo))
    return FleetScenario(question, case, source, resolved, warnings)


def class_names(workload: FleetWorkload) -> list[str]:
    """Return what each class is called: its own name, else its lengths."""
    return [one.name or f"{one.isl}-{one.osl}" for one in workload.classes]


def _catalogued(one: FleetAccelerator) -> Accelerator | UnknownName:
    try:
        found = find("accelerator", one.type or one.name)
    except UnknownName as error:
        return error
    assert isinstance(found, Accelerator)
    return found


def _prices(one: FleetAccelerator, entry: Accelerator | UnknownName) -> tuple[float | None, ...]:
    """Return the price of one accelerator by way to rent [USD/h]."""
    given = (one.reserved_price_usd_per_hour, one.price_usd_per_hour, one.spot_price_usd_per_hour)
    if any(price is not None for price in given) or isinstance(entry, UnknownName) or entry.price is None:
        return given
    return (None, entry.price.on_demand, None)


def _power(one: FleetAccelerator, entry: Accelerator | UnknownName) -> float | None:
    return one.power if one.power is not None else None if isinstance(entry, UnknownName) else entry.power.limit


def _faults(question: FleetQuestion, entries: list[Accelerator | UnknownName]) -> list[tuple[_Path, str]]:
    """Return what is wrong, as (path, message)."""
    found: list[tuple[_Path, str]] = []
    names = [one.name for one in question.accelerators]
    sites = [site.name for site in question.sites]
    classes = class_names(question.workload)
    models = dict.fromkeys(models_of(question))
    found += _twice(names, ("accelerators",), "name")
    found += _twice(sites, ("sites",), "name")
    found += _twice(classes, ("workload", "classes"), "name")
    for number, (one, entry) in enumerate(zip(question.accelerators, entries, strict=True)):
        at: _Path = ("accelerators", number)
        if one.type is not None and isinstance(entry, UnknownName):
            found.append(((*at, "type"), str(entry)))
        if not any(price is not None for price in _prices(one, entry)):
            known = "" if isinstance(entry, UnknownName) else "; the catalogue has none"
            found.append(((*at, "price_usd_per_hour"), f"missing{known}"))
        if one.spot_price_usd_per_hour is not None and one.spot_availability is None:
            found.append(((*at, "spot_availability"), "missing; the share of them that is counted on"))
        if one.site is not None and one.site not in sites:
            found.append(((*at, "site"), f"no such site; {did_you_mean(one.site, sites)} [got {one.site!r}]"))
        place = question.sites[sites.index(one.site) if one.site in sites else 0]
        if place.power is not None and _power(one, entry) is None:
            found.append(((*at, "power"), f"missing; site {place.name!r} has a limit of power"))
        if isinstance(one.accelerators_per_instance, Mapping):
            for model in one.accelerators_per_instance:
                if model not in models:
                    message = f"no class is of this model; {did_you_mean(model, models)}"
                    found.append(((*at, "accelerators_per_instance", model), message))
        found += _given_faults(one, at, len(classes), question.workload.graphs)
    return found + _workload_faults(question.workload, classes) + _plan_faults(question, classes)


def _given_faults(
    one: FleetAccelerator, at: _Path, classes: int, graphs: tuple[FleetGraph, ...]
) -> list[tuple[_Path, str]]:
    """Return what is wrong with numbers that are given in the place of predicted ones."""
    found: list[tuple[_Path, str]] = []
    given = one.throughput_requests_per_s
    for key in ("throughput_requests_per_s", "latency_s", "latency_std_s"):
        values = getattr(one, key)
        by_size = isinstance(values, Mapping)
        for size, numbers in values.items() if by_size else ((None, values),):
            if numbers is not None and len(numbers) != classes:
                where: _Path = (*at, key) if size is None else (*at, key, size)
                found.append((where, f"should hold a number for each of the {classes} classes [got {len(numbers)}]"))
        if values is not None and given is not None and by_size is not isinstance(given, Mapping):
            found.append(((*at, key), "should be in the form of throughput_requests_per_s, by accelerators or not"))
        elif by_size and isinstance(given, Mapping) and set(values) != set(given):
            found.append(((*at, key), f"should be of the same numbers of accelerators, {sorted(given)}"))
    if given is None:
        return found
    if graphs and one.latency_s is None:
        found.append(((*at, "latency_s"), "missing; the request graphs have limits of latency"))
    if one.latency_std_s is None and any(graph.statistic != "mean" for graph in graphs):
        found.append(((*at, "latency_std_s"), "missing; the request graphs have limits of percentiles"))
    if len(precisions_of(one)) > 1:
        message = "several to choose from, but throughputs are given; write an accelerator for each"
        found.append(((*at, "precision_weights"), message))
    size = one.accelerators_per_instance
    if isinstance(given, Mapping) and size is not None:
        found.append(((*at, "accelerators_per_instance"), "stands beside throughputs that are given by it"))
    if not isinstance(given, Mapping):
        for model, several in size.items() if isinstance(size, Mapping) else ((None, size),):
            if isinstance(several, tuple):
                within: _Path = () if model is None else (model,)
                where = (*at, "accelerators_per_instance", *within)
                found.append((where, "several to choose from; throughput_requests_per_s should be given by them"))
    return found


def _pool_faults(question: FleetQuestion, case: Case) -> list[tuple[_Path, str]]:
    """Return the pools of a plan that nobody offers."""
    if question.plan is None:
        return []
    found: list[tuple[_Path, str]] = []
    parts: list[tuple[_Path, FleetPlan | FleetPeriod]] = [(("plan",), question.plan)]
    parts += [(("plan", "periods", number), part) for number, part in enumerate(question.plan.periods or ())]
    for at, part in parts:
        for number, pool in enumerate(part.pools or ()):
            kind = pool.accelerator, pool.model, pool.accelerators_per_instance, pool.precision_weights
            if case.pool(*kind) is None:
                said = " of ".join(map(str, kind[1::-1])) + f", {kind[2]} accelerators"
                said += f", {kind[3]}" if kind[3] else ""
                found.append(((*at, "pools", number), f"no such instance is offered [got {said}]"))
            for name in pool.share:
                if name not in case.streams:
                    at_name = (*at, "pools", number, "share", name)
                    found.append((at_name, f"no such class; {did_you_mean(name, case.streams)}"))
    return found


def _twice(names: list[str], at: _Path, key: str, first: int = 0) -> list[tuple[_Path, str]]:
    return [
        ((*at, number - first, key), f"stands twice; each should be called otherwise [got {name!r}]")
        for number, name in enumerate(names)
        if number >= first and name in names[:number]
    ]


def _workload_faults(workload: FleetWorkload, classes: list[str]) -> list[tuple[_Path, str]]:
    found: list[tuple[_Path, str]] = []
    length = len(workload.profile)
    rated: list[FleetClass | FleetGraph] = [*workload.classes, *workload.graphs]
    own: list[tuple[_Path, tuple[float, ...] | None]] = []
    own += [(("workload", "classes", number, "profile"), one.profile) for number, one in enumerate(workload.classes)]
    own += [(("workload", "graphs", number, "profile"), one.profile) for number, one in enumerate(workload.graphs)]
    for path, profile in own:
        if profile is not None and length > 1 and len(profile) != length:
            found.append((path, f"should hold as many periods as workload.profile, {length} [got {len(profile)}]"))
    lengths = {len(profile) for _, profile in own if profile is not None}
    if length == 1 and len(lengths) > 1:
        found.append((("workload", "classes"), f"profiles should be equally long [got {sorted(lengths)}]"))
    for path, profile in [(("workload", "profile"), workload.profile), *own]:
        if profile is not None and not any(profile):
            found.append((path, "should not be zero throughout"))
    found += _twice(
        [*classes, *(graph.name for graph in workload.graphs)], ("workload", "graphs"), "name", len(classes)
    )
    for number, graph in enumerate(workload.graphs):
        found += _graph_faults(graph, ("workload", "graphs", number), classes)
    if not found and not any(one.rate_rps for one in rated):
        found.append((("workload", "classes", 0, "rate_rps"), "there are no requests; some rate should be above zero"))
    return found


def _graph_faults(graph: FleetGraph, at: _Path, classes: list[str]) -> list[tuple[_Path, str]]:
    calls = [call.name for call in graph.calls]
    found = _twice(calls, (*at, "calls"), "name")
    for number, call in enumerate(graph.calls):
        here = (*at, "calls", number)
        if call.class_ not in classes:
            message = f"no such class; {did_you_mean(call.class_, classes)} [got {call.class_!r}]"
            found.append(((*here, "class"), message))
        for place, name in enumerate(call.after):
            if name not in calls:
                found.append(((*here, "after", place), f"no such call; {did_you_mean(name, calls)} [got {name!r}]"))
    order = None if found else ordered(graph)
    if not found and order is None:
        found.append(((*at, "calls"), "some calls wait for one another in a circle"))
    if order is not None and graph.statistic != "mean" and _path_count(graph, order) > MOST_PATHS:
        message = f"percentiles are held on each path, of at most {MOST_PATHS} [got {_path_count(graph, order)}]"
        found.append(((*at, "statistic"), message))
    for number, path in enumerate(graph.paths):
        found += [
            ((*at, "paths", number, "calls", place), f"stands twice [got {name!r}]")
            for place, name in enumerate(path.calls)
            if name in path.calls[:place]
        ]
        for place, name in enumerate(path.calls):
            if name not in calls:
                where = (*at, "paths", number, "calls", place)
                found.append((where, f"no such call; {did_you_mean(name, calls)} [got {name!r}]"))
    return found


def _path_count(graph: FleetGraph, order: list[int]) -> int:
    ways: dict[str, int] = {}
    for number in order:
        call = graph.calls[number]
        ways[call.name] = sum(ways[one] for one in call.after) or 1
    waited_for = {one for call in graph.calls for one in call.after}
    return sum(count for name, count in ways.items() if name not in waited_for)


def ordered(graph: FleetGraph) -> list[int] | None:
    """Return the calls so that each stands after those it waits for; None if they wait in a circle."""
    numbers = {call.name: number for number, call in enumerate(graph.calls)}
    order: list[int] = []
    while len(order) < len(graph.calls):
        ready = [
            number
            for number, call in enumerate(graph.calls)
            if number not in order and all(numbers[name] in order for name in call.after)
        ]
        if not ready:
            return None
        order += ready
    return order


def stream_names(workload: FleetWorkload) -> list[str]:
    """Return what each stream is called: the classes, then the calls of the graphs as graph.call."""
    return class_names(workload) + [f"{graph.name}.{call.name}" for graph in workload.graphs for call in graph.calls]


def _plan_faults(question: FleetQuestion, classes: list[str]) -> list[tuple[_Path, str]]:
    if question.plan is None:
        return []
    names = [one.name for one in question.accelerators]
    streams = stream_names(question.workload)
    found: list[tuple[_Path, str]] = []
    parts: list[tuple[_Path, FleetPlan | FleetPeriod]] = [(("plan",), question.plan)]
    parts += [(("plan", "periods", number), part) for number, part in enumerate(question.plan.periods or ())]
    for at, part in parts:
        for key in ("counts", "purchases"):
            for name in getattr(part, key) or ():
                if name not in names:
                    found.append(((*at, key, name), f"no such accelerator; {did_you_mean(name, names)}"))
        for stream, shares in (part.routing or {}).items():
            if stream not in streams:
                found.append(((*at, "routing", stream), f"no such class; {did_you_mean(stream, streams)}"))
            for name in shares:
                if name not in names:
                    found.append(((*at, "routing", stream, name), f"no such accelerator; {did_you_mean(name, names)}"))
            if abs(sum(shares.values()) - 1) > 1e-6:
                found.append(((*at, "routing", stream), f"shares should add up to 1 [got {sum(shares.values()):g}]"))
        for name, bought in (part.purchases or {}).items():
            total = bought.reserved + bought.on_demand + bought.spot
            if part is not question.plan and total != part.counts.get(name, 0):
                message = f"adds up to {total}, but counts has {part.counts.get(name, 0)}"
                found.append(((*at, "purchases", name), message))
    if question.plan.periods is not None:
        length = _length(question.workload)
        said = [period for part in question.plan.periods for period in part.periods]
        if sorted(said) != list(range(length)):
            found.append(
                (("plan", "periods"), f"should name each of the periods 0 to {length - 1} once [got {sorted(said)}]")
            )
    return found


def _length(workload: FleetWorkload) -> int:
    rated: list[FleetClass | FleetGraph] = [*workload.classes, *workload.graphs]
    return max(len(workload.profile), *(len(one.profile or ()) for one in rated))


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
                [np.inf if price is None else price for price in _prices(*one)]
                for one in zip(kinds, entries, strict=True)
            ]
        ),
        availability=np.array([one.spot_availability or 1.0 for one in kinds]),
        most=np.array([np.inf if one.max is None else float(one.max) for one in kinds]),
        power_w=np.array([np.nan if (p := _power(*one)) is None else p for one in zip(kinds, entries, strict=True)]),
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
    return np.resize(np.array(own or workload.profile), _length(workload))


def _resolved(
    question: FleetQuestion, entries: list[Accelerator | UnknownName], names: list[str], case: Case, base_dir: FilePath
) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"plan"})
    for number, (one, entry) in enumerate(zip(question.accelerators, entries, strict=True)):
        offer = written["accelerators"][number]
        _, on_demand, _ = _prices(one, entry)
        if on_demand is not None:
            offer["price_usd_per_hour"] = on_demand
        power = _power(one, entry)
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
