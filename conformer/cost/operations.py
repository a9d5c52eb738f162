"""The operations of a model, counted from its configuration: arithmetic, parameters, activations, state.

An independent account of `conformer/model`: nothing is traced, and the tests compare it with what XLA counts. An
operation here is what a device launches: a product of matrices, or a loop over elements that computes everything up to
the next product.
"""

import dataclasses
from collections.abc import Iterator

from conformer.config import Config, ModelConfig
from conformer.model.feed_forward import slice_size
from conformer.model.subsampling import output_lengths, stages, window_length


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is computed at once: a chunk of each of some streams, or some whole utterances."""

    batch_size: int
    feature_frames: int  # of each, the frames that windows overlap by included
    frames: int  # encoder frames of each
    past: int  # frames of left context that a stream keeps; 0 for whole utterances
    seconds: float  # of audio, of all of them together
    streaming: bool

    @classmethod
    def chunk(cls, config: Config, chunk_size: int, num_left_chunks: int, batch_size: int = 1) -> "Workload":
        """The next chunk of each of `batch_size` streams, whose left context is full."""
        factor = config.model.subsampling_factor
        window = window_length(chunk_size, factor)
        seconds = batch_size * chunk_size * factor * config.features.frame_shift_ms / 1000
        return cls(batch_size, window, chunk_size, chunk_size * num_left_chunks, seconds, True)

    @classmethod
    def utterance(cls, config: Config, seconds: float, batch_size: int = 1) -> "Workload":
        """Whole utterances of so many seconds each, every frame attending to every other."""
        feature_frames = round(1000 * seconds / config.features.frame_shift_ms)
        frames = int(output_lengths(feature_frames, config.model.subsampling_factor))
        return cls(batch_size, feature_frames, frames, 0, batch_size * seconds, False)


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
    again: int = 0  # weights read that another operation has read before
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


MODULES = ("front end", "feed-forward", "attention", "convolution", "norm", "head")


def operations(config: Config, workload: Workload) -> list[Operation]:
    """All operations of normalisation, encoder, head and log-softmax in their order."""
    model = config.model
    found = [*_front_end(config, workload)]
    for _ in range(model.num_layers):
        found += _block(model, workload)
    return [*found, *_head(model, workload)]


def num_parameters(config: Config) -> int:
    """Trained parameters."""
    position_biases = config.model.num_layers * config.model.num_heads * (2 * config.model.max_relative_distance + 1)
    workload = Workload.chunk(config, 1, 0)
    return sum(operation.parameters for operation in operations(config, workload)) + position_biases


def state_elements(config: Config, workload: Workload) -> int:
    """Elements of one stream's state, the count of its frames left out."""
    model = config.model
    return model.num_layers * model.encoder_dim * (2 * workload.past + model.kernel_size - 1)


def _front_end(config: Config, workload: Workload) -> Iterator[Operation]:
    name, model, batch = "front end", config.model, workload.batch_size
    time, bins, channels = workload.feature_frames, config.features.num_mel_bins, 1
    size = batch * time * bins
    yield Operation(name, "normalise", elementwise=2 * size, inputs=size, outputs=size)
    if model.execution == "channels_first":
        yield _transposes(name, size + batch * workload.frames * model.encoder_dim)  # in, and out at the end
    for index, ((time_taps, bin_taps), (time_stride, bin_stride)) in enumerate(stages(model)):
        time, bins = (time - time_taps) // time_stride + 1, (bins - bin_taps) // bin_stride + 1
        width, taps = model.subsampling_channels, time_taps * bin_taps
        before, size = size, batch * time * bins * width
        if index > 0 and model.subsampling == "depthwise_separable":
            kernel = taps * width
            yield Operation(name, "depthwise", macs=size * taps, parameters=kernel, inputs=before, outputs=size)
            yield _linear(name, "pointwise", batch * time * bins, width, width)
        else:
            yield Operation(
                name,
                "dense",
                matrix=channels > 1,
                macs=size * taps * channels,
                parameters=width * (taps * channels + 1),
                inputs=before,
                outputs=size,
            )
        yield Operation(name, "bias, relu", elementwise=2 * size, inputs=size, outputs=size)
        channels = width
    yield _linear(name, "projection", batch * workload.frames, bins * channels, model.encoder_dim)
    rows = batch * workload.frames * model.encoder_dim
    yield Operation(name, "bias", elementwise=rows, inputs=rows, outputs=rows)


def _block(model: ModelConfig, workload: Workload) -> Iterator[Operation]:
    yield from _feed_forward(model, workload)
    yield from _attention(model, workload)
    yield from _convolution(model, workload)
    yield from _feed_forward(model, workload)
    yield _norm("norm", workload, model.encoder_dim, resident=False)


