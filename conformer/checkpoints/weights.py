"""Makes the parameters of the one network from the tensors of a checkpoint.

Some terms have no option in the network and are multiplied into its weights, which changes nothing but rounding: the
scale of the encoder's input, u of attention, and the bias of a depthwise convolution before a map over channels. Biases
that a configuration turns off are zeros.
"""

import dataclasses

import numpy as np

from conformer.checkpoints.names import Names
from conformer.checkpoints.tensors import Tensors
from conformer.checkpoints.units import blank_first
from conformer.config import Config
from conformer.model.subsampling import FREQUENCY_PADDING, SQUARES

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint as its reader hands it over, beside the configuration.

    Args:
        blank: its place among the checkpoint's units.
        input_scale: the factor of the encoder's input.
        unbiased: parts of the names of modules whose biases the configuration turns off.
    """

    tensors: Tensors
    names: Names
    blank: int
    input_scale: float
    feature_mean: np.ndarray
    feature_scale: np.ndarray
    unbiased: tuple[str, ...] = ()


def parameters_of(source: Source, config: Config) -> Arrays:
    """Parameters and statistics by their names in `ConformerCTC`. Raises ConversionError (see `Tensors.finish`)."""
    arrays: Arrays = {"feature_mean": source.feature_mean, "feature_scale": source.feature_scale}
    reader = _Reader(source, config)
    arrays |= _under("encoder.subsampling", reader.front_end())
    for index in range(config.model.num_layers):
        prefix = f"{source.names.blocks}.{index}."
        if not source.tensors.has_any(prefix):  # a file of fewer blocks than its configuration counts
            source.tensors.miss(f"{prefix}*")
            break
        arrays |= _under(f"encoder.blocks.{index}", reader.block(prefix))
    if config.model.final_norm:
        arrays |= _under("encoder.final_norm", reader.norm(source.names.final_norm))
    head = reader.linear(
        source.names.head, config.model.encoder_dim, config.model.vocab_size, pointwise=reader.conv_head
    )
    order = blank_first(config.model.vocab_size, source.blank)
    arrays |= {"head.kernel": head["kernel"][:, order], "head.bias": head["bias"][order]}
    source.tensors.finish()
    return arrays


class _Reader:
    def __init__(self, source: Source, config: Config):
        self.source, self.take = source, source.tensors.take
        self.names, self.model, self.dim = source.names, config.model, config.model.encoder_dim
        self.bins = config.features.num_mel_bins
        self.conv_head = not source.names.final_norm  # a convolution of one tap in NeMo's family

    def bias(self, name: str, size: int) -> np.ndarray:
        """The bias of a module, zeros where it has none."""
        if any(part in name for part in self.source.unbiased):
            return np.zeros(size, np.float32)
        return self.take(f"{name}.bias", size)

    def linear(self, name: str, inputs: int, outputs: int, pointwise: bool = False) -> Arrays:
        shape = (outputs, inputs, 1) if pointwise else (outputs, inputs)
        weight = self.take(f"{name}.weight", *shape).reshape(outputs, inputs)
        return {"kernel": np.ascontiguousarray(weight.T), "bias": self.bias(name, outputs)}

    def norm(self, name: str) -> Arrays:
        return {"scale": self.take(f"{name}.weight", self.dim), "bias": self.take(f"{name}.bias", self.dim)}

    def front_end(self) -> Arrays:
        channels, bins, arrays = self.model.subsampling_channels, self.bins, {}
        separable = self.model.subsampling == "depthwise_separable"
        for index, (taps, stride) in enumerate(SQUARES[self.model.subsampling_factor]):
            inputs = channels if index else 1
            if index == 0 or not separable:
                name = f"{self.names.convolutions}.{2 * index}"
                kernel = self.take(f"{name}.weight", channels, inputs, taps, taps).transpose(2, 3, 1, 0)
                stage = {"kernel": kernel, "bias": self.bias(name, channels)}
            else:
                depthwise, pointwise = (f"{self.names.convolutions}.{3 * index - 1 + part}" for part in (0, 1))
                kernel = self.take(f"{depthwise}.weight", channels, 1, taps, taps)[:, 0].transpose(1, 2, 0)
                mix = self.take(f"{pointwise}.weight", channels, channels, 1, 1)[:, :, 0, 0].T
                bias = self.bias(depthwise, channels) @ mix + self.bias(pointwise, channels)
                stage = {"kernel": kernel, "pointwise.kernel": mix, "pointwise.bias": bias}
            arrays |= _under(f"stages.{index}", stage)
            bins = (bins + sum(FREQUENCY_PADDING[self.model.subsampling_padding]) - taps) // stride + 1
        projection = self.linear(self.names.projection, channels * bins, self.dim)
        # Channels vary slowest there, frequencies here.
        kernel = projection["kernel"].reshape(channels, bins, self.dim).swapaxes(0, 1).reshape(-1, self.dim)
        scale = np.float32(self.source.input_scale)
        return arrays | {"projection.kernel": kernel * scale, "projection.bias": projection["bias"] * scale}

    def block(self, prefix: str) -> Arrays:
        names, arrays = self.names, {}
        for part, (norm, expand, contract) in zip(("first", "second"), names.feed_forwards, strict=True):
            hidden = self.model.feed_forward_dim
            arrays |= _under(f"{part}_feed_forward.norm", self.norm(prefix + norm))
            arrays |= _under(f"{part}_feed_forward.expand", self.linear(prefix + expand, self.dim, hidden))
            arrays |= _under(f"{part}_feed_forward.contract", self.linear(prefix + contract, hidden, self.dim))
        arrays |= _under("attention", self._attention(prefix)) | _under("convolution", self._convolution(prefix))
        return arrays | _under("norm", self.norm(prefix + names.norm))

    def _attention(self, prefix: str) -> Arrays:
        names, dim, heads = self.names, self.dim, self.model.num_heads
        maps = [self.linear(prefix + name, dim, dim) for name in (names.query, names.key, names.value)]
        u, v = (self.take(prefix + name, heads, dim // heads) for name in (names.u, names.v))
        maps[0]["bias"] = maps[0]["bias"] + u.reshape(-1)
        arrays = _under("norm", self.norm(prefix + names.attention_norm))
        arrays |= {f"query_key_value.{part}": np.concatenate([m[part] for m in maps], axis=-1) for part in maps[0]}
        arrays["position.kernel"] = np.ascontiguousarray(self.take(f"{prefix}{names.position}.weight", dim, dim).T)
        arrays["position_bias"] = v - u
        return arrays | _under("output", self.linear(prefix + names.output, dim, dim))

    def _convolution(self, prefix: str) -> Arrays:
        names, dim, taps = self.names, self.dim, self.model.kernel_size
        arrays = _under("norm", self.norm(prefix + names.convolution_norm))
        arrays |= _under("gate", self.linear(prefix + names.gate, dim, 2 * dim, pointwise=True))
        arrays["kernel"] = self.take(f"{prefix}{names.depthwise}.weight", dim, 1, taps)[:, 0].T
        bias = self.bias(prefix + names.depthwise, dim)
        middle = self.norm(prefix + names.middle_norm)
        if self.model.convolution_norm == "batch_norm":
            # A bias before it only moves the mean.
            middle["mean"] = self.take(f"{prefix}{names.middle_norm}.running_mean", dim) - bias
            middle["variance"] = self.take(f"{prefix}{names.middle_norm}.running_var", dim)
        else:
            arrays["bias"] = bias
        arrays |= _under("middle_norm", middle)
        return arrays | _under("output", self.linear(prefix + names.pointwise, dim, dim, pointwise=True))


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}.{name}": array for name, array in arrays.items()}
