"""The question a person asks, checked, with its defaults written out. This is also the entry from Python.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.train.plan(solvers.scenario.load_train(source, Path(".")))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hardware.catalogue import Machine, UnknownName, description, resolve_cluster, unknown_family
from hardware.faults import Fault, InputError, collected
from hardware.units import Watts
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture, trainable
from perfmodel.framework import frameworks
from perfmodel.job import Job, job, kernels_of
from perfmodel.pipeline import splits
from perfmodel.plan import DEFAULTS, FIELDS, Plan, plan_from_rows
from perfmodel.power import held_to
from solvers.power_limit import PowerLimits, allowed_w, cap_faults, caps_w

Size = Annotated[int, Field(strict=True, ge=1)]
Amount = Annotated[float, Field(gt=0)]
Precision = Literal["bf16", "fp16", "fp32", "fp8", "mxfp8", "nvfp4"]
Recompute = Literal["none", "selective", "full"]
Offload = Literal["none", "optimizer"]
RankOrder = Literal["tp-cp-dp-pp", "dp-tp-cp-pp", "tp-cp-pp-dp"]
ContextStyle = Literal["ring", "ulysses", "all-gather", "hybrid"]
ZeroStage = Annotated[int, Field(strict=True, ge=0, le=3)]
TrainObjective = Literal["step_time_s", "energy_j", "training_days", "cost_usd"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TrainWorkload(_Strict):
    """What a training run computes."""

    seq_len: Size
    """Tokens of a sequence."""
    global_batch: Size
    """Sequences of an optimizer step."""
    precision: Precision = "bf16"
    """Type of the matrix products."""
    tokens: Amount | None = None
    """Tokens of the whole run; needed for training days and cost."""


class TrainSearch(_Strict):
    """What the planner may choose; a list left out means everything sensible."""

    tp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Tensor parallel sizes."""
    pp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Pipeline parallel sizes."""
    cp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Context parallel sizes."""
    ep: tuple[Size, ...] | None = Field(None, min_length=1)
    """Expert parallel sizes."""
    vpp: tuple[Size, ...] | None = Field(None, min_length=1)
    """Virtual stages per rank (interleave)."""
    micro_batch: tuple[Size, ...] | None = Field(None, min_length=1)
    """Sequences of a micro-batch."""
    zero_stage: tuple[ZeroStage, ...] | None = Field(None, min_length=1)
    """ZeRO stages."""
    seq_parallel: tuple[bool, ...] | None = Field(None, min_length=1)
    """Sequence parallelism (beside tensor parallelism)."""
    recompute: tuple[Recompute, ...] | None = Field(None, min_length=1)
    """Activation recomputation."""
    offload: tuple[Offload, ...] | None = Field(None, min_length=1)
    """What lives in host memory."""
    overlap_dp: tuple[bool, ...] | None = Field(None, min_length=1)
    """Gradient traffic behind compute."""
    overlap_tp: tuple[bool, ...] | None = Field(None, min_length=1)
    """Tensor-parallel traffic behind compute."""
    rank_order: tuple[RankOrder, ...] | None = Field(None, min_length=1)
    """Parallel dimensions from neighbouring ranks outwards."""
    cp_style: tuple[ContextStyle, ...] | None = Field(None, min_length=1)
    """Ring attention, Ulysses, keys and values gathered, or Ulysses among neighbours and a ring around them."""
    power_cap_w: tuple[Watts, ...] | None = Field(None, min_length=1)
    """Powers that accelerators may be held to; five down to the lowest where energy counts, else the highest."""


class TrainPlan(_Strict):
    """A training plan."""

    tp: Size = 1
    """Tensor parallel size."""
    pp: Size = 1
    """Pipeline parallel size."""
    dp: Size | None = None
    """Data parallel size; what is left of the cluster if left out."""
    cp: Size = 1
    """Context parallel size."""
    ep: Size = 1
    """Expert parallel size, of the tp cp dp ranks of a stage."""
    vpp: Size = 1
    """Virtual stages per rank; 1 is plain 1F1B."""
    micro_batch: Size = 1
    """Sequences of a micro-batch."""
    zero_stage: ZeroStage = 0
    """0 nothing, 1 optimizer states, 2 and gradients, 3 and weights shared out over data-parallel ranks."""
    seq_parallel: bool = False
    """Norms split over the tensor-parallel ranks."""
    recompute: Recompute = "none"
    """Activation recomputation."""
    offload: Offload = "none"
    """What lives in host memory."""
    overlap_dp: bool = True
    """Gradient traffic behind compute."""
    overlap_tp: bool = False
    """Tensor-parallel traffic behind compute."""
    rank_order: RankOrder = "tp-cp-dp-pp"
    """Parallel dimensions from neighbouring ranks outwards."""
    cp_style: ContextStyle = "ring"
    """Ring attention, Ulysses, keys and values gathered, or Ulysses among neighbours and a ring around them."""
    power_cap_w: Watts | None = None
    """What accelerators are held to; the highest that is allowed if left out."""


