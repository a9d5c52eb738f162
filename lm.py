"""Trains an n-gram language model on transcripts, for the beam search of eval.py and transcribe.py.

  python lm.py --manifest=../shared/data/libri_mini --out=words.arpa
  python lm.py --manifest=../shared/data/libri_mini --workdir=runs/libri_mini --order=6 --out=units.arpa
  python lm.py --text=books.txt --manifest=../shared/data/libri_mini --out=words.arpa

Of words, or (--workdir) of the units of a trained recogniser's tokenizer. Texts are spelled as that run's are, or as
--normalise says. Prints how well the model predicts the dev split, and warns when it has learned from texts of another
split.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import collections
import pathlib
import sys

from absl import flags

from conformer.command import run_command
from conformer.config import Config
from conformer.data.manifest import load_manifest
from conformer.decode.language_model import LanguageModelError, measure, train_ngram
from conformer.system import check_writable
from conformer.text import LEVELS, listed, normalise, read_lines, strangers
from conformer.tokenizer import Tokenizer, load_tokenizer

MANIFEST = flags.DEFINE_string("manifest", None, "JSONL manifest, pack or LibriSpeech folder.", required=True)
SPLIT = flags.DEFINE_string("split", "train", "The split of it to learn from.")
DEV_SPLIT = flags.DEFINE_string("dev-split", "dev", "The split of it to measure with.")
TEXT = flags.DEFINE_string("text", None, "Further text to learn from: a file, a sentence a line.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run whose tokenizer's units to model; default: words.")
NORMALISE = flags.DEFINE_enum("normalise", None, LEVELS, "Spelling of texts; default: that of the run, else basic.")
ORDER = flags.DEFINE_integer("order", 3, "Words or units of an n-gram.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "ARPA file to write.", required=True)


def main(_) -> None:
    try:
        train()
    except (ValueError, OSError) as error:  # bad input; a file that cannot be read or written
        sys.exit(f"lm.py: {error}")


def train() -> None:
    check_writable(OUT.value)
    run = Config.from_json(pathlib.Path(WORKDIR.value, "config.json")).text.normalise if WORKDIR.value else "basic"
    level = NORMALISE.value or run
    if WORKDIR.value and level != run:
        raise ValueError(f"--normalise={level}: the units of {WORKDIR.value} are of texts spelled {run}: leave it out")
    by_split = collections.defaultdict(list)
    for utterance in load_manifest(MANIFEST.value, level, print):
        by_split[utterance.split].append(utterance.text)
    if SPLIT.value not in by_split:
        raise ValueError(f"no utterance in split {SPLIT.value!r}: --split may be {', '.join(sorted(by_split))}")
    texts, dev = by_split[SPLIT.value], by_split[DEV_SPLIT.value]
    if TEXT.value:
        texts += [normalise(line, level) for _, line in read_lines(pathlib.Path(TEXT.value), LanguageModelError)]
    for split, held_out in by_split.items():
        if split != SPLIT.value and (seen := set(texts) & set(held_out)):
            print(f"lm.py: warning: {len(seen)} texts of {split} are among those to learn from", file=sys.stderr)
    if WORKDIR.value:
        tokenizer = load_tokenizer(WORKDIR.value, level)
        texts, dev = spelled(tokenizer, texts, SPLIT.value), spelled(tokenizer, dev, DEV_SPLIT.value)
    model = train_ngram(texts, ORDER.value)
    model.write_arpa(OUT.value)
    print(f"{OUT.value}: order {ORDER.value}, {len(model.words)} words or units, of {len(texts)} texts")
    if dev:
        print(f"{DEV_SPLIT.value}: {measure(model, dev)}")


def spelled(tokenizer: Tokenizer, texts: list[str], split: str) -> list[str]:
    """Texts as words that are units; those that cannot be are left out, which is said."""
    usable = [text for text in texts if tokenizer.alphabet.issuperset(text)]
    if len(usable) < len(texts):
        print(
            f"lm.py: warning: {len(texts) - len(usable)} of {len(texts)} texts of {split} are left out: they hold "
            f"characters that the tokenizer has not: {listed(strangers(texts, tokenizer.alphabet))}",
            file=sys.stderr,
        )
    return [" ".join(tokenizer.symbols[id] for id in tokenizer.encode(text)) for text in usable]


if __name__ == "__main__":
    run_command(main)
