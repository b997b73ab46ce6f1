"""Arithmetic, traffic and kernels of a layer, against published formulas and sums by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import PEAK, SC21, RooflineKernels, architecture, framework, job, machine, plans

from hardware.catalogue import find
from hardware.efficiency import GemmParameters
from perfmodel.architecture import Attention, FeedForward, model_flops_per_token
from perfmodel.job import Job, kernels_of
from perfmodel.kernels.gemm import FORMS, Form, product
from perfmodel.kernels.model import Device, device_of
from perfmodel.kernels.work import Work, timed
from perfmodel.layer import PARTS, layer_cost, logits_cost
from perfmodel.operators import (
    Operator,
    Shape,
    attention_operators,
    causal_pairs,
    elementwise,
    feed_forward_operators,
    gemm,
    head_operators,
    peak_flops,
    quantisation,
)
from perfmodel.terms import Term

BF16, FP8 = FORMS["bf16"], replace(FORMS["fp8"], quantisation_bytes=0.0)


def shape(
    sequences: int = 1, seq_len: int = 2048, tp: int = 1, cp: int = 1, ep: int = 1, *, split: bool = True
) -> Shape:
    """One rank's share of a micro-batch; norms are split over tp as with sequence parallelism."""
    return Shape(sequences * seq_len / cp, sequences, seq_len, tp, cp, ep, tp if split else 1, cp)


def operators(name: str, where: Shape, group: int = 0, *, fused: bool = True, form: Form = BF16) -> list[Operator]:
    """Operators of a layer of a bundled model."""
    model = architecture(name)
    layer = model.layers[group]
    rope = model.position == "rope"
    both = attention_operators(
        layer.attention, model.hidden, where, norm=True, rope=rope, fused=fused, dropout=False, form=form
    )
    return both + feed_forward_operators(layer.feed_forward, model.hidden, where, norm=True, dropout=False, form=form)


def flops(found: Sequence[Operator]) -> float:
    return float(sum(operator.flops for operator in found))


# --- arithmetic


@pytest.mark.parametrize(("name", "h"), [("gpt-3-175b", 12288), ("megatron-1t", 25600), ("megatron-1.7b", 2304)])
def test_a_layer_of_gpt(name: str, h: int) -> None:
    # SC21 (arXiv 2104.04473), appendix: a forward pass takes 24 B s h^2 (1 + s/6h) a layer, all s^2 scores computed.
    B, s = 4, 2048
    expected = 24 * B * s * h**2 * (1 + s / (6 * h))
    assert flops(operators(name, shape(B, s), fused=False)) == pytest.approx(expected, rel=1e-12)
    # Of causal attention flash kernels compute half the scores: 2 B s^2 h less.
    assert flops(operators(name, shape(B, s))) == pytest.approx(expected - 2 * B * s**2 * h, rel=1e-12)


def test_the_iteration_of_gpt() -> None:
    # SC21, equation 3: 96 B s l h^2 (1 + s/6h + V/16lh) with full recomputation, four forward passes' worth of the
    # layers and three of the logits. 175B, B 1536, V 51200 in table 1's sizes: 4.51e18.
    B, s, layers, h, V = 1536, 2048, 96, 12288, 51200
    layer = flops(operators("gpt-3-175b", shape(B, s), fused=False))
    logits = flops(head_operators(h, V, shape(B, s), BF16))
    assert 4 * layers * layer + 3 * logits == pytest.approx(
        96 * B * s * layers * h**2 * (1 + s / (6 * h) + V / (16 * layers * h)), rel=1e-12
    )
    assert 4 * layers * layer + 3 * logits == pytest.approx(4.51e18, rel=2e-3)


def test_grouped_queries_and_a_gated_network() -> None:
    # Llama 3.1 8B: h 4096, 32 heads and 8 key-value heads of 128, inner 14336. Per token: queries and output 2 x
    # 4096^2, keys and values 4096 x 2048, three matrices 4096 x 14336: 218,103,808 weights; attention over s/2 keys on
    # average: 2 x 32 x (128 + 128) x s/2.
    s = 8192
    per_token = 2 * (2 * 4096**2 + 4096 * 2048 + 3 * 4096 * 14336) + 2 * 32 * 256 * s / 2
    assert per_token == 503_316_480
    assert flops(operators("llama-3.1-8b", shape(1, s))) == per_token * s


