"""Flows as people write them: a CSV, a list, a collective."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray

from hardware.catalogue import Machine
from hardware.devices import nearest_ports
from hardware.faults import Fault, InputError
from hardware.faults import Path as Keys
from hardware.units import parse_quantity
from hardware.yaml_source import Source
from perfmodel.flows import Collective, collective_flows, strided_groups
from perfmodel.terms import Array

COLUMNS = ("src", "dst", "bytes")
_MOST_FAULTS = 20
_END = re.compile(r"(host|chip)([0-9]+)(?:/(gpu|nic)([0-9]+))?")


@dataclass(frozen=True)
class End:
    """One end of flows.

    Parameters
    ----------
    name
        As it was written.
    host
        Number of the node (of the accelerator, in a torus).
    accelerator, port
        Number of the accelerator or of the port; -1 where it is not said.
    """

    name: str
    host: int
    accelerator: int = -1
    port: int = -1


@dataclass(frozen=True)
class Flows:
    """All flows.

    Parameters
    ----------
    ends
        The different ends.
    source, target
        End of each flow, by its place in `ends` [1].
    size
        Bytes of each flow [bytes].
    job
        Job of each flow, by its place in `jobs` [1].
    jobs
        Names of the jobs.
    """

    ends: tuple[End, ...]
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    size: Array
    job: NDArray[np.int64]
    jobs: tuple[str, ...]


class FlowTable:
    """Flows as they are read, with the ends that were met."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.is_torus = machine.cluster.fabric.type == "torus"
        self.count = machine.accelerators if self.is_torus else machine.nodes
        self.ends: dict[str, int] = {}
        self.known: list[End] = []
        self.jobs: dict[str, int] = {}
        self.rows: list[tuple[int, int, float, int]] = []
        self.faults: list[Fault] = []

    def end(self, name: str) -> int:
        """Find the number of an end.

        Raises
        ------
        ValueError
            There is none of this name.
        """
        if name in self.ends:
            return self.ends[name]
        kind = "chip" if self.is_torus else "host"
        found = _END.fullmatch(name)
        node = self.machine.node
        if not found or found[1] != kind or int(found[2]) >= self.count:
            also = "" if self.is_torus else f", or one of their devices such as {kind}0/gpu0"
            raise ValueError(f"no such end; allowed: {kind}0 to {kind}{self.count - 1}{also} [got {name!r}]")
        number = int(found[4]) if found[4] else -1
        limit = node.accelerators.count if found[3] == "gpu" else node.nics.count if node.nics else 0
        if found[3] and (number >= limit or self.is_torus):
            raise ValueError(f"{kind}{found[2]} has {limit} {found[3]}s, counted from 0 [got {name!r}]")
        accelerator, port = (number if found[3] == "gpu" else -1), (number if found[3] == "nic" else -1)
        self.ends[name] = len(self.known)
        self.known.append(End(name, int(found[2]), accelerator, port))
        return self.ends[name]

    def add(self, src: str, dst: str, size: float, job: str) -> list[tuple[str, str]]:
        """Add a flow; return its faults as (column, message)."""
        faults, numbers = [], []
        for column, name in (("src", src), ("dst", dst)):
            try:
                numbers.append(self.end(name))
            except ValueError as error:
                faults.append((column, str(error)))
        if src == dst:
            faults.append(("dst", f"the flow goes from {src} to itself"))
        if not faults:
            self.rows.append((numbers[0], numbers[1], size, self.jobs.setdefault(job, len(self.jobs))))
        return faults

    def done(self, empty: Fault) -> Flows:
        """Return the flows.

        Raises
        ------
        InputError
            With every fault that was met, or that there is no flow.
        """
        if self.faults:
            more = len(self.faults) - _MOST_FAULTS
            last = [replace(empty, message=f"and {more} more faults")] if more > 0 else []
            raise InputError([*self.faults[:_MOST_FAULTS], *last])
        if not self.rows:
            raise InputError([empty])
        source, target, size, job = zip(*self.rows, strict=True)
        return Flows(
            tuple(self.known),
            np.array(source),
            np.array(target),
            np.array(size, dtype=float),
            np.array(job),
            tuple(self.jobs),
        )


