"""Operators of a transformer layer: FLOPs, bytes, kernels and saved activations, forward and backward.

Symbols: T tokens of a rank's share of a micro-batch (micro_batch x seq_len / cp), h hidden size, t tensor parallel
size. Activations take two bytes an element. All sizes are per layer and rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.schema import Accelerator, OperatorEfficiency
from perfmodel.architecture import Attention, FeedForward
from perfmodel.terms import COMPUTE, LATENCY, MEMORY, Number

ACTIVATION_BYTES = 2
GRADIENT_ACCUMULATION_BYTES = 8
"""Reading and writing the fp32 gradient of a weight once per micro-batch."""


@dataclass(frozen=True)
class Shape:
    """What one rank computes of one micro-batch, every field an int or an array.

    Parameters
    ----------
    tokens : array
        Tokens of the rank's share of the micro-batch, T.
    sequences, seq_len : array
        Sequences of the micro-batch and the length of each.
    tp, cp, ep : array
        Parallel sizes.
    norm_share : array
        Over how many ranks norms and residuals are split: tp with sequence parallelism, else 1.
    ring_steps : array
        Pieces in which the attention core runs: cp with ring attention, else 1.
    """

    tokens: Number
    sequences: Number
    seq_len: Number
    tp: Number
    cp: Number
    ep: Number
    norm_share: Number
    ring_steps: Number


@dataclass(frozen=True)
class Operator:
    """One operator of a layer.

    Parameters
    ----------
    name, kind : str
        Its name, and the class whose efficiencies it has (``gemm``, ``attention``, ``moe``, ``elementwise``).
    flops, bytes, kernels : array
        Arithmetic [FLOP], memory traffic [bytes] and kernels of the forward pass.
    backward_flops, backward_bytes, backward_kernels : array
        The same of the backward pass.
    saved_bytes : array
        Activations kept from forward to backward [bytes].
    core : bool
        Belongs to the attention core, which selective recomputation computes again.
    """

    name: str
    kind: str
    flops: Number
    bytes: Number
    kernels: Number
    backward_flops: Number
    backward_bytes: Number
    backward_kernels: Number
    saved_bytes: Number
    core: bool = False


def operator_time(
    flops: Number, traffic_bytes: Number, kernels: Number, peak: float, bandwidth: float, efficiency: OperatorEfficiency
) -> tuple[Number, NDArray[np.int8]]:
    """Time of an operator and what bounds it.

    Parameters
    ----------
    flops, traffic_bytes : array
        Arithmetic [FLOP] and memory traffic [bytes].
    kernels : array
        Kernels launched.
    peak, bandwidth : float
        Dense peak of the operator's type [FLOP/s] and memory bandwidth [bytes/s].
    efficiency : OperatorEfficiency
        Launch time and shares of peak and bandwidth of the operator's class.

    Returns
    -------
    seconds, bound : array
        t0 + max(FLOPs / (e_c peak), bytes / (e_m bandwidth)), the roofline of Williams, Waterman, Patterson,
        "Roofline" (2009), with a launch time; the bound is an index into ``terms.BOUNDS``.
    """
    compute = flops / (efficiency.compute * peak)
    memory = traffic_bytes / (efficiency.memory * bandwidth)
    launch = kernels * efficiency.launch
    busy = np.maximum(compute, memory)
    bound = np.where(busy < launch, LATENCY, np.where(compute >= memory, COMPUTE, MEMORY)).astype(np.int8)
    return launch + busy, bound


def gemm(
    name: str, rows: Number, inner: Number, columns: Number, width: float, saved_bytes: Number, kind: str = "gemm"
) -> Operator:
    """Return the product of (rows x inner) by a weight (inner x columns), and the two products of its backward pass.

    Parameters
    ----------
    width : float
        Bytes of an element of the two factors; results are ``ACTIVATION_BYTES`` wide.
    """
    flops = 2.0 * rows * inner * columns
    traffic = width * (rows * inner + inner * columns) + ACTIVATION_BYTES * rows * columns
    weight_gradient = GRADIENT_ACCUMULATION_BYTES * inner * columns
    return Operator(name, kind, flops, traffic, 1, 2 * flops, 2 * traffic + weight_gradient, 2, saved_bytes)


def elementwise(
    name: str, moved_elements: Number, saved_bytes: Number, kernels: float = 1, core: bool = False
) -> Operator:
    """Return an operator that only moves memory; its backward pass reads the saved input as well (factor 3/2)."""
    traffic = ACTIVATION_BYTES * moved_elements
    return Operator(name, "elementwise", 0.0, traffic, kernels, 0.0, 1.5 * traffic, kernels, saved_bytes, core)


def causal_pairs(seq_len: Number, window: int) -> Number:
    """Query-key pairs of causal attention over one sequence, at most `window` keys a query (0: no limit).

    Notes
    -----
    Without a window s^2/2; with one s w - w^2/2 (a triangle of w, then a band of w). The diagonal counts half.
    """
    reach = np.minimum(seq_len, window) if window else seq_len
    return seq_len * reach - reach * reach / 2


def attention_operators(
    attention: Attention, hidden: int, shape: Shape, *, norm: bool, rope: bool, fused: bool, dropout: bool, width: float
) -> list[Operator]:
    """Return the operators of an attention block: norm, projections, core, residual.

    Parameters
    ----------
    fused : bool
        Flash attention: causal halving, no score matrix in memory. Otherwise the full s^2 matrix is computed and kept
        (Korthikanti et al., arXiv 2205.05198, section 4.1).
    dropout : bool
        Dropout on scores and residuals, with its masks.
    width : float
        Bytes of an element of a projection's factors.
    """
    T, t, h = shape.tokens, shape.tp, hidden
    norm_tokens = T / shape.norm_share
    heads = attention.heads / t
    kv_heads = np.maximum(attention.kv_heads / t, 1.0)
    key, value = attention.qk_head_dim, attention.v_head_dim
    operators = []
    if norm:
        operators.append(elementwise("attention norm", 2 * norm_tokens * h, 2 * norm_tokens * h))
    block_input = 2 * norm_tokens * h
    if attention.kind == "mla":
        # DeepSeek-V2 (arXiv 2405.04434), section 2.1: down-projections are shared by all heads, up-projections split
        query_rank, kv_rank, rope_dim = attention.q_lora_rank, attention.kv_lora_rank, attention.rope_head_dim
        down = query_rank + kv_rank + rope_dim
        operators.append(gemm("latent projections", norm_tokens, h, down, width, block_input))
        query_inner = query_rank or h
        operators.append(gemm("query up-projection", T, query_inner, heads * key, width, 2 * norm_tokens * query_rank))
        operators.append(
            gemm(
                "key-value up-projection",
                T,
                kv_rank,
                heads * (attention.head_dim + value),
                width,
                2 * norm_tokens * kv_rank,
            )
        )
        kv_heads = heads
    else:
        operators.append(
            gemm("query-key-value projection", T, h, heads * key + kv_heads * (key + value), width, block_input)
        )
    if rope:
        operators.append(elementwise("rotary embedding", 2 * T * (heads + kv_heads) * key, 0.0))
    q_elements, k_elements, v_elements = T * heads * key, T * kv_heads * key, T * kv_heads * value
    out_elements = T * heads * value
    kept = 2 * (q_elements + k_elements + v_elements)
    pairs_share = shape.sequences / shape.cp
    if fused:
        pairs = causal_pairs(shape.seq_len, attention.window) * pairs_share
        flops = 2.0 * pairs * heads * (key + value)
        traffic = ACTIVATION_BYTES * (q_elements + k_elements + v_elements + out_elements)
        # the backward pass computes the scores again: five products for the forward pass's two (FlashAttention,
        # arXiv 2205.14135, algorithm 4)
        operators.append(
            Operator(
                "attention core",
                "attention",
                flops,
                traffic,
                shape.ring_steps,
                2.5 * flops,
                2.5 * traffic,
                2 * shape.ring_steps,
                kept + 4 * T * heads,
                core=True,
            )
        )
    else:
        scores = shape.seq_len**2 * pairs_share * heads
        flops = 2.0 * scores * (key + value)
        traffic = ACTIVATION_BYTES * (q_elements + k_elements + v_elements + out_elements + 2 * scores)
        operators.append(
            Operator(
                "attention scores and context", "gemm16", flops, traffic, 2, 2 * flops, 2 * traffic, 4, kept, core=True
            )
        )
        softmax_kept = 2 * scores + (3 * scores if dropout else 0.0)
        operators.append(
            elementwise("softmax", (4.5 if dropout else 2) * scores, softmax_kept, 2 if dropout else 1, core=True)
        )
    operators.append(gemm("output projection", T, heads * value, h, width, 2 * out_elements))
    mask = norm_tokens * h if dropout else 0.0
    operators.append(elementwise("attention residual", 3 * norm_tokens * h + mask / 2, mask))
    return operators


def feed_forward_operators(
    feed_forward: FeedForward, hidden: int, shape: Shape, *, norm: bool, dropout: bool, width: float
) -> list[Operator]:
    """Return the operators of a feed-forward block: norm, dense or expert network, residual.

    Notes
    -----
    Experts are not split over the tensor-parallel ranks: each of the ``ep`` ranks holds experts/ep of them and gets
    T/t x experts_per_token token copies (balanced load).
    """
    T, t, h = shape.tokens, shape.tp, hidden
    norm_tokens = T / shape.norm_share
    operators = []
    if norm:
        operators.append(elementwise("feed-forward norm", 2 * norm_tokens * h, 2 * norm_tokens * h))
    block_input = 2 * norm_tokens * h
    ways = 2 if feed_forward.gated else 1
    if feed_forward.width:
        f = feed_forward.width / t
        operators += _mlp("", T, h, f, ways, width, block_input)
    if feed_forward.experts:
        local = T / t
        copies = local * feed_forward.experts_per_token
        f = feed_forward.expert_width
        operators.append(gemm("router", local, h, feed_forward.experts, ACTIVATION_BYTES, 2 * local * h, "gemm16"))
        operators.append(elementwise("expert permutation", 4 * copies * h, 2 * copies * h, 4))
        held = feed_forward.experts / shape.ep
        for name, inner, columns, saved in (
            ("expert up-projection", h, ways * f, 2 * copies * h),
            ("expert down-projection", f, h, 2 * copies * f),
        ):
            flops = 2.0 * copies * inner * columns
            weights = held * inner * columns
            traffic = width * (copies * inner + weights) + ACTIVATION_BYTES * copies * columns
            backward = 2 * traffic + GRADIENT_ACCUMULATION_BYTES * weights
            operators.append(Operator(name, "moe", flops, traffic, 1, 2 * flops, backward, 2, saved))
        operators.append(elementwise("expert activation", (ways + 1) * copies * f, 2 * ways * copies * f))
        if feed_forward.shared_width:
            operators += _mlp("shared expert ", T, h, feed_forward.shared_width / t, ways, width, 0.0)
    mask = norm_tokens * h if dropout else 0.0
    operators.append(elementwise("feed-forward residual", 3 * norm_tokens * h + mask / 2, mask))
    return operators


def _mlp(
    prefix: str, tokens: Number, hidden: int, inner: Number, ways: int, width: float, block_input: Number
) -> list[Operator]:
    return [
        gemm(f"{prefix}up-projection", tokens, hidden, ways * inner, width, block_input),
        elementwise(f"{prefix}activation", (ways + 1) * tokens * inner, 2 * ways * tokens * inner),
        gemm(f"{prefix}down-projection", tokens, inner, hidden, width, 2 * tokens * inner),
    ]


def quantisation(operators: list[Operator], width: float) -> Operator:
    """Return the casts of product inputs and output gradients to `width` bytes: one read, two writes."""
    cast_inputs: Number = 0.0
    for operator in operators:
        if operator.kind in ("gemm", "moe"):
            cast_inputs = cast_inputs + operator.saved_bytes / ACTIVATION_BYTES
    elements = cast_inputs * (ACTIVATION_BYTES + 2 * width) / ACTIVATION_BYTES
    casts = sum(operator.kind in ("gemm", "moe") for operator in operators)
    return Operator(
        "quantisation",
        "elementwise",
        0.0,
        ACTIVATION_BYTES * elements,
        casts,
        0.0,
        ACTIVATION_BYTES * elements,
        casts,
        0.0,
    )


def head_operators(hidden: int, vocab: int, shape: Shape) -> list[Operator]:
    """Return final norm, logits and loss of the last stage; the vocabulary is split over the tensor-parallel ranks.

    Notes
    -----
    The loss reads the 16-bit logits, writes and reads them in 32 bits, and keeps the 32-bit softmax for the backward
    pass (Korthikanti et al., arXiv 2205.05198, section 4.3: 4 sbv/t bytes).
    """
    T, v = shape.tokens, vocab / shape.tp
    norm_tokens = T / shape.norm_share
    logits = T * v
    return [
        elementwise("final norm", 2 * norm_tokens * hidden, 2 * norm_tokens * hidden),
        gemm("logits", T, hidden, v, ACTIVATION_BYTES, 2 * norm_tokens * hidden, "gemm16"),
        elementwise("loss", 5 * logits, 4 * logits, 4),
    ]


def peak_flops(accelerator: Accelerator, dtype: str) -> float:
    """Return the dense peak of a type [FLOP/s]; a 16-bit type stands in for the other where only one is built in.

    Raises
    ------
    ValueError
        Where the accelerator has no such arithmetic.
    """
    for candidate in {"bf16": ("bf16", "fp16"), "fp16": ("fp16", "bf16")}.get(dtype, (dtype,)):
        if candidate in accelerator.peak:
            return accelerator.peak[candidate]
    raise ValueError(f"{accelerator.name} has no {dtype} peak; it has {', '.join(accelerator.peak)}")
