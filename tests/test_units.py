"""Quantities: what is read, what is refused and with which words."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hardware.units import Bytes, BytesPerSecond, format_quantity, parse_quantity, quantity_pattern

DIMENSIONS = ["bytes", "bytes/s", "bit/s", "flop/s", "s", "W", "Hz", "J", "USD/h", "USD/kWh", "count"]


@pytest.mark.parametrize(
    ("text", "dimension", "expected"),
    [
        ("80 GiB", "bytes", 80 * 1024**3),
        ("30 TB", "bytes", 30e12),
        ("1 kB", "bytes", 1000),
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("400 Gbit/s", "bytes/s", 400e9 / 8),
        ("400 Gbit/s", "bit/s", 400e9 / 8),
        ("1979 TFLOP/s", "flop/s", 1979e12),
        ("1979 TOP/s", "flop/s", 1979e12),
        ("2 PFLOP/s", "flop/s", 2e15),
        ("2 us", "s", 2e-6),
        ("2 µs", "s", 2e-6),
        ("2 μs", "s", 2e-6),
        ("90 ns", "s", 90e-9),
        ("2 min", "s", 120),
        ("10.2 kW", "W", 10200),
        ("1.83 GHz", "Hz", 1.83e9),
        ("1 kWh", "J", 3.6e6),
        ("3.0 USD/h", "USD/h", 3),
        ("80 USD/MWh", "USD/kWh", 0.08),
        ("12", "count", 12),
        ("  80GiB ", "bytes", 80 * 1024**3),
        ("1e3 B", "bytes", 1000),
        ("1E3B", "bytes", 1000),
        ("1EB", "bytes", 1e18),
        (".5 GB", "bytes", 5e8),
        (7, "bytes", 7),
        (2.5, "s", 2.5),
        ("0 s", "s", 0),
    ],
)
def test_reads_a_quantity_into_si(text: str | float, dimension: str, expected: float) -> None:
    assert parse_quantity(text, dimension) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "dimension", "words"),
    [
        ("80 GiB/s", "bytes", ['"GiB/s" is a unit of bytes per second', "wanted bytes", '"80 GiB"']),
        ("80 GiB", "bytes/s", ['"GiB" is a unit of bytes', "wanted bytes per second"]),
        ("4.8 TBs", "bytes/s", ['unknown unit "TBs"', 'did you mean "TB/s"']),
        ("400 Gb/s", "bytes/s", ["bits or bytes", '"400 Gbit/s"', '"400 GB/s"']),
        ("400 Gbps", "bytes/s", ["bits or bytes", '"400 Gbit/s"', '"400 GB/s"']),
        ("80 Gb", "bytes", ["not a size in bytes", '"80 GB"']),
        ("5 tflop/s", "flop/s", ['did you mean "TFLOP/s"']),
        ("5 TFLOPS", "flop/s", ['did you mean "TFLOP/s"']),
        ("5 mb", "bytes", ["unknown unit", 'did you mean "MB"']),
        ("5 k", "count", ["bare number"]),
        ("-3 GB", "bytes", ["negative"]),
        (-1, "s", ["negative"]),
        ("fast", "bytes/s", ["should be a number", "3.35 TB/s"]),
        ("1,024 B", "bytes", ["unknown unit"]),
        ("", "bytes", ["should be a number"]),
        (math.inf, "bytes", ["finite"]),
        (math.nan, "bytes", ["finite"]),
        ("1e400 B", "bytes", ["finite"]),
        (10**400, "bytes", ["finite"]),
        (True, "bytes", ["should be a number"]),
        (None, "bytes", ["should be a number"]),
        (["80 GiB"], "bytes", ["should be a number"]),
    ],
)
def test_refuses_with_words_that_help(value: object, dimension: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_quantity(value, dimension)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dimension", "expected"),
    [
        (3.35e12, "bytes/s", "3.35 TB/s"),
        (80 * 2**30, "bytes", "80 GiB"),
        (30e12, "bytes", "30 TB"),
        (50e9, "bit/s", "400 Gbit/s"),
        (0, "s", "0 s"),
        (0, "bit/s", "0 bit/s"),
        (2e-6, "s", "2 us"),
        (-5e9, "bytes/s", "-5 GB/s"),
        (12, "count", "12"),
        (1e-12, "s", "0.001 ns"),
    ],
)
def test_writes_a_quantity(value: float, dimension: str, expected: str) -> None:
    assert format_quantity(value, dimension) == expected


sizes = st.floats(min_value=1e-12, max_value=1e24)


@given(sizes | st.just(0.0), st.sampled_from(DIMENSIONS), st.integers(3, 17))
def test_what_is_written_reads_back_and_fits_the_pattern(value: float, dimension: str, digits: int) -> None:
    text = format_quantity(value, dimension, digits)
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits) + 1e-15)
    assert re.search(quantity_pattern(dimension), text)


@given(sizes, sizes, st.sampled_from(DIMENSIONS))
def test_writing_and_reading_keeps_the_order(first: float, second: float, dimension: str) -> None:
    low, high = sorted([first, second])
    written = [parse_quantity(format_quantity(value, dimension), dimension) for value in (low, high)]
    # Rounding may make two close values equal, the binary and decimal prefixes of sizes may differ in the last digit.
    assert written[0] <= written[1] * (1 + 1e-3)


@given(st.integers(0, 10**6), st.sampled_from(["B", "kB", "KiB", "GB", "GiB", "TB"]))
def test_a_larger_number_of_the_same_unit_is_a_larger_quantity(number: int, unit: str) -> None:
    assert parse_quantity(f"{number} {unit}", "bytes") < parse_quantity(f"{number + 1} {unit}", "bytes")


@given(st.text(max_size=12), st.sampled_from(DIMENSIONS))
def test_any_text_is_either_read_or_refused_with_a_value_error(text: str, dimension: str) -> None:
    try:
        value = parse_quantity(text, dimension)
    except ValueError:
        return
    assert math.isfinite(value) and value >= 0


def test_the_types_parse_and_refuse_zero_rates() -> None:
    class Chip(BaseModel):
        capacity: Bytes
        bandwidth: BytesPerSecond

    chip = Chip.model_validate({"capacity": "80 GiB", "bandwidth": 1})
    assert (chip.capacity, chip.bandwidth) == (80 * 2**30, 1.0)
    assert Chip.model_validate({"capacity": 0, "bandwidth": 1}).capacity == 0
    with pytest.raises(ValidationError, match="greater than zero"):
        Chip.model_validate({"capacity": 0, "bandwidth": "0 GB/s"})
