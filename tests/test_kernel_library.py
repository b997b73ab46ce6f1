"""Parameters of a device: its own, its family's, another's with a wider interval; less power sustains less."""

from pathlib import Path

import numpy as np
import pytest

from hardware.catalogue import find, load_file, names
from hardware.schema import Accelerator
from perfmodel.architecture import Attention, bundled_architecture
from perfmodel.kernels import decode, gemm, memory, moe, prefill
from perfmodel.kernels.library import families, parameters_of, power_exponent, sustained_share, widenings
from perfmodel.kernels.model import Z90, device_of, spread_of

H100: Accelerator = find("accelerator", "h100-80gb-sxm")
A100: Accelerator = find("accelerator", "a100-80gb-sxm")


def test_the_family_of_the_device_is_not_widened() -> None:
    found = parameters_of(gemm.MODEL, H100, "bf16")
    assert (found.origin, found.widening) == ("hopper.bf16", 0.0)
    assert found.parameters == families(gemm.MODEL)["hopper"]["bf16"]


def test_widening_is_what_it_adds_in_quadrature() -> None:
    transfer, borrowed = widenings(gemm.MODEL)
    own = families(gemm.MODEL)["hopper"]["fp8"].spread
    # another family's rows, by the widening of those that it inherits them through, of a variant that stands in
    found = parameters_of(gemm.MODEL, find("accelerator", "b200-sxm"), "fp8")
    assert found.widening == pytest.approx(np.hypot(transfer, find("efficiency", "blackwell").widen))
    assert found.parameters.spread == pytest.approx(np.hypot(own, found.widening))
    found = parameters_of(gemm.MODEL, H100, "int8")
    assert (found.origin, found.widening) == ("hopper.fp8", pytest.approx(borrowed))
    found = parameters_of(gemm.MODEL, A100, "int8")
    assert (found.origin, found.widening) == ("hopper.fp8", pytest.approx(np.hypot(transfer, borrowed)))
    with pytest.raises(KeyError, match="no family has gemm parameters for fp2"):
        parameters_of(gemm.MODEL, H100, "fp2")


def test_as_if_a_family_had_not_been_measured() -> None:
    found = parameters_of(gemm.MODEL, A100, "bf16", own={}, among={"hopper"})
    assert (found.origin, found.widening) == ("hopper.bf16", pytest.approx(widenings(gemm.MODEL)[0]))


def attention_of(model: str) -> Attention:
    found = bundled_architecture(model)
    assert found
    return found.layers[-1].attention


@pytest.mark.parametrize("name", names("accelerator"))
@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3", "gpt-oss-20b", "gptj-6b", "mpt-30b"])
def test_a_cache_of_8_bits_is_read_by_queries_of_16_everywhere(name: str, model: str) -> None:
    accelerator, attention = find("accelerator", name), attention_of(model)
    device, tokens, width = device_of(accelerator), np.array([1, 500, 3000]), attention.qk_head_dim
    prompts = prefill.shapes_of(attention, 4, tokens, cached_tokens=tokens[::-1], cache_bytes=1.0)
    found = parameters_of(prefill.MODEL, accelerator, prefill.variant_of(width, 2.0, 1.0))
    times = [prefill.time(prompts, device, found.parameters)[0]]  # type: ignore[arg-type]
    for cache_bytes in (1.0, 2.0):
        steps = decode.shapes_of(attention, 64, tokens, cache_bytes=cache_bytes)
        variant = decode.variant_of(width, cache_bytes, latent=attention.kind == "mla")
        found = parameters_of(decode.MODEL, accelerator, variant)
        times.append(decode.time(steps, device, found.parameters)[0])  # type: ignore[arg-type]
        assert (times[-1] > decode.roofline(steps, device)).all()
    assert all(np.isfinite(time).all() and (time > 0).all() for time in times)


@pytest.mark.parametrize("name", ["b200-sxm", "gb200", "b300-sxm", "gb300"])
def test_products_and_experts_of_4_bits_borrow_those_of_8(name: str) -> None:
    accelerator = find("accelerator", name)
    for model in (gemm.MODEL, moe.MODEL):
        transfer, borrowed = widenings(model)
        found = parameters_of(model, accelerator, "fp4")
        widen = find("efficiency", "blackwell").widen
        assert found.origin == "hopper.fp8"
        assert found.widening == pytest.approx((transfer**2 + borrowed**2 + widen**2) ** 0.5)


