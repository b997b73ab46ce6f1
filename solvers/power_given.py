"""A plan that a person gives: how many servers of each workload, and where they stand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hardware.faults import Fault, InputError
from hardware.yaml_source import did_you_mean, nearest
from solvers.power_answer import exceeded, missing
from solvers.power_case import Case, Integers
from solvers.power_names import unfolded
from solvers.power_place import allowed, place, towards, trimmed
from solvers.power_relaxed import relax
from solvers.power_rules import Rule, rules_of
from solvers.power_scenario import PowerScenario

_LIMIT_S = 20.0


@dataclass(frozen=True)
class Given:
    """A plan as asked for.

    Parameters
    ----------
    method : str
        Rule it is held against.
    rules : tuple of Rule
        The same as watts.
    placed : array of int, shape (racks, workloads), or None
        Servers in each rack; None if limits are exceeded.
    why, relaxation : list of dict
        Which limits, and what would do.
    """

    method: str
    rules: tuple[Rule, ...]
    placed: Integers | None
    why: list[dict[str, Any]] = field(default_factory=list)
    relaxation: list[dict[str, Any]] = field(default_factory=list)


def given_placement(scenario: PowerScenario) -> Given:
    """Return the scenario's plan, placed where it says, or where it fits.

    It is held against the rule it names, else against those of the policy, the first that allows it; if none does, the
    one that lacks least is told.

    Raises
    ------
    InputError
        It names what there is not, or more servers than racks have room for.
    ValueError
        There is none.
    """
    asked = scenario.question.plan
    if asked is None:
        raise ValueError("the scenario gives no plan")
    placed = _by_node(scenario) if asked.by_node else None
    goal = _counts(scenario) if placed is None else placed.sum(axis=0)
    tried = []
    for method in scenario.methods if asked.method is None else (asked.method,):
        given = _by_rule(scenario.case, method, placed, goal)
        if given.placed is not None:
            return given
        tried.append(given)
    return min(tried, key=lambda one: sum(change["needed"] - change["now"] for change in one.relaxation))


def _by_rule(case: Case, method: str, placed: Integers | None, goal: Integers) -> Given:
    """Hold a placement, or numbers of servers that are to be placed, against one rule."""
    rules = rules_of(case, method)
    if placed is not None:
        if allowed(case, rules, placed).all():
            return Given(method, rules, placed)
        why, relaxation = exceeded(case, placed, rules)
        return Given(method, rules, None, why, relaxation)
    until = time.perf_counter() + _LIMIT_S
    relaxed = relax(case, rules, until, exact=goal)
    tried = None if relaxed is None else towards(case, rules, place(case, rules, relaxed), goal)
    if tried is None:
        why, relaxation = missing(case, rules, until, goal)
        return Given(method, rules, None, why, relaxation)
    return Given(method, rules, trimmed(tried, goal))


def _counts(scenario: PowerScenario) -> Integers:
    """Return the servers of each workload that the plan asks for."""
    asked, case = scenario.question.plan, scenario.case
    assert asked is not None
    if asked.workloads is not None:
        unknown = [name for name in asked.workloads if name not in case.workloads]
        if unknown:
            message = f"no such workload; {did_you_mean(unknown[0], case.workloads)}"
            raise InputError([scenario.source.fault(("plan", "workloads", unknown[0]), message)])
        return np.array([asked.workloads.get(name, 0) for name in case.workloads])
    if asked.servers is None:
        message = "missing; give servers in all, workloads or by_node"
        raise InputError([scenario.source.fault(("plan", "servers"), message)])
    if case.share is None and len(case.workloads) > 1:
        message = "without shares it is open whose servers these are; give workloads or by_node"
        raise InputError([scenario.source.fault(("plan", "servers"), message)])
    return np.array([asked.servers]) if case.share is None else case.apportioned(asked.servers)


def _by_node(scenario: PowerScenario) -> Integers:
    asked, case = scenario.question.plan, scenario.case
    assert asked is not None
    site = case.site
    racks = {site.name[node]: number for number, node in enumerate(site.racks.tolist())}
    placed = np.zeros((len(racks), len(case.workloads)), np.int64)
    faults: list[Fault] = []
    for name, servers in asked.by_node.items():
        at = ("plan", "by_node", name)
        for rack in unfolded(name):
            if rack not in racks:
                near = nearest(rack, racks)
                hint = f' (did you mean "{near}"?)' if near else ""
                faults.append(scenario.source.fault(at, f"there are {len(racks)} racks, and no such one{hint}"))
                continue
            for workload, count in servers.items():
                if workload not in case.workloads:
                    message = f"no such workload; {did_you_mean(workload, case.workloads)}"
                    faults.append(scenario.source.fault((*at, workload), message))
                    continue
                kind, node = case.workloads.index(workload), site.racks[racks[rack]]
                placed[racks[rack], kind] += count
                if count and not site.fits[node, kind]:
                    message = f"not all of these racks take servers of {workload}"
                    faults.append(scenario.source.fault((*at, workload), message))
            room = int(site.slots[site.racks[racks[rack]]])
            if placed[racks[rack]].sum() > room:
                message = f"has room for {room} servers in a rack [got {int(placed[racks[rack]].sum())}]"
                faults.append(scenario.source.fault(at, message))
    total = asked.servers
    if not faults and total is not None and total != placed.sum():
        message = f"by_node holds {int(placed.sum())} servers [got {total}]"
        faults.append(scenario.source.fault(("plan", "servers"), message))
    if faults:
        raise InputError(dict.fromkeys(faults))
    return placed
