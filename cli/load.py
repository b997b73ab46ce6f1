"""Files and `--set` options as one document that knows where everything in it came from."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from hardware.catalogue import description, read_file, resolve_cluster, resolve_facility
from hardware.faults import Fault, InputError, Path, collected
from hardware.units import parse_quantity
from hardware.yaml_source import Source, read_yaml
from solvers.plan_file import scenario_of

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_DOTTED = re.compile(r"[^.\[\]]+(?:\[\d+\])*(?:\.[^.\[\]]+(?:\[\d+\])*)*")

_REACH: dict[str | int, Path] = {
    "accelerator": ("cluster", "node", "accelerators", "type"),
    "node": ("cluster", "node"),
}
"""Short ways into the hardware -> where it stands in a cluster that is written out."""

_CAPPED: Path = ("cluster", "node", "accelerators", "type", "power", "limit")

_FOLLOWS: dict[Path, tuple[str, ...]] = {
    ("cluster", "fabric", "oversubscription"): ("spines", "uplinks", "cores"),
    ("cluster", "fabric", "core_oversubscription"): ("spines",),
    ("cluster", "fabric", "link"): ("spines", "uplinks", "cores"),
    ("cluster", "fabric", "hosts_per_leaf"): ("leaves", "spines", "uplinks", "cores"),
    ("cluster", "node", "nics", "count"): ("leaves", "spines", "uplinks", "cores"),
    ("cluster", "node", "nics", "bandwidth"): ("spines", "uplinks", "cores"),
}
"""What is set -> counts of the catalogue's network that follow from it, and would contradict another value of it."""


def load(path: FilePath, overrides: Sequence[str] = ()) -> Source:
    """Read a scenario, or the scenario of a plan JSON with its plan, and set values in it.

    Parameters
    ----------
    path : Path
        The file.
    overrides : sequence of str
        ``dotted.path=value`` each. A path reaches into mappings and lists (``links[0].latency``, or an item by its
        ``name``: ``links.nvlink.latency``) and makes what is missing. ``cluster.``, ``node.``, ``accelerator.`` and
        ``facility.`` reach into the hardware; what is only named is written out for it. The value is YAML.

    Returns
    -------
    Source
        Data with the position of every key; what was set is traced to its option.

    Raises
    ------
    InputError
        The file cannot be read or is no YAML, or an option is wrong; with every fault.
    """
    return with_overrides(scenario_of(read_file(path)), overrides, path.parent)


