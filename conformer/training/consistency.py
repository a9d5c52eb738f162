"""Two views of each utterance that should agree (Yao et al., 2025, "CR-CTC: Consistency regularization on CTC").

Each has masks and dropout of its own. Here the first also sees its whole utterance, and the second its chunks alone:
the same weights teach themselves to do with little context what they do with all.
"""

import jax
import jax.numpy as jnp

from kernels.typing import Array, Float, Int


def two_views(
    batch: int, chunk_size: Int[Array, ""], num_left_chunks: Int[Array, ""]
) -> tuple[Int[Array, "rows 1"], Int[Array, "rows 1"]]:
    """chunk_size and num_left_chunks of 2 `batch` rows: the first half whole, the second half as given."""
    second = jnp.repeat(jnp.array([False, True]), batch)[:, None]
    return jnp.where(second, chunk_size, 0), jnp.where(second, num_left_chunks, -1)


def disagreement(
    first: Float[Array, "batch frames vocab"], second: Float[Array, "batch frames vocab"], lengths: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Half the divergence of each view from the other, in nats, summed over the valid frames of each utterance:

    1/2 sum_t [KL(sg(p_t) || q_t) + KL(sg(q_t) || p_t)], where sg stops the gradient (eq. 3): each view is the other's
    target in turn.
    """
    p, q = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (first, second))

    def from_target(target, other):
        target = jax.lax.stop_gradient(target)
        return jnp.sum(jnp.exp(target) * (target - other), axis=-1)

    inside = jnp.arange(first.shape[1]) < lengths[:, None]
    return 0.5 * jnp.sum(jnp.where(inside, from_target(p, q) + from_target(q, p), 0.0), axis=1)
