"""What a hardware file may say: accelerators, nodes, clusters and measured efficiency.

Every quantity is a number in SI units or a text with a unit. ``python -m hardware.schema`` writes the JSON Schemas
that editors use to ``hardware/schemas``.
"""

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema

from hardware.efficiency import DecodeParameters, GemmParameters, MemoryParameters, MoeParameters, PrefillParameters
from hardware.faults import KeyFaultsError, Path
from hardware.provenance import Date, Description, Recorded, Text
from hardware.provenance import Provenance as Provenance
from hardware.units import (
    BytesPerSecond,
    FlopPerSecond,
    Hertz,
    PositiveBytes,
    Seconds,
    UsdPerHour,
    Watts,
    format_quantity,
)
from hardware.yaml_source import did_you_mean

Count = Annotated[int, Field(strict=True, ge=1)]
Ratio = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]

Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4"]
LinkType = Literal["nvswitch", "nvlink-mesh", "nvlink-c2c", "xgmi", "pcie", "ici", "ethernet"]
Protocol = Literal["infiniband", "roce", "efa", "slingshot", "ethernet", "ici"]
FabricType = Literal["leaf-spine", "rail-optimised", "fat-tree", "dragonfly", "torus", "nvlink-domain", "edges"]

PCIE_BYTES_PER_S_PER_LANE: Mapping[int, float] = {
    1: 2.5e9 / 8 * 8 / 10,
    2: 5e9 / 8 * 8 / 10,
    3: 8e9 / 8 * 128 / 130,
    4: 16e9 / 8 * 128 / 130,
    5: 32e9 / 8 * 128 / 130,
    6: 64e9 / 8 * 242 / 256,
}
"""PCI Express generation -> bytes/s of one lane in one direction: transfer rate times the share of the line code or,
from generation 6, of the flit (PCI Express Base Specifications 2.1, 5.0 and 6.0)."""


class Memory(Description):
    """The accelerator's own memory."""

    capacity: PositiveBytes
    """Size of the memory, such as 80 GiB."""
    bandwidth: BytesPerSecond
    """Peak rate of reads or writes, such as 3.35 TB/s."""


class AcceleratorPower(Description):
    """What one accelerator draws."""

    limit: Watts
    """Highest sustained power (TDP or TGP), such as 700 W."""
    idle: Watts | None = None
    """Power without work, such as 72 W."""


class Price(Description):
    """What renting costs, per hour of the whole thing described."""

    on_demand: UsdPerHour | None = None
    """Price without commitment, such as 3.0 USD/h."""
    reserved: UsdPerHour | None = None
    """Price with a commitment of a year."""
    spot: UsdPerHour | None = None
    """Price of capacity that may be taken away."""
    region: str | None = None
    """Where the price holds."""
    date: Date | None = None
    """When the price was read: YYYY-MM or YYYY-MM-DD."""
    source: str | None = None
    """Where the price was read."""


class OperatorEfficiency(Description):
    """How close one class of kernels comes to the roofline."""

    launch: Seconds
    """Fixed time of one kernel, such as 3 us."""
    compute: Fraction
    """Share of the peak rate of arithmetic that large kernels reach."""
    memory: Fraction
    """Share of the peak memory bandwidth that large kernels reach."""
    spread: Annotated[float, Field(strict=True, ge=0)]
    """Standard deviation of ln(measured/predicted)."""


# The models know their parameters and check them; an editor is told that they are numbers.
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
_VARIANTS = WithJsonSchema({"type": "object", "additionalProperties": _NUMBERS})


