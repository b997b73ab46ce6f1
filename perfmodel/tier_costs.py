"""What the tiers of nodes cost and draw."""

from __future__ import annotations

from hardware.schema import Node, Tier
from hardware.tiers import NICS

KILO = 1e3


def tiers_usd_per_hour(node: Node, nodes: int, usd_per_kwh: float) -> float:
    """Return what the tiers of nodes cost with their energy; those without a price cost nothing [USD/h].

    Parameters
    ----------
    node : Node
        One of them.
    nodes : int
        How many; a pool that they reach through their adapters is there once.
    usd_per_kwh : float
        Price of energy [USD/kWh].
    """
    return sum(copies(tier, nodes) * device_usd_per_hour(tier, usd_per_kwh) for tier in node.tiers)


def tiers_power_w(node: Node, nodes: int) -> float | None:
    """Return what the tiers of nodes draw [W]; None where one of them does not say."""
    drawn = [(tier.power, copies(tier, nodes)) for tier in node.tiers]
    if any(power is None for power, _ in drawn):
        return None
    return sum((power or 0.0) * copies for power, copies in drawn)


def copies(tier: Tier, nodes: int) -> int:
    """Return how many devices of a tier nodes have together; a pool that they reach through adapters is there once."""
    return tier.count * (1 if tier.link == NICS else nodes)


def device_usd_per_hour(tier: Tier, usd_per_kwh: float) -> float:
    """Return what a device of a tier costs with its energy [USD/h]."""
    price = tier.price.on_demand if tier.price is not None else None
    return (price or 0.0) + usd_per_kwh * (tier.power or 0.0) / KILO
