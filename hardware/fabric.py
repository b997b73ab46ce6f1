"""The network between nodes: its links, whether it fits the nodes that stand on it, and what failures leave of it."""

import csv
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path as FilePath

from hardware.cables import SWITCHED, cables, site_nodes, split_name
from hardware.clos import Clos, clos, core_cables
from hardware.faults import Fault, InputError, KeyFaultsError, Path
from hardware.files import read_text
from hardware.network import Edge, Fabric
from hardware.schema import Node
from hardware.units import parse_quantity


def read_edges(path: FilePath) -> tuple[Edge, ...]:
    """Read the links of a network of any shape.

    Parameters
    ----------
    path
        CSV with the header ``a,b,bandwidth`` or ``a,b,bandwidth,latency``: bandwidth of one direction and time on the
        way, numbers of SI units or texts with a unit.

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
    rows = csv.reader(read_text(path).splitlines())
    header = [cell.strip() for cell in next(rows, [])]
    if header not in (["a", "b", "bandwidth"], ["a", "b", "bandwidth", "latency"]):
        message = f"the columns should be a,b,bandwidth and perhaps latency [got {','.join(header)!r}]"
        raise InputError([Fault(name, 1, 1, "", message)])
    edges, faults = [], []
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        try:
            if len(cells) != len(header) or not cells[0] or not cells[1] or cells[0] == cells[1]:
                raise ValueError("should be two different names and " + " and ".join(header[2:]))
            rate = parse_quantity(cells[2], "bytes/s")
            if rate == 0:
                raise ValueError("bandwidth should be greater than zero")
            latency = parse_quantity(cells[3], "s") if cells[3:] and cells[3] else 0.0
            edges.append(Edge(a=cells[0], b=cells[1], bandwidth=rate, latency=latency))
        except ValueError as error:
            faults.append(Fault(name, rows.line_num, 1, "", f"{error} [got {','.join(row)!r}]"))
    if faults:
        raise InputError(faults)
    return tuple(edges)


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
        Placed below the fabric: contradictions, parts that do not exist, and nodes that nothing connects.
    """
    if fabric.wan is not None and nodes > fabric.wan.hosts_per_site and nodes % fabric.wan.hosts_per_site:
        message = f"{nodes} nodes are not whole sites of {fabric.wan.hosts_per_site}"
        raise KeyFaultsError((("wan", "hosts_per_site"), message))
    if fabric.type == "torus":
        _check_torus(fabric, node, nodes)
    elif fabric.type == "nvlink-domain":
        if fabric.link is None and not any(link.type == "nvswitch" for link in node.links):
            raise KeyFaultsError((("link",), f'missing; node "{node.name}" has no link of type nvswitch either'))
        if node.nics is None and nodes > min(fabric.hosts_per_group or nodes, site_nodes(fabric, nodes)):
            raise KeyFaultsError(((), f'several domains need a network, but node "{node.name}" has no nics'))
    elif node.nics is None:
        if nodes > 1:
            raise KeyFaultsError(((), f'{nodes} nodes need a network, but node "{node.name}" has no nics'))
    elif fabric.type in SWITCHED:
        clos(fabric, node.nics, site_nodes(fabric, nodes))
    if isinstance(fabric.edges, tuple):
        _check_hosts(fabric.edges, nodes)
    if isinstance(fabric.edges, tuple) or fabric.failed or fabric.overrides:
        _check_links(fabric, node, nodes)


def _check_torus(fabric: Fabric, node: Node, nodes: int) -> None:
    size = math.prod(fabric.dims or ())
    have = nodes * node.accelerators.count
    if size != have:
        sizes = " x ".join(map(str, fabric.dims or ()))
        message = f"{sizes} = {size}, but {nodes} nodes of {node.accelerators.count} accelerators are {have}"
        raise KeyFaultsError((("dims",), message))
    if fabric.link is None and not any(link.type == "ici" for link in node.links):
        raise KeyFaultsError((("link",), f'missing; node "{node.name}" has no link of type ici either'))


def _check_hosts(edges: tuple[Edge, ...], nodes: int) -> None:
    names = {name for edge in edges for name in (edge.a, edge.b)}
    missing = [f"host{index}" for index in range(nodes) if f"host{index}" not in names]
    if missing:
        message = f"the nodes are called host0 to host{nodes - 1}; not among the links: {', '.join(missing[:5])}"
        raise KeyFaultsError((("edges",), message))


