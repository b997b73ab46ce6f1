"""Why no placement over tiers does, and the smallest change that would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from solvers.kv_aim import Aim, shortest, soonest
from solvers.kv_place import missing_bytes, place
from solvers.kv_space import Candidate

NAMES = {"prefill": "slo.ttft_mean", "decode": "slo.tpot_mean"}
_RATE_ROUNDS = 14


def lacking(small: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Return tiers that are too small as changes: now and needed [bytes]."""
    return [
        {"constraint": f"capacity[{name}]", "now": room, "needed": used, "unit": "bytes"}
        for name, (room, used) in small.items()
    ]


def reasons(blocks: list[Candidate], aim: Aim) -> tuple[str, int, list[dict[str, Any]]]:
    """Return why none of the blocks does, how many fit all the same, and the smallest changes.

    Parameters
    ----------
    blocks : list of Candidate
        What was searched.
    aim : Aim
        What was asked.

    Returns
    -------
    tuple
        The reason; blocks that it is about; changes, of which each alone would do unless the reason says otherwise.
    """
    fitting = [one for one in blocks if place(*one) is not None]
    if fitting:
        return "no block that fits is within the limits", len(fitting), list(_longer_limits(fitting, aim))
    asked = min((one[0] for one in blocks), key=lambda one: one.sequences)
    missing = missing_bytes(asked)
    if missing:
        return f"the smallest block does not fit: {' and '.join(missing)} too small", 1, lacking(missing)
    assert asked.rate is not None
    now, most = (rate * asked.nodes for rate in (asked.rate, _most_requests(blocks)))
    change = {"constraint": "workload.arrivals.rate_rps", "now": now, "needed": most, "unit": "1/s"}
    return "requests come faster than any block answers them", len(blocks), [change]


def _most_requests(blocks: list[Candidate]) -> float:
    """Return the highest rate of requests to a node that some block answers [1/s]."""
    low, high = 0.0, blocks[0][0].rate or 0.0
    left = blocks
    for _ in range(_RATE_ROUNDS):
        rate = (low + high) / 2
        able = [one for one in left if place(replace(one[0], rate=rate, prefixes=None), one[1]) is not None]
        if able:
            low, left = rate, able
        else:
            high = rate
    return low


def _longer_limits(fitting: list[Candidate], aim: Aim) -> Iterator[dict[str, Any]]:
    """Yield for each limit the shortest that can be met within the others; where none can, all of the nearest block."""
    alone = []
    for phase, limit in aim.limits.items():
        found = []
        for asked, kernels in fitting:
            others = {name: most for name, most in aim.limits_of(asked).items() if name != phase}
            least = shortest if asked.rate is None else soonest
            found.append(least(asked, kernels, phase, others))
        times = [block.latency_s[phase] for block in found if block is not None]
        if times:
            alone.append({"constraint": NAMES[phase], "now": limit, "needed": min(times), "unit": "s"})
    if aim.least_tokens_per_s is not None:
        placed = [place(*one, limits=aim.limits) for one in fitting]
        rates = [block.tokens_per_s for block in placed if block is not None]
        if rates:
            now = aim.least_tokens_per_s
            alone.append({"constraint": "slo.tokens_per_s", "now": now, "needed": max(rates), "unit": "1/s"})
    if alone:
        yield from alone
        return
    weights = {phase: 1.0 / aim.limits.get(phase, 1e9) for phase in NAMES}
    blocks = [block for block in (place(*one, weights=weights) for one in fitting) if block is not None]
    nearest = min(blocks, key=lambda block: sum(weights[phase] * block.latency_s[phase] for phase in aim.limits))
    for phase, limit in aim.limits.items():
        yield {"constraint": NAMES[phase], "now": limit, "needed": nearest.latency_s[phase], "unit": "s"}
    if aim.least_tokens_per_s is not None:
        now = aim.least_tokens_per_s
        yield {"constraint": "slo.tokens_per_s", "now": now, "needed": nearest.tokens_per_s, "unit": "1/s"}
