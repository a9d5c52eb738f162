"""Speech with transcripts: where it comes from, and how it becomes batches."""

from conformer.data.buckets import make_buckets as make_buckets
from conformer.data.buckets import with_buckets as with_buckets
from conformer.data.loader import Batch as Batch
from conformer.data.loader import Share as Share
from conformer.data.loader import TrainLoader as TrainLoader
from conformer.data.loader import eval_batches as eval_batches
from conformer.data.loader import in_splits as in_splits
from conformer.data.loader import load_split as load_split
from conformer.data.loader import load_utterances as load_utterances
from conformer.data.loader import texts_of as texts_of
from conformer.data.manifest import DataError as DataError
from conformer.data.manifest import Pcm as Pcm
from conformer.data.manifest import Utterance as Utterance
from conformer.data.manifest import load_manifest as load_manifest
from conformer.data.records import Corpus as Corpus
from conformer.data.synthetic import speak_runs as speak_runs
