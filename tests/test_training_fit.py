"""The fit finds constants that were planted, and leaves alone what no row speaks for."""

import itertools

import numpy as np
import pandas as pd
import pytest

from perfmodel.intervals import SPREADS, combined
from perfmodel.training_fit import COVERED, PARAMETERS, batches, fit, fit_spreads, left_out, log_errors, tuned

NAMES = [(parameter.owner, parameter.field) for parameter in PARAMETERS]


def rows() -> pd.DataFrame:
    """Short and long sequences, small and large layers, so that attention, memory and host each bind somewhere."""
    layout = {"tp": 1, "pp": 1, "dp": 8, "cp": 1, "ep": 1, "vpp": 1, "zero_stage": 1, "seq_parallel": 0}
    found = []
    for hidden, seq_len, micro in itertools.product((768, 2048, 8192), (512, 4096, 65536), (1, 4)):
        found.append(
            layout
            | {
                "source_key": "long" if seq_len > 4096 else "short", "model": "planted", "layers": 8, "hidden": hidden,
                "heads": hidden // 128, "kv_heads": hidden // 128, "ffn": 4 * hidden, "vocab": 32000,
                "gpu": "a100-80gb-sxm", "gpus": 8, "seq_len": seq_len, "global_batch": 8 * micro, "micro_batch": micro,
                "recompute": "none", "precision": "bf16", "framework": "Megatron-LM", "overlap": "dp",
                "iter_time_s": 1.0, "skipped": "", "file": "planted.csv",
            }
        )  # fmt: skip
    return pd.DataFrame(found)


@pytest.fixture(scope="module")
def planted() -> tuple[pd.DataFrame, list[float]]:
    frame = rows()
    values = [parameter.start for parameter in PARAMETERS]
    values[NAMES.index(("constants", "attention_backward"))] = 0.45
    values[NAMES.index(("constants", "sustained"))] = 0.8
    values[NAMES.index(("*", "host_per_kernel"))] = 22e-6
    for batch in batches(frame):
        error = log_errors([batch], values)[batch.source]
        frame.loc[batch.index, "iter_time_s"] = batch.measured_s * np.exp(error)
    return frame, values


@pytest.mark.slow
def test_planted_constants_are_found(planted: tuple[pd.DataFrame, list[float]]) -> None:
    frame, values = planted
    found = fit(batches(frame))
    for name in (("constants", "attention_backward"), ("constants", "sustained")):
        assert found[NAMES.index(name)] == pytest.approx(values[NAMES.index(name)], rel=0.05), name
    host = NAMES.index(("*", "host_per_kernel"))
    # few rows wait for the host, so that the pull towards the start leaves part of the way
    assert 1.2 * PARAMETERS[host].start < found[host] < 1.05 * values[host]
    # no row is of these frameworks
    for number, parameter in enumerate(PARAMETERS):
        if parameter.owner in ("torchtitan", "megatron-deepspeed"):
            assert found[number] == pytest.approx(parameter.start, rel=1e-3)


@pytest.mark.slow
def test_left_out_values_are_predicted_by_the_others(planted: tuple[pd.DataFrame, list[float]]) -> None:
    frame, _ = planted
    figures = left_out(frame, "source_key")
    assert set(figures) == {"source_key=long", "source_key=short"}
    assert all(entry["rows"] > 0 for entry in figures.values())
    # short sequences say little of attention and long ones little of the host, so each is predicted worse left out
    inside = log_errors(batches(frame), fit(batches(frame)))
    for source, error in inside.items():
        assert figures[f"source_key={source}"]["mape"] > np.abs(np.expm1(error)).mean()


def test_a_framework_of_its_own_goes_before_the_common_value() -> None:
    [batch, *_] = batches(rows())
    values = [float(number + 1) * 1e-2 for number in range(len(PARAMETERS))]
    own = batch.job.framework.model_copy(update={"name": "megatron-deepspeed"})
    common = tuned(batch.job, values).framework
    from dataclasses import replace

    special = tuned(replace(batch.job, framework=own), values).framework
    assert common.host_per_kernel == values[NAMES.index(("*", "host_per_kernel"))]
    assert special.host_per_kernel == values[NAMES.index(("megatron-deepspeed", "host_per_kernel"))]
    assert special.step_overhead == common.step_overhead


def test_spreads_cover_the_share_asked_of_planted_errors() -> None:
    random = np.random.default_rng(3)
    errors, parts = {}, {}
    for source in ("a", "b", "c"):
        share = random.uniform(0.2, 0.8, 400)
        parts[source] = {name: np.zeros(400) for name in (*SPREADS, "widening")} | {
            "experts": share,
            "common": np.ones(400),
        }
        errors[source] = random.normal(0, np.sqrt((share * 0.5) ** 2 + 0.05**2))
    spreads = fit_spreads(errors, parts)
    inside = [np.mean(np.abs(errors[source]) <= 1.2816 * combined(parts[source], spreads)) for source in errors]
    assert np.mean(inside) == pytest.approx(COVERED, abs=0.02)
    # where experts take more of the step the interval is wider
    deviation = combined(parts["a"], spreads)
    assert np.corrcoef(deviation, parts["a"]["experts"])[0, 1] > 0.95
