"""Counts a kv plan's bytes afresh and holds them against sizes and rates; it knows nothing of the planner's model.

Of requests that arrive the time to the first token holds at least a prompt's, so that the count is a weaker one there.
Dense models with grouped attention whose weights take two bytes, tiers straight on one link, no attention elsewhere.
"""

from __future__ import annotations

from typing import Any

ROUND = 1 + 1e-4


def check(answer: dict[str, Any], *, weights_bytes: float, kv_bytes_per_token: float, hidden: int, layers: int) -> None:
    """Fail where a plan holds more than a tier has, or moves more than a tier or the link carries in a phase."""
    found, said, asked = answer["plan"], answer["prediction"], answer["scenario"]
    machine = asked["cluster"]
    node = machine.get("node", machine)
    count = node["accelerators"]["count"]
    n = found["gpu_batch"] * found["num_batches"]
    lengths = asked["workload"]["lengths"]
    isl, osl = lengths["isl"], lengths["osl"]
    arriving = asked["workload"].get("arrivals", "offline") != "offline"
    together = 1 if arriving else n  # prompts that are computed at once
    at = found["placement"]
    for shares in at.values():
        assert abs(sum(shares.values()) - 1) < 1e-5
    loaded = {tier: sum(parts) for tier, parts in found.get("loaded", {}).items()}
    cache = found.get("cache", {})
    level = (asked["workload"].get("reuse") or {"levels": {None: 1.0}})["levels"].get(found.get("level"), 1.0)
    keep = found.get("keep", 1.0)
    held = kv_bytes_per_token * n * (isl + osl if keep == 1 else keep * isl)
    seen = kv_bytes_per_token * n * (isl + osl / 2 if keep == 1 else keep * isl)
    prompts = kv_bytes_per_token * together * isl

    def part(thing: str, tier: str) -> float:
        return float(at[thing].get(tier, 0.0))

    own = part("weights", "hbm") * weights_bytes + part("kv", "hbm") * held
    own += part("activations", "hbm") * 2 * hidden * n * isl
    own += cache.get("hbm", 0.0) * 80 * 2**30 * count
    assert own <= 80 * 2**30 * count * ROUND
    prefill_s, token_s = said["ttft_mean_s"], said["tpot_mean_s"]
    link_in, link_out, token_in = 0.0, 0.0, 0.0
    for tier in node["tiers"]:
        name, devices = tier["name"], tier["count"]
        size = tier["capacity"] * devices
        holds = part("weights", name) * weights_bytes + part("kv", name) * held
        holds += part("activations", name) * 2 * hidden * n * isl + cache.get(name, 0.0) * size
        assert holds <= size * ROUND, name
        hidden_bytes = part("activations", name) * 2 * hidden * together * isl * layers
        read = part("weights", name) * weights_bytes + loaded.get(name, 0.0) * level * prompts + hidden_bytes
        written = part("kv", name) * min(held, prompts) + hidden_bytes
        if cache.get(name, 0.0) > 0:
            written += (1 - sum(loaded.values())) * level * prompts
        each = part("weights", name) * weights_bytes + part("kv", name) * seen
        assert read <= tier["read"] * devices * prefill_s * ROUND, name
        assert written <= tier["write"] * devices * prefill_s * ROUND, name
        assert each <= tier["read"] * devices * token_s * ROUND, name
        link_in, link_out, token_in = link_in + read, link_out + written, token_in + each
    rate = sum(
        link["bandwidth"] * -(-count // link["shared_by"])
        for link in node["links"]
        if link["name"] == node["tiers"][0]["link"]
    )
    assert max(link_in, link_out) <= rate * prefill_s * ROUND
    assert token_in <= rate * token_s * ROUND
    if arriving:
        return
    block_s = prefill_s + (osl - 1) * token_s
    assert abs(said["tokens_per_s"] / (n * osl / block_s) - 1) < 1e-9
