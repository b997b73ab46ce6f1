"""Hardware files: what they may say, and all that is wrong with one in a single message."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

import hardware.schema
from hardware.faults import InputError
from hardware.provenance import from_memory, numbers_without_provenance
from hardware.schema import (
    MODELS,
    Accelerator,
    Cluster,
    Link,
    Node,
    json_schema,
    write_schemas,
)
from hardware.yaml_source import read_yaml, validated

ROOT = Path(hardware.schema.__file__).parent
CATALOGUE = sorted(path for path in (ROOT / "catalog").glob("*/*.yaml") if path.parent.name != "kernels")

CHIP = """\
kind: accelerator
name: h100-80gb-sxm
aliases: [h100_sxm]
vendor: nvidia
architecture: hopper
peak: {bf16: 989 TFLOP/s, int8: 1979 TOP/s}
memory: {capacity: 80 GiB, bandwidth: 3.35 TB/s}
l2: 50 MiB
units: 132
clock: 1.83 GHz
power: {limit: 700 W, idle: 72 W}
price: {on_demand: 3.0 USD/h}
"""

NODE = """\
kind: node
name: dgx-h100
accelerators: {type: h100-80gb-sxm, count: 8}
links:
  - {name: nvlink, type: nvswitch, bandwidth: 450 GB/s, latency: 1 us}
  - {name: pcie, type: pcie, generation: 5, lanes: 16, shared_by: 2}
nics: {count: 8, bandwidth: 400 Gbit/s, affinity: one-per-accelerator}
tiers:
  - {name: ddr, capacity: 2 TiB, read: 300 GB/s, write: 300 GB/s, latency: 90 ns, link: pcie}
power: {limit: 10.2 kW, idle: 2.8 kW, host: 1.2 kW}
"""

CLUSTER = """\
kind: cluster
name: superpod-16x8
node: dgx-h100
nodes: 256
fabric: {type: leaf-spine, hosts_per_leaf: 16, spines: 8, link: 400 Gbit/s, oversubscription: 1, failed: []}
"""


def faults(model: type[Accelerator] | type[Node] | type[Cluster], text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        validated(model, read_yaml(text, "x.yaml", keep_faults=True))
    return str(caught.value).splitlines()


def test_an_accelerator_is_read_into_si() -> None:
    chip = validated(Accelerator, read_yaml(CHIP, "x.yaml"))
    assert chip.peak == {"bf16": 989e12, "int8": 1979e12}
    assert (chip.memory.capacity, chip.memory.bandwidth) == (80 * 2**30, 3.35e12)
    assert (chip.l2, chip.units, chip.clock) == (50 * 2**20, 132, 1.83e9)
    assert (chip.power.limit, chip.power.idle) == (700, 72)
    assert chip.price is not None and chip.price.on_demand == 3 and chip.price.spot is None
    assert chip.aliases == ("h100_sxm",)


def test_a_node_is_read_into_si() -> None:
    node = validated(Node, read_yaml(NODE, "x.yaml"))
    nvlink, pcie = node.links
    assert (nvlink.bandwidth, nvlink.latency) == (450e9, 1e-6)
    # 32 GT/s x 16 lanes x 128/130 / 8 = 63.0 GB/s
    assert pcie.bandwidth == pytest.approx(63.0e9, rel=1e-3)
    assert node.nics is not None and node.nics.bandwidth == 50e9
    assert node.tiers[0].latency == pytest.approx(90e-9)


def test_a_cluster_is_read_into_si() -> None:
    cluster = validated(Cluster, read_yaml(CLUSTER, "x.yaml"))
    assert (cluster.node, cluster.nodes, cluster.fabric.link) == ("dgx-h100", 256, 50e9)


def test_eight_different_faults_of_one_file_are_found_at_once() -> None:
    text = """\
kind: node
name: my-box
accelerators:
  type:
    kind: accelerator
    name: my-chip
    vendor: nvidia
    architecture: hopper
    peak: {bf16: 989 TFLOP/s}
    memory: {capacity: 80 GiB/s, bandwith: 4.8 TB/s}
    l2: -50 MiB
    units: many
    clock: 1.83 GHz
  count: 8
