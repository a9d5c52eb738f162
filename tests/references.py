"""Imports of random checkpoints with random settings, against the library that saved and computed them.

  python -m tests.references --reference=transformers --count=20
  python -m tests.references --reference=wenet --count=20        (its encoder, written anew: no registry has WeNet)
  python -m tests.references --reference=nemo --count=20 --python=/path/to/python    (an environment with nemo-toolkit)

Needs the peers' environment (`make peers`), or another that --python names. Features must agree to 1e-3, encoder
outputs and log-probabilities to 1e-4, streams with the masked whole to 1e-5.
"""

import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.peers import Peer, PeerError
from conformer.checkpoints.convert import read_checkpoint
from conformer.checkpoints.units import blank_first
from conformer.features import log_mel
from conformer.streaming.engine import Engine
from conformer.training.checkpoint import load_model
from tests.test_checkpoints_golden import forward, valid, windows_of_features

MODULE = "benchmarks.torch_peer.references"
SAMPLES = (9_000, 16_000, 12_345)  # of the utterances of a batch


def sounds(seed: int) -> list[np.ndarray]:
    """Utterances of gliding harmonics and noise."""
    rng = np.random.default_rng(seed)
    found = []
    for count in SAMPLES:
        time = np.arange(count) / 16_000
        pitch = 2 * np.pi * np.cumsum(rng.uniform(90, 250) * (1 + 0.3 * np.sin(5 * time))) / 16_000
        loudness = 0.1 + np.square(np.sin(9 * time + rng.uniform(0, 3)))
        voice = sum(np.sin(k * pitch) / k for k in range(1, 12)) * loudness
        found.append((0.05 * voice + 0.003 * rng.standard_normal(count)).astype(np.float32))
    return found


