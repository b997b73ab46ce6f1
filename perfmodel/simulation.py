"""Requests through continuous-batching engines, event by event: the check of the equations in `perfmodel.batching`.

Requests arrive at given times, or from clients that wait for their answers; replicas of an engine, and separate pools
for prompts and for decoding, share them. What an engine does is in `perfmodel.simulated_engine`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from perfmodel.requests import Integers
from perfmodel.simulated_engine import MODES, Engine, Mode, PoolRequests, Replica
from perfmodel.step_law import Array

__all__ = [
    "MODES",
    "Engine",
    "Mode",
    "Routing",
    "Simulated",
    "simulate",
    "simulate_closed",
    "simulate_disaggregated",
]

Routing = Literal["round_robin", "least_loaded"]
_NEVER = float("inf")


@dataclass(frozen=True)
class Simulated:
    """What requests experienced, in the order given, and what engines did.

    Parameters
    ----------
    arrival_s, first_token_s, finish_s : array, shape (requests,)
        Times [s].
    output_tokens : array of int, shape (requests,)
        Tokens that each request emitted.
    gap_s, gap_count : array
        Times between tokens of a sequence [s], and how often each occurred.
    run_end_s, run_steps, run_seconds, run_running : array
        Runs of equal steps: when they ended [s], how many steps they had, how long they took [s], and how many requests
        ran.
    preemptions : int
        How often a request was put back because the cache was full.
    """

    arrival_s: Array
    first_token_s: Array
    finish_s: Array
    output_tokens: Integers
    gap_s: Array
    gap_count: Array
    run_end_s: Array
    run_steps: Array
    run_seconds: Array
    run_running: Array
    preemptions: int

    @property
    def ttft_s(self) -> Array:
        """Time to the first token of each request [s]."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> Array:
        """Time per output token after the first, of each request [s]; not a number where there is one token."""
        more = self.output_tokens - 1
        return np.where(more > 0, (self.finish_s - self.first_token_s) / np.maximum(more, 1), np.nan)

    @property
    def e2e_s(self) -> Array:
        """Time from arrival to the last token of each request [s]."""
        return self.finish_s - self.arrival_s

    def itl_quantile_s(self, probability: float) -> float:
        """Return a quantile over all times between tokens [s]."""
        order = np.argsort(self.gap_s)
        reached = np.cumsum(self.gap_count[order])
        return float(self.gap_s[order][np.searchsorted(reached, probability * reached[-1])])

    def mean_step_s(self, begin_s: float = 0.0, end_s: float = _NEVER) -> float:
        """Return the mean time of the steps that ended in a window [s]."""
        inside = (self.run_end_s > begin_s) & (self.run_end_s <= end_s)
        return float(self.run_seconds[inside].sum() / self.run_steps[inside].sum())

    def mean_running(self, begin_s: float = 0.0, end_s: float = _NEVER) -> float:
        """Return the mean number of running requests over the busy time of a window."""
        inside = (self.run_end_s > begin_s) & (self.run_end_s <= end_s)
        seconds = self.run_seconds[inside]
        return float((self.run_running[inside] * seconds).sum() / seconds.sum())


def simulate(
    engine: Engine,
    arrival_s: Array,
    prompt_tokens: Integers,
    output_tokens: Integers,
    replicas: int = 1,
    routing: Routing = "round_robin",
) -> Simulated:
    """Run requests that arrive at given times through replicas of an engine.

    Parameters
    ----------
    engine : Engine
        Each replica.
    arrival_s : array, shape (requests,)
        Times, ascending [s]; all 0 for a queue that is there from the start.
    prompt_tokens, output_tokens : array of int, shape (requests,)
        Lengths, 1 or more.
    replicas : int
        How many.
    routing : str
        ``round_robin``, or ``least_loaded``: to the replica with the fewest requests at the moment of arrival.
    """
    requests = _requests(engine, arrival_s, prompt_tokens, output_tokens)
    pool = [Replica(engine, requests) for _ in range(replicas)]
    _feed(pool, np.arange(len(requests.arrival)), routing)
    return _result(pool, requests)


