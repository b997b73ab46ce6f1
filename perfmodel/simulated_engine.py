"""One simulated engine: who is in a step, and what a step does.

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
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perfmodel.step_law import LinearStep, StepTable

Mode = Literal["mixed", "chunked", "prefill_first"]
MODES: tuple[Mode, ...] = ("mixed", "chunked", "prefill_first")
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


@dataclass
class PoolRequests:
    """Lists shared by the replicas of a pool; every list has an entry per request.

    Parameters
    ----------
    arrival, first, finish : list of float
        Times of arrival, first and last token [s]; -1 until they are known.
    prompt, output : list of int
        Lengths [tokens].
    """

    arrival: list[float]
    prompt: list[int]
    output: list[int]
    first: list[float]
    finish: list[float]


class Replica:
    """The state of one engine between steps.

    Parameters
    ----------
    engine : Engine
        What it is.
    requests : PoolRequests
        The requests of all replicas; the times are filled in.
    """

    def __init__(self, engine: Engine, requests: PoolRequests) -> None:
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
        """Return how many requests wait or run."""
        return len(self.waiting) + len(self.filling) + self.decoding

    def submit(self, request: int) -> None:
        """Take a request whose arrival is not before the start of the next step."""
        if not (self.waiting or self.filling or self.decoding):
            self.clock = max(self.clock, self.requests.arrival[request])
        self.waiting.append(request)

    def advance(self, until: float, stop: bool = False) -> list[int]:
        """Take all steps that begin before a time [s]; with `stop` up to the first completion. Return who ended."""
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
