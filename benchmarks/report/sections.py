"""The sections of the report, a function each.

A section names the records and the keys that its numbers come from. Where a record is missing, the section gives the
command that makes it.
"""

from collections.abc import Callable, Iterator, Mapping

from benchmarks import ablations
from benchmarks.kernels import run as kernels
from benchmarks.report.page import Report, sweep, sweep_plot, sweep_table, way
from conformer.charts import Point, intervals, lines
from conformer.evaluation.latency import AXES, latency_plot
from conformer.sweep.table import markdown


def front_ends(report: Report) -> None:
    report.say("## Front ends")
    report.say(
        "A front end turns audio features into the frames that the encoder reads. Each trial is one training with the "
        "same encoder, seed and number of updates (`configs/front_ends.py`). The table gives the front end's share of "
        "all multiply-accumulates (MACs). Where intervals overlap, these trainings do not say which one is better."
    )
    titles = {
        "subsampling": "Front ends of nine command words: word error rate on test",
        "front_ends_english": "Front ends of english_small: word error rate on dev and test",
    }
    for name, title in titles.items():
        if found := sweep(report, name, f"runs/{name}"):
            report.say(found["description"])
            sweep_plot(report, found, name, title)
            sweep_table(report, found, name, ("front end", "MACs/s"))


def latency(report: Report) -> None:
    report.say("## Whole utterances and streams")
    report.say(
        "A stream is cut into chunks. With a larger chunk the model hears more before it decides, and the user waits "
        "longer."
    )
    for name, label in (("words", "words"), ("english_small_dev", "english_small, dev")):
        record = report.record(name)
        if record is None or not record.get("streaming"):
            continue
        report.plot(
            f"latency_{name}",
            latency_plot(record["streaming"], record["wer"]),
            f"{label}: word error rate against latency, {record['utterances']} utterances",
            f"`results/{name}.json`, `streaming` (points) and `wer` (dashed)",
        )
    found = sweep(report, "chunk", "runs/chunk")
    if found is None:
        return
    report.say(f"{found['description']} `left_4` keeps four chunks.")
    curves: dict[str, list[Point]] = {}
    levels = {}
    for row in found["rows"]:
        if row["chunk_size"]:
            name = row["trial"].replace("left_", "chunks of left context: ")
            curves.setdefault(name, []).append(Point(row["measured_latency_seconds"], 100 * row["wer"]))
        else:
            levels = {"whole utterances": 100 * row["wer"]}
    report.plot(
        "chunk",
        lines({name: sorted(points) for name, points in curves.items()}, *AXES, levels),
        "words_micro: word error rate against latency, by chunk size and left context (intervals in the table)",
        "`results/sweeps/chunk.json`, `rows`",
    )
    first = found["rows"][0]["trial"]  # whole utterances are the same in all
    rows = [row for row in found["rows"] if row["chunk_size"] or row["trial"] == first]
    sweep_table(report, found | {"rows": rows}, "chunk", ("latency, measured",))


def numerics(report: Report) -> None:
    report.say("## Numerics policies")
    found = sweep(report, "numerics", "runs/numerics")
    if found is not None:
        report.say(f"{found['description']} `docs/numerics.md` says what each policy rounds.")
        sweep_plot(report, found, "numerics", "words_micro: word error rate under each policy")
        sweep_table(report, found, "numerics", ("bytes/s",))
    record = report.record("numerics_words")
    if record is None:
        report.say("words: not run (`python bench.py policies --workdir=models/words`).")
        return
    ways = []
    for row in record["rows"]:
        scaled = f", residual x {row['residual_scale']:.0f}" if row["residual_scale"] > 1 else ""
        ways.append(way(row["policy"] + scaled, row))
    report.plot(
        "numerics_words",
        intervals(ways, "word error rate (%)"),
        "words: word error rate under each policy, without each stabiliser, and with a larger residual stream",
        "`results/numerics_words.json`, `rows`",
    )


