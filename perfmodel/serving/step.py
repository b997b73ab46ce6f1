"""Time of one step of an inference engine: prompts, the next token of running sequences, or both at once.

Symbols: n sequences that decode, p prompts (or pieces of them) of s new tokens after c cached ones, k mean cached
tokens of a decoding sequence; t tensor-parallel ranks, d ranks of attention data parallelism, e ranks that experts are
spread over, g = t d ranks of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from perfmodel.architecture import Attention, LayerGroup
from perfmodel.collectives import Group, all_gather, dispatch, group, send
from perfmodel.collectives.algorithms import engine_all_reduce
from perfmodel.kernels import decode, gemm, memory, moe, prefill
from perfmodel.kernels.work import Work, timed
from perfmodel.linear_attention import prompt_works, token_works
from perfmodel.operators import (
    ACTIVATION_BYTES,
    Operator,
    Shape,
    attention_products,
    feed_forward_operators,
    wide,
)
from perfmodel.serving.server import Server, decode_variant
from perfmodel.terms import COMPUTE, HOST, LINK, MEMORY, Array, Number, Term, total

PARTS = (
    "projections",
    "attention of prompts",
    "attention over the cache",
    "experts",
    "norms and activations",
    "logits and sampling",
)
"""Leaves of a step that are kernels."""

EXPERT_ARITHMETIC = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8", "fp4": "fp4"}
"""Arithmetic of the products -> that of the experts' kernels."""

EVEN_EXPERTS = 1.0
"""Load of the busiest expert-parallel rank over the mean, where nothing is said: balanced."""


@dataclass(frozen=True)
class Deployment:
    """How one instance of a model is spread, every field an int or an array.

    Parameters
    ----------
    tp, pp, dp, ep : array of int
        Tensor-parallel ranks; pipeline stages; ranks of attention data parallelism; ranks of a stage that experts are
        spread over, a divisor of tp dp. What is left of these, tp dp/ep, splits every expert.
    imbalance : array
        Load of the busiest expert-parallel rank over the mean.
    """

    tp: Number = 1
    pp: Number = 1
    dp: Number = 1
    ep: Number = 1
    imbalance: Number = EVEN_EXPERTS

    @property
    def accelerators(self) -> Number:
        """Accelerators of an instance."""
        return self.tp * self.pp * self.dp


@dataclass(frozen=True)
class Load:
    """What a step of one instance holds, every field a number or an array.

    Parameters
    ----------
    sequences : array
        Running sequences that get their next token, n.
    context : array
        Tokens that each of them has cached, on average, k.
    prompts : array
        Prompts or pieces of prompts, p.
    prompt_tokens, prompt_cached : array
        New tokens of each, s, and tokens cached before them, c.
    finished : array
        Share of the prompts that end in this step and get their first token.
    """

    sequences: Number = 0.0
    context: Number = 0.0
    prompts: Number = 0.0
    prompt_tokens: Number = 0.0
    prompt_cached: Number = 0.0
    finished: Number = 1.0


def step(server: Server, deployment: Deployment, load: Load) -> Term:
    """Return the time of a step of one instance as a tree.

    Parameters
    ----------
    server : Server
        Model, machine and engine.
    deployment, load : Deployment, Load
        Arrays that broadcast to one shape.

    Notes
    -----
    With pipeline stages as many steps are under way, each with its share of sequences and prompts; the step of one is
    the sum over all layers. A rank of attention data parallelism has its share of sequences and prompts, at least one
    where there is any: the busiest sets the time.
    """
    architecture, engine = server.architecture, server.engine
    n, p = (np.asarray(value, float) / deployment.pp for value in (load.sequences, load.prompts))
    n_own, p_own = (
        np.where(value > 0, np.maximum(value / deployment.dp, np.minimum(value, 1.0)), 0.0) for value in (n, p)
    )
    s, c = np.asarray(load.prompt_tokens, float), np.asarray(load.prompt_cached, float)
    tokens_own = np.maximum(n_own + p_own * s, 1e-9)
    tokens_all = np.maximum(n + p * s, 1e-9)
    layers: list[tuple[float, Term]] = []
    depth = 0
    for layer in architecture.layers:
        layers.append(
            (
                layer.count,
                _layer(server, deployment, layer, (n_own, load.context, p_own, s, c), (tokens_own, tokens_all)),
            )
        )
        depth += layer.count
    ends = _ends(server, deployment, n_own + p_own * load.finished)
    summed: dict[str, Number] = {}
    bounds: dict[str, int] = {}
    for count, term in layers:
        for child in term.children:
            summed[child.name] = summed.get(child.name, 0.0) + count * child.seconds
            bounds[child.name] = int(np.max(child.bound)) if np.ndim(child.bound) else int(child.bound)
    held = replace(load, sequences=n, prompts=p)
    waited = {}
    for name, moved in server.elsewhere.items():
        summed[name], waited[name] = moved(server, deployment, held, np.asarray(summed[name]))
    shape = np.broadcast_shapes(*(np.shape(value) for value in (*summed.values(), *waited.values(), tokens_own)))
    children = [Term(name, np.broadcast_to(value, shape), bounds[name]) for name, value in summed.items()]
    children.append(Term("logits and sampling", np.broadcast_to(ends, shape), MEMORY))
    children.append(Term("pipeline sends", np.broadcast_to(_sends(server, deployment, tokens_own), shape), LINK))
    children += [Term(f"{name}, elsewhere", np.broadcast_to(time, shape), LINK) for name, time in waited.items()]
    kernels_s: Number = sum((child.seconds for child in children if child.name in PARTS), 0.0)
    slower = Term("slower than kernels alone", kernels_s * (1.0 / engine.speed - 1.0), COMPUTE)
    factor = server.overhead_factor
    done_s: Number = sum((child.seconds for child in children), slower.seconds)
    launches_s = np.where((p > 0) | (not server.captured), factor * engine.eager_overhead * depth, 0.0)
    host = [
        Term("step overhead", np.broadcast_to(factor * engine.step_overhead, shape), HOST),
        Term("layer overhead", np.broadcast_to(factor * engine.layer_overhead * depth, shape), HOST),
        Term("sequence overhead", np.broadcast_to(factor * engine.sequence_overhead * (n_own + p_own), shape), HOST),
        Term("kernel launches by the host", np.broadcast_to(np.maximum(launches_s - done_s, 0.0), shape), HOST),
    ]
    return total("step", [*children, slower, *host])


