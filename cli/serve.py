"""Commands about how to serve a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.answer import ask, need_plan, write_result
from cli.options import Debug, Explain, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, warn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.result import Result
    from solvers.serve_scenario import ServeScenario

EmitEngine = Annotated[
    str | None,
    typer.Option("--emit", metavar="ENGINE", help="Write a launch script: vllm, sglang or trtllm."),
]

# Everything slow to import is imported by the command that needs it.


def plan_serve(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    emit: EmitEngine = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """How to serve a model on a cluster."""
    from cli import extras
    from cli.emit import ENGINES

    extras.check(emit, plot, ENGINES)

    def solve(source: "Source", progress: "Progress") -> "tuple[ServeScenario, Result]":
        from solvers.serve import plan
        from solvers.serve_scenario import load_serve

        question = load_serve(source, scenario.parent)
        return question, plan(question, top=top, time_limit_s=time_limit, gap=gap)

    question, result, given = ask(scenario, overrides, "searching", solve)
    _answer(question, result, given, form, output, top, explain, emit, plot)


def predict_serve(
    scenario: Scenario,
    overrides: Overrides = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Take the times of requests from a simulation, event by event.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the simulation.")] = 1,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    emit: EmitEngine = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """What requests see of a deployment: latencies, throughput, memory, cost."""
    from cli import extras
    from cli.emit import ENGINES

    extras.check(emit, plot, ENGINES)

    def solve(source: "Source", progress: "Progress") -> "tuple[ServeScenario, Result]":
        from solvers.serve import predict
        from solvers.serve_scenario import load_serve

        question = load_serve(source, scenario.parent)
        need_plan(source, question.question.plan, "deployment")
        return question, predict(question, simulate=simulate, seed=seed)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    _answer(question, result, given, form, output, top, explain, emit, plot)


def _answer(
    question: "ServeScenario",
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: Path | None,
    top: int,
    explain: str | None,
    emit: str | None,
    plot: Path | None,
) -> None:
    from cli import extras

    warn(question.warnings)
    if plot is not None:
        from cli.serve_plot import draw

        extras.draw(result, plot, draw)
    if explain is not None:
        from cli import explain as terms
        from perfmodel.serving.equations import SERVING_EXPLANATIONS

        terms.write(result, explain, SERVING_EXPLANATIONS, form, output)
    elif not extras.emit_serving(result, question, emit, output):
        write_result(result, given, form, output, lambda: _shown(result, top))


_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end to end"}
_STATISTICS = ("mean", "p50", "p90", "p99")


def _shown(result: "Result", top: int) -> "RenderableType":
    """Show an answer: plans in short, and times of requests in a table of their own."""
    from dataclasses import replace

    from cli import render

    def brief(entry: "Mapping[str, Any]") -> "dict[str, Any]":
        return {**entry, "plan": _short(entry["plan"])}

    front = result.pareto and {**result.pareto, "points": [brief(entry) for entry in result.pareto["points"]]}
    short = replace(
        result,
        alternatives=[brief(entry) for entry in result.alternatives],
        pareto=front,
        why_not=[_brief_reason(entry) for entry in result.why_not],
    )
    if result.plan is None or result.prediction is None:
        return render.result(short, top)
    today = result.baseline
    shown = replace(
        short,
        plan=_short(result.plan),
        prediction=_rest(result.prediction),
        baseline={**today, "plan": _short(today["plan"]), "prediction": _rest(today["prediction"])} if today else None,
    )
    return render.result(shown, top, _front(result))


def _front(result: "Result") -> "RenderableType":
    """Show the plan, and what requests see of it and of today's."""
    from rich.console import Group

    from cli.tables import quantity, table, text

    assert result.plan is not None and result.prediction is not None
    plans = [_short(result.plan)] + ([_short(result.baseline["plan"])] if result.baseline else [])
    keys = dict.fromkeys(key for plan in plans for key in plan)
    cells = [(key, *(text(quantity(key, plan.get(key))) for plan in plans)) for key in keys]
    parts = [table("Plan", ("", "best", "today")[: len(plans) + 1], cells, numbers=())]
    predictions = [("", result.prediction)] + ([(" today", result.baseline["prediction"])] if result.baseline else [])
    rows = []
    for metric, name in _METRICS.items():
        for when, prediction in predictions:
            fields = [f"{metric}_{statistic}_s" for statistic in _STATISTICS]
            rows.append((name + when, *(quantity(field, prediction.get(field)) for field in fields)))
            if not when:
                ends = [[prediction.get(field + end) for end in ("_p10", "_p90")] for field in fields]
                for label, side in (("  P10", 0), ("  P90", 1)):
                    rows.append((label, *(quantity(f, pair[side]) for f, pair in zip(fields, ends, strict=True))))
    heads = ("", "mean", "P50", "P90", "P99")
    parts.append(table(f"Times of requests, from {result.prediction['latencies_from']}", heads, rows))
    return Group(*parts)


def _rest(prediction: "Mapping[str, Any]") -> "dict[str, Any]":
    """Leave out the times of requests."""
    return {
        key: value
        for key, value in prediction.items()
        if not key.startswith(tuple(f"{metric}_" for metric in _METRICS)) and key not in ("latencies_from", "groups")
    }


def _short(plan: "Mapping[str, Any]") -> "dict[str, Any]":
    """Write each pool of a plan in a few words."""
    plain = {"layered_prefill": False, "overlap": "none", "prefill_share": 0}
    told = {key: value for key, value in plan.items() if key not in plain or value != plain[key]}
    short = {key: _pool(value) if key in ("prefill", "decode") and value else value for key, value in told.items()}
    if "tp" in short:
        sizes = ("tp", "pp", "dp", "ep", "replicas", "max_num_seqs", "max_num_batched_tokens")
        short["instances"] = _pool({name: short.pop(name) for name in sizes})
    for number, group in enumerate(short.pop("groups", None) or (), start=1):
        does = {"both": "", "prefill": "prompts, ", "decode": "tokens, "}[group["phase"]]
        types = f"{group['precision_weights']}, {100 * group['share']:.3g} %"
        short[f"group {number}"] = f"{group['accelerator']}: {does}{_pool(group)}, {types}"
    return short


def _pool(pool: "Mapping[str, Any]") -> str:
    sizes = " ".join(f"{name}{pool[name]}" for name in ("tp", "pp", "dp", "ep") if name == "tp" or pool[name] > 1)
    return f"{pool['replicas']} x {sizes}, {pool['max_num_seqs']} seqs, {pool['max_num_batched_tokens']} tokens"


def _brief_reason(entry: "Mapping[str, Any]") -> "dict[str, Any]":
    nearest = entry.get("nearest")
    if not nearest or "plan" not in nearest:
        return dict(entry)
    return {**entry, "nearest": {**nearest, "plan": _short(nearest["plan"])}}
