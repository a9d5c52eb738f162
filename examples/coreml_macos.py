"""Runs an exported Core ML package on a Mac: results, placement, latency. It has not been run: there was no Mac.

  python examples/coreml_macos.py models/words_micro/coreml_float16.mlpackage

Needs macOS 15 or newer and coremltools. Compares the log-probabilities with those of JAX float32 in check.npz beside
the package, says which operations the Neural Engine gets, and times a step.
"""

import pathlib
import statistics
import sys
import time
from collections import Counter
from typing import Any

import coremltools as ct  # pyright: ignore[reportMissingImports]
import numpy as np
from coremltools.models.compute_plan import MLComputePlan  # pyright: ignore[reportMissingImports]


def main(path: pathlib.Path) -> None:
    package = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_AND_NE)
    stored = np.load(path.parent / "check.npz")
    state = package.make_state()
    description = package.get_spec().description.input
    num_keys = description[1].type.multiArrayType.shape[1]
    absolute = any(tensor.name == "offset" for tensor in description)
    frames = stored["log_probs"].shape[1]
    results, seconds = [], []
    for index, window in enumerate(stored["windows"]):
        valid = np.arange(num_keys) >= num_keys - frames * (index + 1)
        mask = np.where(valid, 0, -1e4).astype(np.float32)[None, :, None, None]
        inputs = {"window": window.T[None, None], "mask": mask}
        if absolute:  # positions: the frames before the chunk
            inputs["offset"] = np.full((1, 1, 1, 1), frames * index, np.float32)
        start = time.perf_counter()
        output = package.predict(inputs, state=state)
        seconds.append(time.perf_counter() - start)
        results.append(output["log_probs"][0, :, 0].T)
    print(f"largest difference of a log-probability: {np.abs(np.stack(results) - stored['log_probs']).max():.1e}")
    print(f"a step: {1000 * statistics.median(seconds):.2f} ms")

    plan: Any = MLComputePlan.load_from_path(package.get_compiled_model_path(), compute_units=ct.ComputeUnit.CPU_AND_NE)
    devices: Counter[str] = Counter()
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            devices[type(usage.preferred_compute_device).__name__] += 1
    print(", ".join(f"{count} operations on {device}" for device, count in devices.most_common()))


if __name__ == "__main__":
    if sys.platform != "darwin":
        sys.exit("coreml_macos.py: Core ML runs on a Mac alone, with macOS 15 or newer")
    main(pathlib.Path(sys.argv[1]))
