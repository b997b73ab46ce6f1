"""Which candidates are best, which stand beside them, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.terms import Array
from solvers.power_limit import raised, written
from solvers.serve_answer import OBJECTIVES, described, plan_dict, steady
from solvers.serve_case import Case, case_of
from solvers.serve_energy import energy_j
from solvers.serve_found import POOL, Family, Found, Searched
from solvers.serve_pairs import Known, pool_of
from solvers.serve_question import ServePlan
from solvers.serve_scenario import ServeScenario
from solvers.serve_search import search

KEPT = 2000
"""Candidates that are ranked."""

FRONT = 12
"""Most points of the front of latency against cost."""

STEP = 0.1
"""By how much a limit is widened to see what it is worth."""


@dataclass(frozen=True, eq=False)
class Place:
    """A candidate: a table and its row in it."""

    found: Found
    row: int

    @property
    def family(self) -> Family:
        """Its types."""
        return self.found.family

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from others of the same search."""
        return id(self.found), self.row

    @property
    def layout(self) -> tuple[Any, ...]:
        """What tells it from candidates that differ in limits and replicas alone."""
        columns = [tuple(pool[:4, self.row].tolist()) for pool in self.found.pools]
        return *self.family.key, *columns

    def time_s(self, name: str) -> float:
        """Return one of its times [s]."""
        return float(self.found.times_s[name][self.row])


def values(scenario: ServeScenario, found: Found) -> Array:
    """Return what is to be as small as possible, infinite where the objectives of latency do not hold."""
    name = scenario.question.objective
    if name in ("goodput_requests_per_s_per_gpu", "output_tokens_per_s_per_gpu"):
        rate = found.goodput if name.startswith("goodput") else np.where(found.goodput > 0, found.rate, 0.0)
        score = -rate / found.gpus
    elif name == "cost_usd_per_million_tokens":
        score = found.gpus / found.rate
    elif name == "energy_per_token_j":
        score = energy_j(scenario, found)
    else:
        score = found.times_s[name.removesuffix("_s")]
    return np.where(found.goodput > 0, score, np.inf)


def ranking(scenario: ServeScenario, tables: list[Found]) -> list[Place]:
    """Return the candidates that meet the objectives, best first; of equals that with the shortest requests."""
    places: list[tuple[float, float, int, int]] = []
    for number, found in enumerate(tables):
        score = values(scenario, found)
        rows = np.flatnonzero(np.isfinite(score))
        rows = rows[np.lexsort((found.times_s["e2e_mean"][rows], score[rows]))][:KEPT]
        places += [(float(score[row]), float(found.times_s["e2e_mean"][row]), number, int(row)) for row in rows]
    return [Place(tables[number], row) for _, _, number, row in sorted(places)]


def other_layouts(ranked: list[Place]) -> list[Place]:
    """Return the best of every layout but the first."""
    seen, kept = {place.layout for place in ranked[:1]}, []
    for place in ranked:
        if place.layout not in seen:
            seen.add(place.layout)
            kept.append(place)
    return kept


def plan_at(place: Place) -> ServePlan:
    """Return a candidate as a plan."""
    family, pools = place.family, place.found.pools
    types: dict[str, Any] = {
        "precision_weights": family.server.precision_weights,
        "precision_kv": family.server.precision_kv,
        "draft_tokens": int(family.speculation.drafted),
        "disaggregated": family.disaggregated,
        "layered_prefill": family.server.layered,
        "overlap": family.server.overlap,
        "prefill_share": family.prefill_share,
        "power_cap_w": written(family.server.machine),
    }
    if family.disaggregated:
        prefill, decode = (pool_of(pool[:, place.row]) for pool in pools)
        return ServePlan(**types, prefill=prefill, decode=decode)
    return ServePlan(**types, **{name: int(value) for name, value in zip(POOL, pools[0][:, place.row], strict=True)})


def case_at(scenario: ServeScenario, place: Place) -> Case:
    """Return a candidate with what it needs to be costed."""
    return case_of(scenario, plan_at(place))


def entry(scenario: ServeScenario, place: Place) -> dict[str, Any]:
    """Return a candidate as plan and prediction."""
    case = case_at(scenario, place)
    return {"plan": plan_dict(case), "prediction": described(case, steady(case))}


