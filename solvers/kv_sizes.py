"""What a tier of another size would find, take and cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from solvers.kv_aim import Aim
from solvers.kv_place import Block
from solvers.kv_reuse import prefix_cache

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Sizes that are looked at, over that of the tier."""


def sizes(best: Block, aim: Aim) -> list[dict[str, Any]]:
    """Return for sizes of each tier what a block finds there, how long it takes, and what the tier costs.

    Parameters
    ----------
    best : Block
        The plan.
    aim : Aim
        What it is best at; every size gets its best placement of the same batches.

    Returns
    -------
    list of dict
        ``tier``, ``capacity_bytes``, ``hit_ratio``, ``ttft_mean_s``, ``tokens_per_s``, ``price_usd_per_hour``,
        ``power_w``, and whether it is the ``knee`` of the hit curve; nothing where no placement fits.
    """
    found: list[dict[str, Any]] = []
    asked = best.asked
    if asked.rate is not None:  # the shortest latency of every size would take long: the most tokens within limits
        aim = replace(aim, name="tokens_per_s")
    knee = prefix_cache(best)["knee"] if asked.prefixes is not None else None
    for path in asked.paths:
        tier = path.tier
        looked = {path.capacity_bytes * factor: False for factor in FACTORS}
        if knee is not None and knee["blocks"]:
            looked[knee["capacity_bytes"]] = True
        for size, is_knee in sorted(looked.items()):
            paths = tuple(replace(one, capacity_bytes=size) if one is path else one for one in asked.paths)
            block = aim.place(replace(asked, paths=paths), best.kernels)
            if block is None:
                continue
            devices = size / tier.capacity
            price = tier.price.on_demand if tier.price else None
            found.append(
                {
                    "tier": tier.name,
                    "capacity_bytes": size,
                    "knee": is_knee,
                    "hit_ratio": None if asked.prefixes is None else prefix_cache(block)["hit_ratio"],
                    "ttft_mean_s": block.latency_s["prefill"],
                    "tokens_per_s": block.tokens_per_s,
                    "price_usd_per_hour": None if price is None else price * devices,
                    "power_w": None if tier.power is None else tier.power * devices,
                }
            )
    return found
