"""Who reaches whom how fast: the levels of a machine, its switches and cables.

A machine is a tower of levels. Inside one unit of the lowest level (a pair of GCDs, a node) ranks talk over its links;
to talk to another unit they use the next level, and so on. Costs of communication need no more than this.
"""

import heapq
import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from hardware.cables import (
    Cable,
    cables,
    domain_bandwidth,
    domain_link,
    link_bandwidth,
    network_bandwidth,
    site_nodes,
    split_name,
    torus_bandwidth,
    torus_neighbour,
)
from hardware.catalogue import Machine
from hardware.clos import clos
from hardware.fabric import capacity, core_share, kept_shares, leaf_share
from hardware.graph import LeafSpine as LeafSpine
from hardware.graph import bisection as bisection
from hardware.graph import counts as counts
from hardware.graph import graph as graph
from hardware.graph import leaf_spine as leaf_spine
from hardware.graph import measured_bandwidth as measured_bandwidth
from hardware.network import Fabric

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


MESHES = ("xgmi", "nvlink-mesh")
"""Types of link whose rate is that of all direct links of an accelerator together, one to every other."""


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
    by the oversubscription, above the spines by that of the core too; broken and slow links lower it to the share that
    the worst node, pair of leaves (`hardware.fabric.leaf_share`) or group keeps. A network of any other shape
    (``edges``) has one level with the least of the rates that its cuts allow (`cut_bandwidth`). Lines between sites are
    the last level: the ranks of a site share the line to the next one.
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
    site = _unit(total, site_nodes(fabric, hosts) * per_node, per_node)
    tower = [*_node_levels(machine, per_node), *_network_levels(machine, site // per_node, per_node, total // site)]
    if fabric.wan is not None and site < total:
        way = 2 * ADAPTER_LATENCY_S + fabric.wan.latency
        rates = [_line_rate(machine, hosts) / per_node, *(level.bandwidth for level in tower)]
        if machine.node.nics is not None:
            rates.append(network_bandwidth(machine.node.nics, count))
        tower.append(Level("wan", total, min(rates), way, "ethernet"))
    return tuple(
        level
        for below, level in zip([1, *(level.ranks for level in tower)], tower, strict=False)
        if level.ranks > below
    )


def _line_rate(machine: Machine, hosts: int) -> float:
    """Give what a node has of the worst line between sites when all of its site send over it [B/s].

    Where a line is broken, its traffic goes over a third site, whose lines then carry twice as much.
    """
    fabric, each = machine.cluster.fabric, site_nodes(machine.cluster.fabric, hosts)
    sites = math.ceil(hosts / each)
    used = {f"site{site}" for site in range(sites)}
    links = cables(fabric, machine.node, machine.cluster.nodes)
    now = [capacity(fabric, link.a, link.b, link.bandwidth) for link in links if {link.a, link.b} <= used]
    return min(rate for rate in now if rate) / (1 if all(now) else 2) / math.ceil(hosts / sites)


def _unit(total: int, limit: int, inner: int) -> int:
    """Find the most ranks a unit can hold so that units are equal and made of whole inner units."""
    most = min(total, limit) // inner
    return inner * next((size for size in range(most, 1, -1) if total // inner % size == 0), 1)


def _node_levels(machine: Machine, per_node: int) -> Iterator[Level]:
    """Walk up the links between accelerators of a node; PCI Express only where nothing better joins them."""
    count = machine.node.accelerators.count
    direct = [link for link in machine.node.links if link.type in ("nvswitch", "nvlink-mesh", "xgmi", "ici")]
    if not any((link.group or count) == count for link in direct):
        direct += [link for link in machine.node.links if link.type in ("pcie", "ethernet")]
    inner = below = 1
    for group in sorted({link.group or count for link in direct}):
        link = max((link for link in direct if (link.group or count) == group), key=link_bandwidth)
        rate = link_bandwidth(link)
        peers, inner = inner, _unit(per_node, group, inner)
        if link.type in MESHES and inner > peers:
            # an accelerator has a link of its own to every other: only those to the job's carry anything
            rate *= (inner / peers - 1) / (group / below - 1)
        below = group
        latency = LINK_LATENCY_S[link.type] if link.latency is None else link.latency
        yield Level("node" if group == count else link.name, inner, rate, latency, link.type)


def _network_levels(machine: Machine, hosts: int, per_node: int, sites: int) -> Iterator[Level]:
    """Walk up the network of one site, as slow as the worst of those in use; so many nodes of each."""
    fabric, node, total = machine.cluster.fabric, machine.node, hosts * per_node
    nics = node.nics
    if hosts == 1:
        return
    nodes = machine.cluster.nodes
    each = site_nodes(fabric, nodes)
    used = {site * each + host for site in range(sites) for host in range(hosts)}
    kept = kept_shares(fabric, node, nodes, used) if fabric.type != "edges" else {}
    if fabric.type == "nvlink-domain":
        link = domain_link(node)
        latency = link.latency if link and link.latency is not None else LINK_LATENCY_S["nvswitch"]
        domain = _unit(total, (fabric.hosts_per_group or hosts) * per_node, per_node)
        fast = domain_bandwidth(fabric, node) * kept.get("host-domain", 1.0)
        out = _domain_share(machine, used) / (fabric.oversubscription or 1.0)
        if not fast and nics is not None:  # a node without its NVLink goes through the network
            fast = network_bandwidth(nics, node.accelerators.count) * out
        yield Level("domain", domain, fast, latency, "nvswitch")
        if domain == total:
            return
    if nics is None:
        return
    rate = network_bandwidth(nics, node.accelerators.count)
    hop = SWITCH_LATENCY_S[nics.protocol] if fabric.switch_latency is None else fabric.switch_latency

    def level(name: str, ranks: int, share: float, switches: int, way: float = 0.0) -> Level:
        return Level(name, ranks, rate * share, 2 * ADAPTER_LATENCY_S + switches * hop + way, nics.protocol)

    if fabric.type == "nvlink-domain":
        yield level("fabric", total, out, 3)
    elif fabric.type == "dragonfly":
        group = _unit(total, (fabric.hosts_per_group or hosts) * per_node, per_node)
        own = kept.get("host-group", 1.0)
        across = min(own, fabric.taper * kept.get("group-group", 1.0))
        # Shortest paths: two routers inside a group; between groups one more before and after the global link.
        yield level("fabric" if group == total else "group", group, own if fabric.hosts_per_group else across, 2)
        yield level("global", total, across, 4)
    elif isinstance(fabric.edges, tuple):
        links = working_cables(machine)
        ways = _ways(links, "host0", hop)
        farthest = max(ways[f"host{host}"] for host in range(hosts))
        share = min(1.0, cut_bandwidth(links, hosts) / (rate * per_node))
        yield level("fabric", total, share, farthest.switches, farthest.latency)
    else:
        network = clos(fabric, nics, each)
        leaf = _unit(total, network.hosts_per_leaf * per_node, per_node)
        own = kept.get("host-leaf", 1.0)
        yield level("leaf", leaf, own, 1)
        pod = _unit(total, network.hosts_per_pod * per_node, leaf) if network.pods > 1 else total
        share = leaf_share(fabric, network, hosts, sites) / network.oversubscription
        yield level("spine", pod, min(own, share), 3)
        share *= min(1.0, core_share(fabric, network, hosts, sites) / network.core_oversubscription)
        yield level("core", total, min(own, share), 5)


def _domain_share(machine: Machine, used: Collection[int]) -> float:
    """Work out how much of its rate into the network the worst domain of NVLink keeps: its nodes share what is left."""
    fabric, nodes = machine.cluster.fabric, machine.cluster.nodes
    if not (fabric.failed or fabric.overrides):
        return 1.0
    size = fabric.hosts_per_group or nodes
    built: dict[int, float] = {}
    kept: dict[int, float] = {}
    for cable in cables(fabric, machine.node, nodes):
        kind, host = split_name(cable.a)
        if kind == "host" and host in used and cable.b.startswith("network"):
            domain = host // size
            built[domain] = built.get(domain, 0.0) + cable.bandwidth
            kept[domain] = kept.get(domain, 0.0) + capacity(fabric, cable.a, cable.b, cable.bandwidth)
    return min((min(1.0, kept[domain] / built[domain]) for domain in built), default=1.0)


class _Way(NamedTuple):
    """A way through a network: its time [s], of which so much on its cables [s], and the switches on it."""

    time: float
    latency: float
    switches: int


def _ways(links: tuple[Cable, ...], start: str, hop: float) -> dict[str, _Way]:
    """Find the quickest way from one node to every other part (Dijkstra 1959), `hop` [s] through a switch."""
    beside: dict[str, list[tuple[str, float]]] = {}
    for link in links:
        beside.setdefault(link.a, []).append((link.b, link.latency))
        beside.setdefault(link.b, []).append((link.a, link.latency))
    found: dict[str, _Way] = {}
    ahead = [(_Way(0.0, 0.0, 0), start)]
    while ahead:
        way, here = heapq.heappop(ahead)
        if here in found:
            continue
        found[here] = way
        switches = way.switches + (here != start)
        for name, latency in beside.get(here, ()):
            if name not in found:
                on_cables = way.latency + latency
                heapq.heappush(ahead, (_Way(on_cables + switches * hop, on_cables, switches), name))
    return found


def _torus_levels(machine: Machine, total: int) -> tuple[Level, ...]:
    """Make each dimension a level: a ring where the job fills it, else a line.

    A rank of a full ring of more than two sends both ways round at once, so it has twice the rate of a link; in a part
    of a ring, which is a line, the way back takes the other direction of the same links. Dimensions that work at the
    same time are faster than the levels one after the other say.

    A ring that lost a link is a line. A line that lost one sends round over the line beside it, which then carries
    twice as much. All lines of a dimension work in step, so the slowest link sets its pace.
    """
    fabric, node = machine.cluster.fabric, machine.node
    dims = fabric.dims or ()
    own = [link for link in node.links if link.type == "ici"]
    latency = next((link.latency for link in own if link.latency is not None), LINK_LATENCY_S["ici"])
    rate = torus_bandwidth(fabric, node)
    tower: list[Level] = []
    inner = 1
    for index, size in enumerate(dims):
        ranks = _unit(total, inner * size, inner) if index < len(dims) - 1 else total
        if ranks > inner:
            ring = ranks // inner == size > 2
            kept = _torus_rates(fabric, dims, index, rate, total)
            lost = 0.0 in kept
            slowest = min((one for one in kept if one), default=0.0)
            ways = (1.0 if lost else 2.0) if ring else (0.5 if lost else 1.0)
            tower.append(Level(f"dimension {index}", ranks, slowest * ways, latency, "ici"))
        inner = ranks
    return tuple(tower)


def _torus_rates(fabric: Fabric, dims: tuple[int, ...], dimension: int, built: float, total: int) -> set[float]:
    """Collect the rates of the links along one dimension between accelerators in use [B/s]."""
    if not (fabric.failed or fabric.overrides):
        return {built}
    pairs = ((chip, torus_neighbour(dims, chip, dimension)) for chip in range(total))
    return {
        capacity(fabric, f"chip{chip}", f"chip{other}", built)
        for chip, other in pairs
        if other is not None and other < total
    }


def working_cables(machine: Machine) -> tuple[Cable, ...]:
    """List the cables of a machine's network that carry anything, at the rates they have.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    tuple of Cable
        What is broken is left out; rates are those of ``overrides`` where they are written.
    """
    fabric = machine.cluster.fabric
    found = (
        replace(cable, bandwidth=capacity(fabric, cable.a, cable.b, cable.bandwidth))
        for cable in cables(fabric, machine.node, machine.cluster.nodes)
    )
    return tuple(cable for cable in found if cable.bandwidth > 0)


def cut_bandwidth(links: Iterable[Cable], hosts: int) -> float:
    """Work out how fast each node of a network of any shape can send when all send across it.

    Parameters
    ----------
    links
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
    links = tuple(links)
    names = [f"host{host}" for host in range(hosts)]
    beside: dict[str, set[str]] = {}
    for link in links:
        for one, other in ((link.a, link.b), (link.b, link.a)):
            if one in names:
                beside.setdefault(other, set()).add(one)
    cuts = {frozenset([name]) for name in names} | {frozenset(group) for group in beside.values()}
    cuts.add(frozenset(names[: hosts // 2]))
    return min(
        _max_flow(links, cut, frozenset(names) - cut) / min(len(cut), hosts - len(cut))
        for cut in cuts
        if 0 < len(cut) < hosts
    )


def _max_flow(links: tuple[Cable, ...], sources: frozenset[str], sinks: frozenset[str]) -> float:
    """Find the maximum flow between two sets of nodes along shortest augmenting paths (Edmonds and Karp 1972) [B/s]."""
    left: dict[str, dict[str, float]] = {}
    for link in links:
        for one, other in ((link.a, link.b), (link.b, link.a)):
            ends = left.setdefault(one, {})
            ends[other] = ends.get(other, 0.0) + link.bandwidth
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
