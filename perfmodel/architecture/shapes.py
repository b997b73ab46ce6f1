"""What a transformer consists of: the sizes of its layers and how many parameters they hold.

Every count is of scalars, not bytes; every width is a number of features.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Parameters
    ----------
    kind
        ``full``: queries, keys and values are projected from the residual stream (multi-head, grouped-query or
        multi-query by `kv_heads`). ``mla``: multi-head latent attention, which projects them from a shared
        low-rank latent vector. ``linear``: a gated delta network, whose heads each keep a matrix of `head_dim` by
        `v_head_dim` that every token decays and corrects, instead of keys and values of all tokens.
    heads, kv_heads
        Query heads; key and value heads [1]. Of ``mla`` both are equal in training and prefill. Of ``linear`` the
        value heads, and the fewer key heads, which queries have as many of.
    head_dim
        Width of a query or key head [1]; of ``mla`` its part without rotary position.
    v_head_dim
        Width of a value head [1].
    q_lora_rank, kv_lora_rank
        Widths of the latent query and of the latent key-value [1]; 0 = projected directly.
    rope_head_dim
        ``mla`` only: width of the rotary part, added to `head_dim`; all key heads share one [1].
    bias_qkv, bias_out
        Whether the projections carry biases; of ``mla`` the ones into the latent vectors do.
    qk_norm
        Whether queries and keys are normalised; its weights are in `LayerGroup.norm_parameters`.
    sinks
        Whether every head has a learned attention sink.
    window
        Tokens a query sees, itself included [1]; 0 = all before it.
    output_gate
        Whether a further projection gates the result of every value feature.
    convolution
        ``linear`` only: tokens that a convolution mixes every query, key and value feature over [1].

    References
    ----------
    Multi-head latent attention: DeepSeek-V2, arXiv 2405.04434, section 2.1 and equations 37-47. Gated delta networks:
    arXiv 2412.06464, sections 3.1 and 3.4.
    """

    kind: Literal["full", "mla", "linear"]
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_head_dim: int = 0
    bias_qkv: bool = False
    bias_out: bool = False
    qk_norm: bool = False
    sinks: bool = False
    window: int = 0
    output_gate: bool = False
    convolution: int = 0

    @property
    def gate_features(self) -> int:
        """Features of the projection that gates the result [1]."""
        return self.output_gate * self.heads * self.v_head_dim

    @property
    def qk_head_dim(self) -> int:
        """Width over which a query and a key are multiplied [1]."""
        return self.head_dim + self.rope_head_dim


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part of one layer: dense, or a mixture of experts.

    Parameters
    ----------
    width
        Inner width of the dense part [1]; 0 for a mixture of experts.
    gated
        Whether a third matrix gates the inner features (SwiGLU, GeGLU).
    bias
        Whether the matrices, those of experts included, carry biases.
    experts, experts_per_token
        Routed experts, and how many of them a token visits [1]; 0 = dense.
    expert_width
        Inner width of one routed expert [1].
    shared_width
        Inner width of all shared experts together [1]; 0 = none.
    router_bias
        Whether the router has a number per expert beside its matrix: a bias, or the score correction that
        balances load without an auxiliary loss.
    shared_gate
        Whether a product of one column weighs the result of the shared experts; it counts as part of the router.
    """

    width: int
    gated: bool
    bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    shared_width: int = 0
    router_bias: bool = False
    shared_gate: bool = False


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one shape.

    Parameters
    ----------
    count
        Number of layers [1].
    attention, feed_forward
        What each of them holds.
    norm_parameters
        Parameters of all normalisations of one layer, those of queries, keys, latent vectors and of the result of
        linear attention included [1].
    """

    count: int
    attention: Attention
    feed_forward: FeedForward
    norm_parameters: int


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one layer by how they are spread over accelerators [1].

    `attention`, `dense_mlp` and `shared` are cut by tensor parallelism, `routed` (all experts) by expert and tensor
    parallelism; `norms` and `router` are held whole by every rank.
    """

    attention: int
    norms: int
    dense_mlp: int
    router: int
    shared: int
    routed: int

    @property
    def total(self) -> int:
        """All parameters of the layer [1]."""
        return self.attention + self.norms + self.dense_mlp + self.router + self.shared + self.routed


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer.

    Parameters
    ----------
    name
        Name of the model.
    hidden
        Width of the residual stream [1].
    vocab
        Rows of the token table [1].
    layers
        Groups of layers of one shape.
    leading
        How many layers of the first group stand at the front of the stack, such as the dense layers before a
        mixture of experts [1]; 0 = the groups alternate evenly over the depth.
    tied_embeddings
        Whether the output projection is the token table.
    output_bias
        Whether the output projection has a number per row of the token table beside its matrix.
    learned_positions
        Rows of the table of learned positions [1]; 0 = none.
    embedding_norm_parameters, final_norm_parameters
        Parameters of the normalisation after the embedding and of the one before the logits [1].
    norm
        Kind of normalisation.
    position
        How a token knows its place.
    max_positions
        Longest sequence the model was made for [tokens]; 0 = not stated.
    mtp_layers
        Multi-token-prediction modules that train beside the model [1], each a layer like those of the last group;
        they belong neither to `depth` nor to `parameters`, as published counts leave them out.
    source
        Where the sizes come from.
    """

    name: str
    hidden: int
    vocab: int
    layers: tuple[LayerGroup, ...]
    leading: int = 0
    tied_embeddings: bool = False
    output_bias: bool = False
    learned_positions: int = 0
    embedding_norm_parameters: int = 0
    final_norm_parameters: int = 0
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    max_positions: int = 0
    mtp_layers: int = 0
    source: str = ""

    @property
    def depth(self) -> int:
        """Number of layers [1]."""
        return sum(group.count for group in self.layers)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token table, the learned positions and the norm after them [1].

        They are what the first pipeline stage holds beside its layers.
        """
        return (self.vocab + self.learned_positions) * self.hidden + self.embedding_norm_parameters

    @property
    def output_parameters(self) -> int:
        """Parameters of the output projection [1]; without its matrix when that is the token table."""
        return self.vocab * (self.output_bias + (0 if self.tied_embeddings else self.hidden))

    @property
    def parameters(self) -> int:
        """All parameters [1]; a tied table counts once, multi-token-prediction modules do not count."""
        layers = sum(group.count * layer_parameters(group, self.hidden).total for group in self.layers)
        return self.embedding_parameters + layers + self.final_norm_parameters + self.output_parameters

    @property
    def mtp_parameters(self) -> int:
        """Parameters of the multi-token-prediction modules [1].

        Each has three norms, the projection of a hidden state beside an embedding, and a layer; it shares the token
        table and the output projection (DeepSeek-V3, arXiv 2412.19437, section 2.2).
        """
        layer = layer_parameters(self.layers[-1], self.hidden).total
        return self.mtp_layers * (layer + 2 * self.hidden**2 + 3 * self.hidden)

    @property
    def active_parameters(self) -> int:
        """Parameters that serve one token [1]: all but the routed experts it does not visit.

        The token table counts in full, as in the figures of Mixtral, Qwen3 and DeepSeek; those of gpt-oss leave
        it out.
        """
        idle = sum(group.count * _idle_expert_parameters(group, self.hidden) for group in self.layers)
        return self.parameters - idle


def layer_parameters(group: LayerGroup, hidden: int) -> LayerParameters:
    """Count the parameters of one layer of a group.

    Parameters
    ----------
    group
        The layer's shape.
    hidden
        Width of the residual stream [1].

    Returns
    -------
    LayerParameters
        The counts by part [1].
    """
    feed_forward = group.feed_forward
    router = (hidden + feed_forward.router_bias) * feed_forward.experts + feed_forward.shared_gate * hidden
    return LayerParameters(
        attention=_attention_parameters(group.attention, hidden),
        norms=group.norm_parameters,
        dense_mlp=_mlp_parameters(feed_forward, feed_forward.width, hidden),
        router=router,
        shared=_mlp_parameters(feed_forward, feed_forward.shared_width, hidden),
        routed=feed_forward.experts * _mlp_parameters(feed_forward, feed_forward.expert_width, hidden),
    )


def _attention_parameters(attention: Attention, hidden: int) -> int:
    if attention.kind == "mla":
        return _latent_attention_parameters(attention, hidden)
    if attention.kind == "linear":
        return _linear_attention_parameters(attention, hidden)
    queries = attention.heads * attention.head_dim + attention.gate_features
    keys_and_values = attention.kv_heads * (attention.head_dim + attention.v_head_dim)
    count = (hidden + attention.bias_qkv) * (queries + keys_and_values)
    count += (attention.heads * attention.v_head_dim + attention.bias_out) * hidden
    return count + attention.sinks * attention.heads


def _latent_attention_parameters(attention: Attention, hidden: int) -> int:
    queries = attention.heads * attention.qk_head_dim
    rank = attention.q_lora_rank
    count = (hidden + attention.bias_qkv) * rank + rank * queries if rank else hidden * queries
    count += (hidden + attention.bias_qkv) * (attention.kv_lora_rank + attention.rope_head_dim)
    count += attention.kv_lora_rank * attention.heads * (attention.head_dim + attention.v_head_dim)
    return count + (attention.heads * attention.v_head_dim + attention.bias_out) * hidden


def _linear_attention_parameters(attention: Attention, hidden: int) -> int:
    """Count the projections, the convolution, and of every value head two factors and two numbers of its decay."""
    values = attention.heads * attention.v_head_dim
    mixed = 2 * attention.kv_heads * attention.head_dim + values
    count = hidden * (mixed + attention.gate_features + 2 * attention.heads)
    return count + mixed * attention.convolution + 2 * attention.heads + values * hidden


def _mlp_parameters(feed_forward: FeedForward, width: int, hidden: int) -> int:
    if not width:
        return 0
    inner = width * (2 if feed_forward.gated else 1)
    return (hidden + feed_forward.bias) * inner + (width + feed_forward.bias) * hidden


def _idle_expert_parameters(group: LayerGroup, hidden: int) -> int:
    feed_forward = group.feed_forward
    idle = feed_forward.experts - feed_forward.experts_per_token
    return idle * _mlp_parameters(feed_forward, feed_forward.expert_width, hidden)
