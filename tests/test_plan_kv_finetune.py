"""Where the states of training go: an independent checker, closed forms, properties, faults."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from typer.testing import CliRunner

from cli.app import app
from hardware.faults import InputError
from hardware.tiers import tier_paths
from hardware.yaml_source import read_yaml
from perfmodel.kv_equations import (
    activation_intensity,
    interleaved_update,
    overlapped_efficiency,
    parameter_intensity,
    ranked_placement,
)
from solvers.kv import load
from solvers.kv_finetune import place, plan, predict, spread

EXAMPLE = Path(__file__).parent.parent / "examples" / "kv-finetune-128k.yaml"
STATES = ("momentum", "variance", "master_weights", "master_gradients")
GIB = 2**30


def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def asked(**changes):
    """A small fine-tune on one accelerator with host memory and cards."""
    scenario = {
        "kind": "kv",
        "cluster": {
            "kind": "node",
            "name": "one",
            "accelerators": {"type": "h100-80gb-sxm", "count": 1},
            "links": [{"name": "pcie", "type": "pcie", "bandwidth": "50 GB/s"}],
            "tiers": [
                tier("ddr", "128 GiB", "200 GB/s", "90 ns"),
                tier("cxl", "128 GiB", "40 GB/s", "250 ns") | {"count": 2},
            ],
        },
        "model": "llama-2-7b",
        "workload": {"kind": "finetune", "seq_len": 4096, "global_batch": 4},
        "search": {"recompute": ["full"], "micro_batch": [1, 4]},
    } | changes
    return load(read_yaml(json.dumps(scenario), "x.yaml"), Path())


def tier(name, capacity, rate, latency):
    return {"name": name, "capacity": capacity, "read": rate, "write": rate, "latency": latency, "link": "pcie"}


def check(answer):
    """Count the example's bytes afresh, and hold them against sizes and rates.

    Llama-2-13B: 13.016e9 parameters, 40 layers of 5,120; two H100, a link of 63 GB/s from each to the host, 300 GB/s of
    host memory, two cards of 50 GB/s reads and 45 GB/s writes.
    """
    plan, said = answer["plan"], answer["prediction"]
    tiers = ("hbm", "ddr", "cxl")
    at = {thing: {name: found.get(name, 0.0) for name in tiers} for thing, found in plan["placement"].items()}
    for shares in at.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    parameters = 13_015_864_320
    sizes = dict.fromkeys(STATES, 4 * parameters) | {"weights": 2 * parameters, "gradients": 2 * parameters}
    sizes["activations"] = 2 * 5_120 * 40 * 131_072  # the inputs of the layers
    assert plan["training"]["recompute"] == "full"
    for name, room in (("hbm", 160 * GIB), ("ddr", 256 * GIB), ("cxl", 256 * GIB)):
        assert sum(at[thing][name] * size for thing, size in sizes.items()) <= room * (1 + 1e-6), name
    parts = answer["breakdown"]["children"]
    assert sum(part["seconds"] for part in parts) == pytest.approx(said["step_time_s"], rel=1e-9)
    # the update: what is brought crosses the links and returns; of every tier each state is touched at least once
    update_s = next(part["seconds"] for part in parts if part["name"].startswith("optimizer"))
    link = 2 * 63.015e9
    brought = plan["interleaved"]
    hosted = 1 - at["momentum"]["hbm"] - brought
    assert hosted == pytest.approx(said["updated_by"]["host"], abs=1e-9)
    assert brought * 16 * parameters / link <= update_s * (1 + 1e-3)
    assert brought * 12 * parameters / link <= update_s * (1 + 1e-3)
    for name, read, write in (("ddr", 300e9, 300e9), ("cxl", 100e9, 90e9)):
        least = sum(at[thing][name] * 4 * parameters / read for thing in STATES)
        least += sum(at[thing][name] * 4 * parameters / write for thing in STATES[:3])
        assert least <= update_s * (1 + 1e-3), name
    # the passes: activations leave and return, weights come three times, gradients leave once
    passes_s = said["step_time_s"] - update_s
    elsewhere = {thing: (1 - at[thing]["hbm"]) * sizes[thing] for thing in ("weights", "gradients", "activations")}
    assert (3 * elsewhere["weights"] + elsewhere["activations"]) / link <= passes_s
    assert (elsewhere["gradients"] + elsewhere["activations"]) / link <= passes_s
    assert passes_s >= 6 * 12.7e9 * 131_072 / (2 * 989e12)  # products alone, at the peak of both


def test_example_with_and_without_cards(tmp_path):
    saved = tmp_path / "plan.json"
    run("plan", "kv", str(EXAMPLE), "--format", "json", "-o", str(saved))
    answer = json.loads(saved.read_text())
    assert answer["status"] == "optimal"
    check(answer)
    for other in answer["alternatives"]:
        assert other["prediction"]["step_time_s"] >= answer["objective"]["value"] * (1 - 1e-9)
    assert {entry["constraint"] for entry in answer["binding"]} >= {"capacity[hbm]", "rate[ddr]", "rate[cxl]"}
    again = json.loads(run("predict", "kv", str(saved), "--format", "json"))
    assert again["prediction"]["step_time_s"] == pytest.approx(answer["prediction"]["step_time_s"], rel=1e-6)
    without = json.loads(run("plan", "kv", str(EXAMPLE), "--set", "search.tiers=[hbm, ddr]", "--format", "json"))
    check(without)
    assert without["objective"]["value"] > answer["objective"]["value"]
    bought = {one["tier"]: one for one in without["prediction"]["purchases"]}
    assert bought["cxl"]["then"] >= answer["objective"]["value"]  # one card brings no more than two
    assert "Shares by tier" in run("predict", "kv", str(saved))
    assert "step_time_s" in run("predict", "kv", str(saved), "--format", "csv").splitlines()[0]


def test_terms_are_explained():
    answer = json.loads(run("plan", "kv", str(EXAMPLE), "--format", "json"))
    names = [part["name"] for part in answer["breakdown"]["children"]]
    update = next(name for name in names if name.startswith("optimizer: "))
    assert "perfmodel.finetune.resource_times" in run("plan", "kv", str(EXAMPLE), "--explain", update)
    slow = ("--set", "cluster.links.pcie.bandwidth=0.2 GB/s")
    waits = json.loads(run("plan", "kv", str(EXAMPLE), *slow, "--format", "json"))["breakdown"]["children"]
    found = [part["name"] for part in waits if " waits for " in part["name"]]
    assert found
    assert "Deep Optimizer" not in run("plan", "kv", str(EXAMPLE), *slow, "--explain", found[0])


def test_shadow_prices_are_what_a_little_more_brings():
    base = json.loads(run("plan", "kv", str(EXAMPLE), "--format", "json"))
    prices = {entry["constraint"]: entry["shadow_price"] for entry in base["binding"]}
    value = base["objective"]["value"]
    for constraint, change, amount in (
        ("rate[ddr]", {"read": "301 GB/s", "write": "301 GB/s"}, 1.0),
        ("rate[cxl]", {"read": "50.5 GB/s", "write": "45.45 GB/s"}, 1.0),  # of two cards together
    ):
        name = constraint[5:-1]
        words = [word for key, text in change.items() for word in ("--set", f"cluster.tiers.{name}.{key}={text}")]
        more = json.loads(run("plan", "kv", str(EXAMPLE), *words, "--format", "json"))
        assert value - more["objective"]["value"] == pytest.approx(amount * prices[constraint], rel=0.02)


def all_in(name, **others):
    """Everything in one tier but for what is said."""
    found = {thing: {name: 1.0} for thing in (*STATES, "gradients", "activations", "weights")}
    return found | others


def test_interleaving_is_that_of_deep_optimizer_states():
    """arXiv 2410.21316: every k-th subgroup on the accelerator, k = 1 + max(u_g, x) / u_c, where both ends balance."""
    scenario = asked(
        cluster={
            "kind": "node",
            "name": "slow-host",
            "accelerators": {"type": "h100-80gb-sxm", "count": 1},
            "links": [{"name": "pcie", "type": "pcie", "bandwidth": "50 GB/s"}],
            "processors": {"cores": 8, "lines_in_flight": 10},
            "tiers": [tier("ddr", "512 GiB", "2 TB/s", "100 ns")],
        },
        search={"recompute": ["full"], "micro_batch": [1]},
    )
    (layout,) = [one for one in scenario.layouts() if one.plan.zero_stage[0] == 0]
    totals = all_in("ddr", weights={"hbm": 1.0}, activations={"hbm": 1.0})
    placed = place(layout, totals=totals)
    parameters = layout.parameters
    host_s = parameters * 4 * 7 / (8 * 10 * 64 / 100e-9)  # Adam touches 28 bytes, 51.2 GB/s of lines under way
    x_s = parameters * 16 / 50e9
    k, update_s = interleaved_update(1.0, host_s, 0.0, x_s, 0.0)
    # the weights that the host makes cross too, 2 bytes of each: a little fewer subgroups are brought
    assert 1 / placed.updates["interleaved"] == pytest.approx(k, rel=0.1)
    assert placed.phase_s["update"] == pytest.approx(update_s, rel=0.1)
    shares = np.linspace(0, 1, 100_001)
    exact = np.maximum(host_s * (1 - shares), x_s * shares + parameters * 2 * (1 - shares) / 50e9)
    assert placed.phase_s["update"] == pytest.approx(exact.min(), rel=1e-4)
    alone = place(layout, totals=totals, interleaved=0.0)
    assert alone.phase_s["update"] == pytest.approx(host_s, rel=1e-9)


def test_tiers_are_filled_no_worse_than_by_rank_or_page_by_page():
    scenario = asked()
    for layout in scenario.layouts():
        best = place(layout, interleaved=0.0)
        totals = spread(best, {"ddr": 1.0, "cxl": 2.0})
        assert place(layout, totals=totals, interleaved=0.0).step_time_s >= best.step_time_s * (1 - 1e-7)
        left = {thing: 1 - best.totals[thing].get("hbm", 0.0) for thing in best.totals}
        things = list(left)
        sizes = [left[thing] * layout.size_bytes(thing, "ddr") for thing in things]
        touched = [
            {"master_gradients": 5, "weights": 4, "gradients": 2, "activations": 2}.get(thing, 2) for thing in things
        ]
        shares = ranked_placement(sizes, touched, [128 * GIB, 256 * GIB], [200e9, 80e9])
        ranked = {
            thing: {"hbm": 1 - left[thing], "ddr": left[thing] * row[0], "cxl": left[thing] * row[1]}
            for thing, row in zip(things, shares, strict=True)
        }
        assert place(layout, totals=ranked, interleaved=0.0).step_time_s >= best.step_time_s * (1 - 1e-7)


@settings(max_examples=15, deadline=None)
@given(
    which=some.sampled_from(["ddr", "cxl", "pcie"]),
    factor=some.floats(1.0, 3.0),
    room=some.floats(1.0, 2.0),
)
def test_more_of_anything_never_slows(which, factor, room):
    scenario = asked(search={"recompute": ["full"], "micro_batch": [4]})
    node = scenario.job.machine.node
    faster = [
        one.model_copy(
            update={"read": one.read * factor, "write": one.write * factor, "capacity": one.capacity * room}
            if one.name == which
            else {}
        )
        for one in node.tiers
    ]
    links = [
        one.model_copy(update={"bandwidth": one.bandwidth * factor} if one.name == which else {}) for one in node.links
    ]
    more = tier_paths(node.model_copy(update={"tiers": tuple(faster), "links": tuple(links)}))
    (before,), (after,) = scenario.layouts(), scenario.layouts(paths=more)
    assert place(after).step_time_s <= place(before).step_time_s * (1 + 1e-6)


def test_what_does_not_fit_is_said_with_the_fewest_bytes():
    answer = plan(asked(workload={"kind": "finetune", "seq_len": 4096}, search={"tiers": ["hbm"]}))
    assert answer.status == "infeasible"
    (missing,) = answer.relaxation
    # 16-bit weights and gradients and four states: 20 bytes for each of 6.74e9 parameters, and more for activations
    assert missing["constraint"] == "capacity[hbm]"
    assert missing["needed"] > 20 * 6.7e9


@pytest.mark.parametrize(
    ("model", "parameters"),  # as published: Llama-3.1-8B, Mixtral-8x7B, Gemma-2-9B
    [("llama-3.1-8b", 8.03e9), ("mixtral-8x7b", 46.7e9), ("gemma-2-9b", 9.24e9)],
)
def test_every_plan_keeps_to_sizes_and_rates(model, parameters):
    """Eight H100 of 80 GiB, 2 TiB of host memory at 300 GB/s, four links of 63 GB/s; every plan that is listed."""
    workload = {"kind": "finetune", "seq_len": 8192, "global_batch": 16}
    search = {"tiers": ["hbm", "ddr"], "tp": [1], "cp": [1, 2], "recompute": ["none", "full"]}
    answer = plan(asked(cluster="dgx-h100", model=model, workload=workload, search=search))
    plans = [(answer.plan, answer.prediction), *((one["plan"], one["prediction"]) for one in answer.alternatives)]
    assert len(plans) > 3
    for chosen, said in plans:
        at = chosen["placement"]
        for shares in at.values():
            assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        sizes = dict.fromkeys(STATES, 4 * parameters) | {"weights": 2 * parameters, "gradients": 2 * parameters}
        for tier_name, room in (("hbm", 8 * 80 * GIB), ("ddr", 2048 * GIB)):
            held = sum(at[thing].get(tier_name, 0.0) * size for thing, size in sizes.items())
            assert held <= said["memory_bytes"][tier_name] * 1.01
            assert said["memory_bytes"][tier_name] <= room * (1 + 1e-6)
            assert said["memory_bytes"][tier_name] <= said["memory_available_bytes"][tier_name] * (1 + 1e-6)
        resident = at["momentum"].get("hbm", 0.0)
        # all states that do not stay are read and but for gradients written in host memory
        update_s = (1 - resident) * parameters * 28 / 300e9
        # weights that do not stay come at least twice, gradients leave once for every micro-batch
        links = 4 * 63.015e9
        weights_s = (1 - at["weights"].get("hbm", 0.0)) * 2 * 2 * parameters * said["micro_batches"] / links
        gradients_s = (1 - resident) * 2 * parameters * said["micro_batches"] / links
        assert said["step_time_s"] >= max(weights_s, gradients_s) + update_s * 0.99
        active = 12.9e9 if model == "mixtral-8x7b" else parameters
        assert said["step_time_s"] >= 6 * active * 0.9 * 8192 * 16 / (8 * 989e12)
        assert said["step_time_s_p10"] < said["step_time_s"] < said["step_time_s_p90"]
        assert all(share <= 1 + 1e-9 for times in said["utilisation"].values() for share in times.values())


def test_devices_that_would_do_do():
    answer = plan(asked(model="llama-2-70b", search={"micro_batch": [1], "recompute": ["full"]}))
    assert answer.status == "infeasible"
    needed = {one["constraint"]: one["needed"] for one in answer.relaxation}
    for name, other in (("ddr", "cxl"), ("cxl", "ddr")):
        scenario = asked(model="llama-2-70b", search={"micro_batch": [1], "recompute": ["full"]})
        node = scenario.job.machine.node
        for count, fits in ((needed[f"devices[{name}]"], True), (needed[f"devices[{name}]"] - 1, False)):
            tiers = [one.model_copy(update={"count": count}) if one.name == name else one for one in node.tiers]
            assert {one.name for one in tiers} == {name, other}
            paths = tier_paths(node.model_copy(update={"tiers": tuple(tiers)}))
            assert any(place(layout) for layout in scenario.layouts(paths=paths)) == fits


def placement(**changes):
    return {"placement": all_in("ddr", activations={"hbm": 1.0}) | changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan": placement(momentum={"ddr": 0.5})}, "add up to 1"),
        ({"plan": placement(momentum={"hbm": 0.5, "ddr": 0.5})}, "should be that of momentum"),
        ({"plan": placement(weights={"nvme": 1.0})}, "no such tier"),
        ({"plan": placement() | {"training": {"pp": 2}}}, "no pipeline stages"),
        ({"plan": {"placement": {"momentum": {"ddr": 1.0}}}}, "variance is missing"),
        ({"search": {"tiers": ["ddr"]}}, "hbm is missing"),
        ({"framework": "deepsped"}, "deepspeed"),
        ({"objective": "cost_usd_per_hour"}, "needs a price"),
        ({"model": "gpt-2", "workload": {"kind": "finetune", "seq_len": 4096}}, "learned positions"),
    ],
)
def test_faults_are_located(changes, said):
    with pytest.raises(InputError) as error:
        asked(**changes)
    assert said in str(error.value)
    assert "x.yaml:1:" in str(error.value)


def test_given_placement_that_does_not_fit():
    answer = predict(asked(plan=placement() | {"placement": all_in("hbm")}))
    assert answer.status == "infeasible"
    (missing,) = answer.relaxation
    assert (missing["constraint"], missing["needed"] > 20 * 6.7e9) == ("capacity[hbm]", True)
    answer = predict(asked(plan=placement(weights={"hbm": 1.0})))
    assert [one["constraint"] for one in answer.relaxation] == []
    assert answer.status == "feasible"


def test_delayed_update_hides_behind_the_passes():
    """ZeRO-Offload, section 5.2: the step is then the longer of the passes and of the host's update."""
    workload = {"kind": "finetune", "seq_len": 4096, "global_batch": 4}
    layouts = [asked(workload=workload | {"delayed_update": late}).layouts() for late in (False, True)]
    for now, late in zip(*layouts, strict=True):
        kept = {"momentum": 0.0, "weights": 1.0, "activations": 1.0}
        first, second = (place(one, interleaved=0.0, kept=kept) for one in (now, late))
        if first is None or second is None:
            continue
        update = first.phase_s["update"]
        passes = now.forward_s + now.backward_s
        # during the passes tiers also serve those
        busy = [first.resource_s[phase] for phase in ("forward", "backward")]
        besides = sum(max(time for name, time in times.items() if name != "accelerators") for times in busy)
        assert max(passes, update) <= second.phase_s["step"] * (1 + 1e-6)
        assert second.phase_s["step"] <= max(passes, update + besides) * (1 + 1e-6)
        assert second.step_time_s < first.step_time_s
        # 4 bytes more of each parameter
        more = sum(used for _, used in second.memory_bytes.values()) - sum(
            used for _, used in first.memory_bytes.values()
        )
        assert more == pytest.approx(4 * now.parameters)
    answer = plan(asked(workload=workload | {"delayed_update": True}))
    assert answer.status == "optimal"
    assert answer.prediction["updated_by"]["interleaved"] == 0
    again = predict(asked(workload=workload | {"delayed_update": True}, plan=answer.plan))
    assert again.objective.value == pytest.approx(answer.objective.value, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(room=some.floats(0.05, 1.5), tokens=some.sampled_from([4096, 16384, 65536]), late=some.booleans())
def test_what_fits_is_what_can_be_placed(room, tokens, late):
    workload = {"kind": "finetune", "seq_len": tokens, "delayed_update": late}
    scenario = asked(workload=workload, search={"micro_batch": [1]})
    node = scenario.job.machine.node
    tiers = tuple(one.model_copy(update={"capacity": one.capacity * room}) for one in node.tiers)
    paths = tier_paths(node.model_copy(update={"tiers": tiers}))
    for layout in scenario.layouts(paths=paths):
        placed = place(layout)
        assert layout.fits == (placed is not None)
        assert placed is None or layout.least_s <= placed.step_time_s * (1 + 1e-6)


def test_largest_context_and_model_are_the_last_that_fit():
    for objective, unit in (("max_context_tokens", 1024), ("max_params", None)):
        answer = plan(asked(objective=objective, workload={"kind": "finetune", "seq_len": 4096}))
        assert answer.status == "optimal"
        chosen = answer.plan
        scenario = asked(workload={"kind": "finetune", "seq_len": chosen["seq_len"]})
        if unit:
            assert answer.objective.value == chosen["seq_len"]
            assert any(place(layout) for layout in scenario.layouts())
            longer = asked(workload={"kind": "finetune", "seq_len": chosen["seq_len"] + unit})
            assert not any(place(layout) for layout in longer.layouts())
        else:
            # a layer of Llama-2-7B: 4 h^2 for attention, 3 h f for the feed-forward part, two norms
            layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
            assert answer.objective.value == 2 * 32000 * 4096 + 4096 + chosen["layers"] * layer
            memory = (80 + 3 * 128) * GIB
            assert 20 * answer.objective.value < memory < 20 * (answer.objective.value + 20 * layer) + 30 * GIB
        price = answer.binding[0]["shadow_price"]
        assert price > 0
        again = predict(asked(objective=objective, workload={"kind": "finetune", "seq_len": 4096}, plan=chosen))
        assert again.objective.value == answer.objective.value
        assert again.prediction["step_time_s"] == pytest.approx(answer.prediction["step_time_s"], rel=1e-6)


def priced(**changes):
    cards = tier("cxl", "128 GiB", "40 GB/s", "250 ns") | {"count": 4, "price": {"on_demand": "0.5 USD/h"}}
    node = {
        "kind": "node",
        "name": "one",
        "accelerators": {"type": "h100-80gb-sxm", "count": 1},
        "links": [{"name": "pcie", "type": "pcie", "bandwidth": "50 GB/s"}],
        "tiers": [tier("ddr", "32 GiB", "200 GB/s", "90 ns"), cards],
        "price": {"on_demand": "4 USD/h"},
    }
    return asked(cluster=node, **changes)


def test_fewest_cards_that_do():
    cheap = plan(priced(objective="cost_usd_per_hour"))
    assert cheap.status == "optimal"
    cards = cheap.plan["devices"]["cxl"]
    assert cheap.objective.value == 4 + 0.5 * cards
    # 20 bytes for each of 6.74e9 parameters, 125.5 GiB beside activations: 80 GiB and 32 GiB do not hold them, one card
    # more does
    assert cards == 1
    best = plan(priced(objective="step_time_s"))
    assert best.prediction["cost_usd_per_hour"] == 6.0
    assert best.objective.value < cheap.prediction["step_time_s"]
    per_token = plan(priced(objective="cost_usd_per_million_tokens"))
    tokens = 4 * 4096
    costs = []
    for count in range(1, 5):
        few = priced(search={"recompute": ["full"], "micro_batch": [1, 4]})
        node = few.job.machine.node
        tiers = (node.tiers[0], node.tiers[1].model_copy(update={"count": count}))
        paths = tier_paths(node.model_copy(update={"tiers": tiers}))
        seconds = min(place(layout).step_time_s for layout in few.layouts(paths=paths) if layout.fits)
        costs.append((4 + 0.5 * count) / 3600 * seconds / tokens * 1e6)
    assert per_token.objective.value == pytest.approx(min(costs), rel=1e-6)


def test_limit_of_time():
    free = plan(priced(objective="cost_usd_per_hour"))
    best = plan(priced(objective="step_time_s"))
    between = (free.prediction["step_time_s"] + best.objective.value) / 2
    held = plan(priced(objective="cost_usd_per_hour", slo={"step_time": between}))
    assert held.prediction["step_time_s"] <= between
    (bound,) = [one for one in held.binding if one["constraint"] == "slo.step_time"]
    assert bound["slack"] == pytest.approx(between - held.prediction["step_time_s"])
    assert held.objective.value > free.objective.value
    none = plan(priced(slo={"step_time": best.objective.value / 2}))
    assert none.status == "infeasible"
    (limit,) = none.relaxation
    assert limit["constraint"] == "slo.step_time"
    assert limit["needed"] == pytest.approx(best.objective.value, rel=1e-6)


def test_traffic_is_that_of_zero_infinity():
    """arXiv 2104.07857, section 4: FLOP per byte of parameters, optimizer states and activations.

    Efficiency I B / (I B + peak) is that of computing C after moving M at B, C/peak over C/peak + M/B, with I = C / M.
    """
    scenario = asked(workload={"kind": "finetune", "seq_len": 2048, "global_batch": 8}, search={"recompute": ["full"]})
    peak, rate = 70e12, 40e9
    for layout in scenario.layouts():
        micro, times = int(layout.plan.micro_batch[0]), layout.micro_batches
        everywhere = all_in("cxl")
        everywhere["activations"] = {"hbm": 1 - layout.most_activations, "cxl": layout.most_activations}
        roomy = [path.tier.model_copy(update={"capacity": 1e13, "count": 1}) for path in layout.paths]
        node = scenario.job.machine.node.model_copy(update={"tiers": tuple(roomy)})
        (layout,) = [
            one
            for one in scenario.layouts(paths=tier_paths(node))
            if (one.plan.micro_batch[0], one.plan.zero_stage[0]) == (micro, layout.plan.zero_stage[0])
        ]
        link = 50e9
        by_link = {}
        for things in (("weights", "gradients"), ("activations",)):
            totals = {thing: everywhere[thing] if thing in things else {"hbm": 1.0} for thing in everywhere}
            if "gradients" in things:  # what leaves is updated by the host
                totals |= {thing: {"cxl": 1.0} for thing in STATES}
            elif "gradients" not in things:
                totals |= {thing: {"cxl": 1.0} for thing in (*STATES, "gradients")}
            spent = place(replace(layout, room_bytes=1e15), totals=totals, interleaved=0.0).resource_s
            by_link[things] = sum(
                spent[phase][f"pcie {way}"] for phase in ("forward", "backward") for way in ("in", "out")
            )
        gradients_s = 2 * layout.parameters * times / link
        tokens = micro * 2048
        compute = 8 * layout.parameters * tokens  # two forward passes and a backward one
        moved = (by_link["weights", "gradients"]) * link / times
        eff = compute / peak / (compute / peak + moved / rate)
        assert eff == pytest.approx(
            float(overlapped_efficiency(parameter_intensity(2048, micro), rate, peak)), rel=1e-9
        )
        inner = 12 * 4096**2 * 32  # its count of a layer's parameters
        moved = (by_link["activations",] - gradients_s) * link / times / layout.most_activations
        compute = 8 * inner * tokens
        eff = compute / peak / (compute / peak + moved / rate)
        assert eff == pytest.approx(float(overlapped_efficiency(activation_intensity(4096), rate, peak)), rel=1e-9)


def test_no_layout_is_better_than_what_the_search_proves():
    scenario = asked(search={}, workload={"kind": "finetune", "seq_len": 16384, "global_batch": 8})
    layouts = scenario.layouts()
    every = sorted(one.step_time_s for layout in layouts if (one := place(layout)) is not None)
    assert len(every) > 5
    answer = plan(scenario, top=4)
    listed = [answer.objective.value, *(other["prediction"]["step_time_s"] for other in answer.alternatives)]
    assert listed == pytest.approx(every[:5], rel=1e-6)
