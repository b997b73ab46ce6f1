"""YAML text to data with positions: the traps of YAML, and faults at the right place."""

import math
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from hardware.faults import Fault, InputError, KeyFaultsError, dotted
from hardware.yaml_source import Source, read_yaml, validated


def faults_of(text: str, name: str = "x.yaml") -> list[str]:
    with pytest.raises(InputError) as caught:
        read_yaml(text, name)
    return str(caught.value).splitlines()


# YAML 1.2.2, section 10.3.2 (core schema) says what each of these is; PyYAML itself follows YAML 1.1.
@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        ("NO", "NO"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1e12", 1e12),
        ("1E12", 1e12),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("-12", -12),
        ("+12", 12),
        ("~", None),
        ("null", None),
        ("Null", None),
        ("", None),
        ("nULL", "nULL"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01", "2024-01"),
        ("=", "="),
        ("'12'", "12"),
        ('"true"', "true"),
        ("''", ""),
        ("!!str 12", "12"),
        ("!!float 12", 12),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("inf", "inf"),
        ("4.8 TB/s", "4.8 TB/s"),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, expected: object) -> None:
    value = read_yaml(f"key: {scalar}\n", "x.yaml").data["key"]
    assert value == expected
    assert type(value) is type(expected) or scalar.startswith("!!float")


def test_not_a_number_is_read_as_such() -> None:
    assert math.isnan(read_yaml("key: .nan\n", "x.yaml").data["key"])


def test_positions_are_those_of_keys_and_list_items() -> None:
    text = "# a comment\nkind: node\nlinks:\n  - {name: nvlink, bandwidth: 1}\n  -   name: pcie\nµµ: {b: [1, 2]}\n"
    source = read_yaml(text, "x.yaml")
    assert source.positions == {
        (): (2, 1),
        ("kind",): (2, 1),
        ("links",): (3, 1),
        ("links", 0): (4, 5),
        ("links", 0, "name"): (4, 6),
        ("links", 0, "bandwidth"): (4, 20),
        ("links", 1): (5, 7),
        ("links", 1, "name"): (5, 7),
        ("µµ",): (6, 1),
        ("µµ", "b"): (6, 6),
        ("µµ", "b", 0): (6, 10),
        ("µµ", "b", 1): (6, 13),
    }


def test_aliases_are_read_wherever_they_are_used() -> None:
    source = read_yaml("a: &shared {x: 1}\nb: *shared\n", "x.yaml")
    assert source.data == {"a": {"x": 1}, "b": {"x": 1}}
    assert source.positions["b", "x"] == (1, 13)


def test_json_is_read_too() -> None:
    assert read_yaml('{"a": [1, 2.5, null, true, "x"]}', "x.json").data == {"a": [1, 2.5, None, True, "x"]}
    assert read_yaml('{\n\t"a": 1\n}', "x.json").data == {"a": 1}


def test_every_key_that_stands_twice_is_reported() -> None:
    assert faults_of("a: 1\nb: {c: 1, c: 2}\na: 2\na: 3\n") == [
        "x.yaml:2:11: b.c: the key stands twice, first in line 2; keep one of them",
        "x.yaml:3:1: a: the key stands twice, first in line 1; keep one of them",
        "x.yaml:4:1: a: the key stands twice, first in line 1; keep one of them",
    ]


def test_windows_line_ends_and_byte_order_mark() -> None:
    source = read_yaml("\ufeffa: 1\r\nb: 2\r\n", "x.yaml")
    assert source.data == {"a": 1, "b": 2}
    assert source.positions["b",] == (2, 1)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "1:1", "the file is empty"),
        ("# only a comment\n", "1:1", "the file is empty"),
        ("a:\n\tb: 1\n", "2:1", "a tab used for indentation; use spaces"),
        ("a:\n  b: 1\n  \tc: 1\n", "3:3", "a tab"),
        ("a: [1, 2\nb: 3\n", "2:2", "not valid YAML"),
        ("a: b: c\n", "1:5", "mapping values are not allowed"),
        ("a: 'open\n", "2:1", "quoted scalar"),
        ("a: 1\n---\nb: 2\n", "2:1", "another document"),
        ("a: *missing\n", "1:4", "undefined alias"),
        ("a: &x [*x]\n", "1:4", "alias stands inside"),
        ("a: !custom 1\n", "1:4", 'tag "!custom" is not supported'),
        ("a: !!int one\n", "1:4", "not of the type its tag says"),
        ("a: 1\n~: 2\n", "2:1", "a key should be text"),
        ("[1, 2]: 3\n", "1:1", "a key should be text"),
        ("a: 1\nb: x\x07\n", "2:5", "a control character"),
        ("a: " + "9" * 5000, "1:4", "too many digits"),
        ("[" * 200_000 + "]" * 200_000, "1:101", "levels deep"),
    ],
)
def test_text_that_is_not_yaml_is_placed(text: str, place: str, words: str) -> None:
    (message,) = faults_of(text)
    assert message.startswith(f"x.yaml:{place}: ")
    assert words in message


