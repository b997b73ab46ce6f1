"""What groups of several sizes gain over the best groups of one size, for batches like those of three kinds of text.

512 made-up lengths a batch, three batches each, on 64 A100-40GB with 400 Gbit/s a node, costs from the models: the two
scenarios of unequal sequences in `examples`. The best size is chosen for each batch, filled longest first.

    python benchmarks/sequence_gains.py [--seconds 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardware.catalogue import read_file
from solvers.sequence import plan_batches
from solvers.sequence_scenario import load_sequence

EXAMPLES = Path(__file__).parent.parent / "examples"
SEQUENCES, SHORTEST, LONGEST, SEEDS = 512, 64, 196_608, 3

Lengths = Callable[[np.random.Generator], np.ndarray]


def mixture(share: float, first: tuple[float, float], second: tuple[float, float]) -> Lengths:
    """Return a mixture of two log-normal distributions, each a median and a spread."""

    def drawn(random: np.random.Generator) -> np.ndarray:
        one, other = (np.exp(random.normal(np.log(median), sigma, SEQUENCES)) for median, sigma in (first, second))
        return np.asarray(np.where(random.random(SEQUENCES) < share, one, other))

    return drawn


TEXTS: dict[str, tuple[Lengths, bool]] = {
    "web": (mixture(1.0, (1200, 1.3), (1200, 1.3)), False),
    "web, one of 192k": (mixture(1.0, (1200, 1.3), (1200, 1.3)), True),
    "code": (mixture(0.9, (2500, 0.8), (20_000, 0.8)), False),
    "long documents": (mixture(0.6, (4000, 0.8), (40_000, 0.8)), False),
}
"""Lengths of a kind of text, and whether the longest possible sequence is among them."""


def main() -> None:
    """Plan every batch under both examples and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each batch")
    seconds = parser.parse_args().seconds
    print("| scenario | lengths | mean | step | gap | best of one size | its gap | gain |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in ("flexsp", "accumulate"):
        path = EXAMPLES / f"sequence-{name}-7b.yaml"
        scenario = load_sequence(read_file(path), path.parent)
        for text, (draw, longest) in TEXTS.items():
            batches = []
            for seed in range(SEEDS):
                lengths = draw(np.random.default_rng(seed)).clip(SHORTEST, LONGEST).astype(np.int64)
                if longest:
                    lengths[0] = LONGEST
                batches.append((str(seed), lengths))
            rows = []
            for answer in plan_batches(scenario, batches, time_limit_s=seconds):
                assert not isinstance(answer, str) and answer.static is not None
                best, static = answer.best, answer.static
                rows.append(
                    (
                        answer.case.lengths.mean(),
                        best.makespan_s,
                        100 * (1 - answer.bound_s / best.makespan_s),
                        int(static.plan.degree[0]),
                        100 * (1 - static.bound_s / static.makespan_s),
                        static.makespan_s / best.makespan_s,
                    )
                )
            mean, step, gap, size, loose, gain = (
                f"{min(column):{form}}" if f"{min(column):{form}}" == f"{max(column):{form}}"
                else f"{min(column):{form}}-{max(column):{form}}"
                for column, form in zip(zip(*rows, strict=True), (",.0f", ".1f", ".1f", "d", ".1f", ".2f"), strict=True)
            )  # fmt: skip
            print(f"| {name} | {text} | {mean} | {step} s | {gap} % | {size} | {loose} % | {gain} |", flush=True)


if __name__ == "__main__":
    main()
