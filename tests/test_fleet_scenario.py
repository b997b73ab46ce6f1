"""Scenarios of fleets: predicted throughputs, traces, faults of the input, and the program around the planner."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_cases import check, classes, offer, scenario
from typer.testing import CliRunner

from cli.app import app
from cli.export import flattened
from hardware.catalogue import resolve_cluster
from hardware.faults import InputError
from hardware.yaml_source import Source, read_yaml
from perfmodel.architecture import load_architecture
from perfmodel.serving.engine import Engine, engines
from perfmodel.serving.host import received_s
from perfmodel.serving.latency import pool, together
from perfmodel.serving.law import NO_SPECULATION, Demand
from perfmodel.serving.server import server
from perfmodel.serving.step import Deployment
from perfmodel.simulation import Engine as SimulatedEngine
from perfmodel.simulation import Simulated, simulate
from solvers.fleet import plan
from solvers.fleet_scenario import load_fleet
from solvers.fleet_tails import quantile_s
from solvers.fleet_throughput import deviation_s

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fleet-mixed-8b.yaml"
EXAMPLES = sorted((ROOT / "examples").glob("fleet-*.yaml"))


def _host_s(engine: Engine, found: Simulated) -> float:
    """Return what the host adds to a first token: receiving, and steps until the engine looks, beyond half of one."""
    return received_s(engine) + (engine.intake_steps - 1) / 2 * float(np.mean(found.tpot_s))


# --- predicted throughputs -----------------------------------------------------------------------------------------

PREDICTED: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "accelerators": [
        {"name": "l4", "price_usd_per_hour": 0.7, "accelerators_per_instance": 2},
        {"name": "a100-80gb-sxm", "price_usd_per_hour": 3.67, "accelerators_per_instance": 1},
    ],
    "workload": {"classes": [{"isl": 1000, "osl": 200, "rate_rps": 9.0}]},
}


def predicted(**slo: float) -> dict[str, float]:
    asked = scenario(**PREDICTED, slo=slo)
    case = asked.case
    each = case.throughput[0] / case.pool_size  # of one accelerator: sizes of instances differ
    return {case.accelerators[case.pool_accelerator[p]]: float(each[p]) for p in range(2)}


def test_a_looser_objective_is_never_served_worse_and_no_board_beats_its_arithmetic() -> None:
    tight, middle, loose = (predicted(tpot_mean=tpot) for tpot in (0.005, 0.05, 1e3))
    for name in loose:
        assert tight[name] <= middle[name] <= loose[name]
    # two operations a parameter and token (NanoFlow, arXiv 2408.12757, section 3), at the data sheet's bf16 rate
    assert 0 < loose["a100-80gb-sxm"] < 312e12 / (2 * 7.5e9) / 1200
    assert tight["a100-80gb-sxm"] == 0  # 16 GB of weights at 2 TB/s take 8 ms


def test_at_the_predicted_throughput_simulated_requests_keep_the_objectives() -> None:
    """Request by request on the same steps: within them at the throughput, beyond them a tenth above it."""
    slo = {"ttft_p99": 0.9, "tpot_mean": 0.06}
    throughput = predicted(**slo)["a100-80gb-sxm"]
    engine = engines()["vllm"]
    served = server(load_architecture("llama-3.1-8b", Path()), resolve_cluster("dgx-a100", Path(), 1), engine)
    settings_of = engine.defaults
    one = pool(
        served,
        Deployment(),
        Demand(1000, 200),
        max_batch=settings_of.max_num_seqs,
        token_budget=settings_of.max_num_batched_tokens,
    )
    replica = SimulatedEngine(one.law, "chunked", settings_of.max_num_seqs, settings_of.max_num_batched_tokens)
    count, random = 12_000, np.random.default_rng(5)
    seen = {}
    for factor in (1.0, 1.1):
        arrival_s = random.exponential(1 / (factor * throughput), count).cumsum()
        found = simulate(replica, arrival_s, np.full(count, 1000), np.full(count, 200))
        steady = slice(count // 5, None)
        first_s = found.ttft_s[steady] + _host_s(engine, found)
        seen[factor] = (np.quantile(first_s, 0.99) / slo["ttft_p99"], found.tpot_s[steady].mean() / slo["tpot_mean"])
    assert max(seen[1.0]) < 1.06  # the equations' own tolerance for the mean, and for the tail below 0.8 of capacity
    assert max(seen[1.1]) > 1.02


def test_an_objective_out_of_reach_says_the_nearest() -> None:
    result = plan(scenario(**PREDICTED, slo={"tpot_mean": 0.001, "ttft_mean": 5.0}))
    assert result.status == "infeasible"
    (change,) = result.relaxation
    assert change["constraint"] == "slo.tpot_mean" and change["unit"] == "s"
    again = plan(scenario(**PREDICTED, slo={"tpot_mean": change["needed"] * 1.001, "ttft_mean": 5.0}))
    assert again.status == "optimal"


def test_a_saved_plan_is_predicted_with_the_same_throughputs() -> None:
    asked = scenario(**PREDICTED, slo={"tpot_mean": 0.1})
    again = load_fleet(Source("saved", asked.resolved), Path())
    assert (again.case.throughput == asked.case.throughput).all()
    assert again.resolved == asked.resolved


def test_a_model_beside_the_scenario_is_found_from_a_saved_plan(tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    config |= {"intermediate_size": 4096, "vocab_size": 32000, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    text = """kind: fleet
model: config.json
accelerators: [{name: l4, price_usd_per_hour: 0.7, accelerators_per_instance: 1}]
workload: {classes: [{isl: 500, osl: 100, rate_rps: 3}]}
"""
    asked = load_fleet(read_yaml(text, "asked.yaml"), folder)
    again = load_fleet(Source("saved", asked.resolved), tmp_path)
    assert (again.case.throughput == asked.case.throughput).all() and asked.case.throughput[0, 0] > 0


def test_faults_of_what_is_predicted() -> None:
    text = """kind: fleet