def test_no_widening_is_none_at_all() -> None:
    for model in (gemm.MODEL, prefill.MODEL, moe.MODEL, memory.MODEL):
        assert all(figure >= 0.05 for figure in widenings(model)), model.name


def test_less_power_for_the_same_peak_sustains_less_of_it() -> None:
    # A100 on PCIe: the same peak, 300 W of 400 W
    board = find("accelerator", "a100-80gb-pcie")
    share = sustained_share(board, "a100-80gb-sxm")
    assert share == pytest.approx(0.75 ** power_exponent())
    family = families(gemm.MODEL)["ampere"]["bf16"]
    found = parameters_of(gemm.MODEL, board, "bf16").parameters
    assert found.compute == pytest.approx(family.compute * share)  # type: ignore[attr-defined]
    assert found.memory == family.memory  # type: ignore[attr-defined]
    # more power for it does not make more of it than the reference sustains
    assert sustained_share(find("accelerator", "h20"), "h100-80gb-sxm") == 1.0
    # memory kernels do not compute
    copies = parameters_of(memory.MODEL, board, "stream").parameters
    assert copies == families(memory.MODEL)["ampere"]["stream"]


def test_another_generation_is_not_compared_by_its_power() -> None:
    b200 = find("accelerator", "b200-sxm")
    assert b200.power.limit / b200.peak["bf16"] < H100.power.limit / H100.peak["bf16"]
    found = parameters_of(gemm.MODEL, b200, "bf16").parameters
    assert found.compute == families(gemm.MODEL)["hopper"]["bf16"].compute  # type: ignore[attr-defined]


def test_families_that_have_nothing_to_do_with_each_other_do_not_compare_power() -> None:
    # watts for a FLOP/s tell two processes apart before they tell two boards apart
    found = parameters_of(gemm.MODEL, H100, "bf16", own={}, among={"ampere"})
    family = families(gemm.MODEL)["ampere"]["bf16"]
    assert found.parameters.compute == family.compute  # type: ignore[attr-defined]


def test_parameters_of_its_own_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: accelerator\nname: mine\nvendor: me\narchitecture: hopper\npeak: {bf16: 989 TFLOP/s}\n"
        "memory: {capacity: 80 GiB, bandwidth: 3.35 TB/s}\nl2: 50 MiB\nunits: 132\nclock: 1.83 GHz\n"
        "power: {limit: 350 W}\nefficiency:\n  gemm:\n"
        "    bf16: {launch_clocks: 5000, compute: 0.8, memory: 0.7, split_clocks: 4000, spread: 0.1}\n"
        "  provenance: {gemm.bf16: {source: x, date: 2026-11, evidence: measured}}\n"
    )
    mine = load_file(path)
    assert isinstance(mine, Accelerator)
    found = parameters_of(gemm.MODEL, mine, "bf16")
    assert (found.origin, found.widening) == ("mine.bf16", 0.0)
    assert found.parameters.compute == 0.8  # type: ignore[attr-defined]
    # an fp8 product is not calibrated: the family's, at half the watts
    half = families(gemm.MODEL)["hopper"]["fp8"].compute * 0.5 ** power_exponent()  # type: ignore[attr-defined]
    assert parameters_of(gemm.MODEL, mine, "fp8").parameters.compute == pytest.approx(half)  # type: ignore[attr-defined]


def test_the_spread_holds_four_fifths_of_heavy_tails() -> None:
    rng = np.random.default_rng(0)
    normal = 0.1 * rng.standard_normal(100_000)
    assert spread_of([normal]) == pytest.approx(0.1, rel=0.02)
    tails = rng.laplace(scale=0.1, size=100_000)
    assert np.mean(np.abs(tails) <= Z90 * spread_of([tails])) == pytest.approx(0.8, abs=0.001)
    # a device of a hundred times the rows weighs as much as the other
    assert spread_of([np.full(1000, 0.1), np.full(10, 0.3)]) > 0.2
