"""Where groups of accelerators lie: each within a node where it fits one, a larger one from the start of a node.

The last node of a larger group may be shared with groups that fit what is left of it. Where all sizes divide one
another and a node, accelerators in a row do, largest groups first; otherwise groups are packed into nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from solvers.sequence_case import Case, Integers

_TRIED = 20_000
"""Ways to fill a node that the exact packing tries at most."""


def nested(degrees: Iterable[int], node: int) -> bool:
    """Tell whether groups in a row, largest first, keep within nodes: the sizes divide one another, and a node."""
    sizes = sorted({*degrees, node})
    within = pairwise(size for size in sizes if size <= node)
    return all(large % small == 0 for small, large in within) and all(size % node == 0 for size in sizes if size > node)


def chained(case: Case) -> Case | None:
    """Return the case of those sizes alone that divide one another and a node; None where there is none.

    Few sizes fit beside one another without gaps, so that plans of them are worth a search of their own.
    """
    node = last = case.node_units or case.gpus
    chosen = []
    for number, size in reversed(list(enumerate(case.degrees.tolist()))):
        if size % node == 0 if size > node else last % size == 0:
            chosen.append(number)
            last = min(size, last)
    if not chosen:
        return None
    kept = np.array(chosen[::-1])
    attention = None if case.attention_s is None else case.attention_s[:, kept]
    return replace(
        case,
        degrees=case.degrees[kept],
        work_s=case.work_s[:, kept],
        fixed_s=case.fixed_s[kept],
        node_units=None,
        attention_s=attention,
    )


class Free:
    """Accelerators that no group has taken yet.

    Parameters
    ----------
    gpus : int
        All of them.
    node : int or None
        Accelerators of a node, where groups are laid out by nodes.
    """

    def __init__(self, gpus: int, node: int | None) -> None:
        self.node = node or max(gpus, 1)
        self.by_nodes = node is not None
        self.count = [0] * self.node + [gpus // self.node]
        self.largest = gpus  # group that there is room for

    def fits(self, size: int) -> bool:
        """Tell whether there is room for a group."""
        return size <= self.largest

    def take(self, size: int) -> None:
        """Take room for a group that fits: in the node with least room for it."""
        if not self.by_nodes:
            self.largest -= size
            return
        nodes = -(-size // self.node)
        left = self.node if nodes > 1 else next(room for room in range(size, self.node + 1) if self.count[room])
        self.count[left] -= nodes
        self.count[nodes * left - size] += 1
        self.count[0] += nodes - 1
        whole = self.count[-1] * self.node
        self.largest = whole or next((room for room in range(self.node, 0, -1) if self.count[room]), 0)


def laid_out(sizes: Sequence[int] | Integers, gpus: int, node: int | None) -> Integers | None:
    """Return the first accelerator of every group; None where the groups do not fit together.

    Parameters
    ----------
    sizes : sequence of int
        Accelerators of each group.
    gpus : int
        Accelerators of the cluster.
    node : int or None
        Accelerators of a node; None where groups in the order given keep within nodes by themselves.

    Notes
    -----
    Each group in turn goes into the node with least room for it, largest first, then in the order given. Where both
    fail all ways to fill the nodes one after another are tried, as long as they are few.
    """
    listed = [int(size) for size in sizes]
    if sum(listed) > gpus:
        return None
    if node is None:
        return np.cumsum(listed, dtype=np.int64) - listed if listed else np.zeros(0, np.int64)
    largest_first = sorted(range(len(listed)), key=lambda group: -listed[group])
    for order in (largest_first, list(range(len(listed)))):
        found = _best_fit(listed, order, gpus, node)
        if found is not None:
            return found
    exact = _exact(tuple(sorted(listed, reverse=True)), gpus, node)
    if exact is None:
        return None
    first = np.zeros(len(listed), dtype=np.int64)
    first[largest_first] = exact
    return first


def _best_fit(sizes: list[int], order: list[int], gpus: int, node: int) -> Integers | None:
    """Return the first accelerators of groups that take the node with least room in turn; None where one does not."""
    free: list[list[int]] = [[] for _ in range(node)] + [list(range(gpus // node))[::-1]]
    inside: list[list[int]] = [[] for _ in range(gpus // node)]
    rows: list[list[int]] = []  # nodes that follow one another
    for group in order:
        size = sizes[group]
        if size > node:
            nodes = -(-size // node)
            if len(free[node]) < nodes:
                return None
            row = [free[node].pop() for _ in range(nodes)]
            rows.append(row)
            for one in row:
                inside[one] = [group]
            free[nodes * node - size].append(row[-1])
            continue
        room = next((room for room in range(size, node + 1) if free[room]), None)
        if room is None:
            return None
        one = free[room].pop()
        inside[one].append(group)
        free[room - size].append(one)
    taken = {one for row in rows for one in row}
    number = 0
    first = np.full(len(sizes), -1, dtype=np.int64)
    for row in [*rows, *([one] for one in range(gpus // node) if one not in taken)]:
        place = number * node
        for group in dict.fromkeys(group for one in row for group in inside[one]):
            first[group] = place
            place += sizes[group]
        number += len(row)
    return first


@lru_cache(maxsize=65536)
def _exact(sizes: tuple[int, ...], gpus: int, node: int) -> tuple[int, ...] | None:
    """Return the first accelerators of groups, largest first, if all ways to fill nodes are few enough and one does."""
    first, whole, rooms = [], 0, []
    for size in sizes:
        if size <= node:
            break
        first.append(whole * node)
        whole += -(-size // node)
        if size % node:
            rooms.append((node - size % node, first[-1] + size))
    rooms += [(node, number * node) for number in range(whole, gpus // node)]
    if whole > gpus // node:
        return None
    rooms.sort()
    kinds = sorted(set(sizes[len(first) :]), reverse=True)
    failed: set[tuple[int, tuple[int, ...]]] = set()
    filled: list[tuple[int, ...]] = []

    def patterns(room: int, counts: tuple[int, ...], kind: int) -> Iterable[tuple[int, ...]]:
        if kind == len(kinds):
            yield ()
            return
        for count in range(min(counts[kind], room // kinds[kind]), -1, -1):
            left = room - count * kinds[kind]
            if count < counts[kind] and kind + 1 == len(kinds) and left >= kinds[kind]:
                return  # another one would fit
            for rest in patterns(left, counts, kind + 1):
                yield (count, *rest)

    def packed(number: int, counts: tuple[int, ...]) -> bool:
        if not any(counts):
            return True
        if number == len(rooms) or (number, counts) in failed or len(failed) > _TRIED:
            return False
        if sum(room for room, _ in rooms[number:]) < sum(n * size for n, size in zip(counts, kinds, strict=True)):
            return False
        for pattern in patterns(rooms[number][0], counts, 0):
            filled.append(pattern)
            if packed(number + 1, tuple(n - k for n, k in zip(counts, pattern, strict=True))):
                return True
            filled.pop()
        failed.add((number, counts))
        return False

    small = sizes[len(first) :]
    if not packed(0, tuple(small.count(kind) for kind in kinds)):
        return None
    places: dict[int, list[int]] = {kind: [] for kind in kinds}
    for (_, place), pattern in zip(rooms, filled, strict=False):
        for kind, count in zip(kinds, pattern, strict=True):
            for _ in range(count):
                places[kind].append(place)
                place += kind
    return (*first, *(places[size].pop() for size in small))


def one_size(case: Case, degree: int) -> Integers:
    """Return the first accelerator of every group where all have one size, as many as there is room for."""
    node = case.node_units
    if node is None or node % degree == 0:
        return np.arange(case.gpus // degree) * degree
    nodes = case.gpus // node
    if degree > node:
        each = -(-degree // node)
        return np.arange(nodes // each) * (each * node)
    within = np.arange(node // degree) * degree
    return np.asarray((np.arange(nodes)[:, None] * node + within).ravel())


def places(case: Case, column: Integers, used: Integers) -> Integers | None:
    """Return the first accelerator of those groups that are used; `column` says the size of all."""
    first = laid_out(case.degrees[column[used]], case.gpus, case.node_units)
    if first is None:  # all of them were opened together, in an order that fits
        every = laid_out(case.degrees[column], case.gpus, case.node_units)
        first = None if every is None else every[used]
    return first