def written(path: FilePath, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read what was set, in the file and with options, and nothing else.

    Parameters
    ----------
    path : Path
        The file.
    overrides : sequence of str
        As for `load`.

    Returns
    -------
    dict
        The file's values, changed; an option that reaches below a mere name stands beside it under its dotted path.
    """
    data: dict[str, Any] = copy.deepcopy(scenario_of(read_file(path)).data)
    for origin, keys, value in map(_parsed, overrides):
        inside = len(keys) == 1 or (keys[0] in data and _reaches(data[keys[0]], keys[1:]))
        if inside or keys[0] not in (*_REACH, "cluster", "facility"):
            _set(data, keys, value, origin)
        else:
            data[origin.removeprefix("--set ")] = value
    return data


def with_overrides(source: Source, overrides: Sequence[str], base_dir: FilePath) -> Source:
    """Set values in a document.

    Parameters
    ----------
    source : Source
        The document.
    overrides : sequence of str
        As for `load`.
    base_dir : Path
        Folder that paths in the document are relative to.

    Returns
    -------
    Source
        A changed copy.

    Raises
    ------
    InputError
        With every fault of the options.
    """
    faults: list[Fault] = []
    parsed: list[tuple[str, Path, Any]] = []
    for text in overrides:
        with collected(faults):
            parsed.append(_parsed(text))
    if faults:
        raise InputError(faults)
    return _with_all(source, parsed, base_dir)


def with_values(source: Source, values: Mapping[str, Any], origins: Mapping[str, str], base_dir: FilePath) -> Source:
    """Set values in a document that are data already.

    Parameters
    ----------
    source : Source
        The document.
    values : mapping
        Dotted path, as for `load`, -> value.
    origins : mapping
        Dotted path -> where the value stands.
    base_dir : Path
        Folder that paths in the document are relative to.

    Raises
    ------
    InputError
        With every fault of the paths.
    """
    faults = [
        Fault(origins[path], 0, 0, "", "should be a dotted path, such as workload.seq_len or links[0].latency")
        for path in values
        if not _DOTTED.fullmatch(path)
    ]
    if faults:
        raise InputError(faults)
    return _with_all(source, [(origins[path], _keys(path), value) for path, value in values.items()], base_dir)


def _keys(dotted: str) -> Path:
    return tuple(int(index) if index else name for index, name in _PART.findall(dotted))


def _with_all(source: Source, parsed: list[tuple[str, Path, Any]], base_dir: FilePath) -> Source:
    faults: list[Fault] = []
    # Which cluster or facility it is must be known before something in it can be set.
    parsed.sort(key=lambda item: item[1][0] in ("cluster", "facility", *_REACH) and len(item[1]) > 1)
    for origin, path, value in parsed:
        if not isinstance(source.data, dict):
            break
        with collected(faults):
            source = _with_value(source, origin, path, value, base_dir)
    if faults:
        raise InputError(dict.fromkeys(faults))
    return source


def _parsed(text: str) -> tuple[str, Path, Any]:
    key, equals, value = (part.strip() for part in text.partition("="))
    origin = f"--set {key}"
    if not equals or not _DOTTED.fullmatch(key):
        message = 'should be a dotted path, "=" and a value, such as workload.seq_len=8192 or links[0].latency="2 us"'
        raise InputError([Fault(f"--set {text}", 0, 0, "", message)])
    path = _keys(key)
    try:
        return origin, path, read_yaml(value, origin).data if value else None
    except InputError as error:
        raise InputError(Fault(origin, 0, 0, fault.key, fault.message) for fault in error.faults) from None


def _with_value(source: Source, origin: str, path: Path, value: Any, base_dir: FilePath) -> Source:
    if path[0] in _REACH and path[0] not in source.data and len(path) > 1:
        path = (*_REACH[path[0]], *path[1:])
        source = _written_out(source, base_dir, origin, path)
    elif path[0] == "cluster" and len(path) > 1 and not _reaches(source.data.get("cluster"), path[1:]):
        source = _written_out(source, base_dir, origin, path)
    elif path[0] == "facility" and len(path) > 1 and isinstance(source.data.get("facility"), str):
        facility, _ = resolve_facility(source.data["facility"], base_dir, source=source, at=("facility",))
        written = facility.model_dump(mode="json", exclude_none=True, exclude={"aliases", "provenance", "notes"})
        source = replace(source, data={**source.data, "facility": written})
    data = copy.deepcopy(source.data)
    path = _set(data, path, value, origin)
    if path == _CAPPED:
        _keep_highest(data, source.data)
    positions = {other: place for other, place in source.positions.items() if other[: len(path)] != path}
    origins = {other: place for other, place in source.origins.items() if other[: len(path)] != path}
    origins[path] = origin
    for count in _FOLLOWS.get(path, ()):
        place = ("cluster", "fabric", count)
        if place not in origins and place not in positions:  # what the person wrote stays, and may contradict
            data["cluster"].get("fabric", {}).pop(count, None)
    return replace(source, data=data, positions=positions, origins=origins)


def _keep_highest(data: Any, before: Any) -> None:
    """Keep what an accelerator could be held to before, so that a lower limit is a cap and not another board."""
    for key in _CAPPED[:-1]:
        data, before = data[key], before[key]
    try:
        lower = parse_quantity(data["limit"], "W") < parse_quantity(before["limit"], "W")
    except ValueError:
        return  # told where the description is checked
    if lower:
        data.setdefault("highest", before["limit"])


def _reaches(part: Any, path: Path) -> bool:
    """Tell whether a path can be followed without looking a name up in the catalogue."""
    if isinstance(part, dict) and path[0] == "fabric" and "node" not in part:
        return False  # a node alone, whose network stands nowhere yet
    for key in path:
        if isinstance(part, str) or part is None:
            return False
        if not isinstance(part, dict) or key not in part:
            return True
        part = part[key]
    return True


def _written_out(source: Source, base_dir: FilePath, origin: str, path: Path) -> Source:
    """Replace the name of a cluster, or a description that names parts, by the whole description."""
    if "cluster" not in source.data:
        message = "there is no cluster whose hardware could be changed"
        raise InputError([Fault(origin, 0, 0, ".".join(map(str, path)), message)])
    nodes = source.data.get("nodes")
    machine = resolve_cluster(
        source.data["cluster"],
        base_dir,
        nodes if isinstance(nodes, int) and not isinstance(nodes, bool) else None,
        source=source,
        at=("cluster",),
    )
    return replace(source, data={**source.data, "cluster": description(machine)})


def _set(data: Any, path: Path, value: Any, origin: str) -> Path:
    """Set a value in place; return its path as the data has it."""
    taken: list[str | int] = []
    for depth, key in enumerate(path):
        last = depth == len(path) - 1
        fresh: Any = value if last else [] if isinstance(path[depth + 1], int) else {}
        where = ".".join(map(str, taken))
        if isinstance(data, dict) and isinstance(key, str):
            if last or data.get(key) is None:
                data[key] = fresh
        elif isinstance(data, list):
            key = _index(data, key, where, origin)
            if key == len(data):
                data.append(fresh)
            elif last:
                data[key] = fresh
        else:
            kind = "a mapping, whose keys have names" if isinstance(data, dict) else f"the value {data!r}"
            raise InputError([Fault(origin, 0, 0, "", f"{where or 'the document'} is {kind}; nothing is at {key!r}")])
        taken.append(key)
        data = data[key]
    return tuple(taken)


def _index(items: Sequence[Any], key: str | int, where: str, origin: str) -> int:
    names = [item.get("name") for item in items if isinstance(item, dict)]
    if key in names:
        return names.index(key)
    if isinstance(key, int) or key.isdigit():
        if int(key) <= len(items):
            return int(key)
        message = f"{where} has {len(items)} items, counted from 0; the next would be [{len(items)}]"
    else:
        message = f"{where} is a list; allowed: {_choices(names, len(items))}"
    raise InputError([Fault(origin, 0, 0, "", f"{message} [got {key!r}]")])


def _choices(names: Iterable[Any], count: int) -> str:
    return ", ".join([*(str(name) for name in names if name), f"0 to {count}"])
