"""The placement that a scenario gives: what `predict` costs, and what runs today beside the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hardware.tiers import HBM
from perfmodel.offload import Form, Share
from perfmodel.offload_kernels import kernels_of
from solvers.kv_aim import Aim
from solvers.kv_answer import plan_of, prediction
from solvers.kv_cached import given_cache
from solvers.kv_cost import with_devices
from solvers.kv_place import Block
from solvers.kv_scenario import KvScenario
from solvers.kv_space import prefixes_of


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


def as_given(scenario: KvScenario) -> KvScenario:
    """Return a scenario with the devices that its plan has."""
    given = scenario.question.plan
    return scenario if given is None or given.devices is None else with_devices(scenario, given.devices)


def today(scenario: KvScenario, aim: Aim, best: float) -> dict[str, Any] | None:
    """Return what runs today, with what the best gains over it; None where nothing is said of it.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    aim : Aim
        What it is to be best at.
    best : float
        The objective of the best plan.
    """
    if scenario.question.plan is None:
        return None
    now = as_given(scenario)
    block = given_block(now)
    said = prediction(now, block)
    name = scenario.question.objective
    value = said["cost_usd_per_hour"] if name == "cost_usd_per_hour" else aim.value_of(aim.score(block))
    ratio = best / value if name == "tokens_per_s" else value / best if best else None
    devices = scenario.question.plan.devices
    plan = plan_of(now, block) | ({} if devices is None else {"devices": devices})
    return {"plan": plan, "prediction": said, "gain": ratio}
