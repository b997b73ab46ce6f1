"""Levels, switches and cables of machines, against published designs and an independent graph library."""

import csv
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.catalogue import Machine, resolve_cluster
from hardware.faults import InputError
from hardware.topology import bisection, counts, graph, leaf_spine, levels

HERE = Path()
DATA = Path(os.environ.get("PERFMODEL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def node(accelerators: int = 8, nics: int = 8, protocol: str = "infiniband", **more: Any) -> dict[str, Any]:
    chip = {
        "name": "chip", "vendor": "v", "architecture": "a", "peak": {"bf16": 1e12},
        "memory": {"capacity": 1e9, "bandwidth": 1e12}, "units": 1, "clock": 1e9, "power": {"limit": 1.0},
    }  # fmt: skip
    return {
        "name": "box",
        "accelerators": {"type": chip, "count": accelerators},
        "links": [{"name": "nvlink", "type": "nvswitch", "bandwidth": "450 GB/s", "latency": "1 us"}],
        "nics": {"count": nics, "bandwidth": "400 Gbit/s", "protocol": protocol} if nics else None,
        **more,
    }


def machine(nodes: int, fabric: dict[str, Any], box: dict[str, Any] | None = None, used: int | None = None) -> Machine:
    return resolve_cluster({"name": "c", "node": box or node(), "nodes": nodes, "fabric": fabric}, HERE, used)


def faults(nodes: int, fabric: dict[str, Any], box: dict[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        machine(nodes, fabric, box)
    return str(caught.value)


# --- published machines


# DGX SuperPOD with DGX B200, reference architecture: scalable units of 32 nodes, 8 rail leaves each, 64-port switches;
# columns units, leaf, spine and core switches, node-leaf, leaf-spine and spine-core cables.
SUPERPOD = [
    (2, 16, 8, 0, 512, 512, 0),
    (4, 32, 16, 0, 1024, 1024, 0),
    (8, 64, 32, 0, 2048, 2048, 0),
    (16, 128, 128, 64, 4096, 4096, 4096),
    (32, 256, 256, 128, 8192, 8192, 8192),
    (64, 512, 512, 256, 16384, 16384, 16384),
]


# DGX SuperPOD with DGX B300 on Ethernet (columns as above) and on XDR InfiniBand with switches of 144 ports.
SUPERPOD_ETHERNET = [
    (1, 16, 8, 0, 512, 512, 0),
    (2, 32, 16, 0, 1024, 1024, 0),
    (4, 64, 32, 0, 2048, 2048, 0),
    (8, 128, 64, 0, 4096, 4096, 0),
    (16, 256, 128, 0, 8192, 8192, 0),
]
SUPERPOD_XDR = [
    (1, 8, 4, 0, 576, 576, 0),
    (2, 16, 8, 0, 1152, 1152, 0),
    (4, 32, 18, 0, 2304, 2304, 0),
    (8, 64, 36, 0, 4608, 4608, 0),
    (18, 144, 72, 0, 10368, 10368, 0),
]


@pytest.mark.parametrize("row", SUPERPOD_ETHERNET, ids=lambda row: f"{row[0]} units")
def test_switches_and_cables_of_a_superpod_of_planes(row: tuple[int, ...]) -> None:
    units, *expected = row
    # 64 leaves of 32 cables fill 32 spines: more of them need planes of their own.
    fabric = {"type": "rail-optimised", "planes": max(1, units // 4)}
    found = machine(64 * units, fabric)
    assert list(counts(found).values()) == expected
    drawn = graph(found)
    assert max(ports for name, ports in drawn.degree(weight="cables") if not name.startswith("host")) == 64
    # Rails of different planes meet in the nodes alone.
    drawn.remove_nodes_from([name for name in drawn if name.startswith("host")])
    assert networkx.number_connected_components(drawn) == fabric["planes"]
    assert levels(found)[-1].bandwidth == 50e9


@pytest.mark.parametrize("row", SUPERPOD_XDR, ids=lambda row: f"{row[0]} units")
def test_switches_and_cables_of_a_superpod_with_large_switches(row: tuple[int, ...]) -> None:
    units, *expected = row
    assert list(counts(machine(72 * units, {"type": "rail-optimised", "radix": 144})).values()) == expected


@pytest.mark.parametrize("row", SUPERPOD, ids=lambda row: f"{row[0]} units")
def test_switches_and_cables_of_a_superpod_follow_from_its_size(row: tuple[int, ...]) -> None:
    units, *expected = row
    found = counts(resolve_cluster("dgx-b200", HERE, 32 * units))
    assert list(found.values()) == expected
    assert list(found) == [
        "leaf_switches", "spine_switches", "core_switches",
        "node_leaf_cables", "leaf_spine_cables", "spine_core_cables",
    ]  # fmt: skip


def test_the_published_table_of_superpods_is_the_one_above() -> None:
    path = DATA / "network" / "superpod_counts.csv"
    if not path.exists():
        pytest.skip(f"no {path}: set PERFMODEL_DATA")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(counts(resolve_cluster("dgx-b200", HERE, 64)))
    for design, expected in (("B200", SUPERPOD), ("Ethernet", SUPERPOD_ETHERNET), ("XDR", SUPERPOD_XDR)):
        found = [
            (int(row["scalable_units"]), *(int(row[name] or 0) for name in columns))
            for row in rows
            if design in row["design"]
        ]
        assert found == expected


@pytest.fixture(scope="module")
def reference() -> dict[tuple[str, str], float]:
    path = DATA / "network" / "topology_facts.csv"
    if not path.exists():
        pytest.skip(f"no {path}: set PERFMODEL_DATA")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    units = {"GB/s": 1e9, "Gb/s": 1e9 / 8}
    return {
        (row["system"], row["item"]): float(row["value"]) * units.get(row["unit"], 1.0)
        for row in rows
        if row["value"].replace(".", "").isdigit()
    }


@pytest.mark.parametrize(
    ("system", "name", "link"),
    [
        ("DGX H100", "dgx-h100", "nvlink"),
        ("HGX H200", "dgx-h200", "nvlink"),
        ("DGX A100", "dgx-a100", "nvlink"),
        ("GB200 NVL72", "gb200-nvl72", "nvlink"),
    ],
)
def test_published_machines_in_the_graph(
    reference: dict[tuple[str, str], float], system: str, name: str, link: str
) -> None:
    drawn = graph(resolve_cluster(name, HERE), detail="devices")
    found = kinds(drawn)
    assert found["gpu"] == reference[system, "gpus"]
    rate = reference[system, "nvlink_bw_per_gpu_unidirectional"]
    assert {drawn[f"host0/gpu{index}"][f"host0/{link}0"]["capacity"] for index in range(found["gpu"])} == {rate}
    ports = {data["capacity"] for a, b, data in drawn.edges(data=True) if "/nic" in a + b}
    for item, expected in (("compute_nics", found["nic"]), ("cpus", found["cpu"])):
        assert reference.get((system, item), expected) == expected
    for item in ("compute_nic_rate", "nic_rate_per_gpu"):
        assert {reference.get((system, item), *ports)} == ports


def test_published_templates_of_networks(reference: dict[tuple[str, str], float]) -> None:
    for system, fabric in (
        # A leaf has as many ports up as down, one to each spine.
        ("Spectrum-X template", {"type": "rail-optimised", "radix": 128, "spines": 64, "link": "400 Gbit/s"}),
        ("AlibabaHPN single plane template", {"type": "rail-optimised", "radix": 256, "spines": 120, "uplinks": 120}),
    ):
        leaves = int(reference[system, "leaf_switches"])
        ports = int(reference[system, "nics_per_leaf"])
        rate = reference[system, "nic_to_leaf_bw"]
        box = node(nics=8)
        box["nics"]["bandwidth"] = rate
        described = fabric | {"link": reference[system, "leaf_spine_bw"], "hosts_per_leaf": ports}
        view = leaf_spine(machine(int(reference[system, "gpus"]) // 8, described, box))
        assert view.up.shape == (leaves, reference[system, "spine_switches"])
        assert {(view.leaf == leaf).sum() for leaf in range(leaves)} == {ports}
        assert {*view.up.flat} == {reference[system, "leaf_spine_bw"]}


def test_dgx_h100() -> None:
    # DGX H100 user guide: NVLink 450 GB/s a direction, one 400 Gbit/s port each; SuperPOD: 32 nodes on 8 rail leaves.
    found = levels(resolve_cluster("dgx-h100", HERE, 64))
    assert [(level.name, level.ranks, level.bandwidth, level.type) for level in found] == [
        ("node", 8, 450e9, "nvswitch"),
        ("leaf", 256, 50e9, "infiniband"),
        ("spine", 512, 50e9, "infiniband"),
    ]
    # Two adapters of 0.55 us each and one or three switches of 0.1 us.
    assert [level.latency for level in found] == [1e-6, pytest.approx(1.2e-6), pytest.approx(1.4e-6)]


def test_frontier_node() -> None:
    # OLCF Frontier user guide: 200 GB/s between the GCDs of a module, 50-100 between modules, 4 x 25 GB/s for 8 GCDs.
    frontier = {"node": "frontier-node", "nodes": 48, "fabric": {"type": "dragonfly"}}
    found = levels(resolve_cluster(frontier, HERE))
    assert [(level.name, level.ranks, level.bandwidth, level.type) for level in found] == [
        ("gcd-pair", 2, 200e9, "xgmi"),
        ("node", 8, 50e9, "xgmi"),
        ("fabric", 384, 12.5e9, "slingshot"),
    ]


def test_a_domain_of_72_holds_64_ranks_of_256() -> None:
    found = levels(resolve_cluster("gb200-nvl72", HERE, 4), 256)
    # DGX GB200 user guide: 72 GPUs at 900 GB/s a direction, 400 Gbit/s each into the network.
    assert [(level.ranks, level.bandwidth) for level in found] == [(64, 900e9), (256, 50e9)]


def test_a_box_without_a_fast_link_uses_pci_express() -> None:
    (level,) = levels(resolve_cluster("l40s-8", HERE))
    # PCIe 4 x16 is 31.5 GB/s, shared by the two accelerators behind one switch.
    assert (level.name, level.ranks, level.type) == ("node", 8, "pcie")
    assert level.bandwidth == pytest.approx(31.5e9 / 2, rel=1e-3)


# --- how a job spreads


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (1, []),
        (4, [("node", 4)]),
        (8, [("node", 8)]),
        (12, [("node", 6), ("leaf", 12)]),
        (320, [("node", 8), ("leaf", 160), ("spine", 320)]),
        (512, [("node", 8), ("leaf", 256), ("spine", 512)]),
        (37, [("leaf", 1), ("spine", 37)]),
    ],
)
def test_a_job_spreads_evenly(ranks: int, expected: list[tuple[str, int]]) -> None:
    found = levels(machine(64, {"type": "rail-optimised"}), ranks)
    assert [(level.name, level.ranks) for level in found] == [pair for pair in expected if pair[1] > 1]


def test_a_job_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="20 nodes with 5 each, but there are 16 nodes"):
        levels(machine(16, {"type": "rail-optimised"}), 100)
    with pytest.raises(ValueError, match="at least one rank"):
        levels(machine(16, {"type": "rail-optimised"}), 0)


def test_links_of_groups_stand_below_those_of_the_node() -> None:
    links = [
        {"name": "pcie", "type": "pcie", "generation": 4, "lanes": 16, "shared_by": 2},
        {"name": "bridge", "type": "nvlink-mesh", "bandwidth": "300 GB/s", "group": 2},
    ]
    box = node(4, 0, links=links)
    assert [(level.name, level.ranks, level.type) for level in levels(machine(1, {"type": "rail-optimised"}, box))] == [
        ("bridge", 2, "nvlink-mesh"),
        ("node", 4, "pcie"),
    ]
    # Three ranks cannot be paired.
    assert [level.ranks for level in levels(machine(1, {"type": "rail-optimised"}, box), 3)] == [3]


# --- networks of leaves and spines


def test_what_is_left_out_follows_from_the_rest() -> None:
    # 16 hosts x 8 x 400 Gbit/s = 128 cables of 400 Gbit/s at 1:1, 16 to each of 8 spines.
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "link": "400 Gbit/s", "oversubscription": 1}
    assert list(counts(machine(256, fabric)).values()) == [16, 8, 0, 2048, 16 * 128, 0]
    # Cables of twice the rate are half as many; at 4:1 a quarter of that.
    assert counts(machine(256, fabric | {"link": "800 Gbit/s"}))["leaf_spine_cables"] == 16 * 64
    assert counts(machine(256, fabric | {"link": "800 Gbit/s", "oversubscription": 4}))["leaf_spine_cables"] == 16 * 16
    # One cable to each spine where neither cables nor oversubscription are written: 128 / 8 = 16:1.
    spine = levels(machine(256, {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8}))[-1]
    assert (spine.name, spine.bandwidth) == ("spine", pytest.approx(50e9 / 16))
    # 20 uplinks for 32 ports: 1.6:1.
    spine = levels(machine(64, {"type": "rail-optimised", "uplinks": 20}))[-1]
    assert spine.bandwidth == pytest.approx(50e9 / 1.6)
    # 8 leaves of one port each from every node make 4 nodes below a leaf of 2 rows.
    found = levels(machine(8, {"type": "rail-optimised", "leaves": 16}))
    assert [(level.name, level.ranks) for level in found] == [("node", 8), ("leaf", 32), ("spine", 64)]


@pytest.mark.parametrize(
    ("fabric", "words"),
    [
        (
            {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "oversubscription": 3},
            # 16 x 8 / 3 = 42.67 cables to 8 spines
            ["oversubscription: 3 contradicts 8 spines", "16 hosts x 8 x 400 Gbit/s", "42.67 cables", "5.333 to each"],
        ),
        (
            {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "uplinks": 64, "oversubscription": 1},
            ["oversubscription: 1 contradicts 64 uplinks, which make it 2"],
        ),
        ({"type": "rail-optimised", "uplinks": 12, "spines": 8}, ["spines: 8 spines do not share the 12 uplinks"]),
        ({"type": "rail-optimised", "leaves": 12}, ["leaves: 12 leaves are not a whole number for each of 8 rails"]),
        ({"type": "leaf-spine", "leaves": 2, "hosts_per_leaf": 16}, ["2 leaves with 16 hosts each cannot hold 64"]),
        ({"type": "rail-optimised", "planes": 3}, ["planes: 8 rails do not spread evenly over 3 planes"]),
        ({"type": "leaf-spine", "planes": 2}, ["planes: has no meaning for a fabric of type leaf-spine"]),
        ({"type": "rail-optimised", "rails": 3}, ["rails: 8 ports of a node do not spread evenly over 3 rails"]),
        ({"type": "fat-tree", "cores": 1}, ["cores: 16 leaves fit into one pod of 16, which needs no core switches"]),
        # 64 leaves in 2 pods of 32 spines, each with 32 cables up: 2048 cables, 32 switches of 64 ports.
        ({"type": "fat-tree", "hosts_per_leaf": 1, "uplinks": 32, "cores": 31}, ["cables from each of 64", "least 32"]),
        ({"type": "torus", "dims": [8, 8], "link": 1e9}, ["dims: 8 x 8 = 64, but 64 nodes of 8 accelerators are 512"]),
        ({"type": "torus", "dims": [8, 64]}, ["link: missing"]),
        ({"type": "rail-optimised", "failed": ["leaf0-spine99"]}, ["failed[0]: no such part; allowed: leaf0 to"]),
        ({"type": "rail-optimised", "failed": ["leaf3"]}, ["failed[0]: no such part"]),
        ({"type": "rail-optimised", "failed": ["leaf3-leaf4"]}, ["failed[0]: no such part"]),
        ({"type": "rail-optimised", "failed": [f"spine{n}" for n in range(8)]}, ["too much is broken"]),
        ({"type": "dragonfly", "failed": ["group1"]}, ["failed[0]: no such part; allowed: group0 to", "group0-"]),
        ({"type": "leaf-spine", "failed": [f"leaf{n}-spine0" for n in range(16)]}, ["spine0 has no capacity left"]),
        ({"type": "rail-optimised", "failed": [f"host3-leaf{n}" for n in range(8)]}, ["no path from host0 to host3"]),
        ({"type": "rail-optimised", "overrides": {"leaf0-spine0": "0 Gbit/s"}}, ["leaf0-spine0: should be greater"]),
        ({"type": "rail-optimised", "overrides": {"leaf0-spine0": "200 Gb/s"}}, ["may mean bits or bytes"]),
        ({"type": "rail-optimised", "overrides": {"spine0": "200 Gbit/s"}}, ["overrides.spine0: no such link"]),
        ({"type": "edges", "edges": [{"a": "host0", "b": "sw", "bandwidth": 1}]}, ["not among the links: host1, "]),
    ],
)  # fmt: skip
def test_a_contradiction_names_the_numbers(fabric: dict[str, Any], words: list[str]) -> None:
    message = faults(64, fabric)
    for word in words:
        assert word in message


def test_a_network_needs_adapters() -> None:
    assert "has no nics" in faults(2, {"type": "rail-optimised"}, node(nics=0))
    assert [level.name for level in levels(machine(1, {"type": "rail-optimised"}, node(nics=0)))] == ["node"]


def test_three_levels_are_slowed_down_at_each() -> None:
    # 4 hosts x 8 ports = 32 below, 16 above at 2:1; spines with 48 ports down, 16 up at 3:1.
    fabric = {"type": "fat-tree", "oversubscription": 2, "core_oversubscription": 3}
    found = levels(machine(768, fabric))
    assert [(level.name, level.ranks, level.bandwidth) for level in found] == [
        ("node", 8, 450e9),
        ("leaf", 32, 50e9),
        ("spine", 48 * 32, pytest.approx(25e9)),
        ("core", 768 * 8, pytest.approx(25e9 / 3)),
    ]
    total = counts(machine(768, fabric))
    assert total["leaf_spine_cables"] == 192 * 16
    assert total["spine_core_cables"] == 192 * 16 / 3


def test_a_leaf_that_loses_uplinks_slows_its_ranks() -> None:
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "oversubscription": 1}
    lost = ["leaf3-spine0", "leaf3-spine5", "spine7-leaf3"]
    assert levels(machine(256, fabric | {"failed": lost}))[-1].bandwidth == pytest.approx(50e9 * 5 / 8)
    # A spine lost to another leaf as well cannot carry what goes between the two.
    lost += ["leaf9-spine1"]
    assert levels(machine(256, fabric | {"failed": lost}))[-1].bandwidth == pytest.approx(50e9 * 4 / 8)
    assert levels(machine(256, fabric | {"failed": ["spine2"]}))[-1].bandwidth == pytest.approx(50e9 * 7 / 8)
    # Leaves that the job does not use do not matter to it.
    assert levels(machine(256, fabric | {"failed": lost}, used=48))[-1].bandwidth == pytest.approx(50e9)
    # Leaves of different rails do not talk to each other: leaf 0 is of rail 0, leaf 1 of rail 1.
    rails = {"type": "rail-optimised", "failed": ["leaf0-spine0", "leaf1-spine1"]}
    assert levels(machine(64, rails))[-1].bandwidth == pytest.approx(50e9 * 7 / 8)


def test_a_pod_that_loses_core_cables_slows_the_core() -> None:
    whole = machine(512, {"type": "rail-optimised"})
    # 32 spines of a pod with 32 cables each; half of those of one spine go to each of its two core switches.
    failed = machine(512, {"type": "rail-optimised", "failed": ["spine0-core0"]})
    assert [level.name for level in levels(whole)] == ["node", "leaf", "spine", "core"]
    assert levels(failed)[-1].bandwidth == pytest.approx(levels(whole)[-1].bandwidth * (1 - 16 / 1024))
    assert levels(failed)[-2].bandwidth == levels(whole)[-2].bandwidth


# --- other shapes


def test_dragonfly_groups_and_taper() -> None:
    fabric = {"type": "dragonfly", "hosts_per_group": 16, "taper": 0.5}
    found = levels(machine(64, fabric, node(protocol="slingshot")))
    assert [(level.name, level.ranks, level.bandwidth) for level in found] == [
        ("node", 8, 450e9),
        ("group", 128, 50e9),
        ("global", 512, 25e9),
    ]
    assert [level.name for level in levels(machine(64, fabric, used=16))] == ["node", "fabric"]
    drawn = graph(machine(64, fabric))
    # A group of 16 nodes x 400 GB/s injects 6.4 TB/s, half of which leaves it, a third of that to each other group.
    assert drawn["group0"]["group3"]["capacity"] == pytest.approx(6.4e12 * 0.5 / 3)


def test_nvlink_domains() -> None:
    # GB200 NVL72 as 18 trays of 4 accelerators in each domain.
    tray = node(4, 4, links=[{"name": "nvlink", "type": "nvswitch", "bandwidth": "900 GB/s"}])
    fabric = {"type": "nvlink-domain", "hosts_per_group": 18}
    found = levels(machine(36, fabric, tray))
    assert [(level.name, level.ranks, level.bandwidth, level.type) for level in found] == [
        ("node", 4, 900e9, "nvswitch"),
        ("domain", 72, 900e9, "nvswitch"),
        ("fabric", 144, 50e9, "infiniband"),
    ]
    assert [level.name for level in levels(machine(36, fabric, tray, used=18))] == ["node", "domain"]
    # Whole domains send to each other through the adapters of all their trays.
    flow = networkx.maximum_flow_value(graph(machine(36, fabric, tray)), "host0", "host20")
    assert flow == pytest.approx(18 * 4 * 50e9)
    assert "several domains need a network" in faults(36, fabric, tray | {"nics": None})


def test_torus_rings_and_lines() -> None:
    box = node(4, 0, links=[{"name": "ici", "type": "ici", "bandwidth": "300 GB/s", "latency": "1 us"}])
    whole = machine(16, {"type": "torus", "dims": [4, 4, 4]}, box)
    # 6 links of 50 GB/s; both directions of a ring at once.
    assert [(level.ranks, level.bandwidth) for level in levels(whole)] == [(4, 100e9), (16, 100e9), (64, 100e9)]
    # Half of the last dimension is a line.
    assert [(level.ranks, level.bandwidth) for level in levels(whole, 32)] == [(4, 100e9), (16, 100e9), (32, 50e9)]
    drawn = graph(whole)
    assert len(drawn) == 64 and drawn.number_of_edges() == 3 * 64
    assert set(dict(drawn.degree()).values()) == {6}
    assert networkx.is_isomorphic(drawn, networkx.grid_graph([4, 4, 4], periodic=True))


def edges_of(drawn: "networkx.Graph[str]") -> list[dict[str, Any]]:
    return [{"a": a, "b": b, "bandwidth": data["capacity"]} for a, b, data in drawn.edges(data=True)]


@pytest.mark.parametrize("oversubscription", [1, 2, 8])
def test_the_same_network_link_by_link_is_as_fast(oversubscription: int) -> None:
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 4, "spines": 4, "oversubscription": oversubscription}
    by_numbers = machine(16, fabric)
    by_links = machine(16, {"type": "edges", "edges": edges_of(graph(by_numbers))})
    assert levels(by_links)[-1].bandwidth == pytest.approx(levels(by_numbers)[-1].bandwidth)
    # Through a leaf, a spine and a leaf.
    assert levels(by_links)[-1].latency == levels(by_numbers)[-1].latency


def test_an_uneven_network_is_as_fast_as_its_tightest_cut() -> None:
    links = [
        ("host0", "a", 200e9),
        ("host1", "a", 200e9),
        ("a", "b", 100e9),
        ("host2", "b", 200e9),
        ("host3", "b", 60e9),
    ]
    edges = [{"a": a, "b": b, "bandwidth": rate} for a, b, rate in links]
    box = node(2, 2)
    # Two nodes of two ranks behind 100 GB/s: 25 GB/s; host3 alone has 30.
    found = levels(machine(4, {"type": "edges", "edges": edges}, box))
    assert found[-1].bandwidth == pytest.approx(25e9)
    # The first two alone need nothing of that, and are held by their adapters.
    assert levels(machine(4, {"type": "edges", "edges": edges}, box, used=2))[-1].bandwidth == pytest.approx(50e9)
    assert "no path from host0 to host2" in faults(4, {"type": "edges", "edges": edges, "failed": ["b-a"]}, box)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(1, 9)), min_size=8, max_size=30))
