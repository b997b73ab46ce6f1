"""Answers about where the states of training live, as tables."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from rich.console import RenderableType

    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.

TABLES = ("memory_bytes", "memory_available_bytes", "utilisation", "bytes_per_s", "others", "purchases")


def shown(result: "Result", top: int) -> "RenderableType":
    """Show an answer that has a plan.

    Parameters
    ----------
    result : Result
        The answer.
    top : int
        How many alternatives to show.
    """
    from dataclasses import replace

    from cli import render

    assert result.plan is not None
    said = dict(result.prediction or {})
    tables = {key: said.pop(key, None) for key in TABLES}
    # of another layout the placement differs everywhere a little
    others = [{**other, "plan": other["plan"]["training"]} for other in result.alternatives]
    today = result.baseline and {**result.baseline, "plan": _brief(result.baseline["plan"])}
    brief = replace(result, plan=_brief(result.plan), prediction=said, alternatives=others, baseline=today)
    return render.result(brief, top, _tables(result.plan, tables))


def _brief(plan: "Mapping[str, Any]") -> "dict[str, Any]":
    """Return a plan in one line: its layout, and the shares of each object by tier."""
    from cli.tables import number

    placed = {
        thing: ", ".join(f"{number(share)} {tier}" for tier, share in tiers.items())
        for thing, tiers in plan["placement"].items()
    }
    return {**plan["training"], **placed, "interleaved": plan["interleaved"]}


def _tables(plan: "Mapping[str, Any]", said: "Mapping[str, Any]") -> "RenderableType":
    from rich.console import Group

    from cli.tables import number, quantity, table, text
    from hardware.units import format_quantity

    layout = [(text(key), text(quantity(key, value))) for key, value in plan["training"].items()]
    half = (len(layout) + 1) // 2
    pairs = [(*left, *right) for left, right in zip(layout[:half], [*layout[half:], ("", "")], strict=False)]
    parts = [table("Training layout", ("", "", "", ""), pairs, numbers=())]
    tiers = list(said["memory_bytes"])
    rows = [
        (text(thing), *(number(shares[tier]) if tier in shares else "" for tier in tiers))
        for thing, shares in plan["placement"].items()
    ]
    rows += [
        (key, *(format_quantity(said[name][tier], "bytes") for tier in tiers))
        for key, name in (("used", "memory_bytes"), ("of", "memory_available_bytes"))
    ]
    parts.append(table("Shares by tier", ("", *tiers), rows, numbers=range(1, len(tiers) + 1)))
    phases = said["utilisation"]
    names = list(dict.fromkeys(name for times in phases.values() for name in times))
    busy = [(text(name), *(number(times.get(name, 0.0)) for times in phases.values())) for name in names]
    parts.append(table("Share of the phase that it is busy", ("", *phases), busy, numbers=range(1, len(phases) + 1)))
    if said["bytes_per_s"]:
        rates = [(text(name), format_quantity(rate, "bytes/s")) for name, rate in said["bytes_per_s"].items()]
        parts.append(table("Mean rate of links over the step", ("", ""), rates))
    if said["others"]:
        beside = [
            (
                text(one["placement"]),
                quantity("step_time_s", one["step_time_s"]) if one["step_time_s"] else "does not fit",
                quantity("update_s", one["update_s"]),
                "" if one["gain"] is None else f"{number(one['gain'])} x",
            )
            for one in said["others"]
        ]
        columns = ("", "step", "update", "of the plan's")
        parts.append(table("Simpler placements of this layout", columns, beside, numbers=(1, 2, 3)))
    if said["purchases"]:
        parts.append(bought(said["purchases"]))
    return Group(*parts)


def bought(purchases: "Sequence[Mapping[str, Any]]") -> "RenderableType":
    """Show what one more of everything brings.

    Parameters
    ----------
    purchases : sequence of mapping
        As in a prediction.
    """
    from cli.tables import number, quantity, table, text

    by_size = all("gain_per_gib" in one for one in purchases)
    rows = [
        (
            text(one["purchase"]),
            number(one["then"]),
            number(one["gain"]),
            *([number(one["gain_per_gib"])] if by_size else []),
            quantity("price_usd_per_hour", one["price_usd_per_hour"]),
        )
        for one in purchases
    ]
    heads = ("", "then", "gain", *(["gain per GiB"] if by_size else []), "USD/h")
    return table("What to buy, the most helpful first", heads, rows, numbers=range(1, len(heads)))
