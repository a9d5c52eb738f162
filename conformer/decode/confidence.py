"""Confidence: the probability that a recognised word is right, calibrated on speech that was not trained on.

The evidence of a token is the largest probability that it has while it lasts. The evidence p of a word is the product
of its tokens'. The mean over the words of a segment tells speech of unknown words from a single doubtful word. Hence

    confidence = sigmoid(own logit(p) + context mean(logit(p)) + offset)

where own, context and offset are fitted by `eval.py --calibrate` and kept beside the model. Without them, the
confidence is p.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from conformer import system
from conformer.decode.greedy import Token
from conformer.decode.track import Track
from conformer.tokenizer import SPACE_SYMBOL, Tokenizer
from kernels.typing import Float

CONFIDENCE_FILE = "confidence.json"
SUREST = 1e-6  # no evidence is nearer to 1


class ConfidenceError(ValueError):
    """A calibration that cannot be read; the message names its file and the remedy."""


class Peaks:
    """The best symbol of each frame and its log-probability: what evidence is read from."""

    def __init__(self):
        self._ids, self._log_probs = Track(), Track()

    def add(self, log_probs: Float[np.ndarray, "frames vocab"]) -> None:
        """Takes the next frames."""
        self._ids.add(log_probs.argmax(axis=1))
        self._log_probs.add(log_probs.max(axis=1))

    def forget(self, frame: int) -> None:
        """Drops the frames before one."""
        self._ids.forget(frame)
        self._log_probs.forget(frame)

    def of(self, token: Token) -> float:
        """The largest log-probability of a token while it lasts."""
        ids, log_probs = self._ids.values, self._log_probs.values
        peak, place = token.log_prob, token.frame - self._ids.start
        while 0 <= place < len(ids) and ids[place] == token.id:
            peak, place = max(peak, float(log_probs[place])), place + 1
        return peak

    def evidence(self, words: Sequence[Sequence[Token]]) -> Float[np.ndarray, " words"]:
        """The logit of each word's own evidence."""
        logs = np.array([sum(self.of(token) for token in tokens) for tokens in words])
        logs = np.minimum(logs, np.log1p(-SUREST))
        return logs - np.log(-np.expm1(logs))


@dataclasses.dataclass(frozen=True)
class Confidence:
    """A calibration; the default is none."""

    own: float = 1.0
    context: float = 0.0
    offset: float = 0.0

    def of(self, evidence: Float[np.ndarray, " words"]) -> Float[np.ndarray, " words"]:
        """The confidence of each word of a segment, from what `Peaks.evidence` says of them."""
        if not len(evidence):
            return evidence
        return 1 / (1 + np.exp(-(self.own * evidence + self.context * evidence.mean() + self.offset)))

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Confidence":
        """The calibration beside a model; the default where there is none. Raises ConfidenceError for a broken one."""
        path = pathlib.Path(folder) / CONFIDENCE_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: float(values[field.name]) for field in dataclasses.fields(cls)})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfidenceError(f"{path} is no calibration ({error!r}): run eval.py --calibrate again") from None

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes it beside a model, unless there is nothing to write and none to replace."""
        if self == UNCALIBRATED and not (pathlib.Path(folder) / CONFIDENCE_FILE).exists():
            return
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        system.write_text(pathlib.Path(folder) / CONFIDENCE_FILE, text)


UNCALIBRATED = Confidence()


def group_words(tokens: Sequence[Token], tokenizer: Tokenizer) -> list[tuple[str, list[Token]]]:
    """The words that tokens spell: the text of each, and its tokens less those that are nothing but a space."""
    groups: list[list[Token]] = []
    for token in tokens:
        if not groups or tokenizer.symbols[token.id].startswith(SPACE_SYMBOL):
            groups.append([])
        groups[-1].append(token)
    texts = tokenizer.decode_words([token.id for token in group] for group in groups)
    spoken = [[token for token in group if tokenizer.symbols[token.id] != SPACE_SYMBOL] for group in groups]
    return [(text, group) for text, group in zip(texts, spoken, strict=True) if text]
