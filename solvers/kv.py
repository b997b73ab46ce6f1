"""Where the state of a model lives: one planner for each kind of workload."""

from __future__ import annotations

from solvers import kv_serve
from solvers.kv_scenario import KvScenario
from solvers.result import Result


def plan(scenario: KvScenario, *, top: int = 5, time_limit_s: float | None = None, gap: float | None = None) -> Result:
    """Find the best plan.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    top : int
        How many alternatives to list.
    time_limit_s : float
        Wall time of the search; none if left out [s].
    gap : float
        Relative distance from the bound at which the search may stop; None for a proof.
    """
    return kv_serve.plan(scenario, top=top, time_limit_s=time_limit_s, gap=gap)


def predict(scenario: KvScenario) -> Result:
    """Cost the plan that a scenario gives."""
    return kv_serve.predict(scenario)
