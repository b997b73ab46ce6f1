"""What a person writes about where the states of training live, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hardware.catalogue import Machine, UnknownName, description, read_file, resolve_cluster, unknown_family
from hardware.faults import Fault, InputError, collected
from hardware.tiers import HBM, TierPath, tier_paths
from hardware.units import Seconds
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture, trainable
from perfmodel.finetune import OBJECTS, STATES, Finetune, finetunes, of_depth
from perfmodel.framework import Framework, frameworks
from perfmodel.job import Job, job
from perfmodel.plan import FIELDS, Plan, plan_from_rows
from solvers.scenario import Recompute, Size, TrainPlan, TrainSearch, ZeroStage, plan_faults, plan_row, usd_per_hour
from solvers.train_space import space

Share = Annotated[float, Field(ge=0, le=1)]
State = Literal["momentum", "variance", "master_weights", "master_gradients", "weights", "gradients", "activations"]
SENSES: dict[str, tuple[Literal["min", "max"], str]] = {
    "step_time_s": ("min", "s"),
    "tokens_per_s": ("max", "1/s"),
    "cost_usd_per_hour": ("min", "USD/h"),
    "cost_usd_per_million_tokens": ("min", "USD"),
    "max_params": ("max", "parameters"),
    "max_context_tokens": ("max", "tokens"),
}
"""Objective -> its sense and unit."""

SHARE_ERROR = 1e-6
"""How far shares that a person writes may be from adding up [1]."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FinetuneWorkload(_Strict):
    """What is asked."""

    kind: Literal["finetune"]
    """What the model does: all its parameters are trained, by Adam with 32-bit states."""
    seq_len: Size
    """Tokens of a sequence."""
    global_batch: Size = 1
    """Sequences of an optimizer step."""
    precision: Literal["bf16", "fp16"] = "bf16"
    """Type of the matrix products."""
    delayed_update: bool = False
    """The host updates with the gradients of the step before, behind the next one's passes; it changes the training."""


class FinetuneSearch(_Strict):
    """What may be chosen; a list left out means everything sensible."""

    tiers: tuple[str, ...] | None = None
    """Memories that may be used: hbm and names of the node's tiers; all if left out."""
    tp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Tensor parallel sizes."""
    cp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Context parallel sizes."""
    micro_batch: tuple[Size, ...] | None = Field(None, min_length=1)
    """Sequences of a micro-batch."""
    zero_stage: tuple[ZeroStage, ...] | None = Field(None, min_length=1)
    """ZeRO stages: 2 or 3 on more than one data-parallel rank; with 2 all weights stay with the accelerators."""
    recompute: tuple[Recompute, ...] | None = Field(None, min_length=1)
    """Activation recomputation."""
    interleaved: bool = True
    """Accelerators may update parameters whose states live elsewhere."""


class FinetuneSlo(_Strict):
    """Limits."""

    step_time: Seconds | None = None
    """Time of an optimizer step, such as 60 s."""


class FinetunePlan(_Strict):
    """Where everything is."""

    training: TrainPlan = TrainPlan()
    """The training layout, without pipeline stages."""
    placement: dict[State, dict[str, Share]]
    """Shares of each object by tier, which add up to one."""
    interleaved: Share | None = None
    """Share of the parameters that accelerators update while their states live elsewhere; the best if left out."""
    devices: dict[str, Size] | None = None
    """Devices of each tier; all that the node has if left out."""
    seq_len: Size | None = None
    """Tokens of a sequence; the workload's if left out."""
    layers: Size | None = None
    """Layers of the model; its own if left out."""


class FinetuneQuestion(_Strict):
    """Where the states of training live."""

    kind: Literal["kv"]
    """Kind of question."""
    cluster: str | dict[str, Any]
    """A node or cluster of the catalogue, a path, or the description itself; one node of it is used."""
    nodes: Literal[1] = 1
    """Nodes."""
    model: str | dict[str, Any]
    """A model of the catalogue, a path, or the description itself."""
    framework: str = "deepspeed"
    """Training framework: its overlaps, memory and overheads."""
    workload: FinetuneWorkload
    """What is computed."""
    search: FinetuneSearch = FinetuneSearch()
    """What may be chosen."""
    slo: FinetuneSlo = FinetuneSlo()
    """Limits."""
    objective: Literal[
        "step_time_s",
        "tokens_per_s",
        "cost_usd_per_hour",
        "cost_usd_per_million_tokens",
        "max_params",
        "max_context_tokens",
    ] = "step_time_s"
    """What is optimised."""
    plan: FinetunePlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


