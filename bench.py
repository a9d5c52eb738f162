"""Measures speed, memory and accuracy on this machine: of this project, and in some benchmarks of its peers.

    python bench.py training [--steps=5] [--compute=float32] [--json=FILE]
    python bench.py streaming [--chunks=40] [--json=FILE]
    python bench.py transcription [--runs=10] [--minutes=60] [--json=FILE]
    python bench.py numerics [--plots=FOLDER] [--json=FILE]
    python bench.py policies|differences --workdir=runs/words [--policies=int8,edge_fp16] [--json=FILE]
    python bench.py ablations|long_audio --workdir=models/words [--json=FILE]
    python bench.py decoding --workdir=runs/english_small --lm=books.lm [--json=FILE]
    python bench.py copies|device|micro|web|server [--json=FILE]
    python bench.py cost [--chunks=40] [--device=x86|h200] [--json=FILE]
    python bench.py front_ends|bandwidth|imported [--chunks=40] [--json=FILE]
    python bench.py times --workdir=models/words --source=../shared/data/connected_words_16k [--json=FILE]
    python bench.py confidence --workdir=models/words [--source=PACK] [--outside=PACK] [--json=FILE]
    python bench.py silence [--workdir=runs/words] [--json=FILE]
    python bench.py data --source=../shared/data/libri_mini [--json=FILE]
    python bench.py kernels [--op=, --shape=, --dtype=, --implementation=] [--autotune] [--plots=FOLDER] [--json=FILE]

training    a full training step of a 10 M parameter model, JAX and eager PyTorch in alternation (about 2 minutes on
            2 cores)
streaming   a chunk of one stream of a 20 M parameter model on one core: JAX with float32, bfloat16 and int8 weights,
            PyTorch eager and compiled, ONNX Runtime, LiteRT; and the bound that the core's own rates set (a few
            minutes, most of them compilation)
transcription
            transcribe.py with a model of that size: from the command to the first text of 10 s of audio, and memory
            after a minute and after an hour of it; the same start with its ONNX export (about 5 minutes)
numerics    LayerNorm in emulated float16: failures and errors by pre-normaliser, width, distribution, amplitude, format
            and order of summation (2 minutes, most of them compilation); nothing is timed
policies    word error rates of a trained model under every numerics policy, without each stabiliser, and with a
            larger residual stream (most of the time is compilation); nothing is timed
differences what policies change in the log-probabilities of models (--workdir=A,B,C), imports with random weights among
            them, in both layouts and with a larger residual stream; nothing is timed
half_precision  word error rates of a trained model compiled to float16 (the extra iree), with and without each repair,
            and the errors of examples/large_residuals.py (15 minutes); nothing is timed
ablations   what chunks, left context, layouts and numerics policies cost a trained model: paired differences on dev and
            test pooled, greedy and with its own search; nothing is timed
decoding    word error rates of a trained model, greedy and with a beam, a closed and an open lexicon with a language
            model (lm.py), tuned on dev; its learning curve (10 minutes); nothing is timed
copies      operations that move data, by layout: in the graph, as compiled for the CPU, as exported to ONNX (a minute);
            nothing is timed
cost        what the cost model predicts for six models on one core, from rates measured on single operations, beside
            what is measured, and energy where the machine counts it (3 minutes); --device=h200: on that GPU
front_ends  a training step and a second of a stream on one core, for each front end of the ablation
            (configs/front_ends.py; 5 minutes, most of them compilation)
bandwidth   what reading fewer bytes of weights saves a stream: narrower weights, streams in a batch, larger chunks
            (3 minutes)
imported    a published shape (NVIDIA's streaming FastConformer, 110 M parameters) with random weights: time and memory
            of convert.py and export.py, and a chunk of a stream on one core in ONNX Runtime and LiteRT (3 minutes)
long_audio  a trained encoder over minutes of audio in one piece, with dense attention and without: time and memory
times       how far the starts and ends of words are from known ones, in strings of clips (a minute); nothing is timed
confidence  calibration error of a model's confidence before and after a fit on dev, and how much speech of other words
            (--outside) a threshold rejects (2 minutes, 4 with a language model); nothing is timed
silence     words that a model (every one that is shipped) writes into silence, noise, hum and notes; nothing is timed
micro       exports for microcontrollers, and of a model three times as large, compiled by Arm's Vela for Ethos-U55 and
            U85: operators left to the processor, memory, predicted time (2 minutes); nothing is timed
device      instructions and memory of the recogniser in C (examples/device), as valgrind counts them (4 minutes)
server      serve.py with up to 200 live streams on one core: lag of texts, memory of a stream, refusals (5 minutes;
            Linux)
web         the page of examples/web in Chromium, 20 recordings of words as files and as the microphone: texts beside
            transcribe.py's, real-time factor on one core that is kept busy, memory (4 minutes)
data        preparing a corpus and training-side reading: speed on the real speech of --source, memory on generated
            corpora of 10,000 and of 100,000 utterances (8 minutes)
kernels     norms, attention and softmax: our kernels, XLA, other libraries, beside the device's own copy and matrix
            rate. On a CPU, small shapes and XLA alone. Rows that are in --json already are not measured again: a run
            that was cut short goes on. --op=training_step measures a training step with kernels and without.
            --autotune searches block sizes and keeps them in ~/.cache/edge-conformer for this kind of device. Needs
            JAX, NumPy and absl, no more, except for the training step

PyTorch runs in an environment of its own, which `make peers` makes; ONNX Runtime and LiteRT need the extra `export`.
`streaming` leaves out those that are missing, and says so. Leave the machine otherwise idle.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks import harness, plots
from conformer import record, runtime
from conformer.command import run_command

_JSON = flags.DEFINE_string("json", None, "File that the record is written to: every time, device, versions, command.")
_STEPS = flags.DEFINE_integer("steps", 5, "training: steps in each block.", lower_bound=1)
_COMPUTE = flags.DEFINE_enum("compute", "float32", ["float32", "bfloat16"], "training: format of matrix products.")
_CHUNKS = flags.DEFINE_integer("chunks", 40, "streaming, imported: chunks in each block.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 10, "transcription: starts of the command.", lower_bound=1)
_MINUTES = flags.DEFINE_integer("minutes", 60, "transcription: length of the long recording.", lower_bound=2)
_PLOTS = flags.DEFINE_string("plots", None, "numerics, kernels: folder that plots are written to (SVG).")
_OP = flags.DEFINE_string("op", None, "kernels: one operation alone.")
_SHAPE = flags.DEFINE_string("shape", None, "kernels: one named shape alone.")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "kernels: one format alone.")
_IMPLEMENTATION = flags.DEFINE_string("implementation", None, "kernels: one of ours alone.")
_AUTOTUNE = flags.DEFINE_bool("autotune", False, "kernels: search block sizes and keep the fastest.")
_DEVICE = flags.DEFINE_enum("device", "x86", ["x86", "h200"], "cost: whose profile is compared with this machine.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "policies, differences, half_precision, ablations, decoding, long_audio, times, confidence, silence: "
    "folder of a run.",
)
_LM = flags.DEFINE_string("lm", None, "decoding: ARPA model of words.")
_SOURCE = flags.DEFINE_string(
    "source", None, "data, times, confidence, web: manifest, pack or LibriSpeech folder of real speech."
)
_OUTSIDE = flags.DEFINE_string("outside", None, "confidence: speech of other words than the model's, as --source.")
_POLICIES = flags.DEFINE_list("policies", [], "policies, differences: these alone; default: all, and ablations.")


class Measurement(NamedTuple):
    """One of the measurements: the arguments of its module's `run`, and the flags that it needs.

    Its module, of the same name in `benchmarks` unless told, is imported when it is chosen: most need packages that a
    machine for another one lacks.
    """

    arguments: Callable[[], tuple] = tuple
    needs: tuple[flags.FlagHolder, ...] = ()
    module: str = ""


MEASUREMENTS = {
    "training": Measurement(lambda: (_STEPS.value, _COMPUTE.value)),
    "streaming": Measurement(lambda: (_CHUNKS.value,)),
    "transcription": Measurement(lambda: (_RUNS.value, _MINUTES.value)),
    "numerics": Measurement(),
    "policies": Measurement(lambda: (_WORKDIR.value, _POLICIES.value), (_WORKDIR,)),
    "differences": Measurement(lambda: ((_WORKDIR.value or "").split(","), _POLICIES.value), (_WORKDIR,)),
    "half_precision": Measurement(lambda: (_WORKDIR.value, _JSON.value), (_WORKDIR,)),
    "ablations": Measurement(lambda: (_WORKDIR.value,), (_WORKDIR,)),
    "decoding": Measurement(lambda: (_WORKDIR.value, _LM.value), (_WORKDIR, _LM)),
    "copies": Measurement(),
    "cost": Measurement(lambda: (_CHUNKS.value, _DEVICE.value)),
    "front_ends": Measurement(lambda: (_CHUNKS.value,)),
    "bandwidth": Measurement(lambda: (_CHUNKS.value,)),
    "imported": Measurement(lambda: (_CHUNKS.value,)),
    "long_audio": Measurement(lambda: (_WORKDIR.value,), (_WORKDIR,)),
    "times": Measurement(lambda: (_WORKDIR.value, _SOURCE.value), (_WORKDIR, _SOURCE)),
    "confidence": Measurement(lambda: (_WORKDIR.value, _SOURCE.value, _OUTSIDE.value), (_WORKDIR,)),
    "silence": Measurement(lambda: (_WORKDIR.value,)),
    "micro": Measurement(),
    "web": Measurement(lambda: (_SOURCE.value,)),
    "device": Measurement(),
    "server": Measurement(),
    "data": Measurement(lambda: (_SOURCE.value,), (_SOURCE,)),
    "kernels": Measurement(
        lambda: (_OP.value, _SHAPE.value, _DTYPE.value, _IMPLEMENTATION.value, _JSON.value), module="kernels.run"
    ),
}
AUTOTUNE = Measurement(lambda: (_OP.value, _SHAPE.value, _DTYPE.value), module="kernels.tuning")


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in MEASUREMENTS:
        raise app.UsageError(f"name what to measure: {', '.join(MEASUREMENTS)}")
    name = argv[1]
    chosen = AUTOTUNE if name == "kernels" and _AUTOTUNE.value else MEASUREMENTS[name]
    if missing := [f"--{flag.name}" for flag in chosen.needs if flag.value is None]:
        raise app.UsageError(f"{name} needs {' and '.join(missing)}: --help says what they are")
    if _PLOTS.value and (name not in plots.PLOTS or _AUTOTUNE.value or _OP.value == "training_step"):
        raise app.UsageError(f"--plots: {name} has none; {' and '.join(plots.PLOTS)} have")
    module = importlib.import_module(f"benchmarks.{chosen.module or name}")
    folders = _WORKDIR.value.split(",") if _WORKDIR.value else ()
    circumstances: dict[str, Any] = record.describe_run(*folders) | {"benchmark": name}
    runtime.set_up()
    try:
        result = module.run(*chosen.arguments())
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"bench.py: {error}")
    result = circumstances | result
    if hasattr(module, "table"):  # else its rows were printed one by one
        print(f"{circumstances['device']['cpu']}\n{module.table(result)}")
    if (load := circumstances["load_average"]) > harness.BUSY:
        print(f"The load average was {load:.1f} at the start: other work slows rows unequally. Measure times again.")
    if _JSON.value:
        record.write(_JSON.value, result)
    if _PLOTS.value:
        plots.draw(name, result, _PLOTS.value)


if __name__ == "__main__":
    run_command(main)