def test_aliases_of_aliases_do_not_blow_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "more than" in faults_of("\n".join(lines))[0]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    capacity: int
    """Size of the part. In bytes."""
    bandwidth: int = 1


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["node", "cluster"] = "node"
    part: Part
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part | None] = {}
    degrees: int | list[int] = 1
    share: float = Field(default=0.5, gt=0, le=1)


def check(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        validated(Whole, read_yaml(text, "x.yaml", keep_faults=True))
    return str(caught.value).splitlines()


def test_unknown_key_names_the_allowed_ones_and_the_nearest() -> None:
    assert check("part: {capacity: 1, bandwith: '4.8 TB/s'}\n") == [
        'x.yaml:1:21: part.bandwith: unknown key; allowed: capacity, bandwidth (did you mean "bandwidth"?)'
        " [got '4.8 TB/s']"
    ]


def test_missing_key_is_placed_at_its_parent_and_described() -> None:
    assert check("kind: node\npart: {bandwidth: 1}\n") == ["x.yaml:2:1: part.capacity: missing; Size of the part"]
    assert check("\nkind: node\n") == ["x.yaml:2:1: part: missing"]


def test_a_misspelt_required_key_is_one_fault() -> None:
    (message,) = check("part: {capacty: 1}\n")
    assert 'did you mean "capacity"' in message


def test_faults_inside_lists_mappings_and_unions() -> None:
    text = "part: {capacity: 1}\nparts:\n  - capacity: x\n  - {capacity: 1, colour: 2}\nby_name:\n  a: {speed: 1}\n"
    text += "degrees: x\nshare: 1.5\n"
    assert check(text) == [
        "x.yaml:3:5: parts[0].capacity: should be a whole number [got 'x']",
        "x.yaml:4:19: parts[1].colour: unknown key; allowed: capacity, bandwidth [got 2]",
        "x.yaml:6:3: by_name.a.capacity: missing; Size of the part",
        "x.yaml:6:7: by_name.a.speed: unknown key; allowed: capacity, bandwidth [got 1]",
        "x.yaml:7:1: degrees: should be a whole number, or should be a list [got 'x']",
        "x.yaml:8:1: share: should be less than or equal to 1 [got 1.5]",
    ]


def test_wrong_word_names_the_allowed_ones() -> None:
    (message,) = check("kind: nodes\npart: {capacity: 1}\n")
    assert message == "x.yaml:1:1: kind: unknown value; allowed: node, cluster (did you mean \"node\"?) [got 'nodes']"


@pytest.mark.parametrize("text", ["- 1\n", "just text\n", "12\n"])
def test_top_level_that_is_no_mapping(text: str) -> None:
    (message,) = check(text)
    assert message.startswith("x.yaml:1:1: should be a mapping of keys to values")


def test_a_key_given_twice_does_not_hide_the_other_faults() -> None:
    assert check("part: {capacity: 1}\npart: {capacity: 2}\nshare: 2\ncolour: red\n") == [
        "x.yaml:2:1: part: the key stands twice, first in line 1; keep one of them",
        "x.yaml:3:1: share: should be less than or equal to 1 [got 2]",
        "x.yaml:4:1: colour: unknown key; allowed: kind, part, parts, by_name, degrees, share [got 'red']",
    ]
    # Alone it is still a fault.
    assert len(check("part: {capacity: 1}\npart: {capacity: 2}\n")) == 1


def test_a_part_of_a_document_is_checked_in_place() -> None:
    source = read_yaml("outer:\n  - {capacity: x}\n", "x.yaml")
    with pytest.raises(InputError, match=r"^x.yaml:2:6: outer\[0\].capacity: should be a whole number"):
        validated(Part, source, ("outer", 0))
    with pytest.raises(InputError, match=r"^x.yaml:1:1: outer\[1\]: missing$"):
        validated(Part, source, ("outer", 1))


def test_overridden_values_name_where_they_come_from() -> None:
    source = read_yaml("part: {capacity: 1}\n", "x.yaml")
    changed = Source(
        "x.yaml", {"part": {"capacity": "x"}}, source.positions, {("part", "capacity"): "--set part.capacity"}
    )
    with pytest.raises(InputError, match=r"^--set part.capacity: part.capacity: should be a whole number \[got 'x'\]$"):
        validated(Whole, changed)


def test_data_without_positions_still_names_the_key() -> None:
    with pytest.raises(InputError, match=r"^description: part.capacity: missing"):
        validated(Whole, Source("description", {"part": {}}))


def test_validators_place_faults_below_their_object() -> None:
    with pytest.raises(ValueError, match="first; second"):
        raise KeyFaultsError((("a",), "first"), (("b", 0), "second"))
    assert dotted(("links", 0, "name")) == "links[0].name"
    assert str(Fault("x.yaml", 3, 4, "a.b", "wrong")) == "x.yaml:3:4: a.b: wrong"
    assert str(Fault("--set a", 0, 0, "", "wrong")) == "--set a: wrong"
