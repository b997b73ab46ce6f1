"""Hugging Face ``config.json`` into an architecture.

Only what fixes the sizes is read. A field that published configurations leave to the default of their model class is
given that default here; every other field that a class needs and a file lacks is a fault.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hardware.faults import InputError, Path
from hardware.yaml_source import Source, did_you_mean
from perfmodel.architecture.coverage import ModelNotCovered, not_covered_type
from perfmodel.architecture.fields import Fields
from perfmodel.architecture.plain import PLAIN_READERS
from perfmodel.architecture.shapes import Architecture, Attention, FeedForward, LayerGroup

_MODULES = "the number of prediction modules"
_LEADING = "the number of leading layers without experts"


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

    bias_qkv: bool | None = None  # None: as bias_field says
    bias_out: bool | None = None
    bias_field: str = "attention_bias"
    attention_bias: bool = False
    qk_norm: bool = False
    qk_norm_heads: bool = False  # whether every head has weights of its own in it
    qk_norm_field: str = ""  # the field that says whether there is one
    sinks: bool = False
    norms: int = 2
    tied: bool = False
    kv_heads_given: bool = True
    head_dim_given: bool = False
    window: str = "none"  # "all" layers, the "tail" from max_window_layers on, or all but the last of each "period"
    period: int = 0
    window_field: str = "sliding_window"
    experts: str = ""  # the field that counts the routed experts
    expert_width: str = "intermediate_size"
    expert_step: str = "decoder_sparse_step"  # the field that says every how many layers one has experts
    expert_bias: bool = False
    leading: str = ""  # the field that counts the leading layers without experts
    dense_width: str = "intermediate_size"  # of layers without experts
    router_bias: bool = False
    shared_width: str = ""  # the field that gives the inner width of the shared expert
    shared_count: str = ""  # the field that counts shared experts as wide as the others
    shared_gate: bool = False
    output_gate: bool = False
    interval: str = ""  # the field that says every how many layers one is not linear attention
    modules: str = ""  # the field that counts the prediction modules
    defaults: Mapping[str, int] = field(default_factory=dict)


_QWEN3 = _Traits(qk_norm=True, head_dim_given=True, window="tail")
_QWEN3_MOE = replace(_QWEN3, experts="num_experts", expert_width="moe_intermediate_size")
_QWEN3_NEXT = _Traits(
    qk_norm=True,
    head_dim_given=True,
    experts="num_experts",
    expert_width="moe_intermediate_size",
    shared_width="shared_expert_intermediate_size",
    shared_gate=True,
    output_gate=True,
    interval="full_attention_interval",
    modules="mtp_num_hidden_layers",
)
_GATED: dict[str, _Traits] = {
    "llama": _Traits(kv_heads_given=False),
    "mistral": _Traits(bias_qkv=False, bias_out=False, window="all"),
    "mixtral": _Traits(bias_qkv=False, bias_out=False, window="all", experts="num_local_experts"),
    "qwen2": _Traits(bias_qkv=True, bias_out=False, window="tail"),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "qwen3_5_text": replace(_QWEN3_NEXT, experts="", shared_gate=False),
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
    "phi3": _Traits(bias_qkv=False, bias_out=False, window="all"),
    "granite": _Traits(tied=True),
    "olmo2": _Traits(qk_norm=True, qk_norm_heads=True),
    "glm4_moe": _Traits(
        bias_out=False,
        qk_norm_field="use_qk_norm",
        head_dim_given=True,
        experts="n_routed_experts",
        expert_width="moe_intermediate_size",
        leading="first_k_dense_replace",
        router_bias=True,
        shared_count="n_shared_experts",
        modules="num_nextn_predict_layers",
    ),
    # Its queries and keys are normalised without weights; of four layers three see chunks of the text.
    "llama4_text": _Traits(
        head_dim_given=True,
        window="period",
        period=4,
        window_field="attention_chunk_size",
        experts="num_local_experts",
        expert_step="interleave_moe_layer_step",
        dense_width="intermediate_size_mlp",
        shared_width="intermediate_size",
    ),
    "internlm": _Traits(kv_heads_given=False, bias_field="bias", attention_bias=True),
    "minimax_m2": _Traits(
        bias_qkv=False,
        bias_out=False,
        qk_norm=True,
        qk_norm_heads=True,
        head_dim_given=True,
        experts="num_local_experts",
        router_bias=True,
        shared_width="shared_intermediate_size",
    ),
    "gpt_oss": _Traits(
        attention_bias=True,
        sinks=True,
        head_dim_given=True,
        window="period",
        period=2,
        experts="num_local_experts",
        expert_bias=True,
        router_bias=True,
    ),
}


def _gated_decoder(fields: Fields, name: str, traits: _Traits) -> Architecture:
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
    bias = fields.flag(traits.bias_field, traits.attention_bias)
    norms = traits.norms * hidden
    linear = _linear_attention(fields) if traits.interval else None
    qk_norm = fields.flag(traits.qk_norm_field, False) if traits.qk_norm_field else traits.qk_norm
    head_norms = head_dim * (heads + kv_heads if traits.qk_norm_heads else 2) if qk_norm else 0
    layers = []
    for window, feed_forward in zip(
        _windows(fields, traits, depth), _feed_forwards(fields, traits, depth), strict=True
    ):
        if linear and window is None:
            layers.append(_Layer(linear, feed_forward, norms + linear.v_head_dim))
            continue
        attention = Attention(
            kind="full",
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            v_head_dim=head_dim,
            bias_qkv=bias if traits.bias_qkv is None else traits.bias_qkv,
            bias_out=bias if traits.bias_out is None else traits.bias_out,
            qk_norm=qk_norm,
            sinks=traits.sinks,
            window=window or 0,
            output_gate=traits.output_gate,
        )
        layers.append(_Layer(attention, feed_forward, norms + head_norms))
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
        mtp_layers=fields.integer(traits.modules, _MODULES, 0, least=0) if traits.modules else 0,
    )


def _linear_attention(fields: Fields) -> Attention:
    heads = fields.integer("linear_num_value_heads", "the number of value heads of linear attention")
    keys = fields.integer("linear_num_key_heads", "the number of key heads of linear attention")
    fields.check_divides("linear_num_key_heads", keys, heads, "should divide linear_num_value_heads")
    return Attention(
        kind="linear",
        heads=heads,
        kv_heads=keys,
        head_dim=fields.integer("linear_key_head_dim", "the width of a key head of linear attention"),
        v_head_dim=fields.integer("linear_value_head_dim", "the width of a value head of linear attention"),
        output_gate=True,
        convolution=fields.integer("linear_conv_kernel_dim", "the tokens that the convolution mixes"),
    )


def _windows(fields: Fields, traits: _Traits, depth: int) -> list[int | None]:
    """Return the window of every layer; 0 where a token sees all before it, None where attention is linear."""
    kinds = fields.value("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != depth):
        fields.fault("layer_types", "should list one type for each of num_hidden_layers layers")
        return [0] * depth
    allowed = {"full_attention", "linear_attention" if traits.interval else "sliding_attention"}
    if kinds is None and traits.interval:
        period = fields.integer(traits.interval, "every how many layers one is not linear attention", 4)
        kinds = ["linear_attention" if (index + 1) % period else "full_attention" for index in range(depth)]
    if kinds is not None:
        unknown = sorted({str(kind) for kind in kinds} - allowed)
        if unknown:
            fields.fault("layer_types", f"layers of type {', '.join(unknown)} are not modelled")
        if traits.interval:
            return [None if kind == "linear_attention" else 0 for kind in kinds]
        slides = [kind == "sliding_attention" for kind in kinds]
    elif traits.window == "all":
        slides = [fields.value(traits.window_field) is not None] * depth
    elif traits.window == "tail" and fields.flag("use_sliding_window", False):
        first = fields.integer("max_window_layers", "the number of leading layers that see all tokens", least=0)
        slides = [index >= first for index in range(depth)]
    elif traits.window == "period":
        period = fields.integer("sliding_window_pattern", "every how many layers one sees all tokens", traits.period)
        slides = [(index + 1) % period != 0 for index in range(depth)]
    else:
        slides = [False] * depth
    window = fields.size(traits.window_field, "window") if any(slides) else 0
    return [window if slide else 0 for slide in slides]


def _feed_forwards(fields: Fields, traits: _Traits, depth: int) -> list[FeedForward]:
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
        router_bias=traits.router_bias,
        shared_width=_shared_width(fields, traits),
        shared_gate=traits.shared_gate,
    )
    _check_experts(fields, "num_experts_per_tok", mixture)
    dense_layers = fields.value("mlp_only_layers") or []
    if not isinstance(dense_layers, list):
        fields.fault("mlp_only_layers", f"should list the layers without experts [got {dense_layers!r}]")
        dense_layers = []
    step = fields.integer(traits.expert_step, "every how many layers one has experts", 1)
    leading = fields.integer(traits.leading, _LEADING, 0, least=0) if traits.leading else 0
    sparse = [index not in dense_layers and index >= leading and (index + 1) % step == 0 for index in range(depth)]
    if all(sparse):
        return [mixture] * depth
    dense = FeedForward(fields.size(traits.dense_width, "width"), gated=True)
    return [mixture if here else dense for here in sparse]


def _shared_width(fields: Fields, traits: _Traits) -> int:
    if traits.shared_count:
        count = fields.integer(traits.shared_count, "the number of shared experts", 0, least=0)
        return count * fields.size(traits.expert_width, "expert_width")
    if traits.shared_width:
        return fields.integer(traits.shared_width, "the inner width of the shared expert", 0, least=0)
    return 0


def _check_experts(fields: Fields, key: str, mixture: FeedForward) -> None:
    if not fields.faults and mixture.experts_per_token > mixture.experts:
        fields.fault(key, f"should not exceed the {mixture.experts} experts [got {mixture.experts_per_token}]")


def _deepseek(fields: Fields, name: str) -> Architecture:
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
    leading = fields.integer("first_k_dense_replace", _LEADING, 0, least=0)
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
        mtp_layers=fields.integer("num_nextn_predict_layers", _MODULES, 0, least=0),
    )


_READERS: dict[str, Callable[[Fields, str], Architecture]] = {
    **{kind: partial(_gated_decoder, traits=traits) for kind, traits in _GATED.items()},
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    **PLAIN_READERS,
}

MODEL_TYPES = tuple(sorted(_READERS))
"""The values of ``model_type`` that are read."""


def from_config(config: Mapping[str, Any], name: str, source: Source | None = None, at: Path = ()) -> Architecture:
    """Read a Hugging Face ``config.json``.

    Parameters
    ----------
    config
        The file's content. Of a model with several parts, the text model (``text_config``) is read.
    name
        Name of the architecture.
    source
        The file with its positions, to place faults.
    at
        Path of the configuration in it.

    Returns
    -------
    Architecture
        The sizes.

    Raises
    ------
    InputError
        Fields are missing or wrong (all of them are named), or the model type is unknown.
    ModelNotCovered
        The model has layers of a kind that is not modelled.
    """
    source = source or Source(name, config)
    kind, below, part = _text_model(config)
    at = (*at, *below)
    if kind not in _READERS:
        path = (*at, "model_type")
        reason = not_covered_type(kind)
        if reason:
            raise ModelNotCovered(source.fault(path, f'model_type "{kind}": {reason}'))
        if not kind:
            raise InputError([source.fault(path, f"missing; the class of the model; {did_you_mean('', MODEL_TYPES)}")])
        raise InputError([source.fault(path, f'unknown model_type "{kind}"; {did_you_mean(kind, MODEL_TYPES)}')])
    fields = Fields(source, at, part, kind)
    architecture = _READERS[kind](fields, name)
    if fields.faults:
        raise InputError(sorted(fields.faults, key=lambda fault: (fault.line, fault.column)))
    return replace(architecture, source=str(config.get("source", "")))


def _text_model(config: Mapping[str, Any]) -> tuple[str, Path, Mapping[str, Any]]:
    """Find the part of a configuration that describes the text model."""
    part = config.get("text_config")
    if isinstance(part, Mapping) and "model_type" in part:
        if "tie_word_embeddings" in config:  # said of the whole model where its parts leave it out
            part = {"tie_word_embeddings": config["tie_word_embeddings"], **part}
        return str(part["model_type"] or ""), ("text_config",), part
    return str(config.get("model_type") or ""), (), config
