"""What would make a training question without a plan have one: the smallest change of each kind."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from perfmodel.job import Job
from perfmodel.job import job as make_job
from perfmodel.memory import host_bytes
from solvers.scenario import TrainScenario
from solvers.train_search import Evaluated, evaluate
from solvers.train_space import LAYOUT, space

MOST_TIMES_THE_NODES = 4096
SECONDS_FOR_THE_FEWEST_NODES = 10.0


def relaxations(scenario: TrainScenario, found: Evaluated) -> list[dict[str, Any]]:
    """Return, for each constraint whose change alone would do, its value now and the least that would do.

    Parameters
    ----------
    scenario : TrainScenario
        A question of which no plan fits.
    found : Evaluated
        Its plans, all too large; empty where no layout exists.
    """
    answers = []
    hosted = found.offloaded_bytes <= host_bytes(scenario.job)
    if hosted.any():
        answers.append(memory_relaxation(scenario.job, float(found.required_bytes[hosted].min())))
    nodes = _nodes_needed(scenario)
    if nodes is not None:
        answers.append(nodes)
    if not len(found.required_bytes):
        batch = _batch_needed(scenario)
        if batch is not None:
            answers.append(batch)
        answers += _lists_needed(scenario)
    return answers


def memory_relaxation(job: Job, needed_bytes: float) -> dict[str, Any]:
    """Return the memory of an accelerator on which `needed_bytes` of a job fit."""
    return {
        "constraint": "accelerator.memory.capacity",
        "now": job.machine.accelerator.memory.capacity,
        "needed": needed_bytes + job.framework.reserve.context,
        "unit": "bytes",
    }


def host_relaxation(job: Job, offloaded_bytes: float) -> dict[str, Any]:
    """Return the host memory of a node on which `offloaded_bytes` a rank fit."""
    ranks = min(job.machine.node.accelerators.count, job.ranks)
    return {
        "constraint": "node.tiers.ddr.capacity",
        "now": host_bytes(job) * ranks,
        "needed": offloaded_bytes * ranks,
        "unit": "bytes",
    }


def on_nodes(job: Job, nodes: int) -> Job:
    """Return the job on another number of nodes, of a cluster that is large enough.

    Raises
    ------
    ValueError
        Where the network cannot be laid out for so many nodes.
    """
    machine = job.machine
    cluster = machine.cluster.model_copy(update={"nodes": max(nodes, machine.cluster.nodes)})
    return make_job(
        job.architecture,
        replace(machine, cluster=cluster, nodes=nodes),
        ranks=nodes * machine.node.accelerators.count,
        seq_len=job.seq_len,
        global_batch=job.global_batch,
        precision=job.precision,
        framework=job.framework,
    )


def _fits_on(scenario: TrainScenario, nodes: int) -> bool:
    try:
        job = on_nodes(scenario.job, nodes)
    except ValueError:
        return False
    candidates = space(job, scenario.question.search)
    return bool(len(candidates.layouts)) and bool(evaluate(job, candidates).fits(job).any())


def _nodes_needed(scenario: TrainScenario) -> dict[str, Any] | None:
    """Return the fewest nodes on which a plan fits: an upper bound by doubling, then every count below it, in order."""
    now = scenario.job.machine.nodes
    enough = now
    while not _fits_on(scenario, enough):
        enough *= 2
        if enough > now * MOST_TIMES_THE_NODES or enough > scenario.job.global_batch * scenario.job.seq_len:
            return None
    deadline = time.perf_counter() + SECONDS_FOR_THE_FEWEST_NODES
    fewest, smallest = enough, True
    for nodes in range(now + 1, enough):
        if time.perf_counter() > deadline:
            smallest = False
            break
        if _fits_on(scenario, nodes):
            fewest = nodes
            break
    return {"constraint": "nodes", "now": now, "needed": fewest, "unit": "nodes", "proved_smallest": smallest}


def _lists_needed(scenario: TrainScenario) -> list[dict[str, Any]]:
    """Return the lists of the search that, left open alone, allow a layout, with the nearest value that does."""
    answers = []
    search = scenario.question.search
    for name in ("tp", "pp", "cp", "ep", "vpp", "micro_batch"):
        asked = getattr(search, name)
        if asked is None:
            continue
        layouts = space(scenario.job, search.model_copy(update={name: None})).layouts
        if len(layouts):
            allowed = {int(value) for value in layouts[:, LAYOUT.index(name)]}
            nearest = min(allowed, key=lambda value: (min(abs(value - given) for given in asked), value))
            answers.append({"constraint": f"search.{name}", "now": list(asked), "needed": nearest, "unit": ""})
    return answers


def _batch_needed(scenario: TrainScenario) -> dict[str, Any] | None:
    """Return the next larger global batch for which the accelerators can be laid out."""
    job = scenario.job
    for batch in range(job.global_batch + 1, job.global_batch + job.ranks + 1):
        if len(space(replace(job, global_batch=batch), scenario.question.search).layouts):
            return {
                "constraint": "workload.global_batch",
                "now": job.global_batch,
                "needed": batch,
                "unit": "sequences",
            }
    return None
