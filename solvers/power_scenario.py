"""The question how many servers fit below the limits of a facility, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.power.plan(solvers.power_scenario.load_power(source, Path(".")))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from hardware.catalogue import Machine, description, resolve_cluster, resolve_facility
from hardware.facility import Facility, PowerTree, power_tree
from hardware.faults import Fault, InputError, collected
from hardware.yaml_source import Source, did_you_mean, validated
from solvers.power_case import Case, site_of
from solvers.power_draw import Draw, Shared, correlation_of, draw_of, together
from solvers.power_question import Method, PowerQuestion, PowerWorkload

_Path = tuple[str | int, ...]

METHODS: tuple[Method, ...] = ("nameplate", "percentile", "gaussian", "hoeffding", "packing")
SENSE = {"servers": "max", "goodput_requests_per_s": "max", "cost_usd": "min"}
YEAR_H = 8766.0


@dataclass(frozen=True)
class PowerScenario:
    """A checked question about power.

    Parameters
    ----------
    question : PowerQuestion
        As asked.
    facility : Facility
        The tree of limits.
    tree : PowerTree
        The same laid out flat.
    machines : tuple of Machine
        Server of each workload.
    draws : tuple of Draw
        What one server of each workload draws.
    case : Case
        The question as arrays.
    prices_usd_per_hour : tuple of float or None
        Of one server of each workload.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with defaults and hardware written out; reading it again asks the same.
    warnings : tuple of Fault
        What may not be meant as it stands.
    """

    question: PowerQuestion
    facility: Facility
    tree: PowerTree
    machines: tuple[Machine, ...]
    draws: tuple[Draw, ...]
    case: Case
    prices_usd_per_hour: tuple[float | None, ...]
    source: Source
    resolved: dict[str, Any]
    warnings: tuple[Fault, ...]

    @property
    def methods(self) -> tuple[Method, ...]:
        """Rules to decide by."""
        given = self.question.policy.method
        if given is None:
            return METHODS if any(draw.series is not None for draw in self.draws) else METHODS[:-1]
        return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))


def load_power(source: Source, base_dir: FilePath) -> PowerScenario:
    """Check a scenario about power.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    PowerScenario
        The question with every file it names read.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    faults: list[Fault] = []
    question: PowerQuestion | None = None
    facility: Facility | None = None
    known: dict[str, Machine] = {}
    with collected(faults):
        question = validated(PowerQuestion, source)
    data = source.data if isinstance(source.data, dict) else {}
    if isinstance(data.get("facility"), str | dict):
        with collected(faults):
            facility, known = resolve_facility(data["facility"], base_dir, source=source, at=("facility",))
    if question is None or facility is None:
        raise InputError(sorted(set(faults), key=_place))
    machines: list[Machine] = []
    for number, workload in enumerate(question.workloads):
        with collected(faults):
            machines.append(
                resolve_cluster(workload.server, base_dir, 1, source=source, at=("workloads", number, "server"))
            )
    if faults:
        raise InputError(sorted(set(faults), key=_place))
    latency_s = min((actuator.latency for actuator in facility.actuators), default=0.0)
    draws: list[Draw] = []
    warnings: list[Fault] = []
    for number, (workload, machine) in enumerate(zip(question.workloads, machines, strict=True)):
        with collected(faults):
            draw, more = draw_of(workload, machine, source, ("workloads", number), base_dir, latency_s)
            draws.append(draw)
            warnings += more
    tree = power_tree(facility)
    tree = replace(tree, servers=tuple(tuple(known[name].node.name for name in rack) for rack in tree.servers))
    prices = tuple(_price(*pair) for pair in zip(question.workloads, machines, strict=True))
    for path, message in _faults(question, facility, tree, machines, prices):
        faults.append(source.fault(path, message))
    if not faults:
        given = question.policy.correlation
        shared = together(draws, question.policy.risk)
        correlation, fault = correlation_of(draws, shared, given)
        if fault:
            faults.append(source.fault(("policy", "correlation"), fault))
    if faults:
        raise InputError(sorted(set(faults), key=_place))
    case = _case(question, facility, tree, machines, draws, prices, shared, correlation)
    resolved = _resolved(question, facility, machines, draws, prices, base_dir)
    return PowerScenario(
        question, facility, tree, tuple(machines), tuple(draws), case, prices, source, resolved, tuple(warnings)
    )


def _place(fault: Fault) -> tuple[str, int, int]:
    return fault.source, fault.line, fault.column


def _price(workload: PowerWorkload, machine: Machine) -> float | None:
    if workload.price is not None:
        return workload.price
    node, accelerator = machine.node, machine.accelerator
    if node.price is not None and node.price.on_demand is not None:
        return node.price.on_demand
    if accelerator.price is not None and accelerator.price.on_demand is not None:
        return accelerator.price.on_demand * node.accelerators.count
    return None


