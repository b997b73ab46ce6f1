"""Power of servers over time: read from a file, or synthesised from recorded requests, a profile of days and bursts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardware.faults import Fault, InputError
from perfmodel.power.forecast import Moments
from perfmodel.power.served import ServerStatistics
from perfmodel.requests import DAY_S, Integers
from perfmodel.table_files import pieces
from perfmodel.terms import Array, Number

WEEK_S = 7 * DAY_S
CHUNK_S = 3600
"""Seconds of power in memory at once."""

WINDOWS_S = (1, 2, 5, 10, 20, 40, 60, 120, 300)
"""Lengths of time over which the variance of counts of requests tells bursts."""
TIMES_S = (2.0, 20.0, 200.0, 2000.0)
"""Times over which parts of bursts forget."""

FORGET_S = 60.0
"""Time over which power forgets, where it is known by a mean and a deviation alone: assumed."""

_PIECE = 2**16
_SHOWN = 20


@dataclass(frozen=True)
class PowerSeries:
    """Power at equal steps of time.

    Parameters
    ----------
    step_s : float
        Length of a step [s].
    watts : array, shape (profiles, steps)
        Mean power over each step [W].
    synthesised : bool
        Whether it was made up from requests and a profile, not measured.
    """

    step_s: float
    watts: Array
    synthesised: bool = False


def read_power(path: Path, latency_s: float = 0.0) -> tuple[PowerSeries, tuple[Fault, ...]]:
    """Read a series of power from a CSV with the columns ``time_s,power_w``.

    Parameters
    ----------
    path : Path
        The file, plain or .gz.
    latency_s : float
        Latency of the actuator that is to react to this power [s].

    Returns
    -------
    PowerSeries, tuple of Fault
        The series, and warnings: one that is sampled more slowly than the actuator reacts has peaks between its rows.

    Raises
    ------
    InputError
        Cells that are no numbers, power below 0, time that does not rise, gaps in it, fewer than two rows; each with
        its line.
    """
    times: list[float] = []
    watts: list[float] = []
    lines: list[int] = []
    faults: list[Fault] = []
    for piece in pieces(path, ("time_s", "power_w"), _PIECE):
        for row, (time, power) in enumerate(zip(*piece.cells, strict=True)):
            numbers = []
            for column, (name, cell) in enumerate((("time_s", time), ("power_w", power))):
                number = _number(cell)
                if not np.isfinite(number) or (column == 1 and number < 0):
                    allowed = "a number" if column == 0 else "a number of 0 or more"
                    place = (piece.line + row, piece.column_of(row, column))
                    faults.append(Fault(str(path), *place, name, f"should be {allowed} [got {str(cell)[:40]!r}]"))
                numbers.append(number)
            times.append(numbers[0])
            watts.append(numbers[1])
            lines.append(piece.line + row)
    if not faults:
        faults = _uneven(path, np.array(times), lines)
    if faults:
        more = len(faults) - _SHOWN
        shown = faults[:_SHOWN] + ([Fault(str(path), 0, 0, "", f"and {more:,} more faults")] if more > 0 else [])
        raise InputError(shown)
    step_s = float(np.median(np.diff(times)))
    warnings = []
    if latency_s and step_s > latency_s:
        message = f"sampled every {step_s:g} s, more slowly than the {latency_s:g} s of the actuator: peaks are missed"
        warnings.append(Fault(str(path), 1, 1, "time_s", message))
    return PowerSeries(step_s, np.array([watts])), tuple(warnings)


def _uneven(path: Path, times: Array, lines: Sequence[int]) -> list[Fault]:
    """Return where time does not go on in equal steps."""
    if len(times) < 2:
        return [Fault(str(path), 1, 1, "time_s", f"a series needs two rows at least [got {len(times)}]")]
    steps = np.diff(times)
    usual = float(np.median(steps))
    faults = []
    for at in np.flatnonzero((steps <= 0) | (np.abs(steps - usual) > 0.5 * max(usual, 0.0))).tolist():
        now, before = times[at + 1], times[at]
        if steps[at] <= 0:
            message = f"time does not rise: {before:g} s stands before it [got {now:g}]"
        elif steps[at] > usual:
            message = f"a gap of {steps[at]:g} s after {before:g} s, where rows are {usual:g} s apart [got {now:g}]"
        else:
            message = f"{steps[at]:g} s after {before:g} s, where rows are {usual:g} s apart [got {now:g}]"
        faults.append(Fault(str(path), lines[at + 1], 1, "time_s", message))
    return faults


def _number(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return float("nan")


@dataclass(frozen=True)
class Profile:
    """How many requests come at which time of day and week, over the most: a cosine, less at weekends.

    Parameters
    ----------
    trough : float
        Requests at the quietest time of day over those at the busiest [1].
    peak_hour : float
        The busiest time of day [h].
    weekend : float
        Requests on the last two of seven days over those of the other five [1].
    """

    trough: float = 0.5
    peak_hour: float = 14.0
    weekend: float = 0.8

    def load(self, time_s: Number) -> Array:
        """Return the requests at a time, counted from the midnight on which a week begins, over the most [1]."""
        time = np.asarray(time_s, float)
        phase = 2.0 * np.pi * (time / DAY_S - self.peak_hour / 24.0)
        day = self.trough + (1.0 - self.trough) * (1.0 + np.cos(phase)) / 2.0
        return np.asarray(day * np.where(time % WEEK_S >= 5 * DAY_S, self.weekend, 1.0))


@dataclass(frozen=True)
class Bursts:
    """How the rate of a service's requests varies around its mean, beyond chance: factors that forget over time.

    Parameters
    ----------
    times_s : tuple of float
        Time over which each forgets [s].
    variances : tuple of float
        Variance of each factor around 1 [1].
    """

    times_s: tuple[float, ...]
    variances: tuple[float, ...]

    @property
    def log_variances(self) -> Array:
        """Variance of the logarithm of each factor [1]."""
        return np.asarray(np.log1p(np.asarray(self.variances, float)))

    def scaled(self, factor: float) -> Bursts:
        """Return bursts of so many times the standard deviation."""
        return replace(self, variances=tuple(factor**2 * one for one in self.variances))


def bursts_of(arrival_s: Array) -> Bursts:
    """Return the bursts of recorded arrivals.

    Parameters
    ----------
    arrival_s : array, shape (requests,)
        Times, ascending from 0 [s].

    Notes
    -----
    Counts in windows w have a variance above that of chance, their mean; over the squared mean it is that of the rate
    averaged over w, to which a part that forgets over T contributes v 2 (T/w)^2 (w/T - 1 + e^(-w/T)). The v of
    `TIMES_S` are non-negative least squares over `WINDOWS_S`.
    """
    from scipy.optimize import nnls

    times = np.asarray(arrival_s, float)
    windows = [window for window in WINDOWS_S if times[-1] >= 10 * window]
    if not windows:
        raise ValueError("bursts need requests of 10 s at least")
    excess = []
    for window in windows:
        counts = np.bincount((times // window).astype(int))[: int(times[-1] // window)]
        excess.append((counts.var() - counts.mean()) / counts.mean() ** 2)
    over = np.array(windows, float)[:, None] / np.array(TIMES_S)
    averaged = 2.0 / over**2 * (over - 1.0 + np.exp(-over))
    found, _ = nnls(averaged, np.maximum(excess, 0.0))
    kept = found > 0
    return Bursts(tuple(np.array(TIMES_S)[kept].tolist()), tuple(found[kept].tolist()))


def burst_factors(bursts: Bursts, random: np.random.Generator) -> Iterator[Array]:
    """Yield factors of a rate, second by second, `CHUNK_S` at a time and without end: log-normal, of mean 1."""
    variances = bursts.log_variances
    for around in _forgetting(np.asarray(bursts.times_s, float), random):
        yield np.exp(np.sqrt(variances) @ around - float(variances.sum()) / 2.0)


def _forgetting(times_s: Array, random: np.random.Generator) -> Iterator[Array]:
    """Yield standard normal series that forget over times, second by second, shape (times, `CHUNK_S`), without end."""
    from scipy.signal import lfilter

    keep = np.exp(-1.0 / times_s)
    last = [np.array([value]) for value in keep * random.standard_normal(len(keep))]
    while True:
        around = np.zeros((len(keep), CHUNK_S))
        for part, kept in enumerate(keep):
            noise = np.sqrt(1.0 - kept**2) * random.standard_normal(CHUNK_S)
            around[part], last[part] = lfilter([1.0], [1.0, -kept], noise, zi=last[part])
        yield around


@dataclass(frozen=True)
class PoolLoad:
    """Requests of a pool over time, and what its servers draw for them.

    Parameters
    ----------
    statistics : ServerStatistics
        Power of one of its servers against its load.
    peak_load : float
        Mean load of a server at the busiest time of the profile [1].
    profile : Profile
        Of days and weeks.
    bursts : Bursts
        Of the service, which all servers of the pool have in common.
    """

    statistics: ServerStatistics
    peak_load: float
    profile: Profile
    bursts: Bursts

    @property
    def time_s(self) -> float:
        """Time over which what a server does on its own forgets [s]."""
        return self.statistics.time_s

    @property
    def range_w(self) -> tuple[float, float]:
        """The least and the most that a server draws [W]."""
        return float(self.statistics.mean_w[0]), float(self.statistics.mean_w.max())

    def seconds(self, random: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
        """Yield the mean power of a server [W], and the variance of its fast and slow part [W^2], `CHUNK_S` at once."""
        for piece, factor in enumerate(burst_factors(self.bursts, random)):
            load = self.peak_load * self.profile.load(piece * CHUNK_S + np.arange(CHUNK_S)) * factor
            yield self.statistics.mean(load), *self.statistics.variance(load)

    def moments(self, bin_s: float = 300.0) -> Moments:
        """Return the moments of its power over a week.

        Parameters
        ----------
        bin_s : float
            Length of a part of the week [s].

        Notes
        -----
        Means over the bursts, whose logarithm is normal. What servers share is split over the parts of the bursts as
        the variance of their logarithm is.
        """
        spread2 = self.bursts.log_variances
        total = float(spread2.sum())
        points, weights = np.polynomial.hermite_e.hermegauss(15)
        weights = weights / weights.sum()
        time = (np.arange(round(WEEK_S / bin_s)) + 0.5) * bin_s
        factor = np.exp(np.sqrt(total) * points - total / 2)
        load = self.peak_load * self.profile.load(time)[:, None] * factor
        power = self.statistics.mean(load)
        mean = power @ weights
        common = np.maximum(power**2 @ weights - mean**2, 0.0)
        fast, slow = (part @ weights for part in self.statistics.variance(load))
        split = spread2 / total if total else spread2
        return Moments(
            bin_s, mean, fast, slow, self.statistics.time_s, split[:, None] * common, np.array(self.bursts.times_s)
        )


@dataclass(frozen=True)
class NormalLoad:
    """Power of a server that is known by its mean over time and a deviation.

    Parameters
    ----------
    step_s : float
        Length of a step of the mean [s].
    mean_w : array, shape (steps,)
        Mean power, repeated for ever [W].
    sigma_w : float
        Standard deviation around it [W].
    common : float
        Part of the variance that all servers of the pool share [1].
    range_w : tuple of float
        The least and the most that a server draws [W].
    time_s : float
        Time over which deviations forget [s].
    """

    step_s: float
    mean_w: Array
    sigma_w: float
    common: float
    range_w: tuple[float, float]
    time_s: float = FORGET_S

    def seconds(self, random: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
        """Yield the mean power of a server [W], and the variance of its fast and slow part [W^2], `CHUNK_S` at once."""
        slow = np.full(CHUNK_S, (1.0 - self.common) * self.sigma_w**2)
        for piece, around in enumerate(_forgetting(np.array([self.time_s]), random)):
            step = ((piece * CHUNK_S + np.arange(CHUNK_S)) / self.step_s).astype(np.int64) % len(self.mean_w)
            yield self.mean_w[step] + np.sqrt(self.common) * self.sigma_w * around[0], np.zeros(CHUNK_S), slow

    def moments(self, bin_s: float = 300.0) -> Moments:
        """Return the moments of its power over a week.

        Parameters
        ----------
        bin_s : float
            Length of a part of the week [s].

        Notes
        -----
        What the mean varies by within a part is common to all servers; it forgets as its steps are correlated.
        """
        bins = round(WEEK_S / bin_s)
        each = max(round(bin_s / self.step_s), 1)
        at = np.arange(bins * each) * (bin_s / each) / self.step_s
        power = self.mean_w[(at + 1e-9).astype(np.int64) % len(self.mean_w)].reshape(bins, each)
        around = power - power.mean(axis=1, keepdims=True)
        varies = (around**2).mean(axis=1)
        alike = (
            float((around[:, 1:] * around[:, :-1]).sum() / max(float((around**2).sum()), 1e-12)) if each > 1 else 0.0
        )
        time_s = -self.step_s / np.log(np.clip(alike, 0.1, 0.999))
        flat = np.ones(bins)
        return Moments(
            bin_s,
            power.mean(axis=1),
            0.0 * flat,
            (1.0 - self.common) * self.sigma_w**2 * flat,
            self.time_s,
            np.stack([self.common * self.sigma_w**2 * flat, varies]),
            np.array([self.time_s, time_s]),
        )


Load = PoolLoad | NormalLoad


def demands(
    loads: Sequence[Load], pool: Integers, servers: Integers, seconds: int, seed: int
) -> Iterator[NDArray[np.float32]]:
    """Yield what groups of servers draw without caps, second by second, some time at a time [W].

    Parameters
    ----------
    loads : sequence of PoolLoad or NormalLoad
        Of each pool.
    pool, servers : array of int, shape (groups,)
        Each group's pool, and how many servers it has.
    seconds : int
        How long.
    seed : int
        Fixes the bursts and what servers do on their own.

    Yields
    ------
    array of float32, shape (steps, groups)

    Notes
    -----
    Servers of a pool share its bursts; what one does on its own, requests and their lengths by chance, adds up over a
    group to a normal deviation: a part of one second, and one that forgets exponentially.
    """
    from scipy.signal import lfilter

    count = np.asarray(servers, np.float32)
    random = np.random.default_rng([seed, 0])
    shared = [one.seconds(np.random.default_rng([seed, 1, number])) for number, one in enumerate(loads)]
    groups = [np.flatnonzero(np.asarray(pool) == number) for number in range(len(loads))]
    keep = [np.float32(np.exp(-1.0 / one.time_s)) for one in loads]
    last: list[Array] = [
        (kept * random.standard_normal((1, len(own)))).astype(np.float32)
        for kept, own in zip(keep, groups, strict=True)
    ]
    for begin in range(0, seconds, CHUNK_S):
        steps = min(CHUNK_S, seconds - begin)
        power = np.empty((steps, len(count)), np.float32)
        for number, one in enumerate(loads):
            own = groups[number]
            mean, fast2, slow2 = (part[:steps] for part in next(shared[number]))
            noise = random.standard_normal((steps, len(own)), np.float32)
            noise *= np.sqrt(1 - keep[number] ** 2)
            own_w, last[number] = lfilter(
                np.ones(1, np.float32), np.array([1, -keep[number]], np.float32), noise, axis=0, zi=last[number]
            )
            own_w *= np.sqrt(slow2).astype(np.float32)[:, None]
            if fast2.any():
                own_w += np.sqrt(fast2).astype(np.float32)[:, None] * random.standard_normal(own_w.shape, np.float32)
            own_w *= np.sqrt(count[own])
            own_w += mean.astype(np.float32)[:, None] * count[own]
            power[:, own] = np.clip(own_w, one.range_w[0] * count[own], one.range_w[1] * count[own])
        yield power
