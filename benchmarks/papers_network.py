"""What papers on training that communicates less claim, beside what the models predict: tables of docs/papers.md.

    python benchmarks/papers_network.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). A step is that of the training model on one
rank; its exchange of gradients, in full or compressed, is that of the collective model on the stated links, after the
backward pass, as the software of these papers did it. What a paper does not state is swept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from claims import Answer, line, read, show, swept
from papers_train import RESIDENT, Run, best, training

from hardware.catalogue import Machine, resolve_cluster
from hardware.topology import levels
from perfmodel.architecture import Architecture, ModelDescription, from_description, load_architecture
from perfmodel.collectives import Group, all_reduce, group, machine_model
from perfmodel.low_communication import (
    compressed_all_reduce,
    local_updates,
    one_bit_ratio,
    top_k_bytes,
    warmed_up_bytes,
)

GRADIENT_BYTES = 2  # of an element, in 16 bits
COMPRESSION_BYTES = 12  # touched for an element to compress it: gradient, error and momentum in 32 bits
NODES = ("v100-pcie-4", "dgx-1v-16gb")
ETHERNET, QDR, EDR = 4.1e9 / 8, 32e9 / 8, 100e9 / 8
"""Rates of a node's adapter [bytes/s]: as iperf measured the first two, and the third as sold."""


@lru_cache
def bert() -> Architecture:
    """Return a decoder of BERT-Large's sizes; its attention is causal, which at these lengths saves next to nothing."""
    sizes = {"hidden": 1024, "layers": 24, "heads": 16, "ffn": 4096, "vocab": 30522}
    kind = {"gated": False, "bias": True, "norm": "layernorm", "tied_embeddings": True, "learned_positions": 512}
    return from_description(ModelDescription.model_validate({"name": "BERT-Large sizes"} | sizes | kind))


@lru_cache
def alone(model: str, where: str, batch: int, seq_len: int) -> Run:
    """Return the step of one rank, which exchanges nothing; of a model too large for it all the same."""
    architecture = bert() if model == "bert" else load_architecture(model, Path())
    limits: dict[str, Any] = RESIDENT | {"micro_batch": (batch,)}
    run = best(training(architecture, where, 1, batch, seq_len), limits, needs_to_fit=False)
    assert run is not None
    return run


