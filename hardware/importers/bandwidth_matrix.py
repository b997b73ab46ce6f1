"""Measured bandwidth between every two nodes, from a table."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

from hardware.faults import Fault, InputError
from hardware.files import read_text

_BITS = re.compile(r"(?<![A-Za-z])(?:[kKMGT]?(?:b|bits?)(?:/s|ps)|[kKMGT]bits?)(?![A-Za-z])")
_WITH_UNIT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*([A-Za-z].*)")
_HIGHEST = 1e5
"""No node sends 100 TB/s: such a number is in other units than GB/s."""
_IN_BYTES = "rates should be in GB/s; divide bits by eight"
_SHOWN = 5
"""Names listed in one message."""


@dataclass(frozen=True)
class BandwidthMatrix:
    """How fast every node sends to every other.

    Parameters
    ----------
    names
        The nodes, in the order of the header.
    bandwidth
        Rate from the node of a row to that of a column [B/s], of shape (nodes, nodes); infinite on the diagonal. Need
        not be symmetric.
    """

    names: tuple[str, ...]
    bandwidth: NDArray[numpy.float64]


def read(path: Path, nodes: Sequence[str] = (), *, partitions: bool = False) -> BandwidthMatrix:
    """Read a table of bandwidth between nodes.

    Parameters
    ----------
    path
        A file as `parse` reads it.
    nodes
        Names that must be there; any if left out.
    partitions
        Whether a rate may be zero: no path.

    Returns
    -------
    BandwidthMatrix
        The rates in bytes per second.

    Raises
    ------
    InputError
        The file cannot be read; or with every fault of the table.
    """
    return parse(read_text(path), str(path), nodes, partitions=partitions)


def parse(text: str, name: str, nodes: Sequence[str] = (), *, partitions: bool = False) -> BandwidthMatrix:
    """Read a table of bandwidth between nodes from its text.

    Parameters
    ----------
    text
        CSV: the header and the first column name the nodes, each cell is the rate at which the node of the row sends to
        that of the column [GB/s = 1e9 B/s]. The first cell of the header and the diagonal do not matter; rows may stand
        in any order.
    name
        How to call the text in messages, such as its file.
    nodes
        Names that must be there; any if left out.
    partitions
        Whether a rate may be zero: no path.

    Returns
    -------
    BandwidthMatrix
        The rates in bytes per second.

    Raises
    ------
    InputError
        With every fault of the file: it is not square, names are missing or stand twice, a rate is no positive number,
        bits stand where bytes should.
    """
    lines = _lines(text)
    faults: list[Fault] = []

    def fault(line: int, column: int, key: str, message: str) -> None:
        faults.append(Fault(name, line, column, key, message))

    first, heading = next(lines, (1, []))
    if len(heading) < 2:
        message = "there should be a header: a cell that does not matter, then the names of the nodes"
        raise InputError([Fault(name, first, 1, "", message)])
    for column, text in heading:
        if _BITS.search(text):
            fault(first, column, "", f"{_IN_BYTES} [got {text!r}]")
    names: dict[str, int] = {}
    for position, (column, text) in enumerate(heading[1:]):
        if not text:
            fault(first, column, f"column {position + 2}", "the name of a node is missing")
        elif text in names:
            fault(first, column, text, "stands twice in the header")
        names.setdefault(text, position)
    width = len(heading) - 1
    bandwidth = numpy.full((width, width), math.inf)
    rows: dict[str, int] = {}
    for line, cells in lines:
        (column, sender), *rest = cells
        if sender in rows:
            fault(line, column, sender, f"stands twice, first in line {rows[sender]}")
            continue
        rows[sender] = line
        if len(rest) != width:
            fault(line, column, sender, f"should have {width} rates, one for each node of the header [got {len(rest)}]")
        if sender not in names:
            fault(line, column, sender, f"is not among the nodes of the header: {_some(list(names))}")
            continue
        for (column, text), (receiver, position) in zip(rest, names.items(), strict=False):
            if receiver != sender:
                try:
                    bandwidth[names[sender], position] = _rate(text, partitions)
                except ValueError as error:
                    fault(line, column, f"{sender} to {receiver}", f"{error} [got {text!r}]")
    missing = [one for one in names if one and one not in rows]
    if missing:
        fault(first, 1, "", f"should be square, but these nodes of the header have no row: {_some(missing)}")
    missing = [one for one in nodes if one not in names]
    if missing:
        fault(first, 1, "", f"nodes are missing: {_some(missing)}")
    if faults:
        raise InputError(sorted(faults, key=lambda one: (one.line, one.column)))
    return BandwidthMatrix(tuple(names), bandwidth)


def _lines(text: str) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """Split a table into the numbers of its lines and their cells, each with its column; blank lines are left out."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip(" ,\t"):
            yield number, list(_cells(line))


def _cells(line: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start <= len(line):
        match = _CELL.match(line, start)
        assert match is not None  # the second branch matches anything
        quoted, plain = match.groups()
        yield start + 1, (quoted.replace('""', '"') if quoted is not None else plain).strip()
        start = match.end() + 1


_CELL = re.compile(r'\s*"((?:[^"]|"")*)"\s*(?=,|$)|([^,]*)')


def _rate(text: str, partitions: bool) -> float:
    """Read a rate [GB/s] and give it in bytes per second."""
    try:
        rate = float(text)
    except ValueError:
        if not text:
            raise ValueError("is missing; only the diagonal may be empty") from None
        if _BITS.search(text):
            raise ValueError(_IN_BYTES) from None
        if match := _WITH_UNIT.fullmatch(text):
            raise ValueError(f'should be a bare number of GB/s; leave "{match[1]}" out') from None
        raise ValueError("should be a number of GB/s") from None
    if not math.isfinite(rate):
        raise ValueError("should be a finite number of GB/s")
    if rate < 0 or (rate == 0 and not partitions):
        raise ValueError("should be greater than zero; two nodes that cannot reach each other have no place in a job")
    if rate > _HIGHEST:
        raise ValueError(f"is more than {_HIGHEST:g} GB/s; the rates should be in 1e9 bytes per second")
    return rate * 1e9


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
