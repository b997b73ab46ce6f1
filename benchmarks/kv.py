"""How long a placement over tiers takes to prove: five tiers, 80 layers, eight accelerators, serving and training.

python benchmarks/kv.py
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from dataclasses import replace
from pathlib import Path

from hardware.yaml_source import read_yaml
from perfmodel.offload_kernels import kernels_of
from solvers.kv import load, plan
from solvers.kv_finetune_place import place as place_states
from solvers.kv_finetune_question import FinetuneScenario
from solvers.kv_place import place
from solvers.kv_scenario import load_kv
from solvers.kv_space import prefixes_of

NODE = """
kind: kv
cluster:
  kind: node
  name: five-tiers
  accelerators: {type: h100-80gb-sxm, count: 8}
  links:
    - {name: nvlink, type: nvswitch, bandwidth: 450 GB/s, latency: 1 us}
    - {name: pcie, type: pcie, generation: 5, lanes: 16, shared_by: 2}
  nics: {count: 8, bandwidth: 400 Gbit/s, affinity: one-per-accelerator, protocol: infiniband}
  tiers:
    - {name: ddr, capacity: 2 TiB, read: 300 GB/s, write: 300 GB/s, latency: 90 ns, link: pcie, attention: 1 TFLOP/s}
    - {name: cxl, capacity: 512 GiB, count: 2, read: 50 GB/s, write: 45 GB/s, latency: 250 ns, link: pcie, shared_by: 8}
    - {name: nvme, capacity: 30 TB, read: 27 GB/s, write: 14 GB/s, latency: 80 us, link: pcie, via: ddr, shared_by: 8}
    - {name: remote, capacity: 8 TiB, read: 200 GB/s, write: 200 GB/s, latency: 5 us, link: nics, shared_by: 8}
"""
SERVE = """
model: llama-3.1-70b
engine: vllm
workload: {lengths: {isl: 32768, osl: 512}}
search: {precision_weights: [bf16], precision_kv: [bf16]}
"""
TRAIN = """
model: llama-3.1-70b
workload: {kind: finetune, seq_len: 32768, global_batch: 32}
"""


REUSE = "osl: 512}, reuse: {hit_ratio: 0.6, working_set: 6 TiB}"


def main() -> None:
    """Print the time of one linear problem, and of the whole search, of serving and of training."""
    scenario = load_kv(read_yaml(NODE + SERVE, "benchmark"), Path())
    asked = scenario.offload(8, 8, "bf16", "bf16")
    kernels = kernels_of(asked, (8,))[8]
    place(asked, kernels)
    began = time.perf_counter()
    block = place(asked, kernels)
    took = time.perf_counter() - began
    print(f"one block of 64 sequences: {took:.4f} s, {block.tokens_per_s if block else 0:.1f} tokens/s")
    cached = load_kv(read_yaml(NODE + SERVE.replace("osl: 512}", REUSE), "benchmark"), Path())
    found = replace(asked, prefixes=prefixes_of(cached, "both", "prefix", "as_kept"))
    kernels = kernels_of(found, (8,))[8]
    began = time.perf_counter()
    block = place(found, kernels)
    took = time.perf_counter() - began
    print(f"with a cache of prefixes: {took:.4f} s, {block.tokens_per_s if block else 0:.1f} tokens/s")
    began = time.perf_counter()
    result = plan(scenario)
    print(f"search: {result.solve_time_s:.2f} s for {result.candidates} blocks, {result.status}, ", end="")
    print(f"with purchases {time.perf_counter() - began:.2f} s")
    training = load(read_yaml(NODE + TRAIN, "benchmark"), Path())
    assert isinstance(training, FinetuneScenario)
    layouts = [layout for layout in training.layouts() if layout.fits]
    began = time.perf_counter()
    placed = place_states(layouts[0])
    took = time.perf_counter() - began
    print(f"one training layout, three phases: {took:.4f} s, {placed.step_time_s if placed else 0:.1f} s a step")
    began = time.perf_counter()
    result = plan(training)
    print(f"search: {result.solve_time_s:.2f} s for {result.candidates} layouts, {result.status}, ", end="")
    print(f"with purchases {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
