"""The embedded corpus: connected digits and short commands, spoken in process by espeak-ng.

espeak-ng is a formant synthesiser, about a thousand times faster than real time, so that an experiment needs no
download and starts in seconds. A voice is an accent of English with a variant (throat), a rate, a pitch and a pitch
range. Voices are disjoint between the splits, and so are the variants: evaluation is on throats never heard.
"""

import pathlib
import re
import tempfile
from collections.abc import Sequence

import numpy as np

from conformer.audio import float_to_pcm16, resample
from conformer.config import SyntheticConfig
from conformer.data.manifest import DataError, Pcm, Utterance
from conformer.espeak import Espeak, Voice

ACCENTS = (
    "en-us",
    "en-us-nyc",
    "en",  # Great Britain
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
# The variants that sound like people; robots, whispers and echoes are left out. Low and high voices take turns, so that
# every split gets both.
_LOW = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Andy", "Lee", "max", "Mike", "robert")
_HIGH = ("f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie", "aunty", "belinda", "grandma", "linda", "shelby")
VARIANTS = tuple(variant for pair in zip(_LOW, _HIGH, strict=True) for variant in pair)
RATES, PITCHES, PITCH_RANGES = (120, 191), (35, 66), (30, 81)  # half-open ranges that voices draw from

DIGITS = "(zero|one|two|three|four|five|six|seven|eight|nine)"
# "(a|b)" is one of a and b.
COMMANDS = (
    "turn (on|off) the (light|fan|heater|radio)",
    "turn (up|down) the (volume|heater|radio|music)",
    "(play|stop|pause) the music",
    "(next|last) song",
    "(open|close) the (door|window)",
    "call (home|mum|david)",
    f"set a timer for {DIGITS} minutes",
    "(yes|no|stop|cancel|repeat|next|play|pause|open|close|on|off|up|down)",
)


def synthesise(config: SyntheticConfig, sample_rate: int) -> list[Utterance]:
    """Speaks the corpus at `sample_rate` Hz: splits train, dev and test, the same for the same config, always.

    Half of the utterances are one to six digits, half are commands. Each has 0.1 to 0.5 s of silence before and after
    it, a random level, and white noise at -75 to -50 dBFS, so that silence is not digital zero.

    Raises EspeakError if espeak-ng is not installed, DataError if `config.num_voices` is too small for three splits.
    """
    rng = np.random.default_rng(config.seed)
    voices = draw_voices(config, rng)
    counts = {"train": config.train_utterances, "dev": config.eval_utterances, "test": config.eval_utterances}
    utterances = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a loaded library
        espeak = Espeak(pathlib.Path(folder))
        for split, count in counts.items():
            for index in range(count):
                voice = voices[split][rng.integers(len(voices[split]))]
                audio = Pcm(_record(espeak, text := draw_text(rng), voice, sample_rate, rng), sample_rate)
                seconds = len(audio.data) / sample_rate
                utterances.append(Utterance(f"{split}-{index:05d}", text, str(voice), split, seconds, audio))
    return utterances


def speak_runs(texts: Sequence[str], count: int, config: SyntheticConfig, sample_rate: int) -> list[Utterance]:
    """`count` utterances for training, each a run of words of one of `texts`, in training voices.

    Most are one to three words long: CTC learns its first alignments from short utterances, and read speech has none.
    Raises as `synthesise` does.
    """
    rng = np.random.default_rng((config.seed, 1))
    voices = draw_voices(config, rng)["train"]
    sentences = [words for text in texts if (words := text.split())]
    utterances = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        espeak = Espeak(pathlib.Path(folder))
        for index in range(count if sentences else 0):
            words = sentences[rng.integers(len(sentences))]
            length = min(int(rng.geometric(0.4)), len(words))
            start = int(rng.integers(len(words) - length + 1))
            voice, text = voices[rng.integers(len(voices))], " ".join(words[start : start + length])
            audio = Pcm(_record(espeak, text, voice, sample_rate, rng), sample_rate)
            seconds = len(audio.data) / sample_rate
            utterances.append(Utterance(f"spoken-{index:05d}", text, str(voice), "train", seconds, audio))
    return utterances


def draw_voices(config: SyntheticConfig, rng: np.random.Generator) -> dict[str, list[Voice]]:
    """`config.num_voices` different voices by split: about 80 % in train, 10 % in dev, 10 % in test.

    No two splits share a variant. Raises DataError if there are too few voices for that.
    """
    if config.num_voices < 3:
        raise DataError(f"data.synthetic.num_voices={config.num_voices} must be at least 3, one for each split")
    variants = VARIANTS[: config.num_voices]
    num_eval = max(1, round(0.1 * len(variants)))
    order = np.roll(variants, rng.integers(len(variants))).tolist()
    splits = dict.fromkeys(order, "train")
    splits.update(dict.fromkeys(order[:num_eval], "dev") | dict.fromkeys(order[num_eval : 2 * num_eval], "test"))
    accents = rng.permutation(ACCENTS).tolist()
    voices: dict[str, list[Voice]] = {"train": [], "dev": [], "test": []}
    for index in range(config.num_voices):
        turn, position = divmod(index, len(variants))
        # Every turn pairs each variant with another accent, until all pairs have been.
        accent, variant = accents[(turn + position) % len(accents)], variants[position]
        rate, pitch, pitch_range = (int(rng.integers(*limits)) for limits in (RATES, PITCHES, PITCH_RANGES))
        voices[splits[variant]].append(Voice(f"{accent}+{variant}", rate, pitch, pitch_range))
    return voices


def draw_text(rng: np.random.Generator) -> str:
    """Digits or a command."""
    digits, command = " ".join([DIGITS] * rng.integers(1, 7)), _choose(COMMANDS, rng)
    pattern = digits if rng.random() < 0.5 else command
    return re.sub(r"\((.*?)\)", lambda choices: _choose(choices[1].split("|"), rng), pattern)


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _record(espeak: Espeak, text: str, voice: Voice, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """int16 samples of a text as recorded: silence around it, a level, noise."""
    speech = resample(espeak.speak(text, voice), espeak.sample_rate, sample_rate)
    before, after = rng.integers(round(0.1 * sample_rate), round(0.5 * sample_rate), 2)
    peak, noise = 10 ** (rng.uniform(-20, -1) / 20), 10 ** (rng.uniform(-75, -50) / 20)
    audio = noise * rng.standard_normal(before + len(speech) + after, dtype=np.float32)
    audio[before : before + len(speech)] += speech * (peak / np.abs(speech).max())
    return float_to_pcm16(audio)
