"""Tokens of inference whose attention, experts or layers are not, or not all, with the accelerators that compute them.

Each function returns the time between tokens of a batch as a tree, and the memory that it takes; arrays broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from perfmodel.architecture import layer_parameters
from perfmodel.kv_cache import kv_bytes_per_sequence
from perfmodel.kv_equations import kept_experts, window_stall
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.serving.capacity import weight_bytes, workspace_bytes
from perfmodel.serving.elsewhere import attention_elsewhere, experts_elsewhere
from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.terms import LINK, Number, Term, at, total

CACHE, EXPERTS = "attention over the cache", "experts"
"""Parts of a step that may be elsewhere (`perfmodel.serving.step.PARTS`)."""


@dataclass(frozen=True)
class Tokens:
    """A choice of where to compute, and what it takes.

    Parameters
    ----------
    tree : Term
        Time between tokens [s]; infinite where the memory is too small.
    memory : dict of tuple
        Capacity and need of each kind of device, one of them [bytes].
    sequences : int
        Running sequences.
    """

    tree: Term
    memory: dict[str, tuple[float, float]]
    sequences: int


def too_large(memory: dict[str, tuple[float, float]]) -> bool:
    """Tell whether a memory needs more than it has; then no step is costed."""
    return any(used > room for room, used in memory.values())


NO_STEP = Term("step", np.inf)


def room_bytes(server: Server) -> float:
    """Return what an engine can have of an accelerator's memory [bytes]."""
    rule, memory = server.engine.memory, server.machine.accelerator.memory.capacity
    return rule.fraction * memory - rule.context if rule.of == "device" else rule.fraction * (memory - rule.context)


def attention_there(
    server: Server,
    deployment: Deployment,
    reader: Server,
    devices: int,
    load: Load,
    *,
    link_bandwidth: float,
    latency_s: float,
    turns: int,
    held_tokens: float,
    memory_share: float | None = None,
) -> Tokens:
    """Return the tokens of a model whose attention other devices compute.

    Parameters
    ----------
    server, deployment : Server, Deployment
        The model without its cache.
    reader : Server
        The same on the devices that hold keys and values.
    devices : int
        How many of those; none for attention with the model.
    load : Load
        One batch.
    link_bandwidth, latency_s : float
        Of the network between [bytes/s], one way [s].
    turns : int
        Batches that take turns: one is with the model while others attend.
    held_tokens : float
        Tokens that room is kept for of each sequence.
    memory_share : float
        Share of their memory's bandwidth that attention reaches; that of the decode kernels if left out [1].

    Notes
    -----
    max(M + A, turns max(M, A)): M of the model without attention, A of attention with what crosses (Chen et al.,
    Lamina, arXiv 2405.01814, section 4.3). Attention runs at the rate of the decode kernels of those devices, each with
    its share of the sequences.
    """
    n = float(np.asarray(load.sequences))
    sequences = int(turns * n)
    tp = float(np.asarray(deployment.tp))
    weights = float(weight_bytes(server, deployment) + workspace_bytes(server, deployment, n))
    cache = sequences * float(kv_bytes_per_sequence(server.architecture, held_tokens, server.cache_bytes, tp))
    each = (
        sequences / max(devices, 1) * float(kv_bytes_per_sequence(server.architecture, held_tokens, server.cache_bytes))
    )
    memory = {"accelerators": (room_bytes(server), weights + (0.0 if devices else cache))}
    memory |= {"attention devices": (room_bytes(reader), each)} if devices else {}
    if too_large(memory):
        return Tokens(NO_STEP, memory, sequences)
    if not devices:
        return Tokens(at(step(server, deployment, load), 0), memory, sequences)
    if memory_share is None:
        alone = at(step(reader, Deployment(dp=devices), load), 0)
        attention_s = next(float(child.seconds) for child in alone.children if child.name == CACHE)
        read = n * float(kv_bytes_per_sequence(server.architecture, load.context, server.cache_bytes))
        bandwidth = read / attention_s
    else:
        bandwidth = memory_share * devices * reader.machine.accelerator.memory.bandwidth
    hook = attention_elsewhere(bandwidth, link_bandwidth, latency_s)
    tree = at(step(replace(server, elsewhere={CACHE: hook}), deployment, load), 0)
    there_s = float(next(child.seconds for child in tree.children if child.name == f"{CACHE}, elsewhere"))
    model_s = float(tree.seconds) - there_s
    token_s = max(model_s + there_s, turns * max(model_s, there_s))
    others = Term("turns of other batches", max(token_s - model_s - there_s, 0.0), LINK)
    return Tokens(total("token", [*tree.children, others]), memory, sequences)


