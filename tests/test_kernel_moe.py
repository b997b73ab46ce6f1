"""Fused experts: counts against draws and published formulas, the equations by hand, what more of anything does."""

import time as clock
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalogue import find
from perfmodel.kernels import moe
from perfmodel.kernels.expert_load import even_load, power_law_load, random_load
from perfmodel.kernels.library import families, parameters_of
from perfmodel.kernels.model import device_of
from perfmodel.terms import BOUNDS, COMPUTE, LATENCY, MEMORY

H100 = device_of(find("accelerator", "h100-80gb-sxm"))
OWN = parameters_of(moe.MODEL, find("accelerator", "h100-80gb-sxm"), "bf16").parameters
PLAIN = OWN.model_copy(
    update={
        "launch_us": 10.0,
        "compute": 0.5,
        "unit_bytes_per_clock": 100.0,
        "memory": 0.8,
        "traffic": 0.5,
        "step_clocks": 500.0,
        "softness": 1.0,
    }
)

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
    for tiles, rows in zip(load.tiles, (16, 64, 128), strict=True):
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
    for tiles, rows in zip(load.tiles, (16, 64, 128), strict=True):
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


def hand(T=512.0):
    """8 experts of 3 x 4096 x 1024, all chosen, 128 rows each: even numbers."""
    E, k = 8, 2
    return {
        "tokens": np.float64(T),
        "pairs": np.float64(T * k),
        "active": np.float64(E),
        "tiles_16": np.float64(T * k / 16),
        "tiles_64": np.float64(T * k / 64),
        "tiles_128": np.float64(T * k / 128),
        "local_tokens": np.float64(T),
        "hidden": np.float64(4096),
        "inner": np.float64(1024),
        "top_k": np.float64(k),
        "local": np.float64(E),
        "gated": np.bool_(True),
        "weight_bytes": np.float64(2.0),
        "tuned": np.bool_(False),
        "foreign": np.int64(0),
    }


def test_time_by_hand():
    rows, elements = 1024, 3 * 4096 * 1024
    arithmetic = 2 * rows * elements / (0.5 * 989e12)
    loading = rows * elements * 2 * (1 / 64 + 1 / 64) / (100 * 132 * 1.83e9)
    streaming = 8 * elements * 2 / (0.8 * 3.35e12)
    chain = (4096 + 1024) / 32 * 500 / 1.83e9
    between = (4 * 4096 + 12 * 1024) * rows / (0.5 * 3.35e12)
    expected = 10e-6 + between + arithmetic + loading + streaming + chain
    assert seconds(hand(), parameters=PLAIN) == pytest.approx(expected, rel=1e-9)


def test_rows_are_filled_up_to_tiles():
    shapes = hand() | {"tiles_64": np.float64(8 * 3)}  # 129 rows each: three tiles
    filled, loaded, steps = moe.tiling(shapes)
    assert float(filled) == 8 * 192
    assert float(loaded) == pytest.approx(1 / 32)
    assert float(steps) == 5120 / 32


def test_few_tokens_take_small_tiles():
    filled, loaded, steps = moe.tiling(hand(T=8.0) | {"tiles_16": np.float64(8)})
    assert (float(filled), float(loaded), float(steps)) == (128, 1 / 16 + 1 / 32, 80)


def test_foreign_choices():
    # a rank of two: half of the pairs are elsewhere; carried, they are written and read; computed, they are multiplied
    shapes = hand() | {
        "pairs": np.float64(512),
        "tiles_64": np.float64(8),
        "local": np.float64(4),
        "active": np.float64(4),
    }
    skipped, carried, computed = (
        seconds(shapes | {"foreign": np.int64(code)}, parameters=PLAIN) for code in range(len(moe.FOREIGN))
    )
    assert carried - skipped == pytest.approx(4 * 4096 * 512 / (0.5 * 3.35e12), rel=1e-9)
    more = 2 * 512 * 3 * 4096 * 1024 / (0.5 * 989e12) + 512 * 3 * 4096 * 1024 / 16 / (100 * 132 * 1.83e9)
    between = (4 * 4096 + 12 * 1024) * 512 / (0.5 * 3.35e12)
    assert computed - skipped == pytest.approx(more + between, rel=1e-9)


