"""Serving a model: what requests see of a deployment, and which deployment is best."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from hardware.catalogue import read_file
from hardware.faults import InputError
from hardware.yaml_source import read_yaml
from solvers import serve_pairs
from solvers.result import Result
from solvers.serve import plan, predict
from solvers.serve_scenario import load_serve

ROOT = Path(__file__).parent.parent
STATISTICS = ("mean", "p50", "p90", "p99")

ASKED = """
kind: serve
cluster: dgx-h100
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 8}
  lengths: {isl: 1000, osl: 200}
slo: {ttft_p99: 1 s, tpot_p99: 50 ms}
plan: {tp: 1, replicas: 2}
"""


def asked(text: str = ASKED, **changes: Any) -> Any:
    """Read a scenario, with top-level keys replaced."""
    source = read_yaml(text, "asked.yaml")
    source.data.update(changes)
    return load_serve(source, ROOT)


def predicted(text: str = ASKED, **changes: Any) -> Result:
    return predict(asked(text, **changes))


def faults(text: str) -> list[str]:
    with pytest.raises(InputError) as error:
        load_serve(read_yaml(text, "asked.yaml"), ROOT)
    return str(error.value).splitlines()


def value(result: Result, name: str) -> float:
    assert result.prediction is not None
    return float(result.prediction[name])


# --- predict -------------------------------------------------------------------------------------------------------


def test_a_prediction_is_whole() -> None:
    result = predicted()
    assert result.status == "feasible" and result.prediction is not None and result.breakdown is not None
    for metric in ("ttft", "tpot", "itl", "e2e"):
        for statistic in STATISTICS:
            name = f"{metric}_{statistic}_s"
            low, middle, high = (result.prediction[name + end] for end in ("_p10", "", "_p90"))
            assert 0 < low < middle < high, name
        ordered = [value(result, f"{metric}_{statistic}_s") for statistic in STATISTICS[1:]]
        assert ordered == sorted(ordered)
    assert result.breakdown["seconds"] == pytest.approx(value(result, "e2e_mean_s"), rel=1e-9)
    memory = result.prediction["memory_bytes"]
    assert sum(memory[part] for part in memory if part != "device") == pytest.approx(memory["device"])
    assert value(result, "goodput_requests_per_s") <= value(result, "requests_per_s") == 8


def test_end_to_end_time_is_first_token_and_the_others() -> None:
    result = predicted()
    assert value(result, "e2e_mean_s") == pytest.approx(
        value(result, "ttft_mean_s") + 199 * value(result, "tpot_mean_s"), rel=1e-12
    )


def test_no_prediction_is_beyond_the_optimum() -> None:
    """NanoFlow, arXiv 2408.12757, section 3: F/(2 P) tokens per second and accelerator, whatever the lengths."""
    for isl, osl in ((4000, 2), (1000, 200), (100, 1000)):
        result = predicted(
            workload={"arrivals": {"process": "poisson"}, "lengths": {"isl": isl, "osl": osl}},
            slo={"ttft_mean": "30 s", "tpot_mean": "1 s"},
        )
        assert 0 < value(result, "optimal_share") < 0.8
    assert value(result, "optimal_tokens_per_s_per_gpu") == pytest.approx(989e12 / (2 * 8.03e9), rel=2e-3)


@pytest.mark.parametrize("engine", [pytest.param("vllm", marks=pytest.mark.slow), "sglang", "trtllm"])
def test_prompts_beyond_the_budget_of_a_step_take_their_time(engine: str) -> None:
    workload = {"arrivals": {"process": "poisson"}, "lengths": {"isl": 30000, "osl": 1}}
    one = {"tp": 1, "max_num_batched_tokens": 512}
    result = predicted(engine=engine, workload=workload, slo={"ttft_mean": "60 s"}, plan=one)
    assert 0.1 < value(result, "optimal_share") < 0.8


def test_the_highest_rate_meets_the_objectives_and_no_higher_one_does() -> None:
    workload = {"arrivals": {"process": "poisson"}, "lengths": {"isl": 1000, "osl": 200}}
    best = predicted(workload=workload)
    rate = value(best, "requests_per_s")
    for factor, within in ((0.999, True), (1.001, False)):
        arrivals = {"process": "poisson", "rate_rps": factor * rate}
        result = predicted(workload={**workload, "arrivals": arrivals})
        inside = value(result, "ttft_p99_s") <= 1.0 and value(result, "tpot_p99_s") <= 0.05
        assert inside is within


def test_objectives_that_a_request_alone_misses() -> None:
    workload = {"arrivals": {"process": "poisson"}, "lengths": {"isl": 1000, "osl": 200}}
    result = predict(asked(workload=workload, slo={"tpot_p99": "1 ms"}), simulate=True)
    assert result.status == "infeasible" and result.relaxation[0]["constraint"] == "slo.tpot_p99"
    assert 0.005 < result.relaxation[0]["needed"] < 0.02


def test_bursts_make_requests_wait() -> None:
    def first(arrivals: dict[str, Any]) -> float:
        workload = {"arrivals": arrivals, "lengths": {"isl": 1000, "osl": 200}}
        return value(predicted(workload=workload), "ttft_p99_s")

    even = first({"process": "poisson", "rate_rps": 20})
    assert first({"process": "gamma", "cv": 1, "rate_rps": 20}) == even
    assert first({"process": "gamma", "cv": 3, "rate_rps": 20}) > even


def test_a_cached_prefix_spares_less_than_its_share() -> None:
    """The new part of a prompt still attends to all of it, and everything but the prompt stays."""
    workload = {"arrivals": {"process": "poisson", "rate_rps": 0.01}, "lengths": {"isl": 16000, "osl": 10}}
    cold = value(predicted(workload=workload), "ttft_mean_s")
    warm = value(predicted(workload={**workload, "prefix_hit": 0.5}), "ttft_mean_s")
    assert 0.5 * cold < warm < 0.75 * cold


def test_speculation_pays_alone_and_not_in_a_crowd() -> None:
    """Leviathan et al., arXiv 2211.17192: 0.8, 4, 0.05 speeds a single sequence up 2.8 times, where memory binds."""
    speculative = {"acceptance": 0.8, "draft_cost": 0.05}
    lengths = {"isl": 500, "osl": 500}

    def found(name: str, drafted: int) -> float:
        workload = {"arrivals": {"process": "poisson", "rate_rps": 0.01}, "lengths": lengths}
        plan = {"tp": 1, "replicas": 1, "draft_tokens": drafted}
        return value(predicted(workload=workload, speculative=speculative, plan=plan), name)

    alone = found("tpot_mean_s", 0) / found("tpot_mean_s", 4)
    assert 2.0 < alone < 1.01 * 2.8013  # steps of five tokens and of one are equal to the percent
    crowd = found("load", 0) / found("load", 4)
    assert 0.5 < crowd < 0.6 * alone  # what a full batch gains


def test_pools_of_their_own() -> None:
    pools = {"prefill": {"tp": 1}, "decode": {"tp": 1}, "disaggregated": True}
    result = predicted(plan=pools)
    assert result.prediction is not None and result.prediction["gpus"] == 2
    # no prompt disturbs a token: the steps are those of decoding alone
    assert value(result, "itl_p99_s") == pytest.approx(value(result, "itl_p50_s"))
    assert value(result, "kv_transfer_exposed_s") < value(result, "kv_transfer_s")


def test_keys_and_values_between_nodes_take_what_the_engine_reaches() -> None:
    """1,000 tokens of 131,072 bytes from a node to another: eight adapters of 400 Gbit/s each at 0.729 and 0.381 ms.

    Inside a node they pass NVLink: 450 GB/s of one accelerator.
    """
    away = {"prefill": {"tp": 8}, "decode": {"tp": 8}, "disaggregated": True}
    far = value(predicted(plan=away, cluster="superpod-16x8", nodes=2), "kv_transfer_s")
    assert far == pytest.approx(1000 * 131_072 / (8 * 50e9 * 0.729))
    near = {"prefill": {"tp": 1}, "decode": {"tp": 1}, "disaggregated": True}
    assert value(predicted(plan=near), "kv_transfer_s") == pytest.approx(1000 * 131_072 / 450e9)


def test_what_is_asked_can_be_too_much() -> None:
    workload = {"arrivals": {"process": "poisson", "rate_rps": 1000}, "lengths": {"isl": 1000, "osl": 200}}
    result = predicted(workload=workload)
    assert result.status == "infeasible"
    assert 10 < result.relaxation[0]["needed"] < 1000
    result = predicted(model="llama-3.1-70b")
    assert result.status == "infeasible"
    assert result.relaxation[0]["needed"] > 141e9


def test_a_saved_prediction_is_predicted_again(tmp_path: Path) -> None:
    place = tmp_path / "asked.yaml"
    place.write_text(ASKED)
    saved = tmp_path / "plan.json"
    run("predict", "serve", str(place), "--format", "json", "-o", str(saved))
    first = json.loads(saved.read_text())
    again = json.loads(run("predict", "serve", str(saved), "--format", "json"))
    assert again["prediction"] == first["prediction"] and again["plan"] == first["plan"]
    assert run("predict", "serve", str(place)) and run("predict", "serve", str(place), "--format", "csv")


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


# --- other ways to arrive, and the simulation ----------------------------------------------------------------------


def test_clients_wait_for_answers() -> None:
    """Little's law: requests in the system are the clients, whatever the engine does."""
    for plan_ in ({"tp": 1, "replicas": 2}, {"disaggregated": True, "prefill": {"tp": 1}, "decode": {"tp": 1}}):
        workload = {"arrivals": {"concurrency": 64}, "lengths": {"isl": 1000, "osl": 200}}
        result = predicted(workload=workload, slo={}, plan=plan_)
        assert value(result, "requests_per_s") * value(result, "e2e_mean_s") == pytest.approx(64, rel=0.02)


