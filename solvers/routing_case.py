"""A question of routing made ready: the network, the adapters, the least time of all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.cables import SWITCHED
from hardware.catalogue import Machine
from hardware.faults import Fault, InputError
from hardware.graph import leaf_spine
from perfmodel.routing import slowest
from perfmodel.terms import Array
from solvers.routing_adapters import WAYS, AdapterLoads, Relaxed, adapter_loads, inner_rate, one_leaf_each
from solvers.routing_adapters import relaxed as relaxed_adapters
from solvers.routing_graph import GraphNetwork
from solvers.routing_leaf_spine import LeafSpineNetwork
from solvers.routing_lp import Division
from solvers.routing_paths import Routing
from solvers.routing_scenario import RoutingPlan, RoutingScenario, read_paths

_MOST_PAIRS = 2_000
"""Pairs of accelerators up to which adapters on different leaves are chosen together with the paths [1]."""
_ROUNDING = 1e-9
_CLOSE = 1e-6
"""Relative gain that is not looked for [1]."""
_NOTHING = Division(np.zeros(0), np.zeros(0), 0.0, 0.0, np.zeros(0))


@dataclass(frozen=True)
class Case:
    """One network, with what adapters take besides.

    Parameters
    ----------
    network
        The network.
    loads
        Loads of adapters; None where they are links of the network.
    choice
        Adapters chosen freely; None if each flow has its own.
    division
        The best division of the traffic.
    """

    network: Network
    loads: AdapterLoads | None
    choice: Relaxed | None
    division: Division

    @property
    def nics(self) -> str:
        """Whether flows have their ``own`` adapters or ``any``."""
        free = self.choice is not None or (isinstance(self.network, GraphNetwork) and self.network.any_adapter)
        return "any" if free else "own"

    @property
    def floor_s(self) -> float:
        """Time that adapters take, however flows are routed [s]."""
        if self.choice is not None:
            return self.choice.time_s
        return 0.0 if self.loads is None else self.loads.time_s

    @property
    def broken_adapter(self) -> str:
        """An adapter that is needed and has no link, in words."""
        assert self.loads is not None
        _, host, port = np.argwhere((self.loads.port > 0) & (self.loads.rate[None] == 0))[0]
        return f"the adapter nic{port} of host{host} has no link"

    @property
    def bound_s(self) -> float:
        """Time that no routing can beat [s]."""
        return max(self.division.bound_s, self.floor_s)


Network = LeafSpineNetwork | GraphNetwork


def has_two_levels(machine: Machine) -> bool:
    """Tell whether a network is leaves and spines alone."""
    fabric = machine.cluster.fabric
    switched = fabric.type in SWITCHED and fabric.wan is None and machine.node.nics is not None
    return switched and not leaf_spine(machine).core.size


def network_of(scenario: RoutingScenario) -> Network:
    """Build the network that a question's flows are routed on.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.

    Returns
    -------
    LeafSpineNetwork or GraphNetwork
        The network.

    Raises
    ------
    InputError
        A flow ends at a whole node whose adapters are on several leaves.
    """
    if has_two_levels(scenario.machine):
        if (problem := _whole_nodes(scenario)) is not None:
            raise InputError([problem])
        return LeafSpineNetwork(scenario)
    return GraphNetwork(scenario)


def _whole_nodes(scenario: RoutingScenario) -> Fault | None:
    """Refuse flows of whole nodes whose adapters are on several leaves: nobody said which."""
    if one_leaf_each(leaf_spine(scenario.machine)):
        return None
    end = next((end for end in scenario.flows.ends if end.accelerator < 0 and end.port < 0), None)
    if end is None:
        return None
    message = f'the adapters of a node are on several leaves; say which one sends, such as "{end.name}/gpu0"'
    return scenario.source.fault(("flows",), f'{message} [got "{end.name}"]')


def case_of(scenario: RoutingScenario, time_limit_s: float | None, *, given: bool = False) -> Case | str:
    """Make a question ready.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    time_limit_s : float or None
        Wall time after which to stop dividing traffic [s].
    given : bool
        Whether the plan may say which adapters to use, so that broken ones do not matter yet.

    Returns
    -------
    Case or str
        The case; in words what cuts the network apart, where a flow has no path.
    """
    network = network_of(scenario)
    if (cut := network.cut()) is not None:
        if isinstance(network, LeafSpineNetwork):
            return f"no spine joins leaf{cut[0]} and leaf{cut[1]}"
        return f"nothing leads from {cut[0]} to {cut[1]}"
    loads = adapter_loads(scenario.machine, scenario.flows) if isinstance(network, LeafSpineNetwork) else None
    if loads is not None and not np.isfinite(loads.time_s) and not given:
        return Case(network, loads, None, _NOTHING).broken_adapter
    return Case(network, loads, None, network.division(time_limit_s))


def free_case(scenario: RoutingScenario, own: Case, time_limit_s: float | None) -> Case | str | None:
    """Let flows choose adapters, where that can help and is small enough to be settled.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    own : Case
        The case in which every flow has its accelerator's own adapters.
    time_limit_s : float or None
        Wall time after which to stop dividing traffic [s].

    Returns
    -------
    Case, str or None
        The case with free adapters; in words why it was not tried; None if it is no better.
    """
    machine = scenario.machine
    inner = inner_rate(machine)
    switched = machine.cluster.fabric.type in SWITCHED
    if not switched or inner <= 0 or machine.node.nics is None or machine.node.nics.count < 2:
        return None
    view = leaf_spine(machine)
    loads = own.loads or adapter_loads(machine, scenario.flows)
    # what a node sends cannot be faster than all its adapters together
    least = slowest(loads.port.sum(axis=2), loads.rate.sum(axis=1))
    if least >= own.bound_s * (1 - _CLOSE):
        return None
    if own.loads is not None and one_leaf_each(view):
        if own.loads.time_s <= own.division.time_s * (1 + _ROUNDING):
            return None
        choice = relaxed_adapters(own.loads, view.near, inner, own.division.time_s)
        return replace(own, choice=choice) if choice.time_s < own.loads.time_s * (1 - _ROUNDING) else None
    flows = scenario.flows
    if any(end.accelerator < 0 for end in flows.ends):
        return None
    pairs = len(np.unique(flows.source * len(flows.ends) + flows.target))
    if pairs > _MOST_PAIRS:
        return f"nics any: not tried on several leaves for {pairs:,} pairs of accelerators, more than {_MOST_PAIRS:,}"
    network = GraphNetwork(scenario, any_adapter=True)
    if network.cut() is not None:
        return None
    case = Case(network, None, None, network.division(time_limit_s))
    return case if case.bound_s < own.bound_s * (1 - _ROUNDING) else None


def split_flows_of(scenario: RoutingScenario, case: Case, routing: Routing) -> NDArray[np.bool_]:
    """Tell which flows are split, in the network or over adapters.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    case : Case
        Its case.
    routing : Routing
        The paths.

    Returns
    -------
    array of bool
        Whether each flow is split.
    """
    split = case.network.split_flows(routing)
    if case.choice is not None and case.choice.shares:
        flows = scenario.flows
        for way, side in enumerate((flows.source, flows.target)):
            parts = np.array(
                [np.count_nonzero(case.choice.shares.get((way, end.host, end.accelerator), ())) for end in flows.ends]
            )
            split = split | (parts[side] > 1)
    return split


def given_paths(scenario: RoutingScenario, case: Case) -> tuple[Case, Routing]:
    """Read the plan of a scenario: paths of the flows, and adapters.

    Parameters
    ----------
    scenario : RoutingScenario
        The question with its plan.
    case : Case
        Its case.

    Returns
    -------
    tuple of Case and Routing
        The case with the plan's adapters, and the paths.

    Raises
    ------
    InputError
        With every path or adapter that there is not.
    """
    kept, source = scenario.question.plan, scenario.source
    if kept is None or kept.paths is None:
        raise InputError([source.fault(("plan", "paths"), "missing; predict costs the paths that a scenario gives")])
    if (
        kept.nics == "any"
        and not kept.adapters
        and isinstance(case.network, LeafSpineNetwork)
        and not one_leaf_each(leaf_spine(scenario.machine))
    ):
        network = GraphNetwork(scenario, any_adapter=True)
        case = Case(network, None, None, network.division())
    names, places = read_paths(kept.paths, len(scenario.flows.size), scenario)
    faults, flow, path, share = [], [], [], []
    for number, entry in enumerate(names):
        parts = {entry: 1.0} if isinstance(entry, str) else entry
        total = sum(parts.values())
        if abs(total - 1) > 1e-6:
            faults.append(replace(places(number), message=f"the shares of a flow should add up to 1 [got {total:.6g}]"))
        for name, part in parts.items():
            try:
                path.append(case.network.path_of(number, name))
            except ValueError as error:
                faults.append(replace(places(number), message=str(error)))
                continue
            flow.append(number)
            share.append(part / total)
    if faults:
        raise InputError(faults[:20])
    if kept.adapters and case.loads is not None:
        case = replace(case, choice=_given_adapters(scenario, case.loads, kept.adapters))
    return case, Routing(np.array(flow), np.array(path), np.array(share))


def _given_adapters(scenario: RoutingScenario, loads: AdapterLoads, given: dict[str, dict[str, float]]) -> Relaxed:
    """Read shares of adapters, and add up what ports and links inside nodes carry."""
    view, machine = leaf_spine(scenario.machine), scenario.machine
    shares: dict[tuple[int, int, int], Array] = {}
    faults = []
    known = {f"{word} {end.name}": (way, end) for way, word in enumerate(WAYS) for end in scenario.flows.ends}
    for name, parts in given.items():
        share = np.zeros(view.port.shape[1])
        for nic, part in parts.items():
            number = nic.removeprefix("nic")
            if not number.isdecimal() or int(number) >= len(share):
                message = f'no such adapter; allowed: nic0 to nic{len(share) - 1} [got "{nic}"]'
                faults.append(scenario.source.fault(("plan", "adapters", name, nic), message))
            else:
                share[int(number)] = part
        if name not in known or known[name][1].accelerator < 0:
            message = f'should be "{WAYS[0]} host0/gpu0" or "{WAYS[1]} host0/gpu0", an accelerator that flows name'
            faults.append(scenario.source.fault(("plan", "adapters", name), message))
        else:
            way, end = known[name]
            shares[way, end.host, end.accelerator] = share / max(share.sum(), 1e-300)
    if faults:
        raise InputError(faults)
    near, inner = view.near, inner_rate(machine)
    port, worst = loads.fixed.copy(), 0.0
    for way, host, index in np.argwhere(loads.own > 0).tolist():
        share = shares.get((way, host, index), near[index] / near[index].sum())
        port[way, host] += loads.own[way, host, index] * share
        away = float(share[~near[index]].sum())
        worst = max(worst, loads.own[way, host, index] * away / inner if away and inner else 0.0)
    carried = slowest(port, np.broadcast_to(view.port, port.shape))
    return Relaxed(max(carried, worst), shares)


@dataclass(frozen=True)
class LinkTimes:
    """How long each link needs for what a plan puts on it.

    Parameters
    ----------
    names : tuple of str
        The links, the slowest first.
    seconds : array
        Their times [s].
    grid : array or None
        On leaves and spines: time of the slowest cable between a leaf and a spine, of shape (2, leaves, spines), up and
        then down; NaN where there is none [s].
    """

    names: tuple[str, ...]
    seconds: Array
    grid: Array | None


def link_times(scenario: RoutingScenario, plan: dict[str, Any]) -> LinkTimes:
    """Add a plan's flows up on links.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    plan : dict
        The plan of its answer, with its paths.

    Returns
    -------
    LinkTimes
        Times of all links.
    """
    question = scenario.question.model_copy(update={"plan": RoutingPlan.model_validate(plan)})
    scenario = replace(scenario, question=question)
    case = case_of(scenario, None, given=True)
    assert not isinstance(case, str)  # there is a plan
    case, routing = given_paths(scenario, case)
    network = case.network
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = np.where(network.rate > 0, network.loads(routing) / network.rate, np.nan)
    order = [
        link for link in np.argsort(-np.nan_to_num(seconds), kind="stable").tolist() if not np.isnan(seconds[link])
    ]
    grid = None
    if isinstance(network, LeafSpineNetwork):
        spec = network.network
        cables = seconds.reshape(2, spec.leaves, spec.spines, spec.cables)
        grid = cables.max(axis=3)
    return LinkTimes(tuple(network.link_name(link) for link in order), seconds[order], grid)
