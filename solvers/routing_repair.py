"""Networks that are cut apart, and what would join them again."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import numpy as np

from solvers.result import Objective, Result
from solvers.routing_adapters import adapter_loads
from solvers.routing_case import case_of, network_of
from solvers.routing_leaf_spine import LeafSpineNetwork
from solvers.routing_scenario import RoutingScenario

_MOST_REPAIRS = 500


def cut_apart(scenario: RoutingScenario, cut: str, common: dict[str, Any], began: float) -> Result:
    """Answer that two ends have no path: name the cut and the fewest repairs that join them.

    Parameters
    ----------
    scenario : RoutingScenario
        The question.
    cut : str
        What is cut apart, in words.
    common : dict
        What every answer to the question says.
    began : float
        Value of the clock at which the work began [s].

    Returns
    -------
    Result
        The infeasible answer.
    """
    repairs = _repairs(scenario)
    conflict = _conflict(scenario)
    kept = case_of(_without(scenario, tuple(set(scenario.machine.cluster.fabric.failed) - set(conflict))), None)
    return Result(
        status="infeasible",
        objective=Objective("completion_time_s", None, "s", "min"),
        solve_time_s=time.perf_counter() - began,
        why_not=[
            {
                "reason": f"{kept if isinstance(kept, str) else cut}; cut by {', '.join(conflict) or 'nothing'}",
                "candidates": len(scenario.flows.size),
                "nearest": None,
            }
        ],
        relaxation=[
            {
                "constraint": f"{'link' if '-' in name else 'switch'} {name}",
                "now": 0.0,
                "needed": _rate(scenario, name),
                "unit": "GB/s",
            }
            for name in repairs
        ],
        **common,
    )


def _without(scenario: RoutingScenario, repaired: tuple[str, ...]) -> RoutingScenario:
    cluster = scenario.machine.cluster
    failed = tuple(name for name in cluster.fabric.failed if name not in repaired)
    fabric = cluster.fabric.model_copy(update={"failed": failed})
    machine = replace(scenario.machine, cluster=cluster.model_copy(update={"fabric": fabric}))
    return replace(scenario, machine=machine)


def _joined(scenario: RoutingScenario) -> bool:
    """Tell whether every flow has a path."""
    network = network_of(scenario)
    if network.cut() is not None:
        return False
    adapters = isinstance(network, LeafSpineNetwork)
    return not adapters or bool(np.isfinite(adapter_loads(scenario.machine, scenario.flows).time_s))


def _conflict(scenario: RoutingScenario) -> tuple[str, ...]:
    """Find broken parts that cut the network apart together, though not without any one of them."""
    kept = scenario.machine.cluster.fabric.failed
    for name in kept[:_MOST_REPAIRS]:
        fewer = tuple(other for other in kept if other != name)
        if not _joined(_without(scenario, tuple(set(scenario.machine.cluster.fabric.failed) - set(fewer)))):
            kept = fewer
    return kept


def _repairs(scenario: RoutingScenario) -> tuple[str, ...]:
    """Find the fewest broken parts whose repair gives every flow a path; all of them if that takes too long."""
    failed = scenario.machine.cluster.fabric.failed
    tries = itertools.chain.from_iterable(itertools.combinations(failed, count) for count in range(1, len(failed)))
    for repaired in itertools.islice(tries, _MOST_REPAIRS):
        if _joined(_without(scenario, repaired)):
            return repaired
    kept = tuple(failed)
    for name in failed:  # no smaller set was found in time: leave out what is not needed
        fewer = tuple(other for other in kept if other != name)
        if fewer and _joined(_without(scenario, fewer)):
            kept = fewer
    return kept


def _rate(scenario: RoutingScenario, name: str) -> float | None:
    from hardware.cables import cables

    machine = scenario.machine
    return next(
        (
            cable.bandwidth / 1e9
            for cable in cables(machine.cluster.fabric, machine.node, machine.cluster.nodes)
            if name in (f"{cable.a}-{cable.b}", f"{cable.b}-{cable.a}")
        ),
        None,
    )
