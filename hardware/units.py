"""Quantities as people write them, and the SI numbers they mean.

Units exist only at the door: a file says ``3.35 TB/s``, everything behind it sees ``3.35e12``.
A bare number is SI. Bits and bytes are never guessed: ``Gbit/s`` and ``GB/s`` are units, ``Gb/s`` is not.
"""

import difflib
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_QUANTITY = re.compile(rf"\s*({_NUMBER})\s*(.*?)\s*")

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9, "p": 1e-12}  # both Unicode characters for micro


def _prefixed(unit: str, prefixes: dict[str, float], scale: float = 1.0) -> dict[str, float]:
    return {prefix + unit: factor * scale for prefix, factor in prefixes.items()}


_BYTES = _prefixed("B", _DECIMAL | _BINARY)
_RATE = _prefixed("B/s", _DECIMAL | _BINARY)
_BIT_RATE = _prefixed("bit/s", _DECIMAL, 1 / 8)

_UNITS: dict[str, dict[str, float]] = {
    "bytes": _BYTES,
    "bytes/s": _RATE | _BIT_RATE,
    "bit/s": _BIT_RATE | _RATE,
    "flop/s": _prefixed("FLOP/s", _DECIMAL) | _prefixed("OP/s", _DECIMAL),
    "s": _prefixed("s", {"": 1.0} | _SMALL) | {"min": 60.0, "h": 3600.0, "d": 86400.0},
    "W": _prefixed("W", _DECIMAL | {"m": 1e-3}),
    "Hz": _prefixed("Hz", _DECIMAL),
    "J": _prefixed("J", _DECIMAL | {"m": 1e-3}) | _prefixed("Wh", _DECIMAL, 3600.0),
    "USD/h": {"USD/h": 1.0},
    "USD/kWh": {"USD/kWh": 1.0, "USD/MWh": 1e-3},
    "count": {},
}
"""Dimension -> spelling of a unit -> its size in the dimension's SI unit (rates of data: bytes per second)."""

_DIMENSION_NAMES = {
    "bytes": "bytes",
    "bytes/s": "bytes per second",
    "bit/s": "bits per second",
    "flop/s": "operations per second",
    "s": "seconds",
    "W": "watts",
    "Hz": "hertz",
    "J": "joules",
    "USD/h": "US dollars per hour",
    "USD/kWh": "US dollars per kilowatt-hour",
    "count": "a count",
}

_EXAMPLES = {
    "bytes": "80 GiB",
    "bytes/s": '3.35 TB/s" or "400 Gbit/s',
    "bit/s": '400 Gbit/s" or "50 GB/s',
    "flop/s": "989 TFLOP/s",
    "s": "2 us",
    "W": "700 W",
    "Hz": "1.83 GHz",
    "J": "3.6 MJ",
    "USD/h": "3.67 USD/h",
    "USD/kWh": "0.08 USD/kWh",
    "count": "1024",
}

_WRITTEN: dict[str, dict[str, float]] = {
    "bytes": _prefixed("B", _DECIMAL),
    "bytes/s": _prefixed("B/s", _DECIMAL),
    "bit/s": _BIT_RATE,
    "flop/s": _prefixed("FLOP/s", _DECIMAL),
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "W": _prefixed("W", _DECIMAL),
    "Hz": _prefixed("Hz", _DECIMAL),
    "J": _prefixed("J", _DECIMAL),
    "USD/h": {"USD/h": 1.0},
    "USD/kWh": {"USD/kWh": 1.0},
    "count": {"": 1.0},
}
"""The units `format_quantity` chooses from."""


def _unit_fault(text: str, unit: str, dimension: str) -> str:
    known = _UNITS[dimension]
    example = f'write a number of SI units or a text such as "{_EXAMPLES[dimension]}"'
    number = text.strip()[: -len(unit)].strip()
    bits = re.fullmatch(r"([kKMGTPE]i?)?(?:b(?:it)?(?:/s|ps)?)", unit)
    if bits and dimension in ("bytes", "bytes/s", "bit/s"):
        prefix = (bits[1] or "").replace("K", "k").replace("i", "")
        if dimension == "bytes":
            return f'"{unit}" is not a size in bytes; write "{number} {prefix}B" for bytes, or bits divided by eight'
        if unit.endswith(("b/s", "bps")):
            return (
                f'"{unit}" may mean bits or bytes; write "{number} {prefix}bit/s" for bits per second '
                f'or "{number} {prefix}B/s" for bytes per second'
            )
    if not known:
        return f'takes a bare number, not a unit such as "{unit}"'
    others = [name for name, units in _UNITS.items() if unit in units]
    if others:
        return f'"{unit}" is a unit of {_DIMENSION_NAMES[others[0]]}, wanted {_DIMENSION_NAMES[dimension]}; {example}'
    near = difflib.get_close_matches(unit, known, n=1, cutoff=0.5)
    # The letter case carries meaning (m and M), so a match that ignores it is only ever a suggestion.
    near = [name for name in known if name.lower() == unit.lower()][:1] or near
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    return f'unknown unit "{unit}" for {_DIMENSION_NAMES[dimension]}; {example}{hint}'


