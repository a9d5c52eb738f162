"""The sections of the report, a function each.

A section names the records, and the keys in them, that its numbers come from; what has no record says so, with the
command that makes one.
"""

from collections.abc import Callable, Iterator, Mapping

from benchmarks.kernels import run as kernels
from benchmarks.report.page import Report, sweep, sweep_plot, sweep_table, way
from conformer.charts import Point, intervals, lines
from conformer.evaluation.latency import AXES, latency_plot
from conformer.sweep.table import markdown


def front_ends(report: Report) -> None:
    report.say("## Front ends: errors, and what they cost")
    found = sweep(report, "subsampling", "runs/subsampling")
    if found is None:
        return
    report.say(
        "The same encoder, seed and steps behind each front end (`configs/front_ends.py`). The front end's share is of "
        "all multiply-accumulates."
    )
    sweep_plot(report, found, "subsampling", "Front ends: word error rate on test")
    sweep_table(report, found, "subsampling")


def latency(report: Report) -> None:
    report.say("## Whole utterances against streams")
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
    report.say(f"{found['description']} The left context is counted in chunks (`left_4`: four of them).")
    curves: dict[str, list[Point]] = {}
    levels = {}
    for row in found["rows"]:
        if row["chunk_size"]:
            curves.setdefault(row["trial"], []).append(Point(row["measured_latency_seconds"], 100 * row["wer"]))
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
    sweep_table(report, found | {"rows": rows}, "chunk")


def numerics(report: Report) -> None:
    report.say("## float32 against every numerics policy")
    found = sweep(report, "numerics", "runs/numerics")
    if found is not None:
        report.say(f"{found['description']} `docs/numerics.md` says what the policies are.")
        sweep_plot(report, found, "numerics", "words_micro: word error rate under each policy")
        sweep_table(report, found, "numerics")
    for name in ("words", "english_small"):
        record = report.record(f"numerics_{name}")
        if record is None:
            report.say(f"{name}: not run (`python bench.py policies --workdir=runs/{name}`).")
            continue
        ways = []
        for row in record["rows"]:
            scaled = f", residual x {row['residual_scale']:.0f}" if row["residual_scale"] > 1 else ""
            ways.append(way(row["policy"] + scaled, row))
        report.plot(
            f"numerics_{name}",
            intervals(ways, "word error rate (%)"),
            f"{name}, {training(report, name, record)}: policies, devices without a stabiliser, and larger residual "
            "streams",
            f"`results/numerics_{name}.json`, `rows`",
        )


def training(report: Report, name: str, record: Mapping) -> str:
    """Which training a record is of: said where it is another than the one that the error rates are of."""
    latest = report.record(name)
    earlier = latest is not None and latest["step"] != record["step"]
    return f"after {record['step']:,} updates" + (" (an earlier model)" if earlier else "")


ARTEFACT = ("artefact", "WER, streams", "errors", "largest difference", "file", "state", "speed, measured")


def artefacts(report: Report) -> None:
    report.say("## float32 against every artefact")
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
                f"{row['errors']} of {row['words']}",
                f"{row['max_difference']:.1e}" if "max_difference" in row else "",
                f"{row['file_bytes'] / 1e6:.2f} MB" if "file_bytes" in row else "",
                f"{row['state_bytes'] / 1024:.0f} KiB" if "state_bytes" in row else "",
                f"{row['speed']:.2f} x" if "speed" in row else "",
            )
            for artefact, row in record["rows"].items()
        ]
        of = training(report, name, record)
        report.say(f"{name}, {of}, {record['split']} split, {record['utterances']} utterances:")
        report.say(markdown(ARTEFACT, cells))
        report.say(f"Source: `results/parity_{name}.json`, `rows`.")
    report.say(
        "The difference is that of a log-probability from JAX float32. Speeds are relative to JAX in float32, in "
        "interpreters on the host; `docs/deployment.md` says more."
        if shown
        else "Not run (`python parity.py`)."
    )


def layouts(report: Report) -> None:
    report.say("## Layouts")
    found = sweep(report, "layout", "runs/layout")
    if found is not None:
        report.say(found["description"])
        sweep_table(report, found, "layout")


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
        report.say(
            markdown(("trial", "minutes, training and scoring, measured", "load of the machine at the end"), cells)
        )
        report.say("Source: `results/sweeps/fine_tuning.json`, `seconds` and `load_average`.")


def costs(report: Report) -> None:
    report.say("## Compute, bytes, energy, real-time factor")
    report.say(
        "The tables above hold them beside the errors: arithmetic and bytes are counted from the configuration, energy "
        "is predicted for a watch-class accelerator (`docs/execution.md`), real-time factors are measured on one core."
    )
    record = report.record("bandwidth_cpu")
    if record is not None:
        rows = [(row["name"], row["ms_per_second_of_audio"], None, None) for row in record["rows"].values()]
        report.plot(
            "bandwidth",
            intervals(rows, "ms a second of audio, measured on one core"),
            "20 M parameters: what narrower weights, batches of streams and larger chunks save",
            "`results/bandwidth_cpu.json`, `rows.*.ms_per_second_of_audio`",
        )
    record = report.record("cost_cpu")
    if record is not None:
        factors = ("measured_real_time_factor", "predicted_real_time_factor")
        cells = [
            (name, *(f"{row[factor]:.5f}" for factor in factors), f"{row['error']:+.0%}")
            for name, row in record["rows"].items()
        ]
        report.say(markdown(("one core", "real-time factor, measured", "predicted", "error"), cells))
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
            "Open, for lack of hardware: no record. `python bench.py kernels --json=results/kernels.json` makes one on "
            "a GPU; `docs/kernels.md` says what is tested without."
        )


def english_small(report: Report) -> None:
    report.say("## english_small: the learning curve, and what the search adds")
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
    """Where, when, with what and how each record was made."""
    report.say("## Records")
    rows = [(f"`results/{name}.json`", *facts(report.used[name])) for name in sorted(report.used)]
    report.say(markdown(("record", "date", "device", "versions", "seed", "command"), rows))
    report.say(
        "A seed that the record does not hold is that of the config, 0. Commands of single trials are in the sweeps' "
        "records, `commands`."
    )


def facts(record: Mapping) -> Iterator[str]:
    """Date, device, versions, seeds, command."""
    yield record["date"][:10]
    device = record.get("device") or "CPU"
    yield (
        device
        if isinstance(device, str)
        else ", ".join(
            [device.get("gpu") or device["cpu"], f"{device['cores']} cores" if device["cores"] > 1 else "one core"]
        )
    )
    versions = record.get("versions") or ({"jax": record["jax"]} if "jax" in record else {})
    yield ", ".join(f"{name} {version}" for name, version in versions.items())
    seeds = sorted(set(record.get("seeds", {}).values())) or [record.get("seed", "")]
    yield ", ".join(map(str, seeds))
    command = record["command"]
    yield f"`{command if command.startswith('python ') else f'python {command}'}`"
