"""Decoders made from settings, and grids of settings."""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from conformer.data import Pcm, Utterance
from conformer.decode.greedy import GreedyDecoder
from conformer.decode.prefix_beam import DecodeError
from conformer.decode.search import SEARCH_FILE, Search, SearchError, make_decoding, read_lm, stored
from conformer.evaluation.tuning import TuningError, read_grid, tune
from conformer.language.arpa import write_arpa
from conformer.language.estimate import train_ngram
from conformer.tokenizer import CharTokenizer

LETTERS = CharTokenizer(["<blk>", "▁", *"abc"])


@pytest.fixture
def arpa(tmp_path):
    """The file of a model of texts."""

    def write(*texts):
        write_arpa(train_ngram(texts), tmp_path / "lm.arpa")
        return str(tmp_path / "lm.arpa")

    return write


def heard(*texts):
    """Utterances whose every letter is certain, but for "b" and "c", which both sound more like "b"."""
    pairs = []
    for text in texts:
        frames = np.full((2 * len(text), LETTERS.vocab_size), 1e-6)
        frames[1::2, 0] = 1.0
        for frame, id in zip(frames[::2], LETTERS.encode(text), strict=True):
            frame[[3, 4] if id in (3, 4) else id] = [0.6, 0.4] if id in (3, 4) else 1.0
        utterance = Utterance(text, text, "", "dev", 1.0, Pcm(np.zeros(1, np.int16), 8_000))
        pairs.append((utterance, np.log(frames / frames.sum(1, keepdims=True)).astype(np.float32)))
    return pairs


def text_of(search, log_probs):
    decoder = make_decoding(search, LETTERS, read_lm(search, LETTERS))[1]()
    decoder.step(log_probs)
    return LETTERS.decode([token.id for token in decoder.finish()])


def test_the_decoder_of_settings(arpa):
    ((_, log_probs),) = heard("ac ab")
    assert make_decoding(Search(), LETTERS, None) == (LETTERS, GreedyDecoder)
    assert text_of(Search(beam_size=4, hotwords=("ac",)), log_probs) == "ac ac"
    assert text_of(Search(beam_size=4, lm=arpa("ac ab")), log_probs) == "ac ab"
    assert text_of(Search(beam_size=4, lm=arpa("a c ▁ a b")), log_probs) == "ac ab"  # of units: it holds `▁`
    refused: tuple[dict[str, Any], ...] = ({"lm": "a.arpa"}, {"hotwords": ("ab",)})
    for settings in refused:
        with pytest.raises(DecodeError, match="need a beam search"):
            Search(**settings)


def test_settings_are_kept_beside_a_model(arpa, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert stored(folder) == {}
    search = Search(beam_size=4, lm=arpa("ac ab"), word_bonus=1.5, hotwords=("ac",))
    search.save(folder)
    assert '"lm": "../lm.arpa"' in (folder / SEARCH_FILE).read_text()
    found = Search(**stored(folder))
    assert found.lm is not None and pathlib.Path(found.lm).samefile(tmp_path / "lm.arpa")
    assert dataclasses.replace(found, lm=search.lm) == search
    for damaged in ("{", "[]", '{"beam": 4}', '{"lm": "a.arpa"}'):
        (folder / SEARCH_FILE).write_text(damaged)
        with pytest.raises(
            SearchError, match=r"search\.json holds no settings of a search .* remove it, or tune again"
        ):
            stored(folder)


def test_every_combination_is_tried_and_the_best_is_first(arpa):
    search = Search(beam_size=4, lm=arpa("ac ab"))
    grid = read_grid(["lm-weight=0,2", "oov-rate=0.5, 0"], search)
    assert [(s.lm_weight, s.oov_rate, s.beam_size) for s in grid] == [(0, 0.5, 4), (0, 0, 4), (2, 0.5, 4), (2, 0, 4)]
    seen = []
    trials = tune(heard("ac ab"), LETTERS, read_lm(search, LETTERS), grid, lambda search, score: seen.append(search))
    assert seen == grid and {search for search, _ in trials} == set(grid)
    errors = [score.errors for _, score in trials]
    assert errors == sorted(errors) and errors[0] < errors[-1]
    assert trials[0][0].lm_weight == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lm=a.arpa", "there is no setting 'lm': choose of beam-size, lm-weight, word-bonus, oov-rate"),
        ("lm-weight=0.3,x", "--tune=lm-weight=0.3,x must list numbers"),
        ("beam-size", "--tune=beam-size must list numbers"),
    ],
)
def test_settings_that_cannot_be_tried(setting, message):
    with pytest.raises(TuningError, match=re.escape(message)):
        read_grid([setting], Search())
