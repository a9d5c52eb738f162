"""Plots of `benchmarks/numerics.py` as SVG files."""

import importlib.util
import pathlib

# One colour and style a pre-normaliser, in every plot.
STYLES = {
    "none": ("black", "-"),
    "MAD, plain": ("tab:red", "--"),
    "max, plain": ("tab:blue", "--"),
    "static": ("tab:grey", "-"),
    "MAD, optimal": ("tab:red", "-"),
    "max, optimal": ("tab:blue", "-"),
    "geometric": ("tab:green", "-"),
    "geometric, power of two": ("tab:green", ":"),
}


class MissingError(ValueError):
    """Plots are wanted, and matplotlib is not there."""


def check(folder: str | None) -> None:
    """Raises MissingError where `draw` could not: before anything is measured."""
    if folder and importlib.util.find_spec("matplotlib") is None:
        raise MissingError("--plots needs matplotlib: pip install -e '.[plots]'")


def draw(result: dict, folder: str) -> None:
    """Writes numerics_failures.svg and numerics_error.svg."""
    import matplotlib  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    # Text as text: small files; a fixed salt: the same data, the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "numerics", "font.size": 9}):
        for name, panels in {
            "failures": (_failures_by_distribution, _failures_by_amplitude),
            "error": (_error_by_width, _error_by_order, _spread_by_width),
        }.items():
            figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
            for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
                panel(axes, result)
            figure.savefig(pathlib.Path(folder) / f"numerics_{name}.svg", metadata={"Date": None})


def _failures_by_distribution(axes, result: dict) -> None:
    """Every width and both treatments of subnormals together."""
    cells = [cell for cell in result["widths"] if cell["order"] == "tree"]
    shapes = list(dict.fromkeys(cell["distribution"] for cell in cells))
    share = [
        [_mean([c["failed"] for c in cells if (c["pre_normaliser"], c["distribution"]) == (n, s)]) for s in shapes]
        for n in STYLES
    ]
    axes.imshow(share, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(share):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axes.set_xticks(range(len(shapes)), shapes, rotation=40, ha="right")
    axes.set_yticks(range(len(STYLES)), STYLES)
    axes.set_title("rows that fail: peaks from 1e-4 to 6e4, all widths")


def _failures_by_amplitude(axes, result: dict) -> None:
    for name, (colour, style) in STYLES.items():
        cells = [c for c in result["amplitudes"] if c["pre_normaliser"] == name and not c["flush_to_zero"]]
        axes.semilogx([c["peak"] for c in cells], [100 * c["failed"] for c in cells], style, color=colour, label=name)
    axes.set(xlabel="largest element of the row", ylabel="rows that fail (%)", title="Gaussian rows, D = 512")
    axes.legend()


def _error_by_width(axes, result: dict) -> None:
    """Of the worst distribution, subnormals flushed."""
    for name in ("MAD, optimal", "max, optimal", "geometric", "geometric, power of two"):
        colour, style = STYLES[name]
        _worst_error(axes, result, style, colour, name, pre_normaliser=name, order="tree", flush_to_zero=True)
    axes.set(ylabel="relative error", title="worst distribution, flush to zero")
    _finish(axes)


def _error_by_order(axes, result: dict) -> None:
    for order, style in {"tree": "-", "blocks of 32": "--", "sequential": ":"}.items():
        _worst_error(
            axes, result, style, "tab:green", order, pre_normaliser="geometric", order=order, flush_to_zero=False
        )
    axes.set(ylabel="relative error", title="worst distribution, by order of the sums")
    _finish(axes)


def _worst_error(axes, result: dict, style: str, colour: str, label: str, **setting) -> None:
    cells = [c for c in result["widths"] if all(c[key] == value for key, value in setting.items())]
    widths = sorted({c["width"] for c in cells})
    errors = [max(c["rms_error"] or 0 for c in cells if c["width"] == width) for width in widths]
    axes.loglog(widths, errors, style, color=colour, label=label, marker=".")


def _spread_by_width(axes, result: dict) -> None:
    for name, spread in result["spread"].items():
        if "plain" not in name:  # the constant changes nothing
            colour, style = STYLES[name]
            axes.loglog([int(width) for width in spread], spread.values(), style, color=colour, label=name)
    axes.set(ylabel="largest / smallest sum of squares", title="worst-case spread")
    _finish(axes)


def _finish(axes) -> None:
    """Names the widths, which are not powers of ten."""
    axes.set_xlabel("width D")
    axes.set_xticks([144, 256, 512, 1024, 2048], ["144", "256", "512", "1024", "2048"])
    axes.minorticks_off()
    axes.legend(loc="upper left")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
