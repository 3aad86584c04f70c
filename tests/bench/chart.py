"""Bars beside each other as a picture, with nothing to install: SVG that a browser and a repository's page show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 300, 200
_LEFT, _TOP, _BOTTOM = 52, 34, 44
_COLOURS = ("#2563eb", "#f59e0b", "#10b981")
_LINES = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: for each name a value at each place."""

    title: str
    places: Sequence[str]
    bars: Mapping[str, Sequence[float]]


def draw(panels: Sequence[Panel], axis: str) -> str:
    """The panels beside each other; `axis` is what their places are."""
    step = _LEFT + _WIDTH + 20
    parts = [
        f'<g transform="translate({number * step},0)">{"".join(_panel(panel, axis))}</g>'
        for number, panel in enumerate(panels)
    ]
    size = f'width="{step * len(panels)}" height="{_TOP + _HEIGHT + _BOTTOM}"'
    # A ground of its own: it must be read on a dark page, too.
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    style = 'font-family="sans-serif" font-size="11" fill="#1f2937"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{ground}{"".join(parts)}</svg>\n'


def _panel(panel: Panel, axis: str) -> Iterator[str]:
    top = _round_up(max(value for values in panel.bars.values() for value in values))
    yield f'<text x="{_LEFT}" y="16" font-size="13" font-weight="bold">{escape(panel.title)}</text>'
    for number in range(_LINES + 1):
        y = _y(top * number / _LINES, top)
        yield f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * number / _LINES:,g}</text>'
    room = _WIDTH / len(panel.places)
    width = room * 0.8 / len(panel.bars)
    for series, (values, colour) in enumerate(zip(panel.bars.values(), _COLOURS, strict=False)):
        for place, value in enumerate(values):
            x, y = _LEFT + place * room + room * 0.1 + series * width, _y(value, top)
            size = f'width="{width:.1f}" height="{_TOP + _HEIGHT - y:.1f}"'
            yield f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{colour}"><title>{value:,.0f}</title></rect>'
    for place, name in enumerate(panel.places):
        x = _LEFT + (place + 0.5) * room
        yield f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{escape(name)}</text>'
    yield f'<text x="{_LEFT}" y="{_TOP + _HEIGHT + 34}">{escape(axis)}</text>'
    for series, (name, colour) in enumerate(zip(panel.bars, _COLOURS, strict=False)):
        x, y = _LEFT + 110 + series * 95, _TOP + _HEIGHT + 25
        yield f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>'
        yield f'<text x="{x + 15}" y="{y + 9}">{escape(name)}</text>'


def _y(value: float, top: float) -> float:
    return _TOP + _HEIGHT * (1 - value / top)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 times a power of ten, whose quarters are short numbers."""
    power: float = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)
