"""Tokens that move between attention and linear layers: a transport problem, its time, and plans that use it."""

import json
from dataclasses import replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pulp
import pytest
import sequence_checker
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.yaml_source import Source, read_yaml
from perfmodel.sequence import ATTENTION_PARTS
from perfmodel.sequence_equations import SEQUENCE_EXPLANATIONS
from perfmodel.sequence_remap import Remap, exchanged, moves, routed_s
from solvers.backend import solve
from solvers.sequence import plan, predict
from solvers.sequence_answer import scatter_of
from solvers.sequence_barrier import plan_barrier
from solvers.sequence_case import Scatter, makespan
from solvers.sequence_oneshot import plan_oneshot
from solvers.sequence_remapped import plan_remapped
from solvers.sequence_scenario import SequenceScenario, load_sequence
from tests.sequence_reference import costs, layouts

NODES = Remap((2, 4), 0, np.array([1.0, 10.0]), np.array([0.25, 0.5]), 1.0, 8.0)
"""Two nodes of two accelerators: a second a byte inside, ten between."""


def test_one_long_group_by_hand() -> None:
    # 5 1 | 1 1, mean 2: three over on the first, one goes to its neighbour, two to the other node
    sent, received = exchanged(np.array([[5.0, 1.0, 1.0, 1.0]]), (2, 4))
    assert sent[:, 0].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0]]
    assert received[:, 0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1]]
    found = moves(np.array([[5.0, 1.0, 1.0, 1.0]]), NODES)
    assert found.link_s[0] == 1 * 1 + 2 * 10
    assert found.largest_row_s[0] == 1 * 1 + 2 * 10  # all of it is the first one's
    # dealt out over both: (2/2)(1 + 10 + 1), beside the token that stays in the node
    assert routed_s(np.array(2.0), 2, 1.0, 10.0) == 12
    assert found.routed[0] and found.seconds[0] == 8 * 0.5 + 1 + 12
    assert (found.within_bytes[0], found.across_bytes[0]) == (1, 2)


def test_a_node_that_evens_out_inside_by_hand() -> None:
    # 3 1 | 2 2: one token inside the first node
    found = moves(np.array([[3.0, 1.0, 2.0, 2.0]]), NODES)
    assert (found.link_s[0], found.largest_row_s[0], found.seconds[0]) == (1, 1, 8 * 0.25 + 1)
    assert (found.within_bytes[0], found.across_bytes[0], found.routed[0]) == (1, 0, False)
    still = moves(np.array([[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]), NODES)
    assert still.seconds.tolist() == [0, 0]


def test_full_nodes_send_straight() -> None:
    # 4 4 | 0 0: each sends two over its own adapter, 20 s; dealt out it would take 4/2 x 12
    found = moves(np.array([[4.0, 4.0, 0.0, 0.0]]), NODES)
    assert found.largest_row_s[0] == 20 and found.seconds[0] == 4 + 20 and not found.routed[0]


def transport(tokens: list[int], units: tuple[int, ...], rates: list[float]) -> float:
    """Return the least sum of c_ij T_ij by HiGHS."""
    count, mean = len(tokens), sum(tokens) / len(tokens)
    problem: Any = pulp.LpProblem("transport", pulp.LpMinimize)
    over = [i for i in range(count) if tokens[i] > mean]
    under = [j for j in range(count) if tokens[j] < mean]
    if not over:
        return 0.0
    amount = {(i, j): problem.add_variable(f"t_{i}_{j}", 0) for i in over for j in under}

    def cost(i: int, j: int) -> float:
        return next(rate for unit, rate in zip(units, rates, strict=True) if i // unit == j // unit)

    problem += pulp.lpSum(cost(i, j) * amount[i, j] for i, j in amount)
    for i in over:
        problem += pulp.lpSum(amount[i, j] for j in under) == tokens[i] - mean
    for j in under[:-1]:  # the last follows from the others
        problem += pulp.lpSum(amount[i, j] for i in over) == mean - tokens[j]
    found = solve(problem)
    assert found.status == "optimal" and found.objective is not None
    return found.objective


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(4,), (2, 4), (2, 8), (4, 8), (2, 4, 12), (3, 6, 12), (1, 5)]),
    seed=st.integers(0, 10**6),
)
def test_filling_level_by_level_is_the_optimum_of_the_transport_problem(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 30, shape[-1])
    rates = np.cumsum(rng.uniform(0.1, 3.0, len(shape)))
    remap = Remap(shape, 0, rates, np.zeros(len(shape)), 1.0, 0.0)
    found = moves(tokens[None].astype(float), remap)
    assert found.link_s[0] == pytest.approx(transport(tokens.tolist(), shape, rates.tolist()), rel=1e-6, abs=1e-6)
    sent, received = exchanged(tokens[None].astype(float), shape)
    after = tokens - sent.sum(axis=0)[0] + received.sum(axis=0)[0]
    assert after == pytest.approx(np.full(len(tokens), tokens.mean()))
    for unit, out, back in zip(shape, sent, received, strict=True):  # a unit keeps what it matches
        assert out.reshape(-1, unit).sum(axis=1) == pytest.approx(back.reshape(-1, unit).sum(axis=1))
    assert found.seconds[0] <= found.largest_row_s[0] <= found.link_s[0] * (1 + 1e-9)
    assert found.seconds[0] == pytest.approx(sequence_checker._moving(tokens.tolist(), remap))


