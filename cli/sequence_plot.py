"""A scatter of sequences as a picture: which accelerators compute which micro-step, when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solvers.result import Result
    from solvers.sequence_scenario import SequenceScenario

# matplotlib is an extra and slow to import, as is numpy: only what draws imports them.

_STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "perfmodel",
}
_INCH_MM = 25.4
_WIDTH_MM, _HEIGHT_MM = 190.0, 110.0


def draw(question: SequenceScenario, result: Result, path: Path) -> None:
    """Draw micro-steps over accelerators and time, coloured by the size of their group.

    Parameters
    ----------
    question : SequenceScenario
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
    import numpy as np
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from solvers.sequence_answer import scatter_of, timeline

    assert result.plan is not None
    assert result.prediction is not None
    tp = question.costs.tp
    plan = scatter_of(result.plan, tp)
    group, begin, end = timeline(question.case, plan)
    low, high = tp * plan.first_gpu[group], tp * (plan.first_gpu[group] + plan.degree[group])
    corners = np.stack([begin, low, begin, high, end, high, end, low], axis=1).reshape(-1, 4, 2)
    sizes = sorted(set(plan.degree[group].tolist()))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_MM / _INCH_MM, _HEIGHT_MM / _INCH_MM), layout="constrained")
        axes = figure.subplots()
        shades = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.95, len(sizes)))
        colours = shades[np.searchsorted(sizes, plan.degree[group])]
        axes.add_collection(PolyCollection(list(corners), facecolors=colours, edgecolors="white", linewidths=0.3))
        axes.set_xlim(0, result.prediction["makespan_s"])
        axes.set_ylim(0, question.machine.accelerators // question.costs.pp)
        axes.set_xlabel("time [s]")
        axes.set_ylabel("accelerator of the first stage" if question.costs.pp > 1 else "accelerator")
        axes.set_title(
            f"{len(plan.group)} sequences, schedule {plan.schedule}: {result.prediction['makespan_s']:.4g} s",
            loc="left",
            fontsize="medium",
        )
        handles = [Patch(color=shade, label=str(size)) for shade, size in zip(shades, sizes, strict=True)]
        axes.legend(handles=handles, title="group of", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
        figure.savefig(path, metadata=dateless)
