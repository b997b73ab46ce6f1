"""Networks of leaf, spine and core switches: what a description leaves out, worked out from the rest.

A contradiction between the numbers that were written is a fault that names them.
"""

import math
from dataclasses import dataclass

from hardware.faults import KeyFaultsError
from hardware.network import Fabric, Nics
from hardware.units import format_quantity

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
    planes
        Groups of rails, each with as many of a pod's spines.
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
    planes: int

    @property
    def spines_per_leaf(self) -> int:
        """Spines that a leaf has cables to."""
        return self.spines_per_pod // self.planes

    @property
    def cables_per_pair(self) -> int:
        """Cables between a leaf and each of its spines."""
        return self.uplinks // self.spines_per_leaf

    @property
    def hosts_per_pod(self) -> int:
        """Nodes below the leaves of one pod."""
        return max(1, self.leaves_per_pod // self.rails) * self.hosts_per_leaf

    def spines_of(self, leaf: int) -> range:
        """List the spines that a leaf has cables to."""
        plane = leaf % self.rails * self.planes // self.rails
        first = leaf // self.leaves_per_pod * self.spines_per_pod + plane * self.spines_per_leaf
        return range(first, first + self.spines_per_leaf)


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
    planes = fabric.planes or 1
    if rails % planes:
        raise KeyFaultsError((("planes",), f"{rails} rails do not spread evenly over {planes} planes"))
    ports = nics.count // rails
    hosts, leaves = _hosts_and_leaves(fabric, nodes, rails, ports, radix)
    link = fabric.link or nics.bandwidth
    below = hosts * ports * nics.bandwidth
    uplinks, oversubscription = _uplinks(fabric, hosts, ports, nics.bandwidth, below, link)

    too_many = fabric.type == "rail-optimised" and fabric.spines is None and leaves // planes > radix
    share = fabric.core_oversubscription
    if too_many or _has_cores(fabric):
        down = max(1, round(radix * share / (1 + share)))  # ports of a spine towards its leaves
        leaves_per_pod = min(leaves, down - down % rails if down >= rails else down)
        pods = math.ceil(leaves / leaves_per_pod)
    else:
        down, leaves_per_pod, pods = radix, leaves, 1
    per_pod = planes * _spines_per_plane(
        fabric, uplinks, leaves_per_pod // planes, down, pods * planes, oversubscription
    )
    spines = per_pod * pods
    core_uplinks = math.ceil(leaves_per_pod // planes * (uplinks * planes // per_pod) / share - 1e-9) if pods > 1 else 0
    fewest = math.ceil(spines * core_uplinks / radix)
    if fabric.cores is not None and pods == 1:
        message = f"{leaves} leaves fit into one pod of {leaves_per_pod}, which needs no core switches; leave cores out"
        raise KeyFaultsError((("cores",), message))
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
        planes=planes,
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
            f"each spine; one to each makes the oversubscription {below / (fabric.spines * link):.4g}; "
            "without spines their number follows"
        )
        raise KeyFaultsError((("oversubscription",), message))
    return max(1, round(cables)), said


def _spines_per_plane(fabric: Fabric, uplinks: int, leaves: int, down: int, parts: int, oversubscription: float) -> int:
    """Settle the spines that so many leaves share; the network has so many such parts."""
    if fabric.spines is None:
        fewest = leaves * uplinks / down
        return next((count for count in range(1, uplinks) if uplinks % count == 0 and count >= fewest), uplinks)
    if fabric.spines % parts or uplinks % (fabric.spines // parts):
        where = f" in {parts} {'planes' if (fabric.planes or 1) > 1 else 'pods'}" if parts > 1 else ""
        message = (
            f"{fabric.spines} spines{where} do not share the {uplinks} uplinks of a leaf evenly "
            f"(oversubscription {oversubscription:.4g}); without spines their number follows"
        )
        raise KeyFaultsError((("spines",), message))
    return fabric.spines // parts


def core_cables(network: Clos, spine: int) -> dict[int, int]:
    """Count the cables from one spine to each core switch.

    Parameters
    ----------
    network
        The network.
    spine
        Number of the spine.

    Returns
    -------
    dict of int to int
        Number of the core switch -> cables.

    Notes
    -----
    Spines in the same place of their pods share core switches of their own where the numbers allow it, as in a fat-tree
    (Al-Fares et al., SIGCOMM 2008); else the cables go round all core switches.
    """
    own, rest = divmod(network.cores, network.spines_per_pod)
    plane = spine % network.spines_per_pod
    cores = range(network.cores) if rest else range(plane * own, (plane + 1) * own)
    first = spine * network.core_uplinks if rest else 0
    cables: dict[int, int] = {}
    for cable in range(network.core_uplinks):
        core = cores[(first + cable) % len(cores)]
        cables[core] = cables.get(core, 0) + 1
    return cables
