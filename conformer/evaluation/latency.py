"""A plot of word error rate against the latency that a user perceives."""

from collections.abc import Mapping, Sequence

from conformer.charts import Point, lines

AXES = "latency, measured: audio waited for + computation on one core (s)", "word error rate (%)"


def latency_plot(rows: Sequence[Mapping], whole: float) -> str:
    """Draws the rows of eval.py's table that have a latency, and the error rate of whole utterances as a line (SVG).

    Raises ValueError where no row is of a stream.
    """
    points = sorted(
        Point(row["latency_seconds"], 100 * row["wer"], 100 * row["wer_low"], 100 * row["wer_high"], row["mode"])
        for row in rows
        if "latency_seconds" in row
    )
    if not points:
        raise ValueError("--plot shows streams: add --streaming, and several sizes to --chunk-size")
    return lines({"streams": points}, *AXES, {"whole utterances": 100 * whole})
