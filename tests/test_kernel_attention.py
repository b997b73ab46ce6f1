import time as clock
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalogue import find
from hardware.efficiency import DecodeParameters, PrefillParameters
from perfmodel.architecture import load_architecture
from perfmodel.kernels import decode, prefill
from perfmodel.kernels.library import families, parameters_of
from perfmodel.kernels.model import Device, device_of
from perfmodel.terms import COMPUTE, LATENCY, MEMORY

H100 = device_of(find("accelerator", "h100-80gb-sxm"))
A100 = device_of(find("accelerator", "a100-80gb-sxm"))
ROUND = Device("round", "hopper", {"bf16": 1e15, "fp8": 2e15}, 1e12, 50e6, 100, 1e9, 1e9)
PREFILL = PrefillParameters(
    launch_us=10.0,
    compute=0.5,
    memory=0.5,
    key_value_passes=2.0,
)
DECODE = DecodeParameters(
    launch_clocks=10000.0,
    compute=0.5,
    piece_kib=256.0,
    item_clocks=5000.0,
    head_clocks=100.0,
    softness=1.0,
)


def prefill_shapes(**values):
    given = {
        "sequences": 1.0,
        "new_tokens": 1024.0,
        "cached_tokens": 0.0,
        "heads": 32.0,
        "kv_heads": 8.0,
        "key_dim": 128.0,
        "value_dim": 128.0,
        "window": 0.0,
        "query_bytes": 2.0,
        "cache_bytes": 2.0,
    }
    assert not set(values) - set(given)
    return {name: np.asarray(value) for name, value in (given | values).items()}


def decode_shapes(**values):
    given = {
        "sequences": 64.0,
        "kv_len": 1024.0,
        "heads": 32.0,
        "kv_heads": 8.0,
        "key_dim": 128.0,
        "value_dim": 128.0,
        "latent": False,
        "window": 0.0,
        "block_size": 1.0,
        "query_bytes": 2.0,
        "cache_bytes": 2.0,
        "warm": False,
    }
    assert not set(values) - set(given)
    return {name: np.asarray(value) for name, value in (given | values).items()}


def seconds(model, shapes, device, parameters):
    return float(model.time(shapes, device, parameters)[0])


# closed forms


