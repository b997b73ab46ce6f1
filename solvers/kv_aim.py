"""What a placement over tiers is to be best at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfmodel.offload import PHASES, Offload
from solvers.kv_place import Block, most_tokens_per_s, place
from solvers.kv_scenario import KvScenario
from solvers.result import Objective

ALSO = 1e-6
"""Weight of the phase that is not asked for, so that it is no longer than it must be."""


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

    def most(self, asked: Offload, kernels: tuple[float, float, float]) -> float:
        """Return a bound of the score of all placements of a block."""
        if self.phase is None:
            return most_tokens_per_s(asked, kernels)
        return -asked.num_batches * kernels[PHASES.index(self.phase)]

    def place(self, asked: Offload, kernels: tuple[float, float, float]) -> Block | None:
        """Return the best placement of a block within the limits."""
        weights = None if self.phase is None else {phase: 1.0 if phase == self.phase else ALSO for phase in PHASES}
        return place(asked, kernels, limits=self.limits, weights=weights)
