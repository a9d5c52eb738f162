"""Connectionist temporal classification (Graves et al., 2006, "Connectionist Temporal Classification: Labelling
Unsegmented Sequence Data with Recurrent Neural Networks", ICML), with its analytic gradient.

The labels l are extended with blanks to l' = (b, l_1, b, l_2, ..., l_U, b), whose 2U + 1 entries are the states s of a
left-to-right automaton: it stays, moves on by one, or skips the blank between two different labels. With y_t the
softmax of frame t, and beta by the same rule as alpha but from the end backwards (section 4.1),

    alpha_t(s) = y_t(l'_s) (alpha_{t-1}(s) + alpha_{t-1}(s-1) [+ alpha_{t-1}(s-2)])
    p(l | x)   = alpha_T(2U+1) + alpha_T(2U)                                            (eq. 8)
    gamma_t(s) = alpha_t(s) beta_t(s) / y_t(l'_s), normalised over s
    -d ln p(l | x) / d logits_t(k) = y_t(k) - sum over s with l'_s = k of gamma_t(s)    (eq. 16)

Since beta is alpha of the mirrored frames and labels, one scan over twice the batch computes both.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

from conformer.tokenizer import BLANK
from kernels.typing import Array, Float, Int

# Stands for log 0: finite, so that sums and differences of it are never NaN.
LOG_ZERO = -1e30


@jax.custom_vjp
def ctc_loss(
    logits: Float[Array, "batch frames vocab"],
    logit_lengths: Int[Array, "batch"],
    labels: Int[Array, "batch labels"],
    label_lengths: Int[Array, "batch"],
) -> Float[Array, "batch"]:
    """Negative log likelihood of each utterance's labels, in nats: -ln p(labels | logits), at least 0.

    Logits need no normalisation; everything is computed in float32, whatever their format. Labels are ids other than
    BLANK. Frames and labels beyond the lengths have no effect, and no gradient. No labels means all frames blank; no
    labels in no frames cost 0. Labels that do not fit (`logit_lengths < min_frames(labels)`) cost +inf and give zero
    gradient: leave them out of a mean.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    emissions, skips = _automaton(log_probs, labels)
    active = _active(logits.shape[1], logit_lengths)
    final, _ = _scan(jnp.zeros_like(label_lengths), emissions, skips, active)
    return _nll(final, label_lengths)


def min_frames(labels: Sequence[int]) -> int:
    """The fewest frames that can spell `labels`: one for each, and a blank between equal neighbours."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def _forward(logits, logit_lengths, labels, label_lengths):
    """The loss, and its gradient as the residual: the backward pass is then one product."""
    batch, num_frames, _ = logits.shape
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    emissions, skips = _automaton(log_probs, labels)
    active = _active(num_frames, logit_lengths)

    def mirror(array):
        return jnp.flip(array, (0, -1))

    # Mirrored, padding comes first: the automaton waits in its start state, which lies behind the padding labels.
    starts = jnp.concatenate([jnp.zeros_like(label_lengths), 2 * (labels.shape[1] - label_lengths)])
    final, states = _scan(
        starts,
        jnp.concatenate([emissions, mirror(emissions)], axis=1),
        jnp.concatenate([skips, jnp.roll(jnp.flip(skips, -1), 2, axis=-1)]),
        jnp.concatenate([active, jnp.flip(active, 0)], axis=1),
    )
    loss = _nll(jax.tree.map(lambda array: array[:batch], final), label_lengths)

    # Normalising each frame on its own cancels the scales of alpha and beta, and the rounding of both scans.
    alpha, beta = states[:, :batch], mirror(states[:, batch:])
    gamma = jax.nn.softmax(alpha + beta - emissions)
    # A product rather than a scatter, whose order of additions is not fixed on a GPU.
    units = jax.nn.one_hot(labels, logits.shape[-1])
    occupancy = jnp.einsum("tbu,buv->btv", gamma[:, :, 1::2], units, precision=jax.lax.Precision.HIGHEST)
    occupancy = occupancy.at[:, :, BLANK].add(gamma[:, :, ::2].sum(-1).T)
    used = active.T & ~jnp.isinf(loss)[:, None]
    gradient = jnp.where(used[:, :, None], jnp.exp(log_probs) - occupancy, 0.0)
    return loss, (gradient, jnp.zeros(0, logits.dtype))


def _backward(residuals, cotangent):
    gradient, like = residuals
    # Rounded only here: with float16 logits, a loss scale in `cotangent` lifts what would underflow.
    return (gradient * cotangent[:, None, None]).astype(like.dtype), None, None, None


ctc_loss.defvjp(_forward, _backward)


def _automaton(log_probs, labels):
    """ln y_t(l'_s) as [frames, batch, states], and which states can be entered by a skip as [batch, states]."""
    labels = jnp.clip(labels, 0, log_probs.shape[-1] - 1)  # padding may be any number
    batch, num_labels = labels.shape
    states = jnp.full((batch, 2 * num_labels + 1), BLANK, labels.dtype).at[:, 1::2].set(labels)
    emissions = jnp.take_along_axis(log_probs, states[:, None, :], axis=2)
    skips = (states != BLANK) & (states != jnp.roll(states, 2, axis=1)) & (jnp.arange(states.shape[1]) > 2)
    return jnp.maximum(emissions, LOG_ZERO).transpose(1, 0, 2), skips


def _active(num_frames, logit_lengths):
    """Returns which frames count, as [frames, batch]."""
    return jnp.arange(num_frames)[:, None] < logit_lengths


def _scan(starts, emissions, skips, active):
    """Runs the automata. Returns ((states, scale) after the last active frame, states after every frame).

    States are logarithms relative to `scale`, which holds the largest of each frame: they stay small, hence exact.
    """

    def step(carry, frame):
        states, scale = carry
        emission, active = frame
        moved, skipped = _shift(states, 1), jnp.where(skips, _shift(states, 2), LOG_ZERO)
        top = jnp.maximum(jnp.maximum(states, moved), skipped)
        total = jnp.exp(states - top) + jnp.exp(moved - top) + jnp.exp(skipped - top)
        entered = top + jnp.log(total) + emission
        largest = entered.max(axis=-1)
        states = jnp.where(active[:, None], entered - largest[:, None], states)
        return (states, scale + jnp.where(active, largest, 0.0)), states

    positions = jnp.arange(emissions.shape[-1])
    states = jnp.where(positions == starts[:, None], 0.0, LOG_ZERO).astype(emissions.dtype)
    return jax.lax.scan(step, (states, jnp.zeros_like(states[:, 0])), (emissions, active))


def _shift(states, by):
    """Moves states on by 1 or 2; the first ones have no predecessor."""
    return jnp.pad(states, ((0, 0), (by, 0)), constant_values=LOG_ZERO)[:, :-by]


def _nll(final, label_lengths):
    """-ln p(labels), eq. 8, from the states after the last frame."""
    states, scale = final
    # Ends are the last label and the blank behind it; no labels have but the blank.
    positions = jnp.arange(states.shape[1]) - 2 * label_lengths[:, None]
    ends = jnp.where((positions == 0) | (positions == -1), states, LOG_ZERO)
    nll = -(scale + jax.nn.logsumexp(ends, axis=1))
    return jnp.where(nll > -LOG_ZERO / 2, jnp.inf, jnp.maximum(nll, 0.0))