def random_settings(reference: str, seed: int) -> dict[str, Any]:
    """Settings that the reference takes and the importer supports."""
    rng = np.random.default_rng(seed)

    def one(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    heads = one(1, 2, 4)
    dim = heads * one(6, 10, 16)
    bins = one(64, 80, 128)
    if reference == "wenet":
        return _wenet_settings(one, dim, heads, one(40, 64, 80))
    if reference == "transformers":
        encoder = {
            "hidden_size": dim,
            "num_attention_heads": heads,
            "num_hidden_layers": one(1, 2, 3),
            "intermediate_size": one(24, 64, 100),
            "attention_bias": one(True, False),
            "convolution_bias": one(True, False),
            "conv_kernel_size": one(3, 5, 9, 31),
            "subsampling_factor": one(4, 8),
            "subsampling_conv_channels": one(3, 8, 16),
            "num_mel_bins": bins,
            "scale_input": one(True, False),
            "max_position_embeddings": one(200, 5000),
        }
        units = one(5, 29, 40)
        features = {
            "feature_size": bins,
            "hop_length": one(160, 160, 128),
            "win_length": one(400, 320, 512),
            "preemphasis": one(0.97, 0.9, 0.0, None),
        }
        return {
            "encoder": encoder,
            "head": {"vocab_size": units, "pad_token_id": one(units - 1, units - 1, 0, 3)},
            "features": features,
            "dtype": one("float32", "float16", "bfloat16"),
            "shard": one("5GB", "30KB"),
        }
    return _nemo_settings(one, dim, heads, bins)


def _nemo_settings(one: Any, dim: int, heads: int, bins: int) -> dict[str, Any]:
    taps, style = one(3, 5, 9, 31), one("regular", "chunked_limited", "chunked_limited")
    contexts = one([[8, 3], [8, 1], [8, 0]], [70, 13], [[6, 1], [4, 1]], [[12, 2], [-1, -1]], [-1, 3])
    rate = one(16_000, 16_000, 8_000)
    preprocessor = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": rate,
        "features": bins,
        "normalize": one("per_feature", "per_feature", "NA", None),
        "window_size": one(0.025, 0.025, 0.02),
        "window_stride": 0.01,
        "window": one("hann", "hamming", "blackman", "bartlett"),
        "n_fft": one(512, None, 1024),
        "preemph": one(0.97, 0.9, None),
        "lowfreq": one(0, 60),
        "highfreq": one(None, 3_600),
        "log": True,
        "frame_splicing": 1,
        "dither": one(1e-5, 0.0),
        "pad_to": one(0, 16),
        "pad_value": one(0.0, -3.0),
    }
    if rate == 8_000 or preprocessor["highfreq"]:
        preprocessor |= {"features": 64, "n_fft": 1024}  # more filters would be left without a frequency
    encoder = {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": preprocessor["features"],
        "feat_out": -1,
        "n_layers": one(1, 2, 3),
        "d_model": dim,
        "n_heads": heads,
        "use_bias": one(True, False),
        "ff_expansion_factor": one(2, 4),
        "self_attention_model": "rel_pos",
        "xscaling": one(True, False),
        "untie_biases": one(True, False),
        "pos_emb_max_len": one(300, 5000),
        "conv_kernel_size": taps,
        "conv_norm_type": one("batch_norm", "layer_norm"),
        "conv_context_size": one(None, "causal", [taps - 1, 0], [taps // 2, taps // 2]),
        "subsampling": one("striding", "dw_striding"),
        "subsampling_factor": one(4, 8),
        "subsampling_conv_channels": one(-1, 6),
        "causal_downsampling": one(True, False),
        "att_context_style": style,
        "att_context_size": one(None, [-1, -1]) if style == "regular" else contexts,
        "reduction": None,
        "reduction_position": None,
        "reduction_factor": 1,
    }
    if one(True, False):  # keys that NeMo has had since 3.0
        encoder |= {"att_chunk_context_size": None, "conv_context_style": one("regular", "dcc")}
        if style == "regular" and one(True, False):
            encoder |= {"att_context_style": "chunked_limited_with_rc", "att_chunk_context_size": [[8], [2], [0, 1]]}
    return {
        "kind": one("EncDecCTCModel", "EncDecCTCModelBPE", "EncDecHybridRNNTCTCModel", "EncDecHybridRNNTCTCBPEModel"),
        "labels": [" ", *"abcdefghijklmnopqrstuvwxyz'"][: one(5, 12, 28)],
        "spelling": one("bpe", "unigram"),
        "dtype": one("float32", "float32", "float16", "bfloat16"),
        "preprocessor": preprocessor,
        "encoder": encoder,
    }


def _wenet_settings(one: Any, dim: int, heads: int, bins: int) -> dict[str, Any]:
    defaults = {"causal": False, "cnn_module_norm": "batch_norm", "norm_eps": 1e-5, "final_norm": True}
    defaults |= dict.fromkeys(("query_bias", "key_bias", "value_bias", "mlp_bias", "conv_bias"), True)
    conf = {
        "output_size": dim,
        "attention_heads": heads,
        "linear_units": one(24, 64, 100),
        "num_blocks": one(1, 2, 3),
        "input_layer": one("conv2d", "conv2d6", "conv2d8"),
        "cnn_module_kernel": one(3, 7, 15),
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "normalize_before": True,
        "macaron_style": True,
        "activation_type": "swish",
    }
    others = {name: one(default, 1e-3 if name == "norm_eps" else not default) for name, default in defaults.items()}
    others["cnn_module_norm"] = one("batch_norm", "layer_norm")
    conf |= {name: value for name, value in others.items() if value != defaults[name]}
    dynamic = one(True, False)
    conf |= {"use_dynamic_chunk": True} if dynamic else one({}, {"static_chunk_size": 5})
    chunks = [(0, -1), (4, 2), (16, 1)] if dynamic else [(conf.get("static_chunk_size", 0), one(-1, 2))]
    cmvn, units = one(True, False), one(5, 29, 40)
    config = {
        "encoder": "conformer",
        "encoder_conf": conf,
        "dataset_conf": {"fbank_conf": {"num_mel_bins": bins, "frame_length": 25, "frame_shift": 10, "dither": 0.1}},
        "input_dim": bins,
        "output_dim": units,
        "cmvn": "global_cmvn" if cmvn else None,
    }
    oracle = defaults | conf | {"old": one(True, False)}
    return {"config": config, "oracle": oracle, "cmvn": cmvn, "chunks": chunks}


def differences(peer: Peer, reference: str, seed: int, settings: dict[str, Any], folder: pathlib.Path) -> dict | None:
    """The largest difference of each kind; None where the library is not installed."""
    audio = sounds(seed)
    np.savez(folder / "audio.npz", *audio)
    reply = peer.ask("make", reference=reference, seed=seed, settings=settings, folder=str(folder))
    if "missing" in reply:
        return None
    read_checkpoint(folder / "model.nemo" if reference == "nemo" else folder).save(folder / "workdir")
    config, model, tokenizer, _ = load_model(folder / "workdir")
    with np.load(folder / "outputs.npz") as stored:
        outputs = dict(stored)
    units = config.model.vocab_size
    blank = {"transformers": settings.get("head", {}).get("pad_token_id"), "nemo": units - 1, "wenet": 0}[reference]
    order = blank_first(units, blank)
    if "spelled" in outputs:  # of texts; the units but the blank stand one place later here
        text = str(outputs["decoded"])
        np.testing.assert_array_equal(np.array(tokenizer.encode(text)) - 1, outputs["spelled"])
        assert tokenizer.decode(tokenizer.encode(text)) == text
    batch = np.zeros((len(audio), max(map(len, audio))), np.float32)
    for row, samples in enumerate(audio):
        batch[row, : len(samples)] = samples
    counts = np.array([len(samples) for samples in audio], np.int32)
    features, lengths = jax.jit(lambda *arrays: log_mel(config.features, *arrays))(batch, counts)
    expected, feature_lengths = outputs["features"], outputs["feature_lengths"].astype(np.int32)
    found = dict.fromkeys(LIMITS, 0.0)
    if reference != "wenet":  # whose features here are random
        np.testing.assert_array_equal(lengths, feature_lengths)
        found["features"] = _largest(features, expected, lengths)
    for name in outputs:
        if not name.startswith("encoder_"):
            continue
        left, right = map(int, name.split("_")[1:3])
        chunks = (right + 1, left // (right + 1) if left >= 0 else -1) if right >= 0 else (0, -1)
        expected_log_probs = outputs[name.replace("encoder", "log_probs")][..., order]
        encoder, log_probs, lengths = forward(model)(expected, feature_lengths, *map(np.int32, chunks))
        np.testing.assert_array_equal(lengths, outputs["lengths"])
        found["encoder"] = max(found["encoder"], _largest(encoder, outputs[name], lengths))
        found["log_probs"] = max(found["log_probs"], _largest(log_probs, expected_log_probs, lengths))
        if config.not_streaming is None and chunks[0] > 0 and chunks[1] >= 0:
            engine = Engine(config, model, chunk_size=chunks[0], num_left_chunks=chunks[1])
            for row in range(len(audio)):
                engine.reset()
                windows = windows_of_features(engine.framing, expected[row, : feature_lengths[row]])
                steps = [
                    engine(w.features[None], np.full(1, w.num_frames, np.int32))[0, : w.num_frames] for w in windows
                ]
                whole = np.asarray(log_probs)[row, : lengths[row]]
                found["stream"] = max(found["stream"], float(np.abs(np.concatenate(steps) - whole).max()))
    return found


def _largest(found: Any, expected: np.ndarray, lengths: Any) -> float:
    found = np.asarray(found)
    return float(np.abs(valid(found, lengths) - valid(expected[:, : found.shape[1]], lengths)).max())


LIMITS = {"features": 1e-3, "encoder": 1e-4, "log_probs": 1e-4, "stream": 1e-5}


def main(argv: list[str]) -> None:
    del argv
    try:
        sys.exit(compare() > 0)
    except PeerError as error:
        sys.exit(f"tests.references: {error}")


def compare() -> int:
    """Prints the differences of each checkpoint. Returns how many checkpoints are wrong."""
    flag, failed = flags.FLAGS, 0
    with Peer(MODULE, python=flag.python, quiet=True) as peer:
        for seed in range(flag.first, flag.first + flag.count):
            settings = random_settings(flag.reference, seed)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found = differences(peer, flag.reference, seed, settings, pathlib.Path(folder))
                except PeerError:  # the process has ended: no other seed can be made
                    raise
                except (ValueError, AssertionError) as error:
                    found, text = {}, " ".join(str(error).split())[:300]
                else:
                    if found is None:
                        raise PeerError(f"{flag.reference} is not installed in the peers' environment")
                    text = "  ".join(f"{name} {value:.1e}" for name, value in found.items())
            wrong = not found or any(not found[name] < limit for name, limit in LIMITS.items())
            failed += wrong
            print(f"seed {seed}: {'WRONG ' if wrong else ''}{text}", flush=True)
    print(f"{flag.count} checkpoints, {failed} wrong")
    return failed


if __name__ == "__main__":
    flags.DEFINE_enum(
        "reference", "transformers", ["transformers", "nemo", "wenet"], "Library that makes the checkpoints."
    )
    flags.DEFINE_integer("count", 20, "Checkpoints.", lower_bound=1)
    flags.DEFINE_integer("first", 0, "Seed of the first.")
    flags.DEFINE_string("python", None, "Interpreter with the library; default: the peers' environment.")
    app.run(main)
