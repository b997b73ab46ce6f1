"""Recorded requests of services, read some at a time: the project's own files and those of published traces.

============  =========================================================================================  =============
format        columns                                                                                    files
============  =========================================================================================  =============
own           arrival_s, input_tokens, output_tokens[, block_ids]                                        CSV, Parquet
azure         TIMESTAMP (date and time), ContextTokens, GeneratedTokens                                  CSV, Parquet
burstgpt      Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type              CSV, Parquet
own (ms)      timestamp_ms, input_tokens, output_tokens[, block_ids]                                     CSV, Parquet
mooncake      timestamp (ms), input_length, output_length, hash_ids                                      JSON lines
============  =========================================================================================  =============

CSV and JSON lines may be compressed (.gz). Files are told apart by their columns; other columns are left out. Times are
counted from the first request. BurstGPT notes a request that failed with no response tokens: those are left out.
`block_pieces` also reads the blocks of a prompt: whole numbers, in a CSV with blanks between, equal where the blocks
and all before them are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.faults import Fault, InputError
from perfmodel.requests import Array, Integers, RequestList
from perfmodel.table_files import Piece, header, opened, pieces

PIECE = 2**16
"""Requests in memory at once."""
_SHOWN = 20
_LONGEST = 2**40


@dataclass(frozen=True)
class _Format:
    name: str
    columns: tuple[str, str, str]
    scale: float = 1.0
    dated: bool = False
    fails: bool = False
    blocks: str = ""


FORMATS = (
    _Format("own", ("arrival_s", "input_tokens", "output_tokens"), blocks="block_ids"),
    _Format("azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), dated=True),
    _Format("burstgpt", ("Timestamp", "Request tokens", "Response tokens"), fails=True),
    _Format("own in ms", ("timestamp_ms", "input_tokens", "output_tokens"), scale=1e-3, blocks="block_ids"),
    _Format("mooncake", ("timestamp", "input_length", "output_length"), scale=1e-3, blocks="hash_ids"),
)


@dataclass(frozen=True)
class BlockAccesses:
    """Prompts of requests as blocks of tokens.

    Parameters
    ----------
    prompt_tokens : array of int, shape (requests,)
        Lengths.
    starts : array of int, shape (requests + 1,)
        Where each request's blocks begin, and their number.
    blocks : array of int, shape (accesses,)
        Blocks, request after request; equal where a block and all before it are.
    """

    prompt_tokens: Integers
    starts: Integers
    blocks: Integers


def read_trace(path: Path) -> RequestList:
    """Read all requests of a file."""
    parts = list(trace_pieces(path))
    return RequestList(
        np.concatenate([part.arrival_s for part in parts]),
        np.concatenate([part.prompt_tokens for part in parts]),
        np.concatenate([part.output_tokens for part in parts]),
    )


def trace_pieces(path: Path) -> Iterator[RequestList]:
    """Read the requests of a file some at a time.

    Raises
    ------
    InputError
        The file cannot be read, has none of the formats, holds lengths that are not whole and positive, or times that
        run backwards; the first faults are told with their lines, the others counted. Nothing is yielded after the
        first fault.
    """
    for requests, _ in _checked_pieces(path, with_blocks=False):
        yield requests


def block_pieces(path: Path) -> Iterator[BlockAccesses]:
    """Read the blocks of the requests of a file some at a time.

    Raises
    ------
    InputError
        As `trace_pieces`, and where a request has blocks that are not whole numbers, or none.
    """
    for requests, cells in _checked_pieces(path, with_blocks=True):
        counts, blocks = cells
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        yield BlockAccesses(requests.prompt_tokens, starts, blocks)


_NO_BLOCKS = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _checked_pieces(path: Path, with_blocks: bool) -> Iterator[tuple[RequestList, tuple[Integers, Integers]]]:
    """Yield requests, and the numbers of their blocks with the blocks."""
    form, parts = _parts(path, with_blocks)
    faults: list[Fault] = []
    more, start, last, empty = 0, None, -np.inf, True
    for part in parts:
        times, wrong = _times(part.cells[0], form)
        wrong_at: list[tuple[int, int, str]] = [
            (row, 0, "should be a date and time" if form.dated else "should be a number of 0 or more")
            for row in wrong.tolist()
        ]
        lengths = []
        for place in (1, 2):
            values, wrong = _whole(part.cells[place], 0 if form.fails and place == 2 else 1)
            lengths.append(values)
            wrong_at += [(row, place, "should be a whole number of tokens, 1 or more") for row in wrong.tolist()]
        known = np.where(np.isfinite(times), times, -np.inf)
        before = np.maximum.accumulate(np.concatenate([[last], known]))
        back = np.flatnonzero(np.isfinite(times) & (times < before[:-1])).tolist()
        wrong_at += [(row, 0, "time runs backwards: should be at least that of the rows before") for row in back]
        last = float(before[-1])
        found = _NO_BLOCKS
        if with_blocks:
            found, without = _blocks(part.cells[3])
            wrong_at += [(row, 3, "should be whole numbers of blocks, 0 or more") for row in without]
        for row, place, message in sorted(wrong_at)[: _SHOWN - len(faults)]:
            got = str(part.cells[place][row])[:40]
            where = (part.line + row, part.column_of(row, place))
            column = (*form.columns, form.blocks)[place]
            faults.append(Fault(str(path), *where, column, f"{message} [got {got!r}]"))
        more += len(wrong_at)
        empty = empty and not len(times)
        if more or not len(times):
            continue
        start = float(times[0]) if start is None else start
        kept = lengths[1] > 0
        yield RequestList((times - start)[kept], lengths[0][kept], lengths[1][kept]), found
    if more > len(faults):
        faults.append(Fault(str(path), 0, 0, "", f"and {more - len(faults):,} more faults"))
    if empty:
        faults.append(Fault(str(path), 1, 1, "", "there is no request in it"))
    if faults:
        raise InputError(faults)


def _parts(path: Path, with_blocks: bool) -> tuple[_Format, Iterator[Piece]]:
    """Return the format of a file, and its columns some rows at a time."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if any(suffix in (".jsonl", ".json") for suffix in suffixes):
        form = FORMATS[-1]
        return form, _json_lines(path, (*form.columns, *[form.blocks] * with_blocks))
    names = header(path)
    found = [(sum(name in names for name in form.columns), -number) for number, form in enumerate(FORMATS)]
    held, number = max(found)
    form = FORMATS[-number]
    if not held:
        allowed = "; ".join(",".join(form.columns) for form in FORMATS)
        message = f"has the columns of no known trace: {allowed} [got {','.join(names)[:60]!r}]"
        raise InputError([Fault(str(path), 1, 1, "", message)])
    if with_blocks and not form.blocks:
        raise InputError([Fault(str(path), 1, 1, "block_ids", f"traces of {form.name} tell no blocks of prompts")])
    return form, pieces(path, (*form.columns, *[form.blocks] * with_blocks), PIECE)


