"""Fused experts: counts against draws and published formulas, the equations by hand, what more of anything does."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalogue import find
from perfmodel.kernels import moe
from perfmodel.kernels.expert_load import TILES, even_load, power_law_load, random_load
from perfmodel.kernels.gemm import ARITHMETIC
from perfmodel.kernels.library import families, parameters_of
from perfmodel.kernels.model import device_of
from perfmodel.terms import BOUNDS, COMPUTE, LATENCY, MEMORY

H100 = device_of(find("accelerator", "h100-80gb-sxm"))
OWN = parameters_of(moe.MODEL, find("accelerator", "h100-80gb-sxm"), "bf16").parameters
PLAIN = OWN.model_copy(
    update={
        "launch_clocks": 18300.0,
        "compute": 0.5,
        "memory": 0.8,
        "traffic": 0.5,
        "foreign_computed": 0.0,
        "foreign_carried": 0.0,
    }
)
"""Round numbers: 18300 clocks of 1.83 GHz are 10 us."""

QWEN = {"hidden": 4096, "inner": 1536, "top_k": 8, "experts": 128}


def arrays(*values):
    return [np.atleast_1d(np.asarray(value, float)) for value in values]


def seconds(shapes, device=H100, parameters=OWN):
    return float(np.ravel(moe.time(shapes, device, parameters)[0])[0])


# --- loads


def test_distinct_experts_of_random_choices():
    # E (1 - (1 - k/E)^T): E = 8, k = 2, T = 4 by hand 8 (1 - .75^4) = 5.47; E = 256, k = 8, T = 64: 222.4
    for E, k, T, expected in ((8, 2, 4, 5.46875), (256, 8, 64, 222.44)):
        assert random_load(*arrays(T, k, E, 1)).active[0] == pytest.approx(expected, rel=1e-4)


def test_distinct_experts_of_random_choices_are_those_of_trials():
    random = np.random.default_rng(1)
    E, k, T, ep = 32, 4, 12, 4
    active, tokens = [], []
    for _ in range(3000):
        chosen = np.argsort(random.random((T, E)), axis=1)[:, :k]
        held = chosen[chosen < E // ep]
        active.append(len(np.unique(held)))
        tokens.append(int((chosen < E // ep).any(axis=1).sum()))
    load = random_load(*arrays(T, k, E, ep))
    assert load.active[0] == pytest.approx(np.mean(active), rel=0.02)
    assert load.tokens[0] == pytest.approx(np.mean(tokens), rel=0.02)


@pytest.mark.parametrize(("T", "k", "E", "ep"), [(12, 4, 32, 4), (256, 4, 16, 1), (500, 2, 16, 2), (3000, 1, 32, 4)])
def test_tiles_of_random_choices_are_those_of_trials(T, k, E, ep):
    random = np.random.default_rng(T)
    counts = []
    for _ in range(200):
        chosen = np.argsort(random.random((T, E)), axis=1)[:, :k]
        rows = np.bincount(chosen.ravel(), minlength=E)[: E // ep]
        counts.append([np.ceil(rows / M).sum() for M in TILES])
    load = random_load(*arrays(T, k, E, ep))
    assert [float(tiles[0]) for tiles in load.tiles] == pytest.approx(np.mean(counts, axis=0), rel=0.05)


@pytest.mark.parametrize(("T", "k", "E", "ep"), [(1, 8, 64, 1), (7, 3, 8, 1), (100, 6, 64, 4), (1000, 2, 8, 8)])
def test_an_even_load_is_that_of_dealing_out(T, k, E, ep):
    loads = np.bincount(np.arange(T * k) % E, minlength=E)
    of_ranks = loads.reshape(E // ep, ep).T  # neighbours in turn hold the next expert each
    load = even_load(*arrays(T, k, E, ep))
    assert load.pairs[0] == pytest.approx(of_ranks.sum(axis=1).mean())
    assert load.active[0] == pytest.approx((of_ranks > 0).sum(axis=1).mean(), abs=1)
    for tiles, M in zip(load.tiles, TILES, strict=True):
        assert tiles[0] == pytest.approx(np.ceil(of_ranks / M).sum(axis=1).mean(), rel=0.1)


@given(
    T=st.integers(1, 20000),
    k=st.sampled_from([1, 2, 8, 22]),
    E=st.sampled_from([8, 32, 128]),
    ep=st.sampled_from([1, 2, 8]),
)
def test_even_load_conserves_pairs(T, k, E, ep):
    k = min(k, E)
    load = even_load(*arrays(T, k, E, ep))
    assert load.pairs[0] == pytest.approx(max(T * k / ep, 1.0))
    assert load.active[0] <= E / ep
    for tiles, rows in zip(load.tiles, TILES, strict=True):
        assert tiles[0] >= load.active[0]
        assert tiles[0] * rows >= load.pairs[0] * (1 - 1e-12)


def drawn(T, k, E, ep, random):
    """One draw of the loads as the measurements were drawn: power law, scaled, at most T each; the fullest rank."""
    low, high = (1.0, 0.8 * T) if T * k > E else (0.01, 2.0)
    x = ((high**-0.2 - low**-0.2) * random.random(E) + low**-0.2) ** -5
    loads = np.minimum(np.rint(x / x.sum() * T * k), T).astype(int)
    while (missing := T * k - loads.sum()) != 0:
        step = 1 if missing > 0 else -1
        able = np.flatnonzero(loads < T) if step > 0 else np.flatnonzero(loads > 0)
        order = able[np.argsort(loads[able] + 0.5 * random.random(len(able)))]
        loads[order[: abs(missing)]] += step
    ranks = loads.reshape(ep, -1)
    return ranks[ranks.sum(axis=1).argmax()]


@pytest.mark.parametrize(
    ("k", "E", "ep"), [(8, 128, 1), (8, 128, 8), (8, 256, 32), (2, 8, 4), (22, 512, 64), (8, 128, 128)]
)
@pytest.mark.parametrize("T", [4, 64, 1024, 16384])
def test_power_law_is_the_mean_of_draws(T, k, E, ep):
    random = np.random.default_rng(T + E + ep)
    ranks = [drawn(T, k, E, ep, random) for _ in range(200)]
    load = power_law_load(*arrays(T, k, E, ep), 1.2)
    assert load.pairs[0] == pytest.approx(np.mean([rank.sum() for rank in ranks]), rel=0.25)
    assert load.active[0] == pytest.approx(np.mean([(rank > 0).sum() for rank in ranks]), rel=0.3)
    for tiles, rows in zip(load.tiles, TILES, strict=True):
        assert tiles[0] == pytest.approx(np.mean([np.ceil(rank / rows).sum() for rank in ranks]), rel=0.3)


@given(
    T=st.integers(1, 30000),
    k=st.sampled_from([1, 2, 8]),
    E=st.sampled_from([8, 64, 256]),
    ep=st.sampled_from([1, 4, 8]),
    exponent=st.floats(0.5, 3.0),
)
def test_power_law_stays_within_what_there_is(T, k, E, ep, exponent):
    load = power_law_load(*arrays(T, k, E, ep), exponent)
    assert T * k / ep * (1 - 1e-9) <= load.pairs[0] <= min(T * k, T * E / ep) * (1 + 1e-9) or load.pairs[0] == 1.0
    assert 0 < load.active[0] <= min(E / ep, load.pairs[0]) * (1 + 1e-9)
    assert load.tokens[0] <= T
    assert all(tiles[0] >= load.active[0] * (1 - 1e-9) for tiles in load.tiles)


def test_one_expert_a_token_on_one_rank_is_all_pairs():
    load = power_law_load(*arrays(1024, 8, 128, 1), 1.2)
    assert load.pairs[0] == 1024 * 8
    assert load.tokens[0] == 1024


# --- the equations by hand


def hand(T=512.0, **values):
    """8 experts of 3 x 4096 x 1024, all chosen, 128 rows each: even numbers."""
    E, k = 8.0, 2.0
    every = {
        "pairs": T * k,
        "active": E,
        "tiles_16": T * k / 16,
        "tiles_64": T * k / 64,
        "tokens": T,
        "hidden": 4096.0,
        "inner": 1024.0,
        "local": E,
        "gated": True,
        "weight_bytes": 2.0,
        "elsewhere": 0.0,
        "mixed": 0.0,
    }
    width = values.get("weight_bytes", 2.0)
    every |= {
        "arithmetic": ARITHMETIC.index("bf16" if width == 2.0 else "fp8"),
        "activation_bytes": width,
        "unpacked": False,
    }
    return {name: np.asarray(value) for name, value in (every | values).items()}


def soft_maximum(*parts):
    return sum(part**1.25 for part in parts) ** 0.8


def test_time_by_hand():
    rows, elements = 1024, 3 * 4096 * 1024
    arithmetic = 2 * rows * elements / (0.5 * 989e12)
    streaming = 8 * elements * 2 / (0.8 * 3.35e12)
    # 16 rows of tiles: 2048/64 columns of them, 4096/32 deep, and 4096/64 columns, 1024/32 deep; six a unit at a time
    up, down = 16 * 32, 16 * 64
    assert up < 6 * 132 < down
    chain = (4096 / 32 + 1024 / 32 * down / (6 * 132)) * 500 / 1.83e9
    between = (4 * 4096 + 12 * 1024) * rows / (0.5 * 3.35e12)
    expected = 10e-6 + between + soft_maximum(arithmetic, streaming, chain)
    assert seconds(hand(), parameters=PLAIN) == pytest.approx(expected, rel=1e-9)


def test_time_without_a_gate_in_8_bits_by_hand():
    rows, elements = 1024, 2 * 4096 * 1024
    arithmetic = 2 * rows * elements / (0.5 * 1979e12)
    streaming = 8 * elements / (0.8 * 3.35e12)
    chain = (4096 / 128 + 1024 / 128) * 500 / 1.83e9  # 16 x 8 and 16 x 32 tiles of 64 x 128: all at a time
    between = (4 * 4096 + 6 * 1024) * rows / (0.5 * 3.35e12)
    expected = 10e-6 + between + soft_maximum(arithmetic, streaming, chain)
    shapes = hand(gated=False, weight_bytes=1.0)
    assert seconds(shapes, parameters=PLAIN) == pytest.approx(expected, rel=1e-9)


def test_rows_columns_and_depth_are_filled_up():
    base = seconds(hand(), parameters=PLAIN)
    assert seconds(hand(tiles_64=24.0), parameters=PLAIN) > base  # 129 rows each: three tiles
    # 1000 inner columns take as many tiles and steps of the first and second product as 1024, but fewer bytes
    narrow = seconds(hand(inner=1000.0), parameters=PLAIN)
    free = PLAIN.model_copy(update={"memory": 1e9, "traffic": 1e9})
    assert narrow < base
    assert seconds(hand(inner=1000.0), parameters=free) == pytest.approx(seconds(hand(), parameters=free))


def test_few_tokens_take_small_tiles():
    def tiling(**values):
        return [float(value) for value in moe.tiling(hand(**values))]

    assert tiling(T=8.0) == [16, 32, 64, 1]
    assert tiling(T=9.0) == [64, 64, 32, 18 / 64]
    assert tiling(T=8.0, weight_bytes=1.0) == [64, 128, 128, 16 / 64]


def test_4_bits_by_hand():
    # weights and activations of 0.5625 bytes, at the peak of 4 bits, in the tiles of 8 bits
    device = device_of(find("accelerator", "b200-sxm"))
    rows, elements = 1024, 3 * 4096 * 1024
    shapes = hand(weight_bytes=0.5625, arithmetic=ARITHMETIC.index("fp4"), activation_bytes=0.5625)
    arithmetic = 2 * rows * elements / (0.5 * device.peak["fp4"])
    streaming = 8 * elements * 0.5625 / (0.8 * device.bandwidth)
    chain = (4096 / 128 + 1024 / 128) * 500 / device.clock  # 16 x 16 and 16 x 32 tiles of 64 x 128: all at a time
    between = (4 * 4096 + (8 + 1.125) * 1024) * rows / (0.5 * device.bandwidth)
    expected = 18300 / device.clock + between + soft_maximum(arithmetic, streaming, chain)
    assert seconds(shapes, device, PLAIN) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="no fp4 peak"):
        seconds(shapes)


def test_weights_alone_in_4_bits_by_hand():
    # as in 16 bits, but for the bytes of the weights and for unpacking: 64 weights a clock and unit
    rows, elements, weight = 1024, 3 * 4096 * 1024, 0.5 + 2 / 128
    arithmetic = 2 * rows * elements / (0.5 * 989e12)
    streaming = 8 * elements * weight / (0.8 * 3.35e12)
    up, down = 16 * 32, 16 * 64
    chain = (4096 / 32 + 1024 / 32 * down / (6 * 132)) * 500 / 1.83e9
    unpacking = (4096 * 64 * up / 132 + 1024 * 64 * down / 132) / (64 * 1.83e9)
    between = (4 * 4096 + 12 * 1024) * rows / (0.5 * 3.35e12)
    expected = 10e-6 + between + soft_maximum(arithmetic, streaming, chain, unpacking)
    shapes = hand() | {"weight_bytes": np.asarray(weight), "unpacked": np.asarray(True)}
    assert seconds(shapes, parameters=PLAIN) == pytest.approx(expected, rel=1e-9)


def test_arithmetic_of_narrow_weights():
    def of(**values):
        shapes = moe.shapes_of(64, **QWEN, **values)
        kept = ("arithmetic", "weight_bytes", "activation_bytes", "unpacked")
        name, *rest = (shapes[key].item() for key in kept)
        return [ARITHMETIC[name], *rest]

    assert of() == ["bf16", 2.0, 2.0, False]
    assert of(weight_bytes=1.0) == ["fp8", 1.0, 1.0, False]
    assert of(weight_bytes=1.0, arithmetic="bf16") == ["bf16", 1.0, 2.0, True]
    assert of(weight_bytes=1 + 4 / 128**2, arithmetic="fp8") == ["fp8", 1 + 4 / 128**2, 1.0, False]
    assert of(weight_bytes=0.5625, arithmetic="fp4") == ["fp4", 0.5625, 0.5625, False]
    assert of(weight_bytes=0.5625, arithmetic="fp8") == ["fp8", 0.5625, 1.0, True]
    assert of(weight_bytes=0.515625) == ["bf16", 0.515625, 2.0, True]


@pytest.mark.parametrize("name", ["b200-sxm", "gb200", "b300-sxm"])
def test_4_bits_stand_between_others_and_the_roofline(name):
    accelerator = find("accelerator", name)
    device = device_of(accelerator)
    found = parameters_of(moe.MODEL, accelerator, "fp4")
    assert found.origin == "hopper.fp8" and found.widening > 0
    for tokens in (1, 64, 4096):
        narrow = moe.shapes_of(tokens, **QWEN, weight_bytes=0.5625, arithmetic="fp4")
        wide = moe.shapes_of(tokens, **QWEN, weight_bytes=1.0)
        time = seconds(narrow, device, found.parameters)
        assert float(np.ravel(moe.roofline(narrow, device))[0]) < time < seconds(wide, device, found.parameters)


def test_choices_of_other_ranks_experts():
    shapes = hand(elsewhere=3072.0, mixed=512.0)
    base = seconds(hand(), parameters=PLAIN)
    assert seconds(shapes, parameters=PLAIN) == pytest.approx(base)
    carried = seconds(shapes, parameters=PLAIN.model_copy(update={"foreign_carried": 0.5}))
    assert carried - base == pytest.approx(4 * 4096 * 1536 / (0.5 * 3.35e12), rel=1e-9)
    computed = seconds(shapes, parameters=PLAIN.model_copy(update={"foreign_computed": 0.5}))
    more = hand(pairs=1024.0 + 256, tiles_64=16.0 + 4)  # half of 512 rows, in full tiles, and no more weights
    assert computed == pytest.approx(seconds(more, parameters=PLAIN), rel=1e-9)


def test_roofline_by_hand():
    streaming = 8 * 3 * 4096 * 1024 * 2 / 3.35e12
    assert float(moe.roofline(hand(), H100)) == pytest.approx(streaming)
    assert float(moe.roofline(hand(pairs=1e6), H100)) == pytest.approx(2e6 * 3 * 4096 * 1024 / 989e12)


def test_bounds():
    def bound(shapes):
        return int(np.ravel(moe.time(shapes, H100, PLAIN)[1])[0])

    assert bound(moe.shapes_of(262144, hidden=8192, inner=16384, top_k=2, experts=8)) == COMPUTE
    assert bound(moe.shapes_of(64, **QWEN)) == MEMORY
    assert bound(moe.shapes_of(1, hidden=2048, inner=64, top_k=1, experts=8)) == LATENCY
    assert len(BOUNDS) > LATENCY


# --- what more of anything does

SHAPE = {
    "T": st.integers(1, 40000),
    "ep": st.sampled_from([1, 2, 8, 64]),
    "tp": st.sampled_from([1, 2, 8]),
    "width": st.sampled_from([1.0, 2.0]),
    "gated": st.booleans(),
}


def given_shape(T, ep, tp, width, gated):
    return moe.shapes_of(T, **QWEN, ep=ep, tp=tp, weight_bytes=width, gated=gated)


@given(**SHAPE, factor=st.floats(1.0, 4.0))
def test_a_better_device_is_never_slower(factor, **shape):
    shapes = given_shape(**shape)
    base = seconds(shapes)
    peak = {name: value * factor for name, value in H100.peak.items()}
    for better in (
        replace(H100, bandwidth=H100.bandwidth * factor),
        replace(H100, peak=peak),
        replace(H100, units=int(H100.units * factor)),
        replace(H100, clock=H100.clock * factor),
    ):
        assert seconds(shapes, better) <= base * (1 + 1e-12)


@given(**SHAPE, more=st.integers(1, 2000))
def test_more_work_is_never_faster(more, **shape):
    base = seconds(given_shape(**shape))
    more_tokens = given_shape(**shape | {"T": shape["T"] + more})
    if moe.tiling(more_tokens)[0] == moe.tiling(given_shape(**shape))[0]:  # larger tiles may be the faster ones
        assert seconds(more_tokens) >= base * (1 - 1e-9)
    assert seconds(given_shape(**shape | {"tp": 1})) >= base * (1 - 1e-9)
    assert seconds(given_shape(**shape | {"gated": True})) >= base * (1 - 1e-9)


@given(**SHAPE)
def test_never_under_the_roofline_of_its_parameters(**shape):
    shapes = given_shape(**shape)
    assert seconds(shapes) >= float(np.ravel(moe.roofline(shapes, H100))[0])


@given(order=st.permutations(range(6)))
def test_the_order_of_shapes_does_not_matter(order):
    tokens, ep = np.array([1, 7, 300, 300, 5000, 60000]), np.array([1, 8, 8, 64, 2, 128])
    together = moe.time(moe.shapes_of(tokens, **QWEN, ep=ep, exponent=1.2), H100, OWN)
    mixed = moe.time(moe.shapes_of(tokens[order], **QWEN, ep=ep[order], exponent=1.2), H100, OWN)
    assert mixed[0] == pytest.approx(together[0][order])
    assert (mixed[1] == together[1][order]).all()


def test_arrays_equal_scalars():
    tokens = np.array([1, 7, 300, 5000, 60000])
    together = moe.time(moe.shapes_of(tokens, **QWEN, ep=8, exponent=1.2), H100, OWN)
    for index, T in enumerate(tokens):
        one = moe.time(moe.shapes_of(int(T), **QWEN, ep=8, exponent=1.2), H100, OWN)
        assert one[0].item() == pytest.approx(together[0][index])
        assert one[1].item() == together[1][index]


# --- rows of measurements


def frame(**values):
    row = {
        "device": "h100_sxm",
        "moe_dtype": "bfloat16",
        "num_tokens": 64,
        "hidden_size": 4096,
        "inter_size": 14336,
        "topk": 2,
        "num_experts": 8,
        "moe_tp_size": 4,
        "moe_ep_size": 1,
        "distribution": "balanced",
        "gated": 1,
    }
    return pd.DataFrame([row | values])


def test_measured_rows_hold_the_tokens_of_the_group():
    alone = moe.shapes(frame())
    assert (alone["elsewhere"][0], alone["mixed"][0]) == (0, 0)
    # 64 tokens choose two each on four ranks: 32 pairs here, 96 elsewhere; 32 tokens chose here, and 32 times elsewhere
    grouped = moe.shapes(frame(moe_ep_size=4))
    assert grouped["pairs"][0] == 32
    assert (grouped["elsewhere"][0], grouped["mixed"][0]) == (96, 32)
    assert moe.shapes_of(64, hidden=4096, inner=14336, top_k=2, experts=8, ep=4)["elsewhere"] == 0


def test_a_board_changes_nothing_but_its_data_sheet():
    here, there = moe.shapes(frame()), moe.shapes(frame(device="a100_sxm"))
    assert all((here[name] == there[name]).all() for name in here)
    assert list(moe.variants(frame())) == list(moe.variants(frame(device="a100_sxm")))


def test_variants():
    rows = pd.concat([frame(), frame(gated=0), frame(gated=0, moe_dtype="fp8"), frame(moe_dtype="fp8_block")])
    assert list(moe.variants(rows)) == ["bf16", "bf16_ungated", "fp8", "fp8_block"]


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="zipf"):
        moe.shapes(frame(distribution="zipf"))


def test_every_family_has_its_provenance():
    found = families(moe.MODEL)
    assert set(found["hopper"]) == {"bf16", "bf16_ungated", "fp8", "fp8_block"}
    assert set(found["ampere"]) == {"bf16", "bf16_ungated"}


@pytest.mark.parametrize(
    ("name", "arithmetic", "weight_bytes", "unpacked", "variant"),
    [
        ("bfloat16", "bf16", 2.0, False, "bf16"),
        ("fp8", "fp8", 1.0, False, "fp8"),
        # 4 bits and a byte for 16 or 32 elements, or 2 bytes for 128
        ("nvfp4", "fp4", 0.5625, False, "fp4"),
        ("w4a16_mxfp4", "bf16", 0.53125, True, "bf16"),
        ("int4_wo", "bf16", 0.515625, True, "bf16"),
    ],
)
def test_types_of_measured_rows(name, arithmetic, weight_bytes, unpacked, variant):
    columns = "moe_dtype num_tokens hidden_size inter_size topk num_experts moe_tp_size moe_ep_size gated distribution"
    row = pd.DataFrame([(name, 64, 2048, 768, 8, 128, 1, 1, 1, "balanced")], columns=columns.split())
    found = moe.shapes(row)
    assert ARITHMETIC[int(found["arithmetic"][0])] == arithmetic
    assert found["weight_bytes"][0] == weight_bytes
    assert bool(found["unpacked"][0]) == unpacked
    assert list(moe.variants(row)) == [variant]
