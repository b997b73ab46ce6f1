"""A file and its `--set` options become one document that knows where everything came from."""

import json
from pathlib import Path
from typing import Any

import pytest
from plan_answers import infeasible_answer, plan, train_answer

from cli.load import load, written
from hardware.catalogue import names, resolve_cluster
from hardware.faults import InputError
from hardware.yaml_source import Source

SCENARIO = """\
kind: train
cluster: dgx-h100
nodes: 64
model: llama-3.1-70b
workload: {seq_len: 8192, global_batch: 1024}
search:
  tp: [1, 2, 4]
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


def machine(source: Source) -> Any:
    return resolve_cluster(source.data["cluster"], Path(), source.data.get("nodes"), source=source, at=("cluster",))


def test_a_file_alone_keeps_its_positions(scenario: Path) -> None:
    source = load(scenario)
    assert source.data["workload"] == {"seq_len": 8192, "global_batch": 1024}
    assert source.positions[("workload", "global_batch")] == (5, 27)
    assert str(source.fault(("nodes",), "wrong")) == f"{scenario}:3:1: nodes: wrong"


@pytest.mark.parametrize(
    ("option", "path", "value"),
    [
        ("nodes=8", ("nodes",), 8),
        ("workload.seq_len=4096", ("workload", "seq_len"), 4096),
        ("workload.tokens=15e12", ("workload", "tokens"), 15e12),
        ("workload.precision=fp8", ("workload", "precision"), "fp8"),
        ("search.tp=[8, 16]", ("search", "tp"), [8, 16]),
        ("search.tp[1]=16", ("search", "tp", 1), 16),
        ("search.tp.1=16", ("search", "tp", 1), 16),
        ("search.tp[3]=16", ("search", "tp", 3), 16),
        ("plan={tp: 8, pp: 4}", ("plan",), {"tp": 8, "pp": 4}),
        ("plan.parts.deep=yes", ("plan", "parts", "deep"), "yes"),
        ("plan.parts[0].deep=true", ("plan", "parts", 0, "deep"), True),
        ("objective=", ("objective",), None),
        ("note=a=b", ("note",), "a=b"),
        ("note='12'", ("note",), "12"),
        ("country=NO", ("country",), "NO"),
    ],
)
def test_values_are_set_and_traced_to_their_option(scenario: Path, option: str, path: Any, value: Any) -> None:
    source = load(scenario, [option])
    found = source.data
    for key in path:
        found = found[key]
    assert found == value and type(found) is type(value)
    assert source.fault(path, "wrong").source == "--set " + option.partition("=")[0]
    assert source.fault(("kind",), "wrong").source == str(scenario)
    assert load(scenario).data == load(scenario, []).data  # the document itself is untouched


def test_the_rest_of_the_document_stays(scenario: Path) -> None:
    before, after = load(scenario).data, load(scenario, ["workload.seq_len=1"]).data
    assert {**after, "workload": {**after["workload"], "seq_len": 8192}} == before


def test_later_options_win_and_replace_what_stood_below(scenario: Path) -> None:
    source = load(scenario, ["search.tp[0]=3", "search={pp: [1]}", "search.pp[0]=5"])
    assert source.data["search"] == {"pp": [5]}
    assert source.fault(("search", "pp", 0), "").source == "--set search.pp[0]"
    assert source.fault(("search", "tp", 0), "").source == "--set search"  # not the line it once stood in


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("nodes", "--set nodes: should be a dotted path"),
        ("=3", "--set =3: should be"),
        ("a..b=1", "should be"),
        ("a.=1", "should be"),
        ("a[x]=1", "should be"),
        ("nodes=[1", "--set nodes: not valid YAML"),
        ("nodes.deep=1", "--set nodes.deep: nodes is the value 64"),
        ("search.tp.first=1", "--set search.tp.first: search.tp is a list; allowed: 0 to 3 [got 'first']"),
        ("search.tp[7]=1", "--set search.tp[7]: search.tp has 3 items, counted from 0; the next would be [3]"),
        ("search[0]=1", "--set search[0]: search is a mapping"),
        ("cluster.fabric.colour=red", "--set cluster.fabric.colour: cluster.fabric.colour: unknown key"),
        ("accelerator.memory.bandwith=4 TB/s", "--set accelerator.memory.bandwith: .*bandwith: unknown key"),
        ("accelerator.memory.bandwidth=4 Tb/s", "may mean bits or bytes"),
        ("node.links.nvlnk.latency=2 us", r"links is a list; allowed: nvlink, "),
    ],
)
def test_wrong_options_say_what_is_wrong(scenario: Path, option: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[").replace("(", r"\(")) as caught:
        machine(load(scenario, [option]))
    assert all(fault.line == 0 for fault in caught.value.faults)


def test_all_wrong_options_are_told_at_once(scenario: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(scenario, ["nodes.deep=1", "search[0]=1", "workload.seq_len=1"])
    assert len(caught.value.faults) == 2
    with pytest.raises(InputError) as caught:
        load(scenario, ["nodes", "x=[", "workload.seq_len=1"])
    assert len(caught.value.faults) == 2


# --- into the hardware ----------------------------------------------------------------------------------------


def test_options_reach_into_a_cluster_that_is_only_named(scenario: Path) -> None:
    plain = machine(load(scenario))
    changed = machine(
        load(
            scenario,
            [
                "accelerator.memory.bandwidth=4 TB/s",
                "accelerator.peak.bf16=2e15",
                "cluster.fabric.oversubscription=4",
                "node.links.nvlink.latency=3 us",
                "node.nics.bandwidth=100 Gbit/s",
            ],
        )
    )
    assert changed.accelerator.memory.bandwidth == 4e12
    assert changed.accelerator.memory.capacity == plain.accelerator.memory.capacity
    assert changed.accelerator.peak["bf16"] == 2e15
    assert changed.cluster.fabric.oversubscription == 4
    assert changed.node.nics.bandwidth == 12.5e9
    assert {link.name: link.latency for link in changed.node.links}["nvlink"] == 3e-6
    assert changed.nodes == plain.nodes == 64
    assert changed.accelerator.name == plain.accelerator.name


def test_which_cluster_is_settled_before_what_is_in_it(scenario: Path) -> None:
    source = load(scenario, ["accelerator.memory.bandwidth=4 TB/s", "cluster=dgx-a100", "nodes=2"])
    assert machine(source).accelerator.name.startswith("a100")
    assert machine(source).accelerator.memory.bandwidth == 4e12
    assert machine(source).nodes == 2


def test_options_reach_into_described_hardware(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("cluster:\n  node: dgx-h100\n  nodes: 4\n  fabric: {type: rail-optimised, oversubscription: 2}\n")
    source = load(path, ["cluster.fabric.oversubscription=3"])
    assert machine(source).cluster.fabric.oversubscription == 3
    assert source.data["cluster"]["node"] == "dgx-h100"  # no need to write it out
    assert source.positions[("cluster", "nodes")] == (3, 3)
    assert machine(load(path, ["accelerator.units=100"])).accelerator.units == 100
    # What the person wrote is kept, and its contradiction told.
    path.write_text(
        "cluster:\n  node: dgx-h100\n  nodes: 64\n  fabric: {type: leaf-spine, hosts_per_leaf: 8, spines: 64}\n"
    )
    with pytest.raises(InputError, match="contradicts 64 spines"):
        machine(load(path, ["cluster.fabric.oversubscription=4.5"]))


def test_options_reach_into_a_file_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("node: dgx-h100\nnodes: 4\nfabric: {type: rail-optimised}\n")
    path = tmp_path / "scenario.yaml"
    path.write_text("cluster: mine.yaml\n")
    assert machine(load(path, ["accelerator.units=100"])).accelerator.units == 100
    path.write_text("cluster: {kind: node, name: box, accelerators: {type: l4, count: 1}}\n")
    assert machine(load(path, ["cluster.fabric.type=rail-optimised", "accelerator.units=9"])).accelerator.units == 9


@pytest.mark.parametrize("cluster", names("cluster"))
def test_every_cluster_of_the_catalogue_can_be_reached_into(cluster: str, scenario: Path) -> None:
    scenario.write_text(f"cluster: {cluster}\n")
    options = ["accelerator.memory.bandwidth=4 TB/s"]
    fabric = machine(load(scenario)).cluster.fabric
    if fabric.type in ("leaf-spine", "rail-optimised", "fat-tree"):
        options += ["cluster.fabric.oversubscription=4", "node.nics.bandwidth=100 Gbit/s"]
    changed = machine(load(scenario, options))
    assert changed.accelerator.memory.bandwidth == 4e12
    if len(options) > 1:
        assert changed.cluster.fabric.oversubscription == 4


def test_faults_of_the_cluster_itself_keep_their_place(scenario: Path) -> None:
    scenario.write_text("kind: train\ncluster: dgx-h1000\n")
    with pytest.raises(InputError, match=r"scenario.yaml:2:1: cluster: .*did you mean \"dgx-h100\"") as caught:
        load(scenario, ["accelerator.units=1", "node.name=x"])
    assert len(caught.value.faults) == 1
    scenario.write_text("kind: train\n")
    with pytest.raises(InputError, match=r"--set accelerator.units: .*no cluster"):
        load(scenario, ["accelerator.units=1"])


def test_what_was_set_and_nothing_else(scenario: Path) -> None:
    options = ["nodes=8", "cluster.fabric.oversubscription=4", "accelerator.peak.bf16=1e15", "search.pp=[2]"]
    assert written(scenario, options) == {
        **load(scenario).data,
        "nodes": 8,
        "search": {"tp": [1, 2, 4], "pp": [2]},
        "cluster.fabric.oversubscription": 4,
        "accelerator.peak.bf16": 1e15,
    }
    scenario.write_text("cluster: {node: dgx-h100, nodes: 4}\n")
    assert written(scenario, ["cluster.nodes=2", "cluster.node.nics.count=4"]) == {
        "cluster": {"node": "dgx-h100", "nodes": 2},
        "cluster.node.nics.count": 4,
    }


# --- plans as scenarios ---------------------------------------------------------------------------------------


def test_a_plan_is_read_as_its_scenario_with_its_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    answer = train_answer()
    path.write_text(json.dumps(answer.to_dict(), indent=2))
    source = load(path, ["plan.tp=2"])
    assert source.data == {**answer.scenario, "plan": {**plan(), "tp": 2}}
    line = next(
        number for number, text in enumerate(path.read_text().splitlines(), start=1) if '"global_batch"' in text
    )
    assert source.fault(("workload", "global_batch"), "").line == line
    assert source.fault(("plan", "tp"), "").source == "--set plan.tp"
    line = next(number for number, text in enumerate(path.read_text().splitlines(), start=1) if '"micro_batch"' in text)
    assert source.fault(("plan", "micro_batch"), "").line == line


def test_a_plan_without_a_plan_is_its_scenario(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(infeasible_answer().to_dict()))
    assert load(path).data == infeasible_answer().scenario


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": "perfmodel.plan/2", "scenario": {}}', 'plan.json:1:2: schema: only plans of "perfmodel.plan/1"'),
        ('{"schema": "perfmodel.plan/1"}', "plan.json.*scenario: missing"),
    ],
)
def test_plans_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load(tmp_path)
