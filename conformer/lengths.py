"""Counts the feature frames that go into a front end and the encoder frames that come out. Needs no JAX."""

from typing import Any

PADDINGS = ("none", "symmetric", "causal")


class Lengths:
    """The numbers of frames that go into a front end and come out.

    Encoder frame n depends on the feature frames [n * subsampling_factor - lead, n * subsampling_factor - lead +
    right_context] alone, and a stream needs no state here: it feeds windows that overlap.

    Args:
        right_context: feature frames that an encoder frame needs beyond its first.
        padding: of the convolutions in time: "none" (whole windows alone give a frame), "symmetric" (a frame of zeros
            on both sides), or "causal" (two before, one after), where the factor is a power of two.
    """

    def __init__(self, subsampling_factor: int, right_context: int, padding: str = "none"):
        self.subsampling_factor = subsampling_factor
        self.right_context = right_context
        self.padding = padding

    @property
    def lead(self) -> int:
        """Frames that the first window begins before the first feature frame."""
        return {"none": 0, "symmetric": self.right_context // 2, "causal": self.right_context}[self.padding]

    def window(self, chunk_size: int) -> int:
        """Feature frames that yield exactly `chunk_size` encoder frames."""
        return (chunk_size - 1) * self.subsampling_factor + self.right_context + 1

    def needed(self, num_frames: int) -> int:
        """Feature frames of a window, from its start, that an utterance must reach to for so many encoder frames."""
        whole = self.window(num_frames)
        return max(whole - self.subsampling_factor + 1, self.lead + 1) if self.lead else whole

    def chunk(self, window: Any) -> Any:
        """Encoder frames of a window (see `window`): those that need no frame outside of it."""
        return (window - self.right_context - 1) // self.subsampling_factor + 1

    def output_lengths(self, lengths: Any) -> Any:
        """Encoder frames from feature frames (an integer or an array of them), at least 0."""
        if self.padding == "causal":
            frames = lengths
            for _ in range(self.subsampling_factor.bit_length() - 1):
                frames = frames // 2 + 1
            return frames * (lengths > 0)
        symmetric = self.padding == "symmetric"
        frames = (lengths - 1) // self.subsampling_factor + 1 if symmetric else self.chunk(lengths)
        return max(frames, 0) if isinstance(frames, int) else frames.clip(0)

    def margins(self, num_frames: int) -> tuple[int, int]:
        """Frames that whole utterances of `num_frames` are padded by, before and after."""
        if self.padding == "none":
            return 0, 0
        return self.lead, self.window(self.output_lengths(num_frames)) - self.lead - num_frames

    def check(self, num_frames: int) -> None:
        """Raises ValueError for fewer feature frames than one encoder frame needs."""
        if self.output_lengths(num_frames) < 1:
            needed = 1 if self.lead else self.window(1)
            raise ValueError(f"{num_frames} feature frames are too few: one encoder frame needs {needed}")
