"""Power and energy of a deployment, hosts included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.power import interval, nodes_power_w, shares_of
from perfmodel.power.serving import instances_power_w
from solvers.serve_case import Case, Instances

FIELDS = ("power_w", "energy_per_token_j")


@dataclass(frozen=True)
class Powered:
    """Instances of one kind, what they compute (``prompts``, ``tokens``, ``both``), and their share of the requests."""

    case: Case
    instances: Instances
    phase: str
    share: float


def power_dict(parts: Sequence[Powered], rate: float, tpot_s: float | None) -> dict[str, float | None]:
    """Return power of all nodes [W] and energy of an output token [J] with intervals, and tokens a joule.

    ``all_tokens_per_j`` counts prompts too; ``node_power_w`` is that of a node full of the accelerators that draw most.

    Parameters
    ----------
    parts : sequence of Powered
        All instances.
    rate : float
        Requests answered [1/s].
    tpot_s : float or None
        Mean time per output token [s]; unknown where nothing is decoded, and then power is too.
    """
    if tpot_s is None or not np.isfinite(tpot_s) or not rate:
        none: dict[str, float | None] = {name + end: None for name in FIELDS for end in ("", "_p10", "_p90")}
        return none | dict.fromkeys(("tokens_per_j", "all_tokens_per_j", "node_power_w", "facility_power_w"))
    watts, deviation, most, fullest = 0.0, 0.0, 0.0, 0.0
    for part in parts:
        case, pool = part.case, part.instances
        board_w, nodes_w = instances_power_w(
            case.server,
            case.scenario.demand,
            case.speculation,
            accelerators=pool.deployment.accelerators,
            replicas=pool.replicas,
            rate=rate * part.share,
            tpot_s=tpot_s,
            tokens_per_step=case.speculation.tokens_per_step,
            token_budget=pool.token_budget,
            phase=part.phase,
        )
        watts += float(nodes_w)
        machine, held = case.server.machine, pool.accelerators
        fullest = max(fullest, float(nodes_power_w(machine.node, machine.node.accelerators.count, board_w)))
        most += float(nodes_power_w(machine.node, held, machine.accelerator.power.limit))
        deviation += float(nodes_w) * shares_of(machine.accelerator).spread  # errors of one model add up
    demand = parts[0].case.scenario.demand
    each = watts / (rate * demand.output_tokens)
    found: dict[str, float | None] = {}
    for name, value in zip(FIELDS, (watts, each), strict=True):
        low, high = interval(deviation / watts)
        highest = value * min(float(high), most / watts)  # no accelerator exceeds its limit
        found |= {name: value, f"{name}_p10": value * float(low), f"{name}_p90": highest}
    every = rate * (demand.prompt_tokens + demand.output_tokens) / watts
    facility_w = parts[0].case.scenario.question.power.facility_w(watts)
    return found | {
        "tokens_per_j": 1 / each,
        "all_tokens_per_j": every,
        "node_power_w": fullest,
        "facility_power_w": facility_w,
    }
