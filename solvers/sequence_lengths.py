"""Lengths of sequences: read from long files in pieces, drawn from them, or from a distribution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hardware.faults import Fault, InputError
from perfmodel.requests import lognormal_lengths
from perfmodel.table_files import pieces
from solvers.sequence_case import Integers

COLUMN = "tokens"
MOST = 2**20
"""Sequences of a batch; of a longer list batches are drawn."""
_PIECE = 2**17
_SHOWN = 20
_LONGEST = 2**40


def read_lengths(path: Path) -> Integers:
    """Read all lengths of a batch.

    Parameters
    ----------
    path : Path
        CSV, plain or .gz, or Parquet, with a column ``tokens``.

    Returns
    -------
    array of int
        Tokens of every sequence.

    Raises
    ------
    InputError
        The file cannot be read, holds more than a batch, or lengths that are not whole and positive; with the lines.
    """
    found: list[Integers] = []
    count = 0
    for piece in _pieces(path):
        count += len(piece)
        if count <= MOST:
            found.append(piece)
    if count > MOST:
        message = (
            f"has {count:,} sequences, and a batch at most {MOST:,}; "
            f"draw one: lengths: {{file: {path.name}, count: 512, seed: 0}}"
        )
        raise InputError([Fault(str(path), 0, 0, COLUMN, message)])
    return np.concatenate(found)


def drawn(path: Path, count: int, seed: int) -> Integers:
    """Draw a batch from a list of any length, each sequence at most once, in one pass and bounded memory.

    Parameters
    ----------
    path : Path
        As for `read_lengths`.
    count, seed : int
        Sequences of the batch; seed of `numpy.random.default_rng`.

    Notes
    -----
    Every sequence gets a uniform random number; those of the smallest are the batch.
    """
    random = np.random.default_rng(seed)
    kept, keys = np.zeros(0, dtype=np.int64), np.zeros(0)
    seen = 0
    for piece in _pieces(path):
        seen += len(piece)
        kept, keys = np.concatenate([kept, piece]), np.concatenate([keys, random.random(len(piece))])
        if len(keys) > count:
            first = np.argpartition(keys, count - 1)[:count]
            kept, keys = kept[first], keys[first]
    if seen < count:
        raise InputError(
            [Fault(str(path), 0, 0, COLUMN, f"has {seen:,} sequences, fewer than the {count:,} asked for")]
        )
    return kept[np.argsort(keys)]


def _pieces(path: Path) -> Iterator[Integers]:
    """Yield lengths some at a time; complain about the first faults of the whole file, with their lines."""
    faults: list[Fault] = []
    more = 0
    empty = True
    for piece in pieces(path, [COLUMN], _PIECE):
        texts = piece.cells[0]
        values, wrong = _whole(texts)
        empty = empty and not len(texts)
        for number in wrong[: max(_SHOWN - len(faults), 0)]:
            message = f"should be a whole number of tokens, 1 or more [got {str(texts[number])[:40]!r}]"
            faults.append(Fault(str(path), piece.line + int(number), 1, COLUMN, message))
        more += len(wrong)
        if not faults and len(values):
            yield values
    if more > len(faults):
        faults.append(Fault(str(path), 0, 0, "", f"and {more - len(faults):,} more faults"))
    if empty:
        faults.append(Fault(str(path), 1, 1, COLUMN, "there is no sequence in it"))
    if faults:
        raise InputError(faults)


def _whole(texts: list[Any]) -> tuple[Integers, Integers]:
    """Return lengths, and the places of those that are none."""
    try:
        values = np.asarray(texts, dtype=float)
    except ValueError:
        values = np.array([_number(text) for text in texts])
    good = np.isfinite(values) & (values >= 1) & (values <= _LONGEST) & (values == np.floor(values))
    return np.where(good, values, 0).astype(np.int64), np.flatnonzero(~good)


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return float("nan")


def lognormal(median: float, sigma: float, least: int, most: int, count: int, seed: int) -> Integers:
    """Draw whole lengths of a log-normal distribution, cut to a range [tokens]."""
    return lognormal_lengths(median, sigma, least, most, count, np.random.default_rng(seed))


def lognormal_faults(median: float, least: int, most: int) -> list[tuple[str, str]]:
    """Return what is wrong with a distribution, as (key, message)."""
    if least > most:
        return [("min", f"should be at most max, {most} [got {least}]")]
    if median > most:
        return [("median", f"should be at most max, {most} [got {median:g}]")]
    return []
