"""Plots as SVG text: no library, no other file, legible in light and dark, and the same bytes for the same numbers."""

import html
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

WIDTH, MARGIN = 640, 16
COLOURS = 5  # s0 to s4
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
    ends = [value if high is None else high for _, value, _, high in rows]
    across = _Scale.over(ends, left, right)
    parts = _upright_grid(across, top, bottom)
    for index, ((name, value, low, high), end) in enumerate(zip(rows, ends, strict=True)):
        y = top + step * (index + 0.5)
        parts.append(_text(left - 10, y + 4.5, name, "end"))
        if low is not None and high is not None:
            parts.append(f'<line class="whisker s0" x1="{across(low)}" y1="{y}" x2="{across(high)}" y2="{y}"/>')
        parts.append(f'<circle class="s0" cx="{across(value)}" cy="{y}" r="4.5"/>')
        parts.append(_text(float(across(end)) + 10, y + 4.5, f"{value:.3g}"))
    parts.append(_text((left + right) / 2, bottom + 40, label, "middle"))
    return _svg(parts, bottom + 52, label)


def lines(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    *,
    log: str = "",
    scattered: Collection[str] = (),
) -> str:
    """Points joined within each series, with their intervals; `levels` are dashed lines across.

    `log` names the axes, "x" and "y", that are logarithmic: what is not above 0 is left out of them. Points of the
    series named by `scattered` are not joined.
    """
    levels = levels or {}
    left, right, top, bottom = 62.0, WIDTH - 24.0, 16.0, 276.0
    series = {
        name: [point for point in some if (point.x > 0 or "x" not in log) and (point.y > 0 or "y" not in log)]
        for name, some in series.items()
    }
    points = [point for some in series.values() for point in some]
    across = _Scale.over([point.x for point in points], left, right, "x" in log)
    tops = [point.y if point.high is None else point.high for point in points]
    up = _Scale.over([*tops, *levels.values()], bottom, top, "y" in log)
    parts = _upright_grid(across, top, bottom)
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(_text(left - 8, float(y) + 4.5, f"{tick:g}", "end"))
    for index, (name, some) in enumerate(series.items()):
        colour = _colour(index)
        if len(some) > 1 and name not in scattered:
            path = " ".join(f"{across(point.x)},{up(point.y)}" for point in some)
            dashed = " dashed" if index >= COLOURS else ""
            parts.append(f'<polyline class="line {colour}{dashed}" style="fill:none" points="{path}"/>')
        for point in some:
            x, y = across(point.x), up(point.y)
            if point.low is not None and point.high is not None:
                ends = up(point.low), up(point.high)
                parts.append(f'<line class="whisker {colour}" x1="{x}" y1="{ends[0]}" x2="{x}" y2="{ends[1]}"/>')
            parts.append(f'<circle class="{colour}" cx="{x}" cy="{y}" r="4"/>')
            if point.label:
                side, anchor = (8.0, "start") if float(x) < right - 90 else (-8.0, "end")
                parts.append(_text(float(x) + side, float(y) - 7, point.label, anchor))
    for index, level in enumerate(levels.values()):
        y = up(level)
        colour = _colour(len(series) + index)
        parts.append(f'<line class="dashed {colour}" x1="{left}" y1="{y}" x2="{right}" y2="{y}"/>')
    parts.append(_text((left + right) / 2, bottom + 40, x_label, "middle"))
    middle = (top + bottom) / 2
    parts.append(f'<g transform="translate(18 {middle}) rotate(-90)">{_text(0.0, 0.0, y_label, "middle")}</g>')
    legend, y = _legend([*series, *levels], left, bottom + 64.0)
    return _svg(parts + legend, y - 6, y_label)


def bars(rows: Mapping[str, Mapping[str, float]], label: str) -> str:
    """A bar a row, of parts one after the other; each row has the same parts."""
    left, right, step, top = MARGIN + 7.2 * max(map(len, rows)) + 10, WIDTH - 24.0, 24.0, 8.0
    bottom = top + step * len(rows)
    across = _Scale.over([sum(row.values()) for row in rows.values()], left, right)
    parts = _upright_grid(across, top, bottom)
    for index, (name, row) in enumerate(rows.items()):
        y, done = top + step * index, 0.0
        parts.append(_text(left - 10, y + 16.5, name, "end"))
        for part, value in enumerate(row.values()):
            start, done = float(across(done)), done + value
            style = f'class="{_colour(part)}"' + (' opacity="0.4"' if part >= COLOURS else "")
            parts.append(
                f'<rect {style} x="{start:.1f}" y="{y + 4}" width="{float(across(done)) - start:.1f}" height="16"/>'
            )
    parts.append(_text((left + right) / 2, bottom + 40, label, "middle"))
    legend, y = _legend(list(next(iter(rows.values()))), left, bottom + 64.0)
    return _svg(parts + legend, y - 6, label)


