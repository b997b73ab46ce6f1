"""The tree of terms: sums, scales and choices keep parts and whole together."""

import numpy as np
import pytest

from perfmodel.terms import (
    BOUNDS,
    COMPUTE,
    IDLE,
    LATENCY,
    LINK,
    MEMORY,
    Term,
    at,
    chosen,
    scaled,
    taken,
    to_dict,
    total,
    weighted_sum,
)

# Seconds in binary fractions, so that sums are exact.


def layer(compute: object, link: object, hidden: object = 0.0) -> Term:
    """A pass of two leaves, of which one hides time."""
    work = total("work", [Term("products", compute, COMPUTE), Term("norms", 0.25, MEMORY)])  # type: ignore[arg-type]
    return total("layer", [work, Term("all-reduce", link, LINK, hidden_seconds=hidden)])  # type: ignore[arg-type]


def test_a_parent_is_the_sum_of_its_parts() -> None:
    term = layer(1.0, 0.5, 0.125)
    assert term.seconds == 1.75
    assert term.hidden_seconds == 0.125
    assert [child.name for child in term.children] == ["work", "all-reduce"]
    assert term.children[0].seconds == 1.25
    assert total("nothing", []).seconds == 0.0


def test_arrays_add_like_numbers() -> None:
    term = layer(np.array([1.0, 2.0]), 0.5, np.array([0.0, 4.0]))
    assert term.seconds.tolist() == [1.75, 2.75]
    assert term.hidden_seconds.tolist() == [0.0, 4.0]


def test_scaling_reaches_every_part() -> None:
    term = scaled(layer(1.0, 0.5, 0.125), 4.0)
    assert (term.seconds, term.hidden_seconds) == (7.0, 0.5)
    work, link = term.children
    assert (work.seconds, [leaf.seconds for leaf in work.children]) == (5.0, [4.0, 1.0])
    assert (link.seconds, link.hidden_seconds, link.bound) == (2.0, 0.5, LINK)


def test_a_weighted_sum_adds_node_by_node() -> None:
    term = weighted_sum([layer(1.0, 0.5, 0.125), layer(2.0, 0.0), layer(8.0, 1.0)], [2.0, 1.0, 0.0])
    # products 2 x 1 + 2, norms 2 x 0.25 + 0.25, links 2 x 0.5
    assert [leaf.seconds for leaf in term.children[0].children] == [4.0, 0.75]
    assert (term.children[1].seconds, term.children[1].hidden_seconds) == (1.0, 0.25)
    assert (term.children[0].seconds, term.seconds) == (4.75, 5.75)
    assert weighted_sum([layer(1.0, 0.5)], [2.0]) == scaled(layer(1.0, 0.5), 2.0)


def test_of_a_sum_the_larger_part_says_what_holds_it_back() -> None:
    parts = [Term("part", np.array([1.0, 1.0, 4.0]), COMPUTE), Term("part", np.array([2.0, 0.5, 1.0]), MEMORY)]
    assert weighted_sum(parts, [1.0, 1.0]).bound.tolist() == [MEMORY, COMPUTE, COMPUTE]
    # The weight counts, and so does each of many parts.
    assert weighted_sum(parts, [4.0, 1.0]).bound.tolist() == [COMPUTE, COMPUTE, COMPUTE]
    three = [Term("part", 2.0, COMPUTE), Term("part", 3.0, MEMORY), Term("part", 2.5, LATENCY)]
    assert int(weighted_sum(three, [1.0, 1.0, 1.0]).bound) == MEMORY


def test_trees_of_different_shapes_do_not_add() -> None:
    with pytest.raises(ValueError, match="zip"):
        weighted_sum([layer(1.0, 0.5), Term("leaf", 1.0)], [1.0, 1.0])
    with pytest.raises(ValueError, match="zip"):
        weighted_sum([layer(1.0, 0.5), layer(1.0, 0.5)], [1.0])


def test_choosing_takes_each_element_from_its_tree() -> None:
    first = layer(np.array([1.0, 2.0, 4.0]), 0.5)
    second = layer(16.0, np.array([0.0, 1.0, 2.0]), 0.25)
    term = chosen(np.array([0, 1, 0]), [first, second])
    assert term.seconds.tolist() == [1.75, 17.25, 4.75]
    assert term.children[0].children[0].seconds.tolist() == [1.0, 16.0, 4.0]
    assert term.children[1].seconds.tolist() == [0.5, 1.0, 0.5]
    assert np.broadcast_to(term.hidden_seconds, 3).tolist() == [0.0, 0.25, 0.0]


def test_choosing_takes_the_bound_along() -> None:
    leaves = [Term("part", np.array([1.0, 2.0]), COMPUTE), Term("part", np.array([3.0, 4.0]), IDLE)]
    assert chosen(np.array([1, 0]), leaves).bound.tolist() == [IDLE, COMPUTE]


def test_gathering_repeats_and_reorders_plans() -> None:
    term = taken(layer(np.array([1.0, 2.0]), 0.5), np.array([1, 0, 1]))
    assert term.seconds.tolist() == [2.75, 1.75, 2.75]
    assert term.children[1].seconds == 0.5
    # One plan stands for all.
    assert taken(layer(np.array([1.0]), 0.5), np.array([0, 0, 0])).seconds.tolist() == [1.75]


def test_one_plan_of_an_array_is_a_tree_of_numbers() -> None:
    term = at(layer(np.array([1.0, 2.0]), np.array([0.5]), np.array([[0.0], [4.0]])), 1)
    assert (term.seconds, term.hidden_seconds) == (2.75, 4.0)
    assert type(term.seconds) is float
    assert type(term.children[1].bound) is int
    bounds = Term("part", np.array([1.0, 1.0]), np.array([COMPUTE, MEMORY], dtype=np.int8))
    assert BOUNDS[at(bounds, 1).bound] == "memory"  # type: ignore[index]


def test_a_tree_as_a_document() -> None:
    # 1.25 s of compute against 0.5 + 0.5 of links: the largest sum over the leaves names the bound of the whole.
    link = Term("gather", 0.5, LINK)
    term = total("step", [layer(1.25, 0.5, 0.125), link, Term("bubble", 0.0, IDLE), Term("sends", 0.0, LINK)])
    assert to_dict(term) == {
        "name": "step",
        "seconds": 2.5,
        "bound": "compute",
        "children": [
            {
                "name": "layer",
                "seconds": 2.0,
                "bound": "compute",
                "children": [
                    {
                        "name": "work",
                        "seconds": 1.5,
                        "bound": "compute",
                        "children": [
                            {"name": "products", "seconds": 1.25, "bound": "compute"},
                            {"name": "norms", "seconds": 0.25, "bound": "memory"},
                        ],
                    },
                    {"name": "all-reduce", "seconds": 0.5, "bound": "link"},
                    {"name": "all-reduce, hidden", "seconds": 0.0, "bound": "link", "hidden_seconds": 0.125},
                ],
            },
            {"name": "gather", "seconds": 0.5, "bound": "link"},
        ],
    }


def test_what_is_wholly_hidden_still_shows() -> None:
    term = total("step", [Term("work", 1.0, COMPUTE), Term("sends", 0.0, LINK, hidden_seconds=0.5)])
    assert [child["name"] for child in to_dict(term)["children"]] == ["work", "sends, hidden"]
    # Also where all of a parent is.
    deep = total("step", [Term("work", 1.0, COMPUTE), total("links", [Term("sends", 0.0, LINK, hidden_seconds=0.5)])])
    found = to_dict(deep)
    assert found["seconds"] == 1.0
    assert "sends, hidden" in str(found)