def _check_links(fabric: Fabric, node: Node, nodes: int) -> None:
    """Check that what is broken or of another rate exists, and that what is left joins all nodes."""
    beside: dict[str, set[str]] = {}
    for cable in cables(fabric, node, nodes):
        beside.setdefault(cable.a, set()).add(cable.b)
        beside.setdefault(cable.b, set()).add(cable.a)
    faults: list[tuple[Path, str]] = []
    named: list[tuple[Path, str, bool]] = [
        *((("failed", index), name, True) for index, name in enumerate(fabric.failed)),
        *((("overrides", name), name, False) for name in fabric.overrides),
    ]
    for key, name, whole in named:
        alone = whole and name in beside and (fabric.type == "edges" or kind_of(name) in ("spine", "core"))
        if not (alone or any(b in beside.get(a, ()) for a, b in _ends(name))):
            faults.append((key, _no_such_part(beside, whole, name)))
    if faults:
        raise KeyFaultsError(*faults)
    for name in beside:
        around = beside[name]
        if (
            kind_of(name) in ("spine", "core")
            and not is_failed(fabric, name)
            and all(is_failed(fabric, name, other) for other in around)
        ):
            message = f'{name} has no capacity left: all its cables are broken; write "{name}" if the switch is out'
            faults.append((("failed",), message))
    if faults:
        raise KeyFaultsError(*faults)
    start = next(iter(beside), "") if fabric.type == "torus" else "host0"
    reached = _reached(fabric, beside, start)
    # What failures leave of a network may have switches that nothing uses; one that was built so is a mistake.
    needed = ("chip", "host") if fabric.failed else {kind_of(name) for name in beside}
    cut_off = sorted((name for name in beside if kind_of(name) in needed and name not in reached), key=split_name)
    if cut_off:
        shown = ", ".join(cut_off[:5]) + (f" and {len(cut_off) - 5} more" if len(cut_off) > 5 else "")
        where = "failed" if fabric.failed else "edges"
        raise KeyFaultsError(
            ((where,), f"{'too much is broken: ' if fabric.failed else ''}no path from {start} to {shown}")
        )
    if fabric.type in SWITCHED and node.nics is not None:
        hosts = site_nodes(fabric, nodes)
        network = clos(fabric, node.nics, hosts)
        if not (
            leaf_share(fabric, network, hosts, nodes // hosts) and core_share(fabric, network, hosts, nodes // hosts)
        ):
            raise KeyFaultsError((("failed",), "too much is broken: two leaves have no path between them"))


def _ends(name: str) -> list[tuple[str, str]]:
    """Split the name of a link in two, at any of its hyphens: names of switches may hold some themselves."""
    places = [place for place, mark in enumerate(name) if mark == "-"]
    return [(name[:place], name[place + 1 :]) for place in places]


def _no_such_part(beside: Mapping[str, set[str]], whole: bool, name: str) -> str:
    most: dict[str, int] = {}
    for part in beside:
        most[kind_of(part)] = max(most.get(kind_of(part), 0), split_name(part)[1])
    names = ", ".join(f"{kind}0 to {kind}{last}" for kind, last in list(most.items())[:5] if kind != "host")
    one = next((part for part in beside if kind_of(part) in ("leaf", "group", "domain")), next(iter(beside), "host0"))
    other = next(iter(sorted(beside.get(one, ()), reverse=True)), "leaf0")
    alone = "a spine or core alone or " if whole and "spine" in most else ""
    what = "no such part" if whole else "no such link"
    return f"{what}; allowed: {names}, {alone}two connected parts such as {one}-{other} [got {name!r}]"


def _reached(fabric: Fabric, beside: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """Collect the parts of a network that one of them can reach over cables that are not broken."""
    found = {start}
    ahead = [start]
    while ahead:
        here = ahead.pop()
        for name in beside.get(here, ()):
            if name not in found and not is_failed(fabric, here, name):
                found.add(name)
                ahead.append(name)
    return found


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


def capacity(fabric: Fabric, a: str, b: str, built: float) -> float:
    """Give what all cables between two parts of a network carry.

    Parameters
    ----------
    fabric
        The network.
    a, b
        Names of the parts.
    built
        Rate of the cables together as they were built, in one direction [B/s].

    Returns
    -------
    float
        Rate in one direction [B/s]: that of ``overrides`` where it is written, 0 where something is broken.
    """
    if not (fabric.failed or fabric.overrides):
        return built
    if is_failed(fabric, a, b):
        return 0.0
    return fabric.overrides.get(f"{a}-{b}", fabric.overrides.get(f"{b}-{a}", built))


def kept_shares(fabric: Fabric, node: Node, nodes: int, used: Collection[int]) -> dict[str, float]:
    """Work out how much of its rate the worst part of each kind keeps.

    Parameters
    ----------
    fabric
        The network.
    node
        One of the nodes.
    nodes
        Nodes of the cluster [1].
    used
        Numbers of the nodes in use.

    Returns
    -------
    dict of str to float
        Pair of kinds of part, such as ``host-leaf`` or ``group-group`` -> share of the rate as built [1], the least of
        those parts of the first kind that are in use. Slow and broken cables of a part count together: its traffic is
        spread over all it has.
    """
    if not (fabric.failed or fabric.overrides):
        return {}
    built: dict[tuple[str, str], float] = {}
    kept: dict[tuple[str, str], float] = {}
    below: dict[str, set[str]] = {}
    for cable in cables(fabric, node, nodes):
        for one, other in ((cable.a, cable.b), (cable.b, cable.a)):
            key = (one, f"{kind_of(one)}-{kind_of(other)}")
            if kind_of(other) == "host":
                below.setdefault(one, set()).add(other)
            built[key] = built.get(key, 0.0) + cable.bandwidth
            kept[key] = kept.get(key, 0.0) + capacity(fabric, cable.a, cable.b, cable.bandwidth)
    idle = {f"host{host}" for host in range(nodes) if host not in used}
    # So is what stands for switches that only idle nodes are on.
    idle |= {name for name, some in below.items() if some <= idle}
    shares: dict[str, float] = {}
    for (name, kinds), rate in built.items():
        if name not in idle:
            shares[kinds] = min(shares.get(kinds, 1.0), kept[name, kinds] / rate)
    return shares


def kind_of(name: str) -> str:
    """Give the kind of a part of a network: its name without the number."""
    return split_name(name)[0]


def leaf_share(fabric: Fabric, network: Clos, hosts: int, sites: int = 1) -> float:
    """Work out how much of its rate to the spines the worst pair of leaves has.

    Parameters
    ----------
    fabric
        The network as written.
    network
        The network of one site, complete.
    hosts
        Nodes in use at each site, the first ones of it [1].
    sites
        Sites in use, the first ones [1].

    Returns
    -------
    float
        Share of the rate as built [1]; 0 if two leaves have no spine in common, more than 1 if links are faster.

    Notes
    -----
    Two leaves of a rail with rates u[i, s] and u[j, s] to spine s have the sum over s of ``min(u[i, s], u[j, s])``
    between them: what goes up to a spine must come down from it. Traffic between neighbours of a ring is as slow as
    that.
    """
    if not (fabric.failed or fabric.overrides):
        return 1.0
    built = network.cables_per_pair * network.link
    used = network.rails * math.ceil(hosts / network.hosts_per_leaf)
    worst = math.inf
    for site, rail, pod in itertools.product(range(sites), range(network.rails), range(network.pods)):
        first_leaf, first_spine = site * network.leaves, site * network.spines
        leaves = range(pod * network.leaves_per_pod, min((pod + 1) * network.leaves_per_pod, used))
        # Most leaves are whole and alike: pairs of distinct rows, and one row with itself where two leaves have it.
        rows = Counter(
            tuple(
                capacity(fabric, f"leaf{first_leaf + leaf}", f"spine{first_spine + spine}", built)
                for spine in network.spines_of(leaf)
            )
            for leaf in leaves
            if leaf % network.rails == rail
        )
        pairs = [*itertools.combinations(rows, 2), *((row, row) for row, many in rows.items() if many > 1)]
        # A leaf alone in its pod still reaches the core through its spines.
        for one, other in pairs or [(row, row) for row in rows]:
            worst = min(worst, sum(map(min, one, other)) / (built * network.spines_per_leaf))
    return worst


def core_share(fabric: Fabric, network: Clos, hosts: int, sites: int = 1) -> float:
    """Work out how much of its rate to the core the worst pod has.

    Parameters
    ----------
    fabric
        The network as written.
    network
        The network of one site, complete.
    hosts
        Nodes in use at each site, the first ones of it [1].
    sites
        Sites in use, the first ones [1].

    Returns
    -------
    float
        Share of the rate as built [1].
    """
    if not (fabric.failed or fabric.overrides) or network.pods == 1:
        return 1.0
    kept = []
    for site, pod in itertools.product(
        range(sites), range(min(network.pods, math.ceil(hosts / network.hosts_per_pod)))
    ):
        first_spine, first_core = site * network.spines, site * network.cores
        rates = (
            capacity(fabric, f"spine{first_spine + spine}", f"core{first_core + core}", count * network.link)
            for spine in range(pod * network.spines_per_pod, (pod + 1) * network.spines_per_pod)
            for core, count in core_cables(network, spine).items()
        )
        kept.append(sum(rates))
    return min(kept) / (network.spines_per_pod * network.core_uplinks * network.link)
