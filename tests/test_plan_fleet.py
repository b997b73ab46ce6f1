"""The fleet planner: computed references, brute force, duality, and answers checked by their plans alone."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_cases import cheapest, check, classes, made_up, offer, relaxed_parts, scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma

from cli.export import to_json
from hardware.yaml_source import Source
from solvers import fleet_search
from solvers.fleet import plan, predict
from solvers.fleet_scenario import FleetScenario, load_fleet
from solvers.plan_file import scenario_of

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fleet-mixed-8b.yaml"
EXAMPLES = sorted((ROOT / "examples").glob("fleet-*.yaml"))

csv.field_size_limit(10**7)
with (ROOT / "tests" / "oracles" / "fleet_oracle.csv").open(encoding="utf-8") as _file:
    ORACLE = {row["case"]: row for row in csv.DictReader(_file)}

# --- computed references -------------------------------------------------------------------------------------------


def melange(row: dict[str, str]) -> FleetScenario:
    """Read a case in the configuration format of Melange."""
    instance = json.loads(row["instance_json"])
    shares = instance["workload_distribution"]
    sizes = [(i, o) for i, line in enumerate(shares) for o in range(len(line))]
    return scenario(
        accelerators=[
            offer(name, one["cost"], [one["tputs"][i][o] for i, o in sizes])
            for name, one in instance["gpu_info"].items()
        ],
        workload={
            "classes": [
                {"isl": i + 1, "osl": o + 1, "rate_rps": shares[i][o] * instance["total_request_rate"]}
                for i, o in sizes
            ],
            "slice_factor": instance["slice_factor"],
        },
    )


@pytest.mark.parametrize("case", ORACLE)
def test_computed_references(case: str) -> None:
    row = ORACLE[case]
    asked = melange(row)
    result = plan(asked, top=0)
    assert result.status == row["status"]
    if row["status"] == "infeasible":
        assert "no accelerator serves class" in result.why_not[0]["reason"]
        return
    assert result.objective.value == pytest.approx(float(row["optimum_cost_usd_per_hour"]), rel=1e-6)
    assert result.prediction is not None and result.plan is not None
    assert result.prediction["relaxed_cost_usd_per_hour"] == pytest.approx(
        float(row["lp_bound_usd_per_hour"]), rel=1e-5
    )
    assert result.prediction["integrality_gap"] == pytest.approx(float(row["integrality_gap"]), abs=1e-5)
    if row["counts_unique"] == "yes":
        assert result.plan["counts"] == json.loads(row["counts_json"])
    check(asked, result)


# --- brute force ---------------------------------------------------------------------------------------------------

PRICES = st.floats(0.5, 8.0).map(lambda value: round(value, 2))
THROUGHPUT = st.one_of(st.just(0.0), st.floats(0.2, 20.0).map(lambda value: round(value, 2)))
RATES = st.floats(0.1, 8.0).map(lambda value: round(value, 2))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), kinds=st.integers(1, 3), sizes=st.integers(1, 3), slices=st.integers(1, 3), lost=st.integers(0, 2)
)
def test_every_division_tried(data: st.DataObject, kinds: int, sizes: int, slices: int, lost: int) -> None:
    prices = data.draw(st.lists(PRICES, min_size=kinds, max_size=kinds))
    throughput = data.draw(
        st.lists(st.lists(THROUGHPUT, min_size=sizes, max_size=sizes), min_size=kinds, max_size=kinds)
    )
    rates = data.draw(st.lists(RATES, min_size=sizes, max_size=sizes))
    most = data.draw(st.lists(st.integers(0, 12), min_size=kinds, max_size=kinds))
    asked = scenario(
        accelerators=[offer(f"g{k}", prices[k], throughput[k], max=most[k]) for k in range(kinds)],
        workload={"classes": classes(*rates), "slice_factor": slices},
        headroom={"lost_instances": lost},
    )
    best = cheapest(prices, throughput, rates, slices, most, lost)
    result = plan(asked, top=2)
    if math.isinf(best):
        assert result.status == "infeasible" and result.relaxation
        return
    assert result.status == "optimal"
    assert result.objective.value == pytest.approx(best, rel=1e-6)
    check(asked, result)
    for other in result.alternatives:
        assert other["prediction"]["cost_usd_per_hour"] >= best * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), sizes=st.integers(1, 2), slices=st.integers(1, 2), lost=st.integers(0, 1))
def test_every_size_of_an_instance_tried(data: st.DataObject, sizes: int, slices: int, lost: int) -> None:
    """Two kinds, instances of one and two and of one and three accelerators: limits count accelerators."""
    prices = data.draw(st.lists(PRICES, min_size=2, max_size=2))
    rows = data.draw(st.lists(st.lists(THROUGHPUT, min_size=sizes, max_size=sizes), min_size=4, max_size=4))
    rates = data.draw(st.lists(RATES, min_size=sizes, max_size=sizes))
    most = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=2))
    kinds, pools = [(1, 2), (1, 3)], [(0, 1), (0, 2), (1, 1), (1, 3)]
    given_rows = [dict(zip(kinds[k], rows[2 * k : 2 * k + 2], strict=True)) for k in range(2)]
    asked = scenario(
        accelerators=[
            {
                "name": f"g{k}",
                "price_usd_per_hour": prices[k],
                "throughput_requests_per_s": given_rows[k],
                "max": most[k],
            }
            for k in range(2)
        ],
        workload={"classes": classes(*rates), "slice_factor": slices},
        headroom={"lost_instances": lost},
    )
    best = cheapest(
        [prices[k] * size for k, size in pools],
        rows,
        rates,
        slices,
        [most[k] // size for k, size in pools],
        lost,
        [([size if k == one else 0 for k, size in pools], most[one]) for one in range(2)],
    )
    result = plan(asked, top=1)
    if math.isinf(best):
        assert result.status == "infeasible"
        return
    assert result.status == "optimal" and result.plan is not None
    assert result.objective.value == pytest.approx(best, rel=1e-6)
    held = dict.fromkeys(result.plan["counts"], 0)
    for pool in result.plan["pools"]:
        held[pool["accelerator"]] += pool["instances"] * pool["accelerators_per_instance"]
    assert held == result.plan["counts"]
    data_of = json.loads(to_json(result.to_dict()))
    again = predict(load_fleet(scenario_of(Source("saved", data_of)), Path()))
    assert again.plan is not None and without_failover(again.plan) == without_failover(data_of["plan"])
    assert again.objective.value == pytest.approx(best, rel=1e-9)


def test_a_failure_is_carried_by_another_kind_too() -> None:
    """Two of a and one of b do: most of c1 moves to b when an a fails, all to a when b does. Spares of each cost 10."""
    kinds = [offer("a", 4.0, [10.0, 10.0]), offer("b", 1.0, [1.0, 5.0])]
    asked = scenario(accelerators=kinds, workload={"classes": classes(8.0, 5.0)}, headroom={"lost_instances": 1})
    result = plan(asked)
    check(asked, result)
    assert result.plan is not None and result.prediction is not None
    assert result.objective.value == pytest.approx(9.0) and result.plan["counts"] == {"a": 2, "b": 1}
    # as even as may be: 8/10 + x/2 of the a that is left, 1 - x of b
    assert result.plan["failover"]["a"]["c1"] == pytest.approx({"a": 2 / 15, "b": 13 / 15})
    assert result.plan["failover"]["b"]["c1"] == pytest.approx({"a": 1.0})
    assert result.prediction["utilisation_after_loss"] == pytest.approx({"a": 13 / 15, "b": 0.65})


def test_a_spare_that_there_is_no_room_for_is_named() -> None:
    kinds = [offer("a", 1.0, [1.0], max=2), offer("b", 3.0, [0.0], max=2)]
    parts = {"accelerators": kinds, "workload": {"classes": classes(1.5)}}
    result = plan(scenario(**parts, headroom={"lost_instances": 1}))
    assert result.status == "infeasible"
    assert [(one["constraint"], one["needed"]) for one in result.relaxation] == [("max[a]", 3)]
    assert "headroom.lost_instances of 0 would do too" in [one["reason"] for one in result.why_not]
    assert plan(scenario(**parts)).status == "optimal"


def test_without_time_each_kind_carries_its_own_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_search, "SEARCHED", 0.0)
    kinds = [offer(name, price, rates) for name, price, rates in zip("abc", (4, 1, 2), RATES_OF_THREE, strict=True)]
    asked = scenario(accelerators=kinds, workload={"classes": classes(8.3, 5.1)}, headroom={"lost_instances": 1})
    result = plan(asked, top=0)
    assert result.status == "time_limit" and result.best_bound is not None and result.objective.value is not None
    check(asked, result)
    monkeypatch.undo()
    best = plan(asked, top=0)
    assert result.best_bound <= best.objective.value <= result.objective.value


RATES_OF_THREE = ([10.0, 10.0], [1.0, 5.0], [2.7, 3.1])


# --- properties ----------------------------------------------------------------------------------------------------


@st.composite
def questions(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Draw a scenario of two or three kinds and classes, of which the first kind serves everything."""
    kinds, sizes = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    rows = [draw(st.lists(THROUGHPUT, min_size=sizes, max_size=sizes)) for _ in range(kinds)]
    rows[0] = [value or 1.0 for value in rows[0]]
    parts: dict[str, Any] = {
        "accelerators": [offer(f"g{k}", draw(PRICES), row) for k, row in enumerate(rows)],
        "workload": {"classes": classes(*draw(st.lists(RATES, min_size=sizes, max_size=sizes)))},
        "headroom": {"lost_instances": draw(st.integers(0, 1)), "utilisation_max": draw(st.sampled_from([1.0, 0.7]))},
    }
    return parts | fixed


