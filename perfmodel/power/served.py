"""What a server draws while it serves requests: phases from the step law, seconds from requests, statistics from those.

Prompts wait for each other and run alone, near the limit; answers are decoded together, at fewer watts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.power.constants import throttle_of
from perfmodel.power.device import Activity, board_power_w
from perfmodel.power.node import node_power_w
from perfmodel.power.work import serving_activity, sizes_of
from perfmodel.requests import Integers
from perfmodel.serving.capacity import capacity
from perfmodel.serving.latency import slots
from perfmodel.serving.law import NO_SPECULATION, Demand
from perfmodel.serving.server import Server
from perfmodel.serving.step import PARTS, Deployment, Load, step
from perfmodel.terms import Array, Number

PROMPT_TOKENS = 2.0 ** np.arange(4, 18.1, 0.5)
"""Lengths of prompts at which their time is computed; between them it is linear."""

TYPICAL_SEQUENCES = 32
"""Sequences at which it is told how much of the time of decoding follows the clock."""

LOADS = 12
"""Loads, up to `HIGHEST_LOAD` of what an instance can do, at which its power is simulated for its statistics."""
HIGHEST_LOAD = 0.9
STATISTICS_S = 1200
STATISTICS_SERVERS = 8
WARM_UP_S = 120
LONGEST_LAG_S = 120


@dataclass(frozen=True)
class Lengths:
    """Prompts and answers of recorded requests, drawn together.

    Parameters
    ----------
    prompt_tokens, output_tokens : array of int, shape (requests,)
        Lengths.
    """

    prompt_tokens: Integers
    output_tokens: Integers

    @property
    def demand(self) -> Demand:
        """Means and spreads."""
        prompt, output = self.prompt_tokens, self.output_tokens
        return Demand(
            float(prompt.mean()),
            float(output.mean()),
            float(prompt.var() / prompt.mean() ** 2),
            float(output.var() / output.mean() ** 2),
        )


@dataclass(frozen=True)
class ServerLaw:
    """A server of equal instances, as its meter sees it.

    Parameters
    ----------
    instances : int
        Instances of the server.
    waiting_w, prompt_w : float
        Power with all instances waiting, and all at prompts [W].
    decode_w : array, shape (sequences + 1,)
        Power with all of them decoding so many sequences; waiting at none [W].
    step_s : array, shape (sequences + 1,)
        Time of a step of so many sequences [s].
    prompt_s : array, shape of `PROMPT_TOKENS`
        Time of a prompt [s].
    static_w, highest_w : float
        What does not change with the clock, and the most it can draw [W].
    voltage_floor : float
        Clock over the highest at which the voltage is lowest [1].
    prompt_share, decode_share : float
        Parts of the time of prompts and of decoding that follow the clock: all kernels of prompts; of decoding as much
        as its arithmetic takes at its peak [1].
    """

    instances: int
    waiting_w: float
    prompt_w: float
    decode_w: Array
    step_s: Array
    prompt_s: Array
    static_w: float
    highest_w: float
    voltage_floor: float
    prompt_share: float
    decode_share: float

    def prompt_time_s(self, tokens: Number) -> Array:
        """Return the time of prompts [s]."""
        return np.asarray(np.interp(tokens, PROMPT_TOKENS, self.prompt_s))

    def sequences(self, rate: Number, demand: Demand) -> Array:
        """Return the mean sequences that an instance decodes at a rate of requests [1/s].

        Notes
        -----
        Little's law, n = x (G - 1) s(n)/(1 - u): prompts take a share u of the time from the steps of decoding. The
        smallest solution, and the slots where there is none.
        """
        x = np.asarray(rate, float)
        left = np.maximum(1.0 - x * float(self.prompt_time_s(demand.prompt_tokens)), 1e-3)
        n = np.arange(len(self.step_s), dtype=float)
        asked = (x / left)[..., None] * max(demand.output_tokens - 1.0, 0.0) * self.step_s
        enough = asked <= n
        first = np.where(enough.any(axis=-1), enough.argmax(axis=-1), len(n) - 1)
        more = np.take_along_axis(asked, np.maximum(first - 1, 0)[..., None], axis=-1)[..., 0] - (first - 1)
        less = np.take_along_axis(asked, first[..., None], axis=-1)[..., 0] - first
        part = np.where(more > less, more / np.where(more > less, more - less, 1.0), 1.0)
        return np.asarray(np.clip(first - 1 + part, 0.0, len(n) - 1))

    def capacity(self, demand: Demand) -> float:
        """Return the requests a second that one instance can answer [1/s]."""
        most = len(self.step_s) - 1
        return 1.0 / (
            float(self.prompt_time_s(demand.prompt_tokens))
            + max(demand.output_tokens - 1.0, 0.0) * float(self.step_s[-1]) / most
        )

    def compute_share(self, rate: float, demand: Demand) -> float:
        """Return the part of an instance's busy time that follows the clock, at a rate of requests [1/s]."""
        prompts = rate * float(self.prompt_time_s(demand.prompt_tokens))
        decoding = (1.0 - min(prompts, 1.0)) * (1.0 - np.exp(-float(self.sequences(rate, demand))))
        return float((prompts * self.prompt_share + decoding * self.decode_share) / max(prompts + decoding, 1e-9))


