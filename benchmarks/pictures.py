"""Curves as SVG: lines of points over logarithmic or linear axes, the same text every time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

Line = Sequence[Sequence[float]]
"""Points (x, y), both above 0 where axes are logarithmic."""

COLOURS = ("#1a7f5a", "#b3541e", "#3b5bb5", "#8a6d1f", "#6b7280", "#9c3d76")
LEFT, WIDTH, TOP, HEIGHT, LEGEND = 70, 460, 40, 260, 210


def curves(title: str, across: str, lines: Mapping[str, Line], *, linear: bool = False) -> str:
    """A picture of some lines by name; x is labelled `across`, what y is stands in the title."""
    xs = sorted({point[0] for line in lines.values() for point in line})
    ys = [point[1] for line in lines.values() for point in line]
    if linear:
        xs = [float(x) for x in range(math.floor(xs[0]), math.ceil(xs[-1]) + 1)]
        low, high = float(math.floor(min(ys))), float(math.ceil(max(ys)))
        ticks: Iterable[float] = [low + i * max(1, round((high - low) / 8)) for i in range(9)]
        ticks = [y for y in ticks if y <= high]
    else:
        low, high = 10.0 ** math.floor(math.log10(min(ys))), 10.0 ** math.ceil(math.log10(max(ys)))
        ticks = _ticks(low, high)
    at_height = (lambda value: value) if linear else math.log

    def along(value: float, start: float, end: float) -> float:
        span = at_height(end) - at_height(start)
        return (at_height(value) - at_height(start)) / span if span else 0.5

    def x_of(x: float) -> float:
        return LEFT + WIDTH * along(x, xs[0], xs[-1])

    def y_of(y: float) -> float:
        return TOP + HEIGHT * (1 - along(y, low, high))

    size = f'width="{LEFT + WIDTH + LEGEND}" height="{TOP + HEIGHT + 50}"'
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>',
        f'<rect {size} fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" fill="#374151">{escape(title)}</text>',
    ]
    for y in ticks:
        at = y_of(y)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{LEFT + WIDTH}" y2="{at:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#374151">{y:,.0f}</text>')
    below = [(x_of(x), 20, f"{x:,.0f}") for x in xs] + [(LEFT + WIDTH / 2, 40, across)]
    parts += [
        f'<text x="{x:.1f}" y="{TOP + HEIGHT + y}" text-anchor="middle" fill="#374151">{escape(text)}</text>'
        for x, y, text in below
    ]
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x_of(x), y_of(y)) for x, y in line]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
        at = TOP + 10 + 22 * number
        parts.append(f'<circle cx="{LEFT + WIDTH + 24}" cy="{at}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + WIDTH + 36}" y="{at + 4}" fill="#111827">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> Iterable[float]:
    """1, 2 and 5 of each power of ten."""
    power = low
    while power < high:
        yield from (power, 2 * power, 5 * power)
        power *= 10
    yield high
