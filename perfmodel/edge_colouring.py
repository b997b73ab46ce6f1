"""Colouring the edges of a bipartite multigraph so that every colour has its fair share at every vertex.

Edges are flows, left vertices the leaves they leave, right vertices the leaves they enter, colours the spines (or
single cables) that carry them: an equitable colouring is a routing on single paths that no other can beat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def equitable_colouring(left: Integers, right: Integers, colours: int) -> Integers:
    """Colour edges such that a vertex of degree d has floor(d/P) or ceil(d/P) edges of each of P colours.

    Parameters
    ----------
    left : array of int
        Left end of each edge, counted from 0 [1]; edges may repeat.
    right : array of int
        Right end of each edge, counted from 0 [1]; its numbers are apart from those of the left.
    colours : int
        Number of colours, P [1].

    Returns
    -------
    array of int
        Colour of each edge, 0 to P - 1.

    Raises
    ------
    ValueError
        There is no colour.

    Notes
    -----
    It always exists (de Werra, "Equitable colorations of graphs", RIRO 5 (1971)). An even number of colours is halved
    by an Euler split; of an odd number one colour is peeled off as a subgraph with degrees in [floor(d/P), ceil(d/P)],
    which exists since every edge taken 1/P times is a fractional one and the constraints are totally unimodular. What
    is left keeps its bounds in either step. O(|E| log |E| log P), plus a maximum flow for each odd number.
    """
    if colours < 1:
        raise ValueError(f"at least one colour is needed, not {colours}")
    left, right = np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)
    colour = np.zeros(len(left), dtype=np.int64)
    if not len(left):
        return colour
    lefts, rights = int(left.max()) + 1, int(right.max()) + 1
    # An edge that is not settled has the colours `colour` to `colour` + `count` - 1 left; edges with the same ones are
    # a graph of their own, and all these graphs are treated at once.
    open_edges, count = np.arange(len(left)), colours
    while count > 1:
        tails = colour[open_edges] * lefts + left[open_edges]
        heads = colour[open_edges] * rights + right[open_edges]
        if count % 2:
            peeled = _share_of(tails, heads, count)
            colour[open_edges[peeled]] += count - 1
            open_edges, count = open_edges[~peeled], count - 1
        else:
            count //= 2
            colour[open_edges[euler_split(tails, heads)]] += count
    return colour


def euler_split(left: Integers, right: Integers) -> Flags:
    """Split edges in two halves that differ by at most one edge at every vertex.

    Parameters
    ----------
    left : array of int
        Left end of each edge [1].
    right : array of int
        Right end of each edge [1].

    Returns
    -------
    array of bool
        Which half each edge belongs to.

    Notes
    -----
    At every vertex edges are paired; the pairs join them to closed trails, along which the halves alternate (Gabow,
    "Using Euler partitions to edge color bipartite multigraphs", IJCIS 5 (1976)). A trail alternates between left and
    right pairs, so its length is even. Where a degree is odd, an edge to an extra vertex makes it even. Every second
    edge of a trail is an orbit of (left pair) o (right pair): two edges of a pair lie in different orbits, which are
    told apart by their least member, found by doubling jumps in log2 |E| rounds.
    """
    edges = len(left)
    by_left, by_right = _paired(left), _paired(right)
    odd_left, odd_right = np.flatnonzero(by_left < 0), np.flatnonzero(by_right < 0)
    lefts, rights = len(odd_left), len(odd_right)
    closing = lefts % 2  # both numbers have the parity of the number of edges
    total = edges + lefts + rights + closing
    to_right = np.arange(edges, edges + lefts)  # from odd left vertices to one extra right vertex
    to_left = np.arange(edges + lefts, edges + lefts + rights)  # from one extra left vertex to odd right vertices
    last = np.full(closing, total - 1)  # between the two extra vertices
    across_left, across_right = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
    across_left[:edges], across_right[:edges] = by_left, by_right
    across_left[odd_left], across_left[to_right] = to_right, odd_left
    across_right[odd_right], across_right[to_left] = to_left, odd_right
    for across, around in (
        (across_left, np.concatenate([to_left, last])),
        (across_right, np.concatenate([to_right, last])),
    ):
        across[around[::2]], across[around[1::2]] = around[1::2], around[::2]
    least, jump = np.arange(total), across_left[across_right]
    for _ in range(int(total).bit_length()):
        least = np.minimum(least, least[jump])
        jump = jump[jump]
    return np.asarray((least < least[across_left])[:edges])


def _paired(vertex: Integers) -> Integers:
    """Pair the edges of every vertex; -1 for the odd one."""
    order = np.argsort(vertex, kind="stable")
    sorted_vertex = vertex[order]
    place = np.arange(len(vertex))
    begins = np.flatnonzero(np.diff(sorted_vertex, prepend=-1))
    within = place - np.repeat(begins, np.diff(np.append(begins, len(vertex))))
    partner = np.full(len(vertex), -1)
    second = np.flatnonzero(within % 2)
    partner[order[second]], partner[order[second - 1]] = order[second - 1], order[second]
    return partner


def _share_of(left: Integers, right: Integers, parts: int) -> Flags:
    """Choose edges such that of d at a vertex floor(d/parts) or ceil(d/parts) are chosen."""
    tail = np.unique(left, return_inverse=True)[1]
    heads, head = np.unique(right, return_inverse=True)
    tail_degree, head_degree = np.bincount(tail), np.bincount(head)
    pair, which, many = np.unique(tail * len(heads) + head, return_inverse=True, return_counts=True)
    taken = bounded_subgraph(
        pair // len(heads),
        pair % len(heads),
        (many // parts, -(-many // parts)),
        (tail_degree // parts, -(-tail_degree // parts)),
        (head_degree // parts, -(-head_degree // parts)),
    )
    assert taken is not None  # every edge 1/parts times is a fractional solution
    return first_of_each(which, taken)


def first_of_each(which: Integers, count: Integers) -> Flags:
    """Choose the first `count` members of every class.

    Parameters
    ----------
    which : array of int
        Class of each member, counted from 0 [1].
    count : array of int
        How many of each class to choose [1].

    Returns
    -------
    array of bool
        Whether a member is chosen.
    """
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(count)))
    begins = ends - np.diff(ends, prepend=0)
    chosen = np.zeros(len(which), dtype=bool)
    chosen[order] = np.arange(len(which)) - begins[which[order]] < count[which[order]]
    return chosen


def bounded_subgraph(
    left: Integers,
    right: Integers,
    edge: tuple[Integers, Integers],
    left_degree: tuple[Integers, Integers],
    right_degree: tuple[Integers, Integers],
    *,
    largest: bool = False,
) -> Integers | None:
    """Find a subgraph of a bipartite graph whose degrees lie between bounds.

    Parameters
    ----------
    left : array of int
        Left end of each edge [1].
    right : array of int
        Right end of each edge [1].
    edge : pair of array of int
        Least and most copies of each edge [1].
    left_degree : pair of array of int
        Least and most degree of each left vertex [1].
    right_degree : pair of array of int
        Least and most degree of each right vertex [1].
    largest : bool
        Whether the subgraph is to have as many edges as the bounds allow.

    Returns
    -------
    array of int or None
        Copies of each edge that are taken; None if the bounds contradict each other.

    Notes
    -----
    An integral flow from a source over left and right vertices to a sink. Lower bounds become supplies of a second
    source (Ford and Fulkerson, "Flows in Networks" (1962), I.10); the flow so found is then made maximal along
    augmenting paths, which keep the lower bounds.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    lefts, rights = len(left_degree[0]), len(right_degree[0])
    source, sink, supply, demand = lefts + rights, lefts + rights + 1, lefts + rights + 2, lefts + rights + 3
    tail = np.concatenate([np.full(lefts, source), left, lefts + np.arange(rights)])
    head = np.concatenate([np.arange(lefts), lefts + right, np.full(rights, sink)])
    low = np.concatenate([left_degree[0], edge[0], right_degree[0]]).astype(np.int64)
    high = np.concatenate([left_degree[1], edge[1], right_degree[1]]).astype(np.int64)
    if np.any(low > high):
        return None
    into = np.bincount(head, low, demand + 1).astype(np.int64)
    out = np.bincount(tail, low, demand + 1).astype(np.int64)
    spare = np.clip(into - out, 0, None), np.clip(out - into, 0, None)
    vertices = np.arange(demand + 1)
    everything = int(edge[1].sum()) + 1
    ends = (
        np.concatenate([tail, np.full(demand + 1, supply), vertices, [sink]]),
        np.concatenate([head, vertices, np.full(demand + 1, demand), [source]]),
    )
    rooms = np.concatenate([high - low, *spare, [everything]])
    kept = rooms > 0
    shape = (demand + 1, demand + 1)
    room = coo_array((rooms[kept].astype(np.int32), (ends[0][kept], ends[1][kept])), shape=shape).tocsr()
    found = maximum_flow(room, supply, demand)
    if found.flow_value != int(spare[0].sum()):
        return None
    flow = found.flow
    if largest:
        left_over = (room - flow).tocoo()
        row, column = left_over.coords
        inside = (np.maximum(row, column) <= sink) & (np.minimum(row, column) < source) & (left_over.data > 0)
        entries = left_over.data[inside].astype(np.int32), (row[inside], column[inside])
        flow = flow + maximum_flow(coo_array(entries, shape=shape).tocsr(), source, sink).flow
    at = flow.tocsr()[left, lefts + right]
    return np.asarray(edge[0] + np.asarray(at).reshape(-1), dtype=np.int64)
