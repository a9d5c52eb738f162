"""The embedded corpus."""

import collections
import hashlib
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("espeakng_loader", reason="the embedded corpus needs pip install -e '.[demo]'")

from conformer.config import SyntheticConfig
from conformer.data import synthetic
from conformer.data.manifest import DataError
from conformer.espeak import Espeak, EspeakError, Voice

SMALL = SyntheticConfig(num_voices=40, train_utterances=60, eval_utterances=12, seed=3)


@pytest.fixture(scope="module")
def corpus():
    return synthetic.synthesise(SMALL, 16000)


def digest(utterances):
    parts = (f"{u.id} {u.text} {u.speaker} {u.split}".encode() + u.audio.data.tobytes() for u in utterances)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_sizes_and_ids(corpus):
    assert collections.Counter(u.split for u in corpus) == {"train": 60, "dev": 12, "test": 12}
    assert len({u.id for u in corpus}) == len(corpus)


def test_same_corpus_in_every_call_and_process(corpus):
    assert digest(synthetic.synthesise(SMALL, 16000)) == digest(corpus)
    code = (
        "from tests.test_synthetic import SMALL, digest, synthetic; print(digest(synthetic.synthesise(SMALL, 16000)))"
    )
    root = pathlib.Path(__file__).parents[1]
    process = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == digest(corpus)


def test_seed_decides(corpus):
    other = SyntheticConfig(num_voices=40, train_utterances=60, eval_utterances=12, seed=4)
    assert digest(synthetic.synthesise(other, 16000)) != digest(corpus)


@pytest.mark.parametrize("num_voices", [3, 10, 40, 160, 300])
def test_no_voice_and_no_throat_in_two_splits(num_voices):
    voices = synthetic.draw_voices(SyntheticConfig(num_voices=num_voices), np.random.default_rng(0))
    assert sum(map(len, voices.values())) == num_voices == len(set().union(*voices.values()))
    throats = [{voice.name.partition("+")[2] for voice in of} for of in voices.values()]
    assert all(throats) and sum(map(len, throats)) == len(set().union(*throats))
    if num_voices >= 100:
        assert 0.05 < len(voices["dev"]) / num_voices < 0.15
        assert 0.05 < len(voices["test"]) / num_voices < 0.15


def test_the_library_has_every_voice(tmp_path):
    import espeakng_loader

    variants = pathlib.Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    assert not [variant for variant in synthetic.VARIANTS if not (variants / variant).is_file()]
    espeak = Espeak(tmp_path)
    voices = [Voice(f"{accent}+m1", 160, 50, 50) for accent in synthetic.ACCENTS]
    assert len({espeak.speak("turn off the light", voice).tobytes() for voice in voices}) == len(voices)


def test_unknown_voice_is_an_error(tmp_path):
    with pytest.raises(EspeakError, match="no voice xx"):
        Espeak(tmp_path).speak("three", Voice("xx+m1", 160, 50, 50))


def test_texts_are_plain_words(corpus):
    rng = np.random.default_rng(0)
    texts = [synthetic.draw_text(rng) for _ in range(3000)]
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", text) for text in texts + [u.text for u in corpus])
    assert 40 <= len(set(" ".join(texts).split())) <= 60
    assert len(set(texts)) > 1000


def test_audio_is_speech_in_low_noise(corpus):
    for utterance in corpus:
        samples = utterance.samples(16000)
        assert 0.5 < utterance.duration <= 6.0 and len(samples) == round(utterance.duration * 16000)
        assert 0.05 < np.abs(samples).max() < 0.95
        for silence in (samples[:1600], samples[-1600:]):
            assert 0 < np.sqrt(np.mean(silence**2)) < 0.01


def test_other_sample_rates(corpus):
    low = synthetic.synthesise(SyntheticConfig(num_voices=40, train_utterances=2, eval_utterances=0, seed=3), 8000)
    assert [u.text for u in low] == [u.text for u in corpus[:1]] + [low[1].text]
    assert all(len(u.samples(8000)) == round(8000 * u.duration) for u in low)


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(EspeakError, match=r"pip install -e '\.\[demo\]'"):
        synthetic.synthesise(SMALL, 16000)


def test_too_few_voices():
    with pytest.raises(DataError, match=r"data\.synthetic\.num_voices=2 must be at least 3"):
        synthetic.synthesise(SyntheticConfig(num_voices=2), 16000)


def test_runs_of_words_are_spoken_in_training_voices():
    config = SyntheticConfig(num_voices=12)
    texts = ["the quick brown fox", "", "jumps"]
    utterances = synthetic.speak_runs(texts, 20, config, 16_000)
    voices = {str(voice) for voice in synthetic.draw_voices(config, np.random.default_rng((config.seed, 1)))["train"]}
    assert len(utterances) == 20 and len({u.id for u in utterances}) == 20
    assert all(u.text and any(f" {u.text} " in f" {text} " for text in texts) for u in utterances)
    assert all(u.split == "train" and u.speaker in voices for u in utterances)
    assert {len(u.text.split()) for u in utterances} > {1}
    again = synthetic.speak_runs(texts, 20, config, 16_000)
    assert all(np.array_equal(a.samples(16_000), b.samples(16_000)) for a, b in zip(utterances, again, strict=True))
    assert synthetic.speak_runs([""], 5, config, 16_000) == []
