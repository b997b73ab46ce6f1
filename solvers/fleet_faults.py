"""What is wrong with a question about a fleet, found before anything is planned."""

from __future__ import annotations

from collections.abc import Mapping

from hardware.catalogue import UnknownName
from hardware.schema import Accelerator
from hardware.yaml_source import did_you_mean
from solvers.fleet_case import Case
from solvers.fleet_question import (
    FleetAccelerator,
    FleetClass,
    FleetGraph,
    FleetPeriod,
    FleetPlan,
    FleetQuestion,
    FleetWorkload,
    class_names,
    ordered,
    period_count,
    stream_names,
)
from solvers.fleet_throughput import Offer, models_of, precisions_of

_Path = tuple[str | int, ...]

MOST_PATHS = 1000
"""Paths of a graph up to which percentiles are held on each."""


def prices_of(one: FleetAccelerator, entry: Accelerator | UnknownName) -> tuple[float | None, ...]:
    """Return the price of one accelerator by way to rent [USD/h]."""
    given = (one.reserved_price_usd_per_hour, one.price_usd_per_hour, one.spot_price_usd_per_hour)
    if any(price is not None for price in given) or isinstance(entry, UnknownName) or entry.price is None:
        return given
    return (None, entry.price.on_demand, None)


def power_of(one: FleetAccelerator, entry: Accelerator | UnknownName) -> float | None:
    """Return the power of one accelerator [W]."""
    return one.power if one.power is not None else None if isinstance(entry, UnknownName) else entry.power.limit


def question_faults(question: FleetQuestion, entries: list[Accelerator | UnknownName]) -> list[tuple[_Path, str]]:
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
        if not any(price is not None for price in prices_of(one, entry)):
            known = "" if isinstance(entry, UnknownName) else "; the catalogue has none"
            found.append(((*at, "price_usd_per_hour"), f"missing{known}"))
        if one.spot_price_usd_per_hour is not None and one.spot_availability is None:
            found.append(((*at, "spot_availability"), "missing; the share of them that is counted on"))
        if one.site is not None and one.site not in sites:
            found.append(((*at, "site"), f"no such site; {did_you_mean(one.site, sites)} [got {one.site!r}]"))
        place = question.sites[sites.index(one.site) if one.site in sites else 0]
        if place.power is not None and power_of(one, entry) is None:
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


def pool_faults(question: FleetQuestion, case: Case) -> list[tuple[_Path, str]]:
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
        length = period_count(question.workload)
        said = [period for part in question.plan.periods for period in part.periods]
        if sorted(said) != list(range(length)):
            found.append(
                (("plan", "periods"), f"should name each of the periods 0 to {length - 1} once [got {sorted(said)}]")
            )
    return found


def too_small(question: FleetQuestion, offers: list[list[Offer]]) -> dict[str, list[tuple[_Path, str]]]:
    """Return by model the kinds on which no instance holds its weights and a request, and what would do."""
    found: dict[str, list[tuple[_Path, str]]] = {}
    for number, offered in enumerate(offers):
        for model in dict.fromkeys(offer.model for offer in offered):
            own = [offer for offer in offered if offer.model == model]
            if not any(offer.holds.any() for offer in own):
                sizes = ", ".join(map(str, dict.fromkeys(offer.accelerators for offer in own)))
                enough = [(offer.needed, offer.precision_weights) for offer in own if offer.needed is not None]
                needed = "; {} with weights in {} would".format(*min(enough)) if enough else ""
                message = f"instances of {sizes} do not hold the weights of {model} and a request{needed}"
                found.setdefault(model, []).append((("accelerators", number), message))
    return found