class KernelEfficiency(Description):
    """Parameters of the kernel models, by variant: a type such as bf16, or a kernel library's form of it."""

    gemm: Annotated[dict[Text, GemmParameters], _VARIANTS] = Field(default_factory=dict)
    """Matrix products."""
    prefill: Annotated[dict[Text, PrefillParameters], _VARIANTS] = Field(default_factory=dict)
    """Causal attention over new tokens."""
    decode: Annotated[dict[Text, DecodeParameters], _VARIANTS] = Field(default_factory=dict)
    """Attention of one new token a sequence against its cache."""
    moe: Annotated[dict[Text, MoeParameters], _VARIANTS] = Field(default_factory=dict)
    """Fused expert networks."""
    memory: Annotated[dict[Text, MemoryParameters], _VARIANTS] = Field(default_factory=dict)
    """Kernels that only move memory, copies among them."""


class Efficiency(Recorded):
    """Measured efficiency by class of kernel."""

    gemm: OperatorEfficiency | None = None
    """Matrix products in 16-bit formats."""
    gemm_fp8: OperatorEfficiency | None = None
    """Matrix products in 8-bit formats."""
    gemm_fp4: OperatorEfficiency | None = None
    """Matrix products in 4-bit formats."""
    attention: OperatorEfficiency | None = None
    """Attention, forward."""
    attention_backward: OperatorEfficiency | None = None
    """Attention, backward."""
    moe: OperatorEfficiency | None = None
    """Grouped matrix products of experts."""
    elementwise: OperatorEfficiency | None = None
    """Norms, activations, additions, copies."""
    kernels: KernelEfficiency | None = None
    """Parameters of the kernel models, before those of the family."""


class EfficiencyFamily(Description):
    """Efficiency shared by the accelerators of one architecture."""

    kind: Literal["efficiency"] = "efficiency"
    """What the file describes."""
    name: Text
    """The architecture the numbers hold for, as in an accelerator's architecture."""
    inherits: Text | None = None
    """Architecture whose numbers stand in for those that are missing here."""
    widen: Annotated[float, Field(strict=True, ge=0)] = 0.0
    """Added in quadrature to the spread of inherited numbers."""
    reference: Text | None = None
    """Accelerator the numbers were measured on; one of less power per peak arithmetic keeps a smaller share of its
    peak."""
    operators: Efficiency
    """Efficiency by class of kernel."""


class Accelerator(Recorded):
    """What one rank drives: one GPU, one GCD of an MI250X, one TPU chip."""

    kind: Literal["accelerator"] = "accelerator"
    """What the file describes."""
    name: Text
    """Name in the catalogue, such as h100-80gb-sxm."""
    aliases: tuple[Text, ...] = ()
    """Other names it is found by."""
    vendor: Text
    """Maker, such as nvidia."""
    architecture: Text
    """Family, such as hopper; it inherits the family's efficiency."""
    peak: dict[Dtype, FlopPerSecond] = Field(min_length=1)
    """Dense peak rate of arithmetic by number format, such as {bf16: 989 TFLOP/s}."""
    memory: Memory
    """HBM or GDDR: {capacity: 80 GiB, bandwidth: 3.35 TB/s}."""
    l2: PositiveBytes | None = None
    """Size of the last-level cache, such as 50 MiB."""
    units: Count
    """Parallel processors: SMs, CUs, tensor cores."""
    clock: Hertz
    """Highest clock, such as 1.83 GHz."""
    power: AcceleratorPower
    """What it draws."""
    price: Price | None = None
    """What one accelerator costs per hour."""
    efficiency: Efficiency | None = None
    """Measured efficiency of this accelerator, before its family's."""
    notes: str = ""
    """Anything else worth knowing."""


