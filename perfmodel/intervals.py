"""Intervals of predictions, from residuals of measured kernels and of steps that took no part in the fit.

A step is a sum of terms, some of them maxima of others. To first order its logarithmic error is the sum of the errors
of its parts, each weighted by the share of the step that the part takes; of a maximum the branch that counts has its
share and the other none (the delta method: the derivative of a sum or maximum at the predicted point). Where the other
branch may overtake, communication predicted to hide has a spread of its own.

Kernels of one class share parameters, so their errors are common to the class: within a step they add up, not in
quadrature. A class has the spread of its kernels measured alone, times a factor that says how much of it survives in a
step: below one where errors of many shapes cancel, above where a step runs what no kernel measurement shows (a backward
pass). Parameters of another family or form add their widening, of which nothing cancels. Classes are independent of
each other, and one error is common to the whole step. Factors and the other spreads are fitted on measured runs that
were predicted with their source left out.
"""

from __future__ import annotations

import numpy as np

from perfmodel.calibration import training_calibration
from perfmodel.job import Job
from perfmodel.kernels.model import Z90
from perfmodel.operators import wide
from perfmodel.terms import Array, Number, Term

KERNEL_PARTS: dict[str, tuple[str, ...]] = {
    "products": ("projections", "logits and loss"),
    "attention": ("attention core",),
    "experts": ("experts",),
    "memory": ("norms and activations", "quantisation", "embedding", "optimizer"),
}
"""Classes of kernels, and the leaves of the step that belong to them."""

OTHER_PARTS: dict[str, tuple[str, ...]] = {
    "expert_traffic": ("expert all-to-all",),
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
"""Parts that are not kernels."""

PARTS = KERNEL_PARTS | OTHER_PARTS

SPREADS = (*PARTS, "hidden", "common")
"""What is fitted: factors on the spread of classes of kernels, spreads of the other parts, of communication predicted
to hide, and of all."""


def kernel_of(job: Job, leaf: str) -> str:
    """Return the kernel whose spread a leaf of the step has."""
    if leaf in ("projections", "experts"):
        return f"gemm.{job.form.variant}"
    if leaf == "logits and loss" or (leaf == "attention core" and job.framework.attention != "flash"):
        return f"gemm.{wide(job.form).variant}"
    prefix = "prefill." if leaf == "attention core" else "memory.stream"
    found = [name for name in job.kernels if name.startswith(prefix)]
    return max(found, key=lambda name: job.kernels[name].parameters.spread)


def part_seconds(step: Term) -> dict[str, Number]:
    """Return the seconds of every leaf of a step by name, and of communication hidden behind them as ``hidden``."""
    found: dict[str, Number] = {"hidden": 0.0}

    def walk(term: Term) -> None:
        if not term.children:
            found[term.name] = found.get(term.name, 0.0) + term.seconds
            found["hidden"] = found["hidden"] + term.hidden_seconds
        for child in term.children:
            walk(child)

    walk(step)
    return found


def shares(job: Job, step: Term) -> dict[str, Array]:
    """Return what every spread counts for in a step.

    Parameters
    ----------
    job : Job
        The job.
    step : Term
        The whole tree of a step.

    Returns
    -------
    dict of str to array
        For every name of `SPREADS` its part's share of the step, of a class of kernels times the spread of its kernels;
        and under ``widening`` the standard deviation that parameters of other families and forms add.
    """
    seconds = part_seconds(step)
    found: dict[str, Number] = {}
    widened: Number = 0.0
    for part, leaves in PARTS.items():
        weighted: Number = 0.0
        wider: Number = 0.0
        for leaf in leaves:
            share = seconds.get(leaf, 0.0) / step.seconds
            if part in KERNEL_PARTS and np.any(share):
                kernel = job.kernels[kernel_of(job, leaf)]
                weighted = weighted + share * (kernel.parameters.spread**2 - kernel.widening**2) ** 0.5
                wider = wider + share * kernel.widening
            elif part not in KERNEL_PARTS:
                weighted = weighted + share
        found[part] = weighted
        widened = widened + wider**2
    found["hidden"] = seconds["hidden"] / step.seconds
    found["common"] = 1.0
    found["widening"] = widened**0.5
    return {name: np.asarray(value) for name, value in found.items()}


def spread(job: Job, step: Term, spreads: dict[str, float] | None = None) -> Array:
    """Return the standard deviation of ln(measured/predicted) of a step.

    Notes
    -----
    sqrt(sum over parts (share x spread)^2 + widening^2), see the head of the module.
    """
    known = dict(training_calibration()["spreads"]) if spreads is None else dict(spreads)
    if spreads is None and job.framework.host_spread is not None:
        known["host"] = job.framework.host_spread
    return combined(shares(job, step), known)


def combined(found: dict[str, Array], spreads: dict[str, float]) -> Array:
    """Return the standard deviation that shares and spreads make, see `spread`."""
    variance: Number = sum((found[name] * spreads[name]) ** 2 for name in SPREADS)
    return np.asarray(np.sqrt(variance + found["widening"] ** 2))


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
