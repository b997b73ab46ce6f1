"""Styles of context-parallel attention: bytes and seconds worked by hand, and how the styles turn into each other."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from training_jobs import collectives, framework, job, plans, tower

from perfmodel.context_parallel import context_bytes, core_pieces, exchange_size, ring_size
from perfmodel.job import Job
from perfmodel.layer import layer_cost
from perfmodel.memory import SOFTMAX_BYTES
from perfmodel.plan import CHOICES
from perfmodel.terms import Term, at
from perfmodel.traffic import CONTEXT, HEADS, training_traffic
from perfmodel.training import predict_step

STYLES = CHOICES["cp_style"]
# Llama 3.1 8B by its config.json: 32 layers, 32 heads of 128, 8 of keys, 128256 words
TOKENS = 8192
KEYS = 2 * TOKENS * 8 * (128 + 128)
HEADS_BYTES = 2 * TOKENS * 32 * 128
"""Queries of a rank, and its outputs [bytes]."""


def asked(cp: int = 16, **changes: Any) -> Job:
    """Two nodes of eight, 100 GB/s inside and 10 GB/s outside a node, without latency."""
    found = job("llama-3.1-8b", ranks=16, seq_len=TOKENS * cp, global_batch=16, **changes)
    return replace(found, levels=tower((8, 100e9, 0.0), (16, 10e9, 0.0)), collectives=collectives())


def term(found: Job, name: str = "context-parallel communication", **plan: Any) -> Term:
    cost = layer_cost(found, found.architecture.layers[0], plans({"dp": 1, **plan}))
    (one,) = (child for child in cost.time.children if child.name == name)
    return at(one, 0)


def both(one: Term) -> float:
    """Seconds of communication, hidden or not."""
    return float(one.seconds + one.hidden_seconds)


def test_seconds_of_a_layer_by_hand() -> None:
    found = asked()
    # ring: 15 sends forward, 15 of twice the bytes backward, the slowest over the network
    assert both(term(found, cp=16, cp_style="ring")) == pytest.approx(15 * 3 * KEYS / 10e9)
    # Ulysses: 8 of 16 shares of queries, keys, values and outputs leave the node, each way
    moved = 2 * HEADS_BYTES + KEYS
    assert both(term(found, cp=16, cp_style="ulysses")) == pytest.approx(2 * moved * 8 / 16 / 10e9)
    # all-gather: 15 of 16 parts enter a node over eight adapters at once; one forward, two backward
    gathered = term(found, cp=16, cp_style="all-gather")
    assert both(gathered) == pytest.approx(3 * 15 * KEYS / (8 * 10e9))
    assert gathered.hidden_seconds == 0
    # hybrid: 7 of 8 shares inside the node; then one send over the network forward, one of twice the bytes backward
    hybrid = both(term(found, cp=16, cp_style="hybrid"))
    assert hybrid == pytest.approx(2 * moved * 7 / 8 / 100e9 + 3 * KEYS / 10e9)


def test_bytes_of_a_layer_by_hand() -> None:
    found = asked()
    made = context_bytes(found.architecture.layers[0].attention, TOKENS, 1)
    assert (made.queries, made.keys, made.outputs) == (HEADS_BYTES, KEYS, HEADS_BYTES)
    moved = 2 * HEADS_BYTES + KEYS
    # 32 layers and 16 micro-batches of one sequence
    expected = {
        "ring": {CONTEXT: 15 * 3 * KEYS},
        "ulysses": {CONTEXT: 2 * moved * 15 / 16},
        "all-gather": {CONTEXT: 15 * 3 * KEYS},
        "hybrid": {HEADS: 2 * moved * 7 / 8, CONTEXT: 3 * KEYS},
    }
    for style, sizes in expected.items():
        phases = {p.name: p for p in training_traffic(found, plans({"dp": 1, "cp": 16, "cp_style": style})).phases}
        for name in (HEADS, CONTEXT):
            sent = phases[name].sent_bytes.sum() / 16 if name in phases else 0.0
            assert sent == pytest.approx(sizes.get(name, 0.0) * 32 * 16), (style, name)
    # heads are dealt out inside a node; keys and values go to the counterpart in the other one and back
    hybrid = {p.name: p for p in training_traffic(found, plans({"dp": 1, "cp": 16, "cp_style": "hybrid"})).phases}
    assert np.all(hybrid[HEADS].sources // 8 == hybrid[HEADS].destinations // 8)
    assert np.all((hybrid[CONTEXT].sources + 8) % 16 == hybrid[CONTEXT].destinations)


@pytest.mark.parametrize(
    ("row", "size"),
    [
        ({"cp": 16}, 8),  # a node, and every head of keys
        ({"cp": 16, "cp_style": "ring"}, 1),
        ({"cp": 16, "cp_style": "ulysses"}, 16),
        ({"cp": 16, "cp_style": "all-gather"}, 1),
        ({"cp": 8, "tp": 2}, 4),  # four heads of keys a rank, four neighbours in a node
        ({"cp": 4, "tp": 4}, 2),  # two of each
        ({"cp": 2, "tp": 8}, 1),  # one head of keys
        ({"cp": 12}, 4),  # four divides eight heads, twelve ranks and eight places
        ({"cp": 2, "dp": 8, "rank_order": "dp-tp-cp-pp"}, 1),  # no neighbours at all
        ({"cp": 1}, 1),
    ],
)
def test_ranks_that_deal_heads_out(row: dict[str, Any], size: int) -> None:
    plan = plans({"dp": 1, "cp_style": "hybrid", **row})
    found = asked()
    assert exchange_size(found, plan).tolist() == [size]
    if row.get("cp_style", "hybrid") != "all-gather":
        assert ring_size(found, plan).tolist() == core_pieces(found, plan).tolist() == [row["cp"] // size]
    else:
        assert core_pieces(found, plan).tolist() == [2]


def test_styles_are_one_where_there_is_one_rank() -> None:
    found = asked(1)
    steps = [float(predict_step(found, plans({"dp": 16, "cp_style": style})).step.seconds[0]) for style in STYLES]
    peaks = [float(predict_step(found, plans({"dp": 16, "cp_style": s})).memory.reserved_peak[0]) for s in STYLES]
    assert len(set(steps)) == len(set(peaks)) == 1


def test_hybrid_is_ring_or_ulysses_at_its_ends() -> None:
    found = asked(8)

    def seconds(**plan: Any) -> float:
        return float(predict_step(found, plans(plan)).step.seconds[0])

    inside = {"cp": 8, "dp": 2}
    assert seconds(**inside, cp_style="hybrid") == seconds(**inside, cp_style="ulysses")
    one_head = {"cp": 2, "tp": 8, "dp": 1}
    assert seconds(**one_head, cp_style="hybrid") == seconds(**one_head, cp_style="ring")


@pytest.mark.parametrize("style", STYLES)
def test_more_bandwidth_is_never_slower(style: str) -> None:
    found = asked()
    times = []
    for inside, outside in ((50e9, 5e9), (50e9, 10e9), (100e9, 10e9), (100e9, 100e9)):
        faster = replace(found, levels=tower((8, inside, 0.0), (16, outside, 0.0)))
        times.append(both(term(faster, cp=16, cp_style=style)))
    assert all(later <= earlier for earlier, later in pairwise(times))
    assert times[-1] < times[0]


def test_full_recomputation_repeats_the_forward_pass() -> None:
    found = asked()
    for style, once, again in (("ring", 3, 4), ("ulysses", 2, 3), ("all-gather", 3, 4)):
        plain = both(term(found, cp=16, cp_style=style))
        repeated = both(term(found, cp=16, cp_style=style, recompute="full"))
        assert repeated / plain == pytest.approx(again / once)


def test_memory_of_gathered_keys() -> None:
    # two stages of eight ranks; with few words the first, with two micro-batches in flight, needs most
    staged = asked(8)
    staged = replace(staged, architecture=replace(staged.architecture, vocab=1024))
    rows = [{"pp": 2, "cp": 8, "dp": 1, "cp_style": style} for style in ("ring", "all-gather")]
    few, many = (predict_step(staged, plans(row)).memory for row in rows)
    assert float(few.logits[0]) == float(many.logits[0]) == float(few.workspace[0]) == 0
    assert float(many.workspace[0]) == 2 * 8 * KEYS == float(many.allocated_peak[0] - few.allocated_peak[0])
    only = [{"cp": 16, "dp": 1, "cp_style": style} for style in ("ring", "all-gather")]
    alone = asked()
    few, many = (predict_step(alone, plans(row)).memory for row in only)
    # one stage: softmax (4 bytes a word) and logits give way
    head = TOKENS * 128256 * (framework().logit_bytes - SOFTMAX_BYTES + 4)
    assert head > 2 * 16 * KEYS
    assert float(many.allocated_peak[0]) == float(few.allocated_peak[0])
    bare = replace(alone, architecture=replace(alone.architecture, vocab=1024))
    few, many = (predict_step(bare, plans(row)).memory for row in only)
    beside = float(many.workspace[0])
    # what the head of 1,024 words keeps beside its logits: the input of the last norm and of the product, 4 bytes h
    freed = TOKENS * 1024 * (framework().logit_bytes - SOFTMAX_BYTES + 4) + 4 * TOKENS * 4096
    assert beside == pytest.approx(2 * 16 * KEYS - freed)
    assert float(many.allocated_peak[0] - few.allocated_peak[0]) == pytest.approx(beside)
