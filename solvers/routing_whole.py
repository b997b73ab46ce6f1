"""Flows kept whole on a network of leaves and spines: all of them, or all but as few as possible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perfmodel.edge_colouring import bounded_subgraph, equitable_colouring, first_of_each
from perfmodel.routing import Integers, Switching
from perfmodel.terms import Array

_ROUNDING = 1e-9
"""Shares of a flow that are taken for rounding [1]."""
_MOST_SHARES = 60_000
"""Pairs of leaves times classes of spines up to which an integer program shares flows out [1]."""
_MOST_STEPS = 64
"""Times that are tried before a search over paths takes over [1]."""


@dataclass(frozen=True)
class SpineClass:
    """Spines whose links are alike, leaf by leaf.

    Parameters
    ----------
    lanes : array of int
        Their cables above each leaf [1].
    up, down : array
        Rate of one cable of each leaf [B/s].
    """

    lanes: Integers
    up: Array
    down: Array


def spine_classes(network: Switching) -> list[SpineClass]:
    """Sort spines into classes of those with the same rates to and from every leaf.

    Parameters
    ----------
    network : Switching
        The network.

    Returns
    -------
    list of SpineClass
        The classes, the largest last.
    """
    columns = np.concatenate([network.up, network.down.T]).T
    rates, which = np.unique(columns, axis=0, return_inverse=True)
    found = []
    for number in range(len(rates)):
        spines = np.flatnonzero(which.reshape(-1) == number)
        lanes = (spines[:, None] * network.cables + np.arange(network.cables)).reshape(-1)
        rate = rates[number] / network.cables
        found.append(SpineClass(lanes, rate[: network.leaves], rate[network.leaves :]))
    return sorted(found, key=lambda one: len(one.lanes))


@dataclass(frozen=True)
class WholePaths:
    """Every flow on one cable.

    Parameters
    ----------
    lane : array of int
        Cable of each flow [1].
    time_s : float
        Time of the most loaded cable [s].
    bound_s : float
        Time that no single paths can beat [s].
    """

    lane: Integers
    time_s: float
    bound_s: float


def equal_whole(
    source: Integers, target: Integers, flow_bytes: float, network: Switching, least_s: float
) -> WholePaths | None:
    """Route equal flows on single paths.

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and another that it enters [1].
    flow_bytes : float
        Size of each of them [bytes].
    network : Switching
        The network.
    least_s : float
        Time of flows that may be divided [s].

    Returns
    -------
    WholePaths or None
        The routing; None if there are too many kinds of spine for this method.

    Notes
    -----
    In time T a cable of rate u carries floor(T u / b) flows of b bytes, and T is one of the times at which that number
    grows. Spines that are alike form a class: a share of the flows with at most n floor(T u / b) at every leaf can be
    coloured equitably on the class's n cables, so that only the share of each class matters. One class takes it all:
    T = ceil(Delta/P) b/u, the least there is. Of two classes, one takes a subgraph with degrees between bounds, which
    exists if and only if there is a routing: exact. Of more, each takes such a subgraph in turn, and the time found may
    not be the least; no time below the bound passes the count at each leaf.
    """
    classes = spine_classes(network)
    pair, which, many = np.unique(source * network.leaves + target, return_inverse=True, return_counts=True)
    ends = pair // network.leaves, pair % network.leaves
    bound = None
    for time_s in _times(source, target, flow_bytes, network, classes, least_s):
        bound = time_s if bound is None else bound
        shares = _shares(ends, many, flow_bytes, classes, network.leaves, time_s)
        if shares is None:
            bound = bound if len(classes) > 2 else None
            continue
        lane = np.full(len(source), -1)
        for one, share in zip(classes, shares, strict=True):
            # the first `share` flows of each pair that have no cable yet
            free = np.flatnonzero(lane < 0)
            mine = free[first_of_each(which[free], share)]
            lane[mine] = one.lanes[equitable_colouring(source[mine], target[mine], len(one.lanes))]
        return WholePaths(lane, time_s, bound)
    return None


def _room(time_s: float, rate: Array, flow_bytes: float) -> Integers:
    """Return how many whole flows a cable carries in a time [1]."""
    return np.floor(time_s * rate / flow_bytes * (1 + 1e-12) + _ROUNDING).astype(np.int64)


def _times(
    source: Integers, target: Integers, flow_bytes: float, network: Switching, classes: list[SpineClass], least_s: float
) -> Iterator[float]:
    """Walk through the times at which a cable can take one flow more, from the first that could do."""
    rates = np.unique(np.concatenate([np.concatenate([one.up, one.down]) for one in classes]))
    rates = rates[rates > 0]
    sides = [np.bincount(ends, minlength=network.leaves) for ends in (source, target)]
    time_s = float(np.min(np.ceil(least_s * rates / flow_bytes * (1 - 1e-12) - _ROUNDING) * flow_bytes / rates))
    steps = 0
    while steps < _MOST_STEPS:
        room_up = sum(len(one.lanes) * _room(time_s, one.up, flow_bytes) for one in classes)
        room_down = sum(len(one.lanes) * _room(time_s, one.down, flow_bytes) for one in classes)
        if np.all(room_up >= sides[0]) and np.all(room_down >= sides[1]):
            steps += 1
            yield time_s
        time_s = float(np.min((_room(time_s, rates, flow_bytes) + 1) * flow_bytes / rates))


def _shares(
    ends: tuple[Integers, Integers],
    many: Integers,
    flow_bytes: float,
    classes: list[SpineClass],
    leaves: int,
    time_s: float,
) -> list[Integers] | None:
    """Share the flows of each pair of leaves out over the classes of spines so that all fit into a time."""
    left, right = ends
    usable = [(one.up[left] > 0) & (one.down[right] > 0) for one in classes]
    rooms = [tuple(len(one.lanes) * _room(time_s, rate, flow_bytes) for rate in (one.up, one.down)) for one in classes]
    rest, shares = many, []
    for number in range(len(classes)):
        later = np.zeros(len(many), dtype=bool)
        for other in usable[number + 1 :]:
            later |= other
        out, into = (np.bincount(side, rest, leaves).astype(np.int64) for side in ends)
        room_later = [sum((room[side] for room in rooms[number + 1 :]), np.zeros(leaves, np.int64)) for side in (0, 1)]
        share = bounded_subgraph(
            left,
            right,
            (np.where(later, 0, rest), np.where(usable[number], rest, 0)),
            (np.maximum(out - room_later[0], 0), np.minimum(rooms[number][0], out)),
            (np.maximum(into - room_later[1], 0), np.minimum(rooms[number][1], into)),
        )
        if share is None:
            return None
        shares.append(share)
        rest = rest - share
    return shares


@dataclass(frozen=True)
class FewestSplits:
    """Equal flows on equal links, as few as possible split, in the time of ideal spraying.

    Parameters
    ----------
    lane : array of int
        Cable of each flow [1]; -1 for those that are sprayed over all cables.
    fewest : int
        Number of flows that any routing in this time has to split [1].
    """

    lane: Integers
    fewest: int


def fewest_splits(source: Integers, target: Integers, room: float, network: Switching) -> FewestSplits:
    """Split as few equal flows as possible on equal links so that no link carries more than a given load.

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and another that it enters [1].
    room : float
        What a link may carry [flows]; at least Delta/P, the load of ideal spraying.
    network : Switching
        The network, all links alike.

    Returns
    -------
    FewestSplits
        The routing. The number of flows it splits is the proved minimum.

    Notes
    -----
    Let c = floor(room) and r = floor(P (room - c)), so that Delta <= c P + r. A link holds at most c whole flows, so
    whole flows have at most c P at every leaf: no more of them than a largest b-matching with b = c P. It is reached.
    By Koenig's theorem flows are a union of Delta matchings; c P of them are whole flows F with degrees between
    d(v) - r and c P. Augmenting paths make F a largest b-matching M and never lower a degree. An equitable colouring of
    M has at most c at a link, and the at most r flows of a leaf that are left, sprayed over P links, add at most r/P.
    """
    lanes, leaves = network.lanes, network.leaves
    out, into = np.bincount(source, minlength=leaves), np.bincount(target, minlength=leaves)
    whole = int(np.floor(room + _ROUNDING))
    rest = int(np.floor(lanes * max(room - whole, 0.0) + _ROUNDING * lanes))
    pair, which, many = np.unique(source * leaves + target, return_inverse=True, return_counts=True)
    matching = bounded_subgraph(
        pair // leaves,
        pair % leaves,
        (np.zeros_like(many), many),
        (np.maximum(out - rest, 0), np.minimum(out, whole * lanes)),
        (np.maximum(into - rest, 0), np.minimum(into, whole * lanes)),
        largest=True,
    )
    assert matching is not None  # Koenig
    kept = first_of_each(which, matching)
    lane = np.full(len(source), -1)
    lane[kept] = equitable_colouring(source[kept], target[kept], lanes)
    return FewestSplits(lane, int(np.sum(~kept)))


def splits_needed(source: Integers, target: Integers, flow_bytes: float, network: Switching, time_s: float) -> int:
    """Count the equal flows that any routing in a given time has to split, at least.

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and another that it enters [1].
    flow_bytes : float
        Size of each of them [bytes].
    network : Switching
        The network.
    time_s : float
        The time [s].

    Returns
    -------
    int
        Flows beyond a largest b-matching, b the whole flows that fit onto all links of a leaf [1].
    """
    leaves = network.leaves
    pair, many = np.unique(source * leaves + target, return_counts=True)
    room = [_room(time_s, rate, flow_bytes).sum(axis=1) for rate in (network.up_lane, network.down_lane)]
    nothing = np.zeros(leaves, dtype=np.int64)
    # More than all flows never counts, and large numbers would not fit the integers of the maximum flow.
    room = [np.minimum(one, len(source)) for one in room]
    found = bounded_subgraph(
        pair // leaves,
        pair % leaves,
        (np.zeros_like(many), many),
        (nothing, room[0]),
        (nothing, room[1]),
        largest=True,
    )
    assert found is not None  # nothing at all is within the bounds
    return len(source) - int(found.sum())


def fewest_by_class(
    source: Integers, target: Integers, room_s: float, flow_bytes: float, network: Switching, time_limit_s: float
) -> tuple[Integers, Integers, Array] | None:
    """Split few equal flows on links of several kinds so that all is done in a given time.

    Parameters
    ----------
    source, target : array of int
        Leaf that each flow leaves, and another that it enters [1].
    room_s : float
        The time [s].
    flow_bytes : float
        Size of each flow [bytes].
    network : Switching
        The network.
    time_limit_s : float
        Wall time after which to stop [s].

    Returns
    -------
    tuple of arrays or None
        Flow, cable and share of every part; None if this construction finds nothing.

    Notes
    -----
    As `fewest_splits`, class by class of spines that are alike. A cable of class C of n cables that can carry l flows
    holds c = floor(l) whole ones. Of the flows of a pair of leaves, m are whole in a class, y are shared: max sum m, at
    every leaf sum m <= n c and sum y <= n (l - c), m integer. Whole flows are coloured equitably on the class's cables,
    shared ones sprayed over them: no cable carries more than c + (l - c).
    """
    import pulp

    from solvers.backend import solve

    classes, leaves = spine_classes(network), network.leaves
    pair, which, many = np.unique(source * leaves + target, return_inverse=True, return_counts=True)
    ends = pair // leaves, pair % leaves
    if len(pair) * len(classes) > _MOST_SHARES:
        return None
    problem = pulp.LpProblem("few_splits", pulp.LpMaximize)
    keys = [
        (k, number)
        for number, one in enumerate(classes)
        for k in np.flatnonzero((one.up[ends[0]] > 0) & (one.down[ends[1]] > 0)).tolist()
    ]
    kept = {key: problem.add_variable(f"m{key[0]}_{key[1]}", 0, int(many[key[0]]), pulp.LpInteger) for key in keys}
    shared = {key: problem.add_variable(f"y{key[0]}_{key[1]}", 0) for key in keys}
    problem += pulp.lpSum(kept.values())
    of_pair: dict[int, list[int]] = {}
    of_leaf: dict[tuple[int, int, int], list[int]] = {}
    for k, number in keys:
        of_pair.setdefault(k, []).append(number)
        for way in (0, 1):
            of_leaf.setdefault((way, int(ends[way][k]), number), []).append(k)
    for k, numbers in of_pair.items():
        problem += pulp.lpSum(kept[k, number] + shared[k, number] for number in numbers) == int(many[k])
    for (way, leaf, number), members in of_leaf.items():
        one = classes[number]
        flows = room_s * float((one.up if way == 0 else one.down)[leaf]) / flow_bytes
        most = int(np.floor(flows * (1 + 1e-12) + _ROUNDING))
        problem += pulp.lpSum(kept[k, number] for k in members) <= len(one.lanes) * most
        rest = max(flows - most, 0.0) * (1 + _ROUNDING) + _ROUNDING
        problem += pulp.lpSum(shared[k, number] for k in members) <= len(one.lanes) * rest
    solution = solve(problem, time_limit_s=time_limit_s)
    if not solution.values:
        return None
    lane = np.full(len(source), -1)
    for number, one in enumerate(classes):
        taken = np.zeros(len(pair), dtype=np.int64)
        for (k, other), variable in kept.items():
            if other == number:
                taken[k] = round(solution.values.get(variable.name, 0.0))
        free = np.flatnonzero(lane < 0)
        mine = free[first_of_each(which[free], taken)]
        lane[mine] = one.lanes[equitable_colouring(source[mine], target[mine], len(one.lanes))]
    parts = np.zeros((len(pair), network.lanes))
    for (k, number), variable in shared.items():
        parts[k, classes[number].lanes] = max(solution.values.get(variable.name, 0.0), 0.0) / len(classes[number].lanes)
    parts[parts < _ROUNDING] = 0.0
    split = np.flatnonzero(lane < 0)
    if np.any(parts[which[split]].sum(axis=1) == 0):
        return None
    spread = parts[which[split]] / parts[which[split]].sum(axis=1, keepdims=True)
    row, cable = np.nonzero(spread)
    whole = np.flatnonzero(lane >= 0)
    flow = np.concatenate([whole, split[row]])
    order = np.argsort(flow, kind="stable")
    share = np.concatenate([np.ones(len(whole)), spread[row, cable]])
    return flow[order], np.concatenate([lane[whole], cable])[order], share[order]