def test_cuts_agree_with_an_independent_maximum_flow(links: list[tuple[int, int, int]]) -> None:
    names = ["host0", "host1", "host2", "host3", "s4", "s5", "s6", "s7"]
    ring = [(names[n], names[(n + 1) % 8], 1.0) for n in range(8)]
    drawn: networkx.Graph[str] = networkx.Graph()
    for a, b, rate in ring + [(names[a], names[b], float(rate)) for a, b, rate in links if a != b]:
        drawn.add_edge(a, b, capacity=drawn.get_edge_data(a, b, {"capacity": 0.0})["capacity"] + rate)
    found = levels(machine(4, {"type": "edges", "edges": edges_of(drawn)}, node(1, 1)))[-1].bandwidth
    names = names[:4]
    rates = {
        cut: networkx.maximum_flow_value(joined(drawn, names, cut), "source", "sink") / min(size, 4 - size)
        for size in (1, 2, 3)
        for cut in itertools.combinations(names, size)
    }
    # Single nodes and the first half are among the cuts that are looked at; no cut is tighter than the tightest.
    looked_at = [rates[name,] for name in names] + [rates["host0", "host1"]]
    assert min(50e9, *rates.values()) * (1 - 1e-9) <= found <= min(50e9, *looked_at) * (1 + 1e-9)


