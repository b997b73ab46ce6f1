"""Time and memory of inference whose weights, keys and values, and activations lie in several tiers.

A block of n sequences, `num_batches` batches of `gpu_batch`, goes through the model layer by layer; what lies elsewhere
is streamed while the layer before is computed (Sheng et al., FlexGen, arXiv 2303.06865, section 4.2). Keys and values
of a tier are streamed too, or attended to by the processors there, so that only queries and results travel (section
4.3). A step takes as long as its busiest resource:

* the accelerators: kernels, and the attention elsewhere that they wait for;
* every contention domain in each direction: the bytes that pass it over its rate;
* processors of a tier: their attention, and the copies from their tier to the accelerators, which wait for them.

Kernels are those of the serving model at the size of one batch, so that small batches are as inefficient as they are;
the rest is linear in the placement. Bytes are those of all accelerators of an instance, rates of the whole node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hardware.tiers import HBM, TierPath
from perfmodel.architecture import layer_parameters
from perfmodel.kv_cache import kv_bytes_per_sequence
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.terms import Array, Number

OBJECTS = ("weights", "kv", "activations")
"""What is placed."""
PHASES = ("prefill", "decode")

Share = tuple[str, str, str]
"""Object, tier, and for keys and values in which way they are attended to: ``stream`` or ``there``; else empty."""

ACCELERATORS = "accelerators"


@dataclass(frozen=True)
class Offload:
    """A question of placement with its sizes counted.

    Parameters
    ----------
    server : Server
        Model, machine and engine.
    paths : tuple of TierPath
        Tiers beside the accelerators' own.
    accelerators : int
        Tensor-parallel ranks of the instance.
    prompt, generated : int
        Tokens of each sequence that come in and go out.
    gpu_batch, num_batches : int
        Sequences of a batch, and batches of a block.
    """

    server: Server
    paths: tuple[TierPath, ...]
    accelerators: int
    prompt: int
    generated: int
    gpu_batch: int
    num_batches: int

    @property
    def sequences(self) -> int:
        """Sequences of a block."""
        return self.gpu_batch * self.num_batches

    @property
    def depth(self) -> int:
        """Layers."""
        return self.server.architecture.depth

    def shares(self) -> list[Share]:
        """Return the fractions that a placement is made of."""
        tiers = [HBM, *(path.name for path in self.paths)]
        found = [(thing, tier, "") for thing in ("weights", "activations") for tier in tiers]
        found += [("kv", HBM, "")]
        for path in self.paths:
            found.append(("kv", path.name, "stream"))
            if path.attention_flops is not None:
                found.append(("kv", path.name, "there"))
        return found


def model_weight_bytes(server: Server) -> float:
    """Return the weights of a model, token table and output projection among them [bytes]."""
    architecture = server.architecture
    total = float(ACTIVATION_BYTES * (architecture.embedding_parameters + architecture.output_parameters))
    for layer in architecture.layers:
        part = layer_parameters(layer, architecture.hidden)
        products = part.attention + part.dense_mlp + part.shared + part.routed
        total += layer.count * (server.form.weight_bytes * products + ACTIVATION_BYTES * (part.norms + part.router))
    return total


def batch_bytes(asked: Offload) -> float:
    """Return a batch's activations of prompts in a layer: input, residual, result, the widest inside [bytes]."""
    architecture = asked.server.architecture
    widest = 0.0
    for layer in architecture.layers:
        feed = layer.feed_forward
        routed = feed.experts_per_token * feed.expert_width
        widest = max(widest, (2 if feed.gated else 1) * (max(feed.width, feed.shared_width) + routed))
    width = 3 * architecture.hidden * asked.accelerators + widest  # every rank has the whole residual
    return ACTIVATION_BYTES * asked.gpu_batch * asked.prompt * width


def kernel_times(asked: Offload, gpu_batch: Number) -> tuple[Array, Array, Array]:
    """Return a batch's time of kernels for its prompts, for one token without attention, and for that attention [s]."""
    server = replace(asked.server, captured=False)
    spread = Deployment(tp=asked.accelerators)
    seen = asked.prompt + asked.generated / 2
    prompts = step(server, spread, Load(prompts=gpu_batch, prompt_tokens=float(asked.prompt))).seconds
    alone = step(server, spread, Load(sequences=gpu_batch, context=1.0)).seconds
    whole = step(server, spread, Load(sequences=gpu_batch, context=seen)).seconds
    return np.asarray(prompts), np.asarray(alone), np.maximum(np.asarray(whole) - np.asarray(alone), 0.0)


def attention_flops(asked: Offload) -> float:
    """Return the attention of one token of each sequence of a block to those before it, in all layers [FLOP]."""
    seen = asked.prompt + asked.generated / 2
    total = 0.0
    for layer in asked.server.architecture.layers:
        attention = layer.attention
        if attention.kind == "linear":
            continue
        held = min(seen, attention.window or np.inf)
        widths = attention.qk_head_dim + attention.v_head_dim
        if attention.kind == "mla":
            widths = 2 * attention.kv_lora_rank + attention.rope_head_dim
        total += layer.count * 2 * attention.heads * widths * held
    return total * asked.sequences


Row = tuple[float, dict[Share, float]]
"""Constant and coefficients of a time [s] or of an amount [bytes]."""


