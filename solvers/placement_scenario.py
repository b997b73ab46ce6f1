"""The question which node takes which part of a job: its matrix of rates and its traffic, checked.

source = hardware.catalogue.read_file("scenario.yaml")
result = solvers.placement.plan(solvers.placement_scenario.load_placement(source, Path(".")))
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hardware.catalogue import Machine, description, read_file, resolve_cluster
from hardware.faults import Fault, InputError, collected
from hardware.importers.bandwidth_matrix import BandwidthMatrix, parse
from hardware.units import parse_quantity
from hardware.yaml_source import Source, validated
from perfmodel.placement import Demand, Network, demand, network
from perfmodel.traffic import Traffic, between_units, phase, training_traffic
from solvers.plan_file import scenario_of
from solvers.scenario import TrainScenario, load_train

Integers = NDArray[np.int64]
Size = Annotated[int, Field(strict=True, ge=1)]
Place = Annotated[int, Field(strict=True, ge=0)]
PlacementObjective = Literal["comm_time_s", "transfer_time_sum_s"]

_MOST_FAULTS = 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PlacementTraffic(_Strict):
    """Traffic of a training plan."""

    plan: str | dict[str, Any]
    """A saved plan or a training scenario with its plan: a path, or the content itself."""


class PlacementPlan(_Strict):
    """Where the ranks are."""

    order: tuple[Place, ...] | None = None
    """Accelerator of each rank, those of the first node of the matrix first."""
    nodes: tuple[str, ...] | None = None
    """Names of the nodes that take the ranks, block after block."""


class PlacementQuestion(_Strict):
    """Which node takes which part of a job."""

    kind: Literal["placement"]
    """Kind of question."""
    cluster: str | dict[str, Any] | None = None
    """A cluster or node of the catalogue, a path, or the description itself; that of the traffic's plan if left out.
    With neither, every row of the matrix is one rank."""
    nodes: Size | None = None
    """Nodes of the job; all of the cluster, or of the matrix, if left out."""
    bandwidth: str | None = None
    """Measured rates between nodes: the path of a CSV, or its text; those of the cluster if left out."""
    traffic: str | PlacementTraffic
    """Traffic of a training plan; or the path of a CSV of src, dst, bytes and, for traffic that follows one another,
    phase; or its text."""
    objective: PlacementObjective = "comm_time_s"
    """What is minimised: the sum over phases of the slowest message, or the sum of all messages' times."""
    plan: PlacementPlan | None = None
    """What `predict` costs; for `plan`, what runs today."""


@dataclass(frozen=True)
class PlacementScenario:
    """A checked question about placement.

    Parameters
    ----------
    question : PlacementQuestion
        As asked.
    net : Network
        The nodes there are.
    traffic : Traffic
        Between ranks.
    wanted : Demand
        Between logical nodes: blocks of as many consecutive ranks as a node has accelerators.
    per_node : int
        Accelerators of a node.
    train : TrainScenario or None
        Whose plan the traffic is.
    source : Source
        Where it was written.
    resolved : dict
        The scenario with files written out; reading it again asks the same.
    given : array of int or None
        Node of each logical node in the order given.
    """

    question: PlacementQuestion
    net: Network
    traffic: Traffic
    wanted: Demand
    per_node: int
    train: TrainScenario | None
    source: Source
    resolved: dict[str, Any]
    given: Integers | None


def load_placement(source: Source, base_dir: FilePath) -> PlacementScenario:
    """Check a placement scenario.

    Parameters
    ----------
    source : Source
        The document.
    base_dir : Path
        Folder that paths in it are relative to.

    Returns
    -------
    PlacementScenario
        The question with every file it names read.

    Raises
    ------
    InputError
        With every fault that was found.
    """
    question = validated(PlacementQuestion, source)
    faults: list[Fault] = []
    train: TrainScenario | None = None
    machine: Machine | None = None
    measured: BandwidthMatrix | None = None
    table = ""
    if not isinstance(question.traffic, str):
        with collected(faults):
            train = _training(question.traffic.plan, source, base_dir)
    with collected(faults):
        if question.cluster is not None:
            machine = resolve_cluster(question.cluster, base_dir, question.nodes, source=source, at=("cluster",))
        elif train is not None:
            machine = train.job.machine
    with collected(faults):
        table, name = _matrix(question, machine, source, base_dir)
        measured = parse(table, name, partitions=True)
    if measured is None or (question.cluster is not None and machine is None):
        raise InputError(faults)

    rows = len(measured.names)
    if question.cluster is not None and question.nodes is None and machine is not None and machine.nodes == 1:
        # a node alone says nothing about how many there are; the matrix does
        machine = resolve_cluster(question.cluster, base_dir, rows, source=source, at=("cluster",))
    per_node = machine.node.accelerators.count if machine is not None else 1
    units = question.nodes or (machine.nodes if machine is not None else rows)
    ranks = units * per_node
    if units > rows:
        message = f"has {rows} nodes, but the job needs {units}"
        at = ("bandwidth",) if question.bandwidth is not None else ("cluster", "bandwidth")
        faults.append(source.fault(at, message))
    traffic: Traffic | None = None
    text: str | None = None
    if train is not None:
        traffic = _of_training(train, ranks, source, faults)
    elif isinstance(question.traffic, str):
        with collected(faults):
            text, name = _text(question.traffic, "traffic", source, base_dir)
            traffic = read_traffic(text, name, ranks)
    given = None
    if question.plan is not None:
        given, found = _given(question.plan, measured.names, per_node, units)
        faults += [source.fault(("plan", *path), message) for path, message in found]
    if faults or traffic is None:
        raise InputError(faults)
    return PlacementScenario(
        question,
        network(measured.names, measured.bandwidth),
        traffic,
        demand(between_units(traffic, per_node)),
        per_node,
        train,
        source,
        _resolved(question, machine, table, units, train, text),
        given,
    )


