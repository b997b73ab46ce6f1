"""The memories of a node as a graph: tiers, the links between them and the accelerators, and who shares which.

Data of a tier pass its devices, the memory of the tier it goes `via` if any, and a link of the node. Each of these is a
contention domain: a rate in each direction that some accelerators share.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardware.schema import Node, Tier

HBM = "hbm"
"""Name of the accelerators' own memory among tiers."""
NICS = "nics"
"""Link of a tier that the node's network adapters reach."""


@dataclass(frozen=True)
class Domain:
    """A rate that data contend for.

    Parameters
    ----------
    name : str
        The tier or link.
    up, down : float
        Rates towards and from the accelerators, of one [bytes/s].
    count : int
        How many there are in the node.
    shared_by : int
        Accelerators that share one.
    """

    name: str
    up: float
    down: float
    count: int
    shared_by: int

    @property
    def node_up(self) -> float:
        """Rate towards the accelerators, of all [bytes/s]."""
        return self.up * self.count

    @property
    def node_down(self) -> float:
        """Rate from the accelerators, of all [bytes/s]."""
        return self.down * self.count


@dataclass(frozen=True)
class TierPath:
    """A tier, and what its data pass.

    Parameters
    ----------
    tier : Tier
        As described.
    capacity_bytes : float
        Of all its devices [bytes].
    domains : tuple of Domain
        What data pass on their way to an accelerator, the tier's own first and the link last.
    attention_flops : float or None
        Attention that the processors at all its devices compute, or those of the tier it goes via [FLOP/s].
    site : str or None
        The tier whose processors these are.
    """

    tier: Tier
    capacity_bytes: float
    domains: tuple[Domain, ...]
    attention_flops: float | None
    site: str | None

    @property
    def name(self) -> str:
        """Name of the tier."""
        return self.tier.name

    @property
    def link(self) -> Domain:
        """The link that joins it to the accelerators."""
        return self.domains[-1]

    @property
    def latency_s(self) -> float:
        """Time of an empty read of the devices [s]."""
        return self.tier.latency


def tier_paths(node: Node) -> tuple[TierPath, ...]:
    """Return the paths of a node's tiers to its accelerators, in the order of the description.

    Parameters
    ----------
    node : Node
        A checked description.

    Returns
    -------
    tuple of TierPath
        One for each tier; the accelerators' own memory is none of them.
    """
    count = node.accelerators.count
    links = {
        link.name: Domain(
            link.name, link.bandwidth or 0.0, link.bandwidth or 0.0, -(-count // link.shared_by), link.shared_by
        )
        for link in node.links
    }
    if node.nics is not None:
        rate, ports = node.nics.bandwidth, node.nics.count
        links[NICS] = Domain(NICS, rate, rate, ports, max(1, -(-count // ports)))
    own = {tier.name: Domain(tier.name, tier.read, tier.write, tier.count, tier.shared_by) for tier in node.tiers}
    tiers = {tier.name: tier for tier in node.tiers}
    found = []
    for tier in node.tiers:
        site = tier if tier.attention is not None or tier.via is None else tiers[tier.via]
        passed = [own[tier.name], *([own[tier.via]] if tier.via is not None else []), links[tier.link]]
        found.append(
            TierPath(
                tier,
                tier.capacity * tier.count,
                tuple(passed),
                None if site.attention is None else site.attention * site.count,
                None if site.attention is None else site.name,
            )
        )
    return tuple(found)
