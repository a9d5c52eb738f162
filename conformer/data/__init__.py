"""Speech with transcripts: where it comes from, and how it becomes batches."""

from conformer.data.buckets import Bucket, Plan, Reason, make_buckets, select
from conformer.data.loader import Batch, TrainLoader, eval_batches, load_split, load_utterances
from conformer.data.manifest import AudioFile, DataError, Pcm, Recipe, Utterance, load_manifest
from conformer.data.synthetic import speak_runs, synthesise

__all__ = [
    "AudioFile",
    "Batch",
    "Bucket",
    "DataError",
    "Pcm",
    "Plan",
    "Reason",
    "Recipe",
    "TrainLoader",
    "Utterance",
    "eval_batches",
    "load_manifest",
    "load_split",
    "load_utterances",
    "make_buckets",
    "select",
    "speak_runs",
    "synthesise",
]
