"""Servers below the limits of a facility: published figures, brute force, faults with their places."""

import copy
import itertools
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import read_file
from hardware.faults import InputError
from hardware.yaml_source import Source
from perfmodel.power.load import PowerSeries
from solvers.power import plan, predict
from solvers.power_draw import Draw, together
from solvers.power_relaxed import relax
from solvers.power_rules import rules_of
from solvers.power_scenario import PowerScenario, load_power, power_schema
from solvers.result import Result

HERE = Path()
EXAMPLES = Path(__file__).parent.parent / "examples"


def facility(root: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "facility", "name": "test", "root": root, **more}


def row(rating_w: float, racks: int = 20, slots: int = 10) -> dict[str, Any]:
    """One row whose racks never bind."""
    rack = {"name": "rack", "level": "rack", "count": racks, "rating": rating_w, "slots": slots}
    return facility({"name": "row", "level": "row", "rating": rating_w, "children": [rack]})


def workload(mean: float, sigma: float, most: float, idle: float = 0.0, **more: Any) -> dict[str, Any]:
    power = {"mean": mean, "sigma": sigma, "max": most, "idle": idle}
    return {"name": "chat", "server": "dgx-a100", "power": power, **more}


def question(place: dict[str, Any], workloads: list[dict[str, Any]], **more: Any) -> PowerScenario:
    data = {"kind": "power", "facility": place, "workloads": workloads, **more}
    return load_power(Source("test", data), HERE)


def solved(place: dict[str, Any], workloads: list[dict[str, Any]], **more: Any) -> Result:
    return plan(question(place, workloads, **more))


# --- the worked figures --------------------------------------------------------------------------------------------

VECTORS = [
    (260e3, 4200, 900, 6500, 1500, 1e-3, "nameplate", 0.0, 40, 40),
    (260e3, 4200, 900, 6500, 1500, 1e-3, "gaussian", 0.0, 56, 56),
    (260e3, 4200, 900, 6500, 1500, 1e-3, "gaussian", 0.2, 47, 47),
    (260e3, 4200, 900, 6500, 1500, 1e-3, "gaussian", 0.5, 42, 42),
    (260e3, 4200, 900, 6500, 1500, 1e-3, "gaussian", 1.0, 37, 40),
    (260e3, 4200, 900, 6500, 1500, 1e-3, "hoeffding", 0.0, 46, 46),
    (260e3, 4200, 900, 6500, 1500, 1e-5, "gaussian", 0.2, 43, 43),
    (1000e3, 5500, 1100, 10200, 2800, 1e-4, "nameplate", 0.0, 98, 98),
    (1000e3, 5500, 1100, 10200, 2800, 1e-4, "gaussian", 0.1, 146, 146),
    (1000e3, 5500, 1100, 10200, 2800, 1e-4, "gaussian", 0.6, 115, 115),
    (1000e3, 5500, 1100, 10200, 2800, 1e-4, "hoeffding", 0.0, 146, 146),
]
"""Limit, mean, sigma, most, idle [W], risk, method, correlation, servers by the rule alone, by it or nameplates."""


@pytest.mark.parametrize("vector", VECTORS)
def test_worked_figures(vector: tuple[Any, ...]) -> None:
    limit, mean, sigma, most, idle, risk, method, correlation, alone, servers = vector
    policy = {"method": method, "risk": risk, "correlation": correlation}
    answer = solved(row(limit), [workload(mean, sigma, most, idle)], policy=policy)
    assert answer.status == "optimal"
    assert answer.objective.value == answer.best_bound == servers
    assert answer.plan is not None and answer.prediction is not None
    assert answer.prediction["rule_servers"] == alone
    assert answer.plan["rule"] == ("nameplate" if servers > alone else method)


def test_a_normal_tail_below_the_nameplate_gives_the_nameplate_and_says_so() -> None:
    policy = {"method": "gaussian", "risk": 1e-3, "correlation": 1.0}
    answer = solved(row(260e3), [workload(4200, 900, 6500)], policy=policy)
    assert answer.plan is not None
    assert (answer.plan["method"], answer.plan["rule"], answer.plan["servers"]) == ("gaussian", "nameplate", 40)


