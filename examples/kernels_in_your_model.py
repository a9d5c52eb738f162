"""This project's kernels in a model of your own: a vision transformer of NNX modules, a language model in plain JAX.

    python examples/kernels_in_your_model.py

`kernels` needs only JAX and NumPy. Each function runs everywhere. It takes a Pallas kernel where one was measured to be
faster than XLA (`python bench.py kernels --autotune`). Prints how far each model is from one of JAX's own functions.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.chunked_attention import chunked_attention
from kernels.layer_norm import layer_norm, rms_norm
from kernels.lut_softmax import softmax

DIM, HEADS, PATCHES, VOCABULARY = 64, 4, 16, 100


# --------------------------------------------------------------- any NNX model: five lines


class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm, which a model may use in its place: the same parameters."""

    def __call__(self, x: jax.Array) -> jax.Array:
        assert self.scale is not None and self.bias is not None
        return layer_norm(x, self.scale[...], self.bias[...], eps=self.epsilon)


def attention(query, key, value, bias=None, mask=None, **_) -> jax.Array:
    """Attention for nnx.MultiHeadAttention(attention_fn=attention): every query sees every key, without dropout."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", softmax(scores, jnp.ones((), bool)), value)


class VisionTransformer(nnx.Module):
    """Patches (batch, 16, 64) -> logits of 10 classes."""

    def __init__(self, norm: type[nnx.LayerNorm], attention_fn, *, rngs: nnx.Rngs):
        self.norms = nnx.List([norm(DIM, rngs=rngs) for _ in range(3)])
        self.attention = nnx.MultiHeadAttention(HEADS, DIM, attention_fn=attention_fn, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(DIM, 4 * DIM, rngs=rngs), nnx.gelu, nnx.Linear(4 * DIM, DIM, rngs=rngs))
        self.head = nnx.Linear(DIM, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x).mean(axis=1))


# ------------------------------------------------- a language model of plain functions: five lines


def causal_attention(query, key, value, window: int) -> jax.Array:
    """Each token sees itself and the `window` tokens before it; the scores are never stored by the kernels."""
    end = jnp.broadcast_to(jnp.arange(1, query.shape[1] + 1), query.shape[:2])
    no_bias = jnp.zeros((query.shape[2], 1))  # a learned bias for each relative position could stand here
    query = query * query.shape[-1] ** -0.5
    return chunked_attention(query, key, value, no_bias, jnp.maximum(end - 1 - window, 0), end)


def jax_attention(query, key, value, window: int) -> jax.Array:
    """The same by JAX."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, local_window_size=(window, 0))


def jax_rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The same by JAX."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale


def language_model(parameters: dict, tokens: jax.Array, norm=rms_norm, attend=causal_attention) -> jax.Array:
    """Tokens (batch, time) -> logits of the next ones (batch, time, 100): one layer."""
    x = parameters["embedding"][tokens]
    heads = jnp.einsum("btd,dnhe->nbthe", norm(x, parameters["scale"]), parameters["heads"])
    x = x + attend(*heads, window=8).reshape(x.shape) @ parameters["out"]
    return norm(x, parameters["scale"]) @ parameters["embedding"].T


def random_parameters(seed: int) -> dict[str, jax.Array]:
    """Returns random parameters of the language model, by name."""
    shapes = {
        "embedding": (VOCABULARY, DIM),
        "scale": (DIM,),
        "heads": (DIM, 3, HEADS, DIM // HEADS),
        "out": (DIM, DIM),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) / DIM**0.5 for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }


def differences() -> dict[str, float]:
    """Returns the largest difference of each model's logits from those with JAX's functions, over the largest logit."""
    x = jax.random.normal(jax.random.key(1), (2, PATCHES, DIM))
    tokens = jax.random.randint(jax.random.key(2), (2, 24), 0, VOCABULARY)
    parameters = random_parameters(3)
    ours = VisionTransformer(LayerNorm, attention, rngs=nnx.Rngs(0))
    theirs = VisionTransformer(nnx.LayerNorm, nnx.dot_product_attention, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda model, x: model(x))
    logits = {
        "vision transformer": (run(ours, x), run(theirs, x)),
        "language model": (
            jax.jit(language_model)(parameters, tokens),
            jax.jit(functools.partial(language_model, norm=jax_rms_norm, attend=jax_attention))(parameters, tokens),
        ),
    }
    return {name: float(jnp.abs(a - b).max() / jnp.abs(b).max()) for name, (a, b) in logits.items()}


def main() -> None:
    for name, difference in differences().items():
        print(f"{name:<20}{difference:.1e} from JAX's own functions")


if __name__ == "__main__":
    main()
