"""Predicted against measured times of kernels, drawn."""

from pathlib import Path
from typing import Any

from hardware.faults import Fault, InputError

ENDINGS = (".svg", ".png", ".pdf")
_MOST_POINTS = 5000
_MARGIN = 1.3


def check(path: Path) -> None:
    """Refuse what cannot be drawn before the work, not after it.

    Parameters
    ----------
    path : Path
        Where the drawing shall go.

    Raises
    ------
    InputError
        For an ending that is none of `ENDINGS`, and without matplotlib.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError([Fault(f"--plot {path}", 0, 0, "", f"the ending should be one of {', '.join(ENDINGS)}")])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        message = "needs matplotlib, an optional extra: pip install 'perfmodel[plot]'"
        raise InputError([Fault("--plot", 0, 0, "", message)]) from None


def draw(rows: Any, title: str, path: Path) -> None:
    """Draw predicted against measured times, one colour a kind and variant, and the P10 and P90 of each.

    Parameters
    ----------
    rows : pandas.DataFrame
        With ``kind``, ``variant``, ``measured``, ``predicted``, ``p10`` and ``p90`` [us].
    title : str
        Heading.
    path : Path
        Where to write.

    Raises
    ------
    InputError
        Where the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.add_subplot()
    low = float(min(rows["measured"].min(), rows["predicted"].min())) / _MARGIN
    high = float(max(rows["measured"].max(), rows["predicted"].max())) * _MARGIN
    for (kind, variant), part in rows.groupby(["kind", "variant"], sort=True):
        error = (part["predicted"] / part["measured"] - 1).abs().mean()
        shown = part.sample(_MOST_POINTS, random_state=0) if len(part) > _MOST_POINTS else part
        label = f"{kind} {variant}: {len(part):,} rows, MAPE {error:.1%}"
        (points,) = axes.plot(shown["measured"], shown["predicted"], ".", markersize=4, alpha=0.5, label=label)
        width = float((part["p90"] / part["predicted"]).median())
        for factor in (width, 1 / width):
            axes.plot([low, high], [low * factor, high * factor], ":", color=points.get_color(), linewidth=1)
    axes.plot([low, high], [low, high], "-", color="black", linewidth=1)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title,
        xlabel="measured [us]", ylabel="predicted [us], dotted: P10 and P90",
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError([Fault(f"--plot {path}", 0, 0, "", f"cannot be written: {error.strerror}")]) from None
