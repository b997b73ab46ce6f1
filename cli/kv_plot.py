"""A placement over tiers as a picture: what lies where, and what another size of each tier would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.plots import COLOURS, LEGEND, STYLE, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from solvers.result import Result

# matplotlib is an extra and slow to import: only what draws imports it.

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#999999")
"""Of tiers: colours of Okabe and Ito, which colour-blind people tell apart too."""
_INCH_MM = 25.4
_WIDTH_MM, _HEIGHT_MM = 190.0, 85.0
_GIB = 2.0**30


def draw(result: Result, path: Path) -> None:
    """Draw shares of objects by tier, and tokens per second against sizes of tiers, or what is busy or takes long.

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
    placed = result.plan.get("placement") or {}
    tiers = dict.fromkeys(tier for shares in placed.values() for tier in shares)
    tiers = dict.fromkeys([*tiers, *(result.prediction.get("memory_bytes") or {})]) if placed else tiers
    colours = {tier: _COLOURS[number % len(_COLOURS)] for number, tier in enumerate(tiers)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_MM / _INCH_MM, _HEIGHT_MM / _INCH_MM), layout="constrained")
        panels = list(figure.subplots(1, 2 if placed else 1, squeeze=False)[0])
        if placed:
            _shares(panels[0], result.plan, colours)
        if result.prediction.get("sizes"):
            _sizes(panels[-1], result.prediction["sizes"], result.prediction["tokens_per_s"], colours)
        elif result.prediction.get("utilisation"):
            _busy(panels[-1], result.prediction["utilisation"])
        elif result.breakdown is not None:
            _times(panels[-1], result.breakdown)
        said = f"{result.objective.name} {result.objective.value:.4g} {result.objective.unit}"
        figure.suptitle(said, x=0.01, ha="left", fontsize="medium")
        dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
        figure.savefig(path, metadata=dateless)


def _times(axes: Axes, breakdown: Mapping[str, Any]) -> None:
    shown = rows(breakdown)
    for place, row in enumerate(shown):
        start = 0.0
        for bound, seconds in row.parts.items():
            axes.barh(place, seconds, left=start, color=COLOURS.get(bound, "#999999"), height=0.65)
            start += seconds
    axes.set_yticks(range(len(shown)), [row.name for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel("time [s]")


def _shares(axes: Axes, plan: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    rows = [(thing, plan["placement"][thing]) for thing in plan["placement"]]
    found = {tier: sum(parts) for tier, parts in plan.get("loaded", {}).items()}
    if sum(found.values()) > 0:
        rows.append(("prompts loaded", found))
    for row, (_, shares) in enumerate(rows):
        start = 0.0
        for tier, share in shares.items():
            axes.barh(row, 100 * share, left=start, color=colours[tier], height=0.65)
            start += 100 * share
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share [%]")
    handles = [Patch(color=colour, label=tier) for tier, colour in colours.items()]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, **LEGEND)


def _sizes(axes: Axes, sizes: Sequence[Mapping[str, Any]], now: float, colours: Mapping[str, str]) -> None:
    for tier in dict.fromkeys(one["tier"] for one in sizes):
        rows = [one for one in sizes if one["tier"] == tier]
        places, rates = [one["capacity_bytes"] / _GIB for one in rows], [one["tokens_per_s"] for one in rows]
        axes.plot(places, rates, marker="o", markersize=3, color=colours[tier], linewidth=1.2)
        for one in rows:
            if one["knee"]:
                axes.plot(one["capacity_bytes"] / _GIB, one["tokens_per_s"], "s", color=colours[tier], markersize=7)
                axes.annotate("knee", (one["capacity_bytes"] / _GIB, one["tokens_per_s"]), fontsize="x-small")
    axes.axhline(now, color="#999999", linewidth=0.6)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("size of the tier [GiB]")
    axes.set_ylabel("tokens/s")


def _busy(axes: Axes, phases: Mapping[str, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for times in phases.values() for name in times))
    for number, (phase, times) in enumerate(phases.items()):
        height = 0.78 / len(phases)
        places = [row + height * (number - (len(phases) - 1) / 2) for row in range(len(names))]
        axes.barh(places, [100 * times.get(name, 0.0) for name in names], height=0.9 * height, label=phase)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("busy [%]")
    axes.legend(**LEGEND)