def cost(**parts: Any) -> float:
    asked = scenario(**parts)
    result = plan(asked, top=0)
    assert result.status == "optimal"
    check(asked, result)
    assert result.objective.value is not None
    return result.objective.value


@settings(max_examples=25, deadline=None)
@given(parts=questions(), more=st.floats(0.1, 5.0), which=st.integers(0, 2))
def test_more_requests_are_never_cheaper(parts: dict[str, Any], more: float, which: int) -> None:
    before = cost(**parts)
    asked = parts["workload"]["classes"]
    asked[which % len(asked)]["rate_rps"] += more
    assert cost(**parts) >= before - 1e-9


@settings(max_examples=25, deadline=None)
@given(parts=questions(), data=st.data())
def test_a_further_kind_is_never_dearer(parts: dict[str, Any], data: st.DataObject) -> None:
    before = cost(**parts)
    sizes = len(parts["workload"]["classes"])
    row = data.draw(st.lists(THROUGHPUT, min_size=sizes, max_size=sizes))
    parts["accelerators"].append(offer("further", data.draw(PRICES), row))
    assert cost(**parts) <= before + 1e-9


@settings(max_examples=25, deadline=None)
@given(parts=questions(), random=st.randoms(use_true_random=False))
def test_the_order_of_classes_and_kinds_changes_nothing(parts: dict[str, Any], random: Any) -> None:
    before = cost(**parts)
    asked = parts["workload"]["classes"]
    order = random.sample(range(len(asked)), len(asked))
    parts["workload"]["classes"] = [asked[n] for n in order]
    for one in parts["accelerators"]:
        one["throughput_requests_per_s"] = [one["throughput_requests_per_s"][n] for n in order]
    random.shuffle(parts["accelerators"])
    assert cost(**parts) == pytest.approx(before, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(parts=questions(), hours=st.integers(2, 4))
def test_a_day_of_equal_hours_is_the_plain_case(parts: dict[str, Any], hours: int) -> None:
    before = cost(**parts)
    parts["workload"]["profile"] = [1.0] * hours
    assert cost(**parts) == pytest.approx(before, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(parts=questions(), profile=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=4).filter(any))
def test_hours_on_demand_are_planned_one_by_one(parts: dict[str, Any], profile: list[float]) -> None:
    parts["workload"]["profile"] = profile
    together = cost(**parts)
    rates = [one["rate_rps"] for one in parts["workload"]["classes"]]
    parts["workload"].pop("profile")
    alone = []
    for factor in profile:
        for one, rate in zip(parts["workload"]["classes"], rates, strict=True):
            one["rate_rps"] = rate * factor
        alone.append(cost(**parts) if factor else 0.0)
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(parts=questions(), profile=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=4).filter(any))
def test_what_is_reserved_is_the_least_over_all_numbers_of_it(parts: dict[str, Any], profile: list[float]) -> None:
    """With one kind, the cost of r reserved is r times its price and what each hour needs beyond, on demand."""
    (first, *_) = parts["accelerators"]
    first["reserved_price_usd_per_hour"] = round(0.6 * first["price_usd_per_hour"], 3)
    parts["accelerators"] = [first]
    parts["workload"]["profile"] = profile
    asked = parts["workload"]["classes"]
    busy = sum(one["rate_rps"] / rate for one, rate in zip(asked, first["throughput_requests_per_s"], strict=True))
    spare, share = parts["headroom"]["lost_instances"], parts["headroom"]["utilisation_max"]
    needed = [math.ceil(factor * busy / share - 1e-9) + spare if factor else 0 for factor in profile]
    best = min(
        r * first["reserved_price_usd_per_hour"]
        + sum(max(count - r, 0) for count in needed) / len(needed) * first["price_usd_per_hour"]
        for r in range(max(needed) + 1)
    )
    assert cost(**parts) == pytest.approx(best, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(parts=questions(), availability=st.sampled_from([0.5, 0.75, 0.9, 1.0]), ratio=st.floats(0.2, 1.2))
def test_the_spot_market_counts_for_its_share(parts: dict[str, Any], availability: float, ratio: float) -> None:
    (first, *_) = parts["accelerators"]
    price = first["price_usd_per_hour"]
    first |= {"spot_price_usd_per_hour": round(price * ratio, 4), "spot_availability": availability}
    parts["accelerators"] = [first]
    asked = parts["workload"]["classes"]
    busy = sum(one["rate_rps"] / rate for one, rate in zip(asked, first["throughput_requests_per_s"], strict=True))
    needed = busy / parts["headroom"]["utilisation_max"] + parts["headroom"]["lost_instances"]
    whole = math.ceil(needed - 1e-9)
    best = min(
        n * price + max(math.ceil((needed - n) / availability - 1e-9), 0) * first["spot_price_usd_per_hour"]
        for n in range(whole + 1)
    )
    assert cost(**parts) == pytest.approx(best, rel=1e-6)


# --- prices --------------------------------------------------------------------------------------------------------


def relaxed(parts: dict[str, Any]) -> Any:
    result = plan(scenario(**parts), top=0)
    assert result.prediction is not None
    return result.prediction


@settings(max_examples=25, deadline=None)
@given(parts=questions())
def test_prices_of_requests_add_up_to_the_relaxed_cost(parts: dict[str, Any]) -> None:
    """Strong duality: without limits the capacity rows are all there is, and the cost is linear in the rates."""
    parts["headroom"]["lost_instances"] = 0
    found = relaxed(parts)
    worth = found["marginal_cost_usd_per_hour"]
    paid = sum(one["rate_rps"] * worth[one["name"]] for one in parts["workload"]["classes"])
    assert paid == pytest.approx(found["relaxed_cost_usd_per_hour"], rel=1e-6)
    for number, one in enumerate(parts["workload"]["classes"]):
        # without limits a request costs what it keeps busy of the kind where that is cheapest
        each = [
            kind["price_usd_per_hour"]
            / kind["throughput_requests_per_s"][number]
            / parts["headroom"]["utilisation_max"]
            for kind in parts["accelerators"]
            if kind["throughput_requests_per_s"][number]
        ]
        assert worth[one["name"]] == pytest.approx(min(each), rel=1e-6)


LIMITED: dict[str, Any] = {
    "accelerators": [
        offer("small", 1.0, [4.0, 0.5], power=100, max=9),
        offer("large", 6.0, [20.0, 8.0], power=700, max=2),
        offer("old", 2.0, [3.0, 0.9], power=400),
    ],
    "workload": {"classes": classes(30.0, 17.0), "profile": [1.0, 0.6, 0.6]},
    "sites": [{"name": "hall", "power": 6000}],
}


def test_prices_are_what_a_little_more_costs_in_the_relaxation() -> None:
    base, h = relaxed(LIMITED), 1e-4
    entries = {one["constraint"]: one for one in plan(scenario(**LIMITED)).binding}
    for number, one in enumerate(classes(30.0, 17.0)):
        rates = [30.0, 17.0]
        rates[number] += h
        more = relaxed(LIMITED | {"workload": {"classes": classes(*rates), "profile": [1.0, 0.6, 0.6]}})
        # one more in the mean of the day
        slope = (more["relaxed_cost_usd_per_hour"] - base["relaxed_cost_usd_per_hour"]) / h / np.mean([1.0, 0.6, 0.6])
        assert base["marginal_cost_usd_per_hour"][one["name"]] == pytest.approx(slope, rel=1e-3)
    assert set(entries) == {"max[small]", "max[large]"}
    for number, name in enumerate(("small", "large")):
        kinds = [dict(one) for one in LIMITED["accelerators"]]
        kinds[number]["max"] += 1
        less = relaxed(LIMITED | {"accelerators": kinds})
        slope = less["relaxed_cost_usd_per_hour"] - base["relaxed_cost_usd_per_hour"]
        price = entries[f"max[{name}]"]["shadow_price"]
        assert price < 0 and price <= slope + 1e-6  # a convex cost falls ever more slowly


@pytest.mark.parametrize("lost", [0, 1])
def test_prices_by_period_are_what_a_little_more_then_costs(lost: int) -> None:
    day = LIMITED | {"headroom": {"lost_instances": lost}, "sites": [{"name": "hall", "power": 9000}]}
    base, h = relaxed(day), 1e-4
    by_period = base["marginal_cost_by_period_usd_per_hour"]
    assert [part["periods"] for part in by_period] == [[0], [1, 2]]
    for part in by_period:
        for number in range(2):
            asked = classes(30.0, 17.0)
            rate = asked[number]["rate_rps"]
            asked[number]["profile"] = [
                factor + (h / rate if period in part["periods"] else 0.0)
                for period, factor in enumerate([1.0, 0.6, 0.6])
            ]
            more = relaxed(day | {"workload": {"classes": asked, "profile": [1.0, 0.6, 0.6]}})
            slope = (more["relaxed_cost_usd_per_hour"] - base["relaxed_cost_usd_per_hour"]) / h
            # the cost is the mean of the day, of which these periods are a part
            assert part[f"c{number}"] * len(part["periods"]) / 3 == pytest.approx(slope, rel=2e-3, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(parts=questions(), whole=st.booleans())
def test_one_more_request_costs_what_planning_it_says(parts: dict[str, Any], whole: bool) -> None:
    if whole:
        parts["workload"]["slice_factor"] = 2
    result = plan(scenario(**parts), top=1)
    assert result.prediction is not None and result.plan is not None and result.objective.value is not None
    for one in parts["workload"]["classes"]:
        rate = one["rate_rps"]
        one["rate_rps"] = rate + 1
        spare = result.prediction["spare_requests_per_s"][one["name"]]
        more = cost(**parts) - result.objective.value
        assert result.prediction["marginal_cost_whole_usd_per_hour"][one["name"]] == pytest.approx(more, abs=1e-5)
        # what is spare fits the same accelerators, and a little more does not
        for factor, status in ((0.999, "feasible"), (1.001, "infeasible")):
            one["rate_rps"] = rate + factor * spare + (factor - 1)
            given = {"counts": result.plan["counts"]}
            if not whole:
                assert predict(scenario(**parts, plan=given)).status == status
        one["rate_rps"] = rate


def test_one_more_request_of_a_graph_is_that_of_its_calls() -> None:
    calls = [{"name": "a", "class": "c0", "count": 2}, {"name": "b", "class": "c1", "after": ["a"]}]
    asked = scenario(
        accelerators=[offer("one", 1.0, [2.0, 5.0], latency_s=[1, 1])],
        workload={
            "classes": classes(0.0, 0.4),
            "graphs": [{"name": "agent", "rate_rps": 0.5, "latency": 5, "calls": calls}],
        },
    )
    result = plan(asked)
    check(asked, result)
    said = result.prediction
    assert said is not None
    # 0.5 requests/s keep 0.5 x (2 / 2 + 1 / 5) busy, the chat 0.08: 0.68 of one
    assert said["utilisation"] == pytest.approx({"one": 0.68})
    assert said["marginal_cost_usd_per_hour"] == pytest.approx({"c0": 0.5, "c1": 0.2, "agent": 1.2})
    assert said["marginal_cost_whole_usd_per_hour"] == pytest.approx({"c0": 1.0, "c1": 0.0, "agent": 1.0})
    assert said["spare_requests_per_s"] == pytest.approx({"c0": 0.64, "c1": 1.6, "agent": 0.32 / 1.2}, rel=1e-4)
    assert said["requests_per_s"] == pytest.approx(0.9)


def test_the_price_of_power() -> None:
    kinds = [offer("cheap", 1.0, [4.0], power=400), offer("frugal", 3.0, [8.0], power=200)]
    parts: dict[str, Any] = {"accelerators": kinds, "workload": {"classes": classes(40.0)}}
    parts["sites"] = [{"name": "hall", "power": 3000}]
    base = relaxed(parts)
    entry = {one["constraint"]: one for one in plan(scenario(**parts)).binding}["power[hall]"]
    more = relaxed(parts | {"sites": [{"name": "hall", "power": 3001}]})
    slope = more["relaxed_cost_usd_per_hour"] - base["relaxed_cost_usd_per_hour"]
    assert entry["shadow_price"] == pytest.approx(slope, rel=1e-3)
    assert slope < 0


# --- limits, models, graphs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("slices", [None, 3])
def test_throughputs_of_very_different_sizes(tiny: float, slices: int | None) -> None:
    kinds = [offer("good", 10.0, [8.0, 2.0]), offer("bad", 0.3, [3.0, tiny]), offer("middle", 2.0, [5.0, 0.3])]
    asked: dict[str, Any] = {"classes": classes(40.0, 11.0)}
    if slices:
        asked["slice_factor"] = slices
    found = cost(accelerators=kinds, workload=asked)
    kinds[1]["throughput_requests_per_s"] = [3.0, 0.0]
    assert found == pytest.approx(cost(accelerators=kinds, workload=asked))


def test_two_models_do_not_share_an_instance() -> None:
    asked = scenario(
        accelerators=[
            offer("a", 1.0, [2.0, 1.0], accelerators_per_instance={"large": 4}),
            offer("b", 3.0, [5.0, 0.0]),
        ],
        model="small",
        workload={"classes": [*classes(3.0), {"name": "big", "isl": 9, "osl": 9, "rate_rps": 1.5, "model": "large"}]},
    )
    result = plan(asked)
    check(asked, result)
    # the large model needs two instances of four; the small one two of a or one of b
    assert result.plan is not None
    assert result.objective.value == pytest.approx(8 + 2)
    assert result.plan["instances"] == {"small": {"a": 2}, "large": {"a": 2}}


@settings(max_examples=25, deadline=None)
@given(
    latency=st.lists(st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3), min_size=2, max_size=3),
    limit=st.floats(1.0, 10.0),
    own=st.floats(0.5, 6.0),
    rate=st.floats(0.2, 3.0),
)
def test_paths_keep_their_time_at_the_least_cost(
    latency: list[list[float]], limit: float, own: float, rate: float
) -> None:
    """A diamond of calls, each of which goes whole to one kind: every choice is tried."""
    prices, throughput = [1.0, 2.5, 4.0], [[1.0, 2.0, 3.0], [2.0, 4.5, 8.0], [5.0, 8.0, 9.0]]
    kinds = len(latency)
    calls = {"first": (0, []), "left": (1, ["first"]), "right": (1, ["first"]), "last": (2, ["left", "right"])}
    asked = scenario(
        accelerators=[offer(f"g{k}", prices[k], throughput[k], latency_s=latency[k]) for k in range(kinds)],
        workload={
            "classes": classes(0.0, 0.0, 0.0),
            "slice_factor": 1,
            "graphs": [
                {
                    "name": "agent",
                    "rate_rps": rate,
                    "latency": limit,
                    "calls": [{"name": n, "class": f"c{c}", "after": after} for n, (c, after) in calls.items()],
                    "paths": [{"calls": ["first", "right"], "latency": own}],
                }
            ],
        },
    )
    best = math.inf
    for choice in np.ndindex(*(kinds,) * 4):
        first, left, right, last = (latency[k][c] for k, (c, _) in zip(choice, calls.values(), strict=True))
        if max(first + left + last, first + right + last) <= limit and first + right <= own:
            load = [0.0] * kinds
            for k, (c, _) in zip(choice, calls.values(), strict=True):
                load[k] += rate / throughput[k][c]
            best = min(best, sum(price * math.ceil(one - 1e-9) for price, one in zip(prices, load, strict=False)))
    result = plan(asked, top=1)
    if math.isinf(best):
        assert result.status == "infeasible"
        assert result.relaxation and all(one["needed"] > one["now"] for one in result.relaxation)
        assert all(one["constraint"].startswith("latency[agent") for one in result.relaxation)
        return
    check(asked, result)
    assert result.objective.value == pytest.approx(best, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    latency=st.lists(st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3), min_size=2, max_size=3),
    spread=st.lists(st.one_of(st.just(0.0), st.floats(0.05, 1.2)), min_size=3, max_size=3),
    limit=st.floats(2.0, 20.0),
    statistic=st.sampled_from(["p90", "p99"]),
    rate=st.floats(0.2, 3.0),
)
def test_percentiles_of_paths_keep_their_time_at_the_least_cost(
    latency: list[list[float]], spread: list[float], limit: float, statistic: str, rate: float
) -> None:
    """Every choice is tried: sums of gamma distributed times, two searches in a row with twice the variance of one."""
    prices, throughput = [1.0, 2.5, 4.0], [[1.0, 2.0, 3.0], [2.0, 4.5, 8.0], [5.0, 8.0, 9.0]]
    kinds, level = len(latency), {"p90": 0.9, "p99": 0.99}[statistic]
    deviation = [[spread[k] * one for one in row] for k, row in enumerate(latency)]
    calls = {"first": (0, 1, []), "search": (1, 2, ["first"]), "side": (1, 1, ["first"]), "last": (2, 1, ["search"])}
    asked = scenario(
        accelerators=[
            offer(f"g{k}", prices[k], throughput[k], latency_s=latency[k], latency_std_s=deviation[k])
            for k in range(kinds)
        ],
        workload={
            "classes": classes(0.0, 0.0, 0.0),
            "slice_factor": 1,
            "graphs": [
                {
                    "name": "agent",
                    "rate_rps": rate,
                    "latency": limit,
                    "statistic": statistic,
                    "calls": [
                        {"name": n, "class": f"c{c}", "count": times, "after": after}
                        for n, (c, times, after) in calls.items()
                    ],
                }
            ],
        },
    )
    best = math.inf
    for choice in np.ndindex(*(kinds,) * 4):
        parts = [
            (times * latency[k][c], times * deviation[k][c] ** 2, times * rate / throughput[k][c])
            for k, (c, times, _) in zip(choice, calls.values(), strict=True)
        ]
        if all(gamma_quantile([parts[n] for n in path], level) <= limit for path in ((0, 1, 3), (0, 2))):
            load = [sum(part[2] for k, part in zip(choice, parts, strict=True) if k == kind) for kind in range(kinds)]
            best = min(best, sum(price * math.ceil(one - 1e-9) for price, one in zip(prices, load, strict=False)))
    result = plan(asked, top=0)
    if math.isinf(best):
        assert result.status == "infeasible"
        assert [one["constraint"] for one in result.relaxation] == ["latency[agent]"]
        eased = asked.source.data | {}
        eased["workload"]["graphs"][0]["latency"] = result.relaxation[0]["needed"] * (1 + 1e-6)
        assert plan(load_fleet(Source("eased", eased), Path()), top=0).status == "optimal"
        return
    assert result.status == "optimal" and result.plan is not None and result.prediction is not None
    assert result.objective.value == pytest.approx(best, rel=1e-6)
    met = [next(iter(result.plan["routing"][f"agent.{name}"])) for name in calls]
    parts = [
        (times * latency[int(kind[1])][c], times * deviation[int(kind[1])][c] ** 2, 0.0)
        for kind, (c, times, _) in zip(met, calls.values(), strict=True)
    ]
    slowest = max(gamma_quantile([parts[n] for n in path], level) for path in ((0, 1, 3), (0, 2)))
    assert result.prediction["graph_latency_s"] == {"agent": pytest.approx(slowest)}
    assert slowest <= limit * (1 + 1e-6)


