"""Operators of a transformer layer: kernels, FLOPs and saved activations, forward and backward.

Symbols: T tokens of a rank's share of a micro-batch (micro_batch x seq_len / cp), h hidden size, t tensor parallel
size. Activations take two bytes an element. All sizes are per layer and rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hardware.schema import Accelerator
from perfmodel.architecture import Attention, FeedForward
from perfmodel.kernels import prefill
from perfmodel.kernels.gemm import FORMS, Form, product
from perfmodel.kernels.work import Work
from perfmodel.terms import Number

ACTIVATION_BYTES = 2
GRADIENT_ACCUMULATION_BYTES = 8
"""Reading and writing the fp32 gradient of a weight once per micro-batch."""

STREAM_BYTES = 4096.0
"""A row of a kernel that streams through memory and reduces over nothing."""


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
    core_pieces : array
        Pieces in which the attention core runs: cp with ring attention, 1 with Ulysses.
    """

    tokens: Number
    sequences: Number
    seq_len: Number
    tp: Number
    cp: Number
    ep: Number
    norm_share: Number
    core_pieces: Number


@dataclass(frozen=True)
class Operator:
    """One operator of a layer.

    Parameters
    ----------
    name, kind : str
        Its name, and its class: ``gemm``, ``gemm16`` (stays in 16 bits), ``attention``, ``moe``, ``elementwise``.
    flops : array
        Arithmetic of the forward pass [FLOP].
    forward, backward : tuple of Work
        Kernels of the two passes.
    saved_bytes : array
        Activations kept from forward to backward [bytes].
    core : bool
        Belongs to the attention core, which selective recomputation computes again.
    """

    name: str
    kind: str
    flops: Number
    forward: tuple[Work, ...]
    backward: tuple[Work, ...]
    saved_bytes: Number
    core: bool = False

    @property
    def kernels(self) -> Number:
        """Kernels launched in the forward pass."""
        return sum((work.launches for work in self.forward), 0.0)

    @property
    def backward_kernels(self) -> Number:
        """Kernels launched in the backward pass."""
        return sum((work.launches for work in self.backward), 0.0)


def wide(form: Form) -> Form:
    """Return the form of products that stay in 16 bits where the others have fewer: router, logits, scores."""
    return form if form.activation_bytes >= ACTIVATION_BYTES else FORMS["bf16"]


def gemm(
    name: str,
    rows: Number,
    inner: Number,
    columns: Number,
    form: Form,
    saved_bytes: Number,
    kind: str = "gemm",
    batch: Number = 1.0,
) -> Operator:
    """Return the product of (rows x inner) by a weight (inner x columns), and the two products of its backward pass.

    Parameters
    ----------
    form : Form
        How the factors of all three are kept. Casting them to it is an operator of its own (`quantisation`).
    batch : array
        Products of these sizes, each by a weight of its own: experts.
    """
    kernel = f"gemm.{form.variant}"
    results = product(rows, columns, inner, form, batch=batch)
    input_gradient = product(rows, inner, columns, form, batch=batch)
    weight_gradient = product(inner, columns, rows, form, batch=batch, output_bytes=GRADIENT_ACCUMULATION_BYTES)
    return Operator(
        name,
        kind,
        2.0 * batch * rows * inner * columns,
        (Work(kernel, results),),
        (Work(kernel, input_gradient), Work(kernel, weight_gradient)),
        saved_bytes,
    )


def elementwise(
    name: str,
    variant: str,
    rows: Number,
    moved_elements: Number,
    saved_bytes: Number,
    kernels: float = 1,
    core: bool = False,
) -> Operator:
    """Return an operator that only moves memory; its backward pass reads the saved input as well (factor 3/2).

    Parameters
    ----------
    variant : str
        ``norm``, ``activation``, ``rotation`` or ``stream`` (``perfmodel.kernels.memory``).
    rows, moved_elements : array
        Rows, mostly tokens, and elements read and written for each.
    """
    work = streamed(variant, rows, ACTIVATION_BYTES * moved_elements, kernels)
    back = streamed(variant, rows, 1.5 * ACTIVATION_BYTES * moved_elements, kernels)
    return Operator(name, "elementwise", 0.0, (work,), (back,), saved_bytes, core)


def streamed(variant: str, rows: Number, row_bytes: Number, kernels: float = 1) -> Work:
    """Return kernels that move `rows` of `row_bytes` together; of variant ``stream`` rows mean nothing."""
    if variant == "stream":
        rows, row_bytes = rows * row_bytes / STREAM_BYTES, STREAM_BYTES
    shapes = {"rows": np.asarray(rows, float), "row_bytes": np.asarray(row_bytes, float), "warm": np.asarray(False)}
    return Work(f"memory.{variant}", shapes, launches=kernels)


