"""Bounds of collectives against a public solver, brute force over all cuts, and closed forms."""

import csv
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.catalogue import resolve_cluster
from hardware.topology import Level, graph
from perfmodel.collectives import CollectiveModel, LinkEfficiency, all_gather, all_reduce, all_to_all, broadcast, group
from perfmodel.network_bounds import all_gather_bound, all_to_all_bound, all_to_all_cut_bound, directed, tower_bound

ORACLE = Path(__file__).parent / "oracles" / "optimal_allgather_oracle.csv"
Network = tuple["nx.DiGraph[Any]", list[str]]


def joined(*edges: tuple[str, str, float]) -> "nx.DiGraph[Any]":
    graph: nx.Graph[Any] = nx.Graph()
    for one, other, capacity in edges:
        graph.add_edge(one, other, capacity=capacity)
    return directed(graph)


def boxes(count: int, inside: float, outside: float, switch_of: Any) -> Network:
    """Boxes of eight accelerators on a switch, each with an adapter to a switch of the network."""
    edges, ranks = [], []
    for box, place in itertools.product(range(count), range(8)):
        name = f"gpu{box}.{place}"
        ranks.append(name)
        edges.append((name, f"nvswitch{box}", inside))
        if count > 1:
            edges.append((name, switch_of(place), outside))
    return joined(*edges), ranks


def mi250(count: int) -> Network:
    """Boxes of 16 dies at 50 GB/s a link: four between the two of a package, three to others.

    The oracle's adjacency is not published with it; its value is that of the cut around a package, which any links
    between packages have that are nowhere narrower.
    """
    edges, ranks = [], []
    for box, die in itertools.product(range(count), range(16)):
        ranks.append(f"die{box}.{die}")
        if die % 2 == 0:
            edges.append((f"die{box}.{die}", f"die{box}.{die + 1}", 200.0))
        for step in (2, 6):
            edges.append((f"die{box}.{die}", f"die{box}.{(die + step) % 16}", 50.0 if step == 2 else 25.0))
        if count > 1:
            edges.append((f"die{box}.{die}", "network", 16.0))
    return joined(*edges), ranks


def leaf_spine(spines: int) -> Network:
    ranks = [f"host{host}" for host in range(16)]
    edges = [(name, f"leaf{host // 4}", 50.0) for host, name in enumerate(ranks)]
    edges += [(f"leaf{leaf}", f"spine{spine}", 50.0) for leaf in range(4) for spine in range(spines)]
    return joined(*edges), ranks


def grid(*dims: int) -> Network:
    edges, ranks = [], []
    for place in itertools.product(*map(range, dims)):
        ranks.append(str(place))
        for axis, size in enumerate(dims):
            following = tuple((at + (i == axis)) % size for i, (at, size) in enumerate(zip(place, dims, strict=True)))
            if size > 1:
                edges.append((str(place), str(following), 50.0))
    return joined(*edges), ranks


NETWORKS: dict[str, Network] = {
    "a100_dgx x1": boxes(1, 300.0, 0.0, None),
    "a100_dgx x2": boxes(2, 300.0, 25.0, lambda place: f"ib{place % 2}"),
    "a100_dgx x4": boxes(4, 300.0, 25.0, lambda place: f"ib{place % 2}"),
    "mi250 x1": mi250(1),
    "mi250 x2": mi250(2),
    "hgx_h100 x1": boxes(1, 450.0, 0.0, None),
    "hgx_h100 x2": boxes(2, 450.0, 50.0, lambda place: f"rail{place}"),
    "hgx_h100 x4: 8 rails": boxes(4, 450.0, 50.0, lambda place: f"rail{place}"),
    "hgx_h100 x4: single flat": boxes(4, 450.0, 50.0, lambda place: "ib"),
    "leaf-spine 4 leaves x 4 hosts, 50 GB/s, 4": leaf_spine(4),
    "leaf-spine 4 leaves x 4 hosts, 50 GB/s, 2": leaf_spine(2),
    "leaf-spine 4 leaves x 4 hosts, 50 GB/s, 1": leaf_spine(1),
    "bidirectional ring of 8": grid(8),
    "2D torus 4x4": grid(4, 4),
}


def oracle() -> list[dict[str, str]]:
    with ORACLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", oracle(), ids=lambda row: row["topology"].split(":")[0].split(",")[0])