def test_latent_attention_and_experts() -> None:
    # DeepSeek-V3 (arXiv 2412.19437, section 4.2): h 7168, 128 heads of 128 + 64 (rotary) and values of 128, latents of
    # 1536 and 512. Projections: 7168 x 1536 + 1536 x 128 x 192 + 7168 x (512 + 64) + 512 x 128 x (128 + 128)
    # + 128 x 128 x 7168 = 187,105,280 weights.
    s = 4096
    projections = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert projections == 187_105_280
    attention = 2 * projections + 2 * 128 * (192 + 128) * s / 2
    # Dense layers: three matrices 7168 x 18432. The others: router of 256, 8 routed and 1 shared expert of 2048 wide.
    assert flops(operators("deepseek-v3", shape(1, s))) == (attention + 2 * 3 * 7168 * 18432) * s
    mixture = 2 * 7168 * 256 + (8 + 1) * 2 * 3 * 7168 * 2048
    assert flops(operators("deepseek-v3", shape(1, s), 1)) == (attention + mixture) * s


def test_experts_without_a_shared_one() -> None:
    # Mixtral 8x7B: as Llama 2 with 8 key-value heads of 128; two of eight experts of three 4096 x 14336.
    s = 4096
    per_token = 2 * (2 * 4096**2 + 4096 * 2048 + 4096 * 8 + 2 * 3 * 4096 * 14336) + 2 * 32 * 256 * s / 2
    assert flops(operators("mixtral-8x7b", shape(1, s))) == per_token * s


@pytest.mark.parametrize("name", ["gpt-3-175b", "llama-3.1-70b", "mixtral-8x7b", "deepseek-v3", "qwen3-235b-a22b"])
@pytest.mark.parametrize(("tp", "cp"), [(2, 1), (4, 1), (1, 4), (2, 8)])
def test_ranks_share_the_arithmetic(name: str, tp: int, cp: int) -> None:
    for group in range(len(architecture(name).layers)):
        whole = flops(operators(name, shape(2, 8192), group))
        share = flops(operators(name, shape(2, 8192, tp=tp, cp=cp), group))
        assert share * tp * cp == pytest.approx(whole, rel=1e-12)


def test_down_projections_are_computed_by_every_rank_without_sequence_parallelism() -> None:
    # The latent projections are not split over heads: 2 x 7168 x (1536 + 576) a token on every rank.
    found = operators("deepseek-v3", shape(1, 4096, tp=4, split=False))
    assert next(op for op in found if op.name == "latent projections").flops == 2 * 7168 * 2112 * 4096


def test_more_ranks_than_key_value_heads_hold_copies() -> None:
    # 8 key-value heads on 16 ranks: one each, so a rank projects 4 query heads, one key and one value of 128.
    found = operators("llama-3.1-70b", shape(1, 1024, tp=16))
    assert found[1].flops == 2 * 1024 * 8192 * (4 + 2) * 128


@pytest.mark.parametrize(
    "name", ["gpt-3-175b", "llama-3.1-8b", "mixtral-8x7b", "deepseek-v3", "gemma-2-9b", "gpt-oss-20b"]
)
@pytest.mark.parametrize("seq_len", [2048, 16384])
def test_a_model_is_its_layers(name: str, seq_len: int) -> None:
    # The published way to count a model's FLOPs (forward a third of the step) against the operators one by one.
    model = architecture(name)
    per_sequence = sum(
        group.count * flops(operators(name, shape(1, seq_len), i)) for i, group in enumerate(model.layers)
    )
    per_sequence += model.mtp_layers * flops(operators(name, shape(1, seq_len), -1))
    per_sequence += (1 + model.mtp_layers) * flops(head_operators(model.hidden, model.vocab, shape(1, seq_len), BF16))
    # The products that join a prediction module's two inputs are too few to be operators here: 4 h^2 a token.
    joined = model.mtp_layers * 4 * model.hidden**2 * seq_len
    assert per_sequence + joined == pytest.approx(model_flops_per_token(model, seq_len) / 3 * seq_len, rel=1e-12)


