"""An answer as a picture: where the time goes, and what the plans that are not beaten need."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hardware.faults import Fault, InputError
from hardware.yaml_source import did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from solvers.result import Result

# matplotlib is an extra and slow to import: only what draws imports it.

ENDINGS = (".svg", ".png", ".pdf")

COLOURS = {
    "compute": "#0072B2",
    "memory": "#56B4E9",
    "link": "#D55E00",
    "latency": "#E69F00",
    "host": "#CC79A7",
    "idle": "#999999",
}
"""By what bounds a term: colours of Okabe and Ito, which colour-blind people tell apart too."""

_PLAIN = "#555555"
_HIDDEN: dict[str, Any] = {"facecolor": "white", "edgecolor": _PLAIN, "hatch": "/////", "linewidth": 0.6}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": "small", "handlelength": 1.3, "labelspacing": 0.3}
_SMALLEST_SHARE = 0.005
_MOST_ROWS = 14
_GIB = 2.0**30
_INCH_MM = 25.4
_BARS_MM, _FRONT_MM, _ROW_MM = 94.0, 66.0, 5.6
_BAR = 0.72
STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "perfmodel",  # the same answer gives the same file
}


class Row(NamedTuple):
    """Terms of one name in a breakdown.

    Parameters
    ----------
    name : str
        Their name.
    parts : mapping
        What bounds them -> what they add to the whole [s].
    hidden_seconds : float
        What they take behind other work [s].
    """

    name: str
    parts: Mapping[str, float]
    hidden_seconds: float

    @property
    def seconds(self) -> float:
        """What they add to the whole [s]."""
        return sum(self.parts.values())

    @property
    def length(self) -> float:
        """What they take, hidden or not [s]."""
        return self.seconds + self.hidden_seconds


def check(path: Path) -> None:
    """Refuse a picture that cannot be drawn.

    Parameters
    ----------
    path : Path
        Where to write it.

    Raises
    ------
    InputError
        Its ending is none of a picture, or matplotlib is missing.
    """
    if path.suffix.lower() not in ENDINGS:
        message = f'its ending says the form; {did_you_mean(path.suffix, ENDINGS)} [got "{path.suffix}"]'
        raise InputError([Fault(f"--plot {path}", 0, 0, "", message)])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        message = "matplotlib is not installed; pip install 'perfmodel[plot]' adds it"
        raise InputError([Fault("--plot", 0, 0, "", message)]) from None


def rows(breakdown: Mapping[str, Any]) -> list[Row]:
    """Gather the terms of a breakdown that have no parts, by name.

    Parameters
    ----------
    breakdown : mapping
        Tree of ``name``, ``seconds``, ``hidden_seconds``, ``bound`` and ``children``.

    Returns
    -------
    list of Row
        The longest first, hidden time included. What takes less than half a per cent of the whole, and what would
        make a picture too long, is one last row.
    """

    def walk(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        children = node.get("children") or ()
        if not children:
            yield node
        for child in children:
            yield from walk(child)

    found: dict[str, Row] = {}
    for leaf in walk(breakdown):
        name = str(leaf["name"]).removesuffix(", hidden")
        old = found.get(name, Row(name, {}, 0.0))
        found[name] = Row(name, _added(old, leaf), old.hidden_seconds + (leaf.get("hidden_seconds") or 0.0))
    ordered = sorted((row for row in found.values() if row.length), key=lambda row: -row.length)
    large = [row for row in ordered if row.length >= _SMALLEST_SHARE * breakdown["seconds"]][:_MOST_ROWS]
    small = ordered[len(large) :]
    if not small:
        return large
    parts: Mapping[str, float] = {}
    for row in small:
        parts = {bound: parts.get(bound, 0.0) + row.parts.get(bound, 0.0) for bound in {**parts, **row.parts}}
    return [*large, Row(f"{len(small)} smaller", parts, sum(row.hidden_seconds for row in small))]


def _added(row: Row, leaf: Mapping[str, Any]) -> Mapping[str, float]:
    bound = str(leaf.get("bound") or "")
    return {**row.parts, bound: row.parts.get(bound, 0.0) + leaf["seconds"]}


def title(result: Result) -> tuple[str, str]:
    """Name an answer: model, machine and work; the plan.

    Parameters
    ----------
    result : Result
        An answer about training.

    Returns
    -------
    tuple of str
        Two lines; of the plan, what is not its least value.
    """
    scenario, plan = result.scenario, result.plan or {}
    model = scenario.get("model")
    if isinstance(model, Mapping):
        model = model.get("name") or model.get("model_type")
    node = scenario["cluster"]["node"]
    work = scenario["workload"]
    machine = f"{scenario['nodes']} x {node['name']} ({scenario['nodes'] * node['accelerators']['count']} accelerators)"
    sizes = [f"{key} {value}" for key, value in plan.items() if type(value) is int and value > 1]
    names = [
        f"{key} {value}" for key, value in plan.items() if isinstance(value, str) and key in ("recompute", "offload")
    ]
    switches = [key for key, value in plan.items() if value is True]
    kept = [text for text in names if not text.endswith(" none")]
    return (
        f"{model} on {machine}, {work['precision']}, {work['seq_len']} tokens, batch {work['global_batch']}",
        ", ".join([*sizes, *switches, *kept]).replace("_", " ") or "one accelerator",
    )


def draw(result: Result, path: Path) -> None:
    """Draw an answer.

    Parameters
    ----------
    result : Result
        An answer that has a plan.
    path : Path
        Where to write the picture; its ending says the form.

    Raises
    ------
    OSError
        It cannot be written there.
    ValueError
        There is no plan to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if result.breakdown is None or result.prediction is None:
        raise ValueError("without a plan there is nothing to draw")
    points = (result.pareto or {}).get("points") or []
    widths = (_BARS_MM, _FRONT_MM) if points else (_BARS_MM,)
    shown = rows(result.breakdown)
    height = max(_ROW_MM * (len(shown) + 1) + 32, 78)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(sum(widths) / _INCH_MM, height / _INCH_MM), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        _bars(panels[0], shown, result.prediction)
        if points:
            _front(panels[1], result, points)
        lines = [part for line in title(result) for part in textwrap.wrap(line, int(sum(widths) / 1.75))]
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize="medium")
        # without its date, the same answer gives the same file
        dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
        figure.savefig(path, dpi=300, metadata=dateless)


