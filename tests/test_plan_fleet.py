"""The fleet planner: computed references, brute force, duality, and answers checked by their plans alone."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from fleet_cases import cheapest, check, classes, offer, scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from solvers.fleet import plan
from solvers.fleet_scenario import FleetScenario, load_fleet

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("fleet-*.yaml"))

csv.field_size_limit(10**7)
with (ROOT / "tests" / "oracles" / "fleet_oracle.csv").open(encoding="utf-8") as _file:
    ORACLE = {row["case"]: row for row in csv.DictReader(_file)}

# --- computed references -------------------------------------------------------------------------------------------


def melange(row: dict[str, str]) -> FleetScenario:
    """Read a case in the configuration format of Melange."""
    instance = json.loads(row["instance_json"])
    shares = instance["workload_distribution"]
    sizes = [(i, o) for i, line in enumerate(shares) for o in range(len(line))]
    return scenario(
        accelerators=[
            offer(name, one["cost"], [one["tputs"][i][o] for i, o in sizes])
            for name, one in instance["gpu_info"].items()
        ],
        workload={
            "classes": [
                {"isl": i + 1, "osl": o + 1, "rate_rps": shares[i][o] * instance["total_request_rate"]}
                for i, o in sizes
            ],
            "slice_factor": instance["slice_factor"],
        },
    )


@pytest.mark.parametrize("case", ORACLE)
def test_computed_references(case: str) -> None:
    row = ORACLE[case]
    asked = melange(row)
    result = plan(asked, top=0)
    assert result.status == row["status"]
    if row["status"] == "infeasible":
        assert "no accelerator serves class" in result.why_not[0]["reason"]
        return
    assert result.objective.value == pytest.approx(float(row["optimum_cost_usd_per_hour"]), rel=1e-6)
    assert result.prediction is not None and result.plan is not None
    assert result.prediction["relaxed_cost_usd_per_hour"] == pytest.approx(
        float(row["lp_bound_usd_per_hour"]), rel=1e-5
    )
    assert result.prediction["integrality_gap"] == pytest.approx(float(row["integrality_gap"]), abs=1e-5)
    if row["counts_unique"] == "yes":
        assert result.plan["counts"] == json.loads(row["counts_json"])
    check(asked, result)


# --- brute force ---------------------------------------------------------------------------------------------------

PRICES = st.floats(0.5, 8.0).map(lambda value: round(value, 2))
THROUGHPUT = st.one_of(st.just(0.0), st.floats(0.2, 20.0).map(lambda value: round(value, 2)))
RATES = st.floats(0.1, 8.0).map(lambda value: round(value, 2))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), kinds=st.integers(1, 3), sizes=st.integers(1, 3), slices=st.integers(1, 3), lost=st.integers(0, 2)
)
def test_every_division_tried(data: st.DataObject, kinds: int, sizes: int, slices: int, lost: int) -> None:
    prices = data.draw(st.lists(PRICES, min_size=kinds, max_size=kinds))
    throughput = data.draw(
        st.lists(st.lists(THROUGHPUT, min_size=sizes, max_size=sizes), min_size=kinds, max_size=kinds)
    )
    rates = data.draw(st.lists(RATES, min_size=sizes, max_size=sizes))
    most = data.draw(st.lists(st.integers(0, 12), min_size=kinds, max_size=kinds))
    asked = scenario(
        accelerators=[offer(f"g{k}", prices[k], throughput[k], max=most[k]) for k in range(kinds)],
        workload={"classes": classes(*rates), "slice_factor": slices},
        headroom={"lost_instances": lost},
    )
    best = cheapest(prices, throughput, rates, slices, most, lost)
    result = plan(asked, top=2)
    if math.isinf(best):
        assert result.status == "infeasible" and result.relaxation
        return
    assert result.status == "optimal"
    assert result.objective.value == pytest.approx(best, rel=1e-6)
    check(asked, result)
    for other in result.alternatives:
        assert other["prediction"]["cost_usd_per_hour"] >= best * (1 - 1e-9)


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
    "objective: power_w": "7:1: objective: unknown value; allowed: cost_usd_per_hour",
}


@pytest.mark.parametrize("text", LOCATED)
def test_located_faults(text: str) -> None:
    assert faults(HEAD + text + "\n")[0].startswith(f"asked.yaml:{LOCATED[text]}")


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
        "one for each class",
        'asked.yaml:5:16: accelerators[2].type: no accelerator "l44" in the catalogue (did you mean "l4"?)',
        "asked.yaml:7:46: workload.classes[1].name: stands twice; each should be called otherwise [got '10-10']",
        "asked.yaml:7:78: workload.classes[1].profile: should hold as many periods as workload.profile, 3 [got 2]",
    ]


# --- the program ---------------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_proved_and_predict_again_to_the_same_number(path: Path, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    run("plan", "fleet", str(path), "-o", str(saved))
    answer = json.loads(saved.read_text(encoding="utf-8"))
    assert answer["status"] == "optimal"
    again = json.loads(run("predict", "fleet", str(saved), "--format", "json"))
    for part in ("plan", "objective"):
        assert again[part] == answer[part]
    for name, value in again["prediction"].items():
        assert answer["prediction"][name] == pytest.approx(value)
    table = run("plan", "fleet", str(path))
    assert "Where requests go" in table


def test_a_row_for_each_plan() -> None:
    text = run("plan", "fleet", str(EXAMPLES[0]), "--format", "csv")
    answer = json.loads(run("plan", "fleet", str(EXAMPLES[0]), "--format", "json"))
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


def test_the_schema_names_every_key() -> None:
    schema = json.loads(run("schema", "fleet"))
    call = schema["$defs"]["FleetCall"]["properties"]
    assert set(call) == {"name", "class", "count", "after"}