def joined(drawn: "networkx.Graph[str]", names: list[str], cut: tuple[str, ...]) -> "networkx.Graph[str]":
    ends = drawn.copy()
    for name in names:
        ends.add_edge("source" if name in cut else "sink", name, capacity=1e9)
    return ends


def test_a_network_in_pieces_is_refused() -> None:
    whole = [{"a": f"host{n}", "b": f"sw{n // 2}", "bandwidth": 1e9} for n in range(4)]
    assert "edges: no path from host0 to host2, host3, sw1" in faults(4, {"type": "edges", "edges": whole})
    # Two switches that no node is on.
    whole.append({"a": "sw0", "b": "sw1", "bandwidth": 1e9})
    lone = [*whole, {"a": "sw2", "b": "sw3", "bandwidth": 1e9}]
    assert "edges: no path from host0 to sw2, sw3" in faults(4, {"type": "edges", "edges": lone})
    # After a failure they may stand idle.
    lone.append({"a": "sw1", "b": "sw2", "bandwidth": 1e9})
    assert levels(machine(4, {"type": "edges", "edges": lone, "failed": ["sw2-sw1"]}))


# --- slow links


def test_links_may_have_rates_of_their_own() -> None:
    # 4 nodes x 8 x 400 Gbit/s = 32 cables of 50 GB/s, 8 to each of 4 spines: 400 GB/s a pair.
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 4, "spines": 4, "oversubscription": 1}
    assert levels(machine(16, fabric))[-1].bandwidth == pytest.approx(50e9)
    slow = fabric | {"overrides": {"leaf0-spine1": "200 GB/s", "spine2-leaf3": "100 GB/s"}}
    # Between leaf 0 and leaf 3: 400 + 200 + 100 + 400 of 1600 GB/s.
    assert levels(machine(16, slow))[-1].bandwidth == pytest.approx(50e9 * 1100 / 1600)
    drawn = graph(machine(16, slow))
    assert (drawn["leaf0"]["spine1"]["capacity"], drawn["leaf3"]["spine2"]["capacity"]) == (200e9, 100e9)
    # A node whose port is slow holds up its leaf and everything above.
    host = fabric | {"type": "rail-optimised", "spines": 4, "overrides": {"host5-leaf8": "10 GB/s"}}
    assert [level.bandwidth for level in levels(machine(16, host))[1:]] == pytest.approx([50e9 * 360 / 400] * 2)
    # Faster links than the nodes can fill change nothing.
    fast = fabric | {"overrides": {f"leaf{leaf}-spine0": "800 GB/s" for leaf in range(4)}}
    assert levels(machine(16, fast))[-1].bandwidth == pytest.approx(50e9)


