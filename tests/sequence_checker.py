"""Check a plan for unequal sequences with arithmetic of its own: nothing of the planners is used here."""

from __future__ import annotations

from math import inf
from typing import Any

TOLERANCE = 1e-9


def faults(case: Any, plan: Any, seconds: float | None = None, node: int | None = None) -> list[str]:
    """Return what is wrong with a plan, and with the time said of it [s]; nothing when it stands.

    `node` is how many accelerators a node has, where groups have to keep to nodes; the case's if it says so.
    """
    lengths = [int(length) for length in case.lengths]
    weights = lengths if case.held_tokens is None else [float(tokens) for tokens in case.held_tokens]
    again = int(case.stages) - 1  # how often the longest micro-step counts once more, to fill and drain a pipeline
    degrees = [int(degree) for degree in case.degrees]
    sizes = [int(degree) for degree in plan.degree]
    firsts = [int(first) for first in plan.first_gpu]
    owner = [int(group) for group in plan.group]
    turn = [int(step) for step in plan.step]
    found: list[str] = []
    if plan.schedule not in ("one-shot", "barrier", "fixed", "splits"):
        found.append(f"unknown schedule {plan.schedule}")
    if len(owner) != len(lengths) or len(turn) != len(lengths):
        return [*found, f"{len(lengths)} sequences, but {len(owner)} groups and {len(turn)} steps named for them"]
    if len(sizes) != len(firsts):
        return [*found, "sizes and places of groups differ in number"]
    for group, (size, first) in enumerate(zip(sizes, firsts, strict=True)):
        if size not in degrees:
            found.append(f"group {group} has {size} accelerators, which no group may have")
        if first < 0 or first + size > case.gpus:
            found.append(f"group {group} lies on {first}..{first + size - 1} of {case.gpus} accelerators")
    found += _astride(sizes, firsts, node or getattr(case, "node_units", None))
    for sequence, (group, step) in enumerate(zip(owner, turn, strict=True)):
        if not 0 <= group < len(sizes):
            found.append(f"sequence {sequence} is in group {group}, which is not there")
        if step < 0:
            found.append(f"sequence {sequence} is in step {step}")
    if found:
        return found

    remapped = bool(getattr(plan, "remapped", False))
    if remapped and plan.schedule not in ("one-shot", "barrier"):
        return [f"tokens are remapped in the schedule {plan.schedule}, whose groups do not meet in every layer"]
    linear: dict[int, float] = {}
    held: dict[tuple[int, int], float] = {}
    busy: dict[tuple[int, int], float] = {}
    for sequence, (group, step) in enumerate(zip(owner, turn, strict=True)):
        column = degrees.index(sizes[group])
        work = float(case.work_s[sequence][column])
        if not work < inf:
            found.append(f"sequence {sequence} may not run on {sizes[group]} accelerators")
        if remapped:
            attention = float(case.attention_s[sequence][column])
            linear[step] = linear.get(step, 0.0) + (work - attention) * sizes[group] / case.gpus
            work = attention
        slot = (group, step)
        held[slot] = held.get(slot, 0) + weights[sequence]
        busy[slot] = busy.get(slot, float(case.fixed_s[column])) + work
    if remapped:
        for step, shared in linear.items():
            on = [0.0] * case.gpus
            for (group, turn_of), tokens in held.items():
                if turn_of == step:
                    for gpu in range(firsts[group], firsts[group] + sizes[group]):
                        on[gpu] += tokens / sizes[group]
            shared += _moving(on, case.remap)
            for slot in busy:
                if slot[1] == step:
                    busy[slot] += shared
    for (group, step), tokens in held.items():
        room = sizes[group] * float(case.capacity_tokens)
        if tokens > room * (1 + TOLERANCE):
            found.append(f"group {group} holds {tokens} tokens in step {step}, with room for {room}")

    if plan.schedule == "one-shot" and any(turn):
        found.append("a one-shot plan has a second step")
    if plan.schedule in ("one-shot", "fixed"):
        found += _shared(range(len(sizes)), sizes, firsts)
        chains = [[seconds for slot, seconds in busy.items() if slot[0] == group] for group in range(len(sizes))]
        total = max((sum(chain) + again * max(chain, default=0.0) for chain in chains), default=0.0)
    elif plan.schedule == "barrier":
        total = slowest = 0.0
        for step in sorted(set(turn)):
            here = [slot for slot in busy if slot[1] == step]
            found += [f"micro-batch {step}: {fault}" for fault in _shared([g for g, _ in here], sizes, firsts)]
            longest = max(busy[slot] for slot in here)
            total, slowest = total + longest, max(slowest, longest)
        total += again * slowest
    else:
        if again:
            found.append("groups that split do not run through a pipeline")
        total = _in_turn(found, sizes, firsts, busy, case.gpus)
    if seconds is not None and abs(total - seconds) > 1e-6 * max(total, seconds):
        found.append(f"takes {total} s, said to take {seconds} s")
    return found


