"""Curves as SVG, without a library."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 300  # pixels
LEGEND = 200  # pixels next to them, for the names of several curves
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 40  # margins, in pixels
MAX_POINTS = 200  # of a curve: more than its width shows
MAX_CURVES = 8
LABEL_CHARACTERS = 28
COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#db2777", "#65a30d")


def line_chart(
    title: str, curves: Mapping[str, Points], marked: tuple[float, float] | None = None
) -> str:
    """A chart of curves over epochs as one SVG document; `marked` is a point to emphasize."""
    shown = {name: _thinned(curve) for name, curve in list(curves.items())[:MAX_CURVES]}
    xs = [x for curve in shown.values() for x, _ in curve]
    ys = [y for curve in shown.values() for _, y in curve]
    x_low, x_high = min(xs), max(xs)
    y_ticks = _ticks(min(ys), max(ys), 5)
    x_ticks = [tick for tick in _ticks(x_low, x_high, 8, whole=True) if x_low <= tick <= x_high]
    y_low, y_high = min([*y_ticks, *ys]), max([*y_ticks, *ys])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low or 1)
        up = (y - y_low) / (y_high - y_low or 1)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    whole = WIDTH + (LEGEND if len(shown) > 1 else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {HEIGHT}" width="{whole}" '
        f'height="{HEIGHT}" font-family="system-ui,sans-serif" font-size="12" fill="#334155">',
        f'<rect width="{whole}" height="{HEIGHT}" rx="6" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="13" font-weight="600">{escape(title)}</text>',
    ]
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(
            f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">epoch</text>'
    )
    for color, curve in zip(COLORS, shown.values(), strict=False):
        path = " ".join("{},{}".format(*place(x, y)) for x, y in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
    if marked is not None:
        x, y = place(*marked)
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="#fff" stroke="#0f172a"/>')
    if len(shown) > 1:
        parts += _legend(list(shown))
    return "".join([*parts, "</svg>"])


def as_image(svg: str, description: str) -> str:
    """HTML that shows it: Jupyter removes an SVG element from notebooks that it does not trust."""
    packed = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{packed}">'


def _legend(names: Sequence[str]) -> list[str]:
    parts, y = [], TOP + 4
    for color, name in zip(COLORS, names, strict=False):
        label = name if len(name) <= LABEL_CHARACTERS else f"{name[: LABEL_CHARACTERS - 1]}…"
        parts.append(f'<text x="{WIDTH}" y="{y}" fill="{color}">{escape(label)}</text>')
        y += 18
    return parts


def _thinned(curve: Points) -> Points:
    step = math.ceil(len(curve) / MAX_POINTS)
    return curve if step <= 1 else [*curve[:-1:step], curve[-1]]


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers that enclose a range."""
    if not math.isfinite(high - low):  # a range that no float can hold
        return [low, high]
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    if last == first:
        last += 1
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]