# A device whose arithmetic, or whose memory, takes all the time there is; kernels run at the roofline.
KERNELS = RooflineKernels()
COUNTING = replace(device_of(machine(1).accelerator), peak={"bf16": 1.0, "fp8": 1.0}, bandwidth=1e30)
MOVING = replace(COUNTING, peak={"bf16": 1e30, "fp8": 1e30}, bandwidth=1.0)


def amount(works: Sequence[Work], device: Device) -> float:
    """FLOPs or bytes of kernels: seconds on a device that does one a second."""
    return float(sum(np.sum(seconds) for seconds, _ in timed(works, device, KERNELS)))


def test_a_backward_pass_costs_two_forward_ones() -> None:
    for operator in operators("llama-3.1-8b", shape()):
        forward, backward = amount(operator.forward, COUNTING), amount(operator.backward, COUNTING)
        # A flash kernel computes the scores again: five products for two (arXiv 2205.14135, algorithm 4).
        assert backward == pytest.approx((2.5 if operator.kind == "attention" else 2.0) * forward, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["megatron-7.5b", "llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"])
def test_kernels_do_the_arithmetic_of_their_operators(name: str, fused: bool) -> None:
    for group in range(len(architecture(name).layers)):
        for operator in operators(name, shape(2, 2048, tp=2), group, fused=fused):
            # of causal attention a kernel computes the whole diagonal: s + 1 for s
            whole = 2049 / 2048 if operator.kind == "attention" else 1.0
            if operator.flops:
                assert amount(operator.forward, COUNTING) == pytest.approx(operator.flops * whole, rel=1e-12)


@given(st.integers(1, 60), st.integers(0, 70))
def test_pairs_of_causal_attention_by_counting(seq_len: int, window: int) -> None:
    # Query i sees keys i - window + 1 .. i. The closed form takes half of each of the min(w, s) cells of the first
    # column of triangles, as s^2/2 takes half of the diagonal.
    counted = sum(1 for i in range(seq_len) for j in range(i + 1) if not window or i - j < window)
    reach = min(seq_len, window or seq_len)
    assert causal_pairs(seq_len, window) == counted - reach / 2


def test_a_window_spares_arithmetic() -> None:
    full = Attention("full", 32, 8, 128, 128)
    arguments: dict[str, Any] = {"norm": False, "rope": False, "fused": True, "dropout": False, "form": BF16}

    def core(attention: Attention, seq_len: int) -> float:
        found = attention_operators(attention, 4096, shape(1, seq_len), **arguments)
        return flops([operator for operator in found if operator.core])

    # 8192 tokens, window 1024: 1024 x 8192 - 1024^2/2 pairs, 2 x 256 FLOPs each in 32 heads.
    assert core(replace(full, window=1024), 8192) == (1024 * 8192 - 1024**2 / 2) * 2 * 256 * 32
    assert core(replace(full, window=1024), 512) == core(full, 512)


# --- traffic


def test_the_traffic_of_a_product() -> None:
    # (T x h)(h x f) in 16 bits: reads 2 (T h + h f), writes 2 T f. Backward: the same for the gradient of the input;
    # for that of the weight both inputs, and the 32-bit gradient read and written.
    found = gemm("product", 1024, 4096, 512, BF16, 0.0)
    forward = 2 * (1024 * 4096 + 4096 * 512 + 1024 * 512)
    assert (amount(found.forward, MOVING), found.kernels) == (forward, 1)
    assert amount(found.backward[:1], MOVING) == forward
    assert amount(found.backward[1:], MOVING) == 2 * (1024 * 4096 + 1024 * 512) + 8 * 4096 * 512
    assert found.backward_kernels == 2
    # 8-bit factors, 16-bit result.
    narrow = gemm("product", 1024, 4096, 512, FP8, 0.0)
    assert amount(narrow.forward, MOVING) == 1024 * 4096 + 4096 * 512 + 2 * 1024 * 512


