"""What a hardware file may say: accelerators, nodes, clusters, facilities and measured efficiency.

Every quantity is a number in SI units or a text with a unit. ``python -m hardware.schema`` writes the JSON Schemas
that editors use to ``hardware/schemas``.
"""

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic.json_schema import GenerateJsonSchema

from hardware.efficiency import (
    DecodeParameters,
    GemmParameters,
    MemoryParameters,
    MoeParameters,
    PowerParameters,
    PrefillParameters,
    ThrottleParameters,
)
from hardware.facility import Facility
from hardware.faults import KeyFaultsError, Path
from hardware.network import Collectives, Count, Nics, Numa
from hardware.network import Fabric as Fabric
from hardware.network import Link as Link
from hardware.network import LinkType as LinkType
from hardware.network import Protocol as Protocol
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
)
from hardware.yaml_source import did_you_mean

Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4"]


class Memory(Description):
    """The accelerator's own memory."""

    capacity: PositiveBytes
    """Size of the memory, such as 80 GiB."""
    bandwidth: BytesPerSecond
    """Peak rate of reads or writes, such as 3.35 TB/s."""


LOWEST_CAP = 0.4
"""Lowest limit over the highest, where nothing is said: the boards measured under caps go down to 0.38 (RTX 6000), 0.4
(V100) and 0.5 (P100), A100 to 0.25 (data of Zeus, NSDI 2023; POLCA, arXiv 2308.12908)."""


class AcceleratorPower(Description):
    """What one accelerator draws."""

    limit: Watts
    """Sustained power that it is held to: the TDP or TGP, such as 700 W, or a cap below."""
    idle: Watts | None = None
    """Power without work, such as 72 W."""
    highest: Watts | None = None
    """Highest limit that it can be held to, at which its rates hold; `limit` if left out."""
    lowest: Watts | None = None
    """Lowest limit that it can be held to; 0.4 of the highest if left out."""

    @property
    def most(self) -> float:
        """Highest limit that it can be held to [W]."""
        return self.limit if self.highest is None else self.highest

    @property
    def least(self) -> float:
        """Lowest limit that it can be held to [W]."""
        return LOWEST_CAP * self.most if self.lowest is None else self.lowest

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.limit > self.most:
            raise KeyFaultsError((("limit",), f"{self.limit:g} W is above the highest limit, {self.most:g} W"))
        if self.limit < self.least:
            message = f"{self.limit:g} W is below the lowest limit, {self.least:g} W; lowest says another"
            raise KeyFaultsError((("limit",), message))
        return self


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


# The models know their parameters and check them; an editor is told that they are numbers.
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
_VARIANTS = WithJsonSchema({"type": "object", "additionalProperties": _NUMBERS})


class Efficiency(Recorded):
    """An accelerator's own parameters, before those of its family.

    Those of kernel models by variant: a type such as bf16, or a kernel library's form of it.
    """

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
    power: PowerParameters | None = None
    """What it draws."""
    throttle: ThrottleParameters | None = None
    """How it meets a power cap."""


class EfficiencyFamily(Description):
    """Accelerators of one architecture, whose kernels have parameters in common (``hardware/catalog/kernels``)."""

    kind: Literal["efficiency"] = "efficiency"
    """What the file describes."""
    name: Text
    """The architecture, as in an accelerator's architecture."""
    inherits: Text | None = None
    """Architecture whose parameters stand in for those that are missing here."""
    widen: Annotated[float, Field(strict=True, ge=0)] = 0.0
    """Added in quadrature to the spread of inherited parameters."""
    reference: Text | None = None
    """Accelerator the kernels were measured on; one of less power per peak arithmetic keeps a smaller share of its
    peak."""


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
    """Name of the node's link through which accelerators reach it; nics for a remote pool."""
    shared_by: Count = 1
    """How many accelerators share one device."""
    via: Text | None = None
    """Name of the tier whose memory its data pass on their way to an accelerator, such as ddr; straight if left out."""
    attention: FlopPerSecond | None = None
    """Attention that a processor at one device computes over keys and values there, such as 12.3 GFLOP/s."""
    power: Watts | None = None
    """What one device draws in use."""
    price: Price | None = None
    """What one device costs per hour."""


