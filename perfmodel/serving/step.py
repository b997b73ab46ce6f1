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
from perfmodel.serving.overlap import NOTHING, Spent, overlapped
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

BOUND_OF = dict.fromkeys(PARTS, MEMORY) | {"attention of prompts": COMPUTE}
"""What mostly holds each of them back; what is no kernel waits for links."""

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
    share: Number = 1.0
    if server.layered:
        load, share = by_layers(load)
    n, p = (np.asarray(value, float) / deployment.pp for value in (load.sequences, load.prompts))
    n_own, p_own = (
        np.where(value > 0, np.maximum(value / deployment.dp, np.minimum(value, 1.0)), 0.0) for value in (n, p)
    )
    s, c = np.asarray(load.prompt_tokens, float), np.asarray(load.prompt_cached, float)
    depth = architecture.depth
    asked = _Asked(n_own, load.context, p_own, s, c, n + p * s)
    held = replace(load, sequences=n, prompts=p)
    summed, hidden = _all_layers(server, deployment, asked, held)
    sent = _sends(server, deployment, asked.own)
    run: Number = depth
    if server.layered:  # the other layers hold the running sequences alone
        rest = replace(asked, prompts=np.zeros_like(p_own), everyones=n)
        others, behind = _all_layers(server, deployment, rest, replace(held, prompts=0.0))
        more = np.where(n > 0, 1.0 - share, 0.0)
        summed = {name: share * summed[name] + more * others[name] for name in summed}
        hidden = {name: share * hidden[name] + more * behind[name] for name in hidden}
        sent = share * sent + more * _sends(server, deployment, rest.own)
        run = depth * (share + more)
    ends = _ends(server, deployment, n_own + p_own * load.finished)
    shape = np.broadcast_shapes(*(np.shape(value) for value in (*summed.values(), asked.own)))
    children = [
        Term(
            name,
            np.broadcast_to(value, shape),
            BOUND_OF.get(name, LINK),
            hidden_seconds=np.broadcast_to(hidden.get(name, 0.0), shape),
        )
        for name, value in summed.items()
    ]
    children.append(Term("logits and sampling", np.broadcast_to(ends, shape), MEMORY))
    children.append(Term("pipeline sends", np.broadcast_to(sent, shape), LINK))
    kernels_s: Number = sum((child.seconds for child in children if child.name in PARTS), 0.0)
    slower = Term("slower than kernels alone", kernels_s * (1.0 / engine.speed - 1.0), COMPUTE)
    factor = server.overhead_factor
    done_s: Number = sum((child.seconds for child in children), slower.seconds)
    launched = np.where(p > 0, depth * share, 0.0) if server.captured else run
    launches_s = factor * engine.eager_overhead * launched
    host = [
        Term("step overhead", np.broadcast_to(factor * engine.step_overhead, shape), HOST),
        Term("layer overhead", np.broadcast_to(factor * engine.layer_overhead * run, shape), HOST),
        Term("sequence overhead", np.broadcast_to(factor * engine.sequence_overhead * (n_own + p_own), shape), HOST),
        Term("kernel launches by the host", np.broadcast_to(np.maximum(launches_s - done_s, 0.0), shape), HOST),
    ]
    return total("step", [*children, slower, *host])


def by_layers(load: Load) -> tuple[Load, Array]:
    """Return a step that takes whole prompts through a part of the layers in the place of pieces through all.

    Parameters
    ----------
    load : Load
        With the mean piece of prompts, a share `finished` of each; `prompt_cached` is the mean over its pieces.

    Returns
    -------
    tuple of Load and array
        The prompts, and the share of the layers that they pass.
    """
    share = np.asarray(load.finished, float)
    whole = load.prompt_tokens / share
    before = np.maximum(load.prompt_cached - (whole - load.prompt_tokens) / 2, 0.0)
    return replace(load, prompt_tokens=whole, prompt_cached=before), share


@dataclass(frozen=True)
class _Asked:
    """What a rank's layers are asked: n, k, p, s and c of `Load`, and the tokens of all ranks."""

    sequences: Array
    context: Number
    prompts: Array
    tokens: Array
    cached: Array
    everyones: Number

    @property
    def own(self) -> Array:
        """Tokens of the rank."""
        return np.asarray(np.maximum(self.sequences + self.prompts * self.tokens, 1e-9))

    @property
    def half(self) -> _Asked:
        """Half of the sequences and of every prompt, the mean of a first half and a second, which attends to it."""
        cached = self.cached + self.tokens / 4
        return replace(
            self, sequences=self.sequences / 2, tokens=self.tokens / 2, cached=cached, everyones=self.everyones / 2
        )


def _all_layers(
    server: Server, deployment: Deployment, asked: _Asked, held: Load
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the time that each part of the layers adds to a step, and the time that it is hidden."""
    depth, kind = server.architecture.depth, server.overlap
    whole, halves = NOTHING, NOTHING
    for layer in server.architecture.layers:
        whole = whole.plus(_layer(server, deployment, layer, asked), layer.count)
        if kind != "none":
            halves = halves.plus(_layer(server, deployment, layer, asked.half), 2 * layer.count)
    seconds: dict[str, Number] = whole.alone
    hidden: dict[str, Number] = {}
    if kind != "none":
        seconds, hidden = overlapped(kind, whole, halves, depth, server.engine.speed)
    for name, moved in server.elsewhere.items():
        seconds[name], seconds[f"{name}, elsewhere"] = moved(server, deployment, held, np.asarray(seconds[name]))
    return seconds, hidden


def _layer(server: Server, deployment: Deployment, layer: LayerGroup, asked: _Asked) -> Spent:
    """Return the time of one layer by part."""
    architecture, form = server.architecture, server.form
    attention, feed_forward = layer.attention, layer.feed_forward
    n, p, s, own = asked.sequences, asked.prompts, asked.tokens, asked.own
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
            np.maximum(asked.everyones, 1e-9) * deployment.imbalance,
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
    compute: dict[str, Number] = dict.fromkeys(PARTS[:-1], 0.0)
    memory: dict[str, Number] = dict.fromkeys(PARTS[:-1], 0.0)
    for (part, _), (time, bound) in zip(works, _timed(server, [work for _, work in works]), strict=True):
        if part == "attention of prompts":
            time = np.where(p > 0, time, 0.0)
        if part == "attention over the cache":
            time = np.where(n > 0, time, 0.0)
        of_compute = np.where(bound == COMPUTE, time, 0.0)
        compute[part] = compute[part] + of_compute
        memory[part] = memory[part] + (time - of_compute)
    link = {
        "tensor-parallel communication": _tensor(server, deployment, layer, own),
        "expert communication": _experts(server, deployment, layer, own),
    }
    return Spent(compute, memory, link)


def some(amount: Number) -> Array:
    """Return an amount that kernels can be asked about: nothing is a billionth."""
    return np.asarray(np.maximum(np.asarray(amount, float), 1e-9))


def _softmax_attention(server: Server, attention: Attention, asked: _Asked, tp: Array) -> list[tuple[str, Work]]:
    """Return attention of prompts among themselves and over their cached tokens, and of new tokens over the cache."""
    element = wide(server.form).activation_bytes
    prompts = prefill.shapes_of(
        attention,
        some(asked.prompts),
        some(asked.tokens),
        cached_tokens=asked.cached,
        tp=tp,
        query_bytes=element,
        cache_bytes=element,
    )
    cached = decode.shapes_of(
        attention,
        some(asked.sequences),
        some(asked.context),
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
