"""Small charts without a plotting library: bars for a terminal, SVG for a file.

An axis is logarithmic where its values span more than a factor of `MAX_LINEAR`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

MAX_LINEAR = 20.0
BAR_WIDTH = 40

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 58, 40
COLOURS = ("#1f5fa8", "#c2571a", "#3a7d44")

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """What a quantity is at each value of another one; several lines by name."""

    title: str
    x_name: str
    lines: Mapping[str, Line]


@dataclass(frozen=True)
class _Axis:
    """Values mapped to [0, 1], and the ones that get a mark."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], *, from_zero: bool) -> _Axis:
        least, most = min(values), max(values)
        if least > 0 and most / least > MAX_LINEAR:
            return cls(least, most, True)
        low = 0.0 if from_zero else least
        return cls(low, most if most > low else low + 1, False)

    def place(self, value: float) -> float:
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [10.0**power for power in powers]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            unit = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough)
            found = [unit * step for step in range(math.floor(self.high / unit) + 1)]
        slack = 1e-9
        return [mark for mark in found if -slack <= self.place(mark or slack) <= 1 + slack]


def number(value: float) -> str:
    """Three digits, large powers of ten as such."""
    if value >= 10_000 and math.log10(value).is_integer():
        return f"10^{round(math.log10(value))}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def bars(chart: Chart) -> str:
    """The chart for a terminal: a bar for each point."""
    values = [y for line in chart.lines.values() for _, y in line]
    axis = _Axis.of(values, from_zero=True)
    rows = [f"{chart.title}{' (logarithmic)' if axis.logarithmic else ''}"]
    for name, line in chart.lines.items():
        for x, y in line:
            # A logarithmic bar begins below the least value, so that this one is seen too.
            length = 1 + round(axis.place(y) * (BAR_WIDTH - 1))
            bar = "█" * length
            rows.append(f"  {number(x):>8}  {bar:<{BAR_WIDTH}} {number(y):>8}  {name}".rstrip())
    return "\n".join(rows)


def svg(rows: Sequence[Sequence[Chart]]) -> str:
    """All charts as one SVG document, a row of it for each row given."""
    width, height = WIDTH * max(map(len, rows)), HEIGHT * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for y, charts in enumerate(rows):
        for x, chart in enumerate(charts):
            parts += [
                f'<g transform="translate({x * WIDTH} {y * HEIGHT})">',
                *_drawn(chart),
                "</g>",
            ]
    return "\n".join([*parts, "</svg>", ""])


def _drawn(chart: Chart) -> list[str]:
    points = [point for line in chart.lines.values() for point in line]
    across = _Axis.of([x for x, _ in points], from_zero=False)
    up = _Axis.of([y for _, y in points], from_zero=True)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + across.place(x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up.place(y) * (HEIGHT - TOP - BOTTOM),
        )

    right, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [_text(LEFT, 18, chart.title, 'font-weight="bold"')]
    for mark in up.marks():
        _, y = at(across.low, mark)
        parts.append(_rule(LEFT, y, right, y))
        parts.append(_text(LEFT - 6, y + 4, number(mark), 'text-anchor="end"'))
    for x in sorted({x for x, _ in points}):
        place, _ = at(x, up.low)
        parts.append(_rule(place, foot, place, foot + 4))
        parts.append(_text(place, foot + 16, number(x), 'text-anchor="middle"'))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, chart.x_name, 'text-anchor="middle"'))
    for index, (name, line) in enumerate(chart.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [at(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        legend = LEFT + index * 130
        parts.append(f'<circle cx="{legend + 4}" cy="34" r="4" fill="{colour}"/>')
        parts.append(_text(legend + 13, 38, name))
    return parts


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd" fill="none"/>'
