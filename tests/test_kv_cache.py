"""Bytes of a served sequence against published and worked numbers."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.architecture import architecture_names, load_architecture
from perfmodel.kernels import decode
from perfmodel.kv_cache import (
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    layer_kv_bytes_per_token,
    layer_state_bytes,
    state_bytes_per_sequence,
)


def load(name):
    return load_architecture(name, Path())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3.1-70b", 327_680),  # 2 * 80 * 8 * 128 * 2
        ("qwen3-32b", 262_144),  # 2 * 64 * 8 * 128 * 2
        ("opt-13b", 800 * 1024),  # arXiv 2309.06180, section 3: 800 KB
        ("deepseek-v3", 61 * (512 + 64) * 2),  # arXiv 2405.04434, table 1: 9/2 d_h a layer, d_h = 128
        ("minimax-m2.5", 248 * 1024),  # 2 * 62 * 8 * 128 * 2
        ("qwen3.5-397b-a17b", 15 * 2 * 2 * 256 * 2),  # every fourth of 60 layers
    ],
)
def test_a_token_in_16_bits(name, expected):
    assert kv_bytes_per_token(load(name), 2.0) == expected


def test_a_prompt_of_llama_70b():
    # 4000 tokens in 16 bits are 1.31 GB, 26.2 ms at 400 Gbit/s
    size = float(kv_bytes_per_sequence(load("llama-3.1-70b"), 4000, 2.0))
    assert size == pytest.approx(1.31e9, rel=1e-3)
    assert size * 8 / 400e9 == pytest.approx(26.2e-3, rel=1e-3)


def test_heads_are_shared_then_copied_and_a_latent_vector_is_whole():
    llama = load("llama-3.1-70b")
    assert list(kv_bytes_per_token(llama, 1.0, np.array([1, 2, 8, 16, 64]))) == [163840, 81920, 20480, 20480, 20480]
    assert set(kv_bytes_per_token(load("deepseek-v3"), 1.0, np.array([1, 8, 16]))) == {61 * 576.0}


def test_layers_with_a_window_hold_no_more_than_it():
    # gpt-oss-20b: 12 of 24 layers see 128 tokens; 8 heads of 64
    model, each = load("gpt-oss-20b"), 2 * 8 * 64 * 2
    for tokens in (1, 100, 128, 129, 5000):
        assert kv_bytes_per_sequence(model, tokens, 2.0) == 12 * each * (tokens + min(tokens, 128))
    assert list(kv_bytes_per_sequence(model, np.array([128, 256]), 2.0)) == [24 * each * 128, 12 * each * 384]


def test_state_of_linear_attention():
    # Qwen3.5-397B: 45 layers of 64 heads of 128 x 128 in 32 bits, and 3 tokens of (2 * 16 + 64) * 128 in 16 bits
    model = load("qwen3.5-397b-a17b")
    layer = 64 * 128 * 128 * 4 + 3 * 96 * 128 * 2
    assert state_bytes_per_sequence(model) == 45 * layer
    assert list(state_bytes_per_sequence(model, np.array([4, 8]))) == [45 * layer / 4, 45 * layer / 8]
    linear, full = (group.attention for group in model.layers)
    assert layer_kv_bytes_per_token(linear, 2.0) == 0 == layer_state_bytes(full)
    assert state_bytes_per_sequence(load("llama-3.1-8b")) == 0


@pytest.mark.parametrize("name", architecture_names())
@pytest.mark.parametrize("tp", [1, 2, 16])
def test_attention_reads_what_the_cache_holds(name, tp):
    # the kernel of one new token reads the whole cache of a layer once, however heads are shared
    for group in load(name).layers:
        if group.attention.kind == "linear":
            continue
        tokens = 100.0
        shapes = decode.shapes_of(group.attention, 1, tokens, tp=tp)
        assert decode.cache_traffic(shapes) == pytest.approx(
            float(tokens * layer_kv_bytes_per_token(group.attention, 2.0, tp))
        )


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_longer_sequence_holds_no_less(one, other):
    model = load("gemma-3-27b")
    sizes = kv_bytes_per_sequence(model, np.sort([one, other]), 2.0)
    assert sizes[0] <= sizes[1] <= max(one, other) * kv_bytes_per_token(model, 2.0)
