"""The tables of what papers claim beside what the models predict."""

import csv
import importlib.util
import itertools
import math
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

HERE = Path(__file__).parent
CLAIMS = Path(os.environ.get("PERFMODEL_DATA", HERE.parents[1] / "shared" / "data")) / "papers" / "claims.csv"


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE.parent / "benchmarks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up, and one table uses parts of another
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def claimed() -> ModuleType:
    return benchmark("claims")


@pytest.fixture(scope="module")
def papers(claimed: ModuleType) -> ModuleType:
    return benchmark("papers_train")


@pytest.fixture(scope="module")
def sequence(papers: ModuleType) -> ModuleType:
    return benchmark("papers_sequence")


@pytest.fixture(scope="module")
def network(papers: ModuleType) -> ModuleType:
    return benchmark("papers_network")


def test_claims_about_traffic_have_one_line_each(network):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    systems = {"CO2", "Streaming DiLoCo", "1-bit Adam", "Deep Gradient Compression", "PCCL (WAN)", "Just-One-Byte"}
    found = {line["claim_id"]: line["answer"] for line in network.lines(claims)}
    assert {row["claim_id"] for row in claims if row["system"] in systems} <= set(found)
    # with 15 % of the steps in full and the others at a sixteenth: 1/(0.15 + 0.85/16)
    assert found["onebit-01"].value == pytest.approx(4.9231, abs=1e-4)
    for answer in filter(None, found.values()):
        assert 0 <= answer.low <= answer.value <= answer.high < math.inf


def test_claims_about_kernels_have_one_line_each(papers):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    kernels = benchmark("papers_kernels")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    found = {line["claim_id"]: line["answer"] for line in kernels.lines(claims)}
    others = {"tokenweave-06"}  # a table of serving has it
    assert {row["claim_id"] for row in claims if row["planner"] == "kernels"} - others == set(found)
    for answer in filter(None, found.values()):
        assert 0 < answer.low <= answer.value <= answer.high < math.inf
    # 16-bit weights over a fifth of them and a bit each: 2/(0.4 + 0.125); only what moves can shrink
    assert found["flashllm-03"].high < 2 / 0.525


@pytest.mark.slow
def test_claims_about_fleets_have_one_line_each(papers):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    fleets = benchmark("papers_fleet")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    found = {line["claim_id"]: line["answer"] for line in fleets.lines(claims)}
    assert {row["claim_id"] for row in claims if row["planner"] == "fleet"} - set(fleets.ELSEWHERE) == set(found)
    # a mix of all kinds is never dearer than one of them
    assert 0 <= found["melange-01"].low <= found["melange-01"].high < 100
    assert all(math.isfinite(answer.value) for answer in filter(None, found.values()))


@pytest.mark.slow
def test_claims_about_state_elsewhere_have_one_line_each(papers):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    elsewhere = benchmark("papers_kv")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    found = {line["claim_id"]: line["answer"] for line in elsewhere.lines(claims)}
    prefixes = ("cxl-", "dos-", "expertflow-", "instinfer-", "lamina-", "tpi-")
    others = {"lamina-08"}  # the table of kernels has it
    assert {row["claim_id"] for row in claims if row["claim_id"].startswith(prefixes)} - others <= set(found)
    for answer in filter(None, found.values()):
        assert -100 < answer.low <= answer.value <= answer.high < math.inf
    # 80 GB over 8,192 tokens of 327,680 bytes
    assert found["lamina-07"].low == pytest.approx(29.8, abs=0.01)
    # an update by accelerators beside the host never takes longer
    assert found["dos-01"].low >= 1 - 1e-6
    # eight channels of 1.4 GB/s against a link of 7 GB/s, and an eighth of the tokens
    assert found["instinfer-01"].high <= 8 * 11.2 / 7


@pytest.mark.slow
def test_claims_about_keys_and_values_have_one_line_each(papers):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    found = {line["claim_id"]: line["answer"] for line in benchmark("papers_kv_serve").lines(claims)}
    training = ("cxl-", "dos-", "expertflow-", "instinfer-", "lamina-", "tpi-")  # in the table of state elsewhere
    wanted = {row["claim_id"] for row in claims if row["planner"] == "kv" and not row["claim_id"].startswith(training)}
    assert wanted <= set(found)
    # layers' inputs are half of keys and values; 4.25 bits for 16 on top
    assert found["xquant-01"].value == pytest.approx(2)
    assert found["xquant-02"].value == pytest.approx(2 * 16 / 4.25)
    # a link gains no more than a copy shrinks
    assert found["cachegen-02"].high <= 4.3
    for answer in filter(None, found.values()):
        assert 0 <= answer.low <= answer.value <= answer.high < math.inf


