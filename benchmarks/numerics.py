"""LayerNorm in low precision, emulated: which rows fail and how large the error is.

Rows of eight distributions, with peaks from 1e-4 to 6e4, are normalised with every operation rounded and compared with
float64. A row's error is |y - reference| / |reference| (Euclidean norms); a row fails that is not finite or errs by
more than 1 %. Where subnormals are flushed, elements that neither side can hold count as equal.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kernels.emulator import FLOAT16, FLOAT32, Arithmetic, Format
from kernels.layer_norm import (
    GEOMETRIC,
    NONE,
    OPTIMAL_MAD,
    OPTIMAL_MAX,
    PLAIN_MAD,
    PLAIN_MAX,
    NormNumerics,
    PreNormaliser,
    layer_norm,
    static,
)

WIDTHS = (144, 176, 256, 361, 362, 384, 511, 512, 768, 1024, 2048)
PEAKS = (1e-4, 6e4)
ROWS = 128
EPS = 1e-5
FAILED = 0.01  # relative error
PRE_NORMALISERS = {
    "none": NONE,
    "MAD, plain": PLAIN_MAD,
    "max, plain": PLAIN_MAX,
    "static": static(math.sqrt(WIDTHS[-1]) * PEAKS[1], NormNumerics().limit),
    "MAD, optimal": OPTIMAL_MAD,
    "max, optimal": OPTIMAL_MAX,
    "geometric": GEOMETRIC,
    "geometric, power of two": PreNormaliser(power_of_two=True),
}
ORDERS = {"tree": None, "blocks of 32": 32, "sequential": 1}


def distributions(width: int, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of each shape, their largest element 1 in size."""
    rng = np.random.default_rng(seed)
    hot, pair = np.zeros((rows, width)), np.zeros((rows, width))
    hot[:, width // 3] = 1
    pair[:, 0], pair[:, -1] = 1, -1
    channels = rng.standard_normal((rows, width))
    channels[:, ::100] *= 100  # as in the residual streams of large models
    shapes = {
        "Gaussian": rng.standard_normal((rows, width)),
        "uniform": rng.uniform(-1, 1, (rows, width)),
        "Laplace": rng.laplace(size=(rows, width)),
        "t3": rng.standard_t(3, (rows, width)),
        "log-normal": rng.lognormal(size=(rows, width)),
        "one-hot": hot,
        "+/- pair": pair,
        "outlier channels": channels,
    }
    return {name: x / np.abs(x).max(-1, keepdims=True) for name, x in shapes.items()}


def random_peaks(rows: int, seed: int = 1) -> np.ndarray:
    """Log-uniform between `PEAKS`, one a row: (rows, 1)."""
    low, high = np.log(PEAKS)
    return np.exp(np.random.default_rng(seed).uniform(low, high, (rows, 1)))


def row_errors(x: np.ndarray, numerics: NormNumerics, eps: float = EPS) -> np.ndarray:
    """Relative error of each row, infinite where the result is not finite. x is first rounded to the format."""
    format = numerics.arithmetic.format
    x = np.asarray(format.round(jnp.asarray(x, jnp.float32)))
    result = np.asarray(_compiled(numerics, eps)(x), np.float64)
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    reference = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
    difference = result - reference
    if format.flush_to_zero:
        held = 1.001 * format.smallest_normal
        difference[(np.abs(result) < held) & (np.abs(reference) < held)] = 0
    with np.errstate(invalid="ignore"):
        error, norm = np.linalg.norm(difference, axis=-1), np.linalg.norm(reference, axis=-1)
    error = np.divide(error, norm, out=np.where(error == 0, 0.0, np.inf), where=norm > 0)
    return np.where(np.isfinite(error), error, np.inf)


@functools.cache
def _compiled(numerics: NormNumerics, eps: float):
    return jax.jit(lambda x: layer_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), eps=eps, numerics=numerics))


def summary(errors: np.ndarray) -> dict:
    """Share of rows that failed; root mean square and largest error of the others."""
    kept = errors[errors <= FAILED]
    return {
        "failed": _rounded(np.mean(errors > FAILED)),
        "rms_error": _rounded(np.sqrt(np.mean(kept**2))) if kept.size else None,
        "worst_error": _rounded(kept.max()) if kept.size else None,
    }


