"""Writes a made-up bandwidth matrix of uneven nodes: no measurement, but what measured ones have in common.

Nodes stand in racks and are listed in the order in which a scheduler happens to hand them out. A pair in one rack has
the rate of the nodes' adapters, a pair in two racks a share of it; a few nodes have lost adapters, a few paths are
slow, and every rate varies a little. The same arguments give the same file.

    python benchmarks/uneven_matrix.py --nodes 64 --seed 7 > examples/uneven-64.csv
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

RATE = 368.0
"""Of two nodes in one rack: eight adapters of 400 Gbit/s, of which messages get 92 % [GB/s]."""


def matrix(nodes: int, seed: int, rack: int = 16) -> tuple[list[str], NDArray[np.float64]]:
    """Return names and rates [GB/s] of nodes in racks.

    Parameters
    ----------
    nodes : int
        How many.
    seed : int
        Of the random numbers.
    rack : int
        Nodes of a rack.
    """
    random = np.random.default_rng(seed)
    place = random.permutation(nodes)
    same = place[:, None] // rack == place[None, :] // rack
    rates = RATE * np.where(same, 1.0, 0.6)
    # one node in sixteen runs on five of its eight adapters, one path in thirty-two at two fifths
    adapters = np.where(random.random(nodes) < 1 / 16, 5 / 8, 1.0)
    rates *= np.minimum(adapters[:, None], adapters[None, :])
    rates *= np.where(random.random((nodes, nodes)) < 1 / 32, 0.4, 1.0)
    rates *= np.exp(0.05 * random.standard_normal((nodes, nodes)))
    np.fill_diagonal(rates, 0.0)
    return [f"n{place:0{len(str(nodes - 1))}d}" for place in range(nodes)], rates.round(1)


def text(names: list[str], rates: NDArray[np.float64]) -> str:
    """Write a matrix as a CSV: header and first column are the nodes, the row sends [GB/s]."""
    rows = [",".join([name, *(f"{rate:g}" for rate in row)]) for name, row in zip(names, rates.tolist(), strict=True)]
    return "\n".join([",".join(["GB/s", *names]), *rows]) + "\n"


def main() -> None:
    """Write the matrix that the options ask for."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--nodes", type=int, default=64)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--rack", type=int, default=16)
    asked = options.parse_args()
    print(text(*matrix(asked.nodes, asked.seed, asked.rack)), end="")


if __name__ == "__main__":
    main()