def test_a_trace_is_its_busiest_window(tmp_path: Path) -> None:
    """Ten minutes at one request a second, five at eight with other lengths, ten at one again."""
    rows, clock = ["arrival_s,input_tokens,output_tokens"], 0.0
    for count, gap, prompt in ((600, 1.0, 300), (2400, 0.125, 1000), (600, 1.0, 300)):
        for _ in range(count):
            rows.append(f"{clock:.3f},{prompt},200")
            clock += gap
    (tmp_path / "requests.csv").write_text("\n".join(rows) + "\n")
    source = read_yaml(ASKED, "asked.yaml")
    source.data["workload"] = {"arrivals": {"trace": "requests.csv"}}
    scenario = load_serve(source, tmp_path)
    assert scenario.rate == pytest.approx(8, rel=1e-3)
    assert (scenario.demand.prompt_tokens, scenario.demand.output_tokens) == (1000, 200)
    assert scenario.demand.arrival_scv == pytest.approx(0, abs=1e-9)
    result = predict(scenario, simulate=True)
    assert result.prediction is not None
    assert result.prediction["equations"]["tpot_mean_s"] == pytest.approx(value(result, "tpot_mean_s"), rel=0.08)
    again = predict(load_serve(read_yaml(json.dumps({**result.scenario, "plan": result.plan}), "again"), ROOT))
    assert value(again, "tpot_mean_s") == pytest.approx(result.prediction["equations"]["tpot_mean_s"], rel=1e-4)
    (tmp_path / "requests.csv").write_text("\n".join([rows[0], "5,100,10", "3,100,10", "6,-1,10"]))
    with pytest.raises(InputError) as error:
        load_serve(source, tmp_path)
    assert "backwards" in str(error.value) and "tokens" in str(error.value)


