"""The best placement of the states of one training layout over any tiers: a linear problem over shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hardware.tiers import HBM
from perfmodel.finetune import (
    BY_ACCELERATORS,
    BY_HOST,
    OBJECTS,
    STATES,
    Finetune,
    memory_rows,
    resource_times,
)
from perfmodel.offload import Share, evaluated
from solvers.backend import solve

Totals = Mapping[str, Mapping[str, float]]
"""Shares of each object by tier."""

_SMALL = 1e-8
"""Coefficients beside terms of about one that are left out: HiGHS takes none below 1e-9."""
_TIDY = 1e-6
"""What a second of any resource counts beside a second of the step: of equal placements, one that moves little."""


@dataclass(frozen=True)
class Placed:
    """A layout with its placement, and what it takes.

    Parameters
    ----------
    asked : Finetune
        The layout.
    shares : mapping
        The placement.
    memory_prices, rate_prices : mapping of str to float
        What a byte more of a tier, and a share more of a resource's rate, would save of the step [s/byte], [s].
    """

    asked: Finetune
    shares: Mapping[Share, float]
    memory_prices: Mapping[str, float] = field(default_factory=dict)
    rate_prices: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def resource_s(self) -> dict[str, dict[str, float]]:
        """By phase and resource, the time it needs [s]."""
        rows = resource_times(self.asked)
        return {phase: {name: evaluated(row, self.shares) for name, row in rows[phase].items()} for phase in rows}

    @property
    def phase_s(self) -> dict[str, float]:
        """Time of each phase [s]."""
        return {phase: max(times.values()) for phase, times in self.resource_s.items()}

    @property
    def step_time_s(self) -> float:
        """Time of a step [s]."""
        return sum(self.phase_s.values()) + self.asked.fixed_s

    @property
    def memory_bytes(self) -> dict[str, tuple[float, float]]:
        """By tier, what there is and what is needed [bytes]."""
        return {name: (room, evaluated(row, self.shares)) for name, (room, row) in memory_rows(self.asked).items()}

    @property
    def totals(self) -> dict[str, dict[str, float]]:
        """Shares of each object by tier."""
        found: dict[str, dict[str, float]] = {thing: {} for thing in OBJECTS}
        for (thing, tier, _), share in self.shares.items():
            found[thing][tier] = found[thing].get(tier, 0.0) + share
        return found

    @property
    def updates(self) -> dict[str, float]:
        """Shares of the parameters by who updates them: where states stay, where they are brought, and the host."""
        brought = sum(
            share for (thing, _, way), share in self.shares.items() if (thing, way) == ("momentum", BY_ACCELERATORS)
        )
        resident = self.shares[("momentum", HBM, "")]
        return {"resident": resident, "interleaved": brought, "host": max(1 - resident - brought, 0.0)}


def place(
    asked: Finetune,
    *,
    interleaved: float | None = None,
    kept: Mapping[str, float] | None = None,
    totals: Totals | None = None,
) -> Placed | None:
    """Find the placement of a layout that takes the least time.

    Parameters
    ----------
    asked : Finetune
        The layout.
    interleaved : float
        Share of the parameters that accelerators update while their states live elsewhere; free if left out.
    kept : mapping of str to float
        Shares of objects that stay with the accelerators; free if left out.
    totals : mapping of mapping
        Shares of each object by tier; free if left out.

    Returns
    -------
    Placed or None
        Proved the best; None where the tiers cannot hold it.
    """
    import pulp

    problem = pulp.LpProblem("finetune", pulp.LpMinimize)
    share = {key: problem.add_variable("_".join(key), 0, 1) for key in asked.shares()}
    brought = _structure(problem, asked, share, totals)
    if interleaved is not None:
        problem += brought == interleaved
    for thing, part in (kept or {}).items():
        problem += _parts(share, thing, tier=HBM) == part
    times = resource_times(asked)
    unit = asked.forward_s + asked.backward_s  # times count in those of the passes
    spent = {phase: problem.add_variable(phase, 0) for phase in times}
    busy = [(row, phase, name) for phase in times for name, row in times[phase].items()]
    tidy = pulp.lpSum(_sum(share, slopes, unit) for (_, slopes), _, _ in busy)
    problem += pulp.lpSum(spent.values()) + _TIDY * tidy
    rows = {}
    for (constant, slopes), phase, name in busy:
        rows[phase, name] = spent[phase] - _sum(share, slopes, unit) >= constant / unit
        problem += rows[phase, name], f"{phase} {name}"
    memory = memory_rows(asked)
    for name, (room, (constant, slopes)) in memory.items():
        rows["memory", name] = _sum(share, slopes, room) <= 1 - constant / room
        problem += rows["memory", name], f"memory {name}"
    found = solve(problem, constraints={" ".join(key): row for key, row in rows.items()})
    if found.status != "optimal":
        return None
    duals = found.duals or {}
    shares = {key: min(max(found.values.get(variable.name, 0.0), 0.0), 1.0) for key, variable in share.items()}
    placed = Placed(
        asked, shares, {name: -duals.get(f"memory {name}", 0.0) * unit / room for name, (room, _) in memory.items()}
    )
    rates: dict[str, float] = {}
    for phase, resources in placed.resource_s.items():
        for name, seconds in resources.items():
            rates[name] = rates.get(name, 0.0) + duals.get(f"{phase} {name}", 0.0) * seconds
    return replace(placed, rate_prices=rates)


def _structure(problem: Any, asked: Finetune, share: Mapping[Share, Any], totals: Totals | None) -> Any:
    """Add what holds shares together, and return the share of the parameters that accelerators are brought.

    Every state of a parameter is updated by the same hands.
    """
    resident = share["momentum", HBM, ""]
    brought, hosted = problem.add_variable("brought", 0, 1), problem.add_variable("hosted", 0, 1)
    problem += resident + brought + hosted == 1
    for thing in STATES:
        problem += share[thing, HBM, ""] == resident
        problem += _parts(share, thing, way=BY_ACCELERATORS) == brought
        problem += _parts(share, thing, way=BY_HOST) == hosted
    problem += _parts(share, "weights", way=BY_HOST) == hosted
    problem += _parts(share, "weights", way=BY_ACCELERATORS) == resident + brought
    # gradients of what the accelerators hold stay; all others leave as they are made
    problem += share["gradients", HBM, ""] == resident
    problem += _parts(share, "gradients") == 1
    problem += _parts(share, "activations") == 1
    problem += share["activations", HBM, ""] >= 1 - asked.most_activations
    for thing, tiers in (totals or {}).items():
        for tier in (HBM, *(path.name for path in asked.paths)):
            problem += _parts(share, thing, tier=tier) == tiers.get(tier, 0.0)
    return brought


def _parts(share: Mapping[Share, Any], thing: str, *, tier: str | None = None, way: str | None = None) -> Any:
    """Return the sum of an object's shares, of one tier or updated in one way."""
    import pulp

    return pulp.lpSum(
        variable
        for key, variable in share.items()
        if key[0] == thing and (tier is None or key[1] == tier) and (way is None or key[2] == way)
    )


