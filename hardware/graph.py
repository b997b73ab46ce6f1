"""A machine as a graph of capacities, and a network of leaves and spines as arrays."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hardware.cables import SWITCHED, Cable, cables, site_nodes, split_name
from hardware.catalogue import Machine
from hardware.clos import clos, core_cables
from hardware.devices import joins, nearest_ports, numa_domains
from hardware.fabric import capacity, kind_of

if TYPE_CHECKING:
    import networkx
    import numpy
    from numpy.typing import NDArray

    from hardware.importers.bandwidth_matrix import BandwidthMatrix

    Rates = NDArray[numpy.float64]
    Places = NDArray[numpy.int64]


def graph(machine: Machine, detail: Literal["nodes", "devices"] = "nodes") -> "networkx.Graph[str]":
    """Draw a machine as a graph of capacities, without what is broken.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.
    detail
        ``nodes``: each node is one part, ``host0`` on. ``devices``: in its place stand its devices, ``host0/gpu0``,
        ``host0/nic0`` and so on, by the names of `hardware.devices.joins`.

    Returns
    -------
    networkx.Graph
        Parts of the network by the names of `hardware.cables.cables`. Each edge has ``capacity`` [B/s, one direction;
        infinite where nothing is known to limit it], ``cables`` [1] and ``type``, that of the link or the protocol.
        Each part has ``kind``, its name without number and node; devices also ``host`` and ``numa``, numbers of their
        node and NUMA domain.
    """
    import networkx

    fabric, nodes = machine.cluster.fabric, machine.cluster.nodes
    drawn: networkx.Graph[str] = networkx.Graph()
    if fabric.type != "torus" and detail == "nodes":
        drawn.add_nodes_from(f"host{host}" for host in range(nodes))
    if detail == "devices":
        _add_devices(drawn, machine)
    protocol = machine.node.nics.protocol if machine.node.nics else ""
    for cable in cables(fabric, machine.node, nodes):
        rate = capacity(fabric, cable.a, cable.b, cable.bandwidth)
        if rate > 0:
            kind = {"chip": "ici", "domain": "nvswitch"}.get(kind_of(cable.b), protocol)
            for a, b, share in _ends(machine, cable, detail):
                drawn.add_edge(a, b, capacity=rate * share, cables=max(1, round(cable.count * share)), type=kind)
    for name, data in drawn.nodes(data=True):
        data["kind"] = kind_of(name.rpartition("/")[2])
    return drawn


def _add_devices(drawn: "networkx.Graph[str]", machine: Machine) -> None:
    fabric, node, count = machine.cluster.fabric, machine.node, machine.node.accelerators.count
    accelerator_domains, port_domains = numa_domains(node)
    domains = {f"gpu{index}": domain for index, domain in enumerate(accelerator_domains)}
    domains |= {f"nic{port}": domain for port, domain in enumerate(port_domains)}
    inside = tuple(joins(node, domain=fabric.type == "nvlink-domain"))
    for host in range(machine.cluster.nodes):
        names = {f"gpu{index}": f"host{host}/gpu{index}" for index in range(count)}
        if fabric.type == "torus":
            names = {f"gpu{index}": f"chip{host * count + index}" for index in range(count)}
        for join in inside:
            if not (fabric.type == "torus" and join.type == "ici"):
                a, b = (names.setdefault(end, f"host{host}/{end}") for end in (join.a, join.b))
                drawn.add_edge(a, b, capacity=join.bandwidth, cables=1, type=join.type)
        for short, name in names.items():
            numa = int(short.removeprefix("cpu")) if short.startswith("cpu") else domains.get(short)
            drawn.add_node(name, host=host, numa=numa)


def _ends(machine: Machine, cable: Cable, detail: str) -> Iterator[tuple[str, str, float]]:
    """Find what a cable of the network joins in a drawing, each pair with its share of the rate."""
    ones, others = (
        _at_end(machine, one, other) if detail == "devices" and kind_of(one) == "host" else [one]
        for one, other in ((cable.a, cable.b), (cable.b, cable.a))
    )
    most = max(len(ones), len(others))
    yield from ((ones[place % len(ones)], others[place % len(others)], 1 / most) for place in range(most))


def _at_end(machine: Machine, host: str, other: str) -> list[str]:
    """List the devices of a node that its cable to another part of the network ends at."""
    nics = machine.node.nics
    if kind_of(other) == "domain" or nics is None:
        return [f"{host}/gpu{index}" for index in range(machine.node.accelerators.count)]
    if machine.cluster.fabric.type in SWITCHED:
        fabric = machine.cluster.fabric
        network = clos(fabric, nics, site_nodes(fabric, machine.cluster.nodes))
        rail = int(other.removeprefix("leaf")) % network.rails
        return [f"{host}/nic{port}" for port in range(rail, nics.count, network.rails)]
    return [f"{host}/nic{port}" for port in range(nics.count)]


@dataclass(frozen=True)
class LeafSpine:
    """A network of leaves and spines as arrays; rows and columns follow the numbers in the switches' names.

    Parameters
    ----------
    up
        Rate from leaf i to spine s [B/s, one direction], of shape (leaves, spines); 0 where there is no cable or it is
        broken.
    down
        Rate from spine s to leaf j [B/s], of shape (spines, leaves).
    leaf
        Number of the leaf that port p of node h is on, of shape (nodes, ports of a node).
    port
        Rate of that port in one direction [B/s], of the same shape; 0 if it is broken.
    near
        Whether a port is among the nearest to an accelerator of its node, of shape (accelerators of a node, ports of a
        node).
    core
        Rate from spine s to core switch c in one direction [B/s], of shape (spines, cores); no columns if there are two
        levels.
    """

    up: "Rates"
    down: "Rates"
    leaf: "Places"
    port: "Rates"
    near: "NDArray[numpy.bool_]"
    core: "Rates"

    @property
    def leaves(self) -> int:
        """Leaf switches."""
        return int(self.up.shape[0])

    @property
    def spines(self) -> int:
        """Spine switches."""
        return int(self.up.shape[1])

    @property
    def hosts(self) -> int:
        """Nodes."""
        return int(self.leaf.shape[0])


def leaf_spine(machine: Machine) -> LeafSpine:
    """Lay a network of leaves and spines out as arrays, overrides and failures applied.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    LeafSpine
        Its capacities.

    Raises
    ------
    ValueError
        The network has another shape, or the nodes have no adapters.
    """
    import numpy

    fabric, nics, nodes = machine.cluster.fabric, machine.node.nics, machine.cluster.nodes
    if fabric.type not in SWITCHED or nics is None or nodes > site_nodes(fabric, nodes):
        what = fabric.type if nodes == site_nodes(fabric, nodes) else "several sites"
        raise ValueError(f"a network of leaves and spines is needed, not {what}")
    network = clos(fabric, nics, nodes)
    up = numpy.zeros((network.leaves, network.spines))
    for leaf in range(network.leaves):
        up[leaf, network.spines_of(leaf)] = network.cables_per_pair * network.link
    core = numpy.zeros((network.spines, network.cores))
    for spine in range(network.spines if network.core_uplinks else 0):
        for number, count in core_cables(network, spine).items():
            core[spine, number] = count * network.link
    hosts, ports = numpy.arange(nodes)[:, None], numpy.arange(nics.count)
    leaf_of = hosts // network.hosts_per_leaf * network.rails + ports % network.rails
    port = numpy.full(leaf_of.shape, nics.bandwidth)
    if fabric.failed or fabric.overrides:
        for leaf, spine in numpy.argwhere(up):
            up[leaf, spine] = capacity(fabric, f"leaf{leaf}", f"spine{spine}", up[leaf, spine])
        for spine, number in numpy.argwhere(core):
            core[spine, number] = capacity(fabric, f"spine{spine}", f"core{number}", core[spine, number])
        shared = nics.count // network.rails
        for host, nic in numpy.ndindex(port.shape):
            together = capacity(fabric, f"host{host}", f"leaf{leaf_of[host, nic]}", nics.bandwidth * shared)
            port[host, nic] = together / shared
    near = numpy.zeros((machine.node.accelerators.count, nics.count), dtype=bool)
    for accelerator, mine in enumerate(nearest_ports(machine.node)):
        near[accelerator, mine] = True
    return LeafSpine(up, up.T.copy(), leaf_of, port, near, core)


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
    if nics is None or fabric.type not in SWITCHED:
        return {}
    network = clos(fabric, nics, site_nodes(fabric, nodes))
    sites = nodes // site_nodes(fabric, nodes)
    return {
        "leaf_switches": sites * network.leaves,
        "spine_switches": sites * network.spines,
        "core_switches": sites * network.cores,
        "node_leaf_cables": nodes * nics.count,
        "leaf_spine_cables": sites * network.leaves * network.uplinks,
        "spine_core_cables": sites * network.spines * network.core_uplinks,
    }


def bisection(machine: Machine) -> float:
    """Work out how fast one half of a machine's nodes can send to the other.

    Parameters
    ----------
    machine
        The machine; all nodes of its cluster count.

    Returns
    -------
    float
        Rate in one direction [B/s]; 0 for a single node.

    Notes
    -----
    The maximum flow (Ford and Fulkerson 1956) from the first half of the nodes to the rest; of a torus, from one half
    of its longest dimension to the other. Regular networks have no tighter cut into halves.
    """
    import numpy
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    fabric = machine.cluster.fabric
    drawn = graph(machine)
    if fabric.type == "torus":
        dims = fabric.dims or ()
        size = max(dims)
        stride = math.prod(dims[: dims.index(size)])
        upper = {name: split_name(name)[1] // stride % size >= size / 2 for name in drawn}
    else:
        upper = {f"host{host}": host >= machine.cluster.nodes / 2 for host in range(machine.cluster.nodes)}
    if len({*upper.values()}) < 2:
        return 0.0
    place = {name: index for index, name in enumerate(drawn)}
    links = [(place[a], place[b], data["capacity"]) for a, b, data in drawn.edges(data=True)]
    source, sink = len(place), len(place) + 1
    most = sum(rate for *_, rate in links)
    ends = [(source, place[name], most) if not far else (place[name], sink, most) for name, far in upper.items()]
    both = [*links, *((b, a, rate) for a, b, rate in links), *ends]
    rows, columns, rates = (numpy.array(each) for each in zip(*both, strict=True))
    # The algorithm counts in whole numbers of 32 bits, no link more than all of them together.
    unit = float(numpy.gcd.reduce(rates.astype(numpy.int64)))
    if most / unit >= 2**31 or (rates % 1).any():
        unit = most / (2**31 - 1)
    whole = numpy.floor(rates / unit).astype(numpy.int32)
    parts = sink + 1
    matrix = coo_array((whole, (rows, columns)), shape=(parts, parts)).tocsr()
    return float(maximum_flow(matrix, source, sink).flow_value * unit)


def measured_bandwidth(machine: Machine) -> "BandwidthMatrix | None":
    """Give the rates that were measured between a machine's nodes.

    Parameters
    ----------
    machine
        The machine.

    Returns
    -------
    BandwidthMatrix or None
        Rates [B/s] in the order of host0, host1, ... of the whole cluster: by these names if the matrix has them, else
        in its own order. None if the description has none.
    """
    import numpy

    from hardware.importers.bandwidth_matrix import BandwidthMatrix, parse

    text = machine.cluster.bandwidth
    if text is None:
        return None
    found = parse(text, "bandwidth", partitions=True)
    own = [f"host{host}" for host in range(machine.cluster.nodes)]
    if {*found.names} != {*own}:
        return found
    places = [found.names.index(name) for name in own]
    return BandwidthMatrix(tuple(own), found.bandwidth[numpy.ix_(places, places)])
