"""Algorithms of collectives against a simulator, sums over their rounds, and the choice among them."""

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import collectives, tower

from hardware.topology import Level
from perfmodel.collectives import all_gather, all_reduce, collective_model, group, hierarchical_all_reduce
from perfmodel.collectives import ring_all_reduce as ring
from perfmodel.collectives.algorithms import (
    ALGORITHMS,
    choose,
    direct_all_gather,
    halving_doubling_all_reduce,
    hierarchical_all_gather,
    hierarchical_all_to_all,
    one_shot_all_reduce,
    recursive_doubling_all_reduce,
    ring_all_to_all,
    sharp_all_reduce,
    single_tree_all_reduce,
    star_all_reduce,
    tree_broadcast,
    two_shot_all_reduce,
)

PLAIN = collectives()
ORACLE = Path(__file__).parent / "oracles" / "astra_oracle.csv"
GIB = 2.0**30

# --- a simulator


def oracle() -> list[dict[str, str]]:
    with ORACLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def closed_form(row: dict[str, str]) -> bool:
    """Whether a row is an algorithm alone, not the simulator's scheduling of chunks."""
    alone = row["dataset_splits"] == "1" and row["active_chunks"] == "1"
    return alone and row["implementation"] != "doubleBinaryTree"


def levels_of(row: dict[str, str]) -> tuple[Level, ...]:
    """Return the levels of a row, by the simulator's conventions of a link.

    Bandwidth is in 2^30 B/s. A switch is two hops. The congestion-aware backend stores and forwards: of k messages of m
    bytes to different ranks the last arrives after 2 latencies and (k + 1) m / B, a rate of k/(k + 1) B; a rank of
    FullyConnected has a link to every other. The unaware backend charges hops x latency + m / B.
    """
    counts = [int(n) for n in row["npus"].split("x")]
    rows = []
    ranks = 1
    for n, shape, rate, latency in zip(
        counts,
        row["topology"].split("x"),
        row["bandwidth_GiBps"].split("x"),
        row["latency_ns"].split("x"),
        strict=True,
    ):
        ranks *= n
        bandwidth, hops = float(rate) * GIB, 2 if shape == "Switch" else 1
        at_once = n - 1 if row["implementation"] == "direct" else 1
        if shape == "FullyConnected":
            bandwidth *= n - 1
        elif shape == "Switch" and row["backend"] == "congestion_aware":
            bandwidth *= at_once / (at_once + 1)
        rows.append((ranks, bandwidth, float(latency) * 1e-9 * hops))
    return tower(*rows)


def ours(row: dict[str, str]) -> float:
    levels = levels_of(row)
    ranks, size = group(levels, levels[-1].ranks, 1), float(row["comm_size_bytes"])
    collective, algorithm = row["collective"], row["implementation"]
    if collective == "all_gather":  # of one rank
        size *= levels[-1].ranks
    if algorithm == "direct" and collective == "all_reduce":  # a reduce-scatter and an all-gather
        return 2 * float(direct_all_gather(ranks, size, PLAIN))
    gather = {"ring": all_gather, "ringxring": hierarchical_all_gather, "direct": direct_all_gather}
    functions: dict[str, dict[str, Any]] = {
        "all_reduce": {
            "ring": ring,
            "ringxring": hierarchical_all_reduce,
            "halvingDoubling": halving_doubling_all_reduce,
        },
        "all_gather": gather,
        "reduce_scatter": gather,
        "all_to_all": {"ring": ring_all_to_all, "ringxring": ring_all_to_all, "direct": direct_all_gather},
    }
    return float(functions[collective][algorithm](ranks, size, PLAIN))


def name(row: dict[str, str]) -> str:
    return " ".join(row[key] for key in ("backend", "topology", "npus", "collective", "implementation"))


@pytest.mark.parametrize("row", list(filter(closed_form, oracle())), ids=name)
def test_closed_forms_agree_with_the_simulator(row: dict[str, str]) -> None:
    # what is left are about 4 ns of endpoint delay a message
    assert ours(row) == pytest.approx(float(row["time_ns"]) * 1e-9, rel=2e-3)


def test_enough_rows_compare() -> None:
    assert (sum(map(closed_form, oracle())), len(oracle())) == (36, 48)


