"""Static scales for normalisation, from the rows that a model sees."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from conformer.model.norm import LayerNorm
from conformer.numerics.apply import apply_policy, replace_children
from conformer.numerics.modules import Norm
from conformer.policy import Policy, get_policy
from kernels.layer_norm import static
from kernels.typing import Array, Float


def calibrate[M: nnx.Module](
    model: M, policy: Policy | str, batches: Iterable[tuple[Any, ...]], *, margin: float = 2.0
) -> M:
    """`apply_policy` with a power of two of its own for each normalisation in the place of the pre-normaliser.

    Nothing is then computed for a row's scale (SLaNC, Salmani and Soloveychik, 2024, which takes it from the weights).
    The guarantee is that of data: no sum of squares overflows in rows at most `margin` times as long as the longest of
    `batches`.

    Args:
        model: in float32.
        policy: one that is emulated, with stabilised norms.
        batches: arguments of `model(*batch)`, such as some of the training data.
        margin: room for rows longer than those.

    Raises:
        ValueError: for another policy, or no batch.
    """
    policy = get_policy(policy) if isinstance(policy, str) else policy
    if not (policy.emulated and policy.stabilised_norm):
        raise ValueError(f"policy {policy.name!r} has no pre-normaliser that a static scale could replace")
    longest = _longest_rows(model, batches)
    changed = apply_policy(model, policy)
    for path, module in nnx.iter_modules(changed):
        if isinstance(module, Norm):
            numerics = module.numerics
            # No smaller than what keeps the term of eps in range.
            smallest = (longest[path][1] * module.eps) ** 0.5
            norm = static(max(margin * longest[path][0], smallest), numerics.limit)
            module.numerics = dataclasses.replace(numerics, pre_normaliser=norm)
    return changed


def _longest_rows(model: nnx.Module, batches: Iterable[tuple[Any, ...]]) -> dict[tuple, tuple[float, int]]:
    """The Euclidean norm of the longest row that each normalisation reads, and its width."""
    probed = nnx.clone(model)
    replace_children(probed, lambda _, child: _Probe(child) if isinstance(child, _NORMS) else child)
    run, seen = nnx.jit(lambda model, *batch: model(*batch)), False
    for batch in batches:
        run(probed, *batch)
        seen = True
    if not seen:
        raise ValueError("no batches to calibrate with: give some of the training data")
    probes = [(path, module) for path, module in nnx.iter_modules(probed) if isinstance(module, _Probe)]
    return {path: (float(probe.longest[...]), probe.width) for path, probe in probes}


_NORMS = (LayerNorm, nnx.LayerNorm, nnx.RMSNorm)


class _Longest(nnx.Variable):
    """The norm of the longest row that a probe has seen."""


class _Probe(nnx.Module):
    """A normalisation that remembers the norm of the longest row it was given."""

    def __init__(self, norm: LayerNorm | nnx.LayerNorm | nnx.RMSNorm):
        self.norm = norm
        self.longest = _Longest(jnp.zeros(()))
        self.width = 0  # of its rows

    def __call__(self, x: Float[Array, "*shape"], **options) -> Float[Array, "*shape"]:
        axis = options.get("axis", -1)  # where the channels stand first
        self.width = x.shape[axis]
        self.longest[...] = jnp.maximum(self.longest[...], jnp.max(jnp.linalg.norm(x, axis=axis)))
        return self.norm(x, **options)

    def of_sum(
        self, x: Float[Array, "*batch channels"], residual: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch channels"]:
        return self(x + residual)