def causal_pairs(seq_len: Number, window: int) -> Number:
    """Query-key pairs of causal attention over one sequence, at most `window` keys a query (0: no limit).

    Notes
    -----
    Without a window s^2/2; with one s w - w^2/2 (a triangle of w, then a band of w). The diagonal counts half.
    """
    reach = np.minimum(seq_len, window) if window else seq_len
    return seq_len * reach - reach * reach / 2


def attention_products(attention: Attention, hidden: int, shape: Shape, form: Form) -> list[Operator]:
    """Return the products by weights of an attention block, the one out of it last.

    Parameters
    ----------
    attention : Attention
        The layer's attention, of any kind.
    hidden : int
        Width of the residual stream.
    shape : Shape
        What one rank computes.
    form : Form
        How their factors are kept.
    """
    T, t, h = shape.tokens, shape.tp, hidden
    norm_tokens = T / shape.norm_share
    heads = attention.heads / t
    key, value = attention.qk_head_dim, attention.v_head_dim
    block_input = 2 * norm_tokens * h
    out = gemm("output projection", T, heads * value, h, form, 2 * T * heads * value)
    if attention.kind == "mla":
        # DeepSeek-V2 (arXiv 2405.04434), section 2.1: down-projections are shared by all heads, up-projections split
        query_rank, kv_rank, rope_dim = attention.q_lora_rank, attention.kv_lora_rank, attention.rope_head_dim
        down = query_rank + kv_rank + rope_dim
        query_inner = query_rank or h
        up = heads * (attention.head_dim + value)
        return [
            gemm("latent projections", norm_tokens, h, down, form, block_input),
            gemm("query up-projection", T, query_inner, heads * key, form, 2 * norm_tokens * query_rank),
            gemm("key-value up-projection", T, kv_rank, up, form, 2 * norm_tokens * kv_rank),
            out,
        ]
    gate = attention.gate_features / t
    if attention.kind == "linear":
        # as many queries as keys, and of every value head a decay and a share
        columns = 2 * attention.kv_heads / t * key + heads * value + gate + 2 * heads
        return [gemm("query-key-value projection", T, h, columns, form, block_input), out]
    kv_heads = np.maximum(attention.kv_heads / t, 1.0)
    columns = heads * key + kv_heads * (key + value) + gate
    return [gemm("query-key-value projection", T, h, columns, form, block_input), out]


def attention_operators(
    attention: Attention, hidden: int, shape: Shape, *, norm: bool, rope: bool, fused: bool, dropout: bool, form: Form
) -> list[Operator]:
    """Return the operators of an attention block: norm, projections, core, residual.

    Parameters
    ----------
    fused : bool
        Flash attention: causal halving, no score matrix in memory. Otherwise the full s^2 matrix is computed and kept
        (Korthikanti et al., arXiv 2205.05198, section 4.1).
    dropout : bool
        Dropout on scores and residuals, with its masks.
    form : Form
        How factors of projections are kept.

    Raises
    ------
    ValueError
        Of linear attention; its kernels in serving are those of ``perfmodel.linear_attention``.
    """
    if attention.kind == "linear":
        raise ValueError("linear attention is modelled in serving alone, not in training")
    T, t, h = shape.tokens, shape.tp, hidden
    norm_tokens = T / shape.norm_share
    heads = attention.heads / t
    kv_heads = np.maximum(attention.kv_heads / t, 1.0)
    key, value = attention.qk_head_dim, attention.v_head_dim
    operators = []
    if norm:
        operators.append(elementwise("attention norm", "norm", norm_tokens, 2 * h, 2 * norm_tokens * h))
    *inward, outward = attention_products(attention, hidden, shape, form)
    operators += inward
    if attention.kind == "mla":
        kv_heads = heads
    if rope:
        operators.append(elementwise("rotary embedding", "rotation", T, 2 * (heads + kv_heads) * key, 0.0))
    q_elements, k_elements, v_elements = T * heads * key, T * kv_heads * key, T * kv_heads * value
    kept = 2 * (q_elements + k_elements + v_elements)
    pairs_share = shape.sequences / shape.cp
    if fused:
        pairs = causal_pairs(shape.seq_len, attention.window) * pairs_share
        kernel, element = f"prefill.{prefill.variant_of(key)}", wide(form).activation_bytes
        sizes = prefill.shapes_of(
            attention, shape.sequences, shape.seq_len, tp=shape.tp, query_bytes=element, cache_bytes=element
        )
        # the backward pass computes the scores again: five products for the forward pass's two (FlashAttention,
        # arXiv 2205.14135, algorithm 4)
        operators.append(
            Operator(
                "attention core",
                "attention",
                2.0 * pairs * heads * (key + value),
                (Work(kernel, sizes, 1.0 / shape.cp, shape.core_pieces),),
                (Work(kernel, sizes, 2.5 / shape.cp, 2 * shape.core_pieces),),
                kept + 4 * T * heads,
                core=True,
            )
        )
    else:
        s, batch = shape.seq_len, pairs_share * heads
        scores = s**2 * batch
        whole = wide(form)
        kernel = f"gemm.{whole.variant}"
        by_keys = Work(kernel, product(s, s, key, whole, batch=batch))
        by_values = Work(kernel, product(s, value, s, whole, batch=batch))
        # gradients of both factors of each product, which are as large as the factors
        back = (
            Work(kernel, product(s, key, s, whole, batch=batch), 2.0, 2.0),
            Work(kernel, product(s, s, value, whole, batch=batch)),
            by_values,
        )
        flops = 2.0 * scores * (key + value)
        operators.append(
            Operator("attention scores and context", "gemm16", flops, (by_keys, by_values), back, kept, core=True)
        )
        softmax_kept = 2 * scores + (3 * scores if dropout else 0.0)
        moved = 4.5 if dropout else 2
        operators.append(elementwise("softmax", "stream", scores, moved, softmax_kept, 2 if dropout else 1, core=True))
    operators.append(outward)
    mask = norm_tokens * h if dropout else 0.0
    operators.append(elementwise("attention residual", "stream", 1, 3 * norm_tokens * h + mask / 2, mask))
    return operators


