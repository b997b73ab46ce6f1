"""What the kernel models share: device constants, the form of a model, and one fit for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hardware.efficiency import KernelParameters
from hardware.schema import Accelerator
from perfmodel.power.throttle import clock_share, streaming_clock_share
from perfmodel.terms import Array

Z90 = 1.2815515594600038
"""The normal distribution's 90th percentile in standard deviations."""


FAR = 0.3
"""Logarithm of a parameter over where a fit starts from which on its distance counts linearly."""


@dataclass(frozen=True)
class Device:
    """What a kernel model may know of an accelerator: its data sheet.

    Parameters
    ----------
    name, architecture : str
        Its name and family.
    peak : mapping of str to float
        Dense peak by type [FLOP/s].
    bandwidth : float
        Memory bandwidth [bytes/s].
    l2 : float
        Second-level cache [bytes].
    units : int
        Multiprocessors or compute units.
    clock : float
        Boost clock, of work that arithmetic holds back [Hz].
    streaming_clock : float
        Clock of work that memory or launches hold back; higher than `clock` under a power cap [Hz].
    """

    name: str
    architecture: str
    peak: Mapping[str, float]
    bandwidth: float
    l2: float
    units: int
    clock: float
    streaming_clock: float


def device_of(accelerator: Accelerator) -> Device:
    """Return the constants of an accelerator; without a stated cache 0.5 MB a unit is assumed.

    Notes
    -----
    Under a power cap clocks and peaks are those at which work meets the cap (``perfmodel.power.throttle``); its memory
    keeps its rate.
    """
    clock = clock_share(accelerator)
    return Device(
        accelerator.name,
        accelerator.architecture,
        {str(dtype): peak * clock for dtype, peak in accelerator.peak.items()},
        accelerator.memory.bandwidth,
        accelerator.l2 if accelerator.l2 is not None else 0.5e6 * accelerator.units,
        accelerator.units,
        accelerator.clock * clock,
        accelerator.clock * streaming_clock_share(accelerator),
    )


@dataclass(frozen=True)
class KernelModel:
    """A class of kernels.

    Parameters
    ----------
    name : str
        Such as ``gemm``.
    columns : tuple of str
        Columns that a file of measurements must have.
    parameters : type
        Its parameters.
    shapes : callable
        Rows of measurements -> arrays that `time` takes.
    time : callable
        (arrays, device, parameters) -> (seconds, bound), bound an index into ``terms.BOUNDS``.
    roofline : callable
        (arrays, device) -> seconds of max(FLOPs/peak, cold bytes/bandwidth).
    """

    name: str
    columns: tuple[str, ...]
    parameters: type[KernelParameters]
    shapes: Callable[[pd.DataFrame], dict[str, Array]]
    time: Callable[[Mapping[str, Array], Device, Any], tuple[Array, Array]]
    roofline: Callable[[Mapping[str, Array], Device], Array]


@dataclass(frozen=True)
class Sample:
    """Measured kernels of one device.

    Parameters
    ----------
    device : Device
        Where they ran.
    shapes : mapping of str to array
        As ``KernelModel.shapes`` gives them.
    seconds : array
        Measured times [s].
    """

    device: Device
    shapes: Mapping[str, Array]
    seconds: Array


def log_errors(model: KernelModel, samples: Sequence[Sample], parameters: KernelParameters) -> Array:
    """Return ln(predicted/measured) of every kernel."""
    return np.concatenate(
        [np.log(model.time(sample.shapes, sample.device, parameters)[0] / sample.seconds) for sample in samples]
    )


def spread_of(errors: Sequence[Array]) -> float:
    """Return the standard deviation whose P10 and P90 hold 80 % of logarithmic errors, groups weighing alike.

    Parameters
    ----------
    errors : sequence of array
        ln(predicted/measured), one array a group, such as a device.

    Notes
    -----
    The 80th percentile of |error| over that of the normal distribution, 1.2816. Kernels' errors have heavier tails than
    a normal's: their root mean square would make an interval that holds 85-89 % of them.
    """
    sizes = np.abs(np.concatenate(errors))
    weights = np.concatenate([np.full(len(group), 1.0 / len(group)) for group in errors])
    order = np.argsort(sizes)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(np.interp(0.8, share, sizes[order])) / Z90


