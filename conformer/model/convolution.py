"""The convolution module: a gated point-wise layer, a depthwise convolution in time, a point-wise layer."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from conformer.config import ModelConfig
from conformer.model.layouts.layout import Frames, Inside, Layout
from conformer.model.linear import linear
from conformer.model.norm import BatchNorm, LayerNorm, make_norm
from kernels.typing import Array, Float


class Convolution(nnx.Module):
    """y = swish(norm(depthwise(GLU(LayerNorm(x) W1)))) W2 (Gulati et al., 2020, section 2.2).

    `model.convolution_norm` names the norm: LayerNorm, whose result depends neither on padding nor on the batch, or the
    paper's BatchNorm, which costs nothing where nothing is trained.

    With `model.pad_before_gate` the frames before an utterance are zeros where they enter W1, so that the convolution
    sees GLU(b1) of them, `_silence` here. It is taken off the convolution's inputs, which are then zeros there as ever,
    and its response is added to the results.
    """

    def __init__(self, config: ModelConfig, *, compute: str, rngs: nnx.Rngs):
        dim, taps = config.encoder_dim, config.kernel_size
        context = taps - 1
        self.margin = (context, 0) if config.causal_conv else (context // 2, context // 2)
        self.norm = LayerNorm(dim, config)
        self.gate = linear(dim, 2 * dim, compute=compute, rngs=rngs)
        self.pad_before_gate = config.pad_before_gate
        self.bias = nnx.Param(jnp.zeros(dim)) if config.convolution_bias else nnx.data(None)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (taps, dim)) * taps**-0.5)
        eps = config.convolution_norm_eps or config.norm_eps
        self.middle_norm = make_norm(config.convolution_norm, dim, dataclasses.replace(config, norm_eps=eps))
        self.output = linear(dim, dim, compute=compute, rngs=rngs)

    def __call__(
        self, x: Frames, inside: Inside, past: Frames | None, layout: Layout, training: bool = False
    ) -> tuple[Frames, Frames]:
        """Convolves `past` followed by x.

        Args:
            inside: frames past the end of an utterance count as zeros.
            past: the newest kernel_size - 1 inputs of the depthwise convolution; None = zeros.

        Returns:
            the output, and the newest inputs of the depthwise convolution.
        """
        inputs = layout.gate(layout.linear(self.gate, layout.norm(self.norm, x)))
        if self.pad_before_gate:
            inputs = layout.subtract(inputs, self._silence())
        inputs = layout.mask(inputs, inside)
        inputs = layout.pad(inputs, *self.margin) if past is None else layout.extend(past, inputs)
        y = layout.swish(self._filter(inputs, inside, layout, training))
        return layout.linear(self.output, y), layout.newest(inputs, self.kernel.shape[0] - 1)

    def _filter(self, inputs: Frames, inside: Inside, layout: Layout, training: bool) -> Frames:
        norm, kernel = self.middle_norm, self.kernel[...]
        bias = None if self.bias is None else self.bias[...]
        if self.pad_before_gate:
            response = self._silence() * jnp.sum(kernel, axis=0)
            bias = response if bias is None else bias + response
        if not isinstance(norm, BatchNorm):
            return layout.norm(norm, layout.depthwise(inputs, kernel, bias))
        if training:
            return norm.of_batch(layout.depthwise(inputs, kernel, bias), inside, layout.channel_axis)
        return layout.depthwise(inputs, *norm.fold(kernel, bias))

    def _silence(self) -> Float[Array, " channels"]:
        """GLU(b1): what the gate makes of zeros."""
        assert self.gate.bias is not None
        value, gate = jnp.split(self.gate.bias[...], 2)
        return value * jax.nn.sigmoid(gate)
