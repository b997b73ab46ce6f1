"""The devices of a node and what joins them: accelerators, switches, processors of the host, network ports."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from hardware.cables import link_bandwidth
from hardware.network import Link
from hardware.schema import Node


@dataclass(frozen=True)
class Join:
    """What joins two devices of a node.

    Parameters
    ----------
    a, b
        Names of the devices.
    bandwidth
        Rate in one direction [B/s]; infinite where nothing is known to hold it up.
    type
        Type of the link, such as ``nvswitch`` or ``pcie``; ``host`` between processors.
    """

    a: str
    b: str
    bandwidth: float
    type: str


def nearest_ports(node: Node) -> tuple[tuple[int, ...], ...]:
    """Tell which ports into the network are nearest to each accelerator of a node.

    Parameters
    ----------
    node
        The node.

    Returns
    -------
    tuple of tuple of int
        Numbers of the ports of each accelerator. Where the description does not list them, ports are spread evenly over
        the accelerators in their order, so that neighbours share one where there are fewer ports.
    """
    count, nics = node.accelerators.count, node.nics
    if nics is None:
        return ((),) * count
    if nics.nearest is not None:
        return tuple(tuple(port for port, near in enumerate(nics.nearest) if index in near) for index in range(count))
    each = max(1, nics.count // count)
    firsts = [index * nics.count // count for index in range(count)]
    return tuple(tuple(range(first, min(first + each, nics.count))) for first in firsts)


def numa_domains(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tell to which processor of the host each device of a node is attached.

    Parameters
    ----------
    node
        The node.

    Returns
    -------
    tuple of tuple of int
        Number of the NUMA domain of each accelerator and of each port; 0 for all where the description has none.
    """
    count, ports = node.accelerators.count, node.nics.count if node.nics else 0
    if node.numa is None:
        return (0,) * count, (0,) * ports
    if node.numa.nics is not None:
        return node.numa.accelerators, node.numa.nics
    owners = nearest_ports(node)
    near = {port: domain for mine, domain in zip(owners, node.numa.accelerators, strict=True) for port in mine}
    return node.numa.accelerators, tuple(near.get(port, 0) for port in range(ports))


def joins(node: Node, *, domain: bool = False) -> Iterator[Join]:
    """List what joins the devices of a node.

    Parameters
    ----------
    node
        The node.
    domain
        Whether switches outside the node join its accelerators: then the node's own NVSwitch is part of them.

    Yields
    ------
    Join
        Accelerators are called gpu0 on; switches between them by the name of their link, such as nvlink0, pcie0 on;
        processors of the host, one for each NUMA domain, cpu0 on; ports into the network nic0 on.

    Notes
    -----
    A link that ``shared_by`` accelerators use is a switch below which each has the full rate, and above which they
    share it. A mesh has the rates of its ``pairs``, or equal shares of an accelerator's rate to each of the others. A
    port is attached where its nearest accelerators are: to the PCI Express switch that they share, to the accelerator
    itself where it is one without a link to the host, else to the processor. What stands between a port and its switch
    is taken to be as fast as the port.
    """
    count = node.accelerators.count
    accelerator_domains, port_domains = numa_domains(node)
    above: dict[int, str] = {}
    for link in node.links:
        size = link.group or count
        groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
        rate = link.bandwidth or 0.0
        if link.type in ("pcie", "nvlink-c2c"):
            for index in range(count):
                processor = f"cpu{accelerator_domains[index]}"
                above.setdefault(index, processor)
                if link.shared_by > 1:
                    above[index] = switch = f"{link.name}{index // link.shared_by}"
                    yield Join(f"gpu{index}", switch, rate, link.type)
                    if index % link.shared_by == 0:
                        yield Join(switch, processor, rate, link.type)
                else:
                    yield Join(f"gpu{index}", processor, rate, link.type)
        elif link.pairs is not None:
            for name, between in link.pairs.items():
                ends = name.split("-")
                yield Join(f"gpu{ends[0]}", f"gpu{ends[1]}", between, link.type)
        elif link.type in ("nvlink-mesh", "xgmi"):
            yield from _mesh(link, groups)
        elif not (domain and link.type == "nvswitch"):
            for number, group in enumerate(groups):
                for index in group:
                    yield Join(f"gpu{index}", f"{link.name}{number}", link_bandwidth(link), link.type)
    for one, other in itertools.combinations(sorted({*accelerator_domains, *port_domains}), 2):
        limit = node.numa.bandwidth if node.numa and node.numa.bandwidth else math.inf
        yield Join(f"cpu{one}", f"cpu{other}", limit, "host")
    owners: dict[int, list[int]] = {}
    for index, mine in enumerate(nearest_ports(node)):
        for port in mine:
            owners.setdefault(port, []).append(index)
    for port in range(node.nics.count if node.nics else 0):
        rate = node.nics.bandwidth if node.nics else 0.0
        places = {above.get(index, f"gpu{index}") for index in owners.get(port, ())}
        yield Join(f"nic{port}", places.pop() if len(places) == 1 else f"cpu{port_domains[port]}", rate, "pcie")


def _mesh(link: Link, groups: list[range]) -> Iterator[Join]:
    for group in groups:
        share = link_bandwidth(link) / max(1, len(group) - 1)
        yield from (
            Join(f"gpu{one}", f"gpu{other}", share, link.type) for one, other in itertools.combinations(group, 2)
        )
