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
from perfmodel.training import predict_step
from solvers.train_space import Space

CHUNK = 32_768
"""Plans costed at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Evaluated:
    """Step time [s], memory needed and memory offloaded [bytes] of every plan of a space, and the plans."""

    plan: Plan
    step_time_s: NDArray[np.float64]
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
    target_s: float | None = None,
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
    target_s : float
        Step time of a plan that fits at which the search may stop [s].

    Returns
    -------
    Evaluated
        Arrays over all plans; ``complete`` is False where deadline or target cut the space short.
    """
    plans: list[Plan] = []
    times: list[NDArray[np.float64]] = []
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
        needs.append(predicted.memory.reserved_peak)
        offloaded.append(predicted.memory.offloaded)
        if progress is not None:
            progress(last / len(candidates.layouts))
        if target_s is not None and last < len(candidates.layouts):
            chunk = Evaluated(plan, times[-1], needs[-1], offloaded[-1], False, False)
            if np.any(times[-1][chunk.fits(job)] <= target_s):
                complete, on_target = False, True
                break
    if not plans:
        empty = np.zeros(0)
        return Evaluated(
            Plan(**dict.fromkeys(FIELDS, np.zeros(0, dtype=np.int64))), empty, empty, empty, complete, on_target
        )
    joined = Plan(**{name: np.concatenate([getattr(plan, name) for plan in plans]) for name in FIELDS})
    return Evaluated(
        joined, np.concatenate(times), np.concatenate(needs), np.concatenate(offloaded), complete, on_target
    )


def _chunks(candidates: Space) -> Iterator[tuple[int, int]]:
    step = max(CHUNK // max(len(candidates.switches), 1), 1)
    for first in range(0, len(candidates.layouts), step):
        yield first, min(first + step, len(candidates.layouts))
