"""Which part of inference to compute or keep elsewhere: all choices costed, the best with what it would lack."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from perfmodel import provenance, terms
from perfmodel.compute_elsewhere import Tokens, attention_there, experts_there, layers_there
from perfmodel.serving.spread import factors, step_spread
from perfmodel.serving.step import Deployment, Load
from solvers.kv_elsewhere_question import (
    SENSES,
    ElsewherePlan,
    ElsewhereScenario,
    prices,
)
from solvers.kv_finetune_search import with_count
from solvers.result import Objective, Result


@dataclass(frozen=True)
class Choice:
    """A choice, and what it takes."""

    plan: ElsewherePlan
    tokens: Tokens
    usd_per_hour: float | None

    @property
    def tpot_s(self) -> float:
        """Time between tokens of a sequence [s]."""
        return float(self.tokens.tree.seconds)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all sequences [1/s]."""
        return self.tokens.sequences / self.tpot_s

    @property
    def usd_per_million_tokens(self) -> float | None:
        """Price of a million tokens [USD]."""
        return None if self.usd_per_hour is None else self.usd_per_hour / 3600 / self.tokens_per_s * 1e6

    @property
    def over(self) -> dict[str, tuple[float, float]]:
        """Memories that are too small: capacity and need of one device [bytes]."""
        return {name: sizes for name, sizes in self.tokens.memory.items() if sizes[1] > sizes[0]}

    def value(self, objective: str) -> float:
        """Return the objective."""
        if objective == "tpot_mean_s":
            return self.tpot_s
        found = self.tokens_per_s if objective == "tokens_per_s" else self.usd_per_million_tokens
        assert found is not None  # the question was refused without prices
        return found


