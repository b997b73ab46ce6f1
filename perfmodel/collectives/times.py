"""Time of collective operations on a hierarchy of links, as a library runs them.

Notation as in `perfmodel.collectives.model`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hardware.catalogue import Machine
from hardware.topology import MESHES, levels
from perfmodel.collectives.model import CollectiveModel, Group, collective_model, crossings, group, joined
from perfmodel.terms import Array, Number

IN_NETWORK_MEMBERS = 8
"""Ranks below one switch from which on the switch adds (NVLS): on boards with four, all-reduces ran as rings."""


def _ring_latency(ranks: Group, model: CollectiveModel) -> Number:
    """Latency of n - 1 steps around a ring, n/m_(l-1) - n/m_l of them across level l [s]."""
    latency: Number = 0.0
    for crossing in crossings(ranks, model):
        # a group of one has no hop
        hops = ranks.size / crossing.below - np.maximum(ranks.size / crossing.members, 1.0)
        latency = latency + np.maximum(hops, 0.0) * crossing.step_s
    return latency


def _ring_transfer(ranks: Group, passes: int, total_bytes: Number, model: CollectiveModel) -> Number:
    """Time in which rings carry (n-1)/n S `passes` times, without latency [s].

    Notes
    -----
    Rings enter a unit of level l through the links of all m_(l-1) members inside the unit below, so level l takes
    (passes (n-1)/n + own_copy/n) S / (m_(l-1) B_l); all levels work at once, the slowest counts.
    """
    n = ranks.size
    slowest: Number = 0.0
    for crossing in crossings(ranks, model):
        share = (passes * (n - 1) + crossing.link.own_copy) / n
        slowest = np.maximum(slowest, crossing.crossed * share / (crossing.lanes * crossing.rate))
    return slowest * total_bytes


def all_gather(ranks: Group, total_bytes: Number, model: CollectiveModel) -> Array:
    """Time of a ring all-gather, or reduce-scatter, of `total_bytes` in all [s].

    Notes
    -----
    latency = launch + n - 1 steps; transfer = (n-1)/n S over the links, and the copy of a rank's own part.
    Ring: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH" (2005), 4.1.
    """
    latency = model.launch_s + _ring_latency(ranks, model)
    return joined(ranks, latency, _ring_transfer(ranks, 1, total_bytes, model), model)


def ring_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce around a ring: reduce-scatter and all-gather, 2 (n-1) steps, 2 (n-1)/n S [s]."""
    latency = model.launch_s + 2 * _ring_latency(ranks, model)
    return joined(ranks, latency, _ring_transfer(ranks, 2, buffer_bytes, model), model)


def _tree_latency(ranks: Group, model: CollectiveModel) -> Number:
    """Latency of one way through a tree: a chain inside a node, log2 of the units outside it [s]."""
    latency: Number = 0.0
    for depth, crossing in enumerate(crossings(ranks, model)):
        degree = crossing.members / crossing.below
        steps = degree - 1 if depth == 0 else np.ceil(np.log2(np.maximum(degree, 1)))
        latency = latency + steps * crossing.step_s
    return latency


