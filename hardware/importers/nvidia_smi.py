"""A node as ``nvidia-smi topo -m`` prints it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hardware.faults import Fault, InputError
from hardware.files import read_text
from hardware.importers.node import NVLINK, Port, Seen, date_of
from hardware.yaml_source import nearest

_DISTANCES = {"PIX": 1, "PXB": 2, "PHB": 3, "NODE": 4, "SYS": 5}
"""How far two devices are from each other: one PCI Express switch, several, the processor, its NUMA domain, beyond."""
_SELF = "X"
_ESCAPES = re.compile("\x1b\\[[0-9;]*m")
_DEVICE = re.compile(r"(?:GPU|NIC)[0-9]+|(?:mlx|ib|bnxt|rdmap|efa|irdma|hfi)\w*[0-9]\w*")
_LINKS = re.compile(r"NV([0-9]+)")

_MOST_LINKS = max(links for links, _ in NVLINK.values())

_Cell = tuple[int, str]


def read(path: Path) -> Seen:
    """Read what ``nvidia-smi topo -m`` printed.

    Parameters
    ----------
    path
        The text, with or without the legend below the table.

    Returns
    -------
    Seen
        Accelerators, their links, ports and NUMA domains; neither the rates of ports nor PCI Express. More links
        between all pairs together than any accelerator has (`hardware.importers.node.NVLINK`) go through switches.

    Raises
    ------
    InputError
        With every fault of the table: an unknown kind of connection, a row that is missing, too short or contradicts
        its column.
    """
    name = str(path)
    lines = [(number, _ESCAPES.sub("", line)) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    head = next((place for place, (_, line) in enumerate(lines) if _is_head(line)), None)
    if head is None:
        message = (
            "there is no table with the columns GPU0, GPU1, ...; expected the output of nvidia-smi topo -m "
            "(a matrix of bandwidth between nodes belongs to a cluster, as its bandwidth)"
        )
        raise InputError([Fault(name, 1, 1, "", message)])
    tabs = "\t" in lines[head][1]
    columns = [cell for cell in _cells(lines[head][1], tabs) if cell[1]]
    devices = [text for _, text in columns if _DEVICE.fullmatch(text)]
    faults: list[Fault] = []
    table: dict[str, dict[str, str]] = {}
    places: dict[str, int] = {}
    domains: dict[str, str] = {}
    for number, line in lines[head + 1 :]:
        if not line.strip():
            break
        (column, device), *cells = _cells(line, tabs)
        if device not in devices:
            faults.append(Fault(name, number, column, device, f"is no column of the table: {', '.join(devices)}"))
            continue
        if len(cells) < len(devices):
            message = f"should have {len(devices)} cells, one for each device [got {len(cells)}]"
            faults.append(Fault(name, number, column, device, message))
        places[device] = number
        row = table[device] = {}
        for other, (column, text) in zip(devices, cells, strict=False):
            row[other] = text
            known = text == _SELF or text in _DISTANCES or _LINKS.fullmatch(text)
            if (text == _SELF) != (device == other) or not known:
                allowed = "X" if device == other else f"{', '.join(_DISTANCES)} or NV and a number"
                near = nearest(text, _DISTANCES)
                hint = f' (did you mean "{near}"?)' if near and device != other else ""
                message = f"should be {allowed}{hint} [got {text!r}]"
                faults.append(Fault(name, number, column, f"{device} to {other}", message))
        affinity = [text for _, text in cells[len(devices) :] if text]
        domains[device] = affinity[1] if len(affinity) > 1 else ""
    faults += _asymmetric(name, devices, table, places, lines[head][0])
    if faults:
        raise InputError(sorted(faults, key=lambda fault: (fault.line, fault.column)))
    return _seen(f"nvidia-smi topo -m, {path.name}", date_of(path), devices, table, domains)


def _is_head(line: str) -> bool:
    return line[:1].isspace() and "GPU0" in line.split()


def _cells(line: str, tabs: bool) -> Iterator[_Cell]:
    """Split a line into its cells, each with its column."""
    for match in re.finditer(r"[^\t]+|(?<=\t)(?=\t)" if tabs else r"\S+", line):
        text = match[0]
        yield match.start() + 1 + len(text) - len(text.lstrip()), text.strip()


def _asymmetric(
    name: str, devices: list[str], table: Mapping[str, Mapping[str, str]], places: Mapping[str, int], head: int
) -> Iterator[Fault]:
    for device in devices:
        if device not in table:
            yield Fault(name, head, 1, device, "has a column but no row")
    for device, row in table.items():
        for other, text in row.items():
            back = table.get(other, {}).get(device)
            if devices.index(device) > devices.index(other) and back is not None and back != text:
                message = f"{text} contradicts {back} in the row of {other}"
                yield Fault(name, places[device], 1, f"{device} to {other}", message)


def _seen(
    source: str,
    date: str,
    devices: list[str],
    table: Mapping[str, Mapping[str, str]],
    affinity: Mapping[str, str],
) -> Seen:
    boards = [device for device in devices if device.startswith("GPU")]
    ports = [device for device in devices if device not in boards]
    domains = sorted({affinity[board] for board in boards})
    numa = {board: domains.index(affinity[board]) for board in boards}
    pairs: dict[tuple[int, int], int] = {}
    for one, board in enumerate(boards):
        for other in range(one + 1, len(boards)):
            if match := _LINKS.fullmatch(table[board][boards[other]]):
                pairs[one, other] = int(match[1])
    every = {*pairs.values()} if len(pairs) == len(boards) * (len(boards) - 1) // 2 else set()
    switched: tuple[int, ...] = ()
    if len(every) == 1 and max(every) * (len(boards) - 1) > _MOST_LINKS:
        switched, pairs = (max(every),) * len(boards), {}
    distance = {board: {port: _DISTANCES[table[board][port]] for port in ports} for board in boards}
    closest = {board: min(distance[board].values(), default=0) for board in boards}
    below = [sum(distance[board][port] <= _DISTANCES["PXB"] for board in boards) for port in ports]
    below += [
        1 + sum(_DISTANCES.get(table[board][other], 9) <= _DISTANCES["PXB"] for other in boards if other != board)
        for board in boards
    ]

    def port(name: str) -> Port:
        mine = tuple(index for index, board in enumerate(boards) if distance[board][name] == closest[board])
        beside = [board for board in boards if distance[board][name] < _DISTANCES["SYS"]]
        # A port that is beyond the domains of all accelerators has one of its own.
        return Port(name, mine, numa[min(beside, key=lambda one: distance[one][name])] if beside else len(domains))

    known = bool(ports) or not (pairs or switched)
    return Seen(
        source=source,
        date=date,
        accelerators=tuple(numa.values()),
        pairs=pairs,
        switched=switched,
        link="nvlink",
        ports=tuple(map(port, ports)),
        shared_by=max(below) if known else None,
    )
