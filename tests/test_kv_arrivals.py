"""Requests over time, several nodes, and the cheapest purchase: a simulation, brute force, faults."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from perfmodel.kv_arrivals import ahead_tangents, first_token_tangents, first_token_time, running, token_time
from perfmodel.offload import memory_rows
from solvers.kv import plan, predict
from solvers.kv_scenario import load_kv
from tests.kv_checker import check

EXAMPLES = Path(__file__).parent.parent / "examples"
NODE = """
kind: kv
cluster:
  kind: node
  name: one
  accelerators: {type: h100-80gb-sxm, count: 1}
  links: [{name: pcie, type: pcie, generation: 5, lanes: 16}]
  nics: {count: 1, bandwidth: 400 Gbit/s, affinity: shared, protocol: infiniband}
  tiers:
    - {name: ddr, capacity: 64 GiB, count: 2, read: 60 GB/s, write: 60 GB/s, latency: 90 ns, link: pcie, power: 24 W,
       price: {on_demand: 0.05 USD/h}}
    - {name: cxl, capacity: 256 GiB, count: 3, read: 25 GB/s, write: 22 GB/s, latency: 250 ns, link: pcie, power: 30 W,
       price: {on_demand: 0.08 USD/h}}
model: llama-3.1-8b
engine: vllm
workload:
  arrivals: {rate_rps: 0.25}
  lengths: {isl: 30000, osl: 300}
  reuse: {trace: kv-sessions.csv, block_tokens: 4096}