def test_a_profile_counts_by_its_highest_hour() -> None:
    lengths = {"isl": 1000, "osl": 200}
    profile = {"process": "poisson", "rate_rps": 8, "profile": [0.5, 1.0, 2.5, 1.0]}
    high, same = (
        predicted(workload={"arrivals": arrivals, "lengths": lengths})
        for arrivals in (profile, {"process": "poisson", "rate_rps": 20})
    )
    assert high.prediction == same.prediction


def test_everything_at_once_is_the_most_that_is_answered() -> None:
    lengths = {"isl": 1000, "osl": 200}
    offline = predicted(workload={"arrivals": "offline", "lengths": lengths}, slo={})
    assert offline.prediction is not None and offline.prediction["ttft_mean_s"] is None
    most = value(offline, "requests_per_s")
    many = predicted(workload={"arrivals": {"concurrency": 400}, "lengths": lengths}, slo={})
    assert 0.8 * most < value(many, "requests_per_s") < most
    assert predicted(
        workload={"arrivals": {"process": "poisson", "rate_rps": 1.1 * most}, "lengths": lengths}
    ).status == "infeasible"  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_the_simulation_says_the_same(engine: str, share: float) -> None:
    if engine == "sglang" and share > 0.6:
        pytest.skip("prompts first and alone: beyond the load up to which the equations are trusted")
    lengths = {"isl": 1000, "osl": 200}
    idle = predicted(engine=engine, workload={"arrivals": {"process": "poisson", "rate_rps": 0.1}, "lengths": lengths})
    rate = share * 0.1 / value(idle, "load")
    workload = {"arrivals": {"process": "poisson", "rate_rps": rate}, "lengths": lengths}
    result = predict(asked(engine=engine, workload=workload), simulate=True)
    assert result.prediction is not None
    beside = result.prediction["equations"]
    assert beside["tpot_mean_s"] == pytest.approx(value(result, "tpot_mean_s"), rel=0.05)
    assert beside["tpot_p99_s"] == pytest.approx(value(result, "tpot_p99_s"), rel=0.25)
    assert beside["ttft_mean_s"] == pytest.approx(value(result, "ttft_mean_s"), rel=0.1)
    assert beside["e2e_mean_s"] == pytest.approx(value(result, "e2e_mean_s"), rel=0.06)


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": {"tp": 1, "replicas": 2, "draft_tokens": 3}, "speculative": {"acceptance": 0.7, "draft_cost": 0.05}},
        {"plan": {"disaggregated": True, "prefill": {"tp": 1, "replicas": 2}, "decode": {"tp": 1, "replicas": 2}}},
        {"workload": {"arrivals": {"concurrency": 100}, "lengths": {"isl": 1000, "osl": 200, "osl_cv": 0.5}}},
        {
            "workload": {
                "arrivals": {"process": "gamma", "cv": 2, "rate_rps": 20},
                "lengths": {
                    "histogram": [{"isl": 200, "osl": 400, "weight": 3}, {"isl": 3000, "osl": 100, "weight": 1}]
                },
                "prefix_hit": 0.4,
            }
        },
    ],
    ids=["speculation", "pools", "clients", "bursts of a histogram with a cached prefix"],
)  # fmt: skip
def test_the_simulation_says_the_same_of_features(changes: dict[str, Any]) -> None:
    result = predict(asked(**{"slo": {}, **changes}), simulate=True)
    assert result.prediction is not None
    beside = result.prediction["equations"]
    for name, tolerance in (("tpot_mean_s", 0.08), ("ttft_mean_s", 0.35), ("e2e_mean_s", 0.1)):
        assert beside[name] == pytest.approx(value(result, name), rel=tolerance), name


