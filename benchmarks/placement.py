"""How good an order of nodes is found in ten seconds, and how close its bound: 16 to 1,024 uneven nodes.

Rates are made up (`benchmarks/uneven_matrix.py`, racks of 16 nodes). Traffic is that of one data-parallel ring over all
nodes, and of the same nodes in stages of a pipeline: a ring for each stage, 16 GB an edge, a tenth more at both ends,
and 1.2 GB from stage to stage each way.

    python benchmarks/placement.py [SECONDS]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
from pathlib import Path

import numpy as np
from uneven_matrix import matrix, text

from hardware.yaml_source import Source
from solvers.placement import plan
from solvers.placement_scenario import load_placement

SIZES = ((16, 1), (16, 4), (64, 1), (64, 4), (64, 8), (256, 1), (256, 8), (1024, 1), (1024, 16))
"""Nodes and stages."""
EDGE, END, BETWEEN = 16e9, 1.1, 1.2e9


def traffic(nodes: int, stages: int) -> str:
    """Write what nodes send in a step."""
    place = np.arange(nodes).reshape(stages, -1)
    lines = ["src,dst,bytes,phase"]
    for stage, ring in enumerate(place):
        size = EDGE * (END if stage in (0, stages - 1) else 1.0)
        lines += [f"{a},{b},{size},ring" for a, b in zip(ring, np.roll(ring, -1), strict=True)]
    for name, (here, there) in {"forward": (place[:-1], place[1:]), "backward": (place[1:], place[:-1])}.items():
        lines += [f"{a},{b},{BETWEEN},{name}" for a, b in zip(here.flat, there.flat, strict=True)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plan every size once and print what came of it."""
    limit = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print(" nodes stages  default s  found s  bound s  gap %  gain  wall s")
    for nodes, stages in SIZES:
        asked = {"kind": "placement", "bandwidth": text(*matrix(nodes, 7)), "traffic": traffic(nodes, stages)}
        result = plan(load_placement(Source("benchmark", asked), Path()), time_limit_s=limit)
        said = result.prediction or {}
        print(
            f"{nodes:6} {stages:6} {said['default_comm_time_s']:10.4f} {said['comm_time_s']:8.4f} "
            f"{result.best_bound or 0.0:8.4f} {100 * (result.gap or 0.0):6.2f} {said['gain']:5.2f} "
            f"{result.solve_time_s or 0.0:7.2f}  {result.status}",
            flush=True,
        )


if __name__ == "__main__":
    main()
