"""Who takes part in a case: our implementations, other JAX libraries, and PyTorch in a process of its own."""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.cases import Case
from benchmarks.kernels.timing import device_seconds
from benchmarks.peers import Peer, PeerError, peers_python
from kernels.chunked_attention.reference import toeplitz
from kernels.device import current_device
from kernels.implementation import NAMES, Unsupported, available

OURS = ("mosaic_gpu", "mosaic_tpu")
AGREEMENT = 0.05  # of the largest value: wide enough for 16 bits, and for nothing else


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one contestant in one case: a time, or why there is none."""

    contestant: str
    seconds: float | None = None
    skipped: str | None = None


def kernel_here() -> str | None:
    """The implementation of ours in Pallas that this device runs."""
    return next(filter(available, OURS), None)


def functions(case: Case) -> dict[str, Callable[..., Any]]:
    """Those in JAX, by name."""
    found = {
        name: case.function(name) for name in NAMES if name != "reference" or case.operation == "chunked_attention"
    }
    if case.operation == "chunked_attention" and case.variant == "":
        kind = "cudnn" if current_device().platform == "gpu" else "xla"
        dense = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation=kind)
        found[f"jax.nn {kind}"] = case.completed(functools.partial(_dense_attention, dense))
    if case.variant == "" and importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]

        if case.operation == "chunked_attention":
            dense = functools.partial(tokamax.dot_product_attention, scale=1.0)
            found["tokamax"] = case.completed(functools.partial(_dense_attention, dense))
        elif case.operation == "layer_norm":
            found["tokamax"] = case.completed(functools.partial(tokamax.layer_norm, epsilon=1e-5))
    return found


def _dense_attention(attention: Callable[..., Any], query, key, value, relative_bias, start, end) -> jax.Array:
    """Of the same function: the bias laid out, the rows as a mask."""
    bias = toeplitz(relative_bias, query.shape[1], key.shape[1])[None].astype(query.dtype)
    keys = jnp.arange(key.shape[1])
    mask = (start[..., None] <= keys) & (keys < end[..., None])
    out = attention(query, key, value, bias=bias, mask=mask[:, None])
    return jnp.where((end > start)[..., None, None], out, 0)


def measure(case: Case, name: str, function: Callable[..., Any]) -> Outcome:
    """Times a contestant in JAX, if it computes what "xla" computes."""
    if name in NAMES and not available(name):
        return Outcome(name, skipped=f"needs another device than {current_device().kind}")
    try:
        if name != "xla":
            _check(case, function)
        return Outcome(name, device_seconds(function, case.draw))
    except (Unsupported, NotImplementedError, ValueError, RuntimeError, jax.errors.JaxRuntimeError) as error:
        return Outcome(name, skipped=" ".join(str(error).split())[:200])


def _check(case: Case, function: Callable[..., Any]) -> None:
    arguments = case.draw(0)
    expected, got = (jax.tree.leaves(jax.jit(f)(*arguments)) for f in (case.function("xla"), function))
    for wanted, result in zip(expected, got, strict=True):
        wanted, result = (np.asarray(a, np.float32) for a in (wanted, result))
        if not (error := np.abs(result - wanted).max()) <= AGREEMENT * np.abs(wanted).max():
            raise ValueError(f"disagrees with xla by {error:.2g}, of values up to {np.abs(wanted).max():.2g}")


class Torch:
    """PyTorch's contestants, on the GPU of this process where it sees one."""

    def __init__(self) -> None:
        try:
            python = sys.executable if importlib.util.find_spec("torch") else peers_python()
        except PeerError as error:
            self._peer, self._missing = None, str(error)
        else:
            self._peer, self._missing = Peer("benchmarks.torch_peer.kernels", python=python), ""

    def measure(self, case: Case) -> list[Outcome]:
        """Nothing for the variants that PyTorch does not have."""
        if case.variant:
            return []
        if self._peer is None:
            return [Outcome("torch", skipped=self._missing)]
        request = case._asdict() | {"sizes": case.sizes._asdict(), "platform": current_device().platform}
        return [Outcome(**row) for row in self._peer.ask("time", **request)["rows"]]
