"""What a launch script of serving says on top: what it starts, and what was predicted for it."""

from collections.abc import Mapping
from typing import Any

from cli.emit.run import shown
from solvers.result import Result
from solvers.serve_scenario import ServeScenario

_GIB = 2.0**30


def summary(result: Result, question: ServeScenario) -> tuple[str, ...]:
    """Say what is launched and what was predicted for it, in lines.

    Parameters
    ----------
    result : Result
        An answer about serving that has a plan.
    question : ServeScenario
        What was asked.
    """
    assert result.plan is not None and result.prediction is not None
    found = result.prediction
    workload = question.question.workload.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    machines = [kind.machine for kind in question.kinds] if result.plan.get("groups") else [question.machine]
    places = " and ".join(
        f"{one.nodes} x {one.node.name} ({one.accelerators} {one.accelerator.name})" for one in machines
    )
    lines = [
        f"{question.architecture.name} on {places}; {_flat(workload)}",
        f"perfmodel {result.provenance.get('version', '')} predicts for engine {question.engine.name} (P10 to P90), "
        f"from {found['latencies_from']}:",
    ]
    for metric, name in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end")):
        each = [
            f"{statistic} {_seconds(found, f'{metric}_{statistic}_s')}"
            for statistic in ("mean", "p50", "p90", "p99")
            if found.get(f"{metric}_{statistic}_s") is not None
        ]
        lines += [f"  {name}: {', '.join(each)}"] if each else []
    for key, name in (
        ("requests_per_s", "requests/s"),
        ("goodput_requests_per_s_per_gpu", "requests/s within the objectives, of an accelerator"),
        ("output_tokens_per_s_per_gpu", "output tokens/s of an accelerator"),
    ):
        if found.get(key) is not None:
            lines.append(f"  {found[key]:.4g} {name}{_interval(found, key)}")
    kinds = [(found.get("memory_prefill_bytes"), " of the prefill pool"), (found["memory_bytes"], "")]
    if found.get("groups"):
        kinds = [(one["memory_bytes"], f" of group {number}") for number, one in enumerate(found["groups"], start=1)]
    for parts, name in kinds:
        if parts:
            said = ", ".join(f"{part} {size / _GIB:.1f}" for part, size in parts.items())
            lines.append(f"  memory of an accelerator{name} [GiB]: {said}")
    if found.get("load") is not None:
        lines.append(f"  load {found['load']:.2f} of the capacity, {found['running_sequences']:.1f} sequences running")
    groups = result.plan.get("groups") or ()
    lines.append(f"plan: {_flat({key: value for key, value in result.plan.items() if key != 'groups'})}")
    return (*lines, *(f"  group {number}: {_flat(group)}" for number, group in enumerate(groups, start=1)))


def _flat(values: Mapping[str, Any]) -> str:
    words = []
    for key, value in values.items():
        said = f"({_flat(value)})" if isinstance(value, Mapping) else f"{value:g}" if isinstance(value, float) else ""
        said = said or shown(value)
        words.append(f"{key} {said}")
    return ", ".join(words)


def _seconds(found: Mapping[str, Any], key: str) -> str:
    return f"{found[key]:.3g} s{_interval(found, key)}"


def _interval(found: Mapping[str, Any], key: str) -> str:
    low, high = found.get(f"{key}_p10"), found.get(f"{key}_p90")
    if low is None:
        return ""
    return f" ({low:.3g} and up)" if high is None else f" ({low:.3g} to {high:.3g})"
