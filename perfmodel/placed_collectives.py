"""Where measured collectives ran, and what the model predicts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hardware.catalogue import Machine, UnknownName, families_of, find
from hardware.network import Fabric, Nics
from hardware.schema import Accelerator, Cluster, Node
from hardware.topology import Level, levels
from perfmodel.collectives import (
    CollectiveModel,
    Group,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    collective_model,
    dispatch,
    group,
    send,
    visits,
)
from perfmodel.collectives.algorithms import engine_all_reduce
from perfmodel.collectives.model import Integers
from perfmodel.measured_collectives import CAPABILITIES, PROTOCOLS, Case
from perfmodel.measured_kernels import boards_of
from perfmodel.terms import Array
from perfmodel.validate_training import RowError, machine_of
from perfmodel.validation import Defaults

HOST_SPREAD = 0.3
"""Standard deviation of ln(latency) among hosts, where none is given: of empty all-reduces of eight accelerators that
take 12.9, 15.6, 22.6, 25 and 25 us on the five machines measured."""

ENGINE_SPREAD = 0.12
"""Standard deviation of ln(time) among the engines' own kernels, beside the link's: of three engines on two boxes."""

Predict = Callable[[Group, Array, CollectiveModel], Array]


@dataclass(frozen=True)
class Placed:
    """Rows on a machine.

    Parameters
    ----------
    ranks : Group
        The group that communicates.
    reference : Group
        Group whose empty all-reduce takes the host's latency: all of a node's accelerators, or all ranks on several.
    """

    ranks: Group
    reference: Group


def _bare(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ ."))


def _machine(case: Case, described: Sequence[Machine], defaults: Defaults, rows: int) -> Machine:
    """Return the machine of a case on enough nodes, with the network that the rows state.

    Raises
    ------
    RowError
        Where nothing has any of the names, or the network between nodes is not known.
    """
    for name in case.names:
        for machine in described:
            known = (machine.node.name, *machine.node.aliases, machine.accelerator.name, *machine.accelerator.aliases)
            if _bare(name) in map(_bare, known):
                return _on_network(case, machine.node, machine.accelerator, machine.node.nics, defaults, rows)
    for name in case.names:
        try:
            node = find("node", name)
        except UnknownName:
            continue
        assert isinstance(node, Node) and isinstance(node.accelerators.type, str)
        stated = None if "unstated" in case.fabric else node.nics
        return _on_network(case, node, find("accelerator", node.accelerators.type), stated, defaults, rows)
    for name in case.names:
        board = CAPABILITIES.get(_bare(name), name)
        try:
            machine = machine_of(board, case.ranks, case.per_node or None, case.nic_bytes_per_s * 8e-9 or None)
        except RowError:
            continue
        if board != name or len(boards_of(name)) > 1:
            defaults.counts["device", f"{name} is {machine.accelerator.name}"] += rows
        stated = machine.node.nics if case.fabric == "rdma" else None
        return _on_network(case, machine.node, machine.accelerator, stated, defaults, rows)
    told = " or ".join(f'"{name}"' for name in case.names)
    raise RowError(f"unknown device {told}")


def _on_network(
    case: Case, node: Node, accelerator: Accelerator, nics: Nics | None, defaults: Defaults, rows: int
) -> Machine:
    """Return enough nodes for a case, joined by what the rows say or by the node's own adapters."""
    per_node = case.per_node or min(case.ranks, node.accelerators.count)
    nodes = -(-case.ranks // per_node)
    if per_node > node.accelerators.count:
        raise RowError(
            f"{node.name} has {node.accelerators.count} accelerators, fewer than the {per_node} ranks on a node"
        )
    if case.ranks % per_node:
        raise RowError("ranks are not spread evenly over the nodes")
    if nodes > 1:
        words = case.fabric.replace("-", " ").split()
        protocol = next((PROTOCOLS[word] for word in words if word in PROTOCOLS), None)
        if case.nic_bytes_per_s:
            count = node.accelerators.count
            own = node.nics.protocol if node.nics else "infiniband"
            if protocol is None:
                defaults.counts["network", own] += rows
            nics = Nics(count=count, bandwidth=case.nic_bytes_per_s, protocol=protocol or own)
        elif nics is None:
            raise RowError("the network between the nodes is not stated")
        elif case.fabric == "rdma":
            defaults.counts["network", "infiniband, adapters of the catalogue's node"] += rows
            nics = nics.model_copy(update={"protocol": "infiniband"})
        node = node.model_copy(update={"nics": nics})
    cluster = Cluster(name=node.name, node=node, nodes=nodes, fabric=Fabric(type="rail-optimised"))
    return Machine(cluster=cluster, node=node, accelerator=accelerator, nodes=nodes)


def _adding(tower: Sequence[Level], machine: Machine, adds: bool, model: CollectiveModel) -> tuple[Level, ...]:
    """Return the levels with the type of switch that does not add, where the family or the elements need it."""
    in_network = set(families_of(machine.accelerator.architecture)) & set(model.in_network_families)
    if adds and in_network:
        return tuple(tower)
    return tuple(replace(level, type="nvswitch-ring") if level.type == "nvswitch" else level for level in tower)


def placed(case: Case, described: Sequence[Machine], defaults: Defaults, rows: int) -> Placed:
    """Return where rows run.

    Parameters
    ----------
    case : Case
        What the rows share.
    described : sequence of Machine
        Machines that go before the catalogue.
    defaults : Defaults
        Counts what is assumed.
    rows : int
        How many rows they are.

    Raises
    ------
    RowError
        With the reason, where they cannot be placed.
    """
    machine = _machine(case, described, defaults, rows)
    count, model = machine.node.accelerators.count, collective_model()
    per_node = case.per_node or min(case.ranks, count)
    tower = _adding(levels(machine, machine.nodes * count), machine, case.adds, model)
    if machine.nodes == 1:
        return Placed(group(tower, case.ranks, 1), group(tower, count, 1))
    # a node in use holds only some of its accelerators' ranks
    members = [
        min(level.ranks, per_node) if level.ranks <= count else level.ranks // count * per_node for level in tower
    ]
    size = np.asarray(case.ranks)
    ranks = Group(size, tuple(np.asarray(held) for held in members), tower)
    return Placed(ranks, ranks)


PREDICTIONS: dict[str, Predict] = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": all_gather,
    "all_to_all": all_to_all,
    "send_recv": send,
    "broadcast": broadcast,
    "reduce": broadcast,
}


