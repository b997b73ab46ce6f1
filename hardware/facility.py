"""The power tree of a facility: utility, feeds, breakers, PDUs, rows and racks, and what holds servers below limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hardware.faults import KeyFaultsError, Path
from hardware.network import Count
from hardware.provenance import Description, Recorded, Text
from hardware.units import Hertz, PositiveSeconds, PositiveWatts, Seconds, UsdPerKwh, Watts
from hardware.yaml_source import did_you_mean

Level = Literal["utility", "feed", "breaker", "pdu", "row", "rack"]
Multiple = Annotated[float, Field(gt=1, allow_inf_nan=False)]
Pue = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class ClockRange(Description):
    """Clocks that an actuator can set."""

    lowest: Hertz
    """Lowest clock, such as 1110 MHz."""
    highest: Hertz
    """Highest clock; equal to the lowest if there is no choice."""


class PowerRange(Description):
    """Power limits of one accelerator that an actuator can set."""

    lowest: Watts
    """Lowest limit of one accelerator, such as 200 W; not below what it draws idle."""
    highest: Watts
    """Highest limit of one accelerator."""


class Actuator(Description):
    """A way to make servers draw less."""

    name: Text
    """What to call it, such as frequency-lock or power-brake."""
    latency: Seconds
    """Time from the decision to the watts, such as 40 s for a command over the management network."""
    clock: ClockRange | None = None
    """Clocks it sets: {lowest: 1110 MHz, highest: 1410 MHz}."""
    power: PowerRange | None = None
    """Power limits of an accelerator it sets: {lowest: 200 W, highest: 400 W}."""
    trigger: Annotated[float, Field(gt=0, le=2)] | None = None
    """Share of a node's limit at which it acts by itself; left out, a policy decides when."""
    hysteresis: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """How far below its threshold the share must fall before it lets go."""

    @model_validator(mode="after")
    def _sets_one_thing(self) -> Self:
        if (self.clock is None) == (self.power is None):
            raise KeyFaultsError(((), "should set either clock or power"))
        for key in ("clock", "power"):
            span = getattr(self, key)
            if span is not None and span.lowest > span.highest:
                raise KeyFaultsError(((key, "lowest"), f"{span.lowest:g} is above the highest, {span.highest:g}"))
        return self


class Feeds(Description):
    """Parallel supplies of a node, of which some may fail."""

    count: Count
    """Supplies that share the load."""
    needed: Count
    """Supplies that are left after the failure that is planned for: count - 1 for N+1."""
    rating: PositiveWatts | None = None
    """What one supply may carry; the node's rating over needed if left out, so that a failure changes nothing."""
    ride_through: Seconds = 0.0
    """How long the supplies that are left carry all of the load, such as 10 s; until then it must be shed."""

    @model_validator(mode="after")
    def _some_are_needed(self) -> Self:
        if self.needed > self.count:
            raise KeyFaultsError((("needed",), f"{self.needed} is more than the {self.count} there are"))
        return self


class Trip(Description):
    """When a breaker opens: once the integral of (load/rating)^2 - 1 over time exceeds its constant."""

    inverse_time: PositiveSeconds
    """Constant of the inverse-time part: 60 s trips at twice the rating after 20 s."""
    instantaneous: Multiple | None = None
    """Multiple of the rating at which it opens at once; never if left out."""


class PowerNode(Description):
    """A node of the power tree, or several that are alike."""

    name: Text
    """What to call it; unlike its siblings."""
    level: Level
    """What it is; servers stand in racks."""
    parent: Text | None = None
    """Name of the node that supplies it, in a list of nodes; none in a tree of children."""
    count: Count = 1
    """How many such nodes there are below one parent, alike in all that is below them."""
    rating: PositiveWatts
    """What it may draw, such as 260 kW."""
    cooling: PositiveWatts | None = None
    """Heat of its servers that can be removed; no limit if left out."""
    feeds: Feeds | None = None
    """Its supplies, where a failure is planned for; one that does not fail if left out."""
    trip: Trip | None = None
    """Trip curve of its breaker."""
    slots: Count | None = None
    """Racks: servers it has room for."""
    servers: tuple[Text, ...] = ()
    """Racks: servers that fit, by name in the catalogue or path; any if left out."""
    children: tuple[PowerNode, ...] = ()
    """Nodes that it supplies."""

    @model_validator(mode="after")
    def _servers_stand_in_racks(self) -> Self:
        rack = self.level == "rack"
        faults: list[tuple[Path, str]] = []
        if rack and self.slots is None:
            faults.append((("slots",), "missing; servers that a rack has room for"))
        if rack and self.children:
            faults.append((("children",), "a rack holds servers, not nodes"))
        for key in ("slots", "servers"):
            if not rack and getattr(self, key):
                faults.append(((key,), f"only a rack holds servers; this is a {self.level}"))
        if faults:
            raise KeyFaultsError(*faults)
        return self


