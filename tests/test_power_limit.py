"""Limits on power as constraints of plans: caps that meet them, time and energy under caps, the worth of a kilowatt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.load import with_overrides
from hardware.catalogue import Machine, resolve_cluster
from hardware.faults import InputError
from hardware.yaml_source import Source, read_yaml
from perfmodel.architecture import load_architecture
from perfmodel.power import accelerator_cap_w, clock_share, held_to, node_power_w, throttle_of
from perfmodel.serving.engine import engines
from perfmodel.serving.server import server
from perfmodel.serving.step import Deployment, Load, step
from solvers import placement, serve, train
from solvers.placement_scenario import load_placement
from solvers.result import Result
from solvers.scenario import load_train
from solvers.serve_scenario import load_serve

TRAIN = """
kind: train
cluster: dgx-h100
nodes: 2
model: llama-3.1-8b
workload: {seq_len: 8192, global_batch: 64, precision: bf16}
search: {cp: [1], cp_style: [ring]}
"""
SERVE = """
kind: serve
cluster: dgx-h100
model: llama-3.1-8b
workload: {arrivals: {process: poisson, rate_rps: 12}, lengths: {isl: 1000, osl: 200}}
slo: {ttft_p99: 2 s, tpot_p99: 60 ms}
search: {tp: [1, 2], max_num_seqs: [32, 128], max_num_batched_tokens: [2048, 8192], disaggregated: [false]}
"""


def dgx(name: str = "dgx-h100") -> Machine:
    return resolve_cluster(name, Path(), 1)


def asked(text: str, *overrides: str) -> Source:
    return with_overrides(read_yaml(text, "asked.yaml"), overrides, Path())


def trained(*overrides: str, text: str = TRAIN) -> Result:
    return train.plan(load_train(asked(text, *overrides), Path()))


def served(*overrides: str, text: str = SERVE) -> Result:
    return serve.plan(load_serve(asked(text, *overrides), Path()))


def limit_of(result: Result) -> dict[str, Any]:
    (found,) = (one for one in result.binding if one["constraint"] == "power.node_limit")
    return found


# --- caps and clocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_w", [5000.0, 6500.0, 8000.0])
def test_a_node_full_of_capped_accelerators_draws_its_limit(limit_w: float) -> None:
    node = dgx().node
    cap_w = accelerator_cap_w(node, limit_w)
    assert float(node_power_w(node, 8 * cap_w)) == pytest.approx(limit_w, rel=1e-12)
    # by hand: a host of 1.2 kW, a supply of 95 %, fans of 17.87 % (GreenSKU)
    assert cap_w == pytest.approx((limit_w * 0.95 * (1 - 0.1787) - 1200) / 8)


def test_a_limit_above_the_node_s_own_caps_nothing() -> None:
    assert accelerator_cap_w(dgx().node, 10_200) == np.inf
    assert held_to(dgx(), np.inf) == dgx()


@pytest.mark.parametrize("cap_w", [280.0, 420.0, 560.0, 690.0])
def test_the_clock_under_a_cap_by_bisection(cap_w: float) -> None:
    accelerator = held_to(dgx(), cap_w).accelerator
    throttle = throttle_of(accelerator)
    for drawn in (0.65, 0.8, 1.0):
        low, high = 0.0, 1.0
        for _ in range(60):  # the highest clock whose power keeps the cap: static + C f V^2, V = max(f, floor)
            clock = (low + high) / 2
            voltage = max(clock, throttle.voltage_floor)
            watts = throttle.static + (drawn - throttle.static) * clock * voltage**2
            low, high = (clock, high) if watts <= cap_w / 700 else (low, clock)
        assert clock_share(accelerator, drawn) == pytest.approx(low, rel=1e-6)


def test_prompts_slow_with_the_clock_and_tokens_hardly() -> None:
    # "Splitwise" (ISCA 2024): the token phase is unaffected by caps down to half of 700 W
    machine, architecture = dgx(), load_architecture("llama-2-70b", Path())

    def seconds(cap_w: float, load: Load) -> float:
        model = server(architecture, held_to(machine, cap_w), engines()["vllm"])
        return float(np.max(step(model, Deployment(tp=8), load).seconds))

    tokens, prompts = Load(sequences=32, context=1500), Load(prompts=1, prompt_tokens=8192)
    slower = {name: seconds(350, load) / seconds(700, load) for name, load in (("t", tokens), ("p", prompts))}
    assert 1 <= slower["t"] < 1.05
    assert 1.15 < slower["p"] <= 1 / clock_share(held_to(machine, 350).accelerator)


def test_what_others_measured_lies_between_prompts_and_tokens() -> None:
    # "From Words to Watts" (HPEC 2023): LLaMA on V100 and A100 takes 6.7 % longer at 175 of 250 W, prompts and tokens
    machine, architecture = dgx("dgx-a100"), load_architecture("llama-2-13b", Path())
    slower = []
    for load in (Load(sequences=8, context=256), Load(prompts=8, prompt_tokens=256)):
        models = [server(architecture, held_to(machine, watts), engines()["vllm"]) for watts in (280, 400)]
        held, free = (float(np.max(step(model, Deployment(), load).seconds)) for model in models)
        slower.append(held / free)
    assert slower[0] < 1.067 < slower[1]


def test_training_pays_for_a_lower_peak_about_what_was_measured() -> None:
    # POLCA (ASPLOS 2024): training of GPT-NeoX on A100 saves 20 % of its peak power for about 10 % of its speed
    text = """
