# SPDX-License-Identifier: Apache-2.0
"""Draws allocation and fragments over arrivals as one SVG: every seed faint, the mean strong."""

from collections.abc import Mapping, Sequence
from html import escape

from simulations.packing.protocol import Run
from simulations.plot import FAINT, INK

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, GAP = 960, 260, 56, 24, 62, 40, 56
SERIES = (
    ("allocated GPUs, % of all", "allocated_percent", "#2da44e"),
    ("GPUs idle in fragments, % of all", "fragments_percent", "#cf222e"),
)

Points = Sequence[tuple[float, float]]


def as_svg(
    runs: Sequence[Run], curve: Sequence[Mapping[str, float]], *, title: str, subtitle: str
) -> str:
    """Two panels over the GPUs that had been asked for, in per cent of those that there are."""
    height = TOP + len(SERIES) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="{LEFT}" y="40" fill="#57606a">{escape(subtitle)}</text>',
    ]
    for index, (name, field, colour) in enumerate(SERIES):
        each: list[Points] = [
            [(m.arrived_percent, float(getattr(m, field))) for m in run.curve] for run in runs
        ]
        mean: Points = [(point["arrived_percent"], point[field]) for point in curve]
        parts += _panel(name, each, mean, colour=colour, top=TOP + index * (HEIGHT + GAP))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _panel(
    name: str, each: Sequence[Points], mean: Points, *, colour: str, top: float
) -> list[str]:
    widest = max(x for x, _ in mean)
    highest = max(y for points in (*each, mean) for _, y in points)
    step = next(size for size in (0.5, 1, 2, 5, 10, 20, 50) if highest <= 6 * size or size == 50)
    ceiling = step * max(1, -(-highest // step))

    def x_of(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / max(widest, 1)

    def y_of(value: float) -> float:
        return top + HEIGHT - HEIGHT * value / ceiling

    def line(points: Points, style: str) -> str:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>'

    parts = [f'<text x="{LEFT}" y="{top - 6:.1f}" fill="#57606a">{escape(name)}</text>']
    for mark in range(round(ceiling / step) + 1):
        y = y_of(mark * step)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{mark * step:g}</text>'
        )
    parts += [
        f'<text x="{x_of(mark):.1f}" y="{top + HEIGHT + 16:.1f}" text-anchor="middle">{mark}</text>'
        for mark in range(0, int(widest) + 1, 10)
    ]
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{top + HEIGHT + 32:.1f}" text-anchor="end" '
        'fill="#57606a">GPUs asked for, % of all</text>'
    )
    parts += [line(points, 'stroke-opacity="0.25"') for points in each if len(each) > 1]
    parts.append(line(mean, 'stroke-width="2"'))
    return parts
