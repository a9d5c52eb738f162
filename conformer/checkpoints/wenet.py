"""A folder of WeNet: train.yaml, a checkpoint of torch.save, the table of units, and a sentencepiece model, if any."""

import pathlib
from typing import Any

import numpy as np

from conformer.checkpoints.imported import Imported, read_yaml, table
from conformer.checkpoints.names import WENET
from conformer.checkpoints.options import Options
from conformer.checkpoints.tensors import ConversionError, Tensors
from conformer.checkpoints.torch_file import read_torch
from conformer.checkpoints.units import make_tokenizer, parse_model
from conformer.checkpoints.weights import Source
from conformer.config import Config, FeatureConfig, ModelConfig, TrainConfig
from conformer.text import read_lines

CONFIG_FILE = "train.yaml"
DYNAMIC_CHUNKS = 25  # the largest chunk that WeNet draws in training
INPUT_LAYERS = {"conv2d": 4, "conv2d6": 6, "conv2d8": 8}
BIASES = {  # option: parts of the names of the modules that it concerns
    "query_bias": (".linear_q", ".linear_out"),
    "key_bias": (".linear_k",),
    "value_bias": (".linear_v",),
    "mlp_bias": (".feed_forward",),
    "conv_bias": (".conv_module.",),
}
# Other branches than CTC, and tables of sinusoids, which some versions save.
IGNORED = ("decoder.", "attention_decoder.", "predictor.", "joint.", "encoder.embed.pos_enc.", "encoder.embed.0.pe")
UNUSED = ".concat_linear."  # a layer of every block that versions of 2021 and 2022 save and do not use


def read(folder: pathlib.Path) -> Imported:
    """The CTC branch of a model. Raises ConversionError for what is not supported, by name."""
    values = read_yaml(folder / CONFIG_FILE)
    if values.get("encoder", "conformer") != "conformer":
        raise ConversionError(
            f"{folder / CONFIG_FILE}: encoder={values['encoder']!r} is no conformer: it is not supported"
        )
    features = _features(folder, values)
    model, train, scale, unbiased = _model(folder, values)
    checkpoint = _checkpoint(folder)
    symbols = _symbols(folder, values)
    blank = table(values, "ctc_conf", folder / CONFIG_FILE).get("ctc_blank_id", 0)
    if blank not in range(len(symbols)):
        raise ConversionError(
            f"{folder / CONFIG_FILE}: ctc_conf.ctc_blank_id={blank!r} is none of the {len(symbols)} units: restore both"
        )
    tokenizer = make_tokenizer(symbols, blank, _speller(folder, values))
    config = Config(features=features, model=model, train=train).replace({"model.vocab_size": len(symbols)})
    with checkpoint.open("rb") as file:
        stored = read_torch(file, str(checkpoint))
        ignored = IGNORED if model.final_norm else (*IGNORED, f"{WENET.final_norm}.")  # saved, but not used then
        tensors = Tensors(str(checkpoint), stored, (*ignored, *(name for name in stored if UNUSED in name)))
        declared = values.get("cmvn") == "global_cmvn" or values.get("cmvn_file") is not None
        bins, identity = features.num_mel_bins, not declared and "encoder.global_cmvn.mean" not in tensors
        mean = np.zeros(bins) if identity else tensors.take("encoder.global_cmvn.mean", bins)
        deviation = np.ones(bins) if identity else tensors.take("encoder.global_cmvn.istd", bins)
        names = WENET if model.subsampling_factor == 4 else WENET._replace(projection="encoder.embed.linear")
        mean, deviation = mean.astype(np.float32), deviation.astype(np.float32)
        source = Source(tensors, names, blank, scale, mean, deviation, unbiased)
        return Imported.of("wenet", config, tokenizer, source)


def _features(folder: pathlib.Path, values: dict[str, Any]) -> FeatureConfig:
    origin, data = str(folder / CONFIG_FILE), table(values, "dataset_conf", folder / CONFIG_FILE)
    kind = data.get("feats_type", "fbank")
    if kind != "fbank":
        raise ConversionError(f"{origin}: dataset_conf.feats_type={kind!r} is not supported, only 'fbank'")
    old = table(table(values, "collate_conf", origin), "feature_extraction_conf", origin)
    if old:  # as versions of 2021 wrote it
        bank = Options(origin, "collate_conf.feature_extraction_conf", old)
        bank.choose("feature_type", "fbank", ("fbank",))
        bank.choose("using_pitch", False, (False,))
    else:
        bank = Options(origin, "dataset_conf.fbank_conf", data.get("fbank_conf") or {})
    rate = Options(origin, "dataset_conf.resample_conf", data.get("resample_conf") or {}).need("resample_rate", 16_000)
    key = "mel_bins" if old else "num_mel_bins"
    bins = bank.get(key, 23)
    if values.get("input_dim", bins) != bins:
        raise ConversionError(
            f"{origin}: input_dim={values['input_dim']} is not the {key}={bins} of the features: restore both"
        )
    bank.choose("window_type", "povey", ("povey",))
    features = FeatureConfig(
        kind="kaldi_snipped",
        sample_rate=rate,
        num_mel_bins=bins,
        frame_length_ms=bank.get("frame_length", 25.0),
        frame_shift_ms=bank.get("frame_shift", 10.0),
        high_freq=rate / 2,
        dither=bank.get("dither", 0.0),
    )
    bank.finish()
    return features


