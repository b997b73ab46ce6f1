"""The question how to scatter unequal sequences over sequence-parallel groups: lengths and costs, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.sequence.plan(solvers.sequence_scenario.load_sequence(source, Path(".")))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag

from hardware.catalogue import Machine, UnknownName, description, read_file, resolve_cluster, unknown_family
from hardware.faults import Fault, InputError, collected
from hardware.topology import levels
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture, trainable
from perfmodel.framework import frameworks
from perfmodel.job import Job, job
from perfmodel.sequence import (
    STYLES,
    AlphaBeta,
    SequenceCosts,
    Style,
    all_to_all_bandwidth,
    alpha_beta_costs,
    sequence_costs,
)
from perfmodel.sequence_remap import Remap, remap_costs
from perfmodel.training import host_rates
from solvers.sequence_case import Case, Integers, Scatter, Schedule
from solvers.sequence_given import SequencePlan, given_plan
from solvers.sequence_layout import nested
from solvers.sequence_lengths import drawn, lognormal, lognormal_faults, read_lengths
from solvers.sequence_remapped import REMAPPED
from solvers.sequence_unit import Index, NotNegative, SequenceLayout, Size, Strict, layout_faults, units_of

Amount = Annotated[float, Field(gt=0)]
SCHEDULES: tuple[Schedule, ...] = ("one-shot", "barrier", "fixed", "splits")


class SequenceDistribution(Strict):
    """Lengths drawn from a distribution."""

    distribution: Literal["lognormal"]
    """Kind of distribution."""
    median: Amount
    """Median length [tokens]."""
    sigma: NotNegative
    """Standard deviation of the logarithm."""
    max: Size
    """Longer ones are cut to this [tokens]."""
    min: Size = 1
    """Shorter ones are padded to this [tokens]."""
    count: Size
    """Sequences."""
    seed: Index = 0
    """Of numpy.random.default_rng."""


class SequenceHistogram(Strict):
    """Lengths with their counts."""

    histogram: dict[Size, Size] = Field(min_length=1)
    """Sequences of each length [tokens]."""


class SequenceDraw(Strict):
    """A batch drawn from a long list."""

    file: str
    """A CSV or Parquet file with a column tokens."""
    count: Size
    """Sequences of the batch."""
    seed: Index = 0
    """Of numpy.random.default_rng."""


def _form_of(value: Any) -> str:
    """Tell how lengths are given, so that a fault is told of that form alone."""
    if isinstance(value, Mapping):
        return next((f"of a {name}" for name in ("distribution", "histogram") if name in value), "of a file")
    return "of a list" if isinstance(value, list | tuple) else "of a text"


class SequenceWorkload(Strict):
    """What a batch computes."""

    lengths: Annotated[
        Annotated[str, Tag("of a text")]
        | Annotated[tuple[Size, ...], Tag("of a list")]
        | Annotated[SequenceDistribution, Tag("of a distribution")]
        | Annotated[SequenceHistogram, Tag("of a histogram")]
        | Annotated[SequenceDraw, Tag("of a file")],
        Discriminator(_form_of),
    ]
    """A CSV or Parquet file with a column tokens, a list, a histogram, a distribution, or a draw from a file."""
    precision: Literal["bf16", "fp16", "fp32", "fp8", "mxfp8", "nvfp4"] = "bf16"
    """Type of the matrix products."""


def _sizes_of(value: Any) -> str:
    """Tell how sizes are given, so that a fault is told of that form alone."""
    return "of a word" if isinstance(value, str) else "of a list"


class SequenceSearch(Strict):
    """What the planner may choose; a list left out means everything."""

    degrees: (
        Annotated[
            Annotated[tuple[Size, ...], Field(min_length=1), Tag("of a list")]
            | Annotated[Literal["any"], Tag("of a word")],
            Discriminator(_sizes_of),
        ]
        | None
    ) = None
    """Sizes of a group [units of tp x pp accelerators], or any; powers of two up to cluster or node if left out."""
    across_nodes: bool = True
    """Whether a group may be larger than a node."""
    remap: tuple[bool, ...] = Field((False,), min_length=1)
    """Whether tokens move to equal numbers for the linear layers; of one-shot and barrier."""
    styles: tuple[Style, ...] = Field(STYLES, min_length=1)
    """Ways to split a sequence over a group."""
    schedule: tuple[Schedule, ...] | None = Field(None, min_length=1)
    """Everything at once; micro-batches with a barrier; groups that accumulate on their own; the same, splitting."""


class SequenceFit(Strict):
    """Costs of FlexSP's form, instead of those of the models."""

    a1: NotNegative
    """Compute of a sequence, by its length squared [s/token^2]."""
    a2: NotNegative
    """Compute of a sequence, by its length [s/token]."""
    b1: NotNegative
    """Fixed time of a micro-step [s]."""
    a3: NotNegative
    """All-to-all traffic [bytes/token]."""
    b2: NotNegative
    """Fixed time of a micro-step's all-to-all [s]."""
    memory_per_token_bytes: Amount
    """Memory of a token [bytes]."""
    memory_state_bytes: NotNegative
    """Memory that does not depend on tokens [bytes]."""
    memory_bytes: Amount | None = None
    """Memory of an accelerator; the cluster's if left out [bytes]."""
    bandwidth: dict[Size, Amount] | None = None
    """Rate of an accelerator in the all-to-all of a group of each size; the cluster's where left out [bytes/s]."""


