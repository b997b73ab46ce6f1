"""Columns of long files, some rows at a time: CSV, plain or .gz, and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hardware.faults import Fault, InputError


@dataclass(frozen=True)
class Piece:
    """Some rows of a file, one line each.

    Parameters
    ----------
    line : int
        Line of the first row; in Parquet its number.
    cells : list of list
        Cells of each column that was asked for; an empty text where a row ends before.
    """

    line: int
    cells: list[list[Any]]
    _rows: list[list[str]] = field(default_factory=list)
    _places: list[int] = field(default_factory=list)

    def column_of(self, row: int, column: int) -> int:
        """Return at which character of its line a cell begins, from 1; 1 where there are no lines of text."""
        if not self._rows:
            return 1
        return 1 + sum(len(cell) + 1 for cell in self._rows[row][: self._places[column]])


def header(path: Path) -> list[str]:
    """Return the names of a file's columns."""
    if path.suffix == ".parquet":
        return list(_parquet_file(path).schema_arrow.names)
    with opened(path) as file:
        return _names(csv.reader(file))


def pieces(path: Path, columns: Sequence[str], most: int, optional: Sequence[str] = ()) -> Iterator[Piece]:
    """Yield columns of a file, so many rows at a time at most; of the optional ones those that it has, in order.

    Raises
    ------
    InputError
        The file cannot be read, or lacks columns: all of them are named.
    """
    reader = _parquet if path.suffix == ".parquet" else _csv
    names = header(path)
    shown = ",".join(names)[:60]
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(Fault(str(path), 1, 1, name, f"there is no column {name} [got {shown!r}]") for name in missing)
    return reader(path, [*columns, *(name for name in optional if name in names)], most)


class opened:  # noqa: N801
    """Open a text file, plain or .gz, and tell what keeps it from being read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> IO[str]:
        import gzip

        opener: Callable[..., Any] = gzip.open if self._path.suffix == ".gz" else open
        try:
            self._file = opener(self._path, "rt", encoding="utf-8-sig", newline="")
        except OSError as error:
            raise self._wrong(error) from None
        assert self._file is not None
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file is not None:
            self._file.close()
        if isinstance(error, OSError | UnicodeDecodeError | EOFError | csv.Error):
            raise self._wrong(error) from None

    def _wrong(self, error: BaseException) -> InputError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text in columns"
        return InputError([Fault(str(self._path), 0, 0, "", f"cannot be read: {reason}")])


def _names(rows: Iterator[list[str]]) -> list[str]:
    return [cell.strip() for cell in next(rows, [])]


def _csv(path: Path, columns: list[str], most: int) -> Iterator[Piece]:
    """Yield rows; blank lines end a piece, so that lines can be counted."""
    with opened(path) as file:
        reader = csv.reader(file)
        names = _names(reader)
        places = [names.index(column) for column in columns]
        first = 2
        rows: list[list[str]] = []
        for row in reader:
            filled = any(row)
            if filled:
                if not rows:
                    first = reader.line_num
                rows.append(row)
            if rows and (len(rows) == most or not filled):
                yield _piece(first, rows, places)
                rows = []
        yield _piece(first, rows, places)


def _piece(line: int, rows: list[list[str]], places: list[int]) -> Piece:
    cells = [[row[place].strip() if place < len(row) else "" for row in rows] for place in places]
    return Piece(line, cells, rows, places)


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid  # type: ignore[import-not-found, unused-ignore]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        message = "reading Parquet needs pyarrow: pip install 'perfmodel[parquet]'"
        raise InputError([Fault(str(path), 0, 0, "", message)]) from None
    try:
        return ParquetFile(path)
    except (OSError, ArrowInvalid):
        raise InputError([Fault(str(path), 0, 0, "", "cannot be read: it is not Parquet")]) from None


def _parquet(path: Path, columns: list[str], most: int) -> Iterator[Piece]:
    row = 1
    for batch in _parquet_file(path).iter_batches(batch_size=most, columns=columns):
        cells = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in columns]
        yield Piece(row, cells)
        row += len(cells[0])
