"""How many deployments a second one core costs, and how fast requests are simulated, with the step law of a model.

Llama-3.1-70B on 4 nodes of H100 with 2 requests/s: every layout and number of replicas, 144 limits of sequences by 180
of tokens. The same in pairs of pools: DeepSeek-V3 on 8 nodes of H200, the space of the planner. The time is that of the
whole search, with latencies, tails and the share of requests in time. Then 100,000 requests of 1,000 and 200 tokens on
one H100 at 0.7 of its capacity, event by event.

    python benchmarks/serving.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from pathlib import Path
from typing import Any

import numpy as np

from hardware.catalogue import read_file
from hardware.yaml_source import Source
from perfmodel.simulation import simulate
from solvers.serve_case import case_of
from solvers.serve_rank import plan_at, ranking
from solvers.serve_scenario import ServeScenario, load_serve
from solvers.serve_search import search
from solvers.serve_simulate import drawn, engine_of

EXAMPLES = Path(__file__).parent.parent / "examples"
REQUESTS = 100_000


def _scenario(example: str, **changes: Any) -> ServeScenario:
    data = {**read_file(EXAMPLES / example).data, **changes}
    return load_serve(Source("benchmark", data), EXAMPLES)


def _searched(name: str, scenario: ServeScenario) -> None:
    began = time.process_time()
    with np.errstate(all="ignore"):
        found = search(scenario)
    seconds = time.process_time() - began
    print(f"{name:10s} {found.candidates:,} candidates in {seconds:.1f} s: {found.candidates / seconds:,.0f} a second")
    best = plan_at(ranking(scenario, found.found)[0]).model_dump(exclude_none=True)
    print(
        "           best", {key: value for key, value in best.items() if key in ("tp", "replicas", "prefill", "decode")}
    )


def main() -> None:
    """Search twice and simulate once."""
    many = {
        "disaggregated": [False],
        "precision_weights": ["fp8"],
        "max_num_seqs": list(range(8, 1160, 8)),
        "max_num_batched_tokens": list(range(512, 12032, 64)),
    }
    _searched("instances", _scenario("serve-llama-70b-8-h100.yaml", nodes=4, search=many, slo={"tpot_p99": "80 ms"}))
    _searched("pools", _scenario("serve-deepseek-v3-wide.yaml"))
    lengths = {"isl": 1000, "osl": 200}
    workload = {"arrivals": {"process": "poisson", "rate_rps": 1e-3}, "lengths": lengths}
    scenario = _scenario(
        "serve-speculative-8b.yaml", workload=workload, speculative=None, slo={}, plan={"tp": 1, "replicas": 1}
    )
    assert scenario.question.plan is not None
    case = case_of(scenario, scenario.question.plan)
    rate = 0.7e-3 / float(np.asarray(case.answered(case.pools())[1].load))
    asked, engine = drawn(case, rate, 1, REQUESTS), engine_of(case, case.tokens, "both", 1.0)
    began = time.process_time()
    simulate(engine, asked.arrival_s, asked.prompt, asked.output)
    print(f"simulated  {REQUESTS:,} requests in {time.process_time() - began:.1f} s")


if __name__ == "__main__":
    main()
