"""The network between nodes: its links, whether it fits the nodes that stand on it, and what failures leave of it."""

import csv
import math
import re
from collections import deque
from pathlib import Path as FilePath

from hardware.clos import Clos, clos, core_cables
from hardware.faults import Fault, InputError, KeyFaultsError
from hardware.schema import Edge, Fabric, Node
from hardware.units import parse_quantity


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
        if not (leaf_share(fabric, network, nodes) and core_share(fabric, network, nodes)):
            raise KeyFaultsError((("failed",), "too much is broken: two leaves have no path between them"))
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
    reached = distances(fabric, edges, "host0")
    cut_off = [f"host{index}" for index in range(nodes) if f"host{index}" not in reached]
    if cut_off:
        raise KeyFaultsError((("edges",), f"no path from host0 to {', '.join(cut_off[:5])}"))


def distances(fabric: Fabric, edges: tuple[Edge, ...], start: str) -> dict[str, int]:
    """Count the links from one part of a network of any shape to every other it can reach.

    Parameters
    ----------
    fabric
        The network.
    edges
        Its links.
    start
        Name of the part to start from.

    Returns
    -------
    dict of str to int
        Name -> links on the shortest way there that is not broken.
    """
    beside: dict[str, list[str]] = {}
    for edge in edges:
        if not is_failed(fabric, edge.a, edge.b):
            beside.setdefault(edge.a, []).append(edge.b)
            beside.setdefault(edge.b, []).append(edge.a)
    found = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for name in beside.get(here, ()):
            if name not in found:
                found[name] = found[here] + 1
                queue.append(name)
    return found


_PART = re.compile(r"(leaf|spine|core)([0-9]+)")


def _exists(network: Clos, name: str) -> bool:
    sizes = {"leaf": network.leaves, "spine": network.spines, "core": network.cores}
    matches = [_PART.fullmatch(part) for part in name.split("-")]
    parts = sorted((tuple(sizes).index(match[1]), int(match[2])) for match in matches if match)
    if len(parts) != len(matches) or any(number >= list(sizes.values())[level] for level, number in parts):
        return False
    if [level for level, _ in parts] == [0, 1]:
        return parts[0][1] // network.leaves_per_pod == parts[1][1] // network.spines_per_pod
    if [level for level, _ in parts] == [1, 2]:
        return parts[1][1] in core_cables(network, parts[0][1])
    return len(parts) == 1 and parts[0][0] > 0


def is_failed(fabric: Fabric, *names: str) -> bool:
    """Tell whether a switch, or the connection of two, is broken.

    Parameters
    ----------
    fabric
        The network.
    names
        One switch, or both ends of a connection in any order.

    Returns
    -------
    bool
        Whether it, or one of its ends, is listed as failed.
    """
    return bool({*names, "-".join(names), "-".join(reversed(names))}.intersection(fabric.failed))


def leaf_share(fabric: Fabric, network: Clos, hosts: int) -> float:
    """Work out how much of its rate to the spines the worst pair of leaves keeps after failures.

    Parameters
    ----------
    fabric
        The network as written.
    network
        The network complete.
    hosts
        Nodes in use, the first ones of the cluster.

    Returns
    -------
    float
        Share between 0 and 1 [1].

    Notes
    -----
    Two leaves of a rail that lost their cables to the sets X and Y of S spines have ``1 - |X or Y| / S`` left between
    them: what goes up to a spine must come down from it. Traffic between neighbours of a ring is as slow as that.
    """
    if not fabric.failed:
        return 1.0
    used = network.rails * math.ceil(hosts / network.hosts_per_leaf)
    worst = 0
    for rail in range(network.rails):
        for pod in range(network.pods):
            leaves = range(pod * network.leaves_per_pod, min((pod + 1) * network.leaves_per_pod, used))
            spines = range(pod * network.spines_per_pod, (pod + 1) * network.spines_per_pod)
            lost = [
                frozenset(spine for spine in spines if is_failed(fabric, f"leaf{leaf}", f"spine{spine}"))
                for leaf in leaves
                if leaf % network.rails == rail
            ]
            for first, one in enumerate(lost):
                # A leaf alone in its pod still reaches the core through its spines.
                others = lost[first + 1 :] or [one]
                worst = max(worst, *(len(one | other) for other in others))
    return 1 - worst / network.spines_per_pod


def core_share(fabric: Fabric, network: Clos, hosts: int) -> float:
    """Work out how much of its rate to the core the worst pod keeps after failures.

    Parameters
    ----------
    fabric
        The network as written.
    network
        The network complete.
    hosts
        Nodes in use, the first ones of the cluster.

    Returns
    -------
    float
        Share between 0 and 1 [1].
    """
    if not fabric.failed or network.pods == 1:
        return 1.0
    shares = []
    for pod in range(min(network.pods, math.ceil(hosts / network.hosts_per_pod))):
        kept = 0
        for spine in range(pod * network.spines_per_pod, (pod + 1) * network.spines_per_pod):
            kept += sum(
                cables
                for core, cables in core_cables(network, spine).items()
                if not is_failed(fabric, f"spine{spine}", f"core{core}")
            )
        shares.append(kept / (network.spines_per_pod * network.core_uplinks))
    return min(shares)
