"""What the catalogue holds, for people: machines and models."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from pydantic import BaseModel
from rich.console import Group, RenderableType

from cli.export import SUFFIXES, Cell, dimension_of
from cli.tables import number, quantity, table, text
from hardware.catalogue import find, names
from hardware.facility import Facility, power_tree
from hardware.network import Fabric
from hardware.provenance import Provenance, Recorded, children, provenance_path
from hardware.schema import Accelerator, Cluster, EfficiencyFamily, Node
from hardware.tiers import Domain, tier_paths
from hardware.units import format_quantity
from perfmodel.architecture import Architecture

KINDS = ("accelerator", "node", "cluster", "efficiency", "facility")

_HEADS = {
    "accelerator": ("Accelerators", ("", "16-bit peak", "memory", "bandwidth", "limit", "USD/h")),
    "node": ("Nodes", ("", "accelerators", "per link", "network")),
    "cluster": ("Clusters", ("", "nodes", "of", "fabric")),
    "efficiency": ("Efficiency of families", ("", "inherits", "widen", "kernels measured on")),
    "facility": ("Facilities", ("", "rating", "racks", "servers", "actuators")),
}
_ABREAST = 4
"""Groups of layers that fit beside each other."""
_IDENTITY = ("kind", "name", "aliases", "vendor", "architecture", "notes", "provenance")


def listed(kinds: Iterable[str]) -> RenderableType:
    """Show what the catalogue holds, one table for each kind.

    Parameters
    ----------
    kinds : iterable of str
        Of `KINDS`.

    Returns
    -------
    RenderableType
        Tables that fit eighty columns.
    """
    parts = []
    for kind in kinds:
        title, heads = _HEADS[kind]
        rows = [_summary(find(kind, name)) for name in names(kind)]
        numbers = {
            "accelerator": range(1, 6),
            "node": (2, 3),
            "cluster": (1,),
            "efficiency": (2,),
            "facility": (1, 2, 3),
        }[kind]
        parts.append(table(title, heads, rows, numbers=numbers))
    return Group(*parts)


def _summary(entry: Accelerator | Node | Cluster | EfficiencyFamily | Facility) -> tuple[str, ...]:
    if isinstance(entry, Accelerator):
        peak = entry.peak.get("bf16") or entry.peak.get("fp16")
        price = entry.price.on_demand if entry.price else None
        memory = entry.memory
        return (
            entry.name,
            format_quantity(peak, "flop/s") if peak else "-",
            format_quantity(memory.capacity, "bytes"),
            format_quantity(memory.bandwidth, "bytes/s"),
            format_quantity(entry.power.limit, "W"),
            number(price),
        )
    if isinstance(entry, Node):
        fastest = max((link.bandwidth or 0.0 for link in entry.links if link.group is None), default=0.0)
        nics = f"{entry.nics.count} x {format_quantity(entry.nics.bandwidth, 'bit/s')}" if entry.nics else "-"
        held = entry.accelerators
        of = held.type if isinstance(held.type, str) else held.type.name
        return entry.name, f"{held.count} x {of}", format_quantity(fastest, "bytes/s") if fastest else "-", nics
    if isinstance(entry, Cluster):
        node = entry.node if isinstance(entry.node, str) else entry.node.name
        return entry.name, number(entry.nodes), node, entry.fabric.type
    if isinstance(entry, Facility):
        tree = power_tree(entry)
        racks = sum(tree.multiplicity[rack] for rack in tree.racks)
        places = sum(tree.multiplicity[rack] * tree.slots[rack] for rack in tree.racks)
        acts = ", ".join(actuator.name for actuator in entry.actuators) or "-"
        return entry.name, format_quantity(tree.rating_w[0], "W"), number(racks), number(places), acts
    return entry.name, entry.inherits or "-", f"{entry.widen:g}" if entry.inherits else "-", entry.reference or "-"


def rows_of(entry: BaseModel) -> Iterator[tuple[tuple[str, ...], Any, Provenance | None]]:
    """Walk through everything a description says.

    Parameters
    ----------
    entry : pydantic model
        A parsed hardware file.

    Yields
    ------
    tuple of path, value and Provenance or None
        Items of lists are called by their name. A part that is left out is one row, its value None.
    """
    yield from _rows(entry, (), {}, ())


def _rows(
    part: Any, path: tuple[str, ...], recorded: Mapping[tuple[str, ...], Provenance], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Provenance | None]]:
    """Walk below `path`; keys of `recorded` are relative to `above`, the part that carries them."""
    if isinstance(part, Recorded):
        recorded = {_named(part, provenance_path(key)): value for key, value in part.provenance.items()}
        above = path
    items: Iterable[tuple[str, Any]]
    if isinstance(part, BaseModel):
        skipped = _IDENTITY if not path else ("provenance", "name")
        items = [(key, getattr(part, key)) for key in type(part).model_fields if key not in skipped]
        if path:  # what nobody wrote: nothing, or a default that may not even apply to this type of network
            written = part.model_fields_set
            items = [
                item for item in items if item[0] in written or not (item[1] in (None, ()) or isinstance(part, Fabric))
            ]
    elif isinstance(part, Mapping):
        items = [(str(key), value) for key, value in part.items()]
    elif isinstance(part, tuple) and any(isinstance(item, BaseModel) for item in part):
        items = [(str(getattr(item, "name", index)), item) for index, item in enumerate(part)]
    else:
        inside = path[len(above) :]
        lengths = range(len(inside), 0, -1)
        yield path, part, next((recorded[inside[:length]] for length in lengths if inside[:length] in recorded), None)
        return
    for key, value in items:
        yield from _rows(value, (*path, key), recorded, above)


def _named(part: object, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Call items of lists by their name where they have one."""
    path = []
    for key in keys:
        child = children(part).get(key)
        path.append(str(getattr(child, "name", key)) if isinstance(part, tuple) else key)
        part = child
    return tuple(path)


