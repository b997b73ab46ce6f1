"""The table of what papers claim for training beside what the model predicts."""

import csv
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CLAIMS = Path(os.environ.get("PERFMODEL_DATA", HERE.parents[1] / "shared" / "data")) / "papers" / "claims.csv"


@pytest.fixture(scope="module")
def papers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("papers_train", HERE.parent / "benchmarks" / "papers_train.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_claim_of_the_training_planner_has_one_line_with_a_finite_prediction_or_a_reason(papers):
    if not CLAIMS.is_file():
        pytest.skip(f"no {CLAIMS}: set PERFMODEL_DATA")
    with CLAIMS.open(encoding="utf-8", newline="") as file:
        claims = list(csv.DictReader(file))
    lines = papers.table(claims)
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
        ("", "2", "up to", (3.0, 2.5, 4.0), "miss (+50 %)"),
        ("2", "3", "range", (3.3, 2.9, 4.0), "inside (+10 %)"),
        ("2", "3", "range", (4.5, 4.0, 5.0), "miss (+50 %)"),
    ],
)
def test_the_verdict_follows_how_the_claim_is_stated(papers, low, high, stated_as, found, expected):
    claim = {"value_low": low, "value_high": high, "stated_as": stated_as}
    assert papers.verdict(claim, papers.Answer(*found, "")) == expected


def test_without_the_claims_one_line_says_so(papers, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(papers, "CLAIMS", tmp_path / "claims.csv")
    papers.main()
    assert capsys.readouterr().out.startswith("skipped: no ")