def test_slow_links_of_other_shapes() -> None:
    # 3 global links of 6.4 TB/s x 0.5 / 3 from each of 4 groups; one of them is broken: 2/3 of half the rate.
    fabric = {"type": "dragonfly", "hosts_per_group": 16, "taper": 0.5, "failed": ["group1-group2"]}
    assert levels(machine(64, fabric))[-1].bandwidth == pytest.approx(25e9 * 2 / 3)
    # 16 nodes use one group, which lost nothing inside.
    assert levels(machine(64, fabric, used=16))[-1].bandwidth == pytest.approx(50e9)
    tray = node(4, 4, links=[{"name": "nvlink", "type": "nvswitch", "bandwidth": "900 GB/s"}])
    domain = {"type": "nvlink-domain", "hosts_per_group": 18, "overrides": {"domain1-host20": "1.8 TB/s"}}
    assert [level.bandwidth for level in levels(machine(36, domain, tray))] == [900e9, 450e9, 50e9]
    box = node(4, 0, links=[{"name": "ici", "type": "ici", "bandwidth": "300 GB/s"}])
    torus = {"type": "torus", "dims": [4, 4, 4], "failed": ["chip0-chip1"], "overrides": {"chip0-chip4": 2e10}}
    # The ring of the first dimension is cut open; the second goes at the pace of its slow link, both ways round.
    assert [level.bandwidth for level in levels(machine(16, torus, box))] == [50e9, 40e9, 100e9]