def _faults(
    question: PowerQuestion,
    facility: Facility,
    tree: PowerTree,
    machines: list[Machine],
    prices: tuple[float | None, ...],
) -> list[tuple[_Path, str]]:
    """Return what is wrong, as (path, message)."""
    found: list[tuple[_Path, str]] = []
    workloads, policy = question.workloads, question.policy
    names = [workload.name for workload in workloads]
    for number, name in enumerate(names):
        if name in names[:number]:
            found.append((("workloads", number, "name"), f"stands twice; choose another [got {name!r}]"))
    shared = [workload.share is not None for workload in workloads]
    if any(shared) and not all(shared):
        found.append((("workloads", shared.index(False), "share"), "missing; give shares of all workloads or of none"))
    elif all(shared) and abs(sum(workload.share or 0.0 for workload in workloads) - 1.0) > 1e-6:
        total = sum(workload.share or 0.0 for workload in workloads)
        found.append((("workloads", 0, "share"), f"shares should add up to 1 [got {total:g}]"))
    for number, (workload, machine) in enumerate(zip(workloads, machines, strict=True)):
        at: _Path = ("workloads", number)
        if workload.max_servers is not None and workload.max_servers < workload.min_servers:
            message = f"{workload.max_servers} is below min_servers, {workload.min_servers}"
            found.append(((*at, "max_servers"), message))
        cap, idle = workload.failover_power, machine.node.power.idle if machine.node.power else None
        if cap is not None and idle is not None and 0 < cap < idle:
            message = f"{cap:g} W is below the {idle:g} W that the server draws idle; 0 stops it"
            found.append(((*at, "failover_power"), message))
        if question.objective == "goodput_requests_per_s" and workload.goodput_requests_per_s is None:
            found.append(((*at, "goodput_requests_per_s"), "missing; the objective is the sum of it"))
        if question.objective == "cost_usd" and prices[number] is None:
            found.append(((*at, "price"), "missing; the catalogue has none, and the objective is cost"))
        if not any(_fits(servers, machine) for servers in _racks(tree)):
            kinds = sorted({name for servers in _racks(tree) for name in servers})
            message = f"no rack takes this server; {did_you_mean(machine.node.name, kinds)} [got {machine.node.name!r}]"
            found.append(((*at, "server"), message))
    feeds = [node for node in range(len(tree.name)) if tree.failover_w[node] < tree.limit_w[node]]
    if policy.failover == "n+1":
        if all(np.isinf(tree.ride_through_s)):
            found.append((("policy", "failover"), "no node of the facility has feeds that could be lost"))
        ride_s = min((tree.ride_through_s[node] for node in feeds), default=np.inf)
        fast = min((actuator.latency for actuator in facility.actuators), default=np.inf)
        for number, workload in enumerate(workloads):
            if workload.failover_power is not None and fast > ride_s:
                message = f"no actuator acts within the {ride_s:g} s that feeds ride through"
                found.append((("workloads", number, "failover_power"), message))
    locks = [one for one in facility.actuators if one.trigger is None and one.clock is not None]
    if policy.capping == "two-threshold" and not locks:
        found.append((("policy", "capping"), "the facility has no actuator that sets clocks without a trigger"))
    found += [(("plan", *path), message) for path, message in _cap_faults(question, facility)]
    found += [(("facility",), message) for message in _power_cap_faults(facility, machines)]
    given = policy.correlation
    if isinstance(given, tuple) and (len(given) != len(names) or any(len(row) != len(names) for row in given)):
        message = f"should have {len(names)} rows of {len(names)}, one for each workload"
        found.append((("policy", "correlation"), message))
    if policy.risk == 0 and {"gaussian", "hoeffding"} & set(_given_methods(policy.method)):
        found.append((("policy", "risk"), "should be above 0 for gaussian and hoeffding"))
    if question.objective == "cost_usd" and not any(workload.min_servers for workload in workloads):
        found.append((("workloads", 0, "min_servers"), "missing; without servers that are needed the least cost is 0"))
    return found


