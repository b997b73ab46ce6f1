"""Power of a node, at its plug."""

from __future__ import annotations

import numpy as np

from hardware.schema import Node
from perfmodel.power.constants import PowerConstants, power_constants
from perfmodel.terms import Array, Number


def host_power_w(node: Node, constants: PowerConstants | None = None) -> float:
    """Return what processors, memory, drives and network adapters of a node draw, before fans and conversion [W]."""
    known = constants or power_constants()
    if node.power is not None and node.power.host is not None:
        return node.power.host
    return known.host_w * node.accelerators.count


def node_power_w(node: Node, boards_w: Number, constants: PowerConstants | None = None) -> Array:
    """Return the power of a node [W].

    Parameters
    ----------
    node : Node
        The node.
    boards_w : array
        Power of all its accelerators together [W].
    constants : PowerConstants
        The shipped ones if left out.

    Notes
    -----
    (accelerators + host) / (supply efficiency (1 - fan share)), at most the node's limit. Efficiency and fan share are
    GreenSKU's; a facility's PUE comes on top.
    """
    known = constants or power_constants()
    asked = np.asarray(boards_w, float) + host_power_w(node, known)
    found = asked / (known.supply_efficiency * (1.0 - known.fan_share))
    most = node.power.limit if node.power is not None and node.power.limit is not None else np.inf
    return np.asarray(np.minimum(found, np.maximum(most, boards_w)))


def accelerator_cap_w(node: Node, limit_w: float, constants: PowerConstants | None = None) -> float:
    """Return the cap of every accelerator with which a node never draws more than a limit [W].

    Parameters
    ----------
    node : Node
        The node.
    limit_w : float
        Its limit, at the plug [W].

    Notes
    -----
    `node_power_w` with every accelerator at its cap, solved for the cap; infinite where the node's own limit is lower,
    and negative where the host alone draws more.
    """
    known = constants or power_constants()
    if node.power is not None and node.power.limit is not None and node.power.limit <= limit_w:
        return float("inf")
    boards_w = limit_w * known.supply_efficiency * (1.0 - known.fan_share) - host_power_w(node, known)
    return boards_w / node.accelerators.count


def nodes_power_w(node: Node, accelerators: Number, board_w: Number) -> Array:
    """Return the power of the nodes that hold so many accelerators, of a part of one their share of it [W]."""
    whole = node_power_w(node, node.accelerators.count * np.asarray(board_w))
    return np.asarray(whole * (np.asarray(accelerators, float) / node.accelerators.count))
