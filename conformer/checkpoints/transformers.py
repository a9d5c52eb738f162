"""A folder of transformers' ParakeetForCTC: config.json, safetensors, the feature extractor's and tokenizer's JSON."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from conformer.checkpoints.imported import Imported, read_json, table
from conformer.checkpoints.names import TRANSFORMERS
from conformer.checkpoints.options import Options
from conformer.checkpoints.safetensors_file import read_safetensors
from conformer.checkpoints.tensors import ConversionError, Stored, Tensors
from conformer.checkpoints.units import make_tokenizer, plain_model
from conformer.checkpoints.weights import Source
from conformer.config import Config, FeatureConfig, ModelConfig
from conformer.tokenizer import SPACE_SYMBOL

CONFIG_FILE = "config.json"


def read(folder: pathlib.Path) -> Imported:
    """Raises ConversionError for what is not supported, by name."""
    origin = str(folder / CONFIG_FILE)
    values = read_json(folder / CONFIG_FILE)
    if values.get("model_type") != "parakeet_ctc":
        raise ConversionError(
            f"{origin}: model_type={values.get('model_type')!r} is not supported, only 'parakeet_ctc'"
        )
    whole = Options(origin, "the model", values)
    units, blank = whole.need("vocab_size", 1025), whole.get("pad_token_id", 1024)
    if not 0 <= blank < units:
        raise ConversionError(f"{origin}: pad_token_id={blank}, the blank, must lie in 0 to {units - 1}")
    encoder = Options(origin, "encoder_config", values.get("encoder_config") or {})
    bins = encoder.need("num_mel_bins", 80)
    features = _features(folder, bins)
    model, scale, unbiased = _model(encoder)
    symbols, speller = _units(folder, units, blank)
    config = Config(features=features, model=model).replace({"model.vocab_size": units})
    tensors = Tensors(str(folder / "model.safetensors"), _tensors(folder))
    mean, deviation = np.zeros(bins, np.float32), np.ones(bins, np.float32)
    source = Source(tensors, TRANSFORMERS, blank, scale, mean, deviation, unbiased)
    return Imported.of("transformers", config, make_tokenizer(symbols, blank, speller), source)


def _model(options: Options) -> tuple[ModelConfig, float, tuple[str, ...]]:
    """Reads the configuration of the model, the scale of the encoder's input, and what has no biases."""
    dim, heads = options.need("hidden_size", 1024), options.need("num_attention_heads", 8)
    options.choose("model_type", "parakeet_encoder", ("parakeet_encoder",))
    options.choose("hidden_act", "silu", ("silu", "swish"))
    options.choose("num_key_value_heads", heads, (heads,))
    options.choose("subsampling_conv_kernel_size", 3, (3,))
    options.choose("subsampling_conv_stride", 2, (2,))
    unbiased = () if options.get("attention_bias", True) else (".self_attn.", ".feed_forward")
    unbiased += () if options.get("convolution_bias", True) else (".conv.",)
    options.skip("max_position_embeddings")
    options.skip("dtype", "torch_dtype", "transformers_version", "architectures", "return_dict", "_name_or_path")
    options.skip("output_hidden_states", "output_attentions", "use_cache", "chunk_size_feed_forward", "head_dim")
    model = ModelConfig(
        subsampling="depthwise_separable",
        subsampling_factor=options.choose("subsampling_factor", 8, (4, 8)),
        subsampling_channels=options.get("subsampling_conv_channels", 256),
        subsampling_padding="symmetric",
        encoder_dim=dim,
        num_layers=options.need("num_hidden_layers", 24),
        num_heads=heads,
        feed_forward_dim=options.need("intermediate_size", 4096),
        kernel_size=options.need("conv_kernel_size", 9),
        convolution_norm="batch_norm",
        causal_conv=False,
        positions="relative",
        full_context=True,
        dropout=options.get("dropout", 0.1),
    )
    scale = dim**0.5 if options.get("scale_input", True) else 1.0
    options.finish()
    return model, scale, unbiased


