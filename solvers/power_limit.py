"""Limits on the power of nodes, and the caps of accelerators that meet them.

A node never draws more than its limit if every accelerator is held to the cap with which the whole node, host, fans and
conversion included, draws as much. A lower cap never makes a step shorter, so where time, throughput or cost counts the
highest cap that is allowed is best; where energy counts all of a list are tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hardware.catalogue import Machine
from hardware.units import Watts
from perfmodel.power import accelerator_cap_w, node_power_w

STEPS = 5
"""Caps from the highest to the lowest that are tried where energy counts and nothing is said."""

MORE_W = 1000.0
"""By how much the limit of a node is raised to see what it is worth [W]."""


class PowerLimits(BaseModel):
    """What may be drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    node_limit: Watts | None = None
    """Highest power of a node at its plug, such as 8 kW; accelerators are capped so that it holds at any time."""
    pue: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Power of the facility, cooling and distribution included, over that of its nodes."""

    def facility_w(self, nodes_w: float) -> float | None:
        """Return the power of the facility for that of nodes [W]; None where it is not told."""
        return None if self.pue is None else self.pue * nodes_w


def allowed_w(machine: Machine, limits: PowerLimits) -> float:
    """Return the highest cap of an accelerator with which its node keeps the limit [W]."""
    limit = machine.accelerator.power.limit
    return limit if limits.node_limit is None else min(limit, accelerator_cap_w(machine.node, limits.node_limit))


def caps_w(
    machine: Machine, limits: PowerLimits, asked: Sequence[float] | None = None, *, by_energy: bool = False
) -> tuple[float, ...]:
    """Return the caps to try, highest first; none where no cap keeps the limit of a node [W].

    Parameters
    ----------
    machine, limits : Machine, PowerLimits
        Accelerators, and what their nodes may draw.
    asked : sequence of float
        Caps that a person allows [W]; all that the accelerator has if left out.
    by_energy : bool
        Whether energy is what counts, so that a lower cap may be better.
    """
    power, highest = machine.accelerator.power, allowed_w(machine, limits)
    if asked is not None:
        return tuple(sorted((cap for cap in asked if power.least <= cap <= highest), reverse=True))
    if highest < power.least:
        return ()
    return tuple(map(float, np.linspace(highest, power.least, STEPS))) if by_energy else (highest,)


def cap_faults(machine: Machine, limits: PowerLimits, cap_w: float, *, planned: bool) -> Iterable[str]:
    """Yield what is wrong with the cap of a plan, or with one of those to try."""
    power = machine.accelerator.power
    if not power.least <= cap_w <= power.limit:
        span = f"{power.least:g} to {power.limit:g} W"
        yield f"{machine.accelerator.name} can be held to {span} [got {cap_w:g} W]"
    elif planned and limits.node_limit is not None and cap_w > allowed_w(machine, limits):
        drawn = _drawn_w(machine, cap_w)
        yield (
            f"a node with all accelerators at it draws up to {drawn:,.0f} W, more than power.node_limit of "
            f"{limits.node_limit:,.0f} W; leave it out for the highest that is allowed"
        )


def _drawn_w(machine: Machine, cap_w: float) -> float:
    return float(node_power_w(machine.node, machine.node.accelerators.count * cap_w))


def written(machine: Machine) -> float | None:
    """Return the cap of a machine's accelerators as a plan holds it: None for none [W]."""
    power = machine.accelerator.power
    return power.limit if power.limit < power.most else None


def not_met(machine: Machine, limits: PowerLimits, asked: Sequence[float] | None) -> dict[str, Any]:
    """Return why no cap does, and the least limit that would, as parts of an infeasible answer."""
    power = machine.accelerator.power
    lowest = min((cap for cap in asked or () if cap >= power.least), default=power.least)
    needed = _drawn_w(machine, lowest)
    return {
        "why_not": [
            {
                "reason": "power.node_limit: a node draws more with its accelerators at the lowest cap",
                "candidates": 0,
                "nearest": {"power_cap_w": lowest, "node_power_w": needed},
            }
        ],
        "relaxation": [
            {"constraint": "power.node_limit", "now": limits.node_limit, "needed": needed, "unit": "W"},
        ],
    }


def binding(machine: Machine, limits: PowerLimits, gained: float | None, unit: str) -> list[dict[str, Any]]:
    """Return the limit of a node as a constraint: what is left of it with all accelerators at their cap.

    Parameters
    ----------
    machine : Machine
        With accelerators held to the plan's cap.
    gained : float or None
        Change of the objective with 1 kW more, the marginal value by its definition; None where it is not known.
    unit : str
        Unit of the objective.
    """
    if limits.node_limit is None:
        return []
    return [
        {
            "constraint": "power.node_limit",
            "slack": limits.node_limit - _drawn_w(machine, machine.accelerator.power.limit),
            "shadow_price": gained,
            "unit": "W",
            "shadow_price_unit": f"{unit} per kW",
            "shadow_price_by": "re-solving with 1 kW more",
        }
    ]


def raised(limits: PowerLimits) -> PowerLimits:
    """Return the limits with `MORE_W` more for a node."""
    assert limits.node_limit is not None
    return limits.model_copy(update={"node_limit": limits.node_limit + MORE_W})
