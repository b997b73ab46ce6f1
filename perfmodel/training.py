"""Time and memory of an optimizer step under a plan: the equations that explain one plan and search a million."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.collectives import Group, all_gather, all_reduce, group, send
from perfmodel.job import Job
from perfmodel.layer import PassCost, embedding_cost, layer_cost, logits_cost, update_term
from perfmodel.memory import Memory, SavedBytes, memory_of
from perfmodel.parameters import StageParameters, stage_parameters, stage_weights
from perfmodel.pipeline import bubble, split_layers
from perfmodel.plan import Plan
from perfmodel.terms import HOST, IDLE, LINK, Array, Number, Term, chosen, scaled, taken, total, weighted_sum

_LAYER_FIELDS = ("tp", "cp", "ep", "micro_batch", "seq_parallel", "recompute", "overlap_tp", "cp_style")
_SYNC_FIELDS = ("tp", "pp", "cp", "ep", "vpp", "dp", "rank_order")


@dataclass(frozen=True)
class StepPrediction:
    """What a step of each plan takes.

    Parameters
    ----------
    step : Term
        Time of an optimizer step, as a tree [s].
    memory : Memory
        Memory of the worst stage [bytes].
    streamed_s : array
        Part of the step in kernels that stream through memory [s].
    """

    step: Term
    memory: Memory
    streamed_s: Number


def _distinct(columns: list[NDArray[np.int64]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions of the distinct rows and, for every row, which of them it equals."""
    code = np.zeros(columns[0].shape, dtype=np.int64)
    for column in columns:
        values, inverse = np.unique(column, return_inverse=True)
        code = code * len(values) + inverse
        # keep the code small: renumber once it could overflow
        code = np.unique(code, return_inverse=True)[1] if len(values) > 1 and code.max(initial=0) > 2**40 else code
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse


def _gathered(cost: PassCost, index: NDArray[np.intp], explain: bool) -> PassCost:
    time = cost.time
    if not explain:
        children = tuple(replace(child, children=()) for child in time.children)
        time = replace(time, children=children)

    def pick(value: Number) -> Number:
        return value[index] if isinstance(value, np.ndarray) and value.ndim and value.shape[0] > 1 else value

    others = {f.name: pick(getattr(cost, f.name)) for f in fields(PassCost) if f.name != "time"}
    return PassCost(taken(time, index), **others)


def predict_step(job: Job, plan: Plan, *, explain: bool = True) -> StepPrediction:
    """Predict time and memory of an optimizer step under every plan.

    Parameters
    ----------
    job : Job
        Model, workload, machine and framework.
    plan : Plan
        Arrays of one length; every plan must fill ``job.ranks`` and divide the global batch.
    explain : bool
        Keep the leaves of the term tree; False keeps only its upper levels, with the same seconds.

    Returns
    -------
    StepPrediction
        Step time as a tree, and memory by part.

    Notes
    -----
    step = n t_max + bubble + sends + exposed gradient traffic + optimizer + host, with n micro-batches and t_max the
    slowest of the first, an inner and the last stage. Whatever communication runs behind compute slows both down
    while it does, by the factor ``overlap_slowdown``. What depends on a few fields of the plan only is computed once
    for each of their distinct values.
    """
    plan = plan.taken(slice(None))
    known = job.constants
    key = [getattr(plan, name) for name in _LAYER_FIELDS] + [plan.tp_stride, plan.dp_stride]
    first, inverse = _distinct(key)
    few = plan.taken(first)
    layers = [_gathered(layer_cost(job, layer, few), inverse, explain) for layer in job.architecture.layers]
    embedding = _gathered(embedding_cost(job, few), inverse, explain)
    head = _gathered(logits_cost(job, few), inverse, explain)

    stages = split_layers(job.architecture.depth, job.architecture.leading, plan.pp, plan.vpp)
    micro_batches = plan.micro_batches(job.global_batch)
    alone = plan.pp == 1
    ends: tuple[tuple[Number, Number], ...] = (
        (1.0, np.where(alone, 1.0, 0.0)),
        (0.0, 0.0),
        (np.where(alone, 1.0, 0.0), 1.0),
    )
    stage_times: list[Term] = []
    forwards: list[Any] = []
    backwards: list[Any] = []
    streams: list[Any] = []
    for layer_count, leading, (at_front, at_back) in zip(stages.layers, stages.leading, ends, strict=True):
        weights = stage_weights(job.architecture, layer_count, leading, at_front, at_back)
        costs = [*layers, embedding, head]
        stage_times.append(with_host(job, costs, weights, known.host_softness))
        forwards.append(sum((w * cost.forward_s for w, cost in zip(weights, costs, strict=True)), 0.0))
        backwards.append(sum((w * cost.backward_s for w, cost in zip(weights, costs, strict=True)), 0.0))
        streams.append(sum((w * cost.streamed_s for w, cost in zip(weights, costs, strict=True)), 0.0))
    slowest = np.argmax(
        np.stack([np.broadcast_to(stage.seconds, micro_batches.shape) for stage in stage_times]), axis=0
    )
    stage = chosen(slowest, stage_times)
    forward_s, backward_s = np.choose(slowest, forwards), np.choose(slowest, backwards)
    all_stages = stage_times[0].seconds + np.maximum(plan.pp - 2, 0) * stage_times[1].seconds + stage_times[2].seconds

    parameters = stage_parameters(job.architecture, stages, plan)
    sync = _gradient_terms(job, plan, parameters, forward_s, backward_s, stages.layers)
    work = scaled(stage, micro_batches.astype(float))
    sends = _sends(job, plan, micro_batches, work.seconds)
    hidden = work.hidden_seconds + sends.hidden_seconds + sum(term.hidden_seconds for term in sync)
    optimizer = _optimizer(job, plan, parameters)
    streamed_s = np.choose(slowest, streams) * micro_batches + np.where(plan.offload == 1, 0.0, optimizer.seconds)
    step = total(
        "step",
        [
            replace(work, name="pipeline stage"),
            Term("pipeline bubble", bubble(stage.seconds, all_stages, plan.pp, plan.vpp), IDLE),
            sends,
            *sync,
            Term("slowdown under overlap", (known.overlap_slowdown - 1) * hidden, LINK),
            optimizer,
            Term("host work per step", np.full(micro_batches.shape, job.framework.step_overhead), HOST),
        ],
    )
    saved = SavedBytes(
        tuple(cost.saved_bytes for cost in layers),
        tuple(cost.working_bytes for cost in layers),
        tuple(cost.gathered_bytes for cost in layers),
        embedding.saved_bytes,
        head.saved_bytes,
    )
    return StepPrediction(step, memory_of(job, plan, stages, parameters, saved), streamed_s)


