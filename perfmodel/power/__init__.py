"""Power of accelerators and nodes, and what a cap on it costs: watts from utilisations, speed from watts.

Equations in docs/power.md; constants in ``perfmodel/calibrated/power.yaml``, made by ``benchmarks/fit_power.py``.
"""

from perfmodel.power.constants import PowerConstants, Shares, Throttle, power_constants, shares_of, throttle_of
from perfmodel.power.device import Activity, board_power_w, context_power_w, interval, training_activity
from perfmodel.power.limits import held_to
from perfmodel.power.node import accelerator_cap_w, node_power_w, nodes_power_w
from perfmodel.power.throttle import capped_speed, clock_share, relative_clock
from perfmodel.power.work import Sizes, serving_activity, sizes_of

__all__ = [
    "Activity",
    "PowerConstants",
    "Shares",
    "Sizes",
    "Throttle",
    "accelerator_cap_w",
    "board_power_w",
    "capped_speed",
    "clock_share",
    "context_power_w",
    "held_to",
    "interval",
    "node_power_w",
    "nodes_power_w",
    "power_constants",
    "relative_clock",
    "serving_activity",
    "shares_of",
    "sizes_of",
    "throttle_of",
    "training_activity",
]