@dataclass(frozen=True)
class ServerStatistics:
    """Power of one server against its load, over time at a steady rate.

    Parameters
    ----------
    load : array, shape (loads,)
        Requests over what its instances can do [1].
    mean_w : array, shape (loads,)
        Mean power [W].
    fast_w2, slow_w2 : array, shape (loads,)
        Variance of its power over a second: of what changes from one second to the next, and of what stays [W^2].
    time_s : float
        Time over which the slow part forgets [s].
    compute_share : array, shape (loads,)
        Part of its busy time that follows the clock [1].
    """

    load: Array
    mean_w: Array
    fast_w2: Array
    slow_w2: Array
    time_s: float
    compute_share: Array

    def mean(self, load: Number) -> Array:
        """Return the mean power at a load [W]."""
        return np.asarray(np.interp(load, self.load, self.mean_w))

    def variance(self, load: Number) -> tuple[Array, Array]:
        """Return the variance of the fast and of the slow part at a load [W^2]."""
        return (
            np.asarray(np.interp(load, self.load, self.fast_w2)),
            np.asarray(np.interp(load, self.load, self.slow_w2)),
        )


def server_law(server: Server, deployment: Deployment, demand: Demand) -> ServerLaw:
    """Return the power and the times of a server that is full of instances of one layout.

    Parameters
    ----------
    server, deployment, demand : Server, Deployment, Demand
        Model, machine and engine; layout of an instance within a node; what requests are like.
    """
    machine, boards = server.machine, int(np.asarray(deployment.accelerators))
    if boards > machine.node.accelerators.count:
        raise ValueError("an instance is spread over more than one server")
    defaults = server.engine.defaults
    room = capacity(server, deployment, float(defaults.max_num_batched_tokens)).cache_tokens
    most = int(slots(room, demand, NO_SPECULATION, float(defaults.max_num_seqs)))
    if most < 1:
        raise ValueError("the model does not fit the memory of an instance")
    n = np.arange(1.0, most + 1)
    decode_s = np.asarray(step(server, deployment, Load(n, demand.context_tokens)).seconds, float)
    prompt_s = np.asarray(step(server, deployment, Load(prompts=1.0, prompt_tokens=PROMPT_TOKENS)).seconds, float)
    mean_s = float(np.interp(demand.prompt_tokens, PROMPT_TOKENS, prompt_s))

    def activity_of(steps: Number, sequences: Number, prompt_tokens: float = 0.0) -> Activity:
        return serving_activity(
            sizes_of(server.architecture),
            machine.accelerator,
            accelerators=boards,
            steps_per_s=steps,
            sequences=sequences,
            context_tokens=demand.context_tokens,
            prompt_tokens_per_s=prompt_tokens,
            weight_bytes=server.form.weight_bytes,
            cache_bytes=server.cache_bytes,
        )

    count, limit_w = machine.node.accelerators.count, machine.accelerator.power.limit

    def power_w(steps: Number, sequences: Number, prompt_tokens: float = 0.0) -> Array:
        activity = activity_of(steps, sequences, prompt_tokens)
        return node_power_w(machine.node, count * board_power_w(machine.accelerator, activity))

    throttle = throttle_of(machine.accelerator)
    waiting_w = float(power_w(0.0, 0.0))
    prompts = step(server, deployment, Load(prompts=1.0, prompt_tokens=demand.prompt_tokens))
    typical = min(most, TYPICAL_SEQUENCES)
    typical_s = float(decode_s[typical - 1])
    return ServerLaw(
        count // boards,
        waiting_w,
        float(power_w(1.0 / mean_s, 0.0, demand.prompt_tokens / mean_s)),
        np.concatenate([[waiting_w], power_w(1.0 / decode_s, n)]),
        np.concatenate([[decode_s[0]], decode_s]),
        prompt_s,
        float(node_power_w(machine.node, count * throttle.static * limit_w)),
        float(node_power_w(machine.node, count * limit_w)),
        throttle.voltage_floor,
        sum(float(np.sum(part.seconds)) for part in prompts.children if part.name in PARTS)
        / float(np.sum(prompts.seconds)),
        float(activity_of(1.0 / typical_s, typical).compute),
    )


