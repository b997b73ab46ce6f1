"""The fields of a training plan, as arrays: one plan or a million."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

CHOICES: dict[str, tuple[Any, ...]] = {
    "seq_parallel": (False, True),
    "recompute": ("none", "selective", "full"),
    "offload": ("none", "optimizer"),
    "overlap_dp": (False, True),
    "overlap_tp": (False, True),
    "rank_order": ("tp-cp-dp-pp", "dp-tp-cp-pp", "tp-cp-pp-dp"),
    "cp_style": ("ring", "ulysses", "all-gather", "hybrid"),
}
"""Fields that are names or switches: the array holds the index into these."""

DATA_INNERMOST, DATA_OUTERMOST = 1, 2
"""Rank orders other than the usual one."""

RING, ULYSSES, ALL_GATHER, HYBRID = range(4)
"""Context-parallel styles."""

RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL = range(3)


@dataclass(frozen=True)
class Plan:
    """How a training run is laid out over the machine.

    Parameters
    ----------
    tp, pp, dp, cp : array of int
        Tensor, pipeline, data and context parallel sizes; their product is the number of ranks.
    ep : array of int
        Expert parallel size; experts are spread over ``ep`` of the ``tp cp dp`` ranks of a stage.
    vpp : array of int
        Interleave: virtual stages (model chunks) per rank, 1 is plain 1F1B.
    micro_batch : array of int
        Sequences per micro-batch.
    zero_stage : array of int
        What data-parallel ranks share out: 0 nothing, 1 optimizer states, 2 and gradients, 3 and weights (FSDP).
    seq_parallel : array of int
        1 where norms and dropouts are split over the tensor-parallel ranks.
    recompute, offload, overlap_dp, overlap_tp, rank_order, cp_style : array of int
        Index into ``CHOICES``. The rank order names the dimensions from neighbouring ranks outwards.
    """

    tp: Integers
    pp: Integers
    dp: Integers
    cp: Integers
    ep: Integers
    vpp: Integers
    micro_batch: Integers
    zero_stage: Integers
    seq_parallel: Integers
    recompute: Integers
    offload: Integers
    overlap_dp: Integers
    overlap_tp: Integers
    rank_order: Integers
    cp_style: Integers

    @property
    def tp_stride(self) -> Integers:
        """Distance between tensor-parallel neighbours [ranks]."""
        return np.where(self.rank_order == DATA_INNERMOST, self.dp, 1)

    @property
    def cp_stride(self) -> Integers:
        """Distance between context-parallel neighbours [ranks]."""
        return self.tp * self.tp_stride

    @property
    def dp_stride(self) -> Integers:
        """Distance between data-parallel neighbours [ranks]."""
        alike = self.tp * self.cp
        return np.where(
            self.rank_order == DATA_INNERMOST, 1, np.where(self.rank_order == DATA_OUTERMOST, alike * self.pp, alike)
        )

    @property
    def pp_stride(self) -> Integers:
        """Distance between pipeline stages [ranks]."""
        return np.where(self.rank_order == DATA_OUTERMOST, self.tp * self.cp, self.stage_ranks)

    @property
    def expert_shape(self) -> tuple[Integers, Integers, Integers, Integers]:
        """Size and stride of the rows that hold a stage's experts once, how many rows make it, and their distance.

        Experts are spread over neighbouring ranks of a stage. Where data-parallel replicas are outermost a stage's
        ranks are rows of tp cp, far apart.
        """
        row = np.where(self.rank_order == DATA_OUTERMOST, np.minimum(self.ep, self.tp * self.cp), self.ep)
        return row, np.ones_like(row), self.ep // row, self.dp_stride

    @property
    def expert_replica_shape(self) -> tuple[Integers, Integers, Integers, Integers]:
        """The same of the ranks of a stage that hold the same experts."""
        row, _, rows, apart = self.expert_shape
        far = self.rank_order == DATA_OUTERMOST
        size = np.where(far, np.maximum(self.tp * self.cp // row, 1), self.stage_ranks // self.ep)
        return size, row, np.where(far, self.dp // rows, 1), apart * rows

    @property
    def stage_ranks(self) -> Integers:
        """Ranks of one pipeline stage."""
        return self.tp * self.cp * self.dp

    def micro_batches(self, global_batch: int) -> Integers:
        """Micro-batches per step and pipeline."""
        return global_batch // (self.dp * self.micro_batch)

    def __len__(self) -> int:
        return int(np.broadcast(*(getattr(self, field.name) for field in fields(self))).size)

    def taken(self, index: NDArray[np.intp] | slice) -> Plan:
        """Return the plans at `index`."""
        size = len(self)
        return Plan(**{f.name: np.broadcast_to(getattr(self, f.name), (size,))[index] for f in fields(self)})


FIELDS = tuple(field.name for field in fields(Plan))

DEFAULTS: dict[str, Any] = {
    "tp": 1,
    "pp": 1,
    "cp": 1,
    "ep": 1,
    "vpp": 1,
    "micro_batch": 1,
    "zero_stage": 0,
    "seq_parallel": False,
    "recompute": "none",
    "offload": "none",
    "overlap_dp": True,
    "overlap_tp": False,
    "rank_order": "tp-cp-dp-pp",
    "cp_style": "ring",
}
"""What a plan that does not say gets (dp follows from the ranks)."""


def plan_from_rows(rows: list[dict[str, Any]]) -> Plan:
    """Return the plans of dictionaries that hold every field by its public name and value."""
    columns = {}
    for name in FIELDS:
        values = [row[name] for row in rows]
        if name in CHOICES:
            values = [CHOICES[name].index(value) for value in values]
        columns[name] = np.asarray(values, dtype=np.int64)
    return Plan(**columns)


def plan_to_dict(plan: Plan, index: int = 0) -> dict[str, Any]:
    """Return plan number `index` by public names and values."""
    row: dict[str, Any] = {}
    for name in FIELDS:
        array = np.atleast_1d(getattr(plan, name))
        value = int(array[index if array.size > 1 else 0])
        row[name] = CHOICES[name][value] if name in CHOICES else value
    return row
