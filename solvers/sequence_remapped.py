"""Plans in which tokens move to equal numbers for the linear layers and back for attention, layer by layer.

Only attention then waits for the slowest group; linear work is balanced whatever the groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from solvers.sequence_bounds import alone_s
from solvers.sequence_case import Case, Scatter, Schedule, makespan, step_times

REMAPPED: tuple[Schedule, ...] = ("one-shot", "barrier")
"""Schedules in which all groups compute a micro-batch at a time, so that they can meet in every layer."""

Planner = Callable[[Case, float], tuple[Scatter, float, str]]


def plan_remapped(
    case: Case, planner: Planner, plain: Scatter | None, time_limit_s: float
) -> tuple[Scatter, float, str]:
    """Plan with tokens remapped for the linear layers.

    Parameters
    ----------
    case : Case
        Sequences and their costs; with its attention part and the costs of moving.
    planner : callable
        Of a schedule in which all groups compute a micro-batch at a time.
    plain : Scatter or None
        A plan without remapping, which may be good with it.
    time_limit_s : float
        When the search ends [s].

    Returns
    -------
    plan : Scatter
        The best plan found.
    bound_s : float
        What no plan that remaps can beat [s].
    bound_name : str
        Which bound that is.

    Raises
    ------
    ValueError
        Where the planner finds no plan.

    Notes
    -----
    The planner places sequences by their attention alone; then those of each micro-batch are spread anew, so that its
    groups hold tokens as evenly as its slowest allows and less is moved. A micro-batch takes max_g (c_g + attention
    of g) + linear work / N + moves: a bound of the first, and the least linear work over N, bound the whole.
    """
    attention = attention_case(case)
    found, bound, name = planner(attention, time_limit_s)
    starts = [replace(one, remapped=True) for one in (found, plain) if one is not None]
    best = min((plan for start in starts for plan in (start, spread(case, start))), key=lambda one: makespan(case, one))
    linear = np.where(np.isfinite(alone_s(attention)), (case.work_s - attention.work_s) * case.degrees, np.inf)
    return best, bound + float(linear.min(axis=1, initial=np.inf).sum()) / case.gpus, f"{name}, attention alone"


def spread(case: Case, plan: Scatter) -> Scatter:
    """Return the plan with the sequences of every micro-batch spread evenly over its groups, none later than before.

    Longest first on the group that then holds fewest tokens an accelerator. Accelerators that are idle in the
    micro-batch become groups of the smallest size. Where a sequence finds no group the micro-batch stays as it is.
    """
    attention = attention_case(case)
    group, seconds_of = plan.group.copy(), step_times(attention, replace(plan, remapped=False))
    degree, first = plan.degree.tolist(), plan.first_gpu.tolist()
    for number in np.unique(plan.step).tolist():
        here = seconds_of[1] == number
        limit = float(seconds_of[2][here].max()) * (1 + 1e-12)
        used = seconds_of[0][here].tolist()
        extra = _idle(case, [(degree[one], first[one]) for one in used])
        sizes = np.array([*(degree[one] for one in used), *([int(case.degrees[0])] * len(extra))])
        column = np.searchsorted(case.degrees, sizes)
        seconds, held = case.fixed_s[column].copy(), np.zeros(len(sizes))
        members = np.flatnonzero(plan.step == number)
        members = members[np.argsort(-case.lengths[members], kind="stable")]
        owner = []
        for sequence, tokens in zip(members.tolist(), case.held[members].tolist(), strict=True):
            after = seconds + attention.work_s[sequence, column]
            fits = (after <= limit) & (held + tokens <= sizes * case.capacity_tokens)
            if not fits.any():
                break
            best = int(np.where(fits, (held + tokens) / sizes, np.inf).argmin())
            seconds[best], held[best] = after[best], held[best] + tokens
            owner.append(best)
        if len(owner) < len(members):
            continue
        names = np.array([*used, *range(len(degree), len(degree) + len(extra))])
        degree += [int(case.degrees[0])] * len(extra)
        first += extra
        group[members] = names[owner]
    kept, renamed = np.unique(group, return_inverse=True)
    places = np.array(degree)[kept], np.array(first)[kept]
    return replace(plan, degree=places[0], first_gpu=places[1], group=renamed)


def _idle(case: Case, taken: list[tuple[int, int]]) -> list[int]:
    """Return where groups of the smallest size lie on accelerators that others leave, each within a node."""
    size, free = int(case.degrees[0]), np.ones(case.gpus, dtype=bool)
    for degree, first in taken:
        free[first : first + degree] = False
    if (case.node_units or case.gpus) % size:
        return []
    return (np.flatnonzero(free.reshape(-1, size).all(axis=1)) * size).tolist()


def attention_case(case: Case) -> Case:
    """Return the case of the attention of all sequences by itself."""
    assert case.attention_s is not None
    return replace(case, work_s=case.attention_s, attention_s=None, remap=None)