def resource_times(asked: Offload, kernels: tuple[float, float, float]) -> dict[str, dict[str, Row]]:
    """Return the time that each resource needs for a block's prompts and for a token of each of its sequences.

    Parameters
    ----------
    asked : Offload
        The question.
    kernels : tuple of float
        As of `kernel_times`, of one batch [s].

    Returns
    -------
    dict of dict
        By phase and resource the constant and the coefficient of each share [s].
    """
    server, n = asked.server, asked.sequences
    prompts_s, tokens_s, attention_s = (asked.num_batches * value for value in kernels)
    weights = model_weight_bytes(server)
    hidden = ACTIVATION_BYTES * server.architecture.hidden * n * asked.depth
    seen = asked.prompt + asked.generated / 2
    read = n * float(kv_bytes_per_sequence(server.architecture, seen, server.cache_bytes))
    # a latent vector, or a key-value head shared by ranks, goes to each of them
    streamed = n * bytes_over_ranks(asked, seen)
    written = n * float(kv_bytes_per_sequence(server.architecture, 1.0, server.cache_bytes))
    filled = n * float(kv_bytes_per_sequence(server.architecture, asked.prompt + 1.0, server.cache_bytes))
    flops = attention_flops(asked)
    # bytes to and from the accelerators, and to and from a tier, by share
    found: dict[str, dict[str, Row]] = {}
    for phase in PHASES:
        tokens = asked.prompt if phase == "prefill" else 1
        rows: dict[str, Row] = {ACCELERATORS: (prompts_s if phase == "prefill" else tokens_s, {})}
        if phase == "decode":
            rows[ACCELERATORS][1].update(
                {share: attention_s for share in asked.shares() if share[0] == "kv" and share[2] != "there"}
            )
        for path in asked.paths:
            moves: dict[Share, tuple[float, float, float, float]] = {
                ("weights", path.name, ""): (weights, 0.0, weights, 0.0),
                ("activations", path.name, ""): (tokens * hidden, tokens * hidden, tokens * hidden, tokens * hidden),
            }
            if phase == "prefill":
                for way in ("stream", "there"):
                    moves["kv", path.name, way] = (0.0, filled, 0.0, filled)
            else:
                moves["kv", path.name, "stream"] = (streamed, written, streamed, written)
                # queries, keys and values go there, results come back
                moves["kv", path.name, "there"] = (hidden, hidden + written, read, written)
            known = {share: move for share, move in moves.items() if share in asked.shares()}
            for share, (up, down, out, into) in known.items():
                inside = share[2] == "there" and path.site == path.name
                passed = [(path.link, up, down), (path.domains[0], 0.0 if inside else out, into)]
                passed += [(domain, out, into) for domain in path.domains[1:-1]]
                for domain, towards, back in passed:
                    words = ("in", "out") if domain is path.link else ("read", "write")
                    _add(rows, f"{domain.name} {words[0]}", share, towards / domain.node_up)
                    _add(rows, f"{domain.name} {words[1]}", share, back / domain.node_down)
                if path.site is not None and phase == "decode":
                    spent = up / path.link.node_up
                    if share[2] == "there":
                        spent += flops / (path.attention_flops or 1.0)
                        _add(rows, ACCELERATORS, share, flops / (path.attention_flops or 1.0))
                    _add(rows, f"{path.site} processor", share, spent)
        found[phase] = rows
    return found


def _add(rows: dict[str, Row], name: str, share: Share, seconds: float) -> None:
    slopes = rows.setdefault(name, (0.0, {}))[1]
    slopes[share] = slopes.get(share, 0.0) + seconds


def bytes_over_ranks(asked: Offload, tokens: float) -> float:
    """Return keys and values of a sequence as all ranks together hold them [bytes]."""
    ranks, server = asked.accelerators, asked.server
    return ranks * float(kv_bytes_per_sequence(server.architecture, tokens, server.cache_bytes, ranks))


def memory_rows(asked: Offload) -> dict[str, tuple[float, Row]]:
    """Return the capacity of each tier and what a placement needs of it [bytes].

    Notes
    -----
    Of the accelerators: what lives there, the engine's own, a batch's activations; a layer of weights where not all
    live there, attention and feed-forward part in turn fetched and used; and two batches of a layer's keys and values
    where they are streamed.
    """
    server, n, g = asked.server, asked.sequences, asked.accelerators
    end = asked.prompt + asked.generated
    weights = model_weight_bytes(server)
    cache = n * float(kv_bytes_per_sequence(server.architecture, end, server.cache_bytes))
    copies = n * bytes_over_ranks(asked, end)
    hidden = ACTIVATION_BYTES * server.architecture.hidden * n * asked.prompt
    rule = server.engine.memory
    fetched = weights / asked.depth
    fixed = g * rule.context + batch_bytes(asked) + fetched
    own: dict[Share, float] = {
        ("weights", HBM, ""): weights - fetched,
        ("activations", HBM, ""): hidden,
        ("kv", HBM, ""): copies,
    }
    for path in asked.paths:
        own["kv", path.name, "stream"] = 2 * copies / asked.depth / asked.num_batches
    room = g * rule.fraction * server.machine.accelerator.memory.capacity
    rows = {HBM: (room, (fixed, own))}
    for path in asked.paths:
        held: dict[Share, float] = {("weights", path.name, ""): weights, ("activations", path.name, ""): hidden}
        held |= {share: cache for share in asked.shares() if share[:2] == ("kv", path.name)}
        rows[path.name] = (path.capacity_bytes, (0.0, held))
    return rows


def evaluated(row: Row, at: Mapping[Share, float]) -> float:
    """Return a time or an amount for the shares of a placement."""
    constant, slopes = row
    return constant + sum(slope * at.get(share, 0.0) for share, slope in slopes.items())
