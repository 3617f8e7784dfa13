"""Curves as SVG: lines of points over logarithmic or linear axes, the same text every time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Line = Sequence[Sequence[float]]
"""Points (x, y), above 0 along a logarithmic axis."""

COLOURS = ("#1a7f5a", "#b3541e", "#3b5bb5", "#8a6d1f", "#6b7280", "#9c3d76")
LEFT, WIDTH, TOP, HEIGHT, LEGEND = 70, 460, 40, 260, 210


@dataclass(frozen=True)
class Axis:
    """Ticks, the first and last of which are its ends, and how a tick is written."""

    ticks: tuple[float, ...]
    logarithmic: bool = False
    written: str = "{:,.0f}"

    def share(self, value: float) -> float:
        """How far along the axis a value stands, 0 to 1."""
        start, end, at = (math.log(x) if self.logarithmic else x for x in (self.ticks[0], self.ticks[-1], value))
        return (at - start) / (end - start) if end > start else 0.5


def points(values: Iterable[float]) -> Axis:
    """A logarithmic axis with a tick at every value."""
    return Axis(tuple(sorted(set(values))), logarithmic=True)


def decades(values: Iterable[float]) -> Axis:
    """A logarithmic axis from one power of ten to another, with ticks at 1, 2 and 5 of each."""
    low, high = min(values := list(values)), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return Axis((*(step * 10.0**power for power in powers for step in (1, 2, 5)), 10.0**powers.stop), logarithmic=True)


def even(values: Iterable[float]) -> Axis:
    """A linear axis from one whole number to another."""
    return _even(values, 1.0, "{:,.0f}")


def shares(values: Iterable[float]) -> Axis:
    """A linear axis in steps of 5%."""
    return _even(values, 0.05, "{:.0%}")


def tenths(values: Iterable[float]) -> Axis:
    """A linear axis in steps of a tenth, or several."""
    return _even(values, 0.1, "{:.1f}")


def _even(values: Iterable[float], step: float, written: str) -> Axis:
    low, high = min(values := list(values)), max(values)
    step *= max(1, math.ceil((high - low) / step / 10))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(tuple(step * tick for tick in range(first, max(last, first + 1) + 1)), written=written)


def curves(
    title: str,
    across: str,
    lines: Mapping[str, Line],
    *,
    x_axis: Callable[[Iterable[float]], Axis] = points,
    y_axis: Callable[[Iterable[float]], Axis] = decades,
) -> str:
    """A picture of some lines by name; x is labelled `across`, what y is stands in the title."""
    along = x_axis(point[0] for line in lines.values() for point in line)
    up = y_axis(point[1] for line in lines.values() for point in line)

    def x_of(x: float) -> float:
        return LEFT + WIDTH * along.share(x)

    def y_of(y: float) -> float:
        return TOP + HEIGHT * (1 - up.share(y))

    size = f'width="{LEFT + WIDTH + LEGEND}" height="{TOP + HEIGHT + 50}"'
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>',
        f'<rect {size} fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" fill="#374151">{escape(title)}</text>',
    ]
    for y in up.ticks:
        at = y_of(y)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{LEFT + WIDTH}" y2="{at:.1f}" stroke="#e5e7eb"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#374151">{up.written.format(y)}</text>'
        )
    below = [(x_of(x), 20, along.written.format(x)) for x in along.ticks] + [(LEFT + WIDTH / 2, 40, across)]
    parts += [
        f'<text x="{x:.1f}" y="{TOP + HEIGHT + y}" text-anchor="middle" fill="#374151">{escape(text)}</text>'
        for x, y, text in below
    ]
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        dots = [(x_of(x), y_of(y)) for x, y in line]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in dots]
        at = TOP + 10 + 22 * number
        parts.append(f'<circle cx="{LEFT + WIDTH + 24}" cy="{at}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + WIDTH + 36}" y="{at + 4}" fill="#111827">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
