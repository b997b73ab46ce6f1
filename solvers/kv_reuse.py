"""What a prefix cache over tiers finds of a trace, what that saves, and which tier pays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hardware.tiers import HBM
from perfmodel.hit_curves import HitCurve
from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.offload import bytes_over_ranks, kernel_times
from solvers.kv_place import Block

GIB = 2.0**30
_MORE = 0.05


def prefix_cache(block: Block, curve: HitCurve, block_tokens: int) -> dict[str, Any]:
    """Return what the memory that a placement leaves free is worth as a cache of prefixes.

    Parameters
    ----------
    block : Block
        A placement; what it leaves free in each tier is the cache.
    curve : HitCurve
        Of the trace.
    block_tokens : int
        Tokens of a block of the trace.

    Returns
    -------
    dict
        ``hit_ratio`` of tokens in tiers that pay, ``prefill_mean_s`` with them and ``prefill_without_s``, ``tiers``,
        ``knee``.

    Notes
    -----
    What is computed is written through to every tier, so that a larger tier holds what the smaller before it hold and
    its own share of hits is the difference of the curve. A tier pays where loading a token takes less time than
    computing it (Mooncake, FAST 2025, equation 2): from the slowest domain on its path, alone, and at the mean length
    of prompts. The knee is where the curve is highest above the line to its end (Satopaa et al., Kneedle, 2011).
    """
    asked = block.asked
    mean = curve.tokens / curve.requests
    prompt_s = float(kernel_times(replace(asked, prompt=max(1, round(mean))), 1.0)[0])
    compute_s = prompt_s / mean
    per_token = float(kv_bytes_per_token(asked.server.architecture, asked.server.cache_bytes))
    size = per_token * block_tokens
    free = {name: max(room - used, 0.0) for name, (room, used) in block.memory_bytes.items()}
    rates = {HBM: asked.accelerators * asked.server.machine.accelerator.memory.bandwidth}
    rates |= {path.name: min(domain.node_up for domain in path.domains) for path in asked.paths}
    latencies = {HBM: 0.0, **{path.name: path.latency_s for path in asked.paths}}
    sizes = {name: size if name != HBM else block_tokens * bytes_over_ranks(asked, 1.0) for name in free}
    held, found, prefill_s, hits = 0.0, 0.0, prompt_s, 0.0
    tiers = []
    for name in sorted(free, key=lambda tier: -rates[tier]):
        blocks = free[name] / sizes[name]
        # keys and values in the accelerators' memory are used where they are
        load_s = 0.0 if name == HBM else per_token / rates[name] + latencies[name] / block_tokens
        larger = max(held, blocks)
        reached = float(curve.prefix_hit_token_ratio(larger))
        pays = load_s < compute_s
        saved_s = mean * (reached - found) * (compute_s - load_s)
        more = float(curve.prefix_hit_token_ratio(larger * (1 + _MORE) + 1)) - reached
        gained_s = mean * more * (compute_s - load_s) if blocks >= held else 0.0
        tiers.append(
            {
                "tier": name,
                "free_bytes": free[name],
                "blocks": int(blocks),
                "hit_ratio_cumulated": reached,
                "load_s_per_token": load_s,
                "compute_s_per_token": compute_s,
                "pays": pays,
                "saved_s_per_request": saved_s,
                "saved_s_per_request_per_gib": gained_s / ((larger * _MORE + 1) * sizes[name] / GIB)
                if blocks >= held
                else 0.0,
            }
        )
        if pays:
            prefill_s -= saved_s
            hits += reached - found
            held, found = larger, reached
    return {
        "hit_ratio": hits,
        "prefill_without_s": prompt_s,
        "prefill_mean_s": prefill_s,
        "tiers": tiers,
        "knee": _knee(curve, size),
    }


def _knee(curve: HitCurve, block_bytes: float) -> dict[str, float] | None:
    if not curve.prefix_hits[-1]:
        return None
    above = curve.prefix_hits / curve.prefix_hits[-1] - np.arange(len(curve.prefix_hits)) / curve.distinct
    blocks = int(np.argmax(above))
    return {
        "blocks": blocks,
        "capacity_bytes": blocks * block_bytes,
        "hit_ratio": float(curve.prefix_hit_token_ratio(blocks)),
        "hit_ratio_unbounded": float(curve.prefix_hit_token_ratio(curve.distinct)),
    }
