"""What requests see of instances in benchmarks: clients that all start at once, of instances that do everything or of
pools of their own for prompts.

Times are means over a run of so many requests of each client. What engines do is in `perfmodel.batching_runs` and
`perfmodel.batching`; here the host is added: requests that come at once are passed on one after another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from perfmodel.batching import Limits, Requests, open_loop, secants
from perfmodel.batching_runs import closed_loop_burst, ends, prompts_at_once
from perfmodel.serving.engine import Engine
from perfmodel.serving.host import intake_s, passed_on_s, received_s
from perfmodel.step_law import StepLaw
from perfmodel.terms import Array, Number

BUSIEST = 0.98
"""Share of their capacity that pools of prompts use at most."""


@dataclass(frozen=True)
class Served:
    """What requests see.

    Parameters
    ----------
    ttft_s, tpot_s : array
        Mean time to the first token, and of every further one [s].
    requests_per_s : array
        Throughput of the instances of the law.
    running : array
        Sequences that decode at a time.
    """

    ttft_s: Array
    tpot_s: Array
    requests_per_s: Array
    running: Array


def from_start(
    law: StepLaw, requests: Requests, limits: Limits, engine: Engine, concurrency: Number, *, rounds: Number
) -> Served:
    """Return what `concurrency` clients of an instance see that send again as soon as they are answered.

    Parameters
    ----------
    law, requests, limits
        The instances, as `perfmodel.batching` takes them.
    engine : Engine
        Whose host it is.
    concurrency : array
        Clients of the instance.
    rounds : array
        Requests of a client; all send their first at once.
    """
    clients = np.asarray(concurrency, float)
    inside = np.minimum(clients, limits.max_batch)
    run = closed_loop_burst(law, requests, limits, clients, rounds)
    together, shared = ends(law, requests, limits, clients, rounds)
    begin_s = passed_on_s(engine, inside - 1, run.burst_ttft_s - run.alone_ttft_s)
    later_s = passed_on_s(engine, together, run.steady.ttft_s - run.alone_ttft_s)
    later_s = later_s + intake_s(engine, run.steady.tpot_s, shared)
    first = inside / (clients * np.asarray(rounds, float))
    host_s = received_s(engine) + first * begin_s + (1 - first) * later_s
    rate = clients / (clients / run.requests_per_s + host_s)
    return Served(run.ttft_s + host_s, run.tpot_s, rate, run.steady.running)


def pools(
    prefill: tuple[StepLaw, Limits, Number],
    decode: tuple[StepLaw, Limits, Number],
    requests: Requests,
    engine: Engine,
    concurrency: Number,
    *,
    rounds: Number,
) -> Served:
    """Return what clients of a closed loop see where prompts and answers have instances of their own.

    Parameters
    ----------
    prefill, decode : tuple of StepLaw, Limits and array
        An instance of each kind, and how many there are.
    engine : Engine
        Whose host it is.
    concurrency : array
        Clients of all instances together.

    Notes
    -----
    The cache of a prompt crosses the network behind the layers that follow; what is left of it is one layer's, which
    does not show. The first requests of all clients come to the prompts' instances at once, later ones at any time, as
    `perfmodel.batching.open_loop` has it, at the rate at which X (TTFT + (G - 1) T) is the clients; no faster than the
    prompts' instances allow.
    """
    (prompt_law, prompt_limits, workers), (law, limits, instances) = prefill, decode
    clients = np.asarray(concurrency, float)
    limit = np.minimum(clients, np.asarray(limits.max_batch, float) * instances)
    gaps = np.maximum(requests.decode_steps, 1e-9)
    prompts = replace(requests, output_tokens=1.0, output_scv=0.0)
    each = np.maximum(limit / workers, 1.0)
    begin_s, alone_s = (prompts_at_once(prompt_law, prompts, prompt_limits, n)[1] for n in (each, np.ones_like(each)))
    most = BUSIEST * open_loop(prompt_law, prompts, prompt_limits, 1e-9).capacity_requests_per_s * workers

    def paced(own: Array) -> tuple[Array, Array]:
        token_s = law.seconds(own, 0.0, own * requests.context_tokens)
        return own * instances / (gaps * token_s), token_s

    def over(own: Array) -> tuple[Array, None]:
        return paced(own)[0] - most, None

    def miss(own: Array) -> tuple[Array, None]:
        rate, token_s = paced(own)
        later = open_loop(prompt_law, prompts, prompt_limits, np.minimum(rate, most) / workers)
        return rate * (later.ttft_s + gaps * token_s) - limit, None

    low, top = 1e-9 * limit / instances, limit / instances
    top = secants(over, low, top, -most, top, most)[0]
    own = secants(miss, low, top, -limit, top, limit)[0]
    rate, token_s = paced(own)
    later_s = np.maximum(limit / rate - gaps * token_s, alone_s) + intake_s(engine, token_s, own > 1)
    begin_s = begin_s + passed_on_s(engine, limit - 1, begin_s - alone_s)
    first = limit / (clients * np.asarray(rounds, float))
    queued_s = np.maximum(clients - limit, 0.0) / rate
    host_s = received_s(engine) + engine.handoff_overhead
    ttft_s = host_s + first * begin_s + (1 - first) * later_s + token_s + queued_s
    return Served(ttft_s, token_s, rate, own * instances)
