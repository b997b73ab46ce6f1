"""The time of a training step: worked by hand, and by what must hold of every plan."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_jobs import (
    BANDWIDTH,
    PEAK,
    SC21,
    architecture,
    collectives,
    framework,
    job,
    machine,
    measured_kernels,
    plans,
)

from perfmodel.architecture import model_flops_per_token
from perfmodel.job import Job
from perfmodel.memory import PARTS
from perfmodel.pipeline import splits
from perfmodel.plan import CHOICES, FIELDS, plan_from_rows, plan_to_dict
from perfmodel.terms import Term, at, to_dict
from perfmodel.training import host_rates, predict_step
from perfmodel.utilisation import utilisation

# --- jobs

# Every constant away from its neutral value, so that nothing drops out.
REAL_LINKS = collectives(
    launch_s=5e-6,
    pipelining=1.2,
    step=2e-6,
    bandwidth=0.85,
    own_copy=0.4,
    all_to_all=0.8,
    in_network_all_reduce=1.2,
)


def real(name: str, **runs: Any) -> Job:
    found = job(
        name,
        kernels=measured_kernels(architecture(name)),
        links=REAL_LINKS,
        runs=framework(host_per_kernel=4e-6, step_overhead=0.01, **runs),
        seq_len=4096,
    )
    return replace(
        found,
        constants=replace(
            found.constants, overlap_slowdown=1.1, attention_backward=0.6, expert_products=0.7, sustained=0.8
        ),
    )


JOBS = (
    real("megatron-7.5b", attention="unfused", dropout=True),
    real("llama-3.1-8b", overlap_pp=True, selective="per-operator", sharded_bandwidth_share=0.7),
    real("mixtral-8x7b"),
    real("deepseek-v3", overlap_pp=True),
)


def layouts(found: Job) -> list[dict[str, int]]:
    """Every layout of the 64 ranks that a model's sizes allow."""
    model = found.architecture
    heads = min(group.attention.heads for group in model.layers)
    experts = max(group.feed_forward.experts for group in model.layers)
    rows = []
    for tp, pp, cp, vpp, micro in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16), (1, 2), (1, 2, 4), (1, 2, 4)):
        dp = 64 // (tp * pp * cp)
        if (
            not dp
            or heads % tp
            or found.global_batch % (dp * micro)
            or not splits(model.depth, *np.array([[pp], [vpp]]))
        ):
            continue
        if vpp > 1 and (pp == 1 or found.global_batch // (dp * micro) % pp):
            continue
        for ep in (1, 2, 4, 8, 32) if experts else (1,):
            if (experts % ep == 0 and (tp * cp * dp) % ep == 0) or ep == 1:
                rows.append({"tp": tp, "pp": pp, "dp": dp, "cp": cp, "ep": ep, "vpp": vpp, "micro_batch": micro})
    return rows


LAYOUTS = tuple(map(layouts, JOBS))


@st.composite
def rows_of(draw: st.DrawFn, which: int, **fixed: Any) -> dict[str, Any]:
    """A plan that can run."""
    found = JOBS[which]
    row: dict[str, Any] = dict(draw(st.sampled_from(LAYOUTS[which])))
    mixture = any(group.feed_forward.experts for group in found.architecture.layers)
    parallel = row["tp"] > 1 and (mixture or draw(st.booleans()))
    deals = found.architecture.layers[0].attention.heads % (row["tp"] * row["cp"]) == 0
    return {
        **row,
        "zero_stage": draw(st.integers(0, 3)),
        "seq_parallel": parallel,
        "recompute": draw(st.sampled_from(CHOICES["recompute"])),
        "offload": draw(st.sampled_from(CHOICES["offload"])),
        "overlap_dp": draw(st.booleans()),
        "overlap_tp": parallel and draw(st.booleans()),
        "rank_order": draw(st.sampled_from(CHOICES["rank_order"])),
        "cp_style": draw(st.sampled_from([style for style in CHOICES["cp_style"] if deals or style != "ulysses"])),
        **fixed,
    }


@st.composite
def problems(draw: st.DrawFn, **fixed: Any) -> tuple[int, dict[str, Any]]:
    """Which job, and a plan for it."""
    which = draw(st.integers(0, len(JOBS) - 1))
    return which, draw(rows_of(which, **fixed))


def number(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def seconds(found: Job, *rows: dict[str, Any]) -> list[float]:
    return np.asarray(predict_step(found, plans(*rows), explain=False).step.seconds).tolist()


def parts(found: Job, **row: Any) -> dict[str, Term]:
    """The terms of a step by name."""
    return {child.name: child for child in at(predict_step(found, plans(row)).step, 0).children}


def unlimited(found: Job, *, memory: bool = True, links: bool = True) -> Job:
    """The job with memory or links so fast that they take no time."""
    if links:
        found = replace(found, levels=tuple(replace(level, bandwidth=1e30, latency=0.0) for level in found.levels))
    return faster(found, memory=1e18) if memory else found


def faster(found: Job, *, peak: float = 1.0, memory: float = 1.0, links: float = 1.0, latency: float = 1.0) -> Job:
    """The job on a machine that is so many times as good; `latency` divides."""
    chip = found.machine.accelerator
    described = chip.memory.model_copy(update={"bandwidth": chip.memory.bandwidth * memory})
    return replace(
        found,
        machine=replace(
            found.machine,
            accelerator=chip.model_copy(
                update={"memory": described, "peak": {name: rate * peak for name, rate in chip.peak.items()}}
            ),
        ),
        levels=tuple(
            replace(level, bandwidth=level.bandwidth * links, latency=level.latency / latency) for level in found.levels
        ),
    )


# --- worked by hand


def test_an_iteration_of_gpt_is_its_arithmetic() -> None:
    # SC21 (arXiv 2104.04473), equation 3, with full recomputation: 96 B s l h^2 (1 + s/6h + V/16lh) FLOPs, shared by
    # all ranks where nothing but arithmetic takes time and there is one stage.
    B, s, layers, h, V = 256, 2048, 36, 4096, 51200
    found = unlimited(job("megatron-7.5b", runs=SC21))
    (step,) = seconds(found, {"tp": 8, "dp": 8, "recompute": "full"})
    flops = 96 * B * s * layers * h**2 * (1 + s / (6 * h) + V / (16 * layers * h))
    assert step == pytest.approx(flops / (64 * PEAK), rel=1e-6)


def test_a_pipeline_waits_for_its_slowest_stage() -> None:
    # 4 stages of 9 layers, tp 8, dp 2, 128 micro-batches of one; the last stage has the logits as well. A layer takes
    # 3 x 24 s h^2 (1 + s/6h)/8, logits 3 x 2 s h V/8.
    s, h, V = 2048, 4096, 51200
    layer, logits = 72 * s * h**2 * (1 + s / (6 * h)) / 8 / PEAK, 6 * s * h * V / 8 / PEAK
    found = unlimited(job("megatron-7.5b", runs=SC21))
    time = parts(found, tp=8, pp=4, dp=2)
    assert time["pipeline stage"].seconds == pytest.approx(128 * (9 * layer + logits), rel=1e-6)
    assert time["pipeline bubble"].seconds == pytest.approx(3 * 9 * layer, rel=1e-6)
    # three chunks a stage: a third of the bubble
    time = parts(found, tp=8, pp=4, dp=2, vpp=3)
    assert time["pipeline bubble"].seconds == pytest.approx(9 * layer, rel=1e-6)


def test_tensor_parallel_traffic() -> None:
    # Korthikanti et al. (arXiv 2205.05198), section 4.2: a layer reduces 2 s b h bytes twice forward and twice
    # backward; 2 x 7/8 of them pass each of 8 ranks at 450 GB/s. With sequence parallelism a gather and a scatter, half
    # each, and one more gather backward for each of two blocks: 10 halves for 8. Embedding and logits reduce once each.
    s, h, layers, n = 2048, 4096, 36, 32
    half = 7 / 8 * 2 * s * h / 450e9
    quiet = unlimited(job("megatron-7.5b", runs=SC21), links=False)
    quiet = replace(quiet, levels=tuple(replace(level, latency=0.0) for level in quiet.levels))

    def traffic(on: Job = quiet, **row: Any) -> float:
        stage = parts(on, tp=8, dp=8, **row)["pipeline stage"]
        return float(sum(term.seconds for term in walk(stage) if term.name == "tensor-parallel communication"))

    assert traffic() == pytest.approx(n * half * (8 * layers + 4), rel=1e-9)
    assert traffic(seq_parallel=True) == pytest.approx(n * half * (10 * layers + 4), rel=1e-9)
    # Full recomputation repeats the forward pass's: 4 halves more in either case.
    assert traffic(recompute="full") == pytest.approx(n * half * (12 * layers + 4), rel=1e-9)
    assert traffic(seq_parallel=True, recompute="full") == pytest.approx(n * half * (14 * layers + 4), rel=1e-9)
    # Overlapped, the first of eight pieces shows; arithmetic at a tenth of the peak takes longer than the rest.
    slow = faster(quiet, peak=0.1)
    assert traffic(slow, seq_parallel=True, overlap_tp=True) == pytest.approx(
        n * half * (10 / 8 * layers + 4), rel=1e-9
    )


def walk(term: Term) -> list[Term]:
    return [term, *(below for child in term.children for below in walk(child))]


def test_data_parallel_traffic() -> None:
    # Llama 3.1 8B on 64 ranks, 32-bit gradients and 16-bit weights on the wire, bus min(450, 8 x 50) = 400 GB/s; 63/64
    # of the bytes pass each rank, twice for an all-reduce. ZeRO, arXiv 1910.02054, section 7: stages 0 to 2 move
    # gradients and weights once a step (stage 2: gradients once a micro-batch), stage 3 weights twice and gradients
    # once a micro-batch, of which there are four. An all-reduce over two trees passes 2 x 7/8 of the bytes through the
    # adapters, 400 GB/s, and all of them twice along the chain inside a node, 450 GB/s: the chain is slower.
    found = unlimited(job("llama-3.1-8b"), links=False)
    found = replace(found, levels=tuple(replace(level, latency=0.0) for level in found.levels))
    byte = 63 / 64 * found.architecture.parameters / 400e9
    chain = found.architecture.parameters / 450e9 / byte
    expected = {0: (2 * 4 * chain, 0), 1: (4, 2), 2: (4 * 4, 2), 3: (4 * (4 + 2), 4 * 2)}
    for stage, (gradients, weights) in expected.items():
        time = parts(found, dp=64, zero_stage=stage, overlap_dp=False)
        assert time["gradient traffic"].seconds == pytest.approx(gradients * byte, rel=1e-9)
        assert time["weight traffic"].seconds == pytest.approx(weights * byte, rel=1e-9)
        assert time["gradient traffic"].hidden_seconds == time["weight traffic"].hidden_seconds == 0


def test_experts_reduce_over_the_ranks_that_hold_the_same() -> None:
    # Mixtral, tp 1, ep 8 inside a node: experts over 8 ranks on 8 nodes, one each, at 50 GB/s; the rest over 64, twice
    # along the chain inside a node, 450 GB/s.
    found = unlimited(job("mixtral-8x7b"), links=False)
    found = replace(found, levels=tuple(replace(level, latency=0.0) for level in found.levels))
    routed = 32 * 3 * 4096 * 14336
    dense = found.architecture.parameters - 8 * routed
    time = parts(found, dp=64, ep=8, overlap_dp=False)["gradient traffic"].seconds
    assert time == pytest.approx(2 * 4 * (dense / 450e9 + 7 / 8 * routed / 50e9), rel=1e-9)


def test_a_layer_s_experts_exchange_tokens_four_times() -> None:
    # There and back, forward and backward, in 16 bits: 2 x 4096 bytes of 2048 tokens to the 8 (1 - (7/8)^2) = 15/8
    # ranks that their two experts lie on, 7/8 of it to others, over 450 GB/s; 32 layers, four micro-batches. Full
    # recomputation: six times.
    found = unlimited(job("mixtral-8x7b"), links=False)
    found = replace(found, levels=tuple(replace(level, latency=0.0) for level in found.levels))
    once = 7 / 8 * 15 / 8 * 2 * 4096 * 2048 / 450e9
    for recompute, times in (("none", 4), ("full", 6)):
        stage = parts(found, dp=64, ep=8, recompute=recompute)["pipeline stage"]
        (exchange,) = (term for term in walk(stage) if term.name == "expert all-to-all")
        assert exchange.seconds == pytest.approx(4 * 32 * times * once, rel=1e-9)


def test_stages_send_activations_and_gradients() -> None:
    # 16 stages of 4 ranks on 8 nodes: 2 s h bytes to the next stage at 50 GB/s, forth and back for each of 64
    # micro-batches, and 15 hops each way to fill and drain.
    found = unlimited(job("llama-3.1-8b"), links=False)
    found = replace(found, levels=tuple(replace(level, latency=0.0) for level in found.levels))
    once = 2 * 2048 * 4096 / 50e9
    row = {"tp": 1, "dp": 4, "pp": 16}
    assert parts(found, **row)["pipeline sends"].seconds == pytest.approx((2 * 64 + 2 * 15) * once, rel=1e-9)
    # Split over tp ranks with sequence parallelism (SC21, section 4.1, scatter/gather).
    split = parts(found, tp=4, dp=1, pp=16, seq_parallel=True)["pipeline sends"].seconds
    assert split == pytest.approx((2 * 256 + 30) * once / 4, rel=1e-9)
    # An interleaved schedule sends for each of its two chunks, and hides all but the filling where the framework does.
    overlapping = replace(found, framework=framework(overlap_pp=True))
    assert parts(overlapping, **row)["pipeline sends"].hidden_seconds == 0
    behind = parts(overlapping, **row, vpp=2)["pipeline sends"]
    assert behind.seconds == pytest.approx(30 * once, rel=1e-9)
    assert behind.hidden_seconds == pytest.approx(2 * 128 * once, rel=1e-9)


def test_sends_hide_behind_no_more_work_than_there_is() -> None:
    # A network a million times slower cannot hide: the step is as long as its sends.
    found = job("llama-3.1-8b", runs=framework(overlap_pp=True))
    slow = faster(found, links=1e-6)
    row = {"dp": 4, "pp": 16, "zero_stage": 0, "overlap_dp": False}
    assert seconds(slow, row)[0] >= (2 * 64 + 2 * 15) * 2 * 2048 * 4096 / 50e3


def test_the_optimizer_streams_its_states() -> None:
    # 2 x 4 bytes of gradients, 2 x 12 of states, 2 of weights; a 64th of them with stage 1.
    found = job("llama-3.1-8b")
    for stage, share in ((0, 1), (1, 64)):
        time = parts(found, dp=64, zero_stage=stage)["optimizer"].seconds
        assert time == pytest.approx(34 * found.architecture.parameters / share / BANDWIDTH, rel=1e-6)
    # Offloaded: 34 bytes a parameter over the host's 200 GB/s shared by eight, slower than 6 over 25 GB/s.
    assert host_rates(found) == (25e9, 25e9)
    away = parts(found, dp=64, zero_stage=1, offload="optimizer")["optimizer"].seconds
    assert away == pytest.approx(34 * found.architecture.parameters / 64 / 25e9, rel=1e-6)
    with pytest.raises(ValueError, match="box describes no tier named ddr"):
        host_rates(job("llama-3.1-8b", on=machine(8, host=False)))


def test_a_host_that_launches_slowly_sets_the_pace() -> None:
    quick, slow = (job("gpt-2", ranks=8, runs=framework(host_per_kernel=time)) for time in (0.0, 1e-3))
    row = {"dp": 8, "micro_batch": 1}
    assert parts(quick, **row)["pipeline stage"].children[-1].seconds == 0
    # 12 layers of at least ten kernels forward and ten backward, 32 micro-batches
    assert seconds(slow, row)[0] > 32 * 12 * 20 * 1e-3
    # The accelerator's own time adds as in a norm of order three: nearly nothing.
    busy = seconds(quick, row)[0]
    kernels = parts(slow, **row)["pipeline stage"].seconds
    assert kernels <= parts(faster(slow, peak=1e6, memory=1e6, links=1e6), **row)["pipeline stage"].seconds + busy


def test_utilisation() -> None:
    # Llama 3.1 8B, tokens of 2048: 3 x (2 x 32 x 218,103,808 + 32 layers of 2 x 32 x 256 x 1024 + 2 x 4096 x 128256).
    # Hardware FLOPs add a forward pass of the attention (selective), or of the layers (full, logits not).
    layers, attention, logits = 64 * 218_103_808, 32 * 2 * 32 * 256 * 1024, 2 * 4096 * 128_256
    found, tokens = job("llama-3.1-8b"), 256 * 2048
    model = 3 * (layers + attention + logits)
    for recompute, again in (("none", 0), ("selective", attention), ("full", layers + attention)):
        mfu, hfu = utilisation(found, plans({"dp": 64, "recompute": recompute}), np.array([10.0]))
        assert mfu == pytest.approx(model * tokens / (10 * 64 * PEAK), rel=1e-12)
        assert hfu == pytest.approx((model + again) * tokens / (10 * 64 * PEAK), rel=1e-12)


def test_one_accelerator_talks_to_nobody() -> None:
    found = job("gpt-2", ranks=1, global_batch=8)
    time = parts(found, dp=1)
    assert not found.levels
    assert {term.name for term in time.values() if term.seconds} == {"pipeline stage", "optimizer"}


@pytest.mark.parametrize("order", CHOICES["rank_order"])
@pytest.mark.parametrize(("tp", "pp", "dp", "cp", "ep"), [(2, 4, 4, 2, 2), (2, 2, 8, 2, 16), (1, 4, 8, 2, 8)])
def test_every_order_deals_every_rank_out_once(order: str, tp: int, pp: int, dp: int, cp: int, ep: int) -> None:
    plan = plans({"tp": tp, "pp": pp, "dp": dp, "cp": cp, "ep": ep, "rank_order": order})

    def places(*rows: tuple[Any, Any]) -> list[int]:
        found = [0]
        for size, stride in rows:
            found = [place + int(stride[0]) * i for place in found for i in range(int(np.asarray(size).flat[0]))]
        return found

    stage = ((plan.tp, plan.tp_stride), (plan.cp, plan.cp_stride), (plan.dp, plan.dp_stride))
    assert sorted(places(*stage, (plan.pp, plan.pp_stride))) == list(range(64))
    # the experts of a stage, and the ranks that hold the same ones, are the ranks of the stage
    size, stride, rows, apart = plan.expert_shape
    same = plan.expert_replica_shape
    assert int(size[0]) * int(rows[0]) == ep
    found = places((size, stride), (rows, apart), (same[0], same[1]), (same[2], same[3]))
    assert sorted(found) == sorted(places(*stage))


# --- what holds of every plan


def check_sums(node: dict[str, Any]) -> None:
    children = node.get("children", [])
    if children:
        assert sum(child["seconds"] for child in children) == pytest.approx(node["seconds"], rel=1e-9, abs=1e-15)
    for child in children:
        assert child["seconds"] >= -1e-12 * node["seconds"]
        if "hidden_seconds" in child:
            assert child["seconds"] == 0
            assert child["hidden_seconds"] > 0
        check_sums(child)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_the_breakdown_adds_up(problem: Any) -> None:
    which, row = problem
    found = JOBS[which]
    step = predict_step(found, plans(row)).step
    written = to_dict(at(step, 0))
    assert written["seconds"] == number(step.seconds) > 0
    assert {child["name"] for child in written["children"]} >= {"pipeline stage", "optimizer", "host work per step"}
    check_sums(written)


several = st.integers(0, len(JOBS) - 1).flatmap(
    lambda which: st.tuples(st.just(which), st.lists(rows_of(which), min_size=2, max_size=6))
)


@settings(max_examples=20, deadline=None)
@given(several, st.randoms())
def test_many_plans_at_once_are_the_plans_one_by_one(problem: Any, random: Any) -> None:
    # The search costs plans in one array without their leaves; explaining costs one plan with them.
    which, rows = problem
    found = JOBS[which]
    together = predict_step(found, plans(*rows), explain=False)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = predict_step(found, plans(*(rows[i] for i in order)), explain=False)
    for i, row in enumerate(rows):
        alone = predict_step(found, plans(row))
        assert together.step.seconds[i] == pytest.approx(number(alone.step.seconds), rel=1e-12)
        assert shuffled.step.seconds[order.index(i)] == pytest.approx(number(alone.step.seconds), rel=1e-12)
        for mine, theirs in zip(at(together.step, i).children, at(alone.step, 0).children, strict=True):
            assert (mine.name, mine.seconds) == (theirs.name, pytest.approx(theirs.seconds, rel=1e-12, abs=1e-18))
            assert mine.hidden_seconds == pytest.approx(theirs.hidden_seconds, rel=1e-12, abs=1e-18)
        for name in (*PARTS, "allocated_peak", "reserved_peak", "offloaded"):
            assert getattr(together.memory, name)[i] == pytest.approx(number(getattr(alone.memory, name)), rel=1e-12)


def test_a_plan_by_numbers_broadcasts() -> None:
    one = plans({"dp": 64})
    many = replace(one, micro_batch=np.array([1, 2, 4]))
    assert len(many) == 3
    assert predict_step(JOBS[1], many, explain=False).step.seconds.tolist() == pytest.approx(
        seconds(JOBS[1], *({"dp": 64, "micro_batch": size} for size in (1, 2, 4))), rel=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(1.0, 20.0), st.sampled_from(["peak", "memory", "links", "latency"]))
def test_a_better_machine_is_never_slower(problem: Any, factor: float, what: str) -> None:
    # Where another stage becomes the slowest, data-parallel traffic hides behind that one's passes, which may be a
    # little shorter backwards and longer forwards; elsewhere nothing may get slower at all.
    which, row = problem
    found = JOBS[which]
    tolerance = 0.01 if row["pp"] > 1 and row["overlap_dp"] else 1e-9
    assert seconds(faster(found, **{what: factor}), row)[0] <= seconds(found, row)[0] * (1 + tolerance)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_no_step_beats_the_arithmetic(problem: Any) -> None:
    which, row = problem
    found = JOBS[which]
    # All kernels at their best efficiency; what the model needs is less than what any plan computes.
    tokens = found.global_batch * found.seq_len
    ideal = model_flops_per_token(found.architecture, found.seq_len) * tokens / (64 * PEAK * 0.7)
    # The two products that join a prediction module's inputs are left out of the operators.
    joined = found.architecture.mtp_layers * 12 * found.architecture.hidden**2 * tokens / (64 * PEAK * 0.7)
    assert seconds(found, row)[0] >= ideal - joined


@settings(max_examples=20, deadline=None)
@given(problems())
def test_recomputing_more_takes_longer(problem: Any) -> None:
    which, row = problem
    found = JOBS[which]
    ways = [{**row, "recompute": way} for way in CHOICES["recompute"]]
    none, selective, full = seconds(found, *ways)
    assert none < selective < full


@settings(max_examples=20, deadline=None)
@given(problems())
def test_sharing_more_moves_more(problem: Any) -> None:
    which, row = problem
    found = JOBS[which]
    time = predict_step(found, plans(*({**row, "zero_stage": stage} for stage in range(4)))).step
    named = {child.name: child.seconds + child.hidden_seconds for child in time.children}
    moved = named["gradient traffic"] + named["weight traffic"]
    assert moved[1] <= moved[2] * (1 + 1e-12)
    assert moved[2] <= moved[3] * (1 + 1e-12)
    shown = {child.name: child.seconds for child in time.children}
    assert (shown["gradient traffic"] + shown["weight traffic"])[1] <= (
        shown["gradient traffic"] + shown["weight traffic"]
    )[3] * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(problems())
def test_offloading_is_slower(problem: Any) -> None:
    which, row = problem
    found = JOBS[which]
    near, away = seconds(found, *({**row, "offload": way} for way in CHOICES["offload"]))
    assert near < away


@settings(max_examples=20, deadline=None)
@given(problems())
def test_overlapped_gradients_are_hidden_not_removed(problem: Any) -> None:
    which, row = problem
    time = predict_step(JOBS[which], plans(*({**row, "overlap_dp": on} for on in (False, True))), explain=False).step
    for child in time.children:
        if child.name in ("gradient traffic", "weight traffic"):
            shown, hidden = (np.broadcast_to(value, 2) for value in (child.seconds, child.hidden_seconds))
            assert shown[1] <= shown[0]
            assert hidden[0] == 0
            assert shown[1] + hidden[1] == pytest.approx(shown[0], rel=1e-12)
    # While they overlap both run slower; here by less than what is hidden.
    assert time.seconds[1] <= time.seconds[0] * (1 + 1e-12)


@settings(max_examples=20, deadline=None)
@given(problems())
def test_overlapped_tensor_traffic_is_hidden_not_removed(problem: Any) -> None:
    which, row = problem
    if not row["seq_parallel"]:
        return
    off, on = (parts(JOBS[which], **{**row, "overlap_tp": value})["pipeline stage"] for value in (False, True))
    assert on.seconds <= off.seconds
    if row["pp"] == 1:
        # of one stage the host hides what the accelerator waits for, but nothing more
        assert on.hidden_seconds - off.hidden_seconds >= (off.seconds - on.seconds) * (1 - 1e-9)


def test_gradients_move_while_a_stage_waits_for_tensor_traffic() -> None:
    # Arithmetic takes no time; 36 layers scatter and gather for 150 ms backward inside the nodes, and gradients take
    # 131 ms between them: all but the last layer's hide.
    found = faster(unlimited(job("megatron-7.5b"), links=False), peak=1e15)
    time = parts(found, tp=8, dp=8, micro_batch=32)["gradient traffic"]
    assert time.seconds + time.hidden_seconds == pytest.approx(0.131, rel=0.01)
    assert time.seconds == pytest.approx((time.seconds + time.hidden_seconds) / 36, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(problems())
def test_twice_the_batch_is_twice_the_work(problem: Any) -> None:
    which, row = problem
    found = JOBS[which]
    near, away = (
        {
            child.name: child
            for child in at(predict_step(replace(found, global_batch=size), plans(row)).step, 0).children
        }
        for size in (256, 512)
    )
    assert away["pipeline stage"].seconds == pytest.approx(2 * near["pipeline stage"].seconds, rel=1e-12)
    for fixed in ("pipeline bubble", "optimizer", "host work per step"):
        assert away[fixed].seconds == near[fixed].seconds
    total = [sum(term.seconds for term in terms.values()) for terms in (near, away)]
    assert total[0] < total[1] <= 2 * total[0] * (1 + 1e-12)


@settings(max_examples=15, deadline=None)
@given(rows_of(1), st.integers(0, 15), st.integers(0, 31))
def test_it_does_not_matter_which_of_equal_parts_fails(row: dict[str, Any], leaf: int, spine: int) -> None:
    # 64 nodes on two rows of eight leaves: levels, and so the step, are those of any other lost cable.
    whole = machine(64)
    plan = {**row, "dp": row["dp"] * 8}
    times = []
    for lost in (f"leaf0-spine{0}", f"leaf{leaf}-spine{spine % 8}"):
        on = machine(64, failed=[lost])
        times += seconds(replace(job("llama-3.1-8b", ranks=512, on=on, global_batch=2048)), plan)
    assert times[0] == times[1]
    assert times[0] >= seconds(job("llama-3.1-8b", ranks=512, on=whole, global_batch=2048), plan)[0]


@settings(max_examples=20, deadline=None)
@given(problems())
def test_a_plan_by_name_is_the_plan(problem: Any) -> None:
    _, row = problem
    plan = plans(row)
    assert plan_from_rows([plan_to_dict(plan)]) == plan_from_rows([{name: row.get(name, 1) for name in FIELDS}])


def test_the_search_forgets_only_the_leaves() -> None:
    row = {"tp": 8, "dp": 4, "pp": 2, "seq_parallel": True}
    full, brief = (predict_step(JOBS[2], plans(row), explain=explain).step for explain in (True, False))
    assert [(child.name, child.seconds) for child in full.children] == [(x.name, x.seconds) for x in brief.children]
    assert len(walk(full)) > len(walk(brief)) + 15
