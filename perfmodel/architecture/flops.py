"""The arithmetic a model needs, whatever machine runs it."""

from dataclasses import replace

from perfmodel.architecture.shapes import Architecture, LayerGroup, layer_parameters


def model_flops_per_token(architecture: Architecture, seq_len: int) -> float:
    """Count the floating-point operations of training on one token, forward and backward.

    Parameters
    ----------
    architecture
        The model.
    seq_len
        Length of the sequences [tokens].

    Returns
    -------
    float
        Operations per token, averaged over the positions of a sequence [FLOP/token].

    Notes
    -----
    ``3 * (2 N + A)``: a backward pass costs two forward ones. ``N`` counts the weights of the matrices a token is
    multiplied by: projections, feed-forward part (of a mixture, the router, the shared experts and the routed
    experts it visits) and the output projection, not the token table, biases or norms. ``A`` is the attention
    itself, ``2 heads (d_qk + d_v) c`` per layer with ``c`` the mean number of tokens seen: ``s / 2`` under a causal
    mask, ``w - w^2 / 2s`` in a window of ``w < s``. A multi-token-prediction module adds its projection, its layer and
    the logits once more. Recomputation, softmax and element-wise work do not count.

    References
    ----------
    PaLM, arXiv 2204.02311, appendix B, with the causal half of the attention only.
    """
    groups = architecture.layers
    hidden = architecture.hidden
    logits = 2.0 * architecture.vocab * hidden
    layers = [2.0 * _matrix_weights(group, hidden) + attention_flops_per_token(group, seq_len) for group in groups]
    forward = logits + sum(group.count * layer for group, layer in zip(groups, layers, strict=True))
    forward += architecture.mtp_layers * (layers[-1] + 4.0 * hidden**2 + logits)
    return 3.0 * forward


def attention_flops_per_token(group: LayerGroup, seq_len: int) -> float:
    """Count the operations of one layer's attention on one token in a forward pass, projections left out.

    Parameters
    ----------
    group
        The layer's shape.
    seq_len
        Length of the sequences [tokens].

    Returns
    -------
    float
        Operations per token, averaged over the positions of a sequence [FLOP/token].

    Notes
    -----
    Linear attention reads its state at the key, corrects it there and reads it at the query, whatever came before:
    ``3 * 2 d_qk d_v`` a head (arXiv 2412.06464, equation 10); the decay is element-wise.
    """
    attention = group.attention
    if attention.kind == "linear":
        return 6.0 * attention.heads * attention.head_dim * attention.v_head_dim
    seen = seq_len / 2
    if 0 < attention.window < seq_len:
        seen = attention.window - attention.window**2 / (2 * seq_len)
    return 2.0 * attention.heads * (attention.qk_head_dim + attention.v_head_dim) * seen


def _matrix_weights(group: LayerGroup, hidden: int) -> int:
    """Count the weights of the matrices of one layer that one token meets."""
    bare = LayerGroup(
        count=1,
        attention=replace(group.attention, bias_qkv=False, bias_out=False, sinks=False),
        feed_forward=replace(group.feed_forward, bias=False, router_bias=False),
        norm_parameters=0,
    )
    counts = layer_parameters(bare, hidden)
    routed = counts.routed
    if bare.feed_forward.experts:
        routed = routed * bare.feed_forward.experts_per_token // bare.feed_forward.experts
    return counts.attention + counts.dense_mlp + counts.router + counts.shared + routed
