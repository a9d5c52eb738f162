"""Plots as SVG text: no library, no other file, legible in light and dark, and the same bytes for the same numbers."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, MARGIN = 640, 16
STYLE = """<style>
.plot{background:#fff}.plot text{font:13px system-ui,sans-serif;fill:#24292f}.plot .grid{stroke:#d0d7de}
.plot .s0{stroke:#0b66c2;fill:#0b66c2}.plot .s1{stroke:#c2570b;fill:#c2570b}.plot .s2{stroke:#1a7f37;fill:#1a7f37}
.plot .s3{stroke:#8250df;fill:#8250df}.plot .s4{stroke:#bf3989;fill:#bf3989}.plot text.name{stroke:none}
.plot .line{fill:none;stroke-width:1.5}.plot .whisker{stroke-width:1.5}.plot .dashed{stroke-dasharray:5 4}
@media(prefers-color-scheme:dark){.plot{background:#0d1117}.plot text{fill:#e6edf3}.plot .grid{stroke:#30363d}
.plot .s0{stroke:#58a6ff;fill:#58a6ff}.plot .s1{stroke:#f0883e;fill:#f0883e}.plot .s2{stroke:#3fb950;fill:#3fb950}
.plot .s3{stroke:#bc8cff;fill:#bc8cff}.plot .s4{stroke:#f778ba;fill:#f778ba}}
</style>"""


class Point(NamedTuple):
    """A value with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]], label: str) -> str:
    """A line a row: its name, a dot at the value, and whiskers from low to high."""
    left = MARGIN + 7.2 * max(len(name) for name, *_ in rows) + 10
    right, step, top = WIDTH - 64.0, 24.0, 8.0
    bottom = top + step * len(rows)
    largest = max(value if high is None else high for _, value, _, high in rows)
    ticks = _ticks(0.0, largest)
    scale = (right - left) / (ticks[-1] or 1.0)
    parts = []
    for tick in ticks:
        x = left + scale * tick
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, f"{tick:g}", "middle"))
    for index, (name, value, low, high) in enumerate(rows):
        y = top + step * (index + 0.5)
        parts.append(_text(left - 10, y + 4.5, name, "end"))
        if low is not None and high is not None:
            x1, x2 = left + scale * low, left + scale * high
            parts.append(f'<line class="whisker s0" x1="{x1:.1f}" y1="{y}" x2="{x2:.1f}" y2="{y}"/>')
        parts.append(f'<circle class="s0" cx="{left + scale * value:.1f}" cy="{y}" r="4.5"/>')
        parts.append(_text(left + scale * (value if high is None else high) + 10, y + 4.5, f"{value:.3g}"))
    parts.append(_text((left + right) / 2, bottom + 40, label, "middle"))
    return _svg(parts, bottom + 52, label)


def lines(
    series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> str:
    """Points joined within each series, with their intervals; `levels` are dashed lines across."""
    levels = levels or {}
    left, right, top, bottom = 62.0, WIDTH - 24.0, 16.0, 276.0
    points = [point for some in series.values() for point in some]
    xs = _ticks(0.0, max(point.x for point in points))
    ys = _ticks(0.0, max([*(p.y if p.high is None else p.high for p in points), *levels.values()]))

    def at(x: float, y: float) -> tuple[str, str]:
        place = left + (right - left) * x / xs[-1], bottom - (bottom - top) * y / ys[-1]
        return f"{place[0]:.1f}", f"{place[1]:.1f}"

    parts = []
    for tick in xs:
        x, _ = at(tick, 0.0)
        parts.append(f'<line class="grid" x1="{x}" y1="{top}" x2="{x}" y2="{bottom}"/>')
        parts.append(_text(float(x), bottom + 18, f"{tick:g}", "middle"))
    for tick in ys:
        _, y = at(0.0, tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(_text(left - 8, float(y) + 4.5, f"{tick:g}", "end"))
    for colour, some in enumerate(series.values()):
        if len(some) > 1:
            path = " ".join(",".join(at(point.x, point.y)) for point in some)
            parts.append(f'<polyline class="line s{colour % 5}" style="fill:none" points="{path}"/>')
        for point in some:
            x, y = at(point.x, point.y)
            if point.low is not None and point.high is not None:
                ends = at(point.x, point.low)[1], at(point.x, point.high)[1]
                parts.append(f'<line class="whisker s{colour % 5}" x1="{x}" y1="{ends[0]}" x2="{x}" y2="{ends[1]}"/>')
            parts.append(f'<circle class="s{colour % 5}" cx="{x}" cy="{y}" r="4"/>')
            if point.label:
                side, anchor = (8.0, "start") if float(x) < right - 90 else (-8.0, "end")
                parts.append(_text(float(x) + side, float(y) - 7, point.label, anchor))
    for index, level in enumerate(levels.values()):
        _, y = at(0.0, level)
        colour = f"s{(len(series) + index) % 5}"
        parts.append(f'<line class="dashed {colour}" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
    parts.append(_text((left + right) / 2, bottom + 40, x_label, "middle"))
    middle = (top + bottom) / 2
    parts.append(f'<g transform="translate(18 {middle}) rotate(-90)">{_text(0.0, 0.0, y_label, "middle")}</g>')
    y = bottom + 64.0
    for colour, name in enumerate([*series, *levels]):
        if name:
            parts.append(f'<circle class="s{colour % 5}" cx="{left + 6}" cy="{y - 4.5}" r="4"/>')
            parts.append(_text(left + 18, y, name))
            y += 20.0
    return _svg(parts, y - 6, y_label)


def _ticks(low: float, high: float) -> list[float]:
    """About five round values from `low` to at least `high`."""
    if high <= low:
        return [low, low + 1.0]
    power = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= high - low)
    return [round(low + index * step, 12) for index in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" style="max-width:100%;height:auto"'
    head = f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{html.escape(title)}</title>", STYLE, *parts, "</svg>", ""])
