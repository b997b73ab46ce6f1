"""What one server of a workload draws over time: from a trace, a distribution, a predicted job, or its nameplate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from hardware.catalogue import Machine, read_file
from hardware.faults import Fault, InputError
from hardware.yaml_source import Source
from perfmodel.power.constants import shares_of
from perfmodel.power.device import Z90
from perfmodel.power.load import PowerSeries, read_power
from perfmodel.power.node import node_power_w
from perfmodel.power.risk import exceeded_steps, normal_quantile
from perfmodel.terms import Array
from solvers.plan_file import scenario_of
from solvers.power_question import Diurnal, PowerWorkload
from solvers.power_served import REFERENCE_SERVERS, Served, served_by

_Path = tuple[str | int, ...]

HOURS = np.arange(0.0, 24.0, 0.5)
"""Hours of the day at which swings are looked at."""
MOST_STEPS = 10080
"""Longer traces are taken in longer steps, minutes of a week."""


@dataclass(frozen=True)
class Draw:
    """What one server draws.

    Parameters
    ----------
    max_w, idle_w : float
        The most and the least [W].
    mean_w, sigma_w : float
        Mean and standard deviation over time, beside the swing [W].
    diurnal : Diurnal or None
        Swing of the mean over the day.
    series : PowerSeries or None
        Power over time, one profile.
    source : str
        What this rests on.
    """

    max_w: float
    idle_w: float
    mean_w: float
    sigma_w: float
    diurnal: Diurnal | None
    series: PowerSeries | None
    source: str
    served: Served | None = None
    spread: float = 0.0

    def mean_at(self, hours: Array) -> Array:
        """Return the mean at hours of the day [W]: what is above idle follows a cosine."""
        if self.diurnal is None:
            return np.full(len(hours), self.mean_w)
        phase = 2 * np.pi * (hours - self.diurnal.peak_hour) / 24
        swung = self.idle_w + (self.mean_w - self.idle_w) * (1 + self.diurnal.swing * np.cos(phase))
        return np.asarray(np.minimum(swung, self.max_w))


def draw_of(
    workload: PowerWorkload, machine: Machine, source: Source, at: _Path, base_dir: FilePath, latency_s: float
) -> tuple[Draw, list[Fault]]:
    """Return what a server of a workload draws, and warnings.

    Parameters
    ----------
    workload : PowerWorkload
        As written.
    machine : Machine
        Its server.
    source, at
        Document that holds it, and where in it.
    base_dir : Path
        Folder that paths are relative to.
    latency_s : float
        Latency of the fastest actuator; traces that are sampled more slowly miss peaks [s].

    Raises
    ------
    InputError
        With every fault.
    """
    most, idle = limits_w(machine)
    given = [key for key in ("power", "trace", "requests", "job") if getattr(workload, key) is not None]
    if len(given) > 1:
        raise InputError([source.fault((*at, given[1]), f"give either {given[0]} or {given[1]}")])
    if workload.power is not None:
        power = workload.power
        most, idle = power.max or most, min(idle, power.mean) if power.idle is None else power.idle
        order = [("idle", idle), ("mean", power.mean), ("max", most)]
        for (lower, low), (upper, high) in itertools.pairwise(order):
            if low > high:
                key = upper if getattr(power, upper) is not None else lower
                raise InputError(
                    [source.fault((*at, "power", key), f"{lower}, {low:g} W, is above {upper}, {high:g} W")]
                )
        return Draw(most, idle, power.mean, power.sigma, power.diurnal, None, "as given"), []
    if workload.trace is not None:
        path = base_dir / workload.trace
        if not path.is_file():
            raise InputError([source.fault((*at, "trace"), f"there is no file {path}")])
        series, warnings = read_power(path, latency_s)
        watts = series.watts[0] / workload.trace_servers
        if watts.max() > most * (1 + 1e-9):
            message = (
                f"the trace reaches {watts.max():g} W for a server, above the {most:g} W of {machine.node.name}; "
                "trace_servers says how many servers it is the sum of"
            )
            raise InputError([source.fault((*at, "trace"), message)])
        one = PowerSeries(series.step_s, watts[None])
        least = min(idle, float(watts.min()))
        return Draw(most, least, float(watts.mean()), float(watts.std()), None, one, "trace"), list(warnings)
    if workload.requests is not None:
        served = served_by(workload.requests, machine, source, (*at, "requests"), base_dir)
        series, own = served.series, served.series.watts[0]
        said = f"synthesised for a week, seed {workload.requests.seed}, {REFERENCE_SERVERS} servers together"
        least = min(idle, float(own.min()))
        spread = shares_of(machine.accelerator).spread
        return Draw(most, least, float(own.mean()), float(own.std()), None, series, said, served, spread), []
    if workload.job is not None:
        return _job(workload, machine, source, (*at, "job"), base_dir, most, idle), []
    return Draw(most, min(idle, most), most, 0.0, None, None, "nameplate"), []


def limits_w(machine: Machine) -> tuple[float, float]:
    """Return the most and the least that a server draws, by its data sheet or its parts' [W]."""
    node, board = machine.node, machine.accelerator.power
    stated = node.power
    most = stated.limit if stated is not None else None
    idle = stated.idle if stated is not None else None
    count = node.accelerators.count
    return (
        float(node_power_w(node, count * board.limit)) if most is None else most,
        float(node_power_w(node, count * (board.idle or 0.0))) if idle is None else idle,
    )


