"""A machine's network as a picture: SVG written as text, without a drawing library."""

import itertools
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from cli.topology import Box, Line, Picture
from hardware.fabric import kind_of
from hardware.units import format_quantity

_WIDTH, _MARGIN, _TOP, _LEFT = 1160.0, 24.0, 60.0, 150.0
_LAYER, _BOX = 120.0, 26.0
_LETTER, _FONT, _SMALLEST = 0.56, 12.0, 7.0
"""Width of a letter over the size of the font, which shrinks with the box."""
_MOST = 18
"""Boxes of one layer that are drawn; the middle of more is left out."""
_COLOURS = {
    "host": "#dddddd", "gpu": "#9fd3c7", "chip": "#9fd3c7", "leaf": "#a9c9ea", "spine": "#7ea8d8", "core": "#5d86bd",
    "nic": "#f3d59b", "cpu": "#dddddd", "group": "#a9c9ea", "domain": "#9fd3c7", "network": "#7ea8d8",
}  # fmt: skip
_OTHER = "#c9bfe3"
_WHOLE, _SLOW, _FAST, _BROKEN = "#999999", "#d55e00", "#0072b2", "#cc0000"


def svg(shown: Picture, facts: Mapping[str, Any] | None) -> str:
    """Draw a machine's network.

    Parameters
    ----------
    shown : Picture
        What to draw.
    facts : mapping, optional
        Figures of a network, as `cli.topology.facts` gives them, for the line at the foot.

    Returns
    -------
    str
        An SVG document. Links of another rate than the rest of their kind are coloured, broken ones dashed.
    """
    layers = [_some(layer) for layer in shown.layers]
    height = _TOP + _LAYER * len(layers) + 30
    places: dict[str, tuple[float, float]] = {}
    boxes = []
    for level, layer in enumerate(layers):
        y = _TOP + _LAYER * (len(layers) - 1 - level) + _LAYER / 2
        step = (_WIDTH - _LEFT - _MARGIN) / len(layer)
        for index, box in enumerate(layer):
            x = _LEFT + step * (index + 0.5)
            if box is None:
                hidden = len(shown.layers[level]) - len(layer) + 1
                boxes.append(_label(x, y + 4, f"+ {hidden}"))
            else:
                places[box.name] = x, y
                boxes.append(_box(x, y, min(step - 6, max(48.0, _LETTER * _FONT * len(box.label) + 12)), box))
    step = min((abs(one - other) for one, other in _neighbours(places)), default=0.0)
    lines = [drawn for line in shown.lines for drawn in _line(line, places, step)]
    sides = [
        _label(_MARGIN, _TOP + _LAYER * (len(layers) - 1 - level) + 14 * row + 4, words, "start", 11.0)
        for level in range(len(layers))
        for row, words in enumerate(_rates(shown, level))
    ]
    foot = [_label(_MARGIN, height - 14, words, "start") for words in [_foot(shown, facts)] if words]
    body = "\n".join([_title(shown.title), *lines, *boxes, *sides, *foot])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" width="{_WIDTH:g}" '
        f'height="{height:g}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _some(layer: tuple[Box, ...]) -> list[Box | None]:
    """Leave out the middle of a long layer, None in its place."""
    if len(layer) <= _MOST:
        return list(layer)
    return [*layer[: _MOST - 3], None, layer[-1]]


def _title(words: str) -> str:
    return f'<text x="{_MARGIN:g}" y="32" font-size="17" font-weight="bold">{escape(words)}</text>'


def _label(x: float, y: float, words: str, anchor: str = "middle", font: float = _FONT) -> str:
    size = "" if font == _FONT else f' font-size="{font:.3g}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333333"{size}>{escape(words)}</text>'