links:
  - {name: nvlink, type: nvswich, bandwidth: 400 Gb/s}
links: []
"""
    expected = {
        (4, 3): ("accelerators.type.power: missing; What it draws",),
        (10, 14): (
            'accelerators.type.memory.capacity: "GiB/s" is a unit of bytes per second, wanted bytes; ',
            """ "80 GiB" [got '80 GiB/s']""",
        ),
        (10, 34): (
            "accelerators.type.memory.bandwith: unknown key; allowed: capacity, bandwidth ",
            """(did you mean "bandwidth"?) [got '4.8 TB/s']""",
        ),
        (11, 5): ("accelerators.type.l2: should not be negative [got '-50 MiB']",),
        (12, 5): ("accelerators.type.units: should be a whole number [got 'many']",),
        (16, 20): (
            "links[0].type: unknown value; allowed: nvswitch, nvlink-mesh, nvlink-c2c, xgmi, pcie, ici, ethernet ",
            """(did you mean "nvswitch"?) [got 'nvswich']""",
        ),
        (16, 35): (
            'links[0].bandwidth: "Gb/s" may mean bits or bytes; write "400 Gbit/s" for bits per second ',
            """or "400 GB/s" for bytes per second [got '400 Gb/s']""",
        ),
        (17, 1): ("links: the key stands twice, first in line 15; keep one of them",),
    }
    found = faults(Node, text)
    assert len(found) == len(expected) == 8
    for message, ((line, column), words) in zip(found, expected.items(), strict=True):
        assert message.startswith(f"x.yaml:{line}:{column}: ")
        assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("units: 132", "units: 132.0", "9:1: units", "whole number"),
        ("units: 132", "units: true", "9:1: units", "whole number"),
        ("units: 132", "units: '132'", "9:1: units", "whole number"),
        ("units: 132", "units: 0", "9:1: units", "greater than or equal to 1"),
        ("name: h100-80gb-sxm", "name: 100", "2:1: name", "should be text"),
        ("bandwidth: 3.35 TB/s", "bandwidth: 4.8 TBs", "7:28: memory.bandwidth", 'did you mean "TB/s"'),
        ("bandwidth: 3.35 TB/s", "bandwidth: 0", "7:28: memory.bandwidth", "greater than zero"),
        ("bandwidth: 3.35 TB/s", "bandwidth: .inf", "7:28: memory.bandwidth", "finite"),
        ("capacity: 80 GiB", "capacity: 0 B", "7:10: memory.capacity", "greater than zero"),
        ("l2: 50 MiB", "l2: [1]", "8:1: l2", "a number of SI units or a text"),
        ("aliases: [h100_sxm]", "aliases: h100_sxm", "3:1: aliases", "should be a list"),
        ("memory: {capacity: 80 GiB, bandwidth: 3.35 TB/s}", "memory: 80 GiB", "7:1: memory", "should be a mapping"),
        ("memory: {capacity: 80 GiB, bandwidth: 3.35 TB/s}", "memory:", "7:1: memory", "should be a mapping"),
        ("vendor: nvidia\n", "", "1:1: vendor", "missing"),
        ("kind: accelerator", "kind: node", "1:1: kind", "allowed: accelerator"),
    ],
)
def test_a_fault_of_an_accelerator_is_placed(old: str, new: str, place: str, words: str) -> None:
    assert old in CHIP
    (message,) = faults(Accelerator, CHIP.replace(old, new))
    assert message.startswith(f"x.yaml:{place}: ")
    assert words in message


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("latency: 90 ns, link: pcie", "latency: 90 ns, link: pci", "9:83: tiers[0].link", 'did you mean "pcie"'),
        ("latency: 90 ns, link: pcie", "latency: 90 ns, link: pcie, via: dd", "9:95: tiers[0].via", "before this one"),
        ("latency: 90 ns, link: pcie", "latency: 90 ns, link: pcie, shared_by: 9", "9:95: tiers[0].shared_by", "8 acc"),
        ("name: nvlink, type: nvswitch", "name: pcie, type: nvswitch", "6:6: links[1].name", "earlier link"),
        ("shared_by: 2", "shared_by: 9", "6:56: links[1].shared_by", "8 accelerators"),
        ("generation: 5, lanes: 16, ", "", "6:5: links[1].bandwidth", "generation and lanes"),
        ("generation: 5", "generation: 5, bandwidth: 80 GB/s", "6:45: links[1].bandwidth", "at most 63.02 GB/s"),
        ("generation: 5", "generation: 9", "6:30: links[1].generation", "less than or equal to 6"),
        ("bandwidth: 450 GB/s", "bandwidth: 450 GB/s, generation: 5, lanes: 4", "5:57: links[0].generation", "pcie"),
        ("affinity: one-per-accelerator", "affinity: many", "7:41: nics.affinity", "one-per-accelerator, shared"),
    ],
)
def test_a_fault_of_a_node_is_placed(old: str, new: str, place: str, words: str) -> None:
    assert old in NODE
    (message,) = faults(Node, NODE.replace(old, new))
    assert message.startswith(f"x.yaml:{place}: ")
    assert words in message


def test_accelerators_of_a_node_need_a_link() -> None:
    (message,) = faults(Node, "name: x\naccelerators: {type: y, count: 2}\nlinks: []\n")
    assert message.startswith("x.yaml:3:1: links: no link joins the node's 2 accelerators")
    assert validated(Node, read_yaml("name: x\naccelerators: {type: y, count: 1}\n", "x.yaml")).links == ()


def test_a_fabric_takes_only_the_keys_of_its_type() -> None:
    (message,) = faults(Cluster, CLUSTER.replace("spines: 8", "dims: [4, 4]"))
    assert message.startswith("x.yaml:5:48: fabric.dims: has no meaning for a fabric of type leaf-spine; allowed:")
    (message,) = faults(Cluster, "name: x\nnode: y\nnodes: 2\nfabric: {type: torus}\n")
    assert message.startswith("x.yaml:4:1: fabric.dims: missing")
    (message,) = faults(Cluster, "name: x\nnode: y\nnodes: 2\nfabric: {type: edges}\n")
    assert message.startswith("x.yaml:4:1: fabric.edges: missing")


# Nominal rates of one direction as vendors print them, GB/s.
@pytest.mark.parametrize(
    ("generation", "lanes", "expected"), [(3, 16, 15.75), (4, 16, 31.5), (5, 8, 31.5), (5, 16, 63.0), (6, 16, 121.0)]
)
def test_pci_express_follows_from_generation_and_lanes(generation: int, lanes: int, expected: float) -> None:
    link = Link(name="pcie", type="pcie", generation=generation, lanes=lanes)
    assert link.bandwidth == pytest.approx(expected * 1e9, rel=2e-3)


PROVENANCE = "{source: a data sheet, date: 2024-05, evidence: data sheet}"


def test_numbers_without_provenance_are_listed() -> None:
    chip = validated(Accelerator, read_yaml(CHIP, "x.yaml"))
    assert numbers_without_provenance(chip) == [
        "clock", "l2", "memory.bandwidth", "memory.capacity", "peak.bf16", "peak.int8", "power.idle", "power.limit",
        "units",
    ]  # fmt: skip
    text = CHIP + "provenance:\n"
    text += "".join(f"  {key}: {PROVENANCE}\n" for key in ("peak", "memory.capacity", "power", "units", "clock"))
    chip = validated(Accelerator, read_yaml(text, "x.yaml"))
    assert numbers_without_provenance(chip) == ["l2", "memory.bandwidth"]


def test_provenance_of_list_items_by_name_or_position() -> None:
    text = NODE + "provenance:\n"
    text += "".join(
        f"  {key}: {PROVENANCE}\n" for key in ("accelerators", "links.nvlink", "links[1].lanes", "tiers.ddr")
    )
    node = validated(Node, read_yaml(text, "x.yaml"))
    assert numbers_without_provenance(node) == [
        "links.1.generation", "links.1.shared_by", "nics.bandwidth", "nics.count", "power.host", "power.idle",
        "power.limit",
    ]  # fmt: skip


def test_what_rests_on_memory_is_listed() -> None:
    entry = PROVENANCE.replace("evidence: data sheet", "evidence: from memory")
    chip = validated(Accelerator, read_yaml(f"{CHIP}provenance:\n  l2: {entry}\n  units: {PROVENANCE}\n", "x.yaml"))
    assert [key for key, _ in from_memory(chip)] == ["l2"]


def test_provenance_of_a_key_that_does_not_exist_is_a_fault() -> None:
    (message,) = faults(Accelerator, f"{CHIP}provenance:\n  memory.bandwith: {PROVENANCE}\n")
    assert message.startswith('x.yaml:14:3: provenance.memory.bandwith: no key "bandwith"')
    assert 'did you mean "bandwidth"' in message
    (message,) = faults(Accelerator, CHIP + "provenance:\n  l2: {source: x, date: May 2024, evidence: data sheet}\n")
    assert message.startswith("x.yaml:14:19: provenance.l2.date: ")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_committed_json_schemas_are_those_generated(name: str, tmp_path: Path) -> None:
    write_schemas(tmp_path)
    file = f"{name}.schema.json"
    assert (ROOT / "schemas" / file).read_bytes() == (tmp_path / file).read_bytes()


def described(schema: object) -> list[str]:
    """Every property without a description."""
    missing = []
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            if "description" not in value:
                missing.append(name)
        for value in schema.values():
            missing += described(value)
    return missing


@pytest.mark.parametrize("name", sorted(MODELS))
def test_json_schemas_are_valid_and_describe_every_key(name: str) -> None:
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert described(schema) == []


@pytest.mark.parametrize(
    ("bandwidth", "good"),
    [
        ("4.8 TB/s", True), ("400 Gbit/s", True), (4.8e12, True), ("4.8 TBs", False), ("400 Gb/s", False),
        ("4.8 TB", False), (-1, False), (0, False), ("-4.8 TB/s", False), (None, False),
    ],
)  # fmt: skip
def test_editors_accept_what_the_parser_accepts(bandwidth: object, good: bool) -> None:
    data = yaml.safe_load(CHIP)
    data["memory"]["bandwidth"] = bandwidth
    assert jsonschema.Draft202012Validator(json_schema("accelerator")).is_valid(data) is good
    if not good:
        with pytest.raises(ValueError, match=r"bandwidth"):
            Accelerator.model_validate(data)


@pytest.mark.parametrize(("kind", "text"), [("accelerator", CHIP), ("node", NODE), ("cluster", CLUSTER)])
def test_the_documented_examples_fit_their_schema(kind: str, text: str) -> None:
    jsonschema.validate(read_yaml(text, "x.yaml").data, json_schema(kind))


@pytest.mark.parametrize("path", CATALOGUE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_catalogue_file_fits_its_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    source = read_yaml(text, path.name)
    kind = source.data["kind"]
    validated(MODELS[kind], source)
    jsonschema.validate(source.data, json_schema(kind))
    first = text.splitlines()[0]
    assert re.fullmatch(rf"# yaml-language-server: \$schema=\.\./\.\./schemas/{kind}\.schema\.json", first)


def test_json_schemas_are_plain_json() -> None:
    for name in MODELS:
        assert json.loads(json.dumps(json_schema(name))) == json_schema(name)


def test_own_parameters_of_kernels_are_checked_and_name_their_source() -> None:
    kernels = "\nefficiency: {gemm: {bf16: {launch_us: 9, compute: 2}}, prefil: {}}\n"
    source = read_yaml(CHIP + kernels, "chip.yaml")
    with pytest.raises(InputError) as caught:
        validated(MODELS["accelerator"], source)
    keys = {fault.key for fault in caught.value.faults}
    assert "efficiency.prefil" in keys
    assert "efficiency.gemm.bf16.memory" in keys
