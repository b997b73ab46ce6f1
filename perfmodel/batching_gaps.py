"""Times between tokens of a sequence, as a distribution: how many prompts meet in a step, from step to step.

At the start of a step q prompt tokens wait. It takes up to its budget of them; during its time t, Poisson many requests
come, each with a prompt of log-normal length. Tokens that wait are a Markov chain, solved on a grid of `PARTS` parts of
a prompt; the sequences that decode are taken at their mean. With ``prefill_first`` a time between tokens is a step that
decodes and all steps that compute prompts until none waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfmodel.batching import Limits, Requests
from perfmodel.step_law import Array, StepLaw

PARTS = 4
"""Parts of a prompt, or of a step's budget where that is less, that are told apart."""

LONGEST = 16.0
"""Mean prompts that may wait."""

BIN, BINS = 0.2, 1500
"""Bins of time with ``prefill_first``, over the step that decodes, and how many of them."""

REST = 1e-4
"""Chance of longer waits that is left out."""


def gap_quantiles_s(
    law: StepLaw, requests: Requests, limits: Limits, sequences: float, rate: float, levels: Sequence[float]
) -> Array:
    """Return quantiles of the times between tokens [s].

    Parameters
    ----------
    law, requests, limits
        One candidate.
    sequences : float
        Sequences that decode on average.
    rate : float
        Arrivals [1/s], below the capacity.
    levels : sequence of float
        Probabilities.
    """
    prompt, budget = float(np.asarray(requests.prompt_tokens)), float(np.asarray(limits.token_budget))
    apart = limits.mode == "prefill_first"
    scv = float(np.asarray(requests.prompt_scv))
    if limits.mode == "chunked":
        room = max(budget - sequences, 1.0)
    else:
        room = max(budget, prompt) if scv else max(budget // prompt, 1.0) * prompt
    room = min(room, LONGEST * prompt)
    part = min(prompt, room) / PARTS
    most = int(room / part + 1e-9)
    waiting = np.arange(int(np.ceil(LONGEST * prompt / part)) + most)
    taken = np.minimum(waiting, most)
    beside, tokens = 0.0 if apart else sequences, np.arange(most + 1) * part
    step_s = law.seconds(
        np.full_like(tokens, beside),
        tokens,
        beside * np.asarray(requests.context_tokens),
        tokens * np.asarray(requests.pairs_per_token),
    )
    lengths = _lengths(prompt / part, scv, len(waiting))
    come = _come(rate * step_s, lengths)
    moves = np.zeros((len(waiting), len(waiting)))
    for q, through in enumerate(taken):
        moves[q, q - through :] = come[through, : len(waiting) - q + through]
    moves[:, -1] += 1.0 - moves.sum(axis=1)
    if not apart:
        return _quantiles(step_s, np.asarray(np.bincount(taken, weights=_stationary(moves)), float), levels)
    plain_s = float(law.seconds(sequences, 0.0, sequences * np.asarray(requests.context_tokens)))
    now = np.zeros((len(waiting), BINS))
    now[:, 0] = _come(np.array([rate * plain_s]), lengths)[0]
    later = np.minimum(np.maximum(np.rint(step_s / (BIN * plain_s)).astype(int), 1), BINS - 1)[taken]
    done = np.zeros(BINS)
    while True:
        done += now[0]
        now[0] = 0.0
        if now.sum() < REST:
            return _quantiles(plain_s * (1.0 + BIN * np.arange(BINS, dtype=float)), done, levels)
        moved = np.zeros_like(now)
        for q, shift in enumerate(later):
            moved[q, shift:] = now[q, : BINS - shift]
            moved[q, -1] += now[q, BINS - shift :].sum()
        now = moves.T @ moved


def _lengths(mean: float, scv: float, count: int) -> Array:
    """Return the chances of prompts of 0, 1, 2, ... parts: log-normal of a mean and variation, 1 part or more."""
    from scipy.special import ndtr

    edges = np.arange(count) + 0.5
    if scv == 0:
        low = int(mean)
        found = np.zeros(count)
        found[low : low + 2] = 1 - (mean - low), mean - low
        return found
    sigma = np.sqrt(np.log1p(scv))
    below = ndtr((np.log(edges / mean) + sigma**2 / 2) / sigma)
    found = np.diff(below, prepend=0.0)
    found[1] += found[0]
    found[0] = 0.0
    found[-1] += 1.0 - found.sum()
    return found


def _come(counts: Array, lengths: Array) -> Array:
    """Return the chances of 0, 1, 2, ... parts that come where so many requests do on average (compound Poisson)."""
    size = 2 * len(lengths)
    phase = np.fft.rfft(lengths, size)
    found = np.fft.irfft(np.exp(counts[:, None] * (phase - 1.0)), size)
    return np.asarray(np.maximum(found[:, : len(lengths)], 0.0))


def _stationary(moves: Array) -> Array:
    """Return the shares of time of a Markov chain in its states."""
    count = len(moves)
    equations = np.vstack([moves.T - np.eye(count), np.ones(count)])
    found = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)[0]
    return np.asarray(np.maximum(found, 0.0))


def _quantiles(values: Array, shares: Array, levels: Sequence[float]) -> Array:
    order = np.argsort(values)
    reached = np.cumsum(shares[order])
    place = np.searchsorted(reached, np.asarray(levels) * reached[-1])
    return np.asarray(values[order][np.minimum(place, len(values) - 1)])
