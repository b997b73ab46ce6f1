"""How much of prompts a cache of any size finds: exact replay of a trace, and Che's approximation.

A cache of C blocks that evicts the least recently used one holds the C blocks used last. A block is found if fewer than
C others were used since: its stack distance (Mattson et al., IBM Systems Journal 9(2), 1970), which one pass tells for
all sizes at once. Of a prompt, a block counts only while all blocks before it are found, since its keys and values
depend on them: what matters is the largest distance so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.request_traces import BlockAccesses
from perfmodel.requests import Array, Integers

BATCH = 2**18
"""Accesses counted at once, so that the tables of a batch stay in a processor's cache."""
_PER_OCTAVE = 128
"""Bins of the times between uses of a block, for each doubling."""
DEPTHS = 4
"""Parts of a prompt, of one length, in which found tokens are told apart: those further back cost more to compute."""


@dataclass(frozen=True, eq=False)
class HitCurve:
    """What caches of every size find of a trace.

    Parameters
    ----------
    requests, accesses, tokens : int
        Prompts, their blocks and their tokens.
    distinct : int
        Blocks that differ.
    prefix_hits, any_hits : array of int, shape (distinct + 1,)
        Blocks found by a cache of as many blocks as the index: those after found ones only, or all.
    prefix_hit_tokens_by_depth, any_hit_tokens_by_depth : array, shape (DEPTHS, distinct + 1)
        Tokens of both, by the part of the prompt that they are in.
    prefix_hit_shares, prefix_hit_squares : array, shape (distinct + 1,)
        Sums over requests of the share of their tokens in blocks found after found ones, and of its square.
    reuse_bins : array, shape (bins,)
        Uses of a block again by the number of accesses since its last, on a scale of `_PER_OCTAVE` bins an octave.
    first_uses, last_uses : array, shape (bins,)
        First and last uses of blocks by the number of accesses before and after them, on the same scale.
    """

    requests: int
    accesses: int
    tokens: int
    distinct: int
    prefix_hits: Integers
    any_hits: Integers
    prefix_hit_tokens_by_depth: Array
    any_hit_tokens_by_depth: Array
    prefix_hit_shares: Array
    prefix_hit_squares: Array
    reuse_bins: Array
    first_uses: Array
    last_uses: Array

    def prefix_hit_block_ratio(self, capacity_blocks: ArrayLike) -> Array:
        """Return the share of blocks found after found ones in a cache of so many blocks [1]."""
        return np.asarray(self.prefix_hits[self._place(capacity_blocks)] / self.accesses)

    def any_hit_block_ratio(self, capacity_blocks: ArrayLike) -> Array:
        """Return the share of blocks found wherever they stand [1]."""
        return np.asarray(self.any_hits[self._place(capacity_blocks)] / self.accesses)

    def prefix_hit_token_ratio(self, capacity_blocks: ArrayLike) -> Array:
        """Return the share of prompt tokens in blocks found after found ones [1]."""
        return np.asarray(self.prefix_hit_tokens_by_depth[:, self._place(capacity_blocks)].sum(axis=0) / self.tokens)

    def hit_token_ratios(self, capacity_blocks: ArrayLike, *, anywhere: bool = False) -> Array:
        """Return the share of all prompt tokens that are found in each part of prompts [1].

        Parameters
        ----------
        capacity_blocks : array
            Sizes of the cache.
        anywhere : bool
            Whether blocks count wherever they stand, or only after found ones.

        Returns
        -------
        array, shape (DEPTHS, *sizes)
            Shares, which add up to that of a cache that finds everything.
        """
        found = self.any_hit_tokens_by_depth if anywhere else self.prefix_hit_tokens_by_depth
        return np.asarray(found[:, self._place(capacity_blocks)] / self.tokens)

    def hit_variance(self, capacity_blocks: float) -> float:
        """Return the variance over requests of the share of their tokens found after found ones [1]."""
        place = self._place(capacity_blocks)
        mean = float(self.prefix_hit_shares[place]) / self.requests
        return max(float(self.prefix_hit_squares[place]) / self.requests - mean * mean, 0.0)

    def _place(self, capacity_blocks: ArrayLike) -> Integers:
        return np.asarray(np.clip(np.floor(np.asarray(capacity_blocks, float)), 0, self.distinct), np.int64)