@pytest.mark.parametrize("topology", ["SwitchxSwitch", "SwitchxRing"])
def test_chunks_overlap_the_dimensions_towards_ours(topology: str) -> None:
    # 8 x 4 ranks, 400 and 50 GiB/s: with one split the dimensions follow each other, which is the hierarchy; with four
    # they overlap in part. A library's ring and tree are the limit of many splits, in which all eight adapters and all
    # links are busy all the time.
    rows = [row for row in oracle() if row["topology"] == topology and row["collective"] == "all_reduce"]
    times = {row["dataset_splits"]: float(row["time_ns"]) * 1e-9 for row in rows}
    levels, size = levels_of(rows[0]), float(rows[0]["comm_size_bytes"])
    prediction = float(all_reduce(group(levels, levels[-1].ranks, 1), size, PLAIN))
    assert prediction < times["1"]
    assert prediction == pytest.approx(times["4"], rel=0.06)
    # The busier dimension alone: 14/8 S over the inner links.
    assert prediction > 14 / 8 * size / (400 * GIB)


# --- sums over rounds

LATENCY, RATE = 2e-6, 100e9
ONE = tower((64, RATE, LATENCY))


def message(size: float) -> float:
    return LATENCY + size / RATE


@given(st.sampled_from([2, 4, 8, 16, 32, 64]), st.floats(1e3, 1e9))
def test_halving_and_doubling_round_by_round(n: int, size: float) -> None:
    ranks = group(ONE, n, 1)
    halves = [size / 2**i for i in range(1, n.bit_length())]
    assert halving_doubling_all_reduce(ranks, size, PLAIN) == pytest.approx(2 * sum(map(message, halves)), rel=1e-12)
    whole = sum(message(size) for _ in halves)
    assert recursive_doubling_all_reduce(ranks, size, PLAIN) == pytest.approx(whole, rel=1e-12)
    assert tree_broadcast(ranks, size, PLAIN) == pytest.approx(whole, rel=1e-12)


def test_ranks_beyond_a_power_of_two_fold_in() -> None:
    # 6 ranks: 2 steps of all the bytes, and as 8 ranks make 3 there and 3 back, of 5/6 of them each way
    ranks = group(ONE, 6, 1)
    expected = 8 * LATENCY + (2 + 2 * 5 / 6) * 1e6 / RATE
    assert halving_doubling_all_reduce(ranks, 1e6, PLAIN) == pytest.approx(expected, rel=1e-12)
    assert recursive_doubling_all_reduce(ranks, 1e6, PLAIN) == pytest.approx(5 * message(1e6), rel=1e-12)


@given(st.integers(2, 64), st.floats(1e3, 1e9))
def test_other_algorithms_round_by_round(n: int, size: float) -> None:
    ranks = group(ONE, n, 1)
    assert star_all_reduce(ranks, size, PLAIN) == pytest.approx(2 * (LATENCY + (n - 1) * size / RATE), rel=1e-9)
    assert one_shot_all_reduce(ranks, size, PLAIN) == pytest.approx(message((n - 1) * size), rel=1e-9)
    barriers = 2 * np.log2(n) * LATENCY
    two_shot = LATENCY + barriers + 2 * (n - 1) / n * size / RATE
    assert two_shot_all_reduce(ranks, size, PLAIN) == pytest.approx(two_shot, rel=1e-9)
    passed = sum(message(size / n) for distance in range(1, n) for _ in range(distance))
    assert ring_all_to_all(ranks, size, PLAIN) == pytest.approx(passed, rel=1e-9)


@given(st.floats(1e3, 1e9))
def test_a_tree_takes_the_best_number_of_chunks(size: float) -> None:
    # 16 ranks: depth 4, and inner nodes send twice the bytes
    tried = [2 * (4 + chunks - 1) * (LATENCY + 2 * size / (chunks * RATE)) for chunks in np.geomspace(1, 1e5, 4000)]
    assert single_tree_all_reduce(group(ONE, 16, 1), size, PLAIN) == pytest.approx(min(tried), rel=1e-3)


def test_a_star_beats_a_ring_below_about_one_latency_s_bytes() -> None:
    # equal where S = n (n - 2)/(n - 1)^2 a B: 0.980 a B for 8 ranks
    ranks = group(ONE, 8, 1)
    even = 8 * 6 / 49 * LATENCY * RATE
    assert star_all_reduce(ranks, even, PLAIN) == pytest.approx(float(ring(ranks, even, PLAIN)), rel=1e-12)
    assert star_all_reduce(ranks, 0.9 * even, PLAIN) < ring(ranks, 0.9 * even, PLAIN)
    assert star_all_reduce(ranks, 1.1 * even, PLAIN) > ring(ranks, 1.1 * even, PLAIN)