def _layer(
    server: Server,
    deployment: Deployment,
    layer: LayerGroup,
    asked: tuple[Array, Number, Array, Array, Array],
    tokens: tuple[Array, Array],
) -> Term:
    """Return the time of one layer by part."""
    architecture, form = server.architecture, server.form
    attention, feed_forward = layer.attention, layer.feed_forward
    n, _, p, s, _ = asked
    own, everyones = tokens
    tp, ways = np.asarray(deployment.tp, float), np.asarray(deployment.tp, float) * deployment.dp
    shape = Shape(own, 1.0, own, tp, 1, 1, 1, 1)
    feed = feed_forward_operators(feed_forward, architecture.hidden, shape, norm=False, dropout=False, form=form)
    dense = attention_products(attention, architecture.hidden, shape, form)
    works: list[tuple[str, Work]] = [("projections", work) for work in _products([*dense, *feed])]
    if attention.kind == "linear":
        works += [("attention of prompts", work) for work in prompt_works(attention, some(p), some(s), tp=tp)]
        works += [("attention over the cache", work) for work in token_works(attention, some(n), tp=tp)]
    else:
        works += _softmax_attention(server, attention, asked, tp)
    heads = (attention.heads + (1 if attention.kind == "mla" else attention.kv_heads)) / tp
    works.append(("norms and activations", _streamed("add_norm", own, architecture.hidden, 2)))
    works.append(("norms and activations", _streamed("rotation", own, heads * attention.qk_head_dim)))
    inner = feed_forward.width or feed_forward.shared_width
    if inner:
        works.append(("norms and activations", _streamed("gated_activation", own, inner / tp)))
    if feed_forward.experts:
        ep = np.asarray(deployment.ep, float)
        sizes = moe.shapes_of(
            everyones * deployment.imbalance,
            hidden=architecture.hidden,
            inner=feed_forward.expert_width,
            top_k=feed_forward.experts_per_token,
            experts=feed_forward.experts,
            gated=feed_forward.gated,
            tp=ways / ep,
            ep=ep,
            weight_bytes=1.0 if form.arithmetic == "fp8" else form.weight_bytes,
            arithmetic=EXPERT_ARITHMETIC[form.arithmetic],
        )
        works.append(("experts", Work(f"moe.{form.variant}", sizes, times=1.0 / server.engine.expert_speed)))
    found = _timed(server, [work for _, work in works])
    seconds: dict[str, Number] = dict.fromkeys(PARTS, 0.0)
    for (part, _), (time, _) in zip(works, found, strict=True):
        if part == "attention of prompts":
            time = np.where(p > 0, time, 0.0)
        if part == "attention over the cache":
            time = np.where(n > 0, time, 0.0)
        seconds[part] = seconds[part] + time
    terms = [Term(part, seconds[part], COMPUTE if part in ("attention of prompts",) else MEMORY) for part in PARTS[:-1]]
    terms += [
        Term("tensor-parallel communication", _tensor(server, deployment, layer, own), LINK),
        Term("expert communication", _experts(server, deployment, layer, own), LINK),
    ]
    return total("layer", terms)


def some(amount: Number) -> Array:
    """Return an amount that kernels can be asked about: nothing is a billionth."""
    return np.asarray(np.maximum(np.asarray(amount, float), 1e-9))