def bounds_of(parameters: type[KernelParameters]) -> dict[str, tuple[float, float, bool]]:
    """Return (low, high, on a log scale) of every parameter that a fit may choose."""
    found = {}
    for name, field in parameters.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "low" in extra:
            found[name] = (float(extra["low"]), float(extra["high"]), bool(extra["log"]))  # type: ignore[arg-type]
    return found


def fit(
    model: KernelModel,
    samples: Sequence[Sample],
    start: KernelParameters,
    *,
    fixed: Sequence[str] = (),
    shrink: float = 0.0,
    most_rows: int = 4000,
    evaluations: int = 4000,
) -> KernelParameters:
    """Fit a model's parameters, devices weighing alike.

    Parameters
    ----------
    model : KernelModel
        The model.
    samples : sequence of Sample
        Measured kernels, one entry a device.
    start : KernelParameters
        Where the fit begins; with `shrink` also what it is drawn to, such as the family's parameters.
    fixed : sequence of str
        Parameters left as they are.
    shrink : float
        Weight of the distance from `start` beside the mean error: squares of ln(parameter/start), linear beyond `FAR`,
        so that rows that say little move little, and rows that say a lot are heard.
    most_rows : int
        Rows of a device used at most, evenly spaced over its rows sorted by time.
    evaluations : int
        Evaluations of the model at most.

    Returns
    -------
    KernelParameters
        Parameters of least mean |ln(predicted/measured)|, with their spread over all rows (`spread_of`).
    """
    from scipy.optimize import minimize

    bounds = {name: bound for name, bound in bounds_of(model.parameters).items() if name not in fixed}
    thinned = [_thinned(sample, most_rows) for sample in samples]

    def encoded(parameters: KernelParameters) -> Array:
        values = []
        for name, (low, high, log) in bounds.items():
            value = min(max(float(getattr(parameters, name)), low), high)
            share = np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
            values.append(share)
        return np.array(values)

    def decoded(shares: Array) -> KernelParameters:
        update = {}
        for (name, (low, high, log)), share in zip(bounds.items(), np.clip(shares, 0.0, 1.0), strict=True):
            update[name] = float(low * (high / low) ** share if log else low + (high - low) * share)
        return start.model_copy(update=update)

    anchor = encoded(start)
    begun = decoded(anchor)

    def loss(shares: Array) -> float:
        parameters = decoded(shares)
        moved = np.array([np.log(getattr(parameters, name) / getattr(begun, name)) for name in bounds])
        distance = np.sum(2 * FAR**2 * (np.sqrt(1 + (moved / FAR) ** 2) - 1))
        error = float(np.mean([np.mean(np.abs(log_errors(model, [sample], parameters))) for sample in thinned]))
        outside = float(np.sum(np.maximum(np.abs(shares - 0.5) - 0.5, 0.0)))
        return error + shrink * float(distance) + outside

    best = anchor
    for _ in range(2):  # a second simplex frees the first from a corner
        simplex = np.vstack([best, best + np.where(best > 0.85, -0.12, 0.12) * np.eye(len(best))])
        result = minimize(
            loss,
            best,
            method="Nelder-Mead",
            options={"maxfev": evaluations // 2, "initial_simplex": simplex, "fatol": 1e-6, "xatol": 1e-4},
        )
        best = result.x
    found = decoded(best)
    spread = spread_of([log_errors(model, [sample], found) for sample in samples])
    return found.model_copy(update={"spread": spread})


def _thinned(sample: Sample, most: int) -> Sample:
    if len(sample.seconds) <= most:
        return sample
    order = np.argsort(sample.seconds, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    return Sample(
        sample.device, {name: values[chosen] for name, values in sample.shapes.items()}, sample.seconds[chosen]
    )
