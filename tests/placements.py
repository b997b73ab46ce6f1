"""Made-up networks and traffic, and an independent account of what an order costs."""

import itertools
from typing import Any

import numpy as np

from perfmodel.placement import Demand, Network, demand, network
from perfmodel.traffic import Traffic, phase


def ring(name: str, units: int, size: float = 1e9) -> Any:
    here = np.arange(units)
    return phase(name, here, np.roll(here, -1), np.full(units, size))


def problem(
    random: np.random.Generator, nodes: int, units: int | None = None, phases: int = 2, density: float = 0.4
) -> tuple[Demand, Network]:
    """Traffic of random messages or rings, on rates between 1 and 10 GB/s."""
    units = units or nodes
    made = []
    for index in range(phases):
        if random.random() < 0.4 and units > 1:
            made.append(ring(f"phase {index}", units, float(random.choice([1e9, 3e9]))))
            continue
        table = random.uniform(0, 5e9, (units, units)) * (random.random((units, units)) < density)
        np.fill_diagonal(table, 0.0)
        a, b = np.nonzero(table)
        made.append(phase(f"phase {index}", a, b, table[a, b]))
    made = [one for one in made if len(one.sent_bytes)] or [ring("ring", units)]
    rates = random.uniform(1e9, 10e9, (nodes, nodes))
    return demand(Traffic(units, tuple(made))), network([f"n{node}" for node in range(nodes)], rates)


def cost_by_hand(wanted: Demand, net: Network, order: Any) -> tuple[float, float]:
    """Communication time and sum of transfers by loops over the definition: nothing of the code's own."""
    together = 0.0
    alone = 0.0
    nodes = range(len(net.names))
    for index in range(len(wanted.phases)):
        slowest = 0.0
        sent: dict[int, float] = {}
        received: dict[int, float] = {}
        for p, a, b, size in zip(wanted.phase, wanted.sources, wanted.destinations, wanted.sent_bytes, strict=True):
            if p != index:
                continue
            u, v = int(order[a]), int(order[b])
            slowest = max(slowest, size / net.bandwidth[u, v])
            alone += size / net.bandwidth[u, v]
            sent[u] = sent.get(u, 0.0) + size
            received[v] = received.get(v, 0.0) + size
        for u, size in sent.items():
            slowest = max(slowest, size / max(net.bandwidth[u, v] for v in nodes if v != u))
        for v, size in received.items():
            slowest = max(slowest, size / max(net.bandwidth[u, v] for u in nodes if u != v))
        together += slowest
    return together, alone


def all_orders(nodes: int, units: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(nodes), units)))