def missing_bytes(asked: Finetune, totals: Totals | None = None) -> dict[str, tuple[float, float]]:
    """Return the fewest bytes that the tiers lack together, by tier: now and needed [bytes].

    Parameters
    ----------
    asked : Finetune
        The layout.
    totals : mapping of mapping
        Shares of each object by tier; free if left out.
    """
    import pulp

    problem = pulp.LpProblem("relaxation", pulp.LpMinimize)
    share = {key: problem.add_variable("_".join(key), 0, 1) for key in asked.shares()}
    _structure(problem, asked, share, totals)
    rows = memory_rows(asked)
    unit = sum(room for room, _ in rows.values())
    more = {name: problem.add_variable(f"more_{name}", 0) for name in rows}
    # what an accelerator has cannot be bought alone: only where nothing else helps
    problem += pulp.lpSum((10 if name == HBM else 1) * variable for name, variable in more.items())
    for name, (room, (constant, slopes)) in rows.items():
        problem += _sum(share, slopes, unit) - more[name] <= (room - constant) / unit
    found = solve(problem)
    return {
        name: (room, room + found.values[more[name].name] * unit)
        for name, (room, _) in rows.items()
        if found.values[more[name].name] > 1e-9
    }


def _sum(share: Mapping[Share, Any], slopes: Mapping[Share, float], unit: float) -> Any:
    import pulp

    return pulp.lpSum(slope / unit * share[key] for key, slope in slopes.items() if abs(slope / unit) > _SMALL)
