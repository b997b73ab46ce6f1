"""Intervals of predictions, from residuals of measurements that took no part in the fit.

A step's logarithmic error is taken as the sum of independent errors of its parts: products, attention, experts, memory
traffic, communication, host, each with a relative spread of its own, weighted by its share of the step, and one
common to the whole. The spreads are fitted on measured runs that were predicted with their source left out.
"""

from __future__ import annotations

import numpy as np

from hardware.catalogue import find
from perfmodel.calibration import training_calibration
from perfmodel.job import PRECISIONS, Job
from perfmodel.terms import Array, Number, Term

Z90 = 1.2815515594600038
"""The normal distribution's 90th percentile in standard deviations."""

PARTS: dict[str, tuple[str, ...]] = {
    "products": ("projections", "logits and loss"),
    "attention": ("attention core",),
    "experts": ("experts", "expert all-to-all"),
    "memory": ("norms and activations", "quantisation", "embedding", "optimizer"),
    "communication": (
        "tensor-parallel communication",
        "context-parallel communication",
        "pipeline sends",
        "gradient traffic",
        "weight traffic",
        "slowdown under overlap",
    ),
    "host": ("kernel launches by the host", "host work per step"),
    "bubble": ("pipeline bubble",),
}
"""Parts whose errors are taken as independent, and the leaves of the step that belong to them."""

SPREADS = (*PARTS, "hidden", "narrow", "common")
"""Spreads fitted: of the parts, of communication predicted to hide, of products narrower than 16 bits, of all."""


def shares(job: Job, step: Term) -> dict[str, Array]:
    """Return the share of the step of every part, and of the communication hidden behind it.

    Parameters
    ----------
    job : Job
        The job.
    step : Term
        The whole tree of a step.
    """
    part_of = {leaf: part for part, leaves in PARTS.items() for leaf in leaves}
    found: dict[str, Number] = dict.fromkeys(SPREADS, 0.0)

    def walk(term: Term) -> None:
        if not term.children:
            part = part_of[term.name]
            found[part] = found[part] + term.seconds
            found["hidden"] = found["hidden"] + term.hidden_seconds
        for child in term.children:
            walk(child)

    walk(step)
    found["narrow"] = found["products"] + found["experts"] if PRECISIONS[job.precision][1] < 2 else 0.0
    found["common"] = step.seconds
    return {name: np.asarray(value / step.seconds) for name, value in found.items()}


def spread(job: Job, step: Term, spreads: dict[str, float] | None = None) -> Array:
    """Return the standard deviation of ln(measured/predicted) of a step.

    Notes
    -----
    sqrt(sum over parts (share x spread)^2). Compute on a family of accelerators without measured kernels has the
    family's ``widen`` added in quadrature.
    """
    known = dict(training_calibration()["spreads"]) if spreads is None else dict(spreads)
    if spreads is None and job.framework.host_spread is not None:
        known["host"] = job.framework.host_spread
    found = shares(job, step)
    variance: Number = sum((found[name] * known[name]) ** 2 for name in SPREADS)
    unmeasured = sum(find("efficiency", family).widen ** 2 for family in job.families[:-1])  # the last is measured
    compute = found["products"] + found["attention"] + found["experts"] + found["memory"]
    return np.asarray(np.sqrt(variance + unmeasured * compute**2))


def step_interval(job: Job, step: Term) -> tuple[Array, Array]:
    """Return P10 and P90 of a step's time over its prediction, as a log-normal around it."""
    deviation = Z90 * spread(job, step)
    return np.exp(-deviation), np.exp(deviation)


def gain_interval() -> tuple[float, float]:
    """Return P10 and P90 of the measured over the predicted ratio of two plans' step times.

    Notes
    -----
    The spread is that of ratios of two measured runs of one model in one source: what both predictions miss alike
    cancels.
    """
    deviation = Z90 * float(training_calibration()["gain_spread"])
    return float(np.exp(-deviation)), float(np.exp(deviation))
