"""Plans of routing: every one is added up again from its JSON alone, and held against what arithmetic says.

The checker shares nothing with the solver: it knows the size of the network from the test and reads the answer.
"""

import csv
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from solvers.result import Result
from solvers.routing import plan, predict
from solvers.routing_scenario import load_routing, routing_schema

EXAMPLE = Path(__file__).parent.parent / "examples" / "routing-16x8.yaml"
GB = 1e9


def ask(scenario: dict[str, Any], folder: Path = Path(), **options: Any) -> dict[str, Any]:
    return plan(load_routing(read_yaml(yaml.safe_dump(scenario), "scenario.yaml"), folder), **options).to_dict()


def again(answer: dict[str, Any]) -> dict[str, Any]:
    scenario = {**answer["scenario"], "plan": answer["plan"]}
    return predict(load_routing(read_yaml(json.dumps(scenario), "plan.json"), Path())).to_dict()


def faults(scenario: dict[str, Any], folder: Path = Path()) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_routing(read_yaml(yaml.safe_dump(scenario, sort_keys=False), "scenario.yaml"), folder)
    return [str(fault) for fault in caught.value.faults]


def fabric(leaves: int, spines: int, hosts: int, **more: Any) -> dict[str, Any]:
    """A network whose nodes have one adapter of 12.5 GB/s, like its cables."""
    return {
        "kind": "routing",
        "fabric": {"type": "leaf-spine", "leaves": leaves, "spines": spines, "hosts_per_leaf": hosts,
                   "link": "100 Gbit/s", **more},
        "nodes": leaves * hosts,
    }  # fmt: skip


