"""Parts of a step that run, or whose weights live, outside an instance's accelerators: times in the place of kernels'.

A `Server` carries them by the name of the part (`perfmodel.serving.step.PARTS`), as functions

    (server, deployment, load of a step, seconds of the part's kernels here) -> (seconds here, seconds elsewhere),

of arrays that broadcast. What is left here is as fast as the engine's kernels are; what is elsewhere is waited for and
becomes a term of its own. Work that overlaps either is the caller's to take off.

    replace(server, elsewhere={"attention over the cache": attention_elsewhere(8 * 4e12, 50e9)})
"""

from __future__ import annotations

import numpy as np

from perfmodel.kv_cache import kv_bytes_per_sequence
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.serving.server import Elsewhere, Server
from perfmodel.serving.step import Deployment, Load
from perfmodel.terms import Array, Number


def attention_elsewhere(memory_bandwidth: float, link_bandwidth: float, latency_s: float = 0.0) -> Elsewhere:
    """Return the time of attention over a cache that other devices hold and read.

    Parameters
    ----------
    memory_bandwidth : float
        Rate at which all those devices together read keys and values [bytes/s].
    link_bandwidth : float
        Rate of the network between them and the instance [bytes/s].
    latency_s : float
        One way between them, which every layer waits for twice [s].

    Notes
    -----
    n k kv / memory + n L e (query and result of every head, key and value of the new token) / link + 2 L latency: of
    grouped queries (2 + 2/G) e d B L bytes (Chen et al., Lamina, arXiv 2405.01814, section 4.2). Two batches in turn
    hide it behind the products of one another; then the longer of the two counts.
    """

    def time(server: Server, deployment: Deployment, load: Load, here_s: Array) -> tuple[Number, Number]:
        n = np.asarray(load.sequences, float)
        read = n * kv_bytes_per_sequence(server.architecture, load.context, server.cache_bytes)
        width = 0.0
        for layer in server.architecture.layers:
            one = layer.attention
            if one.kind == "linear":
                raise ValueError("linear attention has a state and no cache that other devices could read")
            each = 2 * one.kv_lora_rank + one.rope_head_dim if one.kind == "mla" else one.qk_head_dim + one.v_head_dim
            new = one.kv_lora_rank + one.rope_head_dim if one.kind == "mla" else one.kv_heads * each
            width += layer.count * (one.heads * each + new)
        waited = np.where(n > 0, 2 * server.architecture.depth * latency_s, 0.0)
        return 0.0, read / memory_bandwidth + n * ACTIVATION_BYTES * width / link_bandwidth + waited

    return time


def experts_elsewhere(held: float, link_bandwidth: float) -> Elsewhere:
    """Return the time of experts of which some are fetched when tokens choose them.

    Parameters
    ----------
    held : float
        Chance that an expert is there when it is chosen: the share that is kept, where all are chosen alike; more where
        those that are chosen often are kept [1].
    link_bandwidth : float
        Rate at which the instance's accelerators together fetch [bytes/s].

    Notes
    -----
    (1 - held) E (1 - (1 - k/E)^T) experts of a layer, T tokens of the step, each of its weights over the link, beside
    the kernels.
    """

    def time(server: Server, deployment: Deployment, load: Load, here_s: Array) -> tuple[Number, Number]:
        tokens = np.asarray(load.sequences, float) + np.multiply(load.prompts, load.prompt_tokens)
        fetched: Number = 0.0
        for layer in server.architecture.layers:
            feed = layer.feed_forward
            if feed.experts:
                chosen = feed.experts * (1 - (1 - feed.experts_per_token / feed.experts) ** tokens)
                matrices = 3 if feed.gated else 2
                size = matrices * server.architecture.hidden * feed.expert_width * server.form.weight_bytes
                fetched = fetched + layer.count * chosen * size
        return here_s, (1 - held) * fetched / link_bandwidth

    return time
