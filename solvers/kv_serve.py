"""Where weights, keys and values, and activations live: the best placement and block, what binds, what to buy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hardware.tiers import HBM, tier_paths
from perfmodel.offload import Form, Offload, Share, kernels_of
from solvers.backend import OPTIMAL_GAP, relative_gap
from solvers.kv_aim import SAME, Aim, shortest
from solvers.kv_answer import GIB, binding, breakdown, common, plan_of, prediction
from solvers.kv_cached import given_cache
from solvers.kv_place import Block, missing_bytes, place
from solvers.kv_scenario import KvScenario
from solvers.kv_sizes import sizes
from solvers.kv_space import Candidate, candidates, prefixes_of
from solvers.result import Result

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
    blocks = list(candidates(scenario, scenario.paths))
    aim = Aim.of(scenario)
    found, bound = _search(blocks, aim, until, gap, most=max(top, 0) + 1)
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
        return _infeasible(scenario, blocks, aim, began)
    best = found[0]
    value = aim.value_of(aim.score(best))
    best_bound = value if bound is None else aim.value_of(max(bound, aim.score(best)))
    if aim.phase is not None:  # so much was given up for the other phase
        best_bound = min(best_bound, value / (1 + SAME))
    reached = relative_gap(value, best_bound)
    return Result(
        status="optimal" if reached <= OPTIMAL_GAP else "feasible" if gap and reached <= gap else "time_limit",
        objective=aim.objective(value),
        best_bound=best_bound,
        gap=reached,
        solve_time_s=spent,
        candidates=len(blocks),
        plan=plan_of(scenario, best),
        prediction=prediction(scenario, best)
        | {"purchases": _purchases(scenario, best, aim), "sizes": sizes(best, aim)},
        breakdown=breakdown(best),
        binding=binding(best, aim),
        alternatives=[
            {"plan": plan_of(scenario, other), "prediction": prediction(scenario, other)}
            for other in found[1 : top + 1]
        ],
        baseline=_baseline(scenario, value, aim),
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
    block = given_block(scenario)
    aim = Aim.of(scenario)
    small = {name: sizes for name, sizes in block.memory_bytes.items() if sizes[1] > sizes[0] * (1 + _ROUND)}
    if small:
        return Result(
            status="infeasible",
            objective=Aim.of(scenario).objective(None),
            solve_time_s=time.perf_counter() - began,
            why_not=[{"reason": "out of memory", "candidates": 1, "nearest": plan_of(scenario, block)}],
            relaxation=_lacking(small),
            **common(scenario),
        )
    return Result(
        status="feasible",
        objective=aim.objective(aim.value_of(aim.score(block))),
        solve_time_s=time.perf_counter() - began,
        plan=plan_of(scenario, block),
        prediction=prediction(scenario, block),
        breakdown=breakdown(block),
        **common(scenario),
    )


def given_block(scenario: KvScenario) -> Block:
    """Return the block and placement that a scenario gives."""
    given = scenario.question.plan
    if given is None:
        raise ValueError("the scenario gives no plan")
    asked = scenario.offload(
        given.gpu_batch,
        given.num_batches,
        given.precision_weights,
        given.precision_kv,
        form=Form(given.keep, given.remade),
        together=given.share_prefix,
    )
    if given.loading != "recompute" and scenario.question.workload.reuse is not None:
        level = given.level or next(iter(scenario.question.workload.reuse.levels))
        asked = replace(asked, prefixes=prefixes_of(scenario, given.loading, given.reuse, level))
    shares: dict[Share, float] = {}
    sites = {path.name for path in scenario.paths if path.site is not None}
    for thing, tiers in given.placement.items():
        for tier, part in tiers.items():
            if thing == "kv" and tier != HBM:
                there = (given.attention_there or {}).get(tier, 1.0 if tier in sites else 0.0)
                shares["kv", tier, "stream"] = part * (1 - there)
                if tier in sites:
                    shares["kv", tier, "there"] = part * there
            else:
                shares[thing, tier, ""] = part
    if asked.prefixes is not None:
        shares |= given_cache(asked, given.cache, given.loaded)
    return Block(asked, shares, kernels_of(asked, (given.gpu_batch,))[given.gpu_batch])


def _search(
    blocks: list[Candidate], aim: Aim, until: float | None, gap: float | None, most: int, floor: float = -math.inf
) -> tuple[list[Block], float | None]:
    """Return the best blocks, the best first, and the score that no other beats: None where none can be better.

    Blocks that cannot pass `floor` are left out.
    """
    found: list[Block] = []
    loose = -math.inf  # what blocks that were asked may still hide
    bounds = sorted(((aim.most(*one), one) for one in blocks), key=lambda pair: -pair[0])
    for bound, one in bounds:
        best = max(floor, aim.score(found[0])) if found else floor
        if bound <= best:
            break
        if found and gap is not None and bound - best <= gap * abs(best):
            return found, max(bound, loose)
        if until is not None and time.perf_counter() > until:
            return found, max(bound, loose)
        block = aim.place(*one, floor=best if math.isfinite(best) else None)
        if block is not None:
            loose = max(loose, aim.bound(block))
            found = sorted([*found, block], key=lambda other: -aim.score(other))[:most]
    return found, loose if found and loose > aim.score(found[0]) else None


def _purchases(scenario: KvScenario, best: Block, aim: Aim) -> list[dict[str, Any]]:
    """Return what one more device of each tier brings, the most first; the whole search is made again."""
    node = scenario.machine.node
    found = []
    for number, tier in enumerate(node.tiers):
        if tier.name not in {path.name for path in scenario.paths}:
            continue
        tiers = (*node.tiers[:number], tier.model_copy(update={"count": tier.count + 1}), *node.tiers[number + 1 :])
        names = {path.name for path in scenario.paths}
        paths = tuple(path for path in tier_paths(node.model_copy(update={"tiers": tiers})) if path.name in names)
        blocks = [one for one in candidates(scenario, paths) if _loads_alike(one[0], best.asked)]
        others, _ = _search(blocks, aim, None, None, most=1, floor=aim.score(best))
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
    """Tell whether two questions do the same with prefixes that are found."""
    if one.prefixes is None or other.prefixes is None:
        return one.prefixes is other.prefixes
    return one.prefixes.overlapped == other.prefixes.overlapped


def _baseline(scenario: KvScenario, best: float, aim: Aim) -> dict[str, Any] | None:
    """Return what runs today beside the best."""
    if scenario.question.plan is None:
        return None
    block = given_block(scenario)
    return {
        "plan": plan_of(scenario, block),
        "prediction": prediction(scenario, block),
        "gain": aim.value_of(aim.score(block)) / best if aim.phase else best / block.tokens_per_s,
    }


def _lacking(small: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"constraint": f"capacity[{name}]", "now": room, "needed": used, "unit": "bytes"}
        for name, (room, used) in small.items()
    ]


def _infeasible(scenario: KvScenario, blocks: list[Candidate], aim: Aim, began: float) -> Result:
    """Return why there is no plan: the fewest bytes that are missing, or the shortest limit that can be met."""
    fitting = [one for one in blocks if place(*one) is not None] if aim.limits else []
    if fitting:
        relaxation = list(_longer_limits(fitting, aim))
        reason = "no block that fits is within the limits of latency"
        seen = len(fitting)
    else:
        missing = missing_bytes(min((one[0] for one in blocks), key=lambda asked: asked.sequences))
        relaxation = _lacking(missing)
        reason, seen = f"the smallest block does not fit: {' and '.join(missing)} too small", 1
    return Result(
        status="infeasible",
        objective=aim.objective(None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": reason, "candidates": seen, "nearest": None}],
        relaxation=relaxation,
        **common(scenario),
    )


def _longer_limits(fitting: list[Candidate], aim: Aim) -> Iterator[dict[str, Any]]:
    """Yield for each limit the shortest that can be met within the other; where none can, both of the nearest block."""
    names = {"prefill": "slo.ttft_mean", "decode": "slo.tpot_mean"}
    alone = []
    for phase, limit in aim.limits.items():
        others = {other: most for other, most in aim.limits.items() if other != phase}
        found = [shortest(*one, phase, others) for one in fitting]
        times = [block.phase_s[phase] for block in found if block is not None]
        if times:
            alone.append({"constraint": names[phase], "now": limit, "needed": min(times), "unit": "s"})
    if alone:
        yield from alone
        return
    weights = {phase: 1.0 / limit for phase, limit in aim.limits.items()}
    blocks = [block for block in (place(*one, weights=weights) for one in fitting) if block is not None]
    nearest = min(blocks, key=lambda block: sum(weights[phase] * block.phase_s[phase] for phase in weights))
    for phase, limit in aim.limits.items():
        yield {"constraint": names[phase], "now": limit, "needed": nearest.phase_s[phase], "unit": "s"}
