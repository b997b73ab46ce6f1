"""Who reaches whom how fast: the levels of a machine, its switches and cables.

A machine is a tower of levels. Inside one unit of the lowest level (a pair of GCDs, a node) ranks talk over its links;
to talk to another unit they use the next level, and so on. Costs of communication need no more than this.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hardware.catalogue import Machine
from hardware.clos import Clos, clos, core_cables
from hardware.fabric import core_share, distances, is_failed, leaf_share
from hardware.schema import Edge, Fabric, Link, Nics

if TYPE_CHECKING:
    import networkx

LINK_LATENCY_S = {
    "nvswitch": 1.0e-6,
    "nvlink-mesh": 1.0e-6,
    "nvlink-c2c": 1.0e-6,
    "xgmi": 1.0e-6,
    "pcie": 1.5e-6,
    "ici": 1.0e-6,
    "ethernet": 1.6e-6,
}
"""Time of an empty message over a link inside a node [s], where the node does not say it.

A step over NVLink takes 0.6 us (LL) to 1.9 us (LL128) and one over PCI Express 1.0 to 2.5 us in NVIDIA's collective
library (src/graph/tuning.cc, June 2026): about the geometric mean of each. xGMI and ICI are taken as NVLink, for lack
of a published figure; Ethernet as two adapters and one switch (below)."""

ADAPTER_LATENCY_S = 0.55e-6
"""Time in the network adapter of one side of an RDMA transfer [s]; published budgets say 0.3 to 0.8 us."""

SWITCH_LATENCY_S = {
    "infiniband": 0.1e-6,
    "roce": 0.5e-6,
    "efa": 0.5e-6,
    "slingshot": 0.35e-6,
    "ethernet": 0.5e-6,
    "ici": 0.0,
}
"""Time through one switch [s], where the network does not say it.

