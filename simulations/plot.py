# SPDX-License-Identifier: Apache-2.0
"""Draws a run as one SVG: what arrived, what waited, and how many replicas there were, over time.

Text and lines only, no library: the file opens in any browser and goes into any document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, PANEL, GAP, LEFT, RIGHT, TOP, BOTTOM = 960, 150, 46, 64, 24, 58, 44
COLUMNS = 440  # two pixels each
INK, FAINT = "#24292f", "#d0d7de"


@dataclass(frozen=True, slots=True)
class Sample:
    """How the run stood at one tick; `arrived` and `held` (the most) since the tick before."""

    at_s: float
    arrived: int
    held: int
    in_flight: int
    asked: int
    ready: int


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    colour: str
    values: Sequence[float]  # one a column
    filled: bool = False


def as_svg(samples: Sequence[Sample], *, title: str, subtitle: str) -> str:
    """Three panels over one axis of time. Of the ticks in one column the largest is drawn."""
    span_s = max(samples[-1].at_s, 1e-9) if samples else 1.0
    columns = _columns(samples, span_s)
    width_s = span_s / len(columns)
    panels = (
        ("requests/s arriving", [
            Series("arrivals", "#8250df", [sum(s.arrived for s in c) / width_s for c in columns],
                   filled=True)]),
        ("requests", [
            Series("in flight", "#2da44e", _most(columns, "in_flight"), filled=True),
            Series("held", "#cf222e", _most(columns, "held"))]),
        ("replicas", [
            Series("ready", "#54aeff", _most(columns, "ready"), filled=True),
            Series("asked for", INK, _most(columns, "asked"))]),
    )  # fmt: skip
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="{LEFT}" y="40" fill="#57606a">{escape(subtitle)}</text>',
    ]
    for index, (unit, series) in enumerate(panels):
        parts += _panel(unit, series, top=TOP + index * (PANEL + GAP) + 14, span_s=span_s)
    parts += _time_labels(span_s, y=height - BOTTOM + 32)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _columns(samples: Sequence[Sample], span_s: float) -> Sequence[Sequence[Sample]]:
    """Samples by column; a column between two ticks shows what the tick before it showed."""
    count = max(1, min(COLUMNS, len(samples)))
    columns: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        columns[min(int(sample.at_s / span_s * count), count - 1)].append(sample)
    return columns


def _most(columns: Sequence[Sequence[Sample]], field: str) -> Sequence[float]:
    values: list[float] = []
    for column in columns:
        before = values[-1] if values else 0.0
        values.append(max((float(getattr(s, field)) for s in column), default=before))
    return values


def _panel(unit: str, series: Sequence[Series], *, top: float, span_s: float) -> list[str]:
    largest = max((value for one in series for value in one.values), default=0.0)
    step = _step(max(largest, 1.0), 4)
    high = max(ceil(max(largest, 1.0) / step - 1e-9), 1) * step
    bottom, inner = top + PANEL - 14, PANEL - 14
    parts = [f'<text x="{LEFT}" y="{top - 6:.1f}" fill="#57606a">{escape(unit)}</text>']
    for line in range(round(high / step) + 1):
        y = bottom - inner * line * step / high
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{line * step:g}</text>'
        )
    for at_s in _marks(span_s):
        x = _x(at_s, span_s)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{FAINT}" '
            'stroke-dasharray="2 4"/>'
        )
    parts += [_steps(one, bottom=bottom, scale=inner / high) for one in series]
    parts += _legend(series, y=top - 6)
    return parts


def _legend(series: Sequence[Series], *, y: float) -> list[str]:
    parts, x = [], float(WIDTH - RIGHT)
    for one in reversed(series):
        parts.append(
            f'<text x="{x:.0f}" y="{y:.1f}" text-anchor="end" fill="{one.colour}" '
            f'font-weight="600">{escape(one.name)}</text>'
        )
        x -= 8 * len(one.name) + 16
    return parts


def _steps(series: Series, *, bottom: float, scale: float) -> str:
    """One column a step; neighbours alike are one line."""
    width = (WIDTH - LEFT - RIGHT) / len(series.values)
    path = [f"M{LEFT} {bottom:.1f}" if series.filled else ""]
    before = None
    for index, value in enumerate(series.values):
        if value != before:
            y = f"{bottom - value * scale:.1f}"
            if before is None and not series.filled:
                path.append(f"M{LEFT} {y}")
            path.append(f"H{LEFT + index * width:.1f}V{y}")
        before = value
    path.append(f"H{WIDTH - RIGHT}")
    if series.filled:
        path.append(f"V{bottom:.1f}Z")
        return f'<path d="{"".join(path)}" fill="{series.colour}" fill-opacity="0.45"/>'
    return f'<path d="{"".join(path)}" fill="none" stroke="{series.colour}" stroke-width="1.5"/>'


def _time_labels(span_s: float, *, y: float) -> list[str]:
    unit, size = next(
        (u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if span_s >= 2 * s or s == 1
    )
    labels = [
        f'<text x="{_x(at_s, span_s):.1f}" y="{y - 14:.1f}" text-anchor="middle">'
        f"{at_s / size:g}</text>"
        for at_s in _marks(span_s)
    ]
    labels.append(
        f'<text x="{WIDTH - RIGHT}" y="{y:.1f}" text-anchor="end" fill="#57606a">'
        f"time, {unit}</text>"
    )
    return labels


def _marks(span_s: float) -> Sequence[float]:
    size = next(s for s in (3600, 60, 1) if span_s >= 2 * s or s == 1)
    step = _step(span_s / size, 10) * size
    return [index * step for index in range(floor(span_s / step + 1e-9) + 1)]


def _x(at_s: float, span_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at_s / span_s


def _step(largest: float, most_steps: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that needs at most `most_steps` steps."""
    power = 10.0 ** floor(log10(largest / most_steps))
    return next(k * power for k in (1.0, 2.0, 5.0, 10.0) if k * power * most_steps >= largest)