def choices(report: Report) -> None:
    report.say("## english_small: what each choice costs")
    report.say(
        "Chunks, left context, layouts and numerics policies, on the recordings of dev and test together. A difference "
        "is in points of WER, paired over the recordings. Where its interval does not hold 0, the choice makes a "
        "difference, even where the intervals of two error rates overlap. Below 0, fewer words are wrong."
    )
    record = report.record("ablations_english_small")
    if record is None:
        arguments = "--workdir=models/english_small --json=results/ablations_english_small.json"
        report.say(f"Not run:\n\n    python bench.py ablations {arguments}")
        return
    words = record["rows"][0]["greedy"]
    report.say(f"{words['utterances']} recordings, {words['words']:,} words:")
    report.say(ablations.table(record))
    report.say("Source: `results/ablations_english_small.json`, `rows`.")


ARTEFACT = ("artefact", "WER, streams", "from JAX, 95 % interval", "largest difference", "file", "speed, measured")


def artefacts(report: Report) -> None:
    report.say("## Exported models")
    report.say(
        "Each artefact recognises recordings as streams of 640 ms, beside JAX in float32. *From JAX* is the difference "
        "of the two WERs in points, paired over the recordings. The largest difference is that of a log-probability. "
        "The speed is that of the artefact's runtime on the machine that made the record, relative to JAX. "
        "`docs/deployment.md` says more."
    )
    shown = False
    for name in ("words_micro", "words", "english_small"):
        record = report.record(f"parity_{name}")
        if record is None:
            continue
        shown = True
        cells = [
            (
                artefact,
                f"{row['wer']:.2%}",
                ablations.shown_difference(row),
                f"{row['max_difference']:.1e}" if "max_difference" in row else "",
                f"{row['file_bytes'] / 1e6:.2f} MB" if "file_bytes" in row else "",
                f"{row['speed']:.2f} x" if "speed" in row else "",
            )
            for artefact, row in record["rows"].items()
        ]
        words, splits = record["rows"]["JAX float32"]["words"], record["split"].replace(",", " and ")
        report.say(f"{name}, {splits} split, {record['utterances']} utterances, {words:,} words:")
        columns = {
            heading: column for heading, column in zip(ARTEFACT, zip(*cells, strict=True), strict=True) if any(column)
        }
        report.say(markdown(list(columns), zip(*columns.values(), strict=True)))
        report.say(f"Source: `results/parity_{name}.json`, `rows`, which hold more columns.")
    if not shown:
        report.say("Not run (`python parity.py`).")


def layouts(report: Report) -> None:
    report.say("## Layouts")
    found = sweep(report, "layout", "runs/layout")
    if found is not None:
        report.say(found["description"])
        sweep_table(report, found, "layout", ("bytes/s",))


def plain_sweep(name: str, title: str, caption: str) -> Callable[[Report], None]:
    """A section of a sweep: what it asks, a chart, and a table."""

    def section(report: Report) -> None:
        report.say(f"## {title}")
        found = sweep(report, name, f"runs/{name}")
        if found is not None:
            report.say(found["description"])
            sweep_plot(report, found, name, caption)
            sweep_table(report, found, name)

    return section


def fine_tuning(report: Report) -> None:
    report.say("## Fine-tuning")
    found = sweep(report, "fine_tuning", "runs/fine_tuning")
    if found is not None:
        report.say(found["description"])
        sweep_plot(report, found, "fine_tuning", "Five new words from five minutes of speech: word error rate on test")
        sweep_table(report, found, "fine_tuning")
        cells = [
            (name, f"{found['seconds'][name] / 60:.1f}", f"{found['load_average'][name]:.0f}")
            for name in found["seconds"]
        ]
        report.say(markdown(("trial", "minutes of training and scoring", "load of the machine at the end"), cells))
        report.say("Source: `results/sweeps/fine_tuning.json`, `seconds` and `load_average`.")


