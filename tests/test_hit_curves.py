"""Hit curves: against a cache that is simulated block by block, a published trace's table, and theory."""

import csv
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from hardware.faults import InputError
from perfmodel import hit_curves
from perfmodel.hit_curves import characteristic_time_hit_ratio, che_hit_ratio, replay
from perfmodel.request_traces import BlockAccesses, block_pieces

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data")) / "kv_power"


def accesses(prompts, block_tokens=16, lengths=None):
    starts = np.concatenate([[0], np.cumsum([len(prompt) for prompt in prompts])])
    tokens = np.array(lengths or [block_tokens * len(prompt) for prompt in prompts])
    return BlockAccesses(tokens, starts, np.concatenate([np.asarray(prompt) for prompt in prompts]).astype(np.int64))


def simulated(prompts, capacity):
    """Count blocks found after found ones, and blocks found, in a cache that is kept block by block."""
    cache: OrderedDict[int, None] = OrderedDict()
    prefix = anywhere = 0
    for prompt in prompts:
        found = [block in cache for block in prompt]
        anywhere += sum(found)
        prefix += found.index(False) if False in found else len(found)
        for block in prompt:
            cache[block] = None
            cache.move_to_end(block)
            if len(cache) > capacity:
                cache.popitem(last=False)
    return prefix, anywhere


@pytest.mark.parametrize("batch", [1, 7, 50, 10_000])
@pytest.mark.parametrize("unique", [True, False])
def test_replay_counts_what_a_simulated_cache_finds(monkeypatch, batch, unique):
    """Prompts share prefixes of a random tree; other prompts hold blocks in any order, some twice."""
    monkeypatch.setattr(hit_curves, "BATCH", batch)
    random = np.random.default_rng(batch)
    prompts = []
    for _ in range(120):
        if unique:
            node, prompt = 0, []
            for _ in range(random.integers(1, 9)):
                node = 3 * node + int(random.integers(1, 4))
                prompt.append(node)
        else:
            prompt = random.integers(0, 30, random.integers(1, 9)).tolist()
        prompts.append(prompt)
    curve = replay([accesses(prompts[:50]), accesses(prompts[50:])], 16)
    total = sum(map(len, prompts))
    for capacity in range(1, curve.distinct + 3):
        prefix, anywhere = simulated(prompts, capacity)
        assert curve.prefix_hit_block_ratio(capacity) == prefix / total, capacity
        assert curve.any_hit_block_ratio(capacity) == anywhere / total, capacity
        assert curve.prefix_hit_token_ratio(capacity) == prefix / total, capacity


def test_shares_of_requests_vary_as_simulated():
    """Mean and variance over requests of the share of a prompt that is found, its last block not full."""
    random = np.random.default_rng(4)
    prompts, lengths = [], []
    for _ in range(80):
        node, prompt = 0, []
        for _ in range(random.integers(1, 7)):
            node = 3 * node + int(random.integers(1, 3))
            prompt.append(node)
        prompts.append(prompt)
        lengths.append(16 * len(prompt) - int(random.integers(0, 16)))
    curve = replay([accesses(prompts, 16, lengths)], 16)
    for capacity in (2, 5, 11, curve.distinct):
        cache: OrderedDict[int, None] = OrderedDict()
        shares = []
        for prompt, tokens in zip(prompts, lengths, strict=True):
            hits = [block in cache for block in prompt]
            found = hits.index(False) if False in hits else len(hits)
            shares.append(min(16 * found, tokens) / tokens)
            for block in prompt:
                cache[block] = None
                cache.move_to_end(block)
                if len(cache) > capacity:
                    cache.popitem(last=False)
        assert curve.prefix_hit_shares[capacity] == pytest.approx(sum(shares))
        assert curve.hit_variance(capacity) == pytest.approx(np.var(shares))


def test_the_last_block_of_a_prompt_holds_what_is_left():
    curve = replay([accesses([[1, 2], [1, 2]], 16, [20, 20])], 16)
    assert curve.prefix_hit_token_ratio(2) == 0.5
    assert curve.prefix_hit_token_ratio(1) == 0.0
    curve = replay([accesses([[1, 2], [1, 3]], 16, [20, 30])], 16)
    assert curve.prefix_hit_token_ratio(np.inf) == 16 / 50


def test_mooncake_conversation_trace():
    if not DATA.is_dir():
        pytest.skip(f"measured data not found at {DATA}")
    curve = replay(block_pieces(DATA / "mooncake_conversation_blocks.csv.gz"), 512)
    with (DATA / "kv_hit_vs_capacity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    for row in rows:
        size = float(row["capacity_blocks"])
        assert (curve.requests, curve.accesses, curve.distinct) == (
            int(row["requests"]),
            int(row["total_blocks"]),
            int(row["unique_blocks"]),
        )
        for name in ("prefix_hit_block_ratio", "any_hit_block_ratio", "prefix_hit_token_ratio"):
            assert getattr(curve, name)(size) == pytest.approx(float(row[name]), abs=6e-7), (name, size)
        assert characteristic_time_hit_ratio(curve, size) == pytest.approx(
            float(row["prefix_hit_block_ratio"]), abs=0.03
        )


def test_che_is_close_to_independent_requests():
    """Zipf popularity, asked independently: both forms within 0.03 of the exact replay, which itself is random."""
    random = np.random.default_rng(4)
    rates = 1.0 / np.arange(1, 3001) ** 0.8
    drawn = random.choice(len(rates), 200_000, p=rates / rates.sum())
    curve = replay([accesses(drawn[:, None], 1)], 1)
    sizes = np.array([10, 100, 500, 1500, 2500])
    exact = curve.any_hit_block_ratio(sizes)
    np.testing.assert_allclose(characteristic_time_hit_ratio(curve, sizes), exact, atol=0.005)
    np.testing.assert_allclose([che_hit_ratio(rates, size) for size in sizes], exact, atol=0.02)
    assert che_hit_ratio(rates, 3000) == 1.0
    assert che_hit_ratio(rates, 0) == 0.0
    assert che_hit_ratio(np.ones(8), 2) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("0,100,10,1 2\n5,100,10,1 x\n", ":3:10: block_ids"),
        ("0,100,10,1 2\n5,100,10,\n", ":3:10: block_ids"),
        ("0,100,10,1 -2\n", ":2:10: block_ids"),
        ("0,100,10,99999999999999999999\n", ":2:10: block_ids"),
        ("5,100,10,1\n0,100,10,1\n", ":3:1: timestamp_ms: time runs backwards"),
        ("0,-100,10,1\n", ":2:3: input_tokens"),
    ],
)
def test_wrong_blocks_are_located(tmp_path, text, where):
    path = tmp_path / "trace.csv"
    path.write_text("timestamp_ms,input_tokens,output_tokens,block_ids\n" + text)
    with pytest.raises(InputError) as caught:
        list(block_pieces(path))
    assert where in str(caught.value)


def test_blocks_of_json_lines_and_traces_without_any(tmp_path):
    lines = tmp_path / "trace.jsonl"
    lines.write_text('{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [4, 7]}\n')
    (piece,) = [piece for piece in block_pieces(lines) if len(piece.prompt_tokens)]
    assert piece.blocks.tolist() == [4, 7]
    azure = tmp_path / "azure.csv"
    azure.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,5,6\n")
    with pytest.raises(InputError, match="no blocks"):
        list(block_pieces(azure))
