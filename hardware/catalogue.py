"""The machines that come with the package, and those a person describes."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel

from hardware.fabric import check_fabric, read_edges
from hardware.facility import Facility, places, renamed
from hardware.faults import Fault, InputError, KeyFaultsError, Path, collected
from hardware.files import read_text
from hardware.network import Fabric
from hardware.schema import MODELS, Accelerator, Cluster, Node
from hardware.yaml_source import Source, did_you_mean, nearest, read_yaml, validated

Model = TypeVar("Model", bound=BaseModel)

_FOLDERS = {
    "accelerator": "accelerators",
    "node": "nodes",
    "cluster": "clusters",
    "efficiency": "efficiency",
    "facility": "facilities",
}


class UnknownName(KeyError):  # noqa: N818 - reads as what it says where it is caught
    """The catalogue holds nothing of this name.

    Parameters
    ----------
    kind
        ``accelerator``, ``node``, ``cluster``, ``efficiency`` or ``facility``.
    name
        What was looked for.
    nearest
        The name in the catalogue that is spelt most alike, None if none is.
    """

    def __init__(self, kind: str, name: str, nearest: str | None) -> None:
        self.kind, self.name, self.nearest = kind, name, nearest
        super().__init__(name)

    def __str__(self) -> str:
        hint = f' (did you mean "{self.nearest}"?)' if self.nearest else ""
        return f'no {self.kind} "{self.name}" in the catalogue{hint}'


@dataclass(frozen=True)
class Machine:
    """What a job runs on: nodes of a cluster, every part resolved.

    Parameters
    ----------
    cluster
        The cluster, with the node and its accelerator written out.
    node
        One of its nodes.
    accelerator
        One of a node's accelerators.
    nodes
        Nodes the job uses; at most those of the cluster.
    """

    cluster: Cluster
    node: Node
    accelerator: Accelerator
    nodes: int

    @property
    def accelerators(self) -> int:
        """Accelerators the job may use."""
        return self.nodes * self.node.accelerators.count


def _key(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ ."))


def _files(kind: str) -> list[Traversable]:
    folder = resources.files("hardware") / "catalog" / _FOLDERS[kind]
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")] if folder.is_dir() else []
    return sorted(files, key=lambda file: file.name)


@cache
def _read(kind: str, file_name: str) -> Any:
    file = resources.files("hardware") / "catalog" / _FOLDERS[kind] / file_name
    return validated(MODELS[kind], read_yaml(file.read_text(encoding="utf-8"), file_name, keep_faults=True))


@cache
def _index(kind: str) -> Mapping[str, str]:
    """Map every name and alias, as compared, to the file that holds it."""
    index: dict[str, str] = {}
    for file in _files(kind):
        entry = _read(kind, file.name)
        for name in (entry.name, *getattr(entry, "aliases", ())):
            index.setdefault(_key(name), file.name)
    return index


@cache
def names(kind: str) -> tuple[str, ...]:
    """List what the catalogue holds.

    Parameters
    ----------
    kind
        ``accelerator``, ``node``, ``cluster``, ``efficiency`` or ``facility``.

    Returns
    -------
    tuple of str
        Names in alphabetical order. A file is called as what it describes.
    """
    return tuple(file.name.removesuffix(".yaml") for file in _files(kind))


def find(kind: str, name: str) -> Any:
    """Look something up in the catalogue.

    Parameters
    ----------
    kind
        ``accelerator``, ``node``, ``cluster``, ``efficiency`` or ``facility``.
    name
        Name or alias; case, ``-``, ``_``, ``.`` and spaces do not matter.

    Returns
    -------
    Accelerator, Node, Cluster, EfficiencyFamily or Facility
        The description, as written: a node names its accelerator, a cluster its node.

    Raises
    ------
    UnknownName
        Nothing has this name; carries the nearest one.
    """
    by_name = {_key(known): known for known in names(kind)}
    if (known := by_name.get(_key(name))) is not None:
        return _read(kind, f"{known}.yaml")
    index = _index(kind)
    if (file_name := index.get(_key(name))) is not None:
        return _read(kind, file_name)
    near = nearest(_key(name), index)
    raise UnknownName(kind, name, _read(kind, index[near]).name if near else None)


def read_file(path: FilePath) -> Source:
    """Read a YAML file, keeping faults that leave the rest readable.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Source
        Its data with positions, for `hardware.yaml_source.validated`.

    Raises
    ------
    InputError
        The file cannot be read or is no YAML.
    """
    return read_yaml(read_text(path), str(path), keep_faults=True)


def load_file(path: FilePath) -> Any:
    """Read a hardware file of any kind.

    Parameters
    ----------
    path
        The file; its ``kind`` says what it describes.

    Returns
    -------
    Accelerator, Node, Cluster, EfficiencyFamily or Facility
        The description, as written.

    Raises
    ------
    InputError
        With every fault of the file.
    """
    source = read_file(path)
    return validated(MODELS[_kind(source, ())], source)


def _kind(source: Source, at: Path) -> str:
    """Tell what a description describes: by its ``kind``, else by a key that only one of them has."""
    data = _part(source, at)
    if not isinstance(data, Mapping):
        raise InputError([*source.faults, source.fault(at, "should be a mapping of keys to values")])
    kind = data.get("kind")
    if isinstance(kind, str) and kind in MODELS:
        return kind
    if "kind" in data:
        message = f"unknown value; {did_you_mean(kind, MODELS)} [got {kind!r}]"
        raise InputError([*source.faults, source.fault((*at, "kind"), message)])
    for key, name in (
        ("node", "cluster"),
        ("accelerators", "node"),
        ("peak", "accelerator"),
        ("widen", "efficiency"),
        ("root", "facility"),
    ):
        if key in data:
            return name
    raise InputError([*source.faults, source.fault((*at, "kind"), f"missing; allowed: {', '.join(MODELS)}")])


def _part(source: Source, at: Path) -> Any:
    data = source.data
    for part in at:
        data = data[part]
    return data


def unknown_family(architecture: str) -> str:
    """Return the message for an architecture without an efficiency family."""
    return f"no efficiency family for it; {did_you_mean(architecture, names('efficiency'))} [got {architecture!r}]"


def check_file(path: FilePath) -> list[Fault]:
    """Check a hardware file, and that what it refers to exists and fits together.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    list of Fault
        Every fault found; empty if the file is good.
    """
    try:
        source = read_file(path)
        kind = _kind(source, ())
        if kind in ("node", "cluster"):
            resolve_cluster(source.data, path.parent, source=source)
        elif kind == "facility":
            resolve_facility(source.data, path.parent, source=source)
        else:
            entry = validated(MODELS[kind], source)
            if isinstance(entry, Accelerator) and entry.architecture not in names("efficiency"):
                return [source.fault(("architecture",), unknown_family(entry.architecture))]
    except InputError as error:
        return list(error.faults)
    return []


def resolve_cluster(
    value: str | Mapping[str, Any],
    base_dir: FilePath,
    nodes: int | None = None,
    *,
    source: Source | None = None,
    at: Path = (),
) -> Machine:
    """Find out what a job runs on.

    Parameters
    ----------
    value
        Name of a cluster or a node in the catalogue, path of a file, or the description itself. A node alone stands on
        its reference network: rail-optimised, without oversubscription.
    base_dir
        Folder that paths are relative to.
    nodes
        Nodes the job uses; all of the cluster if left out, one if it is a node alone.
    source, at
        Document that holds the value, and where in it, for the faults.

    Returns
    -------
    Machine
        Cluster, node and accelerator, all parts written out.

    Raises
    ------
    InputError
        With every fault of the descriptions, each at its place.
    """
    here = source or Source("cluster", value)
    cluster, node, accelerator = _resolved(value, base_dir, nodes, here, at)
    if nodes is not None and nodes > cluster.nodes:
        message = f"{nodes} nodes are more than the {cluster.nodes} of cluster {cluster.name}"
        raise InputError([here.fault((*at[:-1], "nodes"), message)])
    return Machine(cluster, node, accelerator, nodes or cluster.nodes)


def resolve_facility(
    value: str | Mapping[str, Any],
    base_dir: FilePath,
    *,
    source: Source | None = None,
    at: Path = (),
) -> tuple[Facility, dict[str, Machine]]:
    """Find out where servers get their power.

    Parameters
    ----------
    value
        Name of a facility in the catalogue, path of a file, or the description itself.
    base_dir
        Folder that paths are relative to.
    source, at
        Document that holds the value, and where in it, for the faults.

    Returns
    -------
    tuple of Facility and dict of str to Machine
        The description, and the servers that its racks name; paths of these are written out.

    Raises
    ------
    InputError
        With every fault of the descriptions, each at its place.
    """
    where = source or Source("facility", value)
    if isinstance(value, str):
        facility, base_dir, where = _named(Facility, "facility", value, base_dir, where, at)
        at = ()
    else:
        facility = validated(Facility, where, at)
    servers: dict[str, Machine] = {}
    faults: list[Fault] = []
    for path, node in places(facility):
        for index, name in enumerate(node.servers):
            with collected(faults):
                if name not in servers:
                    servers[name] = resolve_cluster(name, base_dir, 1, source=where, at=(*at, *path, "servers", index))
    for index, actuator in enumerate(facility.actuators):
        for name, machine in servers.items():
            idle = machine.accelerator.power.idle
            if actuator.power is not None and idle is not None and actuator.power.lowest < idle:
                message = (
                    f"{actuator.power.lowest:g} W is below the {idle:g} W that an accelerator of {name} draws idle"
                )
                faults.append(where.fault((*at, "actuators", index, "power", "lowest"), message))
    if faults:
        raise InputError(faults)
    paths = {name: str((base_dir / name).resolve()) for name in servers if _is_path(name)}
    facility = renamed(facility, paths) if paths else facility
    return facility, {paths.get(name, name): machine for name, machine in servers.items()}


def _resolved(
    value: object, base_dir: FilePath, nodes: int | None, where: Source, at: Path
) -> tuple[Cluster, Node, Accelerator]:
    description: Cluster | Node
    if isinstance(value, str) and _is_path(value):
        inner = _read_beside(base_dir / value, where, at)
        return _resolved(inner.data, (base_dir / value).parent, nodes, inner, ())
    if isinstance(value, str):
        description = _machine(value, where, at)
        base_dir, where, at = FilePath(), Source(f"{description.name} in the catalogue", None), ()
    else:
        kind = _kind(where, at)
        if kind not in ("node", "cluster"):
            message = f"this describes an {kind}, but a machine is needed; allowed: cluster, node"
            raise InputError([*where.faults, where.fault((*at, "kind"), message)])
        if kind == "cluster" and nodes is not None:
            where = _with_nodes(where, at, nodes)
        description = validated(Node, where, at) if kind == "node" else validated(Cluster, where, at)

    if isinstance(description, Node):
        node, accelerator = _with_accelerator(description, base_dir, where, at)
        fabric, fabric_at = Fabric(type="rail-optimised", oversubscription=1.0), at
        cluster = Cluster(name=node.name, node=node, nodes=nodes or 1, fabric=fabric)
    else:
        node, accelerator = _node(description.node, base_dir, where, (*at, "node"))
        fabric, fabric_at = description.fabric, (*at, "fabric")
        if isinstance(fabric.edges, str):
            fabric = fabric.model_copy(update={"edges": read_edges(base_dir / fabric.edges)})
        update: dict[str, Any] = {"node": node, "fabric": fabric}
        if description.bandwidth is not None:
            measured = _measured(description.bandwidth, base_dir, description.nodes, where, (*at, "bandwidth"))
            update["bandwidth"] = measured
        cluster = description.model_copy(update=update)
    try:
        check_fabric(fabric, node, cluster.nodes)
    except KeyFaultsError as error:
        raise InputError(where.fault((*fabric_at, *path), message) for path, message in error.faults) from None
    return cluster, node, accelerator


def _measured(value: str, base_dir: FilePath, nodes: int, where: Source, at: Path) -> str:
    """Give the text of a measured matrix, checked against the number of nodes."""
    from hardware.importers.bandwidth_matrix import parse

    text, name = value, "bandwidth"
    if "\n" not in value:
        name = str(base_dir / value)
        if not (base_dir / value).is_file():
            raise InputError([where.fault(at, f"there is no file {name}")])
        text = read_text(base_dir / value)
    found = parse(text, name, partitions=True).names
    if len(found) != nodes:
        raise InputError([where.fault(at, f"should name each of the {nodes} nodes of the cluster [got {len(found)}]")])
    own = [f"host{host}" for host in range(nodes)]
    if any(one.startswith("host") for one in found) and {*found} != {*own}:  # our names, which say the order
        parse(text, name, own, partitions=True)
    return text


def _with_nodes(source: Source, at: Path, nodes: int) -> Source:
    """Fill in the nodes of a cluster that leaves them to the scenario."""
    data = {"nodes": nodes, **_part(source, at)}
    for part in reversed(at):
        data = {part: data}
    return replace(source, data=data)


def _node(value: str | Node, base_dir: FilePath, where: Source, at: Path) -> tuple[Node, Accelerator]:
    if isinstance(value, Node):
        return _with_accelerator(value, base_dir, where, at)
    node, base_dir, where = _named(Node, "node", value, base_dir, where, at)
    return _with_accelerator(node, base_dir, where, ())


def _with_accelerator(node: Node, base_dir: FilePath, where: Source, at: Path) -> tuple[Node, Accelerator]:
    accelerator = node.accelerators.type
    if isinstance(accelerator, str):
        place = (*at, "accelerators", "type")
        accelerator, _, _ = _named(Accelerator, "accelerator", accelerator, base_dir, where, place)
    parts = node.accelerators.model_copy(update={"type": accelerator})
    return node.model_copy(update={"accelerators": parts}), accelerator


def _named(
    model: type[Model], kind: str, value: str, base_dir: FilePath, where: Source, at: Path
) -> tuple[Model, FilePath, Source]:
    """Read what a name or a path stands for, with the folder and document that its own names are relative to."""
    if _is_path(value):
        inner = _read_beside(base_dir / value, where, at)
        found = _kind(inner, ())
        if found != kind:
            raise InputError([inner.fault(("kind",), f"this describes a {found}, but a {kind} is needed")])
        return validated(model, inner), (base_dir / value).parent, inner
    try:
        return find(kind, value), FilePath(), Source(f"{value} in the catalogue", None)
    except UnknownName as error:
        raise InputError([where.fault(at, f"{error}; a path ends in .yaml")]) from None


def _is_path(value: str) -> bool:
    return value.endswith((".yaml", ".yml", ".json")) or "/" in value


def _read_beside(path: FilePath, where: Source, at: Path) -> Source:
    """Read a file; that there is none is a fault of the document that names it."""
    if not path.is_file():
        raise InputError([where.fault(at, f"there is no file {path}")])
    return read_file(path)


def _machine(name: str, where: Source, at: Path) -> Cluster | Node:
    for kind in ("cluster", "node"):
        with contextlib.suppress(UnknownName):
            found: Cluster | Node = find(kind, name)
            return found
    try:
        accelerator = find("accelerator", name)
    except UnknownName:
        near = nearest(_key(name), {**_index("node"), **_index("cluster")})
        hint = ""
        if near:
            kind = "cluster" if near in _index("cluster") else "node"
            hint = f' (did you mean "{find(kind, near).name}"?)'
        message = f'no cluster or node "{name}" in the catalogue{hint}; a path ends in .yaml'
        raise InputError([where.fault(at, message)]) from None
    holders = [node for node in names("node") if _holds(find("node", node), accelerator)]
    message = f'"{name}" is an accelerator, but a cluster or a node is needed; nodes that hold it: '
    raise InputError([where.fault(at, message + (", ".join(holders) or "none in the catalogue"))])


def _holds(node: Node, accelerator: Accelerator) -> bool:
    held = node.accelerators.type
    return isinstance(held, str) and find("accelerator", held) is accelerator


def families_of(architecture: str) -> tuple[str, ...]:
    """Return an architecture family and those it inherits from, nearest first."""
    family = find("efficiency", architecture)
    return (architecture,) if family.inherits is None else (architecture, *families_of(family.inherits))


def description(machine: Machine) -> dict[str, Any]:
    """Write a machine out as plain data.

    Parameters
    ----------
    machine
        The machine.

    Returns
    -------
    dict
        A description of the whole cluster that `resolve_cluster` reads back: node, accelerator and links of the network
        in one piece, quantities in SI units; without aliases, provenance and notes.
    """
    data: dict[str, Any] = _bare(machine.cluster.model_dump(mode="json", exclude_none=True))
    return data


def _bare(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _bare(value) for key, value in data.items() if key not in ("aliases", "provenance", "notes")}
    return [_bare(item) for item in data] if isinstance(data, list) else data
