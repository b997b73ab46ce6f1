"""The cables of a network, one connection after the other, and how many switches and cables it takes."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hardware.clos import Clos, clos, core_cables
from hardware.network import Edge, Fabric, Link, Nics, Wan
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
        (chip0). Of several sites each has a gateway (site0); numbers of all other parts go on from site to site.
    """
    nics = node.nics
    if fabric.wan is not None and nodes > fabric.wan.hosts_per_site:
        yield from _cables_of_sites(fabric, fabric.wan, node, nodes)
    elif fabric.type == "torus":
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


def site_nodes(fabric: Fabric, nodes: int) -> int:
    """Give the nodes of one site.

    Parameters
    ----------
    fabric
        The network.
    nodes
        Nodes of the cluster [1].

    Returns
    -------
    int
        Nodes [1]; all if there are no lines between sites.
    """
    return nodes if fabric.wan is None else min(nodes, fabric.wan.hosts_per_site)


def _cables_of_sites(fabric: Fabric, wan: Wan, node: Node, nodes: int) -> Iterator[Cable]:
    """Number the parts of all sites on; join the uppermost of each to its gateway, and all gateways in pairs."""
    sites = math.ceil(nodes / wan.hosts_per_site)
    inside = tuple(cables(fabric.model_copy(update={"wan": None}), node, wan.hosts_per_site))
    parts = sorted({"host0", *(name for cable in inside for name in (cable.a, cable.b))}, key=split_name)
    many = Counter(kind for kind, _ in map(split_name, parts))
    top = next(kind for kind in ("core", "spine", "network", "group", "domain", "host") if kind in many)

    def moved(name: str, site: int) -> str:
        kind, number = split_name(name)
        return f"{kind}{number + site * many[kind]}"

    for site in range(sites):
        yield from (replace(cable, a=moved(cable.a, site), b=moved(cable.b, site)) for cable in inside)
        for name in parts:
            if split_name(name)[0] == top:
                yield Cable(moved(name, site), f"site{site}", wan.rate * (sites - 1), 1)
    for one, other in itertools.combinations(range(sites), 2):
        yield Cable(f"site{one}", f"site{other}", wan.rate, 1, wan.latency)


def split_name(name: str) -> tuple[str, int]:
    """Split the name of a part of a network into its kind and its number, 0 if it has none.

    Parameters
    ----------
    name
        Such as ``leaf12``.

    Returns
    -------
    tuple of str and int
        Such as ``("leaf", 12)``.
    """
    kind = name.rstrip("0123456789")
    return kind, int(name.removeprefix(kind) or 0)


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