def _softmax_attention(
    server: Server, attention: Attention, asked: tuple[Array, Number, Array, Array, Array], tp: Array
) -> list[tuple[str, Work]]:
    """Return attention of prompts among themselves and over their cached tokens, and of new tokens over the cache."""
    n, k, p, s, c = asked
    element = wide(server.form).activation_bytes
    prompts = prefill.shapes_of(
        attention,
        some(p),
        some(s),
        cached_tokens=c,
        tp=tp,
        query_bytes=element,
        cache_bytes=element,
    )
    cached = decode.shapes_of(
        attention,
        some(n),
        some(k),
        tp=tp,
        query_bytes=element,
        cache_bytes=server.cache_bytes,
    )
    return [
        ("attention of prompts", Work(f"prefill.{prefill.variant_of(attention.qk_head_dim)}", prompts)),
        ("attention over the cache", Work(f"decode.{decode_variant(attention, server.cache_bytes)}", cached)),
    ]


def _timed(server: Server, works: Sequence[Work]) -> list[tuple[Array, Array]]:
    """Return seconds and bound of kernels that a captured graph launches."""
    launched = [replace(work, launches=work.launches * server.engine.launch) for work in works]
    return timed(launched, server.device, server.kernels)


def _products(operators: Sequence[Operator]) -> list[Work]:
    """Return the kernels of a forward pass that are products of weights, experts' excepted."""
    return [
        work
        for operator in operators
        if operator.kind in ("gemm", "gemm16") and not operator.core
        for work in operator.forward
    ]


def _streamed(kernel: str, rows: Number, width: Number, launches: int = 1) -> Work:
    sizes = memory.shapes_of(kernel, rows, width)
    return Work(f"memory.{memory.VARIANTS[kernel]}", sizes, launches, launches)


def _ranks(server: Server, size: Number, stride: Number = 1) -> Group:
    return group(server.levels, np.asarray(size, dtype=np.int64), np.asarray(stride, dtype=np.int64))


def _tensor(server: Server, deployment: Deployment, layer: LayerGroup, own: Array) -> Number:
    """Return two all-reduces of the rank's tokens; the second sums experts too where attention is not data parallel."""
    ranks = _ranks(server, deployment.tp)
    reduced = engine_all_reduce(ranks, ACTIVATION_BYTES * own * server.architecture.hidden, server.collectives)
    feed_forward = layer.feed_forward
    dense = bool(feed_forward.width or feed_forward.shared_width)
    alone = np.asarray(deployment.dp) == 1
    return np.where(np.asarray(deployment.tp) > 1, reduced * np.where(dense | alone, 2.0, 1.0), 0.0)


def _experts(server: Server, deployment: Deployment, layer: LayerGroup, own: Array) -> Number:
    """Return the exchange of tokens around the experts where attention is data parallel.

    Notes
    -----
    The faster of sending each token to the ranks of its experts and back, and of gathering all tokens everywhere and
    reducing the results.
    """
    feed_forward = layer.feed_forward
    if not feed_forward.experts:
        return 0.0
    hidden = server.architecture.hidden
    ranks = _ranks(server, np.asarray(deployment.tp) * deployment.dp)
    there, back = (own / deployment.tp * hidden * width for width in (server.form.activation_bytes, ACTIVATION_BYTES))
    sent = sum(
        dispatch(ranks, size, feed_forward.experts_per_token, server.collectives, once_per_node=True)
        for size in (there, back)
    )
    gathered = sum(all_gather(ranks, size * ranks.size, server.collectives) for size in (there, back))
    return np.where(np.asarray(deployment.dp) > 1, np.minimum(sent, gathered), 0.0)


def _ends(server: Server, deployment: Deployment, rows: Array) -> Array:
    """Return the time of embedding, logits and sampling of the rows that get a token."""
    architecture, form = server.architecture, wide(server.form)
    tp = np.asarray(deployment.tp, float)
    rows = np.maximum(rows, 1e-9)
    works = [
        Work(f"gemm.{form.variant}", gemm.product(rows, architecture.vocab / tp, architecture.hidden, form)),
        _streamed("sampling", rows, architecture.vocab / tp),
    ]
    seconds: Array = np.asarray(sum(time for time, _ in _timed(server, works)))
    ranks = _ranks(server, deployment.tp)
    return seconds + all_gather(ranks, ACTIVATION_BYTES * rows * architecture.vocab, server.collectives)


def _sends(server: Server, deployment: Deployment, own: Array) -> Number:
    """Return the time in which a step's activations pass from stage to stage."""
    stages = np.asarray(deployment.pp)
    ranks = _ranks(server, stages, np.asarray(deployment.tp) * deployment.dp)
    message = ACTIVATION_BYTES * own * server.architecture.hidden
    return np.where(stages > 1, (stages - 1) * send(ranks, message, server.collectives), 0.0)
