"""The space of training plans that a question states: every layout with every combination of switches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.context_parallel import exchange_size
from perfmodel.job import Job
from perfmodel.pipeline import missing_layers, splits
from perfmodel.plan import CHOICES, DATA_INNERMOST, DATA_OUTERMOST, FIELDS, HYBRID, RING, ULYSSES, Plan
from solvers.scenario import TrainSearch

LAYOUT = ("tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch")
SWITCHES = ("zero_stage", "seq_parallel", "recompute", "offload", "overlap_dp", "overlap_tp", "rank_order", "cp_style")

LARGEST_MICRO_BATCH = 64
SHORTEST_CONTEXT_SHARE = 2048
LARGEST_TENSOR_PARALLEL = 64


@dataclass(frozen=True)
class Space:
    """All plans of a question.

    Parameters
    ----------
    layouts : array of int, shape (layouts, len(LAYOUT))
        Parallel sizes, interleave and micro-batch.
    switches : array of int, shape (combinations, len(SWITCHES))
        Combinations of the other fields.
    dropped : Counter
        Layouts that the lists name but that cannot be, by reason.
    zero_asked : bool
        The question names ZeRO stages; else the framework says which go with pipeline stages.
    """

    layouts: NDArray[np.int64]
    switches: NDArray[np.int64]
    dropped: Counter[str]
    zero_asked: bool

    def plans(self, first: int, last: int, job: Job) -> Plan:
        """Return the plans of layouts `first` to `last`, each with every combination of switches that fits it."""
        layouts = np.repeat(self.layouts[first:last], len(self.switches), axis=0)
        switches = np.tile(self.switches, (last - first, 1))
        columns = {name: layouts[:, i] for i, name in enumerate(LAYOUT)}
        columns |= {name: switches[:, i] for i, name in enumerate(SWITCHES)}
        plan = Plan(**{name: columns[name] for name in FIELDS})
        fits = _fits(plan, job)
        if not self.zero_asked:
            fits &= (plan.pp == 1) | (plan.zero_stage <= job.framework.most_zero_with_pipeline)
        return plan.taken(np.flatnonzero(fits))


def _fits(plan: Plan, job: Job) -> NDArray[np.bool_]:
    """Whether switches fit a layout; one that would change nothing does not, so that no plan stands twice."""
    alone = plan.tp == 1
    single = plan.dp * plan.cp == 1
    mixture = any(group.feed_forward.experts for group in job.architecture.layers)
    heads = min(group.attention.heads for group in job.architecture.layers)
    fits = ~(alone & (plan.seq_parallel == 1))
    fits &= ~((plan.seq_parallel == 0) & (plan.overlap_tp == 1))
    if mixture:
        fits &= alone | (plan.seq_parallel == 1)
    fits &= ~(single & ((plan.zero_stage > 0) | (plan.overlap_dp == 1)))
    fits &= ~((plan.rank_order == DATA_INNERMOST) & (alone | (plan.dp == 1)))
    fits &= ~((plan.rank_order == DATA_OUTERMOST) & ((plan.pp == 1) | (plan.dp == 1)))
    fits &= (plan.cp > 1) | (plan.cp_style == RING)
    fits &= ~((plan.cp_style == ULYSSES) & (heads % (plan.tp * plan.cp) != 0))
    exchanging = exchange_size(job, plan)
    fits &= ~((plan.cp_style == HYBRID) & ((exchanging == 1) | (exchanging == plan.cp)))
    return np.asarray(fits)


def divisors(number: int) -> list[int]:
    """Return every divisor, ascending."""
    small = [i for i in range(1, int(number**0.5) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def _powers_of_two(limit: float) -> list[int]:
    return [2**i for i in range(int(limit).bit_length()) if 2**i <= limit]


def space(job: Job, search: TrainSearch) -> Space:
    """Enumerate the space of a question.

    Parameters
    ----------
    job : Job
        The job.
    search : TrainSearch
        What may be chosen. Left out: tp in powers of two up to a node, every pp, cp in powers of two that leave at
        least 2,048 tokens to a rank, every ep that divides the experts, every micro-batch up to 64 and every
        interleave that divides; every ZeRO stage that the framework combines with pipeline stages, every
        recomputation and context style, sequence parallelism on and off, the framework's overlaps, offload where the
        node describes host memory, tensor-parallel ranks innermost.
    """
    architecture = job.architecture
    experts = max(group.feed_forward.experts for group in architecture.layers)
    heads = min(group.attention.heads for group in architecture.layers)
    depth = architecture.depth
    node = min(job.machine.node.accelerators.count, job.ranks)
    lists = {
        "tp": search.tp or _powers_of_two(min(node, LARGEST_TENSOR_PARALLEL)),
        "pp": search.pp or [size for size in divisors(job.ranks) if size <= depth],
        "cp": search.cp or _powers_of_two(max(job.seq_len // SHORTEST_CONTEXT_SHARE, 1)),
        "ep": search.ep or (divisors(experts) if experts else [1]),
    }
    dropped: Counter[str] = Counter()
    rows: list[tuple[int, ...]] = []
    for tp in lists["tp"]:
        for cp in lists["cp"]:
            for pp in lists["pp"]:
                reason = _misfit(job, heads, tp, pp, cp)
                if reason:
                    dropped[reason] += 1
                    continue
                dp = job.ranks // (tp * pp * cp)
                eps = [
                    ep for ep in lists["ep"] if ep == 1 or (experts and experts % ep == 0 and (tp * cp * dp) % ep == 0)
                ]
                dropped["ep does not divide the experts or the ranks of a stage"] += len(lists["ep"]) - len(eps)
                per_replica = job.global_batch // dp
                for micro, vpp in _schedules(search, per_replica, depth, pp, dropped):
                    rows += [(tp, pp, dp, cp, ep, vpp, micro) for ep in eps]
    layouts = np.array(rows, dtype=np.int64).reshape(-1, len(LAYOUT))
    dropped += Counter()
    return Space(layouts, _switches(job, search), dropped, search.zero_stage is not None)


def _misfit(job: Job, heads: int, tp: int, pp: int, cp: int) -> str:
    if job.ranks % (tp * pp * cp):
        return "tp x pp x cp does not divide the accelerators"
    if job.global_batch % (job.ranks // (tp * pp * cp)):
        return "dp does not divide the global batch"
    if heads % tp:
        return "tp does not divide the attention heads"
    if job.seq_len % cp:
        return "cp does not divide the sequence"
    if not splits(job.architecture.depth, np.asarray(pp), np.asarray(1)):
        return "the layers do not spread over pp stages"
    return ""


def _schedules(
    search: TrainSearch, per_replica: int, depth: int, pp: int, dropped: Counter[str]
) -> list[tuple[int, int]]:
    """Return the (micro-batch, interleave) pairs of a pipeline; chunks are even, but for what uneven ends must lack."""
    micros = [size for size in (search.micro_batch or divisors(per_replica)) if per_replica % size == 0]
    if search.micro_batch is None:
        micros = [size for size in micros if size <= LARGEST_MICRO_BATCH] or micros[:1]
    else:
        dropped["micro_batch does not divide a replica's batch"] += len(search.micro_batch) - len(micros)
    per_stage = -(-depth // pp)
    asked = search.vpp or (divisors(per_stage) if pp > 1 else [1])
    stages = np.asarray(pp)
    vpps = []
    for vpp in asked:
        chunks = np.asarray(vpp)
        even = missing_layers(depth, stages, chunks) == missing_layers(depth, stages, np.asarray(1))
        if vpp == 1 or (pp > 1 and even and bool(splits(depth, stages, chunks))):
            vpps.append(vpp)
        else:
            dropped["vpp does not divide a stage's layers"] += 1
    pairs = []
    for micro in micros:
        for vpp in vpps:
            if vpp > 1 and (per_replica // micro) % pp:
                dropped["interleaving needs micro-batches in multiples of pp"] += 1
            else:
                pairs.append((micro, vpp))
    return pairs


def _switches(job: Job, search: TrainSearch) -> NDArray[np.int64]:
    own = job.framework.defaults
    has_host_memory = any(tier.name == "ddr" for tier in job.machine.node.tiers)
    values: dict[str, Sequence[Any]] = {
        "zero_stage": search.zero_stage or (0, 1, 2, 3),
        "seq_parallel": search.seq_parallel or (False, True),
        "recompute": search.recompute or CHOICES["recompute"],
        "offload": search.offload or (("none", "optimizer") if has_host_memory else ("none",)),
        # a single data-parallel rank has nothing to overlap, so off must stay possible
        "overlap_dp": search.overlap_dp or ((False, True) if own.overlap_dp else (False,)),
        "overlap_tp": search.overlap_tp or ((False, True) if own.overlap_tp else (False,)),
        "rank_order": search.rank_order or ("tp-cp-dp-pp",),
        "cp_style": search.cp_style or CHOICES["cp_style"],
    }
    codes = [
        [value if name == "zero_stage" else CHOICES[name].index(value) for value in values[name]] for name in SWITCHES
    ]
    grid = np.meshgrid(*[np.array(code, dtype=np.int64) for code in codes], indexing="ij")
    return np.stack([axis.reshape(-1) for axis in grid], axis=1)
