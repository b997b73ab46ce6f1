"""The order of nodes that a step's communication ends soonest with, and how far from the best it may be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel import provenance
from perfmodel.calibration import training_calibration
from perfmodel.intervals import gain_interval, step_interval
from perfmodel.kernels.model import Z90
from perfmodel.placement import (
    Network,
    comm_time_s,
    network,
    phase_times,
    slowest,
    transfer_time_sum_s,
)
from perfmodel.placement_step import network_rate, slowed_step
from perfmodel.terms import Array
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.placement_bound import Thresholds, joint_bound, phase_bounds, reachable_s, sum_bound
from solvers.placement_exact import LARGEST, Exact
from solvers.placement_partition import relaxation, why_partitioned
from solvers.placement_scenario import PlacementScenario
from solvers.placement_search import Search
from solvers.result import Objective, Result

Integers = NDArray[np.int64]

TIME_LIMIT_S = 10.0
"""How long to search, where nothing else is said [s]."""
_FIRST, _BOUNDS, _ORDERS = 0.2, 0.4, 0.85
"""Shares of the time after which first orders, bounds of single phases and the search for orders end."""
_SMALL_ROUNDS = 60
_COUNTED = 10**15
"""Orders are counted up to here; beyond, their number says nothing."""


def plan(
    scenario: PlacementScenario,
    *,
    time_limit_s: float | None = None,
    gap: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Find the order of nodes with the least communication time, bound it, and predict it.

    Parameters
    ----------
    scenario : PlacementScenario
        The question.
    time_limit_s : float
        Wall time of the search; `TIME_LIMIT_S` if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.
    progress : callable
        Called with the share of the time that is used.

    Returns
    -------
    Result
        ``optimal``: the order meets the bound, or few nodes were all tried; ``feasible``: it meets `gap`;
        ``time_limit``: with the bound and gap reached; ``infeasible``: no order gives every message a path.
    """
    began = time.perf_counter()
    limit = TIME_LIMIT_S if time_limit_s is None else time_limit_s
    wanted, net = scenario.wanted, scenario.net
    report = progress or (lambda share: None)
    if not len(wanted.phases):
        return _answer(scenario, np.arange(wanted.units), 0.0, "optimal", began)
    check = Thresholds(wanted, net)
    reason = check.impossible(reachable_s(wanted, net)) if net.sending.any() else "rates of a node"
    if reason is not None:
        return _infeasible(scenario, reason, began)
    search = _search(scenario)
    bound, covered = _searched(scenario, search, check, began, limit, gap or 0.0, report)
    report(1.0)
    if not math.isfinite(search.value):
        if covered:
            return _infeasible(scenario, "all orders", began)
        return Result(
            status="time_limit",
            objective=_objective(scenario, None),
            best_bound=bound,
            solve_time_s=time.perf_counter() - began,
            **_common(scenario),
        )
    bound = min(bound, search.value)
    reached = relative_gap(search.value, bound)
    status = "optimal" if reached <= OPTIMAL_GAP else "feasible" if gap and reached <= gap else "time_limit"
    return _answer(scenario, search.order[: wanted.units], bound, status, began)


def _search(scenario: PlacementScenario) -> Search:
    cost = _cost(scenario)
    order = np.arange(len(scenario.net.names))
    if scenario.given is not None and float(cost(scenario.given)) < float(cost(order[: scenario.wanted.units])):
        order = np.concatenate([scenario.given, np.setdiff1d(order, scenario.given)])
    return Search(scenario.wanted, scenario.net, cost, _by_sum(scenario), order)


def _by_sum(scenario: PlacementScenario) -> bool:
    return scenario.question.objective == "transfer_time_sum_s"


def _cost(scenario: PlacementScenario) -> Callable[[Integers], Array]:
    measure = transfer_time_sum_s if _by_sum(scenario) else comm_time_s

    def cost(order: Integers) -> Array:
        return measure(scenario.wanted, scenario.net, order)

    return cost


