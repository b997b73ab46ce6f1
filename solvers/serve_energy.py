"""Energy of a request of many deployments, as arrays."""

from __future__ import annotations

import numpy as np

from perfmodel.power.serving import instances_power_w
from perfmodel.terms import Array, Number
from solvers.serve_found import Family, Found
from solvers.serve_scenario import ServeScenario


def energy_j(scenario: ServeScenario, found: Found) -> Array:
    """Return the energy of a request, hosts included, which orders as that of a token does [J]."""
    phases = ("prompts", "tokens") if found.family.disaggregated else ("both",)
    watts: Array = np.zeros(len(found.gpus))
    for pool, phase in zip(found.pools, phases, strict=True):
        tp, pp, dp, _, replicas, _, budget = pool
        sizes = (tp * pp * dp, replicas, budget * dp)
        watts = watts + pool_power_w(scenario, found.family, sizes, found.rate, found.times_s["tpot_mean"], phase)
    return watts / found.rate


def pool_power_w(
    scenario: ServeScenario,
    family: Family,
    sizes: tuple[Number, Number, Number],
    rate: Number,
    tpot_s: Number,
    phase: str,
) -> Array:
    """Return the power of the nodes of pools [W].

    Parameters
    ----------
    family : Family
        Types of the pools.
    sizes : tuple of array
        Accelerators of an instance, instances, and tokens of a step of prompts of an instance.
    rate, tpot_s : array
        Requests of all instances [1/s], and the mean time per output token [s].
    phase : str
        As of `instances_power_w`.
    """
    accelerators, replicas, budget = sizes
    return instances_power_w(
        family.server,
        scenario.demand,
        family.speculation,
        accelerators=accelerators,
        replicas=replicas,
        rate=rate,
        tpot_s=tpot_s,
        tokens_per_step=family.speculation.tokens_per_step,
        token_budget=budget,
        phase=phase,
    )[1]