def replay(trace: Iterable[BlockAccesses], block_tokens: int) -> HitCurve:
    """Replay a trace through caches of every size at once.

    Parameters
    ----------
    trace : iterable of BlockAccesses
        Requests in order of arrival, some at a time.
    block_tokens : int
        Tokens of a block; the last one of a prompt holds what is left.

    Returns
    -------
    HitCurve
        Exact counts. All blocks of a prompt are looked up before any of them is used, then used in order.

    Notes
    -----
    The distance of access t, last used at p, looked up at T: the accesses in [p, T) less those of them that are used
    again before T. Within a batch both are counts of points in a quadrant, found for all accesses at once by a wavelet
    matrix (Claude, Navarro, Ordonez, Information Systems 47, 2015); before it, a rank among all last uses.
    Memory grows with the distinct blocks alone, time as n log(batch) + batches x distinct blocks.
    """
    seen = _LastUses()
    requests = tokens = 0
    prefix, anywhere = _Histogram(), _Histogram()
    prefix_tokens, any_tokens = ([_Histogram() for _ in range(DEPTHS)] for _ in range(2))
    shares, squares = _Histogram(), _Histogram()
    reuse, first = _Histogram(), _Histogram()
    for piece in trace:
        requests += len(piece.prompt_tokens)
        tokens += int(piece.prompt_tokens.sum())
        for low, high in _batches(piece.starts):
            starts = piece.starts[low : high + 1]
            blocks = piece.blocks[starts[0] : starts[-1]]
            counts = np.diff(starts)
            begins = np.repeat(starts[:-1] - starts[0], counts)
            before = seen.accesses
            last, rank = seen.use(blocks)
            distance = _distances(last, rank, begins, before)
            worst = _largest_so_far(distance, begins)
            place = np.arange(len(blocks)) - begins
            length = np.repeat(piece.prompt_tokens[low:high], counts)
            held = np.clip(length - place * block_tokens, 0, block_tokens)
            depth = np.minimum(DEPTHS * (place * block_tokens + held / 2) / length, DEPTHS - 1).astype(np.int64)
            prefix.add(worst[worst > 0])
            anywhere.add(distance[distance > 0])
            # found blocks follow found ones: with those before it a block adds h^2 + 2 h (tokens before) to the square
            after = worst > 0
            share, before_it = held[after] / length[after], (place[after] * block_tokens) / length[after]
            shares.add(worst[after], share)
            squares.add(worst[after], share * (share + 2 * before_it))
            for part in range(DEPTHS):
                here = depth == part
                for found, least in ((prefix_tokens, worst), (any_tokens, distance)):
                    hit = here & (least > 0)
                    found[part].add(least[hit], held[hit])
            now = before + np.arange(len(blocks))
            reuse.add(_bin(now - last)[last >= 0])
            first.add(_bin(now + 1)[last < 0])
    distinct = seen.distinct
    ends = _Histogram()
    ends.add(_bin(seen.accesses - seen.positions))
    width = int(_bin(np.array([max(seen.accesses, 1)]))[0]) + 1
    return HitCurve(
        requests,
        seen.accesses,
        tokens,
        distinct,
        prefix.cumulated(distinct + 1).astype(np.int64),
        anywhere.cumulated(distinct + 1).astype(np.int64),
        np.array([part.cumulated(distinct + 1) for part in prefix_tokens]),
        np.array([part.cumulated(distinct + 1) for part in any_tokens]),
        shares.cumulated(distinct + 1),
        squares.cumulated(distinct + 1),
        reuse.counts(width),
        first.counts(width),
        ends.counts(width),
    )


def stated(hit_ratio: float, blocks: int, block_tokens: int) -> HitCurve:
    """Return the curve of a stated hit ratio, reached by a cache of so many blocks that are asked for alike.

    A smaller cache finds in proportion; prompts are found whole or not at all; times between uses are not known.

    Parameters
    ----------
    hit_ratio : float
        Share of prompt tokens that a cache of all blocks finds [1].
    blocks, block_tokens : int
        Blocks that are asked for again, and tokens of each.
    """
    scale = 1000  # accesses of each block, so that their counts are as fine
    accesses = blocks * scale
    share = np.arange(blocks + 1) / blocks
    hits = np.round(hit_ratio * accesses * share).astype(np.int64)
    tokens = np.tile(hit_ratio * accesses * block_tokens * share / DEPTHS, (DEPTHS, 1))
    none, all_of = np.zeros(0), hit_ratio * accesses * share
    tokens_in = accesses * block_tokens
    return HitCurve(accesses, accesses, tokens_in, blocks, hits, hits, tokens, tokens, all_of, all_of, none, none, none)


