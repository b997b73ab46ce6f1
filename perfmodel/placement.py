"""What an order of nodes costs: the communication time of a step over links of unequal, measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from perfmodel.traffic import Traffic

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """Nodes and what they can send each other.

    Parameters
    ----------
    names : tuple of str
        The nodes.
    bandwidth : array
        From the node of the row to that of the column, measured pair by pair [bytes/s]; 0 where there is no path. A
        node and itself: infinite.
    sending, receiving : array
        What each node can send and receive in all: the most it was measured at with any other [bytes/s].
    """

    names: tuple[str, ...]
    bandwidth: Array
    sending: Array
    receiving: Array


@dataclass(frozen=True)
class Demand:
    """Traffic between logical nodes, as arrays over all phases.

    Parameters
    ----------
    units : int
        Logical nodes: blocks of consecutive ranks.
    phases : tuple of str
        What follows one another.
    phase, sources, destinations : array of int
        Of each message; in order of phase.
    sent_bytes : array
        Of each message [bytes].
    leaving, arriving : array
        What each logical node sends and receives, by phase (rows) [bytes].
    """

    units: int
    phases: tuple[str, ...]
    phase: Integers
    sources: Integers
    destinations: Integers
    sent_bytes: Array
    leaving: Array
    arriving: Array


def network(names: Sequence[str], bandwidth: Array) -> Network:
    """Return a network of measured rates.

    Parameters
    ----------
    names : sequence of str
        The nodes.
    bandwidth : array
        Square; rows send [bytes/s]. The diagonal does not matter.
    """
    rates = np.array(bandwidth, dtype=float)
    np.fill_diagonal(rates, 0.0)
    sending, receiving = rates.max(axis=1), rates.max(axis=0)
    np.fill_diagonal(rates, np.inf)
    return Network(tuple(names), rates, sending, receiving)


def demand(traffic: Traffic) -> Demand:
    """Return traffic between logical nodes as arrays.

    Parameters
    ----------
    traffic : Traffic
        As `perfmodel.traffic.between_units` returns it.
    """
    phases, units = traffic.phases, traffic.ranks
    index = np.repeat(np.arange(len(phases)), [len(one.sent_bytes) for one in phases])
    sources, destinations, sent_bytes = (
        np.concatenate([np.zeros(0, dtype=kind), *(getattr(one, name) for one in phases)])
        for name, kind in (("sources", np.int64), ("destinations", np.int64), ("sent_bytes", float))
    )
    totals = (
        np.bincount(index * units + ends, sent_bytes, len(phases) * units).reshape(len(phases), units)
        for ends in (sources, destinations)
    )
    names = tuple(one.name for one in phases)
    return Demand(units, names, index, sources, destinations, sent_bytes, *totals)


def message_times(wanted: Demand, net: Network, order: Integers) -> Array:
    """Return how long each message takes on its own [s].

    Parameters
    ----------
    wanted : Demand
        Traffic between logical nodes.
    net : Network
        The nodes.
    order : array of int
        Node of each logical node; any number of orders, along the axes before the last.
    """
    rates = net.bandwidth[order[..., wanted.sources], order[..., wanted.destinations]]
    with np.errstate(divide="ignore"):
        return np.asarray(wanted.sent_bytes / rates)


def node_times(wanted: Demand, net: Network, order: Integers) -> Array:
    """Return how long each logical node takes for all its messages of a phase at its own highest rate [s].

    The larger of sending and receiving, along the last two axes by phase and logical node.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        out = wanted.leaving / net.sending[order][..., None, :]
        into = wanted.arriving / net.receiving[order][..., None, :]
    return np.fmax(np.fmax(out, into), 0.0)


def phase_times(wanted: Demand, net: Network, order: Integers) -> Array:
    """Return the time of each phase [s], along the last axis.

    Parameters
    ----------
    wanted : Demand
        Traffic between logical nodes.
    net : Network
        The nodes.
    order : array of int
        Node of each logical node; any number of orders, along the axes before the last.

    Notes
    -----
    T_p = max( max over messages (a, b) of bytes_p(a, b) / W(u, v),
               max over a of sum_b bytes_p(a, b) / max_v W(u, v), the same for what a receives )

    with u and v the nodes of a and b. A synchronous collective ends with its slowest message: one slow link holds up a
    whole ring. Messages of a phase that leave one node share its adapters, whose rate is taken as the most that any
    pair was measured at; no schedule is faster, and one that shares in proportion to bytes reaches it.
    """
    count = len(wanted.phases)
    if not count:
        return np.zeros((*order.shape[:-1], 0))
    starts = np.searchsorted(wanted.phase, np.arange(count))
    slowest = np.maximum.reduceat(message_times(wanted, net, order), starts, axis=-1)
    return np.asarray(np.maximum(slowest, node_times(wanted, net, order).max(axis=-1)))


def comm_time_s(wanted: Demand, net: Network, order: Integers) -> Array:
    """Return the communication time between nodes of a step: phases follow one another [s]."""
    return np.asarray(phase_times(wanted, net, order).sum(axis=-1))


def transfer_time_sum_s(wanted: Demand, net: Network, order: Integers) -> Array:
    """Return the sum of the times of all messages, as if each went alone [s]: a quadratic assignment's cost."""
    return np.asarray(message_times(wanted, net, order).sum(axis=-1))


@dataclass(frozen=True)
class Slowest:
    """What a phase waits for.

    Parameters
    ----------
    phase : str
        The phase.
    seconds : float
        Its time [s].
    sender, receiver : int or None
        Nodes of the message that ends last; only one of them where a node waits for its own rate.
    rate : float
        That of the pair, or of the node [bytes/s].
    alone : bool
        Whether nothing else takes as long, so that a higher rate would end the phase sooner.
    """

    phase: str
    seconds: float
    sender: int | None
    receiver: int | None
    rate: float
    alone: bool


def slowest(wanted: Demand, net: Network, order: Integers) -> list[Slowest]:
    """Return what each phase waits for.

    Parameters
    ----------
    wanted : Demand
        Traffic between logical nodes.
    net : Network
        The nodes.
    order : array of int
        Node of each logical node.
    """
    found = []
    messages = message_times(wanted, net, order)
    for index, name in enumerate(wanted.phases):
        own = np.flatnonzero(wanted.phase == index)
        ends: list[tuple[float, int | None, int | None, float]] = []
        for message in own[np.argsort(-messages[own], kind="stable")[:2]]:
            sender, receiver = int(order[wanted.sources[message]]), int(order[wanted.destinations[message]])
            ends.append((float(messages[message]), sender, receiver, float(net.bandwidth[sender, receiver])))
        for total, limit, sends in ((wanted.leaving, net.sending, True), (wanted.arriving, net.receiving, False)):
            with np.errstate(divide="ignore", invalid="ignore"):
                times = np.nan_to_num(total[index] / limit[order], nan=0.0, posinf=np.inf)
            for unit in np.argsort(-times, kind="stable")[:2]:
                node = int(order[unit])
                ends.append((float(times[unit]), node if sends else None, None if sends else node, float(limit[node])))
        ends.sort(key=lambda end: -end[0])
        seconds, from_node, to_node, rate = ends[0]
        alone = len(ends) < 2 or ends[1][0] < seconds * (1 - 1e-9)
        found.append(Slowest(name, seconds, from_node, to_node, rate, alone))
    return found
