"""Hugging Face ``config.json`` into an architecture.

Only what fixes the sizes is read. A field that published configurations leave to the default of their model class is
given that default here; every other field that a class needs and a file lacks is a fault.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hardware.faults import Fault, InputError, Path
from hardware.yaml_source import Source, did_you_mean
from perfmodel.architecture.shapes import Architecture, Attention, FeedForward, LayerGroup

_PURPOSES = {
    "hidden": "the width of the residual stream",
    "layers": "the number of layers",
    "heads": "the number of attention heads",
    "kv_heads": "the number of key and value heads",
    "head_dim": "the width of an attention head",
    "width": "the inner width of the feed-forward part",
    "vocab": "the number of rows of the token table",
    "max_positions": "the number of positions",
    "experts": "the number of routed experts",
    "experts_per_token": "the number of experts a token visits",
    "expert_width": "the inner width of one expert",
    "window": "the number of tokens a sliding-window layer sees",
}


class _Fields:
    """Reads the fields of one configuration and gathers what is wrong with them."""

    def __init__(self, source: Source, at: Path, config: Mapping[str, Any], kind: str) -> None:
        self.source = source
        self.at = at
        self.config = config
        self.kind = kind
        self.faults: list[Fault] = []

    def fault(self, key: str, message: str) -> None:
        self.faults.append(self.source.fault((*self.at, *key.split(".")), message))

    def value(self, key: str) -> Any:
        """Return what stands at a dotted key; None if nothing does."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def integer(self, key: str, purpose: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number; after a fault some number, so that the rest can still be checked."""
        found = self.value(key)
        if found is None:
            if default is None:
                self.fault(key, f'missing; {purpose}, which model_type "{self.kind}" needs')
            return max(least, 1) if default is None else default
        if isinstance(found, bool) or not isinstance(found, int | float) or found != int(found):
            self.fault(key, f"should be a whole number: {purpose} [got {found!r}]")
            return max(least, 1)
        if found < least:
            self.fault(key, f"should be at least {least}: {purpose} [got {found!r}]")
            return max(least, 1)
        return int(found)

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        found = self.value(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            self.fault(key, f"should be true or false [got {found!r}]")
            return default
        return found

    def size(self, key: str, what: str, default: int | None = None, least: int = 1) -> int:
        """Return one of the sizes that have the same meaning in every model class."""
        return self.integer(key, _PURPOSES[what], default, least)

    def check_divides(self, key: str, part: int, whole: int, message: str) -> None:
        if not self.faults and whole % part:
            self.fault(key, f"{message} [got {part} and {whole}]")

    def refuse(self, key: str, allowed: object, reason: str) -> None:
        """Refuse any value but the one that is modelled."""
        found = self.value(key)
        if found is not None and found != allowed:
            self.fault(key, f"should be {allowed!r}: {reason} [got {found!r}]")


@dataclass(frozen=True)
class _Layer:
    attention: Attention
    feed_forward: FeedForward
    norm_parameters: int


def _grouped(layers: Iterable[_Layer]) -> tuple[tuple[LayerGroup, ...], int]:
    """Gather equal layers; also say how many of the first kind lead the stack and never come back."""
    stack = list(layers)
    counts: dict[_Layer, int] = {}
    for layer in stack:
        counts[layer] = counts.get(layer, 0) + 1
    groups = tuple(
        LayerGroup(count, layer.attention, layer.feed_forward, layer.norm_parameters) for layer, count in counts.items()
    )
    first = counts[stack[0]]
    leads = first < len(stack) and all(layer == stack[0] for layer in stack[:first])
    return groups, first if leads else 0


@dataclass(frozen=True)
class _Traits:
    """How one class of gated decoders differs from Llama."""

    bias_qkv: bool | None = None  # None: as the field attention_bias says
    bias_out: bool | None = None
    attention_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    norms: int = 2
    tied: bool = False
    kv_heads_given: bool = True
    head_dim_given: bool = False
    window: str = "none"  # "all" layers, the "tail" from max_window_layers on, or all but the last of each "period"
    period: int = 0
    experts: str = ""  # the field that counts the routed experts
    expert_width: str = "intermediate_size"
    expert_bias: bool = False
    defaults: Mapping[str, int] = field(default_factory=dict)


_QWEN3 = _Traits(qk_norm=True, head_dim_given=True, window="tail")
_GATED: dict[str, _Traits] = {
    "llama": _Traits(kv_heads_given=False),
    "mistral": _Traits(bias_qkv=False, bias_out=False, window="all"),
    "mixtral": _Traits(bias_qkv=False, bias_out=False, window="all", experts="num_local_experts"),
    "qwen2": _Traits(bias_qkv=True, bias_out=False, window="tail"),
    "qwen3": _QWEN3,
    "qwen3_moe": _Traits(
        qk_norm=True,
        head_dim_given=True,
        window="tail",
        experts="num_experts",
        expert_width="moe_intermediate_size",
    ),
    "gemma": _Traits(tied=True, head_dim_given=True),
    "gemma2": _Traits(tied=True, head_dim_given=True, norms=4, window="period", period=2),
    "gemma3_text": _Traits(
        tied=True,
        head_dim_given=True,
        qk_norm=True,
        norms=4,
        window="period",
        period=6,
        # The published files leave these to the class Gemma3TextConfig.
        defaults={
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
        },
    ),
    "gpt_oss": _Traits(
        attention_bias=True,
        sinks=True,
        head_dim_given=True,
        window="period",
        period=2,
        experts="num_local_experts",
        expert_bias=True,
    ),
}


def _gated_decoder(fields: _Fields, name: str, traits: _Traits) -> Architecture:
    default = traits.defaults.get
    hidden = fields.size("hidden_size", "hidden")
    depth = fields.size("num_hidden_layers", "layers")
    heads = fields.size("num_attention_heads", "heads", default("num_attention_heads"))
    kv_heads = fields.size(
        "num_key_value_heads", "kv_heads", default("num_key_value_heads", None if traits.kv_heads_given else heads)
    )
    fields.check_divides("num_key_value_heads", kv_heads, heads, "should divide num_attention_heads")
    if not traits.head_dim_given and fields.value("head_dim") is None:
        fields.check_divides("num_attention_heads", heads, hidden, "should divide hidden_size unless head_dim is given")
    head_dim = fields.size(
        "head_dim", "head_dim", default("head_dim", None if traits.head_dim_given else hidden // heads)
    )
    vocab = fields.size("vocab_size", "vocab", default("vocab_size"))
    bias = fields.flag("attention_bias", traits.attention_bias)
    norms = traits.norms * hidden + (2 * head_dim if traits.qk_norm else 0)
    layers = []
    for window, feed_forward in zip(
        _windows(fields, traits, depth), _feed_forwards(fields, traits, depth), strict=True
    ):
        attention = Attention(
            kind="full",
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            v_head_dim=head_dim,
            bias_qkv=bias if traits.bias_qkv is None else traits.bias_qkv,
            bias_out=bias if traits.bias_out is None else traits.bias_out,
            qk_norm=traits.qk_norm,
            sinks=traits.sinks,
            window=window,
        )
        layers.append(_Layer(attention, feed_forward, norms))
    groups, leading = _grouped(layers)
    return Architecture(
        name=name,
        hidden=hidden,
        vocab=vocab,
        layers=groups,
        leading=leading,
        tied_embeddings=fields.flag("tie_word_embeddings", traits.tied),
        final_norm_parameters=hidden,
        max_positions=fields.size("max_position_embeddings", "max_positions", default("max_position_embeddings", 0)),
    )


def _windows(fields: _Fields, traits: _Traits, depth: int) -> list[int]:
    """Return the window of every layer; 0 where a token sees all before it."""
    kinds = fields.value("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != depth):
        fields.fault("layer_types", "should list one type for each of num_hidden_layers layers")
        return [0] * depth
    if kinds is not None:
        unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
        if unknown:
            fields.fault("layer_types", f"layers of type {', '.join(unknown)} are not modelled")
        slides = [kind == "sliding_attention" for kind in kinds]
    elif traits.window == "all":
        slides = [fields.value("sliding_window") is not None] * depth
    elif traits.window == "tail" and fields.flag("use_sliding_window", False):
        first = fields.integer("max_window_layers", "the number of leading layers that see all tokens", least=0)
        slides = [index >= first for index in range(depth)]
    elif traits.window == "period":
        period = fields.integer("sliding_window_pattern", "every how many layers one sees all tokens", traits.period)
        slides = [(index + 1) % period != 0 for index in range(depth)]
    else:
        slides = [False] * depth
    window = fields.size("sliding_window", "window") if any(slides) else 0
    return [window if slide else 0 for slide in slides]


def _feed_forwards(fields: _Fields, traits: _Traits, depth: int) -> list[FeedForward]:
    bias = fields.flag("mlp_bias", False)
    if not traits.experts:
        return [FeedForward(fields.size("intermediate_size", "width"), gated=True, bias=bias)] * depth
    mixture = FeedForward(
        width=0,
        gated=True,
        bias=traits.expert_bias,
        experts=fields.size(traits.experts, "experts"),
        experts_per_token=fields.size("num_experts_per_tok", "experts_per_token"),
        expert_width=fields.size(traits.expert_width, "expert_width"),
        router_bias=traits.expert_bias,
    )
    _check_experts(fields, "num_experts_per_tok", mixture)
    dense_layers = fields.value("mlp_only_layers") or []
    step = fields.integer("decoder_sparse_step", "every how many layers one has experts", 1)
    sparse = [index not in dense_layers and (index + 1) % step == 0 for index in range(depth)]
    if all(sparse):
        return [mixture] * depth
    dense = FeedForward(fields.size("intermediate_size", "width"), gated=True)
    return [mixture if here else dense for here in sparse]


def _check_experts(fields: _Fields, key: str, mixture: FeedForward) -> None:
    if not fields.faults and mixture.experts_per_token > mixture.experts:
        fields.fault(key, f"should not exceed the {mixture.experts} experts [got {mixture.experts_per_token}]")


def _deepseek(fields: _Fields, name: str) -> Architecture:
    hidden = fields.size("hidden_size", "hidden")
    depth = fields.size("num_hidden_layers", "layers")
    heads = fields.size("num_attention_heads", "heads")
    bias = fields.flag("attention_bias", False)
    attention = Attention(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=fields.integer("qk_nope_head_dim", "the width of a query head without rotary position"),
        v_head_dim=fields.integer("v_head_dim", "the width of a value head"),
        q_lora_rank=fields.integer("q_lora_rank", "the width of the latent query", 0, least=0),
        kv_lora_rank=fields.integer("kv_lora_rank", "the width of the latent key-value"),
        rope_head_dim=fields.integer("qk_rope_head_dim", "the width of the rotary part of a query head"),
        bias_qkv=bias,
        bias_out=bias,
    )
    expert_width = fields.size("moe_intermediate_size", "expert_width")
    corrected = fields.value("topk_method") == "noaux_tc" or fields.kind != "deepseek_v2"
    mixture = FeedForward(
        width=0,
        gated=True,
        experts=fields.size("n_routed_experts", "experts"),
        experts_per_token=fields.size("num_experts_per_tok", "experts_per_token"),
        expert_width=expert_width,
        shared_width=fields.integer("n_shared_experts", "the number of shared experts", 0, least=0) * expert_width,
        router_bias=corrected,
    )
    _check_experts(fields, "num_experts_per_tok", mixture)
    leading = fields.integer("first_k_dense_replace", "the number of leading layers without experts", 0, least=0)
    step = fields.integer("moe_layer_freq", "every how many layers one has experts", 1)
    dense = FeedForward(fields.size("intermediate_size", "width"), gated=True)
    norms = 2 * hidden + attention.q_lora_rank + attention.kv_lora_rank
    groups, leads = _grouped(
        _Layer(attention, mixture if index >= leading and index % step == 0 else dense, norms) for index in range(depth)
    )
    return Architecture(
        name=name,
        hidden=hidden,
        vocab=fields.size("vocab_size", "vocab"),
        layers=groups,
        leading=leads,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        final_norm_parameters=hidden,
        max_positions=fields.size("max_position_embeddings", "max_positions", 0),
        mtp_layers=fields.integer("num_nextn_predict_layers", "the number of prediction modules", 0, least=0),
    )


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
    norms: int = 2
    norm_bias: bool = True


def _plain_decoder(fields: _Fields, name: str, sizes: _Plain, heads_key: str, **rest: Any) -> Architecture:
    fields.check_divides(heads_key, sizes.heads, sizes.hidden, "should divide the width of the residual stream")
    norm = (1 + sizes.norm_bias) * sizes.hidden
    head_dim = sizes.hidden // sizes.heads
    attention = Attention(
        kind="full",
        heads=sizes.heads,
        kv_heads=sizes.kv_heads or sizes.heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        bias_qkv=sizes.bias,
        bias_out=sizes.bias,
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


def _gpt2(fields: _Fields, name: str) -> Architecture:
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


def _gpt_neox(fields: _Fields, name: str) -> Architecture:
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


def _opt(fields: _Fields, name: str) -> Architecture:
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


def _bloom(fields: _Fields, name: str) -> Architecture:
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


def _mpt(fields: _Fields, name: str) -> Architecture:
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


_READERS: dict[str, Callable[[_Fields, str], Architecture]] = {
    **{kind: partial(_gated_decoder, traits=traits) for kind, traits in _GATED.items()},
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
}

MODEL_TYPES = tuple(sorted(_READERS))
"""The values of ``model_type`` that are read."""


def from_config(config: Mapping[str, Any], name: str, source: Source | None = None) -> Architecture:
    """Read a Hugging Face ``config.json``.

    Parameters
    ----------
    config
        The file's content. Of a model with several parts, the text model (``text_config``) is read.
    name
        Name of the architecture.
    source
        The file with its positions, to place faults.

    Returns
    -------
    Architecture
        The sizes.

    Raises
    ------
    InputError
        Fields are missing or wrong (all of them are named), or the model type is unknown or not modelled.
    """
    source = source or Source(name, config)
    kind, at, part = _text_model(config)
    if kind not in _READERS:
        path = (*at, "model_type")
        if kind is None:
            raise InputError([source.fault(path, f"missing; the class of the model; {did_you_mean('', MODEL_TYPES)}")])
        raise InputError([source.fault(path, f'unknown model_type "{kind}"; {did_you_mean(kind, MODEL_TYPES)}')])
    fields = _Fields(source, at, part, kind)
    architecture = _READERS[kind](fields, name)
    if fields.faults:
        raise InputError(fields.faults)
    return architecture


def _text_model(config: Mapping[str, Any]) -> tuple[str | None, Path, Mapping[str, Any]]:
    """Find the part of a configuration that describes the text model."""
    kind = config.get("model_type")
    part = config.get("text_config")
    if kind not in _READERS and isinstance(part, Mapping) and "model_type" in part:
        return part["model_type"], ("text_config",), part
    return kind, (), config
