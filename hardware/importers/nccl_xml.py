"""A node as NCCL writes it: the topology file of ``NCCL_TOPO_DUMP_FILE``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from hardware.faults import Fault, InputError
from hardware.importers.node import Port, Seen, date_of
from hardware.yaml_source import did_you_mean

_INSIDE: Mapping[str, tuple[str, ...]] = {
    "": ("system",),
    "system": ("cpu",),
    "cpu": ("pci", "nic"),
    "pci": ("pci", "gpu", "nic", "pcilink"),
    "gpu": ("nvlink", "xgmi", "c2c"),
    "nic": ("net",),
    "net": (),
    "nvlink": (),
    "xgmi": (),
    "c2c": (),
    "pcilink": (),
}
"""Element -> what may stand in it."""

_NEEDED: Mapping[str, tuple[str, ...]] = {
    "cpu": ("numaid",),
    "pci": ("busid",),
    "gpu": ("dev",),
    "net": ("speed",),
    "nvlink": ("target", "count"),
    "xgmi": ("target", "count"),
}
"""Element -> attributes that it has to have."""

_WHOLE = {"numaid", "dev", "speed", "count", "link_width"}
"""Attributes that are whole numbers."""

_TRANSFERS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
"""Rate of a lane of PCI Express [GT/s] -> generation."""

_SWITCH_CLASS = "0x0680"
"""PCI class of an NVSwitch: another kind of bridge."""

_DEEPEST = 64
"""No machine nests its switches this deeply."""


@dataclass
class _Element:
    name: str
    attributes: Mapping[str, str]
    line: int
    column: int
    above: "_Element | None"
    inside: "list[_Element]" = field(default_factory=list)

    def way_up(self) -> Iterator["_Element"]:
        """Walk to the root, from this element on."""
        here: _Element | None = self
        while here is not None:
            yield here
            here = here.above

    def of(self, *names: str) -> Iterator["_Element"]:
        """Walk through all elements of these names below this one."""
        for element in self.inside:
            if element.name in names:
                yield element
            yield from element.of(*names)

    def number(self, name: str) -> int:
        return int(self.attributes[name])


def read(path: Path) -> Seen:
    """Read a topology file of NCCL or RCCL.

    Parameters
    ----------
    path
        The file: system > cpu > pci > gpu > nvlink, and nic > net.

    Returns
    -------
    Seen
        Accelerators in the order of ``dev``, their links, ports, PCI Express and NUMA domains.

    Raises
    ------
    InputError
        With every fault of the file: elements that are unknown or stand in the wrong place, attributes that are missing
        or no numbers, links to nowhere. Files that declare entities or a document type are refused.
    """
    reader = _Reader(str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError([Fault(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    root = reader.read(data)
    boards = sorted(root.of("gpu"), key=lambda element: element.number("dev"))
    if not boards:
        raise InputError([Fault(str(path), root.line, root.column, "system", "holds no gpu")])
    return _seen(f"NCCL topology file {path.name}", date_of(path), boards, list(root.of("net")), reader)


class _Reader:
    """Builds the tree of elements and collects faults on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults: list[Fault] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        # NCCL writes neither; entities of entities can blow a short text up without bound.
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.parser.EntityDeclHandler = self.refuse
        self.top = _Element("", {}, 1, 1, None)
        self.here = self.top
        self.depth = 0

    def read(self, data: bytes) -> _Element:
        try:
            self.parser.Parse(data, True)
        except expat.ExpatError as error:
            message = f"is no XML: {expat.ErrorString(error.code)}"
            self.faults.append(Fault(self.name, error.lineno, error.offset + 1, "", message))
        if self.faults:
            raise InputError(self.faults)
        return self.top.inside[0]

    def refuse(self, *_: object) -> NoReturn:
        line, column = self.place()
        message = "declares a document type or entities, which a topology file has no use for"
        raise InputError([*self.faults, Fault(self.name, line, column, "", message)])

    def place(self) -> tuple[int, int]:
        return self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber + 1

    def fault(self, element: _Element, message: str) -> None:
        self.faults.append(Fault(self.name, element.line, element.column, element.name, message))

    def start(self, name: str, attributes: dict[str, str]) -> None:
        element = _Element(name, attributes, *self.place(), self.here)
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fault(element, f"is nested more than {_DEEPEST} deep")
            raise InputError(self.faults)
        allowed = _INSIDE.get(self.here.name)
        if name not in _INSIDE or not name:
            self.fault(element, f"unknown element; {did_you_mean(name, [*filter(None, _INSIDE)])}")
        elif allowed is not None and name not in allowed:
            where = f"in {self.here.name}" if self.here.name else "at the top"
            self.fault(element, f"does not belong {where}; allowed there: {', '.join(allowed) or 'nothing'}")
        for key in _NEEDED.get(name, ()):
            if key not in attributes:
                self.fault(element, f"the attribute {key} is missing")
        for key in _WHOLE & attributes.keys():
            # Without access to a device NCCL leaves the width empty.
            if not re.fullmatch(r"-?[0-9]+", attributes[key]) and not (key == "link_width" and not attributes[key]):
                self.fault(element, f"{key} should be a whole number [got {attributes[key]!r}]")
            elif key in ("speed", "count") and int(attributes[key]) < 1:
                self.fault(element, f"{key} should be greater than zero [got {attributes[key]!r}]")
        self.here.inside.append(element)
        self.here = element

    def end(self, name: str) -> None:
        assert self.here.above is not None  # the parser sees to it that elements close in order
        self.here = self.here.above
        self.depth -= 1


