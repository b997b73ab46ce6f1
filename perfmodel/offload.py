"""Time and memory of inference whose weights, keys and values, and activations lie in several tiers.

A block of n sequences, `num_batches` batches of `gpu_batch`, goes through the model layer by layer; what lies elsewhere
is streamed while the layer before is computed (Sheng et al., FlexGen, arXiv 2303.06865, section 4.2). Keys and values
of a tier are streamed too, or attended to by the processors there, so that only queries and results travel (section
4.3). A step takes as long as its busiest resource:

* the accelerators: kernels, and the attention elsewhere that they wait for;
* every contention domain in each direction: the bytes that pass it over its rate;
* processors of a tier: their attention, and the copies from their tier to the accelerators, which wait for them.

Keys and values may be kept in fewer bits, only of some tokens, or as the layers' inputs, of which they are made again;
a prefix that sequences of a block share is computed and held once for each group of them. With a cache of prefixes in
the tiers, what is found is loaded, which links contend for, or computed again.

Kernels are those of the serving model at the size of one batch, so that small batches are as inefficient as they are;
the rest is linear in the placement. Bytes are those of all accelerators of an instance, rates of the whole node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hardware.tiers import HBM, TierPath
from perfmodel.architecture import Attention, layer_parameters
from perfmodel.hit_curves import DEPTHS
from perfmodel.kv_cache import layer_kv_bytes_per_token
from perfmodel.kv_prefixes import Prefixes
from perfmodel.operators import ACTIVATION_BYTES
from perfmodel.serving.server import Server

OBJECTS = ("weights", "kv", "activations")
"""What is placed."""
PHASES = ("prefill", "decode")

Share = tuple[str, str, str]
"""Object, tier, and for keys and values in which way they are attended to: ``stream`` or ``there``; else empty.

Of a cache of prefixes: ``cache``, the share of a tier that it takes; ``found``, the share of all prompt tokens that are
loaded from a tier in a part of prompts, whose number is the third; ``new``, the share that is written through to it.
"""

ACCELERATORS = "accelerators"


@dataclass(frozen=True)
class SharedPrefix:
    """A prefix that every sequence of a group begins with (Zheng et al., BatchLLM, arXiv 2412.03594).

    Parameters
    ----------
    tokens : int
        Tokens of it.
    requests : int
        Sequences of a group, which are in one batch as far as it goes.
    """

    tokens: int
    requests: int


@dataclass(frozen=True)
class Form:
    """In which form keys and values are kept.

    Parameters
    ----------
    keep : float
        Share of a prompt's tokens whose keys and values stay: with fewer than all the cache does not grow, the least
        useful goes for each new one (Adnan et al., Keyformer, arXiv 2403.09054; EpiCache, arXiv 2509.17396) [1].
    remade : bool
        Whether layers' inputs are kept and keys and values made of them in every step (XQuant); where these are no
        wider than the input, they stay.
    """

    keep: float = 1.0
    remade: bool = False


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
    form : Form
        In which form keys and values are kept.
    shared : SharedPrefix or None
        What sequences of a group share, held and computed once.
    prefixes : Prefixes or None
        What requests share over time, for a cache in the tiers.
    rate : float or None
        Requests that come to a node at random, whose prompts are computed one at a time; all at once if None [1/s].
    nodes : int
        Nodes alike. A request goes to the one that has its prefix, so that their caches add up.
    """

    server: Server
    paths: tuple[TierPath, ...]
    accelerators: int
    prompt: int
    generated: int
    gpu_batch: int
    num_batches: int
    form: Form = Form()
    shared: SharedPrefix | None = None
    prefixes: Prefixes | None = None
    rate: float | None = None
    nodes: int = 1

    @property
    def prompts(self) -> tuple[int, int]:
        """Prompts of a batch, and batches that are computed together."""
        return (self.gpu_batch, self.num_batches) if self.rate is None else (1, 1)

    @property
    def sequences(self) -> int:
        """Sequences of a block."""
        return self.gpu_batch * self.num_batches

    @property
    def answered(self) -> int:
        """Tokens that blocks of all nodes generate."""
        return self.nodes * self.sequences * self.generated

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
        if self.prefixes is not None:
            for tier in tiers:
                found.append(("cache", tier, ""))
                found += [("found", tier, str(depth)) for depth in range(DEPTHS)]
            found += [("new", path.name, "") for path in self.paths]
        return found

    @property
    def seen_tokens(self) -> float:
        """Tokens that a new one attends to, averaged over the answer."""
        return self._kept(self.prompt + self.generated / 2)

    @property
    def end_tokens(self) -> float:
        """Tokens that a sequence has at its end."""
        return self._kept(float(self.prompt + self.generated))

    def _kept(self, tokens: float) -> float:
        return tokens if self.form.keep >= 1 else min(tokens, self.form.keep * self.prompt)

    def own_tokens(self, tokens: float) -> float:
        """Return the tokens of a sequence so long, less what others of its group hold for it."""
        if self.shared is None:
            return tokens
        held = min(self.shared.tokens * min(self.form.keep, 1.0), tokens)
        return tokens - held * (1 - 1 / self.shared.requests)


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
    return ACTIVATION_BYTES * asked.prompts[0] * asked.prompt * width


