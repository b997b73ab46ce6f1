"""What a served model asks of an accelerator: operations and bytes for every token, and utilisations from rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from hardware.schema import Accelerator
from perfmodel.architecture import Architecture, layer_parameters
from perfmodel.kv_cache import layer_kv_bytes_per_token, state_bytes_per_sequence
from perfmodel.power.constants import PowerConstants, power_constants
from perfmodel.power.device import Activity
from perfmodel.terms import Number


@dataclass(frozen=True)
class Sizes:
    """What a model is to the power model; every field a number, or an array of many models.

    Parameters
    ----------
    parameters, active, routed : array
        All parameters; those that a token visits; those of routed experts.
    experts, experts_per_token : array
        Routed experts of a layer, and how many of them a token visits; 0 = dense.
    cache : array
        Elements that a token adds to the cache of layers that see all tokens.
    windowed, window : array
        The same of layers with a window, and that window [tokens].
    state_bytes : array
        State of a sequence, however long, read and written every step [bytes].
    """

    parameters: Number
    active: Number
    routed: Number = 0.0
    experts: Number = 0.0
    experts_per_token: Number = 0.0
    cache: Number = 0.0
    windowed: Number = 0.0
    window: Number = 0.0
    state_bytes: Number = 0.0


def stacked(sizes: Sequence[Sizes]) -> Sizes:
    """Return many models as one of arrays."""
    return Sizes(*(np.array([getattr(one, part.name) for one in sizes], float) for part in fields(Sizes)))


def sizes_of(architecture: Architecture) -> Sizes:
    """Return the sizes of a model of the catalogue."""
    mixtures = [group for group in architecture.layers if group.feed_forward.experts]
    routed = sum(group.count * layer_parameters(group, architecture.hidden).routed for group in mixtures)
    elements = {
        slides: sum(
            group.count * float(layer_kv_bytes_per_token(group.attention, 1.0))
            for group in architecture.layers
            if bool(group.attention.window) == slides
        )
        for slides in (False, True)
    }
    looked_up = 0 if architecture.tied_embeddings else architecture.embedding_parameters
    first = mixtures[0].feed_forward if mixtures else None
    return Sizes(
        architecture.parameters - looked_up,
        architecture.active_parameters - looked_up,
        routed,
        first.experts if first else 0,
        first.experts_per_token if first else 0,
        elements[False],
        elements[True],
        max(group.attention.window for group in architecture.layers),
        float(state_bytes_per_sequence(architecture)),
    )


def serving_activity(
    sizes: Sizes,
    accelerator: Accelerator,
    *,
    accelerators: Number,
    steps_per_s: Number,
    sequences: Number,
    context_tokens: Number,
    prompt_tokens_per_s: Number = 0.0,
    weight_bytes: Number = 2.0,
    cache_bytes: Number = 2.0,
    block_scaled: Number = 0.0,
    constants: PowerConstants | None = None,
) -> Activity:
    """Return what an accelerator of an instance does in steady state.

    Parameters
    ----------
    sizes : Sizes
        The model.
    accelerator : Accelerator
        The board; its peaks make rates into utilisations.
    accelerators : array
        Boards of the instance.
    steps_per_s : array
        Steps that it runs a second.
    sequences, context_tokens : array
        Sequences that get a token in a step, and their mean cached tokens.
    prompt_tokens_per_s : array
        New tokens of prompts that it computes a second.
    weight_bytes, cache_bytes : array
        Bytes of a parameter, and of an element of the cache.
    block_scaled : array
        1 where 8-bit weights have a scale for every block.
    constants : PowerConstants
        The shipped ones if left out.

    Notes
    -----
    A step reads all weights but those of experts that no token visits, 1 - (1 - k/E)^n of them (of a step of prompts
    alone, by its tokens), and the cache of its sequences; a token takes two operations for every parameter that it
    visits. An expert's product has at least ``padded_rows`` rows: tiles that are not full switch all the same.
    Operations on narrower numbers count by the ratio of peaks, of block-scaled ones as fitted.
    """
    known = constants or power_constants()
    n, steps = np.asarray(sequences, float), np.asarray(steps_per_s, float)
    tokens = n + np.asarray(prompt_tokens_per_s) / np.maximum(steps, 1e-12)
    boards = np.asarray(accelerators, float)
    share = np.asarray(sizes.experts_per_token) / np.maximum(sizes.experts, 1)
    visited = np.where(share > 0, 1.0 - (1.0 - share) ** np.where(n > 0, n, tokens), 0.0)
    rows = np.maximum(tokens * share, known.padded_rows * visited)
    dense = sizes.active - sizes.routed * share
    operations = 2.0 * (dense * tokens + sizes.routed * rows) * steps
    peak = accelerator.peak
    wide = next((peak[name] for name in ("bf16", "fp16") if name in peak), max(peak.values()))
    narrow = max((peak[name] for name in ("fp8", "int8") if name in peak), default=wide)
    eight_bits = np.where(np.asarray(block_scaled) > 0, known.block_scaled, wide / narrow)
    cost = np.where(np.asarray(weight_bytes) < 1.5, eight_bits, 1.0)
    weights = (dense + sizes.routed * visited) * np.asarray(weight_bytes)
    context = np.asarray(context_tokens, float)
    held = sizes.cache * context + sizes.windowed * np.minimum(context, sizes.window)
    read = n * (held * np.asarray(cache_bytes) + 2.0 * sizes.state_bytes)
    rate = (weights + known.cache * read) * steps / boards / accelerator.memory.bandwidth
    return Activity(operations / boards / wide * cost, rate)
