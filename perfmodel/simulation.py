"""Requests through continuous-batching engines, event by event: the check of the equations in `perfmodel.batching`.

An engine advances step by step. At the start of a step every request that has arrived is in its queue, first come
first served; who is in a step depends on the mode:

=================  ====================================================================================================
``mixed``          all running requests decode; waiting ones are admitted while fewer than `max_batch` run and their
                   whole prompts fit the token budget (the first always does)
``chunked``        all requests with complete prompts decode, a token of the budget each; what is left goes to
                   unfinished prompts in order of admission, then to newly admitted ones; prompts are cut anywhere
``prefill_first``  while someone waits and fewer than `max_batch` run, steps only prefill, as in ``mixed``; else they
                   only decode
=================  ====================================================================================================

While nobody can be admitted the steps up to the next completion, arrival or full cache are taken at once, in closed
form.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perfmodel.step_law import Array, LinearStep, StepTable

Mode = Literal["mixed", "chunked", "prefill_first"]
Routing = Literal["round_robin", "least_loaded"]
MODES: tuple[Mode, ...] = ("mixed", "chunked", "prefill_first")
Integers = NDArray[np.int64]
_NEVER = float("inf")


@dataclass(frozen=True)
class Engine:
    """One replica: its step law and its limits.

    Parameters
    ----------
    law : LinearStep or StepTable
        Time of a step, of one candidate.
    mode : str
        Who is in a step: ``mixed``, ``chunked`` or ``prefill_first``.
    max_batch : int
        Most requests that run at once.
    token_budget : int
        Most prompt tokens of a step; with ``chunked`` most tokens.
    kv_tokens : float
        Tokens whose keys and values fit in memory. When decoding overflows them the request admitted last is put back
        to the head of the queue.
    swap_s_per_token : float or None
        Time to move a token's keys and values out of memory, and again to move them back [s], added to the step; None
        recomputes them with the prompt.
    tokens_per_step : float
        Tokens that a sequence emits in a step, on average: above 1 with speculative decoding.
    """

    law: LinearStep | StepTable
    mode: Mode
    max_batch: int
    token_budget: int
    kv_tokens: float = _NEVER
    swap_s_per_token: float | None = None
    tokens_per_step: float = 1.0


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


@dataclass
class _Requests:
    """Lists shared by the replicas of a pool; every list has an entry per request."""

    arrival: list[float]
    prompt: list[int]
    output: list[int]
    first: list[float]
    finish: list[float]


class _Replica:
    """The state of one engine between steps."""

    def __init__(self, engine: Engine, requests: _Requests) -> None:
        self.engine, self.requests = engine, requests
        self.clock = 0.0
        self.waiting: deque[int] = deque()
        self.filling: deque[int] = deque()
        """Requests admitted whose prompt is not complete, in order of admission."""
        self.ending: list[tuple[int, int, int]] = []
        """Heap of the decoding requests: the count of decode steps at which they end, admission number, request."""
        self.count = 0
        self.decoding = 0
        self.context = 0.0
        """Tokens that the decoding sequences hold."""
        self.reserved = 0.0
        """Tokens of memory of admitted requests that do not decode yet."""
        self.admitted: list[tuple[int, int]] = []
        """Admission number and request, latest last; entries of requests that have gone stay until they surface."""
        self.number: dict[int, int] = {}
        """Admission number of the requests that run."""
        self.admissions = 0
        self.todo: dict[int, int] = {}
        """Prompt tokens still to compute of requests in `filling`, and of preempted ones."""
        self.steps_left: dict[int, int] = {}
        """Decode steps that a preempted request still needs."""
        self.paused: dict[int, float] = {}
        """Times at which preempted requests were put back [s]."""
        self.swap = 0.0
        """Time of moves to and from memory that the next step takes longer [s]."""
        self.stalls: list[tuple[float, int]] = []
        """Steps without decoding since the last that decoded: their time [s], and how many sequences they kept."""
        self.late: list[float] = []
        """Times that sequences moved back to memory have waited since their last token [s]."""
        self.preemptions = 0
        self.gaps: list[tuple[float, float]] = []
        self.runs: list[tuple[float, float, float, float]] = []
        table = engine.law.table()
        self._rows: dict[int, list[float]] = {}
        self._table = table
        self._grid: list[float] = table.prompt_tokens.tolist()
        counts = np.arange(engine.max_batch + 1)
        self._decode_s: list[float] = table.seconds(counts, 0.0, 0.0).tolist()
        self._per_context = float(np.asarray(table.per_context_token_s))
        self._per_pair = float(np.asarray(table.per_attended_pair_s))

    def in_system(self) -> int:
        return len(self.waiting) + len(self.filling) + self.decoding

    def submit(self, request: int) -> None:
        """Take a request whose arrival is not before the start of the next step."""
        if not (self.waiting or self.filling or self.decoding):
            self.clock = max(self.clock, self.requests.arrival[request])
        self.waiting.append(request)

    def advance(self, until: float, stop: bool = False) -> list[int]:
        """Take all steps that begin before a time; with `stop` only up to the first completion. Return who ended."""
        ended: list[int] = []
        while self.clock < until and (self.waiting or self.filling or self.decoding):
            ended += self._step(until)
            if stop and ended:
                break
        return ended

    def _seconds(self, n: int, m: int, pairs: float) -> float:
        """Return the time of a step with prompt tokens [s]."""
        row = self._rows.get(n)
        if row is None:
            row = self._rows[n] = self._table.seconds(n, self._table.prompt_tokens, 0.0).tolist()
        grid = self._grid
        j = min(bisect_right(grid, m) - 1, len(grid) - 2)
        v = (m - grid[j]) / (grid[j + 1] - grid[j])
        seconds = row[j] + v * (row[j + 1] - row[j]) + self._per_pair * pairs
        return seconds + self._per_context * self.context if n else seconds

    def _admit(self, batch: list[int], budget: int, whole: bool) -> tuple[int, float]:
        """Move requests that wait into the batch; return their prompt tokens in this step and attended pairs."""
        engine, prompts, pace = self.engine, self.requests.prompt, self.engine.tokens_per_step
        m, pairs = 0, 0.0
        while self.waiting and len(self.number) < engine.max_batch:
            request = self.waiting[0]
            tokens = self.todo.get(request, prompts[request])
            if tokens and (m + tokens > budget and m > 0 if whole else m >= budget):
                break
            held = self._held(request)
            if self.context + self.reserved + held + (len(self.number) + 1) * pace > engine.kv_tokens:
                break
            self.waiting.popleft()
            self.admissions += 1
            self.number[request] = self.admissions
            self.admitted.append((self.admissions, request))
            if not tokens:
                if request in self.paused:
                    self.swap += (engine.swap_s_per_token or 0.0) * held
                self._decode(request, held)
                continue
            self.reserved += held
            part = tokens if whole else min(tokens, budget - m)
            m += part
            pairs += part * (part + 1) / 2
            if part == tokens:
                batch.append(request)
            else:
                self.todo[request] = tokens - part
                self.filling.append(request)
        return m, pairs

    def _decode(self, request: int, held: float) -> bool:
        """Let a request decode from the next step on that is computed; return whether it has tokens to emit."""
        left = self.steps_left.pop(request, None)
        if left is None:
            left = self._steps(request)
            if self.requests.first[request] < 0:
                self.requests.first[request] = self.clock
        else:
            pause = self.clock - self.paused.pop(request)
            if self.todo.get(request):  # what was lost is computed again like a prompt, which emits tokens
                pace = self.engine.tokens_per_step
                self.gaps.append((pause / pace, pace))
                left, held = left - 1, held + pace
            else:
                self.late.append(pause)
        self.todo.pop(request, None)
        if left <= 0:
            return False
        self.decoding += 1
        self.context += held
        heapq.heappush(self.ending, (self.count + left, self.number[request], request))
        return True

    def _held(self, request: int) -> float:
        """Return the tokens of memory that a request holds when it begins, or begins again, to decode."""
        held = self.requests.prompt[request] + 1.0
        left = self.steps_left.get(request)
        return held if left is None else held + (self._steps(request) - left) * self.engine.tokens_per_step

    def _steps(self, request: int) -> int:
        """Return the decode steps of a request in all."""
        more = self.requests.output[request] - 1
        pace = self.engine.tokens_per_step
        return more if pace == 1 else -int(-more // pace)

    def _step(self, until: float) -> list[int]:
        """Take a step, or several equal ones; return who ended."""
        engine = self.engine
        whole = engine.mode != "chunked"
        crowded = self.context + self.reserved + self.decoding * engine.tokens_per_step > engine.kv_tokens
        if crowded:
            self._preempt()
        batch: list[int] = []
        budget = engine.token_budget if whole else engine.token_budget - self.decoding
        m, pairs = (0, 0.0) if whole else self._fill(batch, budget)
        if not (self.filling or crowded):
            more, extra = self._admit(batch, budget - m, whole)
            m, pairs = m + more, pairs + extra
        if not (m or self.swap):
            return self._run(until)
        n = 0 if batch and engine.mode == "prefill_first" else self.decoding
        seconds = self._seconds(n, m, pairs) + self.swap
        self.swap = 0.0
        return self._finish(n, seconds, batch, 1)

    def _fill(self, batch: list[int], budget: int) -> tuple[int, float]:
        """Give unfinished prompts their share of a step; return the tokens and the attended pairs."""
        m, pairs = 0, 0.0
        while self.filling and m < budget:
            request = self.filling[0]
            left = self.todo[request]
            part = min(left, budget - m)
            pairs += part * (self._held(request) - 1 - left) + part * (part + 1) / 2
            m += part
            self.todo[request] = left - part
            if part < left:
                break
            self.todo[request] = left  # of a preempted request it says that it was computed again
            self.filling.popleft()
            batch.append(request)
        return m, pairs

    def _run(self, until: float) -> list[int]:
        """Take decode steps up to the next completion, full cache or time."""
        n, pace = self.decoding, self.engine.tokens_per_step
        while self.number.get(self.ending[0][2]) != self.ending[0][1]:
            heapq.heappop(self.ending)
        steps = self.ending[0][0] - self.count
        room = self.engine.kv_tokens - self.context - self.reserved
        if room < steps * n * pace:
            steps = max(int(room // (n * pace)), 1)
        base = self._decode_s[n] + self._per_context * self.context
        growth = self._per_context * n * pace
        span = until - self.clock
        if span < steps * (base + growth * (steps - 1) / 2):
            if growth * steps < 1e-9 * base:
                enough = -int(-span // base)
            else:
                linear = base - growth / 2
                enough = int(np.ceil((np.sqrt(linear * linear + 2 * growth * span) - linear) / growth))
            steps = max(min(steps, enough), 1)
        return self._finish(n, steps * (base + growth * (steps - 1) / 2), [], steps)

    def _finish(self, n: int, seconds: float, batch: list[int], steps: int) -> list[int]:
        """Move the clock, emit the tokens, start to decode who has a first token, and let go who is done."""
        pace, number, finish = self.engine.tokens_per_step, self.number, self.requests.finish
        self.clock += seconds
        self.runs.append((self.clock, steps, seconds, len(number)))
        ended: list[int] = []
        if n:
            self._emit(n, seconds / steps, steps)
            self.count += steps
            self.context += n * steps * pace
            ending = self.ending
            while ending and ending[0][0] <= self.count:
                _, admission, request = heapq.heappop(ending)
                if number.get(request) == admission:
                    self.decoding -= 1
                    self.context -= self.requests.prompt[request] + 1 + self._steps(request) * pace
                    ended.append(request)
        elif self.decoding:
            self.stalls.append((seconds, self.decoding))
        for request in batch:
            held = self._held(request)
            self.reserved -= held
            if not self._decode(request, held):
                ended.append(request)
        for request in ended:
            del number[request]
            finish[request] = self.clock
        return ended

    def _emit(self, n: int, step_s: float, steps: int) -> None:
        """Note the times between tokens; those of sequences that were kept waiting are longer."""
        pace, gaps = self.engine.tokens_per_step, self.gaps
        on_time = n * steps
        if self.stalls or self.late:
            longer, before = sum(seconds for seconds, _ in self.stalls), 0
            for seconds, kept in self.stalls:
                count = min(kept, n) - before
                gaps.append(((longer + step_s) / pace, count * pace))
                longer, before, on_time = longer - seconds, before + count, on_time - count
            for seconds in self.late:
                gaps.append(((seconds + step_s) / pace, pace))
            on_time -= len(self.late)
            self.stalls, self.late = [], []
        gaps.append((step_s / pace, on_time * pace))

    def _preempt(self) -> None:
        """Put the requests admitted last back to the head of the queue until the others can decode."""
        engine = self.engine
        while self.context + self.reserved + self.decoding * engine.tokens_per_step > engine.kv_tokens:
            admission, request = self.admitted.pop()
            if self.number.get(request) != admission:
                continue
            del self.number[request]
            self.preemptions += 1
            if self.filling and self.filling[-1] == request:
                self.filling.pop()
                held = self._held(request)
                self.reserved -= held
                if request in self.steps_left:
                    self.todo[request] = int(held) - 1
                else:
                    del self.todo[request]
            else:
                end = next(end for end, owner, _ in self.ending if owner == admission)
                self.steps_left[request] = end - self.count
                held = self._held(request)
                self.context -= held
                self.decoding -= 1
                self.paused[request] = self.clock
                if engine.swap_s_per_token is None:
                    self.todo[request] = int(held) - 1
                else:
                    self.todo[request] = 0
                    self.swap += engine.swap_s_per_token * held
            self.waiting.appendleft(request)


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
    pool = [_Replica(engine, requests) for _ in range(replicas)]
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
    pool = [_Replica(engine, requests) for _ in range(replicas)]
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
    fills = [_Replica(prefill, first) for _ in range(prefill_replicas)]
    _feed(fills, np.arange(len(single)), routing)
    ready = np.asarray(first.finish) + transfer_s + transfer_s_per_token * prompt_tokens
    requests = _requests(decode, ready, prompt_tokens, output_tokens)
    requests.first[:] = first.finish
    requests.finish[:] = first.finish
    decodes = [_Replica(decode, requests) for _ in range(decode_replicas)]
    for replica in decodes:
        replica.todo = dict.fromkeys(range(len(single)), 0)
    order = np.argsort(ready, kind="stable")
    _feed(decodes, order[np.asarray(output_tokens)[order] > 1], routing)
    result = _result([*decodes, *fills], requests)
    return replace(result, arrival_s=np.asarray(arrival_s, dtype=float))


def _requests(engine: Engine, arrival_s: Array, prompt_tokens: Integers, output_tokens: Integers) -> _Requests:
    most = int(np.max(np.asarray(prompt_tokens) + output_tokens, initial=0)) + engine.tokens_per_step
    if most >= engine.kv_tokens:
        raise ValueError(f"a request of {most:,.0f} tokens does not fit the cache of {engine.kv_tokens:,.0f}")
    count = len(prompt_tokens)
    arrival, prompt, output = (np.asarray(values).tolist() for values in (arrival_s, prompt_tokens, output_tokens))
    return _Requests(arrival, prompt, output, [-1.0] * count, [-1.0] * count)


def _feed(pool: list[_Replica], order: Integers, routing: Routing) -> None:
    """Give requests to replicas in order of arrival, and run them to the end."""
    arrival = pool[0].requests.arrival
    for place, request in enumerate(order.tolist()):
        if routing == "round_robin" or len(pool) == 1:
            chosen = pool[place % len(pool)]
            chosen.advance(arrival[request])
        else:
            for replica in pool:
                replica.advance(arrival[request])
            chosen = min(pool, key=_Replica.in_system)
        chosen.submit(request)
    for replica in pool:
        replica.advance(_NEVER)


def _result(pool: list[_Replica], requests: _Requests) -> Simulated:
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