# --- levels

TWO = tower((8, 400e9, 1e-6), (512, 50e9, 5e-6))


def test_levels_one_after_the_other() -> None:
    # 4 nodes of 8, 1 GB: 3/4 of an eighth between nodes, 7/8 inside
    ranks = group(TWO, 32, 1)
    gathered = 7e-6 + 15e-6 + 7 / 8 * 1e9 / 400e9 + 3 / 4 * 1e9 / 8 / 50e9
    assert hierarchical_all_gather(ranks, 1e9, PLAIN) == pytest.approx(gathered, rel=1e-12)
    assert hierarchical_all_reduce(ranks, 1e9, PLAIN) == pytest.approx(2 * gathered, rel=1e-12)
    # an all-to-all sends 7/8 of its buffer inside, then 3/4 of it across
    exchanged = 6e-6 + 7 / 8 * 1e9 / 400e9 + 3 / 4 * 1e9 / 50e9
    assert hierarchical_all_to_all(ranks, 1e9, PLAIN) == pytest.approx(exchanged, rel=1e-12)
    # three levels: of 16 ranks 2 x 2 x 4, halves: 1/2, 1/4 and 3/16 S
    three = tower((2, 200e9, 0.0), (4, 100e9, 0.0), (16, 50e9, 0.0))
    seconds = (1 / 2 / 200e9 + 1 / 4 / 100e9 + 3 / 16 / 50e9) * 1e9
    assert hierarchical_all_gather(group(three, 16, 1), 1e9, PLAIN) == pytest.approx(seconds, rel=1e-12)
    halved = halving_doubling_all_reduce(group(three, 16, 1), 1e9, PLAIN)
    assert halved == pytest.approx(2 * seconds, rel=1e-12)


def test_switches_of_the_network_that_add() -> None:
    # 8 nodes: the adapters carry an eighth of the buffer once, 2 x 7/8 of it on a ring
    slow = tower((8, 400e9, 0.0), (512, 10e9, 0.0))
    ranks = group(slow, 64, 1)
    assert sharp_all_reduce(ranks, 1e9, PLAIN) == pytest.approx(1e9 / 80e9, rel=1e-12)
    assert ring(ranks, 1e9, PLAIN) / sharp_all_reduce(ranks, 1e9, PLAIN) == pytest.approx(2 * 63 / 64)


# --- the choice


def test_the_choice_is_the_prediction() -> None:
    model = collective_model()
    levels = (Level("node", 8, 450e9, 1e-6, "nvswitch"), Level("leaf", 512, 50e9, 1.2e-6, "infiniband"))
    for ranks, size in itertools.product((group(levels, 8, 1), group(levels, 64, 1)), (1e3, 1e6, 1e9)):
        found = choose("all_reduce", ranks, size, model)
        assert found.seconds == pytest.approx(float(all_reduce(ranks, size, model)), rel=1e-12)
        assert found.candidates[0].reason == ""
        assert len(found.candidates) == len(ALGORITHMS["all_reduce"])
        assert found.bound_s <= found.seconds
        times = [one.seconds for one in found.candidates[1:] if one.seconds is not None]
        assert times == sorted(times)
        assert all(one.reason for one in found.candidates[1:])
    inside = choose("all_reduce", group(levels, 4, 1), 1e9, model)
    assert inside.candidates[0].name == "ring"
    reasons = {one.name: one.reason for one in inside.candidates}
    assert reasons["hierarchical"] == "the group lies inside one unit"
    assert reasons["NVLS, trees outside"].startswith("no switch adds")
    assert reasons["two-shot"] == "not offered by NCCL"
    with pytest.raises(KeyError, match="unknown operation 'gossip'; known: all_reduce"):
        choose("gossip", group(levels, 4, 1), 1e9, model)


@pytest.mark.parametrize("operation", ALGORITHMS)
def test_every_algorithm_serves_a_rank_alone_and_arrays(operation: str) -> None:
    for algorithm in ALGORITHMS[operation]:
        assert float(algorithm.seconds(group(TWO, 1, 1), 1e6, PLAIN)) == 0, algorithm.name
        sizes, strides = np.array([1, 2, 16, 64]), np.array([1, 4, 2, 8])
        together = algorithm.seconds(group(TWO, sizes, strides), 1e6, PLAIN)
        alone = [float(algorithm.seconds(group(TWO, *pair), 1e6, PLAIN)) for pair in zip(sizes, strides, strict=True)]
        assert together.tolist() == alone, algorithm.name
