"""What the ranks of a training plan send each other in an optimizer step: bytes from rank to rank, by collective.

The counts are those of the step's prediction (`perfmodel.layer`, `perfmodel.training`), where they become seconds; here
they stay bytes, between named ranks, so that a rank order can be chosen for links of unequal speed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.collectives import group, visits
from perfmodel.context_parallel import context_bytes, exchange_size, ring_size
from perfmodel.job import Job
from perfmodel.layer import shape_of
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.parameters import stage_parameters, stage_weights
from perfmodel.pipeline import Stages, split_layers
from perfmodel.plan import ALL_GATHER, RECOMPUTE_FULL, ULYSSES, Plan
from perfmodel.terms import Array, Number

Integers = NDArray[np.int64]

TENSOR = "tensor parallel"
CONTEXT = "context parallel"
HEADS = "context parallel heads"
EXPERT = "expert parallel"
FORWARD = "pipeline forward"
BACKWARD = "pipeline backward"
DATA = "data parallel"
EXPERT_DATA = "expert data parallel"


@dataclass(frozen=True)
class Phase:
    """Messages of one collective, under way at the same time; phases follow one another.

    Parameters
    ----------
    name : str
        Which collective.
    sources, destinations : array of int
        Who sends to whom; every pair once, nobody to itself.
    sent_bytes : array
        What each pair carries in a step [bytes].
    """

    name: str
    sources: Integers
    destinations: Integers
    sent_bytes: Array

    def dense(self, ranks: int) -> Array:
        """Return the bytes as a matrix, senders in rows [bytes]."""
        matrix = np.zeros((ranks, ranks))
        matrix[self.sources, self.destinations] = self.sent_bytes
        return matrix


@dataclass(frozen=True)
class Traffic:
    """All phases of a step.

    Parameters
    ----------
    ranks : int
        How many there are.
    phases : tuple of Phase
        One after the other.
    """

    ranks: int
    phases: tuple[Phase, ...]


def phase(name: str, sources: Integers, destinations: Integers, sent_bytes: Array) -> Phase:
    """Return a phase of messages: those of one pair are added up, those to oneself and of no bytes left out.

    Parameters
    ----------
    name : str
        Which collective.
    sources, destinations : array of int
        Who sends to whom.
    sent_bytes : array
        What each message carries [bytes].

    Returns
    -------
    Phase
        Its pairs in order.
    """
    kept = (sources != destinations) & (sent_bytes > 0)
    pairs = np.stack([sources[kept], destinations[kept]], axis=1)
    unique, inverse = np.unique(pairs, axis=0, return_inverse=True)
    total = np.bincount(inverse.reshape(-1), weights=sent_bytes[kept], minlength=len(unique))
    return Phase(name, unique[:, 0].astype(np.int64), unique[:, 1].astype(np.int64), total)


def between_units(traffic: Traffic, size: int) -> Traffic:
    """Add up the traffic between blocks of consecutive ranks, such as nodes.

    Parameters
    ----------
    traffic : Traffic
        Between ranks.
    size : int
        Ranks of a block; divides the ranks.

    Returns
    -------
    Traffic
        Between blocks; what stays inside a block is left out, and a phase of which nothing remains.
    """
    phases = [phase(p.name, p.sources // size, p.destinations // size, p.sent_bytes) for p in traffic.phases]
    return Traffic(traffic.ranks // size, tuple(p for p in phases if len(p.sent_bytes)))


def training_traffic(job: Job, plan: Plan) -> Traffic:
    """Return what every rank of a training plan sends in an optimizer step.

    Parameters
    ----------
    job : Job
        Model, workload, machine and framework.
    plan : Plan
        One plan, filling ``job.ranks``.

    Returns
    -------
    Traffic
        Phases: tensor, context (in the hybrid style of heads first) and expert parallel, pipeline forward and backward,
        data parallel and, where experts have their own, expert data parallel; those without a byte left out.

    Notes
    -----
    Rings go round a group in the order of its ranks: an all-reduce of S bytes puts 2 (n-1)/n S on every edge, an
    all-gather or reduce-scatter (n-1)/n S (Thakur, Rabenseifner, Gropp 2005, section 4). An all-to-all sends S/n to
    every other rank; with dispatch once per node it shrinks as in `perfmodel.collectives.dispatch`.
    Stages send one activation a micro-batch and chunk each way (SC21, arXiv 2104.04473, section 2.2).
    """
    tp, pp, cp, dp = (int(np.asarray(getattr(plan, name)).reshape(-1)[0]) for name in ("tp", "pp", "cp", "dp"))
    stages = split_layers(job.architecture.depth, job.architecture.leading, plan.pp, plan.vpp)
    strides = [int(np.asarray(stride).reshape(-1)[0]) for stride in (plan.pp_stride, plan.dp_stride, plan.cp_stride)]
    axes = np.ix_(*(np.arange(size) for size in (pp, dp, cp, tp)))
    steps = (*strides, int(np.asarray(plan.tp_stride).reshape(-1)[0]))
    ranks = np.asarray(sum(axis * step for axis, step in zip(axes, steps, strict=True)), dtype=np.int64)

    tensor, heads, passed, expert = _per_micro_batch(job, plan, stages)
    micro_batches = float(plan.micro_batches(job.global_batch).reshape(-1)[0])
    tp_groups = ranks.reshape(pp, dp * cp, tp)
    cp_groups = ranks.transpose(0, 1, 3, 2).reshape(pp, dp * tp, cp)
    style, exchanging = (int(np.asarray(value).reshape(-1)[0]) for value in (plan.cp_style, exchange_size(job, plan)))
    neighbours = cp_groups.reshape(pp, -1, exchanging)
    # every rank has its counterpart in the next group of neighbours; an all-gather goes around all of them
    around = cp_groups if style == ALL_GATHER else cp_groups.reshape(pp, dp * tp, -1, exchanging).swapaxes(2, 3)
    phases = [
        _ring(TENSOR, tp_groups, micro_batches * tensor),
        _exchange(CONTEXT if style == ULYSSES else HEADS, neighbours, micro_batches * heads),
        _ring(CONTEXT, around.reshape(pp, -1, around.shape[-1]), micro_batches * passed),
        _experts(job, plan, ranks, micro_batches * expert),
        *_pipeline(job, plan, ranks, micro_batches),
        *_synchronisation(job, plan, ranks, stages, micro_batches),
    ]
    return Traffic(job.ranks, tuple(p for p in phases if len(p.sent_bytes)))


def _by_stage(values: list[float], pp: int) -> Array:
    """Deal values of the (first, inner, last) stage out over the stages; the last one stands for one that is alone."""
    first, inner, last = values
    return np.array([first, *[inner] * (pp - 2), last][-pp:])


def _scalar(value: Number) -> float:
    return float(np.asarray(value, dtype=float).reshape(-1)[0])


def _ring(name: str, groups: Integers, edge_bytes: Array) -> Phase:
    """Send around rings; groups are (stage, group, member), bytes of an edge are by stage."""
    following = np.roll(groups, -1, axis=-1)
    sizes = np.broadcast_to(edge_bytes[:, None, None], groups.shape)
    return phase(name, groups.reshape(-1), following.reshape(-1), sizes.reshape(-1))


def _exchange(name: str, groups: Integers, peer_bytes: Array) -> Phase:
    """Send to every other member of a group; bytes for one peer are by stage."""
    sources, destinations = np.broadcast_arrays(groups[..., :, None], groups[..., None, :])
    sizes = np.broadcast_to(peer_bytes[:, None, None, None], sources.shape)
    return phase(name, sources.reshape(-1), destinations.reshape(-1), sizes.reshape(-1))


def _per_micro_batch(job: Job, plan: Plan, stages: Stages) -> tuple[Array, Array, Array, Array]:
    """Return what a rank of each stage sends for one micro-batch.

    Bytes to the next rank of its tensor-parallel group, to every other one with which it exchanges heads, to the next
    one to which it passes keys and values, and what it holds for the experts of its tokens, out and back.
    """
    shape = shape_of(job, plan)
    tp, pp = _scalar(plan.tp), int(_scalar(plan.pp))
    exchanging = _scalar(exchange_size(job, plan))
    around = _scalar(plan.cp) if int(_scalar(plan.cp_style)) == ALL_GATHER else _scalar(ring_size(job, plan))
    repeats = 2.0 if int(_scalar(plan.recompute)) == RECOMPUTE_FULL else 1.0
    activations = ACTIVATION_BYTES * _scalar(shape.tokens) * job.architecture.hidden
    reduced = 2 * (tp - 1) / tp * activations
    gathered = (tp - 1) / tp * activations
    tensor_of, heads_of, passed_of, expert_of = [], [], [], []
    for layer in job.architecture.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        blocks = 1.0 + (feed_forward.width > 0 or feed_forward.shared_width > 0)
        parallel = bool(_scalar(plan.seq_parallel))
        tensor_of.append(blocks * (gathered * (2 * repeats + 3) if parallel else reduced * (repeats + 1)))
        made = context_bytes(attention, _scalar(shape.tokens), tp)
        heads_of.append(_scalar(made.queries + made.keys + made.outputs) / exchanging * (1 + repeats))
        passed_of.append((around - 1) * _scalar(made.keys) * (repeats + 2))
        copies = feed_forward.experts_per_token if feed_forward.experts else 0
        expert_of.append(activations / tp * copies * 2 * (1 + repeats))
    # the ends of the model reduce over the tensor-parallel ranks once
    volumes = (
        [*tensor_of, reduced, reduced],
        *([*values, 0.0, 0.0] for values in (heads_of, passed_of, expert_of)),
    )
    alone = float(pp == 1)
    ends = ((1.0, alone), (0.0, 0.0), (alone, 1.0))
    counts = [
        stage_weights(job.architecture, layers, leading, *at)
        for layers, leading, at in zip(stages.layers, stages.leading, ends, strict=True)
    ]
    tensor, heads, passed, expert = (
        _by_stage([sum(_scalar(w) * v for w, v in zip(weights, volume, strict=True)) for weights in counts], pp)
        for volume in volumes
    )
    return tensor, heads, passed, expert


def _experts(job: Job, plan: Plan, ranks: Integers, held_bytes: Array) -> Phase:
    """Dispatch and combine: an all-to-all over `ep` neighbouring ranks of a stage."""
    ep, pp = int(_scalar(plan.ep)), ranks.shape[0]
    found = _exchange(EXPERT, np.arange(ranks.size).reshape(pp, -1, ep), held_bytes / ep)
    members = group(job.levels, ep, 1)
    copies = max(layer.feed_forward.experts_per_token for layer in job.architecture.layers)
    if job.framework.expert_dispatch != "per-node" or not job.levels or not copies:
        return found
    nodes, places = (_scalar(visited) / copies for visited in visits(members, copies))
    leaves = found.sources // job.levels[0].ranks != found.destinations // job.levels[0].ranks
    return replace(found, sent_bytes=found.sent_bytes * np.where(leaves, nodes, places))


def _pipeline(job: Job, plan: Plan, ranks: Integers, micro_batches: float) -> list[Phase]:
    """Activations to the next stage and their gradients back; interleaved, from the last stage to the first too."""
    pp, vpp = ranks.shape[0], _scalar(plan.vpp)
    share = _scalar(plan.tp) if _scalar(plan.seq_parallel) else 1.0
    activations = ACTIVATION_BYTES * _scalar(shape_of(job, plan).tokens) * job.architecture.hidden / share
    chunks = np.array([vpp] * (pp - 1) + [vpp - 1])
    sizes = np.broadcast_to((micro_batches * activations * chunks)[:, None], (pp, ranks[0].size)).reshape(-1)
    here, following = ranks.reshape(pp, -1), np.roll(ranks.reshape(pp, -1), -1, axis=0)
    return [
        phase(FORWARD, here.reshape(-1), following.reshape(-1), sizes),
        phase(BACKWARD, following.reshape(-1), here.reshape(-1), sizes),
    ]


def _synchronisation(job: Job, plan: Plan, ranks: Integers, stages: Stages, micro_batches: float) -> list[Phase]:
    """Gradients and weights among the ranks that hold the same parameters (ZeRO, arXiv 1910.02054, section 7)."""
    pp, _, _, tp = ranks.shape
    parameters = stage_parameters(job.architecture, stages, plan)
    zero, ep = int(_scalar(plan.zero_stage)), int(_scalar(plan.ep))
    once = zero >= 3 and pp > 1 and not job.framework.reshards_in_pipeline
    times = micro_batches if zero >= 2 and not once else 1.0
    states = job.framework.states
    # of a parameter: all-reduced; scattered and gathered; gathered both ways and scattered
    per_parameter = {
        0: 2 * states.gradient_traffic,
        1: states.gradient_traffic + states.weight_traffic,
        2: states.gradient_traffic * times + states.weight_traffic,
        3: (states.gradient_traffic + 2 * states.weight_traffic) * times,
    }[zero]
    dense_groups = np.sort(ranks.transpose(0, 3, 1, 2).reshape(pp, tp, -1), axis=-1)
    expert_groups = np.sort(ranks.reshape(pp, -1), axis=-1).reshape(pp, -1, ep).transpose(0, 2, 1)
    phases = []
    for name, groups, counts in (
        (DATA, dense_groups, parameters.dense),
        (EXPERT_DATA, expert_groups, parameters.experts),
    ):
        n = groups.shape[-1]
        held = _by_stage([_scalar(count) for count in counts], pp)
        phases.append(_ring(name, groups, (n - 1) / n * per_parameter * held))
    return phases