class TrainQuestion(_Strict):
    """How to train a model on a cluster."""

    kind: Literal["train"]
    """Kind of question."""
    cluster: str | dict[str, Any]
    """A cluster or node of the catalogue, a path, or the description itself."""
    nodes: Size | None = None
    """Nodes to use; all of a cluster if left out."""
    model: str | dict[str, Any]
    """A bundled model, the path of a config.json, or its content."""
    workload: TrainWorkload
    """What is computed."""
    framework: str = "megatron-lm"
    """Training framework: its overlaps, memory and overheads."""
    power: PowerLimits = PowerLimits()
    """What nodes may draw."""
    search: TrainSearch = TrainSearch()
    """What the planner may choose."""
    objective: TrainObjective = "step_time_s"
    """What is minimised."""
    plan: TrainPlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


@dataclass(frozen=True)
class TrainScenario:
    """A checked question about training.

    Parameters
    ----------
    question : TrainQuestion
        As asked.
    job : Job
        Model, machine, workload and framework with their constants.
    source : Source
        Where it was written, to place later faults.
    resolved : dict
        The scenario with defaults and hardware written out; reading it again asks the same.
    plan : Plan or None
        The plan given, checked against the machine and the model.
    """

    question: TrainQuestion
    job: Job
    source: Source
    resolved: dict[str, Any]
    plan: Plan | None

    @property
    def caps_w(self) -> tuple[float, ...]:
        """Caps of accelerators to try, highest first; none where no cap keeps the limit of a node [W]."""
        question = self.question
        by_energy = question.objective == "energy_j"
        return caps_w(self.job.machine, question.power, question.search.power_cap_w, by_energy=by_energy)

    @property
    def given_cap_w(self) -> float:
        """Cap of the plan given, or the highest that is allowed [W]."""
        given = self.question.plan.power_cap_w if self.question.plan is not None else None
        return allowed_w(self.job.machine, self.question.power) if given is None else given

    def held_to(self, cap_w: float) -> TrainScenario:
        """Return the question with accelerators held to a power [W]."""
        machine = held_to(self.job.machine, cap_w)
        kernels = kernels_of(machine.accelerator, tuple(self.job.kernels))
        return replace(self, job=replace(self.job, machine=machine, kernels=kernels))


def load_train(source: Source, base_dir: FilePath) -> TrainScenario:
    """Check a training scenario.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    TrainScenario
        The question with everything it names looked up.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    faults: list[Fault] = []
    question: TrainQuestion | None = None
    with collected(faults):
        question = validated(TrainQuestion, source)
    data = source.data if isinstance(source.data, Mapping) else {}
    machine: Machine | None = None
    architecture: Architecture | None = None
    if isinstance(data.get("cluster"), str | Mapping):
        nodes = data.get("nodes")
        count = nodes if isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0 else None
        with collected(faults):
            machine = resolve_cluster(data["cluster"], base_dir, count, source=source, at=("cluster",))
    if isinstance(data.get("model"), str | Mapping):
        with collected(faults):
            architecture = trainable(load_architecture(data["model"], base_dir, source, ("model",)), source)
    framework = frameworks().get(str(data.get("framework", "megatron-lm")))
    if framework is None:
        message = f"unknown framework; {did_you_mean(data['framework'], frameworks())} [got {data['framework']!r}]"
        faults.append(source.fault(("framework",), message))
    if faults or question is None or machine is None or architecture is None or framework is None:
        raise InputError(sorted(set(faults), key=lambda fault: (fault.source, fault.line, fault.column)))

    ranks = machine.nodes * machine.node.accelerators.count
    workload = question.workload
    if architecture.learned_positions and workload.seq_len > architecture.learned_positions:
        message = f"{architecture.name} has {architecture.learned_positions} learned positions [got {workload.seq_len}]"
        faults.append(source.fault(("workload", "seq_len"), message))
    try:
        found = job(
            architecture,
            machine,
            ranks=ranks,
            seq_len=workload.seq_len,
            global_batch=workload.global_batch,
            precision=workload.precision,
            framework=framework,
        )
    except ValueError as error:
        raise InputError([*faults, source.fault(("workload", "precision"), str(error))]) from None
    except UnknownName:
        message = unknown_family(machine.accelerator.architecture)
        raise InputError([*faults, source.fault(("cluster",), f"{machine.accelerator.name}: {message}")]) from None
    faults += _objective_faults(question, machine, source)
    caps = [(("search", "power_cap_w", number), cap) for number, cap in enumerate(question.search.power_cap_w or ())]
    for path, cap in caps:
        faults += [source.fault(path, each) for each in cap_faults(machine, question.power, cap, planned=False)]
    if question.plan is not None and question.plan.power_cap_w is not None:
        messages = cap_faults(machine, question.power, question.plan.power_cap_w, planned=True)
        faults += [source.fault(("plan", "power_cap_w"), each) for each in messages]
    given = None
    if question.plan is not None:
        row = plan_row(question.plan, ranks)
        given = plan_from_rows([row])
        faults += [source.fault(("plan", *path), message) for path, message in plan_faults(found, row)]
    if faults:
        raise InputError(faults)
    return TrainScenario(question, found, source, _resolved(question, source, base_dir, machine), given)


def _objective_faults(question: TrainQuestion, machine: Machine, source: Source) -> list[Fault]:
    faults = []
    if question.objective in ("training_days", "cost_usd") and question.workload.tokens is None:
        faults.append(source.fault(("objective",), f"{question.objective} needs workload.tokens"))
    if question.objective == "cost_usd" and usd_per_hour(machine) is None:
        message = f"cost_usd needs a price, and neither {machine.node.name} nor {machine.accelerator.name} has one"
        faults.append(source.fault(("objective",), message))
    return faults


def usd_per_hour(machine: Machine) -> float | None:
    """Return what the job's nodes cost on demand [USD/h], by the node's price or its accelerators', or None."""
    node, accelerator = machine.node, machine.accelerator
    if node.price is not None and node.price.on_demand is not None:
        return node.price.on_demand * machine.nodes
    if accelerator.price is not None and accelerator.price.on_demand is not None:
        return accelerator.price.on_demand * node.accelerators.count * machine.nodes
    return None


