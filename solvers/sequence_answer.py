"""Plans for unequal sequences written out: groups, assignment, prediction, and why there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfmodel import provenance
from perfmodel.intervals import gain_interval, part_seconds, step_interval
from perfmodel.layer import STREAMED
from perfmodel.plan import CHOICES
from perfmodel.power.training import ENERGY, energy_dict, work_power
from perfmodel.sequence import ATTENTION_PARTS
from perfmodel.sequence_offload import Offload
from perfmodel.terms import COMPUTE, HOST, IDLE, LINK, MEMORY, Array, Term, to_dict, total
from perfmodel.utilisation import step_flops_per_token
from solvers.result import Objective, Result
from solvers.sequence_bounds import alone_s, work_bound
from solvers.sequence_case import (
    Case,
    Integers,
    Scatter,
    drain_s,
    group_ends,
    makespan,
    remapping,
    shared_s,
    step_times,
)
from solvers.sequence_scenario import SequenceScenario
from solvers.sequence_unit import accelerators

_BOUNDS = {
    "projections": COMPUTE,
    "attention core": COMPUTE,
    "experts": COMPUTE,
    "logits and loss": COMPUTE,
    "kernel launches by the host": HOST,
    "host work per step": HOST,
    "sequences": COMPUTE,
    "fixed time of micro-steps": HOST,
    "waiting for other groups": IDLE,
    "pipeline bubble": IDLE,
    "norms and activations": MEMORY,
    "quantisation": MEMORY,
    "embedding": MEMORY,
    "optimizer": MEMORY,
}
"""What mostly holds a part of a step back; everything else waits for links."""


def objective(value: float | None) -> Objective:
    """Return the objective of the kind."""
    return Objective("step_time_s", value, "s", "min")


def sequence_provenance(scenario: SequenceScenario) -> dict[str, Any]:
    """Return what an answer rests on."""
    if scenario.job is not None:
        return provenance.provenance(scenario.job)
    machine = scenario.machine
    return {
        "version": provenance.release(),
        "hardware": [machine.accelerator.name, machine.node.name, machine.cluster.name],
        "calibration": ["costs of the scenario"],
    }


def plan_dict(scenario: SequenceScenario, plan: Scatter) -> dict[str, Any]:
    """Return a plan as a plan JSON holds it.

    Notes
    -----
    A sequence on d accelerators is cut into 2 d chunks, of which the i-th takes i and 2 d - 1 - i, so that all compute
    as many pairs of a causal mask; with Ulysses, where each computes all pairs of its heads, into d.
    """
    styles = _styles(scenario, plan)
    steps = _from_zero(plan)
    degrees = plan.degree[plan.group]
    chunks = np.where(styles == "none", 1, np.where(styles == "ulysses", degrees, 2 * degrees))
    groups, units = [], scenario.machine.accelerators // scenario.costs.unit
    for number, (degree, first) in enumerate(zip(plan.degree.tolist(), plan.first_gpu.tolist(), strict=True)):
        used = sorted(set(styles[plan.group == number].tolist()))
        style = used[0] if len(used) == 1 else "mixed" if used else "none"
        own = accelerators(first, degree, units, scenario.costs.tp, scenario.costs.pp)
        groups.append({"id": number, "degree": degree, "style": style, "gpus": own})
    columns = (plan.group, steps, chunks, scenario.lengths, styles)
    assignment = [
        {"sequence": number, "group": group, "micro_step": step, "chunks": cut, "tokens": tokens, "style": style}
        for number, (group, step, cut, tokens, style) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]
    told: dict[str, Any] = {"schedule": plan.schedule, "groups": groups, "assignment": assignment}
    if plan.remapped:
        moved = remapping(scenario.case, plan)
        told["remap"] = {
            "within_node_bytes": float(moved.within_bytes.sum()),
            "across_nodes_bytes": float(moved.across_bytes.sum()),
            "seconds": float(moved.seconds.sum()),
            "largest_row_s": float(moved.largest_row_s.sum()),
            "routed_micro_batches": int(moved.routed.sum()),
        }
    return told


def scatter_of(told: Mapping[str, Any], tp: int = 1) -> Scatter:
    """Return the plan that `plan_dict` wrote, with so many accelerators that share a layer."""
    groups, assignment = told["groups"], told["assignment"]
    columns = ([one["degree"] for one in groups], [one["gpus"][0] // tp for one in groups])
    places = ([one["group"] for one in assignment], [one["micro_step"] for one in assignment])
    degree, first, group, step = (np.array(column, dtype=np.int64) for column in (*columns, *places))
    return Scatter(told["schedule"], degree, first, group, step, told.get("remap") is not None)


def timeline(case: Case, plan: Scatter) -> tuple[Integers, Array, Array]:
    """Return group, begin and end of every micro-step, on the first stage of a pipeline [s]."""
    group, step, seconds, _ = step_times(case, plan)
    if plan.schedule == "barrier":
        slowest = np.zeros(int(step.max(initial=0)) + 1)
        np.maximum.at(slowest, step, seconds)
        begin = (np.cumsum(slowest) - slowest)[step]
        return group, begin, begin + seconds
    # micro-steps are listed by group, in their order: those of a group follow one another until it ends
    until = np.cumsum(seconds)
    last = np.searchsorted(group, group, side="right") - 1
    end = (group_ends(case, plan) - drain_s(case, plan, group, seconds))[group] - (until[last] - until)
    return group, end - seconds, end


def _from_zero(plan: Scatter) -> np.ndarray:
    """Return micro-steps numbered without gaps: within each group, or among all where there is a barrier."""
    if plan.schedule == "barrier":
        return np.unique(plan.step, return_inverse=True)[1]
    steps = int(plan.step.max(initial=0)) + 1
    used, inverse = np.unique(plan.group * steps + plan.step, return_inverse=True)
    first = np.searchsorted(used // steps, np.arange(len(plan.degree)))
    return np.asarray(np.arange(len(used)) - first[used // steps])[inverse]


def _styles(scenario: SequenceScenario, plan: Scatter) -> np.ndarray:
    """Return how each sequence is split: as the plan given says, else the style of least time."""
    costs = scenario.costs
    column = np.searchsorted(costs.degrees, plan.degree)[plan.group]
    rows = np.arange(len(scenario.lengths))
    names = np.array(costs.styles)
    if len(names) > 1:
        times = np.stack([costs.of(scenario.lengths.astype(float), style)[rows, column] for style in costs.styles])
        best = names[times.argmin(axis=0)]
    else:
        best = np.repeat(names, len(rows))
    asked = scenario.question.plan
    if scenario.given is plan and asked is not None:
        stated = np.array([group.style for group in asked.groups])[plan.group]
        best = np.where(np.isin(stated, names), stated, best)
    return np.where(plan.degree[plan.group] == 1, "none", best)


def described(
    scenario: SequenceScenario, case: Case, plan: Scatter, static: tuple[Scatter, float, float] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return prediction and breakdown of a plan.

    Parameters
    ----------
    static : tuple of Scatter, float and float
        The best plan with groups of one size, its makespan, and what no such plan can beat [s].
    """
    costs = scenario.costs
    outside = sum(costs.outside_s.values())
    step = _tree(scenario, case, plan)
    value = float(step.seconds)
    group, turn, seconds, tokens = step_times(case, plan)
    low, high = (float("nan"),) * 2
    if scenario.job is not None:
        low, high = (float(factor) for factor in step_interval(scenario.job, step))
    slowest = makespan(case, plan)
    shared = shared_s(case, plan)
    busy = float(((seconds - shared[turn]) * plan.degree[group]).sum() + shared.sum() * case.gpus)
    fullest = np.zeros(len(plan.degree))
    np.maximum.at(fullest, group, tokens)
    memory = costs.state_bytes + costs.token_bytes * fullest / plan.degree
    beside: dict[str, Any] = {}
    if static is not None:
        other, static_s = static[0], static[1] + outside
        gain, (gain_low, gain_high) = static_s / value, gain_interval() if scenario.job is not None else (low, high)
        beside = {
            "best_static_step_time_s": static_s,
            "best_static_step_time_s_p10": static_s * low,
            "best_static_step_time_s_p90": static_s * high,
            "best_static_degree": int(other.degree[0]),
            "best_static_schedule": other.schedule,
            "best_static_bound_s": static[2] + outside,
            "gain": gain,
            "gain_p10": gain * gain_low,
            "gain_p90": gain * gain_high,
        }
    if case.stages > 1:
        beside |= _pipeline(case, plan)
    if costs.offload is not None:
        beside |= _offloaded(scenario, costs.offload, case, plan)
    prediction: dict[str, Any] = {
        "step_time_s": value,
        "step_time_s_p10": value * low,
        "step_time_s_p90": value * high,
        "makespan_s": slowest,
        **beside,
        "tokens": int(case.lengths.sum()),
        "sequences": len(case.lengths),
        "gpus": scenario.machine.accelerators,
        "tokens_per_s_per_gpu": float(case.lengths.sum()) / value / scenario.machine.accelerators,
        "busy_share": busy / (slowest * case.gpus),
        "micro_steps": len(group),
        "capacity_tokens": case.capacity_tokens,
        "memory_bytes": {str(number): float(value) for number, value in enumerate(memory)},
        **_power(scenario, step, busy / case.gpus, high),
    }
    return prediction, to_dict(step)