def test_compression_gains_nothing_where_nothing_is_sent(network):
    # a step of 1 s, 9 s in full or 0.5 s as signs: 10/1.5; with a tenth in full 10/(1 + 0.9 + 0.45)
    exchange = network.Exchange(1.0, 9.0, 0.5)
    assert exchange.gain(0.0) == pytest.approx(10 / 1.5)
    assert exchange.gain(0.1) == pytest.approx(10 / 2.35)
    assert exchange.gain(1.0) == pytest.approx(1.0)


@pytest.mark.slow
def test_every_claim_of_the_training_planner_has_one_line_with_a_finite_prediction_or_a_reason(papers):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    lines = list(papers.table(claims))
    assert [line["claim_id"] for line in lines] == [row["claim_id"] for row in claims if row["planner"] == "train"]
    for line in lines:
        answer = line["answer"]
        if answer is None:
            assert line["verdict"].startswith("not predicted; missing: ")
            assert line["prediction"] == ""
        else:
            assert 0 < answer.low <= answer.value <= answer.high < math.inf, line["claim_id"]
            assert line["inputs assumed"]


def test_logged_flops_are_those_of_the_products_of_four_passes(papers):
    """Per layer: query-key-value 6 h^2, output 2 h^2, feed-forward 16 h^2, scores and context 4 s h a token."""
    hidden, depth, vocab, seq_len, batch = 6144, 48, 51200, 2048, 8
    work = papers.training(papers.load_architecture("megatron-22b", Path()), "dgx-a100", 8, batch, seq_len)
    layer = 24 * hidden**2 + 4 * seq_len * hidden
    per_token = 4 * depth * layer + 3 * 2 * hidden * vocab  # forward, its repetition and two backward; logits three
    assert papers.logged_flops(work) == pytest.approx(per_token * batch * seq_len)


@pytest.mark.parametrize(
    ("low", "high", "stated_as", "found", "expected"),
    [
        ("2", "2", "point", (1.9, 1.5, 2.5), "inside (-5 %)"),
        ("2", "2", "point", (1.8, 1.7, 1.9), "touches within 10 % (-10 %)"),
        ("2", "2", "point", (1.6, 1.5, 1.7), "miss (-20 %)"),
        ("2", "2", "about", (1.6, 1.5, 1.7), "touches within 25 % (-20 %)"),
        ("2", "", "at least", (4.0, 3.0, 5.0), "inside (+100 %)"),
        ("2", "", "at least", (1.0, 0.5, 1.5), "miss (-50 %)"),
        ("", "2", "up to", (3.0, 2.5, 4.0), "miss (highest +100 %)"),
        ("", "2", "up to", (1.0, 0.5, 1.9), "touches within 10 % (highest -5 %)"),
        ("2", "2", "mean", (3.0, 1.0, 4.0), "order only (+50 %)"),
        ("0", "0", "design", (0.0, 0.0, 0.0), "inside"),
        ("0", "0", "design", (1.0, 0.5, 1.0), "miss"),
        ("2", "3", "range", (3.3, 2.9, 4.0), "inside (+10 %)"),
        ("2", "3", "range", (4.5, 4.0, 5.0), "miss (+50 %)"),
    ],
)
def test_the_verdict_follows_how_the_claim_is_stated(claimed, low, high, stated_as, found, expected):
    claim = {"value_low": low, "value_high": high, "stated_as": stated_as}
    assert claimed.verdict(claim, claimed.Answer(*found, "")) == expected


