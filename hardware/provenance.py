"""What every description has in common: strict keys, and where its numbers come from."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from hardware.faults import KeyFaultsError, Path
from hardware.yaml_source import did_you_mean

Text = Annotated[str, Field(strict=True, min_length=1)]


def _date(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(_DATE, value):
        raise ValueError("should be a date, YYYY-MM or YYYY-MM-DD")
    return value


_DATE = "^[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?$"
Date = Annotated[str, BeforeValidator(_date), WithJsonSchema({"type": "string", "pattern": _DATE})]


class Description(BaseModel):
    """A part of a hardware file: no unknown keys, unchanged once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Provenance(Description):
    """Where a number comes from."""

    source: Text
    """Title or address of the document, or how the number was measured."""
    date: Date
    """When it was read or measured: YYYY-MM or YYYY-MM-DD."""
    evidence: Literal["data sheet", "documentation", "measured", "published", "derived", "from memory", "assumption"]
    """What kind of statement the number rests on."""
    note: str = ""
    """Anything a reader should know, such as how the number was derived."""


def provenance_path(key: str) -> tuple[str, ...]:
    """Split a key of a provenance mapping.

    Parameters
    ----------
    key
        Such as ``links[0].bandwidth`` or ``links.nvlink.bandwidth``.

    Returns
    -------
    tuple of str
        The names on the way down.
    """
    return tuple(key.replace("[", ".").replace("]", "").split("."))


def children(part: object) -> dict[str, object]:
    """List what stands below a part of a description.

    Parameters
    ----------
    part
        A description, or anything in one.

    Returns
    -------
    dict of str to object
        Every name an item may be called -> the item: items of a list by position and by their own name.
    """
    if isinstance(part, BaseModel):
        return {name: getattr(part, name) for name in type(part).model_fields if name != "provenance"}
    if isinstance(part, Mapping):
        return {str(key): value for key, value in part.items()}
    if isinstance(part, tuple):
        by_position = {str(index): item for index, item in enumerate(part)}
        return by_position | {item.name: item for item in part if hasattr(item, "name")}
    return {}


class Recorded(Description):
    """A description whose numbers name their source."""

    provenance: dict[Text, Provenance] = {}
    """Dotted key, such as memory.bandwidth, or the key above several -> where the numbers below it come from.
    An item of a list is named by its position or its name: links.0 or links.nvlink."""

    @model_validator(mode="after")
    def _provenance_names_keys(self) -> Self:
        faults: list[tuple[Path, str]] = []
        for key in self.provenance:
            part: object = self
            for name in provenance_path(key):
                choices = children(part)
                if name not in choices:
                    faults.append((("provenance", key), f'no key "{name}" here; {did_you_mean(name, choices)}'))
                    break
                part = choices[name]
        if faults:
            raise KeyFaultsError(*faults)
        return self


def _numbers(part: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Walk to every number that was written, except in parts that name their own source."""
    if isinstance(part, BaseModel):
        if "source" in type(part).model_fields or (path and isinstance(part, Recorded)):
            return
        for name in sorted(part.model_fields_set):
            yield from _numbers(getattr(part, name), (*path, name))
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from _numbers(value, (*path, str(key)))
    elif isinstance(part, tuple):
        for index, item in enumerate(part):
            yield from _numbers(item, (*path, str(index)))
    elif isinstance(part, int | float) and not isinstance(part, bool):
        yield path


def _recorded(part: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Recorded]]:
    """Walk to every part that carries its own provenance."""
    if isinstance(part, Recorded):
        yield path, part
    if isinstance(part, BaseModel):
        for name in type(part).model_fields:
            yield from _recorded(getattr(part, name), (*path, name))


def from_memory(description: BaseModel) -> list[tuple[str, Provenance]]:
    """List what rests on somebody's memory alone.

    Parameters
    ----------
    description
        A parsed hardware file.

    Returns
    -------
    list of (str, Provenance)
        Dotted keys and what their provenance says.
    """
    return [
        (".".join((*path, key)), entry)
        for path, part in _recorded(description)
        for key, entry in part.provenance.items()
        if entry.evidence == "from memory"
    ]


def numbers_without_provenance(description: BaseModel) -> list[str]:
    """List the numbers that name no source.

    Parameters
    ----------
    description
        A parsed hardware file.

    Returns
    -------
    list of str
        Dotted keys. An entry for a key covers all numbers below it; a price names its own source.
    """
    missing: list[str] = []
    for path, part in _recorded(description):
        covered = {_by_position(part, provenance_path(key)) for key in part.provenance}
        for number in _numbers(part, ()):
            if not any(number[:length] in covered for length in range(1, len(number) + 1)):
                missing.append(".".join((*path, *number)))
    return missing


def _by_position(part: object, names: tuple[str, ...]) -> tuple[str, ...]:
    """Rewrite the names of list items in a path to their positions."""
    path: list[str] = []
    for name in names:
        child = children(part).get(name)
        if isinstance(part, tuple) and not name.isdigit():
            name = str(next(index for index, item in enumerate(part) if item is child))
        path.append(name)
        part = child
    return tuple(path)