def shares(rows: Mapping[str, Sequence[float | None]], columns: Sequence[str], title: str) -> str:
    """A table of shares, 1 = all, each darker the larger it is; None is left empty."""
    left, step = MARGIN + 7.2 * max(map(len, rows)) + 10, 24.0
    width, top = (WIDTH - MARGIN - left) / len(columns), 5.2 * max(map(len, columns)) + 24
    parts = []
    for index, column in enumerate(columns):
        x = left + width * (index + 0.5)
        parts.append(f'<g transform="translate({x:.1f} {top - 8:.1f}) rotate(-40)">{_text(0.0, 0.0, column)}</g>')
    for row, (name, values) in enumerate(rows.items()):
        y = top + step * row
        parts.append(_text(left - 10, y + 16.5, name, "end"))
        for index, value in enumerate(values):
            if value is not None:
                x, opacity = left + width * index, 0.6 * min(value, 1.0)
                size = f'width="{width - 2:.1f}" height="{step - 2}"'
                parts.append(f'<rect class="s1" opacity="{opacity:.2f}" x="{x:.1f}" y="{y:.1f}" {size}/>')
                parts.append(_text(x + width / 2, y + 16.5, f"{value:.0%}", "middle"))
    return _svg(parts, top + step * len(rows) + MARGIN, title)


def together(charts: Sequence[str], title: str) -> str:
    """Charts one below the other."""
    parts, y = [], 0.0
    for chart in charts:
        height = float(chart.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()[1])
        parts.append(f'<svg y="{y:.0f}" width="{WIDTH}" height="{height:.0f}">{chart.partition(STYLE)[2].strip()}')
        y += height
    return _svg(parts, y, title)


class _Scale(NamedTuple):
    """The scale of an axis: maps values to places between `start` and `end`."""

    ticks: list[float]
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> "_Scale":
        """Returns a scale for these values; a linear one begins at 0."""
        ticks = _powers(min(values), max(values)) if log else _ticks(0.0, max(values))
        return cls(ticks, start, end, log)

    def __call__(self, value: float) -> str:
        if self.log:
            low, high = math.log(self.ticks[0]), math.log(self.ticks[-1])
            share = (math.log(value) - low) / (high - low)
            return f"{self.start + (self.end - self.start) * share:.1f}"
        return f"{self.start + (self.end - self.start) * value / self.ticks[-1]:.1f}"


def _upright_grid(across: _Scale, top: float, bottom: float) -> list[str]:
    """A line a tick, and its number below."""
    parts = []
    for tick in across.ticks:
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x}" y1="{top}" x2="{x}" y2="{bottom}"/>')
        parts.append(_text(float(x), bottom + 18, f"{tick:g}", "middle"))
    return parts


def _powers(low: float, high: float) -> list[float]:
    """Round values from at most `low` to at least `high`: powers of ten, and 2 and 5 times them where those are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 3:
        step = -(-(last - first) // 10)
        return [10.0**power for power in range(first, last + step, step)]
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    above = next(index for index, tick in enumerate(ticks) if tick >= high and tick > low)
    return [tick for index, tick in enumerate(ticks[: above + 1]) if index == above or ticks[index + 1] > low]


def _ticks(low: float, high: float) -> list[float]:
    """About five round values from `low` to at least `high`."""
    if high <= low:
        return [low, low + 1.0]
    power = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= high - low)
    return [round(low + index * step, 12) for index in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _colour(index: int) -> str:
    return f"s{index % COLOURS}"


def _legend(names: Sequence[str], x: float, y: float) -> tuple[list[str], float]:
    """A line a name, in the colours of what they name; and where the next line would be."""
    parts = []
    for index, name in enumerate(names):
        if name:
            faint = ' opacity="0.4"' if index >= COLOURS else ""
            parts.append(f'<circle class="{_colour(index)}"{faint} cx="{x + 6}" cy="{y - 4.5}" r="4"/>')
            parts.append(_text(x + 18, y, name))
            y += 20.0
    return parts, y


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" style="max-width:100%;height:auto"'
    head = f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{html.escape(title)}</title>", STYLE, *parts, "</svg>", ""])
