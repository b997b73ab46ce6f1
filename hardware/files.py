"""Text files, or why they cannot be read."""

from pathlib import Path

from hardware.faults import Fault, InputError


def read_text(path: Path) -> str:
    """Read a text file.

    Parameters
    ----------
    path
        The file, UTF-8 with or without a byte-order mark.

    Returns
    -------
    str
        Its text.

    Raises
    ------
    InputError
        There is no such file, it cannot be opened, or it is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError([Fault(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise InputError([Fault(str(path), 0, 0, "", "cannot be read: it is not UTF-8 text")]) from None