def gamma_quantile(parts: list[tuple[float, float, float]], level: float) -> float:
    mean, variance = sum(part[0] for part in parts), sum(part[1] for part in parts)
    return float(gamma.ppf(level, mean**2 / variance, scale=variance / mean)) if variance else mean


def test_a_relaxation_does() -> None:
    tight = LIMITED | {"sites": [{"name": "hall", "power": 900}]}
    result = plan(scenario(**tight))
    assert result.status == "infeasible" and result.plan is None
    (change,) = result.relaxation
    assert change["constraint"] == "power[hall]" and change["now"] == 900 and change["unit"] == "W"
    for power, status in ((change["needed"], "optimal"), (change["needed"] - 50, "infeasible")):
        assert plan(scenario(**LIMITED | {"sites": [{"name": "hall", "power": power}]})).status == status


def test_limits_that_bind_together_are_raised_together() -> None:
    kinds = [offer("a", 1.0, [1.0, 0.0], max=1), offer("b", 2.0, [0.0, 1.0], max=2)]
    result = plan(scenario(accelerators=kinds, workload={"classes": classes(3.0, 5.0)}))
    assert result.status == "infeasible"
    needed = {one["constraint"]: one["needed"] for one in result.relaxation}
    assert needed == {"max[a]": 3, "max[b]": 5}