def che_hit_ratio(rates: ArrayLike, capacity_blocks: float) -> float:
    """Return the hit ratio of an LRU cache whose blocks are asked independently, each at its rate.

    Parameters
    ----------
    rates : array, shape (blocks,)
        How often each block is asked [any unit].
    capacity_blocks : float
        Size of the cache.

    Returns
    -------
    float
        Hit ratio [1]: sum_i rate_i h_i / sum_i rate_i with h_i = 1 - exp(-rate_i T) and the T for which sum_i h_i is
        the capacity (Che, Tung, Wang, IEEE JSAC 20(7), 2002, equations 4 and 6).
    """
    from scipy.optimize import brentq

    asked = np.asarray(rates, float)
    asked = asked[asked > 0] / np.sum(rates)
    if capacity_blocks >= len(asked):
        return 1.0
    if capacity_blocks <= 0:
        return 0.0
    high = 1.0
    while -np.expm1(-asked * high).sum() < capacity_blocks:
        high *= 2.0
    time = brentq(lambda t: float(-np.expm1(-asked * t).sum()) - capacity_blocks, 0.0, high)
    return float(asked @ -np.expm1(-asked * time))


def characteristic_time_hit_ratio(curve: HitCurve, capacity_blocks: ArrayLike) -> Array:
    """Return hit ratios by Che's characteristic time with the times between uses that a trace has.

    Parameters
    ----------
    curve : HitCurve
        The trace; only its times between uses are looked at.
    capacity_blocks : array, shape (sizes,)
        Sizes of the cache.

    Returns
    -------
    array, shape (sizes,)
        Share of accesses that find their block [1].

    Notes
    -----
    Che's cache keeps a block for a time T after its last use, T such that as many blocks are kept as there is room for.
    In place of independent requests at constant rates, whose times between uses are exponential, it takes the trace's
    own: the mean number of distinct blocks in a window of w accesses is the footprint (Xiang et al., ASPLOS 2013,
    equation 4), D - sum_g (g - w)+ / (n - w + 1) over the times g before first, between, and after last uses, and T is
    the w at which it is the capacity. Sessions that come and go, which a constant rate cannot show, are in it.
    """
    width = len(curve.reuse_bins)
    gaps = curve.reuse_bins + curve.first_uses + curve.last_uses
    size = _bin_size(np.arange(width))
    # sum over gaps longer than each bin of (gap - w), from the longest
    longer = np.cumsum(gaps[::-1])[::-1]
    weight = np.cumsum((gaps * size)[::-1])[::-1]
    windows = np.minimum(size, curve.accesses)
    footprint = curve.distinct - (weight - longer * windows) / (curve.accesses - windows + 1)
    hits = np.cumsum(curve.reuse_bins) / curve.accesses
    footprint = np.maximum.accumulate(np.clip(footprint, 0.0, curve.distinct))
    return np.asarray(np.interp(np.asarray(capacity_blocks, float), footprint, hits))


class _Histogram:
    """Weights by whole number, as long as the largest one."""

    def __init__(self) -> None:
        self._sums = np.zeros(1)

    def add(self, places: Integers, weights: NDArray[np.generic] | None = None) -> None:
        if not len(places):
            return
        more = np.bincount(places, weights)
        if len(more) > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros(len(more) - len(self._sums))])
        self._sums[: len(more)] += more

    def counts(self, length: int) -> Array:
        return np.concatenate([self._sums, np.zeros(max(0, length - len(self._sums)))])[:length]

    def cumulated(self, length: int) -> Array:
        return np.cumsum(self.counts(length))


