"""Bytes that a served sequence holds on one rank: keys and values of its tokens, and states of linear attention.

Keys and values: 2 kv_heads head_dim bytes a token and layer (Kwon et al., PagedAttention, arXiv 2309.06180, section 3);
of latent attention one latent vector and one rotary key (DeepSeek-V2, arXiv 2405.04434, section 2.1.4).
"""

from __future__ import annotations

import numpy as np

from perfmodel.architecture import Architecture, Attention
from perfmodel.terms import Array, Number

STATE_BYTES = 4.0
"""Bytes of an element of a state: gated delta networks keep it in 32 bits (``mamba_ssm_dtype`` of their files)."""

CONVOLUTION_BYTES = 2.0
"""Bytes of an element of the last tokens that a convolution still needs, kept as activations are."""


def layer_kv_bytes_per_token(attention: Attention, cache_bytes: Number, tp: Number = 1) -> Array:
    """Return what one token adds to the cache of one layer on one rank.

    Parameters
    ----------
    attention : Attention
        The layer's attention. The latent vector of ``mla`` is whole on every rank; ``linear`` adds nothing.
    cache_bytes : float or array
        Bytes of an element of the cache.
    tp : int or array
        Ranks that share the heads; a key-value head is copied where there are fewer than ranks [1].

    Returns
    -------
    array
        Bytes per token.
    """
    ranks = np.asarray(tp, float)
    if attention.kind == "linear":
        elements = 0.0 * ranks
    elif attention.kind == "mla":
        elements = attention.kv_lora_rank + attention.rope_head_dim + 0.0 * ranks
    else:
        elements = np.maximum(attention.kv_heads / ranks, 1.0) * (attention.qk_head_dim + attention.v_head_dim)
    return np.asarray(elements * np.asarray(cache_bytes, float))


def kv_bytes_per_token(architecture: Architecture, cache_bytes: Number, tp: Number = 1) -> Array:
    """Return what one token adds to the cache of all layers on one rank, until it fills the windows of some.

    Parameters
    ----------
    architecture : Architecture
        The model.
    cache_bytes, tp : float, int or array
        As of `layer_kv_bytes_per_token`.

    Returns
    -------
    array
        Bytes per token.
    """
    return kv_bytes_per_sequence(architecture, 1.0, cache_bytes, tp)


def kv_bytes_per_sequence(architecture: Architecture, tokens: Number, cache_bytes: Number, tp: Number = 1) -> Array:
    """Return keys and values of a sequence on one rank; layers with a window hold those inside it.

    Parameters
    ----------
    architecture : Architecture
        The model.
    tokens : float or array
        Length of the sequence so far [tokens].
    cache_bytes, tp : float, int or array
        As of `layer_kv_bytes_per_token`.

    Returns
    -------
    array
        Bytes per sequence.
    """
    total: Array = np.asarray(0.0)
    for group in architecture.layers:
        held = np.minimum(tokens, group.attention.window or np.inf)
        total = total + group.count * held * layer_kv_bytes_per_token(group.attention, cache_bytes, tp)
    return np.asarray(total)


def layer_state_bytes(attention: Attention, tp: Number = 1) -> Array:
    """Return the state that one layer keeps of one sequence on one rank, however long the sequence.

    Parameters
    ----------
    attention : Attention
        The layer's attention; only ``linear`` has a state.
    tp : int or array
        Ranks that share the heads [1].

    Returns
    -------
    array
        Bytes per sequence.

    Notes
    -----
    A matrix of d_k by d_v for every value head (arXiv 2412.06464, equation 10), and of the convolution of width w over
    queries, keys and values the w - 1 tokens before the next one.
    """
    ranks = np.asarray(tp, float)
    if attention.kind != "linear":
        return np.asarray(0.0 * ranks)
    matrices = attention.heads * attention.head_dim * attention.v_head_dim
    mixed = 2 * attention.kv_heads * attention.head_dim + attention.heads * attention.v_head_dim
    waiting = (attention.convolution - 1) * mixed
    return np.asarray((STATE_BYTES * matrices + CONVOLUTION_BYTES * waiting) / ranks)


def state_bytes_per_sequence(architecture: Architecture, tp: Number = 1) -> Array:
    """Return the states that all layers keep of one sequence on one rank.

    Parameters
    ----------
    architecture : Architecture
        The model.
    tp : int or array
        Ranks that share the heads [1].

    Returns
    -------
    array
        Bytes per sequence.
    """
    total: Array = np.asarray(0.0)
    for group in architecture.layers:
        total = total + group.count * layer_state_bytes(group.attention, tp)
    return np.asarray(total)