def _job(
    workload: PowerWorkload,
    machine: Machine,
    source: Source,
    at: _Path,
    base_dir: FilePath,
    most: float,
    idle: float,
) -> Draw:
    """Predict a job of another scenario; the interval is of the prediction, common to all servers."""
    assert workload.job is not None
    path = base_dir / workload.job
    if not path.is_file():
        raise InputError([source.fault(at, f"there is no file {path}")])
    inner = scenario_of(read_file(path))
    kind = inner.data.get("kind") if isinstance(inner.data, dict) else None
    if kind not in ("train", "serve"):
        raise InputError([source.fault(at, f"{path} should be of kind train or serve [got {kind!r}]")])
    given = inner.data.get("plan") is not None
    result: Any
    if kind == "train":
        from solvers import train
        from solvers.scenario import load_train

        job = load_train(inner, path.parent)
        result, own = train.predict(job) if given else train.plan(job), job.job.machine
    else:
        from solvers import serve
        from solvers.serve_scenario import load_serve

        asked = load_serve(inner, path.parent)
        result, own = serve.predict(asked) if given else serve.plan(asked), asked.machine
    predicted = result.prediction or {}
    if predicted.get("power_w") is None:
        raise InputError([source.fault(at, f"of {path} no power is predicted: it is {result.status}")])
    if own.node.name != machine.node.name:
        raise InputError([source.fault(at, f"{path} runs on {own.node.name}, not on {machine.node.name}")])
    used = predicted.get("gpus") or own.accelerators
    nodes = used / own.node.accelerators.count
    mean = min(float(predicted["power_w"]) / nodes, most)
    spread = float(predicted["power_w_p90"] - predicted["power_w"]) / nodes / Z90
    said = f"predicted for {workload.job}"
    return Draw(most, min(idle, mean), mean, spread, None, None, said, None, shares_of(machine.accelerator).spread)


@dataclass(frozen=True)
class Shared:
    """What servers of all workloads draw at common times (fields as of `Case`)."""

    mean_w: Array
    sigma_w: Array
    profile_w: Array
    quantile_w: Array
    typical_w: Array
    noise_w: Array


def together(draws: Sequence[Draw], risk: float) -> Shared:
    """Bring what servers draw to common times.

    Parameters
    ----------
    draws : sequence of Draw
        One server of each workload.
    risk : float
        Probability or share of time above.

    Notes
    -----
    Series are repeated to the longest one, in the longest step of them. What counts in a step is the highest power
    within it; typical is the mean, with the rest as noise. Beside series a distribution counts with the quantile of its
    risk at every hour.
    """
    hours = HOURS if any(draw.diurnal for draw in draws) else np.zeros(1)
    mean = np.stack([draw.mean_at(hours) for draw in draws], axis=1)
    sigma = np.broadcast_to([draw.sigma_w for draw in draws], mean.shape)
    most = np.array([draw.max_w for draw in draws])
    times, step_s = _times(draws, hours)
    at_hour = (times / 3600) % 24
    profile = np.empty((len(draws), len(times)))
    typical = np.empty_like(profile)
    noise = np.array([draw.sigma_w for draw in draws])
    quantile = np.empty(len(draws))
    for number, draw in enumerate(draws):
        if draw.series is not None:
            peaks, means, noise[number] = _binned(draw.series, step_s)
            profile[number], typical[number] = np.resize(peaks, len(times)), np.resize(means, len(times))
            ordered = np.sort(draw.series.watts[0])
            quantile[number] = ordered[-1 - exceeded_steps(len(ordered), risk)]
        else:
            above = normal_quantile(risk) * draw.sigma_w if draw.sigma_w else 0.0
            typical[number] = draw.mean_at(at_hour)
            profile[number] = np.minimum(typical[number] + above, draw.max_w)
            quantile[number] = _day_quantile(draw, risk)
    return Shared(mean, np.asarray(sigma), profile, np.minimum(quantile, most), typical, noise)


