"""How a unit of accelerators, one rank of a group, holds the model: tensor and pipeline parallelism, states, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from perfmodel.architecture import Architecture
from perfmodel.pipeline import splits

Size = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """A part of a question: no key that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SequenceLayout(Strict):
    """What all groups share: how a unit of accelerators holds the model, and recomputation."""

    tp: Size = 1
    """Accelerators that share every layer of a unit."""
    pp: Size = 1
    """Pipeline stages of a unit."""
    seq_parallel: bool | None = None
    """Norms and dropouts split over the tensor-parallel ranks; where there are several if left out."""
    zero_stage: Annotated[int, Field(strict=True, ge=0, le=3)] = 3
    """0 nothing, 1 optimizer states, 2 and gradients, 3 and weights shared out over all accelerators."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation."""

    offload: Literal["none", "activations"] = "none"
    """What leaves for host memory: activations, as far as a sequence's own compute hides them."""

    @property
    def fields(self) -> dict[str, Any]:
        """The same as fields of a training plan."""
        split = self.tp > 1 if self.seq_parallel is None else self.seq_parallel
        return {**self.model_dump(exclude={"offload"}), "seq_parallel": split}


def layout_faults(
    layout: SequenceLayout, gpus: int, architecture: Architecture | None, schedules: Sequence[str]
) -> list[tuple[tuple[str | int, ...], str]]:
    """Return what is wrong with a layout on so many accelerators, and at which key.

    Parameters
    ----------
    layout : SequenceLayout
        As asked.
    gpus : int
        Accelerators.
    architecture : Architecture or None
        The model; None where costs are given.
    schedules : sequence of str
        Schedules asked for.
    """
    tp, pp = layout.tp, layout.pp
    wrong: list[tuple[tuple[str | int, ...], str]] = []
    if gpus % (tp * pp):
        said = f"tp x pp = {tp * pp} does not divide the {gpus} accelerators of the cluster"
        wrong.append((("layout", "tp" if tp > 1 else "pp"), said))
    if architecture is None:
        said = "costs are given, and they are those of a whole unit"
        sizes = (("tp", tp), ("pp", pp))
        wrong += [(("layout", name), f"{said} [got {size}]") for name, size in sizes if size > 1]
    else:
        heads = min(group.attention.heads for group in architecture.layers)
        if heads % tp:
            wrong.append((("layout", "tp"), f"does not divide the {heads} attention heads [got {tp}]"))
        if not splits(architecture.depth, np.asarray(pp), np.asarray(1)):
            wrong.append((("layout", "pp"), f"{architecture.depth} layers do not spread over {pp} stages"))
        if tp > 1 and layout.seq_parallel is False and any(part.feed_forward.experts for part in architecture.layers):
            said = "a mixture of experts needs sequence parallelism beside tensor parallelism"
            wrong.append((("layout", "seq_parallel"), said))
    if layout.offload == "activations":
        if architecture is None:
            wrong.append((("layout", "offload"), "costs are given, which say nothing of activations"))
        if pp > 1:
            said = f"activations leave for host memory only without a pipeline [got pp: {pp}]"
            wrong.append((("layout", "offload"), said))
    if layout.seq_parallel and tp == 1:
        wrong.append((("layout", "seq_parallel"), "sequence parallelism needs tp > 1"))
    if pp > 1 and "splits" in schedules:
        said = "groups that split would drain the pipeline; with pp > 1 take one-shot, barrier or fixed"
        wrong.append((("search", "schedule", list(schedules).index("splits")), said))
    return wrong


def units_of(gpus: int, node: int, tp: int, pp: int) -> tuple[int, int]:
    """Return the units of a cluster, and how many of them have their part of a stage on one node."""
    units = gpus // (tp * pp)
    return units, max(min(node // tp if node % tp == 0 else 1, units), 1)


def accelerators(first: int, degree: int, units: int, tp: int, pp: int) -> list[int]:
    """Return the accelerators of a group: tensor parallelism innermost, then the units of the group, then stages.

    Parameters
    ----------
    first, degree : int
        First unit of the group, and how many.
    units : int
        Units of the cluster.
    tp, pp : int
        Accelerators of a unit that share a layer, and stages.
    """
    return [(stage * units + first) * tp + place for stage in range(pp) for place in range(degree * tp)]
