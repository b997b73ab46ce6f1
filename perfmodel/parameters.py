"""Parameters that one rank of each pipeline stage is responsible for, before data-parallel sharing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.architecture import Architecture, layer_parameters
from perfmodel.pipeline import Stages
from perfmodel.plan import Plan
from perfmodel.terms import Array, Number

STAGES = ("first", "inner", "last")


@dataclass(frozen=True)
class StageParameters:
    """Parameters per rank of the (first, inner, last) stage.

    Parameters
    ----------
    dense : tuple of array
        Everything but routed experts; shared out over the cp dp ranks that hold the same slice.
    experts : tuple of array
        Routed experts; shared out over the tp cp dp / ep ranks that hold the same experts.
    ends : tuple of array
        Embedding and output projection among the dense ones.
    """

    dense: tuple[Number, Number, Number]
    experts: tuple[Number, Number, Number]
    ends: tuple[Number, Number, Number]


def group_weights(architecture: Architecture, layers: Number, leading: Number) -> list[Array]:
    """Return how many layers of each group a stage holds; groups behind the leading one mix evenly."""
    groups = architecture.layers
    mixed = groups[1:] if architecture.leading else groups
    depth = sum(group.count for group in mixed)
    counts = [np.asarray(leading, dtype=float)] if architecture.leading else []
    rest = layers - np.asarray(leading) if architecture.leading else np.asarray(layers)
    return counts + [rest * (group.count / depth) for group in mixed]


def stage_weights(
    architecture: Architecture, layers: Number, leading: Number, at_front: Number, at_back: Number
) -> list[Number]:
    """Return how often a stage computes a layer of each group, the embedding and the logits.

    Every multi-token-prediction module is one more layer and one more set of logits on the last stage (DeepSeek-V3,
    arXiv 2412.19437, section 2.2).
    """
    modules = architecture.mtp_layers * np.asarray(at_back)
    counts: list[Number] = list(group_weights(architecture, layers, leading))
    counts[-1] = counts[-1] + modules
    return [*counts, at_front, at_back + modules]


def stage_parameters(architecture: Architecture, stages: Stages, plan: Plan) -> StageParameters:
    """Count the parameters of the stages; a tied output table is held by the first and the last stage alike."""
    groups = [layer_parameters(group, architecture.hidden) for group in architecture.layers]
    alone = plan.pp == 1
    embedding = architecture.embedding_parameters / plan.tp
    output = architecture.vocab * (architecture.hidden + architecture.output_bias) / plan.tp
    tied_on_one_stage = alone & np.asarray(architecture.tied_embeddings)
    ends: tuple[Number, Number, Number] = (
        embedding + np.where(alone & ~tied_on_one_stage, output, 0.0),
        0.0,
        np.where(alone, embedding, 0.0) + np.where(tied_on_one_stage, 0.0, output) + architecture.final_norm_parameters,
    )
    dense: list[Number] = []
    experts: list[Number] = []
    backs: tuple[Number, Number, Number] = (np.where(alone, 1.0, 0.0), 0.0, 1.0)
    # a multi-token-prediction module also joins two hidden states by a product, and has three norms
    joining = architecture.mtp_layers * (2 * architecture.hidden**2 / plan.tp + 3 * architecture.hidden)
    for layers, leading, end, back in zip(stages.layers, stages.leading, ends, backs, strict=True):
        dense_here: Number = end + back * joining
        experts_here: Number = 0.0
        counts = stage_weights(architecture, layers, leading, 0.0, back)[:-2]
        for part, count in zip(groups, counts, strict=True):
            split = part.attention + part.dense_mlp + part.shared
            dense_here = dense_here + count * (split / plan.tp + part.norms + part.router)
            experts_here = experts_here + count * part.routed / plan.ep
        dense.append(dense_here)
        experts.append(experts_here)
    return StageParameters((dense[0], dense[1], dense[2]), (experts[0], experts[1], experts[2]), ends)