def _rates(shown: Picture, level: int) -> list[str]:
    """Write what joins a layer to those above it, and to itself, for the margin."""
    height = {box.name: each for each, layer in enumerate(shown.layers) for box in layer}
    rates: dict[tuple[str, str], set[float]] = {}
    for line in shown.lines:
        lower, upper = sorted((line.a, line.b), key=lambda name: height[name])
        if height[lower] == level and line.built < float("inf"):
            rates.setdefault((kind_of(lower), kind_of(upper)), set()).add(line.built)
    network = any(kind_of(name) in ("host", "chip") for name in height)
    return [
        f"{lower}-{upper} " + format_quantity(max(found), "bit/s" if network else "bytes/s")
        for (lower, upper), found in rates.items()
    ]


def _box(x: float, y: float, width: float, box: Box) -> str:
    fill = _COLOURS.get(kind_of(box.name), _OTHER)
    font = max(_SMALLEST, min(_FONT, (width - 4) / (_LETTER * len(box.label))))
    most = max(3, round((width - 4) / (_LETTER * font)))
    words = box.label if len(box.label) <= most else box.label[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return (
        f'<g><title>{escape(box.label)}</title><rect x="{x - width / 2:.1f}" y="{y - _BOX / 2:.1f}" '
        f'width="{width:.1f}" height="{_BOX:g}" rx="4" fill="{fill}" stroke="#555555"/>'
        f"{_label(x, y + 4, words, font=font)}</g>"
    )


def _neighbours(places: Mapping[str, tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Pair the places of boxes that stand beside each other."""
    spots = list(places.values())
    yield from ((one[0], other[0]) for one, other in itertools.pairwise(spots) if one[1] == other[1])


def _line(line: Line, places: Mapping[str, tuple[float, float]], step: float) -> Iterator[str]:
    if line.a not in places or line.b not in places:
        return
    (x1, y1), (x2, y2) = places[line.a], places[line.b]
    told = f"{line.a} to {line.b}: " + (format_quantity(line.bandwidth, "bit/s") if line.bandwidth else "broken")
    colour, width, dash = _WHOLE, 1.0, ""
    if line.bandwidth == 0:
        colour, width, dash = _BROKEN, 1.5, ' stroke-dasharray="5 4"'
    elif line.bandwidth != line.built:
        colour, width = (_SLOW if line.bandwidth < line.built else _FAST), 2.2
    way = f"M {x1:.1f} {y1:.1f} L {x2:.1f} {y2:.1f}"
    if y1 == y2 and abs(x1 - x2) > step * 1.5:  # not through the boxes between
        bend = f"{(x1 + x2) / 2:.1f} {y1 - _BOX / 2 - 12 - abs(x1 - x2) / 9:.1f}"
        way = f"M {x1:.1f} {y1 - _BOX / 2:.1f} Q {bend} {x2:.1f} {y2 - _BOX / 2:.1f}"
    elif x1 == x2 and abs(y1 - y2) > _LAYER * 1.5:
        way = f"M {x1:.1f} {y1:.1f} Q {x1 + 1.2 * _BOX:.1f} {(y1 + y2) / 2:.1f} {x2:.1f} {y2:.1f}"
    stroke = f'stroke="{colour}" stroke-width="{width:g}"{dash}'
    yield f'<path d="{way}" fill="none" {stroke}><title>{escape(told)}</title></path>'


def _foot(shown: Picture, facts: Mapping[str, Any] | None) -> str:
    uneven = [line for line in shown.lines if line.bandwidth != line.built]
    words = []
    if facts:
        words = [f"{count:,} {name}" for name, count in facts["parts"].items()]
        if facts["bisection_bytes_per_s"]:
            words.append(f"bisection {format_quantity(facts['bisection_bytes_per_s'], 'bytes/s')} one way")
        words += [f"oversubscription of {name} {ratio:.4g}:1" for name, ratio in facts["oversubscription"].items()]
    if any(line.bandwidth == 0 for line in uneven):
        words.append("dashed: broken")
    if any(line.bandwidth for line in uneven):
        words.append("orange: slower, blue: faster than built")
    return "; ".join(words)
