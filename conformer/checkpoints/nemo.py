"""A `.nemo` file: a tar, compressed or not, of model_config.yaml, model_weights.ckpt and the tokenizer."""

import contextlib
import lzma
import pathlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml

from conformer.checkpoints.imported import Imported, brief, table
from conformer.checkpoints.names import NEMO
from conformer.checkpoints.options import Options
from conformer.checkpoints.tensors import ConversionError, Tensors
from conformer.checkpoints.torch_file import read_torch
from conformer.checkpoints.units import make_tokenizer, parse_model, pieces_of
from conformer.checkpoints.weights import Source
from conformer.config import Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.filterbank import plan_of

WEIGHTS, SETTINGS = "model_weights.ckpt", "model_config.yaml"
GUARD = 2.0**-24  # what its features add before the logarithm
WINDOWS = {
    "hann": "hann",
    "hamming": "hamming",
    "blackman": "blackman",
    "bartlett": "bartlett",
    "none": "ones",
    None: "ones",
}
FRONT_ENDS = {"striding": "vanilla", "dw_striding": "depthwise_separable"}


def read(path: pathlib.Path) -> Imported:
    """The encoder with its CTC head. Raises ConversionError for what is not supported, by name."""
    with _opened(path) as archive:
        values = _settings(archive, path)
        hybrid = "aux_ctc" in values
        head = table(table(values, "aux_ctc", path) if hybrid else values, "decoder", path)
        if not str(head.get("_target_", "")).endswith("ConvASRDecoder"):
            raise ConversionError(
                f"{path} has no CTC head (ConvASRDecoder): its target is {values.get('target')!r}, which is not "
                "supported; take a CTC or a hybrid RNNT/CTC model"
            )
        features = _features(path, values)
        model, train, scale, unbiased = _model(path, values, features)
        symbols, speller = _units(archive, path, values, head)
        blank = len(symbols)
        tokenizer = make_tokenizer([*symbols, "<blank>"], blank, speller)
        config = Config(features=features, model=model, train=train).replace({"model.vocab_size": blank + 1})
        names = NEMO._replace(head="ctc_decoder.decoder_layers.0") if hybrid else NEMO
        ignored = ("preprocessor.", "spec_augmentation.", "loss.", "ctc_loss.", "wer.", "ctc_wer.", "encoder.pos_enc.")
        ignored += ("encoder.pos_bias_",) + (("decoder.", "joint.") if hybrid else ())
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(_member(archive, path, WEIGHTS), file)
            origin = f"{path}: {WEIGHTS}"
            tensors = Tensors(origin, read_torch(file, origin), ignored)
            _check_constants(tensors, features, path)
            mean, deviation = np.zeros(features.num_mel_bins, np.float32), np.ones(features.num_mel_bins, np.float32)
            source = Source(tensors, names, blank, scale, mean, deviation, unbiased)
            return Imported.of("nemo", config, tokenizer, source)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # a full disk, say: it names itself
            raise
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ConversionError(f"{path} is no readable tar ({reason}): fetch it again") from None


def _member(archive: tarfile.TarFile, path: pathlib.Path, name: str) -> Any:
    """The last file of that name in any folder of the tar: a later one takes the place of those before."""
    for member in reversed(archive.getmembers()):
        if pathlib.PurePosixPath(member.name).name == name and (file := archive.extractfile(member)) is not None:
            return file
    raise ConversionError(f"{path} holds no {name}: is it a model of NeMo?")


