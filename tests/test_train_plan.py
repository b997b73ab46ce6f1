"""The planner: exhaustive, proved, reproducible, and clear about what does not fit."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from hardware.faults import InputError
from hardware.yaml_source import Source
from perfmodel.memory import available_bytes, host_bytes
from perfmodel.plan import CHOICES, plan_from_rows, plan_to_dict
from perfmodel.training import predict_step
from solvers.result import Result
from solvers.scenario import TrainScenario, load_train, plan_faults
from solvers.train import ideal_step_s, plan, predict
from solvers.train_search import evaluate
from solvers.train_space import divisors, space

SMALL = {
    "kind": "train",
    "cluster": "dgx-h100",
    "nodes": 2,
    "model": "llama-3.1-8b",
    "workload": {"seq_len": 4096, "global_batch": 32, "precision": "bf16"},
}


def scenario(**changes: object) -> TrainScenario:
    return load_train(Source("small.yaml", SMALL | changes), Path())


def test_search_equals_brute_force_over_every_field() -> None:
    asked = scenario(
        search={
            "tp": [1, 8],
            "pp": [1, 2],
            "cp": [1, 2],
            "micro_batch": [1, 2],
            "vpp": [1, 4],
            "zero_stage": [0, 1, 3],
            "recompute": ["none", "full"],
            "offload": ["none"],
            "cp_style": ["ring", "ulysses"],
        }
    )
    job = asked.job
    best: tuple[float, dict[str, object]] | None = None
    costed = 0
    switches = ([0, 1, 3], [False, True], ["none", "full"], [False, True], ["ring", "ulysses"])
    for tp, pp, cp, micro, vpp in itertools.product([1, 8], [1, 2], [1, 2], [1, 2], [1, 4]):
        for zero, seq_parallel, recompute, overlap_dp, style in itertools.product(*switches):
            dp = 16 // (tp * pp * cp)
            row: dict[str, object] = dict(  # noqa: C408
                tp=tp, pp=pp, dp=dp, cp=cp, ep=1, vpp=vpp, micro_batch=micro, zero_stage=zero,
                seq_parallel=seq_parallel, recompute=recompute, offload="none", overlap_dp=overlap_dp,
                overlap_tp=False, rank_order="tp-cp-dp-pp", cp_style=style,
            )  # fmt: skip
            if dp < 1 or plan_faults(job, row):
                continue
            if (dp * cp == 1 and (zero or overlap_dp)) or (cp == 1 and style == "ulysses"):
                continue  # the same plan by another name
            predicted = predict_step(job, plan_from_rows([row]))
            costed += 1
            if predicted.memory.reserved_peak[0] > available_bytes(job):
                continue
            seconds = float(predicted.step.seconds[0])
            if best is None or seconds < best[0]:
                best = (seconds, row)
    assert best is not None
    result = plan(asked)
    assert result.status == "optimal"
    assert result.gap == 0
    assert result.candidates == costed
    assert result.objective.value == pytest.approx(best[0], rel=1e-12)
    assert result.plan == best[1] | {"power_cap_w": None}


def test_the_style_of_least_time_is_found_once_each() -> None:
    workload = {"seq_len": 131072, "global_batch": 8, "precision": "bf16"}
    limits = {"tp": [1], "pp": [1], "cp": [16], "micro_batch": [1], "zero_stage": [3], "recompute": ["full"]}
    asked = scenario(cluster="aws-p4d", model="llama-2-13b", workload=workload, search=limits | {"offload": ["none"]})
    found = evaluate(asked.job, space(asked.job, asked.question.search))
    styles = [plan_to_dict(found.plan, index)["cp_style"] for index in range(len(found.plan))]
    # 40 heads do not divide over 16 ranks; hybrid deals them out over the eight of a node
    assert set(styles) == {"ring", "all-gather", "hybrid"} and "ulysses" not in styles
    result = plan(asked)
    assert result.plan is not None and result.prediction is not None
    fits = found.fits(asked.job)
    assert result.prediction["step_time_s"] == pytest.approx(found.step_time_s[fits].min())
    assert (result.plan["cp_style"], result.prediction["cp_exchange_size"]) == ("hybrid", 8)
    inside = scenario(cluster="aws-p4d", model="llama-2-13b", workload=workload, search=limits | {"cp": [8]})
    space_of = evaluate(inside.job, space(inside.job, inside.question.search))
    names = {str(plan_to_dict(space_of.plan, index)["cp_style"]) for index in range(len(space_of.plan))}
    assert names == {"ring", "ulysses", "all-gather"}  # hybrid would be Ulysses by another name


def test_every_candidate_is_valid_and_stands_once() -> None:
    asked = scenario(model="mixtral-8x7b", nodes=4)
    job = asked.job
    found = evaluate(job, space(job, asked.question.search))
    rows = [plan_to_dict(found.plan, i) for i in np.random.default_rng(0).integers(0, len(found.plan), 300)]
    assert all(plan_faults(job, row) == [] for row in rows)
    columns = np.stack([getattr(found.plan, name) for name in found.plan.__dataclass_fields__], axis=1)
    assert len(np.unique(columns, axis=0)) == len(columns)


def test_the_answer_fits_and_no_listed_plan_beats_it() -> None:
    asked = scenario()
    result = plan(asked, top=8)
    assert result.plan is not None
    assert result.prediction is not None
    memory = result.prediction["memory_bytes"]
    assert memory["reserved_peak"] <= available_bytes(asked.job)
    assert memory["offloaded"] <= host_bytes(asked.job)
    times = [entry["prediction"]["step_time_s"] for entry in result.alternatives]
    assert times == sorted(times)
    assert all(time >= result.objective.value for time in times)
    layouts = [tuple(entry["plan"][name] for name in ("tp", "pp", "dp", "cp", "ep")) for entry in result.alternatives]
    assert len(set(layouts)) == len(layouts)


def test_pareto_front_is_not_beaten() -> None:
    asked = scenario()
    result = plan(asked)
    found = evaluate(asked.job, space(asked.job, asked.question.search))
    fits = found.fits(asked.job)
    assert result.pareto is not None
    for point in result.pareto["points"]:
        time = point["prediction"]["step_time_s"]
        memory = point["prediction"]["memory_bytes"]["reserved_peak"]
        better = (found.step_time_s[fits] < time * (1 - 1e-9)) & (found.required_bytes[fits] < memory * (1 - 1e-9))
        assert not better.any()


def test_shadow_price_of_memory_is_a_saving_that_exists() -> None:
    asked = scenario(cluster="dgx-a100-40gb", nodes=2)
    result = plan(asked)
    [memory] = result.binding
    found = evaluate(asked.job, space(asked.job, asked.question.search))
    capacity = available_bytes(asked.job)
    price = memory["shadow_price"]
    assert memory["shadow_price_unit"] == "s/GiB"
    assert price < 0
    # the plan that saves most per GiB: with its memory granted, the optimum falls by at least price x extra
    faster = (found.required_bytes > capacity) & (found.step_time_s < result.objective.value)
    extra = (found.required_bytes[faster] - capacity) / 2**30
    saved = result.objective.value - found.step_time_s[faster]
    assert np.max(saved / extra) == pytest.approx(-price, rel=1e-9)


def test_saved_plan_predicts_the_same_number(tmp_path: Path) -> None:
    result = plan(scenario())
    saved = json.loads(json.dumps(result.to_dict()))
    again = load_train(Source("plan.json", saved["scenario"] | {"plan": saved["plan"]}), tmp_path)
    predicted = predict(again)
    assert predicted.prediction == result.prediction
    assert predicted.breakdown == result.breakdown
    assert Result.from_dict(saved) == result


def test_resolved_scenario_asks_the_same_question(tmp_path: Path) -> None:
    first = scenario()
    second = load_train(Source("again", json.loads(json.dumps(first.resolved))), tmp_path)
    assert second.resolved == first.resolved
    assert second.job.levels == first.job.levels
    assert plan(second).plan == plan(first).plan


def test_more_memory_and_more_bandwidth_never_hurt() -> None:
    from cli.load import with_overrides

    base = plan(scenario(cluster="dgx-a100-40gb", nodes=2)).objective.value
    for override in (
        "accelerator.memory.capacity=80 GiB",
        "accelerator.memory.bandwidth=4 TB/s",
        "cluster.node.links.nvlink.bandwidth=600 GB/s",
        "cluster.node.nics.bandwidth=400 Gbit/s",
    ):
        source = with_overrides(Source("small", SMALL | {"cluster": "dgx-a100-40gb"}), [override], Path())
        assert plan(load_train(source, Path())).objective.value <= base * (1 + 1e-12), override


def test_time_limit_returns_incumbent_with_true_bound() -> None:
    asked = scenario(nodes=16, workload={"seq_len": 4096, "global_batch": 512})
    result = plan(asked, time_limit_s=0.0)
    assert result.status == "time_limit"
    # nothing was costed, so there is no plan, but the bound holds for every plan
    assert result.plan is None
    best = plan(asked)
    assert best.status == "optimal"
    assert ideal_step_s(asked.job) <= best.objective.value
    assert result.best_bound == pytest.approx(ideal_step_s(asked.job))


def test_gap_stops_early_and_says_so() -> None:
    asked = scenario(nodes=64, model="llama-3.1-70b", workload={"seq_len": 8192, "global_batch": 1024})
    result = plan(asked, gap=0.9)
    assert result.status == "feasible"
    assert result.gap is not None
    assert 0 < result.gap <= 0.9
    assert result.candidates < plan(asked).candidates


def test_model_too_large_names_smallest_relaxation() -> None:
    asked = scenario(cluster="l4-8", nodes=1, model="llama-3.1-70b", workload={"seq_len": 4096, "global_batch": 64})
    result = plan(asked)
    assert result.status == "infeasible"
    assert result.plan is None
    needed = {entry["constraint"]: entry for entry in result.relaxation}
    nodes = needed["nodes"]["needed"]
    assert plan(scenario_like(asked, nodes)).status == "optimal"
    assert all(plan(scenario_like(asked, fewer)).status == "infeasible" for fewer in range(1, nodes))
    memory = needed["accelerator.memory.capacity"]["needed"]
    from cli.load import with_overrides

    def with_memory(size: float) -> str:
        source = with_overrides(Source("x", asked.resolved), [f"accelerator.memory.capacity={size}"], Path())
        return plan(load_train(source, Path())).status

    assert with_memory(memory) == "optimal"
    assert with_memory(memory * 0.999) == "infeasible"


def scenario_like(asked: TrainScenario, nodes: int) -> TrainScenario:
    data = SMALL | {"cluster": "l4-8", "model": "llama-3.1-70b", "nodes": nodes, "workload": asked.resolved["workload"]}
    return load_train(Source("x", data), Path())


def test_offload_needs_host_memory() -> None:
    asked = scenario(cluster="dgx-h100", nodes=1, model="llama-3.1-70b", workload={"seq_len": 4096, "global_batch": 64})
    assert plan(asked).plan["offload"] == "optimizer"
    from cli.load import with_overrides

    # 70.6e9 parameters x 12 bytes of Adam states need 847 GB of the node
    source = with_overrides(Source("x", asked.resolved), ["cluster.node.tiers.ddr.capacity=800 GB"], Path())
    assert plan(load_train(source, Path())).status == "infeasible"


def test_batch_that_divides_nothing_names_the_next_that_does() -> None:
    asked = scenario(nodes=3, workload={"seq_len": 4096, "global_batch": 7}, search={"tp": [1], "pp": [1], "cp": [1]})
    result = plan(asked)
    assert result.status == "infeasible"
    assert result.candidates == 0
    [batch] = [entry for entry in result.relaxation if entry["constraint"] == "workload.global_batch"]
    assert batch["needed"] == 24  # 24 accelerators, all data parallel


def test_a_list_that_allows_nothing_names_the_nearest_value() -> None:
    result = plan(scenario(search={"tp": [3]}))
    assert result.status == "infeasible"
    [entry] = [entry for entry in result.relaxation if entry["constraint"] == "search.tp"]
    assert (entry["now"], entry["needed"]) == ([3], 2)
    assert plan(scenario(search={"tp": [2]})).status == "optimal"


def test_baseline_is_predicted_beside_the_best() -> None:
    today = {"tp": 8, "pp": 2, "micro_batch": 1, "zero_stage": 1, "seq_parallel": True, "recompute": "full"}
    result = plan(scenario(plan=today))
    assert result.baseline is not None
    gain = result.baseline["prediction"]["step_time_s"] / result.objective.value
    assert result.baseline["gain"] == gain > 1
    assert result.baseline["gain_p10"] < gain < result.baseline["gain_p90"]


def test_infeasible_plan_is_an_answer_of_predict() -> None:
    result = predict(scenario(model="llama-3.1-70b", plan={"tp": 2}))
    assert result.status == "infeasible"
    assert result.relaxation[0]["constraint"] == "accelerator.memory.capacity"
    assert result.relaxation[0]["needed"] > result.relaxation[0]["now"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"plan": {"tp": 3, "pp": 5}}, "tp x pp x cp x dp = 3 x 5 x 1 x 1 = 15, but the cluster has 16 accelerators"),
        ({"search": {"tp": []}}, "search.tp: should not be empty; leave the key out for the default"),
        ({"plan": {"pp": 2, "dp": 8, "micro_batch": 3}}, "does not divide the global batch of 32"),
        ({"plan": {"vpp": 2}}, "interleaving needs more than one stage"),
        ({"plan": {"overlap_tp": True}}, "needs sequence parallelism"),
        ({"plan": {"ep": 2}}, "must divide the 0 experts"),
        ({"framework": "megatron"}, 'did you mean "megatron-lm"'),
        ({"objective": "training_days"}, "training_days needs workload.tokens"),
        ({"model": "lama-3.1-8b"}, 'did you mean "llama-3.1-8b"'),
        ({"cluster": "dgx-h10"}, "dgx-h100"),
        ({"workload": {"seq_len": 4096, "global_batch": 32, "precision": "nvfp4"}}, "has no fp4 peak"),
    ],
)
def test_bad_input_is_a_located_message(change: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        scenario(**change)
    assert expected in str(caught.value)


def test_tensor_parallelism_over_two_nodes_is_allowed() -> None:
    given = scenario(plan={"tp": 16}).plan
    assert given is not None
    assert int(given.tp[0]) == 16


def test_all_faults_of_a_scenario_come_at_once() -> None:
    bad = SMALL | {
        "cluster": "dgx-h10",
        "model": "lama",
        "framework": "x",
        "workload": {"seq_len": 0, "global_batch": "many"},
        "serach": {},
    }
    with pytest.raises(InputError) as caught:
        load_train(Source("bad.yaml", bad), Path())
    assert len(caught.value.faults) == 6


def test_choices_cover_the_question() -> None:
    from typing import get_args

    from solvers import scenario as module

    for name, kind in (
        ("recompute", module.Recompute),
        ("offload", module.Offload),
        ("rank_order", module.RankOrder),
        ("cp_style", module.ContextStyle),
    ):
        assert get_args(kind) == CHOICES[name]


def test_divisors() -> None:
    assert divisors(96) == [d for d in range(1, 97) if 96 % d == 0]
    assert divisors(1) == [1]


def test_an_unknown_architecture_is_a_fault_of_the_input() -> None:
    from cli.load import with_overrides

    source = with_overrides(Source("small", SMALL), ["accelerator.architecture=hoper"], Path())
    with pytest.raises(InputError) as caught:
        load_train(source, Path())
    assert 'did you mean "hopper"' in str(caught.value)


def test_predict_checks_the_hosts_memory() -> None:
    from cli.load import with_overrides

    today = {"pp": 8, "offload": "optimizer", "recompute": "full", "zero_stage": 1}
    question = SMALL | {"nodes": 1, "model": "llama-3.1-70b", "plan": today}
    # 70.6e9 parameters x 12 bytes over 8 stages: 106 GB a rank, 847 GB a node of 1.6 TB
    assert predict(load_train(Source("x", question), Path())).status == "feasible"
    small = with_overrides(Source("x", question), ["cluster.node.tiers.ddr.capacity=800 GB"], Path())
    result = predict(load_train(small, Path()))
    assert result.status == "infeasible"
    [host] = result.relaxation
    assert host["constraint"] == "node.tiers.ddr.capacity"
    assert host["needed"] > 847e9


def test_a_framework_says_which_zero_stages_go_with_stages() -> None:
    # Megatron-LM shards no gradients beside a pipeline, unless the question asks for it
    found = evaluate(scenario().job, space(scenario().job, scenario().question.search))
    assert set(found.plan.zero_stage[found.plan.pp > 1]) == {0, 1}
    assert set(found.plan.zero_stage[found.plan.pp == 1]) == {0, 1, 2, 3}
    asked = scenario(search={"zero_stage": [2], "pp": [2]})
    assert set(evaluate(asked.job, space(asked.job, asked.question.search)).plan.zero_stage) == {2}
