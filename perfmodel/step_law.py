"""How long one step of a serving engine takes, as a function of what the step holds.

A step holds n sequences that decode, m prompt tokens, the k tokens of context that the n sequences read, and the
attended pairs of the prompts: token by token, the tokens of context that each prompt token sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class StepLaw(Protocol):
    """The time of a step. Parameters of candidates and what steps hold broadcast against each other."""

    def seconds(
        self, sequences: ArrayLike, prompt_tokens: ArrayLike, context_tokens: ArrayLike, attended_pairs: ArrayLike = 0.0
    ) -> Array:
        """Return the time of a step of n sequences, m prompt tokens, k tokens of context and some pairs [s]."""


@dataclass(frozen=True)
class LinearStep:
    """A step whose time is linear in what it holds; all fields broadcast.

    Parameters
    ----------
    step_s : array_like
        Time of an empty step [s].
    per_sequence_s, per_prompt_token_s, per_context_token_s, per_attended_pair_s : array_like
        Time of each sequence that decodes, prompt token, token of context read and attended pair of a prompt [s].
    """

    step_s: ArrayLike
    per_sequence_s: ArrayLike
    per_prompt_token_s: ArrayLike
    per_context_token_s: ArrayLike = 0.0
    per_attended_pair_s: ArrayLike = 0.0

    def seconds(
        self, sequences: ArrayLike, prompt_tokens: ArrayLike, context_tokens: ArrayLike, attended_pairs: ArrayLike = 0.0
    ) -> Array:
        """Return the time of a step [s]."""
        return np.asarray(
            self.step_s
            + np.multiply(self.per_sequence_s, sequences)
            + np.multiply(self.per_prompt_token_s, prompt_tokens)
            + np.multiply(self.per_context_token_s, context_tokens)
            + np.multiply(self.per_attended_pair_s, attended_pairs)
        )

    def table(self) -> StepTable:
        """Return the same law as a table; of one candidate only."""
        corner = np.array([[0.0, 0.0], [1.0, 1.0]])
        seconds = (
            float(np.asarray(self.step_s))
            + float(np.asarray(self.per_sequence_s)) * corner
            + float(np.asarray(self.per_prompt_token_s)) * corner.T
        )
        grid = np.array([0.0, 1.0])
        return StepTable(grid, grid, seconds, self.per_context_token_s, self.per_attended_pair_s)


@dataclass(frozen=True)
class StepTable:
    """A step whose time is tabulated over sequences and prompt tokens, and linear in contexts and pairs.

    Between the entries it is bilinear; beyond the last ones it goes on as between the last two.

    Parameters
    ----------
    sequences, prompt_tokens : array, shapes (N,) and (M,)
        Ascending grids from 0; two entries at least.
    seconds_at : array, shape (..., N, M)
        Time of a step without contexts and pairs [s]; leading axes are candidates.
    per_context_token_s, per_attended_pair_s : array_like
        Time of each token of context read and each attended pair [s]; broadcast with the candidates.
    """

    sequences: Array
    prompt_tokens: Array
    seconds_at: Array
    per_context_token_s: ArrayLike = 0.0
    per_attended_pair_s: ArrayLike = 0.0

    def seconds(
        self, sequences: ArrayLike, prompt_tokens: ArrayLike, context_tokens: ArrayLike, attended_pairs: ArrayLike = 0.0
    ) -> Array:
        """Return the time of a step [s]; candidates run along the leading axes of all arguments."""
        lead = self.seconds_at.shape[:-2]
        shape = np.broadcast_shapes(np.shape(sequences), np.shape(prompt_tokens), lead)
        i, u = _cell(self.sequences, np.broadcast_to(np.asarray(sequences, dtype=float), shape))
        j, v = _cell(self.prompt_tokens, np.broadcast_to(np.asarray(prompt_tokens, dtype=float), shape))
        at = tuple(np.broadcast_to(axis, shape) for axis in np.ogrid[tuple(slice(size) for size in shape)])
        where = at[len(shape) - len(lead) :] if lead else ()
        where = tuple(np.where(size > 1, axis, 0) for axis, size in zip(where, lead, strict=True))
        table = self.seconds_at
        grid = (
            (1 - u) * ((1 - v) * table[(*where, i, j)] + v * table[(*where, i, j + 1)])
            + u * ((1 - v) * table[(*where, i + 1, j)] + v * table[(*where, i + 1, j + 1)])
        )  # fmt: skip
        return np.asarray(
            grid
            + np.multiply(self.per_context_token_s, context_tokens)
            + np.multiply(self.per_attended_pair_s, attended_pairs)
        )

    def table(self) -> StepTable:
        """Return itself."""
        return self


def _cell(grid: Array, values: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the cell of a grid that values fall into, and how far in."""
    cell = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    return cell, (values - grid[cell]) / (grid[cell + 1] - grid[cell])