def plan_row(plan: TrainPlan, ranks: int) -> dict[str, Any]:
    """Return a plan by public names with its data-parallel size: what is left of the ranks where it does not say."""
    row = dict(DEFAULTS) | plan.model_dump()
    if row["dp"] is None:
        row["dp"] = max(ranks // (plan.tp * plan.pp * plan.cp), 1)
    return {name: row[name] for name in FIELDS}


def plan_faults(found: Job, row: Mapping[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """Return what keeps a plan from running, as (path below the plan, message).

    Parameters
    ----------
    found : Job
        The job.
    row : mapping
        The plan by public names.
    """
    faults: list[tuple[tuple[str, ...], str]] = []
    architecture = found.architecture
    tp, pp, cp, dp, ep, vpp, micro = (row[name] for name in ("tp", "pp", "cp", "dp", "ep", "vpp", "micro_batch"))
    product = tp * pp * cp * dp
    if product != found.ranks:
        faults.append(
            (
                (),
                f"tp x pp x cp x dp = {tp} x {pp} x {cp} x {dp} = {product}, "
                f"but the cluster has {found.ranks} accelerators",
            )
        )
    if found.global_batch % (dp * micro):
        faults.append(
            (
                ("micro_batch",),
                f"dp x micro_batch = {dp * micro} does not divide the global batch of {found.global_batch}",
            )
        )
    elif vpp > 1 and (found.global_batch // (dp * micro)) % pp:
        count = found.global_batch // (dp * micro)
        faults.append((("vpp",), f"interleaving needs a number of micro-batches that pp = {pp} divides [got {count}]"))
    heads = min(group.attention.heads for group in architecture.layers)
    if heads % tp:
        faults.append((("tp",), f"does not divide the {heads} attention heads [got {tp}]"))
    if found.seq_len % cp:
        faults.append((("cp",), f"does not divide the sequence of {found.seq_len} tokens [got {cp}]"))
    if row["cp_style"] == "ulysses" and heads % (tp * cp):
        faults.append(
            (
                ("cp_style",),
                f"ulysses deals {heads} heads out over tp x cp = {tp * cp} ranks, which does not divide them",
            )
        )
    if not np.all(splits(architecture.depth, np.asarray(pp), np.asarray(vpp))):
        faults.append((("pp",), f"{architecture.depth} layers do not spread over {pp} stages of {vpp} chunks"))
    if vpp > 1 and pp == 1:
        faults.append((("vpp",), "interleaving needs more than one stage"))
    experts = max(group.feed_forward.experts for group in architecture.layers)
    if ep > 1 and (not experts or experts % ep or (tp * cp * dp) % ep):
        faults.append(
            (("ep",), f"must divide the {experts} experts and the {tp * cp * dp} ranks of a stage [got {ep}]")
        )
    if row["seq_parallel"] and tp == 1:
        faults.append((("seq_parallel",), "sequence parallelism needs tp > 1"))
    if experts and tp > 1 and not row["seq_parallel"]:
        faults.append((("seq_parallel",), "a mixture of experts needs sequence parallelism beside tensor parallelism"))
    if row["overlap_tp"] and not row["seq_parallel"]:
        faults.append((("overlap_tp",), "overlapping tensor-parallel traffic needs sequence parallelism"))
    if row["offload"] != "none" and not any(tier.name == "ddr" for tier in found.machine.node.tiers):
        faults.append((("offload",), f"{found.machine.node.name} describes no tier named ddr"))
    return faults


def _resolved(question: TrainQuestion, source: Source, base_dir: FilePath, machine: Machine) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    written["cluster"] = description(machine)
    written["nodes"] = machine.nodes
    if isinstance(question.model, str) and (base_dir / question.model).exists():
        from hardware.catalogue import read_file

        path = base_dir / question.model
        written["model"] = read_file(path / "config.json" if path.is_dir() else path).data
    return written


def train_schema() -> dict[str, Any]:
    """Return the JSON Schema of a training scenario."""
    return TrainQuestion.model_json_schema()
