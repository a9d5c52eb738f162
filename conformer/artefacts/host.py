"""The data that a host without Python needs beside an artefact: a card that it can follow, sizes and constants."""

import pathlib

import numpy as np

from conformer.artefacts.card import Card, load_cards
from conformer.artefacts.formats import ExportError
from conformer.artefacts.geometry import Geometry
from conformer.audio import INT16_SCALE
from conformer.config import FeatureConfig
from conformer.filterbank import LOG_FLOOR, plan_of


def card_for(host: str, artefact: pathlib.Path) -> Card:
    """The card of an artefact that the recognisers of `examples` can run. Raises ExportError, in the host's name."""
    (card,) = load_cards(artefact.with_suffix(".json"))
    geometry, features = card.geometry, card.features
    usual = features.kind == "kaldi" and not features.normalise and geometry.subsampling_padding == "none"
    fft_size = plan_of(features).fft_size
    if card.format != "onnx" or geometry.whole or card.sounds or not usual or fft_size & (fft_size - 1):
        raise ExportError(
            f"{artefact}: {host} runs the ONNX step of models with Kaldi's features and a front end without padding, "
            "whose units spell words: use `python transcribe.py --artefact`"
        )
    return card


def front_end(features: FeatureConfig, geometry: Geometry) -> dict[str, int | float | np.ndarray]:
    """Sizes, and the constants of Kaldi's log-mel filterbank.

    Filter m reads FILTER_SIZE[m] bins of the power spectrum from FILTER_START[m] on; their weights are in a row.
    """
    plan = plan_of(features)
    filters = [np.flatnonzero(column) for column in plan.filters.T]
    return {
        "SAMPLE_RATE": features.sample_rate,
        "NUM_MEL_BINS": features.num_mel_bins,
        "FRAME_SAMPLES": plan.window_length,
        "SHIFT_SAMPLES": plan.shift,
        "LEFT_SAMPLES": plan.left,  # of the first frame before the audio, which is reflected there
        "TRAILING_SAMPLES": plan.trailing,  # of silence to add behind the audio
        "FFT_SIZE": plan.fft_size,
        "WINDOW_FRAMES": geometry.window,
        "WINDOW_SHIFT_FRAMES": geometry.shift,
        "SUBSAMPLING_FACTOR": geometry.subsampling_factor,
        "RIGHT_CONTEXT": geometry.right_context,
        "CHUNK_SIZE": geometry.chunk_size,  # encoder frames that a window adds
        "LOOK_AHEAD": geometry.look_ahead,  # and those after them that it holds, which the next one adds
        "LEFT_CONTEXT": geometry.left,
        "VOCAB_SIZE": geometry.vocab_size,
        "INT16_SCALE": INT16_SCALE,  # of samples in [-1, 1)
        "PREEMPHASIS": features.preemphasis,  # after a frame's mean is taken off
        "LOG_FLOOR": LOG_FLOOR,  # least energy before the logarithm
        "FILTER_START": np.array([rows[0] for rows in filters]),
        "FILTER_SIZE": np.array([len(rows) for rows in filters]),
        "FILTER_WEIGHTS": np.concatenate([plan.filters[rows, mel] for mel, rows in enumerate(filters)]),
        "ANALYSIS_WINDOW": plan.window,
    }