# --- plan ----------------------------------------------------------------------------------------------------------

SMALL = """
kind: serve
cluster: dgx-h100
model: llama-3.1-8b
workload:
  arrivals: {process: poisson, rate_rps: 20}
  lengths: {isl: 1000, osl: 200}
slo: {ttft_p99: 400 ms, tpot_p99: 25 ms}
search: {tp: [1, 2], max_num_seqs: [32, 128], max_num_batched_tokens: [1024, 4096], precision_weights: [bf16, fp8]}
"""
LAYOUTS = [(tp, n, m) for tp in (1, 2) for n in (32, 128) for m in (1024, 4096)]


def within(result: Result) -> bool:
    return result.prediction is not None and all(
        result.prediction[f"{name}_s"] <= limit for name, limit in (("ttft_p99", 0.4), ("tpot_p99", 0.025))
    )


def test_the_plan_is_the_best_of_all_that_are_costed_one_by_one() -> None:
    text = SMALL.replace("[bf16, fp8]}", "[bf16, fp8], disaggregated: [false], replicas: [1, 2]}")
    best = plan(asked(text))
    found = 0.0
    for precision in ("bf16", "fp8"):
        for tp, sequences, tokens in LAYOUTS:
            for replicas in (1, 2):
                one = {"tp": tp, "replicas": replicas, "max_num_seqs": sequences, "max_num_batched_tokens": tokens}
                result = predicted(SMALL, plan=one | {"precision_weights": precision})
                if within(result):
                    found = max(found, value(result, "goodput_requests_per_s_per_gpu"))
    assert best.status == "optimal" and best.objective.value == pytest.approx(found, rel=1e-6)
    assert best.candidates == 2 * 2 * len(LAYOUTS)


