"""Machines whose accelerators are held to a lower power."""

from __future__ import annotations

from dataclasses import replace

from hardware.catalogue import Machine


def held_to(machine: Machine, cap_w: float) -> Machine:
    """Return a machine whose accelerators are held to a power of `cap_w` [W], or to what they are, if that is less."""
    power = machine.accelerator.power
    if cap_w >= power.limit:
        return machine
    held = power.model_copy(update={"limit": cap_w, "highest": power.most})
    accelerator = machine.accelerator.model_copy(update={"power": held})
    inside = machine.node.accelerators.model_copy(update={"type": accelerator})
    node = machine.node.model_copy(update={"accelerators": inside})
    return replace(
        machine, accelerator=accelerator, node=node, cluster=machine.cluster.model_copy(update={"node": node})
    )