def _rounded(x: np.floating) -> float:
    return float(f"{x:.3g}")


def run(rows: int = ROWS) -> dict:
    """Everything that `table` and the plots show."""
    return {
        "eps": EPS,
        "rows": rows,
        "widths": [cell for width in WIDTHS for cell in _cells_of_width(width, rows)],
        "amplitudes": list(_amplitudes(rows)),
        "formats": list(_formats(rows)),
        "spread": {
            name: {width: norm.spread(width) for width in WIDTHS}
            for name, norm in PRE_NORMALISERS.items()
            if norm.surrogate != "none"
        },
    }


def _cells_of_width(width: int, rows: int) -> Iterator[dict]:
    """Every pre-normaliser with sums by a tree, and the geometric one in every order, at random peaks."""
    shapes = distributions(width, rows)
    x = np.concatenate([shape * random_peaks(rows) for shape in shapes.values()])
    settings = [(name, norm, "tree", flush) for name, norm in PRE_NORMALISERS.items() for flush in (False, True)]
    settings += [("geometric", GEOMETRIC, order, False) for order in ORDERS if order != "tree"]
    for name, norm, order, flush in settings:
        arithmetic = Arithmetic(Format("float16", flush), block=ORDERS[order])
        errors = row_errors(x, NormNumerics(arithmetic, norm)).reshape(len(shapes), rows)
        for shape, shape_errors in zip(shapes, errors, strict=True):
            cell = {"pre_normaliser": name, "order": order, "flush_to_zero": flush, "width": width}
            yield cell | {"distribution": shape} | summary(shape_errors)
    _compiled.cache_clear()


def _amplitudes(rows: int, width: int = 512) -> Iterator[dict]:
    """Gaussian rows at fixed peaks."""
    shape = distributions(width, rows)["Gaussian"]
    peaks = np.geomspace(*PEAKS, 18)
    for name, norm in PRE_NORMALISERS.items():
        for flush in (False, True):
            numerics = NormNumerics(Arithmetic(Format("float16", flush)), norm)
            errors = row_errors(np.concatenate([peak * shape for peak in peaks]), numerics)
            for peak, peak_errors in zip(peaks, errors.reshape(len(peaks), rows), strict=True):
                cell = {"pre_normaliser": name, "flush_to_zero": flush, "width": width, "peak": _rounded(peak)}
                yield cell | summary(peak_errors)


def _formats(rows: int, width: int = 512) -> Iterator[dict]:
    """The definition and the geometric pre-normaliser in each format, and narrow storage with wide sums."""
    x = np.concatenate([shape * np.minimum(random_peaks(rows), 400) for shape in distributions(width, rows).values()])
    for format in ("bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"):
        for accumulation in (None, FLOAT16 if format.startswith("float8") else FLOAT32):
            for name in ("none", "geometric"):
                numerics = NormNumerics(Arithmetic(Format(format), accumulation), PRE_NORMALISERS[name])
                errors = row_errors(x, numerics)
                yield {
                    "format": format,
                    "accumulation": accumulation.name if accumulation else format,
                    "pre_normaliser": name,
                    "width": width,
                    "lost": _rounded(np.mean(errors > 0.5)),  # 1 % is within the rounding of float8
                    "median_error": _rounded(np.median(errors[errors <= 0.5])),
                }


def table(result: dict) -> str:
    """The worst cell of each pre-normaliser over all widths and distributions."""
    lines = [f"{'float16, worst of all widths and distributions':48} failed   rms error   worst row"]
    settings = {(cell["pre_normaliser"], cell["order"], cell["flush_to_zero"]): None for cell in result["widths"]}
    for name, order, flush in settings:
        cells = [
            c for c in result["widths"] if (c["pre_normaliser"], c["order"], c["flush_to_zero"]) == (name, order, flush)
        ]
        label = f"{name}, {order}{', flush to zero' if flush else ''}"
        rms = max(c["rms_error"] or 0 for c in cells)
        worst = max(c["worst_error"] or 0 for c in cells)
        lines.append(f"{label:48} {max(c['failed'] for c in cells):5.0%}   {rms:.2e}    {worst:.2e}")
    return "\n".join(lines)