def shown_value(path: tuple[str, ...], value: object) -> str:
    """Write a value of a hardware description with its unit.

    Parameters
    ----------
    path : tuple of str
        Keys that lead to it.
    value : object
        In SI units; None is ``-``.

    Returns
    -------
    str
        Rates of a network in bits, as people write them; all others in bytes.
    """
    dimension = dimension_of(path, value)
    if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value):
        return ", ".join(f"[{quantity('', item)}]" for item in value)
    if dimension is None or not isinstance(value, int | float):
        return quantity(path[-1] if path[-1] not in ("count", "nodes") else "", value)
    if dimension == "bytes/s" and path[0] in ("nics", "fabric"):
        dimension = "bit/s"
    shown = format_quantity(value, dimension)
    return shown.replace("FLOP/s", "OP/s") if path[-1].startswith("int") else shown


def description(entry: BaseModel) -> RenderableType:
    """Show a hardware file: every number with its unit and where it comes from.

    Parameters
    ----------
    entry : pydantic model
        A parsed hardware file.

    Returns
    -------
    RenderableType
        Sources are numbered and stand below the table.
    """
    identity = [(key, getattr(entry, key)) for key in _IDENTITY[:-2] if getattr(entry, key, None)]
    sources: dict[Provenance, int] = {}
    rows = []
    for path, value, source in rows_of(entry):
        mark = "" if source is None or value is None else f"[{sources.setdefault(source, len(sources) + 1)}]"
        rows.append((".".join(path), shown_value(path, value), mark))
    price = getattr(entry, "price", None)
    parts = [
        table("", ("", ""), [(key, quantity(key, value)) for key, value in identity], numbers=()),
        table("", ("", "value", "source"), rows, numbers=(1, 2)),
    ]
    if isinstance(entry, Node) and entry.tiers:
        parts.append(_memories(entry))
    lines = [(f"[{place}]", _cited(source)) for source, place in sources.items()]
    if price is not None and price.source:
        lines.append(("price", f"{price.source}, {price.date or 'no date'}"))
    if lines:
        parts.append(table("Sources", ("", ""), lines, numbers=(0,)))
    notes = getattr(entry, "notes", "")
    return Group(*parts, *([text(notes)] if notes else []))


