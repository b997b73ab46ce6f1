"""A cache of prefixes in the problem of a block: how much of which tier, and what is loaded from where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware.tiers import HBM
from perfmodel.hit_curves import DEPTHS
from perfmodel.offload import Offload, Share, evaluated, memory_rows, prefix_blocks
from perfmodel.terms import Array

if TYPE_CHECKING:
    from solvers.kv_place import Block

_CLOSE = 5e-5
_MOST_PROBLEMS = 24
_EMPTY = 1e-6
_SAME = 1e-6


@dataclass(frozen=True)
class Cache:
    """Bounds of a cache of prefixes in a problem.

    Parameters
    ----------
    sizes : mapping of str to tuple
        By tier, the least and the largest share of it.
    found : mapping of str to array, shape (DEPTHS,)
        By tier, the share of all tokens that it and those before it find, where sizes are settled.
    """

    sizes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    found: Mapping[str, Array] = field(default_factory=dict)


def tiers_of(asked: Offload) -> list[str]:
    """Return the tiers from the fastest to the slowest, in which order they are looked through."""
    rate = {path.name: min(domain.node_up for domain in path.domains) for path in asked.paths}
    return [HBM, *sorted(rate, key=lambda name: -rate[name])]


def add_cache(problem: Any, share: Mapping[Share, Any], asked: Offload, cache: Cache) -> None:
    """Add what ties what is loaded to the sizes of a cache.

    Parameters
    ----------
    problem : pulp.LpProblem
        Of the block; changed.
    share : mapping of Share to pulp.LpVariable
        Its shares.
    asked : Offload
        The question.
    cache : Cache
        Bounds.
    """
    import pulp

    assert asked.prefixes is not None
    rooms = {name: room for name, (room, _) in memory_rows(asked).items()}
    loaded = pulp.lpSum(variable for key, variable in share.items() if key[0] == "found")
    order = tiers_of(asked)
    for place, tier in enumerate(order):
        size = share["cache", tier, ""]
        low, high = cache.sizes.get(tier, (0.0, 1.0))
        whole = prefix_blocks(asked, tier, rooms[tier])
        here: Any = 1.0
        if tier in cache.found:
            here = 1.0 if high > _EMPTY else 0.0
            problem += size == high
        else:
            here = problem.add_variable(f"holds_{tier}", 0, 1, pulp.LpInteger)
            problem += size >= low
            problem += size <= high * here
        for depth in range(DEPTHS):
            within = pulp.lpSum(share["found", name, str(depth)] for name in order[: place + 1])
            problem += share["found", tier, str(depth)] <= here
            if tier in cache.found:
                problem += within <= float(cache.found[tier][depth])
                continue
            for slope, value in asked.prefixes.lines(depth, low * whole, high * whole):
                # a tier that holds none of it limits nothing
                problem += within <= value + slope * whole * size + 1.0 - here
        if tier != HBM:
            problem += share["new", tier, ""] >= here - loaded


def given_cache(
    asked: Offload, sizes: Mapping[str, float], loaded: Mapping[str, Sequence[float]] | None
) -> dict[Share, float]:
    """Return the shares of a cache that is given; what is found is loaded from the fastest tier if it is not said."""
    assert asked.prefixes is not None
    rooms = {name: room for name, (room, _) in memory_rows(asked).items()}
    shares: dict[Share, float] = {}
    before = np.zeros(DEPTHS)
    reach = 0.0
    for tier in tiers_of(asked):
        size = sizes.get(tier, 0.0)
        shares["cache", tier, ""] = size
        reach = max(reach, prefix_blocks(asked, tier, size * rooms[tier]))
        found = asked.prefixes.found(reach)
        part = found - before if size > 0 else np.zeros(DEPTHS)
        if loaded is not None:
            part = np.minimum(loaded.get(tier, np.zeros(DEPTHS)), part)
        before = before + part
        shares |= {("found", tier, str(depth)): float(value) for depth, value in enumerate(part)}
    for tier in tiers_of(asked)[1:]:
        shares["new", tier, ""] = max(1.0 - float(before.sum()), 0.0) if sizes.get(tier, 0.0) > 0 else 0.0
    return shares


def settled(block: Block, *, everywhere: bool = False) -> Cache:
    """Return the cache of a block with all memory that it leaves free, and what that finds.

    Parameters
    ----------
    block : Block
        A placement.
    everywhere : bool
        Whether tiers take part that hold nothing so far.
    """
    asked, shares = block.asked, block.shares
    assert asked.prefixes is not None
    sizes, found = {}, {}
    reach = 0.0
    for tier in tiers_of(asked):
        room, row = memory_rows(asked)[tier]
        size = shares["cache", tier, ""]
        if size > _EMPTY or everywhere:
            size = min(max(1.0 - (evaluated(row, shares) - size * room) / room, 0.0), 1.0)
            size = 0.0 if prefix_blocks(asked, tier, size * room) < 1 else size
            reach = max(reach, prefix_blocks(asked, tier, size * room))
        else:
            size = 0.0
        sizes[tier] = (size, size)
        found[tier] = asked.prefixes.found(reach)
    return Cache(sizes, found)


def refined(
    asked: Offload,
    solved: Callable[[Cache], tuple[Block | None, float]],
    time_of: Callable[[Block], float],
    enough_s: float,
) -> Block | None:
    """Return the best block whose cache finds what the true curve says, with the time that none beats.

    Parameters
    ----------
    asked : Offload
        The question.
    solved : callable
        The best block within bounds, and the time that none of them beats.
    time_of : callable
        The time of a block that is minimised [s].
    enough_s : float
        As of `solvers.kv_place.place` [s].
    """
    first, bound = solved(Cache())
    if first is None:
        return None
    waiting: list[tuple[float, Cache, Block]] = [(bound, Cache(), first)]
    best: Block | None = None
    priced = first
    problems = 1
    while waiting:
        waiting.sort(key=lambda one: -one[0])
        bound, cache, block = waiting.pop()
        if best is not None and bound >= time_of(best) * (1 - _CLOSE):
            waiting.append((bound, cache, block))
            break
        true = settled(block)
        exact, _ = solved(true)
        if exact is not None and (best is None or time_of(exact) < time_of(best)):
            best, priced = exact, block
        if exact is not None and time_of(exact) <= bound * (1 + _CLOSE):
            continue
        if problems >= _MOST_PROBLEMS or (best is not None and bound >= enough_s > 0):
            waiting.append((bound, cache, block))
            break
        tier = _loosest(asked, block, true)
        low, high = cache.sizes.get(tier, (0.0, 1.0))
        at = true.sizes[tier][0]
        if not low + _CLOSE < at < high - _CLOSE:
            at = (low + high) / 2
        for part in ((low, at), (at, high)):
            half = replace(cache, sizes={**cache.sizes, tier: part})
            other, least = solved(half)
            problems += 1
            if other is not None:
                waiting.append((max(least, bound), half, other))
    if best is None:
        return None
    bound = min((one[0] for one in waiting), default=time_of(best))
    fuller, _ = solved(settled(best, everywhere=True))  # what is found in a faster tier is loaded from there
    if fuller is not None and time_of(fuller) <= time_of(best) * (1 + _SAME):
        best = fuller
    return replace(
        best,
        bound_s=min(bound, time_of(best)),
        memory_prices=priced.memory_prices,
        rate_prices=priced.rate_prices,
        limit_prices=priced.limit_prices,
    )


def _loosest(asked: Offload, block: Block, true: Cache) -> str:
    """Return the tier down to which most more is loaded than the true curve finds."""
    order = tiers_of(asked)
    over = {}
    for place, tier in enumerate(order):
        within = np.array(
            [sum(block.shares["found", name, str(depth)] for name in order[: place + 1]) for depth in range(DEPTHS)]
        )
        over[tier] = float(np.maximum(within - true.found[tier], 0.0).sum())
    return max(over, key=lambda tier: (over[tier], block.shares["cache", tier, ""]))
