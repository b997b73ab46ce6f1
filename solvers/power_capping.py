"""Which thresholds, which clocks and which priority first: least loss of servers that share a limit.

A ladder of three levels as POLCA's (ASPLOS 2024, arXiv 2308.12908, section 5): one priority is slowed above the first
threshold, more above the second, then the other one if that was not enough. All of a grid are costed by how often power
passes thresholds (`perfmodel.power.forecast`); the best that keep every limit are confirmed in full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.power.breaker import TripCurve
from perfmodel.power.capping import Policy, Pools, highest_threshold, ladder
from perfmodel.power.forecast import YEAR_S, Forecast, Moments, forecast, late, node_states, over, rates, steady
from perfmodel.terms import Array

BELOW_HIGHEST = (0.0, 0.02)
"""Second thresholds that are tried, below the highest that the largest rise allows [1]."""
BETWEEN = (0.0, 0.02, 0.05, 0.1)
"""First thresholds that are tried, below the second [1]."""
CLOCKS = 6
"""Clocks of a level that are tried in each of two rounds, the second around the best of the first."""
REPRESENTATIVES = 12
"""Parts of the week, of equal length and by rising power, that stand for it while all policies are compared."""
CONFIRMED = 12
"""Policies, best first, that are looked at in full for one that keeps all limits."""


@dataclass(frozen=True)
class Question:
    """Servers that share a limit, and what may be done to them.

    Parameters
    ----------
    moments : tuple of Moments
        Power of one server of each pool without caps.
    servers : array of int, shape (pools,)
        Servers of each.
    pools : Pools
        What a clock does to them.
    low : array of bool, shape (pools,)
        Whether its priority is low.
    limit_w : float
        The limit [W].
    trip : TripCurve
        The breaker.
    lowest_clock : float
        Lowest clock over the highest that the actuator sets [1].
    latency_s, hysteresis : float
        Of the actuator [s, 1].
    brake_clock, brake_latency_s : float
        Of the brake [1, s].
    rise : float
        Largest rise of power within the latency over the power it starts from [1].
    most_loss : array, shape (pools,)
        Largest time of requests over that without caps, less 1, on average over time [1].
    brake_s_per_year : float
        Largest expected time above the limit, which bounds the chance of a brake in a year [s].
    """

    moments: tuple[Moments, ...]
    servers: Array
    pools: Pools
    low: Array
    limit_w: float
    trip: TripCurve
    lowest_clock: float
    latency_s: float
    hysteresis: float
    brake_clock: float
    brake_latency_s: float
    rise: float
    most_loss: Array
    brake_s_per_year: float


@dataclass(frozen=True)
class Choice:
    """The policy that was chosen.

    Parameters
    ----------
    policy : Policy or None
        None where no policy of the grid keeps all limits.
    forecast : Forecast or None
        What it does.
    first : str
        Priority that is slowed first, ``low`` or ``high``.
    loss : float
        Mean over all servers of loss over the most that is allowed [1].
    candidates : int
        Policies that were compared.
    binding : tuple of (str, float, float)
        Limits with what is reached and what is allowed, the tightest first.
    """

    policy: Policy | None
    forecast: Forecast | None
    first: str
    loss: float
    candidates: int
    binding: tuple[tuple[str, float, float], ...]

    @property
    def kept(self) -> bool:
        """Whether there is a policy, and it keeps all limits."""
        return self.policy is not None and all(reached <= allowed for _, reached, allowed in self.binding)


def choose(question: Question) -> Choice:
    """Return the policy of least loss that keeps all limits.

    Notes
    -----
    The second threshold is at most 1/(1 + rise): power that was not above it meets the limit until the cap acts.
    Where nothing keeps all limits, `binding` holds those that the policy of least excess breaks.
    """
    if question.low.all() or not question.low.any():
        orders: tuple[tuple[str, Array], ...] = (
            ("low" if question.low.all() else "high", np.ones(len(question.low), bool)),
        )
    else:
        orders = (("low", question.low), ("high", ~question.low))
    best: Choice | None = None
    compared = 0
    for first, slowed in orders:
        grid = np.linspace(question.lowest_clock, 1.0, CLOCKS + 1)[:-1]
        centre = _best(question, first, slowed, (grid, grid, np.append(grid, 1.0)))
        compared += centre.candidates
        if centre.policy is not None:
            step = grid[1] - grid[0]
            clocks = centre.policy.clocks[1:, :]
            picked = (clocks[0, slowed][0], clocks[1, slowed][0], clocks[2, ~slowed][0] if (~slowed).any() else 1.0)
            finer = tuple(
                np.unique(np.clip(at + step * np.linspace(-0.75, 0.75, CLOCKS), question.lowest_clock, 1.0))
                for at in picked
            )
            found = _best(question, first, slowed, finer)
            compared += found.candidates
            centre = found if found.policy is not None and found.loss < centre.loss else centre
        if best is None or _order(centre) < _order(best):
            best = centre
    assert best is not None
    return replace(best, candidates=compared)


def _order(choice: Choice) -> tuple[bool, float]:
    excess = max((reached / allowed for _, reached, allowed in choice.binding), default=np.inf)
    return (choice.policy is None, round(choice.loss, 9) if choice.policy is not None else excess)


def _best(question: Question, first: str, slowed: Array, grids: tuple[Array, ...]) -> Choice:
    """Return the best policy of a grid of clocks, confirmed in full."""
    clocks = _ladders(slowed, grids)
    top = float(highest_threshold(question.rise))
    part = _representatives(question)
    states = node_states(part, question.servers.tolist(), question.pools, clocks, question.limit_w, question.latency_s)
    weight = _weight(question)
    exceeds = float(question.servers @ question.pools.highest_w) > question.limit_w
    rows: list[tuple[float, float, int, float, float]] = []
    for below in BELOW_HIGHEST:
        for between in BETWEEN:
            second = top - below
            thresholds = np.broadcast_to([second - between, second, second], (len(clocks), 3))
            chance = steady(*rates(states, thresholds, question.hysteresis, question.latency_s))
            loss = late(part, question.pools, clocks, chance)
            above_s = YEAR_S * over(states, thresholds, question.hysteresis) if exceeds else np.zeros(len(clocks))
            excess = np.maximum((loss / question.most_loss).max(axis=1), above_s / question.brake_s_per_year)
            rows += zip(
                np.maximum(excess, 1.0).tolist(),
                (loss @ weight).tolist(),
                range(len(clocks)),
                [second - between] * len(clocks),
                [second] * len(clocks),
                strict=True,
            )
    compared = len(rows)
    rows.sort()
    nearest: Choice | None = None
    for _, _, number, one, two in rows[:CONFIRMED]:
        choice = assess(question, _policy(question, (one, two, two), clocks[number, 1:]), first)
        choice = replace(choice, candidates=compared)
        if choice.kept:
            return choice
        refused = replace(choice, policy=None)
        if nearest is None or _order(refused) < _order(nearest):
            nearest = refused
    assert nearest is not None
    return nearest


def assess(question: Question, policy: Policy, first: str = "low") -> Choice:
    """Return what a policy does, and how far it is from every limit.

    Parameters
    ----------
    question : Question
        Servers and limits.
    policy : Policy
        The ladder.
    first : str
        Priority that it slows first.
    """
    found = forecast(
        question.moments, question.servers.tolist(), question.pools, policy, question.limit_w, question.trip
    )
    limits = [("threshold 2", policy.thresholds[-1] * (1 + question.rise), 1.0)]
    for name, chosen in (("low", question.low), ("high", ~question.low)):
        if chosen.any():
            worst = int(np.argmax(np.where(chosen, found.loss / question.most_loss, -1.0)))
            limits.append((f"loss of {name} priority", float(found.loss[worst]), float(question.most_loss[worst])))
    limits.append(("time above the limit in a year", found.brake_s_per_year, question.brake_s_per_year))
    tightest = tuple(sorted(limits, key=lambda one: one[2] / max(one[1], 1e-300)))
    loss = float(_weight(question) @ found.loss)
    return Choice(policy, found, first, loss, 1, tightest)


def _weight(question: Question) -> Array:
    return np.asarray(question.servers / question.servers.sum() / question.most_loss)


def _policy(question: Question, thresholds: tuple[float, ...], clocks: Array) -> Policy:
    return ladder(
        thresholds,
        clocks.tolist(),
        hysteresis=question.hysteresis,
        latency_s=question.latency_s,
        brake_clock=question.brake_clock,
        brake_latency_s=question.brake_latency_s,
    )


def _ladders(slowed: Array, grids: tuple[Array, ...]) -> Array:
    """Return the clocks of all ladders, shape (ladders, levels + 1, pools)."""
    mild, deep, other = (axis.ravel() for axis in np.meshgrid(*grids, indexing="ij"))
    falls = deep <= mild
    mild, deep, other = mild[falls], deep[falls], other[falls]
    if slowed.all():
        other = deep
    clocks = np.ones((len(mild), 4, len(slowed)))
    clocks[:, 1, slowed] = mild[:, None]
    clocks[:, 2, slowed] = deep[:, None]
    clocks[:, 3, slowed] = deep[:, None]
    clocks[:, 3, ~slowed] = other[:, None]
    return np.unique(clocks, axis=0)


def _representatives(question: Question) -> tuple[Moments, ...]:
    """Return the moments of some parts of the week, by rising power of all servers, with the highest among them."""
    mean: Any = sum(count * one.mean_w for one, count in zip(question.moments, question.servers, strict=True))
    order = np.argsort(mean)
    at = order[((np.arange(REPRESENTATIVES) + 0.5) * len(order) / REPRESENTATIVES).astype(int)]
    at = np.append(at[:-1], order[-1])

    return tuple(
        replace(
            one,
            mean_w=one.mean_w[at],
            fast_w2=one.fast_w2[at],
            slow_w2=one.slow_w2[at],
            common_w2=one.common_w2[:, at],
        )
        for one in question.moments
    )
