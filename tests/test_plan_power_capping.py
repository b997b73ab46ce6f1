"""Plans of power with caps of two thresholds: a row like POLCA's, other kinds of load, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import read_file
from hardware.faults import InputError
from hardware.yaml_source import Source
from solvers.power import plan, predict
from solvers.power_capped import Simulated
from solvers.power_scenario import PowerScenario, load_power
from solvers.result import Result

EXAMPLES = Path(__file__).parent.parent / "examples"
ROW = EXAMPLES / "power-polca-row.yaml"
POLICY = {"method": "gaussian", "risk": 1e-3, "correlation": 0.1, "capping": "two-threshold"}


def scenario(data: dict[str, Any]) -> PowerScenario:
    return load_power(Source("test", copy.deepcopy(data)), EXAMPLES)


def known(share: float, priority: str, mean: float = 4300.0, sigma: float = 250.0) -> dict[str, Any]:
    power = {"mean": mean, "sigma": sigma, "max": 6500, "idle": 2200}
    return {"name": priority, "server": "dgx-a100", "priority": priority, "share": share, "power": power}


def row_of(workloads: list[dict[str, Any]], **policy: Any) -> dict[str, Any]:
    return {"kind": "power", "facility": "polca-row", "workloads": workloads, "policy": POLICY | policy}


@pytest.fixture(scope="module")
def polca() -> tuple[PowerScenario, Result]:
    asked = load_power(read_file(ROW), EXAMPLES)
    return asked, plan(asked, simulate=Simulated(weeks=1.0))


def test_the_row_like_polcas_takes_52_servers(polca: tuple[PowerScenario, Result]) -> None:
    # published: 52 of 40 by two thresholds, high priority within 1 %, low within 2 %, no brake; without caps 50 by peak
    _, answer = polca
    assert answer.plan is not None and answer.prediction is not None
    assert answer.status == "feasible"
    assert answer.objective.value >= 52
    assert answer.alternatives[0]["plan"]["servers"] == 50
    for told in (answer.prediction, answer.prediction["simulated"]):
        assert 0 <= told["loss"]["chat"] <= 0.01
        assert 0 < told["loss"]["batch"] <= 0.02
    seen = answer.prediction["simulated"]
    assert seen["synthesised"]
    assert seen["brakes"] == seen["trips"] == seen["s_above_limit"] == 0
    assert answer.plan["thresholds"][-1] * 1.118 <= 1 + 1e-9
    assert answer.binding[0]["one_server_more"] is not None
    threshold = next(one for one in answer.binding if one["constraint"] == "threshold 2[row]")
    assert threshold["slack"] == pytest.approx(0, abs=1e-9)


def test_the_simulation_shows_what_was_predicted(polca: tuple[PowerScenario, Result]) -> None:
    _, answer = polca
    assert answer.prediction is not None
    seen = answer.prediction["simulated"]
    for name, loss in answer.prediction["loss"].items():
        assert seen["loss"][name] == pytest.approx(loss, rel=0.15, abs=5e-4)
    for name in ("p50_w", "p90_w", "p99_w"):
        assert seen[name] == pytest.approx(seen["predicted_" + name], abs=0.015 * 260e3)
        assert answer.prediction["peak_" + name] == seen["predicted_" + name]
        assert answer.prediction["by_node"]["row"][name] == seen["predicted_" + name]
    assert seen["capped_s_per_day"] == pytest.approx(answer.prediction["capped_s_per_day"], abs=0.08 * 86400)


def test_caps_name_clocks_of_the_actuator(polca: tuple[PowerScenario, Result]) -> None:
    _, answer = polca
    assert answer.plan is not None
    caps = answer.plan["caps"]
    assert list(caps) == ["chat", "batch"]
    for clocks in (cap["clock_hz"] for cap in caps.values()):
        assert len(clocks) == len(answer.plan["thresholds"])
        assert all(1110e6 * (1 - 1e-9) <= clock <= 1410e6 * (1 + 1e-9) for clock in clocks)
        assert clocks == sorted(clocks, reverse=True)


def test_a_plan_predicts_again_to_the_same(polca: tuple[PowerScenario, Result]) -> None:
    asked, answer = polca
    assert answer.plan is not None and answer.prediction is not None
    data = {**asked.resolved, "plan": json.loads(json.dumps(answer.plan))}
    again = predict(scenario(data))
    assert again.status == "feasible"
    assert again.prediction is not None
    for key in ("servers", "capped_s_per_day", "loss", "brake_probability_per_year"):
        assert again.prediction[key] == pytest.approx(answer.prediction[key], rel=1e-6)


def test_a_plan_that_caps_cannot_hold_names_what_breaks(polca: tuple[PowerScenario, Result]) -> None:
    asked, answer = polca
    assert answer.plan is not None
    data = {**asked.resolved, "plan": {"servers": 60, **{key: answer.plan[key] for key in ("thresholds", "caps")}}}
    refused = predict(scenario(data))
    assert refused.status == "infeasible"
    assert refused.plan is None
    assert any("row" in why["reason"] for why in refused.why_not)
    assert all(one["needed"] > one["now"] for one in refused.relaxation)


def test_power_that_is_known_by_moments_is_capped_too() -> None:
    asked = row_of([known(0.5, "high"), known(0.5, "low")], risk=1e-6)
    answer = plan(scenario(asked), simulate=Simulated(0.2))
    assert answer.prediction is not None and answer.plan is not None and answer.objective.value is not None
    assert 40 <= answer.objective.value <= 60
    assert answer.prediction["simulated"]["brakes"] == 0
    assert answer.prediction["loss"]["low"] <= 0.02


def test_caps_never_allow_fewer_servers_and_say_when_none_are_set() -> None:
    mix = [known(0.5, "high"), known(0.5, "low")]
    alone, answer = (plan(scenario(row_of(mix, risk=0.01, capping=capping))) for capping in ("none", "two-threshold"))
    assert alone.objective.value is not None and answer.objective.value is not None and answer.prediction is not None
    assert answer.objective.value >= alone.objective.value
    if answer.objective.value == alone.objective.value and answer.plan and answer.plan["caps"] is None:
        assert answer.prediction["loss"] == {"high": 0.0, "low": 0.0}
        assert answer.prediction["capped_s_per_day"] == 0.0


def test_work_that_waits_for_memory_loses_less() -> None:
    clocks = {"high": 1.4e9, "low": 1.3e9}
    plans = [
        {
            "servers": 44,
            "thresholds": [0.7, 0.8, 0.8],
            "caps": {name: {"clock_hz": [clock] * 3} for name, clock in clocks.items()},
        }
    ]
    loss = []
    for share in (0.3, 0.6):
        mix = [known(0.5, "high"), known(0.5, "low") | {"compute_share": share}]
        policy = {"most_loss": {"high": 0.5, "low": 0.5}, "rise": 0.05}
        answer = predict(scenario({**row_of(mix, **policy), "plan": plans[0]}))
        assert answer.prediction is not None
        loss.append(answer.prediction["loss"]["low"])
    assert loss[1] == pytest.approx(2 * loss[0], rel=0.2)


@pytest.mark.slow
def test_stricter_limits_never_allow_more_servers() -> None:
    def servers(**policy: Any) -> int:
        value = plan(scenario(row_of([known(0.5, "high"), known(0.5, "low")], rise=0.06, **policy))).objective.value
        assert value is not None
        return int(value)

    wide = servers(most_loss={"high": 0.05, "low": 0.1})
    assert servers(most_loss={"high": 0.001, "low": 0.002}) <= servers() <= wide


def test_rows_that_are_alike_are_planned_alike() -> None:
    rack = {"name": "rack", "level": "rack", "count": 6, "rating": 39e3, "slots": 6}
    line = {"name": "row", "level": "row", "count": 2, "rating": 130e3, "children": [rack]}
    hall = {
        "kind": "facility",
        "name": "hall",
        "actuators": [{"name": "lock", "latency": 40, "clock": {"lowest": 1.11e9, "highest": 1.41e9}}],
        "root": {"name": "hall", "level": "utility", "rating": 400e3, "children": [line]},
    }
    answer = plan(scenario({**row_of([known(1.0, "low")], rise=0.1), "facility": hall}))
    assert answer.prediction is not None
    nodes = answer.prediction["by_node"]
    assert nodes["row[0]"]["servers"] == nodes["row[1]"]["servers"]
    assert nodes["row[0]"]["servers"] >= 130 // 6.5


def test_what_is_missing_for_caps_is_told() -> None:
    nothing = {
        "kind": "facility",
        "name": "bare",
        "root": {
            "name": "row",
            "level": "row",
            "rating": 260e3,
            "children": [{"name": "rack", "level": "rack", "rating": 260e3, "slots": 60}],
        },
    }
    with pytest.raises(InputError) as caught:
        scenario({**row_of([known(1.0, "low")]), "facility": nothing})
    assert "no actuator that sets clocks" in str(caught.value)


def test_without_shares_rows_keep_their_mix_and_every_row_keeps_its_limits() -> None:
    rack = {"name": "rack", "level": "rack", "count": 6, "rating": 39e3, "slots": 6}
    rows = [
        {"name": "large", "level": "row", "rating": 180e3, "children": [rack]},
        {"name": "small", "level": "row", "rating": 90e3, "children": [rack]},
    ]
    hall = {
        "kind": "facility",
        "name": "hall",
        "actuators": [{"name": "lock", "latency": 40, "clock": {"lowest": 1.11e9, "highest": 1.41e9}}],
        "root": {"name": "hall", "level": "utility", "rating": 400e3, "children": rows},
    }
    mix = [{key: value for key, value in known(0.5, name).items() if key != "share"} for name in ("high", "low")]
    mix = [one | {"min_servers": 8, "compute_share": 0.3} for one in mix]
    data = {**row_of(mix, rise=0.05, risk=1e-7, method="gaussian"), "facility": hall}
    alone, answer = plan(scenario({**data, "policy": {**data["policy"], "capping": "none"}})), plan(scenario(data))
    assert alone.objective.value is not None and answer.objective.value is not None and answer.plan is not None
    assert answer.objective.value >= alone.objective.value
    assert answer.plan["held"]
    again = predict(scenario({**data, "plan": json.loads(json.dumps(answer.plan))}))
    assert again.status == "feasible"


def test_a_policy_without_clocks_of_a_workload_is_refused() -> None:
    data = row_of([known(0.5, "high"), known(0.5, "low")])
    data["plan"] = {
        "servers": 44,
        "thresholds": [0.8, 0.85, 0.85],
        "caps": {"low": {"clock_hz": [1.3e9, 1.2e9, 1.2e9]}},
    }
    with pytest.raises(InputError) as caught:
        scenario(data)
    assert "plan.caps" in str(caught.value)


def test_clocks_and_names_of_a_plan_are_checked() -> None:
    data = row_of([known(0.5, "high"), known(0.5, "low")])
    clocks = {"high": [1.41e9, 2e9], "low": [1.3e9, 0.9e9], "lowe": [1.3e9, 1.3e9]}
    caps = {name: {"clock_hz": each} for name, each in clocks.items()}
    data["plan"] = {"servers": 44, "thresholds": [0.9, 0.8], "caps": caps}
    with pytest.raises(InputError) as caught:
        scenario(data)
    told = str(caught.value)
    assert "should ascend" in told
    assert "1110 to 1410 MHz [got 2000 MHz]" in told and "[got 900 MHz]" in told
    assert 'did you mean "low"' in told


def test_caps_below_idle_are_refused() -> None:
    rack = {"name": "rack", "level": "rack", "rating": 260e3, "slots": 60}
    hall = {
        "kind": "facility",
        "name": "hall",
        "actuators": [{"name": "cap", "latency": 2, "power": {"lowest": 30, "highest": 400}}],
        "root": {"name": "row", "level": "row", "rating": 260e3, "children": [rack]},
    }
    with pytest.raises(InputError) as caught:
        scenario({**row_of([known(1.0, "low")], capping="none"), "facility": hall})
    assert "cap caps accelerators at 30 W, below the 53.7 W of an idle a100-80gb-sxm" in str(caught.value)


def test_the_command_simulates() -> None:
    command = ["predict", "power", str(ROW), "--set", "plan.servers=40", "--set", "policy.capping=none", "--simulate"]
    answer = CliRunner().invoke(app, [*command, "--weeks", "0.05", "--seed", "3", "--format", "json"])
    assert answer.exit_code == 0, answer.output
    seen = json.loads(answer.stdout)["prediction"]["simulated"]
    assert seen["seconds"] == round(0.05 * 604800)
    assert seen["seed"] == 3
    assert np.isfinite(seen["p99_w"])
    assert seen["highest_w"] <= 0.8 * 260e3
