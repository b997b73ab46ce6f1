"""How layers fall onto pipeline stages and what a pipeline schedule costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array, Number

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Stages:
    """Layers of the first, an inner and the last stage, and how many layers of a leading group each holds.

    Parameters
    ----------
    layers : tuple of array
        Layers of the (first, inner, last) stage.
    leading : tuple of array
        Layers of the model's leading group among them (DeepSeek-V3: the three dense layers at the front); of the inner
        stages their mean.
    """

    layers: tuple[Integers, Integers, Integers]
    leading: tuple[Array, Array, Array]


def missing_layers(depth: int, pp: Integers, vpp: Integers) -> Integers:
    """Layers that the model lacks to fill ``pp vpp`` chunks evenly."""
    chunks = pp * vpp
    return -(-depth // chunks) * chunks - depth


def split_layers(depth: int, leading: int, pp: Integers, vpp: Integers) -> Stages:
    """Return how `depth` layers are spread over the stages.

    Every chunk gets ``ceil(depth / (pp vpp))`` layers; what the model lacks to fill them is taken from the last stage
    and the first, half each (the odd one from the last), which also carry the logits and the embedding.

    Raises
    ------
    ValueError
        Where a stage would be left with no layer; ``splits`` tells beforehand.
    """
    if not np.all(splits(depth, pp, vpp)):
        raise ValueError(f"{depth} layers cannot fill pipelines of {np.max(pp)} stages")
    chunks = pp * vpp
    per_chunk = -(-depth // chunks)
    missing = missing_layers(depth, pp, vpp)
    full = per_chunk * vpp
    alone = pp == 1
    from_first = np.where(alone, 0, missing // 2)
    last = full - (missing - from_first)
    first = np.where(alone, depth, full - from_first)
    last = np.where(alone, depth, last)
    # with interleaving the front of the model is dealt out chunk by chunk over the stages; the first one keeps what the
    # others have no room for, and what an inner stage holds is the mean of them
    first_chunk = np.minimum(per_chunk - np.minimum(from_first, per_chunk), depth)
    dealt = np.minimum(leading, np.where(vpp > 1, first_chunk, first))
    lead_first = np.where(alone, leading, np.maximum(dealt, leading - (depth - first)))
    inner_stages = np.maximum(pp - 2, 0)
    lead_inner = np.minimum((leading - lead_first) / np.maximum(inner_stages, 1), full)
    lead_last = np.where(alone, leading, np.maximum(leading - lead_first - inner_stages * lead_inner, 0.0))  # rounding
    inner_exists = inner_stages > 0
    return Stages(
        (first, np.where(inner_exists, full, first), last),
        (lead_first, np.where(inner_exists, lead_inner, lead_first), lead_last),
    )


def splits(depth: int, pp: Integers, vpp: Integers) -> NDArray[np.bool_]:
    """Whether the layers can be spread so that every stage keeps a layer."""
    per_chunk = -(-depth // (pp * vpp))
    missing = missing_layers(depth, pp, vpp)
    taken_at_most = missing - missing // 2
    return np.asarray((depth >= pp) & (taken_at_most < per_chunk * vpp) & ((missing == 0) | (pp > 1)))


def bubble(slowest_s: Number, all_stages_s: Number, pp: Integers, vpp: Integers) -> Number:
    """Idle time of the slowest stage while the pipeline fills and drains [s].

    Notes
    -----
    (sum_i t_i - max_i t_i) / vpp with t_i the forward and backward time of a micro-batch on stage i: for equal stages
    (pp - 1)/vpp t, SC21 (arXiv 2104.04473) section 2.2; unequal ones as Alpa (arXiv 2201.12023) equation 2, which 1F1B
    reaches where the last stage is the slowest and stays below elsewhere (backward in one proportion to forward).
    """
    return np.where(pp > 1, (all_stages_s - slowest_s) / vpp, 0.0)


def in_flight_chunks(stage: int, pp: Integers, vpp: Integers, micro_batches: Integers) -> Integers:
    """Forward passes of model chunks whose activations stage `stage` (negative: from the end) holds at its peak.

    Notes
    -----
    1F1B: min(pp - i, n) micro-batches. Interleaved: min(2 (pp - i - 1) + (vpp - 1) pp + 1, n vpp) chunks, the warm-up
    count of Megatron-LM's schedule; for i = 0 this is the factor 1 + (pp - 1)/(pp vpp) of Korthikanti et al. (arXiv
    2205.05198), section 4.2.3.
    """
    position = np.minimum(stage, pp - 1) if stage >= 0 else np.maximum(pp + stage, 0)
    plain = np.minimum(pp - position, micro_batches)
    interleaved = np.minimum(2 * (pp - position - 1) + (vpp - 1) * pp + 1, micro_batches * vpp)
    return np.where(vpp > 1, interleaved, plain)