def test_a_gap_leaves_pairs_of_pools_that_are_little_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few pairs at once, where bounds of pairs are above what they reach."""
    monkeypatch.setattr(serve_pairs, "EXACT", 2)
    monkeypatch.setattr(serve_pairs, "ROUNDS", 10**6)
    text = at_most(SMALL.replace("[bf16, fp8]}", "[bf16], disaggregated: [true]}"))
    proved, loose = plan(asked(text)), plan(asked(text), gap=0.5)
    assert proved.status == "optimal" and proved.gap == 0 and loose.status == "feasible"
    assert loose.objective.value is not None and proved.objective.value is not None and loose.gap is not None
    assert loose.best_bound is not None and loose.gap <= 0.5
    assert loose.objective.value <= proved.objective.value * (1 + 1e-9) <= loose.best_bound * (1 + 2e-9)


def at_most(text: str) -> str:
    """Return a question without a rate: for the most requests within the objectives."""
    return re.sub(r",? *rate_rps: *[0-9.]+", "", text)


@pytest.mark.slow
def test_the_best_pair_of_pools_is_found() -> None:
    best = plan(asked(SMALL.replace("[bf16, fp8]}", "[bf16], disaggregated: [true], replicas: [1, 2]}")))
    found = 0.0
    for prefill_tp in (1, 2):
        for decode_tp in (1, 2):
            for tokens in (1024, 4096):
                for sequences in (32, 128):
                    for first in range(1, 7 // prefill_tp + 1):
                        for after in range(1, (8 - first * prefill_tp) // decode_tp + 1):
                            one = {
                                "disaggregated": True,
                                "prefill": {"tp": prefill_tp, "replicas": first, "max_num_batched_tokens": tokens},
                                "decode": {"tp": decode_tp, "replicas": after, "max_num_seqs": sequences},
                            }
                            result = predicted(SMALL, plan=one)
                            if within(result):
                                found = max(found, value(result, "goodput_requests_per_s_per_gpu"))
    assert found > 0 and best.objective.value == pytest.approx(found, rel=1e-6)


def test_a_plan_is_predicted_again_to_the_same(tmp_path: Path) -> None:
    place, saved = tmp_path / "asked.yaml", tmp_path / "plan.json"
    place.write_text(SMALL)
    run("plan", "serve", str(place), "--format", "json", "-o", str(saved))
    answer = json.loads(saved.read_text())
    again = json.loads(run("predict", "serve", str(saved), "--format", "json"))
    assert again["prediction"] == answer["prediction"] and again["breakdown"] == answer["breakdown"]
    assert answer["gap"] == 0 and within(Result.from_dict(answer))
    points = [(one["prediction"]["e2e_mean_s"], one["prediction"]["gpus"]) for one in answer["pareto"]["points"]]
    assert points == sorted(points) and [gpus for _, gpus in points] == sorted((g for _, g in points), reverse=True)
    assert "slo.ttft_p99" in {one["constraint"] for one in answer["binding"]}


def test_time_runs_out() -> None:
    """What was found by then, with the bound that the hardware sets."""
    result = plan(asked(SMALL), time_limit_s=0.0)
    assert result.status == "time_limit" and result.best_bound is not None and result.gap is not None
    assert result.objective.value is not None and result.objective.value < result.best_bound


def test_every_term_is_explained(tmp_path: Path) -> None:
    from perfmodel.serving.equations import SERVING_EXPLANATIONS

    def terms(node: dict[str, Any]) -> set[str]:
        return {str(node["name"])}.union(*(terms(child) for child in node.get("children") or ()))

    pools = {"prefill": {"tp": 1}, "decode": {"tp": 2}, "disaggregated": True}
    wide = {"tp": 2, "pp": 2, "dp": 2, "ep": 4, "precision_weights": "fp8"}
    for result in (predicted(), predicted(plan=pools), predicted(model="mixtral-8x7b", plan=wide)):
        assert result.breakdown is not None
        assert terms(result.breakdown) <= set(SERVING_EXPLANATIONS)
    place = tmp_path / "asked.yaml"
    place.write_text(ASKED)
    assert "E2E" not in run("predict", "serve", str(place), "--explain", "experts")
    assert "all-reduces" in run("predict", "serve", str(place), "--explain", "tensor-parallel communication")


def test_without_a_rate_the_most_is_served() -> None:
    text = SMALL.replace(", rate_rps: 20", "").replace("[bf16, fp8]}", "[bf16], disaggregated: [false]}")
    best = plan(asked(text))
    assert best.plan is not None and best.prediction is not None
    assert best.plan["tp"] * best.plan["replicas"] == 8
    rates = [value(predicted(text, plan={"tp": tp, "max_num_seqs": n, "max_num_batched_tokens": m}), "requests_per_s")
             for tp, n, m in LAYOUTS]  # fmt: skip
    assert value(best, "requests_per_s") == pytest.approx(max(rates), rel=1e-3)


def test_an_impossible_objective_has_a_nearest_one() -> None:
    text = SMALL.replace("tpot_p99: 25 ms", "tpot_p99: 1 ms")
    result = plan(asked(text))
    assert result.status == "infeasible"
    relaxation = {one["constraint"]: one for one in result.relaxation}
    reached = relaxation["slo.tpot_p99"]["needed"]
    wider = {"ttft_p99": "10 s", "tpot_p99": f"{reached * 1.001} s"}
    assert plan(asked(text, slo=wider)).status == "optimal"


def test_too_many_requests_say_how_many_nodes_would_do() -> None:
    text = SMALL.replace("rate_rps: 20", "rate_rps: 600")
    result = plan(asked(text))
    assert result.status == "infeasible"
    relaxation = {one["constraint"]: one for one in result.relaxation}
    assert 30 < relaxation["workload.arrivals.rate_rps"]["needed"] < 600
    assert relaxation["nodes"]["needed"] > 1
    wider = plan(asked(text, nodes=relaxation["nodes"]["needed"]))
    assert wider.status == "optimal"


def test_what_is_too_much_and_too_slow_alone_would_do_together() -> None:
    """More requests than anything answers, sooner than one alone is answered."""
    text = SMALL.replace("rate_rps: 20", "rate_rps: 900").replace("ttft_p99: 400 ms", "ttft_p99: 5 ms")
    result = plan(asked(text))
    assert result.status == "infeasible"
    needed = {one["constraint"]: one["needed"] for one in result.relaxation}
    assert set(needed) == {"slo.ttft_p99", "workload.arrivals.rate_rps"}
    again = asked(text, slo={"ttft_p99": needed["slo.ttft_p99"], "tpot_p99": 0.025})
    rate = needed["workload.arrivals.rate_rps"] * (1 - 1e-4)
    lengths = {"isl": 1000, "osl": 200}
    slower = {"arrivals": {"process": "poisson", "rate_rps": rate}, "lengths": lengths}
    assert plan(again).status == "infeasible"
    assert plan(asked(text, slo=again.question.slo.limits, workload=slower)).status == "optimal"


def test_weights_that_fit_nowhere() -> None:
    text = SMALL.replace("llama-3.1-8b", "llama-3.1-405b").replace("[bf16, fp8]", "[bf16]")
    with pytest.raises(InputError) as error:
        plan(asked(text))
    assert "search.tp" in str(error.value) and "16 would do" in str(error.value)


# --- several layouts and kinds of accelerators ---------------------------------------------------------------------

MIXED = """
kind: serve
cluster: dgx-h100
nodes: 2
model: llama-3.1-70b
workload:
  arrivals: {process: poisson, rate_rps: 1}
  lengths: {isl: 2000, osl: 500}