def _times(draws: Sequence[Draw], hours: Array) -> tuple[Array, float]:
    """Return the times of all profiles [s], and their step [s]."""
    series = [draw.series for draw in draws if draw.series is not None]
    if not series:
        return hours * 3600, 1800.0
    step_s = max(one.step_s for one in series)
    longest = max(one.step_s * one.watts.shape[1] for one in series)
    step_s *= max(1, int(np.ceil(longest / step_s / MOST_STEPS)))
    return np.arange(max(round(longest / step_s), 1)) * step_s, step_s


def _binned(series: PowerSeries, step_s: float) -> tuple[Array, Array, float]:
    """Return the highest power within each longer step, of all that reach into it, the means, and the deviation [W]."""
    watts = series.watts[0]
    begin = np.arange(len(watts)) * series.step_s / step_s
    first = np.floor(begin + 1e-9).astype(int)
    last = np.ceil(begin + series.step_s / step_s - 1e-9).astype(int) - 1
    peaks = np.zeros(int(last[-1]) + 1)
    np.maximum.at(peaks, first, watts)
    np.maximum.at(peaks, last, watts)
    means = np.bincount(first, watts) / np.bincount(first)
    return peaks, means, float(np.sqrt(np.mean((watts - means[first]) ** 2)))


def _day_quantile(draw: Draw, risk: float) -> float:
    """Return the power that is exceeded with the risk over the whole day [W]."""
    if risk == 0:
        return draw.max_w if draw.sigma_w else float(draw.mean_at(HOURS).max())
    mean = draw.mean_at(HOURS if draw.diurnal else np.zeros(1))
    if not draw.sigma_w:
        return float(np.sort(mean)[-1 - exceeded_steps(len(mean), risk)])
    from scipy.special import ndtr

    low, high = float(mean.min()), float(mean.max() + 40 * draw.sigma_w)
    for _ in range(80):
        middle = (low + high) / 2
        beyond = float(np.mean(ndtr((mean - middle) / draw.sigma_w)))
        low, high = (middle, high) if beyond > risk else (low, middle)
    return float(min(high, draw.max_w))


def correlation_of(draws: Sequence[Draw], shared: Shared, given: Any) -> tuple[Array, str | None]:
    """Return the correlation between two servers of any two workloads, and what is wrong with it.

    Parameters
    ----------
    draws : sequence of Draw
        One server of each workload.
    shared : Shared
        The same at common times.
    given : float, rows or None
        As written. Left out: that of the traces, which servers of one workload follow all alike; 1 throughout where
        one has no trace.
    """
    count = len(draws)
    if given is None:
        matrix = np.ones((count, count))
        if all(draw.series is not None for draw in draws) and count > 1:
            varied = shared.profile_w.std(axis=1) > 0
            matrix[np.ix_(varied, varied)] = np.corrcoef(shared.profile_w[varied])
            np.fill_diagonal(matrix, 1.0)
        return matrix, None
    matrix = np.full((count, count), given) if isinstance(given, float | int) else np.array(given, float)
    if not np.allclose(matrix, matrix.T):
        return matrix, "should be the same from one workload to another and back"
    least = float(np.linalg.eigvalsh(matrix).min())
    if least < -1e-9:
        return matrix, (
            f"is not positive semidefinite: its least eigenvalue is {least:.3g}, so that no such powers of many "
            "servers exist; on the diagonal stands the correlation between two servers of one workload"
        )
    return matrix, None
