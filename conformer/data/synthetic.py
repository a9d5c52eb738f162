"""The embedded corpus: connected digits and short commands, spoken in process by espeak-ng.

espeak-ng is a formant synthesiser, about a thousand times faster than real time, so that an experiment needs no
download and starts in seconds. A voice is an accent of English with a variant (throat), a rate, a pitch and a pitch
range. Voices are disjoint between the splits, and so are the variants: evaluation is on throats never heard.
"""

import ctypes
import dataclasses
import pathlib
import re
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np

from conformer.audio import INT16_SCALE, float_to_pcm16, resample
from conformer.config import SyntheticConfig
from conformer.data.manifest import DataError, Pcm, Utterance

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

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _CHARACTERS, _UTF8 = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker. `rate` is in words a minute; `pitch` and `pitch_range` run from 0 to 100."""

    name: str  # espeak's: accent+variant
    rate: int
    pitch: int
    pitch_range: int

    def __str__(self) -> str:
        return f"{self.name}-{self.rate}-{self.pitch}-{self.pitch_range}"


def synthesise(config: SyntheticConfig, sample_rate: int) -> list[Utterance]:
    """Speaks the corpus at `sample_rate` Hz: splits train, dev and test, the same for the same config, always.

    Half of the utterances are one to six digits, half are commands. Each has 0.1 to 0.5 s of silence before and after
    it, a random level, and white noise at -75 to -50 dBFS, so that silence is not digital zero.

    Raises DataError if espeak-ng is not installed, or `config.num_voices` is too small for three splits.
    """
    rng = np.random.default_rng(config.seed)
    voices = draw_voices(config, rng)
    counts = {"train": config.train_utterances, "dev": config.eval_utterances, "test": config.eval_utterances}
    utterances = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a loaded library
        espeak = _Espeak(pathlib.Path(folder))
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
    Raises DataError as `synthesise` does.
    """
    rng = np.random.default_rng((config.seed, 1))
    voices = draw_voices(config, rng)["train"]
    sentences = [words for text in texts if (words := text.split())]
    utterances = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        espeak = _Espeak(pathlib.Path(folder))
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


def _record(espeak: "_Espeak", text: str, voice: Voice, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """int16 samples of a text as recorded: silence around it, a level, noise."""
    speech = resample(espeak.speak(text, voice), espeak.sample_rate, sample_rate)
    before, after = rng.integers(round(0.1 * sample_rate), round(0.5 * sample_rate), 2)
    peak, noise = 10 ** (rng.uniform(-20, -1) / 20), 10 ** (rng.uniform(-75, -50) / 20)
    audio = noise * rng.standard_normal(before + len(speech) + after, dtype=np.float32)
    audio[before : before + len(speech)] += speech * (peak / np.abs(speech).max())
    return float_to_pcm16(audio)


class _Espeak:
    """espeak-ng in its initial state: what it says depends on what it has said before, since the library was loaded.

    Hence it loads a copy of its own, placed in `folder`.
    """

    def __init__(self, folder: pathlib.Path):
        try:
            import espeakng_loader
        except ImportError:
            raise DataError(
                "data.source=synthetic needs espeak-ng: pip install -e '.[demo]', or choose another data.source"
            ) from None
        self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise DataError(f"espeak-ng does not start with {data.decode()}: reinstall espeakng-loader")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # of breath noise; starting set it to the time of day
        self._pieces: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # referenced for as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, _) -> int:
        if samples and count:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """Float32 samples at `sample_rate` Hz."""
        library = self._library
        if library.espeak_SetVoiceByName(voice.name.encode()):
            raise DataError(f"espeak-ng has no voice {voice.name}: install espeakng-loader>=0.2.4")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        data = text.encode() + b"\0"
        status = library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, _CHARACTERS, 0, _UTF8, None, None)
        if status or not self._pieces:
            raise DataError(f"espeak-ng cannot speak {text!r} as {voice.name}: reinstall espeakng-loader")
        return np.frombuffer(b"".join(self._pieces), np.int16).astype(np.float32) / INT16_SCALE
