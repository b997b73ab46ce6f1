"""A cache of prompts' keys and values over tiers: what it finds, and what loading in place of computing takes.

What is computed is written through to every tier of the cache, so that a larger one holds what the smaller before it
hold. A token that is found may be loaded or computed again; where both go on at once, the one from the back and the
other from the front (Jin et al., Cake, arXiv 2410.03065), a prompt takes as long as the slower of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from perfmodel.hit_curves import HitCurve
from perfmodel.terms import Array

Line = tuple[float, float]
"""Slope over blocks and value at none."""
_CLOSE = 1e-5


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Prefixes that requests share, and how a cache of them is used.

    Parameters
    ----------
    curve : HitCurve
        What caches of every size find.
    block_tokens : int
        Tokens of a block of the trace.
    level : float
        Bytes of a stored copy over those of the cache that kernels read [1]: what is stored in a tier may be smaller
        than what is kept with the accelerators (Liu et al., CacheGen, arXiv 2310.07240).
    anywhere : bool
        Whether a block is used again wherever it stands, or only after found ones.
    recomputed : float
        Share of the found tokens that is computed all the same (Cache-Craft, KVShare) [1].
    overlapped : bool
        Whether loading and computing go on at once; else a prompt waits for what it loads.
    """

    curve: HitCurve
    block_tokens: int
    level: float = 1.0
    anywhere: bool = False
    recomputed: float = 0.0
    overlapped: bool = True

    def found(self, blocks: float) -> Array:
        """Return the share of all tokens that a cache finds in each part of prompts, shape (DEPTHS,) [1]."""
        return self.curve.hit_token_ratios(blocks, anywhere=self.anywhere)

    def variance(self, blocks: float) -> float:
        """Return the variance over requests of the share of their tokens that a cache finds, as prefixes [1]."""
        return self.curve.hit_variance(blocks)

    def lines(self, depth: int, low: float, high: float) -> tuple[Line, ...]:
        """Return lines whose least is nowhere below what caches from `low` to `high` blocks find in a part."""
        top = min(int(high), self.curve.distinct)
        return _lines(self.curve, self.anywhere, depth, min(int(low), top), top)


@lru_cache(maxsize=4096)
def _lines(curve: HitCurve, anywhere: bool, depth: int, low: int, high: int) -> tuple[Line, ...]:
    """Return the edges of the upper concave hull that tell it to `_CLOSE`, and the largest value."""
    blocks = np.arange(low, high + 1, dtype=float)
    found = curve.hit_token_ratios(blocks, anywhere=anywhere)[depth]
    blocks, found = _hull(blocks, found)
    flat = (0.0, float(found[-1]))
    if len(blocks) < 2:
        return (flat,)
    slopes = np.diff(found) / np.diff(blocks)
    edges = [(float(slope), float(value - slope * at)) for slope, value, at in zip(slopes, found, blocks, strict=False)]
    kept = {0, len(edges) - 1}
    waiting = [(0, len(edges) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        (a, p), (b, q) = edges[first], edges[last]
        meet = (q - p) / (a - b) if a > b else blocks[first]
        if a * meet + p - float(np.interp(meet, blocks, found)) > _CLOSE:
            middle = (first + last) // 2
            kept.add(middle)
            waiting += [(first, middle), (middle, last)]
    return (*(edges[number] for number in sorted(kept)), flat)


def _hull(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the upper concave hull of points in order: those not above the line of their neighbours go, repeatedly."""
    while len(x) > 2:
        slope = np.diff(y) / np.diff(x)
        below = slope[1:] >= slope[:-1]
        if not below.any():
            break
        keep = np.concatenate([[True], ~below, [True]])
        x, y = x[keep], y[keep]
    return x, y