def test_without_the_claims_one_line_says_so(claimed, papers, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(claimed, "CLAIMS", tmp_path / "claims.csv")
    papers.main()
    assert capsys.readouterr().out.startswith("skipped: no ")


@pytest.mark.slow
def test_every_claim_of_the_sequence_planner_has_one_line(sequence):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    lines = list(sequence.lines(claims))
    assert [line["claim_id"] for line in lines] == [row["claim_id"] for row in claims if row["planner"] == "sequence"]
    for line in lines:
        answer = line["answer"]
        if answer is None:
            assert line["verdict"].startswith("not predicted; missing: ")
            assert line["claim_id"] in sequence.NOT_PREDICTED
        else:
            assert 0 <= answer.low <= answer.value <= answer.high < math.inf, line["claim_id"]
            assert line["inputs assumed"]


def test_buckets_lose_least(sequence):
    """Against every way to cut nine lengths into three buckets."""
    lengths = np.sort(np.random.default_rng(0).integers(1, 100, 9)).astype(float)
    every = [
        sum(float((part[-1] - part).sum()) for part in np.split(lengths, cuts))
        for cuts in itertools.combinations(range(1, 9), 2)
    ]
    assert sequence.least_rounding(lengths, 3) == pytest.approx(min(every))
    assert sequence.least_rounding(lengths, 9) == 0


def test_a_static_mesh_packs_in_order(sequence):
    # groups of two; packs of at most 10 tokens: 6 3, 8, 5 5, 9, dealt to two groups in turn; a token takes a second
    lengths = np.array([6, 3, 8, 5, 5, 9])
    work = np.stack([np.full(6, np.inf), lengths.astype(float)], axis=1)
    case = sequence.Case(lengths, np.array([1, 2]), work, np.array([0.0, 1.0]), 5.0, 4)
    assert sequence.in_order(case, 2, 10) == (9 + 1) + (10 + 1)


def test_lengths_that_stand_in(sequence):
    for kind in sequence.LENGTHS:
        lengths = sequence.drawn(kind, 65_536, 400, 3)
        assert len(lengths) == 400 and lengths.min() >= 32 and lengths.max() <= 65_536
        assert np.array_equal(lengths, sequence.drawn(kind, 65_536, 400, 3))
        batch = sequence.filling(kind, 65_536, 1e6, 3)
        assert 1e6 - 65_536 <= batch.sum() <= 1e6


@pytest.fixture(scope="module")
def serving(papers: ModuleType) -> ModuleType:
    benchmark("serving_cases")
    return benchmark("papers_serve")


def test_what_layers_save_of_the_experts(serving):
    """2,048 tokens in four pieces hit all 128 experts each, by layers once; alone a token hits 8 in each of 100 steps.

    Pieces share their steps with the token: 96 x 8 + 4 x 128 = 1,280 readings against 100 x 8 + 128 - 8 = 920.
    """
    less = serving.less_traffic("qwen3-30b-a3b", {"isl": 4 * 511, "osl": 101}, 1.0)
    assert less == pytest.approx(1 - 920 / 1280, abs=1e-6)


def test_tabulated_gains_of_halves_are_met(serving):
    """Most of the cases that the authors tabulate, without a constant fitted to them; a gain never below none."""
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = [row for row in csv.DictReader(file) if row["planner"] == "serve"]
    points = {row["claim_id"]: float(row["value_low"]) for row in claims if row["value_low"] == row["value_high"] != ""}
    found = {name: answer.value for name, answer in serving.weaved(claims).items() if name in points}
    assert len(found) >= 50 and min(found.values()) >= 1.0
    near = [abs(value / points[name] - 1) <= 0.1 for name, value in found.items()]
    assert np.mean(near) >= 0.75


@pytest.mark.slow
def test_claims_about_power_have_one_line_each(claimed):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    found = {line["claim_id"]: line["answer"] for line in benchmark("papers_power").lines(claims)}
    others = "Layered prefill"  # beside its claims about time
    assert {row["claim_id"] for row in claims if row["planner"] == "power" and row["system"] != others} == set(found)
    for answer in filter(None, found.values()):
        assert 0 <= answer.low <= answer.value <= answer.high < math.inf
    # a fifth off the power of a board of which a share does not follow the clock, with the cube of the clock
    from hardware.catalogue import find
    from perfmodel.power import throttle_of

    static = throttle_of(find("accelerator", "a100-80gb-sxm")).static
    assert found["polca-12"].value == pytest.approx(100 * ((1 - 0.2 / (1 - static)) ** (-1 / 3) - 1))