def test_lines_between_sites_take_their_time() -> None:
    links = [
        ("host0", "a", 50e9, 0.0), ("host1", "a", 50e9, 0.0), ("host2", "b", 50e9, 0.0),
        ("a", "b", 1e9, 20e-3), ("a", "c", 1e9, 1e-3), ("c", "b", 1e9, 2e-3),
    ]  # fmt: skip
    edges = [{"a": a, "b": b, "bandwidth": rate, "latency": latency} for a, b, rate, latency in links]
    found = levels(machine(3, {"type": "edges", "edges": edges, "switch_latency": "1 us"}, node(1, 1)))
    # The way through c is quicker: two adapters of 0.55 us, three switches, 1 + 2 ms.
    assert found[-1].latency == pytest.approx(3e-3 + 3e-6 + 1.1e-6)
    assert levels(machine(3, {"type": "edges", "edges": edges}, node(1, 1), used=2))[-1].latency < 2e-6


SITES = {"type": "rail-optimised", "wan": {"hosts_per_site": 32, "bandwidth": "400 Gbit/s", "latency": "20 ms"}}


def test_sites_and_the_lines_between_them() -> None:
    found = machine(96, SITES)
    # 256 ranks of a site share 50 GB/s; two adapters of 0.55 us and the line.
    assert [(level.name, level.ranks) for level in levels(found)] == [("node", 8), ("leaf", 256), ("wan", 768)]
    last = levels(found)[-1]
    assert (last.bandwidth, last.type) == (pytest.approx(50e9 / 256), "ethernet")
    assert last.latency == pytest.approx(20e-3 + 1.1e-6)
    # A job inside one site does not see them; one of 40 nodes spreads over two, 20 on each.
    assert [level.name for level in levels(found, 128)] == ["node", "leaf"]
    assert levels(found, 320)[-1].bandwidth == pytest.approx(50e9 / 160)
    drawn = graph(found)
    assert kinds(drawn) == {"host": 96, "leaf": 24, "site": 3, "spine": 12}
    assert networkx.is_connected(drawn) and drawn["site0"]["site2"]["capacity"] == 50e9
    assert {*drawn["host64"]} == {f"leaf{leaf}" for leaf in range(16, 24)}
    assert (
        counts(found)["leaf_spine_cables"] == 3 * counts(machine(32, {"type": "rail-optimised"}))["leaf_spine_cables"]
    )
    # Two sites have one line between them.
    assert bisection(machine(64, SITES)) == pytest.approx(50e9)
    with pytest.raises(ValueError, match="not several sites"):
        leaf_spine(found)
    assert leaf_spine(machine(32, SITES)).leaves == 8
    assert "96 nodes are not whole sites of 36" in faults(96, SITES | {"wan": SITES["wan"] | {"hosts_per_site": 36}})


def test_connections_limit_a_long_line() -> None:
    # Each connection sends one window a round trip: 8 x 16 MiB / 40 ms = 3.36 GB/s.
    line = SITES["wan"] | {"connections": 8, "window": "16 MiB"}
    found = levels(machine(64, SITES | {"wan": line}))[-1].bandwidth
    assert found == pytest.approx(8 * 16 * 2**20 / 40e-3 / 256)
    # Enough of them fill it.
    assert levels(machine(64, SITES | {"wan": line | {"connections": 800}}))[-1].bandwidth == pytest.approx(50e9 / 256)
    assert "wan.window: missing; connections needs it" in faults(64, SITES | {"wan": SITES["wan"] | {"connections": 8}})


def test_parts_of_sites_fail_and_slow_down() -> None:
    base = levels(machine(64, SITES))
    slow = levels(machine(64, SITES | {"overrides": {"site0-site1": "10 GB/s"}}))
    assert slow[-1].bandwidth == pytest.approx(10e9 / 256) and slow[:-1] == base[:-1]
    # Three sites: what the broken line carried goes over the third.
    broken = levels(machine(96, SITES | {"failed": ["site0-site1"]}))
    assert broken[-1].bandwidth == pytest.approx(50e9 / 256 / 2)
    assert "no path from host0 to host32" in faults(64, SITES | {"failed": ["site0-site1"]})
    # A port of the second site; jobs in the first do not see it.
    late = machine(64, SITES | {"overrides": {"host40-leaf9": "10 GB/s"}})
    assert levels(late)[-2].bandwidth == pytest.approx(50e9 * 360 / 400)
    assert levels(late, 256)[-1].bandwidth == 50e9
    # Leaves of the second site are numbered on.
    assert "leaf0 to leaf15" in faults(64, SITES | {"failed": ["leaf16-spine0"]})
    wide = {"wan": SITES["wan"] | {"hosts_per_site": 64}}
    spine = machine(128, SITES | wide | {"failed": ["leaf16-spine8"]})
    assert levels(spine)[2].bandwidth == pytest.approx(50e9 * 7 / 8)
    assert levels(spine, 512)[2].bandwidth == 50e9


