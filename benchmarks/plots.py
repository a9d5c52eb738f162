"""Plots of `bench.py numerics` and `bench.py kernels` as SVG files, from their records."""

import pathlib
from collections.abc import Iterator, Sequence

from conformer.charts import Point, lines, shares, together

VECTOR = {"layer_norm": 12, "lut_softmax": 8}  # additions and products an element, roughly: the norms need no matrices


def draw(name: str, result: dict, folder: str) -> None:
    """Writes NAME_*.svg, for the names of PLOTS."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for plot, drawn in PLOTS[name].items():
        (pathlib.Path(folder) / f"{name}_{plot}.svg").write_text(drawn(result))


# ---------------------------------------------------------------------- numerics


def failures(result: dict) -> str:
    """Draws the rows that fail: over all widths and both treatments of subnormals, then by the largest element."""
    cells = [cell for cell in result["widths"] if cell["order"] == "tree"]
    names, shapes = (list(dict.fromkeys(cell[key] for cell in cells)) for key in ("pre_normaliser", "distribution"))
    share = {
        name: [_mean([c["failed"] for c in _where(cells, pre_normaliser=name, distribution=shape)]) for shape in shapes]
        for name in names
    }
    amplitudes = _where(result["amplitudes"], flush_to_zero=False)
    curves = {
        name: [Point(c["peak"], 100 * c["failed"]) for c in _where(amplitudes, pre_normaliser=name)] for name in names
    }
    charts = [
        shares(share, shapes, "rows that fail: peaks from 1e-4 to 6e4, all widths"),
        lines(curves, "largest element of the row (Gaussian, D = 512)", "rows that fail (%)", log="x"),
    ]
    return together(charts, "rows that fail")


def errors(result: dict) -> str:
    """Draws the errors of the worst distribution, by pre-normaliser and by order of the sums; then the spread."""
    cells = result["widths"]
    flushed = _where(cells, order="tree", flush_to_zero=True)
    best = ("MAD, optimal", "max, optimal", "geometric", "geometric, power of two")
    by_norm = {name: _worst_errors(_where(flushed, pre_normaliser=name)) for name in best}
    ours = _where(cells, pre_normaliser="geometric", flush_to_zero=False)
    by_order = {order: _worst_errors(_where(ours, order=order)) for order in ("tree", "blocks of 32", "sequential")}
    spread = {
        name: [Point(float(width), value) for width, value in values.items()]
        for name, values in result["spread"].items()
        if "plain" not in name  # the constant changes nothing
    }
    charts = [
        lines(by_norm, "width D; worst distribution, flush to zero", "relative error", log="xy"),
        lines(by_order, "width D; worst distribution, by order of the sums", "relative error", log="xy"),
        lines(spread, "width D", "largest / smallest sum of squares", log="xy"),
    ]
    return together(charts, "relative errors, and the worst-case spread")


def _where(cells: Sequence[dict], **setting) -> list[dict]:
    return [cell for cell in cells if all(cell[key] == value for key, value in setting.items())]


def _worst_errors(cells: Sequence[dict]) -> list[Point]:
    widths = sorted({cell["width"] for cell in cells})
    return [Point(width, max(c["rms_error"] or 0.0 for c in _where(cells, width=width))) for width in widths]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ----------------------------------------------------------------------- kernels


def roofline(result: dict) -> str:
    """Operations a second against operations a byte, under the device's own rates."""
    copy, matrix = (result["rates"][name] for name in ("copy_bytes_per_second", "operations_per_second"))
    points: dict[str, list[Point]] = {}
    for row in _timed(result):
        elements = row["bytes"] / (2 if row["format"] == "bfloat16" else 4)
        operations = row["operations"] or VECTOR[row["operation"]] * elements / 2
        point = Point(operations / row["bytes"], operations / row["seconds"])
        points.setdefault(row["contestant"], []).append(point)
    bound = [Point(2.0**power, min(matrix, copy * 2.0**power)) for power in range(-2, 12)]
    kind = result["accelerator"]["kind"]
    labels = f"operations a byte, {kind}", "operations a second"
    return lines(points | {"measured bound": bound}, *labels, log="xy", scattered=list(points))


def bandwidth(result: dict) -> str:
    """Bytes a second of what multiplies no matrices, as shares of the device's copy."""
    rows = [row for row in _timed(result) if not row["operations"]]
    contestants = list(dict.fromkeys(row["contestant"] for row in rows))
    found: dict[str, list[float | None]] = {}
    for row in rows:
        name = " ".join(row[key] for key in ("operation", "variant", "shape", "format", "direction") if row[key])
        share = row["bytes"] / row["seconds"] / result["rates"]["copy_bytes_per_second"]
        found.setdefault(name, [None] * len(contestants))[contestants.index(row["contestant"])] = share
    return shares(found, contestants, "bytes a second, share of the device's copy")


def _timed(result: dict) -> Iterator[dict]:
    return (row for row in result["rows"] if row["seconds"] is not None)


PLOTS = {
    "numerics": {"failures": failures, "error": errors},
    "kernels": {"roofline": roofline, "bandwidth": bandwidth},
}
