"""Who takes part in a case: a copy of the same bytes, our implementations, other JAX libraries, PyTorch."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.cases import Case
from benchmarks.kernels.timing import Timing, copy_seconds, device_seconds
from kernels.chunked_attention.reference import Positions, position_scores
from kernels.device import current_device
from kernels.implementation import NAMES, available

COPY = "copy"  # reads and writes as many bytes as the case cannot do without: the yardstick
OURS = ("mosaic_gpu", "mosaic_tpu")
TORCH = {
    "layer_norm": ("torch compiled",),
    "lut_softmax": ("torch compiled",),
    "chunked_attention": ("torch sdpa", "torch flex"),
}
AGREEMENT = 0.05  # of the largest value: wide enough for 16 bits, and for nothing else


def kernel_here() -> str | None:
    """The implementation of ours in Pallas that this device runs."""
    return next(filter(available, OURS), None)


def names(case: Case) -> list[str]:
    """Of all contestants, those that cannot run here among them."""
    attention = case.operation == "chunked_attention"
    found = [COPY, *(name for name in NAMES if name != "reference" or attention)]
    if attention and case.variant != "tables":
        found.append("jax.nn cudnn" if current_device().platform == "gpu" else "jax.nn xla")
    if case.variant:
        return found
    if case.operation != "lut_softmax" and importlib.util.find_spec("tokamax"):
        found.append("tokamax")
    return found + list(TORCH[case.operation])


def function_of(case: Case, name: str) -> Callable[..., Any]:
    """The function of a contestant in JAX."""
    if name in NAMES:
        return case.function(name)
    if name.startswith("jax.nn"):
        return case.completed(functools.partial(_jax_nn, name.removeprefix("jax.nn ")))
    if case.operation == "chunked_attention":
        return case.completed(_tokamax)
    import tokamax  # pyright: ignore[reportMissingImports]

    return case.completed(functools.partial(tokamax.layer_norm, epsilon=1e-5))


def _jax_nn(implementation: Any, query, key, value, *others) -> jax.Array:
    """Of the same function: what distances add laid out, the rows as a mask."""
    *positions, start, end = others
    bias = _laid_out(query, key, *positions)
    keys = jnp.arange(key.shape[1])
    mask = ((start[..., None] <= keys) & (keys < end[..., None]))[:, None]
    out = jax.nn.dot_product_attention(query, key, value, bias, mask, scale=1.0, implementation=implementation)
    return jnp.where((end > start)[..., None, None], out, 0)


def _laid_out(query, key, *positions) -> jax.Array:
    """A bias of each query and key, from the learned one of distances or from position_query and position_key."""
    terms = Positions(None, *positions) if len(positions) == 2 else Positions(*positions)
    bias = position_scores(terms, query.shape[1], key.shape[1]).astype(query.dtype)
    return bias if bias.ndim == 4 else bias[None]


def _tokamax(query, key, value, relative_bias, start, end) -> jax.Array:
    """With the rows as they are, which its kernels skip blocks by; its public function takes a mask alone."""
    from tokamax._src.ops.attention import api, base  # pyright: ignore[reportMissingImports]

    bias = _laid_out(query, key, relative_bias)
    mask = base.Mask(k_start=start[:, None], k_end=end[:, None])
    for name in ("mosaic_gpu", "mosaic", "mosaic_tpu", "triton", "xla"):
        try:
            out = api.IMPLEMENTATIONS[name](query, key, value, bias=bias, mask=mask, logits_scale=1.0)
        except (KeyError, NotImplementedError):
            continue
        return jnp.where((end > start)[..., None, None], out, 0)
    raise NotImplementedError("tokamax: none of its implementations takes these arguments")


def measure(case: Case, name: str, function: Callable[..., Any] | None = None) -> Timing:
    """Times a contestant in JAX. Raises ValueError where it does not compute what "xla" computes."""
    if name == COPY:
        return copy_seconds(case.bytes // 2)
    compiled = jax.jit(function or function_of(case, name))
    if name != "xla":
        _check(case, compiled)
    return device_seconds(compiled, case.draw)


def _check(case: Case, function: Callable[..., Any]) -> None:
    arguments = case.draw(0)
    expected, got = (jax.tree.leaves(f(*arguments)) for f in (jax.jit(case.function("xla")), function))
    for wanted, result in zip(expected, got, strict=True):
        wanted, result = (np.asarray(a, np.float32) for a in (wanted, result))
        if not (error := np.abs(result - wanted).max()) <= AGREEMENT * np.abs(wanted).max():
            raise ValueError(f"disagrees with xla by {error:.2g}, of values up to {np.abs(wanted).max():.2g}")
