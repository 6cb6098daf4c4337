"""Curves of runs as inline SVG: no script, and it follows the page's light or dark.

A run keeps its colour (class r0, r1, ...) in all charts of a page. `legend` makes check boxes that hide runs, and
pointing at one brings its curves forward; pointing at a curve tells its name and values.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.markup import text

__all__ = ["Line", "chart", "css", "legend"]

COLOURS = (
    *("#3f7fd1", "#e07b2e", "#2f9e5b", "#d04a4a", "#8d67cc"),
    *("#9a7250", "#d765a9", "#7c858c", "#a3a021", "#22a3b8"),
)
DASHES = ("none", "6 3", "2 2.5", "8 3 2 3")
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 36  # margins in a chart
POINTS, HOVERS = 200, 24  # at most so many a line, of which so many can be pointed at
RAW = 6  # of more lines than this only the smoothed ones are drawn

Points = Sequence[tuple[float, float]]


class Line(NamedTuple):
    """A run's curve; run is its number on the page."""

    name: str
    run: int
    points: Points


def css(runs: int) -> str:
    """The style of charts and legend for so many runs."""
    rules = [
        ".charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 10px 22px }",
        ".charts.small { grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)) }",
        "svg.chart { width: 100%; font: 12px system-ui, sans-serif; fill: var(--soft) }",
        "svg .title { font-size: 13px; font-weight: 600; fill: var(--ink) }",
        "svg .grid { stroke: var(--faint); stroke-width: .7 } svg path { fill: none }",
        "svg .line { stroke: var(--c); stroke-width: 1.9; stroke-dasharray: var(--dash); stroke-linejoin: round }",
        "svg .raw { stroke: var(--c); stroke-width: 1; opacity: .35 }",
        "svg circle { fill: transparent } svg .dot { fill: var(--c) } svg circle:hover { fill: var(--c) }",
        ".legend { position: sticky; top: 0; background: var(--paper); display: flex; flex-wrap: wrap; gap: 2px 16px;",
        " padding: 6px 0; max-height: 30vh; overflow-y: auto; border-bottom: 1px solid var(--faint); z-index: 1 }",
        ".legend { font-size: .88em }",
        ".legend label { cursor: pointer; white-space: nowrap } .legend svg { width: 26px; height: 9px }",
        ".legend input { margin: 0 4px 0 0; accent-color: var(--c); vertical-align: -1px }",
    ]
    for i in range(runs):
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        rules.append(f".r{i} {{ --c: {COLOURS[i % len(COLOURS)]}; --dash: {dash} }}")
        rules.append(f"body:has(#r{i}:not(:checked)) :is(g, figure).r{i} {{ display: none }}")
        rules.append(f"body:has(label.r{i}:hover) svg.chart g:is([class^=r]):not(.r{i}) {{ opacity: .12 }}")
    return "\n".join(rules)


def legend(names: Iterable[str]) -> str:
    """Which colour is which run, with boxes that hide it."""
    return (
        '<div class="legend">'
        + "".join(
            f'<label class="r{i}"><input type="checkbox" id="r{i}" checked><svg viewBox="0 0 26 9">'
            f'<path class="line" d="M0 4.5H26"/></svg> {text(name)}</label>'
            for i, name in enumerate(names)
        )
        + "</div>"
    )


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (480, 270),
) -> str:
    """A chart of all lines that have points; "" if none has.

    Lines of many points are smoothed, over what was measured, faint. The y axis is logarithmic where values are
    positive and span more than a factor of 4, unless y_range is given: what lies between is always seen. Steps count
    from 0.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    smoothed = [smooth(line.points) for line in lines]
    width, height = size
    xs = [x for points in smoothed for x, _ in points]
    left, right = min(xs + [0.0] * (x_label == "step")), max(xs)
    ys = [y for points in smoothed for _, y in points]
    low, high = min([*ys, *(y_range or ())]), max([*ys, *(y_range or ())])
    log = y_range is None and low > 0 and high > 4 * low
    if high == low:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    across = _scale(left, right, LEFT, width - RIGHT)
    up = _scale(low, high, height - BOTTOM, TOP + 4, log=log)

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{text(title)}">']
    out.append(f'<text class="title" x="{LEFT}" y="16">{text(title)}{" (log axis)" if log else ""}</text>')
    for y in log_ticks(low, high) if log else ticks(low, high, height // 45):
        out.append(f'<path class="grid" d="M{LEFT} {up(y):.1f}H{width - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 7}" y="{up(y) + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in ticks(left, right, width // 80) if right > left else [left]:
        out.append(f'<text x="{across(x):.1f}" y="{height - BOTTOM + 17}" text-anchor="middle">{short(x)}</text>')
    out.append(f'<text x="{width - RIGHT}" y="{height - 4}" text-anchor="end">{text(x_label)}</text>')

    def path(points: Points) -> str:
        inside = [(x, min(max(y, low), high)) for x, y in points]  # what was measured may lie outside
        return "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in _thin(inside, POINTS))

    for line, points in zip(lines, smoothed, strict=True):
        out.append(f'<g class="r{line.run}">')
        if points != line.points and len(lines) <= RAW:
            out.append(f'<path class="raw" d="{path(line.points)}"/>')
        out.append(f'<path class="line" d="{path(points)}"><title>{text(line.name)}</title></path>')
        for x, y in _thin(points, HOVERS):
            label = f"{text(line.name)}: {x_label} {short(x)}: {y:.4g}"
            dot = ' class="dot" r="3"' if len(points) == 1 else ' r="6"'
            out.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}"{dot}><title>{label}</title></circle>')
        out.append("</g>")
    return "".join([*out, "</svg>"])


def smooth(points: Points) -> Points:
    """A moving average over the logged points, Gaussian, of a width of 1/40 of their number; few stay as they are."""
    width = len(points) / 40
    if width < 0.5:
        return points
    reach = math.ceil(3 * width)
    kernel = [math.exp(-0.5 * (i / width) ** 2) for i in range(-reach, reach + 1)]
    out = []
    for i, (x, _) in enumerate(points):
        part = range(max(0, i - reach), min(len(points), i + reach + 1))
        weights = [kernel[j - i + reach] for j in part]
        out.append((x, sum(w * points[j][1] for w, j in zip(weights, part, strict=True)) / sum(weights)))
    return out


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high."""
    raw = (high - low) / most
    size = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1
    step = next(step for step in (size, 2 * size, 5 * size, 10 * size) if step >= raw)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of each decade, or as few decades as are enough."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // 6))
    digits = (1, 2, 3, 4, 6, 8) if high < 10 * low else (1, 2, 5) if high < 300 * low else (1,)
    every = [digit * 10.0**decade for decade in range(first, last + 1, stride) for digit in digits]
    return [value for value in every if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]


def short(value: float) -> str:
    """40000 as 40k."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def _scale(low: float, high: float, start: float, end: float, *, log: bool = False):
    if log:
        inner = _scale(math.log(low), math.log(high), start, end)
        return lambda value: inner(math.log(value))
    return lambda value: start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _thin(points: Points, most: int) -> Points:
    """At most so many, evenly, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
