"""Launch arguments of a serving plan: what all engines share, an instance at a time."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cli.emit.run import command_rows, options, shown
from solvers.result import Result

PORT = 8000
"""Port of the first instance; each further one has the next."""

TAIL = 3.0
"""Standard deviations of the logarithm of a length that an instance has to take."""

_PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Instance:
    """One instance to launch.

    Parameters
    ----------
    plan : mapping
        The plan with the fields of its pool.
    phase : str
        ``prefill`` or ``decode``; empty where an instance does both.
    nodes : int
        Nodes that it takes.
    node, first : int
        Its first node, and its first accelerator there.
    port : int
        Where it listens.
    longest : int
        Tokens of the longest request with its answer.
    memory : mapping
        Of an accelerator by part [bytes]: ``weights``, ``cache``, ``unused``, ``device`` and others.
    cache_tokens : float
        Tokens that the cache of the instance holds.
    prefix_hit : bool
        Whether the prediction counts on cached prefixes.
    """

    plan: Mapping[str, Any]
    phase: str
    nodes: int
    node: int
    first: int
    port: int
    longest: int
    memory: Mapping[str, float]
    cache_tokens: float
    prefix_hit: bool

    @property
    def accelerators(self) -> int:
        """Accelerators of the instance."""
        return int(self.plan["tp"] * self.plan["pp"] * self.plan["dp"])


Arguments = Callable[[Instance, list[str]], tuple[list[str], dict[str, Any]]]
"""Instance, list that takes what cannot be said -> words of the command, and options with their values."""


def launch(result: Result, engine: str, release: str, arguments: Arguments, before: Iterable[str] = ()) -> str:
    """Write a script that starts every instance of a serving plan.

    Parameters
    ----------
    result : Result
        An answer about serving that has a plan.
    engine, release : str
        The system, as scenarios call it, and where its names were read.
    arguments : callable
        Words of an instance's command.
    before : iterable of str
        Lines to run before.

    Raises
    ------
    ValueError
        There is no plan to launch.
    """
    if result.plan is None or result.prediction is None or result.kind != "serve":
        raise ValueError("only a serving plan can be launched")
    missing: list[str] = []
    predicted = result.scenario.get("engine", "vllm")
    if predicted != engine:
        missing.append(f"the prediction is of {predicted}; --set engine={engine} predicts what follows")
    blocks = []
    for instance in _instances(result):
        words, given = arguments(instance, missing)
        rows = command_rows([words, *_grouped(given)])
        devices = ",".join(str(instance.first + number) for number in range(instance.accelerators))
        if instance.nodes > 1:
            places = f"nodes {instance.node} to {instance.node + instance.nodes - 1}, all accelerators"
            missing.append(f"an instance on {instance.nodes} nodes: how they find each other is the site's")
            head = rows[0]
        else:
            places = f"node {instance.node}, accelerators {devices}"
            head = f"CUDA_VISIBLE_DEVICES={devices} {rows[0]}"
        name = f"{instance.phase or 'instance'} on {places}"
        blocks += [f"# {name}", " \\\n  ".join([head, *rows[1:]]) + " &"]
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in _summary(result))]
    lines += [f"# names as of {release}"]
    lines += [f"# not expressible: {' '.join(text.split())}" for text in dict.fromkeys(missing)]
    return "\n".join([*lines, "set -e", ': "${MODEL:?the checkpoint}"', *before, *blocks, "wait", ""])


def share(taken: float, one: Instance) -> float:
    """Return a size as a share of an accelerator's memory."""
    return round(taken / one.memory["device"], 3)


def _grouped(given: Mapping[str, Any]) -> list[list[str]]:
    return [options({name: value}) for name, value in given.items()]


def _summary(result: Result) -> list[str]:
    scenario, plan, prediction = result.scenario, result.plan, result.prediction
    assert plan is not None and prediction is not None
    cluster, model = scenario["cluster"], scenario["model"]
    name = model if isinstance(model, str) else "the model"
    rate = prediction["requests_per_s"]
    lines = [
        f"{name} on {prediction['gpus']} of {scenario['nodes']} x {cluster['node']['name']}, {rate:.4g} requests/s",
        f"perfmodel {result.provenance.get('version', '')} predicts for engine {scenario.get('engine', 'vllm')}:",
    ]
    for metric in ("ttft", "tpot"):
        told = []
        for statistic in ("mean", "p99"):
            field = f"{metric}_{statistic}_s"
            value, low, high = (prediction.get(field + end) for end in ("", "_p10", "_p90"))
            if value is not None:
                ends = [f"{end * 1e3:.4g}" if end is not None else "-" for end in (low, high)]
                told.append(f"{statistic} {value * 1e3:.4g} ms (P10 {ends[0]}, P90 {ends[1]})")
        if told:
            lines.append(f"  {metric.upper()} {', '.join(told)}")
    flat = {key: value for key, value in plan.items() if not isinstance(value, Mapping)}
    lines.append("plan: " + ", ".join(f"{key} {shown(value)}" for key, value in flat.items()))
    for phase in _PHASES:
        if plan.get(phase):
            lines.append(f"  {phase}: " + ", ".join(f"{key} {shown(value)}" for key, value in plan[phase].items()))
    return lines


def _instances(result: Result) -> list[Instance]:
    """Return the instances, one after another on the nodes; none begins on a node that it does not fit."""
    scenario, plan, prediction = result.scenario, result.plan, result.prediction
    assert plan is not None and prediction is not None
    each = scenario["cluster"]["node"]["accelerators"]["count"]
    pools = [("", plan, "memory_bytes")]
    if plan["disaggregated"]:
        pools = [("prefill", plan["prefill"], "memory_prefill_bytes"), ("decode", plan["decode"], "memory_bytes")]
    found: list[Instance] = []
    place = 0
    for phase, pool, memory in pools:
        size = pool["tp"] * pool["pp"] * pool["dp"]
        for _ in range(pool["replicas"]):
            if (size <= each and place % each + size > each) or (size > each and place % each):
                place += each - place % each
            found.append(
                Instance(
                    plan={**plan, **pool},
                    phase=phase,
                    nodes=-(-size // each),
                    node=place // each,
                    first=place % each,
                    port=PORT + len(found),
                    longest=_longest(scenario["workload"]["lengths"]),
                    memory=prediction[memory],
                    cache_tokens=prediction[memory.replace("memory", "cache").replace("bytes", "tokens")],
                    prefix_hit=scenario["workload"].get("prefix_hit", 0.0) > 0,
                )
            )
            place += size
    return found


def _longest(lengths: Mapping[str, Any]) -> int:
    """Return the tokens of the longest request with its answer that an instance has to take."""
    if "histogram" in lengths:
        return int(max(one["isl"] + one["osl"] for one in lengths["histogram"]))
    whole = 0.0
    for name in ("isl", "osl"):
        variance = 1 + lengths.get(f"{name}_cv", 0.0) ** 2
        whole += lengths[name] / variance**0.5 * math.exp(TAIL * math.log(variance) ** 0.5)
    return int(whole) + 1
