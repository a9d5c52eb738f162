"""What the kernels have in common: padding to blocks, the rows of biases, the rule of differentiation, vmap.

Nothing of size queries x keys is ever stored. The forward kernel keeps for each row of scores the logarithm of its sum
of exponentials, from which the backward kernels make the weights again, block by block (Dao et al., 2022, section 3):

    P = exp(S - lse),    dV = P^T dO,    dP = dO V^T,    dS = P (dP - rowsum(dO O)),    dQ = dS K,    dK = dS^T Q

The gradient of the biases is the sum of the blocks of dS that share a tile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.chunked_attention.blocks import Diagonals, key_blocks, query_blocks
from kernels.chunked_attention.online import OnlineSoftmax, online_softmax
from kernels.guard import called, varying
from kernels.typing import Array

HEAD_DIM = 64  # head dimensions are padded to a multiple of it


class Kernels(NamedTuple):
    """Those of a device. Heads, rows and biases are padded to whole blocks; ranges of blocks are pairs [first, last).

    Args:
        forward: (diagonals, online, key_range, query, key, value, biases, start, end) -> (out, lse); biases are those
            of `Diagonals.rows`; online is the softmax from tables or None; lse (batch, heads, queries) in float32,
            anything for a row that sees nothing, and with tables.
        backward: (diagonals, key_range, query_range, query, key, value, biases, start, end, lse, out, cotangent) ->
            gradients of query, key, value and biases. The cotangent may be NaN where a query sees nothing.
        block: queries, and keys, of a block.
        multiple: to which lengths of query, key, value, out and cotangent are padded. Where it is less than `block`,
            blocks that reach past their end are filled with zeros when they are loaded, and cut off when stored.
    """

    forward: Callable
    backward: Callable
    block: int
    multiple: int


def attention(kernels: Kernels, query, key, value, positions, key_start, key_end, softmax, chunks) -> Array:
    """See `api.chunked_attention`. Raises Unsupported for another softmax than the exact one and `SoftmaxTables`."""
    online = online_softmax(softmax, key.shape[1], query.dtype)
    (_, num_queries, *_), (_, num_keys, _, value_dim) = query.shape, value.shape
    if positions.query is None:  # until a whole block shares the outermost bias
        highest = positions.bias.shape[1] // 2 + kernels.block - 1
        lowest, constant = -highest, positions.bias.shape[1] == 1
    else:  # as far as any query sees
        size, left = chunks or (num_keys, 0)
        lowest, highest, constant = 1 - min(size, num_queries), min(size * (left + 1), num_keys) - 1, False
        positions = positions._replace(query=_pad(positions.query, 1, (-num_queries) % kernels.block))
    diagonals = Diagonals(num_queries, num_keys, lowest, highest, kernels.block, constant)
    head_dim = -(-max(query.shape[3], value_dim) // HEAD_DIM) * HEAD_DIM
    query, key, value = (
        _pad(_pad(x, 1, -x.shape[1] % kernels.multiple), 3, head_dim - x.shape[3]) for x in (query, key, value)
    )
    start, end = (_pad(x.astype(jnp.int32), 1, (-num_queries) % kernels.block) for x in (key_start, key_end))
    arrays = varying(query, key, value, diagonals.rows(positions), start, end)
    if online is None:
        out: Any = _attention(kernels, diagonals, *arrays)
    else:
        out, _ = _forward_pass(kernels, diagonals, online, *arrays)
    return out[:, :num_queries, :, :value_dim]


def _pad(x: Array, axis: int, amount: int) -> Array:
    return jnp.pad(x, [(0, amount if i == axis else 0) for i in range(x.ndim)]) if amount else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(kernels: Kernels, diagonals: Diagonals, *arrays: Array) -> Array:
    return _forward_pass(kernels, diagonals, None, *arrays)[0]


def _forward(kernels: Kernels, diagonals: Diagonals, *arrays: Array):
    out, lse = _forward_pass(kernels, diagonals, None, *arrays)
    return out, (*arrays, out, lse)


def _forward_pass(
    kernels: Kernels, diagonals: Diagonals, online: OnlineSoftmax | None, query, key, value, biases, start, end
) -> tuple[Array, Array]:
    def forward(biases, query, key, value, start, end):
        key_range = key_blocks(start, end, kernels.block)
        forward = functools.partial(kernels.forward, diagonals, online, key_range)
        return called("chunked_attention", forward, query, key, value, biases, start, end)

    return _folded(forward, per_example=False)(biases, query, key, value, start, end)


def _backward(kernels: Kernels, diagonals: Diagonals, residuals: tuple[Array, ...], cotangent: Array):
    def backward(biases, query, key, value, start, end, out, lse, cotangent):
        key_range = key_blocks(start, end, kernels.block)
        query_range = query_blocks(key_range.first, key_range.last, -(-key.shape[1] // kernels.block))
        backward = functools.partial(kernels.backward, diagonals, key_range, query_range)
        return called("chunked_attention", backward, query, key, value, biases, start, end, lse, out, cotangent)

    query, key, value, biases, start, end, out, lse = residuals
    gradients = _folded(backward, per_example=True)(biases, query, key, value, start, end, out, lse, cotangent)
    return *gradients, None, None


_attention.defvjp(_forward, _backward)


def _folded(call: Callable, *, per_example: bool) -> Callable:
    """`call(biases, *batched)` with a rule for vmap: one call for all, the mapped axis as part of the batch.

    Args:
        per_example: an output has the shape of the biases. It is summed over a batch that shares them: vmap is a loop.
    """
    function = jax.custom_batching.custom_vmap(call)

    @function.def_vmap
    def _(size: int, in_batched: list[bool], biases: Array, *arrays: Array):
        given, shared = (biases, *arrays), biases.ndim - in_batched[0] == 2
        every = [x if b else jnp.broadcast_to(x, (size, *x.shape)) for x, b in zip(given, in_batched, strict=True)]
        if shared and (per_example or in_batched[0]):
            out = jax.lax.map(lambda one: function(*one), tuple(every))
        else:
            merged = [x.reshape(-1, *x.shape[2:]) for x in every]
            results = function(biases if shared else merged[0], *merged[1:])
            out = tuple(x.reshape(size, -1, *x.shape[1:]) for x in results)
        return out, (True,) * len(out)

    return function