def _bars(axes: Axes, shown: Sequence[Row], prediction: Mapping[str, Any]) -> None:
    """Draw the step, by what bounds it, and every term."""
    from matplotlib.patches import Patch

    whole = prediction["step_time_s"]
    scale, unit = (1.0, "s") if whole >= 1 else (1e3, "ms")
    least = _SMALLEST_SHARE * whole
    step = Row("step", {bound: sum(row.parts.get(bound, 0.0) for row in shown) for bound in (*COLOURS, "")}, 0.0)
    for place, row in enumerate([step, *shown]):
        left = 0.0
        for bound, seconds in row.parts.items():
            axes.barh(place, seconds * scale, left=left * scale, color=COLOURS.get(bound, _PLAIN), height=_BAR)
            left += seconds
        if row.hidden_seconds >= least:
            hidden = row.hidden_seconds * scale
            axes.barh(place, hidden, left=left * scale, height=_BAR, **_HIDDEN)
        if place:
            share = f"{100 * row.seconds / whole:.1f} %"
            if row.hidden_seconds >= least:
                share += f", {100 * row.hidden_seconds / whole:.1f} % hidden"
            axes.annotate(share, (row.length * scale, place), (3, 0), textcoords="offset points", va="center")
    low, high = (prediction.get(f"step_time_s_{end}") for end in ("p10", "p90"))
    keys: list[Any] = [Patch(color=COLOURS[bound], label=bound) for bound in COLOURS if step.parts[bound] >= least]
    if any(row.hidden_seconds >= least for row in shown):
        keys.append(Patch(label="hidden", **_HIDDEN))
    if low is not None and high is not None:
        ends = [[(whole - low) * scale], [(high - whole) * scale]]
        keys.append(
            axes.errorbar(whole * scale, 0, xerr=ends, color="black", capsize=3, linewidth=1.2, label="P10-P90")
        )
    axes.set_yticks(range(len(shown) + 1), [f"step, {whole * scale:.4g} {unit}", *(row.name for row in shown)])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"time of a step [{unit}]")
    axes.legend(handles=keys, loc="upper right", bbox_to_anchor=(1.0, -0.16), ncols=3, **LEGEND)


def _front(axes: Axes, result: Result, points: Sequence[Mapping[str, Any]]) -> None:
    """Draw time against memory of the plans that none beats in both."""

    def place(prediction: Mapping[str, Any]) -> tuple[float, float]:
        return prediction["memory_bytes"]["reserved_peak"] / _GIB, prediction["step_time_s"]

    prediction = result.prediction or {}
    memory, time = zip(*sorted(place(point["prediction"]) for point in points), strict=True)
    axes.step(
        memory,
        time,
        where="post",
        color=COLOURS["compute"],
        marker="o",
        markersize=3.5,
        linewidth=0.8,
        label="not beaten",
    )
    one: dict[str, Any] = {"linestyle": "", "zorder": 3}
    axes.plot(*place(prediction), color=COLOURS["link"], marker="*", markersize=12, label="this plan", **one)
    if result.baseline:
        axes.plot(*place(result.baseline["prediction"]), color="black", marker="X", markersize=7, label="today", **one)
    capacity = prediction.get("memory_available_bytes")
    if capacity is not None:
        axes.axvline(capacity / _GIB, color=_PLAIN, linestyle="--", linewidth=1)
        text = f"capacity, {capacity / _GIB:.0f} GiB"
        where = (capacity / _GIB, 0.5)
        axes.annotate(
            text,
            where,
            (-3, 0),
            ("data", "axes fraction"),
            "offset points",
            ha="right",
            va="center",
            rotation=90,
            fontsize="small",
        )
    axes.set_xlim(0, 1.06 * axes.dataLim.x1)
    axes.set_xlabel("memory [GiB]")
    axes.set_ylabel("time of a step [s]")
    axes.legend(loc="upper right", bbox_to_anchor=(0.94, 1.0), **LEGEND)
