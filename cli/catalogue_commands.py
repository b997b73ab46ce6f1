"""Commands about machines, models and schemas."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import PLAIN, Debug, Form, Format, Output, form_of, one_of, save, write_answer

# Everything slow to import is imported by the command that needs it.

machines = typer.Typer(**PLAIN)
architectures = typer.Typer(**PLAIN)

_COLUMNS = ("key", "value", "source", "date", "evidence", "note")
"""Columns of a hardware file as CSV."""


@machines.command("list")
def hardware_list(
    kind: Annotated[
        str | None, typer.Argument(help="accelerator, node, cluster, efficiency or facility; default: all.")
    ] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """List what the catalogue holds."""
    from cli import catalogue
    from cli.export import to_csv
    from hardware.catalogue import names

    kinds = catalogue.KINDS if kind is None else (one_of("kind of hardware", kind, catalogue.KINDS),)
    write_answer(
        form,
        output,
        table=lambda: catalogue.listed(kinds),
        data=lambda: {each: list(names(each)) for each in kinds},
        csv=lambda: to_csv(("kind", "name"), [(each, name) for each in kinds for name in names(each)]),
    )


@machines.command("show")
def hardware_show(
    name: Annotated[str, typer.Argument(help="A name in the catalogue, or the path of a hardware file.")],
    topology: Annotated[
        bool, typer.Option("--topology", help="Draw the network of a cluster, the devices of a node.")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw --topology as .svg.")] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Show a description: numbers with their units, and where each comes from; or draw its network."""
    from cli import catalogue
    from cli.export import to_csv

    if topology or plot is not None:
        _show_topology(name, plot, form, output)
        return
    entry = _entry(name)
    write_answer(
        form,
        output,
        table=lambda: catalogue.description(entry),
        data=lambda: entry.model_dump(mode="json"),
        csv=lambda: to_csv(_COLUMNS, catalogue.cells(entry)),
    )


def _show_topology(name: str, plot: Path | None, form: Format | None, output: Path | None) -> None:
    """Draw a machine; a file that ends in .svg is the picture."""
    from cli import topology
    from cli.export import to_csv
    from cli.topology_svg import svg
    from hardware.catalogue import resolve_cluster
    from hardware.faults import Fault, InputError
    from hardware.yaml_source import Source

    if plot is not None and plot.suffix.lower() != ".svg":
        raise InputError([Fault(f"--plot {plot}", 0, 0, "", "a topology is drawn as .svg")])
    machine = resolve_cluster(name, Path(), source=Source("hardware show", name))
    as_picture = output is not None and output.suffix.lower() == ".svg" and form is None
    for file, option in ((plot, "--plot"), (output if as_picture else None, "--output")):
        if file is not None:
            facts = None if topology.of_one_node(machine) else topology.facts(machine)
            save(svg(topology.picture(machine), facts), file, option)
    if not as_picture:
        write_answer(
            form,
            output,
            table=lambda: topology.drawing(machine),
            data=lambda: topology.data(machine),
            csv=lambda: to_csv(topology.COLUMNS, topology.links(machine)),
        )


def _entry(name: str) -> Any:
    """Find a hardware description of any kind by name or path."""
    from cli.catalogue import KINDS
    from hardware.catalogue import UnknownName, find, load_file, names
    from hardware.faults import Fault, InputError
    from hardware.yaml_source import nearest

    if name.endswith((".yaml", ".yml", ".json")) or "/" in name:
        return load_file(Path(name))
    near: list[str] = []
    found = []
    for kind in KINDS:
        try:
            found.append(find(kind, name))
        except UnknownName as error:
            near += [error.nearest] if error.nearest else []
    if found:  # a name goes before another kind's alias: gb200-nvl72 is the rack, not one of its accelerators
        return next((entry for entry in found if _bare(entry.name) == _bare(name)), found[0])
    best = nearest(name, near) or next(iter(near), None)
    hint = f' (did you mean "{best}"?)' if best else ""
    count = sum(len(names(kind)) for kind in KINDS)
    message = f'no "{name}" among the {count} entries of the catalogue{hint}; a path ends in .yaml'
    raise InputError([Fault("hardware show", 0, 0, "", message)])


