"""Every deployment of a space through the equations of the steady state, as arrays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from perfmodel.serving.latency import Latency, looped, picked
from perfmodel.serving.split import unified, unified_pools
from perfmodel.terms import Array
from solvers.serve_case import answered, held
from solvers.serve_found import Family, Searched, found_of
from solvers.serve_pairs import Known, pairs
from solvers.serve_question import arrangements
from solvers.serve_scenario import ServeScenario
from solvers.serve_space import Layouts, caps, drafts, layouts, limits, precisions, replica_counts

CHUNK = 100_000
"""Candidates that are computed at once."""


def search(
    scenario: ServeScenario,
    *,
    deadline: float | None = None,
    widened: float = 1.0,
    more_memory: float = 0.0,
    only: Family | None = None,
    gap: float = 0.0,
    known: Known | None = None,
) -> Searched:
    """Compute every candidate.

    Parameters
    ----------
    deadline : float
        Time of ``time.perf_counter`` at which to stop.
    widened : float
        Factor on the objectives up to which pairs of pools are kept.
    more_memory : float
        Bytes that every accelerator has beyond what it has.
    only : Family
        The only types and kind to look at.
    gap : float
        Share by which pairs of pools that are not computed may be better than the best [1].
    known : dict
        Instances that earlier searches of the same layouts and limits tabulated; takes those of this one.
    """
    result, known = Searched(), {} if known is None else known
    types = [(*both, cap) for cap in caps(scenario) for both in precisions(scenario.question.search)]
    for weights, cache, cap in types:
        for disaggregated, layered, overlap, share in arrangements(scenario.question.search):
            server = scenario.server(weights, cache, layered, overlap, cap)
            for drafted in drafts(scenario):
                family = Family(server, scenario.speculation(drafted), disaggregated, share)
                if only is not None and family.key != only.key:
                    continue
                if deadline is not None and time.perf_counter() > deadline and result.candidates:
                    result.complete, result.stopped = False, True
                    return result
                if disaggregated:
                    pairs(scenario, family, result, widened, more_memory, gap, known)
                else:
                    _singles(scenario, family, result, more_memory, known)
    return result


def _blocks(count: int, each: int) -> Iterator[slice]:
    step = max(CHUNK // max(each, 1), 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _singles(scenario: ServeScenario, family: Family, result: Searched, more_memory: float, known: Known) -> None:
    """Compute instances that do everything."""
    sequences, tokens = limits(scenario.question.search)
    for group in layouts(scenario):
        counts = replica_counts(scenario, group.accelerators)
        if scenario.rate is None and scenario.concurrency is None:
            counts = counts[-1:]  # what a replica sustains does not depend on the others
        if not len(counts):
            continue
        for block in _blocks(len(sequences), len(group.tp) * len(counts)):
            asked = sequences[block], tokens[block]
            key = (*family.key, "both", group.accelerators, block.start, block.stop, more_memory)
            _single_block(scenario, family, result, group, asked, counts, more_memory, known, key)


def _single_block(
    scenario: ServeScenario,
    family: Family,
    result: Searched,
    group: Layouts,
    asked: tuple[Array, Array],
    counts: Array,
    more_memory: float,
    known: Known,
    key: tuple[Any, ...],
) -> None:
    server, speculation = family.server, family.speculation
    spread = group.deployment(scenario.question.workload.expert_imbalance)
    sequences, tokens = (value[None, :, None] for value in asked)
    replicas = counts[None, None, :]
    _, running = held(scenario, server, speculation, spread, sequences, tokens, more_memory=more_memory)
    shape = np.broadcast_shapes(running.shape, replicas.shape)
    fits = np.broadcast_to(running >= 1, shape)
    result.candidates += int(np.prod(shape))
    result.without_room += int(np.prod(shape) - fits.sum())
    if not fits.any():
        return
    limits_ = (np.maximum(running, 1.0), tokens * spread.dp)
    if key not in known:
        known[key] = unified_pools(server, spread, scenario.demand, limits_, speculation, family.prefill_share)
    pools_ = known[key]

    def at(rate: Any) -> Latency:
        return unified(server, pools_, scenario.demand, speculation, rate, replicas)

    def loop(clients: Any) -> Latency:
        return looped(server, pools_[1], scenario.demand, speculation, clients, replicas)

    rate, latency = answered(scenario, at, None if family.prefill_share else loop, running * replicas, shape)
    kept = fits & latency.stable & (rate > 0)
    result.overloaded += int((fits & ~kept).sum())
    columns = [group.tp, group.pp, group.dp, group.ep]
    fields = [*(value[:, None, None] for value in columns), replicas, sequences, tokens]
    pools = np.stack([np.broadcast_to(value, shape)[kept] for value in fields])
    gpus = np.broadcast_to(replicas * group.accelerators, shape)[kept]
    result.found.append(
        found_of(scenario, family, [pools], gpus, np.broadcast_to(rate, shape)[kept], picked(latency, kept))
    )
