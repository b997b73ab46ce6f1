"""Memory of an instance: weights, workspace, and how many tokens the cache of keys and values holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.architecture import layer_parameters
from perfmodel.kv_cache import kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment
from perfmodel.terms import Array, Number


@dataclass(frozen=True)
class Capacity:
    """Memory of an accelerator of an instance.

    Parameters
    ----------
    weights, workspace, context, cache : array
        Weights; activations of a step; driver, libraries and graphs; what is left for keys and values [bytes].
    server : Server
        Whose cache it is.
    deployment : Deployment
        How it is spread.
    """

    weights: Array
    workspace: Array
    context: Array
    cache: Array
    server: Server
    deployment: Deployment

    @property
    def cache_tokens(self) -> Array:
        """Tokens that the instance's cache holds, of sequences without states of their own."""
        ways = np.asarray(self.deployment.tp, float)
        per_token = kv_bytes_per_token(self.server.architecture, self.server.cache_bytes, ways)
        return np.floor(self.cache * self.deployment.pp / per_token) * self.deployment.dp

    def sequences(self, prompt: Number, output: Number) -> Array:
        """Return how many sequences run at once: with their whole answers, or half of them on average."""
        architecture, ways = self.server.architecture, np.asarray(self.deployment.tp, float)
        share = 1.0 if self.server.engine.memory.reserves == "whole" else 0.5
        tokens = np.asarray(prompt, float) + share * np.asarray(output, float)
        held = kv_bytes_per_sequence(architecture, tokens, self.server.cache_bytes, ways)
        held = held + state_bytes_per_sequence(architecture, ways)
        return np.floor(self.cache * self.deployment.pp / held) * self.deployment.dp


def weight_bytes(server: Server, deployment: Deployment) -> Array:
    """Return bytes of weights on an accelerator.

    Notes
    -----
    Attention and dense layers are split over tp, experts over tp dp, all over pp; token table and logits over tp, kept
    in 16 bits, on the first and last stage; norms and routers in 16 bits on every rank.
    """
    architecture, width = server.architecture, server.form.weight_bytes
    tp, dp, pp = (np.asarray(value, float) for value in (deployment.tp, deployment.dp, deployment.pp))
    layers: Number = 0.0
    for layer in architecture.layers:
        part = layer_parameters(layer, architecture.hidden)
        split = (part.attention + part.dense_mlp + part.shared) / tp + part.routed / (tp * dp)
        layers = layers + layer.count * (width * split + ACTIVATION_BYTES * (part.norms + part.router))
    ends = ACTIVATION_BYTES * (architecture.embedding_parameters + architecture.output_parameters) / tp
    return np.asarray(layers / pp + ends / np.minimum(pp, 2))


def workspace_bytes(server: Server, deployment: Deployment, tokens: Number) -> Array:
    """Return bytes of activations of a step of so many tokens a rank.

    Notes
    -----
    One layer at a time: its input, residual and the widest intermediate result, and logits of the sequences in 32 bits
    are small beside. Tokens of all ranks are gathered around experts.
    """
    architecture = server.architecture
    tp = np.asarray(deployment.tp, float)
    widest = 0.0
    for layer in architecture.layers:
        feed = layer.feed_forward
        ways = 2 if feed.gated else 1
        dense = (ways + 1) * max(feed.width, feed.shared_width)
        routed = feed.experts_per_token * (ways + 1) * feed.expert_width
        widest = max(widest, dense + routed)
    return np.asarray(ACTIVATION_BYTES * tokens * (4 * architecture.hidden + widest / tp))


def capacity(server: Server, deployment: Deployment, step_tokens: Number) -> Capacity:
    """Return the memory of an instance whose steps take so many tokens.

    Notes
    -----
    Of the device: fraction x memory - context - weights - workspace; of what is free: fraction x (memory - ...).
    """
    memory, rule = server.machine.accelerator.memory.capacity, server.engine.memory
    weights = weight_bytes(server, deployment)
    workspace = workspace_bytes(server, deployment, step_tokens)
    used = weights + workspace + rule.context
    free = rule.fraction * memory - used if rule.of == "device" else rule.fraction * (memory - used)
    cache = np.maximum(free, 0.0)
    return Capacity(weights, workspace, np.asarray(rule.context), cache, server, deployment)