class Facility(Recorded):
    """Where servers get their power: a tree of limits, and what reacts when a limit comes near."""

    kind: Literal["facility"] = "facility"
    """What the file describes."""
    name: Text = "unnamed"
    """Name in the catalogue."""
    aliases: tuple[Text, ...] = ()
    """Other names it is found by."""
    pue: Pue | None = None
    """Power of the whole facility over that of its servers, such as 1.12; PUE and cost of energy unknown if left
    out."""
    energy_price: UsdPerKwh | None = None
    """Price of electricity, such as 0.08 USD/kWh."""
    actuators: tuple[Actuator, ...] = ()
    """What makes servers draw less."""
    root: PowerNode | None = None
    """The node everything else hangs on, with its children; or the list nodes."""
    nodes: tuple[PowerNode, ...] = ()
    """The nodes in a list, each but the first naming its parent; in place of root."""
    notes: str = ""
    """Anything else worth knowing."""

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        names = [one.name for one in self.actuators]
        faults: list[tuple[Path, str]] = [
            (("actuators", index, "name"), f'"{name}" is the name of an earlier actuator; choose another')
            for index, name in enumerate(names)
            if name in names[:index]
        ]
        if (self.root is None) == (not self.nodes):
            faults.append((("root",), "missing; give root with its children, or nodes with their parents"))
        elif self.root is not None:
            faults += _nested_faults(self.root, ("root",))
        else:
            faults += _listed_faults(self.nodes)
        if faults:
            raise KeyFaultsError(*faults)
        return self


@dataclass(frozen=True)
class PowerTree:
    """The nodes of a facility as parallel tuples, parents before their children.

    Nodes that are alike are one entry with a multiplicity.

    Parameters
    ----------
    name
        Names from below the root down, joined by ``/``; the root has its own.
    level
        What each is.
    parent
        Entry that supplies it; -1 for the root.
    count
        Such nodes below one parent [1].
    multiplicity
        Such nodes in the whole facility [1].
    rating_w
        What one may draw [W].
    limit_w
        The same within its cooling and what all its feeds carry [W].
    failover_w
        The same after the failure that is planned for [W].
    ride_through_s
        How long the feeds that are left carry more; infinite without feeds [s].
    slots
        Servers one rack has room for; 0 for others.
    servers
        Servers that fit a rack; empty for any.
    trip
        Trip curve of its breaker, or None.
    """

    name: tuple[str, ...]
    level: tuple[Level, ...]
    parent: tuple[int, ...]
    count: tuple[int, ...]
    multiplicity: tuple[int, ...]
    rating_w: tuple[float, ...]
    limit_w: tuple[float, ...]
    failover_w: tuple[float, ...]
    ride_through_s: tuple[float, ...]
    slots: tuple[int, ...]
    servers: tuple[tuple[str, ...], ...]
    trip: tuple[Trip | None, ...]

    @property
    def racks(self) -> tuple[int, ...]:
        """Entries that hold servers."""
        return tuple(entry for entry, level in enumerate(self.level) if level == "rack")

    def above(self, entry: int) -> tuple[int, ...]:
        """List an entry and all that supply it, up to the root."""
        found = []
        while entry >= 0:
            found.append(entry)
            entry = self.parent[entry]
        return tuple(found)


def power_tree(facility: Facility) -> PowerTree:
    """Lay a facility's tree out flat.

    Parameters
    ----------
    facility
        A checked description.

    Returns
    -------
    PowerTree
        Its nodes, parents first.
    """
    rows = list(_walk(_rooted(facility), "", -1, 1, [0]))
    return PowerTree(*zip(*rows, strict=True))


def _walk(node: PowerNode, path: str, parent: int, above: int, next_entry: list[int]) -> Iterator[tuple[object, ...]]:
    entry = next_entry[0]
    next_entry[0] += 1
    total = above * node.count
    limit = min(node.rating, node.cooling or math.inf)
    failover = limit
    if node.feeds is not None:
        each = node.feeds.rating or node.rating / node.feeds.needed
        limit = min(limit, each * node.feeds.count)
        failover = min(limit, each * node.feeds.needed)
    yield (
        path + node.name, node.level, parent, node.count, total, node.rating, limit, failover,
        node.feeds.ride_through if node.feeds else math.inf, node.slots or 0, node.servers, node.trip,
    )  # fmt: skip
    for child in node.children:
        yield from _walk(child, f"{path}{node.name}/" if parent >= 0 else "", entry, total, next_entry)


def _rooted(facility: Facility) -> PowerNode:
    """Give the tree with children below their parents."""
    if facility.root is not None:
        return facility.root
    below: dict[str | None, list[PowerNode]] = {}
    for node in facility.nodes:
        below.setdefault(node.parent, []).append(node)

    def grown(node: PowerNode) -> PowerNode:
        return node.model_copy(update={"children": tuple(grown(child) for child in below.get(node.name, ()))})

    return grown(below[None][0])