def _searched(
    scenario: PlacementScenario,
    search: Search,
    check: Thresholds,
    began: float,
    limit_s: float,
    gap: float,
    report: Callable[[float], None],
) -> tuple[float, bool]:
    """Search and bound in turn; return the bound and whether every order was covered."""
    wanted, net = scenario.wanted, scenario.net
    small = len(net.names) <= LARGEST
    bound = 0.0

    def until(share: float) -> float:
        return began + share * limit_s

    search.run(until(_FIRST), lambda: bound, gap, _SMALL_ROUNDS if small else 0)
    report(_FIRST)
    floor = np.zeros(1)
    if _by_sum(scenario):
        bound = sum_bound(wanted, net)
    else:
        # a first order without a path bounds nothing from above
        ceiling = phase_times(wanted, net, search.order[: wanted.units])
        ceiling = np.where(np.isfinite(ceiling), ceiling, reachable_s(wanted, net))
        floor, _ = phase_bounds(check, ceiling, until(_BOUNDS))
        bound = float(floor.sum())
    report(_BOUNDS)

    def met() -> bool:
        return search.value <= bound / (1 - gap) * (1 + 1e-12)

    if small and not met():
        exact = Exact(search, floor, until(1.0))
        if exact.run():
            return search.value, True
    search.run(until(_ORDERS), lambda: bound, gap)
    report(_ORDERS)
    if not _by_sum(scenario) and len(floor) > 1 and math.isfinite(search.value) and not met():
        bound = max(bound, joint_bound(check, floor, lambda: search.value, until(1.0), max(gap, OPTIMAL_GAP / 2)))
    search.run(until(1.0), lambda: bound, gap)
    return bound, False


def predict(scenario: PlacementScenario) -> Result:
    """Cost the order that a scenario gives.

    Raises
    ------
    ValueError
        Where it gives none.
    """
    if scenario.given is None:
        raise ValueError("the scenario has no plan to predict")
    began = time.perf_counter()
    if not math.isfinite(float(_cost(scenario)(scenario.given))):
        return _infeasible(scenario, "this order", began, scenario.given)
    return _answer(scenario, scenario.given, None, "feasible", began)


def _answer(scenario: PlacementScenario, order: Integers, bound: float | None, status: Any, began: float) -> Result:
    described = described_order(scenario, order)
    objective = _objective(scenario, described[scenario.question.objective])
    assert objective.value is not None
    return Result(
        status=status,
        objective=objective,
        best_bound=bound,
        gap=None if bound is None else relative_gap(objective.value, bound),
        solve_time_s=time.perf_counter() - began,
        plan=plan_dict(scenario, order),
        prediction=described,
        binding=_binding(scenario, order),
        baseline=_baseline(scenario, described) if bound is not None else None,
        **_common(scenario),
    )


def plan_dict(scenario: PlacementScenario, order: Integers) -> dict[str, Any]:
    """Return an order as a plan JSON holds it: the accelerator of each rank, and the nodes by name."""
    per_node = scenario.per_node
    accelerators = order[:, None] * per_node + np.arange(per_node)
    return {"order": accelerators.reshape(-1).tolist(), "nodes": [scenario.net.names[node] for node in order]}


def described_order(scenario: PlacementScenario, order: Integers) -> dict[str, Any]:
    """Return the prediction of an order, beside that of the default: ranks on nodes as the matrix lists them.

    Notes
    -----
    The interval of a time is that of communication in measured training steps, of a gain that of the ratio of two
    measured runs of one job (`perfmodel.intervals`), in which what both predictions miss cancels.
    """
    wanted, net = scenario.wanted, scenario.net
    default = np.arange(wanted.units)
    spread = math.exp(Z90 * float(training_calibration()["spreads"]["communication"]))
    described: dict[str, Any] = {}
    values = [float(comm_time_s(wanted, net, one)) for one in (order, default)]
    for name, value in zip(("comm_time_s", "default_comm_time_s"), values, strict=True):
        described |= {name: value, f"{name}_p10": value / spread, f"{name}_p90": value * spread}
    described["comm_time_saved_s"] = values[1] - values[0]
    described |= _gain("gain", values[1], values[0])
    described["transfer_time_sum_s"] = float(transfer_time_sum_s(wanted, net, order))
    described["default_transfer_time_sum_s"] = float(transfer_time_sum_s(wanted, net, default))
    described |= _steps(scenario, order, default)
    between = float(wanted.sent_bytes.sum())
    described["energy_j"] = None
    described["between_nodes_bytes"] = between
    described["inside_nodes_bytes"] = sum(float(one.sent_bytes.sum()) for one in scenario.traffic.phases) - between
    for name, one in (("phase_times", order), ("default_phase_times", default)):
        times = phase_times(wanted, net, one).tolist()
        described[name] = {f"{phase.replace(' ', '_')}_s": t for phase, t in zip(wanted.phases, times, strict=True)}
    return described


