"""Tensors with shapes and no values: counts what the network computes and moves, operation by operation.

An operation is what a device launches: a product of matrices, or a loop over elements that computes everything up to
the next product. The tests compare the counts with XLA's.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from conformer.model.layouts.layout import Layout, Past, Scale
from conformer.model.norm import LayerNorm


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation; counts of elements, and of the whole batch."""

    module: str  # where it belongs: "feed-forward", ...
    name: str
    matrix: bool = False  # a product of matrices, or a dense convolution: work for a matrix engine
    macs: int = 0  # multiplications with an addition each
    elementwise: int = 0  # other additions, multiplications, comparisons
    transcendental: int = 0  # exponentials, reciprocal roots and the like
    parameters: int = 0  # weights read
    inputs: int = 0  # activations read
    outputs: int = 0  # activations written
    state: int = 0  # elements of a stream's state, read and written
    resident: int = 0  # further activations that are kept meanwhile, such as the residual stream

    @property
    def flops(self) -> int:
        """Operations as XLA counts them: two a multiply-accumulate; transcendental functions are counted apart."""
        return 2 * self.macs + self.elementwise

    @property
    def live(self) -> int:
        """Activations held while it runs; a loop over elements writes over its input."""
        in_place = self.macs == 0
        return self.resident + (max(self.inputs, self.outputs) if in_place else self.inputs + self.outputs)


class Tensor:
    """The shape of a tensor, channels last, and the number of its elements in the whole batch."""

    def __init__(self, batch_size: int, *shape: int):
        self.batch_size, self.shape = batch_size, shape
        self.size = batch_size * math.prod(shape)

    @property
    def rows(self) -> int:
        """Positions, each with all channels."""
        return self.size // self.shape[-1]

    def like(self, *shape: int) -> "Tensor":
        """Returns a tensor of another shape for the same batch."""
        return Tensor(self.batch_size, *shape)