def _bare(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ ."))


@machines.command("check")
def hardware_check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Default: the whole catalogue.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Check hardware files: every fault with its place, and every figure that rests on memory alone."""
    from importlib import resources

    from hardware.catalogue import check_file, load_file
    from hardware.provenance import from_memory

    with resources.as_file(resources.files("hardware") / "catalog") as folder:
        # the parameters of kernels are no machines; their models check them
        paths = files or sorted(path for path in folder.glob("*/*.yaml") if path.parent.name != "kernels")
        faults = 0
        recalled = 0
        for path in paths:
            shown = path.relative_to(folder) if path.is_relative_to(folder) else path
            found = check_file(path)
            for fault in found:
                typer.echo(fault, err=True)
            faults += len(found)
            if not found:
                for key, source in from_memory(load_file(path)):
                    recalled += 1
                    note = f": {source.note}" if source.note else ""
                    typer.echo(f"{shown}: {key}: from memory ({source.source}, {source.date}){note}")
    counted = f"{len(paths)} {'file' if len(paths) == 1 else 'files'}"
    typer.echo(f"{counted}, {faults} {'fault' if faults == 1 else 'faults'}, {recalled} from memory")
    if faults:
        raise typer.Exit(2)


@machines.command("import")
def hardware_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Topology XML of NCCL, or text of nvidia-smi topo -m.")],
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", metavar="NAME", help="The board, by its name in the catalogue.")
    ] = None,
    port_bandwidth: Annotated[
        str | None,
        typer.Option("--port-bandwidth", metavar="RATE", help="Rate of a network port, if FILE does not say it."),
    ] = None,
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Turn what another tool wrote about a node into its description."""
    from cli import catalogue
    from cli.export import to_csv, to_yaml
    from hardware.faults import Fault, InputError
    from hardware.importers import read_node
    from hardware.importers.node import describe
    from hardware.schema import Node
    from hardware.units import parse_quantity

    seen = read_node(file)
    faults = []
    rate = None
    if accelerator is None:
        message = "missing; no such file tells the boards of one chip apart; perfmodel hardware list accelerator"
        faults.append(Fault("--accelerator", 0, 0, "", message))
    if port_bandwidth is not None:
        try:
            rate = parse_quantity(port_bandwidth, "bit/s")
        except ValueError as error:
            faults.append(Fault("--port-bandwidth", 0, 0, "", f"{error} [got {port_bandwidth!r}]"))
    if faults or accelerator is None:
        raise InputError(faults)
    data = describe(seen, file.stem, accelerator, rate)
    form = form_of(form, output)
    write_answer(
        Format.yaml if form is Format.table else form,
        output,
        table=lambda: to_yaml(data),
        data=lambda: data,
        csv=lambda: to_csv(_COLUMNS, catalogue.cells(Node.model_validate(data))),
    )


@architectures.command("list")
def model_list(form: Form = None, output: Output = None, debug: Debug = False) -> None:
    """List the bundled models."""
    from cli import catalogue
    from cli.export import to_csv
    from perfmodel.architecture import architecture_names, load_architecture

    found = [load_architecture(name, Path()) for name in architecture_names()]
    columns = ("name", "parameters", "active_parameters", "depth", "hidden", "vocab", "max_positions")
    rows = [{column: getattr(model, column) for column in columns} for model in found]
    write_answer(
        form,
        output,
        table=lambda: catalogue.models(found),
        data=lambda: rows,
        csv=lambda: to_csv(columns, [tuple(row.values()) for row in rows]),
    )


@architectures.command("show")
def model_show(
    name: Annotated[str, typer.Argument(help="A bundled model, the path of a config.json or of a short description.")],
    form: Form = None,
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Show a model: its size and its layers."""
    from cli import catalogue
    from cli.export import flattened, to_csv
    from hardware.yaml_source import Source
    from perfmodel.architecture import load_architecture

    found = load_architecture(name, Path(), Source("model show", name), ())

    def csv() -> str:
        data = catalogue.model_dict(found)
        cells = dict(flattened({**data, "layers": dict(enumerate(data["layers"], start=1))}))
        return to_csv(list(cells), [list(cells.values())])

    write_answer(form, output, table=lambda: catalogue.model(found), data=lambda: catalogue.model_dict(found), csv=csv)


def schema(
    name: Annotated[
        str,
        typer.Argument(
            help="accelerator, node, cluster, efficiency, facility, model, train, sequence, routing, placement, fleet, "
            "kv, serve, power, sweep."
        ),
    ],
    output: Output = None,
    debug: Debug = False,
) -> None:
    """Write the JSON Schema of a hardware file, a model or a scenario, for editors."""
    known = (
        "accelerator",
        "node",
        "cluster",
        "efficiency",
        "facility",
        "model",
        "train",
        "sequence",
        "routing",
        "placement",
        "fleet",
        "serve",
        "kv",
        "power",
        "sweep",
    )
    chosen = one_of("schema", name, known)

    def content() -> Any:
        if chosen == "train":
            from solvers.scenario import train_schema

            return train_schema()
        if chosen == "sequence":
            from solvers.sequence_scenario import sequence_schema

            return sequence_schema()
        if chosen == "routing":
            from solvers.routing_scenario import routing_schema

            return routing_schema()
        if chosen == "placement":
            from solvers.placement_scenario import placement_schema

            return placement_schema()
        if chosen == "fleet":
            from solvers.fleet_scenario import fleet_schema

            return fleet_schema()
        if chosen == "serve":
            from solvers.serve_scenario import serve_schema

            return serve_schema()
        if chosen == "power":
            from solvers.power_scenario import power_schema

            return power_schema()
        if chosen == "sweep":
            from solvers.sweep import sweep_schema

            return sweep_schema()
        if chosen == "kv":
            from solvers.kv import schema

            return schema()
        if chosen == "model":
            from perfmodel.architecture import json_schema as model_schema

            return model_schema()
        from hardware.schema import json_schema

        return json_schema(chosen)

    write_answer(Format.json, output, table=content, data=content, csv=content)