@dataclass(frozen=True)
class FinetuneScenario:
    """A checked question about the states of training.

    Parameters
    ----------
    question : FinetuneQuestion
        As asked.
    job : Job
        Model, machine, workload and framework.
    paths : tuple of TierPath
        Tiers that may be used, beside the accelerators' own memory.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with defaults and hardware written out; reading it again asks the same.
    plan : Plan or None
        The training layout that is given.
    warnings : tuple of Fault
        What may not be meant as it stands.
    """

    question: FinetuneQuestion
    job: Job
    paths: tuple[TierPath, ...]
    source: Source
    resolved: dict[str, Any]
    plan: Plan | None
    warnings: tuple[Fault, ...] = ()

    def layouts(self, work: Job | None = None, paths: tuple[TierPath, ...] | None = None) -> list[Finetune]:
        """Return every layout of the search, of another job or with other tiers where they are given."""
        asked, search = work or self.job, self.question.search
        limits = {name: getattr(search, name) for name in ("tp", "cp", "micro_batch", "zero_stage", "recompute")}
        found = space(asked, TrainSearch(pp=(1,), offload=("none",), **limits))
        plans = found.plans(0, len(found.layouts), asked)
        shared = (plans.zero_stage >= 2) | (plans.dp * plans.cp == 1)
        late = self.question.workload.delayed_update
        tiers = self.paths if paths is None else paths
        return finetunes(asked, plans.taken(np.flatnonzero(shared)), tiers, delayed=late)


def is_finetune(source: Source) -> bool:
    """Tell whether a question of where state lives is about training."""
    data = source.data if isinstance(source.data, dict) else {}
    workload = data.get("workload")
    return isinstance(workload, dict) and workload.get("kind") == "finetune"


