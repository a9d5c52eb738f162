"""What the configurations of WeNet, NeMo and transformers say: what is read from them, and what is refused."""

import contextlib

import pytest
import yaml

from conformer.checkpoints.convert import read_checkpoint
from conformer.checkpoints.tensors import ConversionError
from conformer.training.checkpoint import load_model
from tests.changed_checkpoints import (
    CONFORMER,
    FASTCONFORMER,
    WENET,
    copied,
    parakeet_with,
    wenet_with,
    with_settings,
)


@pytest.mark.parametrize(
    "section, value, match",
    [
        ("ctc_conf", {"ctc_blank_id": 99}, r"ctc_blank_id=99 is none of the 40 units"),
        ("dataset_conf", [1], r"dataset_conf=\[1\] is no table of options"),
        ("encoder_conf", {"attention_heads": 0}, r"attention_heads=0 must be a whole number of at least 1"),
    ],
)
def test_settings_of_wenet_that_make_no_sense_are_named(golden, tmp_path, section, value, match):
    folder = copied(golden, tmp_path, WENET)
    values = yaml.safe_load((folder / "train.yaml").read_text())
    (folder / "train.yaml").write_text(yaml.safe_dump(values | {section: value}))
    with pytest.raises(ConversionError, match=match):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "section, option, value",
    [
        ("encoder_conf", "activation_type", "relu"),
        ("encoder_conf", "pos_enc_layer_type", "rope_pos"),
        ("encoder_conf", "normalize_before", False),
        ("encoder_conf", "input_layer", "linear"),
        ("encoder_conf", "something_new", 1),
        ("dataset_conf", "feats_type", "log_mel_spectrogram"),
    ],
)
def test_options_of_wenet_that_are_not_supported_are_named(golden, tmp_path, section, option, value):
    folder = copied(golden, tmp_path, WENET)
    values = yaml.safe_load((folder / "train.yaml").read_text())
    values[section][option] = value
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConversionError, match=rf"{section}.*{option}"):
        read_checkpoint(folder)


def test_units_of_wenet_may_stand_in_any_order(golden, tmp_path):
    folder = copied(golden, tmp_path, WENET)
    table = folder / "units.txt"
    expected, lines = read_checkpoint(folder).tokenizer.symbols, table.read_text().splitlines()
    table.write_text("\ufeff" + "\r\n".join(line.replace(" ", "\t") for line in reversed(lines)))
    assert read_checkpoint(folder).tokenizer.symbols == expected
    for wrong, match in [(["a 0"], r"units\.txt:41: expected a unit and"), (["a 41"], "none is number 40")]:
        table.write_text("\n".join(lines + wrong))
        with pytest.raises(ConversionError, match=match):
            read_checkpoint(folder)


