"""The best training layout with its placement, for each objective, with what nothing left out can beat."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from hardware.tiers import TierPath, tier_paths
from perfmodel.architecture import Architecture
from perfmodel.finetune import Finetune, deeper, finetunes
from perfmodel.job import Job
from solvers.backend import relative_gap
from solvers.kv_finetune_place import Placed, place
from solvers.kv_finetune_question import FinetuneScenario, FinetuneSlo
from solvers.scenario import usd_per_hour

CONTEXT_STEP = 1024
"""Lengths of sequences that are tried are multiples of this [tokens]."""
SAME = 1e-7
"""Error of a solved step [1]."""
MOST_STEPS = 2**20
"""Where looking for the largest ends."""


@dataclass(frozen=True)
class Best:
    """The best placements of different layouts, the best first.

    Parameters
    ----------
    found : list of Placed
        What was found.
    bound : float or None
        What nothing left out can beat, in the objective's unit; None where everything was seen.
    seen : int
        Layouts that were looked at.
    missing : list of Finetune
        Where nothing was found, the layouts that do not fit.
    """

    found: list[Placed]
    bound: float | None = None
    seen: int = 0
    missing: list[Finetune] = field(default_factory=list)


def value(scenario: FinetuneScenario, placed: Placed) -> float:
    """Return the objective of a placement."""
    asked, seconds = placed.asked, placed.step_time_s
    name = scenario.question.objective
    if name == "step_time_s":
        return seconds
    if name == "tokens_per_s":
        return asked.tokens / seconds
    if name == "max_params":
        return float(asked.job.architecture.parameters)
    if name == "max_context_tokens":
        return float(asked.job.seq_len)
    hourly = cost_usd_per_hour(asked.job, asked.paths)
    assert hourly is not None  # the question was refused without a price
    return hourly if name == "cost_usd_per_hour" else hourly / 3600 * seconds / asked.tokens * 1e6


def cost_usd_per_hour(work: Job, paths: Iterable[TierPath]) -> float | None:
    """Return the price of a node with its tiers, of which those with a price of their own come on top [USD/h]."""
    base = usd_per_hour(work.machine)
    if base is None:
        return None
    prices = ((path.tier.price, path.tier.count) for path in paths)
    return base + sum(count * (price.on_demand or 0.0) for price, count in prices if price is not None)


def best(
    scenario: FinetuneScenario,
    *,
    paths: tuple[TierPath, ...] | None = None,
    until: float | None = None,
    gap: float | None = None,
    most: int = 1,
) -> Best:
    """Find the best placements.

    Parameters
    ----------
    scenario : FinetuneScenario
        The question.
    paths : tuple of TierPath
        Tiers that may be used; the question's if left out.
    until : float
        ``time.perf_counter()`` value at which to stop [s].
    gap : float
        Relative distance from the bound at which to stop; None for a proof.
    most : int
        How many placements to return, of different layouts.
    """
    tiers = scenario.paths if paths is None else paths
    name = scenario.question.objective
    if name in ("max_params", "max_context_tokens"):
        return _largest(scenario, tiers, until, most)
    if name.startswith("cost_usd"):
        return _cheapest(scenario, tiers, until, most)
    layouts = scenario.layouts(paths=tiers)
    found, bound_s = shortest(layouts, scenario, until, gap, most=most)
    bound = bound_s
    if bound is not None and name == "tokens_per_s":
        bound = scenario.job.global_batch * scenario.job.seq_len / bound
    return Best(found, bound, len(layouts), [] if found else layouts)


def shortest(
    layouts: Iterable[Finetune],
    scenario: FinetuneScenario,
    until: float | None = None,
    gap: float | None = None,
    *,
    most: int = 1,
) -> tuple[list[Placed], float | None]:
    """Return the placements of the shortest steps within the limit, and a bound of what was left out [s].

    Notes
    -----
    Layouts come in the order of what no placement of them beats, until none can be better. One that is no better in
    anything than one that was placed takes no less time than that.
    """
    found: list[Placed] = []
    interleaved = None if scenario.question.search.interleaved else 0.0
    limit = scenario.question.slo.step_time or math.inf
    asked = [one for one in layouts if one.fits]
    demands = np.array([one.demands for one in asked])
    least = np.array([one.least_s for one in asked])
    while np.isfinite(least).any():
        number = int(np.argmin(least))
        bound = float(least[number])
        reached = found[0].step_time_s if found else math.inf
        if bound > limit or (len(found) >= most and bound >= found[-1].step_time_s):
            break
        late = until is not None and time.perf_counter() > until
        if late or (gap and found and relative_gap(reached, min(bound, reached)) <= gap):
            return found, min(bound, reached)
        placed = place(asked[number], interleaved=interleaved)
        least[number] = math.inf
        if placed is None:
            continue
        worse = (demands >= demands[number]).all(axis=1)
        least[worse] = np.maximum(least[worse], placed.step_time_s * (1 - SAME))
        if placed.step_time_s <= limit:
            found = sorted([*found, placed], key=lambda one: one.step_time_s)[:most]
    return found, None


def unlimited(scenario: FinetuneScenario) -> FinetuneScenario:
    """Return the question without its limit of time."""
    question = scenario.question
    return replace(scenario, question=question.model_copy(update={"slo": FinetuneSlo()}))


def _cheapest(scenario: FinetuneScenario, paths: tuple[TierPath, ...], until: float | None, most: int) -> Best:
    """Go through numbers of devices, the cheapest first; of those that cost the same the fastest counts."""
    hourly = scenario.question.objective == "cost_usd_per_hour"
    found: list[Placed] = []
    seen: list[Finetune] = []
    choices = sorted(_devices(paths), key=lambda choice: cost_usd_per_hour(scenario.job, choice) or 0.0)
    for choice in choices:
        price = cost_usd_per_hour(scenario.job, choice) or 0.0
        layouts = scenario.layouts(paths=choice)
        seen += layouts
        least_s = min((one.least_s for one in layouts), default=math.inf)
        bound = price if hourly else price / 3600 * least_s / (scenario.job.global_batch * scenario.job.seq_len) * 1e6
        if found and bound > value(scenario, found[0]) * (1 + 1e-12):
            if hourly:
                break
            continue
        if until is not None and time.perf_counter() > until:
            return Best(found, min([bound, *(value(scenario, one) for one in found[:1])]), len(seen))
        placed, _ = shortest(layouts, scenario, until, most=1)
        found = sorted([*found, *placed], key=lambda one: (value(scenario, one), one.step_time_s))[:most]
    return Best(found, None, len(seen), [] if found else seen)


def _devices(paths: tuple[TierPath, ...]) -> Iterator[tuple[TierPath, ...]]:
    """Yield the tiers with every number of devices of those that have a price of their own."""
    counts = [range(path.tier.count + 1) if path.tier.price else (path.tier.count,) for path in paths]
    for chosen in itertools.product(*counts):
        kept = {path.name: count for path, count in zip(paths, chosen, strict=True) if count}
        if all(path.tier.via is None or path.tier.via in kept for path in paths if path.name in kept):
            yield tuple(with_count(path, kept[path.name]) for path in paths if path.name in kept)


def with_count(path: TierPath, count: int) -> TierPath:
    """Return a tier with another number of devices."""
    tier = path.tier.model_copy(update={"count": count})
    own = replace(path.domains[0], count=count)
    scale = count / path.tier.count
    return replace(path, tier=tier, capacity_bytes=path.capacity_bytes * scale, domains=(own, *path.domains[1:]))


def _largest(scenario: FinetuneScenario, paths: tuple[TierPath, ...], until: float | None, most: int) -> Best:
    """Double until nothing fits, then halve the interval: more layers or tokens never take less."""
    asked_at, last = sizes(scenario)
    seen = 0
    tried: dict[int, list[Finetune]] = {}

    def fits(size: int) -> bool:
        nonlocal seen
        layouts = scenario.layouts(asked_at(size), paths)
        seen += len(layouts)
        tried[size] = layouts
        if scenario.question.slo.step_time is None:
            return any(layout.fits for layout in layouts)
        return bool(shortest(layouts, scenario)[0])

    if not fits(1):
        return Best([], None, seen, tried[1])
    low, high, bound = 1, 2, None
    while high <= last and fits(high):
        low, high = high, 2 * high
    high = min(high, last + 1)
    while high - low > 1:
        if until is not None and time.perf_counter() > until:
            bound = high - 1
            break
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    found, _ = shortest(tried[low], scenario, most=most)
    if bound is None:
        return Best(found, None, seen)
    work = asked_at(bound)
    by_context = scenario.question.objective == "max_context_tokens"
    return Best(found, float(work.seq_len if by_context else work.architecture.parameters), seen)


def next_larger(scenario: FinetuneScenario, asked: Finetune) -> Finetune | None:
    """Return the same layout of the next larger size of a question for the largest."""
    sized, last = sizes(scenario)
    size = asked.job.seq_len // CONTEXT_STEP
    if scenario.question.objective == "max_params":
        size = (asked.job.architecture.depth - sized(1).architecture.depth) // _pattern(asked.job.architecture) + 1
    return finetunes(sized(size + 1), asked.plan, asked.paths, delayed=asked.delayed)[0] if size < last else None


def _pattern(architecture: Architecture) -> int:
    """Return the layers of one repetition."""
    return deeper(architecture, 2).depth - deeper(architecture, 1).depth


def sizes(scenario: FinetuneScenario) -> tuple[Callable[[int], Job], int]:
    """Return the job of a size, and the largest size: thousands of tokens, or repetitions of the pattern of layers."""
    architecture = scenario.job.architecture
    if scenario.question.objective == "max_context_tokens":
        longest = architecture.learned_positions // CONTEXT_STEP or MOST_STEPS
        return lambda size: replace(scenario.job, seq_len=size * CONTEXT_STEP), longest
    return lambda size: replace(scenario.job, architecture=deeper(architecture, size)), MOST_STEPS


def with_one_more(scenario: FinetuneScenario, number: int) -> tuple[TierPath, ...] | None:
    """Return the tiers with one more device of one; the first of one that may not be used so far."""
    node = scenario.job.machine.node
    tier = node.tiers[number]
    names = {path.name for path in scenario.paths}
    count = tier.count + 1 if tier.name in names else 1
    if tier.via is not None and tier.via not in names:
        return None
    tiers = (*node.tiers[:number], tier.model_copy(update={"count": count}), *node.tiers[number + 1 :])
    changed = node.model_copy(update={"tiers": tiers})
    return tuple(path for path in tier_paths(changed) if path.name in names | {tier.name})