def feed_forward_operators(
    feed_forward: FeedForward, hidden: int, shape: Shape, *, norm: bool, dropout: bool, form: Form
) -> list[Operator]:
    """Return the operators of a feed-forward block: norm, dense or expert network, residual.

    Notes
    -----
    Experts are not split over the tensor-parallel ranks: each of the ``ep`` ranks holds experts/ep of them and gets
    T/t x experts_per_token token copies (balanced load). Libraries of training multiply them as a batch of products,
    one an expert (MegaBlocks, arXiv 2211.15841, section 3); those of serving fuse more (``perfmodel.kernels.moe``).
    """
    T, t, h = shape.tokens, shape.tp, hidden
    norm_tokens = T / shape.norm_share
    operators = []
    if norm:
        operators.append(elementwise("feed-forward norm", "norm", norm_tokens, 2 * h, 2 * norm_tokens * h))
    block_input = 2 * norm_tokens * h
    ways = 2 if feed_forward.gated else 1
    if feed_forward.width:
        f = feed_forward.width / t
        operators += _mlp("", T, h, f, ways, form, block_input)
    if feed_forward.experts:
        local = T / t
        copies = local * feed_forward.experts_per_token
        f = feed_forward.expert_width
        operators.append(gemm("router", local, h, feed_forward.experts, wide(form), 2 * local * h, "gemm16"))
        operators.append(elementwise("expert permutation", "stream", 1, 4 * copies * h, 2 * copies * h, 4))
        held = feed_forward.experts / shape.ep
        rows = copies / held
        operators.append(gemm("expert up-projection", rows, h, ways * f, form, 2 * copies * h, "moe", held))
        operators.append(elementwise("expert activation", "activation", copies, (ways + 1) * f, 2 * ways * copies * f))
        operators.append(gemm("expert down-projection", rows, f, h, form, 2 * copies * f, "moe", held))
        if feed_forward.shared_width:
            operators += _mlp("shared expert ", T, h, feed_forward.shared_width / t, ways, form, 0.0)
    mask = norm_tokens * h if dropout else 0.0
    operators.append(elementwise("feed-forward residual", "stream", 1, 3 * norm_tokens * h + mask / 2, mask))
    return operators


def _mlp(
    prefix: str, tokens: Number, hidden: int, inner: Number, ways: int, form: Form, block_input: Number
) -> list[Operator]:
    return [
        gemm(f"{prefix}up-projection", tokens, hidden, ways * inner, form, block_input),
        elementwise(f"{prefix}activation", "activation", tokens, (ways + 1) * inner, 2 * ways * tokens * inner),
        gemm(f"{prefix}down-projection", tokens, inner, hidden, form, 2 * tokens * inner),
    ]


def quantisation(operators: list[Operator], form: Form) -> Operator:
    """Return the casts of product inputs and output gradients to a narrower form: one read, two writes."""
    narrow = [operator for operator in operators if operator.kind in ("gemm", "moe")]
    cast_inputs: Number = sum((operator.saved_bytes for operator in narrow), 0.0) / ACTIVATION_BYTES
    work = streamed("stream", 1, cast_inputs * (ACTIVATION_BYTES + 2 * form.activation_bytes), len(narrow))
    return Operator("quantisation", "elementwise", 0.0, (work,), (work,), 0.0)


def head_operators(hidden: int, vocab: int, shape: Shape, form: Form) -> list[Operator]:
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
        elementwise("final norm", "norm", norm_tokens, 2 * hidden, 2 * norm_tokens * hidden),
        gemm("logits", T, hidden, v, wide(form), 2 * norm_tokens * hidden, "gemm16"),
        elementwise("loss", "stream", 1, 5 * logits, 4 * logits, 4),
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
