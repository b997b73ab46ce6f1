"""A placement as a picture: what each phase takes in both orders, and which links the job uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from solvers.placement_scenario import PlacementScenario
    from solvers.result import Result

# matplotlib is an extra and slow to import, as is numpy: only what draws imports them.

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999")
"""Of phases: colours of Okabe and Ito, which colour-blind people tell apart too."""
_STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "perfmodel",
}
_INCH_MM = 25.4
_WIDTH_MM, _HEIGHT_MM = 190.0, 95.0


def draw(question: PlacementScenario, result: Result, path: Path) -> None:
    """Draw an order beside the default one.

    Parameters
    ----------
    question : PlacementScenario
        What was asked.
    result : Result
        Its answer, with a plan.
    path : Path
        Where to write the picture; its ending says the form.

    Raises
    ------
    OSError
        It cannot be written there.
    """
    import matplotlib
    from matplotlib.figure import Figure

    assert result.plan is not None
    assert result.prediction is not None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_MM / _INCH_MM, _HEIGHT_MM / _INCH_MM), layout="constrained")
        bars, map_ = figure.subplots(1, 2, width_ratios=(1, 1.1))
        _bars(bars, result.prediction)
        _map(map_, question, result.plan["order"])
        title = f"{len(result.plan['nodes'])} of {len(question.net.names)} nodes, {len(result.plan['order'])} ranks"
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
        dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
        figure.savefig(path, dpi=300, metadata=dateless)


def _bars(axes: Axes, prediction: Mapping[str, Any]) -> None:
    """Draw the phases of both orders on top of each other, with the interval of their sum."""
    whole = max(prediction["comm_time_s"], prediction["default_comm_time_s"] or 0.0)
    scale, unit = (1.0, "s") if whole >= 1 else (1e3, "ms")
    for place, (label, prefix) in enumerate((("this order", ""), ("default", "default_"))):
        left = 0.0
        for colour, (phase, seconds) in zip(_COLOURS, prediction[f"{prefix}phase_times"].items(), strict=False):
            name = phase.removesuffix("_s").replace("_", " ")
            width = (seconds or 0.0) * scale
            axes.barh(place, width, left=left, color=colour, height=0.6, label=None if place else name)
            left += width
        ends = [prediction[f"{prefix}comm_time_s_{end}"] for end in ("p10", "p90")]
        if None not in ends:
            low, high = (end * scale for end in ends)
            axes.errorbar(left, place, xerr=[[left - low], [high - left]], color="black", capsize=3, linewidth=1.2)
        axes.annotate(f"{label}, {left:.4g} {unit}", (0, place + 0.36), va="bottom", fontsize="small")
    axes.set_ylim(-0.5, 1.8)
    axes.set_yticks([])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"communication of a step and P10-P90 [{unit}]")
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _map(axes: Axes, question: PlacementScenario, order: list[int]) -> None:
    """Draw the rates between the nodes in the order of the ranks they take, and who sends to whom."""
    import numpy as np

    nodes = np.array(order[:: question.per_node]) // question.per_node
    rates = question.net.bandwidth[np.ix_(nodes, nodes)] / 1e9
    shown = axes.imshow(np.where(np.isfinite(rates), rates, np.nan), cmap="Blues", interpolation="nearest")
    wanted = question.wanted
    size = max(0.5, min(5.0, 160 / len(nodes)))
    axes.plot(wanted.destinations, wanted.sources, "o", color=_COLOURS[1], markersize=size, markeredgewidth=0)
    axes.set_xlabel("logical node that receives")
    axes.set_ylabel("logical node that sends")
    assert axes.figure is not None
    axes.figure.colorbar(shown, ax=axes, label="measured rate [GB/s]; dots: messages")
