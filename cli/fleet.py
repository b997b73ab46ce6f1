"""Commands about which accelerators to rent."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.answer import ask, need_plan, stop_at, write_result
from cli.options import Debug, Form, Gap, Output, Overrides, Plot, Scenario, TimeLimit, Top, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from rich.console import RenderableType

    from cli.answer import Progress
    from cli.options import Format
    from hardware.yaml_source import Source
    from solvers.fleet_scenario import FleetScenario
    from solvers.result import Result

# Everything slow to import is imported by the command that needs it.


def plan_fleet(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """Which accelerators to rent, how many, and which requests go to which."""
    from cli import extras

    extras.check(None, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[FleetScenario, Result]":
        from solvers.fleet import plan
        from solvers.fleet_scenario import load_fleet

        question = load_fleet(source, scenario.parent)
        return question, plan(question, top=top, time_limit_s=time_limit, gap=stop_at(gap))

    question, result, given = ask(scenario, overrides, "searching", solve)
    _answer(question, result, given, form, output, top, plot)


def predict_fleet(
    scenario: Scenario,
    overrides: Overrides = None,
    form: Form = None,
    output: Output = None,
    top: Top = 5,
    time_limit: TimeLimit = None,
    gap: Gap = 1e-4,
    plot: Plot = None,
    debug: Debug = False,
) -> None:
    """What given accelerators cost, and whether they serve the requests."""
    from cli import extras

    extras.check(None, plot)

    def solve(source: "Source", progress: "Progress") -> "tuple[FleetScenario, Result]":
        from solvers.fleet import predict
        from solvers.fleet_scenario import load_fleet

        question = load_fleet(source, scenario.parent)
        need_plan(source, question.question.plan, "fleet")
        return question, predict(question)

    question, result, given = ask(scenario, overrides, "predicting", solve)
    _answer(question, result, given, form, output, top, plot)


def _answer(
    question: "FleetScenario",
    result: "Result",
    given: "Mapping[str, Any]",
    form: "Format | None",
    output: Path | None,
    top: int,
    plot: Path | None,
) -> None:
    warn(question.warnings)
    if plot is not None:
        from cli import extras
        from cli.fleet_plot import draw

        extras.draw(result, plot, draw)
    write_result(result, given, form, output, lambda: _shown(result, top), _one_cell(result))


def _one_cell(result: "Result") -> "Result":
    """Return the answer with the routing after failures as a list: one cell of a row, not a column for each share."""
    from dataclasses import replace

    def listed(plan: "Mapping[str, Any]") -> "dict[str, Any]":
        if "failover" not in plan:
            return dict(plan)
        return {**plan, "failover": [{"after": name, **routing} for name, routing in plan["failover"].items()]}

    if result.plan is None:
        return result
    others = [{**other, "plan": listed(other["plan"])} for other in result.alternatives]
    return replace(result, plan=listed(result.plan), alternatives=others)


def _shown(result: "Result", top: int) -> "RenderableType":
    from dataclasses import replace

    from cli import render

    if result.plan is None:
        return render.result(result, top)
    # of an alternative, what is rented says enough; the rest stands in the other forms
    others = [{**other, "plan": _counts(other["plan"])} for other in result.alternatives]
    said = dict(result.prediction or {})
    rates = {key: said.pop(key) for key in list(said) if key.startswith("throughput_requests_per_s")}
    by_period = said.pop("marginal_cost_by_period_usd_per_hour", [])
    shown = replace(result, plan=_counts(result.plan), prediction=said, alternatives=others)
    return render.result(shown, top, _plan(result.plan, rates.get("throughput_requests_per_s", {}), by_period))


def _counts(plan: "Mapping[str, Any]") -> "dict[str, Any]":
    found: dict[str, Any] = {name: count for name, count in plan["counts"].items() if count}
    for name, bought in (plan.get("purchases") or {}).items():
        ways = [f"{count} {way}" for way, count in bought.items() if count]
        if name in found and ways != [f"{found[name]} on_demand"]:
            found[name] = " + ".join(ways)
    return found


def _plan(
    plan: "Mapping[str, Any]", rates: "Mapping[str, Any]", worth: "Sequence[Mapping[str, Any]]"
) -> "RenderableType":
    """Show what is rented, where each class goes, what instances sustain of it if predicted, and what periods cost."""
    from rich.console import Group

    from cli.tables import number, quantity, table, text

    purchases = plan.get("purchases") or {}
    held = _instances(plan)
    columns = {"instances": held} if held else {}
    if purchases:
        columns["rented"] = {
            name: [f"{n} {way}" for way, n in bought.items() if n] for name, bought in purchases.items()
        }
    rows = [
        (text(name), str(count), *(text(", ".join(said.get(name, ()))) for said in columns.values()))
        for name, count in plan["counts"].items()
    ]
    parts = [table("Accelerators", ("", "count", *columns), rows, numbers=(1,))]
    names = [name for name, count in plan["counts"].items() if count]
    share = [
        (text(stream), *(quantity("share", shares[name]) if name in shares else "" for name in names))
        for stream, shares in plan["routing"].items()
    ]
    parts.append(table("Where requests go", ("", *names), share, numbers=range(1, len(names) + 1)))
    if rates:
        # of what is rented; the rest stands in the other forms
        rented = [pool["name"] for pool in plan["pools"]] if "pools" in plan else names
        shown = [name for name in rented if name in rates]
        each = [(text(asked), *(number(rates[name][asked]) for name in shown)) for asked in next(iter(rates.values()))]
        heads = ("", *shown)
        parts.append(table("Requests per second of one instance", heads, each, numbers=range(1, len(heads))))
    if "periods" in plan:
        hours = [
            (
                text(_ranges(part["periods"])),
                text(", ".join(f"{count} {name}" for name, count in part["counts"].items() if count) or "none"),
            )
            for part in plan["periods"]
        ]
        parts.append(table("By period", ("periods", "accelerators"), hours, numbers=()))
    if worth:
        asked = [name for name in worth[0] if name != "periods"]
        costs = [(text(_ranges(part["periods"])), *(number(part[name]) for name in asked)) for part in worth]
        heads = ("periods", *asked)
        parts.append(table("USD/h for one more request/s", heads, costs, numbers=range(1, len(heads))))
    return Group(*parts)


def _instances(plan: "Mapping[str, Any]") -> "dict[str, list[str]]":
    """Return the instances on each kind in words, where they are not the accelerators themselves."""
    found: dict[str, list[str]] = {}
    for pool in plan.get("pools") or ():
        said = f"{pool['instances']} of {pool['accelerators_per_instance']}"
        said += f" {pool['precision_weights']}" if pool["precision_weights"] else ""
        found.setdefault(pool["accelerator"], []).append(said)
    for model, kinds in (plan.get("instances") or {}).items():
        for name, count in kinds.items():
            found.setdefault(name, []).append(f"{count} {model}")
    return found


def _ranges(numbers: "list[int]") -> str:
    """Write whole numbers that follow one another as ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