@pytest.mark.parametrize("variant", ["stream", "norm"])
def test_an_elementwise_operator_only_moves_bytes(variant: str) -> None:
    found = elementwise("norm", variant, 10, 100, 5.0, 2)
    assert amount(found.forward, MOVING) == pytest.approx(2000, rel=1e-12)
    assert amount(found.backward, MOVING) == pytest.approx(3000, rel=1e-12)
    assert (found.flops, found.kernels, found.backward_kernels) == (0, 2, 2)


def test_the_weights_that_a_rank_reads() -> None:
    # A single token: traffic tends to the weights, two bytes each. Llama 3.1 8B: 218,103,808 a layer. Nothing else than
    # the token's own vectors may be on top: at most 1 MB.
    found = [op for op in operators("llama-3.1-8b", shape(1, 1)) if op.kind == "gemm"]
    assert 0 <= sum(amount(op.forward, MOVING) for op in found) - 2 * 218_103_808 < 1e6
    # Mixtral: a rank of ep 4 holds 2 of 8 experts and reads both.
    experts = [op for op in operators("mixtral-8x7b", shape(1, 1, ep=4)) if op.kind == "moe"]
    assert 0 <= sum(amount(op.forward, MOVING) for op in experts) - 2 * 2 * 3 * 4096 * 14336 < 1e6


def test_casting_to_fewer_bits() -> None:
    # Inputs of products, known by what is saved of them: 2 bytes read, one written twice (rows and columns).
    found = [gemm("a", 8, 4, 2, FP8, 600.0), gemm("b", 8, 4, 2, FP8, 400.0, "moe")]
    found += [elementwise("c", "stream", 1, 10, 1e6), gemm("wide", 8, 4, 2, BF16, 1e6, "gemm16")]
    casts = quantisation(found, FP8)
    assert amount(casts.forward, MOVING) == pytest.approx(500 * (2 + 2 * 1), rel=1e-12)
    assert amount(casts.backward, MOVING) == amount(casts.forward, MOVING)
    assert (casts.kernels, casts.flops) == (2, 0)


def test_logits_and_loss() -> None:
    # T tokens, V/t of the vocabulary: 2 T h V/t FLOPs; the 32-bit softmax stays, 4 s b V/t bytes (arXiv 2205.05198,
    # section 4.3).
    norm, logits, loss = head_operators(4096, 128_000, shape(2, 1024, tp=8), BF16)
    assert logits.flops == 2 * 2048 * 4096 * 16_000
    assert loss.saved_bytes == 4 * 2048 * 16_000
    # section 4.3: input of the last norm and of the logits, 2 s b h each, over t with sequence parallelism
    assert norm.saved_bytes == logits.saved_bytes == 2 * 2048 * 4096 / 8


# --- kernels together


def test_kernels_together_are_the_kernels_one_by_one() -> None:
    chip = find("accelerator", "h100-80gb-sxm")
    kernels = kernels_of(chip, ("gemm.bf16", "memory.stream", "memory.norm"))
    device = device_of(chip)
    rows = np.array([1.0, 1000.0, 3e5])
    works = [
        Work("gemm.bf16", product(rows, 4096, 8192, BF16)),
        Work("memory.norm", {"rows": rows, "row_bytes": np.asarray(8192.0), "warm": np.asarray(False)}, 2.0, 3.0),
        Work("gemm.bf16", product(128, 512, 512, BF16), np.array([1.0, 2.0])),
    ]
    together = timed(works, device, kernels)
    for work, (seconds, bound) in zip(works, together, strict=True):
        kernel = kernels[work.kernel]
        alone, _ = kernel.model.time(work.shapes, device, kernel.parameters)
        launch_s = kernel.parameters.launch_s(device.clock)
        # launches count as often as they are, what a kernel does beyond its launch as often as it does it
        expected = work.launches * launch_s + work.times * (alone - launch_s)
        assert seconds == pytest.approx(expected, rel=1e-6)
        assert bound.shape == seconds.shape
    parameters = GemmParameters(launch_clocks=3660, compute=1, memory=1, split_clocks=1000)
    assert parameters.launch_s(1.83e9) == pytest.approx(2e-6, rel=1e-12)


