"""Who sends what between nodes when accelerators run a collective."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

Rank = tuple[int, int]
"""Node and accelerator of the node."""

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "p2p"]

_RING_FACTOR = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}


def collective_flows(
    collective: Collective, ranks: Sequence[Rank], total_bytes: float
) -> list[tuple[Rank, Rank, float]]:
    """List the flows between nodes of one collective.

    Parameters
    ----------
    collective : str
        Which collective.
    ranks : sequence of pair of int
        Its members, in the order of its ring or chain.
    total_bytes : float
        Size, by the convention of nccl-tests: the buffer of an all-reduce, the total of an all-gather or a
        reduce-scatter, a rank's buffer of an all-to-all, the message of a broadcast or of a send [bytes].

    Returns
    -------
    list
        Sender, receiver and size [bytes] of each flow between two nodes, in units of whole transfers: what the steps of
        a ring send over one connection is one flow.

    Notes
    -----
    A ring over n members sends f (n - 1)/n S over each of its edges, f = 2 for an all-reduce and 1 for an all-gather or
    a reduce-scatter; it visits each node once. With g members on every node there are g rings, each with 1/g of the
    data, that leave the node through another member's adapter. A broadcast passes the message along a chain in the
    same way; a send goes from each member to the next; an all-to-all sends S/n between any two.
    """
    count = len(ranks)
    if collective == "all_to_all":
        return [(a, b, total_bytes / count) for a in ranks for b in ranks if a[0] != b[0]]
    if collective == "p2p":
        return [(a, b, total_bytes) for a, b in itertools.pairwise(ranks) if a[0] != b[0]]
    members: dict[int, list[Rank]] = {}
    for rank in ranks:
        members.setdefault(rank[0], []).append(rank)
    nodes = list(members)
    if len(nodes) < 2:
        return []
    rings = min(map(len, members.values()))
    if collective == "broadcast":
        edges, size = list(itertools.pairwise(nodes)), total_bytes / rings
    else:
        edges = list(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
        size = _RING_FACTOR[collective] * (count - 1) / count * total_bytes / rings
    return [(members[a][ring], members[b][ring], size) for a, b in edges for ring in range(rings)]


def strided_groups(ranks: Sequence[Rank], size: int, stride: int) -> list[list[Rank]]:
    """Cut ranks into groups of `size` members that are `stride` apart.

    Parameters
    ----------
    ranks : sequence of pair of int
        All ranks in order; their number is a multiple of size times stride.
    size : int
        Members of a group [1].
    stride : int
        Distance of neighbours [ranks].

    Returns
    -------
    list of list
        The groups.
    """
    block = size * stride
    return [
        [ranks[begin + offset + member * stride] for member in range(size)]
        for begin in range(0, len(ranks), block)
        for offset in range(stride)
    ]