def _training(value: str | dict[str, Any], source: Source, base_dir: FilePath) -> TrainScenario:
    """Read the training plan whose traffic is meant."""
    at = ("traffic", "plan")
    if isinstance(value, str):
        path = base_dir / value
        if not path.is_file():
            raise InputError([source.fault(at, f"there is no file {path}")])
        inner, base_dir = scenario_of(read_file(path)), path.parent
    else:
        positions = {path[2:]: place for path, place in source.positions.items() if path[:2] == at}
        inner = scenario_of(Source(source.name, value, positions))
    data = inner.data
    if isinstance(data, Mapping) and data.get("kind") != "train":
        raise InputError(
            [inner.fault(("kind",), f'should be "train": a training plan is needed [got {data.get("kind")!r}]')]
        )
    found = load_train(inner, base_dir)
    if found.plan is None:
        raise InputError([inner.fault(("plan",), "missing; the traffic is that of a plan")])
    return found.held_to(found.given_cap_w)


def _matrix(
    question: PlacementQuestion, machine: Machine | None, source: Source, base_dir: FilePath
) -> tuple[str, str]:
    """Return the table of measured rates, and how to call it: the scenario's goes before the cluster's."""
    if question.bandwidth is not None:
        return _text(question.bandwidth, "bandwidth", source, base_dir)
    if machine is not None and machine.cluster.bandwidth is not None:
        return machine.cluster.bandwidth, f"{machine.cluster.name}: bandwidth"
    raise InputError([source.fault(("bandwidth",), "missing; the path of a CSV of rates between nodes")])


def _text(value: str, key: str, source: Source, base_dir: FilePath) -> tuple[str, str]:
    """Return the text of a CSV that stands in the scenario or beside it, and how to call it."""
    if "\n" in value:
        return value, f"{source.name}: {key}"
    path = base_dir / value
    if not path.is_file():
        raise InputError([source.fault((key,), f"there is no file {path}")])
    if key == "traffic" and path.suffix in (".json", ".yaml", ".yml"):
        raise InputError([source.fault((key,), f"a plan stands under its own key: {key}: {{plan: {value}}}")])
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError([Fault(str(path), 0, 0, "", f"cannot be read: {reason}")]) from None