model: llama-3.1-8c
engine: vlm
accelerators:
  - {name: l4, price_usd_per_hour: 1, precision_weights: fp4}
  - {name: no such, price_usd_per_hour: 1}
  - {name: a100-80gb-sxm, price_usd_per_hour: 1, accelerators_per_instance: 3}
workload: {classes: [{isl: 10, osl: 10, rate_rps: 1}]}
"""
    found = faults(text)
    assert [fault.split(": ")[1] for fault in found] == ["model", "engine", "accelerators[1].throughput_requests_per_s"]
    text = text.replace("8c", "8b").replace("vlm", "vllm").replace("no such", "h100-80gb-sxm")
    precision, size = faults(text)
    assert precision.startswith("asked.yaml:5:39: accelerators[0].precision_weights: l4 has no fp4 peak; it has fp32, ")
    assert "; accelerators that have it: b200-sxm, b300-sxm, gb200, " in precision and precision.endswith("[got 'fp4']")
    assert size == (
        "asked.yaml:7:50: accelerators[2].accelerators_per_instance: does not divide the 32 attention heads of "
        "llama-3.1-8b [got 3]"
    )


def test_the_smallest_cost_takes_any_size_and_type_of_weights() -> None:
    """Every size and type alone costs no less than all to choose from; a type of weights is left to the search."""
    one = {"name": "l4", "price_usd_per_hour": 0.7}
    asked = PREDICTED | {"slo": {"tpot_mean": 0.05}}
    types = ["bf16", "fp8"]
    free = plan(scenario(**asked | {"accelerators": [one | {"precision_weights": types}]}), top=0)
    assert free.status == "optimal" and free.plan is not None and free.objective.value is not None
    costs = []
    for size in (1, 2, 4, 8):
        for precision in types:
            alone = one | {"precision_weights": precision, "accelerators_per_instance": size}
            found = plan(scenario(**asked | {"accelerators": [alone]}), top=0)
            costs.append(math.inf if found.objective.value is None else found.objective.value)
    assert free.objective.value <= min(costs) * (1 + 1e-9)
    pools = free.plan["pools"]
    assert {pool["precision_weights"] for pool in pools} <= set(types)
    assert sum(pool["share"]["1000-200"] for pool in pools) == pytest.approx(1)


def test_percentiles_of_paths_against_simulated_calls() -> None:
    """Two calls in a row and one more, request by request on the same steps: as far off as docs/fleet.md says."""
    served = server(
        load_architecture("llama-3.1-8b", Path()), resolve_cluster("dgx-a100", Path(), 1), engines()["vllm"]
    )
    limits, count, random = served.engine.defaults, 8000, np.random.default_rng(7)
    for load, tolerances in ((0.3, (0.02, 0.03)), (0.6, (0.04, 0.13)), (0.8, (0.1, 0.17))):
        mean = variance = 0.0
        total = np.zeros(count // 2)
        for prompt, answer, times in ((1000, 200, 2), (4000, 100, 1)):
            demand = Demand(prompt, answer)
            most = (limits.max_num_seqs, limits.max_num_batched_tokens)
            one = pool(served, Deployment(), demand, max_batch=most[0], token_budget=most[1])
            capacity = float(together(served, one, demand, NO_SPECULATION, 1e-9, 1).prompts.capacity_requests_per_s)
            seen = together(served, one, demand, NO_SPECULATION, load * capacity, 1)
            mean += times * float(seen.of("e2e_mean"))
            variance += times * float(deviation_s(seen)) ** 2
            arrival_s = random.exponential(1 / (load * capacity), count).cumsum()
            found = simulate(
                SimulatedEngine(one.law, "chunked", *most), arrival_s, np.full(count, prompt), np.full(count, answer)
            )
            each = found.ttft_s + (answer - 1) * found.tpot_s + _host_s(served.engine, found)
            for _ in range(times):
                total += random.permutation(each[count // 2 :])
        for level, tolerance in zip((0.9, 0.99), tolerances, strict=True):
            error = float(quantile_s(mean, variance, level)) / np.quantile(total, level) - 1
            assert abs(error) <= tolerance


# --- traces --------------------------------------------------------------------------------------------------------


def test_a_trace_is_cut_into_classes(tmp_path: Path) -> None:
    rows = ["arrival_s,input_tokens,output_tokens"]
    # two hours: short requests every 2 s throughout, long ones every 6 s in the second hour alone
    times = [(float(t), 50, 20 + t % 3) for t in range(0, 7200, 2)] + [
        (t + 0.5, 3000, 500) for t in range(3600, 7200, 6)
    ]
    rows += [f"{t},{i},{o}" for t, i, o in sorted(times)]
    (tmp_path / "trace.csv").write_text("\n".join(rows) + "\n")
    text = """kind: fleet
