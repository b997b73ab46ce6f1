"""Time and memory of sequences of unequal length on sequence-parallel groups of every size.

A group of d accelerators packs sequences into micro-steps. A sequence of s tokens costs its share of a full micro-step
of sequences of its length: with T(n, s, d) the time of a micro-step of n sequences and n = d cap / s of them,

    w(s, d) = (T(n, s, d) - c(d)) / n,      c(d) = 2 T(n/2, s', d) - T(n, s', d),

so that a full micro-step of equal sequences takes T, and c is what does not shrink with the tokens: launches,
latencies, kernels too small to fill the accelerator (the line through a full and a half micro-step, at s' = cap / 2).
T is the time of a micro-step in `perfmodel.training`, with context-parallel groups of d neighbours. With tensor and
pipeline parallelism a rank of a group is a unit of tp pp accelerators, and T the time of a micro-step on the slowest
stage.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardware.topology import Level
from perfmodel.job import Job
from perfmodel.layer import embedding_cost, layer_cost, logits_cost
from perfmodel.memory import available_bytes
from perfmodel.parameters import stage_weights
from perfmodel.pipeline import split_layers
from perfmodel.plan import CHOICES, DEFAULTS, Plan, plan_from_rows
from perfmodel.sequence_offload import Offload, most_share, offload_of
from perfmodel.terms import LINK, Array, Number, Term, chosen
from perfmodel.training import predict_step, send_to_next_s, with_host

Style = Literal["ulysses", "ring", "all-gather", "hybrid"]
STYLES: tuple[Style, ...] = ("ulysses", "ring", "all-gather", "hybrid")

KNOTS_PER_DOUBLING = 16
"""Lengths at which costs are computed; between them they are interpolated. A quadratic is then 0.05 % high at most."""
ATTENTION_PARTS = ("attention core", "context-parallel communication", "slowdown under overlap")
"""Parts of a sequence's time that stay with its group where tokens move for the linear layers."""
_SHORTEST = 16
"""Shorter sequences cost their share of this one."""


@dataclass(frozen=True)
class SequenceCosts:
    """What sequences cost on groups of every size.

    Parameters
    ----------
    degrees : array of int, shape (D,)
        Sizes of a group, ascending [units of tp pp accelerators].
    lengths : array, shape (L,)
        Lengths at which costs are known, ascending [tokens].
    seconds : mapping of str to array, shape (L, D)
        Time of a sequence by style [s]; infinite where the style does not run.
    parts : mapping of str to mapping of str to array
        The same by style and part of a step [s].
    fixed_s : array, shape (D,)
        Time of a micro-step beside its sequences [s].
    outside_s : mapping of str to float
        Time of a step beside its micro-steps, by part [s].
    capacity_tokens : float
        Tokens that one unit holds: those of a micro-step, which its tp accelerators share on every stage.
    state_bytes, token_bytes : float
        Memory of an accelerator that does not depend on tokens, and of each token [bytes].
    exact : AlphaBeta or None
        Costs as a formula, instead of the tables.
    tp, pp : int
        Accelerators that share the layers of a unit, and stages that follow one another.
    offload : Offload or None
        What leaves for host memory; None where all activations stay.
    """

    degrees: NDArray[np.int64]
    lengths: Array
    seconds: Mapping[str, Array]
    parts: Mapping[str, Mapping[str, Array]]
    fixed_s: Array
    outside_s: Mapping[str, float]
    capacity_tokens: float
    state_bytes: float
    token_bytes: float
    exact: AlphaBeta | None = None
    tp: int = 1
    pp: int = 1
    offload: Offload | None = None

    @property
    def unit(self) -> int:
        """Accelerators of one rank of a group."""
        return self.tp * self.pp

    @property
    def styles(self) -> tuple[str, ...]:
        """Ways to split a sequence."""
        return tuple(self.seconds)

    def of(self, lengths: Array, style: str | None = None) -> Array:
        """Return the time of sequences on groups of every size in a style, or in the best of each pair [s]."""
        if self.exact is not None:
            return self.exact.seconds(np.asarray(lengths, float), self.degrees)
        if style is None:
            return np.asarray(np.minimum.reduce([self.of(lengths, one) for one in self.seconds]))
        return self.interpolated(self.seconds[style], lengths)

    def attention_of(self, lengths: Array, style: str | None = None) -> Array:
        """Return the part of `of` that is attention and its communication, in the same styles [s]."""
        if self.exact is not None:
            return self.exact.attention_s(np.asarray(lengths, float), self.degrees)
        if style is None:
            times = np.stack([self.of(lengths, one) for one in self.seconds])
            parts = np.stack([self.attention_of(lengths, one) for one in self.seconds])
            return np.asarray(np.take_along_axis(parts, times.argmin(axis=0)[None], axis=0)[0])
        table = sum(self.parts[style][name] for name in ATTENTION_PARTS if name in self.parts[style])
        return self.interpolated(np.where(np.isfinite(self.seconds[style]), table, np.inf), lengths)

    def interpolated(self, table: Array, lengths: Array) -> Array:
        """Return a table's values at some lengths; below the first one they are in proportion to it."""
        wanted = np.maximum(np.asarray(lengths, float), self.lengths[0])
        place = np.clip(np.searchsorted(self.lengths, wanted) - 1, 0, len(self.lengths) - 2)
        share = (wanted - self.lengths[place]) / (self.lengths[place + 1] - self.lengths[place])
        runs = np.isfinite(table[0])
        known = np.where(runs, table, 0.0)
        found = known[place] + share[:, None] * (known[place + 1] - known[place])
        return np.where(runs, found * (np.asarray(lengths, float) / wanted)[:, None], np.inf)


