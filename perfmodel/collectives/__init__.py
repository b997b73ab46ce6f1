"""Time of collective operations on a hierarchy of links."""

from perfmodel.collectives.model import (
    CollectiveModel,
    Group,
    LinkEfficiency,
    collective_model,
    group,
    group_of,
)
from perfmodel.collectives.times import (
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    dispatch,
    hierarchical_all_reduce,
    host_factor,
    machine_model,
    ring_all_reduce,
    send,
    tree_all_reduce,
    visits,
)

__all__ = [
    "CollectiveModel",
    "Group",
    "LinkEfficiency",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "broadcast",
    "collective_model",
    "dispatch",
    "group",
    "group_of",
    "hierarchical_all_reduce",
    "host_factor",
    "machine_model",
    "ring_all_reduce",
    "send",
    "tree_all_reduce",
    "visits",
]