class NodePower(Description):
    """What a node draws."""

    limit: Watts | None = None
    """Highest power of the whole node, such as 10.2 kW."""
    idle: Watts | None = None
    """Power of the whole node without work, such as 2.8 kW."""
    host: Watts | None = None
    """Power of all but the accelerators under load, such as 1.2 kW."""


class Processors(Description):
    """The processors of the host."""

    cores: Count
    """Cores of all together, such as 96."""
    lines_in_flight: Count
    """Cache lines of 64 bytes that a core waits for at once, such as 12."""


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
    numa: Numa | None = None
    """Processors of the host; one for all if left out."""
    processors: Processors | None = None
    """How fast the host's processors reach far memory; as fast as the memory is if left out."""
    collectives: Collectives | None = None
    """Measured latency of its host and constants of its links; the library's usual ones if left out."""
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
        faults += self._tier_faults([*names, "nics"] if self.nics else names)
        joins = [
            link for link in self.links if link.type != "nvlink-c2c" and link.group in (None, self.accelerators.count)
        ]
        if self.accelerators.count > 1 and not joins:
            message = f"no link joins the node's {self.accelerators.count} accelerators; give one without group"
            faults.append((("links",), message))
        for index, link in enumerate(self.links):
            faults += [
                (("links", index, *path), message) for path, message in link.pair_faults(self.accelerators.count)
            ]
        faults += self._place_faults()
        if faults:
            raise KeyFaultsError(*faults)
        return self

    def _tier_faults(self, links: list[str]) -> list[tuple[Path, str]]:
        """Find tiers that are reached over what is not there."""
        faults: list[tuple[Path, str]] = []
        names = [tier.name for tier in self.tiers]
        for index, tier in enumerate(self.tiers):
            if tier.link not in links:
                message = f'no link "{tier.link}" in this node; {did_you_mean(tier.link, links)}'
                faults.append((("tiers", index, "link"), message))
            if tier.name in names[:index]:
                message = f'"{tier.name}" is the name of an earlier tier; choose another'
                faults.append((("tiers", index, "name"), message))
            if tier.via is not None and tier.via not in names[:index]:
                message = f'no tier "{tier.via}" before this one; {did_you_mean(tier.via, names[:index])}'
                faults.append((("tiers", index, "via"), message))
            if tier.shared_by > self.accelerators.count:
                message = f"{tier.shared_by} is more than the node's {self.accelerators.count} accelerators"
                faults.append((("tiers", index, "shared_by"), message))
        return faults

    def _place_faults(self) -> list[tuple[Path, str]]:
        """Find lists of devices that do not fit their number."""
        count, ports = self.accelerators.count, self.nics.count if self.nics else 0
        faults: list[tuple[Path, str]] = []
        if self.nics and self.nics.nearest is not None:
            if len(self.nics.nearest) != ports:
                message = f"should have an item for each of the {ports} ports [got {len(self.nics.nearest)}]"
                faults.append((("nics", "nearest"), message))
            for index, near in enumerate(self.nics.nearest):
                if any(place >= count for place in near):
                    message = f"accelerators are numbered 0 to {count - 1} [got {list(near)}]"
                    faults.append((("nics", "nearest", index), message))
        if self.numa:
            for key, have, wanted in (
                ("accelerators", self.numa.accelerators, count), ("nics", self.numa.nics, ports),
            ):  # fmt: skip
                if have is not None and len(have) != wanted:
                    message = f"should have a number for each of the {wanted} {key} [got {len(have)}]"
                    faults.append((("numa", key), message))
        return faults


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
    "facility": Facility,
}
"""Kind of hardware file -> the model that checks it."""


def json_schema(name: str) -> dict[str, Any]:
    """Write the JSON Schema of a kind of hardware file.

    Parameters
    ----------
    name
        ``accelerator``, ``node``, ``cluster``, ``efficiency`` or ``facility``.

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
