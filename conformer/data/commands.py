"""The manifest of a Speech Commands folder: a folder of clips for each word (Warden, 2018)."""

import json
import pathlib

from conformer import system
from conformer.audio import AudioError, audio_seconds
from conformer.data.manifest import MANIFEST, DataError

_SPLITS = {"dev": "validation_list.txt", "test": "testing_list.txt"}  # all other clips are for training
_BETWEEN = "_nohash_"  # in a clip's name, between the speaker and the number of the take


def clip_name(word: str, speaker: str, take: str) -> str:
    """Returns the path of a clip in the folder."""
    return f"{word}/{speaker}{_BETWEEN}{take}.wav"


def write_manifest(folder: pathlib.Path) -> None:
    """Writes manifest.jsonl into the folder: each clip with its word, speaker and published split.

    Clips that cannot be read are left out and counted. Raises DataError where the lists of splits or all clips are
    missing.
    """
    splits = {}
    for split, name in _SPLITS.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}: name a folder of Speech Commands")
        splits |= dict.fromkeys((folder / name).read_text().split(), split)
    lines, broken = [], 0
    for path in sorted(folder.glob(clip_name("*", "*", "*"))):
        word, (speaker, _, take) = path.parent.name, path.stem.partition(_BETWEEN)
        name = clip_name(word, speaker, take)
        try:
            seconds = audio_seconds(path)
        except AudioError:
            broken += 1
            continue
        row = {"id": f"{word}-{speaker}-{take}", "audio": name, "duration": seconds, "text": word}
        lines.append(json.dumps(row | {"speaker": speaker, "split": splits.get(name, "train")}) + "\n")
    if not lines:
        raise DataError(
            f"{folder} has no clips ({clip_name('WORD', 'SPEAKER', 'TAKE')}): name a Speech Commands folder"
        )
    if broken:
        print(f"left out {broken:,} clips that cannot be read")
    system.write_text(folder / MANIFEST, "".join(lines))
