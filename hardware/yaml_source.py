"""YAML text into plain data that knows where every key stands.

Scalars follow YAML 1.2: ``NO`` and ``1:30`` are text, ``1e12`` is a number. A key given twice is an error.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hardware.faults import Fault, InputError, KeyFaultsError, Path, dotted

Model = TypeVar("Model", bound=BaseModel)

_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_TAGS = {"tag:yaml.org,2002:" + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
_PLAIN = "plain"
_MOST_VALUES = 1_000_000
"""Aliases of aliases can blow a short text up without bound; no honest file holds this many values."""
_DEEPEST = 100
"""The C parser overflows its stack on very deep nesting; no honest file is nested this deeply."""

_CLoader: type[Any] = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Loader(_CLoader):  # type: ignore[misc]
    """Marks an unquoted scalar without a tag as such, where PyYAML would guess a YAML 1.1 type."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))


@dataclass(frozen=True)
class Source:
    """A document as plain data, with the position of every key.

    Parameters
    ----------
    name
        How to call the document in messages: the file as the person wrote it.
    data
        Mappings, lists, texts, numbers, booleans and None.
    positions
        Path of each key or list item -> (line, column), counted from 1.
    origins
        Paths whose value comes from elsewhere -> how to call that place, such as ``--set nodes``.
    faults
        Faults found on reading that do not prevent the rest from being checked: keys that stand twice.
    """

    name: str
    data: Any
    positions: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    origins: Mapping[Path, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def fault(self, path: Path, message: str) -> Fault:
        """Place a message at a key, or at the nearest key above it that has a position.

        Parameters
        ----------
        path
            Path of the key.
        message
            What is wrong with it.

        Returns
        -------
        Fault
            The located message.
        """
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return Fault(self.origins[path[:length]], 0, 0, dotted(path), message)
            if path[:length] in self.positions:
                line, column = self.positions[path[:length]]
                return Fault(self.name, line, column, dotted(path), message)
        return Fault(self.name, 0, 0, dotted(path), message)


class _Reader:
    """Builds data and positions from the nodes of one document."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions: dict[Path, tuple[int, int]] = {}
        self.faults: list[Fault] = []
        self.values = 0

    def fault(self, node: yaml.Node, path: Path, message: str) -> None:
        line, column = _position(node)
        self.faults.append(Fault(self.name, line, column, dotted(path), message))

    def read(self, node: yaml.Node, path: Path, above: tuple[yaml.Node, ...] = ()) -> Any:
        """Turn a node into data; `above` are the nodes it stands in, to refuse one that contains itself."""
        self.values += 1
        if self.values > _MOST_VALUES:
            self.fault(node, path, f"more than {_MOST_VALUES} values, counting each use of an alias")
            raise InputError(self.faults)
        if any(node is other for other in above):
            self.fault(node, path, "an alias stands inside what it is an alias of")
            return None
        if node.tag not in _TAGS and node.tag != _PLAIN:
            self.fault(node, path, f'tag "{node.tag}" is not supported; allowed: plain YAML values')
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.positions[(*path, index)] = _position(item)
                items.append(self.read(item, (*path, index), (*above, node)))
            return items
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path, above: tuple[yaml.Node, ...]) -> dict[str | int, Any]:
        data: dict[str | int, Any] = {}
        for key_node, value_node in node.value:
            key = self.scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str | int) or isinstance(key, bool):
                self.fault(key_node, path, f"a key should be text, put quotes around it [got {_shown(key_node.value)}]")
                continue
            if key in data:
                line, _ = self.positions[(*path, key)]
                self.fault(key_node, (*path, key), f"the key stands twice, first in line {line}; keep one of them")
                continue
            self.positions[(*path, key)] = _position(key_node)
            data[key] = self.read(value_node, (*path, key), above)
        return data

    def scalar(self, node: yaml.Node, path: Path) -> str | int | float | bool | None:
        text: str = node.value
        kind = node.tag.rpartition(":")[2]
        if kind == "str":
            return text
        try:
            value = _scalar(text)
        except ValueError:  # Python refuses to read integers of thousands of digits
            self.fault(node, path, "the number has too many digits")
            return None
        found = "null" if value is None else type(value).__name__
        if node.tag != _PLAIN and found != kind and (kind, found) != ("float", "int"):
            self.fault(node, path, f"{_shown(text)} is not of the type its tag says, {kind}")
        return value


def _scalar(text: str) -> str | int | float | bool | None:
    """Read an unquoted scalar by the core schema of YAML 1.2.2, section 10.3.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _position(node: Any) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def read_yaml(text: str, name: str, *, keep_faults: bool = False) -> Source:
    """Read one YAML (or JSON) document.

    Parameters
    ----------
    text
        The document.
    name
        How to call it in messages.
    keep_faults
        Whether faults that leave the rest readable (keys that stand twice; the first one counts) are kept in the
        result, for `validated` to report together with its own, instead of raised.

    Returns
    -------
    Source
        The data with the position of every key.

    Raises
    ------
    InputError
        The text is no YAML, is empty, or (unless kept) has a key twice; with every fault that could be found.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise InputError([Fault(name, *_position(event), "", f"nested more than {_DEEPEST} levels deep")])
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise InputError([_syntax_fault(text, name, error)]) from None
    except yaml.reader.ReaderError as error:
        found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
        before = text[: found.start() if found else error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise InputError([Fault(name, line, column, "", "a control character; remove it")]) from None
    if root is None:
        raise InputError([Fault(name, 1, 1, "", "the file is empty")])
    reader = _Reader(name)
    reader.positions[()] = _position(root)
    data = reader.read(root, ())
    if reader.faults and not keep_faults:
        raise InputError(_ordered(reader.faults))
    return Source(name, data, reader.positions, faults=tuple(reader.faults))


def _syntax_fault(text: str, name: str, error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.splitlines()
    before = lines[line - 1][:column] if line <= len(lines) else ""
    if before.strip(" \t") == "" and "\t" in before:
        message = "a tab used for indentation; use spaces"
        column = before.index("\t") + 1
    else:
        parts = [error.problem or "not readable", error.context or ""]
        message = "not valid YAML: " + " ".join(part for part in parts if part)
    return Fault(name, line, column, "", message)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _ordered(faults: Iterable[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: (fault.line, fault.column))


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Find the allowed word a person most likely meant.

    Parameters
    ----------
    word
        What was written.
    allowed
        What may be written.

    Returns
    -------
    str or None
        The nearest spelling, None if none is near.
    """
    by_lower = {choice.lower(): choice for choice in allowed}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """Write the list of allowed words, with the nearest spelling of the one found.

    Parameters
    ----------
    word
        What was written.
    allowed
        What may be written.

    Returns
    -------
    str
        For example ``allowed: capacity, bandwidth (did you mean "bandwidth"?)``.
    """
    choices = list(allowed)
    near = nearest(str(word), choices)
    return "allowed: " + (", ".join(choices) or "none") + (f' (did you mean "{near}"?)' if near else "")


def validated(model: type[Model], source: Source, at: Path = ()) -> Model:
    """Check a document, or a part of it, against a model.

    Parameters
    ----------
    model
        The pydantic model that says what is allowed.
    source
        The document.
    at
        Path of the part to check.

    Returns
    -------
    Model
        The parsed object.

    Raises
    ------
    InputError
        With every fault of the document, each at its key.
    """
    data = source.data
    for depth, part in enumerate(at):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            raise InputError([*source.faults, source.fault(at[: depth + 1], "missing")]) from None
    try:
        result = model.model_validate(data)
    except ValidationError as error:
        found = list(_faults(model, source, at, data, error.errors(include_url=False)))
    else:
        if not source.faults:
            return result
        found = []
    raise InputError(_ordered([*source.faults, *found]))


def _faults(
    model: type[BaseModel], source: Source, at: Path, data: object, errors: list[ErrorDetails]
) -> Iterator[Fault]:
    placed: dict[Path, list[ErrorDetails]] = {}
    for error in errors:
        placed.setdefault(_path(data, error), []).append(error)
    # Each member of a union reports on its own: "should be text" at the value itself is only noise when another
    # member got further into it.
    paths = [path for path in placed if not (len(placed) > 1 and _overshadowed(path, placed))]
    misspelt = {
        (*path[:-1], near)
        for path in paths
        if placed[path][0]["type"] == "extra_forbidden" and (near := _nearest_key(model, path))
    }
    for path in paths:
        messages: list[str] = []
        for error in placed[path]:
            if error["type"] == "missing" and path in misspelt:
                continue
            cause = error.get("ctx", {}).get("error")
            if isinstance(cause, KeyFaultsError):
                for below, message in cause.faults:
                    yield source.fault((*at, *path, *below), message)
                continue
            message = _message(model, path, error)
            if message not in messages:
                messages.append(message)
        if messages:
            got = "" if placed[path][0]["type"] == "missing" else f" [got {_shown(placed[path][0]['input'])}]"
            yield source.fault((*at, *path), ", or ".join(messages) + got)


def _path(data: object, error: ErrorDetails) -> Path:
    """Follow a pydantic location through the data, leaving out what only names a member of a union."""
    path: list[str | int] = []
    for part in error["loc"]:
        inside = part in data if isinstance(data, Mapping) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]  # type: ignore[index]
            path.append(part)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _overshadowed(path: Path, placed: Mapping[Path, list[ErrorDetails]]) -> bool:
    if any(error["type"] in ("missing", "extra_forbidden", "value_error") for error in placed[path]):
        return False
    return any(len(other) > len(path) and other[: len(path)] == path for other in placed)