model: llama-3.1-8b
accelerators: [{name: a100-80gb-sxm, price_usd_per_hour: 3.67, accelerators_per_instance: 1}]
workload: {trace: {file: trace.csv, periods: 2}}
slo: {tpot_mean: 100 ms}
"""
    asked = load_fleet(read_yaml(text, "asked.yaml"), tmp_path)
    short, long = asked.question.workload.classes
    assert (short.name, short.isl, short.osl) == ("in 1 to 128, out 1 to 64", 50, 21)
    assert (long.name, long.isl, long.osl) == ("in 2049 to 8192, out 257 to 1024", 3000, 500)
    # rates over the whole time, and by hour
    assert [short.rate_rps, long.rate_rps] == pytest.approx([0.5, 600 / 7200], rel=1e-3)
    assert short.profile == pytest.approx((1.0, 1.0), rel=2e-3) and long.profile == (0.0, 2.0)
    result = plan(asked)
    assert result.status == "optimal"
    check(asked, result)
    again = load_fleet(Source("saved", asked.resolved), Path())
    assert (again.case.rate == asked.case.rate).all()
    scaled = load_fleet(read_yaml(text.replace("periods: 2", "rate_rps: 7"), "asked.yaml"), tmp_path)
    assert scaled.case.rate.sum() == pytest.approx(7)


def test_faults_of_a_trace(tmp_path: Path) -> None:
    text = """kind: fleet
accelerators: [{name: a, price_usd_per_hour: 3.67, throughput_requests_per_s: [1]}]
workload:
  classes: [{isl: 1, osl: 1, rate_rps: 1}]
  trace: {file: absent.csv, input_edges: [5, 5]}
