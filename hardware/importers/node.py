"""A node's description from what a tool saw of it."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from hardware.catalogue import UnknownName, find, names
from hardware.faults import Fault, InputError
from hardware.schema import Accelerator, Link, Node
from hardware.units import format_quantity, parse_quantity
from hardware.yaml_source import Source, validated

NVLINK: Mapping[str, tuple[int, float]] = {
    "pascal": (4, 20e9),
    "volta": (6, 25e9),
    "turing": (2, 25e9),
    "ampere": (12, 25e9),
    "hopper": (18, 25e9),
    "blackwell": (18, 50e9),
}
"""Architecture -> most links of one accelerator [1] and the rate of one in one direction [B/s], nominal.

DGX A100 and H100 user guides: 12 and 18 links, 300 and 450 GB/s; GB200 NVL72: 18 links of 50 GB/s; earlier ones from
the data sheets of V100 (6 links, 300 GB/s both ways), Quadro RTX 6000 (100 GB/s both ways) and P100 (160 GB/s)."""

XGMI: Mapping[str, float] = {"cdna2": 50e9, "cdna3": 64e9}
"""Architecture -> rate of one link of AMD's in one direction [B/s]: OLCF Frontier user guide (200 GB/s over the four
links inside a module), MI300X platform data sheet."""


@dataclass(frozen=True)
class Port:
    """A port into the network.

    Parameters
    ----------
    name
        As the tool calls it, such as ``mlx5_0``.
    nearest
        Numbers of the accelerators that have no port nearer than this one.
    numa
        Number of its NUMA domain.
    bandwidth
        Rate in one direction [B/s]; None if the tool does not say.
    """

    name: str
    nearest: tuple[int, ...]
    numa: int
    bandwidth: float | None = None


@dataclass(frozen=True)
class Seen:
    """What a tool saw of a node.

    Parameters
    ----------
    source
        The tool and the file, for provenance.
    date
        When the file was written, YYYY-MM-DD.
    accelerators
        Number of the NUMA domain of each accelerator.
    pairs
        Two accelerators -> direct links between them [1].
    switched
        Links of each accelerator into switches [1]; empty if there are none.
    link
        Type of these links: ``nvlink`` or ``xgmi``.
    ports
        Ports into the network.
    generation, lanes
        Of the accelerators' PCI Express; None if the tool does not say.
    shared_by
        Accelerators below one PCI Express switch [1]; None if the tool does not say.
    """

    source: str
    date: str
    accelerators: tuple[int, ...]
    pairs: Mapping[tuple[int, int], int]
    switched: tuple[int, ...]
    link: str
    ports: tuple[Port, ...]
    generation: int | None = None
    lanes: int | None = None
    shared_by: int | None = None


def date_of(path: Path) -> str:
    """Give the day a file was written, YYYY-MM-DD."""
    return date.fromtimestamp(path.stat().st_mtime).isoformat()


def describe(seen: Seen, name: str, accelerator: str, port_bandwidth: float | None = None) -> dict[str, Any]:
    """Write what a tool saw as the description of a node.

    Parameters
    ----------
    seen
        What the tool saw.
    name
        Name for the node.
    accelerator
        Name of its accelerators in the catalogue: no tool tells boards of one chip apart.
    port_bandwidth
        Rate of a port into the network in one direction [B/s], where the tool does not say it.

    Returns
    -------
    dict
        A description that `hardware.catalogue.check_file` accepts as a file; each number names its source.

    Raises
    ------
    InputError
        The accelerator is unknown, or nothing that was seen joins the accelerators.

    Notes
    -----
    Accelerators linked in equal groups of neighbours get a link of that ``group``; in any other pattern one with
    ``pairs``. Of ports with different rates only the fastest are taken: the others are for storage and management.
    PCI Express that the tool does not describe is that of a node of the catalogue with the same accelerator.
    """
    board = _board(accelerator)
    links, notes = [], []
    provenance: dict[str, dict[str, str]] = {}

    def cite(key: str, note: str = "") -> None:
        evidence = {"evidence": "derived", "note": note} if note else {"evidence": "measured"}
        provenance[key] = {"source": seen.source, "date": seen.date} | evidence

    fast = _fast_link(seen, board)
    if fast:
        links.append(fast[0])
        cite(f"links.{fast[0]['name']}", fast[1])
    pcie, note = _pcie(seen, accelerator)
    if pcie:
        links.append(pcie)
        cite("links.pcie", note)
    count = len(seen.accelerators)
    data: dict[str, Any] = {"kind": "node", "name": name, "accelerators": {"type": accelerator, "count": count}}
    cite("accelerators", "the board was named by hand")
    data["links"] = links
    ports = seen.ports
    if port_bandwidth is not None:
        ports = tuple(Port(port.name, port.nearest, port.numa, port.bandwidth or port_bandwidth) for port in ports)
    known = [port for port in ports if port.bandwidth is not None]
    best = max((port.bandwidth or 0.0 for port in known), default=0.0)
    taken = [port for port in known if port.bandwidth == best]
    if taken:
        alone = {port.nearest[0] for port in taken if len(port.nearest) == 1}
        data["nics"] = {
            "count": len(taken),
            "bandwidth": _written(best, "bit/s"),
            "affinity": "one-per-accelerator" if len(alone) == count else "shared",
            "nearest": [list(port.nearest) for port in taken],
        }
        cite("nics", "rate given by hand" if all(port.bandwidth is None for port in seen.ports) else "")
    if len(taken) < len(ports):
        left = ", ".join(port.name for port in ports if port not in taken)
        why = "slower than the rest" if taken else "their rate is not known"
        notes.append(f"Ports left out, {why}: {left}.")
    if len({*seen.accelerators, *(port.numa for port in taken)}) > 1:
        data["numa"] = {"accelerators": list(seen.accelerators)}
        if taken:
            data["numa"]["nics"] = [port.numa for port in taken]
        cite("numa")
    if taken:
        notes.append("The protocol of the network is not in the file: infiniband unless written otherwise.")
    data |= {"provenance": provenance, "notes": " ".join(notes)}
    validated(Node, Source(seen.source, data))
    return data


def _board(accelerator: str) -> Accelerator:
    try:
        found: Accelerator = find("accelerator", accelerator)
    except UnknownName as error:
        raise InputError([Fault("--accelerator", 0, 0, "", str(error))]) from None
    return found


def _fast_link(seen: Seen, board: Accelerator) -> tuple[dict[str, Any], str] | None:
    """Describe the links between accelerators, with a note on how their rate was found."""
    most = [0] * len(seen.accelerators)
    for pair, links in seen.pairs.items():
        for end in pair:
            most[end] += links
    if not any((*most, *seen.switched)):
        return None
    per_link = XGMI.get(board.architecture) if seen.link == "xgmi" else NVLINK.get(board.architecture, (0, None))[1]
    if per_link is None:
        known = ", ".join(XGMI if seen.link == "xgmi" else NVLINK)
        message = f"no rate of {seen.link} is known for {board.architecture}, that of {board.name}; known: {known}"
        raise InputError([Fault("--accelerator", 0, 0, "", message)])
    links = min(seen.switched) if seen.switched else max(most)
    allowed = NVLINK[board.architecture][0] if seen.link == "nvlink" else links
    if links > allowed:
        message = (
            f"{links} links of an accelerator are more than the {allowed} of {board.architecture}, that of {board.name}"
        )
        raise InputError([Fault("--accelerator", 0, 0, "", message)])
    link: dict[str, Any] = {"name": seen.link, "type": "nvswitch", "bandwidth": _written(links * per_link, "bytes/s")}
    note = f"{links} links of {format_quantity(per_link, 'bytes/s')}, nominal for {board.architecture}"
    if seen.switched:
        return link, note
    link["type"] = "xgmi" if seen.link == "xgmi" else "nvlink-mesh"
    groups = _groups(seen)
    size = len(groups[0])
    inside = [pair for group in groups for pair in itertools.combinations(group, 2)]
    whole = all(seen.pairs.get(pair, 0) * (size - 1) == links for pair in inside)
    if len(groups) > 1:
        if any(len(group) != size for group in groups):
            return None
        link["group"] = size
    if not whole or any(list(group) != list(range(group[0], group[0] + size)) for group in groups):
        link["pairs"] = {f"{a}-{b}": _written(n * per_link, "bytes/s") for (a, b), n in sorted(seen.pairs.items())}
    return link, note


def _groups(seen: Seen) -> list[tuple[int, ...]]:
    """Gather accelerators that direct links join, each group in order."""
    group = list(range(len(seen.accelerators)))
    for one, other in seen.pairs:
        old, new = group[other], group[one]
        group = [new if number == old else number for number in group]
    return [tuple(i for i, number in enumerate(group) if number == first) for first in sorted({*group})]


def _pcie(seen: Seen, accelerator: str) -> tuple[dict[str, Any] | None, str]:
    shared = {"shared_by": seen.shared_by} if (seen.shared_by or 1) > 1 else {}
    if seen.generation and seen.lanes:
        return {"name": "pcie", "type": "pcie", "generation": seen.generation, "lanes": seen.lanes} | shared, ""
    for name in names("node"):
        node = find("node", name)
        held = node.accelerators.type
        same = isinstance(held, str) and find("accelerator", held) is _board(accelerator)
        found: Link | None = next((link for link in node.links if link.type == "pcie" and link.lanes), None)
        if same and found:
            if seen.shared_by is None and found.shared_by > 1:
                shared = {"shared_by": min(found.shared_by, len(seen.accelerators))}
            link = {"name": "pcie", "type": "pcie", "generation": found.generation, "lanes": found.lanes}
            return link | shared, f"generation and lanes as in {name} of the catalogue"
    return None, ""


def _written(value: float, dimension: str) -> str | float:
    """Write a quantity with its unit, or as a bare number where the text would round it."""
    text = format_quantity(value, dimension, digits=6)
    return text if parse_quantity(text, dimension) == value else value
