"""The best blocks of a question about tiers, gone through in order of what they could be."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from solvers.kv_aim import Aim
from solvers.kv_place import Block
from solvers.kv_space import Candidate


def by_loss(blocks: Sequence[Candidate], limited: bool) -> Iterator[list[Candidate]]:
    """Yield blocks by format of their stored copies, the least lossy first; all at once where there are no limits.

    The least lossy that is within limits is wanted (Liu et al., CacheGen, arXiv 2310.07240): loss is no objective.
    """
    levels = list(dict.fromkeys(one[0].prefixes.level for one in blocks if one[0].prefixes is not None))
    if not limited or len(levels) < 2:
        yield list(blocks)
        return
    for level in levels:
        yield [one for one in blocks if one[0].prefixes is None or one[0].prefixes.level == level]


def search(
    blocks: Sequence[Candidate],
    aim: Aim,
    *,
    until: float | None = None,
    gap: float | None = None,
    most: int = 1,
    floor: float = -math.inf,
) -> tuple[list[Block], float | None]:
    """Return the best blocks, the best first, and the score that no other beats: None where none can be better.

    Parameters
    ----------
    blocks : sequence of Candidate
        What is searched.
    aim : Aim
        What is asked.
    until : float
        When to stop, by `time.perf_counter` [s].
    gap : float
        Relative distance from the bound at which to stop.
    most : int
        Blocks to return.
    floor : float
        Score that is reached elsewhere: blocks that cannot pass it are left out.
    """
    found: list[Block] = []
    loose = -math.inf  # what blocks that were asked may still hide
    bounds = sorted(((aim.most(*one), one) for one in blocks), key=lambda pair: -pair[0])
    for bound, one in bounds:
        best = max(floor, aim.score(found[0])) if found else floor
        if bound <= best:
            break
        if found and gap is not None and bound - best <= gap * abs(best):
            return found, max(bound, loose)
        if until is not None and time.perf_counter() > until:
            return found, max(bound, loose)
        block = aim.place(*one, floor=best if math.isfinite(best) else None)
        if block is not None:
            loose = max(loose, aim.bound(block))
            found = sorted([*found, block], key=lambda other: -aim.score(other))[:most]
    return found, loose if found and loose > aim.score(found[0]) else None