def parse_quantity(value: object, dimension: str) -> float:
    """Read a quantity.

    Parameters
    ----------
    value
        A number in SI units, or a text of a number and a unit such as ``"3.35 TB/s"``.
    dimension
        One of ``bytes``, ``bytes/s``, ``bit/s``, ``flop/s``, ``s``, ``W``, ``Hz``, ``J``, ``USD/h``, ``USD/kWh``,
        ``count``. ``bytes/s`` and ``bit/s`` read the same texts; a bare number is bytes per second for both.

    Returns
    -------
    float
        The quantity in SI units: bytes, bytes per second, operations per second, seconds, watts, hertz, joules;
        money in US dollars, per hour or kilowatt-hour.

    Raises
    ------
    ValueError
        The value is no number, has a unit that is unknown, of another dimension or ambiguous between bits and
        bytes, or is negative or not finite.

    Examples
    --------
    >>> parse_quantity("400 Gbit/s", "bytes/s")
    50000000000.0
    """
    example = f'a number of SI units or a text such as "{_EXAMPLES[dimension]}"'
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"should be {example}")
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if not match:
            raise ValueError(f"should be {example}")
        number, unit = match.groups()
        if unit and unit not in _UNITS[dimension]:
            raise ValueError(_unit_fault(value, unit, dimension))
        size = float(number) * (_UNITS[dimension][unit] if unit else 1.0)
    else:
        try:
            size = float(value)
        except OverflowError:
            size = math.inf
    if not math.isfinite(size):
        raise ValueError("should be a finite number")
    if size < 0:
        raise ValueError("should not be negative")
    return size


def format_quantity(value: float, dimension: str, digits: int = 4) -> str:
    """Write a quantity for a person.

    Parameters
    ----------
    value
        The quantity in SI units [unit of the dimension; bytes/s for ``bit/s``].
    dimension
        As in `parse_quantity`.
    digits
        Significant digits [1].

    Returns
    -------
    str
        A text that `parse_quantity` reads back to the given digits, such as ``"3.35 TB/s"``. Whole multiples of a
        mebibyte are written with binary prefixes (``"80 GiB"``), other sizes with decimal ones.
    """
    units = _WRITTEN[dimension]
    magnitude = abs(value)
    if dimension == "bytes" and magnitude >= 2**20 and magnitude % 2**20 == 0:
        units = _prefixed("B", _BINARY)
    fitting = {unit: scale for unit, scale in units.items() if scale <= magnitude}
    if fitting:
        unit = max(fitting, key=fitting.__getitem__)
    else:
        unit = min(units, key=units.__getitem__) if value else next(iter(units))
    return f"{value / units[unit]:.{digits}g} {unit}".rstrip()


def quantity_pattern(dimension: str) -> str:
    """Write the regular expression of the texts a dimension takes, for editors.

    Parameters
    ----------
    dimension
        As in `parse_quantity`.

    Returns
    -------
    str
        An expression in the dialect of JSON Schema.
    """
    units = "|".join(re.escape(unit).replace(r"\ ", " ") for unit in _UNITS[dimension])
    number = _NUMBER.removeprefix("[+-]?")  # no quantity is negative
    return rf"^\s*\+?{number}\s*(?:{units})?\s*$"


def _quantity(dimension: str, positive: bool) -> tuple[BeforeValidator, WithJsonSchema]:
    def parse(value: Any) -> float:
        size = parse_quantity(value, dimension)
        if positive and size == 0:
            raise ValueError("should be greater than zero")
        return size

    number: dict[str, Any] = {"type": "number", "exclusiveMinimum" if positive else "minimum": 0}
    text = {"type": "string", "pattern": quantity_pattern(dimension)}
    return BeforeValidator(parse), WithJsonSchema({"anyOf": [number, text]})


Bytes = Annotated[float, *_quantity("bytes", positive=False)]
"""A size in bytes."""
BytesPerSecond = Annotated[float, *_quantity("bytes/s", positive=True)]
"""A rate of data in bytes per second, greater than zero."""
FlopPerSecond = Annotated[float, *_quantity("flop/s", positive=True)]
"""A rate of arithmetic in operations per second, greater than zero."""
Seconds = Annotated[float, *_quantity("s", positive=False)]
"""A time in seconds."""
Watts = Annotated[float, *_quantity("W", positive=False)]
"""A power in watts."""
Hertz = Annotated[float, *_quantity("Hz", positive=True)]
"""A frequency in hertz, greater than zero."""
Joules = Annotated[float, *_quantity("J", positive=False)]
"""An energy in joules."""
UsdPerHour = Annotated[float, *_quantity("USD/h", positive=False)]
"""A price in US dollars per hour."""
UsdPerKwh = Annotated[float, *_quantity("USD/kWh", positive=False)]
"""A price of energy in US dollars per kilowatt-hour."""
PositiveWatts = Annotated[float, *_quantity("W", positive=True)]
"""A power in watts, greater than zero."""
PositiveSeconds = Annotated[float, *_quantity("s", positive=True)]
"""A time in seconds, greater than zero."""
PositiveBytes = Annotated[float, *_quantity("bytes", positive=True)]
"""A size in bytes, greater than zero."""