"""
    found = faults(text)
    assert [fault.partition(": ")[2] for fault in found] == [
        "workload.trace: stands beside classes; one of them says what is asked",
        "workload.trace.input_edges: should ascend [got [5, 5]]",
        "workload.trace.file: there is no file absent.csv",
    ]
    without = text.replace("  classes: [{isl: 1, osl: 1, rate_rps: 1}]\n", "").replace("absent.csv", "x.csv")
    (tmp_path / "x.csv").write_text("arrival_s,input_tokens,output_tokens\n5,1,1\n3,1,0\n")
    with pytest.raises(InputError) as caught:
        load_fleet(read_yaml(without.replace("[5, 5]", "[5, 6]"), "asked.yaml"), tmp_path)
    assert [fault.line for fault in caught.value.faults] == [3, 3]
    assert "missing; classes of requests, or a trace" in faults(text.partition("workload")[0] + "workload: {}\n")[0]


# --- input ---------------------------------------------------------------------------------------------------------


def faults(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_fleet(read_yaml(text, "asked.yaml"), Path())
    return [str(fault) for fault in caught.value.faults]


HEAD = """kind: fleet
accelerators:
  - {name: a, price_usd_per_hour: 1, throughput_requests_per_s: [5, 2]}
  - {name: b, price_usd_per_hour: 2, throughput_requests_per_s: [9, 4]}
workload:
  classes: [{isl: 10, osl: 10, rate_rps: 1}, {isl: 1000, osl: 10, rate_rps: 1}]
"""

LOCATED = {
    "max: 3": "7:1: max: unknown key",
    "model: 3": "7:1: model: should be text",
    "headroom: {utilisation_max: 1.5}": "7:12: headroom.utilisation_max: should be less than or equal to 1",
    "headroom: {lost_instances: -1}": "7:12: headroom.lost_instances: should be greater than or equal to 0",
    "sites: [{name: x, power: 3 kg}]": '7:19: sites[0].power: unknown unit "kg"',
    "sites: [{name: x, power: 3 kW}]": "3:5: accelerators[0].power: missing; site 'x' has a limit of power",
    "plan: {counts: {c: 1}}": "7:17: plan.counts.c: no such accelerator; allowed: a, b",
    "plan: {counts: {a: 1}, routing: {10-10: {a: 0.5}}}": "7:34: plan.routing.10-10: shares should add up to 1",
    "plan: {counts: {a: 1}, routing: {10-11: {a: 1}}}": "7:34: plan.routing.10-11: no such class; allowed: 10-10, ",
    "plan: {counts: {a: 1}, pools: [{accelerator: a, model: model, accelerators_per_instance: 2, instances: 1}]}": (
        "7:32: plan.pools[0]: no such instance is offered [got model of a, 2 accelerators]"
    ),
    "objective: power_w": "7:1: objective: unknown value; allowed: cost_usd_per_hour",
}


@pytest.mark.parametrize("text", LOCATED)
def test_located_faults(text: str) -> None:
    assert faults(HEAD + text + "\n")[0].startswith(f"asked.yaml:{LOCATED[text]}")


GIVEN = {
    "accelerators_per_instance: [1, 2]": "3:38: accelerators[0].accelerators_per_instance: several to choose from; ",
    "accelerators_per_instance: {x: [1, 2]}": "3:66: accelerators[0].accelerators_per_instance.x: no class is of this",
    "accelerators_per_instance: 0": "3:38: accelerators[0].accelerators_per_instance: should be greater than or equal",
    "precision_weights: [bf16, fp8]": "3:38: accelerators[0].precision_weights: several to choose from, but through",
    "latency_s: {1: [1, 2]}": "3:38: accelerators[0].latency_s: should be in the form of throughput_requests_per_s",
    "latency_s: [1]": "3:38: accelerators[0].latency_s: should hold a number for each of the 2 classes [got 1]",
}


@pytest.mark.parametrize("more", GIVEN)
def test_located_faults_of_what_is_given(more: str) -> None:
    text = HEAD.replace("name: a, price_usd_per_hour: 1,", f"name: a, price_usd_per_hour: 1, {more},")
    assert faults(text)[0].startswith(f"asked.yaml:{GIVEN[more]}")


def test_faults_of_sizes_and_percentiles() -> None:
    text = HEAD.replace("[5, 2]", "{1: [5, 2], 2: [9]}").replace("[9, 4]", "{1: [9, 4]}, latency_s: {2: [1, 1]}")
    graph = "{name: x, rate_rps: 1, latency: 9 s, statistic: p99, calls: [{name: y, class: 10-10}]}"
    assert faults(text + f"  graphs: [{graph}]\n") == [
        "asked.yaml:3:5: accelerators[0].latency_s: missing; the request graphs have limits of latency",
        "asked.yaml:3:5: accelerators[0].latency_std_s: missing; the request graphs have limits of percentiles",
        "asked.yaml:3:77: accelerators[0].throughput_requests_per_s[2]: should hold a number for each of the 2 classes "
        "[got 1]",
        "asked.yaml:4:5: accelerators[1].latency_std_s: missing; the request graphs have limits of percentiles",
        "asked.yaml:4:78: accelerators[1].latency_s: should be of the same numbers of accelerators, [1]",
    ]


def test_types_that_experts_are_not_modelled_in_are_named() -> None:
    text = """kind: fleet
