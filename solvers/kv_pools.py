"""Nodes for prompts and nodes for answers: how many of each, with keys and values sent between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from perfmodel.kv_arrivals import first_token_time, running
from perfmodel.kv_transfer import exposed_transfer, transfer_time
from perfmodel.offload import Offload, held_bytes
from solvers.kv_aim import Aim, shortest
from solvers.kv_place import Block
from solvers.kv_scenario import KvScenario
from solvers.kv_space import Candidate


def pools(scenario: KvScenario, blocks: list[Candidate], best: Block, aim: Aim) -> dict[str, Any] | None:
    """Return what every division of the nodes into two pools does, beside nodes that do both.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    blocks : list of Candidate
        What is searched.
    best : Block
        The best where every node does both.
    aim : Aim
        What it is best at.

    Returns
    -------
    dict or None
        ``splits``: nodes of each pool, what they answer, times, and of a prompt's transfer what is left when it is
        computed (layer by layer: Mooncake, Splitwise); ``choice``. None of one node, or where no transfer is stated.

    Notes
    -----
    A pool has the placement whose phase is the shortest, of all blocks that is the one that answers most. Prompts of a
    pool wait for prompts only, tokens for none.
    """
    nodes = scenario.question.nodes
    if nodes < 2 or scenario.engine.transfer is None or scenario.machine.node.nics is None:
        return None
    placed: dict[str, list[Block]] = {"prefill": [], "decode": []}
    for asked, kernels in blocks:
        if _alike(asked, best.asked):
            for phase, found in placed.items():
                block = shortest(replace(asked, rate=None, nodes=1), kernels, phase, {})
                if block is not None:
                    found.append(block)
    if not placed["prefill"] or not placed["decode"]:
        return None
    asked = best.asked
    together = 1 if asked.rate is not None else None
    first = max(placed["prefill"], key=lambda block: (together or block.asked.sequences) / block.phase_s["prefill"])
    prompts = together or first.asked.sequences
    prompt_s = first.phase_s["prefill"]
    sent_s = float(transfer_time(held_bytes(asked, float(asked.prompt)), scenario.engine, scenario.machine.node))
    left_s = float(exposed_transfer(sent_s / asked.depth, prompt_s / prompts / asked.depth, asked.depth))
    splits = []
    for count in range(1, nodes):
        others = nodes - count
        split = _split(asked, placed["decode"], (count, others), (prompts, prompt_s), (sent_s, left_s), aim)
        if split is not None:
            splits.append(split)
    whole = aim.value_of(aim.score(best))
    better = aim.phase is not None
    apart = sorted(splits, key=lambda split: (split[aim.name] * (1 if better else -1), split["ttft_mean_s"]))
    wins = apart and (apart[0][aim.name] < whole if better else apart[0][aim.name] > whole)
    return {"splits": splits, "choice": "apart" if wins else "together", "best": apart[0] if apart else None}


def _split(
    asked: Offload,
    decoding: list[Block],
    nodes: tuple[int, int],
    prompts: tuple[int, float],
    sent: tuple[float, float],
    aim: Aim,
) -> dict[str, Any] | None:
    """Return the best that two pools of so many nodes do within the limits."""
    count, others = nodes
    gaps = asked.generated - 1
    # a prompt takes its node's time, and the adapters of both sides
    requests = min(count * prompts[0] / prompts[1], count / sent[0], others / sent[0])
    found = []
    for block in decoding:
        token_s = block.phase_s["decode"]
        rate = min(requests, others * block.asked.sequences / (gaps * token_s))
        ttft = prompts[1]
        if asked.rate is not None:
            arriving = asked.rate * asked.nodes
            places = others * float(running(block.asked.sequences))
            if arriving >= requests or arriving * gaps * token_s > places:
                continue
            ttft = float(first_token_time(prompts[1], 0.0, arriving / count))
        said = {"ttft_mean_s": ttft, "tpot_mean_s": token_s + sent[1] / gaps, "tokens_per_s": rate * asked.generated}
        times = {"prefill": said["ttft_mean_s"], "decode": said["tpot_mean_s"]}
        if any(times[phase] > limit for phase, limit in aim.limits.items()):
            continue
        found.append({**said, "decode_batch": block.asked.sequences})
    if not found:
        return None
    sign = 1 if aim.phase is not None else -1
    chosen = min(found, key=lambda one: (sign * one[aim.name], -one["tokens_per_s"]))
    sizes = {"prefill_nodes": count, "decode_nodes": others}
    return {**sizes, **chosen, "transfer_s": sent[0], "exposed_transfer_s": sent[1]}


def _alike(one: Offload, other: Offload) -> bool:
    """Tell whether two questions differ in their batches alone."""
    types = ("precision_weights", "precision_kv")
    same = all(getattr(one.server, name) == getattr(other.server, name) for name in types)
    return same and (one.form, one.shared, one.prefixes) == (other.form, other.shared, other.prefixes)
