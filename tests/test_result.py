"""Answers contradict neither themselves nor their files."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_answers import breakdown, infeasible_answer, plan, prediction, train_answer

from solvers.result import Objective, Result, plain

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-30, 1e30)
trees = st.recursive(
    finite | st.integers() | st.text() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def through_a_file(result: Result) -> Result:
    return Result.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))


@pytest.mark.parametrize(
    "result",
    [
        train_answer(),
        infeasible_answer(),
        train_answer(baseline={"plan": plan(tp=2), "prediction": prediction(14.0), "gain": 0.107}),
        train_answer(pareto={"objectives": ["step_time_s"], "points": [{"plan": plan(), "prediction": prediction()}]}),
        train_answer(status="feasible", best_bound=None, gap=None),
        train_answer(status="time_limit", best_bound=10.0, gap=0.2),
    ],
)
def test_round_trip(result: Result) -> None:
    again = through_a_file(result)
    assert again == result
    assert json.dumps(again.to_dict()) == json.dumps(result.to_dict())


@given(value=positive, part=st.dictionaries(st.text(), trees, max_size=4))
def test_round_trip_to_the_last_digit(value: float, part: dict[str, Any]) -> None:
    result = train_answer(
        objective=Objective("step_time_s", value, "s", "min"),
        best_bound=value,
        plan={**plan(), "extra": part},
        prediction={**prediction(value), "extra": part},
    )
    again = through_a_file(result)
    assert again == result
    assert again.objective.value == value
    assert again.plan is not None and again.plan["extra"] == part


def test_keys_are_those_of_the_interface() -> None:
    # The order in the documentation of the plan JSON.
    assert list(train_answer().to_dict()) == [
        "schema", "kind", "status", "objective", "best_bound", "gap", "solve_time_s", "candidates", "plan",
        "prediction", "breakdown", "binding", "alternatives", "why_not", "scenario", "provenance",
    ]  # fmt: skip
    assert train_answer().to_dict()["objective"] == {"name": "step_time_s", "value": 12.5, "unit": "s", "sense": "min"}
    infeasible = infeasible_answer().to_dict()
    assert infeasible["plan"] is None
    assert [sorted(entry) for entry in infeasible["relaxation"]] == [["constraint", "needed", "now", "unit"]] * 2


def test_an_answer_does_not_change_with_what_it_was_made_from() -> None:
    mutable = plan()
    result = train_answer(plan=mutable)
    mutable["tp"] = 99
    result.to_dict()["plan"]["tp"] = 98
    assert result.plan is not None and result.plan["tp"] == 8


def test_numbers_of_other_libraries_and_not_finite_ones() -> None:
    given_plan = {
        "tp": np.int64(8),
        "share": np.float64(0.1),
        "on": np.bool_(True),
        "order": np.arange(3),
        "pair": (1, 2),
        "missing": math.nan,
        "endless": np.float64("inf"),
        "label": np.str_("x"),
    }
    result = train_answer(plan=given_plan)
    assert result.plan == {
        "tp": 8,
        "share": 0.1,
        "on": True,
        "order": [0, 1, 2],
        "pair": [1, 2],
        "missing": None,
        "endless": None,
        "label": "x",
    }
    assert [type(value) for value in result.plan.values()] == [int, float, bool, list, list] + [type(None)] * 2 + [str]
    with pytest.raises(ValueError, match=r"plan\.x: a set"):
        plain({"x": {1}}, "plan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "done"}, "status should be one of"),
        ({"status": "infeasible"}, "infeasible"),
        ({"best_bound": None, "gap": None}, "optimal"),
        ({"best_bound": 12.0, "gap": 0.04}, "optimal"),
        ({"plan": None}, "if and only if"),
        ({"prediction": None}, "prediction"),
        ({"status": "feasible", "gap": None}, "stand together"),
        ({"status": "time_limit", "best_bound": 10.0, "gap": 0.1}, "not that of"),
        ({"status": "time_limit", "best_bound": 13.0, "gap": 0.04}, "better than its bound"),
        (
            {
                "status": "time_limit",
                "objective": Objective("mfu", 0.5, "", "max"),
                "best_bound": 0.4,
                "gap": 0.2,
            },
            "better than its bound",
        ),
        ({"relaxation": [{"constraint": "nodes"}]}, "relaxation"),
        ({"alternatives": [{"plan": plan()}]}, "alternatives"),
        ({"baseline": {"plan": plan()}}, "baseline"),
        ({"pareto": {"points": []}}, "pareto"),
        ({"objective": Objective("step_time_s", None, "s", "min"), "plan": None, "status": "feasible"}, "has a plan"),
        (
            {
                "objective": Objective("step_time_s", None, "s", "min"),
                "plan": None,
                "status": "time_limit",
                "gap": None,
            },
            "nothing to predict",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_answer(**changes)


def test_a_time_limit_may_have_found_nothing() -> None:
    answer = train_answer(
        status="time_limit",
        objective=Objective("step_time_s", None, "s", "min"),
        best_bound=3.0,
        gap=None,
        plan=None,
        prediction=None,
        breakdown=None,
        alternatives=[],
    )
    assert through_a_file(answer) == answer


@pytest.mark.parametrize("off", [1e-6, -1e-6])
def test_breakdown_adds_up_at_every_depth(off: float) -> None:
    tree = breakdown()
    tree["children"][0]["children"][2]["seconds"] += off
    with pytest.raises(ValueError, match="breakdown > pipeline: the children's seconds"):
        train_answer(breakdown=tree)
    tree = breakdown()
    tree["children"][0]["children"][2]["seconds"] *= 1 + 1e-9
    train_answer(breakdown=tree)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, None, "1 s", True])
def test_breakdown_holds_times(seconds: Any) -> None:
    with pytest.raises(ValueError, match="finite number of at least 0"):
        train_answer(breakdown={"name": "step", "seconds": seconds, "bound": ""})


def test_hidden_time_does_not_count() -> None:
    tree = breakdown()
    tree["children"][1]["children"][1]["seconds"] = 0.5
    with pytest.raises(ValueError, match="hidden behind other work"):
        train_answer(breakdown=tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "perfmodel.plan/2"}, "schema should be"),
        ({"plans": 1}, "unknown: plans"),
        ({"objective": {"name": "x"}}, "objective should have"),
        ({"objective": {"name": "x", "value": 1.0, "unit": "", "sense": "least"}}, "sense"),
    ],
)
def test_files_of_another_form_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Result.from_dict({**train_answer().to_dict(), **change})
    with pytest.raises(ValueError, match="missing: kind"):
        Result.from_dict({key: value for key, value in train_answer().to_dict().items() if key != "kind"})
