"""Where weights, keys and values, and activations live: the best placement and block, what binds, what to buy."""

from __future__ import annotations

import math
import time
from typing import Any

from perfmodel.offload import Offload
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.kv_aim import SAME, Aim
from solvers.kv_answer import GIB, binding, breakdown, common, plan_of, prediction
from solvers.kv_buy import cheapest, infeasible
from solvers.kv_cost import cost_usd_per_hour
from solvers.kv_given import as_given, given_block, today
from solvers.kv_infeasible import lacking
from solvers.kv_place import Block
from solvers.kv_pools import pools
from solvers.kv_preempt import preemption
from solvers.kv_scenario import KvScenario, paths_of
from solvers.kv_search import by_loss, search
from solvers.kv_sizes import sizes
from solvers.kv_space import candidates
from solvers.result import Objective, Result

_ROUND = 1e-9


def plan(scenario: KvScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float | None = None) -> Result:
    """Find the placement and block of the most tokens per second.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    top : int
        How many alternatives to list: the best of other blocks.
    time_limit_s : float
        Wall time of the search; none if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.

    Returns
    -------
    Result
        ``optimal`` over the blocks and types of the search; ``time_limit`` with a bound; or ``infeasible`` with the
        fewest bytes that are missing.
    """
    began = time.perf_counter()
    until = None if time_limit_s is None else began + time_limit_s
    if scenario.question.objective == "cost_usd_per_hour":
        return cheapest(scenario, top=top, began=began, until=until)
    blocks = list(candidates(scenario, scenario.paths))
    aim = Aim.of(scenario)
    found: list[Block] = []
    bound: float | None = None
    for part in by_loss(blocks, bool(aim.limits)):
        found, bound = search(part, aim, until=until, gap=gap, most=max(top, 0) + 1)
        if found or bound is not None:
            break
    spent = time.perf_counter() - began
    if not found:
        if bound is not None:
            return Result(
                status="time_limit",
                objective=aim.objective(None),
                best_bound=aim.value_of(bound),
                solve_time_s=spent,
                **common(scenario),
            )
        return infeasible(scenario, blocks, aim, began)
    best = found[0]
    value = aim.value_of(aim.score(best))
    best_bound = value if bound is None else aim.value_of(max(bound, aim.score(best)))
    if aim.phase is not None:  # so much was given up for the other phase
        best_bound = min(best_bound, value / (1 + SAME))
    reached = relative_gap(value, best_bound)
    late = until is not None and began + spent > until and not (gap and reached <= gap)
    return Result(
        status="optimal" if reached <= OPTIMAL_GAP else "time_limit" if late else "feasible",
        objective=aim.objective(value),
        best_bound=best_bound,
        gap=reached,
        solve_time_s=spent,
        candidates=len(blocks),
        plan=plan_of(scenario, best),
        prediction=prediction(scenario, best)
        | {
            "purchases": _purchases(scenario, best, aim),
            "sizes": sizes(best, aim),
            "preemption": None if best.asked.rate is None else preemption(best.asked),
            "pools": pools(scenario, blocks, best, aim),
        },
        breakdown=breakdown(best),
        binding=binding(best, aim),
        alternatives=[
            {"plan": plan_of(scenario, other), "prediction": prediction(scenario, other)}
            for other in found[1 : top + 1]
        ],
        baseline=today(scenario, aim, value),
        **common(scenario),
    )


def predict(scenario: KvScenario) -> Result:
    """Cost the placement that a scenario gives.

    Parameters
    ----------
    scenario : KvScenario
        The question with its plan.

    Returns
    -------
    Result
        ``feasible``, or ``infeasible`` with the tiers that are too small.
    """
    began = time.perf_counter()
    scenario = as_given(scenario)
    block = given_block(scenario)
    aim = Aim.of(scenario)
    if any(math.isinf(spent) for spent in block.latency_s.values()):
        assert block.asked.rate is not None
        most = block.tokens_per_s / block.asked.generated
        now = block.asked.rate * block.asked.nodes
        return Result(
            status="infeasible",
            objective=objective_of(scenario, None),
            solve_time_s=time.perf_counter() - began,
            why_not=[{"reason": "requests come too fast", "candidates": 1, "nearest": plan_of(scenario, block)}],
            relaxation=[{"constraint": "workload.arrivals.rate_rps", "now": now, "needed": most, "unit": "1/s"}],
            **common(scenario),
        )
    small = {name: sizes for name, sizes in block.memory_bytes.items() if sizes[1] > sizes[0] * (1 + _ROUND)}
    if small:
        return Result(
            status="infeasible",
            objective=objective_of(scenario, None),
            solve_time_s=time.perf_counter() - began,
            why_not=[{"reason": "out of memory", "candidates": 1, "nearest": plan_of(scenario, block)}],
            relaxation=lacking(small),
            **common(scenario),
        )
    return Result(
        status="feasible",
        objective=objective_of(scenario, aim.value_of(aim.score(block))),
        solve_time_s=time.perf_counter() - began,
        plan=plan_of(scenario, block),
        prediction=prediction(scenario, block),
        breakdown=breakdown(block),
        **common(scenario),
    )


def objective_of(scenario: KvScenario, value: float | None) -> Objective:
    """Return the objective of a question, with the value that its aim has unless it is cost."""
    if scenario.question.objective != "cost_usd_per_hour":
        return Aim.of(scenario).objective(value)
    cost = None if value is None else cost_usd_per_hour(scenario)
    return Objective("cost_usd_per_hour", cost, "USD/h", "min")


def _purchases(scenario: KvScenario, best: Block, aim: Aim) -> list[dict[str, Any]]:
    """Return what one more device of each tier brings, the most first; the whole search is made again."""
    node = scenario.machine.node
    found = []
    for number, tier in enumerate(node.tiers):
        if tier.name not in {path.name for path in scenario.paths}:
            continue
        tiers = (*node.tiers[:number], tier.model_copy(update={"count": tier.count + 1}), *node.tiers[number + 1 :])
        names = {path.name for path in scenario.paths}
        paths = tuple(
            path
            for path in paths_of(node.model_copy(update={"tiers": tiers}), scenario.question.nodes)
            if path.name in names
        )
        blocks = [one for one in candidates(scenario, paths) if _loads_alike(one[0], best.asked)]
        others, _ = search(blocks, aim, floor=aim.score(best))
        reached = aim.value_of(max(aim.score(block) for block in (*others, best)))
        price = tier.price.on_demand if tier.price else None
        gain = abs(reached - aim.value_of(aim.score(best)))
        found.append(
            {
                "purchase": f"one more {tier.name} of {tier.capacity / GIB:,.0f} GiB",
                "tier": tier.name,
                "capacity_bytes": tier.capacity,
                aim.name: reached,
                "gain": gain,
                "gain_per_gib": gain / (tier.capacity / GIB),
                "price_usd_per_hour": price,
            }
        )
    return sorted(found, key=lambda one: -float(one["gain"]))


def _loads_alike(one: Offload, other: Offload) -> bool:
    """Tell whether two questions do the same with prefixes that are found, and store them alike."""
    if one.prefixes is None or other.prefixes is None:
        return one.prefixes is other.prefixes
    return (one.prefixes.overlapped, one.prefixes.level) == (other.prefixes.overlapped, other.prefixes.level)
