"""A deployment as a picture: times of requests against their limits, where the time goes, what is not beaten."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.plots import COLOURS, LEGEND, STYLE, rows
from hardware.units import parse_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from solvers.result import Result

# matplotlib is an extra and slow to import: only what draws imports it.

_PLAIN = "#555555"
_INCH_MM = 25.4
_WIDTH_MM, _HEIGHT_MM = 200.0, 130.0
_ARROW = 0.2
"""Length of the arrow of an interval without end, over its value."""
_METRICS = {"ttft": "time to the first token", "tpot": "time of a token after it"}
_STATISTICS = ("mean", "p50", "p90", "p99")
_LABELS = {
    "cost_usd_per_million_tokens": "cost of a million tokens [USD]",
    "gpus": "accelerators",
    "output_tokens_per_s_per_gpu": "output tokens of an accelerator [1/s]",
}


def draw(result: Result, path: Path) -> None:
    """Draw a deployment.

    Parameters
    ----------
    result : Result
        An answer about serving that has a plan.
    path : Path
        Where to write the picture; its ending says the form.

    Raises
    ------
    OSError
        It cannot be written there.
    """
    import matplotlib
    from matplotlib.figure import Figure

    assert result.plan is not None and result.prediction is not None
    points = (result.pareto or {}).get("points") or []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_MM / _INCH_MM, _HEIGHT_MM / _INCH_MM), layout="constrained")
        lower = [name for name, there in (("request", result.breakdown), ("front", points)) if there]
        halves: Any = figure.subfigures(2 if lower else 1, 1, squeeze=False)[:, 0]
        for axes, metric in zip(halves[0].subplots(1, 2), _METRICS, strict=True):
            _times(axes, metric, result)
        panels: Any = halves[1].subplots(1, len(lower), squeeze=False)[0] if lower else ()
        for axes, name in zip(panels, lower, strict=True):
            if name == "request":
                assert result.breakdown is not None
                _request(axes, result.breakdown)
            else:
                assert result.pareto is not None
                _front(axes, result, result.pareto["objectives"], points)
        lines = [part for line in _title(result) for part in textwrap.wrap(line, int(_WIDTH_MM / 1.75))]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize="medium")
        # without its date, the same answer gives the same file
        dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
        figure.savefig(path, dpi=300, metadata=dateless)


def _title(result: Result) -> tuple[str, str]:
    """Name an answer: model, machine and engine; the plan."""
    scenario, plan = result.scenario, result.plan or {}
    model = scenario.get("model")
    if isinstance(model, Mapping):
        model = model.get("name") or model.get("model_type")
    node = scenario["cluster"]["node"]

    def sizes(pool: Mapping[str, Any]) -> str:
        kept = [name for name in ("tp", "pp", "dp", "ep") if name == "tp" or pool[name] > 1]
        limits = f"{pool['max_num_seqs']} sequences, {pool['max_num_batched_tokens']} tokens"
        return f"{pool['replicas']} x {' '.join(f'{name}{pool[name]}' for name in kept)}, {limits}"

    machine = f"{scenario['nodes']} x {node['name']}"
    where = f"{model} on {machine}, {scenario.get('engine', 'vllm')}"
    if plan.get("groups"):
        return where, "; ".join(f"{one['accelerator']}, {one['phase']}: {sizes(one)}" for one in plan["groups"])
    pools = [f"{role} {sizes(plan[role])}" for role in ("prefill", "decode") if plan.get(role)] or [sizes(plan)]
    types = f"weights {plan['precision_weights']}, cache {plan['precision_kv']}"
    drafts = f", {plan['draft_tokens']} tokens drafted" if plan["draft_tokens"] else ""
    return where, f"{'; '.join(pools)}; {types}{drafts}"


def _times(axes: Axes, metric: str, result: Result) -> None:
    """Draw a metric's mean and percentiles with their intervals, today's, and the limits."""
    assert result.prediction is not None
    kinds = [("best" if result.baseline else "predicted", result.prediction, COLOURS["compute"], -0.12)]
    if result.baseline:
        kinds.append(("today", result.baseline["prediction"], "black", 0.12))
    for label, prediction, colour, shift in kinds:
        places, values, ends, beyond = [], [], [], []
        for place, statistic in enumerate(_STATISTICS):
            value, low, high = (prediction.get(f"{metric}_{statistic}_s{end}") for end in ("", "_p10", "_p90"))
            if value is None:
                continue
            places.append(place + shift)
            values.append(value * 1e3)
            # slow steps that cannot keep up have times without end: an arrow
            beyond.append(low is not None and high is None)
            upper = value * (1 + _ARROW) if beyond[-1] else high
            sides = (value if low is None else low, value if upper is None else upper)
            ends.append((max(value - sides[0], 0.0) * 1e3, max(sides[1] - value, 0.0) * 1e3))
        if places:
            below, above = zip(*ends, strict=True)
            style: Any = {"color": colour, "capsize": 3, "linewidth": 1.2}
            axes.errorbar(
                places, values, yerr=[below, (0.0,) * len(above)], fmt="o", markersize=4, label=label, **style
            )
            axes.errorbar(places, values, yerr=[(0.0,) * len(above), above], fmt="none", lolims=beyond, **style)
    asked = {
        name.partition("_")[2]: limit
        for name, limit in (result.scenario.get("slo") or {}).items()
        if limit is not None and name.startswith(metric)
    }
    for place, statistic in enumerate(_STATISTICS):
        if statistic in asked:
            limit = asked[statistic]
            seconds = parse_quantity(limit, "s") if isinstance(limit, str) else float(limit)
            axes.plot(
                (place - 0.35, place + 0.35), (seconds * 1e3,) * 2, color=COLOURS["link"], linewidth=1.6, label="limit"
            )
    axes.set_xticks(
        range(len(_STATISTICS)), [name.replace("p", "P") if name != "mean" else name for name in _STATISTICS]
    )
    axes.set_xlim(-0.6, len(_STATISTICS) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{_METRICS[metric]} [ms]")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", **LEGEND)


def _request(axes: Axes, breakdown: Mapping[str, Any]) -> None:
    """Draw where the mean request's time goes, and by what it is bound."""
    from matplotlib.patches import Patch

    whole = breakdown["seconds"]
    scale, unit = (1.0, "s") if whole >= 1 else (1e3, "ms")
    shown = rows(breakdown)[:8]
    bounds: dict[str, None] = {}
    for place, row in enumerate(shown):
        left = 0.0
        for bound, seconds in row.parts.items():
            axes.barh(place, seconds * scale, left=left * scale, color=COLOURS.get(bound, _PLAIN), height=0.72)
            left += seconds
            bounds.setdefault(bound)
        share = f"{100 * row.seconds / whole:.1f} %"
        axes.annotate(
            share, (row.length * scale, place), (3, 0), textcoords="offset points", va="center", fontsize="small"
        )
    axes.set_yticks(range(len(shown)), [textwrap.fill(row.name, 28) for row in shown], fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"largest parts of the mean request, {whole * scale:.4g} {unit} in all [{unit}]")
    axes.legend(
        handles=[Patch(color=COLOURS[one], label=one) for one in COLOURS if one in bounds], loc="lower right", **LEGEND
    )


def _front(axes: Axes, result: Result, objectives: list[str], points: list[Mapping[str, Any]]) -> None:
    """Draw the candidates that no other beats in both the time of a request and what it takes."""
    time, cost = objectives

    def place(prediction: Mapping[str, Any]) -> tuple[float | None, float | None]:
        return prediction.get(cost), prediction.get(time)

    known = [place(point["prediction"]) for point in points]
    pairs = sorted((x, y) for x, y in known if x is not None and y is not None)
    if pairs:
        axes.plot(
            *zip(*pairs, strict=True),
            color=COLOURS["compute"],
            marker="o",
            markersize=3.5,
            linewidth=0.8,
            label="not beaten",
        )
    kinds = [("this plan", result.prediction or {}, COLOURS["link"], "*", 12)]
    if result.baseline:
        kinds.append(("today", result.baseline["prediction"], "black", "X", 7))
    for label, prediction, colour, marker, size in kinds:
        x, y = place(prediction)
        if x is not None and y is not None:
            axes.plot(x, y, color=colour, marker=marker, markersize=size, linestyle="", zorder=3, label=label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_LABELS.get(cost, cost))
    axes.set_ylabel("end to end, mean [s]")
    axes.legend(loc="best", **LEGEND)
