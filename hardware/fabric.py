"""The network between nodes in full: what a description leaves out, worked out from the rest.

A contradiction between the numbers that were written is a fault that names them.
"""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path as FilePath

from hardware.faults import Fault, InputError, KeyFaultsError
from hardware.schema import Edge, Fabric, Nics, Node
from hardware.units import format_quantity, parse_quantity

RADIX = 64
"""Ports of a switch where nothing is said: 64 x 400 Gbit/s, the switch of the DGX SuperPOD H100 and B200 reference
architectures and of MegaScale (Jiang et al., NSDI 2024)."""

_TOLERANCE = 0.01
"""Rates that agree to one per cent do not contradict each other: link rates are written rounded."""


@dataclass(frozen=True)
class Clos:
    """A network of two or three levels of switches, complete.

    Parameters
    ----------
    rails
        Leaf switches each node's ports are spread over.
    hosts_per_leaf
        Nodes below one leaf.
    leaves, spines, cores
        Switches in all; no cores if there are two levels.
    uplinks
        Cables from one leaf to its spines together.
    link
        Rate of one cable between switches in one direction [B/s].
    oversubscription
        Rate of the nodes below a leaf over the rate of its uplinks [1].
    pods, leaves_per_pod, spines_per_pod
        Leaves and spines that are connected all to all; one pod if there are two levels.
    core_uplinks
        Cables from one spine to the cores together.
    core_oversubscription
        Rate into a spine from below over the rate of its cables to the cores [1].
    """

    rails: int
    hosts_per_leaf: int
    leaves: int
    spines: int
    cores: int
    uplinks: int
    link: float
    oversubscription: float
    pods: int
    leaves_per_pod: int
    spines_per_pod: int
    core_uplinks: int
    core_oversubscription: float

    @property
    def cables_per_pair(self) -> int:
        """Cables between a leaf and each spine of its pod."""
        return self.uplinks // self.spines_per_pod

    @property
    def hosts_per_pod(self) -> int:
        """Nodes below the leaves of one pod."""
        return max(1, self.leaves_per_pod // self.rails) * self.hosts_per_leaf


def clos(fabric: Fabric, nics: Nics, nodes: int) -> Clos:
    """Complete a network of leaves and spines.

    Parameters
    ----------
    fabric
        What was written; of type ``leaf-spine``, ``rail-optimised`` or ``fat-tree``.
    nics
        Network adapters of each node.
    nodes
        Nodes of the cluster.

    Returns
    -------
    Clos
        The network, every number filled in.

    Raises
    ------
    KeyFaultsError
        The numbers contradict each other.

    Notes
    -----
    With h nodes of p ports of rate b below a leaf and u cables of rate B above it, the oversubscription is
    ``o = h p b / (u B)``. A two-level network has as few spines as their radix R allows, ``leaves u / R``, such that
    every leaf has equally many cables to each of them. Beyond R leaves a rail-optimised network gets a third level as
    in the DGX SuperPOD reference architecture, where a spine has half its ports below and half above. Switch and cable
    counts agree with that document for 2 to 64 scalable units.
    """
    radix = fabric.radix or RADIX
    rails = fabric.rails or (nics.count if fabric.type == "rail-optimised" else 1)
    if nics.count % rails:
        raise KeyFaultsError((("rails",), f"{nics.count} ports of a node do not spread evenly over {rails} rails"))
    ports = nics.count // rails
    hosts, leaves = _hosts_and_leaves(fabric, nodes, rails, ports, radix)
    link = fabric.link or nics.bandwidth
    below = hosts * ports * nics.bandwidth
    uplinks, oversubscription = _uplinks(fabric, hosts, ports, nics.bandwidth, below, link)

    too_many = fabric.type == "rail-optimised" and fabric.spines is None and leaves > radix
    share = fabric.core_oversubscription
    if too_many or _has_cores(fabric):
        down = max(1, round(radix * share / (1 + share)))  # ports of a spine towards its leaves
        leaves_per_pod = min(leaves, down - down % rails if down >= rails else down)
        pods = math.ceil(leaves / leaves_per_pod)
    else:
        down, leaves_per_pod, pods = radix, leaves, 1
    per_pod = _spines_per_pod(fabric, uplinks, leaves_per_pod, down, pods, oversubscription)
    spines = per_pod * pods
    core_uplinks = math.ceil(leaves_per_pod * (uplinks // per_pod) / share - 1e-9) if pods > 1 else 0
    fewest = math.ceil(spines * core_uplinks / radix)
    if fabric.cores is not None and fabric.cores < fewest:
        message = (
            f"{fabric.cores} core switches of {radix} ports cannot take {core_uplinks} cables from each of {spines} "
            f"spines; at least {fewest}"
        )
        raise KeyFaultsError((("cores",), message))
    return Clos(
        rails=rails,
        hosts_per_leaf=hosts,
        leaves=leaves,
        spines=spines,
        cores=fabric.cores or fewest,
        uplinks=uplinks,
        link=link,
        oversubscription=oversubscription,
        pods=pods,
        leaves_per_pod=leaves_per_pod,
        spines_per_pod=per_pod,
        core_uplinks=core_uplinks,
        core_oversubscription=share if pods > 1 else 1.0,
    )


def _has_cores(fabric: Fabric) -> bool:
    return fabric.type == "fat-tree" or fabric.cores is not None


def _hosts_and_leaves(fabric: Fabric, nodes: int, rails: int, ports: int, radix: int) -> tuple[int, int]:
    if fabric.leaves is not None and fabric.leaves % rails:
        message = f"{fabric.leaves} leaves are not a whole number for each of {rails} rails"
        raise KeyFaultsError((("leaves",), message))
    if fabric.hosts_per_leaf:
        hosts = fabric.hosts_per_leaf
    elif fabric.leaves:
        hosts = math.ceil(nodes * rails / fabric.leaves)
    else:
        hosts = max(1, radix // 2 // ports)
    needed = rails * math.ceil(nodes / hosts)
    if fabric.leaves is not None and fabric.leaves < needed:
        message = f"{fabric.leaves} leaves with {hosts} hosts each cannot hold {nodes} nodes on {rails} rails: {needed}"
        raise KeyFaultsError((("leaves",), message))
    return hosts, fabric.leaves or needed


def _uplinks(fabric: Fabric, hosts: int, ports: int, port_rate: float, below: float, link: float) -> tuple[int, float]:
    """Settle cables above a leaf and oversubscription, each from the other if only one was written."""
    rates = (
        f"{hosts} hosts x {ports} x {format_quantity(port_rate, 'bit/s')} below a leaf, "
        f"{format_quantity(link, 'bit/s')} per cable above"
    )
    said = fabric.oversubscription
    uplinks = fabric.uplinks
    if uplinks is None and said is None and fabric.spines is not None and fabric.type == "leaf-spine":
        uplinks = fabric.spines  # one cable to each spine
    if uplinks is not None:
        follows = below / (uplinks * link)
        if said is not None and abs(follows / said - 1) > _TOLERANCE:
            message = f"{said:g} contradicts {uplinks} uplinks, which make it {follows:.4g} ({rates})"
            raise KeyFaultsError((("oversubscription",), message))
        return uplinks, max(1.0, follows)
    said = said or 1.0
    cables = below / (said * link)
    if fabric.spines is None or _has_cores(fabric):
        return max(1, math.ceil(cables - _TOLERANCE)), said
    # The spines were written too: every leaf must have the same whole number of cables to each of them.
    each = cables / fabric.spines
    if abs(round(each) - each) > _TOLERANCE * each:
        message = (
            f"{said:g} contradicts {fabric.spines} spines: {rates}, so a leaf needs {cables:.4g} cables, {each:.4g} to "
            f"each spine; one to each makes the oversubscription {below / (fabric.spines * link):.4g}"
        )
        raise KeyFaultsError((("oversubscription",), message))
    return max(1, round(cables)), said


def _spines_per_pod(
    fabric: Fabric, uplinks: int, leaves_per_pod: int, down: int, pods: int, oversubscription: float
) -> int:
    if fabric.spines is None:
        fewest = leaves_per_pod * uplinks / down
        return next((count for count in range(1, uplinks) if uplinks % count == 0 and count >= fewest), uplinks)
    if fabric.spines % pods or uplinks % (fabric.spines // pods):
        where = f" in {pods} pods" if pods > 1 else ""
        message = (
            f"{fabric.spines} spines{where} do not share the {uplinks} uplinks of a leaf evenly "
            f"(oversubscription {oversubscription:.4g})"
        )
        raise KeyFaultsError((("spines",), message))
    return fabric.spines // pods


def read_edges(path: FilePath) -> tuple[Edge, ...]:
    """Read the links of a network of any shape.

    Parameters
    ----------
    path
        CSV with the header ``a,b,bandwidth``; bandwidth of one direction, a number of bytes per second or a text with
        a unit.

    Returns
    -------
    tuple of Edge
        The links.

    Raises
    ------
    InputError
        With every row that is wrong.
    """
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Fault(name, 0, 0, "", f"cannot be read: {_reason(error)}")]) from None
    rows = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(rows, [])]
    if header != ["a", "b", "bandwidth"]:
        message = f"the columns should be a,b,bandwidth [got {','.join(header)!r}]"
        raise InputError([Fault(name, 1, 1, "", message)])
    edges, faults = [], []
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        try:
            if len(cells) != 3 or not cells[0] or not cells[1] or cells[0] == cells[1]:
                raise ValueError("should be two different names and a bandwidth")
            rate = parse_quantity(cells[2], "bytes/s")
            if rate == 0:
                raise ValueError("bandwidth should be greater than zero")
            edges.append(Edge(a=cells[0], b=cells[1], bandwidth=rate))
        except ValueError as error:
            faults.append(Fault(name, rows.line_num, 1, "", f"{error} [got {','.join(row)!r}]"))
    if faults:
        raise InputError(faults)
    return tuple(edges)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def check_fabric(fabric: Fabric, node: Node, nodes: int) -> None:
    """Check a network against the nodes that stand on it.

    Parameters
    ----------
    fabric
        What was written; the links of a network of type ``edges`` already read.
    node
        One of the nodes.
    nodes
        Nodes of the cluster.

    Raises
    ------
    KeyFaultsError
        Placed below the fabric: contradictions, and broken parts that do not exist.
    """
    if fabric.type == "torus":
        _check_torus(fabric, node, nodes)
    elif fabric.type == "nvlink-domain":
        if fabric.link is None and not any(link.type == "nvswitch" for link in node.links):
            raise KeyFaultsError((("link",), f'missing; node "{node.name}" has no link of type nvswitch either'))
        if node.nics is None and nodes > (fabric.hosts_per_group or nodes):
            raise KeyFaultsError(((), f'several domains need a network, but node "{node.name}" has no nics'))
    elif node.nics is None:
        if nodes > 1:
            raise KeyFaultsError(((), f'{nodes} nodes need a network, but node "{node.name}" has no nics'))
    elif fabric.type in ("leaf-spine", "rail-optimised", "fat-tree"):
        network = clos(fabric, node.nics, nodes)
        for index, name in enumerate(fabric.failed):
            if not _exists(network, name):
                message = (
                    f"no such part; allowed: leaf0 to leaf{network.leaves - 1}, spine0 to spine{network.spines - 1}"
                    + (f", core0 to core{network.cores - 1}" if network.cores else "")
                    + ", a spine or core alone or two connected switches such as leaf0-spine0"
                )
                raise KeyFaultsError((("failed", index), f"{message} [got {name!r}]"))
        return
    if fabric.type == "edges" and isinstance(fabric.edges, tuple):
        _check_edges(fabric, fabric.edges, nodes)
    elif fabric.failed:
        raise KeyFaultsError((("failed",), f"a fabric of type {fabric.type} has no parts that can be named"))


def _check_torus(fabric: Fabric, node: Node, nodes: int) -> None:
    size = math.prod(fabric.dims or ())
    have = nodes * node.accelerators.count
    if size != have:
        sizes = " x ".join(map(str, fabric.dims or ()))
        message = f"{sizes} = {size}, but {nodes} nodes of {node.accelerators.count} accelerators are {have}"
        raise KeyFaultsError((("dims",), message))
    if fabric.link is None and not any(link.type == "ici" for link in node.links):
        raise KeyFaultsError((("link",), f'missing; node "{node.name}" has no link of type ici either'))


def _check_edges(fabric: Fabric, edges: tuple[Edge, ...], nodes: int) -> None:
    names = {name for edge in edges for name in (edge.a, edge.b)}
    missing = [f"host{index}" for index in range(nodes) if f"host{index}" not in names]
    if missing:
        message = f"the nodes are called host0 to host{nodes - 1}; not among the links: {', '.join(missing[:5])}"
        raise KeyFaultsError((("edges",), message))
    links = {f"{a}-{b}" for edge in edges for a, b in ((edge.a, edge.b), (edge.b, edge.a))}
    for index, name in enumerate(fabric.failed):
        if name not in links | names:
            raise KeyFaultsError((("failed", index), f"no such switch or link [got {name!r}]"))


_PART = re.compile(r"(leaf|spine|core)([0-9]+)")


def failed_switches(fabric: Fabric) -> frozenset[str]:
    """List the switches that are broken as a whole.

    Parameters
    ----------
    fabric
        The network.

    Returns
    -------
    frozenset of str
        Names such as ``spine3``.
    """
    return frozenset(name for name in fabric.failed if "-" not in name)


def failed_pairs(fabric: Fabric) -> frozenset[tuple[str, str]]:
    """List the broken connections between two switches of a network of leaves and spines.

    Parameters
    ----------
    fabric
        The network.

    Returns
    -------
    frozenset of (str, str)
        Names such as ``("leaf0", "spine3")``, the lower level first.
    """
    rank = {"leaf": 0, "spine": 1, "core": 2}
    pairs = (name.split("-") for name in fabric.failed if "-" in name)
    return frozenset(
        (low, high)
        for pair in pairs
        for low, high in [sorted(pair, key=lambda name: rank.get(name.rstrip("0123456789"), 3))]
    )


def _exists(network: Clos, name: str) -> bool:
    sizes = {"leaf": network.leaves, "spine": network.spines, "core": network.cores}
    parts = sorted((match for part in name.split("-") if (match := _PART.fullmatch(part))), key=_level)
    if len(parts) != name.count("-") + 1 or any(int(part[2]) >= sizes[part[1]] for part in parts):
        return False
    kinds = [part[1] for part in parts]
    if kinds == ["leaf", "spine"]:
        return int(parts[0][2]) // network.leaves_per_pod == int(parts[1][2]) // network.spines_per_pod
    return kinds in (["spine"], ["core"], ["spine", "core"])


def _level(part: re.Match[str]) -> int:
    return ("leaf", "spine", "core").index(part[1])
