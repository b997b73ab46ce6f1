"""The question of routing: which flows, over which network, what the planner may do with them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hardware.cables import cables
from hardware.catalogue import Machine, description, resolve_cluster
from hardware.fabric import kind_of
from hardware.faults import Fault, InputError, collected
from hardware.units import PositiveBytes
from hardware.yaml_source import Source, did_you_mean, validated
from perfmodel.flows import Collective
from solvers.routing_flows import Flows, FlowTable, flows_of, read_flows

Size = Annotated[int, Field(strict=True, ge=1)]
Split = Literal["none", "fewest", "spray"]
Adapters = Literal["own", "any"]

SPLITS: tuple[Split, ...] = ("none", "fewest", "spray")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RoutingGroups(_Strict):
    """Groups of accelerators that run the collective side by side."""

    size: Size
    """Members of a group."""
    stride: Size = 1
    """Distance of its members, in ranks."""


class RoutingCollective(_Strict):
    """Flows of a collective."""

    collective: Collective
    """Which collective."""
    bytes: PositiveBytes
    """Size, by the convention of nccl-tests."""
    groups: RoutingGroups | tuple[tuple[str, ...], ...] | None = None
    """Size and stride of the groups, or the names of their members; one group of all accelerators if left out."""


class RoutingFlow(_Strict):
    """One flow."""

    src: str
    """Who sends: host0, host0/gpu3 or host0/nic3."""
    dst: str
    """Who receives."""
    bytes: PositiveBytes
    """Size of the flow."""
    job: str = ""
    """Job it belongs to."""


class RoutingSearch(_Strict):
    """What the planner may choose; a list left out means everything."""

    split: tuple[Split, ...] = Field(SPLITS, min_length=1)
    """Whether flows may be split over several paths: not at all, as few as possible, all of them."""
    nics: tuple[Adapters, ...] = Field(("own", "any"), min_length=1)
    """Whether a flow may leave and enter through any adapter of its node, or through its accelerator's own alone."""
    failed_links: tuple[str, ...] = ()
    """Links and switches that are out, such as leaf0-spine3 or spine3."""


class RoutingPlan(_Strict):
    """Paths of flows."""

    split: Split | None = None
    """How the paths were found."""
    nics: Adapters | None = None
    """How adapters were chosen."""
    split_flows: Annotated[int, Field(ge=0)] | None = None
    """Flows on more than one path."""
    split_flows_bound: Annotated[int, Field(ge=0)] | None = None
    """Flows that any routing as fast has to split, at least."""
    paths: str | tuple[str | dict[str, Annotated[float, Field(gt=0, le=1)]], ...] | None = None
    """Path of each flow, or its paths with their shares; or a CSV of flow, path, share."""
    adapters: dict[str, dict[str, Annotated[float, Field(gt=0, le=1)]]] | None = None
    """Shares of the adapters that an accelerator sends through, or receives through."""


class RoutingQuestion(_Strict):
    """Which flow takes which path."""

    kind: Literal["routing"]
    """Kind of question."""
    cluster: str | dict[str, Any] | None = None
    """A cluster or node of the catalogue, a path, or the description itself."""
    fabric: dict[str, Any] | None = None
    """In its place, a network alone; every node has one adapter of the network's link rate."""
    nodes: Size | None = None
    """Nodes in use; all of a cluster if left out."""
    flows: str | RoutingCollective | tuple[RoutingFlow, ...]
    """A CSV of src, dst, bytes and perhaps job; a collective; or the flows themselves."""
    search: RoutingSearch = RoutingSearch()
    """What the planner may choose."""
    objective: Literal["completion_time_s"] = "completion_time_s"
    """What is minimised."""
    plan: RoutingPlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


@dataclass(frozen=True)
class RoutingScenario:
    """A checked question about routing.

    Parameters
    ----------
    question
        As asked.
    machine
        The cluster, with what `search.failed_links` breaks.
    flows
        What is sent.
    source
        Where it was written, to place later faults.
    base_dir
        Folder that paths in it are relative to.
    resolved
        The scenario with defaults and hardware written out; reading it again asks the same.
    """

    question: RoutingQuestion
    machine: Machine
    flows: Flows
    source: Source
    base_dir: FilePath
    resolved: dict[str, Any]


