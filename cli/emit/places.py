"""Where the instances of a serving plan stand."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Accelerators of one node that an instance takes.

    Parameters
    ----------
    node : int
        The node.
    accelerators : tuple of int
        Their numbers on it.
    """

    node: int
    accelerators: tuple[int, ...]


def placed(sizes: Sequence[tuple[int, int]], nodes: int, per_node: int) -> list[tuple[Place, ...]]:
    """Return where instances stand; nothing for those without room.

    Parameters
    ----------
    sizes : sequence of pairs of int
        Accelerators of each instance, and of its tensor-parallel group.
    nodes, per_node : int
        Nodes, and accelerators of each.

    Returns
    -------
    list of tuple of Place
        In the order of `sizes`. One that fits in a node lies in one; a larger one takes as many of each of the fewest
        nodes, and none of its tensor-parallel groups lies across nodes that could lie in one.
    """
    free = [list(range(per_node)) for _ in range(nodes)]
    found: list[tuple[Place, ...]] = [()] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda one: -sizes[one][0]):
        size, tp = sizes[index]
        for count in range(-(-size // per_node), min(nodes, size) + 1):
            each = size // count
            if size % count or (each % tp and tp % each):
                continue
            hosts = [node for node in range(nodes) if len(free[node]) >= each][:count]
            if len(hosts) == count:
                found[index] = tuple(Place(node, tuple(free[node][:each])) for node in hosts)
                for node in hosts:
                    del free[node][:each]
                break
            if size <= per_node:
                break
    return found
