"""The errors for files that do not hold what their headers promise."""

Part = bytes | tuple[int, int]  # of what is decoded in the place of a file: bytes, or a range of the file


class ContainerError(ValueError):
    """A file that does not hold what its header promises; the message says what, and the remedy, but not which file."""


class TruncatedError(ContainerError):
    """A file that ends too soon."""

    def __init__(self):
        super().__init__("truncated, it ends before the length in its header: fetch or write it again")


class StrayError(ContainerError):
    """A file with more in it than its header says."""

    def __init__(self):
        super().__init__("holds more than its header says: write it again, or split what was joined")
