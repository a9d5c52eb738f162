"""The denominator of maximum mutual information: a sum over all sequences of units that the audio could be.

CTC makes the labels l likely. With a prior P over sequences of units, l competes with all others (Bahl et al., 1986;
with the states of CTC: Xiang and Ou, 2019, "CRF-based single-stage acoustic modeling with CTC topology"):

    -ln p(l | x) + weight ln sum over l' of p(l' | x) P(l')

P is a bigram of the units of the training texts. The network need not learn which units follow each other: a language
model knows that better. It learns to tell likely sequences apart.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from conformer.config import ConfigError
from conformer.tokenizer import BLANK, Tokenizer
from kernels.typing import Array, Float, Int

SMOOTHING = 20.0  # counts of the unigram that each row of the bigram gets
MOST_UNITS = 1024  # a frame costs their square


def unit_bigram(tokenizer: Tokenizer, texts: Iterable[str]) -> Float[np.ndarray, "vocab vocab"]:
    """P(next unit | unit). Row BLANK is that of the first unit, column BLANK that of the end.

    Raises ConfigError for more than MOST_UNITS units.
    """
    if tokenizer.vocab_size > MOST_UNITS:
        raise ConfigError(
            f"train.mmi_weight: {tokenizer.vocab_size} units are too many, their bigram is summed over in every frame: "
            f"set it to 0, or tokenizer.vocab_size to at most {MOST_UNITS}"
        )
    counts = np.zeros((tokenizer.vocab_size,) * 2)
    for text in texts:
        units = [BLANK, *tokenizer.encode(text), BLANK]
        np.add.at(counts, (units[:-1], units[1:]), 1)
    unigram = (counts.sum(0) + 1) / (counts.sum() + len(counts))  # no unit is impossible
    counts += SMOOTHING * unigram
    return (counts / counts.sum(1, keepdims=True)).astype(np.float32)


def log_denominator(
    logits: Float[Array, "batch frames vocab"], lengths: Int[Array, " batch"], bigram: Float[Array, "vocab vocab"]
) -> Float[Array, " batch"]:
    """ln sum over l' of p(l' | x) P(l') of each utterance, in nats: at most 0.

    One pass over the frames. Before each, `label[u]` holds the probability of all paths that end on the unit u, and
    `blank[u]` of those that end on a blank behind it; behind each, they are divided by their sum.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32)).transpose(1, 0, 2)
    inside = jnp.arange(len(probabilities))[:, None] < lengths
    repeats = jnp.diagonal(bigram)

    def step(carry, frame):
        (label, blank, log_scale), (y, inside) = carry, frame
        either = label + blank
        # Between two equal units there is a blank.
        entered = jnp.matmul(either, bigram, precision=jax.lax.Precision.HIGHEST) - label * repeats
        new_label = (y * (label + entered)).at[:, BLANK].set(0.0)
        new_blank = y[:, BLANK, None] * either
        total = jnp.sum(new_label + new_blank, axis=-1)  # far above 0, since no row of the bigram has a 0
        new = new_label / total[:, None], new_blank / total[:, None], log_scale + jnp.log(total)
        chosen = (jnp.where(inside.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, carry, strict=True))
        return tuple(chosen), None

    nothing = jnp.zeros(probabilities.shape[1:])
    start = nothing, nothing.at[:, BLANK].set(1.0), jnp.zeros_like(nothing[:, 0])
    (label, blank, log_scale), _ = jax.lax.scan(step, start, (probabilities, inside))
    return log_scale + jnp.log((label + blank) @ bigram[:, BLANK])
