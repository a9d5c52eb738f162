"""The public function; picks the implementation."""

from collections.abc import Callable

from kernels.chunked_attention import reference
from kernels.lut_softmax import softmax as exact_softmax
from kernels.typing import Array, Float, Int


def chunked_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch keys heads head_dim"],
    value: Float[Array, "batch keys heads head_dim"],
    relative_bias: Float[Array, "heads distances"],
    key_start: Int[Array, "batch queries"],
    key_end: Int[Array, "batch queries"],
    *,
    softmax: Callable[[Array, Array], Array] = exact_softmax,
) -> Float[Array, "batch queries heads head_dim"]:
    """Attention of each query to a contiguous range of keys, with a learned bias for each relative position.

        out_i = sum_j softmax_j(q_i . k_j + b[i - j]) v_j,    key_start_i <= j < key_end_i

    The bias depends on i - j alone, so it is one Toeplitz block, the same for every chunk (Raffel et al., 2020, section
    2.1, without buckets): nothing is gathered in a stream, unlike the content-dependent form of Transformer-XL.

    Args:
        query: already scaled by 1 / sqrt(head_dim). The queries are the last `queries` of the keys' positions.
        key, value: the sequence attended to; in a stream, the cache followed by the chunk.
        relative_bias: b for distances -R ... R (2R + 1 of them); larger distances share the outermost.
        key_start, key_end: the range of keys of each query (see `chunk_rows`); an empty range gives zeros.
        softmax: of scores (batch, heads, queries, keys) and a mask that broadcasts against them.
    """
    if relative_bias.shape[1] % 2 == 0:
        raise ValueError(f"relative_bias has {relative_bias.shape[1]} distances: give 2R + 1, for -R ... R")
    if query.shape[1] > key.shape[1]:
        raise ValueError(f"{query.shape[1]} queries but {key.shape[1]} keys: the queries must be the last of the keys")
    return reference.chunked_attention(query, key, value, relative_bias, key_start, key_end, softmax)
