"""Instances of several layouts and on several kinds of accelerators at once: a small integer programme.

A unit is an instance of one layout, on one kind, of one phase, and what it sustains within the objectives, r. With n
of each, x requests answered by instances that do everything and y by pools:

    minimise   sum c n                        (accelerators, or dollars)
    subject to x <= sum r n (both),  y <= sum r n (prompts),  y <= sum r n (tokens),  x + y = R
               sum g n <= accelerators of each kind
               y bytes <= sum g w n           of prompts, and of tokens: links w of an accelerator

Requests are dealt out in proportion to r, so that every instance is as busy as its objectives allow, or less. The time
from pool to pool is that over the slowest links, with a step as long as the objective of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hardware.topology import levels
from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.kv_transfer import way_out
from perfmodel.serving.latency import handoff_s
from solvers.backend import OPTIMAL_GAP, Solution, solve
from solvers.serve_found import POOL, Family, Searched
from solvers.serve_pairs import Known, side
from solvers.serve_question import ServeArrivals
from solvers.serve_scenario import ServeScenario
from solvers.serve_search import search
from solvers.serve_space import precisions

NEARLY = 1.0 - 1e-6
"""Share of what a unit sustains within its objectives that is counted on."""

HEADROOM = 0.9
"""The same of a phase without objectives of its own."""


@dataclass(frozen=True)
class Unit:
    """An instance that may be rented any number of times.

    Parameters
    ----------
    kind : int
        Which cluster of the scenario it stands in.
    phase : str
        ``both``, ``prefill`` or ``decode``.
    precision_weights, precision_kv : str
        Types.
    pool : dict
        Layout and limits, by public names; one replica.
    gpus : int
        Accelerators.
    rate : float
        Requests within the objectives [1/s].
    cost : float
        What is minimised [accelerators or USD/h].
    """

    kind: int
    phase: str
    precision_weights: str
    precision_kv: str
    pool: dict[str, int]
    gpus: int
    rate: float
    cost: float


@dataclass(frozen=True)
class Mix:
    """A choice of units.

    Parameters
    ----------
    counts : list of (Unit, int)
        How many of each.
    apart : float
        Share of the requests that pools answer.
    cost, bound : float
        What is minimised, and what no choice can beat.
    """

    counts: list[tuple[Unit, int]]
    apart: float
    cost: float
    bound: float


def sustained(scenario: ServeScenario, kind: int, known: Known, tightened: Mapping[str, float]) -> list[Unit]:
    """Return what instances on one kind sustain: the best limits of every layout and phase."""
    arrivals = scenario.question.workload.arrivals
    assert isinstance(arrivals, ServeArrivals)
    per_gpu = scenario.usd_per_hour(1) if scenario.question.objective.startswith("cost") else 1.0
    assert per_gpu is not None
    workload = scenario.question.workload.model_copy(
        update={"arrivals": arrivals.model_copy(update={"rate_rps": None})}
    )
    limits = scenario.question.slo.limits
    shorter = {name: limits[name] * share for name, share in tightened.items() if name in limits}
    slo = scenario.question.slo.model_copy(update=shorter)
    question = scenario.question.model_copy(update={"workload": workload, "slo": slo})
    best: dict[tuple[Any, ...], Unit] = {}

    names = tuple(scenario.question.slo.limits)

    def take(phase: str, family: Family, columns: Any, rates: Any, gpus: Any) -> None:
        kinds = {"both": ("t", "e"), "prefill": ("ttft",), "decode": ("tpot",)}[phase]
        share = NEARLY if any(name.startswith(kinds) for name in names) else HEADROOM
        for row in range(len(rates)):
            pool = {name: int(value) for name, value in zip(POOL, columns[:, row], strict=True)}
            replicas = pool.pop("replicas")
            counted = share * tightened.get(phase, 1.0)
            rate, size = float(rates[row]) / replicas * counted, int(gpus[row]) // replicas
            key = (phase, family.server.precision_weights, family.server.precision_kv, *list(pool.values())[:4])
            if rate > 0 and (key not in best or best[key].rate < rate):
                types = (family.server.precision_weights, family.server.precision_kv)
                best[key] = Unit(kind, phase, *types, pool, size, rate, size * per_gpu)

    if False in scenario.question.search.disaggregated:
        alone = question.model_copy(update={"search": question.search.model_copy(update={"disaggregated": (False,)})})
        for found in search(replace(scenario, question=alone), known=known).found:
            take("both", found.family, found.pools[0], found.rate, found.gpus)
    if True in scenario.question.search.disaggregated:
        one = question.search.model_copy(update={"replicas": (1,)})
        apart = replace(scenario, question=_less(scenario, question).model_copy(update={"search": one}))
        for family in _families(apart):
            for phase in ("prompts", "tokens"):
                found_side = side(apart, family, Searched(), phase, 0.0, known)
                if found_side is None:
                    continue
                spread, unit = found_side.deployment, found_side.unit
                columns = [np.asarray(getattr(spread, name))[unit] for name in ("tp", "pp", "dp", "ep")]
                columns += [found_side.replicas, *(limit[unit] for limit in found_side.limit)]
                name = "prefill" if phase == "prompts" else "decode"
                take(name, family, np.stack(columns), found_side.rate, found_side.gpus)
    return list(_undominated(best.values()))


def _families(scenario: ServeScenario) -> Iterator[Family]:
    for weights, cache in precisions(scenario.question.search):
        yield Family(scenario.server(weights, cache), scenario.speculation(0), True)


def _less(scenario: ServeScenario, question: Any) -> Any:
    """Return the question with objectives of the first token less what passes from pool to pool."""
    weights, cache = next(iter(precisions(question.search)))
    server = scenario.server(weights, cache)
    limits = question.slo.limits
    step_s = min((limit for name, limit in limits.items() if name.startswith("tpot")), default=0.1)
    size = kv_bytes_per_token(server.architecture, server.cache_bytes) * scenario.demand.prompt_tokens
    passing = float(size) / min(link_rate(one) for one in scenario.kinds) + handoff_s(server) + step_s
    shorter = {name: max(limit - passing, 1e-9) for name, limit in limits.items() if name.startswith("ttft")}
    return question.model_copy(update={"slo": question.slo.model_copy(update=shorter)})


def link_rate(scenario: ServeScenario) -> float:
    """Return the rate of an accelerator's way out of its instance [bytes/s]."""
    found = levels(scenario.machine)
    return way_out(found[-1], scenario.machine.node, scenario.engine)[0] if found else float("inf")


