"""Tables fit eighty columns, cut no number and run nothing."""

import io
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_answers import breakdown, infeasible_answer, plan, prediction, train_answer
from rich.cells import cell_len

from cli import render
from cli.tables import compact, console, number, quantity, seconds, table, with_unit
from solvers.result import Objective, Result


def shown(renderable: Any, width: int = 80) -> str:
    file = io.StringIO()
    console(file, width).print(renderable)
    return file.getvalue()


def lines(answer: Result) -> list[str]:
    return [line.rstrip() for line in shown(render.result(answer)).splitlines()]


def with_baseline() -> Result:
    return train_answer(
        baseline={
            "plan": plan(tp=2),
            "prediction": prediction(14.0),
            "gain": 1.12,
            "gain_p10": 1.09,
            "gain_p90": 1.15,
        },
        pareto={
            "objectives": ["step_time_s", "memory_bytes.reserved_peak", "cost_usd_per_hour"],
            "points": [
                {"plan": plan(), "prediction": prediction()},
                {"plan": plan(tp=2), "prediction": prediction(14.0)},
            ],
        },
    )


def crowded() -> Result:
    """Long names and large numbers everywhere."""
    word = "a_rather_long_name_that_somebody_thought_of_for_a_part_of_a_plan" * 2
    big = 123_456_789_012.345
    tree: dict[str, Any] = {"name": word, "seconds": big, "bound": "compute"}
    for depth in range(12):
        tree = {
            "name": f"level {depth} " + "of a deep tree " * 4,
            "seconds": big,
            "bound": "latency",
            "children": [tree],
        }
    costs = {**prediction(big), "cost_usd_per_hour": big, "mfu": 1e-9, "memory_bytes": {word: 1e18, "weights": 1e18}}
    costs |= {"tokens_per_s_per_gpu": -big, "tokens_per_s_per_gpu_p10": -big, "tokens_per_s_per_gpu_p90": -big}
    chosen = {**plan(), word: [1] * 300, "ranks": list(range(8)), "nested": {"deep": {"x": big}}}
    return train_answer(
        objective=Objective("step_time_s", big, "s", "min"),
        best_bound=big,
        candidates=10**15,
        plan=chosen,
        prediction=costs,
        breakdown=tree,
        binding=[{"constraint": word, "slack": big, "shadow_price": big, "unit": "bytes"}],
        alternatives=[{"plan": {**plan(tp=1), word: 1}, "prediction": costs}] * 12,
        why_not=[{"reason": word, "candidates": 10**15, "nearest": {"plan": plan(tp=4), word: big}}],
        baseline={"plan": plan(), "prediction": costs, "gain": 0.5},
        pareto={
            "objectives": ["step_time_s", "memory_bytes.reserved_peak", "tokens_per_s_per_gpu"],
            "points": [{"plan": plan(tp=2), "prediction": costs}],
        },
        provenance={"version": "0.1.0", "hardware": [word], "calibration": [{word: word}]},
    )


@pytest.mark.parametrize(
    "answer",
    [train_answer(), infeasible_answer(), with_baseline(), crowded()],
    ids=["train", "infeasible", "today", "full"],
)
def test_everything_fits_eighty_columns_and_nothing_is_cut(answer: Result) -> None:
    for line in lines(answer):
        assert cell_len(line) <= 80, line
        assert "…" not in line and "..." not in line, line


def test_large_numbers_stand_whole() -> None:
    text = "\n".join(lines(crowded()))
    assert "1.2346e+11 s" in text
    assert "1,000,000,000,000,000" in text
    assert "1.2346e+11 USD/h" in text
    assert "931,322,574.62 GiB" in text  # 1e18 / 2**30
    assert "(7 more with --top or --format json)" in text


def test_what_a_person_reads() -> None:
    text = lines(train_answer())
    assert text[0] == "train: optimal (proved: no plan of the searched space is better)"
    assert text[1] == "step_time_s (min) 12.5 s, bound 12.5 s, gap 0 %"
    assert text[2] == "184,320 candidates in 812.35 ms"
    body = "\n".join(text)
    for line in (
        r"tp +8 +micro_batch +2",
        r"step_time_s +12\.5 s +11\.875 s +13\.281 s",
        r"mfu +45\.12 %",
        r"training_days +-",
        r"activations +12\.00 GiB",  # 12 * 2**30 bytes
        r"  step +12\.500 s +100\.0 % +compute",
        r"      bubble +0\.500 s +4\.0 % +idle",
        r"      all-gather +0\.000 s +0\.0 % +0\.750 s +link",
        r"1 term below 0\.1% not shown",
        r"memory\[stage 0\] +8\.74 GiB +-",
        r"2 +tp 4, dp 32, micro_batch 1 +12\.75 s +\+2\.00 % +12\.112 s +13\.547 s",
        r"nodes +0 nodes +-0\.125 s/node",
        r"out of memory +90,211 +tp 2, dp 64; constraint",
        r"hardware: dgx-h100; h100-80gb-sxm \(source data sheet, date 2024-05\)",
    ):
        assert re.search(line, body), line
    assert "P10" in body and "step_time_s_p10" not in body


def test_an_infeasible_answer_says_what_would_do() -> None:
    text = lines(infeasible_answer())
    assert text[0].startswith("train: infeasible (proved")
    assert any(re.search(r"memory\[stage 0\] +80\.00 GiB +96\.00 GiB", line) for line in text)
    assert any(re.search(r"nodes +4 +6$", line) for line in text)
    assert not any("Plan" in line or "Prediction" in line for line in text)


