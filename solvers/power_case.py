"""A question about power as arrays: places, servers and what they draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.facility import Level, PowerTree
from perfmodel.terms import Array

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Site:
    """Every node of a facility on its own, parents before their children.

    Parameters
    ----------
    name : tuple of str
        Such as ``pdu[1]/rack[3]``.
    level : tuple of str
        What each is.
    entry : array of int, shape (nodes,)
        Entry of the flat tree that it is one of.
    parent : array of int, shape (nodes,)
        Node that supplies it; -1 for the root.
    limit_w, failover_w : array, shape (nodes,)
        What it may draw, and after the loss of a feed [W].
    slots : array of int, shape (nodes,)
        Servers it has room for; 0 but for racks.
    fits : array of bool, shape (nodes, workloads)
        Whether servers of the workload may stand in it; false but for racks.
    """

    name: tuple[str, ...]
    level: tuple[Level, ...]
    entry: Integers
    parent: Integers
    limit_w: Array
    failover_w: Array
    slots: Integers
    fits: Booleans

    @cached_property
    def racks(self) -> Integers:
        """Nodes that hold servers."""
        return np.flatnonzero(self.slots > 0)

    @cached_property
    def above(self) -> Any:
        """Which racks each node supplies: a sparse matrix of ones, shape (nodes, racks)."""
        from scipy.sparse import csr_matrix

        at, racks = self.racks.copy(), np.arange(len(self.racks))
        rows, columns = [], []
        while len(racks):
            rows.append(at)
            columns.append(racks)
            at = self.parent[at]
            racks, at = racks[at >= 0], at[at >= 0]
        nodes, supplied = np.concatenate(rows), np.concatenate(columns)
        shape = (len(self.name), len(self.racks))
        return csr_matrix((np.ones(len(nodes)), (nodes, supplied)), shape=shape)

    def totals(self, placed: Integers) -> Integers:
        """Return the servers below every node, shape (nodes, workloads), of those in each rack."""
        return np.asarray(self.above @ placed).astype(np.int64)

    @cached_property
    def children(self) -> tuple[Integers, ...]:
        """Nodes that each supplies."""
        below: list[list[int]] = [[] for _ in self.name]
        for node in range(1, len(self.name)):
            below[self.parent[node]].append(node)
        return tuple(np.array(nodes, np.int64) for nodes in below)

    @cached_property
    def pool(self) -> Integers:
        """Number of each node's pool: nodes that are alike in all below them, under parents that are alike."""
        return self.pool_of(0.0)

    def pool_of(self, grain: float) -> Integers:
        """Return pools of nodes that are nearly alike.

        Parameters
        ----------
        grain : float
            Relative difference of limits over slots that does not count; with 0 limits and slots are all equal [1].
        """
        kinds: dict[Any, int] = {}
        kind = np.zeros(len(self.name), np.int64)
        slots = self.slots.copy()
        fits = self.fits.copy()
        for node in range(len(self.name) - 1, -1, -1):
            own: Any = (self.limit_w[node], self.failover_w[node], int(slots[node]))
            below: Any = tuple(sorted(kind[self.children[node]].tolist()))
            if grain:
                each = np.log(np.array(own[:2]) / max(slots[node], 1)) / np.log1p(grain)
                own, below = tuple(np.floor(each).tolist()), self.slots[node] > 0
            if node:
                slots[self.parent[node]] += slots[node]
                fits[self.parent[node]] |= fits[node]
            kind[node] = kinds.setdefault((own, below, fits[node].tobytes()), len(kinds))
        pools: dict[tuple[int, int], int] = {}
        pool = np.zeros(len(self.name), np.int64)
        for node in range(len(self.name)):
            above = -1 if node == 0 else int(pool[self.parent[node]])
            pool[node] = pools.setdefault((above, int(kind[node])), len(pools))
        return pool


def site_of(tree: PowerTree, fits: Booleans) -> Site:
    """Set up every node of a tree on its own.

    Parameters
    ----------
    tree : PowerTree
        Nodes that are alike as one entry.
    fits : array of bool, shape (entries, workloads)
        Whether servers of the workload may stand in the entry's racks.
    """
    names: list[str] = []
    entries: list[int] = []
    parents: list[int] = []
    of_entry: list[list[int]] = [[] for _ in tree.name]
    for entry, (count, parent) in enumerate(zip(tree.count, tree.parent, strict=True)):
        own = tree.name[entry].rpartition("/")[2]
        for above in of_entry[parent] if parent >= 0 else [-1]:
            for number in range(count):
                prefix = f"{names[above]}/" if above > 0 else ""
                of_entry[entry].append(len(names))
                names.append(prefix + own + (f"[{number}]" if count > 1 else ""))
                entries.append(entry)
                parents.append(above)

    def each(values: Any) -> Any:
        return np.asarray(values)[entries]

    return Site(
        tuple(names),
        tuple(tree.level[entry] for entry in entries),
        np.array(entries),
        np.array(parents),
        each(tree.limit_w),
        each(tree.failover_w),
        each(tree.slots).astype(np.int64),
        fits[entries],
    )


@dataclass(frozen=True)
class Case:
    """Servers of each workload, and where they may stand.

    Parameters
    ----------
    workloads : tuple of str
        Names.
    site : Site
        The facility.
    max_w, idle_w : array, shape (workloads,)
        The most and the least that one server draws [W].
    mean_w, sigma_w : array, shape (hours, workloads)
        Mean and standard deviation of one over the day [W].
    profile_w : array, shape (workloads, steps)
        Power of one over time [W].
    quantile_w : array, shape (workloads,)
        Power of one that is exceeded with the risk [W].
    typical_w : array, shape (workloads, steps)
        Power of one over time without what is random [W].
    noise_w : array, shape (workloads,)
        Standard deviation of what is random [W].
    correlation : array, shape (workloads, workloads)
        Between two servers.
    failover_w : array, shape (workloads,)
        The most that one draws after the loss of a feed; infinite for one that goes on as before [W].
    share : array, shape (workloads,), or None
        Part of all servers that is of each workload.
    least, most : array of int, shape (workloads,)
        Servers that are needed, and that can be used.
    value : array, shape (workloads,)
        What one server adds to the objective.
    sense : str
        ``max`` or ``min``.
    risk : float
        Probability or share of time above a limit.
    failover : bool
        Whether limits also hold when feeds are lost.
    """

    workloads: tuple[str, ...]
    site: Site
    max_w: Array
    idle_w: Array
    mean_w: Array
    sigma_w: Array
    profile_w: Array
    quantile_w: Array
    typical_w: Array
    noise_w: Array
    correlation: Array
    failover_w: Array
    share: Array | None
    least: Integers
    most: Integers
    value: Array
    sense: str
    risk: float
    failover: bool

    def apportioned(self, servers: int) -> Integers:
        """Return the servers of each workload of so many, by their shares.

        Notes
        -----
        Webster's method: the next server goes to the largest share / (servers + 1/2), so that one more server never
        takes one from a workload.
        """
        assert self.share is not None
        counts = np.floor(self.share * servers * (1 - 1e-12) - len(self.share)).clip(0).astype(np.int64)
        while counts.sum() < servers:
            counts[np.argmax(self.share / (counts + 0.5))] += 1
        return counts