def _cap_faults(question: PowerQuestion, facility: Facility) -> list[tuple[_Path, str]]:
    """Return what is wrong with the caps of a plan."""
    plan, found = question.plan, list[tuple[_Path, str]]()
    if plan is None or (plan.thresholds is None and plan.caps is None):
        return found
    if plan.thresholds is None or plan.caps is None:
        missing = "thresholds" if plan.thresholds is None else "caps"
        return [((missing,), "missing; thresholds and caps go together")]
    if not plan.thresholds or list(plan.thresholds) != sorted(plan.thresholds):
        found.append((("thresholds",), "should ascend, and hold one at least"))
    names = [workload.name for workload in question.workloads]
    found += [
        (("caps", name), f"no such workload; {did_you_mean(name, names)}") for name in plan.caps if name not in names
    ]
    spans = [one.clock for one in facility.actuators if one.trigger is None and one.clock is not None]
    for name in names:
        caps = plan.caps.get(name)
        if caps is None or len(caps.clock_hz) != len(plan.thresholds):
            found.append((("caps",), f"should hold a clock of {name} for each threshold"))
            continue
        for span in spans[:1]:
            outside = [clock for clock in caps.clock_hz if not span.lowest * 0.9999 <= clock <= span.highest * 1.0001]
            if outside:
                reach = f"{span.lowest / 1e6:g} to {span.highest / 1e6:g} MHz"
                message = f"the actuator sets {reach} [got {outside[0] / 1e6:g} MHz]"
                found.append((("caps", name, "clock_hz"), message))
    return found


def _power_cap_faults(facility: Facility, machines: list[Machine]) -> list[str]:
    """Return which actuators limit the power of accelerators to less than they draw idle."""
    idle = [(one.accelerator.name, one.accelerator.power.idle or 0.0) for one in machines]
    return [
        f"{actuator.name} caps accelerators at {actuator.power.lowest:g} W, below the {watts:g} W of an idle {name}"
        for actuator in facility.actuators
        if actuator.power is not None
        for name, watts in dict(idle).items()
        if actuator.power.lowest < watts
    ]


def _given_methods(given: Any) -> tuple[str, ...]:
    return METHODS if given is None else (given,) if isinstance(given, str) else given


def _racks(tree: PowerTree) -> list[tuple[str, ...]]:
    return [tree.servers[rack] for rack in tree.racks]


def _fits(servers: tuple[str, ...], machine: Machine) -> bool:
    """Tell whether racks that take these servers take this one."""
    return not servers or machine.node.name in servers


def _case(
    question: PowerQuestion,
    facility: Facility,
    tree: PowerTree,
    machines: list[Machine],
    draws: list[Draw],
    prices: tuple[float | None, ...],
    shared: Shared,
    correlation: Any,
) -> Case:
    workloads, policy = question.workloads, question.policy
    fits = np.zeros((len(tree.name), len(workloads)), bool)
    for rack in tree.racks:
        for number, machine in enumerate(machines):
            fits[rack, number] = _fits(tree.servers[rack], machine)
    site = site_of(tree, fits)
    room = int(site.slots.sum())
    value = np.ones(len(workloads))
    if question.objective == "goodput_requests_per_s":
        value = np.array([workload.goodput_requests_per_s or 0.0 for workload in workloads])
    if question.objective == "cost_usd":
        hourly = [price or 0.0 for price in prices]
        energy = (facility.energy_price or 0.0) * (facility.pue or 1.0) / 1e3
        value = YEAR_H * (np.array(hourly) + shared.mean_w.mean(axis=0) * energy)
    share = np.array([workload.share or 0.0 for workload in workloads])
    return Case(
        workloads=tuple(workload.name for workload in workloads),
        site=site,
        max_w=np.array([draw.max_w for draw in draws]),
        idle_w=np.array([draw.idle_w for draw in draws]),
        mean_w=shared.mean_w,
        sigma_w=shared.sigma_w,
        profile_w=shared.profile_w,
        quantile_w=shared.quantile_w,
        typical_w=shared.typical_w,
        noise_w=shared.noise_w,
        correlation=correlation,
        failover_w=np.array([np.inf if one.failover_power is None else one.failover_power for one in workloads]),
        share=share if share.any() else None,
        least=np.array([workload.min_servers for workload in workloads]),
        most=np.array([room if workload.max_servers is None else workload.max_servers for workload in workloads]),
        value=value,
        sense=SENSE[question.objective],
        risk=policy.risk,
        failover=policy.failover == "n+1",
    )


def _resolved(
    question: PowerQuestion,
    facility: Facility,
    machines: list[Machine],
    draws: list[Draw],
    prices: tuple[float | None, ...],
    base_dir: FilePath,
) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    tree = facility.model_dump(mode="json", exclude_none=True, exclude={"provenance", "notes", "aliases"})
    written["facility"] = tree
    for one, machine, draw, price in zip(written["workloads"], machines, draws, prices, strict=True):
        if not isinstance(one["server"], str) or "/" in one["server"] or one["server"].endswith((".yaml", ".yml")):
            one["server"] = description(machine)["node"]
        if "power" in one:
            one["power"] |= {"max": draw.max_w, "idle": draw.idle_w}
        if price is not None:
            one["price"] = price
        for key in ("trace", "job"):
            if key in one:
                one[key] = str((base_dir / one[key]).resolve())
    return written


def power_schema() -> dict[str, Any]:
    """Return the JSON Schema of a power scenario."""
    return PowerQuestion.model_json_schema()