class _LastUses:
    """When each block was used last, in order of the blocks and of time."""

    def __init__(self) -> None:
        self.accesses = 0
        self._known = np.zeros(0, np.int64)
        self._last = np.zeros(0, np.int64)
        self.positions = np.zeros(0, np.int64)

    @property
    def distinct(self) -> int:
        return len(self._known)

    def use(self, blocks: Integers) -> tuple[Integers, Integers]:
        """Return when each block was used before (-1: never), and how many blocks since then up to this batch."""
        order = np.argsort(blocks, kind="stable")
        ranked = blocks[order]
        new = np.ones(len(blocks), bool)
        new[1:] = ranked[1:] != ranked[:-1]
        firsts = np.flatnonzero(new)
        unique = ranked[firsts]
        ends = np.append(firsts[1:], len(blocks)) - 1
        place = np.searchsorted(self._known, unique)
        bounded = np.minimum(place, max(len(self._known) - 1, 0))
        known = self._known[bounded] == unique if len(self._known) else np.zeros(len(unique), bool)
        last_sorted = np.empty(len(blocks), np.int64)
        last_sorted[1:] = order[:-1] + self.accesses
        last_sorted[firsts] = -1
        last_sorted[firsts[known]] = self._last[place[known]]
        last = np.empty(len(blocks), np.int64)
        last[order] = last_sorted
        rank = np.zeros(len(blocks), np.int64)
        before = (last >= 0) & (last < self.accesses)
        rank[before] = len(self.positions) - np.searchsorted(self.positions, last[before])
        used = order[ends] + self.accesses
        gone = np.searchsorted(self.positions, self._last[place[known]])
        self.positions = np.concatenate([np.delete(self.positions, gone), np.sort(used)])
        self._last[place[known]] = used[known]
        self._known = np.insert(self._known, place[~known], unique[~known])
        self._last = np.insert(self._last, place[~known], used[~known])
        self.accesses += len(blocks)
        return last, rank


def _batches(starts: Integers) -> Iterable[tuple[int, int]]:
    """Yield runs of whole requests of about `BATCH` accesses."""
    low = 0
    while low < len(starts) - 1:
        high = int(np.searchsorted(starts, starts[low] + BATCH, "right")) - 1
        high = min(max(high, low + 1), len(starts) - 1)
        yield low, high
        low = high


def _distances(last: Integers, rank: Integers, begins: Integers, before: int) -> Integers:
    """Return stack distances at the start of each access's request, from 1; 0 for what was not used before.

    Parameters
    ----------
    last, rank : array of int, shape (accesses,)
        As of `_LastUses.use`.
    begins : array of int, shape (accesses,)
        Where in the batch the access's request begins.
    before : int
        Accesses before the batch.
    """
    place = np.searchsorted(np.sort(last), last)  # ranks of the last uses; equal ones, -1, alike
    again = _at_least(place, begins, place)
    inside = begins - np.maximum(last - before, 0)
    distance = rank + inside - again
    # a block that stands twice in one prompt was not used between: what counts is its use before the prompt
    twice = last - before >= begins
    if twice.any():
        for here in np.flatnonzero(twice):
            distance[here] = distance[last[here] - before]
    return np.where(last >= 0, distance, 0)


def _at_least(values: Integers, ends: Integers, least: Integers) -> Integers:
    """Count, for each query, the values among the first `ends` that are `least` or more, by a wavelet matrix."""
    found = np.zeros(len(ends), np.int64)
    low, high = np.zeros(len(ends), np.int64), ends.astype(np.int64)
    row = values
    for bit in reversed(range(max(1, len(values).bit_length()))):
        ones = (row >> bit) & 1
        zeros_before = np.concatenate([[0], np.cumsum(1 - ones)])
        low_zeros, high_zeros = zeros_before[low], zeros_before[high]
        up = ((least >> bit) & 1).astype(bool)
        found += np.where(up, 0, (high - high_zeros) - (low - low_zeros))
        low = np.where(up, zeros_before[-1] + low - low_zeros, low_zeros)
        high = np.where(up, zeros_before[-1] + high - high_zeros, high_zeros)
        row = np.concatenate([row[ones == 0], row[ones == 1]])
    return found + high - low


def _largest_so_far(distance: Integers, begins: Integers) -> Integers:
    """Return the largest distance of each request so far; 0 from the first block on that was not used before."""
    far = np.int64(2**40)
    number = np.cumsum(np.concatenate([[0], np.diff(begins) != 0]))
    lifted = np.where(distance > 0, distance, far - 1) + number * far
    largest = np.maximum.accumulate(lifted) - number * far
    return np.where(largest == far - 1, 0, largest)


def _bin(gap: Integers) -> Integers:
    """Return the bin of each number of accesses: exact below `_PER_OCTAVE`."""
    value = np.maximum(gap, 1).astype(float)
    return np.where(value < _PER_OCTAVE, value, np.round(_PER_OCTAVE * (1 + np.log2(value / _PER_OCTAVE)))).astype(
        np.int64
    )


def _bin_size(number: Integers) -> Array:
    """Return the number of accesses that a bin stands for."""
    low = np.maximum(number, 0).astype(float)
    return np.where(low < _PER_OCTAVE, low, _PER_OCTAVE * 2.0 ** (low / _PER_OCTAVE - 1))