def test_the_optimal_gather_is_the_solver_s(row: dict[str, str]) -> None:
    (name,) = (name for name in NETWORKS if row["topology"].startswith(name))
    network, ranks = NETWORKS[name]
    assert len(ranks) == int(row["compute_nodes"])
    found = all_gather_bound(network, ranks, 1e3)
    # 1e-6 of a GB/s, as the oracle rounds
    assert found.algorithm_bytes_per_s == pytest.approx(float(row["optimal_algbw_GBps"]), rel=1e-6)
    held = len(found.cut & set(ranks))
    assert 0 < held < len(ranks)
    assert found.seconds == pytest.approx(1e3 / len(ranks) * held / found.exit_bytes_per_s, rel=1e-12)


# --- brute force


@st.composite
def networks(draw: st.DrawFn) -> Network:
    ranks = [f"rank{i}" for i in range(draw(st.integers(2, 5)))]
    nodes = ranks + [f"switch{i}" for i in range(draw(st.integers(0, 2)))]
    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from(nodes)
    for one, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):  # a ring, so that all reach all
        graph.add_edge(one, other, capacity=draw(st.integers(1, 9)))
    for one, other in itertools.permutations(nodes, 2):
        if draw(st.booleans()):
            graph.add_edge(one, other, capacity=draw(st.sampled_from([1, 2, 5, 0.5, 1 / 3])))
    return graph, ranks


def cuts(network: "nx.DiGraph[Any]", ranks: list[str]) -> Any:
    for size in range(1, len(network)):
        for side in itertools.combinations(network, size):
            held = len(set(side) & set(ranks))
            if 0 < held < len(ranks):
                leaving = [Fraction(c) for a, b, c in network.edges(data="capacity") if a in side and b not in side]
                yield frozenset(side), held, sum(leaving)


@settings(max_examples=60, deadline=None)
@given(networks())
def test_the_bound_is_the_worst_of_all_cuts(found: Network) -> None:
    network, ranks = found
    worst = max(float(held / leaving) for _, held, leaving in cuts(network, ranks))
    bound = all_gather_bound(network, ranks, 12.0)
    assert bound.seconds == pytest.approx(12.0 / len(ranks) * worst, rel=1e-12)
    assert bound.cut in {side for side, _, _ in cuts(network, ranks)}


