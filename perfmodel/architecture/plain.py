"""``config.json`` of the older decoders: layer normalisation and a feed-forward part without a gate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.architecture.fields import Fields
from perfmodel.architecture.shapes import Architecture, Attention, FeedForward, LayerGroup


@dataclass(frozen=True)
class _Plain:
    """Sizes of a decoder with layer normalisation and a feed-forward part without a gate."""

    hidden: int
    depth: int
    heads: int
    width: int
    vocab: int
    kv_heads: int = 0  # 0: as many as heads
    bias: bool = True
    attention_bias: bool = True  # only where bias
    norms: int = 2
    norm_bias: bool = True


def _plain_decoder(fields: Fields, name: str, sizes: _Plain, heads_key: str, **rest: Any) -> Architecture:
    fields.check_divides(heads_key, sizes.heads, sizes.hidden, "should divide the width of the residual stream")
    norm = (1 + sizes.norm_bias) * sizes.hidden
    head_dim = sizes.hidden // sizes.heads
    attention = Attention(
        kind="full",
        heads=sizes.heads,
        kv_heads=sizes.kv_heads or sizes.heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        bias_qkv=sizes.bias and sizes.attention_bias,
        bias_out=sizes.bias and sizes.attention_bias,
    )
    feed_forward = FeedForward(sizes.width, gated=False, bias=sizes.bias)
    return Architecture(
        name=name,
        hidden=sizes.hidden,
        vocab=sizes.vocab,
        layers=(LayerGroup(sizes.depth, attention, feed_forward, sizes.norms * norm),),
        final_norm_parameters=norm,
        norm="layernorm",
        **rest,
    )


def _gpt2(fields: Fields, name: str) -> Architecture:
    hidden = fields.size("n_embd", "hidden")
    positions = fields.size("n_positions", "max_positions")
    sizes = _Plain(
        hidden=hidden,
        depth=fields.size("n_layer", "layers"),
        heads=fields.size("n_head", "heads"),
        width=fields.size("n_inner", "width", 4 * hidden),
        vocab=fields.size("vocab_size", "vocab"),
    )
    tied = fields.flag("tie_word_embeddings", True)
    return _plain_decoder(
        fields,
        name,
        sizes,
        "n_head",
        tied_embeddings=tied,
        learned_positions=positions,
        position="learned",
        max_positions=positions,
    )


def _gptj(fields: Fields, name: str) -> Architecture:
    hidden = fields.size("n_embd", "hidden")
    sizes = _Plain(
        hidden=hidden,
        depth=fields.size("n_layer", "layers"),
        heads=fields.size("n_head", "heads"),
        width=fields.size("n_inner", "width", 4 * hidden),
        vocab=fields.size("vocab_size", "vocab"),
        attention_bias=False,
        norms=1,  # attention and feed-forward part read the same normalised stream
    )
    return _plain_decoder(
        fields,
        name,
        sizes,
        "n_head",
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        output_bias=True,
        max_positions=fields.size("n_positions", "max_positions", 0),
    )


def _gpt_neox(fields: Fields, name: str) -> Architecture:
    sizes = _Plain(
        hidden=fields.size("hidden_size", "hidden"),
        depth=fields.size("num_hidden_layers", "layers"),
        heads=fields.size("num_attention_heads", "heads"),
        width=fields.size("intermediate_size", "width"),
        vocab=fields.size("vocab_size", "vocab"),
    )
    fields.refuse("attention_bias", True, "this class without biases is not modelled")
    return _plain_decoder(
        fields,
        name,
        sizes,
        "num_attention_heads",
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        max_positions=fields.size("max_position_embeddings", "max_positions", 0),
    )


def _opt(fields: Fields, name: str) -> Architecture:
    hidden = fields.size("hidden_size", "hidden")
    positions = fields.size("max_position_embeddings", "max_positions")
    fields.refuse("word_embed_proj_dim", hidden, "a token table of another width is not modelled")
    fields.refuse("do_layer_norm_before", True, "normalisation after the sum is not modelled")
    sizes = _Plain(
        hidden=hidden,
        depth=fields.size("num_hidden_layers", "layers"),
        heads=fields.size("num_attention_heads", "heads"),
        width=fields.size("ffn_dim", "width"),
        vocab=fields.size("vocab_size", "vocab"),
        bias=fields.flag("enable_bias", True),
    )
    return _plain_decoder(
        fields,
        name,
        sizes,
        "num_attention_heads",
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        learned_positions=positions + 2,  # the first two rows stand for padding
        position="learned",
        max_positions=positions,
    )


def _bloom(fields: Fields, name: str) -> Architecture:
    def either(key: str, other: str, what: str) -> int:
        return fields.size(other if fields.value(key) is None and fields.value(other) is not None else key, what)

    hidden = either("hidden_size", "n_embed", "hidden")
    sizes = _Plain(
        hidden=hidden,
        depth=either("n_layer", "num_hidden_layers", "layers"),
        heads=either("n_head", "num_attention_heads", "heads"),
        width=4 * hidden,
        vocab=fields.size("vocab_size", "vocab"),
    )
    return _plain_decoder(
        fields,
        name,
        sizes,
        "n_head",
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        embedding_norm_parameters=2 * hidden,
        position="alibi",
        max_positions=fields.size("seq_length", "max_positions", 0),
    )


def _mpt(fields: Fields, name: str) -> Architecture:
    hidden = fields.size("d_model", "hidden")
    heads = fields.size("n_heads", "heads")
    positions = fields.size("max_seq_len", "max_positions")
    bias = not fields.flag("no_bias", False)
    fields.refuse("attn_config.qk_ln", False, "normalised queries and keys of this class are not modelled")
    fields.refuse("ffn_config.ffn_type", "mptmlp", "another feed-forward part of this class is not modelled")
    fields.refuse("attn_config.attn_type", "multihead_attention", "another attention of this class is not modelled")
    sizes = _Plain(
        hidden=hidden,
        depth=fields.size("n_layers", "layers"),
        heads=heads,
        width=fields.integer("expansion_ratio", "the inner over the outer width of the feed-forward part", 4) * hidden,
        vocab=fields.size("vocab_size", "vocab"),
        bias=bias,
        norm_bias=bias,
    )
    alibi = fields.flag("attn_config.alibi", False)
    learned = not alibi and fields.flag("learned_pos_emb", True)  # alibi switches the table off
    return _plain_decoder(
        fields,
        name,
        sizes,
        "n_heads",
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        learned_positions=positions if learned else 0,
        position="alibi" if alibi else "learned" if learned else "none",
        max_positions=positions,
    )


PLAIN_READERS: Mapping[str, Callable[[Fields, str], Architecture]] = {
    "gpt2": _gpt2,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
}
"""``model_type`` -> how its configuration is read."""