class Link(Description):
    """A link between the accelerators of a node, or from them to the host."""

    name: Text
    """Name that tiers and messages use."""
    type: LinkType
    """What the link is."""
    bandwidth: BytesPerSecond | None = None
    """Rate of one accelerator in one direction, such as 450 GB/s; PCI Express follows from generation and lanes."""
    latency: Seconds | None = None
    """Time of an empty message, such as 1 us; a documented default of the type if left out."""
    generation: Annotated[int, Field(strict=True, ge=1, le=max(PCIE_BYTES_PER_S_PER_LANE))] | None = None
    """Generation of PCI Express."""
    lanes: Count | None = None
    """Lanes of PCI Express."""
    shared_by: Count = 1
    """How many accelerators share the stated bandwidth."""
    group: Count | None = None
    """How many consecutive accelerators the link joins; all of the node if left out."""

    @model_validator(mode="after")
    def _bandwidth_follows(self) -> Self:
        if self.generation is None or self.lanes is None:
            if self.bandwidth is None:
                needs = "give bandwidth, or generation and lanes" if self.type == "pcie" else "give bandwidth"
                raise KeyFaultsError((("bandwidth",), f"missing; {needs}"))
            return self
        rate = PCIE_BYTES_PER_S_PER_LANE[self.generation] * self.lanes
        if self.type != "pcie":
            raise KeyFaultsError(
                (("generation",), f"only a link of type pcie has a generation and lanes, not {self.type}")
            )
        if self.bandwidth is None:
            # The object is frozen for its users; here it is still being made.
            self.__dict__["bandwidth"] = rate
        elif self.bandwidth > rate * 1.01:
            said, most = (format_quantity(value, "bytes/s") for value in (self.bandwidth, rate))
            message = f"{said} contradicts generation {self.generation} with {self.lanes} lanes, at most {most}"
            raise KeyFaultsError((("bandwidth",), message))
        return self


class Nics(Description):
    """The node's network adapters for traffic between accelerators."""

    count: Count
    """Adapter ports of the node."""
    bandwidth: BytesPerSecond
    """Rate of one port in one direction, such as 400 Gbit/s."""
    affinity: Literal["one-per-accelerator", "shared"] = "one-per-accelerator"
    """Whether every accelerator has a port of its own."""
    protocol: Protocol = "infiniband"
    """Protocol of the network."""


class Tier(Description):
    """Memory beyond the accelerator's own: host memory, CXL, flash, remote."""

    name: Text
    """Name of the tier, such as ddr, cxl, nvme."""
    capacity: PositiveBytes
    """Size of one device, such as 2 TiB."""
    count: Count = 1
    """Devices in the node."""
    read: BytesPerSecond
    """Rate of reads of one device, such as 300 GB/s."""
    write: BytesPerSecond
    """Rate of writes of one device, such as 300 GB/s."""
    latency: Seconds
    """Time of an empty read, such as 90 ns."""
    link: Text
    """Name of the node's link through which accelerators reach it."""
    shared_by: Count = 1
    """How many accelerators share one device."""


class NodePower(Description):
    """What a node draws."""

    limit: Watts | None = None
    """Highest power of the whole node, such as 10.2 kW."""
    idle: Watts | None = None
    """Power of the whole node without work, such as 2.8 kW."""
    host: Watts | None = None
    """Power of all but the accelerators under load, such as 1.2 kW."""


def _name_or_description(value: object) -> str:
    # In brackets, so that no key of a file is taken for one of these.
    return "(description)" if isinstance(value, Mapping | BaseModel) else "(name)"


class NodeAccelerators(Description):
    """The accelerators of a node."""

    type: Annotated[
        Annotated[Text, Tag("(name)")] | Annotated[Accelerator, Tag("(description)")],
        Discriminator(_name_or_description),
    ]
    """Name in the catalogue, or the description itself."""
    count: Count
    """How many the node holds."""