def _nearest_key(model: type[BaseModel], path: Path) -> str | None:
    return nearest(str(path[-1]), _keys(model, path[:-1]))


_WORDING = {
    "too_short": "should not be empty; leave the key out for the default",
    "missing": "missing",
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "finite_number": "should be a finite number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "dict_type": "should be a mapping of keys to values",
    "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
}


def _message(model: type[BaseModel], path: Path, error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key; " + did_you_mean(path[-1], _keys(model, path[:-1]))
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", str(context["expected"])) or [str(context["expected"])]
        is_key = error["loc"][-1] == "[key]"
        return f"unknown {'key' if is_key else 'value'}; " + did_you_mean(error["input"], allowed)
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "missing":
        description = _description(model, path)
        return "missing" + (f"; {description}" if description else "")
    return _WORDING.get(kind) or error["msg"].replace("Input should", "should").replace("Value error, ", "")


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    """List the keys the model allows in the mapping at a path."""
    keys: list[str] = []
    for kind in _types(model, path):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += [name for name in map(str, _fields(kind)) if name not in keys]
    return keys


def _description(model: type[BaseModel], path: Path) -> str:
    """Give the first sentence of what the model says about a key."""
    for kind in _types(model, path[:-1]):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and path[-1] in (fields := _fields(kind)):
            text = " ".join((fields[str(path[-1])].description or "").split())
            return text.partition(". ")[0].rstrip(".")
    return ""


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _types(kind: Any, path: Path) -> list[Any]:
    """List the types a value at a path may have, following fields, mappings and lists through unions."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _types(typing.get_args(kind)[0], path)
    if origin in (typing.Union, types.UnionType):
        return [found for member in typing.get_args(kind) for found in _types(member, path)]
    if not path:
        return [kind]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        info = _fields(kind).get(str(path[0]))
        return _types(info.annotation, path[1:]) if info else []
    arguments = typing.get_args(kind)
    return _types(arguments[-1 if origin is dict else 0], path[1:]) if arguments else []
