"""Cost of one layer of each kind, and of the embedding and the logits, for one micro-batch on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel.architecture import LayerGroup
from perfmodel.collectives import all_gather, all_reduce, dispatch, group
from perfmodel.context_parallel import context_parallel, core_pieces, gathered_bytes
from perfmodel.job import Job
from perfmodel.kernels.memory import optimizer_shapes
from perfmodel.kernels.work import Work, timed
from perfmodel.operators import (
    ACTIVATION_BYTES,
    Operator,
    Shape,
    attention_operators,
    elementwise,
    feed_forward_operators,
    head_operators,
    quantisation,
)
from perfmodel.plan import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Plan
from perfmodel.terms import LINK, MEMORY, NO_BOUND, Array, Number, Term, hidden_behind, total

PARTS = (
    "projections",
    "attention core",
    "experts",
    "norms and activations",
    "quantisation",
    "embedding",
    "logits and loss",
)
"""Leaves of a forward, backward or recomputed pass."""


@dataclass(frozen=True)
class PassCost:
    """Time and memory of one layer, or of an end of the model, for one micro-batch.

    Parameters
    ----------
    time : Term
        Forward, backward, recomputation and the communication among them.
    saved_bytes : array
        Activations kept until the backward pass [bytes].
    working_bytes : array
        Activations that recomputation brings back for one layer at a time [bytes].
    gathered_bytes : array
        Keys and values of other ranks, with their gradients, that one layer at a time holds [bytes].
    kernels : array
        Kernels that the host launches.
    forward_s, backward_s : array
        Time of the two directions, recomputation in the backward, behind which other communication can hide [s].
    streamed_s : array
        Time of all passes in parts that stream through memory [s].
    """

    time: Term
    saved_bytes: Number
    working_bytes: Number
    gathered_bytes: Number
    kernels: Number
    forward_s: Number
    backward_s: Number
    streamed_s: Number


def _part(operator: Operator) -> str:
    if operator.core:
        return "attention core"
    if operator.name in ("quantisation", "embedding"):
        return operator.name
    if operator.name in ("logits", "loss", "final norm"):
        return "logits and loss"
    return {"gemm": "projections", "gemm16": "projections", "moe": "experts", "elementwise": "norms and activations"}[
        operator.kind
    ]


STREAMED = ("norms and activations", "quantisation", "embedding")
"""Parts of a pass that stream through memory."""


def _streamed_s(*passes: Term) -> Number:
    return sum((part.seconds for term in passes for part in term.children if part.name in STREAMED), 0.0)


Timed = tuple[Array, NDArray[np.int8]]


def _times(job: Job, operators: Sequence[Operator]) -> tuple[list[Timed], list[Timed]]:
    """Return seconds and bound of the forward and of the backward pass of every operator."""
    speeds = {"forward": job.speeds, "backward": job.backward_speeds}
    works: list[Work] = []
    owners: list[tuple[int, str]] = []
    for number, operator in enumerate(operators):
        for direction, kernels in (("forward", operator.forward), ("backward", operator.backward)):
            speed = speeds[direction].get(operator.kind, 1.0)
            works += [replace(work, times=work.times / speed) for work in kernels]
            owners += [(number, direction)] * len(kernels)
    found: dict[tuple[int, str], Timed] = {}
    for owner, (seconds, bound) in zip(owners, timed(works, job.device, job.kernels), strict=True):
        if owner in found:
            before, largest = found[owner]
            # of several kernels the longest says what binds; sums of two or three tell it well enough
            found[owner] = before + seconds, np.where(seconds > before, bound, largest).astype(np.int8)
        else:
            found[owner] = seconds, bound
    nothing = (np.zeros(()), np.zeros((), np.int8))
    numbers = range(len(operators))
    return (
        [found.get((number, "forward"), nothing) for number in numbers],
        [found.get((number, "backward"), nothing) for number in numbers],
    )


def _pass(
    name: str, operators: Sequence[Operator], times: Sequence[Timed], factors: Sequence[Number] | None = None
) -> Term:
    """Return the term of one pass over the operators, each multiplied by its factor, grouped by part."""
    seconds: dict[str, Number] = dict.fromkeys(PARTS, 0.0)
    bounds: dict[str, int | NDArray[np.int8]] = dict.fromkeys(PARTS, NO_BOUND)
    largest: dict[str, Number] = dict.fromkeys(PARTS, 0.0)
    for number, (operator, (time, bound)) in enumerate(zip(operators, times, strict=True)):
        spent = time if factors is None else time * factors[number]
        part = _part(operator)
        seconds[part] = seconds[part] + spent
        bounds[part] = np.where(spent > largest[part], bound, bounds[part]).astype(np.int8)
        largest[part] = np.maximum(largest[part], spent)
    return total(name, [Term(part, seconds[part], bounds[part]) for part in PARTS])


def shape_of(job: Job, plan: Plan) -> Shape:
    """Return what one rank computes of one micro-batch under each plan."""
    tokens = plan.micro_batch * job.seq_len / plan.cp
    norm_share = np.where(plan.seq_parallel == 1, plan.tp, 1)
    pieces = core_pieces(job, plan)
    return Shape(tokens, plan.micro_batch, job.seq_len, plan.tp, plan.cp, plan.ep, norm_share, pieces)


def layer_cost(job: Job, layer: LayerGroup, plan: Plan) -> PassCost:
    """Return the cost of one layer for one micro-batch.

    Notes
    -----
    Tensor parallel: an all-reduce of the activations per block and direction, or an all-gather and a reduce-scatter
    with sequence parallelism, which gathers the saved input once more in the backward pass (Korthikanti et al.,
    arXiv 2205.05198, figures 4-6). With `overlap_tp` all but the first of tp chunks can hide behind the block's
    products. Context parallel: `perfmodel.context_parallel`. Experts: two all-to-alls a direction.
    """
    architecture, framework = job.architecture, job.framework
    shape = shape_of(job, plan)
    attention, feed_forward = layer.attention, layer.feed_forward
    form = job.form
    operators = attention_operators(
        attention,
        architecture.hidden,
        shape,
        norm=True,
        rope=architecture.position == "rope",
        fused=framework.attention == "flash",
        dropout=framework.dropout,
        form=form,
    )
    operators += feed_forward_operators(
        feed_forward, architecture.hidden, shape, norm=True, dropout=framework.dropout, form=form
    )
    layer_input = ACTIVATION_BYTES * shape.tokens * architecture.hidden / shape.norm_share
    saved_all: Number = sum((operator.saved_bytes for operator in operators), 0.0)
    if form.activation_bytes < ACTIVATION_BYTES:
        operators.append(quantisation(operators, form))

    full = plan.recompute == RECOMPUTE_FULL
    selective = plan.recompute == RECOMPUTE_SELECTIVE
    again, kept_selectively = _selective(job, operators)
    factors = [np.where(full, 1.0, np.where(selective, share, 0.0)) for share in again]
    forward_times, backward_times = _times(job, operators)
    forward = _pass("forward", operators, forward_times)
    backward = _pass("backward", operators, backward_times)
    recomputation = _pass("recomputation", operators, forward_times, factors)

    products_s = forward.children[PARTS.index("projections")].seconds
    products_backward_s = backward.children[PARTS.index("projections")].seconds
    core_s = forward.children[PARTS.index("attention core")].seconds
    core_backward_s = backward.children[PARTS.index("attention core")].seconds
    repeats = 1.0 + full  # a full recomputation repeats the forward pass's communication
    tensor, tensor_forward_s = _tensor_parallel(job, layer, plan, shape, products_s, products_backward_s, repeats)
    context, context_forward_s = context_parallel(job, attention, plan, shape.tokens, core_s, core_backward_s, repeats)
    expert, expert_forward_s = _expert_parallel(job, layer, plan, shape, repeats)
    time = total("layer", [forward, backward, recomputation, tensor, context, expert])
    forward_s = forward.seconds + tensor_forward_s + context_forward_s + expert_forward_s

    kernels: Number = sum(
        (
            operator.kernels * (1.0 + factor) + operator.backward_kernels
            for operator, factor in zip(operators, factors, strict=True)
        ),
        0.0,
    )
    kernels = (
        kernels + np.where(plan.tp > 1, 4.0 + 2.0 * repeats, 0.0) + np.where(plan.ep > 1, 2.0 + 2.0 * repeats, 0.0)
    )
    saved = np.where(full, layer_input, np.where(selective, kept_selectively, saved_all))
    return PassCost(
        time,
        saved,
        np.where(full, saved_all, np.where(selective, saved_all - kept_selectively, 0.0)),
        gathered_bytes(attention, shape.tokens, plan),
        kernels,
        forward_s,
        time.seconds - forward_s,
        _streamed_s(forward, backward, recomputation),
    )


def _selective(job: Job, operators: Sequence[Operator]) -> tuple[list[float], Number]:
    """Return the share of each operator that selective recomputation repeats, and the bytes it keeps.

    Notes
    -----
    ``core-attention``: what lies inside the attention core goes (Korthikanti et al., section 5). ``per-operator``:
    attention and the results of every other product are kept, everything else is computed again.
    """
    if job.framework.selective == "core-attention":
        # what the core starts from stays, its scores and their masks go
        kept: Number = sum((op.saved_bytes for op in operators if not op.core or op.kind != "elementwise"), 0.0)
        return [1.0 if operator.core else 0.0 for operator in operators], kept
    products = [op for op in operators if op.kind in ("gemm", "moe")]
    results: Number = sum((op.saved_bytes for op in products), 0.0)
    core: Number = sum((op.saved_bytes for op in operators if op.core), 0.0)
    shares = [0.0 if op.core else 0.5 if op.kind in ("gemm", "moe") else 1.0 for op in operators]
    return shares, results / 2 + core


def _tensor_parallel(
    job: Job,
    layer: LayerGroup,
    plan: Plan,
    shape: Shape,
    products_s: Number,
    products_backward_s: Number,
    repeats: Number,
) -> tuple[Term, Number]:
    ranks = group(job.levels, plan.tp, plan.tp_stride)
    activations = ACTIVATION_BYTES * shape.tokens * job.architecture.hidden
    blocks = 1.0 + (layer.feed_forward.width > 0 or layer.feed_forward.shared_width > 0)
    one_way = all_gather(ranks, activations, job.collectives)
    reduced = all_reduce(ranks, activations, job.collectives)
    parallel = plan.seq_parallel == 1
    forward = blocks * np.where(parallel, 2 * one_way, reduced)
    backward = blocks * np.where(parallel, 3 * one_way, reduced)
    share = np.where(plan.overlap_tp == 1, 1 - 1 / plan.tp, 0.0)
    forward_exposed, forward_hidden = hidden_behind(forward, products_s, share)
    backward_exposed, backward_hidden = hidden_behind(backward, products_backward_s, share)
    term = Term(
        "tensor-parallel communication",
        forward_exposed * repeats + backward_exposed,
        LINK,
        hidden_seconds=forward_hidden * repeats + backward_hidden,
    )
    return term, forward_exposed


def _expert_parallel(job: Job, layer: LayerGroup, plan: Plan, shape: Shape, repeats: Number) -> tuple[Term, Number]:
    if not layer.feed_forward.experts:
        return Term("expert all-to-all", np.zeros_like(np.asarray(repeats, dtype=float)), LINK), 0.0
    ranks = group(job.levels, *plan.expert_shape)
    once = dispatch(
        ranks,
        ACTIVATION_BYTES * shape.tokens / plan.tp * job.architecture.hidden,
        layer.feed_forward.experts_per_token,
        job.collectives,
        once_per_node=job.framework.expert_dispatch == "per-node",
    )
    return Term("expert all-to-all", 2 * once * (1 + repeats), LINK), 2 * once


def embedding_cost(job: Job, plan: Plan) -> PassCost:
    """Return the cost of the embedding look-up on the first stage for one micro-batch."""
    shape = shape_of(job, plan)
    rows = shape.tokens * job.architecture.hidden
    kept = rows / shape.norm_share if job.framework.dropout else 0.0
    operator = elementwise("embedding", "stream", 1, 2 * rows, kept)
    return _end_cost(job, plan, [operator], all_reduces=1.0)


def logits_cost(job: Job, plan: Plan) -> PassCost:
    """Return the cost of final norm, logits and loss on the last stage for one micro-batch."""
    operators = head_operators(job.architecture.hidden, job.architecture.vocab, shape_of(job, plan), job.form)
    return _end_cost(job, plan, operators, all_reduces=1.0)


def _end_cost(job: Job, plan: Plan, operators: Sequence[Operator], all_reduces: float) -> PassCost:
    """Cost of an end of the model; its vocabulary is split over the tensor-parallel ranks, which reduce once."""
    shape = shape_of(job, plan)
    forward_times, backward_times = _times(job, operators)
    forward = _pass("forward", operators, forward_times)
    backward = _pass("backward", operators, backward_times)
    nothing = _pass("recomputation", operators, forward_times, [0.0] * len(operators))
    ranks = group(job.levels, plan.tp, plan.tp_stride)
    reduced = all_reduces * all_reduce(
        ranks, ACTIVATION_BYTES * shape.tokens * job.architecture.hidden, job.collectives
    )
    zero = np.zeros_like(reduced)
    communication = [
        Term("tensor-parallel communication", reduced, LINK),
        Term("context-parallel communication", zero, LINK),
        Term("expert all-to-all", zero, LINK),
    ]
    return PassCost(
        total("layer", [forward, backward, nothing, *communication]),
        sum((operator.saved_bytes for operator in operators), 0.0),
        0.0,
        0.0,
        sum(operator.kernels + operator.backward_kernels for operator in operators),
        forward.seconds,
        backward.seconds,
        _streamed_s(forward, backward),
    )


def update_term(name: str, parameters: Number, bytes_per_parameter: float, job: Job) -> Term:
    """Return the time of an optimizer that moves so many bytes for each of its parameters [s]."""
    work = Work("memory.stream", optimizer_shapes(parameters, bytes_per_parameter))
    ((seconds, _),) = timed([work], job.device, job.kernels)
    return Term(name, seconds, MEMORY)
