"""Trains an n-gram language model, for the beam search of eval.py and transcribe.py.

  python lm.py --manifest=../shared/data/libri_mini --out=words.lm          # of a corpus's train transcripts
  python lm.py --manifest=../shared/data/libri_mini --text=../shared/data/book_text --vocabulary=60000 \\
      --min-counts=1,1,2 --out=books.lm                                     # and of books
  python lm.py --manifest=../shared/data/libri_mini --workdir=runs/english_small --order=6 --out=units.arpa

The n-grams are of words or, with --workdir, of the units of a trained run's tokenizer. Texts are spelled as that
run's are, or as --normalise says. Transcripts and texts get a model each; they are mixed to fit the dev split best.
Prints how well the result predicts that split, and warns if the texts share eight words in a row with dev or test.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import collections
import pathlib
import sys
from collections.abc import Iterable

import numpy as np
from absl import flags

from conformer.command import run_command
from conformer.config import Config
from conformer.data.manifest import load_manifest
from conformer.language.arpa import write_arpa
from conformer.language.compact import SUFFIX, write_compact
from conformer.language.estimate import train_ngram
from conformer.language.mixture import best_weights, mix
from conformer.language.ngrams import NgramModel
from conformer.language.perplexity import measure
from conformer.language.prune import prune
from conformer.language.texts import OVERLAP, Overlap, sentences, text_files
from conformer.language.vocabulary import SPECIAL
from conformer.system import check_writable
from conformer.text import LEVELS, listed, strangers
from conformer.tokenizer import SoundTokenizer, Tokenizer, load_tokenizer

MANIFEST = flags.DEFINE_string("manifest", None, "JSONL manifest, pack or LibriSpeech folder.", required=True)
SPLIT = flags.DEFINE_list("split", ["train"], "The splits of it to learn from, comma separated.")
DEV_SPLIT = flags.DEFINE_string("dev-split", "dev", "The split of it to mix and measure with.")
TEXT = flags.DEFINE_list("text", [], "Further text: files, a sentence a line (.gz, .xz, .bz2), or folders of .txt.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run whose tokenizer's units to model; default: words.")
NORMALISE = flags.DEFINE_enum("normalise", None, LEVELS, "Spelling of texts; default: that of the run, else basic.")
ORDER = flags.DEFINE_integer("order", 3, "Words or units of an n-gram.", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", None, "Words of --text to list, the most frequent; default: all.")
MIN_COUNTS = flags.DEFINE_list("min-counts", [], "Least count of n-grams of --text, for 1, 2, ... words; default: 1.")
PRUNE = flags.DEFINE_float("prune", 0.0, "Drop n-grams that raise perplexity by less, a part of 1; such as 1e-8.")
PRONOUNCE = flags.DEFINE_string("pronounce", None, "Run with units of sounds, whose dictionary then lists the words.")
OUT = flags.DEFINE_string("out", None, "File to write: .lm is compact and loads at once, else ARPA.", required=True)


def main(_) -> None:
    try:
        train()
    except (ValueError, OSError) as error:  # bad input; a file that cannot be read or written
        sys.exit(f"lm.py: {error}")


def train() -> None:
    check_writable(OUT.value)
    speaker = load_tokenizer(PRONOUNCE.value) if PRONOUNCE.value else None
    if speaker is not None and not isinstance(speaker, SoundTokenizer):
        raise ValueError(f"--pronounce={PRONOUNCE.value}: its units are letters (tokenizer.kind): leave it out")
    run = Config.from_json(pathlib.Path(WORKDIR.value, "config.json")).text.normalise if WORKDIR.value else "basic"
    level = NORMALISE.value or run
    if WORKDIR.value and level != run:
        raise ValueError(f"--normalise={level}: the units of {WORKDIR.value} are of texts spelled {run}: leave it out")
    min_counts = whole_numbers(MIN_COUNTS.value)
    files = text_files(TEXT.value)
    by_split = collections.defaultdict(list)
    for utterance in load_manifest(MANIFEST.value, level, print):
        by_split[utterance.split].append(utterance.text)
    for split in SPLIT.value:
        if split not in by_split:
            raise ValueError(f"no utterance in split {split!r}: --split may be {', '.join(sorted(by_split))}")
    overlap = Overlap({split: texts for split, texts in by_split.items() if split not in SPLIT.value})
    texts = overlap.watched(text for split in SPLIT.value for text in by_split[split])
    further = overlap.watched(sentences(files, level, print))
    dev = by_split[DEV_SPLIT.value]
    if WORKDIR.value:
        tokenizer = load_tokenizer(WORKDIR.value, level)
        texts, further, dev = (
            spelled(tokenizer, some, name)
            for some, name in ((texts, ",".join(SPLIT.value)), (further, "--text"), (dev, DEV_SPLIT.value))
        )
    models = [train_ngram(texts, ORDER.value)]
    if files:
        models.append(train_ngram(further, ORDER.value, min_counts, VOCABULARY.value))
    for split, count in overlap.found.items():
        shared = f"texts to learn from that share {OVERLAP} words in a row, or all their words, with {split}: {count}"
        print(f"lm.py: warning: {shared}", file=sys.stderr)
    model = mixed(models, dev)
    if PRUNE.value:
        model = prune(model, PRUNE.value)
    if OUT.value.endswith(SUFFIX):
        write_compact(model, OUT.value)
    else:
        write_arpa(model, OUT.value)
    if PRONOUNCE.value and speaker is not None:
        speaker.dictionary.extend(model.words[id] for id in likeliest_first(model))
        speaker.save(PRONOUNCE.value)
    counts = " + ".join(f"{stop - first:,}" for first, stop in zip(model.starts[1:], model.starts[2:], strict=False))
    print(f"{OUT.value}: order {model.order}, {counts} n-grams")
    if dev:
        print(f"{DEV_SPLIT.value}: {measure(model, dev)}")


def mixed(models: list[NgramModel], dev: list[str]) -> NgramModel:
    """The models as one, with weights that suit the dev texts; equal ones where there are none."""
    if len(models) == 1:
        return models[0]
    weights = best_weights(models, dev) if dev else [1 / len(models)] * len(models)
    print(f"weights: transcripts {weights[0]:.3f}, texts {weights[1]:.3f}")
    return mix(models, weights)


def likeliest_first(model: NgramModel) -> list[int]:
    """The numbers of a model's words, without those of marks."""
    return np.argsort(-model.log_probs(1 + len(SPECIAL) + np.arange(len(model.words))), kind="stable").tolist()


def whole_numbers(values: list[str]) -> tuple[int, ...]:
    if not all(value.isdecimal() for value in values):
        raise ValueError(f"--min-counts={','.join(values)}: give whole numbers, such as 1,1,2")
    return tuple(map(int, values))


def spelled(tokenizer: Tokenizer, texts: Iterable[str], split: str) -> list[str]:
    """Texts as words that are units; those that cannot be are left out, which is said."""
    texts = list(texts)
    in_units = [tokenizer.spell(text) for text in texts]
    usable = [text for text, units in zip(texts, in_units, strict=True) if tokenizer.alphabet.issuperset(units)]
    if len(usable) < len(texts):
        print(
            f"lm.py: warning: {len(texts) - len(usable)} of {len(texts)} texts of {split} are left out: they hold "
            f"characters that the tokenizer has not: {listed(strangers(in_units, tokenizer.alphabet))}",
            file=sys.stderr,
        )
    return [" ".join(tokenizer.symbols[id] for id in tokenizer.encode(text)) for text in usable]


if __name__ == "__main__":
    run_command(main)
