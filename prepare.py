"""Prepares a corpus of any size for training.

  python prepare.py LibriSpeech prepared/librispeech
  python prepare.py speech.jsonl prepared/speech --num-workers=16 --shard-hours=20
  python prepare.py --verify prepared/speech
  python prepare.py download mini_librispeech        (or librispeech-100, speech_commands, speech_commands_v0.01)
  python prepare.py rebuild libri_mini --source=data/LibriSpeech --out=data/libri_mini
  python train.py --config=configs/librispeech.py:small --workdir=runs/large --config.data.source=prepared/librispeech

The source is a JSONL manifest, a pack or a folder laid out like LibriSpeech. The folder gets sharded records, a
checksum for each, and summary.json; dropped.jsonl lists what cannot be used, with the reason. The same command again
goes on after the last finished shard. docs/data.md says how much disk and how many cores a corpus needs.

`download` fetches a public data set into --out; `rebuild` makes libri_mini or connected_words_16k, the packs that
results name, of what was downloaded.
"""

from conformer import interrupts  # first: from here on, Ctrl-C is one line

# isort: split
import pathlib
import sys
import time

import tqdm
from absl import flags

from conformer.command import run_command
from conformer.data.download import DATASETS, DownloadError, download
from conformer.data.manifest import DataError
from conformer.data.prepare import fill, finish, is_finished, verify
from conformer.data.rebuild import PACKS
from conformer.data.records import read_summary
from conformer.data.worklists import DROPPED, Settings, make_work_lists
from conformer.system import OutputError, check_folder

SAMPLE_RATE = flags.DEFINE_integer("sample-rate", 16_000, "Hz; audio at other rates is resampled.", lower_bound=1)
SHARD_HOURS = flags.DEFINE_float("shard-hours", 4.0, "Hours of audio in a shard, about.", lower_bound=1e-6)
NUM_WORKERS = flags.DEFINE_integer("num-workers", 1, "Shards made at the same time.", lower_bound=1)
VERIFY = flags.DEFINE_bool("verify", False, "Compare the shards of a prepared folder with their checksums.")
OUT = flags.DEFINE_string("out", None, "Folder of what is downloaded (default: data) or rebuilt (default: data/NAME).")
SOURCE = flags.DEFINE_string("source", None, "Folder of the public data set that `rebuild` reads.")


def main(arguments: list[str]) -> None:
    try:
        match VERIFY.value, arguments[1:]:
            case False, ["download", *names]:
                fetch(names, OUT.value or "data")
            case False, ["rebuild", *names]:
                rebuild(names, SOURCE.value, OUT.value)
            case True, [folder]:
                check(pathlib.Path(folder))
            case False, [source, folder]:
                check_folder(folder)
                settings = Settings(source, SAMPLE_RATE.value, SHARD_HOURS.value)
                prepare(settings, pathlib.Path(folder), NUM_WORKERS.value)
            case _:
                sys.exit("prepare.py: name a source and a folder to prepare it into, or --verify and a prepared folder")
    except (DataError, DownloadError, OutputError) as error:
        sys.exit(f"prepare.py: {error}")
    except KeyboardInterrupt:
        interrupts.leave("the same command goes on from here")
    except OSError as error:
        sys.exit(f"prepare.py: {error}: check the free space and the permissions; the same command goes on from here")


def fetch(names: list[str], out: str) -> None:
    dataset = choose(DATASETS, names, "download")
    check_folder(out)
    download(dataset, pathlib.Path(out))
    print(f"{dataset.licence}\nnext: {dataset.next_command.format(out=out)}")


def rebuild(names: list[str], source: str | None, out: str | None) -> None:
    make, config = choose(PACKS, names, "rebuild")
    if not source or not pathlib.Path(source).is_dir():
        raise DataError(f"--source={source} is no folder: name that of the public data set that was downloaded")
    out = out or f"data/{names[0]}"
    check_folder(out)
    make(pathlib.Path(source), pathlib.Path(out))
    print(f"next: python train.py --config={config} --workdir=runs/{names[0]} --config.data.source={out}")


def choose[T](known: dict[str, T], names: list[str], verb: str) -> T:
    if len(names) != 1 or names[0] not in known:
        raise DataError(f"{verb} {' '.join(names)}: name one of {', '.join(known)}")
    return known[names[0]]


def prepare(settings: Settings, folder: pathlib.Path, num_workers: int) -> None:
    if is_finished(settings, folder):
        print(f"{folder} is prepared already")
        return show(read_summary(folder), folder)
    print(f"reading {settings.source}", flush=True)
    lists = make_work_lists(settings, folder, print)
    began, made = time.perf_counter(), 0.0
    pause = 0.1 if sys.stderr.isatty() else 60.0  # seconds between two bars
    with tqdm.tqdm(total=len(lists.names), unit="shard", dynamic_ncols=True, mininterval=pause) as bar:
        for shard, new in fill(lists, num_workers):
            made += shard.seconds * new
            bar.set_postfix_str(f"{made / (time.perf_counter() - began):.0f}x real time", refresh=False)
            bar.update()
    show(finish(lists), folder)


def show(summary: dict, folder: pathlib.Path) -> None:
    for split, total in summary["splits"].items():
        print(f"{split}: {total['utterances']:,} utterances, {total['hours']:.2f} h, {total['speakers']:,} speakers")
    print(f"{len(summary['shards'])} shards, {summary['bytes'] / 2**30:.2f} GiB")
    for reason, count in summary["dropped"].items():
        print(f"dropped {count:,}: {reason}; see {folder / DROPPED}")


def check(folder: pathlib.Path) -> None:
    wrong = [message for _, message in verify(folder) if message]
    if wrong:
        sys.exit("\n".join(f"prepare.py: {message}" for message in wrong))
    print(f"{folder}: all {len(read_summary(folder)['shards'])} shards are as they were written")


if __name__ == "__main__":
    run_command(main)
