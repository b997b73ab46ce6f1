"""A training step on links of unequal speed: each kind of traffic as much slower as its phases are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from perfmodel import terms
from perfmodel.job import Job
from perfmodel.plan import Plan
from perfmodel.terms import LINK, Term
from perfmodel.traffic import BACKWARD, CONTEXT, DATA, EXPERT, EXPERT_DATA, FORWARD, HEADS, TENSOR
from perfmodel.training import predict_step

PARTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("pipeline stage", "pipeline bubble"), (TENSOR, HEADS, CONTEXT, EXPERT)),
    (("pipeline sends",), (FORWARD, BACKWARD)),
    (("gradient traffic", "weight traffic"), (DATA, EXPERT_DATA)),
)
"""Terms of a step, and the phases of traffic that they wait for."""

_OVERLAP = "slowdown under overlap"


def network_rate(job: Job) -> float:
    """Return what a node of the job's machine should send another one, by its description [bytes/s].

    Raises
    ------
    ValueError
        The job runs on one node.
    """
    inside = job.machine.node.accelerators.count
    outside = [level for level in job.levels if level.ranks > inside]
    if not outside:
        raise ValueError("the job runs on one node, which sends no other anything")
    level = outside[0]
    return inside * level.bandwidth * job.collectives.link(level.type).bandwidth


def slowed_step(job: Job, plan: Plan, seconds: Mapping[str, float], reference_s: Mapping[str, float]) -> Term:
    """Predict a step whose phases of traffic between nodes take other times than the machine's description says.

    Parameters
    ----------
    job : Job
        Model, workload, machine and framework.
    plan : Plan
        One plan.
    seconds : mapping
        Time of each phase on the links there are [s].
    reference_s : mapping
        Time of the same phase on links of the described rate [s].

    Returns
    -------
    Term
        The step [s]: each part as it is predicted on a network as many times slower as its phases are.
    """
    base = terms.at(predict_step(job, plan).step, 0)
    parts = {child.name: child for child in base.children}
    for names, phases in PARTS:
        reference = sum(reference_s.get(phase, 0.0) for phase in phases)
        if not reference:
            continue
        factor = sum(seconds.get(phase, 0.0) for phase in phases) / reference
        found = terms.at(predict_step(_slowed(job, factor), plan).step, 0)
        parts |= {child.name: child for child in found.children if child.name in names}
    hidden = sum(part.hidden_seconds for part in parts.values())
    parts[_OVERLAP] = Term(_OVERLAP, (job.constants.overlap_slowdown - 1) * hidden, LINK)
    return terms.total(base.name, list(parts.values()))


def _slowed(job: Job, factor: float) -> Job:
    inside = job.machine.node.accelerators.count
    levels = tuple(
        replace(level, bandwidth=level.bandwidth / factor) if level.ranks > inside else level for level in job.levels
    )
    return replace(job, levels=levels)
