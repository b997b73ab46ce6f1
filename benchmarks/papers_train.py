"""What published papers claim for training, beside what the model predicts: the table of docs/papers.md.

    python benchmarks/papers_train.py

Reads ``papers/claims.csv`` below PERFMODEL_DATA (default ../shared/data). System and baseline of a claim are predicted
from the same hardware description. What a paper does not state is swept, and the answer is then an interval. A claim
whose mechanism the model lacks is listed without a prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from claims import Answer, line, listed, read, show, swept

from hardware.catalogue import Machine, resolve_cluster
from hardware.tiers import tier_paths
from hardware.topology import levels
from perfmodel.architecture import Architecture, ModelDescription, from_description, load_architecture
from perfmodel.finetune import finetunes, step_interval_of
from perfmodel.framework import frameworks
from perfmodel.intervals import step_interval
from perfmodel.job import Job, job
from perfmodel.memory import available_bytes
from perfmodel.training import predict_step
from solvers.kv_finetune_place import Placed, place
from solvers.scenario import TrainSearch
from solvers.train import Evaluated, evaluate
from solvers.train_space import space


@dataclass(frozen=True)
class Run:
    """The best plan of a job: step and its parts [s], logged FLOP/s of a rank, P10 and P90 as factors of the step."""

    seconds: float
    parts: dict[str, float]
    rate: float
    p10: float
    p90: float


def rates(runs: Sequence[Run], unit: float, inputs: str) -> Answer:
    """Return the sweep of an absolute rate, beside which the model's own interval of a run matters."""
    own = f"one run's P10-P90 is x {1 / max(run.p90 for run in runs):.2f}-{1 / min(run.p10 for run in runs):.2f}"
    counted = "FLOPs as Megatron logs them, without recomputation x 3/4"
    return swept((run.rate / unit for run in runs), f"{inputs}; {counted}; {own}")


# --- what is run -----------------------------------------------------------------------------------------------------