class Kernels(NamedTuple):
    """Times of kernels of one batch.

    Parameters
    ----------
    prompts_s, token_s, attention_s : float
        Of its prompts, of a token of each sequence without attention, and of that attention [s].
    spared_s : tuple of float
        What prompts are spared by each part of them that is found, of `DEPTHS`; nothing if empty [s].
    """

    prompts_s: float
    token_s: float
    attention_s: float
    spared_s: tuple[float, ...] = ()


def remakes(asked: Offload, attention: Attention) -> bool:
    """Tell whether a layer keeps its input: where that is narrower than keys and values of all heads."""
    elements = float(layer_kv_bytes_per_token(attention, 1.0))
    return asked.form.remade and asked.server.architecture.hidden < elements and not attention.window


def attention_flops(asked: Offload) -> float:
    """Return the attention of one token of each sequence of a block to those before it, in all layers [FLOP]."""
    seen = asked.seen_tokens
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


def resource_times(asked: Offload, kernels: Kernels) -> dict[str, dict[str, Row]]:
    """Return the time that each resource needs for a block's prompts and for a token of each of its sequences.

    Parameters
    ----------
    asked : Offload
        The question.
    kernels : Kernels
        Of one batch.

    Returns
    -------
    dict of dict
        By phase and resource the constant and the coefficient of each share [s].
    """
    server, n = asked.server, asked.sequences
    together = asked.prompts[0] * asked.prompts[1]
    prompts_s = asked.prompts[1] * kernels.prompts_s
    tokens_s, attention_s = (asked.num_batches * value for value in (kernels.token_s, kernels.attention_s))
    weights = model_weight_bytes(server)
    hidden = ACTIVATION_BYTES * server.architecture.hidden * asked.depth
    seen = asked.own_tokens(asked.seen_tokens)
    read = n * held_bytes(asked, seen)
    # a latent vector, or a key-value head shared by ranks, goes to each of them
    streamed = n * held_bytes(asked, seen, ranks=asked.accelerators)
    written = n * held_bytes(asked, 1.0)
    filled = together * held_bytes(asked, asked.own_tokens(min(asked.prompt + 1.0, asked.end_tokens)))
    flops = attention_flops(asked)
    # bytes to and from the accelerators, and to and from a tier, by share
    found: dict[str, dict[str, Row]] = {}
    for phase in PHASES:
        moved = hidden * (together * asked.prompt if phase == "prefill" else n)
        rows: dict[str, Row] = {ACCELERATORS: (prompts_s if phase == "prefill" else tokens_s, {})}
        if phase == "decode":
            rows[ACCELERATORS][1].update(
                {share: attention_s for share in asked.shares() if share[0] == "kv" and share[2] != "there"}
            )
        for path in asked.paths:
            moves: dict[Share, tuple[float, float, float, float]] = {
                ("weights", path.name, ""): (weights, 0.0, weights, 0.0),
                ("activations", path.name, ""): (moved, moved, moved, moved),
            }
            if phase == "prefill":
                for way in ("stream", "there"):
                    moves["kv", path.name, way] = (0.0, filled, 0.0, filled)
            else:
                moves["kv", path.name, "stream"] = (streamed, written, streamed, written)
                # queries, keys and values go there, results come back
                moves["kv", path.name, "there"] = (moved, moved + written, read, written)
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
    if asked.prefixes is not None:
        _add_prefixes(found["prefill"], asked, asked.prefixes, kernels)
    return found


