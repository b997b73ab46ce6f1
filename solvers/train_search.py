"""Costing every plan of a space, chunk by chunk, through the equations that explain one plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.job import Job
from perfmodel.memory import available_bytes, host_bytes
from perfmodel.plan import FIELDS, Plan
from perfmodel.power.training import training_power
from perfmodel.training import predict_step
from solvers.train_space import Space

CHUNK = 32_768
"""Plans costed at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Evaluated:
    """Step time [s], what is minimised, memory needed and offloaded [bytes] of every plan of a space, and the plans."""

    plan: Plan
    step_time_s: NDArray[np.float64]
    score: NDArray[np.float64]
    required_bytes: NDArray[np.float64]
    offloaded_bytes: NDArray[np.float64]
    complete: bool
    on_target: bool

    def fits(self, job: Job) -> NDArray[np.bool_]:
        """Whether each plan fits the accelerators' memory and the hosts'."""
        return (self.required_bytes <= available_bytes(job)) & (self.offloaded_bytes <= host_bytes(job))


def evaluate(
    job: Job,
    candidates: Space,
    progress: Callable[[float], None] | None = None,
    deadline: float | None = None,
    target: float | None = None,
    *,
    by_energy: bool = False,
) -> Evaluated:
    """Cost every plan of a space.

    Parameters
    ----------
    job : Job
        The job.
    candidates : Space
        Layouts and switches.
    progress : callable
        Called with the share done.
    deadline : float
        ``time.perf_counter()`` value [s] after which no further chunk is begun.
    target : float
        Score of a plan that fits at which the search may stop.
    by_energy : bool
        Score by the energy of a step [J] instead of its time [s].

    Returns
    -------
    Evaluated
        Arrays over all plans; ``complete`` is False where deadline or target cut the space short.
    """
    plans: list[Plan] = []
    times: list[NDArray[np.float64]] = []
    scores: list[NDArray[np.float64]] = []
    needs: list[NDArray[np.float64]] = []
    offloaded: list[NDArray[np.float64]] = []
    complete, on_target = True, False
    for first, last in _chunks(candidates):
        if deadline is not None and time.perf_counter() > deadline:
            complete = False
            break
        plan = candidates.plans(first, last, job)
        if not len(plan):
            continue
        predicted = predict_step(job, plan, explain=False)
        plans.append(plan)
        times.append(np.asarray(predicted.step.seconds))
        scores.append(training_power(job, plan, predicted).all_w * times[-1] if by_energy else times[-1])
        needs.append(predicted.memory.reserved_peak)
        offloaded.append(predicted.memory.offloaded)
        if progress is not None:
            progress(last / len(candidates.layouts))
        if target is not None and last < len(candidates.layouts):
            chunk = Evaluated(plan, times[-1], scores[-1], needs[-1], offloaded[-1], False, False)
            if np.any(scores[-1][chunk.fits(job)] <= target):
                complete, on_target = False, True
                break
    if not plans:
        empty = np.zeros(0)
        return Evaluated(
            Plan(**dict.fromkeys(FIELDS, np.zeros(0, dtype=np.int64))), empty, empty, empty, empty, complete, on_target
        )
    joined = Plan(**{name: np.concatenate([getattr(plan, name) for plan in plans]) for name in FIELDS})
    return Evaluated(
        joined,
        np.concatenate(times),
        np.concatenate(scores),
        np.concatenate(needs),
        np.concatenate(offloaded),
        complete,
        on_target,
    )


def _chunks(candidates: Space) -> Iterator[tuple[int, int]]:
    step = max(CHUNK // max(len(candidates.switches), 1), 1)
    for first in range(0, len(candidates.layouts), step):
        yield first, min(first + step, len(candidates.layouts))