def _power(scenario: SequenceScenario, step: Term, busy_s: float, slower: float) -> dict[str, float | None]:
    """Return power and energy of a step, of accelerators that are busy for so long on average; None without a model.

    Parameters
    ----------
    step : Term
        The step, whose micro-steps are those of the last group; others stream for the same share of their work.
    busy_s : float
        Time that an accelerator works on sequences [s].
    slower : float
        P90 of the step over the prediction.
    """
    job = scenario.job
    if job is None:
        return dict.fromkeys(ENERGY)
    seconds, repeats = float(step.seconds), CHOICES["recompute"].index(scenario.question.layout.recompute)
    operations = 0.0
    for length, count in zip(*np.unique(scenario.lengths, return_counts=True), strict=True):
        model, again = step_flops_per_token(job.architecture, int(length))
        operations += float(count * length * (model + again[repeats]))
    utilised = operations / (job.ranks * job.peak * seconds)
    parts = part_seconds(step)
    streamed = float(sum(np.asarray(parts.get(name, 0.0)) for name in STREAMED)) / float(step.children[0].seconds)
    outside_s = float(np.asarray(parts.get("optimizer", 0.0)))
    return {**energy_dict(work_power(job, utilised, (streamed * busy_s + outside_s) / seconds), seconds, slower)}