def _model(folder: pathlib.Path, values: dict[str, Any]) -> tuple[ModelConfig, TrainConfig, float, tuple[str, ...]]:
    """Reads the configuration of model and training, the scale of the encoder's input, and what has no biases."""
    options = Options(str(folder / CONFIG_FILE), "encoder_conf", values.get("encoder_conf") or {})
    heads, dim = options.need("attention_heads", 4), options.need("output_size", 256)
    causal, eps = options.get("causal", False), options.get("norm_eps", 1e-5)
    norm = options.choose("cnn_module_norm", "batch_norm", ("batch_norm", "layer_norm"))
    dynamic, static = options.get("use_dynamic_chunk", False), options.get("static_chunk_size", 0)
    options.choose("normalize_before", True, (True,))
    options.choose("macaron_style", True, (True,))
    options.choose("use_cnn_module", True, (True,))
    options.choose("activation_type", "swish", ("swish", "silu"))
    options.choose("pos_enc_layer_type", "rel_pos", ("rel_pos",))
    options.choose("selfattention_layer_type", "rel_selfattn", ("rel_selfattn",))
    options.choose("layer_norm_type", "layer_norm", ("layer_norm",))
    options.choose("mlp_type", "position_wise_feed_forward", ("position_wise_feed_forward",))
    options.choose("n_kv_head", heads, (heads, None))
    options.choose("head_dim", dim // heads, (dim // heads, None))
    options.choose("conv_inner_factor", 2, (2,))
    options.choose("concat_after", False, (False,))
    unbiased = tuple(part for key, parts in BIASES.items() if not options.get(key, True) for part in parts)
    # Of training, or of speed.
    options.skip("use_sdpa", "input_size", "positionwise_conv_kernel_size", "use_dynamic_left_chunk")
    options.skip("n_expert", "n_expert_activated")
    model = ModelConfig(
        subsampling="vanilla",
        subsampling_factor=options.choose("input_layer", "conv2d", INPUT_LAYERS),
        subsampling_channels=dim,
        encoder_dim=dim,
        num_layers=options.need("num_blocks", 6),
        num_heads=heads,
        feed_forward_dim=options.need("linear_units", 2048),
        kernel_size=options.need("cnn_module_kernel", 15),
        convolution_norm=norm,
        convolution_bias=norm == "layer_norm",
        pad_before_gate=causal,
        causal_conv=causal,
        norm_eps=eps,
        convolution_norm_eps=options.get("conv_norm_eps", 1e-5),
        final_norm=options.get("final_norm", True),
        positions="absolute",
        full_context=not (causal and (dynamic or static > 0)),
        dropout=options.get("dropout_rate", 0.1),
    )
    options.finish()
    chunks = (0, *range(1, DYNAMIC_CHUNKS + 1)) if dynamic else (static,) if static > 0 else (0,)
    return model, TrainConfig(chunk_sizes=chunks), dim**0.5, unbiased


def _checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """final.pt, or the only one there is."""
    if (folder / "final.pt").is_file():
        return folder / "final.pt"
    found = sorted(path for path in folder.glob("*.pt") if path.is_file())
    if len(found) != 1:
        raise ConversionError(f"{folder} holds {len(found)} files *.pt and no final.pt: leave the one to import")
    return found[0]


def _file(folder: pathlib.Path, named: Any, *usual: str) -> pathlib.Path | None:
    """The file of the name that a configuration gives, wherever that was, or one of the usual names."""
    names = [pathlib.PurePath(named).name, *usual] if isinstance(named, str) else list(usual)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _symbols(folder: pathlib.Path, values: dict[str, Any]) -> list[str]:
    named = table(values, "tokenizer_conf", folder / CONFIG_FILE).get("symbol_table_path")
    path = _file(folder, named, "units.txt", "words.txt", "dict.txt", "lang_char.txt")
    if path is None:
        raise ConversionError(f"{folder} holds no table of units (units.txt): put it beside {CONFIG_FILE}")
    units: dict[int, str] = {}
    for number, line in read_lines(path, ConversionError):
        match line.split():
            case [symbol, unit] if unit.isdecimal() and int(unit) not in units:
                units[int(unit)] = symbol
            case _:
                raise ConversionError(
                    f"{path}:{number}: expected a unit and a number of its own, found {line!r}: restore the table"
                )
    if missing := set(range(len(units))) - set(units):
        raise ConversionError(f"{path} lists {len(units)} units, but none is number {min(missing)}: restore the table")
    symbols = [units[number] for number in range(len(units))]
    if (declared := values.get("output_dim", len(symbols))) != len(symbols):
        raise ConversionError(
            f"{path} lists {len(symbols)} units, {CONFIG_FILE} has output_dim={declared}: restore both"
        )
    return symbols


def _speller(folder: pathlib.Path, values: dict[str, Any]) -> Any:
    """The sentencepiece model, if it lies in the folder."""
    models = sorted(folder.glob("*.model"))
    named = table(values, "tokenizer_conf", folder / CONFIG_FILE).get("bpe_path")
    path = _file(folder, named, *(file.name for file in models[:1]))
    return None if path is None else parse_model(path.read_bytes(), str(path))