def request_power_w(
    law: ServerLaw, lengths: Lengths, rate: Array, smooth_rate: Array, random: np.random.Generator
) -> Array:
    """Return the mean power of one server in every second, from requests of its own [W].

    Parameters
    ----------
    law : ServerLaw
        The server.
    lengths : Lengths
        What its requests are drawn from.
    rate : array, shape (seconds,)
        Requests that it gets a second on average; Poisson around that [1/s].
    smooth_rate : array, shape (seconds,)
        The same without bursts: the time per token is that of this rate [1/s].
    random : numpy.random.Generator
        Where the randomness comes from.
    """
    every = [_instance(law, lengths, rate, smooth_rate, random) for _ in range(law.instances)]
    return np.asarray(np.mean(every, axis=0))


def _instance(law: ServerLaw, lengths: Lengths, rate: Array, smooth_rate: Array, random: np.random.Generator) -> Array:
    seconds, demand = len(rate), lengths.demand
    counts = random.poisson(rate / law.instances)
    arrival = np.repeat(np.arange(seconds), counts) + random.random(counts.sum())
    arrival.sort()
    if not len(arrival):
        return np.full(seconds, law.waiting_w)
    drawn = random.integers(0, len(lengths.prompt_tokens), len(arrival))
    prompt_s = law.prompt_time_s(lengths.prompt_tokens[drawn])
    done = np.cumsum(prompt_s)
    end = done + np.maximum.accumulate(arrival - (done - prompt_s))  # prompts wait for those before them
    edges = np.arange(seconds + 1.0)
    points, busy = np.empty(2 * len(end)), np.empty(2 * len(end))
    points[0::2], points[1::2] = end - prompt_s, end
    busy[0::2], busy[1::2] = done - prompt_s, done
    prompts = np.diff(np.interp(edges, points, busy))
    levels = np.linspace(0.0, max(float(smooth_rate.max()) / law.instances, 1e-9), 33)
    running = law.sequences(levels, demand)
    left = np.maximum(1.0 - levels * float(law.prompt_time_s(demand.prompt_tokens)), 1e-3)
    per_token = np.interp(running, np.arange(len(law.step_s)), law.step_s) / left
    token_s = np.interp(smooth_rate[arrival.astype(int)] / law.instances, levels, per_token)
    over = end + (lengths.output_tokens[drawn] - 1) * token_s
    decoding = np.minimum(_running(end, seconds) - _running(over, seconds), len(law.step_s) - 1.0)
    decode_w = np.interp(decoding, np.arange(len(law.decode_w)), law.decode_w)
    return np.asarray(prompts * law.prompt_w + (1.0 - prompts) * decode_w)


def _running(events: Array, seconds: int) -> Array:
    """Return how many events were past, on average over every second."""
    inside = events[events < seconds]
    whole = inside.astype(int)
    part = inside - whole
    steps = np.bincount(whole, 1.0 - part, seconds + 1) + np.bincount(whole + 1, part, seconds + 1)
    return np.asarray(np.cumsum(steps)[:seconds])


def server_statistics(law: ServerLaw, lengths: Lengths, seed: int = 0) -> ServerStatistics:
    """Return the power of a server against its load, from simulated requests at steady rates.

    Parameters
    ----------
    law, lengths : ServerLaw, Lengths
        The server, and what its requests are drawn from.
    seed : int
        Fixes the requests.

    Notes
    -----
    Variance is split by the autocovariance C of seconds: what is gone after one second is fast; the rest forgets over
    the time whose exponential has the same sum, T = sum of C(l)/C(1), and C(1) e^(1/T) is its variance.
    """
    random = np.random.default_rng(seed)
    most = law.capacity(lengths.demand) * law.instances
    loads = HIGHEST_LOAD * np.linspace(0.0, 1.0, LOADS + 1) ** 1.5
    mean, fast, slow, times = [law.waiting_w], [0.0], [0.0], []
    for load in loads[1:].tolist():
        rate = np.full(STATISTICS_S + WARM_UP_S, load * most)
        runs = [request_power_w(law, lengths, rate, rate, random)[WARM_UP_S:] for _ in range(STATISTICS_SERVERS)]
        power = np.stack(runs)
        around = power - power.mean()
        lags = [float((around[:, lag:] * around[:, : STATISTICS_S - lag]).mean()) for lag in range(LONGEST_LAG_S)]
        kept = max(lags[1], 0.0)
        time_s = max(sum(max(value, 0.0) for value in lags[1:]) / kept, 1.0) if kept else 1.0
        stays = min(kept * np.exp(1.0 / time_s), lags[0])
        mean.append(float(power.mean()))
        slow.append(stays)
        fast.append(lags[0] - stays)
        times.append(time_s)
    weights = np.array(slow[1:]) if sum(slow) else np.ones(LOADS)
    forgets_s = float(np.average(times, weights=weights))
    shares = [law.compute_share(load * most / law.instances, lengths.demand) for load in loads.tolist()]
    return ServerStatistics(loads, np.array(mean), np.array(fast), np.array(slow), forgets_s, np.array(shares))
