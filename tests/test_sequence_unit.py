"""Units of several accelerators: tensor and pipeline parallelism within a rank of a group, against the step model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sequence_checker

from hardware.catalogue import resolve_cluster
from hardware.faults import InputError
from hardware.yaml_source import Source, read_yaml
from perfmodel.architecture import load_architecture
from perfmodel.framework import frameworks
from perfmodel.job import Job, job
from perfmodel.memory import available_bytes
from perfmodel.plan import DEFAULTS, plan_from_rows
from perfmodel.sequence import STYLES, memory_per_token, micro_step, sequence_costs
from perfmodel.sequence_equations import SEQUENCE_EXPLANATIONS
from perfmodel.training import predict_step
from solvers.sequence import plan, predict
from solvers.sequence_answer import scatter_of
from solvers.sequence_scenario import SequenceScenario, load_sequence
from solvers.sequence_unit import accelerators

LENGTHS = "{distribution: lognormal, median: 4096, sigma: 1.2, min: 64, max: 65536, count: 64, seed: 3}"
TEXT = """\
kind: sequence
cluster: dgx-h100
nodes: 4
model: llama-3.1-8b
workload: {{lengths: {lengths}}}
layout: {{{layout}}}
search: {{schedule: [{schedule}]}}
"""


def asked(layout: str, schedule: str = "fixed", lengths: str = LENGTHS, **other: str) -> SequenceScenario:
    text = TEXT.format(lengths=lengths, layout=layout, schedule=schedule)
    for before, after in other.items():
        text = text.replace(f"{before}:", f"{after}\n{before}:")
    return load_sequence(read_yaml(text, "scenario.yaml"), Path())


@pytest.fixture(scope="module")
def found() -> Job:
    machine = resolve_cluster("dgx-h100", Path(), 4)
    architecture = load_architecture("llama-3.1-8b", Path(), Source("test", {}, {}), ())
    return job(
        architecture,
        machine,
        ranks=32,
        seq_len=4096,
        global_batch=32,
        precision="bf16",
        framework=frameworks()["deepspeed"],
    )


def row_of(**layout: Any) -> dict[str, Any]:
    return {**DEFAULTS, "zero_stage": 1, "overlap_dp": False, **layout}


def chain_s(found: Job, row: dict[str, Any], degree: int, length: int, batches: int) -> float:
    """Return what a step of equal sequences takes without optimizer and gradients, from the model of a step."""
    replicas = found.ranks // (row["tp"] * row["pp"] * degree)
    plan = plan_from_rows([{**row, "cp": degree, "dp": replicas, "micro_batch": 1}])
    step = predict_step(replace(found, seq_len=length, global_batch=batches * replicas), plan).step
    apart = ("gradient traffic", "weight traffic", "optimizer", "host work per step")
    return float(sum(np.asarray(child.seconds).sum() for child in step.children if child.name not in apart))


@pytest.mark.parametrize("seq_parallel", [False, True])
@pytest.mark.parametrize(("tp", "degree"), [(2, 1), (2, 4), (4, 2), (8, 4)])
def test_a_micro_step_of_tensor_parallel_units_is_that_of_a_step(
    found: Job, tp: int, degree: int, seq_parallel: bool
) -> None:
    row = row_of(tp=tp, seq_parallel=seq_parallel, cp_style="ring")
    one = micro_step(found, row, np.array([8192.0]), np.array([degree]), 8192.0 / degree, "ring").seconds
    whole = chain_s(found, row, degree, 8192, 3)  # exposed gradients aside, three micro-steps one after another
    assert 3 * float(np.squeeze(one)) == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(("pp", "degree", "batches"), [(2, 1, 4), (2, 4, 2), (4, 2, 8)])
def test_a_chain_through_a_pipeline_is_that_of_a_step(found: Job, pp: int, degree: int, batches: int) -> None:
    """Stages are taken as equal to the slowest: no less than the model of a step, and more by the ends alone."""
    row = row_of(pp=pp, cp_style="ring")
    one = micro_step(found, row, np.array([8192.0]), np.array([degree]), 8192.0 / degree, "ring").seconds
    told, whole = (batches + pp - 1) * float(np.squeeze(one)), chain_s(found, row, degree, 8192, batches)
    assert whole * (1 - 1e-3) <= told <= 1.12 * whole


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 4)])
def test_memory_of_a_unit_is_that_of_a_step(found: Job, tp: int, pp: int) -> None:
    """A full micro-step, with as many more in flight as there are stages, fills the accelerator and not more."""
    row = row_of(tp=tp, pp=pp, seq_parallel=tp > 1)
    state, token, available = memory_per_token(found, row)
    replicas = found.ranks // (tp * pp)
    capacity = (available - state) / token
    assert available == available_bytes(found)
    for share, least in ((1.0, 0.97), (0.8, 0.0)):
        step = plan_from_rows([{**row, "dp": replicas, "micro_batch": 1}])
        asked = replace(found, seq_len=int(share * capacity), global_batch=2 * pp * replicas)
        needed = float(np.squeeze(predict_step(asked, step).memory.reserved_peak))
        assert least * available <= needed <= available * (1 + 1e-6)
        assert needed <= (state + token * int(share * capacity)) * (1 + 1e-9)


def test_units_hold_more_and_take_less_time(found: Job) -> None:
    sizes = (1, 2, 4)
    one, two = (sequence_costs(found, sizes, STYLES, {"zero_stage": 1, "tp": tp}) for tp in (1, 2))
    assert two.unit == 2 and two.capacity_tokens > 1.5 * one.capacity_tokens
    lengths = np.array([1024.0, 16384.0])
    assert np.all(two.of(lengths) < one.of(lengths)) and np.all(two.of(lengths) > 0.4 * one.of(lengths))
    # 8 heads a unit are dealt out over no more than 8
    heads = sequence_costs(found, (4, 8, 16), STYLES, {"zero_stage": 1, "tp": 2})
    assert np.isfinite(heads.of(lengths, "ulysses")).tolist() == [[True, True, True]] * 2
    heads = sequence_costs(found, (4, 8), STYLES, {"zero_stage": 1, "tp": 8})
    assert np.isfinite(heads.of(lengths, "ulysses")).tolist() == [[True, False]] * 2


def test_groups_lie_on_every_stage_and_share_nothing() -> None:
    """Of 24 accelerators in units of 2 x 3, groups of 3 and of 1."""
    three, one = accelerators(0, 3, 4, 2, 3), accelerators(3, 1, 4, 2, 3)
    assert one == [6, 7, 14, 15, 22, 23]
    assert sorted(three + one) == list(range(24))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("tp: 3", "scenario.yaml:6:10: layout.tp: tp x pp = 3 does not divide the 32 accelerators of the cluster"),
        ("tp: 3", "layout.tp: does not divide the 32 attention heads [got 3]"),
        ("pp: 64", "layout.pp: tp x pp = 64 does not divide the 32 accelerators"),
        ("pp: 64", "layout.pp: 32 layers do not spread over 64 stages"),
        ("tp: 0", "layout.tp: should be greater than or equal to 1 [got 0]"),
        ("pp: 1.5", "layout.pp: should be a whole number [got 1.5]"),
        ("seq_parallel: true", "layout.seq_parallel: sequence parallelism needs tp > 1"),
    ],
)
def test_wrong_layouts_are_named(layout: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        asked(layout)
    assert message in str(caught.value)


def test_what_a_pipeline_does_not_do_is_said() -> None:
    with pytest.raises(InputError, match=r"search.schedule\[0\]: groups that split would drain the pipeline"):
        asked("pp: 2", "splits")
    with pytest.raises(InputError, match="the cluster has 32 accelerators in units of 4"):
        load_sequence(
            read_yaml(
                TEXT.format(lengths=LENGTHS, layout="tp: 4", schedule="fixed").replace(
                    "{schedule", "{degrees: [1, 16], schedule"
                ),
                "scenario.yaml",
            ),
            Path(),
        )
    with pytest.raises(InputError, match="costs are given, and they are those of a whole unit"):
        asked(
            "tp: 2",
            search="costs: {a1: 1, a2: 1, b1: 1, a3: 1, b2: 1, memory_per_token_bytes: 1, memory_state_bytes: 0}",
        )


def test_a_layout_of_ones_changes_nothing() -> None:
    plain, said = asked("zero_stage: 1"), asked("zero_stage: 1, tp: 1, pp: 1, seq_parallel: false")
    assert np.array_equal(plain.case.work_s, said.case.work_s)
    assert (plain.case.gpus, plain.case.stages, plain.costs.capacity_tokens) == (32, 1, said.costs.capacity_tokens)


def test_the_answer_counts_accelerators() -> None:
    scenario = asked("zero_stage: 1, tp: 4")
    answer = plan(scenario, time_limit_s=0.3)
    assert answer.plan is not None and answer.prediction is not None
    assert scenario.case.gpus == 8 and answer.prediction["gpus"] == 32
    taken = [gpu for group in answer.plan["groups"] for gpu in group["gpus"]]
    assert len(taken) == len(set(taken)) and set(taken) <= set(range(32))
    for group in answer.plan["groups"]:
        assert len(group["gpus"]) == 4 * group["degree"]
    again = load_sequence(Source("again", {**scenario.resolved, "plan": answer.plan}, {}), Path())
    assert again.given is not None and again.given.first_gpu.max() < 8


@pytest.mark.parametrize("schedule", ["one-shot", "barrier", "fixed"])
def test_the_answer_of_a_pipeline_adds_up(schedule: str) -> None:
    scenario = asked("zero_stage: 1, pp: 4, tp: 2", schedule, lengths="[9000, 7000, 4000, 2000, 2000, 1000]")
    answer = plan(scenario, time_limit_s=0.5)
    assert answer.plan is not None and answer.prediction is not None and answer.breakdown is not None
    said, case = answer.prediction, scenario.case
    assert (case.gpus, case.stages) == (4, 4)
    assert sequence_checker.faults(case, scatter_of(answer.plan, 2), said["makespan_s"]) == []
    assert answer.breakdown["seconds"] == pytest.approx(said["step_time_s"])
    assert said["micro_step_balance"] >= 1 - 1e-12 and 0 < said["pipeline_bubble_share"] < 1
    if schedule == "one-shot":  # three of four stages wait for the one at work
        assert said["micro_step_balance"] == pytest.approx(1)
    for group in answer.plan["groups"]:  # a pipeline stage is eight accelerators
        size = 2 * group["degree"]
        assert group["gpus"] == [8 * stage + group["gpus"][0] + place for stage in range(4) for place in range(size)]
    assert any("splits" in entry["reason"] for entry in answer.why_not)
    assert all(part["name"] in SEQUENCE_EXPLANATIONS for part in answer.breakdown["children"][0]["children"])
    again = load_sequence(Source("again", {**scenario.resolved, "plan": answer.plan}, {}), Path())
    told = predict(again).prediction
    assert told is not None and told["makespan_s"] == pytest.approx(said["makespan_s"])


def test_stages_that_are_not_where_they_belong_are_named() -> None:
    text = TEXT.format(lengths="[100]", layout="pp: 2, zero_stage: 1", schedule="fixed")
    groups, assignment = "[{id: 0, degree: 1, gpus: [0, 1]}]", "[{sequence: 0, group: 0, micro_step: 0}]"
    wrong = f"plan: {{schedule: fixed, groups: {groups}, assignment: {assignment}}}"
    with pytest.raises(InputError, match="1 neighbours among 0 to 15, and those 16 further on for each later stage"):
        load_sequence(read_yaml(text + wrong, "scenario.yaml"), Path())