@lru_cache
def linked(where: str, gpus: int, rate: float, protocol: str) -> tuple[Machine, Group]:
    """Return nodes whose adapters carry so much together [bytes/s], and all their ranks."""
    count = resolve_cluster(where, Path(), 1).node.accelerators.count
    machine = resolve_cluster(where, Path(), -(-gpus // count))
    assert machine.node.nics is not None
    nics = machine.node.nics.model_copy(update={"count": 1, "bandwidth": rate, "protocol": protocol})
    machine = replace(machine, node=machine.node.model_copy(update={"nics": nics}))
    return machine, group(levels(machine, gpus), gpus, 1)


@dataclass(frozen=True)
class Exchange:
    """A step of one rank without exchange, and the exchange of all gradients in full and as signs [s]."""

    step_s: float
    full_s: float
    signs_s: float

    def gain(self, warm_up: float) -> float:
        """Return how many times as fast training is whose first share of the steps sends gradients in full [1]."""
        return (self.step_s + self.full_s) / (
            self.step_s + warmed_up_bytes(self.full_s, self.signs_s / self.full_s, warm_up)
        )


def bert_exchange(where: str, gpus: int, rate: float, protocol: str, batch: int, seq_len: int) -> Exchange:
    """Exchange the gradients of BERT-Large once a step."""
    machine, ranks = linked(where, gpus, rate, protocol)
    size, model = GRADIENT_BYTES * bert().parameters, machine_model(machine)
    compress_s = COMPRESSION_BYTES * bert().parameters / machine.accelerator.memory.bandwidth
    ratio = one_bit_ratio(GRADIENT_BYTES)
    signs = compressed_all_reduce(ranks, size, model, ratio=ratio, compress_s=compress_s)
    return Exchange(alone("bert", where, batch, seq_len).seconds, float(all_reduce(ranks, size, model)), float(signs))


def one_bit() -> dict[str, Answer]:
    """Predict the claims of 1-bit Adam."""

    def exchanges(
        rate: float, protocol: str, gpus: tuple[int, ...], batch: int, seq: tuple[int, ...]
    ) -> list[Exchange]:
        return [bert_exchange(where, n, rate, protocol, batch, s) for where, n, s in product(NODES, gpus, seq)]

    sizes, short, long = (16, 32, 64, 128, 256), (128, 512), (384,)
    nodes = "nodes of 4 V100 over PCIe or 8 over NVLink"
    pretrain = f"{nodes}, 16-256 GPUs, batch 16 of 128 or 512 tokens"
    squad = f"{nodes}, 32 GPUs, batch 3 of 384 tokens"
    slow, fast = "4.1 Gbit/s a node", "32 Gbit/s a node"
    ethernet, qdr = exchanges(ETHERNET, "ethernet", sizes, 16, short), exchanges(QDR, "infiniband", sizes, 16, short)
    tuning = exchanges(ETHERNET, "ethernet", (32,), 3, long)
    tuning_qdr = exchanges(QDR, "infiniband", (32,), 3, long)
    ratio = one_bit_ratio(GRADIENT_BYTES)
    in_full = [
        [100 * one.full_s / (one.step_s + one.full_s) for one in exchanges(*link, (64,), 16, short)]
        for link in ((ETHERNET, "ethernet"), (EDR, "infiniband"))
    ]

    def gains(found: list[Exchange], warm_up: float) -> list[float]:
        return [one.gain(warm_up) for one in found]

    return {
        "onebit-01": swept([1 / warmed_up_bytes(1.0, ratio, 0.15)], "16-bit gradients, 15 % of the steps in full"),
        "onebit-02": swept(gains(ethernet + qdr, 0.15), f"{pretrain}, {slow} or {fast}, 15 % of the steps in full"),
        "onebit-03": swept(gains(tuning + tuning_qdr, 0.25), f"{squad}, {slow} or {fast}, 25 % of the steps in full"),
        "onebit-04": swept(gains(ethernet, 0.15), f"{pretrain}, {slow}"),
        "onebit-05": swept(gains(qdr, 0.15), f"{pretrain}, {fast}"),
        "onebit-06": swept(gains(ethernet, 0.0), f"{pretrain}, {slow}, no step in full"),
        "onebit-07": swept(gains(qdr, 0.0), f"{pretrain}, {fast}, no step in full"),
        "onebit-08": swept(gains(tuning, 0.0), f"{squad}, {slow}, no step in full"),
        "onebit-09": swept(gains(tuning, 0.25), f"{squad}, {slow}, 25 % of the steps in full"),
        "onebit-10": swept([1 / warmed_up_bytes(1.0, ratio, 0.25)], "16-bit gradients, 25 % of the steps in full"),
        "onebit-11": swept([1 / ratio], "16-bit gradients, one scale for each tensor"),
        "onebit-12": swept(in_full[0], f"{nodes}, 64 GPUs, batch 16 of 128 or 512 tokens, {slow}"),
        "onebit-13": swept(in_full[1], f"{nodes}, 64 GPUs, batch 16 of 128 or 512 tokens, 100 Gbit/s a node as sold"),
    }


def top_k() -> dict[str, Answer]:
    """Predict the claims of Deep Gradient Compression: 32-bit values and, from one bit to four bytes, their places."""
    sent = [top_k_bytes(1.0, 1e-3, 4.0, place) / 4 for place in (1 / 8, 1.0, 2.0, 4.0)]
    inputs = "one value of a thousand, 4 bytes and from a bit to 4 bytes for its place"
    return {
        "dgc-01": swept((1 / one for one in sent), inputs),
        "dgc-02": swept((97 * one for one in sent), inputs),
        "dgc-03": swept((488 * one for one in sent), inputs),
    }


def local_steps() -> dict[str, Answer]:
    """Predict the claims of replicas that meet every few steps."""
    rates = {"100 Gbit/s": 100e9 / 8, "10 Gbit/s": 10e9 / 8}
    needed, exposed = [], []
    for rate, model in product(rates.values(), ("gpt-2", "gpt-2-xl")):
        machine, ranks = linked("dgx-a100-40gb", 128, rate, "ethernet")
        step_s = alone(model, "dgx-a100-40gb", 8, 1024).seconds
        size = GRADIENT_BYTES * load_architecture(model, Path()).parameters
        seconds = float(all_reduce(ranks, size, machine_model(machine)))
        needed.append(int(np.ceil(seconds / step_s)))
        late, _ = local_updates(seconds, step_s, needed[-1], overlapped=True)
        exposed.append(100 * float(late) / step_s)
    many = f"gpt-2, gpt-2-xl, 128 A100, batch 8 of 1,024; H of at least {min(needed)}-{max(needed)} hides all"
    # the peak is what an exchange of everything between two steps needs; H and bits are recalled, not read
    ratios = [every * 16 / bits for every, bits in product((30, 100), (4, 16))]
    site, outer = [], []
    for size, rate in product((1e9, 10e9), (25e9 / 8, 45e9 / 8)):
        site.append(2 * 4 * size / rate)
        late, _ = local_updates(site[-1], 3.0, 100, overlapped=True)
        outer.append(100 * float(late) / 3.0)
    return {
        "co2-01": swept(exposed, f"{many}, adapters of {' or '.join(rates)} a node"),
        "sdiloco-01": swept(ratios, "30 or 100 local steps, overlapped; 4 or 16 bits a value against 16"),
        "pccl-03": swept(
            outer,
            f"1e9 and 10e9 parameters, 32-bit updates, 25 or 45 Gbit/s: {min(site):.1f}-"
            f"{max(site):.0f} s; 100 local steps of 3 s",
        ),
    }


NOT_PREDICTED = {
    "dgc-04": "a property of gradients, not of machines",
    "pccl-01": "connections, windows and round trips of the public internet",
    "pccl-02": "connections, windows and round trips of the public internet",
    "onebyte-01": "training by forward passes alone",
    "pcpp-03": "diffusion models split by patches",
}


def lines(claims: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every claim about traffic of training, with its ``answer`` (None where nothing is predicted)."""
    answers = one_bit() | top_k() | local_steps()
    for claim in claims:
        name = claim["claim_id"]
        if name in answers or name in NOT_PREDICTED:
            yield line(claim, answers.get(name), NOT_PREDICTED.get(name, ""))


def main() -> None:
    """Print the table as Markdown."""
    if claims := read():
        show(lines(claims))


if __name__ == "__main__":
    main()
