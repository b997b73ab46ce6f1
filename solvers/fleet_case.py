"""Which accelerators to rent, as numbers: prices, limits, rates and throughputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from perfmodel.terms import Array
from solvers.fleet_tails import soon_enough

Integers = NDArray[np.int64]

PURCHASES = ("reserved", "on_demand", "spot")
"""Ways to rent: for the whole day; by the period; by the period, and it may be taken away."""
RESERVED, ON_DEMAND, SPOT = range(3)
MOST_INSTANCES = 1e6
"""A pool of which a stream alone would take more instances counts as one that cannot serve it: problems with larger
numbers are beyond what a solver proves."""


@dataclass(frozen=True)
class Graph:
    """Calls that follow one another within a time.

    Parameters
    ----------
    name : str
        Of the graph.
    calls : tuple of int
        Its streams, each after those it waits for.
    before : tuple of tuple of int
        Streams that each call waits for.
    latency_s : float
        What the longest path may take [s].
    paths : tuple of (tuple of int, float)
        Streams of further paths, and what each may take [s].
    level : float or None
        Share of the requests of which a path's time is within its limit; None for its mean [1].
    """

    name: str
    calls: tuple[int, ...]
    before: tuple[tuple[int, ...], ...]
    latency_s: float
    paths: tuple[tuple[tuple[int, ...], float], ...] = ()
    level: float | None = None

    def longest_s(self, latency_s: Array) -> Array:
        """Return how long after its beginning each call ends at the latest [s].

        Parameters
        ----------
        latency_s : array
            Of each stream; those of other graphs are not looked at [s].
        """
        ends = np.zeros(len(latency_s))
        for call, before in zip(self.calls, self.before, strict=True):
            ends[call] = latency_s[call] + max((ends[one] for one in before), default=0.0)
        return ends

    def remaining_s(self, latency_s: Array) -> Array:
        """Return how long the graph goes on after each call's end at the most [s]."""
        rest = np.zeros(len(latency_s))
        for call, before in zip(reversed(self.calls), reversed(self.before), strict=True):
            for one in before:
                rest[one] = max(rest[one], latency_s[call] + rest[call])
        return rest


@dataclass(frozen=True)
class Objective:
    """An objective of latency that predicted throughputs are within.

    Parameters
    ----------
    name : str
        Its key.
    limit_s : float
        What it is [s].
    reached_s : array, (classes, P)
        What requests see at a light load, not a number where throughputs are given [s].
    """

    name: str
    limit_s: float
    reached_s: Array