def test_sites_of_one_node_and_of_other_shapes() -> None:
    alone = SITES | {"wan": SITES["wan"] | {"hosts_per_site": 1}}
    assert [level.name for level in levels(machine(4, alone))] == ["node", "wan"]
    # One accelerator a node, nothing inside: the port is slower than the line.
    single = node(1, 1, links=[])
    single["nics"]["bandwidth"] = 1e9
    assert [(level.name, level.bandwidth) for level in levels(machine(4, alone, single))] == [("wan", 1e9)]
    fabric = {"type": "dragonfly", "hosts_per_group": 16, "taper": 0.5, "wan": SITES["wan"]}
    assert [level.name for level in levels(machine(64, fabric))] == ["node", "group", "global", "wan"]
    assert kinds(graph(machine(64, fabric))) == {"group": 4, "host": 64, "site": 2}
    assert networkx.is_connected(graph(machine(64, fabric), detail="devices"))
    assert "wan: has no meaning" in faults(64, {"type": "torus", "dims": [512], "link": 1e9, "wan": SITES["wan"]})


# --- as arrays


def test_leaves_and_spines_as_arrays_are_the_graph() -> None:
    for fabric in (
        {"type": "leaf-spine", "hosts_per_leaf": 4, "spines": 4, "failed": ["leaf1-spine2"]},
        {"type": "rail-optimised", "hosts_per_leaf": 4, "overrides": {"leaf8-spine1": "1 GB/s", "host2-leaf1": 5e9}},
        {"type": "fat-tree", "hosts_per_leaf": 1, "uplinks": 32, "failed": ["spine0-core0", "spine5"]},
    ):
        found = machine(48, fabric)
        view, drawn = leaf_spine(found), graph(found)
        rates: dict[tuple[str, str], float] = {}
        for leaf, spine in itertools.product(range(view.leaves), range(view.spines)):
            rates[f"leaf{leaf}", f"spine{spine}"] = view.up[leaf, spine]
        for spine, core in itertools.product(range(view.spines), range(view.core.shape[1])):
            rates[f"spine{spine}", f"core{core}"] = view.core[spine, core]
        for host, port in itertools.product(range(view.hosts), range(8)):
            pair = (f"host{host}", f"leaf{view.leaf[host, port]}")
            rates[pair] = rates.get(pair, 0.0) + view.port[host, port]
        expected = {frozenset(pair): data["capacity"] for *pair, data in drawn.edges(data=True)}
        assert {frozenset(pair): rate for pair, rate in rates.items() if rate} == pytest.approx(expected)
        assert (view.down == view.up.T).all()


def test_ports_by_rail_and_by_accelerator() -> None:
    view = leaf_spine(machine(64, {"type": "rail-optimised"}))
    assert (view.leaves, view.spines, view.hosts) == (16, 8, 64)
    assert view.leaf[0].tolist() == list(range(8)) and view.leaf[63].tolist() == list(range(8, 16))
    assert view.near.tolist() == [[a == p for p in range(8)] for a in range(8)]
    # Frontier: four ports for eight dies, a module of two each.
    assert leaf_spine(machine(4, {"type": "leaf-spine"}, node(8, 4))).near.argmax(1).tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    # Two ports for each of four accelerators.
    assert leaf_spine(machine(4, {"type": "leaf-spine"}, node(4, 8))).near[1].nonzero()[0].tolist() == [2, 3]
    with pytest.raises(ValueError, match="leaves and spines is needed, not torus"):
        leaf_spine(resolve_cluster("tpu-v6e-pod", HERE))


# --- the graph


def test_the_graph_has_the_counted_switches_and_cables() -> None:
    for fabric in ({"type": "rail-optimised"}, {"type": "fat-tree"}, {"type": "leaf-spine"}):
        big = machine(512, fabric)
        drawn, total = graph(big), counts(big)
        for kind in ("leaf", "spine", "core"):
            assert sum(name.startswith(kind) for name in drawn) == total[f"{kind}_switches"]
        for pair in (("host", "leaf"), ("leaf", "spine"), ("spine", "core")):
            found = sum(
                data["cables"]
                for a, b, data in drawn.edges(data=True)
                if {a.rstrip("0123456789"), b.rstrip("0123456789")} == {*pair}
            )
            assert found == total["_".join(pair).replace("host", "node") + "_cables"]
        assert networkx.is_connected(drawn)
        # No switch has more cables than ports; modular spines of a plain leaf-spine network may.
        ports = dict(drawn.degree(weight="cables"))
        if fabric["type"] != "leaf-spine":
            assert max(count for name, count in ports.items() if not name.startswith("host")) <= 64


def test_failed_parts_are_not_drawn() -> None:
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 4, "spines": 4, "oversubscription": 1}
    drawn = graph(machine(16, fabric | {"failed": ["spine1-leaf0", "spine2"]}))
    assert not drawn.has_edge("leaf0", "spine1") and drawn.has_edge("leaf1", "spine1")
    assert "spine2" not in drawn


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 4), st.integers(1, 4), st.sampled_from([2, 4, 8]), st.sampled_from([1.0, 2.0, 4.0]), st.data()
)  # fmt: skip
def test_the_rate_between_two_leaves_is_that_of_the_graph(
    leaves: int, hosts: int, spines: int, oversubscription: float, data: st.DataObject
) -> None:
    pairs = [f"leaf0-spine{spine}" for spine in range(spines)]
    failed = data.draw(st.lists(st.sampled_from(pairs), max_size=spines - 1, unique=True))
    fabric = {
        "type": "leaf-spine", "hosts_per_leaf": hosts, "spines": spines, "uplinks": 8, "failed": failed,
    }  # fmt: skip
    found = machine(leaves * hosts, fabric, node(4, 8))
    drawn = graph(found)
    for name, ends in (("source", range(hosts)), ("sink", range(hosts, 2 * hosts))):
        for host in ends:
            drawn.add_edge(name, f"host{host}", capacity=8 * 50e9)
    flow = networkx.maximum_flow_value(drawn, "source", "sink")
    # 4 ranks a node; each has 100 GB/s at most.
    assert levels(found)[-1].bandwidth == pytest.approx(flow / (4 * hosts))


@pytest.mark.parametrize(
    ("nodes", "fabric", "expected"),
    [
        # Half of 64 nodes x 400 GB/s, over 1 or 4; a torus: two faces of 16 links of 50 GB/s.
        (64, {"type": "rail-optimised"}, 32 * 400e9),
        (64, {"type": "rail-optimised", "oversubscription": 4}, 32 * 400e9 / 4),
        (64, {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "oversubscription": 2}, 32 * 400e9 / 2),
        (768, {"type": "fat-tree", "oversubscription": 2, "core_oversubscription": 3}, 384 * 400e9 / 6),
        # Two groups of two: four links of 1/3 of half of what 16 nodes inject.
        (64, {"type": "dragonfly", "hosts_per_group": 16, "taper": 0.5}, 4 * 16 * 400e9 * 0.5 / 3),
        (1, {"type": "rail-optimised"}, 0.0),
    ],
)  # fmt: skip
def test_bisection(nodes: int, fabric: dict[str, Any], expected: float) -> None:
    found = machine(nodes, fabric)
    assert bisection(found) == pytest.approx(expected, rel=1e-6)
    if nodes == 64:  # an independent maximum flow
        halves = [{f"host{host}" for host in some} for some in (range(32), range(32, 64))]
        drawn = graph(found)
        for end, some in zip(("from", "to"), halves, strict=True):
            drawn.add_edges_from((end, host) for host in some)
        assert bisection(found) == pytest.approx(networkx.maximum_flow_value(drawn, "from", "to"), rel=1e-6)


