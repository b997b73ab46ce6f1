"""Power of an accelerator from what it does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hardware.schema import Accelerator
from perfmodel.power.constants import PowerConstants, Shares, power_constants, shares_of
from perfmodel.terms import Array, Number

KNEE = 12.0
"""Exponent of the soft minimum of what work would draw and the limit: meters see 0.94 of it where both are equal."""

STREAMED = 0.8
"""Share of the memory's peak that kernels reach which it holds back."""

Z90 = 1.2816
"""Standard deviations from the median of a normal distribution to its P90."""


@dataclass(frozen=True)
class Activity:
    """What an accelerator does, on average over time.

    Parameters
    ----------
    compute : array
        Rate of arithmetic over the peak in 16 bits, operations of other types by their energy [1].
    memory : array
        Traffic with its memory over the peak, with the arithmetic of attention over the cache [1].
    """

    compute: Number
    memory: Number


def context_power_w(accelerator: Accelerator, shares: Shares | None = None) -> float:
    """Return the power of a board with a process that does nothing [W]."""
    return (shares or shares_of(accelerator)).context * accelerator.power.most


def board_power_w(
    accelerator: Accelerator,
    activity: Activity,
    *,
    limit_w: Number | None = None,
    shares: Shares | None = None,
    constants: PowerConstants | None = None,
) -> Array:
    """Return the mean power of a board [W].

    Parameters
    ----------
    accelerator : Accelerator
        The board.
    activity : Activity
        What it does.
    limit_w : array
        Its power limit; what it is held to if left out [W].
    shares, constants : Shares, PowerConstants
        The shipped ones if left out.

    Notes
    -----
    P = soft minimum of the limit and P_max (context + memory u_m + compute u_c^a). The form follows
    powertrace-sim's (idle, footprint, compute and memory utilisation); the exponent below 1 stands for the lower clock
    and voltage of a board near its limit. Rates of work are those that it has at its limit.
    """
    known = constants or power_constants()
    own = shares or shares_of(accelerator, constants)
    most = accelerator.power.most
    compute = np.maximum(np.asarray(activity.compute, float), 0.0) ** known.compute_exponent
    asked = own.context + own.memory * activity.memory + own.compute * compute
    limit = np.asarray(accelerator.power.limit if limit_w is None else limit_w, float)
    over = most * asked / limit
    return np.asarray(most * asked / (1.0 + over**KNEE) ** (1.0 / KNEE))


def interval(spread: Number) -> tuple[Array, Array]:
    """Return the factors from a prediction to its P10 and P90."""
    return np.asarray(np.exp(-Z90 * np.asarray(spread))), np.asarray(np.exp(Z90 * np.asarray(spread)))


def training_activity(hardware_utilisation: Number, memory_share: Number) -> Activity:
    """Return what a training step does.

    Parameters
    ----------
    hardware_utilisation : array
        Arithmetic, recomputation included, over the peak of its type.
    memory_share : array
        Part of the step in kernels that memory holds back; they reach `STREAMED` of its peak.
    """
    return Activity(hardware_utilisation, np.asarray(memory_share) * STREAMED)