def case_seconds(case: Case, ranks: Group, sizes: Array, model: CollectiveModel) -> Array:
    """Return the time of the rows of a case [s].

    Parameters
    ----------
    case : Case
        What they share.
    ranks : Group
        Where they run.
    sizes : array
        Their bytes.
    model : CollectiveModel
        Constants.
    """
    if case.copies:
        most = case.most_nodes or None
        return dispatch(ranks, sizes, case.copies, model, once_per_node=case.once_per_node, most_nodes=most)
    if case.library == "engine":
        return engine_all_reduce(ranks, sizes, model)
    return PREDICTIONS[case.operation](ranks, sizes, model)


def counted_bytes(case: Case, ranks: Group, token_bytes: Array) -> Array:
    """Return the bytes over which a bandwidth of an exchange between experts is stated.

    DeepEP counts a token once for every node that it visits where several take part, for every rank inside one node,
    the token's own included; its low-latency kernels count every copy.
    """
    if not case.copies:
        return token_bytes
    if not case.once_per_node:
        return token_bytes * case.copies
    nodes, places = visits(ranks, case.copies, case.most_nodes or None)
    return token_bytes * (nodes if len(ranks.levels) > 1 else places)


def spread_of(
    case: Case, seconds: Array, slower_s: Array, ranks: Group, model: CollectiveModel, *, host_given: bool
) -> Array:
    """Return the standard deviation of ln(measured / predicted).

    Parameters
    ----------
    case : Case
        What the rows share.
    seconds, slower_s : array
        Predicted times, and those of a host ten per cent slower [s].
    ranks : Group
        Where they run.
    model : CollectiveModel
        Constants.
    host_given : bool
        Whether the host's latency is known.

    Notes
    -----
    The largest of the types of link crossed; in quadrature `ENGINE_SPREAD` for an engine's kernels and, where the
    host's latency is not known, `HOST_SPREAD` times d ln time / d ln latency.
    """
    below: Integers = np.asarray(1)
    link, spreads = 0.0, model.spreads or {}
    for level, members in zip(ranks.levels, ranks.members, strict=True):
        if np.any(members > below):
            link = max(link, spreads[level.type])
        below = members
    variance = link**2 + (ENGINE_SPREAD**2 if case.library == "engine" else 0.0)
    elasticity = np.zeros(seconds.shape) if host_given else np.log(slower_s / seconds) / np.log(1.1)
    return np.asarray(np.sqrt(variance + (elasticity * HOST_SPREAD) ** 2))
