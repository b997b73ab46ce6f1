"""Where weights, keys and values and activations go for a given block: a linear problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perfmodel.tiers import (
    FRACTIONS,
    MEMORY_OF,
    PROMPT_OVERLAP,
    TOKEN_OVERLAP,
    Block,
    Placement,
    Rates,
    affine,
    memory_bytes,
    transfer_times,
    unit_placements,
)
from solvers.backend import solve

OBJECTS = ("weights", "kv", "activations")
"""What is placed."""


@dataclass(frozen=True)
class Placed:
    """The best placement of a block.

    Parameters
    ----------
    feasible : bool
        Whether there is one.
    placement : Placement or None
        The shares.
    block_time_s : float or None
        From prompts to last tokens [s].
    memory_prices : mapping of str to float
        What a byte more of each memory would save of the block's time [s/byte].
    slacks : mapping of str to float
        Room left in each memory in each phase [bytes].
    """

    feasible: bool
    placement: Placement | None = None
    block_time_s: float | None = None
    memory_prices: Mapping[str, float] | None = None
    slacks: Mapping[str, float] | None = None


def place(
    block: Block,
    rates: Rates,
    capacities: Mapping[str, float],
    fixed: Mapping[str, float] | None = None,
) -> Placed:
    """Find the placement that takes the least time.

    Parameters
    ----------
    block, rates : Block, Rates
        What goes through, and how fast.
    capacities : mapping of str to float
        Of ``gpu``, ``host`` and ``disk`` [bytes].
    fixed : mapping of str to float
        Fractions that are given.

    Returns
    -------
    Placed
        The placement, proved the best, or none.
    """
    import pulp

    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    share = {name: problem.add_variable(name, 0, 1) for name in FRACTIONS}
    units = unit_placements()
    prompts, tokens = transfer_times(block, rates, units)
    # times are counted in what everything would take that is possible at all, so that they are around one
    largest = [float(np.max(times["compute"])) for times in (prompts, tokens)]
    phases = [problem.add_variable(name, 0) for name in ("prompts", "tokens")]
    weights = [block.layers * size for size in (largest[0], (block.generated - 1) * largest[1])]
    total = sum(weights)
    problem += pulp.lpSum(weight / total * phase for weight, phase in zip(weights, phases, strict=True))
    for number, (times, overlap) in enumerate(((prompts, PROMPT_OVERLAP), (tokens, TOKEN_OVERLAP))):
        for names in overlap:
            constant, slopes = affine(sum(times[name] for name in names))
            spent = pulp.lpSum(slope / largest[number] * share[name] for name, slope in slopes.items())
            problem += phases[number] >= spent + constant / largest[number]
    for thing in OBJECTS:
        problem += pulp.lpSum(share[name] for name in FRACTIONS if name.startswith(thing)) == 1
    problem += share["activations_disk"] == 0
    for name, value in (fixed or {}).items():
        problem += share[name] == value
    rows = {}
    for name, used in memory_bytes(block, units).items():
        constant, slopes = affine(used)
        room = capacities[MEMORY_OF[name]]
        if room <= 0:
            for fraction, slope in slopes.items():
                if slope > 0 and fraction.endswith(MEMORY_OF[name]):
                    problem += share[fraction] == 0
            continue
        rows[name] = pulp.lpSum(slope / room * share[fraction] for fraction, slope in slopes.items()) <= (
            1 - constant / room
        )
        problem += rows[name], name
    found = solve(problem, constraints=rows)
    if found.status == "infeasible":
        return Placed(False)
    assert found.objective is not None
    prices: dict[str, float] = {}
    for name, dual in (found.duals or {}).items():
        memory = MEMORY_OF[name]
        prices[memory] = prices.get(memory, 0.0) - dual * total / capacities[memory]
    return Placed(
        True,
        Placement(**{name: min(max(found.values[name], 0.0), 1.0) for name in FRACTIONS}),
        found.objective * total,
        prices,
        {name: slack * capacities[MEMORY_OF[name]] for name, slack in found.slacks.items()},
    )