def _settings(archive: tarfile.TarFile, path: pathlib.Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(_member(archive, path, SETTINGS).read())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: {SETTINGS} is damaged ({brief(error)}): fetch it again") from None
    if not isinstance(values, dict):
        raise ConversionError(f"{path}: {SETTINGS} holds no table of options: fetch it again")
    return values


def _features(path: pathlib.Path, values: dict[str, Any]) -> FeatureConfig:
    options = Options(str(path), "preprocessor", values.get("preprocessor"))
    rate = options.need("sample_rate", 16_000)
    target = options.get("_target_", "AudioToMelSpectrogramPreprocessor")
    if not target.endswith("AudioToMelSpectrogramPreprocessor"):
        raise ConversionError(f"{path}: preprocessor._target_={target} is not supported")
    length, shift = options.get("n_window_size", 0), options.get("n_window_stride", 0)
    seconds = options.get("window_size", 0.02), options.get("window_stride", 0.01)
    length, shift = length or int(seconds[0] * rate), shift or int(seconds[1] * rate)
    options.choose("mel_norm", "slaney", ("slaney",))
    options.choose("mag_power", 2.0, (2.0,))
    options.choose("log", True, (True,))
    options.choose("log_zero_guard_type", "add", ("add",))
    options.choose("log_zero_guard_value", GUARD, (GUARD,))
    options.choose("frame_splicing", 1, (1,))
    options.choose("exact_pad", False, (False,))
    options.choose("stft_exact_pad", False, (False,))
    options.choose("stft_conv", False, (False,))
    # Padding of batches, augmentation in training, and which library computes.
    options.skip("pad_to", "pad_value", "rng", "nb_augmentation_prob", "nb_max_freq", "use_torchaudio")
    normalisation = {"per_feature": True} | dict.fromkeys(("NA", "", "none", "None", False, None), False)
    features = FeatureConfig(
        kind="nemo",
        sample_rate=rate,
        num_mel_bins=options.get("features", 64),
        frame_length_ms=1000 * length / rate,
        frame_shift_ms=1000 * shift / rate,
        low_freq=float(options.get("lowfreq", 0.0)),
        high_freq=float(options.get("highfreq", rate / 2)),
        preemphasis=options.get("preemph", 0.97, null=0.0),
        window=options.choose("window", "hann", WINDOWS),
        fft_size=options.get("n_fft", 1 << (length - 1).bit_length()),
        normalise=options.choose("normalize", "per_feature", normalisation),
        dither=options.get("dither", 1e-5) * 2**15,
    )
    options.finish()
    return features


def _model(
    path: pathlib.Path, values: dict, features: FeatureConfig
) -> tuple[ModelConfig, TrainConfig, float, tuple[str, ...]]:
    """Reads the configuration of model and training, the scale of the encoder's input, and what has no biases."""
    options = Options(str(path), "encoder", values.get("encoder"))
    target = options.get("_target_", "ConformerEncoder")
    if not target.endswith("ConformerEncoder"):
        raise ConversionError(f"{path}: encoder._target_={target} is not supported, only ConformerEncoder")
    dim, taps = options.need("d_model"), options.need("conv_kernel_size", 31)
    options.choose("feat_in", features.num_mel_bins, (features.num_mel_bins,))
    options.choose("feat_out", -1, (-1, 0, dim))
    options.choose("self_attention_model", "rel_pos", ("rel_pos",))
    options.choose("reduction", "", ("",))
    options.choose("global_tokens", 0, (0,))
    options.choose("conv_dual_mode", False, (False,))
    options.choose("conv_context_style", "regular", ("regular", "dcc"))  # dcc: chunks in training alone
    unbiased = () if options.get("use_bias", True, null=False) else (f"{NEMO.blocks}.",)
    # u and v that blocks share are in the tensors of each. The rest is of training, or of speed.
    options.skip("untie_biases", "pos_emb_max_len", "att_context_probs", "att_chunk_context_size")
    options.skip("reduction_position", "reduction_factor", "global_tokens_spacing", "global_attn_separate")
    options.skip("subsampling_conv_chunking_factor", "use_pytorch_sdpa", "use_pytorch_sdpa_backends")
    options.skip(
        "use_triton",
        "rope_base",
        "rotary_fraction",
        "sync_max_audio_length",
        "n_layers_to_freeze",
        "adapter",
        "export_cache_support",
    )
    contexts = _contexts(path, options)
    context = options.get("conv_context_size", None)
    half = (taps - 1) // 2
    if context not in (None, "causal", [half, half], [taps - 1, 0]):
        raise ConversionError(
            f"{path}: encoder.conv_context_size={context!r} is not supported, only null, 'causal', {[half, half]} and "
            f"{[taps - 1, 0]}"
        )
    causal = context in ("causal", [taps - 1, 0])
    channels, norm = (
        options.get("subsampling_conv_channels", -1),
        options.choose("conv_norm_type", "batch_norm", ("batch_norm", "layer_norm")),
    )
    model = ModelConfig(
        subsampling=options.choose("subsampling", "striding", FRONT_ENDS),
        subsampling_factor=options.choose("subsampling_factor", 4, (4, 8)),
        subsampling_channels=dim if channels == -1 else channels,
        subsampling_padding="causal" if options.get("causal_downsampling", False) else "symmetric",
        encoder_dim=dim,
        num_layers=options.need("n_layers"),
        num_heads=options.need("n_heads", 4),
        feed_forward_dim=dim * options.need("ff_expansion_factor", 4),
        kernel_size=taps,
        convolution_norm=norm,
        convolution_bias=norm == "layer_norm",
        causal_conv=causal,
        positions="relative",
        full_context=not (contexts and causal),
        dropout=options.get("dropout", 0.1),
    )
    scale = dim**0.5 if options.get("xscaling", True, null=False) else 1.0
    options.finish()
    chunks = tuple(dict.fromkeys(right + 1 for _, right in contexts)) or (0,)
    lefts = tuple(dict.fromkeys(left // (right + 1) if left >= 0 else -1 for left, right in contexts)) or (-1,)
    return model, TrainConfig(chunk_sizes=chunks, num_left_chunks=lefts), scale, unbiased


def _contexts(path: pathlib.Path, options: Options) -> list[tuple[int, int]]:
    """The (left, right) contexts in frames that attention knows, the default first; none = whole utterances.

    NeMo computes whole utterances by default where a chunk also has a right context ("_with_rc").
    """
    sizes = options.get("att_context_size", None) or [-1, -1]
    style = options.choose("att_context_style", "regular", ("regular", "chunked_limited", "chunked_limited_with_rc"))
    if style == "chunked_limited_with_rc":
        return []
    whole = [-1, -1]  # a chunk of 0 frames and all before it
    pairs: list[Any] = sizes if isinstance(sizes, list) and isinstance(sizes[0], list) else [sizes]
    if all(pair == whole for pair in pairs):
        return []
    if style == "regular" or not all(pair == whole or _are_chunks(pair) for pair in pairs):
        raise ConversionError(
            f"{path}: encoder.att_context_size={sizes} with att_context_style={style} is not supported, only [-1, -1] "
            "with regular, and chunks (chunked_limited) with a limited right context and whole chunks on their left"
        )
    return [(left, right) for left, right in pairs]


def _are_chunks(pair: Any) -> bool:
    """Returns whether a context is of whole chunks: `right` + 1 frames, and `left` before them, -1 for all."""
    match pair:
        case [int(left), int(right)]:
            return left >= -1 and right >= 0 and (left < 0 or left % (right + 1) == 0)
    return False


def _units(archive: tarfile.TarFile, path: pathlib.Path, values: dict, head: dict) -> tuple[list[str], Any]:
    """The units but the blank, which comes last, and the sentencepiece model."""
    tokenizer = table(values, "tokenizer", path)
    if not tokenizer:
        labels = head.get("vocabulary") or values.get("labels")
        if not isinstance(labels, list):
            raise ConversionError(f"{path}: decoder.vocabulary={labels!r} is no list of characters: restore the file")
        return [str(label) for label in labels], None
    if str(tokenizer.get("type")).lower() != "bpe":
        raise ConversionError(f"{path}: tokenizer.type={tokenizer.get('type')!r} is not supported, only 'bpe'")
    name = str(tokenizer.get("model_path") or "tokenizer.model").removeprefix("nemo:")
    data = _member(archive, path, pathlib.PurePosixPath(name).name).read()
    model = parse_model(data, f"{path}: {name}")
    return pieces_of(model), model


def _check_constants(tensors: Tensors, features: FeatureConfig, path: pathlib.Path) -> None:
    """Raises ConversionError where the stored window or filters are not those that are computed here.

    Narrow ones are those that are computed here, rounded.
    """
    plan = plan_of(features)
    computed = {"window": plan.window, "fb": plan.filters.T[None]}
    for name, own in computed.items():
        full = f"preprocessor.featurizer.{name}"
        if full not in tensors:
            continue
        stored, largest = tensors.take(full, *own.shape), np.abs(own).max()
        rounding = float(jnp.finfo(tensors.dtype(full)).eps) * largest
        if np.abs(stored - own).max() > max(1e-5, 1e-5 * largest, rounding):
            raise ConversionError(f"{path}: {full} is not what its configuration describes: it is not supported")
