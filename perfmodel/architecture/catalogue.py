"""Finding a model: by its name among the bundled ones, or in a file."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

from hardware.faults import Fault, InputError, Path
from hardware.yaml_source import Source, nearest, read_yaml, validated
from perfmodel.architecture.config import from_config
from perfmodel.architecture.coverage import MODELS, ModelNotCovered, normalised, not_covered_name, read_bundled
from perfmodel.architecture.description import ModelDescription, from_description
from perfmodel.architecture.shapes import Architecture

_LISTS = ("aliases.yaml", "not-covered.yaml")
_TUNED = re.compile(r"[-_ ](instruct|chat|it|base|hf|thinking|fp8|bf16|nvfp4|fp4|mxfp4|awq|gptq|2507)$", re.IGNORECASE)
"""Ends of names of models that were tuned or rounded, whose sizes are those of the model without it."""


@lru_cache
def _files() -> Mapping[str, str]:
    """Map each bundled model's name to its file."""
    names = [entry.name for entry in MODELS.iterdir() if entry.name.endswith((".json", ".yaml"))]
    return dict(sorted((name.rpartition(".")[0], name) for name in names if name not in _LISTS))


@lru_cache
def _names() -> Mapping[str, Mapping[str, str]]:
    """Map each name and alias, as names are compared, to the bundled models by the points in their numbers."""
    known: dict[str, dict[str, str]] = {}
    aliases = read_bundled("aliases.yaml").data
    for model in _files():
        for name in (model, *aliases.get(model, ())):
            known.setdefault(normalised(name), {})[_pointed(name)] = model
    return known


def _pointed(name: str) -> str:
    """Write a name as names are compared, but with the points in its numbers: opt-1.3b is not opt-13b."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)", "", name.casefold().translate(str.maketrans("", "", "-_ ")))


def _named(name: str) -> str | None:
    """Return the bundled model of a name: with the same points, or where none are written with any."""
    found = _names().get(normalised(name), {})
    pointed = _pointed(name)
    if pointed in found or "." in pointed:
        return found.get(pointed)
    return next(iter(found.values())) if len(set(found.values())) == 1 else None


def architecture_names() -> tuple[str, ...]:
    """List the bundled models.

    Returns
    -------
    tuple of str
        Their names, without aliases.
    """
    return tuple(_files())


def bundled_architecture(name: str) -> Architecture | None:
    """Find a bundled model.

    Parameters
    ----------
    name
        A name or an alias; case, ``-``, ``_``, ``.`` and spaces do not matter. Its organisation on Hugging Face may
        stand before it, and what says that it was tuned or rounded after it (``-Instruct``, ``-FP8``).

    Returns
    -------
    Architecture or None
        The model; None if there is none of this name.
    """
    left = name.rpartition("/")[2] if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else name
    found = _named(left)
    while not found and (shorter := _TUNED.sub("", left)) != left:
        left = shorter
        found = _named(left)
    return _bundled(found) if found else None


@lru_cache
def _bundled(name: str) -> Architecture:
    return _from_source(read_bundled(_files()[name]), name)


def load_architecture(
    value: str | Mapping[str, Any], base_dir: FilePath, source: Source | None = None, at: Path = ("model",)
) -> Architecture:
    """Find or read the model a person means.

    Parameters
    ----------
    value
        Name of a bundled model; path of a ``config.json``, of its folder or of a short description; or the content of
        either.
    base_dir
        Folder that paths are relative to.
    source, at
        The document that says so and the path of `value` in it, to place faults.

    Returns
    -------
    Architecture
        The model.

    Raises
    ------
    InputError
        There is no such model or file, or it has faults (all of them are named).
    ModelNotCovered
        The model is known, and of a kind that is not modelled.
    """
    if not isinstance(value, str):
        return _from_source(source, "model", at) if source else _from_source(Source("model", value), "model")
    path = base_dir / value
    bundled = None if "/" in value and path.exists() else bundled_architecture(value)
    if bundled:
        return bundled
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise _unknown(value, source or Source("", None), at)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Fault(str(path), 0, 0, "", f"cannot be read as text: {error}")]) from None
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # JSON may be indented by tabs, YAML may not
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return _from_source(read_yaml(text, str(path)), name)


def trainable(architecture: Architecture, source: Source, at: Path = ("model",)) -> Architecture:
    """Return a model, if its training is modelled.

    Parameters
    ----------
    architecture
        The model.
    source, at
        The document that names it and the path in it, to place faults.

    Returns
    -------
    Architecture
        The same model.

    Raises
    ------
    ModelNotCovered
        It has linear attention, of which only serving is modelled.
    """
    if any(group.attention.kind == "linear" for group in architecture.layers):
        message = f'"{architecture.name}": linear attention is modelled in serving alone, not in training'
        raise ModelNotCovered(source.fault(at, message))
    return architecture


def _from_source(source: Source, name: str, at: Path = ()) -> Architecture:
    data = source.data
    for part in at:
        data = data[part]
    if not isinstance(data, Mapping):
        raise InputError([source.fault(at, "should be a mapping of keys to values: a config.json or a description")])
    if "model_type" in data or "architectures" in data or "text_config" in data:
        return from_config(data, name, source, at)
    return from_description(validated(ModelDescription, source, at))


def _unknown(name: str, source: Source, at: Path) -> InputError:
    reason = not_covered_name(name)
    if reason:
        return ModelNotCovered(source.fault(at, f'"{name}": {reason}'))
    near = _names().get(nearest(normalised(name), _names()) or "")
    hint = f' (did you mean "{next(iter(near.values()))}"?)' if near else ""
    message = f'"{name}" is neither a bundled model nor a file{hint}; "perfmodel model list" shows the bundled ones'
    return InputError([source.fault(at, message)])
