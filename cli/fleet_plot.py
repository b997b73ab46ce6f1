"""A fleet as a picture: what it costs beside the next best, and how busy it is or what is rented when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from solvers.result import Result

# matplotlib is an extra and slow to import: only what draws imports it.

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999")
"""Of kinds of accelerators: colours of Okabe and Ito, which colour-blind people tell apart too."""
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
_MOST = 7
"""Fleets that are drawn."""


def draw(result: Result, path: Path) -> None:
    """Draw the cost of a fleet and of its alternatives by accelerator, and what is rented over the day.

    Parameters
    ----------
    result : Result
        An answer with a plan.
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
    kinds = list(result.plan["counts"])
    colours = {kind: _COLOURS[number % len(_COLOURS)] for number, kind in enumerate(kinds)}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_MM / _INCH_MM, _HEIGHT_MM / _INCH_MM), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        _costs(left, result, colours)
        if "periods" in result.plan:
            _day(right, result.plan["periods"], colours)
        else:
            _busy(right, result.prediction["utilisation"], colours)
        cost, asked = (result.prediction[name] for name in ("cost_usd_per_hour", "requests_per_s"))
        title = f"{cost:.4g} USD/h for {asked:.4g} requests/s"
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
        dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
        figure.savefig(path, metadata=dateless)


def _costs(axes: Axes, result: Result, colours: Mapping[str, str]) -> None:
    fleets = [
        ("best", result.prediction),
        *((str(n), one["prediction"]) for n, one in enumerate(result.alternatives, 2)),
    ]
    for row, (_, found) in enumerate(fleets[:_MOST]):
        below = 0.0
        for kind, cost in (found or {})["cost_by_accelerator_usd_per_hour"].items():
            axes.barh(row, cost, left=below, color=colours[kind], height=0.7)
            below += cost
    axes.set_yticks(range(len(fleets[:_MOST])), [name for name, _ in fleets[:_MOST]])
    axes.invert_yaxis()
    axes.set_xlabel("cost [USD/h]")
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _busy(axes: Axes, utilisation: Mapping[str, float], colours: Mapping[str, str]) -> None:
    for row, (kind, share) in enumerate(utilisation.items()):
        axes.barh(row, 100 * share, color=colours[kind], height=0.6)
    axes.set_yticks(range(len(utilisation)), list(utilisation))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("utilisation [%]")


def _day(axes: Axes, periods: list[dict[str, Any]], colours: Mapping[str, str]) -> None:
    part_of = {hour: part for part in periods for hour in part["periods"]}
    hours = sorted(part_of)
    below = [0.0] * len(hours)
    for kind, colour in colours.items():
        counts = [part_of[hour]["counts"][kind] for hour in hours]
        axes.bar(hours, counts, bottom=below, color=colour, width=1.0)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.set_xlabel("period of the day")
    axes.set_ylabel("accelerators")
