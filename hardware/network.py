"""What a hardware file may say about links, adapters and networks."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from hardware.faults import KeyFaultsError, Path
from hardware.provenance import Description, Text
from hardware.units import BytesPerSecond, PositiveBytes, Seconds, format_quantity

Count = Annotated[int, Field(strict=True, ge=1)]
Place = Annotated[int, Field(strict=True, ge=0)]
Ratio = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]

Share = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

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
    pairs: dict[Text, BytesPerSecond] | None = None
    """nvlink-mesh, xgmi: rate in one direction between two accelerators, such as {0-1: 50 GB/s}; an equal share of
    bandwidth between any two if left out."""

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

    def pair_faults(self, count: int) -> list[tuple[Path, str]]:
        """Find pairs that are none of a node's accelerators, or that carry more than the link has [1]."""
        faults: list[tuple[Path, str]] = []
        if self.pairs and self.type not in ("nvlink-mesh", "xgmi"):
            faults.append((("pairs",), f"only a link of type nvlink-mesh or xgmi has pairs, not {self.type}"))
        sums: dict[int, float] = {}
        joined = list(range(count))
        for name, rate in (self.pairs or {}).items():
            ends = [int(end) if end.isascii() and end.isdigit() else count for end in name.split("-")]
            if len(set(ends)) != 2 or len(ends) != 2 or max(ends) >= count:
                message = f"should be two different accelerators of 0 to {count - 1}, such as 0-1"
                faults.append((("pairs", name), message))
            else:
                for end in ends:
                    sums[end] = sums.get(end, 0.0) + rate
                old, new = joined[ends[0]], joined[ends[1]]
                joined = [new if group == old else group for group in joined]
        most = (self.bandwidth or 0.0) * 1.01
        for end, rate in sums.items():
            if rate > most:
                told, have = (format_quantity(value, "bytes/s") for value in (rate, self.bandwidth or 0.0))
                faults.append((("pairs",), f"those of accelerator {end} are {told} together, but bandwidth is {have}"))
        size = self.group or count
        if self.pairs and not faults and any(joined.count(group) != size for group in joined):
            lone = next(index for index, group in enumerate(joined) if joined.count(group) != size)
            with_it = joined.count(joined[lone]) - 1
            message = f"should join the accelerators in groups of {size}, but {lone} is joined to {with_it} others"
            faults.append((("pairs",), message))
        return faults


class LinkConstants(Description):
    """How one type of link serves collectives, where a measurement says it; from ``perfmodel calibrate``.

    What the terms mean: docs/training.md, section 7.
    """

    step: Seconds | None = None
    """Latency of one step of an algorithm."""
    bandwidth: Fraction | None = None
    """Share of the nominal rate that large messages reach."""
    pipelining: Share | None = None
    """Wait of a chain of hops: c of L + X + c sqrt(L X)."""
    own_copy: Share | None = None
    """Time to copy a byte of a rank's own part over the time it takes on the link."""
    all_to_all: Fraction | None = None
    """Further factor on the bandwidth of an all-to-all."""
    exchange_steps: Share | None = None
    """Latency of an all-to-all at full rate, in steps."""
    peer_bandwidth: Share | None = None
    """Share of the rate that a small message to one peer gets."""
    in_network_all_reduce: Ratio | None = None
    """Factor on the all-reduce bandwidth where the switch adds."""
    spread: Share | None = None
    """Standard deviation of ln(measured/predicted)."""


class Collectives(Description):
    """How collectives run on a node's host and links, where a measurement says it."""

    latency: Seconds | None = None
    """Time of the smallest all-reduce over all accelerators of the node: the host and its software."""
    launch: Seconds | None = None
    """Time before the first step of a collective."""
    links: dict[LinkType | Protocol | Literal["nvswitch-ring"], LinkConstants] = Field(default_factory=dict)
    """Constants by type of link; nvswitch-ring is NVSwitch before Hopper."""


class Nics(Description):
    """The node's network adapters for traffic between accelerators."""

    count: Count
    """Adapter ports of the node."""
    bandwidth: BytesPerSecond
    """Rate of one port in one direction, such as 400 Gbit/s."""
    affinity: Literal["one-per-accelerator", "shared"] = "one-per-accelerator"
    """Whether every accelerator has a port of its own."""
    nearest: tuple[tuple[Place, ...], ...] | None = None
    """Numbers of the accelerators that are nearest to each port, such as [[0, 1], [2, 3]]; spread over them in their
    order if left out."""
    protocol: Protocol = "infiniband"
    """Protocol of the network."""


class Numa(Description):
    """Which processor of the host the devices of a node are attached to."""

    accelerators: tuple[Place, ...]
    """Number of the NUMA domain of each accelerator, such as [0, 0, 0, 0, 1, 1, 1, 1]."""
    nics: tuple[Place, ...] | None = None
    """Number of the domain of each port; that of the nearest accelerator if left out."""
    bandwidth: BytesPerSecond | None = None
    """Rate between two domains in one direction; no limit if left out."""


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


class Wan(Description):
    """Lines between sites, each of which is a network of its own; every two sites have one."""

    hosts_per_site: Count
    """Nodes of one site."""
    bandwidth: BytesPerSecond
    """Rate of the line between two sites in one direction, such as 100 Gbit/s."""
    latency: Seconds
    """Time on the line in one direction, such as 20 ms."""
    connections: Count | None = None
    """Connections that the traffic between two sites is spread over, where they limit it; with window."""
    window: PositiveBytes | None = None
    """Bytes of one connection on the way at most, such as 16 MiB."""

    @property
    def rate(self) -> float:
        """Rate between two sites in one direction [B/s]: each connection sends one window in a round trip at most."""
        if self.connections is None or self.window is None or not self.latency:
            return self.bandwidth
        return min(self.bandwidth, self.connections * self.window / (2 * self.latency))

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        for key, other in (("window", "connections"), ("connections", "window")):
            if getattr(self, key) is None and getattr(self, other) is not None:
                raise KeyFaultsError(((key,), f"missing; {other} needs it"))
        return self


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
    planes: Count | None = None
    """rail-optimised: groups of rails with spines of their own, where nothing joins the groups; 1 if left out."""
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
    wan: Wan | None = None
    """Lines between sites; what else stands here describes one site."""
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
            "rail-optimised": clos | {"cores", "core_oversubscription", "planes"},
            "fat-tree": clos | {"cores", "core_oversubscription"},
            "dragonfly": {"hosts_per_group", "taper"},
            "torus": {"dims", "link"},
            "nvlink-domain": {"hosts_per_group", "link", "oversubscription"},
            "edges": {"edges"},
        }[self.type] | {"type", "switch_latency", "failed", "overrides"}
        if self.type not in ("torus", "edges"):
            allowed.add("wan")
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
