"""From a name, a path or a description to a machine with every part written out."""

import subprocess
import sys
from pathlib import Path

import pytest

from hardware.catalogue import (
    Machine,
    UnknownName,
    check_file,
    description,
    find,
    load_file,
    names,
    resolve_cluster,
)
from hardware.faults import InputError
from hardware.schema import Accelerator, Cluster, Node
from hardware.yaml_source import read_yaml

HERE = Path()
KINDS = ("accelerator", "node", "cluster", "efficiency", "facility")

CHIP = """\
kind: accelerator
name: my-chip
vendor: me
architecture: hopper
peak: {bf16: 100 TFLOP/s}
memory: {capacity: 10 GB, bandwidth: 1 TB/s}
units: 10
clock: 1 GHz
power: {limit: 100 W}
"""
NODE = """\
kind: node
name: my-node
accelerators: {type: chips/my-chip.yaml, count: 2}
links: [{name: pcie, type: pcie, generation: 4, lanes: 16}]
nics: {count: 2, bandwidth: 100 Gbit/s}
"""
CLUSTER = """\
kind: cluster
name: my-cluster
node: my-node.yaml
nodes: 8
fabric: {type: leaf-spine, hosts_per_leaf: 4, spines: 2, oversubscription: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips" / "my-chip.yaml").write_text(CHIP)
    (tmp_path / "my-node.yaml").write_text(NODE)
    (tmp_path / "my-cluster.yaml").write_text(CLUSTER)
    return tmp_path


def messages(value: object, base: Path = HERE, nodes: int | None = None, text: str = "") -> list[str]:
    with pytest.raises(InputError) as caught:
        if text:
            source = read_yaml(text, "scenario.yaml", keep_faults=True)
            resolve_cluster(source.data["cluster"], base, nodes, source=source, at=("cluster",))
        else:
            resolve_cluster(value, base, nodes)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_every_entry_is_found_by_its_name_and_aliases_and_by_nothing_elses() -> None:
    for kind in KINDS:
        seen: dict[str, str] = {}
        for name in names(kind):
            entry = find(kind, name)
            assert entry.name == name, f"the file {name}.yaml should be called as what it describes"
            for alias in (name, *getattr(entry, "aliases", ())):
                key = "".join(alias.lower().split()).translate(str.maketrans("", "", "-_."))
                assert seen.setdefault(key, name) == name, f"{alias} names both {seen[key]} and {name}"
                assert find(kind, alias) is entry
                assert find(kind, alias.upper().replace("-", "_")) is entry


@pytest.mark.parametrize("name", names("node"))
def test_every_node_of_the_catalogue_is_a_machine(name: str) -> None:
    machine = resolve_cluster(name, HERE)
    assert (machine.nodes, machine.node.name) == (1, name)
    if machine.node.nics is not None:
        assert resolve_cluster(name, HERE, 40).nodes == 40


@pytest.mark.parametrize("name", names("cluster"))
def test_every_cluster_of_the_catalogue_is_a_machine(name: str) -> None:
    machine = resolve_cluster(name, HERE)
    assert machine.nodes == machine.cluster.nodes
    assert machine.accelerators == machine.nodes * machine.node.accelerators.count


def test_a_name_that_does_not_exist_gets_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        find("accelerator", "h100-80gb-sxn")
    assert (caught.value.kind, caught.value.name) == ("accelerator", "h100-80gb-sxn")
    assert str(caught.value) == 'no accelerator "h100-80gb-sxn" in the catalogue (did you mean "h100-80gb-sxm"?)'
    with pytest.raises(UnknownName, match=r"in the catalogue$"):
        find("node", "qqqqq")


def test_a_node_alone_stands_on_its_reference_network() -> None:
    machine = resolve_cluster("DGX_H100", HERE, 64)
    assert (machine.nodes, machine.cluster.nodes, machine.accelerators) == (64, 64, 512)
    assert machine.accelerator.name == "h100-80gb-sxm"
    assert (machine.cluster.fabric.type, machine.cluster.fabric.oversubscription) == ("rail-optimised", 1)


def test_paths_are_relative_to_the_file_that_names_them(folder: Path) -> None:
    machine = resolve_cluster("my-cluster.yaml", folder)
    assert (machine.accelerator.name, machine.node.name, machine.nodes) == ("my-chip", "my-node", 8)
    assert resolve_cluster("my-cluster.yaml", folder, 3).nodes == 3
    assert resolve_cluster("my-node.yaml", folder, 5).nodes == 5
    assert isinstance(load_file(folder / "my-cluster.yaml"), Cluster)
    assert isinstance(load_file(folder / "my-node.yaml"), Node)
    assert isinstance(load_file(folder / "chips" / "my-chip.yaml"), Accelerator)


def test_the_description_itself_takes_the_nodes_of_the_scenario() -> None:
    machine = resolve_cluster({"node": "dgx-h100", "fabric": {"type": "rail-optimised"}}, HERE, 4)
    assert (machine.nodes, machine.cluster.nodes) == (4, 4)
    machine = resolve_cluster({"name": "big", "node": "dgx-h100", "nodes": 8}, HERE, 4)
    assert (machine.nodes, machine.cluster.nodes) == (4, 8)


def test_the_documented_cluster_is_read() -> None:
    fabric = {
        "type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "link": "400 Gbit/s", "oversubscription": 1,
    }  # fmt: skip
    machine = resolve_cluster({"name": "superpod-16x8", "node": "dgx-h100", "nodes": 256, "fabric": fabric}, HERE)
    assert machine.accelerators == 2048


def written_out(machine: Machine) -> Machine:
    return resolve_cluster(description(machine), HERE, machine.nodes)


@pytest.mark.parametrize("name", ["dgx-h100", "frontier-node", "gb200-nvl72", "l40s-8"])
def test_a_machine_written_out_reads_back(name: str) -> None:
    machine = resolve_cluster(name, HERE, 1)
    again = written_out(machine)
    assert description(again) == description(machine)
    assert again.accelerator.peak == machine.accelerator.peak
    assert again.node.links == machine.node.links


def test_edges_are_read_beside_the_file_and_written_out(folder: Path) -> None:
    (folder / "links.csv").write_text("a,b,bandwidth\nhost0,sw,100 Gbit/s\nhost1,sw,1e10\n")
    text = CLUSTER.replace("nodes: 8", "nodes: 2").partition("fabric")[0] + "fabric: {type: edges, edges: links.csv}\n"
    (folder / "odd.yaml").write_text(text)
    machine = resolve_cluster("odd.yaml", folder)
    edges = machine.cluster.fabric.edges
    assert isinstance(edges, tuple)
    assert [(edge.a, edge.b, edge.bandwidth) for edge in edges] == [("host0", "sw", 12.5e9), ("host1", "sw", 1e10)]
    assert written_out(machine).cluster.fabric.edges == edges
    (folder / "links.csv").write_text("a,b,bandwidth\nhost0,sw,100 Gb/s\nhost1,host1,1\nhost1,sw\n")
    assert [fault.line for fault in check_file(folder / "odd.yaml")] == [2, 3, 4]
    (folder / "links.csv").write_text("a,b,bandwidth\nhost0,sw,1\n")
    (fault,) = check_file(folder / "odd.yaml")
    assert (fault.line, fault.key) == (5, "fabric.edges") and "not among the links: host1" in fault.message
    (folder / "links.csv").write_text("from,to\n")
    assert "columns should be a,b,bandwidth" in check_file(folder / "odd.yaml")[0].message
    (folder / "links.csv").unlink()
    assert "cannot be read" in check_file(folder / "odd.yaml")[0].message


def test_a_good_file_has_no_faults(folder: Path) -> None:
    for path in (folder / "my-cluster.yaml", folder / "my-node.yaml", folder / "chips" / "my-chip.yaml"):
        assert check_file(path) == []


def test_faults_of_a_file_and_of_what_it_names(folder: Path) -> None:
    (folder / "my-node.yaml").write_text(NODE.replace("count: 2}", "count: two}", 1).replace("nics", "nicks"))
    found = check_file(folder / "my-cluster.yaml")
    assert [(fault.source, fault.line, fault.key) for fault in found] == [
        (str(folder / "my-node.yaml"), 3, "accelerators.count"),
        (str(folder / "my-node.yaml"), 5, "nicks"),
    ]
    (folder / "my-node.yaml").write_text(NODE.replace("chips/my-chip.yaml", "h100-80gb-sxn"))
    (fault,) = check_file(folder / "my-cluster.yaml")
    assert (fault.line, fault.column, fault.key) == (3, 16, "accelerators.type")
    assert 'did you mean "h100-80gb-sxm"' in fault.message
    (folder / "my-node.yaml").unlink()
    (fault,) = check_file(folder / "my-cluster.yaml")
    assert (fault.line, fault.key) == (3, "node") and "there is no file" in fault.message
    (fault,) = check_file(folder / "nothing.yaml")
    assert "cannot be read" in str(fault)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "kind: clutser\n",
            ':1:1: kind: unknown value; allowed: accelerator, node, cluster, efficiency, facility (did you mean "cl',
        ),
        ("name: x\n", ":1:1: kind: missing"),
        ("- 1\n", ":1:1: should be a mapping"),
        ("a: 1\na: 2\nname: x\n", ":2:1: a: the key stands twice"),
        ("", ":1:1: the file is empty"),
        ("a:\n\tb: 1\n", ":2:1: a tab"),
    ],
)
def test_a_file_that_is_not_a_description(folder: Path, text: str, words: str) -> None:
    (folder / "bad.yaml").write_text(text)
    assert words in str(check_file(folder / "bad.yaml")[0])


def test_faults_stand_where_the_scenario_holds_them() -> None:
    text = "kind: train\ncluster: {name: x, node: dgx-h10, nodes: 4}\nnodes: 64\n"
    assert messages(None, text=text) == [
        'scenario.yaml:2:20: cluster.node: no node "dgx-h10" in the catalogue (did you mean "dgx-h100"?); '
        "a path ends in .yaml"
    ]
    text = text.replace("dgx-h10,", "dgx-h100,")
    assert messages(None, nodes=64, text=text) == [
        "scenario.yaml:3:1: nodes: 64 nodes are more than the 4 of cluster x"
    ]
    text = "cluster: {node: dgx-h100, fabric: {type: leaf-spine, hosts_per_leaf: 2, spines: 3, oversubscription: 1}}\n"
    (message,) = messages(None, nodes=4, text=text)
    # 2 hosts x 8 x 400 Gbit/s need 16 cables of 400 Gbit/s; 16 cables to 3 spines are 5.333 each.
    assert message.startswith("scenario.yaml:1:84: cluster.fabric.oversubscription: 1 contradicts 3 spines: ")
    assert "2 hosts x 8 x 400 Gbit/s" in message and "16 cables, 5.333 to each spine" in message
    (message,) = messages(None, text="cluster: h100-80gb-sxm\n")
    assert message.startswith('scenario.yaml:1:1: cluster: "h100-80gb-sxm" is an accelerator') and "dgx-h100" in message
    (message,) = messages(None, text="cluster: dgx-h10\n")
    assert message.startswith('scenario.yaml:1:1: cluster: no cluster or node "dgx-h10" in the catalogue (did you mean')
    (message,) = messages(None, text=f"cluster:\n  {CHIP.replace(chr(10), chr(10) + '  ')}\n")
    assert message.startswith("scenario.yaml:2:3: cluster.kind: this describes an accelerator")


def test_the_catalogue_is_light_to_import() -> None:
    code = "import sys, hardware.catalogue, hardware.topology; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "scipy", "pandas", "networkx", "pulp", "highspy"} & set(loaded)


def test_an_architecture_without_an_efficiency_family_is_a_fault(folder: Path) -> None:
    chip = folder / "chips" / "my-chip.yaml"
    chip.write_text(chip.read_text(encoding="utf-8").replace("hopper", "hoper"), encoding="utf-8")
    [fault] = check_file(chip)
    assert fault.key == "architecture"
    assert 'did you mean "hopper"' in fault.message