def tree_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce over two complementary trees, inside the node along a chain or in its switch [s].

    Notes
    -----
    Two trees with half the buffer each: over all nodes, a level outside the node carries 2 (k_l - 1)/k_l S / m_(l-1) a
    rank, so that two nodes exchange the buffer once (Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth
    broadcast, reduction and scan", 2009, section 4). Inside a node, and over the one path between its pairs, a chain
    passes the whole buffer up and down, 2 S. Where a switch adds (NVLS) for the m ranks below it, everything inside
    takes 2 (m-1)/m S at a rate `in_network_all_reduce` times as high. Levels work at once.
    """
    slowest: Number = 0.0
    narrowest: Number = np.inf
    for depth, crossing in enumerate(crossings(ranks, model)):
        link, degree = crossing.link, np.ceil(crossing.members / crossing.below)
        share: Number = 2.0 if depth == 0 or link.one_path else 2 * (degree - 1) / degree
        slowest = np.maximum(slowest, crossing.crossed * share / (crossing.lanes * crossing.rate))
        narrowest = np.minimum(narrowest, crossing.rate)
        if link.in_network_all_reduce > 1:
            share = 2 * (crossing.members - 1) / crossing.members + link.own_copy / ranks.size
            added = share / (narrowest * link.in_network_all_reduce)
            slowest = np.where(crossing.members >= IN_NETWORK_MEMBERS, added, slowest)
    latency = model.launch_s + 2 * _tree_latency(ranks, model)
    return joined(ranks, latency, slowest * buffer_bytes, model)


def hierarchical_all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce level by level: reduce-scatter inwards to outwards, all-gather back [s].

    Notes
    -----
    Level l joins k_l units; each rank has 1/m_(l-1) of the buffer left: 2 (k_l - 1) steps and
    2 (k_l - 1)/k_l S/m_(l-1) bytes over its own link. The levels follow one another, so their times add up.
    """
    latency: Number = model.launch_s
    transfer: Number = 0.0
    for crossing in crossings(ranks, model):
        degree = crossing.members / crossing.below
        latency = latency + 2 * (degree - 1) * crossing.step_s
        transfer = transfer + 2 * (degree - 1) / degree * buffer_bytes / (crossing.lanes * crossing.rate)
    return joined(ranks, latency, transfer, model)


def all_reduce(ranks: Group, buffer_bytes: Number, model: CollectiveModel) -> Array:
    """Time of an all-reduce of `buffer_bytes` by the faster of ring and tree, in the node's switch if it adds [s]."""
    return np.minimum(ring_all_reduce(ranks, buffer_bytes, model), tree_all_reduce(ranks, buffer_bytes, model))


def all_to_all(ranks: Group, buffer_bytes: Number, model: CollectiveModel, outer_share: Number = 1.0) -> Array:
    """Time of an all-to-all in which every rank holds `buffer_bytes` for the others together [s].

    `outer_share` is the part of what leaves the innermost unit that has to cross the levels outside it.

    Notes
    -----
    Every level carries, per rank, the part of the buffer that leaves the unit below, (n - m_(l-1))/n S / B_l: what goes
    further out passes through it. The levels work at the same time, so the slowest counts; where units below hold
    different numbers of ranks, those of the emptiest send most to the outside.

    Small messages between the ranks of one innermost unit: log2(n) steps, then each peer's S/n at the rate that one
    peer gets. The faster of the two protocols is taken.
    """
    n = ranks.size
    slowest: Number = 0.0
    latency: Number = 0.0
    quick: Number = np.inf
    for depth, crossing in enumerate(crossings(ranks, model)):
        link = crossing.link
        for inside in (crossing.below, crossing.fewest):
            rate = crossing.rate * link.all_to_all / (inside if link.one_path else 1.0)
            leaving = (n - inside) / n * (outer_share if depth else 1.0)
            slowest = np.maximum(slowest, crossing.crossed * (leaving + link.own_copy / n) * buffer_bytes / rate)
        latency = np.maximum(latency, crossing.crossed * link.exchange_steps * crossing.step_s)
        if depth == 0 and link.peer_bandwidth:
            message = buffer_bytes / n / (link.peer_bandwidth * crossing.level.bandwidth)
            wait = np.log2(np.maximum(n, 1)) * crossing.step_s
            quick = np.where(crossing.members == n, wait + np.maximum(message, slowest), np.inf)
    return np.where(n > 1, model.launch_s + np.minimum(latency + slowest, quick), 0.0)


def visits(ranks: Group, copies: int, most_nodes: int | None = None) -> tuple[Array, Array]:
    """Return how many nodes, and how many ranks, a token visits on average that goes to `copies` experts of a group.

    Notes
    -----
    k draws with equal chances from U places visit U (1 - (1 - 1/U)^k) of them. `most_nodes` limits the nodes that the
    experts of a token may lie on (group-limited routing).
    """
    inside = np.maximum(ranks.members[0], 1)
    nodes = ranks.size / inside
    if most_nodes is not None:
        nodes = np.minimum(nodes, most_nodes)
    visited_nodes, visited_ranks = (places * (1 - (1 - 1 / places) ** copies) for places in (nodes, nodes * inside))
    return visited_nodes, visited_ranks


def dispatch(
    ranks: Group,
    token_bytes: Number,
    copies: int,
    model: CollectiveModel,
    *,
    once_per_node: bool,
    most_nodes: int | None = None,
) -> Array:
    """Time to send every token of a rank to `copies` experts spread evenly over the group, or to bring it back [s].

    Parameters
    ----------
    ranks : Group
        The expert-parallel group.
    token_bytes : array
        All tokens of a rank, one copy each [bytes].
    copies : int
        Experts a token visits.
    once_per_node : bool
        A token crosses the network once for every node it visits and is copied there to every rank that it visits, as
        DeepEP does; otherwise it goes once to every expert.
    most_nodes : int
        Nodes that the experts of a token may lie on (group-limited routing); any number if left out.

    Notes
    -----
    Bytes are token_bytes x ranks visited, of which nodes visited / ranks visited cross the network (`visits`).
    """
    if not once_per_node or not ranks.levels:
        return all_to_all(ranks, token_bytes * copies, model)
    nodes, places = visits(ranks, copies, most_nodes)
    return all_to_all(ranks, token_bytes * places, model, outer_share=nodes / places)


def send(ranks: Group, message_bytes: Number, model: CollectiveModel) -> Array:
    """Time to send one message to the neighbour in the group, over the outermost level crossed [s].

    launch + step + S/B: one hop has no chain to fill.
    """
    latency, seconds_per_byte = slowest_hop(ranks, model)
    return np.where(ranks.size > 1, model.launch_s + latency + seconds_per_byte * message_bytes, 0.0)


def slowest_hop(ranks: Group, model: CollectiveModel) -> tuple[Number, Number]:
    """Return the longest step [s] and the longest time of a byte [s/byte] of the links that a group crosses.

    A single message takes one of the direct links to every other unit of a mesh.
    """
    step_s: Number = 0.0
    seconds_per_byte: Number = 0.0
    for crossing in crossings(ranks, model):
        links: Number = 1.0
        if crossing.level.type in MESHES:
            links = np.maximum(crossing.members / crossing.below - 1, 1)
        step_s = np.maximum(step_s, crossing.crossed * crossing.step_s)
        seconds_per_byte = np.maximum(seconds_per_byte, crossing.crossed * links / crossing.rate)
    return step_s, seconds_per_byte


def broadcast(ranks: Group, message_bytes: Number, model: CollectiveModel) -> Array:
    """Time of a broadcast, or reduce, passed along a chain in pieces: n - 1 steps, S over the slowest link [s].

    Chains start at every adapter of a node, as rings do: level l carries S / (m_(l-1) B_l).
    """
    seconds_per_byte: Number = 0.0
    for crossing in crossings(ranks, model):
        seconds_per_byte = np.maximum(seconds_per_byte, crossing.crossed / (crossing.lanes * crossing.rate))
    latency = model.launch_s + _ring_latency(ranks, model)
    return joined(ranks, latency, seconds_per_byte * message_bytes, model)


def host_factor(latency_s: float, ranks: Group, model: CollectiveModel) -> float:
    """Return how much slower than the model's a host is, for `CollectiveModel.slower`.

    Parameters
    ----------
    latency_s : float
        Time of an empty all-reduce over the group on this host [s].
    ranks : Group
        Usually all accelerators of a node.
    model : CollectiveModel
        Constants.
    """
    return latency_s / float(all_reduce(ranks, 0.0, model))


def machine_model(machine: Machine) -> CollectiveModel:
    """Return the constants of collectives on a machine: the shipped ones, and what its node says of its own."""
    model, own = collective_model(), machine.node.collectives
    if own is None:
        return model
    links, spreads = dict(model.links), dict(model.spreads or {})
    for name, measured in own.links.items():
        constants = measured.model_dump(exclude_none=True, exclude={"spread"})
        links[name] = replace(links[name], **constants)
        if measured.spread is not None:
            spreads[name] = measured.spread
    launch_s = model.launch_s if own.launch is None else own.launch
    model = replace(model, launch_s=launch_s, links=links, spreads=spreads)
    count = machine.node.accelerators.count
    if own.latency is None or count == 1:
        return model
    return model.slower(host_factor(own.latency, group(levels(machine, count), count, 1), model))