def read_flows(path: FilePath, machine: Machine, source: Source) -> Flows:
    """Read flows.

    Parameters
    ----------
    path : Path
        CSV with the columns src, dst, bytes and perhaps job; bytes is a number or a text with a unit.
    machine : Machine
        What they run on.
    source : Source
        The scenario that names the file.

    Returns
    -------
    Flows
        The flows.

    Raises
    ------
    InputError
        With every row that is wrong.
    """
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError([source.fault(("flows",), f"cannot be read: {error.strerror} [got {name!r}]")]) from None
    except UnicodeDecodeError:
        raise InputError([source.fault(("flows",), f"{name} is not UTF-8 text")]) from None
    rows = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(rows, [])]
    if header not in ([*COLUMNS], [*COLUMNS, "job"]):
        message = f"the columns should be src,dst,bytes and perhaps job [got {','.join(header)!r}]"
        raise InputError([Fault(name, 1, 1, "", message)])
    table = FlowTable(machine)
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        line = rows.line_num
        if len(cells) != len(header):
            table.faults.append(Fault(name, line, 1, "", f"should have {len(header)} cells [got {','.join(row)!r}]"))
            continue
        size = 1.0
        try:
            size = parse_quantity(cells[2], "bytes")
            if size <= 0:
                raise ValueError(f"should be greater than zero [got {cells[2]!r}]")
        except ValueError as error:
            table.faults.append(Fault(name, line, _column(row, 2), "bytes", str(error)))
        for column, message in table.add(cells[0], cells[1], size, cells[3] if len(cells) > 3 else ""):
            table.faults.append(Fault(name, line, _column(row, COLUMNS.index(column)), column, message))
    return table.done(Fault(name, 1, 1, "", "there is no flow"))


def _column(row: Sequence[str], index: int) -> int:
    return sum(len(cell) + 1 for cell in row[:index]) + 1


def flows_of(
    collective: Collective,
    total_bytes: float,
    named: Sequence[Sequence[str]] | None,
    spaced: tuple[int, int] | None,
    machine: Machine,
    source: Source,
) -> Flows:
    """List the flows of a collective.

    Parameters
    ----------
    collective : str
        Which collective.
    total_bytes : float
        Its size by the convention of nccl-tests [bytes].
    named : sequence, optional
        Names of the members of each group.
    spaced : pair of int, optional
        In their place, size and stride of the groups [1]; one group of all accelerators without either.
    machine : Machine
        What it runs on.
    source : Source
        The scenario, to place faults.

    Returns
    -------
    Flows
        The flows between nodes.

    Raises
    ------
    InputError
        Groups that do not fit the machine, or traffic that stays inside nodes.
    """
    table = FlowTable(machine)
    count = machine.node.accelerators.count

    def rank_name(rank: tuple[int, int]) -> str:
        return f"chip{rank[0]}" if table.is_torus else f"host{rank[0]}/gpu{rank[1]}"

    everyone = [(chip, 0) for chip in range(table.count)] if table.is_torus else [
        (host, index) for host in range(machine.nodes) for index in range(count)
    ]  # fmt: skip
    members: list[list[tuple[int, int]]] = [everyone]
    if spaced is not None:
        size, stride = spaced
        if len(everyone) % (size * stride):
            message = f"size x stride = {size * stride} does not divide the {len(everyone)} accelerators"
            raise InputError([source.fault(("flows", "groups"), message)])
        members = strided_groups(everyone, size, stride)
    elif named is not None:
        members = []
        for index, names in enumerate(named):
            members.append([])
            for place, name in enumerate(names):
                at: Keys = ("flows", "groups", index, place)
                try:
                    end = table.known[table.end(name)]
                except ValueError as error:
                    table.faults.append(source.fault(at, str(error)))
                    continue
                if end.port >= 0:
                    table.faults.append(source.fault(at, f"a member is a node or an accelerator [got {name!r}]"))
                whole = range(count) if end.accelerator < 0 and not table.is_torus else [max(end.accelerator, 0)]
                members[-1] += [(end.host, one) for one in whole]
            if len(set(members[-1])) < len(members[-1]):
                table.faults.append(source.fault(("flows", "groups", index), "a member stands in it twice"))
    for number, ranks in enumerate(members):
        job = "" if len(members) == 1 else f"group{number}"
        for src, dst, carried in collective_flows(collective, ranks, total_bytes):
            table.add(rank_name(src), rank_name(dst), carried, job)
    return table.done(source.fault(("flows",), "no flow leaves its node"))


def ports_of(machine: Machine, flows: Flows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each flow the adapters of its accelerators; those with several use them in turn.

    Parameters
    ----------
    machine : Machine
        What they run on.
    flows : Flows
        The flows.

    Returns
    -------
    tuple of array of int
        Port that each flow leaves through, and that it enters through; -1 for those of a whole node [1].
    """
    near = nearest_ports(machine.node)
    found = []
    for side in (flows.source, flows.target):
        port = np.array([end.port for end in flows.ends])[side]
        for number, end in enumerate(flows.ends):
            mine = near[end.accelerator] if end.accelerator >= 0 else ()
            if mine:
                members = np.flatnonzero(side == number)
                port[members] = np.array(mine)[np.arange(len(members)) % len(mine)]
        found.append(port)
    return found[0], found[1]
