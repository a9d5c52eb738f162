"""What attention is told: the keys that each query sees, the blocks that hold them, and the bias between two blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.chunked_attention import chunk_rows, mosaic_tpu, reference
from kernels.chunked_attention.blocks import UNSEEN, Diagonals, key_blocks, query_blocks
from kernels.implementation import Unsupported
from tests.implementations import normal

few = settings(max_examples=4, derandomize=True)


@settings(max_examples=10)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 4))
def test_toeplitz_is_the_bias_of_each_distance(num_queries, more_keys, largest):
    num_keys, bias = num_queries + more_keys, normal(num_queries, 2, 2 * largest + 1)
    result = np.asarray(reference.toeplitz(bias, num_queries, num_keys))
    bias = np.asarray(bias)
    for i in range(num_queries):
        for j in range(num_keys):
            distance = np.clip(more_keys + i - j, -largest, largest)  # the queries are the last of the keys
            np.testing.assert_array_equal(result[:, i, j], bias[:, distance + largest])


@settings(max_examples=12)
@given(
    st.integers(1, 20),
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.integers(0, 25),
    st.integers(-1, 3),
)
def test_chunk_rows_are_the_chunks(num_frames, lengths, chunk_size, num_left_chunks):
    rows = chunk_rows(num_frames, jnp.asarray(lengths), chunk_size, num_left_chunks)
    start, end = map(np.asarray, rows)
    size = chunk_size or num_frames
    for row, length in enumerate(np.minimum(lengths, num_frames)):
        for i in range(num_frames):
            seen = {
                j
                for j in range(length)
                if j // size <= i // size and (num_left_chunks < 0 or j // size >= i // size - num_left_chunks)
            }
            assert set(range(start[row, i], end[row, i])) == (seen if i < length else set())


def test_chunk_rows_take_traced_chunks():
    lengths = jnp.array([9, 4])
    traced = jax.jit(lambda size, left: chunk_rows(9, lengths, size, left))
    for size, left in [(0, -1), (4, 1), (3, 0)]:
        for mine, constant in zip(traced(size, left), chunk_rows(9, lengths, size, left), strict=True):
            np.testing.assert_array_equal(mine, constant)


@few
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=12, max_size=12),
    block=st.sampled_from([2, 3, 4]),
)
def test_blocks_are_the_smallest_ranges_that_hold_what_is_seen(rows, block):
    start, end = (jnp.asarray(row, jnp.int32)[None] for row in zip(*rows, strict=True))
    first, last, whole_first, whole_last = key_blocks(start, end, block)
    num_key_blocks = -(-20 // block)
    from_query, to_query = query_blocks(first, last, num_key_blocks)
    seen = [
        {key // block for i in range(a * block, (a + 1) * block) for key in range(rows[i][0], rows[i][1])}
        for a in range(12 // block)
    ]
    for a, blocks in enumerate(seen):
        got = range(int(first[0, a]), int(last[0, a]))
        assert (got[0], got[-1]) == (min(blocks), max(blocks)) if blocks else len(got) == 0
        queries = [set(range(*rows[i])) for i in range(a * block, (a + 1) * block)]
        whole = [b for b in range(num_key_blocks) if all(set(range(b * block, (b + 1) * block)) <= q for q in queries)]
        assert list(range(int(whole_first[0, a]), int(whole_last[0, a]))) == whole
        assert (int(whole_first[0, a]) == UNSEEN) == (not all(queries))
    for b in range(num_key_blocks):
        got = range(int(from_query[0, b]), int(to_query[0, b]))
        meeting = [a for a, blocks in enumerate(seen) if blocks and min(blocks) <= b <= max(blocks)]
        assert (got[0], got[-1]) == (meeting[0], meeting[-1]) if meeting else len(got) == 0


def test_a_tpu_takes_a_step_for_each_pair_of_blocks_and_one_for_a_block_that_sees_nothing():
    first, last = jnp.array([[0, 0, 1, 2], [0, 0, 0, 0]]), jnp.array([[1, 2, 5, 3], [5, 0, 1, 0]])
    steps = mosaic_tpu._Steps(first, last, 5)
    numbers, *_ = steps.scalars
    taken = [tuple(map(int, steps.at(step, numbers))) for step in range(int(steps.count))]
    wanted = [
        (b, i, j)
        for b, i in np.ndindex(2, 4)
        for j in range(int(first[b, i]), max(int(last[b, i]), int(first[b, i]) + 1))
    ]
    assert taken == wanted and len(taken) == 16  # 2 x 4 x 5 = 40 by the longest range
    with pytest.raises(Unsupported, match=r"pairs of blocks in 2 sequences.*'xla'"):
        mosaic_tpu._Steps(first, last, 2**15)


@few
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 30), st.sampled_from([4, 8]))
def test_a_few_tiles_are_the_bias_of_every_pair_of_blocks(num_queries, more_keys, largest, block):
    num_keys, bias = num_queries + more_keys, normal(largest, 2, 2 * largest + 1)
    reach = largest + block - 1
    diagonals = Diagonals(num_queries, num_keys, -reach, reach, block)
    tiles = np.asarray(diagonals.tiles(diagonals.rows(reference.Positions(bias))))
    assert tiles.shape[1] <= 2 * (largest // block + 3)
    whole = np.asarray(reference.toeplitz(bias, num_queries, num_keys))
    query_block, key_block = np.arange(-(-num_queries // block))[:, None], np.arange(-(-num_keys // block))
    for (a, b), index in np.ndenumerate(diagonals.index(query_block, key_block)):
        part = whole[:, a * block :, b * block :][:, :block, :block]
        tile = tiles[:, index]
        np.testing.assert_array_equal(tile[:, : part.shape[1], : part.shape[2]], part)
