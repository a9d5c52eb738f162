"""The public function; picks the implementation."""

import numbers
from collections.abc import Callable

import jax.numpy as jnp

from kernels import formats
from kernels.chunked_attention import reference, xla
from kernels.chunked_attention.rows import seen_keys
from kernels.implementation import deferred, dispatch
from kernels.lut_softmax import softmax as exact_softmax
from kernels.typing import Array, Float, Int


def chunked_attention(
    query: Float[Array, "*batch queries heads head_dim"],
    key: Float[Array, "*batch keys kv_heads head_dim"],
    value: Float[Array, "*batch keys kv_heads value_dim"],
    relative_bias: Float[Array, "heads distances"] | None = None,
    key_start: Int[Array, "*batch queries"] | None = None,
    key_end: Int[Array, "*batch queries"] | None = None,
    *,
    position_query: Float[Array, "*batch queries heads position_dim"] | None = None,
    position_key: Float[Array, "positions heads position_dim"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
    scale: float = 1.0,
    softmax: Callable[[Array, Array], Array] = exact_softmax,
    chunks: tuple[int, int] | None = None,
    implementation: str | None = None,
) -> Float[Array, "*batch queries heads value_dim"]:
    """Attention of each query to a contiguous range of keys, with what their distance adds to the scores.

        out_i = sum_j softmax_j(q_i . k_j + b[i - j] + p_i . r[i - j]) v_j,    key_start_i <= j < key_end_i

    b is a learned bias (Raffel et al., 2020, section 2.1, without buckets), the same for every chunk; p . r is
    Transformer-XL's term, which depends on the content of queries (Dai et al., 2019). Either may be absent.

    The kernels never store the scores: memory is linear in the length, and blocks of keys that no query of a block of
    queries sees are not loaded. Only p . r is stored, of all distances, or of those within `chunks`. Differentiable in
    all arrays but the ranges; vmap works.

    Args:
        query: float32, bfloat16 or float16, with any number of batch axes. The queries are the last `queries` of the
            keys' positions.
        key, value: the sequence attended to, in the query's type; in a stream, the cache followed by the chunk. Each
            of their heads may serve several neighbouring heads of the query (grouped queries; one for all).
        relative_bias: b for distances -R ... R (2R + 1 of them); larger distances share the outermost. None is zero.
        key_start, key_end: the range of keys of each query (see `chunk_rows`), traced or not; None are the first key
            and the last. An empty range gives zeros, and no gradient; what lies before the first key or past the last
            one counts for nothing. What no query sees, and a query that sees nothing, may be NaN.
        position_query, position_key: p and r, in the query's type; both or neither. r has the distances
            keys - 1, keys - 2, ... 1 - queries: keys + queries - 1 of them. None are zero.
        lengths: keys of each sequence; those beyond are seen by no query, whatever its range.
        scale: of the products q . k, such as 1 / sqrt(head_dim); the query is multiplied by it, in its own format.
        softmax: the exact one; `SoftmaxTables`, for inference, in the kernels by blocks (`online`); or, for "reference"
            and "xla", any function of scores (*batch, heads, queries, keys) and a mask that broadcasts against them.
        chunks: (chunk_size, num_left_chunks) where they are known before tracing, the first at least 1, the second at
            least 0. No key outside them is attended, whatever the rows say, and "xla" works on that band alone.
        implementation: "reference", "xla", "mosaic_gpu", "mosaic_tpu", or None: see `kernels.implementation`.

    Returns:
        in the query's type; products are added up in float32.

    Raises:
        ValueError: for shapes or types that do not fit together.
        Unsupported: the implementation named does not run here, or not with these arguments.
    """
    bias = jnp.zeros((query.shape[-2], 1)) if relative_bias is None and position_query is None else relative_bias
    _check(query, key, value, reference.Positions(bias, position_query, position_key), key_start, key_end, lengths)
    *batch, num_queries, _, _ = query.shape
    num_keys = key.shape[-3]
    chunks = None if chunks is None else _clipped(chunks, num_keys)
    first, stop = (0, num_keys) if chunks is None else _allowed(chunks, num_queries, num_keys)
    shape = *query.shape[:-1], value.shape[-1]
    if query.size == 0 or value.size == 0:
        return jnp.zeros(shape, query.dtype)
    if lengths is not None:
        stop = jnp.minimum(lengths[..., None], stop)
    rows = (*batch, num_queries)
    start = jnp.broadcast_to(first if key_start is None else jnp.maximum(key_start, first), rows).reshape(
        -1, num_queries
    )
    end = jnp.broadcast_to(stop if key_end is None else jnp.minimum(key_end, stop), rows).reshape(-1, num_queries)
    query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query * scale if scale != 1 else query, key, value))
    if (shared := query.shape[2] // key.shape[2]) > 1:
        key, value = (jnp.repeat(x, shared, axis=2) for x in (key, value))
    if position_query is not None:
        position_query = position_query.reshape(-1, *position_query.shape[-3:])
        position_query = jnp.where((start < end)[..., None, None], position_query, 0)  # may be NaN elsewhere
    arrays = query, key, value, reference.Positions(bias, position_query, position_key), start, end
    out = dispatch("chunked_attention", IMPLEMENTATIONS, implementation, *arrays, softmax, chunks)
    return out.reshape(shape)


def _cleaned(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same function of frames that are zero where nobody sees them, and so are their cotangents.

    Products of matrices multiply what is not seen by zero, and NaN times zero is NaN.
    """

    def attend(query, key, value, positions, start, end, *options):
        lowest, highest = (limit[:, None] for limit in seen_keys(start, end))
        keys = jnp.arange(key.shape[1])
        seen, sees = (a[..., None, None] for a in ((lowest <= keys) & (keys < highest), start < end))
        query, key, value = jnp.where(sees, query, 0), jnp.where(seen, key, 0), jnp.where(seen, value, 0)
        return jnp.where(sees, function(query, key, value, positions, start, end, *options), 0)

    return attend


IMPLEMENTATIONS = {
    "reference": _cleaned(lambda *arguments: reference.chunked_attention(*arguments[:-1])),  # the rows are all it needs
    "xla": _cleaned(xla.chunked_attention),
    "mosaic_gpu": deferred("kernels.chunked_attention.mosaic_gpu", "chunked_attention"),  # cleans its blocks itself
    "mosaic_tpu": _cleaned(deferred("kernels.chunked_attention.mosaic_tpu", "chunked_attention")),
}


def _clipped(chunks: tuple[int, int], num_keys: int) -> tuple[int, int]:
    """The same limit in numbers that are no larger than the sequence."""
    if not all(isinstance(number, numbers.Integral) for number in chunks):
        raise ValueError(f"chunks={chunks} must be integers known before tracing: give None where they are traced")
    chunk_size, num_left_chunks = chunks
    if chunk_size < 1 or num_left_chunks < 0:
        raise ValueError(f"chunks={chunks} must hold at least 1 and at least 0: give None where there is no such limit")
    chunk_size = min(chunk_size, max(num_keys, 1))
    return chunk_size, min(num_left_chunks, -(-num_keys // chunk_size))


def _allowed(chunks: tuple[int, int], num_queries: int, num_keys: int) -> tuple[Array, Array]:
    """The first key that each query may see, and the one past the last."""
    chunk_size, num_left_chunks = chunks
    chunk = jnp.arange(num_keys - num_queries, num_keys) // chunk_size * chunk_size
    return jnp.maximum(chunk - num_left_chunks * chunk_size, 0), jnp.minimum(chunk + chunk_size, num_keys)


def _check(
    query: Array,
    key: Array,
    value: Array,
    positions: reference.Positions,
    key_start: Array | None,
    key_end: Array | None,
    lengths: Array | None,
) -> None:
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 3 or array.ndim != query.ndim:
            raise ValueError(
                f"{name} of shape {array.shape} has {array.ndim} axes, not {max(query.ndim, 3)}: see chunked_attention"
            )
    *batch, num_queries, heads, head_dim = query.shape
    *others, num_keys, kv_heads, key_dim = key.shape
    if value.shape[:-1] != key.shape[:-1] or others != batch or key_dim != head_dim or heads % max(kv_heads, 1):
        raise ValueError(
            f"key {key.shape} and value {value.shape} do not fit query {query.shape}: they may differ in the number of "
            "keys, in a number of heads that divides the query's, and the value in its last axis"
        )
    if num_queries > num_keys:
        raise ValueError(f"{num_queries} queries but {num_keys} keys: the queries must be the last of the keys")
    bias, position_query, position_key = positions
    if bias is not None and (bias.ndim != 2 or bias.shape[0] != heads):
        raise ValueError(f"relative_bias of shape {bias.shape} must be ({heads} heads, 2R + 1)")
    if bias is not None and bias.shape[1] % 2 == 0:
        raise ValueError(f"relative_bias has {bias.shape[1]} distances: give 2R + 1, for -R ... R")
    for name, given, wanted in (
        ("position_query", position_query, (*batch, num_queries, heads)),
        ("position_key", position_key, (max(num_keys + num_queries - 1, 0), heads)),
    ):
        if (position_query is None) != (position_key is None):
            raise ValueError("position_query and position_key belong together: give both or neither")
        if given is not None and (given.shape[:-1] != wanted or given.dtype != query.dtype):
            raise ValueError(
                f"{name} of {given.dtype} {given.shape} must be of {query.dtype} {wanted} and a size of heads"
            )
    if position_query is not None and position_key is not None and position_query.shape[-1] != position_key.shape[-1]:
        raise ValueError(f"position_query {position_query.shape} and position_key {position_key.shape} differ in size")
    rows = (*batch, num_queries)
    for name, given, wanted in (
        ("key_start", key_start, rows),
        ("key_end", key_end, rows),
        ("lengths", lengths, rows[:-1]),
    ):
        if given is not None and given.shape != wanted:
            raise ValueError(f"{name} of shape {given.shape} must be {wanted}, a number for each of them")
    if query.dtype.name not in formats.COMPUTED or not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query is {query.dtype}, key {key.dtype} and value {value.dtype}: give all three in one of "
            f"{', '.join(formats.COMPUTED)} (float8 is for storage: convert it first)"
        )
