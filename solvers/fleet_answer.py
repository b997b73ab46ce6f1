"""A fleet as an answer: its plan, what it costs, and what requests and limits are worth."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from perfmodel.serving.spread import factors
from perfmodel.terms import Array
from solvers.backend import Solution
from solvers.fleet_balance import failures, rerouted, usable
from solvers.fleet_case import PURCHASES, Case
from solvers.fleet_model import NONE, Fleet, Limit, Model, limits
from solvers.fleet_question import FleetQuestion
from solvers.fleet_search import undominated
from solvers.fleet_tails import longest_s
from solvers.fleet_throughput import precisions_of
from solvers.result import Objective

if TYPE_CHECKING:
    from solvers.fleet_scenario import FleetScenario


def objective(cost: float | None) -> Objective:
    """Return what is minimised, with its value."""
    return Objective("cost_usd_per_hour", cost, "USD/h", "min")


def common(scenario: FleetScenario) -> dict[str, Any]:
    """Return the question and what the answer rests on."""
    try:
        release = version("perfmodel")
    except PackageNotFoundError:
        release = "not installed"
    question = scenario.question
    said = []
    for one, written in zip(question.accelerators, scenario.resolved["accelerators"], strict=True):
        types = " or ".join(precisions_of(one))
        predicted = f"predicted, {question.engine}, {types} weights, {written.get('node', one.node)}"
        said.append(f"{one.name}: {'as given' if one.throughput_requests_per_s is not None else predicted}")
    return {"kind": "fleet", "scenario": scenario.resolved, "provenance": {"version": release, "throughputs": said}}


def plan_dict(case: Case, fleet: Fleet) -> dict[str, Any]:
    """Return a fleet as a plan JSON holds it.

    Parameters
    ----------
    case : Case
        The fleet to choose.
    fleet : Fleet
        What is rented.

    Returns
    -------
    dict
        ``counts`` and ``purchases``: accelerators of each kind, the most of the day; ``routing``: share of each
        stream's requests of the day; ``instances`` where they are not the accelerators themselves, or ``pools`` where
        a kind offers several; ``failover``: the routing after a failure of each; ``periods`` where the day has several:
        the same for each group of periods.
    """
    by_hour = fleet.bought(case)
    after = {failure: rerouted(case, fleet, failure) for failure in failures(case, fleet)}
    whole = _part(case, fleet, by_hour.max(axis=2), fleet.held(case).max(axis=1), _mean_share(case, fleet.share), None)
    if after:
        means = {failure: _mean_share(case, share) for failure, share in after.items()}
        whole["failover"] = {case.pools[failure]: _routing(case, share) for failure, share in means.items()}
    if case.periods == 1 and len(case.hours[0]) == 1:
        return whole
    groups: list[tuple[list[int], dict[str, Any]]] = []
    for h in range(case.periods):
        part = _part(case, fleet, by_hour[:, :, h], fleet.held(case)[:, h], fleet.share[:, :, h], h)
        there = [failure for failure in after if fleet.capacity(case)[failure, h]]
        if there:
            part["failover"] = {case.pools[one]: _routing(case, after[one][:, :, h]) for one in there}
        same = next((hours for hours, other in groups if other == part), None)
        if same is None:
            groups.append((list(case.hours[h]), part))
        else:
            same += case.hours[h]
    groups = [(sorted(hours), part) for hours, part in groups]
    groups.sort(key=lambda group: group[0])
    return whole | {"periods": [{"periods": hours, **part} for hours, part in groups]}


def _part(case: Case, fleet: Fleet, bought: Array, held: Array, share: Array, h: int | None) -> dict[str, Any]:
    counts = {name: int(count) for name, count in zip(case.accelerators, held, strict=True)}
    part: dict[str, Any] = {"counts": counts, "routing": _routing(case, share)}
    offered = np.isfinite(case.price)
    if offered.sum(axis=1).max() > 1 or offered[:, 1].sum() < len(offered):
        part["purchases"] = {
            name: {way: int(bought[one, place]) for place, way in enumerate(PURCHASES) if offered[one, place]}
            for one, name in enumerate(case.accelerators)
            if counts[name]
        }
    instances = fleet.instances.sum(axis=1)
    chosen = instances.max(axis=1) if h is None else instances[:, h]
    if len(case.pool_size) > len(case.models) * len(case.accelerators):
        part["pools"] = [
            {
                "name": case.pools[pool],
                "accelerator": case.accelerators[case.pool_accelerator[pool]],
                "model": case.models[case.pool_model[pool]],
                "accelerators_per_instance": int(case.pool_size[pool]),
                "precision_weights": case.pool_precision[pool],
                "instances": int(chosen[pool]),
                "share": {case.streams[one]: float(share[one, pool]) for one in np.flatnonzero(share[:, pool])},
            }
            for pool in np.flatnonzero(chosen)
        ]
    elif len(case.models) > 1 or (case.pool_size > 1).any():
        part["instances"] = {
            model: {
                case.accelerators[case.pool_accelerator[pool]]: int(chosen[pool])
                for pool in np.flatnonzero((case.pool_model == number) & (chosen > 0))
            }
            for number, model in enumerate(case.models)
        }
    return part


def _routing(case: Case, share: Array) -> dict[str, dict[str, float]]:
    """Return the share of each stream by kind of accelerator."""
    routing: dict[str, dict[str, float]] = {}
    for stream, pool in np.argwhere(share > 0):
        to = routing.setdefault(case.streams[stream], {})
        name = case.accelerators[case.pool_accelerator[pool]]
        to[name] = to.get(name, 0.0) + float(share[stream, pool])
    return routing


def _mean_share(case: Case, share: Array) -> Array:
    if case.periods == 1 and len(case.hours[0]) == 1:
        return np.asarray(share[:, :, 0])
    asked = case.rate * case.weight
    total = asked.sum(axis=1)
    weights = np.divide(asked, total[:, None], out=np.zeros_like(asked), where=total[:, None] > 0)
    # rounded, since the order in which a sum over a day is taken shows in the last digits
    return np.asarray(np.einsum("iph,ih->ip", share, weights)).round(12)


def prediction(
    case: Case,
    fleet: Fleet,
    question: FleetQuestion,
    relaxed_model: Model | None = None,
    relaxed: Solution | None = None,
) -> dict[str, Any]:
    """Return what a fleet costs and how busy it is.

    Parameters
    ----------
    case : Case
        The fleet to choose.
    fleet : Fleet
        What is rented.
    question : FleetQuestion
        Whose classes they are.
    relaxed_model, relaxed : Model, Solution
        The linear relaxation, from which the prices of requests come.
    """
    cost = fleet.cost(case)
    total = float(cost.sum())
    arrivals = float((case.rate[: len(case.classes)] @ case.weight).sum())
    for number, graph in enumerate(case.graphs, start=len(case.classes)):
        call = graph.calls[0]
        arrivals += float(case.rate[call] @ case.weight) / float(case.calls[number, call])
    tokens = float((case.rate @ case.weight) @ _lengths(case, question, "osl"))
    held = fleet.held(case)
    power = np.where(held > 0, np.where(held > 0, case.power_w[:, None], 0.0) * held, 0.0).sum(axis=0)
    found: dict[str, Any] = {
        "cost_usd_per_hour": total,
        "cost_usd_per_million_requests": total / (3600 * arrivals) * 1e6,
        "cost_usd_per_million_output_tokens": total / (3600 * tokens) * 1e6,
        "requests_per_s": arrivals,
        "power_w": float(power.max()),
        "accelerators": int(held.sum(axis=0).max()),
    }
    if relaxed is not None and relaxed.objective is not None:
        found["relaxed_cost_usd_per_hour"] = relaxed.objective
        found["integrality_gap"] = total / relaxed.objective - 1 if relaxed.objective else 0.0
    found["utilisation"] = _utilisation(case, fleet)
    if case.lost:
        found["utilisation_after_loss"] = _after_loss(case, fleet)
    if case.spread.any():
        # what is sustained is uncertain, and with it the share of it that is used
        found["utilisation_p10"] = _utilisation(_slower(case, 1), fleet)
        found["utilisation_p90"] = _utilisation(_slower(case, 0), fleet)
    if case.graphs:
        found["graph_latency_s"] = {graph.name: longest_s(case, graph, fleet.share) for graph in case.graphs}
    if relaxed_model is not None and relaxed is not None and relaxed.duals is not None:
        found |= _marginal(case, prices(case, relaxed_model, relaxed))
    if case.spread.any():
        shown = np.asarray(fleet.instances.any(axis=(1, 2)) | undominated(case).throughput.any(axis=0))
        found["throughput_requests_per_s"] = _throughputs(case, shown)
        found["throughput_requests_per_s_p10"] = _throughputs(_slower(case, 0), shown)
        found["throughput_requests_per_s_p90"] = _throughputs(_slower(case, 1), shown)
    used = [one for one in range(len(case.accelerators)) if held[one].any()]
    found["cost_by_accelerator_usd_per_hour"] = {case.accelerators[one]: float(cost[one].sum()) for one in used}
    if (np.isfinite(case.price).sum(axis=1) > 1).any():
        found["cost_by_purchase_usd_per_hour"] = {
            way: float(cost[:, place].sum())
            for place, way in enumerate(PURCHASES)
            if np.isfinite(case.price[:, place]).any()
        }
    return found


def _slower(case: Case, end: int) -> Case:
    """Return a case whose throughputs are those at one end of their interval: 0 the low one, 1 the high one."""
    ends = np.array([[factors(float(spread))[end] for spread in row] for row in case.spread])
    return replace(case, throughput=case.throughput * ends)


def _throughputs(case: Case, shown: Array) -> dict[str, dict[str, float]]:
    """Return what one instance of some pools sustains of each class [requests/s]."""
    return {
        case.pools[pool]: {asked: float(case.throughput[one, pool]) for one, asked in enumerate(case.classes)}
        for pool in np.flatnonzero(shown)
    }


def _after_loss(case: Case, fleet: Fleet) -> dict[str, float]:
    """Return how busy the busiest pool is where instances of each fail, at its highest over the day [1]."""
    found = {}
    for failure in failures(case, fleet):
        room = usable(case, fleet, failure) / case.utilisation_max[case.pool_accelerator][:, None]
        load = case.load(rerouted(case, fleet, failure))
        found[case.pools[failure]] = float(np.divide(load, room, out=np.zeros_like(load), where=room > 0).max())
    return found


def _lengths(case: Case, question: FleetQuestion, name: str) -> Array:
    return np.array([getattr(one, name) for one in question.workload.classes], dtype=float)[case.stream_class]


def _utilisation(case: Case, fleet: Fleet) -> dict[str, float]:
    """Return the share of the throughput counted on that is used, at its highest over the day [1]."""
    load, room = case.load(fleet.share), fleet.capacity(case)
    shape = (len(case.accelerators), case.periods)
    busy, there = np.zeros(shape), np.zeros(shape)
    np.add.at(busy, case.pool_accelerator, load * case.pool_size[:, None])
    np.add.at(there, case.pool_accelerator, room * case.pool_size[:, None])
    share = np.divide(busy, there, out=np.zeros_like(busy), where=there > 0)
    return {name: float(share[one].max()) for one, name in enumerate(case.accelerators) if there[one].any()}


def prices(case: Case, model: Model, relaxed: Solution) -> Array:
    """Return what one more request per second of each stream costs in each period, of shape (I, H) [USD/h].

    Parameters
    ----------
    case : Case
        The fleet to choose.
    model : Model
        The linear relaxation.
    relaxed : Solution
        Its optimum with duals.

    Notes
    -----
    A rate stands in the rows of capacity alone, so that the relaxed cost changes with it by the price of an instance
    times the work of the request, summed over where it goes before and after every failure (envelope theorem). A row's
    price is of the mean of the day; over the period's share of the day it is that of an hour of the period.
    """
    assert relaxed.duals is not None
    routed = model.fleet(relaxed)
    pools = range(len(case.pool_size))
    work = np.where(case.possible, case.throughput, np.nan) * case.utilisation_max[case.pool_accelerator]
    worth = np.zeros(case.rate.shape)
    for failure in model.failures:
        share = routed.share if failure == NONE else routed.failover[failure]
        for h in range(case.periods):
            row = np.array([-relaxed.duals.get(f"capacity {failure} {p} {h}", -math.inf) for p in pools])
            each = row / case.weight[h] / work
            each = np.where(np.isnan(each), np.inf, each)
            for stream, rate in enumerate(case.rate[:, h]):
                goes = share[stream, :, h] > 0
                least = each[stream].min() if np.isfinite(each[stream]).any() else math.nan
                worth[stream, h] += each[stream, goes] @ share[stream, goes, h] if rate > 0 else least
    return worth


def _marginal(case: Case, worth: Array) -> dict[str, Any]:
    """Return what one more of each request costs, in the mean of the day and by period."""

    def by_request(of_stream: Array) -> dict[str, float]:
        return {
            name: float(calls[calls > 0] @ of_stream[calls > 0])
            for name, calls in zip(case.requests, case.calls, strict=True)
        }

    mean = (case.rate @ case.weight)[:, None]
    profile = np.divide(case.rate, mean, out=np.ones_like(case.rate), where=mean > 0)
    found: dict[str, Any] = {
        "marginal_cost_usd_per_hour": by_request((np.where(profile > 0, worth, 0.0) * profile) @ case.weight)
    }
    if case.periods > 1:
        found["marginal_cost_by_period_usd_per_hour"] = [
            {"periods": list(hours), **by_request(worth[:, h])}
            for h, hours in sorted(enumerate(case.hours), key=lambda entry: entry[1])
        ]
    return found


def binding(
    case: Case, fleet: Fleet, model: Model | None = None, relaxed: Solution | None = None
) -> list[dict[str, Any]]:
    """Return the limits that hold the cost up, and what a little more of each would save in the relaxation."""
    held, found = fleet.held(case), []
    for limit in limits(case):
        taken, step = _taken(case, limit, held)
        price = 0.0
        if relaxed is not None and relaxed.duals is not None:
            price = sum(relaxed.duals[f"{limit.kind} {limit.index} {h}"] for h in range(case.periods))
        slack = limit.value - taken
        if slack < step or price:
            entry = {"constraint": limit.name(case), "slack": slack, "shadow_price": price, "unit": limit.unit}
            each = "USD/h per W" if limit.kind == "power" else "USD/h per accelerator"
            found.append(entry | {"shadow_price_unit": each})
    return found


def _taken(case: Case, limit: Limit, held: Array) -> tuple[float, float]:
    """Return what is used of a limit, and the least by which that changes."""
    if limit.kind == "max":
        return float(held[limit.index].max()), float(case.pool_size[case.pool_accelerator == limit.index].min())
    there = case.site == limit.index
    taken = (held * np.where(there, case.power_w, 0.0)[:, None]).sum(axis=0).max()
    sizes = [
        case.power_w[one] * size for one, size in zip(case.pool_accelerator, case.pool_size, strict=True) if there[one]
    ]
    return float(taken), float(min(sizes, default=0.0))
