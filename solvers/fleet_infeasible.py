"""Why no fleet serves the requests, and the smallest change that would do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from perfmodel.terms import Array
from solvers.fleet_case import Case, Graph
from solvers.fleet_model import Limit, build, limits
from solvers.fleet_tails import shortest_s

Reason = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Entries of ``why_not`` and of ``relaxation``."""


def unserved(case: Case) -> Reason | None:
    """Explain what forbids some requests on every accelerator: their throughput, or the time of their graph.

    Returns
    -------
    tuple, or None
        None where every stream has somewhere to go.
    """
    why: list[dict[str, Any]] = []
    changes: dict[str, dict[str, Any]] = {}
    asked = case.rate.max(axis=1) > 0
    able = case.able
    for stream in np.flatnonzero(asked & ~able.any(axis=1)):
        one = case.classes[case.stream_class[stream]]
        why.append(_because(f"no accelerator serves class {one!r} within the objectives"))
        for name, now, needed, unit in _nearest(case, int(stream)):
            known = changes.get(name)
            if known is None or known["needed"] < needed:
                changes[name] = _change(name, now, needed, unit)
    if not why:
        for graph in case.graphs:
            if asked[list(graph.calls)].any() and not case.possible[list(graph.calls)].any(axis=1).all():
                for name, now, needed in _late(case, graph):
                    why.append(_because(f"{name}: the fastest accelerators take longer than the limit"))
                    changes[name] = _change(name, now, needed, "s")
    return (why, list(changes.values())) if why else None


def _nearest(case: Case, stream: int) -> list[tuple[str, float, float, str]]:
    """Return the objectives that the nearest kind misses for a stream, else its rate, which would have to be none."""
    one = case.stream_class[stream]
    reached = np.array([objective.reached_s[one] / objective.limit_s for objective in case.objectives])
    if len(reached) and np.isfinite(reached).any():
        kind = int(np.nanargmin(np.where(np.isnan(reached), np.inf, reached).max(axis=0)))
        missed = [
            (objective.name, objective.limit_s, float(objective.reached_s[one, kind]), "s")
            for objective in case.objectives
            if math.isfinite(objective.reached_s[one, kind]) and objective.reached_s[one, kind] > objective.limit_s
        ]
        if missed:
            return missed
    return [(f"demand[{case.streams[stream]}]", float(case.rate[stream].max()), 0.0, "requests/s")]


def _because(reason: str, nearest: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"reason": reason, "candidates": None, "nearest": nearest}


def _change(name: str, now: float, needed: float, unit: str) -> dict[str, Any]:
    return {"constraint": name, "now": now, "needed": needed, "unit": unit}


def _late(case: Case, graph: Graph) -> list[tuple[str, float, float]]:
    if graph.level is None:
        fastest = case.fastest_s(case.able)
        longest = float(graph.longest_s(fastest).max())
        own = [(path, float(sum(fastest[one] for one in path)), limit_s) for path, limit_s in graph.paths]
    else:
        times = shortest_s(case, graph, case.able)
        whole = len(times) - len(graph.paths)
        longest = max(times[:whole])
        own = [(path, time_s, limit_s) for (path, limit_s), time_s in zip(graph.paths, times[whole:], strict=True)]
    found = [(f"latency[{graph.name}]", graph.latency_s, longest)]
    for path, time_s, limit_s in own:
        calls = " > ".join(case.streams[one].removeprefix(f"{graph.name}.") for one in path)
        found.append((f"latency[{graph.name}: {calls}]", limit_s, time_s))
    return [entry for entry in found if entry[2] > entry[1] * (1 + 1e-9)]


def beyond_limits(case: Case, routed: Array | None = None, time_limit_s: float | None = None) -> Reason:
    """Explain which limits do not let the requests be served, and by how little they would have to be raised.

    Notes
    -----
    Each limit is raised alone, the others kept. The one that needs the least in proportion is the relaxation; the
    others that would do alone are named as reasons. Where none does alone, all are raised together by the least sum
    of proportions.
    """
    there = limits(case)
    others: list[dict[str, Any]] = []
    if case.lost and build(replace(case, lost=0), routed=routed).solve(time_limit_s=time_limit_s).objective is not None:
        others.append(_because("headroom.lost_instances of 0 would do too", {"needed": 0}))
    alone: list[tuple[float, Limit, float]] = []
    for limit in there:
        needed = _raised(case, (limit,), routed, time_limit_s)
        if needed is not None:
            alone.append((needed[limit] / max(limit.value, 1.0), limit, needed[limit]))
    if alone:
        alone.sort(key=lambda entry: entry[0])
        _, smallest, excess = alone[0]
        changes = [_change(smallest.name(case), smallest.value, smallest.value + excess, smallest.unit)]
        reason = f"{smallest.name(case)} leaves too little for the requests"
        others += [
            _because(f"raising {limit.name(case)} alone would do too", {"needed": limit.value + excess})
            for _, limit, excess in alone[1:]
        ]
        return [_because(reason, {"needed": smallest.value + excess}), *others], changes
    together = _raised(case, tuple(there), routed, time_limit_s)
    late = [entry for graph in case.graphs for entry in _late(case, graph)] if together is None else []
    if late:
        reason = "the accelerators that are in time on one path are late on another"
        return [_because(reason)], [_change(name, now, needed, "s") for name, now, needed in late]
    if together is None:
        return [_because("no time was left to find which limits conflict")], []
    names = [limit.name(case) for limit in together]
    changes = [
        _change(limit.name(case), limit.value, limit.value + excess, limit.unit)
        for limit, excess in together.items()
        if excess > 0
    ]
    reason = f"{', '.join(names)} together leave too little for the requests; none of them alone"
    return [_because(reason), *others], changes


def _raised(
    case: Case, raised: tuple[Limit, ...], routed: Array | None, time_limit_s: float | None
) -> dict[Limit, float] | None:
    """Return by how much each limit must be exceeded; None if that is not enough."""
    model = build(case, raised=raised, routed=routed)
    found = model.solve(time_limit_s=time_limit_s)
    if found.objective is None:
        return None
    held = model.fleet(found).held(case)
    excess = {}
    for limit in raised:
        taken = (
            held[limit.index].max()
            if limit.kind == "max"
            else (held * np.where(case.site == limit.index, case.power_w, 0.0)[:, None]).sum(axis=0).max()
        )
        excess[limit] = max(float(taken) - limit.value, 0.0)
    return excess


def only_period(case: Case, h: int) -> Case:
    """Return the case of one period alone."""
    return replace(case, rate=case.rate[:, h : h + 1], weight=np.ones(1), hours=(case.hours[h],))
