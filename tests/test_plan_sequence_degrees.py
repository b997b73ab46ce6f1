"""Groups of any size and groups kept within nodes, as a person asks for them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sequence_checker

from hardware.catalogue import resolve_cluster
from hardware.faults import InputError
from hardware.topology import levels
from hardware.yaml_source import Source, read_yaml
from perfmodel.collectives import all_gather, all_to_all, collective_model, group
from perfmodel.sequence import all_to_all_bandwidth
from solvers.sequence import plan
from solvers.sequence_answer import scatter_of
from solvers.sequence_scenario import SequenceScenario, any_sizes, load_sequence

BATCH = """\
kind: sequence
cluster: aws-p4d
nodes: 4
model: llama-2-7b
workload: {lengths: {distribution: lognormal, median: 3000, sigma: 1.2, min: 64, max: MAX, count: 48, seed: 5}}
layout: {zero_stage: 1}
search: SEARCH
"""


def asked(search: str, longest: int = 49152) -> SequenceScenario:
    text = BATCH.replace("SEARCH", search).replace("MAX", str(longest))
    return load_sequence(read_yaml(text, "scenario.yaml"), Path())


@pytest.mark.parametrize("schedule", ["barrier", "fixed", "splits"])
def test_any_size(schedule: str) -> None:
    scenario = asked(f"{{degrees: any, schedule: [{schedule}]}}")
    assert scenario.resolved["search"]["degrees"] == [1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32]
    found = plan(scenario, time_limit_s=1)
    assert found.plan is not None and found.prediction is not None and found.best_bound is not None
    time = found.prediction["makespan_s"]
    assert sequence_checker.faults(scenario.case, scatter_of(found.plan), time, node=8) == []
    assert found.best_bound <= found.prediction["step_time_s"]
    # what only powers of two allow is allowed here too, so that the bound is no higher
    powers = plan(asked(f"{{schedule: [{schedule}]}}"), time_limit_s=1)
    assert powers.prediction is not None
    assert found.best_bound <= powers.prediction["step_time_s"]
    assert any("divide one another" in entry["reason"] for entry in found.why_not) == (schedule == "splits")
    again = load_sequence(Source("again", {**found.scenario, "plan": found.plan}, {}), Path())
    assert again.given is not None and np.array_equal(again.given.first_gpu, scatter_of(found.plan).first_gpu)


def test_groups_within_nodes() -> None:
    scenario = asked("{across_nodes: false, schedule: [splits]}", 12000)
    assert scenario.case.degrees.tolist() == [1, 2, 4, 8]
    found = plan(scenario, time_limit_s=1)
    assert found.plan is not None and max(one["degree"] for one in found.plan["groups"]) <= 8
    assert asked("{across_nodes: false, degrees: any}", 12000).case.degrees.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_sequence_too_long_for_a_node_asks_for_more_nodes() -> None:
    scenario = asked("{across_nodes: false}", 196608)
    scenario = scenario.batch(np.array([196608, 1000]))
    found = plan(scenario)
    assert found.status == "infeasible"
    first = found.relaxation[0]
    assert "search.across_nodes" in first["constraint"] and (first["now"], first["needed"]) == (8, 128)


@pytest.mark.parametrize(
    ("search", "place", "said"),
    [
        ("{degrees: all}", "search.degrees", "allowed: any [got 'all']"),
        ("{degrees: [1, 2.5]}", "search.degrees[1]", "should be a whole number [got 2.5]"),
        ("{degrees: [1, 0]}", "search.degrees[1]", "should be greater than or equal to 1 [got 0]"),
        ("{degrees: []}", "search.degrees", "should not be empty"),
        ("{degrees: 4}", "search.degrees", "should be a list [got 4]"),
        ("{degrees: [1, 33]}", "search.degrees[1]", "the cluster has 32 accelerators [got 33]"),
        ("{degrees: [3, 12], across_nodes: false}", "search.degrees[1]", "across_nodes is false [got 12]"),
        ("{across_nodes: maybe}", "search.across_nodes", "[got 'maybe']"),
    ],
)
def test_nonsense_is_told_at_its_place(search: str, place: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        asked(search)
    assert len(caught.value.faults) == 1
    assert "scenario.yaml:7" in str(caught.value) and f"{place}: " in str(caught.value) and said in str(caught.value)


def test_a_plan_whose_groups_leave_their_nodes_is_refused() -> None:
    text = BATCH.replace("SEARCH", "{degrees: [3, 12]}").replace("MAX", "4096").replace("count: 48", "count: 1") + (
        "plan:\n  schedule: fixed\n  groups: [{id: 0, degree: 3, gpus: [6, 7, 8]},"
        " {id: 1, degree: 12, gpus: [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]}]\n"
        "  assignment: [{sequence: 0, group: 0, micro_step: 0}]\n"
    )
    with pytest.raises(InputError) as caught:
        load_sequence(read_yaml(text, "scenario.yaml"), Path())
    assert "should lie within a node of 8 [got 6 to 8]" in str(caught.value)
    assert "should begin with a node of 8 [got 12 to 23]" in str(caught.value)


def test_sizes_that_any_stands_for() -> None:
    assert any_sizes(64, 8) == (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 40, 48, 56, 64)
    assert any_sizes(8, 8) == (1, 2, 3, 4, 5, 6, 7, 8)
    wide = any_sizes(12288, 8)
    assert len(wide) < 80 and {8 << power for power in range(11)} <= set(wide) and max(wide) == 12288
    assert all(later <= max(1.13 * one, one + 8) for one, later in pairwise(wide))
    rack = any_sizes(144, 72)
    assert rack[:16] == tuple(range(1, 17)) and 19 not in rack
    assert {18, 20, 32, 36, 64, 72, 144} <= set(rack)


# --- a group that ends inside a node pays for it -------------------------------------------------------------------


def test_a_group_within_a_node_stays_there_and_one_of_twelve_pays_the_network() -> None:
    tower = levels(resolve_cluster("aws-p4d", Path(), 8))
    assert all_to_all_bandwidth(tower, 6) == pytest.approx(300e9 * 6 / 5)
    # of twelve, the four on the second node send two thirds of what they hold through 6.25 GB/s each
    assert all_to_all_bandwidth(tower, 12) == pytest.approx(6.25e9 * 12 / 8)
    model = collective_model()
    buffer = 1e9
    six, eight, twelve, sixteen = (float(all_to_all(group(tower, size, 1), buffer, model)) for size in (6, 8, 12, 16))
    assert six < eight < 0.1 * twelve
    # a ring leaves the second node over four adapters instead of eight: (11/12)/4 against (15/16)/8
    gathered = [float(all_gather(group(tower, size, 1), 1e10, model)) for size in (12, 16)]
    assert gathered[0] / gathered[1] == pytest.approx(2 * (11 / 12) / (15 / 16), rel=0.05)
    # the eight send a third, the four two thirds: a third more than the half of sixteen
    assert twelve / sixteen == pytest.approx(4 / 3, rel=0.05)


def test_a_size_that_does_not_divide_the_heads_has_ring_attention() -> None:
    scenario = asked("{degrees: [4, 6, 12], styles: [ulysses, ring]}")
    work = scenario.costs.of(np.array([16384.0]), "ulysses")[0]
    assert np.isfinite(work[0]) and np.isinf(work[1:]).all()
    area = scenario.costs.of(np.array([16384.0]))[0] * scenario.costs.degrees
    assert area[1] < 1.1 * area[0] and area[2] > 1.2 * area[1]