def plan(
    scenario: ElsewhereScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float | None = None
) -> Result:
    """Find the best choice by costing all of them.

    Parameters
    ----------
    scenario : ElsewhereScenario
        The question.
    top : int
        How many alternatives to list.
    time_limit_s, gap : float
        As of the other planners; all choices take less than a second and are always seen.

    Returns
    -------
    Result
        ``optimal`` over the choices of the search, or ``infeasible`` with the smallest memory or limit that would do.
    """
    began = time.perf_counter()
    question = scenario.question
    choices = [costed(scenario, one) for one in _choices(scenario)]
    fitting = [one for one in choices if not one.over]
    limit = question.slo.tpot_mean
    within = [one for one in fitting if limit is None or one.tpot_s <= limit]
    common = _common(scenario) | {"candidates": len(choices), "why_not": _why_not(choices, fitting, within)}
    if not within:
        return Result(
            status="infeasible",
            objective=_objective(scenario, None),
            relaxation=_relaxation(choices, fitting, limit),
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    sign = 1 if SENSES[question.objective][0] == "min" else -1
    ranked = sorted(within, key=lambda one: (sign * one.value(question.objective), one.plan.batch))
    best = ranked[0]
    value = best.value(question.objective)
    return Result(
        status="optimal",
        objective=_objective(scenario, value),
        best_bound=value,
        gap=0.0,
        solve_time_s=time.perf_counter() - began,
        plan=_plan(best),
        prediction=_prediction(scenario, best)
        | {"stays": _stays(scenario, within, sign), "purchases": _purchases(scenario, best, sign)},
        breakdown=terms.to_dict(best.tokens.tree),
        binding=_binding(scenario, best),
        alternatives=[{"plan": _plan(one), "prediction": _prediction(scenario, one)} for one in ranked[1 : top + 1]],
        baseline=_baseline(scenario, best, sign),
        **common,
    )


def predict(scenario: ElsewhereScenario) -> Result:
    """Cost the choice that a scenario gives."""
    began = time.perf_counter()
    if scenario.question.plan is None:
        raise ValueError("the scenario gives no plan")
    given = costed(scenario, scenario.question.plan)
    common = _common(scenario) | {"candidates": 1}
    if given.over:
        return Result(
            status="infeasible",
            objective=_objective(scenario, None),
            why_not=_why_not([given], [], []),
            relaxation=_relaxation([given], [], None),
            solve_time_s=time.perf_counter() - began,
            **common,
        )
    return Result(
        status="feasible",
        objective=_objective(scenario, given.value(scenario.question.objective)),
        solve_time_s=time.perf_counter() - began,
        plan=_plan(given),
        prediction=_prediction(scenario, given),
        breakdown=terms.to_dict(given.tokens.tree),
        binding=_binding(scenario, given),
        **common,
    )


def costed(scenario: ElsewhereScenario, plan: ElsewherePlan) -> Choice:
    """Cost a choice."""
    question, server = scenario.question, scenario.server
    lengths, parts = question.workload.lengths, question.elsewhere
    whole = server.engine.memory.reserves == "whole"
    held = lengths.isl + (1.0 if whole else 0.5) * lengths.osl
    load = Load(sequences=float(plan.batch), context=lengths.isl + lengths.osl / 2)
    spread = Deployment(tp=plan.accelerators)
    own, each = prices(scenario)
    price = None if own is None else own * plan.accelerators
    if parts.attention is not None:
        assert scenario.reader is not None and plan.devices is not None
        price = None if price is None or each is None else price + each * plan.devices
        found = attention_there(
            server,
            spread,
            scenario.reader,
            plan.devices,
            load,
            link_bandwidth=link_bandwidth(scenario, plan.accelerators, plan.devices) if plan.devices else 1.0,
            latency_s=parts.attention.latency,
            turns=plan.turns or 1,
            held_tokens=held,
            memory_share=parts.attention.memory_share,
        )
    else:
        assert scenario.path is not None
        slowest = min(domain.node_up for domain in scenario.path.domains)
        share = plan.accelerators / server.machine.node.accelerators.count
        if parts.experts is not None:
            assert plan.held is not None
            found = experts_there(
                server, spread, load, held=plan.held, skew=parts.experts.skew, foreseen=parts.experts.foreseen,
                link_bandwidth=slowest * share, tokens=held,
            )  # fmt: skip
        else:
            assert plan.window is not None
            each_rate = slowest / server.machine.node.accelerators.count
            found = layers_there(server, spread, load, window=plan.window, load_bandwidth=each_rate, tokens=held)
    return Choice(plan, found, price)


def link_bandwidth(scenario: ElsewhereScenario, accelerators: int, devices: int) -> float:
    """Return the rate between model and attention: that of the fewer adapters, as the engine reaches it [bytes/s]."""
    assert scenario.reader is not None
    rates = []
    for machine, used in ((scenario.server.machine, accelerators), (scenario.reader.machine, devices)):
        nics = machine.node.nics
        assert nics is not None  # the question was refused without
        rates.append(nics.bandwidth * nics.count * used / machine.node.accelerators.count)
    transfer = scenario.server.engine.transfer
    return min(rates) * (1.0 if transfer is None else transfer.efficiency)


def _choices(scenario: ElsewhereScenario) -> Iterator[ElsewherePlan]:
    question = scenario.question
    parts, search = question.elsewhere, question.search
    sizes = search.accelerators or (scenario.server.machine.node.accelerators.count,)
    for accelerators, batch in itertools.product(sizes, search.batch):
        if parts.attention is not None:
            for devices in parts.attention.devices:
                for turns in parts.attention.turns if devices else (1,):
                    yield ElsewherePlan(accelerators=accelerators, batch=batch, devices=devices, turns=turns)
        elif parts.experts is not None:
            for held in parts.experts.held:
                yield ElsewherePlan(accelerators=accelerators, batch=batch, held=held)
        elif parts.layers is not None:
            depth = 2 * scenario.server.architecture.depth
            for window in sorted({min(one, depth) for one in (*parts.layers.window, depth)}):
                yield ElsewherePlan(accelerators=accelerators, batch=batch, window=window)


def _purchases(scenario: ElsewhereScenario, best: Choice, sign: int) -> list[dict[str, Any]]:
    """Return what one more device brings, the most first, with the batch chosen again."""
    question, path = scenario.question, scenario.path
    own, each = prices(scenario)
    wider = 2 * best.plan.accelerators
    options: list[tuple[str, ElsewhereScenario, dict[str, Any], float | None]] = []
    if wider <= scenario.server.machine.node.accelerators.count:
        more = None if own is None else own * best.plan.accelerators
        options.append((f"{wider} accelerators with the model", scenario, {"accelerators": wider}, more))
    if best.plan.devices is not None and scenario.reader is not None:
        many = best.plan.devices + 1
        if many <= scenario.reader.machine.node.accelerators.count:
            options.append(("one more device that attends", scenario, {"devices": many}, each))
    if path is not None:
        faster = replace(scenario, path=with_count(path, path.tier.count + 1))
        price = path.tier.price.on_demand if path.tier.price else None
        options.append((f"one more {path.name}", faster, {}, price))
    now = best.value(question.objective)
    turns = question.elsewhere.attention.turns if question.elsewhere.attention is not None else (best.plan.turns,)
    limit = question.slo.tpot_mean or math.inf
    bought = []
    for name, asked, change, price in options:
        plans = [
            best.plan.model_copy(update=change | {"batch": batch, "turns": turn})
            for batch, turn in itertools.product(question.search.batch, turns)
        ]
        found = [one for one in (costed(asked, plan) for plan in plans) if not one.over and one.tpot_s <= limit]
        then = min((one.value(question.objective) for one in found), key=lambda value: sign * value, default=now)
        gain = max(0.0, sign * (now - then))
        bought.append({"purchase": name, "then": then, "gain": gain, "price_usd_per_hour": price})
    return sorted(bought, key=lambda one: -float(one["gain"]))


def _stays_with(scenario: ElsewhereScenario, choice: Choice) -> bool:
    """Tell whether nothing is elsewhere in a choice."""
    depth = 2 * scenario.server.architecture.depth
    return choice.plan.devices == 0 or choice.plan.held == 1.0 or choice.plan.window == depth


def _stays(scenario: ElsewhereScenario, within: list[Choice], sign: int) -> dict[str, Any] | None:
    """Return the best choice with nothing elsewhere; None where there is none."""
    name = scenario.question.objective
    found = [one for one in within if _stays_with(scenario, one)]
    if not found:
        return None
    best = min(found, key=lambda one: sign * one.value(name))
    return {**_plan(best), name: best.value(name)}


def _objective(scenario: ElsewhereScenario, value: float | None) -> Objective:
    name = scenario.question.objective
    sense, unit = SENSES[name]
    return Objective(name, value, unit, sense)


def _common(scenario: ElsewhereScenario) -> dict[str, Any]:
    used = [scenario.server, *([scenario.reader] if scenario.reader is not None else [])]
    kernels = {f"kernels/{name.split('.')[0]}/{one.origin}" for server in used for name, one in server.kernels.items()}
    return {
        "kind": "kv",
        "scenario": scenario.resolved,
        "provenance": {
            "version": provenance.release(),
            "hardware": [name for one in used for name in (one.machine.accelerator.name, one.machine.node.name)],
            "from_memory": [line for one in used for line in provenance.recalled(one.machine)],
            "calibration": [*sorted(kernels), f"engine/{scenario.server.engine.name}"],
        },
    }


def _plan(choice: Choice) -> dict[str, Any]:
    return choice.plan.model_dump(exclude_none=True)


def _prediction(scenario: ElsewhereScenario, choice: Choice) -> dict[str, Any]:
    low, high = factors(step_spread(scenario.server, choice.tokens.tree, "tpot"))
    seconds, rate, price = choice.tpot_s, choice.tokens_per_s, choice.usd_per_million_tokens
    return {
        "tokens_per_s": rate,
        "tokens_per_s_p10": rate / high,
        "tokens_per_s_p90": rate / low,
        "tpot_mean_s": seconds,
        "tpot_mean_s_p10": seconds * low,
        "tpot_mean_s_p90": seconds * high,
        "sequences": choice.tokens.sequences,
        "cost_usd_per_million_tokens": price,
        "cost_usd_per_million_tokens_p10": None if price is None else price * low,
        "cost_usd_per_million_tokens_p90": None if price is None else price * high,
        "cost_usd_per_hour": choice.usd_per_hour,
        "memory_bytes": {name: used for name, (_, used) in choice.tokens.memory.items()},
        "memory_available_bytes": {name: room for name, (room, _) in choice.tokens.memory.items()},
    }


def _binding(scenario: ElsewhereScenario, best: Choice) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"constraint": f"memory[{name}]", "slack": room - used, "shadow_price": None, "unit": "bytes"}
        for name, (room, used) in best.tokens.memory.items()
    ]
    limit = scenario.question.slo.tpot_mean
    if limit is not None:
        found.append({"constraint": "slo.tpot_mean", "slack": limit - best.tpot_s, "shadow_price": None, "unit": "s"})
    return found