@settings(max_examples=40, deadline=None)
@given(networks())
def test_no_cut_allows_an_all_to_all_faster_than_its_flows(found: Network) -> None:
    network, ranks = found
    n = len(ranks)
    worst = max(float(held * (n - held) / n / leaving) for _, held, leaving in cuts(network, ranks))
    some, exact = all_to_all_cut_bound(network, ranks, 12.0), all_to_all_bound(network, ranks, 12.0)
    assert some.seconds <= 12.0 * worst * (1 + 1e-12)
    assert exact >= 12.0 * worst * (1 - 1e-7)
    held = len(some.cut & set(ranks))
    assert some.seconds == pytest.approx(12.0 * held * (n - held) / n / some.exit_bytes_per_s, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(networks(), st.floats(1.0, 4.0), st.data())
def test_a_faster_link_is_never_slower(found: Network, factor: float, data: st.DataObject) -> None:
    network, ranks = found
    wide = network.copy()
    one, other = data.draw(st.sampled_from(sorted(network.edges)))
    wide[one][other]["capacity"] = network[one][other]["capacity"] * factor
    assert all_gather_bound(wide, ranks, 1.0).seconds <= all_gather_bound(network, ranks, 1.0).seconds * (1 + 1e-12)
    assert all_to_all_bound(wide, ranks, 1.0) <= all_to_all_bound(network, ranks, 1.0) * (1 + 1e-6)


# --- closed forms


def test_all_to_all_by_hand() -> None:
    # a switch of 8 at 300: each rank sends 7/8 S; a leaf-spine of one spine: 4 x 12/16 S leave a leaf over 50
    for name, seconds in (
        ("a100_dgx x1", 7 / 8 / 300),
        ("leaf-spine 4 leaves x 4 hosts, 50 GB/s, 1", 4 * 12 / 16 / 50),
    ):
        network, ranks = NETWORKS[name]
        assert all_to_all_bound(network, ranks, 1.0) == pytest.approx(seconds, rel=1e-7)
        assert all_to_all_cut_bound(network, ranks, 1.0).seconds == pytest.approx(seconds, rel=1e-12)
    # a ring of 8, both ways: half of it, 4 x 4/8 S, leaves over two links of 50; paths of all lengths fill them evenly
    network, ranks = NETWORKS["bidirectional ring of 8"]
    assert all_to_all_bound(network, ranks, 1.0) == pytest.approx(4 * 4 / 8 / 100, rel=1e-7)


def test_oversubscription_binds_an_exchange_but_not_a_gather() -> None:
    gathers, exchanges = [], []
    for spines in (4, 2, 1):
        network, ranks = NETWORKS[f"leaf-spine 4 leaves x 4 hosts, 50 GB/s, {spines}"]
        gathers.append(all_gather_bound(network, ranks, 1.0).seconds)
        exchanges.append(all_to_all_bound(network, ranks, 1.0))
    assert gathers[0] == gathers[1] == gathers[2]
    assert exchanges[0] < exchanges[1] < exchanges[2]
    network, ranks = NETWORKS["leaf-spine 4 leaves x 4 hosts, 50 GB/s, 1"]
    assert len(all_to_all_cut_bound(network, ranks, 1.0).cut & set(ranks)) in (4, 12)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_levels_of_boxes_have_the_bound_of_their_graph(count: int) -> None:
    network, ranks = boxes(count, 450.0, 50.0, lambda place: f"rail{place}")
    levels = (Level("node", 8, 450.0, 0.0, "nvswitch"), Level("leaf", 8 * count, 50.0, 0.0, "infiniband"))[
        : min(count, 2)
    ]
    found = group(levels, 8 * count, 1)
    assert tower_bound("all_gather", found, 1.0) == pytest.approx(all_gather_bound(network, ranks, 1.0).seconds)
    exact = all_to_all_bound(network, ranks, 1.0)
    assert float(tower_bound("all_to_all", found, 1.0)) <= exact * (1 + 1e-7)


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 2, 8]), st.floats(1e3, 1e9))
def test_no_prediction_beats_the_bound(nodes: int, leaves: int, stride: int, size: float) -> None:
    levels = (
        Level("node", 8, 450e9, 1e-6, "nvswitch"),
        Level("leaf", 8 * nodes, 50e9, 1e-6, "infiniband"),
        Level("spine", 8 * nodes * leaves, 25e9, 1e-6, "infiniband"),
    )
    model = CollectiveModel(0.0, dict.fromkeys(("nvswitch", "infiniband"), LinkEfficiency(0.0, 1.0)))
    ranks = group(levels, 8 * nodes * leaves // stride, stride)
    operations = {"all_gather": all_gather, "all_reduce": all_reduce, "all_to_all": all_to_all, "broadcast": broadcast}
    for name, function in operations.items():
        assert float(tower_bound(name, ranks, size)) <= float(function(ranks, size, model)) * (1 + 1e-9), name


def test_arrays_are_the_elements_one_by_one() -> None:
    levels = (Level("node", 8, 450e9, 1e-6, "nvswitch"), Level("leaf", 64, 50e9, 1e-6, "infiniband"))
    sizes, strides = np.array([1, 2, 16, 8]), np.array([1, 4, 2, 8])
    together = tower_bound("all_gather", group(levels, sizes, strides), 1e9)
    alone = [tower_bound("all_gather", group(levels, *pair), 1e9) for pair in zip(sizes, strides, strict=True)]
    assert together.tolist() == [float(value) for value in alone]
    assert together[0] == 0


def test_the_devices_of_a_described_machine() -> None:
    # A DGX H100's accelerator takes in 450 GB/s over NVSwitch and, through all adapters, what PCI Express 5 x16
    # carries: 32 GT/s x 16 x 128/130 / 8. Cables without a limit (a port and its adapter) bind nothing.
    described = {"name": "c", "node": "dgx-h100", "nodes": 4, "fabric": {"type": "rail-optimised"}}
    network = directed(graph(resolve_cluster(described, Path()), detail="devices"))
    ranks = [name for name in network if "/gpu" in str(name)]
    found = all_gather_bound(network, ranks, 1e9)
    assert found.algorithm_bytes_per_s == pytest.approx(32 / 31 * (450e9 + 32e9 * 16 / 8 * 128 / 130), rel=1e-9)


# --- bad input


def test_networks_that_cut_a_rank_off() -> None:
    network = joined(("a", "b", 1.0))
    network.add_node("c")
    for function in (all_gather_bound, all_to_all_cut_bound):
        with pytest.raises(ValueError, match="no path out of"):
            function(network, ["a", "b", "c"], 1.0)
    with pytest.raises(ValueError, match="cannot reach"):
        all_to_all_bound(network, ["a", "b", "c"], 1.0)
    with pytest.raises(ValueError, match="at least two"):
        all_gather_bound(network, ["a"], 1.0)
    with pytest.raises(ValueError, match="no node of the network: d"):
        all_gather_bound(network, ["a", "d"], 1.0)
    network.add_edge("b", "c")
    with pytest.raises(ValueError, match="from b to c has no capacity"):
        all_gather_bound(network, ["a", "b"], 1.0)