@dataclass(frozen=True)
class AlphaBeta:
    """Costs of the form (a1 s^2 + a2 s)/d + a3 s/(d v_d), and b1 + b2 a micro-step (b1 alone where d = 1).

    FlexSP (Wang et al., arXiv 2412.01523), section 4.1: fitted compute and all-to-all.

    Parameters
    ----------
    a1, a2 : float
        Compute of a sequence [s/token^2, s/token].
    a3 : float
        All-to-all traffic [bytes/token].
    b1, b2 : float
        Fixed time of a micro-step, and of its all-to-all [s].
    bandwidth : mapping of int to float
        Rate of an accelerator in the all-to-all of a group of so many [bytes/s].
    """

    a1: float
    a2: float
    b1: float
    a3: float
    b2: float
    bandwidth: Mapping[int, float]

    def seconds(self, lengths: Array, degrees: NDArray[np.int64]) -> Array:
        """Return the time of sequences on groups of every size [s]."""
        rate = np.array([self.bandwidth.get(int(degree), np.inf) for degree in degrees])
        s = lengths[:, None]
        return np.asarray((self.a1 * s * s + self.a2 * s) / degrees + self.a3 * s / (degrees * rate))

    def attention_s(self, lengths: Array, degrees: NDArray[np.int64]) -> Array:
        """Return of `seconds` what is quadratic, and the all-to-all [s]."""
        linear = self.a2 * np.asarray(lengths, float)[:, None] / degrees
        return np.asarray(self.seconds(lengths, degrees) - linear)

    def fixed_s(self, degrees: NDArray[np.int64]) -> Array:
        """Return the fixed time of a micro-step on groups of every size [s]."""
        return np.asarray(self.b1 + self.b2 * (degrees > 1), dtype=float)


def all_to_all_bandwidth(levels: Sequence[Level], degree: int) -> float:
    """Return the rate of an accelerator in the all-to-all of a group of neighbours [bytes/s].

    Notes
    -----
    Of d shares all but those of the d_l ranks within the unit below cross level l: the least of B_l d / (d - d_l).
    Where such units do not divide the group, d_l are the ranks in its last one, which send most to the outside.
    """
    below, rate = 1, float("inf")
    for level in levels:
        if degree > below:
            rate = min(rate, level.bandwidth * degree / (degree - (degree % below or below)))
        below = level.ranks
    return rate


