"""Less communication: bytes and times worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_jobs import collectives, tower

from perfmodel.collectives import all_gather, all_reduce, group
from perfmodel.low_communication import (
    bandwidth_needed,
    compressed_all_reduce,
    local_updates,
    one_bit_ratio,
    top_k_all_reduce,
    warmed_up_bytes,
)

PLAIN = collectives()
EIGHT = group(tower((8, 100e9, 2e-6)), 8, 1)


def test_a_bit_for_a_number() -> None:
    # 1-bit Adam, arXiv 2102.02888, abstract: up to 32 times less of 32 bits; 16 of 16 bits
    assert one_bit_ratio(4) == 1 / 32
    assert one_bit_ratio(2) == 1 / 16
    # a scale of four bytes for 128 numbers: 16 + 4 bytes for 512
    assert one_bit_ratio(4, 128) == pytest.approx(20 / 512)
    # 15 % of steps in full: 0.15 + 0.85/32, 5.7 times less
    assert warmed_up_bytes(1e9, 1 / 32, 0.15) == pytest.approx(1e9 / 5.664, rel=1e-3)


def test_compressed_gradients_are_exchanged_and_gathered() -> None:
    # 8 ranks, 3.2 GB to 100 MB: 7/8 of it out and 7/8 back at 100 GB/s; 2 us and 7 x 2 us; 2 x 10 ms x 9/8 to compress
    seconds = compressed_all_reduce(EIGHT, 3.2e9, PLAIN, ratio=1 / 32, compress_s=10e-3)
    assert seconds == pytest.approx(2 * 0.875e-3 + 16e-6 + 22.5e-3, rel=1e-12)
    assert compressed_all_reduce(group(tower((8, 1e9, 0.0)), 1, 1), 1e9, PLAIN, ratio=0.1, compress_s=1.0) == 0


def test_top_k_gathers_every_rank_s_own() -> None:
    # a thousandth of 1e9 gradients, 8 bytes each, of 8 ranks: 64 MB in all
    assert top_k_all_reduce(EIGHT, 1e9, PLAIN, share=1e-3) == pytest.approx(float(all_gather(EIGHT, 64e6, PLAIN)))
    # with a place beside each value and all ranks' sent to all, it pays only below 2/(n (1 + 1)) of them
    full = float(all_reduce(EIGHT, 4e9, PLAIN))
    assert top_k_all_reduce(EIGHT, 1e9, PLAIN, share=0.1) < full < top_k_all_reduce(EIGHT, 1e9, PLAIN, share=0.15)


def test_updates_every_few_steps() -> None:
    # 60 s of exchange every 500 steps of 1 s
    exposed, hidden = local_updates(60.0, 1.0, 500)
    assert (float(exposed), float(hidden)) == (0.12, 0.0)
    assert [float(part) for part in local_updates(60.0, 1.0, 500, overlapped=True)] == [0.0, 0.12]
    assert [float(part) for part in local_updates(60.0, 1.0, 40, overlapped=True)] == [0.5, 1.0]


@given(st.integers(2, 64), st.floats(1e6, 1e12), st.floats(1e-2, 1e2), st.integers(1, 1000))
def test_at_the_rate_that_is_needed_overlap_hides_all(n: int, size: float, step: float, every: int) -> None:
    ranks = group(tower((64, 1e9, 0.0)), n, 1)
    rate = float(bandwidth_needed(ranks, size, step, every=every))
    at_rate = group(tower((64, rate, 0.0)), n, 1)
    exposed, hidden = local_updates(all_reduce(at_rate, size, PLAIN), step, every, overlapped=True)
    assert float(exposed) == pytest.approx(0.0, abs=1e-9 * step)
    assert float(hidden) == pytest.approx(step)
    slower = local_updates(all_reduce(ranks, size, PLAIN) * np.array([1.0, 2.0]), step, every, overlapped=True)[0]
    assert slower[1] >= slower[0]