def load_routing(source: Source, base_dir: FilePath) -> RoutingScenario:
    """Check a routing scenario.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    RoutingScenario
        The question with everything it names looked up.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    faults: list[Fault] = []
    question: RoutingQuestion | None = None
    machine: Machine | None = None
    with collected(faults):
        question = validated(RoutingQuestion, source)
    with collected(faults):
        machine = _machine(source, base_dir)
    if question is None or machine is None:
        raise InputError(_ordered(faults))
    broken = {name for cable in cables(machine.cluster.fabric, machine.node, machine.cluster.nodes)
              for name in (f"{cable.a}-{cable.b}", f"{cable.b}-{cable.a}", cable.a, cable.b)}  # fmt: skip
    for index, name in enumerate(question.search.failed_links):
        if name not in broken or kind_of(name) in ("host", "chip"):
            near = did_you_mean(name, sorted(broken)).partition("(")[2]
            message = f"no such link or switch{f' ({near}' if near else ''} [got {name!r}]"
            faults.append(source.fault(("search", "failed_links", index), message))
    flows: Flows | None = None
    with collected(faults):
        flows = _flows(question, machine, source, base_dir)
    if faults or flows is None:
        raise InputError(_ordered(faults))
    resolved = _resolved(question, machine, flows)
    fabric = machine.cluster.fabric
    failed = tuple(dict.fromkeys([*fabric.failed, *question.search.failed_links]))
    cluster = machine.cluster.model_copy(update={"fabric": fabric.model_copy(update={"failed": failed})})
    return RoutingScenario(question, replace(machine, cluster=cluster), flows, source, base_dir, resolved)


def _ordered(faults: Sequence[Fault]) -> list[Fault]:
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault.source, fault.line, fault.column))


def _machine(source: Source, base_dir: FilePath) -> Machine | None:
    data = source.data if isinstance(source.data, Mapping) else {}
    nodes = data.get("nodes")
    count = nodes if isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0 else None
    cluster, fabric = data.get("cluster"), data.get("fabric")
    if (cluster is None) == (fabric is None):
        message = "missing; give a cluster, or a fabric alone" if cluster is None else "give a cluster or a fabric"
        raise InputError([source.fault(("cluster",), message)])
    if isinstance(cluster, str | Mapping):
        return resolve_cluster(cluster, base_dir, count, source=source, at=("cluster",))
    if not isinstance(fabric, Mapping):
        return None
    if count is None:
        raise InputError([source.fault(("nodes",), "missing; a fabric alone does not say how many nodes it has")])
    rate = fabric.get("link", "400 Gbit/s")
    node = {
        "kind": "node",
        "name": "one-adapter",
        "accelerators": {"type": "h100-80gb-sxm", "count": 1},
        "nics": {"count": 1, "bandwidth": rate},
    }
    described = {"kind": "cluster", "name": "fabric", "node": node, "nodes": count, "fabric": fabric}
    positions = {("cluster", *path): place for path, place in source.positions.items() if path[:1] == ("fabric",)}
    wrapped = replace(source, data={"cluster": described}, positions={**source.positions, **positions})
    try:
        return resolve_cluster(described, base_dir, count, source=wrapped, at=("cluster",))
    except InputError as error:  # nobody wrote the cluster around it
        raise InputError(replace(fault, key=fault.key.removeprefix("cluster.")) for fault in error.faults) from None


def _flows(question: RoutingQuestion, machine: Machine, source: Source, base_dir: FilePath) -> Flows:
    given = question.flows
    if isinstance(given, RoutingCollective):
        groups = given.groups
        spaced = (groups.size, groups.stride) if isinstance(groups, RoutingGroups) else None
        named = None if isinstance(groups, RoutingGroups) else groups
        return flows_of(given.collective, given.bytes, named, spaced, machine, source)
    if isinstance(given, str):
        return read_flows(base_dir / given, machine, source)
    rows = [(flow.src, flow.dst, flow.bytes, flow.job) for flow in given]
    table = FlowTable(machine)
    for index, (src, dst, size, job) in enumerate(rows):
        for key, message in table.add(src, dst, size, job):
            table.faults.append(source.fault(("flows", index, key), message))
    return table.done(source.fault(("flows",), "there is no flow"))


def _resolved(question: RoutingQuestion, machine: Machine, flows: Flows) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written = question.model_dump(mode="json", exclude_none=True, exclude={"plan", "flows"})
    if question.cluster is not None:
        written["cluster"] = description(machine)
    elif machine.cluster.fabric.edges is not None:
        written["fabric"] = {**written["fabric"], "edges": description(machine)["fabric"]["edges"]}
    written["nodes"] = machine.nodes
    if isinstance(question.flows, RoutingCollective):
        written["flows"] = question.flows.model_dump(mode="json", exclude_none=True)
        return written
    written["flows"] = [
        {"src": flows.ends[source].name, "dst": flows.ends[target].name, "bytes": size}
        | ({"job": flows.jobs[job]} if flows.jobs[job] else {})
        for source, target, size, job in zip(
            flows.source.tolist(), flows.target.tolist(), flows.size.tolist(), flows.job.tolist(), strict=True
        )
    ]
    return written


def read_paths(
    given: str | tuple[str | dict[str, float], ...], count: int, scenario: RoutingScenario
) -> tuple[list[str | dict[str, float]], Callable[[int], Fault]]:
    """Read the paths of a plan, from the plan or from its file.

    Parameters
    ----------
    given : str or tuple
        Path of a CSV with the columns flow, path, share (and perhaps others), or the paths themselves.
    count : int
        Number of flows [1].
    scenario : RoutingScenario
        The question.

    Returns
    -------
    tuple of list and callable
        Path of each flow, or its paths with their shares; what places a fault at a flow.

    Raises
    ------
    InputError
        The file cannot be read, or flows are missing or unknown.
    """
    source = scenario.source
    if not isinstance(given, str):
        if len(given) != count:
            message = f"should have a path for each of the {count} flows [got {len(given)}]"
            raise InputError([source.fault(("plan", "paths"), message)])
        return list(given), lambda flow: source.fault(("plan", "paths", flow), "")
    path = scenario.base_dir / given
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError([source.fault(("plan", "paths"), f"cannot be read [got {given!r}]")]) from None
    rows = csv.reader(lines)
    header = [cell.strip() for cell in next(rows, [])]
    missing = [name for name in ("flow", "path", "share") if name not in header]
    if missing:
        raise InputError(
            [Fault(str(path), 1, 1, "", f"missing columns: {', '.join(missing)} [got {','.join(header)!r}]")]
        )
    columns = [header.index(name) for name in ("flow", "path", "share")]
    parts: list[dict[str, float]] = [{} for _ in range(count)]
    line_of, faults = [1] * count, []
    for row in rows:
        try:
            flow, name, share = (row[column].strip() for column in columns)
            parts[int(flow)][name] = float(share)
            line_of[int(flow)] = rows.line_num
            if int(flow) < 0 or not 0 < float(share) <= 1 + 1e-9:
                raise ValueError
        except (ValueError, IndexError):
            message = f"should be a flow of 0 to {count - 1}, a path and a share of at most 1 [got {','.join(row)!r}]"
            faults.append(Fault(str(path), rows.line_num, 1, "", message))
    faults += [Fault(str(path), 1, 1, "", f"flow {flow} has no path") for flow, one in enumerate(parts) if not one][:5]
    if faults:
        raise InputError(faults[:20])
    return list(parts), lambda flow: Fault(str(path), line_of[flow], 1, "", "")


def routing_schema() -> dict[str, Any]:
    """Return the JSON Schema of a routing scenario."""
    return RoutingQuestion.model_json_schema()