def places(facility: Facility) -> Iterator[tuple[Path, PowerNode]]:
    """Walk through the nodes as they were written.

    Parameters
    ----------
    facility
        The description.

    Yields
    ------
    tuple of path and PowerNode
        Keys that lead to the node in the file, and the node.
    """

    def below(node: PowerNode, path: Path) -> Iterator[tuple[Path, PowerNode]]:
        yield path, node
        for index, child in enumerate(node.children):
            yield from below(child, (*path, "children", index))

    if facility.root is not None:
        yield from below(facility.root, ("root",))
    for index, node in enumerate(facility.nodes):
        yield ("nodes", index), node


def renamed(facility: Facility, names: Mapping[str, str]) -> Facility:
    """Call servers otherwise.

    Parameters
    ----------
    facility
        The description.
    names
        Names of servers -> what to call them.

    Returns
    -------
    Facility
        A changed copy.
    """

    def changed(node: PowerNode) -> PowerNode:
        servers = tuple(names.get(name, name) for name in node.servers)
        return node.model_copy(update={"servers": servers, "children": tuple(map(changed, node.children))})

    root = None if facility.root is None else changed(facility.root)
    return facility.model_copy(update={"root": root, "nodes": tuple(map(changed, facility.nodes))})


def _above_parent(node: PowerNode, parent: PowerNode, path: Path) -> list[tuple[Path, str]]:
    if node.rating <= parent.rating:
        return []
    message = (
        f"{node.rating:g} W is above the {parent.rating:g} W of its parent {parent.name}, which would never reach it"
    )
    return [((*path, "rating"), message)]


def _nested_faults(root: PowerNode, at: Path) -> list[tuple[Path, str]]:
    faults: list[tuple[Path, str]] = []
    if root.count > 1:
        faults.append(((*at, "count"), f"there is one root [got {root.count}]"))
    ahead = [(root, at)]
    while ahead:
        node, path = ahead.pop()
        if node.parent is not None:
            faults.append(((*path, "parent"), "only in a list of nodes; here the tree says it"))
        if node.level != "rack" and not node.children:
            faults.append(((*path, "children"), f"missing; a {node.level} supplies others, only racks do not"))
        names = [child.name for child in node.children]
        for index, child in enumerate(node.children):
            below = (*path, "children", index)
            faults += _above_parent(child, node, below)
            if child.name in names[:index]:
                faults.append(((*below, "name"), f'"{child.name}" is the name of an earlier sibling; choose another'))
            ahead.append((child, below))
    return faults


def _listed_faults(nodes: tuple[PowerNode, ...]) -> list[tuple[Path, str]]:
    faults: list[tuple[Path, str]] = []
    by_name: dict[str, PowerNode] = {}
    for index, node in enumerate(nodes):
        if node.name in by_name:
            faults.append((("nodes", index, "name"), f'"{node.name}" is the name of an earlier node; choose another'))
        by_name.setdefault(node.name, node)
        if node.children:
            faults.append((("nodes", index, "children"), "not in a list of nodes; its children name it as parent"))
    roots = [index for index, node in enumerate(nodes) if node.parent is None]
    if len(roots) != 1:
        place: Path = ("nodes", roots[1], "parent") if roots else ("nodes", 0, "parent")
        faults.append((place, f"one node should be without parent [got {len(roots)}]"))
    elif nodes[roots[0]].count > 1:
        faults.append((("nodes", roots[0], "count"), f"there is one root [got {nodes[roots[0]].count}]"))
    parents = {node.parent for node in nodes}
    for index, node in enumerate(nodes):
        at: Path = ("nodes", index)
        if node.level != "rack" and node.name not in parents:
            faults.append(((*at, "level"), f"a {node.level} supplies others, but no node names it as parent"))
        if node.parent is None:
            continue
        if node.parent not in by_name:
            message = f"no such node; {did_you_mean(node.parent, by_name)} [got {node.parent!r}]"
            faults.append(((*at, "parent"), message))
            continue
        if by_name[node.parent].level == "rack":
            faults.append(((*at, "parent"), f"{node.parent} is a rack, which holds servers, not nodes"))
        faults += _above_parent(node, by_name[node.parent], at)
        ring = _ring(node, by_name)
        if ring and node.name == min(ring):
            faults.append(((*at, "parent"), f"a cycle: {' -> '.join([*ring, ring[0]])}"))
    return faults


def _ring(node: PowerNode, by_name: dict[str, PowerNode]) -> list[str]:
    """Follow parents from a node; its cycle if it comes back to itself."""
    seen = [node.name]
    while node.parent in by_name:
        assert node.parent is not None
        if node.parent == seen[0]:
            return seen
        if node.parent in seen:
            return []
        seen.append(node.parent)
        node = by_name[node.parent]
    return []