# --- plans ---------------------------------------------------------------------------------------------------------


def small(seed: int) -> Any:
    """Return a random case on two nodes of two, part of whose work is attention."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, int(rng.integers(2, 6)))
    capacity = float(max(lengths.sum() / (rng.uniform(0.3, 0.9) * 4), lengths.max() / 4))
    case = costs(4, [1, 2, 4], lengths, rng.uniform(0.1, 1), rng.uniform(1, 9), 2.0, [inf, 9.0, 2.0], (1, 1), capacity)
    attention = case.work_s - rng.uniform(1, 5) * 0.2 * lengths[:, None] / case.degrees
    remap = Remap((2, 4), 0, rng.uniform(0, 0.1) * np.array([1.0, 4.0]), np.array([0.01, 0.02]), 1.0, 2.0)
    return replace(case, attention_s=np.maximum(attention, 0.1 * case.work_s), remap=remap)


def least(case: Any) -> float:
    """Return the least makespan of one micro-batch with remapping, over all groups and assignments."""
    best = inf
    for layout in layouts(case):
        sizes = case.degrees[np.array(sorted(layout, reverse=True))]
        for owner in product(range(len(layout)), repeat=len(case.lengths)):
            group = np.array(owner)
            if np.all(np.bincount(group, case.lengths, len(layout)) <= sizes * case.capacity_tokens * (1 + 1e-12)):
                step = np.zeros(len(group), dtype=np.int64)
                found = Scatter("one-shot", sizes, np.cumsum(sizes) - sizes, group, step, remapped=True)
                best = min(best, makespan(case, found))
    return best


def test_bounds_hold_and_plans_stand() -> None:
    close = 0
    for seed in range(24):
        case = small(seed)
        try:
            found, bound, _ = plan_remapped(case, plan_oneshot, None, 1.0)
        except ValueError:
            assert least(case) == inf
            continue
        time, optimum = makespan(case, found), least(case)
        assert not sequence_checker.faults(case, found, time)
        assert bound <= optimum * (1 + 1e-9) and optimum <= time * (1 + 1e-9)
        close += time <= 1.1 * optimum
    assert close > 18


def test_micro_batches_stand() -> None:
    for seed in range(100, 130):
        case = small(seed)
        case = replace(case, capacity_tokens=max(case.capacity_tokens / 2, case.lengths.max() / 4))
        found, bound, _ = plan_remapped(case, plan_barrier, None, 0.3)
        time = makespan(case, found)
        assert not sequence_checker.faults(case, found, time)
        assert bound <= time * (1 + 1e-9)


ALONE = """\
kind: sequence
cluster: dgx-h100
nodes: 1
model: llama-2-7b
workload: {lengths: [6000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]}
layout: {zero_stage: 1, recompute: full}
search: {degrees: [1], schedule: [one-shot], remap: REMAP}
"""


def asked(remap: str, text: str = ALONE) -> SequenceScenario:
    return load_sequence(read_yaml(text.replace("REMAP", remap), "scenario.yaml"), Path())


def test_it_pays_where_groups_cannot_be_even() -> None:
    scenario = asked("[false, true]")
    found = plan(scenario, time_limit_s=1)
    assert found.plan is not None and found.prediction is not None and found.breakdown is not None
    moved, said = found.plan["remap"], found.prediction
    # the short ones have an accelerator each, whatever the planner made of them;
    # 13,000 tokens on eight: the long one has 6000 - 1625 too many, in 32 layers, forward, again and backward
    width = 2 * (4096 + 3 * 4096)  # results there; queries, keys and values back
    assert moved["within_node_bytes"] == pytest.approx((6000 - 1625) * width * 32 * 3)
    assert moved["across_nodes_bytes"] == 0 and moved["routed_micro_batches"] == 0
    assert said["remap_gain"] == pytest.approx(said["step_time_without_remap_s"] / said["step_time_s"])
    assert said["remap_gain"] > 1.5
    scatter = scatter_of(found.plan)
    assert sequence_checker.faults(scenario.case, scatter, said["makespan_s"], node=8) == []
    # the longest waits for its own attention alone; what is linear comes to an eighth for each
    case = scenario.case
    attention = case.attention_s
    assert attention is not None
    by_hand = attention[0, 0] + (case.work_s - attention).sum() / 8 + case.fixed_s[0] + moved["seconds"]
    assert said["makespan_s"] == pytest.approx(by_hand)
    assert found.breakdown["seconds"] == pytest.approx(said["step_time_s"], rel=1e-9)
    names = {child["name"] for child in found.breakdown["children"][0]["children"]}
    assert "moves between layouts" in names and names <= set(SEQUENCE_EXPLANATIONS)
    assert 0 < said["busy_share"] <= 1
    assert found.best_bound is not None and found.best_bound <= said["step_time_s"]
    # without it: the plan beside, at the time that a plan without is predicted to take
    alone = plan(asked("[false]"), time_limit_s=1)
    assert alone.prediction is not None and alone.plan is not None and "remap" not in alone.plan
    assert said["step_time_without_remap_s"] == pytest.approx(alone.prediction["step_time_s"])
    assert any("remap" not in other["plan"] for other in found.alternatives)
    again = load_sequence(Source("again", {**found.scenario, "plan": found.plan}, {}), Path())
    repeated = predict(again)
    assert repeated.prediction is not None and repeated.plan is not None
    assert repeated.prediction["step_time_s"] == pytest.approx(said["step_time_s"], rel=1e-12)
    assert repeated.plan["remap"] == moved


def test_it_does_not_pay_where_groups_are_even() -> None:
    text = ALONE.replace("[6000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]", "{histogram: {2000: 8}}")
    found = plan(asked("[false, true]", text), time_limit_s=1)
    assert found.plan is not None
    # nothing to move, and nothing gained: both are there
    assert "remap" not in found.plan
    other = found.alternatives[0]
    assert other["plan"]["remap"]["seconds"] == 0 and other["prediction"]["remap_gain"] == pytest.approx(1)
    uneven = plan(
        asked("[false, true]", text.replace("[1]", "[1, 8]").replace("2000: 8", "8000: 1, 500: 30")), time_limit_s=1
    )
    assert uneven.plan is not None and "remap" not in uneven.plan
    assert any("does not pay" in entry["reason"] for entry in uneven.why_not)


def test_parts_of_attention_are_parts() -> None:
    scenario = asked("[true]")
    for style in scenario.costs.styles:
        assert set(ATTENTION_PARTS) - {"slowdown under overlap"} <= set(scenario.costs.parts[style])
    case = scenario.case
    assert case.attention_s is not None
    share = case.attention_s[:, 0] / case.work_s[:, 0]
    assert np.all((share > 0) & (share < 1)) and share[0] > share[1]  # quadratic


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("REMAP", "[]", "search.remap: should not be empty"),
        ("REMAP", "[maybe]", "search.remap[0]: should be"),
        ("[one-shot], remap: REMAP", "[fixed], remap: [true]", "search.remap: needs the schedule one-shot or barrier"),
        ("layout: {", "layout: {tp: 2, ", "search.remap: needs tp = pp = 1"),
    ],
)
def test_nonsense_is_told_at_its_place(old: str, new: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        asked("[true]", ALONE.replace(old, new))
    assert len(caught.value.faults) == 1 and said in str(caught.value) and "scenario.yaml:7" in str(caught.value)


def test_costs_do_not_say_what_moves() -> None:
    text = ALONE.replace("model: llama-2-7b", "").replace("layout", "# layout") + (
        "costs: {a1: 1, a2: 1, b1: 1, a3: 1, b2: 1, memory_bytes: 1.0e+6, memory_per_token_bytes: 1,"
        " memory_state_bytes: 0}\n"
    )
    with pytest.raises(InputError, match="needs a model, not costs"):
        asked("[true]", text)


def test_schedules_whose_groups_do_not_meet_are_left_out() -> None:
    found = plan(asked("[true]", ALONE.replace("[one-shot]", "[one-shot, fixed]")), time_limit_s=0.5)
    assert found.plan is not None and found.plan["schedule"] == "one-shot" and "remap" in found.plan
    assert any("fixed: its groups do not meet" in entry["reason"] for entry in found.why_not)


def test_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "alone.yaml"
    path.write_text(ALONE.replace("REMAP", "[false, true]"))
    done = CliRunner().invoke(app, ["plan", "sequence", str(path), "--time-limit", "0.5"])
    assert done.exit_code == 0, done.output
    assert "remap" in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    told = CliRunner().invoke(
        app, ["plan", "sequence", str(path), "--explain", "moves between layouts", "--format", "json"]
    )
    assert "b_inter" in json.loads(told.stdout)["equation"]
