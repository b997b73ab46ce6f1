"""Why no order gives every message a path, and the fewest links that would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from perfmodel.placement import message_times, network, transfer_time_sum_s
from solvers.placement_exact import LARGEST, Exact
from solvers.placement_scenario import PlacementScenario
from solvers.placement_search import Search

Integers = NDArray[np.int64]

_DEAR = 1e3
"""What a message without a path counts, in messages with one."""
_SECONDS, _ROUNDS = 3.0, 400
_SHOWN = 4
_MOST = 20


def why_partitioned(scenario: PlacementScenario, reason: str, order: Integers | None = None) -> str:
    """Return what cuts the job, naming nodes.

    Parameters
    ----------
    scenario : PlacementScenario
        The question.
    reason : str
        Which count showed that there is no order (`solvers.placement_bound.Thresholds.impossible`).
    order : array of int, optional
        The order that was asked about, where it was one.
    """
    names, rates = scenario.net.names, scenario.net.bandwidth
    if order is not None:
        pairs = [f"{names[a]} -> {names[b]}" for a, b in _pathless(scenario, order)]
        return f"no path for messages of this order: {_some(pairs)}"
    graph = csr_array((np.where(np.isinf(rates), 0.0, rates) > 0).astype(np.int8))
    for connection, between in (("weak", "no path between"), ("strong", "no path both ways between")):
        count, label = connected_components(graph, directed=True, connection=connection)  # type: ignore[arg-type]
        if count > 1:
            parts = sorted((np.flatnonzero(label == part) for part in range(count)), key=lambda part: -len(part))
            said = [f"{_some([names[node] for node in part])} ({_counted(len(part))})" for part in parts[:_SHOWN]]
            more = f" and {count - _SHOWN} more parts" if count > _SHOWN else ""
            return f"{between} {' and '.join(said)}{more}; the job's messages join {_counted(scenario.wanted.units)}"
    return f"no order gives every message a path ({reason})"


def relaxation(scenario: PlacementScenario, order: Integers | None = None) -> list[dict[str, Any]]:
    """Return the links that are missing in an order that lacks fewest, with the rate that each would need.

    Parameters
    ----------
    scenario : PlacementScenario
        The question.
    order : array of int, optional
        The order that was asked about, where it was one.

    Returns
    -------
    list of dict
        ``constraint``, ``now``, ``needed``, ``unit``: the rate at which the link's message ends with the others of its
        phase. Of few nodes no order lacks fewer links; of more, none that was found.
    """
    wanted, net = scenario.wanted, scenario.net
    if order is None:
        order = _fewest(scenario)
    times = message_times(wanted, net, order)
    finite = np.isfinite(times)
    least = net.bandwidth[(net.bandwidth > 0) & np.isfinite(net.bandwidth)]
    slowest = float(least.min()) if len(least) else 1e9
    entries = []
    for sender, receiver in _pathless(scenario, order):
        here = (order[wanted.sources] == sender) & (order[wanted.destinations] == receiver)
        needed = slowest
        rates = []
        for message in np.flatnonzero(here):
            others = times[(wanted.phase == wanted.phase[message]) & finite]
            if len(others):
                rates.append(float(wanted.sent_bytes[message] / others.max()))
        needed = max(rates, default=slowest)
        entries.append(
            {
                "constraint": f"bandwidth[{net.names[sender]} -> {net.names[receiver]}]",
                "now": 0.0,
                "needed": needed / 1e9,
                "unit": "GB/s",
            }
        )
    return entries[:_MOST]


def _pathless(scenario: PlacementScenario, order: Integers) -> list[tuple[int, int]]:
    wanted = scenario.wanted
    times = message_times(wanted, scenario.net, order)
    return sorted(
        {
            (int(order[wanted.sources[message]]), int(order[wanted.destinations[message]]))
            for message in np.flatnonzero(~np.isfinite(times))
        }
    )


def _fewest(scenario: PlacementScenario) -> Integers:
    """Search for the order with the fewest messages that lack a path."""
    rates = np.where(scenario.net.bandwidth > 0, 1.0, 1.0 / _DEAR)
    even = network(scenario.net.names, rates)
    joined = scenario.wanted.sources * scenario.wanted.units + scenario.wanted.destinations
    _, first = np.unique(joined, return_index=True)
    wanted = replace(
        scenario.wanted,
        phases=("all",),
        phase=np.zeros(len(first), dtype=np.int64),
        sources=scenario.wanted.sources[first],
        destinations=scenario.wanted.destinations[first],
        sent_bytes=np.ones(len(first)),
    )
    deadline = time.perf_counter() + _SECONDS
    search = Search(
        wanted, even, lambda order: transfer_time_sum_s(wanted, even, order), True, np.arange(len(even.names))
    )
    search.run(deadline, lambda: 0.0, 0.0, _ROUNDS)
    if len(even.names) <= LARGEST:
        Exact(search, np.zeros(1), deadline).run()
    return search.order[: wanted.units]


def _counted(nodes: int) -> str:
    return f"{nodes} node{'' if nodes == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