def experts_there(
    server: Server,
    deployment: Deployment,
    load: Load,
    *,
    held: float,
    skew: float,
    foreseen: float,
    link_bandwidth: float,
    tokens: float,
) -> Tokens:
    """Return the tokens of a mixture of experts of which a share is kept and the rest fetched when chosen.

    Parameters
    ----------
    server, deployment, load : Server, Deployment, Load
        The model, how it is spread, and the batch.
    held : float
        Share of the experts that is kept [1].
    skew : float
        Exponent of Zipf's law of how often experts are chosen; 0 for all alike [1].
    foreseen : float
        Share of the missing experts that is known ahead and fetched behind the rest of the step [1].
    link_bandwidth : float
        At which all accelerators together fetch [bytes/s].
    tokens : float
        Tokens that room is kept for of each sequence.

    Notes
    -----
    Of missing experts that take F to fetch, beside a step of R without them, (1 - p) F is waited for, and of p F what
    R + (1 - p) F does not hide of the link's time: max(R + (1 - p) F, F).
    """
    n = float(np.asarray(load.sequences))
    missed: Number = 0.0
    whole: Number = 0.0
    size = 0.0
    for layer in server.architecture.layers:
        feed = layer.feed_forward
        if feed.experts:
            bytes_of = (
                layer.count * layer_parameters(layer, server.architecture.hidden).routed * server.form.weight_bytes
            )
            chosen = feed.experts * (1 - (1 - feed.experts_per_token / feed.experts) ** n)
            kept = kept_experts(feed.experts, feed.experts_per_token, n, held, skew)
            missed, whole = missed + bytes_of * chosen * (1 - kept), whole + bytes_of * chosen
            size += bytes_of
    ways = float(np.asarray(deployment.tp)) * float(np.asarray(deployment.dp))
    cache = n * float(kv_bytes_per_sequence(server.architecture, tokens, server.cache_bytes, deployment.tp))
    used = float(weight_bytes(server, deployment) + workspace_bytes(server, deployment, n)) + cache
    memory = {"accelerators": (room_bytes(server), used - (1 - held) * size / ways)}
    if too_large(memory):
        return Tokens(NO_STEP, memory, int(n))
    hook = experts_elsewhere(float(1 - missed / whole), link_bandwidth)
    tree = at(step(replace(server, elsewhere={EXPERTS: hook}), deployment, load), 0)
    fetched = next(child for child in tree.children if child.name == f"{EXPERTS}, elsewhere")
    fetched_s = float(fetched.seconds)
    exposed_s = max((1 - foreseen) * fetched_s, 2 * fetched_s - float(tree.seconds))
    waited = replace(fetched, seconds=exposed_s, hidden_seconds=fetched_s - exposed_s)
    parts = [waited if child is fetched else child for child in tree.children]
    return Tokens(total("token", parts), memory, int(n))


def layers_there(
    server: Server, deployment: Deployment, load: Load, *, window: int, load_bandwidth: float, tokens: float
) -> Tokens:
    """Return the tokens of a model whose layers are streamed through a window of memory.

    Parameters
    ----------
    server, deployment, load : Server, Deployment, Load
        The model, how it is spread, and the batch.
    window : int
        Blocks in memory, attention and feed-forward parts in turn; all of them where the model has no more.
    load_bandwidth : float
        At which each accelerator loads weights [bytes/s].
    tokens : float
        Tokens that room is kept for of each sequence.

    Notes
    -----
    The recurrence of `perfmodel.kv_equations.window_stall` (Li et al., TPI-LLM, arXiv 2410.00531, section 3.3) in
    steady state: what a second token waits for. A block takes the share of a step that its weights have, since a small
    batch reads each of them once.
    """
    tp = float(np.asarray(deployment.tp))
    blocks: list[float] = []
    for layer in server.architecture.layers:
        part = layer_parameters(layer, server.architecture.hidden)
        pair = [part.attention, part.dense_mlp + part.shared + part.routed]
        blocks += layer.count * [server.form.weight_bytes * one / tp for one in pair]
    sizes = np.asarray(blocks)
    n = float(np.asarray(load.sequences))
    ends = ACTIVATION_BYTES * (server.architecture.embedding_parameters + server.architecture.output_parameters) / tp
    kept = float(np.sort(sizes)[::-1][:window].sum())
    cache = n * float(kv_bytes_per_sequence(server.architecture, tokens, server.cache_bytes, tp))
    used = kept + ends + float(workspace_bytes(server, deployment, n)) + cache
    memory = {"accelerators": (room_bytes(server), used)}
    if too_large(memory):
        return Tokens(NO_STEP, memory, int(n))
    tree = at(step(server, deployment, load), 0)
    compute = float(tree.seconds) * sizes / (sizes.sum() + ends)
    rest = float(tree.seconds) - float(compute.sum())
    compute[-1] += rest  # token table and output
    loads = sizes / load_bandwidth
    stall = 0.0
    if window < len(sizes):
        once, twice = (window_stall(np.tile(compute, times), np.tile(loads, times), window) for times in (1, 2))
        stall = max(twice - once, 0.0)
    waits = Term("waits for weights", stall, LINK)
    return Tokens(total("token", [*tree.children, waits]), memory, int(n))
