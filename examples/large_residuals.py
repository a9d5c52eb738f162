"""A language model and a vision transformer of plain NNX modules, with residual streams as large as published ones.

    python examples/large_residuals.py

Large models write a few enormous values into fixed channels of their residual stream ("massive activations", Sun et
al., 2024): peaks from 1e2 to 3e5 are published. A normalisation squares them and adds up, which overflows float16 from
about 256 on. Prints the relative error of the logits of an emulated float16 device, with and without the repairs of
docs/numerics.md (some minutes, all compilation). The models are untrained. The last peak exceeds float16 itself: there,
the stream is scaled down first, which does not change the function.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.numerics import apply_policy, scale_stream

DIM, HEADS, LAYERS, CHANNEL = 64, 4, 2, 17


class Block(nnx.Module):
    """x += attention(norm(x));  x += MLP(norm(x))."""

    def __init__(self, norm: type[nnx.RMSNorm] | type[nnx.LayerNorm], attention_fn, *, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = norm(DIM, rngs=rngs), norm(DIM, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, DIM, attention_fn=attention_fn, decode=False, rngs=rngs)
        self.expand, self.contract = nnx.Linear(DIM, 4 * DIM, rngs=rngs), nnx.Linear(4 * DIM, DIM, rngs=rngs)

    def __call__(self, x: jax.Array, is_causal: bool) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), is_causal=is_causal)
        return x + self.contract(jax.nn.silu(self.expand(self.mlp_norm(x))))


class LanguageModel(nnx.Module):
    """Tokens (batch, time) -> logits of the next ones: decoder only, RMSNorm, rotary positions."""

    def __init__(self, vocab_size: int = 100, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocab_size, DIM, rngs=rngs)
        self.rope = nnx.RoPE()
        rotary = functools.partial(nnx.dot_product_attention_with_rope, rope=self.rope)
        self.blocks = nnx.List([Block(nnx.RMSNorm, rotary, rngs=rngs) for _ in range(LAYERS)])
        self.norm = nnx.RMSNorm(DIM, rngs=rngs)
        self.head = nnx.Linear(DIM, vocab_size, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, is_causal=True)
        return self.head(self.norm(x))


class VisionTransformer(nnx.Module):
    """Images (batch, 32, 32, 3) -> logits of classes: patches by a convolution, LayerNorm."""

    def __init__(self, num_classes: int = 10, *, rngs: nnx.Rngs):
        self.embed = nnx.Conv(3, DIM, (8, 8), strides=8, rngs=rngs)
        self.positions = nnx.Embed(16, DIM, rngs=rngs)
        self.blocks = nnx.List([Block(nnx.LayerNorm, nnx.dot_product_attention, rngs=rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.head = nnx.Linear(DIM, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.embed(images)
        x = x.reshape(len(x), -1, DIM) + self.positions(jnp.arange(16))
        for block in self.blocks:
            x = block(x, is_causal=False)
        return self.head(self.norm(x).mean(axis=1))


def add_peak(model: LanguageModel | VisionTransformer, peak: float) -> None:
    """The first block writes `peak` into one channel for good, and norms give the others their usual size.

    A LayerNorm would subtract that channel's share of the mean from all others: its negative, in a second channel,
    keeps the mean where it was.
    """
    peaks = jnp.zeros(DIM).at[CHANNEL].set(peak)
    if isinstance(model, VisionTransformer):
        peaks = peaks.at[CHANNEL + 1].set(-peak)
    first = model.blocks[0].contract
    assert first.bias is not None
    first.bias[...] += peaks
    for norm in readers(model)[2:]:
        assert norm.scale is not None
        norm.scale[...] = jnp.where(peaks != 0, 1.0, jnp.sqrt(jnp.mean(jnp.square(peaks))))


def writers(model: LanguageModel | VisionTransformer) -> list[nnx.Module]:
    """Layers that write to the residual stream."""
    embeddings = [model.embed, model.positions] if isinstance(model, VisionTransformer) else [model.embed]
    return [*embeddings, *(layer for block in model.blocks for layer in (block.attention.out, block.contract))]


def readers(model: LanguageModel | VisionTransformer) -> list:
    """Normalisations that read the residual stream."""
    return [*(norm for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)), model.norm]


def relative_error(model: nnx.Module, numerics: str, inputs: jax.Array) -> float:
    """|logits - float32 logits| / |float32 logits|, not a number where an operation overflowed."""
    exact = nnx.jit(lambda model: model(inputs))(model)
    narrow = nnx.jit(lambda model: model(inputs))(apply_policy(model, numerics))
    return float(jnp.linalg.norm(narrow - exact) / jnp.linalg.norm(exact))


def example_inputs() -> dict[type, jax.Array]:
    """Returns an input for each model."""
    return {
        LanguageModel: jax.random.randint(jax.random.key(0), (2, 24), 0, 100),
        VisionTransformer: jax.random.normal(jax.random.key(1), (2, 32, 32, 3)),
    }


def main() -> None:
    print(f"{'model':<20}{'peak':>8}{'naive float16':>16}{'stabilised':>12}")
    for make, inputs in example_inputs().items():
        for peak in (1e2, 3e3, 3e4, 3e5):
            model = make(rngs=nnx.Rngs(0))
            add_peak(model, peak)
            if peak > 6e4:
                scale_stream(writers(model), readers(model), 2.0**-4)
            errors = [relative_error(model, numerics, inputs) for numerics in ("edge_fp16_naive", "edge_fp16")]
            print(f"{make.__name__:<20}{peak:8.0e}{errors[0]:16.1%}{errors[1]:12.2%}")


if __name__ == "__main__":
    main()
