"""Answers as tables for people. Their form may change; scripts read JSON, YAML or CSV."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from cli.tables import compact, number, quantity, seconds, table, text, with_unit
from solvers.result import Result

_TIMES = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
_SMALLEST_SHARE = 1e-3
"""Terms that take and hide less than this part of the whole are left out of the breakdown."""


def result(answer: Result, top: int = 5, plan: RenderableType | None = None) -> RenderableType:
    """Show an answer.

    Parameters
    ----------
    answer : Result
        The answer.
    top : int
        How many alternatives to show.
    plan : RenderableType, optional
        How to show the plan; its fields if left out.

    Returns
    -------
    RenderableType
        Tables that fit eighty columns.
    """
    parts: list[RenderableType] = [_head(answer)]
    if answer.plan is not None:
        parts.append(plan or _plan(answer))
    if answer.prediction is not None:
        parts += _prediction(answer.prediction, answer.baseline)
    if answer.breakdown is not None:
        parts.append(_breakdown(answer.breakdown))
    parts += [
        _binding(answer.binding),
        _relaxation(answer.relaxation),
        _alternatives(answer, top),
        _pareto(answer),
        _why_not(answer),
        _footer(answer.provenance),
    ]
    return Group(*parts)


_MEANING = {
    "optimal": "proved: no plan of the searched space is better",
    "infeasible": "proved: no plan of the searched space meets the constraints",
    "time_limit": "stopped by the time limit",
}


def _head(answer: Result) -> RenderableType:
    meaning = _MEANING.get(answer.status, "a plan, not proved to be the best")
    if answer.status == "feasible" and answer.gap is not None:
        meaning = "no further from the best than the gap"
    lines = [f"{answer.kind}: {answer.status} ({meaning})"]
    objective = answer.objective
    said = [f"{objective.name} ({objective.sense})"]
    if objective.value is not None:
        said[0] += f" {with_unit(objective.value, objective.unit)}"
    if answer.best_bound is not None:
        said.append(f"bound {with_unit(answer.best_bound, objective.unit)}")
    if answer.gap is not None:
        said.append(f"gap {quantity('gap', answer.gap)}")
    lines.append(", ".join(said))
    searched = [_counted(answer.candidates, "candidate")] if answer.candidates is not None else []
    searched += [f"in {seconds(answer.solve_time_s)}"] if answer.solve_time_s is not None else []
    if searched:
        lines.append(" ".join(searched))
    head = text("\n".join(lines) + "\n")
    head.stylize("bold", 0, len(lines[0]))
    return head


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _plan(answer: Result) -> RenderableType:
    assert answer.plan is not None
    today = answer.baseline["plan"] if answer.baseline else None
    keys = list(dict.fromkeys([*answer.plan, *(today or {})]))
    if today is None:
        half = (len(keys) + 1) // 2
        columns = [(key, _short(key, answer.plan[key])) for key in keys]
        rows = [(*left, *right) for left, right in zip(columns[:half], [*columns[half:], ("", "")], strict=False)]
        return table("Plan", ("", "", "", ""), rows, numbers=())
    rows3 = [(key, _short(key, answer.plan.get(key)), _short(key, today.get(key))) for key in keys]
    return table("Plan", ("", "best", "today"), rows3, numbers=())


def _short(key: str, value: object) -> str:
    return f"{len(value)} entries" if isinstance(value, list) and len(value) > 8 else quantity(key, value)


def _prediction(prediction: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    today = baseline["prediction"] if baseline else {}
    nested = {key: value for key, value in prediction.items() if isinstance(value, Mapping)}
    rows = []
    for key, value in prediction.items():
        end = key[-4:]
        if key in nested or (end in ("_p10", "_p90") and key.removesuffix(end) in prediction):
            continue
        ends = [quantity(key, prediction[key + end]) if key + end in prediction else "" for end in ("_p10", "_p90")]
        rows.append((key, quantity(key, value), *ends, *([quantity(key, today.get(key))] if baseline else [])))
    yield table("Prediction", ("", "value", "P10", "P90", *(["today"] if baseline else [])), rows)
    if baseline and baseline.get("gain") is not None:
        low, high = baseline.get("gain_p10"), baseline.get("gain_p90")
        interval = "" if low is None or high is None else f" (P10 {number(low)} x, P90 {number(high)} x)"
        yield text(f"Gain over today: {number(baseline['gain'])} x{interval}\n")
    for key, parts in nested.items():
        title = "Memory per accelerator, worst stage" if key == "memory_bytes" else key
        if key[-4:] in ("_p10", "_p90") and key[:-4] in prediction:
            continue
        before = today.get(key, {})
        columns: list[tuple[str, Mapping[str, Any]]] = [("", parts)]
        columns += [(end, prediction[at]) for end in ("P10", "P90") if (at := f"{key}_{end.lower()}") in prediction]
        columns += [("today", before)] if before else []
        fields = [(part, *(quantity(f"{key}.{part}", values.get(part)) for _, values in columns)) for part in parts]
        yield table(title, ("", *(head for head, _ in columns)), fields)


def _breakdown(root: Mapping[str, Any]) -> RenderableType:
    whole = root["seconds"] or 1.0
    left_out = 0
    rows: list[tuple[object, ...]] = []
    # One unit for all, that of the whole, so that the column can be compared by eye.
    unit, scale = next(((unit, scale) for unit, scale in _TIMES if scale <= whole), _TIMES[-1])
    digits = max(0, 4 - math.floor(math.log10(whole / scale)))

    def add(node: Mapping[str, Any], depth: int) -> None:
        nonlocal left_out
        hidden = node.get("hidden_seconds") or 0.0
        if max(node["seconds"], hidden) < _SMALLEST_SHARE * whole:
            left_out += 1
            return
        # A name that takes two lines keeps its indentation; what is hidden shows in its own column.
        name = Padding(text(str(node["name"]).removesuffix(", hidden")), (0, 0, 0, 2 * depth))
        time, behind = (f"{value / scale:,.{digits}f} {unit}" for value in (node["seconds"], hidden))
        share = f"{100 * node['seconds'] / whole:.1f} %"
        rows.append((name, time, share, behind if hidden else "", node.get("bound") or ""))
        for child in node.get("children") or ():
            add(child, depth + 1)

    add(root, 0)
    shown = table("Breakdown", ("", "time", "share", "hidden", "bound"), rows, numbers=(1, 2, 3))
    note = text(f"  {_counted(left_out, 'term')} below {_SMALLEST_SHARE:.1%} not shown\n") if left_out else _nothing()
    return Group(shown, note)


def _nothing() -> RenderableType:
    return Text(end="")


def _binding(binding: Iterable[Mapping[str, Any]]) -> RenderableType:
    rows = []
    for entry in binding:
        slack = with_unit(entry.get("slack"), entry.get("unit") or "")
        rows.append(
            (entry["constraint"], slack, with_unit(entry.get("shadow_price"), entry.get("shadow_price_unit") or ""))
        )
    return table("Binding constraints", ("", "slack", "shadow price"), rows) if rows else _nothing()


def _relaxation(relaxation: Iterable[Mapping[str, Any]]) -> RenderableType:
    rows = [
        (entry["constraint"], *(with_unit(entry.get(key), entry.get("unit") or "") for key in ("now", "needed")))
        for entry in relaxation
    ]
    return table("What would do", ("", "now", "needed"), rows) if rows else _nothing()


def _alternatives(answer: Result, top: int) -> RenderableType:
    name, best = answer.objective.name, answer.objective.value
    rows = []
    for rank, other in enumerate(answer.alternatives[:top], start=2):
        value = other["prediction"].get(name)
        change = f"{100 * (value / best - 1):+.2f} %" if value is not None and best else ""
        ends = [other["prediction"].get(name + end) for end in ("_p10", "_p90")]
        shown = ["" if end is None else quantity(name, end) for end in ends]
        rows.append((rank, compact(other["plan"], answer.plan), quantity(name, value), change, *shown))
    if not rows:
        return _nothing()
    head = name.replace("_per_", "\nper_")  # as below
    columns = ("", "differs in", head, "to best", "P10", "P90")
    more = len(answer.alternatives) - len(rows)
    title = "Alternatives" + (f" ({more} more with --top or --format json)" if more else "")
    return table(title, columns, rows, numbers=(0, 2, 3, 4, 5))


def _pareto(answer: Result) -> RenderableType:
    if not answer.pareto:
        return _nothing()
    names = answer.pareto["objectives"]

    rows = [
        (*(quantity(name, _at(point["prediction"], name)) for name in names), compact(point["plan"], answer.plan))
        for point in answer.pareto["points"]
    ]
    # A long name would leave no room for the plan: its parts stand below each other.
    heads = [name.replace(".", "\n").replace("_per_", "\nper_") for name in names]
    return table("Not beaten in everything", (*heads, "differs in"), rows, numbers=range(len(names)))


def _why_not(answer: Result) -> RenderableType:
    rows = []
    for entry in answer.why_not:
        nearest = dict(entry.get("nearest") or {})
        plan, prediction = nearest.pop("plan", None), nearest.pop("prediction", None) or {}
        parts = [compact(plan, answer.plan)] if plan else []
        # Of a whole prediction, what was asked for and what most often forbids it.
        names = (answer.objective.name, "memory_bytes.reserved_peak")
        told = {name: _at(prediction, name) for name in names if _at(prediction, name) is not None}
        parts += [compact(fields) for fields in (told, nearest) if fields]
        rows.append((entry["reason"], number(entry.get("candidates")), "; ".join(parts)))
    return table("Why not", ("", "candidates", "nearest miss"), rows, numbers=(1,)) if rows else _nothing()


def _at(prediction: Any, path: str) -> Any:
    for key in path.split("."):
        prediction = prediction.get(key) if isinstance(prediction, Mapping) else None
    return prediction


def _footer(provenance: Mapping[str, Any]) -> RenderableType:
    def one(entry: object) -> str:
        if not isinstance(entry, Mapping):
            return quantity("", entry)
        rest = compact({key: value for key, value in entry.items() if key != "name"})
        return f"{entry['name']} ({rest})" if "name" in entry else rest

    lines = []
    for key, value in provenance.items():
        if value in (None, [], {}):
            continue
        entries = value if isinstance(value, list) else [value]
        lines.append(f"{key}: " + "; ".join(one(entry) for entry in entries))
    return text("\n".join(lines), "dim") if lines else _nothing()
