"""Kernels of a gated delta network in serving: prompts in chunks, one new token by its state.

Symbols: b sequences, s new tokens of each; H value heads of a rank, d and v widths of a key and a value. Every head
keeps M [d, v]; a token of key k, value x, query q, decay a and share w makes it

    M' = a M + k u^T,   u = w (x - a M^T k),   and reads o = M'^T q.

A chunk of C tokens is done at once by products, of which only two wait for the chunk before (Yang, Kautz and
Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464, section 3.3). With K, X, Q the rows of a chunk, G the decays
between its tokens and g those from its start, T = (1 + tril(w K K^T G))^-1 w:

    W = T (g K),  U = T X,  N = U - W M,   O = (g Q) M + (Q K^T G) N,   M' = g_C M + (g_C/g K)^T N.

No kernel of this kind is among the measurements: products take the parameters of those of matrices, all else of memory.
"""

from __future__ import annotations

import numpy as np

from perfmodel.architecture import Attention
from perfmodel.kernels import memory
from perfmodel.kernels.gemm import FORMS, product
from perfmodel.kernels.work import Work
from perfmodel.kv_cache import layer_state_bytes
from perfmodel.terms import Number

CHUNK = 64
"""Tokens of a chunk, C: what the library flash-linear-attention takes."""

ACTIVATION_BYTES = 2.0


def prompt_works(attention: Attention, sequences: Number, new_tokens: Number, *, tp: Number = 1) -> tuple[Work, ...]:
    """Return the kernels of a layer between its projections, for prompts, on one rank.

    Parameters
    ----------
    attention : Attention
        The layer's attention, of kind ``linear``.
    sequences, new_tokens : int or array
        Prompts or pieces of prompts, and new tokens of each. What came before is in the state: it costs nothing.
    tp : int or array
        Ranks that share the heads.

    Notes
    -----
    A chunk and head takes products of [C, d] x [d, C] twice (K K^T, Q K^T), [C, C] x [C, d] (W), [C, C] x [C, v] twice
    (U and the second part of O) and [C, d] x [d, v] (the first part of O), all chunks at once; the inverse counts as
    one of [C, C] x [C, C]. Chunk after chunk, all sequences and heads at once: [C, d] x [d, v] and [d, C] x [C, v].
    They are five kernels; the states between chunks, which the second reads as factors and hands to the third, are the
    traffic of its products. Before them a convolution, the norms of queries and keys, the decays and their sums; after
    them the gated norm.
    """
    sequences, new_tokens, ranks = np.asarray(sequences, float), np.asarray(new_tokens, float), np.asarray(tp, float)
    heads, d, v = attention.heads / ranks, attention.head_dim, attention.v_head_dim
    chunks = np.ceil(new_tokens / CHUNK)
    work_items = sequences * heads
    at_once = work_items * chunks
    products = [
        _product(CHUNK, CHUNK, d, at_once),
        _product(CHUNK, CHUNK, CHUNK, at_once),
        _product(CHUNK, d, CHUNK, at_once),
        _product(CHUNK, v, CHUNK, at_once, launches=0.0),
        _product(CHUNK, v, d, work_items, times=chunks),
        _product(d, v, CHUNK, work_items, times=chunks, launches=0.0),
        _product(CHUNK, v, d, at_once),
        _product(CHUNK, CHUNK, d, at_once, launches=0.0),
        _product(CHUNK, v, CHUNK, at_once, launches=0.0),
    ]
    tokens = sequences * new_tokens
    keys = 2.0 * attention.kv_heads / ranks * d
    mixed = keys + heads * v
    return (
        _streamed(2.0 * ACTIVATION_BYTES * tokens * mixed),  # convolution
        _normed(tokens * 2.0 * attention.kv_heads / ranks, 2.0 * d),
        _streamed(4.0 * ACTIVATION_BYTES * tokens * heads, launches=2.0),  # decays and shares, and their sums
        *products,
        _normed(tokens * heads, 3.0 * v),
    )


def token_works(attention: Attention, sequences: Number, *, tp: Number = 1) -> tuple[Work, ...]:
    """Return the kernels of a layer between its projections, for one new token a sequence, on one rank.

    Parameters
    ----------
    attention : Attention
        The layer's attention, of kind ``linear``.
    sequences : int or array
        Sequences; how long they are does not matter.
    tp : int or array
        Ranks that share the heads.

    Notes
    -----
    Every sequence's state is read and written once; so is what the convolution waits with. Three kernels: convolution,
    state, gated norm.
    """
    sequences, ranks = np.asarray(sequences, float), np.asarray(tp, float)
    heads, v = attention.heads / ranks, attention.v_head_dim
    mixed = 2.0 * attention.kv_heads / ranks * attention.head_dim + heads * v
    return (
        _streamed(2.0 * ACTIVATION_BYTES * sequences * mixed),
        _streamed(sequences * (2.0 * layer_state_bytes(attention, tp) + ACTIVATION_BYTES * (mixed + heads * v))),
        _normed(sequences * heads, 3.0 * v),
    )


def _product(m: int, n: int, k: int, batch: Number, times: Number = 1.0, launches: Number = 1.0) -> Work:
    form = FORMS["bf16"]
    return Work(f"gemm.{form.variant}", product(m, n, k, form, batch=batch), times, launches)


def _streamed(size: Number, launches: float = 1.0) -> Work:
    """Return kernels that move `size` bytes together."""
    return Work("memory.stream", memory.stream_shapes(size), 1.0, launches)


def _normed(rows: Number, moved: Number) -> Work:
    shapes = {"rows": rows, "row_bytes": ACTIVATION_BYTES * np.asarray(moved, float), "warm": False}
    return Work("memory.norm", dict(zip(shapes, np.broadcast_arrays(*shapes.values()), strict=True)))