class Node(Recorded):
    """A server: accelerators that share a fast interconnect and a host."""

    kind: Literal["node"] = "node"
    """What the file describes."""
    name: Text
    """Name in the catalogue, such as dgx-h100."""
    aliases: tuple[Text, ...] = ()
    """Other names it is found by."""
    accelerators: NodeAccelerators
    """Which accelerators, and how many."""
    links: tuple[Link, ...] = ()
    """Links inside the node."""
    nics: Nics | None = None
    """Network adapters; a node without cannot be part of a larger cluster."""
    tiers: tuple[Tier, ...] = ()
    """Memory beyond the accelerators' own."""
    power: NodePower | None = None
    """What the node draws."""
    price: Price | None = None
    """What one node costs per hour."""
    notes: str = ""
    """Anything else worth knowing."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        faults: list[tuple[Path, str]] = []
        names = [link.name for link in self.links]
        for index, name in enumerate(names):
            if name in names[:index]:
                faults.append((("links", index, "name"), f'"{name}" is the name of an earlier link; choose another'))
        for index, link in enumerate(self.links):
            for key in ("group", "shared_by"):
                if (getattr(link, key) or 1) > self.accelerators.count:
                    message = f"{getattr(link, key)} is more than the node's {self.accelerators.count} accelerators"
                    faults.append((("links", index, key), message))
        for index, tier in enumerate(self.tiers):
            if tier.link not in names:
                message = f'no link "{tier.link}" in this node; {did_you_mean(tier.link, names)}'
                faults.append((("tiers", index, "link"), message))
        joins = [
            link for link in self.links if link.type != "nvlink-c2c" and link.group in (None, self.accelerators.count)
        ]
        if self.accelerators.count > 1 and not joins:
            message = f"no link joins the node's {self.accelerators.count} accelerators; give one without group"
            faults.append((("links",), message))
        if faults:
            raise KeyFaultsError(*faults)
        return self


class Edge(Description):
    """A link of a network of any shape."""

    a: Text
    """One end: host0, host1, ... are the nodes, any other name is a switch."""
    b: Text
    """The other end."""
    bandwidth: BytesPerSecond
    """Rate in each direction, such as 400 Gbit/s."""
    latency: Seconds = 0.0
    """Time on the way beyond that of the switches, such as 20 ms of a line between two sites."""


def _path_or_edges(value: object) -> str:
    return "(path)" if isinstance(value, str) else "(edges)"


class Fabric(Description):
    """The network between nodes. What is left out follows from the rest; a contradiction is an error."""

    type: FabricType
    """Shape of the network."""
    hosts_per_leaf: Count | None = None
    """leaf-spine, rail-optimised, fat-tree: nodes below one leaf switch; half of the radix if left out."""
    leaves: Count | None = None
    """leaf-spine, rail-optimised, fat-tree: leaf switches in all."""
    spines: Count | None = None
    """leaf-spine, rail-optimised, fat-tree: spine switches in all."""
    cores: Count | None = None
    """fat-tree, large rail-optimised: core switches in all."""
    rails: Count | None = None
    """How many leaf switches each node's ports are spread over: all ports for rail-optimised, else 1."""
    radix: Count | None = None
    """Ports of one switch, each with the rate of link; 64 if left out."""
    uplinks: Count | None = None
    """Cables from one leaf to all its spines together."""
    link: BytesPerSecond | None = None
    """Rate of one cable between switches in one direction, such as 400 Gbit/s; that of a port of the node if left out.
    torus: rate of one link between neighbours."""
    oversubscription: Ratio | None = None
    """Rate of the nodes below a leaf over the rate of its uplinks; 1 if left out and nothing else says it."""
    core_oversubscription: Ratio = 1.0
    """Third level: rate into a spine from below over the rate of its cables to the core."""
    hosts_per_group: Count | None = None
    """dragonfly: nodes of one group; nvlink-domain: nodes of one domain. All nodes if left out."""
    taper: Fraction = 1.0
    """dragonfly: rate between groups over the rate at which their nodes can inject."""
    dims: tuple[Count, ...] | None = None
    """torus: accelerators along each dimension."""
    edges: (
        Annotated[
            Annotated[Text, Tag("(path)")] | Annotated[tuple[Edge, ...], Tag("(edges)")], Discriminator(_path_or_edges)
        ]
        | None
    ) = None
    """edges: the links, or the path of a CSV with the columns a, b, bandwidth and perhaps latency; nodes are called
    host0, host1, ..."""
    switch_latency: Seconds | None = None
    """Time through one switch, such as 100 ns; a documented default of the protocol if left out."""
    failed: tuple[Text, ...] = ()
    """What is broken: leaf0-spine3 for all cables between the two, spine3 for a whole switch."""
    overrides: dict[Text, BytesPerSecond] = Field(default_factory=dict)
    """Links of another rate than the rest, in one direction, such as {leaf0-spine3: 200 Gbit/s}: that of all cables
    between the two together."""

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> Self:
        clos = {
            "hosts_per_leaf", "leaves", "spines", "rails", "radix", "uplinks", "link", "oversubscription",
        }  # fmt: skip
        allowed = {
            "leaf-spine": clos,
            "rail-optimised": clos | {"cores", "core_oversubscription"},
            "fat-tree": clos | {"cores", "core_oversubscription"},
            "dragonfly": {"hosts_per_group", "taper"},
            "torus": {"dims", "link"},
            "nvlink-domain": {"hosts_per_group", "link", "oversubscription"},
            "edges": {"edges"},
        }[self.type] | {"type", "switch_latency", "failed", "overrides"}
        faults: list[tuple[Path, str]] = [
            ((key,), f"has no meaning for a fabric of type {self.type}; allowed: {', '.join(sorted(allowed))}")
            for key in sorted(self.model_fields_set - allowed)
            if getattr(self, key) != type(self).model_fields[key].default
        ]
        needed = {"torus": "dims", "edges": "edges"}.get(self.type)
        if needed and getattr(self, needed) is None:
            faults.append(((needed,), f"missing; a fabric of type {self.type} needs it"))
        if faults:
            raise KeyFaultsError(*faults)
        return self


