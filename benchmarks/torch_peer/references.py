"""Random checkpoints of transformers and of NeMo, saved and computed by these libraries, for `tests.references`.

Runs in the peers' environment (PyTorch, and transformers or NeMo), and answers requests, lines of JSON, until its input
ends: "make" writes a checkpoint of given settings and `outputs.npz`, which holds what the library computed.
"""

# pyright: reportMissingImports=false

import contextlib
import json
import os
import pathlib
import sys

import numpy as np
import torch


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter and statistic, so that nothing is hidden by the value it starts with."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, value in state.items():
        if not name.startswith(("encoder.", "ctc_head", "decoder.", "ctc_decoder.")) or not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim == 1 or name.endswith(("bias_u", "bias_v")):
            value.copy_(0.3 * noise + (name.endswith("weight") and ("norm" in name)))
        else:
            value.copy_(noise / value[0].numel() ** 0.5)
    model.load_state_dict(state)
    model.eval()


def make_transformers(folder: pathlib.Path, seed: int, audio: list, settings: dict) -> dict:
    """A folder of ParakeetForCTC, and its outputs of the batch. Weights may be kept in a narrow format and in shards."""
    from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC

    config = ParakeetCTCConfig(encoder_config=settings["encoder"], **settings["head"])
    model = ParakeetForCTC(config)
    randomise(model, seed)
    model.to(getattr(torch, settings["dtype"])).save_pretrained(folder, max_shard_size=settings["shard"])
    model = ParakeetForCTC.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = ParakeetFeatureExtractor(**settings["features"])
    extractor.save_pretrained(folder)  # preprocessor_config.json
    units, blank = settings["head"]["vocab_size"], settings["head"]["pad_token_id"]
    pieces = {chr(0x4E00 + unit): unit for unit in range(units) if unit != blank}
    blanks = [{"id": blank, "content": "<pad>", "special": True}]
    tokenizer = {"added_tokens": blanks, "model": {"type": "BPE", "vocab": pieces, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    batch = extractor(audio, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    encoder = model.encoder(batch["input_features"], attention_mask=batch["attention_mask"])
    return {
        "features": batch["input_features"],
        "feature_lengths": batch["attention_mask"].sum(-1),
        "lengths": encoder.attention_mask.sum(-1),
        "encoder_-1_-1": encoder.last_hidden_state,
        "log_probs_-1_-1": torch.log_softmax(model.ctc_head(encoder.last_hidden_state), dim=-1),
    }


def make_nemo(folder: pathlib.Path, seed: int, audio: list, settings: dict) -> dict:
    """`model.nemo` with characters for units, and its outputs of the batch under the mask of each context."""
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    model = EncDecCTCModel(OmegaConf.create(settings))
    randomise(model, seed)
    model.save_to(str(folder / "model.nemo"))
    lengths = torch.tensor([len(samples) for samples in audio])
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(samples) for samples in audio], batch_first=True)
    features, feature_lengths = model.preprocessor(input_signal=batch, length=lengths)
    found = {"features": features.swapaxes(1, 2), "feature_lengths": feature_lengths}
    for context in model.encoder.att_context_size_all:
        model.encoder.set_default_att_context_size(context)
        encoder, found["lengths"] = model.encoder(audio_signal=features, length=feature_lengths)
        name = "{}_{}".format(*context)
        found[f"encoder_{name}"] = encoder.swapaxes(1, 2)
        found[f"log_probs_{name}"] = model.decoder(encoder_output=encoder)
    return found


MAKERS = {"transformers": make_transformers, "nemo": make_nemo}


def main() -> None:
    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print belongs to no reply
    for line in sys.stdin:
        request = json.loads(line)
        folder = pathlib.Path(request["folder"])
        with np.load(folder / "audio.npz") as stored:
            audio = [stored[f"audio_{row}"] for row in range(len(stored.files))]
        reply = {}
        try:
            with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
                found = MAKERS[request["reference"]](folder, request["seed"], audio, request["settings"])
            np.savez(folder / "outputs.npz", **{name: np.asarray(array) for name, array in found.items()})
        except ImportError as error:
            reply = {"missing": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
