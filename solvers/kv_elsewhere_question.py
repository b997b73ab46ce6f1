"""What a person writes about inference that is computed, in part, elsewhere, checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hardware.catalogue import Machine, description, read_file, resolve_cluster
from hardware.faults import Fault, InputError, collected
from hardware.tiers import TierPath, tier_paths
from hardware.units import Seconds, UsdPerHour
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.architecture import Architecture, load_architecture
from perfmodel.serving.engine import Engine, engine_of, engines
from perfmodel.serving.server import Server, server
from solvers.kv_question import CachePrecision, Share, Size, WeightPrecision

SENSES: dict[str, tuple[Literal["min", "max"], str]] = {
    "tokens_per_s": ("max", "1/s"),
    "cost_usd_per_million_tokens": ("min", "USD"),
    "tpot_mean_s": ("min", "s"),
}
"""Objective -> its sense and unit."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class AttentionElsewhere(_Strict):
    """Keys and values, and attention to them, on other devices."""

    cluster: str | dict[str, Any]
    """Node of those devices: a name, a path, or the description itself; its network adapters join it."""
    devices: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = (0, 1, 2, 4, 8)
    """How many; 0 leaves attention with the model."""
    turns: tuple[Size, ...] = (1, 2)
    """Batches that take turns between model and attention."""
    latency: Seconds
    """One way between the two, such as 16 us."""
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of their memory's bandwidth that attention reaches, where it was measured; as the decode kernels do if
    left out."""
    price: UsdPerHour | None = None
    """What one of the devices costs; its description's if left out."""


class ExpertsElsewhere(_Strict):
    """Experts that are kept in a tier and fetched when chosen."""

    tier: str
    """Where all of them are, such as ddr."""
    held: tuple[Share, ...] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    """Shares of the experts that accelerators keep."""
    skew: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Exponent of Zipf's law of how often experts are chosen; 0 for all alike."""
    foreseen: Share = 0.0
    """Share of the missing experts that is known ahead and fetched behind the rest of the step."""


