"""Deployments to choose from: layouts, limits and replicas of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perfmodel.architecture import Architecture
from perfmodel.serving.step import Deployment
from perfmodel.terms import Array
from solvers.power_limit import caps_w
from solvers.serve_question import ServeSearch
from solvers.serve_scenario import ServeScenario

SEQUENCES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Sequences that run at once on a rank, where nothing is said."""

TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
"""Tokens of a step of a rank, where nothing is said."""

DRAFTS = (0, 1, 2, 3, 4, 6, 8)
"""Tokens drafted a step, where nothing is said and speculation is described."""


@dataclass(frozen=True)
class Layouts:
    """Ways to spread an instance over the same number of accelerators.

    Parameters
    ----------
    tp, pp, dp, ep : array of int
        One entry for each.
    """

    tp: Array
    pp: Array
    dp: Array
    ep: Array

    @property
    def accelerators(self) -> int:
        """Accelerators of an instance."""
        return int((self.tp * self.pp * self.dp)[0])

    def deployment(self, imbalance: float) -> Deployment:
        """Return them before two axes, of limits and of replicas."""
        tp, pp, dp, ep = (value[:, None, None] for value in (self.tp, self.pp, self.dp, self.ep))
        return Deployment(tp, pp, dp, ep, imbalance)


def layouts(scenario: ServeScenario) -> list[Layouts]:
    """Return the layouts of a scenario, by accelerators of an instance.

    Notes
    -----
    Left out, tp are the powers of two that divide the heads, up to a node; pp the powers of two up to the number of
    nodes; dp, of a mixture of experts, the powers of two; experts are spread over all ranks of a stage, or over none.
    """
    search, architecture = scenario.question.search, scenario.architecture
    most, node = scenario.machine.accelerators, scenario.machine.node.accelerators.count
    experts = max(group.feed_forward.experts for group in architecture.layers)
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    for tp in search.tp or _tensor(architecture, min(node, most)):
        for pp in search.pp or _powers(scenario.machine.nodes):
            for dp in search.dp or (_powers(most) if experts else (1,)):
                if tp * pp * dp > most or pp > architecture.depth:
                    continue
                ways = tp * dp
                for ep in search.ep or tuple(dict.fromkeys((1, ways))):
                    if ep == 1 or (experts and experts % ep == 0 and ways % ep == 0):
                        found.setdefault(tp * pp * dp, []).append((tp, pp, dp, ep))
    return [Layouts(*(np.array(column) for column in zip(*found[size], strict=True))) for size in sorted(found)]


def _powers(most: int) -> tuple[int, ...]:
    return tuple(2**power for power in range(most.bit_length()))


def _tensor(architecture: Architecture, most: int) -> tuple[int, ...]:
    heads = min(group.attention.heads for group in architecture.layers)
    return tuple(size for size in _powers(most) if heads % size == 0)


def limits(search: ServeSearch) -> tuple[Array, Array]:
    """Return every pair of most sequences and most tokens of a rank."""
    sequences, tokens = np.meshgrid(
        search.max_num_seqs or SEQUENCES, search.max_num_batched_tokens or TOKENS, indexing="ij"
    )
    return sequences.ravel(), tokens.ravel()


def replica_counts(scenario: ServeScenario, size: int) -> Array:
    """Return how many instances of so many accelerators there may be."""
    most = scenario.machine.accelerators // size
    allowed = scenario.question.search.replicas
    return np.array([count for count in allowed if count <= most] if allowed else range(1, most + 1))


def drafts(scenario: ServeScenario) -> tuple[int, ...]:
    """Return how many tokens may be drafted a step."""
    if scenario.question.speculative is None:
        return (0,)
    return scenario.question.search.draft_tokens or DRAFTS


def caps(scenario: ServeScenario) -> tuple[float, ...]:
    """Return what accelerators may be held to, highest first; none where no cap keeps the limit of a node [W]."""
    question = scenario.question
    by_energy = question.objective == "energy_per_token_j"
    return caps_w(scenario.machine, question.power, question.search.power_cap_w, by_energy=by_energy)


def precisions(search: ServeSearch) -> Iterator[tuple[str, str | None]]:
    """Yield types of weights and of the cache; None is what the engine takes for the weights."""
    for weights in search.precision_weights:
        for cache in search.precision_kv or (None,):
            yield weights, cache