def _baseline(scenario: ElsewhereScenario, best: Choice, sign: int) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    today, name = costed(scenario, scenario.question.plan), scenario.question.objective
    ratio = today.value(name) / best.value(name)
    return {"plan": _plan(today), "prediction": _prediction(scenario, today), "gain": ratio if sign > 0 else 1 / ratio}


def _why_not(choices: list[Choice], fitting: list[Choice], within: list[Choice]) -> list[dict[str, Any]]:
    found = []
    if len(fitting) < len(choices):
        found.append({"reason": "out of memory", "candidates": len(choices) - len(fitting), "nearest": None})
    if len(within) < len(fitting):
        found.append({"reason": "beyond slo.tpot_mean", "candidates": len(fitting) - len(within), "nearest": None})
    return found


def _relaxation(choices: list[Choice], fitting: list[Choice], limit: float | None) -> list[dict[str, Any]]:
    """Return the shortest limit that can be met, or the memory that lacks least."""
    if fitting and limit is not None:
        shortest = min(one.tpot_s for one in fitting)
        return [{"constraint": "slo.tpot_mean", "now": limit, "needed": shortest, "unit": "s"}]
    nearest = min(choices, key=lambda one: sum(used - room for room, used in one.over.values()))
    return [
        {"constraint": f"memory[{name}]", "now": room, "needed": used, "unit": "bytes"}
        for name, (room, used) in nearest.over.items()
    ]
