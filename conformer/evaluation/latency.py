"""A plot of word error rate against the latency that a user perceives."""

from collections.abc import Sequence


def plot_latency(rows: Sequence[dict], path: str) -> None:
    """Draws the rows of eval.py's table that have a latency, and the offline one as a line. Raises ValueError."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install -c requirements.lock -e '.[plots]'") from None
    streams = [row for row in rows if "latency_seconds" in row]
    if not streams:
        raise ValueError("--plot shows streams: add --streaming, and several sizes to --chunk-size")
    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    wers = [100 * row["wer"] for row in streams]
    below = [100 * (row["wer"] - row["wer_low"]) for row in streams]
    above = [100 * (row["wer_high"] - row["wer"]) for row in streams]
    latencies = [row["latency_seconds"] for row in streams]
    axes.errorbar(latencies, wers, yerr=[below, above], marker="o", capsize=3, label="stream, 95 % interval")
    for row, x, y in zip(streams, latencies, wers, strict=True):
        axes.annotate(row["mode"], (x, y), textcoords="offset points", xytext=(6, 6))
    axes.axhline(100 * rows[0]["wer"], linestyle="--", color="grey", label="whole utterance")
    axes.set(xlabel="latency: audio waited for + computation on one core (s)", ylabel="word error rate (%)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)
