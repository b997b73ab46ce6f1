"""Memory of a training plan by part, on the stage that needs most."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from perfmodel.framework import StateBytes
from perfmodel.job import Job
from perfmodel.parameters import StageParameters, stage_weights
from perfmodel.pipeline import Stages, in_flight_chunks
from perfmodel.plan import Plan
from perfmodel.terms import Array, Number

SOFTMAX_BYTES = 4
"""The 32-bit softmax of a logit, kept with the activations of the head."""


@dataclass(frozen=True)
class Memory:
    """Bytes per rank of the stage that needs most.

    Parameters
    ----------
    weights, gradients, optimizer : array
        Model states [bytes].
    activations : array
        Kept from forward to backward, all micro-batches in flight [bytes].
    logits : array
        Logits, their softmax and gradient [bytes].
    communication : array
        Weights gathered for use and gradients before they are scattered (ZeRO-3) [bytes].
    workspace : array
        Activations that recomputation brings back for one layer, and what it gathers of other ranks [bytes].
    allocated_peak, reserved_peak : array
        Sum of the above; with the allocator's fragmentation [bytes].
    offloaded : array
        Optimizer states kept in host memory instead [bytes].
    """

    weights: Array
    gradients: Array
    optimizer: Array
    activations: Array
    logits: Array
    communication: Array
    workspace: Array
    allocated_peak: Array
    reserved_peak: Array
    offloaded: Array


PARTS = tuple(field.name for field in fields(Memory))[:-3]
"""What adds up to the allocated peak."""


@dataclass(frozen=True)
class SavedBytes:
    """Activations of one micro-batch: per layer of each group, and at the ends of the model [bytes]."""

    layers: tuple[Number, ...]
    working: tuple[Number, ...]
    gathered: tuple[Number, ...]
    embedding: Number
    head: Number


def state_bytes(dense: Number, experts: Number, per_parameter: float, shared: Array, plan: Plan) -> Array:
    """Bytes of a model state, divided over the data-parallel ranks where `shared`.

    Notes
    -----
    ZeRO (Rajbhandari et al., arXiv 1910.02054), section 5: a state of K bytes per parameter takes K P / N_d.
    """
    dense_ranks = plan.dp * plan.cp
    expert_ranks = plan.stage_ranks / plan.ep
    return np.asarray(
        per_parameter * np.where(shared, dense / dense_ranks + experts / expert_ranks, dense + np.asarray(experts))
    )


def passing_bytes(states: StateBytes, dense: Number, experts: Number, ends: Number, layers: Number) -> Array:
    """Return the weights and gradients of a rank that are there while they are used, where they live elsewhere [bytes].

    Parameters
    ----------
    states : StateBytes
        Of the framework.
    dense, experts, ends : float or array
        Parameters of the rank's stage: all but routed experts, those, and embedding and output among the former.
    layers : int or array
        Layers of the stage.

    Notes
    -----
    While one layer works the next one's weights arrive; embedding and output stay from forward to backward.
    """
    passing = states.weight_traffic + states.gradient_traffic
    layer = (dense - ends + np.asarray(experts)) / np.maximum(layers, 1)
    return np.asarray(ends * passing + (2 * states.weight_traffic + states.gradient_traffic) * layer)


def memory_of(job: Job, plan: Plan, stages: Stages, parameters: StageParameters, saved: SavedBytes) -> Memory:
    """Return the memory of the worst of the first, an inner and the last stage."""
    framework, architecture = job.framework, job.architecture
    states = framework.states
    micro_batches = plan.micro_batches(job.global_batch)
    tokens = plan.micro_batch * job.seq_len / plan.cp
    logits = tokens * architecture.vocab / plan.tp
    per_stage: list[list[Array]] = []
    largest: Number = 0.0
    for number, (position, layers, leading) in enumerate(zip((0, 1, -1), stages.layers, stages.leading, strict=True)):
        dense, experts = parameters.dense[number], parameters.experts[number]
        is_first = position == 0
        is_last = (position == -1) | (plan.pp == 1)
        chunks = in_flight_chunks(position, plan.pp, plan.vpp, micro_batches)
        *counts, _, heads = stage_weights(architecture, layers, leading, float(is_first), np.where(is_last, 1.0, 0.0))
        one_pass: Number = sum((count * size for count, size in zip(counts, saved.layers, strict=True)), 0.0)
        in_flight = chunks / plan.vpp
        activations = in_flight * (one_pass + (saved.embedding if is_first else 0.0)) + heads * saved.head
        weights = np.where(
            plan.zero_stage >= 3, states.weight, states.compute_weight if states.weight < 4 else states.weight
        )
        # everything stays gathered where a pipeline gathers once
        once = (plan.pp > 1) & (not framework.reshards_in_pipeline)
        every = (states.weight_traffic + states.gradient_traffic) * (dense + np.asarray(experts))
        passing = passing_bytes(states, dense, experts, parameters.ends[number], layers)
        gathered = np.where(plan.zero_stage >= 3, np.where(once, every, passing), 0.0)
        working = np.max(np.stack(np.broadcast_arrays(*saved.working)), axis=0)
        # attention works before the logits are there and after they are gone, so what it gathers can take their place
        at_end = np.where(is_last, logits * (framework.logit_bytes - SOFTMAX_BYTES), 0.0)
        beside = np.max(np.stack(np.broadcast_arrays(*saved.gathered)), axis=0) - (heads * saved.head + at_end)
        optimizer = state_bytes(dense, experts, states.optimizer, plan.zero_stage >= 1, plan)
        largest = np.maximum(largest, optimizer)
        per_stage.append(
            [
                weights * state_bytes(dense, experts, 1.0, plan.zero_stage >= 3, plan),
                state_bytes(dense, experts, states.gradient, plan.zero_stage >= 2, plan),
                np.where(plan.offload == 1, 0.0, optimizer),
                activations,
                at_end,
                gathered,
                working + np.maximum(beside, 0.0),
            ]
        )
    shape = np.broadcast_shapes(*(np.shape(part) for stage in per_stage for part in stage), np.shape(plan.tp))
    totals = np.stack([np.broadcast_to(sum(stage), shape) for stage in per_stage])
    worst = np.argmax(totals, axis=0)
    parts = [np.choose(worst, [np.broadcast_to(stage[i], shape) for stage in per_stage]) for i in range(len(PARTS))]
    allocated = np.max(totals, axis=0)
    by_name = dict(zip(PARTS, parts, strict=True))
    reserved = allocated * (1 + framework.reserve.fragmentation)
    return Memory(
        **by_name, allocated_peak=allocated, reserved_peak=reserved, offloaded=np.where(plan.offload == 1, largest, 0.0)
    )


def host_bytes(job: Job) -> float:
    """Host memory that one rank can have for offloaded states [bytes]; 0 where the node describes none."""
    node = job.machine.node
    capacity = sum(tier.capacity * tier.count for tier in node.tiers if tier.name == "ddr")
    return capacity / min(node.accelerators.count, job.ranks)


def available_bytes(job: Job) -> float:
    """Memory of an accelerator that a job's allocator can have [bytes]."""
    return job.machine.accelerator.memory.capacity - job.framework.reserve.context
