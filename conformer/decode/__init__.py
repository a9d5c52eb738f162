"""Decoders: from the log-probabilities of frames to tokens."""