def test_a_class_that_nobody_serves_is_named() -> None:
    kinds = [offer("a", 1.0, [1.0, 0.0]), offer("b", 2.0, [4.0, 0.0])]
    result = plan(scenario(accelerators=kinds, workload={"classes": classes(3.0, 5.0)}))
    assert result.status == "infeasible"
    assert [one["reason"] for one in result.why_not] == ["no accelerator serves class 'c1' within the objectives"]
    assert result.relaxation == [{"constraint": "demand[c1]", "now": 5.0, "needed": 0.0, "unit": "requests/s"}]
    # a class without requests asks for nothing
    assert cost(accelerators=kinds, workload={"classes": classes(3.0, 0.0)}) == 2.0


def without_failover(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan without what happens after failures: requests may then be divided in several ways."""
    whole, *parts = (
        {key: value for key, value in part.items() if key != "failover"} for part in (plan, *plan.get("periods", []))
    )
    return whole | {"periods": parts}


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_asked_the_answer_holds(seed: int) -> None:
    """The plan meets the scenario and predicts again to its cost, its alternatives too; a relaxation is enough."""
    parts = made_up(seed)
    asked = scenario(**parts)
    result = plan(asked, top=2)
    if result.status == "infeasible":
        assert result.why_not and result.relaxation
        again = relaxed_parts(parts, result.relaxation)
        if again is not None:
            after = plan(scenario(**again), top=0)
            raised = {change["constraint"] for change in result.relaxation}
            # a graph that is in time may still lack accelerators, but no limit has to be raised twice
            assert not raised & {change["constraint"] for change in after.relaxation}
        return
    assert result.status == "optimal"
    check(asked, result)
    data = json.loads(to_json(result.to_dict()))
    for one in ({"plan": data["plan"], "prediction": data["prediction"]}, *data["alternatives"]):
        found = predict(load_fleet(scenario_of(Source("saved", data | {"plan": one["plan"]})), Path()))
        assert found.plan is not None and without_failover(found.plan) == without_failover(one["plan"])
        assert found.objective.value == pytest.approx(one["prediction"]["cost_usd_per_hour"], rel=1e-12)


# --- a given plan --------------------------------------------------------------------------------------------------


def test_counts_alone_are_enough_to_predict() -> None:
    parts = LIMITED | {"plan": {"counts": {"small": 9, "large": 2, "old": 3}}}
    asked = scenario(**parts)
    found = predict(asked)
    assert found.status == "feasible" and found.best_bound is None
    assert found.objective.value == pytest.approx(9 + 12 + 6)
    check(asked, found)
    best = plan(asked)
    assert best.baseline is not None and best.objective.value is not None
    assert best.baseline["gain"] == pytest.approx(27 / best.objective.value)


def test_counts_that_are_too_few_are_named() -> None:
    parts = LIMITED | {"plan": {"counts": {"small": 9, "large": 1, "old": 0}}}
    found = predict(scenario(**parts))
    assert found.status == "infeasible"
    (change,) = found.relaxation
    assert change["constraint"].startswith("counts[") and change["needed"] > change["now"]


def test_a_routing_that_overloads_a_kind_is_named() -> None:
    kinds = [offer("a", 1.0, [1.0]), offer("b", 2.0, [4.0])]
    given = {"counts": {"a": 2, "b": 1}, "routing": {"c0": {"a": 0.6, "b": 0.4}}}
    found = predict(scenario(accelerators=kinds, workload={"classes": classes(5.0)}, plan=given))
    assert found.relaxation == [{"constraint": "counts[a]", "now": 2, "needed": 3, "unit": "accelerators"}]
    fits = given | {"counts": {"a": 3, "b": 1}}
    found = predict(scenario(accelerators=kinds, workload={"classes": classes(5.0)}, plan=fits))
    assert found.prediction is not None
    assert found.prediction["utilisation"] == pytest.approx({"a": 1.0, "b": 0.5})


def test_a_routing_to_what_cannot_serve_is_named() -> None:
    kinds = [offer("a", 1.0, [1.0]), offer("b", 2.0, [0.0])]
    given = {"counts": {"a": 9, "b": 1}, "routing": {"c0": {"a": 0.6, "b": 0.4}}}
    found = predict(scenario(accelerators=kinds, workload={"classes": classes(5.0)}, plan=given))
    assert found.why_not[0]["reason"] == "routing[c0]: b cannot serve it within the objectives"
