"""The cables of a network, one connection after the other, and how many switches and cables it takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hardware.clos import Clos, clos, core_cables
from hardware.network import Edge, Fabric, Link, Nics
from hardware.schema import Node

SWITCHED = ("leaf-spine", "rail-optimised", "fat-tree")
"""Types of network that are leaves, spines and perhaps cores."""


def link_bandwidth(link: Link) -> float:
    """Give the rate of one accelerator over a link when all that share it use it.

    Parameters
    ----------
    link
        A link of a node.

    Returns
    -------
    float
        Rate in one direction [B/s].
    """
    return (link.bandwidth or 0.0) / link.shared_by


def network_bandwidth(nics: Nics, accelerators: int) -> float:
    """Give the rate of one accelerator into the network when all of its node use it.

    Parameters
    ----------
    nics
        Adapters of the node.
    accelerators
        Accelerators of the node [1].

    Returns
    -------
    float
        Rate in one direction [B/s].
    """
    return nics.count * nics.bandwidth / accelerators


def domain_link(node: Node) -> Link | None:
    """Find the link by which a node belongs to a domain of NVLink.

    Parameters
    ----------
    node
        One of the nodes.

    Returns
    -------
    Link or None
        The fastest of its links of type ``nvswitch``; None if it has none.
    """
    return max((link for link in node.links if link.type == "nvswitch"), key=link_bandwidth, default=None)


def domain_bandwidth(fabric: Fabric, node: Node) -> float:
    """Give the rate of one accelerator to another node of its domain of NVLink.

    Parameters
    ----------
    fabric
        A network of type ``nvlink-domain``.
    node
        One of the nodes.

    Returns
    -------
    float
        Rate in one direction [B/s].
    """
    link = domain_link(node)
    return fabric.link or (link_bandwidth(link) if link else 0.0)


def torus_bandwidth(fabric: Fabric, node: Node) -> float:
    """Give the rate of the link between two neighbours of a torus.

    Parameters
    ----------
    fabric
        A network of type ``torus``.
    node
        One of the nodes.

    Returns
    -------
    float
        Rate in one direction [B/s]; where the network does not say it, an accelerator has two links of equal rate for
        each dimension.
    """
    own = [link_bandwidth(link) for link in node.links if link.type == "ici"]
    return fabric.link or max(own) / (2 * len(fabric.dims or ()))


@dataclass(frozen=True)
class Cable:
    """All cables between two parts of a network.

    Parameters
    ----------
    a, b
        Names of the parts.
    bandwidth
        Rate of all of them together in one direction, as built [B/s].
    count
        How many they are [1].
    latency
        Time on the way beyond that of the switches [s].
    """

    a: str
    b: str
    bandwidth: float
    count: int
    latency: float = 0.0


def cables(fabric: Fabric, node: Node, nodes: int) -> Iterator[Cable]:
    """List the cables of a network as it was built: whole ones, slow ones and broken ones.

    Parameters
    ----------
    fabric
        The network; the links of one of type ``edges`` already read.
    node
        One of the nodes.
    nodes
        Nodes of the cluster [1].

    Yields
    ------
    Cable
        Nodes are called host0 on, switches leaf0, spine0, core0 on. Groups of a dragonfly (group0) and domains of
        NVLink (domain0) stand for all their switches, ``network`` for what is not described; a torus joins accelerators
        (chip0).
    """
    nics = node.nics
    if fabric.type == "torus":
        yield from _torus_cables(fabric, node)
    elif isinstance(fabric.edges, tuple):
        together: dict[tuple[str, str], list[Edge]] = {}
        for edge in fabric.edges:
            pair = (edge.b, edge.a) if (edge.b, edge.a) in together else (edge.a, edge.b)
            together.setdefault(pair, []).append(edge)
        for (a, b), some in together.items():
            yield Cable(a, b, sum(one.bandwidth for one in some), len(some), max(one.latency for one in some))
    elif fabric.type == "nvlink-domain":
        size, count = fabric.hosts_per_group or nodes, node.accelerators.count
        for host in range(nodes if nodes > 1 else 0):
            yield Cable(f"host{host}", f"domain{host // size}", domain_bandwidth(fabric, node) * count, count)
            if nics is not None and size < nodes:
                share = 1 / (fabric.oversubscription or 1.0)
                yield Cable(f"host{host}", "network", nics.count * nics.bandwidth * share, nics.count)
    elif nics is not None and fabric.type == "dragonfly":
        size = fabric.hosts_per_group or nodes
        groups = math.ceil(nodes / size)
        rate = nics.count * nics.bandwidth
        for host in range(nodes):
            yield Cable(f"host{host}", f"group{host // size}", rate, nics.count)
        for one in range(groups):
            for other in range(one + 1, groups):
                yield Cable(f"group{one}", f"group{other}", size * rate * fabric.taper / (groups - 1), 1)
    elif nics is not None and nodes > 1:
        yield from _clos_cables(clos(fabric, nics, nodes), nics, nodes)


def _clos_cables(network: Clos, nics: Nics, nodes: int) -> Iterator[Cable]:
    ports = nics.count // network.rails
    for host in range(nodes):
        for rail in range(network.rails):
            leaf = host // network.hosts_per_leaf * network.rails + rail
            yield Cable(f"host{host}", f"leaf{leaf}", ports * nics.bandwidth, ports)
    count = network.cables_per_pair
    for leaf in range(network.leaves):
        for spine in network.spines_of(leaf):
            yield Cable(f"leaf{leaf}", f"spine{spine}", count * network.link, count)
    for spine in range(network.spines if network.core_uplinks else 0):
        for core, count in core_cables(network, spine).items():
            yield Cable(f"spine{spine}", f"core{core}", count * network.link, count)


def _torus_cables(fabric: Fabric, node: Node) -> Iterator[Cable]:
    dims = fabric.dims or ()
    rate = torus_bandwidth(fabric, node)
    for chip in range(math.prod(dims)):
        for dimension in range(len(dims)):
            if (other := torus_neighbour(dims, chip, dimension)) is not None:
                yield Cable(f"chip{chip}", f"chip{other}", rate, 1)


def torus_neighbour(dims: tuple[int, ...], chip: int, dimension: int) -> int | None:
    """Find the accelerator of a torus that comes after another along one dimension.

    Parameters
    ----------
    dims
        Accelerators along each dimension [1].
    chip
        Number of the accelerator; the first dimension counts fastest.
    dimension
        Number of the dimension.

    Returns
    -------
    int or None
        Its number. The last of a dimension closes the ring, except that two have one link between them.
    """
    stride, size = math.prod(dims[:dimension]), dims[dimension]
    place = chip // stride % size
    if place < size - 1:
        return chip + stride
    return chip + stride * (1 - size) if size > 2 else None
