"""A routing as a picture: how full every link is, and so which ones everybody waits for."""

import math
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from cli.tables import seconds

if TYPE_CHECKING:
    from solvers.routing_case import LinkTimes

_CELL, _LEFT, _TOP, _GAP = 16, 62, 58, 56
_MOST_BARS = 24
_BAR, _WIDTH = 18, 320
_FULL, _BROKEN, _TEXT = "#D55E00", "#FFFFFF", "#333333"
_SCALE = ("#F2F5F7", "#D3E3EF", "#A9CBE3", "#7AB0D6", "#4A92C6", "#0072B2")
"""From idle to almost full; full links are orange, which colour-blind people tell apart too."""


def svg(times: "LinkTimes", title: str) -> str:
    """Draw how long every link takes.

    Parameters
    ----------
    times : LinkTimes
        The links of a plan.
    title : str
        What stands above.

    Returns
    -------
    str
        An SVG. On leaves and spines two grids, up and down, a row for each leaf; else a bar for each of the slowest
        links.
    """
    longest = max((float(value) for value in times.seconds), default=0.0)
    if times.grid is None:
        parts, width, height = list(_bars(times, longest)), _LEFT + 130 + _WIDTH + 90, 0
        height = _TOP + _BAR * min(len(times.names), _MOST_BARS) + 20
    else:
        _, leaves, spines = times.grid.shape
        parts = list(_grids(times, longest))
        width = max(_LEFT + 2 * spines * _CELL + _GAP + 20, 460)
        height = _TOP + leaves * _CELL + 58
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="{_TEXT}">'
    )
    return "\n".join([head, _text(10, 18, title, size=13), *parts, "</svg>", ""])


def _grids(times: "LinkTimes", longest: float) -> Iterator[str]:
    assert times.grid is not None
    _, leaves, spines = times.grid.shape
    for way, name in enumerate(("from leaf up to spine", "from spine down to leaf")):
        left = _LEFT + way * (spines * _CELL + _GAP)
        yield _text(left, _TOP - 22, name)
        for spine in range(spines):
            if spines <= 16 or spine % 4 == 0:
                yield _text(left + spine * _CELL + 4, _TOP - 6, str(spine), size=9)
        for leaf in range(leaves):
            if way == 0 or leaves <= 16:
                yield _text(
                    left - (46 if way == 0 else 22), _TOP + leaf * _CELL + 12, f"{'leaf' * (way == 0)}{leaf}", size=9
                )
            for spine in range(spines):
                value = float(times.grid[way, leaf, spine])
                place = f'x="{left + spine * _CELL}" y="{_TOP + leaf * _CELL}"'
                ends = f"leaf{leaf} and spine{spine}"
                if math.isnan(value):
                    yield (
                        f'<rect {place} width="{_CELL - 1}" height="{_CELL - 1}" fill="{_BROKEN}" stroke="#999999" '
                        f'stroke-dasharray="2 2"><title>{ends}: broken, or no cable</title></rect>'
                    )
                    continue
                share = value / longest if longest else 0.0
                yield (
                    f'<rect {place} width="{_CELL - 1}" height="{_CELL - 1}" fill="{_colour(share)}">'
                    f"<title>{ends}: {seconds(value)}, {share:.1%}</title></rect>"
                )
    below = _TOP + leaves * _CELL + 14
    for number, colour in enumerate((*_SCALE, _FULL)):
        yield f'<rect x="{_LEFT + number * 24}" y="{below}" width="23" height="10" fill="{colour}"/>'
    yield _text(_LEFT, below + 24, "idle", size=9)
    yield _text(_LEFT + 24 * len(_SCALE), below + 24, f"full: everybody waits {seconds(longest)}", size=9)


def _bars(times: "LinkTimes", longest: float) -> Iterator[str]:
    for row, (name, value) in enumerate(zip(times.names[:_MOST_BARS], times.seconds.tolist(), strict=False)):
        share = value / longest if longest else 0.0
        top = _TOP - 20 + row * _BAR
        yield _text(10, top + 12, name)
        yield (
            f'<rect x="{_LEFT + 130}" y="{top}" width="{max(1.0, share * _WIDTH):.1f}" height="{_BAR - 4}" '
            f'fill="{_colour(share)}"/>'
        )
        yield _text(_LEFT + 136 + int(share * _WIDTH), top + 12, seconds(value))


def _colour(share: float) -> str:
    return _FULL if share > 1 - 1e-6 else _SCALE[min(int(share * len(_SCALE)), len(_SCALE) - 1)]


def _text(x: int, y: int, words: str, size: int = 11) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}">{escape(words)}</text>'
