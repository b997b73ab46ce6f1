"""Memory of plans, against the published closed forms and their worked numbers."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_jobs import SC21, architecture, framework, job, machine, plans

from perfmodel.job import Job
from perfmodel.layer import layer_cost, logits_cost
from perfmodel.memory import PARTS, Memory, SavedBytes, available_bytes, host_bytes, memory_of
from perfmodel.parameters import StageParameters, stage_parameters
from perfmodel.pipeline import split_layers
from perfmodel.plan import Plan
from perfmodel.training import predict_step

MIB, GIB = 2.0**20, 2.0**30
GPT3 = architecture("gpt-3-175b")


def number(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def saved_bytes(found: Job, **plan: Any) -> float:
    """Activations that one layer keeps of a micro-batch [bytes]."""
    return number(layer_cost(found, found.architecture.layers[0], plans(plan)).saved_bytes)


def memory(
    found: Job, plan: Plan, parameters: StageParameters | None = None, saved: SavedBytes | None = None
) -> Memory:
    """Memory with parameters or activations given by hand."""
    stages = split_layers(found.architecture.depth, found.architecture.leading, plan.pp, plan.vpp)
    nothing = (0.0,) * len(found.architecture.layers)
    none = SavedBytes(nothing, nothing, nothing, 0.0, 0.0)
    return memory_of(
        found, plan, stages, parameters or stage_parameters(found.architecture, stages, plan), saved or none
    )


# --- activations of a layer: Korthikanti et al., arXiv 2205.05198, table 2


@pytest.mark.parametrize("b", [1, 4])
@pytest.mark.parametrize("t", [1, 2, 4, 8])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("name", "h", "a"), [("gpt-3-175b", 12288, 96), ("megatron-22b", 6144, 64)])
def test_activations_of_a_layer(name: str, h: int, a: int, parallel: bool, t: int, b: int) -> None:
    s = 2048
    found = job(name, ranks=8, runs=SC21, seq_len=s)
    plan = {"tp": t, "dp": 8 // t, "micro_batch": b, "seq_parallel": parallel}
    if parallel:
        none, selective, full = s * b * h / t * (34 + 5 * a * s / h), 34 * s * b * h / t, 2 * s * b * h / t
    else:
        none, selective = s * b * h * (10 + 24 / t + 5 * a * s / (h * t)), s * b * h * (10 + 24 / t)
        full = 2 * s * b * h
    assert saved_bytes(found, **plan) == pytest.approx(none, rel=1e-12)
    assert saved_bytes(found, **plan, recompute="selective") == pytest.approx(selective, rel=1e-12)
    assert saved_bytes(found, **plan, recompute="full") == pytest.approx(full, rel=1e-12)


@pytest.mark.parametrize(
    ("recompute", "parallel", "mib"),
    [
        ("none", False, 552),
        ("none", True, 342),
        ("selective", False, 312),
        ("selective", True, 102),
        ("full", False, 48),
    ],
)
def test_a_layer_of_175b(recompute: str, parallel: bool, mib: int) -> None:
    # s b h = 24 Mi, 5 a s / h = 80, t = 8: (10 + 3 + 10) x 24, (34 + 80)/8 x 24, 13 x 24, 34/8 x 24, 2 x 24 MiB.
    found = job(GPT3, ranks=8, runs=SC21)
    assert saved_bytes(found, tp=8, recompute=recompute, seq_parallel=parallel) == mib * MIB


def test_activations_are_shared_over_context_parallel_ranks() -> None:
    found = job("llama-3.1-8b", ranks=8, seq_len=8192)
    whole, share = saved_bytes(found, dp=8), saved_bytes(found, cp=8)
    assert share == pytest.approx(whole / 8, rel=1e-12)


def test_a_flash_kernel_keeps_no_scores() -> None:
    # Llama 3.1 8B, bytes per token without recomputation: two norms and the inputs of projections and network, 2 h
    # each; q 2 x 4096, k and v 2 x 2048, output 2 x 4096, softmax statistics 4 x 32; gate and up 2 x 2 x 14336, their
    # product 2 x 14336. Twice the sequence is twice the bytes.
    per_token = 4 * 2 * 4096 + 2 * (4096 + 2048) + 2 * 4096 + 4 * 32 + 6 * 14336
    assert saved_bytes(job("llama-3.1-8b", ranks=1, seq_len=4096)) == per_token * 4096
    assert saved_bytes(job("llama-3.1-8b", ranks=1, seq_len=8192)) == per_token * 8192


def test_logits_of_the_last_stage() -> None:
    # arXiv 2205.05198, section 4.3: 4 s b h / t (1 + V/h) for the last norm, the input of the logits and the 32-bit
    # softmax (with sequence parallelism).
    s, b, h, t, V = 2048, 2, 12288, 8, 50257
    found = job(GPT3, ranks=8, runs=SC21)
    head = logits_cost(found, plans({"tp": t, "micro_batch": b, "seq_parallel": True})).saved_bytes
    assert number(head) == pytest.approx(4 * s * b * h / t * (1 + V / h), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.sampled_from(["gpt-3-175b", "llama-3.1-70b", "mixtral-8x7b"]))
def test_recomputing_more_never_keeps_more(tp: int, unfused: bool, name: str) -> None:
    found = job(name, ranks=8, runs=SC21 if unfused else None)
    plan = {"tp": tp, "dp": 8 // tp, "seq_parallel": tp > 1}
    none, selective, full = (saved_bytes(found, **plan, recompute=way) for way in ("none", "selective", "full"))
    assert 0 < full <= selective <= none


# --- what a stage holds in flight


@pytest.mark.parametrize(
    ("pp", "vpp", "factor"), [(8, 1, 1), (8, 2, 1 + 7 / 16), (8, 4, 1 + 7 / 32), (12, 8, 1 + 11 / 96)]
)
def test_the_first_stage_holds_all_layers_worth(pp: int, vpp: int, factor: float) -> None:
    # 102 MiB x 96 layers = 9.6 GiB with at least pp micro-batches under 1F1B; interleaving holds 1 + (pp - 1)/(pp vpp)
    # of that (arXiv 2205.05198, section 4.2.3).
    found = job(GPT3, ranks=pp, runs=SC21, on=machine(2))
    plan = plans({"tp": 1, "pp": pp, "vpp": vpp, "micro_batch": 1})
    held = memory(found, plan, saved=SavedBytes((102 * MIB,), (0.0,), (0.0,), 0.0, 0.0))
    assert number(held.activations) == pytest.approx(factor * 102 * 96 * MIB, rel=1e-12)
    assert pytest.approx(9.6, abs=0.05) == 102 * 96 * MIB / GIB


def test_fewer_micro_batches_than_stages() -> None:
    # Four micro-batches on eight stages: four are in flight on the first, 12 layers each.
    found = job(GPT3, ranks=8, global_batch=4)
    held = memory(found, plans({"pp": 8}), saved=SavedBytes((MIB,), (0.0,), (0.0,), 0.0, 0.0))
    assert number(held.activations) == 4 * 12 * MIB


def test_ends_belong_to_their_stages() -> None:
    # One stage keeps the embedding's mask and the head once; of two, the first keeps two micro-batches' masks.
    found = job(GPT3, ranks=2, runs=SC21)
    saved = SavedBytes((MIB,), (0.0,), (0.0,), 64 * MIB, 4096 * MIB)
    assert number(memory(found, plans({"dp": 2}), saved=saved).activations) == (96 + 64 + 4096) * MIB
    two = plans({"pp": 2})
    assert number(memory(found, two, saved=saved).activations) == (48 + 4096) * MIB
    light = replace(saved, head=0.0)
    assert number(memory(found, two, saved=light).activations) == 2 * (48 + 64) * MIB


def test_a_prediction_module_is_one_more_layer_and_head() -> None:
    # DeepSeek-V3, arXiv 2412.19437, section 2.2; 61 layers on 16 stages leave two on the last.
    # The head is made so large that the last stage needs most.
    plan, saved = plans({"pp": 16}), SavedBytes((1.0 * MIB, 4.0 * MIB), (0.0, 0.0), (0.0, 0.0), 0.0, 2**21 * MIB)
    with_module, without = (
        memory(job(name, ranks=16), plan, saved=saved) for name in ("deepseek-v3", "deepseek-v3-without-mtp")
    )
    assert number(without.activations) == (2 * 4 + 2**21) * MIB
    assert number(with_module.activations) == (3 * 4 + 2 * 2**21) * MIB


def test_recomputed_activations_of_one_layer_come_back() -> None:
    found = job(GPT3, ranks=8, runs=SC21)
    held = predict_step(found, plans({"tp": 8, "seq_parallel": True, "recompute": "full"})).memory
    assert number(held.workspace) == 342 * MIB
    selective = predict_step(found, plans({"tp": 8, "seq_parallel": True, "recompute": "selective"})).memory
    assert number(selective.workspace) == (342 - 102) * MIB


# --- model states


def states(runs: Any, parameters: float, experts: float = 0.0, **plan: Any) -> float:
    """Weights, gradients and optimizer of a rank that holds so many parameters [bytes]."""
    plan = {"dp": 64, **plan}
    found = job(GPT3, ranks=64, runs=runs)
    stages = split_layers(96, 0, np.array([1]), np.array([1]))
    counted = stage_parameters(GPT3, stages, plans(plan))
    counted = replace(counted, dense=(parameters,) * 3, experts=(experts,) * 3)
    held = memory(found, plans(plan), counted)
    return number(held.weights + held.gradients + held.optimizer)


ZERO = framework(states={"weight": 2, "gradient": 2, "optimizer": 12, "gradient_traffic": 2})


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero(stage: int, gigabytes: float) -> None:
    # arXiv 1910.02054, figure 1: 7.5B parameters on 64 ranks.
    assert states(ZERO, 7.5e9, zero_stage=stage) / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("dp", [1, 2, 16, 64])
def test_megatron_bytes_per_parameter(dp: int) -> None:
    # Megatron-LM with 32-bit gradients: 18 bytes, or 6 + 12/dp with the distributed optimizer.
    assert states(None, 1e9, dp=dp, tp=64 // dp) == 18e9
    assert states(None, 1e9, dp=dp, tp=64 // dp, zero_stage=1) == pytest.approx((6 + 12 / dp) * 1e9, rel=1e-12)


def test_context_parallel_ranks_share_states_too() -> None:
    assert states(ZERO, 1e9, dp=8, cp=8, zero_stage=3) == 16e9 / 64


def test_experts_are_shared_by_the_ranks_that_hold_the_same() -> None:
    # 64 ranks of a stage, experts over 16: each is held 4 times; what is dense 8 times (tp 8).
    sixteenth = states(ZERO, 0.0, 1e9, tp=8, dp=8, ep=16, zero_stage=1)
    assert sixteenth == pytest.approx((4 + 12 / 4) * 1e9, rel=1e-12)
    assert states(ZERO, 1e9, 1e9, tp=8, dp=8, ep=16, zero_stage=3) == pytest.approx(16e9 / 4 + 16e9 / 8, rel=1e-12)


def test_offloaded_states_are_the_host_s() -> None:
    # ZeRO-Offload, arXiv 2101.06840: 4 bytes a parameter stay, 12 go.
    assert states(ZERO, 1e9, offload="optimizer") == 4e9
    found = job("llama-3.1-8b", ranks=8)
    near = predict_step(found, plans({"dp": 8, "zero_stage": 1})).memory
    away = predict_step(found, plans({"dp": 8, "zero_stage": 1, "offload": "optimizer"})).memory
    assert number(near.optimizer) == number(away.offloaded) > 0
    assert number(near.offloaded) == number(away.optimizer) == 0
    assert number(near.allocated_peak - away.allocated_peak) == pytest.approx(number(near.optimizer), rel=1e-12)
    # 1 TB for eight accelerators.
    assert host_bytes(found) == 1e12 / 8
    assert host_bytes(job("llama-3.1-8b", ranks=8, on=machine(1, host=False))) == 0


def test_what_the_driver_takes_is_not_the_job_s() -> None:
    runs = framework(reserve={"context": 2 * GIB, "fragmentation": 0.1})
    found = job("llama-3.1-8b", ranks=8, runs=runs)
    assert available_bytes(found) == 80e9 - 2 * GIB
    held = predict_step(found, plans({"dp": 8})).memory
    assert number(held.reserved_peak) == pytest.approx(1.1 * number(held.allocated_peak), rel=1e-12)


# --- parameters of the stages

MODELS = (
    "gpt-3-175b", "megatron-7.5b", "llama-3.1-8b", "llama-3.1-405b", "mixtral-8x7b", "deepseek-v3-without-mtp",
    "deepseek-v3", "gemma-2-9b", "qwen3-30b-a3b", "gpt-oss-20b",
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_stages_hold_the_model(data: st.DataObject) -> None:
    model = architecture(data.draw(st.sampled_from(MODELS)))
    experts = max(group.feed_forward.experts for group in model.layers)
    tp = data.draw(st.sampled_from([1, 2, 4, 8]))
    ep = data.draw(st.sampled_from([n for n in (1, 2, 4, 8, 16, 64) if experts and experts % n == 0] or [1]))
    pp = data.draw(st.integers(1, 16))
    vpp = data.draw(st.integers(1, 4)) if pp > 1 else 1
    plan = plans({"tp": tp, "pp": pp, "ep": ep, "vpp": vpp, "dp": 64})
    try:
        stages = split_layers(model.depth, model.leading, plan.pp, plan.vpp)
    except ValueError:
        return
    found = stage_parameters(model, stages, plan)
    times = (0, 0, 1) if pp == 1 else (1, pp - 2, 1)
    dense = sum(n * number(part) for n, part in zip(times, found.dense, strict=True))
    routed = sum(n * number(part) for n, part in zip(times, found.experts, strict=True))
    # every rank holds norms and router; of a tied table the first and the last stage have one each
    hidden = model.hidden
    whole = [(group.count, group) for group in model.layers] + [(model.mtp_layers, model.layers[-1])]
    copied = sum(
        count * (group.norm_parameters + (hidden + group.feed_forward.router_bias) * group.feed_forward.experts)
        for count, group in whole
    )
    copied += model.final_norm_parameters + 3 * hidden * model.mtp_layers
    second = model.vocab * hidden if model.tied_embeddings and pp > 1 else 0
    expected = model.parameters + model.mtp_parameters + second + (tp - 1) * copied
    assert dense * tp + routed * ep == pytest.approx(expected, rel=1e-12)


def test_ends_of_the_model_stand_at_the_ends_of_the_pipeline() -> None:
    plan = plans({"tp": 8, "pp": 4})
    stages = split_layers(32, 0, plan.pp, plan.vpp)
    found = stage_parameters(architecture("llama-3.1-8b"), stages, plan)
    table = 128_256 * 4096 / 8
    first, inner, last = (number(part) for part in found.dense)
    assert (first - inner, last - inner) == (table, table + 4096)
    # eight layers of 218,103,808 weights over 8 ranks, and two norms
    assert inner == 8 * (218_103_808 / 8 + 2 * 4096)


# --- what holds of any plan

MIXTURE, DENSE, OLD = (
    job("mixtral-8x7b", on=machine(8)),
    job("llama-3.1-8b", on=machine(8)),
    job("megatron-7.5b", runs=SC21, on=machine(8)),
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Job, dict[str, Any]]:
    """A job on 64 ranks and a plan for it."""
    found = draw(st.sampled_from([MIXTURE, DENSE, OLD]))
    tp, pp, cp = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    vpp = draw(st.sampled_from([1, 2, 4])) if pp > 1 else 1
    switches = {
        "ep": draw(st.sampled_from([1, 2, 4])) if found is MIXTURE else 1,
        "zero_stage": draw(st.integers(0, 3)),
        "seq_parallel": tp > 1 and (found is MIXTURE or draw(st.booleans())),
        "recompute": draw(st.sampled_from(["none", "selective", "full"])),
        "offload": draw(st.sampled_from(["none", "optimizer"])),
        "micro_batch": draw(st.sampled_from([1, 2])),
    }
    return found, {"tp": tp, "pp": pp, "cp": cp, "dp": 64 // (tp * pp * cp), "vpp": vpp, **switches}


@settings(max_examples=20, deadline=None)
@given(rows())
def test_parts_are_never_negative_and_add_up(found: Any) -> None:
    problem, row = found
    held = predict_step(problem, plans(row)).memory
    parts = [number(getattr(held, name)) for name in PARTS]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(number(held.allocated_peak), rel=1e-12)
    assert {*PARTS, "allocated_peak", "reserved_peak", "offloaded"} == {field.name for field in fields(Memory)}


@settings(max_examples=20, deadline=None)
@given(rows(), st.sampled_from([2, 4]))
def test_more_ranks_never_need_more_of_each(found: Any, factor: int) -> None:
    # Twice the data-parallel ranks, everything shared: a rank's part of the states halves, the rest stays.
    problem, row = found
    stages = [{**row, "zero_stage": stage} for stage in (1, 2, 3)]
    near = predict_step(problem, plans(*stages)).memory
    bigger = replace(problem, ranks=64 * factor)
    away = predict_step(bigger, plans(*({**stage, "dp": row["dp"] * factor} for stage in stages))).memory
    assert np.all(away.allocated_peak <= near.allocated_peak * (1 + 1e-12))


@settings(max_examples=20, deadline=None)
@given(rows())
def test_sharing_more_never_keeps_more(found: Any) -> None:
    problem, row = found
    stages = [{**row, "zero_stage": stage, "offload": "none"} for stage in range(4)]
    held = predict_step(problem, plans(*stages)).memory
    kept = held.allocated_peak - held.communication
    assert np.all(kept[1:] <= kept[:-1] * (1 + 1e-12))


@settings(max_examples=20, deadline=None)
@given(rows())
def test_recomputing_more_never_keeps_more_in_flight(found: Any) -> None:
    problem, row = found
    held = predict_step(problem, plans(*({**row, "recompute": way} for way in ("none", "selective", "full")))).memory
    kept = held.allocated_peak - held.workspace
    assert np.all(kept[1:] <= kept[:-1] * (1 + 1e-12))
