"""What a placement over tiers is to be best at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from perfmodel.kv_arrivals import first_token_time, token_time
from perfmodel.offload import PHASES, Kernels, Offload
from solvers.kv_place import Block, least_times, most_tokens_per_s, place
from solvers.kv_scenario import KvScenario
from solvers.result import Objective

SAME = 1e-7
"""How much longer the phase that is asked for may get where the other is then shortened [1]."""


ANY = 1e-300
"""Time that is enough where any placement within limits will do [s]."""
_CLOSE = 5e-5


@dataclass(frozen=True)
class Aim:
    """What is optimised, and within which limits.

    Parameters
    ----------
    name : str
        Field of the prediction.
    limits : mapping of str to float
        Longest time to the first token and between tokens [s].
    least_tokens_per_s : float or None
        What is to be answered at least, by all nodes [1/s].
    """

    name: str
    limits: Mapping[str, float]
    least_tokens_per_s: float | None = None

    @classmethod
    def of(cls, scenario: KvScenario) -> Aim:
        """Return the aim of a scenario."""
        slo = scenario.question.slo
        given = {"prefill": slo.ttft_mean, "decode": slo.tpot_mean}
        limits = {phase: limit for phase, limit in given.items() if limit is not None}
        name = scenario.question.objective
        return cls("tokens_per_s" if name == "cost_usd_per_hour" else name, limits, slo.tokens_per_s)

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
        return block.tokens_per_s if self.phase is None else -block.latency_s[self.phase]

    def bound(self, block: Block) -> float:
        """Return a bound of the score of the block's placements, proved where it was found."""
        score = self.score(block)
        if block.bound_s is None:
            return score
        if self.phase is not None:
            return max(score, -block.bound_s)
        return max(score, block.asked.answered / block.bound_s)

    def limits_of(self, asked: Offload) -> dict[str, float]:
        """Return the limits of a block, with the longest time in which it answers enough [s]."""
        if self.least_tokens_per_s is None:
            return dict(self.limits)
        most = asked.answered / self.least_tokens_per_s
        return {**self.limits, "block": most}

    def most(self, asked: Offload, kernels: Kernels) -> float:
        """Return a bound of the score of all placements of a block."""
        if self.phase is None:
            return most_tokens_per_s(asked, kernels)
        least = least_times(asked, kernels)
        if asked.rate is None:
            return -least[self.phase]
        both = least["prefill"], least["decode"], asked.rate
        if self.phase == "prefill":
            return -float(first_token_time(*both))
        return -float(token_time(*both, asked.generated))

    def place(self, asked: Offload, kernels: Kernels, floor: float | None = None) -> Block | None:
        """Return the best placement of a block within the limits; it need not be proved if it cannot pass a score."""
        if self.phase is None:
            enough = 0.0 if not floor else asked.answered / floor
            return place(asked, kernels, limits=self.limits_of(asked), enough_s=enough)
        if asked.rate is not None:
            return soonest(asked, kernels, self.phase, self.limits_of(asked))
        return shortest(asked, kernels, self.phase, self.limits_of(asked))


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


def soonest(asked: Offload, kernels: Kernels, phase: str, limits: Mapping[str, float]) -> Block | None:
    """Return the placement with the shortest time to the first token, or between tokens, of requests that arrive.

    Limits that can be met and limits that cannot close in on it; the problem of `place` proves the latter.
    """
    best = place(asked, kernels, limits=limits, enough_s=ANY)
    if best is None:
        return None
    low = 0.0
    while True:
        high = best.latency_s[phase]
        if high - low <= _CLOSE * high:
            return replace(best, bound_s=low)
        tried = (low + high) / 2
        block = place(asked, kernels, limits=dict(limits) | {phase: tried}, enough_s=ANY)
        if block is None or block.latency_s[phase] >= high:
            low = tried
        else:
            best = block