def test_the_peak_of_a_type() -> None:
    chip = machine(1).accelerator
    assert peak_flops(chip, "bf16") == PEAK
    assert peak_flops(chip, "fp16") == PEAK
    with pytest.raises(ValueError, match="chip has no fp8 peak; it has bf16"):
        peak_flops(chip, "fp8")


# --- what a layer computes again


def unlimited(found: Job) -> Job:
    """The job with memory so fast that only arithmetic takes time."""
    chip = found.machine.accelerator
    memory = chip.memory.model_copy(update={"bandwidth": 1e30})
    return replace(found, machine=replace(found.machine, accelerator=chip.model_copy(update={"memory": memory})))


def passes(term: Term) -> dict[str, Term]:
    return {child.name: child for child in term.children}


@pytest.mark.parametrize("tp", [1, 8])
@pytest.mark.parametrize(
    ("recompute", "repeated"),
    [
        # of 24 s h^2 + 4 s^2 h forward, both products of the attention core, 4 s^2 h, are computed again selectively
        ("none", lambda s, h: 0.0),
        ("selective", lambda s, h: 4 * s**2 * h),
        ("full", lambda s, h: 24 * s * h**2 + 4 * s**2 * h),
    ],
)
def test_recomputation_of_gpt(tp: int, recompute: str, repeated: Any) -> None:
    found = unlimited(job("gpt-3-175b", ranks=8, runs=SC21))
    plan = plans({"tp": tp, "dp": 8 // tp, "recompute": recompute, "seq_parallel": tp > 1})
    time = passes(layer_cost(found, found.architecture.layers[0], plan).time)
    s, h = 2048, 12288
    forward = 24 * s * h**2 + 4 * s**2 * h
    assert time["forward"].seconds == pytest.approx(forward / tp / PEAK, rel=1e-6)
    assert time["backward"].seconds == pytest.approx(2 * forward / tp / PEAK, rel=1e-6)
    assert time["recomputation"].seconds == pytest.approx(repeated(s, h) / tp / PEAK, rel=1e-6, abs=1e-12)


def test_recomputation_of_a_flash_kernel() -> None:
    found = unlimited(job("llama-3.1-8b", ranks=1, seq_len=8192))
    time = passes(layer_cost(found, found.architecture.layers[0], plans({"recompute": "selective"})).time)
    core = PARTS.index("attention core")
    assert time["recomputation"].seconds == time["forward"].children[core].seconds
    # half of 4 s^2 h, and of the diagonal all
    assert time["recomputation"].seconds == pytest.approx(2 * 8192 * 8193 * 4096 / PEAK, rel=1e-12)


def test_keeping_every_other_product() -> None:
    # Selective by operator: attention stays, half of the products' arithmetic is computed again.
    found = unlimited(job("llama-3.1-8b", ranks=1, seq_len=8192, runs=framework(selective="per-operator")))
    time = passes(layer_cost(found, found.architecture.layers[0], plans({"recompute": "selective"})).time)
    assert time["recomputation"].seconds == pytest.approx(218_103_808 * 8192 / PEAK, rel=1e-9)


def test_the_ends_of_a_model() -> None:
    found = unlimited(job("llama-3.1-8b", ranks=1, seq_len=8192))
    time = passes(logits_cost(found, plans({"recompute": "full"})).time)
    assert time["forward"].seconds == pytest.approx(2 * 8192 * 4096 * 128_256 / PEAK, rel=1e-12)
    assert time["recomputation"].seconds == 0


def test_a_dense_network_without_gate() -> None:
    (up, activation, down, _) = feed_forward_operators(
        FeedForward(16384, gated=False), 4096, shape(1, 512), norm=False, dropout=False, form=BF16
    )
    assert (up.flops, down.flops) == (2 * 512 * 4096 * 16384, 2 * 512 * 4096 * 16384)
    # reads and writes the inner features, of which it keeps the input
    assert amount(activation.forward, MOVING) == 2 * 2 * 512 * 16384
    assert activation.saved_bytes == 2 * 512 * 16384
