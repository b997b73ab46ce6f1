"""Activations that leave for host memory: closed forms, what a long sequence then needs, and plans that hold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sequence_checker
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan_sequence import scatter_of
from test_sequence_costs import DEGREES, LAYOUT, ROW, asked

from hardware.faults import InputError
from hardware.yaml_source import Source, read_yaml
from perfmodel.job import Job
from perfmodel.memory import host_bytes
from perfmodel.sequence import STYLES, SequenceCosts, memory_per_token, sequence_costs
from perfmodel.training import host_rates
from solvers.sequence import plan, predict
from solvers.sequence_barrier import plan_barrier
from solvers.sequence_bounds import alone_s, work_bound
from solvers.sequence_case import Case, makespan
from solvers.sequence_scenario import SequenceScenario, load_sequence

TEXT = """\
kind: sequence
cluster: aws-p4d
nodes: 8
model: llama-2-7b
workload: {{lengths: {lengths}}}
layout: {{{layout}}}
search: {{schedule: [{schedule}]}}
"""


def scenario_of(layout: str, lengths: str = "[196608, 65536, 30000, 9000, 2000]", schedule: str = "fixed") -> Any:
    return load_sequence(read_yaml(TEXT.format(lengths=lengths, layout=layout, schedule=schedule), "s.yaml"), Path())


@pytest.fixture(scope="module")
def found() -> Job:
    return asked()


@pytest.fixture(scope="module")
def plain(found: Job) -> SequenceCosts:
    return sequence_costs(found, DEGREES, STYLES, LAYOUT)


@pytest.fixture(scope="module")
def costs(found: Job) -> SequenceCosts:
    return sequence_costs(found, DEGREES, STYLES, LAYOUT, offload_activations=True)


def test_the_share_is_what_the_link_moves_behind_the_forward_pass(found: Job, costs: SequenceCosts) -> None:
    """Counted here: 2 P s + 2 h L s^2 FLOP forward (causal), 34 h L s bytes, PCIe 4 x16 shared by two accelerators.

    Activations of a token: 34 h in a layer without scores (Korthikanti et al., arXiv 2205.05198, section 4.1).
    """
    offload = costs.offload
    assert offload is not None
    model = found.architecture
    assert offload.rate == pytest.approx(16e9 * 128 / 130 / 8 * 16 / 2, rel=1e-6) == min(host_rates(found))
    assert offload.layer_bytes == pytest.approx(34 * model.hidden * model.depth, rel=0.1)
    s = np.array([4096.0, 16384.0, 65536.0])
    weights = model.parameters - 2 * model.vocab * model.hidden
    work = 2 * weights * s + 2 * model.hidden * model.depth * s**2
    share = offload.moved_bytes(s) / s / offload.layer_bytes
    at_peak = offload.rate * work / found.peak / (offload.layer_bytes * s)
    assert np.all(share > at_peak) and np.all(share < 3 * at_peak)
    # linear in s, as attention is quadratic and activations linear
    knots = offload.lengths < 60_000
    rest = offload.share[knots] - np.polyval(
        np.polyfit(offload.lengths[knots], offload.share[knots], 1), offload.lengths[knots]
    )
    assert np.abs(rest).max() < 0.03


def test_two_layers_stay_and_the_host_holds_what_leaves(found: Job, costs: SequenceCosts) -> None:
    offload = costs.offload
    assert offload is not None
    depth = found.architecture.depth
    assert offload.share.max() <= 1 - 2 / depth
    state, token, available = memory_per_token(found, ROW)
    lengths = np.array([100.0, 5000.0, 100_000.0, 1e6])
    held, moved = offload.held_tokens(lengths), offload.moved_bytes(lengths)
    # what an accelerator keeps of a token: all but what left, with the allocator's waste
    waste = 1 + found.framework.reserve.fragmentation
    assert held * token == pytest.approx(lengths * token - waste * moved, rel=1e-9)
    # filled with the sequences that weigh least against what they leave on the host, it is not overfull
    full = (available - state) / token
    assert np.all(moved * full / held <= host_bytes(found) * (1 + 1e-9))


def test_little_host_memory_limits_what_leaves(found: Job, costs: SequenceCosts) -> None:
    node = found.machine.node
    tiers = tuple(replace_tier(tier) for tier in node.tiers)
    small = replace(found, machine=replace(found.machine, node=node.model_copy(update={"tiers": tiers})))
    limited = sequence_costs(small, DEGREES, STYLES, LAYOUT, offload_activations=True).offload
    assert limited is not None and costs.offload is not None
    lengths = np.array([1e5, 5e5])
    assert np.all(limited.held_tokens(lengths) > costs.offload.held_tokens(lengths))
    # a full accelerator leaves as much as its eighth of the host holds
    moved = limited.moved_bytes(lengths) * costs.capacity_tokens / limited.held_tokens(lengths)
    assert moved == pytest.approx(host_bytes(small), rel=1e-6)


def replace_tier(tier: Any) -> Any:
    return tier.model_copy(update={"capacity": tier.capacity / 20}) if tier.name == "ddr" else tier


def test_costs_of_time_are_those_without(plain: SequenceCosts, costs: SequenceCosts) -> None:
    assert np.array_equal(costs.fixed_s, plain.fixed_s) and costs.capacity_tokens == plain.capacity_tokens
    lengths = np.array([64.0, 5000.0, 200_000.0])
    assert np.array_equal(costs.of(lengths), plain.of(lengths))
    # tables reach as far as groups hold: the largest with all but two layers out
    longest = costs.capacity_tokens * 64 / (2 / 32)
    assert costs.lengths[-1] == pytest.approx(longest)


def least_size(case: Case) -> np.ndarray:
    fits = np.isfinite(alone_s(case))
    return np.where(fits.any(axis=1), case.degrees[fits.argmax(axis=1)], 10**9)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 400_000), min_size=1, max_size=12))
def test_offload_never_needs_more(plain: SequenceCosts, costs: SequenceCosts, lengths: list[int]) -> None:
    s = np.array(lengths)
    assert costs.offload is not None
    held = costs.offload.held_tokens(s.astype(float))
    assert np.all(held <= s) and np.all(held > 0)
    before = Case(s, plain.degrees, plain.of(s.astype(float)), plain.fixed_s, plain.capacity_tokens, 64)
    after = replace(before, held_tokens=held)
    assert np.all(least_size(after) <= least_size(before))
    for schedule in ("one-shot", "fixed", "barrier", "splits"):
        assert work_bound(after, schedule) <= work_bound(before, schedule) * (1 + 1e-9)


def test_a_long_sequence_needs_fewer_accelerators(costs: SequenceCosts) -> None:
    """ByteScale's example: 768K tokens on 96 ranks without; here by the same equation, with this machine's link."""
    assert costs.offload is not None
    without = int(np.ceil(786_432 / costs.capacity_tokens))
    held = float(costs.offload.held_tokens(np.array([786_432.0]))[0])
    offloaded = int(np.ceil(held / costs.capacity_tokens))
    assert 90 <= without <= 120 and offloaded <= without / 4
    # no less than two of 32 layers, and what is not an activation of a layer
    assert held >= 786_432 * 2 / 32


@pytest.mark.parametrize("schedule", ["one-shot", "barrier", "fixed", "splits"])
def test_plans_hold(schedule: str) -> None:
    scenario: SequenceScenario = scenario_of("zero_stage: 1, offload: activations", schedule=schedule)
    answer = plan(scenario, time_limit_s=0.5)
    assert answer.plan is not None and answer.prediction is not None
    said, case, offload = answer.prediction, scenario.case, scenario.costs.offload
    assert offload is not None and case.held_tokens is not None
    scatter = scatter_of(answer.plan)
    assert sequence_checker.faults(case, scatter, said["makespan_s"]) == []
    # host memory by micro-step, counted from the plan's own lists
    share = np.interp(case.lengths, offload.lengths, offload.share)
    there: dict[tuple[int, int], float] = {}
    for entry, moved in zip(answer.plan["assignment"], share * offload.layer_bytes, strict=True):
        slot = (entry["group"], entry["micro_step"])
        there[slot] = there.get(slot, 0.0) + entry["tokens"] * moved / scatter.degree[entry["group"]]
    assert said["offloaded_bytes"] == pytest.approx(max(there.values()))
    assert said["offloaded_bytes"] <= said["host_memory_bytes"]
    assert 0 < said["host_link_busy_share"] < 1
    assert answer.best_bound is not None and answer.best_bound <= said["step_time_s"]
    again = predict(load_sequence(Source("again", {**scenario.resolved, "plan": answer.plan}, {}), Path()))
    assert again.prediction is not None and again.prediction["offloaded_bytes"] == pytest.approx(
        said["offloaded_bytes"]
    )


def test_plans_with_barriers_gain_by_offload() -> None:
    """A plan without is one with; the search has to find no worse, though long sequences fit small, slow groups."""
    lengths = "{distribution: lognormal, median: 4096, sigma: 1.2, min: 64, max: 196608, count: 256, seed: 0}"
    case = scenario_of("offload: activations", lengths, "barrier").case
    with_it, without = (makespan(one, plan_barrier(one, 1.5)[0]) for one in (case, replace(case, held_tokens=None)))
    assert with_it < without


def test_what_did_not_fit_does() -> None:
    without = plan(scenario_of("zero_stage: 3", "[900000, 2000]"), time_limit_s=0.3)
    assert without.status == "infeasible"
    found = plan(scenario_of("zero_stage: 3, offload: activations", "[900000, 2000]"), time_limit_s=0.3)
    assert found.plan is not None
    too_long = plan(scenario_of("zero_stage: 3, offload: activations", "[90000000, 2000]"), time_limit_s=0.3)
    assert "beside what is offloaded" in too_long.why_not[0]["reason"]


def test_wrong_offloads_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layout\.offload: activations leave for host memory only without a pipeline"):
        scenario_of("pp: 2, offload: activations")
    with pytest.raises(InputError, match=r"layout\.offload"):
        scenario_of("offload: optimizer")
    text = TEXT.format(lengths="[5]", layout="offload: activations", schedule="barrier")
    with pytest.raises(InputError, match=r"search\.remap.*needs layout\.offload: none"):
        load_sequence(read_yaml(text.replace("{schedule", "{remap: [true], schedule"), "s.yaml"), Path())
    node = asked().machine.node.model_dump(mode="json", exclude={"tiers"})
    path = tmp_path / "s.yaml"
    import yaml

    data = {
        "kind": "sequence",
        "cluster": node,
        "nodes": 1,
        "model": "llama-2-7b",
        "workload": {"lengths": [5]},
        "layout": {"offload": "activations"},
    }
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(
        InputError, match=r"layout\.offload: .* describes no tier named ddr, so nothing can be offloaded"
    ):
        load_sequence(read_yaml(path.read_text(), "s.yaml"), tmp_path)