def _memories(node: Node) -> RenderableType:
    """Show the whole node's tiers, and what their data pass on their way to the accelerators."""
    rows = []
    for path in tier_paths(node):
        over = ", then ".join(_domain(domain, node.accelerators.count) for domain in path.domains[1:])
        devices = path.domains[0]
        rates = (format_quantity(rate, "bytes/s") for rate in (devices.node_up, devices.node_down))
        rows.append((path.name, format_quantity(path.capacity_bytes, "bytes"), *rates, over))
    return table("Memory beyond the accelerators' own", ("", "size", "read", "write", "over"), rows, numbers=(1, 2, 3))


def _domain(domain: Domain, accelerators: int) -> str:
    count = f"{domain.count} x " if domain.count > 1 else ""
    shared = f" shared by {min(domain.shared_by, accelerators)}" if domain.shared_by > 1 else ""
    return f"{domain.name} ({count}{format_quantity(domain.up, 'bytes/s')}{shared})"


def cells(entry: BaseModel) -> Iterator[tuple[Cell, ...]]:
    """Lay a hardware file out for CSV.

    Parameters
    ----------
    entry : pydantic model
        A parsed hardware file.

    Yields
    ------
    tuple of cell
        Dotted key (with its unit at the end), value in SI units, source, date, evidence and note.
    """
    for path, value, source in rows_of(entry):
        dimension = dimension_of(path, value) if isinstance(value, int | float) else None
        key = ".".join(path) + (f"_{SUFFIXES[dimension]}" if dimension else "")
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        cited = (
            (source.source, source.date, source.evidence, source.note) if source and value is not None else ("",) * 4
        )
        yield key, shown, *cited


def _cited(source: Provenance) -> str:
    return f"{source.source}, {source.date}, {source.evidence}" + (f": {source.note}" if source.note else "")


def models(architectures: Iterable[Architecture]) -> RenderableType:
    """Show models, one row each.

    Parameters
    ----------
    architectures : iterable of Architecture
        The models.

    Returns
    -------
    RenderableType
        A table that fits eighty columns.
    """
    heads = ("", "parameters", "active", "layers", "hidden", "positions")
    rows = [
        (
            model.name,
            billions(model.parameters),
            billions(model.active_parameters),
            model.depth,
            number(model.hidden),
            number(model.max_positions or None),
        )
        for model in architectures
    ]
    return table("Models", heads, rows)


def billions(count: int) -> str:
    """Write a number of parameters as models are called.

    Parameters
    ----------
    count : int
        Parameters [1].

    Returns
    -------
    str
        Such as ``70.55 B``.
    """
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


def model_dict(model: Architecture) -> dict[str, Any]:
    """Write a model as plain data.

    Parameters
    ----------
    model : Architecture
        The model.

    Returns
    -------
    dict
        Its fields, and what follows from them.
    """
    derived = (
        "depth",
        "parameters",
        "active_parameters",
        "embedding_parameters",
        "output_parameters",
        "mtp_parameters",
    )
    return {"name": model.name, **{key: getattr(model, key) for key in derived}, **asdict(model)}


def model(architecture: Architecture) -> RenderableType:
    """Show a model: its size, and each group of layers of one shape.

    Parameters
    ----------
    architecture : Architecture
        The model.

    Returns
    -------
    RenderableType
        Tables that fit eighty columns.
    """
    data = {key: value for key, value in model_dict(architecture).items() if key != "layers"}
    size = {
        key: f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in data.items()
    }
    parts = [table("", ("", ""), [(key, quantity("", value)) for key, value in size.items()], numbers=())]
    groups = [dict(_leaves(group)) for group in architecture.layers]
    for first in range(0, len(groups), _ABREAST):
        some = groups[first : first + _ABREAST]
        heads = [f"group {first + index}" for index in range(1, len(some) + 1)]
        rows = [(key, *(quantity("", group[key]) for group in some)) for key in some[0]]
        parts.append(table("Layers", ("", *heads), rows))
    return Group(*parts)


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for item in fields(part):
        value = getattr(part, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{path}{item.name}.")
        else:
            yield f"{path}{item.name}", value