model: mixtral-8x7b
accelerators: [{name: a100-80gb-sxm, price_usd_per_hour: 1, precision_weights: [bf16, int8]}]
workload: {classes: [{isl: 100, osl: 100, rate_rps: 1}]}
"""
    (fault,) = faults(text)
    assert fault.startswith(
        "asked.yaml:3:61: accelerators[0].precision_weights: kernels of the experts of mixtral-8x7b"
    )


def test_weights_that_fit_nowhere_say_what_would_do() -> None:
    """141 GB of weights do not fit 24 GB, nor four of them; of two kinds the one that is too small is warned of."""
    text = """kind: fleet
model: llama-3.1-70b
accelerators:
  - {name: l4, price_usd_per_hour: 1, accelerators_per_instance: [1, 4]}
workload: {classes: [{isl: 100, osl: 100, rate_rps: 1}]}
"""
    said = (
        "asked.yaml:4:5: accelerators[0]: instances of 1, 4 do not hold the weights of llama-3.1-70b and a request; 8 "
        "with weights in bf16 would"
    )
    assert faults(text) == [said]
    other = text.replace("workload", "  - {name: h100-80gb-sxm, price_usd_per_hour: 7}\nworkload")
    asked = load_fleet(read_yaml(other, "asked.yaml"), Path())
    assert [str(warning) for warning in asked.warnings] == [said]
    assert plan(asked, top=0).status == "optimal"


def test_all_faults_at_once() -> None:
    text = """kind: fleet
accelerators:
  - {name: a, throughput_requests_per_s: [5]}
  - {name: a, price_usd_per_hour: 2, spot_price_usd_per_hour: 1, throughput_requests_per_s: [9, 4], site: nowhere}
  - {name: l4, type: l44, price_usd_per_hour: 2}
workload:
  classes: [{isl: 10, osl: 10, rate_rps: 1}, {isl: 10, osl: 10, rate_rps: 1, profile: [1, 2]}]
  profile: [1, 2, 3]
"""
    assert faults(text) == [
        "asked.yaml:3:5: accelerators[0].price_usd_per_hour: missing",
        "asked.yaml:3:15: accelerators[0].throughput_requests_per_s: should hold a number for "
        "each of the 2 classes [got 1]",
        "asked.yaml:4:5: accelerators[1].spot_availability: missing; the share of them that is counted on",
        "asked.yaml:4:6: accelerators[1].name: stands twice; each should be called otherwise [got 'a']",
        "asked.yaml:4:101: accelerators[1].site: no such site; allowed: site [got 'nowhere']",
        "asked.yaml:5:5: accelerators[2].throughput_requests_per_s: missing; l4 needs throughput_requests_per_s, "
        "one for each class, or the scenario a model",
        'asked.yaml:5:16: accelerators[2].type: no accelerator "l44" in the catalogue (did you mean "l4"?)',
        "asked.yaml:7:46: workload.classes[1].name: stands twice; each should be called otherwise [got '10-10']",
        "asked.yaml:7:78: workload.classes[1].profile: should hold as many periods as workload.profile, 3 [got 2]",
    ]


# --- the program ---------------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def flat(value: Any) -> dict[str, Any]:
    return dict(flattened(value if isinstance(value, dict) else {"value": value}))


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "fleet-trace-8b")) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_examples_are_proved_and_predict_again_to_the_same_number(path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    run("plan", "fleet", str(path), "-o", str(saved))
    answer = json.loads(saved.read_text(encoding="utf-8"))
    assert answer["status"] == "optimal"
    again = json.loads(run("predict", "fleet", str(saved), "--format", "json"))
    for part in ("plan", "objective"):
        assert again[part] == answer[part]
    for name, value in again["prediction"].items():
        assert flat(answer["prediction"][name]) == pytest.approx(flat(value))


def test_the_table_shows_what_to_rent_and_where_requests_go() -> None:
    table = run("plan", "fleet", str(ROOT / "examples" / "fleet-day.yaml"), "--top", "0")
    for part in ("Where requests go", "8 reserved", "By period", "cost_by_purchase_usd_per_hour", "power[hall]"):
        assert part in table


def test_a_row_for_each_plan() -> None:
    text = run("plan", "fleet", str(EXAMPLE), "--format", "csv")
    answer = json.loads(run("plan", "fleet", str(EXAMPLE), "--format", "json"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 1 + len(answer["alternatives"])
    for row, plan_of in zip(rows, [answer, *answer["alternatives"]], strict=True):
        assert float(row["cost_usd_per_hour"]) == plan_of["prediction"]["cost_usd_per_hour"]
        for name, count in plan_of["plan"]["counts"].items():
            assert int(row[f"plan_counts_{name}"]) == count


def test_a_wrong_file_ends_with_two(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    path.write_text("kind: fleet\n")
    done = CliRunner().invoke(app, ["plan", "fleet", str(path)])
    assert done.exit_code == 2
    assert "accelerators: missing" in done.stderr
    path.write_text(HEAD)
    done = CliRunner().invoke(app, ["predict", "fleet", str(path)])
    assert done.exit_code == 2 and "plan: missing" in done.stderr


def keys(schema: dict[str, Any], part: dict[str, Any], above: str = "") -> set[str]:
    """Walk through the keys of a schema, those of list items below the list's own."""
    found = set()
    for name, entry in part["properties"].items():
        found.add(f"{above}{name}")
        for choice in (entry, entry.get("items", {}), *entry.get("anyOf", [])):
            if "$ref" in choice and not above.startswith("plan"):
                inner = schema["$defs"][choice["$ref"].rpartition("/")[2]]
                found |= keys(schema, inner, f"{above}{name}.")
    return found