class SequenceQuestion(Strict):
    """How to scatter unequal sequences over groups of accelerators."""

    kind: Literal["sequence"]
    """Kind of question."""
    cluster: str | dict[str, Any]
    """A cluster or node of the catalogue, a path, or the description itself."""
    nodes: Size | None = None
    """Nodes to use; all of a cluster if left out."""
    model: str | dict[str, Any] | None = None
    """A bundled model, the path of a config.json, or its content; not needed where costs are given."""
    workload: SequenceWorkload
    """What is computed."""
    framework: str = "deepspeed"
    """Training framework: its kernels, memory and overheads."""
    layout: SequenceLayout = SequenceLayout()
    """What all groups share."""
    search: SequenceSearch = SequenceSearch()
    """What the planner may choose."""
    costs: SequenceFit | None = None
    """Costs of FlexSP's form, instead of those of the models."""
    plan: SequencePlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


@dataclass(frozen=True)
class SequenceScenario:
    """A checked question about unequal sequences.

    Parameters
    ----------
    question : SequenceQuestion
        As asked.
    lengths : array of int
        Tokens of every sequence.
    costs : SequenceCosts
        What they cost.
    machine : Machine
        Where they run.
    job : Job or None
        Of the models; None where costs are given.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with files and defaults written out; reading it again asks the same.
    given : Scatter or None
        The plan given.
    remap : Remap or None
        What moving tokens between attention and the linear layers costs; None where they stay.
    """

    question: SequenceQuestion
    lengths: Integers
    costs: SequenceCosts
    machine: Machine
    job: Job | None
    source: Source
    resolved: dict[str, Any]
    given: Scatter | None
    remap: Remap | None = None

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """Schedules allowed; all if nothing is said, but with sharded weights those in which all gather them together.

        Weights that are sharded over all accelerators (ZeRO-3) are gathered by all at a time, layer by layer, which
        groups that accumulate on their own do not do. A pipeline would drain whenever a group splits.
        """
        together = self.question.costs is None and self.question.layout.zero_stage >= 3
        allowed = SCHEDULES[:2] if together else SCHEDULES[:3] if self.question.layout.pp > 1 else SCHEDULES
        return self.question.search.schedule or allowed

    @property
    def case(self) -> Case:
        """What the planners take."""
        costs = self.costs
        units, node = units_of(self.machine.accelerators, self.machine.node.accelerators.count, costs.tp, costs.pp)
        return Case(
            self.lengths,
            costs.degrees,
            costs.of(self.lengths.astype(float)),
            costs.fixed_s,
            costs.capacity_tokens,
            units,
            node_units=None if nested(costs.degrees.tolist(), node) else node,
            held_tokens=None if costs.offload is None else costs.offload.held_tokens(self.lengths.astype(float)),
            stages=costs.pp,
            attention_s=None if self.remap is None else costs.attention_of(self.lengths.astype(float)),
            remap=self.remap,
        )

    def batch(self, lengths: Integers) -> SequenceScenario:
        """Return the same question about another batch, at no cost: what a data loader calls.

        Parameters
        ----------
        lengths : array of int
            Tokens of every sequence; one that no group holds makes the answer infeasible.
        """
        return replace(self, lengths=np.asarray(lengths, dtype=np.int64), given=None)


