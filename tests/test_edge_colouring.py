"""Equitable edge colouring, checked by counting, and subgraphs with bounded degrees, by trying all."""

import itertools

import numpy as np
import pytest

from perfmodel.edge_colouring import bounded_subgraph, equitable_colouring, euler_split, first_of_each

SEEDS = range(40)


def graph(seed: int, most: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vertices, edges = int(rng.integers(1, 7)), int(rng.integers(0, most))
    return rng.integers(0, vertices, edges), rng.integers(0, vertices, edges)


def is_equitable(ends: np.ndarray, colour: np.ndarray, colours: int) -> bool:
    for vertex in set(ends.tolist()):
        degree = int(np.sum(ends == vertex))
        counts = [int(np.sum((ends == vertex) & (colour == one))) for one in range(colours)]
        if min(counts) < degree // colours or max(counts) > -(-degree // colours):
            return False
    return True


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("colours", [1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_every_colour_has_its_fair_share_at_every_vertex(seed: int, colours: int) -> None:
    left, right = graph(seed)
    colour = equitable_colouring(left, right, colours)
    assert colour.shape == left.shape
    assert np.all((colour >= 0) & (colour < colours))
    assert is_equitable(left, colour, colours)
    assert is_equitable(right, colour, colours)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_euler_split_halves_every_degree(seed: int) -> None:
    left, right = graph(seed)
    half = euler_split(left, right)
    for ends in (left, right):
        for vertex in set(ends.tolist()):
            one = int(np.sum(half & (ends == vertex)))
            assert abs(2 * one - int(np.sum(ends == vertex))) <= 1


def test_a_regular_graph_falls_apart_into_matchings() -> None:
    # Koenig 1916: a bipartite multigraph of degree Delta is a union of Delta matchings.
    leaves = 5
    left = np.repeat(np.arange(leaves), 6)
    right = (left + np.tile([1, 1, 2, 3, 4, 4], leaves)) % leaves
    colour = equitable_colouring(left, right, 6)
    for one in range(6):
        assert sorted(left[colour == one]) == list(range(leaves))
        assert sorted(right[colour == one]) == list(range(leaves))


def test_a_colour_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one colour"):
        equitable_colouring(np.array([0]), np.array([0]), 0)


def test_the_first_of_each_class() -> None:
    which = np.array([1, 0, 1, 1, 0])
    assert first_of_each(which, np.array([1, 2])).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("largest", [False, True])
def test_a_bounded_subgraph_is_what_trying_all_finds(seed: int, largest: bool) -> None:
    rng = np.random.default_rng(seed)
    lefts, rights = (int(number) for number in rng.integers(1, 4, 2))
    pairs = np.array([(i, j) for i in range(lefts) for j in range(rights) if rng.random() < 0.8], dtype=int)
    left, right = pairs.reshape(-1, 2).T
    most = rng.integers(0, 3, len(left))
    least = np.minimum(rng.integers(0, 2, len(left)), most)
    low_left, low_right = rng.integers(0, 2, lefts), rng.integers(0, 2, rights)
    high_left, high_right = low_left + rng.integers(0, 3, lefts), low_right + rng.integers(0, 3, rights)

    def allowed(copies: tuple[int, ...]) -> bool:
        out, into = np.bincount(left, copies, lefts), np.bincount(right, copies, rights)
        return bool(
            np.all((low_left <= out) & (out <= high_left)) and np.all((low_right <= into) & (into <= high_right))
        )

    choices = [range(int(a), int(b) + 1) for a, b in zip(least, most, strict=True)]
    sums = [sum(copies) for copies in itertools.product(*choices) if allowed(copies)]
    bounds = (least, most), (low_left, high_left), (low_right, high_right)
    found = bounded_subgraph(left, right, *bounds, largest=largest)
    if not sums:
        assert found is None
        return
    assert found is not None
    assert np.all((least <= found) & (found <= most))
    assert allowed(tuple(int(number) for number in found))
    if largest:
        assert found.sum() == max(sums)