def _offloaded(scenario: SequenceScenario, offload: Offload, case: Case, plan: Scatter) -> dict[str, float]:
    """Return the most that an accelerator has in host memory at a time, and how busy its link is in each direction."""
    moved = offload.moved_bytes(case.lengths.astype(float))
    steps = int(plan.step.max(initial=0)) + 1
    used, inverse = np.unique(plan.group * steps + plan.step, return_inverse=True)
    each = np.bincount(inverse, moved, len(used)) / plan.degree[used // steps]
    busy = float(moved.sum()) / offload.rate / (makespan(case, plan) * case.gpus)
    return {
        "offloaded_bytes": float(each.max(initial=0.0)),
        "host_memory_bytes": offload.host_bytes,
        "host_link_busy_share": busy,
    }


def _pipeline(case: Case, plan: Scatter) -> dict[str, float]:
    """Return how equal micro-steps are, and the share of the stages' time in which pipelines fill and drain.

    The balance is the longest micro-step of each group (behind barriers: of all) over their mean, weighted by time.
    """
    group, step, seconds, _ = step_times(case, plan)
    if plan.schedule == "barrier":
        slowest = np.zeros(int(step.max(initial=0)) + 1)
        np.maximum.at(slowest, step, seconds)
        slowest = slowest[slowest > 0]
        drain = (case.stages - 1) * float(slowest.max(initial=0.0))
        share, balance = drain / makespan(case, plan), float(slowest.max() / slowest.mean())
    else:
        drains = drain_s(case, plan, group, seconds)
        share = float((drains * plan.degree).sum()) / (makespan(case, plan) * case.gpus)
        balance = float((drains / (case.stages - 1) * np.bincount(group, minlength=len(drains))).sum() / seconds.sum())
    return {"micro_step_balance": balance, "pipeline_bubble_share": share}


def _tree(scenario: SequenceScenario, case: Case, plan: Scatter) -> Term:
    """Return the step as a tree: the chain of micro-steps that ends last, and what lies outside."""
    costs = scenario.costs
    chain = _chain(case, plan)
    steps = int(plan.step.max(initial=0)) + 1
    member = np.isin(plan.group * steps + plan.step, [group * steps + step for group, step in chain])
    column = np.searchsorted(case.degrees, plan.degree)
    fixed = float(sum(case.fixed_s[column[group]] for group, _ in chain))
    kind = np.arange(len(plan.group)), column[plan.group]
    weight = member.astype(float)
    if costs.exact is not None:
        parts = {"sequences": float(case.work_s[kind] @ weight)}
    elif plan.remapped:
        assert case.attention_s is not None
        attention, dealt = case.attention_s[kind], plan.degree[plan.group] / case.gpus
        linear = case.work_s[kind] - attention
        names = [name for name in costs.parts[costs.styles[0]] if name not in ATTENTION_PARTS]
        parts = _parts(scenario, plan, weight, ATTENTION_PARTS, float(attention @ weight))
        parts |= _parts(scenario, plan, dealt, names, float(linear @ dealt))
        parts["moves between layouts"] = float(remapping(case, plan).seconds.sum())
    else:
        names = list(costs.parts[costs.styles[0]])
        parts = _parts(scenario, plan, weight, names, float(case.work_s[kind] @ weight))
    parts["fixed time of micro-steps"] = fixed
    if case.stages > 1:
        parts["pipeline bubble"] = makespan(case, plan) - math.fsum(parts.values())
    spent = total("micro-steps", [Term(name, value, _BOUNDS.get(name, LINK)) for name, value in parts.items()])
    outside = [Term(name, value, _BOUNDS.get(name, LINK)) for name, value in costs.outside_s.items()]
    return total("step", [spent, *outside])


def _parts(
    scenario: SequenceScenario, plan: Scatter, weight: Array, names: Sequence[str], seconds: float
) -> dict[str, float]:
    """Return the time of some parts of sequences, each times its weight, that add up to so many seconds [s].

    Parts and whole are interpolated alike; where the best style changes between, they differ by rounding.
    """
    costs = scenario.costs
    styles = _styles(scenario, plan)
    styles = np.where(styles == "none", costs.styles[0], styles)
    column = np.searchsorted(costs.degrees, plan.degree)[plan.group]
    parts = dict.fromkeys(names, 0.0)
    for style in costs.styles:
        chosen = np.flatnonzero((styles == style) & (weight > 0))
        lengths = scenario.lengths[chosen].astype(float)
        for name in names:
            if name in costs.parts[style]:
                found = costs.interpolated(costs.parts[style][name], lengths)[np.arange(len(chosen)), column[chosen]]
                parts[name] += float(np.where(np.isfinite(found), found, 0.0) @ weight[chosen])
    scale = seconds / (math.fsum(parts.values()) or 1.0)
    return {name: value * scale for name, value in parts.items()}


def _chain(case: Case, plan: Scatter) -> list[tuple[int, int]]:
    """Return group and step of the micro-steps, one after another, whose times add up to the makespan."""
    group, step, seconds, _ = step_times(case, plan)
    if plan.schedule == "barrier":
        order = np.lexsort((-seconds, step))
        first = order[np.unique(step[order], return_index=True)[1]]
        return [(int(group[one]), int(step[one])) for one in first]
    ends = group_ends(case, plan)
    current = int(ends.argmax())
    chain = [current]
    busy = np.bincount(group, seconds, len(plan.degree)) + drain_s(case, plan, group, seconds)
    while True:
        begin = ends[current] - busy[current]
        if begin <= 1e-12 * ends.max():
            break
        low, high = plan.first_gpu[current], plan.first_gpu[current] + plan.degree[current]
        before = np.flatnonzero(
            (plan.first_gpu[:current] < high) & (plan.first_gpu[:current] + plan.degree[:current] > low)
        )
        current = int(before[ends[before].argmax()])
        chain.append(current)
    return [(int(g), int(s)) for g, s in zip(group, step, strict=True) if int(g) in chain]


def infeasible_answer(scenario: SequenceScenario, case: Case, began: float) -> Result | None:
    """Return the answer where a sequence fits no group, or the batch no schedule allowed; None where all is well."""
    alone = alone_s(case).min(axis=1)
    stuck = np.flatnonzero(~np.isfinite(alone))
    if len(stuck):
        worst = int(stuck[case.lengths[stuck].argmax()])
        reason = _stuck_reason(scenario, case, worst, len(stuck))
        return _refusal(scenario, reason, _relaxation(scenario, case, float(case.held[worst])), began)
    schedules = scenario.schedules if scenario.given is None else (scenario.given.schedule,)
    if scenario.given is None and not any(math.isfinite(work_bound(case, name)) for name in schedules):
        tokens, room = int(case.lengths.sum()), case.gpus * case.capacity_tokens
        per_node = scenario.machine.node.accelerators.count
        nodes = math.ceil(float(case.held.sum()) / case.capacity_tokens * scenario.costs.unit / per_node)
        reason = f"one-shot: {tokens:,} tokens at once, and the cluster has room for {int(room):,}"
        change = {"constraint": "nodes", "now": scenario.machine.nodes, "needed": nodes, "unit": ""}
        return _refusal(scenario, reason, [change], began)
    if scenario.given is not None:
        group, step, _, held = step_times(case, scenario.given)
        rooms = scenario.given.degree[group] * case.capacity_tokens
        over = np.flatnonzero(held > rooms * (1 + 1e-9))
        if len(over):
            one = int(over[(held - rooms)[over].argmax()])
            reason = f"group {group[one]} holds {int(held[one]):,} tokens in micro-step {step[one]}"
            change = {"constraint": reason, "now": float(rooms[one]), "needed": float(held[one]), "unit": "tokens"}
            return _refusal(scenario, f"out of memory: {reason}, with room for {int(rooms[one]):,}", [change], began)
    return None


def _stuck_reason(scenario: SequenceScenario, case: Case, sequence: int, count: int) -> str:
    length = int(case.lengths[sequence])
    others = f" (the longest of {count} such sequences)" if count > 1 else ""
    if case.capacity_tokens <= 0:
        return f"the model's states alone take {scenario.costs.state_bytes / 2**30:.1f} GiB of each accelerator"
    largest = int(case.degrees.max())
    room = int(largest * case.capacity_tokens)
    said = f"sequence {sequence} has {length:,} tokens{others}"
    if case.held_tokens is not None:
        said += f", and takes the memory of {math.ceil(case.held_tokens[sequence]):,} beside what is offloaded"
    return f"{said}; the largest group, {largest * scenario.costs.unit} accelerators, holds {room:,}"


def _relaxation(scenario: SequenceScenario, case: Case, length: float) -> list[dict[str, Any]]:
    """Return what would hold a sequence: a larger group, or more memory."""
    costs = scenario.costs
    largest = int(case.degrees.max())
    changes: list[dict[str, Any]] = []
    if case.capacity_tokens > 0:
        needed = 2 ** math.ceil(math.log2(length / case.capacity_tokens))
        node = scenario.machine.node.accelerators.count
        unit = "accelerators" if costs.unit == 1 else f"units of {costs.unit} accelerators"
        if needed * costs.tp > node and not scenario.question.search.across_nodes:
            constraint = "a group across nodes (search.across_nodes)"
            changes.append({"constraint": constraint, "now": largest, "needed": needed, "unit": unit})
        elif needed > largest:
            changes.append({"constraint": "search.degrees", "now": largest, "needed": needed, "unit": unit})
        if needed > case.gpus:
            nodes = math.ceil(needed * costs.unit / scenario.machine.node.accelerators.count)
            changes.append({"constraint": "nodes", "now": scenario.machine.nodes, "needed": nodes, "unit": ""})
    memory = costs.state_bytes + costs.token_bytes * max(length / largest, 1.0)
    now = costs.state_bytes + costs.token_bytes * costs.capacity_tokens
    if memory > now:
        changes.append({"constraint": "memory of an accelerator", "now": now, "needed": memory, "unit": "bytes"})
    return changes


def _refusal(scenario: SequenceScenario, reason: str, changes: list[dict[str, Any]], began: float) -> Result:
    return Result(
        kind="sequence",
        status="infeasible",
        objective=objective(None),
        solve_time_s=time.perf_counter() - began,
        why_not=[{"reason": reason, "candidates": None, "nearest": None}],
        relaxation=changes,
        scenario=scenario.resolved,
        provenance=sequence_provenance(scenario),
    )
