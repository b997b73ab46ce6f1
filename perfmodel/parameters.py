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
    """

    dense: tuple[Number, Number, Number]
    experts: tuple[Number, Number, Number]


def group_weights(architecture: Architecture, layers: Number, leading: Number) -> list[Array]:
    """Return how many layers of each of the architecture's groups a stage holds; groups behind the leading one mix evenly."""
    groups = architecture.layers
    mixed = groups[1:] if architecture.leading else groups
    depth = sum(group.count for group in mixed)
    counts = [np.asarray(leading, dtype=float)] if architecture.leading else []
    rest = layers - np.asarray(leading) if architecture.leading else np.asarray(layers)
    return counts + [rest * (group.count / depth) for group in mixed]


def stage_parameters(architecture: Architecture, stages: Stages, plan: Plan) -> StageParameters:
    """Count the parameters of the stages; a tied output table is held by the first and the last stage alike."""
    groups = [layer_parameters(group, architecture.hidden) for group in architecture.layers]
    alone = plan.pp == 1
    embedding = architecture.embedding_parameters / plan.tp
    output = architecture.vocab * architecture.hidden / plan.tp
    tied_on_one_stage = alone & np.asarray(architecture.tied_embeddings)
    ends = (
        embedding + np.where(alone & ~tied_on_one_stage, output, 0.0),
        0.0,
        np.where(alone, embedding, 0.0) + np.where(tied_on_one_stage, 0.0, output) + architecture.final_norm_parameters,
    )
    dense: list[Number] = []
    experts: list[Number] = []
    for layers, leading, end in zip(stages.layers, stages.leading, ends, strict=True):
        dense_here: Number = end
        experts_here: Number = 0.0
        for part, count in zip(groups, group_weights(architecture, layers, leading), strict=True):
            split = part.attention + part.dense_mlp + part.shared
            dense_here = dense_here + count * (split / plan.tp + part.norms + part.router)
            experts_here = experts_here + count * part.routed / plan.ep
        dense.append(dense_here)
        experts.append(experts_here)
    return StageParameters((dense[0], dense[1], dense[2]), (experts[0], experts[1], experts[2]))