def random_flows(seed: int, nodes: int, count: int, sizes: tuple[float, ...]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        a, b = (int(number) for number in rng.choice(nodes, 2, replace=False))
        found.append({"src": f"host{a}", "dst": f"host{b}", "bytes": float(rng.choice(sizes))})
    return found


class Checker:
    """Adds a plan up on a network of leaves and spines with one adapter a node."""

    def __init__(self, spines: int, hosts: int, rate: float, failed: tuple[tuple[int, int], ...] = ()) -> None:
        self.spines, self.hosts, self.rate, self.failed = spines, hosts, rate, failed

    def alive(self, i: int, j: int) -> list[int]:
        return [s for s in range(self.spines) if (i, s) not in self.failed and (j, s) not in self.failed]

    def time_of(self, flows: list[dict[str, Any]], paths: list[Any]) -> tuple[float, float]:
        """Time of the slowest cable and of the slowest adapter [s]."""
        assert len(flows) == len(paths)
        links: dict[tuple[Any, ...], float] = defaultdict(float)
        adapters: dict[tuple[str, str], float] = defaultdict(float)
        for flow, entry in zip(flows, paths, strict=True):
            i, j = (int(flow[end][4:]) // self.hosts for end in ("src", "dst"))
            parts = {entry: 1.0} if isinstance(entry, str) else entry
            assert sum(parts.values()) == pytest.approx(1), entry  # every byte is sent once
            adapters["out", flow["src"]] += flow["bytes"]
            adapters["into", flow["dst"]] += flow["bytes"]
            for name, share in parts.items():
                if i == j:
                    assert name == f"leaf{i}"
                    continue
                spines = self.alive(i, j) if name == "spray" else [int(name.removeprefix("spine"))]
                for spine in spines:
                    assert spine in self.alive(i, j)
                    links["up", i, spine] += flow["bytes"] * share / len(spines)
                    links["down", j, spine] += flow["bytes"] * share / len(spines)
        return max(links.values(), default=0.0) / self.rate, max(adapters.values()) / self.rate

    def ideal(self, flows: list[dict[str, Any]]) -> float:
        """What a leaf sends or receives over all its cables that are whole: no routing is faster [s]."""
        sent: dict[tuple[str, int], float] = defaultdict(float)
        for flow in flows:
            i, j = (int(flow[end][4:]) // self.hosts for end in ("src", "dst"))
            if i != j:
                sent["up", i] += flow["bytes"]
                sent["down", j] += flow["bytes"]
        whole = {leaf: self.spines - sum(broken == leaf for broken, _ in self.failed) for _, leaf in sent}
        return max((total / whole[leaf] / self.rate for (_, leaf), total in sent.items()), default=0.0)

    def check(self, answer: dict[str, Any], flows: list[dict[str, Any]]) -> float:
        network_s, adapter_s = self.time_of(flows, answer["plan"]["paths"])
        prediction = answer["prediction"]
        assert prediction["network_time_s"] == pytest.approx(network_s, rel=1e-9)
        assert prediction["adapter_time_s"] == pytest.approx(adapter_s, rel=1e-9)
        time_s = max(network_s, adapter_s)
        assert prediction["completion_time_s"] == answer["objective"]["value"] == pytest.approx(time_s, rel=1e-9)
        assert answer["breakdown"]["seconds"] == pytest.approx(time_s, rel=1e-9)
        assert max(self.ideal(flows), adapter_s) <= time_s * (1 + 1e-9)
        assert answer["best_bound"] <= time_s * (1 + 1e-9)
        split = sum(
            len(entry) > 1 if isinstance(entry, dict) else entry == "spray" for entry in answer["plan"]["paths"]
        )
        assert answer["plan"]["split_flows"] == split
        return time_s


# --- equal flows, equal links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("split", ["none", "fewest", "spray"])
def test_equal_flows_are_routed_at_best(seed: int, split: str) -> None:
    flows = random_flows(seed, 16, 60, (1 * GB,))
    answer = ask({**fabric(4, 3, 4), "flows": flows, "search": {"split": [split]}})
    checker = Checker(3, 4, 12.5 * GB)
    time_s = checker.check(answer, flows)
    assert answer["status"] == "optimal"
    adapter_s = answer["prediction"]["adapter_time_s"]
    ideal = checker.ideal(flows)
    one = 1 / 12.5
    least = -(-round(ideal * 3 / one) // 3) * one if split == "none" else ideal
    assert time_s == pytest.approx(max(least, adapter_s))
    assert again(answer)["prediction"] == pytest.approx(answer["prediction"])


@pytest.mark.parametrize("seed", range(6))
def test_of_routings_as_fast_the_one_with_the_fewest_splits_is_chosen(seed: int) -> None:
    flows = random_flows(seed, 16, 60, (1 * GB,))
    base = {**fabric(4, 3, 4), "flows": flows}
    every = ask(base)
    whole, few = (ask({**base, "search": {"split": [split]}}) for split in ("none", "fewest"))
    assert every["objective"]["value"] == pytest.approx(few["objective"]["value"])
    assert every["plan"]["split_flows"] == few["plan"]["split_flows"] == few["plan"].get("split_flows_bound", 0)
    if whole["objective"]["value"] <= few["objective"]["value"] * (1 + 1e-9):
        assert few["plan"]["split_flows"] == 0


def test_hashing_is_exact_where_each_leaf_sends_to_one() -> None:
    # eight flows of leaf 0 onto four spines, alone in the network: E[max] of 8 balls in 4 bins
    flows = [{"src": f"host{n}", "dst": f"host{8 + n}", "bytes": 1 * GB} for n in range(8)]
    answer = ask({**fabric(2, 4, 8), "flows": flows})
    assert answer["provenance"]["ecmp"] == "exact"
    worst = [np.bincount([spine // 4**k % 4 for k in range(8)]).max() for spine in range(4**8)]
    assert answer["prediction"]["ecmp_completion_time_s"] == pytest.approx(np.mean(worst) / 12.5)
    assert answer["prediction"]["ecmp_completion_time_p99_s"] == pytest.approx(np.quantile(worst, 0.99) / 12.5)
    assert answer["prediction"]["completion_time_s"] == pytest.approx(2 / 12.5)
    assert answer["prediction"]["gain_over_ecmp"] == pytest.approx(np.mean(worst) / 2)


# --- broken links, unequal flows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_broken_link_is_routed_around(seed: int) -> None:
    flows = random_flows(seed, 16, 60, (1 * GB,))
    search = {"failed_links": ["leaf0-spine1", "spine2-leaf3"]}
    answer = ask({**fabric(4, 4, 4), "flows": flows, "search": search})
    checker = Checker(4, 4, 12.5 * GB, ((0, 1), (3, 2)))
    checker.check(answer, flows)
    assert answer["status"] == "optimal"
    for split in ("none", "spray"):
        one = ask({**fabric(4, 4, 4), "flows": flows, "search": {**search, "split": [split]}})
        assert checker.check(one, flows) >= answer["objective"]["value"] * (1 - 1e-9)
        assert again(one)["objective"]["value"] == pytest.approx(one["objective"]["value"])
    assert answer["prediction"]["spray_completion_time_s"] >= answer["objective"]["value"] * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("split", ["none", "fewest"])
def test_unequal_flows_come_with_a_true_bound(seed: int, split: str) -> None:
    flows = random_flows(seed, 12, 30, (1 * GB, 2 * GB, 5 * GB))
    answer = ask({**fabric(3, 3, 4), "flows": flows, "search": {"split": [split]}})
    checker = Checker(3, 4, 12.5 * GB)
    time_s = checker.check(answer, flows)
    adapter_s = answer["prediction"]["adapter_time_s"]
    assert answer["status"] in ("optimal", "time_limit", "feasible")
    assert answer["best_bound"] >= max(checker.ideal(flows), adapter_s) * (1 - 1e-9)
    if split == "fewest":
        assert time_s == pytest.approx(max(checker.ideal(flows), adapter_s))


def test_a_time_limit_leaves_an_answer_with_its_bound() -> None:
    flows = random_flows(3, 24, 60, tuple(float(size) * GB for size in (3, 4, 5, 7, 11)))
    scenario = {**fabric(4, 5, 6), "flows": flows, "search": {"split": ["none"]}}
    hurried = ask(scenario, time_limit_s=0.05)
    Checker(5, 6, 12.5 * GB).check(hurried, flows)
    assert hurried["status"] in ("time_limit", "optimal", "feasible")
    assert hurried["best_bound"] <= hurried["objective"]["value"] * (1 + 1e-9)


def test_slow_spines_take_less() -> None:
    flows = [{"src": f"host{n}", "dst": f"host{6 + n}", "bytes": 1 * GB} for n in range(6)]
    overrides = {f"leaf{leaf}-spine0": "50 Gbit/s" for leaf in range(2)}
    answer = ask({**fabric(2, 3, 6, overrides=overrides), "flows": flows, "search": {"split": ["none"]}})
    # rates 1/2, 1, 1: six flows as 1, 2, 3 take 3 units, as 2, 2, 2 take 4; no better than 3
    assert answer["status"] == "optimal"
    assert answer["prediction"]["network_time_s"] == pytest.approx(3 / 12.5)
    divided = ask({**fabric(2, 3, 6, overrides=overrides), "flows": flows, "search": {"split": ["fewest"]}})
    assert divided["prediction"]["network_time_s"] == pytest.approx(6 / 2.5 / 12.5)


# --- prices --------------------------------------------------------------------------------------------------------


def test_what_binds_is_named_and_priced() -> None:
    # leaf 0 alone sends 8 GB over two cables, to several leaves
    flows = [{"src": f"host{n}", "dst": f"host{8 + 2 * n}", "bytes": 1 * GB} for n in range(8)]
    base = {**fabric(8, 2, 8), "flows": flows, "search": {"split": ["spray"]}}
    answer = ask(base)
    first = answer["binding"][0]
    assert first["constraint"] == "uplinks of leaf0"
    assert first["slack"] == 0
    faster = {f"leaf0-spine{s}": "101 Gbit/s" for s in range(2)}
    gain = (
        ask({**base, "fabric": {**base["fabric"], "overrides": faster}})["objective"]["value"]
        - answer["objective"]["value"]
    )
    assert first["shadow_price"] * 0.125 == pytest.approx(gain, rel=0.02)  # 1 Gbit/s is 0.125 GB/s


def test_adapters_that_bind_are_named() -> None:
    flows = [{"src": "host0", "dst": f"host{4 + n}", "bytes": 1 * GB} for n in range(3)]
    answer = ask({**fabric(2, 4, 4), "flows": flows})
    assert answer["binding"][0]["constraint"] == "out of host0/nic0"
    assert answer["objective"]["value"] == pytest.approx(3 / 12.5)
    assert answer["prediction"]["max_link_utilisation"] == pytest.approx(1 / 3)
    assert answer["plan"]["split_flows"] == 0


# --- adapters ------------------------------------------------------------------------------------------------------


def test_a_busy_accelerator_borrows_adapters() -> None:
    flows = [{"src": "host0/gpu0", "dst": "host16/gpu5", "bytes": 8 * GB}]
    base = {"kind": "routing", "cluster": "superpod-16x8", "flows": flows}
    own = ask({**base, "search": {"nics": ["own"]}})
    assert own["objective"]["value"] == pytest.approx(8 / 50)  # 400 Gbit/s
    free = ask(base)
    assert free["plan"]["nics"] == "any"
    assert free["objective"]["value"] == pytest.approx(8 / 400)  # eight of them; NVLink has 450 GB/s
    for shares in free["plan"]["adapters"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert max(shares.values()) * 8 * GB / 50e9 <= free["objective"]["value"] * (1 + 1e-6)
    assert again(free)["objective"]["value"] == pytest.approx(free["objective"]["value"])
    whole = ask({**base, "search": {"split": ["none"]}})
    assert whole["plan"]["nics"] == "own"  # a flow over several adapters is split


def test_a_broken_adapter_is_a_cut_unless_others_may_be_borrowed() -> None:
    flows = [{"src": "host0/gpu0", "dst": "host16/gpu5", "bytes": 7 * GB}]
    fabric = {"type": "leaf-spine", "hosts_per_leaf": 16, "spines": 8, "link": "400 Gbit/s", "rails": 8}
    cluster = {"kind": "cluster", "name": "rails", "node": "dgx-h100", "nodes": 32, "fabric": fabric}
    search = {"failed_links": ["host0-leaf0"]}
    base = {"kind": "routing", "cluster": cluster, "flows": flows}
    own = ask({**base, "search": {**search, "nics": ["own"]}})
    assert own["status"] == "infeasible"
    assert own["relaxation"] == [{"constraint": "link host0-leaf0", "now": 0.0, "needed": 50.0, "unit": "GB/s"}]
    free = ask({**base, "search": search})
    assert free["status"] == "optimal"
    assert free["objective"]["value"] == pytest.approx(7 / 350, rel=1e-3)  # seven adapters are left


def test_on_rails_a_flow_changes_its_rail_inside_the_node() -> None:
    flows = [{"src": "host0/gpu0", "dst": "host1/gpu5", "bytes": 8 * GB}]
    base = {"kind": "routing", "cluster": "superpod-h100", "nodes": 2, "flows": flows}
    own = ask({**base, "search": {"nics": ["own"]}})
    assert own["objective"]["value"] == pytest.approx(8 / 50)
    free = ask(base)
    assert free["objective"]["value"] == pytest.approx(8 / 400, rel=1e-3)
    assert again(free)["objective"]["value"] == pytest.approx(free["objective"]["value"])


# --- any graph -----------------------------------------------------------------------------------------------------


def edges(rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    hosts = {name for row in rows for name in row[:2] if name.startswith("host")}
    listed = [{"a": a, "b": b, "bandwidth": rate} for a, b, rate in rows]
    return {"kind": "routing", "fabric": {"type": "edges", "edges": listed}, "nodes": len(hosts)}


RING = [(f"host{n}", f"host{(n + 1) % 4}", "10 GB/s") for n in range(4)]


def test_on_a_ring_half_goes_each_way() -> None:
    # a flow to the far side has two ways of 10 GB/s; one to the neighbour a short and a long one
    far = ask({**edges(RING), "flows": [{"src": "host0", "dst": "host2", "bytes": 10 * GB}]})
    assert far["objective"]["value"] == pytest.approx(0.5)
    assert far["status"] == "optimal"
    assert far["plan"]["paths"] == [{"host0>host1>host2": pytest.approx(0.5), "host0>host3>host2": pytest.approx(0.5)}]
    whole = ask(
        {**edges(RING), "flows": [{"src": "host0", "dst": "host2", "bytes": 10 * GB}], "search": {"split": ["none"]}}
    )
    assert whole["objective"]["value"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(6))
def test_any_graph_is_added_up_again_and_is_as_fast_as_an_edge_program(seed: int) -> None:
    from scipy.optimize import linprog

    rng = np.random.default_rng(seed)
    rows = [(f"host{n}", f"sw{n % 3}", "20 GB/s") for n in range(6)]
    rows += [(f"sw{a}", f"sw{b}", f"{rng.integers(2, 9)} GB/s") for a in range(4) for b in range(a)]
    flows = random_flows(seed, 6, 8, (1 * GB, 3 * GB))
    answer = ask({**edges(rows), "flows": flows, "search": {"split": ["fewest", "spray"]}})
    rate = {}
    for a, b, text in rows:
        rate[a, b] = rate[b, a] = float(text.split()[0]) * GB
    load: dict[tuple[str, str], float] = defaultdict(float)
    for flow, entry in zip(flows, answer["plan"]["paths"], strict=True):
        parts = {entry: 1.0} if isinstance(entry, str) else entry
        assert sum(parts.values()) == pytest.approx(1)
        for name, share in parts.items():
            steps = name.split(">")
            assert (steps[0], steps[-1]) == (flow["src"], flow["dst"])
            for step in itertools.pairwise(steps):
                load[step] += flow["bytes"] * share
    time_s = max(total / rate[link] for link, total in load.items())
    assert answer["objective"]["value"] == pytest.approx(time_s, rel=1e-9)
    # least time by flows on edges, one commodity for every flow
    nodes = sorted({name for link in rate for name in link})
    arcs = list(rate)
    count = len(flows) * len(arcs)
    balance, supply = [], []
    for number, flow in enumerate(flows):
        for node in nodes:
            row = np.zeros(count + 1)
            for place, (a, b) in enumerate(arcs):
                row[number * len(arcs) + place] = (a == node) - (b == node)
            balance.append(row)
            supply.append((flow["bytes"] / GB) * ((flow["src"] == node) - (flow["dst"] == node)))
    limit = []
    for place, link in enumerate(arcs):
        row = np.zeros(count + 1)
        row[place : -1 : len(arcs)] = 1
        row[-1] = -rate[link] / GB
        limit.append(row)
    least = linprog(
        np.append(np.zeros(count), 1), np.array(limit), np.zeros(len(limit)), np.array(balance), np.array(supply)
    )
    assert time_s == pytest.approx(least.fun, rel=1e-5)
    assert answer["best_bound"] <= least.fun * (1 + 1e-9)
    assert again(answer)["objective"]["value"] == pytest.approx(time_s)


def test_three_levels_of_switches_are_a_graph() -> None:
    # two pods of two leaves below two spines each; both cables of a spine lead to the core of its place
    fabric = {"type": "fat-tree", "hosts_per_leaf": 2, "leaves": 4, "spines": 4, "radix": 4}
    node = {"kind": "node", "name": "one", "accelerators": {"type": "h100-80gb-sxm", "count": 1},
            "nics": {"count": 1, "bandwidth": "100 Gbit/s"}}  # fmt: skip
    cluster = {"kind": "cluster", "name": "pods", "node": node, "nodes": 8, "fabric": fabric}
    flows = [{"src": f"host{n}", "dst": f"host{4 + n}", "bytes": 1 * GB} for n in range(4)]
    base = {"kind": "routing", "cluster": cluster, "flows": flows, "search": {"split": ["none"]}}
    answer = ask(base)
    assert answer["status"] == "optimal"
    assert answer["objective"]["value"] == pytest.approx(1 / 12.5)
    assert all(path.count(">") == 6 for path in answer["plan"]["paths"])
    used = [
        step for path in answer["plan"]["paths"] for step in zip(path.split(">"), path.split(">")[1:], strict=False)
    ]
    assert all(used.count(step) <= (2 if "core" in "".join(step) else 1) for step in used)
    assert answer["prediction"]["ecmp_completion_time_s"] > answer["objective"]["value"]


# --- cut apart -----------------------------------------------------------------------------------------------------


def test_a_cut_is_named_with_the_fewest_repairs() -> None:
    flows = [{"src": "host0", "dst": "host2", "bytes": 1 * GB}]
    broken = ["leaf0-spine0", "spine1-leaf1", "leaf0-spine2"]
    answer = ask({**fabric(3, 3, 2), "flows": flows, "search": {"failed_links": [*broken, "leaf1-spine2"]}})
    assert answer["status"] == "infeasible"
    assert answer["plan"] is None
    reason = answer["why_not"][0]["reason"]
    assert "leaf0 and leaf1" in reason
    # spine 2 is lost twice over; one of the two is enough for the cut
    assert "leaf0-spine0, spine1-leaf1, leaf1-spine2" in reason
    (repair,) = answer["relaxation"]
    assert repair == {"constraint": "link leaf0-spine0", "now": 0.0, "needed": 12.5, "unit": "GB/s"}
    # the cut does not matter to flows that do not cross it
    other = ask(
        {
            **fabric(3, 3, 2),
            "flows": [{"src": "host0", "dst": "host4", "bytes": 1 * GB}],
            "search": {"failed_links": broken},
        }
    )
    assert other["status"] == "optimal"


def test_a_graph_can_be_cut_too() -> None:
    flows = [{"src": "host0", "dst": "host2", "bytes": 1 * GB}]
    answer = ask({**edges(RING), "flows": flows, "search": {"failed_links": ["host0-host1", "host3-host2"]}})
    assert answer["status"] == "infeasible"
    assert "host0" in answer["why_not"][0]["reason"]
    assert len(answer["relaxation"]) == 1


# --- input ---------------------------------------------------------------------------------------------------------


def test_flows_are_read_from_a_csv(tmp_path: Path) -> None:
    (tmp_path / "flows.csv").write_text("src,dst,bytes,job\nhost0,host4,1 GiB,a\nhost1,host5,2000000000,b\n")
    answer = ask({**fabric(2, 2, 4), "flows": "flows.csv"}, tmp_path)
    assert answer["scenario"]["flows"][0] == {"src": "host0", "dst": "host4", "bytes": 2.0**30, "job": "a"}
    assert answer["prediction"]["job_completion_time_s"] == {
        "a": pytest.approx(2**30 / 12.5e9), "b": pytest.approx(2 / 12.5),
    }  # fmt: skip


def test_every_fault_of_a_csv_is_placed(tmp_path: Path) -> None:
    lines = [
        "src,dst,bytes",
        "host0,host1,-5",
        "host0,host99,1 GB",
        "host0,host0,1 GB",
        "host0,host1,8 Gbit",
        "host0,host1",
    ]
    (tmp_path / "flows.csv").write_text("\n".join([*lines, "host0/nic7,host1,1 GB"]))
    found = faults({**fabric(2, 2, 4), "flows": "flows.csv"}, tmp_path)
    name = str(tmp_path / "flows.csv")
    assert len(found) == 6
    assert any(text.startswith(f"{name}:2:13") and "bytes" in text for text in found)
    assert any(text.startswith(f"{name}:3:7") and "host0 to host7" in text for text in found)
    assert any(text.startswith(f"{name}:4:") and "to itself" in text for text in found)
    assert any(text.startswith(f"{name}:5:") and "is not a size in bytes" in text for text in found)
    assert any(text.startswith(f"{name}:6:1") and "3 cells" in text for text in found)
    assert any(text.startswith(f"{name}:7:") and "has 1 nics" in text for text in found)


def test_other_faults_are_placed() -> None:
    base = {**fabric(2, 2, 4), "flows": [{"src": "host0", "dst": "host4", "bytes": "8 Gbit"}]}
    assert any("flows[0].bytes" in text and "bytes" in text for text in faults(base))
    flows = [{"src": "host0", "dst": "host4", "bytes": 1}]
    found = faults({**fabric(2, 2, 4), "flows": flows, "search": {"failed_links": ["leaf0-spine7"], "split": ["some"]}})
    assert any("split" in text for text in found)
    assert any(
        "leaf0-spine7" in text
        for text in faults({**fabric(2, 2, 4), "flows": flows, "search": {"failed_links": ["leaf0-spine7"]}})
    )
    assert any(
        "nodes" in text for text in faults({"kind": "routing", "fabric": {"type": "leaf-spine"}, "flows": flows})
    )
    assert any("cluster" in text for text in faults({"kind": "routing", "flows": flows}))
    assert any("cannot be read" in text for text in faults({**fabric(2, 2, 4), "flows": "none.csv"}))
    groups = {"collective": "all_reduce", "bytes": "1 GiB", "groups": {"size": 3}}
    assert any("does not divide" in text for text in faults({**fabric(2, 2, 4), "flows": groups}))
    groups["groups"] = [["host0", "host99"]]
    assert any("flows.groups[0][1]" in text for text in faults({**fabric(2, 2, 4), "flows": groups}))
    rails = {"kind": "routing", "cluster": "superpod-h100", "flows": [{"src": "host0", "dst": "host1", "bytes": 1}]}
    with pytest.raises(InputError, match="several leaves"):
        ask(rails)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["spine9"], "spine0 to spine1"),
        (["spine0", "spine1"], "a path for each of the 1 flows"),
        ([{"spine0": 0.5, "spine1": 0.4}], "add up to 1"),
        (["leaf0"], "no such path"),
        ("paths.csv", "cannot be read"),
    ],
)
def test_paths_that_are_none_are_refused(paths: Any, message: str) -> None:
    scenario = {
        **fabric(2, 2, 4),
        "flows": [{"src": "host0", "dst": "host4", "bytes": 1 * GB}],
        "plan": {"paths": paths},
    }
    with pytest.raises(InputError, match=message):
        predict(load_routing(read_yaml(yaml.safe_dump(scenario), "scenario.yaml"), Path()))


def test_given_paths_are_costed_from_a_file_and_compared(tmp_path: Path) -> None:
    flows = [{"src": f"host{n}", "dst": f"host{4 + n}", "bytes": 1 * GB} for n in range(4)]
    with (tmp_path / "paths.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("flow", "path", "share"), *((n, "spine0", 1) for n in range(4))])
    scenario = {**fabric(2, 2, 4), "flows": flows, "plan": {"paths": "paths.csv"}}
    question = load_routing(read_yaml(yaml.safe_dump(scenario), "scenario.yaml"), tmp_path)
    costed = predict(question).to_dict()
    assert costed["objective"]["value"] == pytest.approx(4 / 12.5)
    assert costed["best_bound"] == pytest.approx(2 / 12.5)
    assert costed["status"] == "feasible"
    best = plan(question).to_dict()
    assert best["baseline"]["gain"] == pytest.approx(2)


# --- the example ---------------------------------------------------------------------------------------------------


def test_the_example_does_what_its_arithmetic_says() -> None:
    answer = plan(load_routing(read_yaml(EXAMPLE.read_text(), str(EXAMPLE)), EXAMPLE.parent)).to_dict()
    # 32 rings pass from each leaf to the next; leaf 0 has 7 of 8 cables left
    one = 2 * 15 / 16 * 2**30 / 50e9
    assert answer["status"] == "optimal"
    assert answer["objective"]["value"] == pytest.approx(32 / 7 * one)
    # four of the 32 do not fit whole onto 7 cables that take four each, out of leaf 0 and into it
    assert answer["plan"]["split_flows"] == answer["plan"]["split_flows_bound"] == 8
    whole = next(entry for entry in answer["alternatives"] if entry["plan"]["split"] == "none")
    assert whole["prediction"]["completion_time_s"] == pytest.approx(5 * one)
    assert answer["prediction"]["ecmp_completion_time_s"] > 1.5 * answer["objective"]["value"]
    assert Result.from_dict(answer).to_dict() == answer
    assert again(answer)["prediction"] == pytest.approx(answer["prediction"])


# --- the commands --------------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_saved_plan_predicts_to_the_same_number(tmp_path: Path) -> None:
    saved, paths, picture = tmp_path / "plan.json", tmp_path / "paths.csv", tmp_path / "links.svg"
    run("plan", "routing", str(EXAMPLE), "-o", str(saved), "--paths", str(paths), "--plot", str(picture))
    answer = json.loads(saved.read_text())
    assert answer["plan"]["paths"] == "paths.csv"
    rows = list(csv.DictReader(paths.read_text().splitlines()))
    assert len(rows) == 512 - 8 + 8 * 7
    predicted = json.loads(run("predict", "routing", str(saved), "--format", "json"))
    assert predicted["prediction"] == pytest.approx(answer["prediction"])
    assert predicted["status"] == "optimal"
    drawn = ElementTree.fromstring(picture.read_text())
    full = [cell for cell in drawn.iter() if cell.get("fill") == "#D55E00" and cell.get("height") == "15"]
    assert len(full) == 4 * 7  # leaf 0 and the leaves it sends to and receives from, seven cables each


def test_the_table_fits_a_terminal_and_csv_has_a_row_for_each_way() -> None:
    shown = run("plan", "routing", str(EXAMPLE))
    assert max(map(len, shown.splitlines())) <= 80
    assert "uplinks of leaf0" in shown
    rows = list(csv.DictReader(run("plan", "routing", str(EXAMPLE), "--format", "csv").splitlines()))
    assert [row["plan_split"] for row in rows] == ["fewest", "spray", "none"]
    assert "plan_paths" not in rows[0]
    whole = run("plan", "routing", str(EXAMPLE), "--set", "search.split=[none]", "--set", "search.failed_links=[]")
    assert "split_flows  0" in shown or "split_flows  0" in whole


def test_bad_input_ends_in_two() -> None:
    for words in (["--plot", "x.png"], ["--set", "search.split=[all]"], ["--set", "flows.bytes=1 Gbit"]):
        assert CliRunner().invoke(app, ["plan", "routing", str(EXAMPLE), *words]).exit_code == 2
    assert CliRunner().invoke(app, ["predict", "routing", str(EXAMPLE)]).exit_code == 2


def test_a_graph_is_drawn_as_bars(tmp_path: Path) -> None:
    scenario = tmp_path / "ring.yaml"
    flows = [{"src": "host0", "dst": "host2", "bytes": 1 * GB}]
    scenario.write_text(yaml.safe_dump({**edges(RING), "flows": flows}))
    run("plan", "routing", str(scenario), "--plot", str(tmp_path / "links.svg"))
    assert "host0-host1" in (tmp_path / "links.svg").read_text()


def test_the_schema_knows_the_keys() -> None:
    assert {"cluster", "fabric", "flows", "search", "plan"} <= set(routing_schema()["properties"])
    assert json.loads(run("schema", "routing")) == routing_schema()