def any_sizes(most: int, node: int) -> tuple[int, ...]:
    """Return every size of a group up to a node, and whole nodes up to a size; where they are many, eight a doubling.

    Sizes between whole nodes are left to a list: their last node would have to be shared.
    """
    within = _thinned(min(node, most))
    return (*within, *(count * node for count in _thinned(most // node) if count > 1))


def _thinned(most: int) -> list[int]:
    """Return 1, 2, ... 16, then eight numbers a doubling, and the largest."""
    kept = [number for number in range(1, most + 1) if number % max(2 ** (number.bit_length() - 4), 1) == 0]
    return kept if not kept or kept[-1] == most else [*kept, most]


def load_sequence(source: Source, base_dir: FilePath) -> SequenceScenario:
    """Check a scenario about unequal sequences.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    SequenceScenario
        The question with everything it names read, and its costs.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    faults: list[Fault] = []
    question = validated(SequenceQuestion, source)
    machine: Machine | None = None
    architecture: Architecture | None = None
    lengths: Integers | None = None
    with collected(faults):
        machine = resolve_cluster(question.cluster, base_dir, question.nodes, source=source, at=("cluster",))
    if question.costs is None:
        if question.model is None:
            faults.append(source.fault(("model",), "missing; it is needed unless costs are given"))
        else:
            with collected(faults):
                architecture = trainable(load_architecture(question.model, base_dir, source, ("model",)), source)
    framework = frameworks().get(question.framework)
    if framework is None:
        message = f"unknown framework; {did_you_mean(question.framework, frameworks())} [got {question.framework!r}]"
        faults.append(source.fault(("framework",), message))
    with collected(faults):
        lengths = _lengths(question.workload, source, base_dir)
    if faults or machine is None or lengths is None or framework is None:
        raise InputError(faults)

    layout = question.layout
    wrong = layout_faults(layout, machine.accelerators, architecture, question.search.schedule or ())
    faults += [source.fault(at, message) for at, message in wrong]
    units, node = units_of(machine.accelerators, machine.node.accelerators.count, layout.tp, layout.pp)
    most = units if question.search.across_nodes else min(node, units)
    of_units = f" in units of {layout.tp * layout.pp}" if layout.tp * layout.pp > 1 else ""
    degrees = question.search.degrees
    if degrees is None or degrees == "any":
        sizes = any_sizes(most, node) if degrees else tuple(2**power for power in range(most.bit_length()))
    else:
        sizes = tuple(sorted(set(degrees)))
        for number, degree in enumerate(degrees):
            if degree > units and units:
                message = f"the cluster has {machine.accelerators} accelerators{of_units} [got {degree}]"
                faults.append(source.fault(("search", "degrees", number), message))
            elif degree > most:
                count = machine.node.accelerators.count
                message = f"a node has {count} accelerators{of_units}, and across_nodes is false [got {degree}]"
                faults.append(source.fault(("search", "degrees", number), message))
    if architecture and architecture.learned_positions and lengths.max() > architecture.learned_positions:
        message = (
            f"{architecture.name} has {architecture.learned_positions} learned positions "
            f"[got a sequence of {lengths.max()}]"
        )
        faults.append(source.fault(("model",), message))
    if faults:
        raise InputError(faults)
    found: Job | None = None
    if question.costs is not None:
        costs = _fitted(question.costs, machine, sizes)
    else:
        assert architecture is not None
        try:
            found = job(
                architecture,
                machine,
                ranks=machine.accelerators,
                seq_len=int(lengths.max()),
                global_batch=machine.accelerators,
                precision=question.workload.precision,
                framework=framework,
            )
        except ValueError as error:
            raise InputError([source.fault(("workload", "precision"), str(error))]) from None
        except UnknownName:
            message = unknown_family(machine.accelerator.architecture)
            raise InputError([source.fault(("cluster",), f"{machine.accelerator.name}: {message}")]) from None
        offloads = question.layout.offload == "activations"
        if offloads:
            try:
                host_rates(found)
            except ValueError as error:
                raise InputError([source.fault(("layout", "offload"), str(error))]) from None
        costs = sequence_costs(
            found, sizes, question.search.styles, question.layout.fields, offload_activations=offloads
        )
        if not len(costs.degrees):
            heads = min(group.attention.heads for group in architecture.layers) // question.layout.tp
            why = {
                "ulysses": f"ulysses deals {heads} heads out, which divide over none of them",
                "all-gather": "all-gather would need memory for the keys and values of the group",
            }
            said = "; ".join(why[style] for style in question.search.styles)
            message = f"no style runs on any of the degrees {', '.join(map(str, sizes))}: {said}"
            raise InputError([source.fault(("search", "degrees"), message)])
    given = given_plan(question.plan, lengths, costs, machine, source) if question.plan is not None else None
    resolved = _resolved(question, base_dir, machine, lengths, sizes)
    moving = (True in question.search.remap) or (given is not None and given.remapped)
    remap = remap_costs(found, question.layout.recompute) if moving and found is not None else None
    scenario = SequenceScenario(question, lengths, costs, machine, found, source, resolved, given, remap)
    resolved["search"]["schedule"] = list(scenario.schedules)
    wrong = _remap_faults(scenario)
    if wrong:
        raise InputError(source.fault(path, message) for path, message in wrong)
    return scenario


def _remap_faults(scenario: SequenceScenario) -> list[tuple[tuple[str | int, ...], str]]:
    """Say where tokens are to be remapped that cannot be."""
    search, given = scenario.question.search, scenario.given
    asked = [("search", "remap")] if True in search.remap else []
    asked += [("plan", "remap")] if given is not None and given.remapped else []
    if scenario.job is None:
        return [(path, "needs a model, not costs: what moves is as wide as its attention") for path in asked]
    if scenario.costs.tp * scenario.costs.pp > 1:
        return [(path, "needs tp = pp = 1: tokens move among accelerators that hold the whole model") for path in asked]
    if scenario.costs.offload is not None:
        said = "needs layout.offload: none: activations of tokens that move are spread over the cluster"
        return [(path, said) for path in asked]
    together = " or ".join(REMAPPED)
    wrong: list[tuple[tuple[str | int, ...], str]] = []
    if True in search.remap and not set(scenario.schedules) & set(REMAPPED):
        wrong.append((("search", "remap"), f"needs the schedule {together}, whose groups meet in every layer"))
    if given is not None and given.remapped and given.schedule not in REMAPPED:
        wrong.append((("plan", "remap"), f"needs the schedule {together} [got {given.schedule}]"))
    return wrong


def _lengths(workload: SequenceWorkload, source: Source, base_dir: FilePath) -> Integers:
    asked, at = workload.lengths, ("workload", "lengths")
    if isinstance(asked, str | SequenceDraw):
        name = asked if isinstance(asked, str) else asked.file
        path = base_dir / name
        if not path.is_file():
            key = at if isinstance(asked, str) else (*at, "file")
            raise InputError([source.fault(key, f"there is no file {path}")])
        if isinstance(asked, str):
            return read_lengths(path)
        return drawn(path, asked.count, asked.seed)
    if isinstance(asked, SequenceHistogram):
        return np.repeat(np.array(list(asked.histogram)), list(asked.histogram.values())).astype(np.int64)
    if isinstance(asked, SequenceDistribution):
        wrong = lognormal_faults(asked.median, asked.min, asked.max)
        if wrong:
            raise InputError([source.fault((*at, key), message) for key, message in wrong])
        return lognormal(asked.median, asked.sigma, asked.min, asked.max, asked.count, asked.seed)
    if not asked:
        raise InputError([source.fault(at, "there is no sequence in it")])
    return np.array(asked, dtype=np.int64)


def _fitted(fit: SequenceFit, machine: Machine, degrees: tuple[int, ...]) -> SequenceCosts:
    tower = levels(machine)
    rates = {degree: all_to_all_bandwidth(tower, degree) for degree in degrees if degree > 1} | (fit.bandwidth or {})
    form = AlphaBeta(fit.a1, fit.a2, fit.b1, fit.a3, fit.b2, rates)
    memory = fit.memory_bytes or machine.accelerator.memory.capacity
    return alpha_beta_costs(form, degrees, memory, fit.memory_state_bytes, fit.memory_per_token_bytes)


def _resolved(
    question: SequenceQuestion, base_dir: FilePath, machine: Machine, lengths: Integers, degrees: tuple[int, ...]
) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written: dict[str, Any] = question.model_dump(
        mode="json", exclude_none=True, exclude={"plan": True, "workload": {"lengths"}}
    )
    written["cluster"] = description(machine)
    written["nodes"] = machine.nodes
    written["search"]["degrees"] = list(degrees)
    written["workload"]["lengths"] = lengths.tolist()
    if isinstance(question.model, str) and (base_dir / question.model).exists():
        path = base_dir / question.model
        written["model"] = read_file(path / "config.json" if path.is_dir() else path).data
    return written


def sequence_schema() -> dict[str, Any]:
    """Return the JSON Schema of a scenario about unequal sequences."""
    return SequenceQuestion.model_json_schema()