def test_bisection_of_a_torus() -> None:
    box = node(4, 0, links=[{"name": "ici", "type": "ici", "bandwidth": "300 GB/s"}])
    # 6 links of 50 GB/s; the longest dimension is cut twice, 4 x 2 rings across it.
    assert bisection(machine(16, {"type": "torus", "dims": [4, 8, 2]}, box)) == pytest.approx(2 * 8 * 50e9)
    broken = {"type": "torus", "dims": [4, 8, 2], "failed": ["chip12-chip16"]}
    assert bisection(machine(16, broken, box)) == pytest.approx(15 * 50e9)


# --- devices


def kinds(drawn: "networkx.Graph[str]") -> dict[str, int]:
    return dict(sorted(Counter(data["kind"] for _, data in drawn.nodes(data=True)).items()))


def test_devices_of_a_dgx_h100() -> None:
    # DGX H100 user guide: 8 GPUs at 450 GB/s into NVSwitch, PCIe 5 x16 (63 GB/s), 8 ports of 50 GB/s, 4 on each of 2
    # processors.
    drawn = graph(resolve_cluster("dgx-h100", HERE, 64), detail="devices")
    assert kinds(drawn) == {
        "cpu": 128, "gpu": 512, "leaf": 16, "nic": 512, "nvlink": 64, "pcie": 256, "spine": 8,
    }  # fmt: skip
    assert networkx.is_connected(drawn)
    assert drawn["host3/gpu5"]["host3/nvlink0"]["capacity"] == 450e9
    assert drawn["host3/gpu5"]["host3/pcie2"]["capacity"] == pytest.approx(63e9, rel=1e-3)
    # Port 5 hangs on the switch of accelerators 4 and 5, its cable goes to the leaf of rail 5.
    assert {*drawn["host3/nic5"]} == {"host3/pcie2", "leaf5"}
    assert drawn["host3/nic5"]["leaf5"] == {"capacity": 50e9, "cables": 1, "type": "infiniband"}
    assert [drawn.nodes[f"host3/{name}"]["numa"] for name in ("gpu3", "gpu4", "nic3", "nic4")] == [0, 1, 0, 1]
    assert drawn.nodes["host3/gpu5"] == {"kind": "gpu", "host": 3, "numa": 1}
    # All ports of a node together; one port between neighbours that are alone with their own.
    flow = networkx.maximum_flow_value(drawn, "host0/gpu0", "host1/gpu0")
    assert flow == pytest.approx(8 * 50e9)


def test_devices_keep_what_the_network_lost() -> None:
    fabric = {"type": "rail-optimised", "failed": ["host1-leaf3"], "overrides": {"host0-leaf2": "10 GB/s"}}
    drawn = graph(machine(64, fabric), detail="devices")
    assert "leaf3" not in drawn["host1/nic3"] and drawn["host0/nic2"]["leaf2"]["capacity"] == 10e9
    # Two ports of each node on each of four leaves.
    drawn = graph(machine(64, {"type": "leaf-spine", "rails": 4, "overrides": {"host0-leaf2": 1e9}}), detail="devices")
    assert [drawn[f"host0/nic{port}"]["leaf2"]["capacity"] for port in (2, 6)] == [5e8, 5e8]


def test_devices_of_other_machines() -> None:
    # A domain of NVLink stands outside its trays; each accelerator has one link of 900 GB/s into it.
    tray = node(4, 4, links=[{"name": "nvlink", "type": "nvswitch", "bandwidth": "900 GB/s"}])
    drawn = graph(machine(36, {"type": "nvlink-domain", "hosts_per_group": 18}, tray), detail="devices")
    assert kinds(drawn) == {"domain": 2, "gpu": 144, "network": 1, "nic": 144}
    assert drawn["host20/gpu1"]["domain1"]["capacity"] == 900e9
    # That, and the accelerator's own port into the network.
    assert networkx.maximum_flow_value(drawn, "host20/gpu1", "host30/gpu0") == pytest.approx(950e9)
    # MI300X: a mesh of eight, 64 GB/s between any two (AMD: 7 links of 64 GB/s).
    drawn = graph(resolve_cluster("hgx-mi300x", HERE), detail="devices")
    mesh = [data["capacity"] for *_, data in drawn.edges(data=True) if data["type"] == "xgmi"]
    assert len(mesh) == 28 and mesh == pytest.approx([64e9] * 28)
    # A torus joins accelerators of all nodes; their hosts are still there.
    links = [{"name": "ici", "type": "ici", "bandwidth": 3e11}, {"name": "pcie", "type": "pcie", "bandwidth": 16e9}]
    box = node(4, 0, links=links)
    drawn = graph(machine(16, {"type": "torus", "dims": [4, 4, 4]}, box), detail="devices")
    assert kinds(drawn) == {"chip": 64, "cpu": 16} and drawn["chip63"]["host15/cpu0"]["capacity"] == 16e9
    # Links one by one: the cables of a node are those of its ports.
    edges = [{"a": "sw", "b": "host0", "bandwidth": 8e9}, {"a": "host1", "b": "sw", "bandwidth": 4e9}]
    edges += [{"a": "host0", "b": "host1", "bandwidth": 2e9}]
    drawn = graph(machine(2, {"type": "edges", "edges": edges}, node(2, 2)), detail="devices")
    assert (drawn["sw"]["host0/nic1"]["capacity"], drawn["sw"]["host1/nic0"]["capacity"]) == (4e9, 2e9)
    assert drawn["host0/nic1"]["host1/nic1"]["capacity"] == 1e9