def test_a_nearest_miss_with_its_prediction_is_short() -> None:
    miss = {"reason": "out of memory", "candidates": 1, "nearest": {"plan": plan(tp=2), "prediction": prediction(9.0)}}
    body = " ".join(" ".join(lines(train_answer(why_not=[miss]))).split())
    assert "tp 2, dp 64; step_time_s 9 s, memory_bytes.reserved_peak 71.26 GiB" in body
    assert body.count("hfu") == 1


def test_what_runs_today_stands_beside_the_best() -> None:
    body = "\n".join(lines(with_baseline()))
    assert re.search(r"best +today", body)
    assert re.search(r"tp +8 +2\n", body)
    assert re.search(r"step_time_s +12\.5 s +11\.875 s +13\.281 s +14 s", body)
    assert "Gain over today: 1.12 x (P10 1.09 x, P90 1.15 x)" in body
    assert re.search(r"14 s +71\.26 GiB +1536 USD/h +tp 2, dp 64", body)


@pytest.mark.parametrize(
    ("status", "bound", "gap", "words"),
    [
        ("feasible", None, None, "not proved to be the best"),
        ("feasible", 12.0, 0.04, "no further from the best than the gap"),
        ("time_limit", 10.0, 0.2, "stopped by the time limit"),
    ],
)
def test_no_status_promises_more_than_was_proved(status: str, bound: float, gap: float, words: str) -> None:
    head = lines(train_answer(status=status, best_bound=bound, gap=gap))
    assert words in head[0] and "proved: no plan" not in head[0]
    assert ("bound" in head[1]) == (bound is not None)


def test_an_answer_without_anything_optional() -> None:
    text = lines(train_answer(breakdown=None, binding=[], alternatives=[], why_not=[], provenance={}, candidates=None))
    assert "train: optimal" in text[0]
    assert text[2] == "in 812.35 ms"


def test_texts_are_neither_markup_nor_control() -> None:
    text = shown(render.result(train_answer(plan={"note": "[red]x[/red] [bold", "bell": "\x1b[31m\x07"})))
    assert "[red]x[/red] [bold" in text
    assert "\x1b" not in text and "\x07" not in text


def test_long_names_in_the_breakdown_keep_their_indentation() -> None:
    tree = breakdown()
    tree["children"][0]["children"][0]["name"] = "forward of " + "very " * 12 + "many layers"
    body = lines(train_answer(breakdown=tree))
    first = next(index for index, line in enumerate(body) if "forward of very" in line)
    assert body[first].startswith("      forward of") and body[first + 1].startswith("      very")


def test_a_breakdown_of_nothing() -> None:
    tree = {**breakdown(), "seconds": 0.0, "children": []}
    assert any("step" in line for line in lines(train_answer(breakdown=tree)))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("step_time_s", 0.0123, "12.3 ms"),
        ("step_time_s_p90", 1e-6, "1 us"),
        ("ttft_p99_s", 12345.678, "12,346 s"),
        ("output_tokens_per_s", 12345.678, "12,346"),
        ("link_bytes_per_s", 5e10, "50 GB/s"),
        ("memory_bytes", 2**31, "2.00 GiB"),
        ("memory_bytes.weights", 512, "512 B"),
        ("power_w", 700.0, "700 W"),
        ("energy_j", 3.6e6, "3.6 MJ"),
        ("cost_usd_per_hour", 3.67, "3.67 USD/h"),
        ("training_days", 54.25, "54.25 days"),
        ("mfu", 0.4512, "45.12 %"),
        ("tp", 8, "8"),
        ("seq_parallel", False, "no"),
        ("recompute", "selective", "selective"),
        ("anything", None, "-"),
        ("split", [1, 2], "1, 2"),
        ("split", [], "none"),
        ("candidates", 184320, "184,320"),
        ("ratio", 1.25, "1.25"),
    ],
)
def test_quantities_carry_their_unit(name: str, value: Any, text: str) -> None:
    assert quantity(name, value) == text


def test_numbers_with_a_unit_beside_them() -> None:
    assert with_unit(12.5, "s") == "12.5 s"
    assert with_unit(2**30, "bytes") == "1.00 GiB"
    assert with_unit(3.0, "requests/s") == "3 requests/s"
    assert with_unit(4, "") == "4"
    assert with_unit(None, "s") == "-"
    assert compact({"a": 1, "b": True}, {"a": 1, "b": False}) == "b yes"


@given(st.floats(-1e300, 1e300))
def test_numbers_keep_five_digits(value: float) -> None:
    text = number(value).replace(",", "")
    assert len(text) < 25
    assert math.isclose(float(text), value, rel_tol=1e-4, abs_tol=0.0)


@given(st.floats(1e-9, 1e12))
def test_times_keep_four_digits(value: float) -> None:
    scales = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    digits, unit = seconds(value).replace(",", "").split()
    assert math.isclose(float(digits) * scales[unit], value, rel_tol=1e-4)


def test_tables_without_rows_or_heads() -> None:
    assert shown(table("", ("", ""), [("a", 1)])).split() == ["a", "1"]
    assert shown(table("Title", ("x", "y"), [])).split() == ["Title", "x", "y"]