def _seen(source: str, date: str, boards: list[_Element], nets: list[_Element], reader: _Reader) -> Seen:
    place = {_bus(board): index for index, board in enumerate(boards)}
    pairs: dict[tuple[int, int], int] = {}
    switched = [0] * len(boards)
    kinds = set()
    for one, board in enumerate(boards):
        for link in board.inside:
            if link.name not in ("nvlink", "xgmi"):
                continue
            other = place.get(link.attributes["target"].lower())
            if other == one:
                reader.fault(link, "should lead to another device")
            elif other is not None:
                kinds.add(link.name)
                pair = (min(one, other), max(one, other))
                # Both ends list the link.
                pairs[pair] = max(pairs.get(pair, 0), link.number("count"))
            elif link.attributes.get("tclass", _SWITCH_CLASS).startswith(_SWITCH_CLASS):
                kinds.add(link.name)
                switched[one] += link.number("count")
    if any(switched) and (not all(switched) or pairs):
        odd = boards[switched.index(0)] if 0 in switched else boards[min(pairs)[0]]
        reader.fault(odd, "should have links to switches alone, as other accelerators have")
    if len(kinds) > 1:
        reader.fault(boards[0], "has links of both nvlink and xgmi")
    transfer = {_transfer(reader, board.above) for board in boards if board.above}
    if len(transfer) > 1:
        reader.fault(boards[0], "accelerators have PCI Express of different speed or width")
    if reader.faults:
        raise InputError(reader.faults)
    domains = {number: index for index, number in enumerate(sorted({_numa(each) for each in (*boards, *nets)}))}
    common = [[_common(board, net) for net in nets] for board in boards]
    ports = tuple(
        Port(
            name=net.attributes.get("name", f"net{index}"),
            nearest=tuple(
                one for one, depths in enumerate(common) if depths[index] == max(depths) and depths[index] > 1
            ),
            numa=domains[_numa(net)],
            bandwidth=net.number("speed") * 1e6 / 8,
        )
        for index, net in enumerate(nets)
    )
    (generation, lanes), *_ = transfer
    return Seen(
        source=source,
        date=date,
        accelerators=tuple(domains[_numa(board)] for board in boards),
        pairs=pairs,
        switched=tuple(switched) if any(switched) else (),
        link=next(iter(kinds), "nvlink"),
        ports=ports,
        generation=generation,
        lanes=lanes,
        shared_by=max(sum(_switch(other) is _switch(board) for other in boards) for board in boards),
    )


def _bus(board: _Element) -> str:
    return board.above.attributes["busid"].lower() if board.above else ""


def _numa(element: _Element) -> int:
    return next((each.number("numaid") for each in element.way_up() if each.name == "cpu"), 0)


def _common(one: _Element, other: _Element) -> int:
    """Count the elements that two have above them in common: the more, the nearer they are."""
    above = {id(each) for each in one.way_up()}
    return sum(id(each) in above for each in other.way_up()) - 1


def _switch(board: _Element) -> _Element:
    """Find the uppermost PCI element above a device."""
    return [each for each in board.way_up() if each.name in ("pci", "gpu")][-1]


def _transfer(reader: _Reader, pci: _Element) -> tuple[int | None, int | None]:
    """Give generation and lanes of a device's own PCI Express."""
    speed, width = pci.attributes.get("link_speed", ""), pci.attributes.get("link_width", "")
    match = re.match(r"([0-9.]+) ?GT/s", speed)
    if speed not in ("", "Unknown", "Unknown speed") and not (match and float(match[1]) in _TRANSFERS):
        known = ", ".join(f"{each:g}" for each in _TRANSFERS)
        reader.fault(pci, f"link_speed should be one of {known} GT/s [got {speed!r}]")
        return None, None
    if not match or not width or int(width) < 1:
        return None, None
    return _TRANSFERS[float(match[1])], int(width)