def costs(report: Report) -> None:
    report.say("## Time on one core")
    report.say(
        "The real-time factor is the time that one core takes for a second of audio. The cost model predicts it from "
        "the core's own rates (`docs/execution.md`)."
    )
    record = report.record("bandwidth_cpu")
    if record is not None:
        rows = [(row["name"], row["ms_per_second_of_audio"], None, None) for row in record["rows"].values()]
        report.plot(
            "bandwidth",
            intervals(rows, "ms a second of audio, measured on one core"),
            "20 M parameters: time for a second of audio, by weight format, number of streams and chunk size",
            "`results/bandwidth_cpu.json`, `rows.*.ms_per_second_of_audio`",
        )
    record = report.record("cost_cpu")
    if record is not None:
        factors = ("measured_real_time_factor", "predicted_real_time_factor")
        cells = [
            (name, *(f"{row[factor]:.5f}" for factor in factors), f"{row['error']:+.0%}")
            for name, row in record["rows"].items()
        ]
        report.say(markdown(("model", "real-time factor, measured", "predicted", "error"), cells))
        report.say("Source: `results/cost_cpu.json`, `rows`.")


def kernel_speeds(report: Report) -> None:
    report.say("## Kernels")
    names = sorted(path.stem for path in report.results.glob("kernels*.json"))
    for name in names:
        record = report.record(name)
        assert record is not None
        report.say(f"```\n{kernels.table(record)}\n```\n\nSource: `results/{name}.json`.")
    if not names:
        report.say(
            "Open, for lack of hardware: no record yet. `python bench.py kernels --json=results/kernels.json` makes "
            "one on a GPU. `docs/kernels.md` says what is tested without a GPU."
        )


def english_small(report: Report) -> None:
    report.say("## english_small: training and search")
    record = report.record("english_small_search")
    if record is None:
        report.say("Not run (`python bench.py decoding --workdir=runs/english_small --lm=books.lm`).")
        return
    curve = {
        key.upper(): [Point(float(row["step"]), 100 * row[key]) for row in record["curve"]] for key in ("wer", "cer")
    }
    report.plot(
        "english_small_curve",
        lines(curve, "updates", "error rate on dev (%)"),
        "english_small: error rates on dev while it is trained",
        "`results/english_small_search.json`, `curve`",
    )
    for key, label in (("ablation", "the search, on dev"), ("test", "the search, on test")):
        if rows := record.get(key):
            report.plot(
                f"english_small_{key}",
                intervals([way(row["name"], row) for row in rows], "word error rate (%)"),
                f"english_small: {label}",
                f"`results/english_small_search.json`, `{key}`",
            )


IN_ORDER = (
    front_ends,
    latency,
    numerics,
    choices,
    artefacts,
    layouts,
    plain_sweep("size", "Sizes", "Encoders of several sizes: word error rate on test"),
    plain_sweep("positions", "Positions", "A learned bias or Transformer-XL's positions: word error rate on test"),
    plain_sweep(
        "dynamic_chunks", "From whole utterances to streams", "A model before and after: word error rate on test"
    ),
    fine_tuning,
    costs,
    kernel_speeds,
    english_small,
)


def circumstances(report: Report) -> None:
    """Says where, when and how each record was made."""
    report.say("## Records")
    rows = [(f"`results/{name}.json`", *facts(report.used[name])) for name in sorted(report.used)]
    report.say(markdown(("record", "date", "device", "command"), rows))
    report.say(
        "A record also holds the commit, the hash of the weights, and the versions of libraries. The record of a sweep "
        "holds the command of each trial. Every seed is 0 unless the record names another."
    )


def facts(record: Mapping) -> Iterator[str]:
    """Yields date, device and command."""
    yield record["date"][:10]
    device = record.get("device") or "CPU"
    yield (
        device
        if isinstance(device, str)
        else ", ".join(
            [device.get("gpu") or device["cpu"], f"{device['cores']} cores" if device["cores"] > 1 else "one core"]
        )
    )
    command = record["command"]
    yield f"`{command if command.startswith('python ') else f'python {command}'}`"