class Counting(Layout):
    """Writes down an `Operation` for each product and each loop, as `execution` would run them.

    Args:
        execution: as `model.execution`: the two differ in what is transposed.
    """

    name = "counting"

    def __init__(self, execution: str):
        self.operations: list[Operation] = []
        self._channels_first = execution == "channels_first"
        self._module, self._residual = "", 0
        self._last: Tensor | None = None  # what the last operation wrote, while further loops can join it

    @contextlib.contextmanager
    def scope(self, name: str, residual: Tensor | None = None) -> Iterator[None]:
        self._module, self._residual = name, 0 if residual is None else residual.size
        self._last = None
        yield

    # ------------------------------------------------------------------ verbs

    def standardise(self, features, mean, scale):
        return self._loop("standardise", features, elementwise=2 * features.size)

    def heard(self, features):
        return self._loop("heard", features, features.like(features.shape[0], 1), elementwise=features.size)

    def weigh(self, x, heard):
        return self._loop("silence", x, elementwise=x.size)

    def at_most_one(self, x):
        return x

    def pad_frequency(self, x, before, after):
        time, bins, channels = x.shape
        return x.like(time, bins + before + after, channels)

    def image(self, features):
        if self._channels_first:
            self._transposes(features.size)
        return features.like(*features.shape, 1)

    def stack(self, x, count):
        time, bins, channels = x.shape
        return x.like(time // count, count * bins, channels)

    def convolve(self, x, kernel, bias, strides):
        *taps, inputs, outputs = kernel.shape
        y = x.like(*_strided(x, taps, strides), outputs)
        macs, parameters = y.size * math.prod(taps) * inputs, kernel.size + outputs
        self._write("dense", x, y, macs=macs, parameters=parameters, matrix=inputs > 1)
        return self._loop("bias", y, elementwise=y.size)

    def filter(self, x, kernel, strides):
        *taps, channels = kernel.shape
        y = x.like(*_strided(x, taps, strides), channels)
        self._write("depthwise", x, y, macs=y.size * math.prod(taps), parameters=kernel.size)
        return y

    def flatten(self, x):
        return x.like(x.shape[0], math.prod(x.shape[1:]))

    def relu(self, x):
        return self._loop("relu", x, elementwise=x.size)

    def swish(self, x):
        return self._loop("swish", x, elementwise=x.size, transcendental=x.size)

    def gate(self, x):
        y = x.like(*x.shape[:-1], x.shape[-1] // 2)
        return self._loop("gate", x, y, elementwise=2 * y.size, transcendental=y.size)

    def subtract(self, x, value):
        return self._loop("subtract", x, elementwise=x.size)

    def add(self, x, y):
        total = self._loop("residual", y, elementwise=y.size)
        self._amend(inputs=self.operations[-1].inputs + x.size, resident=0)
        return total

    def linear(self, module, x, scale: Scale = 1.0):
        if self._channels_first and self._module == "head":
            self._transposes(x.size)  # the encoder hands its frames over as sequences
        inputs, outputs = module.kernel.shape
        y = x.like(*x.shape[:-1], outputs)
        macs, parameters = x.rows * inputs * outputs, (inputs + 1) * outputs
        self._write("linear", x, y, macs=macs, parameters=parameters, matrix=True)
        y = self._loop("bias", y, elementwise=y.size)
        return y if scale == 1.0 else self._loop("scale", y, elementwise=y.size)

    def norm(self, module, x):
        if not isinstance(module, LayerNorm):
            self.lacks(module)
        counts = {"elementwise": 7 * x.size, "transcendental": x.rows, "parameters": 2 * x.shape[-1]}
        self._write("norm", x, x, **counts)
        self._last = x  # a loop that follows can join it
        return x

    def extend(self, past, x):
        self._amend(state=self.operations[-1].state + 2 * past.size)  # read and written
        return x

    def settled(self, x):
        return x.like(x.shape[0] - self.look_ahead, x.shape[1])

    def newest(self, x, count):
        return x

    def pad(self, x, before, after):
        return x

    def depthwise(self, x, kernel, bias=None):
        parameters = kernel.size + (0 if bias is None else bias.size)
        self._write("depthwise", x, x, macs=x.size * kernel.shape[0], parameters=parameters)
        return x if bias is None else self._loop("bias", x, elementwise=x.size)

    def attend(self, module, projected, seen, past: Past | None, positions=None):
        frames, channels = projected.shape[0], projected.shape[1] // 3
        stream = projected.like(frames, channels)
        memory = 0 if past is None else past.key.size
        pairs = projected.batch_size * frames * (frames + memory // (projected.batch_size * channels))
        scores = projected.like(pairs // projected.batch_size, module.num_heads)
        if past is not None:
            self.extend(past.key, projected)
            self.extend(past.value, projected)
        if self._channels_first:
            self._transposes(stream.size)  # the keys
        elif past is not None:  # keys and values to heads first and, with those of the past, back; scores; the result
            self._transposes(2 * stream.size + 2 * (memory + stream.size) + scores.size + stream.size)
        else:
            self._transposes(5 * stream.size)
        if module.positions != "learned":
            self._position_scores(module, stream, scores, past is not None)
        product = {"matrix": True, "macs": pairs * channels, "state": memory}
        self._write("scores", stream, scores, more=stream.size, kept=stream.size, **product)
        softmax = {"elementwise": 6 * scores.size + 3 * pairs, "transcendental": scores.size}
        self._write("softmax", scores, scores, kept=stream.size, **softmax)
        self._write("weighted sum", scores, stream, more=stream.size, **product)
        return stream, None, None

    def _position_scores(self, module, stream: Tensor, scores: Tensor, streaming: bool) -> None:
        """Counts the work of positions: queries times all distances or, where absolute, encodings added to keys."""
        frames, channels = stream.shape
        keys = scores.shape[0] // frames
        if module.positions == "absolute":
            self.linear(module.position, stream.like(keys, channels))
            self._loop("positions", scores, elementwise=2 * stream.batch_size * keys * channels)
            return
        distances = keys + frames - 1
        if not streaming:
            self.linear(module.position, Tensor(1, distances, channels))
        self._loop("position bias", stream, elementwise=stream.size)
        found = stream.like(frames * distances, module.num_heads)
        parameters = distances * channels if streaming else 0
        self._write("position scores", stream, found, macs=found.rows * channels, parameters=parameters, matrix=True)
        self._transposes(found.size)

    def log_softmax(self, x: Tensor) -> None:
        """Counts the log-softmax of the logits, which decoders read."""
        self._loop("log-softmax", x, elementwise=4 * x.size, transcendental=x.size)

    # ------------------------------------------------------------------ operations

    def _write(self, name: str, x: Tensor, y: Tensor, *, more: int = 0, kept: int = 0, **counts: Any) -> None:
        """An operation of its own, with `more` inputs than x, and so much kept beside the residual stream."""
        sizes = {"inputs": x.size + more, "outputs": y.size, "resident": self._residual + kept}
        self.operations.append(Operation(self._module, name, **sizes, **counts))
        self._last = None

    def _loop(self, name: str, x: Tensor, y: Tensor | None = None, **counts: int) -> Tensor:
        """A loop over elements, which joins the loop before it."""
        y = x.like(*x.shape) if y is None else y
        if self._last is x:
            last = self.operations[-1]
            sums = {count: getattr(last, count) + value for count, value in counts.items()}
            self._amend(name=f"{last.name}, {name}", outputs=y.size, **sums)
        else:
            self._write(name, x, y, **counts)
        self._last = y
        return y

    def _amend(self, **changes: Any) -> None:
        self.operations[-1] = dataclasses.replace(self.operations[-1], **changes)

    def _transposes(self, size: int) -> None:
        self.operations.append(Operation(self._module, "transposes", inputs=size, outputs=size))
        self._last = None


def _strided(x: Tensor, taps: list[int], strides: tuple[int, int]) -> list[int]:
    return [(n - t) // s + 1 for n, t, s in zip(x.shape[:2], taps, strides, strict=True)]