def _gain(name: str, before: float, after: float) -> dict[str, float]:
    gain = before / after if after else 1.0
    low, high = gain_interval()
    # two equal orders are the same run: their ratio is one, whatever a prediction misses
    same = before == after
    return {name: gain, f"{name}_p10": gain if same else gain * low, f"{name}_p90": gain if same else gain * high}


def _steps(scenario: PlacementScenario, order: Integers, default: Integers) -> dict[str, Any]:
    """Return the time of the training step whose traffic it is, in both orders; nothing where there is none."""
    train, wanted = scenario.train, scenario.wanted
    if train is None or train.plan is None or not len(wanted.phases):
        return {}
    rate = network_rate(train.job)
    even = network(scenario.net.names, np.full((len(scenario.net.names),) * 2, rate))
    found: dict[str, Any] = {}
    values = []
    for name, one in (("step_time_s", order), ("default_step_time_s", default)):
        reference, times = (_by_phase(scenario, net, one) for net in (even, scenario.net))
        if not all(map(math.isfinite, times.values())):
            return {}
        step = slowed_step(train.job, train.plan, times, reference)
        low, high = (float(factor) for factor in step_interval(train.job, step))
        value = float(step.seconds)
        values.append(value)
        found |= {name: value, f"{name}_p10": value * low, f"{name}_p90": value * high}
    return found | _gain("step_gain", values[1], values[0])


def _by_phase(scenario: PlacementScenario, net: Network, order: Integers) -> dict[str, float]:
    times = phase_times(scenario.wanted, net, order).tolist()
    return dict(zip(scenario.wanted.phases, times, strict=True))


def _binding(scenario: PlacementScenario, order: Integers) -> list[dict[str, Any]]:
    """Return what each phase waits for, and what a faster link there would save."""
    entries = []
    for one in slowest(scenario.wanted, scenario.net, order):
        sender, receiver = (None if end is None else scenario.net.names[end] for end in (one.sender, one.receiver))
        where = (
            f"{sender} -> {receiver}"
            if sender and receiver
            else f"all {sender} sends"
            if sender
            else f"all {receiver} receives"
        )
        price = -one.seconds / one.rate * 1e9 if one.alone else 0.0
        entries.append(
            {
                "constraint": f"{one.phase}: {where}",
                "slack": 0.0,
                "shadow_price": price,
                "unit": "s",
                "shadow_price_unit": "s per GB/s",
                "rate_bytes_per_s": one.rate,
            }
        )
    return entries


def _baseline(scenario: PlacementScenario, best: dict[str, Any]) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.given is None:
        return None
    described = described_order(scenario, scenario.given)
    if not math.isfinite(described["comm_time_s"]):
        return None
    found = _gain("gain", described["comm_time_s"], best["comm_time_s"])
    return {"plan": plan_dict(scenario, scenario.given), "prediction": described, **found}


def _objective(scenario: PlacementScenario, value: float | None) -> Objective:
    return Objective(scenario.question.objective, value, "s", "min")


def _common(scenario: PlacementScenario) -> dict[str, Any]:
    count = math.perm(len(scenario.net.names), scenario.wanted.units)
    found: dict[str, Any] = {"kind": "placement", "candidates": count if count <= _COUNTED else None}
    if scenario.train is not None:
        rests = provenance.provenance(scenario.train.job)
    else:
        try:
            rests = {"version": version("perfmodel")}
        except PackageNotFoundError:
            rests = {"version": "not installed"}
        rests["calibration"] = [f"training: {training_calibration()['evidence']}"]
    return found | {"scenario": scenario.resolved, "provenance": rests}


def _infeasible(scenario: PlacementScenario, reason: str, began: float, order: Integers | None = None) -> Result:
    """Name the cut, and the smallest change that would do."""
    return Result(
        status="infeasible",
        objective=_objective(scenario, None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": why_partitioned(scenario, reason, order), "candidates": None, "nearest": None}],
        relaxation=relaxation(scenario, order),
        **_common(scenario),
    )
