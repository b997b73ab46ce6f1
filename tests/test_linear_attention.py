"""A gated delta network in serving: the chunked form against the recurrence, and its kernels against both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalogue import find
from perfmodel.architecture import bundled_architecture, layer_parameters
from perfmodel.job import kernels_of
from perfmodel.kernels import decode, prefill
from perfmodel.kernels.gemm import FORMS
from perfmodel.kernels.model import device_of
from perfmodel.kernels.work import Work, timed
from perfmodel.kv_cache import layer_kv_bytes_per_token, layer_state_bytes
from perfmodel.linear_attention import CHUNK, prompt_works, token_works
from perfmodel.operators import Shape, attention_operators, attention_products

QWEN = bundled_architecture("qwen3.5-397b-a17b")
assert QWEN
LINEAR, FULL = (group.attention for group in QWEN.layers)
ACCELERATOR = find("accelerator", "b200-sxm")
DEVICE = device_of(ACCELERATOR)
KERNELS = kernels_of(ACCELERATOR, ("gemm.bf16", "memory.stream", "memory.norm", "prefill.bf16_d256"))


def seconds(works):
    return sum(time for time, _ in timed(works, DEVICE, KERNELS))


class Counted:
    """Multiplies matrices and counts the operations."""

    def __init__(self):
        self.flops = 0

    def __call__(self, one, other):
        self.flops += 2 * one.shape[0] * one.shape[1] * other.shape[1]
        return one @ other


def recurrence(Q, K, X, decay, share):
    state, results = np.zeros((K.shape[1], X.shape[1])), []
    for q, k, x, a, w in zip(Q, K, X, decay, share, strict=True):
        state = a * state + np.outer(k, w * (x - a * state.T @ k))
        results.append(state.T @ q)
    return np.array(results)


def chunked(Q, K, X, decay, share, times):
    """Do what arXiv 2412.06464, section 3.3, does with chunks; `times` multiplies."""
    state, results = np.zeros((K.shape[1], X.shape[1])), []
    for start in range(0, len(Q), CHUNK):
        part = slice(start, start + CHUNK)
        q, k, x, g = Q[part], K[part], X[part], np.cumprod(decay[part])[:, None]
        between = g / g.T
        A = np.tril(share[part][:, None] * times(k, k.T) * between, -1)
        T = np.linalg.inv(np.eye(len(q)) + A) * share[part]
        times.flops += 2 * len(q) ** 3  # the inverse, as one product
        N = times(T, x) - times(times(T, g * k), state)
        results.append(times(g * q, state) + times(np.tril(times(q, k.T) * between), N))
        state = g[-1] * state + times((g[-1] / g * k).T, N)
    return np.concatenate(results)


def test_products_are_those_of_an_algorithm_that_gives_what_the_recurrence_gives():
    random = np.random.default_rng(1)
    tokens, d, v = 3 * CHUNK, LINEAR.head_dim, LINEAR.v_head_dim
    Q, K = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in random.normal(size=(2, tokens, d)))
    X, decay, share = random.normal(size=(tokens, v)), random.uniform(0.8, 1, tokens), random.random(tokens)
    times = Counted()
    assert chunked(Q, K, X, decay, share, times) == pytest.approx(recurrence(Q, K, X, decay, share), abs=1e-9)
    products = [work for work in prompt_works(LINEAR, 1, tokens) if work.kernel.startswith("gemm")]
    flops = sum(
        2 * work.times * work.shapes["batch"] * work.shapes["m"] * work.shapes["n"] * work.shapes["k"]
        for work in products
    )
    assert flops == LINEAR.heads * times.flops


def test_a_token_reads_and_writes_the_state():
    sequences, tp = 24, 4
    works = token_works(LINEAR, sequences, tp=tp)
    moved = sum(float(work.shapes["rows"] * work.shapes["row_bytes"]) for work in works)
    state = 2 * sequences * float(layer_state_bytes(LINEAR, tp))
    # beside it, of a rank's 16 value heads: queries, keys and values thrice, results and gates four times, in 16 bits
    mixed, results = (2 * 16 + 64) * 128 / 4, 64 * 128 / 4
    beside = 2 * sequences * (3 * mixed + 4 * results)
    assert moved == pytest.approx(state + beside, abs=3 * 4096)
    assert sum(work.launches for work in works) == 3


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 2, 8, 16]))
def test_more_sequences_take_no_less(one, other, tp):
    few, many = sorted((one, other))
    assert seconds(token_works(LINEAR, few, tp=tp)) <= seconds(token_works(LINEAR, many, tp=tp)) * (1 + 1e-9)
    assert seconds(token_works(LINEAR, few, tp=tp)) <= seconds(token_works(LINEAR, few)) * (1 + 1e-9)


def test_prompts_take_time_by_their_length_not_its_square():
    lengths = np.array([16384, 32768, 65536])
    linear = seconds(prompt_works(LINEAR, 1, lengths, tp=8))
    full = seconds([Work("prefill.bf16_d256", prefill.shapes_of(FULL, 1, lengths, tp=8))])
    assert linear[1:] / linear[:-1] == pytest.approx(2.0, rel=0.05)
    assert (full[1:] / full[:-1] > 3).all()
    assert linear[-1] < full[-1]


def test_arrays_give_what_numbers_give():
    lengths, sequences = np.array([[1, 100, 3000]]), np.array([[1], [8]])
    together = seconds(prompt_works(LINEAR, sequences, lengths, tp=2))
    one_by_one = [[float(seconds(prompt_works(LINEAR, b, s, tp=2))) for s in (1, 100, 3000)] for b in (1, 8)]
    assert together == pytest.approx(np.array(one_by_one), rel=1e-6)


@pytest.mark.parametrize("tp", [1, 2])
def test_products_of_a_block_hold_its_weights(tp):
    shape = Shape(10.0, 1.0, 10.0, tp, 1, 1, 1, 1)
    for group in QWEN.layers:
        products = attention_products(group.attention, QWEN.hidden, shape, FORMS["bf16"])
        held = sum(float(work.shapes["n"] * work.shapes["k"]) for found in products for work in found.forward)
        counted = layer_parameters(group, QWEN.hidden).attention
        if group.attention.kind == "linear":  # the convolution and two numbers a head are in no product
            counted -= (2 * 16 + 64) * 128 * 4 + 2 * 64
        assert held == counted / tp


def test_linear_attention_is_not_trained_and_has_no_cache():
    shape = Shape(10.0, 1.0, 10.0, 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="not in training"):
        attention_operators(
            LINEAR, QWEN.hidden, shape, norm=True, rope=True, fused=True, dropout=False, form=FORMS["bf16"]
        )
    for sizes in (lambda: prefill.shapes_of(LINEAR, 1, 10), lambda: decode.shapes_of(LINEAR, 1, 10)):
        with pytest.raises(ValueError, match="linear attention"):
            sizes()
    assert layer_kv_bytes_per_token(LINEAR, 2.0) == 0
