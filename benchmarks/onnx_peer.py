"""ONNX Runtime's contestant: the step that `benchmarks/onnx_export.py` wrote."""

import pathlib

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]

from benchmarks.contestant import serve
from benchmarks.record import versions


class OnnxStreamer:
    """One stream through an exported step, on one thread.

    Args:
        folder: what is measured (`benchmarks.streaming.save_inputs`), the export with it.
        weights: the format of the export, which fixes chunk_size and num_left_chunks.
    """

    def __init__(self, folder: str, chunk_size: int, num_left_chunks: int, weights: str):
        self.versions = versions("jax2onnx", "onnx", "onnxruntime")
        path = str(pathlib.Path(folder, f"{weights}.onnx"))
        self.weight_bytes = sum(onnx.numpy_helper.to_array(array).nbytes for array in onnx.load(path).graph.initializer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()]
        self.reset()

    def reset(self) -> None:
        types = {"tensor(float)": np.float32, "tensor(int32)": np.int32}
        self._cache = [np.zeros(value.shape, types[value.type]) for value in self._session.get_inputs()[1:]]

    def step(self, window: np.ndarray) -> np.ndarray:
        inputs = dict(zip(self._names, [window, *self._cache], strict=True))
        log_probs, *self._cache = self._session.run(None, inputs)
        return log_probs


if __name__ == "__main__":
    serve(OnnxStreamer)
