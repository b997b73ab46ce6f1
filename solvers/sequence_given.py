"""A scatter of sequences that a scenario gives: its keys, and what may be wrong with it."""

from __future__ import annotations

import numpy as np

from hardware.catalogue import Machine
from hardware.faults import InputError
from hardware.yaml_source import Source
from perfmodel.sequence import SequenceCosts
from solvers.sequence_case import Integers, Scatter, Schedule
from solvers.sequence_unit import Index, NotNegative, Size, Strict, accelerators, units_of


class SequenceGroup(Strict):
    """A group of accelerators."""

    id: Index
    """Number of the group."""
    degree: Size
    """Ranks among which sequences are split: units of layout.tp x layout.pp accelerators."""
    style: str = "best"
    """A style, mixed (each sequence its own), or none of a single accelerator."""
    gpus: tuple[Index, ...]
    """Its accelerators: neighbours, on every pipeline stage."""


class SequenceAssignment(Strict):
    """Where a sequence is computed."""

    sequence: Index
    """Number of the sequence."""
    group: Index
    """Number of its group."""
    micro_step: Index
    """Micro-step of the group, or micro-batch."""
    chunks: Size | None = None
    """Pieces it is cut into."""
    tokens: Size | None = None
    """Its length."""
    style: str | None = None
    """How it is split."""


class SequenceRemap(Strict):
    """Tokens that move between attention and the linear layers; costed again wherever it is given."""

    within_node_bytes: NotNegative | None = None
    """Moved within nodes in a step [bytes]."""
    across_nodes_bytes: NotNegative | None = None
    """Moved between nodes in a step [bytes]."""
    seconds: NotNegative | None = None
    """Time of it [s]."""
    largest_row_s: NotNegative | None = None
    """The same if every accelerator sends for itself [s]."""
    routed_micro_batches: Index | None = None
    """Micro-batches in which what leaves a node is dealt out over all its accelerators first."""


class SequencePlan(Strict):
    """A scatter of sequences."""

    schedule: Schedule
    """How micro-steps follow one another."""
    groups: tuple[SequenceGroup, ...]
    """Groups, in the order in which they begin."""
    assignment: tuple[SequenceAssignment, ...]
    """Each sequence once."""
    remap: SequenceRemap | None = None
    """Tokens move to equal numbers for the linear layers, and back; they stay if left out."""


def given_plan(
    plan: SequencePlan, lengths: Integers, costs: SequenceCosts, machine: Machine, source: Source
) -> Scatter:
    """Return the plan as planners know it.

    Raises
    ------
    InputError
        With everything that is wrong with it.
    """
    units, node = units_of(machine.accelerators, machine.node.accelerators.count, costs.tp, costs.pp)
    wrong: list[tuple[tuple[str | int, ...], str]] = []
    place = {group.id: number for number, group in enumerate(plan.groups)}
    if len(place) < len(plan.groups):
        wrong.append((("groups",), "two groups have the same id"))
    for number, one in enumerate(plan.groups):
        if one.degree not in costs.degrees:
            allowed = ", ".join(map(str, costs.degrees))
            wrong.append((("groups", number, "degree"), f"should be one of {allowed} [got {one.degree}]"))
        first = one.gpus[0] // costs.tp if one.gpus else 0
        own = accelerators(first, one.degree, units, costs.tp, costs.pp)
        if list(one.gpus) != own or first + one.degree > units:
            said = f"should be {one.degree * costs.tp} neighbours among 0 to {units * costs.tp - 1}"
            if costs.pp > 1:
                said += f", and those {units * costs.tp} further on for each later stage"
            wrong.append((("groups", number, "gpus"), said))
        elif first // node != (first + one.degree - 1) // node and (one.degree <= node or first % node):
            said = (
                f"should lie within a node of {node}" if one.degree <= node else f"should begin with a node of {node}"
            )
            wrong.append((("groups", number, "gpus"), f"{said} [got {first} to {first + one.degree - 1}]"))
        if one.style not in (*costs.styles, "mixed", "best", "none"):
            allowed = ", ".join((*costs.styles, "mixed", "none"))
            wrong.append((("groups", number, "style"), f"should be one of {allowed} [got {one.style!r}]"))
    seen: set[int] = set()
    for number, entry in enumerate(plan.assignment):
        at = ("assignment", number)
        if entry.sequence in seen:
            wrong.append(((*at, "sequence"), f"sequence {entry.sequence} is assigned already"))
        elif entry.sequence >= len(lengths):
            said = f"sequences are numbered 0 to {len(lengths) - 1} [got {entry.sequence}]"
            wrong.append(((*at, "sequence"), said))
        seen.add(entry.sequence)
        if entry.group not in place:
            wrong.append(((*at, "group"), f"there is no group {entry.group}"))
    missing = sorted(set(range(len(lengths))) - seen)
    if missing:
        wrong.append((("assignment",), f"sequence {missing[0]} is not assigned ({len(missing)} are not)"))
    if wrong:
        raise InputError(source.fault(("plan", *path), message) for path, message in wrong)
    group, step = (np.zeros(len(lengths), dtype=np.int64) for _ in range(2))
    index = [entry.sequence for entry in plan.assignment]
    group[index] = [place[entry.group] for entry in plan.assignment]
    step[index] = [entry.micro_step for entry in plan.assignment]
    return Scatter(
        plan.schedule,
        np.array([one.degree for one in plan.groups], dtype=np.int64),
        np.array([one.gpus[0] // costs.tp for one in plan.groups], dtype=np.int64),
        group,
        step,
        plan.remap is not None,
    )