kind: train
cluster: dgx-a100
nodes: 2
model: gpt-neox-20b
workload: {seq_len: 2048, global_batch: 128}
plan: {tp: 8, seq_parallel: true, recompute: full}
"""
    free, held = (
        train.predict(load_train(asked(text, f"plan.power_cap_w={watts}"), Path())).prediction or {}
        for watts in (400, 300)
    )
    assert held["accelerator_power_w"] / free["accelerator_power_w"] == pytest.approx(0.8, abs=0.03)
    assert held["step_time_s"] / free["step_time_s"] == pytest.approx(1.10, abs=0.03)


def test_inference_pays_for_a_lower_peak_no_more_than_was_measured() -> None:
    # POLCA: 13 % off the peak costs GPT-NeoX nothing and BLOOM 5 %; 20 % at most about 7 %: prompts and tokens together
    machine, architecture = dgx("dgx-a100"), load_architecture("gpt-neox-20b", Path())
    for share, most in ((0.87, 1.05), (0.8, 1.07)):
        slower = []
        for load in (Load(sequences=16, context=1024), Load(prompts=1, prompt_tokens=1024)):
            models = [server(architecture, held_to(machine, 400 * part), engines()["vllm"]) for part in (share, 1.0)]
            held, free = (float(np.max(step(model, Deployment(tp=2), load).seconds)) for model in models)
            slower.append(held / free)
        assert slower[0] < 1.02 and slower[1] < most + 0.02


# --- training ------------------------------------------------------------------------------------------------------


def test_a_training_plan_keeps_the_limit_of_its_nodes() -> None:
    free, limited, tight = trained(), trained("power.node_limit=8 kW"), trained("power.node_limit=6 kW")
    times = [one.objective.value for one in (free, limited, tight)]
    assert None not in times and times == sorted(times) and times[0] < times[1] < times[2]
    for result, most in ((limited, 8000), (tight, 6000)):
        assert result.plan is not None and result.prediction is not None
        assert result.plan["power_cap_w"] == pytest.approx(accelerator_cap_w(dgx().node, most))
        assert result.prediction["node_power_w"] <= most
        assert limit_of(result)["slack"] == pytest.approx(0, abs=1e-6)
    assert free.plan is not None and free.plan["power_cap_w"] is None and not free.binding[1:]


def test_a_limit_is_worth_what_a_kilowatt_more_brings() -> None:
    at = {kilowatts: trained(f"power.node_limit={kilowatts} kW") for kilowatts in (5, 6)}
    values = {kilowatts: result.objective.value or 0.0 for kilowatts, result in at.items()}
    assert limit_of(at[5])["shadow_price"] == pytest.approx(values[6] - values[5], rel=1e-9)
    assert limit_of(at[5])["shadow_price_unit"] == "s per kW"
    roomy = limit_of(trained("power.node_limit=9.5 kW"))
    assert roomy["shadow_price"] == 0 and roomy["slack"] > 0


def test_an_accelerator_s_limit_is_a_cap_like_that_of_a_plan() -> None:
    by_hardware = trained("accelerator.power.limit=500 W")
    by_list = trained("search.power_cap_w=[400, 500 W]")
    assert by_hardware.objective.value == by_list.objective.value
    assert by_hardware.plan == by_list.plan and (by_list.plan or {})["power_cap_w"] == 500
    assert by_hardware.prediction == by_list.prediction
    # what is not known of clocks under caps widens the interval of the time
    free = trained()
    widths = [(one.prediction or {})["step_time_s_p90"] / (one.objective.value or 1) for one in (by_list, free)]
    assert widths[0] > widths[1]


def test_a_plan_given_is_costed_at_its_cap_or_at_the_highest() -> None:
    given = TRAIN + "plan: {tp: 2, seq_parallel: true, recompute: full}\n"
    told = [
        train.predict(load_train(asked(given, *overrides), Path())).prediction or {}
        for overrides in (["plan.power_cap_w=400"], ["power.node_limit=6 kW"], [])
    ]
    assert [one["accelerator_power_w"] for one in told] == sorted(one["accelerator_power_w"] for one in told)
    assert told[0]["accelerator_power_w"] <= 400 and told[1]["node_power_w"] <= 6000
    assert told[0]["step_time_s"] > told[1]["step_time_s"] > told[2]["step_time_s"]
    assert told[0]["energy_j"] < told[2]["energy_j"]


@pytest.mark.parametrize("plan", [trained, served])
def test_a_limit_that_no_cap_keeps_says_what_would_do(plan: Any) -> None:
    result = plan("power.node_limit=4 kW")
    assert result.status == "infeasible" and result.plan is None
    (change,) = result.relaxation
    assert (change["constraint"], change["now"], change["unit"]) == ("power.node_limit", 4000, "W")
    assert plan(f"power.node_limit={change['needed'] + 0.1}").status == "optimal"
    assert plan(f"power.node_limit={change['needed'] - 0.1}").status == "infeasible"


# --- serving -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_deployment_keeps_the_limit_of_its_nodes() -> None:
    most = SERVE.replace(", rate_rps: 12", "")
    results = [served(*limit, text=most) for limit in ([], ["power.node_limit=7 kW"], ["power.node_limit=5 kW"])]
    values = [result.objective.value or 0.0 for result in results]
    assert values[0] > values[1] > values[2] > 0
    for result, limit_w in zip(results[1:], (7000, 5000), strict=True):
        assert (result.prediction or {})["node_power_w"] <= limit_w
        assert limit_of(result)["shadow_price_unit"] == "1/s per kW"
    more = served("power.node_limit=6 kW", text=most).objective.value or 0.0
    assert limit_of(results[2])["shadow_price"] == pytest.approx(more - values[2], rel=1e-6)


@pytest.mark.slow
def test_the_least_energy_of_deployments_is_that_of_the_best_cap() -> None:
    best = served("objective=energy_per_token_j")
    caps = (700, 595, 490, 385, 280)
    alone = [served("objective=energy_per_token_j", f"search.power_cap_w=[{cap}]").objective.value for cap in caps]
    assert best.objective.value == pytest.approx(min(one for one in alone if one is not None), rel=1e-12)
    assert (best.plan or {})["power_cap_w"] in caps[1:]
    again = SERVE + f"plan: {best.plan}\n".replace("None", "null").replace("False", "false")
    told = serve.predict(load_serve(asked(again, "objective=energy_per_token_j"), Path()))
    assert told.objective.value == pytest.approx(best.objective.value, rel=1e-9)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "load"), [(TRAIN, load_train), (SERVE, load_serve)], ids=["train", "serve"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["power.node_limit=8 kg"], 'power.node_limit: unknown unit "kg"'),
        (["power.node_limt=8 kW"], "power.node_limt: unknown key"),
        (["search.power_cap_w=[900]"], "can be held to 280 to 700 W [got 900 W]"),
        (["plan.power_cap_w=200 W"], "can be held to 280 to 700 W [got 200 W]"),
        (
            ["plan.power_cap_w=600", "power.node_limit=6 kW"],
            "draws up to 7,690 W, more than power.node_limit",
        ),
        (["accelerator.power.limit=200 W"], "200 W is below the lowest limit, 280 W"),
        (["accelerator.power.highest=600 W"], "700 W is above the highest limit, 600 W"),
    ],
)
def test_caps_that_cannot_be_are_told(text: str, load: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        load(asked(text, *overrides), Path())
    assert message in str(raised.value)


def test_a_facility_draws_its_pue_times_what_nodes_do() -> None:
    for result in (trained("power.pue=1.12"), served("power.pue=1.12")):
        told = result.prediction or {}
        assert told["facility_power_w"] == pytest.approx(1.12 * told["power_w"])
    assert (trained().prediction or {})["facility_power_w"] is None
    with pytest.raises(InputError, match=r"power\.pue"):
        trained("power.pue=0.9")


# --- what else a cap changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "kind", "system"), [(TRAIN, "train", "torchtitan"), (SERVE, "serve", "vllm")])
def test_a_launch_script_says_the_cap(text: str, kind: str, system: str, tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(text)
    words = ["plan", kind, str(tmp_path / "asked.yaml"), "--emit", system]
    free, held = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--set", "power.node_limit=6 kW"]))
    assert free.exit_code == held.exit_code == 0
    assert "power-limit" not in free.stdout
    # rounded down: 6 kW less conversion, fans and host leave 435.18 W for each of eight
    assert held.stdout.splitlines()[0] == free.stdout.splitlines()[0] == "#!/usr/bin/env bash"
    assert "nvidia-smi --power-limit=435" in held.stdout.splitlines()[1]


def test_traffic_is_that_of_the_plan_at_its_cap(tmp_path: Path) -> None:
    plan = "{tp: 8, dp: 2, seq_parallel: true, recompute: full, power_cap_w: 350}"
    text = f"""
kind: placement
nodes: 2
bandwidth: "n0,n0,n1\\nn0,0,50\\nn1,50,0\\n"
traffic: {{plan: {{kind: train, cluster: dgx-h100, nodes: 2, model: llama-3.1-8b,
  workload: {{seq_len: 8192, global_batch: 64}}, plan: {plan}}}}}
"""
    times = []
    for written in (text, text.replace(", power_cap_w: 350", "")):
        source = read_yaml(written.replace('"n0,n0', '",n0'), "asked.yaml")
        result = placement.plan(load_placement(source, tmp_path))
        again = placement.plan(load_placement(Source("again", result.scenario), tmp_path))
        assert again.prediction == result.prediction
        times.append((result.prediction or {})["step_time_s"])
    assert times[0] > 1.1 * times[1]