slo: {ttft_p99: 2 s, tpot_p99: 35 ms}
search:
  tp: [2, 4]
  max_num_seqs: [128]
  max_num_batched_tokens: [2048]
  precision_weights: [fp8]
  disaggregated: [false]
  mixed: true
"""


def at_rate(text: str, rate: float, **changes: Any) -> Any:
    arrivals = {"process": "poisson", "rate_rps": rate}
    return asked(text, workload={"arrivals": arrivals, "lengths": {"isl": 2000, "osl": 500}}, **changes)


@pytest.mark.slow
def test_instances_of_two_layouts_need_fewer_accelerators() -> None:
    """What one of each sustains is more than three of the small ones do, and less than two of the large ones."""
    limits = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "precision_weights": "fp8", "replicas": 1}
    open_ended = {"arrivals": {"process": "poisson"}, "lengths": {"isl": 2000, "osl": 500}}
    small, large = (
        value(predicted(MIXED, workload=open_ended, plan=limits | {"tp": tp}), "requests_per_s") for tp in (2, 4)
    )
    assert large > 2 * small
    rate = 0.99 * (small + large)
    best = plan(at_rate(MIXED, rate))
    assert best.plan is not None and best.prediction is not None
    assert sorted((one["tp"], one["replicas"]) for one in best.plan["groups"]) == [(2, 1), (4, 1)]
    assert best.prediction["gpus"] == 6 and best.alternatives[0]["prediction"]["gpus"] == 8
    assert value(best, "ttft_p99_s") <= 2 and value(best, "tpot_p99_s") <= 0.035
    again = predict(at_rate(MIXED, rate, plan=best.plan))
    assert again.prediction == best.prediction and again.breakdown == best.breakdown
    only = {"search": {**best.scenario["search"], "mixed": False}}
    assert value(plan(at_rate(MIXED, rate, **only)), "gpus") == 8


@pytest.mark.slow
def test_prompts_on_one_kind_and_tokens_on_another() -> None:
    """Accelerators with little arithmetic for their bandwidth and price make the tokens."""
    text = MIXED.replace("[fp8]", "[bf16]").replace("disaggregated: [false]", "disaggregated: [false, true]")
    changes = {
        "also": [{"cluster": "dgx-a100", "nodes": 2, "price_usd_per_hour": 1.0}],
        "price_usd_per_hour": 4.0,
        "objective": "cost_usd_per_million_tokens",
        "slo": {"ttft_p99": "1.5 s", "tpot_p99": "60 ms"},
    }
    best = plan(at_rate(text, 4, **changes))
    assert best.plan is not None and best.prediction is not None
    where = {(one["phase"], one["accelerator"]) for one in best.plan["groups"]}
    assert ("prefill", "h100-80gb-sxm") in where and ("decode", "a100-80gb-sxm") in where
    assert value(best, "ttft_p99_s") <= 1.5 and value(best, "tpot_p99_s") <= 0.06
    hourly = 4.0 * best.prediction["gpus_by_accelerator"]["h100-80gb-sxm"]
    hourly += 1.0 * best.prediction["gpus_by_accelerator"]["a100-80gb-sxm"]
    assert value(best, "cost_usd_per_hour") == pytest.approx(hourly)
    assert value(best, "cost_usd_per_million_tokens") == pytest.approx(hourly / (4 * 500 * 3600) * 1e6)
    again = predict(at_rate(text, 4, **changes, plan=best.plan))
    assert again.prediction == best.prediction and again.breakdown == best.breakdown
    alone = plan(at_rate(text, 4, **{**changes, "also": []}))
    assert value(alone, "cost_usd_per_hour") > hourly


@pytest.mark.slow
def test_units_that_wait_for_one_another_meet_the_objectives_together() -> None:
    """Under a tighter limit than above, the pair of pools that costs least by itself is late: others are chosen."""
    text = MIXED.replace("[fp8]", "[bf16]").replace("disaggregated: [false]", "disaggregated: [false, true]")
    changes = {
        "also": [{"cluster": "dgx-a100", "nodes": 2, "price_usd_per_hour": 1.0}],
        "price_usd_per_hour": 4.0,
        "objective": "cost_usd_per_million_tokens",
    }
    for limit in ("0.9 s", "1 s", "1.2 s"):
        best = plan(at_rate(text, 4, **changes, slo={"ttft_p99": limit, "tpot_p99": "60 ms"}))
        assert value(best, "ttft_p99_s") <= float(limit.split()[0]) * (1 + 1e-6)
        assert value(best, "tpot_p99_s") <= 0.06 * (1 + 1e-6)
        assert best.objective.value is not None and best.best_bound is not None
        assert best.best_bound <= best.objective.value * (1 + 1e-9)


@pytest.mark.slow
def test_experts_are_spread_widely() -> None:
    """DeepSeek-V3 on 64 H200: attention data parallel, and more experts' ranks than a node has."""
    result = plan(load_serve(read_file(ROOT / "examples" / "serve-deepseek-v3-wide.yaml"), ROOT))
    assert result.status == "optimal" and result.plan is not None and result.candidates is not None
    decode = result.plan["decode"] if result.plan["disaggregated"] else result.plan
    assert decode["dp"] > 1 and decode["ep"] == decode["tp"] * decode["dp"] > 8
    assert result.candidates > 1_000_000
    assert value(result, "ttft_p99_s") <= 3 and value(result, "tpot_p99_s") <= 0.06


