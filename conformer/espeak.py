"""espeak-ng, a formant synthesiser, in this process: it speaks texts and gives the pronunciation of words."""

import ctypes
import dataclasses
import functools
import pathlib
import re
import shutil
import tempfile

import numpy as np

from conformer.audio import INT16_SCALE
from kernels.typing import Float

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _CHARACTERS, _UTF8, _IPA = 2, 1, 1, 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

# What is left out of a pronunciation: stress, length, and the ways in which one sound is said in one place or another.
_SAME_SOUND = {"n̩": "ən", "l̩": "əl", "ɾ": "t", "ʔ": "t", "ɐ": "ə", "ᵻ": "ɪ", "ɚ": "ɜ", "r": "ɹ"}
_SAME_SOUND |= {"x": "k", "ç": "k", "ɬ": "l", "̃": "n"}  # of other languages: the nearest in English
_NO_SOUND = "ˈˌːʲ̩ \n"
_VARIANT = re.compile("|".join([*_SAME_SOUND, f"[{_NO_SOUND}]"]))


class EspeakError(ValueError):
    """espeak-ng is not there, or cannot say a text; the message names the remedy."""


@dataclasses.dataclass(frozen=True)
class Voice:
    """A speaker. `rate` is in words a minute; `pitch` and `pitch_range` run from 0 to 100."""

    name: str  # espeak's: accent+variant
    rate: int
    pitch: int
    pitch_range: int

    def __str__(self) -> str:
        return f"{self.name}-{self.rate}-{self.pitch}-{self.pitch_range}"


class Espeak:
    """espeak-ng in its initial state: what it says depends on what it has said before, since the library was loaded.

    Hence it loads a copy of its own, placed in `folder`. Raises EspeakError where the library is not installed.
    """

    def __init__(self, folder: str | pathlib.Path):
        try:
            import espeakng_loader
        except ImportError:
            raise EspeakError(
                "espeak-ng is not installed, which data.source=synthetic and tokenizer.kind=sounds need: "
                "pip install -e '.[demo]', or choose others"
            ) from None
        self._library = ctypes.CDLL(shutil.copy(espeakng_loader.get_library_path(), folder))
        data = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise EspeakError(f"espeak-ng does not start with {data.decode()}: reinstall espeakng-loader")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # of breath noise; starting set it to the time of day
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._voice = ""
        self._pieces: list[bytes] = []
        self._callback = _CALLBACK(self._collect)  # referenced for as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, _) -> int:
        if samples and count:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    def _speak_as(self, name: str) -> None:
        if name != self._voice and self._library.espeak_SetVoiceByName(name.encode()):
            raise EspeakError(f"espeak-ng has no voice {name}: install espeakng-loader>=0.2.4")
        self._voice = name

    def speak(self, text: str, voice: Voice) -> Float[np.ndarray, " samples"]:
        """Float32 samples at `sample_rate` Hz."""
        library = self._library
        self._speak_as(voice.name)
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        data = text.encode() + b"\0"
        status = library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, _CHARACTERS, 0, _UTF8, None, None)
        if status or not self._pieces:
            raise EspeakError(f"espeak-ng cannot speak {text!r} as {voice.name}: reinstall espeakng-loader")
        return np.frombuffer(b"".join(self._pieces), np.int16).astype(np.float32) / INT16_SCALE

    def pronounce(self, word: str, voice: str = "en-us") -> str:
        """The sounds of a word in the International Phonetic Alphabet, without stress and length."""
        self._speak_as(voice)
        text = ctypes.create_string_buffer(word.encode())
        place, sounds = ctypes.c_void_p(ctypes.addressof(text)), ""
        while place.value:  # the library takes a clause at a time, and sets the place to NULL behind the last
            clause = self._library.espeak_TextToPhonemes(ctypes.byref(place), _UTF8, _IPA)
            sounds += clause.decode()
        return _VARIANT.sub(lambda match: _SAME_SOUND.get(match[0], ""), sounds)


@functools.cache
def pronouncer() -> Espeak:
    """Returns the copy of espeak-ng that pronounces words in this process. Raises EspeakError."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a loaded library
        return Espeak(folder)
