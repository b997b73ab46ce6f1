"""A prediction is a tree of terms: every node has seconds, and children add up to their parent.

Terms hold floats or NumPy arrays of any one shape, so a tree explains one plan or a million alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Number = float | Array

BOUNDS = ("", "compute", "memory", "link", "latency", "host", "idle")
"""What holds a term back: the accelerator's arithmetic, its memory, a link, a chain of latencies, the host, waiting."""

NO_BOUND, COMPUTE, MEMORY, LINK, LATENCY, HOST, IDLE = range(len(BOUNDS))


@dataclass(frozen=True)
class Term:
    """One part of a predicted time.

    Parameters
    ----------
    name : str
        What the time is spent on.
    seconds : float or array
        Time this term adds to its parent [s].
    bound : int or array of int
        Index into ``BOUNDS``; of a parent, derived from its leaves when the tree is written out.
    children : tuple of Term
        Parts; their ``seconds`` add up to this term's.
    hidden_seconds : float or array
        Time spent behind other work, which therefore does not add to the parent [s].
    """

    name: str
    seconds: Number
    bound: int | NDArray[np.int8] = NO_BOUND
    children: tuple[Term, ...] = ()
    hidden_seconds: Number = 0.0


def total(name: str, children: Sequence[Term]) -> Term:
    """Return the parent whose seconds are the sum of its children's."""
    seconds: Number = 0.0
    hidden: Number = 0.0
    for child in children:
        seconds = seconds + child.seconds
        hidden = hidden + child.hidden_seconds
    return Term(name, seconds, children=tuple(children), hidden_seconds=hidden)


def hidden_behind(seconds: Array, work_s: Number, share: Number) -> tuple[Array, Array]:
    """Return exposed and hidden time of communication of which `share` can run behind `work_s` of compute [s]."""
    hidden = np.minimum(seconds * share, work_s)
    return seconds - hidden, hidden


def scaled(term: Term, factor: Number) -> Term:
    """Return the tree with every time multiplied by `factor`."""
    return replace(
        term,
        seconds=term.seconds * factor,
        hidden_seconds=term.hidden_seconds * factor,
        children=tuple(scaled(child, factor) for child in term.children),
    )


def taken(term: Term, index: NDArray[np.intp]) -> Term:
    """Return the tree whose arrays are gathered at `index` (arrays of length one are broadcast, not gathered)."""

    def pick(value: Any) -> Any:
        return value[index] if isinstance(value, np.ndarray) and value.ndim and value.shape[0] > 1 else value

    return replace(
        term,
        seconds=pick(term.seconds),
        bound=pick(term.bound),
        hidden_seconds=pick(term.hidden_seconds),
        children=tuple(taken(child, index) for child in term.children),
    )


def weighted_sum(terms: Sequence[Term], weights: Sequence[Number]) -> Term:
    """Return the node-by-node sum of trees of one shape, each multiplied by its weight."""
    if len(terms) == 1:
        return scaled(terms[0], weights[0])
    parts = [scaled(term, weight) for term, weight in zip(terms, weights, strict=True)]
    return _merged(parts)


def _merged(parts: Sequence[Term]) -> Term:
    seconds: Number = 0.0
    hidden: Number = 0.0
    bound: Any = parts[0].bound
    largest = parts[0].seconds
    for part in parts:
        seconds = seconds + part.seconds
        hidden = hidden + part.hidden_seconds
        if part is not parts[0] and not part.children:
            bound = np.where(np.asarray(part.seconds) > largest, part.bound, bound)
            largest = np.maximum(largest, part.seconds)
    children = tuple(_merged(list(nodes)) for nodes in zip(*(part.children for part in parts), strict=True))
    return replace(parts[0], seconds=seconds, hidden_seconds=hidden, bound=bound, children=children)


def chosen(selector: NDArray[np.intp], terms: Sequence[Term]) -> Term:
    """Return the tree that is, element by element, the one of `terms` that `selector` names."""

    def choose(values: Sequence[Any]) -> Any:
        first = values[0]
        if all(value is first for value in values):
            return first
        return np.choose(selector, [np.broadcast_to(value, selector.shape) for value in values])

    return replace(
        terms[0],
        seconds=choose([term.seconds for term in terms]),
        hidden_seconds=choose([term.hidden_seconds for term in terms]),
        bound=choose([term.bound for term in terms]),
        children=tuple(chosen(selector, nodes) for nodes in zip(*(term.children for term in terms), strict=True)),
    )


def at(term: Term, index: int) -> Term:
    """Return the tree of floats of plan number `index`."""

    def pick(value: Any) -> Any:
        array = np.asarray(value)
        return array.reshape(-1)[index if array.size > 1 else 0].item()

    children = tuple(at(child, index) for child in term.children)
    return replace(
        term,
        seconds=pick(term.seconds),
        bound=int(pick(term.bound)),
        hidden_seconds=pick(term.hidden_seconds),
        children=children,
    )


def to_dict(term: Term) -> dict[str, Any]:
    """Return the `breakdown` of a plan JSON: only terms that take or hide time, largest bound of a parent's leaves."""
    shares: dict[int, float] = {}

    def leaves(node: Term) -> None:
        if not node.children:
            shares[int(node.bound)] = shares.get(int(node.bound), 0.0) + float(node.seconds)
        for child in node.children:
            leaves(child)

    leaves(term)
    bound = max(shares, key=lambda code: shares[code]) if shares else NO_BOUND
    written: dict[str, Any] = {"name": term.name, "seconds": float(term.seconds), "bound": BOUNDS[bound]}
    children: list[dict[str, Any]] = []
    for child in term.children:
        if float(child.seconds) or (child.children and float(child.hidden_seconds)):
            children.append(to_dict(child))
        if float(child.hidden_seconds) and not child.children:
            children.append(
                {
                    "name": f"{child.name}, hidden",
                    "seconds": 0.0,
                    "bound": BOUNDS[int(child.bound)],
                    "hidden_seconds": float(child.hidden_seconds),
                }
            )
    if children:
        written["children"] = children
    return written