def read_traffic(text: str, name: str, ranks: int) -> Traffic:
    """Read traffic between ranks.

    Parameters
    ----------
    text : str
        CSV with the columns src, dst and bytes; ranks counted from 0. Messages of one ``phase`` are under way together,
        phases follow one another in the order in which they first occur; without that column all go together. Jobs
        (column ``job``) run together.
    name : str
        How to call the text in messages, such as its file.
    ranks : int
        Ranks of the job.

    Returns
    -------
    Traffic
        The phases.

    Raises
    ------
    InputError
        With the faults of the file.
    """
    rows = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(rows, [])]
    wanted, optional = ("src", "dst", "bytes"), ("phase", "job")
    missing = [column for column in wanted if column not in header]
    unknown = [column for column in header if column not in (*wanted, *optional)]
    if missing or unknown:
        said = f"the columns should be src,dst,bytes and, if wanted, phase and job [got {','.join(header)!r}]"
        raise InputError([Fault(name, 1, 1, "", said)])
    faults: list[Fault] = []
    phases: dict[str, list[tuple[int, int, float]]] = {}
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(header):
            message = f"should have {len(header)} cells [got {len(cells)}]"
            faults.append(Fault(name, rows.line_num, 1, "", message))
            continue
        found = dict(zip(header, cells, strict=True))
        message_of = list(_message(found, ranks))
        faults += [Fault(name, rows.line_num, 1, key, said) for key, said in message_of]
        if not message_of:
            entry = (int(found["src"]), int(found["dst"]), parse_quantity(_number(found["bytes"]), "bytes"))
            phases.setdefault(found.get("phase") or "traffic", []).append(entry)
    if len(faults) > _MOST_FAULTS:
        more = len(faults) - _MOST_FAULTS
        faults = [*faults[:_MOST_FAULTS], Fault(name, 0, 0, "", f"and {more} more faults")]
    if not faults and not phases:
        faults.append(Fault(name, 1, 1, "", "there is no traffic in it"))
    if faults:
        raise InputError(faults)
    made = [phase(one, *map(np.array, zip(*messages, strict=True))) for one, messages in phases.items()]
    return Traffic(ranks, tuple(one for one in made if len(one.sent_bytes)))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _message(row: Mapping[str, str], ranks: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a message."""
    for key in ("src", "dst"):
        try:
            rank = int(row[key])
        except ValueError:
            yield key, f"should be the number of a rank, 0 to {ranks - 1} [got {row[key]!r}]"
            continue
        if not 0 <= rank < ranks:
            yield key, f"there is no such rank; the job has {ranks}, 0 to {ranks - 1} [got {rank}]"
    try:
        size = parse_quantity(_number(row["bytes"]), "bytes")
        if not np.isfinite(size) or size < 0:
            yield "bytes", f"should be a finite number of at least 0 [got {row['bytes']!r}]"
    except ValueError as error:
        yield "bytes", f"{error} [got {row['bytes']!r}]"


def _of_training(train: TrainScenario, ranks: int, source: Source, faults: list[Fault]) -> Traffic | None:
    if train.job.ranks != ranks:
        message = f"is of {train.job.ranks} ranks, but the nodes have {ranks} accelerators"
        faults.append(source.fault(("traffic", "plan"), message))
        return None
    assert train.plan is not None
    return training_traffic(train.job, train.plan)


def _given(
    plan: PlacementPlan, names: tuple[str, ...], per_node: int, units: int
) -> tuple[Integers | None, list[tuple[tuple[str | int, ...], str]]]:
    """Return the node of each logical node, and what is wrong, as (path below the plan, message)."""
    if plan.order is None and plan.nodes is None:
        return None, [((), "should hold order or nodes")]
    if plan.order is None:
        assert plan.nodes is not None
        unknown = [
            (("nodes", index), f'no node "{one}" in the matrix')
            for index, one in enumerate(plan.nodes)
            if one not in names
        ]
        if unknown:
            return None, list(unknown)
        nodes, key = np.array([names.index(one) for one in plan.nodes], dtype=np.int64), "nodes"
        if len(nodes) != units:
            return None, [((key,), f"should hold {units} nodes [got {len(nodes)}]")]
    else:
        order, key = np.array(plan.order, dtype=np.int64), "order"
        if len(order) != units * per_node:
            return None, [
                ((key,), f"should hold the accelerator of each of {units * per_node} ranks [got {len(order)}]")
            ]
        if order.max() >= len(names) * per_node:
            message = f"accelerators are numbered 0 to {len(names) * per_node - 1} [got {order.max()}]"
            return None, [((key, int(order.argmax())), message)]
        blocks = order.reshape(units, per_node)
        nodes = blocks[:, 0] // per_node
        split = np.flatnonzero((np.sort(blocks, axis=1) != nodes[:, None] * per_node + np.arange(per_node)).any(axis=1))
        if len(split):
            first = int(split[0]) * per_node
            message = f"ranks {first} to {first + per_node - 1} should be on the {per_node} accelerators of one node"
            return None, [((key, first), message)]
    twice = [int(index) for index in range(1, units) if nodes[index] in nodes[:index]]
    if twice:
        at = twice[0] * (per_node if key == "order" else 1)
        return None, [((key, at), f"node {names[nodes[twice[0]]]} is taken already")]
    return nodes, []


def _resolved(
    question: PlacementQuestion,
    machine: Machine | None,
    table: str,
    units: int,
    train: TrainScenario | None,
    text: str | None,
) -> dict[str, Any]:
    """Write the question out so that it can be asked again anywhere."""
    written: dict[str, Any] = {"kind": "placement"}
    if machine is not None:
        written["cluster"] = {key: value for key, value in description(machine).items() if key != "bandwidth"}
    written["nodes"] = units
    written["bandwidth"] = table
    if train is not None:
        from perfmodel.plan import plan_to_dict
        from solvers.power_limit import written as cap_of

        assert train.plan is not None
        cap = {"power_cap_w": cap_of(train.job.machine)}
        written["traffic"] = {"plan": {**train.resolved, "plan": plan_to_dict(train.plan) | cap}}
    else:
        written["traffic"] = text
    written["objective"] = question.objective
    return written


def placement_schema() -> dict[str, Any]:
    """Return the JSON Schema of a placement scenario."""
    return PlacementQuestion.model_json_schema()
