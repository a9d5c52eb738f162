"""Error rates against known cases and an independent edit distance; greedy decoding in any chunking."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer.decode.greedy import GreedyDecoder, Token, greedy
from conformer.evaluation.scorer import Score, ScoreError, difference, score, score_each, write_errors

sentences = st.lists(st.sampled_from(["one", "two", "three", "oh"]), max_size=6).map(" ".join)


def levenshtein(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, left in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def test_known_case():
    result = score(
        ["turn on the kitchen light now", "volume up", "stop"], ["turn off the light now please", "Volume  UP\n", ""]
    )
    # Substituted: on; deleted: kitchen, stop; inserted: please.
    assert (result.substitutions, result.deletions, result.insertions) == (1, 2, 1)
    assert (result.errors, result.words, result.utterances) == (4, 9, 3)
    assert result.wer == 4 / 9
    assert 0 <= result.wer_low <= result.wer <= result.wer_high


def test_identical_and_empty():
    perfect = score(["a b", "c"], ["A b", " c "])
    assert (perfect.wer, perfect.wer_low, perfect.wer_high, perfect.cer, perfect.errors) == (0, 0, 0, 0, 0)
    silent = score(["a b", "c"], ["", ""])
    assert (silent.wer, silent.wer_low, silent.wer_high, silent.cer, silent.deletions) == (1, 1, 1, 1, 3)


def test_empty_reference_counts_insertions():
    result = score(["", "a b", ""], ["x y", "a b", ""])
    assert (result.insertions, result.errors, result.words, result.wer) == (2, 2, 2, 1.0)
    assert np.isfinite(result.wer_high)


def test_characters():
    assert score(["abc d"], ["abd d"]).cer == 1 / 5
    assert score(["ab cd"], ["abcd"]).cer == 1 / 5  # the space


@settings(max_examples=60)
@given(pairs=st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8))
def test_matches_an_independent_edit_distance(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    words = sum(len(reference.split()) for reference in references)
    if not words:
        with pytest.raises(ScoreError, match="holds a word"):
            score(references, hypotheses)
        return
    result = score(references, hypotheses)
    assert result.words == words
    assert result.errors == sum(levenshtein(ref.split(), hyp.split()) for ref, hyp in pairs)
    assert result.errors == result.substitutions + result.deletions + result.insertions
    assert result.substitutions + result.deletions <= words
    assert words - result.deletions + result.insertions == sum(len(hyp.split()) for hyp in hypotheses)
    assert result.wer == pytest.approx(result.errors / words)
    characters = sum(levenshtein(ref, hyp) for ref, hyp in pairs)
    assert result.cer == pytest.approx(characters / sum(map(len, references)))


def test_interval():
    """The interval is as wide as the normal approximation, and shrinks with the root of the corpus."""
    rng = np.random.default_rng(0)

    def interval(num_utterances):
        wrong = rng.random(num_utterances) < 0.2
        result = score(["word"] * num_utterances, ["other" if is_wrong else "word" for is_wrong in wrong])
        return result.wer_high - result.wer_low

    for num_utterances in (100, 1_600):
        expected = 2 * 1.96 * np.sqrt(0.2 * 0.8 / num_utterances)
        assert interval(num_utterances) == pytest.approx(expected, rel=0.3)


def test_score_is_reproducible_and_readable():
    references, hypotheses = ["a b c", "d e", "f"], ["a x c", "d e", "g"]
    result = score(references, hypotheses)
    assert result == score(references, hypotheses)
    assert Score(**json.loads(json.dumps(result.as_dict()))) == result
    assert str(result).startswith("WER 33.33% (95 % interval ") and "2 errors in 6 words" in str(result)


def test_refusals(tmp_path):
    with pytest.raises(ScoreError, match="2 references, but 1 hypotheses"):
        score(["a", "b"], ["a"])
    with pytest.raises(ScoreError, match="no utterances"):
        score([], [])
    with pytest.raises(ScoreError, match="holds a word"):
        score(["", " "], ["a", "b"])
    with pytest.raises(ScoreError, match="1 ids for 2"):
        write_errors(tmp_path / "errors.jsonl", ["x"], ["a", "b"], ["a", "b"])
    assert not (tmp_path / "errors.jsonl").exists()


def test_write_errors(tmp_path):
    path = tmp_path / "errors.jsonl"
    references = ["volume up", "turn on the kitchen light now", "", "né"]
    write_errors(
        path, ["u1", "u2", "u3", "u4"], references, ["volume  UP", "turn off the light now please", "oh", "ne"]
    )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["u2", "u3", "u4", "u1"]
    assert [row["wer"] for row in rows] == [0.5, None, 1.0, 0.0]
    assert rows[0] == {
        "id": "u2",
        "wer": 0.5,
        "errors": 3,
        "sub": 1,
        "del": 1,
        "ins": 1,
        "ref": "turn on the kitchen light now",
        "hyp": "turn off the light now please",
        "aligned": "turn {on → off} the {kitchen → *} light now {* → please}",
    }
    assert rows[1]["aligned"] == "{* → oh}" and rows[3]["aligned"] == "volume up"
    assert "né" in path.read_text(encoding="utf-8")


def frames(ids, vocab=4):
    """Log probabilities whose best symbols are `ids`, each frame with a confidence of its own."""
    logits = np.eye(vocab, dtype=np.float32)[np.asarray(ids, int)] * np.linspace(2, 4, len(ids))[:, None]
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def test_greedy_merges_runs_and_drops_blanks():
    log_probs = frames([0, 2, 2, 0, 2, 3, 3, 0, 0, 1])
    tokens = greedy(log_probs)
    assert [(token.id, token.frame) for token in tokens] == [(2, 1), (2, 4), (3, 5), (1, 9)]
    assert all(token.log_prob == log_probs[token.frame, token.id] for token in tokens)
    assert tokens[0] == Token(2, 1, float(log_probs[1, 2]))
    assert greedy(frames([])) == [] and greedy(frames([0, 0, 0])) == []


@settings(max_examples=60)
@given(ids=st.lists(st.integers(0, 3), max_size=20), cuts=st.lists(st.integers(0, 20), max_size=5))
def test_any_chunking_gives_the_same_tokens(ids, cuts):
    log_probs, decoder = frames(ids), GreedyDecoder()
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    tokens = [token for start, stop in itertools.pairwise(bounds) for token in decoder.step(log_probs[start:stop])]
    assert tokens == greedy(log_probs)


def test_a_difference_is_paired():
    """Both recognisers find the same utterances hard, and one of them makes an error less in each."""
    references = ["one two oh three"] * 20
    theirs = np.random.default_rng(0).integers(1, 4, 20)
    found = difference(theirs - 1, theirs, references)
    assert found["wer_difference"] == found["low"] == found["high"] == pytest.approx(-0.25)
    assert score_each(["one two", "oh"], ["two", "oh oh oh"])[1].tolist() == [1, 2]
