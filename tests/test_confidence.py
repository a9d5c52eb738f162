"""Confidence of words, its calibration, and what else may have been said."""

import numpy as np
import pytest

from conformer.data import Pcm, Utterance
from conformer.decode.alternatives import alternatives
from conformer.decode.confidence import CONFIDENCE_FILE, UNCALIBRATED, Confidence, ConfidenceError, Peaks, group_words
from conformer.decode.greedy import greedy
from conformer.decode.prefix_beam import DecodeError, PrefixBeamDecoder
from conformer.decode.search import Search, check_nbest
from conformer.evaluation.confidence import Judged, calibration_error, fit, judge
from conformer.evaluation.offline import decode
from conformer.tokenizer import CharTokenizer

LETTERS = CharTokenizer(["<blk>", "▁", *"abc"])


def heard(*frames: dict[str, float]) -> np.ndarray:
    """Log-probabilities of frames, each given by its likeliest symbols; the rest is blank."""
    probs = np.full((len(frames), LETTERS.vocab_size), 1e-4)
    for row, frame in zip(probs, frames, strict=True):
        for symbol, prob in frame.items():
            row[LETTERS.symbols.index(symbol)] = prob
        row[0] = max(1 - row[1:].sum(), 1e-4)
    return np.log(probs / probs.sum(1, keepdims=True)).astype(np.float32)


FRAMES = heard({"a": 0.6}, {"a": 0.9}, {}, {"b": 0.8}, {}, {"▁": 0.9}, {"c": 0.7, "b": 0.25})


def test_evidence_is_the_product_of_what_tokens_reach():
    peaks = Peaks()
    for piece in np.split(FRAMES, [1, 4]):
        peaks.add(piece)
    words = group_words(greedy(FRAMES), LETTERS)
    assert [text for text, _ in words] == ["ab", "c"]
    confidences = UNCALIBRATED.of(peaks.evidence([tokens for _, tokens in words]))
    assert confidences == pytest.approx([0.9 * 0.8, 0.7], abs=0.01)
    peaks.forget(5)
    assert UNCALIBRATED.of(peaks.evidence([words[1][1]])) == pytest.approx([0.7], abs=0.01)


def test_a_fit_finds_the_calibration_that_made_the_data(tmp_path):
    rng = np.random.default_rng(0)
    truth = Confidence(0.7, 0.4, -1.5)
    judged = []
    for _ in range(800):
        evidence = rng.normal(rng.normal(2, 2), 2, 6)
        judged.append(Judged(evidence, rng.random(6) < truth.of(evidence)))
    found = fit(judged)
    assert (found.own, found.context, found.offset) == pytest.approx((0.7, 0.4, -1.5), abs=0.15)
    before, after = calibration_error(judged, UNCALIBRATED), calibration_error(judged, found)
    assert after["words"] < 0.02 < before["words"] and after["segments"] < before["segments"]
    UNCALIBRATED.save(tmp_path)
    assert not (tmp_path / CONFIDENCE_FILE).exists() and Confidence.load(tmp_path) == UNCALIBRATED
    found.save(tmp_path)
    assert Confidence.load(tmp_path) == found
    (tmp_path / CONFIDENCE_FILE).write_text('{"own": 1}')
    with pytest.raises(ConfidenceError, match=r"eval\.py --calibrate again"):
        Confidence.load(tmp_path)


def test_words_are_judged_by_what_was_said():
    utterances = [Utterance("u", text, "", "dev", 1.0, Pcm(np.zeros(1, np.int16), 8_000)) for text in ("ab b", "")]
    transcripts = decode([(utterance, FRAMES) for utterance in utterances], {}, LETTERS, num_alternatives=1)
    assert [one.right.tolist() for one in judge(transcripts)] == [[True, False], [False, False]]


def test_alternatives_are_texts_of_the_beam_best_first():
    decoder = PrefixBeamDecoder(8)
    decoder.step(FRAMES)
    decoder.finish()
    found = alternatives(decoder, LETTERS, 3)
    assert [alternative.text for alternative in found][:2] == ["ab c", "ab b"] and len(found) == 3
    assert found[0].score > found[1].score > found[2].score
    assert alternatives(decoder, LETTERS, 0) == []
    check_nbest(8, Search(beam_size=8))
    with pytest.raises(DecodeError, match="--nbest=3 needs a beam search"):
        check_nbest(3, Search())
