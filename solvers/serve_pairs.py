"""Pools of their own for prompts: every one with every one for the tokens that follow.

The times of a pair follow from those of its pools, which are computed once each; of pairs only what ties the two, the
keys and values sent from one to the other. What no pair can beat is known of all; exact figures are computed of those
that may be best, until no other can be better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.batching import open_loop
from perfmodel.serving.host import received_s
from perfmodel.serving.latency import Latency, Pool, apart, handoff_s, pool, requests
from perfmodel.serving.step import Deployment
from perfmodel.step_law import StepTable
from perfmodel.terms import Array, Number
from solvers.serve_case import answered, held, prompt_alone_s, sending
from solvers.serve_energy import energy_j, pool_power_w
from solvers.serve_found import POOL, Family, Found, Searched, found_of
from solvers.serve_question import ServePool
from solvers.serve_scenario import ServeScenario
from solvers.serve_space import SEQUENCES, TOKENS, layouts, replica_counts

EXACT = 400
"""Pairs of which exact figures are computed at once."""

ROUNDS = 5
"""How often, at most, before what is best so far is taken without proof."""

Index = NDArray[np.intp]
Known = dict[tuple[Any, ...], Any]
"""Instances with their step laws, by what they are of."""


@dataclass(frozen=True)
class Side:
    """Pools of one phase: units of a layout and limits, and each with every number of replicas.

    Parameters
    ----------
    deployment : Deployment
        Of the units.
    instances : Pool
        The same as the equations take them.
    prompt_s : array
        Time of a prompt alone [s].
    limit : tuple of array
        Most sequences and most tokens of a rank, of the units.
    unit, replicas : array of int
        Of the pools.
    gpus : array of int
        Accelerators of the pools.
    rate : array
        Requests of all replicas: those asked for, or the most within the objectives of the phase [1/s].
    time_s : dict of str to array
        Times of requests in this phase, without the other's [s].
    wait_s : array
        Mean wait of a sequence for its first step, and that step [s].
    load : array
        Share of the capacity.
    """

    deployment: Deployment
    instances: Pool
    prompt_s: Array
    limit: tuple[Array, Array]
    unit: Array
    replicas: Array
    gpus: Array
    rate: Array
    time_s: dict[str, Array]
    wait_s: Array
    load: Array

    def kept(self, where: Array) -> Side:
        """Return some of the pools."""
        parts = {name: getattr(self, name)[where] for name in ("unit", "replicas", "gpus", "rate", "wait_s", "load")}
        return replace(self, **parts, time_s={name: value[where] for name, value in self.time_s.items()})


def pairs(
    scenario: ServeScenario,
    family: Family,
    result: Searched,
    widened: float,
    more_memory: float,
    gap: float,
    known: Known,
) -> None:
    """Add the pairs that may be best to what was found.

    Parameters
    ----------
    family : Family
        Types of the pools.
    result : Searched
        Takes them, and the counts of all.
    widened : float
        Factor on the objectives up to which pairs are kept.
    more_memory : float
        Bytes that every accelerator has beyond what it has.
    gap : float
        Share by which pairs that are not computed may be better than the best that is [1].
    known : dict
        Instances that are tabulated already; takes those that are not.
    """
    prompts = side(scenario, family, result, "prompts", more_memory, known)
    tokens = side(scenario, family, result, "tokens", more_memory, known)
    if prompts is None or tokens is None:
        return
    most = scenario.machine.accelerators
    counted = np.searchsorted(np.sort(tokens.gpus), most - prompts.gpus, side="right").sum()
    result.candidates += int(counted)
    prompts, tokens = (one.kept(_may_do(scenario, one, widened)) for one in (prompts, tokens))
    one, other = _near(prompts, tokens, most)
    result.overloaded += int(counted - len(one))
    if not len(one):
        return
    bound = _bounds(scenario, family, prompts, tokens, one, other, widened)
    able = np.flatnonzero(bound > -np.inf)
    order = able[np.argsort(-bound[able], kind="stable")]
    best = -np.inf
    for start in range(0, len(order), EXACT):
        chosen = order[start : start + EXACT]
        if bound[chosen[0]] < best:
            return
        if start >= ROUNDS * EXACT or (gap and bound[chosen[0]] <= best + gap * abs(best)):
            result.complete = False
            result.open_score = max(result.open_score, float(bound[chosen[0]]))
            return
        found = _exact(scenario, family, prompts, tokens, one[chosen], other[chosen])
        result.found.append(found)
        best = max(best, float(np.max(score(scenario, found), initial=-np.inf)))


def _near(prompts: Side, tokens: Side, most: int) -> tuple[Index, Index]:
    """Return the pairs that the cluster holds."""
    near = prompts.gpus[:, None] + tokens.gpus[None, :] <= most
    one, other = np.nonzero(near)
    return one, other


def _may_do(scenario: ServeScenario, one: Side, widened: float) -> Array:
    """Return the pools whose own phase meets the objectives."""
    may = one.load < 1
    for name, limit in scenario.question.slo.limits.items():
        if name in one.time_s:
            may = may & (one.time_s[name] <= limit * widened)
    return np.asarray(may)


def score(scenario: ServeScenario, found: Found) -> Array:
    """Return what is to be as large as possible; nothing where requests are not in time."""
    name = scenario.question.objective
    if name.startswith(("ttft", "tpot", "e2e")):
        return np.where(found.goodput > 0, -found.times_s[name.removesuffix("_s")], -np.inf)
    if name == "energy_per_token_j":
        return np.where(found.goodput > 0, -energy_j(scenario, found), -np.inf)
    return np.where(found.goodput > 0, found.goodput / found.gpus, -np.inf)


def _least_energy_j(
    scenario: ServeScenario, family: Family, prompts: Side, tokens: Side, pair: tuple[Index, Index], rate: Number
) -> Array:
    """Return what the energy of a request cannot be below [J].

    Notes
    -----
    Prompts take what their rate says. Tokens take least where every step has as many sequences as an instance runs,
    since each step reads the weights; power falls less than the rate, so the highest rate has the least for a request.
    """
    one, other = pair
    gaps = max(scenario.demand.output_tokens - 1.0, 1e-9)
    watts: Array = np.zeros(len(one))
    for half, index, phase in ((prompts, one, "prompts"), (tokens, other, "tokens")):
        unit, replicas, spread = half.unit[index], half.replicas[index], half.deployment
        ranks = np.asarray(spread.dp)[unit]
        sizes = (half.gpus[index] / replicas, replicas, half.limit[1][unit] * ranks)
        full = np.broadcast_to(half.instances.limits.max_batch, half.prompt_s.shape)[unit]
        tpot_s = full * replicas / (rate * gaps)
        watts = watts + pool_power_w(scenario, family, sizes, rate, tpot_s, phase)
    return np.asarray(watts / rate)


def side(
    scenario: ServeScenario, family: Family, result: Searched, phase: str, more_memory: float, known: Known
) -> Side | None:
    """Return every pool of one phase, with its times at the rate asked for; None where there is none.

    Without a rate it is the largest at which the phase meets its objectives.
    """
    server, search, demand = family.server, scenario.question.search, scenario.demand
    first = phase == "prompts"
    defaults = server.engine.defaults
    sequences = (defaults.max_num_seqs,) if first else search.max_num_seqs or SEQUENCES
    tokens = search.max_num_batched_tokens or TOKENS if first else (defaults.max_num_batched_tokens,)
    columns: list[tuple[int, ...]] = []
    counts: list[Array] = []
    for group in layouts(scenario):
        for shape in zip(group.tp, group.pp, group.dp, group.ep, strict=True):
            for n in sequences:
                for m in tokens:
                    columns.append((*map(int, shape), n, m))
                    counts.append(replica_counts(scenario, group.accelerators))
    tp, pp, dp, ep, most, budget = np.array(columns).T
    imbalance = scenario.question.workload.expert_imbalance
    spread = Deployment(tp, pp, dp, ep, imbalance)
    speculation = scenario.speculation(0) if first else family.speculation
    _, running = held(scenario, server, speculation, spread, most, budget, prompts_only=first, more_memory=more_memory)
    fits = np.flatnonzero(running >= 1)
    result.without_room += int(len(running) - len(fits))
    if not len(fits):
        return None
    tp, pp, dp, ep, most, budget, running = (value[fits] for value in (tp, pp, dp, ep, most, budget, running))
    spread = Deployment(tp, pp, dp, ep, np.full(len(tp), imbalance))
    key = (*family.key, phase, more_memory)
    if key not in known:
        known[key] = pool(
            server, spread, demand, max_batch=running, token_budget=budget * dp, speculation=speculation, phase=phase
        )
    instances = known[key]
    each = [counts[number] for number in fits]
    unit = np.repeat(np.arange(len(fits)), [len(one) for one in each])
    replicas = np.concatenate(each)
    gpus = replicas * (tp * pp * dp)[unit]
    room = gpus <= scenario.machine.accelerators
    unit, replicas, gpus = unit[room], replicas[room], gpus[room]
    if not len(unit):
        return None
    prompt_s = prompt_alone_s(server, spread, demand, budget * dp) if first else np.zeros(len(tp))
    whole = requests(demand, speculation)
    if first:
        whole = replace(whole, output_tokens=1.0, output_scv=0.0)
    mine = _of(instances, unit)
    scv = 1 + (demand.arrival_scv - 1) / replicas

    def at(rate: Any) -> Latency:
        state = open_loop(mine.law, whole, mine.limits, rate / replicas, scv)
        return Latency(demand, speculation.tokens_per_step, received_s(server.engine) + mine.pipeline_s, state, state)

    kind = "ttft" if first else "tpot"
    if scenario.rate is None and (scenario.offline or scenario.concurrency is not None):
        alone = at(1e-9)
        rate = 1e-9 / np.maximum(alone.load, 1e-300)
    else:
        rate, alone = answered(scenario, at, None, None, (len(unit),), kind)
    state = alone.tokens
    names = [*scenario.question.slo.limits, "ttft_mean", "tpot_mean"]
    asked = scenario.question.objective.removesuffix("_s")
    names += [asked] if asked[:5] in ("ttft_", "tpot_") else []
    times = {name: np.asarray(alone.of(name)) for name in dict.fromkeys(names) if name.startswith(kind)}
    step_s = mine.law.seconds(state.running, 0.0, state.running * whole.context_tokens)
    wait = np.zeros(len(unit)) if first else step_s + np.maximum(state.ttft_s - step_s, 0.0)
    return Side(
        spread,
        instances,
        np.asarray(prompt_s),
        (most, budget),
        unit,
        replicas,
        gpus,
        rate,
        times,
        wait,
        np.asarray(state.load),
    )


def _of(instances: Pool, unit: Index) -> Pool:
    """Return the units of pools."""
    law = StepTable(
        instances.law.sequences,
        instances.law.prompt_tokens,
        instances.law.seconds_at[unit],
        np.asarray(instances.law.per_context_token_s)[unit],
        np.asarray(instances.law.per_attended_pair_s)[unit],
    )

    def part(value: Any) -> Any:
        return np.asarray(value)[unit] if np.ndim(value) else value

    limits = instances.limits
    held_in = replace(limits, max_batch=part(limits.max_batch), token_budget=part(limits.token_budget))
    return Pool(law, held_in, part(instances.pipeline_s))


def _spread(deployment: Deployment, unit: Index) -> Deployment:
    return Deployment(*(np.asarray(value)[unit] for value in vars(deployment).values()))


def _bounds(
    scenario: ServeScenario,
    family: Family,
    prompts: Side,
    tokens: Side,
    one: Index,
    other: Index,
    widened: float,
) -> Array:
    """Return what the score of each pair cannot exceed; minus infinity where it cannot meet the objectives."""
    # What is sent depends on the units alone: far fewer pairs.
    p, t = np.arange(len(prompts.prompt_s)), np.arange(len(tokens.prompt_s))
    sent, left = sending(
        scenario,
        family.server,
        Deployment(*(np.asarray(value)[p][:, None] for value in vars(prompts.deployment).values())),
        Deployment(*(np.asarray(value)[t][None, :] for value in vars(tokens.deployment).values())),
        prompts.prompt_s[:, None],
    )
    at = (prompts.unit[one], tokens.unit[other])
    handover = left[at] + handoff_s(family.server) + tokens.wait_s[other]
    gpus = (prompts.gpus[one] + tokens.gpus[other]).astype(float)
    rate = scenario.rate
    if rate is not None:
        may = rate / np.minimum(prompts.replicas[one], tokens.replicas[other]) * sent[at] < 1
        times = {name: value[one] + handover for name, value in prompts.time_s.items()}
        times |= {name: value[other] for name, value in tokens.time_s.items()}
        gaps = max(scenario.demand.output_tokens - 1.0, 0.0)
        times["e2e_mean"] = times["ttft_mean"] + gaps * times["tpot_mean"]
        for name, limit in scenario.question.slo.limits.items():
            may &= times[name] <= limit * widened
        asked = scenario.question.objective.removesuffix("_s")
        score = -times[asked] if asked in times else rate / gpus
        if scenario.question.objective == "energy_per_token_j":
            score = -_least_energy_j(scenario, family, prompts, tokens, (one, other), rate)
        return np.where(may, score, -np.inf)
    most = np.minimum(prompts.rate[one], tokens.rate[other])
    if scenario.concurrency is not None:  # no sooner answered than where nobody else asks
        gaps = max(scenario.demand.output_tokens - 1.0, 0.0)
        idle_s = prompts.time_s["ttft_mean"][one] + handover + gaps * tokens.time_s["tpot_mean"][other]
        most = np.minimum(most, scenario.concurrency / idle_s)
    links = np.minimum(prompts.replicas[one], tokens.replicas[other]) / np.maximum(sent[at], 1e-300)
    most = np.minimum(most, links)
    if scenario.question.objective == "energy_per_token_j":
        return -_least_energy_j(scenario, family, prompts, tokens, (one, other), most)
    return np.asarray(most / gpus)


def _exact(scenario: ServeScenario, family: Family, prompts: Side, tokens: Side, one: Index, other: Index) -> Any:
    """Return the figures of some pairs."""
    units = prompts.unit[one], tokens.unit[other]
    replicas = prompts.replicas[one], tokens.replicas[other]
    sent = sending(
        scenario,
        family.server,
        _spread(prompts.deployment, units[0]),
        _spread(tokens.deployment, units[1]),
        prompts.prompt_s[units[0]],
    )
    first, after = _of(prompts.instances, units[0]), _of(tokens.instances, units[1])

    def at(rate: Any) -> Latency:
        return apart(family.server, first, after, scenario.demand, family.speculation, rate, replicas, sent)

    rate, latency = answered(scenario, at, None, None, (len(one),))
    pools = []
    for number, side_ in enumerate((prompts, tokens)):
        spread = _spread(side_.deployment, units[number])
        fields = {name: getattr(spread, name) for name in ("tp", "pp", "dp", "ep")}
        fields |= {"replicas": replicas[number]}
        fields |= {
            name: side_.limit[k][units[number]] for k, name in enumerate(("max_num_seqs", "max_num_batched_tokens"))
        }
        pools.append(np.stack([fields[name] for name in POOL]))
    return found_of(scenario, family, pools, prompts.gpus[one] + tokens.gpus[other], rate, latency)


def pool_of(column: Array) -> ServePool:
    """Return a pool of a plan from its column."""
    return ServePool(**{name: int(value) for name, value in zip(POOL, column, strict=True)})
