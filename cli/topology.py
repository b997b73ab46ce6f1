"""A machine's network for people: layers of its parts, what joins them, what is slow or broken."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Group, RenderableType

from cli.tables import WIDTH, number, seconds, table, text
from hardware.cables import SWITCHED, Cable, cables, site_nodes, split_name
from hardware.catalogue import Machine
from hardware.clos import clos
from hardware.devices import joins, nearest_ports, numa_domains
from hardware.fabric import capacity, kind_of
from hardware.topology import bisection, graph, levels, measured_bandwidth
from hardware.units import format_quantity

_ABOVE = {"host": 0, "leaf": 1, "group": 1, "domain": 1, "spine": 2, "network": 2, "core": 3, "site": 4}
"""Kind of part -> layer it is drawn in; parts of other kinds go above what they are joined to."""
_MOST_ROWS = 6
"""Rows of a torus that are drawn."""
_LISTED = 8
"""Slow and broken connections that are listed."""


@dataclass(frozen=True)
class Box:
    """One part of a drawing, or several that are joined to the same others.

    Parameters
    ----------
    name : str
        Its name, that of the first of several.
    label : str
        What stands in it.
    parts : int
        How many it stands for [1].
    """

    name: str
    label: str
    parts: int = 1


@dataclass(frozen=True)
class Line:
    """What joins two boxes.

    Parameters
    ----------
    a, b : str
        Names of the boxes.
    bandwidth : float
        Rate in one direction of what joins one part of the first to the second [B/s]; 0 if it is broken.
    built : float
        That rate as it was built [B/s].
    """

    a: str
    b: str
    bandwidth: float
    built: float


@dataclass(frozen=True)
class Picture:
    """What is drawn: layers of boxes from the bottom up, and what joins them.

    Parameters
    ----------
    title : str
        What the drawing shows.
    layers : tuple of tuple of Box
        The lowest first.
    lines : tuple of Line
        What joins the boxes.
    """

    title: str
    layers: tuple[tuple[Box, ...], ...]
    lines: tuple[Line, ...]


def of_one_node(machine: Machine) -> bool:
    """Tell whether a machine is drawn as the devices of its only node.

    Parameters
    ----------
    machine : Machine
        The machine.

    Returns
    -------
    bool
        Whether it has one node and no torus joins its accelerators.
    """
    return machine.cluster.nodes == 1 and machine.cluster.fabric.type != "torus"


def picture(machine: Machine) -> Picture:
    """Lay a machine out in layers.

    Parameters
    ----------
    machine : Machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    Picture
        The devices of a single node, else the network; nodes that are joined to the same switches are one box.
    """
    held, cluster = machine.node.accelerators, machine.cluster
    if of_one_node(machine):
        return Picture(f"{machine.node.name}: {held.count} x {machine.accelerator.name}", *_inside(machine))
    title = f"{cluster.name}: {cluster.nodes:,} x {machine.node.name} on {cluster.fabric.type}"
    if cluster.fabric.type == "torus":
        title += " of " + " x ".join(map(str, cluster.fabric.dims or ()))
        return Picture(title, *_torus(machine))
    return Picture(title, *_network(machine))


def _inside(machine: Machine) -> tuple[tuple[tuple[Box, ...], ...], tuple[Line, ...]]:
    lines = tuple(Line(join.a, join.b, join.bandwidth, join.bandwidth) for join in joins(machine.node))
    names = dict.fromkeys(name for line in lines for name in (line.a, line.b))
    boards = [f"gpu{index}" for index in range(machine.node.accelerators.count)]
    host = [link.name for link in machine.node.links if link.type in ("pcie", "nvlink-c2c")]
    lowest = [name for name in names if kind_of(name) in ("nic", "cpu")]
    below = [name for name in names if kind_of(name) in host]
    above = [name for name in names if name not in {*lowest, *below, *boards}]
    layers = (_near(lowest, below or boards, lines), below, boards, above)
    return tuple(tuple(Box(name, name) for name in layer) for layer in layers if layer), lines


def _near(names: list[str], above: list[str], lines: Iterable[Line]) -> list[str]:
    """Put parts below those that they are joined to."""
    places: dict[str, list[int]] = {}
    for line in lines:
        for one, other in ((line.a, line.b), (line.b, line.a)):
            if one in names and other in above:
                places.setdefault(one, []).append(above.index(other))
    return sorted(names, key=lambda name: sum(places.get(name, [0])) / max(1, len(places.get(name, ()))))


def _network(machine: Machine) -> tuple[tuple[tuple[Box, ...], ...], tuple[Line, ...]]:
    fabric, nodes = machine.cluster.fabric, machine.cluster.nodes
    found = list(cables(fabric, machine.node, nodes))
    now = {(cable.a, cable.b): capacity(fabric, cable.a, cable.b, cable.bandwidth) for cable in found}
    to: dict[str, list[tuple[str, float, float]]] = {}
    for cable in found:
        for one, other in ((cable.a, cable.b), (cable.b, cable.a)):
            if kind_of(one) == "host":
                to.setdefault(one, []).append((other, now[cable.a, cable.b], cable.bandwidth))
    alike: dict[tuple[tuple[str, float, float], ...], list[str]] = {}
    for host in sorted(to, key=split_name):
        alike.setdefault(tuple(to[host]), []).append(host)
    first = {host: group[0] for group in alike.values() for host in group}
    boxes = {group[0]: Box(group[0], _span(group), len(group)) for group in alike.values()}
    lines: dict[tuple[str, str], Line] = {}
    for cable in found:
        a, b = first.get(cable.a, cable.a), first.get(cable.b, cable.b)
        lines.setdefault((a, b), Line(a, b, now[cable.a, cable.b], cable.bandwidth))
        for name in (a, b):
            boxes.setdefault(name, Box(name, name))
    beside = {name for pair in lines if any(kind_of(name) == "host" for name in pair) for name in pair}
    height = {name: _ABOVE.get(kind_of(name), 1 if name in beside else 2) for name in boxes}
    layers = tuple(
        tuple(sorted((boxes[name] for name in boxes if height[name] == layer), key=lambda box: split_name(box.name)))
        for layer in sorted({*height.values()})
    )
    return layers, tuple(lines.values())


def _torus(machine: Machine) -> tuple[tuple[tuple[Box, ...], ...], tuple[Line, ...]]:
    """Lay out a corner of the plane of the first two dimensions."""
    columns, rows = (*(machine.cluster.fabric.dims or ()), 1)[:2]
    shown = [range(row * columns, (row + 1) * columns) for row in range(min(rows, _MOST_ROWS))]
    names = {f"chip{chip}" for row in shown for chip in row}
    lines = tuple(
        Line(cable.a, cable.b, capacity(machine.cluster.fabric, cable.a, cable.b, cable.bandwidth), cable.bandwidth)
        for cable in cables(machine.cluster.fabric, machine.node, machine.cluster.nodes)
        if cable.a in names and cable.b in names
    )
    return tuple(tuple(Box(f"chip{chip}", f"chip{chip}") for chip in row) for row in shown), lines


def _span(names: Sequence[str]) -> str:
    """Write names of one kind as a range where they follow each other."""
    numbers = [split_name(name)[1] for name in names]
    if len(names) == 1:
        return names[0]
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{names[0]}-{numbers[-1]}"
    return f"{names[0]} and {len(names) - 1} more"


def facts(machine: Machine) -> dict[str, Any]:
    """Sum a machine's network up.

    Parameters
    ----------
    machine : Machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    dict
        Parts by kind; connections by the kinds they join, with their cables [1] and rate [B/s]; broken switches;
        connections of another rate than was built; bisection [B/s]; what was measured between nodes [B/s];
        oversubscription of each level of switches as built, and between the halves of the nodes as it is [1]; levels of
        collectives.
    """
    fabric, nodes = machine.cluster.fabric, machine.cluster.nodes
    found = list(cables(fabric, machine.node, nodes))
    whole = {name for cable in found for name in (cable.a, cable.b)}
    parts = Counter(map(kind_of, whole))
    kinds: dict[str, list[Cable]] = {}
    for cable in found:
        kinds.setdefault(f"{kind_of(cable.a)}-{kind_of(cable.b)}", []).append(cable)
    across = bisection(machine)
    return {
        "name": machine.cluster.name,
        "type": fabric.type,
        "nodes": nodes,
        "accelerators": nodes * machine.node.accelerators.count,
        "parts": dict(sorted(parts.items())),
        "connections": {
            name: {
                "connections": len(some),
                "cables": sum(cable.count for cable in some),
                "bandwidth_bytes_per_s": sum(cable.bandwidth for cable in some) / len(some),
            }
            for name, some in kinds.items()
        },
        "broken": [name for name in fabric.failed if name in whole],
        "uneven": [
            {"a": cable.a, "b": cable.b, "bandwidth_bytes_per_s": now, "built_bytes_per_s": cable.bandwidth}
            for cable in found
            if (now := capacity(fabric, cable.a, cable.b, cable.bandwidth)) != cable.bandwidth
            and not {cable.a, cable.b}.intersection(fabric.failed)
        ],
        "bisection_bytes_per_s": across or None,
        "measured_bytes_per_s": _measured(machine),
        "oversubscription": _oversubscription(machine, across),
        "levels": [
            {
                "name": level.name,
                "ranks": level.ranks,
                "bandwidth_bytes_per_s": level.bandwidth,
                "latency_s": level.latency,
            }
            for level in levels(machine)
        ],
    }


def _measured(machine: Machine) -> dict[str, float] | None:
    """Sum up what was measured between the nodes [B/s]."""
    matrix = measured_bandwidth(machine)
    if matrix is None:
        return None
    rates = sorted(float(rate) for rate in matrix.bandwidth.flat if rate != float("inf"))
    return {"least": rates[0], "median": statistics.median(rates), "most": rates[-1]} if rates else None


def _oversubscription(machine: Machine, across: float) -> dict[str, float]:
    fabric, nics, nodes = machine.cluster.fabric, machine.node.nics, machine.cluster.nodes
    found: dict[str, float] = {}
    if nics is None or nodes == 1 or fabric.type in ("torus", "nvlink-domain"):
        return found
    if fabric.type in SWITCHED:
        network = clos(fabric, nics, site_nodes(fabric, nodes))
        found["leaf"] = network.oversubscription
        if network.pods > 1:
            found["spine"] = network.core_oversubscription
    if across:
        found["halves"] = nodes / 2 * nics.count * nics.bandwidth / across
    return found


COLUMNS = ("a", "b", "bandwidth_bytes_per_s", "cables", "type")
"""Columns of the links of a machine as CSV."""


def links(machine: Machine) -> Iterator[tuple[str, str, float | None, int, str]]:
    """List what joins the parts of a machine, for spreadsheets.

    Parameters
    ----------
    machine : Machine
        The machine; all nodes of its cluster count.

    Yields
    ------
    tuple
        As `COLUMNS`: names of both ends, rate in one direction [B/s] (None where nothing is known to limit it), cables
        [1], type of the link. Devices of a single node, else the network without what is broken.
    """
    detail: Literal["nodes", "devices"] = "devices" if of_one_node(machine) else "nodes"
    for a, b, edge in graph(machine, detail).edges(data=True):
        rate = edge["capacity"]
        yield a, b, None if rate == float("inf") else rate, edge["cables"], edge["type"]


def data(machine: Machine) -> dict[str, Any]:
    """Write a machine's network as plain data.

    Parameters
    ----------
    machine : Machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    dict
        What `facts` says of it, and its ``links``.
    """
    return facts(machine) | {"links": [dict(zip(COLUMNS, link, strict=True)) for link in links(machine)]}


def drawing(machine: Machine) -> RenderableType:
    """Draw a machine's network in text, with its figures below.

    Parameters
    ----------
    machine : Machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    RenderableType
        Fits eighty columns, whatever the size of the machine.
    """
    shown = picture(machine)
    if of_one_node(machine):
        return Group(text(shown.title, "bold underline"), text(""), *_layers(shown, "bytes/s"), _devices(machine))
    found = facts(machine)
    below = (_cables(found), _figures(found), *_uneven(found), _levels(found))
    return Group(text(shown.title, "bold underline"), text(""), *_layers(shown, "bit/s"), text(""), *below)


def _layers(shown: Picture, dimension: str) -> Iterator[RenderableType]:
    """Write the layers from the top, and below each what joins it to itself and to those under it."""
    layer_of = {box.name: height for height, layer in enumerate(shown.layers) for box in layer}
    parts = {box.name: box.parts for layer in shown.layers for box in layer}
    joined: dict[int, Counter[tuple[str, str, float]]] = {}
    for line in shown.lines:
        upper, lower = sorted((line.a, line.b), key=lambda name: -layer_of[name])
        words = (kind_of(upper), kind_of(lower), line.bandwidth)
        joined.setdefault(layer_of[upper], Counter())[words] += parts[lower] * parts[upper]
    for height in range(len(shown.layers) - 1, -1, -1):
        yield text("  " + _row([box.label for box in shown.layers[height]]))
        rows: dict[tuple[str, str], list[str]] = {}
        for (upper, lower, rate), count in joined.get(height, Counter()).items():
            told = (
                "broken"
                if rate == 0
                else "no limit known"
                if rate == float("inf")
                else format_quantity(rate, dimension)
            )
            rows.setdefault((upper, lower), []).append(f"{count:,} x {told}")
        for (upper, lower), rates in rows.items():
            more = f" and {len(rates) - 2} other rates" if len(rates) > 3 else ""
            yield text(f"    |  {upper} to {lower}: {', '.join(rates[: 2 if more else 3])}{more}"[:WIDTH])


def _row(labels: Sequence[str]) -> str:
    """Write names beside each other, the middle left out where they do not fit."""
    for most in range(len(labels), 1, -1):
        tail = 1 if most < len(labels) else 0
        gap = [f"... {len(labels) - most} more ..."] if tail else []
        words = "  ".join(f"[{label}]" for label in labels[: most - tail])
        words = "  ".join([words, *gap, *(f"[{label}]" for label in labels[len(labels) - tail :])])
        if len(words) <= WIDTH - 4:
            return words
    return f"[{labels[0]}]" + (f"  ... {len(labels) - 1} more" if len(labels) > 1 else "")


def _cables(found: Mapping[str, Any]) -> RenderableType:
    rows = [
        (
            name,
            number(one["connections"]),
            number(one["cables"]),
            format_quantity(one["bandwidth_bytes_per_s"], "bit/s"),
        )
        for name, one in found["connections"].items()
    ]
    return table("Cables", ("", "connections", "cables", "a connection, one way"), rows)


def _figures(found: Mapping[str, Any]) -> RenderableType:
    across, measured = found["bisection_bytes_per_s"], found["measured_bytes_per_s"]
    kinds = ", ".join(f"{count:,} {name}" for name, count in found["parts"].items())
    rows = [("parts", kinds), ("bisection, one way", "-" if across is None else format_quantity(across, "bytes/s"))]
    if measured is not None:
        least, median, most = (format_quantity(measured[key], "bytes/s") for key in ("least", "median", "most"))
        rows.append(("measured between nodes", f"{least} to {most}, median {median}"))
    own = [f"{name} {ratio:.4g}:1" for name, ratio in found["oversubscription"].items()]
    if own:
        rows.append(("oversubscription", ", ".join(own)))
    return table("", ("", ""), rows, numbers=())


def _uneven(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    uneven = found["uneven"]
    if uneven or found["broken"]:
        rows = [(name, "broken", "") for name in found["broken"]]
        rows += [
            (
                f"{one['a']}-{one['b']}",
                format_quantity(one["bandwidth_bytes_per_s"], "bit/s") if one["bandwidth_bytes_per_s"] else "broken",
                format_quantity(one["built_bytes_per_s"], "bit/s"),
            )
            for one in uneven[:_LISTED]
        ]
        if len(uneven) > _LISTED:
            rows.append((f"and {len(uneven) - _LISTED:,} more", "", ""))
        yield table("Unlike the rest", ("", "now", "as built"), rows)


def _levels(found: Mapping[str, Any]) -> RenderableType:
    rows = [
        (
            each["name"],
            number(each["ranks"]),
            format_quantity(each["bandwidth_bytes_per_s"], "bytes/s"),
            seconds(each["latency_s"]),
        )
        for each in found["levels"]
    ]
    return table("Levels of collectives", ("", "ranks", "a rank, one way", "latency"), rows)


def _devices(machine: Machine) -> RenderableType:
    """List what each accelerator is joined to."""
    node = machine.node
    count = node.accelerators.count
    domains, _ = numa_domains(node)
    beside: dict[str, list[str]] = {f"gpu{index}": [] for index in range(count)}
    for join in joins(node):
        for one, other in ((join.a, join.b), (join.b, join.a)):
            if one in beside:
                beside[one].append(other)
    rows = []
    for index, ports in enumerate(nearest_ports(node)):
        to = beside[f"gpu{index}"]
        mates = sorted((name for name in to if name in beside), key=split_name)
        peers = _span(mates) if mates else ""
        others = [name for name in to if name not in beside]
        near = _span([f"nic{port}" for port in ports]) if ports else "-"
        rows.append((f"gpu{index}", str(domains[index]), ", ".join(filter(None, [peers, *others])), near))
    alike = Counter((row[1], row[2], row[3]) for row in rows)
    if count > 16 and len(alike) * 2 <= count:
        rows = [(f"{many} like", *row) for row, many in alike.items()]
    return table("", ("", "NUMA", "joined to", "nearest ports"), rows, numbers=())
