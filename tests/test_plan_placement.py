"""The placement planner: its answers checked on their own, its faults located, its scenarios read again."""

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from placements import cost_by_hand
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import Source, read_yaml
from perfmodel.placement_step import network_rate, slowed_step
from perfmodel.training import predict_step
from solvers.placement import plan, predict
from solvers.placement_scenario import PlacementScenario, load_placement
from solvers.result import Result
from solvers.scenario import load_train

EXAMPLE = Path(__file__).parent.parent / "examples" / "placement-64.yaml"


def table(rates: Any, names: Any = None) -> str:
    rows = np.asarray(rates, dtype=float)
    names = names or [f"n{node}" for node in range(len(rows))]
    lines = [",".join(["GB/s", *names])]
    lines += [",".join([name, *map(repr, row)]) for name, row in zip(names, rows.tolist(), strict=True)]
    return "\n".join(lines) + "\n"


def ring_text(ranks: int, size: float = 1e9, columns: str = "") -> str:
    return "src,dst,bytes\n" + "".join(f"{rank},{(rank + 1) % ranks},{size!r}\n" for rank in range(ranks))


def scenario(**parts: Any) -> PlacementScenario:
    return load_placement(Source("asked.yaml", {"kind": "placement", **parts}), Path())


def uneven(nodes: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(1, 10, (nodes, nodes)).round(2)


def check(result: Result, asked: PlacementScenario) -> None:
    """Hold an answer against the definition: an order of whole nodes, its cost, its bound, the default beside it."""
    assert result.plan is not None and result.prediction is not None
    order, names = result.plan["order"], result.plan["nodes"]
    each = asked.per_node
    assert len(order) == asked.traffic.ranks and len(set(order)) == len(order)
    nodes = [order[first] // each for first in range(0, len(order), each)]
    for rank, place in enumerate(order):
        assert place == nodes[rank // each] * each + rank % each
    assert [asked.net.names[node] for node in nodes] == names
    together, alone = cost_by_hand(asked.wanted, asked.net, nodes)
    default, _ = cost_by_hand(asked.wanted, asked.net, range(len(nodes)))
    said = result.prediction
    assert said["comm_time_s"] == pytest.approx(together, rel=1e-12)
    assert said["transfer_time_sum_s"] == pytest.approx(alone, rel=1e-12)
    assert said["default_comm_time_s"] == pytest.approx(default, rel=1e-12)
    assert sum(said["phase_times"].values()) == pytest.approx(together, rel=1e-12)
    assert said["comm_time_s_p10"] < said["comm_time_s"] < said["comm_time_s_p90"]
    value = said[asked.question.objective]
    assert result.objective.value == value
    if result.best_bound is not None:
        assert result.best_bound <= value * (1 + 1e-12)
        assert result.gap == pytest.approx((value - result.best_bound) / value, abs=1e-9)
        assert value <= said["default_" + asked.question.objective] * (1 + 1e-12)
    if result.status == "optimal":
        assert result.gap is not None and result.gap <= 1e-4


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["comm_time_s", "transfer_time_sum_s"])
@pytest.mark.parametrize("nodes", [2, 4, 7])
def test_few_nodes_are_proved(nodes: int, objective: str) -> None:
    asked = scenario(bandwidth=table(uneven(nodes, nodes)), traffic=ring_text(nodes), objective=objective)
    result = plan(asked)
    assert result.status == "optimal"
    check(result, asked)
    orders = itertools.permutations(range(nodes))
    by_sum = objective == "transfer_time_sum_s"
    best = min(cost_by_hand(asked.wanted, asked.net, order)[by_sum] for order in orders)
    assert result.objective.value == pytest.approx(best, rel=1e-12)


def test_a_job_takes_the_better_nodes_of_those_there_are() -> None:
    rates = np.full((6, 6), 2.0)
    rates[np.ix_([1, 3, 4], [1, 3, 4])] = 20.0
    asked = scenario(bandwidth=table(rates), nodes=3, traffic=ring_text(3))
    result = plan(asked)
    check(result, asked)
    assert result.plan is not None and result.prediction is not None
    assert sorted(result.plan["nodes"]) == ["n1", "n3", "n4"]
    assert result.prediction["gain"] == pytest.approx(10.0)


def test_an_even_network_leaves_nothing_to_gain() -> None:
    for nodes in (5, 20):
        result = plan(scenario(bandwidth=table(np.full((nodes, nodes), 25.0)), traffic=ring_text(nodes)))
        assert result.status == "optimal" and result.prediction is not None
        said = result.prediction
        assert (said["comm_time_saved_s"], said["gain"], said["gain_p10"], said["gain_p90"]) == (0, 1, 1, 1)


def test_a_job_inside_its_nodes_has_nothing_to_place() -> None:
    asked = scenario(cluster="dgx-h100", nodes=1, bandwidth=table(uneven(2)), traffic="src,dst,bytes\n0,1,5\n")
    result = plan(asked)
    assert result.status == "optimal" and result.objective.value == 0.0
    assert result.prediction is not None and result.prediction["inside_nodes_bytes"] == 5.0


def test_a_time_limit_leaves_a_bound() -> None:
    text = "src,dst,bytes,phase\n"
    pairs = np.random.default_rng(1).integers(0, 30, (120, 2))
    text += "".join(
        f"{a},{b},{1e9 * (1 + number % 7)},{'even' if number % 2 else 'odd'}\n" for number, (a, b) in enumerate(pairs)
    )
    asked = scenario(bandwidth=table(uneven(30)), traffic=text)
    result = plan(asked, time_limit_s=0.5)
    assert result.status in ("time_limit", "optimal")
    assert result.best_bound is not None and result.best_bound > 0
    check(result, asked)
    loose = plan(asked, time_limit_s=5.0, gap=0.9)
    assert loose.status in ("feasible", "optimal")
    check(loose, asked)


def test_what_runs_today_stands_beside_the_best() -> None:
    rates = uneven(6, 2)
    asked = scenario(
        bandwidth=table(rates), traffic=ring_text(6), plan={"nodes": [f"n{node}" for node in (3, 1, 5, 0, 2, 4)]}
    )
    result = plan(asked)
    check(result, asked)
    today = predict(asked)
    assert today.status == "feasible" and today.best_bound is None
    check(today, asked)
    assert result.baseline is not None and today.prediction is not None
    assert result.baseline["prediction"] == today.prediction
    assert result.baseline["gain"] == pytest.approx(today.prediction["comm_time_s"] / result.objective.value)


def test_the_price_of_a_link_is_what_a_faster_one_saves() -> None:
    rates = uneven(5, 4)
    asked = scenario(bandwidth=table(rates), traffic=ring_text(5), plan={"nodes": [f"n{node}" for node in range(5)]})
    result = predict(asked)
    (entry,) = result.binding
    sender, receiver = (int(name[1:]) for name in entry["constraint"].rpartition(": ")[2].split(" -> "))
    faster = rates.copy()
    faster[sender, receiver] += 1e-4
    again = predict(scenario(bandwidth=table(faster), traffic=ring_text(5), plan={"order": [0, 1, 2, 3, 4]}))
    assert again.objective.value is not None and result.objective.value is not None
    assert (again.objective.value - result.objective.value) / 1e-4 == pytest.approx(entry["shadow_price"], rel=1e-3)


# --- infeasible ----------------------------------------------------------------------------------------------------


def test_a_partition_names_the_cut_and_the_links_that_are_missing() -> None:
    rates = uneven(7)
    rates[:4, 4:] = rates[4:, :4] = 0.0
    asked = scenario(bandwidth=table(rates), traffic=ring_text(7))
    result = plan(asked)
    assert result.status == "infeasible" and result.plan is None
    assert result.why_not[0]["reason"] == (
        "no path between n0, n1, n2, n3 (4 nodes) and n4, n5, n6 (3 nodes); the job's messages join 7 nodes"
    )
    # a ring over two halves crosses at least once each way, and with these two links it can be laid
    assert len(result.relaxation) == 2
    for entry in result.relaxation:
        sender, receiver = (int(name[1:]) for name in entry["constraint"][10:-1].split(" -> "))
        assert (sender < 4) != (receiver < 4)
        assert entry["now"] == 0 and entry["unit"] == "GB/s"
        rates[sender, receiver] = entry["needed"]
    assert plan(scenario(bandwidth=table(rates), traffic=ring_text(7))).status == "optimal"


def test_a_one_way_cut_is_one_too() -> None:
    rates = uneven(6)
    rates[:3, 3:] = 0.0
    result = plan(scenario(bandwidth=table(rates), traffic=ring_text(6)))
    assert result.status == "infeasible"
    assert result.why_not[0]["reason"].startswith("no path both ways between n")
    assert len(result.relaxation) == 1


def test_a_job_that_fits_one_part_is_no_partition() -> None:
    rates = uneven(7)
    rates[:4, 4:] = rates[4:, :4] = 0.0
    asked = scenario(bandwidth=table(rates), nodes=4, traffic=ring_text(4))
    result = plan(asked)
    check(result, asked)
    assert result.plan is not None and set(result.plan["nodes"]) == {"n0", "n1", "n2", "n3"}


def test_no_order_without_a_cut() -> None:
    # a path goes through every node, but no ring: node 0 is the only way between the others
    rates = np.zeros((5, 5))
    rates[0, :] = rates[:, 0] = 5.0
    result = plan(scenario(bandwidth=table(rates), traffic=ring_text(5)))
    assert result.status == "infeasible"
    assert result.relaxation


def test_predicting_an_order_without_a_path() -> None:
    rates = uneven(4)
    rates[1, 2] = 0.0
    result = predict(scenario(bandwidth=table(rates), traffic=ring_text(4), plan={"order": [0, 1, 2, 3]}))
    assert result.status == "infeasible"
    assert [entry["constraint"] for entry in result.relaxation] == ["bandwidth[n1 -> n2]"]


# --- the traffic of a training plan --------------------------------------------------------------------------------

TRAIN: dict[str, Any] = {
    "kind": "train",
    "cluster": "dgx-h100",
    "nodes": 6,
    "model": "llama-3.1-8b",
    "workload": {"seq_len": 4096, "global_batch": 96, "precision": "bf16"},
    "plan": {"tp": 8, "pp": 2, "dp": 3},
}


def test_nodes_take_blocks_of_ranks_and_the_step_follows() -> None:
    asked = scenario(bandwidth=table(100 * uneven(6, 6)), traffic={"plan": TRAIN})
    assert asked.per_node == 8 and asked.wanted.units == 6
    assert set(asked.wanted.phases) == {"pipeline forward", "pipeline backward", "data parallel"}
    result = plan(asked)
    check(result, asked)
    said = result.prediction
    assert said is not None and result.status == "optimal"
    assert said["step_time_s"] < said["default_step_time_s"]
    assert said["step_time_s_p10"] < said["step_time_s"] < said["step_time_s_p90"]
    assert said["step_gain"] == pytest.approx(said["default_step_time_s"] / said["step_time_s"])


def test_a_step_on_links_as_described_is_the_predicted_step() -> None:
    train = load_train(Source("train.yaml", TRAIN), Path())
    assert train.plan is not None
    times = {"pipeline forward": 0.1, "pipeline backward": 0.1, "data parallel": 0.4}
    expected = float(np.asarray(predict_step(train.job, train.plan).step.seconds)[0])
    assert slowed_step(train.job, train.plan, times, times).seconds == pytest.approx(expected, rel=1e-9)
    slower = {name: 3 * seconds for name, seconds in times.items()}
    assert slowed_step(train.job, train.plan, slower, times).seconds > expected
    # eight adapters of 400 Gbit/s (DGX H100), of which messages get the share that InfiniBand was measured at
    share = train.job.collectives.link("infiniband").bandwidth
    assert network_rate(train.job) == pytest.approx(8 * 50e9 * share)


def test_a_saved_plan_is_traffic_too(tmp_path: Path) -> None:
    from cli.export import to_json
    from solvers.train import predict as predict_train

    answer = predict_train(load_train(Source("train.yaml", TRAIN), Path()))
    (tmp_path / "plan.json").write_text(to_json(answer.to_dict()))
    (tmp_path / "rates.csv").write_text(table(100 * uneven(6, 6)))
    text = "kind: placement\nbandwidth: rates.csv\ntraffic: {plan: plan.json}\n"
    asked = load_placement(read_yaml(text, "asked.yaml"), tmp_path)
    inline = scenario(bandwidth=table(100 * uneven(6, 6)), traffic={"plan": TRAIN})
    assert plan(asked).objective.value == plan(inline).objective.value


# --- input ---------------------------------------------------------------------------------------------------------


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_placement(read_yaml(text, "asked.yaml"), tmp_path)
    return [str(fault).replace(f"{tmp_path}/", "") for fault in caught.value.faults]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rates.csv").write_text(table(uneven(4)))
    (tmp_path / "traffic.csv").write_text(ring_text(4))
    return tmp_path


HEAD = "kind: placement\nbandwidth: rates.csv\n"


def test_a_matrix_that_is_not_square(folder: Path) -> None:
    (folder / "rates.csv").write_text("GB/s,a,b,c\na,0,1,2\nb,1,0,2\n")
    assert faults(folder, HEAD + "traffic: traffic.csv\n") == [
        "rates.csv:1:1: should be square, but these nodes of the header have no row: c",
    ]


def test_a_matrix_that_misses_nodes_of_the_job(folder: Path) -> None:
    assert faults(folder, HEAD + "nodes: 6\ntraffic: traffic.csv\n") == [
        "asked.yaml:2:1: bandwidth: has 4 nodes, but the job needs 6",
    ]


def test_all_faults_of_the_traffic_at_once(folder: Path) -> None:
    (folder / "traffic.csv").write_text("src,dst,bytes\n0,9,5\nx,1,5\n1,2,4 Gbit\n1,2\n2,3,-1\n")
    found = faults(folder, HEAD + "traffic: traffic.csv\n")
    assert [fault.partition(" [")[0].split(": ")[:2] for fault in found] == [
        ["traffic.csv:2:1", "dst"],
        ["traffic.csv:3:1", "src"],
        ["traffic.csv:4:1", "bytes"],
        ["traffic.csv:5:1", "should have 3 cells"],
        ["traffic.csv:6:1", "bytes"],
    ]
    assert "there is no such rank; the job has 4, 0 to 3 [got 9]" in found[0]


LOCATED = {
    "traffic: absent.csv": "3:1: traffic: there is no file absent.csv",
    "traffic: plan.json": "3:1: traffic: there is no file plan.json",
    "traffic: {plan: absent.json}": "3:11: traffic.plan: there is no file absent.json",
    "traffic: traffic.csv\nobjective: x": "4:1: objective: unknown value; allowed: comm_time_s, transfer_time_sum_s",
    "traffic: traffic.csv\nplan: {order: [0, 1, 2]}": (
        "4:8: plan.order: should hold the accelerator of each of 4 ranks [got 3]"
    ),
    "traffic: traffic.csv\nplan: {order: [0, 1, 2, 2]}": "4:25: plan.order[3]: node n2 is taken already",
    "traffic: traffic.csv\nplan: {order: [0, 1, 2, 7]}": (
        "4:25: plan.order[3]: accelerators are numbered 0 to 3 [got 7]"
    ),
    "traffic: traffic.csv\nplan: {nodes: [n0, n1, n2, n9]}": '4:28: plan.nodes[3]: no node "n9" in the matrix',
}


@pytest.mark.parametrize("text", LOCATED)
def test_located_faults(folder: Path, text: str) -> None:
    (found,) = faults(folder, f"{HEAD}{text}\n")
    assert found.startswith(f"asked.yaml:{LOCATED[text]}")


def test_a_plan_of_another_number_of_ranks(folder: Path) -> None:
    (folder / "train.json").write_text(json.dumps({**TRAIN, "nodes": 6}))
    found = faults(folder, HEAD + "cluster: dgx-h100\nnodes: 4\ntraffic: {plan: train.json}\n")
    assert found == ["asked.yaml:5:11: traffic.plan: is of 48 ranks, but the nodes have 32 accelerators"]
    without = {key: value for key, value in TRAIN.items() if key != "plan"}
    (folder / "train.json").write_text(json.dumps(without))
    assert faults(folder, HEAD + "traffic: {plan: train.json}\n") == [
        "train.json:1:1: plan: missing; the traffic is that of a plan",
    ]


# --- the command ---------------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (done.stdout, done.stderr)
    return done.stdout


def test_the_example_runs_is_read_again_and_fits_eighty_columns(tmp_path: Path) -> None:
    saved = tmp_path / "answer.json"
    run("plan", "placement", str(EXAMPLE), "--time-limit", "1.5", "-o", str(saved))
    answer = json.loads(saved.read_text())
    said = answer["prediction"]
    assert answer["status"] in ("optimal", "time_limit")
    assert 0 < answer["best_bound"] <= said["comm_time_s"] < said["default_comm_time_s"]
    assert answer["gap"] < 0.2
    again = json.loads(run("predict", "placement", str(saved), "--format", "json"))
    assert again["prediction"] == said
    assert again["plan"] == answer["plan"]
    shown = run("predict", "placement", str(saved))
    assert max(map(len, shown.splitlines())) <= 80
    assert "ranks" in shown and answer["plan"]["nodes"][0] in shown
    rows = list(csv.DictReader(run("predict", "placement", str(saved), "--format", "csv").splitlines()))
    assert float(rows[0]["comm_time_s"]) == said["comm_time_s"]
    assert json.loads(rows[0]["plan_order"]) == answer["plan"]["order"]


def test_the_matrix_of_the_example_is_what_its_command_writes() -> None:
    from benchmarks.uneven_matrix import matrix, text

    assert (EXAMPLE.parent / "uneven-64.csv").read_text() == text(*matrix(64, 7))


def test_a_cluster_can_carry_the_matrix(folder: Path) -> None:
    text = "kind: placement\ncluster: {node: dgx-h100, nodes: 4, bandwidth: rates.csv}\ntraffic: big.csv\n"
    (folder / "big.csv").write_text(ring_text(32))
    asked = load_placement(read_yaml(text, "asked.yaml"), folder)
    result = plan(asked)
    check(result, asked)
    # every node sends one message on to the next: eight ranks each, of which the last one has its peer elsewhere
    assert result.prediction is not None
    assert result.prediction["inside_nodes_bytes"] == pytest.approx(28e9)
    assert math.isclose(result.prediction["between_nodes_bytes"], 4e9)


def test_the_matrix_says_how_many_nodes_there_are(folder: Path) -> None:
    (folder / "big.csv").write_text(ring_text(32))
    asked = load_placement(read_yaml(HEAD + "cluster: dgx-h100\ntraffic: big.csv\n", "asked.yaml"), folder)
    assert (asked.wanted.units, asked.per_node) == (4, 8)


def test_no_time_leaves_the_default_order_and_a_bound() -> None:
    asked = scenario(bandwidth=table(uneven(20)), traffic=ring_text(20))
    result = plan(asked, time_limit_s=0.0)
    check(result, asked)
    assert result.status == "time_limit" and result.best_bound is not None and result.best_bound > 0


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_picture_of_an_order(folder: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    asked = folder / "asked.yaml"
    asked.write_text(HEAD + "traffic: traffic.csv\n")
    run("plan", "placement", str(asked), "--plot", str(folder / f"order.{ending}"))
    drawn = (folder / f"order.{ending}").read_bytes()
    assert drawn.startswith(b"\x89PNG") if ending == "png" else b"measured rate" in drawn


def test_an_infeasible_answer_is_an_answer_in_eighty_columns(folder: Path) -> None:
    rates = uneven(4)
    rates[0, 1:] = 0.0
    (folder / "rates.csv").write_text(table(rates))
    asked = folder / "asked.yaml"
    asked.write_text(HEAD + "traffic: traffic.csv\n")
    shown = run("plan", "placement", str(asked))
    assert "infeasible" in shown and "bandwidth[n0 -> " in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_scenario_fits_its_schema() -> None:
    import jsonschema
    import yaml

    schema = json.loads(run("schema", "placement"))
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_text()), schema)
