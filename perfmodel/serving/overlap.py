"""Steps whose tokens are computed in two halves, so that what holds one back runs beside what holds back the other.

`communication` hides the collectives of one half behind the kernels of the other (TokenWeave, arXiv 2505.11329).
`operators` runs kernels that wait for arithmetic beside those that wait for memory and for links (NanoFlow, arXiv
2408.12757, section 4). Two halves read weights twice, fill tiles and waves less and launch twice: what a split costs is
what the kernel models say of half the tokens. An engine splits the steps that gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perfmodel.terms import Array, Number

Overlap = Literal["none", "communication", "operators"]

Parts = Mapping[str, Number]

PLACES = 4
"""Collectives of a layer with halves: after attention and after the feed-forward part, of each half."""


@dataclass(frozen=True)
class Spent:
    """Time of the layers of a step by part, and by what holds it back [s].

    Parameters
    ----------
    compute, memory : mapping of str to array
        Kernels that arithmetic bounds, and the others; the same parts in both.
    link : mapping of str to array
        Collectives.
    """

    compute: Parts
    memory: Parts
    link: Parts

    @property
    def alone(self) -> dict[str, Number]:
        """Times one after another [s]."""
        return {name: self.compute[name] + self.memory[name] for name in self.compute} | dict(self.link)

    def plus(self, other: Spent, times: float) -> Spent:
        """Return the sum with so many times another."""
        kinds = ("compute", "memory", "link")
        found: list[Parts] = []
        for kind in kinds:
            mine, others = getattr(self, kind), getattr(other, kind)
            found.append({name: mine.get(name, 0.0) + times * others[name] for name in others})
        return Spent(*found)


NOTHING = Spent({}, {}, {})


def overlapped(
    kind: Overlap, whole: Spent, halves: Spent, depth: int, speed: float = 1.0
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the time that each part adds to a step, and the time that it is hidden [s].

    Parameters
    ----------
    kind : str
        ``communication`` or ``operators``.
    whole, halves : Spent
        The step in one, and both its halves together.
    depth : int
        Layers.
    speed : float
        Speed of kernels over that of their times.

    Notes
    -----
    With C, M and X the kernels bound by arithmetic, the others, and collectives of both halves: ``communication`` takes
    max(C + M, X) and the last collective of 4 a layer, X / 4L, which nothing follows; ``operators`` max(C, M, X), as if
    no kernel slowed another that waits for something else: no engine does better.
    """
    kernels: dict[str, tuple[Number, Number]] = {}
    link: Number = sum(halves.link.values(), 0.0)
    compute: Number = sum(halves.compute.values(), 0.0)
    memory: Number = sum(halves.memory.values(), 0.0)
    if kind == "communication":
        work = (compute + memory) / speed
        left: Number = np.minimum(np.maximum(link - work, 0.0) + np.asarray(link) / (PLACES * depth), link)
        kernels = {name: (halves.compute[name] + halves.memory[name], 0.0) for name in halves.compute}
        share: Number = left / np.maximum(link, 1e-300)
    else:
        longest = np.argmax(np.stack(np.broadcast_arrays(compute / speed, memory / speed, link)), axis=0)
        for name in halves.compute:
            c, m = halves.compute[name], halves.memory[name]
            shown = np.where(longest == 0, c, np.where(longest == 1, m, 0.0))
            kernels[name] = (shown, c + m - shown)
        share = np.where(longest == 2, 1.0, 0.0)
    both = kernels | {name: (value * share, value * (1 - share)) for name, value in halves.link.items()}
    alone = whole.alone
    one: Number = sum(alone[name] / speed for name in kernels) + sum(whole.link.values(), 0.0)
    two: Number = sum(both[name][0] / speed for name in kernels) + sum(both[name][0] for name in halves.link)
    split: Array = np.asarray(two < one)
    shown_s: dict[str, Number] = {name: np.where(split, both[name][0], alone[name]) for name in both}
    hidden_s: dict[str, Number] = {name: np.where(split, both[name][1], 0.0) for name in both}
    return shown_s, hidden_s
