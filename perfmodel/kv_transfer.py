"""Keys and values on their way from the instance that computed a prompt to the one that answers."""

from __future__ import annotations

import numpy as np

from hardware.schema import Node
from hardware.topology import Level
from perfmodel.serving.engine import Engine
from perfmodel.terms import Array, Number


def transfer_time(size_bytes: Number, engine: Engine, node: Node) -> Array:
    """Return the time in which the adapters of a node send keys and values [s]: start + bytes / (efficiency x rate).

    Parameters
    ----------
    size_bytes : float or array
        Keys and values [bytes].
    engine : Engine
        Whose start cost and efficiency.
    node : Node
        Whose adapters send, all at once.

    Raises
    ------
    ValueError
        The engine states no transfer, or the node has no adapters.
    """
    if engine.transfer is None or node.nics is None:
        raise ValueError(f"{engine.name} states no transfer, or {node.name} has no adapters")
    rate = node.nics.count * node.nics.bandwidth
    return np.asarray(engine.transfer.start + np.asarray(size_bytes, float) / (engine.transfer.efficiency * rate))


def way_out(level: Level, node: Node, engine: Engine) -> tuple[float, float]:
    """Return the rate [bytes/s] and the latency [s] at which an accelerator sends keys and values over a level.

    Parameters
    ----------
    level : Level
        What they pass, at the most.
    node : Node
        Its links carry all of their rate; the network's adapters what the engine reaches, after its start.
    engine : Engine
        Whose start and efficiency, where it states them.
    """
    if engine.transfer is None or level.ranks <= node.accelerators.count:
        return level.bandwidth, level.latency
    return level.bandwidth * engine.transfer.efficiency, level.latency + engine.transfer.start


def exposed_transfer(layer_transfer_s: Number, layer_compute_s: Number, layers: int) -> Array:
    """Return what is left of a transfer after the prompt is computed, if each layer is sent when it is done [s].

    The last layer's transfer, and of all before what compute does not cover: t + (L - 1) max(t - c, 0).

    Parameters
    ----------
    layer_transfer_s, layer_compute_s : float or array
        Time to send, and to compute, one layer [s].
    layers : int
        Layers, L.
    """
    sent = np.asarray(layer_transfer_s, float)
    return np.asarray(sent + (layers - 1) * np.maximum(sent - layer_compute_s, 0.0))
