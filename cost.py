"""Predicts what a model costs on a device, from its configuration alone; runs nothing.

  python cost.py --config=configs/words.py
  python cost.py --config=configs/paper.py:vanilla --compare=configs/paper.py:small,configs/words.py --device=phone
  python cost.py --config=configs/paper.py:vanilla --waterfall=waterfall.svg
  python cost.py --config=configs/words.py --seconds=10 --plot=cost.svg     a whole utterance in place of a chunk
  python cost.py --config=configs/librispeech.py:large --units=501 --device=h200 --training=1,8,64

Prints multiply-accumulates, bytes, time and energy by module, and what bounds each; with --compare, configurations side
by side. --waterfall draws the savings one after the other, from a vanilla front end in float32. With --training, prints
only the cost of a training on that many devices: time, memory and the audio that it needs. `conformer/cost` holds
the devices' figures and their sources; docs/execution.md says how far predictions are from measurements.
"""

import conformer.interrupts  # noqa: F401 (first: from here on, Ctrl-C is one line)

# isort: split
import pathlib
import sys
from collections.abc import Iterator

from absl import flags

from conformer import system
from conformer.command import define_config_flag, run_command
from conformer.config import Config, load_config
from conformer.cost import DEVICES, PRECISIONS, Workload
from conformer.cost.report import Report, comparison_table, module_table, report, shares_chart, waterfall_chart
from conformer.cost.training import INTERCONNECTS, training_step, training_table

CONFIG = define_config_flag()
COMPARE = flags.DEFINE_list("compare", [], "Further config files, comma separated, with their own names after a colon.")
DEVICE = flags.DEFINE_enum("device", "watch", list(DEVICES), "Whose rates and energies (conformer/cost/devices.py).")
FORMAT = flags.DEFINE_enum("formats", None, list(PRECISIONS), "Of weights and activations; default: the device's own.")
CHUNK_SIZE = flags.DEFINE_integer("chunk-size", 16, "Encoder frames of a chunk.", lower_bound=1)
NUM_LEFT_CHUNKS = flags.DEFINE_integer("num-left-chunks", 4, "Chunks of left context.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch-size", 1, "Streams, or utterances, at once.", lower_bound=1)
LOOK_AHEAD = flags.DEFINE_integer("look-ahead", 0, "Encoder frames after a chunk that it sees.", lower_bound=0)
SECONDS = flags.DEFINE_float("seconds", None, "Cost of whole utterances this long, in place of a chunk.", lower_bound=1)
UNITS = flags.DEFINE_integer("units", 256, "Output units of a config whose tokenizer is not trained.", lower_bound=2)
PLOT = flags.DEFINE_string("plot", None, "Draw where compute, bytes, time and energy go (SVG).")
WATERFALL = flags.DEFINE_string("waterfall", None, "Draw the savings one after the other (SVG).")
TRAINING = flags.DEFINE_list("training", [], "Numbers of devices, comma separated, that share a training step.")

# Other devices: float16.
OWN_PRECISIONS = {"ethos-u55": "all_int8", "x86": "float32", "h200": "bfloat16", "rtx-4090": "bfloat16"}


def main(_) -> None:
    try:
        run()
    except ValueError as error:  # what every error of bad input is
        sys.exit(f"cost.py: {error}")


def run() -> None:
    device = DEVICES[DEVICE.value]
    if TRAINING.value:
        print(training())
        return
    formats = FORMAT.value or OWN_PRECISIONS.get(DEVICE.value, "float16")
    configs = {CONFIG.name: CONFIG.value} | {name: load_config(name) for name in COMPARE.value}
    reports = [
        report(name, with_units(config), workload(config), device, PRECISIONS[formats])
        for name, config in configs.items()
    ]
    for found in reports:
        print(f"{found.name} on a {device.name}, {formats}\n{module_table(found)}\n")
    if len(reports) > 1:
        print(comparison_table(reports) + "\n")
    if PLOT.value:
        system.write_text(pathlib.Path(PLOT.value), shares_chart(reports))
    if WATERFALL.value:
        steps = list(waterfall(with_units(CONFIG.value)))
        print(comparison_table(steps))
        system.write_text(pathlib.Path(WATERFALL.value), waterfall_chart(steps))


def training() -> str:
    """The table of --training."""
    if DEVICE.value not in INTERCONNECTS:
        raise ValueError(f"nothing is known of how --device={DEVICE.value} is joined: use {', '.join(INTERCONNECTS)}")
    if not all(number.isdecimal() and int(number) > 0 for number in TRAINING.value):
        raise ValueError(f"--training={','.join(TRAINING.value)} must be numbers of devices, such as 8,64,256")
    parts = with_units(CONFIG.value), DEVICES[DEVICE.value], INTERCONNECTS[DEVICE.value]
    return training_table([training_step(*parts, int(number)) for number in TRAINING.value])


def workload(config: Config) -> Workload:
    """Returns the workload that the flags ask for: a whole utterance, or a chunk of a stream."""
    if SECONDS.value:
        return Workload.utterance(config, SECONDS.value, BATCH_SIZE.value)
    return Workload.chunk(config, CHUNK_SIZE.value, NUM_LEFT_CHUNKS.value, BATCH_SIZE.value, LOOK_AHEAD.value)


def with_units(config: Config) -> Config:
    """The vocabulary that training would fill in."""
    return config.replace({"model.vocab_size": config.model.vocab_size or UNITS.value})


def waterfall(config: Config) -> Iterator[Report]:
    """One saving after the other, each on top of those before it."""
    device, model = DEVICES[DEVICE.value], config.model
    steps = [
        ("vanilla front end, float32", {"subsampling": "vanilla", "execution": "sequence"}, "float32", 1),
        ("depthwise separable front end", {"subsampling": "depthwise_separable"}, "float32", 1),
        (
            "half the channels, a frequency stride",
            {
                "subsampling_channels": model.subsampling_channels // 2,
                "subsampling_frequency_stride": 2,
            },
            "float32",
            1,
        ),
        ("float16", {}, "float16", 1),
        ("channels first", {"execution": "channels_first"}, "float16", 1),
        ("int8 weights", {}, "float16_int8_weights", 1),
        ("chunks twice as large", {}, "float16_int8_weights", 2),
    ]
    for name, changes, formats, longer in steps:
        config = config.replace({f"model.{key}": value for key, value in changes.items()})
        # The left context keeps its length in frames.
        chunk = Workload.chunk(config, longer * CHUNK_SIZE.value, -(-NUM_LEFT_CHUNKS.value // longer), BATCH_SIZE.value)
        yield report(name, config, chunk, device, PRECISIONS[formats])


if __name__ == "__main__":
    run_command(main)