search: {gpu_batch: [4, 16], num_batches: [1], precision_weights: [bf16], precision_kv: [bf16], loading: [both]}
usd_per_kwh: 0.1
"""


def asked(text, folder=EXAMPLES):
    return load_kv(read_yaml(text, "x.yaml"), folder)


def simulated(rate, prompt_s, token_s, generated, count, seed, found=0.0):
    """Serve requests one event after another: a waiting prompt first, else a token of all that run.

    A share of the prompts is found whole and takes no time.
    """
    random = np.random.default_rng(seed)
    prompts = np.where(random.random(count) < found, 0.0, prompt_s)
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    first, last = np.zeros(count), np.zeros(count)
    left: dict[int, int] = {}
    now, place = 0.0, 0
    while place < count or left:
        if place < count and arrivals[place] <= now:
            now += prompts[place]
            first[place] = now
            left[place] = generated - 1
            place += 1
        elif left:
            now += token_s
            for request in list(left):
                left[request] -= 1
                if not left[request]:
                    last[request] = now
                    del left[request]
        else:
            now = arrivals[place]
    kept = slice(count // 10, None)
    between = (last - first)[kept] / (generated - 1)
    return (first - arrivals)[kept].mean(), between.mean(), (last - first)[kept].mean() * rate


def test_arrivals_against_a_simulation():
    rate, prompt_s, token_s = 2.0, 0.2, 0.02
    ttft, between, running_s = simulated(rate, prompt_s, token_s, 60, 6000, 3)
    assert float(first_token_time(prompt_s, token_s, rate)) == pytest.approx(ttft, rel=0.06)
    assert float(token_time(prompt_s, token_s, rate, 60)) == pytest.approx(between, rel=0.06)
    assert rate * 59 * float(token_time(prompt_s, token_s, rate, 60)) == pytest.approx(running_s, rel=0.06)


def test_prompts_that_are_found_and_not():
    rate, whole_s, token_s, found = 3.0, 0.35, 0.02, 0.4
    ttft, between, _ = simulated(rate, whole_s, token_s, 60, 6000, 5, found)
    prompt_s, variance = (1 - found) * whole_s, found * (1 - found) * whole_s**2
    assert float(first_token_time(prompt_s, token_s, rate, variance)) == pytest.approx(ttft, rel=0.08)
    assert float(first_token_time(prompt_s, token_s, rate)) < 0.85 * ttft
    assert float(token_time(prompt_s, token_s, rate, 60, variance)) == pytest.approx(between, rel=0.08)


def test_tangents_lie_below_and_close():
    rate = 3.0
    prompts = np.linspace(1e-4, 0.99 / rate, 5000)
    for variance in (0.0, 0.01):
        true = first_token_time(prompts, 0.0, rate, variance)
        lines = np.max([slope * prompts + value for slope, value in first_token_tangents(rate, variance)], axis=0)
        assert np.all(lines <= true * (1 + 1e-9) + 1e-15)
        assert np.all(lines >= true * (1 - 2.5e-3))
        free = 1 - rate * prompts
        ahead = prompts * (rate * prompts + rate**2 * (prompts**2 + variance) / (2 * free))
        lines = np.max([slope * prompts + value for slope, value in ahead_tangents(rate, variance)], axis=0)
        assert np.all(lines <= ahead * (1 + 1e-9) + 1e-12)
        assert np.all(lines >= ahead * 0.95 - 1e-4)
    most = np.arange(1, 200)
    np.testing.assert_allclose(running(most) + 2 * np.sqrt(running(most)), most)


@pytest.mark.slow
def test_a_rate_and_limits_are_met():
    for limits in ("{}", "{ttft_mean: 450 ms}", "{tpot_mean: 16 ms, ttft_mean: 2 s}"):
        for objective in ("tokens_per_s", "ttft_mean_s", "tpot_mean_s"):
            answer = plan(asked(NODE + f"slo: {limits}\nobjective: {objective}\n"))
            assert answer.status == "optimal"
            said = answer.prediction
            assert said["tokens_per_s"] > 0.25 * 300
            if "450" in limits:
                assert said["ttft_mean_s"] <= 0.45 * 1.003
            if "16" in limits:
                assert said["tpot_mean_s"] <= 0.016 * 1.003


def test_a_plan_of_arrivals_is_predicted_again(tmp_path):
    answer = plan(asked(NODE))
    text = NODE + f"plan: {json.dumps(answer.plan)}\n"
    again = predict(asked(text))
    assert again.prediction["ttft_mean_s"] == pytest.approx(answer.prediction["ttft_mean_s"], rel=1e-6)
    fast = predict(asked(text.replace("rate_rps: 0.25", "rate_rps: 25")))
    assert (fast.status, fast.relaxation[0]["constraint"]) == ("infeasible", "workload.arrivals.rate_rps")


def test_a_plan_of_arrivals_is_within_sizes_and_rates():
    """Weights that partly lie in host memory: a batch too large for the accelerator alone."""
    text = NODE.replace("gpu_batch: [4, 16]", "gpu_batch: [24]").replace("rate_rps: 0.25", "rate_rps: 0.02")
    answer = plan(asked(text.replace("count: 2,", "count: 8,")))
    assert answer.plan["placement"]["kv"].get("hbm", 0) < 1
    sizes = {"weights_bytes": 2 * 8.03e9, "kv_bytes_per_token": 131_072, "hidden": 4096, "layers": 32}
    for one in (answer.to_dict(), *({**answer.to_dict(), **other} for other in answer.alternatives)):
        check(one, **sizes)


def test_a_rate_that_is_too_high_names_the_highest():
    answer = plan(asked(NODE.replace("rate_rps: 0.25", "rate_rps: 40")))
    assert answer.status == "infeasible"
    (change,) = answer.relaxation
    assert (change["constraint"], change["now"]) == ("workload.arrivals.rate_rps", pytest.approx(40))
    for factor, status in ((0.99, "optimal"), (1.2, "infeasible")):
        text = NODE.replace("rate_rps: 0.25", f"rate_rps: {change['needed'] * factor}").replace("[both]", "[recompute]")
        assert plan(asked(text)).status == status


@pytest.mark.slow
def test_nodes_share_a_pool_and_the_requests():
    remote = "    - {name: pool, capacity: 4 TiB, read: 80 GB/s, write: 80 GB/s, latency: 5 us, link: nics,\n"
    remote += "       price: {on_demand: 0.5 USD/h}}\n"
    text = NODE.replace("model:", remote + "model:", 1)
    one, two = asked(text), asked(text + "nodes: 2\n")
    rooms = [memory_rows(question.offload(4, 1, "bf16", "bf16")) for question in (one, two)]
    assert rooms[1]["pool"][0] == rooms[0]["pool"][0] / 2
    assert rooms[1]["ddr"][0] == rooms[0]["ddr"][0]
    first, second = plan(one), plan(asked(text.replace("rate_rps: 0.25", "rate_rps: 0.5") + "nodes: 2\n"))
    assert second.prediction["tokens_per_s"] >= 2 * first.prediction["tokens_per_s"] * (1 - 1e-6)
    # each node's memory is paid for, the pool once
    energy = 0.1 * (2 * 24 + 3 * 30) / 1000
    assert first.prediction["cost_usd_per_hour"] == pytest.approx(0.1 + 0.24 + 0.5 + energy)
    assert second.prediction["cost_usd_per_hour"] == pytest.approx(2 * (0.1 + 0.24 + energy) + 0.5)


@pytest.mark.slow
def test_the_cheapest_purchase_against_all_of_them():
    text = NODE + "slo: {ttft_mean: 480 ms, tpot_mean: 30 ms}\n"
    answer = plan(asked(text + "objective: cost_usd_per_hour\n"))
    assert answer.status == "optimal"
    best = None
    for ddr, cxl in itertools.product(range(3), range(4)):
        tiers = [name for name, count in (("ddr", ddr), ("cxl", cxl)) if count]
        bought = text.replace("count: 2,", f"count: {max(ddr, 1)},").replace("count: 3,", f"count: {max(cxl, 1)},")
        bought = bought.replace("search: {", f"search: {{tiers: [{', '.join(['hbm', *tiers])}], ")
        cost = ddr * (0.05 + 0.0024) + cxl * (0.08 + 0.003)
        if plan(asked(bought)).status == "optimal" and (best is None or cost < best):
            best = cost
    assert best is not None
    assert 0 < best < 0.3
    assert answer.objective.value == pytest.approx(best)
    assert answer.prediction["cost_usd_per_hour"] == pytest.approx(best)
    assert answer.prediction["ttft_mean_s"] <= 0.48 * 1.003
    prices = {entry["constraint"]: entry for entry in answer.binding if "USD" in entry["unit"]}
    assert prices["slo.ttft_mean"]["shadow_price"] > 0
    costs = [other["prediction"]["cost_usd_per_hour"] for other in answer.alternatives]
    assert costs == sorted(costs)
    again = predict(asked(text + f"objective: cost_usd_per_hour\nplan: {json.dumps(answer.plan)}\n"))
    assert again.objective.value == pytest.approx(best)


def test_what_runs_today_stands_beside_the_cheapest():
    text = NODE + "slo: {ttft_mean: 480 ms}\nobjective: cost_usd_per_hour\n"
    answer = plan(asked(text))
    given = answer.plan | {"devices": {"ddr": 0, "cxl": 3}}
    again = plan(asked(text + f"plan: {json.dumps(given)}\n"))
    assert again.baseline["prediction"]["cost_usd_per_hour"] == pytest.approx(3 * 0.083)
    assert again.baseline["gain"] == pytest.approx(3 * 0.083 / again.objective.value)


def test_the_cheapest_that_cannot_be():
    answer = plan(asked(NODE + "slo: {ttft_mean: 1 ms}\nobjective: cost_usd_per_hour\n"))
    assert answer.status == "infeasible"
    assert answer.relaxation[0]["constraint"] == "slo.ttft_mean"


def test_a_least_rate_of_answers_offline():
    text = NODE.replace("  arrivals: {rate_rps: 0.25}\n", "")
    free = plan(asked(text + "objective: tpot_mean_s\n")).prediction
    most = plan(asked(text)).prediction["tokens_per_s"]
    bound = plan(asked(text + f"objective: tpot_mean_s\nslo: {{tokens_per_s: {0.95 * most}}}\n")).prediction
    assert bound["tokens_per_s"] >= 0.95 * most * (1 - 1e-6)
    assert bound["tpot_mean_s"] >= free["tpot_mean_s"]
    none = plan(asked(text + f"slo: {{tokens_per_s: {2 * most}}}\n"))
    (change,) = none.relaxation
    assert change["constraint"] == "slo.tokens_per_s"
    assert change["needed"] == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("rate_rps: 0.25", "rate_rps: 0", "workload.arrivals"),
        (
            "link: pcie, power: 24 W,\n       price: {on_demand: 0.05 USD/h}}",
            "link: pcie}",
            "cluster: tiers.ddr.price: missing",
        ),
        ("search: {", "search: {devices: {nvme: [1]}, ", "search.devices.nvme: no such tier"),
        ("  arrivals: {rate_rps: 0.25}\n", "", "slo: missing"),
    ],
)
def test_faults_are_placed(old, new, where):
    text = NODE + "objective: cost_usd_per_hour\n"
    with pytest.raises(InputError) as caught:
        asked(text.replace(old, new))
    assert where in str(caught.value)


def test_the_command_prints_the_purchase(tmp_path):
    file = tmp_path / "x.yaml"
    trace = f"trace: {EXAMPLES / 'kv-sessions.csv'}"
    text = NODE.replace("trace: kv-sessions.csv", trace) + "slo: {ttft_mean: 480 ms}\nobjective: cost_usd_per_hour\n"
    file.write_text(text)
    result = CliRunner().invoke(app, ["plan", "kv", str(file)])
    assert result.exit_code == 0, result.output
    assert "cost_usd_per_hour (min)" in result.stdout