def simulate_closed(
    engine: Engine, concurrency: int, prompt_tokens: Integers, output_tokens: Integers, replicas: int = 1
) -> Simulated:
    """Run requests of clients that all start at once and send the next request when one is answered.

    Parameters
    ----------
    engine, prompt_tokens, output_tokens, replicas
        As in `simulate`.
    concurrency : int
        Clients in all. They and the requests are dealt out to the replicas in turn and stay there.
    """
    requests = _requests(engine, np.zeros(len(prompt_tokens)), prompt_tokens, output_tokens)
    pool = [Replica(engine, requests) for _ in range(replicas)]
    for place, replica in enumerate(pool):
        mine = deque(range(place, len(requests.prompt), replicas))
        clients = len(range(place, concurrency, replicas))
        for _ in range(min(clients, len(mine))):
            replica.submit(mine.popleft())
        while replica.in_system():
            for _ in replica.advance(_NEVER, stop=True):
                if mine:
                    following = mine.popleft()
                    requests.arrival[following] = replica.clock
                    replica.submit(following)
    return _result(pool, requests)


def simulate_disaggregated(
    prefill: Engine,
    decode: Engine,
    arrival_s: Array,
    prompt_tokens: Integers,
    output_tokens: Integers,
    prefill_replicas: int = 1,
    decode_replicas: int = 1,
    transfer_s: float = 0.0,
    transfer_s_per_token: float = 0.0,
    routing: Routing = "least_loaded",
) -> Simulated:
    """Run requests through a pool that prefills and one that decodes.

    Parameters
    ----------
    prefill, decode : Engine
        The replicas of the pools. The first token comes from `prefill`.
    transfer_s, transfer_s_per_token : float
        Time until a prompt's keys and values are at the decoding replica: a latency [s] and a time per prompt token
        [s]. Transfers do not wait for each other.
    arrival_s, prompt_tokens, output_tokens, routing
        As in `simulate`.
    """
    single = np.ones(len(prompt_tokens), dtype=np.int64)
    first = _requests(prefill, arrival_s, prompt_tokens, single)
    fills = [Replica(prefill, first) for _ in range(prefill_replicas)]
    _feed(fills, np.arange(len(single)), routing)
    ready = np.asarray(first.finish) + transfer_s + transfer_s_per_token * prompt_tokens
    requests = _requests(decode, ready, prompt_tokens, output_tokens)
    requests.first[:] = first.finish
    requests.finish[:] = first.finish
    decodes = [Replica(decode, requests) for _ in range(decode_replicas)]
    for replica in decodes:
        replica.todo = dict.fromkeys(range(len(single)), 0)
    order = np.argsort(ready, kind="stable")
    _feed(decodes, order[np.asarray(output_tokens)[order] > 1], routing)
    result = _result([*decodes, *fills], requests)
    return replace(result, arrival_s=np.asarray(arrival_s, dtype=float))


def _requests(engine: Engine, arrival_s: Array, prompt_tokens: Integers, output_tokens: Integers) -> PoolRequests:
    most = int(np.max(np.asarray(prompt_tokens) + output_tokens, initial=0)) + engine.tokens_per_step
    if most >= engine.kv_tokens:
        raise ValueError(f"a request of {most:,.0f} tokens does not fit the cache of {engine.kv_tokens:,.0f}")
    count = len(prompt_tokens)
    arrival, prompt, output = (np.asarray(values).tolist() for values in (arrival_s, prompt_tokens, output_tokens))
    return PoolRequests(arrival, prompt, output, [-1.0] * count, [-1.0] * count)


def _feed(pool: list[Replica], order: Integers, routing: Routing) -> None:
    """Give requests to replicas in order of arrival, and run them to the end."""
    arrival = pool[0].requests.arrival
    for place, request in enumerate(order.tolist()):
        if routing == "round_robin" or len(pool) == 1:
            chosen = pool[place % len(pool)]
            chosen.advance(arrival[request])
        else:
            for replica in pool:
                replica.advance(arrival[request])
            chosen = min(pool, key=Replica.in_system)
        chosen.submit(request)
    for replica in pool:
        replica.advance(_NEVER)


def _result(pool: list[Replica], requests: PoolRequests) -> Simulated:
    gap_s, gap_count = np.array([gap for replica in pool for gap in replica.gaps]).reshape(-1, 2).T
    ends, steps, seconds, running = np.array([run for replica in pool for run in replica.runs]).reshape(-1, 4).T
    return Simulated(
        np.array(requests.arrival, dtype=float),
        np.array(requests.first),
        np.array(requests.finish),
        np.array(requests.output, dtype=np.int64),
        gap_s,
        gap_count,
        ends,
        steps,
        seconds,
        running,
        sum(replica.preemptions for replica in pool),
    )