def with_host(job: Job, costs: list[PassCost], weights: list[Number], softness: float) -> Term:
    """Sum a stage's parts, and what waiting for the host to launch kernels adds.

    Notes
    -----
    Accelerator and host work at the same time, so the slower counts: (gpu^p + host^p)^(1/p), a soft maximum because
    within a layer some kernels wait for the host and others for the accelerator.
    """
    stage = weighted_sum([cost.time for cost in costs], weights)
    kernels: Number = sum((weight * cost.kernels for weight, cost in zip(weights, costs, strict=True)), 0.0)
    host = kernels * job.framework.host_per_kernel
    together = stage.seconds * (1 + (host / stage.seconds) ** softness) ** (1 / softness)
    return total(
        "pipeline stage", [*stage.children, Term("kernel launches by the host", together - stage.seconds, HOST)]
    )


def _sends(job: Job, plan: Plan, micro_batches: Array, work_s: Number) -> Term:
    """Activations and their gradients between stages: 2 vpp a micro-batch, and pp - 1 hops each way to fill and drain.

    Sends of the steady state hide behind the stage's work where the framework overlaps them and the schedule is
    interleaved; plain 1F1B waits for them (SC21, arXiv 2104.04473, section 2.2.2, for the count).
    """
    once = send_to_next_s(job, plan)
    filling = 2 * (plan.pp - 1) * once
    steady = 2 * plan.vpp * micro_batches * once
    overlapped = (plan.vpp > 1) & job.framework.overlap_pp
    hidden = np.where(overlapped, np.minimum(steady, work_s), 0.0)
    return Term("pipeline sends", filling + steady - hidden, LINK, hidden_seconds=hidden)


def send_to_next_s(job: Job, plan: Plan) -> Array:
    """Return the time in which the activations of a micro-batch reach the next stage [s]."""
    norm_share = np.where(plan.seq_parallel == 1, plan.tp, 1)
    message = 2 * plan.micro_batch * job.seq_len / plan.cp * job.architecture.hidden / norm_share
    ranks = group(job.levels, plan.pp, plan.pp_stride)
    return np.asarray(send(ranks, message, job.collectives))


