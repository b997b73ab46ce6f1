"""Many scenarios that differ in a few values, each answered as if it stood alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hardware.catalogue import read_file
from hardware.faults import InputError, Path
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.provenance import release
from solvers.plan_file import scenario_of
from solvers.result import Result, plain

MOST_CASES = 100_000
"""Combinations above which a sweep was probably not meant."""

SOLVERS: Mapping[str, tuple[str, str, str]] = {
    "train": ("solvers.scenario", "load_train", "solvers.train"),
    "sequence": ("solvers.sequence_scenario", "load_sequence", "solvers.sequence"),
    "serve": ("solvers.serve_scenario", "load_serve", "solvers.serve"),
    "kv": ("solvers.kv", "load", "solvers.kv"),
    "power": ("solvers.power_scenario", "load_power", "solvers.power"),
    "fleet": ("solvers.fleet_scenario", "load_fleet", "solvers.fleet"),
    "routing": ("solvers.routing_scenario", "load_routing", "solvers.routing"),
    "placement": ("solvers.placement_scenario", "load_placement", "solvers.placement"),
}
"""Kind -> where its loader stands and what it is called, and where ``plan`` and ``predict`` stand."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SweepCase(_Strict):
    """Values that belong together."""

    name: str = Field(min_length=1)
    """What rows are called."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> value."""


class SweepQuestion(_Strict):
    """Which scenarios to answer."""

    kind: Literal["sweep"]
    """Kind of question."""
    command: Literal["plan", "predict"] = "plan"
    """What is done with every scenario."""
    scenario: str | dict[str, Any]
    """What all have in common: the path of a scenario or of a plan JSON, or the scenario itself."""
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted path, as of `--set`, -> values; every combination is a scenario."""
    cases: tuple[SweepCase, ...] = ()
    """Values that change together; every one is combined with all of `vary`."""
    show: tuple[str, ...] = ()
    """Columns of the table that is printed, beside what varies, the status and the objective."""


@dataclass(frozen=True)
class Case:
    """One scenario of a sweep.

    Parameters
    ----------
    name : str
        Name of its values that belong together; empty where there are none.
    values : dict of str to object
        Dotted path -> value.
    origins : dict of str to str
        Dotted path -> where the value stands.
    """

    name: str
    values: dict[str, Any]
    origins: dict[str, str]


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Parameters
    ----------
    question : SweepQuestion
        As asked.
    base : Source
        What all scenarios have in common.
    base_dir : Path
        Folder that paths in them are relative to.
    cases : tuple of Case
        The scenarios, in order.
    """

    question: SweepQuestion
    base: Source
    base_dir: FilePath
    cases: tuple[Case, ...]


def load_sweep(source: Source, base_dir: FilePath) -> Sweep:
    """Check a sweep.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Raises
    ------
    InputError
        With every fault of the sweep; those of single scenarios show when they are answered.
    """
    question = validated(SweepQuestion, source)
    empty = [path for path, values in question.vary.items() if not values]
    faults = [source.fault(("vary", path), "should list a value at least") for path in empty]
    names = [case.name for case in question.cases]
    for number, case in enumerate(question.cases):
        if case.name in names[:number]:
            faults.append(source.fault(("cases", number, "name"), f'"{case.name}" is the name of an earlier case'))
        for path in case.set.keys() & question.vary.keys():
            faults.append(source.fault(("cases", number, "set", path), "varies already; take it out of one of the two"))
    count = math.prod(len(values) for values in question.vary.values()) * max(len(question.cases), 1)
    if count > MOST_CASES:
        faults.append(source.fault(("vary",), f"{count:,} scenarios; at most {MOST_CASES:,} make a sweep"))
    base, folder = source, base_dir
    if isinstance(question.scenario, str):
        file = base_dir / question.scenario
        base, folder = scenario_of(read_file(file)), file.parent
    else:
        base = _part(source, "scenario")
    kind = base.data.get("kind") if isinstance(base.data, Mapping) else None
    if kind not in SOLVERS:
        faults.append(base.fault(("kind",), f"{did_you_mean(str(kind), SOLVERS)} [got {kind!r}]"))
    if faults:
        raise InputError(faults)
    return Sweep(question, base, folder, tuple(_cases(question, source)))


def _part(source: Source, key: str) -> Source:
    """Return a part of a document as one of its own that keeps its place."""

    def below(places: Mapping[Path, Any]) -> dict[Path, Any]:
        return {path[1:]: place for path, place in places.items() if path[:1] == (key,)}

    return Source(source.name, source.data[key], below(source.positions), below(source.origins))


def _cases(question: SweepQuestion, source: Source) -> Iterator[Case]:
    def placed(*path: str | int) -> str:
        return str(source.fault(path, "")).rstrip(": ")

    lists = [[(path, number, value) for number, value in enumerate(values)] for path, values in question.vary.items()]
    for index, case in enumerate(question.cases or (None,)):
        together = {} if case is None else case.set
        origins = {path: placed("cases", index, "set", path) for path in together}
        for chosen in itertools.product(*lists):
            yield Case(
                "" if case is None else case.name,
                together | {path: value for path, _, value in chosen},
                origins | {path: placed("vary", path, number) for path, number, _ in chosen},
            )


def key_of(command: str, scenario: Source) -> str:
    """Return what tells a scenario from all others of one release; files that it names count by name alone."""
    text = json.dumps([release(), command, plain(scenario.data)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def answer(
    command: str,
    scenario: Source,
    base_dir: FilePath,
    *,
    time_limit_s: float | None = None,
    gap: float | None = None,
) -> Result:
    """Answer one scenario.

    Parameters
    ----------
    command : str
        ``plan`` or ``predict``.
    scenario : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.
    time_limit_s, gap : float
        Where a search may stop; left to the kind of question if left out.

    Raises
    ------
    InputError
        With every fault of the scenario.
    """
    loader_at, loader, solver = SOLVERS[scenario.data["kind"]]
    question = getattr(import_module(loader_at), loader)(scenario, base_dir)
    module = import_module(solver)
    if command == "predict":
        if scenario.data.get("plan") is None and scenario.data["kind"] != "routing":
            raise InputError([scenario.fault(("plan",), "missing; predict costs the plan that a scenario gives")])
        found: Result = module.predict(question)
        return found
    asked = {"time_limit_s": time_limit_s, "gap": gap}
    planner: Callable[..., Result] = module.plan
    return planner(question, **{name: value for name, value in asked.items() if value is not None})


def sweep_schema() -> dict[str, Any]:
    """Return the JSON Schema of a sweep."""
    return SweepQuestion.model_json_schema()