def _moving(on: list[float], remap: Any) -> float:
    """Return the time in which tokens come to equal numbers and back in all layers, transfer by transfer [s]."""
    count, mean = len(on), sum(on) / len(on)
    over = [max(tokens - mean, 0.0) for tokens in on]
    under = [max(mean - tokens, 0.0) for tokens in on]
    transfer: list[tuple[tuple[int, int], float, int]] = []
    furthest = -1
    for level, unit in enumerate(remap.units):
        left_over, left_under = over[:], under[:]
        for start in range(0, count, unit):
            inside = range(start, start + unit)
            has, lacks = sum(over[i] for i in inside), sum(under[i] for i in inside)
            if has <= 1e-12 * sum(on) or lacks <= 1e-12 * sum(on):
                continue
            for i in inside:
                for j in inside:
                    amount = over[i] * under[j] / max(has, lacks)
                    if amount > 0:
                        transfer.append(((i, j), amount, level))
                        left_over[i] -= amount
                        left_under[j] -= amount
                        furthest = max(furthest, level)
        over, under = left_over, left_under
    rate, near = [float(cost) * remap.token_bytes for cost in remap.seconds_per_byte], remap.node
    unit = remap.units[near] if near >= 0 else 1
    direct = routed = 0.0
    for end in (0, 1):  # those who send, those who receive
        alone, inside_node, leaving = [0.0] * count, [0.0] * count, [0.0] * (count // unit)
        for pair, amount, level in transfer:
            alone[pair[end]] += amount * rate[level]
            if level <= near:
                inside_node[pair[end]] += amount * rate[level]
            else:
                leaving[pair[end] // unit] += amount / unit * (rate[level] + 2 * (rate[near] if near >= 0 else 0.0))
        direct = max(direct, *alone)
        routed = max(routed, *(inside_node[gpu] + leaving[gpu // unit] for gpu in range(count)))
    latency = float(remap.latency_s[furthest]) * remap.exchanges if furthest >= 0 else 0.0
    return latency + min(direct, routed)


def _astride(sizes: list[int], firsts: list[int], node: int | None) -> list[str]:
    """Return which groups leave a node that would hold them, or do not begin with one that does not."""
    found = []
    for group, (size, first) in enumerate(zip(sizes, firsts, strict=True)):
        if node and size <= node and len({gpu // node for gpu in range(first, first + size)}) > 1:
            found.append(f"group {group} of {size} from {first} leaves its node of {node}")
        if node and size > node and first % node:
            found.append(f"group {group} of {size} begins inside a node, at {first}")
    return found


def _shared(groups: Any, sizes: list[int], firsts: list[int]) -> list[str]:
    holder: dict[int, int] = {}
    found = set()
    for group in groups:
        for gpu in range(firsts[group], firsts[group] + sizes[group]):
            if gpu in holder:
                found.add(f"groups {holder[gpu]} and {group} share accelerators")
            holder[gpu] = group
    return sorted(found)


def _in_turn(
    found: list[str], sizes: list[int], firsts: list[int], busy: dict[tuple[int, int], float], gpus: int
) -> float:
    """Return the time of groups that follow one another on their accelerators, each inside the one before it."""
    clock = [0.0] * gpus
    last: list[int | None] = [None] * gpus
    each = [0.0] * len(sizes)
    for (group, _), seconds in busy.items():
        each[group] += seconds
    for group, (size, first) in enumerate(zip(sizes, firsts, strict=True)):
        block = range(first, first + size)
        for before in {last[gpu] for gpu in block} - {None}:
            if before is None or (firsts[before] <= first and first + size <= firsts[before] + sizes[before]):
                continue
            found.append(f"group {group} is not inside group {before}, whose accelerators it takes over")
        end = max(clock[gpu] for gpu in block) + each[group]
        for gpu in block:
            clock[gpu], last[gpu] = end, group
    return max(clock, default=0.0)
