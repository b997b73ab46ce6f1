"""How sure the number of servers is that traces of some length allow: the same with other days of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from perfmodel.power.risk import series_load_w
from perfmodel.terms import Array
from solvers.power_case import Case

PARTS = 14
"""Parts that traces are cut into, half-days of a week."""
SAMPLES = 64
SEED = 1


def sampled_servers(case: Case) -> tuple[int, int] | None:
    """Return the P10 and P90 of the servers that the root takes by the rule of summed series.

    Parameters
    ----------
    case : Case
        The question.

    Returns
    -------
    tuple of int, or None
        None without shares, or where series are shorter than their parts.

    Notes
    -----
    A bootstrap of blocks (Kuensch 1989): parts of the traces, the same of all workloads, are drawn with replacement,
    since what happened on other days than those recorded is not known.
    """
    steps = case.profile_w.shape[1]
    if steps < 2 * PARTS or (case.share is None and len(case.workloads) > 1):
        return None
    random = np.random.default_rng(SEED)
    blocks = np.array_split(np.arange(steps), PARTS)
    found = []
    for _ in range(SAMPLES):
        drawn = np.concatenate([blocks[number] for number in random.integers(0, PARTS, PARTS)])
        found.append(_most(replace(case, profile_w=case.profile_w[:, drawn])))
    low, high = np.quantile(found, (0.1, 0.9), method="inverted_cdf")
    return int(low), int(high)


def _most(case: Case) -> int:
    low, high = 0, int(case.site.slots.sum()) * 10
    limit_w = float(case.site.limit_w[0]) * (1 + 1e-9)
    while low < high:
        middle = (low + high + 1) // 2
        counts: Array = np.array([middle]) if case.share is None else case.apportioned(middle)
        fits = float(series_load_w(counts, case.profile_w, case.risk)) <= limit_w
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
