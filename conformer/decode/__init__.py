"""Decoding: tokens from the symbol probabilities of frames."""