def _undominated(units: Any) -> Iterator[Unit]:
    """Yield the units that no other of the same kind, phase and types beats in both size and rate."""
    known = list(units)
    for one in known:
        if not any(
            (other.phase, other.precision_kv) == (one.phase, one.precision_kv)
            and (other.gpus, -other.rate) < (one.gpus, -one.rate)
            and other.gpus <= one.gpus
            and other.rate >= one.rate
            for other in known
        ):
            yield one


def mixed(
    scenario: ServeScenario,
    tables: Sequence[Known],
    tightened: Mapping[str, float],
    *,
    time_limit_s: float = 10.0,
    gap: float = OPTIMAL_GAP,
) -> Mix | None:
    """Return the cheapest choice of units that answers all requests; None where there is none.

    Parameters
    ----------
    tables : sequence of dict
        Instances that are tabulated already, by kind; takes those that are not.
    tightened : mapping of str to float
        Share of an objective that units are within, and of what units of a phase sustain that is counted on; 1 of those
        that are not named [1].
    """
    import pulp

    assert scenario.rate is not None
    units = [
        unit
        for number, kind in enumerate(scenario.kinds)
        for unit in sustained(kind, number, tables[number], tightened)
    ]
    problem = pulp.LpProblem("mix", pulp.LpMinimize)
    counts = [
        problem.add_variable(
            f"n{number}", 0, scenario.kinds[unit.kind].machine.accelerators // unit.gpus, cat="Integer"
        )
        for number, unit in enumerate(units)
    ]
    caches = sorted({unit.precision_kv for unit in units if unit.phase != "both"})
    together = problem.add_variable("together", 0, 1)
    apart = {cache: problem.add_variable(f"apart_{cache}", 0, 1) for cache in caches}
    problem += pulp.lpSum(unit.cost * count for unit, count in zip(units, counts, strict=True))
    problem += together + pulp.lpSum(apart.values()) == 1, "all requests"

    def able(phase: str, cache: str | None, weight: Any) -> Any:
        return pulp.lpSum(
            weight(unit) * count
            for unit, count in zip(units, counts, strict=True)
            if unit.phase == phase and cache in (None, unit.precision_kv)
        )

    rate = scenario.rate
    problem += together <= able("both", None, lambda unit: unit.rate / rate), "both"
    demand = scenario.demand
    for cache, share in apart.items():
        server = scenario.server(scenario.question.search.precision_weights[0], cache)
        size = float(kv_bytes_per_token(server.architecture, server.cache_bytes)) * demand.prompt_tokens
        for phase in ("prefill", "decode"):
            problem += share <= able(phase, cache, lambda unit: unit.rate / rate), f"{phase} {cache}"

            def links(unit: Unit, size: float = size) -> float:
                return unit.gpus * min(link_rate(scenario.kinds[unit.kind]) / (size * rate), 1e6)

            problem += share <= able(phase, cache, links), f"links {phase} {cache}"
    for number, kind in enumerate(scenario.kinds):
        taken = [unit.gpus * count for unit, count in zip(units, counts, strict=True) if unit.kind == number]
        problem += pulp.lpSum(taken) <= kind.machine.accelerators, f"accelerators {number}"
    found: Solution = solve(problem, time_limit_s=time_limit_s, gap=gap)
    if found.objective is None:
        return None
    chosen = [(unit, round(found.values.get(f"n{number}", 0.0))) for number, unit in enumerate(units)]
    kept = [(unit, count) for unit, count in chosen if count]
    share = sum(found.values.get(f"apart_{cache}", 0.0) for cache in caches)
    bound = found.best_bound if found.best_bound is not None else 0.0
    return Mix(kept, float(share), float(found.objective), bound)
