"""Every block that a question about tiers allows, with the times of its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from hardware.tiers import TierPath
from perfmodel.kv_prefixes import Prefixes
from perfmodel.offload import Form, Kernels, Offload
from perfmodel.offload_kernels import kernels_of
from solvers.kv_question import KvQuestion, KvReuse
from solvers.kv_scenario import KvScenario

Candidate = tuple[Offload, Kernels]


def prefixes_of(scenario: KvScenario, loading: str, reuse: str, level: str) -> Prefixes | None:
    """Return how a cache of prefixes is used; None where everything is computed."""
    given = scenario.question.workload.reuse
    if given is None or scenario.curve is None or loading == "recompute":
        return None
    anywhere = reuse == "anywhere"
    return Prefixes(
        scenario.curve,
        given.block_tokens,
        given.levels[level],
        anywhere,
        (given.recomputed or 0.0) if anywhere else 0.0,
        overlapped=loading == "both",
    )


def ways(question: KvQuestion) -> Iterator[tuple[str, str, str]]:
    """Yield how a cache of prefixes may be used: loading, where blocks count, and level of the stored copy."""
    given: KvReuse | None = question.workload.reuse
    search = question.search
    if given is None:
        yield "recompute", "prefix", ""
        return
    levels = search.levels or tuple(given.levels)
    for loading in search.loading:
        if loading == "recompute":
            yield loading, search.reuse[0], levels[0]
        else:
            yield from ((loading, reuse, level) for reuse, level in product(search.reuse, levels))


def candidates(scenario: KvScenario, paths: tuple[TierPath, ...]) -> Iterator[Candidate]:
    """Yield blocks with the times of their kernels.

    Parameters
    ----------
    scenario : KvScenario
        The question.
    paths : tuple of TierPath
        Tiers beside the accelerators' own.
    """
    search = scenario.question.search
    used = [prefixes_of(scenario, *way) for way in ways(scenario.question)]
    sharing = search.share_prefix if scenario.question.workload.shared_prefix is not None else (False,)
    forms = [Form(keep, remade) for keep, remade in product(search.keep, search.remade)]
    kinds = product(search.precision_weights, search.precision_kv, forms, sharing)
    for weights, cache, form, together in kinds:
        whole = replace(scenario.offload(1, 1, weights, cache, form=form, together=together), paths=paths)
        for prefixes in used:
            whole = replace(whole, prefixes=prefixes)
            kernels = kernels_of(whole, search.gpu_batch)
            for batch, count in product(search.gpu_batch, search.num_batches):
                yield replace(whole, gpu_batch=batch, num_batches=count), kernels[batch]
