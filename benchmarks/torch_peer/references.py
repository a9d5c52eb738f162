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
from typing import Any

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
    """A folder of ParakeetForCTC, and its outputs of the batch. Weights may be narrow, and lie in shards."""
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
    """`model.nemo`, and its outputs of the batch under the mask of each context.

    A hybrid model computes with its CTC head. Weights may be narrow. Of sentencepiece models, also texts and their ids.
    """
    from nemo.collections.asr import models
    from omegaconf import OmegaConf

    hybrid, pieces = "Hybrid" in settings["kind"], "BPE" in settings["kind"]
    model = getattr(models, settings["kind"])(OmegaConf.create(_nemo_config(folder, settings, hybrid, pieces)))
    randomise(model, seed)
    featurizer = model.preprocessor.featurizer
    constants = {"window": featurizer.window.clone(), "fb": featurizer.fb.clone()}
    model.to(getattr(torch, settings["dtype"])).save_to(str(folder / "model.nemo"))
    model = type(model).restore_from(str(folder / "model.nemo"), map_location="cpu").eval()
    for name, constant in constants.items():  # which a narrow checkpoint has narrow too: ours computes them
        setattr(model.preprocessor.featurizer, name, constant)
    lengths = torch.tensor([len(samples) for samples in audio])
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(samples) for samples in audio], batch_first=True)
    features, feature_lengths = model.preprocessor(input_signal=batch, length=lengths)
    found = {"features": features.swapaxes(1, 2), "feature_lengths": feature_lengths}
    head = model.ctc_decoder if hybrid else model.decoder
    for context in model.encoder.att_context_size_all:
        model.encoder.set_default_att_context_size(context)
        encoder, found["lengths"] = model.encoder(audio_signal=features, length=feature_lengths)
        name = "{}_{}".format(*context)
        found[f"encoder_{name}"] = encoder.swapaxes(1, 2)
        found[f"log_probs_{name}"] = head(encoder_output=encoder)
    if pieces:
        found["spelled"] = np.array(model.tokenizer.text_to_ids(TEXT))
        found["decoded"] = np.array(model.tokenizer.ids_to_text(found["spelled"].tolist()))
    return found


TEXT = "one two three cats sat on a mat and a rat sat there too while four dogs ran over the hill and into the blue bay"


