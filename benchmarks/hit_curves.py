"""How long the exact hit curve of a trace takes: ten million uses of blocks on one core, and the memory it needs.

python benchmarks/hit_curves.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import time
from collections.abc import Iterator

import numpy as np

from perfmodel.hit_curves import replay
from perfmodel.request_traces import BlockAccesses

BLOCKS = 25
"""Blocks of a prompt."""


def sessions(accesses: int, known: int) -> Iterator[BlockAccesses]:
    """Draw prompts of sessions that come again, the popular more often; each prompt is a session's."""
    random = np.random.default_rng(0)
    popularity = 1.0 / np.arange(1, known // BLOCKS + 1) ** 0.7
    chances = np.cumsum(popularity) / popularity.sum()
    requests = 2**14
    for _ in range(0, accesses, requests * BLOCKS):
        chosen = np.searchsorted(chances, random.random(requests))
        blocks = chosen[:, None] * BLOCKS + np.arange(BLOCKS)
        starts = np.arange(requests + 1) * BLOCKS
        yield BlockAccesses(np.full(requests, 512 * BLOCKS), starts, blocks.ravel().astype(np.int64))


def main() -> None:
    """Print time, rate and memory for several numbers of distinct blocks."""
    for known in (10**4, 10**6, 10**7):
        began = time.perf_counter()
        curve = replay(sessions(10**7, known), 512)
        took = time.perf_counter() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{curve.accesses:>12,} accesses, {curve.distinct:>10,} distinct: {took:6.1f} s, "
            f"{curve.accesses / took:>12,.0f} accesses/s, {memory:8,.0f} MiB at most"
        )


if __name__ == "__main__":
    main()