def test_a_further_kind_without_the_arithmetic_is_warned_of() -> None:
    text = ASKED + "also: [{cluster: dgx-a100}]\nsearch: {precision_weights: [fp8, bf16]}\n"
    (warning,) = asked(text).warnings
    assert str(warning).endswith(
        "also[0].cluster: a100-80gb-sxm has no arithmetic for fp8; it is searched with the others"
    )
    (warning,) = asked(text.replace(", bf16]", "]")).warnings
    assert str(warning).endswith("has no arithmetic for fp8; it is left out")


def test_faults_of_groups() -> None:
    found = faults(
        MIXED.replace("nodes: 2", "nodes: 1")
        + """
plan:
  groups:
    - {tp: 8, replicas: 2, accelerator: h100-80gb-sxm, share: 0.5}
    - {tp: 2, accelerator: h200-sxm, share: 0.25}
"""
    )
    for part in ("no such accelerator here", "take 16 h100-80gb-sxm, but there are 8", "should add up to 1"):
        assert any(part in line for line in found), part


# --- bad input -----------------------------------------------------------------------------------------------------


def test_all_faults_at_once() -> None:
    found = faults(
        """
kind: serve
cluster: dgx-a100
model: llama-3.1-8b
engine: vlm
workload: {arrivals: {process: gamma, rate_rps: 2}, lengths: {isl: 10, osl: 10}}
search: {tp: [1, 3], precision_weights: [bf16, fp8], dp: [2]}
plan: {tp: 8, replicas: 2, draft_tokens: 3}
"""
    )
    for part in (
        "engine",
        "cv: missing",
        "search.tp[1]: does not divide the 32 attention heads",
        "a100-80gb-sxm has no fp8 peak",
        "h100-80gb-sxm",
        "no experts to share",
        "8 x 1 x 1 x 2 = 16, but the cluster has 8 accelerators",
        "speculative: missing",
    ):
        assert any(part in line for line in found), part
    assert all(line.startswith("asked.yaml:") for line in found)


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ("{process: poisson, rate_rps: -8}", "6:32: workload.arrivals.rate_rps: should be greater than 0 [got -8]"),
        ("{trace: x.csv, window: -1 s}", "6:28: workload.arrivals.window: should not be negative"),
        ("{concurrency: 0}", "6:14: workload.arrivals.concurrency: should be greater than or equal to 1 [got 0]"),
    ],
)
def test_faults_of_arrivals_are_at_their_keys(wrong: str, place: str) -> None:
    found = faults(ASKED.replace("{process: poisson, rate_rps: 8}", wrong))
    assert any(line.startswith(f"asked.yaml:{place}") for line in found), found


def test_times_are_no_objective_at_the_highest_rate() -> None:
    text = ASKED.replace("process: poisson, rate_rps: 8", "process: poisson, profile: [0, 0]")
    found = faults(text + "objective: tpot_mean_s\n")
    assert any("rate_rps: missing" in line for line in found)
    assert any("profile: should not be zero throughout" in line for line in found)


def test_an_objective_in_the_wrong_unit_is_told(tmp_path: Path) -> None:
    place = tmp_path / "asked.yaml"
    place.write_text(ASKED.replace("50 ms", "50 s"))
    result = CliRunner().invoke(app, ["predict", "serve", str(place)])
    assert result.exit_code == 0
    assert "slo.tpot_p99" in result.stderr and "was 50 ms meant" in result.stderr