def alpha_beta_costs(
    form: AlphaBeta, degrees: Sequence[int], memory_bytes: float, state_bytes: float, token_bytes: float
) -> SequenceCosts:
    """Return costs of FlexSP's form.

    Parameters
    ----------
    memory_bytes : float
        Memory of an accelerator [bytes].
    state_bytes, token_bytes : float
        Of it for states, and for each token [bytes].
    """
    sizes = np.array(sorted(degrees), dtype=np.int64)
    capacity = max((memory_bytes - state_bytes) / token_bytes, 0.0)
    nothing = np.zeros(0)
    fixed = form.fixed_s(sizes)
    return SequenceCosts(
        sizes, nothing, {"ulysses": nothing}, {}, fixed, {}, capacity, state_bytes, token_bytes, exact=form
    )


def memory_per_token(job: Job, row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return memory without tokens, of each token, and what an accelerator has [bytes].

    Notes
    -----
    Reserved memory is a straight line in the tokens of a micro-step: the line through two numbers of them. A pipeline
    holds pp micro-steps on its first stage. The stage that needs most may change with the tokens, which bends the line
    upwards only: of a pipeline it is taken through half of what it says at first and all of it, where it is too high.
    """
    available = available_bytes(job)
    state, token = _memory_line(job, row, 1024)
    if row["pp"] > 1 and available > state:
        state, token = _memory_line(job, row, max(int((available - state) / token / 2), 1))
    return state, token, available


def _memory_line(job: Job, row: Mapping[str, Any], few: int) -> tuple[float, float]:
    """Return memory without tokens, and of each token, from a micro-step of so many tokens and one of twice as many."""
    replicas = job.ranks // (row["tp"] * row["pp"])
    plan = plan_from_rows([{**row, "dp": replicas, "cp": 1, "micro_batch": count} for count in (1, 2)])
    batch = 2 * row["pp"] * replicas  # so that the pipeline is full
    reserved = predict_step(replace(job, seq_len=few, global_batch=batch), plan, explain=False)
    low, high = (float(value) for value in np.broadcast_to(reserved.memory.reserved_peak, (2,)))
    slope = (high - low) / few
    return low - few * slope, slope


def sequence_costs(
    job: Job,
    degrees: Sequence[int],
    styles: Sequence[str],
    layout: Mapping[str, Any],
    *,
    offload_activations: bool = False,
) -> SequenceCosts:
    """Return what sequences cost on groups of every size, from the models of kernels, collectives and memory.

    Parameters
    ----------
    job : Job
        Model, machine and framework.
    degrees : sequence of int
        Sizes of a group [units of tp pp accelerators].
    styles : sequence of str
        Ways to split a sequence.
    layout : mapping
        Fields of a training plan that all groups share: tensor and pipeline size, ZeRO stage, recomputation.
    offload_activations : bool
        Whether activations leave for host memory behind the work (`perfmodel.sequence_offload`); not with a pipeline.

    Notes
    -----
    Sizes on which no style `runs` are left out; the costs have no size at all where none is left. Sharded weights
    (ZeRO-3) are gathered, and gradients scattered, in every micro-step: what of it does not hide behind the work of a
    full micro-step is part of c(d). Otherwise gradients are reduced once a step, outside.
    """
    row = {**DEFAULTS, **layout}
    sizes = np.array(sorted(degrees), dtype=np.int64)
    running = {style: runs(job, row, style, sizes) for style in styles}
    some = np.logical_or.reduce(list(running.values()))
    sizes, running = sizes[some], {style: possible[some] for style, possible in running.items()}
    state_bytes, token_bytes, available = memory_per_token(job, row)
    capacity = max((available - state_bytes) / token_bytes, 0.0)
    full = max(capacity, 1.0)
    longest = max(full * sizes.max(initial=1), 2 * _SHORTEST)  # no group holds more
    steps = math.ceil(math.log2(longest / _SHORTEST) * KNOTS_PER_DOUBLING)
    lengths = np.geomspace(_SHORTEST, longest, steps + 1)
    if offload_activations:  # a group holds more tokens than its memory; below, costs are those without offload
        more = longest / (1 - most_share(job)) if most_share(job) < 1 else longest
        extra = math.ceil(math.log2(more / longest) * KNOTS_PER_DOUBLING)
        lengths = np.append(lengths, longest * (more / longest) ** (np.arange(1, extra + 1) / max(extra, 1)))
    reference = np.full(1, full / 2)
    seconds: dict[str, Array] = {}
    parts: dict[str, dict[str, Array]] = {}
    whole = np.full(len(sizes), np.inf)
    half = whole.copy()
    for style in styles:
        times = [_leaf_seconds(micro_step(job, row, reference, sizes, full * fill, style)) for fill in (1.0, 0.5)]
        totals = [np.asarray(sum(time.values()))[0] for time in times]
        better = running[style] & (totals[0] < whole)
        whole, half = np.where(better, totals[0], whole), np.where(better, totals[1], half)
    constant = np.clip(np.where(np.isfinite(whole), 2 * half - whole, 0.0), 0.0, None)
    for style in styles:
        found = _leaf_seconds(micro_step(job, row, lengths, sizes, full, style))
        count = np.maximum(full * sizes / lengths[:, None], 1e-300)
        total = np.asarray(sum(found.values()))
        # what is fixed is taken off every part alike: it is small, and a part must not become negative
        share = np.maximum(total - constant, 0.0) / total / count
        seconds[style] = np.where(running[style], total * share, np.inf)
        parts[style] = {name: value * share for name, value in found.items()}
    outside, each = _outside(job, row, full)
    offload = None
    if offload_activations:
        micro_steps = [(*_step_plan(job, row, lengths, sizes, full, style), running[style]) for style in styles]
        offload = offload_of(job, micro_steps, lengths, full, token_bytes)
    return SequenceCosts(
        sizes,
        lengths,
        seconds,
        parts,
        constant + each,
        outside,
        capacity,
        state_bytes,
        token_bytes,
        tp=row["tp"],
        pp=row["pp"],
        offload=offload,
    )


def runs(job: Job, row: Mapping[str, Any], style: str, degrees: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which sizes of a group a style runs on.

    Parameters
    ----------
    row : mapping
        Fields of a training plan.

    Notes
    -----
    Ulysses deals the heads out over the group. What all-gather brings together of the tokens of a full micro-step must
    not take memory beside theirs (`perfmodel.memory`), so that groups hold as many tokens in every style; in a pipeline
    it does on all stages but the last.
    """
    if style == "ulysses":
        heads = min(group.attention.heads for group in job.architecture.layers)
        return np.asarray(heads % (row["tp"] * degrees) == 0)
    if style == "all-gather" and row["pp"] > 1:
        return np.asarray(degrees == 1)
    if style == "all-gather":

        def takes_more(degree: int) -> bool:  # the larger the group, the more is gathered
            return _peak_bytes(job, row, style, degree) > _peak_bytes(job, row, "ring", degree)

        return np.arange(len(degrees)) < bisect_left(degrees.tolist(), True, key=takes_more)
    return np.ones(len(degrees), dtype=bool)


def _peak_bytes(job: Job, row: Mapping[str, Any], style: str, degree: int) -> float:
    """Return the memory of an accelerator of a group that holds so many tokens of one sequence [bytes]."""
    tokens = 1024
    whole = {**row, "dp": max(job.ranks // (row["tp"] * row["pp"] * degree), 1), "cp": degree, "cp_style": style}
    asked = replace(job, seq_len=tokens * degree, global_batch=whole["dp"])
    return float(np.max(predict_step(asked, plan_from_rows([whole]), explain=False).memory.reserved_peak))


def micro_step(
    job: Job, row: Mapping[str, Any], lengths: Array, degrees: NDArray[np.int64], tokens: float, style: str
) -> Term:
    """Return the time of a micro-step of so many tokens a unit, in sequences of each length, on each size.

    Parameters
    ----------
    row : mapping
        Fields of a training plan.
    lengths : array, shape (L,)
        Length of all sequences of the micro-step [tokens].
    degrees : array of int, shape (D,)
        Units of the group.
    tokens : float
        Tokens of the micro-step that each unit holds; sequences count in fractions.

    Returns
    -------
    Term
        Of arrays of shape (L, D) [s]; of a pipeline the slowest stage, with what it sends forward and backward.
    """
    asked, plan = _step_plan(job, row, lengths, degrees, tokens, style)
    layers = [layer_cost(asked, layer, plan) for layer in job.architecture.layers]
    costs = [*layers, embedding_cost(asked, plan), logits_cost(asked, plan)]
    stages = [with_host(asked, costs, weights, job.constants.host_softness) for weights in _stages(job, row["pp"])]
    stage = stages[0]
    if len(stages) > 1:
        seconds = np.stack([np.broadcast_to(one.seconds, plan.cp.shape) for one in stages])
        stage = chosen(seconds.argmax(axis=0), stages)
    slowed = Term("slowdown under overlap", (job.constants.overlap_slowdown - 1) * np.asarray(stage.hidden_seconds))
    parts = [stage, slowed]
    if row["pp"] > 1:
        parts.append(Term("pipeline sends", 2 * send_to_next_s(asked, plan), LINK))
    whole: Number = sum((part.seconds for part in parts[1:]), stage.seconds)
    return _shaped(Term("micro-step", whole, children=tuple(parts)), (len(lengths), len(degrees)))


def _step_plan(
    job: Job, row: Mapping[str, Any], lengths: Array, degrees: NDArray[np.int64], tokens: float, style: str
) -> tuple[Job, Plan]:
    """Return the micro-steps of `micro_step`, lengths and sizes in one row."""
    s, d = (grid.ravel() for grid in np.meshgrid(lengths, degrees, indexing="ij"))
    first = plan_from_rows([{**row, "dp": 1, "cp": 1, "micro_batch": 1, "cp_style": style}]).taken(slice(None))
    fields: dict[str, Any] = {
        name: np.broadcast_to(getattr(first, name), s.shape) for name in (*first.__dataclass_fields__,)
    }
    replicas = np.maximum(job.ranks // (d * row["tp"] * row["pp"]), 1)
    fields |= {"cp": d, "dp": replicas, "micro_batch": tokens * d / s}
    varied: Any = s
    return replace(job, seq_len=varied), Plan(**fields)


def _stages(job: Job, pp: int) -> list[list[Number]]:
    """Return how often the stages of a pipeline, first, inner and last, compute each kind of layer and the ends."""
    model = job.architecture
    if pp == 1:
        return [stage_weights(model, float(model.depth), float(model.leading), 1.0, 1.0)]
    split = split_layers(model.depth, model.leading, np.array(pp), np.array(1))
    ends = ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0))
    return [
        stage_weights(model, float(layers), float(leading), *end)
        for layers, leading, end in zip(split.layers, split.leading, ends, strict=True)
    ]


def _shaped(term: Term, form: tuple[int, int]) -> Term:
    def shape(value: Any) -> Array:
        return np.broadcast_to(value, (form[0] * form[1],)).reshape(form)

    children = tuple(_shaped(child, form) for child in term.children)
    return Term(term.name, shape(term.seconds), children=children)


def _leaf_seconds(term: Term) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def walk(node: Term) -> None:
        if not node.children:
            found[node.name] = found.get(node.name, 0.0) + np.asarray(node.seconds)
        for child in node.children:
            walk(child)

    walk(term)
    return found


def _outside(job: Job, row: Mapping[str, Any], tokens: float) -> tuple[dict[str, float], float]:
    """Return the time of a step beside its micro-steps by part, and what sharded weights add to each micro-step [s]."""
    length = max(int(tokens), 1)
    replicas = job.ranks // (row["tp"] * row["pp"])
    plan = plan_from_rows([{**row, "dp": replicas, "cp": 1, "micro_batch": 1}])
    step = predict_step(replace(job, seq_len=length, global_batch=replicas), plan, explain=False).step
    found = {child.name: float(np.asarray(child.seconds).reshape(-1)[0]) for child in step.children}
    traffic = {name: found[name] for name in ("gradient traffic", "weight traffic")}
    outside = {name: found[name] for name in ("optimizer", "host work per step")}
    once = row["pp"] > 1 and not job.framework.reshards_in_pipeline  # weights then stay gathered for the step
    if row["zero_stage"] >= 3 and not once:
        return outside, sum(traffic.values())
    return outside | traffic, 0.0


assert set(STYLES) == set(CHOICES["cp_style"])
