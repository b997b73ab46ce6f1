"""Placement over tiers against the computed references of FlexGen's cost model."""

import csv
from pathlib import Path

import pytest

from perfmodel.tiers import Block, Placement, Rates, block_time, host_attention_correction, memory_bytes
from solvers.kv_lp import place

GIB, TERA = 2.0**30, 1e12
SIZES = {  # layers, hidden, heads; arXiv 2205.01068, table 1; a stage is a quarter of the layers
    "opt-6.7b": (32, 4096, 32),
    "opt-13b": (40, 5120, 40),
    "opt-30b": (48, 7168, 56),
    "opt-66b": (64, 9216, 72),
    "opt-175b": (96, 12288, 96),
    "opt-175b-stage": (24, 12288, 96),
}
CONSTANTS = {
    "t4_gcp_default": (12.89, 0.97, 4.82, 0.473, 0.746, 2.015, 2.015, 21.24, 4.3, 9.97, 0.079, 0.0123),
    "pcie4_fast": (25, 20, 20, 6, 4, 4, 4, 200, 40, 80, 0.7, 0.1),
}
with (Path(__file__).parent / "oracles" / "flexgen_lp_oracle.csv").open() as file:
    ROWS = list(csv.DictReader(file))


def question(row):
    layers, hidden, heads = SIZES[row["model"]]
    batch = int(row["gbs"])
    weights = 24.0 * hidden**2
    block = Block(
        layers=layers,
        weight_bytes=weights / 4 if row["compress_w"] == "1" else weights,
        kv_bytes=4.0 * hidden,
        hidden_bytes=2.0 * hidden,
        inner_bytes=8.0 * hidden,
        heads=heads,
        flops=24.0 * hidden**2,
        attention_flops=4.0 * hidden,
        prompt=int(row["prompt_len"]),
        generated=int(row["gen_len"]),
        gpu_batch=batch,
        num_batches=int(row["num_batches"]),
    )
    up, down_kv, down, read, write_kv, write, write_one, products, product, attention, attend, host = CONSTANTS[
        row["hw"]
    ]
    rates = Rates(
        *(rate * GIB for rate in (up, down_kv, down, read, write_kv, write, write_one)),
        disk_weights=0.95,
        products_prefill=products * TERA,
        attention_prefill=attention * TERA,
        products_decode=product * TERA,
        attention_decode=attend * TERA,
        host_attention=host * TERA * host_attention_correction(batch, hidden),
    )
    alpha = float(row["mem_alpha"])
    sizes = {
        name: float(row[f"{key}_gib"]) * GIB * alpha
        for name, key in (("gpu", "gpu"), ("host", "cpu"), ("disk", "disk"))
    }
    fixed = {}
    if row["fixed_percent"]:
        percent = [float(number) / 100 for number in row["fixed_percent"].split()]
        for number, thing in enumerate(("weights", "kv", "activations")):
            on, host_share = percent[2 * number : 2 * number + 2]
            fixed |= {f"{thing}_gpu": on, f"{thing}_host": host_share, f"{thing}_disk": 1 - on - host_share}
    return block, rates, sizes, fixed


def test_every_reference_is_met():
    """Same status; throughput within 1e-6; and the placement found has that time and fits, evaluated again."""
    assert len(ROWS) == 262
    for row in ROWS:
        block, rates, sizes, fixed = question(row)
        found = place(block, rates, sizes, fixed)
        assert ("optimal" if found.feasible else "infeasible") == row["status"], row["case_id"]
        if not found.feasible:
            continue
        tokens = block.sequences * block.generated
        assert tokens / found.block_time_s == pytest.approx(float(row["throughput_tok_s"]), rel=1e-6), row["case_id"]
        assert float(block_time(block, rates, found.placement)) == pytest.approx(found.block_time_s, rel=1e-6)
        for name, used in memory_bytes(block, found.placement).items():
            assert used <= sizes[name.split("_")[0]] * (1 + 1e-6) + 1, (row["case_id"], name)


def test_given_placements_have_the_time_of_the_reference():
    for row in ROWS:
        if row["case"] != "fixed":
            continue
        block, rates, _, fixed = question(row)
        assert float(block_time(block, rates, Placement(**fixed))) == pytest.approx(
            float(row["t_prefill_s"]) + float(row["t_decode_s"]), rel=1e-6
        )
