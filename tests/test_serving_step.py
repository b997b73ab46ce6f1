"""The step of an inference engine: closed forms, sums, monotone properties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.catalogue import resolve_cluster
from perfmodel.architecture import bundled_architecture
from perfmodel.kv_cache import kv_bytes_per_token
from perfmodel.serving.capacity import capacity, weight_bytes
from perfmodel.serving.engine import engines
from perfmodel.serving.server import Server, server
from perfmodel.serving.step import Deployment, Load, step


def _server(model: str = "llama-3.1-70b", node: str = "dgx-h100", engine: str = "vllm", **precisions: str) -> Server:
    machine = resolve_cluster(node, Path(), 1)
    return server(bundled_architecture(model), machine, engines()[engine], **precisions)


def _seconds(asked: Server, deployment: Deployment, load: Load) -> np.ndarray:
    return np.asarray(step(asked, deployment, load).seconds)


def test_children_add_up_to_the_step() -> None:
    term = step(_server(), Deployment(tp=np.array([2, 4, 8])), Load(64.0, 1500.0, 1.0, 512.0, 128.0))
    assert np.allclose(sum(child.seconds for child in term.children), term.seconds, rtol=1e-12)


def test_a_token_reads_all_weights_and_the_cache() -> None:
    """A step of one sequence takes at least the time of reading the weights: 141 GB over 4 x 3.35 TB/s = 10.5 ms."""
    asked = _server()
    weights = float(weight_bytes(asked, Deployment(tp=4)))
    assert weights == pytest.approx(70.55e9 * 2 / 4, rel=0.01)
    spent = float(_seconds(asked, Deployment(tp=4), Load(1.0, 1000.0)))
    assert weights / 3.35e12 < spent < 2 * weights / 3.35e12


def test_prompts_never_beat_the_peak() -> None:
    """2 P flops a token: 8,192 tokens of 70.6e9 parameters on 4 x 989 TFLOP/s take at least 0.29 s."""
    asked = _server()
    spent = float(_seconds(asked, Deployment(tp=4), Load(prompts=1.0, prompt_tokens=8192.0)))
    least = 2 * 69.5e9 * 8192 / (4 * 989e12)
    assert least < spent < 2.5 * least


def test_cache_of_what_weights_leave() -> None:
    asked = _server(precision_weights="fp8", precision_kv="bf16")
    found = capacity(asked, Deployment(tp=2), 8192)
    memory = asked.machine.accelerator.memory.capacity
    assert float(found.weights + found.workspace + found.context + found.cache) == pytest.approx(0.9 * memory)
    per_token = float(kv_bytes_per_token(asked.architecture, 2.0, 2))
    assert float(found.cache_tokens) == pytest.approx(float(found.cache) / per_token, abs=1.0)


@settings(max_examples=15, deadline=None)
@given(
    sequences=st.integers(1, 256),
    context=st.integers(16, 16_000),
    prompt=st.integers(0, 8192),
    tp=st.sampled_from([1, 2, 8]),
)
def test_more_to_do_never_takes_less(sequences: int, context: int, prompt: int, tp: int) -> None:
    asked = _server("llama-3.1-8b")
    loads = [
        Load(sequences, context, 1.0 if prompt else 0.0, prompt),
        Load(sequences, context * 1.5, 1.0 if prompt else 0.0, prompt),
        Load(sequences, context, 1.0, prompt + 2048),
    ]
    least, deeper, longer = (float(_seconds(asked, Deployment(tp=tp), load)) for load in loads)
    assert deeper >= least * (1 - 1e-9)
    assert longer >= least * (1 - 1e-9)


def test_experts_of_a_wide_instance() -> None:
    """Attention data parallelism exchanges tokens around the experts, and splits the sequences."""
    asked = _server("deepseek-v3-without-mtp", "dgx-h200", "sglang", precision_weights="fp8")
    term = step(asked, Deployment(tp=1, dp=8, ep=8), Load(256.0, 2000.0))
    seconds = {child.name: float(np.max(child.seconds)) for child in term.children}
    assert seconds["expert communication"] > 0
    assert seconds["tensor-parallel communication"] == 0
    assert seconds["experts"] > 0


def test_linear_attention_keeps_a_state() -> None:
    """The cache of three layers in four does not grow: ten times the context costs far less than ten times."""
    asked = _server("qwen3.5-397b-a17b", "dgx-b200", "sglang", precision_weights="fp8")
    names = [child.name for child in step(asked, Deployment(tp=8), Load(32.0, 1e3)).children]
    at = names.index("attention over the cache")
    short, long = (step(asked, Deployment(tp=8), Load(32.0, context)).children[at].seconds for context in (1e3, 1e4))
    assert short < long < 6 * short
