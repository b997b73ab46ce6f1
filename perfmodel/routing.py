"""Load of single paths, hashed paths and sprayed packets on a network of leaves and spines.

A flow goes up one cable of its leaf and comes down one cable of the same spine. Cables are counted through: cable k of
spine s is ``s * cables + k``. Time is what the most loaded cable needs: flows start together, and the last one counts.

Notation: m flows of a leaf, P cables above it, Delta the most flows that any leaf sends or receives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Switching:
    """A network of leaves and spines.

    Parameters
    ----------
    up : array
        Rate of all cables from leaf i to spine s [B/s], of shape (leaves, spines).
    down : array
        Rate of all cables from spine s to leaf j [B/s], of shape (spines, leaves).
    cables : int
        Cables between a leaf and a spine [1]; they share the rate evenly.
    """

    up: Array
    down: Array
    cables: int

    @property
    def leaves(self) -> int:
        """Leaf switches."""
        return int(self.up.shape[0])

    @property
    def spines(self) -> int:
        """Spine switches."""
        return int(self.up.shape[1])

    @property
    def lanes(self) -> int:
        """Cables above a leaf."""
        return self.spines * self.cables

    @property
    def up_lane(self) -> Array:
        """Rate of each cable up [B/s], of shape (leaves, lanes)."""
        return np.repeat(self.up / self.cables, self.cables, axis=1)

    @property
    def down_lane(self) -> Array:
        """Rate of each cable down [B/s], of shape (leaves, lanes)."""
        return np.repeat(self.down.T / self.cables, self.cables, axis=1)

    @property
    def joint(self) -> NDArray[np.bool_]:
        """Whether a spine joins two leaves, of shape (leaves, leaves, spines)."""
        return np.asarray((self.up[:, None, :] > 0) & (self.down.T[None, :, :] > 0))

    @property
    def is_even(self) -> bool:
        """Whether all cables are alike."""
        return bool(np.all(self.up == self.up[0, 0]) and np.all(self.down == self.up[0, 0]) and self.up[0, 0] > 0)


def side_bytes(leaf: Integers, lane: Integers, flow_bytes: Array, leaves: int, lanes: int) -> Array:
    """Add up what flows put on each cable of one direction.

    Parameters
    ----------
    leaf : array of int
        Leaf of each flow on this side [1].
    lane : array of int
        Cable of each flow [1].
    flow_bytes : array
        Size of each flow [bytes].
    leaves : int
        Leaf switches [1].
    lanes : int
        Cables above each of them [1].

    Returns
    -------
    array
        Load, of shape (leaves, lanes) [bytes].
    """
    return np.bincount(leaf * lanes + lane, flow_bytes, leaves * lanes).reshape(leaves, lanes)


def slowest(load: Array, rate: Array) -> float:
    """Return the time after which the most loaded link has carried its load.

    Parameters
    ----------
    load : array
        Load of each link [bytes].
    rate : array
        Rate of each link [B/s].

    Returns
    -------
    float
        Time [s]; infinite where a load stands on a link without a rate.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(load > 0, load / rate, 0.0), initial=0.0))


def spray_time(source: Integers, target: Integers, flow_bytes: Array, network: Switching) -> float:
    """Return the time of packets sprayed evenly over all cables that lead to their leaf.

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and that it enters [1].
    flow_bytes : array
        Size of each flow [bytes].
    network : Switching
        The network.

    Returns
    -------
    float
        Time [s].

    Notes
    -----
    With equal links the most loaded one carries max(R_i, C_j)/P, R_i what leaf i sends and C_j what leaf j receives;
    nothing does better, since a leaf has P links. With broken links even spraying is not the best: see the LP of
    `solvers.routing_lp`.
    """
    far = source != target
    demand = np.zeros((network.leaves, network.leaves))
    np.add.at(demand, (source[far], target[far]), flow_bytes[far])
    joint = network.joint
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(demand > 0, demand / joint.sum(axis=2), 0.0)
        per_spine = np.where(joint, each[:, :, None], 0.0)
    return max(slowest(per_spine.sum(axis=1), network.up), slowest(per_spine.sum(axis=0), network.down.T))