def _json_lines(path: Path, columns: tuple[str, ...]) -> Iterator[Piece]:
    """Yield objects, one a line; a line that is none, or lacks a key, has cells that are told as faults."""
    with opened(path) as file:
        first = 1
        rows: list[list[Any]] = []
        for number, line in enumerate(file, 1):
            filled = bool(line.strip())
            if filled:
                if not rows:
                    first = number
                rows.append(_object(line, columns))
            if rows and (len(rows) == PIECE or not filled):
                yield Piece(first, [list(column) for column in zip(*rows, strict=True)])
                rows = []
        yield Piece(first, [list(column) for column in zip(*rows, strict=True)] or [[] for _ in columns])


def _object(line: str, columns: tuple[str, ...]) -> list[Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return [line.strip()[:40]] + ["no JSON object"] * (len(columns) - 1)
    return [value.get(name, "missing") for name in columns]


def _blocks(cells: list[Any]) -> tuple[tuple[Integers, Integers], list[int]]:
    """Return how many blocks each cell tells with the blocks, and the places of cells that tell none."""
    texts = [" ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in cells]
    counts = np.array([len(text.split()) for text in texts], dtype=np.int64)
    try:
        blocks = np.array(" ".join(texts).split(), dtype=np.int64)
    except (ValueError, OverflowError):
        blocks = None
    if blocks is not None and counts.all() and not (blocks < 0).any():
        return (counts, blocks), []
    wrong = [row for row, text in enumerate(texts) if not text.split() or not all(map(_is_block, text.split()))]
    return (counts, np.zeros(0, np.int64)), wrong


def _is_block(text: str) -> bool:
    return text.isdecimal() and int(text) < 2**63


def _times(cells: list[Any], form: _Format) -> tuple[Array, NDArray[np.int64]]:
    """Return times [s], and the places of those that are none."""
    if form.dated:
        cells = [str(cell).removesuffix("+00:00").removesuffix("Z") for cell in cells]
        try:
            times = np.array(cells, dtype="datetime64[ns]")
        except ValueError:
            times = np.array([_date(cell) for cell in cells], dtype="datetime64[ns]")
        seconds = (times - np.datetime64(0, "ns")) / np.timedelta64(1, "s")
        return np.where(np.isnat(times), np.nan, seconds), np.flatnonzero(np.isnat(times))
    values = _numbers(cells) * form.scale
    wrong = ~(np.isfinite(values) & (values >= 0))
    return np.where(wrong, np.nan, values), np.flatnonzero(wrong)


def _date(cell: str) -> np.datetime64:
    try:
        return np.datetime64(cell or "NaT", "ns")
    except ValueError:
        return np.datetime64("NaT")


def _whole(cells: list[Any], least: int) -> tuple[Integers, NDArray[np.int64]]:
    """Return lengths, and the places of those that are none."""
    values = _numbers(cells)
    good = np.isfinite(values) & (values >= least) & (values <= _LONGEST) & (values == np.floor(values))
    return np.where(good, values, 0).astype(np.int64), np.flatnonzero(~good)


def _numbers(cells: list[Any]) -> Array:
    try:
        return np.asarray(cells, dtype=float)
    except (ValueError, TypeError):
        return np.array([_number(cell) for cell in cells])


def _number(cell: Any) -> float:
    try:
        return float("nan") if isinstance(cell, bool) else float(cell)
    except (ValueError, TypeError):
        return float("nan")