def load_finetune(source: Source, base_dir: FilePath) -> FinetuneScenario:
    """Check a scenario of where the states of training live.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    FinetuneScenario
        The question with everything it names looked up.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    question = validated(FinetuneQuestion, source)
    faults: list[Fault] = []
    machine: Machine | None = None
    architecture: Architecture | None = None
    with collected(faults):
        machine = resolve_cluster(question.cluster, base_dir, 1, source=source, at=("cluster",))
    with collected(faults):
        architecture = trainable(load_architecture(question.model, base_dir, source, ("model",)), source)
    framework = frameworks().get(question.framework)
    if framework is None:
        message = f"unknown framework; {did_you_mean(question.framework, frameworks())} [got {question.framework!r}]"
        faults.append(source.fault(("framework",), message))
    if machine is not None:
        faults += [source.fault(path, message) for path, message in _machine_faults(question, machine)]
    seq_len = question.workload.seq_len
    if architecture is not None and architecture.learned_positions and seq_len > architecture.learned_positions:
        message = f"{architecture.name} has {architecture.learned_positions} learned positions [got {seq_len}]"
        faults.append(source.fault(("workload", "seq_len"), message))
    if faults or machine is None or architecture is None or framework is None:
        raise InputError(sorted(set(faults), key=lambda fault: (fault.source, fault.line, fault.column)))
    work = _job(question, machine, architecture, framework, source)
    given: Plan | None = None
    if question.plan is not None:
        row = plan_row(question.plan.training, work.ranks)
        given = plan_from_rows([{name: row[name] for name in FIELDS}])
        faults += [source.fault(("plan", "training", *path), message) for path, message in plan_faults(work, row)]
        faults += [source.fault(path, message) for path, message in _plan_faults(question, work, given)]
        if faults:
            raise InputError(faults)
    wanted = question.search.tiers
    paths = tuple(path for path in tier_paths(machine.node) if wanted is None or path.name in wanted)
    return FinetuneScenario(question, work, paths, source, _resolved(question, base_dir, machine), given)


def _job(
    question: FinetuneQuestion, machine: Machine, architecture: Architecture, framework: Framework, source: Source
) -> Job:
    workload = question.workload
    try:
        return job(
            architecture,
            machine,
            ranks=machine.node.accelerators.count,
            seq_len=workload.seq_len,
            global_batch=workload.global_batch,
            precision=workload.precision,
            framework=framework,
        )
    except ValueError as error:
        raise InputError([source.fault(("workload", "precision"), str(error))]) from None
    except UnknownName:
        message = unknown_family(machine.accelerator.architecture)
        raise InputError([source.fault(("cluster",), f"{machine.accelerator.name}: {message}")]) from None


_Found = tuple[tuple[str | int, ...], str]


def _machine_faults(question: FinetuneQuestion, machine: Machine) -> Iterator[_Found]:
    yield from tier_faults(question.search.tiers, machine)
    if question.objective.startswith("cost_usd") and usd_per_hour(machine) is None:
        message = f"needs a price, and neither {machine.node.name} nor {machine.accelerator.name} has one"
        yield ("objective",), f"{question.objective} {message}"


def tier_faults(wanted: tuple[str, ...] | None, machine: Machine) -> Iterator[_Found]:
    """Yield what is wrong with the tiers that may be used."""
    known = [HBM, *(tier.name for tier in machine.node.tiers)]
    if wanted is None:
        return
    for number, name in enumerate(wanted):
        if name not in known:
            yield ("search", "tiers", number), f"no such tier; {did_you_mean(name, known)} [got {name!r}]"
    if HBM not in wanted:
        yield ("search", "tiers"), f"{HBM} is missing: a layer is computed from there"
    for tier in machine.node.tiers:
        if tier.name in wanted and tier.via is not None and tier.via not in wanted:
            yield ("search", "tiers"), f"{tier.name} is reached via {tier.via}, which is not among them"


def _plan_faults(question: FinetuneQuestion, work: Job, given: Plan) -> Iterable[_Found]:
    plan = question.plan
    assert plan is not None
    allowed = [HBM, *(tier.name for tier in work.machine.node.tiers)]
    if question.search.tiers is not None:
        allowed = [name for name in allowed if name in question.search.tiers]
    if plan.training.pp > 1:
        yield ("plan", "training", "pp"), f"one node has no pipeline stages here [got {plan.training.pp}]"
    if plan.training.offload != "none":
        yield ("plan", "training", "offload"), "placement says what lives elsewhere; leave it out"
    if given.zero_stage[0] < 2 and given.dp[0] * given.cp[0] > 1:
        yield ("plan", "training", "zero_stage"), "should be 2 or 3: states are shared out over data-parallel ranks"
    for name in plan.devices or {}:
        if name not in allowed[1:]:
            yield ("plan", "devices", name), f"no such tier; {did_you_mean(name, allowed[1:])}"
    if plan.layers is not None and of_depth(work.architecture, plan.layers) is None:
        message = f"{work.architecture.name} cannot have so many layers: their pattern does not repeat so"
        yield ("plan", "layers"), f"{message} [got {plan.layers}]"
    for thing in OBJECTS:
        if thing not in plan.placement:
            yield ("plan", "placement"), f"{thing} is missing"
    for thing, shares in plan.placement.items():
        for name in shares:
            if name not in allowed:
                yield ("plan", "placement", thing, name), f"no such tier; {did_you_mean(name, allowed)}"
        if abs(sum(shares.values()) - 1) > SHARE_ERROR:
            yield ("plan", "placement", thing), f"shares should add up to 1 [got {sum(shares.values()):g}]"
    resident = plan.placement.get("momentum", {}).get(HBM, 0.0)
    for thing in (*STATES, "gradients"):
        share = plan.placement.get(thing, {}).get(HBM, 0.0)  # type: ignore[call-overload]
        if abs(share - resident) > SHARE_ERROR:
            message = f"the share in {HBM} should be that of momentum, {resident:g}: those parameters are updated there"
            yield ("plan", "placement", thing), f"{message} [got {share:g}]"
    if plan.interleaved is not None and plan.interleaved > 1 - resident + SHARE_ERROR:
        yield ("plan", "interleaved"), f"only {1 - resident:g} live elsewhere [got {plan.interleaved:g}]"
    if given.zero_stage[0] == 2 and plan.placement.get("weights", {}).get(HBM, 0.0) < 1 - SHARE_ERROR:
        yield ("plan", "placement", "weights"), f"stay in {HBM} with ZeRO-2, where every rank needs its own; use 3"


def _resolved(question: FinetuneQuestion, base_dir: FilePath, machine: Machine) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    written["cluster"] = description(machine)
    if isinstance(question.model, str) and (base_dir / question.model).exists():
        path = base_dir / question.model
        written["model"] = read_file(path / "config.json" if path.is_dir() else path).data
    return written
