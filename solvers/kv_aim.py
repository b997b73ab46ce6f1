"""What a placement over tiers is to be best at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from perfmodel.offload import PHASES, Kernels, Offload
from solvers.kv_place import Block, least_times, most_tokens_per_s, place
from solvers.kv_scenario import KvScenario
from solvers.result import Objective

SAME = 1e-7
"""How much longer the phase that is asked for may get where the other is then shortened [1]."""


@dataclass(frozen=True)
class Aim:
    """What is optimised, and within which limits.

    Parameters
    ----------
    name : str
        Field of the prediction.
    limits : mapping of str to float
        Longest time of a phase [s].
    """

    name: str
    limits: Mapping[str, float]

    @classmethod
    def of(cls, scenario: KvScenario) -> Aim:
        """Return the aim of a scenario."""
        slo = scenario.question.slo
        given = {"prefill": slo.ttft_mean, "decode": slo.tpot_mean}
        return cls(scenario.question.objective, {phase: limit for phase, limit in given.items() if limit is not None})

    @property
    def phase(self) -> str | None:
        """The phase whose time is minimised; None where tokens per second are maximised."""
        return {"ttft_mean_s": "prefill", "tpot_mean_s": "decode"}.get(self.name)

    def objective(self, value: float | None) -> Objective:
        """Return the objective with its value."""
        return Objective(self.name, value, "s" if self.phase else "1/s", "min" if self.phase else "max")

    def value_of(self, score: float) -> float:
        """Return the objective of a score, of which more is better."""
        return -score if self.phase else score

    def score(self, block: Block) -> float:
        """Return how good a block is; more is better."""
        return block.tokens_per_s if self.phase is None else -block.phase_s[self.phase]

    def bound(self, block: Block) -> float:
        """Return a bound of the score of the block's placements, proved where it was found."""
        score = self.score(block)
        if block.bound_s is None:
            return score
        if self.phase is not None:
            return max(score, -block.bound_s)
        return max(score, block.asked.sequences * block.asked.generated / block.bound_s)

    def most(self, asked: Offload, kernels: Kernels) -> float:
        """Return a bound of the score of all placements of a block."""
        if self.phase is None:
            return most_tokens_per_s(asked, kernels)
        return -least_times(asked, kernels)[self.phase]

    def place(self, asked: Offload, kernels: Kernels, floor: float | None = None) -> Block | None:
        """Return the best placement of a block within the limits; it need not be proved if it cannot pass a score."""
        if self.phase is None:
            enough = 0.0 if not floor else asked.sequences * asked.generated / floor
            return place(asked, kernels, limits=self.limits, enough_s=enough)
        return shortest(asked, kernels, self.phase, self.limits)


def shortest(asked: Offload, kernels: Kernels, phase: str, limits: Mapping[str, float]) -> Block | None:
    """Return the placement whose phase is the shortest within limits, and of those the one whose other is."""
    only = {one: float(one == phase) for one in PHASES}
    first = place(asked, kernels, limits=limits, weights=only)
    if first is None:
        return None
    held = dict(limits) | {phase: first.phase_s[phase] * (1 + SAME)}
    other = {one: 1.0 - weight for one, weight in only.items()}
    second = place(asked, kernels, limits=held, weights=other)
    if second is None or second.phase_s[phase] > held[phase]:
        return first
    return replace(first, shares=second.shares)
