"""What a prefix cache over tiers finds of a trace, what that saves, and where loading loses against computing."""

from __future__ import annotations

from typing import Any

import numpy as np

from hardware.tiers import HBM, TierPath
from perfmodel.hit_curves import DEPTHS, HitCurve, characteristic_time_hit_ratio
from perfmodel.kv_equations import streamed_first_token, whole_meeting_point
from perfmodel.offload import Kernels, Offload, evaluated, memory_rows, prefix_blocks, stored_token_bytes
from solvers.kv_cached import tiers_of
from solvers.kv_place import Block


def prefix_cache(block: Block) -> dict[str, Any]:
    """Return what the cache of prefixes of a placement finds, and what a request gets from each tier of it.

    Parameters
    ----------
    block : Block
        A placement with such a cache.

    Returns
    -------
    dict
        ``hit_ratio`` of tokens that are loaded, ``found_ratio`` of those that are there, the rate from which loading
        wins, ``tiers`` and ``knee``.

    Notes
    -----
    A tier pays where loading a token takes less time than computing it (Mooncake, FAST 2025, equation 2), from the
    slowest domain on its path, alone. The knee is where the curve is highest above the line to its end (Satopaa et al.,
    Kneedle, 2011).
    """
    asked, shares = block.asked, block.shares
    prefixes = asked.prefixes
    assert prefixes is not None
    paths = {path.name: path for path in asked.paths}
    compute_s = block.kernels.prompts_s / asked.prompts[0] / asked.prompt
    reach, loaded = 0.0, 0.0
    tiers = []
    for name in tiers_of(asked):
        room, row = memory_rows(asked)[name]
        held = shares.get(("cache", name, ""), 0.0) * room
        blocks = prefix_blocks(asked, name, held)
        reach = max(reach, blocks)
        part = sum(shares.get(("found", name, str(depth)), 0.0) for depth in range(DEPTHS))
        loaded += part
        entry: dict[str, Any] = {
            "tier": name,
            "free_bytes": max(room - evaluated(row, shares), 0.0),
            "cache_bytes": held,
            "blocks": int(blocks),
            "hit_ratio_cumulated": float(prefixes.found(reach).sum()),
            "hit_ratio_che": _approximated(prefixes.curve, reach),
            "loaded_ratio": part,
            "compute_s_per_token": compute_s,
        }
        load_s = 0.0
        if name != HBM:
            load_s = load_time(asked, paths[name])
            entry["request"] = whole_prompt(asked, block.kernels, load_s)
        tiers.append({**entry, "load_s_per_token": load_s, "pays": load_s < compute_s})
    return {
        "hit_ratio": loaded,
        "found_ratio": float(prefixes.found(reach).sum()),
        "pays_above_bytes_per_s": stored_token_bytes(asked) / compute_s,
        "tiers": tiers,
        "knee": _knee(prefixes.curve, stored_token_bytes(asked) * prefixes.block_tokens),
    }


def _approximated(curve: HitCurve, blocks: float) -> float | None:
    """Return the share of blocks found, wherever they stand, by Che's characteristic time; None without a trace."""
    return float(characteristic_time_hit_ratio(curve, blocks)) if len(curve.reuse_bins) else None


def load_time(asked: Offload, path: TierPath) -> float:
    """Return the time to load a token of the cache from a tier, alone on its path [s]."""
    assert asked.prefixes is not None
    rate = min(domain.node_up for domain in path.domains)
    return stored_token_bytes(asked) / rate + path.latency_s / asked.prefixes.block_tokens


def whole_prompt(asked: Offload, kernels: Kernels, load_s: float) -> dict[str, Any]:
    """Return the time of one prompt that is found whole in a tier, by what is done with it.

    Parameters
    ----------
    asked : Offload
        The question.
    kernels : Kernels
        Of its batch.
    load_s : float
        Time to load a token [s].

    Returns
    -------
    dict
        ``compute_s``: computed again; ``load_s``: loaded, then the last token; ``streamed_s``: the same layer by layer;
        ``both_s``: computed from the front while loaded from the back, and ``computed_ratio``, where the two meet;
        ``choice``.
    """
    assert asked.prefixes is not None
    parts = np.array(kernels.spared_s) / asked.prompts[0]
    whole = kernels.prompts_s / asked.prompts[0]
    last = max(whole - float(parts.sum()), 0.0)
    chunks = max(round(asked.prompt / asked.prefixes.block_tokens), 1)
    each = chunks / DEPTHS
    growth = max(float(parts[-1] - parts[0]), 0.0) / (each * each * (DEPTHS - 1))
    first = float(parts.sum()) / chunks - growth * (chunks - 1) / 2
    loading = asked.prompt * load_s
    computed, both = whole_meeting_point(chunks, max(first, 0.0), growth, loading / chunks)
    layers = np.ones(asked.depth) / asked.depth
    times = {"compute": whole, "load": loading + last, "both": both + last}
    return {
        "compute_s": whole,
        "load_s": times["load"],
        "streamed_s": streamed_first_token(loading * layers, last * layers),
        "both_s": times["both"],
        "computed_ratio": computed / chunks,
        "choice": min(times, key=lambda name: times[name]),
    }


def losing(said: dict[str, Any]) -> list[str]:
    """Return a warning for each tier of a cache from which loading takes longer than computing."""
    return [
        f"{one['tier']}: loading a prompt takes {one['request']['load_s']:.3g} s where computing it takes "
        f"{one['request']['compute_s']:.3g} s; an engine that waits for what it finds there loses"
        for one in said["tiers"]
        if not one["pays"] and one["cache_bytes"] > 0
    ]


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
