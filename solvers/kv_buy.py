"""How many devices of which tier meet the limits at the least cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from solvers.backend import relative_gap
from solvers.kv_aim import ANY, Aim
from solvers.kv_answer import binding, breakdown, common, plan_of, prediction
from solvers.kv_cost import amounts, cost_of, cost_usd_per_hour, tier_costs, untried, with_devices, within
from solvers.kv_given import today
from solvers.kv_infeasible import reasons
from solvers.kv_place import Block, least_cost, place
from solvers.kv_scenario import KvScenario
from solvers.kv_search import search
from solvers.kv_space import Candidate, candidates
from solvers.result import Objective, Result

_ROUND = 1e-6


def infeasible(scenario: KvScenario, blocks: list[Candidate], aim: Aim, began: float) -> Result:
    """Return why no block does, and the smallest change that would."""
    reason, seen, changes = reasons(blocks, aim)
    return Result(
        status="infeasible",
        objective=_objective(None) if scenario.question.objective == "cost_usd_per_hour" else aim.objective(None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": reason, "candidates": seen, "nearest": None}],
        relaxation=changes,
        **common(scenario),
    )


def cheapest(scenario: KvScenario, *, top: int, began: float, until: float | None) -> Result:
    """Find the purchase of the least cost with which some block meets the limits, and its best block.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    top : int
        How many alternatives to list: dearer purchases that do more.
    began, until : float
        When the search began and is to stop, by `time.perf_counter` [s].

    Notes
    -----
    Cost depends on the purchase alone, so that the first in order of cost that does is the best. More of anything never
    harms: blocks that do not with the most of everything need not be looked at again, nor what is less than a purchase
    that does not, nor what costs less than a linear problem needs that may buy any part of a device.
    """
    aim = Aim.of(scenario)
    bought = amounts(scenario)
    most = max(bought, key=lambda devices: sum(devices.values()))
    whole = with_devices(scenario, most)
    blocks = list(candidates(whole, whole.paths))
    able = [number for number, one in enumerate(blocks) if _does(one, aim)]
    if not able:
        return infeasible(scenario, blocks, aim, began)
    each = tier_costs(scenario)
    costs = {name: each[name] * count for name, count in most.items() if count}
    least = min(least_cost(*blocks[number], aim.limits_of(blocks[number][0]), costs) for number in able)
    failed: list[dict[str, int]] = []
    found: tuple[dict[str, int], list[Block]] | None = None
    tried = 0
    for devices in untried(bought, until):
        tried += 1
        if any(within(devices, other) for other in failed):
            continue
        if cost_of(each, devices) < least * (1 - _ROUND):
            failed.append(devices)
            continue
        fitting = _fitting(scenario, devices, able)
        if any(_does(one, aim) for one in fitting):
            found = devices, search(fitting, aim)[0]
            break
        failed.append(devices)
    proved = found is not None
    devices, best = found or (most, search([blocks[number] for number in able], aim)[0])
    chosen = with_devices(scenario, devices)
    value = _cost(chosen)
    bound = value if proved else _cost(with_devices(scenario, bought[min(tried, len(bought) - 1)]))
    return Result(
        status="optimal" if proved else "time_limit",
        objective=_objective(value),
        best_bound=min(bound, value),
        gap=relative_gap(value, min(bound, value)),
        solve_time_s=time.perf_counter() - began,
        candidates=len(blocks) * len(bought),
        plan=plan_of(chosen, best[0]) | {"devices": devices},
        prediction=prediction(chosen, best[0]),
        breakdown=breakdown(best[0]),
        binding=[*binding(best[0], aim), *_limit_prices(scenario, failed, able, aim, value)],
        baseline=today(scenario, aim, value),
        alternatives=_dearer(scenario, bought[tried:], able, aim, best[0], top) if proved else [],
        **common(scenario),
    )


def _objective(value: float | None) -> Objective:
    return Objective("cost_usd_per_hour", value, "USD/h", "min")


def _cost(scenario: KvScenario) -> float:
    return cost_usd_per_hour(scenario) or 0.0


def _does(one: Candidate, aim: Aim) -> bool:
    """Tell whether a block meets the limits."""
    return place(*one, limits=aim.limits_of(one[0]), enough_s=ANY) is not None


def _fitting(scenario: KvScenario, devices: dict[str, int], able: Sequence[int]) -> list[Candidate]:
    """Return the blocks that may do with a purchase."""
    bought = with_devices(scenario, devices)
    blocks = list(candidates(bought, bought.paths))
    return [blocks[number] for number in able]


def _limit_prices(
    scenario: KvScenario, failed: list[dict[str, int]], able: Sequence[int], aim: Aim, cost: float
) -> list[dict[str, Any]]:
    """Return what limits cost: the next cheaper purchase against how much longer they would have to be for it."""
    if not failed:
        return []
    cheaper = max(failed, key=lambda devices: _cost(with_devices(scenario, devices)))
    saved = cost - _cost(with_devices(scenario, cheaper))
    if not saved > 0:
        return []
    _, _, changes = reasons(_fitting(scenario, cheaper, able), aim)
    return [
        {
            "constraint": change["constraint"],
            "slack": 0.0,
            "shadow_price": saved / abs(change["needed"] - change["now"]),
            "unit": f"USD/h per {change['unit']}",
        }
        for change in changes
        if change["needed"] != change["now"]
    ]


def _dearer(
    scenario: KvScenario, bought: list[dict[str, int]], able: Sequence[int], aim: Aim, best: Block, top: int
) -> list[dict[str, Any]]:
    """Return purchases that cost more and do more, each better than those before it."""
    found: list[dict[str, Any]] = []
    score = aim.score(best)
    for devices in bought:
        if len(found) == top:
            break
        better, _ = search(_fitting(scenario, devices, able), aim, floor=score * (1 + 1e-3))
        if better and aim.score(better[0]) > score * (1 + 1e-3):
            score = aim.score(better[0])
            chosen = with_devices(scenario, devices)
            found.append(
                {"plan": plan_of(chosen, better[0]) | {"devices": devices}, "prediction": prediction(chosen, better[0])}
            )
    return found