def _gradient_terms(
    job: Job,
    plan: Plan,
    parameters: StageParameters,
    forward_s: Array,
    backward_s: Array,
    stage_layers: tuple[Array, Array, Array],
) -> list[Term]:
    """Gradient and weight traffic among data-parallel ranks that compute does not hide.

    Notes
    -----
    Stage 0 reduces gradients once a step; 1 scatters them and gathers weights; 2 scatters every micro-batch; 3
    gathers weights in both directions and scatters gradients every micro-batch, layer by layer (ZeRO, arXiv
    1910.02054, section 7). With `overlap_dp` all but one layer's share can run behind one micro-batch's backward
    (gradients) or forward (weights) pass.
    """
    first, inverse = _distinct([getattr(plan, name) for name in _SYNC_FIELDS])
    few = plan.taken(first)
    states = job.framework.states

    def largest(values: tuple[Number, Number, Number]) -> Array:
        return np.asarray(np.maximum.reduce([np.broadcast_to(value, plan.pp.shape)[first] for value in values]))

    dense, experts = largest(parameters.dense), largest(parameters.experts)
    layers = np.maximum(largest(stage_layers), 1)
    reduce_s: Array = np.zeros(len(first))
    scatter_s: Array = np.zeros(len(first))
    gather_s: Array = np.zeros(len(first))
    layer_scatter_s: Array = np.zeros(len(first))
    layer_gather_s: Array = np.zeros(len(first))
    groups: list[tuple[Array, Group]] = [(dense, group(job.levels, few.dp, few.dp_stride, few.cp, few.cp_stride))]
    if np.any(experts):
        groups.append((experts, group(job.levels, *few.expert_replica_shape)))
    for count, ranks in groups:
        gradient, weight = states.gradient_traffic * count, states.weight_traffic * count
        reduce_s = reduce_s + all_reduce(ranks, gradient, job.collectives)
        scatter_s = scatter_s + all_gather(ranks, gradient, job.collectives)
        gather_s = gather_s + all_gather(ranks, weight, job.collectives)
        share = job.framework.sharded_bandwidth_share
        layer_scatter_s = layer_scatter_s + layers * all_gather(ranks, gradient / layers / share, job.collectives)
        layer_gather_s = layer_gather_s + layers * all_gather(ranks, weight / layers / share, job.collectives)

    reduce_s, scatter_s, gather_s = reduce_s[inverse], scatter_s[inverse], gather_s[inverse]
    layer_scatter_s, layer_gather_s, layers = layer_scatter_s[inverse], layer_gather_s[inverse], layers[inverse]
    micro_batches = plan.micro_batches(job.global_batch)
    zero = plan.zero_stage
    sharded = zero >= 3
    gradient_s = np.select([zero == 0, zero < 3], [reduce_s, scatter_s], layer_scatter_s + layer_gather_s)
    weight_s = np.select([zero == 0, zero < 3], [0.0, gather_s], layer_gather_s)
    overlapped = np.where(plan.overlap_dp == 1, 1 - 1 / layers, 0.0)
    gradient_hidden = np.minimum(gradient_s * overlapped, backward_s)
    weight_hidden = np.minimum(weight_s * overlapped, forward_s)
    once = sharded & (plan.pp > 1) & (not job.framework.reshards_in_pipeline)
    gradient_times = np.where((zero >= 2) & ~once, micro_batches, 1)
    weight_times = np.where(sharded & ~once, micro_batches, 1)
    return [
        Term(
            "gradient traffic",
            (gradient_s - gradient_hidden) * gradient_times,
            LINK,
            hidden_seconds=gradient_hidden * gradient_times,
        ),
        Term(
            "weight traffic",
            (weight_s - weight_hidden) * weight_times,
            LINK,
            hidden_seconds=weight_hidden * weight_times,
        ),
    ]


def _optimizer(job: Job, plan: Plan, parameters: StageParameters) -> Term:
    """Adam's update of the rank's share of the parameters.

    Notes
    -----
    Reads gradients twice (norm and update), reads and writes the states, writes the weights. Offloaded, gradients and
    weights cross the host link and the update streams through host memory (ZeRO-Offload, arXiv 2101.06840, section 4).
    """
    states = job.framework.states
    held = updated_parameters(plan, parameters)
    traffic = 2 * states.gradient + 2 * states.optimizer + states.weight
    resident = update_term("optimizer", held, traffic, job)
    if not np.any(plan.offload):
        return resident
    host_link, host_memory = host_rates(job)
    moved = held * (states.gradient_traffic + states.weight_traffic) / host_link
    updated = held * traffic / host_memory
    return replace(resident, seconds=np.where(plan.offload == 1, np.maximum(moved, updated), resident.seconds))


def updated_parameters(plan: Plan, parameters: StageParameters) -> Array:
    """Return how many parameters a rank of the largest stage updates."""
    dense = np.maximum.reduce([np.broadcast_to(value, plan.pp.shape) for value in parameters.dense])
    experts = np.maximum.reduce([np.broadcast_to(value, plan.pp.shape) for value in parameters.experts])
    shared = plan.zero_stage >= 1
    return np.asarray(
        np.where(shared, dense / (plan.dp * plan.cp) + experts / (plan.stage_ranks / plan.ep), dense + experts)
    )


def host_rates(job: Job) -> tuple[float, float]:
    """Return what one accelerator gets of its link to the host and of the host's memory [bytes/s].

    Raises
    ------
    ValueError
        Where the node describes no host memory or no link to it.
    """
    node = job.machine.node
    tiers = [tier for tier in node.tiers if tier.name == "ddr"]
    if not tiers:
        raise ValueError(f"{node.name} describes no tier named ddr, so nothing can be offloaded")
    tier = tiers[0]
    links = [link for link in node.links if link.name == tier.link]
    if not links or links[0].bandwidth is None:
        raise ValueError(f"{node.name}: tier ddr names the link {tier.link!r}, which has no bandwidth")
    sharing = min(node.accelerators.count, job.ranks)
    return links[0].bandwidth / min(links[0].shared_by, sharing), min(tier.read, tier.write) * tier.count / sharing