def test_features_as_wenet_described_them_in_2021(golden, tmp_path):
    folder = copied(golden, tmp_path, WENET)
    expected = read_checkpoint(folder).config.replace({"features.dither": 0.0})
    values = yaml.safe_load((folder / "train.yaml").read_text())
    features = {"feature_type": "fbank", "mel_bins": 80, "frame_length": 25, "frame_shift": 10, "using_pitch": False}
    values |= {"dataset_conf": {"max_length": 40960}, "collate_conf": {"feature_extraction_conf": features}}
    for pitch in (False, True):
        features["using_pitch"] = pitch
        (folder / "train.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(ConversionError, match="using_pitch=True") if pitch else contextlib.nullcontext():
            assert read_checkpoint(folder).config == expected


def test_a_bias_is_there_exactly_where_the_configuration_has_one(golden, tmp_path):
    """Its loss would change what is recognised, and so would the use of one that the configuration turns off."""
    expand, key = "encoder.encoders.1.feed_forward.w_1.bias", "encoder.encoders.{}.self_attn.linear_k.bias"
    cases = iter(range(9))

    def wenet(change, **settings):
        (folder := tmp_path / f"wenet{next(cases)}").mkdir()
        return wenet_with(golden, folder, change, **settings)

    for name in (expand, "ctc.ctc_lo.bias", "encoder.embed.conv.0.bias"):
        with pytest.raises(ConversionError, match=rf"\(missing: {name}\)"):
            wenet(lambda arrays, name=name: arrays.pop(name))
    with pytest.raises(ConversionError, match=r"left over: encoder\.encoders\.0\.feed_forward\.w_1\.bias"):
        wenet(lambda arrays: None, mlp_bias=False)
    wenet(lambda arrays: [arrays.pop(key.format(block)) for block in range(3)], key_bias=False)
    with pytest.raises(ConversionError, match=r"left over: .*conv\.depthwise_conv\.bias"):
        read_checkpoint(with_settings(golden, tmp_path, CONFORMER, encoder__use_bias=False))
    unbiased = {"convolution_bias": False}
    folder = parakeet_with(golden, tmp_path, "config.json", lambda values: values["encoder_config"].update(unbiased))
    with pytest.raises(ConversionError, match=r"left over: encoder\.layers\.0\.conv\.depthwise_conv\.bias"):
        read_checkpoint(folder)


def test_statistics_that_wenet_declares_must_be_there(golden, tmp_path):
    with pytest.raises(ConversionError, match=r"missing: encoder\.global_cmvn\.mean, encoder\.global_cmvn\.istd"):
        wenet_with(
            golden, tmp_path, lambda arrays: [arrays.pop(f"encoder.global_cmvn.{name}") for name in ("mean", "istd")]
        )


def test_the_norm_of_wenets_convolution_has_its_own_eps(golden, tmp_path):
    imported = wenet_with(golden, tmp_path, lambda arrays: None, norm_eps=1e-3)
    imported.save(tmp_path / "out")
    _, model, _, _ = load_model(tmp_path / "out")
    block = model.encoder.blocks[0]
    assert (block.norm.eps, block.convolution.middle_norm.eps) == (1e-3, 1e-5)


@pytest.mark.parametrize(
    "key, found",
    [
        ("preemph", {"preemphasis": 0.0}),
        ("normalize", {"normalise": False}),
        ("highfreq", {"high_freq": 8_000.0}),
        ("n_fft", {"fft_size": 512}),
    ],
)
def test_null_means_to_nemo_what_its_code_makes_of_none(golden, tmp_path, key, found):
    features = read_checkpoint(
        with_settings(golden, tmp_path, CONFORMER, **{f"preprocessor__{key}": None})
    ).config.features
    assert {name: getattr(features, name) for name in found} == found


def test_chunks_and_the_whole_context_of_one_model(golden, tmp_path):
    contexts = [[8, 3], [-1, -1]]
    config = read_checkpoint(with_settings(golden, tmp_path, FASTCONFORMER, encoder__att_context_size=contexts)).config
    assert (config.train.chunk_sizes, config.train.num_left_chunks) == ((4, 0), (2, -1))
    assert config.not_streaming is None


@pytest.mark.parametrize(
    "key, value",
    [
        ("encoder__self_attention_model", "rel_pos_local_attn"),
        ("encoder__subsampling", "vggnet"),
        ("encoder__conv_context_size", [3, 1]),
        ("encoder__att_context_size", [64, 64]),
        ("encoder__something_new", 1),
        ("preprocessor__normalize", "all_features"),
        ("preprocessor__mag_power", 1.0),
    ],
)
def test_options_of_nemo_that_are_not_supported_are_named(golden, tmp_path, key, value):
    path = with_settings(golden, tmp_path, CONFORMER, **{key: value})
    with pytest.raises(ConversionError, match=key.replace("__", ".*")):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("encoder__att_context_size", -1),
        ("encoder__att_context_size", [None, 3]),
        ("encoder__att_context_size", [[8, 3], [8]]),
        ("encoder__att_context_size", [10, 3]),  # which NeMo refuses too: no whole chunks
        ("encoder__conv_norm_type", None),
        ("encoder__subsampling", None),
        ("preprocessor__log", None),
        ("preprocessor__sample_rate", 0),
        ("preprocessor__lowfreq", 9_000),
        ("preprocessor__dither", "none"),
    ],
)
def test_settings_of_nemo_that_make_no_sense_are_named(golden, tmp_path, key, value):
    option = {"preprocessor__lowfreq": r"features\.low_freq"}.get(key, key.replace("__", r".*\."))
    with pytest.raises(ConversionError, match=rf"changed\.nemo: .*{option}"):
        read_checkpoint(with_settings(golden, tmp_path, FASTCONFORMER, **{key: value}))


def test_a_vocabulary_that_is_no_list_is_named(golden, tmp_path):
    with pytest.raises(ConversionError, match=r"decoder\.vocabulary=5 is no list"):
        read_checkpoint(with_settings(golden, tmp_path, CONFORMER, decoder__vocabulary=5))


def test_a_small_number_may_lack_its_point(golden, tmp_path):
    """Such as 1e-05, which is text in YAML 1.1, but a number to the reader that NeMo has."""
    config = read_checkpoint(with_settings(golden, tmp_path, CONFORMER, preprocessor__dither="1e-05")).config
    assert config.features.dither == pytest.approx(1e-5 * 2**15)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda values: values.update(decoder={"type": "ByteLevel"}), r"tokenizer\.json: .*ByteLevel"),
        (lambda values: values["model"].update(end_of_word_suffix="</w>"), r"end_of_word_suffix='</w>'"),
        (lambda values: values["model"].update(continuing_subword_prefix="##"), r"continuing_subword_prefix='##'"),
    ],
)
def test_units_that_spell_in_another_way_are_refused(golden, tmp_path, change, match):
    with pytest.raises(ConversionError, match=match):
        read_checkpoint(parakeet_with(golden, tmp_path, "tokenizer.json", change))


def test_keys_that_transformers_leaves_out_have_its_defaults(golden, tmp_path):
    def change(values):
        for key in ("vocab_size", "pad_token_id", "encoder_config"):
            del values[key]

    match = r"subsampling\.linear\.weight is \[64, 160\] and not \[1024, 2560\]"
    with pytest.raises(ConversionError, match=match):
        read_checkpoint(parakeet_with(golden, tmp_path, "config.json", change))


def test_keys_of_nemo_3(golden, tmp_path):
    """The defaults change nothing. Chunks with a right context are for training, recognition takes the whole."""
    keys = {"encoder__att_chunk_context_size": None, "encoder__conv_context_style": "dcc"}
    plain = read_checkpoint(golden / FASTCONFORMER).config
    assert read_checkpoint(with_settings(golden, tmp_path, FASTCONFORMER, **keys)).config == plain
    keys |= {
        "encoder__att_context_style": "chunked_limited_with_rc",
        "encoder__att_chunk_context_size": [[8], [2], [1]],
    }
    assert "full_context" in (
        read_checkpoint(with_settings(golden, tmp_path, FASTCONFORMER, **keys)).config.not_streaming or ""
    )