def test_each_method_is_a_plan_and_the_best_comes_first() -> None:
    policy = {"method": ["nameplate", "percentile", "gaussian", "hoeffding"], "risk": 1e-3, "correlation": 0.0}
    answer = solved(row(260e3), [workload(4200, 900, 6500, 1500)], policy=policy)
    assert answer.plan is not None
    plans = [answer.plan, *(other["plan"] for other in answer.alternatives)]
    assert [(one["method"], one["servers"]) for one in plans] == [
        ("gaussian", 56), ("hoeffding", 46), ("nameplate", 40), ("percentile", 40),
    ]  # fmt: skip


# --- every node, checked apart from the solver ---------------------------------------------------------------------


def loads(case_: Any, method: str, counts: np.ndarray, failed: bool) -> float:  # type: ignore[type-arg]
    """What servers draw by a rule, from its definition, one server at a time."""
    from statistics import NormalDist

    of = np.repeat(np.arange(len(counts)), counts)
    cap = case_.failover_w if failed else np.full(len(counts), np.inf)
    most = np.minimum(case_.max_w, cap)
    safe = float(most[of].sum())
    if method == "nameplate":
        return safe
    if method == "percentile":
        return min(safe, float(np.minimum(case_.quantile_w, cap)[of].sum()))
    if method == "packing":
        total = np.minimum(case_.profile_w, cap[:, None])[of].sum(axis=0)
        beyond = int(len(total) * case_.risk + 1e-9)
        return min(safe, float(np.sort(total)[len(total) - 1 - beyond]))
    rule = 0.0
    for hour in range(len(case_.mean_w)):
        mean = np.minimum(case_.mean_w[hour], cap)
        spread = np.where(cap < case_.mean_w[hour], 0.0, case_.sigma_w[hour])
        factor = NormalDist().inv_cdf(1 - case_.risk)
        if method == "hoeffding":
            spread, factor = most - np.minimum(case_.idle_w, cap), float(np.sqrt(np.log(1 / case_.risk) / 2))
        matrix = case_.correlation[of][:, of].copy()
        np.fill_diagonal(matrix, 1.0)
        variance = float(spread[of] @ matrix @ spread[of])
        rule = max(rule, float(mean[of].sum()) + factor * variance**0.5)
    return min(safe, rule)


def check(scenario: PowerScenario, answer: Result) -> None:
    """Hold an answer's racks and every node above them against limits, from the plan's own words."""
    import re

    assert answer.plan is not None
    case_, site = scenario.case, scenario.case.site
    below = {name: np.zeros(len(case_.workloads), int) for name in site.name}
    for name, servers in answer.plan["by_node"].items():
        found = re.search(r"\[(\d+)-(\d+)\]$", name)
        numbers = range(int(found[1]), int(found[2]) + 1) if found else [None]
        for number in numbers:
            rack = name if number is None else f"{name[: found.start()]}[{number}]"  # type: ignore[union-attr]
            at = site.name.index(rack)
            counts = np.array([servers.get(one, 0) for one in case_.workloads])
            assert counts.sum() <= site.slots[at]
            while at >= 0:
                below[site.name[at]] += counts
                at = int(site.parent[at])
    total = below[site.name[0]]
    assert dict(zip(case_.workloads, total.tolist(), strict=True)) == answer.plan["workloads"]
    assert total.sum() == answer.plan["servers"]
    for node, name in enumerate(site.name):
        assert loads(case_, answer.plan["method"], below[name], False) <= site.limit_w[node] * (1 + 1e-9), name
        if case_.failover:
            assert loads(case_, answer.plan["method"], below[name], True) <= site.failover_w[node] * (1 + 1e-9), name


def best_by_trying(scenario: PowerScenario, method: str) -> int:
    """Try every number of servers in every rack."""
    case_, site = scenario.case, scenario.case.site
    racks = site.racks.tolist()
    choices = [
        [
            counts
            for counts in itertools.product(*(range(int(site.slots[rack]) + 1) for _ in case_.workloads))
            if sum(counts) <= site.slots[rack]
        ]
        for rack in racks
    ]
    best = 0
    for placed in itertools.product(*choices):
        counts = np.array(placed)
        total = counts.sum(axis=0)
        if total.sum() <= best:
            continue
        if case_.share is not None and not (total == case_.apportioned(int(total.sum()))).all():
            continue
        if (total < case_.least).any() or (total > case_.most).any():
            continue
        nodes = site.totals(counts)
        limits = [(False, site.limit_w), *([(True, site.failover_w)] if case_.failover else [])]
        if all(
            loads(case_, method, nodes[node], failed) <= limit[node] * (1 + 1e-9)
            for failed, limit in limits
            for node in range(len(nodes))
        ):
            best = int(total.sum())
    return best


