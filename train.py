"""Trains a recogniser.

  python train.py --config=configs/demo.py --workdir=runs/demo
  python train.py --config=configs/words.py --workdir=runs/words --config.model.encoder_dim=176

The work directory gets config.json, the tokenizer, checkpoints, metrics.jsonl and TensorBoard events. The same command
again resumes from the newest checkpoint; with --extend=N it trains a finished run further. Your own data:
docs/your_data.md.

All devices of the machine are used. Several processes, such as one on each machine, get the address of process 0
(docs/scale.md):

  python train.py --config=... --workdir=... --coordinator=host:1234 --num-processes=2 --process-id=0
"""

from conformer import interrupts  # first: from here on, Ctrl-C is one line

# isort: split
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from conformer import runtime
from conformer.audio import AudioError
from conformer.command import define_config_flag, run_command
from conformer.config import Config, ConfigError
from conformer.data import (
    Corpus,
    DataError,
    TrainLoader,
    in_splits,
    load_utterances,
    speak_runs,
    texts_of,
    with_buckets,
)
from conformer.evaluation.scorer import ScoreError
from conformer.filterbank import FeatureError
from conformer.tokenizer import TokenizerError, load_tokenizer, train_tokenizer
from conformer.training.checkpoint import CheckpointError, Checkpoints
from conformer.training.denominator import unit_bigram
from conformer.training.finetune import begin_with
from conformer.training.mesh import make_mesh, share_of
from conformer.training.metrics import MetricsLog, Progress
from conformer.training.processes import in_child, join, leaving_when_others_are_lost
from conformer.training.resume import bind, check_data, digest_of, resumed
from conformer.training.run import Trainer, feature_statistics, make_loader
from conformer.training.state import count_parameters
from conformer.training.step import draw_chunk

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; created if it does not exist.", required=True)
EXTEND = flags.DEFINE_integer(
    "extend", None, "Train a finished run on, for so many updates beyond train.num_steps.", lower_bound=0
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, or auto on a cluster; None = one process."
)
NUM_PROCESSES = flags.DEFINE_integer("num-processes", None, "How many processes train together.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process-id", None, "Which of them this is, from 0.", lower_bound=0)


def main(_) -> None:
    in_child(COORDINATOR.value)
    runtime.set_up()
    try:
        join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        with leaving_when_others_are_lost():
            train(CONFIG.value, pathlib.Path(WORKDIR.value), EXTEND.value)
    except EXPECTED as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        interrupts.leave("the same command resumes from the newest checkpoint")
    except OSError as error:
        sys.exit(f"train.py: {error}: check the free space and the permissions of {WORKDIR.value}")


class TrainingError(ValueError):
    """A run that cannot go on."""


EXPECTED = (
    AudioError,
    CheckpointError,
    ConfigError,
    DataError,
    FeatureError,
    ScoreError,
    TokenizerError,
    TrainingError,
)