def _nemo_config(folder: pathlib.Path, settings: dict, hybrid: bool, pieces: bool) -> dict:
    labels, dim = settings["labels"], settings["encoder"]["d_model"]
    config = {"sample_rate": settings["preprocessor"]["sample_rate"], "labels": labels}
    config |= {name: settings[name] for name in ("preprocessor", "encoder")} | {"optim": {"name": "adamw", "lr": 0.1}}
    if pieces:
        import sentencepiece

        tokens = folder / "tokens"
        tokens.mkdir()
        trainer = sentencepiece.SentencePieceTrainer
        trainer.train(
            sentence_iterator=iter([TEXT] * 4),
            model_prefix=str(tokens / "tokenizer"),
            vocab_size=28,
            hard_vocab_limit=False,
            model_type=settings["spelling"],
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
        processor = sentencepiece.SentencePieceProcessor(model_file=str(tokens / "tokenizer.model"))
        labels = [processor.id_to_piece(unit) for unit in range(len(processor))]
        (tokens / "vocab.txt").write_text("\n".join(labels[1:]))
        config["tokenizer"] = {"dir": str(tokens), "type": "bpe"}
    modules = "nemo.collections.asr.modules"
    head = {"_target_": f"{modules}.ConvASRDecoder", "feat_in": dim, "num_classes": len(labels), "vocabulary": labels}
    if not hybrid:
        return config | {"decoder": head}
    network = {"pred_hidden": 8, "pred_rnn_layers": 1, "dropout": 0.0}
    joint = {"joint_hidden": 8, "activation": "relu", "encoder_hidden": dim, "pred_hidden": 8}
    return config | {
        "model_defaults": {"enc_hidden": dim, "pred_hidden": 8},
        "decoder": {"_target_": f"{modules}.RNNTDecoder", "vocab_size": len(labels), "prednet": network},
        "joint": {"_target_": f"{modules}.RNNTJoint", "num_classes": len(labels), "vocabulary": labels}
        | {"jointnet": joint},
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default"},
        "aux_ctc": {"decoder": head, "ctc_loss_weight": 0.3, "use_cer": False},
    }


class WenetEncoder(torch.nn.Module):
    """The encoder of WeNet (December 2025), which no registry has: written anew, with its names, for one utterance.

    Source: wenet/models/transformer of github wenet-e2e/wenet. `tests/test_references.py` compares it with the golden
    outputs of WeNet itself.
    """

    def __init__(self, bins: int, conf: dict):
        super().__init__()
        self.conf, dim = conf, conf["output_size"]
        taps = {"conv2d": [(3, 2)] * 2, "conv2d6": [(3, 2), (5, 3)], "conv2d8": [(3, 2)] * 3}[conf["input_layer"]]
        layers, channels = [], 1
        for size, stride in taps:
            layers += [torch.nn.Conv2d(channels, dim, size, stride), torch.nn.ReLU()]
            channels, bins = dim, (bins - size) // stride + 1
        self.embed = torch.nn.Module()
        self.embed.conv = torch.nn.Sequential(*layers)
        projection = torch.nn.Linear(dim * bins, dim)
        if conf["input_layer"] == "conv2d":
            self.embed.out = torch.nn.Sequential(projection)
        else:
            self.embed.linear = projection
        self.project = [projection]  # a list: it is no second module
        self.after_norm = torch.nn.LayerNorm(dim, eps=conf["norm_eps"])
        self.encoders = torch.nn.ModuleList([self._block(dim) for _ in range(conf["num_blocks"])])

    def _block(self, dim: int) -> torch.nn.Module:
        conf, block = self.conf, torch.nn.Module()
        bias, taps = conf["conv_bias"], conf["cnn_module_kernel"]
        for norm in ("norm_ff_macaron", "norm_mha", "norm_conv", "norm_ff", "norm_final"):
            setattr(block, norm, torch.nn.LayerNorm(dim, eps=conf["norm_eps"]))
        for name in ("feed_forward_macaron", "feed_forward"):
            part = torch.nn.Module()
            part.w_1 = torch.nn.Linear(dim, conf["linear_units"], bias=conf["mlp_bias"])
            part.w_2 = torch.nn.Linear(conf["linear_units"], dim, bias=conf["mlp_bias"])
            setattr(block, name, part)
        block.self_attn = attention = torch.nn.Module()
        for name, biased in (("q", "query_bias"), ("k", "key_bias"), ("v", "value_bias"), ("out", "query_bias")):
            setattr(attention, f"linear_{name}", torch.nn.Linear(dim, dim, bias=conf[biased]))
        attention.linear_pos = torch.nn.Linear(dim, dim, bias=False)
        heads = conf["attention_heads"]
        attention.pos_bias_u = torch.nn.Parameter(torch.zeros(heads, dim // heads))
        attention.pos_bias_v = torch.nn.Parameter(torch.zeros(heads, dim // heads))
        block.conv_module = module = torch.nn.Module()
        module.pointwise_conv1 = torch.nn.Conv1d(dim, 2 * dim, 1, bias=bias)
        padding = 0 if conf["causal"] else taps // 2
        module.depthwise_conv = torch.nn.Conv1d(dim, dim, taps, padding=padding, groups=dim, bias=bias)
        batch = conf["cnn_module_norm"] == "batch_norm"
        kind = torch.nn.BatchNorm1d if batch else torch.nn.LayerNorm
        module.norm = kind(dim, eps=conf.get("conv_norm_eps", 1e-5))
        module.pointwise_conv2 = torch.nn.Conv1d(dim, dim, 1, bias=bias)
        if conf["old"]:
            block.concat_linear = torch.nn.Linear(2 * dim, dim)
        return block

    def forward(self, features: torch.Tensor, chunk_size: int, left: int) -> torch.Tensor:
        """(frames, channels) of normalised features (time, mel); chunk_size 0 = the whole utterance."""
        x = self.embed.conv(features[None, None])[0]
        x = self.project[0](x.transpose(0, 1).flatten(1)) * self.conf["output_size"] ** 0.5
        count, dim = x.shape
        rates = torch.exp(torch.arange(0, dim, 2) * -(np.log(10_000.0) / dim))
        angles = torch.arange(count)[:, None] * rates
        positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        chunk = torch.arange(count) // (chunk_size or count)
        behind = chunk[:, None] - chunk[None]
        seen = (behind >= 0) & ((behind <= left) | (left < 0))
        for b in self.encoders:
            x = x + 0.5 * self._feed_forward(b.feed_forward_macaron, b.norm_ff_macaron(x))
            x = x + self._attend(b.self_attn, b.norm_mha(x), positions, seen)
            x = x + self._convolve(b.conv_module, b.norm_conv(x))
            x = b.norm_final(x + 0.5 * self._feed_forward(b.feed_forward, b.norm_ff(x)))
        return self.after_norm(x) if self.conf["final_norm"] else x

    @staticmethod
    def _feed_forward(part: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return part.w_2(torch.nn.functional.silu(part.w_1(x)))

    def _attend(self, a: torch.nn.Module, x: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        heads = self.conf["attention_heads"]
        q, k, v, p = (
            m(y).unflatten(1, (heads, -1))
            for m, y in zip((a.linear_q, a.linear_k, a.linear_v, a.linear_pos), (x, x, x, positions), strict=True)
        )
        scores = torch.einsum("ihd,jhd->hij", q + a.pos_bias_u, k) + torch.einsum("ihd,jhd->hij", q + a.pos_bias_v, p)
        weights = (scores / k.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(dim=-1)
        return a.linear_out(torch.einsum("hij,jhd->ihd", weights, v).flatten(1))

    def _convolve(self, c: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.T[None]
        if self.conf["causal"]:
            x = torch.nn.functional.pad(x, (self.conf["cnn_module_kernel"] - 1, 0))
        x = c.depthwise_conv(torch.nn.functional.glu(c.pointwise_conv1(x), dim=1))
        layer_norm = isinstance(c.norm, torch.nn.LayerNorm)
        x = c.norm(x.swapaxes(1, 2)).swapaxes(1, 2) if layer_norm else c.norm(x)
        return c.pointwise_conv2(torch.nn.functional.silu(x))[0].T


class Wenet(torch.nn.Module):
    """The CTC branch of a model."""

    def __init__(self, bins: int, units: int, cmvn: bool, conf: dict):
        super().__init__()
        self.encoder = WenetEncoder(bins, conf)
        self.ctc = torch.nn.Module()
        self.ctc.ctc_lo = torch.nn.Linear(conf["output_size"], units)
        if cmvn:
            self.encoder.global_cmvn = torch.nn.Module()
            for name in ("mean", "istd"):
                self.encoder.global_cmvn.register_buffer(name, torch.ones(bins))
        self.cmvn = cmvn

    def forward(self, features: torch.Tensor, chunk_size: int, left: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder outputs and log-probabilities of features (time, mel)."""
        if self.cmvn:
            features = (features - self.encoder.global_cmvn.mean) * self.encoder.global_cmvn.istd
        x = self.encoder(features, chunk_size, left)
        return x, self.ctc.ctc_lo(x).log_softmax(dim=-1)


def make_wenet(folder: pathlib.Path, seed: int, audio: list, settings: dict) -> dict:
    """A folder of WeNet, and the outputs of each utterance by itself, of random features."""
    import yaml

    conf, config = settings["oracle"], settings["config"]
    model = Wenet(config["input_dim"], config["output_dim"], settings["cmvn"], conf)
    randomise(model, seed)
    torch.save(model.state_dict(), folder / "final.pt")
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    symbols = ["<blank>", "<unk>", *map(chr, range(0x4E00, 0x4E00 + config["output_dim"] - 2))]
    lines = [f"{symbol} {unit}\n" for unit, symbol in enumerate(symbols)]
    (folder / "units.txt").write_text("".join(lines), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(samples) // 160 for samples in audio]
    features = [torch.randn((length, config["input_dim"]), generator=generator) for length in lengths]
    pad = torch.nn.utils.rnn.pad_sequence
    found = {"features": pad(features, batch_first=True), "feature_lengths": torch.tensor(lengths)}
    for chunk_size, left in settings["chunks"]:
        outputs = [model(x, chunk_size, left) for x in features]
        found["lengths"] = torch.tensor([len(x) for x, _ in outputs])
        name = f"{left * chunk_size}_{chunk_size - 1}"
        found[f"encoder_{name}"], found[f"log_probs_{name}"] = (
            pad(list(x), batch_first=True) for x in zip(*outputs, strict=True)
        )
    return found


MAKERS = {"transformers": make_transformers, "nemo": make_nemo, "wenet": make_wenet}


def main() -> None:
    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print belongs to no reply
    for line in sys.stdin:
        request = json.loads(line)
        folder = pathlib.Path(request["folder"])
        with np.load(folder / "audio.npz") as stored:
            audio = [stored[name] for name in stored.files]
        reply = {}
        try:
            with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
                found = MAKERS[request["reference"]](folder, request["seed"], audio, request["settings"])
            arrays: dict[str, Any] = {name: np.asarray(array) for name, array in found.items()}
            np.savez(folder / "outputs.npz", **arrays)
        except ImportError as error:
            reply = {"missing": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