def front(scenario: ServeScenario, tables: list[Found], known: dict[Place, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the candidates that no other beats in both the time of a request and its cost, the fastest first.

    Parameters
    ----------
    tables : list of Found
        The candidates.
    known : dict
        Those of which plan and prediction are known.
    """
    columns = [(found.times_s["e2e_mean"], found.gpus / found.rate) for found in tables]
    if not columns:
        return None
    time_s, cost = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    table = np.repeat(np.arange(len(tables)), [len(found.gpus) for found in tables])
    row = np.concatenate([np.arange(len(found.gpus)) for found in tables])
    order = np.lexsort((cost, time_s))
    before = np.concatenate([[np.inf], np.minimum.accumulate(cost[order])[:-1]])
    kept = order[cost[order] < before * (1 - 1e-9)]
    if len(kept) > FRONT:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, FRONT).round().astype(int))]
    places = [Place(tables[table[index]], int(row[index])) for index in kept]
    entries = {place.key: told for place, told in known.items()}
    points = [entries.get(place.key) or entry(scenario, place) for place in places]
    priced = scenario.usd_per_hour(1) is not None
    cheap = (
        "cost_usd_per_million_tokens"
        if priced
        else "gpus"
        if scenario.rate is not None
        else "output_tokens_per_s_per_gpu"
    )
    return {"objectives": ["e2e_mean_s", cheap], "points": points}


def reasons(scenario: ServeScenario, searched: Searched) -> list[dict[str, Any]]:
    """Return why candidates are none, and how near each kind came."""
    found: list[dict[str, Any]] = []
    if searched.without_room:
        reason = "out of memory: no room for the weights and the cache of one request"
        found.append({"reason": reason, "candidates": searched.without_room, "nearest": None})
    if searched.overloaded:
        reason = "requests come faster than they are answered, or a phase alone misses its objectives"
        found.append({"reason": reason, "candidates": searched.overloaded, "nearest": None})
    for name, limit in scenario.question.slo.limits.items():
        count, best = 0, None
        for table in searched.found:
            over = np.flatnonzero(table.times_s[name] > limit * (1 + 1e-9))
            count += len(over)
            if len(over):
                row = int(over[np.argmin(table.times_s[name][over])])
                place = Place(table, row)
                if best is None or place.time_s(name) < best.time_s(name):
                    best = place
        if count and best is not None:
            nearest = {
                "plan": plan_at(best).model_dump(exclude_none=True, exclude_unset=True),
                f"{name}_s": best.time_s(name),
            }
            found.append({"reason": f"slo.{name}", "candidates": count, "nearest": nearest})
    return found


def priced(
    scenario: ServeScenario, best: Place, bindings: list[dict[str, Any]], value: float, known: Known
) -> list[dict[str, Any]]:
    """Return the limits with what a little more of each would bring, found by solving again.

    Parameters
    ----------
    known : dict
        Instances that the search tabulated.

    Notes
    -----
    A finite difference: the change of the objective over the change of the limit, a tenth more of it; of memory among
    the types and the kind of the best plan; of a node's power with 1 kW more. Whole replicas make it a step, 0 where
    that brings none fewer.
    """
    unit, _ = OBJECTIVES[scenario.question.objective]
    found: list[dict[str, Any]] = []
    for one in bindings:
        if one["constraint"] == "power.node_limit":
            more_power = scenario.question.model_copy(update={"power": raised(scenario.question.power)})
            other = replace(scenario, question=more_power)
            server = best.family.server
            kind = (server.precision_weights, server.precision_kv, server.layered, server.overlap)
            only = replace(best.family, server=other.server(*kind))
            price = _changed(other, best, search(other, only=only), value)
            found.append(one | {"shadow_price": price})
            continue
        name = str(one["constraint"]).removeprefix("slo.")
        limit = scenario.question.slo.limits.get(name)
        if limit is None:
            found.append(one)
            continue
        wider = scenario.question.slo.model_copy(update={name: limit * (1 + STEP)})
        other = replace(scenario, question=scenario.question.model_copy(update={"slo": wider}))
        price = _changed(other, best, search(other, only=best.family, known=known), value) / (limit * STEP)
        found.append(
            one | {"shadow_price": price, "shadow_price_unit": f"{unit} per s", "shadow_price_by": "re-solving"}
        )
    more = STEP * scenario.machine.accelerator.memory.capacity
    price = _changed(scenario, best, search(scenario, only=best.family, more_memory=more), value) / more * 2**30
    return [
        *found,
        {
            "constraint": "accelerator.memory.capacity",
            "slack": None,
            "shadow_price": price,
            "unit": "bytes",
            "shadow_price_unit": f"{unit} per GiB",
            "shadow_price_by": "re-solving",
        },
    ]


def _changed(scenario: ServeScenario, best: Place, searched: Searched, value: float) -> float:
    """Return by how much the objective changes."""
    ranked = ranking(scenario, searched.found)
    if not ranked:
        return 0.0
    name = scenario.question.objective
    _, sense = OBJECTIVES[name]
    now = float(values(scenario, ranked[0].found)[ranked[0].row])
    was = float(values(scenario, best.found)[best.row])
    if not np.isfinite(was) or was == 0:
        return 0.0
    change = value * (now / was - 1)
    return change if (change > 0) == (sense == "max") else 0.0


def baseline(scenario: ServeScenario, best: float) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    given = scenario.question.plan
    if given is None:
        return None
    case = case_of(scenario, given)
    if not case.fits:
        return None
    told = described(case, steady(case))
    name = scenario.question.objective
    _, sense = OBJECTIVES[name]
    value = told[name]
    gain = None if not value or not best else best / value if sense == "max" else value / best
    return {"plan": plan_dict(case), "prediction": told, "gain": gain}