METHODS = ["nameplate", "percentile", "gaussian", "hoeffding", "packing"]


def small_hall(draw: np.random.Generator, feeds: bool) -> dict[str, Any]:
    """Two PDUs of two racks, all of them near their limits."""
    rack = {"level": "rack", "slots": 3}
    children = [
        {"name": f"pdu{number}", "level": "pdu", "rating": float(draw.integers(14, 24) * 1000), "children": [
            {"name": "a", **rack, "rating": float(draw.integers(9, 14) * 1000)},
            {"name": "b", **rack, "rating": float(draw.integers(7, 13) * 1000)},
        ]} for number in range(2)
    ]  # fmt: skip
    rating = float(draw.integers(24, 40) * 1000)
    root = {"name": "hall", "level": "row", "rating": rating, "children": children}
    if feeds:
        root["feeds"] = {"count": 2, "needed": 1, "rating": rating * 0.6, "ride_through": 10}
    actuator = {"name": "cap", "latency": 5, "power": {"lowest": 200, "highest": 400}}
    return facility(root, actuators=[actuator])


def small_workloads(draw: np.random.Generator, method: str, folder: Path) -> list[dict[str, Any]]:
    """Two workloads, by moments or by traces."""
    workloads = [
        workload(3000, 500, 5000, 1000) | {"name": "light"},
        workload(4500, 700, 6500, 1500) | {"name": "heavy"},
    ]
    if method == "packing":
        for one in workloads:
            watts = np.clip(one["power"]["mean"] + 900 * draw.standard_normal(24), 1500, 6500)
            rows = "".join(f"{300 * step},{power:.1f}\n" for step, power in enumerate(watts))
            (folder / f"{one['name']}.csv").write_text("time_s,power_w\n" + rows)
            del one["power"]
            one["trace"] = f"{one['name']}.csv"
    return workloads


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("failover", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_small_trees_against_trying_everything(
    method: str, shares: bool, failover: bool, seed: int, tmp_path: Path
) -> None:
    draw = np.random.default_rng([seed, METHODS.index(method), shares, failover])
    place = small_hall(draw, failover)
    workloads = small_workloads(draw, method, tmp_path)
    if shares:
        workloads = [one | {"share": share} for one, share in zip(workloads, (0.6, 0.4), strict=True)]
    if failover:
        workloads[1]["failover_power"] = 2000.0
    risk = [0.01, 0.1][seed]
    correlation = [[0.5, 0.2], [0.2, 0.3]]
    policy = {"method": method, "risk": risk, "correlation": correlation, "failover": "n+1" if failover else "none"}
    data = {"kind": "power", "facility": place, "workloads": workloads, "policy": policy}
    scenario = load_power(Source("test", data), tmp_path)
    answer = plan(scenario)
    check(scenario, answer)
    best = best_by_trying(scenario, method)
    assert answer.status == "optimal"
    assert answer.objective.value == answer.best_bound == best


@given(
    st.floats(60e3, 300e3), st.floats(1.0, 1.5), st.floats(0.0, 1.0),
    st.sampled_from(["nameplate", "percentile", "gaussian", "hoeffding"]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_a_higher_rating_never_takes_fewer(rating: float, more: float, correlation: float, method: str) -> None:
    policy = {"method": method, "risk": 1e-3, "correlation": correlation}
    few, many = (
        solved(row(watts), [workload(4200, 900, 6500, 1500)], policy=policy).objective.value
        for watts in (rating, rating * more)
    )
    assert few is not None and many is not None and few <= many
    assert few >= rating // 6500  # nameplates always fit


@pytest.mark.parametrize("method", ["gaussian", "nameplate"])
def test_many_racks_that_are_all_unlike(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Racks of 300 limits: those that are nearly alike are bounded together, and the bound still holds."""
    draw = np.random.default_rng(5)
    racks = [
        {"name": f"r{number}", "level": "rack", "rating": float(rating), "slots": 6, "parent": f"p{number // 75}"}
        for number, rating in enumerate(draw.uniform(12e3, 36e3, 300))
    ]
    pdus = [{"name": f"p{number}", "level": "pdu", "rating": 1.3e6, "parent": "hall"} for number in range(4)]
    hall = {"name": "hall", "level": "utility", "rating": 4.8e6}
    place = {"kind": "facility", "nodes": [hall, *pdus, *racks]}
    workloads = [
        workload(3000, 500, 5000, 1000) | {"name": "light", "max_servers": 600},
        workload(4500, 700, 6500, 1500) | {"name": "heavy"},
    ]
    scenario = question(place, workloads, policy={"method": method, "risk": 1e-3, "correlation": 0.2})
    answer = plan(scenario)
    check(scenario, answer)
    assert answer.gap is not None and answer.gap < 0.03
    monkeypatch.setattr("solvers.power_relaxed._MOST_POOLS", 10**6)  # every rack on its own
    apart = relax(scenario.case, rules_of(scenario.case, method), np.inf)
    assert apart is not None and answer.best_bound is not None and answer.objective.value is not None
    assert answer.objective.value <= np.floor(apart.value + 1e-6) <= answer.best_bound


def test_the_order_of_racks_changes_nothing() -> None:
    racks = [
        {"name": f"r{number}", "level": "rack", "rating": rating, "slots": 6}
        for number, rating in enumerate([20e3, 30e3, 20e3, 38e3])
    ]
    found = []
    for order in itertools.permutations(racks):
        place = facility({"name": "row", "level": "row", "rating": 100e3, "children": list(order)})
        answer = solved(place, [workload(4200, 900, 6500)], policy={"method": "gaussian", "correlation": 0.3})
        found.append((answer.objective.value, answer.best_bound))
    assert len(set(found)) == 1


# --- plans read back -----------------------------------------------------------------------------------------------


def test_a_plan_predicts_again_to_the_same(tmp_path: Path) -> None:
    text = {
        "kind": "power", "facility": row(260e3), "workloads": [workload(4200, 900, 6500)],
        "policy": {"method": "gaussian", "correlation": 0.2},
    }  # fmt: skip
    (tmp_path / "row.yaml").write_text(json.dumps(text))
    runner = CliRunner()
    saved = tmp_path / "plan.json"
    done = runner.invoke(app, ["plan", "power", str(tmp_path / "row.yaml"), "-o", str(saved)])
    assert done.exit_code == 0, done.output
    first = json.loads(saved.read_text())
    done = runner.invoke(app, ["predict", "power", str(saved), "--format", "json"])
    again = json.loads(done.stdout)
    assert again["plan"] == first["plan"] and again["prediction"] == first["prediction"]
    done = runner.invoke(app, ["predict", "power", str(tmp_path / "row.yaml"), "--set", "plan.servers=48"])
    assert done.exit_code == 0 and "infeasible" in done.stdout and "row lacks" in done.stdout


def test_options_reach_into_a_facility_that_is_only_named(tmp_path: Path) -> None:
    (tmp_path / "row.yaml").write_text(SCENARIO)
    asked = ["plan", "power", str(tmp_path / "row.yaml"), "--set", "policy.method=nameplate", "--format", "csv"]
    reached = ["--set", "facility.root.rating=300 kW", "--set", "facility.root.children.rack.slots=5"]
    done = CliRunner().invoke(app, [*asked, *reached])
    assert done.exit_code == 0, done.stderr
    head, first = done.stdout.splitlines()[:2]
    row_ = dict(zip(head.split(","), first.split(","), strict=False))
    assert row_["servers"] == "46"  # 300 / 6.5, of 50 slots
    assert "scenario_facility_root_rating_w" in head
    done = CliRunner().invoke(app, [*asked, "--set", "facility.root.ratng=300 kW"])
    assert done.exit_code == 2 and 'did you mean "rating"' in done.stderr


def test_a_plan_without_a_method_takes_the_first_rule_that_allows_it() -> None:
    policy = {"risk": 1e-3, "correlation": 0.2}
    kinds = [workload(4200, 900, 6500, 1500)]
    given_plan = predict(question(row(260e3), kinds, policy=policy, plan={"servers": 45}))
    assert given_plan.plan is not None and given_plan.plan["method"] == "gaussian"
    assert predict(question(row(260e3), kinds, policy=policy, plan={"servers": 40})).plan["method"] == "nameplate"  # type: ignore[index]
    refused = predict(question(row(260e3), kinds, policy=policy, plan={"servers": 48}))
    (change,) = refused.relaxation
    # what gaussian asks for is the least: 48 m + z s sqrt(48 + 48 47 0.2)
    assert change["needed"] == pytest.approx(48 * 4200 + 3.0902 * 900 * (48 + 48 * 47 * 0.2) ** 0.5, rel=1e-4)


def test_a_plan_above_a_limit_names_the_node_and_the_watts() -> None:
    given_plan = {"by_node": {"rack[0-3]": {"chat": 10}, "rack[4]": {"chat": 1}}}
    scenario = question(row(260e3), [workload(4200, 900, 6500)], policy={"method": "nameplate"}, plan=given_plan)
    answer = predict(scenario)
    assert answer.status == "infeasible"
    assert answer.why_not[0]["nearest"] == {"node": "row", "missing_w": 6500, "limit_w": 260000}
    assert answer.relaxation == [{"constraint": "limit[row]", "now": 260000, "needed": 266500, "unit": "W"}]


def test_servers_that_are_needed_and_do_not_fit() -> None:
    answer = solved(row(260e3), [workload(4200, 900, 6500, min_servers=42)], policy={"method": "nameplate"})
    assert answer.status == "infeasible" and answer.plan is None
    (change,) = answer.relaxation
    assert change["constraint"] == "limit[row]" and change["needed"] == pytest.approx(42 * 6500)
    raised = solved(row(change["needed"]), [workload(4200, 900, 6500, min_servers=42)], policy={"method": "nameplate"})
    assert raised.objective.value == 42
    answer = solved(row(260e3, 2, 3), [workload(4200, 900, 6500, min_servers=7)], policy={"method": "nameplate"})
    assert answer.relaxation == [{"constraint": "slots[chat]", "now": 6, "needed": 7, "unit": "servers"}]


# --- what is refused -----------------------------------------------------------------------------------------------

SCENARIO = """\
kind: power
facility: polca-row
workloads:
  - {name: chat, server: dgx-a100, share: 0.5, power: {mean: 4.2 kW, sigma: 0.9 kW}}
  - {name: batch, server: dgx-a100, share: 0.5, power: {mean: 3.8 kW, sigma: 0.5 kW}}
policy: {method: gaussian, risk: 1e-3, correlation: [[0.3, 0.1], [0.1, 0.3]]}
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("[0.1, 0.3]]", "[0.1, 0.0]]", "6:", "not positive semidefinite"),
        ("[0.1, 0.3]]", "[0.2, 0.3]]", "6:", "the same from one workload to another"),
        ("[[0.3, 0.1], [0.1, 0.3]]", "[[0.3]]", "6:", "2 rows of 2"),
        ("dgx-a100, share: 0.5, power: {mean: 4.2", "dgx-a10, share: 0.5, power: {mean: 4.2", "4:", 'mean "dgx-a100"'),
        ("dgx-a100, share: 0.5, power: {mean: 4.2", "dgx-h100, share: 0.5, power: {mean: 4.2", "4:", "no rack takes"),
        ("mean: 4.2 kW", "mean: 7.2 kW", "4:", "is above max, 6500 W"),
        ("share: 0.5, power: {mean: 4.2", "share: 0.6, power: {mean: 4.2", "4:", "add up to 1 [got 1.1]"),
        ("share: 0.5, power: {mean: 3.8", "power: {mean: 3.8", "5:", "of all workloads or of none"),
        (
            "sigma: 0.5 kW}}",
            "sigma: 0.5 kW}, failover_power: 1 kW}",
            "5:",
            "below the 1500 W that the server draws idle",
        ),
        ("risk: 1e-3", "risk: 0", "6:", "above 0 for gaussian"),
        ("name: batch", "name: chat", "5:", "stands twice"),
        ("risk: 1e-3", "failover: n+1", "6:", "no node of the facility has feeds"),
        ("facility: polca-row", "facility: polca-rwo", "2:", 'did you mean "polca-row"'),
        ("kind: power\n", "kind: power\nobjective: cost_usd\n", "5:", "price: missing"),
        ("kind: power\n", "kind: power\nobjective: goodput_requests_per_s\n", "5:", "the sum of it"),
        ("sigma: 0.5 kW}}", "sigma: 0.5 kW}, trace: x.csv}", "5:", "either power or trace"),
        ("power: {mean: 3.8 kW, sigma: 0.5 kW}}", "trace: x.csv}", "5:", "there is no file"),
    ],
)
def test_faults_stand_at_their_place(old: str, new: str, place: str, words: str, tmp_path: Path) -> None:
    assert old in SCENARIO
    path = tmp_path / "bad.yaml"
    path.write_text(SCENARIO.replace(old, new))
    done = CliRunner().invoke(app, ["plan", "power", str(path)])
    assert done.exit_code == 2, done.output
    assert f"bad.yaml:{place}" in done.stderr and words in done.stderr, done.stderr


def test_racks_may_call_servers_by_any_of_their_names() -> None:
    place = row(260e3)
    place["root"]["children"][0]["servers"] = ["A100_DGX"]
    assert solved(place, [workload(4200, 900, 6500)], policy={"method": "nameplate"}).objective.value == 40


def test_a_plan_of_files_in_other_folders_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "halls").mkdir()
    (tmp_path / "plans").mkdir()
    node = (Path(str(resources.files("hardware"))) / "catalog" / "nodes" / "dgx-a100.yaml").read_text()
    (tmp_path / "halls" / "mine.yaml").write_text(
        node.replace("name: dgx-a100\naliases: [", "name: mine\naliases: [x-")
    )
    text = json.dumps(row(260e3)).replace('"slots": 10', '"slots": 10, "servers": ["mine.yaml"]')
    (tmp_path / "halls" / "hall.json").write_text(text)
    asked = {"kind": "power", "facility": "halls/hall.json", "policy": {"method": "nameplate"},
             "workloads": [workload(4200, 900, 6500) | {"server": "halls/mine.yaml"}]}  # fmt: skip
    (tmp_path / "row.json").write_text(json.dumps(asked))
    saved, runner = tmp_path / "plans" / "plan.json", CliRunner()
    done = runner.invoke(app, ["plan", "power", str(tmp_path / "row.json"), "-o", str(saved)])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["predict", "power", str(saved), "--format", "json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["prediction"]["servers"] == 40


def test_gaps_in_a_trace_are_told_with_their_line(tmp_path: Path) -> None:
    rows = [f"{60 * step},{4000 + step}" for step in range(20) if step != 7]
    (tmp_path / "x.csv").write_text("time_s,power_w\n" + "\n".join(rows) + "\n")
    data = {
        "kind": "power",
        "facility": "polca-row",
        "workloads": [{"name": "a", "server": "dgx-a100", "trace": "x.csv"}],
    }
    with pytest.raises(InputError) as caught:
        load_power(Source("s", data), tmp_path)
    (fault,) = caught.value.faults
    assert fault.line == 9 and "gap" in fault.message


def test_a_trace_sampled_more_slowly_than_the_actuator_acts_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time_s,power_w\n" + "".join(f"{300 * step},4000\n" for step in range(5)))
    data = {
        "kind": "power",
        "facility": "polca-row",
        "workloads": [{"name": "a", "server": "dgx-a100", "trace": "x.csv"}],
    }
    scenario = load_power(Source("s", data), tmp_path)
    assert [fault for fault in scenario.warnings if "peaks are missed" in fault.message]


def test_traces_of_unlike_steps_meet_in_the_longer_one_with_their_peaks() -> None:
    fine = PowerSeries(60.0, np.array([[1.0, 5.0, 2.0, 3.0, 9.0, 4.0]]))  # s 0-360
    coarse = PowerSeries(90.0, np.array([[10.0, 20.0]]))  # repeated after 180 s
    draws = [Draw(100.0, 0.0, 0.0, 0.0, None, series, "") for series in (fine, coarse)]
    found = together(draws, 0.0).profile_w
    assert found.tolist() == [[5, 5, 9, 9], [10, 20, 10, 20]]  # 0-90 s meets 1 and 5, 90-180 s 5 and 2, ...


# --- after the loss of a feed --------------------------------------------------------------------------------------


def test_what_is_shed_after_a_failure_need_not_fit_then() -> None:
    """Two feeds of 130 kW: 40 servers of 6.5 kW fit both, 20 one; of servers that stop the normal limit is all."""
    place = row(260e3)
    place["root"]["feeds"] = {"count": 2, "needed": 1, "rating": 130e3, "ride_through": 10}
    place["actuators"] = [{"name": "cap", "latency": 5, "power": {"lowest": 200, "highest": 400}}]
    policy = {"method": "nameplate", "failover": "n+1"}

    def most(**more: Any) -> float | None:
        return solved(place, [workload(4200, 900, 6500, **more)], policy=policy).objective.value

    assert most() == 20
    assert most(failover_power=0.0) == 40
    assert most(failover_power=4000.0) == 32  # 130 kW / 4 kW
    place["actuators"][0]["latency"] = 11
    with pytest.raises(InputError, match="no actuator acts within the 10 s"):
        most(failover_power=0.0)


def test_a_failure_limit_that_holds_servers_back_is_named() -> None:
    place = row(260e3)
    place["root"]["feeds"] = {"count": 2, "needed": 1, "rating": 130e3, "ride_through": 10}
    policy = {"method": "nameplate", "failover": "n+1"}
    answer = solved(place, [workload(4200, 900, 6500)], policy=policy)
    assert answer.binding[0]["constraint"] == "limit after failure[row]"
    assert answer.binding[0]["shadow_price"] == pytest.approx(1 / 6.5)
    answer = solved(place, [workload(4200, 900, 6500, min_servers=25)], policy=policy)
    assert "row lacks 32,500 W once a feed is lost" in answer.why_not[0]["reason"]


# --- objectives and kinds of load ----------------------------------------------------------------------------------


def test_goodput_takes_the_servers_that_answer_more_for_a_watt() -> None:
    place = row(65e3, racks=4, slots=10)
    fast = workload(6000, 0, 6500, goodput_requests_per_s=3.0) | {"name": "fast"}
    slow = workload(3000, 0, 3250, goodput_requests_per_s=1.0) | {"name": "slow"}
    policy = {"method": "nameplate"}
    answer = solved(place, [fast, slow], policy=policy, objective="goodput_requests_per_s")
    assert answer.plan is not None and answer.plan["workloads"] == {"fast": 10, "slow": 0}
    assert answer.objective.value == 30
    assert solved(place, [fast, slow], policy=policy).objective.value == 20


def test_least_cost_of_servers_that_are_needed_counts_energy() -> None:
    place = row(65e3) | {"pue": 1.2, "energy_price": 0.1}
    wanted = workload(5000, 0, 6500, min_servers=4, price=2.0)
    answer = solved(place, [wanted], policy={"method": "nameplate"}, objective="cost_usd")
    assert answer.status == "optimal"
    assert answer.objective.value == pytest.approx(4 * 8766 * (2.0 + 5.0 * 1.2 * 0.1))


def test_a_swing_counts_at_its_peak() -> None:
    """Above an idle 1 kW, a mean of 4 kW swings by 30 %: 4.9 kW at the peak."""
    place, policy = row(98e3), {"method": "gaussian", "risk": 0.01, "correlation": 1.0}
    steady = workload(4000, 0, 6500, 1000)
    swinging = workload(4000, 0, 6500, 1000)
    swinging["power"]["diurnal"] = {"swing": 0.3, "peak_hour": 14}
    assert solved(place, [steady], policy=policy).objective.value == 24
    assert solved(place, [swinging], policy=policy).objective.value == 20
    opposite = workload(4000, 0, 6500, 1000) | {"name": "night"}
    opposite["power"]["diurnal"] = {"swing": 0.3, "peak_hour": 2}
    both = [one | {"share": 0.5} for one in (swinging, opposite)]
    assert solved(place, both, policy=policy).objective.value == 24  # one's peak is the other's trough


def test_percentiles_of_a_prediction_are_those_of_the_series(tmp_path: Path) -> None:
    watts = 3000 + 10.0 * np.random.default_rng(3).permutation(200)
    rows = "".join(f"{60 * step},{power}\n" for step, power in enumerate(watts))
    (tmp_path / "x.csv").write_text("time_s,power_w\n" + rows)
    workloads = [{"name": "a", "server": "dgx-a100", "trace": "x.csv"}]
    data = {
        "kind": "power",
        "facility": "polca-row",
        "workloads": workloads,
        "policy": {"method": "packing", "risk": 0.01},
    }
    answer = plan(load_power(Source("s", data), tmp_path))
    assert answer.plan is not None and answer.prediction is not None
    servers = answer.plan["servers"]
    assert servers == int(260e3 // 4970)  # of 200 steps two may be above, those of 4,990 and 4,980 W
    assert answer.prediction["peak_p99_w"] == pytest.approx(servers * 4970)
    assert answer.prediction["mean_w"] == pytest.approx(servers * 3995)
    assert answer.prediction["share_above_limit"] == np.mean(servers * watts > 260e3)


def test_a_trace_is_as_sure_as_its_days_are_alike(tmp_path: Path) -> None:
    def interval_of(peaks: list[float]) -> tuple[int, int, int]:
        watts = [peak if step == 24 else 3000.0 for peak in peaks for step in range(48)]
        rows = "".join(f"{1800 * step},{power}\n" for step, power in enumerate(watts))
        (tmp_path / "x.csv").write_text("time_s,power_w\n" + rows)
        workloads = [{"name": "a", "server": "dgx-a100", "trace": "x.csv"}]
        policy = {"method": "packing", "risk": 0}
        answer = plan(load_power(Source("s", {"kind": "power", "facility": "polca-row", "workloads": workloads,
                                              "policy": policy}), tmp_path))  # fmt: skip
        assert answer.prediction is not None
        return tuple(answer.prediction[f"rule_servers{end}"] for end in ("", "_p10", "_p90"))  # type: ignore[return-value]

    assert interval_of([5000.0] * 7) == (52, 52, 52)
    # one day is higher: it is among seven drawn with 1 - (6/7)^7 = 66 %, in halves with 1 - (13/14)^14 = 65 %
    assert interval_of([5000.0] * 6 + [6000.0]) == (43, 43, 52)


# --- what the documentation says ---------------------------------------------------------------------------------


def rows_of(schema: dict[str, Any], part: dict[str, Any], above: str = "") -> Iterator[str]:
    """Write key, default and meaning of everything that a scenario may hold as rows of a table."""
    for name, entry in part["properties"].items():
        forms = [entry, *entry.get("anyOf", [])]
        inner = next((form["$ref"] for form in forms if "$ref" in form), None)
        item = next((form["items"]["$ref"] for form in forms if "$ref" in form.get("items", {})), None)
        below = schema["$defs"].get(str(inner or item).rpartition("/")[2], {})
        given_default = entry.get("default")
        default = "-" if inner or given_default in (None, [], {}) else f"`{given_default}`"
        meaning = " ".join(entry.get("description", below.get("description", "")).split()).rstrip(".")
        yield f"| `{above}{name}` | {'required' if name in part.get('required', []) else default} | {meaning} |"
        if below:
            yield from rows_of(schema, below, f"{above}{name}{'[]' if item else ''}.")


def test_the_table_of_keys_is_the_schema() -> None:
    page = (EXAMPLES.parent / "docs" / "power.md").read_text(encoding="utf-8")
    schema = power_schema()
    table = page.partition("| key | default | meaning |\n| --- | --- | --- |\n")[2].partition("\n\n")[0]
    assert table.splitlines() == list(rows_of(schema, schema))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("power-*.yaml")), ids=lambda path: path.stem)
def test_examples_fit_the_schema(path: Path) -> None:
    jsonschema.validate(read_file(path).data, power_schema())


# --- examples ------------------------------------------------------------------------------------------------------


def test_the_row_like_polcas_without_caps() -> None:
    data = copy.deepcopy(read_file(EXAMPLES / "power-polca-row.yaml").data)
    data["policy"]["capping"] = "none"
    scenario = load_power(Source("row", data), EXAMPLES)
    answer = plan(scenario)
    check(scenario, answer)
    assert answer.objective.value == 50  # +25 %, floor(40 / 0.79)
    assert [other["plan"]["servers"] for other in answer.alternatives] == [40]


@pytest.mark.slow
def test_the_hall_with_training_and_inference() -> None:
    path = EXAMPLES / "power-hall-n1.yaml"
    scenario = load_power(read_file(path), EXAMPLES)
    answer = plan(scenario)
    check(scenario, answer)
    assert answer.status == "optimal"
    assert any(entry["constraint"] == "limit after failure[hall]" for entry in answer.binding)
