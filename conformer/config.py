"""The typed configuration of an experiment, and how a file and flags become one.

A config file holds `get_config() -> Config`. Every field can be overridden on the command line
(`--config.model.encoder_dim=176`), is checked against its type, and ends up in `config.json` of the work directory,
from which `eval.py` and `transcribe.py` rebuild the same model.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import json
import operator
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from conformer.lengths import PADDINGS
from conformer.policy import POLICIES
from conformer.text import LEVELS

RETIRED = {  # keys of older files, and why they went
    "train.keep_checkpoints": "the newest two are kept",
    "model.cache_bytes": "no measurement gained from it",
}
EXECUTIONS = ("sequence", "channels_first")

# Kinds of modules that a configuration can name, and the class of each.
FRONT_ENDS = {
    "vanilla": "conformer.model.subsampling.Vanilla",
    "depthwise_separable": "conformer.model.subsampling.DepthwiseSeparable",
    "stacked": "conformer.model.stacked.Stacked",
}
FILTERBANKS = ("kaldi", "kaldi_snipped", "nemo")
WINDOWS = ("povey", "hann", "hamming", "blackman", "bartlett", "ones")
POSITIONS = ("learned", "relative", "absolute")
NORMS = {"layer_norm": "conformer.model.norm.LayerNorm", "batch_norm": "conformer.model.norm.BatchNorm"}


def load_kind(path: str) -> Any:
    """The class at a path of `FRONT_ENDS` or `NORMS`, imported now."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the remedy."""


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Log-mel filterbank of one of FILTERBANKS (see `conformer/filterbank.py`)."""

    kind: str = "kaldi"  # one of FILTERBANKS
    sample_rate: int = 16_000  # Hz; audio at other rates is resampled
    num_mel_bins: int = 80  # features per frame
    frame_length_ms: float = 25.0  # analysis window
    frame_shift_ms: float = 10.0  # hop between frames
    low_freq: float = 20.0  # Hz, lower edge of the first filter
    high_freq: float = 7_600.0  # Hz, upper edge of the last filter
    preemphasis: float = 0.97  # y[n] = x[n] - preemphasis * x[n-1]
    window: str = "povey"  # one of WINDOWS
    fft_size: int = 0  # samples of the transform; 0 = the least power of two that holds a window
    normalise: bool = False  # each bin by its mean and deviation over the utterance, which no stream knows
    dither: float = 0.0  # standard deviation of added noise, in int16 units; 0 = off
    trailing_silence: float = 0.0  # seconds heard behind audio that ends: 0.5 where training had pauses


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training-time augmentation; everything off means clean training."""

    speed_factors: tuple[float, ...] = (1.0,)  # one is drawn per utterance (resampling: pitch moves too)
    background_probability: float = 0.0  # share of utterances that a sound without speech, and without labels, replaces
    pause_seconds: float = 0.0  # pauses of up to this length before and after, as far as the bucket has room
    noise_probability: float = 0.0  # share of utterances with noise, hum or notes behind them
    noise_snr_db: tuple[float, float] = (5.0, 30.0)  # range the signal-to-noise ratio is drawn from
    gain_db: tuple[float, float] = (0.0, 0.0)  # range the gain is drawn from
    frequency_warp: float = 0.0  # frequencies are stretched by a factor of 1 +- this, one an utterance and view
    num_freq_masks: int = 2  # SpecAugment, masks along mel bins
    freq_mask_width: int = 20  # at most this many bins a mask
    num_time_masks: int = 2  # SpecAugment, masks along time
    time_mask_width: int = 25  # at most this many frames a mask
    time_mask_share: float = 0.2  # and at most this share of the utterance a mask
    mask_ramp_steps: int = 0  # the widths grow to these values over this many steps

    def __post_init__(self):
        """Raises ConfigError for the first value that no run could use."""
        if not self.speed_factors or min(self.speed_factors) <= 0:
            raise ConfigError(f"augment.speed_factors={self.speed_factors} must be positive, and at least one")
        for key in ("noise_snr_db", "gain_db"):
            if len(ends := getattr(self, key)) != 2 or not ends[0] <= ends[1]:
                raise ConfigError(f"augment.{key}={ends} must be a range (lowest, highest)")
        for key in ("background_probability", "noise_probability", "time_mask_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"augment.{key}={getattr(self, key)} must lie in [0, 1]")
        if not 0 <= self.frequency_warp <= 0.5:
            raise ConfigError(f"augment.frequency_warp={self.frequency_warp} must lie in [0, 0.5]")
        for key in ("pause_seconds", "num_freq_masks", "freq_mask_width", "num_time_masks", "time_mask_width"):
            if getattr(self, key) < 0:
                raise ConfigError(f"augment.{key}={getattr(self, key)} must not be negative")


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The embedded corpus, spoken in process by espeak-ng (see `conformer/data/synthetic.py`)."""

    num_voices: int = 160  # distinct voices (accent x variant x rate x pitch), disjoint between splits
    train_utterances: int = 4_000  # utterances of the train split
    eval_utterances: int = 200  # utterances of each of dev and test
    seed: int = 0  # same seed, same corpus


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The options of data: where utterances come from, and how they are grouped into batches."""

    source: str = "synthetic"  # "synthetic", a JSONL manifest, a pack, LibriSpeech or prepared folder
    also_train: tuple[str, ...] = ()  # further manifests or folders, whose train splits are trained on too
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    train_splits: tuple[str, ...] = ("train",)  # the `split`s of the rows trained on
    eval_splits: tuple[str, ...] = ("dev",)  # and of those evaluated during training
    words: tuple[str, ...] = ()  # utterances with other words than these are left out; () = none
    train_minutes: float = 0.0  # speech to train on, drawn from that of the train splits; 0 = all
    batch_seconds: float = 64.0  # audio seconds in a batch; a bucket holds batch_seconds // its length utterances
    bucket_seconds: tuple[float, ...] = ()  # upper length of each bucket; longer ones are dropped; () = derived
    max_label_rate: float = 25.0  # labels a second that a bucket has room for
    spoken_utterances: int = 0  # runs of words of train transcripts that espeak-ng speaks, added to the train split
    curriculum_steps: int = 0  # the longest utterance allowed grows to the last bucket over this many steps
    max_dropped_share: float = 0.05  # more utterances than this share too long, too short, missing ... stop the run
    max_broken_share: float = 0.01  # and more that turn out unreadable while training
    num_workers: int = 0  # loader processes; 0 = a thread in this process


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The spelling of transcripts, texts for language models and hot words (see `conformer/text.py`)."""

    normalise: str = "basic"  # "none", "basic": lower case, "english": no punctuation, numbers as spoken


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Text units."""

    kind: str = "char"  # or "bpe": byte pairs of the train split; "sounds": of its pronunciation; "given": as init_from
    vocab_size: int = 128  # upper bound on units of "bpe" and "sounds", blank excluded


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The recogniser. Sizes follow the names of Gulati et al. (2020)."""

    subsampling: str = "depthwise_separable"  # front end: one of FRONT_ENDS
    subsampling_factor: int = 4  # feature frames per encoder frame: 4, 6 or 8
    subsampling_channels: int = 64  # channels inside the front end
    subsampling_frequency_stride: int = 1  # its last convolution strides so many times as far along frequency
    subsampling_padding: str = "none"  # of time and frequency there: one of PADDINGS; "causal" looks least ahead
    encoder_dim: int = 144  # width of the residual stream
    num_layers: int = 6  # Conformer blocks
    num_heads: int = 4  # attention heads; divides encoder_dim
    feed_forward_dim: int = 576  # hidden width of each half-step feed-forward
    kernel_size: int = 15  # taps of the depthwise convolution in time
    convolution_norm: str = "layer_norm"  # after the depthwise convolution: one of NORMS
    convolution_bias: bool = False  # of the depthwise convolution
    pad_before_gate: bool = False  # zeros before the utterance enter the convolution module ahead of its gate
    causal_conv: bool = True  # convolve over the past only (needed for streaming); False = symmetric
    execution: str = "sequence"  # tensors (batch, frames, channels), or "channels_first": (batch, channels, 1, frames)
    norm_eps: float = 1e-5  # of every norm
    convolution_norm_eps: float = 0.0  # of the one after the depthwise convolution; 0 = norm_eps
    final_norm: bool = False  # one more LayerNorm behind the last block
    positions: str = "relative"  # how attention knows them: one of POSITIONS (docs/checkpoints.md)
    max_relative_distance: int = 64  # relative positions beyond this many encoder frames share one bias
    dropout: float = 0.1  # on every residual branch
    kernels: str = ""  # of norms and attention: "reference", "xla", "mosaic_gpu", "mosaic_tpu"; "" = the fastest here
    full_context: bool = False  # knows whole utterances alone: streams are refused
    vocab_size: int = 0  # units including blank; filled in from the tokenizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation."""

    num_steps: int = 2_000  # updates
    init_from: str = ""  # work directory of a trained model whose weights the run begins with; "" = random ones
    init_random: tuple[str, ...] = ()  # what keeps its random ones all the same, as such patterns
    frozen: tuple[str, ...] = ()  # parameters that keep their values, as patterns such as "encoder.subsampling.*"
    lora_rank: int = 0  # of adapters, which are trained, with the head, in place of all else; 0 = none
    lora_alpha: float = 16.0  # adapters count lora_alpha / lora_rank times
    lora_maps: tuple[str, ...] = ("encoder.blocks.*",)  # linear maps that get one, as patterns such as "*.attention.*"
    encoder_rate: float = 1.0  # the learning rate of all but the head, as a multiple
    optimiser: str = "adamw"  # or "muon": linear maps move by their orthogonalised momentum, the rest by AdamW
    learning_rate: float = 2e-3  # peak of the schedule
    warmup_steps: int = 200  # linear ramp to the peak, then cosine decay to zero
    weight_decay: float = 1e-2  # AdamW, on matrices only
    clip_norm: float = 1.0  # global gradient norm
    beta2: float = 0.98  # AdamW second-moment decay
    intermediate_weight: float = 0.0  # share of the loss that the middle block gets through the same head; 0 = none
    consistency_weight: float = 0.0  # weight of how far two views of each utterance disagree; 0 = one view
    mmi_weight: float = 0.0  # weight of what else the audio could have been, by a bigram of units; 0 = CTC alone
    ema_decay: float = 0.998  # weights evaluated are this exponential moving average
    compute: str = "float32"  # format of matrix products: "float32", "bfloat16" or "float16"; the loss stays float32
    chunk_sizes: tuple[int, ...] = (0,)  # encoder frames; one is drawn per batch; 0 = full context
    num_left_chunks: tuple[int, ...] = (-1,)  # one is drawn per batch when the chunk is limited; -1 = all
    accumulate: int = 1  # parts of a batch computed one after another, for as many times less memory
    fsdp: int = 1  # devices that share one copy of the state; the others hold further copies
    log_every: int = 20  # steps between lines of metrics.jsonl
    eval_every: int = 500  # steps between evaluations on data.eval_splits
    checkpoint_every: int = 500  # steps between checkpoints
    max_skipped_steps: int = 50  # non-finite updates in a row that stop the run


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = 0  # decides initialisation, data order, augmentation and dropout
    numerics: str = "float32"  # policy that eval.py and transcribe.py apply to the trained model (conformer/policy.py)
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self):
        """Raises ConfigError for the first value that no run could use."""
        model, train, data = self.model, self.train, self.data
        _choice("numerics", self.numerics, tuple(POLICIES))
        _choice("text.normalise", self.text.normalise, LEVELS)
        _choice("features.kind", self.features.kind, FILTERBANKS)
        _choice("features.window", self.features.window, WINDOWS)
        _choice("tokenizer.kind", self.tokenizer.kind, ("char", "bpe", "sounds", "given"))
        _choice("model.subsampling", model.subsampling, tuple(FRONT_ENDS))
        _choice("model.subsampling_padding", model.subsampling_padding, PADDINGS)
        _choice("model.positions", model.positions, POSITIONS)
        _choice("model.convolution_norm", model.convolution_norm, tuple(NORMS))
        _choice("model.subsampling_factor", model.subsampling_factor, (4, 6, 8))
        _choice("model.kernels", model.kernels, ("", "reference", "xla", "mosaic_gpu", "mosaic_tpu"))
        _choice("model.execution", model.execution, EXECUTIONS)
        _choice("train.optimiser", self.train.optimiser, ("adamw", "muon"))
        _choice("train.compute", train.compute, ("float32", "bfloat16", "float16"))
        at_least_one = {
            "model": (
                "kernel_size",
                "num_layers",
                "num_heads",
                "encoder_dim",
                "subsampling_channels",
                "subsampling_frequency_stride",
                "feed_forward_dim",
            ),
            "train": (
                "num_steps",
                "accumulate",
                "fsdp",
                "log_every",
                "eval_every",
                "checkpoint_every",
            ),
        }
        for section, keys in at_least_one.items():
            for key in keys:
                if (value := getattr(getattr(self, section), key)) < 1:
                    raise ConfigError(f"{section}.{key}={value} must be at least 1")
        if self.tokenizer.kind == "given" and not train.init_from:
            raise ConfigError("tokenizer.kind='given' needs train.init_from, the model whose units are used")
        if train.init_random and not train.init_from:
            raise ConfigError("train.init_random needs train.init_from, the model that all else is taken from")
        if train.lora_rank < 0:
            raise ConfigError(f"train.lora_rank={train.lora_rank} must not be negative")
        if train.lora_rank and not train.init_from:
            raise ConfigError("train.lora_rank needs train.init_from, the model that is adapted")
        if train.lora_rank and not (train.lora_alpha > 0 and train.lora_maps):
            raise ConfigError(
                f"train.lora_rank={train.lora_rank} needs train.lora_alpha > 0 and train.lora_maps, not "
                f"{train.lora_alpha} and {train.lora_maps}"
            )
        if not train.encoder_rate >= 0:
            raise ConfigError(f"train.encoder_rate={train.encoder_rate} must not be negative")
        if train.accumulate > 1 and train.compute == "float16":
            raise ConfigError(
                "train.accumulate needs train.compute=bfloat16 or float32: float16's loss is scaled whole"
            )
        if not 0 <= model.dropout < 1:
            raise ConfigError(f"model.dropout={model.dropout} must lie in [0, 1)")
        if not 0 <= train.intermediate_weight < 1:
            raise ConfigError(f"train.intermediate_weight={train.intermediate_weight} must lie in [0, 1)")
        if train.intermediate_weight and model.num_layers < 2:
            raise ConfigError("train.intermediate_weight needs a middle block: set it to 0, or model.num_layers to 2")
        if not train.consistency_weight >= 0:
            raise ConfigError(f"train.consistency_weight={train.consistency_weight} must not be negative")
        if not train.mmi_weight >= 0:
            raise ConfigError(f"train.mmi_weight={train.mmi_weight} must not be negative")
        if not train.chunk_sizes or min(train.chunk_sizes) < 0:
            raise ConfigError(f"train.chunk_sizes={train.chunk_sizes} must be at least 0, and at least one")
        if not train.num_left_chunks:
            raise ConfigError("train.num_left_chunks=() must hold at least one")
        if model.encoder_dim % model.num_heads:
            raise ConfigError(
                f"model.num_heads={model.num_heads} does not divide model.encoder_dim={model.encoder_dim}"
            )
        if (
            tuple(sorted(set(data.bucket_seconds))) != tuple(data.bucket_seconds)
            or min(data.bucket_seconds, default=1) <= 0
        ):
            raise ConfigError(f"data.bucket_seconds={data.bucket_seconds} must be positive and ascending")
        if not data.train_minutes >= 0:
            raise ConfigError(f"data.train_minutes={data.train_minutes} must not be negative")
        if data.batch_seconds < 1:
            raise ConfigError(f"data.batch_seconds={data.batch_seconds} must be at least 1")
        if data.bucket_seconds and data.batch_seconds < data.bucket_seconds[-1]:
            raise ConfigError(
                f"data.batch_seconds={data.batch_seconds} does not hold one utterance of the longest bucket "
                f"({data.bucket_seconds[-1]} s): raise it, or shorten data.bucket_seconds"
            )
        padded = model.subsampling_padding != "none"
        if padded and (model.subsampling == "stacked" or model.subsampling_factor == 6):
            raise ConfigError(
                f"model.subsampling_padding={model.subsampling_padding} needs model.subsampling_factor=4 or 8, and a "
                "front end other than stacked"
            )
        if padded and model.subsampling_frequency_stride > 1:
            raise ConfigError("model.subsampling_padding needs model.subsampling_frequency_stride=1")
        if not model.causal_conv and model.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size={model.kernel_size} must be odd when model.causal_conv=False")

    def untrained_chunk(self, chunk_size: int, look_ahead: int = 0) -> str | None:
        """The warning where as many frames as see each other in a stream did not in training; None where they did."""
        trained, size = self.train.chunk_sizes, chunk_size + look_ahead
        if size in trained:
            return None
        name = f"chunk_size={size}" if not look_ahead else f"chunk_size + look_ahead = {size}"
        return f"{name} is not one of train.chunk_sizes={trained} that the model was trained for: expect more errors"

    @property
    def whole_context(self) -> tuple[int, int]:
        """Chunk size and left chunks of attention in whole utterances: 0 and -1, all, where training knew that.

        Else what training names first, which is NeMo's default.
        """
        train = self.train
        return (0, -1) if 0 in train.chunk_sizes else (train.chunk_sizes[0], train.num_left_chunks[0])

    @property
    def not_streaming(self) -> str | None:
        """The reason why the model cannot recognise streams, and the remedy; None where it can."""
        if not self.model.causal_conv:
            return (
                "a model with model.causal_conv=False looks ahead and cannot stream: fine-tune it with "
                "model.causal_conv=True and dynamic chunks (train.chunk_sizes), or export it for whole recordings"
            )
        if self.features.normalise:
            return (
                "features.normalise=True needs the whole utterance: fine-tune with features.normalise=False and "
                "dynamic chunks (train.chunk_sizes)"
            )
        if self.model.full_context:
            return (
                "model.full_context=True: it knows whole utterances alone. Fine-tune it with dynamic chunks "
                "(train.chunk_sizes) and model.full_context=False"
            )
        return None

    def replace(self, values: Mapping[str, Any], origin: str = "config") -> "Config":
        """A copy with other values, by key, such as {"model.encoder_dim": 96}.

        Raises ConfigError, which begins with `origin`, for a key or a value that cannot be used.
        """
        changed = dataclasses.asdict(self)
        for key, value in values.items():
            check_key(key)
            *sections, field = key.split(".")
            functools.reduce(operator.getitem, sections, changed)[field] = value
        return _from_dict(type(self), changed, origin)

    def to_json(self) -> str:
        """The resolved configuration, as stored in a work directory."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def items(self) -> Iterator[tuple[str, Any]]:
        """Keys, such as "model.encoder_dim", with their values."""
        return _values(self)

    def differences(self, other: "Config") -> list[str]:
        """The keys whose values differ."""
        mine, theirs = dict(self.items()), dict(other.items())
        return [key for key, value in mine.items() if theirs[key] != value]

    @classmethod
    def from_json(cls, path: str | pathlib.Path) -> "Config":
        """Reads what `to_json` wrote. Raises ConfigError for a file that cannot be used, or a key."""
        path = pathlib.Path(path)
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist: is {path.parent} the --workdir of a training run?") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}): correct its permissions") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not valid JSON ({error}): restore it or train again") from None
        return _from_dict(cls, values, str(path))


def load_module(path: str | pathlib.Path) -> ModuleType:
    """The Python file at `path`, executed. Raises ConfigError where there is none."""
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{path} does not exist: name a file such as configs/demo.py")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """`get_config` of a file, called with what follows the colon; then values by key, as `--config.KEY=VALUE`.

    Raises ConfigError for a file, a key or a value that cannot be used.
    """
    path, _, argument = name.partition(":")
    module = load_module(path)
    config = module.get_config(argument) if argument else module.get_config()
    return config.replace(overrides or {}, name)


def check_key(key: str) -> None:
    """Raises ConfigError, with the nearest key there is, unless `key` (such as "model.encoder_dim") exists."""
    if key not in (known := dict(_values(Config()))):
        raise ConfigError(f"unknown config key {key!r}{_nearest(key, known)}")


def _values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _from_dict(cls: Any, values: Any, origin: str, section: str = ""):
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: {values!r} stands where {cls.__name__} needs an object of keys: restore the file")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if reason := RETIRED.get(section + name):
            raise ConfigError(f"{origin}: config key {section}{name} is retired ({reason}): remove it from the file")
        if name not in fields:
            raise ConfigError(f"{origin}: unknown config key {name!r}{_nearest(name, fields)}")
        kind = fields[name].type
        arguments[name] = (
            _from_dict(kind, value, origin, f"{section}{name}.")
            if dataclasses.is_dataclass(kind)
            else (_typed(value, kind, f"{origin}: {section}{name}={value!r}"))
        )
    return cls(**arguments)


def _typed(value: Any, kind: Any, what: str) -> Any:
    """A value of a field's type: a whole number does for a float, one value for a tuple. Raises ConfigError."""
    if typing.get_origin(kind) is tuple:
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(_typed(item, typing.get_args(kind)[0], what) for item in values)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{what} must be of type {kind.__name__}")
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"


def _choice(key: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value!r} is not one of {', '.join(map(str, choices))}")
