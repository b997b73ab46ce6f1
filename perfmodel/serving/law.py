"""The step of an instance as a table over what it holds: what continuous batching is computed and simulated with.

Symbols: n sequences that decode, m prompt tokens of a step, P tokens of a prompt of which a share f is found in the
cache, G tokens of an answer; with speculation gamma drafted tokens a step, of which E = (1 - a^(gamma + 1))/(1 - a)
tokens come out at an acceptance of a (Leviathan et al., arXiv 2211.17192, equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfmodel.serving.server import Server
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.step_law import StepTable
from perfmodel.terms import Array, Number

FIRST_TOKENS = 16.0
"""Least prompt tokens of a step that are tabulated; fewer are between them and none."""

POINTS_PER_DOUBLING = 2

MANY_SEQUENCES = 64.0
"""Sequences of the step at which the slope in their contexts is taken."""


@dataclass(frozen=True)
class Demand:
    """What requests are like.

    Parameters
    ----------
    prompt_tokens, output_tokens : float
        Mean tokens that come in and go out, P and G.
    prompt_scv, output_scv : float
        Their variances over the squared means.
    prefix_hit : float
        Share f of the tokens that come in that is cached.
    arrival_scv : float
        Squared coefficient of variation of the times between arrivals; 1 is Poisson.
    """

    prompt_tokens: float
    output_tokens: float
    prompt_scv: float = 0.0
    output_scv: float = 0.0
    prefix_hit: float = 0.0
    arrival_scv: float = 1.0

    @property
    def computed_tokens(self) -> float:
        """Tokens of a prompt that are computed, (1 - f) P."""
        return max((1.0 - self.prefix_hit) * self.prompt_tokens, 1.0)

    @property
    def cached_tokens(self) -> float:
        """Tokens of a prompt that are found in the cache, f P."""
        return self.prompt_tokens - self.computed_tokens

    @property
    def context_tokens(self) -> float:
        """Mean context of a sequence while it decodes, P + G (1 + scv)/2."""
        return self.prompt_tokens + self.output_tokens * (1 + self.output_scv) / 2


@dataclass(frozen=True)
class Speculation:
    """Drafted tokens that a step verifies.

    Parameters
    ----------
    drafted : array
        Tokens drafted a step, gamma; 0 is no speculation.
    acceptance : float
        Chance a that a drafted token is accepted, if those before it were.
    draft_cost : float
        Time to draft a token over that of a step without drafts.
    """

    drafted: Number = 0
    acceptance: float = 0.0
    draft_cost: float = 0.0

    @property
    def tokens_per_step(self) -> Array:
        """Tokens that a sequence gets in a step, E."""
        more = np.asarray(self.drafted, float) + 1.0
        return np.asarray((1.0 - self.acceptance**more) / (1.0 - self.acceptance))


NO_SPECULATION = Speculation()


def counts(most: float, first: float = 1.0) -> Array:
    """Return 0 and a geometric grid of whole numbers from `first` to `most` or beyond, the same wherever it ends."""
    doublings = max(np.log2(max(most, first) / first), 1.0)
    points = first * 2 ** (np.arange(int(np.ceil(POINTS_PER_DOUBLING * doublings)) + 1) / POINTS_PER_DOUBLING)
    return np.concatenate([[0.0], np.unique(np.round(points))])


def decode_load(demand: Demand, speculation: Speculation, sequences: Number) -> Load:
    """Return a step in which so many sequences decode.

    Notes
    -----
    A step that verifies takes gamma + 1 tokens of a sequence, all of which read its one cache: as many sequences with
    that part of the context.
    """
    tokens = np.asarray(speculation.drafted, float) + 1.0
    return Load(np.asarray(sequences, float) * tokens, demand.context_tokens / tokens)


def prompt_load(demand: Demand, tokens: Number) -> Load:
    """Return a step of so many prompt tokens: whole prompts, or the mean piece of one."""
    whole = demand.computed_tokens
    asked = np.asarray(tokens, float)
    piece = np.clip(asked, 1.0, whole)
    count = np.where(asked > 0, np.maximum(asked / whole, 1.0), 0.0)
    cached = demand.cached_tokens + (whole - piece) / 2
    return Load(prompts=count, prompt_tokens=piece, prompt_cached=cached, finished=piece / whole)


def mixed_load(demand: Demand, speculation: Speculation, sequences: Number, tokens: Number) -> Load:
    """Return a step of both."""
    running, prompts = decode_load(demand, speculation, sequences), prompt_load(demand, tokens)
    return replace(prompts, sequences=running.sequences, context=running.context)


def seconds(server: Server, deployment: Deployment, demand: Demand, speculation: Speculation, load: Load) -> Array:
    """Return the time of a step with its drafts [s]."""
    found = np.asarray(step(server, deployment, load).seconds)
    if np.any(speculation.drafted):
        tokens = np.asarray(speculation.drafted, float) + 1.0
        plain = replace(load, sequences=load.sequences / tokens, context=np.asarray(load.context) * tokens)
        alone = replace(plain, prompts=0.0)
        drafts = speculation.drafted * speculation.draft_cost * np.asarray(step(server, deployment, alone).seconds)
        found = found + np.where(np.asarray(load.sequences) > 0, drafts, 0.0)
    return found


def tabulated(
    server: Server,
    deployment: Deployment,
    demand: Demand,
    *,
    sequences: float,
    tokens: float,
    counted_context: Number,
    speculation: Speculation = NO_SPECULATION,
) -> StepTable:
    """Return the step law of instances.

    Parameters
    ----------
    server, demand : Server, Demand
        Model, machine and engine; what requests are like.
    deployment, speculation : Deployment, Speculation
        Candidates, of any one shape, which the table leads with.
    sequences, tokens : float
        Most sequences and prompt tokens of a step; 0 where there are none.
    counted_context : array
        Context of a sequence as whoever uses the law counts it [tokens]; at it the table is exact.

    Notes
    -----
    Exact at the mean context and for whole prompts; around them linear, with the slope of many sequences in the
    context of each, and of one prompt in its cached tokens. The grid does not depend on where it ends, so that one
    candidate and many give the same.
    """
    shape = np.broadcast_shapes(*(np.shape(value) for value in (*vars(deployment).values(), speculation.drafted)))
    spread = Deployment(**{name: _led(value) for name, value in vars(deployment).items()})
    drafts = replace(speculation, drafted=_led(speculation.drafted))
    n = counts(sequences) if sequences else np.array([0.0, 1.0])
    m = counts(max(tokens, 2 * demand.computed_tokens), FIRST_TOKENS) if tokens else np.array([0.0, 1.0])
    held_n, held_m = (n[:, None] if sequences else np.zeros((2, 1))), (m[None, :] if tokens else np.zeros((1, 2)))
    found = seconds(server, spread, demand, drafts, mixed_load(demand, drafts, held_n, held_m))
    table = np.array(np.broadcast_to(found, (*shape, len(n), len(m))))
    if sequences:
        load = decode_load(demand, drafts, MANY_SEQUENCES)
        longer = replace(load, context=2 * np.asarray(load.context))
        step_s, longer_s = (seconds(server, spread, demand, drafts, one) for one in (load, longer))
        per_context = np.maximum((longer_s - step_s)[..., 0, 0] / (MANY_SEQUENCES * demand.context_tokens), 0.0)
        table -= (per_context * np.asarray(counted_context))[..., None, None] * n[:, None]
    else:
        per_context = np.zeros(shape)
    if tokens:
        whole = demand.computed_tokens
        load = prompt_load(demand, whole)
        cached = replace(load, prompt_cached=demand.cached_tokens + whole)
        step_s, longer_s = (seconds(server, spread, demand, drafts, one) for one in (load, cached))
        per_pair = np.maximum((longer_s - step_s)[..., 0, 0] / whole**2, 0.0)
        table -= per_pair[..., None, None] * m * whole / 2
    else:
        per_pair = np.zeros(shape)
    return StepTable(n, m, table, np.broadcast_to(per_context, shape), np.broadcast_to(per_pair, shape))


def scaled(law: StepTable, factor: float) -> StepTable:
    """Return a law whose steps take so many times as long."""
    return replace(
        law,
        seconds_at=law.seconds_at * factor,
        per_context_token_s=np.multiply(law.per_context_token_s, factor),
        per_attended_pair_s=np.multiply(law.per_attended_pair_s, factor),
    )


def _led(value: Any) -> Array:
    """Return candidates before the two axes of the table."""
    return np.asarray(value)[..., None, None]
