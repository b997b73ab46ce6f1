"""Candidates of a serving question, as arrays, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from perfmodel.serving.latency import Latency, picked
from perfmodel.serving.law import Speculation
from perfmodel.serving.server import Server
from perfmodel.terms import Array
from solvers.serve_answer import request_limits
from solvers.serve_scenario import ServeScenario

MANY = 20_000

POOL = ("tp", "pp", "dp", "ep", "replicas", "max_num_seqs", "max_num_batched_tokens")
"""Fields of a pool, in the order of the columns."""


@dataclass(frozen=True)
class Family:
    """What candidates of a table share: model with its types and steps, drafts, pools, units of prompts."""

    server: Server
    speculation: Speculation
    disaggregated: bool
    prefill_share: float = 0.0

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others of a question."""
        server = self.server
        types = (server.precision_weights, server.precision_kv, server.layered, server.overlap)
        cap_w = server.machine.accelerator.power.limit
        return (*types, cap_w, self.speculation.drafted, self.disaggregated, self.prefill_share)


@dataclass
class Found:
    """Candidates of one family, in one axis.

    Parameters
    ----------
    family : Family
        What they share.
    pools : list of array
        Fields of the pool, or of the two pools, of shape (fields, candidates).
    gpus, rate, load : array
        Accelerators; requests of all replicas [1/s]; share of the capacity.
    times_s : dict of str to array
        Such as ``ttft_p99`` [s].
    goodput : array
        Requests within the objectives [1/s].
    """

    family: Family
    pools: list[Array]
    gpus: Array
    rate: Array
    load: Array
    times_s: dict[str, Array]
    goodput: Array


@dataclass
class Searched:
    """The whole space.

    Parameters
    ----------
    found : list of Found
        Candidates that answer all requests, family by family.
    candidates, without_room, overloaded : int
        How many there were, how many do not hold weights and a request, and how many of the rest are too slow.
    complete : bool
        Whether all were computed, or ruled out.
    stopped : bool
        Whether time ran out.
    open_score : float
        What pairs of pools that were not computed cannot exceed (`solvers.serve_pairs`), minus infinity without any.
    """

    found: list[Found] = field(default_factory=list)
    candidates: int = 0
    without_room: int = 0
    overloaded: int = 0
    complete: bool = True
    stopped: bool = False
    open_score: float = -np.inf


def names_of(scenario: ServeScenario) -> tuple[str, ...]:
    """Return the times that are needed of every candidate."""
    asked = scenario.question.objective.removesuffix("_s")
    wanted = [*scenario.question.slo.limits, "e2e_mean", "ttft_mean", "tpot_mean"]
    return tuple(dict.fromkeys([*wanted, *([asked] if asked[:4] in ("ttft", "tpot", "e2e_") else [])]))


def found_of(
    scenario: ServeScenario, family: Family, pools: list[Array], gpus: Array, rate: Array, latency: Latency
) -> Found:
    """Return candidates with what is known of them.

    Notes
    -----
    Of very many, the goodput is computed of those that may be best if half of the requests of some are in time.
    """
    times = {name: np.asarray(latency.of(name)) for name in names_of(scenario)}
    holds = np.ones(len(gpus), dtype=bool)
    for name, limit in scenario.question.slo.limits.items():
        holds &= times[name] <= limit * (1 + 1e-9)
    goodput = np.zeros(len(gpus))
    per_request = request_limits(scenario)
    if scenario.question.objective == "goodput_requests_per_s_per_gpu" and per_request and holds.any():
        floor = np.max((rate / gpus)[holds]) / 2 if holds.sum() > MANY else 0.0
        some = holds & (rate / gpus >= floor)
        goodput[some] = rate[some] * picked(latency, some).share_within(per_request)
    else:
        goodput[holds] = rate[holds]
    return Found(family, pools, gpus, rate, np.asarray(latency.load), times, goodput)