def test_pairs_ports_and_processors_as_they_are_written() -> None:
    # DGX-1 with V100: six links of 25 GB/s each; GPU 0 has two to 3 and 4, one to 1 and 2.
    links = [
        {"name": "nvlink", "type": "nvlink-mesh", "bandwidth": "150 GB/s",
         "pairs": {"0-1": 25e9, "0-2": 25e9, "0-3": 50e9, "1-2": 50e9, "1-3": 25e9, "2-3": 25e9}},
        {"name": "pcie", "type": "pcie", "generation": 3, "lanes": 16},
    ]  # fmt: skip
    box = node(4, 2, links=links, numa={"accelerators": [0, 0, 1, 1], "nics": [1, 0], "bandwidth": "20 GB/s"})
    box["nics"]["nearest"] = [[2, 3], [0]]
    drawn = graph(machine(1, {"type": "rail-optimised"}, box), detail="devices")
    assert drawn["host0/gpu0"]["host0/gpu3"]["capacity"] == 50e9
    assert {*drawn["host0/nic0"]} == {"host0/cpu1"} and {*drawn["host0/nic1"]} == {"host0/cpu0"}
    assert drawn["host0/cpu0"]["host0/cpu1"]["capacity"] == 20e9
    view = leaf_spine(machine(4, {"type": "leaf-spine"}, box))
    # No port is nearest to accelerator 1.
    assert view.near.tolist() == [[False, True], [False, False], [True, False], [True, False]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pairs": {"0-8": 1e9}}, "node.links[0].pairs.0-8: should be two different accelerators of 0 to 7"),
        ({"pairs": {"3-3": 1e9}}, "pairs.3-3: should be two"),
        ({"pairs": {"one": 1e9}}, "pairs.one: should be two"),
        ({"pairs": {"0-1": 300e9, "0-2": 200e9}}, "accelerator 0 are 500 GB/s together, but bandwidth is 450 GB/s"),
        ({"type": "nvswitch", "pairs": {"0-1": 1e9}}, "only a link of type nvlink-mesh or xgmi has pairs"),
        (
            {"pairs": {"0-1": 1e9, "1-2": 1e9}},
            "should join the accelerators in groups of 8, but 0 is joined to 2 others",
        ),
        ({"nearest": [[0]]}, "node.nics.nearest: should have an item for each of the 8 ports [got 1]"),
        ({"nearest": [[8]] * 8}, "nics.nearest[0]: accelerators are numbered 0 to 7 [got [8]]"),
        ({"numa": {"accelerators": [0]}}, "node.numa.accelerators: should have a number for each of the 8"),
        ({"numa": {"accelerators": [0] * 8, "nics": [0]}}, "numa.nics: should have a number for each of the 8 nics"),
    ],
)
def test_devices_that_do_not_exist(more: dict[str, Any], words: str) -> None:
    box = node(links=[{"name": "nvlink", "type": "nvlink-mesh", "bandwidth": "450 GB/s"}])
    for key, value in more.items():
        part = box if key == "numa" else box["nics"] if key == "nearest" else box["links"][0]
        part[key] = value
    assert words in faults(64, {"type": "rail-optimised"}, box)


# --- properties


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["leaf-spine", "rail-optimised", "fat-tree", "dragonfly", "torus", "nvlink-domain"]), st.data())
def test_slower_links_never_make_anything_faster(kind: str, data: st.DataObject) -> None:
    tray = node(4, 4, links=[
        {"name": "nvlink", "type": "nvswitch", "bandwidth": 9e11}, {"name": "ici", "type": "ici", "bandwidth": 3e11},
    ])  # fmt: skip
    fabric: dict[str, Any] = {"type": kind} | {
        "leaf-spine": {"hosts_per_leaf": 4, "spines": 4},
        "rail-optimised": {"hosts_per_leaf": 4, "spines": 4},
        "fat-tree": {"hosts_per_leaf": 2, "radix": 8},
        "dragonfly": {"hosts_per_group": 4, "taper": 0.5},
        "torus": {"dims": [4, 4, 4]},
        "nvlink-domain": {"hosts_per_group": 4},
    }[kind]
    before = machine(16, fabric, tray)
    links = [f"{a}-{b}" for a, b in graph(before).edges]
    capacities = {f"{a}-{b}": data["capacity"] for a, b, data in graph(before).edges(data=True)}
    slow = data.draw(st.lists(st.sampled_from(links), min_size=1, max_size=4, unique=True))
    share = data.draw(st.sampled_from([0.01, 0.5, 1.0]))
    broken = data.draw(st.lists(st.sampled_from(links), max_size=2, unique=True))
    described = fabric | {"overrides": {name: capacities[name] * share for name in slow}, "failed": broken}
    try:
        after = machine(16, described, tray)
    except InputError as error:
        assert broken and ("no path" in str(error) or "no capacity" in str(error) or "too much" in str(error))
        return
    for used in (None, 4, 16, 32):
        for old, new in zip(levels(before, used), levels(after, used), strict=True):
            assert 0 < new.bandwidth <= old.bandwidth * (1 + 1e-9)
            if share == 1.0 and not broken:
                assert new.bandwidth == pytest.approx(old.bandwidth)
    assert 0 < bisection(after) <= bisection(before) * (1 + 1e-6)
    for detail in ("nodes", "devices"):
        assert networkx.is_connected(graph(after, detail)) or broken


fabrics = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["leaf-spine", "rail-optimised", "fat-tree"]),
        "hosts_per_leaf": st.sampled_from([2, 3, 4, 8, 32]),
        "oversubscription": st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]),
    }
)


@settings(deadline=None, max_examples=60)
@given(fabrics, st.integers(1, 300), st.data())
def test_levels_are_a_tower_of_whole_units(fabric: dict[str, Any], nodes: int, data: st.DataObject) -> None:
    found = machine(nodes, fabric)
    used = data.draw(st.integers(1, nodes))
    ranks = used * data.draw(st.sampled_from([1, 2, 4, 8])) if nodes > 1 else data.draw(st.integers(1, 8))
    try:
        tower = levels(found, ranks)
    except ValueError:
        return
    units = [1, *(level.ranks for level in tower)]
    assert units[-1] == ranks
    assert all(outer % inner == 0 and outer > inner for inner, outer in itertools.pairwise(units))
    network = [level for level in tower if level.type == "infiniband"]
    for inner, outer in itertools.pairwise(network):
        assert outer.bandwidth <= inner.bandwidth and outer.latency > inner.latency


@settings(deadline=None, max_examples=60)
@given(fabrics, st.integers(2, 300), st.sampled_from([1.0, 1.25, 2.0, 5.0]))
def test_more_oversubscription_never_makes_anything_faster(fabric: dict[str, Any], nodes: int, more: float) -> None:
    one = levels(machine(nodes, fabric))
    other = levels(machine(nodes, fabric | {"oversubscription": fabric["oversubscription"] * more}))
    slow, fast = ({level.name: level.bandwidth for level in tower} for tower in (other, one))
    assert all(slow[name] <= fast[name] * (1 + 1e-12) for name in slow.keys() & fast.keys())
    assert min(slow.values()) <= min(fast.values()) * (1 + 1e-12)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12, unique=True),
    st.randoms(use_true_random=False),
)
def test_more_failures_never_make_anything_faster_and_their_order_does_not_matter(
    pairs: list[tuple[int, int]], random: Any
) -> None:
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 4, "spines": 8, "oversubscription": 2}
    names = [f"leaf{leaf}-spine{spine}" for leaf, spine in pairs]
    before = 50e9 / 2
    for length in range(len(names) + 1):
        failed = names[:length]
        try:
            now = levels(machine(32, fabric | {"failed": failed}))[-1].bandwidth
        except InputError as error:
            assert "too much is broken" in str(error) or "no capacity left" in str(error)
            return
        assert now <= before
        random.shuffle(failed)
        assert levels(machine(32, fabric | {"failed": failed}))[-1].bandwidth == now
        before = now
