"""What would do where no deployment answers the requests in time, or none holds the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hardware.faults import Fault
from perfmodel.serving.capacity import weight_bytes
from perfmodel.serving.step import Deployment
from solvers.serve_case import held
from solvers.serve_found import POOL, Found, Searched
from solvers.serve_question import ServeArrivals
from solvers.serve_rank import Place, reasons
from solvers.serve_scenario import ServeScenario
from solvers.serve_search import search
from solvers.serve_space import precisions

ALONE_RPS = 1e-6
"""Requests that do not meet one another [1/s]."""
EASED = 1.5
"""Times what one request alone takes that an objective is eased to, so that some rate is within it [1]."""


def no_layout(scenario: ServeScenario) -> Fault:
    """Return that the weights fit in no layout, with the fewest accelerators that would do."""
    search_, machine, architecture = scenario.question.search, scenario.machine, scenario.architecture
    heads = min(group.attention.heads for group in architecture.layers)
    best: tuple[int, str, int, int] | None = None
    for weights, cache in precisions(search_):
        server = scenario.server(weights, cache)
        tp = np.array([size for size in range(1, 65) if heads % size == 0 and size & (size - 1) == 0])
        pp = np.array([2**power for power in range(8) if 2**power <= architecture.depth])
        tp, pp = (value.ravel() for value in np.meshgrid(tp, pp))
        spread = Deployment(tp, pp, 1, 1)
        defaults = scenario.engine.defaults
        tokens = min(search_.max_num_batched_tokens or (defaults.max_num_batched_tokens,))
        _, running = held(scenario, server, scenario.speculation(0), spread, 1.0, float(tokens))
        for row in np.flatnonzero(running >= 1):
            count = int(tp[row] * pp[row])
            if best is None or count < best[0]:
                best = (count, weights, int(tp[row]), int(pp[row]))
    least = min(
        float(weight_bytes(scenario.server(weights, cache), Deployment(1, 1, 1, 1)))
        for weights, cache in precisions(search_)
    )
    capacity = machine.accelerator.memory.capacity
    message = (
        f"{architecture.name} takes {least / 2**30:,.0f} GiB for its weights, which with the cache of one request "
        f"fit in no layout allowed on {machine.accelerators} accelerators of {capacity / 2**30:,.0f} GiB"
    )
    if best is not None:
        message += f"; {best[0]} would do: tp {best[2]}, pp {best[3]} with {best[1]} weights"
    limited = [name for name in ("tp", "pp", "dp", "ep") if getattr(search_, name)]
    return scenario.source.fault(("search", limited[0]) if limited else ("nodes",), message)


def nearest(scenario: ServeScenario, searched: Searched) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return why nothing meets the objectives, and the smallest changes that would do, each alone.

    Notes
    -----
    The objectives of the candidate whose worst one is least exceeded; the highest rate within them; the fewest nodes.
    """
    relaxation: list[dict[str, Any]] = []
    limits = scenario.question.slo.limits
    for name, time_s in _reached(limits, searched).items():
        relaxation.append({"constraint": f"slo.{name}", "now": limits[name], "needed": time_s, "unit": "s"})
    arrivals = scenario.question.workload.arrivals
    why = reasons(scenario, searched)
    if isinstance(arrivals, ServeArrivals) and arrivals.rate_rps is not None and limits:
        relaxation += _slower(scenario, arrivals)
        if not relaxation:
            # even one alone is not in time
            alone = _reached(limits, search(_at_rate(scenario, arrivals, ALONE_RPS)))
            eased = scenario.question.slo.model_copy(update={name: time_s * EASED for name, time_s in alone.items()})
            question = scenario.question.model_copy(update={"slo": eased})
            relaxation = [
                {"constraint": f"slo.{name}", "now": limits[name], "needed": time_s * EASED, "unit": "s"}
                for name, time_s in alone.items()
            ]
            relaxation += _slower(replace(scenario, question=question), arrivals)[:1]
            reason = "requests come too fast, and even one alone misses objectives: what would do is meant together"
            why.append({"reason": reason, "candidates": searched.candidates, "nearest": None})
    return why, relaxation


def _reached(limits: Mapping[str, float], searched: Searched) -> dict[str, float]:
    """Return the objectives that the nearest candidate misses, with what it reaches [s]."""
    best: tuple[float, Place] | None = None
    for found in searched.found:
        over = np.max([found.times_s[name] / limit for name, limit in limits.items()], axis=0, initial=0.0)
        if len(over) and (best is None or over.min() < best[0]):
            best = float(over.min()), Place(found, int(np.argmin(over)))
    if best is None:
        return {}
    return {name: best[1].time_s(name) for name, limit in limits.items() if best[1].time_s(name) > limit}


def _at_rate(scenario: ServeScenario, arrivals: ServeArrivals, rate: float | None) -> ServeScenario:
    changed = {"arrivals": arrivals.model_copy(update={"rate_rps": rate})}
    workload = scenario.question.workload.model_copy(update=changed)
    return replace(scenario, question=scenario.question.model_copy(update={"workload": workload}))


def _slower(scenario: ServeScenario, arrivals: ServeArrivals) -> list[dict[str, Any]]:
    """Return the highest rate within the objectives, and the nodes that would do; nothing where there is none."""
    assert arrivals.rate_rps is not None
    asked, busiest = _at_rate(scenario, arrivals, None), max(arrivals.profile)
    tables = search(asked).found
    most = max((float(np.max(found.rate, initial=0.0)) for found in tables), default=0.0) / busiest
    if most <= 0:
        return []
    needed = _nodes(asked, tables, arrivals.rate_rps * busiest)
    return [
        {"constraint": "workload.arrivals.rate_rps", "now": arrivals.rate_rps, "needed": most, "unit": "1/s"},
        {"constraint": "nodes", "now": scenario.machine.nodes, "needed": needed, "unit": ""},
    ]


def _nodes(scenario: ServeScenario, tables: list[Found], rate: float) -> int | None:
    """Return the nodes on which replicas of the best instance answer all requests; None where none does alone."""
    each = scenario.machine.node.accelerators.count
    needed = []
    for found in tables:
        able = (found.rate > 0) & (not found.family.disaggregated)
        replicas = found.pools[0][POOL.index("replicas"), able]
        size = found.gpus[able] / replicas
        needed += list(np.ceil(rate / (found.rate[able] / replicas)) * size / each)
    return int(np.ceil(min(needed))) if needed else None
