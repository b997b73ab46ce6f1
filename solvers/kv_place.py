"""The best placement of one block over any tiers: a linear problem over shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hardware.tiers import HBM
from perfmodel.hit_curves import DEPTHS
from perfmodel.kv_arrivals import ahead_tangents, first_token_tangents, first_token_time, running, token_time
from perfmodel.offload import (
    ACCELERATORS,
    OBJECTS,
    PHASES,
    Kernels,
    Offload,
    Row,
    Share,
    evaluated,
    memory_rows,
    prefix_blocks,
    resource_times,
)
from solvers.backend import solve
from solvers.kv_cached import Cache, add_cache, refined

_SMALL = 1e-8
"""Coefficients beside terms of about one that are left out: HiGHS takes none below 1e-9."""
_TIE = 1e-5


@dataclass(frozen=True)
class Block:
    """A block with its placement, and what it takes.

    Parameters
    ----------
    asked : Offload
        The question.
    shares : mapping
        The placement.
    kernels : Kernels
        Of one batch.
    memory_prices, rate_prices, limit_prices : mapping of str to float
        What a byte more of a tier, a share more of a resource's rate, and a longer limit of a phase would save of the
        time that was minimised [s/byte], [s], [1].
    bound_s : float or None
        The time that no placement of the block beats, of what was minimised [s].
    """

    asked: Offload
    shares: Mapping[Share, float]
    kernels: Kernels
    memory_prices: Mapping[str, float] = field(default_factory=dict)
    rate_prices: Mapping[str, float] = field(default_factory=dict)
    limit_prices: Mapping[str, float] = field(default_factory=dict)
    bound_s: float | None = None

    @property
    def resource_s(self) -> dict[str, dict[str, float]]:
        """By phase and resource, the time it needs [s]."""
        rows = resource_times(self.asked, self.kernels)
        return {phase: {name: evaluated(row, self.shares) for name, row in rows[phase].items()} for phase in PHASES}

    @property
    def phase_s(self) -> dict[str, float]:
        """Time of a block's prompts, and of a token of each of its sequences [s]."""
        return {phase: max(times.values()) for phase, times in self.resource_s.items()}

    @property
    def latency_s(self) -> dict[str, float]:
        """By phase, the mean time to the first token, and between tokens [s]."""
        phases = self.phase_s
        if self.asked.rate is None:
            return phases
        both = phases["prefill"], phases["decode"], self.asked.rate
        variance = prompt_variance(self.asked, self.kernels)
        between = float(token_time(*both, self.asked.generated, variance))
        return {"prefill": float(first_token_time(*both, variance)), "decode": between}

    @property
    def time_s(self) -> float:
        """Time of a block [s]."""
        phases, steps = self.phase_s, steps_of(self.asked)
        return sum(steps[phase] * phases[phase] for phase in PHASES)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the time of a block, of all nodes [1/s]."""
        return self.asked.answered / self.time_s

    @property
    def memory_bytes(self) -> dict[str, tuple[float, float]]:
        """By tier, what there is and what is needed [bytes]."""
        return {name: (room, evaluated(row, self.shares)) for name, (room, row) in memory_rows(self.asked).items()}


def steps_of(asked: Offload) -> dict[str, float]:
    """Return how often each phase comes in the time of a block."""
    return {"prefill": asked.sequences / np.prod(asked.prompts), "decode": asked.generated - 1.0}


def prompt_variance(asked: Offload, kernels: Kernels) -> float:
    """Return the variance of the time of a prompt, for what is found of each by a cache in all tiers [s^2]."""
    if asked.prefixes is None:
        return 0.0
    most = max(prefix_blocks(asked, tier, room) for tier, (room, _) in memory_rows(asked).items())
    spared = (1 - asked.prefixes.recomputed) * sum(kernels.spared_s)
    return spared * spared * asked.prefixes.variance(most)


def least_times(asked: Offload, kernels: Kernels) -> dict[str, float]:
    """Return for each phase the kernels that no placement and no cache of prefixes avoids [s]."""
    prompts = kernels.prompts_s
    if asked.prefixes is not None:
        most = max(prefix_blocks(asked, tier, room) for tier, (room, _) in memory_rows(asked).items())
        found = asked.prefixes.found(most) * DEPTHS * (1 - asked.prefixes.recomputed)
        prompts -= sum(share * seconds for share, seconds in zip(found, kernels.spared_s, strict=True))
    return {"prefill": asked.prompts[1] * prompts, "decode": asked.num_batches * kernels.token_s}


def most_tokens_per_s(asked: Offload, kernels: Kernels) -> float:
    """Return a bound of `Block.tokens_per_s`: the kernels that nothing avoids [1/s]."""
    least, steps = least_times(asked, kernels), steps_of(asked)
    return asked.answered / sum(steps[phase] * least[phase] for phase in PHASES)


def place(
    asked: Offload,
    kernels: Kernels,
    *,
    limits: Mapping[str, float] | None = None,
    weights: Mapping[str, float] | None = None,
    enough_s: float = 0.0,
) -> Block | None:
    """Find the placement of a block that takes the least time.

    Parameters
    ----------
    asked : Offload
        The question.
    kernels : Kernels
        Of one batch.
    limits : mapping of str to float
        Longest time of a phase, and of the ``block`` [s].
    weights : mapping of str to float
        How often the time of each phase counts; once for prompts, and for each token after the first, if left out.
    enough_s : float
        The time that is reached elsewhere: what is proved not to beat it need not be proved the best [s].

    Returns
    -------
    Block or None
        The best, proved within `Block.bound_s`; None where the tiers cannot hold it, or not within the limits.

    Notes
    -----
    Without a cache of prefixes one linear problem. With one, whether a tier is part of it is a choice, and hit curves
    stand as the lines above their concave hulls: that bounds the time. At the sizes found the true curve tells what
    is found, which a second problem takes; where the two differ, sizes are halved there and both halves asked again.
    """
    steps = weights or steps_of(asked)
    if asked.prefixes is None:
        return _solved(asked, kernels, limits or {}, steps, Cache())[0]
    return refined(
        asked,
        lambda cache: _solved(asked, kernels, limits or {}, steps, cache),
        lambda block: sum(steps[phase] * block.phase_s[phase] for phase in PHASES),
        enough_s,
    )


@dataclass(frozen=True)
class _Problem:
    """Constraints of a block, with times in those of its kernels.

    Parameters
    ----------
    problem : pulp.LpProblem
        Without an objective yet.
    share : mapping of Share to pulp.LpVariable
        The shares.
    spent : mapping of str to pulp.LpVariable
        Time of each phase, in its unit.
    unit : mapping of str to float
        Units [s].
    times : mapping
        As of `resource_times`.
    rows : mapping of str to pulp.LpConstraint
        Rows that have prices.
    """

    problem: Any
    share: Mapping[Share, Any]
    spent: Mapping[str, Any]
    unit: Mapping[str, float]
    times: Mapping[str, Mapping[str, Row]]
    rows: Mapping[str, Any]


def _problem(asked: Offload, kernels: Kernels, limits: Mapping[str, float], cache: Cache) -> _Problem:
    """Return what every placement of a block with a cache of prefixes within bounds keeps to."""
    import pulp

    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    share = {key: problem.add_variable("_".join(key), 0, 1) for key in asked.shares()}
    times = resource_times(asked, kernels)
    unit = {phase: times[phase][ACCELERATORS][0] for phase in PHASES}
    spent = {phase: problem.add_variable(phase, 0) for phase in PHASES}
    variance = prompt_variance(asked, kernels)
    rows = {f"limit {name}": row for name, row in limit_rows(asked, limits, spent, unit, variance).items()}
    for name, row in rows.items():
        problem += row, name
    for phase in PHASES:
        for name, (constant, slopes) in times[phase].items():
            key = f"{phase} {name}"
            rows[key] = spent[phase] - _sum(share, slopes, unit[phase]) >= constant / unit[phase]
            problem += rows[key], key
    for thing in OBJECTS:
        problem += pulp.lpSum(variable for key, variable in share.items() if key[0] == thing) == 1
    for name, (room, (constant, slopes)) in memory_rows(asked).items():
        rows[name] = _sum(share, slopes, room) <= 1 - constant / room
        problem += rows[name], name
    if asked.prefixes is not None:
        add_cache(problem, share, asked, cache)
    return _Problem(problem, share, spent, unit, times, rows)


def _solved(
    asked: Offload, kernels: Kernels, limits: Mapping[str, float], steps: Mapping[str, float], cache: Cache
) -> tuple[Block | None, float]:
    """Return the best placement with a cache of prefixes within bounds, and the time that none beats [s]."""
    import pulp

    whole = _problem(asked, kernels, limits, cache)
    problem, share, unit, rows = whole.problem, whole.share, whole.unit, whole.rows
    total = sum(steps[phase] * unit[phase] for phase in PHASES)
    objective = pulp.lpSum(steps[phase] * unit[phase] / total * whole.spent[phase] for phase in PHASES)
    if cache.found:  # of loads that take no longer together, those from fast tiers
        slow = {name: row for name, row in whole.times["prefill"].items() if name != ACCELERATORS}
        objective += _TIE * pulp.lpSum(_sum(share, _loads(row), unit["prefill"]) for row in slow.values())
    problem += objective
    found = solve(problem, constraints=rows, duals="fixed")
    if found.status != "optimal":
        return None, math.inf
    assert found.best_bound is not None
    duals = found.duals or {}
    memory = {name: -duals.get(name, 0.0) * total / room for name, (room, _) in memory_rows(asked).items()}
    shares = {key: min(max(found.values.get(variable.name, 0.0), 0.0), 1.0) for key, variable in share.items()}
    block = Block(asked, shares, kernels, memory)
    rates: dict[str, float] = {}
    for phase, resources in block.resource_s.items():
        for name, seconds in resources.items():
            rates[name] = rates.get(name, 0.0) + duals.get(f"{phase} {name}", 0.0) * total * seconds / unit[phase]
    waits = {phase: -duals.get(f"limit {phase}", 0.0) * total / unit[phase] for phase in PHASES if phase in limits}
    bound = found.best_bound * total
    return Block(asked, shares, kernels, memory, rates, waits, bound), bound


def least_cost(asked: Offload, kernels: Kernels, limits: Mapping[str, float], costs: Mapping[str, float]) -> float:
    """Return a cost below which no purchase lets a block meet its limits, in any amounts; infinite where none does.

    Parameters
    ----------
    asked : Offload
        The question with the most of every tier.
    kernels, limits
        As of `place`.
    costs : mapping of str to float
        Of all of each tier [USD/h].

    Notes
    -----
    Part of a tier has that part of its size, and of its own rates within a limit; times are otherwise those with all.
    """
    import pulp

    total = sum(costs.values())
    if not total > 0:
        return 0.0
    whole = _problem(asked, kernels, limits, Cache())
    problem = whole.problem
    part = {name: problem.add_variable(f"part_{name}", 0, 1) for name in costs}
    for name, (room, (constant, slopes)) in memory_rows(asked).items():
        if name in part:
            problem += _sum(whole.share, slopes, room) + constant / room <= part[name]
    for phase in PHASES:
        for name in part:
            for word in ("read", "write"):
                constant, slopes = whole.times[phase].get(f"{name} {word}", (0.0, {}))
                if phase in limits and slopes:
                    problem += _sum(whole.share, slopes, limits[phase]) <= part[name]
    problem += pulp.lpSum(costs[name] / total * variable for name, variable in part.items())
    found = solve(problem)
    return math.inf if found.status == "infeasible" else max(found.best_bound or 0.0, 0.0) * total


def limit_rows(
    asked: Offload,
    limits: Mapping[str, float],
    spent: Mapping[str, Any],
    unit: Mapping[str, float],
    variance_s2: float = 0.0,
) -> dict[str, Any]:
    """Return what keeps a block within limits, and with arrivals within what it can answer.

    Parameters
    ----------
    asked, limits
        As of `place`.
    spent : mapping of str to pulp.LpVariable
        Time of each phase, in its unit.
    unit : mapping of str to float
        Units of time [s].
    variance_s2 : float
        Of the time of a prompt [s^2].

    Notes
    -----
    The time to the first token is convex in that of a prompt: its tangents stand for it, so that a limit may be passed
    by the little that lies between two of them (`perfmodel.kv_arrivals`).
    """
    import pulp

    prompt, token = (unit[phase] * spent[phase] for phase in PHASES)
    rows: dict[str, Any] = {}
    if "block" in limits:
        steps = steps_of(asked)
        rows["block"] = pulp.lpSum((steps["prefill"] * prompt, steps["decode"] * token)) / limits["block"] <= 1
    if asked.rate is None:
        return rows | {phase: spent[phase] <= limits[phase] / unit[phase] for phase in PHASES if phase in limits}
    rate, gaps, most = asked.rate, asked.generated - 1, float(running(asked.sequences))
    # what runs, and the time between tokens, each over its limit: gaps t + ahead over gaps (1 - rate p)
    longest = {"rate": most / rate} | ({"decode": gaps * limits["decode"]} if "decode" in limits else {})
    for name, limit in longest.items():
        for number, (slope, value) in enumerate(ahead_tangents(rate, variance_s2)):
            row = (gaps / limit) * token + (slope / limit + rate) * prompt <= 1 - value / limit
            rows[f"{name} {number}"] = row
    if "prefill" in limits:
        for number, (slope, value) in enumerate(first_token_tangents(rate, variance_s2)):
            most = limits["prefill"]
            row = (slope / most) * prompt + (0.5 / most) * token <= 1 - value / most
            rows[f"prefill {number}"] = row
    return rows


def missing_bytes(asked: Offload) -> dict[str, tuple[float, float]]:
    """Return the fewest bytes that the tiers lack together for a block, by tier: now and needed [bytes]."""
    import pulp

    asked = replace(asked, prefixes=None)
    problem = pulp.LpProblem("relaxation", pulp.LpMinimize)
    share = {key: problem.add_variable("_".join(key), 0, 1) for key in asked.shares()}
    rows = memory_rows(asked)
    unit = sum(room for room, _ in rows.values())
    more = {name: problem.add_variable(f"more_{name}", 0) for name in rows}
    # what an accelerator has cannot be bought alone: only where nothing else helps
    problem += pulp.lpSum((10 if name == HBM else 1) * variable for name, variable in more.items())
    for thing in OBJECTS:
        problem += pulp.lpSum(variable for key, variable in share.items() if key[0] == thing) == 1
    for name, (room, (constant, slopes)) in rows.items():
        problem += _sum(share, slopes, unit) - more[name] <= (room - constant) / unit
    found = solve(problem)
    return {
        name: (room, room + found.values[more[name].name] * unit)
        for name, (room, _) in rows.items()
        if found.values[more[name].name] > 1e-9
    }


def _loads(row: Row) -> dict[Share, float]:
    return {key: slope for key, slope in row[1].items() if key[0] == "found"}


def _sum(share: Mapping[Share, Any], slopes: Mapping[Share, float], unit: float) -> Any:
    import pulp

    return pulp.lpSum(slope / unit * share[key] for key, slope in slopes.items() if abs(slope / unit) > _SMALL)