class LayersElsewhere(_Strict):
    """Layers that are streamed through a window of memory."""

    tier: str
    """Where the weights are, such as nvme."""
    window: tuple[Size, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
    """Blocks in memory; attention and feed-forward part of a layer are one each."""


class Elsewhere(_Strict):
    """What is computed, or kept, elsewhere: one of these."""

    attention: AttentionElsewhere | None = None
    """Attention on memory-rich devices."""
    experts: ExpertsElsewhere | None = None
    """Experts fetched when chosen."""
    layers: LayersElsewhere | None = None
    """Layers streamed through a window."""

    @model_validator(mode="after")
    def _one(self) -> Elsewhere:
        if sum(part is not None for part in (self.attention, self.experts, self.layers)) != 1:
            raise ValueError("should say one of attention, experts and layers")
        return self


class ElsewhereLengths(_Strict):
    """Tokens of every sequence."""

    isl: Size
    """Tokens that come in."""
    osl: Annotated[int, Field(strict=True, ge=2)]
    """Tokens that go out."""


class ElsewhereWorkload(_Strict):
    """What is asked."""

    kind: Literal["serve"] = "serve"
    """What the model does."""
    arrivals: Literal["offline"] = "offline"
    """When requests come: enough of them at any time."""
    lengths: ElsewhereLengths
    """How long sequences are."""


class ElsewhereSearch(_Strict):
    """What may be chosen."""

    accelerators: tuple[Size, ...] | None = Field(None, min_length=1)
    """Accelerators with the model, as tensor-parallel ranks; all of the node if left out."""
    batch: tuple[Size, ...] = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
    """Sequences of a batch."""


class ElsewhereSlo(_Strict):
    """Limits."""

    tpot_mean: Seconds | None = None
    """Time between tokens of a sequence, such as 100 ms."""


class ElsewherePlan(_Strict):
    """A choice."""

    accelerators: Size
    """Accelerators with the model."""
    batch: Size
    """Sequences of a batch."""
    devices: Annotated[int, Field(strict=True, ge=0)] | None = None
    """Of attention: devices; 0 for none."""
    turns: Size | None = None
    """Of attention: batches that take turns."""
    held: Share | None = None
    """Of experts: share that is kept."""
    window: Size | None = None
    """Of layers: blocks in memory."""


class ElsewhereQuestion(_Strict):
    """Which part of inference is computed, or kept, elsewhere."""

    kind: Literal["kv"]
    """Kind of question."""
    cluster: str | dict[str, Any]
    """A node or cluster of the catalogue, a path, or the description itself; one node of it is used."""
    nodes: Literal[1] = 1
    """Nodes."""
    model: str | dict[str, Any]
    """A model of the catalogue, a path, or the description itself."""
    engine: str = "vllm"
    """What runs it: overheads of the host and memory that it takes."""
    workload: ElsewhereWorkload
    """What is asked."""
    elsewhere: Elsewhere
    """What may be elsewhere."""
    price: UsdPerHour | None = None
    """What one of the cluster's accelerators costs; its description's if left out."""
    precision_weights: WeightPrecision = "bf16"
    """Type of the weights."""
    precision_kv: CachePrecision = "bf16"
    """Type of keys and values."""
    search: ElsewhereSearch = ElsewhereSearch()
    """What may be chosen."""
    slo: ElsewhereSlo = ElsewhereSlo()
    """Limits."""
    objective: Literal["tokens_per_s", "cost_usd_per_million_tokens", "tpot_mean_s"] = "tokens_per_s"
    """What is optimised."""
    plan: ElsewherePlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


@dataclass(frozen=True)
class ElsewhereScenario:
    """A checked question.

    Parameters
    ----------
    question : ElsewhereQuestion
        As asked.
    server : Server
        Model, machine and engine.
    reader : Server or None
        The same on the devices that attend.
    path : TierPath or None
        The tier that experts or layers are in.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with defaults and hardware written out; reading it again asks the same.
    warnings : tuple of Fault
        What may not be meant as it stands.
    """

    question: ElsewhereQuestion
    server: Server
    reader: Server | None
    path: TierPath | None
    source: Source
    resolved: dict[str, Any]
    warnings: tuple[Fault, ...] = ()


def is_elsewhere(source: Source) -> bool:
    """Tell whether a question is about what is computed elsewhere."""
    return isinstance(source.data, dict) and "elsewhere" in source.data


def load_elsewhere(source: Source, base_dir: FilePath) -> ElsewhereScenario:
    """Check a scenario of what is computed elsewhere.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    question = validated(ElsewhereQuestion, source)
    faults: list[Fault] = []
    asked = question.elsewhere.attention
    machine = _machine(question.cluster, base_dir, source, ("cluster",), faults)
    other: Machine | None = None
    if asked is not None:
        other = _machine(asked.cluster, base_dir, source, ("elsewhere", "attention", "cluster"), faults)
    architecture: Architecture | None = None
    with collected(faults):
        architecture = load_architecture(question.model, base_dir, source, ("model",))
    engine = engine_of(question.engine)
    if engine is None:
        message = f"unknown engine; {did_you_mean(question.engine, engines())} [got {question.engine!r}]"
        faults.append(source.fault(("engine",), message))
    if machine is not None:
        wrongs = _faults(question, machine, other, architecture)
        faults += [source.fault(at, message) for at, message in wrongs]
    found: list[Server] = []
    if machine is not None and architecture is not None and engine is not None:
        for one in (machine, other):
            if one is not None:
                found += _server(question, architecture, one, engine, source, faults)
    if faults or machine is None:
        raise InputError(sorted(set(faults), key=lambda fault: (fault.source, fault.line, fault.column)))
    named = question.elsewhere.experts or question.elsewhere.layers
    path = next((path for path in tier_paths(machine.node) if named is not None and path.name == named.tier), None)
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan"})
    written["cluster"] = description(machine)
    if other is not None:
        written["elsewhere"]["attention"]["cluster"] = description(other)
    if isinstance(question.model, str) and (base_dir / question.model).exists():
        file = base_dir / question.model
        written["model"] = read_file(file / "config.json" if file.is_dir() else file).data
    return ElsewhereScenario(question, found[0], found[1] if other else None, path, source, written)


def _machine(
    named: str | dict[str, Any], base_dir: FilePath, source: Source, at: tuple[str, ...], faults: list[Fault]
) -> Machine | None:
    try:
        return resolve_cluster(named, base_dir, 1, source=source, at=at)
    except InputError as error:
        faults += error.faults
        return None


def _server(
    question: ElsewhereQuestion,
    architecture: Architecture,
    machine: Machine,
    engine: Engine,
    source: Source,
    faults: list[Fault],
) -> list[Server]:
    try:
        return [
            server(
                architecture,
                machine,
                engine,
                precision_weights=question.precision_weights,
                precision_kv=question.precision_kv,
            )
        ]
    except ValueError as error:
        faults.append(source.fault(("precision_weights",), str(error)))
        return []


_Found = tuple[tuple[str | int, ...], str]


def _faults(
    question: ElsewhereQuestion, machine: Machine, other: Machine | None, architecture: Architecture | None
) -> Iterator[_Found]:
    count, parts = machine.node.accelerators.count, question.elsewhere
    heads = min(layer.attention.heads for layer in architecture.layers) if architecture is not None else 1
    for number, size in enumerate(question.search.accelerators or ()):
        if size > count:
            yield ("search", "accelerators", number), f"the node has {count} [got {size}]"
        elif heads % size:
            yield ("search", "accelerators", number), f"does not divide the {heads} attention heads [got {size}]"
    if parts.attention is not None and other is not None:
        most = other.node.accelerators.count
        for number, devices in enumerate(parts.attention.devices):
            if devices > most:
                yield ("elsewhere", "attention", "devices", number), f"the node has {most} [got {devices}]"
        for at, one in ((("cluster",), machine), (("elsewhere", "attention", "cluster"), other)):
            if one.node.nics is None:
                yield at, f"{one.node.name} has no network adapters, so attention cannot be elsewhere"
        if architecture is not None and any(layer.attention.kind == "linear" for layer in architecture.layers):
            yield ("model",), "linear attention has a state and no cache that other devices could read"
        if question.objective == "cost_usd_per_million_tokens" and _price(other, parts.attention.price) is None:
            yield ("elsewhere", "attention", "price"), f"missing; neither {other.accelerator.name} has one"
    named = parts.experts or parts.layers
    if named is not None:
        key = "experts" if parts.experts is not None else "layers"
        tiers = [tier.name for tier in machine.node.tiers]
        if named.tier not in tiers:
            yield ("elsewhere", key, "tier"), f"no such tier; {did_you_mean(named.tier, tiers)} [got {named.tier!r}]"
    experts = architecture is not None and any(layer.feed_forward.experts for layer in architecture.layers)
    if parts.experts is not None and architecture is not None and not experts:
        yield ("model",), f"{architecture.name} has no experts"
    if question.objective == "cost_usd_per_million_tokens" and _price(machine, question.price) is None:
        yield ("objective",), f"cost_usd_per_million_tokens needs a price, and {machine.accelerator.name} has none"
    if question.plan is not None:
        wanted = {"attention": ("devices", "turns"), "experts": ("held",), "layers": ("window",)}
        for key, fields in wanted.items():
            for name in fields:
                given = getattr(question.plan, name) is not None
                if given != (getattr(parts, key) is not None):
                    yield ("plan", name), "missing" if not given else f"belongs to elsewhere.{key}"


def _price(machine: Machine, stated: float | None) -> float | None:
    """Return what an accelerator costs: as stated, as described, or its part of a node's price [USD/h]."""
    node, own = machine.node.price, machine.accelerator.price
    if stated is not None:
        return stated
    if own is not None and own.on_demand is not None:
        return own.on_demand
    return node.on_demand / machine.node.accelerators.count if node is not None and node.on_demand else None


def prices(scenario: ElsewhereScenario) -> tuple[float | None, float | None]:
    """Return what an accelerator with the model and a device that attends cost [USD/h]."""
    question, asked = scenario.question, scenario.question.elsewhere.attention
    there = None
    if asked is not None and scenario.reader is not None:
        there = _price(scenario.reader.machine, asked.price)
    return _price(scenario.server.machine, question.price), there