def train(config: Config, workdir: pathlib.Path, extend: int | None = None) -> None:
    mesh = make_mesh(config.train.fsdp)
    share = share_of(mesh, config.train.accumulate)
    first = share.index == 0  # the process that writes and speaks for all

    say = print if first else lambda _: None
    config = resumed(config, workdir, extend)

    # ------------------------------------------------------------------ data
    utterances = load_utterances(config, say)
    training = in_splits(utterances, config.data.train_splits)
    digest = digest_of(training)
    if extend is None:
        check_data(workdir, digest)
    evaluation = list(in_splits(utterances, config.data.eval_splits))
    if config.data.spoken_utterances:
        if isinstance(training, Corpus):
            raise ConfigError("data.spoken_utterances cannot join a prepared corpus: set it to 0, or use the manifest")
        spoken = config.data.spoken_utterances, config.data.synthetic, config.features.sample_rate
        training = [*training, *speak_runs(texts_of(training), *spoken)]
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / "config.json").exists():
            given = config.tokenizer.kind == "given"
            units = (
                load_tokenizer(config.train.init_from)
                if given
                else train_tokenizer(config.tokenizer, texts_of(training))
            )
            units.save(workdir)
    multihost_utils.sync_global_devices("tokenizer")
    tokenizer = load_tokenizer(workdir, config.text.normalise)
    config = with_buckets(config.replace({"model.vocab_size": tokenizer.vocab_size}), training)

    loader = make_loader(config, training, tokenizer)
    if first:
        bind(config, workdir, digest)
    characters = "".join(sorted(tokenizer.alphabet - {" "}))
    more = f" and {len(characters) - SHOWN} more" if len(characters) > SHOWN else ""
    say(f"text.normalise={config.text.normalise}, characters: {characters[:SHOWN]}{more}")
    say(f"data.bucket_seconds={','.join(f'{seconds:g}' for seconds in config.data.bucket_seconds)}")
    say(
        f"{loader.num_utterances} utterances, {loader.seconds / 3600:.2f} h, {tokenizer.vocab_size} units, "
        f"{loader.steps_per_epoch} steps an epoch, {len(evaluation)} utterances to evaluate on"
    )
    for reason, dropped in loader.dropped.items():
        say(f"dropped {len(dropped)} utterances: {reason}; first: {', '.join(training[i].id for i in dropped[:3])}")

    # ----------------------------------------------------------------- state
    checkpoints = Checkpoints(workdir)
    start = checkpoints.latest_step()
    if start is None:
        mean, std = feature_statistics(config, training, tokenizer)
    else:
        mean = std = np.zeros(config.features.num_mel_bins)  # the checkpoint has them
    bigram = unit_bigram(tokenizer, texts_of(training)) if config.train.mmi_weight else None
    trainer = Trainer(config, mean, std, mesh, bigram)
    if start is not None:
        trainer.state = checkpoints.restore(trainer.state)
    elif config.train.init_from:
        trainer.state, random = begin_with(trainer.state, config.train.init_from, config.train.init_random)
        say(f"weights of {config.train.init_from}" + (f"; at random: {', '.join(random)}" if random else ""))
    start = int(trainer.state.step)
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}" if mesh.size > 1 else jax.devices()[0].device_kind
    devices += f" in {share.count} processes" if share.count > 1 else ""
    trained, frozen = (count_parameters(values) for values in (trainer.state.params, trainer.state.frozen))
    share_trained = f", {trained:,} of them trained," if frozen else ""
    say(f"{trained + frozen:,} parameters{share_trained} on {devices}; starting at step {start}")

    # ------------------------------------------------------------------ loop
    log = MetricsLog(workdir, start, muted=not first)
    progress = Progress(start, config.train.num_steps, muted=not first)
    began = window_start = time.perf_counter()
    window_seconds, window_losses, pending = 0.0, [], None
    compiled, evaluated = set(), False  # the first of each shape, and the first evaluation, take longer than others
    try:
        for step, batch in loader.batches(start, config.train.num_steps - start, share):
            pause = time.perf_counter()
            metrics = trainer.update(batch, draw_chunk(config.train, config.seed, step))
            if batch.audio.shape not in compiled:
                compiled.add(batch.audio.shape)
                window_start += time.perf_counter() - pause
                progress.set_aside(time.perf_counter() - pause)
            # The device works on this step while the one before it is looked at.
            if pending is not None:
                window_losses.append(check(*pending, config, loader, progress))
            pending = (step, metrics)
            window_seconds += share.count * float(batch.audio_lengths @ batch.weights) / config.features.sample_rate
            progress.update()
            done = step + 1

            if done % config.train.log_every == 0 or done == config.train.num_steps:
                window_losses.append(check(*pending, config, loader, progress))
                pending = None
                rate = window_seconds / (time.perf_counter() - window_start)
                loss = float(np.nanmean(window_losses)) if np.isfinite(window_losses).any() else float("nan")
                timing = {"audio_seconds_per_second": rate, "elapsed_seconds": time.perf_counter() - began}
                log.write(done, loss=loss, **timing, **{k: float(metrics[k]) for k in LOGGED})
                progress.show(done, loss=f"{loss:.3f}", rate=f"{rate:.0f}x real time")
                window_start, window_seconds, window_losses = time.perf_counter(), 0.0, []

            if evaluation and (done % config.train.eval_every == 0 or done == config.train.num_steps):
                pause = time.perf_counter()
                transcripts = trainer.transcribe(tokenizer, evaluation)
                score = transcripts.score()
                log.write(done, eval_wer=score.wer, eval_cer=score.cer)
                progress.say(f"step {done}: {score}")
                for message in transcripts.broken.values():
                    progress.say(f"not evaluated: {message}")
                for message in loader.left_out():
                    progress.say(message)
                window_start += time.perf_counter() - pause
                if not evaluated:
                    progress.set_aside(time.perf_counter() - pause)
                evaluated = True

            if done % config.train.checkpoint_every == 0 or done == config.train.num_steps:
                checkpoints.save(done, trainer.state)
    finally:
        checkpoints.wait()  # whatever stops the run: one that is still being written would be lost

    # ------------------------------------------------------------------- end
    log.close()
    progress.close()
    for message in loader.broken.values():
        print(f"skipped: {message}")
    minutes, end = (time.perf_counter() - began) / 60, int(trainer.state.step)
    if start == end:
        return say(f"{workdir} is trained to its end already: --extend=N trains it on")
    say(f"trained from step {start} to {end} in {minutes:.1f} minutes; next: eval.py --workdir={workdir}")


LOGGED = ("gradient_norm", "learning_rate", "skipped")
SHOWN = 100  # characters of a tokenizer that are listed


def check(step: int, metrics: dict, config: Config, loader: TrainLoader, progress: Progress) -> float:
    """The loss of a step; names a skipped update, and stops a run that makes no other."""
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row:
        ids = ", ".join(loader.utterance_ids(step))
        progress.say(f"step {step}: loss or gradient is not finite, update skipped; utterances: {ids}")
    if in_a_row > config.train.max_skipped_steps:
        raise TrainingError(
            f"{in_a_row} updates in a row were not finite: lower train.learning_rate or train.clip_norm, or set "
            "train.compute=float32"
        )
    return float(metrics["loss"])


if __name__ == "__main__":
    run_command(main)
