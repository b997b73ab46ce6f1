"""What was fitted on measured power, and how far measurements lie from the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hardware.catalogue import families_of, find
from hardware.schema import Accelerator


@dataclass(frozen=True)
class Shares:
    """What a board draws for each kind of work, in shares of its highest power limit [1].

    Parameters
    ----------
    context : float
        With a process on it that does nothing: clocks are up.
    memory : float
        More at the full rate of its memory.
    compute : float
        More at the peak of its 16-bit arithmetic.
    spread : float
        Standard deviation of ln(measured/predicted).
    """

    context: float
    memory: float
    compute: float
    spread: float


@dataclass(frozen=True)
class Throttle:
    """How a board meets a cap.

    Parameters
    ----------
    static : float
        Part of the highest limit that does not change with the clock [1].
    fluctuation : float
        Standard deviation of ln(power) within a step around its mean.
    voltage_floor : float
        Clock over the highest at which the voltage is lowest: below it power falls with the clock alone [1].
    spread : float
        Standard deviation of ln(measured/predicted) of the speed under a cap.
    """

    static: float
    fluctuation: float
    voltage_floor: float
    spread: float


@dataclass(frozen=True)
class PowerConstants:
    """All constants of the power model.

    Parameters
    ----------
    boards : mapping of str to Shares
        Of measured accelerators by name.
    throttles : mapping of str to Throttle
        Of measured families of accelerators.
    padded_rows : float
        Rows that a tile of an expert's matrix product has at least.
    block_scaled : float
        Energy of an operation on 8-bit numbers with a scale for every block over one on 16 bits.
    cache : float
        Energy of a byte of the cache of keys and values, with the arithmetic of attention, over one of weights.
    compute_exponent : float
        Power with which the watts of arithmetic follow its rate.
    family_spread, other_spread : float
        Added in quadrature to the spread of a board of a measured family, and of another.
    host_w : float
        All but the accelerators of a node that does not state it, for each accelerator [W].
    supply_efficiency, fan_share : float
        Power supply's output over its input; fans' part of a server's power [1].
    """

    boards: Mapping[str, Shares]
    throttles: Mapping[str, Throttle]
    padded_rows: float
    block_scaled: float
    cache: float
    compute_exponent: float
    family_spread: float
    other_spread: float
    host_w: float
    supply_efficiency: float
    fan_share: float


@lru_cache(maxsize=1)
def power_calibration() -> dict[str, Any]:
    """Return ``calibrated/power.yaml``."""
    import yaml

    text = files("perfmodel").joinpath("calibrated/power.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return data


@lru_cache(maxsize=1)
def power_constants() -> PowerConstants:
    """Return the shipped constants."""
    data = power_calibration()
    return PowerConstants(
        boards={name: Shares(**values) for name, values in data["boards"].items()},
        throttles={name: Throttle(**values) for name, values in data["throttles"].items()},
        **data["common"],
        **data["node"],
    )


def shares_of(accelerator: Accelerator, constants: PowerConstants | None = None) -> Shares:
    """Return a board's shares: its description's, its own, its family's or the mean of all, each with a wider spread.

    Parameters
    ----------
    accelerator : Accelerator
        The board; its limit and idle power are its data sheet's.
    constants : PowerConstants
        Those to take, whatever the description says; the shipped ones if left out.
    """
    if constants is None and accelerator.efficiency is not None and accelerator.efficiency.power is not None:
        return Shares(**accelerator.efficiency.power.model_dump())
    known = constants or power_constants()
    if accelerator.name in known.boards:
        return known.boards[accelerator.name]
    lineage = families_of(accelerator.architecture)
    kin = []
    for name, shares in known.boards.items():
        board = find("accelerator", name)
        assert isinstance(board, Accelerator)
        if board.architecture in lineage:
            kin.append(shares)
    added = known.family_spread if kin else known.other_spread
    mean = _mean(kin or list(known.boards.values()))
    return replace(mean, spread=float((mean.spread**2 + added**2) ** 0.5))


def throttle_of(accelerator: Accelerator, constants: PowerConstants | None = None) -> Throttle:
    """Return how a board meets a cap: by its own description, as its family, or as the mean with a wider spread."""
    if constants is None and accelerator.efficiency is not None and accelerator.efficiency.throttle is not None:
        return Throttle(**accelerator.efficiency.throttle.model_dump())
    known = constants or power_constants()
    for family in families_of(accelerator.architecture):
        if family in known.throttles:
            return known.throttles[family]
    every = list(known.throttles.values())
    mean = Throttle(*(sum(getattr(one, part.name) for one in every) / len(every) for part in fields(Throttle)))
    return replace(mean, spread=float((mean.spread**2 + known.family_spread**2) ** 0.5))


def _mean(every: list[Shares]) -> Shares:
    return Shares(*(sum(getattr(one, part.name) for one in every) / len(every) for part in fields(Shares)))