def test_roofline_by_hand():
    streaming = 8 * 3 * 4096 * 1024 * 2 / 3.35e12
    assert float(moe.roofline(hand(), H100)) == pytest.approx(streaming)
    many = hand() | {"pairs": np.float64(1e6)}
    assert float(moe.roofline(many, H100)) == pytest.approx(2e6 * 3 * 4096 * 1024 / 989e12)


def test_bounds():
    def bound(shapes, parameters=PLAIN):
        return int(np.ravel(moe.time(shapes, H100, parameters)[1])[0])

    large = moe.shapes_of(262144, hidden=8192, inner=16384, top_k=2, experts=8, tuned=True)
    assert bound(large) == COMPUTE
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
    "tuned": st.booleans(),
    "foreign": st.sampled_from(moe.FOREIGN),
}


def given_shape(T, ep, tp, width, gated, tuned, foreign):
    return moe.shapes_of(T, **QWEN, ep=ep, tp=tp, weight_bytes=width, gated=gated, tuned=tuned, foreign=foreign)


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
    if shape["foreign"] != "computed":  # those are one large group, which the larger tiles of more tokens speed up
        assert seconds(given_shape(**shape | {"T": shape["T"] + more})) >= base * (1 - 1e-9)
    assert seconds(given_shape(**shape | {"tp": 1})) >= base * (1 - 1e-9)
    assert seconds(given_shape(**shape | {"gated": True})) >= base * (1 - 1e-9)
    assert seconds(given_shape(**shape | {"foreign": "skipped"})) <= base * (1 + 1e-9)


@given(**SHAPE)
def test_never_under_the_roofline_of_its_parameters(**shape):
    shapes = given_shape(**shape)
    assert seconds(shapes) >= float(np.ravel(moe.roofline(shapes, H100))[0])


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


def test_measured_rows_know_their_library():
    assert bool(moe.shapes(frame())["tuned"][0])  # E=8,N=3584 is among sglang's files for this board
    assert not bool(moe.shapes(frame(moe_tp_size=32))["tuned"][0])
    assert not bool(moe.shapes(frame(device="h200"))["tuned"][0])  # tiles are a board's own
    assert moe.FOREIGN[int(moe.shapes(frame(moe_ep_size=2))["foreign"][0])] == "carried"
    assert moe.FOREIGN[int(moe.shapes(frame(moe_ep_size=2, moe_dtype="fp8"))["foreign"][0])] == "skipped"
    assert moe.FOREIGN[int(moe.shapes(frame(moe_ep_size=2, device="a100_sxm"))["foreign"][0])] == "computed"
    assert moe.FOREIGN[int(moe.shapes(frame(device="a100_sxm"))["foreign"][0])] == "skipped"  # no other rank


def test_variants():
    rows = pd.concat([frame(), frame(gated=0), frame(gated=0, moe_dtype="fp8"), frame(gated=0, device="a100_sxm")])
    assert list(moe.variants(rows)) == ["bf16", "bf16_ungated", "fp8", "bf16"]


def test_rows_without_a_device_are_untuned():
    shapes = moe.shapes(frame().drop(columns="device"))
    assert not bool(shapes["tuned"][0])
    assert int(shapes["foreign"][0]) == 0


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="zipf"):
        moe.shapes(frame(distribution="zipf"))


def test_every_family_has_its_provenance():
    found = families(moe.MODEL)
    assert set(found["hopper"]) == {"bf16", "bf16_ungated", "fp8", "fp8_block"}
    assert set(found["ampere"]) == {"bf16"}


def test_a_million_shapes_take_two_seconds():
    random = np.random.default_rng(0)
    shapes = moe.shapes_of(random.integers(1, 40000, 1_000_000), **QWEN, ep=8)
    start = clock.process_time()
    moe.time(shapes, H100, OWN)
    assert clock.process_time() - start < 2.0