def test_the_page_explains_every_key() -> None:
    schema = json.loads(run("schema", "fleet"))
    page = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8").partition("## The problem")[0]
    told = {
        key
        for line in page.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`([\w.]+)`", line.split("|")[1])
    }
    assert told == {key for key in keys(schema, schema) if key.count(".") < 2 or not key.startswith("plan")}


def test_the_schema_names_every_key() -> None:
    schema = json.loads(run("schema", "fleet"))
    call = schema["$defs"]["FleetCall"]["properties"]
    assert set(call) == {"name", "class", "count", "after"}


def test_an_objective_of_the_wrong_unit_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    path.write_text(HEAD + "slo: {tpot_mean: 50}\n")
    done = CliRunner().invoke(app, ["plan", "fleet", str(path)])
    assert done.exit_code == 0
    assert done.stderr == f"warning: {path}:7:7: slo.tpot_mean: 50 s is long; was 50 ms meant?\n"


@pytest.mark.parametrize("name", ["fleet-day", "fleet-agent"])
def test_pictures(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "fleet.svg"
    run("plan", "fleet", str(ROOT / "examples" / f"{name}.yaml"), "--plot", str(picture))
    drawn = picture.read_text(encoding="utf-8")
    for part in ("cost [USD/h]", "a100-80gb-sxm", "USD/h for", "period of the day" if "day" in name else "utilisation"):
        assert part in drawn
    done = CliRunner().invoke(app, ["plan", "fleet", str(EXAMPLE), "--plot", str(tmp_path / "no" / "fleet.svg")])
    assert done.exit_code == 2 and "cannot be written" in done.stderr


def test_a_time_limit_leaves_a_bound() -> None:
    random = np.random.default_rng(3)
    kinds = [
        offer(f"g{k}", price, price * random.uniform(1, 2, 40), reserved_price_usd_per_hour=0.6 * price)
        for k, price in enumerate((0.7, 1.1, 2.3, 4.1))
    ]
    profile = random.uniform(0.2, 2, 12).tolist()
    asked = scenario(
        accelerators=kinds,
        workload={"classes": classes(*random.uniform(0.1, 1, 40)), "slice_factor": 3, "profile": profile},
    )
    result = plan(asked, top=0, time_limit_s=1.0)
    assert result.status in ("time_limit", "optimal")
    if result.plan is not None:
        check(asked, result)
        assert result.best_bound is not None and 0 < result.best_bound <= (result.objective.value or 0)
    none = plan(asked, top=0, time_limit_s=0.0)
    assert none.status == "time_limit"
    loose = plan(asked, top=0, gap=0.5)
    assert loose.status in ("feasible", "optimal") and loose.gap is not None and loose.gap <= 0.5