def _features(folder: pathlib.Path, bins: int) -> FeatureConfig:
    """Reads the options of the features from processor_config.json, in older checkpoints preprocessor_config.json."""
    path = folder / "processor_config.json"
    values = read_json(path).get("feature_extractor") if path.is_file() else None
    if values is None:
        path = folder / "preprocessor_config.json"
        values = read_json(path)
    options = Options(str(path), "the feature extractor", values)
    options.choose("feature_extractor_type", "ParakeetFeatureExtractor", ("ParakeetFeatureExtractor",))
    options.choose("feature_size", bins, (bins,))
    options.skip("padding_side", "padding_value", "return_attention_mask", "processor_class")
    rate = options.need("sampling_rate", 16_000)
    features = FeatureConfig(
        kind="nemo",
        sample_rate=rate,
        num_mel_bins=bins,
        frame_length_ms=1000 * options.get("win_length", 400) / rate,
        frame_shift_ms=1000 * options.get("hop_length", 160) / rate,
        low_freq=0.0,
        high_freq=rate / 2,
        preemphasis=options.get("preemphasis", 0.97, null=0.0),
        window="hann",
        fft_size=options.get("n_fft", 512),
        normalise=True,
    )
    options.finish()
    return features


def _tensors(folder: pathlib.Path) -> Mapping[str, Stored]:
    """Returns the tensors of model.safetensors, or of the shards that its index lists. Raises ConversionError."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        return read_safetensors(whole)
    if not index.is_file():
        raise ConversionError(f"{folder} holds no {whole.name}: save the model as safetensors (save_pretrained)")
    names = set(map(str, table(read_json(index), "weight_map", index).values()))
    shards = {name: read_safetensors(folder / pathlib.PurePath(name).name) for name in names}
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _units(folder: pathlib.Path, count: int, blank: int) -> tuple[list[str], Any]:
    """The units by id, and a sentencepiece model that spells as tokenizer.json does."""
    path = folder / "tokenizer.json"
    try:
        return _read_units(path, read_json(path), count, blank)
    except ConversionError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConversionError(f"{path} is damaged ({type(error).__name__}: {error}): restore it") from None


def _read_units(path: pathlib.Path, values: dict[str, Any], count: int, blank: int) -> tuple[list[str], Any]:
    model = values.get("model") or {}
    kind, vocabulary = model.get("type"), model.get("vocab") or {}
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConversionError(
                f"{path}: model.{key}={model[key]!r} is not supported, only {SPACE_SYMBOL!r} as a space"
            )
    if "ByteLevel" in json.dumps([values.get("pre_tokenizer"), values.get("decoder")]):
        raise ConversionError(f"{path}: units of bytes (ByteLevel) are not supported, only {SPACE_SYMBOL!r} as a space")
    pieces: dict[str, int]
    if kind == "BPE":
        pieces = dict(vocabulary)
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]
        ranks = {"".join(merge): rank for rank, merge in reversed(list(enumerate(merges)))}
        scores = {piece: -float(ranks.get(piece, len(ranks))) for piece in pieces}
    elif kind == "Unigram":
        pieces = {piece: index for index, (piece, _) in enumerate(vocabulary)}
        scores = {piece: float(score) for piece, score in vocabulary}
    else:
        raise ConversionError(f"{path}: model.type={kind!r} is not supported, only 'BPE' and 'Unigram'")
    pieces |= {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    symbols = [f"<unused_{index}>" for index in range(count)]
    for piece, index in pieces.items():
        if not 0 <= index < count:
            raise ConversionError(f"{path}: unit {piece!r} has id {index}, the model {count} units: restore both")
        symbols[index] = piece
    special = {token["content"] for token in values.get("added_tokens", []) if token.get("special")}
    scores = {piece: score for piece, score in scores.items() if piece not in special and piece != symbols[blank]}
    return symbols, plain_model(scores, kind.lower())
