"""Intervals: shares that account for the step, spreads that add in quadrature, wider where nothing was measured."""

from pathlib import Path

import numpy as np
import pytest

from hardware.yaml_source import Source
from perfmodel.intervals import PARTS, SPREADS, Z90, shares, spread, step_interval
from perfmodel.job import Job
from perfmodel.plan import DEFAULTS, plan_from_rows
from perfmodel.terms import Term
from perfmodel.training import predict_step
from solvers.scenario import load_train


def predicted(**changes: object) -> tuple[Job, Term]:
    question = {
        "kind": "train",
        "cluster": "dgx-h100",
        "nodes": 2,
        "model": "llama-3.1-8b",
        "workload": {"seq_len": 8192, "global_batch": 32},
    } | changes
    job = load_train(Source("x", question), Path()).job
    plan = plan_from_rows([DEFAULTS | {"dp": job.ranks // 2, "tp": 2, "seq_parallel": True}])
    return job, predict_step(job, plan).step


def test_parts_account_for_the_whole_step() -> None:
    job, step = predicted(model="mixtral-8x7b")
    found = shares(job, step)
    assert sum(float(found[name][0]) for name in PARTS) == pytest.approx(1.0, rel=1e-12)
    assert float(np.asarray(found["common"]).reshape(-1)[0]) == 1.0
    assert found["narrow"] == 0


def test_spreads_add_in_quadrature() -> None:
    job, step = predicted()
    found = shares(job, step)
    for name in SPREADS:
        alone = spread(job, step, dict.fromkeys(SPREADS, 0.0) | {name: 0.5})
        assert alone == pytest.approx(0.5 * found[name])
    both = spread(job, step, dict.fromkeys(SPREADS, 0.0) | {"products": 0.3, "common": 0.4})
    assert both[0] == pytest.approx(np.hypot(0.3 * found["products"][0], 0.4))


def test_interval_is_the_middle_eighty_percent_of_a_log_normal() -> None:
    job, step = predicted()
    low, high = step_interval(job, step)
    deviation = spread(job, step)
    draws = np.exp(np.random.default_rng(1).normal(0, deviation[0], 200_000))
    assert np.mean((draws >= low[0]) & (draws <= high[0])) == pytest.approx(0.8, abs=0.005)
    assert pytest.approx(1.0) == low[0] * high[0]
    assert pytest.approx(1.2816, abs=1e-4) == Z90


@pytest.mark.parametrize("cluster", ["dgx-b200", "hgx-mi300x", "l40s-8", "dgx-2"])
def test_a_family_without_measurements_gets_a_wider_interval(cluster: str) -> None:
    measured_job, measured = predicted()
    job, step = predicted(cluster=cluster, workload={"seq_len": 8192, "global_batch": 32, "precision": "fp16"})
    assert spread(job, step)[0] > spread(measured_job, measured)[0]


def test_low_precision_is_less_certain() -> None:
    wide_job, wide = predicted()
    narrow_job, narrow = predicted(workload={"seq_len": 8192, "global_batch": 32, "precision": "fp8"})
    assert shares(narrow_job, narrow)["narrow"][0] > 0
    assert shares(wide_job, wide)["narrow"] == 0