class Cluster(Recorded):
    """Nodes on a network."""

    kind: Literal["cluster"] = "cluster"
    """What the file describes."""
    name: Text = "unnamed"
    """Name in the catalogue."""
    aliases: tuple[Text, ...] = ()
    """Other names it is found by."""
    node: Annotated[
        Annotated[Text, Tag("(name)")] | Annotated[Node, Tag("(description)")], Discriminator(_name_or_description)
    ]
    """Name of a node in the catalogue, path of its file, or the description itself."""
    nodes: Count
    """Nodes of the whole cluster."""
    fabric: Fabric = Fabric(type="rail-optimised")
    """The network between the nodes; rail-optimised without oversubscription if left out."""
    bandwidth: Text | None = None
    """What was measured between its nodes: the path of a CSV, or its text; the header and the first column name the
    nodes in the order of host0, host1, ..., cells are GB/s and the row sends."""
    price: Price | None = None
    """What the whole cluster costs per hour."""
    notes: str = ""
    """Anything else worth knowing."""


MODELS: Mapping[str, type[Description]] = {
    "accelerator": Accelerator,
    "node": Node,
    "cluster": Cluster,
    "efficiency": EfficiencyFamily,
}
"""Kind of hardware file -> the model that checks it."""


def json_schema(name: str) -> dict[str, Any]:
    """Write the JSON Schema of a kind of hardware file.

    Parameters
    ----------
    name
        ``accelerator``, ``node``, ``cluster`` or ``efficiency``.

    Returns
    -------
    dict
        A schema in which a quantity is a number or a text with a unit.

    Raises
    ------
    KeyError
        There is no such kind.
    """
    schema = MODELS[name].model_json_schema()
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"{name}.schema.json", **schema}


def write_schemas(directory: FilePath) -> None:
    """Write the JSON Schemas of all kinds of hardware file.

    Parameters
    ----------
    directory
        Where to write ``<kind>.schema.json``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        text = json.dumps(json_schema(name), indent=2, ensure_ascii=False) + "\n"
        (directory / f"{name}.schema.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_schemas(FilePath(__file__).parent / "schemas")
