"""Commands about where weights, keys and values, and activations live."""

from typing import TYPE_CHECKING

from cli.answer import ask, need_plan, stop_at, write_result
from cli.options import Debug, Explain, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.kv_elsewhere_question import ElsewhereScenario
    from solvers.kv_finetune_question import FinetuneScenario
    from solvers.kv_scenario import KvScenario
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.

TABLES = ("memory_bytes", "utilisation", "purchases", "prefix_cache", "sizes", "warnings", "preemption", "pools")
"""Parts of a prediction that are shown as tables of their own, or told beside the answer."""


def plan_kv(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """Where weights, keys and values, and activations go, and in which batches."""
    from cli import extras

    extras.check(None, plot)

    def solve(
        source: "Source", progress: "Progress"
    ) -> "tuple[KvScenario | FinetuneScenario | ElsewhereScenario, Result]":
        from solvers.kv import load, plan

        question = load(source, scenario.parent)
        return question, plan(question, top=top, time_limit_s=time_limit, gap=stop_at(gap))

    question, result, given = ask(scenario, overrides, "searching", solve)
    warn(question.warnings)
    _answer(result, given, form, output, top, explain, plot)


def predict_kv(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    explain: Explain = None,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """What a given placement costs."""
    from cli import extras

    extras.check(None, plot)

    def solve(
        source: "Source", progress: "Progress"
    ) -> "tuple[KvScenario | FinetuneScenario | ElsewhereScenario, Result]":
        from solvers.kv import load, predict

        question = load(source, scenario.parent)
        need_plan(source, question.question.plan, "placement")
        return question, predict(question)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    warn(question.warnings)
    _answer(result, given, form, output, top, explain, plot)


def _answer(
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: "Path | None",
    top: int,
    explain: str | None,
    plot: "Path | None",
) -> None:
    """Draw, explain or write an answer."""
    from cli import extras

    _tell(result)
    if plot is not None:
        from cli.kv_plot import draw

        extras.draw(result, plot, draw)
    if explain is not None:
        from cli import explain as terms
        from perfmodel.kv_explanations import kv_explanations

        terms.write(result, explain, kv_explanations(_terms(result.breakdown or {"name": ""})), form, output)
    else:
        write_result(result, given, form, output, lambda: _shown(result, top))


def _terms(node: "Mapping[str, Any]") -> "list[str]":
    """Return the names of a breakdown, each once."""
    names = [str(node["name"]).removesuffix(", hidden")]
    for child in node.get("children") or ():
        names += _terms(child)
    return list(dict.fromkeys(names))


def _tell(result: "Result") -> None:
    """Tell which tiers lose against computing."""
    import typer

    for text in (result.prediction or {}).get("warnings", ()):
        typer.echo(f"warning: {text}", err=True)


def _shown(result: "Result", top: int) -> "RenderableType":
    from dataclasses import replace

    from cli import render

    if result.plan is None:
        return render.result(result, top)
    if "placement" not in result.plan:
        from cli.kv_elsewhere import shown as elsewhere

        return elsewhere(result, top)
    if "training" in result.plan:
        from cli.kv_finetune import shown as finetune

        return finetune(result, top)
    said = dict(result.prediction or {})
    tables = {key: said.pop(key, None) for key in TABLES}
    others = [{**other, "plan": _brief(other["plan"])} for other in result.alternatives]
    shown = replace(result, plan=_brief(result.plan), prediction=said, alternatives=others)
    return render.result(shown, top, _tables(result.plan, tables))


def _brief(plan: "Mapping[str, Any]") -> "dict[str, Any]":
    """Return a plan in one line: the shares of each object by tier."""
    from cli.tables import number

    placed = {
        thing: ", ".join(f"{number(share)} {tier}" for tier, share in tiers.items())
        for thing, tiers in plan["placement"].items()
    }
    return placed | {key: value for key, value in plan.items() if key not in ("placement", "attention_there", "loaded")}


def _tables(plan: "Mapping[str, Any]", said: "Mapping[str, Any]") -> "RenderableType":
    from rich.console import Group

    from cli.tables import number, quantity, table, text
    from hardware.units import format_quantity

    things = list(plan["placement"])
    rows = [
        (
            text(tier),
            *(number(plan["placement"][thing].get(tier, 0.0)) for thing in things),
            number(plan["attention_there"][tier]) if tier in plan["attention_there"] else "",
            format_quantity(used, "bytes"),
        )
        for tier, used in (said["memory_bytes"] or {}).items()
    ]
    heads = ("", *things, "attention there", "used")
    parts = [table("Shares by tier", heads, rows, numbers=range(1, len(heads)))]
    phases = said["utilisation"] or {}
    names = list(dict.fromkeys(name for times in phases.values() for name in times))
    busy = [(text(name), *(number(times.get(name, 0.0)) for times in phases.values())) for name in names]
    parts.append(table("Share of the time that it is busy", ("", *phases), busy, numbers=range(1, len(phases) + 1)))
    if said["purchases"]:
        bought = [
            (
                text(one["purchase"]),
                number(next(one[name] for name in ("tokens_per_s", "ttft_mean_s", "tpot_mean_s") if name in one)),
                number(one["gain"]),
                number(one["gain_per_gib"]),
                quantity("price_usd_per_hour", one["price_usd_per_hour"]),
            )
            for one in said["purchases"]
        ]
        heads = ("", "then", "gain", "gain per GiB", "USD/h")
        parts.append(table("What to buy, the most helpful first", heads, bought, numbers=(1, 2, 3, 4)))
    if said["prefix_cache"]:
        parts += _cache(said["prefix_cache"])
    if said["sizes"]:
        parts.append(_sizes(said["sizes"]))
    if said["preemption"]:
        parts.append(_preemption(said["preemption"]))
    if said["pools"]:
        parts.append(_pools(said["pools"]))
    return Group(*parts)


def _cache(said: "Mapping[str, Any]") -> "list[RenderableType]":
    """Show what a cache of prefixes in the free memory finds and what a prompt takes from it, tier by tier."""
    from cli.tables import number, table, text
    from hardware.units import format_quantity

    rows = [
        (
            text(one["tier"]),
            format_quantity(one["cache_bytes"], "bytes"),
            number(one["hit_ratio_cumulated"]),
            number(one["loaded_ratio"]),
            *((f"{one['request'][way]:.3g} s" if "request" in one else "") for way in ("load_s", "both_s")),
            text(one["request"]["choice"]) if "request" in one else "",
        )
        for one in said["tiers"]
    ]
    heads = ("", "cache", "found", "loaded", "load a prompt", "both at once", "best")
    title = "Prefixes in the memory left free"
    found: list[RenderableType] = [table(title, heads, rows, numbers=range(1, len(heads) - 1))]
    facts = []
    whole = next((one["request"]["compute_s"] for one in said["tiers"] if "request" in one), None)
    if whole is not None:
        facts.append(("to compute a prompt", f"{whole:.4g} s"))
        facts.append(("loading is faster from", f"{said['pays_above_bytes_per_s'] / 1e9:.4g} GB/s"))
    if said["knee"] is not None:
        knee = said["knee"]
        size = format_quantity(knee["capacity_bytes"], "bytes")
        most = f"{knee['hit_ratio_unbounded']:.3g} with no limit"
        facts.append(("knee of the hit curve", f"{size}: {knee['hit_ratio']:.3g} of the tokens, {most}"))
    found.append(table("", ("", ""), [(text(key), text(value)) for key, value in facts], numbers=()))
    return found


def _sizes(said: "Sequence[Mapping[str, Any]]") -> "RenderableType":
    """Show what other sizes of the tiers would do."""
    from cli.tables import number, quantity, table, text
    from hardware.units import format_quantity

    rows = [
        (
            text(f"{one['tier']}, knee" if one["knee"] else one["tier"]),
            format_quantity(one["capacity_bytes"], "bytes"),
            "" if one["hit_ratio"] is None else number(one["hit_ratio"]),
            f"{one['ttft_mean_s']:.4g} s",
            number(one["tokens_per_s"]),
            quantity("price_usd_per_hour", one["price_usd_per_hour"]),
        )
        for one in said
    ]
    heads = ("", "size", "loaded", "ttft", "tokens/s", "USD/h")
    return table("Other sizes, the same rates and batches", heads, rows, numbers=range(1, len(heads)))


def _preemption(said: "Mapping[str, Any]") -> "RenderableType":
    """Show how a sequence that made room comes back."""
    from cli.tables import table, text

    rows = [(text("computed again"), f"{said['recompute_s']:.4g} s", "")]
    rows += [
        (text(f"{one['tier']}, out and back"), f"{one['merged_s']:.4g} s", f"{one['pages_s']:.4g} s")
        for one in said["tiers"]
    ]
    title = f"A sequence of {said['tokens']:,.0f} tokens that makes room: {said['choice']}"
    return table(title, ("", "layer by layer", "page by page"), rows, numbers=(1, 2))


def _pools(said: "Mapping[str, Any]") -> "RenderableType":
    """Show nodes for prompts and nodes for answers."""
    from cli.tables import number, table, text

    rows = [
        (
            text(f"{one['prefill_nodes']} + {one['decode_nodes']}"),
            f"{one['ttft_mean_s']:.4g} s",
            f"{one['tpot_mean_s'] * 1e3:.4g} ms",
            number(one["tokens_per_s"]),
            f"{one['transfer_s'] * 1e3:.4g} ms",
            f"{one['exposed_transfer_s'] * 1e3:.4g} ms",
        )
        for one in said["splits"]
    ]
    heads = ("nodes", "ttft", "tpot", "tokens/s", "sent in", "not hidden")
    title = f"Nodes for prompts and for answers: better {said['choice']}"
    return table(title, heads, rows, numbers=range(1, len(heads)))