def _feed_forward(model: ModelConfig, workload: Workload) -> Iterator[Operation]:
    name, dim, hidden = "feed-forward", model.encoder_dim, model.feed_forward_dim
    batch, frames = workload.batch_size, workload.frames
    stream = batch * frames * dim
    yield _norm(name, workload, dim)
    size = slice_size(batch, frames, hidden, model.cache_bytes)
    for index, start in enumerate(range(0, frames, size)):
        rows = batch * min(size, frames - start)
        wide = rows * hidden
        parts = (
            _linear(name, "expand", rows, dim, hidden, stream),
            Operation(
                name,
                "bias, swish",
                elementwise=2 * wide,
                transcendental=wide,
                inputs=wide,
                outputs=wide,
                resident=stream,
            ),
            _linear(name, "contract", rows, hidden, dim, stream),
        )
        # Parameters are those of the first slice; the others read them again.
        yield from parts if index == 0 else (dataclasses.replace(p, parameters=0, again=p.parameters) for p in parts)
    yield Operation(name, "bias, residual", elementwise=3 * stream, inputs=2 * stream, outputs=stream)


def _attention(model: ModelConfig, workload: Workload) -> Iterator[Operation]:
    name, dim, batch = "attention", model.encoder_dim, workload.batch_size
    rows, keys = batch * workload.frames, workload.past + workload.frames
    stream, memory = rows * dim, batch * workload.past * dim
    pairs = rows * keys  # of queries and keys
    scores = model.num_heads * pairs
    yield _norm(name, workload, dim)
    yield _linear(name, "query, key, value", rows, dim, 3 * dim, stream)
    yield Operation(
        name,
        "bias, scale, state",
        elementwise=4 * stream,
        inputs=3 * stream,
        outputs=3 * stream,
        state=4 * memory,
        resident=stream,
    )
    if model.execution == "channels_first":
        yield _transposes(name, stream)  # the keys
    elif workload.streaming:  # keys and values to heads first and, with those of the past, back; scores; the result
        yield _transposes(name, 2 * stream + 2 * (memory + stream) + scores + stream)
    else:
        yield _transposes(name, 5 * stream)
    for product, inputs, outputs in (("scores", 2 * stream, scores), ("weighted sum", stream + scores, stream)):
        if product == "weighted sum":
            yield Operation(
                name,
                "softmax",
                elementwise=6 * scores + 3 * pairs,
                transcendental=scores,
                inputs=scores,
                outputs=scores,
                resident=2 * stream,
            )
        yield Operation(
            name,
            product,
            matrix=True,
            macs=pairs * dim,
            inputs=inputs,
            outputs=outputs,
            state=memory,
            resident=2 * stream if product == "scores" else stream,
        )
    yield _linear(name, "output", rows, dim, dim, stream)
    yield Operation(name, "bias, residual", elementwise=2 * stream, inputs=2 * stream, outputs=stream)


def _convolution(model: ModelConfig, workload: Workload) -> Iterator[Operation]:
    name, dim, taps = "convolution", model.encoder_dim, model.kernel_size
    rows = workload.batch_size * workload.frames
    stream = rows * dim
    past = workload.batch_size * (taps - 1) * dim if workload.streaming else 0
    yield _norm(name, workload, dim)
    yield _linear(name, "gate", rows, dim, 2 * dim, stream)
    yield Operation(
        name,
        "bias, gate, state",
        elementwise=4 * stream,
        transcendental=stream,
        inputs=2 * stream,
        outputs=stream,
        state=2 * past,
        resident=stream,
    )
    yield Operation(
        name,
        "depthwise",
        macs=stream * taps,
        parameters=taps * dim,
        inputs=stream,
        outputs=stream,
        resident=stream,
    )
    norm = _norm(name, workload, dim)
    yield dataclasses.replace(
        norm,
        name="norm, swish",
        elementwise=norm.elementwise + stream,
        transcendental=norm.transcendental + stream,
    )
    yield _linear(name, "output", rows, dim, dim, stream)
    yield Operation(name, "bias, residual", elementwise=2 * stream, inputs=2 * stream, outputs=stream)


def _head(model: ModelConfig, workload: Workload) -> Iterator[Operation]:
    rows = workload.batch_size * workload.frames
    size = rows * model.vocab_size
    yield _linear("head", "head", rows, model.encoder_dim, model.vocab_size)
    yield Operation("head", "bias, log-softmax", elementwise=5 * size, transcendental=size, inputs=size, outputs=size)


def _linear(module: str, name: str, rows: int, inputs: int, outputs: int, resident: int = 0) -> Operation:
    """The product; the bias is added, and its elements are counted, by the operation that follows."""
    return Operation(
        module,
        name,
        matrix=True,
        macs=rows * inputs * outputs,
        parameters=(inputs + 1) * outputs,
        inputs=rows * inputs,
        outputs=rows * outputs,
        resident=resident,
    )


def _transposes(module: str, size: int) -> Operation:
    return Operation(module, "transposes", inputs=size, outputs=size)


def _norm(module: str, workload: Workload, dim: int, *, resident: bool = True) -> Operation:
    rows = workload.batch_size * workload.frames
    size = rows * dim
    return Operation(
        module,
        "norm",
        elementwise=7 * size,
        transcendental=rows,
        parameters=2 * dim,
        inputs=size,
        outputs=size,
        resident=size if resident else 0,
    )