def round_robin(source: Integers, target: Integers, network: Switching) -> Integers:
    """Deal the flows of every leaf to its cables in turn: uplinks are even, downlinks only by luck.

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and that it enters [1].
    network : Switching
        The network.

    Returns
    -------
    array of int
        Cable of each flow [1].
    """
    order = np.argsort(source, kind="stable")
    begins = np.searchsorted(source[order], source[order])
    turn = np.empty(len(source), dtype=np.int64)
    turn[order] = np.arange(len(source)) - begins
    choices, table = _choices(source, target, network)
    turn = turn % (choices * network.cables)
    # Neighbouring flows take different spines, then the next cable of each.
    return np.asarray(table[np.arange(len(source)), turn % choices] * network.cables + turn // choices)


def _choices(source: Integers, target: Integers, network: Switching) -> tuple[Integers, Integers]:
    """Return how many spines each flow can take, and which, first ones first."""
    joint = network.joint[source, target]
    return joint.sum(axis=1), np.argsort(~joint, axis=1, kind="stable")


def max_load_distribution(flows: int, uplinks: int) -> Array:
    """Return the distribution of the most loaded of several links onto which flows are hashed.

    Parameters
    ----------
    flows : int
        Equal flows, m [1].
    uplinks : int
        Equal links, P [1]; each flow takes one by chance, independently.

    Returns
    -------
    array
        Probability that no link has more than k flows, for k = 0 to m.

    Notes
    -----
    Pr[max <= k] = m! [x^m] (sum over j <= k of x^j / j!)^P / P^m, an exact count. With x scaled by m/P the terms are
    those of a Poisson distribution of mean m/P, so that the coefficient is the probability that P of its truncated
    variables add up to m; it is taken out of a discrete Fourier transform, with an error of about 1e-15 sqrt(m), and
    set against that of variables that are not truncated (below 1e-30).
    """
    if flows == 0 or uplinks == 1:
        return np.where(np.arange(flows + 1) < flows, 0.0, 1.0)
    mean, counts = flows / uplinks, np.arange(flows + 1)
    terms = np.exp(counts * np.log(mean) - mean - np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))]))
    top = int(np.flatnonzero(terms > 1e-30)[-1])

    def coefficient(most: int) -> float:
        # The sum has at most most * uplinks as exponent, so a transform of that length wraps nothing around.
        length = 1 << max(int(most * uplinks), flows).bit_length()
        phase = np.exp(2j * np.pi * (flows * np.arange(length // 2 + 1) % length) / length)
        powers = (np.fft.rfft(terms[: most + 1], length) ** uplinks * phase).real
        return float(2 * powers.sum() - powers[0] - powers[-1]) / length

    below, whole = np.zeros(flows + 1), coefficient(top)
    for most in range(-(-flows // uplinks), top):
        below[most] = min(max(coefficient(most) / whole, below[most - 1]), 1.0)
    below[top:] = 1.0
    return below


def expected_max_load(flows: int, uplinks: int) -> float:
    """Return the mean load of the most loaded link, E[max] = sum over k >= 0 of (1 - Pr[max <= k]).

    Parameters
    ----------
    flows : int
        Equal flows [1].
    uplinks : int
        Equal links that they are hashed onto [1].

    Returns
    -------
    float
        Flows on the most loaded link [1].
    """
    return mean_of(max_load_distribution(flows, uplinks))


def mean_of(below: Array) -> float:
    """Return the mean of a whole number of at least 0 from Pr[number <= k], k = 0, 1, ... [1]."""
    return float(np.sum(1 - below))


def quantile_of(below: Array, share: float) -> int:
    """Return the least k with Pr[number <= k] of at least `share` [1]."""
    return int(np.searchsorted(below, share - 1e-12))


def independent_sides(source: Integers, target: Integers, leaves: int) -> tuple[int, ...] | None:
    """Find the leaves whose hashed loads decide, if these are independent.

    Parameters
    ----------
    source, target : array of int
        Leaf that each equal flow leaves, and that it enters [1]; every spine has one link to each leaf.
    leaves : int
        Leaf switches [1].

    Returns
    -------
    tuple of int or None
        Flows of each side (a leaf's uplinks or its downlinks) that can be the most loaded; None if the loads of some of
        them depend on each other, so that there is no closed form.

    Notes
    -----
    A flow that goes up to a spine comes down from it. If all that enters leaf j comes from leaf i, the downlinks of j
    are never more loaded than the uplinks of i, and do not count; and the other way round. Sides that remain are
    independent if no flow is on two of them.
    """
    sent, received = np.bincount(source, minlength=leaves), np.bincount(target, minlength=leaves)
    pairs = np.zeros((leaves, leaves), dtype=np.int64)
    np.add.at(pairs, (source, target), 1)
    down = ~np.any((pairs == received) & (received > 0), axis=0) & (received > 0)
    up = np.ones(leaves, dtype=bool)
    # An uplink side is covered by a downlink side that counts itself, or the two would excuse each other.
    up &= ~np.any((pairs == sent[:, None]) & (sent > 0)[:, None] & down, axis=1) & (sent > 0)
    if np.any(pairs[np.ix_(up, down)]):
        return None
    return (*(int(count) for count in sent[up]), *(int(count) for count in received[down]))


def most_of(distributions: Iterable[Array]) -> Array:
    """Return the distribution of the largest of independent whole numbers.

    Parameters
    ----------
    distributions : iterable of array
        Pr[number <= k] of each, k = 0, 1, ... [1].

    Returns
    -------
    array
        Pr[largest <= k] [1].
    """
    found = list(distributions)
    most = np.ones(max(len(below) for below in found))
    for below in found:
        most[: len(below)] *= below
    return most


def hashed_times(
    source: Integers, target: Integers, flow_bytes: Array, network: Switching, draws: int, seed: int
) -> Array:
    """Draw the time that flows take on hashed paths (ECMP).

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and that it enters [1].
    flow_bytes : array
        Size of each flow [bytes].
    network : Switching
        The network.
    draws : int
        How many hash functions to try [1].
    seed : int
        Start of the random numbers [1].

    Returns
    -------
    array
        Time of each draw [s].

    Notes
    -----
    A leaf hashes a flow onto any cable to a spine that reaches the target, the spine onto any of its cables to the
    target's leaf. Rates do not count: plain ECMP gives all next hops equal chances.
    """
    far = source != target
    source, target, flow_bytes = source[far], target[far], flow_bytes[far]
    if not len(source):
        return np.zeros(draws)
    random = np.random.default_rng(seed)
    choices, table = _choices(source, target, network)
    everywhere = bool(np.all(choices == network.spines))
    up, down, cables = network.up_lane, network.down_lane, network.cables
    times, place = np.empty(draws), np.arange(len(source))
    for draw in range(draws):
        spine = np.asarray((random.random(len(source)) * choices).astype(np.int64))
        if not everywhere:
            spine = table[place, spine]
        lanes = [spine, spine]
        if cables > 1:
            lanes = [spine * cables + random.integers(0, cables, len(source)) for _ in range(2)]
        times[draw] = max(
            slowest(side_bytes(leaf, lane, flow_bytes, network.leaves, network.lanes), rate)
            for leaf, lane, rate in ((source, lanes[0], up), (target, lanes[1], down))
        )
    return times


def adapter_time(sent_bytes: Array, adapter_rate: float, link_rate: float) -> Array:
    """Return the least time in which accelerators get rid of their traffic if each may use all adapters of its node.

    Parameters
    ----------
    sent_bytes : array
        Bytes that each accelerator sends (or receives), of shape (..., accelerators) [bytes].
    adapter_rate : float
        Rate of an adapter; every accelerator has one of its own [B/s].
    link_rate : float
        Rate of an accelerator to the others of its node [B/s].

    Returns
    -------
    array
        Time, without the last axis [s].

    Notes
    -----
    min t: sum_j x[i,j] = bytes_i; sum_i x[i,j] <= t B_nic; what leaves i for other adapters, and what enters j from
    other accelerators, each <= t B_link (NIC choice of Zeppelin, arXiv 2509.21841). By maximum flow and minimum cut the
    least time is max over k of (the k largest together) / (k B_nic + min(k B_link, (n - k) min(B_nic, B_link))).
    """
    count = sent_bytes.shape[-1]
    largest = np.cumsum(-np.sort(-sent_bytes, axis=-1), axis=-1)
    some = np.arange(1, count + 1)
    helped = np.minimum(some * link_rate, (count - some) * min(adapter_rate, link_rate))
    return np.asarray(np.max(largest / (some * adapter_rate + helped), axis=-1))
