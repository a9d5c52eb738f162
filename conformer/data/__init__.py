"""Speech with transcripts: where it comes from, and how it becomes batches."""

from conformer.data.buckets import Bucket, Plan, Reason, Rules, make_buckets, select
from conformer.data.loader import (
    Batch,
    Share,
    TrainLoader,
    eval_batches,
    in_splits,
    load_split,
    load_utterances,
    texts_of,
)
from conformer.data.manifest import AudioFile, DataError, Pcm, Recipe, Utterance, load_manifest
from conformer.data.records import Corpus
from conformer.data.synthetic import speak_runs, synthesise

__all__ = [
    "AudioFile",
    "Batch",
    "Bucket",
    "Corpus",
    "DataError",
    "Pcm",
    "Plan",
    "Reason",
    "Recipe",
    "Rules",
    "Share",
    "TrainLoader",
    "Utterance",
    "eval_batches",
    "in_splits",
    "load_manifest",
    "load_split",
    "load_utterances",
    "make_buckets",
    "select",
    "speak_runs",
    "synthesise",
    "texts_of",
]