InfiniBand 0.1 to 0.15 us, Ethernet cut-through 0.25 to 0.6 us (published latency budgets); Slingshot 0.35 us (De Sensi
et al., "An In-Depth Analysis of the Slingshot Interconnect", SC 2020). With two adapters, an empty message through one
InfiniBand switch takes 1.2 us, about half of the round trip of 2 us that those budgets give. Cables, 5 ns/m, are left
out. A step of a collective takes longer than that: what software adds is calibrated, not written here."""


@dataclass(frozen=True)
class Level:
    """One level of a machine: units of so many ranks, and how the ranks of one unit talk to each other.

    Parameters
    ----------
    name
        What a unit is called, such as ``node``, ``leaf``, ``spine``.
    ranks
        Consecutive ranks of one unit [1]. Divides the ranks of a unit of the next level.
    bandwidth
        Rate of one rank in one direction when all ranks talk to units of the level below at once [B/s].
    latency
        Time of an empty message between two ranks of a unit [s].
    type
        Type of the link or protocol of the network, such as ``nvswitch`` or ``infiniband``.
    """

    name: str
    ranks: int
    bandwidth: float
    latency: float
    type: str


def levels(machine: Machine, ranks: int | None = None) -> tuple[Level, ...]:
    """Describe what the ranks of a job talk over, from the inside out.

    Parameters
    ----------
    machine
        What the job runs on.
    ranks
        Ranks of the job [1]; all accelerators of the machine if left out.

    Returns
    -------
    tuple of Level
        Levels with more than one unit of the level below; a unit of the last one holds the whole job. Empty for one
        rank.

    Raises
    ------
    ValueError
        The job has no rank, or needs more nodes than there are when it is spread evenly.

    Notes
    -----
    A job is spread evenly: over each node as many ranks as divide the job and fit (256 ranks on nodes of 72: 64 each),
    below each leaf as many nodes as divide the job's nodes and fit, and so on.

    The rate of a rank into the network is that of the node's adapters over its accelerators. Above a leaf it is divided
    by the oversubscription, above the spines by that of the core too; failures lower it by the share that the worst
    pair of leaves has lost (`hardware.fabric.leaf_share`). A network of any other shape (``edges``) has one level with
    the least of the rates that its cuts allow (`cut_bandwidth`).
    """
    count = machine.node.accelerators.count
    total = machine.accelerators if ranks is None else ranks
    if total < 1:
        raise ValueError(f"a job needs at least one rank, not {total}")
    per_node = _unit(total, count, 1)
    hosts = total // per_node
    if hosts > machine.nodes:
        raise ValueError(
            f"{total} ranks spread evenly are {hosts} nodes with {per_node} each, but there are {machine.nodes} nodes"
        )
    fabric = machine.cluster.fabric
    if fabric.type == "torus":
        return _torus_levels(machine, total)
    tower = [*_node_levels(machine, per_node), *_network_levels(machine, hosts, per_node)]
    return tuple(
        level
        for below, level in zip([1, *(level.ranks for level in tower)], tower, strict=False)
        if level.ranks > below
    )


def _unit(total: int, limit: int, inner: int) -> int:
    """Find the most ranks a unit can hold so that units are equal and made of whole inner units."""
    most = min(total, limit) // inner
    return inner * next((size for size in range(most, 1, -1) if total // inner % size == 0), 1)


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


def _node_levels(machine: Machine, per_node: int) -> Iterator[Level]:
    """Walk up the links between accelerators of a node; PCI Express only where nothing better joins them."""
    count = machine.node.accelerators.count
    direct = [link for link in machine.node.links if link.type in ("nvswitch", "nvlink-mesh", "xgmi", "ici")]
    if not any((link.group or count) == count for link in direct):
        direct += [link for link in machine.node.links if link.type in ("pcie", "ethernet")]
    inner = 1
    for group in sorted({link.group or count for link in direct}):
        link = max((link for link in direct if (link.group or count) == group), key=link_bandwidth)
        inner = _unit(per_node, group, inner)
        latency = LINK_LATENCY_S[link.type] if link.latency is None else link.latency
        yield Level("node" if group == count else link.name, inner, link_bandwidth(link), latency, link.type)


def _network_levels(machine: Machine, hosts: int, per_node: int) -> Iterator[Level]:
    fabric, nics, total = machine.cluster.fabric, machine.node.nics, hosts * per_node
    if hosts == 1:
        return
    if fabric.type == "nvlink-domain":
        link = max((link for link in machine.node.links if link.type == "nvswitch"), key=link_bandwidth, default=None)
        latency = link.latency if link and link.latency is not None else LINK_LATENCY_S["nvswitch"]
        domain = _unit(total, (fabric.hosts_per_group or hosts) * per_node, per_node)
        rate = fabric.link or (link_bandwidth(link) if link else 0.0)
        yield Level("domain", domain, rate, latency, "nvswitch")
        if domain == total:
            return
    if nics is None:
        return
    rate = network_bandwidth(nics, machine.node.accelerators.count)

    def level(name: str, ranks: int, share: float, switches: int) -> Level:
        hop = SWITCH_LATENCY_S[nics.protocol] if fabric.switch_latency is None else fabric.switch_latency
        return Level(name, ranks, rate * share, 2 * ADAPTER_LATENCY_S + switches * hop, nics.protocol)

    if fabric.type == "nvlink-domain":
        yield level("fabric", total, 1 / (fabric.oversubscription or 1.0), 3)
    elif fabric.type == "dragonfly":
        group = _unit(total, (fabric.hosts_per_group or hosts) * per_node, per_node)
        # Shortest paths: two routers inside a group; between groups one more before and after the global link.
        yield level("fabric" if group == total else "group", group, 1.0 if fabric.hosts_per_group else fabric.taper, 2)
        yield level("global", total, fabric.taper, 4)
    elif isinstance(fabric.edges, tuple):
        farthest = max(distances(fabric, fabric.edges, "host0")[f"host{host}"] for host in range(hosts))
        share = min(1.0, cut_bandwidth(fabric, fabric.edges, hosts) / (rate * per_node))
        yield level("fabric", total, share, farthest - 1)
    else:
        network = clos(fabric, nics, machine.cluster.nodes)
        leaf = _unit(total, network.hosts_per_leaf * per_node, per_node)
        yield level("leaf", leaf, 1.0, 1)
        pod = _unit(total, network.hosts_per_pod * per_node, leaf) if network.pods > 1 else total
        share = leaf_share(fabric, network, machine.nodes) / network.oversubscription
        yield level("spine", pod, share, 3)
        share *= core_share(fabric, network, machine.nodes) / network.core_oversubscription
        yield level("core", total, share, 5)


def _torus_levels(machine: Machine, total: int) -> tuple[Level, ...]:
    """Make each dimension a level: a ring where the job fills it, else a line.

    A rank of a full ring of more than two sends both ways round at once, so it has twice the rate of a link; in a part
    of a ring, which is a line, the way back takes the other direction of the same links. Dimensions that work at the
    same time are faster than the levels one after the other say.
    """
    fabric, node = machine.cluster.fabric, machine.node
    dims = fabric.dims or ()
    own = [link for link in node.links if link.type == "ici"]
    latency = next((link.latency for link in own if link.latency is not None), LINK_LATENCY_S["ici"])
    rate = fabric.link or max(map(link_bandwidth, own)) / (2 * len(dims))
    tower: list[Level] = []
    inner = 1
    for index, size in enumerate(dims):
        ranks = _unit(total, inner * size, inner) if index < len(dims) - 1 else total
        if ranks > inner:
            both_ways = ranks // inner == size > 2
            tower.append(Level(f"dimension {index}", ranks, rate * (2 if both_ways else 1), latency, "ici"))
        inner = ranks
    return tuple(tower)


def cut_bandwidth(fabric: Fabric, edges: tuple[Edge, ...], hosts: int) -> float:
    """Work out how fast each node of a network of any shape can send when all send across it.

    Parameters
    ----------
    fabric
        The network.
    edges
        Its links.
    hosts
        Nodes in use, ``host0`` on [1].

    Returns
    -------
    float
        Rate of one node in one direction [B/s].

    Notes
    -----
    Nodes on the smaller side X of a cut with capacity B(X) cannot each send faster than B(X)/|X| across it. The least
    of this over three kinds of cut is taken: around each node, around the nodes beside one switch, and between the
    first and the second half. The capacity of a cut is that of a maximum flow (Ford and Fulkerson 1956). Other cuts may
    be tighter: this is an upper bound, exact for networks of leaves and spines of even size.
    """
    names = [f"host{host}" for host in range(hosts)]
    beside: dict[str, set[str]] = {}
    for edge in edges:
        if not is_failed(fabric, edge.a, edge.b):
            for one, other in ((edge.a, edge.b), (edge.b, edge.a)):
                if one in names:
                    beside.setdefault(other, set()).add(one)
    cuts = {frozenset([name]) for name in names} | {frozenset(group) for group in beside.values()}
    cuts.add(frozenset(names[: hosts // 2]))
    return min(
        _max_flow(fabric, edges, cut, frozenset(names) - cut) / min(len(cut), hosts - len(cut))
        for cut in cuts
        if 0 < len(cut) < hosts
    )


def _max_flow(fabric: Fabric, edges: tuple[Edge, ...], sources: frozenset[str], sinks: frozenset[str]) -> float:
    """Find the maximum flow between two sets of nodes along shortest augmenting paths (Edmonds and Karp 1972) [B/s]."""
    left: dict[str, dict[str, float]] = {}
    for edge in edges:
        if not is_failed(fabric, edge.a, edge.b):
            for one, other in ((edge.a, edge.b), (edge.b, edge.a)):
                ends = left.setdefault(one, {})
                ends[other] = ends.get(other, 0.0) + edge.bandwidth
    left[""] = dict.fromkeys(sources, math.inf)
    flow = 0.0
    while True:
        came_from: dict[str, str] = {"": ""}
        queue = deque([""])
        end = None
        while queue and end is None:
            here = queue.popleft()
            for name, room in left.get(here, {}).items():
                if room > 0 and name not in came_from:
                    came_from[name] = here
                    queue.append(name)
                    if name in sinks:
                        end = name
                        break
        if end is None:
            return flow
        path = [end]
        while path[-1]:
            path.append(came_from[path[-1]])
        steps = list(zip(path[1:], path, strict=False))
        room = min(left[here][name] for here, name in steps)
        for here, name in steps:
            left[here][name] -= room
            if here:
                left[name][here] = left[name].get(here, 0.0) + room
        flow += room


@dataclass(frozen=True)
class Cable:
    """All cables between two parts of a network.

    Parameters
    ----------
    a, b
        Names of the parts.
    bandwidth
        Rate of all of them together in one direction [B/s].
    count
        How many they are [1].
    """

    a: str
    b: str
    bandwidth: float
    count: int


def cables(machine: Machine) -> Iterator[Cable]:
    """List the cables of a machine's network, whole ones and broken ones.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.

    Yields
    ------
    Cable
        Nodes are called host0 on, switches leaf0, spine0, core0 on. Groups of a dragonfly (group0) and domains of
        NVLink (domain0) stand for all their switches, ``network`` for what is not described; a torus joins accelerators
        (chip0).
    """
    fabric, nodes = machine.cluster.fabric, machine.cluster.nodes
    nics, count = machine.node.nics, machine.node.accelerators.count
    if fabric.type == "torus":
        yield from _torus_cables(machine)
    elif isinstance(fabric.edges, tuple):
        yield from (Cable(edge.a, edge.b, edge.bandwidth, 1) for edge in fabric.edges)
    elif fabric.type == "nvlink-domain":
        size = fabric.hosts_per_group or nodes
        rate = next(_network_levels(machine, 2, count)).bandwidth if nodes > 1 else 0.0
        for host in range(nodes if nodes > 1 else 0):
            yield Cable(f"host{host}", f"domain{host // size}", rate * count, count)
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
        first = leaf // network.leaves_per_pod * network.spines_per_pod
        for spine in range(first, first + network.spines_per_pod):
            yield Cable(f"leaf{leaf}", f"spine{spine}", count * network.link, count)
    for spine in range(network.spines if network.core_uplinks else 0):
        for core, count in core_cables(network, spine).items():
            yield Cable(f"spine{spine}", f"core{core}", count * network.link, count)


def _torus_cables(machine: Machine) -> Iterator[Cable]:
    dims = machine.cluster.fabric.dims or ()
    own = [link_bandwidth(link) for link in machine.node.links if link.type == "ici"]
    rate = machine.cluster.fabric.link or max(own) / (2 * len(dims))
    stride = 1
    for size in dims:
        for chip in range(math.prod(dims)):
            place = chip // stride % size
            # The last of a dimension closes the ring; two have one link between them.
            if place < size - 1 or size > 2:
                other = chip + stride * (1 if place < size - 1 else 1 - size)
                yield Cable(f"chip{chip}", f"chip{other}", rate, 1)
        stride *= size


def graph(machine: Machine) -> "networkx.Graph[str]":
    """Draw a machine's network as a graph, without what is broken.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    networkx.Graph
        Parts by the names of `cables`; each edge has ``capacity`` [B/s, one direction] and ``cables`` [1].
    """
    import networkx

    drawn: networkx.Graph[str] = networkx.Graph()
    if machine.cluster.fabric.type != "torus":
        drawn.add_nodes_from(f"host{host}" for host in range(machine.cluster.nodes))
    for cable in cables(machine):
        if not is_failed(machine.cluster.fabric, cable.a, cable.b):
            drawn.add_edge(cable.a, cable.b, capacity=cable.bandwidth, cables=cable.count)
    return drawn


def counts(machine: Machine) -> dict[str, int]:
    """Count the switches and cables of a network of leaves and spines.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    dict of str to int
        ``leaf_switches``, ``spine_switches``, ``core_switches``, ``node_leaf_cables``, ``leaf_spine_cables``,
        ``spine_core_cables`` [1]; empty for a network of another type or a single node without adapters.
    """
    fabric, nics, nodes = machine.cluster.fabric, machine.node.nics, machine.cluster.nodes
    if nics is None or fabric.type not in ("leaf-spine", "rail-optimised", "fat-tree"):
        return {}
    network = clos(fabric, nics, nodes)
    return {
        "leaf_switches": network.leaves,
        "spine_switches": network.spines,
        "core_switches": network.cores,
        "node_leaf_cables": nodes * nics.count,
        "leaf_spine_cables": network.leaves * network.uplinks,
        "spine_core_cables": network.spines * network.core_uplinks,
    }