@dataclass(frozen=True)
class Case:
    """The fleet to choose, as arrays over accelerators (A), pools (P), streams of requests (I) and periods (H).

    A pool is the instances of one model, size and type of weights on one kind of accelerator; a stream is a class of
    requests, or a call of a request graph.

    Parameters
    ----------
    accelerators : tuple of str
        Names of the kinds that can be rented.
    price : array, (A, 3)
        Of one accelerator by way to rent, infinite where it is not offered [USD/h].
    availability : array, (A,)
        Share of the accelerators rented on the spot market that is counted on [1].
    most : array, (A,)
        Accelerators there are, infinite where there is no limit.
    power_w : array, (A,)
        Of one accelerator, not a number where it is not known [W].
    utilisation_max : array, (A,)
        Share of an instance's throughput that may be used [1].
    site : array of int, (A,)
        Where each kind stands.
    sites : tuple of str
        Names of the sites.
    site_power_w : array
        Power limit of each site, infinite where there is none [W].
    models : tuple of str
        Names of the models.
    pool_accelerator, pool_model, pool_size : array of int, (P,)
        Kind and model of each pool, and accelerators of one instance.
    pool_precision : tuple of (str or None), (P,)
        Type of the weights of each pool, None where throughputs are given.
    streams : tuple of str
        Names of the streams.
    stream_class : array of int, (I,)
        Class of each stream.
    classes : tuple of str
        Names of the classes.
    class_model : array of int
        Model of each class.
    rate : array, (I, H)
        Of each stream in each period [requests/s].
    weight : array, (H,)
        Share of the day [1].
    hours : tuple of tuple of int
        Periods of the day, as written, that are alike and stand for each period here.
    throughput : array, (I, P)
        What one instance sustains of a stream within the objectives; 0 where it cannot [requests/s].
    spread : array, (I, P)
        Standard deviation of the logarithm of the throughput, 0 where it is given [1].
    latency_s, latency_std_s : array, (I, P)
        Of a stream's calls in a row: mean and standard deviation; 0 where it is not known [s].
    graphs : tuple of Graph
        Calls that follow one another.
    slices : int or None
        Equal parts a stream is cut into, each of which goes to one pool; None for any share.
    lost : int
        Instances of any one pool that may fail.
    requests : tuple of str
        What can be asked once more: the classes, then the graphs.
    calls : array, (requests, I)
        Calls of each stream that one such request makes [1].
    objectives : tuple of Objective
        Of latency.
    """

    accelerators: tuple[str, ...]
    price: Array
    availability: Array
    most: Array
    power_w: Array
    utilisation_max: Array
    site: Integers
    sites: tuple[str, ...]
    site_power_w: Array
    models: tuple[str, ...]
    pool_accelerator: Integers
    pool_model: Integers
    pool_size: Integers
    pool_precision: tuple[str | None, ...]
    streams: tuple[str, ...]
    stream_class: Integers
    classes: tuple[str, ...]
    class_model: Integers
    rate: Array
    weight: Array
    hours: tuple[tuple[int, ...], ...]
    throughput: Array
    spread: Array
    latency_s: Array
    latency_std_s: Array
    graphs: tuple[Graph, ...]
    slices: int | None
    lost: int
    requests: tuple[str, ...]
    calls: Array
    objectives: tuple[Objective, ...] = ()

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the pools: the kind of accelerator, and what tells it from others of the kind."""
        names = []
        for pool, kind in enumerate(self.pool_accelerator):
            others = np.flatnonzero(self.pool_accelerator == kind)
            size, precision = self.pool_size[pool], self.pool_precision[pool]
            same = others[self.pool_model[others] == self.pool_model[pool]]
            name = self.accelerators[kind]
            name += f" {self.models[self.pool_model[pool]]}" if len(set(self.pool_model[others])) > 1 else ""
            name += f" x{size}" if len(set(self.pool_size[same])) > 1 else ""
            name += f" {precision}" if len({self.pool_precision[one] for one in same}) > 1 else ""
            names.append(name)
        return tuple(names)

    def pool(self, accelerator: str, model: str, size: int, precision: str | None) -> int | None:
        """Return the number of a pool by what it is of, or None."""
        for pool, kind in enumerate(self.pool_accelerator):
            names = self.accelerators[kind], self.models[self.pool_model[pool]]
            if (*names, self.pool_size[pool], self.pool_precision[pool]) == (accelerator, model, size, precision):
                return pool
        return None

    @property
    def periods(self) -> int:
        """Periods that differ."""
        return len(self.weight)

    @property
    def stream_model(self) -> Integers:
        """Model of each stream."""
        return self.class_model[self.stream_class]

    @property
    def counted(self) -> Array:
        """Capacity that an instance stands for by way to rent, of shape (P, 3) [instances]."""
        spot = self.availability[self.pool_accelerator]
        return np.stack([np.ones_like(spot), np.ones_like(spot), spot], axis=1)

    @property
    def able(self) -> NDArray[np.bool_]:
        """Whether a pool can take a stream within the objectives, of shape (I, P)."""
        return np.asarray((self.throughput > 0) & (self.throughput * MOST_INSTANCES >= self.rate.max(axis=1)[:, None]))

    @cached_property
    def possible(self) -> NDArray[np.bool_]:
        """Whether a pool can take a stream within the objectives and its graph's latency, of shape (I, P).

        A stream without a rate can go wherever there is any throughput.

        A call is not made where even the fastest calls before and after it leave too little time.
        """
        able = self.able
        for graph in self.graphs:
            if graph.level is not None:
                able = soon_enough(self, graph, able)
                continue
            fastest = self.fastest_s(able)
            before = graph.longest_s(fastest) - fastest
            after = graph.remaining_s(fastest)
            for call in graph.calls:
                able[call] &= before[call] + self.latency_s[call] + after[call] <= graph.latency_s * (1 + 1e-12)
            for path, limit_s in graph.paths:
                others = sum(fastest[one] for one in path)
                for call in path:
                    able[call] &= others - fastest[call] + self.latency_s[call] <= limit_s * (1 + 1e-12)
        return able

    def fastest_s(self, able: NDArray[np.bool_]) -> Array:
        """Return each stream's least latency over the pools that can take it, infinite without one [s]."""
        return np.asarray(np.where(able, self.latency_s, np.inf).min(axis=1, initial=np.inf))

    def load(self, share: Array) -> Array:
        """Return the instances that each pool keeps busy, of shape (P, H), at shares of shape (I, P, H).

        The work of a request is the inverse of the throughput (Melange, arXiv 2404.14527, section 4).
        """
        work = np.divide(1.0, self.throughput, out=np.zeros_like(self.throughput), where=self.throughput > 0)
        return np.asarray(np.einsum("ih,ip,iph->ph", self.rate, work, share))