@lru_cache
def machine(name: str, gpus: int) -> Machine:
    """Return so many accelerators of a catalogue machine; of a node in part use they have the host to themselves."""
    count = resolve_cluster(name, Path(), 1).node.accelerators.count
    whole = resolve_cluster(name, Path(), -(-gpus // count))
    used = min(gpus, count)
    links = tuple(link.model_copy(update={"shared_by": min(link.shared_by, used)}) for link in whole.node.links)
    accelerators = whole.node.accelerators.model_copy(update={"count": used})
    return replace(whole, node=whole.node.model_copy(update={"accelerators": accelerators, "links": links}))


def training(
    model: Architecture, where: str, gpus: int, batch: int, seq_len: int, software: str = "megatron-deepspeed"
) -> Job:
    """Return a job in 16 bits; a single rank has no links, so those of its node stand in, and carry nothing."""
    made = job(
        model,
        machine(where, gpus),
        ranks=gpus,
        seq_len=seq_len,
        global_batch=batch,
        precision="fp16",
        framework=frameworks()[software],
    )
    return made if made.levels else replace(made, levels=levels(resolve_cluster(where, Path(), 1)))


def costed(work: Job, limits: dict[str, Any]) -> Evaluated:
    """Cost every plan within the limits, all with full recomputation."""
    return evaluate(work, space(work, TrainSearch(recompute=("full",), **limits)))


def best(work: Job, limits: dict[str, Any], needs_to_fit: bool = True) -> Run | None:
    """Return the fastest plan within the limits; None where none fits in memory."""
    found = costed(work, limits)
    times = np.where(found.required_bytes <= available_bytes(work), found.step_time_s, np.inf)
    times = times if needs_to_fit else found.step_time_s
    if not np.isfinite(times).any():
        return None
    step = predict_step(work, found.plan.taken(np.array([np.argmin(times)]))).step
    p10, p90 = (float(np.ravel(end)[0]) for end in step_interval(work, step))
    parts = {part.name: float(np.ravel(part.seconds)[0]) for part in step.children}
    seconds = float(times.min())
    return Run(seconds, parts, logged_flops(work) / seconds / work.ranks, p10, p90)


def gpt2(layers: int, hidden: int, positions: int = 1024) -> Architecture:
    """Return a model of the GPT-2 kind with heads of 128."""
    sizes = {"hidden": hidden, "layers": layers, "heads": hidden // 128, "ffn": 4 * hidden, "vocab": 50257}
    kind = {"gated": False, "bias": True, "norm": "layernorm", "tied_embeddings": True, "learned_positions": positions}
    return from_description(ModelDescription.model_validate({"name": "GPT-2 style"} | sizes | kind))


def logged_flops(work: Job) -> float:
    """Return the FLOPs of a step as Megatron's log counts them with full recomputation.

    Notes
    -----
    96 B s l h^2 (1 + s/6h + V/16lh): the whole score matrix and a second forward pass count (arXiv 2104.04473,
    equation 3). Three quarters of it are the work without recomputation, logits apart.
    """
    model, tokens = work.architecture, work.global_batch * work.seq_len
    h, l, s, V = model.hidden, model.depth, work.seq_len, model.vocab  # noqa: E741 (the paper's symbols)
    return 96 * tokens * l * h**2 * (1 + s / (6 * h) + V / (16 * l * h))


# --- training on Frontier (arXiv 2312.12705) -------------------------------------------------------------------------

FRONTIER: dict[str, dict[str, Any]] = {  # layouts as the rows recall them; the 22B row states none
    "megatron-22b": {},
    "gpt-3-175b": {"tp": (4,), "pp": (16,), "micro_batch": (1,)},
    "megatron-1t": {"tp": (8,), "pp": (64,), "micro_batch": (1,)},
}
RECIPE = {"vpp": (1,), "zero_stage": (0, 1), "offload": ("none",)}
SOFTWARE = ("megatron-deepspeed", "megatron-lm")  # between them lies DeepSpeed with flash attention
BATCHES = (768, 3072, 9216)


@lru_cache
def on_frontier(model: str, gcds: int, batch: int, software: str) -> Run | None:
    """Return the best run of a paper's layout."""
    work = training(load_architecture(model, Path()), "frontier", gcds, batch, 2048, software)
    return best(work, FRONTIER[model] | RECIPE)


def share_of_peak(model: str, sizes: Sequence[int]) -> Answer:
    """Sweep GCDs, batch and software."""
    runs = [on_frontier(model, *point) for point in product(sizes, BATCHES, SOFTWARE)]
    inputs = f"{model}, sequence 2048, GCDs {listed(sizes)}, batch {listed(BATCHES)}, {listed(SOFTWARE)}"
    return rates([run for run in runs if run], machine("frontier", 8).accelerator.peak["fp16"] / 100, inputs)


def scaling(model: str, gpus: int, weak: bool) -> Answer:
    """Sweep the start of the series, the batch, the software, and whether a GPU is a GCD or a module of two."""
    values = []
    (tp,), (pp,) = FRONTIER[model]["tp"], FRONTIER[model]["pp"]
    for gcds, share, batch, software in product((gpus, 2 * gpus), (2, 4, 8), BATCHES, SOFTWARE):
        if gcds % (share * tp * pp):
            continue
        start = on_frontier(model, gcds // share, batch // share if weak else batch, software)
        end = on_frontier(model, gcds, batch, software)
        if start and end:
            values.append(100 * start.seconds / end.seconds / (1 if weak else share))
    series = f"{gpus} GPUs, as GCDs or as modules, from 1/2, 1/4, 1/8 of them"
    inputs = f"{model}, tp {tp} pp {pp}, {series}; batch at the end {listed(BATCHES)}, {listed(SOFTWARE)}"
    return swept(values, inputs)


def frontier_answers() -> dict[str, Answer]:
    """Predict the claims of training on Frontier."""
    parameters = load_architecture("megatron-1t", Path()).parameters
    return {
        "frontier-01": share_of_peak("megatron-22b", (8, 32, 128)),
        "frontier-02": share_of_peak("gpt-3-175b", (64, 256, 1024)),
        "frontier-03": share_of_peak("megatron-1t", (512, 1024, 3072)),
        "frontier-04": scaling("gpt-3-175b", 1024, weak=True),
        "frontier-05": scaling("megatron-1t", 3072, weak=True),
        "frontier-06": scaling("gpt-3-175b", 1024, weak=False),
        "frontier-07": scaling("megatron-1t", 3072, weak=False),
        "frontier-08": swept([6 * parameters * 20e12], f"6 N D, N = {parameters / 1e12:.3f}e12 of megatron-1t"),
    }


# --- ZeRO-Offload (arXiv 2101.06840) ---------------------------------------------------------------------------------

OFFLOADED = {"pp": (1,), "zero_stage": (0, 2), "offload": ("optimizer",)}
RESIDENT = {"pp": (1,), "zero_stage": (0,), "offload": ("none",)}


HOSTED = {"momentum": 0.0, "weights": 1.0, "activations": 1.0}
"""What stays with the accelerators when the host updates everything."""


def hosted(work: Job, micro: int, needs_to_fit: bool = True) -> list[Placed]:
    """Return the steps of layouts with 16-bit weights and activations alone; gradients leave as they are made."""
    limits: dict[str, Any] = {"pp": (1,), "zero_stage": (0, 2), "offload": ("none",), "micro_batch": (micro,)}
    plans = costed(work, limits).plan
    plans = plans.taken(np.flatnonzero((plans.zero_stage == 2) | (plans.dp * plans.cp == 1)))
    ddr = tuple(path for path in tier_paths(work.machine.node) if path.name == "ddr")
    asked = finetunes(work, plans, ddr)
    if not needs_to_fit:
        asked = [replace(one, room_bytes=np.inf) for one in asked]
    kept = [one for one in asked if one.fixed_bytes + one.activations_bytes + one.weights_bytes <= one.room_bytes]
    kept = [replace(one, room_bytes=min(one.room_bytes, 1e15)) for one in kept]
    return [placed for one in kept if (placed := place(one, interleaved=0.0, kept=HOSTED)) is not None]


def largest(gpus: int, micro: int, limits: dict[str, Any] | None) -> float:
    """Return the parameters [1e9] of the largest model that fits, by bisection over layers at each hidden size.

    Without limits the host has the states.
    """
    most = 0
    for hidden in (2048, 4096, 8192):
        low, high = 0, 1024
        while high - low > 1:
            middle = (low + high) // 2
            work = training(gpt2(middle, hidden), "dgx-2", gpus, gpus * micro, 1024)
            if limits is None:
                fits = bool(hosted(work, micro))
            else:
                needed = costed(work, limits | {"micro_batch": (micro,)}).required_bytes.min()
                fits = bool(needed <= available_bytes(work))
            low, high = (middle, high) if fits else (low, middle)
        most = max(most, gpt2(low, hidden).parameters if low else 0)
    return most / 1e9


def offload_answers() -> dict[str, Answer]:
    """Predict the claims of ZeRO-Offload."""
    answers = {}
    ten, small = gpt2(50, 4096), gpt2(26, 2048)
    jobs = [training(ten, "dgx-2", 1, 10 * accumulated, 1024) for accumulated in (1, 4, 16)]
    batch_10 = OFFLOADED | {"micro_batch": (10,)}
    system = []
    for work in jobs:
        for placed in hosted(work, 10, needs_to_fit=False):
            asked = placed.asked
            p10, p90 = step_interval_of(asked, placed.resource_s)
            system.append(Run(placed.step_time_s, {}, logged_flops(work) / placed.step_time_s, p10, p90))
    needed = asked.fixed_bytes + asked.activations_bytes + asked.weights_bytes
    memory = f"needs {needed / 2**30:.0f} of {available_bytes(work) / 2**30:.0f} GiB by our memory model"
    answers["zoff-01"] = rates(system, 1e12, f"50 layers of 4096, batch 10, accumulation 1, 4, 16; {memory}")
    batches = (1, 2, 4, 8, 16, 32)
    runs = {batch: best(training(small, "dgx-2", 1, batch, 1024), RESIDENT) for batch in batches}
    baseline = {batch: run for batch, run in runs.items() if run}
    ratios = [one.rate / other.rate for one, other in product(system, baseline.values())]
    inputs = f"26 layers of 2048, batch {listed(baseline)}; zoff-01 over it {min(ratios):.2f}-{max(ratios):.2f} x"
    answers["zoff-02"] = rates(list(baseline.values()), 1e12, inputs)

    micros = (1, 4, 10)
    for gpus, size, ratio in ((1, "zoff-03", "zoff-04"), (16, "zoff-05", "zoff-06")):
        with_offload = [largest(gpus, micro, None) for micro in micros]
        alone = [largest(gpus, micro, RESIDENT | {"tp": (gpus,)}) for micro in micros]
        inputs = f"GPUs {gpus}, hidden 2048, 4096, 8192, micro-batch {listed(micros)}; "
        inputs += f"baseline tp {gpus} alone: {min(alone):.1f}-{max(alone):.1f}e9"
        answers[size] = swept(with_offload, inputs)
        answers[ratio] = swept((a / b for a, b in zip(with_offload, alone, strict=True)), inputs)

    gains = []
    for model, start in product((small, ten), (1, 4, 16)):
        few, many = (
            best(training(model, "dgx-2", gpus, 10 * gpus, 1024), batch_10 | {"tp": (1,)}) for gpus in (start, 128)
        )
        if few and many:
            gains.append(128 * few.seconds / many.seconds)
    inputs = "1.4e9 and 10e9 parameters, batch 10 a GPU; linear from 1, 4, 16 GPUs where it fits"
    answers["zoff-07"] = swept(gains, inputs)
    return answers


# --- claims whose mechanism the model lacks --------------------------------------------------------------------------

NOT_PREDICTED = {
    "frontlb-01": "three-level sharding and ZeRO++",
    "frontlb-02": "three-level sharding",
    "frontlb-03": "ZeRO++ (quantised and hierarchical collectives)",
    "frontlb-04": "three-level sharding",
    "frontlb-05": "three-level sharding and ZeRO++",
    "dos-01": "in `plan train`, an update that alternates; predicted by `plan kv`, see State that lives elsewhere",
    "fsmoe-01": "schedule of expert all-to-all behind compute; A6000 and 2080 Ti",
    "fsmoe-02": "schedule of expert all-to-all behind compute; A6000 and 2080 Ti",
    "fsmoe-03": "software overheads of routing functions (the row itself says not reproducible)",
    "sgc-01": "gradient coding, and a trace of stragglers",
}


def ceilings() -> dict[str, str]:
    """Say what could be gained on the baselines we can predict, where the system itself cannot be predicted."""

    def most(where: str, gpus: int, offload: str, parts: Sequence[str]) -> float:
        limits = {"tp": (1,), "pp": (1,), "zero_stage": (3,), "offload": (offload,)}
        gains = []
        for seq_len, micro in product((1024, 2048), (1, 2, 4, 8)):
            run = best(training(gpt2(63, 5120, seq_len), where, gpus, gpus * micro, seq_len), limits)
            if run:
                gains.append(run.seconds / (run.seconds - sum(run.parts[part] for part in parts)))
        return max(gains)

    traffic = most("frontier", 384, "none", ("gradient traffic", "weight traffic", "slowdown under overlap"))
    update = most("dgx-h100", 4, "optimizer", ("optimizer",))
    baseline = "baseline with 20e9 parameters, batch 1-8 a GPU, sequence 1024 or 2048"
    bound = f"our ZeRO-3 {baseline} would gain at most {100 * (traffic - 1):.0f} % by free traffic"
    return {
        "frontlb-03": bound,
        "frontlb-04": bound,
        "dos-01": f"our offload {baseline} would gain at most {update:.2f} x by a free update",
    }


# --- the table -------------------------------------------------------------------------------------------------------


def table(claims: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a line for every claim of the training planner, with its ``answer`` (None where nothing is predicted)."""
    answers, bounds = frontier_answers() | offload_answers(), ceilings()
    for claim in claims:
        if claim["planner"] == "train":
            name = claim["claim_id"]
            yield line(claim, answers.get(name), NOT_PREDICTED.get(name, ""), bounds.get(name, ""))


def main() -> None:
    """Print the table as Markdown."""
    if claims := read():
        show(table(claims))


if __name__ == "__main__":
    main()