@given(
    new=st.integers(1, 3000),
    cached=st.integers(0, 3000),
    window=st.sampled_from([0, 1, 128, 500, 1024, 5000]),
    width=st.sampled_from([64, 128, 256, 512]),
)
def test_tiles_equal_their_enumeration(new, cached, window, width):
    side = 32 if width > 256 else 128
    rows = -(-new // side)
    before = -(-cached // side)
    limit = -(-window // side) + 1 if window else rows + before
    lengths = [min(before + row, limit) for row in range(1, rows + 1)]
    shapes = prefill_shapes(new_tokens=new, cached_tokens=cached, window=window, key_dim=width, value_dim=width)
    tiles, longest = prefill.tile_counts(shapes)
    assert float(tiles) == sum(lengths)
    assert float(longest) == max(lengths)


@given(new=st.integers(1, 300), cached=st.integers(0, 300), window=st.sampled_from([0, 1, 16, 100, 400]))
def test_roofline_counts_the_pairs_each_query_sees(new, cached, window):
    pairs = sum(min(cached + query, window or cached + query) for query in range(1, new + 1))
    shapes = prefill_shapes(new_tokens=new, cached_tokens=cached, window=window, heads=1.0, kv_heads=1.0)
    infinite = replace(ROUND, bandwidth=1e30)
    assert float(prefill.roofline(shapes, infinite)) == pytest.approx(2 * pairs * 256 / 1e15)


def test_prefill_by_hand():
    # 8 rows of 1..8 tiles a head: 36; 2 x 128^2 x 256 FLOP a tile at half of 1e15 are 16.8 ns on the whole chip, its
    # exponentials, 16 a clock on 100 units of 1 GHz, 10.2 ns
    tile = ((2 * 128 * 128 * 256 / 0.5e15) ** 2 + (128 * 128 / 1.6e12) ** 2) ** 0.5
    work = 32 * 36 * tile
    # queries and results 1024 x 32 x 256 x 2 B, keys and values twice 1024 x 8 x 256 x 2 B, at half of 1 TB/s
    memory = (1024 * 32 * 256 * 2 + 2 * 1024 * 8 * 256 * 2) / 0.5e12
    expected = 10e-6 + 0.5 * 8 * tile * 100 + work + memory
    found, bound = prefill.time(prefill_shapes(), ROUND, PREFILL)
    assert float(found) == pytest.approx(expected)
    assert bound == MEMORY


def test_exponentials_hold_fast_tensor_cores_back():
    long = prefill_shapes(new_tokens=65536.0, sequences=8.0)
    faster = replace(ROUND, peak={"bf16": 1e30}, bandwidth=1e30)
    pairs = 8 * 32 * 512 * 513 / 2 * 128**2
    last = 0.5 * 512 * 100 * 128**2
    assert seconds(prefill, long, faster, PREFILL) == pytest.approx(10e-6 + (pairs + last) / 1.6e12)
    # B200 has 2.3 times H100's peak on 1.1 times its units, of about the same clock: of a pair's 512 FLOP and one
    # exponential 0.455 and 0.228 ps there, 1.035 and 0.259 ps on H100, so 8.5 % less of its peak
    b200 = device_of(find("accelerator", "b200-sxm"))
    share = [seconds(prefill, long, device, PREFILL) * device.peak["bf16"] for device in (H100, b200)]
    assert share[1] / share[0] == pytest.approx(1.085, abs=0.005)
    # a few large matrix engines have no such units
    large = replace(ROUND, units=2, clock=1e3)
    assert seconds(prefill, long, large, PREFILL) < 2 * seconds(prefill, long, ROUND, PREFILL)


def test_short_sequences_of_grouped_heads_share_a_row_of_tiles():
    # 16 tokens x 8 heads a key head = 128 rows: one tile for a group instead of one a head
    grouped = prefill_shapes(sequences=1000.0, new_tokens=16.0, heads=64.0, kv_heads=8.0)
    own = prefill_shapes(sequences=1000.0, new_tokens=16.0, heads=64.0, kv_heads=64.0)
    fast = replace(ROUND, bandwidth=1e30)
    fixed = seconds(prefill, prefill_shapes(sequences=1e-9, new_tokens=16.0), fast, PREFILL)
    ratio = (seconds(prefill, own, fast, PREFILL) - fixed) / (seconds(prefill, grouped, fast, PREFILL) - fixed)
    assert ratio == pytest.approx(8.0, rel=1e-6)


def test_decode_by_hand():
    # 64 x 8 items fill 100 units; cache 64 x 1024 x 8 x 256 x 2 B, queries and results 64 x 32 x 256 x 2 B
    memory = (64 * 1024 * 8 * 256 * 2 + 64 * 32 * 256 * 2) / 0.95e12
    compute = 2 * 64 * 8 * 64 * 1024 * 256 / 0.5e15  # four heads a key head are filled up to 64 rows
    item = (5000 * 64 * 8 + 100 * 64 * 32) / (100 * 1e9)
    found, bound = decode.time(decode_shapes(), ROUND, DECODE)
    assert float(found) == pytest.approx(10e-6 + memory + compute + item)
    assert bound == MEMORY


def test_few_items_leave_units_idle():
    # one item of 2048 tokens x 256 x 2 B = 1 MiB is split into 4 pieces of 256 KiB: 4 of 100 units compute
    shapes = decode_shapes(sequences=1.0, kv_len=2048.0, heads=1.0, kv_heads=1.0)
    memory = (2048 * 256 * 2 + 256 * 2) / 0.95e12
    compute = 2 * 64 * 2048 * 256 / (0.5e15 * 4 / 100)
    item = (5000 + 100) / (100 * 1e9)
    assert seconds(decode, shapes, ROUND, DECODE) == pytest.approx(10e-6 + memory + compute + item)


def test_portable_kernels_split_a_cache_in_eight_at_most():
    # 16,384 tokens x 1024 x 1 B are 64 pieces of 256 KiB; keys 512 wide in one byte an element make 8, two to a unit
    shapes = decode_shapes(
        sequences=1.0, kv_len=16384.0, heads=1.0, kv_heads=1.0, key_dim=512.0, value_dim=512.0, cache_bytes=1.0
    )
    memory = (16384 * 1024 + 512 * 4) / 0.95e12
    compute = 2 * 64 * 16384 * 1024 / (1e15 * 4 / 100)
    assert seconds(decode, shapes, ROUND, DECODE) == pytest.approx(10e-6 + memory + compute + 5100 / 100e9)
    wide = shapes | {"cache_bytes": np.asarray(2.0)}  # 128 pieces of two bytes an element, on all units
    memory, compute = (2 * 16384 * 1024 + 512 * 4) / 0.95e12, 2 * 64 * 16384 * 1024 / 0.5e15
    assert seconds(decode, wide, ROUND, DECODE) == pytest.approx(10e-6 + memory + compute + 5100 / 100e9)


def test_a_warm_cache_is_read_from_l2():
    shapes = {"sequences": 2.0, "kv_len": 1024.0, "heads": 8.0}
    cold = seconds(decode, decode_shapes(**shapes), ROUND, DECODE)
    warm = seconds(decode, decode_shapes(**shapes, warm=True), ROUND, DECODE)
    # 2 sequences x 1024 tokens x 8 x 256 x 2 B = 8.4 MB, under half of w L2 = 25 MB: all of it comes from L2, which
    # gives 108 units 5,120 B a clock, so 100 units at 1 GHz 4.74 TB/s
    moved = 2 * 1024 * 8 * 256 * 2 + 2 * 8 * 256 * 2
    assert cold - warm == pytest.approx(moved / 0.95e12 - moved / (5120 / 108 * 100e9))
    large = {"sequences": 4096.0}
    assert seconds(decode, decode_shapes(**large, warm=True), ROUND, DECODE) == pytest.approx(
        seconds(decode, decode_shapes(**large), ROUND, DECODE)
    )


def test_what_bounds_a_kernel():
    def bound(model, shapes, parameters):
        return int(model.time(shapes, H100, parameters)[1])

    assert bound(prefill, prefill_shapes(new_tokens=1.0, heads=1.0, kv_heads=1.0), PREFILL) == LATENCY
    assert bound(prefill, prefill_shapes(new_tokens=16384.0), PREFILL) == COMPUTE
    assert bound(prefill, prefill_shapes(sequences=4096.0, new_tokens=64.0, kv_heads=32.0), PREFILL) == MEMORY
    assert bound(decode, decode_shapes(sequences=1.0, kv_len=2.0), DECODE) == LATENCY
    assert bound(decode, decode_shapes(kv_len=32768.0), DECODE) == MEMORY
    # a short cache of very many sequences: their items take longer than their bytes
    assert bound(decode, decode_shapes(sequences=100000.0, kv_len=2.0), DECODE) == LATENCY
    # 2 x 256 heads over one key head: 1088 x 512 FLOP on 1152 bytes a token, beyond the ridge of 295 FLOP/B
    latent = decode_shapes(heads=512.0, kv_heads=1.0, key_dim=576.0, value_dim=512.0, latent=True, kv_len=32768.0)
    assert bound(decode, latent, DECODE) == COMPUTE


# variants of attention


def test_window_limits_what_is_read():
    assert seconds(decode, decode_shapes(kv_len=8192.0, window=1024.0), ROUND, DECODE) == seconds(
        decode, decode_shapes(kv_len=1024.0), ROUND, DECODE
    )
    full = seconds(prefill, prefill_shapes(new_tokens=16384.0), ROUND, PREFILL)
    assert seconds(prefill, prefill_shapes(new_tokens=16384.0, window=1024.0), ROUND, PREFILL) < 0.3 * full
    assert seconds(prefill, prefill_shapes(new_tokens=1024.0, window=4096.0), ROUND, PREFILL) == seconds(
        prefill, prefill_shapes(new_tokens=1024.0), ROUND, PREFILL
    )


@given(length=st.integers(1, 5000), block=st.sampled_from([1, 16, 64, 256]))
def test_paged_cache_reads_whole_blocks(length, block):
    blocks = -(-length // block)
    assert float(decode.read_tokens(decode_shapes(kv_len=length, block_size=block))) == blocks * block


def test_eight_bit_cache_halves_its_traffic():
    narrow, wide = decode_shapes(cache_bytes=1.0), decode_shapes()
    assert float(decode.cache_traffic(narrow)) == float(decode.cache_traffic(wide)) / 2
    assert seconds(decode, narrow, H100, DECODE) < seconds(decode, wide, H100, DECODE)
    # A100 has no 8-bit floating point: the cache is smaller, its arithmetic stays in 16 bits
    assert seconds(decode, narrow, A100, DECODE) < seconds(decode, wide, A100, DECODE)
    with pytest.raises(ValueError, match="no fp8 peak"):
        prefill.time(prefill_shapes(query_bytes=1.0), A100, PREFILL)


def test_shapes_of_grouped_queries():
    attention = load_architecture("llama-3.1-70b", Path()).layers[0].attention
    shapes = decode.shapes_of(attention, 16, 4096, tp=4)
    # 64 query and 8 key-value heads of 128 over 4 ranks: 16 and 2; a token's cache is 2 x 2 x 128 x 2 B
    assert (float(shapes["heads"]), float(shapes["kv_heads"])) == (16.0, 2.0)
    assert float(decode.cache_traffic(shapes)) == 16 * 4096 * 2 * 2 * 128 * 2
    assert float(decode.shapes_of(attention, 16, 4096, tp=16)["kv_heads"]) == 1.0
    first = prefill.shapes_of(attention, 2, 512, cached_tokens=1024, tp=4)
    assert float(prefill.tile_counts(first)[0]) == 9 + 10 + 11 + 12


def test_shapes_of_latent_attention():
    attention = load_architecture("deepseek-v3", Path()).layers[0].attention
    # DeepSeek-V3 (arXiv 2412.19437, section 4.2): 128 heads, 128 + 64 wide keys, 128 wide values, latent 512
    shapes = decode.shapes_of(attention, 8, 1000, tp=8)
    assert float(shapes["heads"]) == 16.0
    assert float(shapes["kv_heads"]) == 1.0
    assert float(decode.cache_traffic(shapes)) == 8 * 1000 * (512 + 64) * 2
    long = prefill.shapes_of(attention, 1, 4096, tp=8)
    assert (float(long["key_dim"]), float(long["value_dim"])) == (192.0, 128.0)
    assert float(long["kv_heads"]) == 16.0


def test_forms_of_the_library():
    assert prefill.variant_of(128) == "bf16"
    assert prefill.variant_of(96) == "bf16"
    assert prefill.variant_of(80, 1.0, 1.0) == "fp8"
    assert prefill.variant_of(192, 2.0, 1.0) == "bf16_kv8_d192"
    assert prefill.variant_of(1024) == "bf16_d512"
    assert decode.variant_of(64, 1.0) == "bf16_kv8_d64"
    assert decode.variant_of(576, latent=True) == "bf16"


# properties

SIZES = {
    "sequences": st.integers(1, 512),
    "heads_per_key": st.sampled_from([1, 2, 4, 8, 16]),
    "kv_heads": st.sampled_from([1, 2, 8, 32]),
    "tokens": st.integers(1, 20000),
    "warm": st.booleans(),
}


def both(sequences, heads_per_key, kv_heads, tokens, warm):
    common = {
        "sequences": float(sequences),
        "heads": float(heads_per_key * kv_heads),
        "kv_heads": float(kv_heads),
    }
    return (
        (prefill, prefill_shapes(new_tokens=float(tokens), **common), prefill.MODEL),
        (decode, decode_shapes(kv_len=float(tokens), warm=warm, **common), decode.MODEL),
    )


@given(**SIZES, family=st.sampled_from(["hopper", "ampere"]), factor=st.floats(1.0, 4.0))
def test_a_better_device_is_never_slower(sequences, heads_per_key, kv_heads, tokens, warm, family, factor):
    for model, shapes, entry in both(sequences, heads_per_key, kv_heads, tokens, warm):
        parameters = families(entry)[family]["bf16"]
        base = seconds(model, shapes, H100, parameters)
        peak = {name: value * factor for name, value in H100.peak.items()}
        more_units = round(H100.units * factor)
        of_units = {name: value * more_units / H100.units for name, value in H100.peak.items()}
        better = [
            replace(H100, bandwidth=H100.bandwidth * factor),
            replace(H100, peak=peak),
            replace(H100, units=more_units, peak=of_units),
            replace(H100, clock=H100.clock * factor),
            replace(H100, l2=H100.l2 * factor),
        ]
        for device in better:
            assert seconds(model, shapes, device, parameters) <= base * (1 + 1e-9)


@given(**SIZES, family=st.sampled_from(["hopper", "ampere"]), more=st.integers(1, 3000))
def test_more_work_is_never_faster(sequences, heads_per_key, kv_heads, tokens, warm, family, more):
    for model, shapes, entry in both(sequences, heads_per_key, kv_heads, tokens, warm):
        parameters = families(entry)[family]["bf16"]
        base = seconds(model, shapes, H100, parameters)
        length = "new_tokens" if model is prefill else "kv_len"
        for name, value in ((length, more), ("sequences", more)):
            larger = shapes | {name: shapes[name] + value}
            assert seconds(model, larger, H100, parameters) >= base * (1 - 1e-9)
        grouped = shapes | {"heads": shapes["heads"] + shapes["kv_heads"] * 8}
        assert seconds(model, grouped, H100, parameters) >= base * (1 - 1e-9)


@given(**SIZES)
def test_warm_is_never_slower_than_cold(sequences, heads_per_key, kv_heads, tokens, warm):
    _, shapes, _ = both(sequences, heads_per_key, kv_heads, tokens, warm)[1]
    for family in ("hopper", "ampere"):
        parameters = families(decode.MODEL)[family]["bf16"]
        warm_time = seconds(decode, shapes | {"warm": np.asarray(True)}, H100, parameters)
        assert warm_time <= seconds(decode, shapes | {"warm": np.asarray(False)}, H100, parameters)


@given(rows=st.lists(st.tuples(*SIZES.values()), min_size=1, max_size=8))
def test_arrays_equal_scalars(rows):
    made = [both(*row) for row in rows]
    for position, (model, parameters) in enumerate(((prefill, PREFILL), (decode, DECODE))):
        single = [entry[position][1] for entry in made]
        stacked = {name: np.array([shapes[name] for shapes in single]) for name in single[0]}
        found, bounds = model.time(stacked, H100, parameters)
        for index, shapes in enumerate(single):
            alone, bound = model.time(shapes, H100, parameters)
            assert float(alone) == pytest.approx(float(found[index]), rel=1e-12)
            assert int(bound) == int(bounds[index])


@given(**SIZES)
def test_cold_kernels_take_longer_than_the_roofline(sequences, heads_per_key, kv_heads, tokens, warm):
    for model, shapes, entry in both(sequences, heads_per_key, kv_heads, tokens, warm):
        cold = shapes | {"warm": np.asarray(False)}
        for family in ("hopper", "ampere"):
            assert seconds(model, cold, H100, families(entry)[family]["bf16"]) > float(model.roofline(cold, H100))


def test_rows_of_measurements_are_warm_shapes():
    frame = pd.DataFrame(
        {
            "attn_dtype": ["bfloat16", "fp8"],
            "kv_dtype": ["fp8", "fp8"],
            "batch": [2, 3],
            "seq": [5, 6],
            "kv_len": [7, 8],
            "heads": [16, 32],
            "kv_heads": [4, 8],
            "head_dim": [64, 128],
        }
    )
    first, one = prefill.shapes(frame), decode.shapes(frame)
    assert one["warm"].all()
    assert first["query_bytes"].tolist() == [2.0, 1.0]
    assert first["new_tokens"].tolist() == [5.0, 6.0]
    assert one["kv_len"].tolist() == [7.0, 8.0]
    assert one["key_dim"].tolist() == [64.0, 128.0]
    assert prefill.variants(frame).tolist() == ["bf16_kv8_d64", "fp8"]
    assert decode.variants(frame).tolist() == ["bf16_kv8_d64", "bf16_kv8"]
    with pytest.raises(ValueError, match="attn_dtype: no width is known of fp3"):
        prefill.shapes(frame.assign(attn_dtype="fp3"))
    assert {len(values) for values in (*first.values(), *one.values())} == {2}


def test_shipped_families():
    for model in (prefill.MODEL, decode.MODEL):
        assert {"bf16"} == set(families(model)["ampere"])
        assert {"bf16", "bf16_kv8", "bf16_d64", "bf16_kv8_d256"} <= set(families(model)["hopper"])
        own = parameters_of(model, find("accelerator", "h100-80gb-sxm"), "bf16")
        borrowed = parameters_of(model, find("accelerator", "a100-80gb-sxm"), "bf16_d64")
        assert own.origin == "hopper.bf16"
        assert borrowed.origin == "hopper.bf16_d64"
        assert borrowed.parameters.spread > families(model)["hopper"]["bf16_d64"].spread


def test_a_million_shapes_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    many = {"sequences": rng.integers(1, 256, 1_000_000).astype(float)}
    for model, shapes, parameters in ((prefill, prefill_shapes(), PREFILL), (decode, decode_shapes(), DECODE)):
        length = "new_tokens" if model is prefill else "kv_len"
        arrays = shapes | many | {length: rng.integers(1, 16384, 1_000_000).astype(float)}
        arrays = dict(zip(arrays, np.broadcast_arrays(*arrays.values()), strict=True))
        start = clock.process_time()
        model.time(arrays, H100, parameters)
        assert clock.process_time() - start < 2.0
