"""The operations that the network is written in: modules call them, and each layout computes them on its tensors."""

import abc
import contextlib
import copy
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kernels.chunked_attention import toeplitz
from kernels.typing import Array, Float

# Tensors of a layout, in its own shapes; the comments give those of `Sequence`.
Image = Any  # (batch, time, frequency, channels), inside a front end
Frames = Any  # (batch, frames, channels), after it
Seen = Any  # which keys each query attends to
Inside = Any  # which frames lie inside their utterance; None = all
Scale = float | tuple[float, ...]  # one factor, or one for each of as many equal parts of the outputs


class Past(NamedTuple):
    """The state that a block keeps of a stream: zeros at the start."""

    key: Any  # of the left context
    value: Any
    inputs: Any  # newest inputs of the depthwise convolution


class Layout(abc.ABC):
    """One way to lay out tensors. A module's `__call__` takes the layout last and holds no tensor operation itself.

    Arguments named `module` hold the parameters, shaped as the trained model has them. What is elementwise is written
    for arrays of JAX. A layout that cannot express a kind of module raises NotImplementedError, which names both.
    """

    name: str
    channel_axis = -1  # of frames
    look_ahead = 0  # frames at the end of a stream's window: its others see them, and they come again with the next

    def looking_ahead[L: "Layout"](self: L, frames: int) -> L:
        """Returns the layout with another `look_ahead`."""
        layout = copy.copy(self)
        layout.look_ahead = frames
        return layout

    def scope(self, name: str, residual: Frames | None = None) -> contextlib.AbstractContextManager:
        """Names the part of the network that the verbs inside belong to; `residual` is kept until its end."""
        del name, residual
        return contextlib.nullcontext()

    def lay_out[M: nnx.Module](self, model: M, num_queries: int, num_keys: int) -> M:
        """Returns a copy of the model for windows of one size, with the terms of positions laid out.

        Args:
            num_queries: encoder frames of a window.
            num_keys: those and the left context.
        """
        model = nnx.clone(model)
        for _, module in list(nnx.iter_modules(model)):
            if (lay_out := getattr(module, "lay_out", None)) is not None:
                lay_out(self, num_queries, num_keys)
        return model

    def position_bias(self, relative_bias: Float[Array, "heads distances"], num_queries: int, num_keys: int) -> Array:
        """The learned bias of each pair of positions; the queries are the last of the keys."""
        return toeplitz(relative_bias, num_queries, num_keys)

    def lacks(self, kind: Any) -> NoReturn:
        """Raises NotImplementedError for a module that the layout cannot express."""
        raise NotImplementedError(
            f"the layout {self.name} cannot express {type(kind).__name__}: add a verb to {type(self).__module__}"
        )

    # ------------------------------------------------------------------ front end

    def standardise(self, features: Any, mean: Float[Array, " mel"], scale: Float[Array, " mel"]) -> Any:
        """(features - mean) scale."""
        return (features - mean) * scale

    def heard(self, features: Any) -> Any:
        """1 for each feature frame of an utterance and 0 for those outside, in which every feature is zero."""
        return jnp.sign(jnp.max(jnp.abs(features), axis=-1, keepdims=True))

    def weigh(self, x: Any, heard: Any) -> Any:
        """x heard: zeros in the place of features, or of frames of an image, that lie outside."""
        return x * heard

    def at_most_one(self, x: Any) -> Any:
        """min(x, 1)."""
        return jnp.minimum(x, 1.0)

    def pad_frequency(self, x: Image, before: int, after: int) -> Image:
        """Zeros before and after all frequencies."""
        return jnp.pad(x, ((0, 0), (0, 0), (before, after), (0, 0)))

    @abc.abstractmethod
    def image(self, features: Any) -> Image:
        """Features as an image of one channel."""

    @abc.abstractmethod
    def stack(self, x: Image, count: int) -> Image:
        """`count` frames side by side along frequency, the earliest first; what is left over at the end is dropped."""

    @abc.abstractmethod
    def convolve(
        self,
        x: Image,
        kernel: Float[Array, "time mel in out"],
        bias: Float[Array, " out"],
        strides: tuple[int, int],
    ) -> Image:
        """A convolution over (time, frequency), without padding."""

    @abc.abstractmethod
    def filter(
        self, x: Image, kernel: Float[Array | np.ndarray, "time mel channels"], strides: tuple[int, int]
    ) -> Image:
        """A convolution over (time, frequency) of each channel by itself, without padding."""

    @abc.abstractmethod
    def flatten(self, x: Image) -> Frames:
        """Frames of all frequencies and channels, for `linear` to join."""

    # ------------------------------------------------------------------ elementwise

    def relu(self, x: Image) -> Image:
        """max(x, 0)."""
        return jax.nn.relu(x)

    def swish(self, x: Frames) -> Frames:
        """x sigmoid(x)."""
        return jax.nn.swish(x)

    def gate(self, x: Frames) -> Frames:
        """a sigmoid(b), where a and b are the halves of the channels."""
        value, gate = jnp.split(x, 2, axis=self.channel_axis)
        return value * jax.nn.sigmoid(gate)

    def add(self, x: Frames, y: Frames) -> Frames:
        """x + y."""
        return x + y

    def subtract(self, x: Frames, value: Float[Array, " channels"]) -> Frames:
        """x - value, at every frame."""
        return x - value

    def mask(self, x: Frames, inside: Inside) -> Frames:
        """Zeros in the place of frames outside their utterance."""
        if inside is not None:
            raise NotImplementedError(f"the layout {self.name} computes whole chunks: it takes no mask of frames")
        return x

    # ------------------------------------------------------------------ channels

    @abc.abstractmethod
    def linear(self, module: Any, x: Any, scale: Scale = 1.0) -> Any:
        """(x W + b) scale at every position, of frames or of an image."""

    @abc.abstractmethod
    def norm(self, module: Any, x: Frames) -> Frames:
        """The normalisation of each frame that `module` holds."""

    def norm_of_sum(self, module: Any, x: Frames, y: Frames) -> Frames:
        """The normalisation of each frame of x + y."""
        return self.norm(module, self.add(x, y))

    # ------------------------------------------------------------------ time

    @abc.abstractmethod
    def extend(self, past: Frames, x: Frames) -> Frames:
        """`past`, then x."""

    @abc.abstractmethod
    def settled(self, x: Frames) -> Frames:
        """The frames before the look-ahead."""

    @abc.abstractmethod
    def newest(self, x: Frames, count: int) -> Frames:
        """The last `count` frames before the look-ahead."""

    def pad(self, x: Frames, before: int, after: int) -> Frames:
        """Zeros before and after all frames."""
        raise NotImplementedError(f"the layout {self.name} computes streams: it pads no frames")

    @abc.abstractmethod
    def depthwise(
        self, x: Frames, kernel: Float[Array, "taps channels"], bias: Float[Array, " channels"] | None = None
    ) -> Frames:
        """A convolution in time of each channel by itself, without padding."""

    @abc.abstractmethod
    def attend(
        self, module: Any, projected: Frames, seen: Seen, past: Past | None, positions: Frames | None = None
    ) -> tuple[Frames, Any, Any]:
        """Attention of every head, from queries (scaled), keys and values side by side, and `positions` of the keys.

        This verb alone differs in structure from layout to layout: how heads are split and where keys are transposed
        is what the layouts are for.

        Returns:
            the heads' outputs side by side, and the next `Past.key` and `Past.value`, which hold nothing of the
            look-ahead; of no use without a past.
        """