def stored_token_bytes(asked: Offload) -> float:
    """Return what a token of a cache of prefixes takes outside the accelerators [bytes]."""
    level = asked.prefixes.level if asked.prefixes is not None else 1.0
    return level * held_bytes(asked, 1.0)


def _add_prefixes(rows: dict[str, Row], asked: Offload, prefixes: Prefixes, kernels: Kernels) -> None:
    """Add what a cache of prefixes spares the accelerators in prompts and asks of tiers and links."""
    tokens = asked.prompts[0] * asked.prompts[1] * asked.prompt
    for depth, seconds in enumerate(kernels.spared_s):
        # a part of prompts is 1 / DEPTHS of their tokens
        spared = asked.prompts[1] * seconds * (1 - prefixes.recomputed) * DEPTHS
        for tier in (HBM, *(path.name for path in asked.paths)):
            _add(rows, ACCELERATORS, ("found", tier, str(depth)), -spared)
    stored = tokens * stored_token_bytes(asked)
    for path in asked.paths:
        starts = path.latency_s * tokens / prefixes.block_tokens / path.domains[0].count
        loading = [(f"{path.link.name} in", stored / path.link.node_up)]
        loading.append((f"{path.domains[0].name} read", stored / path.domains[0].node_up + starts))
        loading += [(f"{domain.name} read", stored / domain.node_up) for domain in path.domains[1:-1]]
        for depth in range(DEPTHS):
            share = ("found", path.name, str(depth))
            for name, seconds in loading:
                _add(rows, name, share, seconds)
            if not prefixes.overlapped:
                _add(rows, ACCELERATORS, share, max(seconds for _, seconds in loading))
        new = ("new", path.name, "")
        _add(rows, f"{path.link.name} out", new, stored / path.link.node_down)
        for domain in path.domains[:-1]:
            _add(rows, f"{domain.name} write", new, stored / domain.node_down)


def _add(rows: dict[str, Row], name: str, share: Share, seconds: float) -> None:
    slopes = rows.setdefault(name, (0.0, {}))[1]
    slopes[share] = slopes.get(share, 0.0) + seconds


def held_bytes(asked: Offload, tokens: float, ranks: int = 1) -> float:
    """Return what is kept of a sequence so long: once, or as so many ranks together hold it [bytes]."""
    server, total = asked.server, 0.0
    for layer in server.architecture.layers:
        held = min(tokens, layer.attention.window or np.inf)
        each = ranks * float(layer_kv_bytes_per_token(layer.attention, server.cache_bytes, ranks))
        if remakes(asked, layer.attention):
            each = ranks * server.cache_bytes * server.architecture.hidden  # every rank makes its heads of all of it
        total += layer.count * held * each
    return total


def memory_rows(asked: Offload) -> dict[str, tuple[float, Row]]:
    """Return the capacity of each tier and what a placement needs of it [bytes].

    Notes
    -----
    Of the accelerators: what lives there, the engine's own, a batch's activations; a layer of weights where not all
    live there, attention and feed-forward part in turn fetched and used; and two batches of a layer's keys and values
    where they are streamed.
    """
    server, n, g = asked.server, asked.sequences, asked.accelerators
    end = asked.own_tokens(asked.end_tokens)
    weights = model_weight_bytes(server)
    cache = n * held_bytes(asked, end)
    copies = n * held_bytes(asked, end, ranks=g)
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
    if asked.prefixes is not None:
        for tier, (size, row) in rows.items():
            row[1]["cache", tier, ""] = size
    return rows


def prefix_blocks(asked: Offload, tier: str, cached_bytes: float) -> float:
    """Return the blocks of prefixes that so many bytes of a tier hold, of all nodes.

    With the accelerators they are as kernels read them.
    """
    assert asked.prefixes is not None
    each = stored_token_bytes(asked) if tier != HBM else held_bytes(asked, 1.0, ranks=asked.accelerators)
    return asked.nodes * cached_bytes / (each * asked.prefixes.block_tokens)


def evaluated(row: Row, at: Mapping[Share, float]) -> float:
    """Return a time or an amount for the shares of a placement."""
    constant, slopes = row
    return constant + sum(slope * at.get(share, 0.0) for share, slope in slopes.items())
