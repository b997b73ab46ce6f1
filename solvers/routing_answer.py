"""What an answer about routing says: paths, times, what binds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.routing import slowest
from perfmodel.terms import Array
from solvers.routing_adapters import WAYS, adapter_loads, port_names
from solvers.routing_case import Case, Network, split_flows_of
from solvers.routing_graph import GraphNetwork
from solvers.routing_leaf_spine import Option
from solvers.routing_paths import Routing
from solvers.routing_scenario import RoutingScenario

_MOST_BINDING = 16
_MOST_JOBS = 16
_COMPARED = (
    "ecmp_completion_time_s",
    "ecmp_completion_time_s_p10",
    "ecmp_completion_time_s_p90",
    "ecmp_completion_time_p99_s",
    "spray_completion_time_s",
    "round_robin_completion_time_s",
)
_ROUNDING = 1e-9


def plan_of(scenario: RoutingScenario, case: Case, option: Option, *, paths: bool = True) -> dict[str, Any]:
    """Return the plan of an answer.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    case : Case
        Its case.
    option : Option
        The routing.
    paths : bool
        Whether the paths are part of it.
    """
    routing = option.routing
    written: dict[str, Any] = {
        "split": option.split,
        "nics": case.nics,
        "split_flows": int(split_flows_of(scenario, case, routing).sum()),
    }
    if option.splits_needed is not None and case.choice is None:
        written["split_flows_bound"] = option.splits_needed
    if paths:
        written["paths"] = _written(case.network, routing)
        if case.choice is not None and case.choice.shares:
            written["adapters"] = {
                f"{WAYS[way]} host{host}/gpu{index}": {
                    f"nic{port}": float(share[port]) for port in np.flatnonzero(share)
                }
                for (way, host, index), share in case.choice.shares.items()
            }
    return written


def _written(network: Network, routing: Routing) -> list[Any]:
    """Write the path of each flow, or its paths with their shares."""
    found: list[Any] = []
    single = np.bincount(routing.flow) == 1
    for flow, path, share in zip(routing.flow.tolist(), routing.path.tolist(), routing.share.tolist(), strict=True):
        name = network.path_name(flow, path)
        if single[flow]:
            found.append(name)
        elif flow == len(found):
            found.append({name: share})
        else:
            found[-1][name] = share
    return found


def predicted(scenario: RoutingScenario, case: Case, routing: Routing, compared: dict[str, Any]) -> dict[str, Any]:
    """Return the prediction of a routing.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    case : Case
        Its case.
    routing : Routing
        The paths.
    compared : dict
        What happens without a plan, by `compared_with`.

    Notes
    -----
    All flows start together at their share of the slowest link's rate, so that the last byte arrives when the most
    loaded link is done; links carry their nominal rate. Hashed flows are costed alike, which favours them.
    """
    network, flows = case.network, scenario.flows
    load = network.loads(routing)
    network_s = slowest(load, network.rate)
    time_s = max(network_s, case.floor_s)
    ideal = case.bound_s
    described: dict[str, Any] = {
        "completion_time_s": time_s,
        "completion_time_s_p10": None,
        "completion_time_s_p90": None,
        "max_link_utilisation": network_s / time_s if time_s else 0.0,
        "network_time_s": network_s,
        "adapter_time_s": None if case.loads is None else case.floor_s,
        "ideal_completion_time_s": ideal,
        "ratio_to_ideal": time_s / ideal if ideal else None,
        **compared,
        "gain_over_ecmp": compared["ecmp_completion_time_s"] / time_s if time_s else None,
        "gain_over_ecmp_p99": compared["ecmp_completion_time_p99_s"] / time_s if time_s else None,
        "flows": len(flows.size),
        "flows_over_network": len(network.far),
        "split_flows": int(split_flows_of(scenario, case, routing).sum()),
        "sent_bytes": float(flows.size.sum()),
        "energy_j": None,
    }
    if 1 < len(flows.jobs) <= _MOST_JOBS:
        described["job_completion_time_s"] = {
            flows.jobs[job]: _job_time(scenario, case, routing, load, flows.job == job)
            for job in range(len(flows.jobs))
        }
    return described


def _job_time(scenario: RoutingScenario, case: Case, routing: Routing, load: Array, mine: NDArray[np.bool_]) -> float:
    """Return when the last link or adapter that a job uses is done with all its load [s]."""
    kept = mine[routing.flow]
    own = case.network.loads(Routing(routing.flow[kept], routing.path[kept], routing.share[kept]))
    floor_s = case.floor_s
    if case.loads is not None and case.choice is None:
        flows = scenario.flows
        alone = replace(flows, source=flows.source[mine], target=flows.target[mine], size=flows.size[mine])
        used = adapter_loads(scenario.machine, alone).port > 0
        floor_s = slowest(np.where(used, case.loads.port, 0.0), np.broadcast_to(case.loads.rate, used.shape))
    return max(slowest(np.where(own > 0, load, 0.0), case.network.rate), floor_s)


def compared_with(case: Case) -> tuple[dict[str, Any], str]:
    """Predict what happens without a plan: hashing, spraying packets evenly, dealing in turn.

    Parameters
    ----------
    case : Case
        The case in which every flow has its own adapters.

    Returns
    -------
    tuple of dict and str
        Fields of the prediction, and how the time of hashing was found.
    """
    floor = 0.0 if case.loads is None else case.loads.time_s
    if not np.isfinite(floor):  # flows on a broken adapter never arrive
        return dict.fromkeys(_COMPARED, np.inf), "an adapter is broken"
    hashed = case.network.hashed(floor)
    found = (hashed.mean_s, hashed.p10_s, hashed.p90_s, hashed.p99_s)
    others = (max(case.network.spray_s(), floor), max(case.network.dealt_s(), floor))
    return dict(zip(_COMPARED, found + others, strict=True)), hashed.method


def breakdown_of(scenario: RoutingScenario, case: Case, routing: Routing) -> dict[str, Any]:
    """Return the breakdown: whose bytes the slowest link carries.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    case : Case
        Its case.
    routing : Routing
        The paths.
    """
    network, flows = case.network, scenario.flows
    load = network.loads(routing)
    network_s = slowest(load, network.rate)
    if case.floor_s >= network_s:
        name = _slow_ports(case)[0][0] if case.loads is not None and case.choice is None else "adapters"
        return {"name": "completion", "seconds": case.floor_s, "bound": "link", "children": [
            {"name": name, "seconds": case.floor_s, "bound": "link"}]}  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        slow = int(np.argmax(np.where(load > 0, load / network.rate, 0.0)))
    seconds = []
    for job in range(len(flows.jobs)):
        kept = flows.job[routing.flow] == job
        part = network.loads(Routing(routing.flow[kept], routing.path[kept], routing.share[kept]))
        seconds.append(float(part[slow] / network.rate[slow]))
    total = float(sum(seconds))
    shown = [
        (f"job {name}" if name else "flows", value) for name, value in zip(flows.jobs, seconds, strict=True) if value
    ]
    link = {"name": network.link_name(slow), "seconds": total, "bound": "link"}
    if len(shown) > 1:
        link["children"] = [{"name": name, "seconds": value, "bound": "link"} for name, value in shown]
    return {"name": "completion", "seconds": total, "bound": "link", "children": [link]}


def _slow_ports(case: Case) -> tuple[list[str], Array]:
    """Name the adapters that take longest, with their rates [B/s]."""
    assert case.loads is not None
    names, places = port_names(case.loads)
    rates = case.loads.rate[places[:, 1], places[:, 2]]
    times = case.loads.port[tuple(places.T)] / rates
    slow = np.flatnonzero(times >= times.max() * (1 - _ROUNDING))
    return [names[index] for index in slow], rates[slow]


def binding_of(case: Case, routing: Routing, time_s: float) -> list[dict[str, Any]]:
    """List what holds the time up, with what a little more rate there would save.

    Parameters
    ----------
    case : Case
        The case.
    routing : Routing
        The paths.
    time_s : float
        Their time [s].

    Notes
    -----
    A price says how the least time of divided traffic changes with the rate of a link; that of several links is for
    the same change of each. Prices are duals: together they prove the bound. Where more links are full than it takes
    to prove it, which of them have a price is arbitrary, and the time only falls if all of them become faster.
    """
    network, found, floor = case.network, [], case.floor_s
    adapters_bind = floor > case.division.time_s * (1 + _ROUNDING)
    if case.choice is not None and floor >= time_s * (1 - _ROUNDING):
        found.append(_bound_by("adapters and links of a node together", 0.0, None))
    elif case.loads is not None and floor >= time_s * (1 - _ROUNDING):
        names, rates = _slow_ports(case)
        prices = -floor / rates / len(names) if floor >= case.division.time_s * (1 - _ROUNDING) else 0.0 * rates
        if len(names) > _MOST_BINDING // 2:
            names, prices = [f"{len(names)} adapters alike, such as {names[0]}"], np.array([prices.sum()])
        found += [_bound_by(name, 0.0, float(price)) for name, price in zip(names, prices, strict=True)]
    load = network.loads(routing)
    with np.errstate(divide="ignore", invalid="ignore"):
        slack = time_s - np.where(load > 0, load / network.rate, 0.0)
    price = case.division.weight * case.division.time_s * (0.0 if adapters_bind else 1.0)
    groups = _groups(network, (price > price.max(initial=0.0) * 1e-6) | (slack <= time_s * _ROUNDING))
    groups.sort(key=lambda group: -float(price[group[1]].sum()))
    for name, links in groups[: _MOST_BINDING - len(found)]:
        room = float(slack[links].min())
        found.append(_bound_by(name, room if room > time_s * _ROUNDING else 0.0, -float(price[links].sum()) + 0.0))
    return found


def _bound_by(name: str, slack_s: float, price: float | None) -> dict[str, Any]:
    return {
        "constraint": name,
        "slack": slack_s,
        "shadow_price": None if price is None else price * 1e9,
        "unit": "s",
        "shadow_price_unit": "s/(GB/s)",
    }


def _groups(network: Network, binding: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.intp]]]:
    """Gather the cables of a leaf that bind one way."""
    if isinstance(network, GraphNetwork):
        return [(network.link_name(link), np.array([link])) for link in np.flatnonzero(binding).tolist()]
    spec = network.network
    alive = (network.rate > 0).reshape(2, spec.leaves, spec.lanes)
    places = np.arange(binding.size).reshape(2, spec.leaves, spec.lanes)
    shaped = binding.reshape(2, spec.leaves, spec.lanes)
    found = []
    for way, leaf in np.argwhere(shaped.any(axis=2)).tolist():
        mine, all_there_are = shaped[way, leaf], int(alive[way, leaf].sum())
        some = "" if int(mine.sum()) == all_there_are else f", {int(mine.sum())} of {all_there_are}"
        found.append((f"{'uplinks' if way == 0 else 'downlinks'} of leaf{leaf}{some}", places[way, leaf][mine]))
    return found
