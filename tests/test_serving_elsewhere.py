"""Attention and experts outside an instance's accelerators: worked numbers, and what a step becomes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hardware.catalogue import resolve_cluster
from perfmodel.architecture import bundled_architecture
from perfmodel.serving.elsewhere import attention_elsewhere, experts_elsewhere
from perfmodel.serving.engine import engines
from perfmodel.serving.server import Server, server
from perfmodel.serving.step import Deployment, Load, step
from perfmodel.terms import Term

CACHE, EXPERTS = "attention over the cache", "experts"


def _server(model: str, node: str = "dgx-h100", **precisions: str) -> Server:
    return server(bundled_architecture(model), resolve_cluster(node, Path(), 1), engines()["vllm"], **precisions)


def _parts(term: Term) -> dict[str, np.ndarray]:
    return {child.name: np.asarray(child.seconds) for child in term.children}


def test_attention_of_lamina() -> None:
    """Llama-3-70B beside one H20 that reaches 0.7 of 4 TB/s (arXiv 2405.01814).

    300 sequences of 4,096 tokens of 327,680 bytes take 143.805 ms to read; (2 + 2/8) x 2 x 8192 x 300 x 80 =
    884,736,000 bytes cross, at 50 GB/s in 17.695 ms; 80 layers wait for 2 x 5 us twice.
    """
    asked = _server("llama-3.1-70b")
    hook = attention_elsewhere(0.7 * 4e12, 50e9, 5e-6)
    here, there = hook(asked, Deployment(), Load(np.array([0.0, 100.0, 300.0]), 4096.0), np.zeros(3))
    assert np.all(np.asarray(here) == 0)
    assert there == pytest.approx([0.0, 47.935e-3 + 5.898e-3 + 0.8e-3, 143.805e-3 + 17.695e-3 + 0.8e-3], abs=2e-6)


def test_latent_attention_reads_and_sends_latent_vectors() -> None:
    """DeepSeek-V3: 70,272 bytes a token; 128 heads of 2 x 512 + 64 and a latent of 576, 61 layers, 2 bytes each."""
    there = attention_elsewhere(1e12, 1e11)(
        _server("deepseek-v3-without-mtp", precision_weights="fp8", precision_kv="bf16"),
        Deployment(),
        Load(16.0, 1000.0),
        np.zeros(()),
    )[1]
    moved = 16 * 61 * 2 * (128 * (2 * 512 + 64) + 512 + 64)
    assert there == pytest.approx(16 * 1000 * 70_272 / 1e12 + moved / 1e11)


def test_experts_that_are_missing() -> None:
    """16 tokens of 8 of 256 experts hit 101.96 of them, each 3 x 7168 x 2048 bytes, in 58 layers; half are missing."""
    asked = _server("deepseek-v3-without-mtp", precision_weights="fp8")
    hook = experts_elsewhere(0.5, 8 * 55e9)
    here, there = hook(asked, Deployment(), Load(12.0, 100.0, 1.0, 4.0), np.array(3.0))
    width = asked.form.weight_bytes
    assert here == 3.0
    assert there == pytest.approx(0.5 * 58 * 101.96 * 3 * 7168 * 2048 * width / (8 * 55e9), rel=1e-4)


def test_a_step_waits_for_what_is_elsewhere() -> None:
    """Nothing but the part changes; the new time is a term of its own, and steps of a pipeline hold their share."""
    asked = _server("llama-3.1-70b")
    hook = attention_elsewhere(3e12, 50e9)
    spread, load = Deployment(tp=4, pp=np.array([1, 2])), Load(64.0, 2000.0)
    before = _parts(step(asked, spread, load))
    term = step(replace(asked, elsewhere={CACHE: hook}), spread, load)
    after = _parts(term)
    expected = hook(asked, spread, replace(load, sequences=np.array([64.0, 32.0])), np.zeros(2))[1]
    assert after[f"{CACHE}, elsewhere"] == pytest.approx(np.asarray(expected))
    assert np.all(after[CACHE] == 0)
    same = [name for name in before if name not in (CACHE, "slower than kernels alone", "kernel launches by the host")]
    assert all(np.allclose(before[name], after[name]) for name in same)
    assert np.allclose(sum(after.values()), term.seconds, rtol=1e-12)


def test_fetched_experts_add_to_their_kernels() -> None:
    asked = _server("qwen3-30b-a3b")
    load = Load(32.0, 500.0)
    before = _parts(step(asked, Deployment(tp=2), load))
    after = _parts(step(replace(asked, elsewhere={EXPERTS: experts_elsewhere(0.75, 1e11)}), Deployment(tp=2), load))
    assert after[EXPERTS] == pytest.approx(before[EXPERTS])
    assert sum(after.values()) - sum(before.values()) == pytest.approx(float(after[f"{EXPERTS}, elsewhere"]))


def test_linear_attention_has_no_cache() -> None:
    asked = _server("qwen3.5-397b-a17b", "dgx-h200", precision_weights="fp8")
    with pytest.raises(ValueError, match="linear attention"):
        step(replace(asked, elsewhere={CACHE: attention_elsewhere(1e12, 1e11)}), Deployment(tp=8), Load(1.0, 10.0))
