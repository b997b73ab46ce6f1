"""Claims of papers about routing, beside what the planner says of system and baseline.

Reads the claims from ``papers/claims.csv`` in the folder that ``PERFMODEL_DATA`` names (default ``../shared/data``) and
prints a table.

    python benchmarks/papers_routing.py
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from hardware.yaml_source import Source
from solvers.routing import plan
from solvers.routing_scenario import load_routing

DATA = Path(os.environ.get("PERFMODEL_DATA", "../shared/data"))
SHARES = (0.1, 0.2, 0.3, 0.4)
"""Parts of a step that communication takes under hashing, in jobs with moderate communication [1]."""


def answer(scenario: dict[str, Any]) -> dict[str, Any]:
    """Plan a scenario."""
    return plan(load_routing(Source("claim", scenario), Path())).to_dict()


def leaf_spine(leaves: int, spines: int, hosts: int) -> dict[str, Any]:
    """Describe a network of equal links whose nodes have one adapter as fast as a link."""
    fabric = {"type": "leaf-spine", "leaves": leaves, "spines": spines, "hosts_per_leaf": hosts, "link": "100 Gbit/s"}
    return {"kind": "routing", "fabric": fabric, "nodes": leaves * hosts}


def collectives(nodes: int, seed: int) -> list[list[tuple[int, int]]]:
    """List equal flows that start together: a ring over shuffled nodes, an all-to-all, one in groups of eight."""
    random = np.random.default_rng(seed)
    order = random.permutation(nodes).tolist()
    ring = [(order[n], order[(n + 1) % nodes]) for n in range(nodes)]
    everyone = [(a, b) for a in range(nodes) for b in range(nodes) if a != b]
    return [
        [pair for pair in ring for _ in range(4)],
        everyone,
        [(order[a], order[b]) for a, b in everyone if a // 8 == b // 8],
    ]


def ethereal() -> tuple[list[float], list[float], list[float], list[float]]:
    """Sweep networks and collectives: fewest splits, whole flows and hashing over spraying, and the share split."""
    few, whole, hashed, split = [], [], [], []
    for leaves, spines, hosts in ((4, 4, 8), (8, 4, 8), (8, 6, 16), (12, 8, 16), (6, 5, 8), (12, 7, 8)):
        for pairs in collectives(leaves * hosts, leaves):
            flows = [{"src": f"host{a}", "dst": f"host{b}", "bytes": 1e8} for a, b in pairs]
            base = {**leaf_spine(leaves, spines, hosts), "flows": flows}
            found = {kind: answer({**base, "search": {"split": [kind]}}) for kind in ("none", "fewest")}
            sprayed = found["none"]["prediction"]["spray_completion_time_s"]
            few.append(found["fewest"]["prediction"]["completion_time_s"] / sprayed)
            whole.append(found["none"]["prediction"]["completion_time_s"] / sprayed)
            hashed.append(found["none"]["prediction"]["ecmp_completion_time_s"] / sprayed)
            split.append(found["fewest"]["plan"]["split_flows"] / len(flows))
    return few, whole, hashed, split


def c4() -> list[float]:
    """Sweep jobs on nodes of 8 accelerators with an adapter of 400 Gbit/s each: hashing over planned time."""
    gains = []
    for nodes, hosts in ((8, 2), (8, 4), (16, 4), (32, 4), (32, 8)):
        for seed in (None, 1, 2):
            order = np.arange(nodes) if seed is None else np.random.default_rng(seed).permutation(nodes)
            cluster = {
                "kind": "cluster",
                "name": "clos",
                "node": "hgx-h800",
                "nodes": nodes,
                "fabric": {"type": "leaf-spine", "hosts_per_leaf": hosts, "spines": 8, "link": "400 Gbit/s",
                           "oversubscription": 1},
            }  # fmt: skip
            groups = [[f"host{host}/gpu{index}" for host in order] for index in range(8)]
            flows = {"collective": "all_reduce", "bytes": "1 GiB", "groups": groups}
            found = answer({"kind": "routing", "cluster": cluster, "flows": flows})
            gains.append(found["prediction"]["gain_over_ecmp"])
    return gains


def span(values: list[float], digits: int = 3) -> str:
    """Write the median of a sweep and its ends."""
    return f"{np.median(values):.{digits}g} [{min(values):.{digits}g}, {max(values):.{digits}g}]"


def main() -> None:
    """Print the table."""
    with (DATA / "papers" / "claims.csv").open(encoding="utf-8", newline="") as file:
        claims = {row["claim_id"]: row for row in csv.DictReader(file)}
    few, whole, hashed, split = ethereal()
    gains = c4()
    saved = [100 * share * (1 - 1 / gain) for share in SHARES for gain in gains]
    alone = [1 / (1 - share * (1 - 1 / gain)) for share in SHARES for gain in gains]
    networks = "4-12 leaves, 4-8 spines, 8:7 to 8:3; shuffled ring, all-to-all, all-to-all in groups"
    low, high = float(claims["c4-02"]["value_low"]) * 0.75, float(claims["c4-02"]["value_low"]) * 1.25
    exact = max(abs(ratio - 1) for ratio in few) < 1e-9
    rows = [
        (
            "ethereal-01",
            "1 x (point)",
            span(few),
            "inside (+0 %)" if exact else "miss",
            f"{networks}; {span([100 * part for part in split])} % of flows split; none split: {span(whole)} x; "
            f"baseline hashing: {span(hashed)} x",
        ),
        (
            "ethereal-02",
            "nearly equal, no number",
            span(few),
            "inside" if exact else "miss",
            "as ethereal-01; our time is that of the most loaded link, adapters included",
        ),
        (
            "c4-02",
            "15 % (about)",
            span(saved),
            "inside" if min(saved) <= high and max(saved) >= low else "miss",
            f"8-32 nodes of 8 x 400 Gbit/s, 1:1, 8 rings, nodes in order or shuffled: hashing takes {span(gains)} x "
            f"the planned time; exposed communication {SHARES[0]:.0%}-{SHARES[-1]:.0%} of a step under hashing",
        ),
        (
            "c4-03",
            "1.5 x (30 to 45 %)",
            "",
            "not predicted; missing: what efficiency means, and the share of faults in it",
            f"routing alone, as c4-02, would raise throughput {span(alone)} x",
        ),
        ("zeppelin-03", "1.6 x (about)", "", "not predicted; missing: accelerators and adapters of a node", ""),
    ]
    print("| claim_id | claim | prediction | verdict | inputs assumed |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        assert row[0] in claims, row[0]
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
