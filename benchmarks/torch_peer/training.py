"""The twin's process: loads the JAX model's weights, answers with logits, or trains and answers with times.

Runs in the peers' environment (`benchmarks.peers.Peer`). The training step is that of `benchmarks/training.py`.
"""

# pyright: reportMissingImports=false

import contextlib
import json
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torch_peer.conformer import ConformerCTC, load_weights
from conformer.record import versions
from conformer.system import peak_memory_mib


class Trainer:
    """The twin, its optimiser and one batch.

    Args:
        config: `conformer.config.Config` as nested dictionaries.
        arrays: path of an npz file: the weights, named "weights/..."; "features", "lengths", "labels", "label_lengths".
        num_threads: threads of PyTorch.
    """

    def __init__(self, config: dict, arrays: str, num_threads: int):
        torch.set_num_threads(num_threads)
        torch.manual_seed(config["seed"])
        train, bins = SimpleNamespace(**config["train"]), config["features"]["num_mel_bins"]
        self.model = ConformerCTC(SimpleNamespace(**config["model"]), bins)
        with np.load(arrays) as stored:
            prefix = "weights/"
            load_weights(self.model, {k.removeprefix(prefix): stored[k] for k in stored if k.startswith(prefix)})
            self.features, self.lengths, self.labels, self.label_lengths = (
                torch.from_numpy(stored[name]) for name in ("features", "lengths", "labels", "label_lengths")
            )
        self.clip_norm = train.clip_norm
        self.low_precision = None if train.compute == "float32" else getattr(torch, train.compute)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=train.learning_rate, betas=(0.9, train.beta2), fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: _learning_rate(train, step))

    def forward(self, chunk_size: int, num_left_chunks: int, output: str) -> dict:
        """Writes "logits" and "lengths" of the batch, without dropout, to the npz file `output`."""
        self.model.eval()
        with torch.inference_mode():
            logits, lengths = self.model(self.features, self.lengths, chunk_size, num_left_chunks)
        np.savez(output, logits=logits.numpy(), lengths=lengths.numpy())
        return {}

    def train(self, steps: int) -> dict:
        """Updates the model `steps` times; seconds and loss of each step."""
        self.model.train()
        seconds, losses = [], []
        for _ in range(steps):
            start = time.perf_counter()
            losses.append(self._step())
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "losses": losses, "peak_memory_mib": peak_memory_mib()}

    def _step(self) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        low = self.low_precision
        with torch.autocast("cpu", low) if low else contextlib.nullcontext():
            logits, lengths = self.model(self.features, self.lengths)
        log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
        loss = F.ctc_loss(log_probs, self.labels, lengths, self.label_lengths, reduction="sum", zero_infinity=True)
        loss = loss / self.label_lengths.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        return loss.item()


def _learning_rate(train: SimpleNamespace, step: int) -> float:
    """Share of the peak: linear warm-up, then a cosine down to zero."""
    warmup = min(train.warmup_steps, train.num_steps - 1)
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (train.num_steps - warmup))))


def main() -> None:
    """Serves requests until its input ends; the first is "load"."""
    trainer = None
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        if command == "load":
            trainer = Trainer(**request)
            reply = versions("torch", "numpy")
        else:
            assert trainer is not None, "load first"
            reply = trainer.train(**request) if command == "train" else trainer.forward(**request)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
