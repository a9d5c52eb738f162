"""A roofline of `bench.py kernels`: operations a second against operations a byte, under the device's own rates."""

import pathlib
from typing import Any

_VECTOR = {"layer_norm": 12, "lut_softmax": 8}  # additions and products an element, roughly: the norms need no matrices


def draw(result: dict[str, Any], folder: str) -> None:
    """Writes kernels_roofline.svg and kernels_bandwidth.svg."""
    import matplotlib  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kernels", "font.size": 9}):
        for name, panel in {"roofline": _roofline, "bandwidth": _bandwidth}.items():
            figure = Figure(figsize=(8, 5), layout="constrained")
            panel(figure.subplots(), result)
            figure.savefig(pathlib.Path(folder) / f"kernels_{name}.svg", metadata={"Date": None})


def _timed(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["seconds"] is not None]


def _roofline(axes: Any, result: dict[str, Any]) -> None:
    copy, matrix = (result["rates"][name] for name in ("copy_bytes_per_second", "operations_per_second"))
    for contestant in dict.fromkeys(row["contestant"] for row in _timed(result)):
        points = []
        for row in _timed(result):
            elements = row["bytes"] / (2 if row["format"] == "bfloat16" else 4)
            operations = row["operations"] or _VECTOR[row["operation"]] * elements / 2
            if row["contestant"] == contestant:
                points.append((operations / row["bytes"], operations / row["seconds"]))
        axes.scatter(*zip(*points, strict=True), s=12, label=contestant)
    intensities = [2**power for power in range(-2, 12)]
    axes.plot(intensities, [min(matrix, copy * i) for i in intensities], color="black", label="measured bound")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title(result["accelerator"]["kind"])
    axes.legend()


def _bandwidth(axes: Any, result: dict[str, Any]) -> None:
    rows = [row for row in _timed(result) if not row["operations"]]
    names = list(dict.fromkeys(_label(row) for row in rows))
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        mine = [row for row in rows if row["contestant"] == contestant]
        shares = [row["bytes"] / row["seconds"] / result["rates"]["copy_bytes_per_second"] for row in mine]
        axes.scatter(shares, [names.index(_label(row)) for row in mine], s=12, label=contestant)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.set(xlabel="bytes a second, share of the device's copy")
    axes.legend()


def _label(row: dict[str, Any]) -> str:
    return " ".join(row[name] for name in ("operation", "variant", "shape", "format", "direction") if row[name])
