"""Which models are known and not modelled, and why."""

from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hardware.faults import Fault, InputError
from hardware.yaml_source import Source, read_yaml

MODELS = files("perfmodel") / "models"
"""The folder of the bundled models."""


class ModelNotCovered(InputError):  # noqa: N818
    """A model is of a kind that is not modelled, or too little of it is known."""

    def __init__(self, fault: Fault) -> None:
        super().__init__([fault])

    @property
    def reason(self) -> str:
        """Why the model is not covered."""
        return self.faults[0].message


def normalised(name: str) -> str:
    """Write a model's name without what people write differently: case, ``-``, ``_``, ``.`` and spaces.

    Parameters
    ----------
    name
        A name.

    Returns
    -------
    str
        The form in which names are compared.
    """
    return name.casefold().translate(str.maketrans("", "", "-_. "))


def read_bundled(file: str) -> Source:
    """Read a bundled file.

    Parameters
    ----------
    file
        Its name in the folder of the bundled models.

    Returns
    -------
    Source
        Its content.
    """
    return read_yaml((MODELS / file).read_text(encoding="utf-8"), file)


def not_covered_type(model_type: str) -> str:
    """Say why a ``model_type`` is not modelled.

    Parameters
    ----------
    model_type
        The value in a ``config.json``.

    Returns
    -------
    str
        The reason; empty if the type is not among those known not to be modelled.
    """
    return _reason("model_types", model_type)


def not_covered_name(name: str) -> str:
    """Say why a model is not modelled.

    Parameters
    ----------
    name
        Name of the model.

    Returns
    -------
    str
        The reason; empty if the model is not among those known not to be modelled.
    """
    return _reason("names", normalised(name))


def _reason(kind: str, word: str) -> str:
    for entry in _not_covered()[kind]:
        if any(fnmatchcase(word, pattern) for pattern in entry["patterns"]):
            return str(entry["reason"])
    return ""


@lru_cache
def _not_covered() -> Any:
    return read_bundled("not-covered.yaml").data
