"""What is wrong with an input, told to the person who wrote it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where something stands in a document: the keys and list positions that lead to it."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an input, and where it stands.

    Parameters
    ----------
    source
        Name of the file, or of the option, that holds the fault.
    line, column
        Position, counted from 1; both 0 when the input is not a file.
    key
        The dotted key, such as ``links[0].bandwidth``; empty for the whole input.
    message
        What is wrong, what is allowed, the nearest spelling and what was found.
    """

    source: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        return ": ".join(part for part in (place, self.key, self.message) if part)


class InputError(Exception):
    """An input is wrong; carries every fault that was found in it, in order of position."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


@contextmanager
def collected(faults: list[Fault]) -> Iterator[None]:
    """Go on after a part of an input is wrong, so that all its faults are told at once.

    Parameters
    ----------
    faults
        Takes the faults of the `InputError` that ends the block, if one does.
    """
    try:
        yield
    except InputError as error:
        faults += error.faults


class KeyFaultsError(ValueError):
    """Raised by a validator that knows which keys below its own object are wrong.

    Parameters
    ----------
    faults
        Pairs of the path below the object and the message.
    """

    def __init__(self, *faults: tuple[Path, str]) -> None:
        self.faults = faults
        super().__init__("; ".join(message for _, message in faults))


def dotted(path: Path) -> str:
    """Write a path the way a person reads it.

    Parameters
    ----------
    path
        Keys and list positions.

    Returns
    -------
    str
        For example ``links[0].bandwidth``.
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
